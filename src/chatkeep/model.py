"""The records: frozen values of the library, and schemas of the HTTP API. No I/O."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self
from uuid import UUID

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from chatkeep.errors import InvalidInput
from chatkeep.parts import PARTS, GivenParts, Part, says_more, text_of
from chatkeep.validation import Accepts, CheckedModel, untyped
from chatkeep.values import (
    MAX_INTEGER_DIGITS,
    MAX_JSON_DEPTH,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_METADATA_BYTES,
    MAX_METADATA_VALUES,
    Clean,
    Count,
    FilePath,
    JsonObject,
    Labels,
    ShortText,
    StoreTime,
    TextOrNothing,
    Time,
    canonical_json,
    to_micros,
)

MAX_CONTENT_CHARS = 10_000
"""Longest content of a user or system message, in characters, unless a store is opened with another limit."""

MAX_QUOTE_CHARS = 10_000

MAX_SOURCES = 1_000
"""Most sources of a new message: more than any answer rests on, and checked in milliseconds."""

METADATA = (
    f"Any JSON object of at most {MAX_JSON_DEPTH} levels, {MAX_METADATA_VALUES:,} values, {MAX_METADATA_BYTES:,} bytes"
    f" as JSON, and {MAX_INTEGER_DIGITS:,} digits in an integer."
)

LABELS = (
    f"At most {MAX_LABELS}, such as `pinned` or `archived`: each of at most {MAX_LABEL_CHARS} characters, without"
    " control characters, and not beginning with '!'."
)


class Record(CheckedModel):
    """A frozen value. Its constructor raises InvalidInput, which never repeats what was given: it may be private."""

    model_config: ClassVar[ConfigDict] = ConfigDict(frozen=True, hide_input_in_errors=True)


class Given(Record):
    """A record from the caller. Unknown fields are errors."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid")


def stored[R: Record](kind: type[R], fields_set: set[str], values: dict[str, Any]) -> R:
    """Return a record with all its fields from `values`, without validation.

    As pydantic's model_construct, in 1 µs instead of 11 µs for a Message; validation takes 6 µs. The record keeps
    `values`. `fields_set` may be shared, because records are frozen.
    """
    record = object.__new__(kind)
    _set_values(record, values)
    _set_fields_set(record, fields_set)
    _set_extra(record, None)
    _set_private(record, None)
    return record


# The slots of a model, set without looking up their names.
_set_values, _set_fields_set, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


Quote = Annotated[str, Clean, StringConstraints(min_length=1, max_length=MAX_QUOTE_CHARS)]
"""What a document says, word by word."""


