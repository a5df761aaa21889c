"""Whether the server can work: /readyz while PostgreSQL is down or does not answer, and when it is back."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from benchmarks.postgres_server import FAST, PASSWORD, Server

from chatkeep import open_store
from chatkeep.api.routes.health import PING_TIMEOUT_SECONDS
from servers.api import Api, assert_problem, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL server that the tests may stop."""
    server = Server(**FAST)
    server.start()
    yield server
    server.remove()


@pytest.fixture
async def api(server: Server) -> AsyncIterator[Api]:
    """A server that works with it."""
    async with open_store(server.url()) as store, serving(store) as api:
        assert (await api.client.get("/readyz")).status_code == 200
        yield api


async def test_database_that_is_stopped(api: Api, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """/readyz is 503 at once while the database is down, and 200 soon after it is back; /healthz is always 200."""
    await asyncio.to_thread(server.stop)
    try:
        for _ in range(3):
            assert await seconds_until_refused(api) < 1
            assert (await api.client.get("/healthz")).status_code == 200
    finally:
        await asyncio.to_thread(server.start)
    assert await seconds_until_ready(api) < 1
    assert "not ready: " in caplog.text
    assert PASSWORD not in caplog.text


async def test_database_that_does_not_answer(api: Api, server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """/readyz is 503 after a moment, however many ask; /healthz does not wait; nothing is left of the asking."""
    with stopped(server):
        asking = [asyncio.create_task(seconds_until_refused(api)) for _ in range(20)]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        assert (await api.client.get("/healthz")).status_code == 200
        assert time.monotonic() - began < 1
        took = await asyncio.gather(*asking)
        assert max(took) < PING_TIMEOUT_SECONDS + 1
        assert api.store.state()["connections_used"] == 0
        assert caplog.text.count("not ready: the store did not answer within 1.5 s") == 1
        assert await seconds_until_refused(api) < PING_TIMEOUT_SECONDS + 1
    assert await seconds_until_ready(api) < 1


async def seconds_until_refused(api: Api) -> float:
    """Ask once, and see how long the refusal takes."""
    began = time.monotonic()
    reply = await api.client.get("/readyz")
    assert_problem(reply, 503, PASSWORD, "postgres")
    assert reply.headers["retry-after"] == "1"
    return time.monotonic() - began


async def seconds_until_ready(api: Api) -> float:
    """Ask until the server is ready."""
    began = time.monotonic()
    while (await api.client.get("/readyz")).status_code != 200:
        assert time.monotonic() - began < 10
        await asyncio.sleep(0.05)
    return time.monotonic() - began


@contextmanager
def stopped(server: Server) -> Iterator[None]:
    """Let no process of the server run: connections are taken, and nothing is answered."""
    postmaster = int((server.data / "postmaster.pid").read_text().split()[0])
    processes = [postmaster, *children(postmaster)]
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        for process in processes:
            os.kill(process, signal.SIGCONT)


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended
            if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(folder.name))
    return found
