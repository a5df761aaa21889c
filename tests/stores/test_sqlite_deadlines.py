"""Every call on a SQLite file ends in its time: whoever holds the lock, however long a query takes, while closing."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import contextmanager
from pathlib import Path

import apsw
import pytest

from chatkeep import ConversationChange, NewConversation, Store, StoreUnavailable, open_store
from chatkeep.stores.sqlite.database import SqliteFile, Transaction
from chatkeep.stores.time_limit import TimeLimit
from chatkeep.testing import user

OWNER = "ada"
LOCK = "another process held the database's lock for too long"
HOLD = """
import apsw, sys
connection = apsw.Connection(sys.argv[1])
connection.execute("BEGIN IMMEDIATE")
print(flush=True)
sys.stdin.read()
"""
WAIT = 1.2
"""Seconds that a write may take behind a lock."""

ENDLESS = "WITH RECURSIVE n(i) AS (VALUES (1) UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@contextmanager
def stopped_holder(path: Path) -> Iterator[None]:
    """A process that holds the write lock and is stopped; it is killed at the end, and the lock is free."""
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline()
            holder.send_signal(signal.SIGSTOP)
            yield
        finally:
            holder.kill()


async def timed(call: Awaitable[object]) -> tuple[float, BaseException | None]:
    """How long a call took, and what it raised."""
    began = time.monotonic()
    (answer,) = await asyncio.gather(call, return_exceptions=True)
    return time.monotonic() - began, answer if isinstance(answer, BaseException) else None


def endless(connection: apsw.Connection) -> object:
    """A query that does not end."""
    return connection.execute(ENDLESS).get


@pytest.fixture
async def file(path: Path) -> AsyncIterator[SqliteFile]:
    """A file with one reader, whose calls may take little time."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(0.2), writes=TimeLimit(0.2), readers=1)
    await file.migrate("head")
    yield file
    await file.aclose()


async def test_a_thousand_writers_behind_a_stopped_lock_holder(path: Path) -> None:
    """Of writes of all kinds, more than one commit holds, each hears of the lock when its own time is over.

    They are five batches: were these to wait in turn, the last one would take five times as long.
    """
    async with open_store(f"sqlite:///{path}", write_timeout=WAIT) as store:
        talks = [(await store.create_conversation(OWNER, NewConversation())).id for _ in range(20)]
        calls: list[Awaitable[object]] = []
        for number in range(300):
            talk = talks[number % 20]
            calls += [
                store.append(OWNER, talk, [user("never")]),
                store.update_conversation(OWNER, talk, ConversationChange(title="never")),
                store.create_conversation("bob", NewConversation()),
                store.access.abandon_request(OWNER, str(number)),
            ]
        with stopped_holder(path):
            answers = await asyncio.gather(*map(timed, calls))
        assert max(seconds for seconds, _ in answers) < 3 * WAIT
        assert {type(error) for _, error in answers} == {StoreUnavailable}
        assert all(LOCK in str(error) for _, error in answers)
        # One commit that was taken still waits for the lock: its callers do not know whether it will get it.
        (last,) = await store.append(OWNER, talks[0], [user("after")])
        assert (await store.log(OWNER, talks[0]))[-1] == last


@pytest.mark.long
async def test_writers_that_come_one_after_the_other_each_have_their_time(path: Path) -> None:
    """Who comes later waits as long as who came first, and hears of the lock, too."""
    async with open_store(f"sqlite:///{path}", write_timeout=0.5) as store:
        talk = await store.create_conversation(OWNER, NewConversation())

        async def later(pause: float) -> tuple[float, BaseException | None]:
            await asyncio.sleep(pause)
            return await timed(store.append(OWNER, talk.id, [user("never")]))

        with stopped_holder(path):
            answers = await asyncio.gather(*(later(number / 20) for number in range(20)))
        for seconds, error in answers:
            assert 0.5 <= seconds < 1.5
            assert LOCK in str(error)


async def test_query_that_does_not_end(file: SqliteFile) -> None:
    """A query is stopped when its time is over; the thread that ran it serves the next one."""
    seconds, error = await timed(file.read(endless))
    assert seconds < 1.2
    assert "longer than read_timeout" in str(error)
    assert await file.read(lambda connection: connection.execute("SELECT 7").get) == 7


