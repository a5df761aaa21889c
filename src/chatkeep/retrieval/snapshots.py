"""Snapshots: the indexes that a process keeps of projects, for its searches.

The store alone is true. A snapshot is of one version of its project; one of another version is made anew, of what it
has and of the documents that have changed. Those that nobody asks leave, and if all together are too large, those of
the owner whose are the largest.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from heapq import heapify, heapreplace
from typing import NamedTuple
from uuid import UUID

from chatkeep.documents import MAX_CHUNKS, ChunkRange, Content, IndexedChunk
from chatkeep.projects import Project
from chatkeep.retrieval.index import Index
from chatkeep.retrieval.segments import TEXT, Packed, Segment, free, pack, unpack
from chatkeep.store import Store

logger = logging.getLogger(__name__)

ENTRIES_AT_ONCE = 250
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

KEPT = 1_000
"""Most snapshots that a process keeps: each counts as this part of their memory at least."""

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
    index: Index
    behind_since: float | None = None
    """Since when there have been vectors that it lacks."""

    def serves(self, project: Project, space: str | None) -> bool:
        """Whether it has everything that a project has, but for vectors that are new."""
        is_behind = self.behind_since is not None and time.monotonic() - self.behind_since > VECTORS_MAY_WAIT
        return self.version >= project.version and self.space == space and not is_behind

    @property
    def contents(self) -> list[Packed]:
        """What the documents have here."""
        return self.index.segment.contents

    def has_texts_of(self, contents: Sequence[Packed]) -> bool:
        """Whether these documents have the texts that they have here."""
        return {each[TEXT] for each in self.contents} == {each[TEXT] for each in contents}


class Kept:
    """A snapshot that is kept, and what makes the next one."""

    def __init__(self) -> None:
        """Begin without a snapshot."""
        self.snapshot: Snapshot | None = None
        self.used_at = time.monotonic()
        self.load: asyncio.Task[Snapshot] | None = None

    def room(self, least: int) -> int:
        """How many bytes are counted for it."""
        return max(least, self.snapshot.index.nbytes) if self.snapshot is not None else 0

    def loaded(self, load: asyncio.Task[Snapshot]) -> None:
        """Forget a load, which has the snapshot too, and look at its error: maybe nobody waits for it any more."""
        self.load = None
        if not load.cancelled() and load.exception() is not None:
            logger.debug("a snapshot could not be made: %s", load.exception())


class Key(NamedTuple):
    """What has a snapshot. A project that is created anew begins with its versions anew."""

    owner: str
    project: UUID
    created_at: datetime


class Snapshots:
    """The snapshots of a process, used from one event loop."""

    def __init__(
        self, store: Store, limits: RetrievalLimits, loaded: Callable[[str, UUID], None] | None = None
    ) -> None:
        """Take the store, the limits, and what is told of the owner and the project when a snapshot was made."""
        self._store = store
        self._loaded = loaded
        self._limits = limits
        self._least = limits.memory_bytes // KEPT
        self._kept: dict[Key, Kept] = {}
        self._loads = asyncio.Semaphore(LOADS_AT_ONCE)
        self._large_loads = asyncio.Semaphore(1)
        self._thread = ThreadPoolExecutor(1, "chatkeep-snapshots")
        self._timer: asyncio.TimerHandle | None = None

    @property
    def nbytes(self) -> int:
        """How many bytes are counted for the snapshots together."""
        return sum(each.room(self._least) for each in self._kept.values())

    async def of(self, project: Project) -> Snapshot:
        """Return a snapshot that has everything that the project has, but for vectors of the last seconds.

        Calls at the same time make one, which goes on if a caller leaves. Raises NotFound.
        """
        key, space = Key(project.owner_id, project.id, project.created_at), self.space_of(project)
        while True:
            kept = self._kept.setdefault(key, Kept())
            kept.used_at = time.monotonic()
            if self._timer is None:
                self._tidy()
            if kept.snapshot is not None and kept.snapshot.serves(project, space):
                return kept.snapshot
            if kept.load is None:
                kept.load = asyncio.create_task(self._load(project, kept))
                kept.load.add_done_callback(kept.loaded)
            made = await asyncio.shield(kept.load)
            if made.serves(project, space):
                return made  # it may be too large to be kept

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
                contents = [pack(each) async for each in self._contents(project)]
                await asyncio.sleep(0)  # what looks at all of them has a turn of the loop of its own
                made = await self._next(kept.snapshot, project, contents)
                self._replace(kept, made)
                if len(made.contents) == len(contents):
                    break  # nothing was replaced meanwhile
        kept.used_at = time.monotonic()
        self._make_room()
        if self._loaded is not None:
            self._loaded(asked.owner_id, asked.id)
        return made

    async def _next(self, before: Snapshot | None, project: Project, contents: Sequence[Packed]) -> Snapshot:
        """Return the snapshot of what a project has now."""
        return self._kept_on(before, project, contents) or await self._made(before, project, contents)

    def _kept_on(self, before: Snapshot | None, project: Project, contents: Sequence[Packed]) -> Snapshot | None:
        """The snapshot before, if nothing has changed but vectors, and those may wait."""
        if before is None or before.space != self.space_of(project) or not before.has_texts_of(contents):
            return None
        since = None if set(before.contents) == set(contents) else before.behind_since or time.monotonic()
        kept = replace(before, version=project.version, behind_since=since)
        return kept if kept.serves(project, before.space) else None

    async def _made(self, before: Snapshot | None, project: Project, contents: Sequence[Packed]) -> Snapshot:
        """Make a snapshot. It lacks documents that are replaced meanwhile."""
        space = self.space_of(project)
        segments = [before.index.segment] if before is not None and before.space == space else []
        kept = {content for segment in segments for content in segment.contents}
        new = [content for content in contents if content not in kept]
        await asyncio.sleep(0)
        entries = self._entries(project, map(unpack, new), space)
        segments += [await self._apart(Segment.of, parts) async for parts in entries]
        return Snapshot(project.version, space, await self._apart(_index, segments, contents))

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
    ) -> AsyncIterator[list[tuple[Content, list[IndexedChunk]]]]:
        """Yield contents with their chunks, some at a time; a content may be parted."""
        for some in _batches(contents):
            ranges = [which for _, which in some]
            found = await self._store.documents.index_entries(project.owner_id, project.id, ranges, space=space)
            yield [(content, chunks) for (content, _), chunks in zip(some, found, strict=True)]

    # --- forget -------------------------------------------------------------------------------------------

    def _replace(self, kept: Kept, snapshot: Snapshot | None) -> None:
        """Keep a snapshot, and free the one before in the thread: for a large one that takes milliseconds."""
        before = [kept.snapshot]
        kept.snapshot = snapshot
        self._thread.submit(free, before)

    def _forget(self, key: Key) -> None:
        kept = self._kept[key]
        if kept.load is None:
            del self._kept[key]
        self._replace(kept, None)

    def _make_room(self) -> None:
        """Forget snapshots until the others are few and small enough: of the owner with the most, the least used.

        The last one stays, however large: without it every search of its project would make it anew.
        """
        nbytes = self.nbytes
        if nbytes <= self._limits.memory_bytes:
            return
        owners = self._by_owner()
        count = sum(len(keys) for *_, keys in owners)
        while nbytes > self._limits.memory_bytes and count > 1:
            size, owner, keys = owners[0]
            key = keys.pop()
            room = self._kept[key].room(self._least)
            heapreplace(owners, (size + room, owner, keys))
            self._forget(key)
            nbytes, count = nbytes - room, count - 1

    def _by_owner(self) -> list[tuple[int, str, list[Key]]]:
        """Return a heap of owners: how much their snapshots take, negative, and which they are, the least used last."""
        having = [(key, kept) for key, kept in self._kept.items() if kept.snapshot is not None]
        sizes, keys = Counter[str](), defaultdict[str, list[Key]](list)
        for key, kept in sorted(having, key=lambda item: item[1].used_at, reverse=True):
            sizes[key.owner] -= kept.room(self._least)
            keys[key.owner].append(key)
        owners = [(sizes[owner], owner, keys[owner]) for owner in keys]
        heapify(owners)
        return owners

    def _tidy(self) -> None:
        """Forget what nobody asks, now and later."""
        before = time.monotonic() - self._limits.idle_seconds
        for key in [key for key, kept in self._kept.items() if kept.used_at < before and kept.load is None]:
            self._forget(key)
        again = min(60.0, self._limits.idle_seconds)
        self._timer = asyncio.get_running_loop().call_later(again, self._tidy) if self._kept else None


def _index(segments: list[Segment], contents: Collection[Packed]) -> Index:
    """Make an index of contents, and free the segments."""
    index = Index.of(segments, set(contents))
    free(segments)
    return index


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
