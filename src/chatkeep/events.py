"""The events of an answer that is being made, and the message that they add up to. No I/O.

Events are neutral: whoever makes an answer says what happens, and every wire is a pure function of that. Of these kinds
the first six become parts of the message (`chatkeep.parts`); the data of each are its fields.

    text         {text}: the next piece of it
    reasoning    {text, signature}: the next piece; with a signature it is the last one
    tool_call    {id, name, arguments}
    tool_result  {tool_call_id, content, is_error}
    source       {id, title, quote …}; with a document_id it is one of the message's sources, too
    data         {id, data}; or with a type of its own a part of that type, such as a file
    usage        {model, input_tokens, output_tokens}: of one request to the model; they are added up
    error        {reason, kind}: why the answer failed; the last one
    end          {status}: nothing follows; only readers see it, it is not stored
    state        what another process needs to go on with what follows; no reader sees it, and no message has it
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Any, NamedTuple
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from chatkeep.errors import InvalidInput
from chatkeep.model import MAX_SOURCES, Message, Source
from chatkeep.parts import Part, text_of
from chatkeep.validation import first_wrong
from chatkeep.values import MAX_COUNT, MAX_PARTS, Count, ShortText, clean_text, copy_json


class EventKind(StrEnum):
    """What happened."""

    TEXT = "text"
    REASONING = "reasoning"
    TOOL_CALL = "tool_call"
    TOOL_RESULT = "tool_result"
    SOURCE = "source"
    DATA = "data"
    USAGE = "usage"
    ERROR = "error"
    END = "end"
    STATE = "state"


KINDS = {kind.value: kind for kind in EventKind}
PROSE = frozenset({EventKind.TEXT, EventKind.REASONING})
"""The kinds that come in pieces. Their characters are counted, so that a reader can go on in the middle."""

IN_PARTS = frozenset(EventKind) - {EventKind.USAGE, EventKind.END, EventKind.STATE}
"""The kinds that are types of parts."""

SOURCE_FIELDS = frozenset(Source.model_fields)

TIMEOUT, PROVIDER, LIMIT = "timeout", "provider", "limit"
"""The kinds of errors: the provider was silent or slow, it failed, or the answer became too large."""


class Event(NamedTuple):
    """Something that happened while an answer was made."""

    kind: EventKind
    data: dict[str, Any]


class TurnEvent(NamedTuple):
    """An event with its number in its turn: 1, 2, 3 …"""

    n: int
    kind: EventKind
    data: dict[str, Any]

    @property
    def chars(self) -> int:
        """The code points of its text or reasoning."""
        return chars_of(self.kind, self.data)


def chars_of(kind: EventKind, data: dict[str, Any]) -> int:
    """Return the code points of text or reasoning; 0 for other kinds."""
    return len(data["text"]) if kind in PROSE else 0


def text(piece: str) -> Event:
    """Return the next piece of the text."""
    return Event(EventKind.TEXT, {"text": piece})


def reasoning(piece: str, **more: Any) -> Event:
    """Return the next piece of the reasoning."""
    return Event(EventKind.REASONING, {"text": piece, **more})


def error(reason: str, kind: str = PROVIDER) -> Event:
    """Return the reason of a failure, for a person to read."""
    return Event(EventKind.ERROR, {"reason": reason, "kind": kind})


def checked(event: Event) -> Event:
    """Return an event from a provider, as it can be stored: a copy of its own, with its text cleaned.

    Raises InvalidInput for what no message can hold.
    """
    if event.kind is EventKind.TEXT and event.data.keys() == {"text"} and isinstance(event.data["text"], str):
        return Event(event.kind, {"text": clean_text(event.data["text"])})  # nearly all of them
    try:
        (data,) = copy_json([dict(event.data)], MAX_PARTS)  # in a list, as parts are: both count as levels
        _check(event.kind, data)
    except (ValidationError, ValueError, TypeError) as error:
        raise InvalidInput(f"an event of the kind {event.kind} is not valid: {_reason(error)}") from None
    return Event(event.kind, data)


def _check(kind: EventKind, data: dict[str, Any]) -> None:
    """Raise ValueError for data that readers could not use."""
    if kind in PROSE and not isinstance(data.get("text"), str):
        raise ValueError("it needs a text")
    if kind in (EventKind.END, EventKind.STATE):
        raise ValueError("it is made by chatkeep")
    if "type" in data and (kind is not EventKind.DATA or not _is_other_type(data["type"])):
        raise ValueError("its kind is its type, but for data of another type")
    if kind is EventKind.SOURCE and "document_id" in data:
        source_of(data)
    if kind is EventKind.USAGE:
        USAGE.validate_python(data)


def _is_other_type(value: object) -> bool:
    """Whether a part may have a type that is no kind of event."""
    return isinstance(value, str) and bool(value) and value not in KINDS


def _reason(error: Exception) -> str:
    return str(first_wrong(error) if isinstance(error, ValidationError) else error)


class Usage(NamedTuple):
    """What one request to a model took."""

    model: ShortText | None = None
    input_tokens: Count | None = None
    output_tokens: Count | None = None


USAGE = TypeAdapter(Usage)


def source_of(data: dict[str, Any]) -> Source:
    """Return the source of the message that an event with a document_id is. Raises ValidationError."""
    return Source.model_validate({name: value for name, value in data.items() if name in SOURCE_FIELDS})


def plus(total: int | None, more: int | None) -> int | None:
    """Return the sum of two counts, of which either may be unknown: at most what a message can hold."""
    return more if total is None else min(total + (more or 0), MAX_COUNT)


class Folded(NamedTuple):
    """What the events of a turn add up to."""

    content: str = ""
    parts: tuple[Part, ...] | None = None
    """None if there is nothing but text."""
    sources: tuple[Source, ...] = ()
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    n: int = 0
    """The number of the last event."""
    chars: int = 0
    """Code points of all text and reasoning."""

    @property
    def error(self) -> dict[str, Any] | None:
        """Why it failed."""
        return error_of(self.parts)


def error_of(parts: Iterable[Part] | None) -> dict[str, Any] | None:
    """Return the part that says why an answer failed."""
    return next((part for part in reversed(tuple(parts or ())) if part["type"] == EventKind.ERROR), None)


def state_of(events: Sequence[TurnEvent]) -> dict[str, Any] | None:
    """Return what a process needs to go on with an answer after these events; None if it cannot be gone on with.

    That is the last state, unless a tool was called since: whether that had an effect, nobody knows.
    """
    decisive = (event for event in reversed(events) if event.kind is EventKind.STATE or event.kind in CALLED)
    last = next(decisive, None)
    return last.data if last is not None and last.kind is EventKind.STATE else None


CALLED = frozenset({EventKind.TOOL_CALL, EventKind.TOOL_RESULT})


def fold(events: Iterable[TurnEvent]) -> Folded:
    """Return what events, in their order, add up to. Text and reasoning of one block are put together."""
    parts: list[Part] = []
    pieces: list[str] = []
    sources: list[Source] = []
    usage, n, chars = Usage(), 0, 0
    for event in events:
        n, chars = event.n, chars + event.chars
        if event.kind is EventKind.USAGE:
            usage = _added(usage, event.data)
        if event.kind not in IN_PARTS:
            continue
        if event.kind is EventKind.SOURCE and "document_id" in event.data and len(sources) < MAX_SOURCES:
            sources.append(source_of(event.data))
        if not (event.kind in PROSE and parts and _goes_on(parts[-1], event)):
            _end_block(parts, pieces)
            parts.append({"type": event.kind.value, **event.data})
        elif len(event.data) > 1:
            parts[-1] |= event.data
        if event.kind in PROSE:
            pieces.append(event.data["text"])
    _end_block(parts, pieces)
    content = text_of(parts, joined_by="")
    only_text = all(part.keys() == {"type", "text"} and part["type"] == EventKind.TEXT for part in parts)
    return Folded(content, None if only_text else tuple(parts), tuple(sources), *usage, n, chars)


def _goes_on(part: Part, event: TurnEvent) -> bool:
    """Whether a piece belongs to the block before it."""
    return bool(
        part["type"] == event.kind
        and "signature" not in part
        and part.get("id") == event.data.get("id", part.get("id"))
    )


def _end_block(parts: list[Part], pieces: list[str]) -> None:
    """Put the pieces of the last block together."""
    if pieces:
        parts[-1]["text"] = "".join(pieces)
        pieces.clear()


def _added(usage: Usage, data: dict[str, Any]) -> Usage:
    more = USAGE.validate_python(data)
    return Usage(
        more.model or usage.model,
        plus(usage.input_tokens, more.input_tokens),
        plus(usage.output_tokens, more.output_tokens),
    )


def replayed(message: Message, after: int = 0) -> Iterator[Event]:
    """Yield a finished answer again, beginning after `after` code points of its text and reasoning.

    What is not text or reasoning comes again, whole: readers know by its id whether they have it.
    """
    for part in message.parts or ({"type": EventKind.TEXT.value, "text": message.content},):
        kind, data = _event_of(part)
        if kind in PROSE:
            chars = len(data["text"])
            has_passed = after > chars
            data["text"], after = data["text"][after:], max(0, after - chars)
            # A reader at the end of a block may not have what came with its last piece, such as a signature.
            if not data["text"] and (has_passed or data.keys() == {"text"}):
                continue
        yield Event(kind, data)


def _event_of(part: Part) -> Event:
    """The event that a part was; data if it is none, such as a file, or a text of another maker without any."""
    kind = KINDS.get(part["type"])
    data = {name: value for name, value in part.items() if name != "type"}
    if kind not in IN_PARTS or (kind in PROSE and not isinstance(part.get("text"), str)):
        return Event(EventKind.DATA, dict(part))
    return Event(kind, data)


# --- places in a stream ------------------------------------------------------------------------------------

EVENT_ID = re.compile(r"([0-9a-f]{8})-([0-9]{1,18})-([0-9]{1,18})")


class Place(NamedTuple):
    """A place in the stream of an answer: the last event that a reader has."""

    attempt: str
    """The beginning of the answer's id: no two answers have the same, so that no place is one of another's."""
    n: int
    chars: int

    def __str__(self) -> str:
        return f"{self.attempt}-{self.n}-{self.chars}"


def place_of(message_id: UUID, n: int = 0, chars: int = 0) -> Place:
    """Return a place in the stream of an answer."""
    return Place(message_id.hex[:8], n, chars)


def parse_place(event_id: str) -> Place | None:
    """Return the place that the id of an event names; None if it is not such an id."""
    found = EVENT_ID.fullmatch(event_id)
    return Place(found[1], int(found[2]), int(found[3])) if found else None
