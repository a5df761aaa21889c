"""The owner as a whole, over HTTP."""

from typing import cast

from fastapi import APIRouter, Request, Response

from chatkeep.api.body import reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.errors import Refused, api_problems
from chatkeep.api.rate_limit import RateLimiter, retry_after
from chatkeep.model import ErasureReceipt

router = APIRouter(prefix="/api/me", tags=["me"])


@router.delete(
    "",
    response_model=ErasureReceipt,
    responses=api_problems(403),
    response_description="What was erased.",
    summary="Erase everything of yours",
)
async def erase_me(owner: Owner, store: OpenedStore, request: Request) -> Response:
    """Erase all conversations, API keys and kept replies of the owner, and return a receipt. It cannot be undone."""
    await _admit(cast("RateLimiter | None", request.app.state.erasures), owner)
    return reply(await store.erase_owner(owner))


async def _admit(limiter: RateLimiter | None, owner: str) -> None:
    """Raise Refused if the owner has erased too often."""
    result = await limiter.hit(owner) if limiter else None
    if result is not None and not result.allowed:
        raise Refused(429, headers=retry_after(result))
