"""Databases of earlier revisions on MongoDB: up, down, by many processes at once, beside one of the old revision."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from bson.int64 import Int64
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.asynchronous.database import AsyncDatabase
from pymongo.errors import DuplicateKeyError

from chatkeep import (
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    NewConversation,
    NotFound,
    Role,
    SchemaMismatch,
    Store,
    open_store,
)
from chatkeep.events import TurnEvent, reasoning, text
from chatkeep.providers import EXTRACTIVE_ID, NewLlmProvider
from chatkeep.stores.mongo.providers import extractive
from chatkeep.stores.mongo.schema import EARLIER, INDEXES, REVISIONS, VALIDATORS
from chatkeep.testing import user, whole_list
from chatkeep.turns import TurnKey, TurnWrite
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
    served = {"0003": "0002", "0004": "0003", "0005": "0004", "0006": "0005", "0007": "0006"}
    for revision in (*REVISIONS, *reversed(REVISIONS), "0006", "0001", "0003"):
        await migrate(url, revision)
        assert indexes(url, "conversations") == names(revision, "conversations") | {"mine"}
        assert indexes(url, "requests") == names(revision, "requests")
        assert indexes(url, "messages") == names(revision, "messages")
        there = raw(url).list_collection_names()
        since = {"projects": "0003", "turns": "0004", "documents": "0005", "chunks": "0005", "vectors": "0005"}
        since["erasures"] = "0007"
        assert [name in there for name in since] == [revision >= each for each in since.values()]
        for name in ("projects", "documents", "chunks", "vectors", "erasures"):
            assert name not in there or indexes(url, name) == names(revision, name)
        note = {"_id": "schema", "revision": revision}
        note |= {"served_from": served[revision]} if revision in served else {}
        assert raw(url).chatkeep_schema.find_one({"_id": "schema"}) == note
    assert names("0001", "conversations") ^ names("0002", "conversations") == {"by_context", "in_context"}
    assert names("0003", "messages") ^ names("0004", "messages") == {"by_model"}
    new = {"by_external_id", "by_project", "labels", "slots"}
    assert names("0002", "conversations") ^ names("0003", "conversations") == new | {"slot"}
    assert names("0005", "conversations") ^ names("0006", "conversations") == {"by_provider"}
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


@pytest.mark.long
async def test_a_process_of_the_old_revision_goes_on(url: str) -> None:
    """While and after others migrate, at once, a process that had opened the database before reads and writes."""
    await migrate(url, "0002")
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


async def test_documents_of_the_old_revision_go_on(url: str) -> None:
    """What a process of the revision before writes now is what a new one reads; neither takes the other's slot."""
    await migrate(url, "0004")
    async with open_store(url) as store:
        await store.get_or_create_conversation(OWNER, NewConversation(context_id="c"))
        old = raw(url).conversations.find_one()
        raw(url).conversations.delete_many({})
        known = {
            "title",
            "context_id",
            "external_id",
            "metadata",
            "last_seq",
            "head_seq",
            "head_id",
            "runs",
            "straight",
        }
        known |= {"_id", "owner_id", "id", "fingerprint", "created_at", "updated_at", "slot"}
        assert old.keys() == known
        raw(url).conversations.insert_one(old)
        found = await store.get_or_create_conversation(OWNER, NewConversation(context_id="c"))
        assert (found.id, found.labels, found.project_id) == (old["id"], (), None)
        with pytest.raises(DuplicateKeyError):
            raw(url).conversations.insert_one({**old, "_id": {"o": OWNER, "c": uuid4()}, "id": uuid4()})


@pytest.mark.long
async def test_validators_are_changed(url: str) -> None:
    """Those of the revision before refuse what a new process writes: collections that are there get the new ones."""
    before = {"$jsonSchema": {"required": ["_id", "role"], "properties": {"status": {"enum": ["complete"]}}}}
    raw(url).drop_collection("messages")
    raw(url).create_collection("messages", validator=before)
    await asyncio.gather(*(migrate(url, "head") for _ in range(2)))
    found = {each["name"]: each["options"].get("validator") for each in raw(url).list_collections()}
    assert {name: found[name] for name in VALIDATORS} == VALIDATORS
    await full(url)


async def full(url: str) -> UUID:
    """Fill a database with everything that is new since 0002, and a turn if it is of 0004; return the project."""
    project = uuid4()
    async with open_store(url, migrate=False) as store:
        for context in ("c", None):
            new = ImportedConversation(project_id=project, context_id=context, labels=["a"], external_id="x")
            message = ImportedMessage(role=Role.ASSISTANT, parts=[{"type": "text", "text": "tea"}], input_tokens=1)
            await store.import_conversation(OWNER, new, [message])
        for scope in ({"project_id": project}, {}, {"context_id": "c"}, {"context_id": "d", "project_id": project}):
            await store.get_or_create_conversation(OWNER, NewConversation(**scope))
        talk = await store.create_conversation(OWNER, NewConversation(title="t"))
        if (await store.schema_revision() or "") >= "0004":
            turn = await store.turns.start_turn(OWNER, talk.id, user("$sage?"), worker=talk.id)
            write = TurnWrite(TurnKey(OWNER, talk.id, turn.answer.id), EVENTS)
            await store.turns.append_turn_events(talk.id, [write])
    raw(url).conversations.update_one({"context_id": "d"}, {"$set": {"context_id": "c"}})
    raw(url).messages.update_one({"seq": 1}, {"$set": {"status": "in_progress"}})
    return project


