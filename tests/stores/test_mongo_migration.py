"""Databases of earlier revisions on MongoDB: up, down, by many processes at once, beside one of the old revision."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from bson.int64 import Int64

from chatkeep import NewConversation, Store, open_store
from chatkeep.stores.mongo.schema import EARLIER, INDEXES
from chatkeep.testing import user, whole_list
from chatkeep.values import now, to_micros
from servers.mongo import mongo_databases

OWNER = "ada"


@pytest.fixture
def url() -> Iterator[str]:
    """A database of revision 0001."""
    url = mongo_databases().empty()
    asyncio.run(migrate(url, "0001"))
    yield url
    raw(url).client.drop_database(raw(url).name)


async def migrate(url: str, revision: str) -> None:
    """Bring a database to a revision."""
    async with open_store(url, migrate=False) as store:
        await store.migrate(revision)


def raw(url: str) -> Any:
    """The database, without chatkeep."""
    return mongo_databases().database(url)


def indexes(url: str, collection: str) -> set[str]:
    """The names of the indexes."""
    return set(raw(url)[collection].index_information()) - {"_id_"}


def names(revision: str, collection: str) -> set[str]:
    """The names of the indexes that a revision has."""
    return {index.document["name"] for index in EARLIER.get(revision, {}).get(collection, INDEXES[collection])}


async def talks(store: Store) -> list[str | None]:
    """The titles in the list of a context and in the whole list."""
    context = await store.list_conversations(OWNER, context_id="c")
    return [talk.title for talk in (*context.items, *await whole_list(store, OWNER))]


async def test_indexes_of_each_revision(url: str) -> None:
    """Up and down bring the indexes of the revision, and leave those that somebody else made."""
    raw(url).conversations.create_index("title", name="mine")
    for revision in ("0001", "0002", "0001", "0002"):
        await migrate(url, revision)
        assert indexes(url, "conversations") == names(revision, "conversations") | {"mine"}
        assert indexes(url, "requests") == names(revision, "requests")
    assert names("0001", "conversations") ^ names("0002", "conversations") == {"by_context", "in_context"}
    await migrate(url, "base")
    assert raw(url).list_collection_names() == []


async def test_conversations_come_back_from_the_future(url: str) -> None:
    """What an import put into the future is as old as it is; everything else stays as it was."""
    async with open_store(url, migrate=False) as store:
        late = await store.create_conversation(OWNER, NewConversation(title="late"))
        other = await store.create_conversation(OWNER, NewConversation(title="other"))
    future = Int64(to_micros(now() + timedelta(days=900)))
    raw(url).conversations.update_one({"id": late.id}, {"$set": {"updated_at": future}})
    async with open_store(url) as store:
        assert await whole_list(store, OWNER) == [other, late]


async def test_a_process_of_the_old_revision_goes_on(url: str) -> None:
    """While and after others migrate, at once, a process that had opened the database before reads and writes."""
    async with open_store(url, migrate=False) as old:
        talk = await old.create_conversation(OWNER, NewConversation(title="old", context_id="c"))
        stores = [open_store(url) for _ in range(3)]
        opened = asyncio.gather(*(store.__aenter__() for store in stores))
        while not opened.done():
            await old.append(OWNER, talk.id, [user("tea")])
            assert await talks(old) == ["old", "old"]
        for store in await opened:
            await store.ping()
            await store.aclose()
        assert await talks(old) == ["old", "old"]
        new = NewConversation(context_id="c")
        assert (await old.get_or_create_conversation(OWNER, new)).id == talk.id
