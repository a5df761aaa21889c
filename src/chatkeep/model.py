"""What is stored: frozen records, and the rules that their values keep. No I/O.

The records are the library's values and the HTTP API's schemas alike. Text is cleaned here and nowhere
else: every valid Unicode string is kept as it is, and surrogates, which are not valid Unicode, are joined
where they form a pair and become U+FFFD where they stand alone (`clean_text`).
"""

import hashlib
import json
import math
import re
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self
from uuid import UUID

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from pydantic_core import to_json

from chatkeep.errors import InvalidInput

MAX_CONTENT_CHARS = 10_000
"""Longest content of a user or system message, in characters, unless a store is opened with another limit."""

MAX_LABEL_CHARS = 255
"""Longest title, context_id and external_id, in characters."""

MAX_OWNER_BYTES = 255
"""Longest owner, in bytes of UTF-8."""

MAX_TITLE_FROM_MESSAGE = 80
"""Longest title that is made from a message, in characters."""

MAX_TITLE_WORDS = MAX_TITLE_FROM_MESSAGE // 2 + 1

MAX_JSON_DEPTH = 100
"""Deepest nesting of metadata, in levels: pydantic writes JSON of at most 254, and an answer adds some of its own."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


# --- text, JSON, times ----------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    """Return `text` as valid Unicode: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


_ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dump_json(value: object) -> str:
    """Serialise `value` as compact JSON that keeps key order, NUL and integers of any size.

    Raises ValueError for what JSON cannot hold: NaN, infinities, other types, cycles, more than 100 levels.
    """
    try:
        text = _ENCODE(value)
    except TypeError as error:
        raise ValueError("only JSON values can be stored: objects, lists, text, numbers, true, false, null") from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    _check_depth(text, value)
    return clean_text(text)


def json_text(value: object) -> str:
    """Serialise what `dump_json` accepted before, faster (measured at 1 µs against 4 µs)."""
    return to_json(value).decode()


