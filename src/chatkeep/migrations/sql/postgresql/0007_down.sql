-- Running downgrade 0007 -> 0006

DROP TABLE vectors;

DROP TABLE chunks;

DROP TABLE documents;

DELETE FROM projects WHERE deleted_at IS NOT NULL;

DROP INDEX projects_removed;

DROP INDEX projects_by_time;

ALTER TABLE projects DROP COLUMN deleted_at, DROP COLUMN embedding_until, DROP COLUMN embedding_worker,
        DROP COLUMN version, DROP COLUMN space, DROP COLUMN chunks, DROP COLUMN documents, DROP COLUMN fingerprint;

UPDATE chatkeep_schema SET served_from = '0005';

UPDATE chatkeep_schema SET version_num='0006' WHERE chatkeep_schema.version_num = '0007';

