"""The time limit of a call: it begins with the call, and covers every wait in it."""

import asyncio
from collections import deque
from types import TracebackType

from chatkeep.errors import StoreUnavailable

GRACE_SECONDS = 0.25
"""How long after its time a call is cut off: a wait that ends by itself, such as one for a lock, says what for."""


class TimeLimit:
    """The seconds that each of many calls may take.

        with limit.of_call():
            ...

    A call that takes longer is cancelled, after GRACE_SECONDS more, and raises StoreUnavailable. Limits may be
    nested: the call that began first ends first. All calls take equally long at most, so they end in the order in
    which they began, and one timer serves all: `asyncio.timeout` makes one for each.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.reason: str | None = None
        """Why calls take long now, if the database knows: it is what those hear that are cut off."""
        self._calls: deque[_Call] = deque()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def no_answer(self) -> str:
        """What calls hear that are cut off for no reason that is known."""
        return f"the database did not answer within {self.seconds:g} s; try again"

    def of_call(self) -> "_Call":
        """The limit of one call, for `with`."""
        return _Call(self)

    def watch(self, call: "_Call") -> float:
        """Watch a call from now on; return its deadline, a time of the event loop."""
        loop = asyncio.get_running_loop()
        self._calls.append(call)
        if self._timer is None:
            self._timer = loop.call_later(self.seconds + GRACE_SECONDS, self._expire)
        return loop.time() + self.seconds + GRACE_SECONDS

    def forget(self) -> None:
        """Forget calls that are done."""
        while self._calls and self._calls[0].task is None:
            self._calls.popleft()

    def _expire(self) -> None:
        """End the calls whose deadline has passed, and set the timer for the next one."""
        loop = asyncio.get_running_loop()
        self.forget()
        while self._calls and self._calls[0].deadline <= loop.time():
            self._calls.popleft().expire()
            self.forget()
        self._timer = loop.call_at(self._calls[0].deadline, self._expire) if self._calls else None


class _Call:
    """One call under a limit."""

    __slots__ = ("_cancelling", "_expired", "_limit", "deadline", "task")

    def __init__(self, limit: TimeLimit) -> None:
        self._limit = limit

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has a task
        self.task: asyncio.Task[object] | None = task
        self._cancelling, self._expired = task.cancelling(), False
        self.deadline = self._limit.watch(self)

    def __exit__(self, _kind: object, error: BaseException | None, _trace: TracebackType | None) -> None:
        task, self.task = self.task, None
        self._limit.forget()
        if self._expired and task is not None:
            self._end(task, error)

    def _end(self, task: "asyncio.Task[object]", error: BaseException | None) -> None:
        """Raise StoreUnavailable, unless somebody else has cancelled the task, too, or it was done nevertheless."""
        nobody_else = task.uncancel() <= self._cancelling
        if nobody_else and isinstance(error, asyncio.CancelledError):
            raise StoreUnavailable(self._limit.reason or self._limit.no_answer) from None

    def expire(self) -> None:
        """Cancel the call."""
        if self.task is not None:
            self._expired = True
            self.task.cancel()
