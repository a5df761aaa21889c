"""The store in MongoDB: what the server enforces, what is sent to it, conflicts, crashes, many processes."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import bson
import pytest
from benchmarks.mongodb_server import Mongod
from benchmarks.torture_mongodb import Plan, torture
from mongo_commands import Commands, Failing, commands_sent, failing_commands
from pymongo import monitoring
from pymongo.errors import BulkWriteError, DuplicateKeyError, WriteError

from chatkeep import (
    Conflict,
    Conversation,
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    InvalidInput,
    NewConversation,
    NewMessage,
    NotFound,
    NotYours,
    Role,
    SchemaMismatch,
    Store,
    StoreUnavailable,
    TurnInProgress,
    UnsafeDatabase,
    open_store,
)
from chatkeep.documents import ChunkRange, NewChunk, NewDocument
from chatkeep.events import EventKind, TurnEvent, fold, reasoning, text
from chatkeep.model import Status
from chatkeep.projects import NewProject, ProjectChange
from chatkeep.providers import EXTRACTIVE_ID, ApiConfig, LlmProviderChange, NewLlmProvider
from chatkeep.recorder import Recorder
from chatkeep.stores import time_limit
from chatkeep.stores.mongo import append, conversations, documents, rows
from chatkeep.stores.mongo.rows import MongoRows
from chatkeep.stores.mongo.schema import INDEXES, VALIDATORS
from chatkeep.stores.mongo.store import MongoStore
from chatkeep.testing import (
    CONVERSATION_CALLS,
    OWNER_CALLS,
    assistant,
    contents,
    dense,
    numbered,
    seqs,
    user,
    whole_history,
    whole_list,
    whole_log,
    whole_search,
)
from chatkeep.turns import Ending, TurnKey, TurnPlace, TurnWrite
from chatkeep.values import now
from servers.mongo import mongo_databases

OWNER = "ada"


class PoolListener(monitoring.ConnectionPoolListener):
    """Remembers how many seconds operations waited for a connection of the driver's pool."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def connection_checked_out(self, event: monitoring.ConnectionCheckedOutEvent) -> None:
        """An operation has a connection."""
        self.waits.append(event.duration or 0)

    def connection_check_out_failed(self, event: monitoring.ConnectionCheckOutFailedEvent) -> None:
        """An operation waited in vain."""
        self.waits.append(event.duration or 0)

    def _other(self, event: object) -> None:
        """Something else happened to a pool."""

    pool_created = pool_ready = pool_cleared = pool_closed = _other
    connection_created = connection_ready = connection_closed = _other
    connection_check_out_started = connection_checked_in = _other


POOL_LISTENER = PoolListener()
monitoring.register(POOL_LISTENER)


@pytest.fixture
def waits() -> list[float]:
    """How long the operations of this test wait for the driver."""
    POOL_LISTENER.waits = []
    return POOL_LISTENER.waits


@pytest.fixture
def sent() -> Iterator[Commands]:
    """Every command that the stores of this test send, in order."""
    with commands_sent() as sent:
        yield sent


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return mongo_databases().clean()


@pytest.fixture
def empty_url() -> Iterator[str]:
    """A database without a schema."""
    url = mongo_databases().empty()
    yield url
    raw(url).client.drop_database(raw(url).name)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


@pytest.fixture
async def talk(store: Store) -> Conversation:
    """A conversation with three messages."""
    talk = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, talk.id, numbered(3))
    return talk


@pytest.fixture
def failing() -> Iterator[Failing]:
    """Make the server fail commands."""
    with failing_commands() as failing:
        yield failing


CONFLICT = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}
"""What the loser of two transactions gets."""


def raw(url: str) -> Any:
    """The database, without chatkeep."""
    return mongo_databases().database(url)


def parts(store: Store) -> MongoStore:
    """The store with what is inside."""
    assert isinstance(store, MongoStore)
    return store


# --- what the server enforces ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("collection", "values"),
    [
        ("messages", {"role": "wizard"}),
        ("messages", {"status": "half"}),
        ("messages", {"seq": 0}),
        ("messages", {"seq": "9"}),
        ("messages", {"depth": 0}),
        ("messages", {"content": None}),
        ("messages", {"created_at": 1.5}),
        ("messages", {"metadata": {"a": 1}}),
        ("messages", {"owner_id": 7}),
        ("conversations", {"metadata": None}),
        ("conversations", {"last_seq": -1}),
        ("conversations", {"title": 3}),
        ("conversations", {"updated_at": "now"}),
        ("conversations", {"slot": False}),
        ("users", {"owner_id": None}),
    ],
)
async def test_validators_refuse(url: str, talk: Conversation, collection: str, values: dict[str, Any]) -> None:
    """Roles, statuses and types are the database's own rules, for new documents and for changed ones."""
    good = raw(url)[collection].find_one({})
    again = {**good, "_id": {"o": "x"}, "owner_id": "x"}
    with pytest.raises(WriteError) as caught:
        raw(url)[collection].insert_one({**again, **values})
    assert caught.value.code == 121
    with pytest.raises(WriteError):
        raw(url)[collection].update_one({"_id": good["_id"]}, {"$set": values})
    for name in values:
        if name in VALIDATORS[collection]["$jsonSchema"]["required"]:
            with pytest.raises(WriteError):
                raw(url)[collection].insert_one({key: value for key, value in again.items() if key != name})
    raw(url)[collection].insert_one(again)  # what the others vary is accepted as it stands


async def test_unique_indexes_refuse(url: str, store: Store, talk: Conversation) -> None:
    """A seq is used once in a conversation, a slot once in a context: also when somebody else writes."""
    message = raw(url).messages.find_one({"seq": 2})
    with pytest.raises(DuplicateKeyError):
        raw(url).messages.insert_one({**message, "_id": {"o": OWNER, "c": talk.id, "m": uuid4()}})
    await store.get_or_create_conversation(OWNER, NewConversation(context_id="c"))
    slot = raw(url).conversations.find_one({"slot": True})
    with pytest.raises(DuplicateKeyError):
        raw(url).conversations.insert_one({**slot, "_id": {"o": OWNER, "c": uuid4()}, "id": uuid4()})
    with pytest.raises(BulkWriteError):
        raw(url).messages.insert_many([{**message, "_id": {"o": OWNER, "c": talk.id, "m": uuid4()}}])


