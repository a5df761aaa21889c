"""The records: what they accept, what they refuse, and what they make of text and time."""

import json
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from chatkeep.errors import InvalidId, InvalidInput
from chatkeep.ids import new_id, uuid_of, valid_id
from chatkeep.model import (
    MAX_QUOTE_CHARS,
    MESSAGE_FIELDS,
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    Message,
    NewConversation,
    NewMessage,
    Role,
    Source,
    Span,
    Status,
    stored,
    stored_sources,
)
from chatkeep.values import (
    MAX_METADATA,
    clean_text,
    copy_json,
    from_micros,
    json_text,
    load_json,
    merge_patch,
    parse_json,
    title_from,
    to_micros,
    valid_owner,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
ANY_STRING = st.text(st.characters(exclude_categories=()))


@given(ANY_STRING)
def test_cleaned_text_is_valid_unicode_and_keeps_what_was_valid(text: str) -> None:
    """Cleaning gives valid Unicode, changes nothing that was valid, and cleaning twice changes nothing more."""
    cleaned = clean_text(text)

    cleaned.encode()
    assert clean_text(cleaned) == cleaned
    if not any("\ud800" <= character <= "\udfff" for character in text):
        assert cleaned == text


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("\ud83d\ude00", "\U0001f600"),
        ("a\ud800b", "a\ufffdb"),
        ("\udc00\ud800", "\ufffd\ufffd"),
        ("\ud800\ud83d\ude00", "\ufffd\U0001f600"),
    ],
)
def test_surrogates_are_joined_or_replaced(raw: str, cleaned: str) -> None:
    """A surrogate pair becomes its character, a lone surrogate U+FFFD."""
    assert NewMessage(role=Role.USER, content=raw).content == cleaned
    assert NewConversation(metadata={raw: [raw]}).metadata == {cleaned: [cleaned]}


@given(st.dictionaries(st.text(), JSON, max_size=4))
def test_metadata_comes_back_as_it_went_in(metadata: dict[str, object]) -> None:
    """Every JSON object survives, big integers, NUL and the order of its keys included."""
    kept = NewMessage(role=Role.USER, content="x", metadata=metadata).metadata

    assert kept == metadata
    assert list(kept) == list(metadata)
    assert load_json(json_text(kept)) == metadata


class Shout(str):
    """Text of a type of its own."""

    __slots__ = ()


ODD = (Shout("x"), Role.USER, (1, [2]), {1: 2}, {None: True}, {Role.USER: 1}, "\ud83d\ude00", {"\ud800": "\udc00"},
       math.nan, math.inf, -0.0, 1 << 80, b"x", {1, 2}, UUID(int=1), MappingProxyType({"a": 1}), OrderedDict(a=[()])
)  # fmt: skip


def told(value: object) -> object:
    """A value with the types of all its parts."""
    if isinstance(value, dict):
        return [(told(key), told(each)) for key, each in value.items()]
    return [told(each) for each in value] if isinstance(value, list) else (type(value), repr(value))


def check_copy(value: object) -> None:
    """Copying gives what reading the value's JSON gives, type for type, and is refused where there is none."""
    try:
        expected = json.loads(clean_text(json.dumps(value, ensure_ascii=False, allow_nan=False)))
    except (TypeError, ValueError):
        with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
            copy_json(value)
        return
    assert told(copy_json(value)) == told(expected)


@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_copy_of_an_odd_value_is_what_its_text_says(value: object) -> None:
    """Alone, and within lists and objects."""
    for each in (value, [value], {"x": value}):
        check_copy(each)


@given(
    st.recursive(
        JSON | st.sampled_from(ODD) | ANY_STRING,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(ANY_STRING | st.integers(), inner, max_size=3),
    )
)
def test_a_copy_is_what_its_text_says(value: object) -> None:
    """So it is for whatever can be made of such values."""
    check_copy(value)


def nested(levels: int) -> Any:
    """So many lists, each in the next."""
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


