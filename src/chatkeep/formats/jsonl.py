"""Imports and exports conversations as JSON Lines.

One conversation a line, in UTF-8, separated by "\\n" alone. An export writes format 2, which restores it as it was:

    {"format": 2, "id", "created_at", "updated_at", "title"?, "context_id"?, "project_id"?, "project_name"?,
     "external_id"?, "labels"?, "metadata"?, "head_id", "fingerprint",
     "messages": [{"id", "parent_id", "role", "content", "created_at", "sent_at"?, "status"?, "parts"?, "sources"?,
                   "metadata"?, "model"?, "input_tokens"?, "output_tokens"?, "duration_ms"?, "external_id"?,
                   "fingerprint"}]}

Ids are UUIDs, and `created_at` and `updated_at` the store's own times; without a title there is none. With the
fingerprints, a late retry of what was stored before is known. A message in progress is written as interrupted. Not
exported: llm_provider_id, because providers belong to the installation.

Lines without `format` are from other systems:

    {"id", "title"?, "source"?, "lang"?, "context_id"?, "external_id"?, "labels"?, "metadata"?, "head"?,
     "messages": [{"id", "parent_id", "role", "content"?, "created_at"?, "status"?, "parts"?, "sources"?, "metadata"?,
                   "model"?, "input_tokens"?, "output_tokens"?, "duration_ms"?, "external_id"?}]}

`source` and `lang` are stored in the conversation's metadata, and `created_at` as `sent_at`. Ids may be any text: a
UUID is kept, any other id is mapped to a UUID (version 5) and stored as external_id. `head` is the message that the
history ends with, the last if it is absent. `content` may be absent or null beside `parts` (chatkeep/parts.py): then it
is the text of the parts of the type `text`. A message in progress is interrupted: nothing here goes on with it.

Messages are in the order of seq, parents before their children. Importing a file twice stores nothing twice.
"""

import asyncio
import re
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, Field, ValidationError
from pydantic_core import to_json

from chatkeep.errors import Conflict, InvalidInput, NotFound
from chatkeep.ids import foreign_id, namespace_of
from chatkeep.model import (
    MAX_SOURCES,
    Given,
    ImportedConversation,
    ImportedMessage,
    ImportReceipt,
    Role,
    Source,
    Status,
    content_of,
    stored,
)
from chatkeep.parts import Part, Parts
from chatkeep.store import MAX_LIMIT, Store
from chatkeep.validation import first_wrong
from chatkeep.values import (
    MAX_JSON_DEPTH,
    MAX_METADATA,
    MAX_PARTS,
    MAX_SHORT_TEXT_CHARS,
    AnyTime,
    BeyondLimits,
    Count,
    Labels,
    MetadataLimits,
    ShortText,
    StoreTime,
    TextOrNothing,
    check_structure,
    copy_json,
    json_text,
    parse_json,
)

WINDOW_LINES = 256
WINDOW_BYTES = 8 << 20
"""Most lines and bytes that are read ahead: what an import holds in memory, except for one longer line."""

WRITERS = 64
"""Most lines that are stored concurrently. With a whole window at once, the last lines would time out on a slow
database while they wait for a connection."""

HUGE_NUMBERS = (re.compile(rb"e\+?\d{3,}\s*[,\]}]"), re.compile(rb"E\+?\d{3,}\s*[,\]}]"))
"""Numbers that pydantic's parser may read as infinite; it also accepts NaN and Infinity. Two patterns, because
searching for a fixed letter is five times as fast as for a class of two."""

FORMAT_2 = b'{"format":2,'
"""How a line of an export begins."""

SLICE_MESSAGES = 20_000
"""Most messages of a line that are stored in one transaction: a second or so."""

LONG_LINE, MIN_VALUE_BYTES = 1 << 20, 8
"""A line of more bytes may have a value for so many bytes of it, beside as many values. A message of one letter has 11
bytes for each of its values."""

SPOOLED_BYTES, PIECE_BYTES = 8 << 20, 1 << 20
"""Bytes of a line that an export holds in memory, the rest being in a temporary file; and bytes of its pieces."""

NOT_AGAIN = "; an older version stored more, which can be exported, but not imported"

SHORT_JSON = 2 * MAX_JSON_DEPTH
"""JSON of so many characters is within every limit: each level takes two."""


def _check(value: object, limits: MetadataLimits) -> None:
    """Check metadata or parts that a parser made, which need no copy of their own. Raises BeyondLimits."""
    if not _is_short(value):
        copy_json(value, limits)


def _is_short(value: object) -> bool:
    try:
        return len(json_text(value)) <= SHORT_JSON
    except ValueError:  # it has more levels than can be written
        return False


def _metadata_within_limits(metadata: dict[str, Any]) -> dict[str, Any]:
    _check(metadata, MAX_METADATA)
    return metadata


