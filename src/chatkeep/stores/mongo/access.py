"""API keys and replies in a MongoDB database."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pymongo.errors import DuplicateKeyError

from chatkeep.access import KEPT, LEASE, Access, ApiKey, Forgotten, Reply, judged
from chatkeep.errors import Conflict
from chatkeep.stores.mongo.database import Database, Document, View
from chatkeep.stores.mongo.rows import micros
from chatkeep.values import from_micros, now


class MongoAccess(Access):
    """API keys and replies."""

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
        gone = await self._database.write_one(lambda view: view.api_keys.delete_one({"_id": key_id}))
        return gone.deleted_count == 1

    async def key_used(self, key_id: str, moment: datetime) -> None:
        change = {"$set": {"last_used_at": micros(moment)}}
        await self._database.write_one(lambda view: view.api_keys.update_one({"_id": key_id}, change))

    async def begin_request(self, owner: str, key: str, fingerprint: bytes) -> Reply | None:
        await self._forget_old(owner)
        while True:
            if await self._database.write_one(lambda view: _taken(view, owner, key, fingerprint)):
                return None
            found = await self._database.read(lambda view: view.requests.find_one(_one(owner, key)))
            if found is not None:  # and not abandoned meanwhile
                kept = found.get("status")
                reply = None if kept is None else Reply(kept, bytes(found["body"]), found["location"])
                return judged(bytes(found["fingerprint"]), reply, fingerprint)

    async def finish_request(self, owner: str, key: str, reply: Reply) -> None:
        change = {"$set": {"status": reply.status, "body": reply.body, "location": reply.location}}
        await self._database.write_one(
            lambda view: view.requests.update_one({**_one(owner, key), "status": None}, change)
        )

    async def abandon_request(self, owner: str, key: str) -> None:
        await self._database.write_one(lambda view: view.requests.delete_one({**_one(owner, key), "status": None}))

    async def forget_owner(self, owner: str) -> Forgotten:
        keys = await self._database.write_one(lambda view: view.api_keys.delete_many({"owner_id": owner}))
        requests = await self._database.write_one(lambda view: view.requests.delete_many({"owner_id": owner}))
        return Forgotten(keys.deleted_count, requests.deleted_count)

    async def rename_owner(self, old: str, new: str) -> None:
        change = {"$set": {"owner_id": new}}
        await self._database.write_one(lambda view: view.api_keys.update_many({"owner_id": old}, change))
        await self._database.write_one(lambda view: view.requests.delete_many({"owner_id": old}))

    async def _forget_old(self, owner: str) -> None:
        where = {"owner_id": owner, "expires_at": {"$lte": micros(now())}}
        if await self._database.read(lambda view: view.requests.find_one(where, {"_id": 1})):
            await self._database.write_one(lambda view: view.requests.delete_many(where))


async def _taken(view: View, owner: str, key: str, fingerprint: bytes) -> bool:
    """Take the lease of a request if it is free or has expired; say whether it was taken."""
    moment = now()
    past = micros(moment)
    values = {
        "fingerprint": fingerprint,
        "lease_until": micros(moment + LEASE),
        "expires_at": micros(moment + KEPT),
    }
    try:
        await view.requests.insert_one({**_one(owner, key), **values})
    except DuplicateKeyError:
        lost = {"status": None, "lease_until": {"$lte": past}, "fingerprint": fingerprint}
        where = {**_one(owner, key), "$or": [{"expires_at": {"$lte": past}}, lost]}
        change = {"$set": values, "$unset": {"status": "", "body": "", "location": ""}}
        return (await view.requests.update_one(where, change)).modified_count == 1
    return True


def _one(owner: str, key: str) -> Document:
    return {"_id": {"o": owner, "k": key}, "owner_id": owner}


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
