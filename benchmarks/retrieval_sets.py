"""Pages of documentation, and questions with the pages and sections that answer them."""

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

DATA = Path(__file__).parents[2] / "shared" / "data" / "retrieval"
"""Where the sets are, with a README that says where they come from."""


class Question(NamedTuple):
    """A question, and what answers it."""

    id: str
    text: str
    pages: frozenset[str]
    sections: frozenset[str]
    """Pages with the anchor of the section, as far as it is known."""


class Set(NamedTuple):
    """Pages and questions."""

    name: str
    pages: Mapping[str, str]
    questions: Sequence[Question]
    is_tuned: bool
    """Whether anything was chosen by a third of its questions."""


def tuned_on(some: Set) -> set[str]:
    """Return the ids of the third of the questions by which anything may be chosen: decided by their hashes."""
    ids = sorted((question.id for question in some.questions), key=lambda id_: hashlib.sha256(id_.encode()).digest())
    return set(ids[: len(ids) // 3]) if some.is_tuned else set()


def ray(folder: Path) -> Set:
    """Ray's documentation, and questions of its users."""
    docs = folder / "docs"
    pages = {path.relative_to(docs).as_posix(): path.read_text("utf-8") for path in sorted(docs.rglob("*.md"))}
    rows = _rows((folder / "questions.jsonl").read_text("utf-8"))
    return Set("ray-docs", pages, [_question(row, [row, *(row.get("also") or [])]) for row in rows], is_tuned=True)


def anthropic(folder: Path) -> Set:
    """Anthropic's documentation, and questions that a model wrote."""
    here = folder / "anthropic-docs"
    pages = {row["doc_id"]: row["text"] for row in _rows(gzip.decompress((here / "docs.jsonl.gz").read_bytes()))}
    rows = _rows((here / "questions.jsonl").read_text("utf-8"))
    return Set("anthropic-docs", pages, [_question(row, row["answers"]) for row in rows], is_tuned=False)


def _rows(lines: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def _question(row: Mapping[str, Any], answers: Sequence[Mapping[str, Any]]) -> Question:
    sections = frozenset(f"{answer['doc_id']}#{answer['slug']}" for answer in answers if answer["slug"])
    return Question(row["id"], row["question"], frozenset(answer["doc_id"] for answer in answers), sections)
