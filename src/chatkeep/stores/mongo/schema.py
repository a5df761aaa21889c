"""The collections of the MongoDB store: validators, indexes, revision, sharding.

Every step is idempotent, and safe for many processes at once.
"""

from contextlib import suppress
from functools import partial
from typing import Any

from pymongo import IndexModel
from pymongo.errors import CollectionInvalid, DuplicateKeyError, OperationFailure

from chatkeep.errors import InvalidInput
from chatkeep.events import fold
from chatkeep.model import COUNTS, Role, Status
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.mongo.database import Collection, Database, Document, View
from chatkeep.stores.mongo.documents import micros, to_uuid, turn_key
from chatkeep.stores.mongo.providers import PROVIDERS, extractive
from chatkeep.stores.mongo.rows import MongoRows
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.stores.revisions import Schema, needs_migration, target_revision
from chatkeep.stores.turn_rows import ALL_BYTES
from chatkeep.turns import Ending, TurnPlace
from chatkeep.values import MAX_LABELS, now

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007")
"""Every revision, oldest first."""

HEAD = REVISIONS[-1]
"""The newest revision."""

SERVED_FROM = {"0003": "0002", "0004": "0003", "0005": "0004", "0006": "0005", "0007": "0006"}
"""The oldest revision whose processes can use a revision, during a rolling upgrade; without one only its own can."""

NUMBER = {"bsonType": ["int", "long"]}
COUNT = {**NUMBER, "minimum": 0}
PLACE = {**NUMBER, "minimum": 1}
TIME = {"bsonType": "long"}
TEXT = {"bsonType": "string"}
BYTES = {"bsonType": "binData"}
ANY_TEXT = {"bsonType": ["string", "null"]}
FILE = ("media_type", "bytes", "sha256")
LABELS = {"bsonType": "array", "minItems": 1, "maxItems": MAX_LABELS, "items": TEXT}


def _validator(required: tuple[str, ...], **properties: Document) -> Document:
    """The rule of a collection. Documents of earlier revisions keep it, too: they have fewer fields."""
    of_owner = ["owner_id"] if "owner_id" in properties else []
    return {"$jsonSchema": {"bsonType": "object", "required": ["_id", *of_owner, *required], "properties": properties}}


VALIDATORS: dict[str, Document] = {
    "conversations": _validator(
        ("id", "metadata", "last_seq", "straight", "fingerprint", "created_at", "updated_at"),
        owner_id=TEXT,
        id=BYTES,
        title=ANY_TEXT,
        context_id=ANY_TEXT,
        project_id=BYTES,
        llm_provider_id=BYTES,
        external_id=ANY_TEXT,
        labels=LABELS,
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
        parts=TEXT,
        sources=TEXT,
        metadata=TEXT,
        model=TEXT,
        **dict.fromkeys(COUNTS, COUNT),
        external_id=TEXT,
        sent_at=TIME,
        created_at=TIME,
        fingerprint=BYTES,
        words={"bsonType": "array"},
        unindexed={"enum": [True]},
    ),
    "turns": _validator(
        ("conversation_id", "parent_id", "worker", "until", "n"),
        owner_id=TEXT,
        conversation_id=BYTES,
        parent_id=BYTES,
        worker=BYTES,
        until={"bsonType": "date"},
        n=COUNT,
        stopping={"enum": [True]},
    ),
    "turn_events": _validator(
        ("conversation_id", "message_id", "n", "kind"),
        owner_id=TEXT,
        conversation_id=BYTES,
        message_id=BYTES,
        n=PLACE,
        kind=TEXT,
        text=TEXT,
        data=TEXT,
    ),
    "users": _validator((), owner_id=TEXT),
    "projects": _validator(
        ("id", "name", "created_at", "updated_at"),
        owner_id=TEXT,
        id=BYTES,
        name=TEXT,
        metadata=TEXT,
        fingerprint=BYTES,
        documents=COUNT,
        chunks=COUNT,
        space=TEXT,
        version=COUNT,
        embedding_worker=BYTES,
        embedding_until={"bsonType": "date"},
        moved_from=TEXT,
        moved_version=COUNT,
        locks=COUNT,
        created_at=TIME,
        updated_at=TIME,
        deleted_at=TIME,
    ),
    "documents": _validator(
        ("project_id", "id", "file_path", *FILE, "chunks", "version", "created_at", "updated_at"),
        owner_id=TEXT,
        project_id=BYTES,
        id=BYTES,
        file_path=TEXT,
        title=TEXT,
        media_type=TEXT,
        bytes=COUNT,
        sha256=TEXT,
        chunks=COUNT,
        content=BYTES,
        staged=BYTES,
        version=COUNT,
        has_rubbish={"enum": [True]},
        locks=COUNT,
        created_at=TIME,
        updated_at=TIME,
    ),
    "chunks": _validator(
        ("project_id", "document_id", "content", "n", "heading", "start", "text", "terms"),
        owner_id=TEXT,
        project_id=BYTES,
        document_id=BYTES,
        content=BYTES,
        n=COUNT,
        header_anchor=TEXT,
        heading=TEXT,
        start=COUNT,
        text=TEXT,
        terms=BYTES,
    ),
    "vectors": _validator(
        ("project_id", "space", "document_id", "content", "n", "vector"),
        owner_id=TEXT,
        project_id=BYTES,
        space=TEXT,
        document_id=BYTES,
        content=BYTES,
        n=COUNT,
        vector=BYTES,
    ),
    "llm_providers": _validator(
        ("provider_name", "model_name", "is_default", "created_at", "updated_at"),
        _id=BYTES,
        provider_name=TEXT,
        model_name=TEXT,
        is_default={"bsonType": "bool"},
        api_config=TEXT,
        fingerprint=BYTES,
        replaced_by=BYTES,
        locks=COUNT,
        created_at=TIME,
        updated_at=TIME,
    ),
    "api_keys": _validator(("secret_hash", "name", "scopes", "created_at"), owner_id=TEXT, secret_hash=BYTES),
    "requests": _validator(("fingerprint", "lease_until", "expires_at"), owner_id=TEXT, expires_at=TIME),
    "erasures": _validator(("erased_at",), _id=BYTES, erased_at=TIME),
}
"""The validator of each collection at the newest revision. It takes what processes of the revision before write."""

