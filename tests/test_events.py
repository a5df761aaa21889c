"""Events of an answer: what they add up to, what is refused, and how an answer is read again from any place."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import accumulate
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidInput
from chatkeep.events import (
    IN_PARTS,
    PROSE,
    Event,
    EventKind,
    Folded,
    Place,
    TurnEvent,
    checked,
    error,
    fold,
    parse_place,
    place_of,
    plus,
    reasoning,
    replayed,
    state_of,
    text,
)
from chatkeep.model import MAX_QUOTE_CHARS, MAX_SOURCES, ImportedMessage, Message, NewMessage, Role, Source, Status
from chatkeep.testing.examples import JSON
from chatkeep.testing.turn_steps import counted
from chatkeep.values import MAX_JSON_DEPTH, MAX_PARTS_BYTES

SOURCE: dict[str, Any] = {
    "document_id": str(uuid4()),
    "file_path": "tea.md",
    "header_anchor": None,
    "similarity_score": 0.5,
}

TEXT = st.text() | st.sampled_from(["e\u0301", "👩‍👩‍👧", "\U0010ffff", "茶", "\x00", "a\u0308\u0323", "\r\n"])

OTHERS = st.sampled_from(
    [
        Event(EventKind.TOOL_CALL, {"id": "1", "name": "find", "arguments": {"z": 1, "a": "\x00"}}),
        Event(EventKind.TOOL_RESULT, {"tool_call_id": "1", "content": [1], "is_error": False}),
        Event(EventKind.SOURCE, {"id": "s", "title": "Tea"}),
        Event(EventKind.SOURCE, {"id": "t", **SOURCE}),
        Event(EventKind.DATA, {"id": "d", "data": None}),
        Event(EventKind.DATA, {"type": "file", "url": "tea://"}),
        error("cut off"),
    ]
)

BLOCK = st.tuples(st.sampled_from([text, reasoning]), st.lists(TEXT, min_size=1, max_size=4))
"""A block of text or reasoning, in pieces."""


def whole_and_split(items: Sequence[Any]) -> tuple[list[Event], list[Event]]:
    """The same answer twice: with each block in one event, and in its pieces."""
    whole, split = list[Event](), list[Event]()
    for item in items:
        if isinstance(item, Event):
            whole.append(item)
            split.append(item)
        else:
            make, parts = item
            whole.append(make("".join(parts)))
            split += map(make, parts)
    return whole, split


ANSWERS = st.lists(BLOCK | OTHERS, max_size=6).map(whole_and_split)

SIGNED = st.builds(reasoning, TEXT, signature=st.just("c2ln"))
"""The end of a block of reasoning: no piece follows."""

STREAMS = st.lists(st.builds(text, TEXT) | st.builds(reasoning, TEXT) | SIGNED | OTHERS, max_size=8)


def message_of(folded: Folded) -> Message:
    """A finished answer."""
    kept = {name: getattr(folded, name) for name in ("content", "parts", "sources", "model")}
    counts = {name: getattr(folded, name) for name in ("input_tokens", "output_tokens")}
    return Message(
        id=uuid4(),
        conversation_id=uuid4(),
        seq=2,
        parent_id=uuid4(),
        role=Role.ASSISTANT,
        status=Status.COMPLETE,
        metadata={},
        duration_ms=1,
        external_id=None,
        sent_at=None,
        created_at=datetime.now(UTC),
        **kept,
        **counts,
    )


def prose(events: Iterable[Event | TurnEvent], *kinds: EventKind) -> str:
    """The text and reasoning of events, in their order."""
    return "".join(event.data["text"] for event in events if event.kind in (kinds or PROSE))


def others(events: Iterable[Event]) -> list[Event]:
    """The events that are neither text nor reasoning."""
    return [event for event in events if event.kind not in PROSE]


# --- adding up -----------------------------------------------------------------------------------------------


@given(answer=ANSWERS)
def test_how_text_is_split_makes_no_difference(answer: tuple[list[Event], list[Event]]) -> None:
    """However an answer comes in pieces, the message is the same, and so is the count of code points."""
    whole, split = (fold(counted(events)) for events in answer)
    assert split._replace(n=0) == whole._replace(n=0)
    assert (whole.n, split.n) == (len(answer[0]), len(answer[1]))
    assert whole.content == prose(answer[0], EventKind.TEXT)
    assert whole.chars == len(prose(answer[0]))


@given(answer=ANSWERS)
def test_what_events_add_up_to_is_a_message(answer: tuple[list[Event], list[Event]]) -> None:
    """The whole of an answer could be appended or imported as it is, and only text makes no parts."""
    folded = fold(counted(map(checked, answer[1])))
    for kind in (NewMessage, ImportedMessage):
        made = kind(role=Role.ASSISTANT, content=folded.content, parts=folded.parts, sources=folded.sources)
        assert (made.content, made.parts, made.sources) == (folded.content, folded.parts, folded.sources)
    assert (folded.parts is None) == (not {event.kind for event in answer[1]} - {EventKind.TEXT})


def test_blocks() -> None:
    """A signature ends a block of reasoning; other events, and another id, begin a new block; usage does not."""
    folded = fold(
        counted(
            [
                reasoning("a"),
                reasoning("b", signature="s"),
                reasoning("c"),
                Event(EventKind.USAGE, {"output_tokens": 1}),
                reasoning("d"),
                text("e"),
                Event(EventKind.DATA, {"id": "1", "data": 1}),
                text("f"),
                Event(EventKind.TEXT, {"text": "g", "id": "x"}),
                text("h"),
                Event(EventKind.TEXT, {"text": "i", "id": "y"}),
            ]
        )
    )
    assert folded.parts == (
        {"type": "reasoning", "text": "ab", "signature": "s"},
        {"type": "reasoning", "text": "cd"},
        {"type": "text", "text": "e"},
        {"type": "data", "id": "1", "data": 1},
        {"type": "text", "text": "f"},
        {"type": "text", "text": "gh", "id": "x"},
        {"type": "text", "text": "i", "id": "y"},
    )
    assert (folded.content, folded.chars, folded.n) == ("efghi", 9, 11)


def test_signature_alone() -> None:
    """A signature may come with an empty piece, and reasoning may be a signature and nothing else."""
    folded = fold(counted([reasoning("a"), reasoning("", signature="s"), reasoning("", signature="t"), text("b")]))
    assert folded.parts == (
        {"type": "reasoning", "text": "a", "signature": "s"},
        {"type": "reasoning", "text": "", "signature": "t"},
        {"type": "text", "text": "b"},
    )


def test_usage_is_added_up() -> None:
    """Counts of several requests are added up to what a message can hold; unknown is not 0; the last model counts."""
    most = 2**63 - 1
    assert [plus(None, None), plus(None, 0), plus(0, None), plus(1, 2), plus(most, most)] == [None, 0, 0, 3, most]
    usage: list[dict[str, Any]] = [
        {"model": "small"},
        {"input_tokens": 3},
        {},
        {"model": "large", "input_tokens": most, "output_tokens": 0},
    ]
    folded = fold(counted(Event(EventKind.USAGE, data) for data in usage))
    assert folded == Folded(model="large", input_tokens=most, output_tokens=0, n=4)
    assert message_of(folded).input_tokens == most


def test_sources() -> None:
    """A source with a document is one of the message's, as many as a message may have; each is a part."""
    events = [Event(EventKind.SOURCE, {"id": str(n), "title": "Tea", **SOURCE}) for n in range(MAX_SOURCES + 5)]
    folded = fold(counted([Event(EventKind.SOURCE, {"id": "web", "url": "tea://"}), *map(checked, events)]))
    assert folded.sources == (Source(title="Tea", **SOURCE),) * MAX_SOURCES
    assert folded.parts is not None
    assert len(folded.parts) == MAX_SOURCES + 6
    assert folded.parts[1] == {"type": "source", "id": "0", "title": "Tea", **SOURCE}


