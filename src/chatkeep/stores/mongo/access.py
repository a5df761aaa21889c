"""API keys, replies and traces of erasures in a MongoDB database."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from bson.int64 import Int64
from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

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
from chatkeep.errors import Conflict, SchemaMismatch
from chatkeep.stores.mongo.database import Database, Document, View
from chatkeep.stores.mongo.documents import micros
from chatkeep.stores.mongo.schema import revision
from chatkeep.stores.revisions import NEEDS_UPGRADE
from chatkeep.values import from_micros, now

# The server's clock, as for leases of turns: it tells milliseconds, so that the last microsecond of this one is taken.
CLOCK = {"$add": [{"$multiply": [{"$toLong": "$$NOW"}, Int64(1_000)]}, Int64(999)]}
NOTE_ERASURE = [{"$set": {"erased_at": {"$max": ["$erased_at", CLOCK]}}}]


class MongoAccess(Access):
    """API keys, replies and traces of erasures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create_key(self, key: ApiKey, secret_hash: bytes) -> None:
        document = {
            "_id": key.id,
            "owner_id": key.owner_id,
            "secret_hash": secret_hash,
            "name": key.name,
            "scopes": list(key.scopes),
            "created_at": micros(key.created_at),
            "expires_at": None if key.expires_at is None else micros(key.expires_at),
            "last_used_at": None,
        }

        async def create(view: View) -> None:
            try:
                await view.api_keys.insert_one(document)
            except DuplicateKeyError:
                same = {"_id": key.id, "owner_id": key.owner_id, "secret_hash": secret_hash}
                if await view.api_keys.find_one(same) is None:
                    raise Conflict("there is an API key with this id", got=key.id) from None

        await self._database.write_one(create)

    async def find_key(self, key_id: str) -> tuple[ApiKey, bytes] | None:
        found = await self._database.read(lambda view: view.api_keys.find_one({"_id": key_id}))
        return None if found is None else (_to_key(found), bytes(found["secret_hash"]))

    async def list_keys(self, owner: str | None = None) -> list[ApiKey]:
        where = {} if owner is None else {"owner_id": owner}
        by = [("created_at", 1), ("_id", 1)]
        found = await self._database.read(lambda view: view.api_keys.find(where, sort=by).to_list())
        return [_to_key(each) for each in found]

    async def revoke_key(self, key_id: str) -> bool:
        gone = await self._database.write(lambda view: view.api_keys.delete_one({"_id": key_id}, session=view.session))
        return gone.deleted_count == 1

    async def key_used(self, key_id: str, moment: datetime) -> None:
        change = {"$set": {"last_used_at": micros(moment)}}
        await self._database.write_one(lambda view: view.api_keys.update_one({"_id": key_id}, change))

    async def list_owners(self, *, after: str = "", limit: int = 1_000) -> list[str]:
        found = await self._database.read(
            lambda view: view.users.find({"owner_id": {"$gt": after}}, sort=[("owner_id", 1)], limit=limit).to_list()
        )
        return [each["owner_id"] for each in found]

    async def begin_request(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        with self._database.writes.of_call():
            return await self._begun(owner, key, fingerprint)

    async def _begun(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        moment = now()
        lease = micros(new_lease(moment))
        while True:
            if await self._database.write_one(lambda view: _taken(view, owner, key, fingerprint, moment, lease)):
                return None
            found = await self._database.read(lambda view: view.requests.find_one(_one(view, owner, key)))
            if found is not None:  # and not abandoned meanwhile
                kept = found.get("status")
                reply = None if kept is None else Reply(kept, bytes(found["body"]), found["location"])
                return judged(bytes(found["fingerprint"]), reply, fingerprint)

    async def finish_request(self, owner: str, key: str, reply: Reply) -> None:
        change = {"$set": {"status": reply.status, "body": reply.body, "location": reply.location}}
        await self._database.write_one(
            lambda view: view.requests.update_one({**_one(view, owner, key), "status": None}, change)
        )

    async def abandon_request(self, owner: str, key: str) -> None:
        await self._database.write_one(
            lambda view: view.requests.delete_one({**_one(view, owner, key), "status": None})
        )

    async def forget_replies(self, owner: str, conversation_id: UUID) -> None:
        where = {"owner_id": owner, "location": location_of(conversation_id)}
        change = {"$set": {"status": DELETED, "body": b"", "location": None}}
        if await self._database.read(lambda view: view.requests.find_one(where, {"_id": 1})):
            await self._database.write_one(lambda view: view.requests.update_many(where, change))

    async def forget_expired(self) -> bool:
        past = {"expires_at": {"$lte": micros(now())}}
        found = await self._database.read(lambda view: view.requests.find_one(past, {"owner_id": 1}))
        if found is None:
            return False
        of_owner = {"owner_id": found["owner_id"], **past}
        some = await self._database.read(
            lambda view: view.requests.find(of_owner, {"_id": 1}, limit=FORGET_SLICE).to_list()
        )
        where = {**of_owner, "_id": {"$in": [each["_id"] for each in some]}}
        await self._database.write_one(lambda view: view.requests.delete_many(where))
        return True

    async def forget_owner(self, owner: str) -> Forgotten:
        where = {"owner_id": owner}
        keys = await self._database.write(lambda view: view.api_keys.delete_many(where, session=view.session))
        requests = await self._database.write(lambda view: view.requests.delete_many(where, session=view.session))
        return Forgotten(keys.deleted_count, requests.deleted_count)

    async def rename_owner(self, old: str, new: str) -> None:
        change = {"$set": {"owner_id": new}}
        await self._database.write_one(lambda view: view.api_keys.update_many({"owner_id": old}, change))
        await self._database.write_one(lambda view: view.requests.delete_many({"owner_id": old}))

    async def note_erasure(self, owner: str) -> datetime:
        known = owner_hash(owner)
        if (await self._database.read(revision)).revision is None:  # MongoDB would make the collection by itself
            raise SchemaMismatch(NEEDS_UPGRADE, got=self._database.name)
        return from_micros(await self._database.write_one(lambda view: _noted(view, known)))

    async def erased_at(self, owner: str) -> datetime | None:
        known = owner_hash(owner)
        found = await self._database.read(lambda view: view.erasures.find_one({"_id": known}))
        return None if found is None else from_micros(found["erased_at"])


async def _noted(view: View, known: bytes) -> int:
    """Note an erasure of the owner with this hash, and return when, or the later moment that is known already."""

    async def note() -> Any:
        after = ReturnDocument.AFTER
        return await view.erasures.find_one_and_update({"_id": known}, NOTE_ERASURE, upsert=True, return_document=after)

    try:
        found = await note()
    except DuplicateKeyError:  # somebody else has noted the first one meanwhile
        found = await note()
    return int(found["erased_at"])


async def _taken(view: View, owner: str, key: str, fingerprint: bytes, moment: datetime, lease: Int64) -> bool:
    """Take the lease of a request if it is free, has expired, or was taken by this call; say whether it was taken."""
    past = micros(moment)
    values = {"fingerprint": fingerprint, "lease_until": lease, "expires_at": micros(moment + KEPT)}
    try:
        await view.requests.insert_one({"_id": {"o": owner, "k": key}, "owner_id": owner, **values})
    except DuplicateKeyError:
        leases = [{"lease_until": {"$lte": past}}, {"lease_until": lease}]
        lost = {"status": None, "fingerprint": fingerprint, "$or": leases}
        where = {**_one(view, owner, key), "$or": [{"expires_at": {"$lte": past}}, lost]}
        change = {"$set": values, "$unset": {"status": "", "body": "", "location": ""}}
        return (await view.requests.update_one(where, change)).matched_count == 1
    return True


def _one(view: View, owner: str, key: str) -> Document:
    return view.one(owner, {"o": owner, "k": key})


def _to_key(document: Mapping[str, Any]) -> ApiKey:
    expires, used = document["expires_at"], document["last_used_at"]
    return ApiKey(
        id=document["_id"],
        owner_id=document["owner_id"],
        name=document["name"],
        scopes=tuple(document["scopes"]),
        created_at=from_micros(document["created_at"]),
        expires_at=None if expires is None else from_micros(expires),
        last_used_at=None if used is None else from_micros(used),
    )
