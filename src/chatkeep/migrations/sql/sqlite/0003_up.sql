-- Running upgrade 0002 -> 0003

CREATE INDEX requests_by_location ON requests (owner_id, location) WHERE location IS NOT NULL;

UPDATE conversations SET updated_at = created_at
    WHERE updated_at > CAST(unixepoch('subsec') * 1000000 AS INTEGER) AND updated_at > created_at;

UPDATE chatkeep_schema SET version_num='0003' WHERE chatkeep_schema.version_num = '0002';