def test_error() -> None:
    """The last error says why an answer failed."""
    assert fold([]).error is None
    folded = fold(counted([error("first"), text("a"), error("second", "limit"), text("b")]))
    assert folded.error == {"type": "error", "reason": "second", "kind": "limit"}


# --- states --------------------------------------------------------------------------------------------------


@given(events=STREAMS, places=st.lists(st.integers(0, 8), max_size=4))
def test_states_are_in_no_message(events: list[Event], places: list[int]) -> None:
    """Wherever states are among the events, also within a block, the message is the same, and so are its characters."""
    among = list(events)
    for place in places:
        among.insert(place, Event(EventKind.STATE, {"id": "resp_1", "text": "secret"}))
    folded, with_states = fold(counted(events)), fold(counted(among))
    assert with_states == folded._replace(n=len(among))
    assert list(replayed(message_of(with_states))) == list(replayed(message_of(folded)))
    assert [event.chars for event in counted(among) if event.kind is EventKind.STATE] == [0] * len(places)


def test_the_state_to_go_on_from() -> None:
    """An answer can be gone on with by its last state, unless a tool was called since."""
    first, second = (Event(EventKind.STATE, {"id": id_}) for id_ in ("1", "2"))
    assert state_of([]) is None
    assert state_of(counted([text("a"), first])) == {"id": "1"}
    assert state_of(counted([first, text("a"), second])) == {"id": "2"}
    assert state_of(counted([first, text("a"), Event(EventKind.USAGE, {})])) == {"id": "1"}
    for kind, data in ((EventKind.TOOL_CALL, {"id": "c"}), (EventKind.TOOL_RESULT, {"tool_call_id": "c"})):
        assert state_of(counted([first, Event(kind, data), text("a")])) is None
        assert state_of(counted([first, Event(kind, data), second])) == {"id": "2"}
    assert state_of(counted([Event(EventKind.STATE, {})])) == {}


