"""The time limit of a call: it begins with the call, and covers every wait in it."""

import asyncio
import math
from collections import deque
from types import TracebackType
from typing import Protocol

from chatkeep.errors import StoreUnavailable

GRACE_SECONDS = 0.25
"""How much later than its time a call is cut off at most, and half of it at least: a wait that ends by itself, such as
one for a lock, says what for."""

TICK_SECONDS = GRACE_SECONDS / 2


class Limited(Protocol):
    """What a limit watches."""

    last_tick: int
    """The tick at which its time is over."""

    @property
    def is_done(self) -> bool:
        """Whether it ended."""

    def expire(self) -> None:
        """End it."""


class TimeLimit:
    """The seconds that each of many calls may take.

        with limit.of_call():
            ...

    A call that takes longer is cancelled, GRACE_SECONDS later at most, and raises StoreUnavailable. Limits may be
    nested: the call that began first ends first.

    All calls may take equally long, so they end in the order in which they began. One timer ticks for all of them, and
    a call only notes the tick at which it began: `asyncio.timeout` makes a timer for each.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reason: str | None = None
        """Why calls take long now, if the database knows: it is what those hear that are cut off."""
        self.calls: deque[Limited] = deque()
        """The calls that are not done, and those that are and began after one that is not, in that order."""
        self._ticks_of_call = math.ceil(seconds / TICK_SECONDS) + 2  # the first one may come at once
        self._tick = 0
        self._timer: asyncio.TimerHandle | None = None

    @property
    def no_answer(self) -> str:
        """What calls hear that are cut off for no reason that is known."""
        return f"the database did not answer within {self.seconds:g} s; try again"

    def exceeded(self) -> StoreUnavailable:
        """The error of a call that is cut off now."""
        return StoreUnavailable(self.reason or self.no_answer)

    def of_call(self) -> "_Call":
        """The limit of one call, for `with`."""
        return _Call(self)

    def watch(self, call: Limited) -> None:
        """Watch a call, which begins now."""
        call.last_tick = self._tick + self._ticks_of_call
        self.calls.append(call)
        if self._timer is None:
            self._begin_to_tick()

    def forget(self) -> None:
        """Forget calls that are done."""
        calls = self.calls
        while calls and calls[0].is_done:
            calls.popleft()

    def _begin_to_tick(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._on_tick)

    def _on_tick(self) -> None:
        """End the calls whose time is over, and tick on while there are others."""
        self._tick += 1
        self.forget()
        while self.calls and self.calls[0].last_tick <= self._tick:
            self.calls.popleft().expire()
            self.forget()
        self._timer = None
        if self.calls:
            self._begin_to_tick()


class _Call:
    """One call under a limit."""

    __slots__ = ("_cancelling", "_expired", "_limit", "_task", "is_done", "last_tick")

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit
        self.last_tick = 0
        self.is_done = self._expired = False

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has a task
        self._task, self._cancelling = task, task.cancelling()
        self._limit.watch(self)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        self.is_done = True
        self._limit.forget()
        if self._expired:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        """Raise StoreUnavailable, unless somebody else has cancelled the task, too, or it was done nevertheless."""
        nobody_else = self._task.uncancel() <= self._cancelling
        if nobody_else and isinstance(error, asyncio.CancelledError):
            raise self._limit.exceeded() from None

    def expire(self) -> None:
        """Cancel the call."""
        self._expired = True
        self._task.cancel()
