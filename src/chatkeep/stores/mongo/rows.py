"""The statements of the MongoDB store, and how its documents become records.

Every filter names the owner, also beside `_id`, so that a sharded database asks one shard only. Plain
operators only: in a pipeline a user's text that begins with $ would be evaluated.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, cast, override
from uuid import UUID

import bson
from bson.int64 import Int64
from pymongo import ASCENDING, DESCENDING, UpdateOne
from pymongo.errors import DuplicateKeyError

from chatkeep.access import IDS_CLASH
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
    Source,
    Status,
    stored,
)
from chatkeep.store import MAX_LIMIT, ListOrder, Order
from chatkeep.stores.append import Known, Placed, State
from chatkeep.stores.mongo.database import MAX_DOCUMENT_BYTES, TOO_LARGE, Document, View
from chatkeep.stores.rows import Found, Hit, Key, Removed, Rows, StateRow
from chatkeep.stores.window import ListPlace, Window
from chatkeep.tree import Position, Segment
from chatkeep.values import from_micros, json_text, load_json, now, to_micros
from chatkeep.words import index_words, query_words

INDEX_SLICE = 500
"""Messages that are indexed at once at most."""

SLICE = 1_000
"""Messages that one transaction removes at most, which bounds how long it takes."""

DELETED = Status.DELETED.value
NOT_DELETED = {"$ne": DELETED}
WITHOUT_WORDS = {"words": 0}
BY_UPDATE = [("updated_at", DESCENDING), ("id", DESCENDING)]
BY_ID = [("id", ASCENDING)]
HIT_ORDER = [("created_at", DESCENDING), ("conversation_id", DESCENDING), ("seq", DESCENDING)]
STATE = {"last_seq": 1, "head_seq": 1, "head_id": 1, "runs": 1, "title": 1, "updated_at": 1}
PLACE = {"seq": 1, "run": 1, "depth": 1, "fingerprint": 1}
SURELY_FITS = MAX_DOCUMENT_BYTES // 8
"""A text of at most so many characters fits, with its words, whatever its characters are."""

REST_BYTES = 4_096
"""Bytes allowed for the fields that are not measured."""


class MongoRows(Rows):
    """Documents, as one transaction sees them, or each operation for itself."""

    __slots__ = ("_index", "_view")

    reads_visible = False

    def __init__(self, view: View, *, index: bool = True) -> None:
        """Take the view; index=False leaves new messages to `index_slice`."""
        self._view = view
        self._index = index

    # --- conversations ------------------------------------------------------------------------------------

    @override
    async def state(self, key: Key, *, lock: bool = False) -> StateRow | None:
        found = await self._conversation(key, STATE)
        if found is None:
            return None
        updated_at = from_micros(found["updated_at"])
        last_seq, head_seq, head_id = found["last_seq"], found["head_seq"], found["head_id"]
        return StateRow(last_seq, head_seq, head_id, found["runs"], found["title"], updated_at, now())

    @override
    async def conversation(self, key: Key, *, lock: bool = False) -> Conversation | None:
        found = await self._conversation(key)
        return None if found is None else _to_conversation(found)

    async def _conversation(self, key: Key, fields: Document | None = None) -> Document | None:
        view = self._view
        return await view.conversations.find_one(conversation_filter(key), fields, session=view.session)

    async def exists_elsewhere(self, id_: UUID) -> bool:
        return await self._view.conversations.find_one({"id": id_, "deleted_at": None}, {"_id": 1}) is not None

    async def create(self, key: Key, new: NewConversation, *, slot: bool = False) -> Conversation | None:
        document = _new_conversation(key, new, slot=slot)
        await self._note_owner(key[0])
        try:
            await self._view.conversations.insert_one(document)
        except DuplicateKeyError:
            return None
        return _to_conversation(document)

    async def _note_owner(self, owner: str) -> None:
        user = {"_id": owner, "owner_id": owner}
        if await self._view.users.find_one(user) is None:
            await self._view.users.update_one(user, {"$setOnInsert": {"created_at": micros(now())}}, upsert=True)

    async def fingerprint(self, key: Key) -> bytes | None:
        found = await self._conversation(key, {"fingerprint": 1})
        return None if found is None else bytes(found["fingerprint"])

    async def newest(self, owner: str, context_id: str | None) -> Conversation | None:
        where = {"owner_id": owner, "context_id": context_id, "deleted_at": None}
        found = await self._view.conversations.find_one(where, sort=BY_UPDATE)
        return None if found is None else _to_conversation(found)

    async def listed(
        self, owner: str, context_id: str | None, order: ListOrder, after: ListPlace | None, limit: int, offset: int
    ) -> list[Conversation]:
        where = _listed(owner, context_id)
        if after is not None and after.updated_at is not None:
            moment = micros(after.updated_at)
            behind = [{"updated_at": {"$lt": moment}}, {"updated_at": moment, "id": {"$lt": after.id}}]
            where |= {"updated_at": {"$lte": moment}, "$or": behind}
        elif after is not None:
            where["id"] = {"$gt": after.id}
        by = BY_ID if order == "id" else BY_UPDATE
        found = self._view.conversations.find(where, sort=by, skip=offset, limit=limit)
        return [_to_conversation(each) for each in await found.to_list()]

    async def count(self, owner: str, context_id: str | None) -> int:
        return await self._view.conversations.count_documents(_listed(owner, context_id))

    async def set_values(self, key: Key, values: Mapping[str, Any]) -> None:
        check_fits(values.get("metadata"))
        changed = dict(values)
        if "head_seq" in values:
            row = cast("StateRow", await self.state(key))
            changed["straight"] = row.runs is None and (values["head_seq"] or 0) == row.last_seq
        view = self._view
        await view.conversations.update_one(conversation_filter(key), {"$set": changed}, session=view.session)

    # --- messages -----------------------------------------------------------------------------------------

    async def save(self, key: Key, state: State, new: Sequence[Placed]) -> None:
        await save(self._view, {key: state}, [(key, placed) for placed in new], index=self._index)

    async def _find(self, where: Document, fields: Document, **options: Any) -> list[Document]:
        return await self._view.messages.find(where, fields, session=self._view.session, **options).to_list()

    async def _messages(self, where: Document, **options: Any) -> list[Message]:
        options = {"sort": [("seq", ASCENDING)], "batch_size": MAX_LIMIT, **options}
        return [to_message(each) for each in await self._find(where, WITHOUT_WORDS, **options)]

    async def known(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Known]:
        return {each["_id"]["m"]: _to_known(each) for each in await self._find(_by_id(key, ids), PLACE)}

    async def position(self, key: Key, seq: int) -> Position:
        (found,) = await self._find(message_filter(key, seq=seq), PLACE)
        return _to_known(found).position

    async def messages_by_id(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Message]:
        return {message.id: message for message in await self._messages(_by_id(key, ids))}

    async def messages_by_seq(self, key: Key, seqs: Collection[int]) -> list[Message]:
        return await self._messages(message_filter(key, seq={"$in": list(seqs)}, status=NOT_DELETED))

    async def log(self, key: Key, after: int, limit: int) -> list[Message]:
        return await self._messages(message_filter(key, seq={"$gt": after}), limit=limit, batch_size=limit)

    async def next_in_run(self, key: Key, parent: Position) -> list[int]:
        # On the trunk that is the next seq; the index of runs knows the others.
        trunk = message_filter(key, run=parent.run, seq=parent.seq + 1)
        branched = message_filter(key, run=parent.run, seq={"$gt": parent.seq}, branched=True)
        for where in (trunk, branched):
            found = await self._find(where, {"seq": 1}, sort=[("seq", ASCENDING)], limit=1)
            if found:
                return [found[0]["seq"]]
        return []

    async def segment(self, key: Key, segment: Segment, order: Order, limit: int, offset: int) -> list[Message]:
        where = _in_segment(key, segment) | {"status": NOT_DELETED}
        sort = [("seq", DESCENDING if order == "desc" else ASCENDING)]
        return await self._messages(where, sort=sort, limit=limit, skip=offset, batch_size=limit)

    async def count_segment(self, key: Key, segment: Segment, *, deleted: bool) -> int:
        where = _in_segment(key, segment) | {"status": NOT_DELETED}
        if deleted:  # the index of tombstones has the run
            between = {"$gte": segment.low, "$lte": segment.high}
            where = message_filter(key, status=DELETED, run=segment.run, seq=between)
        return await self._view.messages.count_documents(where)

    async def erase_message(self, key: Key, id_: UUID) -> None:
        where = {"_id": message_id(key, id_), "owner_id": key[0], "status": NOT_DELETED}
        change = {
            "$set": {"content": "", "status": DELETED, "words": []},
            "$unset": {"sources": "", "metadata": "", "external_id": "", "unindexed": ""},
        }
        await self._view.messages.update_one(where, change, session=self._view.session)

    def shows_whole(self, found: Sequence[Message], window: Window, segments: Sequence[Segment]) -> bool:
        """A page on the trunk without a missing seq was read before any removal."""
        if not segments:
            return True
        low, high = segments[0].low, segments[0].high
        enough = min(window.limit + 1, high - low + 1)
        if window.offset or not segments[0].trunk or len(segments) > 1 or len(found) != enough:
            return False
        first = high if window.order == "desc" else low
        return found[0].seq == first and abs(found[-1].seq - first) == enough - 1

    # --- search -------------------------------------------------------------------------------------------

    async def search(self, owner: str, phrases: list[list[str]], below: tuple[Any, ...] | None, limit: int) -> Found:
        words, exact = query_words(phrases)
        where: Document = {"owner_id": owner, "words": {"$all": words}, **_below(below)}
        found = await self._find(where, WITHOUT_WORDS, sort=HIT_ORDER, limit=limit)
        there = await self._titles(owner, {each["conversation_id"] for each in found}) if found else {}
        hits = [_to_hit(each, there[id_]) for each in found if (id_ := each["conversation_id"]) in there]
        return Found(hits, exact, _place(found[-1]) if len(found) == limit else None)

    async def _titles(self, owner: str, ids: Collection[UUID]) -> dict[UUID, str | None]:
        """The titles of conversations that are not being removed."""
        where = {"owner_id": owner, "_id": {"$in": [{"o": owner, "c": id_} for id_ in ids]}, "deleted_at": None}
        found = await self._view.conversations.find(where, {"id": 1, "title": 1}).to_list()
        return {each["id"]: each["title"] for each in found}

    async def index_slice(self) -> bool:
        found = await self._find({"unindexed": True}, {"owner_id": 1, "content": 1}, limit=INDEX_SLICE)
        updates = [
            UpdateOne(
                {"_id": each["_id"], "owner_id": each["owner_id"], "unindexed": True},
                {"$set": {"words": index_words(each["content"])}, "$unset": {"unindexed": ""}},
            )
            for each in found
        ]
        if updates:
            await self._view.messages.bulk_write(updates, ordered=False)
        return bool(found)

    # --- removal ------------------------------------------------------------------------------------------

    async def owners_with_remains(self) -> list[str]:
        found = await self._view.conversations.find({"deleted_at": {"$gt": 0}}, {"owner_id": 1}).to_list()
        return sorted({each["owner_id"] for each in found})

    async def lock_owner(self, owner: str) -> None:
        """Do nothing: MongoDB has no lock that creating a conversation would wait for."""

    async def hide(self, key: Key) -> bool:
        where = {"_id": {"o": key[0], "c": key[1]}, "owner_id": key[0]}
        done = await self._view.conversations.update_one(where, _hidden(), session=self._view.session)
        return done.matched_count == 1

    async def hide_slice(self, owner: str) -> bool:
        where = {"owner_id": owner, "deleted_at": None}
        found = await self._view.conversations.find(where, {"_id": 1}, limit=SLICE).to_list()
        if found:
            some = {**where, "_id": {"$in": [each["_id"] for each in found]}}
            await self._view.conversations.update_many(some, _hidden())
        return len(found) == SLICE

    async def purge_slice(self, owner: str) -> Removed | None:
        """Remove some of a conversation's messages, or the conversation after the last of them."""
        where = {"owner_id": owner, "deleted_at": {"$gt": 0}}
        hidden = await self._view.conversations.find_one(where, {"id": 1}, session=self._view.session)
        if hidden is None:
            return None
        key = owner, hidden["id"]
        last = await self._find(message_filter(key), {"seq": 1}, sort=[("seq", ASCENDING)], limit=1, skip=SLICE - 1)
        upto = message_filter(key, **({"seq": {"$lte": last[0]["seq"]}} if last else {}))
        indexed = {**upto, "words": {"$exists": True}, "content": {"$ne": ""}}
        count = await self._view.messages.count_documents(indexed, session=self._view.session)
        gone = (await self._view.messages.delete_many(upto, session=self._view.session)).deleted_count
        if last:
            return Removed(0, gone, count)
        one = {"_id": hidden["_id"], **where}
        removed = await self._view.conversations.delete_one(one, session=self._view.session)
        return Removed(removed.deleted_count, gone, count)

    async def remove_owner(self, owner: str) -> int | None:
        await self._view.users.delete_one({"_id": owner, "owner_id": owner})
        if await self._view.conversations.find_one({"owner_id": owner}, {"_id": 1}) is not None:
            return None
        left = await self._view.messages.count_documents({"owner_id": owner})
        return left + await self._view.users.count_documents({"owner_id": owner})

    async def begin_rename(self, old: str, new: str) -> set[UUID]:
        """Note the new owner and return the conversations to move. Raises Conflict if both have one of them."""
        ids = await self._ids_of(old)
        if not ids.isdisjoint(await self._ids_of(new)):
            raise Conflict(IDS_CLASH)
        if ids:
            await self._note_owner(new)
        return ids

    async def _ids_of(self, owner: str) -> set[UUID]:
        """The ids of all conversations of an owner, hidden ones too."""
        found = await self._view.conversations.find({"owner_id": owner}, {"id": 1}).to_list()
        return {each["id"] for each in found}

    async def move(self, id_: UUID, old: str, new: str) -> bool:
        """Give one conversation with its messages to another owner, whose name is in every `_id`."""
        view, key = self._view, (old, id_)
        conversation = await self._conversation(key)
        if conversation is None:
            return False
        if conversation.get("slot") and await self._slot_taken(new, conversation["context_id"]):
            del conversation["slot"]
        found = await view.messages.find(message_filter(key), session=view.session).to_list()
        moved = [{**each, "_id": message_id((new, id_), each["_id"]["m"]), "owner_id": new} for each in found]
        await view.messages.delete_many(message_filter(key), session=view.session)
        await view.conversations.delete_one(conversation_filter(key), session=view.session)
        renamed = {**conversation, "_id": {"o": new, "c": id_}, "owner_id": new}
        await view.conversations.insert_one(renamed, session=view.session)
        for start in range(0, len(moved), SLICE):
            await view.messages.insert_many(moved[start : start + SLICE], session=view.session)
        return True

    async def _slot_taken(self, owner: str, context_id: str | None) -> bool:
        where = {"owner_id": owner, "context_id": context_id, "slot": True}
        return await self._view.conversations.find_one(where, {"_id": 1}, session=self._view.session) is not None

    async def end_rename(self, owner: str) -> None:
        """Remove an owner whose conversations were moved."""
        await self._view.users.delete_one({"_id": owner, "owner_id": owner})


