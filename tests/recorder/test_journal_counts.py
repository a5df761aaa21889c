"""Every message is counted once: as sent, dropped, lost or kept, also if several things happen to it at a time."""

import asyncio
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import pytest
from test_journal_damage import FRAME, release_memory
from test_journal_disk import IDS, OWNER, Away, Speaker, full_disk, journal, kept, store, stored, with_conversations
from waiting import PATIENCE, until

from chatkeep import Message, NewMessage, Recorder
from chatkeep.recorder.backlog import Backlog
from chatkeep.recorder.delivery import BATCH_MESSAGES
from chatkeep.recorder.journal import (
    PAGE_BYTES,
    Entry,
    delete_entries,
    erase_owner,
    insert_entries,
    keep_log,
    open_journal,
)
from chatkeep.recorder.recorder import BURST_BYTES
from chatkeep.recorder.salvage import Salvaged, salvage
from chatkeep.recorder.stats import Counters

__all__ = ["journal", "store"]


class Slow(Away):
    """A store whose appends take a moment, or wait until they may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.may_go, self.began = asyncio.Event(), asyncio.Event()

    async def append(
        self, owner: str, conversation_id: UUID | str, messages: Sequence[NewMessage] | NewMessage, **options: Any
    ) -> list[Message]:
        self.began.set()
        await self.may_go.wait()
        await asyncio.sleep(0.002)
        return await super().append(owner, conversation_id, messages, **options)


@pytest.fixture
async def slow() -> Slow:
    """A slow store with three conversations."""
    return await with_conversations(Slow())


async def test_what_is_being_delivered_is_not_dropped(slow: Slow, journal: Path) -> None:
    """The oldest entries are those that are delivered: before, some were counted as dropped and as sent."""
    slow.may_go.set()
    async with Recorder(slow, journal, max_bytes=60_000, when_full="drop_oldest") as recorder:
        speaker = Speaker(recorder)
        for _ in range(300):
            speaker.speak(12)
            await asyncio.sleep(0.001)
        await recorder.flush(PATIENCE)
        stats = recorder.stats()
        assert stats.sent == len(await stored(slow))
    assert stats.sent + stats.dropped == stats.recorded == 3_600
    assert stats.dropped > 0
    assert (stats.unsent, stats.unsent_bytes) == (0, 0)


async def test_memory_is_bounded_while_the_disk_hangs(store: Away, journal: Path) -> None:
    """With drop_oldest nothing can be dropped from a disk that hangs: the newest are dropped then, and counted."""
    recorder, hangs = Recorder(store, journal, max_bytes=100_000, when_full="drop_oldest"), threading.Event()
    recorder._journal.submit(lambda _backlog: hangs.wait(PATIENCE))
    Speaker(recorder).speak(20_000)
    stats = recorder.stats()
    hangs.set()
    await recorder.aclose(0)
    assert stats.unsent_bytes <= 100_000 + BURST_BYTES
    assert stats.unsent + stats.dropped == 20_000
    assert stats.dropped > 0


async def test_erased_by_another_process_while_they_are_delivered(slow: Slow, journal: Path) -> None:
    """They are sent, and not kept: before, what waits became negative."""
    async with Recorder(slow, journal) as recorder:
        Speaker(recorder).speak(30)
        await slow.began.wait()
        await until(lambda: recorder.stats().queued == 0)
        connection = open_journal(journal)
        assert erase_owner(connection, OWNER) == (30, 0)
        connection.close()
        await until(lambda: recorder.stats().unsent == 0)
        slow.may_go.set()
        await until(lambda: recorder.stats().sent)
        await recorder.flush(PATIENCE)
        assert (recorder.stats().unsent, recorder.stats().unsent_bytes) == (0, 0)


async def test_a_flush_ends_when_another_process_erases_what_it_waits_for(store: Away, journal: Path) -> None:
    """Nothing is left that somebody could store: before, it waited for ever."""
    async with Recorder(store, journal) as recorder:
        store.away = True
        Speaker(recorder).speak(100)
        await until(lambda: recorder.stats().queued == 0)
        waiting = asyncio.create_task(recorder.flush())
        await asyncio.sleep(0.1)
        connection = open_journal(journal)
        erase_owner(connection, OWNER)
        connection.close()
        store.away = False
        await asyncio.wait_for(waiting, PATIENCE)
        assert recorder.stats().sent in {0, BATCH_MESSAGES}, "a batch may have been read before"


def backlog_of(journal: Path, count: int) -> tuple[Backlog, Counters]:
    """A backlog whose file has some entries, which were counted."""
    counters = Counters()
    backlog = Backlog(counters)
    backlog.use(open_journal(journal, create=True))
    insert_entries(backlog.connection, [entry(number) for number in range(1, count + 1)])
    backlog.count()
    return backlog, counters


def entry(number: int) -> Entry:
    """An entry of ten bytes."""
    return Entry(number, OWNER, IDS[0].bytes, "{}", 10, number, None).sealed()


def test_what_could_not_be_removed_is_not_counted_again(journal: Path) -> None:
    """The disk is full, and another process changes the file: its size is that of what waits."""
    backlog, counters = backlog_of(journal, 10)
    entries, _ = backlog.take((OWNER, IDS[0]), 6, 1 << 20)
    backlog.remove(entries, "sent")
    delete_entries(backlog.connection, [1, 2, 10])
    backlog.count()
    assert (counters.kept, counters.kept_bytes) == (3, 30)


def test_what_was_delivered_is_not_lost_with_the_file(journal: Path) -> None:
    """Entries that the index still names, as the disk was full, and that are unreadable, were stored."""
    backlog, counters = backlog_of(journal, 10)
    backlog.remove(backlog.take((OWNER, IDS[0]), 6, 1 << 20)[0], "sent")
    backlog.use(open_journal(journal.with_name("new"), create=True))
    found = Salvaged(named=set(range(1, 11)), damaged=6, entries={rid: entry(rid) for rid in range(7, 11)})
    assert backlog.restore(found) == 0
    assert (counters.sent, counters.lost, counters.queued, counters.kept) == (6, 0, 4, 0)


def test_an_append_that_fails_after_its_file_was_lost_is_repeated(journal: Path) -> None:
    """What is being delivered is in memory, so it is not lost with the file, but waits."""
    backlog, counters = backlog_of(journal, 10)
    entries, _ = backlog.take((OWNER, IDS[0]), 6, 1 << 20)
    backlog.use(open_journal(journal.with_name("new"), create=True))
    assert backlog.restore(Salvaged()) == 4
    backlog.release(entries)
    backlog.write()
    assert backlog.oldest((OWNER, IDS[0]), 10, 1 << 20)[0] == entries
    assert (counters.lost, counters.queued, counters.kept) == (4, 0, 6)


def test_a_dead_letter_is_one_when_it_is_tried_again(journal: Path) -> None:
    """The file cannot be read as it is made, and is replaced: what could not be written at last is counted once."""
    backlog, counters = backlog_of(journal, 1)
    (one,), _ = backlog.take((OWNER, IDS[0]), 1, 1 << 20)
    backlog.connection.execute("ALTER TABLE entries RENAME TO others")
    with pytest.raises(apsw.SQLError):
        backlog.bury(one, "NotFound", "why")
    backlog.use(None)
    assert backlog.restore(Salvaged()) == 0
    backlog.bury(one, "NotFound", "why")
    assert backlog.give_up(()) == (0, 1)
    assert (counters.dead, counters.lost, counters.kept, counters.queued) == (1, 1, 0, 0)


def test_a_full_disk_makes_no_delivery_slow(journal: Path) -> None:
    """What was delivered and cannot be removed is not read again for each batch; what comes back there is."""
    backlog, counters = backlog_of(journal, 40_000)
    began = time.process_time()
    while entries := backlog.take((OWNER, IDS[0]), 32, 1 << 20)[0]:
        backlog.remove(entries, "sent")
    assert time.process_time() - began < 5
    assert (counters.sent, counters.kept, counters.kept_bytes) == (40_000, 0, 0)
    backlog.write()
    insert_entries(backlog.connection, [entry(7)])
    backlog.count()
    assert backlog.oldest((OWNER, IDS[0]), 32, 1 << 20) == ([entry(7)], False)


# --- damaged files ---------------------------------------------------------------------------------------------


async def left_behind(store: Away, journal: Path, count: int) -> None:
    """Leave messages in a journal."""
    recorder = Recorder(store, journal)
    Speaker(recorder).speak(count)
    await recorder.aclose(0)


async def test_a_process_killed_before_the_last_rename(store: Away, journal: Path) -> None:
    """All was read and written: before, all was counted as lost, and nothing was."""
    await left_behind(store, journal, 300)
    aside = journal.with_name("journal.recovering")
    shutil.copy(journal, aside)
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
        await until(lambda: not aside.exists())
        assert (recorder.stats().sent, recorder.stats().lost) == (300, 0)


async def test_a_second_damage_before_the_first_was_read(
    store: Away, journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A process was killed as it recovered, and its new file is damaged, too: both are read."""
    await left_behind(store, journal, 300)
    aside = journal.rename(journal.with_name("journal.recovering"))
    connection = open_journal(journal, create=True)
    insert_entries(connection, list(salvage(aside).entries.values())[:64])
    keep_log(connection, keep=False)
    connection.close()
    with journal.open("r+b") as file:
        file.write(bytes(PAGE_BYTES))
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
        await until(lambda: "300 messages and 0 dead letters were recovered, 0 messages are lost" in caplog.text)
        assert (recorder.stats().sent, recorder.stats().lost) == (300, 0)
    assert await stored(store) == list(range(300))
    assert not list(journal.parent.glob("*recovering*"))
    assert len(list(journal.parent.glob("*damaged*"))) == 2


