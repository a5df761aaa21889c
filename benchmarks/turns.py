"""Answers while they are made, on PostgreSQL: `python -m benchmarks.turns [--turns N] [--seconds S] [--rounds R]`.

Fifty turns of 200 tokens a second for 40 s in one process, three ways: alone, for the bytes that PostgreSQL writes
against those of the text; and beside another process that appends plain messages, stored and, on the other side, kept
in memory only, for what storing them costs the appends. Rounds alternate.
"""

import argparse
import asyncio
import json
import random
import statistics
import subprocess
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import asyncpg
import uvloop

from benchmarks.children import command
from benchmarks.postgres_server import Server, fresh_database, plain
from benchmarks.texts import text as words
from chatkeep import NewConversation, NewMessage, Role, Store, open_store
from chatkeep.answers.provider import Asked, Provider
from chatkeep.answers.runner import TurnRunner, running_turns
from chatkeep.answers.stream import Reader
from chatkeep.events import Event, EventKind, text
from chatkeep.store import Observer

TOKENS_A_SECOND = 200
WRITERS = 8
OWNERS = 25
"""Each has two turns."""

START_SECONDS = 3.0
"""Within which all turns begin."""


class Given(NamedTuple):
    """How much is measured."""

    turns: int
    seconds: float
    rounds: int


class Paced(Provider):
    """Says so many tokens a second, and notes when it said the first."""

    model = "paced"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.first: dict[Any, float] = {}
        self.bytes = 0

    async def answer(self, asked: Asked) -> AsyncGenerator[Event]:
        tokens = [f"{word} " for word in words(0, asked.answer_id.int % 1_000).split()]
        began = asyncio.get_running_loop().time()
        self.first[asked.answer_id] = time.perf_counter()
        for number in range(int(self._seconds * TOKENS_A_SECOND)):
            token = tokens[number % len(tokens)]
            self.bytes += len(token.encode())
            yield text(token)
            due = began + (number + 1) / TOKENS_A_SECOND
            await asyncio.sleep(max(due - asyncio.get_running_loop().time(), 0))


class Times(Observer):
    """Notes how long each flush took."""

    def __init__(self) -> None:
        self.flushes: list[float] = []

    def called(self, operation: str, seconds: float, error: Exception | None) -> None:
        """Note a flush."""
        if operation == "append_turn_events" and error is None:
            self.flushes.append(seconds)


# --- the processes ----------------------------------------------------------------------------------------


async def make_answers(url: str, turns: int, seconds: float) -> dict[str, Any]:
    """Make the answers, each with a reader, and return what it took."""
    provider, times = Paced(seconds), Times()
    async with open_store(url) as store:
        store.observer = times
        async with running_turns(store, provider) as runner:
            late = await asyncio.gather(*(_ask(store, runner, provider, number) for number in range(turns)))
        flushes = sorted(times.flushes)
        return {
            "text_bytes": provider.bytes,
            "flushes": len(flushes),
            "flush_p50_ms": flushes[len(flushes) // 2] * 1e3,
            "flush_p99_ms": flushes[int(len(flushes) * 0.99)] * 1e3,
            "first_event_p50_ms": statistics.median(late) * 1e3,
            "first_event_max_ms": max(late) * 1e3,
        }


async def _ask(store: Store, runner: TurnRunner, provider: Paced, number: int) -> float:
    """Ask and read to the end; return how much later than it was said the first event came."""
    owner = f"owner {number % OWNERS}"
    await asyncio.sleep(random.uniform(0, START_SECONDS))
    talk = await store.create_conversation(owner, NewConversation())
    turn = await runner.ask(owner, talk.id, NewMessage(role=Role.USER, content="How hot should tea be?"))
    first: float | None = None
    async with runner.following(owner, talk.id, turn.answer.id) as log:
        async for item in Reader(log).read(None):
            if first is None and item.kind == EventKind.TEXT:
                first = time.perf_counter()
    assert first is not None
    return first - provider.first[turn.answer.id]


async def append_plainly(url: str, seconds: float) -> dict[str, Any]:
    """Append for a while from several tasks, and return how many a second."""
    counts = [0] * WRITERS
    async with open_store(url) as store:
        talks = [await store.create_conversation("writer", NewConversation()) for _ in range(WRITERS)]
        end = time.monotonic() + seconds

        async def write(number: int) -> None:
            while time.monotonic() < end:
                message = NewMessage(role=Role.USER, content=words(number, counts[number]))
                await store.append("writer", talks[number].id, [message])
                counts[number] += 1

        await asyncio.gather(*map(write, range(WRITERS)))
    return {"appends_a_second": sum(counts) / seconds}


# --- the bench --------------------------------------------------------------------------------------------


def _child(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command("benchmarks.turns", *map(str, arguments)), stdout=subprocess.PIPE, text=True)


def _result(child: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = child.communicate()
    found: dict[str, Any] = json.loads(said)
    return found


async def _alone(url: str, given: Given) -> None:
    async with open_store(url):
        pass
    connection = await asyncpg.connect(plain(url))
    await connection.execute("CHECKPOINT")
    before = await connection.fetchval("SELECT pg_current_wal_lsn()")
    made = _result(_child("--make", url, "--turns", given.turns, "--seconds", given.seconds))
    written = float(await connection.fetchval("SELECT pg_current_wal_lsn() - $1::pg_lsn", before))
    await connection.close()
    print(f"alone: {made}")
    ratio = written / made["text_bytes"]
    print(f"WAL {written / 1e6:.1f} MB for {made['text_bytes'] / 1e6:.1f} MB of text: {ratio:.2f} x", flush=True)


async def _beside(url: str, given: Given) -> None:
    rates: dict[str, list[float]] = {"stored": [], "unstored": []}
    async with open_store(url):
        pass
    for _ in range(given.rounds):
        for name, target in (("stored", url), ("unstored", "memory://")):
            making = _child("--make", target, "--turns", given.turns, "--seconds", given.seconds)
            await asyncio.sleep(2)
            appended = _result(_child("--append", url, "--seconds", given.seconds - 4))
            rates[name].append(appended["appends_a_second"])
            print(f"beside, {name}: {appended} {_result(making)}", flush=True)
    stored, unstored = (statistics.median(rates[name]) for name in ("stored", "unstored"))
    print(f"appends beside stored turns against beside unstored ones: {stored / unstored:.2f} x")


async def _run(given: Given) -> None:
    server = Server(shared_buffers="256MB", max_wal_size="4GB")
    server.start()
    try:
        async with fresh_database(server) as url:
            await _alone(url, given)
        async with fresh_database(server) as url:
            await _beside(url, given)
    finally:
        server.remove()


def main() -> None:
    """Run the bench, or one of its processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--make", help=argparse.SUPPRESS)
    parser.add_argument("--append", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.make:
        print(json.dumps(uvloop.run(make_answers(given.make, given.turns, given.seconds))))
    elif given.append:
        print(json.dumps(uvloop.run(append_plainly(given.append, given.seconds))))
    else:
        asyncio.run(_run(Given(given.turns, given.seconds, given.rounds)))


if __name__ == "__main__":
    main()
