"""Ctrl-C and SIGTERM in commands that take long, moment by moment."""

import asyncio
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator

import pytest
import typer
from pydantic import BaseModel, field_serializer

from chatkeep.cli.stopping import Stop, stoppable

type Work = Callable[[Stop], Awaitable[None]]


def ended(work: Work) -> tuple[int, list[str]]:
    """Run work; return the exit code, and what it did: it is to tidy up whatever ends it."""
    did = list[str]()

    async def tidied(stop: Stop) -> None:
        try:
            await work(stop)
            did.append("all")
        finally:
            for _ in range(3):
                await asyncio.sleep(0)
            did.append("tidied")

    with pytest.raises(typer.Exit) as exited, stoppable(lambda: "half done") as stop:
        stop.run(tidied(stop))
    return exited.value.exit_code, did


@pytest.fixture(autouse=True)
def _same_handlers_after() -> Iterator[None]:
    """What a signal did before, it does afterwards."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_what_runs_ends_at_its_next_wait(number: int, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Not in the middle of what would take the exception for its own, as a serializer does."""

    class Signalling(BaseModel):
        n: int = 1

        @field_serializer("n")
        def _n(self, n: int) -> int:
            signal.raise_signal(number)
            return n

    said = list[str]()

    async def work(_: Stop) -> None:
        said.append(Signalling().model_dump_json())
        await asyncio.sleep(10)

    assert ended(work) == (code, ["tidied"])
    assert said == ['{"n":1}']
    assert capsys.readouterr().err == "Error: stopped; half done\n"


def test_a_signal_in_a_callback_of_the_loop_is_not_lost() -> None:
    """It is not its callback's, nor that of a task which nobody waits for."""

    async def work(_: Stop) -> None:
        asyncio.get_running_loop().call_soon(signal.raise_signal, signal.SIGINT)
        await asyncio.Event().wait()

    assert ended(work) == (130, ["tidied"])


@pytest.mark.parametrize("before", [False, True])
def test_a_block_that_waits_in_a_system_call_ends_at_once(*, before: bool) -> None:
    """Also if the signal came before it, and nothing was waited for since; what tidies up is not cut off."""
    reading, writing = os.pipe()
    try:

        async def work(stop: Stop) -> None:
            if before:
                signal.raise_signal(signal.SIGINT)
            else:
                threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            with stop.blocking():
                os.read(reading, 1)

        assert ended(work) == (130, ["tidied"])
    finally:
        os.close(reading)
        os.close(writing)


def test_values_that_are_waited_for() -> None:
    """They are yielded as they come; a signal ends the wait for one, and not what is done with it."""
    taken = list[int]()

    def values() -> Iterator[int]:
        yield 1
        yield 2
        signal.raise_signal(signal.SIGINT)
        yield 3

    async def work(stop: Stop) -> None:
        assert list(stop.each(iter("tea"))) == ["t", "e", "a"]
        for value in stop.each(values()):
            taken.append(value)
            await asyncio.sleep(0)

    assert ended(work) == (130, ["tidied"])
    assert taken == [1, 2]


def test_a_second_signal_ends_what_does_not_end() -> None:
    """Whoever presses Ctrl-C twice wants no more than the prompt."""

    async def stubborn() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
            await asyncio.sleep(10)
        finally:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the second signal did nothing")

    with pytest.raises(typer.Exit) as exited, stoppable(lambda: "half done") as stop:
        stop.run(stubborn())
    assert exited.value.exit_code == 130


def test_a_signal_outside_of_what_runs_ends_the_block() -> None:
    """Such as one while a file is opened, or closed."""
    with pytest.raises(typer.Exit) as exited, stoppable(lambda: "half done"):
        signal.raise_signal(signal.SIGTERM)
    assert exited.value.exit_code == 143


def test_what_is_done_is_done() -> None:
    """A signal that comes when everything is done changes nothing, nor does one that is ignored."""

    async def work() -> int:
        signal.raise_signal(signal.SIGINT)
        return 3

    with stoppable(lambda: "half done") as stop:
        assert stop.run(work()) == 3
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable(lambda: "half done") as stop:
            assert stop.run(work()) == 3
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_cancellation_of_another_kind_stays_one() -> None:
    """It has no number to exit with."""

    async def work() -> None:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError), stoppable(lambda: "half done") as stop:
        stop.run(work())