async def test_times_are_int64_microseconds(url: str, store: Store, talk: Conversation) -> None:
    """Times are numbers of microseconds, which BSON's dates would cut to milliseconds; identities name the owner."""
    (message,) = await store.append(OWNER, talk.id, [user("tea", sent_at="2024-05-06T07:08:09.123457Z")])
    found = raw(url).messages.find_one({"_id": {"o": OWNER, "c": talk.id, "m": message.id}})
    assert found["sent_at"] == 1_714_979_289_123_457
    assert found["owner_id"] == OWNER
    assert raw(url).conversations.find_one({"_id": {"o": OWNER, "c": talk.id}})["last_seq"] == 4


@pytest.mark.parametrize("text", ["$owner_id", "$$ROOT", "$", "a.b", "\0", "{$gt: 0}", "$set"])
async def test_text_is_never_evaluated(store: Store, text: str) -> None:
    """Text that means something in a query or a pipeline is text, the owner's too."""
    new = NewConversation(title=text, context_id=text, metadata={text: text})
    talk = await store.create_conversation(text, new)
    await store.append(text, talk.id, [user(text, metadata={text: {text: 1}})])
    await store.append(text, talk.id, [assistant(text), assistant(text)])
    assert contents(await whole_history(store, text, talk.id)) == [text] * 3
    read = await store.update_conversation(text, talk.id, ConversationChange(title=text, metadata={text: text}))
    assert (read.title, read.context_id, read.metadata, read.owner_id) == (text, text, {text: text}, text)
    assert (await store.get_or_create_conversation(text, NewConversation(context_id=text))).id == talk.id
    assert (await store.erase_owner(text)).messages == 3


# --- sizes -----------------------------------------------------------------------------------------------


async def test_messages_of_one_megabyte(store: Store, talk: Conversation) -> None:
    """Long answers are kept whole, several at once and several in one append."""
    texts = [f"{number} " + "tea leaf 茶 " * 80_000 for number in range(4)]
    assert len(texts[0].encode()) > 1_000_000
    await asyncio.gather(*(store.append(OWNER, talk.id, [assistant(text)]) for text in texts[:2]))
    await store.append(OWNER, talk.id, [assistant(text) for text in texts[2:]])
    log = await whole_log(store, OWNER, talk.id)
    assert sorted(contents(log)[3:]) == texts


@pytest.mark.parametrize("content", ["x" * (16 << 20), "茶" * (6 << 20), "a b " * (4 << 20)])
async def test_message_above_the_limit(store: Store, talk: Conversation, content: str) -> None:
    """What MongoDB cannot hold in one document is refused, with the limit, and nothing is stored."""
    too_long, neighbour = assistant(content), assistant("short")
    for batch in ([too_long], [neighbour, too_long]):
        with pytest.raises(InvalidInput, match="16 MB"):
            await store.append(OWNER, talk.id, batch)
    assert len(await store.log(OWNER, talk.id)) == 3


async def test_message_just_below_the_limit(url: str) -> None:
    """Fifteen megabytes are stored and come back."""
    async with open_store(url, search="off") as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, [assistant("x" * (15 << 20))])
        assert len((await store.log(OWNER, talk.id))[0].content) == 15 << 20


# --- opening ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "error", "reason"),
    [
        (
            "mongodb://zq7user:zq7pass@127.0.0.1:1/chat?serverSelectionTimeoutMS=200",
            StoreUnavailable,
            "cannot be reach",
        ),
        ("mongodb://zq7user:zq7pass@127.0.0.1:1", InvalidInput, "names a database"),
        ("mongodb://zq7user:zq7pass@127.0.0.1:zq7/chat", InvalidInput, "must look like mongodb://"),
        ("mongodb://zq7user:zq7pass@127.0.0.1/a$b", InvalidInput, "not one of a MongoDB database"),
        ("mongodb://zq7user:zq7pass@127.0.0.1/chat?w=1", InvalidInput, "durability=relaxed"),
    ],
)
async def test_opening_what_is_not_there(
    url: str, error: type[Exception], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors say what is wrong and never hold the password."""
    with pytest.raises(error, match=reason) as caught:
        await open_store(url)
    assert "zq7pass" not in f"{caught.value!r} {caught.value} {caplog.text}"


@pytest.mark.parametrize("weak", ["w=1", "w=2", "journal=false", "readConcernLevel=local", "readPreference=secondary"])
async def test_weak_concerns_are_refused(url: str, weak: str) -> None:
    """A URL that would lose or hide what was acknowledged is refused unless that is asked for."""
    mark = "&" if "?" in url else "?"
    with pytest.raises(InvalidInput, match="durability=relaxed"):
        await open_store(f"{url}{mark}{weak}")
    if weak not in ("w=2", "readPreference=secondary"):  # which one node cannot serve
        async with open_store(f"{url}{mark}{weak}&durability=relaxed") as store:
            talk = await store.create_conversation(OWNER, NewConversation())
            assert seqs(await store.append(OWNER, talk.id, numbered(2))) == dense(2)


async def test_unacknowledged_writes_are_always_refused(url: str) -> None:
    """With w=0 nobody would know what is stored."""
    mark = "&" if "?" in url else "?"
    with pytest.raises(InvalidInput, match="w=0"):
        await open_store(f"{url}{mark}w=0&durability=relaxed")


async def test_concerns_that_are_sent(url: str, sent: Commands) -> None:
    """Every write and commit asks for the majority's journals, every read for what the majority has."""
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, numbered(1))
        await store.history(OWNER, talk.id)
    durable = {"w": "majority", "j": True}
    named = [(next(iter(command)), command) for command in sent]
    assert [dict(c["writeConcern"]) for name, c in named if name == "commitTransaction"].count(durable) >= 2
    outside = [c for name, c in named if name in ("insert", "update", "delete") and "txnNumber" not in c]
    outside += [c for name, c in named if name in ("insert", "update") and "autocommit" not in c]
    assert outside
    assert all(dict(c["writeConcern"]) == durable for c in outside)
    reads = [c for name, c in named if name == "find" and "autocommit" not in c]
    assert reads
    assert all(c["readConcern"]["level"] == "majority" for c in reads)
    begun = [c for _, c in named if c.get("startTransaction")]
    assert all(c["readConcern"]["level"] == "snapshot" for c in begun)


