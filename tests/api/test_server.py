"""`chatkeep serve` as a process: how it stops, several workers, what it logs and counts."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import apsw
import httpx2
import pytest
from benchmarks.postgres_server import FAST

from servers.postgres import started, stopped, with_query

ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CHATKEEP_")}


@contextmanager
def served(
    folder: Path, *options: str, program: Sequence[str] = ("-m", "chatkeep"), **settings: str
) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """A server on a SQLite file in `folder`, its log in a file beside it, and a client."""
    command = [sys.executable, *program, "serve", "--port", "0", *options]
    given = {f"CHATKEEP_{name.upper()}": value for name, value in settings.items()}
    environment = {"CHATKEEP_DATABASE_URL": f"sqlite:///{folder}/chat.db", **ENVIRONMENT, **given}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert process.stdout is not None
    try:
        (url,) = re.findall(r"http://\S+?:\d+", process.stdout.readline() + process.stdout.readline())
        with httpx2.Client(base_url=url, timeout=20) as client:
            _wait_until_ready(client)
            yield process, client
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def _wait_until_ready(client: httpx2.Client) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def log_of(folder: Path) -> str:
    """What the server wrote to stderr."""
    return (folder / "log").read_text()


def test_sigterm_ends_the_server(tmp_path: Path) -> None:
    """With open connections that ask for nothing it ends at once, with exit code 0."""
    with served(tmp_path) as (process, client):
        assert client.post("/api/conversations", json={}).status_code == 201
        address = ("127.0.0.1", client.base_url.port or 0)
        idle = [socket.create_connection(address) for _ in range(10)]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        for connection in idle:
            connection.close()
    assert "Traceback" not in log_of(tmp_path)


@contextmanager
def stuck_sqlite(folder: Path) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    """The URL of a file, and what takes its lock."""

    @contextmanager
    def locked() -> Iterator[None]:
        with closing(apsw.Connection(f"{folder}/chat.db")) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield

    yield f"sqlite:///{folder}/chat.db", locked()


@contextmanager
def stuck_postgres(_: Path) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    """The URL of a server, and what stops all its processes."""
    with started(**FAST) as server:
        yield server.url(), stopped(server)


@pytest.mark.parametrize("database", [stuck_sqlite, pytest.param(stuck_postgres, marks=pytest.mark.long)])
def test_sigterm_while_the_database_is_stuck(
    tmp_path: Path, database: Callable[[Path], AbstractContextManager[tuple[str, AbstractContextManager[object]]]]
) -> None:
    """The server ends within shutdown_seconds and two seconds more, whatever its store waits for; clients are told."""
    with database(tmp_path) as (url, stuck):
        settings = {"database_url": with_query(url, "write_timeout=60&read_timeout=60"), "shutdown_seconds": "1"}
        with served(tmp_path, **settings) as (process, client), ThreadPoolExecutor(4) as pool, stuck:
            waiting = [pool.submit(client.post, "/api/conversations", json={}) for _ in range(4)]
            time.sleep(0.5)
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert time.monotonic() - began < 1 + 3  # two, and one for a busy machine
            assert {each.result().status_code for each in waiting} == {503}
    assert "Traceback" not in log_of(tmp_path)


COUNTS_AT_EXIT = """
import atexit, gc, runpy
atexit.register(lambda: print("frozen:", gc.get_freeze_count(), "others:", len(gc.get_objects())))
runpy.run_module("chatkeep", run_name="__main__")
"""


def test_the_garbage_collector_passes_over_the_program(tmp_path: Path) -> None:
    """To go through all of it took the event loop 90 ms, now and then."""
    with served(tmp_path, program=("-c", COUNTS_AT_EXIT)) as (process, _):
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
        assert process.stdout is not None
        said = process.stdout.read()
    (frozen, others) = map(int, re.findall(r"frozen: (\d+) others: (\d+)", said)[0])
    assert others < frozen / 5


def test_json_log(tmp_path: Path) -> None:
    """Each request is a line of JSON with its id, route and time, and nothing that anybody said or is called."""
    with served(tmp_path, log_format="json") as (process, client):
        reply = client.post("/api/conversations", json={"title": "zq7title"})
        client.get(f"/api/conversations/{reply.json()['id']}")
        process.send_signal(signal.SIGTERM)
        process.wait(10)
    lines = [json.loads(line) for line in log_of(tmp_path).splitlines()]
    (made,) = [line for line in lines if line.get("method") == "POST"]
    assert made["request"] == reply.headers["x-request-id"]
    assert (made["route"], made["status"], made["level"]) == ("/api/conversations", 201, "info")
    assert re.fullmatch(r"[0-9a-f]{12}", made["owner"])
    assert made["ms"] > 0
    assert "zq7" not in log_of(tmp_path)
    assert reply.json()["id"] not in log_of(tmp_path)


def test_metrics(tmp_path: Path) -> None:
    """Requests, store operations, commits and refusals are counted, by route and without ids."""
    with served(tmp_path, metrics="true") as (_, client):
        made = client.post("/api/conversations", json={}).json()
        client.get(f"/api/conversations/{made['id']}")
        client.get("/api/conversations", headers={"Host": "zq7.example"})
        text = client.get("/metrics").text
    assert 'chatkeep_requests_total{method="POST",route="/api/conversations",status="201"} 1.0' in text
    assert 'chatkeep_store_seconds_count{operation="create_conversation"} 1.0' in text
    assert "chatkeep_commit_items_count" in text
    assert 'chatkeep_rejected_total{status="421"} 1.0' in text
    assert made["id"] not in text


def test_workers(tmp_path: Path) -> None:
    """Several processes serve one file; one that is killed is replaced; all end with the first; counts are summed."""
    with served(tmp_path, "--workers", "2", metrics="1") as (process, client):
        made = [client.post("/api/conversations", json={}) for _ in range(10)]
        assert [reply.status_code for reply in made] == [201] * 10
        children = _children(process.pid)
        os.kill(children[-1], signal.SIGKILL)
        end = time.monotonic() + 20
        while time.monotonic() < end and (len(_children(process.pid)) < len(children) or not _answers(client)):
            time.sleep(0.1)
        assert _children(process.pid) != children
        listed = client.get("/api/conversations", params={"limit": 50})
        assert len(listed.json()["items"]) == 10
        text = client.get("/metrics").text
        assert 'route="/api/conversations"' in text
        workers = _children(process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


@pytest.mark.long  # three processes start for it, as for the test above
def test_a_worker_that_takes_long_to_start(tmp_path: Path) -> None:
    """A new worker that does not answer for 7 s, as on a busy machine, is not replaced."""
    with served(tmp_path, "--workers", "2") as (process, client):
        workers = _children(process.pid)
        os.kill(workers[0], signal.SIGSTOP)
        time.sleep(7)  # uvicorn waits 5 s
        os.kill(workers[0], signal.SIGCONT)
        assert _answers(client)
        assert _children(process.pid) == workers


@pytest.mark.long  # three processes start for it, as for the test above
def test_a_document_is_found_through_every_worker(tmp_path: Path) -> None:
    """What one worker stores, the next request finds through another one: new, replaced and deleted."""
    with served(tmp_path, "--workers", "2") as (process, client):
        workers = _children(process.pid)
        where = f"/api/projects/{client.post('/api/projects', json={'name': 'Manual'}).json()['id']}"
        before = [_cpu(pid) for pid in workers]
        number = 0
        while number < 10 or not all(_cpu(pid) > used for pid, used in zip(workers, before, strict=True)):
            number += 1
            text = f"# Zebra {number}\n\nStripes.\n"
            made = client.post(f"{where}/documents", files={"file": (f"{number % 3}.md", text)})
            assert made.status_code == 201
            assert _found(client, where, f"zebra {number}") == {text}
            assert number < 100
        client.delete(made.headers["location"])
        assert text not in _found(client, where, f"zebra {number}")


def _found(client: httpx2.Client, where: str, question: str) -> set[str]:
    """What eight searches at once, each on a connection of its own, find first."""

    def search(_: int) -> str:
        with httpx2.Client(base_url=client.base_url, verify=False) as another:
            found = another.get(f"{where}/search", params={"q": question}).json()["items"]
            return str(found[0]["text"])

    with ThreadPoolExecutor(8) as threads:
        return set(threads.map(search, range(8)))


def _cpu(pid: int) -> int:
    """The CPU time of a process so far, in ticks."""
    used = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(used[11]) + int(used[12])


@pytest.mark.long  # three processes start for it, as for the test above
def test_workers_do_not_outlive_a_killed_server(tmp_path: Path) -> None:
    """When the first process is killed its workers end, and their port is free for the next server."""
    with served(tmp_path, "--workers", "2") as (process, client):
        workers, port = _children(process.pid), client.base_url.port
        assert len(workers) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        end = time.monotonic() + 15
        while any(Path(f"/proc/{pid}").exists() for pid in workers):
            assert time.monotonic() < end
            time.sleep(0.1)
        socket.create_server(("127.0.0.1", port or 0)).close()


def _children(pid: int) -> list[int]:
    """The worker processes, without the one that Python's multiprocessing keeps."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            line = (folder / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in line:
            found.append(int(folder.name))
    return sorted(found)


