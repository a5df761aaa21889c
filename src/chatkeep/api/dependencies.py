"""The dependencies of every route: the authenticated owner and the store."""

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from chatkeep.errors import Unauthenticated
from chatkeep.store import Store

if TYPE_CHECKING:
    from chatkeep.api.auth import Principal


async def current_owner(request: Request) -> str:
    """Return the owner of the request's token or key; nothing else in a request can name an owner.

    Raises Unauthenticated if the request was not admitted: its route is outside the protected paths.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise Unauthenticated("send a token or an API key, with the header Authorization: Bearer …")
    return principal.owner


async def opened_store(request: Request) -> Store:
    """Return the store of the application."""
    store: Store = request.app.state.store
    return store


Owner = Annotated[str, Depends(current_owner)]
OpenedStore = Annotated[Store, Depends(opened_store)]
