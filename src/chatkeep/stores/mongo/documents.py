"""The documents of the MongoDB store, and how they become records again. No I/O.

Ids are encoded and decoded here, as bytes: the driver's Python makes a UUID in 1.3 to 4 µs, and a message holds five.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import bson
from bson.binary import UUID_SUBTYPE, Binary
from bson.int64 import Int64

from chatkeep.documents import DOCUMENT_FIELDS, Chunk, Content, NewChunk, NewDocument
from chatkeep.documents import Document as DocumentRecord
from chatkeep.errors import InvalidInput
from chatkeep.events import KINDS, TurnEvent
from chatkeep.ids import uuid_of
from chatkeep.model import (
    CONVERSATION_FIELDS,
    COUNTS,
    MESSAGE_FIELDS,
    ROLES,
    STATUSES,
    Conversation,
    Message,
    NewConversation,
    NewMessage,
    Status,
    stored,
    stored_sources,
)
from chatkeep.projects import PROJECT_FIELDS, NewProject, Project
from chatkeep.stores.append import Known, Placed, State, times_of
from chatkeep.stores.mongo.database import MAX_DOCUMENT_BYTES, TOO_LARGE, Document
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey
from chatkeep.stores.rows import Hit, Key, stored_bytes
from chatkeep.tree import Position
from chatkeep.turns import Ending, TurnKey
from chatkeep.values import from_micros, json_text, load_json, now, to_micros
from chatkeep.words import index_words

CONVERSATION = dict.fromkeys(
    (
        "id",
        "owner_id",
        "title",
        "context_id",
        "project_id",
        "llm_provider_id",
        "external_id",
        "labels",
        "metadata",
        "last_seq",
        "head_id",
        "created_at",
        "updated_at",
        "deleted_at",
    ),
    1,
) | {"_id": 0}
"""The fields that a record of a conversation is made of, and whether it is hidden."""

STATE = dict.fromkeys(("last_seq", "head_seq", "head_id", "runs", "title", "updated_at", "deleted_at"), 1) | {"_id": 0}
"""The fields that appends and histories read of a conversation."""

MESSAGE = dict.fromkeys(
    (
        "_id.m",
        "seq",
        "parent_id",
        "role",
        "content",
        "status",
        "parts",
        "sources",
        "metadata",
        "model",
        *COUNTS,
        "external_id",
        "sent_at",
        "created_at",
    ),
    1,
)
"""The fields that a record of a message is made of, where its conversation is known."""

PROJECT = dict.fromkeys(
    (
        "id",
        "owner_id",
        "name",
        "metadata",
        "documents",
        "chunks",
        "space",
        "version",
        "created_at",
        "updated_at",
        "deleted_at",
    ),
    1,
) | {"_id": 0}
"""The fields that a record of a project is made of, and whether it is hidden."""

CHUNK = dict.fromkeys(("document_id", "content", "n", "text", "header_anchor", "heading", "start"), 1) | {"_id": 0}
"""The fields that a record of a chunk is made of."""

CONTENT = dict.fromkeys(("id", "content", "file_path", "title", "chunks", "version"), 1) | {"_id": 0}
"""The fields that say what a document has now."""

JSON_TEXTS = ("parts", "sources", "metadata")
"""The fields of a message that are stored as JSON text."""

PLAIN = ("model", *COUNTS, "external_id")
"""The fields of a message that are stored as they are, if it has them."""

PLACE = dict.fromkeys(("_id.m", "seq", "run", "depth", "fingerprint", "status"), 1)
"""The fields that say where a message is in its conversation, and what a repeated append has to know."""

SURELY_FITS = MAX_DOCUMENT_BYTES // 8
"""A text of at most so many characters fits, with its words, whatever its characters are."""

REST_BYTES = 4_096
"""Bytes allowed for the fields that are not measured."""


# --- values -----------------------------------------------------------------------------------------------


def to_binary(id_: UUID) -> Binary:
    """An id as it is stored."""
    return Binary(id_.bytes, UUID_SUBTYPE)


def to_uuid(value: bytes) -> UUID:
    """The id of what is stored."""
    return uuid_of(int.from_bytes(value))


def micros(moment: datetime) -> Int64:
    """A time as it is stored."""
    return Int64(to_micros(moment))


def _binary_or_none(id_: UUID | None) -> Binary | None:
    return None if id_ is None else to_binary(id_)


def uuid_or_none(value: bytes | None) -> UUID | None:
    """The id of what is stored, if there is one."""
    return None if value is None else to_uuid(value)


# --- identities: what they consist of always stands in this order ------------------------------------------


def conversation_id(key: Key) -> Document:
    """The `_id` of a conversation."""
    return {"o": key[0], "c": to_binary(key[1])}


def project_id(owner: str, id_: UUID) -> Document:
    """The `_id` of a project."""
    return {"o": owner, "p": to_binary(id_)}


def document_id(key: DocumentKey) -> Document:
    """The `_id` of a document of a project."""
    return {"o": key.owner, "p": to_binary(key.project_id), "d": to_binary(key.id)}


def message_id(key: Key, id_: UUID) -> Document:
    """The `_id` of a message."""
    return {"o": key[0], "c": to_binary(key[1]), "m": to_binary(id_)}


def turn_id(key: TurnKey) -> Document:
    """The `_id` of a turn: that of its answer."""
    return message_id(key[:2], key.message_id)


def turn_key(document: Mapping[str, Any]) -> TurnKey:
    """The key of the turn that is stored."""
    identity = document["_id"]
    return TurnKey(identity["o"], to_uuid(identity["c"]), to_uuid(identity["m"]))


# --- sizes ------------------------------------------------------------------------------------------------


def check_message_fits(message: NewMessage, known: Mapping[str, list[str]] | None) -> None:
    """Raise InvalidInput if a message or an answer would exceed MongoDB's limit.

    Its words are in the document, too, unless `known` is None; it has those of long texts.
    """
    texts = [message.content, *(json_text(each) for each in (message.parts, message.sources, message.metadata) if each)]
    if sum(map(len, texts)) <= SURELY_FITS:
        return
    words = [] if known is None else known.get(message.content) or index_words(message.content)
    size = len(bson.encode({"values": [*texts, words]})) + REST_BYTES
    if size > MAX_DOCUMENT_BYTES:
        raise InvalidInput(TOO_LARGE, got=f"{size:,} bytes")


def document_bytes(document: Mapping[str, Any]) -> int:
    """The size of a message or a conversation in a page."""
    return stored_bytes(*map(document.get, ("content", "parts", "sources", "metadata")))


# --- conversations ----------------------------------------------------------------------------------------


def to_conversation(document: Mapping[str, Any]) -> Conversation:
    """The record of a conversation."""
    return stored(
        Conversation,
        CONVERSATION_FIELDS,
        {
            "id": to_uuid(document["id"]),
            "owner_id": document["owner_id"],
            "title": document["title"],
            "context_id": document["context_id"],
            "project_id": uuid_or_none(document.get("project_id")),
            "llm_provider_id": uuid_or_none(document.get("llm_provider_id")),
            "external_id": document["external_id"],
            "labels": tuple(document.get("labels", ())),
            "metadata": load_json(document["metadata"]),
            "last_seq": document["last_seq"],
            "head_id": uuid_or_none(document["head_id"]),
            "created_at": from_micros(document["created_at"]),
            "updated_at": from_micros(document["updated_at"]),
        },
    )


def new_conversation(key: Key, new: NewConversation, *, slot: bool) -> Document:
    """The document of a conversation without messages."""
    created_at, updated_at = times_of(new, now())
    metadata = json_text(new.metadata)
    identity = conversation_id(key)
    document: Document = {
        "_id": identity,
        "owner_id": key[0],
        "id": identity["c"],
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
        "created_at": micros(created_at),
        "updated_at": micros(updated_at),
    }
    if new.project_id is not None:
        document["project_id"] = to_binary(new.project_id)
    if new.llm_provider_id is not None:
        document["llm_provider_id"] = to_binary(new.llm_provider_id)
    if new.labels:
        document["labels"] = list(new.labels)
    if slot:
        document["slot"] = True
    return document


def saved(state: State, before: Mapping[str, Any]) -> Document:
    """The update that writes what an append changed of its conversation, of which `before` is known.

    What stays the same is left out: the server would look at it, and at the indexes that hold it.
    """
    runs, head_seq = state.tree.dump(), state.head.seq if state.head else None
    values: Document = {
        "last_seq": state.tree.last_seq,
        "head_seq": head_seq,
        "head_id": _binary_or_none(state.head_id),
    }
    others = {"runs": runs, "straight": runs is None and head_seq == state.tree.last_seq, "title": state.title}
    changed = {name: value for name, value in others.items() if name not in before or before[name] != value}
    return {"$set": values | changed, "$max": {"updated_at": micros(state.updated_at)}}


# --- messages ---------------------------------------------------------------------------------------------


def new_message(key: Key, placed: Placed, *, index: bool, words: list[str] | None = None) -> Document:
    """The document of a message, with its words if they are known. What is absent has no field."""
    message, position, fingerprint = placed
    identity = message_id(key, message.id)
    document: Document = {
        "_id": identity,
        "owner_id": key[0],
        "conversation_id": identity["c"],
        "seq": position.seq,
        "run": position.run,
        "depth": position.depth,
        "parent_id": _binary_or_none(message.parent_id),
        "role": message.role.value,
        "content": message.content,
        "status": message.status.value,
        "created_at": micros(message.created_at),
        "fingerprint": fingerprint,
    }
    if position.depth < position.seq:
        document["branched"] = True
    for name in JSON_TEXTS:
        if value := getattr(message, name):
            document[name] = json_text(value)
    for name in PLAIN:
        if (value := getattr(message, name)) is not None:
            document[name] = value
    if message.sent_at is not None:
        document["sent_at"] = micros(message.sent_at)
    if not index:
        return document | {"unindexed": True}
    return document | {"words": index_words(message.content) if words is None else words}


def to_known(document: Mapping[str, Any]) -> Known:
    """Where a message is, its fingerprint, and whether it is deleted."""
    position = Position(document["seq"], document["run"], document["depth"])
    return Known(position, document["fingerprint"], document["status"] == Status.DELETED)


def to_message(conversation: UUID, document: Mapping[str, Any]) -> Message:
    """The record of a message of a conversation."""
    parts, sources, metadata, sent_at = map(document.get, ("parts", "sources", "metadata", "sent_at"))
    return stored(
        Message,
        MESSAGE_FIELDS,
        {
            "id": to_uuid(document["_id"]["m"]),
            "conversation_id": conversation,
            "seq": document["seq"],
            "parent_id": uuid_or_none(document["parent_id"]),
            "role": ROLES[document["role"]],
            "content": document["content"],
            "status": STATUSES[document["status"]],
            "parts": tuple(load_json(parts)) if parts else None,
            "sources": stored_sources(sources),
            "metadata": load_json(metadata) if metadata else {},
            "model": document.get("model"),
            "input_tokens": document.get("input_tokens"),
            "output_tokens": document.get("output_tokens"),
            "duration_ms": document.get("duration_ms"),
            "external_id": document.get("external_id"),
            "sent_at": None if sent_at is None else from_micros(sent_at),
            "created_at": from_micros(document["created_at"]),
        },
    )


def to_messages(conversation: UUID, found: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The records of messages of one conversation."""
    return [to_message(conversation, each) for each in found]


