"""The trace of an erasure in each database: when it is written, what it says, and that it outlives what it is of."""

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest
from pymongo.errors import WriteError

from chatkeep import NewConversation, Store, StoreUnavailable, open_store
from chatkeep.access import owner_hash
from chatkeep.stores.mongo.documents import micros
from chatkeep.testing import someone, user, whole_list
from chatkeep.values import now, to_micros
from servers.mongo import mongo_databases
from servers.postgres import databases, plain

OWNER = "zelda.unusual"


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """A store of each kind."""
    async with open_store(store_url) as store:
        yield store


def test_the_hash_of_a_name() -> None:
    """It is the same for ever, as traces are found by it, and not that which others would make of the name."""
    assert owner_hash("ada").hex() == "fd47651497864f7c61a61b84eda8b4df6a40dc0d061fd2f01c018a7b77b0b4be"
    assert owner_hash("ada") != hashlib.sha256(b"ada").digest()


async def test_without_a_trace_nothing_is_removed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """An erasure that cannot leave one fails before it begins."""
    owner = someone()
    talk = await store.create_conversation(owner, NewConversation())

    async def fail(_: str) -> datetime:
        raise StoreUnavailable("the disk is full")

    monkeypatch.setattr(store.access, "note_erasure", fail)
    with pytest.raises(StoreUnavailable):
        await store.erase_owner(owner)
    assert await whole_list(store, owner) == [talk]


async def test_erasure_that_is_cut_off_has_left_its_trace(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked to erase an owner refuses from then on what is older, also if the rest has to be asked again."""
    owner, writes = someone(), getattr(store, "_write")  # noqa: B009 - a test looks inside
    talk = await store.create_conversation(owner, NewConversation())

    async def fail(*_: object, **__: object) -> None:
        raise StoreUnavailable("the connection was lost")

    monkeypatch.setattr(store, "_write", fail)
    with pytest.raises(StoreUnavailable):
        await store.erase_owner(owner)
    noted = await store.access.erased_at(owner)
    assert noted is not None
    monkeypatch.setattr(store, "_write", writes)
    assert await whole_list(store, owner) == [talk]
    receipt = await store.erase_owner(owner)
    assert (receipt.conversations, receipt.erased_at >= noted) == (1, True)


# --- a clock that is set back ----------------------------------------------------------------------------


async def put_in_memory(store: Any, _: str, known: bytes, moment: datetime) -> None:
    """Note a moment, as each of these does, beside the store."""
    store.access._erasures[known] = moment


async def put_in_sqlite(_: Any, url: str, known: bytes, moment: datetime) -> None:
    connection = apsw.Connection(url.removeprefix("sqlite:///"))
    connection.execute("INSERT INTO erasures VALUES (?, ?)", (known, to_micros(moment)))
    connection.close()


async def put_in_postgres(_: Any, url: str, known: bytes, moment: datetime) -> None:
    connection = await asyncpg.connect(plain(url))
    await connection.execute("INSERT INTO erasures VALUES ($1, $2)", known, to_micros(moment))
    await connection.close()


async def put_in_mongodb(_: Any, url: str, known: bytes, moment: datetime) -> None:
    mongo_databases().database(url).erasures.insert_one({"_id": known, "erased_at": micros(moment)})


PUT: dict[str, Callable[[Any, str, bytes, datetime], Awaitable[None]]] = {
    "memory": put_in_memory,
    "sqlite": put_in_sqlite,
    "postgresql": put_in_postgres,
    "mongodb": put_in_mongodb,
}


async def test_a_clock_that_was_set_back(store: Store, store_url: str) -> None:
    """A trace never moves back: what was refused once would be taken again."""
    owner, later = someone(), now() + timedelta(hours=1)
    await PUT[store_url.partition(":")[0]](store, store_url, owner_hash(owner), later)
    assert await store.access.erased_at(owner) == later
    assert (await store.erase_owner(owner)).erased_at == later
    assert await store.access.erased_at(owner) == later


# --- what is left ----------------------------------------------------------------------------------------


async def test_trace_outlives_the_file_that_is_rewritten(tmp_path: Path) -> None:
    """Nothing in SQLite's files tells the name; whoever opens them later finds the trace by it."""
    url = f"sqlite:///{tmp_path}/chat.db"
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, [user("sage tea")])
        receipt = await store.erase_owner(OWNER)
    left = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert (OWNER.encode() in left, owner_hash(OWNER) in left) == (False, True)
    async with open_store(url) as store:
        assert await store.access.erased_at(OWNER) == receipt.erased_at


@pytest.fixture(params=["sqlite", "postgres", "mongodb"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without a schema."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/chat.db"
    elif request.param == "postgres":
        url = databases().empty()
        yield url
        databases().drop(url)
    else:
        url = mongo_databases().empty()
        yield url
        database = mongo_databases().database(url)
        database.client.drop_database(database.name)


async def test_revision_that_brings_traces(empty_url: str) -> None:
    """It serves processes of the one before, and goes down to that with the traces, which are of no use there."""
    revisions = ("0005", "0006", "0007") if empty_url.startswith("mongodb") else ("0007", "0008", "0009")
    earlier, before, head = revisions
    owner = someone()
    async with open_store(empty_url, migrate=False) as store:
        schema = getattr(store, "_schema")  # noqa: B009 - a test looks inside
        await store.migrate(before)
        await store.create_conversation(owner, NewConversation())
        for _ in range(2):
            await store.migrate(head)
            assert await schema() == (head, before)
            assert await store.access.erased_at(owner) is None
            await store.access.note_erasure(owner)
            await store.migrate(before)
            assert await schema() == (before, earlier)
        assert len(await whole_list(store, owner)) == 1


async def test_mongodb_refuses_what_is_no_trace() -> None:
    """A name where a hash belongs, and a moment of another type."""
    url = mongo_databases().clean()
    traces = mongo_databases().database(url).erasures
    good = {"_id": owner_hash(OWNER), "erased_at": micros(now())}
    for values in ({"_id": OWNER}, {"erased_at": now()}, {"erased_at": None}):
        with pytest.raises(WriteError) as caught:
            traces.insert_one(good | values)
        assert caught.value.code == 121
    traces.insert_one(good)
