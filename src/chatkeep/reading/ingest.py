"""How a file becomes a document: it is read apart, stored at once, and gets its vectors in the background."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from uuid import UUID

from chatkeep.documents import LIMITS, ProjectLimits, StoredDocument, document_id, document_path
from chatkeep.errors import NotFound
from chatkeep.ids import valid_id
from chatkeep.reading.readers import Readers
from chatkeep.reading.source import hash_of
from chatkeep.store import Store
from chatkeep.values import clean_text


class Ingest:
    """Stores files as documents, used from one event loop."""

    def __init__(
        self,
        store: Store,
        readers: Readers,
        *,
        stored: Callable[[str, UUID], None] | None = None,
        limits: ProjectLimits = LIMITS,
    ) -> None:
        """Take the store, what reads files, and what is told of the owner and project that have a new text."""
        self._store = store
        self._readers = readers
        self._stored = stored
        self._limits = limits

    async def add(self, owner: str, project_id: UUID | str, file: Path, file_path: str) -> StoredDocument:
        """Store a file as the document with this path in a project, or in place of what it was.

        Idempotent: a file that is stored is not read again. Raises InvalidInput for a file that is no text, NotFound,
        ProjectFull, and Conflict if another file was stored under this path meanwhile.
        """
        project, path = valid_id(project_id), document_path(clean_text(file_path))
        await self._store.projects.get_project(owner, project)
        there = await self._unchanged(owner, project, file, path)
        if there is not None:
            return there
        new, chunks = await self._readers.read(file, path)
        stored = await self._store.documents.store_document(owner, project, new, chunks, limits=self._limits)
        if self._stored is not None:
            self._stored(owner, project)
        return stored

    async def _unchanged(self, owner: str, project: UUID, file: Path, path: str) -> StoredDocument | None:
        """The document of this path, if it is this file."""
        try:
            document = await self._store.documents.get_document(owner, project, document_id(project, path))
        except NotFound:
            return None
        digest = await asyncio.to_thread(hash_of, file, target=self._readers.limits.target)
        return StoredDocument(document, "unchanged") if document.sha256 == digest else None
