"""How a session of a PostgreSQL database is opened: what it sets for good, and what is refused."""

import asyncio
import math
import ssl
from collections.abc import Mapping
from typing import Any

import asyncpg

from chatkeep.errors import InvalidInput, UnsafeDatabase
from chatkeep.stores.postgres.address import probe, written_address
from chatkeep.stores.postgres.pool import Connection

LOCK_MILLISECONDS = 100
"""How long a statement outside a transaction waits for a lock. A batch that fails so is retried item by item in
transactions, which wait longer: one locked row does not delay the rest of its batch."""

LEAVE_SECONDS = 0.1
"""How long connecting goes on when its caller is cancelled. Cut off while the network answers, the driver would leave
an exception that nobody looks at; after this time it waits for the server, or still for the network."""

STYLE = {"datestyle": "ISO", "timezone": "UTC"}
"""How every connection writes times as text; poolers know these two, and keep them for each client."""

SESSION = {
    **STYLE,
    "application_name": "chatkeep",
    "default_transaction_isolation": "read committed",
    "idle_in_transaction_session_timeout": "60s",
    "jit": "off",  # compiling takes longer than any of these statements
    "lock_timeout": f"{LOCK_MILLISECONDS}ms",
}
"""What a connection is opened with. A pooler in transaction mode takes only the style."""

# What a session sets stays whatever the configuration, the role or the database are set to afterwards. With $1 the
# setting ends with the transaction, and only says what to set in every later one.
CHECK = """
    SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
        current_setting('server_encoding') AS encoding,
        EXISTS (SELECT 1 FROM pg_extension WHERE extname = 'citus') AS citus,
        set_config('synchronous_commit', CASE current_setting('synchronous_commit')
            WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, $1) AS synchronous_commit
"""


class Sessions:
    """Opens the connections of one database, and begins their transactions."""

    def __init__(
        self,
        url: str,
        name: str,
        *,
        timeout: float,
        statement_seconds: float,
        pgbouncer: bool | None,
        durable: bool,
    ) -> None:
        """Take the URL, the name for errors, the seconds that connecting and a statement may take, and whether the
        database must keep what it acknowledged, whatever crashes."""
        self._url = url
        self._name = name
        self._timeout = timeout
        self._durable = durable
        # Neon's pooled addresses are PgBouncer in transaction mode.
        self._pgbouncer = "-pooler." in name.partition("/")[0] if pgbouncer is None else pgbouncer
        self._may_find_pgbouncer = pgbouncer is None
        self._away = False
        """Whether the last connection attempt failed."""
        # The server goes on with a statement whose client has left: the driver's word to stop does not reach it.
        self._statement_timeout = f"{math.ceil(statement_seconds * 1_000)}ms"
        self._begin = ""
        self._left: set[asyncio.Future[Connection]] = set()
        """Connections in the making whose callers were cancelled."""
        self.citus = False
        """Whether the database is a Citus cluster: known with the first connection."""

    @property
    def pooled(self) -> bool:
        """Whether each transaction may meet another session of the server, so that nothing can be set for good."""
        return self._pgbouncer

    def begin(self, lock_milliseconds: int) -> str:
        """The statement that begins a transaction whose statements wait so long for a lock."""
        return f"BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL lock_timeout = {lock_milliseconds}{self._begin}"

    @property
    def _session(self) -> dict[str, str]:
        """What a connection is opened with."""
        return STYLE if self._pgbouncer else {**SESSION, "statement_timeout": self._statement_timeout}

    async def open(self) -> Connection:
        """A new connection. If the last attempt failed, the address is probed first."""
        address = written_address(self._url) if self._away else None
        if address is not None:
            await probe(address, self._timeout)
        try:
            connection = await self._connect()
        except OSError:
            self._away = True
            raise
        self._away = False
        return connection

    async def _connect(self) -> Connection:
        try:
            return await self._connect_with(self._session)
        except asyncpg.PostgresError as error:
            # So PgBouncer refuses settings that it would have to keep for one client.
            if "unsupported startup parameter" not in str(error) or not self._may_find_pgbouncer:
                raise
        self._pgbouncer = True
        return await self._connect_with(self._session)

    async def _connect_with(self, session: dict[str, str]) -> Connection:
        try:
            connection = await self._dial(session)
        except ssl.SSLError:
            raise  # that of a certificate is a ValueError, too
        except (ValueError, OverflowError, asyncpg.ClientConfigurationError):
            # The driver's message may hold the URL.
            raise InvalidInput("the URL is not one of a PostgreSQL database", got=self._name) from None
        try:
            await self._check(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection

    async def _dial(self, session: dict[str, str]) -> Connection:
        """A connection that nothing is known of yet. If the caller is cancelled, a task of its own ends it."""
        dialling = asyncio.ensure_future(
            asyncpg.connect(
                self._url,
                timeout=self._timeout,
                server_settings=session,
                statement_cache_size=0 if self._pgbouncer else 100,
            )
        )
        try:
            return await asyncio.shield(dialling)
        except asyncio.CancelledError:
            self._left.add(dialling)
            dialling.add_done_callback(self._hang_up)
            asyncio.get_running_loop().call_later(LEAVE_SECONDS, dialling.cancel)
            raise

    def _hang_up(self, dialling: asyncio.Future[Connection]) -> None:
        self._left.discard(dialling)
        if not dialling.cancelled() and dialling.exception() is None:
            dialling.result().terminate()

    async def aclose(self) -> None:
        """Wait a moment for connections whose callers were cancelled while they were made."""
        if self._left:
            await asyncio.wait(self._left, timeout=2 * LEAVE_SECONDS)

    async def _check(self, connection: Connection) -> None:
        """Have the session wait for the disk at every commit, refuse an unsafe database, and note what it is."""
        async with connection.transaction():
            found: Any = await connection.fetchrow(CHECK, self._pgbouncer or not self._durable)
        self.citus = found["citus"]
        self._refuse_unsafe(found)
        if self._pgbouncer:
            self._begin = f"; SET LOCAL statement_timeout = '{self._statement_timeout}'"
        if self._pgbouncer and self._durable:
            self._begin += f"; SET LOCAL synchronous_commit = {found['synchronous_commit']}"

    def _refuse_unsafe(self, found: Mapping[str, str]) -> None:
        if found["encoding"] != "UTF8":
            raise UnsafeDatabase(
                f"the database's encoding is {found['encoding']}, which cannot hold every text;"
                " create one with ENCODING 'UTF8' TEMPLATE template0",
                got=self._name,
            )
        off = [f"{setting} = off" for setting in ("fsync", "full_page_writes") if found[setting] == "off"]
        if off and self._durable:
            raise UnsafeDatabase(
                f"the server is set to {', '.join(off)}: if its machine crashes, acknowledged messages are lost, or the"
                " database is damaged; set that to on, or open the store with durability=relaxed",
                got=self._name,
            )
