"""The OpenAPI document. `python -m chatkeep.api` prints it; a copy is in docs/openapi.json."""

import json
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from chatkeep.api.admission import is_protected
from chatkeep.api.body import JSON, MERGE_PATCH
from chatkeep.api.errors import Problem
from chatkeep.api.examples import REQUEST_EXAMPLES, RESPONSE_EXAMPLES
from chatkeep.api.idempotency import REPLAYED

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


def document(app: FastAPI) -> dict[str, Any]:
    """Return FastAPI's document of `app`, with examples, security and the schema of problems added."""
    schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schema["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
    schema["components"]["securitySchemes"] = {"bearer": BEARER}
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            _complete(operation)
            if is_protected(path):
                operation["security"] = [{"bearer": []}]
    return schema


def _complete(operation: dict[str, Any]) -> None:
    """Add what FastAPI cannot express: examples with null, a second media type, Location."""
    name, requests = operation["operationId"], operation.get("requestBody", {}).get("content", {})
    for content in requests.values():
        content["examples"] = REQUEST_EXAMPLES[name]
    if MERGE_PATCH in requests:
        requests[JSON] = requests[MERGE_PATCH]
    for status, response in operation["responses"].items():
        if JSON in response.get("content", {}):
            response["content"][JSON]["example"] = RESPONSE_EXAMPLES[name]
        if status == "201":
            is_page = name == "append_messages"
            response["headers"] = {**({} if is_page else LOCATION_HEADER), REPLAYED: REPLAYED_HEADER}


def document_text(app: FastAPI) -> str:
    """Return the document as text, as in docs/openapi.json."""
    return json.dumps(document(app), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
