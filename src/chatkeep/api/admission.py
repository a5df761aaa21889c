"""Who is let in: every request to the API passes here before its body is read."""

from collections.abc import Mapping

from fastapi import Response
from starlette.types import Scope

from chatkeep.api.auth import Authenticator, Principal
from chatkeep.api.errors import RETRY_AFTER, problem
from chatkeep.api.rate_limit import Quota, Taken
from chatkeep.errors import StoreUnavailable, Unauthenticated

SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

PUBLIC = ("/api/docs", "/api/openapi.json")
"""Parts of the API that tell nothing about anybody."""


class Door:
    """Authentication, and how many requests are let in."""

    def __init__(self, authenticator: Authenticator, quota: Quota | None, failures: Quota) -> None:
        self._authenticator = authenticator
        self._quota = quota
        self._failures = failures

    async def forget_failures(self) -> None:
        """Let every address try again."""
        await self._failures.reset()

    async def aclose(self) -> None:
        """Close what counts requests."""
        for quota in (self._quota, self._failures):
            if quota is not None:
                await quota.aclose()

    async def admit(self, scope: Scope) -> Response | None:
        """Let the request in, its principal in `scope`, or return the refusal: 401, 403, 429, or 503."""
        if not is_guarded(scope["path"]):
            return None
        given = [value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"]
        try:
            principal = await self._authenticator.principal(given[0] if len(given) == 1 else None)
        except Unauthenticated as error:
            # Only who fails is counted: behind one address there may be many, most of them honest.
            taken = await self._failures.take((scope.get("client") or ("",))[0])
            challenge = {"WWW-Authenticate": _challenge(given)}
            return problem(401, error.detail, headers=challenge) if taken.allowed else _too_many(taken)
        except StoreUnavailable:
            return problem(503, headers=RETRY_AFTER)
        return await self._let_in(scope, principal)

    async def _let_in(self, scope: Scope, principal: Principal) -> Response | None:
        state = scope.setdefault("state", {})
        if self._quota is not None:
            taken = await self._quota.take(principal.owner)
            state["quota"] = taken
            if not taken.allowed:
                return _too_many(taken)
        if scope["method"] not in SAFE_METHODS and not principal.may_write():
            return problem(403, "this key or token may only read")
        state["principal"] = principal
        return None


def is_guarded(path: str) -> bool:
    """Whether what lies at this path is somebody's."""
    return (path == "/api" or path.startswith("/api/")) and not any(
        path == public or path.startswith(f"{public}/") for public in PUBLIC
    )


def quota_headers(scope: Scope) -> Mapping[str, str]:
    """What a response says of the owner's quota."""
    taken: Taken | None = scope.get("state", {}).get("quota")
    return taken.headers if taken else {}


def _challenge(given: list[str]) -> str:
    return 'Bearer realm="chatkeep"' + (', error="invalid_token"' if given else "")


def _too_many(taken: Taken) -> Response:
    return problem(429, headers={"Retry-After": str(max(1, taken.reset))})
