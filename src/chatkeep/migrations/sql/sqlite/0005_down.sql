-- Running downgrade 0005 -> 0004

ALTER TABLE chatkeep_schema DROP COLUMN served_from;

DROP TABLE llm_providers;

DROP TABLE projects;

DROP TABLE conversation_labels;

DROP INDEX conversations_by_project;

DROP INDEX conversations_by_external_id;

ALTER TABLE conversations DROP COLUMN llm_provider_id;

ALTER TABLE conversations DROP COLUMN project_id;

ALTER TABLE conversations DROP COLUMN labels;

ALTER TABLE messages DROP COLUMN duration_ms;

ALTER TABLE messages DROP COLUMN output_tokens;

ALTER TABLE messages DROP COLUMN input_tokens;

ALTER TABLE messages DROP COLUMN model;

ALTER TABLE messages DROP COLUMN parts;

UPDATE messages SET status = 'interrupted' WHERE status = 'in_progress';

PRAGMA writable_schema = ON;

UPDATE sqlite_schema SET sql = replace(sql, 'CHECK (status IN (''in_progress'', ''complete'',', 'CHECK (status IN (''complete'',') WHERE type = 'table' AND name = 'messages';

PRAGMA writable_schema = RESET;

CREATE TABLE chatkeep_new_schema (id INTEGER);

DROP TABLE chatkeep_new_schema;

UPDATE chatkeep_schema SET version_num='0004' WHERE chatkeep_schema.version_num = '0005';

