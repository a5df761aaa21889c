"""Parts, counts and answers in progress of messages; labels, projects and providers of conversations."""

from alembic import context, op

from chatkeep.migrations import STEP

revision = "0005"
down_revision = "0004"

# No row is rewritten: the text of the tables changes, as ALTER TABLE ADD COLUMN changes it, which would check every row
# of a STRICT table for each column (8 s for a million messages), and the text of a CHECK, as SQLite documents it
# (lang_altertable.html, 7). It comes first: what follows tells other connections of a new schema.
STATUSES = "CHECK (status IN (''complete'',", "CHECK (status IN (''in_progress'', ''complete'',"
LAST = "fingerprint BLOB NOT NULL,"
MORE = f"{LAST} parts TEXT, model TEXT, input_tokens INTEGER, output_tokens INTEGER, duration_ms INTEGER,"
LAST_OF_CONVERSATIONS = "deleted_at INTEGER,"
MORE_OF_CONVERSATIONS = f"{LAST_OF_CONVERSATIONS} labels TEXT, project_id BLOB, llm_provider_id BLOB,"


def _rewritten(table: str, *pairs: tuple[str, str]) -> str:
    """The statement that changes the text of a table."""
    text = "sql"
    for before, after in pairs:
        text = f"replace({text}, '{before}', '{after}')"
    return f"UPDATE sqlite_schema SET sql = {text} WHERE type = 'table' AND name = '{table}'"  # noqa: S608 - constants


SQLITE_UP = (
    "PRAGMA writable_schema = ON",
    _rewritten("messages", STATUSES, (LAST, MORE)),
    _rewritten("conversations", (LAST_OF_CONVERSATIONS, MORE_OF_CONVERSATIONS)),
    "PRAGMA writable_schema = RESET",
    # Fails if the text of a table was another one.
    "SELECT parts, duration_ms, labels FROM messages, conversations LIMIT 0",
    # labels: each on a line of its own. conversation_labels finds the conversations of a label that few have.
    """
    CREATE INDEX conversations_by_external_id ON conversations (owner_id, external_id, updated_at, id)
        WHERE external_id IS NOT NULL
    """,
    """
    CREATE INDEX conversations_by_project ON conversations (owner_id, project_id, updated_at, id)
        WHERE project_id IS NOT NULL
    """,
    # Not on conversations, whose indexes every append rewrites.
    """
    CREATE TABLE conversation_labels (
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        label TEXT NOT NULL,
        PRIMARY KEY (owner_id, conversation_id, label),
        FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE INDEX conversation_labels_by_label ON conversation_labels (owner_id, label, conversation_id)
    """,
    """
    CREATE TABLE projects (
        owner_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        id BLOB NOT NULL CHECK (length(id) = 16),
        name TEXT NOT NULL,
        metadata TEXT,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (owner_id, id)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE llm_providers (
        id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        provider_name TEXT NOT NULL,
        model_name TEXT NOT NULL,
        is_default INTEGER NOT NULL CHECK (is_default IN (0, 1)),
        api_config TEXT,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE UNIQUE INDEX llm_providers_default ON llm_providers (is_default) WHERE is_default = 1
    """,
    # The oldest revision whose processes can use this schema, during a rolling upgrade.
    "ALTER TABLE chatkeep_schema ADD COLUMN served_from TEXT",
    "UPDATE chatkeep_schema SET served_from = '0004'",
)

SQLITE_DOWN = (
    "ALTER TABLE chatkeep_schema DROP COLUMN served_from",
    "DROP TABLE llm_providers",
    "DROP TABLE projects",
    "DROP TABLE conversation_labels",
    "DROP INDEX conversations_by_project",
    "DROP INDEX conversations_by_external_id",
    *(f"ALTER TABLE conversations DROP COLUMN {name}" for name in ("llm_provider_id", "project_id", "labels")),
    *(
        f"ALTER TABLE messages DROP COLUMN {name}"
        for name in ("duration_ms", "output_tokens", "input_tokens", "model", "parts")
    ),
    "UPDATE messages SET status = 'interrupted' WHERE status = 'in_progress'",
    "PRAGMA writable_schema = ON",
    _rewritten("messages", STATUSES[::-1]),
    "PRAGMA writable_schema = RESET",
    # Tells other connections of a new schema.
    "CREATE TABLE chatkeep_new_schema (id INTEGER)",
    "DROP TABLE chatkeep_new_schema",
)

# Whoever wants a table waits behind a step that wants it alone, so that this gives up soon, and begins again. Before
# that it waits for VACUUM, which gives way to it, and for which nobody else waits.
ALONE = (
    "LOCK TABLE {} IN SHARE UPDATE EXCLUSIVE MODE",
    "SET LOCAL lock_timeout = '500ms'",
)

