"""Turns of others, and the shape of the port: nobody follows, ends or disturbs a turn that is not theirs."""

import inspect
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import InvalidId, InvalidInput, NotFound, NotYours, StoreUnavailable, TurnLost
from chatkeep.model import Conversation, NewConversation, RunningAnswer
from chatkeep.store import Store
from chatkeep.testing.calls import NAME_NO_OWNER, OTHER_TURN_CALLS, TURN_CALLS
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.examples import MALFORMED_IDS
from chatkeep.testing.messages import someone, user
from chatkeep.testing.reference import whole_log
from chatkeep.testing.turn_steps import AT_ONCE, Running, begin, pieces
from chatkeep.turns import LEASE, TurnProgress, Turns, TurnState

SAY_WHOSE = ("start_turn", "start_turn again", "stop_turn")
"""What raises NotFound or NotYours, as the methods of `Store` do. Others only say that there is no such turn: who makes
an answer whose owner was renamed learns the same as everybody else."""


UNSAID = {"finish_turn": TurnLost, "expire_turn": False, "resume_turn": None}
"""What the others return or raise where there is no such turn, whoever else has it."""


class TurnOwnerContract(Contract):
    """Turns of others, and the shape of the port."""

    @pytest.fixture
    async def foreign(self, store: Store) -> Running:
        """A turn of another owner."""
        return await self._foreign_turn(store)

    async def _foreign_turn(self, store: Store, **arguments: Any) -> Running:
        stranger = someone()
        talk = await store.create_conversation(stranger, NewConversation(title="Private"))
        running = await begin(store, stranger, talk.id, "private saffron?", **arguments)
        await running.write(*pieces("private tea"), lease=arguments.get("lease", LEASE))
        return running

    async def test_methods_of_turns_have_the_ports_parameters(self, store: Store) -> None:
        """Every method has the port's parameters: the same names, kinds and defaults."""
        for name in sorted(Turns.__abstractmethods__):
            expected = inspect.signature(getattr(Turns, name)).parameters.values()
            actual = inspect.signature(getattr(type(store.turns), name)).parameters.values()
            assert [(p.name, p.kind, p.default) for p in expected] == [(p.name, p.kind, p.default) for p in actual]

    async def test_every_method_of_turns_is_in_a_table_of_calls(self) -> None:
        """The tables of calls have every method of the port, so that the tests of owners and ids cover new ones."""
        parameters = {name: inspect.signature(getattr(Turns, name)).parameters for name in Turns.__abstractmethods__}
        of_conversation = {name for name, p in parameters.items() if "conversation_id" in p}
        assert {name.split()[0] for name in TURN_CALLS} == of_conversation
        assert set(OTHER_TURN_CALLS) == set(parameters) - of_conversation

    async def test_a_closed_store_refuses_every_call_of_turns(self, open_store_with: Opener, owner: str) -> None:
        """After aclose every method raises StoreUnavailable."""
        async with open_store_with() as store:
            conversation = await store.create_conversation(owner, NewConversation())
            running = await begin(store, owner, conversation.id)
            await store.aclose()
            for call in (*TURN_CALLS.values(), *OTHER_TURN_CALLS.values()):
                with pytest.raises(StoreUnavailable):
                    await call(store, owner, conversation.id, running.answer_id)

    @pytest.mark.parametrize("call", sorted(TURN_CALLS))
    async def test_malformed_ids_of_turns(
        self, store: Store, owner: str, conversation: Conversation, call: str
    ) -> None:
        """A malformed id raises InvalidId, whichever it is."""
        for bad in MALFORMED_IDS:
            with pytest.raises(InvalidId):
                await TURN_CALLS[call](store, owner, bad, uuid4())
            if call != "start_turn":
                with pytest.raises(InvalidId):
                    await TURN_CALLS[call](store, owner, conversation.id, bad)

    @pytest.mark.parametrize("owner_", ["", "\ud800", "o" * 256, None, 7], ids=ascii)
    async def test_malformed_owners_of_turns(self, store: Store, owner_: Any) -> None:
        """A malformed owner raises InvalidInput in every method that takes one."""
        for name, call in {**TURN_CALLS, **OTHER_TURN_CALLS}.items():
            if name not in NAME_NO_OWNER:
                with pytest.raises(InvalidInput):
                    await call(store, owner_, uuid4(), uuid4())

    async def outcome(self, call: str, store: Store, owner: str, conversation_id: UUID, message_id: UUID) -> object:
        """What a call returned or raised, without ids."""
        try:
            return await TURN_CALLS[call](store, owner, conversation_id, message_id)
        except (NotFound, NotYours, TurnLost) as error:
            return type(error), error.detail

    @pytest.mark.parametrize("call", sorted(TURN_CALLS))
    async def test_unknown_turns(self, store: Store, owner: str, conversation: Conversation, call: str) -> None:
        """In an unknown conversation, and of an unknown message, there is no turn."""
        (mine,) = await store.append(owner, conversation.id, [user("mine")])
        ids = [(uuid4(), mine.id), (uuid4(), uuid4())]
        if call != "start_turn":
            ids.append((conversation.id, uuid4()))
        for conversation_id, message_id in ids:
            outcome = await self.outcome(call, store, owner, conversation_id, message_id)
            assert kind(outcome) == UNSAID.get(call, NotFound)
        assert await whole_log(store, owner, conversation.id) == [mine]

    @pytest.mark.parametrize("lease", ["running", "expired"])
    @pytest.mark.parametrize("call", sorted(TURN_CALLS))
    async def test_foreign_turns(self, store: Store, owner: str, call: str, lease: str) -> None:
        """Nobody starts, ends, stops or closes a turn of another owner: refused as by `Store`, without any effect."""
        theirs = await self._foreign_turn(store, **({"lease": AT_ONCE} if lease == "expired" else {}))
        before = await whole_log(store, *theirs.key[:2])
        ids = [theirs.answer_id, theirs.turn.question.id]
        for _ in range(2):  # first without, then with a conversation of their own
            for id_ in ids:
                outcome = await self.outcome(call, store, owner, theirs.key.conversation_id, id_)
                assert kind(outcome) == UNSAID.get(call, NotYours)
            await store.create_conversation(owner, NewConversation())
        assert await whole_log(store, *theirs.key[:2]) == before
        assert isinstance(before[1], RunningAnswer)
        assert await theirs.write() is TurnState.RUNNING

    @pytest.mark.parametrize("call", sorted(TURN_CALLS))
    async def test_hidden_foreign_turns(self, open_store_with: Opener, owner: str, call: str) -> None:
        """With hide_foreign, a foreign turn and an unknown one have the same result."""
        async with open_store_with(hide_foreign=True) as store:
            theirs = await self._foreign_turn(store)
            outcomes = [
                await self.outcome(call, store, owner, conversation_id, theirs.answer_id)
                for conversation_id in (theirs.key.conversation_id, uuid4())
            ]
            assert outcomes[0] == outcomes[1]
            assert call not in SAY_WHOSE or kind(outcomes[0]) is NotFound
            assert await theirs.write() is TurnState.RUNNING

    @pytest.mark.parametrize("call", sorted(TURN_CALLS))
    async def test_foreign_messages(
        self, store: Store, owner: str, conversation: Conversation, foreign: Running, call: str
    ) -> None:
        """A turn of another owner is not found in one's own conversation."""
        if call != "start_turn":
            for id_ in (foreign.answer_id, foreign.turn.question.id):
                outcome = await self.outcome(call, store, owner, conversation.id, id_)
                assert kind(outcome) == UNSAID.get(call, NotFound)
        assert await store.log(owner, conversation.id) == []
        assert await foreign.write() is TurnState.RUNNING

    async def test_foreign_events(self, store: Store, owner: str, foreign: Running) -> None:
        """Who puts their name before a turn of another owner reads nothing of it, and writes nothing to it."""
        await store.create_conversation(owner, NewConversation(id=foreign.key.conversation_id))
        mine = Running(store, foreign.turn, foreign.key._replace(owner=owner), foreign.worker)
        assert await mine.progress() == TurnProgress([], is_running=False)
        assert await mine.write(*pieces("let me in")) is TurnState.LOST
        with pytest.raises(TurnLost):
            await mine.finish()
        assert not await mine.expire()
        assert await foreign.read() == foreign.events

    async def test_foreign_ids_are_free(self, store: Store, owner: str, foreign: Running) -> None:
        """Two owners may have conversations, questions and answers with the same ids: their turns are two."""
        id_ = foreign.key.conversation_id
        await store.create_conversation(owner, NewConversation(id=id_))
        mine = await begin(store, owner, id_, user("my tea?", id=foreign.turn.question.id), worker=foreign.worker)
        assert mine.answer_id == foreign.answer_id
        await mine.write(*pieces("my own tea"))
        assert [await turn.read() for turn in (mine, foreign)] == [mine.events, foreign.events]
        await mine.stop()
        assert await foreign.write() is TurnState.RUNNING
        await mine.finish()
        assert (await foreign.progress()).is_running
        assert await store.delete_conversation(owner, id_)
        assert (await foreign.finish()).content == "private tea"


def kind(outcome: object) -> object:
    """The class of an error, or the value that was returned."""
    return outcome[0] if isinstance(outcome, tuple) else outcome