class Role(StrEnum):
    """Who said it."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"


class Status(StrEnum):
    """How a message ended. Only `deleted` may follow another status, but for `in_progress`, which only a turn makes."""

    IN_PROGRESS = "in_progress"
    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DELETED = "deleted"


type RoleName = Literal["user", "assistant", "system", "tool"]
type StatusName = Literal["in_progress", "complete", "interrupted", "failed", "deleted"]

type AnyId = UUID | str
"""An id, or its text."""

GivenId = Accepts[UUID | None, AnyId | None]
GivenLabels = Accepts[Labels, list[str] | tuple[str, ...]]
GivenStatus = Accepts[Status, Status | StatusName]
GivenTime = Accepts[Time | None, datetime | str | None]
GivenStoreTime = Accepts[StoreTime | None, datetime | str | None]

ROLES = {role.value: role for role in Role}
STATUSES = {status.value: status for status in Status}
"""Members by value, for reading rows: calling the enumeration takes ten times as long."""


class Span(Given):
    """A part of a text, in code points, without the one at `end`."""

    start: Count
    end: Count

    @model_validator(mode="after")
    def _goes_forward(self) -> Self:
        if self.end < self.start:
            raise ValueError("a span ends at or after its start")
        return self


def _is_absent(value: object) -> bool:
    return value is None


class Source(Given):
    """A place in a document that an answer rests on. What is not known of it is absent."""

    document_id: Accepts[UUID, AnyId]
    file_path: FilePath
    header_anchor: ShortText | None = None
    similarity_score: Annotated[float, Field(strict=True, ge=-1, le=1, allow_inf_nan=False)]
    # Left out if absent, so that the fingerprint of a source without them stays as it was.
    title: ShortText | None = Field(default=None, exclude_if=_is_absent, description="The document's title.")
    quote: Quote | None = Field(default=None, exclude_if=_is_absent, description="What the document says there.")
    document_span: Span | None = Field(
        default=None, exclude_if=_is_absent, description="Where the passage is in the document."
    )
    answer_span: Span | None = Field(
        default=None, exclude_if=_is_absent, description="What it supports in the content of the answer."
    )


def stored_sources(text: str | None) -> tuple[Source, ...]:
    """Return the sources of a message from the JSON that a store keeps; fields of a later version are left out."""
    return tuple(Source.model_validate(each, extra="ignore") for each in json.loads(text)) if text else ()


def _without_crowd(value: object) -> object:
    """Refuse thousands of unknown fields at once: pydantic makes an error for each."""
    if isinstance(value, dict) and len(value) > len(Source.model_fields):
        raise ValueError(f"has an unknown field; known are {', '.join(Source.model_fields)}")
    return value


Sources = Annotated[
    tuple[Annotated[Source, BeforeValidator(_without_crowd)], ...], Field(max_length=MAX_SOURCES, fail_fast=True)
]
"""The sources of a new message. Validation stops at the first that is wrong."""


def _from_hex(value: object) -> object:
    return bytes.fromhex(value) if isinstance(value, str) else value


class NewConversation(Given):
    """A conversation to be created. Creating it again with the same id and the same values changes nothing."""

    id: GivenId = Field(default=untyped(None), description="Made by the store (UUID version 7) when absent.")
    title: ShortText | None = Field(default=None, description="Made from the first user message when absent.")
    context_id: ShortText | None = Field(
        default=None, description="The application's own scope to list conversations by."
    )
    project_id: GivenId = Field(default=untyped(None), description="The project that it belongs to.")
    llm_provider_id: GivenId = Field(
        default=untyped(None), description="The provider that answers. Absent: the default."
    )
    external_id: ShortText | None = Field(
        default=None, description="The id that another system knows the conversation by."
    )
    labels: GivenLabels = Field(default=untyped(()), description=LABELS)
    metadata: JsonObject = Field(default_factory=dict, description=METADATA)

    def fingerprint(self) -> bytes:
        """Return a hash of 16 bytes of the values that the caller sent, without the id."""
        texts = {"title": self.title, "context_id": self.context_id, "external_id": self.external_id}
        lines = [f"{name}={one_line(text)}" for name, text in texts.items() if text is not None]
        if self.project_id is not None:
            lines.append(f"project_id={self.project_id.int:x}")
        if self.llm_provider_id is not None:
            lines.append(f"llm_provider_id={self.llm_provider_id.int:x}")
        if self.labels:
            lines.append(f"labels={canonical_json(list(self.labels))}")
        return digest(lines, self.metadata, "")


Fingerprint = Annotated[bytes, BeforeValidator(_from_hex), Field(min_length=16, max_length=16)]
"""A fingerprint that a store kept: 16 bytes, as hexadecimal digits in JSON."""

GivenFingerprint = Accepts[Fingerprint | None, bytes | str | None]
KEPT_FINGERPRINT = AliasChoices("kept_fingerprint", "fingerprint")


class ImportedConversation(NewConversation):
    """A conversation from another system; with `created_at`, one that a store exported, to be restored as it was."""

    updated_at: GivenTime = Field(
        default=untyped(None),
        description="When it was last active; the time of import when absent, or when it lies in the future.",
    )
    project_name: ShortText | None = Field(
        default=None, description="The name of its project, which is made if there is none with project_id."
    )
    head_id: GivenId = Field(
        default=untyped(None), description="The message that history ends with. Absent: the last. Null: none."
    )
    created_at: GivenStoreTime = Field(
        default=untyped(None),
        description="The store's own time. With it, title and updated_at are restored as they are given.",
    )
    kept_fingerprint: GivenFingerprint = Field(
        default=untyped(None),
        validation_alias=KEPT_FINGERPRINT,
        description="The fingerprint that the store had: a late retry of its creation is known by it.",
    )

    @model_validator(mode="after")
    def _names_no_provider(self) -> Self:
        if self.llm_provider_id is not None:
            raise ValueError("an import has no llm_provider_id: providers belong to the installation")
        return self

    @property
    def is_restored(self) -> bool:
        """Whether a store exported it: then it has no title unless one is given, and any updated_at."""
        return self.created_at is not None

    def fingerprint(self) -> bytes:
        """Return the fingerprint that was kept, or a new one."""
        return self.kept_fingerprint or super().fingerprint()


class Conversation(Record):
    """A conversation as it is stored."""

    id: UUID
    owner_id: str
    title: str | None
    context_id: str | None
    project_id: UUID | None
    llm_provider_id: UUID | None
    external_id: str | None
    labels: tuple[str, ...]
    metadata: dict[str, Any]
    last_seq: int = Field(description="How many messages were ever appended, on all branches.")
    head_id: UUID | None = Field(description="The message that history ends with and the next one follows.")
    created_at: datetime
    updated_at: datetime = Field(description="Moved by every message, by nothing else.")


class ConversationChange(Given):
    """Fields of a conversation to change; omitted fields keep their value. JSON Merge Patch (RFC 7396)."""

    title: ShortText | None = None
    context_id: ShortText | None = None
    labels: GivenLabels = Field(default=untyped(()), description=f"All of its labels from now on. {LABELS}")
    metadata: JsonObject | None = Field(default=None, description="Merged into the metadata: null removes a key.")
    head_id: GivenId = Field(default=untyped(None), description="The message to continue after; null starts anew.")
    llm_provider_id: GivenId = Field(
        default=untyped(None), description="The provider that answers from now on; null: the default."
    )


class NewMessage(Given):
    """A message to be appended. Its id is the idempotency key: appending it again changes nothing.

    `parent_id` absent means "after the head"; null means "at the root", a new beginning.
    """

    id: GivenId = Field(default=untyped(None), description="Made by the store (UUID version 7) when absent.")
    role: Accepts[Role, Role | RoleName]
    content: Accepts[TextOrNothing, str | None] = Field(
        default=untyped(""),
        description="The plain text, which is read and searched; made from the parts of the type `text` if it is absent"
        " or empty. Never blank for user and system messages, unless there is a part such as a file.",
    )
    parent_id: GivenId = Field(
        default=untyped(None), description="The message it follows. Absent: the head. Null: none."
    )
    status: GivenStatus = untyped(Status.COMPLETE)
    parts: Accepts[GivenParts | None, Sequence[Mapping[str, Any]] | None] = Field(
        default=untyped(None), description=PARTS
    )
    sources: Accepts[Sources, Sequence[Source]] = untyped(())
    metadata: JsonObject = Field(default_factory=dict, description=METADATA)
    model: ShortText | None = Field(default=None, description="The model that made it.")
    input_tokens: Count | None = Field(default=None, description="Tokens that the model read for it.")
    output_tokens: Count | None = Field(default=None, description="Tokens that the model wrote for it.")
    duration_ms: Count | None = Field(default=None, description="Milliseconds that it took to make.")
    external_id: ShortText | None = Field(default=None, description="The id that another system knows the message by.")
    sent_at: GivenTime = Field(default=untyped(None), description="When it was said, if the writer knows.")

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        self._take_content()
        if self.status in (Status.DELETED, Status.IN_PROGRESS):
            raise ValueError(f"a new message cannot be {self.status.replace('_', ' ')}")
        if (
            self.role in (Role.USER, Role.SYSTEM)
            and (not self.content or self.content.isspace())
            and not says_more(self.parts)
        ):
            raise ValueError(f"the content of a {self.role} message must not be blank")
        return self

    def _take_content(self) -> None:
        """Make the content from the parts if it is not given. Raises ValueError if neither is."""
        if self.parts and not self.content:
            self.__dict__["content"] = content_of(self.role, self.parts)
        elif self.parts is None and "content" not in self.__pydantic_fields_set__:
            raise ValueError("content or parts must be given")

    def check_length(self, max_content_chars: int) -> None:
        """Raise InvalidInput if a user's or system's content is longer than the store allows (0: no limit)."""
        if self.role in (Role.USER, Role.SYSTEM) and 0 < max_content_chars < len(self.content):
            raise InvalidInput(
                f"the content of a {self.role} message may have at most {max_content_chars:,} characters, the store's"
                " max_content_chars",
                got=f"{len(self.content):,} characters",
            )

    @property
    def names_parent(self) -> bool:
        """Whether `parent_id` was given; null counts as given."""
        return "parent_id" in self.__pydantic_fields_set__

    def fingerprint(self) -> bytes:
        """Return a hash of 16 bytes of the values that the caller sent, without the id."""
        lines = ["role=" + self.role]
        if self.names_parent:
            lines.append(f"parent_id={self.parent_id.int:x}" if self.parent_id else "parent_id=")
        if self.status is not Status.COMPLETE:
            lines.append("status=" + self.status)
        if self.external_id is not None:
            lines.append("external_id=" + one_line(self.external_id))
        if self.sent_at is not None:
            lines.append(f"sent_at={to_micros(self.sent_at)}")
        if self.sources:
            lines.append(f"sources={canonical_json([source.model_dump(mode='json') for source in self.sources])}")
        if self.parts:
            lines.append(f"parts={canonical_json(list(self.parts))}")
        if self.model is not None:
            lines.append("model=" + one_line(self.model))
        lines += [f"{name}={count}" for name in COUNTS if (count := getattr(self, name)) is not None]
        return digest(lines, self.metadata, self.content)


def content_of(role: Role, parts: Sequence[Part]) -> str:
    """Return the content of a message that has only parts."""
    # Blocks of one answer go on within a sentence; what others send stands for itself.
    return text_of(parts, joined_by="" if role is Role.ASSISTANT else "\n")


COUNTS = ("input_tokens", "output_tokens", "duration_ms")


class NewAnswer(NewMessage):
    """The row of an answer that is about to be made: empty, and in progress. Only a turn appends it."""

    role: Accepts[Role, Role | RoleName] = untyped(Role.ASSISTANT)
    status: GivenStatus = untyped(Status.IN_PROGRESS)

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        return self


class ImportedMessage(NewMessage):
    """A message from another system: it may be blank, of any length, or a tombstone.

    It moves the conversation's `updated_at` to its own time at most, never to that of the import.
    """

    created_at: GivenStoreTime = Field(
        default=untyped(None), description="The store's own time; that of the import when absent."
    )
    kept_fingerprint: GivenFingerprint = Field(
        default=untyped(None),
        validation_alias=KEPT_FINGERPRINT,
        description="The fingerprint that the store had: a late retry of its append is known by it.",
    )

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        self._take_content()
        if self.status is Status.IN_PROGRESS:  # whoever made it is not here to go on
            self.__dict__["status"] = Status.INTERRUPTED
        if self.status is Status.DELETED and (self.content or self.metadata or self.sources or self.parts):
            raise ValueError("a deleted message has no content, parts, metadata or sources")
        return self

    def check_length(self, max_content_chars: int) -> None:  # noqa: ARG002 - imports are never cut
        return

    def fingerprint(self) -> bytes:
        """Return the fingerprint that was kept, or a new one."""
        return self.kept_fingerprint or super().fingerprint()


class Message(Record):
    """A message as it is stored. `seq` is dense and gives the order; times do not."""

    id: UUID
    conversation_id: UUID
    seq: int = Field(description="1, 2, 3 … over everything ever appended to the conversation.")
    parent_id: UUID | None
    role: Role
    content: str
    status: Status
    parts: tuple[Part, ...] | None
    sources: tuple[Source, ...]
    metadata: dict[str, Any]
    model: str | None
    input_tokens: int | None
    output_tokens: int | None
    duration_ms: int | None
    external_id: str | None
    sent_at: datetime | None
    created_at: datetime = Field(description="The store's time.")


class StreamPlace(Record):
    """How far the stream of an answer has come."""

    last_event_id: str = Field(description="Read on after it: the header `Last-Event-ID` of the answer's events.")


class RunningAnswer(Message):
    """An answer that is being made, with what there is of it."""

    stream: StreamPlace


class MessageChange(Given):
    """What may be changed of a message: its metadata, such as feedback. JSON Merge Patch (RFC 7396)."""

    metadata: JsonObject | None = Field(default=None, description="Merged into the metadata: null removes a key.")


CONVERSATION_FIELDS = set(Conversation.model_fields)
MESSAGE_FIELDS = set(Message.model_fields)
RUNNING_FIELDS = set(RunningAnswer.model_fields)
IMPORTED_FIELDS = set(ImportedMessage.model_fields)


class SearchHit(Record):
    """A message that contains every word of the query."""

    message: Message
    title: str | None = Field(description="The title of its conversation.")
    snippet: str = Field(description="The text around the first word found.")


UPDATABLE = ("title", "context_id", "labels", "metadata", "deletions", "head", "answers")
"""The differences that an import takes over if it is asked to."""


class ImportReceipt(Record):
    """What the import of a conversation did."""

    created: bool = Field(description="Whether the conversation is new.")
    messages: int = Field(description="New messages.")
    known: int = Field(description="Messages that were there.")
    differences: tuple[str, ...] = Field(
        default=(), description="What is there and differs: `title`, `metadata`, `head` …"
    )
    updated: tuple[str, ...] = Field(default=(), description="Those of the differences that were taken over.")

    @property
    def left(self) -> list[str]:
        """The differences that were not taken over."""
        return [name for name in self.differences if name not in self.updated]


class Page[Item](Record):
    """A part of a list, perhaps shorter than its limit. `next` is the cursor of the following part, null at the end."""

    items: list[Item]
    total: int | None = Field(default=None, description="Counted only when a page number or the total was asked for.")
    next: str | None = None


PAGE_FIELDS = set(Page.model_fields)


class ErasureReceipt(Record):
    """What an erasure removed from the store, counted as it went, and what a search for it afterwards found: nothing.

    A journal of a recorder is a file of its own, of which no receipt tells. What was recorded up to `erased_at` is
    refused, and removed from it, when the recorder next delivers; `chatkeep recorder erase FILE OWNER` removes it at
    once. Backups and exports keep what they have.
    """

    owner_id: str
    conversations: int
    messages: int
    search_entries: int
    labels: int = 0
    projects: int = 0
    documents: int = 0
    chunks: int = Field(default=0, description="Passages of documents.")
    vectors: int = 0
    turns: int = Field(default=0, description="Answers that were being made.")
    api_keys: int = 0
    requests: int = Field(default=0, description="Replies that were kept for requests that might be sent again.")
    remaining: int = Field(description="Rows of this owner that a re-count found when all was removed.")
    erased_at: datetime = Field(
        description="When the erasure began, by the clock of the database. Recorders refuse what is not newer."
    )


def digest(lines: list[str], metadata: dict[str, Any], content: str) -> bytes:
    """Return a hash of 16 bytes of a line for each value, an empty line, and the content.

    Absent values have no line, so that a new field does not change older hashes.
    """
    if metadata:
        lines.append("metadata=" + canonical_json(metadata))
    lines += "", content
    return hashlib.sha256("\n".join(lines).encode()).digest()[:16]


one_line = json.encoder.encode_basestring
"""A text as one line, in a fingerprint."""
