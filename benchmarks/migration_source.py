"""Filled databases of earlier commits, of which every round of the migration drill has a copy.

A commit's code is unpacked once into the cache, with an environment of its own. Its database is filled once, too, and
kept beside it: a SQLite file, or the data folder of a PostgreSQL server, in which the databases are templates. What is
in MongoDB is filled anew in each run.
"""

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import asyncpg

from benchmarks.attack_server import Checkout, environment
from benchmarks.children import ROOT
from benchmarks.drill_places import MongoPlace, Place, PostgresPlace, chatkeep
from benchmarks.postgres_server import Server, plain

HERE = Path(__file__).parent
ORIGIN, PREVIOUS = "origin", "previous"
"""The names of the two filled databases: as the old commit wrote it, and migrated by the commit before the head."""

BATCH = 2_000
"""Documents that are copied at a time."""

type Read = dict[str, str]
"""What a chatkeep reads: a line for each conversation and each search, by its owner and id."""


# --- commits ------------------------------------------------------------------------------------------------------


def checkout_of(given: str, cache: Path) -> Checkout:
    """The chatkeep of a commit; or of a Python, or of a folder with a .venv, if that is given."""
    if Path(given).exists():
        return Checkout.at(given)
    folder = cache / f"chatkeep-{given}"
    if not (folder / "installed").exists():
        print(f"unpacking {given} into {folder}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", given], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x"], cwd=folder, input=archive, check=True)
        without = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
        uv = os.environ.get("UV", "uv")
        subprocess.run([uv, "sync", "--frozen", "--quiet"], cwd=folder, env=without, check=True)
        (folder / "installed").touch()
    return Checkout.at(str(folder))


# --- databases ----------------------------------------------------------------------------------------------------


class Source(Place):
    """Named databases, and copies of them. Its methods block."""

    def __init__(self, folder: Path, kept: Path) -> None:
        Place.__init__(self, folder)  # not that of PostgresPlace, which is next
        self.kept = kept
        """Where named databases stay for the next run."""

    pid: int | None = None
    """The process of a database server that is measured, too."""

    @property
    def is_kept(self) -> bool:
        """Whether the databases of an earlier run are there."""
        return (self.kept / "manifest.json").exists()

    def named(self, name: str) -> str:
        """The URL of the database of this name, which is made if it is not there."""
        return f"sqlite:///{self.kept / name}.db"

    def copy(self, name: str) -> str:
        """The URL of a copy of the database of this name."""
        url = self.fresh()
        shutil.copyfile(self.kept / f"{name}.db", url.removeprefix("sqlite:///"))
        return url

    def prepare(self, url: str) -> None:
        """Make what a server needs beside the schema, which is there."""

    def keep(self) -> None:
        """Keep the named databases for the next run."""


class PostgresSource(Source, PostgresPlace):
    """The same on a PostgreSQL server, whose data folder is kept."""

    def __init__(self, folder: Path, kept: Path, server: Server) -> None:
        super().__init__(folder, kept)
        self._server = server
        if self.is_kept:
            settings = (server.data / "postgresql.conf").read_text()
            shutil.rmtree(server.data)
            _copy(kept / "data", server.data)
            (server.data / "postgresql.conf").write_text(settings)
        server.start()
        self.pid = server.pid

    def named(self, name: str) -> str:
        """The URL of the database of this name, which is made if it is not there."""
        if not self._query("SELECT 1 FROM pg_database WHERE datname = $1", name):
            self._execute(f'CREATE DATABASE "{name}"')
        return self._server.url(name)

    def copy(self, name: str) -> str:
        """The URL of a copy of the database of this name."""
        copied = f"drill_{uuid4().hex}"
        self._execute(f'CREATE DATABASE "{copied}" TEMPLATE "{name}" STRATEGY FILE_COPY')
        return self._server.url(copied)

    def keep(self) -> None:
        """Keep the data folder."""
        self._server.stop()
        shutil.rmtree(self.kept / "data", ignore_errors=True)
        _copy(self._server.data, self.kept / "data")
        self._server.start()
        self.pid = self._server.pid

    def _query(self, statement: str, *values: str) -> Any:
        async def fetch() -> Any:
            connection = await asyncpg.connect(plain(self._server.url()))
            try:
                return await connection.fetchval(statement, *values)
            finally:
                await connection.close()

        return asyncio.run(fetch())


class MongoSource(Source, MongoPlace):
    """The same on MongoDB or its emulator, where nothing is kept."""

    is_kept = False

    def __init__(self, folder: Path, kept: Path, databases: Any) -> None:
        super().__init__(folder, kept)
        self._databases = databases
        self._named: dict[str, str] = {}

    @property
    def description(self) -> str:
        """Which server this is."""
        return str(self._databases.version())

    @property
    def emulated(self) -> bool:
        """Whether it is not MongoDB."""
        return bool(self._databases.emulated)

    def named(self, name: str) -> str:
        """The URL of the database of this name, which is made if it is not there."""
        if name not in self._named:
            self._named[name] = self._databases.empty()
        return self._named[name]

    def prepare(self, url: str) -> None:
        """Give the emulator an index: it reads whole collections where a compound one would serve."""
        if self.emulated:
            self._databases.database(url).messages.create_index("conversation_id", name="emulator")

    def copy(self, name: str) -> str:
        """The URL of a copy of the database of this name: its validators, indexes and documents."""
        url = str(self._databases.empty())
        source, target = (self._databases.database(each) for each in (self._named[name], url))
        for each in list(source.list_collections()):
            options = {key: value for key, value in each.get("options", {}).items() if key == "validator"}
            collection = target.create_collection(each["name"], **options)
            for index in source[each["name"]].list_indexes():
                kept = {key: index[key] for key in ("name", "unique", "partialFilterExpression") if index.get(key)}
                if index["name"] != "_id_":
                    collection.create_index(list(index["key"].items()), **kept)
            documents = list(source[each["name"]].find())
            for first in range(0, len(documents), BATCH):
                collection.insert_many(documents[first : first + BATCH], ordered=False)
        return url