def parse_json(text: str) -> Any:
    """Parse strict JSON (valid Unicode, no NaN, at most 100 levels) and clean the text that it escapes.

    Raises ValueError.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    _check_depth(text, value)
    return copy_json(value) if "\\u" in text else value


def _canonical_json(value: object) -> str:
    """Serialise what `dump_json` accepted before in the one form that equal values have."""
    return json_text(_with_sorted_keys(value))


def _with_sorted_keys(value: object) -> object:
    if isinstance(value, dict):
        return {key: _with_sorted_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_with_sorted_keys(each) for each in value]
    return value


TOO_DEEP = f"JSON is nested too deeply; at most {MAX_JSON_DEPTH} levels are possible"


def _check_depth(text: str, value: object) -> None:
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH and _is_deeper(value, MAX_JSON_DEPTH):
        raise ValueError(TOO_DEEP)


def _is_deeper(value: object, limit: int) -> bool:
    """Whether a JSON value has more than `limit` levels of objects and lists; without recursion."""
    level = [value]
    for _ in range(limit + 1):
        containers = [each for each in level if isinstance(each, dict | list | tuple)]
        if not containers:
            return False
        level = [inner for each in containers for inner in (each.values() if isinstance(each, dict) else each)]
    return True


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (math.inf, -math.inf):
        raise ValueError("a number is too large")
    return value


def _clean(value: object) -> object:
    return clean_text(value) if isinstance(value, str) else value


def _not_blank(text: str) -> str:
    if not text or text.isspace():
        raise ValueError("must not be blank")
    return text


class _NotPlain(Exception):
    """A value is not of the types that JSON is read as, or it is nested too deeply, or no number."""


def copy_json(value: object) -> Any:
    """Copy a JSON value, so that what the caller does to it later changes nothing; its text is cleaned.

    Raises ValueError for what JSON cannot hold.
    """
    try:
        return _copy_plain(value, MAX_JSON_DEPTH)
    except _NotPlain:
        return json.loads(dump_json(value))


def _copy_plain(value: object, levels: int) -> object:
    """The same for nearly all values that there are, in a third of the time."""
    if type(value) is str:
        return value if value.isascii() else clean_text(value)
    if value is None or type(value) is int or type(value) is bool:
        return value
    if type(value) is float and math.isfinite(value):
        return value
    if type(value) is dict and levels:
        return {_plain_key(key): _copy_plain(each, levels - 1) for key, each in value.items()}
    if type(value) is list and levels:
        return [_copy_plain(each, levels - 1) for each in value]
    raise _NotPlain


def _plain_key(key: object) -> str:
    if type(key) is not str:
        raise _NotPlain
    return clean_text(key)


def _only_iso_or_datetime(value: object) -> object:
    if not isinstance(value, str | datetime):
        raise ValueError("must be a date and time with a time zone, such as 2026-01-31T12:00:00Z")  # noqa: TRY004
    return value


def _to_utc(time_: datetime) -> datetime:
    try:
        return time_.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is outside the years 1 to 9999") from error


Text = Annotated[str, BeforeValidator(_clean)]
Label = Annotated[
    str,
    BeforeValidator(_clean),
    StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS),
    AfterValidator(_not_blank),
]
JsonObject = Annotated[dict[str, Any], BeforeValidator(copy_json)]
Time = Annotated[AwareDatetime, BeforeValidator(_only_iso_or_datetime), AfterValidator(_to_utc)]


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC, exactly."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def from_micros(micros: int) -> datetime:
    """The inverse of `to_micros`."""
    return EPOCH + timedelta(microseconds=micros)


def now() -> datetime:
    """The current time, UTC, in microseconds."""
    return datetime.now(UTC)


# --- checks of the port's arguments ----------------------------------------------------------------------


def valid_owner(owner: str) -> str:
    """Return `owner` unchanged. Raises InvalidInput.

    An owner is never cleaned: two owners must not become one.
    """
    try:
        size = len(owner.encode())
    except (UnicodeEncodeError, AttributeError):
        raise InvalidInput("an owner must be a text of valid Unicode") from None
    if not 1 <= size <= MAX_OWNER_BYTES:
        raise InvalidInput(f"an owner must be 1 to {MAX_OWNER_BYTES} bytes of UTF-8 long", got=f"{size} bytes")
    return owner


_MARK = "\ufdd0"
"""A noncharacter, which begins the four hexadecimal digits of what stands for itself or for NUL."""

_NOT_AS_IT_IS = re.compile(f"[\0{_MARK}]")
_ENCODED = re.compile(f"{_MARK}(0000|fdd0)")


def encode_nul(text: str) -> str:
    """Return `text` without NUL, which not every database can hold; different texts stay different."""
    if "\0" not in text and _MARK not in text:
        return text
    return _NOT_AS_IT_IS.sub(lambda match: f"{_MARK}{ord(match.group()):04x}", text)


def decode_nul(text: str) -> str:
    """The inverse of `encode_nul`."""
    return _ENCODED.sub(lambda match: chr(int(match.group(1), 16)), text) if _MARK in text else text


def valid_range(name: str, value: int, low: int, high: int) -> int:
    """Return `value` where it lies in low … high. Raises InvalidInput; nothing is coerced."""
    if not low <= value <= high:
        raise InvalidInput(f"{name} must be between {low} and {high}", got=value)
    return value


# --- records ---------------------------------------------------------------------------------------------


class Record(BaseModel):
    """A frozen value. Validation errors never repeat the input, which may be private."""

    model_config = ConfigDict(frozen=True, hide_input_in_errors=True)


class Given(Record):
    """What a caller gives: a field that is not known is an error, not a value that is lost."""

    model_config = ConfigDict(extra="forbid")


def stored[R: Record](kind: type[R], fields_set: set[str], values: dict[str, Any]) -> R:
    """Build a record of values that were checked already, for all its fields, without checking them again.

    What pydantic's model_construct does for a record with all its fields given: measured at 1 µs against
    11 µs, and 6 µs for validation, for a Message. The record keeps `values`. `fields_set` may be shared:
    records are frozen.
    """
    record = object.__new__(kind)
    _set_values(record, values)
    _set_fields_set(record, fields_set)
    _set_extra(record, None)
    _set_private(record, None)
    return record


# A model's own four slots, written without looking their names up.
_set_values, _set_fields_set, _set_extra, _set_private = (
    vars(BaseModel)[name].__set__
    for name in ("__dict__", "__pydantic_fields_set__", "__pydantic_extra__", "__pydantic_private__")
)


class Role(StrEnum):
    """Who said it."""

    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    TOOL = "tool"


class Status(StrEnum):
    """How far a message came. Only `deleted` may follow a final status."""

    COMPLETE = "complete"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    DELETED = "deleted"


ROLES = {role.value: role for role in Role}
STATUSES = {status.value: status for status in Status}
"""By value: rows are read with these, as calling an enumeration takes ten times as long."""


class Source(Given):
    """A place in a document that an answer rests on."""

    document_id: UUID
    file_path: Annotated[str, BeforeValidator(_clean), StringConstraints(max_length=4096), AfterValidator(_not_blank)]
    header_anchor: Label | None = None
    similarity_score: Annotated[float, Field(strict=True, ge=-1, le=1, allow_inf_nan=False)]


class NewConversation(Given):
    """A conversation to be created. Creating it again with the same id and the same values changes nothing."""

    id: UUID | None = Field(None, description="Made by the store (UUID version 7) when absent.")
    title: Label | None = Field(None, description="Made from the first user message when absent.")
    context_id: Label | None = Field(None, description="The application's own label to list conversations by.")
    external_id: Label | None = Field(None, description="The id that another system knows the conversation by.")
    metadata: JsonObject = Field(default_factory=dict)

    def fingerprint(self) -> bytes:
        """Sixteen bytes that are equal exactly when the caller sent the same values (id apart)."""
        texts = {"title": self.title, "context_id": self.context_id, "external_id": self.external_id}
        lines = [f"{name}={_one_line(text)}" for name, text in texts.items() if text is not None]
        return _digest(lines, self.metadata, "")


class ImportedConversation(NewConversation):
    """A conversation as another system kept it."""

    updated_at: Time | None = Field(None, description="When it was last active; the time of import when absent.")


class Conversation(Record):
    """A conversation as it is stored."""

    id: UUID
    owner_id: str
    title: str | None
    context_id: str | None
    external_id: str | None
    metadata: dict[str, Any]
    last_seq: int = Field(description="How many messages were ever appended, on all branches.")
    head_id: UUID | None = Field(description="The message that history ends with and the next one follows.")
    created_at: datetime
    updated_at: datetime = Field(description="Moved by every message, by nothing else.")


class ConversationChange(Given):
    """What to change of a conversation; what is absent stays. JSON Merge Patch (RFC 7396)."""

    title: Label | None = None
    metadata: JsonObject | None = Field(None, description="Merged into the metadata: null removes a key.")
    head_id: UUID | None = Field(None, description="The message to continue after; null starts anew.")


class NewMessage(Given):
    """A message to be appended. Its id is the idempotency key: appending it again changes nothing.

    `parent_id` absent means "after the head"; null means "at the root", a new beginning.
    """

    id: UUID | None = Field(None, description="Made by the store (UUID version 7) when absent.")
    role: Role
    content: Text = Field(description="Never blank for user and system messages.")
    parent_id: UUID | None = Field(None, description="The message it follows. Absent: the head. Null: none.")
    status: Status = Status.COMPLETE
    sources: tuple[Source, ...] = ()
    metadata: JsonObject = Field(default_factory=dict)
    external_id: Label | None = Field(None, description="The id that another system knows the message by.")
    sent_at: Time | None = Field(None, description="When it was said, where that is known better than by the store.")

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        if self.status == Status.DELETED:
            raise ValueError("a message cannot be new and deleted")
        if self.role in (Role.USER, Role.SYSTEM) and (not self.content or self.content.isspace()):
            raise ValueError(f"the content of a {self.role} message must not be blank")
        return self

    def check_length(self, max_content_chars: int) -> None:
        """Raise InvalidInput where a user's or system's content is longer than the store allows (0: no limit)."""
        if self.role in (Role.USER, Role.SYSTEM) and 0 < max_content_chars < len(self.content):
            raise InvalidInput(
                f"the content of a {self.role} message may have at most {max_content_chars:,} characters",
                got=f"{len(self.content):,} characters",
            )

    @property
    def names_parent(self) -> bool:
        """Whether the writer said what it follows; null counts as said."""
        return "parent_id" in self.__pydantic_fields_set__

    def fingerprint(self) -> bytes:
        """Sixteen bytes that are equal exactly when the caller sent the same values (id apart)."""
        lines = ["role=" + self.role]
        if self.names_parent:
            lines.append(f"parent_id={self.parent_id.int:x}" if self.parent_id else "parent_id=")
        if self.status is not Status.COMPLETE:
            lines.append("status=" + self.status)
        if self.external_id is not None:
            lines.append("external_id=" + _one_line(self.external_id))
        if self.sent_at is not None:
            lines.append(f"sent_at={to_micros(self.sent_at)}")
        if self.sources:
            lines.append(f"sources={_canonical_json([source.model_dump(mode='json') for source in self.sources])}")
        return _digest(lines, self.metadata, self.content)


class ImportedMessage(NewMessage):
    """A message as another system kept it: empty and long turns stay, and so do the marks of deleted ones.

    It moves the conversation's `updated_at` to its own `sent_at` at most, never to the time of the import.
    """

    @model_validator(mode="after")
    def _has_something_to_say(self) -> Self:
        if self.status == Status.DELETED and (self.content or self.metadata or self.sources):
            raise ValueError("a deleted message has no content, metadata or sources")
        return self

    def check_length(self, max_content_chars: int) -> None:  # noqa: ARG002 - what happened is kept
        return


class Message(Record):
    """A message as it is stored. `seq` is dense and says the order; times are data, not order."""

    id: UUID
    conversation_id: UUID
    seq: int = Field(description="1, 2, 3 … over everything ever appended to the conversation.")
    parent_id: UUID | None
    role: Role
    content: str
    status: Status
    sources: tuple[Source, ...]
    metadata: dict[str, Any]
    external_id: str | None
    sent_at: datetime | None
    created_at: datetime = Field(description="The store's time.")


CONVERSATION_FIELDS = set(Conversation.model_fields)
MESSAGE_FIELDS = set(Message.model_fields)


class SearchHit(Record):
    """A message that holds every word of the query."""

    message: Message
    title: str | None = Field(description="The title of its conversation.")
    snippet: str = Field(description="The text around the first word found.")


class Page[Item](Record):
    """A part of a list. `next` is the cursor of the following part, null at the end."""

    items: list[Item]
    total: int | None = Field(None, description="Counted only when a page number or the total was asked for.")
    next: str | None = None


PAGE_FIELDS = set(Page.model_fields)


class ErasureReceipt(Record):
    """What an erasure removed, counted as it went, and what a search for it afterwards found: nothing."""

    owner_id: str
    conversations: int
    messages: int
    search_entries: int
    api_keys: int = 0
    requests: int = Field(0, description="Replies that were kept for requests that might be sent again.")
    remaining: int = Field(description="Rows of this owner that a re-count found when all was removed.")
    erased_at: datetime


def _digest(lines: list[str], metadata: dict[str, Any], content: str) -> bytes:
    """Hash what the caller sent: a line for each value that is there, an empty line, and the content.

    What is absent leaves no line, so that a field that is added one day does not change older hashes.
    """
    if metadata:
        lines.append("metadata=" + _canonical_json(metadata))
    lines += "", content
    return hashlib.sha256("\n".join(lines).encode()).digest()[:16]


_one_line = json.encoder.encode_basestring


def title_from(content: str) -> str | None:
    """The first line of `content` that is not blank, at most 80 characters, cut at a word. None if there is none."""
    first, _, _ = content.lstrip().partition("\n")
    # So many words are longer than any title: the rest of a long line need not be looked at.
    line = " ".join(first.split(None, MAX_TITLE_WORDS)[:MAX_TITLE_WORDS])
    if len(line) <= MAX_TITLE_FROM_MESSAGE:
        return line or None
    start, space, _ = line[:MAX_TITLE_FROM_MESSAGE].rpartition(" ")
    return (start if space and len(start) > MAX_TITLE_FROM_MESSAGE // 2 else line[: MAX_TITLE_FROM_MESSAGE - 1]) + "…"


def merge_patch(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Apply a JSON Merge Patch (RFC 7396): null removes a key, an object is merged, anything else replaces."""
    merged = dict(target)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, dict):
            old = merged.get(key)
            merged[key] = merge_patch(old if isinstance(old, dict) else {}, value)
        else:
            merged[key] = value
    return merged