def _answers(client: httpx2.Client) -> bool:
    try:
        return all(client.get("/healthz").status_code == 200 for _ in range(4))
    except httpx2.TransportError:
        return False


@pytest.mark.parametrize(
    ("options", "settings", "reason"),
    [
        (["--workers", "2"], {"database_url": "memory://"}, "memory of one process"),
        ([], {"auth": "jwt"}, "CHATKEEP_JWT_SECRET"),
        ([], {"auth": "jwt", "jwt_secret": "zq7"}, "at least 32 bytes"),
        ([], {"rate_limit": "often"}, "600/minute"),
        ([], {"port": "often"}, "CHATKEEP_PORT must be a whole number (got 'often')"),
        ([], {"cors_origins": "*"}, "CHATKEEP_CORS_ORIGINS may not have * or null"),
    ],
)
def test_what_cannot_be_served(tmp_path: Path, options: list[str], settings: dict[str, str], reason: str) -> None:
    """A setting that is wrong ends in a sentence that names it, and no secret."""
    given = {f"CHATKEEP_{name.upper()}": value for name, value in settings.items()}
    environment = {"CHATKEEP_DATABASE_URL": f"sqlite:///{tmp_path}/chat.db", **ENVIRONMENT, **given}
    command = [sys.executable, "-m", "chatkeep", "serve", "--port", "0", *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode != 0
    assert reason in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr
    assert "zq7" not in done.stderr


@pytest.mark.parametrize(
    ("host", "port", "option", "reason"),
    [
        ("127.0.0.1", "{taken}", "--port", "port {taken} of 127.0.0.1 is in use"),
        ("192.0.2.1", "0", "--host", "cannot listen on 192.0.2.1"),  # an address for documentation, nobody's
        ("no-host.invalid", "0", "--host", "cannot listen on no-host.invalid: no such address"),
    ],
)
def test_where_it_cannot_listen(tmp_path: Path, host: str, port: str, option: str, reason: str) -> None:
    """An address that the server cannot have ends in a sentence that names the option, before the database is made."""
    settings = {"AUTH": "jwt", "JWT_SECRET": "zq7" * 20, "DATABASE_URL": f"sqlite:///{tmp_path}/chat.db"}
    environment = {**ENVIRONMENT, **{f"CHATKEEP_{name}": value for name, value in settings.items()}}
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        command = [sys.executable, "-m", "chatkeep", "serve", "--host", host, "--port", port.format(taken=taken)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    said = " ".join(done.stderr.replace("│", " ").split())
    assert done.returncode == 2
    assert f"Error: {option}: " in said
    assert reason.format(taken=taken) in said
    assert "Traceback" not in said
    assert not (tmp_path / "chat.db").exists()


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_every_address_is_ipv4_too(tmp_path: Path) -> None:
    """`--host ::` takes connections of both kinds, as a container needs it."""
    with served(tmp_path, "--host", "::", auth="jwt", jwt_secret="zq7" * 20) as (_, client):
        port = client.base_url.port
        for host in ("127.0.0.1", "[::1]"):
            assert httpx2.get(f"http://{host}:{port}/healthz").status_code == 200
