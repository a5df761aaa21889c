"""Whole conversations in and out: restored as they were, imported once, never moved to another branch unasked."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from chatkeep.errors import Conflict, InvalidInput, NotFound
from chatkeep.ids import new_id
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    Message,
    NewConversation,
    NewMessage,
    Role,
    Status,
)
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import contents, someone, user
from chatkeep.testing.reference import others_appending, whole_history, whole_log, whole_search

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def imported(content: str, parent: ImportedMessage | None = None, **values: Any) -> ImportedMessage:
    """A message of an import, after a parent, or at the root."""
    parent_id = None if parent is None else parent.id
    return ImportedMessage(**{"id": new_id(), "role": Role.USER, "content": content, "parent_id": parent_id, **values})


async def exported(
    store: Store, owner: str, id_: UUID, limit: int = 2
) -> tuple[ImportedConversation, list[ImportedMessage]]:
    """A conversation as it would be imported."""
    conversation, last_seq = await store.export_conversation(owner, id_)
    messages: list[ImportedMessage] = []
    while len(messages) < last_seq:
        limit = min(limit, last_seq - len(messages))
        messages += await store.export_messages(owner, id_, after=len(messages), limit=limit)
    return conversation, messages


async def restored(store: Store, owner: str, id_: UUID, other: str) -> None:
    """Give a copy of a conversation to another owner, by export and import."""
    receipt = await store.import_conversation(other, *await exported(store, owner, id_))
    assert receipt.created
    assert receipt.differences == ()


def of(owner: str, conversation: Conversation) -> Conversation:
    """The record of a conversation, had it this owner."""
    return conversation.model_copy(update={"owner_id": owner})


async def eventful(store: Store, owner: str) -> tuple[UUID, list[Message]]:
    """A conversation to which everything happened, and its messages as they were appended."""
    new = NewConversation(title="T", context_id="k\x00", external_id="e", metadata={"n": 10**40, "x": [None, "\x00😀"]})
    id_ = (await store.create_conversation(owner, new)).id
    source = {"document_id": str(new_id()), "file_path": "a.md", "header_anchor": "#x", "similarity_score": 0.25}
    said = [
        NewMessage(role=Role.USER, content="sage tea\x00\u2028😀", metadata={"big": 10**40}, sent_at=NOON),
        NewMessage.model_validate({"role": "assistant", "content": "sage", "sources": [source]}),
        NewMessage(role=Role.ASSISTANT, content="half an ans", status=Status.INTERRUPTED, external_id="f-7"),
        NewMessage(role=Role.TOOL, content=""),
        user("gone sage"),
    ]
    stored = [message for each in said for message in await store.append(owner, id_, each)]
    branch = NewMessage(role=Role.ASSISTANT, content="other sage", parent_id=stored[0].id)
    stored += await store.append(owner, id_, [branch, user("root", parent_id=None)])
    await store.delete_message(owner, id_, stored[4].id)
    return id_, stored


class ImportContract(Contract):
    """Whole conversations in and out."""

    async def test_an_export_restores_every_field(self, store: Store, owner: str) -> None:
        """Conversation, messages, order of hits: all equal, whatever happened to the conversation before."""
        other = someone()
        ids = []
        for values in ({"metadata": {"n": None}}, {"title": None}, {"head_id": None}, {}):
            id_, stored = await eventful(store, owner)
            ids.append(id_)
            change = ConversationChange.model_validate(values or {"head_id": stored[1].id})
            await store.update_conversation(owner, id_, change)
        ids.append((await store.create_conversation(owner, NewConversation())).id)
        for id_ in reversed(ids):
            await restored(store, owner, id_, other)
        for id_ in ids:
            before = await store.get_conversation(owner, id_)
            assert await store.get_conversation(other, id_) == of(other, before)
            assert await whole_log(store, other, id_) == await whole_log(store, owner, id_)
            assert await whole_history(store, other, id_) == await whole_history(store, owner, id_)
            assert await exported(store, other, id_) == await exported(store, owner, id_)
        await store.migrate()
        hits = await whole_search(store, owner, "sage")
        assert len(hits) == 3 * 4
        assert await whole_search(store, other, "sage") == hits
        listed = (await store.list_conversations(owner)).items
        assert [each.id for each in (await store.list_conversations(other)).items] == [each.id for each in listed]

    async def test_hits_are_ordered_by_the_time_of_the_store(self, store: Store, owner: str) -> None:
        """Last first by created_at, whatever was stored here in between; of one moment by conversation and seq."""
        times = [NOON + timedelta(microseconds=micros) for micros in (5, 1, 3, 1, 4)]
        for number, time in enumerate(times):
            messages = [imported(f"mint {number} {each}", created_at=time) for each in range(2)]
            await store.import_conversation(owner, ImportedConversation(id=new_id(), created_at=time), messages)
            if number == 2:
                live = await store.create_conversation(owner, NewConversation())
                await store.append(owner, live.id, [user("mint live"), user("mint later")])
        await store.migrate()
        hits = [hit.message for hit in await whole_search(store, owner, "mint")]
        assert len(hits) == 12
        assert contents(hits[:2]) == ["mint later", "mint live"]
        assert hits == sorted(hits, key=lambda m: (m.created_at, m.conversation_id, m.seq), reverse=True)
        pages: list[Message] = []
        cursor = None
        while True:
            page = await store.search_messages(owner, "mint", limit=1, cursor=cursor)
            pages += [hit.message for hit in page.items]
            cursor = page.next
            if cursor is None:
                break
        assert pages == hits

    async def test_hits_of_concurrent_appends_are_ordered_by_time(self, store: Store, owner: str) -> None:
        """Appends that are committed together are found in the order of created_at, conversation and seq, too."""
        ids = [(await store.create_conversation(owner, NewConversation())).id for _ in range(20)]
        await asyncio.gather(*(store.append(owner, id_, [user("mint"), user("mint")]) for id_ in reversed(ids)))
        hits = [hit.message for hit in await whole_search(store, owner, "mint")]
        assert len(hits) == 2 * 20
        assert hits == sorted(hits, key=lambda m: (m.created_at, m.conversation_id, m.seq), reverse=True)

    async def test_a_restored_conversation_grows(self, store: Store, owner: str) -> None:
        """A removed title is not made anew, and updated_at moves to the store's time of the new message."""
        id_, later = new_id(), NOON + timedelta(hours=1)
        new = ImportedConversation(id=id_, created_at=NOON, updated_at=NOON)
        first = imported("a", created_at=NOON, sent_at=NOON)
        await store.import_conversation(owner, new, [first])
        second = imported("b", first, created_at=later, sent_at=NOON)
        await store.import_conversation(owner, new, [first, second])
        there = await store.get_conversation(owner, id_)
        assert (there.title, there.updated_at, there.head_id) == (None, later, second.id)

    async def test_an_empty_conversation_takes_the_head_of_the_import(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Nothing was visible, so that nothing is hidden: also if its import was cut off once."""
        first = imported("a")
        new = ImportedConversation(id=conversation.id, head_id=first.id)
        receipt = await store.import_conversation(owner, new, [first, imported("b", first)])
        assert receipt.differences == ()
        assert contents(await whole_history(store, owner, conversation.id)) == ["a"]

    async def test_a_late_retry_is_known_after_a_restore(self, store: Store, owner: str) -> None:
        """What was created and appended before the export, deleted messages too, is no conflict and nothing new."""
        other, new = someone(), NewConversation(id=new_id(), title="T", metadata={"a": 1})
        sent = [user("one", id=new_id()), user("two", id=new_id(), sent_at=NOON)]
        await store.create_conversation(owner, new)
        assert new.id is not None
        stored = await store.append(owner, new.id, sent)
        await store.update_conversation(owner, new.id, ConversationChange(title="U"))
        await store.delete_message(owner, new.id, stored[1].id)
        await restored(store, owner, new.id, other)
        assert (await store.create_conversation(other, new)).title == "U"
        again = await store.append(other, new.id, sent)
        assert [m.status for m in again] == [Status.COMPLETE, Status.DELETED]
        with pytest.raises(Conflict):
            await store.append(other, new.id, sent[0].model_copy(update={"content": "else"}))
        assert len(await whole_log(store, other, new.id)) == 2

    async def test_importing_again_changes_nothing(self, store: Store, owner: str) -> None:
        """The second import finds everything, many at once create one conversation, and a removed one comes back."""
        new, messages = ImportedConversation(id=new_id()), [imported("a"), imported("b")]
        assert new.id is not None
        receipts = await asyncio.gather(*(store.import_conversation(owner, new, messages) for _ in range(8)))
        assert sorted(receipt.created for receipt in receipts) == [False] * 7 + [True]
        assert {(receipt.messages, receipt.known) for receipt in receipts} == {(2, 0), (0, 2)}
        assert {receipt.differences for receipt in receipts} == {()}
        assert contents(await whole_log(store, owner, new.id)) == ["a", "b"]
        await store.delete_conversation(owner, new.id)
        assert (await store.import_conversation(owner, new, messages)).created

    async def test_a_grown_conversation_goes_on(self, store: Store, owner: str) -> None:
        """New messages are stored, and the thread goes on if they follow what is visible."""
        new, first = ImportedConversation(id=new_id()), imported("a")
        assert new.id is not None
        await store.import_conversation(owner, new, [first])
        second = imported("b", first)
        receipt = await store.import_conversation(owner, new, [first, second])
        assert (receipt.messages, receipt.known, receipt.differences) == (1, 1, ())
        assert contents(await whole_history(store, owner, new.id)) == ["a", "b"]
        await store.append(owner, new.id, user("here"))
        receipt = await store.import_conversation(owner, new, [first, second])
        assert receipt.differences == ()
        assert (await store.import_conversation(owner, new, update=True)).differences == ()
        assert contents(await whole_history(store, owner, new.id)) == ["a", "b", "here"]

    async def test_the_thread_moves_only_if_asked(self, store: Store, owner: str) -> None:
        """Another branch is stored beside the visible one; `update` shows it."""
        new, first = ImportedConversation(id=new_id()), imported("a")
        assert new.id is not None
        await store.import_conversation(owner, new, [first, imported("b", first)])
        messages = [first, imported("c", first)]
        receipt = await store.import_conversation(owner, new, messages)
        assert (receipt.messages, receipt.differences, receipt.updated) == (1, ("head",), ())
        assert contents(await whole_history(store, owner, new.id)) == ["a", "b"]
        receipt = await store.import_conversation(owner, new, messages, update=True)
        assert (receipt.messages, receipt.left) == (0, [])
        assert contents(await whole_history(store, owner, new.id)) == ["a", "c"]
        for head_id, visible in ((None, []), (first.id, ["a"])):
            await store.update_conversation(owner, new.id, ConversationChange(head_id=head_id))
            assert (await store.import_conversation(owner, new, messages)).differences == ("head",)
            more = imported("d", messages[-1])
            messages = [*messages, more]
            assert (await store.import_conversation(owner, new, messages)).differences == ("head",)
            assert contents(await whole_history(store, owner, new.id)) == visible

    async def test_what_differs_is_said_and_taken_over_if_asked(self, store: Store, owner: str) -> None:
        """Title, context, metadata, a deletion: new messages are stored all the same; an external_id is said only."""
        id_, first, second = new_id(), imported("a"), imported("b")
        await store.import_conversation(owner, ImportedConversation(id=id_, title="T"), [first, second])
        deleted = imported("", id=second.id, status=Status.DELETED)
        changed = ImportedConversation(id=id_, title="U", metadata={"x": 1}, context_id="k", external_id="e")
        messages = [first, deleted, imported("c", deleted)]
        receipt = await store.import_conversation(owner, changed, messages)
        assert receipt.differences == ("title", "metadata", "context_id", "external_id", "deletions")
        assert (receipt.messages, receipt.updated) == (1, ())
        assert contents(await whole_history(store, owner, id_)) == ["b", "c"]
        receipt = await store.import_conversation(owner, changed, messages, update=True)
        assert receipt.updated == ("title", "context_id", "metadata", "deletions")
        assert receipt.left == ["external_id"]
        there = await store.get_conversation(owner, id_)
        assert (there.title, there.metadata, there.context_id, there.external_id) == ("U", {"x": 1}, "k", None)
        assert contents(await whole_history(store, owner, id_)) == ["c"]

    async def test_a_deletion_here_is_not_undone(self, store: Store, owner: str) -> None:
        """What was deleted here stays so, also with `update`."""
        id_, first = new_id(), imported("a")
        await store.import_conversation(owner, ImportedConversation(id=id_), [first])
        assert first.id is not None
        await store.delete_message(owner, id_, first.id)
        receipt = await store.import_conversation(owner, ImportedConversation(id=id_), [first], update=True)
        assert receipt.left == ["deletions"]
        assert await whole_history(store, owner, id_) == []

    async def test_what_is_refused_leaves_nothing(self, store: Store, owner: str) -> None:
        """Other content under a known id, twice in one import, a parent or a head that is not there."""
        id_, first = new_id(), imported("a")
        cases: list[tuple[type[Exception], list[ImportedMessage], dict[str, Any]]] = [
            (Conflict, [first, imported("b", id=first.id)], {}),
            (NotFound, [imported("b", imported("nowhere"))], {}),
            (NotFound, [first], {"head_id": new_id()}),
            (InvalidInput, [first, imported("b", metadata={"x": "y"}), "text"], {}),  # type: ignore[list-item]
        ]
        for error, messages, values in cases:
            with pytest.raises(error):
                await store.import_conversation(owner, ImportedConversation(id=id_, **values), messages)
            with pytest.raises(NotFound):
                await store.get_conversation(owner, id_)
        await store.import_conversation(owner, ImportedConversation(id=id_), [first])
        before = await exported(store, owner, id_)
        for error, messages, values in cases[1:]:
            with pytest.raises(error):
                await store.import_conversation(owner, ImportedConversation(id=id_, **values), messages)
        with pytest.raises(Conflict):
            await store.import_conversation(
                owner, ImportedConversation(id=id_), [imported("new"), imported("else", id=first.id)], update=True
            )
        assert await exported(store, owner, id_) == before

    async def test_the_same_message_twice_is_one(self, store: Store, owner: str) -> None:
        """A message that comes twice in one import is stored once."""
        id_, first = new_id(), imported("a")
        receipt = await store.import_conversation(owner, ImportedConversation(id=id_), [first, first])
        assert receipt.messages == 1
        assert contents(await whole_log(store, owner, id_)) == ["a"]

    async def test_times_do_not_lie_in_the_future(self, store: Store, owner: str) -> None:
        """Times of the store that have not come yet become those of the import; others are kept to the microsecond."""
        future, past = datetime.now(UTC) + timedelta(days=9), NOON + timedelta(microseconds=7)
        id_ = new_id()
        await store.import_conversation(
            owner,
            ImportedConversation(id=id_, created_at=past, updated_at=future),
            [imported("a", created_at=past, sent_at=future), imported("b", created_at=future)],
        )
        there = await store.get_conversation(owner, id_)
        first, second = await whole_log(store, owner, id_)
        assert (there.created_at, first.created_at, first.sent_at) == (past, past, future)
        assert max(there.updated_at, second.created_at) < future

    async def test_an_export_is_whole_while_others_append(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Each export is a state that was: its head is its last message, and nothing before it is missing."""
        other = someone()
        await store.append(owner, conversation.id, user("first"))
        async with others_appending(store, owner, conversation.id):
            for _ in range(5):
                whole, messages = await exported(store, owner, conversation.id, limit=3)
                assert whole.head_id == messages[-1].id
                await store.import_conversation(other, whole, messages)
        assert contents(await whole_history(store, other, conversation.id)) == [m.content for m in messages]

    async def test_appends_go_on_beside_imports(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Messages that an import brings to a conversation and those that are appended meanwhile are all there."""
        await store.append(owner, conversation.id, user("first"))
        whole, messages = await exported(store, owner, conversation.id)
        async with others_appending(store, owner, conversation.id):
            for number in range(10):
                messages = [*messages, imported(f"new {number}", messages[-1])]
                await store.import_conversation(owner, whole, messages)
        log = await whole_log(store, owner, conversation.id)
        assert [m.seq for m in log] == list(range(1, len(log) + 1))
        assert [m.content for m in log if m.content.startswith("new")] == [f"new {number}" for number in range(10)]
