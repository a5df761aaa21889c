"""Where a PostgreSQL URL leads, and whether anybody listens there.

While a database is down it is tried again and again. The driver reads its environment, files and certificates at
each try, which holds the event loop for a millisecond and more; a bare connection takes a third of that.
"""

import asyncio
import os
from urllib.parse import urlsplit

type Address = tuple[str, int]


def written_address(url: str) -> Address | None:
    """The host and the port that `url` leads to; None unless it is one host, written there and nowhere else."""
    parts = urlsplit(url)
    several_or_socket = any(mark in parts.netloc.rpartition("@")[2] for mark in ",%")
    if not parts.hostname or several_or_socket or (parts.port is None and "PGPORT" in os.environ):
        return None
    return parts.hostname, parts.port or 5432


async def knock(address: Address, patience: float) -> None:
    """Return if somebody listens; the server sees a connection without a word, which it does not complain of.

    Raises OSError otherwise, TimeoutError after `patience` seconds.
    """
    async with asyncio.timeout(patience):
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address)
    transport.abort()
