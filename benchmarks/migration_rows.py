"""All rows of a database, as sums that do not depend on their order, and whether the database itself is sound.

Rows are summed over the columns that were there before a migration: a revision may add columns, and what it removes
is named in `Rows.gone`. Index data is left out: searches are compared instead.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import apsw
import asyncpg
import bson
from bson.codec_options import CodecOptions
from pymongo import MongoClient

from benchmarks.postgres_server import plain

TABLES = ("users", "conversations", "messages", "api_keys", "requests")
INDEX_DATA = {"terms", "words", "unindexed", "settled"}
"""Columns that are made from others, and a mark that a drill leaves."""

type Columns = Mapping[str, tuple[str, ...]]
"""The columns of each table."""


class Sum(NamedTuple):
    """The rows of a table: how many, and the sum of a hash of each."""

    rows: int
    hashes: int


@dataclass(frozen=True)
class Rows:
    """All rows of a database."""

    columns: Columns
    """The columns that were summed."""
    sums: Mapping[str, Sum]
    gone: frozenset[str] = frozenset()
    """Columns that should have been summed, and are not there: `table.column`."""

    def differences(self, after: "Rows") -> list[str]:
        """The tables whose rows differ afterwards."""
        return [
            f"{table}: {before.rows:,} rows before, {after.sums[table].rows:,} after"
            + ("" if before.rows != after.sums[table].rows else ", with other values")
            for table, before in self.sums.items()
            if before != after.sums[table]
        ]


@dataclass
class Soundness:
    """What a database says of itself."""

    revision: str | None
    faults: list[str] = field(default_factory=list)
    schema: frozenset[str] = frozenset()
    """Its tables, columns, indexes and constraints, to be compared with another's."""


async def rows(url: str, columns: Columns | None = None) -> Rows:
    """Sum all rows over these columns, or over all that are there."""
    there = await _there(url)
    wanted = there if columns is None else columns
    gone = frozenset(f"{table}.{name}" for table in wanted for name in wanted[table] if name not in there[table])
    kept = {table: tuple(name for name in wanted[table] if name in there[table]) for table in TABLES}
    return Rows(kept, await _sums(url, kept), gone)


async def soundness(url: str) -> Soundness:
    """The revision of a database, and what is wrong with it."""
    return await _dispatch(url, _sqlite_soundness, _postgres_soundness, _mongo_soundness)


async def schema(url: str) -> frozenset[str]:
    """The tables, columns, indexes and constraints of a database."""
    return await _dispatch(url, _sqlite_schema, _postgres_schema, _mongo_schema)


async def size(url: str) -> int:
    """Bytes that a database takes on the disk; 0 if nothing tells."""
    return await _dispatch(url, _sqlite_size, _postgres_size, _mongo_size)


async def revision(url: str) -> str | None:
    """The revision of a database."""
    return await _dispatch(url, _sqlite_revision, _postgres_revision, _mongo_revision)


async def _there(url: str) -> Columns:
    found = await _dispatch(url, _sqlite_columns, _postgres_columns, _mongo_columns)
    return {table: tuple(name for name in found[table] if name not in INDEX_DATA) for table in TABLES}


async def _sums(url: str, columns: Columns) -> Mapping[str, Sum]:
    return await _dispatch(
        url,
        lambda connection: _sqlite_sums(connection, columns),
        lambda connection: _postgres_sums(connection, columns),
        lambda database: _mongo_sums(database, columns),
    )


async def _dispatch[T](
    url: str,
    sqlite: Callable[[apsw.Connection], T],
    postgres: Callable[[Any], Awaitable[T]],
    mongo: Callable[[Any], T],
) -> T:
    """Call one of three functions with a connection to the database."""
    if url.startswith("postgresql"):
        connection = await asyncpg.connect(plain(url))
        try:
            return await postgres(connection)
        finally:
            await connection.close()
    if url.startswith("sqlite"):
        return await asyncio.to_thread(_call_sqlite, url, sqlite)
    return await asyncio.to_thread(_call_mongo, url, mongo)


def _call_sqlite[T](url: str, function: Callable[[apsw.Connection], T]) -> T:
    connection = apsw.Connection(str(file_of(url)), flags=apsw.SQLITE_OPEN_READWRITE)
    connection.set_busy_timeout(10_000)
    try:
        return function(connection)
    finally:
        connection.close()


def _call_mongo[T](url: str, function: Callable[[Any], T]) -> T:
    with MongoClient[dict[str, Any]](url, uuidRepresentation="standard") as client:
        return function(client[urlsplit(url).path.removeprefix("/")])


def file_of(url: str) -> Path:
    """The file of a SQLite database."""
    return Path(url.removeprefix("sqlite:///").partition("?")[0])


