"""Where a PostgreSQL URL leads, and whether anybody listens there.

While a database is down it is tried again and again. The driver reads its environment, files and certificates at
each try, which holds the event loop for a millisecond and more; a bare connection takes a third of that.
"""

import asyncio
from urllib.parse import urlsplit

type Address = tuple[str, int]


def written_address(url: str) -> Address | None:
    """The host and the port that `url` leads to; None unless it is one host, and both are written there.

    What is not, the driver finds in its environment, or in files.
    """
    parts = urlsplit(url)
    several_or_socket = any(mark in parts.netloc.rpartition("@")[2] for mark in ",%")
    if several_or_socket or not parts.hostname or parts.port is None:
        return None
    return parts.hostname, parts.port


async def knock(address: Address, patience: float) -> None:
    """Return if somebody listens; the server sees a connection without a word, which it does not complain of.

    Raises OSError otherwise, TimeoutError after `patience` seconds.
    """
    async with asyncio.timeout(patience):
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address)
    transport.abort()
