"""Whom a request acts for, and the store that it works with: what every route depends on."""

from typing import Annotated

from fastapi import Depends, Request

from chatkeep.settings import LOCAL_OWNER
from chatkeep.store import Store


async def current_owner() -> str:
    """Return whose conversations the request sees and writes: always `local`.

    There is no authentication yet. The command line therefore serves on loopback addresses only, where
    everybody who can connect is the user of this machine. Every route takes its owner from here and from
    nowhere else, so that authentication, once it exists, changes this function alone.
    """
    return LOCAL_OWNER


async def opened_store(request: Request) -> Store:
    """Return the store that `create_app` was given."""
    store: Store = request.app.state.store
    return store


Owner = Annotated[str, Depends(current_owner)]
OpenedStore = Annotated[Store, Depends(opened_store)]
