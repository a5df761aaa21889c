"""How well a search finds: `python -m benchmarks.retrieval [--data FOLDER] [--target CHARACTERS] [--tune]`.

Pages of documentation and questions with the pages that answer them (`benchmarks.retrieval_sets`) are cut, tokenised,
embedded and ranked by what a search uses. What it shows, by words, by vectors and by both: how often the right page
stands first, among the first five and ten, and the mean of its reciprocal rank; beside it `bm25s` on the same passages.
Whatever was chosen by measurement was chosen by a third of Ray's questions: `--tune` compares lengths of passages on
these alone. Intervals are of 95 %, by bootstrap, of the questions that nothing was chosen by.

Vectors are kept in a folder: the first run takes minutes, the next ones seconds.
"""

import argparse
import asyncio
import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import UUID, uuid5

import bm25s  # type: ignore[import-untyped]
import numpy as np
import Stemmer  # type: ignore[import-not-found]

from benchmarks.retrieval_sets import DATA, Question, Set, anthropic, ray, tuned_on
from chatkeep.documents import Content, IndexedChunk, NewChunk
from chatkeep.reading.chunking import TARGET_CHARS, chunk_markdown
from chatkeep.retrieval.embedding import LOCAL, Embedder, embedded_text, embedder_of
from chatkeep.retrieval.index import Index
from chatkeep.retrieval.segments import Segment
from chatkeep.retrieval.terms import pack_terms

FOUND = 10
"""How many pages are looked at."""

TARGETS = (600, 800, 1_000, 1_200, 1_500, 2_000)
RESAMPLES, SEED = 10_000, 20_261_130
NAMESPACE = UUID("6f1c2a52-6a0e-4a3c-9a0e-0d1b6c3c8f11")

WAYS = ("words", "vectors", "both")
COLUMNS = ("hit@1", "hit@5", "hit@10", "MRR@10")

PUBLISHED = {
    "ray-docs": "BM25 of the set's README: rank_bm25 .218 .485 .606 .339, bm25s .218 .564 .703 .364",
    "anthropic-docs": "BM25 of the set's README: rank_bm25 .800 .930 .980 .848, bm25s .800 .960 1.000 .873",
}


class Vectors:
    """Vectors of texts, each made once and kept in a file."""

    def __init__(self, embedder: Embedder, folder: Path) -> None:
        self._embedder = embedder
        self._folder = folder / hashlib.sha256(embedder.name.encode()).hexdigest()[:16]
        self._folder.mkdir(parents=True, exist_ok=True)

    async def of(self, texts: Sequence[str]) -> list[bytes]:
        """Return the vectors of texts."""
        files = [self._folder / hashlib.sha256(text.encode()).hexdigest() for text in texts]
        missing = [(file, text) for file, text in zip(files, texts, strict=True) if not file.exists()]
        for first in range(0, len(missing), 64):
            some = missing[first : first + 64]
            for (file, _), vector in zip(some, await self._embedder.documents([text for _, text in some]), strict=True):
                file.write_bytes(vector)
            print(f"\r{len(missing) - first:,} texts to embed ", end="", flush=True)
        return [file.read_bytes() for file in files]


class Searched(NamedTuple):
    """A set, ready to be searched."""

    questions: Sequence[Question]
    chunks: Mapping[str, Sequence[NewChunk]]
    passages: Index
    asked: Mapping[str, np.ndarray[tuple[int], np.dtype[np.float32]]]
    """The vectors of the questions."""

    def ranks(self, way: str) -> dict[str, int]:
        """Return the rank of the right page of each question; 0 if it is not found."""
        found = {}
        for question in self.questions:
            terms = b"" if way == "vectors" else pack_terms(question.text)
            ranked = self.passages.search(terms, None if way == "words" else self.asked[question.id], FOUND)
            found[question.id] = rank([one.content.file_path for one in ranked], question)
        return found

    def right_passages(self) -> tuple[int, int]:
        """Return for how many pages found the passage shown is of the right section, and how many there are."""
        right = pages = 0
        for question in self.questions:
            labelled = {section.partition("#")[0] for section in question.sections}
            for one in self.passages.search(pack_terms(question.text), self.asked[question.id], FOUND):
                path = one.content.file_path
                pages += path in labelled
                right += f"{path}{self.chunks[path][one.n].header_anchor}" in question.sections
        return right, pages


async def searched(some: Set, vectors: Vectors, target: int) -> Searched:
    """Cut, embed and index the pages of a set."""
    chunks = {path: chunk_markdown(text, target=target).chunks for path, text in some.pages.items()}
    segments = []
    for path, each in chunks.items():
        made = await vectors.of([embedded_text(chunk.heading, chunk.text) for chunk in each])
        entries = [
            IndexedChunk(n, chunk.terms, vector) for n, (chunk, vector) in enumerate(zip(each, made, strict=True))
        ]
        id_ = uuid5(NAMESPACE, path)
        segments.append(Segment.of([(Content(id_, id_, path, None, len(entries), 1), entries)]))
    texts = [question.text for question in some.questions]
    asked = {
        question.id: np.frombuffer(vector, "<f4")
        for question, vector in zip(some.questions, await vectors.of(texts), strict=True)
    }
    return Searched(
        some.questions, chunks, Index.of(segments, {content for each in segments for content in each.contents}), asked
    )


