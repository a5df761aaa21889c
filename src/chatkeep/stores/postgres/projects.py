"""The rows of projects and documents in PostgreSQL. Every statement names the owner first.

Locks are taken in one order: the user, the project, the conversation, the document.
"""

import asyncio
import struct
from array import array
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import timedelta
from itertools import batched
from operator import attrgetter
from typing import Any, NamedTuple, cast
from uuid import UUID

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
from chatkeep.model import stored
from chatkeep.projects import PROJECT_FIELDS, NewProject, Project
from chatkeep.stores.postgres.columns import in_utc, sized_projects
from chatkeep.stores.postgres.conversations import PostgresConversations, count_of
from chatkeep.stores.postgres.text import decode, encode
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey, ProjectPlace
from chatkeep.stores.rows import Row, stored_bytes
from chatkeep.stores.slices import PageSize, Part, Removed, within
from chatkeep.values import decode_nul, encode_nul, json_text, load_json

CHUNK_SLICE = 1_000
"""Chunks, or vectors of a space, or documents, that one transaction removes at most."""

AT_ONCE_BYTES = 1 << 20
"""Bytes of terms and vectors that are looked at before others may go on, which takes about a millisecond."""

SENT_BYTES = 64 << 10
"""Bytes of vectors that are made into parameters at a time, which takes about 3 ms."""

PROJECT_METADATA = 3
"""The column of a project that has no value if it is too large."""

