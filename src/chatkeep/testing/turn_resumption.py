"""Turns whose worker is gone, and that another worker goes on with."""

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest

from chatkeep.errors import TurnInProgress, TurnLost
from chatkeep.events import Event, EventKind, TurnEvent, place_of, reasoning, state_of, text
from chatkeep.model import Conversation, NewConversation, RunningAnswer, Status
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import contents, dense, seqs, someone, user
from chatkeep.testing.reference import found, reads_of, whole_history, whole_log
from chatkeep.testing.turn_steps import AT_ONCE, Running, begin, counted, gone, pieces
from chatkeep.turns import GRACE, ResumedTurn, TurnKey, TurnProgress, TurnState

OVERDUE = -2 * GRACE
"""A lease that expired longer than GRACE ago: so nobody waits for that. A turn has it from its beginning, since a write
shortens no lease."""

CALL = Event(EventKind.TOOL_CALL, {"id": "c1", "name": "look_up", "arguments": {}})
STATE = Event(EventKind.STATE, {"id": "resp_1\x00", "z": 10**30, "a": [None, {"text": "🌿"}]})
"""What another worker needs, with what JSON and databases find difficult."""


def goes_on(running: Running, resumed: ResumedTurn | None, worker: Running) -> Running:
    """The turn as the worker has it that took it over, after a look at what it was given."""
    assert resumed is not None
    assert list(resumed.events) == running.events
    assert state_of(resumed.events) == running.events[-1].data
    worker.events = list(resumed.events)
    return worker


async def take_over(running: Running, lease: timedelta | None = None) -> Running:
    """Take a turn over, which must succeed, as a worker of its own."""
    taken = Running(running.store, running.turn, running.key, uuid4())
    return goes_on(running, await taken.resume() if lease is None else await taken.resume(lease=lease), taken)