def _parts_within_limits(parts: tuple[Part, ...] | None) -> tuple[Part, ...] | None:
    if parts is not None:
        _check(list(parts), MAX_PARTS)
    return parts


Metadata = Annotated[dict[str, Any], AfterValidator(_metadata_within_limits)]
LineParts = Annotated[Parts, AfterValidator(_parts_within_limits)]

FOREIGN_ID = Field(min_length=1, max_length=MAX_SHORT_TEXT_CHARS)


class LineMessage(Given):
    """A message of a line."""

    id: Annotated[str, FOREIGN_ID]
    parent_id: Annotated[str, FOREIGN_ID] | None = None
    role: Role
    content: TextOrNothing = ""
    created_at: AnyTime | None = None
    status: Status = Status.COMPLETE
    parts: LineParts | None = None
    sources: Annotated[tuple[Source, ...], Field(max_length=MAX_SOURCES, fail_fast=True)] = ()
    metadata: Metadata = Field(default_factory=dict)
    model: ShortText | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None
    duration_ms: Count | None = None
    external_id: ShortText | None = None

    def refusal(self) -> str | None:
        """Why this message is none that can be imported, if it is not."""
        if self.status is Status.DELETED and (self.content or self.parts or self.metadata or self.sources):
            return "is deleted and has content, parts, metadata or sources all the same"
        if self.parts is None and "content" not in self.model_fields_set:
            return "has neither content nor parts"
        return None


class Line(Given):
    """A conversation of a line. Unknown fields are errors: they would be lost."""

    id: Annotated[str, FOREIGN_ID]
    title: ShortText | None = None
    source: str | None = None
    lang: str | None = None
    context_id: ShortText | None = None
    external_id: ShortText | None = None
    labels: Labels = ()
    metadata: Metadata = Field(default_factory=dict)
    messages: Annotated[list[LineMessage], Field(fail_fast=True)]
    head: str | None = None


class ExportedMessage(ImportedMessage):
    """A message of a line of format 2."""

    id: UUID
    parent_id: UUID | None
    created_at: StoreTime


class ExportedLine(ImportedConversation):
    """A conversation of a line of format 2."""

    format: Literal[2]
    id: UUID
    created_at: StoreTime
    updated_at: StoreTime
    head_id: UUID | None
    messages: Annotated[list[ExportedMessage], Field(fail_fast=True)]


class LineFormat(BaseModel):
    """The format of a line, whatever else is in it."""

    format: Any = 1


@dataclass(frozen=True)
class Imported:
    """The result of one line: what its import did, or why it was refused. Neither for an empty line."""

    number: int
    size: int
    receipt: ImportReceipt | None = None
    error: str | None = None


@dataclass(frozen=True)
class Parsed:
    """A line, as the arguments for a store."""

    conversation: ImportedConversation
    messages: Sequence[ImportedMessage]


# --- import ----------------------------------------------------------------------------------------------


async def import_lines(
    store: Store, owner: str, lines: Iterable[bytes], *, update: bool = False
) -> AsyncIterator[Imported]:
    """Store the conversation of each line, and yield the results in the order of the lines.

    A line is stored whole, or refused without an effect on the others. Importing again stores only what is new, and
    with `update` takes over what differs (`Store.import_conversation`). Raises StoreUnavailable if the database fails.
    """
    window: deque[asyncio.Task[Imported]] = deque()
    writers = asyncio.Semaphore(WRITERS)
    size = 0

    async def import_line(number: int, text: bytes) -> Imported:
        if not text.strip():
            return Imported(number, len(text))
        try:
            line = parse_line(owner, text)
            async with writers:
                receipt = await _store(store, owner, line, update=update)
        except (InvalidInput, Conflict, NotFound) as error:
            return Imported(number, len(text), error=str(error))
        return Imported(number, len(text), receipt)

    try:
        for number, line in enumerate(lines, 1):
            window.append(asyncio.create_task(import_line(number, line)))
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


async def _store(store: Store, owner: str, line: Parsed, *, update: bool) -> ImportReceipt:
    """Import a line: at once, or in slices if it is so long that others would wait and the call would time out."""
    if len(line.messages) <= SLICE_MESSAGES:
        return await store.import_conversation(owner, line.conversation, line.messages, update=update)
    path, head_id = _path(line), None
    receipts: list[ImportReceipt] = []
    for start in range(0, len(line.messages), SLICE_MESSAGES):
        part, conversation = line.messages[start : start + SLICE_MESSAGES], line.conversation
        head_id = next((message.id for message in reversed(part) if message.id in path), head_id)
        if start + SLICE_MESSAGES < len(line.messages):  # the thread grows with the slices: one that is cut off goes on
            conversation = _with_head(conversation, head_id)
        takes_all = update or any(receipt.created for receipt in receipts)
        receipts.append(await store.import_conversation(owner, conversation, part, update=takes_all))
    return _sum(receipts)


