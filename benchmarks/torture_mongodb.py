"""Torture a MongoDB replica set: `python -m benchmarks.torture_mongodb URL [--rounds N] [--kill COMMAND]`.

Several processes append to the same conversations, a third of the messages sent twice at once, each sent again
with its id until it is acknowledged. In the rounds "client" one of the processes is killed with SIGKILL in the
middle. In the rounds "server" the server is: by the shell command given with --kill, which must kill it and
start it again (or kill a primary), or by itself where the URL is absent and the script starts a mongod of its own.

After each round every acknowledged message must be there, once, with the seq of its acknowledgement, and the
seqs of each conversation must be dense. The exit code says whether all of that held.
"""

import argparse
import asyncio
import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid4

from benchmarks.mongodb_server import Mongod, with_database
from chatkeep import Message, NewConversation, NewMessage, Role, Store, StoreUnavailable, open_store
from chatkeep.testing import dense, seqs, whole_log

OWNERS = ("ada", "bob", "eve")
TWICE = 0.3
"""How many of the messages are sent twice at once."""


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    rounds: int = 20
    processes: int = 3
    writers: int = 16
    conversations: int = 24
    seconds: float = 3.0


@dataclass
class Counts:
    """What was found."""

    acknowledged: int = 0
    missing: int = 0
    doubled: int = 0
    differing: int = 0
    sparse: int = 0
    stored: int = 0

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled, out of order or answered in two ways."""
        return not (self.missing or self.doubled or self.differing or self.sparse)

    def line(self) -> str:
        """The counts as one line."""
        return (
            f"acknowledged {self.acknowledged:,}, stored {self.stored:,}, missing {self.missing},"
            f" doubled {self.doubled}, other seq {self.differing}, dense {'no' if self.sparse else 'yes'}"
        )


# --- a process that writes -------------------------------------------------------------------------------


async def work(url: str, life: str, writers: int, keys: Sequence[tuple[str, UUID]]) -> None:
    """Append until stdin ends; say (conversation, message, seq) of each acknowledgement."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(stopping.set)), daemon=True).start()

    async def write(number: int) -> None:
        count = 0
        while not stopping.is_set():
            key, count = random.choice(keys), count + 1
            message = NewMessage(id=uuid4(), role=Role.ASSISTANT, content=f"{life}/{number}/{count} {'word ' * 60}")
            sends = [sent(store, key, message) for _ in range(2 if random.random() < TWICE else 1)]
            answers = await asyncio.gather(*sends)
            print(json.dumps([str(key[1]), str(message.id), sorted({a.seq for a in answers})]), flush=True)

    async with open_store(url, migrate=False) as store, asyncio.TaskGroup() as group:
        for number in range(writers):
            group.create_task(write(number))


async def sent(store: Store, key: tuple[str, UUID], message: NewMessage) -> Message:
    """Send a message until it is acknowledged."""
    while True:
        try:
            return (await store.append(*key, [message]))[0]
        except StoreUnavailable:
            await asyncio.sleep(0.05)


# --- a round ---------------------------------------------------------------------------------------------


