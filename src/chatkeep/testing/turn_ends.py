"""Turns that end: finished by their worker, closed when its lease has expired, or removed with their conversation."""

import asyncio
from uuid import uuid4

import pytest

from chatkeep.errors import InvalidInput, NotFound, TurnLost
from chatkeep.events import Event, EventKind, error, reasoning, text
from chatkeep.model import Conversation, NewConversation, Source, Status
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import contents, dense, seqs, someone, user
from chatkeep.testing.reference import found, whole_log
from chatkeep.testing.turn_steps import AT_ONCE, Running, begin, counted, gone, pieces
from chatkeep.turns import LEASE, Ending, TurnProgress, TurnState

SOURCE = Source(document_id=uuid4(), file_path="herbs \x00.md", header_anchor="#sage", similarity_score=0.5)

WHOLE = Ending(
    status=Status.COMPLETE,
    content="A herb\x00 🌿.",
    parts=(
        {"type": "tool_call", "id": "1", "z": 10**30, "a": ["\x00", None]},
        {"type": "text", "text": "A herb\x00 🌿."},
    ),
    sources=(SOURCE,),
    model="small",
    input_tokens=2**63 - 1,
    output_tokens=0,
    duration_ms=12_345,
)
"""An end with everything that there may be."""

ENDED = (Status.COMPLETE, Status.INTERRUPTED, Status.FAILED)


