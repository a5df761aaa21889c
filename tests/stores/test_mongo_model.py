"""Parts, counts, labels, projects and foreign ids in MongoDB: their documents, and what is sent to read them."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest
from pymongo import monitoring
from pymongo.errors import DuplicateKeyError, WriteError

from chatkeep import (
    Conversation,
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    InvalidInput,
    NewConversation,
    NewMessage,
    NotFound,
    Role,
    Status,
    Store,
    open_store,
)
from chatkeep.model import MessageChange
from chatkeep.stores.mongo import rows as statements
from chatkeep.stores.mongo.conversations import MongoConversations
from chatkeep.stores.mongo.documents import check_message_fits
from chatkeep.stores.transactions import FEW_LABELLED
from chatkeep.testing import assistant, numbered, user, whole_list, whole_log
from servers.mongo import mongo_databases

OWNER, OTHER = "ada", "bob"

PARTS = (
    {"type": "text", "text": "tea"},
    {"type": "tool_call", "id": "1", "name": "find", "arguments": {"b": 1, "a": 2}},
)
MADE: dict[str, Any] = {"model": "m-1", "input_tokens": 3, "output_tokens": 0, "duration_ms": 2**40}


class Finds(monitoring.CommandListener):
    """Remembers the queries of every client that is made while it is on."""

    def __init__(self) -> None:
        self.seen: list[Mapping[str, Any]] | None = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """A command is sent."""
        if self.seen is not None and "find" in event.command:
            self.seen.append(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """It was answered."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """It was refused."""


FINDS = Finds()
monitoring.register(FINDS)


@pytest.fixture
def finds() -> Iterator[list[Mapping[str, Any]]]:
    """Every query that the stores of this test send, in order."""
    FINDS.seen = []
    yield FINDS.seen
    FINDS.seen = None


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return mongo_databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


def raw(url: str) -> Any:
    """The database, without chatkeep."""
    return mongo_databases().database(url)


async def in_project(store: Store, owner: str, project: UUID, name: str = "kitchen", **values: Any) -> UUID:
    """Import a conversation of a project, which is made if it is not there."""
    id_: UUID = values.pop("id", None) or uuid4()
    new = ImportedConversation(id=id_, project_id=project, project_name=name, **values)
    await store.import_conversation(owner, new, [ImportedMessage(role=Role.USER, content="tea")])
    return id_


def projects(url: str) -> set[tuple[str, UUID, str]]:
    """Owner, id and name of every project."""
    return {(each["owner_id"], each["id"], each["name"]) for each in raw(url).projects.find()}


# --- documents -------------------------------------------------------------------------------------------


async def test_what_is_absent_has_no_field(url: str, store: Store) -> None:
    """A message and a conversation without anything new are stored as before."""
    talk = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, talk.id, numbered(1))
    before = "_id owner_id conversation_id seq run depth parent_id role content status created_at fingerprint words"
    assert list(raw(url).messages.find_one()) == before.split()
    new = {"project_id", "llm_provider_id", "labels", "slot"}
    assert new.isdisjoint(raw(url).conversations.find_one())


@pytest.mark.parametrize("way", ["alone", "together", "carefully"])
async def test_parts_and_counts_come_back(url: str, store: Store, way: str) -> None:
    """By every path of an append: as JSON text, with its keys in their order, and as numbers."""
    talk = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, talk.id, numbered(1))
    message = NewMessage(id=uuid4(), role=Role.ASSISTANT, parts=PARTS, **MADE)
    if way == "together":
        both = [store.append(OWNER, talk.id, [message]), store.append(OWNER, talk.id, numbered(1))]
        (stored,), _ = await asyncio.gather(*both)
    else:
        (stored, *_) = await store.append(OWNER, talk.id, [message, *numbered(1 if way == "carefully" else 0)])
    read = await store.get_message(OWNER, talk.id, stored.id)
    assert read == stored
    assert (read.parts, read.content) == (PARTS, "tea")
    assert {name: getattr(read, name) for name in MADE} == MADE
    found = raw(url).messages.find_one({"_id.m": stored.id})
    assert found["parts"].endswith('"arguments":{"b":1,"a":2}}]')
    assert await store.append(OWNER, talk.id, [message]) == [stored]


async def test_a_tombstone_keeps_what_was_counted(url: str, store: Store) -> None:
    """Content, parts and metadata go; which model it was and what it cost stay."""
    talk = await store.create_conversation(OWNER, NewConversation())
    message = NewMessage(role=Role.ASSISTANT, parts=PARTS, metadata={"a": 1}, **MADE)
    (stored,) = await store.append(OWNER, talk.id, [message])
    assert await store.delete_message(OWNER, talk.id, stored.id)
    (left,) = await store.log(OWNER, talk.id)
    assert (left.content, left.parts, left.metadata, left.status) == ("", None, {}, Status.DELETED)
    assert {name: getattr(left, name) for name in MADE} == MADE
    assert {"parts", "metadata", "sources"}.isdisjoint(raw(url).messages.find_one())


async def test_metadata_of_a_message_is_merged(url: str, store: Store) -> None:
    """It can be changed, also by two processes at once, and leaves no field when it is empty."""
    talk = await store.create_conversation(OWNER, NewConversation())
    (stored,) = await store.append(OWNER, talk.id, [assistant("tea", metadata={"a": 1})])
    async with open_store(url) as other:
        changes = [MessageChange(metadata={f"k{number}": number}) for number in range(6)]
        calls = [
            (store, other)[n % 2].update_message(OWNER, talk.id, stored.id, each) for n, each in enumerate(changes)
        ]
        await asyncio.gather(*calls)
    read = await store.get_message(OWNER, talk.id, stored.id)
    assert read.metadata == {"a": 1, **{f"k{number}": number for number in range(6)}}
    await store.update_message(OWNER, talk.id, stored.id, MessageChange(metadata=dict.fromkeys(read.metadata)))
    assert (await store.get_message(OWNER, talk.id, stored.id)).metadata == {}
    assert "metadata" not in raw(url).messages.find_one()


async def test_parts_count(store: Store) -> None:
    """A page and a document have room for parts, too."""
    talk = await store.create_conversation(OWNER, NewConversation())
    large = [{"type": "data", "data": "x" * (7 << 20)}]
    await store.append(OWNER, talk.id, [NewMessage(role=Role.TOOL, parts=large) for _ in range(2)])
    page = await store.history(OWNER, talk.id, limit=2)
    assert (len(page.items), page.next is None) == (1, False)
    too_large = NewMessage(role=Role.TOOL, content="茶" * (3 << 20), parts=large)
    with pytest.raises(InvalidInput, match="16 MB"):
        await store.append(OWNER, talk.id, [too_large])
    with pytest.raises(InvalidInput, match="16 MB"):  # before anything is sent
        check_message_fits(too_large, None)


@pytest.mark.parametrize(
    ("collection", "values"),
    [
        ("messages", {"parts": [{}]}),
        ("messages", {"model": 1}),
        ("messages", {"input_tokens": -1}),
        ("messages", {"output_tokens": "1"}),
        ("messages", {"duration_ms": 1.5}),
        ("conversations", {"project_id": "p"}),
        ("conversations", {"llm_provider_id": 7}),
        ("conversations", {"labels": "pinned"}),
        ("conversations", {"labels": [1]}),
        ("conversations", {"labels": []}),
        ("conversations", {"labels": [f"{number}" for number in range(33)]}),
        ("projects", {"name": None}),
        ("projects", {"owner_id": 7}),
        ("projects", {"metadata": {}}),
        ("llm_providers", {"is_default": 1}),
        ("llm_providers", {"model_name": None}),
        ("llm_providers", {"_id": "openai"}),
        ("llm_providers", {"api_config": {}}),
        ("llm_providers", {"fingerprint": "f"}),
        ("llm_providers", {"replaced_by": "extractive"}),
        ("llm_providers", {"locks": -1}),
    ],
)
async def test_validators_refuse_new_fields(url: str, store: Store, collection: str, values: dict[str, Any]) -> None:
    """What came with the newest revision has types, too."""
    id_ = await in_project(store, OWNER, uuid4(), labels=["a"])
    message = NewMessage(role=Role.ASSISTANT, parts=PARTS, **MADE)
    await store.append(OWNER, id_, [message])
    good = raw(url)[collection].find_one({"parts": {"$exists": True}} if collection == "messages" else {})
    with pytest.raises(WriteError) as caught:
        raw(url)[collection].insert_one({**good, "_id": {"o": "x"}, "owner_id": "x", "is_default": False, **values})
    assert caught.value.code == 121


async def test_one_default_provider(url: str, store: Store) -> None:
    """The installation has one, whoever writes."""
    provider = {"provider_name": "p", "model_name": "m", "created_at": 2**40, "updated_at": 2**40}
    collection = raw(url).llm_providers
    assert [each["is_default"] for each in collection.find()] == [True]
    collection.insert_many({"_id": uuid4(), **provider, "is_default": False} for _ in range(2))
    with pytest.raises(DuplicateKeyError):
        collection.insert_one({"_id": uuid4(), **provider, "is_default": True})


# --- lists -----------------------------------------------------------------------------------------------


async def test_lists_by_label_are_never_sorted(store: Store, finds: list[Mapping[str, Any]]) -> None:
    """Few with a label are looked up by their ids; many are found in passing, in the order of an index."""
    project = uuid4()
    for number in range(FEW_LABELLED + 5):
        new = NewConversation(labels=["many", *(["few"] if number % 50 == 0 else [])], external_id="x", context_id="c")
        await store.create_conversation(OWNER, new)
    few = await in_project(store, OWNER, project, labels=["few"], context_id="c", external_id="x")
    finds.clear()
    listed = await store.list_conversations(OWNER, labels=["few", "many"], limit=2, total=True)
    assert (len(listed.items), listed.total) == (2, 3)
    rest = await store.list_conversations(OWNER, labels=["few", "many"], limit=2, cursor=listed.next)
    assert [each.updated_at for each in (*listed.items, *rest.items)] == sorted(
        (each.updated_at for each in (*listed.items, *rest.items)), reverse=True
    )
    assert [command["hint"] for command in finds] == ["labels", "_id_"] * 2
    assert all(len(command["filter"]["_id"]["$in"]) == 4 for command in finds[1::2])
    wanted: list[tuple[dict[str, Any], str]] = [
        ({"labels": ["many"]}, "by_update"),
        ({"labels": ["many"], "context_id": "c"}, "in_context"),
        ({"labels": ["many", "!few"], "external_id": "x"}, "by_external_id"),
        ({"labels": ["!many"], "project_id": project}, "by_project"),
        ({"labels": ["many"], "order": "id"}, "by_id"),
        ({"labels": ["!many"]}, "by_update"),
        ({}, "by_update"),
    ]
    for filters, index in wanted:
        finds.clear()
        page = await store.list_conversations(OWNER, **filters)
        assert finds[-1]["hint"] == index
        assert page.items
        if filters.get("labels") == ["!many"]:
            assert [each.id for each in page.items] == [few]


async def test_an_append_leaves_the_index_of_labels_alone(url: str, store: Store) -> None:
    """It holds nothing that an append changes."""
    index = raw(url).conversations.index_information()["labels"]
    assert [field for field, _ in index["key"]] == ["owner_id", "labels", "id"]
    talk = await store.create_conversation(OWNER, NewConversation(labels=["a"]))
    before = raw(url).conversations.find_one()
    await store.append(OWNER, talk.id, numbered(1))
    after = raw(url).conversations.find_one()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"last_seq", "head_seq", "head_id", "updated_at"}


async def test_labels_are_set_and_removed(url: str, store: Store) -> None:
    """As an array in the document, which has none when there are none."""
    talk = await store.create_conversation(OWNER, NewConversation(labels=["b", "a"]))
    assert raw(url).conversations.find_one()["labels"] == ["b", "a"]
    await store.update_conversation(OWNER, talk.id, ConversationChange(labels=["c"]))
    assert (await store.get_conversation(OWNER, talk.id)).labels == ("c",)
    await store.update_conversation(OWNER, talk.id, ConversationChange(labels=[], title="t"))
    assert (await store.get_conversation(OWNER, talk.id)).labels == ()
    assert "labels" not in raw(url).conversations.find_one()
    await store.update_conversation(OWNER, talk.id, ConversationChange(labels=[]))


# --- scopes ----------------------------------------------------------------------------------------------


async def test_one_conversation_for_each_scope(url: str, store: Store) -> None:
    """Two processes that get or create at once get the same one in each context of each project."""
    project = uuid4()
    await in_project(store, OWNER, project, context_id="elsewhere")
    async with open_store(url) as other:
        scopes = [(context, place) for context in ("a", None) for place in (project, None)]
        new = [NewConversation(context_id=context, project_id=place) for context, place in scopes for _ in range(6)]
        calls = [(store, other)[n % 2].get_or_create_conversation(OWNER, each) for n, each in enumerate(new)]
        made: list[Conversation] = await asyncio.gather(*calls)
    assert [(each.context_id, each.project_id) for each in made[::6]] == scopes
    assert len({each.id for each in made}) == 4
    assert raw(url).conversations.count_documents({"slot": True}) == 4
    with pytest.raises(NotFound, match="project"):
        await store.get_or_create_conversation(OWNER, NewConversation(project_id=uuid4()))


async def test_another_context_gives_up_the_slot(url: str, store: Store) -> None:
    """A conversation that moves into a context where another one holds the slot leaves it to that one."""
    first = await store.get_or_create_conversation(OWNER, NewConversation(context_id="a"))
    second = await store.get_or_create_conversation(OWNER, NewConversation(context_id="b"))
    await store.update_conversation(OWNER, first.id, ConversationChange(context_id="b"))
    assert [each["id"] for each in raw(url).conversations.find({"slot": True})] == [second.id]
    third = await store.get_or_create_conversation(OWNER, NewConversation(context_id="a"))
    assert third.id not in (first.id, second.id)
    assert (await store.get_or_create_conversation(OWNER, NewConversation(context_id="b"))).id == second.id


async def test_by_external_id_once(url: str, store: Store) -> None:
    """Two processes make one conversation of an external id, and find it."""
    async with open_store(url) as other:
        calls = [
            (store, other)[n % 2].get_or_create_conversation(OWNER, NewConversation(external_id="x")) for n in range(8)
        ]
        made = await asyncio.gather(*calls)
    assert {each.id for each in made} == {(await store.find_conversation(OWNER, "x")).id}


# --- projects --------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


async def test_the_project_of_an_import_that_is_cut_off(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is there before its conversation is: a second import finds the conversation, and makes no project."""
    project, id_ = uuid4(), uuid4()
    note = MongoConversations._note_owner

    async def killed(*_: object) -> None:
        raise Killed

    monkeypatch.setattr(MongoConversations, "_note_owner", killed)
    with pytest.raises(Killed):
        await in_project(store, OWNER, project, id=id_)
    monkeypatch.setattr(MongoConversations, "_note_owner", note)
    assert raw(url).conversations.count_documents({"project_id": project}) == 1
    await in_project(store, OWNER, project, id=id_)
    assert projects(url) == {(OWNER, project, "kitchen")}
    assert (await store.export_conversation(OWNER, id_))[0].project_name == "kitchen"


