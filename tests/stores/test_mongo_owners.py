"""Owners on MongoDB who are renamed or erased while they write, and writes whose answers are lost."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson.int64 import Int64
from mongo_commands import failing_commands
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import AutoReconnect

from chatkeep import Conversation, NewConversation, NotFound, NotYours, Store, open_store
from chatkeep.access import ApiKey, Reply
from chatkeep.stores.mongo import rows as statements
from chatkeep.testing import contents, numbered, user, whole_list, whole_log
from chatkeep.values import now
from servers.mongo import mongo_databases

OWNER, OTHER = "ada", "bob"


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return mongo_databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


def users(url: str) -> set[str]:
    """The owners that are noted."""
    return {each["_id"] for each in mongo_databases().database(url).users.find()}


class Writer:
    """Creates conversations and appends to them, and knows what was acknowledged."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.acknowledged: dict[UUID, list[str]] = {}
        self.stopped = False

    async def work(self) -> None:
        """Write until it is stopped; a conversation that was taken away is left."""
        while not self.stopped:
            talk = await self.store.create_conversation(OWNER, NewConversation())
            texts = self.acknowledged.setdefault(talk.id, [])
            with suppress(NotFound, NotYours):
                for number in range(3):
                    await self.store.append(OWNER, talk.id, [user(f"{talk.id} {number}")])
                    texts.append(f"{talk.id} {number}")


async def test_rename_while_the_owner_writes(url: str, store: Store) -> None:
    """What is created meanwhile moves or stays: every acknowledged message is there, under one of the owners."""
    writers = [Writer(store) for _ in range(3)]
    working = [asyncio.create_task(writer.work()) for writer in writers]
    moved = 0
    for _ in range(3):
        await asyncio.sleep(0.05)
        moved += await store.rename_owner(OWNER, OTHER)
    for writer in writers:
        writer.stopped = True
    await asyncio.gather(*working)
    kept = {talk.id: talk.owner_id for owner in (OWNER, OTHER) for talk in await whole_list(store, owner)}
    expected = {id_: texts for writer in writers for id_, texts in writer.acknowledged.items()}
    assert kept.keys() == expected.keys()
    assert moved == list(kept.values()).count(OTHER)
    assert set(kept.values()) <= users(url)
    for id_, texts in expected.items():
        assert contents(await whole_log(store, kept[id_], id_)) == texts


async def test_rename_leaves_an_owner_who_has_something_new(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A conversation that is created after the others were looked up stays, and its owner stays noted."""
    await store.create_conversation(OWNER, NewConversation())
    end = statements.MongoRows.end_rename

    async def late(rows: statements.MongoRows, owner: str) -> bool:
        await store.create_conversation(OWNER, NewConversation(title="late"))
        return await end(rows, owner)

    monkeypatch.setattr(statements.MongoRows, "end_rename", late)
    assert await store.rename_owner(OWNER, OTHER) == 1
    assert [talk.title for talk in await whole_list(store, OWNER)] == ["late"]
    assert users(url) == {OWNER, OTHER}
    monkeypatch.undo()
    assert await store.rename_owner(OWNER, OTHER) == 1
    assert users(url) == {OTHER}


async def test_rename_that_is_cut_off(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called again, it moves and counts what is left; nothing is under both owners at any time."""
    talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(5)]
    for talk in talks:
        await store.append(OWNER, talk.id, numbered(2))
    move, done = statements.MongoRows.move, 0

    async def cut_off(rows: statements.MongoRows, *arguments: Any) -> bool:
        nonlocal done
        done += 1
        if done == 3:
            raise asyncio.CancelledError
        return await move(rows, *arguments)

    monkeypatch.setattr(statements.MongoRows, "move", cut_off)
    with pytest.raises(asyncio.CancelledError):
        await store.rename_owner(OWNER, OTHER)
    monkeypatch.undo()
    assert [len(await whole_list(store, owner)) for owner in (OWNER, OTHER)] == [3, 2]
    assert users(url) == {OWNER, OTHER}
    assert await store.rename_owner(OWNER, OTHER) == 3
    assert await store.rename_owner(OWNER, OTHER) == 0
    for talk in talks:
        assert len(await store.log(OTHER, talk.id)) == 2


async def test_erasure_while_others_create(url: str, store: Store) -> None:
    """It ends, and says how much was created meanwhile; the owner of that stays noted."""
    talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(20)]
    stopped = False

    async def create() -> None:
        while not stopped:
            await store.create_conversation(OWNER, NewConversation())

    creating = [asyncio.create_task(create()) for _ in range(4)]
    await asyncio.sleep(0.1)
    began = time.monotonic()
    receipt = await store.erase_owner(OWNER)
    assert time.monotonic() - began < 15
    stopped = True
    await asyncio.gather(*creating)
    left = await whole_list(store, OWNER)
    assert receipt.conversations >= 20
    assert receipt.remaining <= len(left)
    assert {talk.id for talk in talks}.isdisjoint(talk.id for talk in left)
    assert (users(url) == {OWNER}) is bool(left)


