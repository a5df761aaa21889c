"""Runs and paths: the arithmetic agrees with following parents one by one."""

import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import Conflict
from chatkeep.tree import MAX_RUNS, Position, Run, Segment, Tree


@dataclass
class Plain:
    """A tree as everybody would write it: each message knows its parent, by seq; 0 is the root."""

    parents: list[int] = field(default_factory=lambda: [0])

    def add(self, parent: int) -> None:
        """Add the next message after `parent`."""
        self.parents.append(parent)

    def path(self, seq: int) -> list[int]:
        """The seqs from the root to `seq`."""
        path = []
        while seq:
            path.append(seq)
            seq = self.parents[seq]
        return path[::-1]

    def children(self, seq: int) -> list[int]:
        """The seqs of the messages that follow `seq`."""
        return [child for child, parent in enumerate(self.parents) if child and parent == seq]


def grow(choices: list[int]) -> tuple[Tree, Plain, list[Position]]:
    """Grow the same tree twice. A choice is how many messages back the parent lies; -1 stands for the root."""
    tree, plain, positions = Tree(), Plain(), [Position(0, -1, 0)]
    for choice in choices:
        last = tree.last_seq
        parent = 0 if choice < 0 else max(0, last - choice)
        positions.append(tree.add(positions[parent] if parent else None))
        plain.add(parent)
    return tree, plain, positions


def in_segment(segment: Segment, positions: list[Position]) -> list[int]:
    """The seqs of a segment, as a store selects them: by run, or on the trunk by seq alone."""
    inside = range(segment.low, segment.high + 1)
    return [seq for seq in inside if segment.trunk or positions[seq].run == segment.run]


CHOICES = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 3, 7, -1]), max_size=40)


@given(choices=CHOICES)
def test_paths_are_the_chains_of_parents(choices: list[int]) -> None:
    """The segments of the path to any message hold the messages from the root to it, in order, and no other."""
    tree, plain, positions = grow(choices)
    for seq in range(1, tree.last_seq + 1):
        run, depth = positions[seq].run, positions[seq].depth
        path = [seq for segment in reversed(list(tree.path(run, seq))) for seq in in_segment(segment, positions)]
        assert path == plain.path(seq)
        assert len(path) == depth


@given(choices=CHOICES)
def test_segments_on_the_trunk_end_before_the_first_fork(choices: list[int]) -> None:
    """A segment is marked as trunk exactly where seq alone says what the path is, and depth equals seq."""
    tree, _, positions = grow(choices)
    for seq in range(1, tree.last_seq + 1):
        for segment in tree.path(positions[seq].run, seq):
            for number in in_segment(segment, positions):
                assert segment.trunk == (positions[number].depth == number)


@given(choices=CHOICES)
def test_tree_survives_its_text(choices: list[int]) -> None:
    """A tree that is loaded from its text, at any moment, grows on as if it had stayed."""
    kept, _, positions = grow(choices)
    loaded = Tree()
    for seq, choice in enumerate(choices, 1):
        parent = 0 if choice < 0 else max(0, seq - 1 - choice)
        loaded = Tree.load(loaded.last_seq, loaded.dump())
        assert loaded.add(positions[parent] if parent else None) == positions[seq]
    assert Tree.load(loaded.last_seq, loaded.dump()) == kept


@given(choices=CHOICES)
def test_children_are_the_next_in_the_run_and_the_forks(choices: list[int]) -> None:
    """The children of a message are the next of its run and the first messages of the runs that fork from it."""
    tree, plain, positions = grow(choices)
    for seq in range(tree.last_seq + 1):
        run = positions[seq].run
        following = [other for other in range(seq + 1, tree.last_seq + 1) if seq and positions[other].run == run]
        assert sorted(tree.runs_from(run, seq) + following[:1]) == plain.children(seq)


@given(choices=CHOICES)
def test_places_on_the_trunk_and_tips_are_known_without_a_query(choices: list[int]) -> None:
    """Before the first fork, and for the last message of a run, `find` gives the position; for others None."""
    tree, _, positions = grow(choices)
    last_of_run = {position.run: position.seq for position in positions[1:]}
    first_fork = min((seq for seq in range(1, tree.last_seq + 1) if positions[seq].run), default=tree.last_seq + 1)
    for seq in range(1, tree.last_seq + 1):
        position = positions[seq]
        known = seq < first_fork or last_of_run[position.run] == seq
        assert tree.find(seq) == (position if known else None)


def test_conversation_that_never_branched_needs_no_text() -> None:
    """One run is said by last_seq alone; the empty tree is, too."""
    tree, _, _ = grow([0] * 30)
    assert tree.dump() is None
    assert Tree.load(30, None) == tree
    assert Tree.load(0, None) == Tree()
    assert Tree().dump() is None
    assert list(tree.path(0, 30)) == [Segment(0, 1, 30, trunk=True)]


def test_example_of_the_module() -> None:
    """The drawing in the module's docstring is right."""
    tree, _, _ = grow([0, 0, 0, 0, 1, 0, 2])
    assert tree.runs == [Run(-1, 0, 1, 7, 5), Run(0, 3, 5, 6, 5)]
    assert list(tree.path(1, 6)) == [Segment(1, 5, 6, trunk=False), Segment(0, 1, 3, trunk=True)]
    assert list(tree.path(0, 7)) == [Segment(0, 5, 7, trunk=False), Segment(0, 1, 4, trunk=True)]
    assert json.loads(tree.dump() or "") == [[-1, 0, 1, 7, 5], [0, 3, 5, 6, 5]]


def test_branches_are_bounded() -> None:
    """A conversation takes 10,000 branches; the next one is a Conflict that says so."""
    tree, _, _ = grow([-1] * MAX_RUNS)
    assert len(tree.runs) == MAX_RUNS
    with pytest.raises(Conflict, match="10,000 branches"):
        tree.add(None)
    tree = Tree.load(MAX_RUNS, tree.dump())
    tip = tree.find(MAX_RUNS)
    assert tree.add(tip) == Position(MAX_RUNS + 1, MAX_RUNS - 1, 2)
