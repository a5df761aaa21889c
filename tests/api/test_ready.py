"""Whether the server can work: /readyz while the database is down, does not answer, or is used by many others."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from benchmarks.postgres_server import FAST, PASSWORD, Server

from chatkeep import NewConversation, Store, open_store
from chatkeep.api.routes.health import PING_TIMEOUT_SECONDS
from chatkeep.testing import assistant
from servers.api import Api, assert_problem, serving
from servers.postgres import raw, started, stopped


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


async def test_connections_that_are_all_in_use(server: Server) -> None:
    """/readyz is 200 at once while every connection of the pool waits for the database."""
    async with open_store(server.url(), pool_size=3) as store, serving(store) as api, raw(server.url()) as other:
        talk = await store.create_conversation("ada", NewConversation())
        await api.client.get("/readyz")
        async with other.transaction():
            await other.execute("LOCK TABLE messages")
            waiting = [asyncio.create_task(store.history("ada", talk.id)) for _ in range(8)]
            await asyncio.sleep(0.3)
            for _ in range(3):
                began = time.monotonic()
                assert (await api.client.get("/readyz")).status_code == 200
                assert time.monotonic() - began < 1
            assert not any(task.done() for task in waiting)
        await asyncio.gather(*waiting)


async def test_sqlite_file_that_is_searched_and_rewritten(tmp_path: Path) -> None:
    """/readyz is 200 at once while 32 searches take their time and owners are erased, and 503 without the file."""
    slow, path = f"{'的一' * 90}的的的", tmp_path / "chat.db"
    async with open_store(f"sqlite:///{path}") as store, serving(store) as api:
        talk = await store.create_conversation("eve", NewConversation())
        for _ in range(8):
            await store.append("eve", talk.id, [assistant("的一" * 100_000)])
        await api.client.get("/readyz")
        searches = [asyncio.create_task(store.search_messages("eve", slow)) for _ in range(32)]
        erasures = [asyncio.create_task(erase_again(store, f"owner{number}")) for number in range(4)]
        for _ in range(20):
            began = time.monotonic()
            assert (await api.client.get("/readyz")).status_code == 200
            assert time.monotonic() - began < 1
            await asyncio.sleep(0.05)
        assert not all(task.done() for task in searches)
        for task in (*searches, *erasures):
            task.cancel()
        path.rename(tmp_path / "moved.db")
        assert_problem(await api.client.get("/readyz"), 503, str(tmp_path))


async def erase_again(store: Store, owner: str) -> None:
    """Write and erase, again and again."""
    while True:
        await store.create_conversation(owner, NewConversation())
        await store.erase_owner(owner)


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
