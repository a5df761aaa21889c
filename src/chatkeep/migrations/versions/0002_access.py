"""API keys, and the stored replies of idempotent requests."""

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
    # status, body and location are null while the request is being executed: until lease_until at the latest.
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

POSTGRESQL_UP = (
    # Times are microseconds, as on SQLite: both databases execute the same statements on these tables.
    """
    CREATE TABLE api_keys (
        id text COLLATE "C" NOT NULL PRIMARY KEY,
        secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
        owner_id text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        scopes text COLLATE "C" NOT NULL,
        created_at bigint NOT NULL,
        expires_at bigint,
        last_used_at bigint
    )
    """,
    """
    CREATE INDEX api_keys_by_owner ON api_keys (owner_id)
    """,
    """
    CREATE TABLE requests (
        owner_id text COLLATE "C" NOT NULL,
        key text COLLATE "C" NOT NULL,
        fingerprint bytea NOT NULL,
        status bigint,
        body bytea,
        location text COLLATE "C",
        lease_until bigint NOT NULL,
        expires_at bigint NOT NULL,
        PRIMARY KEY (owner_id, key)
    )
    """,
    """
    CREATE INDEX requests_by_expiry ON requests (owner_id, expires_at)
    """,
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}
DOWN = ("DROP TABLE requests", "DROP TABLE api_keys")


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN:
        op.execute(statement)