RECORDS: dict[Callable[..., Any], dict[str, Any]] = {
    NewConversation: {},
    ImportedConversation: {},
    ConversationChange: {},
    NewMessage: {"role": Role.USER, "content": "x"},
    ImportedMessage: {"role": Role.USER, "content": "x"},
}
"""Records that hold metadata of the caller's, and their other values."""


@pytest.mark.parametrize("nest", [lambda inner: [inner], lambda inner: {"x": inner}])
def test_a_copy_has_a_hundred_levels_at_most(nest: Callable[[object], object]) -> None:
    """A hundred levels can be copied, one more cannot."""
    value: object = 1
    for _ in range(100):
        value = nest(value)
    assert copy_json(value) == value
    with pytest.raises(ValueError, match="at most 100 levels"):
        copy_json(nest(value))


AT_MOST: dict[str, tuple[Any, Any, str]] = {
    "levels": (nested(99), nested(100), "at most 100 levels"),
    "levels beside others": ([1, [2], nested(98)], [1, [2], nested(99)], "at most 100 levels"),
    "digits": (10**4300 - 1, 10**4300, "at most 4,300 digits"),
    "digits of a negative": (1 - 10**4300, -(10**4300), "at most 4,300 digits"),
    "values": ([0] * 99_999, [0] * 100_000, "at most 100,000 values"),
    "values in parts": ([[0] * 49_998] * 2 + [{}], [[0] * 49_999] * 2, "at most 100,000 values"),
    "bytes": ("x" * ((1 << 20) - 8), "x" * ((1 << 20) - 7), "at most 1,048,576 bytes"),
    "bytes of text that is not ASCII": ("é" * ((1 << 19) - 4), "é" * ((1 << 19) - 3), "at most 1,048,576 bytes"),
    "bytes of text that is escaped": ("\0" * 174_761, "\0" * 174_762, "at most 1,048,576 bytes"),
    "bytes of integers": ([10**4000] * 262, [10**4000] * 263, "at most 1,048,576 bytes"),
}
"""For each limit: a value of a key `x` at it, one beyond it, and what the error says."""


@pytest.mark.parametrize("name", AT_MOST)
def test_metadata_is_limited(name: str) -> None:
    """Every record takes metadata up to a limit, and refuses more with the field and the limit in the error."""
    most, more, message = AT_MOST[name]
    for record, values in RECORDS.items():
        kept = record(metadata={"x": most}, **values).metadata
        assert kept == {"x": most}
        assert load_json(json_text(kept)) == kept
        with pytest.raises(InvalidInput, match="metadata") as refused:
            record(metadata={"x": more}, **values)
        assert message in str(refused.value)


def shared(levels: int) -> list[Any]:
    """A list that holds the same list twice, which does so, too: small in memory, and endless as text."""
    value: list[Any] = [(1,)]
    for _ in range(levels):
        value = [value, value]
    return value


def cycle() -> dict[str, Any]:
    """An object that holds itself a thousand times."""
    value: dict[str, Any] = {}
    value |= {str(number): value for number in range(1_000)}
    return value


@pytest.mark.parametrize(
    "value",
    [
        [[] for _ in range(2_000_000)],
        {str(number): number for number in range(700_000)},
        shared(60),
        [0] * 99_000 + [shared(60)],
        cycle(),
        ["é" * 1_000_000] * 90_000,
        {"a": [{"é" * 1_000_000: 1}] * 90_000},
        [10**4000] * 90_000,
        nested(100_000),
        ({},) * 5_000_000,
    ],
    ids=["lists", "keys", "shared", "shared, behind others", "cycle", "texts", "long keys", "digits", "deep", "tuple"],
)
def test_what_is_far_too_large_is_refused_soon(value: object) -> None:
    """No metadata takes longer than what is just allowed, however large its text would be."""
    began = time.process_time()
    with pytest.raises(ValueError, match=r"^may have at most"):
        copy_json({"x": value})
    assert time.process_time() - began < 3.0


