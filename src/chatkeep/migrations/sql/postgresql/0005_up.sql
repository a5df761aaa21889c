-- Running upgrade 0004 -> 0005

LOCK TABLE messages IN SHARE UPDATE EXCLUSIVE MODE;

SET LOCAL lock_timeout = '500ms';

ALTER TABLE messages ADD COLUMN IF NOT EXISTS parts text, ADD COLUMN IF NOT EXISTS model text,
        ADD COLUMN IF NOT EXISTS input_tokens bigint, ADD COLUMN IF NOT EXISTS output_tokens bigint,
        ADD COLUMN IF NOT EXISTS duration_ms bigint;

ALTER TABLE messages DROP CONSTRAINT IF EXISTS messages_status_check;

ALTER TABLE messages ADD CONSTRAINT messages_status_check
        CHECK (status IN ('in_progress', 'complete', 'interrupted', 'failed', 'deleted')) NOT VALID;

-- the next step;

ALTER TABLE messages VALIDATE CONSTRAINT messages_status_check;

-- the next step;

LOCK TABLE conversations IN SHARE UPDATE EXCLUSIVE MODE;

SET LOCAL lock_timeout = '500ms';

ALTER TABLE conversations ADD COLUMN IF NOT EXISTS labels text, ADD COLUMN IF NOT EXISTS project_id uuid,
        ADD COLUMN IF NOT EXISTS llm_provider_id uuid;

-- the next step;

CREATE INDEX CONCURRENTLY conversations_by_external_id ON conversations (owner_id, external_id, updated_at, id)
        WHERE external_id IS NOT NULL;

-- the next step;

CREATE INDEX CONCURRENTLY conversations_by_project ON conversations (owner_id, project_id, updated_at, id)
        WHERE project_id IS NOT NULL;

-- the next step;

CREATE UNIQUE INDEX CONCURRENTLY conversations_slots ON conversations
        (owner_id, coalesce(context_id, ''), coalesce(project_id, '00000000-0000-0000-0000-000000000000'))
        WHERE slot;

-- the next step;

LOCK TABLE conversations IN SHARE UPDATE EXCLUSIVE MODE;

SET LOCAL lock_timeout = '500ms';

DROP INDEX IF EXISTS conversations_slot;

-- the next step;

LOCK TABLE conversations IN SHARE UPDATE EXCLUSIVE MODE;

SET LOCAL lock_timeout = '500ms';

CREATE TABLE conversation_labels (
        owner_id text COLLATE "C" NOT NULL,
        conversation_id uuid NOT NULL,
        label text COLLATE "C" NOT NULL,
        PRIMARY KEY (owner_id, conversation_id, label)
    );

CREATE INDEX conversation_labels_by_label ON conversation_labels (owner_id, label, conversation_id);

CREATE TABLE projects (
        owner_id text COLLATE "C" NOT NULL,
        id uuid NOT NULL,
        name text NOT NULL,
        metadata text,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (owner_id, id)
    );

DO $$ BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus') THEN
            ALTER TABLE conversation_labels ADD CONSTRAINT conversation_labels_owner_id_conversation_id_fkey
                FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE;
            ALTER TABLE projects ADD CONSTRAINT projects_owner_id_fkey
                FOREIGN KEY (owner_id) REFERENCES users (id) ON DELETE CASCADE;
        END IF;
    END $$;

CREATE TABLE llm_providers (
        id uuid NOT NULL PRIMARY KEY,
        provider_name text NOT NULL,
        model_name text NOT NULL,
        is_default boolean NOT NULL,
        api_config text,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now()
    );

CREATE UNIQUE INDEX llm_providers_default ON llm_providers (is_default) WHERE is_default;

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
    $$;

ALTER TABLE chatkeep_schema ADD COLUMN served_from text;

UPDATE chatkeep_schema SET served_from = '0004';

UPDATE chatkeep_schema SET version_num='0005' WHERE chatkeep_schema.version_num = '0004';

