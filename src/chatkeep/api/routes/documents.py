"""Documents of projects over HTTP: uploads, and search."""

from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response
from pydantic import Field, StringConstraints

from chatkeep.api.body import reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.document_services import AppDocuments
from chatkeep.api.errors import api_problems
from chatkeep.api.examples import DOCUMENT_ID
from chatkeep.api.paging import Limit, OffsetQuery, WholeNumber
from chatkeep.api.query import openapi_query, read_query
from chatkeep.api.routes.projects import ProjectId, path_of
from chatkeep.api.uploads import FILE, FILE_PATH, MULTIPART, AppUploads, UploadRoute
from chatkeep.documents import MAX_PATH_CHARS, Chunk, Document
from chatkeep.errors import NotFound
from chatkeep.model import Given, Page, Record
from chatkeep.retrieval.passages import MAX_PASSAGES, MAX_QUESTION_CHARS, Passages
from chatkeep.values import Clean

PREFIX, TAGS = "/api/projects/{project_id}", ["documents"]

router = APIRouter(prefix=PREFIX, tags=[*TAGS])
uploads = APIRouter(prefix=PREFIX, tags=[*TAGS], route_class=UploadRoute)
"""Apart: a router that is included in another one has routes without the prefix, in logs and metrics."""

DocumentId = Annotated[UUID, Path(description="The document's id.", examples=[DOCUMENT_ID])]


class UploadedDocument(Document):
    """A document that was uploaded."""

    change: Literal["new", "replaced", "unchanged"] = Field(
        description="What became of it: `replaced` if there was another text under this path."
    )


class DocumentChunk(Record):
    """A passage of a document."""

    n: int = Field(description="Its number in the document, from 0.")
    header_anchor: str | None = Field(description="The anchor of its section, with '#'.")
    heading: str = Field(description="The headings above it, from the outermost, divided by ' > '.")
    text: str
    start: int = Field(description="Where it begins in the document's text, in characters.")
    end: int = Field(description="Where it ends, exclusive.")


class ChunksQuery(Given):
    """Which passages of a document to return."""

    after: WholeNumber = Field(
        default=-1, ge=-1, lt=2**31, description="The number of the passage before the first one; the `next` of a page."
    )
    limit: Limit = 50


class DocumentSearchQuery(Given):
    """A question to the documents of a project."""

    q: Annotated[str, Clean, StringConstraints(strip_whitespace=True, min_length=1, max_length=MAX_QUESTION_CHARS)] = (
        Field(
            description="The question, or words.",
            examples=["How hot should the water be?"],
            json_schema_extra={"pattern": r"\S"},
        )
    )
    limit: WholeNumber = Field(default=10, ge=1, le=MAX_PASSAGES, description="Most passages to return.")


FORM: dict[str, Any] = {
    "type": "object",
    "required": [FILE],
    "additionalProperties": False,
    "properties": {
        FILE: {
            "type": "string",
            "format": "binary",
            "contentMediaType": "application/octet-stream",
            "description": "The file: Markdown or text in UTF-8; HTML, PDF or DOCX if the server has the extra"
            " `convert`.",
        },
        FILE_PATH: {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_PATH_CHARS,
            "pattern": r"^[^\\\x00-\x1f\x7f-\x9f]+$",
            "description": "Its path in the project, a label such as guide/install.md. Default: the file's name.",
        },
    },
}


@uploads.post(
    "/documents",
    status_code=201,
    response_model=UploadedDocument,
    responses={
        200: {"model": UploadedDocument, "description": "The document, which has this text already."},
        **api_problems(400, 404, 408, 409, 413, 415, 422),
    },
    response_description="The document, new or with another text.",
    summary="Upload a document",
    openapi_extra={"requestBody": {"required": True, "content": {MULTIPART: {"schema": FORM}}}},
)
async def upload_document(
    owner: Owner, receiver: AppUploads, documents: AppDocuments, request: Request, project_id: ProjectId
) -> Response:
    """Upload a file as a document of a project, or in place of the one with its path.

    The form has the field `file` and may have `file_path`. A document is known by its path, and replaced at once: a
    search finds the whole text before, or the whole text after. Sending the same file again changes nothing (200). A
    file has at most 20 MB, unless the server is set otherwise (413); a project that is full is 409.
    """
    async with receiver.receiving(request, owner) as upload:
        stored = await (await documents.made()).ingest.add(owner, project_id, upload.file, upload.file_path)
    document = UploadedDocument.model_construct(**dict(stored.document), change=stored.change)
    location = f"{path_of(project_id)}/documents/{document.id}"
    return reply(document, 200 if stored.change == "unchanged" else 201, location=location)


