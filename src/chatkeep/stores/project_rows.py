"""The rows of projects, documents, chunks and vectors, in one transaction of a database.

Owners come as the database stores them. A project that is being removed is *hidden*: only what removes it finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple
from uuid import UUID

from chatkeep.documents import Chunk, ChunkRange, Content, Document, IndexedChunk, Nearest, NewChunk, NewDocument
from chatkeep.projects import NewProject, Project
from chatkeep.stores.slices import PageSize, Part, Removed


class ProjectKey(NamedTuple):
    """A project."""

    owner: str
    id: UUID


class DocumentKey(NamedTuple):
    """A document of a project."""

    owner: str
    project_id: UUID
    id: UUID


class ProjectPlace(NamedTuple):
    """A place in a list of projects."""

    created_at: datetime
    id: UUID


class DocumentRow(NamedTuple):
    """What the row of a document has beside what is shown of it.

    Its chunks are those of `content`; without one, nobody sees the document. The chunks of `staged` are being written;
    others are rubbish. While there may be any, `has_rubbish` is set.
    """

    document: Document
    """Of a document without a content, what its path and its times are; the rest may be anything."""
    content: UUID | None
    staged: UUID | None
    version: int
    has_rubbish: bool


class ProjectRows(ABC):
    """The rows of projects and documents in one transaction."""

    __slots__ = ()

    # --- projects -----------------------------------------------------------------------------------------

    @abstractmethod
    async def has_project(self, owner: str, id_: UUID) -> bool:
        """Whether the owner has a project, not hidden, which stays so until the transaction ends."""

    @abstractmethod
    async def make_project(self, owner: str, id_: UUID, name: str) -> None:
        """Store a project, unless there is one with this id."""

    @abstractmethod
    async def project_name(self, owner: str, id_: UUID) -> str | None:
        """The name of a project, hidden or not."""

    @abstractmethod
    async def create_project(self, key: ProjectKey, new: NewProject) -> Project | None:
        """Store a project; None if its id is taken, by a hidden one, too."""

    @abstractmethod
    async def project(self, key: ProjectKey, *, lock: bool = False) -> Project | None:
        """A project that is not hidden; locked against other changes if asked, not against what only needs it."""

    @abstractmethod
    async def project_fingerprint(self, key: ProjectKey) -> bytes | None:
        """The fingerprint of a project; None of one that an import made."""

    @abstractmethod
    async def listed_projects(
        self, owner: str, after: ProjectPlace | None, size: PageSize, offset: int
    ) -> Part[Project]:
        """Projects that are not hidden, by created_at and id, the last first; read in the order of an index. Sizes are
        those of their metadata."""

    @abstractmethod
    async def count_projects(self, owner: str) -> int:
        """How many projects the owner has that are not hidden."""

    @abstractmethod
    async def set_project(self, key: ProjectKey, values: Mapping[str, Any]) -> None:
        """Set name, metadata (as JSON text; None if it is empty), documents, chunks, space, version or updated_at."""

    @abstractmethod
    async def claim_embedding(self, key: ProjectKey, worker: UUID, lease: timedelta) -> bool:
        """Give a lease of a project to a worker, by the database's clock, unless another one has it; False then, or if
        there is no such project. Writes nothing if the worker has it and more than two thirds of `lease` are left."""

    # --- documents ----------------------------------------------------------------------------------------

    @abstractmethod
    async def document(self, key: DocumentKey, *, lock: bool = False) -> DocumentRow | None:
        """The row of a document, with a content or without, whether its project is hidden or not; locked if asked."""

    @abstractmethod
    async def create_document(self, key: DocumentKey, new: NewDocument, staged: UUID) -> None:
        """Store the row of a document without a content."""

    @abstractmethod
    async def set_document(self, key: DocumentKey, values: Mapping[str, Any]) -> None:
        """Set content, staged, version, has_rubbish, or title, media_type, bytes, sha256, chunks, updated_at."""

    @abstractmethod
    async def remove_document(self, key: DocumentKey) -> None:
        """Remove the row of a document that has no chunks."""

    @abstractmethod
    async def listed_documents(self, key: ProjectKey, after: str | None, size: PageSize, offset: int) -> Part[Document]:
        """Documents with a content, by the bytes of file_path, above `after`; read in the order of an index."""

    @abstractmethod
    async def contents(self, key: ProjectKey, after: UUID | None, limit: int) -> list[Content]:
        """What documents have, by id, above `after`."""

    @abstractmethod
    async def with_rubbish(self, key: ProjectKey, limit: int) -> list[UUID]:
        """The ids of some documents that may have rubbish."""

    # --- chunks and vectors -------------------------------------------------------------------------------

    @abstractmethod
    async def add_chunks(self, key: DocumentKey, content: UUID, first: int, chunks: Sequence[NewChunk]) -> None:
        """Store chunks with numbers from `first`, without their vectors; those that are there stay."""

    @abstractmethod
    async def add_vectors(self, key: DocumentKey, content: UUID, space: str, vectors: Mapping[int, bytes]) -> None:
        """Store vectors of chunks by their numbers, if the chunks are there; vectors that are there stay."""

    @abstractmethod
    async def index_entries(
        self, key: ProjectKey, ranges: Sequence[ChunkRange], space: str | None
    ) -> list[list[IndexedChunk]]:
        """Numbers, terms and vectors of chunks, for each range, by number."""

    @abstractmethod
    async def chunks(self, key: ProjectKey, ranges: Sequence[ChunkRange], max_bytes: int) -> list[Chunk]:
        """Chunks by ranges, in their order, each range by number; as many as have `max_bytes` of text together, and one
        alone may have more."""

    @abstractmethod
    async def count_vectors(self, key: ProjectKey, space: str) -> dict[UUID, int]:
        """How many vectors of a space each content has; read from an index."""

    @abstractmethod
    async def without_vectors(self, key: DocumentKey, content: UUID, space: str, limit: int) -> list[int]:
        """The numbers of the first chunks of a content that have no vector of a space, in order."""

    @abstractmethod
    async def nearest_chunks(self, key: ProjectKey, space: str, vector: bytes, limit: int) -> list[Nearest] | None:
        """The chunks of contents that documents have with the nearest vectors; None if the database has no way to."""

    # --- removal ------------------------------------------------------------------------------------------

    @abstractmethod
    async def remove_rubbish(self, key: DocumentKey, keep: Collection[UUID]) -> Removed | None:
        """Remove some chunks, with their vectors, of contents of a document other than these; None if there are none.

        Counts chunks and vectors.
        """

    @abstractmethod
    async def remove_vectors(self, key: ProjectKey, space: str) -> bool:
        """Remove some vectors of other spaces than this one; False if there are none."""

    @abstractmethod
    async def hide_project(self, key: ProjectKey) -> bool:
        """Hide a project; say whether there is one, hidden or not."""

    @abstractmethod
    async def hide_projects(self, owner: str) -> None:
        """Hide all projects of an owner."""

    @abstractmethod
    async def hidden_projects(self, owner: str, limit: int) -> list[UUID]:
        """The ids of some hidden projects."""

    @abstractmethod
    async def hide_conversations(self, key: ProjectKey) -> bool:
        """Make some conversations of a hidden project invisible, as `hide_slice` does; False if there are no more.

        Of one that is not hidden there are none: it may have been made anew meanwhile.
        """

    @abstractmethod
    async def purge_project(self, key: ProjectKey) -> Removed | None:
        """Remove some rows of a hidden project: vectors, chunks, documents, and at last itself, when it has no
        conversations any more, hidden or not; None if it is gone. Counts what it removed."""
