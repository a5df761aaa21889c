"""A MongoDB server of one's own, in a temporary folder: for benches, tests and torture."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from pymongo import MongoClient

from benchmarks.postgres_server import free_port

START_SECONDS = 60
"""How long a server may take to start."""

LIFETIME = 3
"""Seconds after which a transaction ends whose process was killed; 60 unless a server is told otherwise."""


class Mongod:
    """A mongod, as a replica set of one node on a port of its own."""

    kind = "mongod, started as a replica set of one node"

    def __init__(self, program: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatkeep-mongo-"))
        self.port = free_port()
        self._command = [program, "--replSet", "rs0", "--port", str(self.port), "--bind_ip", "127.0.0.1",
                         "--dbpath", str(self.folder), "--setParameter", "enableTestCommands=1",
                         "--setParameter", f"transactionLifetimeLimitSeconds={LIFETIME}"]  # fmt: skip
        self.url = f"mongodb://127.0.0.1:{self.port}/?replicaSet=rs0"
        self.start()
        try:
            self._initiate()
        except BaseException:
            self.remove()
            raise

    def _initiate(self) -> None:
        """Make it a replica set, and wait until it is the primary. Raises RuntimeError if it ends meanwhile."""
        self._wait_for(self._listens)
        client: MongoClient[dict[str, Any]] = MongoClient(f"mongodb://127.0.0.1:{self.port}/?directConnection=true")
        with closing(client):
            member = {"_id": 0, "host": f"127.0.0.1:{self.port}"}
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": [member]})
            self._wait_for(lambda: client.admin.command("hello")["isWritablePrimary"])

    def _wait_for(self, done: Callable[[], bool]) -> None:
        end = time.monotonic() + START_SECONDS
        while not done():
            if self.process.poll() is not None or time.monotonic() > end:
                lines = self._output.read_text("utf-8", "replace").split("\n")
                last = next((line for line in reversed(lines) if line.strip()), "it said nothing")
                raise RuntimeError(f"mongod did not start, exit code {self.process.poll()}: {last}")
            time.sleep(0.05)

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    @property
    def _output(self) -> Path:
        return self.folder / "output"

    def start(self) -> None:
        """Start it; clients wait for it by themselves."""
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(self._command, stdout=output, stderr=subprocess.STDOUT)

    def crash(self) -> None:
        """End it as a crash does, and start it again."""
        self._kill()
        self.start()

    def remove(self) -> None:
        """End it, and remove its folder."""
        self._kill()
        shutil.rmtree(self.folder)

    def _kill(self) -> None:
        self.process.kill()
        self.process.wait()


def with_database(url: str, name: str) -> str:
    """The URL of a database on the server that a URL names. Users are looked for where they were before."""
    parts = urlsplit(url)
    query = parts.query
    if parts.username and "authsource=" not in query.lower():
        query += f"{'&' if query else ''}authSource={parts.path.removeprefix('/') or 'admin'}"
    return parts._replace(path=f"/{name}", query=query).geturl()


@contextmanager
def serving() -> Iterator[str | None]:
    """The URL of a real server: the one that is given, or one of its own; None where there is none."""
    given, program = os.environ.get("CHATKEEP_TEST_MONGODB_URL"), shutil.which("mongod")
    if given or program is None:
        yield given
        return
    server = Mongod(program)
    try:
        yield server.url
    finally:
        server.remove()


@contextmanager
def fresh_database(server: str) -> Iterator[str]:
    """The URL of a new database, which goes afterwards."""
    name = f"bench_{uuid4().hex}"
    try:
        yield with_database(server, name)
    finally:
        client: MongoClient[dict[str, Any]] = MongoClient(server)
        client.drop_database(name)
        client.close()
