"""Search in a large project: `python -m benchmarks.search [--database NAME] [--documents N] [--chunks N]`.

Stores documents of synthetic passages, whose words are as common as words are (Zipf) and whose vectors have 384
numbers, and searches them. What it shows: how many passages a second are stored; how long the first search takes, which
makes the index, and the one after a document was added; the time of a search with the vector of its question made
before (p50, p95); how late the event loop was meanwhile, and how much of that its thread waited for a processor, or
processes that do nothing were late, too; and the memory.
"""

import argparse
import asyncio
import gc
import hashlib
import itertools
import os
import resource
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID

import numpy as np

from benchmarks.drill_places import KINDS, on_disk, place
from benchmarks.idle import TICK_SECONDS, IdleProcesses, idle_processes
from chatkeep import open_store
from chatkeep.documents import NewChunk, NewDocument, ProjectLimits, space_of
from chatkeep.projects import NewProject
from chatkeep.retrieval.search import Retrieval
from chatkeep.retrieval.snapshots import RetrievalLimits
from chatkeep.retrieval.terms import pack_terms
from chatkeep.store import Store

OWNER = "bench"
DIMENSION, WORDS, WORDS_OF_CHUNK = 384, 50_000, 160
SPACE = space_of("bench", DIMENSION)
SEED = 20_261_130
LIMITS = ProjectLimits(10_000, 1_000_000)


class Vectors:
    """Vectors of questions that were made before."""

    def __init__(self, generator: np.random.Generator) -> None:
        self._generator = generator

    async def vector(self, space: str, question: str) -> bytes:  # noqa: ARG002 - any will do
        """A vector."""
        return bytes(units(self._generator, 1)[0].data)


def units(generator: np.random.Generator, count: int) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Vectors of the length 1."""
    vectors = generator.standard_normal((count, DIMENSION), np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype("<f4")


def texts(generator: np.random.Generator, count: int) -> list[str]:
    """Passages."""
    words = np.minimum(generator.zipf(1.2, (count, WORDS_OF_CHUNK)), WORDS)
    return [" ".join(f"w{word}" for word in some) for some in words.tolist()]


def document(generator: np.random.Generator, number: int, chunks: int) -> tuple[NewDocument, list[NewChunk]]:
    """A document."""
    said = texts(generator, chunks)
    starts = itertools.accumulate((len(text) for text in said), initial=0)
    vectors = units(generator, chunks)
    new = NewDocument(
        file_path=f"folder-{number % 10}/{number}.md",
        media_type="text/markdown",
        bytes=sum(map(len, said)),
        sha256=hashlib.sha256(str(number).encode()).hexdigest(),
    )
    return new, [
        NewChunk(text, f"#section-{n}", f"Document {number} > Section {n}", start, pack_terms(text), vector.tobytes())
        for n, (text, start, vector) in enumerate(zip(said, starts, vectors, strict=False))
    ]


def memory() -> float:
    """The resident memory of this process, in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def waited_for_a_processor() -> float:
    """For how many seconds this thread was ready to run and another had the processor."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9


@asynccontextmanager
async def watched(name: str, idle: IdleProcesses) -> AsyncIterator[None]:
    """Tell how long the block took, and how late the event loop was: also without the machine's part."""
    late, done = list[tuple[float, float, float]](), False

    async def tick() -> None:
        waited = waited_for_a_processor()
        while not done:
            due = time.perf_counter() + TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS)
            woken, before, waited = time.perf_counter(), waited, waited_for_a_processor()
            late.append((due, woken, waited - before))

    ticking = asyncio.create_task(tick())
    began = time.perf_counter()
    yield
    seconds, done = time.perf_counter() - began, True
    await ticking
    latest = sorted(late, key=lambda each: each[0] - each[1])
    p99, most = (woken - due for due, woken, _ in (latest[len(latest) // 100], latest[0]))
    ours = max(woken - due - max(waited, idle.late(due, woken)) for due, woken, waited in latest[:100])  # reads files
    print(
        f"{name:28} {seconds:6.2f} s; event loop late by p99 {p99 * 1e3:4.1f} ms, at most"
        f" {most * 1e3:5.1f} ms, without the machine's part {ours * 1e3:4.1f} ms; {memory():6.0f} MB",
        flush=True,
    )


async def fill(store: Store, project: UUID, documents: int, chunks: int) -> None:
    """Store the documents."""
    generator, seconds = np.random.default_rng(SEED), 0.0
    for number in range(documents):
        new, some = document(generator, number, chunks)
        began = time.perf_counter()
        await store.documents.store_document(OWNER, project, new, some, space=SPACE, limits=LIMITS)
        seconds += time.perf_counter() - began
    print(f"stored {documents * chunks:,} passages, {documents * chunks / seconds:,.0f}/s", flush=True)


def questions(count: int) -> Iterator[str]:
    """Questions of eight words."""
    generator = np.random.default_rng(SEED + 1)
    for _ in range(count):
        yield " ".join(f"w{word}" for word in np.minimum(generator.zipf(1.2, 8), WORDS).tolist())


async def measure(url: str, documents: int, chunks: int, searches: int, idle: IdleProcesses) -> None:
    """Fill a store and search it."""
    async with open_store(url, read_timeout=120) as store:
        gc.freeze()  # as the server does
        project = (await store.projects.create_project(OWNER, NewProject(name="Large"))).id
        await fill(store, project, documents, chunks)
        print(f"before the first search: {memory():.0f} MB", flush=True)
        vectors = Vectors(np.random.default_rng(SEED + 2))
        retrieval = Retrieval(store, questions=vectors, limits=RetrievalLimits(seconds=600, chunks_in_memory=1_000_000))
        async with watched("first search", idle):
            await retrieval.search(OWNER, project, "w1 w2")
        async with watched(f"{searches} searches", idle):
            times = [await timed(retrieval, project, question) for question in questions(searches)]
        ordered = sorted(times)
        print(
            f"one search: p50 {ordered[searches // 2] * 1e3:.1f} ms, p95 {ordered[searches * 95 // 100] * 1e3:.1f} ms"
        )
        new, some = document(np.random.default_rng(SEED + 3), documents, chunks)
        await store.documents.store_document(OWNER, project, new, some, space=SPACE, limits=LIMITS)
        async with watched("search after a new document", idle):
            await retrieval.search(OWNER, project, "w1 w2")
        print(f"index {retrieval.snapshots.nbytes / 1e6:.0f} MB, process at most {peak():.0f} MB", flush=True)
        await retrieval.aclose()


async def timed(retrieval: Retrieval, project: UUID, question: str) -> float:
    """How long one search takes."""
    began = time.perf_counter()
    await retrieval.search(OWNER, project, question)
    return time.perf_counter() - began


def peak() -> float:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    """Measure on one database, or on all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", choices=KINDS)
    parser.add_argument("--documents", type=int, default=1_000)
    parser.add_argument("--chunks", type=int, default=100, help="of each document")
    parser.add_argument("--searches", type=int, default=200)
    options = parser.parse_args()
    for kind in [options.database] if options.database else KINDS:
        print(f"\n{kind}: {options.documents:,} documents of {options.chunks:,} passages", flush=True)
        with on_disk() as folder, place(kind, folder) as where, idle_processes() as idle:
            asyncio.run(measure(where.fresh(), options.documents, options.chunks, options.searches, idle))


if __name__ == "__main__":
    main()
