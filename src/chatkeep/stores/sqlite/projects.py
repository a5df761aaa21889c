"""The rows of projects, documents, chunks and vectors in SQLite. Every statement names the owner first."""

from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from chatkeep.access import BOTH_HAVE_PROJECT
from chatkeep.documents import (
    DOCUMENT_FIELDS,
    Chunk,
    ChunkRange,
    Content,
    Document,
    IndexedChunk,
    Nearest,
    NewChunk,
    NewDocument,
)
from chatkeep.errors import Conflict
from chatkeep.model import stored
from chatkeep.projects import PROJECT_FIELDS, NewProject, Project
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey, ProjectPlace
from chatkeep.stores.rows import Row, stored_bytes
from chatkeep.stores.slices import PageSize, Part, Removed, within
from chatkeep.stores.sqlite.columns import uuid
from chatkeep.stores.sqlite.database import Values
from chatkeep.stores.sqlite.turns import SqliteTurns
from chatkeep.values import from_micros, json_text, load_json, now, to_micros

CHUNK_SLICE = 500
"""Chunks, or vectors, that one transaction removes, about, so that other writers need not wait long."""


MICROSECOND = timedelta(microseconds=1)

INSERT_PROJECT = """
    INSERT INTO projects (owner_id, id, name, metadata, fingerprint, created_at, updated_at)
    VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner_id, id) DO NOTHING
"""
PROJECTS = """
    SELECT id, owner_id, name, metadata, documents, chunks, space, version, created_at, updated_at FROM projects
    WHERE owner_id = ? AND deleted_at IS NULL
"""
NEWEST_FIRST = "ORDER BY created_at DESC, id DESC LIMIT ? OFFSET ?"
LEASE = "SELECT embedding_worker, embedding_until FROM projects WHERE owner_id = ? AND id = ? AND deleted_at IS NULL"
SET_LEASE = "UPDATE projects SET embedding_worker = ?, embedding_until = ? WHERE owner_id = ? AND id = ?"

DOCUMENT_COLUMNS = "id, file_path, title, media_type, bytes, sha256, chunks, created_at, updated_at"
DOCUMENT = f"""
    SELECT content, staged, version, has_rubbish, {DOCUMENT_COLUMNS} FROM documents
    WHERE owner_id = ? AND project_id = ? AND id = ?
"""  # noqa: S608 - constants
DOCUMENTS = f"""
    SELECT {DOCUMENT_COLUMNS} FROM documents
    WHERE owner_id = ? AND project_id = ? AND content IS NOT NULL AND file_path > ?
    ORDER BY file_path LIMIT ? OFFSET ?
"""  # noqa: S608 - constants
INSERT_DOCUMENT = """
    INSERT INTO documents (owner_id, project_id, id, staged, file_path, title, media_type, bytes, sha256, created_at,
                           updated_at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
CONTENTS = """
    SELECT id, content, file_path, title, chunks, version FROM documents
    WHERE owner_id = ? AND project_id = ? AND id > ? AND content IS NOT NULL ORDER BY id LIMIT ?
"""
WITH_RUBBISH = "SELECT id FROM documents WHERE owner_id = ? AND project_id = ? AND has_rubbish = 1 ORDER BY id LIMIT ?"

INSERT_CHUNK = """
    INSERT INTO chunks (owner_id, project_id, document_id, content, n, terms, start, header_anchor, heading, text)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (owner_id, project_id, document_id, content, n) DO NOTHING
"""
INSERT_VECTOR = """
    INSERT INTO vectors (owner_id, project_id, document_id, content, space, n, vector)
    SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE EXISTS (
        SELECT 1 FROM chunks
        WHERE owner_id = ?1 AND project_id = ?2 AND document_id = ?3 AND content = ?4 AND n = ?6)
    ON CONFLICT (owner_id, project_id, space, document_id, content, n) DO NOTHING
"""
ENTRIES = """
    SELECT c.n, c.terms, v.vector FROM chunks c LEFT JOIN vectors v
        ON v.owner_id = ?1 AND v.project_id = ?2 AND v.space = ?7 AND v.document_id = ?3 AND v.content = ?4
        AND v.n = c.n
    WHERE c.owner_id = ?1 AND c.project_id = ?2 AND c.document_id = ?3 AND c.content = ?4 AND c.n BETWEEN ?5 AND ?6
    ORDER BY c.n
