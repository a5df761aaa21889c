"""The public keys of an OpenID Connect issuer: fetched when they are needed, and kept."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx2
import jwt

from chatkeep.errors import StoreUnavailable, Unauthenticated
from chatkeep.settings import is_safe_url

logger = logging.getLogger(__name__)

LIFETIME_SECONDS = 300.0
"""How long keys are used until they are fetched again."""

COOLDOWN_SECONDS = 30.0
"""How long nothing is fetched after a fetch, whatever key ids tokens name: anybody can make those up."""

TIMEOUT_SECONDS = 5.0
MAX_BYTES = 1 << 20

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""What an issuer may sign with: the key that checks cannot make tokens."""


class IssuerUnavailable(StoreUnavailable):
    """The issuer's keys cannot be had, and there are none of before."""


class Issuer:
    """The keys of one issuer, for one event loop.

    However many ask, one fetch is under way. While the issuer does not answer, the last keys go on being used.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._url = url
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching = asyncio.Lock()

    async def key(self, key_id: str | None) -> jwt.PyJWK:
        """Return the key with this id; the only one, where a token names none.

        Raises Unauthenticated when there is none, IssuerUnavailable when nobody knows.
        """
        if self._is_old() or not self._has(key_id):
            await self._refresh(key_id)
        if not self._keys:
            raise IssuerUnavailable("the issuer of the tokens cannot be reached")
        if not self._has(key_id):
            raise Unauthenticated("the token's key is not one of the issuer's")
        return next(iter(self._keys.values())) if key_id is None else self._keys[key_id]

    def _has(self, key_id: str | None) -> bool:
        return len(self._keys) == 1 if key_id is None else key_id in self._keys

    def _is_old(self) -> bool:
        return self._fetched_at is None or self._clock() - self._fetched_at > LIFETIME_SECONDS

    def _is_resting(self) -> bool:
        return self._tried_at is not None and self._clock() - self._tried_at < COOLDOWN_SECONDS

    async def _refresh(self, key_id: str | None) -> None:
        async with self._fetching:
            if self._is_resting() or (self._has(key_id) and not self._is_old()):
                return
            self._tried_at = self._clock()
            try:
                self._keys = await self._fetch()
            except (httpx2.HTTPError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
                logger.warning("the keys of %s could not be fetched: %s", self._url, error)
                return
            self._fetched_at = self._clock()

    async def _fetch(self) -> dict[str | None, jwt.PyJWK]:
        async with httpx2.AsyncClient(timeout=TIMEOUT_SECONDS, follow_redirects=False) as client:
            found = await _json(client, f"{self._url.rstrip('/')}/.well-known/openid-configuration")
            if found["issuer"] != self._url:
                raise ValueError("the discovery document is another issuer's")
            if not is_safe_url(found["jwks_uri"]):
                raise ValueError("the keys lie at an address without encryption")
            listed = (await _json(client, found["jwks_uri"]))["keys"]
        keys = {key.key_id: key for key in map(_to_key, listed) if key is not None}
        if not keys:
            raise ValueError("it has no key that signs")
        return keys


async def _json(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url) as reply:
        reply.raise_for_status()
        body = b""
        async for chunk in reply.aiter_bytes():
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"{url} is larger than {MAX_BYTES:,} bytes")
    return dict(json.loads(body))


def _to_key(value: object) -> jwt.PyJWK | None:
    """The key, None where it is not one that signs tokens, or of a kind that is not known."""
    if not isinstance(value, dict) or value.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK.from_dict(value)
    except jwt.PyJWTError:
        return None
    return key if key.algorithm_name in ALGORITHMS else None