@router.get(
    "/documents",
    response_model=Page[Document],
    responses=api_problems(404, 422),
    response_description="A page of documents.",
    summary="List the documents of a project",
    openapi_extra=openapi_query(OffsetQuery),
)
async def list_documents(owner: Owner, store: OpenedStore, request: Request, project_id: ProjectId) -> Response:
    """List the documents of a project by their paths. Read on with `cursor`, or by `page` or `offset`."""
    query = read_query(OffsetQuery, request)
    page = await store.documents.list_documents(
        owner, project_id, limit=query.limit, cursor=query.cursor, offset=query.skipped, total=query.wants_total
    )
    return reply(page)


@router.get(
    "/documents/{document_id}",
    response_model=Document,
    responses=api_problems(404, 422),
    response_description="The document.",
    summary="Get a document",
)
async def get_document(owner: Owner, store: OpenedStore, project_id: ProjectId, document_id: DocumentId) -> Response:
    """Get a document without its text, which `…/chunks` has."""
    return reply(await store.documents.get_document(owner, project_id, document_id))


@router.get(
    "/documents/{document_id}/chunks",
    response_model=Page[DocumentChunk],
    responses=api_problems(404, 422),
    response_description="A page of passages.",
    summary="Read a document",
    openapi_extra=openapi_query(ChunksQuery),
)
async def list_chunks(
    owner: Owner, store: OpenedStore, request: Request, project_id: ProjectId, document_id: DocumentId
) -> Response:
    """Read the passages of a document in their order; together they are its whole text.

    A source in an answer, or a hit of a search, stands in one of them. Read on with `next` as `after`.
    """
    query = read_query(ChunksQuery, request)
    document = await store.documents.get_document(owner, project_id, document_id)
    chunks = await store.documents.document_chunks(owner, project_id, document_id, after=query.after, limit=query.limit)
    is_last = not chunks or chunks[-1].n + 1 >= document.chunks
    return reply(Page(items=[*map(_shown, chunks)], total=document.chunks, next=None if is_last else str(chunks[-1].n)))


def _shown(chunk: Chunk) -> DocumentChunk:
    return DocumentChunk(
        n=chunk.n,
        header_anchor=chunk.header_anchor,
        heading=chunk.heading,
        text=chunk.text,
        start=chunk.start,
        end=chunk.start + len(chunk.text),
    )


@router.delete(
    "/documents/{document_id}",
    status_code=204,
    responses=api_problems(404, 422),
    response_description="The document is deleted.",
    summary="Delete a document",
)
async def delete_document(owner: Owner, store: OpenedStore, project_id: ProjectId, document_id: DocumentId) -> Response:
    """Delete a document. Searches that begin after the reply do not find it. Deleting it again is 404."""
    if not await store.documents.delete_document(owner, project_id, document_id):
        raise NotFound("there is no such document in this project")
    return Response(status_code=204)


@router.get(
    "/search",
    response_model=Passages,
    responses=api_problems(404, 422),
    response_description="The passages, the best first.",
    summary="Search the documents of a project",
    openapi_extra=openapi_query(DocumentSearchQuery),
)
async def search_documents(owner: Owner, documents: AppDocuments, request: Request, project_id: ProjectId) -> Response:
    """Find the passages that answer a question best, one of each document.

    By words and by meaning (`hybrid`), or by words alone (`lexical`); then `note` says why. The ranking is the same on
    every database.
    """
    query = read_query(DocumentSearchQuery, request)
    return reply(await (await documents.made()).retrieval.search(owner, project_id, query.q, limit=query.limit))