async def test_server_without_transactions_is_refused(url: str, failing: Failing) -> None:
    """A standalone server answers the first transaction with code 20: the error says how to make it a replica set."""
    with (
        failing("alwaysOn", "find", errorCode=20),
        pytest.raises(UnsafeDatabase, match=r"--replSet rs0.*rs\.initiate\(\)"),
    ):
        await open_store(url)
    async with open_store(url):
        pass


# --- the schema ------------------------------------------------------------------------------------------


def objects(url: str) -> dict[str, Any]:
    """Everything in the schema."""
    found = {each["name"]: each.get("options", {}).get("validator") for each in raw(url).list_collections()}
    return {name: (validator, sorted(raw(url)[name].index_information())) for name, validator in found.items()}


async def test_schema_goes_up_and_down(empty_url: str) -> None:
    """Down leaves nothing behind, and up again makes the same schema as a new database has; twice changes nothing."""
    async with open_store(empty_url, migrate=False) as store:
        assert await store.schema_revision() is None
        for call in (*CONVERSATION_CALLS.values(), *OWNER_CALLS.values()):
            with pytest.raises(SchemaMismatch, match="db upgrade"):
                await call(store, OWNER, uuid4(), uuid4())
        with pytest.raises(SchemaMismatch):
            await store.ping()
        assert objects(empty_url) == {}
        await store.migrate()
        first = objects(empty_url)
        await store.migrate()
        assert objects(empty_url) == first
        await store.ping()
        await store.migrate("base")
        assert objects(empty_url) == {}
        await store.migrate()
        assert objects(empty_url) == first
        with pytest.raises(SchemaMismatch, match="0001, 0002, 0003, 0004, 0005, 0006, 0007"):
            await store.migrate("0008")
    for name, validator in VALIDATORS.items():
        assert first[name] == (validator, sorted(["_id_", *(index.document["name"] for index in INDEXES[name])]))


async def test_newer_schema_is_refused(empty_url: str) -> None:
    """A database that a newer chatkeep has migrated is not touched."""
    raw(empty_url).chatkeep_schema.insert_one({"_id": "schema", "revision": "9999"})
    with pytest.raises(SchemaMismatch, match="newer schema"):
        await open_store(empty_url)
    assert set(objects(empty_url)) == {"chatkeep_schema"}


async def test_migration_that_was_cut_off_is_finished(empty_url: str) -> None:
    """Collections and indexes that an earlier migration made are left, the others are made."""
    raw(empty_url).create_collection("conversations", validator=VALIDATORS["conversations"])
    raw(empty_url).conversations.create_indexes(INDEXES["conversations"][:2])
    async with open_store(empty_url) as store:
        await store.ping()
    assert set(objects(empty_url)) == {*VALIDATORS, "chatkeep_schema"}


@pytest.mark.long
@pytest.mark.parametrize("processes", [3, pytest.param(6, marks=pytest.mark.apart)])
def test_processes_migrate_at_once(empty_url: str, processes: int) -> None:
    """Of several that begin together each ends well."""
    command = [sys.executable, "-m", "chatkeep", "db", "upgrade", "--database-url", empty_url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(processes)]
    ended = [(process.communicate()[0].decode(), process.returncode) for process in running]
    assert [code for _, code in ended] == [0] * processes, ended
    command[4] = "status"
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "revision 0007, newest 0007" in done.stdout) == (0, True), done


async def test_messages_without_words_are_indexed_when_search_is_on(url: str) -> None:
    """What was stored with search=off is found after the next opening with search on."""
    async with open_store(url, search="off") as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, [assistant(f"pebble {number}") for number in range(600)])
        await store.delete_message(OWNER, talk.id, (await store.log(OWNER, talk.id))[0].id)
        with pytest.raises(InvalidInput, match="search=off"):
            await store.search_messages(OWNER, "pebble")
    async with open_store(url) as store:
        assert len(await whole_search(store, OWNER, "pebble", limit=1_000)) == 599
    assert raw(url).messages.count_documents({"unindexed": True}) == 0


# --- what is sent ----------------------------------------------------------------------------------------


