"""What waits for the store: entries of the journal's file, and those that the file does not have yet.

New entries are in memory until the next commit takes them. While the file refuses them, as its disk is full, they are
delivered from memory, and what was delivered from the file is remembered, until it can be removed there.
"""

from collections.abc import Collection, Iterable, Sequence
from itertools import islice

import apsw

from chatkeep.recorder.journal import (
    INSERT_ROWS,
    ConversationKey,
    Dead,
    Entry,
    NewEntry,
    delete_entries,
    drop_dead_of,
    entries_among,
    entries_of,
    insert_dead,
    insert_entries,
    new_entry,
    newest_rid,
    oldest_entry,
    oldest_rids,
    owners_of_dead,
    sizes,
    standing,
    transaction,
    waiting_conversations,
)
from chatkeep.recorder.salvage import Salvaged
from chatkeep.recorder.stats import Counters, Outcome
from chatkeep.values import now, to_micros

COMMIT_ENTRIES = 4_096
"""Most entries of one commit."""


class Backlog:
    """Entries and dead letters. Belongs to the thread that writes the journal."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self._connection: apsw.Connection | None = None
        self._next_rid = 1
        self._unwritten: dict[int, Entry] = {}
        self._by_conversation: dict[ConversationKey, dict[int, Entry]] = {}
        """The same."""
        self._removed: set[int] = set()
        """Entries of the file that no longer wait."""
        self._first: dict[ConversationKey, int] = {}
        """The first entries of the file that may wait: those before are removed, or would be read again each time."""
        self._dead: list[Dead] = []
        """Dead letters that the file does not have yet."""
        self._in_flight: dict[int, Entry] = {}
        """Entries that are being delivered: they are not trimmed, and not lost with the file."""

    # --- the file -----------------------------------------------------------------------------------------

    @property
    def connection(self) -> apsw.Connection:
        """The file; raises CantOpenError while there is none."""
        if self._connection is None:
            raise apsw.CantOpenError("the journal is not open")
        return self._connection

    def use(self, connection: apsw.Connection | None) -> None:
        """Read and write this file from now on."""
        self._connection = connection
        self._first.clear()

    def count(self) -> None:
        """Count what the file holds: it was opened, or another process has changed it."""
        if self._connection is None:
            return
        self._first.clear()
        found, gone = standing(self.connection), entries_among(self.connection, list(self._removed))
        self._next_rid = max(self._next_rid, newest_rid(self.connection) + 1)
        self._counters.recount(found.entries - len(gone), found.size - sum(gone.values()))

    def restore(self, found: Salvaged) -> int:
        """Hold what was read of a damaged file, as if it was not written yet, before what is held.

        Entries that the file has already are left out: it was read before, by a process that was killed then. Returns
        how many entries are lost, as far as one can tell.
        """
        there = {rid for rid, _ in sizes(self.connection)} if self._connection else set[int]()
        gone = self._removed | there | (found.dead.keys() - self._in_flight.keys()) | self._unwritten.keys()
        readable = {**found.entries, **self._in_flight}
        entries = [entry for rid, entry in sorted(readable.items()) if rid not in gone]
        known = (self._removed | there | self._in_flight.keys()) - self._unwritten.keys()
        lost = max(found.lost(known), self._counters.kept - len(there) - len(entries))
        self._removed.clear()
        self._hold(sorted([*entries, *self._unwritten.values()]))
        self._dead += found.dead.values()
        self._next_rid = max([self._next_rid, *(rid + 1 for rid in (*found.entries, *found.dead))])
        self._count_restored(entries, lost)
        return lost

    def _count_restored(self, entries: Sequence[Entry], lost: int) -> None:
        kept = standing(self.connection) if self._connection else None
        self._counters.recount(*(kept[:2] if kept else (0, 0)))
        since = entries[0].recorded_at if entries else 0
        self._counters.put_back(len(entries), sum(entry.size for entry in entries), since)
        self._counters.add("lost", lost)

    def _hold(self, entries: Iterable[Entry]) -> None:
        self._unwritten, self._by_conversation = {}, {}
        for entry in entries:
            self._add(entry.key, entry)

    # --- writing ------------------------------------------------------------------------------------------

    def add(self, new: NewEntry) -> None:
        """Take a message that was recorded."""
        self._add(new[0], new_entry(self._next_rid, new))
        self._next_rid += 1

    def _add(self, key: ConversationKey, entry: Entry) -> None:
        self._unwritten[entry.rid] = entry
        self._by_conversation.setdefault(key, {})[entry.rid] = entry

    @property
    def is_written(self) -> bool:
        """Whether the file has everything."""
        return not (self._unwritten or self._removed or self._dead)

    def write(self) -> None:
        """Write what the file does not have, at most 4,096 entries, in one transaction. Raises errors of apsw."""
        part = list(islice(self._unwritten.values(), COMMIT_ENTRIES))
        if self._removed or self._dead or len(part) > INSERT_ROWS:
            with transaction(self.connection):
                insert_entries(self.connection, part)
                delete_entries(self.connection, list(self._removed))
                insert_dead(self.connection, self._dead)
        else:
            insert_entries(self.connection, part)  # autocommit: Python's lock is released once, not three times
        self._removed.clear()
        self._first.clear()
        self._dead.clear()
        if part:
            self._forget(part)
            self._counters.keep(len(part), sum(entry.size for entry in part), self._since(part))

    @property
    def can_start_over(self) -> bool:
        """Whether the file has entries, and neither one of them waits nor a dead letter."""
        if not self._removed or self._connection is None:
            return False
        found = standing(self.connection)
        return not found.dead and found.entries == len(entries_among(self.connection, list(self._removed)))

    def start_over(self) -> None:
        """Take it that the file has nothing any more."""
        self._removed.clear()

    def _forget(self, entries: Sequence[Entry]) -> None:
        """Remove entries from memory."""
        if len(entries) == len(self._unwritten):
            self._unwritten.clear()
            self._by_conversation.clear()
            return
        for entry in entries:
            del self._unwritten[entry.rid]
            held = self._by_conversation[entry.key]
            del held[entry.rid]
            if not held:
                del self._by_conversation[entry.key]

    def give_up(self, aside: Collection[int]) -> tuple[int, int]:
        """Drop what no file has, also none that was moved aside. Return the number of entries and of dead letters."""
        lost = [entry for rid, entry in self._unwritten.items() if rid not in aside]
        kept = [entry for rid, entry in self._unwritten.items() if rid in aside]
        dead = sum(letter.entry.rid not in aside for letter in self._dead)
        self._hold(())
        self._dead.clear()
        self._counters.keep(len(kept), sum(entry.size for entry in kept), 0)
        self._settle("lost", lost, [])
        self._counters.add("lost", dead)
        return len(lost), dead

    # --- reading ------------------------------------------------------------------------------------------

    def oldest(self, key: ConversationKey, limit: int, max_size: int) -> tuple[list[Entry], bool]:
        """Return a conversation's oldest entries, at least one, up to a number and a size; whether there are more."""
        found = self._written(key, limit + 1) if self._connection else []
        if len(found) <= limit:
            found += islice(self._by_conversation.get(key, {}).values(), limit + 1 - len(found))
        entries: list[Entry] = []
        for entry in found:
            max_size -= entry.size
            if len(entries) == limit or (entries and max_size < 0):
                return entries, True
            entries.append(entry)
        return entries, False

    def _written(self, key: ConversationKey, limit: int) -> list[Entry]:
        found = entries_of(self.connection, key, self._removed, limit, self._first.get(key, 0))
        if self._removed and found:
            self._first[key] = found[0].rid
        return found

    def take(self, key: ConversationKey, limit: int, max_size: int) -> tuple[list[Entry], bool]:
        """Return what `oldest` does, for a delivery: until they are removed or released they stay."""
        entries, more = self.oldest(key, limit, max_size)
        self._in_flight.update((entry.rid, entry) for entry in entries)
        return entries, more

    def release(self, entries: Iterable[Entry]) -> None:
        """End a delivery: those that were not removed wait again."""
        for entry in entries:
            self._in_flight.pop(entry.rid, None)

    def conversations(self) -> set[ConversationKey]:
        """Return the conversations that have entries."""
        found = waiting_conversations(self.connection) if self._connection else []
        return {*found, *self._by_conversation}

    def unwritten(self) -> set[ConversationKey]:
        """Return the conversations that have entries that the file does not have."""
        return set(self._by_conversation)

    def newest(self) -> int:
        """Return the rid of the newest entry, delivered or not."""
        return self._next_rid - 1

    def has_up_to(self, rid: int) -> bool:
        """Return whether entries up to this one still wait."""
        if min(self._unwritten, default=rid + 1) <= rid:
            return True
        found = oldest_rids(self.connection, rid, len(self._removed) + 1) if self._connection else []
        return not self._removed.issuperset(found)

    def oldest_at(self) -> int | None:
        """Return when the oldest entry was recorded, in microseconds since 1970; None without entries."""
        written = oldest_entry(self.connection) if self._connection else None
        held = next(iter(self._unwritten.values()), None)
        return written if written is not None or held is None else held.recorded_at

    # --- removing -----------------------------------------------------------------------------------------

    def remove(self, entries: Sequence[Entry], outcome: Outcome) -> None:
        """Remove entries, which wait no longer. If the process is killed first, they are delivered again."""
        rids = [entry.rid for entry in entries if entry.rid not in self._unwritten]
        there = entries_among(self.connection, rids).keys() - self._removed if self._connection else set[int]()
        queued = [entry for entry in entries if entry.rid in self._unwritten]
        kept = [entry for entry in entries if entry.rid in there]
        self._forget(queued)
        self._removed.update(there)
        self.release(entries)
        self._settle(outcome, queued, [entry.size for entry in kept])
        # Another process removed the others while they were being delivered: `count` knows what is kept.
        self._counters.add(outcome, len(entries) - len(queued) - len(kept))

    def bury(self, entry: Entry, error: str, reason: str) -> None:
        """Make an entry a dead letter."""
        self.remove([entry], "dead")  # first: of a damaged file it raises, and all is done again
        self._dead.append(Dead(entry, to_micros(now()), error, reason))

    def trim(self, excess: int) -> int:
        """Remove the oldest entries but those in flight, until `excess` bytes are free. Return their number."""
        written = sizes(self.connection) if self._connection else ()
        kept = _oldest(written, excess, self._removed | self._in_flight.keys())
        held = ((entry.rid, entry.size) for entry in self._unwritten.values())
        queued = [self._unwritten[rid] for rid in _oldest(held, excess - sum(kept.values()), self._in_flight.keys())]
        self._forget(queued)
        self._removed.update(kept)
        self._settle("dropped", queued, list(kept.values()))
        return len(kept) + len(queued)

    def _settle(self, outcome: Outcome, queued: Sequence[Entry], kept: Sequence[int]) -> None:
        sizes_ = [entry.size for entry in queued]
        self._counters.settle(outcome, sizes_, kept, self._since(queued))

    def _since(self, gone: Sequence[Entry]) -> int:
        """Return when the oldest entry was recorded that the file does not have, or what went before it."""
        first = next(iter(self._unwritten.values()), gone[-1] if gone else None)
        return first.recorded_at if first else 0

    # --- erased owners ------------------------------------------------------------------------------------

    def owners_of_dead(self) -> set[str]:
        """Return the owners of dead letters."""
        found = owners_of_dead(self.connection) if self._connection else []
        return {*found, *(letter.entry.owner_id for letter in self._dead)}

    def drop_dead_of(self, owner: str, before: int) -> int:
        """Delete an owner's dead letters that were recorded before a moment, or at it. Return their number."""
        gone = [one for one in self._dead if one.entry.owner_id == owner and one.entry.recorded_at <= before]
        self._dead = [one for one in self._dead if one not in gone]
        return len(gone) + (drop_dead_of(self.connection, owner, before) if self._connection else 0)


def _oldest(pairs: Iterable[tuple[int, int]], excess: int, spared: Collection[int]) -> dict[int, int]:
    """Return the first rids and sizes but the `spared` ones that have `excess` bytes together."""
    found = dict[int, int]()
    for rid, size in pairs:
        if excess <= 0:
            break
        if rid not in spared:
            found[rid] = size
            excess -= size
    return found
