"""Pages of a path, and its length: a bounded number of queries and rows, however many branches and deletions it has."""

from collections.abc import Iterable
from itertools import chain, islice

from chatkeep.model import Message, Status
from chatkeep.stores.rows import Key, Rows, bytes_of
from chatkeep.stores.slices import PageSize, Part, within
from chatkeep.stores.window import Window
from chatkeep.tree import Position, Segment

DIRECT = 2
"""Segments whose messages are read at once. Of more, and behind deletions, the seqs are looked up first."""

LOOK = 1_000
"""Rows that are looked at before a page that has something ends, and the shortest stretch of deletions to skip."""

COUNTED_ALONE = 8
"""Most segments of a path whose deleted messages are counted one segment at a time."""

DELETED_SLICE = 10_000
"""Deleted messages whose places are read at once."""


class PathReader[R: Rows]:
    """Reads one page of a path, in the order of its window."""

    def __init__(self, rows: R, key: Key, window: Window, max_bytes: int, path: Iterable[Segment]) -> None:
        """Take the path from its leaf back to the root."""
        self._rows = rows
        self._key = key
        self._window = window
        self._max_bytes = max_bytes
        self._rest = window.cut(path)
        """What is left to read."""
        self.found: list[Message] = []
        """The messages, in the order of reading."""
        self.last_seq: int | None = None
        """The seq after which the next page begins; None if there is none."""
        self.is_whole = True
        """Whether what was found shows that the conversation was not removed meanwhile."""

    async def read(self, first: Part[Message] | None = None) -> None:
        """Read the page. `first` is what was read of its first segment already: one more than the limit."""
        if self._window.offset or not await self._read_directly(first):
            await self._read_places()

    async def _read_directly(self, part: Part[Message] | None) -> bool:
        """Read the first segments, and say whether the page ends in them."""
        for number, segment in enumerate(islice(self._rest, DIRECT)):
            asked = self._window.limit + 1 - len(self.found)
            part = part or await self._rows.segment(self._key, segment, self._window.order, self._room(asked))
            ends = not part.cut and len(part.items) < asked
            self.is_whole = number == 0 and self._rows.shows_whole(part.items, segment, self._window.order, ends=ends)
            if self._add(part):
                return True
            if not ends:
                self._put_back([segment], part.items[-1].seq)
                return False
            part = None
        return False

    def _room(self, limit: int) -> PageSize:
        return PageSize(limit, self._max_bytes - sum(map(bytes_of, self.found)))

    def _add(self, part: Part[Message]) -> bool:
        """Add what is not deleted, and say whether the page ends with it."""
        living, cut = living_of(part.items), part.cut
        if self.found:  # the first of a part may be larger than what was left
            fitting = within(((message, bytes_of(message)) for message in self.found + living), self._max_bytes)
            living, cut = fitting.items[len(self.found) :], cut or fitting.cut
        self.found += living
        if self.found and (cut or len(self.found) > self._window.limit):
            del self.found[self._window.limit :]
            self.last_seq = self.found[-1].seq
        return self.last_seq is not None

    def _put_back(self, segments: Iterable[Segment], seq: int) -> None:
        """Read on with what of these segments comes after `seq`."""
        left = (self._window.beyond(segment, seq) for segment in segments)
        self._rest = chain([segment for segment in left if segment], self._rest)

    # --- many segments, deletions, offsets --------------------------------------------------------------------

    async def _read_places(self) -> None:
        """Look up the seqs of what is left to read, and read these messages."""
        room = self._window.limit - len(self.found)
        seqs, self.last_seq = await self._living(self._window.offset, room + 1)
        shown = seqs[:room]
        if len(seqs) > room:
            self.last_seq = shown[-1] if shown else self.found[-1].seq
        if shown:
            self._add(await self._rows.messages_by_seq(self._key, shown, self._room(room)))

    async def _living(self, offset: int, count: int) -> tuple[list[int], int | None]:
        """The seqs of at most `count` messages after the first `offset`, which are not deleted.

        Also the seq that was looked at last, if the page ends there because that were many rows.
        """
        living: list[int] = []
        looked, last_seq, need = 0, None, offset + count
        while len(living) < need:
            if looked >= LOOK and (self.found or len(living) > offset):
                return living[offset:], last_seq
            asked = need - len(living) if looked == 0 else max(need - len(living), LOOK)
            segments = self._next_segments(min(asked + 2, self._rows.most_segments))
            if not segments:
                break
            self.is_whole = False
            places = await self._rows.places(self._key, segments, self._window.order, asked)
            living += [place.seq for place in places if not place.deleted]
            looked, last_seq = looked + len(places), places[-1].seq if places else last_seq
            if len(places) == asked:
                self._put_back(segments, places[-1].seq)
                if all(place.deleted for place in places):
                    await self._skip_deleted()
        return living[offset:need], None

    def _next_segments(self, count: int) -> list[Segment]:
        """The next segments to look at, at most `count`; the trunk, which has another index, for itself."""
        segments = list(islice(self._rest, count))
        alone = 1 if segments and segments[0].trunk else len(segments) - 1
        if len(segments) > 1 and (segments[0].trunk or segments[-1].trunk):
            self._rest = chain(segments[alone:], self._rest)
            return segments[:alone]
        return segments

    async def _skip_deleted(self) -> None:
        """Go past most of the deleted messages that follow: stretches that double, then halve, are counted."""
        segment = next(self._rest, None)
        width, doubling = LOOK, True
        while segment is not None and width >= LOOK:
            stretch = self._window.first_of(segment, width)
            if await self._is_deleted(stretch):
                segment = self._window.beyond(segment, stretch.low if self._window.order == "desc" else stretch.high)
            else:
                doubling = False
            width = width * 2 if doubling else width // 2
        if segment is not None:
            self._rest = chain([segment], self._rest)

    async def _is_deleted(self, stretch: Segment) -> bool:
        """Whether a stretch has deleted messages only. On the trunk every seq is a message of the path."""
        deleted = await self._rows.count_segment(self._key, stretch, deleted=True)
        if stretch.trunk:
            return deleted == stretch.high - stretch.low + 1
        return deleted == await self._rows.count_segment(self._key, stretch)


def living_of(messages: list[Message]) -> list[Message]:
    """The messages that are not deleted."""
    return [message for message in messages if message.status is not Status.DELETED]


async def path_length(rows: Rows, key: Key, end: Position, path: Iterable[Segment]) -> int:
    """The number of messages on the path to `end` that are not deleted."""
    segments = list(path)
    if len(segments) <= COUNTED_ALONE:
        return end.depth - sum([await rows.count_segment(key, segment, deleted=True) for segment in segments])
    last_seqs = {segment.run: segment.high for segment in reversed(segments)}  # the trunk first, and more of its run
    deleted, place = 0, (-1, 0)
    while places := await rows.deleted_places(key, place, DELETED_SLICE):
        deleted += sum(seq <= last_seqs.get(run, 0) for run, seq in places)
        place = places[-1]
    return end.depth - deleted