async def test_what_a_file_moved_aside_has_is_not_lost(
    store: Away, journal: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk is full when a journal is damaged, and until the recorder closes: the next one reads the old file."""
    recorder = Recorder(store, journal)
    speaker = Speaker(recorder)
    speaker.speak(300)
    await until(lambda: recorder.stats().queued == 0)
    await until(lambda: journal.stat().st_size > 300_000)
    await asyncio.wrap_future(recorder._journal.submit(lambda backlog: backlog.connection.cache_flush()))
    with journal.open("r+b") as file:
        file.seek(8 * PAGE_BYTES)
        file.write(b"\xff" * 4 * PAGE_BYTES)
    await asyncio.wrap_future(recorder._journal.submit(release_memory))
    store.away = True
    with full_disk():
        await recorder.__aenter__()
        await until(lambda: recorder.stats().queued)
        waiting = recorder.stats().unsent
        speaker.speak(1)
        await recorder.aclose(0)
    assert (recorder.stats().unsent, recorder.stats().lost) == (waiting, 301 - waiting)
    assert "1 messages and 0 dead letters are lost" in caplog.text
    assert f"{waiting} messages stay in" in caplog.text
    store.away = False
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
        assert recorder.stats().sent == waiting


async def test_what_is_found_again_is_delivered_again(store: Away, journal: Path) -> None:
    """An older version of a page has messages that were delivered: a flush does not wait for them for ever."""
    async with Recorder(store, journal) as recorder:
        for id_ in IDS[:2]:
            store.away = True
            for number in range(60):
                recorder.record(OWNER, id_, "user", f"{number} word")
            await until(lambda: recorder.stats().queued == 0)
            if id_ == IDS[0]:
                await asyncio.sleep(0.6)  # the log is copied to the file
                store.away = False
                await recorder.flush(PATIENCE)
        log = journal.with_name("journal-wal")
        with log.open("r+b") as file:
            for start in range(32, log.stat().st_size, FRAME):
                file.seek(start + 24)
                file.write(b"\xff" * PAGE_BYTES)
        await asyncio.wrap_future(recorder._journal.submit(release_memory))
        await asyncio.wrap_future(recorder._journal.submit(Backlog.conversations))
        store.away = False
        await recorder.flush(PATIENCE)
        assert (recorder.stats().unsent, recorder.stats().unsent_bytes) == (0, 0)


async def test_a_disk_that_is_full_at_the_start(store: Away, journal: Path, tmp_path: Path) -> None:
    """The log of a killed process cannot be copied: what it has and what is said is delivered all the same."""
    store.away = True
    recorder = Recorder(store, journal)
    Speaker(recorder).speak(300)
    await until(lambda: recorder.stats().queued == 0)
    (tmp_path / "killed").mkdir()
    for name in ("journal", "journal-wal"):
        shutil.copy(tmp_path / name, tmp_path / "killed" / name)
    await recorder.aclose(0)
    store.away = False
    with full_disk(100_000):
        async with Recorder(store, tmp_path / "killed" / "journal") as recorder:
            recorder.record(OWNER, IDS[0], "user", "300")
            await recorder.flush(PATIENCE)
            assert recorder.stats().journal_failure
            assert (recorder.stats().sent, recorder.stats().lost) == (301, 0)
    assert await stored(store) == list(range(301))
    assert kept(tmp_path / "killed" / "journal") == 300
