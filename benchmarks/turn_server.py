"""Servers that answer by a script, and clients that read their streams: for the drill of turns and its load."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import httpx2

TIMEOUT = httpx2.Timeout(30, read=60)


@dataclass
class Served:
    """A server process."""

    process: subprocess.Popen[str]
    url: str

    def kill(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)


@contextmanager
def serving(database_url: str, **settings: object) -> Iterator[Served]:
    """A server of one process on a free port, with these settings beside the script."""
    given = {"DATABASE_URL": database_url, "PROVIDER": "scripted", "LOG_LEVEL": "error", **settings}
    environment = {**os.environ, **{f"CHATKEEP_{name.upper()}": str(value) for name, value in given.items()}}
    command = [sys.executable, "-m", "chatkeep", "serve", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        said = ""
        while not (found := re.search(r"http://\S+?:\d+", said)):
            line = process.stdout.readline()
            assert line, "the server did not start"
            said += line
        yield Served(process, found[0])
    finally:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


class Item(NamedTuple):
    """An event of a stream."""

    kind: str
    id: str
    data: dict[str, Any]


@dataclass
class Received:
    """What a client has of an answer."""

    text: str = ""
    reasoning: str = ""
    last_id: str = ""
    others: dict[str, int] = field(default_factory=dict)
    message: dict[str, Any] | None = None
    resets: int = 0

    def take(self, item: Item) -> None:
        """Take an event."""
        self.last_id = item.id or self.last_id
        if item.kind == "text":
            self.text += item.data["text"]
        elif item.kind == "reasoning":
            self.reasoning += item.data["text"]
        elif item.kind == "reset":
            self.resets += 1
        elif item.kind == "assistant_message":
            self.message = item.data
        elif "id" in item.data:
            self.others[item.data["id"]] = self.others.get(item.data["id"], 0) + 1


async def items(lines: AsyncIterator[str]) -> AsyncGenerator[Item]:
    """Parse the lines of an event stream."""
    fields: dict[str, str] = {}
    async for line in lines:
        if line:
            name, _, value = line.partition(":")
            fields[name] = value.removeprefix(" ")
        elif "data" in fields:
            yield Item(fields.get("event", ""), fields.get("id", ""), json.loads(fields["data"]))
            fields = {}
        else:
            fields = {}


async def ask(client: httpx2.AsyncClient, talk: str, question: dict[str, Any], received: Received) -> None:
    """Send a question and read the stream of its answer."""
    headers = {"Accept": "text/event-stream", **({"Last-Event-ID": received.last_id} if received.last_id else {})}
    path = f"/api/conversations/{talk}/messages"
    async with client.stream("POST", path, json=question, headers=headers) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {(await reply.aread()).decode()}")
        async with aclosing(items(reply.aiter_lines())) as found:
            async for item in found:
                received.take(item)


async def follow(client: httpx2.AsyncClient, path: str, received: Received) -> None:
    """Read the stream of an answer from where it was left."""
    headers = {"Last-Event-ID": received.last_id} if received.last_id else {}
    async with client.stream("GET", f"{path}/events", headers=headers) as reply:
        if reply.status_code != 200:
            raise RuntimeError(f"{reply.status_code}: {(await reply.aread()).decode()}")
        async with aclosing(items(reply.aiter_lines())) as found:
            async for item in found:
                received.take(item)