@dataclass
class Writer:
    """A process that writes, and what it said."""

    process: "subprocess.Popen[str]"
    said: list[tuple[str, str, list[int]]] = field(default_factory=list)

    @classmethod
    def start(cls, url: str, life: str, plan: Plan, keys: Sequence[tuple[str, UUID]]) -> "Writer":
        """Start one."""
        command = [sys.executable, "-m", "benchmarks.torture_mongodb", "--worker", life, url, str(plan.writers)]
        command += [f"{owner}={id_}" for owner, id_ in keys]
        writer = cls(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        writer.reader = threading.Thread(target=writer.read)
        writer.reader.start()
        return writer

    reader: threading.Thread = field(init=False)

    def read(self) -> None:
        """Take what it says; the last line of one that was killed may be cut."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith("]\n"):
                self.said.append(tuple(json.loads(line)))

    def end(self) -> None:
        """Let it end, if it was not killed."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


def run_round(
    url: str, number: str, plan: Plan, keys: Sequence[tuple[str, UUID]], kill: Callable[[], None] | None
) -> list[Writer]:
    """Let processes write; kill one of them, or what `kill` kills, in the middle."""
    writers = [Writer.start(url, f"{number}.{n}", plan, keys) for n in range(plan.processes)]
    while not all(writer.said or writer.process.poll() is not None for writer in writers):
        time.sleep(0.05)
    time.sleep(random.uniform(0.2, 0.8) * plan.seconds)
    kill() if kill else writers[0].process.kill()
    time.sleep(0.2 * plan.seconds)
    for writer in writers:
        writer.end()
    return writers


async def check(url: str, keys: Sequence[tuple[str, UUID]], expected: dict[str, dict[str, list[int]]]) -> Counts:
    """Compare what was acknowledged with what is there."""
    counts = Counts()
    async with open_store(url) as store:
        for key in keys:
            log = await whole_log(store, *key)
            there = {str(message.id): message.seq for message in log}
            acknowledged = expected.get(str(key[1]), {})
            counts.stored += len(log)
            counts.acknowledged += len(acknowledged)
            counts.missing += len(acknowledged.keys() - there.keys())
            counts.differing += sum(there.get(id_, found[0]) != found[0] for id_, found in acknowledged.items())
            counts.differing += sum(len(found) > 1 for found in acknowledged.values())
            names = Counter(message.content.partition(" ")[0] for message in log)
            counts.doubled += sum(count - 1 for count in names.values()) + len(log) - len(there)
            counts.sparse += seqs(log) != dense(len(log))
    return counts


async def prepare(url: str, plan: Plan) -> list[tuple[str, UUID]]:
    """Make the conversations of a run."""
    async with open_store(url) as store:
        owners = [OWNERS[number % len(OWNERS)] for number in range(plan.conversations)]
        return [(owner, (await store.create_conversation(owner, NewConversation())).id) for owner in owners]


def torture(url: str, plan: Plan, *, kind: str, kill: Callable[[], None] | None = None) -> Counts:
    """Run the rounds, say what each found, and return what the last one did: it looks at everything."""
    keys = asyncio.run(prepare(url, plan))
    expected: dict[str, dict[str, list[int]]] = {}
    counts = Counts()
    for number in range(1, plan.rounds + 1):
        for writer in run_round(url, f"{kind}{number}", plan, keys, kill):
            for conversation, message, found in writer.said:
                expected.setdefault(conversation, {})[message] = found
        counts = asyncio.run(check(url, keys, expected))
        print(f"{kind} killed, round {number}/{plan.rounds}: {counts.line()}", flush=True)
        if not counts.good:
            break
    return counts


# --- the command -----------------------------------------------------------------------------------------


def main() -> int:
    """Run both kinds of rounds where that is possible."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.torture_mongodb", description=__doc__)
    parser.add_argument("url", nargs="?", help="a database on a replica set; absent: a mongod of the script's own")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a round lasts")
    parser.add_argument("--kill", metavar="COMMAND", help="a shell command that kills the server and starts it again")
    arguments = parser.parse_args()
    plan = Plan(rounds=arguments.rounds, seconds=arguments.seconds)
    if arguments.url:
        kill = (lambda: subprocess.run(arguments.kill, shell=True, check=True)) if arguments.kill else None
        return report(arguments.url, plan, kill)
    program = shutil.which("mongod")
    if program is None:
        parser.error("give the URL of a database on a replica set, or put mongod on PATH")
    server = Mongod(program)
    try:
        return report(with_database(server.url, "torture"), plan, server.crash)
    finally:
        server.remove()


def report(url: str, plan: Plan, kill: Callable[[], object] | None) -> int:
    """Run the rounds; 0 when all was well."""
    found = [torture(url, plan, kind="client")]
    if kill is None:
        print("server killed: not run; give --kill COMMAND, or no URL and a mongod on PATH")
    else:
        found.append(torture(url, plan, kind="server", kill=lambda: (kill(), None)[1]))
    good = all(counts.good for counts in found)
    print(f"{'all well' if good else 'BROKEN'}: {sum(counts.acknowledged for counts in found):,} acknowledged")
    return 0 if good else 1


def as_worker(life: str, url: str, writers: str, *keys: str) -> None:
    """What a process that writes runs."""
    pairs = [key.partition("=") for key in keys]
    asyncio.run(work(url, life, int(writers), [(owner, UUID(id_)) for owner, _, id_ in pairs]))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        as_worker(*sys.argv[2:])
    else:
        sys.exit(main())