EVENTS = [TurnEvent(n, *event) for n, event in enumerate((text("$a "), reasoning("hm"), text("herb")), 1)]


def every_second(count: int) -> list[Any]:
    """The numbers of steps that are cut off: the odd ones in `make apart`."""
    return [pytest.param(step, marks=pytest.mark.apart if step % 2 else ()) for step in range(count)]


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("step", every_second(14))
@pytest.mark.parametrize("way", ["up", "down"])
async def test_migration_that_is_killed(url: str, monkeypatch: pytest.MonkeyPatch, way: str, step: int) -> None:
    """After any command the database is of one of the two revisions, and the migration ends when it is made again."""
    before, after = ("0002", "0003") if way == "up" else ("0003", "0002")
    await migrate(url, "0003")
    await full(url)
    if way == "up":
        await migrate(url, "0002")
    if step < await kill(url, after, step, monkeypatch):
        noted = raw(url).chatkeep_schema.find_one({"_id": "schema"})["revision"]
        assert noted in (before, after)
        if noted == "0002":  # whose processes know nothing of these
            assert raw(url).messages.count_documents({"status": "in_progress"}) == 0
        if noted == "0003":  # whose lists name their index
            assert indexes(url, "conversations") >= names("0003", "conversations")
        async with open_store(url, migrate=False) as store:
            for _ in range(2):
                await store.get_or_create_conversation(OWNER, NewConversation(context_id="e"))
            assert raw(url).conversations.count_documents({"context_id": "e"}) == 1
    await migrate(url, "0003")
    await migrate(url, after)
    assert indexes(url, "conversations") == names(after, "conversations")
    async with open_store(url) as store:
        assert len(await whole_list(store, OWNER)) >= 6


