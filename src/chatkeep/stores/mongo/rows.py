"""The statements of the MongoDB store, and how its documents become records.

Every filter names the owner, also beside `_id`, so that a sharded database asks one shard only. Plain
operators only: in a pipeline a user's text that begins with $ would be evaluated.
"""

import json
from collections.abc import Collection as Several
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

import bson
from bson.binary import UuidRepresentation
from bson.codec_options import CodecOptions
from bson.int64 import Int64
from pymongo import ASCENDING, DESCENDING, UpdateOne

from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import Conflict, InvalidInput
from chatkeep.ids import valid_id
from chatkeep.model import (
    CONVERSATION_FIELDS,
    MESSAGE_FIELDS,
    ROLES,
    STATUSES,
    Conversation,
    ImportedConversation,
    Message,
    NewConversation,
    NewMessage,
    Page,
    Role,
    SearchHit,
    Source,
    Status,
    stored,
)
from chatkeep.store import MAX_LIMIT, ListOrder
from chatkeep.stores.append import Known, Placed, State, plan
from chatkeep.stores.mongo.database import MAX_DOCUMENT_BYTES, TOO_LARGE, Document, View
from chatkeep.stores.window import Window
from chatkeep.tree import Position, Run, Segment, Tree
from chatkeep.values import from_micros, json_text, now, to_micros
from chatkeep.words import holds, index_words, query_words, snippet

type Key = tuple[str, UUID]
"""The owner, and the conversation."""

INDEX_SLICE = 500
"""Messages that are indexed at once at most."""

MAX_BIGINT = 2**63 - 1
DELETED = Status.DELETED.value
NOT_DELETED = {"$ne": DELETED}
WITHOUT_WORDS = {"words": 0}
CODEC: CodecOptions[Document] = CodecOptions(uuid_representation=UuidRepresentation.STANDARD)
SURELY_FITS = MAX_DOCUMENT_BYTES // 8
"""A text of so many characters leaves room for itself in UTF-8, and for its words."""

REST_BYTES = 4_096
"""What the fields take that are not counted one by one."""


def conversation_filter(key: Key) -> Document:
    """One conversation that is not being removed."""
    return {"_id": {"o": key[0], "c": key[1]}, "owner_id": key[0], "deleted_at": None}


def message_filter(key: Key, **more: object) -> Document:
    """Messages of one conversation."""
    return {"owner_id": key[0], "conversation_id": key[1], **more}


def message_id(key: Key, id_: UUID) -> Document:
    """The `_id` of a message; what it consists of always stands in this order."""
    return {"o": key[0], "c": key[1], "m": id_}


def _time(micros: int | None) -> datetime | None:
    return None if micros is None else from_micros(micros)


def micros(moment: datetime) -> Int64:
    """A time as it is stored."""
    return Int64(to_micros(moment))


# --- conversations ---------------------------------------------------------------------------------------


def to_conversation(document: Mapping[str, Any]) -> Conversation:
    """The record of a conversation."""
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": document["id"],
            "owner_id": document["owner_id"],
            "title": document["title"],
            "context_id": document["context_id"],
            "external_id": document["external_id"],
            "metadata": json.loads(document["metadata"]),
            "last_seq": document["last_seq"],
            "head_id": document["head_id"],
            "created_at": from_micros(document["created_at"]),
            "updated_at": from_micros(document["updated_at"]),
        },
    )


def new_conversation(key: Key, new: NewConversation, *, slot: bool) -> Document:
    """The document of a conversation without messages."""
    moment = now()
    updated_at = new.updated_at if isinstance(new, ImportedConversation) else None
    metadata = json_text(new.metadata)
    check_fits(metadata)
    return {
        "_id": {"o": key[0], "c": key[1]},
        "owner_id": key[0],
        "id": key[1],
        "title": new.title,
        "context_id": new.context_id,
        "external_id": new.external_id,
        "metadata": metadata,
        "last_seq": 0,
        "head_seq": None,
        "head_id": None,
        "runs": None,
        "straight": True,
        "fingerprint": new.fingerprint(),
        "created_at": micros(moment),
        "updated_at": micros(updated_at or moment),
        **({"slot": True} if slot else {}),
    }


async def create(view: View, document: Document) -> None:
    """Store a conversation, and note its owner first. Raises DuplicateKeyError when its id or slot is taken."""
    owner = {"_id": document["owner_id"], "owner_id": document["owner_id"]}
    if await view.users.find_one(owner) is None:
        await view.users.update_one(owner, {"$setOnInsert": {"created_at": document["created_at"]}}, upsert=True)
    await view.conversations.insert_one(document)


