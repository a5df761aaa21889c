"""The collections of the MongoDB store: validators, indexes, revision, sharding.

Every step is idempotent, and safe for many processes at once.
"""

from contextlib import suppress
from typing import Any

from pymongo import IndexModel
from pymongo.errors import CollectionInvalid, OperationFailure

from chatkeep.errors import InvalidInput
from chatkeep.model import Role, Status
from chatkeep.stores.mongo.database import Collection, Database, Document, View
from chatkeep.stores.mongo.documents import micros
from chatkeep.stores.revisions import needs_migration, target_revision
from chatkeep.values import now

REVISIONS = ("0001", "0002")
"""Every revision, oldest first."""

HEAD = REVISIONS[-1]
"""The newest revision."""

NO_SCHEMA = "the database has no schema of chatkeep; run `chatkeep db upgrade`"

NUMBER = {"bsonType": ["int", "long"]}
COUNT = {**NUMBER, "minimum": 0}
PLACE = {**NUMBER, "minimum": 1}
TIME = {"bsonType": "long"}
TEXT = {"bsonType": "string"}
BYTES = {"bsonType": "binData"}
ANY_TEXT = {"bsonType": ["string", "null"]}


def _validator(required: tuple[str, ...], **properties: Document) -> Document:
    return {"$jsonSchema": {"bsonType": "object", "required": ["_id", "owner_id", *required], "properties": properties}}


VALIDATORS: dict[str, Document] = {
    "conversations": _validator(
        ("id", "metadata", "last_seq", "straight", "fingerprint", "created_at", "updated_at"),
        owner_id=TEXT,
        id=BYTES,
        title=ANY_TEXT,
        context_id=ANY_TEXT,
        external_id=ANY_TEXT,
        metadata=TEXT,
        last_seq=COUNT,
        head_seq={"bsonType": ["int", "long", "null"], "minimum": 1},
        head_id={"bsonType": ["binData", "null"]},
        runs=ANY_TEXT,
        straight={"bsonType": "bool"},
        slot={"enum": [True]},
        fingerprint=BYTES,
        created_at=TIME,
        updated_at=TIME,
        deleted_at=TIME,
    ),
    "messages": _validator(
        ("conversation_id", "seq", "run", "depth", "role", "content", "status", "fingerprint", "created_at"),
        owner_id=TEXT,
        conversation_id=BYTES,
        seq=PLACE,
        run=COUNT,
        depth=PLACE,
        branched={"enum": [True]},
        parent_id={"bsonType": ["binData", "null"]},
        role={"enum": [role.value for role in Role]},
        content=TEXT,
        status={"enum": [status.value for status in Status]},
        sources=TEXT,
        metadata=TEXT,
        external_id=TEXT,
        sent_at=TIME,
        created_at=TIME,
        fingerprint=BYTES,
        words={"bsonType": "array"},
        unindexed={"enum": [True]},
    ),
    "users": _validator((), owner_id=TEXT),
    "api_keys": _validator(("secret_hash", "name", "scopes", "created_at"), owner_id=TEXT, secret_hash=BYTES),
    "requests": _validator(("fingerprint", "lease_until", "expires_at"), owner_id=TEXT, expires_at=TIME),
}
"""The validator of each collection."""


def _index(name: str, *keys: str, unique: bool = False, where: Document | None = None) -> IndexModel:
    """An index; a key that begins with - is descending."""
    fields = [(key.removeprefix("-"), -1 if key.startswith("-") else 1) for key in keys]
    options: dict[str, Any] = {"unique": True} if unique else {}
    if where is not None:
        options["partialFilterExpression"] = where
    return IndexModel(fields, name=name, **options)


SOME_TEXT = {"$gte": ""}
"""Where a field is text. For {"$type": "string"} MongoDB would not use the index of a part: it compares values."""

# Each append moves its conversation in every index with updated_at.
BY_CONTEXT = "owner_id", "context_id", "-updated_at", "-id"

CONVERSATION_INDEXES = (
    _index("by_update", "owner_id", "-updated_at", "-id"),
    _index("by_id", "owner_id", "id"),
    # Whether somebody else has an id: the one question that does not name an owner.
    _index("elsewhere", "id"),
    _index("slot", "owner_id", "context_id", "slot", unique=True, where={"slot": True}),
    _index("remains", "deleted_at", "owner_id", where={"deleted_at": {"$exists": True}}),
)
"""The indexes of conversations that every revision has."""

