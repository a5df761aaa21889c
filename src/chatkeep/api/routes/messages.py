"""The messages of a conversation over HTTP."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Self
from uuid import UUID, uuid5

from fastapi import APIRouter, Body, Path, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, ConfigDict, Field, StrictBool, model_validator
from pydantic.config import JsonDict
from starlette.convertors import StringConvertor, register_url_convertor

from chatkeep.api.answering import Answered, Answering, BusyQuery, answering_of
from chatkeep.api.body import MERGE_PATCH, JsonRoute, reply, without_crowd
from chatkeep.api.dependencies import OpenedStore, Owner, current_owner, opened_store, require_any_role
from chatkeep.api.errors import api_problems
from chatkeep.api.examples import ANSWER_ID
from chatkeep.api.idempotency import REPLAYED, IdempotencyKey
from chatkeep.api.openapi import EVENTS, LAST_EVENT_ID, PENDING, PREFER
from chatkeep.api.paging import Cursor, Limit, ListQuery, WholeNumber
from chatkeep.api.query import openapi_query, read_query
from chatkeep.api.routes.conversations import ConversationId
from chatkeep.errors import InvalidInput, NotFound, NotYours
from chatkeep.model import Given, Message, MessageChange, NewMessage, Page, Role
from chatkeep.store import Order, Store

router = APIRouter(prefix="/api/conversations/{conversation_id}/messages", tags=["messages"], route_class=JsonRoute)


class _MessageConvertor(StringConvertor):
    """A message's id in a path; `batch` is none, and takes POST only."""

    regex = "(?!batch$)[^/]+"


register_url_convertor("message", _MessageConvertor())

MAX_SEQ = 2**63 - 1

MAX_BATCH = 200
"""Most messages that are appended together."""

MessageId = Annotated[UUID, Path(description="The message's id.", examples=[ANSWER_ID])]


class MessagesQuery(ListQuery):
    """The bounds and the page of a history."""

    limit: Limit = 50
    order: Order = Field(default="desc", description="`desc`: begin with the newest messages. `asc`: with the oldest.")
    before: WholeNumber | None = Field(default=None, ge=0, le=MAX_SEQ, description="Only messages with a lower seq.")
    after: WholeNumber | None = Field(default=None, ge=0, le=MAX_SEQ, description="Only messages with a higher seq.")
    before_id: UUID | None = Field(default=None, description="Only messages before this one.")
    after_id: UUID | None = Field(default=None, description="Only messages after this one.")
    leaf: UUID | None = Field(default=None, description="The message that the history ends with. Default: the head.")

    @model_validator(mode="after")
    def _has_one_bound_each(self) -> Self:
        if self.before is not None and self.before_id is not None:
            raise ValueError("before and before_id cannot be used together")
        if self.after is not None and self.after_id is not None:
            raise ValueError("after and after_id cannot be used together")
        return self


class SiblingsQuery(Given):
    """A page of the alternatives to a message."""

    limit: Limit = 50
    cursor: Cursor = None


NOT_ASKED: JsonDict = {
    "required": ["answer", "role"],
    "properties": {"answer": {"const": True}, "role": {"enum": ["assistant", "system", "tool"]}},
}
"""The schema of what `MessageRequest` refuses beyond its fields."""


class MessageRequest(NewMessage):
    """A message to append, or a question to answer."""

    model_config: ClassVar[ConfigDict] = ConfigDict(json_schema_extra={"not": NOT_ASKED})

    role: Role = Field(default=Role.USER, description="Absent: the message is a question, unless `answer` is false.")
    answer: StrictBool | None = Field(
        default=None,
        description="Whether it is to be answered. Default: if it has no role. Only a user's message can be.",
    )

    @property
    def names_role(self) -> bool:
        """Whether the role was given."""
        return "role" in self.__pydantic_fields_set__


def _not_empty(messages: tuple[NewMessage, ...]) -> tuple[NewMessage, ...]:
    # Not min_length: with fail_fast pydantic says that it is not kept, too, if the first message is wrong.
    if not messages:
        raise ValueError("must not be empty")
    return messages


class MessageBatch(Given):
    """Messages to append together."""

    messages: Annotated[
        tuple[Annotated[NewMessage, without_crowd(NewMessage)], ...],
        Field(max_length=MAX_BATCH, fail_fast=True, json_schema_extra={"minItems": 1}),
        AfterValidator(_not_empty),
    ] = Field(description=f"1 to {MAX_BATCH} messages, in their order. Validation stops at the first that is wrong.")