async def created_before(view: View, key: Key, new: NewConversation) -> Conversation | None:
    """The conversation with this id, None where it is being removed or gone. Raises Conflict for other values."""
    found = await view.conversations.find_one(conversation_filter(key))
    if found is None:
        return None
    if found["fingerprint"] != new.fingerprint():
        raise Conflict("this conversation id is already used for other values", got=key[1])
    return to_conversation(found)


async def newest(view: View, owner: str, context_id: str | None) -> Conversation | None:
    """The owner's most recently updated conversation of a context."""
    where = {"owner_id": owner, "context_id": context_id, "deleted_at": None}
    found = await view.conversations.find_one(where, sort=BY_UPDATE)
    return None if found is None else to_conversation(found)


async def conversation(view: View, key: Key) -> Document | None:
    """One conversation's document."""
    return await view.conversations.find_one(conversation_filter(key), session=view.session)


async def exists_elsewhere(view: View, id_: UUID) -> bool:
    """Whether anybody has this id: the one question that does not name an owner."""
    return await view.conversations.find_one({"id": id_, "deleted_at": None}, {"_id": 1}) is not None


async def set_values(view: View, key: Key, values: Mapping[str, Any]) -> None:
    """Set fields of one conversation; their names come from this package, never from a caller."""
    check_fits(values.get("metadata"))
    await view.conversations.update_one(conversation_filter(key), {"$set": values}, session=view.session)


BY_UPDATE = [("updated_at", DESCENDING), ("id", DESCENDING)]
BY_ID = [("id", ASCENDING)]


async def list_conversations(
    view: View,
    owner: str,
    context_id: str | None,
    order: ListOrder,
    scope: tuple[object, ...],
    limit: int,
    cursor: str | None,
    offset: int,
    *,
    total: bool,
) -> Page[Conversation]:
    """A page of the owner's conversations."""
    where: Document = {"owner_id": owner, "deleted_at": None}
    if context_id is not None:
        where["context_id"] = context_id
    counted = await view.conversations.count_documents(where) if total else None
    where |= _list_start(order, scope, cursor)
    by = BY_ID if order == "id" else BY_UPDATE
    found = await view.conversations.find(where, sort=by, skip=offset, limit=limit + 1).to_list()
    items = [to_conversation(each) for each in found[:limit]]
    following = _list_cursor(order, scope, items[-1]) if len(found) > limit else None
    return Page(items=items, total=counted, next=following)


def _list_start(order: ListOrder, scope: tuple[object, ...], cursor: str | None) -> Document:
    if cursor is None:
        return {}
    if order == "id":
        (id_,) = decode_cursor(cursor, "conversations", scope, str)
        return {"id": {"$gt": valid_id(id_)}}
    updated_at, id_ = decode_cursor(cursor, "conversations", scope, int, str)
    behind = [{"updated_at": {"$lt": updated_at}}, {"updated_at": updated_at, "id": {"$lt": valid_id(id_)}}]
    return {"updated_at": {"$lte": updated_at}, "$or": behind}


def _list_cursor(order: ListOrder, scope: tuple[object, ...], last: Conversation) -> str:
    position = (last.id.hex,) if order == "id" else (to_micros(last.updated_at), last.id.hex)
    return encode_cursor("conversations", scope, *position)


# --- appending -------------------------------------------------------------------------------------------


class Item(NamedTuple):
    """One message for the end of a conversation, on its way into a group."""

    key: Key
    message: NewMessage
    """With an id."""
    fingerprint: bytes
    may_repeat: bool
    """Whether the caller brought the id, so that the message may be there already."""

    @property
    def place(self) -> tuple[Key, UUID]:
        """What the message is known by."""
        assert self.message.id is not None  # noqa: S101 - the store gave it one
        return self.key, self.message.id


def check_fits(*texts: str | None) -> None:
    """Raise InvalidInput where what MongoDB takes in one document would be exceeded."""
    if any(len(text) > SURELY_FITS for text in texts if text):
        size = sum(len(text.encode()) for text in texts if text)
        if size + REST_BYTES > MAX_DOCUMENT_BYTES:
            raise InvalidInput(TOO_LARGE, got=f"{size:,} bytes")


