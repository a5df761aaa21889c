"""What all tests share: the stores, hypothesis's profiles, and two guards that every test runs under."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from servers import pgbouncer, redis
from servers.mongo import mongo_databases
from servers.postgres import databases

pytest.register_assert_rewrite("chatkeep.testing")

STORES: dict[str, Callable[[Path], str]] = {
    "memory": lambda _: "memory://",
    "sqlite": lambda folder: f"sqlite:///{folder}/chat.db",
    "postgres": lambda _: databases().clean(),
    "mongodb": lambda _: mongo_databases().clean(),
}
"""The URL of every store that must keep the contract, given a folder that is its own."""

settings.register_profile("quick", max_examples=25, stateful_step_count=40, deadline=None, derandomize=True)
settings.register_profile("thorough", max_examples=1_000, stateful_step_count=80, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("CHATKEEP_HYPOTHESIS_PROFILE", "quick"))

opened_with_sqlite3: list[str] = []


def pytest_report_header() -> list[str]:
    """Say which servers the stores are tested on. A database that cannot be had fails the run: none is skipped."""
    return [databases().version(), mongo_databases().version(), pgbouncer.version(), redis.version()]


def pytest_unconfigure() -> None:
    """Stop what was started."""
    if databases.cache_info().currsize:
        databases().close()
    if mongo_databases.cache_info().currsize:
        mongo_databases().close()


def refuse_sqlite3(event: str, arguments: tuple[object, ...]) -> None:
    """Refuse what would open a file with Python's sqlite3: closing it there would drop APSW's locks.

    Only coverage.py may, on the files of its own.
    """
    if event != "sqlite3.connect":
        return
    database = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes | Path) else repr(arguments[0])
    if not Path(database).name.startswith(".coverage"):
        opened_with_sqlite3.append(database)
        raise RuntimeError(f"{database} must not be opened with Python's sqlite3")


sys.addaudithook(refuse_sqlite3)


@pytest.fixture(autouse=True)
def nothing_opens_sqlite3() -> Iterator[None]:
    """Fail a test during which anything tried to use Python's sqlite3, even if it caught the refusal."""
    opened_with_sqlite3.clear()
    yield
    assert opened_with_sqlite3 == []


@pytest.fixture(autouse=True)
def asyncio_complains_of_nothing() -> Iterator[None]:
    """Fail a test after which asyncio logs an error, such as an exception that nobody looked at."""
    complaints: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: complaints.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert complaints == []


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind in turn."""
    return STORES[request.param](tmp_path)
