"""The public keys (JWKS) of an OpenID Connect issuer: fetched on demand, and cached."""

import asyncio
import json
import logging
import time
from collections.abc import Callable
from typing import Any

import httpx2
import jwt

from chatkeep.errors import StoreUnavailable, Unauthenticated
from chatkeep.settings import is_secure_url

logger = logging.getLogger(__name__)

LIFETIME_SECONDS = 300.0
"""Age at which cached keys are fetched again."""

COOLDOWN_SECONDS = 30.0
"""Shortest time between two fetches. Unknown key ids must not cause fetches: anybody can make them up."""

FETCH_TIMEOUT_SECONDS = 5.0
MAX_DOCUMENT_BYTES = 1 << 20

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Accepted algorithms, all of them asymmetric: the key that verifies cannot sign."""


class IssuerUnavailable(StoreUnavailable):
    """The issuer's keys cannot be fetched, and none are cached."""


class JwksClient:
    """The keys of one issuer, for one event loop.

    Concurrent requests share one fetch. The cached keys stay in use while the issuer is unavailable.
    """

    def __init__(self, issuer: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._fetching = asyncio.Lock()

    async def key(self, key_id: str | None) -> jwt.PyJWK:
        """Return the key with this id; without an id, the issuer's only key.

        Raises Unauthenticated if there is none, IssuerUnavailable if no keys are known.
        """
        if self._is_stale() or not self._has(key_id):
            await self._refresh(key_id)
        if not self._keys:
            raise IssuerUnavailable("the issuer of the tokens cannot be reached")
        if not self._has(key_id):
            raise Unauthenticated("the token's key is not one of the issuer's")
        return next(iter(self._keys.values())) if key_id is None else self._keys[key_id]

    def _has(self, key_id: str | None) -> bool:
        return len(self._keys) == 1 if key_id is None else key_id in self._keys

    def _is_stale(self) -> bool:
        return self._fetched_at is None or self._clock() - self._fetched_at > LIFETIME_SECONDS

    def _is_cooling_down(self) -> bool:
        return self._tried_at is not None and self._clock() - self._tried_at < COOLDOWN_SECONDS

    async def _refresh(self, key_id: str | None) -> None:
        async with self._fetching:
            if self._is_cooling_down() or (self._has(key_id) and not self._is_stale()):
                return
            self._tried_at = self._clock()
            try:
                self._keys = await self._fetch()
            except (httpx2.HTTPError, ValueError, KeyError, TypeError, jwt.PyJWTError) as error:
                logger.warning("cannot fetch the keys of %s: %s", self._issuer, error)
                return
            self._fetched_at = self._clock()

    async def _fetch(self) -> dict[str | None, jwt.PyJWK]:
        async with httpx2.AsyncClient(timeout=FETCH_TIMEOUT_SECONDS, follow_redirects=False) as client:
            discovery = await _fetch_json(client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            if discovery["issuer"] != self._issuer:
                raise ValueError("the discovery document names another issuer")
            if not is_secure_url(discovery["jwks_uri"]):
                raise ValueError("the jwks_uri is not an https:// URL")
            listed = (await _fetch_json(client, discovery["jwks_uri"]))["keys"]
        keys = {key.key_id: key for key in map(_signing_key, listed) if key is not None}
        if not keys:
            raise ValueError("the issuer has no signing key of a known kind")
        return keys


async def _fetch_json(client: httpx2.AsyncClient, url: str) -> dict[str, Any]:
    async with client.stream("GET", url) as response:
        response.raise_for_status()
        body = b""
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MAX_DOCUMENT_BYTES:
                raise ValueError(f"{url} is larger than {MAX_DOCUMENT_BYTES:,} bytes")
    return dict(json.loads(body))


def _signing_key(value: object) -> jwt.PyJWK | None:
    """Return the key, or None if it does not sign tokens or its type is unknown."""
    if not isinstance(value, dict) or value.get("use", "sig") != "sig":
        return None
    try:
        key = jwt.PyJWK.from_dict(value)
    except jwt.PyJWTError:
        return None
    return key if key.algorithm_name in ALGORITHMS else None
