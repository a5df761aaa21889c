"""API keys, replies to retried requests and traces of erasures in this process's memory."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from chatkeep.access import DELETED, KEPT, LEASE, Access, ApiKey, Forgotten, Reply, judged, location_of, owner_hash
from chatkeep.errors import Conflict
from chatkeep.values import now


@dataclass
class _Request:
    """A request that was sent with a key."""

    fingerprint: bytes
    began: datetime
    reply: Reply | None = None


class MemoryAccess(Access):
    """API keys, replies and traces of erasures in this process's memory."""

    def __init__(self, owners: Callable[[], Iterable[str]] = tuple) -> None:
        """Take what returns the owners of the store."""
        self._owners = owners
        self._keys: dict[str, tuple[ApiKey, bytes]] = {}
        self._requests: dict[tuple[str, str], _Request] = {}
        self._erasures: dict[bytes, datetime] = {}

    async def create_key(self, key: ApiKey, secret_hash: bytes) -> None:
        known, known_hash = self._keys.get(key.id, (key, secret_hash))
        if (known.owner_id, known_hash) != (key.owner_id, secret_hash):
            raise Conflict("there is an API key with this id", got=key.id)
        self._keys[key.id] = key, secret_hash

    async def find_key(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        return self._keys.get(key_id)

    async def list_keys(self, owner: str | None = None) -> list[ApiKey]:
        keys = [key for key, _ in self._keys.values() if owner in (None, key.owner_id)]
        return sorted(keys, key=lambda key: (key.created_at, key.id))

    async def revoke_key(self, key_id: str) -> bool:
        return self._keys.pop(key_id, None) is not None

    async def key_used(self, key_id: str, moment: datetime) -> None:
        if key_id in self._keys:
            key, secret_hash = self._keys[key_id]
            self._keys[key_id] = key.model_copy(update={"last_used_at": moment}), secret_hash

    async def list_owners(self, *, after: str = "", limit: int = 1_000) -> list[str]:
        return sorted(owner for owner in set(self._owners()) if owner > after)[:limit]

    async def begin_request(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        moment = now()
        known = self._requests.get((owner, key))
        if (
            known is None
            or known.began + KEPT <= moment
            or (known.reply is None and known.fingerprint == fingerprint and known.began + LEASE < moment)
        ):
            self._requests[owner, key] = _Request(fingerprint, moment)
            return None
        return judged(known.fingerprint, known.reply, fingerprint)

    async def finish_request(self, owner: str, key: str, reply: Reply) -> None:
        known = self._requests.get((owner, key))
        if known is not None:
            known.reply = reply

    async def abandon_request(self, owner: str, key: str) -> None:
        known = self._requests.get((owner, key))
        if known is not None and known.reply is None:
            del self._requests[owner, key]

    async def forget_replies(self, owner: str, conversation_id: UUID) -> None:
        for (owner_id, _), request in self._requests.items():
            shown = None if request.reply is None else request.reply.location
            if owner_id == owner and shown == location_of(conversation_id):
                request.reply = Reply(DELETED, b"")

    async def forget_expired(self) -> bool:
        limit = now() - KEPT
        self._requests = {place: request for place, request in self._requests.items() if request.began > limit}
        return False

    async def forget_owner(self, owner: str) -> Forgotten:
        keys = [key.id for key in await self.list_keys(owner)]
        requests = [place for place in self._requests if place[0] == owner]
        for key_id in keys:
            del self._keys[key_id]
        for place in requests:
            del self._requests[place]
        return Forgotten(len(keys), len(requests))

    async def rename_owner(self, old: str, new: str) -> None:
        for key in await self.list_keys(old):
            self._keys[key.id] = key.model_copy(update={"owner_id": new}), self._keys[key.id][1]
        self._requests = {place: request for place, request in self._requests.items() if place[0] != old}

    async def note_erasure(self, owner: str) -> datetime:
        known, moment = owner_hash(owner), now()
        self._erasures[known] = max(moment, self._erasures.get(known, moment))
        return self._erasures[known]

    async def erased_at(self, owner: str) -> datetime | None:
        return self._erasures.get(owner_hash(owner))
