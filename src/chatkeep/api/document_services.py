"""What stores and searches documents for the routes, made by the first request that needs it."""

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, NamedTuple
from uuid import UUID

from fastapi import Depends, Request

from chatkeep.documents import ProjectLimits
from chatkeep.retrieval.passages import Passages
from chatkeep.settings import Settings
from chatkeep.store import Store

if TYPE_CHECKING:
    from chatkeep.reading.ingest import Ingest
    from chatkeep.reading.readers import Readers
    from chatkeep.retrieval.embedding import Embedders
    from chatkeep.retrieval.search import Retrieval
    from chatkeep.retrieval.vectors import VectorMaker


class Services(NamedTuple):
    """What stores and searches documents."""

    ingest: "Ingest"
    retrieval: "Retrieval"
    readers: "Readers"
    vectors: "VectorMaker | None"

    async def aclose(self) -> None:
        """Stop what is under way."""
        await self.readers.aclose()
        await self.retrieval.aclose()
        if self.vectors is not None:
            await self.vectors.aclose()


def services_of(store: Store, settings: Settings, embedders: "Embedders | None") -> Services:
    """Return the services of a store, used from the running event loop."""
    from chatkeep.reading.ingest import Ingest
    from chatkeep.reading.readers import Readers, ReadLimits
    from chatkeep.retrieval.search import Retrieval
    from chatkeep.retrieval.snapshots import RetrievalLimits
    from chatkeep.retrieval.vectors import VectorMaker

    vectors = None if embedders is None else VectorMaker(store, embedders)
    begin = None if vectors is None else vectors.begin
    readers = Readers(ReadLimits(file_bytes=settings.max_upload_bytes, chunks=settings.max_chunks))
    limits = ProjectLimits(settings.max_documents, settings.max_chunks)
    memory = RetrievalLimits(memory_bytes=settings.retrieval_memory_bytes)
    return Services(
        Ingest(store, readers, stored=begin, limits=limits),
        Retrieval(store, questions=embedders, loaded=begin, limits=memory),
        readers,
        vectors,
    )


class DocumentServices:
    """The services of one application."""

    def __init__(self, store: Store, settings: Settings, embedders: "Embedders | None") -> None:
        """Take what makes vectors; it is closed with the services."""
        self._store = store
        self._settings = settings
        self._embedders = embedders
        self._made: Services | None = None
        self._making = asyncio.Lock()

    async def made(self) -> Services:
        """Return the services. The first call imports numpy and more, for a fifth of a second, beside the loop."""
        async with self._making:
            if self._made is None:
                await asyncio.to_thread(_import_all)
                self._made = services_of(self._store, self._settings, self._embedders)
            return self._made

    async def search(self, owner: str, project_id: UUID, question: str, limit: int) -> Passages:
        """Return the best passages of a project's documents, as `Retrieval.search`."""
        return await (await self.made()).retrieval.search(owner, project_id, question, limit=limit)

    async def aclose(self) -> None:
        """Stop what is under way. Idempotent."""
        if self._made is not None:
            await self._made.aclose()
        if self._embedders is not None:
            await self._embedders.aclose()


def _import_all() -> None:
    for name in ("reading.ingest", "reading.readers", "retrieval.search", "retrieval.vectors"):
        import_module(f"chatkeep.{name}")


async def services_of_app(request: Request) -> DocumentServices:
    """Return what stores and searches the documents of the application."""
    services: DocumentServices = request.app.state.documents
    return services


AppDocuments = Annotated[DocumentServices, Depends(services_of_app)]
