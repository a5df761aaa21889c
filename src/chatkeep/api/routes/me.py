"""The owner as a whole, over HTTP."""

from fastapi import APIRouter, Response

from chatkeep.api.body import reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.errors import api_problems
from chatkeep.model import ErasureReceipt

router = APIRouter(prefix="/api/me", tags=["me"])


@router.delete(
    "",
    response_model=ErasureReceipt,
    responses=api_problems(403),
    response_description="What was erased.",
    summary="Erase everything of yours",
)
async def erase_me(owner: Owner, store: OpenedStore) -> Response:
    """Erase all conversations, API keys and kept replies of the owner, and return a receipt. It cannot be undone."""
    return reply(await store.erase_owner(owner))
