"""API keys, and the replies to requests that may be sent twice."""

from alembic import context, op

revision = "0002"
down_revision = "0001"

SQLITE_UP = (
    # secret_hash: SHA-256 of a secret of 256 random bits. Times are microseconds since 1970, UTC.
    """
    CREATE TABLE api_keys (
        id TEXT NOT NULL PRIMARY KEY,
        secret_hash BLOB NOT NULL CHECK (length(secret_hash) = 32),
        owner_id TEXT NOT NULL,
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        last_used_at INTEGER
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE INDEX api_keys_by_owner ON api_keys (owner_id)
    """,
    # status, body and location are null while the request is under way, which it is until lease_until at most.
    """
    CREATE TABLE requests (
        owner_id TEXT NOT NULL,
        key TEXT NOT NULL,
        fingerprint BLOB NOT NULL,
        status INTEGER,
        body BLOB,
        location TEXT,
        lease_until INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        PRIMARY KEY (owner_id, key)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE INDEX requests_by_expiry ON requests (owner_id, expires_at)
    """,
)


def _in_postgresql(statement: str) -> str:
    changes = (("STRICT, WITHOUT ROWID", ""), (" TEXT", ' text COLLATE "C"'), ("BLOB", "bytea"), ("INTEGER", "bigint"))
    for old, new in changes:
        statement = statement.replace(old, new)
    return statement


UP = {"sqlite": SQLITE_UP, "postgresql": tuple(map(_in_postgresql, SQLITE_UP))}
DOWN = ("DROP TABLE requests", "DROP TABLE api_keys")


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
