"""Imports and exports conversations as JSON Lines.

One conversation a line, in UTF-8, separated by "\\n" alone:

    {"id", "title"?, "source"?, "lang"?, "context_id"?, "external_id"?, "metadata"?, "head"?,
     "messages": [{"id", "parent_id", "role", "content", "created_at"?, "status"?, "sources"?, "metadata"?,
                   "external_id"?}]}

Messages are in the order of seq, parents before their children. `source` and `lang` are stored in the conversation's
metadata. `head` is present if the history does not end with the last message.

Ids may be any text. A UUID is kept; any other id is mapped to a UUID (version 5) and stored as external_id: importing a
file twice stores nothing twice, and an export has the ids of the file. A message has a time only if it was given, so
that an import without times is exported without them.
"""

import asyncio
import hashlib
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import UTC
from functools import lru_cache
from typing import Annotated, Any
from uuid import UUID, uuid5

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError

from chatkeep.errors import Conflict, InvalidInput
from chatkeep.ids import UUID_TEXT, uuid_of
from chatkeep.model import (
    MAX_SOURCES,
    Conversation,
    ConversationChange,
    Given,
    ImportedConversation,
    ImportedMessage,
    Message,
    Role,
    Source,
    Status,
    stored,
)
from chatkeep.store import MAX_LIMIT, Store
from chatkeep.values import (
    MAX_JSON_DEPTH,
    MAX_LABEL_CHARS,
    BeyondLimits,
    Label,
    copy_json,
    json_text,
    parse_json,
    title_from,
)

NAMESPACE = UUID("5e1c7a0e-0d5b-5f0c-9d5a-6b1f2a7c4e93")
"""Namespace of the UUIDs that are derived from foreign ids. It must never change."""

WINDOW_LINES = 256
WINDOW_BYTES = 8 << 20
"""Most lines and bytes that are read ahead: what an import holds in memory, except for one longer line."""

WRITERS = 64
"""Most lines that are stored concurrently. With a whole window at once, the last lines would time out on a slow
database while they wait for a connection."""

HUGE_NUMBERS = (re.compile(rb"e\+?\d{3,}\s*[,\]}]"), re.compile(rb"E\+?\d{3,}\s*[,\]}]"))
"""Numbers that pydantic's parser may read as infinite; it also accepts NaN and Infinity. Two patterns, because
searching for a fixed letter is five times as fast as for a class of two."""

NOT_AGAIN = "; an older version stored more, which can be exported, but not imported"

SHORT_METADATA = 2 * MAX_JSON_DEPTH
"""JSON of so many characters is within every limit: each level takes two."""


def _within_limits(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata that a parser made, without the copy that callers' values need. Raises BeyondLimits."""
    if not _is_short(metadata):
        copy_json(metadata)
    return metadata


def _is_short(metadata: dict[str, Any]) -> bool:
    try:
        return len(json_text(metadata)) <= SHORT_METADATA
    except ValueError:  # it has more levels than can be written
        return False


Metadata = Annotated[dict[str, Any], AfterValidator(_within_limits)]

FOREIGN_ID = Field(min_length=1, max_length=MAX_LABEL_CHARS)


class LineMessage(Given):
    """A message of a line."""

    id: Annotated[str, FOREIGN_ID]
    parent_id: Annotated[str, FOREIGN_ID] | None = None
    role: Role
    content: str
    created_at: AwareDatetime | None = None
    status: Status = Status.COMPLETE
    sources: Annotated[tuple[Source, ...], Field(max_length=MAX_SOURCES, fail_fast=True)] = ()
    metadata: Metadata = Field(default_factory=dict)
    external_id: Label | None = None


class Line(Given):
    """A conversation of a line. Unknown fields are errors: they would be lost."""

    id: Annotated[str, FOREIGN_ID]
    title: Label | None = None
    source: str | None = None
    lang: str | None = None
    context_id: Label | None = None
    external_id: Label | None = None
    metadata: Metadata = Field(default_factory=dict)
    messages: Annotated[list[LineMessage], Field(fail_fast=True)]
    head: str | None = None


@dataclass(frozen=True)
class Imported:
    """The result of one line: its number of messages, or why it was refused."""

    number: int
    size: int
    messages: int = 0
    error: str | None = None


@dataclass(frozen=True)
class Parsed:
    """A line, as the arguments for a store."""

    conversation: ImportedConversation
    messages: list[ImportedMessage]
    head_id: UUID | None


# --- import ----------------------------------------------------------------------------------------------


async def import_lines(store: Store, owner: str, lines: Iterable[bytes]) -> AsyncIterator[Imported]:
    """Store the conversation of each line, and yield the results in the order of the lines.

    A line is stored whole, or refused without an effect on the others. Importing again stores only what is new.
    Raises StoreUnavailable if the database fails.
    """
    window: deque[asyncio.Task[Imported]] = deque()
    writers = asyncio.Semaphore(WRITERS)
    size = 0
    try:
        for number, line in enumerate(lines, 1):
            window.append(asyncio.create_task(_import_line(store, owner, writers, number, line)))
            size += len(line)
            await asyncio.sleep(0)  # starts to parse the line, while the store writes those before it
            while len(window) >= WINDOW_LINES or size >= WINDOW_BYTES or (window and window[0].done()):
                result = await window.popleft()
                size -= result.size
                yield result
        while window:
            yield await window.popleft()
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)


