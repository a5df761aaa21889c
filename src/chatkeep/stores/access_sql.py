"""API keys, replies and traces of erasures in a SQL database: the same statements on SQLite and PostgreSQL.

Both number parameters as $1, $2 …; SQLite takes those as names and numbers them by first appearance, so they
appear in order. Text is encoded for PostgreSQL (`encode_nul`) on both.
"""

from abc import abstractmethod
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from chatkeep.access import (
    DELETED,
    FORGET_SLICE,
    KEPT,
    Access,
    ApiKey,
    Forgotten,
    Reply,
    judged,
    location_of,
    new_lease,
    owner_hash,
)
from chatkeep.errors import Conflict
from chatkeep.stores.rows import Row
from chatkeep.values import decode_nul, encode_nul, from_micros, now, to_micros

CREATE = """
    INSERT INTO api_keys (id, secret_hash, owner_id, name, scopes, created_at, expires_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING RETURNING id
"""
KEY = "SELECT id, owner_id, name, scopes, created_at, expires_at, last_used_at, secret_hash FROM api_keys"
BEGIN = """
    INSERT INTO requests (owner_id, key, fingerprint, lease_until, expires_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (owner_id, key) DO UPDATE
    SET fingerprint = excluded.fingerprint, lease_until = excluded.lease_until, expires_at = excluded.expires_at,
        status = NULL, body = NULL, location = NULL
    WHERE requests.expires_at <= $6 OR (
        requests.status IS NULL AND requests.fingerprint = excluded.fingerprint
        AND (requests.lease_until <= $6 OR requests.lease_until = excluded.lease_until)
    )
    RETURNING owner_id
"""
FORGET_REPLIES = """
    UPDATE requests SET status = $1, body = $2, location = NULL WHERE owner_id = $3 AND location = $4 RETURNING key
"""
FORGET_EXPIRED = """
    DELETE FROM requests WHERE owner_id = $1 AND key IN (
        SELECT key FROM requests WHERE owner_id = $1 AND expires_at <= $2 LIMIT $3
    ) RETURNING key
"""
# What is new is the database's clock, or $2. No greatest(), which is max() on SQLite.
NOTE_ERASURE = """
    INSERT INTO erasures (owner_hash, erased_at) VALUES ($1, {moment})
    ON CONFLICT (owner_hash) DO UPDATE SET erased_at =
        CASE WHEN excluded.erased_at > erasures.erased_at THEN excluded.erased_at ELSE erasures.erased_at END
    RETURNING erased_at
"""
ERASED_AT = "SELECT erased_at FROM erasures WHERE owner_hash = $1"


