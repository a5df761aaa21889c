"""Changes of messages: their metadata, and nothing else."""

import asyncio
from typing import Any
from uuid import uuid4

import pytest

from chatkeep.errors import Conflict, InvalidInput, NotFound
from chatkeep.model import Conversation, ConversationChange, ImportedConversation, MessageChange, NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.messages import assistant, someone, user
from chatkeep.testing.reference import reads_of, whole_log, whole_search


def change(metadata: dict[str, Any] | None) -> MessageChange:
    """A change of metadata."""
    return MessageChange(metadata=metadata)


class MessageChangeContract(Contract):
    """Changes of messages."""

    async def test_metadata_of_a_message_is_merged(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A change is a JSON Merge Patch: null removes, objects merge, anything else replaces; null empties it."""
        start = {"keep": 1, "drop": 2, "nested": {"keep": [1], "drop": 2}, "list": [1, 2]}
        (stored,) = await store.append(owner, conversation.id, assistant("sage tea", metadata=start))
        patch = {"drop": None, "nested": {"drop": None, "\x00": 10**40}, "list": [3], "rating": {"up": True, "x": None}}
        expected = {"keep": 1, "nested": {"keep": [1], "\x00": 10**40}, "list": [3], "rating": {"up": True}}
        changed = await store.update_message(owner, conversation.id, str(stored.id), change(patch))
        assert changed == stored.model_copy(update={"metadata": expected})
        assert await reads_of(store, owner, conversation.id, stored.id) == [changed] * 5
        assert [hit.message for hit in await whole_search(store, owner, "sage")] == [changed]
        assert await store.update_message(owner, conversation.id, stored.id, MessageChange()) == changed
        bare = await store.update_message(owner, conversation.id, stored.id, change(None))
        assert bare == stored.model_copy(update={"metadata": {}})
        assert await reads_of(store, owner, conversation.id, stored.id) == [bare] * 5

    async def test_changes_of_different_keys_of_a_message_all_stay(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Concurrent changes of different keys, beside appends, are all kept."""
        (stored,) = await store.append(owner, conversation.id, assistant("x", metadata={"start": 0}))
        changes = [store.update_message(owner, conversation.id, stored.id, change({f"key {n}": n})) for n in range(30)]
        appends = [store.append(owner, conversation.id, user(str(n))) for n in range(10)]
        await asyncio.gather(*changes, *appends)
        metadata = (await store.get_message(owner, conversation.id, stored.id)).metadata
        assert metadata == {"start": 0, **{f"key {n}": n for n in range(30)}}

    async def test_nothing_else_changes(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Other messages, the conversation and its updated_at stay; a late retry of the append is still known."""
        new = user("sage", id=uuid4(), metadata={"a": 1}, parts=[{"type": "data", "data": 1}], sources=())
        await store.append(owner, conversation.id, [user("before"), new, user("after")])
        before = await store.get_conversation(owner, conversation.id), await whole_log(store, owner, conversation.id)
        exported = await store.export_messages(owner, conversation.id)
        changed = await store.update_message(owner, conversation.id, before[1][1].id, change({"a": 2, "b": 3}))
        assert changed == before[1][1].model_copy(update={"metadata": {"a": 2, "b": 3}})
        assert await store.get_conversation(owner, conversation.id) == before[0]
        assert await whole_log(store, owner, conversation.id) == [before[1][0], changed, before[1][2]]
        again = await store.export_messages(owner, conversation.id)
        assert [m.fingerprint() for m in again] == [m.fingerprint() for m in exported]
        assert await store.append(owner, conversation.id, new) == [changed]
        with pytest.raises(Conflict):
            await store.append(owner, conversation.id, new.model_copy(update={"metadata": {"a": 2, "b": 3}}))

    async def test_only_metadata_can_be_changed(self) -> None:
        """A change with any other field is refused: what was said is not rewritten."""
        for field in ("content", "parts", "status", "role", "sources", "model", "sent_at", "external_id"):
            with pytest.raises(ValueError, match=field):
                MessageChange.model_validate({"metadata": {}, field: "x"})

    async def test_changes_cannot_make_metadata_of_a_message_too_large(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Each change is small and their sum is not: the one that passes a limit is refused, and changes nothing."""
        (stored,) = await store.append(owner, conversation.id, assistant("x", metadata={"a": "x" * 900_000}))
        with pytest.raises(InvalidInput, match=r"metadata may have at most 1,048,576 bytes .* after this change"):
            await store.update_message(owner, conversation.id, stored.id, change({"b": "x" * 300_000}))
        assert await store.get_message(owner, conversation.id, stored.id) == stored
        await store.update_message(owner, conversation.id, stored.id, change({"a": None, "b": "x" * 300_000}))
        with pytest.raises(InvalidInput, match=r"metadata may have at most 100,000 values"):
            await store.update_message(owner, conversation.id, stored.id, change({"c": [0] * 99_999}))

    async def test_limits_of_changed_messages_can_be_lower(self, open_store_with: Opener, owner: str) -> None:
        """A store with lower limits of metadata keeps them in changes of messages."""
        async with open_store_with(max_metadata_values=3) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            (stored,) = await store.append(owner, conversation.id, assistant("x", metadata={"a": 1, "b": 2}))
            with pytest.raises(InvalidInput, match="metadata may have at most 3 values"):
                await store.update_message(owner, conversation.id, stored.id, change({"c": 1, "d": 1}))
            changed = await store.update_message(owner, conversation.id, stored.id, change({"c": 1}))
            assert changed.metadata == {"a": 1, "b": 2, "c": 1}

    async def test_repeated_appends_have_a_size(self, open_store_with: Opener, owner: str) -> None:
        """Messages that grew since are returned to a retry while they fill four pages; more are refused, not read."""
        async with open_store_with(max_page_bytes=1_000) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            new = [user("tea", id=uuid4()) for _ in range(6)]
            stored = await store.append(owner, conversation.id, new)
            assert await store.delete_message(owner, conversation.id, stored[0].id)
            for message in stored[1:]:
                await store.update_message(owner, conversation.id, message.id, change({"a": "x" * 900}))
            with pytest.raises(InvalidInput, match="append fewer at a time"):
                await store.append(owner, conversation.id, [*new, user("not stored")])
            log = await whole_log(store, owner, conversation.id)
            assert len(log) == 6
            assert await store.append(owner, conversation.id, new[:5]) == log[:5]
            for number in range(6):
                assert await store.append(owner, conversation.id, new[number]) == [log[number]]

    async def test_deleted_messages_are_not_found(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A tombstone has no metadata, and gets none; nor has a message of another conversation."""
        (stored,) = await store.append(owner, conversation.id, user("gone"))
        other = await store.create_conversation(owner, NewConversation())
        await store.delete_message(owner, conversation.id, stored.id)
        for conversation_id, id_ in ((conversation.id, stored.id), (conversation.id, uuid4()), (other.id, stored.id)):
            with pytest.raises(NotFound):
                await store.update_message(owner, conversation_id, id_, change({"a": 1}))
        (tombstone,) = await whole_log(store, owner, conversation.id)
        assert tombstone.metadata == {}

    async def test_on_every_branch(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A message is changed wherever it stands, also where the head has left."""
        first, second = await store.append(owner, conversation.id, [user("one"), assistant("two")])
        (other,) = await store.append(owner, conversation.id, assistant("other two", parent_id=first.id))
        await store.update_conversation(owner, conversation.id, ConversationChange(head_id=None))
        for message in (first, second, other):
            changed = await store.update_message(owner, conversation.id, message.id, change({"id": str(message.id)}))
            assert changed == message.model_copy(update={"metadata": {"id": str(message.id)}})
        assert [m.metadata["id"] for m in await whole_log(store, owner, conversation.id)] == [
            str(message.id) for message in (first, second, other)
        ]

    async def test_changes_are_exported(self, store: Store, owner: str, conversation: Conversation) -> None:
        """An export has the metadata of now and the fingerprint of then: restored, a late retry is known."""
        other, new = someone(), user("sage", id=uuid4(), metadata={"a": 1})
        (stored,) = await store.append(owner, conversation.id, new)
        await store.update_message(owner, conversation.id, stored.id, change({"rating": "up"}))
        whole, _ = await store.export_conversation(owner, conversation.id)
        await store.import_conversation(other, whole, await store.export_messages(owner, conversation.id))
        (restored,) = await store.append(other, conversation.id, new)
        assert restored.metadata == {"a": 1, "rating": "up"}
        receipt = await store.import_conversation(
            owner, ImportedConversation(id=conversation.id), await store.export_messages(owner, conversation.id)
        )
        assert (receipt.messages, receipt.known) == (0, 1)
