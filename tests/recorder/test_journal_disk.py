"""The disk of the journal is full: delivery goes on from memory, and what is lost at last is counted and said."""

import asyncio
import logging
import resource
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from waiting import PATIENCE, until

from chatkeep import Message, NewConversation, NewMessage, Recorder, RecorderStats, StoreOptions, StoreUnavailable
from chatkeep.recorder.journal import open_journal, standing
from chatkeep.stores.memory.store import MemoryStore
from chatkeep.testing import whole_log

OWNER = "ada"
IDS = [UUID(int=1), UUID(int=2), UUID(int=3)]


class Away(MemoryStore):
    """A store that can be away."""

    def __init__(self) -> None:
        super().__init__("memory://", StoreOptions())
        self.away = False

    async def append(
        self, owner: str, conversation_id: UUID | str, messages: Sequence[NewMessage] | NewMessage, **options: Any
    ) -> list[Message]:
        if self.away:
            raise StoreUnavailable("it is away")
        return await super().append(owner, conversation_id, messages, **options)


@contextmanager
def full_disk(limit: int = 0) -> Iterator[None]:
    """No file of this process can be written, beyond a limit: the system refuses it, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


async def with_conversations[S: MemoryStore](opened: S) -> S:
    """A store, with three conversations now."""
    for id_ in IDS:
        await opened.create_conversation(OWNER, NewConversation(id=id_))
    return opened


@pytest.fixture
async def store() -> Away:
    """A store with three conversations."""
    return await with_conversations(Away())


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal's file."""
    return tmp_path / "journal"


class Speaker:
    """Records numbered messages in three conversations."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.count = 0

    def speak(self, count: int) -> None:
        """Record some messages."""
        for _ in range(count):
            self._recorder.record(OWNER, IDS[self.count % 3], "user", f"{self.count} {'word ' * 200}")
            self.count += 1


async def stored(store: Away) -> list[int]:
    """The numbers of the stored messages; each conversation has them in order, and once."""
    numbers: list[int] = []
    for id_ in IDS:
        found = [int(message.content.split()[0]) for message in await whole_log(store, OWNER, id_)]
        assert found == sorted(set(found))
        numbers += found
    return sorted(numbers)


def kept(journal: Path) -> int:
    """How many messages wait in a journal."""
    connection = open_journal(journal)
    try:
        return standing(connection).entries
    finally:
        connection.close()


def is_accounted_for(stats: RecorderStats) -> bool:
    """Whether every message is somewhere, or counted."""
    counted = stats.sent + stats.dead + stats.erased + stats.lost + stats.unsent
    return stats.recorded == counted


async def test_full_at_the_first_record(store: Away, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The first words are stored although the journal never had them; it has the next ones, once there is room."""
    async with Recorder(store, journal) as recorder:
        speaker = Speaker(recorder)
        with full_disk():
            speaker.speak(1)
            await recorder.flush(PATIENCE)
            assert recorder.stats().journal_failure
            assert recorder.stats().sent == 1
        speaker.speak(1)
        await recorder.flush(PATIENCE)
        await until(lambda: recorder.stats().journal_failure is None)
    assert await stored(store) == [0, 1]
    assert is_accounted_for(recorder.stats())
    assert caplog.text.count("cannot be written") == 1
    assert kept(journal) == 0


async def test_full_in_a_burst(store: Away, journal: Path) -> None:
    """Words in the journal and words that it refused arrive in order; what was stored leaves it afterwards."""
    async with Recorder(store, journal) as recorder:
        speaker = Speaker(recorder)
        store.away = True
        speaker.speak(300)
        await until(lambda: recorder.stats().queued == 0)
        with full_disk():
            speaker.speak(600)
            await until(lambda: recorder.stats().journal_failure)
            store.away = False
            await recorder.flush(PATIENCE)
            stats = recorder.stats()
            assert (stats.sent, stats.unsent, stats.unsent_bytes, stats.lost) == (900, 0, 0, 0)
            assert await stored(store) == list(range(900))
        await until(lambda: recorder.stats().journal_failure is None)
        await asyncio.wrap_future(recorder._journal.submit(lambda _backlog: None))
        assert kept(journal) == 0
        speaker.speak(30)
    assert await stored(store) == list(range(930))


async def test_full_at_close(store: Away, journal: Path) -> None:
    """The last words go to the store, which is there; what the journal cannot forget is delivered again, and known."""
    recorder = await Recorder(store, journal).__aenter__()
    speaker = Speaker(recorder)
    store.away = True
    speaker.speak(30)
    await until(lambda: recorder.stats().queued == 0)
    store.away = False
    with full_disk():
        speaker.speak(600)
        await recorder.aclose()
    stats = recorder.stats()
    assert (stats.sent, stats.lost, stats.unsent) == (630, 0, 0)
    assert kept(journal) == 30
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
    assert await stored(store) == list(range(630))
    assert kept(journal) == 0


