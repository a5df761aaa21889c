"""Searches of one owner in a SQLite file: they end in their time, and others do not wait for them."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import apsw
import pytest

from chatkeep import NewConversation, Store, StoreUnavailable, open_store
from chatkeep.stores.sqlite.database import SqliteFile
from chatkeep.stores.time_limit import TimeLimit
from chatkeep.testing import assistant, user

OWNER, VICTIM = "eve", "ada"
LIMIT = 0.4
"""Seconds that a read may take here."""

SLOW = f"{'的一' * 90}的的的"
"""A phrase that is in none of the messages, and begins at every second character of them."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database in which it takes seconds to find out that a phrase is in no message."""
    path = tmp_path_factory.mktemp("slow") / "chat.db"
    asyncio.run(fill(path))
    return path


async def fill(path: Path) -> None:
    """Store messages that are as long as the index takes them."""
    async with open_store(f"sqlite:///{path}") as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        for _ in range(16):
            await store.append(OWNER, talk.id, [assistant("的一" * 100_000)])


def search(connection: apsw.Connection) -> object:
    """Look for it without any limit on queries."""
    phrase = " ".join(SLOW)
    found = connection.execute("SELECT rowid FROM message_words WHERE message_words MATCH ?", (f'"{phrase}"',))
    return found.fetchall()


def seven(connection: apsw.Connection) -> object:
    """A short read."""
    return connection.execute("SELECT 7").get


@pytest.fixture
async def file(path: Path) -> AsyncIterator[SqliteFile]:
    """The file with one reader."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(LIMIT), writes=TimeLimit(10), readers=1)
    yield file
    await file.aclose()


async def test_search_is_stopped_when_its_time_is_over(file: SqliteFile) -> None:
    """Matching phrases takes no steps of SQLite's virtual machine; the thread is free all the same."""
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await file.read(search)
        assert await file.read(seven) == 7


async def test_search_is_stopped_with_its_caller(path: Path) -> None:
    """A search whose caller was cancelled does not go on, and the next read of its thread is not hit instead."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(60), writes=TimeLimit(10), readers=1)
    for _ in range(3):
        searching = asyncio.create_task(file.read(search))
        await asyncio.sleep(0.1)
        searching.cancel()
        reads = [asyncio.create_task(file.read(seven)) for _ in range(50)]
        began = time.monotonic()
        assert await asyncio.gather(*reads) == [7] * 50
        assert time.monotonic() - began < 1
    await file.aclose()


async def test_closing_during_a_search(path: Path) -> None:
    """A file is closed within a second."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(60), writes=TimeLimit(10), readers=2)
    searching = [asyncio.create_task(file.read(search)) for _ in range(3)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await file.aclose()
    assert time.monotonic() - began < 1.5
    for error in await asyncio.gather(*searching, return_exceptions=True):
        assert isinstance(error, StoreUnavailable)


async def worst(call: Callable[[], Awaitable[object]], until: asyncio.Event) -> float:
    """The longest that a call took, again and again until an event."""
    longest = 0.0
    while not until.is_set():
        began = time.monotonic()
        await call()
        longest = max(longest, time.monotonic() - began)
        await asyncio.sleep(0.01)
    return longest


async def attack(store: Store, until: asyncio.Event) -> int:
    """Search, again and again until an event; return how often that took too long."""
    failed = 0
    while not until.is_set():
        try:
            await store.search_messages(OWNER, SLOW)
        except StoreUnavailable:
            failed += 1
    return failed


@pytest.mark.long
async def test_others_do_not_wait_for_the_searches_of_one_owner(path: Path) -> None:
    """While one owner has 32 slow searches, another one reads, writes and searches, and the store says it is there."""
    async with open_store(f"sqlite:///{path}", read_timeout=3) as store:
        talk = await store.create_conversation(VICTIM, NewConversation())
        await store.append(VICTIM, talk.id, [user("hello")])
        done = asyncio.Event()
        attacks = [asyncio.create_task(attack(store, done)) for _ in range(32)]
        await asyncio.sleep(0.5)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "history": lambda: store.history(VICTIM, talk.id),
            "history with total": lambda: store.history(VICTIM, talk.id, total=True),
            "list with total": lambda: store.list_conversations(VICTIM, total=True),
            "search": lambda: store.search_messages(VICTIM, "hello"),
            "append": lambda: store.append(VICTIM, talk.id, [user("hello")]),
            "ping": store.ping,
        }
        waiting = [asyncio.create_task(worst(call, done)) for call in calls.values()]
        await asyncio.sleep(4)
        done.set()
        took = dict(zip(calls, await asyncio.gather(*waiting), strict=True))
        assert {name: seconds for name, seconds in took.items() if seconds > 1} == {}
        assert sum(await asyncio.gather(*attacks)) >= 32


async def test_ping_does_not_queue_behind_reads(path: Path) -> None:
    """The store answers while every reading thread is busy."""
    async with open_store(f"sqlite:///{path}", readers=1) as store:
        file: SqliteFile = store._file  # type: ignore[attr-defined]
        busy = [asyncio.create_task(file.read(search)) for _ in range(8)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await store.ping()
        assert time.monotonic() - began < 1
        for task in busy:
            task.cancel()
