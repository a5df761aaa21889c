"""Admission: authentication, rate limits and scopes, checked before the body of a request is read."""

from collections.abc import Mapping

from fastapi import Response
from starlette.types import Scope

from chatkeep.api.auth import Authenticator, ExpiredCredential, Principal
from chatkeep.api.client_address import ClientAddress
from chatkeep.api.errors import RETRY_AFTER, problem
from chatkeep.api.rate_limit import RateLimiters, RateLimitResult, retry_after
from chatkeep.errors import StoreUnavailable, Unauthenticated

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

PUBLIC = ("/api/docs", "/api/openapi.json")
"""Paths below /api that need no authentication."""

MCP = "/mcp"
"""The path of the MCP server, whose every message is a POST; its tools look at the scopes themselves."""


class Admission:
    """Decides which requests are admitted, and for which principal."""

    def __init__(
        self,
        authenticator: Authenticator,
        address: ClientAddress,
        limiters: RateLimiters,
    ) -> None:
        self._authenticator = authenticator
        self._address = address
        self._limiters = limiters

    async def aclose(self) -> None:
        """Close the authenticator and the rate limiters."""
        await self._authenticator.aclose()
        await self._limiters.aclose()

    async def admit(self, scope: Scope) -> Response | None:
        """Set the principal in `scope`, or return the refusal: 401, 403, 429 or 503."""
        if not is_protected(scope["path"]):
            return None
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        try:
            principal = await self._authenticator.principal(given[0] if len(given) == 1 else None)
        except ExpiredCredential as error:
            # Not a guess, so not counted: its client has to know that it needs a new one.
            return _unauthenticated(error, given)
        except Unauthenticated as error:
            # Only failures are counted by address: many honest clients may share one.
            result = await self._limiters.address.hit(self._address.of(scope))
            return _unauthenticated(error, given) if result.allowed else _too_many(result)
        except StoreUnavailable:
            return problem(503, headers=RETRY_AFTER)
        return await self._authorize(scope, principal)

    async def _authorize(self, scope: Scope, principal: Principal) -> Response | None:
        state = scope.setdefault("state", {})
        if self._limiters.owner is not None:
            result = await self._limiters.owner.hit(principal.owner)
            state["rate_limit"] = result
            if not result.allowed:
                return _too_many(result)
        if scope["method"] not in SAFE_METHODS and scope["path"] != MCP and not principal.may_write():
            return problem(403, "this key or token may only read")
        state["principal"] = principal
        return None


def is_protected(path: str) -> bool:
    """Whether the path needs authentication."""
    if path == MCP:
        return True
    return (path == "/api" or path.startswith("/api/")) and not any(
        path == public or path.startswith(f"{public}/") for public in PUBLIC
    )


def rate_limit_headers(scope: Scope) -> Mapping[str, str]:
    """Return the response headers about the owner's rate limit."""
    result: RateLimitResult | None = scope.get("state", {}).get("rate_limit")
    return result.headers if result else {}


def _unauthenticated(error: Unauthenticated, given: list[str]) -> Response:
    challenge = 'Bearer realm="chatkeep"' + (', error="invalid_token"' if given else "")
    return problem(401, error.detail, headers={"WWW-Authenticate": challenge})


def _too_many(result: RateLimitResult) -> Response:
    return problem(429, headers=retry_after(result))