PROJECT_COLUMNS = """
    p.id, p.owner_id, p.name, coalesce(p.metadata, '{}') AS metadata, p.documents, p.chunks, p.space, p.version,
    p.created_at, p.updated_at
"""
PROJECTS = f"SELECT {PROJECT_COLUMNS} FROM projects p WHERE p.owner_id = $1 AND p.deleted_at IS NULL"  # noqa: S608
# The user first, whom the foreign key of what is created locks in the same way.
HAS_PROJECT = """
    SELECT 1 FROM users u JOIN projects p ON p.owner_id = u.id
    WHERE p.owner_id = $1 AND p.id = $2 AND p.deleted_at IS NULL FOR KEY SHARE
"""
INSERT_PROJECT = f"""
    WITH owner AS (INSERT INTO users (id) VALUES ($1) ON CONFLICT DO NOTHING)
    INSERT INTO projects AS p (owner_id, id, name, metadata, fingerprint) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT DO NOTHING RETURNING {PROJECT_COLUMNS}
"""  # noqa: S608
# A lease is extended when a third of its time is over, and cut if another one was longer.
HAS_LEASE = """
    SELECT embedding_until - statement_timestamp() > $4::interval * 2 / 3
        AND embedding_until - statement_timestamp() <= $4::interval FROM projects
    WHERE owner_id = $1 AND id = $2 AND embedding_worker = $3 AND deleted_at IS NULL
"""
LEASE = """
    UPDATE projects SET embedding_worker = $3, embedding_until = statement_timestamp() + $4
    WHERE owner_id = $1 AND id = $2 AND deleted_at IS NULL
        AND (embedding_worker IS NULL OR embedding_worker = $3 OR embedding_until <= statement_timestamp())
"""
DOCUMENT_COLUMNS = """
    d.id, d.owner_id, d.project_id, d.file_path, d.title, d.media_type, d.bytes, d.sha256, d.chunks, d.created_at,
    d.updated_at
"""
DOCUMENT = f"""
    SELECT {DOCUMENT_COLUMNS}, d.content, d.staged, d.version, d.has_rubbish FROM documents d
    WHERE d.owner_id = $1 AND d.project_id = $2 AND d.id = $3
"""  # noqa: S608
INSERT_DOCUMENT = """
    INSERT INTO documents (owner_id, project_id, id, file_path, title, media_type, bytes, sha256, staged)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
"""
LISTED_DOCUMENTS = f"""
    SELECT {DOCUMENT_COLUMNS} FROM documents d
    WHERE d.owner_id = $1 AND d.project_id = $2 AND d.content IS NOT NULL AND ($3::text IS NULL OR d.file_path > $3)
    ORDER BY d.file_path OFFSET $4 LIMIT $5
"""  # noqa: S608
CONTENTS = """
    SELECT id, content, file_path, title, chunks, version FROM documents
    WHERE owner_id = $1 AND project_id = $2 AND content IS NOT NULL AND id > $3 ORDER BY id LIMIT $4
"""
WITH_RUBBISH = """
    SELECT id FROM documents WHERE owner_id = $1 AND project_id = $2 AND has_rubbish ORDER BY id LIMIT $3
"""
INSERT_CHUNKS = """
    INSERT INTO chunks (owner_id, project_id, document_id, content, n, start, header_anchor, heading, terms, text)
    SELECT $1, $2, $3, $4, t.*
    FROM unnest($5::integer[], $6::bigint[], $7::text[], $8::text[], $9::bytea[], $10::text[])
        AS t (n, start, header_anchor, heading, terms, text)
    ON CONFLICT DO NOTHING
"""
INSERT_VECTOR = """
    INSERT INTO vectors (owner_id, project_id, space, document_id, content, n, vector)
    SELECT c.owner_id, c.project_id, $5, c.document_id, c.content, c.n, $7 FROM chunks c
    WHERE c.owner_id = $1 AND c.project_id = $2 AND c.document_id = $3 AND c.content = $4 AND c.n = $6
    ON CONFLICT DO NOTHING
"""
# The order asks for the one index, which has all of it; the ranges come one after the other.
_OF_RANGES = """
    SELECT {columns}
    FROM unnest($3::uuid[], $4::uuid[], $5::integer[], $6::integer[]) WITH ORDINALITY
        AS w (document_id, content, first, last, place)
    CROSS JOIN LATERAL (
        SELECT {wanted} FROM {table} WHERE owner_id = $1 AND project_id = $2{and_more} AND document_id = w.document_id
            AND content = w.content AND n BETWEEN w.first AND w.last ORDER BY n
    ) c
"""
TERMS = _OF_RANGES.format(columns="w.place, c.n, c.terms", wanted="n, terms", table="chunks", and_more="")
VECTORS = _OF_RANGES.format(
    columns="w.place, c.n, c.vector",
    wanted="n, array_send(vector) AS vector",
    table="vectors",
    and_more=" AND space = $7",
)
# The size of a text is known without reading it.
SIZED_CHUNKS = _OF_RANGES.format(
    columns="""w.place, w.document_id, c.*, octet_length(c.text) AS bytes,
        sum(octet_length(c.text)) OVER (ORDER BY w.place, c.n) AS total""",
    wanted="n, text, header_anchor, heading, start",
    table="chunks",
    and_more="",
)
CHUNKS = f"""
    SELECT document_id, n, text, header_anchor, heading, start FROM ({SIZED_CHUNKS}) sized
    WHERE total <= $7 OR total = bytes ORDER BY place, n
"""  # noqa: S608
COUNT_VECTORS = """
    SELECT content, count(*) FROM vectors WHERE owner_id = $1 AND project_id = $2 AND space = $3
    GROUP BY document_id, content
"""
WITHOUT_VECTORS = """
    SELECT n FROM chunks c
    WHERE owner_id = $1 AND project_id = $2 AND document_id = $3 AND content = $4 AND NOT EXISTS (
        SELECT 1 FROM vectors v WHERE v.owner_id = $1 AND v.project_id = $2 AND v.space = $5 AND v.document_id = $3
            AND v.content = $4 AND v.n = c.n)
    ORDER BY n LIMIT $6
"""
# Whether the type is there, and whether there is an index of those that find most of what is near.
PGVECTOR = """
    SELECT to_regtype('vector') IS NOT NULL, EXISTS (
        SELECT 1 FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam
        WHERE i.indrelid = 'vectors'::regclass AND a.amname = 'hnsw')
    FROM pg_extension WHERE extname = 'vector'
"""
NEAREST = """
    SELECT v.document_id, v.n, 1 - (v.vector::vector({0}) <=> $4::real[]::vector({0})) FROM vectors v
    JOIN documents d ON d.owner_id = $1 AND d.project_id = $2 AND d.id = v.document_id AND d.content = v.content
    WHERE v.owner_id = $1 AND v.project_id = $2 AND v.space = $3
    ORDER BY v.vector::vector({0}) <=> $4::real[]::vector({0}) LIMIT $5
"""
NEXT_CONTENT = """
    SELECT content FROM chunks WHERE owner_id = $1 AND project_id = $2 AND document_id = $3
        AND ($4::uuid IS NULL OR content > $4) ORDER BY content LIMIT 1
"""
NEXT_SPACE = """
    SELECT space FROM vectors WHERE owner_id = $1 AND project_id = $2 AND space > $3 ORDER BY space LIMIT 1
"""
END_OF_CHUNKS = """
    SELECT document_id, content, n FROM chunks WHERE owner_id = $1 AND project_id = $2
        AND (document_id, content) BETWEEN ($3, $4) AND ($5, $6)
    ORDER BY document_id, content, n OFFSET $7 LIMIT 1
"""
END_OF_VECTORS = """
    SELECT document_id, content, n FROM vectors WHERE owner_id = $1 AND project_id = $2 AND space = $3
    ORDER BY document_id, content, n OFFSET $4 LIMIT 1
"""
REMOVE_CHUNKS = """
    DELETE FROM chunks WHERE owner_id = $1 AND project_id = $2
        AND (document_id, content, n) BETWEEN ($3, $4, 0) AND ($5, $6, $7)
"""
REMOVE_VECTORS = """
    DELETE FROM vectors WHERE owner_id = $1 AND project_id = $2
        AND (document_id, content, n) BETWEEN ($3, $4, 0) AND ($5, $6, $7) AND space = $8
"""
HIDE_PROJECT = "UPDATE projects SET deleted_at = coalesce(deleted_at, now()) WHERE owner_id = $1 AND id = $2"
HIDE_PROJECTS = "UPDATE projects SET deleted_at = now() WHERE owner_id = $1 AND deleted_at IS NULL"
HIDDEN_PROJECTS = "SELECT id FROM projects WHERE owner_id = $1 AND deleted_at IS NOT NULL ORDER BY id LIMIT $2"
LOCK_HIDDEN = "SELECT 1 FROM projects WHERE owner_id = $1 AND id = $2 AND deleted_at IS NOT NULL FOR UPDATE"
REMOVE_DOCUMENTS = """
    DELETE FROM documents WHERE owner_id = $1 AND project_id = $2 AND id IN (
        SELECT id FROM documents WHERE owner_id = $1 AND project_id = $2 ORDER BY id LIMIT $3)
"""
# Conversations that are hidden, too, are of the project until their rows are gone.
REMOVE_PROJECT = """
    DELETE FROM projects WHERE owner_id = $1 AND id = $2 AND NOT EXISTS (
        SELECT 1 FROM conversations WHERE owner_id = $1 AND project_id = $2)
"""
ENCODED = {"name", "space", "title"}
FIRST, LAST = UUID(int=0), UUID(int=2**128 - 1)
LAST_N = 2**31 - 1