NEW_FIELDS = ("parts", "model", *COUNTS)
"""The fields of messages that came with 0003."""

NEW_PROJECT_FIELDS = (
    "fingerprint",
    "documents",
    "chunks",
    "space",
    "version",
    "embedding_worker",
    "embedding_until",
    "moved_from",
    "moved_version",
    "locks",
)
"""The fields of projects that came with 0005, but for the one that hides them."""

NEW_PROVIDER_FIELDS = ("fingerprint", "replaced_by", "locks")
"""The fields of providers that came with 0006."""

SINCE = {
    "projects": "0003",
    "llm_providers": "0003",
    "turns": "0004",
    "turn_events": "0004",
    "documents": "0005",
    "chunks": "0005",
    "vectors": "0005",
    "erasures": "0007",
}
"""The revision that a collection came with; the others are of the first."""


def _index(name: str, *keys: str, unique: bool = False, where: Document | None = None) -> IndexModel:
    """An index; a key that begins with - is descending."""
    fields = [(key.removeprefix("-"), -1 if key.startswith("-") else 1) for key in keys]
    options: dict[str, Any] = {"unique": True} if unique else {}
    if where is not None:
        options["partialFilterExpression"] = where
    return IndexModel(fields, name=name, **options)


SOME_TEXT = {"$gte": ""}
"""Where a field is text. For {"$type": "string"} MongoDB would not use the index of a part: it compares values."""

PRESENT = {"$exists": True}

# Each append moves its conversation in every index with updated_at.
BY_CONTEXT = "owner_id", "context_id", "-updated_at", "-id"

CONVERSATION_INDEXES = (
    _index("by_update", "owner_id", "-updated_at", "-id"),
    _index("by_id", "owner_id", "id"),
    # Whether somebody else has an id: the one question that does not name an owner.
    _index("elsewhere", "id"),
    _index("remains", "deleted_at", "owner_id", where={"deleted_at": PRESENT}),
)
"""The indexes of conversations that every revision has."""

SLOT = _index("slot", "owner_id", "context_id", "slot", unique=True, where={"slot": True})
IN_CONTEXT = _index("in_context", *BY_CONTEXT, where={"context_id": SOME_TEXT})

MESSAGE_INDEXES = (
    _index("seq", "owner_id", "conversation_id", "seq", unique=True),
    _index("run", "owner_id", "conversation_id", "run", "seq", where={"branched": True}),
    _index("deleted", "owner_id", "conversation_id", "status", "run", "seq", where={"status": Status.DELETED.value}),
    # In the order of a search's hits, so that the newest of many are read without sorting them all.
    _index("words", "owner_id", "words", "-created_at", "-conversation_id", "-seq", where={"words": PRESENT}),
    _index("unindexed", "unindexed", "owner_id", where={"unindexed": True}),
)
"""The indexes of messages that every revision has."""

