"""The drill of failover, short: servers killed while OpenAI makes answers. The long one: `make failover-drill`."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from benchmarks.failover_drill import failover

from servers.mongo import mongo_databases
from servers.postgres import databases

URLS: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/chat.db",
    "postgres": lambda _: databases().empty(),
    "mongodb": lambda _: mongo_databases().migrated(),
}


@pytest.mark.parametrize(
    ("database", "kills"),
    [
        pytest.param("postgres", 1, marks=pytest.mark.long),
        *(pytest.param(name, 2, marks=pytest.mark.apart) for name in URLS),
    ],
)
def test_another_server_goes_on(database: str, kills: int, tmp_path: Path) -> None:
    """Every character once, and one answer begun, whenever a server is killed."""
    assert asyncio.run(failover(URLS[database](tmp_path), kills, tmp_path)) == 0
