"""Makes the vectors of documents in the background, and moves projects to the space of the configured embedder.

A project searches the vectors of one space. Those of another one are made beside them, and searched when every document
has them; so there is always something to search, and vectors of two spaces never meet. Vectors are stored as they are
made: who is cut off, or killed, goes on where it was.

Which space wins, when processes have different embedders? A process moves a project only from the space that it first
saw it in, and only once: when somebody else has moved the project meanwhile, or moved it on, that stays. So two
versions of a server, side by side in a rolling deployment, do not take a project from each other for ever; the process
that started last has its way. What a project searches gets its vectors all the same, from whoever can make them.
"""

import asyncio
import logging
import random
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from enum import StrEnum
from itertools import islice
from typing import NamedTuple
from uuid import UUID, uuid4

from chatkeep.documents import EMBEDDING_LEASE, Chunk, Content
from chatkeep.errors import ChatkeepError, NotFound
from chatkeep.ids import valid_id
from chatkeep.projects import Project
from chatkeep.retrieval.embedding import Embedder, Embedders, EmbeddingFailed, embedded_text
from chatkeep.store import Store

logger = logging.getLogger(__name__)

PROJECTS_AT_ONCE = 2
"""Projects whose vectors a process makes at a time."""

CLOSE_SECONDS = 1.5
"""How long giving back the leases may take at the end. Of what is left the lease expires."""

MAX_IDLE_ROUNDS = 3
"""Rounds in which all that was to be done had gone meanwhile; then the project is tried again later."""

MAX_SEEN = 10_000
"""Projects of which a process remembers the space."""

PAGE = 1_000

Progress = Callable[[int, int], None]
"""Is told how many chunks have a vector, of how many."""


class Filled(StrEnum):
    """What became of a project."""

    COMPLETE = "complete"
    """Every chunk has a vector, and they are searched."""
    BUSY = "busy"
    """Another worker makes them."""
    OTHER = "other"
    """The project searches another space than that of the configured embedder, and stays there."""


class _Key(NamedTuple):
    """A project."""

    owner: str
    project_id: UUID


class _Work(NamedTuple):
    """Chunks of a project that are to have vectors of a space."""

    key: _Key
    embedder: Embedder
    space: str
    progress: Progress | None


class _Todo(NamedTuple):
    """What lacks vectors."""

    contents: list[Content]
    done: int
    """Chunks that have one."""
    total: int


