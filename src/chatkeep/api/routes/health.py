"""Whether the server runs, and whether it can work: for the programs that watch over it."""

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

PATIENCE_SECONDS = 1.5
"""How long the store may take to answer: less than those who ask are used to wait."""

_asked: WeakKeyDictionary[Store, asyncio.Task[bool]] = WeakKeyDictionary()
"""Whoever wants to know while a store is asked waits for the same answer: they take one connection, not each one."""

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
    asking = _asked.get(store)
    if asking is None or asking.done():
        asking = _asked[store] = asyncio.create_task(_answers(store), name="chatkeep-ready")
    return reply(Health()) if await asyncio.shield(asking) else problem(503, headers=RETRY_AFTER)


async def _answers(store: Store) -> bool:
    """Ask the store; the log says why it cannot be used."""
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await store.ping()
    except TimeoutError:
        logger.warning("not ready: the store did not answer within %g s", PATIENCE_SECONDS)
    except Exception as error:  # noqa: BLE001 - whatever it is, the server is not ready
        logger.warning("not ready: %s", error)
    else:
        return True
    return False
