"""Time limits of the store in PostgreSQL: they hold whatever hangs, and leave nothing behind."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from benchmarks.postgres_server import FAST, Server

from chatkeep import Conversation, ConversationChange, NewConversation, Store, StoreUnavailable, open_store
from chatkeep.testing import dense, numbered, seqs, someone, user, whole_log
from servers.postgres import databases, raw, started, stopped
from servers.proxy import Proxy

LIMIT = 1.0
"""Seconds that a call may take here."""

HEARD = LIMIT + 1.0
"""When every caller has heard."""


class Hanging(NamedTuple):
    """A database, and what makes it hang."""

    url: str
    hang: Callable[[], AbstractContextManager[None]]


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that the tests may stop."""
    with started(**FAST) as server:
        yield server


@pytest.fixture(params=["silent proxy", pytest.param("stopped server", marks=pytest.mark.long)])
async def database(request: pytest.FixtureRequest) -> AsyncIterator[Hanging]:
    """A database behind a proxy that falls silent, and one whose server is stopped."""
    if request.param == "stopped server":
        server = request.getfixturevalue("server")
        yield Hanging(server.url(), lambda: stopped(server))
        return
    async with Proxy(databases().clean()) as proxy:
        yield Hanging(proxy.url, proxy.silent)


def opened(url: str, **options: Any) -> Any:
    """A store with short limits."""
    return open_store(url, write_timeout=LIMIT, read_timeout=LIMIT, **options)


