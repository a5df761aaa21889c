"""The port of API keys, of replies to retried requests, and of the traces that erasures leave.

A store has one as `store.access`. The server and the command line use it; who embeds the library need not.
"""

import hashlib
import random
from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from pydantic import Field

from chatkeep.errors import Conflict, InvalidInput
from chatkeep.model import Record
from chatkeep.values import valid_owner

LEASE = timedelta(seconds=60)
"""Lease of a request: after it, a retry with the same key takes over, as the server must have died."""

KEPT = timedelta(hours=24)
"""How long the reply to a request is kept."""


FORGET_SLICE = 500
"""Replies of one owner that one transaction removes at most."""

DELETED = 404
"""The status of a reply whose conversation was deleted. Only replies to requests that succeeded are kept otherwise."""

IDS_CLASH = "both owners have a conversation with the same id; export one of them, and delete it"
"""The error of a rename that would give an owner two conversations with one id."""

BOTH_HAVE_PROJECT = "both owners have a project with the same id, of which one has documents; delete one of them"
"""The error of a rename that would give an owner two projects with one id, and lose the documents of one."""


class ApiKey(Record):
    """An API key without its secret."""

    id: str
    owner_id: str
    name: str
    scopes: tuple[str, ...] = ()
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = Field(default=None, description="To the minute.")


class Reply(NamedTuple):
    """The reply to a request."""

    status: int
    body: bytes
    location: str | None = None
    """Where the conversation is that the body shows."""


def location_of(conversation_id: UUID) -> str:
    """Return where a conversation is, as `Reply.location` says it."""
    return f"/api/conversations/{conversation_id}"


def new_lease(moment: datetime) -> datetime:
    """Return the end of a lease that begins at `moment`.

    No two are the same, for all practical purposes: whoever finds a lease that ends at this moment took it itself,
    although the answer of the database was lost.
    """
    return moment + LEASE + timedelta(microseconds=random.randrange(1_000_000))  # noqa: S311 - not a secret


def judged(known: bytes, reply: Reply | None, fingerprint: bytes) -> Reply:
    """The reply to a request whose key was used before by one with the fingerprint `known`.

    Raises as `Access.begin_request` does.
    """
    if known != fingerprint:
        raise InvalidInput("this idempotency key was used for another request; take a new one")
    if reply is None:
        raise Conflict("a request with this idempotency key is under way; send it again in a moment")
    return reply


ERASED_OWNER = b"chatkeep: the owner of an erasure\n"
"""What is hashed before an owner's name, so that the hash is of use for nothing else. Never changed: traces last."""


def owner_hash(owner: str) -> bytes:
    """Return the 32 bytes that the trace of an erasure knows an owner by, the same on every database.

    The name is no longer to be read in the database. That is all: whoever can guess a name can check whether it was
    erased, as there is no secret in the hash. Raises InvalidInput for what is no owner.
    """
    return hashlib.sha256(ERASED_OWNER + valid_owner(owner).encode()).digest()


class Forgotten(NamedTuple):
    """What was removed of an owner."""

    api_keys: int
    requests: int


class Access(ABC):
    """API keys, replies, and the traces of erasures."""

    @abstractmethod
    async def create_key(self, key: ApiKey, secret_hash: bytes) -> None:
        """Store a key with the SHA-256 of its secret. Idempotent; raises Conflict if another key has the id."""

    @abstractmethod
    async def find_key(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        """Return a key and the hash of its secret; None if there is none, or it was revoked."""

    @abstractmethod
    async def list_keys(self, owner: str | None = None) -> list[ApiKey]:
        """Return the keys of an owner, or of the installation, oldest first."""

    @abstractmethod
    async def revoke_key(self, key_id: str) -> bool:
        """Remove a key, and return whether there was one."""

    @abstractmethod
    async def key_used(self, key_id: str, moment: datetime) -> None:
        """Note when a key was used."""

    @abstractmethod
    async def list_owners(self, *, after: str = "", limit: int = 1_000) -> list[str]:
        """Return the owners of conversations and projects that come after one, in an order that stays; at most `limit`.

        An owner whose conversations are all deleted may be among them until they are erased. It is for whoever runs
        the installation: nothing that a client of the server sends calls it.
        """

    @abstractmethod
    async def begin_request(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        """Take the lease of a request: of concurrent callers one gets None, and executes it.

        Returns the reply if the request was executed within the last 24 hours. Raises Conflict while another
        caller executes it, for up to 61 s, and InvalidInput if the key was used for another request.
        """

    @abstractmethod
    async def finish_request(self, owner: str, key: str, reply: Reply) -> None:
        """Keep the reply of the request that `begin_request` allowed."""

    @abstractmethod
    async def abandon_request(self, owner: str, key: str) -> None:
        """Release the lease of a request that changed nothing. Idempotent; a kept reply stays."""

    @abstractmethod
    async def forget_replies(self, owner: str, conversation_id: UUID) -> None:
        """Empty the replies that show a conversation, which was deleted: what is left says so (DELETED)."""

    @abstractmethod
    async def forget_expired(self) -> bool:
        """Remove some replies that expired, of any owner; False if there are no more of them."""

    @abstractmethod
    async def forget_owner(self, owner: str) -> Forgotten:
        """Remove an owner's keys and replies."""

    @abstractmethod
    async def rename_owner(self, old: str, new: str) -> None:
        """Give the keys of one owner to another, and remove the replies, which name ids and owners of before."""

    @abstractmethod
    async def note_erasure(self, owner: str) -> datetime:
        """Note that an owner is erased now, durably, and return when; an erasure begins with it.

        The time is the database's, to the millisecond on MongoDB, and this machine's in memory and on SQLite. Of two
        erasures the later one counts, so that the time never goes back. Raises InvalidInput for what is no owner.
        """

    @abstractmethod
    async def erased_at(self, owner: str) -> datetime | None:
        """Return when an owner was last erased; None if never. It costs one lookup by key.

        Outlives the erasure, and the next one moves it: of the owner only a hash is kept (`owner_hash`). It is there
        before anything is removed. So whoever stores something, asks afterwards, and gets None or a time that they
        knew before, has stored what the next erasure removes. It belongs to the name: renaming an owner moves nothing.
        Raises InvalidInput for what is no owner.
        """
