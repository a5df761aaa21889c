-- Running upgrade 0001 -> 0002

CREATE TABLE api_keys (
        id text COLLATE "C" NOT NULL PRIMARY KEY,
        secret_hash bytea NOT NULL CHECK (length(secret_hash) = 32),
        owner_id text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        scopes text COLLATE "C" NOT NULL,
        created_at bigint NOT NULL,
        expires_at bigint,
        last_used_at bigint
    );

CREATE INDEX api_keys_by_owner ON api_keys (owner_id);

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
    );

CREATE INDEX requests_by_expiry ON requests (owner_id, expires_at);

UPDATE chatkeep_schema SET version_num='0002' WHERE chatkeep_schema.version_num = '0001';