def check_message_fits(message: NewMessage, *, search: bool) -> None:
    """The same for a message. Its words are in the document, too."""
    total = len(message.content)
    if message.metadata or message.sources:
        total += len(json_text(message.metadata)) + len(json_text(message.sources))
    if total <= SURELY_FITS:
        return
    words = index_words(message.content) if search else []
    values = [message.content, json_text(message.metadata), json_text(message.sources), words]
    size = len(bson.encode({"values": values})) + REST_BYTES
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidInput(TOO_LARGE, got=f"{size:,} bytes")


def to_state(found: Mapping[str, Any], head: Position | None) -> State:
    """What an append changes of a conversation."""
    tree = Tree.load(found["last_seq"], found["runs"])
    return State(tree, head, found["head_id"], found["title"], from_micros(found["updated_at"]))


def known_state(found: Mapping[str, Any]) -> State | None:
    """The same where the head's place is known, so that nothing else need be read."""
    head = None
    if found["head_seq"] is not None:
        head = Tree.load(found["last_seq"], found["runs"]).find(found["head_seq"])
        if head is None:
            return None
    return to_state(found, head)


def saved(state: State) -> Document:
    """The update that writes what an append changed of its conversation."""
    runs, head_seq = state.tree.dump(), state.head.seq if state.head else None
    values = {
        "last_seq": state.tree.last_seq,
        "head_seq": head_seq,
        "head_id": state.head_id,
        "runs": runs,
        "straight": runs is None and head_seq == state.tree.last_seq,
        "title": state.title,
    }
    return {"$set": values, "$max": {"updated_at": micros(state.updated_at)}}


def to_document(key: Key, placed: Placed, *, search: bool) -> Document:
    """The document of a message. What is absent has no field."""
    message, position, fingerprint = placed
    document: Document = {
        "_id": message_id(key, message.id),
        "owner_id": key[0],
        "conversation_id": key[1],
        "seq": position.seq,
        "run": position.run,
        "depth": position.depth,
        "parent_id": message.parent_id,
        "role": message.role.value,
        "content": message.content,
        "status": message.status.value,
        "created_at": micros(message.created_at),
        "fingerprint": fingerprint,
    }
    if position.depth < position.seq:
        document["branched"] = True
    if message.sources:
        document["sources"] = json_text(message.sources)
    if message.metadata:
        document["metadata"] = json_text(message.metadata)
    if message.external_id is not None:
        document["external_id"] = message.external_id
    if message.sent_at is not None:
        document["sent_at"] = micros(message.sent_at)
    return document | ({"words": index_words(message.content)} if search else {"unindexed": True})


async def append_alone(view: View, item: Item, moment: datetime, *, search: bool) -> Message | None:
    """Append one message to a conversation that never branched, in two operations; None where that is not so.

    It begins with the write: a conflict with somebody else shows at once.
    """
    where = {**conversation_filter(item.key), "straight": True, "last_seq": {"$gte": 1}}
    if item.message.role is Role.USER:
        where["title"] = {"$ne": None}
    change = {
        "$inc": {"last_seq": 1, "head_seq": 1},
        "$set": {"head_id": item.message.id},
        "$max": {"updated_at": micros(moment)},
    }
    before = await view.conversations.find_one_and_update(where, change, BEFORE, session=view.session)
    if before is None:
        return None
    tree = Tree(before["last_seq"], [Run(-1, 0, 1, before["last_seq"], before["last_seq"])])
    state = State(tree, tree.find(tree.last_seq), before["head_id"], "", moment)
    (placed,) = plan(item.key[1], state, [item.message], [item.fingerprint], {}, moment)
    assert isinstance(placed, Placed)  # noqa: S101 - nothing was known
    await view.messages.insert_one(to_document(item.key, placed, search=search), session=view.session)
    return placed.message


BEFORE = {"last_seq": 1, "head_id": 1}


async def conversations(view: View, keys: Several[Key]) -> dict[Key, Document]:
    """Those of the conversations that are there, of any number of owners."""
    where = {
        "owner_id": {"$in": list({owner for owner, _ in keys})},
        "_id": {"$in": [{"o": owner, "c": id_} for owner, id_ in keys]},
        "deleted_at": None,
    }
    found = await view.conversations.find(where, session=view.session).to_list()
    return {(each["owner_id"], each["id"]): each for each in found}


