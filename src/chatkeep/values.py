"""Cleans, checks, serialises and parses text, JSON and times. No I/O.

Text is cleaned here and nowhere else: valid Unicode is kept unchanged. Surrogates, which are not valid Unicode, are
joined if they form a pair, and become U+FFFD otherwise (`clean_text`).
"""

import json
import math
import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from itertools import accumulate, zip_longest
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints
from pydantic_core import to_json

from chatkeep.errors import InvalidInput

MAX_SHORT_TEXT_CHARS = 255
"""Longest title, context_id and external_id, in characters."""

MAX_LABELS = 32
"""Most labels of a conversation."""

MAX_LABEL_CHARS = 64
"""Longest label of a conversation, in characters."""

MAX_OWNER_BYTES = 255
"""Longest owner, in bytes of UTF-8."""

MAX_TITLE_FROM_MESSAGE = 80
"""Longest title that is derived from a message, in characters."""

MAX_TITLE_WORDS = MAX_TITLE_FROM_MESSAGE // 2 + 1

MAX_JSON_DEPTH = 100
"""Deepest nesting of metadata, in levels. pydantic serialises at most 254, and a response adds some levels."""

MAX_METADATA_VALUES = 100_000
"""Most values in metadata: the items of all its lists and objects."""

MAX_METADATA_BYTES = 1 << 20
"""Most bytes of metadata, as compact JSON in UTF-8."""

MAX_PARTS_BYTES = 8 << 20
"""Most bytes of the parts of a message, as compact JSON in UTF-8. Their other limits are those of metadata."""

MAX_INTEGER_DIGITS = 4_300
"""Most digits of an integer in metadata: as many as Python reads, which takes quadratic time."""

MAX_COUNT = 2**63 - 1
"""Largest count of tokens or milliseconds."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# --- text, JSON, times ----------------------------------------------------------------------------------


def clean_text(text: str) -> str:
    """Return `text` as valid Unicode: surrogate pairs joined, lone surrogates replaced by U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return _without_surrogates(text)
    return text


REPLACEMENT = "\ufffd"

_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_LONE = re.compile("[\ud800-\udfff]")

_PIECE_CHARS = 1 << 16
"""Longer text is cleaned in pieces of so many characters, milliseconds each, and other threads run between them."""


def _without_surrogates(text: str) -> str:
    joined = _PAIR.sub(_join, text)
    if len(joined) <= _PIECE_CHARS:
        return _LONE.sub(REPLACEMENT, joined)
    pieces = (joined[start : start + _PIECE_CHARS] for start in range(0, len(joined), _PIECE_CHARS))
    return "".join(_LONE.sub(REPLACEMENT, piece) for piece in pieces)


