"""How many requests an owner, or an address, may send."""

import logging
import math
import time
from typing import NamedTuple

from limits import RateLimitItem, parse
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.storage import storage_from_string

from chatkeep.errors import InvalidInput

logger = logging.getLogger(__name__)


class Taken(NamedTuple):
    """What taking one request from a quota came to."""

    allowed: bool
    limit: int
    window: int
    remaining: int
    reset: int

    @property
    def headers(self) -> dict[str, str]:
        """The header fields that tell a client (draft-ietf-httpapi-ratelimit-headers-10)."""
        return {
            "RateLimit-Policy": f'"owner";q={self.limit};w={self.window}',
            "RateLimit": f'"owner";r={self.remaining};t={self.reset}',
        }


class Quota:
    """A number of requests in a time for each name, counted in this process, or in Redis for several machines.

    In a process's own memory each of `share` processes lets its part of the requests pass.
    """

    def __init__(self, text: str, storage: str | None = None, *, share: int = 1) -> None:
        try:
            given = parse(text)
        except ValueError:
            raise InvalidInput("a rate limit must look like 600/minute or 20/second", got=text) from None
        self._item: RateLimitItem = given if storage else type(given)(max(1, given.amount // share), given.multiples)
        self._limiter = SlidingWindowCounterRateLimiter(
            storage_from_string(f"async+{storage}" if storage else "async+memory://")
        )

    async def take(self, name: str) -> Taken:
        """Count one request. What cannot be counted is allowed: Redis must not stop the server."""
        allowed = True
        remaining, reset = self._item.amount, self._item.get_expiry()
        try:
            allowed = await self._limiter.hit(self._item, name)
            stats = await self._limiter.get_window_stats(self._item, name)
            remaining, reset = stats.remaining, max(0, math.ceil(stats.reset_time - time.time()))
        except Exception as error:  # noqa: BLE001 - whatever the storage's driver raises
            logger.warning("requests cannot be counted: %s", type(error).__name__)
        return Taken(allowed, self._item.amount, self._item.get_expiry(), remaining, reset)

    async def reset(self) -> None:
        """Forget what was counted."""
        await self._limiter.storage.reset()
