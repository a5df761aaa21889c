-- Running upgrade 0005 -> 0006

CREATE INDEX CONCURRENTLY messages_by_model ON messages
        (owner_id, created_at, status, duration_ms, input_tokens, output_tokens) WHERE model IS NOT NULL;

-- the next step;

LOCK TABLE conversations IN SHARE UPDATE EXCLUSIVE MODE;

SET LOCAL lock_timeout = '500ms';

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
    ) WITH (fillfactor = 50);

CREATE TABLE turn_events (
        owner_id text COLLATE "C" NOT NULL,
        turn integer NOT NULL,
        n integer NOT NULL CHECK (n >= 1),
        kind text NOT NULL,
        text text,
        data text,
        PRIMARY KEY (owner_id, turn, n)
    );

DO $$ BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus') THEN
            ALTER TABLE turns ADD CONSTRAINT turns_owner_id_conversation_id_fkey
                FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE;
            ALTER TABLE turn_events ADD CONSTRAINT turn_events_owner_id_turn_fkey
                FOREIGN KEY (owner_id, turn) REFERENCES turns (owner_id, number) ON DELETE CASCADE;
        END IF;
    END $$;

UPDATE chatkeep_schema SET served_from = '0005';

UPDATE chatkeep_schema SET version_num='0006' WHERE chatkeep_schema.version_num = '0005';

