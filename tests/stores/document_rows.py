"""A project with a document, for the tests of the rows of documents in one database."""

import struct
from typing import Any, cast

from chatkeep import Store
from chatkeep.documents import Content, NewChunk, NewDocument
from chatkeep.projects import NewProject, Project
from chatkeep.stores.project_rows import DocumentKey
from chatkeep.stores.rows import Work

OWNER = "ada"
SPACE, OTHER_SPACE = "minilm/2", "large/2"
VECTOR = struct.pack("<2f", 1, 0)
TABLES = ("projects", "documents", "chunks", "vectors")


def new_document(path: str = "guide.md", version: int = 0) -> NewDocument:
    """A document with a path, and a text of some version."""
    return NewDocument(file_path=path, media_type="text/markdown", bytes=10, sha256=f"{version:064x}")


def chunks(count: int, text: str = "thyme", vector: bytes | None = VECTOR) -> list[NewChunk]:
    """As many chunks."""
    return [
        NewChunk(f"{text} {n}", "#herbs", "Kitchen > Herbs", n, n.to_bytes(4, "little"), vector) for n in range(count)
    ]


async def make(
    store: Store, count: int = 10, owner: str = OWNER, *, text: str = "thyme"
) -> tuple[Project, DocumentKey]:
    """A project with a document."""
    project = await store.projects.create_project(owner, NewProject(name="Kitchen", metadata={"a": 1}))
    stored = await store.documents.store_document(owner, project.id, new_document(), chunks(count, text), space=SPACE)
    return project, DocumentKey(owner, project.id, stored.document.id)


async def content_of(store: Store, key: DocumentKey) -> Content:
    """The content of the one document of a project."""
    (found,) = await store.documents.contents(key.owner, key.project_id)
    return found


async def work[T](store: Store, does: Work[Any, T]) -> T:
    """Work on the rows of a store, in a transaction that writes."""
    return cast("T", await cast("Any", store)._write(does))
