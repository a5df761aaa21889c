"""What a bench reports: rows with gates, latencies, peers and notes."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.measure import Run, median_rate, median_seconds, percentile, rate_ratios, time_ratios


@dataclass(frozen=True)
class Gate:
    """A bound that the median has to keep."""

    bound: float
    unit: str = "x"
    at_most: bool = False

    def reached(self, value: float) -> bool:
        """Whether `value` keeps the bound."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:,g} {self.unit}"


@dataclass(frozen=True)
class Row:
    """One line of the table. `values` are what the gate is about, one for each round."""

    work: str
    yardstick: str
    ours: str
    theirs: str
    values: Sequence[float]
    unit: str = "x"
    gate: Gate | None = None

    @property
    def value(self) -> str:
        """The median of the rounds, with the lowest and the highest."""
        if not self.values:
            return "not measured"
        return f"{self._show(self._median)} ({self._show(min(self.values))}-{self._show(max(self.values))}) {self.unit}"

    @property
    def reached(self) -> bool | None:
        """Whether the gate was reached; None where there is none, or nothing was measured."""
        return self.gate.reached(self._median) if self.gate and self.values else None

    @property
    def _median(self) -> float:
        return statistics.median(self.values)

    def _show(self, value: float) -> str:
        return f"{value:,.2f}" if self.unit == "x" else f"{value:,.0f}"


@dataclass(frozen=True)
class Latency:
    """How long single operations took, in seconds."""

    work: str
    p50: float
    p99: float
    count: int

    @classmethod
    def of(cls, work: str, runs: list[Run]) -> "Latency":
        """The latencies of all rounds together."""
        return cls(work, percentile(runs, 0.5), percentile(runs, 0.99), sum(run.operations for run in runs))


@dataclass
class Report:
    """What one bench, or all of them, found."""

    rows: list[Row] = field(default_factory=list)
    latencies: list[Latency] = field(default_factory=list)
    peers: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, other: "Report") -> None:
        """Take over what another report holds."""
        self.rows += other.rows
        self.latencies += other.latencies
        self.peers += other.peers
        self.notes += other.notes


def rate_row(work: str, yardstick: str, ours: list[Run], theirs: list[Run], gate: Gate | None = None) -> Row:
    """A row that compares rates."""
    return Row(work, yardstick, per_second(ours), per_second(theirs), rate_ratios(ours, theirs), gate=gate)


def time_row(work: str, yardstick: str, ours: list[Run], theirs: list[Run], gate: Gate | None = None) -> Row:
    """A row that compares times of one operation."""
    return Row(work, yardstick, each(ours), each(theirs), time_ratios(ours, theirs), gate=gate)


def not_measured(work: str, yardstick: str, gate: Gate | None = None) -> Row:
    """A row for what could not be measured; a note says why."""
    return Row(work, yardstick, "-", "-", (), gate=gate)


def per_second(runs: list[Run]) -> str:
    """A rate, written out."""
    return f"{median_rate(runs):,.0f}/s"


def each(runs: list[Run]) -> str:
    """A time, written out."""
    return f"{median_seconds(runs) * 1e6:,.0f} µs"
