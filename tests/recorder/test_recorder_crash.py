"""A recording process is killed again and again, while its database comes and goes.

CHATKEEP_RECORDER_ROUNDS says how many rounds, else there are 2, and 5 in `make apart`; `make recorder` runs 50. Run as
a script, this file is the parent of the processes that are killed.
"""

import asyncio
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest

from chatkeep import NewConversation, Recorder, Store, open_store
from chatkeep.testing import whole_log

if __name__ != "__main__":
    from benchmarks.postgres_server import FAST, Server

OWNER = "ada"
CONVERSATIONS = 20
GIVEN = os.environ.get("CHATKEEP_RECORDER_ROUNDS")
ROUNDS = [int(GIVEN)] if GIVEN else [2, pytest.param(5, marks=pytest.mark.apart)]
WINDOW_MS = 20 if GIVEN else 100
"""A message that was recorded so long before the kill has to arrive. The short run shares its processors with the
other tests; `make recorder` has them for itself."""


# --- the processes that are killed -----------------------------------------------------------------------


def give_birth(url: str, journal: str, *conversations: str) -> None:
    """For each name that is read make a process, say its id, wait for its end, and say that."""
    for life in map(str.strip, sys.stdin):
        child = os.fork()
        if child == 0:
            asyncio.run(record(url, journal, life, list(map(UUID, conversations))))
        os.write(1, f"born {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


async def record(url: str, journal: str, life: str, conversations: list[UUID]) -> None:
    """Record in all conversations until killed; say when each call returned, by the machine's clock."""
    async with open_store(url, migrate=False) as store, Recorder(store, journal) as recorder:

        async def speak(number: int) -> None:
            turn = 0
            while True:
                recorder.record(OWNER, conversations[number], "user", f"{life} {turn} {'word ' * 20}")
                os.write(1, f"{number} {turn} {time.monotonic_ns()}\n".encode())
                turn += 1
                await asyncio.sleep(random.uniform(0, 0.02))

        await asyncio.gather(*map(speak, range(CONVERSATIONS)))


# --- the test --------------------------------------------------------------------------------------------


class Parent:
    """The process that makes the others. It does nothing else, so that they may be forked from it."""

    def __init__(self, url: str, journal: Path, conversations: list[UUID]) -> None:
        command = [sys.executable, __file__, url, str(journal), *map(str, conversations)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Parent":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def live_and_die(self, life: str, seconds: float) -> tuple[list[tuple[int, int]], int]:
        """Let a process record, and kill it; (conversation, turn) of what has to arrive, and how many there were."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{life}\n")
        self.process.stdin.flush()
        said = [self._said(), self._said()]
        (born,) = (line for line in said if line[0] == "born")
        said.remove(born)
        reading = threading.Thread(target=self._read, args=(said,))
        reading.start()
        time.sleep(seconds)
        killed = time.monotonic_ns()
        os.kill(int(born[1]), signal.SIGKILL)
        reading.join()
        returned = [(int(number), int(turn), int(moment)) for number, turn, moment in said]
        safe = [(number, turn) for number, turn, moment in returned if killed - moment > WINDOW_MS * 1_000_000]
        return safe, len(returned)

    def _read(self, said: list[list[str]]) -> None:
        while (line := self._said()) != ["dead"]:
            said.append(line)

    def _said(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()


@contextmanager
def coming_and_going(server: "Server") -> Iterator[list[str]]:
    """While this lasts, the database is stopped and started; at the end it runs."""
    ended, seen = threading.Event(), list[str]()

    def toggle() -> None:
        while not ended.wait(random.uniform(0.2, 1.0)):
            mode = random.choice(("fast", "immediate"))
            server.stop(mode)
            seen.append(mode)
            ended.wait(random.uniform(0.0, 0.7))
            server.start()

    thread = threading.Thread(target=toggle)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


@pytest.fixture
def server() -> Iterator["Server"]:
    """A PostgreSQL server of this test's own."""
    made = Server(**FAST)
    made.start()
    yield made
    made.remove()


@pytest.mark.timeout(60 + 10 * int(GIVEN or 5))
@pytest.mark.parametrize("rounds", ROUNDS)
def test_kills_lose_nothing_that_the_journal_had(server: "Server", tmp_path: Path, rounds: int) -> None:
    """What was recorded some milliseconds before a kill arrives once and in order; nothing at all arrives twice."""
    journal, url = tmp_path / "journal", server.url()
    conversations = asyncio.run(create(url))
    safe: set[tuple[int, str, int]] = set()
    recorded = 0
    with coming_and_going(server) as stops, Parent(url, journal, conversations) as parent:
        for number in range(rounds):
            must, count = parent.live_and_die(f"life{number}", random.uniform(0.3, 2.0))
            safe |= {(conversation, f"life{number}", turn) for conversation, turn in must}
            recorded += count
    arrived = asyncio.run(deliver(url, journal, conversations))
    for conversation, turns in enumerate(arrived):
        order = [(int(life.removeprefix("life")), turn) for life, turn in turns]
        assert order == sorted(set(order)), f"conversation {conversation} is out of order, or has doubles"
    there = {(number, life, turn) for number, turns in enumerate(arrived) for life, turn in turns}
    print(f"{rounds} kills, {len(stops)} stops of the database: {recorded:,} recorded, {len(safe):,} of them more than"
          f" {WINDOW_MS} ms before the kill; {len(there):,} arrived, {len(safe - there)} missing")  # fmt: skip
    assert len(safe) > 100 * rounds
    assert stops
    assert safe <= there


async def create(url: str) -> list[UUID]:
    """The conversations to record."""
    async with open_store(url) as store:
        return [(await store.create_conversation(OWNER, NewConversation())).id for _ in range(CONVERSATIONS)]


async def deliver(url: str, journal: Path, conversations: list[UUID]) -> list[list[tuple[str, int]]]:
    """Deliver what is left; (life, turn) of everything that is stored, by conversation, in order."""
    async with open_store(url) as store:
        async with Recorder(store, journal) as recorder:
            await recorder.flush(60)
            assert recorder.stats().dead == 0
        return [await said(store, id_) for id_ in conversations]


async def said(store: Store, id_: UUID) -> list[tuple[str, int]]:
    """(life, turn) of a conversation's messages, by seq."""
    words = (message.content.split() for message in await whole_log(store, OWNER, id_))
    return [(life, int(turn)) for life, turn, *_ in words]


if __name__ == "__main__":
    give_birth(*sys.argv[1:])
