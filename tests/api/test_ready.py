"""Whether the server can work: /readyz while PostgreSQL is down or does not answer, and when it is back."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator

import pytest
from benchmarks.postgres_server import FAST, PASSWORD, Server

from chatkeep import open_store
from chatkeep.api.routes.health import PING_TIMEOUT_SECONDS
from servers.api import Api, assert_problem, serving
from servers.postgres import started, stopped


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PostgreSQL server that the tests may stop."""
    with started(**FAST) as server:
        yield server


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