def bm25s_ranks(some: Searched) -> dict[str, int]:
    """Return the ranks by bm25s, with the stop words and the stemmer that it is used with, on the same passages."""
    pages = [path for path, each in some.chunks.items() for _ in each]
    texts = [embedded_text(chunk.heading, chunk.text) for each in some.chunks.values() for chunk in each]
    stemmer = Stemmer.Stemmer("english")
    model = bm25s.BM25(method="lucene", k1=1.5, b=0.75)
    model.index(bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False), show_progress=False)
    found = {}
    for question in some.questions:
        (words,) = bm25s.tokenize(
            [question.text], stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
        )
        scores = model.get_scores([word for word in words if word in model.vocab_dict])
        order = np.argsort(-scores, kind="stable")
        found[question.id] = rank(list(dict.fromkeys(pages[place] for place in order))[:FOUND], question)
    return found


def rank(paths: Sequence[str], question: Question) -> int:
    """Return the rank of the first right page; 0 without one."""
    return next((place for place, path in enumerate(paths, 1) if path in question.pages), 0)


def figures(ranks: Sequence[int]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Return hits and the mean reciprocal rank, as in `COLUMNS`."""
    return np.array(_each(np.array(ranks))).mean(axis=1)


def intervals(ranks: Sequence[int]) -> Iterator[str]:
    """Yield an interval of each figure."""
    each = np.array(_each(np.array(ranks)))
    drawn = np.random.default_rng(SEED).integers(0, len(ranks), (RESAMPLES, len(ranks)))
    low, high = np.percentile(each[:, drawn].mean(axis=2), [2.5, 97.5], axis=1)
    yield from (f"{a:.3f} to {b:.3f}" for a, b in zip(low, high, strict=True))


def _each(ranks: np.ndarray[tuple[int], np.dtype[np.int_]]) -> list[np.ndarray[tuple[int], np.dtype[np.float64]]]:
    hits = [((ranks > 0) & (ranks <= most)).astype(float) for most in (1, 5, 10)]
    return [*hits, np.where(ranks > 0, 1 / np.maximum(ranks, 1), 0.0)]


def show(name: str, ranks: Sequence[int], *, interval: bool = False) -> None:
    """Print one line of a table."""
    print(f"{name:34}", *(f"{figure:7.3f}" for figure in figures(ranks)), f"  n = {len(ranks)}", flush=True)
    if interval:
        print(" " * 34, *intervals(ranks))


async def tune(some: Set, vectors: Vectors) -> None:
    """Compare lengths of passages on the questions that are for it."""
    chosen = tuned_on(some)
    mine = some._replace(questions=[question for question in some.questions if question.id in chosen])
    for target in TARGETS:
        ready = await searched(mine, vectors, target)
        print(f"\r{target:,} characters, {len(ready.passages):,} passages".ljust(34), *COLUMNS)
        for way in WAYS:
            show(f"  {way}", list(ready.ranks(way).values()))


async def report(some: Set, vectors: Vectors, target: int) -> None:
    """Print what a set shows."""
    ready = await searched(some, vectors, target)
    print(f"\r\n{some.name}: {len(some.pages)} pages, {len(ready.passages):,} passages".ljust(36), *COLUMNS)
    by_way = {"bm25s": bm25s_ranks(ready)} | {way: ready.ranks(way) for way in WAYS}
    for way, ranks in by_way.items():
        show(f"  {way}", list(ranks.values()))
    if chosen := tuned_on(some):
        for way in WAYS:
            show(f"  {way}, tuned on", [rank for id_, rank in by_way[way].items() if id_ in chosen])
        for way in WAYS:
            show(
                f"  {way}, not tuned on",
                [rank for id_, rank in by_way[way].items() if id_ not in chosen],
                interval=True,
            )
    right, pages = ready.right_passages()
    print(f"  the passage shown is of the right section: {right} of {pages} pages found\n  {PUBLISHED[some.name]}")


async def measure(options: argparse.Namespace) -> None:
    """Do what the options say."""
    model = embedder_of(options.embedder)
    if model is None:
        raise SystemExit("it needs an embedder")
    embedder = Embedder(model)
    vectors = Vectors(embedder, options.vectors)
    if options.tune:
        await tune(ray(options.data), vectors)
    else:
        for some in (ray(options.data), anthropic(options.data)):
            await report(some, vectors, options.target)
    await embedder.aclose()


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--target", type=int, default=TARGET_CHARS, help="length of a passage, in characters")
    parser.add_argument("--tune", action="store_true", help="compare lengths of passages")
    parser.add_argument("--embedder", default=LOCAL)
    parser.add_argument("--vectors", type=Path, default=Path(tempfile.gettempdir()) / "chatkeep-vectors")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
