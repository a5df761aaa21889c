"""The dependencies of every route: the authenticated owner, what they may do, and the store."""

from typing import TYPE_CHECKING, Annotated

from fastapi import Depends, Request

from chatkeep.api.errors import Refused
from chatkeep.errors import Unauthenticated
from chatkeep.keys import ADMIN, WRITE_ANY_ROLE
from chatkeep.store import Store

if TYPE_CHECKING:
    from chatkeep.api.auth import Principal


NOT_ADMIN = (
    f"only a key or token with the scope {ADMIN} may change what belongs to the installation;"
    f" `chatkeep keys create OWNER --scope {ADMIN}` makes one"
)

OTHER_ROLE = (
    f"must be user: on this server other roles need a key or token with the scope {WRITE_ANY_ROLE}; a model believes"
    " what an assistant, a system or a tool said. CHATKEEP_STRICT_ROLES=false allows them to everybody"
)


def principal_of(request: Request) -> "Principal":
    """Return who sent the request.

    Raises Unauthenticated if the request was not admitted: its route is outside the protected paths.
    """
    principal: Principal | None = getattr(request.state, "principal", None)
    if principal is None:
        raise Unauthenticated("send a token or an API key, with the header Authorization: Bearer …")
    return principal


async def current_owner(request: Request) -> str:
    """Return the owner of the request's token or key; nothing else in a request can name an owner."""
    return principal_of(request).owner


async def current_admin(request: Request) -> str:
    """Return the owner if they may change what belongs to the installation. Raises Refused (403)."""
    principal = principal_of(request)
    if not principal.may_administer():
        raise Refused(403, NOT_ADMIN)
    return principal.owner


async def shows_config(request: Request) -> bool:
    """Whether the configuration of providers is shown to who sent the request."""
    return principal_of(request).may_administer()


def require_any_role(request: Request, field: str) -> None:
    """Raise Refused (403) unless who sent the request may write messages of other roles than the user's.

    `field` is the one of the body that has another role.
    """
    if request.app.state.has_strict_roles and not principal_of(request).may_write_any_role():
        raise Refused(403, f"{field} {OTHER_ROLE}")


async def opened_store(request: Request) -> Store:
    """Return the store of the application."""
    store: Store = request.app.state.store
    return store


Owner = Annotated[str, Depends(current_owner)]
Admin = Annotated[str, Depends(current_admin)]
ShowsConfig = Annotated[bool, Depends(shows_config)]
OpenedStore = Annotated[Store, Depends(opened_store)]
