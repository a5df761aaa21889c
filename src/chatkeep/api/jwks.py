"""The public keys (JWKS) of an OpenID Connect issuer: fetched on demand, and cached."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import httpx2
import jwt

from chatkeep.api.fetching import FETCH_ERRORS, fetch_json
from chatkeep.errors import StoreUnavailable, Unauthenticated
from chatkeep.settings import is_secure_url

logger = logging.getLogger(__name__)

LIFETIME_SECONDS = 300.0
"""Age at which cached keys are fetched again."""

COOLDOWN_SECONDS = 30.0
"""Shortest time between two fetches. Unknown key ids must not cause fetches: anybody can make them up."""

FETCH_TIMEOUT_SECONDS = 5.0
"""Longest time for one fetch as a whole: both documents, however slowly their bytes arrive."""

MAX_KEYS = 100
"""Most keys of an issuer. Others have a dozen; making each takes about 50 µs of the event loop."""

ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
"""Accepted algorithms, all of them asymmetric: the key that verifies cannot sign."""


class IssuerUnavailable(StoreUnavailable):
    """The issuer's keys cannot be fetched, and none are cached."""


class JwksClient:
    """The keys of one issuer, for one event loop.

    Keys are fetched by a background task, one at a time. A request waits for it only if its key is not cached, so a
    slow issuer delays nobody whose key is known. The cached keys stay in use while the issuer is unavailable.
    """

    def __init__(self, issuer: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._issuer = issuer
        self._clock = clock
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched_at: float | None = None
        self._tried_at: float | None = None
        self._refreshing: asyncio.Task[None] | None = None

    async def key(self, key_id: str | None) -> jwt.PyJWK:
        """Return the key with this id; without an id, the issuer's only key.

        Raises Unauthenticated if there is none, IssuerUnavailable if no keys are known.
        """
        if self._is_stale() or not self._has(key_id):
            self._begin_refresh()
        if self._refreshing is not None and not self._has(key_id):
            await asyncio.wait([self._refreshing])  # a request that is cancelled does not cancel the fetch
        if not self._keys:
            raise IssuerUnavailable("the issuer of the tokens cannot be reached")
        if not self._has(key_id):
            raise Unauthenticated("the token's key is not one of the issuer's")
        return next(iter(self._keys.values())) if key_id is None else self._keys[key_id]

    async def aclose(self) -> None:
        """Cancel the fetch, if there is one."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])

    def _has(self, key_id: str | None) -> bool:
        return len(self._keys) == 1 if key_id is None else key_id in self._keys

    def _is_stale(self) -> bool:
        return self._fetched_at is None or self._clock() - self._fetched_at > LIFETIME_SECONDS

    def _is_cooling_down(self) -> bool:
        return self._tried_at is not None and self._clock() - self._tried_at < COOLDOWN_SECONDS

    def _begin_refresh(self) -> None:
        if self._refreshing is None and not self._is_cooling_down():
            self._tried_at = self._clock()
            self._refreshing = asyncio.create_task(self._refresh(), name="chatkeep-jwks")

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(FETCH_TIMEOUT_SECONDS):
                self._keys = await self._fetch()
            self._fetched_at = self._clock()
        except FETCH_ERRORS as error:
            logger.warning("cannot fetch the keys of %s: %s %s", self._issuer, type(error).__name__, error)
        finally:
            self._refreshing = None

    async def _fetch(self) -> dict[str | None, jwt.PyJWK]:
        """Raises one of FETCH_ERRORS."""
        # In a thread: it reads the CA certificates, which takes 40 ms.
        connecting = partial(httpx2.AsyncClient, timeout=FETCH_TIMEOUT_SECONDS, follow_redirects=False)
        async with await asyncio.to_thread(connecting) as client:
            discovery = await fetch_json(client, f"{self._issuer.rstrip('/')}/.well-known/openid-configuration")
            if discovery.get("issuer") != self._issuer:
                raise ValueError("the discovery document names another issuer")
            uri = discovery.get("jwks_uri")
            if not isinstance(uri, str) or not is_secure_url(uri):
                raise ValueError("the jwks_uri is not an https:// URL")
            listed = (await fetch_json(client, uri)).get("keys")
        if not isinstance(listed, list):
            raise ValueError("the issuer lists no keys")  # noqa: TRY004 - of the document, not of an argument
        keys = {key.key_id: key for key in map(_signing_key, listed[:MAX_KEYS]) if key is not None}
        if not keys:
            raise ValueError("the issuer has no signing key of a known kind")
        return keys


def _signing_key(value: object) -> jwt.PyJWK | None:
    """Return the key, or None if it does not verify tokens, is too short or broken: the other keys stay in use."""
    if not isinstance(value, dict) or not _is_for_signatures(value):
        return None
    try:
        key = jwt.PyJWK.from_dict(value)
        too_short = key.Algorithm.check_key_length(key.key)
    except Exception as error:  # noqa: BLE001 - whatever the library raises for a broken key
        logger.info("ignored a key of the issuer: %s", type(error).__name__)
        return None
    if too_short:
        logger.warning("ignored a key of the issuer: %s", too_short)
        return None
    return key if key.algorithm_name in ALGORITHMS else None


def _is_for_signatures(value: Mapping[str, Any]) -> bool:
    """Whether a key may verify signatures by its `use` and `key_ops` (RFC 7517, 4.2 and 4.3), and its id is text."""
    operations = value.get("key_ops", ["verify"])
    return (
        value.get("use", "sig") == "sig"
        and isinstance(operations, list)
        and "verify" in operations
        and isinstance(value.get("kid", ""), str)
    )