async def _import_line(store: Store, owner: str, writers: asyncio.Semaphore, number: int, text: bytes) -> Imported:
    if not text.strip():
        return Imported(number, len(text))
    try:
        line = parse_line(owner, text)
        async with writers:
            await _store_line(store, owner, line)
    except (InvalidInput, Conflict) as error:
        return Imported(number, len(text), error=str(error))
    return Imported(number, len(text), messages=len(line.messages))


async def _store_line(store: Store, owner: str, line: Parsed) -> None:
    try:
        conversation = await store.create_conversation(owner, line.conversation)
        messages = await store.append(owner, conversation.id, line.messages) if line.messages else []
    except Conflict:
        if await _is_stored(store, owner, line):
            return
        raise
    if line.head_id is not None and conversation.last_seq < len(messages):
        await store.update_conversation(owner, conversation.id, ConversationChange(head_id=line.head_id))


async def _is_stored(store: Store, owner: str, line: Parsed) -> bool:
    """Return whether the store has the line's messages, though not from this file: as with a store's own export."""
    id_ = line.conversation.id
    assert id_ is not None  # noqa: S101 - parse_line sets it
    log = [(m.id, m.role, m.content, m.status) async for page in _log_pages(store, owner, id_) for m in page]
    return log[: len(line.messages)] == [(m.id, m.role, m.content, m.status) for m in line.messages]


def parse_line(owner: str, text: bytes) -> Parsed:
    """Parse one line. Raises InvalidInput."""
    line = _read(text)
    id_, external_id = import_id(_namespace(owner, line.source), line.id)
    ids: dict[str, UUID] = {}
    messages = [_to_message(id_, message, ids, number) for number, message in enumerate(line.messages, 1)]
    if line.head is not None and line.head not in ids:
        raise InvalidInput("head names no message of the conversation", got=line.head)
    named = {name: value for name in ("source", "lang") if (value := getattr(line, name)) is not None}
    try:
        conversation = ImportedConversation(
            id=id_,
            title=line.title,
            context_id=line.context_id,
            external_id=line.external_id or external_id,
            metadata={**named, **line.metadata},
            updated_at=max((m.sent_at for m in messages if m.sent_at), default=None),
        )
    except ValidationError as error:  # `source` and `lang` are metadata, too
        raise _refusal(error) from None
    return Parsed(conversation, messages, None if line.head is None else ids[line.head])


def _read(text: bytes) -> Line:
    """Fast path: let pydantic parse the text. What it refuses, or would misread, takes the slow path."""
    try:
        if b"NaN" in text or b"Infinity" in text or any(pattern.search(text) for pattern in HUGE_NUMBERS):
            return Line.model_validate(parse_json(text.decode()))
        return Line.model_validate_json(text)
    except ValidationError:
        return _read_slowly(text)
    except ValueError as error:
        raise InvalidInput(f"not JSON in UTF-8: {error}") from None


def _read_slowly(text: bytes) -> Line:
    """Slow path: clean the text first, so that lone surrogates do not lose a conversation."""
    try:
        return Line.model_validate(parse_json(text.decode()))
    except ValidationError as error:
        raise _refusal(error) from None
    except ValueError as error:
        raise InvalidInput(f"not JSON in UTF-8: {error}") from None


def _refusal(error: ValidationError) -> InvalidInput:
    first = error.errors(include_url=False, include_input=False)[0]
    beyond = first["type"] == "too_long" or isinstance(first.get("ctx", {}).get("error"), BeyondLimits)
    hint = NOT_AGAIN if beyond else ""
    return InvalidInput(f"{_place(first['loc'])}: {first['msg']}{hint}")


def _place(loc: tuple[int | str, ...]) -> str:
    """Return the place of an error in the line, counted from 1."""
    parts = loc[1:] if len(loc) > 1 and loc[0] == "messages" else loc
    return ", ".join(f"message {part + 1}" if isinstance(part, int) else part for part in parts) or "the line"


