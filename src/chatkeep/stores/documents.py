"""Documents over rows: the port of `chatkeep.documents`, written once for every database.

A content is written in slices, each a transaction that first locks the document and looks whether the content is still
the one that is being written. So nothing of it is written any more when another one was begun, or the document deleted,
and whatever belongs to neither is rubbish, which nobody adds to.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, NamedTuple
from unicodedata import category
from uuid import UUID

from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.documents import (
    EMBEDDING_LEASE,
    LIMITS,
    MAX_CHUNK_CHARS,
    MAX_CHUNK_TERMS,
    MAX_DIMENSION,
    MAX_HEADING_CHARS,
    Chunk,
    ChunkRange,
    Content,
    Document,
    Documents,
    IndexedChunk,
    Nearest,
    NewChunk,
    NewDocument,
    ProjectLimits,
    StoredDocument,
    content_id,
    document_id,
)
from chatkeep.errors import Conflict, InvalidInput, NotFound, ProjectFull
from chatkeep.ids import valid_id
from chatkeep.model import Page
from chatkeep.options import StoreOptions
from chatkeep.projects import Project
from chatkeep.stores.locks import KeyedLocks
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey, ProjectPlace
from chatkeep.stores.projects import ProjectStore, place_of
from chatkeep.stores.rows import Rows, Work
from chatkeep.stores.slices import PageSize
from chatkeep.stores.window import valid_page
from chatkeep.values import clean_text, now, valid_owner, valid_range

CURSOR = "documents"

SLICE_CHUNKS, SLICE_CHARS = 128, 256 << 10
"""Most chunks, and most characters about, that one transaction stores: others wait for it."""

MAX_ENTRIES = 10_000
"""Most chunks that a search reads at a time without their texts."""

MAX_TEXTS = 1_000
"""Most chunks that are read at a time with their texts."""

MAX_NUMBER = 2**31 - 1
"""Largest number of a chunk, and of a character, in any database."""

MAX_SPACE_CHARS = 200
"""Longest name of a space, in characters."""


class Upload(NamedTuple):
    """A document that is being stored."""

    key: DocumentKey
    new: NewDocument
    chunks: Sequence[NewChunk]
    space: str | None
    limits: ProjectLimits

    @property
    def project(self) -> ProjectKey:
        """Its project."""
        return ProjectKey(*self.key[:2])

    @property
    def content(self) -> UUID:
        """The id of its content."""
        return content_id(self.key.id, self.new.sha256)

    def check_limits(self, project: Project, row: DocumentRow | None) -> None:
        """Raise ProjectFull if the project has no room for it in place of what is there."""
        is_new = row is None or row.content is None
        chunks = project.chunks + len(self.chunks) - (0 if is_new or row is None else row.document.chunks)
        if is_new and project.documents >= self.limits.documents:
            raise ProjectFull(
                f"a project may have at most {self.limits.documents:,} documents; remove some, or use another project"
            )
        if chunks > self.limits.chunks:
            raise ProjectFull(
                f"a project may have at most {self.limits.chunks:,} passages, and would have {chunks:,} with this"
                " document; remove some documents, or use another project"
            )


class DocumentStore[R: Rows](ProjectStore[R], Documents):
    """Documents of projects."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._projects: KeyedLocks[ProjectKey] = KeyedLocks()
        """Changes of one project are made one at a time: they lock its row, or meet in a conflict."""

    async def _write_in[T](self, key: ProjectKey, work: Work[R, T]) -> T:
        """Run `work`, which locks a project, in a transaction."""
        async with self._projects.of(key):
            return await self._write(work)

    @property
    def documents(self) -> Documents:
        return self

    def _document_key(self, owner: str, project_id: UUID | str, document: UUID | str) -> DocumentKey:
        return DocumentKey(*self._key(owner, project_id), valid_id(document))

    # --- store --------------------------------------------------------------------------------------------

    async def store_document(
        self,
        owner: str,
        project_id: UUID | str,
        new: NewDocument,
        chunks: Sequence[NewChunk],
        *,
        space: str | None = None,
        limits: ProjectLimits = LIMITS,
    ) -> StoredDocument:
        project = self._project_key(owner, project_id)
        key = DocumentKey(*project, document_id(project.id, new.file_path))
        _check_chunks(chunks, space)
        upload = Upload(key, new, chunks, space, limits)
        there = await self._write_in(project, lambda rows: self._stage(rows, upload))
        if there is not None:
            return there
        for first, some in _slices(chunks):
            await self._store_slice(upload, first, [_cleaned(chunk) for chunk in some])
        try:
            stored, has_rubbish = await self._write_in(project, lambda rows: self._show(rows, upload))
        except ProjectFull:
            await self._in_background(self._abandon(upload))
            raise
        if has_rubbish:
            await self._in_background(self._remove_rubbish(key))
        return stored

    async def _stage(self, rows: R, upload: Upload) -> StoredDocument | None:
        """Begin to store a content; or return the document that has it."""
        project = await self._project(rows, upload.project, lock=True)
        row = await rows.document(upload.key, lock=True)
        if row is not None and row.content == upload.content:
            return StoredDocument(row.document, "unchanged")
        upload.check_limits(project, row)
        if row is None:
            await rows.create_document(upload.key, upload.new, upload.content)
        elif row.staged != upload.content:
            has_rubbish = row.has_rubbish or row.staged is not None
            await rows.set_document(upload.key, {"staged": upload.content, "has_rubbish": has_rubbish})
        return None

    async def _store_slice(self, upload: Upload, first: int, chunks: Sequence[NewChunk]) -> None:
        async def store(rows: R) -> None:
            row = await rows.document(upload.key, lock=True)
            if row is not None and row.content == upload.content:
                return  # another call has stored the same
            _check_staged(row, upload)
            await rows.add_chunks(upload.key, upload.content, first, chunks)
            if upload.space is not None:
                vectors = {n: chunk.vector for n, chunk in enumerate(chunks, first) if chunk.vector is not None}
                await rows.add_vectors(upload.key, upload.content, upload.space, vectors)

        await self._write(store)

    async def _show(self, rows: R, upload: Upload) -> tuple[StoredDocument, bool]:
        """Make a content that is stored the document's; say whether there is rubbish now."""
        project = await self._project(rows, upload.project, lock=True)
        row = await rows.document(upload.key, lock=True)
        if row is not None and row.content == upload.content:
            return StoredDocument(row.document, "unchanged"), row.has_rubbish
        row = _check_staged(row, upload)
        upload.check_limits(project, row)
        is_new, moment, count = row.content is None, max(row.document.updated_at, now()), len(upload.chunks)
        new = upload.new
        shown: dict[str, Any] = {
            "title": new.title,
            "media_type": new.media_type,
            "bytes": new.bytes,
            "sha256": new.sha256,
        }
        shown |= {"chunks": count, "updated_at": moment}
        has_rubbish = row.has_rubbish or not is_new
        values = {"content": upload.content, "staged": None, "version": project.version + 1, "has_rubbish": has_rubbish}
        await rows.set_document(upload.key, shown | values)
        chunks = project.chunks + count - (0 if is_new else row.document.chunks)
        counts = {"documents": project.documents + is_new, "chunks": chunks}
        await self._change_index(rows, upload.project, project, counts, upload.space)
        document = row.document.model_copy(update=shown)
        return StoredDocument(document, "new" if is_new else "replaced"), has_rubbish

    async def _abandon(self, upload: Upload) -> None:
        """Remove a content that cannot be shown."""

        async def unstage(rows: R) -> bool:
            row = await rows.document(upload.key, lock=True)
            is_staged = row is not None and row.staged == upload.content
            if is_staged:
                await rows.set_document(upload.key, {"staged": None, "has_rubbish": True})
            return is_staged

        if await self._write(unstage):
            await self._remove_rubbish(upload.key)

    async def _change_index(
        self, rows: R, key: ProjectKey, project: Project, counts: Mapping[str, int], space: str | None = None
    ) -> None:
        """Note in a project that is locked that a search may find other things now."""
        values = {"version": project.version + 1, "updated_at": max(project.updated_at, now())}
        chosen = {"space": space} if project.space is None and space is not None else {}
        await rows.set_project(key, values | dict(counts) | chosen)

    async def _remove_rubbish(self, key: DocumentKey) -> None:
        """Remove what belongs to no content of a document, in slices, and the document if it has none."""
        while await self._write(lambda rows: self._remove_some_rubbish(rows, key)):
            pass

    async def _remove_some_rubbish(self, rows: R, key: DocumentKey) -> bool:
        row = await rows.document(key, lock=True)
        if row is None:
            return False
        keep = [content for content in (row.content, row.staged) if content is not None]
        if await rows.remove_rubbish(key, keep):
            return True
        if keep:
            await rows.set_document(key, {"has_rubbish": False})
        else:
            await rows.remove_document(key)
        return False

    async def _remove_all_rubbish(self, owner: str) -> None:
        """Finish the removals of an owner's documents that were cut off. The owner comes as it is stored."""
        projects = await self._projects_after(owner, None)
        while projects:
            for project in projects:
                await self._remove_rubbish_of(ProjectKey(owner, project.id))
            projects = await self._projects_after(owner, place_of(projects[-1]))

    async def _projects_after(self, owner: str, after: ProjectPlace | None) -> list[Project]:
        found, _ = await self._read(lambda rows: rows.listed_projects(owner, after, PageSize(100, 1 << 20), 0))
        return found

    async def _remove_rubbish_of(self, key: ProjectKey) -> None:
        while ids := await self._read(lambda rows: rows.with_rubbish(key, 100)):
            for id_ in ids:
                await self._remove_rubbish(DocumentKey(*key, id_))

    # --- read ---------------------------------------------------------------------------------------------

    async def _read_in[T](self, key: ProjectKey, work: Work[R, T], *, much: bool = True) -> T:
        """Run `work`, which reads in a project. Raises NotFound without the project."""

        async def read(rows: R) -> T:
            await self._project(rows, key)
            return await work(rows)

        return await (self._read_much(key.owner, read) if much else self._read(read))

    async def get_document(self, owner: str, project_id: UUID | str, document_id: UUID | str) -> Document:
        key = self._document_key(owner, project_id, document_id)
        return (await self._read(lambda rows: self._document(rows, key))).document

    async def _document(self, rows: R, key: DocumentKey) -> DocumentRow:
        await self._project(rows, ProjectKey(*key[:2]))
        row = await rows.document(key)
        if row is None or row.content is None:
            raise NotFound("there is no such document in this project", got=key.id)
        return row

    async def list_documents(
        self,
        owner: str,
        project_id: UUID | str,
        *,
        limit: int = 10,
        cursor: str | None = None,
        offset: int = 0,
        total: bool = False,
    ) -> Page[Document]:
        valid_page(limit, offset, cursor)
        key = self._project_key(owner, project_id)
        scope = (valid_owner(owner), key.id)
        after = None if cursor is None else _path_in(cursor, scope)

        async def read(rows: R, room: int) -> Page[Document]:
            project = await self._project(rows, key)
            found, cut = await rows.listed_documents(key, after, PageSize(limit + 1, room), offset)
            shown = found[:limit]
            following = encode_cursor(CURSOR, scope, shown[-1].file_path) if cut or len(found) > limit else None
            return Page(items=shown, total=project.documents if total else None, next=following)

        return await self._read_page(key.owner, limit, read)

    async def document_chunks(
        self, owner: str, project_id: UUID | str, document_id: UUID | str, *, after: int = -1, limit: int = 50
    ) -> list[Chunk]:
        valid_range("limit", limit, 1, MAX_TEXTS)
        key = self._document_key(owner, project_id, document_id)
        first = min(max(-1, after), 2**31 - 1) + 1

        async def read(rows: R) -> list[Chunk]:
            row = await self._document(rows, key)
            while True:
                chunks = await self._chunks_of(rows, key, row, first, limit)
                again = await self._document(rows, key)
                if again.content == row.content:
                    return chunks
                row = again  # replaced meanwhile, and what was read may lack chunks

        return await self._read_much(key.owner, read)

    async def _chunks_of(self, rows: R, key: DocumentKey, row: DocumentRow, first: int, limit: int) -> list[Chunk]:
        last = min(row.document.chunks, first + limit) - 1
        if row.content is None or last < first:
            return []
        wanted = [ChunkRange(key.id, row.content, first, last)]
        return await rows.chunks(ProjectKey(*key[:2]), wanted, self._options.max_page_bytes)

    async def contents(
        self, owner: str, project_id: UUID | str, *, after: UUID | None = None, limit: int = 1_000
    ) -> list[Content]:
        valid_range("limit", limit, 1, MAX_ENTRIES)
        key = self._project_key(owner, project_id)
        return await self._read_in(key, lambda rows: rows.contents(key, after, limit), much=False)

    async def index_entries(
        self, owner: str, project_id: UUID | str, ranges: Sequence[ChunkRange], *, space: str | None = None
    ) -> list[list[IndexedChunk]]:
        key = self._project_key(owner, project_id)
        _check_ranges(ranges, MAX_ENTRIES)
        _check_space(space)
        return await self._read_in(key, lambda rows: rows.index_entries(key, ranges, space))

    async def chunks(self, owner: str, project_id: UUID | str, ranges: Sequence[ChunkRange]) -> list[Chunk]:
        key = self._project_key(owner, project_id)
        _check_ranges(ranges, MAX_TEXTS)
        most = self._options.max_page_bytes
        return await self._read_in(key, lambda rows: rows.chunks(key, ranges, most), much=False)

    async def nearest_chunks(
        self, owner: str, project_id: UUID | str, space: str, vector: bytes, *, limit: int = 1_000
    ) -> list[Nearest] | None:
        key = self._project_key(owner, project_id)
        valid_range("limit", limit, 1, MAX_ENTRIES)
        _check_space(space)
        _check_vectors([vector])
        return await self._read_in(key, lambda rows: rows.nearest_chunks(key, space, vector, limit))

    # --- delete -------------------------------------------------------------------------------------------

    async def delete_document(self, owner: str, project_id: UUID | str, document_id: UUID | str) -> bool:
        return await self._in_background(self._delete_document(self._document_key(owner, project_id, document_id)))

    async def _delete_document(self, key: DocumentKey) -> bool:
        deleted = await self._write_in(ProjectKey(*key[:2]), lambda rows: self._hide_document(rows, key))
        if deleted:
            await self._remove_rubbish(key)
        return deleted

    async def _hide_document(self, rows: R, key: DocumentKey) -> bool:
        project_key = ProjectKey(*key[:2])
        project = await self._project(rows, project_key, lock=True)
        row = await rows.document(key, lock=True)
        if row is None or row.content is None:
            return False
        hidden = {"content": None, "staged": None, "has_rubbish": True, "version": project.version + 1}
        await rows.set_document(key, hidden)
        counts = {"documents": project.documents - 1, "chunks": project.chunks - row.document.chunks}
        await self._change_index(rows, project_key, project, counts)
        return True

    # --- vectors ------------------------------------------------------------------------------------------

    async def claim_embedding(
        self, owner: str, project_id: UUID | str, worker: UUID, *, lease: timedelta = EMBEDDING_LEASE
    ) -> bool:
        key = self._project_key(owner, project_id)

        async def claim(rows: R) -> bool:
            await self._project(rows, key)
            return await rows.claim_embedding(key, worker, lease)

        return await self._write(claim)

    async def count_vectors(self, owner: str, project_id: UUID | str, space: str) -> Mapping[UUID, int]:
        key = self._project_key(owner, project_id)
        _check_space(space)
        return await self._read_in(key, lambda rows: rows.count_vectors(key, space))

    async def without_vectors(
        self, owner: str, project_id: UUID | str, content: Content, space: str, *, limit: int = 64
    ) -> list[Chunk]:
        valid_range("limit", limit, 1, MAX_TEXTS)
        _check_space(space)
        key = self._document_key(owner, project_id, content.document_id)
        project = ProjectKey(*key[:2])

        async def read(rows: R) -> list[Chunk]:
            numbers = await rows.without_vectors(key, content.id, space, limit)
            ranges = [ChunkRange(key.id, content.id, n, n) for n in numbers]
            return await rows.chunks(project, ranges, self._options.max_page_bytes)

        return await self._read_in(project, read, much=False)

    async def add_vectors(
        self, owner: str, project_id: UUID | str, content: Content, space: str, vectors: Mapping[int, bytes]
    ) -> bool:
        key = self._document_key(owner, project_id, content.document_id)
        valid_range("the number of vectors", len(vectors), 0, MAX_TEXTS)
        for n in vectors:
            valid_range("the number of a chunk", n, 0, MAX_NUMBER)
        _check_space(space)
        _check_vectors(list(vectors.values()))
        work = partial(self._add_vectors, key=key, content=content.id, space=space, vectors=vectors)
        return await self._write_in(ProjectKey(*key[:2]), work)

    async def _add_vectors(
        self, rows: R, key: DocumentKey, content: UUID, space: str, vectors: Mapping[int, bytes]
    ) -> bool:
        project_key = ProjectKey(*key[:2])
        project = await self._project(rows, project_key, lock=True)
        row = await rows.document(key, lock=True)
        if row is None or row.content != content:
            return False
        if not vectors:
            return True
        await rows.add_vectors(key, content, space, vectors)
        if project.space in {None, space}:  # those of another one are not searched yet
            await rows.set_document(key, {"version": project.version + 1})
            await self._change_index(rows, project_key, project, {}, space)
        return True

    async def use_space(self, owner: str, project_id: UUID | str, space: str) -> Project:
        key = self._project_key(owner, project_id)
        _check_space(space)
        project = await self._write_in(key, lambda rows: self._use_space(rows, key, space))
        while await self._write(lambda rows: rows.remove_vectors(key, space)):
            pass
        return project

    async def _use_space(self, rows: R, key: ProjectKey, space: str) -> Project:
        project = await self._project(rows, key, lock=True)
        if project.space == space:
            return project
        values = {"space": space, "version": project.version + 1, "updated_at": max(project.updated_at, now())}
        await rows.set_project(key, values)
        return project.model_copy(update=values)