"""
CHUNKS = """
    SELECT n, text, header_anchor, heading, start FROM chunks
    WHERE owner_id = ? AND project_id = ? AND document_id = ? AND content = ? AND n BETWEEN ? AND ? ORDER BY n
"""
COUNT_VECTORS = """
    SELECT content, count(*) FROM vectors WHERE owner_id = ? AND project_id = ? AND space = ?
    GROUP BY document_id, content
"""
WITHOUT_VECTORS = """
    SELECT c.n FROM chunks c
    WHERE c.owner_id = ?1 AND c.project_id = ?2 AND c.document_id = ?3 AND c.content = ?4 AND NOT EXISTS (
        SELECT 1 FROM vectors v
        WHERE v.owner_id = ?1 AND v.project_id = ?2 AND v.space = ?5 AND v.document_id = ?3 AND v.content = ?4
            AND v.n = c.n)
    ORDER BY c.n LIMIT ?6
"""

# Steps from one value of an index to the next, past all rows with the same.
NEXT_CONTENT = """
    SELECT min(content) FROM chunks WHERE owner_id = ? AND project_id = ? AND document_id = ? AND content > ?
"""
NEXT_SPACE = "SELECT min(space) FROM vectors WHERE owner_id = ? AND project_id = ? AND space > ?"
LAST_OF_SLICE = """
    SELECT max(n) FROM (
        SELECT n FROM chunks WHERE owner_id = ? AND project_id = ? AND document_id = ? AND content = ?
        ORDER BY n LIMIT ?)
"""
DELETE_CHUNKS = """
    DELETE FROM chunks WHERE owner_id = ? AND project_id = ? AND document_id = ? AND content = ? AND n <= ?
"""
DELETE_VECTORS = """
    DELETE FROM vectors
    WHERE owner_id = ? AND project_id = ? AND document_id = ? AND content = ? AND n <= ? AND space = ?
"""
DELETE_SOME_OF_SPACE = """
    DELETE FROM vectors WHERE rowid IN (
        SELECT rowid FROM vectors WHERE owner_id = ? AND project_id = ? AND space = ? LIMIT ?)
"""
DELETE_SOME_VECTORS = """
    DELETE FROM vectors WHERE rowid IN (
        SELECT rowid FROM vectors WHERE owner_id = ? AND project_id = ? LIMIT ?)
"""
DELETE_SOME_CHUNKS = """
    DELETE FROM chunks WHERE rowid IN (
        SELECT rowid FROM chunks WHERE owner_id = ? AND project_id = ? LIMIT ?)
"""
DELETE_SOME_DOCUMENTS = """
    DELETE FROM documents WHERE owner_id = ?1 AND project_id = ?2 AND id IN (
        SELECT id FROM documents WHERE owner_id = ?1 AND project_id = ?2 LIMIT ?3)
"""
DELETE_PROJECT = """
    DELETE FROM projects WHERE owner_id = ?1 AND id = ?2 AND NOT EXISTS (
        SELECT 1 FROM conversations WHERE owner_id = ?1 AND project_id = ?2)
"""
IS_HIDDEN = "SELECT 1 FROM projects WHERE owner_id = ? AND id = ? AND deleted_at IS NOT NULL"
HIDE_PROJECT = "UPDATE projects SET deleted_at = coalesce(deleted_at, ?) WHERE owner_id = ? AND id = ?"
HIDE_PROJECTS = "UPDATE projects SET deleted_at = ? WHERE owner_id = ? AND deleted_at IS NULL"
PROJECTS_CLASH = """
    SELECT 1 FROM projects mine JOIN projects theirs ON theirs.owner_id = ? AND theirs.id = mine.id
    WHERE mine.owner_id = ? AND (theirs.deleted_at IS NOT NULL OR EXISTS (
        SELECT 1 FROM documents WHERE owner_id = mine.owner_id AND project_id = mine.id)) LIMIT 1
