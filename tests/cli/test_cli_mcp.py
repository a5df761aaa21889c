"""`chatkeep mcp`: the official client over the pipes of a process, and how that ends."""

import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import COMMAND, run
from mcp.client.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp_types import CallToolResult, TextContent

from chatkeep import open_store
from chatkeep.cli.mcp import MAX_LINE_BYTES

pytestmark = pytest.mark.long  # test_mcp_server.py, which always runs, has the same tools


ENDED_SECONDS = 30
"""Time in which a process has to end on a machine that is busy."""

HELLO = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """The environment with a database of its own."""
    return {**os.environ, "CHATKEEP_DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"}


@asynccontextmanager
async def connected(env: dict[str, str], *arguments: str, mode: str = "auto") -> AsyncIterator[Client]:
    """The official client, of a process that it has started."""
    given = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], "mcp", *arguments], env=env)
    async with Client(stdio_client(given), mode=mode) as client:
        yield client


def said(result: CallToolResult) -> str:
    """The text of a result."""
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_the_official_client(env: dict[str, str], mode: str) -> None:
    """What a client appends is stored for its owner, and is there for the next one."""
    async with connected(env, "--owner", "ada", mode=mode) as client:
        made = (await client.call_tool("create_conversation", {"title": "Tea"})).structured_content
        assert made is not None
        given = {"conversation_id": made["id"], "content": "Green.", "role": "assistant"}
        assert "role must be user" in said(await client.call_tool("append_message", given))
    async with connected(env, "--owner", "ada", "--any-role", mode=mode) as client:
        assert not (await client.call_tool("append_message", given)).is_error
    async with connected(env, "--owner", "ada", "--read-only", mode=mode) as client:
        [listed] = (await client.list_resources()).resources
        assert listed.title == "Tea"
        read = await client.call_tool("read_conversation", {"conversation_id": made["id"]})
        assert '"text":"Green."' in said(read)
        assert "may only read" in said(await client.call_tool("append_message", given))
    async with connected(env, mode=mode) as client:
        assert (await client.list_resources()).resources == []
    async with open_store(env["CHATKEEP_DATABASE_URL"]) as store:
        assert [each.content for each in await store.log("ada", made["id"])] == ["Green."]


@contextmanager
def started(env: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has answered a first message."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*COMMAND, "mcp"], stdin=pipe, stdout=pipe, stderr=pipe, env=env) as process:
        try:
            assert tell(process, HELLO)["result"]["serverInfo"]["name"] == "chatkeep"
            yield process
        finally:
            process.kill()


def tell(process: subprocess.Popen[bytes], message: dict[str, Any]) -> Any:
    """Send a message, and return the next line that the process writes."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(message).encode() + b"\n")
    process.stdin.flush()
    return json.loads(process.stdout.readline())


def test_it_ends_with_its_input(env: dict[str, str]) -> None:
    """At the end of the input the process ends with 0, and has written nothing but the protocol."""
    with started(env) as process:
        rest, errors = process.communicate(timeout=ENDED_SECONDS)
    assert (process.returncode, rest) == (0, b"")
    assert b"Traceback" not in errors


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_a_signal(env: dict[str, str], number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end it although it waits for its input, which stays open."""
    with started(env) as process:
        process.send_signal(number)
        assert process.wait(ENDED_SECONDS) == 0
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == b""
        assert b"Traceback" not in process.stderr.read()


def test_a_second_signal_ends_it_at_once(env: dict[str, str]) -> None:
    """A client that does not read all of an answer holds up the end; the next signal ends the process."""
    with started(env) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        ping = json.dumps({"jsonrpc": "2.0", "id": "x" * 500_000, "method": "ping"}).encode()
        process.stdin.write(ping + b"\n")
        process.stdin.flush()
        os.read(process.stdout.fileno(), 1)  # the rest does not fit into the pipe
        signals, until = 0, time.monotonic() + ENDED_SECONDS
        while process.poll() is None and time.monotonic() < until:
            process.send_signal(signal.SIGINT)
            signals += 1
            time.sleep(1)
        assert (process.returncode, signals > 1) == (-signal.SIGINT, True)
        assert b"Traceback" not in process.stderr.read()


def test_messages_that_are_too_long(env: dict[str, str]) -> None:
    """A line beyond the limit is left out, said on standard error, and the next one is answered."""
    with started(env) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(b"x" * (3 * MAX_LINE_BYTES) + b"\nzq7\n")
        assert tell(process, {"jsonrpc": "2.0", "id": 2, "method": "ping"}) == {"jsonrpc": "2.0", "id": 2, "result": {}}
        _, errors = process.communicate(timeout=ENDED_SECONDS)
    assert b"left out a message" in errors


def test_what_cannot_be_opened(env: dict[str, str], tmp_path: Path) -> None:
    """A database that is not there is not made for reading; nothing is on standard output."""
    for arguments in (["--read-only"], ["--owner", ""], ["--embedder", "zq7"]):
        done = subprocess.run(
            [*COMMAND, "mcp", *arguments], env=env, capture_output=True, check=False, stdin=subprocess.DEVNULL
        )
        assert (done.returncode, done.stdout) == (1, b""), arguments
        assert b"Error: " in done.stderr, done.stderr
        assert b"Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_help(env: dict[str, str]) -> None:
    """The help says what it is for."""
    done = run(env, "mcp", "--help")
    assert all(word in done.output for word in ("--owner", "--read-only", "--any-role", "--embedder", "docs/mcp.md"))
    assert "mcp" in run(env, "--help").output
