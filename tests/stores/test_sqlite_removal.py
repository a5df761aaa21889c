"""Large removals in a SQLite file while others write, and clocks that jump back."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import apsw
import pytest

from chatkeep import NewConversation, Store, open_store
from chatkeep.stores.sqlite import database as sqlite_file
from chatkeep.testing import assistant, contents, user
from chatkeep.values import now

OWNER = "ada"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """A store in this file."""
    async with open_store(f"sqlite:///{path}", write_timeout=60) as store:
        yield store


async def longest_wait(store: Store, call: Awaitable[object]) -> tuple[float, float]:
    """How long a call took, and the longest that another task waited for a write meanwhile."""
    talk = await store.create_conversation("bob", NewConversation())
    done, waits = asyncio.Event(), list[float]()

    async def write() -> None:
        while not done.is_set():
            began = time.monotonic()
            await store.append("bob", talk.id, [user("hello")])
            waits.append(time.monotonic() - began)

    writing = asyncio.create_task(write())
    began = time.monotonic()
    await call
    took = time.monotonic() - began
    done.set()
    await writing
    return took, max(waits)


async def test_creating_again_what_is_half_removed_lets_others_write(store: Store, path: Path) -> None:
    """The rest of a large conversation goes in slices when its id is created again: nobody waits for all of it."""
    talk = await store.create_conversation(OWNER, NewConversation())
    for _ in range(20):
        await store.append(OWNER, talk.id, [assistant("a few words to store") for _ in range(1_000)])
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE conversations SET deleted_at = 1")
    again = store.create_conversation(OWNER, NewConversation(id=talk.id, title="again"))
    took, waited = await longest_wait(store, again)
    assert waited < took / 2
    assert await store.log(OWNER, talk.id) == []


async def test_erasing_an_owner_for_whom_others_create_conversations(store: Store) -> None:
    """An erasure ends although four tasks go on creating conversations, and what was there before is gone."""
    old = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, old.id, [user("old")])
    done = asyncio.Event()

    async def create() -> None:
        while not done.is_set():
            await store.create_conversation(OWNER, NewConversation())

    creating = [asyncio.create_task(create()) for _ in range(4)]
    await asyncio.sleep(0.1)
    async with asyncio.timeout(15):
        receipt = await store.erase_owner(OWNER)
    done.set()
    await asyncio.gather(*creating)
    assert (receipt.messages, receipt.remaining) == (1, 0)
    assert old.id not in {talk.id for talk in (await store.list_conversations(OWNER, limit=1_000)).items}


async def test_clock_that_jumps_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written after the clock has jumped back an hour is later all the same, also for get-or-create."""
    talks = [await store.create_conversation(OWNER, NewConversation(context_id="shared")) for _ in range(4)]
    for talk in talks:
        await store.append(OWNER, talk.id, [user("before")])
    before = (await store.list_conversations(OWNER)).items
    monkeypatch.setattr(sqlite_file, "now", lambda: now() - timedelta(hours=1))

    found = await store.get_or_create_conversation(OWNER, NewConversation(context_id="shared"))
    assert found == before[0]
    await store.append(OWNER, talks[1].id, [user("meanwhile")])
    new = await store.create_conversation(OWNER, NewConversation(context_id="shared"))
    listed = (await store.list_conversations(OWNER)).items
    assert [talk.id for talk in listed[:3]] == [new.id, talks[1].id, before[0].id]
    assert await store.get_or_create_conversation(OWNER, NewConversation(context_id="shared")) == new
    assert contents((await store.history(OWNER, talks[1].id)).items) == ["before", "meanwhile"]

    monkeypatch.undo()
    await store.append(OWNER, new.id, [user("after")])
    assert (await store.list_conversations(OWNER)).items[0].id == new.id