def is_of_no_owner(command: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """The commands that need not name an owner: why they are asked stands behind each."""
    name, collection = next(iter(command.items()))
    return (
        collection == "chatkeep_schema"
        or (collection == "api_keys" and set(where) == {"_id"})  # before the owner is known
        or (collection == "api_keys" and name == "find" and where == {})  # the installation's keys
        or (name == "find" and set(where) == {"id", "deleted_at"})  # whether somebody else has it
        or (name == "find" and where == {"deleted_at": {"$gt": 0}})  # when it is opened
        or (name == "find" and where == {"unindexed": True})  # when it is opened
        or (name == "find" and where == {"has_rubbish": True})  # when it is opened
        or (name == "find" and collection == "conversations" and where == {})  # when it is opened, with an older rule
        or collection == "llm_providers"  # the installation's
        or (collection == "erasures" and set(where) == {"_id"})  # a hash is all that is known of the owner
        or (name == "find" and set(where) == {"llm_provider_id"})  # who names one
        or (name == "aggregate" and collection == "turns" and where == {})  # the sweep, for processes that are gone
    )


def filters(command: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What a command selects, and the documents that it inserts."""
    if "pipeline" in command:
        return [command["pipeline"][0]["$match"]]
    many = [*command.get("updates", ()), *command.get("deletes", ())]
    found = [each["q"] for each in many] + [command[key] for key in ("filter", "query") if key in command]
    return [*(part for where in found for part in parts_of(where)), *command.get("documents", ())]


def parts_of(where: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A filter, or each of those that it consists of."""
    return list(where["$or"]) if set(where) == {"$or"} else [where]


def behind_mongos(store: Store) -> None:
    """Let a store believe that its server is a mongos."""
    database = parts(store)._database
    assert database._view is not None
    database._view = replace(database._view, sharded=True)


async def use_everything(store: Store, owner: str, other: str) -> None:
    """Call every method of both ports, with what is there and with what is not."""
    talk = await store.create_conversation(owner, NewConversation(context_id="c"))
    stored = await store.append(owner, talk.id, numbered(6))
    await store.append(owner, talk.id, [user("a branch", parent_id=stored[1].id)])
    await asyncio.gather(*(store.append(owner, talk.id, [user(f"tea {n}", id=uuid4())]) for n in range(5)))
    imported = await store.create_conversation(owner, NewConversation())
    await store.append(owner, imported.id, [ImportedMessage(role=Role.USER, content="old")])
    await whole_list(store, owner, limit=1)
    await whole_list(store, owner, limit=1, order="id")
    await use_labels_and_projects(store, owner)
    await store.list_conversations(owner, context_id="c", total=True)
    await whole_history(store, owner, talk.id, limit=2)
    await whole_history(store, owner, talk.id, limit=2, order="asc")
    await store.history(owner, talk.id, total=True, leaf=stored[3].id)
    await whole_search(store, owner, "tea turn", limit=2)
    await whole_search(store, owner, "tea", limit=2)
    await store.create_conversation(owner, NewConversation(external_id="tea"))
    await use_turns(store, owner)
    await use_documents(store, owner)
    await use_providers(store, owner)
    for calls in (CONVERSATION_CALLS, OWNER_CALLS):
        for name, call in calls.items():
            if not name.startswith(("delete", "erase", "rename")):
                await call(store, owner, talk.id, stored[0].id)
                if calls is CONVERSATION_CALLS:
                    with pytest.raises(NotYours):
                        await call(store, other, talk.id, stored[0].id)
    access = store.access
    await access.begin_request(owner, "k", b"f" * 32)
    await access.abandon_request(owner, "k")
    await store.rename_owner(owner, other)
    await store.delete_message(other, talk.id, stored[0].id)
    await store.delete_conversation(other, imported.id)
    receipt = await store.erase_owner(other)
    assert await store.access.erased_at(other) == receipt.erased_at


async def use_turns(store: Store, owner: str) -> None:
    """Answer, follow, stop, finish and close; two turns run on."""
    worker, turns = uuid4(), store.turns
    begun = []
    for number in range(4):
        talk = await store.create_conversation(owner, NewConversation())
        lease = timedelta(milliseconds=1 if number > 2 else 60_000)
        turn = await turns.start_turn(owner, talk.id, user("$sage?"), worker=worker, lease=lease)
        begun.append(TurnKey(owner, talk.id, turn.answer.id))
        with pytest.raises(TurnInProgress if number < 3 else InvalidInput):
            await turns.start_turn(owner, talk.id, user("mint?") if number < 3 else assistant("no"), worker=worker)
    pieces = [TurnEvent(n, *event) for n, event in enumerate([text("$a"), reasoning("$$NOW", signature="s")], 1)]
    await turns.append_turn_events(worker, [TurnWrite(key, pieces) for key in begun[:3]])
    await turns.append_turn_events(worker, [TurnWrite(key) for key in begun[:3]])
    await turns.turn_events([TurnPlace(key) for key in begun])
    await whole_history(store, owner, begun[0].conversation_id)
    await turns.stop_turn(*begun[0])
    await turns.finish_turn(*begun[0], Ending.of(fold(pieces), Status.INTERRUPTED), worker=worker)
    while not (await turns.turn_events([TurnPlace(begun[3])]))[0].has_expired:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    assert await turns.expire_turns() >= 1
    await use_resumed_turns(store, owner)
    await turns.answer_stats(owner, after=now() - timedelta(1), before=now())
    await store.delete_message(*begun[1])


async def use_resumed_turns(store: Store, owner: str) -> None:
    """Take over a turn of a worker that is gone."""
    talk = await store.create_conversation(owner, NewConversation())
    gone, other, moment = uuid4(), uuid4(), timedelta(milliseconds=1)
    turn = await store.turns.start_turn(owner, talk.id, user("$sage?"), worker=gone, lease=moment)
    key = TurnKey(owner, talk.id, turn.answer.id)
    state = TurnEvent(1, EventKind.STATE, {"$at": "$$NOW"})
    await store.turns.append_turn_events(gone, [TurnWrite(key, [state])], lease=moment)
    while not (await store.turns.turn_events([TurnPlace(key)]))[0].has_expired:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    resumed = await store.turns.resume_turn(*key, worker=other)
    assert resumed is not None
    assert resumed.events == [state]
    await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "$a"), worker=other)


async def use_documents(store: Store, owner: str) -> None:
    """Store, read, replace and delete documents of two projects; some of both are left."""
    projects, documents = store.projects, store.documents
    chunks = [NewChunk(f"$tea {n}", "#tea", "$Tea", n, b"$\0\0\0", b"$\0\0\0") for n in range(4)]
    made = [await projects.create_project(owner, NewProject(name="$kitchen", metadata={"a": n})) for n in range(3)]
    await projects.create_project(owner, NewProject(id=made[0].id, name="$kitchen", metadata={"a": 0}))
    for project in made:
        for path, sha256 in (("a.md", "0"), ("$b.md", "0"), ("c.md", "0"), ("a.md", "1")):
            new = NewDocument(file_path=path, media_type="text/markdown", bytes=1, sha256=64 * sha256)
            await documents.store_document(owner, project.id, new, chunks, space="$space")
    page = await projects.list_projects(owner, limit=1, total=True)
    await projects.list_projects(owner, limit=1, cursor=page.next)
    id_, worker = made[0].id, uuid4()
    await projects.update_project(owner, id_, ProjectChange(metadata={"b": 1}))
    listed = await documents.list_documents(owner, id_, limit=1, total=True)
    await documents.list_documents(owner, id_, limit=1, cursor=listed.next)
    content, *_, last = await documents.contents(owner, id_)
    await documents.contents(owner, id_, after=content.document_id)
    ranges = [ChunkRange(each.document_id, each.id, 0, 3) for each in (content, last)]
    await documents.index_entries(owner, id_, ranges, space="$space")
    await documents.chunks(owner, id_, ranges[:1])
    await documents.document_chunks(owner, id_, last.document_id)
    assert await documents.claim_embedding(owner, id_, worker)
    assert not await documents.claim_embedding(owner, id_, uuid4())
    assert await documents.without_vectors(owner, id_, content, "$other", limit=1)
    await documents.add_vectors(owner, id_, content, "$other", {0: b"$\0\0\0", 2: b"$\0\0\0"})
    assert [each.n for each in await documents.without_vectors(owner, id_, content, "$other")] == [1, 3]
    assert await documents.count_vectors(owner, id_, "$other") == {content.id: 2}
    await documents.use_space(owner, id_, "$other")
    assert await documents.nearest_chunks(owner, id_, "$other", b"$\0\0\0") is None
    await documents.delete_document(owner, id_, content.document_id)
    await store.create_conversation(owner, NewConversation(project_id=made[1].id))
    assert await projects.delete_project(owner, made[1].id)


