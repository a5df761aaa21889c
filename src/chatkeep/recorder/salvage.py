"""Reads what can be read of a damaged journal: page by page, without SQLite, which gives up at the first fault.

The format of the pages and of the write-ahead log is that of https://sqlite.org/fileformat2.html. The newest version of
a page is read, and older ones if that is damaged. An entry is taken if its checksum says that it is what was written,
so that it does not matter how it was found.
"""

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from chatkeep.recorder.journal import MAX_RID, PAGE_BYTES, Dead, Entry
from chatkeep.values import now, to_micros

LOG_HEADER, FRAME_HEADER = 32, 24

TABLE_LEAF, TABLE_INNER, INDEX_LEAF, INDEX_INNER = 0x0D, 0x05, 0x0A, 0x02
"""Types of pages. Rows stand in leaves of tables, what is indexed in all pages of an index."""

LARGEST_LOCAL = PAGE_BYTES - 35
SMALLEST_LOCAL = (PAGE_BYTES - 12) * 32 // 255 - 23
"""Most and fewest bytes of a row that stand in its own page, if it does not fit."""

ENTRY_VALUES, DEAD_VALUES = (6, 7), (9, 10)
"""Values of a row: without and with its checksum."""

MOST_HEADER_BYTES = 100
"""A row's header has its own length and a type for each of at most ten values, in up to nine bytes each."""

MOST_READS = 100
"""How often pages of chains are read, for each page of the file: more only if it was made to take for ever."""

HEADER = re.compile(rb"[\x07-\x14]\x00[\x0f-\xff]{1,3}\x2c", re.DOTALL)
"""The beginning of a row's header: its length, a rid, which stands elsewhere, a text, and a blob of 16 bytes."""

UNCHECKED = "recovered from a damaged journal of an older version, without a checksum: look at it before you retry"
UNREADABLE = "the journal was damaged, and the reason cannot be read"


type PageOf = Callable[[int], bytes]
"""Returns a page by its number; nothing if it cannot be read."""


class LogPage(NamedTuple):
    """A version of a page in the write-ahead log."""

    number: int
    commits: bool
    """Whether it is the last one of its transaction."""
    salts: bytes
    """The round of the log that it belongs to."""
    content: bytes


@dataclass
class Salvaged:
    """What could be read."""

    entries: dict[int, Entry] = field(default_factory=dict)
    dead: dict[int, Dead] = field(default_factory=dict)
    named: set[int] = field(default_factory=set)
    """Entries that the index names."""
    has_index: bool = False
    """Whether the newest version of some page of the index can be read."""
    damaged: int = 0
    """Rows whose page is there, and that are not what was written."""

    @property
    def is_incomplete(self) -> bool:
        """Whether the index names entries that were not found."""
        return not self.named <= self.entries.keys() | self.dead.keys()

    def lost(self, known: Set[int] = frozenset()) -> int:
        """Return how many messages but the `known` ones were there, and cannot be read, as far as one can tell."""
        read = self.entries.keys() | self.dead.keys()
        return max(0, self.damaged - len(known - read), len(self.named - read - known))

    def add(self, row: Entry | Dead | None) -> bool:
        """Take a row that is what was written, and as a dead letter one that may be; return whether it is one."""
        if isinstance(row, Dead):
            row = _mended(row)
        if isinstance(row, Entry) and row.checksum is None and _is_plausible(row):
            row = Dead(row.sealed(), to_micros(now()), "JournalDamaged", UNCHECKED)
        elif isinstance(row, Dead) and row.entry.checksum is None and _is_plausible(row.entry):
            row = row._replace(entry=row.entry.sealed())
        if isinstance(row, Entry) and row.is_whole:
            self.entries.setdefault(row.rid, row)
        elif isinstance(row, Dead) and row.entry.is_whole:
            self.dead.setdefault(row.entry.rid, row)
        else:
            return False
        return True


# --- files -----------------------------------------------------------------------------------------------------


def log_pages(path: Path) -> Iterator[LogPage]:
    """Return the pages of a write-ahead log, in their order, also those that an earlier round of it left behind."""
    if not path.exists():
        return
    with path.open("rb") as file:
        end = os.fstat(file.fileno()).st_size
        for offset in range(LOG_HEADER, end - FRAME_HEADER - PAGE_BYTES + 1, FRAME_HEADER + PAGE_BYTES):
            frame = _read(file.fileno(), offset, FRAME_HEADER + PAGE_BYTES)
            if frame:
                yield LogPage(int.from_bytes(frame[:4]), any(frame[4:8]), frame[8:16], frame[FRAME_HEADER:])


def _this_round(path: Path, pages: Sequence[LogPage]) -> bytes:
    """Return the salts of the log's last round. Its header has them, and so has its first page."""
    if not pages:
        return b""
    with path.open("rb") as file:
        salts = _read(file.fileno(), 0, LOG_HEADER)[16:24]
    return salts if any(page.salts == salts for page in pages) else pages[0].salts


def _read(file: int, offset: int, length: int) -> bytes:
    """Read from a file; nothing if the disk cannot."""
    try:
        return os.pread(file, length, offset)
    except OSError:
        return b""


