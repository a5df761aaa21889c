-- Running upgrade 0007 -> 0008

CREATE INDEX CONCURRENTLY conversations_by_provider ON conversations (llm_provider_id, owner_id, id)
        WHERE llm_provider_id IS NOT NULL;

-- the next step;

ALTER TABLE llm_providers ADD COLUMN fingerprint bytea, ADD COLUMN replaced_by uuid;

INSERT INTO llm_providers (id, provider_name, model_name, is_default)
    VALUES ('e7ac71fe000040008000000000000001', 'extractive', 'extractive', true) ON CONFLICT DO NOTHING;

UPDATE chatkeep_schema SET served_from = '0007';

UPDATE chatkeep_schema SET version_num='0008' WHERE chatkeep_schema.version_num = '0007';