async def use_providers(store: Store, owner: str) -> None:
    """Create, name, change, replace and delete providers."""
    providers, new = store.providers, NewLlmProvider(provider_name="ollama", model_name="$m")
    first, second = [await providers.create_provider(new) for _ in range(2)]
    talk = await store.create_conversation(owner, NewConversation(llm_provider_id=first.id))
    await store.update_conversation(owner, talk.id, ConversationChange(llm_provider_id=second.id))
    await store.get_or_create_conversation(owner, NewConversation(context_id="$p", llm_provider_id=first.id))
    await providers.update_provider(first.id, LlmProviderChange(is_default=True, api_config=ApiConfig(settings={})))
    with pytest.raises(Conflict):
        await providers.delete_provider(second.id)
    assert await providers.delete_provider(second.id, replacement=EXTRACTIVE_ID)
    assert await providers.delete_provider(first.id, replacement=EXTRACTIVE_ID)
    assert [each.id for each in await providers.list_providers()] == [EXTRACTIVE_ID]


async def use_labels_and_projects(store: Store, owner: str) -> None:
    """List by everything, and create what is there and what is not."""
    project = uuid4()
    new = ImportedConversation(project_id=project, labels=["a"], external_id="x", context_id="c")
    for _ in range(2):
        await store.import_conversation(owner, new)
    await store.get_or_create_conversation(owner, NewConversation(project_id=project))
    await store.get_or_create_conversation(owner, NewConversation(external_id="y"))
    found = await store.find_conversation(owner, "x")
    await store.export_conversation(owner, found.id)
    scopes: list[dict[str, Any]] = [{"project_id": project}, {"external_id": "x"}, {"context_id": "c"}, {}]
    for scope in scopes:
        for labels in ((), ["a"], ["!a"], ["nobody's"], ["a", "!b"]):
            await whole_list(store, owner, limit=1, labels=labels, **scope)
            await whole_list(store, owner, limit=1, labels=labels, order="id", **scope)
        await store.list_conversations(owner, updated_after=now() - timedelta(1), updated_before=now(), **scope)
        await store.list_conversations(owner, labels=["a"], total=True, **scope)
    await store.update_conversation(owner, found.id, ConversationChange(labels=["b"], context_id="d"))


def owners_of(where: Mapping[str, Any], *, sharded: bool) -> set[str | None]:
    """Whom a filter or a document names: beside its `_id`, or without shards in it."""
    found = where.get("owner_id")
    if found is None and not sharded:
        found = where.get("_id")
    several = found["$in"] if isinstance(found, Mapping) and "$in" in found else [found]
    return {each["o"] if isinstance(each, Mapping) else each for each in several}


@pytest.mark.parametrize("sharded", [False, True])
async def test_every_command_names_the_owner(url: str, sent: Commands, sharded: bool) -> None:
    """Each filter, each change and each new document names whose it is; behind mongos by what one shard is found by."""
    async with open_store(url, hide_foreign=False) as store:
        if sharded:
            behind_mongos(store)
        await use_everything(store, OWNER, "bob")
    seen = set()
    for command in sent:
        for where in filters(command):
            seen.add(next(iter(command.items())))
            if not is_of_no_owner(command, where):
                owners = owners_of(where, sharded=sharded)
                assert owners, command
                assert owners <= {OWNER, "bob"}, command
        assert not any("$where" in str(where) or "$expr" in str(where) for where in filters(command))
    assert {collection for _, collection in seen} >= {
        "conversations",
        "messages",
        "users",
        "requests",
        "api_keys",
        "projects",
        "turns",
        "turn_events",
        "documents",
        "chunks",
        "vectors",
        "llm_providers",
        "erasures",
    }
    assert {name for name, _ in seen} >= {"find", "insert", "update", "delete", "findAndModify", "aggregate"}


def serves(index: Mapping[str, int], where: Mapping[str, Any], by: Mapping[str, int]) -> bool:
    """Whether an index finds what a filter names, in the order that is asked for, without sorting."""
    plain = {key for key, value in where.items() if not (isinstance(value, Mapping) and set(value) - {"$all", "$nin"})}
    plain |= {key for key, value in where.items() if isinstance(value, Mapping) and "$in" in value and not by}
    fields, equal = list(index.items()), 0
    while equal < len(fields) and fields[equal][0] in plain:
        equal += 1
    order = [(key, direction) for key, direction in by.items() if key not in plain]
    rest = fields[equal : equal + len(order)]
    if [key for key, _ in rest] != [key for key, _ in order]:
        return False
    turned = {one * other for (_, one), (_, other) in zip(rest, order, strict=True)}
    # A fence on the first field behind the equal ones is as good; all of an owner's is, where all is asked for.
    return len(turned) <= 1 and (equal > 0 or fields[0][0] in where)


def stages(plan: Any) -> set[str]:
    """The names of all stages of a plan that explain returned."""
    if isinstance(plan, Mapping):
        own = {plan["stage"]} if isinstance(plan.get("stage"), str) else set()
        return own.union(*(stages(value) for key, value in plan.items() if key != "rejectedPlans"))
    return set().union(*map(stages, plan)) if isinstance(plan, list) else set()


async def test_no_scan_and_no_sort(url: str, sent: Commands) -> None:
    """Every find of a request is served by an index, in order: MongoDB explains it; for the emulator it is inferred."""
    async with open_store(url) as store:
        await use_everything(store, OWNER, "bob")
    asked = [c for c in sent if "find" in c and c["find"] not in ("chatkeep_schema",) and "_id" not in c["filter"]]
    assert len(asked) > 20
    for command, where in [(each, where) for each in asked for where in parts_of(each["filter"])]:
        by = command.get("sort", {})
        if where == {} or c_is_list(where):
            continue
        plain = {key: command[key] for key in ("find", "filter", "sort", "limit", "skip", "hint") if key in command}
        assert bson.encode(plain)  # as `command` does: the driver would refuse a UUID
        if mongo_databases().emulated:
            wanted = [index.document for index in INDEXES[command["find"]] if has_all(index.document, where)]
            wanted = [index for index in wanted if command.get("hint", index["name"]) == index["name"]]
            assert any(serves(dict(index["key"]), where, dict(by)) for index in wanted), command
        else:
            plan = raw(url).command("explain", plain, verbosity="queryPlanner")
            assert not stages(plan) & {"COLLSCAN", "SORT", "SORT_KEY_GENERATOR"}, (command, plan)


