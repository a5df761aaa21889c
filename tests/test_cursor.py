"""Cursors: they bring back the position that they were made of, for their own list only."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import InvalidInput

VALUES = st.integers(-(2**63) + 1, 2**63 - 1) | st.text()
SCOPE = ("ada", None, "updated")


def encoded(value: object) -> str:
    """Any JSON value in a cursor's clothes."""
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def parts(cursor: str) -> list[object]:
    """What is inside a cursor."""
    values: list[object] = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return values


@given(position=st.lists(VALUES, max_size=3), kind=st.text(), scope=st.lists(st.none() | VALUES).map(tuple))
def test_position_comes_back(position: list[int | str], kind: str, scope: tuple[object, ...]) -> None:
    """A cursor gives back the position that it was made of, and is plain ASCII that a URL can carry."""
    cursor = encode_cursor(kind, scope, *position)
    assert cursor.isascii()
    assert not set(cursor) & set("+/=&?#% ")
    assert decode_cursor(cursor, kind, scope, *map(type, position)) == position


@given(text=st.text())
def test_junk_is_refused(text: str) -> None:
    """Text that is no cursor is InvalidInput, never another error."""
    with pytest.raises(InvalidInput):
        decode_cursor(text, "history", SCOPE, int)


@given(raw=st.binary())
def test_junk_bytes_are_refused(raw: bytes) -> None:
    """Base64 of any bytes is InvalidInput, never another error."""
    with pytest.raises(InvalidInput):
        decode_cursor(base64.urlsafe_b64encode(raw).decode().rstrip("="), "history", SCOPE, int)


@pytest.mark.parametrize(
    "value",
    [None, 1, "tea", {}, [], [1], [1, "history"], [1, "history", "x"], {"a": 1, "b": 2, "c": 3}, [[]] * 4, "abcd"],
    ids=repr,
)
def test_other_json_is_refused(value: object) -> None:
    """JSON of another shape is InvalidInput."""
    with pytest.raises(InvalidInput):
        decode_cursor(encoded(value), "history", SCOPE, int)


@pytest.mark.parametrize("bad", [True, None, 1.5, "7", [7], {}, 2**63, -(2**63), 2**2000, float("nan")], ids=str)
def test_position_of_another_kind_is_refused(bad: object) -> None:
    """A position must have the kinds of values that the list uses, and integers that every database can hold."""
    values = parts(encode_cursor("history", SCOPE, 7))
    with pytest.raises(InvalidInput):
        decode_cursor(encoded([*values[:-1], bad]), "history", SCOPE, int)


def test_deeply_nested_json_is_refused() -> None:
    """JSON that would exhaust the parser's stack is InvalidInput."""
    text = "[" * 200_000 + "]" * 200_000
    with pytest.raises(InvalidInput):
        decode_cursor(base64.urlsafe_b64encode(text.encode()).decode(), "history", SCOPE, int)


def test_cursor_of_another_list_is_refused() -> None:
    """The kind, the owner and every filter belong to the list; the error tells the caller what to send."""
    cursor = encode_cursor("list", SCOPE, 7)
    assert decode_cursor(cursor, "list", SCOPE, int) == [7]
    for kind, scope in (
        ("history", SCOPE),
        ("list", ("Ada", None, "updated")),
        ("list", ("ada", "None", "updated")),
        ("list", ("ada", None, "id")),
        ("list", ("ada", None)),
    ):
        with pytest.raises(InvalidInput, match="list"):
            decode_cursor(cursor, kind, scope, int)


def test_cursor_of_another_version_is_refused() -> None:
    """A cursor that a later version made is not misread."""
    version, *rest = parts(encode_cursor("list", SCOPE, 7))
    assert version == 1
    with pytest.raises(InvalidInput):
        decode_cursor(encoded([2, *rest]), "list", SCOPE, int)