# Each step is a transaction of its own, and may be executed again.
POSTGRESQL_UP = (
    *(each.format("messages") for each in ALONE),
    """
    ALTER TABLE messages ADD COLUMN IF NOT EXISTS parts text, ADD COLUMN IF NOT EXISTS model text,
        ADD COLUMN IF NOT EXISTS input_tokens bigint, ADD COLUMN IF NOT EXISTS output_tokens bigint,
        ADD COLUMN IF NOT EXISTS duration_ms bigint
    """,
    "ALTER TABLE messages DROP CONSTRAINT IF EXISTS messages_status_check",
    """
    ALTER TABLE messages ADD CONSTRAINT messages_status_check
        CHECK (status IN ('in_progress', 'complete', 'interrupted', 'failed', 'deleted')) NOT VALID
    """,
    STEP,
    "ALTER TABLE messages VALIDATE CONSTRAINT messages_status_check",
    STEP,
    *(each.format("conversations") for each in ALONE),
    """
    ALTER TABLE conversations ADD COLUMN IF NOT EXISTS labels text, ADD COLUMN IF NOT EXISTS project_id uuid,
        ADD COLUMN IF NOT EXISTS llm_provider_id uuid
    """,
    STEP,
    """
    CREATE INDEX CONCURRENTLY conversations_by_external_id ON conversations (owner_id, external_id, updated_at, id)
        WHERE external_id IS NOT NULL
    """,
    STEP,
    """
    CREATE INDEX CONCURRENTLY conversations_by_project ON conversations (owner_id, project_id, updated_at, id)
        WHERE project_id IS NOT NULL
    """,
    STEP,
    # slot: at most one for each context of each project, and of no project.
    """
    CREATE UNIQUE INDEX CONCURRENTLY conversations_slots ON conversations
        (owner_id, coalesce(context_id, ''), coalesce(project_id, '00000000-0000-0000-0000-000000000000'))
        WHERE slot
    """,
    STEP,
    *(each.format("conversations") for each in ALONE),
    "DROP INDEX IF EXISTS conversations_slot",
    STEP,
    *(each.format("conversations") for each in ALONE),  # a foreign key locks the table that it refers to
    # Not on conversations, whose indexes every append rewrites.
    """
    CREATE TABLE conversation_labels (
        owner_id text COLLATE "C" NOT NULL,
        conversation_id uuid NOT NULL,
        label text COLLATE "C" NOT NULL,
        PRIMARY KEY (owner_id, conversation_id, label)
    )
    """,
    """
    CREATE INDEX conversation_labels_by_label ON conversation_labels (owner_id, label, conversation_id)
    """,
    """
    CREATE TABLE projects (
        owner_id text COLLATE "C" NOT NULL,
        id uuid NOT NULL,
        name text NOT NULL,
        metadata text,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (owner_id, id)
    )
    """,
    # Citus refuses them before the tables are distributed, which makes them then.
    """
    DO $$ BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus') THEN
            ALTER TABLE conversation_labels ADD CONSTRAINT conversation_labels_owner_id_conversation_id_fkey
                FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE;
            ALTER TABLE projects ADD CONSTRAINT projects_owner_id_fkey
                FOREIGN KEY (owner_id) REFERENCES users (id) ON DELETE CASCADE;
        END IF;
    END $$
    """,
    """
    CREATE TABLE llm_providers (
        id uuid NOT NULL PRIMARY KEY,
        provider_name text NOT NULL,
        model_name text NOT NULL,
        is_default boolean NOT NULL,
        api_config text,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    )
    """,
    """
    CREATE UNIQUE INDEX llm_providers_default ON llm_providers (is_default) WHERE is_default
    """,
    # As before, with parts, models and counts. Processes of 0004 call the other one, which has fewer parameters.
    """
    CREATE FUNCTION chatkeep_append(
        owners text[], conversations uuid[], ids uuid[], fingerprints bytea[], roles text[], contents text[],
        statuses text[], parts text[], sources text[], metadata text[], models text[], input_tokens bigint[],
        output_tokens bigint[], durations bigint[], external_ids text[], times timestamptz[], terms text[],
        places integer[], previous uuid[], last boolean[], titles text[]
    ) RETURNS TABLE (number bigint, seq bigint, parent_id uuid, created_at timestamptz)
    LANGUAGE plpgsql VOLATILE
    -- A plan is made once and must hold when the tables have grown: look everything up by its key.
    SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_hashjoin = off
    SET enable_mergejoin = off AS $$
    #variable_conflict use_column
    BEGIN
        PERFORM 1 FROM conversations c
        WHERE (c.owner_id, c.id) IN (SELECT * FROM unnest($1, $2)) AND c.deleted_at IS NULL
        ORDER BY c.owner_id, c.id FOR NO KEY UPDATE;
        RETURN QUERY
        WITH item AS MATERIALIZED (
            SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19,
                $20, $21)
            WITH ORDINALITY AS t (
                owner_id, conversation_id, id, fingerprint, role, content, status, parts, sources, metadata, model,
                input_tokens, output_tokens, duration_ms, external_id, sent_at, terms, place, previous_id, is_last,
                title, number
            )
        ), known AS MATERIALIZED (
            SELECT m.owner_id, m.conversation_id FROM item i
            JOIN messages m ON m.owner_id = i.owner_id AND m.conversation_id = i.conversation_id AND m.id = i.id
        ), placed AS MATERIALIZED (
            SELECT i.*, c.last_seq + i.place AS seq, coalesce(i.previous_id, c.head_id) AS parent_id FROM item i
            JOIN conversations c ON c.owner_id = i.owner_id AND c.id = i.conversation_id AND c.deleted_at IS NULL
            WHERE c.runs IS NULL AND c.head_seq IS NOT DISTINCT FROM nullif(c.last_seq, 0) AND NOT EXISTS (
                SELECT 1 FROM known k WHERE k.owner_id = i.owner_id AND k.conversation_id = i.conversation_id
            )
        ), inserted AS (
            INSERT INTO messages (
                owner_id, conversation_id, seq, id, run, depth, parent_id, role, content, status, parts, sources,
                metadata, model, input_tokens, output_tokens, duration_ms, external_id, sent_at, fingerprint, terms
            )
            SELECT p.owner_id, p.conversation_id, p.seq, p.id, 0, p.seq, p.parent_id, p.role, p.content, p.status,
                p.parts, p.sources::json, p.metadata::json, p.model, p.input_tokens, p.output_tokens, p.duration_ms,
                p.external_id, p.sent_at, p.fingerprint, string_to_array(p.terms, ' ')
            FROM placed p
        ), updated AS (
            UPDATE conversations c
            SET last_seq = p.seq, head_seq = p.seq, head_id = p.id, title = coalesce(c.title, p.title),
                updated_at = greatest(c.updated_at, now())
            FROM placed p WHERE p.is_last AND c.owner_id = p.owner_id AND c.id = p.conversation_id
        )
        SELECT p.number, p.seq, p.parent_id, now() FROM placed p;
    END
    $$
    """,
    # The oldest revision whose processes can use this schema, during a rolling upgrade.
    "ALTER TABLE chatkeep_schema ADD COLUMN served_from text",
    "UPDATE chatkeep_schema SET served_from = '0004'",
)