def has_all(index: Mapping[str, Any], where: Mapping[str, Any]) -> bool:
    """Whether MongoDB knows that an index has everything that a filter matches.

    The index of a part of the documents must be of those with a certain value, from a value on, or with any at all:
    that a text is of $type string, MongoDB does not see.
    """
    for field, wanted in index.get("partialFilterExpression", {}).items():
        value = where.get(field)
        if isinstance(wanted, Mapping) and "$gte" in wanted:
            if not isinstance(value, type(wanted["$gte"])) or value < wanted["$gte"]:
                return False
        elif wanted == {"$exists": True}:
            if value is None:
                return False
        elif value != wanted:
            return False
    return True


def c_is_list(where: Mapping[str, Any]) -> bool:
    """The list of an owner's keys is short, and sorted where it is."""
    return set(where) == {"owner_id"}


async def test_each_append_is_one_short_transaction(url: str, sent: Commands) -> None:
    """Alone: the conversation, the message, the commit. Together: four operations and the commit."""
    async with open_store(url) as store:
        talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(4)]
        for talk in talks:
            await store.append(OWNER, talk.id, [user("first")])
        sent.clear()
        await store.append(OWNER, talks[0].id, [user("alone")])
        assert [next(iter(c)) for c in sent] == ["findAndModify", "insert", "commitTransaction"]
        sent.clear()
        await asyncio.gather(*(store.append(OWNER, t.id, [user(f"{n}", id=uuid4())]) for t in talks for n in range(8)))
    groups: dict[str, list[str]] = {}
    for command in sent:
        if "autocommit" in command:
            groups.setdefault(f"{command['lsid']}{command['txnNumber']}", []).append(next(iter(command)))
    assert len(groups) <= 5, "32 appends"
    assert ["find", "find", "update", "insert", "commitTransaction"] in groups.values()


async def test_what_is_sent_is_small(url: str, sent: Commands) -> None:
    """What has an identity is found by it alone; only what changes is set, and only what is needed is read."""
    async with open_store(url, search="off") as store:
        talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(16)]
        for talk in talks:
            await store.append(OWNER, talk.id, [user("first")])
        sent.clear()
        await asyncio.gather(*(store.append(OWNER, talk.id, [user("second")]) for talk in talks))
        await store.history(OWNER, talks[0].id)
        await store.get_conversation(OWNER, talks[0].id)
    updates = [each for command in sent for each in command.get("updates", ())]
    assert len(updates) >= 14, "the others went alone"
    assert {tuple(each["q"]) for each in updates} == {("_id",)}
    assert {tuple(each["u"]["$set"]) for each in updates} == {("last_seq", "head_seq", "head_id")}
    assert all(len(bson.encode(each)) < 250 for each in updates)
    reads = [command for command in sent if "find" in command]
    assert all({"owner_id", "fingerprint", "words"}.isdisjoint(c["projection"]) for c in reads[:-1])
    assert {tuple(c["filter"]) for c in reads} == {("_id",), ("owner_id", "conversation_id", "seq")}


# --- conflicts and lost answers --------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["findAndModify", "find", "update", "insert", "commitTransaction"])
async def test_conflicts_are_tried_again(store: Store, talk: Conversation, failing: Failing, command: str) -> None:
    """A transaction that loses against another one is repeated whole: every item is stored once."""
    ids = [uuid4() for _ in range(10)]
    with failing({"times": 3}, command, **CONFLICT):
        await asyncio.gather(*(store.append(OWNER, talk.id, [user("tea", id=id_)]) for id_ in ids))
    with failing({"times": 3}, command, **CONFLICT):
        if command != "findAndModify":
            await store.append(OWNER, talk.id, numbered(2))
    log = await whole_log(store, OWNER, talk.id)
    assert seqs(log) == dense(13 if command == "findAndModify" else 15)
    assert {message.id for message in log} >= set(ids)


@pytest.mark.parametrize(
    "how",
    [
        {"closeConnection": True},
        # No code of a server that shuts down or is no primary: the driver would look for another, for ten seconds.
        {"errorCode": 262, "errorLabels": ["UnknownTransactionCommitResult"]},
        {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}},
        {"errorCode": 50},
    ],
)
async def test_unknown_commit_is_committed_again(
    store: Store, talk: Conversation, failing: Failing, how: dict[str, Any]
) -> None:
    """When nobody knows whether a commit happened it is sent again, which changes nothing if it did."""
    with failing({"times": 2}, "commitTransaction", **how):
        (stored,) = await store.append(OWNER, talk.id, [user("tea")])
    with failing({"times": 2}, "commitTransaction", **how):
        await store.append(OWNER, talk.id, numbered(2))
    log = await whole_log(store, OWNER, talk.id)
    assert (seqs(log), log[3]) == (dense(6), stored)