async def heard(call: Awaitable[object]) -> float:
    """The seconds until a call raised StoreUnavailable."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await asyncio.wait_for(call, 20)
    return time.monotonic() - began


CALLS: dict[str, Callable[[Store, str, Conversation], Awaitable[object]]] = {
    "create": lambda store, owner, _: store.create_conversation(owner, NewConversation()),
    "get or create": lambda store, owner, _: store.get_or_create_conversation(owner, NewConversation(context_id="c")),
    "get": lambda store, owner, talk: store.get_conversation(owner, talk.id),
    "list": lambda store, owner, _: store.list_conversations(owner),
    "update": lambda store, owner, talk: store.update_conversation(owner, talk.id, ConversationChange(title="t")),
    "append two": lambda store, owner, talk: store.append(owner, talk.id, numbered(2)),
    "history": lambda store, owner, talk: store.history(owner, talk.id),
    "search": lambda store, owner, _: store.search_messages(owner, "sage"),
    "delete": lambda store, owner, talk: store.delete_conversation(owner, talk.id),
    "delete message": lambda store, owner, talk: store.delete_message(owner, talk.id, uuid4()),
    "erase": lambda store, owner, _: store.erase_owner(owner),
    "revision": lambda store, _, __: store.schema_revision(),
    "ping": lambda store, _, __: store.ping(),
    "begin request": lambda store, owner, _: store.access.begin_request(owner, "key", b"fingerprint"),
    "keys": lambda store, owner, _: store.access.list_keys(owner),
}


@pytest.mark.parametrize("warm", [True, pytest.param(False, marks=pytest.mark.long)])
async def test_every_caller_hears_in_time(database: Hanging, *, warm: bool) -> None:
    """A server that hangs, with connections open or none: nobody waits longer, and all works when it is back."""
    owner = someone()
    async with opened(database.url, pool_size=4) as store:
        talk = await store.create_conversation(owner, NewConversation())
        messages = [user(f"hello {number}", id=uuid4()) for number in range(51)]
        await store.append(owner, talk.id, messages[:1])
    async with opened(database.url, pool_size=4, migrate=False) as store:
        if warm:
            await asyncio.gather(*(store.get_conversation(owner, talk.id) for _ in range(8)))
        with database.hang():
            took = dict(zip(["append alone"], [await heard(store.append(owner, talk.id, messages[1:2]))], strict=True))
            calls = {name: heard(call(store, owner, talk)) for name, call in CALLS.items()}
            calls |= {f"append {n}": heard(store.append(owner, talk.id, [messages[n]])) for n in range(1, 51)}
            took |= dict(zip(calls, await asyncio.gather(*calls.values()), strict=True))
        assert {name: seconds for name, seconds in took.items() if seconds > HEARD} == {}
        assert store.state()["connections_used"] == 0
    async with opened(database.url) as store:
        owner = someone()  # the first was erased, or not
        talk = await store.create_conversation(owner, NewConversation())
        await asyncio.gather(*(store.append(owner, talk.id, [message]) for message in messages * 2))
        log = await whole_log(store, owner, talk.id)
        assert seqs(log) == dense(51)
        assert {message.id for message in log} == {message.id for message in messages}


@pytest.mark.long
async def test_what_hung_is_retried_by_id(database: Hanging) -> None:
    """The same store goes on when the server does: nothing acknowledged is lost, and nothing is stored twice."""
    owner = someone()
    async with opened(database.url) as store:
        talk = await store.create_conversation(owner, NewConversation())
        messages = [user(f"hello {number}", id=uuid4()) for number in range(40)]
        await asyncio.gather(*(store.append(owner, talk.id, [message]) for message in messages[:20]))
        with database.hang():
            await asyncio.gather(*(heard(store.append(owner, talk.id, [message])) for message in messages[10:]))
        await asyncio.gather(*(store.append(owner, talk.id, [message]) for message in messages))
        log = await whole_log(store, owner, talk.id)
        assert seqs(log) == dense(40)
        assert {message.id for message in log} == {message.id for message in messages}


@pytest.mark.parametrize("cancelled", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_closing_ends_in_time(database: Hanging, *, cancelled: bool) -> None:
    """aclose ends within write_timeout and a second while writes and reads hang; at once if it is cancelled."""
    owner = someone()
    store = await opened(database.url)
    talk = await store.create_conversation(owner, NewConversation())
    await asyncio.gather(*(store.get_conversation(owner, talk.id) for _ in range(10)))
    with database.hang():
        calls = [store.append(owner, talk.id, numbered(1)) for _ in range(5)]
        calls += [store.append(owner, talk.id, numbered(2)), store.delete_conversation(owner, talk.id)]
        tasks = [asyncio.create_task(heard(call)) for call in [*calls, store.history(owner, talk.id)]]
        await asyncio.sleep(0.1)
        began = time.monotonic()
        closing = asyncio.create_task(store.aclose())
        if cancelled:
            await asyncio.sleep(0.1)
            closing.cancel()
        await asyncio.wait((closing,), timeout=20)
        assert time.monotonic() - began < (1 if cancelled else HEARD)
        await asyncio.wait_for(asyncio.gather(*tasks), 20)
        assert time.monotonic() - began < HEARD
    assert store.state() == {"connections_used": 0, "connections_idle": 0}


@pytest.mark.long
async def test_opening_ends_in_time(database: Hanging) -> None:
    """So does opening a store."""
    with database.hang():
        assert await heard(opened(database.url)._open()) < HEARD


@pytest.mark.long
async def test_cancelled_calls_leave_nothing_behind() -> None:
    """200 calls that are cut off at any moment, some while they wait for a lock, give their connections back."""
    owner, url, dice = someone(), databases().clean(), random.Random(7)
    async with opened(url, pool_size=4) as store, raw(url) as holder:
        talks = [await store.create_conversation(owner, NewConversation()) for _ in range(4)]

        async def cut_off(number: int) -> None:
            call = list(CALLS.values())[number % len(CALLS)]
            task = asyncio.ensure_future(call(store, owner if number % 9 else someone(), talks[number % 4]))
            await asyncio.sleep(dice.uniform(0, 0.02))
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        async with holder.transaction():
            await holder.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", talks[0].id)
            for begin in range(0, 200, 20):
                await asyncio.gather(*map(cut_off, range(begin, begin + 20)))
        owner = someone()  # erasures of the other may go on
        talk = await store.create_conversation(owner, NewConversation())
        await asyncio.gather(*(store.append(owner, talk.id, numbered(1)) for _ in range(20)))
        assert seqs(await whole_log(store, owner, talk.id)) == dense(20)
        async with asyncio.timeout(5):
            while store.state()["connections_used"]:  # noqa: ASYNC110 - removals that began are finished
                await asyncio.sleep(0.01)


async def test_a_locked_table_is_waited_for() -> None:
    """Reads wait for LOCK TABLE until read_timeout, and name it then; they return when it ends before."""
    owner, url = someone(), databases().clean()
    async with open_store(url, read_timeout=0.6) as store, raw(url) as holder:
        talk = await store.create_conversation(owner, NewConversation())
        await store.append(owner, talk.id, numbered(3))
        async with holder.transaction():
            await holder.execute("LOCK TABLE messages")
            began = time.monotonic()
            with pytest.raises(StoreUnavailable, match="LOCK TABLE"):
                await store.history(owner, talk.id)
            assert 0.5 < time.monotonic() - began < 1.6
        async with holder.transaction():
            await holder.execute("LOCK TABLE messages")
            reading = asyncio.create_task(store.history(owner, talk.id))
            await asyncio.sleep(0.3)
            assert not reading.done()
        assert seqs((await reading).items) == dense(3)
