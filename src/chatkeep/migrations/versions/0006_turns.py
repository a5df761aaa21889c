"""Turns: leases of answers that are being made, their events, and an index of answers for statistics."""

from alembic import context, op

from chatkeep.migrations import STEP

revision = "0006"
down_revision = "0005"

# messages_by_model has all that statistics read, so that no message is read for them. Only answers are in it, and only
# when they have ended.
SQLITE_UP = (
    # ON UPDATE CASCADE: a process of 0005 that renames an owner does not know these tables.
    """
    CREATE TABLE turns (
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        message_id BLOB NOT NULL CHECK (length(message_id) = 16),
        parent_id BLOB NOT NULL,
        worker BLOB NOT NULL,
        until INTEGER NOT NULL,
        stopping INTEGER NOT NULL DEFAULT 0 CHECK (stopping IN (0, 1)),
        PRIMARY KEY (owner_id, conversation_id, message_id),
        FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id)
            ON DELETE CASCADE ON UPDATE CASCADE
    ) STRICT, WITHOUT ROWID
    """,
    # With rowids: the data of an event may be large.
    """
    CREATE TABLE turn_events (
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        message_id BLOB NOT NULL,
        n INTEGER NOT NULL CHECK (n >= 1),
        kind TEXT NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (owner_id, conversation_id, message_id, n),
        FOREIGN KEY (owner_id, conversation_id, message_id) REFERENCES turns ON DELETE CASCADE ON UPDATE CASCADE
    ) STRICT
    """,
    # The model is in it because SQLite reads it even though the condition of the index says that there is one.
    """
    CREATE INDEX messages_by_model ON messages
        (owner_id, created_at, status, duration_ms, input_tokens, output_tokens, model) WHERE model IS NOT NULL
    """,
    # Earlier ones do not know messages in progress.
    "UPDATE chatkeep_schema SET served_from = '0005'",
)

# Answers in progress keep their text. It is to be indexed.
SQLITE_DOWN = (
    """
    UPDATE store_state SET value = min(coalesce(value, rid), rid)
    FROM (SELECT min(m.rid) AS rid FROM turns t JOIN messages m
        ON m.owner_id = t.owner_id AND m.conversation_id = t.conversation_id AND m.id = t.message_id)
    WHERE name = 'unindexed_from' AND rid IS NOT NULL
    """,
    """
    UPDATE messages SET status = 'interrupted', content = coalesce((
        SELECT group_concat(json_extract(e.data, '$.text'), '' ORDER BY e.n) FROM turn_events e
        WHERE e.owner_id = messages.owner_id AND e.conversation_id = messages.conversation_id
            AND e.message_id = messages.id AND e.kind = 'text'), '')
    FROM turns t
    WHERE messages.owner_id = t.owner_id AND messages.conversation_id = t.conversation_id
        AND messages.id = t.message_id AND messages.status = 'in_progress'
    """,
    "UPDATE messages SET status = 'interrupted' WHERE status = 'in_progress'",
    "DROP INDEX messages_by_model",
    "DROP TABLE turn_events",
    "DROP TABLE turns",
    "UPDATE chatkeep_schema SET served_from = '0004'",
)

# Whoever wants a table waits behind a step that wants it alone, so that this gives up soon, and begins again.
ALONE = (
    "LOCK TABLE conversations IN SHARE UPDATE EXCLUSIVE MODE",
    "SET LOCAL lock_timeout = '500ms'",
)

# Each step is a transaction of its own, and may be executed again.
POSTGRESQL_UP = (
    """
    CREATE INDEX CONCURRENTLY messages_by_model ON messages
        (owner_id, created_at, status, duration_ms, input_tokens, output_tokens) WHERE model IS NOT NULL
    """,
    STEP,
    *ALONE,  # a foreign key locks the table that it refers to
    # Leases are updated all the time and are few: with room in each page, and no index of what changes, an update
    # needs no other page. `number` stands for the ids in events, whose keys would be longer than their text.
    """
    CREATE TABLE turns (
        owner_id text COLLATE "C" NOT NULL,
        conversation_id uuid NOT NULL,
        message_id uuid NOT NULL,
        number integer NOT NULL,
        parent_id uuid NOT NULL,
        worker uuid NOT NULL,
        until timestamptz NOT NULL,
        stopping boolean NOT NULL DEFAULT false,
        PRIMARY KEY (owner_id, conversation_id, message_id),
        UNIQUE (owner_id, number)
    ) WITH (fillfactor = 50)
    """,
    # Of text and reasoning `data` is what there is beside the text, mostly nothing; of other kinds it is everything.
    """
    CREATE TABLE turn_events (
        owner_id text COLLATE "C" NOT NULL,
        turn integer NOT NULL,
        n integer NOT NULL CHECK (n >= 1),
        kind text NOT NULL,
        text text,
        data text,
        PRIMARY KEY (owner_id, turn, n)
    )
    """,
    # Citus refuses them before the tables are distributed, which makes them then.
    """
    DO $$ BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus') THEN
            ALTER TABLE turns ADD CONSTRAINT turns_owner_id_conversation_id_fkey
                FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE;
            ALTER TABLE turn_events ADD CONSTRAINT turn_events_owner_id_turn_fkey
                FOREIGN KEY (owner_id, turn) REFERENCES turns (owner_id, number) ON DELETE CASCADE;
        END IF;
    END $$
    """,
    # Earlier ones do not know messages in progress.
    "UPDATE chatkeep_schema SET served_from = '0005'",
)

POSTGRESQL_DOWN = (
    # What there is of answers in progress; their words are indexed when the database is opened.
    """
    UPDATE messages m SET status = 'interrupted', terms = NULL, content = coalesce((
        SELECT string_agg(e.text, '' ORDER BY e.n)
        FROM turns t JOIN turn_events e ON e.owner_id = t.owner_id AND e.turn = t.number AND e.kind = 'text'
        WHERE t.owner_id = m.owner_id AND t.conversation_id = m.conversation_id AND t.message_id = m.id), m.content)
    WHERE status = 'in_progress'
    """,
    "DROP INDEX messages_by_model",
    "DROP TABLE turn_events",
    "DROP TABLE turns",
    "UPDATE chatkeep_schema SET served_from = '0004'",
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}
DOWN = {"sqlite": SQLITE_DOWN, "postgresql": POSTGRESQL_DOWN}


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN[context.get_context().dialect.name]:
        op.execute(statement)
