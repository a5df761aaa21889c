"""Documents of projects: their chunks, and the vectors of these."""

from alembic import context, op

from chatkeep.migrations import STEP

revision = "0007"
down_revision = "0006"

# All keys begin with those of the project: a process of 0006 that removes one, or renames its owner, does not know the
# other tables, and the foreign keys do it, in one transaction, however long that takes.
SQLITE_UP = (
    "ALTER TABLE projects ADD COLUMN fingerprint BLOB",
    "ALTER TABLE projects ADD COLUMN documents INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE projects ADD COLUMN chunks INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE projects ADD COLUMN space TEXT",
    "ALTER TABLE projects ADD COLUMN version INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE projects ADD COLUMN embedding_worker BLOB",
    "ALTER TABLE projects ADD COLUMN embedding_until INTEGER",
    # Set while what belongs to a project is being removed: then nobody else sees it.
    "ALTER TABLE projects ADD COLUMN deleted_at INTEGER",
    """
    CREATE INDEX projects_by_time ON projects (owner_id, created_at, id) WHERE deleted_at IS NULL
    """,
    """
    CREATE INDEX projects_removed ON projects (owner_id, id) WHERE deleted_at IS NOT NULL
    """,
    """
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
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE INDEX documents_by_path ON documents (owner_id, project_id, file_path) WHERE content IS NOT NULL
    """,
    """
    CREATE INDEX documents_with_rubbish ON documents (owner_id, project_id, id) WHERE has_rubbish = 1
    """,
    # With rowids, as 0.3 s for the terms and vectors of 100,000 chunks are 0.5 to 1.4 s without: rows of this size
    # would be cut. The terms come before the text, which is not read for them.
    """
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
    ) STRICT
    """,
    # The space comes early, for those who count vectors or remove them. So the foreign key is that of the project: one
    # of the document would have every removal of a document read all of them.
    """
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
    ) STRICT
    """,
    "UPDATE chatkeep_schema SET served_from = '0006'",
)

# Documents are lost. Projects that were being removed are gone; their conversations stay if they were not removed yet.
SQLITE_DOWN = (
    "DROP TABLE vectors",
    "DROP TABLE chunks",
    "DROP TABLE documents",
    "DELETE FROM projects WHERE deleted_at IS NOT NULL",
    "DROP INDEX projects_removed",
    "DROP INDEX projects_by_time",
    *(
        f"ALTER TABLE projects DROP COLUMN {name}"
        for name in (
            "deleted_at",
            "embedding_until",
            "embedding_worker",
            "version",
            "space",
            "chunks",
            "documents",
            "fingerprint",
        )
    ),
    "UPDATE chatkeep_schema SET served_from = '0005'",
)

# Whoever wants a table waits behind a step that wants it alone, so that this gives up soon, and begins again.
ALONE = (
    "LOCK TABLE projects IN SHARE UPDATE EXCLUSIVE MODE",
    "SET LOCAL lock_timeout = '500ms'",
)

# Each step is a transaction of its own, and may be executed again.
POSTGRESQL_UP = (
    *ALONE,
    # deleted_at is set while what belongs to a project is being removed: then nobody else sees it.
    """
    ALTER TABLE projects ADD COLUMN IF NOT EXISTS fingerprint bytea,
        ADD COLUMN IF NOT EXISTS documents bigint NOT NULL DEFAULT 0,
        ADD COLUMN IF NOT EXISTS chunks bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS space text,
        ADD COLUMN IF NOT EXISTS version bigint NOT NULL DEFAULT 0, ADD COLUMN IF NOT EXISTS embedding_worker uuid,
        ADD COLUMN IF NOT EXISTS embedding_until timestamptz, ADD COLUMN IF NOT EXISTS deleted_at timestamptz
    """,
    STEP,
    """
    CREATE INDEX CONCURRENTLY projects_by_time ON projects (owner_id, created_at, id) WHERE deleted_at IS NULL
    """,
    STEP,
    """
    CREATE INDEX CONCURRENTLY projects_removed ON projects (owner_id, id) WHERE deleted_at IS NOT NULL
    """,
    STEP,
    *ALONE,  # a foreign key locks the table that it refers to
    """
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
    )
    """,
    """
    CREATE INDEX documents_by_path ON documents (owner_id, project_id, file_path) WHERE content IS NOT NULL
    """,
    """
    CREATE INDEX documents_with_rubbish ON documents (owner_id, project_id, id) WHERE has_rubbish
    """,
    """
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
    )
    """,
    # A search reads the terms of all chunks, and the text of few: in a row that is too large it is the text that goes
    # elsewhere.
    "ALTER TABLE chunks ALTER COLUMN terms SET STORAGE MAIN",
    # An array, which the type of pgvector is made of where there is one. Its numbers cannot be compressed.
    """
    CREATE TABLE vectors (
        owner_id text COLLATE "C" NOT NULL,
        project_id uuid NOT NULL,
        space text COLLATE "C" NOT NULL,
        document_id uuid NOT NULL,
        content uuid NOT NULL,
        n integer NOT NULL,
        vector real[] NOT NULL,
        PRIMARY KEY (owner_id, project_id, space, document_id, content, n)
    )
    """,
    "ALTER TABLE vectors ALTER COLUMN vector SET STORAGE EXTERNAL",
    # ON UPDATE CASCADE: a process of 0006 that renames an owner does not know these tables. Vectors refer to the
    # project: in their key the space comes before the document, whose removal would read all of them.
    # Citus refuses the keys before the tables are distributed, which makes them then.
    """
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
    END $$
    """,
    # They see a project that is being removed, and remove one in a single transaction, with all that belongs to it.
    "UPDATE chatkeep_schema SET served_from = '0006'",
)

# Documents are lost, and with them what else there is of projects whose removal was cut off.
POSTGRESQL_DOWN = (
    "DROP TABLE vectors",
    "DROP TABLE chunks",
    "DROP TABLE documents",
    "DELETE FROM projects WHERE deleted_at IS NOT NULL",
    "DROP INDEX projects_removed",
    "DROP INDEX projects_by_time",
    """
    ALTER TABLE projects DROP COLUMN deleted_at, DROP COLUMN embedding_until, DROP COLUMN embedding_worker,
        DROP COLUMN version, DROP COLUMN space, DROP COLUMN chunks, DROP COLUMN documents, DROP COLUMN fingerprint
    """,
    "UPDATE chatkeep_schema SET served_from = '0005'",
)

UP = {"sqlite": SQLITE_UP, "postgresql": POSTGRESQL_UP}
DOWN = {"sqlite": SQLITE_DOWN, "postgresql": POSTGRESQL_DOWN}


def upgrade() -> None:
    for statement in UP[context.get_context().dialect.name]:
        op.execute(statement)


def downgrade() -> None:
    for statement in DOWN[context.get_context().dialect.name]:
        op.execute(statement)
