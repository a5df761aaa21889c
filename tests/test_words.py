"""What a word is, in every script."""

import time
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidInput
from chatkeep.testing import SENTENCES
from chatkeep.words import MAX_INDEXED_CHARS, MAX_QUERY_WORDS, fold, holds, index_text, query_phrases, snippet

TEXTS = st.text(max_size=60) | st.text("tea TÉ茶ｶﾞかゞ\u3099\u0301ßſǅİıΣςﷺ½Ⅷ한글ﾞไทย_'\"\x00", max_size=30)


@given(text=TEXTS)
def test_folding_twice_is_folding_once(text: str) -> None:
    """The folded form of a text is its own folded form."""
    assert fold(fold(text)) == fold(text)


@given(text=TEXTS)
def test_unicode_forms_fold_alike(text: str) -> None:
    """A text folds to the same, however its characters are composed."""
    forms = {fold(unicodedata.normalize(form, text)) for form in ("NFC", "NFD", "NFKC", "NFKD")}
    assert forms == {fold(text)}


@given(text=st.text("aZ09 _-'\"\x00\n~", max_size=40))
def test_ascii_text_is_indexed_as_it_is(text: str) -> None:
    """ASCII text goes to the index unchanged: the index splits and folds it in the same way."""
    assert index_text(text) == text


@given(text=TEXTS.filter(lambda text: not text.isascii()))
def test_index_text_is_words_and_blanks(text: str) -> None:
    """Other text is indexed as its folded words, with nothing in it that an index could take for syntax."""
    words = index_text(text)
    assert all(character == " " or character.isalnum() for character in words if character.isascii())


@given(text=TEXTS, before=st.text("ab 茶。", max_size=5), after=st.text("ab 茶。", max_size=5))
def test_text_finds_itself(text: str, before: str, after: str) -> None:
    """A text that has words is found in every text that holds it, set apart by blanks."""
    try:
        phrases = query_phrases(text)
    except InvalidInput:
        return
    assert holds(f"{before} {text} {after}", phrases)


@pytest.mark.parametrize(("script", "sentence", "word"), SENTENCES, ids=[script for script, _, _ in SENTENCES])
def test_words_of_every_script(script: str, sentence: str, word: str) -> None:
    """A word of a sentence is found in that sentence and in no other."""
    phrases = query_phrases(word)
    assert [other for _, other, _ in SENTENCES if holds(other, phrases)] == [sentence]


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        ("green tea", [["green"], ["tea"]]),
        ("Green-TEA!", [["green"], ["tea"]]),
        ("图书馆", [["图", "书", "馆"]]),
        ("图 书", [["图"], ["书"]]),
        ("iPhone15手机", [["iphone15"], ["手", "机"]]),
        ("コーヒー", [["コ", "ー", "ヒ", "ー"]]),
        ("ｺｰﾋｰ", [["コ", "ー", "ヒ", "ー"]]),
        ("ガ", [["ガ"]]),
        ("ｶﾞ", [["ガ"]]),
        ("한국", [["한", "국"]]),
        (unicodedata.normalize("NFD", "한국"), [["한", "국"]]),
        ("café", [["cafe"]]),
        ("हिन्दी", [["हिन्दी"]]),
        ("Straße", [["strasse"]]),
    ],
)
def test_query_phrases(text: str, phrases: list[list[str]]) -> None:
    """A query is words; in scripts without spaces a run of characters is a phrase."""
    assert query_phrases(text) == phrases


@pytest.mark.parametrize("text", ["", " \n", "?!…", '"*"', "\x00", "\ud800", "😀"])
def test_query_without_a_word_is_refused(text: str) -> None:
    """A query needs a letter or digit."""
    with pytest.raises(InvalidInput, match="at least one word"):
        query_phrases(text)


def test_query_with_too_many_words_is_refused() -> None:
    """A query has a bounded number of words; a long sentence without spaces counts as one."""
    assert len(query_phrases("tea " * MAX_QUERY_WORDS)) == MAX_QUERY_WORDS
    with pytest.raises(InvalidInput, match="at most 32 words"):
        query_phrases("tea " * (MAX_QUERY_WORDS + 1))
    assert len(query_phrases("茶" * 500)) == 1


def test_beginning_of_long_text_is_searched() -> None:
    """The first 200,000 characters of a text are searched."""
    filler = "tea " * (MAX_INDEXED_CHARS // 4 - 1)
    assert holds(f"{filler}sage thyme", query_phrases("sage")) is True
    assert holds(f"{filler}sage thyme", query_phrases("thyme")) is False
    assert index_text(f"{filler}sage thyme").endswith(" sage")


@pytest.mark.parametrize(
    "word",
    ["saffron", "Café", "cafe\u0301", "ΔΡΌΜΟΣ", "番红花", "コーヒー", "ｶﾞｽ", "도서관",
     unicodedata.normalize("NFD", "도서관"), "ทะเล", "น้ำชา", "Ⅷ", "½"],
)  # fmt: skip
def test_snippet_holds_the_word(word: str) -> None:
    """A snippet holds the word as it was written, wherever in a long text it stands."""
    for filler in ("plain words here ", "这里只有普通的文字。"):
        for count in (0, 1, 5, 40):
            text = f"{filler * count} {word} {filler * count}"
            shown = snippet(text, query_phrases(word))
            assert word in shown
            assert len(shown) <= 170


def test_snippet_shows_where_it_was_cut() -> None:
    """A snippet begins and ends with an ellipsis where there is more, and is one line."""
    assert snippet("How hot\n\nis  tea?", [["tea"]]) == "How hot is tea?"
    shown = snippet("Plain words. " * 30 + "tea" + " Plain words." * 30, [["tea"]])
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert snippet("", [["tea"]]) == ""


def test_snippet_shows_the_whole_phrase() -> None:
    """A character of the phrase alone does not count: the snippet shows where all of it stands together."""
    text = "书。" * 200 + "图书馆" + "馆。" * 200
    assert "图书馆" in snippet(text, query_phrases("图书馆"))


def test_long_text_is_handled_in_time() -> None:
    """Text as long as anything that is searched takes well under a second, whatever it is made of."""
    for text in ("a" * MAX_INDEXED_CHARS, "茶" * MAX_INDEXED_CHARS, "e\u0301" * 100_000, "\u0301" * MAX_INDEXED_CHARS):
        started = time.thread_time()  # what others do with the machine does not count
        index_text(text)
        snippet(text, [["b"]])
        assert time.thread_time() - started < 5
