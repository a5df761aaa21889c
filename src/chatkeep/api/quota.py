"""How many requests an owner, or an address, may send."""

import asyncio
import hashlib
import logging
import math
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from limits import RateLimitItem, WindowStats, parse
from limits.aio.storage.redis.bridge import RedisBridge
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from chatkeep.errors import InvalidInput

if TYPE_CHECKING:
    from coredis import ConnectionPool

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 0.5
"""How long a request waits for Redis at most."""

PAUSE_SECONDS = 2.0
"""How long Redis is left alone after it failed twice. Then one request tries, and no other waits with it."""


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
        counts = self._counts
        try:
            # By its hash: a Redis that others read, too, has nobody's name in it.
            allowed, stats = await counts.hit(hashlib.sha256(name.encode()).hexdigest())
        except Exception as error:  # noqa: BLE001 - whatever the storage's driver raises
            if counts is self._counts:
                self._counts = counts.anew()
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

    def anew(self) -> "InMemory":
        """What counts on after a failure."""
        return self


class InRedis(InMemory):
    """What all servers have counted.

    The driver (coredis 5) uses a connection again that has failed, and the end of what was before may then break
    what is now, over TLS above all. So all connections are given up when anything fails.
    """

    def __init__(self, item: RateLimitItem, kind: str, connect: Callable[[], "ConnectionPool"]) -> None:
        from coredis import Redis
        from coredis.retry import NoRetryPolicy

        self._kind, self._connect, self._connections = kind, connect, connect()
        # Without the driver's retries: they would count a request again whose answer was lost.
        options: dict[str, Any] = {"connection_pool": self._connections, "retry_policy": NoRetryPolicy()}
        storage = storage_from_string("async+redis://", key_prefix=f"chatkeep:{kind}", **options)
        self.limiter = SlidingWindowCounterRateLimiter(storage)
        self._item = item
        self._client: Redis[bytes] = Redis(**options)
        self._has_scripts = False
        self._alone = asyncio.Lock()

    async def hit(self, key: str) -> tuple[bool, WindowStats]:
        """Count a request. Raises whatever the driver raises, or TimeoutError."""
        task = asyncio.create_task(self._hit(key), name="chatkeep-quota")
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Not asyncio.timeout: the driver may swallow that it is cancelled, once, and wait for itself.
        await asyncio.wait({task}, timeout=TIMEOUT_SECONDS)
        if not task.done():
            task.cancel()
            asyncio.get_running_loop().call_later(0.1, task.cancel)
            raise TimeoutError
        return task.result()

    def anew(self) -> "InRedis":
        """What counts on after a failure, over new connections."""
        self._connections.disconnect()
        return InRedis(self._item, self._kind, self._connect)

    async def _hit(self, key: str) -> tuple[bool, WindowStats]:
        if not self._has_scripts:
            async with self._alone:
                if not self._has_scripts:
                    await self._load_scripts()
        return await super().hit(key)

    async def _load_scripts(self) -> None:
        """Let Redis have what counts there: a request that finds it missing breaks the connection for others."""
        for script in (RedisBridge.SCRIPT_ACQUIRE_SLIDING_WINDOW, RedisBridge.SCRIPT_SLIDING_WINDOW):
            await self._client.script_load(script)
        self._has_scripts = True


def _connections(url: str) -> Callable[[], "ConnectionPool"]:
    """What makes connections to Redis. No error names the URL: there may be a password in it."""
    if not url.startswith(("redis://", "rediss://")):
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE must be redis://HOST:PORT, or rediss:// for TLS; Valkey's, too")
    try:
        from coredis import ConnectionPool
    except ModuleNotFoundError:
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE needs the extra redis: pip install 'chatkeep[redis]'") from None
    options: dict[str, Any] = {"decode_components": True}  # what is special in a password is escaped in a URL
    if url.startswith("rediss://") and "ssl_" not in url:
        # The driver's own does not look whose certificate it is.
        options["ssl_context"] = ssl.create_default_context()
    connect = partial(ConnectionPool.from_url, url, **options)
    try:
        connect()
    except ValueError:
        raise InvalidInput("CHATKEEP_RATE_LIMIT_STORAGE is no URL; is its password escaped?") from None
    return connect