def _path_in(cursor: str, scope: tuple[object, ...]) -> str:
    (path,) = decode_cursor(cursor, CURSOR, scope, str)
    if path != clean_text(path):
        raise InvalidInput("the cursor is not one that chatkeep gave")
    return str(path)


def _slices(chunks: Sequence[NewChunk]) -> list[tuple[int, Sequence[NewChunk]]]:
    """The chunks in parts that one transaction stores, each with the number of its first."""
    found, first, chars = list[tuple[int, Sequence[NewChunk]]](), 0, 0
    for n, chunk in enumerate(chunks):
        chars += len(chunk.text)
        if n - first == SLICE_CHUNKS or (chars > SLICE_CHARS and n > first):
            found.append((first, chunks[first:n]))
            first, chars = n, len(chunk.text)
    if first < len(chunks):
        found.append((first, chunks[first:]))
    return found


def _check_staged(row: DocumentRow | None, upload: Upload) -> DocumentRow:
    """The row of a document whose content is still the one that is being written. Raises Conflict."""
    if row is None or row.staged != upload.content:
        raise Conflict("another text was stored under this path, or it was deleted, meanwhile; store it again")
    return row


def _check_chunks(chunks: Sequence[NewChunk], space: str | None) -> None:
    if not chunks:
        raise InvalidInput("a document needs at least one chunk")
    longest = max(len(chunk.text) for chunk in chunks)
    if longest > MAX_CHUNK_CHARS:
        raise InvalidInput(f"a chunk may have at most {MAX_CHUNK_CHARS:,} characters; split it", got=f"{longest:,}")
    if any(len(chunk.terms) > 4 * MAX_CHUNK_TERMS or len(chunk.terms) % 4 for chunk in chunks):
        raise InvalidInput(f"a chunk may have at most {MAX_CHUNK_TERMS:,} terms, of 4 bytes each; split it")
    if any(len(text) > MAX_HEADING_CHARS for chunk in chunks for text in (chunk.heading, chunk.header_anchor or "")):
        raise InvalidInput(f"the headings and the anchor of a chunk may have at most {MAX_HEADING_CHARS:,} characters")
    for place in (min(chunk.start for chunk in chunks), max(chunk.start for chunk in chunks)):
        valid_range("the start of a chunk", place, 0, MAX_NUMBER)
    _check_space(space)
    vectors = [chunk.vector for chunk in chunks if chunk.vector is not None]
    if len(vectors) != (0 if space is None else len(chunks)):
        raise InvalidInput("with `space` every chunk needs a vector, without it none")
    _check_vectors(vectors)


