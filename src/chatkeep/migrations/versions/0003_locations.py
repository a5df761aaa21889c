"""Kept replies by the conversation that they show, and no conversation that was updated in the future."""

from alembic import context, op

revision = "0003"
down_revision = "0002"

SQLITE_UP = (
    """
    CREATE INDEX requests_by_location ON requests (owner_id, location) WHERE location IS NOT NULL
    """,
    """
    UPDATE conversations SET updated_at = created_at
    WHERE updated_at > CAST(unixepoch('subsec') * 1000000 AS INTEGER) AND updated_at > created_at
    """,
)

POSTGRESQL_UP = (
    """
    CREATE INDEX requests_by_location ON requests (owner_id, location) WHERE location IS NOT NULL
    """,
    """
    UPDATE conversations SET updated_at = created_at WHERE updated_at > now() AND updated_at > created_at
    """,
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}
DOWN = ("DROP INDEX requests_by_location",)


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
