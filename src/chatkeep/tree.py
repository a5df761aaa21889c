"""Runs and paths of a branching conversation, as arithmetic on seqs.

A run is a stretch of a branch without a fork. A message whose parent is the tip of a run continues that run; any other
message starts a run. A path, from the root to a leaf, is one range of seq per run. A conversation stores the list of
its runs, so that no query follows parents one by one. A conversation without branches stores no list.

    seq   1 ─ 2 ─ 3 ─ 4 ─ 7          run 0: 1, 2, 3, 4, 7
                  └── 5 ─ 6          run 1: 5, 6            (forks from 3)

    path to 6: run 0 from 1 to 3, run 1 from 5 to 6
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import attrgetter
from typing import NamedTuple

from chatkeep.errors import Conflict

MAX_RUNS = 10_000
"""Most runs of one conversation: the list is read and written with every message of a branched one."""


class Position(NamedTuple):
    """The place of a message: its seq, its run, and the length of its path."""

    seq: int
    run: int
    depth: int


@dataclass(slots=True)
class Run:
    """A stretch of a branch without a fork. It starts at the root if `parent_run` is -1."""

    parent_run: int
    fork_seq: int
    first_seq: int
    tip_seq: int
    tip_depth: int


_values = attrgetter("parent_run", "fork_seq", "first_seq", "tip_seq", "tip_depth")


class Segment(NamedTuple):
    """The messages of `run` with low ≤ seq ≤ high. On the trunk, before the first fork, there are no others."""

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
        """Return the tree that `dump` serialised; None is a conversation that never branched."""
        if runs is not None:
            return cls(last_seq, [Run(*values) for values in json.loads(runs)])
        return cls(last_seq, [Run(-1, 0, 1, last_seq, last_seq)] if last_seq else [])

    def dump(self) -> str | None:
        """Return the runs as JSON; None if the conversation never branched."""
        if len(self.runs) <= 1:
            return None
        return json.dumps([_values(run) for run in self.runs], separators=(",", ":"))

    @property
    def trunk_end(self) -> int:
        """The last seq before the first fork: up to it each message follows the one before."""
        return self.runs[1].first_seq - 1 if len(self.runs) > 1 else self.last_seq

    def find(self, seq: int) -> Position | None:
        """Return the position of message `seq` if it is on the trunk or the tip of a run; else None."""
        if seq <= self.trunk_end:
            return Position(seq, 0, seq)
        for number, run in enumerate(self.runs):
            if run.tip_seq == seq:
                return Position(seq, number, run.tip_depth)
        return None

    def add(self, parent: Position | None) -> Position:
        """Add a message after `parent` (None: at the root); return its position. Raises Conflict at 10,000 runs."""
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

    def path(self, run: int, seq: int) -> Iterator[Segment]:
        """Yield the segments of the path to message `seq` of `run`, from the leaf back to the root."""
        while run > 0:
            of_path = self.runs[run]
            yield Segment(run, of_path.first_seq, seq, False)  # noqa: FBT003 - a path may have 10,000
            run, seq = of_path.parent_run, of_path.fork_seq
        if run == 0:
            yield from self._trunk(seq)

    def _trunk(self, seq: int) -> Iterator[Segment]:
        """Yield run 0 up to `seq`: what comes after the first fork, and the trunk."""
        trunk_end = self.trunk_end
        if seq > trunk_end:
            yield Segment(0, trunk_end + 1, seq, trunk=False)
        if trunk_end:
            yield Segment(0, 1, min(seq, trunk_end), trunk=True)

    def runs_from(self, run: int, seq: int) -> list[int]:
        """Return the first seqs of the runs that fork from message `seq` of `run`; run -1, seq 0 is the root."""
        return [child.first_seq for child in self.runs if (child.parent_run, child.fork_seq) == (run, seq)]