@pytest.mark.parametrize("key", [math.nan, 10**5000, (1, 2), b"x", object()], ids=["nan", "int", "tuple", "bytes", "x"])
def test_keys_that_are_no_text_of_json_are_refused(key: object) -> None:
    """Keys become text as in Python's own JSON, or are the caller's error."""
    with pytest.raises(ValueError, match=r"^may h"):
        copy_json({"x": {key: 1}})


def test_limits_may_be_lower() -> None:
    """Each limit counts as it is given."""
    limits = MAX_METADATA._replace(depth=2, values=5, size=40, digits=20)
    assert copy_json({"a": [1, 2, 3], "b": 10**19}, limits)
    for value, message in (
        ({"a": [[1]]}, "at most 2 levels"),
        ({"a": [1, 2, 3, 4, 5]}, "at most 5 values"),
        ({"a": "x" * 33}, "at most 40 bytes"),
        ({"a": -(10**20)}, "at most 20 digits"),
    ):
        with pytest.raises(ValueError, match=message):
            copy_json(value, limits)


@pytest.mark.parametrize("digits", [1, 4_300, 4_301, 8_600, 8_601, 50_001])
def test_integers_of_any_length_are_read(digits: int) -> None:
    """Text that an older version stored is read exactly, without a change of Python's limit for the process."""
    text = "".join(str(place * 7 % 10) for place in range(1, digits + 1))
    limit = sys.get_int_max_str_digits()
    found = load_json(f'{{"a": [{text}, -{text}], "b": 1.5}}')
    assert sys.get_int_max_str_digits() == limit
    assert json_text(found) == f'{{"a":[{text},-{text}],"b":1.5}}'


def test_levels_of_an_older_version_are_read() -> None:
    """An import once took as many levels as its parser reads: they are read and written."""
    text = f'{{"a":{"[" * 198}{"]" * 198}}}'
    assert json_text(load_json(text)) == text


@pytest.mark.long
def test_a_million_digits_are_read_in_seconds() -> None:
    """Reading long integers does not take quadratic time, which would be minutes."""
    began = time.process_time()
    assert load_json("9" * 1_000_000) % 2**64 == (10**1_000_000 - 1) % 2**64
    assert time.process_time() - began < 10.0


def test_metadata_is_a_copy() -> None:
    """What the caller does to its dictionary afterwards does not change the record."""
    metadata = {"list": [1]}
    message = NewMessage(role=Role.USER, content="x", metadata=metadata)

    metadata["list"].append(2)

    assert message.metadata == {"list": [1]}


@pytest.mark.parametrize("bad", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {"x": {1, 2}}])
def test_metadata_that_is_not_json_is_refused(bad: dict[str, object]) -> None:
    """NaN, infinities and objects that JSON does not have are the caller's error."""
    with pytest.raises(InvalidInput):
        NewMessage(role=Role.USER, content="x", metadata=bad)


def test_nested_too_deeply_is_refused() -> None:
    """A structure that is nested without end is an error, not a crash."""
    endless: list[object] = []
    endless.append(endless)
    with pytest.raises(InvalidInput):
        NewConversation(metadata={"x": endless})
    with pytest.raises(ValueError, match="nested too deeply"):
        parse_json("[" * 200_000 + "]" * 200_000)
    assert parse_json("[" * 103 + "]" * 103)  # a document has some levels more than the metadata in it


