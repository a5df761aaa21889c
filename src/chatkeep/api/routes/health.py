"""Liveness and readiness probes."""

import asyncio
import logging
from typing import Literal
from weakref import WeakKeyDictionary

from fastapi import APIRouter, Response

from chatkeep.api.body import reply
from chatkeep.api.dependencies import OpenedStore
from chatkeep.api.errors import RETRY_AFTER, problem, problems
from chatkeep.model import Record
from chatkeep.store import Store

logger = logging.getLogger(__name__)

PING_TIMEOUT_SECONDS = 1.5
"""Longest time to wait for the store: shorter than the usual timeouts of probes."""

_pings: WeakKeyDictionary[Store, asyncio.Task[bool]] = WeakKeyDictionary()
"""The latest ping of each store. Concurrent probes share one ping, and so one connection."""

router = APIRouter(tags=["health"])


class Health(Record):
    """The state of the server."""

    status: Literal["ok"] = "ok"


@router.get(
    "/healthz",
    response_model=Health,
    responses=problems(),
    response_description="The server runs.",
    summary="Say whether the server runs",
)
async def health() -> Response:
    """Answer without asking the store. A server that does not answer should be started anew."""
    return reply(Health())


@router.get(
    "/readyz",
    response_model=Health,
    responses=problems(503),
    response_description="The store answers, with the schema expected.",
    summary="Say whether the server can work",
)
async def readiness(store: OpenedStore) -> Response:
    """Answer 200 when the store can be used and 503 when it cannot, so that requests can go elsewhere."""
    ping = _pings.get(store)
    if ping is None or ping.done():
        ping = _pings[store] = asyncio.create_task(_is_ready(store), name="chatkeep-ready")
    return reply(Health()) if await asyncio.shield(ping) else problem(503, headers=RETRY_AFTER)


async def _is_ready(store: Store) -> bool:
    """Ping the store; log why it cannot be used."""
    try:
        async with asyncio.timeout(PING_TIMEOUT_SECONDS):
            await store.ping()
    except TimeoutError:
        logger.warning("not ready: the store did not answer within %g s", PING_TIMEOUT_SECONDS)
    except Exception as error:  # noqa: BLE001 - any error means not ready
        logger.warning("not ready: %s", error)
    else:
        return True
    return False