INDEXES: dict[str, list[IndexModel]] = {
    "conversations": [*CONVERSATION_INDEXES, _index("in_context", *BY_CONTEXT, where={"context_id": SOME_TEXT})],
    "messages": [
        _index("seq", "owner_id", "conversation_id", "seq", unique=True),
        _index("run", "owner_id", "conversation_id", "run", "seq", where={"branched": True}),
        _index(
            "deleted", "owner_id", "conversation_id", "status", "run", "seq", where={"status": Status.DELETED.value}
        ),
        # In the order of a search's hits, so that the newest of many are read without sorting them all.
        _index(
            "words",
            "owner_id",
            "words",
            "-created_at",
            "-conversation_id",
            "-seq",
            where={"words": {"$exists": True}},
        ),
        _index("unindexed", "unindexed", "owner_id", where={"unindexed": True}),
    ],
    "users": [_index("owner", "owner_id")],
    "api_keys": [_index("owner", "owner_id", "created_at")],
    "requests": [
        _index("expiry", "owner_id", "expires_at"),
        _index("location", "owner_id", "location", where={"location": SOME_TEXT}),
    ],
}
"""The indexes of each collection at the newest revision."""

EARLIER: dict[str, dict[str, list[IndexModel]]] = {
    "0001": {
        "conversations": [*CONVERSATION_INDEXES, _index("by_context", *BY_CONTEXT)],
        "requests": INDEXES["requests"][:1],
    }
}
"""The indexes of an earlier revision, of the collections whose indexes were others."""

SPREAD = ("users", "conversations", "messages", "requests")
"""The sharded collections, by owner. API keys are not: a key is looked up before its owner is known."""

NAMESPACE_EXISTS, NO_SUCH_INDEX, SAME_KEYS = 48, 27, 85


async def revision(view: View) -> str | None:
    """The revision of the schema, None without one."""
    found = await view.schema.find_one({"_id": "schema"})
    return None if found is None else found["revision"]


async def migrate(database: Database, target: str) -> None:
    """Bring the schema to `target`. Safe to call from many processes at once."""
    target = target_revision(target, REVISIONS)
    if needs_migration(await database.read(revision), target, REVISIONS, database.name):
        await database.change(_drop if target == "base" else lambda view: _build(view, target), atomic=False)


async def _build(view: View, target: str) -> None:
    found = await (await view.database.list_collections()).to_list()
    there = {each["name"]: each.get("options", {}).get("validator") for each in found}
    for name, validator in VALIDATORS.items():
        if name not in there:
            await _create(view, name, validator)
        elif there[name] != validator:
            await view.database.command("collMod", name, validator=validator)
        await _make_indexes(view.database[name], EARLIER.get(target, {}).get(name, INDEXES[name]))
    await _end_future(view)
    await view.schema.update_one({"_id": "schema"}, {"$set": {"revision": target}}, upsert=True)


async def _make_indexes(collection: Collection, wanted: list[IndexModel]) -> None:
    """Make indexes, then drop what only other revisions have: lists are served meanwhile."""
    try:
        await collection.create_indexes(wanted)
    except OperationFailure as error:
        if error.code != SAME_KEYS:  # before MongoDB 5.0, no two indexes had the same keys
            raise
        await _drop_others(collection, wanted)
        await collection.create_indexes(wanted)
    await _drop_others(collection, wanted)


async def _drop_others(collection: Collection, wanted: list[IndexModel]) -> None:
    """Drop the indexes of other revisions; whatever else there is belongs to somebody else."""
    ours = [*INDEXES[collection.name], *(each for old in EARLIER.values() for each in old.get(collection.name, ()))]
    names = {index.document["name"] for index in ours} - {index.document["name"] for index in wanted}
    for name in names & (await collection.index_information()).keys():
        try:
            await collection.drop_index(name)
        except OperationFailure as error:
            if error.code != NO_SUCH_INDEX:  # another process was faster
                raise


async def _end_future(view: View) -> None:
    """Take conversations out of the future, where an import put them: they stayed on top of every list."""
    where = {"updated_at": {"$gt": micros(now())}}
    async for each in view.conversations.find(where, {"created_at": 1, "updated_at": 1}):
        if each["updated_at"] > each["created_at"]:
            one = view.one(each["_id"]["o"], each["_id"]) | {"updated_at": each["updated_at"]}
            await view.conversations.update_one(one, {"$set": {"updated_at": each["created_at"]}})


async def _create(view: View, name: str, validator: Document) -> None:
    """Make a collection, unless another process has."""
    try:
        await view.database.create_collection(name, validator=validator)
    except CollectionInvalid:
        return
    except OperationFailure as error:
        if error.code != NAMESPACE_EXISTS:
            raise


async def _drop(view: View) -> None:
    for name in (*VALIDATORS, view.schema.name):
        await view.database.drop_collection(name)


async def spread(database: Database) -> list[str]:
    """Shard the collections by owner, and return those that were sharded now."""
    view = await database.view()
    if not database.sharded:
        raise InvalidInput("only MongoDB behind mongos can be distributed", got=database.name)
    client, spread_now = view.database.client, []
    with suppress(OperationFailure):  # needed before MongoDB 6.0, where shardCollection says so if it failed
        await client.admin.command("enableSharding", view.database.name)
    for name in SPREAD:
        full = f"{view.database.name}.{name}"
        known = await client["config"]["collections"].find_one({"_id": full})
        if known is None or known.get("dropped"):
            await client.admin.command("shardCollection", full, key={"owner_id": 1})
            spread_now.append(name)
    return spread_now