INDEXES: dict[str, list[IndexModel]] = {
    "conversations": [
        *CONVERSATION_INDEXES,
        IN_CONTEXT,
        _index("by_external_id", "owner_id", "external_id", "-updated_at", "-id", where={"external_id": SOME_TEXT}),
        _index("by_project", "owner_id", "project_id", "-updated_at", "-id", where={"project_id": PRESENT}),
        # With nothing that an append changes. The ids of those with a label are read from it alone.
        _index("labels", "owner_id", "labels", "id", where={"labels": PRESENT}),
        _index("slots", "owner_id", "context_id", "project_id", "slot", unique=True, where={"slot": True}),
        # Whose conversations name a provider: no owner is asked for. Only those that name one have a place in it, and
        # an append moves none.
        _index("by_provider", "llm_provider_id", where={"llm_provider_id": PRESENT}),
    ],
    "messages": [
        *MESSAGE_INDEXES,
        # All that statistics read, so that no message is read for them: also the model, or each would be, to see that
        # it has one. Only answers have.
        _index(
            "by_model",
            "owner_id",
            "created_at",
            "status",
            "duration_ms",
            "input_tokens",
            "output_tokens",
            "model",
            where={"model": SOME_TEXT},
        ),
    ],
    # No index has what a flush changes but that of expiry, which the sweep reads.
    "turns": [_index("conversation", "owner_id", "conversation_id"), _index("expiry", "until")],
    "turn_events": [_index("turn", "owner_id", "conversation_id", "message_id", "n")],
    "users": [_index("owner", "owner_id")],
    "projects": [
        _index("by_creation", "owner_id", "-created_at", "-id"),
        _index("remains", "deleted_at", "owner_id", where={"deleted_at": PRESENT}),
    ],
    "documents": [
        _index("by_id", "owner_id", "project_id", "id"),
        _index("by_path", "owner_id", "project_id", "file_path", where={"content": PRESENT}),
        _index("rubbish", "has_rubbish", "owner_id", "project_id", where={"has_rubbish": True}),
    ],
    # What a chunk and a vector are known by: their `_id` is the driver's, so that they have no second long key.
    "chunks": [_index("place", "owner_id", "project_id", "document_id", "content", "n", unique=True)],
    "vectors": [_index("place", "owner_id", "project_id", "space", "document_id", "content", "n", unique=True)],
    "llm_providers": [_index("default", "is_default", unique=True, where={"is_default": True})],
    "api_keys": [_index("owner", "owner_id", "created_at")],
    "requests": [
        _index("expiry", "owner_id", "expires_at"),
        _index("location", "owner_id", "location", where={"location": SOME_TEXT}),
    ],
    "erasures": [],
}
"""The indexes of each collection at the newest revision."""

WITHOUT_PROVIDERS = {"conversations": INDEXES["conversations"][:-1]}
PROJECT_INDEXES = [_index("owner", "owner_id", "id")]

EARLIER: dict[str, dict[str, list[IndexModel]]] = {
    "0001": {
        "conversations": [*CONVERSATION_INDEXES, SLOT, _index("by_context", *BY_CONTEXT)],
        "messages": [*MESSAGE_INDEXES],
        "requests": INDEXES["requests"][:1],
    },
    "0002": {"conversations": [*CONVERSATION_INDEXES, SLOT, IN_CONTEXT], "messages": [*MESSAGE_INDEXES]},
    "0003": {**WITHOUT_PROVIDERS, "messages": [*MESSAGE_INDEXES], "projects": PROJECT_INDEXES},
    "0004": {**WITHOUT_PROVIDERS, "projects": PROJECT_INDEXES},
    "0005": WITHOUT_PROVIDERS,
}
"""The indexes of an earlier revision, of the collections whose indexes were others."""

SPREAD = (
    "users",
    "conversations",
    "messages",
    "requests",
    "projects",
    "turns",
    "turn_events",
    "documents",
    "chunks",
    "vectors",
)
"""The sharded collections, by owner. API keys are not: a key is looked up before its owner is known. Providers are of
no owner, and traces of erasures name none."""

NAMESPACE_EXISTS, NO_SUCH_INDEX, SAME_KEYS = 48, 27, 85


async def revision(view: View) -> Schema:
    """The schema that the database has."""
    found = await view.schema.find_one({"_id": "schema"})
    return Schema() if found is None else Schema(found["revision"], found.get("served_from"))


async def migrate(database: Database, target: str) -> None:
    """Bring the schema to `target`. Safe to call from many processes at once, and again after one was killed."""
    target = target_revision(target, REVISIONS)
    before = await database.read(revision)
    if needs_migration(before, target, REVISIONS, database.name):
        is_downgrade = before.revision is not None and before.revision > target
        work = _drop if target == "base" else partial(_lower if is_downgrade else _build, target=target)
        await database.change(work, atomic=False)


async def _build(view: View, target: str) -> None:
    """Make what a revision has, then note the revision."""
    await _make_collections(view, target)
    if target >= "0006":
        await _make_default(view)
    await _end_future(view)
    await _note(view, target)


