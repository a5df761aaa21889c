"""Errors over HTTP: each is a problem document (RFC 9457), and none repeats what the client sent.

Values, ids and names from a request may be private and may be long. So the sentences come from here or
from `ChatkeepError.detail`, which has no value in it, and never from pydantic's texts or from `str(error)`.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match

from chatkeep.api.query import InvalidQuery
from chatkeep.errors import (
    ChatkeepError,
    Conflict,
    InvalidId,
    InvalidInput,
    JournalInUse,
    NotFound,
    NotYours,
    RecorderFull,
    SchemaMismatch,
    StoreUnavailable,
    Unauthenticated,
    UnsafeDatabase,
)
from chatkeep.model import Record

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

MAX_ERRORS = 20
"""Most field errors of one problem; a body can have thousands."""

STATUS: Mapping[type[ChatkeepError], int] = {
    InvalidId: 422,
    InvalidInput: 422,
    Conflict: 409,
    NotFound: 404,
    NotYours: 403,
    Unauthenticated: 401,
    SchemaMismatch: 503,
    UnsafeDatabase: 503,
    StoreUnavailable: 503,
    RecorderFull: 503,
    JournalInUse: 503,
}
"""The HTTP status of each error; a subclass has its parent's."""


class FieldError(Record):
    """One thing that is wrong with a request."""

    field: str = Field(description="Where: a field of the body, a parameter, or `body` or `query` as a whole.")
    message: str = Field(description="What is wrong with it and what would be right.")


class Problem(Record):
    """Why a request failed (RFC 9457). It repeats nothing of the request."""

    type: str = Field("about:blank", description="The status says it all.")
    title: str = Field(description="The name of the status.")
    status: int
    detail: str = Field(description="What is wrong, what the limit is, and what to do about it.")
    errors: list[FieldError] | None = Field(None, description="The fields that are wrong, where it is about fields.")


@dataclass(frozen=True)
class Kind:
    """A status that the API answers with: its name, when it is used, and what it says unless said better."""

    title: str
    when: str
    detail: str


KINDS: Mapping[int, Kind] = {
    400: Kind("Bad Request", "The request ended early.", "the request ended before all of it had arrived"),
    401: Kind(
        "Unauthorized",
        "There is no token or API key, or it is not valid.",
        "send a valid token or API key, with the header Authorization: Bearer …",
    ),
    403: Kind(
        "Forbidden",
        "The conversation is somebody else's, the key may only read, or the request comes from another web site.",
        "this conversation belongs to somebody else",
    ),
    404: Kind(
        "Not Found", "There is no such thing.", "there is nothing at this path; the paths are listed at /api/docs"
    ),
    405: Kind(
        "Method Not Allowed",
        "The path does not take this method.",
        "this path does not take the method; the Allow header names those that it takes",
    ),
    409: Kind(
        "Conflict",
        "The id is already used for other values.",
        "this id is already used for other content",
    ),
    413: Kind(
        "Content Too Large",
        "The body is larger than the server accepts.",
        "the body may have at most 8,388,608 bytes",
    ),
    415: Kind(
        "Unsupported Media Type",
        "The body is not declared to be JSON.",
        "send JSON, with the header Content-Type: application/json and without Content-Encoding",
    ),
    421: Kind(
        "Misdirected Request",
        "The Host header names a host that this server does not serve.",
        "this server does not answer to the name in the Host header; CHATKEEP_ALLOWED_HOSTS adds names",
    ),
    422: Kind("Unprocessable Content", "Something in the request is not valid.", "limit must be at most 200"),
    429: Kind(
        "Too Many Requests",
        "There were too many requests in too short a time.",
        "there were too many requests; send this one again after the seconds in the Retry-After header",
    ),
    500: Kind(
        "Internal Server Error",
        "The server failed; its log has the reason under the id in the X-Request-ID header.",
        "the server failed; its log has the reason under the id in the X-Request-ID header",
    ),
    503: Kind(
        "Service Unavailable",
        "The store cannot be used now. Sending the request again, with the same ids, is safe.",
        "the store cannot be used now; send the same request again after the seconds in the Retry-After header",
    ),
}

RETRY_AFTER = {"Retry-After": "1"}


class Refused(HTTPException):
    """A request that is refused before the store is asked; `detail` has no value of the request in it."""


# --- answers ----------------------------------------------------------------------------------------------


