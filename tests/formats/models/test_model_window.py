"""A window is the newest that fits, with calls and results together and the last question in it."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wires import WIRES

from chatkeep import NewMessage, Role
from chatkeep.formats.models.window import CUT, FILE_TOKENS, MESSAGE_TOKENS, Windowing, estimate, tokens, window

DAY = datetime(2026, 11, 3, 12, tzinfo=UTC)


def message(role: str, content: str = "", *parts: dict[str, Any], day: int | None = None) -> NewMessage:
    """A message, said on a day after the third of November."""
    sent_at = None if day is None else DAY + timedelta(days=day)
    return NewMessage(role=Role(role), content=content, parts=parts or None, sent_at=sent_at)


def call(id_: str) -> dict[str, Any]:
    """A call."""
    return {"type": "tool_call", "id": id_, "name": "kettle", "arguments": {}}


def result(id_: str) -> dict[str, Any]:
    """A result."""
    return {"type": "tool_result", "tool_call_id": id_, "content": "hot"}


def chars(text: str) -> int:
    """A count of tokens that is easy to follow."""
    return len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("a", 1),
        ("tea!", 1),
        ("teas!", 2),
        ("緑茶", 2),
        ("tea 緑茶", 3),
        ("чай", 2),
        ("thé", 1),
        ("🍵", 1),
        ("x" * 4_000, 1_000),
    ],
)
def test_tokens_are_estimated(text: str, expected: int) -> None:
    """Four Latin characters are a token, so is one Chinese, Japanese or Korean one; of other scripts two."""
    assert estimate(text) == expected


def test_a_message_costs_what_a_model_reads() -> None:
    """Texts, reasoning, calls, results and files count; sources, and what an application shows, do not."""
    parts = [
        {"type": "text", "text": "tea"},
        call("c"),
        result("c"),
        {"type": "file", "url": "https://x.test"},
        {"type": "data", "data": "x"},
    ]
    assert tokens(message("assistant", "", *parts), chars) == len("tea\nkettle\n{}\nhot") + MESSAGE_TOKENS + FILE_TOKENS
    within = result("c") | {
        "content": [{"type": "text", "text": "hot"}, {"type": "file", "url": "data:image/png;base64," + "A" * 4_000}]
    }
    assert tokens(message("tool", "", within), chars) == len("hot\n") + MESSAGE_TOKENS + FILE_TOKENS


HISTORY = [
    message("system", "Be brief."),
    message("user", "What is tea?", day=0),
    message("assistant", "Leaves.", day=1),
    message("user", "How hot?", day=2),
    message("assistant", "80", day=2),
    message("user", "Sure?", day=3),
]


@pytest.mark.parametrize(
    ("budget", "kept", "summary"),
    [
        (1_000, HISTORY, None),
        (50, [HISTORY[0], *HISTORY[3:]], "[2 earlier messages, from 3 to 4 November 2026, are left out]"),
        (39, [HISTORY[0], HISTORY[5]], "[4 earlier messages, from 3 to 5 November 2026, are left out]"),
        (30, [HISTORY[0], HISTORY[5]], "[4 earlier messages, from 3 to 5 November 2026, are left out]"),
    ],
)
def test_the_newest_are_kept(budget: int, kept: list[NewMessage], summary: str | None) -> None:
    """As many as fit after those of the system, beginning with a question; what is left out is said in a line."""
    given = window(HISTORY, budget, chars)
    assert (given.messages, given.summary) == (kept, summary)
    assert given.left_out == len(HISTORY) - len(kept)


def test_the_last_question_is_cut_in_the_middle() -> None:
    """When it alone is too long: its beginning, its end, and its files are kept."""
    file = {"type": "file", "url": "https://files.test/a"}
    long = message("user", "", {"type": "text", "text": "a" * 5_000 + "b" * 5_000}, file)
    (kept,) = window([HISTORY[1], HISTORY[2], long], 2_000, chars).messages
    assert tokens(kept, chars) == 2_000
    cut = kept.content
    assert (cut[:190], cut[-190:], CUT in cut) == ("a" * 190, "b" * 190, True)
    assert kept.parts == (file, {"type": "text", "text": cut})


def test_the_last_question_comes_before_what_followed_it() -> None:
    """A question whose answer takes the whole budget is kept, without the answer."""
    question, answer = message("user", "Sure?"), message("assistant", "x" * 95)
    assert window([question, answer], 100, chars).messages == [question]
    assert window([question, answer], 108, chars).messages == [question, answer]


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (0, 0, "of 3 November 2026"),
        (0, 9, "from 3 to 12 November 2026"),
        (0, 30, "from 3 November to 3 December 2026"),
        (0, 60, "from 3 November 2026 to 2 January 2027"),
    ],
)
def test_the_line_names_the_days(first: int, last: int, expected: str) -> None:
    """One day, or the first and the last, with no more of their months and years than is needed."""
    out = [message("user", "a", day=first), message("assistant", "b", day=last)]
    assert window([*out, message("user", "x")], 6, chars).summary == f"[2 earlier messages, {expected}, are left out]"


def test_the_line_says_only_what_is_known() -> None:
    """Without times there are no days; of pages that were not read neither the first day nor, perhaps, the number."""
    assert window([message("user", "a"), message("user", "x")], 6, chars).summary == "[1 earlier message is left out]"
    lines = []
    for older in (7, None, 0):
        taken = Windowing(9, chars)
        for each in reversed(HISTORY[1:]):
            taken.add(each)
        lines.append(taken.window(older).summary)
    assert lines == [
        "[11 earlier messages, until 5 November 2026, are left out]",
        "[Earlier messages, until 5 November 2026, are left out]",
        "[4 earlier messages, from 3 to 5 November 2026, are left out]",
    ]


async def test_pages_are_read_until_it_is_full() -> None:
    """A history of 100,000 messages that comes newest first is read as far as is needed, each message counted once."""
    counted: list[str] = []
    read = 0

    async def newest_first() -> AsyncIterator[Sequence[NewMessage]]:
        nonlocal read
        for _ in range(1_000):
            read += 1
            yield [message("assistant", "80"), message("user", "How hot?")] * 50

    def count(text: str) -> int:
        counted.append(text)
        return 1

    taken = Windowing(1_000, count)
    async for page in newest_first():
        if not all(map(taken.add, page)):
            break
    given = taken.window(older=100_000 - taken.seen)
    assert (read, len(given.messages), given.left_out, len(counted)) == (3, 200, 99_800, 201)


def test_a_long_history_takes_linear_time() -> None:
    """100,000 messages of calls and results, all of which fit, and all of which do not."""
    calls = [message("assistant", "", call("c")), message("tool", "", result("c"))]
    history = [message("user", "80?"), *calls * 50_000]
    for budget in (10**9, 1_000):
        begin = time.monotonic()
        given = window(history, budget)
        assert time.monotonic() - begin < 30
        assert given.left_out == (0 if budget == 10**9 else len(history) - len(given.messages))


ids = st.sampled_from("abcdef")
messages = st.one_of(
    st.builds(lambda text: message("user", text), st.sampled_from(("How hot?", "x" * 50))),
    st.builds(
        lambda parts: message("assistant", "80", *parts),
        st.lists(st.builds(call, ids) | st.builds(result, ids), max_size=3),
    ),
    st.builds(lambda parts: message("tool", "", *parts), st.lists(st.builds(result, ids), min_size=1, max_size=3)),
    st.just(message("system", "Be brief.")),
)


@given(st.lists(messages, max_size=12), st.integers(0, 300), st.sampled_from((chars, estimate)))
def test_windows_are_whole(history: list[NewMessage], budget: int, count: Callable[[str], int]) -> None:
    """Within the budget, in order, with the last question, and no kept call or result is without its other."""
    given_ = window(history, budget, count)
    system = [m for m in history if m.role is Role.SYSTEM]
    questions = [m for m in history if m.role is Role.USER]
    rest = given_.messages[len(system) :]
    assert given_.messages[: len(system)] == system
    assert given_.left_out == len(history) - len(given_.messages)
    left = budget - sum(tokens(m, count) for m in system)
    assert sum(tokens(m, count) for m in rest) <= left or len(rest) <= 1
    assert (
        not questions
        or rest[-1 if rest[-1].role is Role.USER else [m.role for m in rest].index(Role.USER)].role is Role.USER
    )
    assert not questions or any(m is questions[-1] or CUT in m.content for m in rest)
    at = [next((n for n, m in enumerate(history) if m is each), len(history)) for each in rest]
    assert_together(history, {id(m) for m in rest})
    assert not at or at == sorted(at) or len(set(map(id, history))) < len(history)


def assert_together(history: list[NewMessage], kept: set[int]) -> None:
    """The results that find a call are kept if and only if their call is; the others are not."""
    open_: dict[str, list[NewMessage]] = {}
    if len(set(map(id, history))) < len(history):
        return  # the same message twice
    for each in history:
        for part in each.parts or ():
            if part["type"] == "tool_call":
                open_[part["id"]] = [each]
            elif caller := open_.get(part["tool_call_id"]):
                assert (id(each) in kept) == (id(caller[0]) in kept)
            else:
                assert id(each) not in kept


@given(st.lists(messages, max_size=12), st.integers(0, 300))
def test_what_is_kept_can_be_given(history: list[NewMessage], budget: int) -> None:
    """Every form takes a window, with its line as a message of the system."""
    given_ = window(history, budget)
    line = [NewMessage(role=Role.SYSTEM, content=given_.summary)] if given_.summary else []
    for wire in WIRES:
        wire.validate(wire.there([*line, *given_.messages]))
