"""Databases to drill on, and the programs that export, back up and restore them, each in a process of its own."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

import asyncpg

from benchmarks.attack_server import Checkout, disk, environment
from benchmarks.children import ROOT
from benchmarks.postgres_server import Server, plain

PROGRAM_SECONDS = 300.0
"""Longest time that a program may take."""


class Place:
    """Makes fresh databases of one kind. Its methods that are not coroutines block."""

    kind = "sqlite"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        return f"sqlite:///{self.folder / uuid4().hex}.db"

    def drop(self, url: str) -> None:
        """Remove a database."""
        for path in self.folder.glob(f"{Path(url).name}*"):
            path.unlink()

    def backup(self, checkout: Checkout, url: str, file: Path) -> list[str]:
        """The command that backs a database up to a file; empty if there is none."""
        if not _has_backup(checkout):
            return []
        return chatkeep(checkout, "backup", str(file), "--database-url", url)

    def restore(self, file: Path) -> tuple[str, list[str]]:
        """The URL of the restored database, and the command that restores it; empty if the file is the database."""
        return f"sqlite:///{file}", []

    async def settle(self, url: str) -> None:
        """Wait until nothing goes on that a killed client began."""


class PostgresPlace(Place):
    """The same on a PostgreSQL server, with its own programs."""

    kind = "postgresql"

    def __init__(self, folder: Path, server: Server) -> None:
        super().__init__(folder)
        self._server = server

    def fresh(self) -> str:
        """The URL of a new, empty database."""
        name = f"drill_{uuid4().hex}"
        self._execute(f'CREATE DATABASE "{name}"')
        return self._server.url(name)

    def drop(self, url: str) -> None:
        """Remove a database."""
        self._execute(f'DROP DATABASE IF EXISTS "{plain(url).rpartition("/")[2]}" WITH (FORCE)')

    def backup(self, checkout: Checkout, url: str, file: Path) -> list[str]:  # noqa: ARG002 - PostgreSQL's own
        """The command that backs a database up to a file."""
        program = str(self._server.programs / "pg_dump")
        return [program, "--format=custom", f"--file={file}", f"--dbname={plain(url)}"]

    def restore(self, file: Path) -> tuple[str, list[str]]:
        """The URL of the restored database, and the command that restores it."""
        url = self.fresh()
        program = str(self._server.programs / "pg_restore")
        return url, [program, "--exit-on-error", "--no-owner", f"--dbname={plain(url)}", str(file)]

    async def settle(self, url: str) -> None:
        """Wait until the server has done what a killed client sent: it may still commit."""
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        connection = await asyncpg.connect(plain(url))
        while await connection.fetchval(others):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)
        await connection.close()

    def _execute(self, statement: str) -> None:
        async def execute() -> None:
            connection = await asyncpg.connect(plain(self._server.url()))
            await connection.execute(statement)
            await connection.close()

        asyncio.run(execute())


class MongoPlace(Place):
    """The same on the MongoDB server of the tests: a real one, or the emulator. Only exports are drilled here."""

    kind = "mongodb"

    def fresh(self) -> str:
        """The URL of a new database with the newest schema."""
        return str(_mongo().migrated())

    def drop(self, url: str) -> None:
        """Remove a database."""
        _mongo().client.drop_database(_mongo().database(url).name)

    def backup(self, checkout: Checkout, url: str, file: Path) -> list[str]:  # noqa: ARG002
        """None: mongodump is not part of MongoDB, and the emulator has none."""
        return []

    async def settle(self, url: str) -> None:
        """Wait until the server has ended the transactions of a killed client: writing waits for them."""
        await asyncio.sleep(0.2)
        await asyncio.to_thread(_mongo().database(url).conversations.update_many, {}, {"$inc": {"settled": 1}})


KINDS = ("sqlite", "postgresql", "mongodb")


@contextmanager
def place(kind: str, folder: Path) -> Iterator[Place]:
    """Where databases of a kind are made, with a folder for files; a server that it starts runs as long."""
    with ExitStack() as stack:
        if kind == "postgresql":
            server = Server()
            stack.callback(server.remove)
            server.start()
            yield PostgresPlace(folder, server)
        elif kind == "mongodb":
            sys.path.append(str(ROOT / "tests"))  # the emulator is a part of the tests
            stack.callback(lambda: _mongo().close())
            yield MongoPlace(folder)
        else:
            yield Place(folder)


@contextmanager
def on_disk() -> Iterator[Path]:
    """A folder on the disk that all benches use, which goes afterwards."""
    with TemporaryDirectory(prefix="drill-", dir=disk()) as folder:
        yield Path(folder)


def _mongo() -> Any:
    from servers.mongo import mongo_databases

    return mongo_databases()


# --- programs -------------------------------------------------------------------------------------------------


class Done(NamedTuple):
    """What a program did: its exit code, and all that it printed."""

    code: int
    said: str


def chatkeep(checkout: Checkout, *arguments: str) -> list[str]:
    """A command line of a chatkeep."""
    return [str(checkout.python), "-P", "-m", "chatkeep", *arguments]


@cache
def _has_backup(checkout: Checkout) -> bool:
    done = subprocess.run(chatkeep(checkout, "backup", "--help"), capture_output=True, check=False, cwd=ROOT)
    return done.returncode == 0


async def run(command: Sequence[str]) -> Done:
    """Run a program to its end. Raises TimeoutError, and kills it, after PROGRAM_SECONDS."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=ROOT, env=environment()
    )
    try:
        async with asyncio.timeout(PROGRAM_SECONDS):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Done(process.returncode or 0, said.decode(errors="replace"))
