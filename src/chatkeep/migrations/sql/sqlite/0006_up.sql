-- Running upgrade 0005 -> 0006

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
    ) STRICT, WITHOUT ROWID;

CREATE TABLE turn_events (
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        message_id BLOB NOT NULL,
        n INTEGER NOT NULL CHECK (n >= 1),
        kind TEXT NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (owner_id, conversation_id, message_id, n),
        FOREIGN KEY (owner_id, conversation_id, message_id) REFERENCES turns ON DELETE CASCADE ON UPDATE CASCADE
    ) STRICT;

CREATE INDEX messages_by_model ON messages
        (owner_id, created_at, status, duration_ms, input_tokens, output_tokens, model) WHERE model IS NOT NULL;

UPDATE chatkeep_schema SET served_from = '0005';

UPDATE chatkeep_schema SET version_num='0006' WHERE chatkeep_schema.version_num = '0005';