class TurnEndContract(Contract):
    """Turns that end."""

    @pytest.fixture
    async def half(self, store: Store, owner: str, conversation: Conversation) -> Running:
        """A turn that runs, with some text."""
        running = await begin(store, owner, conversation.id)
        await running.write(*pieces("A grey herb"))
        return running

    @pytest.fixture
    async def expired(self, store: Store, owner: str, conversation: Conversation) -> Running:
        """A turn whose lease has expired, with some text."""
        running = await begin(store, owner, conversation.id, lease=AT_ONCE)
        await running.write(*pieces("A grey herb"), lease=AT_ONCE)
        await running.wait_until_expired()
        return running

    # --- finish -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("ending", [WHOLE, *map(Ending, ENDED)], ids=["whole", *ENDED])
    async def test_finishing(self, half: Running, owner: str, conversation: Conversation, ending: Ending) -> None:
        """The end stores the whole answer, removes the events and the lease, and moves updated_at."""
        store, before = half.store, await half.store.get_conversation(owner, conversation.id)
        done = await half.finish(ending)
        assert done.model_dump(include=set(ending._fields)) == {
            **ending._asdict(),
            "sources": tuple(source.model_dump() for source in ending.sources),
        }
        assert done == half.turn.answer.model_copy(update=ending._asdict())
        assert done == await half.message() == (await whole_log(store, owner, conversation.id))[-1]
        after = await store.get_conversation(owner, conversation.id)
        assert after == before.model_copy(update={"updated_at": after.updated_at})
        assert after.updated_at > before.updated_at
        await gone(half)
        assert not await half.expire()

    async def test_finished_conversation_is_listed_first(self, half: Running, owner: str) -> None:
        """The end of a turn moves its conversation to the front of the list."""
        other = await half.store.create_conversation(owner, NewConversation())
        assert (await half.store.list_conversations(owner)).items[0].id == other.id
        await half.finish()
        assert (await half.store.list_conversations(owner)).items[0].id == half.key.conversation_id

    async def test_finishing_again(self, half: Running) -> None:
        """The same end again, as after a lost reply, returns the message and changes nothing."""
        done = await half.finish(WHOLE)
        before = await half.store.get_conversation(*half.key[:2])
        assert await half.finish(WHOLE) == done
        assert await half.store.get_conversation(*half.key[:2]) == before

    async def test_finishing_otherwise(self, half: Running) -> None:
        """Another end, or another worker's, is refused once the turn has ended; nothing is overwritten."""
        with pytest.raises(TurnLost):
            await half.finish(Ending(Status.COMPLETE, "theirs"), worker=uuid4())
        assert (await half.message()).status is Status.IN_PROGRESS
        done = await half.finish(WHOLE)
        for ending in (
            Ending(Status.FAILED, WHOLE.content),
            WHOLE._replace(content="other"),
            WHOLE._replace(duration_ms=1),
        ):
            for worker in (None, uuid4()):
                with pytest.raises(TurnLost):
                    await half.finish(ending, worker=worker)
        assert await half.message() == done

    async def test_finishing_at_once(self, half: Running) -> None:
        """Of concurrent ends of two workers the owner of the lease wins; repeats of its own have the same result."""
        theirs = Ending(Status.INTERRUPTED, "theirs")
        outcomes = await asyncio.gather(
            *(half.finish(WHOLE) for _ in range(5)),
            *(half.finish(theirs, worker=uuid4()) for _ in range(5)),
            return_exceptions=True,
        )
        done = await half.message()
        assert outcomes[:5] == [done] * 5
        assert [type(outcome) for outcome in outcomes[5:]] == [TurnLost] * 5
        assert done.content == WHOLE.content

    @pytest.mark.parametrize("status", [Status.IN_PROGRESS, Status.DELETED])
    async def test_no_other_ends(self, half: Running, status: Status) -> None:
        """A turn ends as complete, interrupted or failed, and not otherwise; the turn runs on."""
        with pytest.raises(InvalidInput):
            await half.finish(Ending(status, "half"))
        assert (await half.progress()).is_running
        assert (await half.message()).content == "A grey herb"

    async def test_words_of_the_end_are_found(self, half: Running, owner: str) -> None:
        """Search finds the answer by the words of its end, once."""
        await half.finish(Ending(Status.FAILED, "Salvia officinalis"))
        assert await found(half.store, owner, "salvia") == {"Salvia officinalis"}
        assert await found(half.store, owner, "grey") == set()

    async def test_writes_race_with_the_end(self, half: Running) -> None:
        """Writes that come with the end are stored before it or lost; none is left behind."""
        events = [counted(pieces(f"more {n}"), len(half.events)) for n in range(10)]
        outcomes = await asyncio.gather(half.finish(WHOLE), *(half.repeat(each) for each in events))
        assert set(outcomes[1:]) <= {TurnState.RUNNING, TurnState.LOST}
        assert (await half.message()).content == WHOLE.content
        await gone(half)

    # --- removal ------------------------------------------------------------------------------------------

    async def lost(self, running: Running) -> None:
        """Check that the worker has lost the turn and that nothing is left of it."""
        await gone(running)
        with pytest.raises(TurnLost):
            await running.finish()
        assert not await running.expire()

    async def test_deleted_conversation(self, half: Running, owner: str) -> None:
        """A turn goes with its conversation; one with the same id begins without it."""
        store, id_ = half.store, half.key.conversation_id
        assert await store.delete_conversation(owner, id_)
        await self.lost(half)
        await store.create_conversation(owner, NewConversation(id=id_))
        await self.lost(half)
        again = await begin(store, owner, id_, user("sage?", id=half.turn.question.id))
        assert again.answer_id == half.answer_id
        assert await again.read() == []
        assert [message.content for message in await whole_log(store, owner, id_)] == ["sage?", ""]

    async def test_erased_owner(self, half: Running, owner: str) -> None:
        """Turns go with their owner, and are counted; another owner's stay."""
        store, stranger = half.store, someone()
        other = await store.create_conversation(owner, NewConversation())
        second = await begin(store, owner, other.id)
        theirs = await store.create_conversation(stranger, NewConversation(id=other.id))
        kept = await begin(store, stranger, theirs.id, user("sage?", id=second.turn.question.id))
        assert kept.answer_id == second.answer_id
        receipt = await store.erase_owner(owner)
        assert (receipt.turns, receipt.messages, receipt.remaining) == (2, 4, 0)
        await self.lost(half)
        await self.lost(second)
        assert await kept.write(text("mine")) is TurnState.RUNNING
        assert (await kept.finish()).content == "mine"
        assert (await store.erase_owner(owner)).turns == 0

    async def test_erasure_counts_running_turns_only(self, half: Running, owner: str) -> None:
        """A turn that has ended is none any more."""
        await half.finish()
        receipt = await half.store.erase_owner(owner)
        assert (receipt.turns, receipt.messages, receipt.remaining) == (0, 2, 0)

    async def test_answer_deleted_meanwhile(self, half: Running, owner: str) -> None:
        """Whoever deletes a running answer ends its turn: nothing of it is left but the tombstone."""
        store, id_ = half.store, half.key.conversation_id
        assert await store.delete_message(*half.key)
        await self.lost(half)
        assert [message.status for message in await store.log(owner, id_)] == [Status.COMPLETE, Status.DELETED]
        assert contents(await store.log(owner, id_)) == ["sage?", ""]
        await begin(store, owner, id_, "And mint?", max_running=1)

    async def test_question_deleted_meanwhile(self, half: Running, owner: str) -> None:
        """The answer to a question that is deleted meanwhile goes on."""
        assert await half.store.delete_message(owner, half.key.conversation_id, half.turn.question.id)
        assert await half.write(text(".")) is TurnState.RUNNING
        assert (await half.finish()).content == "A grey herb."

    async def test_renamed_owner(self, half: Running, owner: str) -> None:
        """An answer moves to the new owner with its text; its worker has lost it, and anybody closes it."""
        store, new = half.store, someone()
        assert await store.rename_owner(owner, new) == 1
        await self.lost(half)
        moved = Running(store, half.turn, half.key._replace(owner=new), half.worker)
        shown = await moved.message()
        assert (shown.status, shown.content) == (Status.IN_PROGRESS, "A grey herb")
        assert (await moved.progress()).has_expired
        while await store.turns.expire_turns():
            pass
        closed = await moved.message()
        assert (closed.status, closed.content) == (Status.INTERRUPTED, "A grey herb")
        assert await found(store, new, "grey") == {"A grey herb"}
        await begin(store, new, half.key.conversation_id, "And mint?", max_running=1)

    async def test_deletions_race_with_the_end(self, store: Store, owner: str) -> None:
        """A turn that ends while its conversation is deleted is gone with it, whichever comes first."""
        for _ in range(5):
            talk = await store.create_conversation(owner, NewConversation())
            running = await begin(store, owner, talk.id)
            await asyncio.gather(
                running.write(text("a")),
                store.delete_conversation(owner, talk.id),
                running.finish(WHOLE),
                return_exceptions=True,
            )
            await gone(running)
            with pytest.raises(NotFound):
                await running.message()
        assert (await store.erase_owner(owner)).remaining == 0

    # --- expiry -------------------------------------------------------------------------------------------

    async def test_expired_turn_is_closed(self, expired: Running) -> None:
        """A turn whose lease has expired is closed as interrupted, with every event that was stored, and once."""
        before = await expired.store.get_conversation(*expired.key[:2])
        assert await expired.expire()
        assert not await expired.expire()
        message = await expired.message()
        assert (message.status, message.content) == (Status.INTERRUPTED, "A grey herb")
        assert message.duration_ms is not None
        assert (await expired.store.get_conversation(*expired.key[:2])).updated_at > before.updated_at
        await self.lost(expired)

    async def test_everything_is_kept(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A turn that is closed has all that its events add up to: parts, sources, usage, more than a mebibyte."""
        running = await begin(store, owner, conversation.id, lease=AT_ONCE)
        place = {**SOURCE.model_dump(mode="json"), "id": "s", "title": "Herbs"}
        events = [
            reasoning("hm", signature="s"),
            Event(EventKind.TOOL_RESULT, {"tool_call_id": "1", "content": "x" * (1 << 20)}),
            Event(EventKind.SOURCE, place),
            *(text("茶" * 100_000) for _ in range(4)),
            Event(EventKind.USAGE, {"model": "small", "input_tokens": 3, "output_tokens": 4}),
            error("cut off"),
        ]
        await running.write(*events, lease=AT_ONCE)
        await running.wait_until_expired()
        assert await running.expire()
        message, folded = await running.message(), running.folded
        assert message.model_dump(include=set(folded._fields)) == {
            name: value for name, value in folded._asdict().items() if name not in ("n", "chars", "sources")
        } | {"sources": ({**SOURCE.model_dump(), "title": "Herbs"},)}
        assert (message.status, len(message.content), message.input_tokens) == (Status.INTERRUPTED, 400_000, 3)

    async def test_running_turns_are_not_closed(self, half: Running) -> None:
        """A turn with a lease stays, whoever sweeps; so does a message that is complete, or that never was."""
        while await half.store.turns.expire_turns():
            pass
        assert not await half.expire()
        assert (await half.progress()).is_running
        done = await half.finish()
        assert not await half.expire()
        assert await half.message() == done
        assert not await half.store.turns.expire_turn(*half.key[:2], uuid4())

    async def test_one_closes(self, expired: Running) -> None:
        """Of concurrent callers one closes a turn."""
        assert sorted(await asyncio.gather(*(expired.expire() for _ in range(10)))) == [False] * 9 + [True]
        assert (await expired.message()).content == "A grey herb"

    async def test_sweep(self, store: Store) -> None:
        """A sweep closes the expired turns of every owner; concurrent ones close each once."""
        turns: list[Running] = []
        for who in (someone(), someone(), someone()):
            for lease in (AT_ONCE, LEASE):
                talk = await store.create_conversation(who, NewConversation())
                turns.append(await begin(store, who, talk.id, lease=lease))
        expired, kept = turns[::2], turns[1::2]
        for turn in expired:
            await turn.write(*pieces("half an"), lease=AT_ONCE)
            await turn.wait_until_expired()
        swept = await asyncio.gather(*(store.turns.expire_turns() for _ in range(4)))
        while more := await store.turns.expire_turns():
            swept.append(more)
        assert sum(swept) >= len(expired)
        for turn in expired:
            message = await turn.message()
            assert (message.status, message.content) == (Status.INTERRUPTED, "half an")
            assert not await turn.expire()
        assert [await turn.progress() for turn in kept] == [TurnProgress([], is_running=True)] * 3

    async def test_end_races_with_expiry(self, store: Store, owner: str) -> None:
        """A turn that is finished while others close it ends once: as its worker says, or interrupted."""
        for _ in range(5):
            talk = await store.create_conversation(owner, NewConversation())
            running = await begin(store, owner, talk.id, lease=AT_ONCE)
            await running.write(*pieces("A grey herb"), lease=AT_ONCE)
            await running.wait_until_expired()
            first, *closed = await asyncio.gather(
                running.finish(WHOLE), *(running.expire() for _ in range(3)), return_exceptions=True
            )
            message = await running.message()
            if isinstance(first, TurnLost):
                assert (message.status, message.content) == (Status.INTERRUPTED, "A grey herb")
                assert sorted(map(str, closed)) == ["False", "False", "True"]
            else:
                assert message == first
                assert closed == [False] * 3
            assert seqs(await store.log(owner, talk.id)) == dense(2)
            await gone(running)

    async def test_stop_closes_an_expired_turn(self, expired: Running) -> None:
        """Whoever asks an expired turn to stop closes it."""
        assert await expired.stop() is False
        message = await expired.message()
        assert (message.status, message.content) == (Status.INTERRUPTED, "A grey herb")
        await self.lost(expired)

    async def test_stop_needs_a_message(self, half: Running) -> None:
        """A message that is no answer does not run; one that is not there is not found."""
        stop = half.store.turns.stop_turn
        assert await stop(*half.key[:2], half.turn.question.id) is False
        with pytest.raises(NotFound):
            await stop(*half.key[:2], uuid4())
        await half.store.delete_message(*half.key)
        with pytest.raises(NotFound):
            await half.stop()

    async def test_expired_turn_of_a_deleted_question(self, expired: Running, owner: str) -> None:
        """An expired turn is closed also if its question was deleted."""
        assert await expired.store.delete_message(owner, expired.key.conversation_id, expired.turn.question.id)
        assert await expired.expire()
        assert (await expired.message()).content == "A grey herb"
