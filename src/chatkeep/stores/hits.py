"""A page of a search's hits, from the parts that a database finds."""

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from chatkeep.model import SearchHit
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.rows import Found, Hit
from chatkeep.stores.slices import PageSize
from chatkeep.words import Query, holds, snippet

type Below = tuple[Any, ...] | None
"""The place in the order of hits below which a part begins; None at the beginning."""


class HitReader(NamedTuple):
    """Reads pages of the hits of a query."""

    texts: LongTexts
    query: Query

    async def page(
        self, find: Callable[[Below, PageSize], Awaitable[Found]], below: Below, limit: int, max_bytes: int
    ) -> tuple[list[Hit], bool]:
        """Return a page of hits, and whether there are more.

        In parts, each from a transaction of its own: looking at them holds no connection.
        """
        size = PageSize(limit + 1, max_bytes)
        hits: list[Hit] = []
        total = 0
        while True:
            found = await find(below, size)
            for hit in found.hits:
                if not (found.exact or await self._holds(hit)):
                    continue
                total += hit.bytes
                if len(hits) == limit or (hits and total > max_bytes):
                    return hits, True
                hits.append(hit)
            if found.rest is None or (found.cut and hits):
                return hits, found.cut
            below = found.rest

    async def _holds(self, hit: Hit) -> bool:
        return await self.texts.run(holds, hit.message.content, self.query)

    async def shown(self, hit: Hit) -> SearchHit:
        """Return a hit with its snippet."""
        text = await self.texts.run(snippet, hit.message.content, self.query)
        return SearchHit(message=hit.message, title=hit.title, snippet=text)
