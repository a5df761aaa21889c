"""Projects and documents in memory."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from operator import attrgetter
from typing import Any
from uuid import UUID

from chatkeep.access import BOTH_HAVE_PROJECT
from chatkeep.documents import Chunk, ChunkRange, Content, Document, IndexedChunk, Nearest, NewChunk, NewDocument
from chatkeep.errors import Conflict
from chatkeep.projects import NewProject, Project
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey, ProjectPlace, ProjectRows
from chatkeep.stores.rows import stored_bytes
from chatkeep.stores.slices import PageSize, Part, Removed, within
from chatkeep.values import EPOCH, json_text, load_json, now

PROJECTS_CLASH = "both owners have a project with the same id, of which one has documents; delete one of them"

COLUMNS = ("content", "staged", "version", "has_rubbish")
"""What a row of a document has beside what is shown."""


@dataclass
class StoredContent:
    """Chunks, and their vectors by space, by number."""

    chunks: dict[int, NewChunk] = field(default_factory=dict)
    vectors: dict[str, dict[int, bytes]] = field(default_factory=dict)

    def removed(self) -> Removed:
        """How much goes with it."""
        return Removed(chunks=len(self.chunks), vectors=sum(map(len, self.vectors.values())))


@dataclass
class StoredDocument:
    """A document with its contents."""

    row: DocumentRow
    contents: dict[UUID, StoredContent] = field(default_factory=dict)


@dataclass
class StoredProject:
    """A project with its documents."""

    project: Project
    fingerprint: bytes | None
    is_hidden: bool = False
    worker: UUID | None = None
    until: datetime = EPOCH
    documents: dict[UUID, StoredDocument] = field(default_factory=dict)

    @property
    def has_remains(self) -> bool:
        """Whether a removal was cut off."""
        return self.is_hidden or any(each.row.has_rubbish for each in self.documents.values())


class MemoryProjects(ProjectRows):
    """Rows of projects in dictionaries."""

    __slots__ = ("_projects",)

    _projects: dict[str, dict[UUID, StoredProject]]
    """By owner."""

    def _find_project(self, key: tuple[str, UUID]) -> StoredProject | None:
        return self._projects.get(key[0], {}).get(key[1])

    def _shown_project(self, key: tuple[str, UUID]) -> StoredProject | None:
        found = self._find_project(key)
        return None if found is None or found.is_hidden else found

    def _is_hidden(self, key: tuple[str, UUID]) -> bool:
        found = self._find_project(key)
        return found is not None and found.is_hidden

    def _find_document(self, key: DocumentKey) -> StoredDocument | None:
        found = self._find_project(key[:2])
        return None if found is None else found.documents.get(key.id)

    def _documents(self, key: ProjectKey) -> Iterable[StoredDocument]:
        found = self._find_project(key)
        return [] if found is None else found.documents.values()

    def _find_content(self, key: DocumentKey, content: UUID) -> StoredContent:
        document = self._find_document(key)
        return StoredContent() if document is None else document.contents.get(content, StoredContent())

    # --- projects -----------------------------------------------------------------------------------------

    async def has_project(self, owner: str, id_: UUID) -> bool:
        return self._shown_project((owner, id_)) is not None

    async def make_project(self, owner: str, id_: UUID, name: str) -> None:
        self._make(ProjectKey(owner, id_), name, {}, None)

    async def project_name(self, owner: str, id_: UUID) -> str | None:
        found = self._find_project((owner, id_))
        return None if found is None else found.project.name

    async def create_project(self, key: ProjectKey, new: NewProject) -> Project | None:
        made = self._make(key, new.name, new.metadata, new.fingerprint())
        return None if made is None else _copy(made.project)

    def _make(
        self, key: ProjectKey, name: str, metadata: dict[str, Any], fingerprint: bytes | None
    ) -> StoredProject | None:
        if self._find_project(key) is not None:
            return None
        moment = now()
        project = Project(
            id=key.id,
            owner_id=key.owner,
            name=name,
            metadata=deepcopy(metadata),
            documents=0,
            chunks=0,
            space=None,
            version=0,
            created_at=moment,
            updated_at=moment,
        )
        made = StoredProject(project, fingerprint)
        self._projects.setdefault(key.owner, {})[key.id] = made
        return made

    async def project(self, key: ProjectKey, *, lock: bool = False) -> Project | None:  # noqa: ARG002 - nobody comes between
        found = self._shown_project(key)
        return None if found is None else _copy(found.project)

    async def project_fingerprint(self, key: ProjectKey) -> bytes | None:
        found = self._find_project(key)
        return None if found is None else found.fingerprint

    async def listed_projects(
        self, owner: str, after: ProjectPlace | None, size: PageSize, offset: int
    ) -> Part[Project]:
        found = [each.project for each in self._projects.get(owner, {}).values() if not each.is_hidden]
        ordered = sorted(found, key=attrgetter("created_at", "id"), reverse=True)
        if after is not None:
            ordered = [each for each in ordered if (each.created_at, each.id) < after]
        sized = ((each, stored_bytes(json_text(each.metadata))) for each in ordered[offset : offset + size.limit])
        some = within(sized, size.max_bytes)
        return Part([_copy(each) for each in some.items], some.cut)

    async def count_projects(self, owner: str) -> int:
        return sum(not each.is_hidden for each in self._projects.get(owner, {}).values())

    async def set_project(self, key: ProjectKey, values: Mapping[str, Any]) -> None:
        found, changed = self._projects[key.owner][key.id], dict(values)
        if "metadata" in changed:
            changed["metadata"] = load_json(changed["metadata"] or "{}")
        found.project = found.project.model_copy(update=changed)

    async def claim_embedding(self, key: ProjectKey, worker: UUID, lease: timedelta) -> bool:
        found, moment = self._shown_project(key), now()
        if found is None or (found.worker != worker and found.until > moment):
            return False
        found.worker, found.until = worker, moment + lease
        return True

    # --- documents ----------------------------------------------------------------------------------------

    async def document(self, key: DocumentKey, *, lock: bool = False) -> DocumentRow | None:  # noqa: ARG002 - nobody comes between
        found = self._find_document(key)
        return None if found is None else found.row

    async def create_document(self, key: DocumentKey, new: NewDocument, staged: UUID) -> None:
        moment = now()
        document = Document(
            id=key.id,
            owner_id=key.owner,
            project_id=key.project_id,
            chunks=0,
            created_at=moment,
            updated_at=moment,
            **new.model_dump(),
        )
        row = DocumentRow(document, None, staged, 0, has_rubbish=False)
        self._projects[key.owner][key.project_id].documents[key.id] = StoredDocument(row)

    async def set_document(self, key: DocumentKey, values: Mapping[str, Any]) -> None:
        found = self._projects[key.owner][key.project_id].documents[key.id]
        columns = {name: value for name, value in values.items() if name in COLUMNS}
        shown = {name: value for name, value in values.items() if name not in COLUMNS}
        found.row = found.row._replace(document=found.row.document.model_copy(update=shown), **columns)

    async def remove_document(self, key: DocumentKey) -> None:
        del self._projects[key.owner][key.project_id].documents[key.id]

    async def listed_documents(self, key: ProjectKey, after: str | None, size: PageSize, offset: int) -> Part[Document]:
        found = [each.row.document for each in self._documents(key) if each.row.content is not None]
        ordered = sorted(found, key=lambda document: document.file_path.encode())
        if after is not None:
            ordered = [each for each in ordered if each.file_path.encode() > after.encode()]
        return Part(ordered[offset : offset + size.limit])

    async def contents(self, key: ProjectKey, after: UUID | None, limit: int) -> list[Content]:
        rows = sorted((each.row for each in self._documents(key)), key=lambda row: row.document.id)
        found = (_content(row.document, row.content, row.version) for row in rows if row.content is not None)
        return list(islice((each for each in found if after is None or each.document_id > after), limit))

    async def with_rubbish(self, key: ProjectKey, limit: int) -> list[UUID]:
        return list(islice((each.row.document.id for each in self._documents(key) if each.row.has_rubbish), limit))

    # --- chunks and vectors -------------------------------------------------------------------------------

    async def add_chunks(self, key: DocumentKey, content: UUID, first: int, chunks: Sequence[NewChunk]) -> None:
        found = (
            self._projects[key.owner][key.project_id].documents[key.id].contents.setdefault(content, StoredContent())
        )
        for n, chunk in enumerate(chunks, first):
            found.chunks.setdefault(n, chunk._replace(vector=None))

    async def add_vectors(self, key: DocumentKey, content: UUID, space: str, vectors: Mapping[int, bytes]) -> None:
        found = self._find_content(key, content)
        there = {n: vector for n, vector in vectors.items() if n in found.chunks}
        found.vectors[space] = there | found.vectors.get(space, {})

    def _range(self, key: ProjectKey, which: ChunkRange) -> tuple[StoredContent, list[int]]:
        """A content, and those of its chunks that are in a range."""
        found = self._find_content(DocumentKey(*key, which.document_id), which.content)
        return found, [n for n in sorted(found.chunks) if which.first <= n <= which.last]

    async def index_entries(
        self, key: ProjectKey, ranges: Sequence[ChunkRange], space: str | None
    ) -> list[list[IndexedChunk]]:
        each = (self._range(key, which) for which in ranges)
        return [_entries(found, numbers, found.vectors.get(space or "", {})) for found, numbers in each]

    async def chunks(self, key: ProjectKey, ranges: Sequence[ChunkRange], max_bytes: int) -> list[Chunk]:
        found = (
            (_chunk(which.document_id, n, content.chunks[n]), stored_bytes(content.chunks[n].text))
            for which in ranges
            for content, numbers in [self._range(key, which)]
            for n in numbers
        )
        return within(found, max_bytes).items

    async def count_vectors(self, key: ProjectKey, space: str) -> dict[UUID, int]:
        contents = ((id_, each) for document in self._documents(key) for id_, each in document.contents.items())
        return {id_: len(each.vectors[space]) for id_, each in contents if each.vectors.get(space)}

    async def without_vectors(self, key: DocumentKey, content: UUID, space: str, limit: int) -> list[int]:
        found = self._find_content(key, content)
        return sorted(found.chunks.keys() - found.vectors.get(space, {}).keys())[:limit]

    async def nearest_chunks(self, key: ProjectKey, space: str, vector: bytes, limit: int) -> list[Nearest] | None:  # noqa: ARG002 - there is no way
        return None

    # --- removal ------------------------------------------------------------------------------------------

    async def remove_rubbish(self, key: DocumentKey, keep: Collection[UUID]) -> Removed | None:
        document = self._find_document(key)
        gone = [] if document is None else [id_ for id_ in document.contents if id_ not in keep]
        if document is None or not gone:
            return None
        return document.contents.pop(gone[0]).removed()

    async def remove_vectors(self, key: ProjectKey, space: str) -> bool:
        for document in self._documents(key):
            for content in document.contents.values():
                content.vectors = {name: each for name, each in content.vectors.items() if name == space}
        return False

    async def hide_project(self, key: ProjectKey) -> bool:
        found = self._find_project(key)
        if found is not None:
            found.is_hidden = True
        return found is not None

    async def hide_projects(self, owner: str) -> None:
        for found in self._projects.get(owner, {}).values():
            found.is_hidden = True

    async def hidden_projects(self, owner: str, limit: int) -> list[UUID]:
        return list(islice((id_ for id_, each in self._projects.get(owner, {}).items() if each.is_hidden), limit))

    async def purge_project(self, key: ProjectKey) -> Removed | None:
        if self._find_project(key) is None:
            return None
        gone = self._projects[key.owner].pop(key.id)
        total = Removed(projects=1, documents=len(gone.documents))
        for document in gone.documents.values():
            for content in document.contents.values():
                total = total.plus(content.removed())
        return total

    def _check_projects(self, old: str, new: str) -> None:
        """Raise Conflict if documents would be lost, or conversations come into a project that is being removed."""
        theirs = self._projects.get(new, {})
        for id_, each in self._projects.get(old, {}).items():
            if id_ in theirs and (each.documents or theirs[id_].is_hidden):
                raise Conflict(BOTH_HAVE_PROJECT)

    def _move_projects(self, old: str, new: str) -> None:
        """Give the projects of one owner to another, who keeps their own of the same id."""
        moved = self._projects.pop(old, {})
        for each in moved.values():
            each.project = each.project.model_copy(update={"owner_id": new})
            for document in each.documents.values():
                shown = document.row.document.model_copy(update={"owner_id": new})
                document.row = document.row._replace(document=shown)
        if moved:
            self._projects[new] = moved | self._projects.get(new, {})


def _copy(project: Project) -> Project:
    """A project with metadata of its own."""
    return project.model_copy(update={"metadata": deepcopy(project.metadata)})


def _content(document: Document, id_: UUID, version: int) -> Content:
    return Content(document.id, id_, document.file_path, document.title, document.chunks, version)


def _chunk(document_id: UUID, n: int, chunk: NewChunk) -> Chunk:
    return Chunk(document_id, n, chunk.text, chunk.header_anchor, chunk.heading, chunk.start)


def _entries(found: StoredContent, numbers: Sequence[int], vectors: Mapping[int, bytes]) -> list[IndexedChunk]:
    return [IndexedChunk(n, found.chunks[n].terms, vectors.get(n)) for n in numbers]
