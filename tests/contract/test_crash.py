"""Processes are killed in the middle of their writes. Run as a script, this file is their parent.

CHATKEEP_CRASH_ROUNDS says how many rounds the long run has on one database, 6 unless told: `make apart` runs these, and
`make crash` 50. The short run has 2.
"""

import asyncio
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, UUID, uuid5

import apsw
import asyncpg
import pytest

from chatkeep import Message, NewConversation, NewMessage, Role, Status, Store, open_store
from chatkeep.testing import dense, path_to, seqs, whole_history, whole_log, whole_search

if __name__ != "__main__":
    from servers.mongo import mongo_databases
    from servers.postgres import databases, plain

OWNER = "ada"
TASKS = {"sqlite": 8, "postgresql": 64, "mongodb": 16}
"""How many tasks of a process write at once, by the URL's scheme."""
AT_THE_ROOT: dict[str, Any] = {"parent_id": None}
ROUNDS = int(os.environ.get("CHATKEEP_CRASH_ROUNDS", "6"))


def batch(life: str, task: int, turn: int) -> list[NewMessage]:
    """What a task sends in a turn: the same messages with the same ids, whoever asks."""
    name = f"{life}/{task}/{turn}"
    return [
        NewMessage(
            id=uuid5(NAMESPACE_URL, f"{name}/{number}"),
            role=Role.ASSISTANT,
            content=f"{name} says word{number}, 说话",
            metadata={"batch": name, "size": turn % 3 + 1},
            **(AT_THE_ROOT if turn % 11 == 10 and number == 0 else {}),
        )
        for number in range(turn % 3 + 1)
    ]


def target(conversations: list[UUID], task: int, turn: int) -> UUID:
    """The conversation that a turn is sent to."""
    return conversations[(task + turn) % len(conversations)]


def scheme(url: str) -> str:
    """Which database a URL names."""
    return url.partition(":")[0]


# --- the processes that are killed -----------------------------------------------------------------------


def give_birth(url: str, *conversations: str) -> None:
    """For each name that is read make a process, say its id, wait for its end, and say that."""
    for life in map(str.strip, sys.stdin):
        child = os.fork()
        if child == 0:
            asyncio.run(write(url, life, list(map(UUID, conversations))))
        os.write(1, f"born {child}\n".encode())
        os.waitpid(child, 0)
        os.write(1, b"dead\n")


async def write(url: str, life: str, conversations: list[UUID]) -> None:
    """Append until killed, from several tasks; each turn that returned is said before the next one begins."""

    async def task(number: int) -> None:
        for turn in itertools.count():
            conversation = target(conversations, number, turn)
            stored = await store.append(OWNER, conversation, batch(life, number, turn))
            os.write(1, f"{number} {turn} {stored[0].seq}\n".encode())
            if turn % 7 == 6:
                await store.delete_message(OWNER, conversation, stored[0].id)

    async with open_store(url) as store, asyncio.TaskGroup() as group:
        for number in range(TASKS[scheme(url)]):
            group.create_task(task(number))


# --- the test --------------------------------------------------------------------------------------------

type Acknowledged = list[tuple[int, int, int]]
"""(task, turn, first seq) of each append that returned."""


