"""Snapshots: the indexes that a process keeps of projects, for its searches.

The store alone is true. A snapshot is of one version of its project; one of another version is made anew, of what it
has and of the documents that have changed. Those that nobody asks leave, and if all together are too large, those of
the owner whose are the largest.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from operator import attrgetter
from typing import NamedTuple
from uuid import UUID

from chatkeep.documents import MAX_CHUNKS, ChunkRange, Content, IndexedChunk
from chatkeep.projects import Project
from chatkeep.retrieval.index import Index, Segment
from chatkeep.store import Store

logger = logging.getLogger(__name__)

ENTRIES_AT_ONCE = 500
"""Chunks of an index that are read at a time: to receive more takes the event loop some milliseconds."""

CONTENTS_AT_ONCE = 100
"""Documents of a project that are looked up at a time: more would take the event loop some milliseconds."""

LOADS_AT_ONCE = 4
"""Snapshots that a process makes at a time."""

LARGE_CHUNKS = 20_000
"""Of projects with more chunks one is made at a time: while it is made, it takes its memory two or three times."""

VECTORS_MAY_WAIT = 10.0
"""Seconds for which a snapshot is used that lacks nothing but vectors which were made meanwhile: each set of them would
make the index anew."""

ROUNDS = 5
"""How often documents that were replaced while a snapshot was made are read again."""


class RetrievalLimits(NamedTuple):
    """What the searches of a process may take."""

    memory_bytes: int = 512 << 20
    """Of all snapshots together; one alone may have more, and vectors of more bytes are left to the database."""
    idle_seconds: float = 15 * 60
    """How long a snapshot is kept that nobody asks."""
    seconds: float = 30.0
    """How long a search may take, with the making of its snapshot."""
    chunks_in_memory: int = MAX_CHUNKS
    """The vectors of a larger project are searched by the database, if it can."""


LIMITS = RetrievalLimits()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The index of a project, as of a version."""

    version: int
    space: str | None
    """That of its vectors; None if it has none."""
    contents: Mapping[UUID, Content]
    """By document."""
    index: Index
    behind_since: float | None = None
    """Since when there have been vectors that it lacks."""

    def serves(self, project: Project, space: str | None) -> bool:
        """Whether it has everything that a project has, but for vectors that are new."""
        is_behind = self.behind_since is not None and time.monotonic() - self.behind_since > VECTORS_MAY_WAIT
        return self.version >= project.version and self.space == space and not is_behind

    def has_texts_of(self, contents: Mapping[UUID, Content]) -> bool:
        """Whether these documents have the texts that they have here."""
        return {id_: each.id for id_, each in self.contents.items()} == {id_: each.id for id_, each in contents.items()}

    def segments(self, contents: Mapping[UUID, Content]) -> dict[UUID, Segment]:
        """The segments, by document, of those that are the same in `contents`."""
        return {
            each.document_id: each
            for each in self.index.segments
            if self.contents[each.document_id] == contents.get(each.document_id)
        }


class Kept:
    """A snapshot that is kept, and what makes the next one."""

    def __init__(self) -> None:
        """Begin without a snapshot."""
        self.snapshot: Snapshot | None = None
        self.used_at = time.monotonic()
        self.load: asyncio.Task[Snapshot] | None = None

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        return self.snapshot.index.nbytes if self.snapshot is not None else 0

    @property
    def is_loading(self) -> bool:
        """Whether the next one is being made."""
        return self.load is not None and not self.load.done()


type Key = tuple[str, UUID, datetime]
"""The owner, the project, and when it was created: one that is created anew begins with its versions anew."""


