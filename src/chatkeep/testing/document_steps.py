"""Projects and documents as the tests make them, and all that a search would find of them."""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from chatkeep.documents import (
    Chunk,
    ChunkRange,
    Content,
    Document,
    IndexedChunk,
    NewChunk,
    NewDocument,
    StoredDocument,
    content_id,
)
from chatkeep.documents import document_id as id_of
from chatkeep.projects import NewProject, Project
from chatkeep.store import Store

SPACE, OTHER_SPACE = "small/2", "large/2"


def sha256_of(text: str) -> str:
    """Return the hash of a text, in hexadecimal."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def vector(number: float) -> bytes:
    """Return a vector of the length 1, another one for each number."""
    length = (1 + number * number) ** 0.5
    return struct.pack("<2f", 1 / length, number / length)


def terms_of(text: str, n: int) -> bytes:
    """Return the terms of a passage of a text: which text it is, and the number of the passage."""
    return struct.pack("<2I", int(sha256_of(text)[:8], 16), n)


def passages(text: str, count: int = 1, *, with_vectors: bool = False) -> list[NewChunk]:
    """Return chunks of which each says what text it is of."""
    return [
        NewChunk(f"{text} {n}", f"#{text}-{n}", text, 100 * n, terms_of(text, n), vector(n) if with_vectors else None)
        for n in range(count)
    ]


def a_document(path: str, text: str, **values: Any) -> NewDocument:
    """Return a document of a text."""
    given = {"media_type": "text/markdown", "bytes": len(text), "sha256": sha256_of(text)}
    return NewDocument(**{"file_path": path, "title": text or None, **given, **values})


async def a_project(store: Store, owner: str, name: str = "Garden", **values: Any) -> UUID:
    """Create a project and return its id."""
    return (await store.projects.create_project(owner, NewProject(name=name, **values))).id


async def put(
    store: Store, owner: str, project: UUID, path: str, text: str, count: int = 1, **arguments: Any
) -> StoredDocument:
    """Store a document of so many passages, with vectors if a space is named."""
    chunks = passages(text, count, with_vectors="space" in arguments)
    return await store.documents.store_document(owner, project, a_document(path, text), chunks, **arguments)


def content_of(project: UUID, path: str, text: str, count: int = 1) -> Content:
    """Return the content that `put` makes."""
    document = id_of(project, path)
    return Content(document, content_id(document, sha256_of(text)), path, text, count, 0)


def whole(content: Content) -> ChunkRange:
    """Return all chunks of a content."""
    return ChunkRange(content.document_id, content.id, 0, content.chunks - 1)


async def all_contents(store: Store, owner: str, project: UUID, limit: int = 1_000) -> list[Content]:
    """Return what all documents have now, page by page."""
    found = await store.documents.contents(owner, project, limit=limit)
    part = found
    while len(part) == limit:
        part = await store.documents.contents(owner, project, after=part[-1].document_id, limit=limit)
        found = found + part
    return found


async def all_entries(
    store: Store, owner: str, project: UUID, content: Content, space: str | None = None
) -> list[IndexedChunk]:
    """Return what a search needs of all chunks of a content."""
    (found,) = await store.documents.index_entries(owner, project, [whole(content)], space=space)
    return found


async def all_chunks(store: Store, owner: str, project: UUID, document: UUID, limit: int = 50) -> list[Chunk]:
    """Return all chunks of a document, page by page."""
    found: list[Chunk] = []
    while part := await store.documents.document_chunks(owner, project, document, after=len(found) - 1, limit=limit):
        found += part
    return found


async def all_projects(store: Store, owner: str, limit: int = 100) -> list[Project]:
    """Return all pages of an owner's projects, followed by cursor."""
    page = await store.projects.list_projects(owner, limit=limit)
    found = page.items
    while page.next:
        page = await store.projects.list_projects(owner, limit=limit, cursor=page.next)
        found = found + page.items
    return found


async def all_documents(store: Store, owner: str, project: UUID, limit: int = 100) -> list[Document]:
    """Return all pages of a project's documents, followed by cursor."""
    page = await store.documents.list_documents(owner, project, limit=limit)
    found = page.items
    while page.next:
        page = await store.documents.list_documents(owner, project, limit=limit, cursor=page.next)
        found = found + page.items
    return found


class Searchable(NamedTuple):
    """What a search finds of a document."""

    text: str
    passages: tuple[str, ...]
    vectors: Mapping[int, bytes]
    """Of the space that the project searches."""


async def searchable(store: Store, owner: str, project_id: UUID) -> dict[str, Searchable]:
    """Return what a search finds of a project, by path, after a check that every read of the port says the same."""
    project = await store.projects.get_project(owner, project_id)
    contents = await all_contents(store, owner, project_id)
    documents = await all_documents(store, owner, project_id)
    page = await store.documents.list_documents(owner, project_id, limit=1, total=True)
    assert (project.documents, page.total) == (len(documents), len(documents))
    assert project.chunks == sum(document.chunks for document in documents)
    assert [document.file_path for document in documents] == sorted(
        (content.file_path for content in contents), key=str.encode
    )
    assert [content.document_id for content in contents] == sorted(document.id for document in documents)
    return {
        content.file_path: await _searchable(store, owner, project, content, _of(documents, content))
        for content in contents
    }


def _of(documents: Sequence[Document], content: Content) -> Document:
    return next(document for document in documents if document.id == content.document_id)


async def _searchable(store: Store, owner: str, project: Project, content: Content, document: Document) -> Searchable:
    """What a search finds of a document that was stored by `put`."""
    assert document == await store.documents.get_document(owner, project.id, document.id)
    assert content.id == content_id(document.id, document.sha256)
    text = document.title
    assert text is not None
    assert (content.title, content.chunks, document.sha256) == (text, document.chunks, sha256_of(text))
    assert content.version <= project.version
    entries = await all_entries(store, owner, project.id, content, project.space)
    assert [(entry.n, entry.terms) for entry in entries] == [(n, terms_of(text, n)) for n in range(document.chunks)]
    chunks = await all_chunks(store, owner, project.id, document.id)
    assert chunks == await store.documents.chunks(owner, project.id, [whole(content)])
    assert chunks == stored_passages(document.id, text, document.chunks)
    vectors = {entry.n: entry.vector for entry in entries if entry.vector is not None}
    if project.space is not None:
        counted = await store.documents.count_vectors(owner, project.id, project.space)
        assert counted.get(content.id, 0) == len(vectors)
    return Searchable(text, tuple(chunk.text for chunk in chunks), vectors)


def stored_passages(document: UUID, text: str, count: int) -> list[Chunk]:
    """Return the chunks that `put` stores."""
    return [
        Chunk(document, n, each.text, each.header_anchor, each.heading, each.start)
        for n, each in enumerate(passages(text, count))
    ]


def said(text: str, count: int = 1, *, with_vectors: bool = False) -> Searchable:
    """Return what a search finds of a document that `put` has stored."""
    chunks = passages(text, count, with_vectors=with_vectors)
    vectors = {n: chunk.vector for n, chunk in enumerate(chunks) if chunk.vector is not None}
    return Searchable(text, tuple(chunk.text for chunk in chunks), vectors)