async def test_full_while_the_store_is_away(store: Away, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Closing says how many stay in the journal and how many are lost, which is so; a flush that waits is told."""
    recorder = await Recorder(store, journal).__aenter__()
    speaker = Speaker(recorder)
    store.away = True
    speaker.speak(131)
    await until(lambda: recorder.stats().queued == 0)
    with full_disk():
        speaker.speak(469)
        await until(lambda: recorder.stats().journal_failure)
        waiting = [asyncio.create_task(recorder.flush()) for _ in range(3)]
        cancelled = asyncio.create_task(recorder.flush())
        await asyncio.sleep(0.05)
        cancelled.cancel()
        began = time.monotonic()
        await recorder.aclose(0.2)
        assert time.monotonic() - began < 5
        for task in waiting:
            with pytest.raises(StoreUnavailable, match="closed"):
                await asyncio.wait_for(task, 2)
    stats = recorder.stats()
    assert (stats.recorded, stats.unsent, stats.lost) == (600, 131, 469)
    assert is_accounted_for(stats)
    assert "469 messages and 0 dead letters are lost" in caplog.text
    assert "131 messages stay" in caplog.text
    assert kept(journal) == 131
    store.away = False
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
    assert await stored(store) == list(range(131))


@pytest.mark.parametrize("disk_first", [True, False])
async def test_both_come_back(store: Away, journal: Path, *, disk_first: bool) -> None:
    """Whichever comes back first: everything arrives once and in order, and the journal is empty."""
    async with Recorder(store, journal) as recorder:
        speaker = Speaker(recorder)
        store.away = True
        speaker.speak(100)
        await until(lambda: recorder.stats().queued == 0)
        with full_disk():
            speaker.speak(400)
            await until(lambda: recorder.stats().journal_failure)
            if not disk_first:
                store.away = False
                await until(lambda: recorder.stats().sent > 0)
            speaker.speak(100)
        if disk_first:
            await until(lambda: recorder.stats().journal_failure is None and recorder.stats().queued == 0)
            assert kept(journal) == 600
            store.away = False
        speaker.speak(100)
        await recorder.flush(PATIENCE)
        assert await stored(store) == list(range(700))
        assert is_accounted_for(recorder.stats())
    assert kept(journal) == 0


async def test_a_dead_letter_holds_up_nothing(store: Away, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Refused while the disk is full, it waits in memory for its place in the journal, and the next words arrive."""
    caplog.set_level(logging.CRITICAL)
    async with Recorder(store, journal) as recorder:
        with full_disk():
            recorder.record(OWNER, IDS[0], "user", "x" * 10_001)
            recorder.record(OWNER, IDS[0], "user", "0 next")
            await recorder.flush(PATIENCE)
            assert (recorder.stats().dead, recorder.stats().sent) == (1, 1)
        await until(lambda: recorder.stats().journal_failure is None)
    connection = open_journal(journal)
    assert standing(connection).dead == 1
    connection.close()
    assert await stored(store) == [0]


async def test_the_oldest_make_room(store: Away, journal: Path) -> None:
    """With drop_oldest, memory is bounded also while the journal cannot be written."""
    async with Recorder(store, journal, max_bytes=100_000, when_full="drop_oldest") as recorder:
        speaker = Speaker(recorder)
        store.away = True
        speaker.speak(30)
        await until(lambda: recorder.stats().queued == 0)
        with full_disk():
            for _ in range(60):
                speaker.speak(10)
                await asyncio.sleep(0.01)
            stats = recorder.stats()
            assert stats.unsent_bytes <= 200_000
            assert stats.dropped > 400
            store.away = False
            await recorder.flush(PATIENCE)
        numbers = await stored(store)
    assert numbers == list(range(630 - len(numbers), 630))
    assert recorder.stats().dropped == 630 - len(numbers)


class Raising(logging.Handler):
    """A handler that raises to the code that logs, as those of some applications do."""

    said = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.said += 1
        raise OSError(28, "No space left on device")


async def test_a_log_that_raises_ends_nothing(store: Away, journal: Path) -> None:
    """Whatever is said of the full disk and the store cannot be said: all the same, everything arrives."""
    handler = Raising()
    logging.getLogger("chatkeep.recorder").addHandler(handler)
    try:
        async with Recorder(store, journal) as recorder:
            speaker = Speaker(recorder)
            with full_disk():
                store.away = True
                speaker.speak(100)
                recorder.record(OWNER, IDS[0], "user", "x" * 10_001)
                await until(lambda: recorder.stats().journal_failure and recorder.stats().retried > 1)
                store.away = False
                await recorder.flush(PATIENCE)
            speaker.speak(10)
            await until(lambda: recorder.stats().journal_failure is None)
        assert await stored(store) == list(range(110))
    finally:
        logging.getLogger("chatkeep.recorder").removeHandler(handler)
    assert handler.said > 3
