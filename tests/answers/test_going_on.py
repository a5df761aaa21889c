"""Answers whose process is gone, and that another one goes on with."""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from test_turns import FAST, ended, prose, read

from chatkeep import Message, NewConversation, Status, Store, open_store
from chatkeep.answers.background import Known, divided
from chatkeep.answers.provider import Asked, Provider
from chatkeep.answers.runner import TurnRunner, running_turns
from chatkeep.answers.stream import RESET
from chatkeep.events import Event, EventKind, TurnEvent, fold, reasoning, state_of, text
from chatkeep.testing import user
from chatkeep.turns import Turn

SHORT = replace(FAST, lease=timedelta(seconds=0.3))
WORDS = [f"word {number} é🫖 " for number in range(30)]
WHOLE = "".join(WORDS)


class Background(Provider):
    """Makes answers that outlive who asked for them, one word in each pause; they cost money when they are begun."""

    model = "background"
    resumes = True

    def __init__(self, pause: float = 0.02) -> None:
        self.begun = 0
        self.resumed = 0
        self._pause = pause

    async def answer(self, asked: Asked) -> AsyncGenerator[Event]:
        known = Known([])
        if asked.so_far:
            self.resumed += 1
            assert state_of(asked.so_far) == {"response_id": "r1"}
            known = Known(divided(list(asked.so_far))[1])
        else:
            self.begun += 1
            yield reasoning("hm ")
            asked.remember({"response_id": "r1"})
        for event in map(known.rest, map(text, WORDS)):
            if event is not None:
                yield event
                await asyncio.sleep(self._pause)


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as store:
        yield store


async def until(holds: Callable[[], object]) -> None:
    """Wait for something that nobody tells."""
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def begin(store: Store, runner: TurnRunner) -> Turn:
    """Ask, and wait until some words are stored."""
    talk = await store.create_conversation("ada", NewConversation())
    turn = await runner.ask("ada", talk.id, user("Tea?"))
    await read(runner, talk.id, turn.answer.id, items=6)
    return turn


async def die(runner: TurnRunner) -> None:
    """End what a runner does as SIGKILL would: nothing is stored any more, and nobody is told."""
    for turn in runner._running.values():
        turn.is_lost = True
    tasks = [*runner._making, *runner._beside]
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@asynccontextmanager
async def left(store: Store, provider: Background) -> AsyncIterator[Turn]:
    """A turn whose process has died in the middle."""
    first = TurnRunner(store, provider, SHORT)
    first.start()
    turn = await begin(store, first)
    await die(first)
    yield turn
    await first.aclose()


def check(message: Message, provider: Background) -> None:
    """Check that an answer is whole, and was paid for once."""
    assert (message.status, message.content, message.model) == (Status.COMPLETE, WHOLE, "background")
    assert message.parts
    assert [part["type"] for part in message.parts] == ["reasoning", "text"]
    assert (provider.begun, provider.resumed) == (1, 1)


async def test_a_reader_goes_on_elsewhere(store: Store) -> None:
    """Who reads at another process has every character once, and no reset."""
    provider = Background()
    first = TurnRunner(store, provider, SHORT)
    first.start()
    async with running_turns(store, provider, replace(SHORT, sweep=60)) as second:
        turn = await begin(store, first)
        reading = asyncio.create_task(read(second, turn.answer.conversation_id, turn.answer.id))
        await asyncio.sleep(0.1)
        await die(first)
        async with asyncio.timeout(10):
            items = await reading
        assert prose(items) == WHOLE
        assert [item.kind for item in items if item.kind in (RESET, EventKind.STATE)] == []
        check(await ended(second, turn.answer.conversation_id, turn), provider)
    await first.aclose()


async def test_nobody_reads(store: Store) -> None:
    """The sweep finds it."""
    provider = Background()
    async with left(store, provider) as turn, running_turns(store, provider, SHORT) as second:
        await until(lambda: second.running)
        check(await ended(second, turn.answer.conversation_id, turn), provider)


async def test_the_same_question_again(store: Store) -> None:
    """Who sends the question to another process again gets the answer that is gone on with, not a new one."""
    provider = Background()
    async with left(store, provider) as turn, running_turns(store, provider, replace(SHORT, sweep=60)) as second:
        await asyncio.sleep(0.4)
        question = user("Tea?", id=turn.question.id)
        again = await second.ask("ada", turn.answer.conversation_id, question)
        assert (again.answer.id, again.is_new) == (turn.answer.id, False)
        check(await ended(second, turn.answer.conversation_id, turn), provider)


