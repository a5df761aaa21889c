"""Answers without a model."""

from collections.abc import Sequence
from typing import NoReturn
from uuid import UUID

import pytest
from test_citations import passage

from chatkeep import NewConversation, open_store
from chatkeep.answers.extractive import BEGINNING, MAX_QUOTED_CHARS, NO_PROJECT, NOTHING, SEARCH_FAILED, Search, extract
from chatkeep.answers.provider import Asked, ProviderFailed
from chatkeep.errors import StoreUnavailable
from chatkeep.events import Folded, TurnEvent, checked, fold
from chatkeep.retrieval.passages import MAX_QUESTION_CHARS, Passage, Passages
from chatkeep.testing import user

PROJECT = UUID(int=9)


def finds(*found: Passage) -> Search:
    """A search that finds these."""

    async def search(owner: str, project_id: UUID, question: str, limit: int) -> Passages:
        assert (owner, project_id) == ("ada", PROJECT)
        assert len(question) <= MAX_QUESTION_CHARS
        return Passages(items=list(found)[:limit], method="lexical")

    return search


async def answered(search: Search, question: str = "Where does sage grow?", project: UUID | None = PROJECT) -> Folded:
    """The answer to a question."""
    async with open_store("memory://", max_content_chars=0) as store:
        talk = await store.create_conversation("ada", NewConversation())
        (asked,) = await store.append("ada", talk.id, user(question))
        events = [
            checked(event) async for event in extract(Asked(store, "ada", talk.id, asked, UUID(int=1)), project, search)
        ]
        return fold(TurnEvent(n, *event) for n, event in enumerate(events, 1))


def quoted(answer: Folded) -> Sequence[str]:
    """What the sources say is quoted in the answer, without the marks of a quotation."""
    spans = [source.answer_span for source in answer.sources]
    texts = [answer.content[span.start : span.end] for span in spans if span]
    return ["\n".join(line.removeprefix(">").removeprefix(" ") for line in text.split("\n")) for text in texts]


async def test_the_best_passages_are_quoted_and_cited() -> None:
    """Each with its place in the document and in the answer; the answer says that no model made it."""
    found = [passage(1), passage(2, "Sage grows\n\nin the sun."), passage(3, "Tea 🍵 is not sage."), passage(4)]
    answer = await answered(finds(*found))
    assert answer.content.startswith(BEGINNING)
    assert quoted(answer) == [each.text for each in found[:3]]
    for number, (source, each) in enumerate(zip(answer.sources, found, strict=False), 1):
        assert f"{each.file_path}#sun [{number}]" in answer.content
        assert (source.document_id, source.quote, source.similarity_score) == (each.document_id, each.text, 0.5)
        assert source.document_span
        assert (source.document_span.start, source.document_span.end) == (each.start, each.end)


async def test_a_long_passage_is_cut_to_what_was_asked_for() -> None:
    """The quotation begins with the paragraph that has the words, and its span is where the document has it."""
    text = "Mint is green. " * 60 + "\n\nSage grows in dry places. " + "It likes the sun. " * 60
    answer = await answered(finds(passage(1, text)))
    (source,) = answer.sources
    assert source.quote
    assert source.quote.startswith("Sage grows in dry places.")
    assert MAX_QUOTED_CHARS - 30 < len(source.quote) <= MAX_QUOTED_CHARS
    assert source.document_span
    begin = source.document_span.start - 10
    assert text[begin : begin + len(source.quote)] == source.quote


async def test_a_text_of_one_word_is_cut_anywhere() -> None:
    """No text may make a quotation long, or empty."""
    (source,) = (await answered(finds(passage(1, "茶" * 5_000)))).sources
    assert source.quote == "茶" * MAX_QUOTED_CHARS


async def test_nothing_to_quote() -> None:
    """The answer says why it has no sources."""
    assert (await answered(finds())).content == BEGINNING + NOTHING
    assert (await answered(finds(), project=None)).content == BEGINNING + NO_PROJECT
    assert (await answered(finds(passage(1)), question="x" * 50_000)).sources


async def test_the_search_is_down() -> None:
    """Who asked is told so, and nothing of the reason."""

    async def fails(*arguments: object) -> NoReturn:
        raise StoreUnavailable("the index of this project is not ready yet", got="10.0.0.7")

    with pytest.raises(ProviderFailed) as failed:
        await answered(fails)
    assert failed.value.reason == SEARCH_FAILED
