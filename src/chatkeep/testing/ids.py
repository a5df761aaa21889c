"""Malformed and unknown ids."""

from uuid import UUID, uuid4

import pytest

from chatkeep.errors import InvalidId, NotFound
from chatkeep.model import Conversation, ConversationChange, NewConversation
from chatkeep.store import Store
from chatkeep.testing.calls import CONVERSATION_CALLS, MESSAGE_CALLS
from chatkeep.testing.contract import Contract
from chatkeep.testing.examples import MALFORMED_IDS
from chatkeep.testing.messages import user


class IdContract(Contract):
    """Malformed and unknown ids."""

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_malformed_conversation_id(self, store: Store, owner: str, method: str) -> None:
        """A malformed id raises InvalidId, a ValueError, in every method that takes a conversation's id."""
        assert issubclass(InvalidId, ValueError)
        for bad in MALFORMED_IDS:
            with pytest.raises(InvalidId):
                await CONVERSATION_CALLS[method](store, owner, bad, uuid4())

    @pytest.mark.parametrize("method", MESSAGE_CALLS)
    async def test_malformed_message_id(
        self, store: Store, owner: str, conversation: Conversation, method: str
    ) -> None:
        """A malformed id raises InvalidId in every method that takes a message's id."""
        for bad in MALFORMED_IDS:
            with pytest.raises(InvalidId):
                await CONVERSATION_CALLS[method](store, owner, conversation.id, bad)

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_unknown_conversation_is_not_found(self, store: Store, owner: str, method: str) -> None:
        """An unknown id raises NotFound; deleting it returns False."""
        if method == "delete_conversation":
            assert await store.delete_conversation(owner, uuid4()) is False
        else:
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[method](store, owner, uuid4(), uuid4())

    @pytest.mark.parametrize("method", MESSAGE_CALLS)
    async def test_unknown_message_is_not_found(
        self, store: Store, owner: str, conversation: Conversation, method: str
    ) -> None:
        """A message id that the conversation does not have raises NotFound; deleting it returns False."""
        await store.append(owner, conversation.id, [user("hello")])
        if method == "delete_message":
            assert await store.delete_message(owner, conversation.id, uuid4()) is False
        else:
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[method](store, owner, conversation.id, uuid4())

    async def test_malformed_ids_in_records(self) -> None:
        """A malformed id in a record raises a ValueError that names the field."""
        for bad in MALFORMED_IDS:
            for name in ("id", "parent_id"):
                with pytest.raises(ValueError, match=name):
                    user("hello", **{name: bad})
            with pytest.raises(ValueError, match="id"):
                NewConversation(id=bad)
            with pytest.raises(ValueError, match="head_id"):
                ConversationChange(head_id=bad)

    @pytest.mark.parametrize("version", [1, 3, 4, 5, 7])
    async def test_ids_of_every_version_are_taken(self, store: Store, owner: str, version: int) -> None:
        """Ids may be UUIDs of any version, as UUID or text."""
        text = str(uuid4())
        id_ = UUID(f"{text[:14]}{version}{text[15:]}")
        created = await store.create_conversation(owner, NewConversation(id=id_))
        (message,) = await store.append(owner, str(id_), [user("hello", id=id_)])
        assert created.id == message.id == id_
        assert await store.get_message(owner, id_.hex, str(id_).upper()) == message
