"""JSON bodies: strict parsing of requests, fast serialization of responses."""

from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic_core import to_json

from chatkeep.api.errors import STATUS_TEXTS, Refused
from chatkeep.model import Page
from chatkeep.values import parse_json

JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"

NOT_JSON = (
    "the body is not valid JSON, which is UTF-8 without NaN and Infinity; its numbers have to be within the range of a"
    " double, and metadata may have at most 100 levels of objects and lists"
)


class JsonRequest(Request):
    """A request whose body is strict JSON: UTF-8, without NaN, its escaped text made valid Unicode."""

    async def json(self) -> Any:
        """Return the parsed body. Raises Refused (422)."""
        try:
            return parse_json((await self.body()).decode())
        except ValueError:
            # The parser's message may repeat a part of the body.
            raise Refused(422, NOT_JSON) from None


class JsonRoute(APIRoute):
    """A route that parses its body, if it has one, with `JsonRequest`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, preceded by the checks of size and media type, in this order."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        accepted = {JSON, MERGE_PATCH} if "PATCH" in (self.methods or ()) else {JSON}

        async def handle_json(request: Request) -> Response:
            request = JsonRequest(request.scope, request.receive)
            await request.body()
            check_media_type(request, accepted)
            return await handle(request)

        return handle_json


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
    return Response(_to_json(record), status, headers=headers, media_type=JSON)


def _to_json(record: BaseModel) -> bytes:
    """Serialize a record: the same bytes as pydantic's, in a third of the time if it holds messages."""
    values: dict[str, Any] = record.__dict__
    if isinstance(record, Page):
        values = {**values, "items": [item.__dict__ for item in record.items]}
    try:
        return orjson.dumps(values, _default, orjson.OPT_UTC_Z)
    except TypeError:
        # orjson refuses integers of more than 64 bits, which metadata may hold.
        return to_json(record)


def _default(value: object) -> object:
    """Convert the types that orjson does not know: records, and UUIDs of a database driver's own class."""
    return str(value) if isinstance(value, UUID) else value.__dict__