def _hash(text: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


# --- SQLite -------------------------------------------------------------------------------------------------------


def _sqlite_columns(connection: apsw.Connection) -> Columns:
    return {
        table: tuple(str(row[1]) for row in connection.execute(f"PRAGMA table_info({table})") if row[1] != "rid")
        for table in TABLES
    }


def _sqlite_sums(connection: apsw.Connection, columns: Columns) -> Mapping[str, Sum]:
    sums = {}
    for table, names in columns.items():
        count = hashes = 0
        for row in connection.execute(f"SELECT {', '.join(names)} FROM {table}"):
            count, hashes = count + 1, hashes + _hash(repr(row).encode())
        sums[table] = Sum(count, hashes)
    return sums


def _sqlite_soundness(connection: apsw.Connection) -> Soundness:
    faults = [str(row[0]) for row in connection.execute("PRAGMA integrity_check") if row[0] != "ok"]
    faults += [f"foreign key: {row}" for row in connection.execute("PRAGMA foreign_key_check")]
    return Soundness(_sqlite_revision(connection), faults, _sqlite_schema(connection))


def _sqlite_schema(connection: apsw.Connection) -> frozenset[str]:
    return frozenset(repr(row) for row in connection.execute("SELECT type, name, sql FROM sqlite_schema"))


def _sqlite_revision(connection: apsw.Connection) -> str | None:
    found = connection.execute("SELECT version_num FROM chatkeep_schema").get
    return None if found is None else str(found)


def _sqlite_size(connection: apsw.Connection) -> int:
    file = Path(connection.filename)
    return sum(path.stat().st_size for path in file.parent.glob(f"{file.name}*"))


# --- PostgreSQL ---------------------------------------------------------------------------------------------------

BROKEN = {
    "invalid index": "SELECT indexrelid::regclass FROM pg_index WHERE NOT (indisvalid AND indisready AND indislive)",
    "constraint not validated": "SELECT conrelid::regclass || '.' || conname FROM pg_constraint WHERE NOT convalidated",
    "trigger disabled": "SELECT tgrelid::regclass || '.' || tgname FROM pg_trigger WHERE tgenabled = 'D'",
    "prepared transaction": "SELECT gid FROM pg_prepared_xacts",
}
"""What a migration that was cut off could leave behind."""


SCHEMA = (
    "SELECT relname, relkind::text, reloptions FROM pg_class WHERE relnamespace = 'public'::regnamespace",
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'",
    """
    SELECT conrelid::regclass, conname, pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
    """,
    "SELECT pg_get_functiondef(oid) FROM pg_proc WHERE pronamespace = 'public'::regnamespace",
    """
    SELECT attrelid::regclass, attname, format_type(atttypid, atttypmod), attnotnull, pg_get_expr(adbin, adrelid)
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attnum > 0 AND NOT attisdropped
        AND attrelid IN (SELECT oid FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace)
    """,
)


async def _postgres_columns(connection: Any) -> Columns:
    statement = """
        SELECT attname FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped
        ORDER BY attnum
    """
    return {table: tuple(row[0] for row in await connection.fetch(statement, table)) for table in TABLES}


async def _postgres_sums(connection: Any, columns: Columns) -> Mapping[str, Sum]:
    sums = {}
    for table, names in columns.items():
        row = f"hashtextextended(ROW({', '.join(names)})::text, 0)::numeric"
        found = await connection.fetchrow(f"SELECT count(*), coalesce(sum({row}), 0) FROM {table}")
        sums[table] = Sum(found[0], int(found[1]))
    return sums


async def _postgres_soundness(connection: Any) -> Soundness:
    faults = [f"{name}: {row[0]}" for name, query in BROKEN.items() for row in await connection.fetch(query)]
    return Soundness(await _postgres_revision(connection), faults, await _postgres_schema(connection))


async def _postgres_schema(connection: Any) -> frozenset[str]:
    found = [repr(tuple(map(str, row))) for query in SCHEMA for row in await connection.fetch(query)]
    return frozenset(found)


async def _postgres_revision(connection: Any) -> str | None:
    found: str | None = await connection.fetchval("SELECT version_num FROM chatkeep_schema")
    return found


async def _postgres_size(connection: Any) -> int:
    return int(await connection.fetchval("SELECT pg_database_size(current_database())"))


# --- MongoDB ------------------------------------------------------------------------------------------------------

CODEC: CodecOptions[dict[str, Any]] = CodecOptions(uuid_representation=bson.binary.UuidRepresentation.STANDARD)


def _mongo_columns(database: Any) -> Columns:
    names: dict[str, dict[str, None]] = {table: {} for table in TABLES}
    for table in TABLES:
        for document in database[table].find():
            names[table].update(dict.fromkeys(document))
    return {table: tuple(found) for table, found in names.items()}


def _mongo_sums(database: Any, columns: Columns) -> Mapping[str, Sum]:
    sums = {}
    for table, names in columns.items():
        count = hashes = 0
        for document in database[table].find():
            kept = {name: document[name] for name in names if name in document}
            count, hashes = count + 1, hashes + _hash(bson.encode(kept, codec_options=CODEC))
        sums[table] = Sum(count, hashes)
    return sums


def _mongo_soundness(database: Any) -> Soundness:
    broken = [
        f"{table}: no validator"
        for table in TABLES
        if not next(database.list_collections(filter={"name": table}))["options"].get("validator")
    ]
    return Soundness(_mongo_revision(database), broken, _mongo_schema(database))


def _mongo_schema(database: Any) -> frozenset[str]:
    collections = [each["name"] for each in database.list_collections()]
    return frozenset(f"{name}: {index['name']}" for name in collections for index in database[name].list_indexes())


def _mongo_revision(database: Any) -> str | None:
    names = [name for name in database.list_collection_names() if name not in TABLES]
    for name in names:
        found = database[name].find_one({"_id": "schema"})
        if found:
            return str(found["revision"])
    return None


def _mongo_size(_: Any) -> int:
    return 0
