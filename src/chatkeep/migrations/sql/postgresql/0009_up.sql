-- Running upgrade 0008 -> 0009

CREATE TABLE erasures (
        owner_hash bytea NOT NULL PRIMARY KEY CHECK (length(owner_hash) = 32),
        erased_at bigint NOT NULL
    );

UPDATE chatkeep_schema SET served_from = '0008';

UPDATE chatkeep_schema SET version_num='0009' WHERE chatkeep_schema.version_num = '0008';

