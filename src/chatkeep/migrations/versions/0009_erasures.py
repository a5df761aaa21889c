"""The traces of erasures: by a hash, when an owner was last erased."""

from alembic import context, op

revision = "0009"
down_revision = "0008"

# owner_hash: chatkeep.access.owner_hash. erased_at: microseconds since 1970, UTC.
SQLITE_UP = (
    """
    CREATE TABLE erasures (
        owner_hash BLOB NOT NULL PRIMARY KEY CHECK (length(owner_hash) = 32),
        erased_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    # They erase without leaving a trace.
    "UPDATE chatkeep_schema SET served_from = '0008'",
)

POSTGRESQL_UP = (
    # Both databases execute the same statements on this table, as on api_keys.
    """
    CREATE TABLE erasures (
        owner_hash bytea NOT NULL PRIMARY KEY CHECK (length(owner_hash) = 32),
        erased_at bigint NOT NULL
    )
    """,
    # They erase without leaving a trace.
    "UPDATE chatkeep_schema SET served_from = '0008'",
)

# The traces are lost: nothing before knows them.
DOWN = (
    "DROP TABLE erasures",
    "UPDATE chatkeep_schema SET served_from = '0007'",
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