async def kill(url: str, target: str, step: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Migrate, and be killed after so many commands that write; return how many there were."""
    done = 0

    def counted(method: Any) -> Any:
        async def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            result = await method(*arguments, **options)
            done += 1
            if done == step + 1:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        for kind, methods in COMMANDS.items():
            for name in methods:
                patch.setattr(kind, name, counted(getattr(kind, name)))
        with suppress(Killed):
            await migrate(url, target)
    return done


@pytest.mark.parametrize("step", every_second(12))
@pytest.mark.parametrize("target", ["0003", "0002"])
async def test_turns_end_with_the_revision(url: str, monkeypatch: pytest.MonkeyPatch, target: str, step: int) -> None:
    """An earlier revision has the answer as far as it was made, to be indexed; also if the migration is killed."""
    await migrate(url, "0004")
    await full(url)
    done = await kill(url, target, step, monkeypatch)
    noted = raw(url).chatkeep_schema.find_one({"_id": "schema"})["revision"]
    if noted == "0004":
        assert indexes(url, "messages") >= names("0004", "messages")
        assert {"turns", "turn_events"} <= set(raw(url).list_collection_names())
    if noted == target:
        assert raw(url).messages.count_documents({"status": "in_progress"}) == 0
    assert noted == target or step < done
    await migrate(url, target)
    answer = raw(url).messages.find_one({"content": "$a herb"})
    assert (answer["status"], answer["unindexed"]) == ("interrupted", True)
    assert ("parts" in answer) is (target == "0003")
    assert raw(url).turns.count_documents({}) == raw(url).turn_events.count_documents({}) == 0
    assert step < done or "turns" not in raw(url).list_collection_names()
    async with open_store(url) as store:
        assert [hit.message.content for hit in (await store.search_messages(OWNER, "herb")).items] == ["$a herb"]


COMMANDS = {
    AsyncCollection: ("create_indexes", "drop_index", "update_one", "update_many", "delete_one"),
    AsyncDatabase: ("create_collection", "drop_collection"),
}


async def with_providers(url: str) -> tuple[UUID, dict[str, Any]]:
    """Fill a database of 0006 with providers, one of which is being replaced; return that, and what stays."""
    new = NewLlmProvider(provider_name="ollama", model_name="m", is_default=True)
    async with open_store(url, migrate=False) as store:
        gone, kept = [(await store.providers.create_provider(new)).id for _ in range(2)]
        await store.create_conversation(OWNER, NewConversation(llm_provider_id=gone))
        talk = await store.create_conversation(OWNER, NewConversation(title="t", llm_provider_id=kept))
        await store.update_conversation(OWNER, talk.id, ConversationChange(llm_provider_id=kept))
    raw(url).llm_providers.update_one({"_id": gone}, {"$set": {"replaced_by": kept}})
    return gone, raw(url).llm_providers.find_one({"_id": kept})


@pytest.mark.parametrize("step", [0, 1, *range(11, 16)])
async def test_upgrade_to_providers_that_is_killed(url: str, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """After any command the database is of one of the two, and of 0006 only with its default and its index."""
    await migrate(url, "0005")
    done = await kill(url, "0006", step, monkeypatch)
    if raw(url).chatkeep_schema.find_one({"_id": "schema"})["revision"] == "0006":
        assert raw(url).llm_providers.count_documents({"is_default": True}) == 1
        assert "by_provider" in indexes(url, "conversations")
    else:
        assert done == step + 1
    await migrate(url, "0006")
    async with open_store(url) as store:
        (provider,) = await store.providers.list_providers()
        assert (provider.id, provider.model_name, provider.is_default) == (EXTRACTIVE_ID, "extractive", True)
        await store.create_conversation(OWNER, NewConversation(llm_provider_id=EXTRACTIVE_ID))


@pytest.mark.parametrize("step", range(10))
async def test_downgrade_from_providers_that_is_killed(url: str, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Providers stay, without what 0005 does not know; a removal that was cut off is finished, so that none returns."""
    await migrate(url, "0006")
    gone, kept = await with_providers(url)
    done = await kill(url, "0005", step, monkeypatch)
    if raw(url).chatkeep_schema.find_one({"_id": "schema"})["revision"] == "0006":
        assert "by_provider" in indexes(url, "conversations")
    await migrate(url, "0005")
    assert step < done or indexes(url, "conversations") == names("0005", "conversations")
    assert {each["llm_provider_id"] for each in raw(url).conversations.find()} == {kept["_id"]}
    new = ("fingerprint", "locks")
    assert set(new) <= kept.keys()
    left = {name: value for name, value in kept.items() if name not in new}
    assert list(raw(url).llm_providers.find({"_id": {"$ne": EXTRACTIVE_ID}})) == [left]
    assert [each["_id"] for each in raw(url).chatkeep_schema.find()] == ["schema"]
    await migrate(url, "0006")
    assert [each["_id"] for each in raw(url).llm_providers.find({"is_default": True})] == [kept["_id"]]
    assert raw(url).llm_providers.count_documents({"_id": gone}) == 0


async def test_processes_make_one_default(url: str) -> None:
    """Of several that upgrade at once; a provider that is there with this id becomes it."""
    await migrate(url, "0005")
    for left in ([], [{**extractive(), "is_default": False, "model_name": "m"}]):
        if left:
            await migrate(url, "0005")
            raw(url).llm_providers.delete_many({})
            raw(url).llm_providers.insert_many(left)
        await asyncio.gather(*(migrate(url, "0006") for _ in range(3)))
        (found,) = raw(url).llm_providers.find()
        assert (found["_id"], found["is_default"]) == (EXTRACTIVE_ID, True)
        assert found["model_name"] == ("m" if left else "extractive")


async def test_an_earlier_revision_has_nothing_of_the_newer(url: str) -> None:
    """Downgrading removes what the earlier one would not remove with the rest, and ends what is in progress."""
    await migrate(url, "0004")
    project = await full(url)
    await migrate(url, "0002")
    for collection, fields in {
        "conversations": ("project_id", "labels", "llm_provider_id"),
        "messages": ("parts", "model", "input_tokens"),
    }.items():
        for field in fields:
            assert raw(url)[collection].count_documents({field: {"$exists": True}}) == 0
    assert {each["status"] for each in raw(url).messages.find()} == {"interrupted", "complete"}
    contexts = [each["context_id"] for each in raw(url).conversations.find({"slot": True})]
    assert sorted(map(str, contexts)) == ["None", "c"]
    async with open_store(url) as store:
        assert {each.project_id for each in await whole_list(store, OWNER)} == {None}
        with pytest.raises(NotFound, match="project"):
            await store.create_conversation(OWNER, NewConversation(project_id=project))


async def test_a_newer_schema_that_serves_this_revision(url: str) -> None:
    """During a rolling upgrade: it is used as it is, and not migrated; other newer ones are refused."""
    await migrate(url, "0007")
    notes = raw(url).chatkeep_schema
    notes.update_one({"_id": "schema"}, {"$set": {"revision": "0008", "served_from": "0007"}})
    async with open_store(url) as store:
        await store.ping()
        await store.create_conversation(OWNER, NewConversation())
        assert await store.schema_revision() == "0008"
    assert notes.find_one({"_id": "schema"})["revision"] == "0008"
    notes.update_one({"_id": "schema"}, {"$set": {"served_from": "0008"}})
    with pytest.raises(SchemaMismatch, match="newer schema"):
        await open_store(url)
    async with open_store(url, migrate=False) as store:
        with pytest.raises(SchemaMismatch):
            await store.ping()
