"""What an answer cites."""

from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.answers.citations import MAX_PASSAGE_CHARS, MAX_STATEMENT_CHARS, Shelf, start_of_statement
from chatkeep.events import checked, source_of
from chatkeep.model import Span
from chatkeep.retrieval.passages import Passage


def passage(number: int, text: str = "Sage likes the sun.", **more: Any) -> Passage:
    """A passage of the document with a number."""
    values: dict[str, Any] = {
        "document_id": UUID(int=number),
        "file_path": f"{number}.md",
        "title": f"Herb {number}",
        "header_anchor": "#sun",
        "heading": "Herbs > Sun",
        "text": text,
        "start": 10,
        "end": 10 + len(text),
        "n": 0,
        "similarity_score": 0.5,
    }
    return Passage(**values | more)


def cited(content: str, shelf: Shelf) -> list[tuple[int, str]]:
    """The numbers that an answer cites, and what each supports."""
    sources = [(event.data["id"], source_of(checked(event).data).answer_span) for event in shelf.cited(content)]
    return [(int(id_), content[span.start : span.end]) for id_, span in sources if span]


def test_numbers_stay() -> None:
    """A passage keeps its number; another one of the same document gets one of its own."""
    shelf = Shelf()
    assert shelf.add([passage(7), passage(8)]) == [1, 2]
    assert shelf.add([passage(8), passage(7, start=900, end=919), passage(9)]) == [2, 3, 4]
    assert [each["source"] for each in shelf.shown([2, 3])] == [2, 3]


def test_only_what_is_cited_is_a_source() -> None:
    """Each once, in the order of the answer, with the first statement that it supports. Unknown numbers are none."""
    shelf = Shelf()
    shelf.add([passage(7), passage(8), passage(9)])
    content = "Sage likes the sun [2]. Mint does not.[3] Well, sage does [2, 9]. See [x], [] and list[0]."
    assert cited(content, shelf) == [(2, "Sage likes the sun "), (3, "Mint does not.")]


@pytest.mark.parametrize(
    ("content", "statement"),
    [
        ("Sage.\n\nMint is green [1]", "Mint is green "),
        ("Is it? Mint is green. [1]", "Mint is green. "),
        ("Mint is green [1][2]", "Mint is green [1]"),
        ("Mint is green [1] and tall [2]", "and tall "),
        ("お茶は緑です。水は透明です [1]", "水は透明です "),
        ("[1]", ""),
        ("Costs 1.5 euros [1]", "Costs 1.5 euros "),
    ],
)
def test_statements(content: str, statement: str) -> None:
    """A statement begins after the sentence, the line, or the citation before it."""
    end = content.rindex("[")
    assert content[start_of_statement(content, end) : end] == statement


@given(st.text(alphabet="ab .\n[]12,!茶", max_size=200), st.data())
def test_a_statement_is_within_the_answer(content: str, data: st.DataObject) -> None:
    """Whatever a model writes."""
    end = data.draw(st.integers(0, len(content)))
    assert 0 <= start_of_statement(content, end) <= end


def test_a_statement_has_a_bound() -> None:
    """A long answer without any sentence is not read from its beginning for each citation."""
    content = "a" * 100_000
    assert start_of_statement(content, len(content)) == len(content) - MAX_STATEMENT_CHARS


def test_earlier_answers_are_put_back() -> None:
    """What a conversation has given before keeps its numbers, and may be cited again; new passages come after it."""
    before = Shelf()
    numbers = before.add([passage(7), passage(8)])
    part = {"type": "tool_result", "tool_call_id": "1", "content": "…", "passages": before.kept(numbers)}
    shelf = Shelf()
    shelf.take([{"type": "text", "text": "a"}, part])
    assert shelf.add([passage(9), passage(8)]) == [3, 2]
    assert [number for number, _ in cited("As said [1], and new [3]", shelf)] == [1, 3]
    assert shelf.shown([1]) == before.shown([1])


@pytest.mark.parametrize(
    "given",
    [
        None,
        "1",
        [1],
        [{}],
        [{"number": 1}],
        [{"number": -1, "document_id": "a", "file_path": "a", "quote": "a", "document_span": {"start": 1}}],
        [{"number": 10**9, "document_id": "a", "file_path": "a", "quote": "a", "document_span": {"start": 1}}],
        [{"number": 1, "document_id": "a", "file_path": "a", "quote": "a", "document_span": {"start": "1"}}],
    ],
)
def test_parts_of_others_are_left_out(given: object) -> None:
    """A client may append a message with any parts."""
    shelf = Shelf()
    shelf.take([{"type": "tool_result", "passages": given}])
    assert shelf.add([passage(7)]) == [1]


def test_a_source_has_all_that_is_known() -> None:
    """The quote is what the document says at its span, also if the model was given less of it."""
    shelf = Shelf()
    long = passage(7, text="x" * 9_000)
    (number,) = shelf.add([long])
    assert len(shelf.shown([number])[0]["text"]) == MAX_PASSAGE_CHARS
    (event,) = shelf.cited("So it is [1]")
    source = source_of(checked(event).data)
    assert (source.document_id, source.title, source.quote) == (long.document_id, "Herb 7", long.text)
    assert (source.document_span, source.answer_span) == (Span(start=10, end=9_010), Span(start=0, end=9))