def _copy(source: Path, target: Path) -> None:
    """Copy a folder with its owners."""
    target.parent.mkdir(parents=True, exist_ok=True)
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)


def scripts() -> str:
    """A hash of what fills and reads a database: what is kept is of no use to others."""
    texts = [(HERE / f"migration_{name}.py").read_bytes() for name in ("fill", "read")]
    return hashlib.sha256(b"".join(texts)).hexdigest()[:8]


@contextmanager
def opened(kind: str, cache: Path, name: str) -> Iterator[Source]:
    """The databases of one kind. `name` tells their content."""
    kept = cache / f"{kind}-{name}"
    kept.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="copies-", dir=cache) as folder:
        if kind == "postgresql":
            server = Server(shared_buffers="256MB", max_wal_size="4GB")
            try:
                yield PostgresSource(Path(folder), kept, server)
            finally:
                server.remove()
        elif kind == "mongodb":
            sys.path.append(str(ROOT / "tests"))  # the emulator is a part of the tests
            from servers.mongo import mongo_databases

            try:
                yield MongoSource(Path(folder), kept, mongo_databases())
            finally:
                mongo_databases().close()
        else:
            yield Source(Path(folder), kept)


# --- what they hold -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filled:
    """What is in the databases."""

    owners: Sequence[str]
    conversations: int
    messages: int
    read: Read
    """What the commit reads that wrote it."""


@dataclass(frozen=True)
class Wanted:
    """What is to be in them."""

    origin: Checkout
    previous: Checkout
    messages: int
    seconds: float
    """Longest time that filling takes: it ends then with fewer messages."""


def filled(source: Source, wanted: Wanted) -> Filled:
    """Fill the databases, unless an earlier run has."""
    manifest, lines = source.kept / "manifest.json", source.kept / "read.txt"
    if not source.is_kept:
        said = _fill(source, wanted)
        _upgrade_previous(source, wanted.previous)
        source.keep()
        manifest.write_text(said)
    found = json.loads(manifest.read_text())
    return Filled(found["owners"], found["conversations"], found["messages"], parsed(lines.read_text()))


def _fill(source: Source, wanted: Wanted) -> str:
    """Have the old commit fill a database and read it; return its manifest."""
    url = source.named(ORIGIN)
    seconds = [str(wanted.seconds)] if wanted.seconds else []
    _upgrade(wanted.origin, url)
    source.prepare(url)
    print(f"{source.kind}: the old commit writes {wanted.messages:,} messages", flush=True)
    said = wanted.origin.run(str(HERE / "migration_fill.py"), url, str(wanted.messages), *seconds).splitlines()[-1]
    print(f"{source.kind}: the old commit reads them", flush=True)
    (source.kept / "read.txt").write_text(read_text(wanted.origin, url, json.loads(said)["owners"]))
    return said


def _upgrade_previous(source: Source, previous: Checkout) -> None:
    """Make the database of the commit before the head."""
    print(f"{source.kind}: the commit before the head migrates a copy", flush=True)
    copied = source.copy(ORIGIN)
    _upgrade(previous, copied)
    _rename(source, copied)


def _upgrade(checkout: Checkout, url: str) -> None:
    """Have a chatkeep migrate a database."""
    command = chatkeep(checkout, "db", "upgrade", "--database-url", url)
    subprocess.run(command, check=True, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL)


def _rename(source: Source, url: str) -> None:
    """Give a copy the name PREVIOUS."""
    if isinstance(source, PostgresSource):
        source._execute(f'ALTER DATABASE "{plain(url).rpartition("/")[2]}" RENAME TO "{PREVIOUS}"')
    elif isinstance(source, MongoSource):
        source._named[PREVIOUS] = url
    else:
        Path(url.removeprefix("sqlite:///")).rename(source.kept / f"{PREVIOUS}.db")


def read_text(checkout: Checkout, url: str, owners: Sequence[str], every: int = 1) -> str:
    """What a chatkeep reads, as it prints it."""
    command = [str(checkout.python), "-P", str(HERE / "migration_read.py"), url, str(every)]
    done = subprocess.run(
        command, input=json.dumps(owners), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT, env=environment()
    )
    return done.stdout


def parsed(text: str) -> Read:
    """The lines by owner and id."""
    lines = (line.rsplit(" ", 2) for line in text.splitlines())
    return {name: f"{count} {digest}" for name, count, digest in lines}
