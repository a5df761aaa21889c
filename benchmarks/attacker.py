"""An attacker, in a process of its own: `python -m benchmarks.attacker ATTACK PORT TOKEN SECRET`.

It prints a line when it begins, and what it spent when it has finished, or at SIGTERM.
"""

import json
import os
import re
import resource
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import count
from typing import Any

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
CHUNK = 1 << 18
TIMEOUT_SECONDS = 120.0


@dataclass(frozen=True)
class Attack:
    """One attack, and what it needs."""

    name: str
    run: Callable[["Attacker"], object]
    says: str
    """What it does, for the table."""
    kinds: tuple[str, ...] = ()
    """What the database holds besides the conversations: names of `attack_prepare.KINDS`."""
    seconds: float = 12.0
    """When it is stopped at the latest."""
    issuer: bool = False
    """Whether the server takes its keys from an issuer, which answers by single bytes from when the attack begins."""


@dataclass
class Attacker:
    """A client that keeps to no rules, and counts what it spends."""

    port: int
    token: str = ""
    secret: str = ""
    requests: int = 0
    bytes_sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)
    _local: threading.local = field(default_factory=threading.local)

    # --- requests ---------------------------------------------------------------------------------------------

    def ask(
        self, method: str, path: str | bytes, body: bytes = b"", *, token: str | None = None, headers: str = ""
    ) -> tuple[int, bytes]:
        """Send a request on this thread's connection, and return status and body; 0 if no answer came."""
        target = path.encode() if isinstance(path, str) else path
        head = f"Host: 127.0.0.1:{self.port}\r\nAuthorization: Bearer {token or self.token}\r\n{headers}"
        if body:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        return self.exchange(b"%s %s HTTP/1.1\r\n%s\r\n%s" % (method.encode(), target, head.encode(), body))

    def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Send bytes on this thread's connection, and read an answer."""
        connection: socket.socket | None = getattr(self._local, "connection", None)
        self.requests += 1
        try:
            if connection is None:
                connection = self._local.connection = self.connect()
            self.send(connection, request)
            status, body, keeps = self.read(connection)
        except OSError as error:
            status, body, keeps = 0, b"", False
            self.answers[type(error).__name__] += 1
        else:
            self.answers[str(status or "closed")] += 1
        if not keeps and connection is not None:
            connection.close()
            self._local.connection = None
        return status, body

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A new connection, from any address of loopback."""
        return socket.create_connection(("127.0.0.1", self.port), TIMEOUT_SECONDS, (source, 0))

    def send(self, connection: socket.socket, data: bytes) -> bool:
        """Send and count; False when the other side has closed, which may have answered before."""
        view = memoryview(data)
        for start in range(0, len(data), CHUNK):
            piece = view[start : start + CHUNK]
            try:
                connection.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                return False
            self.bytes_sent += len(piece)
        return True

    @staticmethod
    def read(connection: socket.socket) -> tuple[int, bytes, bool]:
        """The status, the body, and whether the connection can be used again; status 0 if it was closed."""
        received = b""
        while b"\r\n\r\n" not in received:
            data = connection.recv(1 << 16)
            if not data:
                return 0, b"", False
            received += data
        head, _, body = received.partition(b"\r\n\r\n")
        found = LENGTH.search(head)
        while len(body) < (int(found[1]) if found else 0):
            data = connection.recv(1 << 20)
            if not data:
                return 0, b"", False
            body += data
        keeps = b"connection: close" not in head.lower() and (found is not None or b" 204 " in head)
        return int(head.split()[1]), body, keeps

    # --- how they are sent --------------------------------------------------------------------------------------

    def at_once(self, threads: int, work: Callable[[], object], times: int = 1) -> None:
        """Do `work` in several threads, several times each."""
        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(_repeat, work, times) for _ in range(threads)]:
                done.result()

    def for_seconds(self, seconds: float, threads: int, work: Callable[[int], object]) -> None:
        """Do `work` in several threads until the time is over; it gets the number of its call."""
        end, numbers = time.monotonic() + seconds, count()

        def keep_working() -> None:
            while time.monotonic() < end:
                work(next(numbers))

        self.at_once(threads, keep_working)

    def spent(self) -> dict[str, Any]:
        """What it spent."""
        seconds = time.monotonic() - self.began
        return {
            "requests": self.requests, "bytes": self.bytes_sent, "seconds": seconds, "answers": dict(self.answers),
        }  # fmt: skip


def _repeat(work: Callable[[], object], times: int) -> None:
    for _ in range(times):
        work()


def raise_open_files() -> None:
    """Let this process open as many connections as the system allows."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main(name: str, port: int, token: str, secret: str) -> None:
    """Attack, and print what it took."""
    from benchmarks.attack_list import ATTACKS

    raise_open_files()
    attacker = Attacker(port, token, secret)

    def finish(*_: object) -> None:
        print(json.dumps(attacker.spent()), flush=True)
        os._exit(0)  # threads may wait for answers that never come

    signal.signal(signal.SIGTERM, finish)
    print("started", flush=True)
    ATTACKS[name].run(attacker)
    finish()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:5])