async def _lower(view: View, target: str) -> None:
    """Remove what an earlier revision does not know, and note it before the newer one's indexes go.

    Until then the database is one of the newer revision, from then on one of the earlier with a few indexes more.
    """
    await _end_turns(view)
    if target < "0006":
        await _forget_replacements(view)
    if target < "0005":
        await _forget_documents(view)
    if target < "0003":
        await _forget_model(view)
    await _note(view, target)
    for name, since in SINCE.items():
        if target < since:
            await view.database.drop_collection(name)
    await _make_collections(view, target)


async def _make_collections(view: View, target: str) -> None:
    found = await (await view.database.list_collections()).to_list()
    there = {each["name"]: each.get("options", {}).get("validator") for each in found}
    for name, validator in VALIDATORS.items():
        if target < SINCE.get(name, target):
            continue
        if name not in there:
            await _create(view, name, validator)
        elif there[name] != validator:
            await view.database.command("collMod", name, validator=validator)
        if INDEXES[name]:
            await _make_indexes(view.database[name], EARLIER.get(target, {}).get(name, INDEXES[name]))


async def _note(view: View, target: str) -> None:
    """Note the revision, and who can use it."""
    known = {"revision": target, "served_from": SERVED_FROM.get(target)}
    change = {"$set": {name: value for name, value in known.items() if value is not None}}
    if known["served_from"] is None:
        change["$unset"] = {"served_from": ""}
    await view.schema.update_one({"_id": "schema"}, change, upsert=True)


async def _end_turns(view: View) -> None:
    """End the answers in progress, with what there is of them; the next opening indexes their words.

    Each step may be repeated: the lease goes after its answer has ended, and the events after the lease.
    """
    rows = MongoRows(view, LongTexts(), index=False)
    async for each in view.turns.find({}, {"_id": 1}):
        key = turn_key(each)
        (progress,) = await rows.events_of([TurnPlace(key)], ALL_BYTES)
        await rows.set_answer(key, Ending.of(fold(progress.events), Status.INTERRUPTED))
        await rows.end_turn(key)
    ended = {"$set": {"status": Status.INTERRUPTED.value}}
    await view.messages.update_many({"status": Status.IN_PROGRESS.value}, ended)


async def _make_default(view: View) -> None:
    """Have a default provider: that of a new database, unless there is one."""
    if await view.llm_providers.find_one({"is_default": True}, {"_id": 1}) is not None:
        return
    new = extractive()
    where, default = {"_id": new.pop("_id")}, {"is_default": new.pop("is_default")}
    with suppress(DuplicateKeyError):  # another process was faster
        await view.llm_providers.update_one(where, {"$set": default, "$setOnInsert": new}, upsert=True)


async def _forget_replacements(view: View) -> None:
    """Finish removals of providers that were cut off, and remove what came with 0006 of the others, which stay."""
    rows = MongoRows(view, LongTexts(), index=False)
    for row in await rows.providers():
        if row.replaced_by is not None:
            while await rows.replace_provider(row.provider.id, row.replaced_by):
                pass
            await rows.remove_provider(row.provider.id)
    some = {"$or": [{name: PRESENT} for name in NEW_PROVIDER_FIELDS]}
    await view.llm_providers.update_many(some, {"$unset": dict.fromkeys(NEW_PROVIDER_FIELDS, "")})
    await view.schema.delete_one({"_id": PROVIDERS})


async def _forget_documents(view: View) -> None:
    """Remove documents, and what came with 0005 of projects; a project that is being removed goes, and what is in it is
    removed by the next opening. The collections stay until the revision is noted."""
    rows = MongoRows(view, LongTexts(), index=False)
    async for each in view.projects.find({"deleted_at": PRESENT}, {"owner_id": 1, "id": 1}):
        key = ProjectKey(each["owner_id"], to_uuid(each["id"]))
        while await rows.hide_conversations(key):
            pass
        await view.projects.delete_one(view.one(key.owner, each["_id"]))
    for collection in (view.documents, view.chunks, view.vectors):
        await collection.delete_many({})
    some = {"$or": [{name: PRESENT} for name in NEW_PROJECT_FIELDS]}
    await view.projects.update_many(some, {"$unset": dict.fromkeys(NEW_PROJECT_FIELDS, "")})


async def _forget_model(view: View) -> None:
    """Remove what came with 0003, as the other databases do: an earlier revision would not remove it with the rest.

    Of two slots of a context, in different projects, one is enough.
    """
    in_project = {"project_id": PRESENT}
    await view.conversations.update_many(in_project, {"$unset": {"project_id": "", "slot": ""}})
    for collection, names in ((view.conversations, ("labels", "llm_provider_id")), (view.messages, NEW_FIELDS)):
        some = {"$or": [{name: PRESENT} for name in names]}
        await collection.update_many(some, {"$unset": dict.fromkeys(names, "")})


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