# --- turns ------------------------------------------------------------------------------------------------


def answered(ending: Ending, words: list[str] | None) -> Document:
    """The update that gives a message in progress the whole answer; without words they are to be found later."""
    values: Document = {"content": ending.content, "status": ending.status.value}
    for name in ("parts", "sources"):
        if value := getattr(ending, name):
            values[name] = json_text(value)
    for name in ("model", *COUNTS):
        if (value := getattr(ending, name)) is not None:
            values[name] = value
    if words is None:
        return {"$set": values | {"unindexed": True}, "$unset": {"words": ""}}
    return {"$set": values | {"words": words}, "$unset": {"unindexed": ""}}


def new_event(key: TurnKey, event: TurnEvent) -> Document:
    """The document of an event. Text is stored as it is: as JSON, control characters would take six times as much."""
    identity = turn_id(key) | {"n": event.n}
    own = {"owner_id": key.owner, "conversation_id": identity["c"], "message_id": identity["m"], "n": event.n}
    data = event.data if event.data.keys() == {"text"} else {"data": json_text(event.data)}
    return {"_id": identity, **own, "kind": event.kind.value, **data}


def to_event(document: Mapping[str, Any]) -> TurnEvent:
    """The event that is stored."""
    text = document.get("text")
    data = load_json(document["data"]) if text is None else {"text": text}
    return TurnEvent(document["n"], KINDS[document["kind"]], data)