@pytest.fixture
def late_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut calls off seconds after their time: retries end by themselves before, on a busy machine, too."""
    monkeypatch.setattr(time_limit, "TICK_SECONDS", 5.0)


@pytest.mark.usefixtures("late_limit")
async def test_out_of_tries(url: str, talk: Conversation, failing: Failing) -> None:
    """A conflict that does not end is StoreUnavailable after write_timeout; the retry by id is safe."""
    message = user("once", id=uuid4())
    async with open_store(url, write_timeout=1.0) as store:
        for batch in ([message], [message, user("two", id=uuid4())]):
            with (
                failing("alwaysOn", "commitTransaction", **CONFLICT),
                pytest.raises(StoreUnavailable, match="again and again"),
            ):
                await store.append(OWNER, talk.id, batch)
        await store.append(OWNER, talk.id, [message])
        assert await store.append(OWNER, talk.id, [message]) == (await store.log(OWNER, talk.id))[3:]


@pytest.mark.usefixtures("late_limit")
async def test_what_an_aborted_transaction_means(url: str, talk: Conversation, failing: Failing) -> None:
    """MongoDB has one code for a transaction that others aborted and for one that took too long: both are named."""
    async with open_store(url, write_timeout=0.4) as store:
        with (
            failing("alwaysOn", "commitTransaction", errorCode=251),
            pytest.raises(StoreUnavailable, match=r"aborted the transaction.*others wrote.*too long"),
        ):
            await store.append(OWNER, talk.id, numbered(2))


async def test_lost_connections_are_made_anew(store: Store, talk: Conversation, failing: Failing) -> None:
    """Reads and single writes survive the loss of their connection."""
    for command in ("find", "update", "insert"):
        with failing({"times": 1}, command, closeConnection=True):
            await store.get_conversation(OWNER, talk.id)
            await store.create_conversation(OWNER, NewConversation())
            assert await store.delete_message(OWNER, talk.id, (await store.append(OWNER, talk.id, numbered(1)))[0].id)
    assert seqs(await store.log(OWNER, talk.id)) == dense(6)


async def test_one_bad_item_never_fails_its_neighbours(store: Store, talk: Conversation) -> None:
    """In one group: known, conflicting, missing and new items each have a result of their own."""
    known = user("known", id=uuid4())
    (first,) = await store.append(OWNER, talk.id, [known])
    calls = [
        *(store.append(OWNER, talk.id, [user(f"{n}")]) for n in range(5)),
        store.append(OWNER, talk.id, [known]),
        store.append(OWNER, talk.id, [user("other", id=known.id)]),
        store.append(OWNER, uuid4(), [user("lost")]),
        store.append("bob", talk.id, [user("lost")]),
        *(store.append(OWNER, talk.id, [user(f"{n}")]) for n in range(5)),
    ]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert outcomes[5] == [first]
    assert [type(outcome) for outcome in outcomes[6:9]] == [Conflict, NotFound, NotYours]
    assert seqs(await whole_log(store, OWNER, talk.id)) == dense(14)


async def test_two_stores_append_the_same_ids(url: str) -> None:
    """Two processes' stores send the same messages at once: each is stored once, and both get the same answer."""
    async with open_store(url) as one, open_store(url) as other:
        talks = [await one.create_conversation(OWNER, NewConversation()) for _ in range(3)]
        sends = [(talk.id, user(f"{n}", id=uuid4())) for n in range(20) for talk in talks]
        calls = [store.append(OWNER, id_, [message]) for id_, message in sends for store in (one, other)]
        answers = await asyncio.gather(*calls)
        assert answers[::2] == answers[1::2]
        for talk in talks:
            log = await whole_log(one, OWNER, talk.id)
            assert seqs(log) == dense(20)
            assert {message.id for message in log} == {m.id for id_, m in sends if id_ == talk.id}


async def test_what_begins_has_its_connection(url: str, waits: list[float]) -> None:
    """Writers wait for their turn, not in the driver's queue, where a transaction's next step would wait with them."""
    async with open_store(url, pool_size=3) as store:

        async def write(_: int) -> None:
            talk = await store.create_conversation(OWNER, NewConversation())
            await store.append(OWNER, talk.id, [user("a"), assistant("b")])
            await store.update_conversation(OWNER, talk.id, ConversationChange(title="c"))
            assert seqs(await whole_log(store, OWNER, talk.id)) == [1, 2]

        await asyncio.gather(*map(write, range(50)))
        assert store.state() == {"connections_used": 0}
    assert len(waits) > 200
    assert sorted(waits)[-10] < 0.05  # the first three of each pool are connected first


async def test_careful_appends_and_groups_take_turns(store: Store, talk: Conversation, sent: Commands) -> None:
    """In one process no two transactions write one conversation at once: a conflict would cost both."""
    branch = (await store.log(OWNER, talk.id))[0].id
    sent.clear()
    before = [asyncio.create_task(store.append(OWNER, talk.id, [user(f"{n}")])) for n in range(3)]
    while not sent:  # noqa: ASYNC110 - until the first group is under way
        await asyncio.sleep(0)
    calls = [
        store.append(OWNER, talk.id, [user(f"{n}", **({"parent_id": branch} if n % 3 == 0 else {}))]) for n in range(30)
    ]
    changes = [store.update_conversation(OWNER, talk.id, ConversationChange(metadata={str(n): n})) for n in range(10)]
    await asyncio.gather(*before, *calls, *changes)
    begun: set[str] = set()
    for command in sent:
        if "autocommit" in command:
            name = f"{command['lsid']}{command['txnNumber']}"
            assert not begun - {name}, "the one before has not ended"
            begun = set() if "commitTransaction" in command else {name}
    assert seqs(await whole_log(store, OWNER, talk.id)) == dense(36)
    assert len((await store.get_conversation(OWNER, talk.id)).metadata) == 10


async def test_a_clock_that_jumps_back(store: Store, talk: Conversation, monkeypatch: pytest.MonkeyPatch) -> None:
    """No append, alone, in a group or with care, takes a conversation back in the list."""
    last = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, last.id, [user("last")])
    before = await store.list_conversations(OWNER)
    for module in (append, conversations, rows, documents):
        monkeypatch.setattr(module, "now", lambda: now() - timedelta(hours=1))
    await store.append(OWNER, last.id, [assistant("alone")])
    await asyncio.gather(*(store.append(OWNER, last.id, [assistant(f"{number}")]) for number in range(5)))
    await store.append(OWNER, last.id, numbered(2))
    await store.update_conversation(OWNER, last.id, ConversationChange(title="t", head_id=None))
    early = await store.create_conversation(OWNER, NewConversation())
    after = await store.list_conversations(OWNER)
    assert [each.id for each in after.items] == [last.id, talk.id, early.id]
    assert [each.updated_at for each in after.items[:2]] == [each.updated_at for each in before.items]


# --- removing --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