async def save(view: View, states: Mapping[Key, State], new: Sequence[tuple[Key, Placed]], *, index: bool) -> None:
    """Write what appends changed of their conversations, and the new messages."""
    updates = [UpdateOne(conversation_filter(key), _saved(state)) for key, state in states.items()]
    await view.conversations.bulk_write(updates, session=view.session)
    documents = [to_document(key, placed, index=index) for key, placed in new]
    await view.messages.insert_many(documents, session=view.session)


# --- filters ----------------------------------------------------------------------------------------------


def conversation_filter(key: Key) -> Document:
    """One conversation that is not being removed."""
    return {"_id": {"o": key[0], "c": key[1]}, "owner_id": key[0], "deleted_at": None}


def message_filter(key: Key, **more: object) -> Document:
    """Messages of one conversation."""
    return {"owner_id": key[0], "conversation_id": key[1], **more}


def message_id(key: Key, id_: UUID) -> Document:
    """The `_id` of a message; what it consists of always stands in this order."""
    return {"o": key[0], "c": key[1], "m": id_}


def _by_id(key: Key, ids: Collection[UUID]) -> Document:
    return {"owner_id": key[0], "_id": {"$in": [message_id(key, id_) for id_ in ids]}}


def _in_segment(key: Key, segment: Segment) -> Document:
    where = message_filter(key, seq={"$gte": segment.low, "$lte": segment.high})
    return where if segment.trunk else where | {"run": segment.run, "branched": True}


