-- Running downgrade 0008 -> 0007

UPDATE conversations SET llm_provider_id = NULL WHERE llm_provider_id IS NOT NULL;

DROP INDEX conversations_by_provider;

DELETE FROM llm_providers;

ALTER TABLE llm_providers DROP COLUMN replaced_by, DROP COLUMN fingerprint;

UPDATE chatkeep_schema SET served_from = '0006';

UPDATE chatkeep_schema SET version_num='0007' WHERE chatkeep_schema.version_num = '0008';

