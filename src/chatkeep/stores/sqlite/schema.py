"""The schema of a SQLite file: its revision, and the steps between revisions."""

from typing import Any

import apsw

from chatkeep.migrations import REVISIONS, render
from chatkeep.stores.revisions import Schema, needs_migration


def read_schema(connection: apsw.Connection) -> Schema:
    """The schema that `connection` sees."""
    # A statement: APSW's table_exists answers from what this connection knew before another one made the table.
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = 'chatkeep_schema'").get is None:
        return Schema()
    row: Any = connection.execute("SELECT * FROM chatkeep_schema").fetchone()  # served_from comes with 0005
    return Schema() if row is None else Schema(*row)


def is_outdated(connection: apsw.Connection, target: str, name: str) -> bool:
    """Whether the schema is not at `target` yet. Raises SchemaMismatch if it is too new for this version."""
    return needs_migration(read_schema(connection), target, REVISIONS, name)


def migrate(connection: apsw.Connection, target: str, name: str) -> None:
    """Bring the schema to `target` in the open transaction, unless another process has meanwhile."""
    if is_outdated(connection, target, name):
        connection.execute(render("sqlite", read_schema(connection).revision, target)).fetchall()
        if target == "base":
            connection.execute("DROP TABLE chatkeep_schema")
