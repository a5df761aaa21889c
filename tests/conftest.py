"""What all tests share: the stores, hypothesis's profiles, and two guards that every test runs under."""

import asyncio
import gc
import logging
import os
import re
import signal
import socket
import sys
from asyncio.selector_events import BaseSelectorEventLoop
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from servers import pgbouncer, redis
from servers.mongo import mongo_databases
from servers.postgres import databases, durable_databases

pytest.register_assert_rewrite("chatkeep.testing")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background so, and processes inherit it: Ctrl-C could not be tested.
    signal.signal(signal.SIGINT, signal.default_int_handler)

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


left_out: set[str] = set()
"""Tests marked `long` that this run leaves out."""


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say which servers the stores are tested on. A database that cannot be had fails the run: none is skipped."""
    lines = [databases().version(), mongo_databases().version(), pgbouncer.version(), redis.version()]
    if config.option.markexpr.startswith("not long"):
        lines.append("left out: the tests marked `long`, named at the end; `make check` and .ci/run run them")
    if "not apart" in config.option.markexpr:
        lines.append("left out: the tests marked `apart`, which prove more of the same; `make apart` runs them")
    return lines


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while modules are imported, and look at none of what they made afterwards.

    They fill a heap of 1 GB, over and over searched for nothing: 9 of the 16 s that collecting the tests took.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


SHORT_STORES = {
    "answers": ("memory", "sqlite"),
    "test_api_turns": ("sqlite",),
    "test_turn_streams": ("sqlite",),
    "test_mcp_server": ("memory", "sqlite"),
    "test_ownership": ("sqlite",),
    "test_recorder_erasure": ("memory", "sqlite"),
    "test_llm_providers": ("sqlite",),
    "test_strict_roles": ("memory",),
    "test_sourced_answers": ("sqlite",),
    "test_going_on": ("memory",),
    "test_vectors": ("memory", "sqlite"),
}
"""The stores on which tests of what is above the stores run in `make test`, by folder or file: what differs between
stores is in their contract."""


LONG_STORES = {
    "test_ownership": ("postgres",),
    "test_going_on": ("sqlite",),
    "test_strict_roles": ("sqlite",),
}
"""The stores on which they run in `make check`, too. On all others they run in `make apart`."""


TOO_MUCH_TO_EMULATE = (
    "test_writing_all_through_renames",
    "test_many_conversations_name_the_replacement",
    "test_paging_2500_messages_while_others_append",
    "test_lists_by_labels",
    "test_deep_alternation",
    "test_erasure_beside_other_owners",
    "test_offsets_over_2500_messages_while_others_append",
    "test_seqs_over_2500_messages_while_others_append",
    "test_cancelled_deletion_is_done_whole_or_not_at_all",
    "test_large_conversation_is_deleted_whole",
    "test_random_trees_read_like_their_parents",
    "test_readers_while_a_document_is_replaced",
    "test_changing_the_space",
    "test_chunks_of_a_document",
    "test_cancelled_uploads",
    "test_cancelled_deletion_of_a_project",
    "test_different_texts_at_once",
    "test_replacements_that_are_deleted_at_once",
)
"""Contract tests with thousands of documents or reads, or of races, of 3 to 120 s on MongoDB's emulator, which is no
judge of either: on it they run in `make apart`. On a real MongoDB they always run."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark such tests on the other stores `long` or `apart`, and the contract on MongoDB's emulator `long`."""
    for item in items:
        name, _, parameters = item.name.partition("[")
        if name in TOO_MUCH_TO_EMULATE and parameters.startswith("mongodb") and mongo_databases().emulated:
            item.add_marker(pytest.mark.apart)
        if item.path.parent.name == "contract" and "mongodb" in parameters and mongo_databases().emulated:
            item.add_marker(pytest.mark.long)
        stores = SHORT_STORES.get(item.path.stem) or SHORT_STORES.get(item.path.parent.name)
        given = getattr(item, "callspec", None)
        store = given.params.get("store_url", stores[0]) if stores and given else None
        if stores and store is not None and store not in stores:
            is_long = store in LONG_STORES.get(item.path.stem, ())
            item.add_marker(pytest.mark.long if is_long else pytest.mark.apart)


def pytest_deselected(items: Sequence[pytest.Item]) -> None:
    """Remember which long tests this run leaves out."""
    long = [item for item in items if item.get_closest_marker("long") and not item.get_closest_marker("apart")]
    left_out.update(item.nodeid for item in long)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one which tests were left out: xdist does not."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = sorted(left_out)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take what a process of xdist says that it left out."""
    left_out.update(getattr(node, "workeroutput", {}).get("left_out", ()))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Name the tests that were left out, those of a class in one line."""
    if config.option.markexpr.startswith("not long"):
        groups = Counter(re.sub(r"(?<=::)(Test\w+)::.*", r"\1", name) for name in left_out)
        terminalreporter.section(f"left out: {len(left_out)} tests marked `long`")
        for name, count in sorted(groups.items()):
            terminalreporter.line(name if count == 1 else f"{name} ({count} tests)")


def pytest_unconfigure() -> None:
    """Stop what was started."""
    for started in (databases, durable_databases):
        if started.cache_info().currsize:
            started().close()
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
def logging_as_before() -> Iterator[None]:
    """Undo what a command does that runs in this process: its handler writes to a stream that is closed then."""
    loggers = [logging.getLogger(name) for name in ("chatkeep", "uvicorn", "mcp")]
    before = [(logger, logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    yield
    for logger, handlers, propagate, level in before:
        logger.handlers[:], logger.propagate = handlers, propagate
        logger.setLevel(level)


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


@pytest.fixture(autouse=True, scope="session")
def cancelled_connects_close_their_socket() -> Iterator[None]:
    """Close a socket of which the connect is cancelled, as asyncio does in `create_connection`.

    PyMongo 4.20 does not, if a client is closed or a call is cancelled while it connects: the garbage collector closes
    the socket, with a ResourceWarning that would fail whichever test happens to run then.
    """
    connect = BaseSelectorEventLoop.sock_connect

    async def sock_connect(loop: BaseSelectorEventLoop, sock: socket.socket, address: Any) -> None:
        try:
            await connect(loop, sock, address)
        except asyncio.CancelledError:
            sock.close()
            raise

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BaseSelectorEventLoop, "sock_connect", sock_connect)
        yield


@pytest.fixture(params=STORES)
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind in turn."""
    return STORES[request.param](tmp_path)
