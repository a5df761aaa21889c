"""How much is read, or removed, at a time."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple


class PageSize(NamedTuple):
    """How much of a list is read: `limit` items that have `max_bytes` together; one item is read, however large."""

    limit: int
    max_bytes: int


class Part[Item](NamedTuple):
    """The first items of a list: at most as many, and as large together, as was asked for."""

    items: list[Item]
    cut: bool = False
    """Whether it ends because the next item is too large. Else the list ends, or there are as many as asked for."""


class Removed(NamedTuple):
    """How much was removed."""

    conversations: int = 0
    messages: int = 0
    indexed: int = 0
    labels: int = 0
    projects: int = 0
    turns: int = 0
    documents: int = 0
    chunks: int = 0
    vectors: int = 0

    def plus(self, more: "Removed") -> "Removed":
        """The sum of both."""
        return Removed(*map(sum, zip(self, more, strict=True)))


def within[Item](sized: Iterable[tuple[Item, int]], max_bytes: int) -> Part[Item]:
    """The first of some items that come with their sizes. It takes one item more than fits, and none after it."""
    found: list[Item] = []
    total = 0
    for item, its_bytes in sized:
        total += its_bytes
        if total > max_bytes and found:
            return Part(found, cut=True)
        found.append(item)
    return Part(found)


def that_fit[Item](sized: Sequence[tuple[Item, int]], limit: int) -> list[Item]:
    """The first items of those that are given with their sizes, as many as are at most `limit` together."""
    sums = accumulate(size for _, size in sized)
    return [item for (item, _), total in zip(sized, sums, strict=True) if total <= limit]