async def messages_of_many(view: View, places: Several[tuple[Key, UUID]]) -> dict[tuple[Key, UUID], Document]:
    """Those of the messages that are there, of any number of conversations."""
    where = {
        "owner_id": {"$in": list({key[0] for key, _ in places})},
        "_id": {"$in": [message_id(key, id_) for key, id_ in places]},
    }
    found = await view.messages.find(where, WITHOUT_WORDS, session=view.session).to_list()
    return {((each["owner_id"], each["conversation_id"]), each["_id"]["m"]): each for each in found}


async def save(view: View, states: Mapping[Key, State], new: Sequence[tuple[Key, Placed]], *, search: bool) -> None:
    """Write what appends changed of their conversations, and the new messages."""
    updates = [UpdateOne(conversation_filter(key), saved(state)) for key, state in states.items()]
    await view.conversations.bulk_write(updates, session=view.session)
    documents = [to_document(key, placed, search=search) for key, placed in new]
    await view.messages.insert_many(documents, session=view.session)


def to_known(document: Mapping[str, Any]) -> Known:
    """Where a message stands."""
    return Known(Position(document["seq"], document["run"], document["depth"]), document["fingerprint"])


async def position(view: View, key: Key, tree: Tree, seq: int) -> Position:
    """Where message `seq` stands: mostly the tree knows it, which needs no query."""
    known = tree.find(seq)
    if known is not None:
        return known
    fields = {"seq": 1, "run": 1, "depth": 1}
    found = await view.messages.find_one(message_filter(key, seq=seq), fields, session=view.session)
    assert found is not None  # noqa: S101 - seqs are dense
    return Position(found["seq"], found["run"], found["depth"])


# --- reading messages ------------------------------------------------------------------------------------


def to_message(document: Mapping[str, Any]) -> Message:
    """The record of a message."""
    sources, metadata = document.get("sources"), document.get("metadata")
    return stored(
        Message,
        MESSAGE_FIELDS,
        {
            "id": document["_id"]["m"],
            "conversation_id": document["conversation_id"],
            "seq": document["seq"],
            "parent_id": document["parent_id"],
            "role": ROLES[document["role"]],
            "content": document["content"],
            "status": STATUSES[document["status"]],
            "sources": tuple(map(Source.model_validate, json.loads(sources))) if sources else (),
            "metadata": json.loads(metadata) if metadata else {},
            "external_id": document.get("external_id"),
            "sent_at": _time(document.get("sent_at")),
            "created_at": from_micros(document["created_at"]),
        },
    )


async def messages(
    view: View, where: Document, *, direction: int = ASCENDING, limit: int = 0, skip: int = 0
) -> list[Message]:
    """The messages that a filter names, by seq."""
    cursor = view.messages.find(
        where,
        WITHOUT_WORDS,
        sort=[("seq", direction)],
        limit=limit,
        skip=skip,
        batch_size=limit or MAX_LIMIT,
        session=view.session,
    )
    return [to_message(document) for document in await cursor.to_list()]


async def log(view: View, key: Key, after: int, limit: int) -> list[Message]:
    """What was appended after a seq, on all branches."""
    after = max(0, min(after, MAX_BIGINT))
    return await messages(view, message_filter(key, seq={"$gt": after}), limit=limit)


async def message(view: View, key: Key, id_: UUID) -> Document | None:
    """One message's document, deleted or not."""
    where = {"_id": message_id(key, id_), "owner_id": key[0]}
    return await view.messages.find_one(where, WITHOUT_WORDS, session=view.session)


async def messages_by_seq(view: View, key: Key, seqs: Iterable[int]) -> list[Message]:
    """The messages with these seqs that are not deleted, by seq."""
    return await messages(view, message_filter(key, seq={"$in": list(seqs)}, status=NOT_DELETED))


async def next_in_run(view: View, key: Key, parent: Position) -> list[int]:
    """The seq of the message that continues the run of `parent` after it; none at the tip."""
    # On the trunk that is the next seq; the index of runs knows the others.
    trunk = message_filter(key, run=parent.run, seq=parent.seq + 1)
    branched = message_filter(key, run=parent.run, seq={"$gt": parent.seq}, branched=True)
    for where in (trunk, branched):
        found = await view.messages.find_one(where, {"seq": 1}, sort=[("seq", ASCENDING)])
        if found is not None:
            return [found["seq"]]
    return []


