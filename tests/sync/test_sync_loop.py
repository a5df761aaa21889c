"""The event loop of a synchronous store: when threads wake it, and when it waits for them."""

import asyncio
import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from polling import until

from chatkeep import StoreUnavailable, sync_loop


@contextmanager
def running() -> Iterator[sync_loop.LoopThread]:
    """A loop, which is stopped at the end."""
    loop = sync_loop.LoopThread()
    try:
        yield loop
    finally:
        loop.stop()


async def nothing() -> None:
    """Do nothing."""


def test_calls_that_come_together_wake_the_loop_once() -> None:
    """Calls that are queued before the loop has woken begin in one step of it, each in its own caller's context."""
    loop = sync_loop.LoopThread()
    held, let_go = threading.Event(), threading.Event()
    caller: contextvars.ContextVar[int] = contextvars.ContextVar("caller")

    async def hold() -> None:
        held.set()
        let_go.wait(10)

    async def called_by() -> int:
        return caller.get()

    def call(n: int) -> int:
        caller.set(n)
        return loop.call(called_by)

    with ThreadPoolExecutor(9) as pool:
        holding = pool.submit(loop.call, hold)
        held.wait(10)
        woken = len(loop._loop._ready)  # type: ignore[attr-defined]
        callers = [pool.submit(call, n) for n in range(8)]
        until(lambda: len(loop._calls) == 8)
        wakes = len(loop._loop._ready) - woken  # type: ignore[attr-defined]
        let_go.set()
        assert [each.result(5) for each in callers] == list(range(8))
        holding.result(5)
    assert wakes == 1
    loop.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_wake_up_that_was_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that was interrupted while it woke the loop delays the others; if the loop ends first, they are told."""
    monkeypatch.setattr(sync_loop, "LOOK_SECONDS", 0.3)
    monkeypatch.setattr(sync_loop.Returning, "are_likely", lambda *_: False)  # its waits wake the loop, too
    loop = sync_loop.LoopThread()

    loop._is_waking = True  # as if it had been interrupted
    loop.call(nothing)
    loop._is_waking = True
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(loop.call, nothing)
        until(lambda: len(loop._calls) == 1)
        loop._send(loop._loop.stop)
        with pytest.raises(StoreUnavailable, match="closed"):
            waiting.result(5)


def test_threads_that_come_back_at_once_wake_the_loop_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop waits for those whose calls ended together, and begins their next calls together."""
    wakes = list[object]()
    send = sync_loop.LoopThread._send

    def noted(self: sync_loop.LoopThread, callback: Callable[[], object]) -> None:
        wakes.append(callback)
        send(self, callback)

    monkeypatch.setattr(sync_loop.LoopThread, "_send", noted)

    async def commit() -> None:
        await asyncio.sleep(0.005)

    with running() as loop, ThreadPoolExecutor(8) as pool:

        def keep_calling(_: int) -> None:
            for _ in range(50):
                loop.call(commit)

        list(pool.map(keep_calling, range(8)))
    assert len(wakes) < 400 / 3


def test_threads_that_do_not_come_back_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a wait in vain the loop waits for so few only once in a while, but still for more."""
    waits = list[int]()
    wait = sync_loop.Returning.wait

    def noted(self: sync_loop.Returning, threads: int) -> None:
        waits.append(threads)
        wait(self, threads)

    monkeypatch.setattr(sync_loop.Returning, "wait", noted)
    with running() as loop:
        for _ in range(sync_loop.ROUNDS_WITHOUT * 3):
            loop.call(nothing)
            time.sleep(0.002)
        until(lambda: not loop._ended)
        assert 1 <= len(waits) <= 4
        assert loop._returning.are_likely(2)


@pytest.mark.parametrize(
    ("come", "awaited", "at_least", "at_most"),
    [
        pytest.param(4, 4, 0, 0.3, id="all come back"),
        pytest.param(2, 4, 0.4, 0.9, id="some stay away"),
        pytest.param(300, 1_000, 0.9, 1.4, id="they come for ever"),
    ],
)
def test_how_long_the_loop_waits(
    come: int, awaited: int, at_least: float, at_most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until the last thread is back, until none came for a while, or for its time, whatever is first."""
    monkeypatch.setattr(sync_loop, "RETURN_SECONDS", 0.4)
    monkeypatch.setattr(sync_loop, "GATHER_SECONDS", 1.0)
    calls = deque[sync_loop.Call[None]]()
    returning = sync_loop.Returning(calls)

    def come_back() -> None:
        for _ in range(come):
            calls.append(sync_loop.Call(nothing, (), {}))
            returning.note()
            time.sleep(0.005)

    coming = threading.Thread(target=come_back)
    coming.start()
    began = time.perf_counter()
    returning.wait(awaited)
    took = time.perf_counter() - began
    coming.join()
    assert at_least <= took < at_most