def test_a_part_that_looks_like_a_state() -> None:
    """A message that was imported may have a part of that type: it is read again as it is, and is no state."""
    part = {"type": "state", "id": "resp_1"}
    events = list(replayed(message_of(Folded(parts=(part,)))))
    assert events == [Event(EventKind.DATA, part)]
    assert state_of(counted(events)) is None


# --- what is refused -----------------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    """Lists in each other."""
    return [] if levels == 1 else [nested(levels - 1)]


REFUSED: dict[str, tuple[EventKind, Any]] = {
    "NaN": (EventKind.DATA, {"data": float("nan")}),
    "infinity": (EventKind.TOOL_CALL, {"arguments": [float("inf")]}),
    "no JSON": (EventKind.DATA, {"data": {1, 2}}),
    "bytes": (EventKind.DATA, {"data": b"tea"}),
    "too large": (EventKind.TOOL_RESULT, {"content": "x" * MAX_PARTS_BYTES}),
    "too large when escaped": (EventKind.TOOL_RESULT, {"content": "\x00" * (MAX_PARTS_BYTES // 6)}),
    "too deep": (EventKind.DATA, {"data": nested(MAX_JSON_DEPTH - 1)}),
    "far too deep": (EventKind.DATA, {"data": nested(900)}),
    "too many": (EventKind.DATA, {"data": [0] * 100_001}),
    "too many digits": (EventKind.DATA, {"data": 10**5_000}),
    "no text": (EventKind.TEXT, {}),
    "null for text": (EventKind.TEXT, {"text": None}),
    "no text for reasoning": (EventKind.REASONING, {"signature": "s"}),
    "number for reasoning": (EventKind.REASONING, {"text": 7}),
    "end": (EventKind.END, {"status": "complete"}),
    "state": (EventKind.STATE, {"id": "resp_1"}),
    "state with a text": (EventKind.STATE, {"text": "a"}),
    "empty state": (EventKind.STATE, {}),
    "unknown usage": (EventKind.USAGE, {"tokens": 1}),
    "negative usage": (EventKind.USAGE, {"input_tokens": -1}),
    "huge usage": (EventKind.USAGE, {"input_tokens": 2**63}),
    "fractional usage": (EventKind.USAGE, {"output_tokens": 1.0}),
    "true for usage": (EventKind.USAGE, {"output_tokens": True}),
    "text for usage": (EventKind.USAGE, {"output_tokens": "1"}),
    "blank model": (EventKind.USAGE, {"model": " "}),
    "long model": (EventKind.USAGE, {"model": "m" * 256}),
    "document without a file": (EventKind.SOURCE, {"document_id": str(uuid4())}),
    "document that is no id": (EventKind.SOURCE, {**SOURCE, "document_id": "tea"}),
    "no document": (EventKind.SOURCE, {**SOURCE, "document_id": None}),
    "score beyond 1": (EventKind.SOURCE, {**SOURCE, "similarity_score": 1.5}),
    "source with a long quote": (EventKind.SOURCE, {**SOURCE, "quote": "q" * (MAX_QUOTE_CHARS + 1)}),
    "source with a span that goes back": (EventKind.SOURCE, {**SOURCE, "answer_span": {"start": 2, "end": 1}}),
    "source with a blank title": (EventKind.SOURCE, {**SOURCE, "title": " "}),
    "type of a tool call": (EventKind.TOOL_CALL, {"type": "function", "id": "1"}),
    "type of a text": (EventKind.TEXT, {"type": "output_text", "text": "a"}),
    "data as a kind": (EventKind.DATA, {"type": "text"}),
    "data as an end": (EventKind.DATA, {"type": "end"}),
    "data as a state": (EventKind.DATA, {"type": "state"}),
    "data without a type": (EventKind.DATA, {"type": ""}),
    "data of a numbered type": (EventKind.DATA, {"type": 7}),
    "not an object": (EventKind.DATA, "tea"),
    "null": (EventKind.DATA, None),
    "list": (EventKind.DATA, [1]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    """What no message can hold is refused, by its kind, and the value is not repeated."""
    kind, data = REFUSED[name]
    with pytest.raises(InvalidInput) as caught:
        checked(Event(kind, data))
    assert f"the kind {kind}" in str(caught.value)
    assert len(str(caught.value)) < 300


def test_limits_are_those_of_parts() -> None:
    """What is just within the limits is taken, and can be imported as a part."""
    for data in (
        {"data": nested(MAX_JSON_DEPTH - 2)},
        {"data": "x" * (MAX_PARTS_BYTES - 100)},
        {"data": [0] * 99_990},
        {"data": 10**4_299},
    ):
        folded = fold(counted([checked(Event(EventKind.DATA, data))]))
        assert ImportedMessage(role=Role.ASSISTANT, content="", parts=folded.parts).parts == folded.parts


@given(data=st.dictionaries(st.text().filter(lambda key: key != "later"), JSON, max_size=4))
def test_checked_is_an_equal_copy(data: dict[str, Any]) -> None:
    """What is taken is equal, in the order of its keys, and nobody changes it from outside."""
    given: dict[str, Any] = {"data": data, "more": [data]}
    event = checked(Event(EventKind.DATA, given))
    assert event == Event(EventKind.DATA, given)
    assert list(event.data["data"]) == list(data)
    data["later"] = 1
    assert event != Event(EventKind.DATA, given)
    assert "later" not in event.data["more"][0]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("\ud83c\udf3f", "🌿"),
        ("a\ud83c", "a\ufffd"),
        ("\udf3fb", "\ufffdb"),
        ("\udf3f\ud83c", "\ufffd\ufffd"),
        ("\ud83c\ud83c\udf3f", "\ufffd🌿"),
    ],
    ids=ascii,
)
def test_surrogates(given: str, kept: str) -> None:
    """Pairs of surrogates are joined, others replaced, in every kind of event, in keys, too."""
    assert checked(text(given)) == text(kept)
    assert checked(reasoning(given, signature=given)) == reasoning(kept, signature=kept)
    assert checked(Event(EventKind.DATA, {given: [{given: given}]})) == (EventKind.DATA, {kept: [{kept: kept}]})
    counts = {checked(make(given)).data["text"].__len__() for make in (text, reasoning)}
    assert counts == {len(kept)}


def test_pieces_that_part_a_pair_are_each_replaced() -> None:
    """An event is whole Unicode by itself: half a pair in each of two pieces is two replacements, as it was counted."""
    events = counted(checked(text(half)) for half in "\ud83c\udf3f")
    assert (fold(events).content, fold(events).chars) == ("\ufffd\ufffd", 2)


# --- reading again -------------------------------------------------------------------------------------------


@given(events=STREAMS)
def test_replayed_from_every_offset(events: list[Event]) -> None:
    """From every code point on comes exactly the rest of text and reasoning, and all that is neither."""
    folded = fold(counted(events))
    message = message_of(folded)
    assert prose(replayed(message)) == prose(events)
    for after in range(folded.chars + 3):
        rest = list(replayed(message, after))
        assert prose(rest) == prose(events)[after:]
        assert others(rest) == others(events)
        assert {event.kind for event in rest} <= IN_PARTS
        for event in rest:
            assert event.kind not in PROSE or event.data["text"] or event.data.keys() > {"text"}
    again = fold(counted(replayed(message)))
    assert (again.content, again.sources, again.chars) == (folded.content, folded.sources, folded.chars)


@given(events=STREAMS)
def test_reading_on_when_the_events_are_gone(events: list[Event]) -> None:
    """Whoever has some first events and reads on from the message has every character once, in its kind, and every
    signature at least once."""
    numbered = counted(events)
    message = message_of(fold(numbered))
    for has, after in enumerate(accumulate((event.chars for event in numbered), initial=0)):
        rest = list(replayed(message, after))
        for kind in PROSE:
            assert prose(events[:has], kind) + prose(rest, kind) == prose(events, kind)
        signed = [event for event in (*events[:has], *rest) if event.data.get("signature")]
        assert len(signed) >= sum("signature" in part for part in message.parts or ())


def test_signatures_come_again_only_where_they_may_be_missing() -> None:
    """At the end of a signed block its signature comes again; within what follows it does not."""
    message = message_of(fold(counted([reasoning("ab", signature="s"), reasoning("", signature="t"), text("cd")])))
    signed = {after: [e.data["signature"] for e in replayed(message, after) if len(e.data) > 1] for after in range(5)}
    assert signed == {0: ["s", "t"], 1: ["s", "t"], 2: ["s", "t"], 3: [], 4: []}


def test_replaying_changes_nothing() -> None:
    """A message that was read again is as it was."""
    message = message_of(fold(counted([reasoning("ab", signature="s"), text("cd")])))
    before = message.model_dump()
    list(replayed(message, 3))
    assert message.model_dump() == before


def test_messages_without_parts() -> None:
    """A plain message is one piece of text; an empty one has none."""
    message = message_of(Folded(content="e\u0301🌿"))
    assert list(replayed(message)) == [text("e\u0301🌿")]
    assert list(replayed(message, 1)) == [text("\u0301🌿")]
    assert list(replayed(message, 3)) == list(replayed(message, 10**18)) == []
    assert list(replayed(message_of(Folded()))) == []


@given(
    parts=st.lists(
        st.fixed_dictionaries(
            {"type": st.sampled_from([*EventKind, "file", "function", "\x00"]).map(str)},
            optional={"text": TEXT | JSON, "signature": st.text(), "id": JSON},
        ),
        max_size=5,
    ),
    after=st.integers(0, 20),
)
def test_messages_of_other_makers(parts: list[dict[str, Any]], after: int) -> None:
    """Parts that no turn of ours has made are read again as they are: a text without text, types of events, any other;
    none of them ends the stream."""
    message = message_of(Folded(parts=tuple(parts) or None))
    events = list(replayed(message, after))
    assert {event.kind for event in events} <= IN_PARTS
    as_they_are = [part for part in parts if part["type"] not in PROSE or not isinstance(part.get("text"), str)]
    found = others(events)
    assert [{"type": event.kind.value, **event.data} for event in found] == as_they_are
    words = "".join(part["text"] for part in parts if part not in as_they_are)
    assert prose(events) == words[after:]
    fold(counted(events))


# --- places --------------------------------------------------------------------------------------------------


@given(id_=st.uuids(), n=st.integers(0, 10**18 - 1), chars=st.integers(0, 10**18 - 1))
def test_places_round_trip(id_: UUID, n: int, chars: int) -> None:
    """A place is read from the id of its event; it is ASCII, without what SSE forbids in one."""
    place = place_of(id_, n, chars)
    assert parse_place(str(place)) == place == Place(id_.hex[:8], n, chars)
    assert str(place).isascii()
    assert str(place).isprintable()


@pytest.mark.parametrize(
    "event_id",
    [
        "",
        "1",
        "tea",
        "0190f0f0",
        "0190f0f0-1",
        "0190f0f0-1-",
        "0190f0f0--1",
        "0190f0f0-1-1-1",
        "0190f0f0-1-1\n",
        "\n0190f0f0-1-1",
        " 0190f0f0-1-1",
        "0190f0f0-1-1 ",
        "0190f0f0-1-1\x00",
        "0190F0F0-1-1",
        "0190f0f-1-1",
        "0190f0f00-1-1",
        "0190f0f0--1-1",
        "0190f0f0-+1-1",
        "0190f0f0-1.0-1",
        "0190f0f0-1e3-1",
        "0190f0f0-1_0-1",
        "0190f0f0-٣-1",
        "0190f0f0-²-1",
        f"0190f0f0-{10**18}-1",
        f"0190f0f0-1-{10**18}",
        "0190f0f0-" + "9" * 10_000 + "-1",
        "g190f0f0-1-1",
        "'; DROP TABLE turns; --",
        "\ud800",
        "🌿" * 100_000,
    ],
    ids=lambda text: ascii(text)[:40],
)
def test_hostile_places(event_id: str) -> None:
    """What is not the id of an event is none."""
    assert parse_place(event_id) is None


@given(event_id=st.text() | st.text("0123456789abcdef-", max_size=40) | st.from_regex(r"[0-9a-f]{7,9}-[0-9]+-[0-9]+"))
def test_any_text_as_a_place(event_id: str) -> None:
    """Whatever a client sends is a place within bounds, or none."""
    place = parse_place(event_id)
    assert place is None or (0 <= place.n < 10**18 and 0 <= place.chars < 10**18 and len(place.attempt) == 8)
