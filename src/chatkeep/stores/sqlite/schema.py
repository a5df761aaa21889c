"""The schema of a SQLite file: its revision, and the steps between revisions."""

from typing import Any, cast

import apsw

from chatkeep.migrations import REVISIONS, render
from chatkeep.stores.revisions import needs_migration


def read_revision(connection: apsw.Connection) -> str | None:
    """The revision of the schema that `connection` sees."""
    # A statement: APSW's table_exists answers from what this connection knew before another one made the table.
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'chatkeep_schema'").get is None:
        return None
    revision: Any = connection.execute("SELECT version_num FROM chatkeep_schema").get
    return cast("str | None", revision)


def is_outdated(connection: apsw.Connection, target: str, name: str) -> bool:
    """Whether the schema is not at `target` yet. Raises SchemaMismatch if it is newer than this version."""
    return needs_migration(read_revision(connection), target, REVISIONS, name)


def migrate(connection: apsw.Connection, target: str, name: str) -> None:
    """Bring the schema to `target` in the open transaction, unless another process has meanwhile."""
    if is_outdated(connection, target, name):
        connection.execute(render("sqlite", read_revision(connection), target)).fetchall()
        if target == "base":
            connection.execute("DROP TABLE chatkeep_schema")