async def test_erasure_counts_projects_and_labels(url: str, store: Store) -> None:
    """Both are in the receipt; nobody else's are touched; a second one finds nothing."""
    for owner in (OWNER, OTHER):
        for project in (uuid4(), uuid4()):
            await in_project(store, owner, project, labels=["a", "b"])
    receipt = await store.erase_owner(OWNER)
    assert (receipt.conversations, receipt.labels, receipt.projects, receipt.remaining) == (2, 4, 2, 0)
    assert {owner for owner, *_ in projects(url)} == {OTHER}
    receipt = await store.erase_owner(OWNER)
    assert (receipt.labels, receipt.projects, receipt.remaining) == (0, 0, 0)


async def test_erasure_counts_what_is_left_of_projects(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that somebody makes while the owner is erased is in `remaining`."""
    await in_project(store, OWNER, uuid4())
    forget = statements.MongoRows._forget_owner

    async def late(rows: statements.MongoRows, owner: str) -> bool:
        await rows.make_project(owner, uuid4(), "late")
        return await forget(rows, owner)

    monkeypatch.setattr(statements.MongoRows, "_forget_owner", late)
    assert (await store.erase_owner(OWNER)).remaining == 1
    monkeypatch.undo()
    receipt = await store.erase_owner(OWNER)
    assert (receipt.projects, receipt.remaining, projects(url)) == (1, 0, set())


async def test_projects_move_with_their_owner(url: str, store: Store) -> None:
    """All of them, also those without conversations; of two with one id the new owner's stays."""
    shared, own, empty = uuid4(), uuid4(), uuid4()
    await in_project(store, OTHER, shared, "theirs")
    moved = [await in_project(store, OWNER, project, "mine", context_id="c") for project in (shared, own)]
    await store.delete_conversation(OWNER, await in_project(store, OWNER, empty, "empty"))
    assert await store.rename_owner(OWNER, OTHER) == 2
    assert projects(url) == {(OTHER, shared, "theirs"), (OTHER, own, "mine"), (OTHER, empty, "empty")}
    found = {each.id: each.project_id for each in await whole_list(store, OTHER)}
    assert [found[id_] for id_ in moved] == [shared, own]
    assert await store.rename_owner(OWNER, OTHER) == 0
    await store.delete_conversation(OTHER, moved[0])
    assert await store.rename_owner(OTHER, "cyd") == 2
    assert {owner for owner, *_ in projects(url)} == {"cyd"}
    assert {each["_id"] for each in raw(url).users.find()} == {"cyd"}


async def test_slots_of_projects_move(url: str, store: Store) -> None:
    """A slot is given up if the new owner's conversation holds the one of the same project, not of another one."""
    project = uuid4()
    for owner in (OWNER, OTHER):
        await store.delete_conversation(owner, await in_project(store, owner, project))
        await store.get_or_create_conversation(owner, NewConversation(context_id="c", project_id=project))
    await store.get_or_create_conversation(OWNER, NewConversation(context_id="c"))
    assert await store.rename_owner(OWNER, OTHER) == 2
    slots = [each.get("project_id") for each in raw(url).conversations.find({"slot": True})]
    assert sorted(slots, key=str) == sorted([project, None], key=str)


@pytest.mark.parametrize("step", range(6))
async def test_a_rename_that_is_cut_off_loses_no_project(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """After any step every conversation's owner has its project; called again, all of it is moved."""
    talks = {await in_project(store, OWNER, project): project for project in (uuid4(), uuid4())}
    steps = ["begin_rename", "copy_project", "copy_project", "move", "move", "end_rename"]
    done = 0

    def counted(name: str) -> Any:
        method = getattr(statements.MongoRows, name)

        async def call(*arguments: Any) -> Any:
            nonlocal done
            result = await method(*arguments)
            done += name in steps
            if done == step + 1:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        for name in set(steps):
            patch.setattr(statements.MongoRows, name, counted(name))
        if step < 6:
            with pytest.raises(Killed):
                await store.rename_owner(OWNER, OTHER)
    for owner in (OWNER, OTHER):
        for talk in await whole_list(store, owner):
            assert (await store.export_conversation(owner, talk.id))[0].project_name == "kitchen"
    await store.rename_owner(OWNER, OTHER)
    assert {each.id: each.project_id for each in await whole_list(store, OTHER)} == talks
    assert projects(url) == {(OTHER, project, "kitchen") for project in talks.values()}
    assert {each["_id"] for each in raw(url).users.find()} == {OTHER}


async def test_a_late_conversation_keeps_its_project(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is created in a project while the owner is renamed stays with the old name, and so does the project."""
    project = uuid4()
    await in_project(store, OWNER, project)
    end = statements.MongoRows.end_rename

    async def late(rows: statements.MongoRows, owner: str) -> bool:
        await store.create_conversation(OWNER, NewConversation(project_id=project))
        return await end(rows, owner)

    monkeypatch.setattr(statements.MongoRows, "end_rename", late)
    assert await store.rename_owner(OWNER, OTHER) == 1
    monkeypatch.undo()
    assert {owner for owner, *_ in projects(url)} == {OWNER, OTHER}
    assert await store.rename_owner(OWNER, OTHER) == 1
    assert projects(url) == {(OTHER, project, "kitchen")}
    assert all(
        [await whole_log(store, OTHER, talk.id) or talk.last_seq == 0 for talk in await whole_list(store, OTHER)]
    )


async def test_a_user_message_of_parts(store: Store) -> None:
    """A file alone makes no title, also by the fast path of an append."""
    talk = await store.create_conversation(OWNER, NewConversation())
    file = NewMessage(role=Role.USER, parts=[{"type": "file", "url": "https://x/y.png"}])
    await store.append(OWNER, talk.id, [file])
    await store.append(OWNER, talk.id, [user("tea")])
    read = await store.get_conversation(OWNER, talk.id)
    assert (read.title, read.last_seq) == ("tea", 2)
