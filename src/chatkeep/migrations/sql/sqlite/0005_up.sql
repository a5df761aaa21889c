-- Running upgrade 0004 -> 0005

PRAGMA writable_schema = ON;

UPDATE sqlite_schema SET sql = replace(replace(sql, 'CHECK (status IN (''complete'',', 'CHECK (status IN (''in_progress'', ''complete'','), 'fingerprint BLOB NOT NULL,', 'fingerprint BLOB NOT NULL, parts TEXT, model TEXT, input_tokens INTEGER, output_tokens INTEGER, duration_ms INTEGER,') WHERE type = 'table' AND name = 'messages';

UPDATE sqlite_schema SET sql = replace(sql, 'deleted_at INTEGER,', 'deleted_at INTEGER, labels TEXT, project_id BLOB, llm_provider_id BLOB,') WHERE type = 'table' AND name = 'conversations';

PRAGMA writable_schema = RESET;

SELECT parts, duration_ms, labels FROM messages, conversations LIMIT 0;

CREATE INDEX conversations_by_external_id ON conversations (owner_id, external_id, updated_at, id)
        WHERE external_id IS NOT NULL;

CREATE INDEX conversations_by_project ON conversations (owner_id, project_id, updated_at, id)
        WHERE project_id IS NOT NULL;

CREATE TABLE conversation_labels (
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        label TEXT NOT NULL,
        PRIMARY KEY (owner_id, conversation_id, label),
        FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE
    ) STRICT, WITHOUT ROWID;

CREATE INDEX conversation_labels_by_label ON conversation_labels (owner_id, label, conversation_id);

CREATE TABLE projects (
        owner_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        id BLOB NOT NULL CHECK (length(id) = 16),
        name TEXT NOT NULL,
        metadata TEXT,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (owner_id, id)
    ) STRICT, WITHOUT ROWID;

CREATE TABLE llm_providers (
        id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
        provider_name TEXT NOT NULL,
        model_name TEXT NOT NULL,
        is_default INTEGER NOT NULL CHECK (is_default IN (0, 1)),
        api_config TEXT,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID;

CREATE UNIQUE INDEX llm_providers_default ON llm_providers (is_default) WHERE is_default = 1;

ALTER TABLE chatkeep_schema ADD COLUMN served_from TEXT;

UPDATE chatkeep_schema SET served_from = '0004';

UPDATE chatkeep_schema SET version_num='0005' WHERE chatkeep_schema.version_num = '0004';

