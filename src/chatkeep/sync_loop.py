"""An event loop in a thread of its own, which runs coroutines for threads that have none."""

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.process import PROCESS, check_process

LOOK_SECONDS = 1.0
"""How often a thread that waits looks whether the loop still runs."""

JOIN_SECONDS = 10.0
"""How long closing waits for the thread when the store itself is closed."""

RETURN_SECONDS = 200e-6
"""How long the loop waits for the next of the threads whose calls have just ended to come back with another call."""

GATHER_SECONDS = 5e-3
"""How long it waits for all of them, while they do come back."""

ROUNDS_WITHOUT = 64
"""How many times it does not wait for so many threads, or fewer, of which most did not come back: they have something
else to do between their calls."""

CLOSED = "the store is closed"
CUT_OFF = "the store was closed before this was done; try again"
EXITING = "the interpreter is exiting, and a store can do no more; join your threads before the main thread ends"
AT_EXIT = "shutdown"
"""Part of what Python's executors and threads say when they take no more work."""

WITHIN = (
    "a synchronous store cannot be used on its own event loop, which is where an Observer is called: it would wait for"
    " itself; do it in another thread"
)


class Call[T]:
    """A call of a coroutine function that runs on the loop while a thread waits."""

    def __init__(
        self, method: Callable[..., Awaitable[T]], arguments: Sequence[object], options: Mapping[str, object]
    ) -> None:
        self._method, self._arguments, self._options = method, arguments, options
        self._context = copy_context()
        self._done = threading.Lock()
        self._done.acquire()
        self._error: BaseException | None = None
        self._task: asyncio.Task[None] | None = None
        self._is_cancelled = False

    def begin(self, running: set[asyncio.Task[None]], ended: Callable[[], None]) -> None:
        """Begin, on the loop, with the context variables of the thread that waits.

        It is in `running` until the end, and `ended` is told when the thread has been woken.
        """
        if not self._is_cancelled:
            loop, work = asyncio.get_running_loop(), self._run(ended)
            self._task = asyncio.Task(work, loop=loop, context=self._context, eager_start=True)
            running.add(self._task)
            self._task.add_done_callback(running.discard)

    async def _run(self, ended: Callable[[], None]) -> None:
        try:
            self._result = await self._method(*self._arguments, **self._options)
        except asyncio.CancelledError:
            self._error = StoreUnavailable(CUT_OFF)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            self._error = error
        finally:
            self._done.release()
            ended()

    def cancel(self) -> None:
        """Cancel, on the loop, what nobody waits for any more."""
        self._is_cancelled = True
        if self._task is not None:
            self._task.cancel()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, and return whether it came. In the main thread Ctrl-C interrupts this."""
        return self._done.acquire(timeout=seconds)

    def outcome(self) -> T:
        """Return what the method returned, or raise what it raised."""
        if self._error is None:
            return self._result
        try:
            raise self._error
        finally:
            self._error = None  # its traceback refers to this frame, and so to itself


class Returning:
    """The threads whose calls have just ended, most of which come back at once with their next calls.

    The loop waits a moment for them: calls that begin together share commits, and wake the loop once. Otherwise each
    thread wakes it, threads that write one thing after another commit in small groups, and the interpreter lock goes to
    and fro: 16 threads appended 0.45 of what 16 tasks do, and 0.67 with this (`python -m benchmarks.sync_store`).
    """

    def __init__(self, calls: deque[Call[Any]]) -> None:
        """Take the calls with which they come back."""
        self._calls = calls
        self._awaited = 0
        """With how many of them the wait is over; 0 if there is none."""
        self._are_back = threading.Lock()
        self._are_back.acquire()
        self._too_few = self._rounds_without = 0

    def note(self) -> None:
        """End the wait, if it was for the thread that has added a call, and calls this."""
        if 0 < self._awaited <= len(self._calls):
            self._awaited = 0
            with suppress(RuntimeError):  # two threads at once
                self._are_back.release()

    def are_likely(self, threads: int) -> bool:
        """Whether most of so many will come back, as far as the last waits tell. Ask once before each."""
        self._rounds_without -= 1
        return threads > self._too_few or self._rounds_without < 0

    def wait(self, threads: int) -> None:
        """Wait, on the loop, until so many came back, or none did for a while."""
        self._are_back.acquire(blocking=False)  # by who was late for the last wait
        self._awaited = threads
        came, until = -1, time.monotonic() + GATHER_SECONDS
        while came < len(self._calls) < threads and time.monotonic() < until:
            came = len(self._calls)
            self._are_back.acquire(timeout=RETURN_SECONDS)
        self._awaited = 0
        if 2 * len(self._calls) < threads:
            self._too_few, self._rounds_without = threads, ROUNDS_WITHOUT


class LoopThread:
    """An event loop in a thread of its own. Its methods are for other threads.

    The thread is a daemon: it does not hold up a program that ends without closing it.
    """

    def __init__(self) -> None:
        self._forks = PROCESS.forks
        self._closing = threading.Lock()
        self._is_closed = False
        self._calls: deque[Call[Any]] = deque()
        """Calls that the loop has not begun."""
        self._is_waking = False
        self._returning = Returning(self._calls)
        self._ended = 0
        """How many calls have ended since the loop looked who came back."""
        self._running: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="chatkeep-sync", daemon=True)
        self._thread.start()

    def call[T](self, method: Callable[..., Awaitable[T]], /, *arguments: object, **options: object) -> T:
        """Run `method` on the loop, and return what it returns, or raise what it raises.

        If the wait is interrupted, for one by Ctrl-C, the call is cancelled. Raises StoreUnavailable after `close` and
        in a forked child, RuntimeError on the loop itself.
        """
        self._check()
        call = Call(method, arguments, options)
        try:
            self._submit(call)
            while not call.wait(LOOK_SECONDS):
                self._send(self._begin)  # if an interrupted thread did not; raises if the loop has ended
        except BaseException:
            with suppress(StoreUnavailable):  # a loop that has ended runs nothing
                self._send(call.cancel)
            raise
        return self._outcome(call)

    def close(self, finish: Callable[[], Awaitable[None]]) -> None:
        """Run `finish` and end the thread. Idempotent. Does nothing in a forked child, nor at exit."""
        if not self._can_close:
            return
        self._check_thread()
        with self._closing:
            if not self._is_closed:
                try:
                    self.call(finish)
                finally:
                    self.stop()

    def stop(self) -> None:
        """End the thread, after what runs on the loop, which is cancelled if it takes long."""
        self._is_closed = True
        with suppress(StoreUnavailable):  # it has ended already
            self._send(self._stopped.set)
        self._thread.join(JOIN_SECONDS)

    def abandon(self, finish: Callable[[], Awaitable[None]]) -> None:
        """Run `finish` and end the thread, later. For the garbage collector, which may run in any thread."""
        if self._can_close and not self._is_closed:
            self._is_closed = True
            self._send(partial(self._abandon, finish))

    # --- in the calling thread ----------------------------------------------------------------------------

    @property
    def _can_close(self) -> bool:
        """False in a forked child, which has no such thread, and at exit: executors take no work, all ends anyway."""
        return self._forks == PROCESS.forks and threading.main_thread().is_alive()

    def _check(self) -> None:
        check_process(self._forks)
        self._check_thread()
        if sys.is_finalizing():  # daemon threads have been stopped: nobody would answer
            raise StoreUnavailable(EXITING)
        if self._is_closed:
            raise StoreUnavailable(CLOSED)

    def _check_thread(self) -> None:
        if threading.current_thread() is self._thread:  # an ident is used again
            raise RuntimeError(WITHIN)

    def _submit(self, call: Call[Any]) -> None:
        """Have the loop begin a call. To wake it takes system calls: calls that come before it wakes share them."""
        self._calls.append(call)
        if not self._is_waking:
            self._is_waking = True
            self._send(self._begin)
        else:
            self._returning.note()

    def _send(self, callback: Callable[[], object]) -> None:
        """Have the loop call `callback`. Raises StoreUnavailable if it has ended."""
        try:
            self._loop.call_soon_threadsafe(callback)
        except RuntimeError:
            raise StoreUnavailable(CLOSED) from None

    def _outcome[T](self, call: Call[T]) -> T:
        try:
            return call.outcome()
        except RuntimeError as error:
            if AT_EXIT in str(error):
                raise StoreUnavailable(EXITING) from error
            raise

    # --- on the loop --------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        finally:
            self._is_closed = True

    def _begin(self) -> None:
        self._is_waking = False  # before the queue is empty: who comes later wakes the loop again
        while self._calls:
            self._calls.popleft().begin(self._running, self._has_ended)

    def _has_ended(self) -> None:
        if not self._ended:
            self._loop.call_soon(self._gather)
        self._ended += 1

    def _gather(self) -> None:
        """Begin the next calls of threads whose calls have just ended together."""
        ended, self._ended = self._ended, 0
        if self._returning.are_likely(ended):
            self._is_waking = True
            self._returning.wait(ended)
            self._begin()

    async def _serve(self) -> None:
        await self._stopped.wait()
        if self._running:  # what was stopped or cancelled is about to end
            await asyncio.wait(self._running, timeout=JOIN_SECONDS / 2)

    def _abandon(self, finish: Callable[[], Awaitable[None]]) -> None:
        self._leaving = self._loop.create_task(self._leave(finish))

    async def _leave(self, finish: Callable[[], Awaitable[None]]) -> None:
        try:
            await finish()
        except RuntimeError as error:
            if AT_EXIT not in str(error):
                raise
        finally:
            self._stopped.set()
