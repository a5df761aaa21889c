"""Counts of requests by name in this process, in a sliding window."""

import time
from collections.abc import Callable
from math import floor
from typing import NamedTuple

MAX_NAMES = 100_000
"""Most names counted in one window, which bounds the memory to some 40 MB. Further names are allowed uncounted: a
process answers fewer requests in a minute than this many names with a limit each."""


class WindowState(NamedTuple):
    """Whether a request is allowed, how many more are, and the time at which that changes, as a Unix time."""

    allowed: bool
    remaining: int
    reset_at: float


class SlidingWindow:
    """Allows `limit` requests of each name in `window` seconds.

    Time is divided into windows. A name's count is that of this window, plus that of the window before, weighted with
    the part of it that is less than `window` seconds ago. Two dicts hold the counts, and the older one is dropped as a
    whole when a window ends: no request searches for expired names.
    """

    def __init__(self, limit: int, window: int, *, clock: Callable[[], float] = time.time) -> None:
        self._limit = limit
        self._window = window
        self._clock = clock
        self._number = 0
        self._counts: dict[str, int] = {}
        self._counts_before: dict[str, int] = {}

    def hit(self, name: str) -> WindowState:
        """Count one request, if it is allowed."""
        now = self._clock()
        number, passed = divmod(now, self._window)
        self._turn_to(int(number))
        left = self._window - passed
        before, count = self._counts_before.get(name, 0), self._counts.get(name, 0)
        weighted = before * left / self._window
        allowed = floor(weighted + count) < self._limit
        if allowed and (count or len(self._counts) < MAX_NAMES):
            count = self._counts[name] = count + 1
        # The weighted count falls by one every `window / before` seconds, for the last time when this window ends.
        reset = left % (self._window / before) if before else left
        return WindowState(allowed, max(0, self._limit - floor(weighted + count)), now + reset)

    def _turn_to(self, number: int) -> None:
        if number != self._number:
            self._counts_before = self._counts if number == self._number + 1 else {}
            self._counts = {}
            self._number = number
