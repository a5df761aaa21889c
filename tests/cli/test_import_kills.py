"""An import that was killed and runs again is equal to one run: a short `make import-kills`."""

import random
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from benchmarks.attack_server import Checkout
from benchmarks.drill_places import place
from benchmarks.import_kills import SAMPLE, Content, Trial, differences, kills, seeded_file, without_times

LONG = [
    pytest.param("postgresql", 1, marks=pytest.mark.long),
    *(pytest.param(kind, 3, marks=pytest.mark.apart) for kind in ("sqlite", "postgresql")),
]


@pytest.mark.parametrize(("kind", "count"), [("sqlite", 1), *LONG])
async def test_a_killed_import_that_runs_again_is_equal_to_one_run(kind: str, count: int, tmp_path: Path) -> None:
    """SIGKILL at random moments leaves no wrong head, nothing doubled or missing, and all words are found."""
    checkout = Checkout.at(None)
    with place(kind, tmp_path) as made:
        file, own = await seeded_file(checkout, made, 100)
        assert await kills(Trial(checkout, made, [file, SAMPLE], own), count) == {}


def content(**changes: Any) -> Content:
    """What an import of one conversation stored, changed as wanted."""
    messages = [{"id": str(number), "content": "drill", "created_at": f"t{random.random()}"} for number in range(3)]
    line = {"format": 2, "id": "c", "head": "2", "messages": messages, "updated_at": f"t{random.random()}"} | changes
    return Content({"c": without_times(line)}, {"drill": []})


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"head": "1"}, "wrong head"),
        ({"messages": content().lines["c"]["messages"][:2]}, "missing messages"),
        ({"messages": content().lines["c"]["messages"][:1] * 2}, "doubled messages"),
        ({"messages": content().lines["c"]["messages"][::-1]}, "other messages"),
        ({"title": "x"}, "other title"),
        ({}, None),
    ],
)
def test_differences_are_named(changes: dict[str, Any], fault: str | None) -> None:
    """Each kind of difference has its name; the store's own times are none."""
    assert differences(content(), content(**changes)) == ({} if fault is None else {fault: 1})


def test_missing_doubled_and_unfound_are_counted() -> None:
    """Conversations that one of the two lacks, and a search that finds something else."""
    one, nothing = content(), Content({}, {"drill": [uuid4()]})
    assert differences(one, nothing) == {"missing": 1, "searches": 1}
    assert differences(Content({}, {}), one) == {"doubled": 1}
