"""The port of documents: texts of a project, in chunks that a search finds.

A store has one as `store.documents`. It keeps what a search needs; ranking is done above it, once for every database
(`chatkeep.retrieval.search`). A document is known by its path in the project, of which its id is made. Its chunks, and
their vectors, belong to a *content*, whose id is made of the document's and of the text's hash: they are written in
slices that nobody sees, until one transaction makes that content the document's. So a document is replaced at once,
however large it is, and who is cut off goes on where it was.
"""

import hashlib
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Literal, NamedTuple
from uuid import UUID, uuid5

import regex
from pydantic import AfterValidator, Field, StringConstraints

from chatkeep.errors import InvalidInput
from chatkeep.model import Given, Page, Record
from chatkeep.projects import Project
from chatkeep.values import Clean, Count, ShortText
from chatkeep.words import MAX_MARKS

MAX_DOCUMENTS = 1_000
"""Most documents of a project, unless set."""

MAX_CHUNKS = 200_000
"""Most chunks of a project, unless set."""

MAX_PATH_CHARS = 1_024

MAX_CHUNK_CHARS = 16_000
"""Longest text of a chunk, in characters."""

MAX_HEADING_CHARS = 1_000
"""Longest headings of a chunk together, and longest anchor, in characters."""

MAX_CHUNK_TERMS = 16_000
"""Most terms of a chunk."""

MAX_DIMENSION = 8_192
"""Most numbers of a vector."""

EMBEDDING_LEASE = timedelta(seconds=60)
"""How long a process that makes vectors for a project keeps others from doing the same, after its last sign of life."""


_MANY_MARKS = regex.compile(rf"\p{{M}}{{{MAX_MARKS + 1}}}")
"""A run of combining marks that `unicodedata` would take long to sort."""


def document_path(text: str) -> str:
    """Return a label that names a place in a project and nothing outside of it, in NFC. It is never opened.

    Raises InvalidInput.
    """
    if len(text) > 4 * MAX_PATH_CHARS or _MANY_MARKS.search(text):
        raise InvalidInput(f"file_path must have at most {MAX_PATH_CHARS:,} characters, and few marks on each")
    path = unicodedata.normalize("NFC", text)
    if len(path) > MAX_PATH_CHARS:
        raise InvalidInput(f"file_path must have at most {MAX_PATH_CHARS:,} characters", got=f"{len(path):,}")
    if any(unicodedata.category(character) == "Cc" for character in path):
        raise InvalidInput("file_path must have no control characters")
    parts = path.split("/")
    if "\\" in path or not all(part.strip() for part in parts) or {".", ".."} & set(parts):
        raise InvalidInput(
            "file_path must be a relative path such as guide/install.md, without empty parts, '.', '..' and '\\'"
        )
    return path


DocumentPath = Annotated[
    str, Clean, StringConstraints(min_length=1, max_length=4 * MAX_PATH_CHARS), AfterValidator(document_path)
]
"""The path of a document in its project."""


class NewDocument(Given):
    """A document to be stored."""

    file_path: DocumentPath
    title: ShortText | None = Field(default=None, description="Its first heading, for example.")
    media_type: str = Field(pattern=r"^[a-z]+/[a-z0-9.+-]{1,100}$")
    bytes: Count = Field(description="The size of the file.")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="The hash of the file, and of how it was cut.")


class Document(Record):
    """A document as it is stored, without its text."""

    id: UUID
    owner_id: str
    project_id: UUID
    file_path: str
    title: str | None
    media_type: str
    bytes: int
    sha256: str
    chunks: int = Field(description="How many passages it has.")
    created_at: datetime
    updated_at: datetime = Field(description="Moved when another text replaces it.")


DOCUMENT_FIELDS = set(Document.model_fields)


class NewChunk(NamedTuple):
    """A passage of a document. The chunks of a document, in order, are its whole text."""

    text: str
    header_anchor: str | None
    """The anchor of the section that it stands in, with '#'."""
    heading: str
    """The headings that it stands below, from the outermost, divided by ' > '; may be empty."""
    start: int
    """Where it begins in the document's text, in characters."""
    terms: bytes
    """What words find it by: a number of 32 bits, little-endian, for each term in its order."""
    vector: bytes | None = None
    """Numbers of 32 bits, little-endian, of the length 1 together."""


class Chunk(NamedTuple):
    """A passage as it is stored."""

    document_id: UUID
    n: int
    """Its number in the document, from 0."""
    text: str
    header_anchor: str | None
    heading: str
    start: int


class Content(NamedTuple):
    """What a document has now: which content, and since which version of the project it is as it is."""

    document_id: UUID
    id: UUID
    file_path: str
    title: str | None
    chunks: int
    version: int
    """Moved when its content is replaced, and when vectors were added."""


class ChunkRange(NamedTuple):
    """Some chunks of a content: from `first` to `last`, both included."""

    document_id: UUID
    content: UUID
    first: int
    last: int


