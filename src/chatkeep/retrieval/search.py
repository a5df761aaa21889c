"""Search in the documents of a project: words and vectors together, the same on every database.

Chunks live in the store. Every search reads the version of its project, so that it finds what another process stored
before it, and asks the snapshot of that version (`chatkeep.retrieval.snapshots`).
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, Protocol
from uuid import UUID

from chatkeep.extras import missing

try:
    import numpy as np
except ModuleNotFoundError as error:
    raise missing(error, "chatkeep.retrieval.search", "documents") from error

from chatkeep.documents import Chunk, ChunkRange, Nearest
from chatkeep.errors import InvalidInput, StoreUnavailable
from chatkeep.projects import Project
from chatkeep.retrieval.embedding import EmbeddingFailed
from chatkeep.retrieval.index import Ranked
from chatkeep.retrieval.passages import MAX_PASSAGES, MAX_QUESTION_CHARS, Method, Passage, Passages
from chatkeep.retrieval.snapshots import LIMITS, RetrievalLimits, Snapshot, Snapshots
from chatkeep.retrieval.terms import pack_terms
from chatkeep.store import Store
from chatkeep.values import clean_text, valid_range

SEARCHES_AT_ONCE = 2
"""Threads that search: with more of them each would take longer."""

NO_EMBEDDER = "by words alone: this server has no embedder"
NO_VECTORS = "by words alone: no document of this project has a vector yet"


class Questions(Protocol):
    """What makes the vectors of questions."""

    async def vector(self, space: str, question: str) -> bytes:
        """Return the vector of a question in a space. Raises EmbeddingFailed."""


class Asked(NamedTuple):
    """A question, as an index takes it."""

    terms: bytes
    vector: bytes | None = None
    nearest: list[Nearest] | None = None
    """What the database found by the vector."""
    note: str | None = None


class Retrieval:
    """Searches the documents of projects, used from one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        questions: Questions | None = None,
        loaded: Callable[[str, UUID], None] | None = None,
        limits: RetrievalLimits = LIMITS,
    ) -> None:
        """Take the store, what makes vectors of questions, if anything does, and the limits of this process.

        `loaded` is told of the owner and the project when a snapshot was made: there may be vectors to make.
        """
        self._store = store
        self._questions = questions
        self._limits = limits
        self.snapshots = Snapshots(store, limits, loaded)
        """What this process keeps of projects."""
        self._threads = ThreadPoolExecutor(SEARCHES_AT_ONCE, "chatkeep-retrieval")

    async def search(self, owner: str, project_id: UUID | str, question: str, *, limit: int = 10) -> Passages:
        """Return the best passage of each document that answers a question, the best first; at most `limit`.

        The same documents and the same question have the same ranking on every database. Raises NotFound, InvalidInput
        for a question that is blank or longer than 2,000 characters, StoreUnavailable if it takes too long.
        """
        valid_range("limit", limit, 1, MAX_PASSAGES)
        question = clean_text(question).strip()
        if not 1 <= len(question) <= MAX_QUESTION_CHARS:
            raise InvalidInput(f"a question has 1 to {MAX_QUESTION_CHARS:,} characters", got=f"{len(question):,}")
        try:
            async with asyncio.timeout(self._limits.seconds):
                found = None
                while found is None:
                    found = await self._search(owner, project_id, question, limit)
                return found
        except TimeoutError:
            raise StoreUnavailable("the index of this project is not ready yet; try again in a few seconds") from None

    async def aclose(self) -> None:
        """Stop what is under way, and forget the snapshots. Idempotent."""
        await self.snapshots.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _search(self, owner: str, project_id: UUID | str, question: str, limit: int) -> Passages | None:
        """Search once; None if a document that was found has been replaced meanwhile."""
        project = await self._store.projects.get_project(owner, project_id)
        asked, snapshot = await asyncio.gather(self._asked(project, question), self.snapshots.of(project))
        found = await self._ranked(snapshot, asked, limit)
        items = await self._shown(project, found)
        method: Method = "lexical" if asked.vector is None else "hybrid"
        return Passages(items=items, method=method, note=asked.note) if len(items) == len(found) else None

    async def _asked(self, project: Project, question: str) -> Asked:
        """What is asked for."""
        terms = await self._apart(pack_terms, question)
        if project.space is None:
            return Asked(terms, note=NO_VECTORS if self._questions else NO_EMBEDDER)
        if self._questions is None:
            return Asked(terms, note=NO_EMBEDDER)
        try:
            vector = await self._questions.vector(project.space, question)
            return Asked(terms, vector, await self._nearest(project, vector))
        except EmbeddingFailed as error:
            return Asked(terms, note=f"by words alone: {error.reason}")

    async def _nearest(self, project: Project, vector: bytes) -> list[Nearest] | None:
        """What the database finds by a vector, if the snapshot has none."""
        if project.space is None or self.snapshots.space_of(project) is not None:
            return None
        found = await self._store.documents.nearest_chunks(project.owner_id, project.id, project.space, vector)
        if found is None:
            raise EmbeddingFailed("this project has more vectors than this server keeps in memory")
        return found

    async def _ranked(self, snapshot: Snapshot, asked: Asked, limit: int) -> list[Ranked]:
        vector = None if asked.vector is None else np.frombuffer(asked.vector, "<f4")
        search = partial(snapshot.index.search, asked.terms, vector, limit, nearest=asked.nearest)
        return await self._apart(search)

    async def _shown(self, project: Project, found: Sequence[Ranked]) -> list[Passage]:
        """The passages that were found, without those that are gone."""
        ranges = [ChunkRange(each.content.document_id, each.content.id, each.n, each.n) for each in found]
        chunks = await self._store.documents.chunks(project.owner_id, project.id, ranges) if ranges else []
        texts = {(chunk.document_id, chunk.n): chunk for chunk in chunks}
        places = [(each.content.document_id, each.n) for each in found]
        return [_passage(texts[place], each) for place, each in zip(places, found, strict=True) if place in texts]

    async def _apart[**P, T](self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Return what `work` returns, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(work, *arguments, **options))


def _passage(chunk: Chunk, found: Ranked) -> Passage:
    return Passage(
        document_id=chunk.document_id,
        file_path=found.content.file_path,
        title=found.content.title,
        header_anchor=chunk.header_anchor,
        heading=chunk.heading,
        text=chunk.text,
        start=chunk.start,
        end=chunk.start + len(chunk.text),
        n=chunk.n,
        similarity_score=found.score,
    )
