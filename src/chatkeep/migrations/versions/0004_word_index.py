"""The version of the rule by which messages were split into words, and how far another one has come."""

from alembic import context, op

revision = "0004"
down_revision = "0003"

# rule: all messages are indexed by it, or by a later one. target: the rule by which they are being indexed anew, up to
# the conversation with the id `place`.
SQLITE_UP = (
    """
    CREATE TABLE word_index (
        number INTEGER NOT NULL PRIMARY KEY CHECK (number = 1),
        rule INTEGER NOT NULL,
        target INTEGER,
        place BLOB
    ) STRICT
    """,
    """
    INSERT INTO word_index (number, rule) VALUES (1, 1)
    """,
)

POSTGRESQL_UP = (
    """
    CREATE TABLE word_index (
        number integer NOT NULL PRIMARY KEY CHECK (number = 1),
        rule integer NOT NULL,
        target integer,
        place uuid
    )
    """,
    """
    INSERT INTO word_index (number, rule) VALUES (1, 1)
    """,
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}
DOWN = ("DROP TABLE word_index",)


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
