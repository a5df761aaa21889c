"""What the driver raises, as far as that decides what to do next, and in plain words."""

import ssl

import asyncpg

from chatkeep.stores.postgres.pool import FATAL

DRIVER_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""Everything that the driver raises."""

LOST = (
    *FATAL,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,  # a plain one if a name cannot be resolved, or none of its several addresses answers
)
"""Errors of a connection that was lost, or could not be made."""

RACED = (
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.ForeignKeyViolationError,  # an owner was removed while a conversation of theirs was created
)
"""Errors of a transaction that conflicted with another one."""

TABLE_LOCKED = (
    "another session has locked a table for too long (LOCK TABLE, ALTER TABLE, VACUUM FULL …);"
    " try again when it is done"
)
"""What a read waits for that gets no lock: no writer of rows holds it up."""


def is_lost(error: Exception) -> bool:
    """Whether a retry on another connection may succeed. Whether the statement was executed is unknown."""
    return isinstance(error, LOST) and not isinstance(error, (TimeoutError, ssl.SSLError))


def may_pass(error: Exception) -> bool:
    """Whether a failed transaction may succeed if it is retried."""
    return is_lost(error) or isinstance(error, RACED)


MEANINGS: tuple[tuple[type[Exception], str], ...] = (
    (asyncpg.InvalidAuthorizationSpecificationError, "PostgreSQL does not accept the user or the password"),
    (asyncpg.InvalidCatalogNameError, "there is no such database"),
    (asyncpg.InsufficientPrivilegeError, "the user may not do this in the database"),
    (asyncpg.TooManyConnectionsError, "PostgreSQL has no connection left; try again, or lower pool_size"),
    (
        asyncpg.LockNotAvailableError,
        "another session locked the conversation, or its table, for too long; try again",
    ),
    (asyncpg.QueryCanceledError, "the statement took too long, or somebody cancelled it"),
    (asyncpg.DiskFullError, "the disk is full"),
    (asyncpg.ReadOnlySQLTransactionError, "this PostgreSQL only reads: it is a replica, or was set so"),
    (asyncpg.SerializationError, "others wrote the same rows again and again; try again"),
    (asyncpg.DeadlockDetectedError, "others wrote the same rows again and again; try again"),
    (TimeoutError, "PostgreSQL did not answer in time"),
    (asyncpg.PostgresConnectionError, "the connection to PostgreSQL was lost"),
    (ssl.SSLError, "TLS with PostgreSQL failed; is its certificate trusted? see sslmode and sslrootcert in the URL"),
    (FileNotFoundError, "PostgreSQL's socket is not there, or a file that the URL names"),
    (OSError, "PostgreSQL cannot be reached"),
)
"""The driver's errors in plain words."""


def meaning_of(error: Exception, *, reading: bool = False) -> str:
    """An error of the driver in plain words."""
    if reading and isinstance(error, asyncpg.LockNotAvailableError):
        return TABLE_LOCKED
    return next((text for kind, text in MEANINGS if isinstance(error, kind)), "PostgreSQL refused the operation")
