"""What an answer rests on: passages that it was given by their numbers, and those that it cites."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from chatkeep.events import Event, EventKind
from chatkeep.model import MAX_QUOTE_CHARS, MAX_SOURCES
from chatkeep.parts import Part
from chatkeep.retrieval.passages import Passage

PASSAGES = "passages"
"""The field of a tool's result that says which passages are in it."""

MAX_PASSAGE_CHARS = 4_000
"""Most characters of a passage that a model is given."""

MARKER = re.compile(r"\[(\d{1,6}(?:\s{0,3},\s{0,3}\d{1,6}){0,20})\]")
"""What cites passages: [3], or [3, 5]."""

WIDE, CLOSING = "\u3002\uff01\uff1f", "'\")\u2019\u201d"
"""The full-width ends of sentences, and what may close a sentence after its end."""

END_OF_STATEMENT = re.compile(rf"[.!?\u2026][{CLOSING}\]]{{0,3}}\s|[{WIDE}]|\n|\[\d[\d,\s]{{0,60}}\]")

MAX_STATEMENT_CHARS = 2_000
"""How far before a citation the statement is looked for that it supports."""


class Shelf:
    """The passages that a model was given in a conversation, by numbers that go on from answer to answer."""

    def __init__(self) -> None:
        self._sources: dict[int, dict[str, Any]] = {}
        self._numbers: dict[tuple[str, int], int] = {}

    def add(self, found: Iterable[Passage]) -> list[int]:
        """Return the numbers of passages; one that was given before keeps its number."""
        return [self._add(_source(passage)) for passage in found]

    def _add(self, source: dict[str, Any], number: int | None = None) -> int:
        place = source["document_id"], source["document_span"]["start"]
        if place not in self._numbers or number is not None:
            self._numbers[place] = number or max(self._sources, default=0) + 1
        self._sources[self._numbers[place]] = source
        return self._numbers[place]

    def take(self, parts: Iterable[Part]) -> None:
        """Put back what earlier answers were given. A part that is not of our making is left out."""
        for part in parts:
            given = part.get(PASSAGES)
            if part["type"] == EventKind.TOOL_RESULT and isinstance(given, list):
                for each in filter(_is_ours, given):
                    self._add({name: value for name, value in each.items() if name != "number"}, each["number"])

    def shown(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Return passages as a model is shown them."""
        return [
            {
                "source": number,
                "file": self._sources[number]["file_path"],
                "title": self._sources[number].get("title"),
                "text": self._sources[number]["quote"][:MAX_PASSAGE_CHARS],
            }
            for number in numbers
        ]

    def kept(self, numbers: Iterable[int]) -> list[dict[str, Any]]:
        """Return passages as a part keeps them, for later answers."""
        return [{"number": number, **self._sources[number]} for number in numbers]

    def cited(self, content: str) -> Iterator[Event]:
        """Yield the sources that an answer cites, each once, with the first statement that it supports."""
        seen: set[int] = set()
        for match in MARKER.finditer(content):
            for number in map(int, match[1].split(",")):
                if number in self._sources and number not in seen and len(seen) < MAX_SOURCES:
                    seen.add(number)
                    span = {"start": start_of_statement(content, match.start()), "end": match.start()}
                    yield source_event(number, self._sources[number], span)


def source_event(number: int, source: Mapping[str, Any], answer_span: Mapping[str, int]) -> Event:
    """Return the event of a source with its number."""
    return Event(EventKind.SOURCE, {"id": str(number), **source, "answer_span": dict(answer_span)})


def _source(passage: Passage) -> dict[str, Any]:
    quote = passage.text[:MAX_QUOTE_CHARS]
    return {
        "document_id": str(passage.document_id),
        "file_path": passage.file_path,
        "header_anchor": passage.header_anchor,
        "similarity_score": passage.similarity_score,
        **({"title": passage.title} if passage.title else {}),
        "quote": quote,
        "document_span": {"start": passage.start, "end": passage.start + len(quote)},
    }


NEEDED = {"number": int, "document_id": str, "file_path": str, "quote": str, "document_span": dict}


def _is_ours(value: object) -> bool:
    return (
        isinstance(value, dict)
        and all(isinstance(value.get(name), kind) for name, kind in NEEDED.items())
        and 0 < value["number"] < 1_000_000
        and isinstance(value["document_span"].get("start"), int)
    )


def start_of_statement(content: str, end: int) -> int:
    """Return where the statement begins that ends at a place: after the sentence, line or citation before it."""
    first = max(0, end - MAX_STATEMENT_CHARS)
    text = content[first:end]
    body = text.rstrip()
    while body.endswith("]") and (marker := list(MARKER.finditer(body))) and marker[-1].end() == len(body):
        body = body[: marker[-1].start()].rstrip()  # [1][2]: both support the same
    body = body.rstrip(f".!?\u2026{WIDE}{CLOSING}")
    start = max((match.end() for match in END_OF_STATEMENT.finditer(body)), default=0)
    return first + start + len(body[start:]) - len(body[start:].lstrip())