def _to_message(conversation_id: UUID, line: LineMessage, ids: dict[str, UUID], number: int) -> ImportedMessage:
    if line.id in ids:
        raise InvalidInput(f"message {number} has the id of an earlier one", got=line.id)
    if line.parent_id is not None and line.parent_id not in ids:
        raise InvalidInput(f"message {number} follows a message that does not stand before it", got=line.parent_id)
    id_, external_id = import_id(conversation_id, line.id)
    if external_id is None and line.created_at is None:
        external_id = line.id  # marks a message that was imported without a time
    ids[line.id] = id_
    if line.status is Status.DELETED and (line.content or line.metadata or line.sources):
        raise InvalidInput(f"message {number} is deleted and has content, metadata or sources all the same")
    return stored(
        ImportedMessage,
        line.model_fields_set,
        {
            "id": id_,
            "role": line.role,
            "content": line.content,
            "parent_id": None if line.parent_id is None else ids[line.parent_id],
            "status": line.status,
            "sources": line.sources,
            "metadata": line.metadata,
            "external_id": line.external_id or external_id,
            "sent_at": line.created_at and line.created_at.astimezone(UTC),
        },
    )


def import_id(namespace: UUID, text: str) -> tuple[UUID, str | None]:
    """Return the UUID of a foreign id, and the external_id to store with it: None if the foreign id is that UUID."""
    if len(text) == 36 and UUID_TEXT.fullmatch(text) and text == text.lower():
        return UUID(text), None
    digest = hashlib.sha1(namespace.bytes + text.encode(), usedforsecurity=False).digest()
    value = int.from_bytes(digest[:16]) & ~(0xF << 76) & ~(0x3 << 62)
    return uuid_of(value | 0x5 << 76 | 0x2 << 62), text


@lru_cache(maxsize=1024)
def _namespace(owner: str, source: str | None) -> UUID:
    return uuid5(NAMESPACE, f"{owner}\n{source or ''}")


# --- export ----------------------------------------------------------------------------------------------


async def export_lines(store: Store, owner: str) -> AsyncIterator[str]:
    """Yield the owner's conversations as lines, ordered by id. Lines come in pieces, for long conversations."""
    cursor = None
    while True:
        page = await store.list_conversations(owner, order="id", limit=100, cursor=cursor)
        for conversation in page.items:
            async for piece in _export(store, owner, conversation):
                yield piece
        if page.next is None:
            return
        cursor = page.next


async def _export(store: Store, owner: str, conversation: Conversation) -> AsyncIterator[str]:
    names: dict[UUID, str] = {}
    first = True
    async for page in _log_pages(store, owner, conversation.id):
        if first:
            yield _start_of_line(owner, conversation, page)
        lines = [_export_message(message, names) for message in page]
        yield ("" if first else ",") + ",".join(lines)
        first = False
    if first:
        yield _start_of_line(owner, conversation, [])
    last = next(reversed(names), None)
    head = conversation.head_id
    yield "]" + (f',"head":{json_text(names[head])}' if head in names and head != last else "") + "}\n"


async def _log_pages(store: Store, owner: str, id_: UUID) -> AsyncIterator[list[Message]]:
    after = 0
    while page := await store.log(owner, id_, after=after, limit=MAX_LIMIT):
        yield page
        after = page[-1].seq


def _start_of_line(owner: str, conversation: Conversation, page: list[Message]) -> str:
    metadata = dict(conversation.metadata)
    fields: dict[str, Any] = {"id": str(conversation.id)}
    for name in ("title", "source", "lang"):
        value = conversation.title if name == "title" else _take_text(metadata, name)
        if value is not None and not (name == "title" and value == _derived_title(page)):
            fields[name] = value
    external_id = conversation.external_id
    if external_id and import_id(_namespace(owner, fields.get("source")), external_id) == (
        conversation.id,
        external_id,
    ):
        fields["id"] = external_id
    elif external_id:
        fields["external_id"] = external_id
    if conversation.context_id is not None:
        fields["context_id"] = conversation.context_id
    if metadata:
        fields["metadata"] = metadata
    return json_text(fields)[:-1] + ',"messages":['


def _take_text(metadata: dict[str, Any], name: str) -> str | None:
    return metadata.pop(name) if isinstance(metadata.get(name), str) else None


def _derived_title(page: list[Message]) -> str | None:
    """Return the title that appending these messages derives; it need not be written."""
    return next((title_from(m.content) for m in page if m.role == Role.USER and title_from(m.content)), None)


def _export_message(message: Message, names: dict[UUID, str]) -> str:
    external_id = message.external_id
    imported = external_id is not None and import_id(message.conversation_id, external_id)[0] == message.id
    names[message.id] = name = external_id if imported and external_id else str(message.id)
    time = message.sent_at if imported else message.sent_at or message.created_at
    fields: dict[str, Any] = {
        "id": name,
        "parent_id": None if message.parent_id is None else names[message.parent_id],
        "role": message.role,
        "content": message.content,
    }
    if time is not None:
        fields["created_at"] = time.isoformat().replace("+00:00", "Z")
    if message.status != Status.COMPLETE:
        fields["status"] = message.status
    if message.sources:
        fields["sources"] = [source.model_dump(mode="json") for source in message.sources]
    if message.metadata:
        fields["metadata"] = message.metadata
    if external_id is not None and not imported:
        fields["external_id"] = external_id
    return json_text(fields)