class SqlAccess(Access):
    """API keys, replies and traces of erasures, over two ways to execute a statement."""

    @abstractmethod
    async def _read(self, statement: str, *values: object) -> Sequence[Row]:
        """Return the rows of one statement that only reads."""

    @abstractmethod
    async def _write(self, statement: str, *values: object) -> Sequence[Row]:
        """Return the rows of one statement that writes, when it is durable."""

    def _stored_owner(self, owner: str) -> str:
        """An owner as the table of owners has it. `_shown_owner` is the inverse."""
        return owner

    def _shown_owner(self, stored: str) -> str:
        return stored

    async def create_key(self, key: ApiKey, secret_hash: bytes) -> None:
        owner, name, scopes = encode_nul(key.owner_id), encode_nul(key.name), " ".join(key.scopes)
        times = to_micros(key.created_at), _micros(key.expires_at)
        if await self._write(CREATE, key.id, secret_hash, owner, name, scopes, *times):
            return
        found = await self.find_key(key.id)
        if found is None or (found[0].owner_id, found[1]) != (key.owner_id, secret_hash):
            raise Conflict("there is an API key with this id", got=key.id)

    async def find_key(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        found = await self._read(f"{KEY} WHERE id = $1", key_id)
        return (_to_key(found[0]), bytes(found[0][7])) if found else None

    async def list_keys(self, owner: str | None = None) -> list[ApiKey]:
        if owner is None:
            return [_to_key(row) for row in await self._read(f"{KEY} ORDER BY created_at, id")]
        found = await self._read(f"{KEY} WHERE owner_id = $1 ORDER BY created_at, id", encode_nul(owner))
        return [_to_key(row) for row in found]

    async def revoke_key(self, key_id: str) -> bool:
        return bool(await self._write("DELETE FROM api_keys WHERE id = $1 RETURNING id", key_id))

    async def key_used(self, key_id: str, moment: datetime) -> None:
        await self._write("UPDATE api_keys SET last_used_at = $1 WHERE id = $2 RETURNING id", to_micros(moment), key_id)

    async def list_owners(self, *, after: str = "", limit: int = 1_000) -> list[str]:
        above = self._stored_owner(after), limit
        found = await self._read("SELECT id FROM users WHERE id > $1 ORDER BY id LIMIT $2", *above)
        return [self._shown_owner(id_) for (id_,) in found]

    async def begin_request(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        owner, key = encode_nul(owner), encode_nul(key)
        moment = now()
        past, lease, expiry = to_micros(moment), to_micros(new_lease(moment)), to_micros(moment + KEPT)
        while True:
            if await self._write(BEGIN, owner, key, fingerprint, lease, expiry, past):
                return None
            asked = "SELECT fingerprint, status, body, location FROM requests WHERE owner_id = $1 AND key = $2"
            found = await self._read(asked, owner, key)
            if found:  # and not abandoned meanwhile
                known, status, body, location = found[0]
                reply = None if status is None else Reply(status, bytes(body), location)
                return judged(bytes(known), reply, fingerprint)

    async def finish_request(self, owner: str, key: str, reply: Reply) -> None:
        await self._write(
            "UPDATE requests SET status = $1, body = $2, location = $3 WHERE owner_id = $4 AND key = $5"
            " AND status IS NULL RETURNING key",
            *reply,
            encode_nul(owner),
            encode_nul(key),
        )

    async def abandon_request(self, owner: str, key: str) -> None:
        statement = "DELETE FROM requests WHERE owner_id = $1 AND key = $2 AND status IS NULL RETURNING key"
        await self._write(statement, encode_nul(owner), encode_nul(key))

    async def forget_replies(self, owner: str, conversation_id: UUID) -> None:
        where = encode_nul(owner), location_of(conversation_id)
        if await self._read("SELECT 1 FROM requests WHERE owner_id = $1 AND location = $2 LIMIT 1", *where):
            await self._write(FORGET_REPLIES, DELETED, b"", *where)

    async def forget_expired(self) -> bool:
        past = to_micros(now())
        found = await self._read("SELECT owner_id FROM requests WHERE expires_at <= $1 LIMIT 1", past)
        for (owner,) in found:
            await self._write(FORGET_EXPIRED, owner, past, FORGET_SLICE)
        return bool(found)

    async def forget_owner(self, owner: str) -> Forgotten:
        owner = encode_nul(owner)
        keys = await self._write("DELETE FROM api_keys WHERE owner_id = $1 RETURNING id", owner)
        requests = await self._write("DELETE FROM requests WHERE owner_id = $1 RETURNING key", owner)
        return Forgotten(len(keys), len(requests))

    async def rename_owner(self, old: str, new: str) -> None:
        statement = "UPDATE api_keys SET owner_id = $1 WHERE owner_id = $2 RETURNING id"
        await self._write(statement, encode_nul(new), encode_nul(old))
        await self._write("DELETE FROM requests WHERE owner_id = $1 RETURNING key", encode_nul(old))

    async def _noted(self, owner: str, moment: str, *values: object) -> datetime:
        """Note an erasure at a moment, which is SQL for microseconds since 1970, and return the later of all."""
        ((erased_at,),) = await self._write(NOTE_ERASURE.format(moment=moment), owner_hash(owner), *values)
        return from_micros(erased_at)

    async def erased_at(self, owner: str) -> datetime | None:
        found = await self._read(ERASED_AT, owner_hash(owner))
        return from_micros(found[0][0]) if found else None


def _to_key(row: Row) -> ApiKey:
    id_, owner, name, scopes, created, expires, used, _ = row
    return ApiKey(
        id=id_,
        owner_id=decode_nul(owner),
        name=decode_nul(name),
        scopes=tuple(scopes.split()),
        created_at=from_micros(created),
        expires_at=None if expires is None else from_micros(expires),
        last_used_at=None if used is None else from_micros(used),
    )


def _micros(moment: datetime | None) -> int | None:
    return None if moment is None else to_micros(moment)
