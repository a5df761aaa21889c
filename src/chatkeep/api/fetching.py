"""JSON documents of other servers: an issuer's keys, a model server's list of models."""

import json
from typing import Any

import httpx2

MAX_DOCUMENT_BYTES = 1 << 20

FETCH_ERRORS = (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RecursionError)
"""What a fetch raises if the server is unavailable or its document is malformed. TimeoutError is an OSError."""


async def fetch_json(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    """Return the JSON object at a URL, of at most MAX_DOCUMENT_BYTES. Raises one of FETCH_ERRORS.

    The caller has a deadline, and a client that follows no redirects.
    """
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{url} is larger than {MAX_DOCUMENT_BYTES:,} bytes")
    document = json.loads(body)
    if not isinstance(document, dict):
        raise ValueError(f"{url} is not a JSON object")  # noqa: TRY004 - of the document, not of an argument
    return document
