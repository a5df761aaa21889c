"""Conversations over HTTP."""

from functools import partial
from typing import Annotated, ClassVar, Self
from uuid import UUID

from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import (
    ConfigDict,
    Field,
    StrictBool,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)
from pydantic.config import JsonDict

from chatkeep.access import location_of
from chatkeep.api.body import MERGE_PATCH, JsonRoute, reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.errors import api_problems
from chatkeep.api.examples import CONVERSATION_ID
from chatkeep.api.idempotency import IdempotencyKey, execute_once, id_of_key
from chatkeep.api.paging import MAX_PAGE_LIMIT, OffsetQuery, TimeBound, WholeNumber
from chatkeep.api.query import openapi_query, read_query
from chatkeep.errors import NotFound
from chatkeep.model import Conversation, ConversationChange, Message, NewConversation, Page
from chatkeep.store import ListOrder, Store
from chatkeep.values import LABEL_FILTER_PATTERN, MAX_LABEL_CHARS, MAX_LABELS, NOT_A_LABEL, Label, ShortText

router = APIRouter(prefix="/api/conversations", tags=["conversations"], route_class=JsonRoute)

ConversationId = Annotated[UUID, Path(description="The conversation's id.", examples=[CONVERSATION_ID])]


TWO_IDS: JsonDict = {
    "required": ["reuse_latest", "external_id", "id"],
    "properties": {"reuse_latest": {"const": True}, "external_id": {"type": "string"}, "id": {"type": "string"}},
}
"""The schema of what `ConversationRequest` refuses beyond its fields."""


class ConversationRequest(NewConversation):
    """A conversation to create, or what names the one to return."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra={"not": TWO_IDS})

    reuse_latest: StrictBool = Field(
        default=False,
        description="Return the most recently updated conversation with the external_id, or without an external_id the"
        " one of the context_id and the project_id, and create one if there is none.",
    )

    @model_validator(mode="after")
    def _has_one_id(self) -> Self:
        if self.is_found_by_external_id and self.id is not None:
            raise ValueError(
                "id and external_id cannot be used together with reuse_latest: the id is made of the external_id"
            )
        return self

    @property
    def is_found_by_external_id(self) -> bool:
        """Whether the external_id names the conversation to return, and makes the id of a new one."""
        return self.reuse_latest and self.external_id is not None


class ConversationWithMessages(Conversation):
    """A conversation with the newest messages of the path that ends with its head."""

    messages: Page[Message]


def _label_filter(value: object, check: ValidatorFunctionWrapHandler) -> object:
    """Check a label, and put the `!` before it again."""
    if isinstance(value, str) and value.startswith(NOT_A_LABEL):
        return f"{NOT_A_LABEL}{check(value.removeprefix(NOT_A_LABEL))}"
    return check(value)


LabelFilter = Annotated[
    Label,
    WrapValidator(_label_filter),
    WithJsonSchema(
        {
            "type": "string",
            "minLength": 1,
            "maxLength": MAX_LABEL_CHARS + len(NOT_A_LABEL),
            "pattern": LABEL_FILTER_PATTERN,
        }
    ),
]


class ProjectConversationsQuery(OffsetQuery):
    """The filters and the page of a list of a project's conversations."""

    context_id: ShortText | None = Field(
        default=None, description="Only conversations with this context_id.", examples=["kitchen"]
    )
    external_id: ShortText | None = Field(
        default=None, description="Only conversations with this external_id.", examples=["thread-17"]
    )
    label: Annotated[tuple[LabelFilter, ...], Field(max_length=MAX_LABELS, fail_fast=True)] = Field(
        default=(),
        description="Only conversations with this label, or with a `!` before it, only those without it. May be"
        f" repeated, at most {MAX_LABELS} times: all of them hold.",
        examples=[["pinned", "!archived"]],
    )
    updated_after: TimeBound | None = Field(
        default=None, description="Only conversations that were updated after this time."
    )
    updated_before: TimeBound | None = Field(
        default=None, description="Only conversations that were updated before this time."
    )
    order: ListOrder = Field(
        default="updated", description="`updated`: most recently updated first. `id`: by id, stable."
    )

    @model_validator(mode="after")
    def _has_one_order(self) -> Self:
        if self.order == "id" and (self.updated_after or self.updated_before):
            raise ValueError("order=id cannot be used together with updated_after and updated_before")
        return self


class ConversationsQuery(ProjectConversationsQuery):
    """The filters and the page of a list of conversations."""

    project_id: UUID | None = Field(default=None, description="Only conversations of this project.")