class IndexedChunk(NamedTuple):
    """What a search needs of a chunk, without its text."""

    n: int
    terms: bytes
    vector: bytes | None


class Nearest(NamedTuple):
    """A chunk that is near to a vector."""

    document_id: UUID
    n: int
    cosine: float


class ProjectLimits(NamedTuple):
    """How much a project may have."""

    documents: int = MAX_DOCUMENTS
    chunks: int = MAX_CHUNKS


LIMITS = ProjectLimits()


class StoredDocument(NamedTuple):
    """What became of a document."""

    document: Document
    change: Literal["new", "replaced", "unchanged"]


def document_id(project_id: UUID, file_path: str) -> UUID:
    """Return the id of the document with a path (as `DocumentPath` normalises it) in a project."""
    return uuid5(project_id, file_path)


def content_id(document_id: UUID, sha256: str) -> UUID:
    """Return the id of a content of a document."""
    return uuid5(document_id, sha256)


def space_of(model: str, dimension: int) -> str:
    """Return the name of the space of an embedder's vectors: those of one space can be compared."""
    name = f"{model}/{dimension}"
    return name if len(name) <= 200 else hashlib.sha256(name.encode()).hexdigest()


class Documents(ABC):
    """Documents of projects, by owner. Methods raise as those of `Projects` do."""

    @abstractmethod
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
        """Store a document, or replace the text of the one with this path.

        Idempotent: the same hash changes nothing. Nothing of it is found before all of it is; then the text before it
        is removed. `space` is that of the vectors, if the chunks have them all; if the project searches none, that one
        from now on.

        Raises ProjectFull if the project would have more than `limits` allow, Conflict if another call stored another
        text under this path meanwhile, InvalidInput for chunks beyond the limits of this module.
        """

    @abstractmethod
    async def get_document(self, owner: str, project_id: UUID | str, document_id: UUID | str) -> Document:
        """Return a document."""

    @abstractmethod
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
        """Return documents by their paths, in the order of their bytes in UTF-8."""

    @abstractmethod
    async def delete_document(self, owner: str, project_id: UUID | str, document_id: UUID | str) -> bool:
        """Delete a document; return whether there was one. It is gone at once, its rows when the call returns."""

    @abstractmethod
    async def document_chunks(
        self, owner: str, project_id: UUID | str, document_id: UUID | str, *, after: int = -1, limit: int = 50
    ) -> list[Chunk]:
        """Return chunks of a document above a number, in order; fewer than `limit` if they are large together."""

    # --- for a search -------------------------------------------------------------------------------------

    @abstractmethod
    async def contents(
        self, owner: str, project_id: UUID | str, *, after: UUID | None = None, limit: int = 1_000
    ) -> list[Content]:
        """Return what documents with ids above `after` have now, by id."""

    @abstractmethod
    async def index_entries(
        self, owner: str, project_id: UUID | str, ranges: Sequence[ChunkRange], *, space: str | None = None
    ) -> list[list[IndexedChunk]]:
        """Return what a search needs of chunks, for each range, by number; with their vectors of one space.

        A range of a content that is not there any more has none. At most 10,000 chunks at a time.
        """

    @abstractmethod
    async def chunks(self, owner: str, project_id: UUID | str, ranges: Sequence[ChunkRange]) -> list[Chunk]:
        """Return chunks, with their texts, in the order of the ranges. At most 1,000 chunks at a time."""

    @abstractmethod
    async def nearest_chunks(
        self, owner: str, project_id: UUID | str, space: str, vector: bytes, *, limit: int = 1_000
    ) -> list[Nearest] | None:
        """Return chunks whose vectors are nearest to one by cosine, the nearest first; None if the database cannot."""

    # --- vectors ------------------------------------------------------------------------------------------

    @abstractmethod
    async def claim_embedding(
        self, owner: str, project_id: UUID | str, worker: UUID, *, lease: timedelta = EMBEDDING_LEASE
    ) -> bool:
        """Take, or extend, the lease of whoever makes vectors for a project; False while another worker has it.

        It only saves work: vectors are the same whoever makes them. `timedelta(0)` gives it back.
        """

    @abstractmethod
    async def count_vectors(self, owner: str, project_id: UUID | str, space: str) -> Mapping[UUID, int]:
        """Return how many vectors of a space each content has that has any."""

    @abstractmethod
    async def without_vectors(
        self, owner: str, project_id: UUID | str, content: Content, space: str, *, limit: int = 64
    ) -> list[Chunk]:
        """Return the first chunks of a content that have no vector of a space."""

    @abstractmethod
    async def add_vectors(
        self, owner: str, project_id: UUID | str, content: Content, space: str, vectors: Mapping[int, bytes]
    ) -> bool:
        """Store vectors by the numbers of their chunks; False if the document has another content now.

        Idempotent: a vector that is there stays. A project that searches no vectors searches those of this space then.
        """

    @abstractmethod
    async def use_space(self, owner: str, project_id: UUID | str, space: str) -> Project:
        """Search the vectors of a space from now on, and remove those of every other one. Idempotent."""
