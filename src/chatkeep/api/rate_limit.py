"""How many requests an owner, or an address, may send."""

import asyncio
import hashlib
import logging
import math
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from limits import RateLimitItem, WindowStats, parse
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from chatkeep.errors import InvalidInput

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.5
"""How long a request waits for Redis at most."""

PAUSE_SECONDS = 2.0
"""How long Redis is left alone after it failed twice. Then one request tries, and no other waits with it."""

CONNECTIONS = 20
"""How many connections to Redis a quota has at most. What finds none free waits for one."""


class Taken(NamedTuple):
    """What taking one request from a quota came to."""

    allowed: bool
    limit: int
    window: int
    remaining: int
    reset: int
    kind: str = "owner"

    @property
    def headers(self) -> dict[str, str]:
        """The header fields that tell a client (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"{self.kind}";q={self.limit};w={self.window}',
            "RateLimit": f'"{self.kind}";r={self.remaining};t={self.reset}',
        }


class Quota:
    """A number of requests in a time for each name, counted in this process, or in Redis for several machines.

    In a process's own memory each of `share` processes lets its part of the requests pass. In Redis the names of
    one `kind` are not those of another.
    """

    def __init__(self, text: str, storage: str | None = None, *, share: int = 1, kind: str = "owner") -> None:
        try:
            given = parse(text)
        except ValueError:
            raise InvalidInput("a rate limit must look like 600/minute or 20/second", got=text) from None
        item: RateLimitItem = given if storage else type(given)(max(1, given.amount // share), given.multiples)
        self._counts = InRedis(item, kind, _connections(storage)) if storage else InMemory(item)
        limit, window = item.amount, item.get_expiry()
        self._uncounted = Taken(allowed=True, limit=limit, window=window, remaining=limit, reset=window, kind=kind)
        self._fails = False
        self._next_try = 0.0

    async def take(self, name: str) -> Taken:
        """Count one request. What cannot be counted is allowed: Redis must not stop the server."""
        fails = self._fails
        if fails:
            if time.monotonic() < self._next_try:
                return self._uncounted
            # Before the answer is there: who comes meanwhile does not wait for it.
            self._next_try = time.monotonic() + PAUSE_SECONDS
        try:
            # By its hash: a Redis that others read, too, has nobody's name in it.
            allowed, stats = await self._counts.hit(hashlib.sha256(name.encode()).hexdigest())
        except Exception as error:  # noqa: BLE001 - whatever the storage's driver raises
            self._failed(error)
            return self._uncounted
        if fails:
            self._fails = False
            logger.info("requests of each %s are counted again", self._uncounted.kind)
        reset = max(0, math.ceil(stats.reset_time - time.time()))
        return self._uncounted._replace(allowed=allowed, remaining=stats.remaining, reset=reset)

    async def reset(self) -> None:
        """Forget what was counted."""
        await self._counts.limiter.storage.reset()

    async def aclose(self) -> None:
        """Close the connections to Redis. A Redis that hangs must not keep the server from ending."""
        with suppress(Exception):
            await self._counts.aclose()

    def _failed(self, error: Exception) -> None:
        """Say so when it begins, and not with every request."""
        if not self._fails:
            # The next request tries at once: it may have been one connection's end.
            self._fails, self._next_try = True, 0.0
            # Its type alone: the driver's message may hold the URL.
            reason = type(error).__name__
            logger.warning("requests of each %s are not counted, all are let in: %s", self._uncounted.kind, reason)


class InMemory:
    """What this process has counted."""

    def __init__(self, item: RateLimitItem) -> None:
        self.limiter = SlidingWindowCounterRateLimiter(storage_from_string("async+memory://"))
        self._item = item

    async def hit(self, key: str) -> tuple[bool, WindowStats]:
        """Count a request: whether it is within the limit, and what is left of that."""
        allowed = await self.limiter.hit(self._item, key)
        return allowed, await self.limiter.get_window_stats(self._item, key)

    async def aclose(self) -> None:
        """There is nothing to close."""


class InRedis(InMemory):
    """What all servers have counted."""

    def __init__(self, item: RateLimitItem, kind: str, connections: "ConnectionPool") -> None:
        options: dict[str, Any] = {"implementation": "redispy", "connection_pool": connections}
        storage = storage_from_string("async+redis://", key_prefix=f"chatkeep:{kind}", **options)
        self.limiter = SlidingWindowCounterRateLimiter(storage)
        self._item = item
        self._connections = connections

    async def hit(self, key: str) -> tuple[bool, WindowStats]:
        """Count a request. Raises whatever the driver raises, or TimeoutError."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            return await super().hit(key)

    async def aclose(self) -> None:
        """Close the connections. Raises as `hit` does: over TLS Redis has to answer."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            await self._connections.aclose()


def _connections(url: str) -> "ConnectionPool":
    """What makes connections to Redis. No error names the URL: there may be a password in it.

    The driver sends nothing again: a request whose answer was lost would be counted twice.
    """
    if not url.startswith(("redis://", "rediss://")):
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE must be redis://HOST:PORT, or rediss:// for TLS; Valkey's, too")
    try:
        from redis.asyncio import BlockingConnectionPool, RedisError
    except ModuleNotFoundError:
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE needs the extra redis: pip install 'chatkeep[redis]'") from None
    try:
        connections: Any = BlockingConnectionPool.from_url(url, max_connections=CONNECTIONS, timeout=None)
        _make_alike(connections)
    except (ValueError, TypeError, RedisError):
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE is no URL of Redis; is its password escaped?") from None
    return cast("ConnectionPool", connections)


def _make_alike(connections: Any) -> None:
    """Let all connections share the TLS context of one: the driver reads the system's authorities for each, and the
    event loop stands still for 40 ms."""
    make = connections.make_connection
    first = make()

    def connection() -> Any:
        made = make()
        if hasattr(first, "ssl_context"):
            made.ssl_context = first.ssl_context
        return made

    connections.make_connection = connection
