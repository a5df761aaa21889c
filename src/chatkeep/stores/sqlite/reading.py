"""A read on its way through a thread: another thread may stop it."""

import asyncio
import threading

import apsw

AGAIN_SECONDS = 0.05
"""How often a read that must stop is interrupted: between two statements SQLite forgets an interruption."""


class Reading:
    """One read, which runs on a connection between `begin` and `end`.

    SQLite's progress handler does not end a full-text search: matching a phrase takes no steps of the virtual machine
    until there is a hit. An interruption does, at the next page of the index that is read: 0.3 s later at most, with
    200 words against messages of 200,000.
    """

    __slots__ = ("_connection", "_mutex", "_stopped", "deadline")

    def __init__(self, deadline: float) -> None:
        """Take the time, by the monotonic clock, at which it is over."""
        self.deadline = deadline
        self._connection: apsw.Connection | None = None
        self._mutex = threading.Lock()
        self._stopped = False

    def begin(self, connection: apsw.Connection) -> None:
        """It runs on this connection from now on. Raises InterruptError if it was stopped before."""
        with self._mutex:
            if self._stopped:
                raise apsw.InterruptError("interrupted")
            self._connection = connection

    def end(self) -> None:
        """It does not use its connection any more: what is interrupted there later would be another one."""
        with self._mutex:
            self._connection = None

    def stop(self) -> None:
        """Interrupt it, from the event loop, again and again until it has ended. It may not have begun yet."""
        with self._mutex:
            self._stopped = True
            if self._connection is None:
                return
            self._connection.interrupt()
        asyncio.get_running_loop().call_later(AGAIN_SECONDS, self.stop)