class VectorMaker:
    """Makes vectors of documents, used from one event loop."""

    def __init__(
        self,
        store: Store,
        embedders: Embedders,
        *,
        lease: timedelta = EMBEDDING_LEASE,
        pauses: tuple[float, float] = (5.0, 300.0),
    ) -> None:
        """Take the store, the embedders, how long others wait for one that is gone, and the pauses after failures."""
        self._store = store
        self._embedders = embedders
        self._lease = lease
        self._pauses = pauses
        self._seen: OrderedDict[_Key, str | None] = OrderedDict()
        """The space that each project was first seen in; the configured embedder's, once it was seen in that."""
        self._at_once = asyncio.Semaphore(PROJECTS_AT_ONCE)
        self._tasks: dict[_Key, asyncio.Task[None]] = {}
        self._again: set[_Key] = set()
        self._is_closed = False

    # --- in the background --------------------------------------------------------------------------------

    def begin(self, owner: str, project_id: UUID) -> None:
        """Make what vectors a project lacks, in the background, until none lacks; failures are tried again later."""
        key = _Key(owner, project_id)
        if self._embedders.configured is None or self._is_closed:
            return
        if key in self._tasks:
            self._again.add(key)
        else:
            self._tasks[key] = asyncio.create_task(self._run(key), name="chatkeep-vectors")

    async def wait(self) -> None:
        """Wait until all that was begun is done."""
        while self._tasks:
            await asyncio.wait(list(self._tasks.values()))

    async def aclose(self) -> None:
        """Stop, and give back the leases. Idempotent."""
        self._is_closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)

    async def _run(self, key: _Key) -> None:
        """Fill a project until that succeeds and nobody has asked for it again meanwhile."""
        pause, longest = self._pauses
        try:
            while True:
                self._again.discard(key)
                found = await self._attempt(key)
                if found is Filled.BUSY:
                    await asyncio.sleep(self._lease.total_seconds() / 2)
                elif found is None:
                    await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311 - no secret
                    pause = min(2 * pause, longest)
                elif key not in self._again:
                    return
        finally:
            del self._tasks[key]
            self._again.discard(key)

    async def _attempt(self, key: _Key) -> Filled | None:
        """Fill a project; None if that failed."""
        async with self._at_once:
            try:
                return await self.fill(key.owner, key.project_id)
            except NotFound:
                return Filled.COMPLETE  # it was deleted
            except EmbeddingFailed as error:
                logger.warning("vectors of project %s are made later: %s", key.project_id, error.reason)
            except ChatkeepError as error:
                logger.warning("vectors of project %s are made later: %s", key.project_id, error.detail)
            except Exception:
                logger.exception("vectors of project %s could not be made", key.project_id)
        return None

    # --- one project --------------------------------------------------------------------------------------

    async def fill(self, owner: str, project_id: UUID | str, progress: Progress | None = None) -> Filled:
        """Make what vectors a project lacks, and then have it search them, as the module's text says.

        Raises EmbeddingFailed, NotFound, StoreUnavailable; what was made until then is kept.
        """
        key = _Key(owner, valid_id(project_id))
        embedder = self._embedders.configured
        if embedder is None:
            raise EmbeddingFailed("there is no embedder; CHATKEEP_EMBEDDER names one")
        work = _Work(key, embedder, await embedder.known_space(), progress)
        await self._movable(work)
        return await self._leased(key, lambda: self._fill(work))

    async def _leased(self, key: _Key, work: Callable[[], Awaitable[Filled]]) -> Filled:
        """Work while there is the lease of a project; BUSY if there is none, or not any more."""
        worker = uuid4()
        if not await self._claim(key, worker, self._lease):
            return Filled.BUSY
        task = asyncio.ensure_future(work())
        try:
            while True:
                await asyncio.wait({task}, timeout=self._lease.total_seconds() / 3)
                if task.done():
                    return task.result()
                if not await self._claim(key, worker, self._lease):
                    return Filled.BUSY
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with suppress(ChatkeepError):  # then it expires
                await self._claim(key, worker, timedelta(0))

    async def _claim(self, key: _Key, worker: UUID, lease: timedelta) -> bool:
        return await self._store.documents.claim_embedding(*key, worker, lease=lease)

    async def _fill(self, work: _Work) -> Filled:
        """Make vectors and move the project, until every document has vectors of the space that is searched."""
        while await self._movable(work):
            await self._complete(work)
            project = await self._movable(work)
            if project is None:
                break
            if project.space == work.space:
                return Filled.COMPLETE
            await self._store.documents.use_space(*work.key, work.space)
            self._seen[work.key] = work.space
        await self._complete_other(work)
        return Filled.OTHER

    async def _movable(self, work: _Work) -> Project | None:
        """The project, if it searches the vectors of the configured embedder, or may do so as far as it is up to us.

        Notes what it searches, if it was not seen before.
        """
        project = await self._store.projects.get_project(*work.key)
        if project.space == work.space:
            self._seen[work.key] = project.space
        seen = self._seen.setdefault(work.key, project.space)
        self._seen.move_to_end(work.key)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return project if project.space == seen else None

    async def _complete_other(self, work: _Work) -> None:
        """Make what vectors lack of the space that a project stays in, if this process has its embedder."""
        space = (await self._store.projects.get_project(*work.key)).space
        embedder = None if space is None else await self._embedders.of_space(space)
        if space is not None and embedder is not None:
            await self._complete(work._replace(embedder=embedder, space=space))

    # --- vectors ------------------------------------------------------------------------------------------

    async def _complete(self, work: _Work) -> None:
        """Make vectors until no document lacks any, of those, too, that come meanwhile, or they are of no use now."""
        idle = 0
        while (todo := await self._lacking(work)).contents and await self._is_wanted(work):
            idle = 0 if await self._round(work, todo) else idle + 1
            if idle == MAX_IDLE_ROUNDS:
                raise EmbeddingFailed("the documents change faster than their vectors are made", is_temporary=True)

    async def _is_wanted(self, work: _Work) -> bool:
        """Whether the project searches the vectors that are made, or will. Who moves it elsewhere removes them."""
        if work.embedder is self._embedders.configured:
            return await self._movable(work) is not None
        return (await self._store.projects.get_project(*work.key)).space == work.space

    async def _lacking(self, work: _Work) -> _Todo:
        """The contents that lack vectors."""
        counts = await self._store.documents.count_vectors(*work.key, work.space)
        lacking: list[Content] = []
        done = total = 0
        after: UUID | None = None
        while page := await self._store.documents.contents(*work.key, after=after, limit=PAGE):
            lacking += [content for content in page if counts.get(content.id, 0) < content.chunks]
            done += sum(min(counts.get(content.id, 0), content.chunks) for content in page)
            total += sum(content.chunks for content in page)
            after = page[-1].document_id
        return _Todo(lacking, done, total)

    async def _round(self, work: _Work, todo: _Todo) -> int:
        """Make vectors of contents, batch by batch; return how many were stored."""
        waiting = deque(todo.contents)
        stored = 0
        while waiting and await self._is_wanted(work):
            if work.progress:
                work.progress(min(todo.done + stored, todo.total), todo.total)
            batch = await self._batch(work, waiting)
            stored += await self._store_vectors(work, batch)
        if work.progress:
            work.progress(min(todo.done + stored, todo.total), todo.total)
        return stored

    async def _batch(self, work: _Work, waiting: deque[Content]) -> list[tuple[Content, list[Chunk]]]:
        """The next chunks that lack vectors: as many as the embedder takes at a time, of few large or many small
        contents. A content of which all are taken waits no more."""
        batch: list[tuple[Content, list[Chunk]]] = []
        room = work.embedder.limits.texts * work.embedder.limits.requests
        while waiting and room:
            content = waiting[0]
            chunks = await self._store.documents.without_vectors(*work.key, content, work.space, limit=room)
            if len(chunks) < room:
                waiting.popleft()
            room -= len(chunks)
            batch.append((content, chunks))
        return batch

    async def _store_vectors(self, work: _Work, batch: Sequence[tuple[Content, Sequence[Chunk]]]) -> int:
        """Make and store the vectors of chunks; return how many were stored: not those of a text that was replaced."""
        texts = [embedded_text(chunk.heading, chunk.text) for _, chunks in batch for chunk in chunks]
        vectors = iter(await work.embedder.documents(texts))
        stored = 0
        for content, chunks in batch:
            made = dict(zip([chunk.n for chunk in chunks], islice(vectors, len(chunks)), strict=True))
            if made and await self._store.documents.add_vectors(*work.key, content, work.space, made):
                stored += len(made)
        return stored
