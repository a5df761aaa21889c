"""What others see while somebody attacks the connections of `chatkeep serve`; both are processes of their own."""

import http.client
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

ATTACKS = Path(__file__).parents[1] / "servers" / "attacks.py"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CHATKEEP_")}

SECONDS, SHORT, QUIET = 6.0, 3.0, 1.0
"""How long an attack lasts, how long one that shows in memory within a second, and how long there is none."""

MOST_WAIT, TIMES_QUIET = 2.0, 4.0
"""Longest wait of another client, in seconds, or in times of what it was before the attack on a machine that is busy
with other things. On a quiet one none is a quarter of a second."""

MOST_GROWTH = 120
"""Most MB that an attack adds. 900 bodies of just under 64 KiB, which are for free, are half of that."""


@contextmanager
def served(folder: Path, files: str, *options: str, **settings: str) -> Iterator[tuple[int, int]]:
    """A server that starts with a soft (-S) or hard limit of open files: its process id and port."""
    serve = [sys.executable, "-m", "chatkeep", "serve", "--port", "0", *options]
    command = ["sh", "-c", f'ulimit {files} && exec "$@"', "sh", *serve]
    given = {f"CHATKEEP_{name.upper()}": value for name, value in settings.items()}
    environment = {**ENVIRONMENT, "CHATKEEP_DATABASE_URL": f"sqlite:///{folder}/chat.db", **given}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
    assert process.stdout is not None
    try:
        (port,) = re.findall(r"http://127.0.0.1:(\d+)/", process.stdout.readline() + process.stdout.readline())
        end = time.monotonic() + 60
        while ask(int(port), "/readyz") != 200:
            assert time.monotonic() < end
            time.sleep(0.1)
        yield process.pid, int(port)
    finally:
        process.terminate()
        try:
            process.wait(40)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@contextmanager
def attacked(kind: str, port: int) -> Iterator[None]:
    """Somebody attacks the server at this port."""
    attacker = subprocess.Popen([sys.executable, ATTACKS, kind, str(port)], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        assert attacker.poll() is None
        yield
    finally:
        attacker.kill()
        attacker.wait()


def ask(port: int, path: str, body: str | None = None) -> int:
    """The status of a response, on a connection of its own; 0 if there is none."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as connection:
        try:
            headers = {"Content-Type": "application/json"} if body else {}
            connection.request("POST" if body else "GET", path, body, headers)
            response = connection.getresponse()
            response.read()
        except OSError:
            return 0
        return response.status


def megabytes(pid: int) -> int:
    """The resident memory of a process and its children."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if pid in {int(folder.name), parent}:
                total += int(re.findall(r"VmRSS:\s+(\d+) kB", (folder / "status").read_text())[0]) >> 10
        except (OSError, IndexError):
            continue  # the process has ended
    return total


def others(pid: int, port: int, seconds: float) -> tuple[float, int]:
    """What another client sees: the longest wait for a response but for one, and the most memory of the server."""
    waits, most, end = [], 0, time.monotonic() + seconds
    while time.monotonic() < end:
        for path, body, status in (("/readyz", None, 200), ("/api/conversations", '{"title": "Tea"}', 201)):
            began = time.monotonic()
            assert ask(port, path, body) == status
            waits.append(time.monotonic() - began)
        most = max(most, megabytes(pid))
        time.sleep(0.02)
    return sorted(waits)[-2], most


def see_no_attack(kinds: Iterable[str], pid: int, port: int, seconds: float = SHORT) -> int:
    """Attack in all these ways; another client must not wait for it. Return by how many MB the server grew."""
    before = megabytes(pid)
    quiet, _ = others(pid, port, QUIET)
    with ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(attacked(kind, port))
        wait, most = others(pid, port, seconds)
    assert wait < max(MOST_WAIT, TIMES_QUIET * quiet)
    return most - before


KINDS = (
    "header_flood", "silent", "slow_heads", "slow_bodies", "small_slow_bodies", "trailer_flood", "pipelining", "deaf",
)  # fmt: skip
"""Each in a test of its own."""

GROWING = ("silent", "deaf")
"""Those whose connections, or answers, become more for some seconds."""

ALIKE = ("trailer_flood", "slow_heads", "small_slow_bodies", "pipelining")
"""Those that are much like others here; the limits that bound them have tests in test_connections."""

LENGTHS = [
    *(pytest.param(kind, SECONDS if kind in GROWING else SHORT, id=kind) for kind in KINDS if kind not in ALIKE),
    *(pytest.param(kind, SECONDS, id=f"{kind} long", marks=pytest.mark.apart) for kind in KINDS if kind not in GROWING),
]


@pytest.mark.long
@pytest.mark.parametrize(("kind", "seconds"), LENGTHS)
def test_others_are_served(tmp_path: Path, kind: str, seconds: float) -> None:
    """Whatever somebody without a token does, others wait less than a second, and the memory is bounded."""
    with served(tmp_path, "-Sn 1024") as (pid, port):
        assert see_no_attack([kind], pid, port, seconds) < MOST_GROWTH
    assert "Traceback" not in (tmp_path / "log").read_text()
    assert "as 1024 files" not in (tmp_path / "log").read_text()


@pytest.mark.long  # three processes start for it
def test_others_are_served_by_several_workers(tmp_path: Path) -> None:
    """The limits hold in each worker."""
    with served(tmp_path, "-Sn 1024", "--workers", "2") as (pid, port):
        assert see_no_attack(["header_flood", "slow_bodies"], pid, port) < 2 * MOST_GROWTH


@pytest.mark.long
def test_more_connections_than_files(tmp_path: Path) -> None:
    """A server that may open 300 files takes as many connections as that allows, and others come in all the same."""
    with served(tmp_path, "-n 300") as (pid, port):
        assert see_no_attack(["silent"], pid, port) < MOST_GROWTH
    assert "at most 172 connections, as 300 files may be open" in (tmp_path / "log").read_text()
