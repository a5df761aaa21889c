"""Requests that may be sent twice: the first is executed, the others get its reply."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Header, Request, Response

from chatkeep.access import Access, Reply
from chatkeep.api.body import JSON

REPLAYED = "Idempotency-Replayed"

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A key of the client's own: a request that is sent again with it is executed once.",
    ),
]


async def once(
    access: Access, owner: str, key: str | None, request: Request, execute: Callable[[], Awaitable[Response]]
) -> Response:
    """Execute a request unless one with its key has been, within 24 hours; return the reply.

    Only what succeeded is kept: a request that was refused has done nothing, and is judged anew.
    Raises Conflict while another one with the key is under way, InvalidInput for another request with it.
    """
    if key is None:
        return await execute()
    body = await request.body()
    fingerprint = hashlib.sha256(b"\n".join((request.method.encode(), request.url.path.encode(), body))).digest()
    known = await access.begin_request(owner, key, fingerprint)
    if known is not None:
        return _response(known)
    try:
        response = await execute()
    except BaseException:
        await access.abandon_request(owner, key)
        raise
    done = Reply(response.status_code, bytes(response.body), response.headers.get("location"))
    await access.finish_request(owner, key, done)
    return response


def _response(known: Reply) -> Response:
    headers = {REPLAYED: "true", **({"Location": known.location} if known.location else {})}
    return Response(known.body, known.status, headers=headers, media_type=JSON)