class Pages:
    """The versions of a damaged file's pages, the newest first."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        log_path = path.with_name(f"{path.name}-wal")
        log = list(log_pages(log_path))
        this = _this_round(log_path, log)
        committed = max((index + 1 for index, page in enumerate(log) if page.commits and page.salts == this), default=0)
        self._log: dict[int, list[bytes]] = {}
        for page in log[:committed]:
            if page.salts == this:
                self._log.setdefault(page.number, []).append(page.content)
        self.tail = {page.number: page.content for page in log[committed:]}
        """Pages of the log that no transaction has committed, as far as one can tell."""
        self.numbers = sorted(self._log.keys() | set(range(1, os.fstat(self._file.fileno()).st_size // PAGE_BYTES + 1)))
        self._reads_left = MOST_READS * len(self.numbers)

    @property
    def in_log(self) -> Set[int]:
        """The numbers of the pages that the log has versions of."""
        return self._log.keys()

    def versions(self, number: int) -> list[bytes]:
        """Return the versions of a page."""
        first = _read(self._file.fileno(), (number - 1) * PAGE_BYTES, PAGE_BYTES)
        found = [*reversed(self._log.get(number, [])), first]
        return [page for page in found if len(page) == PAGE_BYTES]

    def newest(self, number: int) -> bytes:
        """Return a page of a chain; nothing if there is none."""
        return self._version(number, 0)

    def second_newest(self, number: int) -> bytes:
        """Return what a page of a chain was before, or is if it was nothing else; nothing if there is none."""
        return self._version(number, 1)

    def _version(self, number: int, place: int) -> bytes:
        self._reads_left -= 1
        found = self.versions(number) if self._reads_left >= 0 else []
        return found[: place + 1][-1] if found else b""

    def newest_in_tail(self, number: int) -> bytes:
        """Return a page, of the tail if it is there."""
        return self.tail.get(number) or self.newest(number)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


# --- rows ------------------------------------------------------------------------------------------------------


def salvage(path: Path) -> Salvaged:
    """Return what can be read of a damaged journal and its write-ahead log."""
    found, pages = Salvaged(), Pages(path)
    try:
        doubtful = [number for number in pages.numbers if not _read_newest(pages, number, found)]
        _read_doubtful(pages, doubtful, found, pages.newest)
        if found.is_incomplete:  # a page of the log whose number is damaged hides another page: of rows, or of a chain
            doubtful = sorted({*doubtful, *pages.in_log})
            for page_of in (pages.newest, pages.second_newest):
                _read_doubtful(pages, doubtful, found, page_of)
        newest = max(found.named | found.entries.keys(), default=0)
        found.entries.update(
            (entry.rid, entry) for entry in newer_entries(pages.tail.values(), newest, pages.newest_in_tail)
        )
    finally:
        pages.close()
    return found


def _read_newest(pages: Pages, number: int, found: Salvaged) -> bool:
    """Add what the newest version of a page has; return whether that is all that it had."""
    page = next(iter(pages.versions(number)), b"")
    kind = page[0] if page else 0
    if kind in (INDEX_LEAF, INDEX_INNER):
        found.named.update(_indexed(page))
        found.has_index = True
    if kind != TABLE_LEAF:
        return kind in (INDEX_LEAF, INDEX_INNER, TABLE_INNER)
    offsets = _cells(page)
    damaged = sum([not _add_row(pages, page, offset, found) for offset in offsets])
    found.damaged += damaged
    return bool(offsets) and not damaged


def _add_row(pages: Pages, page: bytes, offset: int, found: Salvaged) -> bool:
    """Add the row at an offset; return whether it is what was written, also if it is one of another table."""
    try:
        row = _row(pages.newest, page, offset)
    except (IndexError, ValueError):
        return False
    return row is None or found.add(row)


def _read_doubtful(pages: Pages, numbers: Sequence[int], found: Salvaged, page_of: PageOf) -> None:
    """Add what is anywhere on pages, and on their older versions: only what the index names, if that is whole.

    Pages that are no longer used have entries that were delivered; delivering them again would change nothing.
    """
    named = found.named if found.has_index and found.entries.keys() <= found.named else None
    for row in (row for number in numbers for page in pages.versions(number) for row in _whole_rows(page_of, page)):
        if isinstance(row, Entry) and named is not None and row.rid not in named:
            continue
        known = len(found.entries) + len(found.dead)
        found.add(row)
        found.damaged -= len(found.entries) + len(found.dead) - known


def newer_entries(contents: Iterable[bytes], newest: int, page_of: PageOf) -> Iterator[Entry]:
    """Return the entries in pages that were recorded after the newest that is known.

    Pages of a log have some that it does not count: of a commit that was cut off, or behind a damaged one.
    """
    for content in contents:
        if content[0] == TABLE_LEAF:
            for row in _whole_rows(page_of, content):
                if isinstance(row, Entry) and row.rid > newest:
                    yield row


def _whole_rows(page_of: PageOf, page: bytes) -> Iterator[Entry | Dead]:
    """Return the rows anywhere on a page that are what was written."""
    for offset in (*_cells(page), *_likely_cells(page)):
        with suppress(IndexError, ValueError):
            row = _row(page_of, page, offset)
            if row is not None and (row if isinstance(row, Entry) else row.entry).is_whole:
                yield row


def _cells(page: bytes) -> list[int]:
    """Return where the cells of a page begin; nothing if the page cannot be right."""
    head = 12 if page[0] in (INDEX_INNER, TABLE_INNER) else 8
    end = head + 2 * int.from_bytes(page[3:5])
    offsets = [int.from_bytes(page[at : at + 2]) for at in range(head, min(end, PAGE_BYTES), 2)]
    return offsets if all(end <= offset < PAGE_BYTES for offset in offsets) else []


def _likely_cells(page: bytes) -> Iterator[int]:
    """Return where cells may begin: before what looks like a row's header are the row's size and its rid."""
    for match in HEADER.finditer(page):
        for distance in range(2, 13):
            if match.start() >= distance:
                yield match.start() - distance


def _indexed(page: bytes) -> Iterator[int]:
    """Return the rids that a page of the index names."""
    for offset in _cells(page):
        with suppress(IndexError, ValueError, TypeError):
            size, start = _varint(page, offset + (4 if page[0] == INDEX_INNER else 0))
            yield int(_values(page[start : start + size])[2])


def _row(page_of: PageOf, page: bytes, offset: int) -> Entry | Dead | None:
    """Return the row at an offset; None if it is of another table. Raises IndexError or ValueError if it is none."""
    size, start = _varint(page, offset)
    rid, start = _varint(page, start)
    row = _values(_payload(page_of, page, start, size))
    if len(row) in ENTRY_VALUES:
        return Entry._make([rid, *row[1:6], (*row, None)[6]])
    if len(row) in DEAD_VALUES:
        return Dead(Entry._make([rid, *row[1:6], (*row, None)[9]]), *row[6:9])
    return None


def _payload(page_of: PageOf, page: bytes, start: int, size: int) -> bytes:
    """Return the bytes of a row. What its page has no room for stands in a chain of pages."""
    if size <= LARGEST_LOCAL:
        return page[start : start + size]
    local = SMALLEST_LOCAL + (size - SMALLEST_LOCAL) % (PAGE_BYTES - 4)
    local = local if local <= LARGEST_LOCAL else SMALLEST_LOCAL
    pieces, left, number = [page[start : start + local]], size - local, _number(page, start + local)
    seen = set[int]()
    while left > 0:
        more = page_of(number)
        if not more or number in seen:
            raise IndexError("the chain is broken, or a ring")
        seen.add(number)
        pieces.append(more[4 : 4 + left])
        left, number = left - len(pieces[-1]), _number(more, 0)
    return b"".join(pieces)


def _number(page: bytes, offset: int) -> int:
    return int.from_bytes(page[offset : offset + 4])


def _varint(data: bytes, offset: int) -> tuple[int, int]:
    """Return the variable-length integer at an offset, and where it ends."""
    value = 0
    for index in range(8):
        byte = data[offset + index]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, offset + index + 1
    return value << 8 | data[offset + 8], offset + 9


INTEGER_BYTES = (0, 1, 2, 3, 4, 6, 8)


def _values(record: bytes) -> list[Any]:
    """Return the values of a record. Raises ValueError or IndexError if it is none."""
    end, at = _varint(record, 0)
    if end > MOST_HEADER_BYTES:
        raise ValueError("a journal has no such row")
    values: list[Any] = []
    body = end
    while at < end:
        kind, at = _varint(record, at)
        value, length = _value(record, kind, body)
        values.append(value)
        body += length
    if at != end or body != len(record):
        raise ValueError("the lengths do not agree")
    return values


def _value(record: bytes, kind: int, start: int) -> tuple[Any, int]:
    """Return a value of a type of the file format, and its length in bytes."""
    if kind < len(INTEGER_BYTES):
        length = INTEGER_BYTES[kind]
        return (int.from_bytes(record[start : start + length], signed=True) if length else None), length
    if kind in (8, 9):
        return kind - 8, 0
    if kind < 12:
        raise ValueError("no such type")
    length = (kind - 12) // 2
    content = record[start : start + length]
    return (content.decode() if kind % 2 else content), length


def _is_plausible(entry: Entry) -> bool:
    """Return whether the values without a checksum can be those of an entry."""
    types: Sequence[type] = (int, str, bytes, str, int, int)
    if not all(isinstance(value, type_) for value, type_ in zip(entry, types, strict=False)):
        return False
    try:
        message = json.loads(entry.message)
    except (ValueError, RecursionError):
        return False
    return entry.rid <= MAX_RID and len(entry.conversation_id) == 16 and isinstance(message, dict)


def _mended(letter: Dead) -> Dead:
    """Return a dead letter with values that can be written: those beside its entry have no checksum."""
    types: Sequence[type] = (int, str, str)
    if all(isinstance(value, type_) for value, type_ in zip(letter[1:], types, strict=True)):
        return letter
    return Dead(letter.entry, to_micros(now()), "JournalDamaged", UNREADABLE)