class Parent:
    """The process that makes the others. It does nothing else, so that they may be forked from it."""

    def __init__(self, url: str, conversations: list[UUID]) -> None:
        command = [sys.executable, __file__, url, *map(str, conversations)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Parent":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate()

    def live_and_die(self, life: str, seconds: float) -> Acknowledged:
        """Let a process write for a while after its first append, kill it, and return what was acknowledged."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{life}\n")
        self.process.stdin.flush()
        first, second = self._said(), self._said()
        (born,) = (line for line in (first, second) if line[0] == "born")
        time.sleep(seconds)
        os.kill(int(born[1]), signal.SIGKILL)
        said = [line for line in (first, second) if line is not born]
        while (line := self._said()) != ["dead"]:
            said.append(line)
        return [(int(task), int(turn), int(seq)) for task, turn, seq in said]

    def _said(self) -> list[str]:
        assert self.process.stdout is not None
        return self.process.stdout.readline().split()


class InSqlite:
    """A file, and what is to be seen in it without chatkeep."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"sqlite:///{path}"

    async def settle(self) -> None:
        """Nothing goes on after the writer's death; SQLite finds nothing wrong with the file."""
        check_file(self.path)

    async def count(self, pattern: str) -> int:
        """How many messages are like `pattern`."""
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        counted: int = connection.execute("SELECT count(*) FROM messages WHERE content LIKE ?", (pattern,)).get
        connection.close()
        return counted


class InPostgres:
    """A database, and what is to be seen in it without chatkeep."""

    def __init__(self) -> None:
        self.url = databases().clean()

    async def settle(self) -> None:
        """Wait until the server has done what the killed process sent: it may still commit."""
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        connection = await asyncpg.connect(plain(self.url))
        while await connection.fetchval(others):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        await connection.close()

    async def count(self, pattern: str) -> int:
        """How many messages are like `pattern`."""
        connection = await asyncpg.connect(plain(self.url))
        counted: int = await connection.fetchval("SELECT count(*) FROM messages WHERE content LIKE $1", pattern)
        await connection.close()
        return counted


class InMongo:
    """The same on MongoDB, where only the client is killed."""

    def __init__(self) -> None:
        self.url = mongo_databases().clean()

    async def settle(self) -> None:
        """Wait until the server has ended the transactions of the killed process: it keeps them for a while."""
        await asyncio.sleep(0.2)
        talks = mongo_databases().database(self.url).conversations
        await asyncio.to_thread(talks.update_many, {}, {"$inc": {"settled": 1}})  # waits for whoever wrote them

    async def count(self, pattern: str) -> int:
        """How many messages are like `pattern`."""
        where = {"content": {"$regex": re.escape(pattern.strip("%"))}}
        counted: int = mongo_databases().database(self.url).messages.count_documents(where)
        return counted


type Place = InSqlite | InPostgres | InMongo


@pytest.fixture(params=["sqlite", "postgres", "mongodb"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """A database of each kind in turn."""
    if request.param == "sqlite":
        return InSqlite(tmp_path / "chat.db")
    return InPostgres() if request.param == "postgres" else InMongo()


@pytest.mark.timeout(60 + 10 * ROUNDS)
@pytest.mark.parametrize(
    "rounds", [pytest.param(ROUNDS, marks=pytest.mark.apart, id="long"), pytest.param(2, id="short")]
)
async def test_nothing_acknowledged_is_lost(database: Place, rounds: int) -> None:
    """After SIGKILL at a random moment every acknowledged message is there, once, in its place; nothing by halves."""
    url = database.url
    async with open_store(url) as store:
        conversations = [(await store.create_conversation(OWNER, NewConversation())).id for _ in range(3)]
    expected: dict[UUID, dict[UUID, int]] = {conversation: {} for conversation in conversations}
    with Parent(url, conversations) as parent:
        for life in map(str, range(rounds)):
            acknowledged = await asyncio.to_thread(parent.live_and_die, life, random.uniform(0, 0.5))
            for task, turn, seq in acknowledged:
                places = {message.id: seq + n for n, message in enumerate(batch(life, task, turn)) if message.id}
                expected[target(conversations, task, turn)] |= places
            await database.settle()
            async with open_store(url) as store:
                logs = {id_: await check_conversation(store, id_, expected[id_]) for id_ in conversations}
                found = await whole_search(store, OWNER, "word2 说话", limit=1_000)
                assert len(found) == await database.count("% word2, %")
                await retry_the_last(store, life, logs, acknowledged, TASKS[scheme(url)])
                for conversation in conversations:
                    log = await whole_log(store, OWNER, conversation)
                    assert seqs(log) == dense(len(log))
                    expected[conversation] = {message.id: message.seq for message in log}
    assert sum(map(len, expected.values())) > rounds * TASKS[scheme(url)]


async def check_conversation(store: Store, conversation: UUID, expected: dict[UUID, int]) -> list[Message]:
    """Every acknowledged message has its seq, seqs are dense, batches are whole, and the path is right."""
    log = await whole_log(store, OWNER, conversation)
    assert seqs(log) == dense(len(log))
    stored = {message.id: message.seq for message in log}
    assert len(stored) == len(log)
    assert {id_: stored.get(id_) for id_ in expected} == expected
    found = await store.get_conversation(OWNER, conversation)
    assert (found.last_seq, found.head_id) == (len(log), log[-1].id if log else None)
    assert await whole_history(store, OWNER, conversation, limit=1_000) == path_to(found.head_id, log)
    check_batches(log)
    return log


def check_batches(log: list[Message]) -> None:
    """A batch is there with all its messages, one after the other. Deleted ones have lost their metadata."""
    places: dict[str, list[int]] = defaultdict(list)
    sizes: dict[str, int] = {}
    for message in log:
        if message.status != Status.DELETED:
            name = message.metadata["batch"]
            places[name].append(message.seq)
            sizes[name] = message.metadata["size"]
    for name, found in places.items():
        turn = int(name.split("/")[2])
        may_miss_the_first = turn % 7 == 6
        assert len(found) in ({sizes[name], sizes[name] - 1} if may_miss_the_first else {sizes[name]})
        assert found == list(range(found[0], found[0] + len(found)))


def check_file(path: Path) -> None:
    """SQLite finds nothing wrong with the file, and the full-text index holds exactly the messages with content."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        assert connection.execute("PRAGMA integrity_check").get == "ok"
        assert connection.execute("PRAGMA foreign_key_check").fetchall() == []
        connection.execute("INSERT INTO message_words (message_words) VALUES ('integrity-check')")
        indexed = connection.execute("SELECT id FROM message_words_docsize ORDER BY id").fetchall()
        stored = connection.execute("SELECT rid FROM messages WHERE content <> '' ORDER BY rid").fetchall()
        assert indexed == stored
    finally:
        connection.close()


async def retry_the_last(
    store: Store, life: str, logs: dict[UUID, list[Message]], acknowledged: Acknowledged, tasks: int
) -> None:
    """What each task sent when it was killed can be sent again: it is stored now, or was and is returned."""
    known = {message.id: message for log in logs.values() for message in log}
    for number in range(tasks):
        turn = max([turn for task, turn, _ in acknowledged if task == number], default=-1) + 1
        for message in await store.append(OWNER, target(list(logs), number, turn), batch(life, number, turn)):
            assert known.get(message.id, message) == message


if __name__ == "__main__":
    give_birth(*sys.argv[1:])
