"""Which process this is: a forked child has neither the threads nor the tasks of its parent."""

import os

from chatkeep.errors import StoreUnavailable

OTHER_PROCESS = "the store was opened by the process that this one was forked from; open one in this process"


class Process:
    """How often this process and its parents were forked. Asking the system who it is takes 0.2 µs."""

    def __init__(self) -> None:
        self.forks = 0

    def fork(self) -> None:
        """Note that this is a child."""
        self.forks += 1


PROCESS = Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=PROCESS.fork)


def check_process(forks: int) -> None:
    """Raise StoreUnavailable in a forked child: `forks` are those of the process that opened the store."""
    if PROCESS.forks != forks:
        raise StoreUnavailable(OTHER_PROCESS)
