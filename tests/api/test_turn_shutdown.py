"""How a server with answers ends: streams are told to come back, running answers have some time, nothing is lost."""

import asyncio
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from events import parsed, text_of
from test_server import log_of, served

from conftest import STORES

LONG = [pytest.param("postgres", marks=pytest.mark.apart)]
ASYNC = {"Prefer": "respond-async"}
SILENT = "Which tea? rate=0 silence=2"

BUSY = 2.0
"""Seconds that a busy machine may add."""


@pytest.fixture(params=["sqlite", *LONG])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database that outlives a server: how that ends does not depend on its kind."""
    return STORES[request.param](tmp_path)


@contextmanager
def server(
    folder: Path, url: str, *options: str, **settings: str
) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """A server that answers."""
    with served(folder, "--provider", "scripted", *options, database_url=url, **settings) as (process, client):
        yield process, client
    assert "Traceback" not in log_of(folder)


def ask(client: httpx2.Client, content: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    """Ask in a new conversation."""
    path = f"/api/conversations/{client.post('/api/conversations', json={}).json()['id']}"
    body = {"content": content, "id": str(uuid4())}
    return client.post(f"{path}/messages", json=body, headers=headers)


class Reading(threading.Thread):
    """Reads the stream of an answer up to its end."""

    def __init__(self, base: httpx2.URL, path: str) -> None:
        super().__init__()
        self.text = ""
        self.began = threading.Event()
        self._url = f"{base}{path}".replace("//api", "/api")
        self.start()

    def run(self) -> None:
        with httpx2.stream("GET", self._url, timeout=60) as reply:
            for part in reply.iter_text():
                self.text += part
                if "event: text" in self.text:
                    self.began.set()


def ended(process: subprocess.Popen[str]) -> float:
    """Ask the server to end, and return how many seconds it took."""
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    return time.monotonic() - began


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_idle_streams_are_told_to_come_back(tmp_path: Path, url: str, workers: str) -> None:
    """A server with ten of them ends within the drain and two seconds; the answer is interrupted, and kept."""
    with server(tmp_path, url, "--drain", "1", "--workers", workers) as (process, client):
        begun = ask(client, SILENT, ASYNC)
        readers = [Reading(client.base_url, begun.headers["location"]) for _ in range(10)]
        assert all(reader.began.wait(20) for reader in readers)
        assert ended(process) < 1 + 2 + BUSY
        for reader in readers:
            reader.join(10)
            assert reader.text.endswith("retry: 1000\n\n")
            events = parsed(reader.text.removesuffix("retry: 1000\n\n"))
            assert text_of(events) == "Which tea? "
    with server(tmp_path, url) as (_, client):
        message = client.get(begun.headers["location"].removesuffix("/events")).json()
        assert (message["status"], message["content"]) == ("interrupted", "Which tea? ")
        last = events[-1].id
        rest = client.get(begun.headers["location"], headers={"Last-Event-ID": str(last)})
        assert text_of(parsed(rest.text)) == ""
        assert parsed(rest.text)[-1].data == message


def test_without_a_turn_it_ends_at_once(tmp_path: Path, url: str) -> None:
    """The drain is for answers that are being made only."""
    with server(tmp_path, url, "--drain", "20") as (process, client):
        assert ask(client, "Tea? rate=0").status_code == 201
        assert ended(process) < 1 + BUSY


def test_an_answer_that_ends_in_time(tmp_path: Path, url: str) -> None:
    """Whoever waits for it has it; new questions are refused meanwhile."""
    with server(tmp_path, url, "--drain", "20") as (process, client):
        replies: list[Any] = []
        content = "Tea with milk and sugar? rate=3"
        waiting = threading.Thread(target=lambda: replies.append(ask(client, content)))
        with httpx2.Client(base_url=client.base_url, timeout=20) as other:
            other.get("/healthz")  # its connection is open before the server ends
            waiting.start()
            while not (found := other.get("/api/search", params={"q": "milk"}).json()["items"]):
                time.sleep(0.05)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            waiting.join(20)
            assert replies[0].status_code == 201
            assert replies[0].json()["assistant_message"]["content"] == "Tea with milk and sugar? "
            assert replies[0].json()["user_message"]["id"] == found[0]["message"]["id"]
            assert process.wait(10) == 0
            assert time.monotonic() - began < 10


def test_an_answer_that_does_not(tmp_path: Path, url: str) -> None:
    """Whoever waits for it has what there is of it when the drain is over."""
    with server(tmp_path, url, "--drain", "1") as (process, client):
        replies: list[Any] = []
        waiting = threading.Thread(target=lambda: replies.append(ask(client, SILENT)))
        waiting.start()
        time.sleep(1)
        assert ended(process) < 1 + 2 + BUSY
        waiting.join(10)
        assert replies[0].status_code == 201
        answer = replies[0].json()["assistant_message"]
        assert (answer["status"], answer["content"]) == ("interrupted", "Which tea? ")


async def test_a_new_question_is_refused(tmp_path: Path) -> None:
    """On a connection that was open: 503, with when to ask again; a stalled reader does not delay the end."""
    with served(tmp_path, "--provider", "scripted", "--drain", "2") as (process, client):
        begun = ask(client, "Tea? rate=1 tool=5000000", ASYNC)
        path = begun.headers["location"].partition("/messages")[0]
        port = client.base_url.port or 0
        stuck, writer = await asyncio.open_connection("127.0.0.1", port, limit=1_024)
        writer.write(f"GET {begun.headers['location']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await asyncio.sleep(0.5)
        body = b'{"content": "Tea?"}'
        head = f"POST {path}/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        reader, asking = await asyncio.open_connection("127.0.0.1", port)
        asking.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
        await asyncio.sleep(0.2)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
        asking.write(body)
        reply = (await asyncio.wait_for(reader.read(), 10)).decode()
        assert reply.startswith("HTTP/1.1 503")
        assert "retry-after: 1" in reply
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert time.monotonic() - began < 2 + 4 + BUSY
        for each in (writer, asking):
            each.transport.abort()
            with suppress(ConnectionError):
                await each.wait_closed()
        del stuck
    assert "Traceback" not in log_of(tmp_path)