def _listed(owner: str, context_id: str | None) -> Document:
    where: Document = {"owner_id": owner, "deleted_at": None}
    return where if context_id is None else where | {"context_id": context_id}


def _below(place: tuple[Any, ...] | None) -> Document:
    if place is None:
        return {}
    created_at, id_, seq = place[0], valid_id(place[1]), place[2]
    behind = [
        {"created_at": {"$lt": created_at}},
        {"created_at": created_at, "conversation_id": {"$lt": id_}},
        {"created_at": created_at, "conversation_id": id_, "seq": {"$lt": seq}},
    ]
    return {"created_at": {"$lte": created_at}, "$or": behind}


def _hidden() -> Document:
    return {"$set": {"deleted_at": micros(now())}, "$unset": {"slot": ""}}


# --- documents and records --------------------------------------------------------------------------------


def micros(moment: datetime) -> Int64:
    """A time as it is stored."""
    return Int64(to_micros(moment))


def check_fits(*texts: str | None) -> None:
    """Raise InvalidInput if a document would exceed MongoDB's limit."""
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


def _to_conversation(document: Mapping[str, Any]) -> Conversation:
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
            "metadata": load_json(document["metadata"]),
            "last_seq": document["last_seq"],
            "head_id": document["head_id"],
            "created_at": from_micros(document["created_at"]),
            "updated_at": from_micros(document["updated_at"]),
        },
    )