async def test_small_conversations_go_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction removes many of them, however many messages they have together."""
    for number in range(40):
        talk = await store.create_conversation(OWNER, NewConversation())
        if number % 2:
            await store.append(OWNER, talk.id, numbered(2))
    purge, slices = statements.MongoRows.purge_slice, 0

    async def counted(rows: statements.MongoRows, owner: str) -> Any:
        nonlocal slices
        slices += 1
        return await purge(rows, owner)

    monkeypatch.setattr(statements.MongoRows, "purge_slice", counted)
    monkeypatch.setattr(statements, "SLICE", 30)
    receipt = await store.erase_owner(OWNER)
    assert (receipt.conversations, receipt.messages, receipt.remaining) == (40, 40, 0)
    assert receipt.search_entries == 40
    assert slices <= 5


# --- answers that are lost -------------------------------------------------------------------------------

type Losing = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def losing(monkeypatch: pytest.MonkeyPatch) -> Losing:
    """Lose the answers of writes that happened, also those to the driver's own retry."""

    @contextmanager
    def losing(*methods: str, times: int = 1) -> Iterator[None]:
        left = times

        def lost(method: Any) -> Any:
            async def call(*arguments: Any, **options: Any) -> Any:
                nonlocal left
                done = await method(*arguments, **options)
                if left and options.get("session") is None:
                    left -= 1
                    raise AutoReconnect("the answer is lost")
                return done

            return call

        with monkeypatch.context() as patch:
            for name in methods:
                patch.setattr(AsyncCollection, name, lost(getattr(AsyncCollection, name)))
            yield
        assert not left

    return losing


async def test_lost_answers_to_create(store: Store, losing: Losing) -> None:
    """Creating returns what was created; get-or-create creates one conversation."""
    id_ = uuid4()
    with losing("insert_one"):
        made = await store.create_conversation(OWNER, NewConversation(id=id_, title="t"))
    assert made == await store.get_conversation(OWNER, id_)
    with losing("insert_one"):
        found = await store.get_or_create_conversation(OWNER, NewConversation(context_id="c"))
    assert found == await store.get_or_create_conversation(OWNER, NewConversation(context_id="c"))
    assert len(await whole_list(store, OWNER)) == 2


async def test_lost_answers_to_begin_request(url: str, store: Store, losing: Losing) -> None:
    """Who took the lease is told so, whether it was free, had expired, or was of another request, long ago."""
    access, requests = store.access, mongo_databases().database(url).requests
    with losing("insert_one"):
        assert await access.begin_request(OWNER, "k", b"f" * 32) is None
    requests.update_many({}, {"$set": {"lease_until": Int64(1)}})
    with losing("update_one", times=2):
        assert await access.begin_request(OWNER, "k", b"f" * 32) is None
    with losing("update_one", times=2):
        await access.finish_request(OWNER, "k", Reply(201, b"{}"))
    assert await access.begin_request(OWNER, "k", b"f" * 32) == Reply(201, b"{}")
    requests.update_many({}, {"$set": {"expires_at": Int64(1)}})
    with losing("update_one", times=2):
        assert await access.begin_request(OWNER, "k", b"g" * 32) is None
    with losing("delete_one"):
        await access.abandon_request(OWNER, "k")
    assert requests.count_documents({}) == 0


async def test_lost_answers_to_keys(store: Store, losing: Losing) -> None:
    """A key that was stored is no conflict with itself; removing one twice is removing it."""
    key = ApiKey(id="k", owner_id=OWNER, name="n", created_at=now())
    with losing("insert_one"):
        await store.access.create_key(key, b"s" * 32)
    with losing("update_one"):
        await store.access.key_used("k", now())
    with losing("update_many"):
        assert await store.rename_owner(OWNER, OTHER) == 0
    assert [each.id for each in await store.access.list_keys(OTHER)] == ["k"]


async def test_lost_answers_to_an_erasure(store: Store, losing: Losing) -> None:
    """The receipt counts what was removed, once."""
    for _ in range(3):
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, numbered(4))
    with losing("update_many"), losing("delete_one"):
        receipt = await store.erase_owner(OWNER)
    assert (receipt.conversations, receipt.messages, receipt.remaining) == (3, 12, 0)


async def test_lost_answers_to_commits(store: Store) -> None:
    """Deleting, erasing a message and moving say what they did: a commit is sent again until its outcome is known."""
    unknown = {"code": 64, "errmsg": "waiting for replication timed out"}

    async def told(call: Awaitable[Any]) -> Any:
        with (
            failing_commands() as failing,
            failing({"times": 1}, "commitTransaction", writeConcernError=unknown),
        ):
            return await call

    talks: list[Conversation] = [await store.create_conversation(OWNER, NewConversation()) for _ in range(2)]
    (first, *_) = await store.append(OWNER, talks[0].id, numbered(3))
    assert await told(store.delete_message(OWNER, talks[0].id, first.id)) is True
    assert await told(store.delete_conversation(OWNER, talks[1].id)) is True
    assert await told(store.rename_owner(OWNER, OTHER)) == 1
    assert (await told(store.erase_owner(OTHER))).messages == 3
