"""Waiting in a thread for what another one does."""

import time
from collections.abc import Callable


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, for ten seconds at most."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
