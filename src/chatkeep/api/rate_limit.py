"""Rate limits per owner and per address, counted by a sliding window in this process or in Redis."""

import asyncio
import hashlib
import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

from limits import RateLimitItem, parse
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from chatkeep.api.sliding_window import SlidingWindow, WindowState
from chatkeep.errors import InvalidInput
from chatkeep.settings import Settings

if TYPE_CHECKING:
    from chatkeep.api.redis_pool import SharedTlsPool

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.5
"""Longest time that a request waits for Redis."""

PROBE_SECONDS = 2.0
"""Time between two probes while the circuit breaker is open."""


class RateLimitResult(NamedTuple):
    """The state of one name's limit after a request was counted."""

    allowed: bool
    limit: int
    window: int
    remaining: int
    reset: int
    kind: str = "owner"

    @property
    def headers(self) -> dict[str, str]:
        """The response headers (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"{self.kind}";q={self.limit};w={self.window}',
            "RateLimit": f'"{self.kind}";r={self.remaining};t={self.reset}',
        }


class RateLimiter:
    """Limits the requests of each name.

    In memory each process has its own count and allows the whole limit: a client that keeps its connection stays with
    one process. In Redis all processes and servers share one count; names of different `kind` are counted apart.

    A circuit breaker opens after Redis failed twice in a row: requests are allowed without being counted, and one
    every PROBE_SECONDS probes Redis.
    """

    def __init__(self, rate: str, storage: str | None = None, *, kind: str = "owner") -> None:
        item = _parse(rate)
        self._item, limit, window = item, item.amount, item.get_expiry()
        self._memory = SlidingWindow(limit, window) if storage is None else None
        self._pool = None
        if storage is not None:
            self._pool = _redis_pool(storage)
            options: dict[str, Any] = {"implementation": "redispy", "connection_pool": self._pool}
            counts = storage_from_string("async+redis://", key_prefix=f"chatkeep:{kind}", **options)
            self._windows = SlidingWindowCounterRateLimiter(counts)
        self._unlimited = RateLimitResult(
            allowed=True, limit=limit, window=window, remaining=limit, reset=window, kind=kind
        )
        self._failing = False
        self._next_probe = 0.0

    async def hit(self, name: str) -> RateLimitResult:
        """Count one request. Fails open: an unavailable Redis must not stop the server."""
        key = hashlib.sha256(name.encode()).hexdigest()  # others may read the same Redis; names may be long
        if self._memory is not None:
            return self._result(self._memory.hit(key))
        failing = self._failing
        if failing:
            if time.monotonic() < self._next_probe:
                return self._unlimited
            # Set before the probe: concurrent requests do not wait for it.
            self._next_probe = time.monotonic() + PROBE_SECONDS
        try:
            state = await self._count(key)
        except Exception as error:  # noqa: BLE001 - whatever the driver raises
            self._note_failure(error)
            return self._unlimited
        if failing:
            self._failing = False
            logger.info("requests per %s are counted again", self._unlimited.kind)
        return self._result(state)

    def _result(self, state: WindowState) -> RateLimitResult:
        reset = max(0, math.ceil(state.reset_at - time.time()))
        return self._unlimited._replace(allowed=state.allowed, remaining=state.remaining, reset=reset)

    async def aclose(self) -> None:
        """Close the connections to Redis. One that does not respond must not delay the shutdown."""
        if self._pool is not None:
            # With TLS, Redis has to confirm.
            with suppress(Exception):
                async with asyncio.timeout(TIMEOUT_SECONDS):
                    await self._pool.aclose()

    async def _count(self, key: str) -> WindowState:
        """Count in Redis. Raises TimeoutError, or whatever the driver raises."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            allowed = await self._windows.hit(self._item, key)
            stats = await self._windows.get_window_stats(self._item, key)
        return WindowState(allowed, stats.remaining, stats.reset_time)

    def _note_failure(self, error: Exception) -> None:
        """Log the first failure only."""
        if not self._failing:
            # The next request probes at once: the first failure may be one closed connection.
            self._failing, self._next_probe = True, 0.0
            # Only the type of the error: its message may hold the URL.
            reason = type(error).__name__
            logger.warning("requests per %s are not counted, all are allowed: %s", self._unlimited.kind, reason)


class RateLimiters(NamedTuple):
    """The limiters of a server; None: no limit."""

    owner: RateLimiter | None
    """Requests of an owner."""
    address: RateLimiter
    """Failed authentications of an address."""
    erasure: RateLimiter | None
    """Erasures of an owner: each may rewrite a whole database file."""
    turns: RateLimiter | None = None
    """Turns that an owner begins: each may cost money."""

    async def aclose(self) -> None:
        """Close all of them."""
        for limiter in self:
            if limiter is not None:
                await limiter.aclose()


def rate_limiters(settings: Settings) -> RateLimiters:
    """Return the limiters that the settings ask for. Raises InvalidInput for settings that are not valid."""

    def limiter(rate: str | None, kind: str) -> RateLimiter | None:
        return RateLimiter(rate, settings.rate_limit_storage, kind=kind) if rate else None

    return RateLimiters(
        limiter(settings.owner_rate_limit, "owner"),
        RateLimiter(settings.failure_limit, settings.rate_limit_storage, kind="address"),
        limiter(settings.owner_erase_limit, "erasure"),
        limiter(settings.owner_turn_limit, "turns"),
    )


def retry_after(result: RateLimitResult) -> dict[str, str]:
    """Return the headers of a 429."""
    return {"Retry-After": str(max(1, result.reset))}


def _parse(rate: str) -> RateLimitItem:
    try:
        return parse(rate)
    except ValueError:
        raise InvalidInput("a rate limit must look like 600/minute or 20/second", got=rate) from None


def _redis_pool(url: str) -> "SharedTlsPool":
    if not url.startswith(("redis://", "rediss://")):
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE must be redis://HOST:PORT, or rediss://HOST:PORT with TLS")
    try:
        from chatkeep.api.redis_pool import connect
    except ModuleNotFoundError:
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE needs the extra redis: pip install 'chatkeep[redis]'") from None
    return connect(url)
