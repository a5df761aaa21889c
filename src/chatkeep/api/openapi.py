"""The OpenAPI document. `python -m chatkeep.api` prints it; a copy is in docs/openapi.json."""

import json
from typing import Any
from uuid import UUID

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from chatkeep.answers.stream import RESET
from chatkeep.api.admission import is_protected
from chatkeep.api.answering import Answered
from chatkeep.api.body import MERGE_PATCH
from chatkeep.api.errors import Problem
from chatkeep.api.examples import ANSWER_ID, EVENTS_EXAMPLE, REQUEST_EXAMPLES, RESPONSE_EXAMPLES, Named
from chatkeep.api.idempotency import REPLAYED
from chatkeep.api.negotiation import EVENT_STREAM, JSON
from chatkeep.api.query import with_bounds
from chatkeep.events import EventKind, place_of
from chatkeep.model import StreamPlace
from chatkeep.values import MAX_COUNT

DESCRIPTION = """Conversations of AI applications, kept so that nothing acknowledged is lost, doubled or out of order.

Lists are always `{"items": […], "total": n or null, "next": cursor or null}`. Errors are problem documents
(RFC 9457) of the type `application/problem+json`, which repeat nothing of the request. Every response carries
its id in the header `X-Request-ID`. Every GET answers HEAD, too."""


BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A token of the issuer, or an API key (`chatkeep keys create`). A server without authentication,"
    " which serves its own machine only, takes requests without it.",
}
LOCATION_HEADER = {"Location": {"description": "The path of the created resource.", "schema": {"type": "string"}}}
REPLAYED_HEADER = {"description": "`true` when this request was executed before.", "schema": {"type": "string"}}

EVENTS: dict[str, Any] = {
    "description": "The events of the answer, if they are asked for; an answer that fails ends in them, too.",
    "content": {EVENT_STREAM: {"schema": {"$ref": "#/components/schemas/AnswerEvent"}, "example": EVENTS_EXAMPLE}},
}
"""The response of a stream."""

KINDS = [kind.value for kind in EventKind]
EVENT_SCHEMA: dict[str, Any] = {
    "title": "AnswerEvent",
    "description": "One of the server-sent events of an answer.",
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"type": "string", "enum": ["user_message", RESET, *KINDS, "assistant_message"]},
        "id": {"type": "string", "description": "Of all but the messages: what to send as `Last-Event-ID`."},
        "data": {"type": "string", "description": "JSON in ASCII: the fields of the event, or a whole message."},
    },
}

PENDING: dict[str, Any] = {
    "model": Answered,
    "description": "The question is stored, and the answer in progress: the path in `Location` has its events.",
}

LAST_EVENT_ID: dict[str, Any] = {
    "name": "Last-Event-ID",
    "in": "header",
    "required": False,
    "description": "The id of the last event that the client has: the stream goes on after it.",
    "schema": {"type": "string"},
    "example": str(place_of(UUID(ANSWER_ID), 12, 340)),
}
PREFER: dict[str, Any] = {
    "name": "Prefer",
    "in": "header",
    "required": False,
    "description": "`respond-async`: reply at once (202), and not only when there is an answer.",
    "schema": {"type": "string"},
    "example": "respond-async",
}

STREAM = {
    "anyOf": [{"$ref": "#/components/schemas/StreamPlace"}, {"type": "null"}],
    "description": "Of an answer that is being made, and of no other message: where to read on.",
}


def document(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document of `app`, with examples, security and the schema of problems added."""
    schema = get_openapi(
        title=app.title,
        version=app.version,
        description=app.description,
        routes=app.routes,
        separate_input_output_schemas=False,  # a record has one shape
    )
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = schema["components"]["schemas"]
    schemas |= {**problem.pop("$defs"), "Problem": problem, "StreamPlace": StreamPlace.model_json_schema()}
    schemas["AnswerEvent"] = EVENT_SCHEMA
    _make_bounds_whole(schemas)
    schemas["Message"]["properties"]["stream"] = STREAM
    schema["components"]["securitySchemes"] = {"bearer": BEARER}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            _complete(operation)
            if is_protected(path):
                operation["security"] = [{"bearer": []}]
    return schema


def _make_bounds_whole(schema: Any) -> None:
    """Replace the bounds of integers, of which FastAPI makes doubles: the one of MAX_COUNT is greater by 1."""
    if isinstance(schema, dict):
        if schema.get("type") == "integer":
            schema |= {name: min(int(schema[name]), MAX_COUNT) for name in ("minimum", "maximum") if name in schema}
        schema = list(schema.values())
    if isinstance(schema, list):
        for inner in schema:
            _make_bounds_whole(inner)


def _complete(operation: dict[str, Any]) -> None:
    """Add what FastAPI cannot express: examples with null, a second media type, Location."""
    name, requests = operation["operationId"], operation.get("requestBody", {}).get("content", {})
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = with_bounds(parameter["schema"])
    for content in requests.values():
        content["examples"] = REQUEST_EXAMPLES[name]
    if MERGE_PATCH in requests:
        requests[JSON] = requests[MERGE_PATCH]
    for status, response in operation["responses"].items():
        if JSON in response.get("content", {}):
            response["content"][JSON] |= _example(RESPONSE_EXAMPLES.get(f"{name} {status}", RESPONSE_EXAMPLES[name]))
        if status in ("201", "202"):
            location = {} if name == "append_messages" else LOCATION_HEADER
            replayed = {} if name == "upload_document" else {REPLAYED: REPLAYED_HEADER}
            response["headers"] = {**location, **replayed}


def _example(given: Any) -> dict[str, Any]:
    """One example, or several with their names."""
    return {"examples": dict(given)} if isinstance(given, Named) else {"example": given}


def document_text(app: FastAPI) -> str:
    """Return the document as text, as in docs/openapi.json."""
    return json.dumps(document(app), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
