"""Conversations over HTTP."""

from functools import partial
from typing import Annotated, Self
from uuid import NAMESPACE_OID, UUID, uuid5

from fastapi import APIRouter, Body, Path, Query, Request, Response
from pydantic import Field, StrictBool, model_validator

from chatkeep.access import location_of
from chatkeep.api.body import MERGE_PATCH, JsonRoute, reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.errors import api_problems
from chatkeep.api.examples import CONVERSATION_ID
from chatkeep.api.idempotency import IdempotencyKey, execute_once
from chatkeep.api.paging import MAX_PAGE_LIMIT, Limit, ListQuery, WholeNumber
from chatkeep.api.query import openapi_query, read_query
from chatkeep.errors import NotFound
from chatkeep.model import Conversation, ConversationChange, Message, NewConversation, Page
from chatkeep.store import MAX_OFFSET, ListOrder, Store
from chatkeep.values import Label

router = APIRouter(prefix="/api/conversations", tags=["conversations"], route_class=JsonRoute)

ConversationId = Annotated[UUID, Path(description="The conversation's id.", examples=[CONVERSATION_ID])]


class ConversationRequest(NewConversation):
    """A conversation to create, or the context whose latest one to return."""

    reuse_latest: StrictBool = Field(
        default=False,
        description="Return the most recently updated conversation of the context_id, and create one if there is none.",
    )


class ConversationWithMessages(Conversation):
    """A conversation with the newest messages of the path that ends with its head."""

    messages: Page[Message]


class ConversationsQuery(ListQuery):
    """The filters and the page of a list of conversations."""

    context_id: Label | None = Field(None, description="Only conversations with this context_id.", examples=["kitchen"])
    order: ListOrder = Field("updated", description="`updated`: most recently updated first. `id`: by id, stable.")
    limit: Limit = 10
    offset: WholeNumber = Field(
        0, ge=0, le=MAX_OFFSET, description="Number of items to skip, instead of a page number."
    )

    @model_validator(mode="after")
    def _has_one_offset(self) -> Self:
        if self.page is not None and self.offset:
            raise ValueError("page and offset cannot be used together")
        return self


@router.post(
    "",
    status_code=201,
    response_model=Conversation,
    responses={
        200: {"model": Conversation, "description": "The latest conversation of the context, found or created."},
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
    """Create an empty conversation, or, with `reuse_latest`, get the most recently updated one of the context.

    Sending the same id with the same values again changes nothing and returns the conversation; the same id
    with other values is a conflict (409). With `reuse_latest` the status is 200, and concurrent requests create
    one conversation only. With an `Idempotency-Key` the same request can be sent again for 24 hours: it is executed
    once, and later responses have `Idempotency-Replayed: true`, or are 404 if the conversation was deleted meanwhile.
    """
    if idempotency_key is not None and new.id is None:
        # The id follows from the key: a server that dies before it keeps the reply does not cause a second one.
        new = new.model_copy(update={"id": uuid5(uuid5(NAMESPACE_OID, owner), idempotency_key)})
    return await execute_once(store.access, owner, idempotency_key, request, partial(_create, store, owner, new))


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
    page = await store.list_conversations(
        owner,
        context_id=query.context_id,
        order=query.order,
        limit=query.limit,
        cursor=query.cursor,
        offset=query.page_offset or query.offset,
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
    """Change title, metadata or head by a JSON Merge Patch (RFC 7396): omitted fields keep their value, null removes.

    Metadata is merged key by key. Moving the head makes the history follow another path, and the next message
    continue there. The conversation's `updated_at` does not move.
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
