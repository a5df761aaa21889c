"""Who may use a database now: no more at a time than there are connections; and who still does when it closes."""

import asyncio
from collections import deque

from chatkeep.errors import StoreUnavailable


class Permits:
    """At most `size` permits at a time; who waits longest gets the next one.

    A semaphore with a timeout around it makes a timer for everyone who waits: under load, when all wait, that took a
    twentieth of a request. All wait equally long here, so that one timer serves for all.
    """

    def __init__(self, size: int, patience: float) -> None:
        self._size = size
        self._patience = patience
        self._waiting: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self.used = 0

    async def acquire(self) -> None:
        """Take a permit. Raises StoreUnavailable when none was free for `patience` seconds."""
        if self.used < self._size:
            self.used += 1
            return
        turn = self._line_up()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled() and turn.exception() is None:
                self.release()  # it was given a permit and cancelled in the same moment
            raise

    def release(self) -> None:
        """Give a permit back: to whoever waits longest."""
        while self._waiting:
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self.used -= 1

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()

    def _line_up(self) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append((loop.time() + self._patience, turn))
        if self._timer is None:
            self._timer = loop.call_later(self._patience, self._send_away)
        return turn

    def _send_away(self) -> None:
        """Disappoint those who have waited long enough, and look again when the next one will have."""
        loop = asyncio.get_running_loop()
        while self._waiting and (self._waiting[0][0] <= loop.time() or self._waiting[0][1].done()):
            _, turn = self._waiting.popleft()
            if not turn.done():
                turn.set_exception(StoreUnavailable(self._busy))
        self._timer = loop.call_at(self._waiting[0][0], self._send_away) if self._waiting else None

    @property
    def _busy(self) -> str:
        return (
            f"all {self._size} connections were in use for {self._patience:g} s;"
            " try again, or open the store with a larger pool_size"
        )


class UnderWay:
    """What has begun and not ended, such as writes: `with` counts it, and closing waits for it."""

    def __init__(self) -> None:
        self._count = 0
        self._nothing = asyncio.Event()

    def __enter__(self) -> None:
        self._count += 1

    def __exit__(self, *_: object) -> None:
        self._count -= 1
        if not self._count:
            self._nothing.set()

    async def ended(self) -> None:
        """Wait until nothing is under way."""
        while self._count:
            self._nothing.clear()
            await self._nothing.wait()
