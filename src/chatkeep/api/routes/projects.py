"""Projects over HTTP, and their conversations."""

from functools import partial
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.exceptions import RequestValidationError

from chatkeep.api.body import MERGE_PATCH, JsonRoute, reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.errors import api_problems
from chatkeep.api.examples import PROJECT_ID
from chatkeep.api.idempotency import IdempotencyKey, execute_once, id_of_key
from chatkeep.api.paging import OffsetQuery
from chatkeep.api.query import openapi_query, read_query
from chatkeep.api.routes.conversations import ConversationRequest, ProjectConversationsQuery, create_once, page_of
from chatkeep.errors import NotFound
from chatkeep.model import Conversation, Page
from chatkeep.projects import NewProject, Project, ProjectChange
from chatkeep.store import Store

router = APIRouter(prefix="/api/projects", tags=["projects"], route_class=JsonRoute)

ProjectId = Annotated[UUID, Path(description="The project's id.", examples=[PROJECT_ID])]


def path_of(project_id: UUID) -> str:
    """Return the path of a project."""
    return f"{router.prefix}/{project_id}"


@router.post(
    "",
    status_code=201,
    response_model=Project,
    responses=api_problems(404, 409, 413, 415, 422),
    response_description="The project.",
    summary="Create a project",
)
async def create_project(
    owner: Owner,
    store: OpenedStore,
    request: Request,
    new: Annotated[NewProject, Body()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a project without documents and conversations.

    Sending the same id with the same values again changes nothing and returns the project as it is now; the same id
    with other values is a conflict (409). With an `Idempotency-Key` the same holds for 24 hours without an id, and
    later responses have `Idempotency-Replayed: true`, or are 404 if the project was deleted meanwhile.
    """
    if idempotency_key is not None and new.id is None:
        new = new.model_copy(update={"id": id_of_key(owner, idempotency_key)})
    create, show = partial(_create, store, owner, new), partial(_show, store, owner, new)
    return await execute_once(store.access, owner, idempotency_key, request, create, show=show)


async def _create(store: Store, owner: str, new: NewProject) -> Response:
    project = await store.projects.create_project(owner, new)
    return reply(project, 201, location=path_of(project.id))


async def _show(store: Store, owner: str, new: NewProject) -> Response:
    project = await store.projects.get_project(owner, new.id or "")
    return reply(project, 201, location=path_of(project.id))


@router.get(
    "",
    response_model=Page[Project],
    responses=api_problems(422),
    response_description="A page of projects.",
    summary="List projects",
    openapi_extra=openapi_query(OffsetQuery),
)
async def list_projects(owner: Owner, store: OpenedStore, request: Request) -> Response:
    """List the projects, those first that were created last. Read on with `cursor`, or by `page` or `offset`."""
    query = read_query(OffsetQuery, request)
    page = await store.projects.list_projects(
        owner, limit=query.limit, cursor=query.cursor, offset=query.skipped, total=query.wants_total
    )
    return reply(page)


@router.get(
    "/{project_id}",
    response_model=Project,
    responses=api_problems(404, 422),
    response_description="The project.",
    summary="Get a project",
)
async def get_project(owner: Owner, store: OpenedStore, project_id: ProjectId) -> Response:
    """Get a project, with the number of its documents and passages.

    A project of somebody else is 404, as one that does not exist: nobody is told which it is.
    """
    return reply(await store.projects.get_project(owner, project_id))


@router.patch(
    "/{project_id}",
    response_model=Project,
    responses=api_problems(404, 413, 415, 422),
    response_description="The changed project.",
    summary="Change a project",
)
async def update_project(
    owner: Owner,
    store: OpenedStore,
    project_id: ProjectId,
    change: Annotated[ProjectChange, Body(media_type=MERGE_PATCH)],
) -> Response:
    """Change name or metadata by a JSON Merge Patch (RFC 7396): omitted fields keep their value, metadata is merged."""
    return reply(await store.projects.update_project(owner, project_id, change))


@router.delete(
    "/{project_id}",
    status_code=204,
    responses=api_problems(404, 422),
    response_description="The project and everything in it is deleted.",
    summary="Delete a project",
)
async def delete_project(owner: Owner, store: OpenedStore, project_id: ProjectId) -> Response:
    """Delete a project with its documents and its conversations. Deleting it again is 404."""
    if not await store.projects.delete_project(owner, project_id):
        raise NotFound("there is no such project")
    return Response(status_code=204)


@router.post(
    "/{project_id}/conversations",
    status_code=201,
    response_model=Conversation,
    responses={
        200: {"model": Conversation, "description": "The latest conversation, found or created."},
        **api_problems(404, 409, 413, 415, 422),
    },
    response_description="The conversation.",
    summary="Create a conversation in a project, or get the latest one",
)
async def create_project_conversation(
    owner: Owner,
    store: OpenedStore,
    request: Request,
    project_id: ProjectId,
    new: Annotated[ConversationRequest, Body()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create a conversation in a project, as `POST /api/conversations` does with its `project_id`.

    The body needs no `project_id`; another one than the path's is 422.
    """
    if new.project_id not in (None, project_id):
        raise RequestValidationError(
            [{"type": "value_error", "loc": ("body", "project_id"), "ctx": {"error": OTHER_PROJECT}}]
        )
    await store.projects.get_project(owner, project_id)  # also if there is a reply to an earlier request
    new = new.model_copy(update={"project_id": project_id})
    return await create_once(store, owner, request, new, idempotency_key)


OTHER_PROJECT = "must be the project of the path; leave it out"


@router.get(
    "/{project_id}/conversations",
    response_model=Page[Conversation],
    responses=api_problems(404, 422),
    response_description="A page of the project's conversations.",
    summary="List the conversations of a project",
    openapi_extra=openapi_query(ProjectConversationsQuery),
)
async def list_project_conversations(
    owner: Owner, store: OpenedStore, request: Request, project_id: ProjectId
) -> Response:
    """List the conversations of a project, the last 10 by `updated_at` unless told otherwise.

    The parameters are those of `GET /api/conversations`.
    """
    query = read_query(ProjectConversationsQuery, request)
    await store.projects.get_project(owner, project_id)
    return await page_of(store, owner, query, project_id)
