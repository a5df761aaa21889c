"""Problem documents (RFC 9457) for all errors. None repeats anything of the request.

Values, ids and names in a request may be private or long. So the messages come from this module or from
`ChatkeepError.detail`, which holds no values, and never from pydantic or `str(error)`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from chatkeep.access import location_of
from chatkeep.answers.stream import NotAnswering
from chatkeep.api.query import InvalidQuery
from chatkeep.errors import (
    ChatkeepError,
    Conflict,
    InvalidId,
    InvalidInput,
    JournalInUse,
    NotFound,
    NotYours,
    ProjectFull,
    RecorderFull,
    SchemaMismatch,
    StoreUnavailable,
    TooManyTurns,
    TurnInProgress,
    TurnLost,
    Unauthenticated,
    UnsafeDatabase,
)
from chatkeep.model import Record
from chatkeep.validation import Wrong, all_wrong, summary, wrong

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

ERROR_STATUS: Mapping[type[ChatkeepError], int] = {
    InvalidId: 422,
    InvalidInput: 422,
    Conflict: 409,
    TurnLost: 409,
    ProjectFull: 409,
    TooManyTurns: 429,
    NotFound: 404,
    NotYours: 403,
    Unauthenticated: 401,
    SchemaMismatch: 503,
    UnsafeDatabase: 503,
    StoreUnavailable: 503,
    RecorderFull: 503,
    JournalInUse: 503,
}
"""The HTTP status of each error; a subclass inherits its parent's."""


class FieldError(Record):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where: a field of the body, a parameter, or `body` or `query` as a whole.")
    message: str = Field(description="What is wrong with it and what would be right.")


class Problem(Record):
    """Why a request failed (RFC 9457). It repeats nothing of the request."""

    type: str = Field(default="about:blank", description="Always about:blank: the status is the type.")
    title: str = Field(description="The name of the status.")
    status: int
    detail: str = Field(description="What is wrong, what the limit is, and what to do about it.")
    code: str | None = Field(
        default=None,
        description="Which of the errors of this status it is, if a program needs to know: `turn-in-progress`.",
    )
    errors: list[FieldError] | None = Field(
        default=None, description="The fields that are wrong, if it is about fields."
    )


@dataclass(frozen=True)
class StatusText:
    """The texts of a status: its title, its description in the OpenAPI document, and the default detail."""

    title: str
    description: str
    detail: str


STATUS_TEXTS: Mapping[int, StatusText] = {
    400: StatusText(
        "Bad Request",
        "The request is not HTTP/1.1, or ended early.",
        "the request is not valid HTTP/1.1, or it ended before all of it had arrived",
    ),
    401: StatusText(
        "Unauthorized",
        "There is no token or API key, or it is not valid.",
        "send a valid token or API key, with the header Authorization: Bearer …",
    ),
    403: StatusText(
        "Forbidden",
        "The conversation belongs to another owner, the key or token has not the scope, or a page of another site sent"
        " the request.",
        "this conversation belongs to somebody else",
    ),
    404: StatusText(
        "Not Found", "The resource does not exist.", "there is nothing at this path; the paths are listed at /api/docs"
    ),
    405: StatusText(
        "Method Not Allowed",
        "The path does not take this method.",
        "this path does not take the method; the Allow header names those that it takes",
    ),
    408: StatusText(
        "Request Timeout",
        "The request took too long to arrive.",
        "the request took too long to arrive; send it again on a faster connection, or in smaller parts",
    ),
    409: StatusText(
        "Conflict",
        "The id is already used for other values, another question is being answered, the project is full, or the"
        " provider is in use.",
        "this id is already used for other content",
    ),
    413: StatusText(
        "Content Too Large",
        "The body is larger than the server accepts.",
        "the body may have at most 8,388,608 bytes",
    ),
    415: StatusText(
        "Unsupported Media Type",
        "The body is not declared to be what the path takes: JSON, or the form of an upload.",
        "send JSON, with the header Content-Type: application/json and without Content-Encoding",
    ),
    421: StatusText(
        "Misdirected Request",
        "The Host header names a host that this server does not serve.",
        "this server does not answer to the name in the Host header; CHATKEEP_ALLOWED_HOSTS adds names",
    ),
    422: StatusText("Unprocessable Content", "Something in the request is not valid.", "limit must be at most 200"),
    429: StatusText(
        "Too Many Requests",
        "There were too many requests in too short a time.",
        "there were too many requests; send this one again after the seconds in the Retry-After header",
    ),
    431: StatusText(
        "Request Header Fields Too Large",
        "The head of the request is larger than the server accepts.",
        "the request line with the headers may have at most 65,536 bytes and 100 fields; send fewer or shorter ones",
    ),
    500: StatusText(
        "Internal Server Error",
        "The server failed; its log has the reason under the id in the X-Request-ID header.",
        "the server failed; its log has the reason under the id in the X-Request-ID header",
    ),
    501: StatusText(
        "Not Implemented",
        "The request is encoded in a way that the server does not know.",
        "send the body with Content-Length or Transfer-Encoding: chunked, and without Upgrade",
    ),
    502: StatusText(
        "Bad Gateway",
        "The answer failed. The question is stored, and the path in `Location` has what there is of the answer.",
        "the model could not be reached",
    ),
    503: StatusText(
        "Service Unavailable",
        "The store cannot be used now. Sending the request again, with the same ids, is safe.",
        "the store cannot be used now; send the same request again after the seconds in the Retry-After header",
    ),
    504: StatusText(
        "Gateway Timeout",
        "The model took too long to answer. The question is stored, and the path in `Location` has what there is.",
        "the model said nothing for 60 s",
    ),
}

