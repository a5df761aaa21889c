CREATE TABLE chatkeep_schema (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT chatkeep_schema_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE users (
        id text COLLATE "C" NOT NULL PRIMARY KEY
    );

CREATE TABLE conversations (
        owner_id text COLLATE "C" NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        id uuid NOT NULL,
        title text,
        context_id text,
        external_id text,
        metadata json NOT NULL,
        last_seq bigint NOT NULL DEFAULT 0,
        head_seq bigint,
        head_id uuid,
        previous_head_id uuid,
        runs json,
        slot boolean NOT NULL DEFAULT false,
        fingerprint bytea NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        deleted_at timestamptz,
        PRIMARY KEY (owner_id, id)
    ) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX conversations_by_update ON conversations (owner_id, updated_at, id);

CREATE INDEX conversations_by_context ON conversations (owner_id, context_id, updated_at, id)
        WHERE context_id IS NOT NULL;

CREATE UNIQUE INDEX conversations_slot ON conversations (owner_id, coalesce(context_id, '')) WHERE slot;

CREATE INDEX conversations_by_id ON conversations (id);

CREATE INDEX conversations_deleted ON conversations (owner_id, id) WHERE deleted_at IS NOT NULL;

CREATE TABLE messages (
        owner_id text COLLATE "C" NOT NULL,
        conversation_id uuid NOT NULL,
        seq bigint NOT NULL CHECK (seq > 0),
        id uuid NOT NULL,
        run integer NOT NULL,
        depth bigint NOT NULL CHECK (depth BETWEEN 1 AND seq),
        parent_id uuid,
        role text NOT NULL CHECK (role IN ('user', 'assistant', 'system', 'tool')),
        content text NOT NULL,
        status text NOT NULL CHECK (status IN ('complete', 'interrupted', 'failed', 'deleted')),
        sources json,
        metadata json,
        external_id text,
        sent_at timestamptz,
        created_at timestamptz NOT NULL DEFAULT now(),
        fingerprint bytea NOT NULL,
        terms text[] COLLATE "C",
        PRIMARY KEY (owner_id, conversation_id, seq),
        UNIQUE (owner_id, conversation_id, id),
        FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE
    );

CREATE INDEX messages_by_run ON messages (owner_id, conversation_id, run, seq) WHERE depth < seq;

CREATE INDEX messages_deleted ON messages (owner_id, conversation_id, run, seq) WHERE status = 'deleted';

CREATE INDEX messages_by_term ON messages USING gin (terms) WHERE terms IS NOT NULL;

CREATE INDEX messages_unindexed ON messages (owner_id, conversation_id, seq) WHERE terms IS NULL;

CREATE FUNCTION chatkeep_append(
        owners text[], conversations uuid[], ids uuid[], fingerprints bytea[], roles text[], contents text[],
        statuses text[], sources text[], metadata text[], external_ids text[], times timestamptz[], terms text[],
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
            SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)
            WITH ORDINALITY AS t (
                owner_id, conversation_id, id, fingerprint, role, content, status, sources, metadata, external_id,
                sent_at, terms, place, previous_id, is_last, title, number
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
                owner_id, conversation_id, seq, id, run, depth, parent_id, role, content, status, sources, metadata,
                external_id, sent_at, fingerprint, terms
            )
            SELECT p.owner_id, p.conversation_id, p.seq, p.id, 0, p.seq, p.parent_id, p.role, p.content, p.status,
                p.sources::json, p.metadata::json, p.external_id, p.sent_at, p.fingerprint,
                string_to_array(p.terms, ' ')
            FROM placed p
        ), updated AS (
            UPDATE conversations c
            SET last_seq = p.seq, head_seq = p.seq, head_id = p.id, title = coalesce(c.title, p.title),
                updated_at = greatest(c.updated_at, now())
            FROM placed p WHERE p.is_last AND c.owner_id = p.owner_id AND c.id = p.conversation_id
        )
        SELECT p.number, p.seq, p.parent_id, now() FROM placed p;
    END
    $$;

INSERT INTO chatkeep_schema (version_num) VALUES ('0001') RETURNING chatkeep_schema.version_num;

