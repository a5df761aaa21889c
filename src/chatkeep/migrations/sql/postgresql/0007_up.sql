-- Running upgrade 0006 -> 0007

LOCK TABLE projects IN SHARE UPDATE EXCLUSIVE MODE;

SET LOCAL lock_timeout = '500ms';

ALTER TABLE projects ADD COLUMN IF NOT EXISTS fingerprint bytea,
        ADD COLUMN IF NOT EXISTS documents bigint NOT NULL DEFAULT 0,
        ADD COLUMN IF NOT EXISTS chunks bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS space text,
        ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS embedding_worker uuid,
        ADD COLUMN IF NOT EXISTS embedding_until timestamptz, ADD COLUMN IF NOT EXISTS deleted_at timestamptz;

-- the next step;

CREATE INDEX CONCURRENTLY projects_by_time ON projects (owner_id, created_at, id) WHERE deleted_at IS NULL;

-- the next step;

CREATE INDEX CONCURRENTLY projects_removed ON projects (owner_id, id) WHERE deleted_at IS NOT NULL;

-- the next step;

LOCK TABLE projects IN SHARE UPDATE EXCLUSIVE MODE;

SET LOCAL lock_timeout = '500ms';

CREATE TABLE documents (
        owner_id text COLLATE "C" NOT NULL,
        project_id uuid NOT NULL,
        id uuid NOT NULL,
        content uuid,
        staged uuid,
        version bigint NOT NULL DEFAULT 0,
        has_rubbish boolean NOT NULL DEFAULT false,
        file_path text COLLATE "C" NOT NULL,
        title text,
        media_type text NOT NULL,
        bytes bigint NOT NULL,
        sha256 text NOT NULL,
        chunks bigint NOT NULL DEFAULT 0,
        created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now(),
        PRIMARY KEY (owner_id, project_id, id)
    );

CREATE INDEX documents_by_path ON documents (owner_id, project_id, file_path) WHERE content IS NOT NULL;

CREATE INDEX documents_with_rubbish ON documents (owner_id, project_id, id) WHERE has_rubbish;

CREATE TABLE chunks (
        owner_id text COLLATE "C" NOT NULL,
        project_id uuid NOT NULL,
        document_id uuid NOT NULL,
        content uuid NOT NULL,
        n integer NOT NULL CHECK (n >= 0),
        start bigint NOT NULL,
        header_anchor text,
        heading text NOT NULL,
        terms bytea NOT NULL,
        text text NOT NULL,
        PRIMARY KEY (owner_id, project_id, document_id, content, n)
    );

ALTER TABLE chunks ALTER COLUMN terms SET STORAGE MAIN;

CREATE TABLE vectors (
        owner_id text COLLATE "C" NOT NULL,
        project_id uuid NOT NULL,
        space text COLLATE "C" NOT NULL,
        document_id uuid NOT NULL,
        content uuid NOT NULL,
        n integer NOT NULL,
        vector real[] NOT NULL,
        PRIMARY KEY (owner_id, project_id, space, document_id, content, n)
    );

ALTER TABLE vectors ALTER COLUMN vector SET STORAGE EXTERNAL;

DO $$ BEGIN
        IF NOT EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus') THEN
            ALTER TABLE documents ADD CONSTRAINT documents_owner_id_project_id_fkey
                FOREIGN KEY (owner_id, project_id) REFERENCES projects (owner_id, id)
                ON UPDATE CASCADE ON DELETE CASCADE;
            ALTER TABLE chunks ADD CONSTRAINT chunks_owner_id_project_id_document_id_fkey
                FOREIGN KEY (owner_id, project_id, document_id) REFERENCES documents (owner_id, project_id, id)
                ON UPDATE CASCADE ON DELETE CASCADE;
            ALTER TABLE vectors ADD CONSTRAINT vectors_owner_id_project_id_fkey
                FOREIGN KEY (owner_id, project_id) REFERENCES projects (owner_id, id)
                ON UPDATE CASCADE ON DELETE CASCADE;
        END IF;
    END $$;

UPDATE chatkeep_schema SET served_from = '0006';

UPDATE chatkeep_schema SET version_num='0007' WHERE chatkeep_schema.version_num = '0006';