async def test_reads_behind_a_query_that_does_not_end(file: SqliteFile) -> None:
    """Reads that wait for the only thread end in their time, too, and are not run later."""
    ran = list[int]()
    waiting = [timed(file.read(lambda _, number=number: ran.append(number))) for number in range(3)]  # type: ignore[misc]
    answers = await asyncio.gather(timed(file.read(endless)), *waiting)
    assert all(seconds < 1.2 for seconds, _ in answers)
    assert "longer than read_timeout" in str(answers[0][1])
    assert await file.read(lambda _: list(ran)) in ([], [0, 1, 2])  # served at once, or given up


async def test_rewriting_waits_for_the_lock_in_turns(file: SqliteFile, path: Path) -> None:
    """While a VACUUM waits for the lock others hear of it in their time; it gives up, and works later."""

    def insert(transaction: Transaction) -> None:
        transaction.connection.execute("INSERT INTO users VALUES ('bob')")

    with stopped_holder(path):
        answers = await asyncio.gather(timed(file.scrub()), *(timed(file.write(insert)) for _ in range(5)))
        for seconds, error in answers:
            assert seconds < 1.2
            assert LOCK in str(error)
    await file.scrub()
    await file.write(insert)


async def test_migration_waits_for_the_lock_in_its_time(path: Path) -> None:
    """A schema that cannot be made, as somebody holds the lock, is StoreUnavailable after write_timeout."""
    apsw.Connection(str(path)).execute("PRAGMA journal_mode = WAL").fetchall()
    with stopped_holder(path):
        seconds, error = await timed(open_store(f"sqlite:///{path}", write_timeout=0.2)._open())
    assert seconds < 2
    assert LOCK in str(error)


# --- closing ---------------------------------------------------------------------------------------------


def threads() -> list[str]:
    """Threads of files that are still there."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("chatkeep-sqlite")]


async def test_closing_while_threads_are_stuck(path: Path) -> None:
    """A file is closed within a second, although a query does not end and a write waits for the lock."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(60), writes=TimeLimit(60), readers=2)
    await file.migrate("head")
    with stopped_holder(path):
        reads = [asyncio.create_task(timed(file.read(endless))) for _ in range(4)]
        write = asyncio.create_task(timed(file.write(lambda _: None)))
        await asyncio.sleep(0.1)
        seconds, error = await timed(file.aclose())
        assert (seconds < 2, error) == (True, None)
        assert threads() == []
        for _, error in await asyncio.gather(*reads, write):
            assert isinstance(error, StoreUnavailable)
            assert "closed" in str(error)


async def test_closing_lets_a_read_end(path: Path) -> None:
    """A query that ends soon is answered although the file is being closed."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(60), writes=TimeLimit(60), readers=1)
    await file.migrate("head")

    def slow(connection: apsw.Connection) -> object:
        time.sleep(0.1)
        return connection.execute("SELECT 7").get

    reading = asyncio.create_task(file.read(slow))
    await asyncio.sleep(0.01)
    await file.aclose()
    assert await reading == 7


@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_a_store_behind_a_stopped_lock_holder(path: Path, cancelled: bool) -> None:
    """A store waits write_timeout for its writes, or until closing is cancelled, then all callers are told."""
    store: Store = await open_store(f"sqlite:///{path}", write_timeout=60 if cancelled else 0.3)
    talk = await store.create_conversation(OWNER, NewConversation())
    with stopped_holder(path):
        writes = [asyncio.create_task(timed(store.append(OWNER, talk.id, [user("never")]))) for _ in range(600)]
        deletion = asyncio.create_task(timed(store.delete_conversation(OWNER, talk.id)))
        await asyncio.sleep(0.05)
        closing = asyncio.create_task(timed(store.aclose()))
        if cancelled:
            await asyncio.sleep(0.05)
            closing.cancel()
        began = time.monotonic()
        await asyncio.wait([closing])
        assert time.monotonic() - began < 2
        async with asyncio.timeout(2):
            answers = await asyncio.gather(*writes)
            await asyncio.wait([deletion])
        assert {type(error) for _, error in answers} == {StoreUnavailable}
    async with asyncio.timeout(5):
        while threads():  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
