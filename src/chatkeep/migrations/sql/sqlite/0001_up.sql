CREATE TABLE chatkeep_schema (
    version_num VARCHAR(32) NOT NULL, 
    CONSTRAINT chatkeep_schema_pkc PRIMARY KEY (version_num)
);

-- Running upgrade  -> 0001

CREATE TABLE users (
        id TEXT NOT NULL PRIMARY KEY
    ) STRICT, WITHOUT ROWID;

CREATE TABLE conversations (
        rid INTEGER PRIMARY KEY,
        owner_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
        id BLOB NOT NULL CHECK (length(id) = 16),
        title TEXT,
        context_id TEXT,
        external_id TEXT,
        metadata TEXT NOT NULL,
        last_seq INTEGER NOT NULL DEFAULT 0,
        head_seq INTEGER,
        head_id BLOB,
        runs TEXT,
        fingerprint BLOB NOT NULL,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        deleted_at INTEGER,
        UNIQUE (owner_id, id)
    ) STRICT;

CREATE INDEX conversations_by_update ON conversations (owner_id, updated_at, id);

CREATE INDEX conversations_by_context ON conversations (owner_id, context_id, updated_at, id);

CREATE INDEX conversations_by_id ON conversations (id);

CREATE INDEX conversations_deleted ON conversations (owner_id, id) WHERE deleted_at IS NOT NULL;

CREATE TABLE messages (
        rid INTEGER PRIMARY KEY,
        owner_id TEXT NOT NULL,
        conversation_id BLOB NOT NULL,
        seq INTEGER NOT NULL CHECK (seq > 0),
        id BLOB NOT NULL CHECK (length(id) = 16),
        run INTEGER NOT NULL,
        depth INTEGER NOT NULL CHECK (depth BETWEEN 1 AND seq),
        parent_id BLOB,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'system', 'tool')),
        content TEXT NOT NULL,
        status TEXT NOT NULL CHECK (status IN ('complete', 'interrupted', 'failed', 'deleted')),
        sources TEXT,
        metadata TEXT,
        external_id TEXT,
        sent_at INTEGER,
        created_at INTEGER NOT NULL,
        fingerprint BLOB NOT NULL,
        UNIQUE (owner_id, conversation_id, seq),
        UNIQUE (owner_id, conversation_id, id),
        FOREIGN KEY (owner_id, conversation_id) REFERENCES conversations (owner_id, id) ON DELETE CASCADE
    ) STRICT;

CREATE INDEX messages_by_run ON messages (owner_id, conversation_id, run, seq) WHERE depth < seq;

CREATE INDEX messages_deleted ON messages (owner_id, conversation_id, run, seq) WHERE status = 'deleted';

CREATE VIRTUAL TABLE message_words USING fts5 (
        owner, words, content = '', contentless_delete = 1, tokenize = 'ascii'
    );

INSERT INTO message_words (message_words, rank) VALUES ('automerge', 16);

INSERT INTO message_words (message_words, rank) VALUES ('usermerge', 16);

CREATE TABLE store_state (name TEXT NOT NULL PRIMARY KEY, value INTEGER) STRICT, WITHOUT ROWID;

INSERT INTO store_state VALUES ('unindexed_from', NULL);

INSERT INTO chatkeep_schema (version_num) VALUES ('0001') RETURNING version_num;

