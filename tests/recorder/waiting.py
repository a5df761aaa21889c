"""Waiting for what a thread or a task does."""

import asyncio
import time
from collections.abc import Callable

PATIENCE = 20.0
"""Seconds that a test waits for a delivery, on a machine that does other things."""


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        await asyncio.sleep(0.01)
