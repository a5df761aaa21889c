"""The schema of a PostgreSQL database: its revision, and the steps between revisions."""

import asyncio
import re
from contextlib import suppress

import asyncpg

from chatkeep.migrations import REVISIONS, render, steps
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.revisions import Schema, needs_migration

MIGRATION_SECONDS = 3_600.0
"""How long a migration may take, the wait for another one included; renaming an owner and distributing, too."""

MIGRATION_LOCK = 0x636B_6D69
"""The key of the advisory lock that one step of a migration at a time holds, until its transaction ends."""

INDEX_POLL_SECONDS = 0.5
"""How often it is looked whether another process has built an index."""

IN_BACKGROUND = re.compile(r"^\s*(?:--.*\n\s*)*CREATE (?:UNIQUE )?INDEX CONCURRENTLY (\w+)\s+ON (\w+)")

# served_from is a column from 0005 on.
SCHEMA = "SELECT to_json(s) ->> 'version_num', to_json(s) ->> 'served_from' FROM chatkeep_schema s"
INDEX_STATE = """
    SELECT i.indisvalid FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE c.relname = $1 AND pg_table_is_visible(c.oid)
"""


async def read_schema(connection: Connection) -> Schema:
    """The schema that `connection` sees."""
    # Not to_regclass: in a transaction that waited it answers from what its session knew before.
    there = "SELECT 1 FROM pg_class WHERE relname = 'chatkeep_schema' AND pg_table_is_visible(oid)"
    if await connection.fetchval(there) is None:
        return Schema()
    row = await connection.fetchrow(SCHEMA)
    return Schema() if row is None else Schema(*row)


def index_of(step: str) -> tuple[str, str] | None:
    """The index that a step builds while others write, which no transaction can, and its table; None for others."""
    found = IN_BACKGROUND.match(step)
    return (found[1], found[2]) if found else None


async def execute(connection: Connection, before: str | None, step: str, target: str) -> None:
    """Execute a step in the open transaction, unless the schema is not at the revision before it any more."""
    await connection.execute(f"SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    if (await read_schema(connection)).revision == before:
        await connection.execute(step.replace("INDEX CONCURRENTLY", "INDEX IF NOT EXISTS"))
        if target == "base" and before == REVISIONS[0]:
            await connection.execute("DROP TABLE chatkeep_schema")


async def build(connection: Connection, before: str | None, step: str, index: str, table: str) -> None:
    """Build an index while others write, or wait for the process that does. What a killed one left is dropped."""
    while (await read_schema(connection)).revision == before:
        valid = await connection.fetchval(INDEX_STATE, index)
        if valid:
            return
        if valid is None:
            with suppress(asyncpg.DuplicateTableError, asyncpg.DeadlockDetectedError):  # another process was faster
                await connection.execute(step)
        elif not await drop_what_is_left(connection, index, table):
            await asyncio.sleep(INDEX_POLL_SECONDS)


async def drop_what_is_left(connection: Connection, index: str, table: str) -> bool:
    """Drop an index that nobody builds any more; False if somebody may: who builds one holds this lock of its table."""
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE NOWAIT")
            if await connection.fetchval(INDEX_STATE, index) is False:
                await connection.execute(f"DROP INDEX {index}")
    except asyncpg.LockNotAvailableError:
        return False
    return True


def steps_to(schema: Schema, target: str, name: str) -> list[tuple[str | None, str]]:
    """The steps that bring the schema to `target`, each with the revision before it. Raises SchemaMismatch.

    An empty database takes one: nobody waits for it.
    """
    if not needs_migration(schema, target, REVISIONS, name):
        return []
    if schema.revision is None:
        return [(None, render("postgresql", None, target))]
    return steps("postgresql", schema.revision, target)
