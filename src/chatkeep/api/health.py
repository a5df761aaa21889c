"""Whether the server runs, and whether it can work: for the programs that watch over it."""

import logging
from typing import Literal

from fastapi import APIRouter, Response

from chatkeep.api.body import reply
from chatkeep.api.errors import RETRY_AFTER, problem, problems
from chatkeep.api.owner import OpenedStore
from chatkeep.model import Record

logger = logging.getLogger(__name__)

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
    try:
        await store.ping()
    except Exception as error:  # noqa: BLE001 - whatever it is, the server is not ready
        logger.warning("not ready: %s", error)
        return problem(503, headers=RETRY_AFTER)
    return reply(Health())