async def path_messages(view: View, key: Key, segments: Iterable[Segment], window: Window) -> list[Message]:
    """The messages of a page in reading order, and one more where there is more."""
    found: list[Message] = []
    direction = DESCENDING if window.order == "desc" else ASCENDING
    skip = window.offset
    for segment in segments:
        where = _in_segment(key, segment) | {"status": NOT_DELETED}
        more = await messages(view, where, direction=direction, limit=window.limit + 1 - len(found), skip=skip)
        if skip:
            skip = 0 if more else skip - await view.messages.count_documents(where)
        found += more
        if len(found) > window.limit:
            break
    return found


def _in_segment(key: Key, segment: Segment) -> Document:
    where = message_filter(key, seq={"$gte": segment.low, "$lte": segment.high})
    return where if segment.trunk else where | {"run": segment.run, "branched": True}


async def count_deleted(view: View, key: Key, path: Iterable[Segment]) -> int:
    """How many messages of a path are deleted."""
    return sum(
        [
            await view.messages.count_documents(
                message_filter(key, status=DELETED, run=s.run, seq={"$gte": s.low, "$lte": s.high})
            )
            for s in path
        ]
    )


async def erase_message(view: View, key: Key, id_: UUID) -> bool:
    """Leave of a message its place, its id and its fingerprint: what a late retry needs. Say whether it was there."""
    where = {"_id": message_id(key, id_), "owner_id": key[0], "status": NOT_DELETED}
    change = {
        "$set": {"content": "", "status": DELETED, "words": []},
        "$unset": {"sources": "", "metadata": "", "external_id": "", "unindexed": ""},
    }
    return (await view.messages.update_one(where, change)).modified_count == 1


# --- search ----------------------------------------------------------------------------------------------

type Place = tuple[int, UUID, int]
"""When a message was stored, in which conversation, and its seq: the order of a search's hits."""

HIT_ORDER = [("created_at", DESCENDING), ("conversation_id", DESCENDING), ("seq", DESCENDING)]


async def search(
    view: View, owner: str, phrases: list[list[str]], below: Place | None, limit: int
) -> list[tuple[Place, SearchHit]]:
    """Messages of the owner that hold every phrase, stored last first, each with its place in that order."""
    words, exact = query_words(phrases)
    hits: list[tuple[Place, SearchHit]] = []
    while len(hits) < limit:
        where = {"owner_id": owner, "words": {"$all": words}, **_below(below)}
        found = await view.messages.find(where, WITHOUT_WORDS, sort=HIT_ORDER, limit=limit).to_list()
        there = await conversations(view, {(owner, each["conversation_id"]) for each in found}) if found else {}
        for each in found:
            talk = there.get((owner, each["conversation_id"]))
            if talk is not None and (exact or holds(each["content"], phrases)):
                hit = SearchHit(
                    message=to_message(each), title=talk["title"], snippet=snippet(each["content"], phrases)
                )
                hits.append((_place(each), hit))
        if len(found) < limit:
            break
        below = _place(found[-1])
    return hits[:limit]


def _place(document: Mapping[str, Any]) -> Place:
    return document["created_at"], document["conversation_id"], document["seq"]


def _below(place: Place | None) -> Document:
    if place is None:
        return {}
    created_at, id_, seq = place
    behind = [
        {"created_at": {"$lt": created_at}},
        {"created_at": created_at, "conversation_id": {"$lt": id_}},
        {"created_at": created_at, "conversation_id": id_, "seq": {"$lt": seq}},
    ]
    return {"created_at": {"$lte": created_at}, "$or": behind}


def place_after(cursor: str, scope: tuple[object, ...]) -> Place:
    """Where a search goes on."""
    micros, id_, seq = decode_cursor(cursor, "search", scope, int, str, int)
    return micros, valid_id(id_), seq


def search_cursor(scope: tuple[object, ...], place: Place) -> str:
    """The inverse of `place_after`."""
    return encode_cursor("search", scope, int(place[0]), place[1].hex, place[2])


async def index_slice(view: View) -> bool:
    """Index some messages that were stored with search=off; False when all are."""
    found = await view.messages.find({"unindexed": True}, {"owner_id": 1, "content": 1}, limit=INDEX_SLICE).to_list()
    updates = [
        UpdateOne(
            {"_id": each["_id"], "owner_id": each["owner_id"], "unindexed": True},
            {"$set": {"words": index_words(each["content"])}, "$unset": {"unindexed": ""}},
        )
        for each in found
    ]
    if updates:
        await view.messages.bulk_write(updates, ordered=False)
    return bool(found)
