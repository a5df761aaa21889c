"""Query parameters, read into a record.

FastAPI's `Annotated[Record, Query()]` would inspect every field's annotation for each request: 80 µs, a seventh of the
time of a page of 50 messages.
"""

import re
from functools import cache
from typing import Any, get_origin

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from chatkeep.model import Given

MAX_QUERY_BYTES = 4_096
"""Longest query: a context_id of 255 characters that take 12 bytes each, a cursor, and the rest. Reading 50 kB took
10 ms."""

LONG_QUERIES = re.compile(r"/api/projects/[^/]+/search")
MAX_LONG_QUERY_BYTES = 25_000
"""Paths whose query is longer: it has a question of 2,000 characters."""

MAX_PARAMETERS = 100
"""Most parameters in a query. Each costs a microsecond to read and several to refuse; the longest list has 32 labels
and ten others."""


def max_query_bytes(path: str) -> int:
    """Return how long the query of a path may be."""
    return MAX_LONG_QUERY_BYTES if LONG_QUERIES.fullmatch(path) else MAX_QUERY_BYTES


class InvalidQuery(RequestValidationError):
    """The query does not fit `record`."""

    def __init__(self, record: type[Given], error: ValidationError) -> None:
        super().__init__(errors_in("query", error))
        self.record = record


def errors_in(place: str, error: ValidationError) -> list[dict[str, Any]]:
    """Return the errors with their locations in `place`, `query` or `body`, and without the values."""
    found = error.errors(include_url=False, include_input=False)
    return [{**each, "loc": (place, *each["loc"])} for each in found]


def read_query[Query: Given](record: type[Query], request: Request) -> Query:
    """Return the query as a `record`. Raises InvalidQuery."""
    values: dict[str, Any] = dict(request.query_params)
    values |= {name: request.query_params.getlist(name) for name in _repeated(record) if name in values}
    try:
        return record.model_validate(values)
    except ValidationError as error:
        raise InvalidQuery(record, error) from None


@cache
def _repeated(record: type[Given]) -> tuple[str, ...]:
    """The parameters that may be given several times."""
    return tuple(name for name, field in record.model_fields.items() if get_origin(field.annotation) is tuple)


def openapi_query(record: type[Given]) -> dict[str, Any]:
    """Return the `openapi_extra` of a route whose query is a `record`."""
    schema = record.model_json_schema()
    required = schema.get("required", ())
    return {"parameters": [_parameter(name, of, name in required) for name, of in schema["properties"].items()]}


def _parameter(name: str, schema: dict[str, Any], required: bool) -> dict[str, Any]:  # noqa: FBT001 - one of three
    if schema.get("default", ...) is None:
        del schema["default"]  # an absent parameter; a query cannot express null
    parameter = {"name": name, "in": "query", "required": required, "schema": with_bounds(schema)}
    return {**parameter, "description": schema["description"]} if "description" in schema else parameter


BOUNDS: dict[str, str] = {"ge": "minimum", "le": "maximum"}
"""Pydantic keeps its own names for the bounds if the number has a validator."""


def with_bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter with the bounds by their names in JSON Schema."""
    renamed = {BOUNDS.get(name, name): value for name, value in schema.items()}
    if "anyOf" in renamed:
        renamed["anyOf"] = [with_bounds(each) for each in renamed["anyOf"]]
    return renamed
