"""How everything here is timed: rounds that alternate between the sides, and ratios of medians."""

import asyncio
import gc
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

WARM_UP_SECONDS = 0.25
"""How long a side works before it is timed."""


class Run(NamedTuple):
    """What one side did in one round: how often, how long that took, and how long each time took, sorted."""

    operations: int
    seconds: float
    latencies: list[float]

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


type Side = Callable[[Path], Awaitable[Run]]
"""Works for one round with whatever it keeps in the folder that it is given, which is empty."""

type Work = Callable[[int, int], Awaitable[object]]
"""One operation: of which writer, and its how manieth."""


@dataclass(frozen=True)
class Plan:
    """How much is measured, and where the databases lie."""

    folder: Path
    quick: bool = False

    @property
    def rounds(self) -> int:
        """Rounds of each side."""
        return 3 if self.quick else 5

    @property
    def seconds(self) -> float:
        """Length of one side's round."""
        return 0.5 if self.quick else 2.0

    def size(self, full: int, quick: int) -> int:
        """A size that a quick run makes smaller."""
        return quick if self.quick else full

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Make the folder of all databases, out of git's sight, and remove it in the end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / ".gitignore").write_text("*\n")
        try:
            yield
        finally:
            shutil.rmtree(self.folder)

    @contextmanager
    def fresh(self) -> Iterator[Path]:
        """An empty folder on the disk that is measured, removed afterwards."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def say(text: str) -> None:
    """Show progress."""
    print(text, flush=True)


async def drive(writers: int, seconds: float, work: Work) -> Run:
    """Let `writers` tasks work one after another operation each, for `seconds` after a warm-up."""
    await _drive(writers, WARM_UP_SECONDS, work, 0)
    gc.collect()
    return await _drive(writers, seconds, work, 1_000_000)


async def _drive(writers: int, seconds: float, work: Work, first: int) -> Run:
    latencies: list[float] = []
    began = time.perf_counter()

    async def keep_working(writer: int) -> None:
        number, before = first, time.perf_counter()
        while before - began < seconds:
            await work(writer, number)
            after = time.perf_counter()
            latencies.append(after - before)
            number, before = number + 1, after

    await asyncio.gather(*map(keep_working, range(writers)))
    return Run(len(latencies), time.perf_counter() - began, sorted(latencies))


async def alternate(plan: Plan, sides: Mapping[str, Side], rounds: int | None = None) -> dict[str, list[Run]]:
    """Run the sides in turn, A B A B …, each round in a fresh folder."""
    runs: dict[str, list[Run]] = {name: [] for name in sides}
    for number in range(rounds or plan.rounds):
        for name, side in sides.items():
            with plan.fresh() as folder:
                runs[name].append(await side(folder))
        say_round(number, {name: runs[name][-1] for name in sides})
    return runs


def say_round(number: int, runs: Mapping[str, Run]) -> None:
    """Show the rates of a round."""
    say(f"  round {number + 1}: " + ", ".join(f"{name} {run.rate:,.0f}/s" for name, run in runs.items()))


def joined(runs: list[Run]) -> Run:
    """Several runs as one."""
    latencies = sorted(latency for run in runs for latency in run.latencies)
    return Run(sum(run.operations for run in runs), sum(run.seconds for run in runs), latencies)


async def in_turn(count: int, first: Work, second: Work) -> tuple[Run, Run]:
    """Do two operations in turn `count` times: what disturbs the machine disturbs both."""
    latencies: tuple[list[float], list[float]] = ([], [])
    for number in range(count):
        for work, measured in zip((first, second), latencies, strict=True):
            before = time.perf_counter()
            await work(0, number)
            measured.append(time.perf_counter() - before)
    one, two = (Run(count, sum(measured), sorted(measured)) for measured in latencies)
    return one, two


def percentile(runs: list[Run], share: float) -> float:
    """The latency, in seconds, below which `share` of all operations of all rounds lay."""
    latencies = sorted(latency for run in runs for latency in run.latencies)
    return latencies[min(len(latencies) - 1, int(len(latencies) * share))]


def median_rate(runs: list[Run]) -> float:
    """The median of the rounds' rates."""
    return statistics.median(run.rate for run in runs)


def median_seconds(runs: list[Run]) -> float:
    """The median of the rounds' mean times of one operation."""
    return statistics.median(run.seconds / run.operations for run in runs)


def rate_ratios(ours: list[Run], theirs: list[Run]) -> list[float]:
    """How many times the yardstick's rate, round by round."""
    return [one.rate / other.rate for one, other in zip(ours, theirs, strict=True)]


def time_ratios(ours: list[Run], theirs: list[Run]) -> list[float]:
    """How many times the yardstick's time for one operation, round by round."""
    return rate_ratios(theirs, ours)