class Contents(NamedTuple):
    """Contents of a project, from one to another one, both included."""

    first: tuple[UUID, UUID] = (FIRST, FIRST)
    """Document and content."""
    last: tuple[UUID, UUID] = (LAST, LAST)


class PostgresProjects(PostgresConversations):
    """Rows of projects on one connection: each statement sees a snapshot of its own."""

    __slots__ = ()

    # --- projects -----------------------------------------------------------------------------------------

    async def has_project(self, owner: str, id_: UUID) -> bool:
        return await self._connection.fetchval(HAS_PROJECT, owner, id_) is not None

    async def make_project(self, owner: str, id_: UUID, name: str) -> None:
        await self._connection.execute(INSERT_PROJECT, owner, id_, encode_nul(name), None, None)

    async def project_name(self, owner: str, id_: UUID) -> str | None:
        statement = "SELECT name FROM projects WHERE owner_id = $1 AND id = $2"
        return decode(await self._connection.fetchval(statement, owner, id_))

    async def create_project(self, key: ProjectKey, new: NewProject) -> Project | None:
        metadata = json_text(new.metadata) if new.metadata else None
        values = encode_nul(new.name), metadata, new.fingerprint()
        row = await self._connection.fetchrow(INSERT_PROJECT, *key, *values)
        return None if row is None else to_project(row)

    async def project(self, key: ProjectKey, *, lock: bool = False) -> Project | None:
        statement = f"{PROJECTS} AND p.id = $2{' FOR NO KEY UPDATE' if lock else ''}"
        row = await self._connection.fetchrow(statement, *key)
        return None if row is None else to_project(row)

    async def project_fingerprint(self, key: ProjectKey) -> bytes | None:
        statement = "SELECT fingerprint FROM projects WHERE owner_id = $1 AND id = $2"
        return cast("bytes | None", await self._connection.fetchval(statement, *key))

    async def listed_projects(
        self, owner: str, after: ProjectPlace | None, size: PageSize, offset: int
    ) -> Part[Project]:
        below = "" if after is None else " AND (p.created_at, p.id) < ($2, $3)"
        values = (owner, *(after or ()), offset)
        n = len(values)
        rows = f"{PROJECTS}{below} ORDER BY p.created_at DESC, p.id DESC OFFSET ${n} LIMIT ${n + 1}"
        statement = sized_projects(rows, "created_at DESC, id DESC", f"${n + 2}")
        found, cut = await self._fetch_page(statement, *values, size=size, column=PROJECT_METADATA)
        return Part([to_project(row) for row in found], cut)

    async def count_projects(self, owner: str) -> int:
        statement = "SELECT count(*) FROM projects WHERE owner_id = $1 AND deleted_at IS NULL"
        return cast("int", await self._connection.fetchval(statement, owner))

    async def set_project(self, key: ProjectKey, values: Mapping[str, Any]) -> None:
        await self._set("UPDATE projects SET {} WHERE owner_id = $1 AND id = $2", key, values)

    async def claim_embedding(self, key: ProjectKey, worker: UUID, lease: timedelta) -> bool:
        if await self._connection.fetchval(HAS_LEASE, *key, worker, lease):
            return True
        return await self._connection.execute(LEASE, *key, worker, lease) != "UPDATE 0"

    async def _set(self, statement: str, key: Sequence[object], values: Mapping[str, Any]) -> None:
        # Names of this package, never a caller's.
        names = ", ".join(f"{name} = ${number}" for number, name in enumerate(values, len(key) + 1))
        given = (encode(value) if name in ENCODED else value for name, value in values.items())
        await self._connection.execute(statement.format(names), *key, *given)

    # --- documents ----------------------------------------------------------------------------------------

    async def document(self, key: DocumentKey, *, lock: bool = False) -> DocumentRow | None:
        row = await self._connection.fetchrow(f"{DOCUMENT} FOR NO KEY UPDATE" if lock else DOCUMENT, *key)
        return None if row is None else DocumentRow(to_document(row), *row[-4:])

    async def create_document(self, key: DocumentKey, new: NewDocument, staged: UUID) -> None:
        values = encode_nul(new.file_path), encode(new.title), new.media_type, new.bytes, new.sha256, staged
        await self._connection.execute(INSERT_DOCUMENT, *key, *values)

    async def set_document(self, key: DocumentKey, values: Mapping[str, Any]) -> None:
        statement = "UPDATE documents SET {} WHERE owner_id = $1 AND project_id = $2 AND id = $3"
        await self._set(statement, key, values)

    async def remove_document(self, key: DocumentKey) -> None:
        statement = "DELETE FROM documents WHERE owner_id = $1 AND project_id = $2 AND id = $3"
        await self._connection.execute(statement, *key)

    async def listed_documents(self, key: ProjectKey, after: str | None, size: PageSize, offset: int) -> Part[Document]:
        found = await self._planned(LISTED_DOCUMENTS, *key, encode(after), offset, size.limit)
        documents = map(to_document, found)
        return within(((each, stored_bytes(each.file_path, each.title)) for each in documents), size.max_bytes)

    async def contents(self, key: ProjectKey, after: UUID | None, limit: int) -> list[Content]:
        found = await self._connection.fetch(CONTENTS, *key, after or FIRST, limit)
        return [
            Content(id_, content, decode_nul(path), decode(title), chunks, version)
            for id_, content, path, title, chunks, version in found
        ]

    async def with_rubbish(self, key: ProjectKey, limit: int) -> list[UUID]:
        return [row[0] for row in await self._connection.fetch(WITH_RUBBISH, *key, limit)]

    # --- chunks and vectors -------------------------------------------------------------------------------

    async def add_chunks(self, key: DocumentKey, content: UUID, first: int, chunks: Sequence[NewChunk]) -> None:
        columns = (
            list(range(first, first + len(chunks))),
            [chunk.start for chunk in chunks],
            [encode(chunk.header_anchor) for chunk in chunks],
            [encode_nul(chunk.heading) for chunk in chunks],
            [chunk.terms for chunk in chunks],
            [encode_nul(chunk.text) for chunk in chunks],
        )
        await self._connection.execute(INSERT_CHUNKS, *key, content, *columns)

    async def add_vectors(self, key: DocumentKey, content: UUID, space: str, vectors: Mapping[int, bytes]) -> None:
        at_once = max(1, SENT_BYTES // max(map(len, vectors.values()), default=1))
        for some in batched(sorted(vectors.items()), at_once, strict=False):
            rows = [(*key, content, encode_nul(space), n, numbers_of(vector)) for n, vector in some]
            await self._connection.executemany(INSERT_VECTOR, rows)

    async def index_entries(
        self, key: ProjectKey, ranges: Sequence[ChunkRange], space: str | None
    ) -> list[list[IndexedChunk]]:
        columns = columns_of(ranges)
        found: list[list[IndexedChunk]] = [[] for _ in ranges]
        vectors: dict[tuple[int, int], bytes] = {}
        if space is not None:
            rows = await self._planned(VECTORS, *key, *columns, encode_nul(space))
            async for place, n, sent in unhurried(rows):
                vectors[place, n] = vector_of(sent)
        async for place, n, terms in unhurried(await self._planned(TERMS, *key, *columns)):
            found[place - 1].append(IndexedChunk(n, terms, vectors.get((place, n))))
        return [sorted(each, key=attrgetter("n")) for each in found]

    async def chunks(self, key: ProjectKey, ranges: Sequence[ChunkRange], max_bytes: int) -> list[Chunk]:
        found = await self._planned(CHUNKS, *key, *columns_of(ranges), max_bytes)
        return [
            Chunk(document, n, decode_nul(text), decode(anchor), decode_nul(heading), start)
            for document, n, text, anchor, heading, start in found
        ]

    async def count_vectors(self, key: ProjectKey, space: str) -> dict[UUID, int]:
        return {row[0]: row[1] for row in await self._connection.fetch(COUNT_VECTORS, *key, encode_nul(space))}

    async def without_vectors(self, key: DocumentKey, content: UUID, space: str, limit: int) -> list[int]:
        found = await self._planned(WITHOUT_VECTORS, *key, content, encode_nul(space), limit)
        return [row[0] for row in found]

    async def nearest_chunks(self, key: ProjectKey, space: str, vector: bytes, limit: int) -> list[Nearest] | None:
        row = await self._connection.fetchrow(PGVECTOR)
        if row is None or not row[0]:
            return None
        values = (*key, encode_nul(space), numbers_of(vector), limit)
        statement = NEAREST.format(len(vector) // 4)
        found = await (self._by_index(statement, *values) if row[1] else self._planned(statement, *values))
        return sorted((Nearest(*each) for each in found), key=lambda each: (-each.cosine, each.document_id, each.n))

    async def _by_index(self, statement: str, *values: object) -> Sequence[Row]:
        """Fetch from an index that goes on until it has found enough of the owner's: it is one of all owners."""
        begun = not self._connection.is_in_transaction()
        await self._connection.execute(f"{'BEGIN; ' if begun else ''}SET LOCAL hnsw.iterative_scan = relaxed_order")
        found = await self._planned(statement, *values)
        if begun:  # after an error the connection is closed, which ends it
            await self._connection.execute("COMMIT")
        return found

    # --- removal ------------------------------------------------------------------------------------------

    async def remove_rubbish(self, key: DocumentKey, keep: Collection[UUID]) -> Removed | None:
        found: Sequence[Row] = [(None,)]
        while found and found[0][0] in {None, *keep}:
            found = await self._planned(NEXT_CONTENT, *key, found[0][0])
        if not found:
            return None
        place = key.id, found[0][0]
        return await self._remove_chunks(ProjectKey(*key[:2]), Contents(place, place))

    async def _remove_chunks(self, key: ProjectKey, which: Contents) -> Removed:
        """Remove the first chunks of some contents, with their vectors."""
        end = await self._connection.fetchrow(END_OF_CHUNKS, *key, *which.first, *which.last, CHUNK_SLICE - 1)
        bounds = *key, *which.first, *(end or (*which.last, LAST_N))
        chunks = count_of(await self._connection.execute(REMOVE_CHUNKS, *bounds))
        vectors = 0
        for space in await self._spaces(key):
            vectors += count_of(await self._connection.execute(REMOVE_VECTORS, *bounds, space))
        return Removed(chunks=chunks, vectors=vectors)

    async def _spaces(self, key: ProjectKey) -> list[str]:
        """The spaces of a project's vectors, as they are stored: one, or two while an embedder replaces another one."""
        found: list[str] = []
        while space := await self._connection.fetchval(NEXT_SPACE, *key, found[-1] if found else ""):
            found.append(space)
        return found

    async def remove_vectors(self, key: ProjectKey, space: str) -> bool:
        other = next((each for each in await self._spaces(key) if each != encode_nul(space)), None)
        if other is None:
            return False
        end = await self._connection.fetchrow(END_OF_VECTORS, *key, other, CHUNK_SLICE - 1)
        bounds = FIRST, FIRST, *(end or (LAST, LAST, LAST_N))
        await self._connection.execute(REMOVE_VECTORS, *key, *bounds, other)
        return True

    async def hide_project(self, key: ProjectKey) -> bool:
        return await self._connection.execute(HIDE_PROJECT, *key) != "UPDATE 0"

    async def hide_projects(self, owner: str) -> None:
        await self._connection.execute(HIDE_PROJECTS, owner)

    async def hidden_projects(self, owner: str, limit: int) -> list[UUID]:
        return [row[0] for row in await self._connection.fetch(HIDDEN_PROJECTS, owner, limit)]

    async def purge_project(self, key: ProjectKey) -> Removed | None:
        if await self._connection.fetchval(LOCK_HIDDEN, *key) is None:  # the lock serialises concurrent removals
            return None
        gone = await self._remove_chunks(key, Contents())
        if gone.chunks == CHUNK_SLICE:
            return gone
        documents = count_of(await self._connection.execute(REMOVE_DOCUMENTS, *key, CHUNK_SLICE))
        projects = 0
        if documents < CHUNK_SLICE:
            projects = count_of(await self._connection.execute(REMOVE_PROJECT, *key))
        return gone.plus(Removed(projects=projects, documents=documents))


def to_project(row: Row) -> Project:
    """The record of a project."""
    id_, owner, name, metadata, documents, chunks, space, version, created_at, updated_at = row[:10]
    return stored(
        Project,
        PROJECT_FIELDS,
        {
            "id": id_,
            "owner_id": decode_nul(owner),
            "name": decode_nul(name),
            "metadata": load_json(metadata),
            "documents": documents,
            "chunks": chunks,
            "space": decode(space),
            "version": version,
            "created_at": created_at,
            "updated_at": in_utc(updated_at),
        },
    )


def to_document(row: Row) -> Document:
    """The record of a document."""
    id_, owner, project, path, title, media_type, its_bytes, sha256, chunks, created_at, updated_at = row[:11]
    return stored(
        Document,
        DOCUMENT_FIELDS,
        {
            "id": id_,
            "owner_id": decode_nul(owner),
            "project_id": project,
            "file_path": decode_nul(path),
            "title": decode(title),
            "media_type": media_type,
            "bytes": its_bytes,
            "sha256": sha256,
            "chunks": chunks,
            "created_at": created_at,
            "updated_at": in_utc(updated_at),
        },
    )


def columns_of(ranges: Sequence[ChunkRange]) -> list[list[Any]]:
    """The columns of ranges, also of none."""
    return [list(column) for column in zip(*ranges, strict=True)] or [[] for _ in ChunkRange._fields]


def numbers_of(vector: bytes) -> tuple[float, ...]:
    """The numbers of a vector, as the driver sends them."""
    return struct.unpack(f"<{len(vector) // 4}f", vector)


def vector_of(sent: bytes) -> bytes:
    """The vector of an array, as the server sends it: after 20 bytes, for each number its length and itself.

    The driver would make an object of each number, in eight times the time.
    """
    numbers = array("I", sent[20:])[1::2]
    numbers.byteswap()
    return numbers.tobytes()


async def unhurried(rows: Sequence[Row]) -> AsyncIterator[Row]:
    """Rows that end with bytes, with a pause for others after each mebibyte."""
    seen = 0
    for row in rows:
        yield row
        seen += len(row[-1])
        if seen >= AT_ONCE_BYTES:
            seen = 0
            await asyncio.sleep(0)
