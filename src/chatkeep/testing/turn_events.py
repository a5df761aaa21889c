"""Events of turns: stored once, in order, by whoever has the lease."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidId, InvalidInput
from chatkeep.events import Event, EventKind, TurnEvent, error, reasoning, text
from chatkeep.model import Conversation, NewConversation, Status
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.examples import JSON, PROPERTY
from chatkeep.testing.messages import someone
from chatkeep.testing.turn_steps import AT_ONCE, Running, begin, counted, gone, pieces
from chatkeep.turns import TurnKey, TurnPlace, TurnProgress, TurnState, TurnWrite
from chatkeep.values import json_text

MEBIBYTE = 1 << 20

EVENTS = [
    reasoning("Which "),
    reasoning("herb?", signature="c2ln\x00"),
    Event(EventKind.TOOL_CALL, {"id": "1", "name": "find", "arguments": {"z": 1, "a": [None, 10**30, 1.5, "\x00"]}}),
    Event(EventKind.TOOL_RESULT, {"tool_call_id": "1", "content": [{"b": {}, "a": []}], "is_error": False}),
    Event(EventKind.SOURCE, {"id": "s", "title": "Herbs 🌿", "url": "https://example.org/?a=1&b='2'"}),
    Event(EventKind.DATA, {"id": "d", "data": {"": "", "\x00": "\ufdd0", "__proto__": None, "$set": {"a.b": 1}}}),
    text("A "),
    text(""),
    text("herb.\n"),
    Event(EventKind.USAGE, {"model": "small", "input_tokens": 2**63 - 1, "output_tokens": 0}),
    error("cut off"),
]
"""Of each kind one at least, with what JSON and databases find difficult."""

OFFERED = st.builds(text, st.text()) | st.builds(Event, st.just(EventKind.DATA), st.fixed_dictionaries({"data": JSON}))


class TurnEventContract(Contract):
    """Events of turns: stored once, in order, by whoever has the lease."""

    @pytest.fixture
    async def running(self, store: Store, owner: str, conversation: Conversation) -> Running:
        """A turn that runs."""
        return await begin(store, owner, conversation.id)

    async def test_events_are_read_as_they_were_written(self, running: Running) -> None:
        """Events come back in their order, each unchanged with the order of its keys, in one write or in many."""
        for number, event in enumerate(EVENTS):
            assert await running.progress() == TurnProgress(counted(EVENTS[:number]), is_running=True)
            assert await running.write(event) is TurnState.RUNNING
        assert await running.write(*EVENTS) is TurnState.RUNNING
        found = await running.read()
        assert found == counted(EVENTS * 2)
        assert [json_text(event.data) for event in found] == [json_text(event.data) for event in EVENTS] * 2
        assert {type(event) for event in found} == {TurnEvent}
        assert {type(event.kind) for event in found} == {EventKind}

    async def test_events_after_a_place(self, running: Running) -> None:
        """A reader gets what follows the number that it names, and nothing beyond the last one."""
        await running.write(*EVENTS)
        everything = counted(EVENTS)
        for after in (-(2**70), -1, *range(len(EVENTS)), 2**31, 2**63 - 1, 2**63, 10**18, 2**70):
            progress = await running.progress(after)
            assert progress == TurnProgress(everything[max(0, after) :], is_running=True)

    @PROPERTY
    @given(events=st.lists(OFFERED, max_size=6))
    async def test_data_of_any_kind(self, store: Store, events: list[Event]) -> None:
        """Every Unicode text and every JSON value is read as it was written, and so is the answer that they make."""
        owner = someone()
        running = await begin(store, owner, (await store.create_conversation(owner, NewConversation())).id)
        await running.write(*events)
        found = await running.read()
        assert found == counted(events)
        assert [json_text(event.data) for event in found] == [json_text(event.data) for event in events]
        folded = running.folded
        shown = await running.message()
        assert (shown.content, shown.parts, shown.sources) == (folded.content, folded.parts, folded.sources)
        assert (await running.finish()).parts == (await running.message()).parts == folded.parts

    @pytest.mark.parametrize("character", ["a", "茶", "🌿", "\x00", '"'], ids=ascii)
    async def test_what_is_read_at_a_time_is_bounded(self, running: Running, character: str) -> None:
        """Events are read in parts of a mebibyte of text at most, JSON or not; all of them come, and not one by one."""
        events = [text(character * 30_000) for _ in range(60)]
        await running.write(*events[:1], *events[1:])
        found: list[TurnEvent] = []
        reads = 0
        while part := (await running.progress(len(found))).events:
            assert sum(len(event.data["text"].encode()) for event in part) <= MEBIBYTE
            found += part
            reads += 1
        assert found == counted(events)
        total = sum(len(json_text(event.data).encode()) for event in events)
        assert reads <= 2 * (total // MEBIBYTE + 1)

    async def test_large_events(self, running: Running) -> None:
        """One event may be larger than what is read at a time: it is read alone."""
        huge = Event(EventKind.TOOL_RESULT, {"tool_call_id": "1", "content": "0123456789\x00茶\n🌿" * 350_000})
        assert len(json_text(huge.data).encode()) > 5 * MEBIBYTE
        await running.write(text("a"))
        await running.write(huge)
        await running.write(text("b"), huge, text("c"))
        sizes = []
        found: list[TurnEvent] = []
        while part := (await running.progress(len(found))).events:
            sizes.append(len(part))
            found += part
        assert sizes == [1, 1, 1, 1, 1]
        assert found == counted([text("a"), huge, text("b"), huge, text("c")])

    async def test_large_tool_result_reaches_the_message(self, running: Running) -> None:
        """A tool result of 5 MB is a part of the running answer and of the finished one."""
        huge = Event(EventKind.TOOL_RESULT, {"tool_call_id": "1", "content": "x" * (5 << 20)})
        await running.write(text("Look: "), huge)
        assert (await running.message()).parts == running.folded.parts
        assert (await running.finish()).parts == (await running.message()).parts == running.folded.parts

    async def test_repeated_writes(self, running: Running) -> None:
        """Events that are there, by their numbers, stay as they are; those that are new are stored."""
        await running.write(*pieces("one two"))
        first = list(running.events)
        assert await running.repeat(first) is TurnState.RUNNING
        other = counted(pieces("uno due tre"))
        assert await running.repeat(other) is TurnState.RUNNING
        assert await running.read() == [*first, other[2]]
        assert await running.repeat(other[1:2]) is TurnState.RUNNING
        assert await running.read() == [*first, other[2]]

    async def test_concurrent_repeats(self, running: Running) -> None:
        """A write that is repeated while it is under way stores each event once."""
        events = counted(pieces("one two three four"))
        assert await asyncio.gather(*(running.repeat(events) for _ in range(10))) == [TurnState.RUNNING] * 10
        assert await running.read() == events

    @pytest.mark.parametrize("numbers", [(0, 1), (-1,), (1, 3), (2, 1), (1, 1), (2**63,)], ids=repr)
    async def test_numbers_have_no_gaps(self, running: Running, numbers: tuple[int, ...]) -> None:
        """Events of a write are numbered one by one, from 1 at least; anything else is refused, and nothing stored."""
        events = [TurnEvent(n, *text("a")) for n in numbers]
        with pytest.raises(InvalidInput):
            await running.repeat(events)
        assert await running.read() == []

    async def test_foreign_workers(self, running: Running) -> None:
        """Whoever has no lease of the turn stores nothing."""
        await running.write(text("mine"))
        for key in (
            running.key,
            running.key._replace(owner=someone()),
            running.key._replace(conversation_id=uuid4()),
            running.key._replace(message_id=uuid4()),
        ):
            worker = uuid4() if key == running.key else running.worker
            for events in ([], [TurnEvent(2, *text("theirs"))]):
                states = await running.store.turns.append_turn_events(worker, [TurnWrite(key, events)])
                assert states == {key: TurnState.LOST}
        assert await running.read() == running.events
        assert await running.write(text("!")) is TurnState.RUNNING

    async def test_many_turns_in_one_write(self, store: Store, owner: str) -> None:
        """Turns of several owners are written together; those that were lost do not keep the others from it."""
        worker = uuid4()
        turns = [
            await begin(store, who, (await store.create_conversation(who, NewConversation())).id, worker=worker)
            for who in (owner, owner, someone(), someone())
        ]
        await turns[1].finish()
        never = TurnKey(someone(), uuid4(), uuid4())
        await turns[2].stop()
        writes = [TurnWrite(turn.key, counted(pieces(f"to {n}"))) for n, turn in enumerate(turns)]
        states = await store.turns.append_turn_events(worker, [*writes, TurnWrite(never)])
        assert states == {
            turns[0].key: TurnState.RUNNING,
            turns[1].key: TurnState.LOST,
            turns[2].key: TurnState.STOPPING,
            turns[3].key: TurnState.RUNNING,
            never: TurnState.LOST,
        }
        places = [TurnPlace(turn.key, n) for n, turn in enumerate(turns)]
        found = await store.turns.turn_events([TurnPlace(never), *places])
        assert [(list(progress.events), progress.is_running) for progress in found] == [
            ([], False),
            (writes[0].events, True),
            ([], False),
            ([], True),
            ([], True),
        ]
        assert [len(await turn.read()) for turn in turns] == [2, 0, 2, 2]

    async def test_no_turns(self, store: Store) -> None:
        """A write of nothing stores nothing, and who follows nothing reads nothing."""
        assert await store.turns.append_turn_events(uuid4(), []) == {}
        assert await store.turns.turn_events([]) == []

    async def test_a_turn_is_named_once(self, running: Running) -> None:
        """A write that names a turn twice is refused; a reader may follow one turn at several places."""
        write = TurnWrite(running.key, counted([text("a")]))
        with pytest.raises(InvalidInput):
            await running.store.turns.append_turn_events(running.worker, [write, TurnWrite(running.key)])
        await running.repeat(write.events)
        places = [TurnPlace(running.key, after) for after in (1, 0, 1, 0)]
        found = await running.store.turns.turn_events(places)
        assert [len(progress.events) for progress in found] == [0, 1, 0, 1]

    async def test_stopping(self, running: Running) -> None:
        """Whoever asks a turn to stop lets its worker know, which may write on and ends the turn itself."""
        await running.write(text("one"))
        assert [await running.stop(), await running.stop()] == [True, True]
        assert await running.write(text(" two")) is TurnState.STOPPING
        assert await running.write() is TurnState.STOPPING
        assert (await running.progress(1)).is_running
        done = await running.finish(running.ending(Status.INTERRUPTED))
        assert (done.content, done.status) == ("one two", Status.INTERRUPTED)
        assert await running.stop() is False

    async def test_writes_extend_the_lease(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A write extends the lease, also one without events; who only reads, or asks to stop, does not."""
        short, other = timedelta(seconds=0.5), await store.create_conversation(owner, NewConversation())
        kept = await begin(store, owner, conversation.id, lease=short)
        left = await begin(store, owner, other.id, lease=short)
        assert not (await left.progress()).has_expired
        assert await kept.write() is TurnState.RUNNING
        assert await left.stop()
        await left.wait_until_expired()
        await asyncio.sleep(0.1)  # kept had as long a lease and began before
        assert await kept.progress() == TurnProgress([], is_running=True)
        assert not await kept.expire()
        assert await left.progress() == TurnProgress([], is_running=True, has_expired=True)

    async def test_expired_turns_go_on(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A worker whose lease has expired goes on if nobody has closed the turn meanwhile."""
        running = await begin(store, owner, conversation.id, lease=AT_ONCE)
        await running.wait_until_expired()
        assert await running.write(text("Still "), text("here.")) is TurnState.RUNNING
        assert not (await running.progress()).has_expired
        assert not await running.expire()
        assert (await running.finish()).content == "Still here."
        late = await begin(store, owner, conversation.id, lease=AT_ONCE)
        await late.wait_until_expired()
        assert (await late.finish()).status is Status.COMPLETE
        await gone(late)

    @pytest.mark.parametrize("bad", ["", "tea", 7, None], ids=repr)
    async def test_malformed_ids(self, running: Running, bad: Any) -> None:
        """A malformed id or owner among the turns raises an error, and nothing is stored."""
        for name in TurnKey._fields:
            key = running.key._replace(**{name: bad})
            if (name, bad) == ("owner", "tea"):
                continue  # it is a good one
            with pytest.raises(InvalidInput if name == "owner" else InvalidId):
                await running.store.turns.append_turn_events(
                    running.worker, [TurnWrite(running.key, counted([text("a")])), TurnWrite(key)]
                )
            with pytest.raises(InvalidInput if name == "owner" else InvalidId):
                await running.store.turns.turn_events([TurnPlace(running.key), TurnPlace(key)])
        assert await running.read() == []

    async def test_what_is_returned_is_a_copy(self, running: Running) -> None:
        """Who changes what they gave or what they got changes nothing of what is stored."""
        data = {"data": {"a": [1]}}
        events = counted([Event(EventKind.DATA, data)])
        await running.repeat(events)
        data["data"]["a"].append(2)
        (found,) = await running.read()
        assert found.data == {"data": {"a": [1]}}
        found.data["data"]["a"].append(3)
        (again,) = await running.read()
        assert again.data == {"data": {"a": [1]}}