def _join(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")


def json_text(value: object) -> str:
    """Return compact JSON of a value that `copy_json` or `load_json` returned. It keeps integers of any size."""
    return to_json(value).decode()


def parse_json(text: str) -> Any:
    """Parse strict JSON (no NaN), and clean its escaped text. Raises ValueError.

    An integer of too many digits is not parsed, which would take long, but becomes one that `copy_json` refuses.
    """
    try:
        value = _DECODER.decode(text)
        return _clean_deeply(value) if "\\ud" in text or "\\uD" in text else value
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _clean_deeply(value: object) -> Any:
    if isinstance(value, dict):
        return {clean_text(key): _clean_deeply(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_clean_deeply(each) for each in value]
    return _clean(value)


def load_json(text: str) -> Any:
    """Return the value of JSON that a store wrote, however many digits its integers have."""
    try:
        return json.loads(text)
    except ValueError:
        return json.loads(text, parse_int=_long_integer)


def _long_integer(text: str) -> int:
    """Return an integer of any number of digits: pieces that Python parses, put together pair by pair.

    Python's limit for the whole process stays as it is. A million digits take a second.
    """
    digits, width = text.lstrip("-"), MAX_INTEGER_DIGITS
    pieces = [int(digits[max(0, end - width) : end]) for end in range(len(digits), 0, -width)]
    power: int = 10**width
    while len(pieces) > 1:
        pairs = zip_longest(pieces[::2], pieces[1::2], fillvalue=0)
        pieces = [low + high * power for low, high in pairs]
        power = power * power if len(pieces) > 1 else 1
    return -pieces[0] if text.startswith("-") else pieces[0]


def canonical_json(value: object) -> str:
    """Return canonical JSON, with sorted keys, of a value that `copy_json` or `load_json` returned."""
    return json_text(_with_sorted_keys(value))


def _with_sorted_keys(value: object) -> object:
    if isinstance(value, dict):
        return {key: _with_sorted_keys(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_with_sorted_keys(each) for each in value]
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if value in (math.inf, -math.inf):
        raise ValueError("a number is too large")
    return value


def _integer_or_too_long(text: str) -> int:
    return int(text) if len(text.lstrip("-")) <= MAX_INTEGER_DIGITS else _TOO_LONG


_TOO_LONG = 10**MAX_INTEGER_DIGITS
"""The smallest integer with too many digits."""

_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite, parse_int=_integer_or_too_long)
"""Calls Python for each number, so that thousands of long ones do not keep other threads from running."""


def _clean(value: object) -> object:
    return clean_text(value) if isinstance(value, str) else value


def _not_blank(text: str) -> str:
    if not text or text.isspace():
        raise ValueError("must not be blank")
    return text


# --- what metadata may hold ------------------------------------------------------------------------------


class MetadataLimits(NamedTuple):
    """The most that metadata may hold. The defaults are the limits of every record; a store may have lower ones."""

    depth: int = MAX_JSON_DEPTH
    """Levels of objects and lists; the metadata itself is the first."""
    values: int = MAX_METADATA_VALUES
    """Items of all lists and objects."""
    size: int = MAX_METADATA_BYTES
    """Bytes of compact JSON in UTF-8."""
    digits: int = MAX_INTEGER_DIGITS
    """Digits of each integer."""


MAX_METADATA = MetadataLimits()
MAX_PARTS = MetadataLimits(size=MAX_PARTS_BYTES)


class BeyondLimits(ValueError):
    """Metadata is beyond one of its limits."""


NOT_JSON = "may hold only JSON values: objects, lists, text, finite numbers, true, false and null"


def copy_json(value: object, limits: MetadataLimits = MAX_METADATA) -> Any:
    """Return a deep copy of a JSON value, with its text cleaned.

    Tuples become lists, and keys that are numbers, true, false or null become text, as in Python's own JSON. Raises
    BeyondLimits, or another ValueError for what is not JSON: NaN, infinities, other types. The messages go on from
    the name of the field.
    """
    if limits is MAX_METADATA and type(value) is dict and _is_small(value):
        return value.copy()
    return copy_and_size(value, limits)[0]


def _is_small(value: dict[Any, Any]) -> bool:
    """Whether metadata is flat and within every limit without counting: in a third of the time, for nearly all."""
    if len(value) > _FEW:
        return False
    for key, each in value.items():
        if type(key) is not str or len(key) >= _LONG or not key.isascii():
            return False
        kind = type(each)
        if kind is str:
            if len(each) >= _LONG or not each.isascii():
                return False
        elif kind is int:
            if not -_SHORT < each < _SHORT:
                return False
        elif each is not None and kind is not bool:
            return False
    return True


def copy_and_size(value: object, limits: MetadataLimits = MAX_METADATA) -> tuple[Any, int]:
    """Return what `copy_json` returns, and its size in bytes. What is too large is refused before it is copied."""
    copied = _copy(value, limits.depth, _Left(limits))
    size = len(to_json(copied))
    if size > limits.size:
        raise BeyondLimits(_too_large(limits))
    return copied, size


class _Left:
    """How much more a copy may hold."""

    __slots__ = ("chars", "limits", "values")

    def __init__(self, limits: MetadataLimits) -> None:
        self.limits, self.values, self.chars = limits, limits.values, limits.size


_LONG = 1_000
"""Shorter text need not be counted in characters: how many there are is limited."""

_FEW = 16
"""So many values, and their keys, are less than a fifth of a mebibyte, each character escaped."""

_SHORT = 1 << 63
"""Integers below it need not be counted in digits."""


def _copy(value: Any, levels: int, left: _Left) -> Any:
    kind = type(value)
    if kind is str:
        return value if len(value) < _LONG and value.isascii() else _copy_text(value, left)
    if kind is int:
        return value if -_SHORT < value < _SHORT else _copy_integer(value, left)
    if value is None or kind is bool or (kind is float and math.isfinite(value)):
        return value
    if kind is not dict and kind is not list:
        return _copy(_plain(value), levels, left)
    left.values -= len(value)
    if left.values < 0 or levels == 0:
        raise BeyondLimits(_too_many(left))
    if kind is dict:
        return {_copy_key(key, left): _copy(each, levels - 1, left) for key, each in value.items()}
    return [_copy(each, levels - 1, left) for each in value]


def _copy_key(key: object, left: _Left) -> str:
    if type(key) is str:
        return key if len(key) < _LONG and key.isascii() else _copy_text(key, left)
    if isinstance(key, str):
        return _copy_text(str.__str__(key), left)
    if key is None or isinstance(key, int | float):
        return json.dumps(_copy(key, 0, left))
    raise ValueError(NOT_JSON)


def _copy_text(text: str, left: _Left) -> str:
    _take(len(text), left)
    return text if text.isascii() else clean_text(text)


def _copy_integer(value: int, left: _Left) -> int:
    digits = left.limits.digits
    too_long = _TOO_LONG if digits == MAX_INTEGER_DIGITS else 10**digits
    if not -too_long < value < too_long:
        raise BeyondLimits(f"may have at most {digits:,} digits in an integer")
    _take(value.bit_length() * 3 // 10, left)
    return value


def _take(chars: int, left: _Left) -> None:
    """Count what takes a byte for each character, or more, before it is copied."""
    left.chars -= chars
    if left.chars < 0:
        raise BeyondLimits(_too_large(left.limits))


def _too_many(left: _Left) -> str:
    return MOST_VALUES.format(left.limits.values) if left.values < 0 else MOST_LEVELS.format(left.limits.depth)


def _too_large(limits: MetadataLimits) -> str:
    return f"may have at most {limits.size:,} bytes as JSON"


MOST_VALUES = "may have at most {:,} values"
MOST_LEVELS = "may have at most {} levels of objects and lists"

_BEGINNING = 1 << 19
"""Bytes of JSON that are looked at first."""

_SPACE = b" \t\r\n"
_LEVELS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_NO_BRACKET = bytes(set(range(256)) - _LEVELS.keys())


def check_structure(text: bytes, max_values: int, max_depth: int) -> None:
    """Raise BeyondLimits if JSON has more values, which are the items of all lists and objects, or more levels.

    Takes linear time and parses nothing. What is not JSON may pass, or be refused for whichever reason.
    """
    opened = text.count(b"[") + text.count(b"{")
    if opened <= max_depth and opened + text.count(b",") <= max_values:
        return  # nearly always, even with the brackets and commas in texts
    for part in (text[:_BEGINNING], text):  # what is far beyond is so from its beginning
        _check_part(part, max_values, max_depth)


def _check_part(text: bytes, max_values: int, max_depth: int) -> None:
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if bare.count(b'"') > 4 * max_values + 2:  # each value may have a key, and each text has two
        raise BeyondLimits(MOST_VALUES.format(max_values))
    outside = b'"'.join(bare.split(b'"')[::2]).translate(None, _SPACE)
    opened = outside.count(b"[") + outside.count(b"{")
    values = outside.count(b",") + opened - outside.count(b"[]") - outside.count(b"{}")
    if max(values, opened - 1) > max_values:
        raise BeyondLimits(MOST_VALUES.format(max_values))
    brackets = outside.translate(None, _NO_BRACKET)[: 2 * opened]
    if max(accumulate(map(_LEVELS.__getitem__, brackets)), default=0) > max_depth:
        raise BeyondLimits(MOST_LEVELS.format(max_depth))


def _plain(value: object) -> object:
    """Return a value of another class as JSON has it. Raises ValueError."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float) and math.isfinite(value):
        return float.__float__(value)
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list | tuple):
        return list(value)
    raise ValueError(NOT_JSON)


def _only_iso_or_datetime(value: object) -> object:
    if not isinstance(value, str | datetime):
        raise ValueError("must be a date and time with a time zone, such as 2026-01-31T12:00:00Z")  # noqa: TRY004
    return value


def _to_utc(time_: datetime) -> datetime:
    try:
        return time_.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is outside the years 1 to 9999") from error


Clean: BeforeValidator = BeforeValidator(_clean)
"""Text without lone surrogates."""

Text = Annotated[str, Clean]
TextOrNothing = Annotated[
    str, BeforeValidator(lambda value: "" if value is None else _clean(value), json_schema_input_type=str | None)
]
"""Text, empty if null is given."""

NOT_BLANK = Field(json_schema_extra={"pattern": r"\S"})
"""What `_not_blank` checks, in a schema."""

ShortText = Annotated[
    str,
    BeforeValidator(_clean),
    StringConstraints(min_length=1, max_length=MAX_SHORT_TEXT_CHARS),
    NOT_BLANK,
    AfterValidator(_not_blank),
]
NOT_A_LABEL = "!"
"""What stands before a label in a filter that leaves out the conversations that have it."""


_CONTROLS = r"\x00-\x1f\x7f-\x9f\u2028\u2029"
_CONTROL = re.compile(f"[{_CONTROLS}]")


def _label(text: str) -> str:
    if text.startswith(NOT_A_LABEL):
        raise ValueError("must not begin with '!'")
    if _CONTROL.search(text):
        raise ValueError("must have no control characters, such as line breaks")
    return text


def _without_repetition(labels: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(labels))


LABEL_PATTERN = rf"^(?!\s*$)[^!{_CONTROLS}][^{_CONTROLS}]*$"
LABEL_FILTER_PATTERN = rf"^!?(?!\s*$)[^!{_CONTROLS}][^{_CONTROLS}]{{0,{MAX_LABEL_CHARS - 1}}}$"

Label = Annotated[
    str,
    BeforeValidator(_clean),
    StringConstraints(min_length=1, max_length=MAX_LABEL_CHARS),
    Field(json_schema_extra={"pattern": LABEL_PATTERN}),
    AfterValidator(_not_blank),
    AfterValidator(_label),
]
Labels = Annotated[tuple[Label, ...], Field(max_length=MAX_LABELS, fail_fast=True), AfterValidator(_without_repetition)]
"""The labels of a conversation, each once, in the order in which they were given."""

Count = Annotated[int, Field(strict=True, ge=0, le=MAX_COUNT)]
FilePath = Annotated[
    str, BeforeValidator(_clean), StringConstraints(max_length=4096), NOT_BLANK, AfterValidator(_not_blank)
]
JsonObject = Annotated[dict[str, Any], BeforeValidator(copy_json)]
AnyTime = Annotated[AwareDatetime, AfterValidator(_to_utc)]
"""A time in UTC, also from a number of seconds."""

Time = Annotated[AnyTime, BeforeValidator(_only_iso_or_datetime)]


def _since_epoch(time_: datetime) -> datetime:
    if time_ < EPOCH:
        raise ValueError("is before 1970, when there was no store")
    return time_


StoreTime = Annotated[Time, AfterValidator(_since_epoch)]
"""A time at which a store wrote something."""


def to_micros(moment: datetime) -> int:
    """Return the microseconds since 1970-01-01 UTC, exactly."""
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def labels_text(labels: Iterable[str]) -> str | None:
    """Return the labels of a conversation as SQL databases store them: each on a line of its own; None without any."""
    text = "\n".join(labels)
    return f"\n{text}\n" if text else None


def labels_of(text: str | None) -> tuple[str, ...]:
    """Return the labels that `labels_text` made a text of."""
    return tuple(text[1:-1].split("\n")) if text else ()


def from_micros(micros: int) -> datetime:
    """Return the time of `micros`: the inverse of `to_micros`."""
    return EPOCH + timedelta(0, 0, micros)  # by position, which takes two thirds of the time


def now() -> datetime:
    """Return the current time in UTC, with microseconds."""
    return datetime.now(UTC)


# --- checks of the port's arguments ----------------------------------------------------------------------


def valid_owner(owner: str) -> str:
    """Return `owner` unchanged. Raises InvalidInput.

    Owners are never cleaned: two owners must not become one.
    """
    try:
        size = len(str.encode(owner))
    except (UnicodeEncodeError, TypeError):
        raise InvalidInput("an owner must be a text of valid Unicode") from None
    if not 1 <= size <= MAX_OWNER_BYTES:
        raise InvalidInput(f"an owner must be 1 to {MAX_OWNER_BYTES} bytes of UTF-8 long", got=f"{size} bytes")
    return owner


def valid_json(name: str, value: object, limits: MetadataLimits) -> None:
    """Raise InvalidInput if metadata or parts of a record are beyond `limits`, which are a store's."""
    if limits in (MAX_METADATA, MAX_PARTS):
        return  # every record keeps these
    try:
        copy_json(value, limits)
    except ValueError as error:
        raise InvalidInput(f"{name} {error}") from None


_ESCAPE_CHAR = "\ufdd0"
"""Escape character, a noncharacter: four hexadecimal digits follow, for NUL or for itself."""

_ESCAPED_ITSELF = f"{_ESCAPE_CHAR}fdd0"
_ESCAPED_NUL = f"{_ESCAPE_CHAR}0000"


def encode_nul(text: str) -> str:
    """Return `text` with NUL escaped, for databases that cannot store it. Reversible."""
    if "\0" not in text and _ESCAPE_CHAR not in text:
        return text
    return text.replace(_ESCAPE_CHAR, _ESCAPED_ITSELF).replace("\0", _ESCAPED_NUL)


def decode_nul(text: str) -> str:
    """Return the text that `encode_nul` escaped."""
    return text.replace(_ESCAPED_NUL, "\0").replace(_ESCAPED_ITSELF, _ESCAPE_CHAR) if _ESCAPE_CHAR in text else text


def valid_range(name: str, value: int, low: int, high: int) -> int:
    """Return `value` if it is in low … high; never coerces. Raises InvalidInput."""
    if not low <= value <= high:
        raise InvalidInput(f"{name} must be between {low} and {high}", got=value)
    return value


# --- titles, and changes of metadata ----------------------------------------------------------------------


def title_from(content: str) -> str | None:
    """Return the first line of `content` that is not blank, cut at a word to 80 characters; None without one."""
    first, _, _ = content.lstrip().partition("\n")
    # So many words are longer than any title: the rest of a long line need not be split.
    line = " ".join(first.split(None, MAX_TITLE_WORDS)[:MAX_TITLE_WORDS])
    if len(line) <= MAX_TITLE_FROM_MESSAGE:
        return line or None
    start, space, _ = line[:MAX_TITLE_FROM_MESSAGE].rpartition(" ")
    return (start if space and len(start) > MAX_TITLE_FROM_MESSAGE // 2 else line[: MAX_TITLE_FROM_MESSAGE - 1]) + "…"


def merge_patch(target: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """Return `target` after a JSON Merge Patch (RFC 7396): null removes a key, objects merge, other values replace."""
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


def patched(
    metadata: dict[str, Any], patch: dict[str, Any] | None, limits: MetadataLimits
) -> tuple[dict[str, Any], str]:
    """Return metadata after a merge patch, which shares values with both, and its JSON; None empties it.

    Raises InvalidInput: many small patches are too much.
    """
    merged = {} if patch is None else merge_patch(metadata, patch)
    try:
        if limits is not MAX_METADATA:
            copy_json(merged, limits)
        # Each part kept the limits of every record; of the whole, counting in its JSON takes a tenth of the time.
        text = to_json(merged)
        if len(text) > limits.size:
            raise BeyondLimits(_too_large(limits))
        check_structure(text, limits.values, limits.depth)
    except BeyondLimits as error:
        raise InvalidInput(f"metadata {error}, and would have more after this change; remove some first") from None
    return merged, text.decode()
