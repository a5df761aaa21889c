-- Running downgrade 0005 -> 0004

ALTER TABLE chatkeep_schema DROP COLUMN served_from;

DROP FUNCTION chatkeep_append(text[], uuid[], uuid[], bytea[], text[], text[], text[], text[], text[], text[],
        text[], bigint[], bigint[], bigint[], text[], timestamptz[], text[], integer[], uuid[], boolean[], text[]);

DROP TABLE llm_providers;

DROP TABLE projects;

DROP TABLE conversation_labels;

UPDATE conversations SET slot = false WHERE slot AND project_id IS NOT NULL;

CREATE UNIQUE INDEX conversations_slot ON conversations (owner_id, coalesce(context_id, '')) WHERE slot;

DROP INDEX conversations_slots;

DROP INDEX conversations_by_project;

DROP INDEX conversations_by_external_id;

ALTER TABLE conversations DROP COLUMN llm_provider_id, DROP COLUMN project_id, DROP COLUMN labels;

UPDATE messages SET status = 'interrupted' WHERE status = 'in_progress';

ALTER TABLE messages DROP COLUMN duration_ms, DROP COLUMN output_tokens, DROP COLUMN input_tokens,
        DROP COLUMN model, DROP COLUMN parts, DROP CONSTRAINT messages_status_check,
        ADD CONSTRAINT messages_status_check CHECK (status IN ('complete', 'interrupted', 'failed', 'deleted'));

UPDATE chatkeep_schema SET version_num='0004' WHERE chatkeep_schema.version_num = '0005';

