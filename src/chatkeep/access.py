"""The port of what guards the conversations: API keys, and the replies to requests that are sent twice.

A store has one as `store.access`. The server and the command line use it; who embeds the library need not.
"""

from abc import ABC, abstractmethod
from datetime import datetime, timedelta
from typing import NamedTuple

from pydantic import Field

from chatkeep.errors import Conflict, InvalidInput
from chatkeep.model import Record

LEASE = timedelta(seconds=60)
"""How long a request may be under way until another one with its key takes over: its server has died."""

KEPT = timedelta(hours=24)
"""How long the reply to a request is kept."""


IDS_CLASH = "both owners have a conversation with the same id; export one of them, and delete it"
"""Why conversations cannot change their owner."""


class ApiKey(Record):
    """A key that stands for its owner, without the secret."""

    id: str
    owner_id: str
    name: str
    scopes: tuple[str, ...] = ()
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = Field(None, description="To the minute.")


class Reply(NamedTuple):
    """What a request was answered with."""

    status: int
    body: bytes
    location: str | None = None


def judged(known: bytes, reply: Reply | None, fingerprint: bytes) -> Reply:
    """The reply to a request whose key was used before, by a request with the fingerprint `known`.

    Raises what `Access.begin_request` says.
    """
    if known != fingerprint:
        raise InvalidInput("this idempotency key was used for another request; take a new one")
    if reply is None:
        raise Conflict("a request with this idempotency key is under way; send it again in a moment")
    return reply


class Forgotten(NamedTuple):
    """What was removed of an owner."""

    api_keys: int
    requests: int


class Access(ABC):
    """API keys and replies."""

    @abstractmethod
    async def create_key(self, key: ApiKey, secret_hash: bytes) -> None:
        """Store a key with the SHA-256 of its secret. Raises Conflict when there is one with this id."""

    @abstractmethod
    async def find_key(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        """Return a key and the hash of its secret; None where there is none, or it was revoked."""

    @abstractmethod
    async def list_keys(self, owner: str | None = None) -> list[ApiKey]:
        """Return an owner's keys, or all of the installation, oldest first."""

    @abstractmethod
    async def revoke_key(self, key_id: str) -> bool:
        """Remove a key, and say whether there was one. It is refused from now on."""

    @abstractmethod
    async def key_used(self, key_id: str, moment: datetime) -> None:
        """Note when a key was used."""

    @abstractmethod
    async def begin_request(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        """Take the right to execute the request with this key; of many that ask, one gets None and executes.

        Returns the reply where the request has been executed within the last 24 hours. Raises Conflict while
        another one executes it, for up to 60 s, and InvalidInput where the key was used for another request.
        """

    @abstractmethod
    async def finish_request(self, owner: str, key: str, reply: Reply) -> None:
        """Keep the reply of the request that `begin_request` allowed."""

    @abstractmethod
    async def abandon_request(self, owner: str, key: str) -> None:
        """Give the right back: nothing was done. Idempotent; a kept reply stays."""

    @abstractmethod
    async def forget_owner(self, owner: str) -> Forgotten:
        """Remove an owner's keys and replies."""

    @abstractmethod
    async def rename_owner(self, old: str, new: str) -> None:
        """Give the keys of one owner to another, and remove the replies, which name ids and owners of before."""
