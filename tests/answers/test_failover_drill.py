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
    "database",
    [pytest.param(name, marks=pytest.mark.long if name == "postgres" else pytest.mark.apart) for name in URLS],
)
def test_another_server_goes_on(database: str, tmp_path: Path) -> None:
    """Every character once, and one answer begun, whenever a server is killed."""
    assert asyncio.run(failover(URLS[database](tmp_path), 2, tmp_path)) == 0