@pytest.mark.parametrize("text", ["NaN", "[Infinity]", "-Infinity", "1e999", "{", "'a'", ""])
def test_json_is_strict(text: str) -> None:
    """What only Python's parser takes for JSON is refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - the parser's own words differ
        parse_json(text)


@pytest.mark.parametrize("role", ["user", "system"])
@pytest.mark.parametrize("content", ["", " ", "\n\t ", "\u2003"])
def test_users_and_systems_say_something(role: str, content: str) -> None:
    """A user or system message is never blank, and the error says so."""
    with pytest.raises(InvalidInput, match=f"the content of a {role} message must not be blank"):
        NewMessage(role=Role(role), content=content)


@pytest.mark.parametrize("role", ["assistant", "tool"])
def test_assistants_and_tools_may_be_silent(role: str) -> None:
    """An assistant or tool message may be empty: tool calls stand in its metadata."""
    assert NewMessage(role=Role(role), content="").content == ""


def test_an_unknown_role_is_refused_in_words() -> None:
    """The error names the roles there are and does not repeat the input."""
    with pytest.raises(InvalidInput, match="'user', 'assistant', 'system' or 'tool'") as refused:
        NewMessage(role=cast("Role", "robot"), content="x")
    assert "robot" not in str(refused.value)


def test_a_new_message_is_not_deleted_and_an_imported_one_may_be() -> None:
    """The mark of a deleted message comes with an import only, and without content."""
    with pytest.raises(InvalidInput, match="a new message cannot be deleted"):
        NewMessage(role=Role.USER, content="x", status=Status.DELETED)
    with pytest.raises(InvalidInput, match="deleted message has no content"):
        ImportedMessage(role=Role.USER, content="x", status=Status.DELETED)
    assert ImportedMessage(role=Role.USER, content="", status=Status.DELETED).status == Status.DELETED


def test_length_is_limited_for_people_only() -> None:
    """Users and systems have a limit, which the error names; what assistants, tools and imports say has none."""
    NewMessage(role=Role.USER, content="x" * 10).check_length(10)
    NewMessage(role=Role.USER, content="x" * 11).check_length(0)
    NewMessage(role=Role.ASSISTANT, content="x" * 11).check_length(10)
    ImportedMessage(role=Role.USER, content="x" * 11).check_length(10)
    with pytest.raises(InvalidInput, match="at most 10 characters"):
        NewMessage(role=Role.SYSTEM, content="x" * 11).check_length(10)


@pytest.mark.parametrize("time", ["2026-01-01T00:00:00", "yesterday", 1767225600, "0001-01-01T00:00:00+14:00"])
def test_times_without_a_zone_are_refused(time: Any) -> None:
    """A time needs a zone and a place between the years 1 and 9999; a bare number is ambiguous."""
    with pytest.raises(InvalidInput):
        NewMessage(role=Role.USER, content="x", sent_at=time)


def test_times_are_kept_to_the_microsecond_in_utc() -> None:
    """Any zone is accepted and becomes UTC; microseconds survive storage."""
    zone = timezone(timedelta(hours=5, minutes=30))
    sent = NewMessage(role=Role.USER, content="x", sent_at=datetime(2026, 1, 1, 5, 30, 0, 123_456, zone)).sent_at

    assert sent == datetime(2026, 1, 1, 0, 0, 0, 123_456, UTC)
    assert from_micros(to_micros(sent)) == sent


@given(st.datetimes(timezones=st.just(UTC)))
def test_every_time_survives_storage(moment: datetime) -> None:
    """Microseconds since 1970 say every moment of the years 1 to 9999 exactly."""
    assert from_micros(to_micros(moment)) == moment


@pytest.mark.parametrize("title", ["", "  ", "x" * 256])
def test_titles_have_one_to_255_characters(title: str) -> None:
    """A title is neither blank nor longer than 255 characters."""
    for kind in (NewConversation, ConversationChange):
        with pytest.raises(InvalidInput):
            kind(title=title)


def test_sources_are_checked() -> None:
    """A source names a document and a file, and its score is a similarity."""
    good = {"document_id": str(new_id()), "file_path": "a.md", "header_anchor": None, "similarity_score": 0.5}
    assert Source.model_validate(good).header_anchor is None
    for bad in (
        {"document_id": "x"},
        {"file_path": " "},
        {"similarity_score": 1.5},
        {"similarity_score": float("nan")},
        {"extra": 1},
    ):
        with pytest.raises(ValidationError):
            Source.model_validate(good | bad)


PLACE = {"document_id": UUID(int=1), "file_path": "a.md", "similarity_score": 0.25}


@pytest.mark.parametrize(
    "bad",
    [
        {"title": ""},
        {"title": " "},
        {"title": "t" * 256},
        {"quote": ""},
        {"quote": "q" * (MAX_QUOTE_CHARS + 1)},
        {"quote": 7},
        *(
            {name: span}
            for name in ("document_span", "answer_span")
            for span in (
                {"start": 2, "end": 1},
                {"start": -1, "end": 1},
                {"start": 0, "end": 2**63},
                {"start": True, "end": 1},
                {"start": 0, "end": True},
                {"start": 0.0, "end": 1},
                {"start": 0, "end": 1.0},
                {"start": "0", "end": 1},
                {"start": 0},
                {"end": 1},
                {"start": 0, "end": 1, "more": 1},
                [0, 1],
                "0-1",
            )
        ),
    ],
    ids=repr,
)
def test_what_a_source_says_is_checked(bad: dict[str, Any]) -> None:
    """Titles and quotes have limits, and spans are two counts that go forward; the error does not repeat them."""
    with pytest.raises(ValidationError) as refused:
        Source.model_validate({**PLACE, **bad})
    assert "qqq" not in str(refused.value)
    with pytest.raises(InvalidInput):
        NewMessage(role=Role.ASSISTANT, content="x", sources=cast("Any", [{**PLACE, **bad}]))


def test_what_a_source_may_say() -> None:
    """A quote may be as long as the limit, and blank; a span may be empty, and end as far as a count goes."""
    quote, most = "q" * (MAX_QUOTE_CHARS - 1) + "🌿", 2**63 - 1
    source = Source.model_validate(
        {
            **PLACE,
            "title": "a\ud800",
            "quote": quote,
            "document_span": {"start": most, "end": most},
            "answer_span": {"start": 0, "end": most},
        }
    )
    assert (source.title, source.quote) == ("a\ufffd", quote)
    assert source.document_span == Span(start=most, end=most)
    assert Source.model_validate({**PLACE, "quote": "\n"}).quote == "\n"
    assert Source.model_validate_json(source.model_dump_json()) == source


def test_a_source_is_stored_as_before() -> None:
    """What is absent of title, quote and spans is in no JSON: that of a source without any is as an earlier version
    wrote it. The schema has them nevertheless."""
    source = Source.model_validate(PLACE)
    before = f'{{"document_id":"{UUID(int=1)}","file_path":"a.md","header_anchor":null,"similarity_score":0.25}}'
    assert source.model_dump_json() == json_text([source])[1:-1] == before
    assert Source.model_validate_json(before) == source
    titled = source.model_copy(update={"title": "T", "answer_span": Span(start=0, end=1)})
    assert titled.model_dump_json() == f'{before[:-1]},"title":"T","answer_span":{{"start":0,"end":1}}}}'
    for mode in ("validation", "serialization"):
        assert Source.model_json_schema(mode=mode)["properties"].keys() == Source.model_fields.keys()


def test_stored_sources_of_a_later_version() -> None:
    """Fields that this version does not know are left out of what a store kept, and refused of what a caller sends."""
    later = {**Source.model_validate(PLACE).model_dump(mode="json"), "page": 7}
    assert stored_sources(json.dumps([later, later])) == (Source.model_validate(PLACE),) * 2
    assert stored_sources(None) == stored_sources("") == ()
    with pytest.raises(ValidationError):
        Source.model_validate(later)


def test_providers_of_conversations() -> None:
    """A conversation names its provider by an id; a change tells null, the default, from what is left as it is."""
    id_ = new_id()
    assert NewConversation(llm_provider_id=str(id_)).llm_provider_id == id_
    assert NewConversation().llm_provider_id is ConversationChange().llm_provider_id is None
    assert ConversationChange(llm_provider_id=None).model_fields_set == {"llm_provider_id"}
    assert ConversationChange().model_fields_set == set()
    for kind in (NewConversation, ConversationChange):
        for bad in ("", "tea", 7, str(id_) + "0"):
            with pytest.raises(ValidationError, match="llm_provider_id"):
                kind.model_validate({"llm_provider_id": bad})
    with pytest.raises(InvalidInput, match="providers belong to the installation"):
        ImportedConversation(llm_provider_id=id_)
    assert ImportedConversation(llm_provider_id=None).fingerprint() == NewConversation().fingerprint()


def test_ids_are_uuids() -> None:
    """An id is a UUID of any version, as such or as text; anything else is InvalidId, a ValueError."""
    id_ = new_id()
    assert id_.version == 7
    assert valid_id(id_) == valid_id(str(id_)) == valid_id(id_.hex.upper()) == id_
    for bad in ("", "abc", "0190f0f0", str(id_) + "0", None, 5):
        with pytest.raises(InvalidId):
            valid_id(bad)  # type: ignore[arg-type]
    assert issubclass(InvalidId, ValueError)


@given(st.integers(min_value=0, max_value=2**128 - 1))
def test_quick_uuids_are_uuids(value: int) -> None:
    """uuid_of builds exactly what the standard library builds."""
    assert uuid_of(value) == UUID(int=value)
    assert hash(uuid_of(value)) == hash(UUID(int=value))
    assert str(uuid_of(value)) == str(UUID(int=value))


@pytest.mark.parametrize("owner", ["", "x" * 256, "é" * 128, "\ud800", b"ada", 5, None])
def test_owners_have_limits(owner: Any) -> None:
    """An owner is 1 to 255 bytes of valid Unicode; it is refused otherwise, never cleaned."""
    with pytest.raises(InvalidInput, match="an owner must be"):
        valid_owner(owner)


def test_a_fingerprint_says_what_the_caller_sent() -> None:
    """Equal values have equal fingerprints whatever the order of keys; every other value has another one."""
    base = {"role": "user", "content": "hello"}
    other_id, parent = new_id(), new_id()
    variants = [
        base,
        base | {"role": "assistant"},
        base | {"content": "hello "},
        base | {"parent_id": None},
        base | {"parent_id": parent},
        base | {"status": "failed"},
        base | {"external_id": "a"},
        base | {"external_id": "a\nsent_at=1"},
        base | {"sent_at": "2026-01-01T00:00:00Z"},
        base | {"metadata": {"a": 1}},
        base | {"metadata": {"a": 1.0}},
        base | {"sources": [{"document_id": parent, "file_path": "a", "similarity_score": 1}]},
        *(
            base | {"sources": [{"document_id": parent, "file_path": "a", "similarity_score": 1, **more}]}
            for more in (
                {"title": "T"},
                {"quote": "T"},
                {"document_span": {"start": 0, "end": 1}},
                {"answer_span": {"start": 0, "end": 1}},
                {"answer_span": {"start": 0, "end": 2}},
            )
        ),
        base | {"parts": [{"type": "text", "text": "hello"}]},
        base | {"parts": [{"type": "text", "text": "hello"}, {"type": "data", "data": 1}]},
        base | {"parts": [{"type": "data", "data": 1}, {"type": "text", "text": "hello"}]},
        base | {"parts": [{"type": "data", "data": 1.0}, {"type": "text", "text": "hello"}]},
        base | {"model": "m"},
        base | {"model": "m\ninput_tokens=0"},
        base | {"input_tokens": 0},
        base | {"output_tokens": 0},
        base | {"duration_ms": 0},
        base | {"duration_ms": 1},
        {"role": "user", "content": "\nhello"},
    ]
    prints = [NewMessage.model_validate(variant).fingerprint() for variant in variants]

    assert len(set(prints)) == len(variants)
    assert NewMessage.model_validate(base | {"id": other_id}).fingerprint() == prints[0]
    swapped = [NewMessage.model_validate(base | {"metadata": m}) for m in ({"a": 1, "b": 2}, {"b": 2, "a": 1})]
    assert swapped[0].fingerprint() == swapped[1].fingerprint()
    parts = ([{"type": "data", "data": 1}], [{"data": 1, "type": "data"}])
    assert len({NewMessage.model_validate(base | {"parts": each}).fingerprint() for each in parts}) == 1
    absent: list[dict[str, Any]] = [{"parts": []}, {"parts": None}, {"model": None, "input_tokens": None}]
    for nothing in absent:
        assert NewMessage.model_validate(base | nothing).fingerprint() == prints[0]


def test_a_fingerprint_of_a_conversation_says_what_the_caller_sent() -> None:
    """The same for conversations, whose labels count in their order."""
    variants: list[dict[str, Any]] = [
        {},
        {"title": "T"},
        {"context_id": "T"},
        {"external_id": "T"},
        {"project_id": UUID(int=1)},
        {"project_id": UUID(int=2)},
        {"llm_provider_id": UUID(int=1)},
        {"llm_provider_id": UUID(int=2)},
        {"project_id": UUID(int=1), "llm_provider_id": UUID(int=1)},
        {"labels": ["a"]},
        {"labels": ["a", "b"]},
        {"labels": ["b", "a"]},
        {"labels": ['a","b']},
        {"metadata": {"a": 1}},
    ]
    prints = [NewConversation.model_validate(variant).fingerprint() for variant in variants]

    assert len(set(prints)) == len(variants)
    assert NewConversation(labels=("a", "b", "a")).fingerprint() == prints[10]
    assert NewConversation(id=new_id(), labels=()).fingerprint() == prints[0]


EARLIER: dict[str, dict[str, Any]] = {
    "63ef0a280dfdc0688830061a46c5574b": {"role": "user", "content": "How hot?"},
    "1cb5e10127b4b9e49775024d35b8bc70": {"role": "assistant", "content": "", "parent_id": None},
    "6e654a55ade89591dc18a70c69dbed78": {
        "role": "tool",
        "content": "line\nline\x00 😀",
        "parent_id": UUID(int=7),
        "status": "interrupted",
    },
    "855e627393af7f02eb8fba79ac31fdca": {
        "role": "assistant",
        "content": "80 °C",
        "metadata": {"z": 10**40, "a": [1.0, -0.0, None, True], "é": {"b": 1, "a": 2}},
        "external_id": "e\nx",
        "sent_at": "2026-01-31T12:00:00.000001Z",
    },
    "712f1ecd277886b0e08af7e756658864": {
        "role": "assistant",
        "content": "x",
        "sources": [{"document_id": UUID(int=1), "file_path": "a.md", "similarity_score": 0.25}],
        "status": "failed",
    },
    "fe7cef8fbf3f4432c39964ccf9cb7504": {
        "role": "assistant",
        "content": "Steep it.",
        "sources": [
            {
                "document_id": UUID(int=1),
                "file_path": "a.md",
                "header_anchor": "#tea\x00",
                "similarity_score": 0.25,
            },
            {"document_id": UUID(int=2), "file_path": "b/ü 🌿.md", "similarity_score": -1},
        ],
    },
}
"""Messages by the fingerprints that commit 4209e41, which knew no parts, models and counts, made of them, and at last
one of commit 37c24d1, whose sources had no titles, quotes and spans."""

EARLIER_CONVERSATIONS: dict[str, dict[str, Any]] = {
    "61a01f954278415b04bc80ba0add24c8": {"title": "Tea"},
    "01ba4719c80b6fe911b091a7c05124b6": {},
    "2d353fbc397c2f5577f0521aef830e41": {
        "title": "T\nea",
        "context_id": "c",
        "external_id": "e\x00",
        "metadata": {"b": 1, "a": [None]},
    },
    "56d54eaf7a354299e5563f9913e16bc3": {"title": "Tea", "project_id": UUID(int=3), "labels": ["a"]},
}
"""The same of conversations, before there were labels and projects, and at last one before they named providers."""


@pytest.mark.parametrize("kind", [NewMessage, ImportedMessage])
@pytest.mark.parametrize("fingerprint", EARLIER)
def test_messages_without_new_fields_have_the_fingerprints_of_before(fingerprint: str, kind: type[NewMessage]) -> None:
    """A retry of a message that an earlier version stored is known: fields that it did not know count only if given."""
    assert kind.model_validate(EARLIER[fingerprint]).fingerprint().hex() == fingerprint


@pytest.mark.parametrize("kind", [NewConversation, ImportedConversation])
@pytest.mark.parametrize("fingerprint", EARLIER_CONVERSATIONS)
def test_conversations_without_new_fields_have_the_fingerprints_of_before(
    fingerprint: str, kind: type[NewConversation]
) -> None:
    """The same for conversations."""
    assert kind.model_validate(EARLIER_CONVERSATIONS[fingerprint]).fingerprint().hex() == fingerprint


def test_a_fingerprint_never_changes() -> None:
    """Fingerprints are stored: a new version of chatkeep must make the same ones."""
    message = NewMessage(
        role=Role.USER, content="héllo", parent_id=None, external_id="7", metadata={"b": [1, 2.5], "a": "ü"},
        sent_at=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    assert message.fingerprint().hex() == "674f5d024e3e1d8d75e4c7cc8a5bf1c1"
    assert (
        NewConversation(title="Tea", context_id="c", metadata={"x": None}).fingerprint().hex()
        == "83014941ee3f72a3425a49210742b390"
    )


def test_stored_records_are_like_validated_ones() -> None:
    """A record built without validation equals the validated one, and copies and serialises alike."""
    values = {
        "id": new_id(), "conversation_id": new_id(), "seq": 1, "parent_id": None, "role": Role.USER, "content": "x",
        "status": Status.COMPLETE, "parts": ({"type": "data", "data": [10**40]},), "sources": (), "metadata": {},
        "model": None, "input_tokens": 0, "output_tokens": None, "duration_ms": 7, "external_id": None,
        "sent_at": None, "created_at": datetime(2026, 1, 1, tzinfo=UTC),
    }  # fmt: skip
    quick, slow = stored(Message, MESSAGE_FIELDS, values), Message.model_validate(values)

    assert quick == slow
    assert quick.model_dump_json() == slow.model_dump_json()
    assert quick.model_copy(update={"seq": 2}).seq == 2
    assert quick.seq == 1
    assert quick.model_fields_set == slow.model_fields_set


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("Hello", "Hello"),
        ("\n\n  Two   words \nmore", "Two words"),
        (" \n ", None),
        ("word " * 40, "word " * 15 + "word…"),
        ("x" * 100, "x" * 79 + "…"),
        ("你" * 90, "你" * 79 + "…"),
    ],
)
def test_titles_are_made_from_the_first_line(content: str, title: str | None) -> None:
    """A title is the first line that says something, at most 80 characters, cut at a word."""
    made = title_from(content)
    assert made == title
    assert len(made or "") <= 80


def test_merge_patch_follows_the_rfc() -> None:
    """The examples of RFC 7396, appendix A, that have objects on both sides."""
    assert merge_patch({"a": "b"}, {"a": "c"}) == {"a": "c"}
    assert merge_patch({"a": "b"}, {"b": "c"}) == {"a": "b", "b": "c"}
    assert merge_patch({"a": "b", "b": "c"}, {"a": None}) == {"b": "c"}
    assert merge_patch({"a": ["b"]}, {"a": "c"}) == {"a": "c"}
    assert merge_patch({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}) == {"a": {"b": "d"}}
    assert merge_patch({"a": "foo"}, {"b": {"c": None}}) == {"a": "foo", "b": {}}
    assert merge_patch({"e": None}, {"a": 1}) == {"e": None, "a": 1}
    assert merge_patch({}, {"a": {"bb": {"ccc": None}}}) == {"a": {"bb": {}}}
