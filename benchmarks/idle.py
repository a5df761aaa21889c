"""Processes that only wake up, one on each processor: if one is late, the machine had something else to do.

`idle_processes()` starts them, and what it yields tells how late they were. The program of each is this module.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

TICK_SECONDS = 0.001
LEAST_SECONDS = 0.001
"""Whoever is less late is not noted."""


class IdleProcesses:
    """What some processes noted, each in a file."""

    def __init__(self, files: list[Path]) -> None:
        self._files = files

    def late(self, began: float, ended: float) -> float:
        """For how many seconds of a period, in time.perf_counter(), one of them should have been awake and was not."""
        noted = (map(float, line.split()) for file in self._files for line in file.read_text().splitlines())
        return max((max(0.0, min(ended, end) - max(began, start)) for start, end in noted), default=0.0)


@contextmanager
def idle_processes() -> Iterator[IdleProcesses]:
    """Have one on each processor meanwhile."""
    with TemporaryDirectory() as folder:
        files = {cpu: Path(folder, str(cpu)) for cpu in os.sched_getaffinity(0)}
        processes = [
            subprocess.Popen([sys.executable, "-m", "benchmarks.idle", str(cpu), str(file)])
            for cpu, file in files.items()
        ]
        try:
            while not all(file.exists() for file in files.values()):
                if any(process.poll() is not None for process in processes):
                    raise RuntimeError("an idle process ended before it began; see above")
                time.sleep(0.01)
            yield IdleProcesses(list(files.values()))
        finally:
            for process in processes:
                process.kill()
                process.wait()


def main() -> None:
    """Note, in the file named second, when waking up on the processor named first was late; until the parent ends."""
    os.sched_setaffinity(0, {int(sys.argv[1])})
    parent = os.getppid()
    with Path(sys.argv[2]).open("w", buffering=1) as file:
        while os.getppid() == parent:
            due = time.perf_counter() + TICK_SECONDS
            time.sleep(TICK_SECONDS)
            woken = time.perf_counter()
            if woken - due > LEAST_SECONDS:
                file.write(f"{due} {woken}\n")


if __name__ == "__main__":
    main()
