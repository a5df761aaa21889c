"""Idempotency keys: the first request with a key is executed, its repetitions get the kept reply."""

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Annotated
from uuid import NAMESPACE_OID, UUID, uuid5

from fastapi import Header, Request, Response

from chatkeep.access import DELETED, Access, Reply
from chatkeep.api.negotiation import JSON
from chatkeep.errors import NotFound, StoreUnavailable

logger = logging.getLogger(__name__)

REPLAYED = "Idempotency-Replayed"

SWEEP_SECONDS = 600.0
"""How often replies that expired are removed; each worker does it, at a time of its own."""

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=255,
        description="A key of the client's own: a request that is sent again with it is executed once.",
    ),
]


def id_of_key(owner: str, key: str) -> UUID:
    """Return the id of what a request with a key creates: a server that dies before it keeps the reply makes no second
    one.
    """
    return uuid5(uuid5(NAMESPACE_OID, owner), key)


async def execute_once(
    access: Access,
    owner: str,
    key: str | None,
    request: Request,
    execute: Callable[[], Awaitable[Response]],
    *,
    show: Callable[[], Awaitable[Response]] | None = None,
) -> Response:
    """Execute a request, or return the kept reply if its key was used within 24 hours.

    Only replies to successful requests are kept: a refused request changed nothing and is executed again. With `show`
    the body is not kept, but made again by that. Raises Conflict while a request with the key is in progress,
    InvalidInput if the key was used for another request, NotFound if what the reply shows was deleted.
    """
    if key is None:
        return await execute()
    body = await request.body()
    fingerprint = hashlib.sha256(b"\n".join((request.method.encode(), request.url.path.encode(), body))).digest()
    kept = await access.begin_request(owner, key, fingerprint)
    if kept is not None and kept.status == DELETED:
        raise NotFound("the conversation that this request created or found was deleted; take a new idempotency key")
    if kept is not None:
        return _replayed(kept) if show is None else _replayed(_reply(await show()))
    try:
        response = await execute()
    except BaseException:
        await access.abandon_request(owner, key)
        raise
    new = _reply(response)
    await access.finish_request(owner, key, new if show is None else new._replace(body=b""))
    return response


def _reply(response: Response) -> Reply:
    return Reply(response.status_code, bytes(response.body), response.headers.get("location"))


def _replayed(kept: Reply) -> Response:
    headers = {REPLAYED: "true", **({"Location": kept.location} if kept.location else {})}
    return Response(kept.body, kept.status, headers=headers, media_type=JSON)


async def sweep(access: Access) -> None:
    """Remove replies that expired, at random moments every SWEEP_SECONDS on average, until cancelled."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - not a secret
        try:
            while await access.forget_expired():
                pass
        except StoreUnavailable as error:
            logger.warning("replies that expired were not removed: %s", error.detail)