async def test_a_shutdown_hands_over(store: Store) -> None:
    """A process that ends leaves its answers to others, and stores no end of them."""
    provider = Background()
    first = TurnRunner(store, provider, SHORT)
    first.start()
    turn = await begin(store, first)
    await first.aclose()
    async with running_turns(store, provider, SHORT) as second:
        check(await ended(second, turn.answer.conversation_id, turn), provider)


async def test_a_process_that_wakes_up(store: Store) -> None:
    """Who was stopped for longer than the lease finds that another process has the turn, and drops it."""
    provider = Background()
    first = TurnRunner(store, provider, replace(SHORT, flush=0.01))
    first.start()
    turn = await begin(store, first)
    for task in first._beside:  # it makes the answer, and stores nothing
        task.cancel()
    async with running_turns(store, provider, SHORT) as second:
        await until(lambda: second.running)
        first.start()
        await until(lambda: not first.running)
        check(await ended(second, turn.answer.conversation_id, turn), provider)
    await first.aclose()


async def test_it_is_stopped_where_it_goes_on(store: Store) -> None:
    """An answer that is gone on with is stopped as any other."""
    provider = Background(pause=0.1)
    async with left(store, provider) as turn, running_turns(store, provider, SHORT) as second:
        await until(lambda: second.running)
        assert await second.stop("ada", turn.answer.conversation_id, turn.answer.id)
        message = await ended(second, turn.answer.conversation_id, turn)
        assert message.status is Status.INTERRUPTED
        assert WHOLE.startswith(message.content)


async def test_a_process_that_cannot_go_on_leaves_it(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """A process without such a provider closes nothing that another one may go on with."""
    caplog.set_level(logging.WARNING)
    provider = Background()
    async with left(store, provider) as turn:
        async with running_turns(store, None, SHORT):
            await asyncio.sleep(0.8)
            async with running_turns(store, provider, SHORT) as third:
                check(await ended(third, turn.answer.conversation_id, turn), provider)
        assert not caplog.records


async def test_the_sweep_outlives_a_fault(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A turn that cannot be taken over, for a reason that nobody thought of, keeps no other from being closed."""
    caplog.set_level(logging.CRITICAL)
    provider, kind, faults = Background(), type(store.turns), ["one"]
    resume = kind.resume_turn

    async def fails_once(*arguments: Any, **more: Any) -> Any:
        if faults:
            raise RuntimeError(faults.pop())
        return await resume(*arguments, **more)

    monkeypatch.setattr(kind, "resume_turn", fails_once)
    async with left(store, provider) as turn, running_turns(store, provider, SHORT) as second:
        await until(lambda: second.running)
        check(await ended(second, turn.answer.conversation_id, turn), provider)


# --- what is left out ------------------------------------------------------------------------------------


def rest_of(stored: list[Event], again: list[Event]) -> list[Event]:
    """What is new of an answer that is read again."""
    known = Known([TurnEvent(n, *event) for n, event in enumerate(stored, 1)])
    return [event for event in map(known.rest, again) if event is not None]


SIGNED = reasoning("", signature="s")
AGAIN = [reasoning("ab"), reasoning("c"), SIGNED, text("x🫖"), text("yz"), Event(EventKind.TOOL_CALL, {"id": "1"})]


@pytest.mark.parametrize("count", range(6))
def test_what_is_stored_is_left_out(count: int) -> None:
    """Whatever is stored, in whatever pieces, what is read again adds up to the whole."""
    for cut in range(4):
        stored, last = AGAIN[:count], AGAIN[count]
        if cut and last.kind in (EventKind.TEXT, EventKind.REASONING) and len(last.data["text"]) >= cut:
            stored = [*stored, Event(last.kind, {"text": last.data["text"][:cut]})]
        whole = [*stored, *rest_of(stored, AGAIN)]
        assert numbered(whole).parts == numbered(AGAIN).parts


def numbered(events: list[Event]) -> Any:
    """What events add up to."""
    return fold(TurnEvent(n, *event) for n, event in enumerate(events, 1))


async def test_a_turn_without_state_is_interrupted(store: Store) -> None:
    """Before the provider remembers anything nobody can go on."""

    class Forgetful(Background):
        async def answer(self, asked: Asked) -> AsyncGenerator[Event]:
            async with aclosing(super().answer(asked._replace(remember=lambda state: None))) as events:
                async for event in events:
                    yield event

    provider = Forgetful()
    async with left(store, provider) as turn, running_turns(store, provider, SHORT) as second:
        message = await ended(second, turn.answer.conversation_id, turn)
        assert (message.status, provider.begun) == (Status.INTERRUPTED, 1)
