-- Running upgrade 0001 -> 0002

CREATE TABLE api_keys (
        id TEXT NOT NULL PRIMARY KEY,
        secret_hash BLOB NOT NULL CHECK (length(secret_hash) = 32),
        owner_id TEXT NOT NULL,
        name TEXT NOT NULL,
        scopes TEXT NOT NULL,
        created_at INTEGER NOT NULL,
        expires_at INTEGER,
        last_used_at INTEGER
    ) STRICT, WITHOUT ROWID;

CREATE INDEX api_keys_by_owner ON api_keys (owner_id);

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
    ) STRICT, WITHOUT ROWID;

CREATE INDEX requests_by_expiry ON requests (owner_id, expires_at);

UPDATE chatkeep_schema SET version_num='0002' WHERE chatkeep_schema.version_num = '0001';