class Snapshots:
    """The snapshots of a process, used from one event loop."""

    def __init__(
        self, store: Store, limits: RetrievalLimits, loaded: Callable[[str, UUID], None] | None = None
    ) -> None:
        """Take the store, the limits, and what is told of the owner and the project when a snapshot was made."""
        self._store = store
        self._loaded = loaded
        self._limits = limits
        self._kept: dict[Key, Kept] = {}
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._large_loads = asyncio.Semaphore(1)
        self._thread = ThreadPoolExecutor(1, "chatkeep-snapshots")
        self._timer: asyncio.TimerHandle | None = None

    @property
    def nbytes(self) -> int:
        """How much memory the snapshots take together."""
        return sum(each.nbytes for each in self._kept.values())

    async def of(self, project: Project) -> Snapshot:
        """Return a snapshot that has everything that the project has, but for vectors of the last seconds.

        Calls at the same time make one, which goes on if a caller leaves. Raises NotFound.
        """
        kept = self._kept.setdefault((project.owner_id, project.id, project.created_at), Kept())
        kept.used_at = time.monotonic()
        if self._timer is None:
            self._tidy()
        while kept.snapshot is None or not kept.snapshot.serves(project, self.space_of(project)):
            if not kept.is_loading:
                kept.load = asyncio.create_task(self._load(project, kept))
                kept.load.add_done_callback(_seen)
            assert kept.load is not None  # noqa: S101 - it was made
            made = await asyncio.shield(kept.load)
            if made.serves(project, self.space_of(project)):
                return made  # it may be too large to be kept
        return kept.snapshot

    def space_of(self, project: Project) -> str | None:
        """Return the space of the vectors that a snapshot of a project has; None if there is no room for them."""
        dimension = (project.space or "").rpartition("/")[2]
        nbytes = 4 * project.chunks * int(dimension if dimension.isdecimal() else 0)
        fits = project.chunks <= self._limits.chunks_in_memory and nbytes <= self._limits.memory_bytes
        return project.space if fits else None

    async def aclose(self) -> None:
        """Stop what is being made, and forget everything. Idempotent."""
        loads = [kept.load for kept in self._kept.values() if kept.load is not None]
        for load in loads:
            load.cancel()
        await asyncio.gather(*loads, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
        self._kept.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    # --- make ---------------------------------------------------------------------------------------------

    async def _load(self, asked: Project, kept: Kept) -> Snapshot:
        async with self._large_loads if asked.chunks > LARGE_CHUNKS else self._loads:
            for _ in range(ROUNDS):
                project = await self._store.projects.get_project(asked.owner_id, asked.id)  # before what it has
                contents = {each.document_id: each async for each in self._contents(project)}
                await asyncio.sleep(0)  # what looks at all of them has a turn of the loop of its own
                made = self._kept_on(kept.snapshot, project, contents) or await self._made(kept, project, contents)
                kept.snapshot = made
                if made.contents.keys() == contents.keys():
                    break  # nothing was replaced meanwhile
        self._make_room()
        if self._loaded is not None:
            self._loaded(asked.owner_id, asked.id)
        return made

    def _kept_on(self, before: Snapshot | None, project: Project, contents: Mapping[UUID, Content]) -> Snapshot | None:
        """The snapshot before, if nothing has changed but vectors, and those may wait."""
        if before is None or before.space != self.space_of(project) or not before.has_texts_of(contents):
            return None
        since = before.behind_since or time.monotonic()
        kept = replace(before, version=project.version, behind_since=None if before.contents == contents else since)
        return kept if kept.serves(project, before.space) else None

    async def _made(self, kept: Kept, project: Project, contents: Mapping[UUID, Content]) -> Snapshot:
        """Make a snapshot. It lacks documents that are replaced meanwhile."""
        before, space = kept.snapshot, self.space_of(project)
        segments = before.segments(contents) if before is not None and before.space == space else {}
        new = [content for id_, content in contents.items() if id_ not in segments]
        await asyncio.sleep(0)
        async for content, chunks in self._entries(project, new, space):
            if len(chunks) == content.chunks:
                segments[content.document_id] = await self._apart(Segment.of, content, chunks)
        indexed = {id_: contents[id_] for id_ in segments}
        return Snapshot(project.version, space, indexed, await self._apart(Index.of, _taken(segments)))

    async def _apart[**P, T](self, work: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Return what `work` returns, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(work, *arguments, **options))

    async def _contents(self, project: Project) -> AsyncIterator[Content]:
        after, found = None, list[Content]()
        while after is None or len(found) == CONTENTS_AT_ONCE:
            found = await self._store.documents.contents(
                project.owner_id, project.id, after=after, limit=CONTENTS_AT_ONCE
            )
            for content in found:
                yield content
            if not found:
                return
            after = found[-1].document_id

    async def _entries(
        self, project: Project, contents: Iterable[Content], space: str | None
    ) -> AsyncIterator[tuple[Content, list[IndexedChunk]]]:
        """Yield contents with their chunks, which are read some at a time."""
        read = list[IndexedChunk]()
        for some in _batches(contents):
            ranges = [which for _, which in some]
            found = await self._store.documents.index_entries(project.owner_id, project.id, ranges, space=space)
            for (content, which), chunks in zip(some, found, strict=True):
                read += chunks
                if which.last == content.chunks - 1:
                    yield content, read
                    read = []

    # --- forget -------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Forget snapshots until the others are small enough: of the owner whose are the largest, the least used.

        The last one stays, however large: without it every search of its project would make it anew.
        """
        while self.nbytes > self._limits.memory_bytes and sum(kept.nbytes > 0 for kept in self._kept.values()) > 1:
            sizes = Counter[str]()
            for (owner, *_), kept in self._kept.items():
                sizes[owner] += kept.nbytes
            [(largest, _)] = sizes.most_common(1)
            theirs = [kept for (owner, *_), kept in self._kept.items() if owner == largest and kept.nbytes]
            min(theirs, key=attrgetter("used_at")).snapshot = None

    def _tidy(self) -> None:
        """Forget what nobody asks, now and later."""
        before = time.monotonic() - self._limits.idle_seconds
        self._kept = {key: kept for key, kept in self._kept.items() if kept.used_at >= before or kept.is_loading}
        again = min(60.0, self._limits.idle_seconds)
        self._timer = asyncio.get_running_loop().call_later(again, self._tidy) if self._kept else None


def _taken[Key, Value](values: dict[Key, Value]) -> Iterator[Value]:
    """Remove all values, and yield them."""
    while values:
        yield values.popitem()[1]


def _batches(contents: Iterable[Content]) -> Iterator[list[tuple[Content, ChunkRange]]]:
    """Yield the chunks of contents in order, some at a time; a content may be parted."""
    some, room = list[tuple[Content, ChunkRange]](), ENTRIES_AT_ONCE
    for content in contents:
        first = 0
        while first < content.chunks:
            last = min(content.chunks, first + room) - 1
            some.append((content, ChunkRange(content.document_id, content.id, first, last)))
            room -= last - first + 1
            first = last + 1
            if not room:
                yield some
                some, room = [], ENTRIES_AT_ONCE
    if some:
        yield some


def _seen(load: asyncio.Task[Snapshot]) -> None:
    """Look at the error of a load that nobody waits for any more."""
    if not load.cancelled() and load.exception() is not None:
        logger.debug("a snapshot could not be made: %s", load.exception())
