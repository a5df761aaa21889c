"""The time limit of a call: it begins with the call, and covers every wait in it."""

import asyncio
import math
from collections import deque
from types import TracebackType

from chatkeep.errors import StoreUnavailable

GRACE_SECONDS = 0.25
"""How much later than its time a call is cut off at most, and half of it at least: a wait that ends by itself, such as
one for a lock, says what for."""

TICK_SECONDS = GRACE_SECONDS / 2


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
        self.calls: deque[_Call] = deque()
        """The calls that are not done, and those that are and began after one that is not, in that order."""
        self.tick = 0
        self.ticks = math.ceil(seconds / TICK_SECONDS) + 2  # the first one may come at once
        self.timer: asyncio.TimerHandle | None = None

    @property
    def no_answer(self) -> str:
        """What calls hear that are cut off for no reason that is known."""
        return f"the database did not answer within {self.seconds:g} s; try again"

    def of_call(self) -> "_Call":
        """The limit of one call, for `with`."""
        return _Call(self)

    def begin_to_tick(self) -> None:
        """Set the timer."""
        self.timer = asyncio.get_running_loop().call_later(TICK_SECONDS, self._tick)

    def _tick(self) -> None:
        """End the calls whose time is over, and tick on while there are others."""
        self.tick += 1
        while self.calls and self.calls[0].last_tick <= self.tick:
            self.calls.popleft().expire()
        self.timer = None
        if self.calls:
            self.begin_to_tick()


class _Call:
    """One call under a limit."""

    __slots__ = ("_cancelling", "_expired", "_limit", "last_tick", "task")

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has a task
        self.task: asyncio.Task[object] | None = task
        self._cancelling, self._expired = task.cancelling(), False
        limit = self._limit
        self.last_tick = limit.tick + limit.ticks
        limit.calls.append(self)
        if limit.timer is None:
            limit.begin_to_tick()

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        task, self.task = self.task, None
        calls = self._limit.calls
        while calls and calls[0].task is None:
            calls.popleft()
        if self._expired and task is not None:
            self._end(task, error)

    def _end(self, task: "asyncio.Task[object]", error: BaseException | None) -> None:
        """Raise StoreUnavailable, unless somebody else has cancelled the task, too, or it was done nevertheless."""
        nobody_else = task.uncancel() <= self._cancelling
        if nobody_else and isinstance(error, asyncio.CancelledError):
            raise StoreUnavailable(self._limit.reason or self._limit.no_answer) from None

    def expire(self) -> None:
        """Cancel the call, unless it is done."""
        if self.task is not None:
            self._expired = True
            self.task.cancel()
