"""The shape of the port."""

import asyncio
import inspect
from uuid import uuid4

import pytest

from chatkeep.errors import StoreUnavailable
from chatkeep.model import NewConversation
from chatkeep.store import Store
from chatkeep.testing.calls import CONVERSATION_CALLS, MESSAGE_CALLS, METHODS, OWNER_CALLS, STORE_CALLS
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.messages import dense, numbered, seqs


class PortContract(Contract):
    """The shape of the port."""

    async def test_methods_have_the_ports_parameters(self, store: Store) -> None:
        """Every method has the port's parameters: the same names, kinds and defaults."""
        for name in METHODS:
            expected = inspect.signature(getattr(Store, name)).parameters.values()
            actual = inspect.signature(getattr(type(store), name)).parameters.values()
            assert [(p.name, p.kind, p.default) for p in expected] == [(p.name, p.kind, p.default) for p in actual]

    async def test_every_method_of_the_port_is_in_a_table_of_calls(self) -> None:
        """The tables of calls have every method of the port, so that the tests of owners and ids cover new ones."""
        parameters = {name: inspect.signature(getattr(Store, name)).parameters for name in METHODS}
        of_conversation = {name for name, p in parameters.items() if "conversation_id" in p} - {"search_messages"}
        assert set(CONVERSATION_CALLS) == of_conversation
        assert set(MESSAGE_CALLS) == {name for name, p in parameters.items() if {"message_id", "leaf"} & set(p)}
        assert set(OWNER_CALLS) == {
            name for name, p in parameters.items() if "owner" in p and name not in of_conversation
        }
        assert set(parameters) == {*CONVERSATION_CALLS, *OWNER_CALLS, *STORE_CALLS}

    async def test_ping_answers_and_migrating_again_changes_nothing(self, store: Store, owner: str) -> None:
        """An open store has the newest schema; migrating again keeps its data."""
        conversation = await store.create_conversation(owner, NewConversation(title="Tea"))
        revision = await store.schema_revision()
        await store.migrate()
        await store.ping()
        assert await store.schema_revision() == revision is not None
        assert await store.get_conversation(owner, conversation.id) == conversation

    async def test_a_closed_store_refuses_every_call(self, open_store_with: Opener, owner: str) -> None:
        """After aclose every method raises StoreUnavailable; closing again does nothing."""
        async with open_store_with() as store:
            conversation = await store.create_conversation(owner, NewConversation())
            await store.aclose()
            for call in (*CONVERSATION_CALLS.values(), *OWNER_CALLS.values()):
                with pytest.raises(StoreUnavailable):
                    await call(store, owner, conversation.id, uuid4())
            with pytest.raises(StoreUnavailable):
                await store.ping()
            await store.aclose()

    async def test_closing_finishes_the_writes_that_were_taken(self, open_store_with: Opener, owner: str) -> None:
        """Appends that are pending when the store is closed are stored and return."""
        async with open_store_with() as store:
            conversation = await store.create_conversation(owner, NewConversation())
            waiting = [asyncio.create_task(store.append(owner, conversation.id, numbered(2))) for _ in range(60)]
            await asyncio.sleep(0)
            await store.aclose()
            stored = [message for batch in await asyncio.gather(*waiting) for message in batch]
        assert sorted(seqs(stored)) == dense(120)
