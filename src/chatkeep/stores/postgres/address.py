"""The address in a PostgreSQL URL, and a cheap probe of it.

While a database is down, connecting is retried. Each try of the driver reads its environment, files and certificates,
which blocks the event loop for a millisecond and more; a bare connection takes a third of that.
"""

import asyncio
from urllib.parse import urlsplit

type Address = tuple[str, int]


def written_address(url: str) -> Address | None:
    """Return the host and the port in `url`; None unless it names one host and its port.

    What it leaves out, the driver finds in its environment, or in files.
    """
    parts = urlsplit(url)
    several_or_socket = any(mark in parts.netloc.rpartition("@")[2] for mark in ",%")
    if several_or_socket or not parts.hostname or parts.port is None:
        return None
    return parts.hostname, parts.port


async def probe(address: Address, seconds: float) -> None:
    """Connect and close, which PostgreSQL does not log. Raises OSError, or TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        transport, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *address)
    transport.abort()