@router.post(
    "",
    status_code=201,
    response_model=Conversation,
    responses={
        200: {"model": Conversation, "description": "The latest conversation, found or created."},
        **api_problems(403, 404, 409, 413, 415, 422),
    },
    response_description="The conversation.",
    summary="Create a conversation, or get the latest one",
)
async def create_conversation(
    owner: Owner,
    store: OpenedStore,
    request: Request,
    new: Annotated[ConversationRequest, Body()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Create an empty conversation, or, with `reuse_latest`, get the most recently updated one.

    Sending the same id with the same values again changes nothing and returns the conversation; the same id
    with other values is a conflict (409). With `reuse_latest` it is the one with the `external_id`, whose id is made
    of that, or the one of context and project; the status is 200, and concurrent requests create one conversation
    only. A `project_id` that is not one of yours is 404, an unknown `llm_provider_id` 422. With an `Idempotency-Key`
    the same request can be sent again for 24 hours: it is executed once, and later responses have
    `Idempotency-Replayed: true`, or are 404 if the conversation was deleted meanwhile.
    """
    return await create_once(store, owner, request, new, idempotency_key)


async def create_once(
    store: Store, owner: str, request: Request, new: ConversationRequest, key: str | None
) -> Response:
    """Create or find a conversation; once for each key."""
    if key is not None and new.id is None and not new.is_found_by_external_id:
        new = new.model_copy(update={"id": id_of_key(owner, key)})
    return await execute_once(store.access, owner, key, request, partial(_create, store, owner, new))


async def _create(store: Store, owner: str, new: ConversationRequest) -> Response:
    create = store.get_or_create_conversation if new.reuse_latest else store.create_conversation
    conversation = await create(owner, new)
    return reply(conversation, 200 if new.reuse_latest else 201, location=location_of(conversation.id))


@router.get(
    "",
    response_model=Page[Conversation],
    responses=api_problems(422),
    response_description="A page of conversations.",
    summary="List conversations",
    openapi_extra=openapi_query(ConversationsQuery),
)
async def list_conversations(owner: Owner, store: OpenedStore, request: Request) -> Response:
    """List the conversations, the most recently updated first.

    Read on with `cursor`, or by `page` or `offset`. With a cursor nothing is returned twice, and a conversation
    that is updated meanwhile may be missed; `order=id` is stable.
    """
    query = read_query(ConversationsQuery, request)
    return await page_of(store, owner, query, query.project_id)


async def page_of(store: Store, owner: str, query: ProjectConversationsQuery, project_id: UUID | None) -> Response:
    """Return a page of conversations, of a project or of all of them."""
    page = await store.list_conversations(
        owner,
        context_id=query.context_id,
        project_id=project_id,
        external_id=query.external_id,
        labels=query.label,
        updated_after=query.updated_after,
        updated_before=query.updated_before,
        order=query.order,
        limit=query.limit,
        cursor=query.cursor,
        offset=query.skipped,
        total=query.wants_total,
    )
    return reply(page)


@router.get(
    "/{conversation_id}",
    response_model=ConversationWithMessages,
    responses=api_problems(403, 404, 422),
    response_description="The conversation and its newest messages.",
    summary="Get a conversation with its newest messages",
)
async def get_conversation(
    owner: Owner,
    store: OpenedStore,
    conversation_id: ConversationId,
    messages: Annotated[
        WholeNumber, Query(ge=0, le=MAX_PAGE_LIMIT, description="How many of the newest messages to return with it.")
    ] = 50,
) -> Response:
    """Get a conversation and a page of its newest messages, oldest first.

    `messages.next` is the cursor with which `GET …/messages` continues towards the older ones.
    """
    conversation = await store.get_conversation(owner, conversation_id)
    newest = Page[Message](items=[])
    if messages:
        page = await store.history(owner, conversation_id, limit=messages)
        newest = Page[Message].model_construct(items=page.items, total=None, next=page.next)
    return reply(ConversationWithMessages.model_construct(**dict(conversation), messages=newest))


@router.patch(
    "/{conversation_id}",
    response_model=Conversation,
    responses=api_problems(403, 404, 413, 415, 422),
    response_description="The changed conversation.",
    summary="Change a conversation",
)
async def update_conversation(
    owner: Owner,
    store: OpenedStore,
    conversation_id: ConversationId,
    change: Annotated[ConversationChange, Body(media_type=MERGE_PATCH)],
) -> Response:
    """Change title, context, labels, metadata, provider or head by a JSON Merge Patch (RFC 7396).

    Omitted fields keep their value, null removes. Labels are replaced; metadata is merged key by key. Moving the head
    makes the history follow another path, and the next message continue there. An unknown `llm_provider_id` is 422;
    null is the default provider. The conversation's `updated_at` does not move.
    """
    return reply(await store.update_conversation(owner, conversation_id, change))


@router.delete(
    "/{conversation_id}",
    status_code=204,
    responses=api_problems(403, 404, 422),
    response_description="The conversation and everything in it is deleted.",
    summary="Delete a conversation",
)
async def delete_conversation(owner: Owner, store: OpenedStore, conversation_id: ConversationId) -> Response:
    """Delete a conversation with all its messages. Deleting it again is 404."""
    if not await store.delete_conversation(owner, conversation_id):
        raise NotFound("there is no such conversation")
    return Response(status_code=204)