def _path(line: Parsed) -> set[UUID | None]:
    """The ids of the messages on the path to the head of a line."""
    parents = {message.id: message.parent_id for message in line.messages}
    names_head = "head_id" in line.conversation.model_fields_set
    id_ = line.conversation.head_id if names_head else line.messages[-1].id
    path: set[UUID | None] = set()
    while id_ is not None and id_ not in path:
        path.add(id_)
        id_ = parents.get(id_)
    return path


def _with_head(conversation: ImportedConversation, head_id: UUID | None) -> ImportedConversation:
    """The conversation for a slice, after which the history ends with this message."""
    fields = conversation.model_fields_set | {"head_id"}
    return stored(type(conversation), fields, {**vars(conversation), "head_id": head_id})


def _sum(receipts: Sequence[ImportReceipt]) -> ImportReceipt:
    """The receipt of all slices. What the first created does not differ."""
    created = receipts[0].created
    return ImportReceipt(
        created=created,
        messages=sum(receipt.messages for receipt in receipts),
        known=sum(receipt.known for receipt in receipts),
        differences=() if created else tuple(dict.fromkeys(name for each in receipts for name in each.differences)),
        updated=() if created else tuple(dict.fromkeys(name for each in receipts for name in each.updated)),
    )


def parse_line(owner: str, text: bytes) -> Parsed:
    """Parse one line. Raises InvalidInput."""
    if len(text) > LONG_LINE:
        _check_density(text)
    format_ = _format(text)
    if format_ == 1:
        return _to_parsed(owner, _read(Line, text))
    if format_ == 2:
        line = _read(ExportedLine, text)
        return Parsed(line, line.messages)
    raise InvalidInput("format is 2, or absent; a newer version of chatkeep may read others", got=format_)


def _check_density(text: bytes) -> None:
    """Refuse a long line with more JSON values than messages have: each takes hundreds of bytes of memory."""
    most = LONG_LINE + len(text) // MIN_VALUE_BYTES
    try:
        check_structure(text, most, sys.maxsize)
    except ValueError as error:
        raise InvalidInput(f"a line of {len(text):,} bytes {error}") from None


def _format(text: bytes) -> object:
    """The format of a line. What is no JSON has the first, which says so."""
    if text.startswith(FORMAT_2):
        return 2
    if b'"format"' not in text:
        return 1
    try:
        return _read(LineFormat, text).format
    except InvalidInput:
        return 1


def _to_parsed(owner: str, line: Line) -> Parsed:
    id_, external_id = foreign_id(namespace_of(owner, line.source), line.id)
    messages = _to_messages(id_, line.messages)
    if line.head is not None and line.head not in messages:
        raise InvalidInput("head names no message of the conversation", got=line.head)
    named = {name: value for name in ("source", "lang") if (value := getattr(line, name)) is not None}
    head = {} if line.head is None else {"head_id": messages[line.head].id}
    values = {
        "id": id_,
        "title": line.title,
        "context_id": line.context_id,
        "external_id": line.external_id or external_id,
        "labels": line.labels,
        "metadata": {**named, **line.metadata},
        "updated_at": max((m.sent_at for m in messages.values() if m.sent_at), default=None),
        **head,
    }
    try:
        conversation = ImportedConversation.model_validate(values)
    except ValidationError as error:  # `source` and `lang` are metadata, too
        raise _refusal(error) from None
    return Parsed(conversation, list(messages.values()))


def _read[L: BaseModel](kind: type[L], text: bytes) -> L:
    """Fast path: let pydantic parse the text. What it refuses, or would misread, takes the slow path."""
    try:
        if b"NaN" in text or b"Infinity" in text or any(pattern.search(text) for pattern in HUGE_NUMBERS):
            return kind.model_validate(parse_json(text.decode()))
        return kind.model_validate_json(text)
    except ValidationError:
        return _read_slowly(kind, text)
    except ValueError as error:
        raise InvalidInput(f"not JSON in UTF-8: {error}") from None


def _read_slowly[L: BaseModel](kind: type[L], text: bytes) -> L:
    """Slow path: clean the text first, so that lone surrogates do not lose a conversation."""
    try:
        return kind.model_validate(parse_json(text.decode()))
    except ValidationError as error:
        raise _refusal(error) from None
    except ValueError as error:
        raise InvalidInput(f"not JSON in UTF-8: {error}") from None


def _refusal(error: ValidationError) -> InvalidInput:
    first = first_wrong(error)
    beyond = first.type == "too_long" or isinstance(first.cause, BeyondLimits)
    return InvalidInput(f"{_place(first.loc)}: {first.message}{NOT_AGAIN if beyond else ''}", got=first.got)


