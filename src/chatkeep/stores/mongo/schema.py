"""The collections of the MongoDB store: validators, indexes, revision, sharding.

Every step is idempotent, and safe for many processes at once.
"""

from typing import Any

from pymongo import IndexModel
from pymongo.errors import CollectionInvalid, OperationFailure

from chatkeep.errors import InvalidInput
from chatkeep.model import Role, Status
from chatkeep.stores.mongo.database import Database, Document, View
from chatkeep.stores.revisions import needs_migration, target_revision

HEAD = "0001"
"""The newest revision."""

REVISIONS = (HEAD,)
"""Every revision, oldest first."""

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


INDEXES: dict[str, list[IndexModel]] = {
    "conversations": [
        _index("by_update", "owner_id", "-updated_at", "-id"),
        _index("by_context", "owner_id", "context_id", "-updated_at", "-id"),
        _index("by_id", "owner_id", "id"),
        # Whether somebody else has an id: the one question that does not name an owner.
        _index("elsewhere", "id"),
        _index("slot", "owner_id", "context_id", "slot", unique=True, where={"slot": True}),
        _index("remains", "deleted_at", "owner_id", where={"deleted_at": {"$exists": True}}),
    ],
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
        _index("location", "owner_id", "location", where={"location": {"$type": "string"}}),
    ],
}

SPREAD = ("users", "conversations", "messages", "requests")
"""The sharded collections, by owner. API keys are not: a key is looked up before its owner is known."""

NAMESPACE_EXISTS = 48


async def revision(view: View) -> str | None:
    """The revision of the schema, None without one."""
    found = await view.schema.find_one({"_id": "schema"})
    return None if found is None else found["revision"]


async def migrate(database: Database, target: str) -> None:
    """Bring the schema to `target`. Safe to call from many processes at once."""
    target = target_revision(target, REVISIONS)
    if needs_migration(await database.read(revision), target, REVISIONS, database.name):
        await database.write_one(_drop if target == "base" else _build)


async def _build(view: View) -> None:
    found = await (await view.database.list_collections()).to_list()
    there = {each["name"]: each.get("options", {}).get("validator") for each in found}
    for name, validator in VALIDATORS.items():
        if name not in there:
            await _create(view, name, validator)
        elif there[name] != validator:
            await view.database.command("collMod", name, validator=validator)
        await view.database[name].create_indexes(INDEXES[name])
    await view.schema.update_one({"_id": "schema"}, {"$set": {"revision": HEAD}}, upsert=True)


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
    for name in SPREAD:
        full = f"{view.database.name}.{name}"
        known = await client["config"]["collections"].find_one({"_id": full})
        if known is None or known.get("dropped"):
            await client.admin.command("shardCollection", full, key={"owner_id": 1})
            spread_now.append(name)
    return spread_now
