"""Answers to questions over HTTP: made again, followed and stopped."""

import hashlib
from typing import Any

from fastapi import APIRouter, Request, Response

from chatkeep.api.answering import Answered, AppAnswering, BusyQuery
from chatkeep.api.body import JsonRoute
from chatkeep.api.dependencies import Owner
from chatkeep.api.errors import api_problems
from chatkeep.api.idempotency import IdempotencyKey
from chatkeep.api.negotiation import last_place
from chatkeep.api.openapi import EVENTS, LAST_EVENT_ID, PENDING, PREFER
from chatkeep.api.query import openapi_query
from chatkeep.api.routes.conversations import ConversationId
from chatkeep.api.routes.messages import MessageId
from chatkeep.model import Message

router = APIRouter(prefix="/api/conversations/{conversation_id}/messages", tags=["messages"], route_class=JsonRoute)

ASKING: dict[str, Any] = {"parameters": [*openapi_query(BusyQuery)["parameters"], PREFER, LAST_EVENT_ID]}
"""The parameters of a request that asks, which the routes read themselves."""


@router.post(
    "/{message_id}/answer",
    status_code=201,
    response_model=Answered,
    responses={200: EVENTS, 202: PENDING, **api_problems(403, 404, 409, 422, 502, 504)},
    response_description="The question and its answer, complete or interrupted.",
    summary="Answer a question again",
    openapi_extra=ASKING,
)
async def answer_again(
    owner: Owner,
    answering: AppAnswering,
    request: Request,
    conversation_id: ConversationId,
    message_id: MessageId,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Have a message of the user's answered again. The answer is a sibling of the earlier ones.

    The replies are those of `POST …/messages`. The same `Idempotency-Key` gets the same answer; while the question is
    being answered, any key gets the answer that is being made.
    """
    attempt = hashlib.sha256(idempotency_key.encode()).hexdigest()[:32] if idempotency_key else None
    return await answering.ask(request, owner, conversation_id, message_id, attempt)


@router.get(
    "/{message_id}/events",
    response_class=Response,
    responses={200: EVENTS, **api_problems(403, 404, 422)},
    summary="Follow an answer",
    openapi_extra={"parameters": [LAST_EVENT_ID]},
)
async def follow_answer(
    owner: Owner, answering: AppAnswering, request: Request, conversation_id: ConversationId, message_id: MessageId
) -> Response:
    """Stream an answer from its beginning, or after the event in `Last-Event-ID`, while it is made or afterwards.

    Each event has its kind, an id, and JSON. `text` and `reasoning` come in pieces, `tool_call`, `tool_result`,
    `source`, `data`, `usage` and `error` whole; at last come `end` and `assistant_message`, the whole answer. `reset`
    has all that there is so far, as what the client has is of no use. Comments keep the connection open. After `retry`
    the server ends: connect again.
    """
    answer = await answering.answer(owner, conversation_id, message_id)
    return answering.events(owner, answer, last_place(request.headers.get("last-event-id", "")))


@router.post(
    "/{message_id}/stop",
    response_model=Message,
    responses={
        202: {**PENDING, "model": Message, "description": "It is about to stop; its events tell when it has."},
        **api_problems(403, 404, 422),
    },
    response_description="The answer, which has ended.",
    summary="Stop an answer",
)
async def stop_answer(
    owner: Owner, answering: AppAnswering, conversation_id: ConversationId, message_id: MessageId
) -> Response:
    """End an answer that is being made, as interrupted, with what there is of it. One that has ended stays as it is."""
    return await answering.stop(owner, conversation_id, message_id)