"""
HIDDEN_PROJECTS = "SELECT id FROM projects WHERE owner_id = ? AND deleted_at IS NOT NULL ORDER BY id LIMIT ?"


class SqliteProjects(SqliteTurns):
    """Rows of projects and documents on one connection."""

    __slots__ = ()

    # --- projects -----------------------------------------------------------------------------------------

    async def has_project(self, owner: str, id_: UUID) -> bool:
        statement = "SELECT 1 FROM projects WHERE owner_id = ? AND id = ? AND deleted_at IS NULL"
        return self._connection.execute(statement, (owner, id_.bytes)).get is not None

    async def make_project(self, owner: str, id_: UUID, name: str) -> None:
        self._insert_project(ProjectKey(owner, id_), name, None, None)

    def _insert_project(self, key: ProjectKey, name: str, metadata: str | None, fingerprint: bytes | None) -> bool:
        """Store a project, and say whether its id was free."""
        self._note_owner(key.owner)
        moment = to_micros(self._writes.moment)
        self._connection.execute(INSERT_PROJECT, (*_of_project(key), name, metadata, fingerprint, moment, moment))
        return self._connection.changes() > 0

    async def project_name(self, owner: str, id_: UUID) -> str | None:
        statement = "SELECT name FROM projects WHERE owner_id = ? AND id = ?"
        return cast("str | None", self._connection.execute(statement, (owner, id_.bytes)).get)

    async def create_project(self, key: ProjectKey, new: NewProject) -> Project | None:
        metadata = json_text(new.metadata) if new.metadata else None
        if not self._insert_project(key, new.name, metadata, new.fingerprint()):
            return None
        return await self.project(key)

    async def project(self, key: ProjectKey, *, lock: bool = False) -> Project | None:  # noqa: ARG002 - nobody else writes
        row = self._connection.execute(f"{PROJECTS} AND id = ?", _of_project(key)).fetchone()
        return None if row is None else _project(row)

    async def project_fingerprint(self, key: ProjectKey) -> bytes | None:
        statement = "SELECT fingerprint FROM projects WHERE owner_id = ? AND id = ?"
        return cast("bytes | None", self._connection.execute(statement, _of_project(key)).get)

    async def listed_projects(
        self, owner: str, after: ProjectPlace | None, size: PageSize, offset: int
    ) -> Part[Project]:
        place = () if after is None else (to_micros(after.created_at), after.id.bytes)
        where = " AND (created_at, id) < (?, ?)" if place else ""
        with self._rows(f"{PROJECTS}{where} {NEWEST_FIRST}", (owner, *place, size.limit, offset)) as rows:
            some = within(((row, stored_bytes(row[3])) for row in rows), size.max_bytes)
        return Part([_project(row) for row in some.items], some.cut)

    async def count_projects(self, owner: str) -> int:
        statement = "SELECT count(*) FROM projects WHERE owner_id = ? AND deleted_at IS NULL"
        return cast("int", self._connection.execute(statement, (owner,)).get)

    async def set_project(self, key: ProjectKey, values: Mapping[str, Any]) -> None:
        statement = f"UPDATE projects SET {_assigned(values)} WHERE owner_id = ? AND id = ?"  # noqa: S608
        self._connection.execute(statement, (*map(_column, values.values()), *_of_project(key)))

    async def claim_embedding(self, key: ProjectKey, worker: UUID, lease: timedelta) -> bool:
        row: Any = self._connection.execute(LEASE, _of_project(key)).fetchone()
        if row is None:
            return False
        holder, until = row
        left, length = (until or 0) - to_micros(now()), lease // MICROSECOND
        if holder != worker.bytes and left > 0:
            return False
        # Not if it is longer than asked for: then it is given back, or the clock was set back.
        if holder != worker.bytes or not length * 2 < left * 3 <= length * 3:
            self._connection.execute(SET_LEASE, (worker.bytes, to_micros(now()) + length, *_of_project(key)))
        return True

    # --- documents ----------------------------------------------------------------------------------------

    async def document(self, key: DocumentKey, *, lock: bool = False) -> DocumentRow | None:  # noqa: ARG002 - nobody else writes
        row: Any = self._connection.execute(DOCUMENT, _of_document(key)).fetchone()
        if row is None:
            return None
        content, staged, version, has_rubbish, *columns = row
        document = _document(ProjectKey(*key[:2]), columns)
        return DocumentRow(document, _uuid_or_none(content), _uuid_or_none(staged), version, bool(has_rubbish))

    async def create_document(self, key: DocumentKey, new: NewDocument, staged: UUID) -> None:
        moment = to_micros(self._writes.moment)
        columns = (new.file_path, new.title, new.media_type, new.bytes, new.sha256)
        self._connection.execute(INSERT_DOCUMENT, (*_of_document(key), staged.bytes, *columns, moment, moment))

    async def set_document(self, key: DocumentKey, values: Mapping[str, Any]) -> None:
        statement = f"UPDATE documents SET {_assigned(values)} WHERE owner_id = ? AND project_id = ? AND id = ?"  # noqa: S608
        self._connection.execute(statement, (*map(_column, values.values()), *_of_document(key)))

    async def remove_document(self, key: DocumentKey) -> None:
        statement = "DELETE FROM documents WHERE owner_id = ? AND project_id = ? AND id = ?"
        self._connection.execute(statement, _of_document(key))

    async def listed_documents(self, key: ProjectKey, after: str | None, size: PageSize, offset: int) -> Part[Document]:
        with self._rows(DOCUMENTS, (*_of_project(key), after or "", size.limit, offset)) as rows:
            return within(((_document(key, row), stored_bytes(row[1], row[2])) for row in rows), size.max_bytes)

    async def contents(self, key: ProjectKey, after: UUID | None, limit: int) -> list[Content]:
        found = self._fetch(CONTENTS, (*_of_project(key), b"" if after is None else after.bytes, limit))
        return [Content(uuid(id_), uuid(content), *rest) for id_, content, *rest in found]

    async def with_rubbish(self, key: ProjectKey, limit: int) -> list[UUID]:
        return [uuid(id_) for (id_,) in self._fetch(WITH_RUBBISH, (*_of_project(key), limit))]

    # --- chunks and vectors -------------------------------------------------------------------------------

    async def add_chunks(self, key: DocumentKey, content: UUID, first: int, chunks: Sequence[NewChunk]) -> None:
        of = (*_of_document(key), content.bytes)
        rows = [
            (*of, n, each.terms, each.start, each.header_anchor, each.heading, each.text)
            for n, each in enumerate(chunks, first)
        ]
        self._connection.executemany(INSERT_CHUNK, rows)

    async def add_vectors(self, key: DocumentKey, content: UUID, space: str, vectors: Mapping[int, bytes]) -> None:
        of = (*_of_document(key), content.bytes, space)
        self._connection.executemany(INSERT_VECTOR, [(*of, n, vector) for n, vector in sorted(vectors.items())])

    async def index_entries(
        self, key: ProjectKey, ranges: Sequence[ChunkRange], space: str | None
    ) -> list[list[IndexedChunk]]:
        found = (self._fetch(ENTRIES, (*_of_range(key, each), space)) for each in ranges)
        return [list(map(IndexedChunk._make, rows)) for rows in found]

    async def chunks(self, key: ProjectKey, ranges: Sequence[ChunkRange], max_bytes: int) -> list[Chunk]:
        with closing(self._sized_chunks(key, ranges)) as found:
            return within(found, max_bytes).items

    def _sized_chunks(self, key: ProjectKey, ranges: Sequence[ChunkRange]) -> Generator[tuple[Chunk, int]]:
        """Chunks one by one, each with the size of its text."""
        for each in ranges:
            with self._rows(CHUNKS, _of_range(key, each)) as rows:
                for row in rows:
                    chunk = Chunk(each.document_id, *row)
                    yield chunk, stored_bytes(chunk.text)

    async def count_vectors(self, key: ProjectKey, space: str) -> dict[UUID, int]:
        return {uuid(content): count for content, count in self._fetch(COUNT_VECTORS, (*_of_project(key), space))}

    async def without_vectors(self, key: DocumentKey, content: UUID, space: str, limit: int) -> list[int]:
        return [n for (n,) in self._fetch(WITHOUT_VECTORS, (*_of_document(key), content.bytes, space, limit))]

    async def nearest_chunks(self, key: ProjectKey, space: str, vector: bytes, limit: int) -> list[Nearest] | None:  # noqa: ARG002 - there is no way
        return None

    # --- removal ------------------------------------------------------------------------------------------

    def _each[T: (bytes, str)](self, following: str, of: Values, value: T) -> Iterator[T]:
        """The values above one, in order, as the statement `following` finds the next."""
        while (found := self._connection.execute(following, (*of, value)).get) is not None:
            value = cast("T", found)
            yield value

    def _spaces(self, key: ProjectKey) -> list[str]:
        """The spaces of which a project has vectors."""
        return list(self._each(NEXT_SPACE, _of_project(key), ""))

    async def remove_rubbish(self, key: DocumentKey, keep: Collection[UUID]) -> Removed | None:
        of, kept = _of_document(key), {id_.bytes for id_ in keep}
        content = next((each for each in self._each(NEXT_CONTENT, of, b"") if each not in kept), None)
        if content is None:
            return None
        last = self._connection.execute(LAST_OF_SLICE, (*of, content, CHUNK_SLICE)).get
        vectors = sum(
            self._delete(DELETE_VECTORS, *of, content, last, space) for space in self._spaces(ProjectKey(*key[:2]))
        )
        return Removed(chunks=self._delete(DELETE_CHUNKS, *of, content, last), vectors=vectors)

    async def remove_vectors(self, key: ProjectKey, space: str) -> bool:
        other = next((each for each in self._spaces(key) if each != space), None)
        return other is not None and self._delete(DELETE_SOME_OF_SPACE, *_of_project(key), other, CHUNK_SLICE) > 0

    async def hide_project(self, key: ProjectKey) -> bool:
        return self._delete(HIDE_PROJECT, to_micros(self._writes.moment), *_of_project(key)) > 0

    async def hide_projects(self, owner: str) -> None:
        self._connection.execute(HIDE_PROJECTS, (to_micros(self._writes.moment), owner))

    async def hidden_projects(self, owner: str, limit: int) -> list[UUID]:
        return [uuid(id_) for (id_,) in self._fetch(HIDDEN_PROJECTS, (owner, limit))]

    async def purge_project(self, key: ProjectKey) -> Removed | None:
        of = _of_project(key)
        if self._connection.execute(IS_HIDDEN, of).get is None:
            return None
        vectors = self._delete(DELETE_SOME_VECTORS, *of, CHUNK_SLICE)
        chunks = self._delete(DELETE_SOME_CHUNKS, *of, CHUNK_SLICE - vectors)
        documents = self._delete(DELETE_SOME_DOCUMENTS, *of, CHUNK_SLICE - vectors - chunks)
        is_empty = vectors + chunks + documents < CHUNK_SLICE
        projects = self._delete(DELETE_PROJECT, *of) if is_empty else 0
        return Removed(projects=projects, documents=documents, chunks=chunks, vectors=vectors)

    def _check_projects(self, old: str, new: str) -> None:
        """Raise Conflict if an owner who is renamed would lose documents, as the other one has the project."""
        if self._connection.execute(PROJECTS_CLASH, (new, old)).get:
            raise Conflict(BOTH_HAVE_PROJECT)

    def _delete(self, statement: str, *values: Any) -> int:
        """Execute a statement that changes rows, and count them."""
        self._connection.execute(statement, values)
        return self._connection.changes()


def _of_project(key: ProjectKey) -> Values:
    return key.owner, key.id.bytes


def _of_document(key: DocumentKey) -> Values:
    return key.owner, key.project_id.bytes, key.id.bytes


def _of_range(key: ProjectKey, which: ChunkRange) -> Values:
    return *_of_project(key), which.document_id.bytes, which.content.bytes, which.first, which.last


def _uuid_or_none(value: bytes | None) -> UUID | None:
    return None if value is None else uuid(value)


def _assigned(values: Mapping[str, Any]) -> str:
    """The assignments of an UPDATE. The names are of this package, never a caller's."""
    return ", ".join(f"{name} = ?" for name in values)


def _column(value: Any) -> Any:
    """A value as it is stored."""
    if isinstance(value, UUID):
        return value.bytes
    return to_micros(value) if isinstance(value, datetime) else value


def _project(row: Row) -> Project:
    """The record of a project."""
    id_, owner, name, metadata, documents, chunks, space, version, created, updated = row
    return stored(
        Project,
        PROJECT_FIELDS,
        {
            "id": uuid(id_),
            "owner_id": owner,
            "name": name,
            "metadata": load_json(metadata) if metadata else {},
            "documents": documents,
            "chunks": chunks,
            "space": space,
            "version": version,
            "created_at": from_micros(created),
            "updated_at": from_micros(updated),
        },
    )


def _document(key: ProjectKey, row: Sequence[Any]) -> Document:
    """The record of a document of a project."""
    id_, path, title, media_type, size, sha256, chunks, created, updated = row
    return stored(
        Document,
        DOCUMENT_FIELDS,
        {
            "id": uuid(id_),
            "owner_id": key.owner,
            "project_id": key.id,
            "file_path": path,
            "title": title,
            "media_type": media_type,
            "bytes": size,
            "sha256": sha256,
            "chunks": chunks,
            "created_at": from_micros(created),
            "updated_at": from_micros(updated),
        },
    )
