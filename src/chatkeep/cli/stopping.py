"""Ctrl-C and SIGTERM in commands that take long."""

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Never

import typer

from chatkeep.cli.terminal import print_error, run

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stop:
    """What a signal does: it cancels the coroutine that runs, which ends at its next wait.

    An exception in the middle of something else would be lost in a callback, or leave the event loop with tasks that
    nothing wakes. Only what waits for a pipe or a device, and so does not let the loop have its turn, ends by one.
    A second signal ends whatever runs.
    """

    def __init__(self) -> None:
        """Begin without a signal."""
        self._number: int | None = None
        self._task: asyncio.Task[Any] | None = None
        self._blocks = False

    def run[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine as `terminal.run` does. Raises KeyboardInterrupt if a signal ended it."""
        try:
            return run(self._cancellable(coroutine))
        except asyncio.CancelledError:
            if self._number is None:
                raise
            raise KeyboardInterrupt(self._number) from None

    @contextmanager
    def blocking(self) -> Iterator[None]:
        """A block that may wait in a system call: a signal, also one before it, raises KeyboardInterrupt in it."""
        self._blocks = True
        try:
            if self._number is not None:
                self._raise(self._number)
            yield
        finally:
            self._blocks = False

    def each[T](self, values: Iterator[T]) -> Iterator[T]:
        """Yield values, of which each is waited for in a `blocking` block."""
        while True:
            with self.blocking():
                try:
                    value = next(values)
                except StopIteration:
                    return
            yield value

    def on_signal(self, number: int, _frame: object) -> None:
        """Handle a signal, between any two steps of the program."""
        is_first, self._number = self._number is None, number
        if not is_first or self._blocks or self._task is None:
            self._raise(number)
        self._task.get_loop().call_soon_threadsafe(self._cancel)

    async def _cancellable[T](self, coroutine: Coroutine[Any, Any, T]) -> T:
        self._task = asyncio.current_task()
        try:
            return await coroutine
        finally:
            self._task = None

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _raise(self, number: int) -> Never:
        self._task = None  # it ends by this: to cancel it, too, would cut off what tidies up
        raise KeyboardInterrupt(number)


@contextmanager
def stoppable(outcome: Callable[[], str]) -> Iterator[Stop]:
    """End the block on Ctrl-C and SIGTERM, print the outcome, and exit. What takes long runs by what it yields."""
    stop = Stop()
    # Only the main thread may; and who ignores a signal, as a shell does for what runs in the background, means it.
    is_main = threading.current_thread() is threading.main_thread()
    heeded = [number for number in SIGNALS if is_main and signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop.on_signal) for number in heeded}
    try:
        yield stop
    except KeyboardInterrupt as error:
        print_error(f"stopped; {outcome()}")
        raise typer.Exit(128 + (error.args or (signal.SIGINT,))[0]) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
