"""Conversations that move to another context."""

import asyncio
from uuid import uuid4

from chatkeep.model import Conversation, ConversationChange, ImportedConversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import user
from chatkeep.testing.reference import whole_list

CONTEXTS = (None, "k", "l")


class ContextContract(Contract):
    """Changes of context_id."""

    async def move(self, store: Store, owner: str, conversation: Conversation, context_id: str | None) -> Conversation:
        """Give a conversation another context; nothing else changes."""
        before = await store.get_conversation(owner, conversation.id)
        changed = await store.update_conversation(owner, conversation.id, ConversationChange(context_id=context_id))
        assert changed == before.model_copy(update={"context_id": context_id})
        assert await store.get_conversation(owner, conversation.id) == changed
        return changed

    async def test_lists_follow(self, store: Store, owner: str) -> None:
        """A conversation is in the list of its new context, and in that of the old one no more; null means none."""
        made = await store.create_conversation(owner, NewConversation(context_id="k", title="T"))
        other = await store.create_conversation(owner, NewConversation(context_id="l"))
        moved = await self.move(store, owner, made, "l")
        assert await whole_list(store, owner, context_id="k") == []
        assert await whole_list(store, owner, context_id="l") == [other, moved]
        moved = await self.move(store, owner, made, None)
        assert await whole_list(store, owner, context_id="l") == [other]
        assert await whole_list(store, owner) == [other, moved]

    async def test_get_or_create_follows(self, store: Store, owner: str) -> None:
        """Get-or-create finds a conversation in its new context, and makes one in the old one, which is free."""
        made = await store.get_or_create_conversation(owner, NewConversation(context_id="k"))
        moved = await self.move(store, owner, made, "l")
        assert await store.get_or_create_conversation(owner, NewConversation(context_id="l")) == moved
        calls = (store.get_or_create_conversation(owner, NewConversation(context_id="k")) for _ in range(30))
        answers = await asyncio.gather(*calls)
        assert answers == [answers[0]] * 30
        assert answers[0].id != made.id

    async def test_into_a_context_that_has_one_and_back(self, store: Store, owner: str) -> None:
        """Conversations that get-or-create made move between contexts, each of which had one; the newest is found."""
        made = {c: await store.get_or_create_conversation(owner, NewConversation(context_id=c)) for c in CONTEXTS}
        for target in (*CONTEXTS, *CONTEXTS[::-1]):
            for conversation in made.values():
                await self.move(store, owner, conversation, target)
            asked = NewConversation(context_id=target)
            assert (await store.get_or_create_conversation(owner, asked)).id == made["l"].id
        for context, conversation in made.items():
            await self.move(store, owner, conversation, context)
        for context, conversation in made.items():
            there = await store.get_or_create_conversation(owner, NewConversation(context_id=context))
            assert there == conversation

    async def test_to_the_context_that_it_has(self, store: Store, owner: str) -> None:
        """A change to the same context changes nothing: get-or-create still creates no second conversation."""
        made = await store.get_or_create_conversation(owner, NewConversation(context_id="k"))
        await self.move(store, owner, made, "k")
        calls = (store.get_or_create_conversation(owner, NewConversation(context_id="k")) for _ in range(30))
        assert await asyncio.gather(*calls) == [made] * 30

    async def test_moves_and_get_or_create_at_the_same_moment(self, store: Store, owner: str) -> None:
        """Conversations that move while others get or create: nobody fails, and everyone gets one of the context."""
        made = [await store.create_conversation(owner, NewConversation(context_id="k")) for _ in range(5)]
        moves = [
            store.update_conversation(owner, each.id, ConversationChange(context_id=context))
            for each in made
            for context in ("l", "k", "l")
        ]
        gets = [store.get_or_create_conversation(owner, NewConversation(context_id="k")) for _ in range(20)]
        answers = await asyncio.gather(*moves, *gets)
        assert {c.context_id for c in answers[len(moves) :]} == {"k"}
        created = {c.id for c in answers[len(moves) :]} - {c.id for c in made}
        assert len(created) <= 1

    async def test_messages_and_the_id_stay(self, store: Store, owner: str) -> None:
        """A moved conversation keeps its messages and its place; creating it again as before is no conflict."""
        new = NewConversation(id=uuid4(), context_id="k")
        made = await store.create_conversation(owner, new)
        (message,) = await store.append(owner, made.id, user("sage"))
        moved = await self.move(store, owner, made, "l")
        assert await store.log(owner, made.id) == [message]
        assert await store.create_conversation(owner, new) == moved

    async def test_an_import_moves_it_if_asked(self, store: Store, owner: str) -> None:
        """With `update` an import moves a conversation, also into a context where get-or-create made one."""
        holder = await store.get_or_create_conversation(owner, NewConversation(context_id="l"))
        made = await store.get_or_create_conversation(owner, NewConversation(context_id="k"))
        new = ImportedConversation(id=made.id, context_id="l")
        assert (await store.import_conversation(owner, new)).left == ["context_id"]
        assert (await store.import_conversation(owner, new, update=True)).left == []
        assert {c.id for c in await whole_list(store, owner, context_id="l")} == {holder.id, made.id}
        created = await store.get_or_create_conversation(owner, NewConversation(context_id="k"))
        assert created.id not in {holder.id, made.id}
