"""A MongoDB server that hangs: every call, closing too, ends within its time, and what was acknowledged stays."""

import asyncio
import os
import shutil
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from uuid import UUID, uuid4

import pytest
from benchmarks.mongodb_server import Mongod, with_database

from chatkeep import Conversation, ConversationChange, NewConversation, Store, StoreUnavailable, open_store
from chatkeep.testing import assistant, dense, numbered, seqs, user, whole_log
from servers.mongo import Emulator

OWNER = "ada"
LIMIT = 0.5
"""Seconds that a call may take here."""

LATE = LIMIT + 1
"""After how many seconds a call has to have ended."""


class Server:
    """A server that can be stopped, as one is whose machine or disk hangs."""

    def __init__(self) -> None:
        program = shutil.which("mongod")
        self._server = Mongod(program) if program else Emulator()
        self.url = with_database(self._server.url, f"chatkeep_{uuid4().hex}")
        self.remove = self._server.remove

    def send(self, number: signal.Signals) -> None:
        """Send the server a signal."""
        os.kill(self._server.process.pid, number)

    @contextmanager
    def hung(self) -> Iterator[None]:
        """Stop the server meanwhile."""
        self.send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.send(signal.SIGCONT)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server of these tests' own."""
    server = Server()
    yield server
    server.remove()


async def opened(server: Server) -> tuple[Store, Conversation]:
    """A store with short limits, and a conversation with three messages."""
    store = await open_store(server.url, read_timeout=LIMIT, write_timeout=LIMIT, pool_size=5)
    talk = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, talk.id, numbered(3))
    await asyncio.gather(*(store.get_conversation(OWNER, talk.id) for _ in range(5)))  # each on its connection
    return store, talk


async def seconds_to_fail(call: Awaitable[object]) -> float:
    """How long a call takes that fails."""
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        await call
    return time.monotonic() - began


type Call = Callable[[Store, UUID, UUID], Awaitable[object]]

CALLS: dict[str, list[Call]] = {
    "reads": [
        lambda store, talk, _: store.get_conversation(OWNER, talk),
        lambda store, talk, _: store.history(OWNER, talk),
        lambda store, _, __: store.list_conversations(OWNER),
        lambda store, _, __: store.search_messages(OWNER, "tea"),
        lambda store, _, __: store.access.list_keys(OWNER),
        lambda store, _, __: store.ping(),
    ],
    "single writes": [
        lambda store, _, id_: store.create_conversation(OWNER, NewConversation(id=id_)),
        lambda store, _, __: store.get_or_create_conversation(OWNER, NewConversation(context_id="c")),
        lambda store, _, id_: store.access.begin_request(OWNER, id_.hex, b"f" * 32),
        lambda store, _, __: store.rename_owner("eve", "mallory"),
    ],
    "transactions": [
        lambda store, talk, _: store.update_conversation(OWNER, talk, ConversationChange(title="t")),
        lambda store, talk, id_: store.delete_message(OWNER, talk, id_),
        lambda store, _, id_: store.delete_conversation(OWNER, id_),
        lambda store, _, id_: store.access.revoke_key(id_.hex),
    ],
    "appends": [lambda store, talk, id_: store.append(OWNER, talk, [assistant("alone", id=id_)])],
    "careful appends": [lambda store, talk, id_: store.append(OWNER, talk, [assistant("a", id=id_), assistant("b")])],
}
"""Calls that hang on one connection each, and then those that wait for one."""


@pytest.mark.parametrize(
    "kind",
    [
        "transactions",
        "appends",
        *(pytest.param(kind, marks=pytest.mark.long) for kind in ("reads", "single writes", "careful appends")),
    ],
)
async def test_every_call_ends_in_its_time(server: Server, kind: str) -> None:
    """A hundred calls end together, no connection stays taken, and afterwards everything works."""
    store, talk = await opened(server)
    with server.hung():
        calls = [call(store, talk.id, uuid4()) for call in (CALLS[kind] * 100)[:100]]
        took = await asyncio.gather(*map(seconds_to_fail, calls))
        assert max(took) < LATE
        await asyncio.sleep(0.4)  # a batch aborts its transaction although nobody waits for it
        assert store.state() == {"connections_used": 0}
    for call in CALLS[kind]:
        await call(store, talk.id, uuid4())
    assert store.state() == {"connections_used": 0}
    await store.aclose()


async def test_retries_after_a_hang(server: Server) -> None:
    """What was acknowledged is there, and what was not is stored once when it is sent again, in order."""
    store, talk = await opened(server)
    messages = [user(f"{number}", id=uuid4()) for number in range(30)]

    async def send(number: int) -> bool:
        await asyncio.sleep(number * 0.02)
        try:
            await store.append(OWNER, talk.id, [messages[number]])
        except StoreUnavailable:
            return False
        return True

    sends = [asyncio.create_task(send(number)) for number in range(30)]
    await asyncio.sleep(0.3)
    with server.hung():
        await asyncio.sleep(LATE)
    acknowledged = await asyncio.gather(*sends)
    assert set(acknowledged) == {True, False}
    log = await whole_log(store, OWNER, talk.id)
    assert {m.id for m, good in zip(messages, acknowledged, strict=True) if good} <= {m.id for m in log}
    for message in messages:
        await store.append(OWNER, talk.id, [message])
    log = await whole_log(store, OWNER, talk.id)
    assert seqs(log) == dense(33)
    assert {m.id for m in messages} <= {m.id for m in log}
    await store.aclose()


@pytest.mark.parametrize("cancelled", [False, True])
async def test_closing_ends_in_its_time(server: Server, cancelled: bool) -> None:
    """With writes in flight, and also if whoever closes does not wait."""
    store, talk = await opened(server)
    with server.hung():
        writes = [asyncio.create_task(store.append(OWNER, talk.id, [user("tea")])) for _ in range(9)]
        writes.append(asyncio.create_task(store.append(OWNER, talk.id, numbered(2))))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        closing = asyncio.create_task(store.aclose())
        await asyncio.sleep(0.05)
        if cancelled:
            closing.cancel()
        await asyncio.wait([closing])
        assert time.monotonic() - began < LATE
        assert set(map(type, await asyncio.gather(*writes, return_exceptions=True))) == {StoreUnavailable}
    assert len(asyncio.all_tasks()) == 1


async def test_opening_ends_in_its_time(server: Server) -> None:
    """A server that hangs before the first call is not waited for either."""
    with server.hung():
        assert await seconds_to_fail(open_store(server.url, read_timeout=LIMIT, write_timeout=LIMIT)) < LATE
    assert len(asyncio.all_tasks()) == 1
