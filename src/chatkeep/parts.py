"""The parts of a message: the whole message as its maker had it, beside the plain text. No I/O.

A part is a JSON object with a `type`. These types mean the same whoever made the message; every other type, and every
other field, is kept as it came:

    text         {text}
    reasoning    {text, signature}: the signature byte for byte
    tool_call    {id, name, arguments}: arguments as JSON, or as the text that the model wrote
    tool_result  {tool_call_id, content, is_error}
    file         {url or file_id, media_type, name, size, hash}: a reference; images and audio are files
    source       {document_id or url, title, quote}
    data         {data}: what an application shows
"""

from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, WithJsonSchema

from chatkeep.values import (
    MAX_INTEGER_DIGITS,
    MAX_JSON_DEPTH,
    MAX_METADATA_VALUES,
    MAX_PARTS,
    MAX_PARTS_BYTES,
    copy_json,
)

TEXT = "text"
BESIDE_TEXT = frozenset({"file", "data", "tool_result"})
"""Types that say something without a text: a message of a user may consist of one alone."""

PARTS = (
    "The whole message as its maker had it: objects with a `type`, such as `text` {text}, `reasoning` {text,"
    " signature}, `tool_call` {id, name, arguments}, `tool_result` {tool_call_id, content, is_error}, `file` {url or"
    " file_id, media_type, name, size, hash}, `source`, `data`. Other types and fields are kept. At most"
    f" {MAX_PARTS_BYTES:,} bytes as JSON, {MAX_JSON_DEPTH} levels, {MAX_METADATA_VALUES:,} values, and"
    f" {MAX_INTEGER_DIGITS:,} digits in an integer."
)

NO_LIST = "must be a list of objects, each with a type"


def _copied(value: object) -> object:
    """A deep copy of parts, with their text cleaned. Raises BeyondLimits, or another ValueError."""
    if not isinstance(value, list | tuple):
        raise ValueError(NO_LIST)  # noqa: TRY004 - pydantic takes ValueErrors
    return tuple(copy_json(list(value), MAX_PARTS))


def checked(parts: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...] | None:
    """Return parts that each have a type, None without any. Raises ValueError."""
    if not all(isinstance(kind := part.get("type"), str) and kind for part in parts):
        raise ValueError(NO_LIST)
    return parts or None


def text_of(parts: Iterable[dict[str, Any]], *, joined_by: str) -> str:
    """Return the text of the parts of the type `text`. Some makers have something else there."""
    return joined_by.join(text for part in parts if part["type"] == TEXT and isinstance(text := part.get("text"), str))


def says_more(parts: Iterable[dict[str, Any]] | None) -> bool:
    """Whether there is something beside text, such as a file."""
    return any(part["type"] in BESIDE_TEXT for part in parts or ())


Part = Annotated[
    dict[str, Any],
    WithJsonSchema(
        {"type": "object", "properties": {"type": {"type": "string", "minLength": 1}}, "required": ["type"]}
    ),
]
Parts = Annotated[tuple[Part, ...], Field(fail_fast=True), AfterValidator(checked)]
"""Parts that a parser made."""

GivenParts = Annotated[Parts, BeforeValidator(_copied)]
"""Parts from a caller."""
