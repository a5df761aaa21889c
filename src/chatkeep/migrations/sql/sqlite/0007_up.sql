-- Running upgrade 0006 -> 0007

ALTER TABLE projects ADD COLUMN fingerprint BLOB;

ALTER TABLE projects ADD COLUMN documents INTEGER NOT NULL DEFAULT 0;

ALTER TABLE projects ADD COLUMN chunks INTEGER NOT NULL DEFAULT 0;

ALTER TABLE projects ADD COLUMN space TEXT;

ALTER TABLE projects ADD COLUMN version INTEGER NOT NULL DEFAULT 0;

ALTER TABLE projects ADD COLUMN embedding_worker BLOB;

ALTER TABLE projects ADD COLUMN embedding_until INTEGER;

ALTER TABLE projects ADD COLUMN deleted_at INTEGER;

CREATE INDEX projects_by_time ON projects (owner_id, created_at, id) WHERE deleted_at IS NULL;

CREATE INDEX projects_removed ON projects (owner_id, id) WHERE deleted_at IS NOT NULL;

CREATE TABLE documents (
        owner_id TEXT NOT NULL,
        project_id BLOB NOT NULL,
        id BLOB NOT NULL CHECK (length(id) = 16),
        content BLOB,
        staged BLOB,
        version INTEGER NOT NULL DEFAULT 0,
        has_rubbish INTEGER NOT NULL DEFAULT 0 CHECK (has_rubbish IN (0, 1)),
        file_path TEXT NOT NULL,
        title TEXT,
        media_type TEXT NOT NULL,
        bytes INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        chunks INTEGER NOT NULL DEFAULT 0,
        created_at INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        PRIMARY KEY (owner_id, project_id, id),
        FOREIGN KEY (owner_id, project_id) REFERENCES projects (owner_id, id) ON DELETE CASCADE ON UPDATE CASCADE
    ) STRICT, WITHOUT ROWID;

CREATE INDEX documents_by_path ON documents (owner_id, project_id, file_path) WHERE content IS NOT NULL;

CREATE INDEX documents_with_rubbish ON documents (owner_id, project_id, id) WHERE has_rubbish = 1;

CREATE TABLE chunks (
        owner_id TEXT NOT NULL,
        project_id BLOB NOT NULL,
        document_id BLOB NOT NULL,
        content BLOB NOT NULL CHECK (length(content) = 16),
        n INTEGER NOT NULL CHECK (n >= 0),
        terms BLOB NOT NULL,
        start INTEGER NOT NULL,
        header_anchor TEXT,
        heading TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (owner_id, project_id, document_id, content, n),
        FOREIGN KEY (owner_id, project_id, document_id) REFERENCES documents (owner_id, project_id, id)
            ON DELETE CASCADE ON UPDATE CASCADE
    ) STRICT;

CREATE TABLE vectors (
        owner_id TEXT NOT NULL,
        project_id BLOB NOT NULL,
        space TEXT NOT NULL,
        document_id BLOB NOT NULL,
        content BLOB NOT NULL,
        n INTEGER NOT NULL,
        vector BLOB NOT NULL,
        PRIMARY KEY (owner_id, project_id, space, document_id, content, n),
        FOREIGN KEY (owner_id, project_id) REFERENCES projects (owner_id, id) ON DELETE CASCADE ON UPDATE CASCADE
    ) STRICT;

UPDATE chatkeep_schema SET served_from = '0006';

UPDATE chatkeep_schema SET version_num='0007' WHERE chatkeep_schema.version_num = '0006';

