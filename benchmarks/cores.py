"""On which cores a bench's processes run: with too few of them, a database pushes whatever is measured off its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


def _apart() -> tuple[set[int], set[int]]:
    if not hasattr(os, "sched_getaffinity"):  # macOS
        return set(), set()
    cores = os.sched_getaffinity(0)
    first = {min(cores)}
    return (first, cores - first) if len(cores) > 1 else (cores, cores)


MEASURED, OTHERS = _apart()
"""A core for what is measured, and all others; twice the same where there is but one, or no way to choose."""


@contextmanager
def on(cores: set[int]) -> Iterator[None]:
    """Run this thread, and the processes that it starts meanwhile, on these cores."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