TURN_IN_PROGRESS = "turn-in-progress"

RETRY_AFTER = {"Retry-After": "1"}

BUSY = "the server has as many connections and requests as it can; send this one again after the seconds in Retry-After"

BODY_FAILURE = "body_failure"
"""Name in the state of a request's scope for the status of what went wrong while its body arrived."""


class Refused(HTTPException):
    """A request that is refused before it reaches the store. `detail` holds nothing of the request."""


# --- responses --------------------------------------------------------------------------------------------


def problem(
    status: int,
    detail: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    code: str | None = None,
    errors: Sequence[FieldError] = (),
) -> Response:
    """Return a problem document. `detail` defaults to the text of the status."""
    text = STATUS_TEXTS.get(status) or StatusText(HTTPStatus(status).phrase, "", "the request cannot be answered")
    detail = detail or text.detail
    body = Problem(title=text.title, status=status, detail=detail, code=code, errors=list(errors) or None)
    return Response(body.model_dump_json(exclude_none=True), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: these statuses, and those of every route."""
    return {status: _openapi_response(status) for status in sorted({*statuses, 421, 500})}


def api_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route that needs authentication."""
    return problems(*statuses, 401, 403, 429, 503)


def _openapi_response(status: int) -> dict[str, Any]:
    text = STATUS_TEXTS[status]
    example = Problem(title=text.title, status=status, detail=text.detail).model_dump(exclude_none=True)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    response: dict[str, Any] = {"description": text.description, "content": content}
    if status in (429, 503):
        response["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}, "example": 1}
        }
    return response


# --- handlers ---------------------------------------------------------------------------------------------


def add_handlers(app: FastAPI) -> None:
    """Handle every error of a route with a problem document. RequestMiddleware handles unexpected ones."""
    app.add_exception_handler(ChatkeepError, _chatkeep_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)


async def _chatkeep_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, ChatkeepError):
        raise error
    status = next((ERROR_STATUS[cls] for cls in type(error).__mro__ if cls in ERROR_STATUS), None)
    if status is None:
        raise error
    if isinstance(error, TurnInProgress):
        return _turn_in_progress(request, error)
    if isinstance(error, NotAnswering | TooManyTurns):
        return problem(status, error.detail, headers=RETRY_AFTER)
    if status == 503:
        # Only the log gets the message of the database: it may name files and hosts.
        logger.error("the store cannot be used: %s", error)
        return problem(503, headers=RETRY_AFTER)
    return problem(status, error.detail)


def _turn_in_progress(request: Request, error: TurnInProgress) -> Response:
    messages = f"{location_of(UUID(request.path_params['conversation_id']))}/messages"
    headers = {**RETRY_AFTER, "Location": f"{messages}/{error.message_id}/events"}
    return problem(409, error.detail, headers=headers, code=TURN_IN_PROGRESS)


async def _validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    roots = _roots(request, error)
    # Few: validation stops at the first bad item of a list, and no record has more fields than it knows.
    found = [_wrong(roots, each) for each in error.errors()]
    errors = [FieldError(field=each.field, message=each.message) for each in found]
    return problem(422, summary(found), errors=errors)


def sentence(record: type[BaseModel], error: ValidationError) -> str:
    """Return what is wrong with a value that should be a `record`, without anything of the value."""
    return summary(all_wrong(error, record, "body"))


async def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    # Other exceptions may have values in `detail`.
    return problem(error.status_code, error.detail if isinstance(error, Refused) else None, headers=headers)


async def _client_disconnect(_request: Request, _error: Exception) -> Response:
    return problem(400)


def _allowed_methods(request: Request) -> list[str]:
    """Return the methods of all routes at the path; Starlette names those of the first route only."""
    routes = request.app.router.routes
    methods = [
        method
        for method in ("GET", "POST", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["GET", "HEAD", *methods[1:]] if "GET" in methods else methods


# --- validation errors ------------------------------------------------------------------------------------


def _wrong(roots: Mapping[str, Any], error: Mapping[str, Any]) -> Wrong:
    place, *parts = error["loc"]
    if place in roots:
        return wrong({**error, "loc": parts}, roots[place], place)
    return wrong({**error, "loc": parts[:1]}, whole=place)  # the name of a header or of a part of the path


def _roots(request: Request, error: RequestValidationError) -> dict[str, Any]:
    """Return the record of the request's query or body."""
    if isinstance(error, InvalidQuery):
        return {"query": error.record}
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.body_field is not None:
        return {"body": route.body_field.field_info.annotation}
    return {}
