"""How a conversation branches: runs and paths, as plain arithmetic on sequence numbers.

A message on the tip of its parent's run continues that run; any other message opens a run of its own. A
conversation keeps the short list of its runs, and the path from the root to any message is one range of
seq per run on the way. No query ever has to follow parents one by one, and a conversation that never
branched needs no list at all.

    seq   1 ─ 2 ─ 3 ─ 4 ─ 7          run 0: 1, 2, 3, 4, 7
                  └── 5 ─ 6          run 1: 5, 6            (forks from 3)

    path to 6: run 0 from 1 to 3, run 1 from 5 to 6
"""

import json
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from chatkeep.errors import Conflict

MAX_RUNS = 10_000
"""Most runs of one conversation: the list is read and written with every message of a branched one."""


class Position(NamedTuple):
    """Where a message stands: its place in the log, its run, and the length of the path that ends with it."""

    seq: int
    run: int
    depth: int


@dataclass(slots=True)
class Run:
    """Messages that follow each other without a fork between them. `parent_run` -1: it starts at the root."""

    parent_run: int
    fork_seq: int
    first_seq: int
    tip_seq: int
    tip_depth: int


_values = attrgetter("parent_run", "fork_seq", "first_seq", "tip_seq", "tip_depth")


class Segment(NamedTuple):
    """The messages of `run` with low ≤ seq ≤ high. On the trunk, before the first fork, those are all messages."""

    run: int
    low: int
    high: int
    trunk: bool


@dataclass
class Tree:
    """The runs of one conversation."""

    last_seq: int = 0
    runs: list[Run] = field(default_factory=list)

    @classmethod
    def load(cls, last_seq: int, runs: str | None) -> "Tree":
        """Restore what `dump` gave; None stands for a conversation that never branched."""
        if runs is not None:
            return cls(last_seq, [Run(*values) for values in json.loads(runs)])
        return cls(last_seq, [Run(-1, 0, 1, last_seq, last_seq)] if last_seq else [])

    def dump(self) -> str | None:
        """The runs as JSON text, None where last_seq alone says it."""
        if len(self.runs) <= 1:
            return None
        return json.dumps([_values(run) for run in self.runs], separators=(",", ":"))

    @property
    def trunk_end(self) -> int:
        """The last seq before the first fork: up to there every message follows the one before it."""
        return self.runs[1].first_seq - 1 if len(self.runs) > 1 else self.last_seq

    def find(self, seq: int) -> Position | None:
        """The position of message `seq` where it is on the trunk or the tip of a run; None says: look it up."""
        if seq <= self.trunk_end:
            return Position(seq, 0, seq)
        for number, run in enumerate(self.runs):
            if run.tip_seq == seq:
                return Position(seq, number, run.tip_depth)
        return None

    def add(self, parent: Position | None) -> Position:
        """Give the next message its place after `parent` (None: at the root). Raises Conflict at 10,000 runs."""
        self.last_seq = seq = self.last_seq + 1
        if parent is not None and (run := self.runs[parent.run]).tip_seq == parent.seq:
            run.tip_seq, run.tip_depth = seq, parent.depth + 1
            return Position(seq, parent.run, parent.depth + 1)
        if len(self.runs) >= MAX_RUNS:
            raise Conflict(f"a conversation can have at most {MAX_RUNS:,} branches; start a new one")
        depth = 1 if parent is None else parent.depth + 1
        parent_run, fork_seq = (-1, 0) if parent is None else (parent.run, parent.seq)
        self.runs.append(Run(parent_run, fork_seq, seq, seq, depth))
        return Position(seq, len(self.runs) - 1, depth)

    def path(self, run: int, seq: int) -> list[Segment]:
        """The segments that lead to message `seq` of `run`, root first."""
        segments = []
        while run >= 0:
            segments += self._split(run, self.runs[run].first_seq, seq)
            run, seq = self.runs[run].parent_run, self.runs[run].fork_seq
        return segments[::-1]

    def _split(self, run: int, low: int, high: int) -> list[Segment]:
        """One run's part of a path, last segment first; run 0 is cut where the trunk ends."""
        trunk_end = self.trunk_end
        if run > 0 or low > trunk_end:
            return [Segment(run, low, high, trunk=False)]
        if high <= trunk_end:
            return [Segment(run, low, high, trunk=True)]
        return [Segment(run, trunk_end + 1, high, trunk=False), Segment(run, low, trunk_end, trunk=True)]

    def runs_from(self, run: int, seq: int) -> list[int]:
        """First seqs of the runs that fork from message `seq` of `run`; run -1 and seq 0 stand for the root."""
        return [child.first_seq for child in self.runs if (child.parent_run, child.fork_seq) == (run, seq)]
