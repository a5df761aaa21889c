"""The drill of turns, short: workers killed, stopped and cut off while they answer. The long one: `make turn-drill`."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.turn_drill import PARTS

from servers.mongo import mongo_databases
from servers.postgres import databases

URLS: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/chat.db",
    "postgres": lambda _: databases().empty(),
    "mongodb": lambda _: mongo_databases().migrated(),
}

ALL = [
    ("sqlite", "kills"),
    pytest.param("postgres", "cuts", marks=pytest.mark.long),
    pytest.param("postgres", "kills", marks=pytest.mark.long),
    pytest.param("mongodb", "kills", marks=pytest.mark.apart),
    pytest.param("postgres", "stop", marks=pytest.mark.long),
    pytest.param("mongodb", "stop", marks=pytest.mark.apart),
    pytest.param("sqlite", "term", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("database", "part"), ALL)
def test_turns_survive(database: str, part: str, tmp_path: Path) -> None:
    """Nothing that a client has seen is lost or doubled, and nothing is overwritten."""
    assert asyncio.run(PARTS[part](URLS[database](tmp_path), 1)) == 0
