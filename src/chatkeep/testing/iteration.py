"""Iterating over the messages of a path, however long it is."""

from typing import Any
from uuid import uuid4

import pytest

from chatkeep.errors import InvalidId, InvalidInput, NotFound, NotYours
from chatkeep.model import Conversation, ConversationChange, Message, NewConversation
from chatkeep.store import Store
from chatkeep.testing.calls import ORDERS
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, contents, dense, numbered, seqs, someone, user
from chatkeep.testing.reference import others_appending


async def iterated(store: Store, owner: str, conversation: Conversation, **arguments: Any) -> list[Message]:
    """All that an iteration yields."""
    return [message async for message in store.messages(owner, conversation.id, **arguments)]


class IterationContract(Contract):
    """Iterating over messages."""

    @pytest.mark.parametrize("count", [0, 1, 3, 4, 250])
    async def test_every_message_in_both_directions(
        self, store: Store, owner: str, conversation: Conversation, count: int
    ) -> None:
        """The whole path comes, oldest first, or with order="desc" newest first, whatever the size of the pages."""
        stored = await store.append(owner, conversation.id, numbered(count)) if count else []
        for page in (1, 3, 200, 1_000) if count < 100 else (7, 200):
            assert await iterated(store, owner, conversation, page=page) == stored
            assert await iterated(store, owner, conversation, page=page, order="desc") == stored[::-1]
        assert await iterated(store, owner, conversation) == stored

    async def test_part_of_a_path(self, store: Store, owner: str, conversation: Conversation) -> None:
        """`before`, `after` and `leaf` are those of a history; deleted messages are left out."""
        stored = await store.append(owner, conversation.id, numbered(9))
        (other,) = await store.append(owner, conversation.id, user("other", parent_id=stored[3].id))
        await store.delete_message(owner, conversation.id, stored[2].id)
        left = [*stored[:2], stored[3], other]
        assert await iterated(store, owner, conversation, page=2) == left
        whole = [*stored[:2], *stored[3:]]
        for order in ORDERS:
            way = slice(None, None, 1 if order == "asc" else -1)
            of_leaf = await iterated(store, owner, conversation, leaf=stored[8].id, page=2, order=order)
            assert of_leaf == whole[way]
            some = await iterated(store, owner, conversation, leaf=stored[8].id, after=3, before=8, page=2, order=order)
            assert some == stored[3:7][way]
        await store.update_conversation(owner, conversation.id, ConversationChange(head_id=None))
        assert await iterated(store, owner, conversation) == []

    async def test_while_others_append(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The path is that of the first page, even if the head moves meanwhile: what is appended later is not in it."""
        stored = await store.append(owner, conversation.id, numbered(300))
        async with others_appending(store, owner, conversation.id):
            for order in ORDERS:
                seen = await iterated(store, owner, conversation, page=23, order=order)
                assert sorted(seqs(seen)) == dense(len(seen))
                assert len(seen) >= len(stored)
                assert seqs(seen) == sorted(seqs(seen), reverse=order == "desc")
        iterator = store.messages(owner, conversation.id, leaf=stored[299].id, page=100)
        first = await anext(iterator)
        await store.append(owner, conversation.id, assistant("elsewhere", parent_id=stored[5].id))
        assert [first, *[message async for message in iterator]] == stored

    async def test_messages_that_are_larger_than_a_page(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Large messages come one page after another, without one missing."""
        new = [assistant(letter * 3_000_000) for letter in "abcd"]
        await store.append(owner, conversation.id, new)
        for order, letters in (("asc", "abcd"), ("desc", "dcba")):
            seen = await iterated(store, owner, conversation, order=order)
            assert "".join(text[0] for text in contents(seen)) == letters

    async def test_a_loop_that_is_left(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A loop may end early, and holds nothing meanwhile: the store is used inside of it, and goes on after."""
        await store.append(owner, conversation.id, numbered(50))
        count = 0
        async for message in store.messages(owner, conversation.id, page=5):
            await store.append(owner, conversation.id, user(f"after {message.seq}"))
            count += 1
            if count == 12:
                break
        assert (await store.get_conversation(owner, conversation.id)).last_seq == 62

    async def test_what_is_wrong_is_said_by_the_first_message(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Errors are those of a history, raised when the loop begins."""
        theirs = await store.create_conversation(someone(), NewConversation())
        missing = conversation.model_copy(update={"id": uuid4()})
        cases: list[tuple[type[Exception], Conversation, dict[str, Any]]] = [
            (NotFound, missing, {}),
            (NotYours, theirs, {}),
            (NotFound, conversation, {"leaf": uuid4()}),
            (InvalidInput, conversation, {"page": 0}),
            (InvalidInput, conversation, {"page": 1_001}),
            (InvalidInput, conversation, {"order": "up"}),
            (InvalidId, conversation, {"leaf": "tea"}),
        ]
        for error, where, arguments in cases:
            with pytest.raises(error):
                await iterated(store, owner, where, **arguments)
