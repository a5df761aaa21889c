"""Databases on a MongoDB server: the one that CHATKEEP_TEST_MONGODB_URL names, a mongod on PATH, or an emulator.

The emulator is what a machine without MongoDB has; the header of the run says what it only imitates.
"""

import asyncio
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

from benchmarks.mongodb_server import LIFETIME, Mongod, with_database
from pymongo import MongoClient
from pymongo.errors import OperationFailure, PyMongoError

from chatkeep import open_store
from chatkeep.stores.mongo.providers import extractive

EMULATED = (
    "emulated: transactions take turns (conflicts are injected), durability, read and write concerns, explain, mongos"
)
COLLECTIONS = (
    "conversations",
    "messages",
    "turns",
    "turn_events",
    "users",
    "projects",
    "documents",
    "chunks",
    "vectors",
    "llm_providers",
    "api_keys",
    "requests",
    "erasures",
)


LARGE = 100


class Emulator:
    """mongoeco's server in a process of its own; what it holds is in memory."""

    kind = f"mongoeco, an emulator ({EMULATED})"

    def __init__(self) -> None:
        if sys.version_info < (3, 13):
            raise RuntimeError(
                "no MongoDB: set CHATKEEP_TEST_MONGODB_URL, or put mongod on PATH; the emulator needs Python 3.13"
            )
        command = [sys.executable, "-m", "servers.mongo_emulator"]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]
        )
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        if not port:
            raise RuntimeError("no MongoDB: the emulator did not start")
        self.url = f"mongodb://127.0.0.1:{port}/?directConnection=true"

    def remove(self) -> None:
        """End it."""
        self.process.communicate()


class Given:
    """The server that the environment names."""

    kind = "the server of CHATKEEP_TEST_MONGODB_URL"

    def __init__(self, url: str) -> None:
        self.url = url

    def remove(self) -> None:
        """Leave it running."""


class Databases:
    """Fresh databases on the server that the tests use."""

    def __init__(self) -> None:
        given, program = os.environ.get("CHATKEEP_TEST_MONGODB_URL"), shutil.which("mongod")
        self.server = Given(given) if given else Mongod(program) if program else Emulator()
        self.client: MongoClient[dict[str, Any]] = MongoClient(self.server.url, uuidRepresentation="standard")
        try:
            self._lifetime = self._end_transactions_after(LIFETIME)
        except BaseException:
            self.client.close()
            self.server.remove()
            raise
        self._made: set[str] = set()
        self._shared: str | None = None

    def _end_transactions_after(self, seconds: int) -> int | None:
        """Let a given server end the transactions of killed processes soon; returns how long it took before."""
        if not isinstance(self.server, Given):
            return None
        command = {"setParameter": 1, "transactionLifetimeLimitSeconds": seconds}
        with suppress(OperationFailure):  # where this is not allowed, tests with killed processes wait for a minute
            was: int = self.client.admin.command(command)["was"]
            return was
        return None

    @property
    def emulated(self) -> bool:
        """Whether the server is not MongoDB."""
        return isinstance(self.server, Emulator)

    def empty(self) -> str:
        """The URL of a new database without a schema."""
        name = f"chatkeep_{uuid4().hex}"
        self._made.add(name)
        return with_database(self.server.url, name)

    def clean(self) -> str:
        """The URL of a database as a new one is: mostly the same, emptied each time."""
        if self._shared is None:
            self._shared = self.migrated()
        counts = self._counts(self._shared) if self.emulated else dict.fromkeys(COLLECTIONS, 1)
        # The emulator is faster in making a database than in deleting many documents, 6 ms each.
        if sum(counts.values()) > LARGE:
            self.client.drop_database(self.database(self._shared).name)
            self._shared, counts = self.migrated(), {"llm_providers": 1}
        for name in filter(counts.get, COLLECTIONS):
            self.database(self._shared)[name].delete_many({})
        self.database(self._shared).llm_providers.insert_one(extractive())
        return self._shared

    def _counts(self, url: str) -> dict[str, int]:
        """How many documents the collections have: to look at one takes less than to delete nothing."""
        database = self.database(url)
        return {name: database[name].estimated_document_count() for name in COLLECTIONS}

    def migrated(self) -> str:
        """The URL of a new database with the newest schema."""
        url = self.empty()
        # In a thread of its own: fixtures ask for databases while a loop runs in theirs.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, _migrate(url)).result()
        if self.emulated:
            # The emulator reads whole collections where a compound index would serve.
            self.database(url).messages.create_index("conversation_id", name="emulator")
        return url

    def database(self, url: str) -> Any:
        """The database that a URL names, for a look beside the store."""
        return self.client[urlsplit(url).path.removeprefix("/")]

    def version(self) -> str:
        """Which server this is."""
        version = self.client.admin.command("buildInfo")["version"]
        return f"MongoDB {version}, {self.server.kind}"

    def close(self) -> None:
        """Remove what was made, and the server if the tests started it."""
        if self._lifetime is not None:
            self._end_transactions_after(self._lifetime)
        if isinstance(self.server, Given):
            for name in self._made:
                self.client.drop_database(name)
        self.client.close()
        self.server.remove()


async def _migrate(url: str) -> None:
    async with open_store(url):
        pass


@cache
def mongo_databases() -> Databases:
    """The databases of this run; the server starts with the first one. Raises where there is none to be had."""
    try:
        return Databases()
    except PyMongoError as error:
        raise RuntimeError(f"no MongoDB could be used: {error}") from error