def _place(loc: tuple[int | str, ...]) -> str:
    """Return the place of an error in the line, counted from 1."""
    parts = loc[1:] if len(loc) > 1 and loc[0] == "messages" else loc
    return ", ".join(f"message {part + 1}" if isinstance(part, int) else part for part in parts) or "the line"


def _to_messages(conversation_id: UUID, lines: Sequence[LineMessage]) -> dict[str, ImportedMessage]:
    """The messages by the ids of the line. The same message twice is one."""
    made: dict[str, ImportedMessage] = {}
    for number, line in enumerate(lines, 1):
        message = _to_message(conversation_id, line, made, number)
        earlier = made.setdefault(line.id, message)
        if earlier is not message and vars(earlier) != vars(message):
            raise InvalidInput(f"message {number} has the id of an earlier one, and says something else", got=line.id)
    return made


def _to_message(
    conversation_id: UUID, line: LineMessage, earlier: Mapping[str, ImportedMessage], number: int
) -> ImportedMessage:
    if line.parent_id is not None and line.parent_id not in earlier:
        raise InvalidInput(f"message {number} follows a message that does not stand before it", got=line.parent_id)
    id_, external_id = foreign_id(conversation_id, line.id)
    if external_id is None and line.created_at is None:
        external_id = line.id  # as ever: the fingerprint depends on it
    if (refusal := line.refusal()) is not None:
        raise InvalidInput(f"message {number} {refusal}")
    return stored(
        ImportedMessage,
        line.model_fields_set,
        {
            "id": id_,
            "role": line.role,
            "content": content_of(line.role, line.parts) if line.parts and not line.content else line.content,
            "parent_id": None if line.parent_id is None else earlier[line.parent_id].id,
            "status": line.status,
            "parts": line.parts,
            "sources": line.sources,
            "metadata": line.metadata,
            "model": line.model,
            "input_tokens": line.input_tokens,
            "output_tokens": line.output_tokens,
            "duration_ms": line.duration_ms,
            "external_id": line.external_id or external_id,
            "sent_at": line.created_at,
            "created_at": None,
            "kept_fingerprint": None,
        },
    )


# --- export ----------------------------------------------------------------------------------------------


async def export_lines(
    store: Store, owner: str, *, failed: Callable[[UUID, Exception], None] | None = None
) -> AsyncIterator[bytes]:
    """Yield the owner's conversations as lines, ordered by id, each in one piece or more.

    Each is as it was when its turn came, whoever writes meanwhile. What is deleted before its turn, or during it, is
    left out, and so is what cannot be read, of which `failed` is told; without `failed` that raises.
    """
    cursor = None
    while True:
        page = await store.list_conversations(owner, order="id", limit=100, cursor=cursor)
        for conversation in page.items:
            async for piece in _line_of(store, owner, conversation.id, failed):
                yield piece
        if page.next is None:
            return
        cursor = page.next


async def _line_of(
    store: Store, owner: str, id_: UUID, failed: Callable[[UUID, Exception], None] | None
) -> AsyncIterator[bytes]:
    """The pieces of a line, after all of it was read."""
    with tempfile.SpooledTemporaryFile(SPOOLED_BYTES) as line:
        try:
            await _export(store, owner, id_, line)
        except NotFound:
            return
        except Exception as error:
            if failed is None:
                raise
            failed(id_, error)  # whatever reading a damaged row raises
            return
        line.seek(0)
        while piece := line.read(PIECE_BYTES):
            yield piece


async def _export(store: Store, owner: str, id_: UUID, line: IO[bytes]) -> None:
    conversation, last_seq = await store.export_conversation(owner, id_)
    fields = {name: value for name, value in vars(conversation).items() if value or name == "head_id"}
    line.write(FORMAT_2 + _json(fields)[1:-1] + b',"messages":[')
    seq = 0
    while seq < last_seq:
        messages = await store.export_messages(owner, id_, after=seq, limit=min(MAX_LIMIT, last_seq - seq))
        line.write(b"," if seq else b"")
        line.write(b",".join(_json(_fields_of(message)) for message in messages))
        seq += len(messages)
    line.write(b"]}\n")


ALWAYS_WRITTEN = ("parent_id", "content")


def _fields_of(message: ImportedMessage) -> dict[str, Any]:
    """What a message is made of, without what is as it is by default."""
    fields = {name: value for name, value in vars(message).items() if value or value == 0 or name in ALWAYS_WRITTEN}
    if message.status == Status.COMPLETE:
        del fields["status"]
    return fields


def _json(fields: dict[str, Any]) -> bytes:
    fields["fingerprint"] = fields.pop("kept_fingerprint").hex()
    return to_json(fields)
