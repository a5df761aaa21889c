-- Running upgrade 0007 -> 0008

ALTER TABLE llm_providers ADD COLUMN fingerprint BLOB;

ALTER TABLE llm_providers ADD COLUMN replaced_by BLOB;

INSERT INTO llm_providers (id, provider_name, model_name, is_default, created_at, updated_at)
    VALUES (x'e7ac71fe000040008000000000000001', 'extractive', 'extractive', 1, CAST(unixepoch('subsec') * 1000000 AS INTEGER), CAST(unixepoch('subsec') * 1000000 AS INTEGER)) ON CONFLICT DO NOTHING;

CREATE INDEX conversations_by_provider ON conversations (llm_provider_id) WHERE llm_provider_id IS NOT NULL;

UPDATE chatkeep_schema SET served_from = '0007';

UPDATE chatkeep_schema SET version_num='0008' WHERE chatkeep_schema.version_num = '0007';

