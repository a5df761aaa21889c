"""The connections to Redis that the rate limits use. Importing it needs the extra redis."""

from typing import Any

from redis.asyncio import BlockingConnectionPool, RedisError, SSLConnection
from redis.asyncio.connection import AbstractConnection, RedisSSLContext

from chatkeep.errors import InvalidInput

MAX_CONNECTIONS = 20
"""Most connections of one pool. Further requests wait for a free one."""


class SharedTlsPool(BlockingConnectionPool):
    """A pool whose connections share one TLS context.

    The driver makes a context for each connection, which reads the system's CA certificates and blocks the event
    loop for 40 ms.
    """

    _tls: RedisSSLContext | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.make_connection()  # raises if an option is unknown

    def make_connection(self) -> AbstractConnection:
        """Return a new connection, not connected yet."""
        connection: AbstractConnection = super().make_connection()  # type: ignore[no-untyped-call]  # not annotated
        if isinstance(connection, SSLConnection):
            self._tls = connection.ssl_context = self._tls or connection.ssl_context
        return connection


def connect(url: str) -> SharedTlsPool:
    """Return a pool for `url`, not connected yet. Raises InvalidInput without the URL: it may hold a password.

    Commands are not retried: a request whose answer was lost would be counted twice.
    """
    try:
        return SharedTlsPool.from_url(url, max_connections=MAX_CONNECTIONS, timeout=None)
    except (ValueError, TypeError, RedisError):
        raise InvalidInput(
            "CHATKEEP_RATE_LIMIT_STORAGE is not a valid Redis URL; is the password percent-encoded?"
        ) from None