class TurnResumptionContract(Contract):
    """Turns whose worker is gone, and that another worker goes on with."""

    @pytest.fixture
    async def left(self, store: Store, owner: str, conversation: Conversation) -> Running:
        """A turn whose lease has expired, and whose last event is a state."""
        return await self._left(store, owner, conversation)

    async def _left(
        self, store: Store, owner: str, conversation: Conversation, *more: Event, lease: timedelta = AT_ONCE
    ) -> Running:
        running = await begin(store, owner, conversation.id, lease=lease)
        await running.write(reasoning("hm"), *pieces("A grey "), STATE, *more, lease=lease)
        await running.wait_until_expired()
        return running

    async def not_resumed(self, running: Running) -> None:
        """Check that a turn is nobody's to take over, and that trying to changes nothing."""
        before = await running.progress()
        for worker in (uuid4(), running.worker):
            assert await Running(running.store, running.turn, running.key, worker).resume() is None
        assert await running.progress() == before

    # --- who goes on ----------------------------------------------------------------------------------------

    async def test_a_worker_goes_on(self, left: Running, owner: str) -> None:
        """Whoever takes a turn over gets its question and all its events, and the turn runs again, until its end."""
        store, before = left.store, await whole_log(left.store, *left.key[:2])
        taken = Running(store, left.turn, left.key, uuid4())
        resumed = await taken.resume()
        assert resumed is not None
        assert resumed.question == left.turn.question
        assert {type(event) for event in resumed.events} == {TurnEvent}
        goes_on(left, resumed, taken)
        assert await whole_log(store, *left.key[:2]) == before
        assert await left.progress() == TurnProgress(left.events, is_running=True)
        assert await taken.write(text("herb."), Event(EventKind.USAGE, {"model": "small"})) is TurnState.RUNNING
        assert [event.n for event in await taken.read()] == dense(len(left.events) + 2)
        done = await taken.finish()
        assert done == await taken.message() == (await whole_log(store, *left.key[:2]))[-1]
        assert (done.status, done.content, done.model) == (Status.COMPLETE, "A grey herb.", "small")
        assert done.parts == ({"type": "reasoning", "text": "hm"}, {"type": "text", "text": "A grey herb."})
        assert await found(store, owner, "grey herb") == {"A grey herb."}
        assert seqs(await store.log(*left.key[:2])) == dense(2)
        await gone(taken)

    async def test_one_of_many_workers_goes_on(self, left: Running) -> None:
        """Of twenty workers at once exactly one takes a turn over; so it is with the same worker twenty times."""
        workers = [Running(left.store, left.turn, left.key, uuid4()) for _ in range(20)]
        outcomes = await asyncio.gather(*(worker.resume() for worker in workers))
        ((resumed, worker),) = [each for each in zip(outcomes, workers, strict=True) if each[0] is not None]
        taken = goes_on(left, resumed, worker)
        for other in workers:
            assert await other.write() is (TurnState.RUNNING if other is taken else TurnState.LOST)
        await taken.finish()

    async def test_a_repeated_call_takes_over_once(self, left: Running) -> None:
        """Calls of one worker at once take a turn over once."""
        worker = Running(left.store, left.turn, left.key, uuid4())
        outcomes = await asyncio.gather(*(worker.resume() for _ in range(5)))
        assert [outcome is None for outcome in outcomes].count(False) == 1

    async def test_the_worker_before_has_lost_the_turn(self, left: Running) -> None:
        """Who had the turn before stores nothing any more, and does not end it, whenever it wakes up."""
        taken = await take_over(left)
        assert await left.write(text("late")) is TurnState.LOST
        with pytest.raises(TurnLost):
            await left.finish()
        await taken.write(text("herb."))
        assert await left.repeat(counted([text("late")], len(taken.events))) is TurnState.LOST
        with pytest.raises(TurnLost):
            await left.finish()
        assert await taken.read() == taken.events
        assert (await taken.finish()).content == "A grey herb."
        with pytest.raises(TurnLost):
            await left.finish()

    async def test_a_worker_that_wakes_up_keeps_its_turn(self, left: Running) -> None:
        """Who writes after its lease has expired, and before others take over, goes on itself."""
        assert await left.write(text("herb.")) is TurnState.RUNNING
        await self.not_resumed(left)
        assert (await left.finish()).content == "A grey herb."

    async def test_one_goes_on_or_ends(self, store: Store, owner: str) -> None:
        """A turn that is taken over while it is finished, stopped or closed has one fate, which all are told."""
        for _ in range(5):
            talk = await store.create_conversation(owner, NewConversation())
            left = await self._left(store, owner, talk)
            worker = Running(store, left.turn, left.key, uuid4())
            resumed, finished, _ = await asyncio.gather(
                worker.resume(), left.finish(), left.expire(), return_exceptions=True
            )
            assert isinstance(resumed, ResumedTurn) is isinstance(finished, TurnLost)
            if isinstance(resumed, ResumedTurn):
                assert (await goes_on(left, resumed, worker).finish()).content == "A grey "
            else:
                assert resumed is None
                assert (await left.message()) == finished
            await gone(worker)

    async def test_a_turn_is_taken_over_again(self, left: Running) -> None:
        """If the next worker dies, too, a third goes on with the state that was stored last."""
        second = await take_over(left, AT_ONCE)
        await second.wait_until_expired()
        third = await take_over(second, AT_ONCE)
        state = Event(EventKind.STATE, {"id": "resp_2"})
        await third.write(text("herb."), lease=AT_ONCE)
        await third.write(state, lease=AT_ONCE)
        await third.wait_until_expired()
        fourth = await take_over(third)
        assert state_of(fourth.events) == state.data
        assert (await fourth.finish()).content == "A grey herb."

    async def test_many_events(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Whoever takes over gets all events, also more than a reader gets at a time."""
        running = await begin(store, owner, conversation.id, lease=AT_ONCE)
        await running.write(*(text("茶" * 100_000) for _ in range(8)), STATE, lease=AT_ONCE)
        await running.wait_until_expired()
        taken = await take_over(running)
        assert len((await taken.finish()).content) == 800_000

    async def test_the_next_worker_hears_who_asked_to_stop(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """A turn that was asked to stop before its worker died is stopped by the next."""
        running = await begin(store, owner, conversation.id, lease=timedelta(seconds=1))
        await running.write(text("A "), STATE, lease=timedelta(seconds=1))
        assert await running.stop()
        await running.wait_until_expired()
        taken = await take_over(running)
        assert await taken.write() is TurnState.STOPPING

    # --- what cannot be gone on with ------------------------------------------------------------------------

    async def test_turns_that_are_not_taken_over(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A turn that runs, has ended, or never was is not taken over, nor a message that is no answer."""
        running = await begin(store, owner, conversation.id)
        await running.write(STATE)
        await self.not_resumed(running)
        resume = store.turns.resume_turn
        for id_ in (running.turn.question.id, uuid4()):
            assert await resume(owner, conversation.id, id_, worker=uuid4()) is None
        assert await resume(owner, uuid4(), running.answer_id, worker=uuid4()) is None
        done = await running.finish()
        await self.not_resumed(running)
        assert await running.message() == done

    @pytest.mark.parametrize(
        "events", [[], pieces("A grey"), [STATE, CALL, text("herb")]], ids=["none", "text", "call"]
    )
    async def test_turns_without_a_state(
        self, store: Store, owner: str, conversation: Conversation, events: list[Event]
    ) -> None:
        """A turn without a state, or that has called a tool since, is not taken over, but closed by who comes first."""
        running = await begin(store, owner, conversation.id, lease=AT_ONCE)
        await running.write(*events, lease=AT_ONCE)
        await running.wait_until_expired()
        await self.not_resumed(running)
        assert await running.expire()
        assert (await running.message()).content == running.folded.content

    async def test_a_deleted_question_is_not_gone_on_with(self, left: Running) -> None:
        """Nobody goes on with the answer to a question that was deleted: it is closed."""
        assert await left.store.delete_message(*left.key[:2], left.turn.question.id)
        await self.not_resumed(left)
        assert await left.expire()
        assert (await left.message()).content == "A grey "

    async def test_what_was_removed_is_not_gone_on_with(self, store: Store, owner: str) -> None:
        """Nobody goes on with an answer that was deleted, alone, with its conversation or with its owner."""
        turns = [
            await self._left(store, owner, await store.create_conversation(owner, NewConversation())) for _ in range(3)
        ]
        await store.delete_message(*turns[0].key)
        await store.delete_conversation(*turns[1].key[:2])
        for turn in turns[:2]:
            await self.not_resumed(turn)
        await store.erase_owner(owner)
        await self.not_resumed(turns[2])

    async def test_others_do_not_go_on(self, left: Running) -> None:
        """Nobody takes over a turn of another owner, also with a conversation of the same id."""
        stranger = someone()
        theirs = left.key._replace(owner=stranger)
        for _ in range(2):
            assert await left.store.turns.resume_turn(*theirs, worker=left.worker) is None
            await left.store.create_conversation(stranger, NewConversation(id=left.key.conversation_id))
        await take_over(left)

    async def test_a_renamed_owner_goes_on(self, left: Running) -> None:
        """A turn that moved to another owner is taken over there, and not under the old name."""
        new = someone()
        assert await left.store.rename_owner(left.key.owner, new) == 1
        await self.not_resumed(left)
        moved = Running(left.store, left.turn, left.key._replace(owner=new), left.worker, list(left.events))
        assert (await (await take_over(moved)).finish()).content == "A grey "

    # --- meanwhile ------------------------------------------------------------------------------------------

    async def test_questions_meanwhile(self, left: Running, owner: str) -> None:
        """While a turn may be gone on with, its question finds it, and another one waits for it."""
        store, id_, question = left.store, left.key.conversation_id, left.turn.question
        with pytest.raises(TurnInProgress) as caught:
            await begin(store, owner, id_, "And mint?")
        assert caught.value.message_id == left.answer_id
        for asked, attempt in ((user(question.content, id=question.id), None), (question.id, None), (question.id, "k")):
            turn = await store.turns.start_turn(owner, id_, asked, worker=uuid4(), attempt=attempt)
            assert (turn.question, turn.answer, turn.is_mine) == (question, await left.message(), False)
        assert seqs(await store.log(owner, id_)) == dense(2)
        taken = await take_over(left)
        with pytest.raises(TurnInProgress):
            await begin(store, owner, id_, "And mint?")
        turn = await store.turns.start_turn(owner, id_, question.id, worker=taken.worker)
        assert turn.is_mine

    async def test_it_counts_as_no_running_answer(self, left: Running, owner: str) -> None:
        """A turn that waits for another worker keeps its owner from nothing elsewhere."""
        other = await left.store.create_conversation(owner, NewConversation())
        await begin(left.store, owner, other.id, max_running=1)

    async def test_it_stays_open_for_a_while(self, left: Running) -> None:
        """Nobody closes a turn that another worker may still go on with."""
        assert not await left.expire()
        while await left.store.turns.expire_turns():
            pass
        assert (await left.message()).status is Status.IN_PROGRESS
        await take_over(left)

    @pytest.mark.parametrize("by", ["expire_turn", "expire_turns", "start_turn"])
    async def test_it_is_closed_after_a_while(
        self, store: Store, owner: str, conversation: Conversation, by: str
    ) -> None:
        """A turn that nobody goes on with is closed when GRACE is over, as any other, with what there is of it."""
        left = await self._left(store, owner, conversation, lease=OVERDUE)
        if by == "expire_turn":
            assert await left.expire()
        elif by == "expire_turns":
            while await store.turns.expire_turns():
                pass
        else:
            await begin(store, owner, conversation.id, "And mint?", max_running=1)
        message = await left.message()
        assert (message.status, message.content) == (Status.INTERRUPTED, "A grey ")
        assert message.parts == ({"type": "reasoning", "text": "hm"}, {"type": "text", "text": "A grey "})
        await self.not_resumed(left)
        await gone(left)

    async def test_late_is_not_too_late(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A turn is taken over after GRACE, too, as long as nobody has closed it."""
        left = await self._left(store, owner, conversation, lease=OVERDUE)
        taken = await take_over(left)
        assert not await taken.expire()
        assert (await taken.finish()).content == "A grey "

    async def test_stop_closes_it(self, left: Running) -> None:
        """Whoever asks a turn to stop that waits for another worker closes it."""
        assert await left.stop() is False
        message = await left.message()
        assert (message.status, message.content) == (Status.INTERRUPTED, "A grey ")
        await self.not_resumed(left)

    # --- states ---------------------------------------------------------------------------------------------

    async def test_states_are_in_no_message(self, left: Running, owner: str) -> None:
        """States have numbers among the events, and are in no message, running or closed, and in no export."""
        store, id_ = left.store, left.key.conversation_id
        taken = await take_over(left)
        await taken.write(text("herb"), STATE)
        parts = ({"type": "reasoning", "text": "hm"}, {"type": "text", "text": "A grey herb"})
        for message in await reads_of(store, *left.key):
            assert isinstance(message, RunningAnswer)
            assert (message.content, message.parts) == ("A grey herb", parts)
            assert message.stream.last_event_id == str(place_of(left.answer_id, len(taken.events), 13))
        assert contents(await whole_history(store, owner, id_)) == ["sage?", "A grey herb"]
        exported = (await store.export_messages(owner, id_))[-1]
        assert (exported.status, exported.content, exported.parts) == (Status.INTERRUPTED, "A grey herb", parts)
        assert await taken.stop()
        done = await taken.finish(taken.ending(Status.INTERRUPTED))
        assert (done.content, done.parts) == ("A grey herb", parts)

    # --- all owners -----------------------------------------------------------------------------------------

    async def test_expired_turns(self, store: Store) -> None:
        """The expired turns of all owners are named as their owners are, those first that expired first."""
        owners = [someone(), f"{someone()}\x00 🌿\ufdd0", someone()]
        turns = []
        for days, who in enumerate(owners, -3):
            talk = await store.create_conversation(who, NewConversation())
            turns.append(await self._left(store, who, talk, lease=timedelta(days=days)))
        running = await begin(store, owners[0], (await store.create_conversation(owners[0], NewConversation())).id)
        await running.write(STATE)
        listed = await store.turns.expired_turns()
        keys = [turn.key for turn in turns]
        assert [key for key in listed if key.owner in owners] == keys
        assert {type(key) for key in listed} == {TurnKey}
        for turn in turns:
            await take_over(turn)
        assert not set(keys) & set(await store.turns.expired_turns())

    async def test_expired_turns_are_some(self, store: Store, owner: str) -> None:
        """Turns without a state are named, too; those that have ended are not."""
        turns = [
            await begin(
                store, owner, (await store.create_conversation(owner, NewConversation())).id, lease=timedelta(days=-1)
            )
            for _ in range(2)
        ]
        await turns[0].finish()
        assert [key for key in await store.turns.expired_turns() if key.owner == owner] == [turns[1].key]