def _new_conversation(key: Key, new: NewConversation, *, slot: bool) -> Document:
    """The document of a conversation without messages."""
    moment = now()
    updated_at = min(new.updated_at or moment, moment) if isinstance(new, ImportedConversation) else moment
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
        "updated_at": micros(updated_at),
        **({"slot": True} if slot else {}),
    }


def _saved(state: State) -> Document:
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


def to_document(key: Key, placed: Placed, *, index: bool) -> Document:
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
    return document | ({"words": index_words(message.content)} if index else {"unindexed": True})


def _to_known(document: Mapping[str, Any]) -> Known:
    return Known(Position(document["seq"], document["run"], document["depth"]), document["fingerprint"])


def to_message(document: Mapping[str, Any]) -> Message:
    """The record of a message."""
    sources, metadata, sent_at = document.get("sources"), document.get("metadata"), document.get("sent_at")
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
            "metadata": load_json(metadata) if metadata else {},
            "external_id": document.get("external_id"),
            "sent_at": None if sent_at is None else from_micros(sent_at),
            "created_at": from_micros(document["created_at"]),
        },
    )


def _place(document: Mapping[str, Any]) -> tuple[int | str, ...]:
    return int(document["created_at"]), document["conversation_id"].hex, document["seq"]


def _to_hit(document: Mapping[str, Any], title: str | None) -> Hit:
    return Hit(_place(document), to_message(document), title)
