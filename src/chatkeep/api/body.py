"""JSON bodies: strict and bounded parsing of requests, fast serialization of responses."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID

import orjson
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, BeforeValidator, ValidationError
from pydantic_core import to_json

from chatkeep.api.errors import STATUS_TEXTS, Refused
from chatkeep.api.negotiation import JSON
from chatkeep.api.query import errors_in
from chatkeep.model import Page, Source
from chatkeep.values import MAX_JSON_DEPTH, BeyondLimits, check_structure, parse_json

MERGE_PATCH = "application/merge-patch+json"

NOT_JSON = (
    "the body is not valid JSON, which is UTF-8 without NaN and Infinity; its numbers have to be within the range of a"
    " double, and metadata may have at most 100 levels of objects and lists"
)

LARGE_BODY_BYTES = 1 << 16
"""Longer bodies are read in a thread. The worst of this length takes some 10 ms, which other requests can wait."""

MAX_BODY_DEPTH = 2 * MAX_JSON_DEPTH
"""Deepest nesting of a large body, in levels: the stack of a thread is short. Metadata may have half of it."""

_reader = ThreadPoolExecutor(1, "chatkeep-json")
"""Reads one large body at a time: the parser stops all threads of the process while it runs, so that two would take
as long, and twice the memory."""


class JsonRequest(Request):
    """A request whose body is strict JSON: UTF-8, without NaN, its escaped text made valid Unicode."""

    value: Any
    """The parsed body, or the record that was made from it, which FastAPI's validation returns unchanged."""

    async def json(self) -> Any:
        """Return the body's value."""
        return self.value

    async def read(self, record: type[BaseModel]) -> None:
        """Parse the body, of which a `record` will be made; a large one is validated, too.

        Raises Refused (422), RequestValidationError.
        """
        body = await self.body()
        if len(body) <= LARGE_BODY_BYTES:
            self.value = parse_body(body, record) if body else None
            return
        loop, max_values = asyncio.get_running_loop(), self.app.state.max_json_values
        self.value = await loop.run_in_executor(_reader, read_large_body, body, record, max_values)


class JsonRoute(APIRoute):
    """A route that parses its body, if it has one, with `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, preceded by the checks of size, media type and JSON, in this order."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        accepted = {JSON, MERGE_PATCH} if "PATCH" in (self.methods or ()) else {JSON}
        record = self.body_field.field_info.annotation
        assert isinstance(record, type)  # noqa: S101 - each route takes a record
        assert issubclass(record, BaseModel)  # noqa: S101

        async def handle_json(request: Request) -> Response:
            request = JsonRequest(request.scope, request.receive)
            await request.body()
            check_media_type(request, accepted)
            await request.read(record)
            return await handle(request)

        return handle_json


def parse_body(body: bytes, record: type[BaseModel]) -> Any:
    """Return the value of a body. Raises Refused (422), or RequestValidationError if it has too many fields."""
    try:
        value = parse_json(body.decode())
    except ValueError:
        # The parser's message may repeat a part of the body.
        raise Refused(422, NOT_JSON) from None
    if isinstance(value, dict) and len(value) > len(record.model_fields):
        # One at least is unknown, of perhaps thousands, for each of which pydantic would make an error.
        raise RequestValidationError([{"type": "extra_forbidden", "loc": ("body", "")}])
    return value


def without_crowd(record: type[BaseModel]) -> BeforeValidator:
    """Return what refuses an item with more fields than a `record` has: pydantic makes an error for each of them."""

    def check(value: object) -> object:
        if isinstance(value, dict) and len(value) > len(record.model_fields):
            raise ValueError(f"has an unknown field; known are {', '.join(record.model_fields)}")
        return value

    return BeforeValidator(check)


def read_large_body[R: BaseModel](body: bytes, record: type[R], max_values: int) -> R:
    """Return the record in a body of more than LARGE_BODY_BYTES. Raises Refused (422), RequestValidationError."""
    try:
        check_structure(body, max_values, MAX_BODY_DEPTH)
    except BeyondLimits as error:
        raise Refused(422, f"the body {error}") from None
    try:
        return record.model_validate(parse_body(body, record))
    except ValidationError as error:
        raise RequestValidationError(errors_in("body", error)) from None


def check_media_type(request: Request, accepted: set[str]) -> None:
    """Raise Refused (415) if the body is compressed, or its Content-Type is not accepted.

    Pages of other sites cannot send these types without a CORS preflight.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    encoding = request.headers.get("content-encoding", "identity").lower()
    if media_type not in accepted or encoding != "identity":
        names = " or ".join(sorted(accepted))
        raise Refused(415, STATUS_TEXTS[415].detail.replace(JSON, names))


def reply(record: BaseModel, status: int = 200, *, location: str | None = None) -> Response:
    """Return `record` as a JSON response, without the validation and the copy that FastAPI makes."""
    headers = None if location is None else {"Location": location}
    return Response(json_bytes(record), status, headers=headers, media_type=JSON)


def json_bytes(record: BaseModel) -> bytes:
    """Serialize a record: the same bytes as pydantic's, in a third of the time if it holds messages."""
    values: dict[str, Any] = record.__dict__
    if isinstance(record, Page):
        values = {**values, "items": [item.__dict__ for item in record.items]}
    try:
        return orjson.dumps(values, _default, orjson.OPT_UTC_Z)
    except TypeError:
        # orjson refuses integers of more than 64 bits, which metadata may hold. As any: a RunningAnswer is a Message.
        return to_json(record, serialize_as_any=True)


def _default(value: object) -> object:
    """Convert the types that orjson does not know: records, and UUIDs of a database driver's own class."""
    if isinstance(value, UUID):
        return str(value)
    return value.model_dump() if isinstance(value, Source) else value.__dict__  # a source leaves out what is absent