NEW_FUNCTION = """
    DROP FUNCTION chatkeep_append(text[], uuid[], uuid[], bytea[], text[], text[], text[], text[], text[], text[],
        text[], bigint[], bigint[], bigint[], text[], timestamptz[], text[], integer[], uuid[], boolean[], text[])
"""

POSTGRESQL_DOWN = (
    "ALTER TABLE chatkeep_schema DROP COLUMN served_from",
    NEW_FUNCTION,
    "DROP TABLE llm_providers",
    "DROP TABLE projects",
    "DROP TABLE conversation_labels",
    # Of two slots of a context, in different projects, one is enough.
    """
    UPDATE conversations SET slot = false WHERE slot AND project_id IS NOT NULL
    """,
    """
    CREATE UNIQUE INDEX conversations_slot ON conversations (owner_id, coalesce(context_id, '')) WHERE slot
    """,
    "DROP INDEX conversations_slots",
    "DROP INDEX conversations_by_project",
    "DROP INDEX conversations_by_external_id",
    "ALTER TABLE conversations DROP COLUMN llm_provider_id, DROP COLUMN project_id, DROP COLUMN labels",
    "UPDATE messages SET status = 'interrupted' WHERE status = 'in_progress'",
    """
    ALTER TABLE messages DROP COLUMN duration_ms, DROP COLUMN output_tokens, DROP COLUMN input_tokens,
        DROP COLUMN model, DROP COLUMN parts, DROP CONSTRAINT messages_status_check,
        ADD CONSTRAINT messages_status_check CHECK (status IN ('complete', 'interrupted', 'failed', 'deleted'))
    """,
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}
DOWN = {"sqlite": SQLITE_DOWN, "postgresql": POSTGRESQL_DOWN}


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN[context.get_context().dialect.name]:
        op.execute(statement)