def problem(
    status: int,
    detail: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    errors: Sequence[FieldError] = (),
) -> Response:
    """Return the problem document of `status`; `detail` is the general sentence of the status when absent."""
    kind = KINDS.get(status) or Kind(HTTPStatus(status).phrase, "", "the request cannot be answered")
    body = Problem(title=kind.title, status=status, detail=detail or kind.detail, errors=list(errors) or None)
    return Response(body.model_dump_json(exclude_none=True), status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe these statuses, and those that any route may answer with, for a route's OpenAPI document."""
    return {status: _described(status) for status in sorted({*statuses, 421, 500})}


def api_problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for a route that acts for an owner."""
    return problems(*statuses, 401, 429, 503)


def _described(status: int) -> dict[str, Any]:
    kind = KINDS[status]
    example = Problem(title=kind.title, status=status, detail=kind.detail).model_dump(exclude_none=True)
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}, "example": example}}
    described: dict[str, Any] = {"description": kind.when, "content": content}
    if status in (429, 503):
        described["headers"] = {
            "Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer"}, "example": 1}
        }
    return described


# --- handlers ---------------------------------------------------------------------------------------------


def add_handlers(app: FastAPI) -> None:
    """Answer every error that a route raises with a problem document; the guard answers what is left."""
    app.add_exception_handler(ChatkeepError, _chatkeep_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(ClientDisconnect, _client_disconnect)


async def _chatkeep_error(_: Request, error: Exception) -> Response:
    if not isinstance(error, ChatkeepError):
        raise error
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), None)
    if status is None:
        raise error
    if status == 503:
        # What the database said is for the log: it may name files and hosts.
        logger.error("the store cannot be used: %s", error)
        return problem(503, headers=RETRY_AFTER)
    return problem(status, error.detail)


async def _validation_error(request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    roots = _roots(request, error)
    found = [_field_error(roots, each) for each in error.errors()[:MAX_ERRORS]]
    more = len(error.errors()) - 1
    detail = _sentence(found[0]) + (f" (and {more:,} more)" if more else "")
    return problem(422, detail, errors=found)


async def _http_exception(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_allowed_methods(request))
    # What others put into `detail` is not known to be free of values.
    return problem(error.status_code, error.detail if isinstance(error, Refused) else None, headers=headers)


async def _client_disconnect(_request: Request, _error: Exception) -> Response:
    return problem(400)


def _allowed_methods(request: Request) -> list[str]:
    """The methods of all routes at the request's path; the framework names those of the first route only."""
    routes = request.app.router.routes
    methods = [
        method
        for method in ("GET", "POST", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]
    return ["GET", "HEAD", *methods[1:]] if "GET" in methods else methods


# --- validation errors ------------------------------------------------------------------------------------

WHOLE_NUMBER = "must be a whole number"
MESSAGES = {
    "missing": "is missing",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_too_long": "may have at most {max_length} characters",
    "enum": "must be one of {expected}",
    "literal_error": "must be one of {expected}",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
    "dict_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "model_attributes_type": "must be a JSON object",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "timezone_aware": "must have a time zone, such as 2026-01-31T12:00:00Z",
    "uuid": "must be a UUID, such as 0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75",
    "int": WHOLE_NUMBER,
    "float": "must be a number",
    "bool": "must be true or false",
    "datetime": "must be a date and time with a time zone, such as 2026-01-31T12:00:00Z",
}
"""What to say for each of pydantic's error types, by its name or by the part of it before the first `_`."""


def _field_error(roots: Mapping[str, Any], error: Mapping[str, Any]) -> FieldError:
    place, *parts = error["loc"]
    path, record = _path(roots[place], parts) if place in roots else ([str(part) for part in parts[:1]], None)
    field = ".".join(path) or str(place)
    if error["type"] == "extra_forbidden" and record is not None:
        noun = "parameter" if place == "query" else "field"
        return FieldError(field=field, message=f"has an unknown {noun}; known are {', '.join(record.model_fields)}")
    return FieldError(field=field, message=_message(error))


def _message(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind == "value_error":
        # Raised by chatkeep's own validators, whose texts have no values.
        return str(error["ctx"]["error"])
    text = MESSAGES.get(kind) or MESSAGES.get(kind.split("_")[0]) or "is not valid"
    return text.format_map(error.get("ctx", {}))


def _sentence(error: FieldError) -> str:
    """`error` as a sentence; what is about a whole record names its subject already."""
    whole = error.field in ("body", "query") and not error.message.startswith(("is ", "has ", "must "))
    return error.message if whole else f"{error.field} {error.message}"


def _roots(request: Request, error: RequestValidationError) -> dict[str, Any]:
    """The record that the request's query or body was to be read into."""
    if isinstance(error, InvalidQuery):
        return {"query": error.record}
    route = request.scope.get("route")
    if isinstance(route, APIRoute) and route.body_field is not None:
        return {"body": route.body_field.field_info.annotation}
    return {}


def _path(annotation: Any, parts: Sequence[str | int]) -> tuple[list[str], type[BaseModel] | None]:
    """The part of a location that chatkeep named, and the record at its end: other names are the client's."""
    path: list[str] = []
    for part in parts:
        record = _record_in(annotation)
        if isinstance(part, str):
            if record is None or part not in record.model_fields:
                break
            annotation = record.model_fields[part].annotation
        path.append(str(part))
    return path, _record_in(annotation)


def _record_in(annotation: Any) -> type[BaseModel] | None:
    """The record that `annotation` is, or has inside, as `tuple[Source, ...]` has."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((record for inner in get_args(annotation) if (record := _record_in(inner)) is not None), None)
