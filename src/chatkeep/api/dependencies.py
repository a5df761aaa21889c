"""Whom a request acts for, and the store that it works with: what every route depends on."""

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from chatkeep.errors import Unauthenticated
from chatkeep.store import Store

if TYPE_CHECKING:
    from chatkeep.api.auth import Principal


async def current_owner(request: Request) -> str:
    """Return whose conversations the request sees and writes: what its token or key says, and nothing else.

    The door has let it in. A route that lies where the door does not look is refused here.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise Unauthenticated("send a token or an API key, with the header Authorization: Bearer …")
    return principal.owner


async def opened_store(request: Request) -> Store:
    """Return the store that `create_app` was given."""
    store: Store = request.app.state.store
    return store


Owner = Annotated[str, Depends(current_owner)]
OpenedStore = Annotated[Store, Depends(opened_store)]
