"""The schema of a PostgreSQL database: its revision, and the steps between revisions."""

from chatkeep.migrations import REVISIONS, render
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.revisions import needs_migration

MIGRATION_SECONDS = 3_600.0
"""How long a migration may take, the wait for another one included; renaming an owner and distributing, too."""

MIGRATION_LOCK = 0x636B_6D69
"""The key of the advisory lock that one migration at a time holds, until its transaction ends."""


async def read_revision(connection: Connection) -> str | None:
    """The revision of the schema that `connection` sees."""
    # Not to_regclass: in a transaction that waited it answers from what its session knew before.
    there = "SELECT 1 FROM pg_class WHERE relname = 'chatkeep_schema' AND pg_table_is_visible(oid)"
    if await connection.fetchval(there) is None:
        return None
    revision: str | None = await connection.fetchval("SELECT version_num FROM chatkeep_schema")
    return revision


async def migrate(connection: Connection, target: str, name: str) -> None:
    """Bring the schema to `target` in the open transaction; of many processes one migrates, the others wait."""
    await connection.execute(f"SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
    current = await read_revision(connection)
    if needs_migration(current, target, REVISIONS, name):
        await connection.execute(render("postgresql", current, target))
        if target == "base":
            await connection.execute("DROP TABLE chatkeep_schema")