def event_bytes(document: Mapping[str, Any]) -> int:
    """The size of an event's data as JSON."""
    text = document.get("text")
    return stored_bytes(document["data"] if text is None else json_text({"text": text}))


# --- projects ---------------------------------------------------------------------------------------------


def new_project(owner: str, id_: UUID, name: str) -> Document:
    """The document of a project that an import made."""
    identity, moment = project_id(owner, id_), micros(now())
    own = {"owner_id": owner, "id": identity["p"], "name": name}
    return {"_id": identity, **own, "created_at": moment, "updated_at": moment}


def created_project(key: ProjectKey, new: NewProject) -> Document:
    """The document of a project that was asked for."""
    metadata = {"metadata": json_text(new.metadata)} if new.metadata else {}
    return new_project(*key, new.name) | metadata | {"fingerprint": new.fingerprint()}


def to_project(document: Mapping[str, Any]) -> Project:
    """The record of a project. One that was made before there were documents has none of their fields."""
    metadata = document.get("metadata")
    return stored(
        Project,
        PROJECT_FIELDS,
        {
            "id": to_uuid(document["id"]),
            "owner_id": document["owner_id"],
            "name": document["name"],
            "metadata": load_json(metadata) if metadata else {},
            "documents": document.get("documents", 0),
            "chunks": document.get("chunks", 0),
            "space": document.get("space"),
            "version": document.get("version", 0),
            "created_at": from_micros(document["created_at"]),
            "updated_at": from_micros(document["updated_at"]),
        },
    )