@pytest.mark.parametrize("steps", range(1, 8))
async def test_deletion_that_is_cut_off(
    url: str, talk: Conversation, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    """A deletion that ends after any step left nothing to see; the next opening removes the rest."""
    monkeypatch.setattr(rows, "SLICE", 10)
    purge, done = MongoRows.purge_slice, 0

    async def killed(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == steps:
            raise Killed
        return await purge(*arguments)

    async with open_store(url) as store:
        stored = await store.append(OWNER, talk.id, numbered(40, "sage"))
        monkeypatch.setattr(MongoRows, "purge_slice", killed)
        if steps < 7:
            with pytest.raises(Killed):
                await parts(store)._delete(OWNER, (OWNER, talk.id))
        else:
            assert await store.delete_conversation(OWNER, talk.id)
    monkeypatch.setattr(MongoRows, "purge_slice", purge)
    left = raw(url).messages.count_documents({})
    assert left == max(0, 43 - 10 * (steps - 1))
    async with open_store(url, migrate=False) as store:
        for call in CONVERSATION_CALLS.values():
            if call is not CONVERSATION_CALLS["delete_conversation"]:
                with pytest.raises(NotFound):
                    await call(store, OWNER, talk.id, stored[5].id)
        assert await store.delete_conversation(OWNER, talk.id) is (left > 0)  # finishes the removal
        assert await whole_list(store, OWNER) == []
        assert await whole_search(store, OWNER, "sage") == []
    if steps % 2:
        async with open_store(url):
            assert raw(url).messages.count_documents({}) == 0
            assert raw(url).conversations.count_documents({}) == 0
    else:
        async with open_store(url, migrate=False) as store:
            again = await store.create_conversation(OWNER, NewConversation(id=talk.id, title="anew"))
            assert again.last_seq == 0
            assert await store.log(OWNER, talk.id) == []


@pytest.mark.parametrize("page", [{"order": "asc"}, {"limit": 60}, {"limit": 7, "offset": 40}, {"before": 20}])
async def test_a_page_is_never_half_of_a_conversation(
    url: str, store: Store, talk: Conversation, monkeypatch: pytest.MonkeyPatch, page: dict[str, Any]
) -> None:
    """Removing that begins while a page is read makes it NotFound: what is left for now is not shown."""
    monkeypatch.setattr(rows, "SLICE", 10)
    await store.append(OWNER, talk.id, numbered(57))
    read = "places" if "offset" in page else "segment"
    first = getattr(MongoRows, read)

    async def late(rows: MongoRows, key: Any, *arguments: Any) -> Any:
        await rows.hide(key)
        await rows.purge_slice(OWNER)
        return await first(rows, key, *arguments)

    assert (await store.history(OWNER, talk.id, **page)).items
    monkeypatch.setattr(MongoRows, read, late)
    with pytest.raises(NotFound):
        await store.history(OWNER, talk.id, **page)
    with pytest.raises(NotFound):
        await store.log(OWNER, talk.id)
    assert raw(url).messages.count_documents({}) == 50


# --- many shards -----------------------------------------------------------------------------------------


async def test_on_mongos(url: str, store: Store, talk: Conversation, sent: Commands) -> None:
    """Behind mongos foreign ids are hidden, and `db distribute` shards by owner: what is sent; no mongos runs here."""
    with pytest.raises(InvalidInput, match="mongos"):
        await store.distribute()
    with pytest.raises(NotYours):
        await store.get_conversation("bob", talk.id)
    database = parts(store)._database
    if not database.sharded:
        behind_mongos(store)
        with pytest.raises(StoreUnavailable):
            await store.distribute()
        (enabled, shard) = [c for c in sent if "enableSharding" in c or "shardCollection" in c]
        assert enabled["enableSharding"] == raw(url).name
        assert shard["shardCollection"].endswith(".users")
        assert shard["key"] == {"owner_id": 1}
    with pytest.raises(NotFound):
        await store.get_conversation("bob", talk.id)


# --- the recorder in front -------------------------------------------------------------------------------


async def test_the_recorder_in_front(url: str, tmp_path: Path, failing: Failing) -> None:
    """Messages that are recorded while commits fail are delivered once, and in order."""
    async with open_store(url, write_timeout=0.2) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        async with Recorder(store, tmp_path / "journal") as recorder:
            with failing("alwaysOn", "commitTransaction", "insert", **CONFLICT):
                for number in range(60):
                    recorder.record(OWNER, talk.id, "user", f"word {number}")
                await asyncio.sleep(0.6)
                assert recorder.stats().sent == 0
            await recorder.flush(30)
        log = await whole_log(store, OWNER, talk.id)
    assert contents(log) == [f"word {number}" for number in range(60)]


async def test_cancelled_callers_disturb_nobody(store: Store, talk: Conversation) -> None:
    """Callers that go away leave their message stored or not, and the others' stored."""
    ids = [uuid4() for _ in range(40)]
    calls = [
        asyncio.create_task(store.append(OWNER, talk.id, [NewMessage(id=i, role=Role.TOOL, content="x")])) for i in ids
    ]
    await asyncio.sleep(0.005)
    for call in calls[::2]:
        call.cancel()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, list) for outcome in outcomes[1::2])
    for id_ in ids:
        await store.append(OWNER, talk.id, [NewMessage(id=id_, role=Role.TOOL, content="x")])
    assert seqs(await whole_log(store, OWNER, talk.id)) == dense(43)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("rounds", [1, pytest.param(2, marks=pytest.mark.apart)])
async def test_torture_in_short(url: str, rounds: int) -> None:
    """Processes append to the same conversations, some messages twice at once, and one is killed: nothing is lost.

    Where the tests started a mongod it is killed, too. `make torture-mongodb` does this at length.
    """
    plan = Plan(rounds=rounds, processes=3, writers=6, conversations=4, seconds=1.0)
    counts = await asyncio.to_thread(torture, url, plan, kind="client")
    assert counts.good, counts
    assert counts.acknowledged > 20
    server = mongo_databases().server
    if isinstance(server, Mongod):
        counts = await asyncio.to_thread(torture, url, plan, kind="server", kill=server.crash)
        assert counts.good, counts


# --- the servers of these tests ---------------------------------------------------------------------------


def test_a_mongod_that_ends_at_once_says_why(tmp_path: Path) -> None:
    """The error has its last line, and comes at once."""
    program = tmp_path / "mongod"
    program.write_text("#!/bin/sh\necho starting\necho 'the data files are of a newer version'\nexit 62\n")
    program.chmod(0o700)
    with pytest.raises(RuntimeError, match="exit code 62: the data files are of a newer version"):
        Mongod(str(program))