@router.post(
    "",
    status_code=201,
    response_model=Message | Answered,
    responses={200: EVENTS, 202: PENDING, **api_problems(403, 404, 409, 413, 415, 422, 502, 504)},
    response_description="The message as it is stored; for a question, both messages.",
    summary="Append a message, or ask a question",
    openapi_extra={"parameters": [*openapi_query(BusyQuery)["parameters"], PREFER, LAST_EVENT_ID]},
)
async def append_message(
    owner: Owner,
    store: OpenedStore,
    request: Request,
    conversation_id: ConversationId,
    message: Annotated[MessageRequest, Body()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Append a message. When the response arrives, the message is on the disk.

    The message id is the idempotency key: sending the same message with the same id again changes nothing and
    returns it; the same id with other content is a conflict (409). Without an id in the body, the header
    `Idempotency-Key` makes one; the response to a repeated request has `Idempotency-Replayed: true` then.
    A message follows the conversation's head unless it has a `parent_id`; null means the root.

    A message without a role is a question, which is stored and answered. An answer that takes longer than 60 seconds
    goes on (202), and its events tell the rest; with `Prefer: respond-async` that is said at once. With
    `Accept: text/event-stream` the response is `user_message`, the events of the answer, and `assistant_message`. The
    same id asks nothing again: it gets the answer that there is, or the rest of its stream after `Last-Event-ID`. A
    failed answer is 502, or 504 if the model took too long; the question is stored all the same. While another question
    of the conversation is being answered, it is 409 with the code `turn-in-progress`, or waits with `on_busy=wait`.

    On a server with strict roles a message of another role than `user` needs the scope `chatkeep:write-any-role` (403).
    """
    if message.role is not Role.USER:
        require_any_role(request, "role")
    if request.scope["query_string"]:
        read_query(BusyQuery, request)
    if message.answer or not message.names_role:
        answering = await answering_of(request)
        if _is_asked(message, answering):
            question = _with_id(message, owner, conversation_id, idempotency_key)
            return await answering.ask(request, owner, conversation_id, question)
    replayed, new = False, _with_id(message, owner, conversation_id, idempotency_key)
    if idempotency_key is not None:
        replayed = await _exists(store, owner, conversation_id, new)
    [appended] = await store.append(owner, conversation_id, [new])
    response = reply(appended, 201, location=f"/api/conversations/{conversation_id}/messages/{appended.id}")
    if replayed:
        response.headers[REPLAYED] = "true"
    return response


@router.post(
    "/batch",
    status_code=201,
    response_model=Page[Message],
    responses=api_problems(403, 404, 409, 413, 415, 422),
    response_description="The messages as they are stored, in the order of the request; `next` is null.",
    summary="Append several messages at once",
)
async def append_messages(
    owner: Owner,
    store: OpenedStore,
    request: Request,
    conversation_id: ConversationId,
    batch: Annotated[MessageBatch, Body()],
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Append up to 200 messages in order: all of them, or none.

    Each is as one that is sent alone: it follows the one before it unless it has a `parent_id`, and its id makes a
    retry safe. Those that are there already are returned, the others stored; an id that is used for other content is a
    conflict (409), and nothing is stored. With an `Idempotency-Key` each message without an id gets one that is made
    of the key and its place; the response has `Idempotency-Replayed: true` if all messages were there. The scope for
    other roles than `user` is that of a message alone.
    """
    other = next((place for place, each in enumerate(batch.messages) if each.role is not Role.USER), None)
    if other is not None:
        require_any_role(request, f"messages.{other}.role")
    messages, last_seq = batch.messages, 0
    if idempotency_key is not None:
        messages = _with_ids(messages, owner, conversation_id, idempotency_key)
        last_seq = await _last_seq(store, owner, conversation_id)
    appended = await store.append(owner, conversation_id, messages)
    response = reply(Page[Message].model_construct(items=appended, total=None, next=None), 201)
    if max(message.seq for message in appended) <= last_seq:
        response.headers[REPLAYED] = "true"
    return response


@router.get(
    "",
    response_model=Page[Message],
    responses=api_problems(403, 404, 422),
    response_description="A page of messages.",
    summary="List the messages of a conversation",
    openapi_extra=openapi_query(MessagesQuery),
)
async def list_messages(request: Request, conversation_id: ConversationId) -> Response:
    """List the messages on the path to the head, or to `leaf`: in every page oldest first.

    `order=desc` begins with the newest messages and pages back, `order=asc` begins with the oldest and pages
    forward. Read on with `cursor`, which keeps to the path that the first page saw, or by `page`.
    """
    # Called here: as dependencies they take 50 µs, a tenth of the most frequent request.
    owner, store = await current_owner(request), await opened_store(request)
    query = read_query(MessagesQuery, request)
    page = await store.history(
        owner,
        conversation_id,
        limit=query.limit,
        before=await _seq(store, owner, conversation_id, query.before, query.before_id),
        after=await _seq(store, owner, conversation_id, query.after, query.after_id),
        order=query.order,
        leaf=query.leaf,
        cursor=query.cursor,
        offset=query.page_offset,
        total=query.wants_total,
    )
    return reply(page)


@router.get(
    "/{message_id:message}",
    response_model=Message,
    responses=api_problems(403, 404, 422),
    response_description="The message.",
    summary="Get a message",
)
async def get_message(
    owner: Owner, store: OpenedStore, conversation_id: ConversationId, message_id: MessageId
) -> Response:
    """Get one message of a conversation, on any branch."""
    return reply(await store.get_message(owner, conversation_id, message_id))


@router.patch(
    "/{message_id:message}",
    response_model=Message,
    responses=api_problems(403, 404, 413, 415, 422),
    response_description="The changed message.",
    summary="Change the metadata of a message",
)
async def update_message(
    owner: Owner,
    store: OpenedStore,
    conversation_id: ConversationId,
    message_id: MessageId,
    change: Annotated[MessageChange, Body(media_type=MERGE_PATCH)],
) -> Response:
    """Change the metadata, such as feedback, by a JSON Merge Patch (RFC 7396), key by key; null removes.

    Nothing else of a message changes, nor does the conversation's `updated_at`, and a late retry of its append is
    known as before.
    """
    return reply(await store.update_message(owner, conversation_id, message_id, change))


@router.delete(
    "/{message_id:message}",
    status_code=204,
    responses=api_problems(403, 404, 422),
    response_description="Its content, parts, sources and metadata are erased.",
    summary="Delete a message",
)
async def delete_message(
    owner: Owner, store: OpenedStore, conversation_id: ConversationId, message_id: MessageId
) -> Response:
    """Erase a message's content, parts, sources and metadata. Deleting it again is 404.

    Its place stays: other messages keep their seq and their parent, and its id is not free again.
    """
    if not await store.delete_message(owner, conversation_id, message_id):
        raise NotFound("there is no such message in this conversation")
    return Response(status_code=204)


@router.get(
    "/{message_id}/siblings",
    response_model=Page[Message],
    responses=api_problems(403, 404, 422),
    response_description="A page of them, by seq.",
    summary="List the alternatives to a message",
    openapi_extra=openapi_query(SiblingsQuery),
)
async def list_siblings(
    owner: Owner, store: OpenedStore, request: Request, conversation_id: ConversationId, message_id: MessageId
) -> Response:
    """List the messages that follow the same parent as this one, itself included, by seq."""
    query = read_query(SiblingsQuery, request)
    return reply(await store.siblings(owner, conversation_id, message_id, limit=query.limit, cursor=query.cursor))


def _is_asked(message: MessageRequest, answering: Answering) -> bool:
    """Whether a message is to be answered. Raises RequestValidationError and InvalidInput if it cannot be."""
    if message.answer and message.role is not Role.USER:
        raise InvalidInput("only a message of the role user can be answered")
    if message.answer is None and not answering.is_able:
        raise RequestValidationError([{"type": "missing", "loc": ("body", "role")}])
    return message.answer is not False


def _with_id(message: NewMessage, owner: str, conversation_id: UUID, key: str | None) -> NewMessage:
    """Return the message with the id of `key`, if there is one. Raises InvalidInput if it has another one.

    The id is a UUID version 5 of owner, conversation and key: the same key always gives the same id.
    """
    if key is None:
        return message
    id_ = _id_of(owner, conversation_id, key)
    if message.id is None:
        return message.model_copy(update={"id": id_})
    if message.id != id_ and str(message.id) != key.lower():
        raise InvalidInput("the Idempotency-Key header and the message's id differ; send one of them")
    return message


def _with_ids(messages: Sequence[NewMessage], owner: str, conversation_id: UUID, key: str) -> tuple[NewMessage, ...]:
    """Return the messages; those without an id get one that is made of `key` and their place in the batch.

    The namespace is the id that a message alone gets from the key, so that no key of such a message makes one of these.
    """
    namespace = _id_of(owner, conversation_id, key)
    ids = (message.id or uuid5(namespace, str(place)) for place, message in enumerate(messages))
    return tuple(
        message.model_copy(update={"id": id_}) if message.id is None else message
        for message, id_ in zip(messages, ids, strict=True)
    )


def _id_of(owner: str, conversation_id: UUID, key: str) -> UUID:
    return uuid5(uuid5(conversation_id, owner), key)


async def _last_seq(store: Store, owner: str, conversation_id: UUID) -> int:
    """Return the last seq of a conversation, 0 if there is none: an append says why."""
    try:
        return (await store.get_conversation(owner, conversation_id)).last_seq
    except (NotFound, NotYours):
        return 0


async def _exists(store: Store, owner: str, conversation_id: UUID, message: NewMessage) -> bool:
    """Whether the message is stored already. Both of two concurrent requests may get False."""
    try:
        return await store.get_message(owner, conversation_id, message.id or "") is not None
    except NotFound:
        return False


async def _seq(store: Store, owner: str, conversation_id: UUID, seq: int | None, message_id: UUID | None) -> int | None:
    """Return a bound as a seq, whether it was given as a seq or as a message id."""
    if message_id is None:
        return seq
    return (await store.get_message(owner, conversation_id, message_id)).seq
