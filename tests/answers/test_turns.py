"""Turns of a process: what becomes of a question whatever the provider, the readers and other processes do."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import pytest

from chatkeep import (
    ChatkeepError,
    Message,
    NewConversation,
    NewMessage,
    Status,
    Store,
    StoreUnavailable,
    TurnInProgress,
    open_store,
)
from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.provider import ProviderFailed
from chatkeep.answers.runner import TurnRunner, running_turns
from chatkeep.answers.scripted import ScriptedProvider, Step
from chatkeep.answers.stream import RESET, Reader, Streamed
from chatkeep.answers.turn import FAILED
from chatkeep.events import Event, EventKind, Place, error_of, parse_place, place_of, reasoning, text
from chatkeep.store import Observer
from chatkeep.testing import user
from chatkeep.turns import Turn

FAST = TurnLimits(flush=0.01, poll=0.01, heartbeat=0.05, sweep=0.1)
WORDS = [text(f"word {number} ") for number in range(40)]
WHOLE = "".join(event.data["text"] for event in WORDS)


def paced(events: list[Event], seconds: float) -> list[Step]:
    """The events, with a pause after each."""
    return [step for event in events for step in (event, seconds)]


@asynccontextmanager
async def asked(
    store: Store, script: list[Step], limits: TurnLimits = FAST, content: str = "tea?"
) -> AsyncIterator[tuple[TurnRunner, UUID, Turn]]:
    """A runner with this script, which ada has asked a question in a new conversation."""
    async with running_turns(store, ScriptedProvider(script), limits) as runner:
        talk = await store.create_conversation("ada", NewConversation())
        yield runner, talk.id, await runner.ask("ada", talk.id, user(content))


async def read(
    runner: TurnRunner, talk: UUID, answer: UUID, last: Place | None = None, items: int = 1_000_000
) -> list[Streamed]:
    """Read the stream of an answer after a place, at most so many items."""
    found: list[Streamed] = []
    async with runner.following("ada", talk, answer) as log:
        async for item in Reader(log).read(last):
            found.append(item)
            if len(found) == items:
                break
    return found


def prose(items: list[Streamed]) -> str:
    """The text in the items of a stream; what comes after a reset replaces what was before."""
    found = ""
    for item in items:
        if item.kind == RESET:
            found = item.data["content"]
        elif item.kind == EventKind.TEXT:
            found += item.data["text"]
    return found


async def ended(runner: TurnRunner, talk: UUID, turn: Turn, seconds: float = 10) -> Message:
    """The answer, when it has ended."""
    message = await runner.ended("ada", talk, turn.answer.id, seconds)
    assert message is not None
    return message


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as store:
        yield store


# --- answers ----------------------------------------------------------------------------------------------


async def test_an_answer_is_streamed_and_stored(store: Store) -> None:
    """Readers here and in another process get the same, event by event; the message has it all."""
    script = [reasoning("hm "), reasoning("hot", signature="s"), *paced(WORDS, 0.005)]
    script += [Event(EventKind.TOOL_CALL, {"id": "1", "name": "kettle", "arguments": {}})]
    script += [Event(EventKind.USAGE, {"input_tokens": 3, "output_tokens": 40})]
    async with asked(store, script) as (runner, talk, turn), running_turns(store, None, FAST) as other:
        here, there = await asyncio.gather(read(runner, talk, turn.answer.id), read(other, talk, turn.answer.id))
        message = await ended(runner, talk, turn)
    assert message == await store.get_message("ada", talk, turn.answer.id)
    assert (message.content, message.status, message.model) == (WHOLE, Status.COMPLETE, "scripted")
    assert (message.input_tokens, message.output_tokens) == (3, 40)
    assert [part["type"] for part in message.parts or ()] == ["reasoning", "text", "tool_call"]
    for items in (here, there):
        assert prose(items) == WHOLE
        assert items[-1].kind == "end"
        assert items[-1].place.chars == len(WHOLE) + len("hm hot")
    assert len(here) > 5


async def test_an_answer_faster_than_a_flush(store: Store) -> None:
    """It arrives whole, wherever it is read."""
    async with asked(store, list(WORDS)) as (runner, talk, turn), running_turns(store, None, FAST) as other:
        for each in (runner, other, runner):
            assert prose(await read(each, talk, turn.answer.id)) == WHOLE


async def test_nothing_is_shown_before_it_is_stored(tmp_path: Path) -> None:
    """While another process holds the lock of the file, readers get nothing; then everything, once."""
    async with (
        open_store(f"sqlite:///{tmp_path}/chat.db") as store,
        asked(store, [0.2, *paced(WORDS, 0.001)]) as (runner, talk, turn),
    ):
        reading = asyncio.create_task(read(runner, talk, turn.answer.id))
        other = apsw.Connection(f"{tmp_path}/chat.db")
        other.set_busy_timeout(1_000)
        other.execute("BEGIN IMMEDIATE")
        await asyncio.sleep(0.6)
        async with runner.following("ada", talk, turn.answer.id) as log:
            assert [event.kind for event in log.events] in ([], [EventKind.USAGE])
        other.execute("COMMIT")
        other.close()
        assert prose(await reading) == WHOLE


async def test_who_asked_may_go(store: Store) -> None:
    """A cancelled request has asked all the same; asking again returns the same answer, made once."""
    provider, question = ScriptedProvider(paced(WORDS, 0.001)), user("tea?", id=UUID(int=7))
    talk = await store.create_conversation("ada", NewConversation())
    async with running_turns(store, provider, FAST) as runner:
        for _ in range(5):
            asking = asyncio.create_task(runner.ask("ada", talk.id, question))
            await asyncio.sleep(0)
            asking.cancel()
        turns = await asyncio.gather(*(runner.ask("ada", talk.id, question) for _ in range(20)))
        assert (await ended(runner, talk.id, turns[0])).content == WHOLE
        assert len({turn.answer.id for turn in turns}) == provider.asked == 1
        assert (await runner.ask("ada", talk.id, question)).answer.content == WHOLE
    assert len(await store.log("ada", talk.id)) == 2


async def test_the_next_question_waits(store: Store) -> None:
    """While an answer is made another question is refused, or waits for its end if it is asked to."""
    async with asked(store, paced(WORDS, 0.01)) as (runner, talk, turn):
        with pytest.raises(TurnInProgress) as refused:
            await runner.ask("ada", talk, user("and coffee?"))
        assert refused.value.message_id == turn.answer.id
        with pytest.raises(TurnInProgress):
            await runner.ask("ada", talk, user("and coffee?"), wait=0.05)
        second = await runner.ask("ada", talk, user("and coffee?"), wait=10)
        assert second.question.parent_id == turn.answer.id
        assert (await ended(runner, talk, turn)).status is Status.COMPLETE
        assert (await ended(runner, talk, second)).content == WHOLE


# --- how answers end --------------------------------------------------------------------------------------

ENDS: dict[str, tuple[list[Step], TurnLimits, str, str]] = {
    "provider": ([text("half"), ProviderFailed("the model is full")], FAST, "the model is full", "provider"),
    "exception": ([text("half"), RuntimeError("secret")], FAST, FAILED, "provider"),
    "invalid": ([text("half"), Event(EventKind.USAGE, {"x": 1})], FAST, "not valid", "provider"),
    "silence": ([text("half"), 60.0], replace(FAST, silence=0.2), "said nothing for 0.2 s", "timeout"),
    "slow": ([text("half"), *[0.05] * 600], replace(FAST, turn=0.3), "longer than 0.3 s", "timeout"),
    "large": ([text("half"), text("x" * 2_000)], replace(FAST, answer_bytes=1_000), "1,000 bytes", "limit"),
    "many": (
        [text("half"), Event(EventKind.DATA, {"data": [0] * 100})],
        replace(FAST, answer_values=100),
        "100 values",
        "limit",
    ),
}


@pytest.mark.parametrize("end", ENDS)
async def test_failures(store: Store, end: str, caplog: pytest.LogCaptureFixture) -> None:
    """What there was is kept, and the reason, which says nothing of internals; the conversation goes on."""
    script, limits, reason, kind = ENDS[end]
    with caplog.at_level(logging.CRITICAL, "asyncio"):
        async with asked(store, script, limits) as (runner, talk, turn):
            message = await ended(runner, talk, turn)
            items = await read(runner, talk, turn.answer.id)
            assert (message.status, message.content) == (Status.FAILED, "half")
            part = error_of(message.parts)
            assert part is not None
            assert (part["kind"], reason in part["reason"], "secret" in part["reason"]) == (kind, True, False)
            assert [item.kind for item in items][-2:] == ["error", "end"]
            second = await runner.ask("ada", talk, user("once more"))
            await runner.stop("ada", talk, second.answer.id)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
async def test_stop(store: Store, where: str) -> None:
    """A turn is stopped within a second by any process; what there was is kept."""
    async with (
        asked(store, [*WORDS, 60.0]) as (runner, talk, turn),
        running_turns(store, None, FAST) as other,
    ):
        await read(runner, talk, turn.answer.id, items=2)
        assert await {"here": runner, "elsewhere": other}[where].stop("ada", talk, turn.answer.id)
        message = await ended(other, talk, turn, seconds=5)
        assert (message.status, message.content) == (Status.INTERRUPTED, WHOLE)
        assert not await other.stop("ada", talk, turn.answer.id)


async def test_deletion_ends_the_turn(store: Store) -> None:
    """The provider is left, readers hear that the conversation is gone, and nothing of the answer is stored."""
    async with asked(store, paced(WORDS * 100, 0.01)) as (runner, talk, turn):
        async with runner.following("ada", talk, turn.answer.id) as log:
            await log.changed()
            await store.delete_conversation("ada", talk)
            with pytest.raises(Exception, match="no such"):
                await asyncio.wait_for(log.ended(), 5)
        while runner.running:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    assert (await store.erase_owner("ada")).remaining == 0


async def test_draining(store: Store) -> None:
    """At the end answers have some time; the rest are interrupted, with everything that was said."""
    async with asked(store, paced(WORDS, 0.005)) as (runner, talk, turn):
        await runner.aclose(drain=5)
        assert (await store.get_message("ada", talk, turn.answer.id)).content == WHOLE
        with pytest.raises(StoreUnavailable):
            await runner.ask("ada", talk, user("late"))
    async with asked(store, [*WORDS, 60.0]) as (runner, talk, turn):
        await asyncio.wait_for(runner.aclose(drain=0.1), 5)
        message = await store.get_message("ada", talk, turn.answer.id)
    assert (message.content, message.status) == (WHOLE, Status.INTERRUPTED)


async def test_a_worker_that_is_gone(store: Store) -> None:
    """Of its turn the lease expires; another process closes it, with every event that was shown."""
    limits = replace(FAST, lease=timedelta(seconds=0.3))
    talk = await store.create_conversation("ada", NewConversation())
    dead = TurnRunner(store, ScriptedProvider([*WORDS, 60.0]), limits)
    dead.start()
    turn = await dead.ask("ada", talk.id, user("tea?"))
    shown = await read(dead, talk.id, turn.answer.id, items=2)
    for task in (*dead._beside, *dead._making):  # it dies without a word
        task.cancel()
    async with running_turns(store, None, limits) as other:
        message = await ended(other, talk.id, turn)
        assert (message.status, message.content.startswith(prose(shown))) == (Status.INTERRUPTED, True)
        assert prose(await read(other, talk.id, turn.answer.id)) == message.content
    await dead.aclose()


# --- resuming ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_random_disconnects(store: Store, seed: int) -> None:
    """Whoever is cut off at any item and goes on anywhere has every character once."""
    chosen = random.Random(seed)
    tool = Event(EventKind.TOOL_RESULT, {"tool_call_id": "1", "content": "é" * 1_000})
    script = paced([*WORDS[:20], reasoning("hm"), tool, *WORDS[20:]], 0.004)
    async with asked(store, script) as (runner, talk, turn), running_turns(store, None, FAST) as other:

        async def reader() -> str:
            items: list[Streamed] = []
            while not items or items[-1].kind != "end":
                last = parse_place(str(items[-1].place)) if items else None
                items += await read(chosen.choice((runner, other)), talk, turn.answer.id, last, chosen.randint(1, 6))
            assert RESET not in [item.kind for item in items]
            return prose(items)

        assert await asyncio.gather(*(reader() for _ in range(8))) == [WHOLE] * 8


@pytest.mark.parametrize("is_over", [False, True])
async def test_an_unknown_place_begins_anew(store: Store, *, is_over: bool) -> None:
    """A place of another answer, or beyond this one, is answered by all that there is."""
    script: list[Step] = [*WORDS, Event(EventKind.SOURCE, {"id": "1", "title": "Tea"}), *([] if is_over else [0.5])]
    async with asked(store, script) as (runner, talk, turn), running_turns(store, None, FAST) as other:
        await read(runner, talk, turn.answer.id, items=4)
        if is_over:
            await ended(runner, talk, turn)
        for last in (place_of(UUID(int=1), 1, 7), place_of(turn.answer.id, 90, 9_999), place_of(turn.answer.id, 1, 3)):
            for each in (runner, other):
                items = await read(each, talk, turn.answer.id, last)
                assert prose(items).endswith(WHOLE[3:])
                assert items[-1].kind == "end"
                if last.chars != 3:
                    assert (items[0].kind, items[0].data["content"]) == (RESET, WHOLE)


async def test_a_place_that_another_process_gave_after_the_end(store: Store) -> None:
    """There the events are gone, and numbered anew: the process that made the answer goes by the characters."""
    script: list[Step] = [*WORDS[:20], reasoning("hm"), Event(EventKind.DATA, {"id": "1", "data": 1}), *WORDS[20:]]
    async with (
        asked(store, script) as (runner, talk, turn),
        running_turns(store, None, FAST) as other,
        runner.following("ada", talk, turn.answer.id),  # so that it keeps the events
    ):
        await ended(runner, talk, turn)
        whole = await read(other, talk, turn.answer.id)
        for count in range(1, len(whole)):
            rest = await read(runner, talk, turn.answer.id, whole[count - 1].place)
            assert prose(whole[:count] + rest) == WHOLE
            assert rest[-1].kind == "end"


async def test_a_large_result_of_a_tool(store: Store) -> None:
    """Five megabytes come whole, here, in another process, and when the answer has ended."""
    result: dict[str, Any] = {"tool_call_id": "1", "content": "tea " * 1_250_000}
    script: list[Step] = [text("a"), Event(EventKind.TOOL_RESULT, result), 0.3, text("b")]
    async with asked(store, script) as (runner, talk, turn), running_turns(store, None, FAST) as other:
        first = await read(runner, talk, turn.answer.id, items=2)
        for each in (other, runner):
            items = await read(each, talk, turn.answer.id, first[-1].place)
            assert [item.data for item in items if item.kind == "tool_result"] == [result]
            assert prose(first + items) == "ab"
        assert (await ended(other, talk, turn)).content == "ab"


async def test_nothing_is_left_of_readers(store: Store) -> None:
    """However readers come and go, a process keeps no log of what nobody reads."""
    async with asked(store, paced(WORDS, 0.002)) as (runner, talk, turn), running_turns(store, None, FAST) as other:
        for each in (runner, other):
            await asyncio.gather(*(read(each, talk, turn.answer.id, items=1) for _ in range(50)))
        await ended(runner, talk, turn)
        await asyncio.gather(*(read(each, talk, turn.answer.id) for each in (runner, other) for _ in range(20)))
        while runner.running:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0)
        assert runner._streams._logs == other._streams._logs == {}


async def test_a_busy_turn_is_polled_at_its_pace(store: Store) -> None:
    """Although there is something new at every look, a process looks at turns of others every 100 ms."""

    class Counting(Observer):
        looks = 0

        def called(self, operation: str, seconds: float, error: ChatkeepError | None) -> None:
            self.looks += operation == "turn_events"

    store.observer = counting = Counting()
    async with (
        asked(store, paced(WORDS * 3, 0.01)) as (_, talk, turn),
        running_turns(store, None, replace(FAST, poll=0.1)) as other,
    ):
        began = asyncio.get_running_loop().time()
        assert prose(await read(other, talk, turn.answer.id)) == WHOLE * 3
        took = asyncio.get_running_loop().time() - began
    assert took > 1
    assert counting.looks <= took / 0.1 + 4


async def test_a_flush_whose_reply_is_lost(tmp_path: Path) -> None:
    """What is stored is not stored again with more in it: other processes show every character once."""
    async with (
        open_store(f"sqlite:///{tmp_path}/chat.db") as store,
        open_store(f"sqlite:///{tmp_path}/chat.db") as sane,
    ):
        stored, calls = store.turns.append_turn_events, iter(range(1_000_000))

        async def losing(*given: Any, **options: Any) -> Any:
            states = await stored(*given, **options)
            if next(calls) % 2:
                raise StoreUnavailable("the reply was lost")
            return states

        store.turns.append_turn_events = losing  # type: ignore[method-assign]
        async with asked(store, paced(WORDS, 0.02)) as (_, talk, turn), running_turns(sane, None, FAST) as other:
            assert prose(await read(other, talk, turn.answer.id)) == WHOLE


async def test_what_the_model_is_given(store: Store) -> None:
    """The history of a question: what was said before it, without answers in progress."""
    seen: list[list[str]] = []

    class Listening(ScriptedProvider):
        async def answer(self, asked: Any) -> Any:
            seen.append([message.content async for message in asked.history()])
            yield text("80 °C")

    talk = await store.create_conversation("ada", NewConversation())
    async with running_turns(store, Listening(), FAST) as runner:
        first = await runner.ask("ada", talk.id, user("tea?"))
        await ended(runner, talk.id, first)
        second = await runner.ask("ada", talk.id, NewMessage(role=first.question.role, content="and coffee?"))
        await ended(runner, talk.id, second)
        again = await runner.ask("ada", talk.id, first.question.id)
        await ended(runner, talk.id, again)
    assert seen == [["tea?"], ["tea?", "80 °C", "and coffee?"], ["tea?"]]