def _cleaned(chunk: NewChunk) -> NewChunk:
    """A chunk of valid Unicode."""
    anchor = None if chunk.header_anchor is None else clean_text(chunk.header_anchor)
    return chunk._replace(text=clean_text(chunk.text), heading=clean_text(chunk.heading), header_anchor=anchor)


def _check_space(space: str | None) -> None:
    if space is None:
        return
    is_named = 0 < len(space) <= MAX_SPACE_CHARS
    if not is_named or any(category(character) in {"Cc", "Cs"} for character in space):
        raise InvalidInput(
            f"the name of a space has 1 to {MAX_SPACE_CHARS} characters without control characters; `space_of` makes"
            " one",
            got=space,
        )


def _check_vectors(vectors: Sequence[bytes]) -> None:
    if len({len(vector) for vector in vectors}) > 1:
        raise InvalidInput("the vectors of a space have one dimension")
    if vectors and (not vectors[0] or len(vectors[0]) % 4 or len(vectors[0]) > 4 * MAX_DIMENSION):
        raise InvalidInput(f"a vector has 1 to {MAX_DIMENSION:,} numbers of 4 bytes each", got=len(vectors[0]))


def _check_ranges(ranges: Sequence[ChunkRange], most: int) -> None:
    for each in ranges:
        valid_range("the first chunk of a range", each.first, 0, MAX_NUMBER)
        valid_range("the last chunk of a range", each.last, 0, MAX_NUMBER)
    count = sum(max(0, each.last - each.first + 1) for each in ranges)
    if count > most:
        raise InvalidInput(f"at most {most:,} chunks can be read at a time; ask for fewer", got=count)