def of_project(key: ProjectKey | DocumentKey, **more: object) -> Document:
    """What of a collection belongs to a project, or to that of a document."""
    return {"owner_id": key[0], "project_id": to_binary(key[1]), **more}


def of_document(key: DocumentKey, **more: object) -> Document:
    """What of a collection belongs to a document."""
    return of_project(key, document_id=to_binary(key.id), **more)


def new_document(key: DocumentKey, new: NewDocument, staged: UUID) -> Document:
    """The document of a document without a content."""
    identity, moment = document_id(key), micros(now())
    title = {} if new.title is None else {"title": new.title}
    return {
        "_id": identity,
        "owner_id": key.owner,
        "project_id": identity["p"],
        "id": identity["d"],
        "file_path": new.file_path,
        **title,
        "media_type": new.media_type,
        "bytes": new.bytes,
        "sha256": new.sha256,
        "chunks": 0,
        "staged": to_binary(staged),
        "version": 0,
        "created_at": moment,
        "updated_at": moment,
    }


def to_document(document: Mapping[str, Any]) -> DocumentRecord:
    """The record of a document."""
    return stored(
        DocumentRecord,
        DOCUMENT_FIELDS,
        {
            "id": to_uuid(document["id"]),
            "owner_id": document["owner_id"],
            "project_id": to_uuid(document["project_id"]),
            "file_path": document["file_path"],
            "title": document.get("title"),
            "media_type": document["media_type"],
            "bytes": document["bytes"],
            "sha256": document["sha256"],
            "chunks": document["chunks"],
            "created_at": from_micros(document["created_at"]),
            "updated_at": from_micros(document["updated_at"]),
        },
    )


def to_document_row(document: Mapping[str, Any]) -> DocumentRow:
    """The row of a document."""
    content, staged = uuid_or_none(document.get("content")), uuid_or_none(document.get("staged"))
    has_rubbish = bool(document.get("has_rubbish"))
    return DocumentRow(to_document(document), content, staged, document["version"], has_rubbish)


def to_content(document: Mapping[str, Any]) -> Content:
    """What a document has now."""
    ids = to_uuid(document["id"]), to_uuid(document["content"])
    return Content(*ids, document["file_path"], document.get("title"), document["chunks"], document["version"])


def new_chunk(key: DocumentKey, content: UUID, n: int, chunk: NewChunk) -> Document:
    """The document of a chunk, without its vector."""
    anchor = {} if chunk.header_anchor is None else {"header_anchor": chunk.header_anchor}
    text = {"heading": chunk.heading, "start": chunk.start, "text": chunk.text, "terms": chunk.terms}
    return of_document(key, content=to_binary(content), n=n, **anchor, **text)


def to_chunk(document: Mapping[str, Any]) -> Chunk:
    """The record of a chunk."""
    anchor, heading = document.get("header_anchor"), document["heading"]
    return Chunk(to_uuid(document["document_id"]), document["n"], document["text"], anchor, heading, document["start"])


def changed(values: Mapping[str, Any]) -> Document:
    """The update that sets fields of a project or a document; what is None or False has no field."""
    gone = [name for name, value in values.items() if value is None or value is False]
    return change_of({name: as_stored(value) for name, value in values.items() if name not in gone}, gone)


def as_stored(value: Any) -> Any:
    """An id or a time as it is stored; other values are as they are."""
    if isinstance(value, UUID):
        return to_binary(value)
    return micros(value) if isinstance(value, datetime) else value


def change_of(values: Document, removed: Collection[str]) -> Document:
    """The update that sets some fields and removes others."""
    change = {"$set": values, "$unset": dict.fromkeys(removed, "")}
    return {operator: fields for operator, fields in change.items() if fields}


# --- hits -------------------------------------------------------------------------------------------------


def to_place(document: Mapping[str, Any]) -> tuple[int | str, ...]:
    """The place of a message in the order of a search's hits."""
    return int(document["created_at"]), document["conversation_id"].hex(), document["seq"]


def to_hit(document: Mapping[str, Any], title: str | None) -> Hit:
    """A message that a search found."""
    message = to_message(to_uuid(document["conversation_id"]), document)
    return Hit(to_place(document), message, title, document_bytes(document))
