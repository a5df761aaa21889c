"""What a word is, in every script."""

import time
import unicodedata
from itertools import pairwise

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidInput
from chatkeep.testing import SENTENCES
from chatkeep.words import (
    _ACCENTS,
    _ALONE,
    _INVISIBLE,
    _MAY_STAND_ALONE,
    _PLAIN,
    _RARE,
    _TATWEEL,
    MAX_INDEXED_CHARS,
    MAX_MARKS,
    MAX_QUERY_CHARS,
    MAX_QUERY_WORDS,
    Query,
    fold,
    holds,
    index_text,
    index_words,
    parse_query,
    snippet,
)

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
        query = parse_query(text)
    except InvalidInput:
        return
    assert query.excluded or holds(f"{before} {text} {after}", query)


@pytest.mark.parametrize(("script", "sentence", "word"), SENTENCES, ids=[script for script, _, _ in SENTENCES])
def test_words_of_every_script(script: str, sentence: str, word: str) -> None:
    """A word of a sentence is found in that sentence and in no other."""
    query = parse_query(word)
    assert [other for _, other, _ in SENTENCES if holds(other, query)] == [sentence]


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
def test_parse_query(text: str, phrases: list[list[str]]) -> None:
    """A query is words; in scripts without spaces a run of characters is a phrase."""
    assert parse_query(text) == (phrases, [])


@pytest.mark.parametrize(
    ("text", "phrases", "excluded"),
    [
        ('"green tea" mint', [["green", "tea"], ["mint"]], []),
        ('mint "green, tea', [["mint"], ["green", "tea"]], []),
        ("„Grüner Tee“ «thé vert» “te verde”", [["gruner", "tee"], ["the", "vert"], ["te", "verde"]], []),
        ("＂緑茶 ミント＂", [["緑", "茶", "ミ", "ン", "ト"]], []),
        ("gre* tea*", [["gre"], ["tea"]], []),
        ('say"green tea"now', [["say"], ["green", "tea"], ["now"]], []),
        ('"" tea "!"', [["tea"]], []),
        ("tea -mint", [["tea"]], [["mint"]]),
        ('-"black tea" -MINT tea', [["tea"]], [["black", "tea"], ["mint"]]),
        ("tea -„black tea", [["tea"]], [["black", "tea"]]),
        ("茶 －花草", [["茶"]], [["花", "草"]]),
        ("post -e-mail -15手机", [["post"]], [["e", "mail"], ["15", "手", "机"]]),
        ("e-mail 2026-01-01", [["e"], ["mail"], ["2026"], ["01"], ["01"]], []),
        ('"e-mail -mint"', [["e", "mail", "mint"]], []),
        ("tea - mint --verbose -(ice) a -!", [["tea"], ["mint"], ["verbose"], ["ice"], ["a"]], []),
        ('"tea"-mint tea\u3000-ice', [["tea"], ["mint"], ["tea"]], [["ice"]]),
    ],
)
def test_quotes_and_minus(text: str, phrases: list[list[str]], excluded: list[list[str]]) -> None:
    """Words in quotes are a phrase; a minus excludes if it begins a word or a quote."""
    assert parse_query(text) == Query(phrases, excluded)


@pytest.mark.parametrize("text", ["-tea", '-"green tea" -mint', "-tea !"])
def test_query_of_excluded_words_is_refused(text: str) -> None:
    """What is excluded goes beside what is wanted."""
    with pytest.raises(InvalidInput, match="one word that is wanted"):
        parse_query(text)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ('"green tea"', True),
        ('"tea green"', False),
        ('"green tea with"', True),
        ('"tea with a"', False),
        ("tea -coffee", True),
        ("tea -mint", False),
        ('tea -"mint green"', True),
        ('tea -"with mint"', False),
    ],
)
def test_phrases_and_exclusions_of_a_text(query: str, expected: bool) -> None:
    """A phrase is found where its words stand together in this order; nothing excluded may be anywhere."""
    assert holds("Green tea, with mint", parse_query(query)) is expected


ALIKE = {
    "soft hyphens": ("Donau\u00addampf\u00adschiff", "donaudampfschiff"),
    "a zero width space": ("super\u200bcali", "supercali"),
    "joiners": ("می\u200cخواهم क\u094d\u200dष", "میخواهم क्ष"),
    "a word joiner and a byte order mark": ("\ufefftea\u2060time", "teatime"),
    "direction marks": ("\u200fשלום\u200e", "שלום"),
    "Thai with zero width spaces": ("ทะเล\u200bสวย", "ทะเลสวย"),
    "Khmer with zero width spaces": ("ខ្ញុំ\u200bស្រឡាញ់", "ខ្ញុំស្រឡាញ់"),
    "a variation selector": ("葛\U000e0100城", "葛城"),
    "harakat": ("الشَّايُ الأَخْضَرُ", "الشاي الأخضر"),
    "tatweel": ("كـتـــاب ﹷ", "كتاب"),
    "niqqud": ("תֵּה יָרוֹק", "תה ירוק"),
    "Hebrew presentation forms": ("תּה", "תה"),
    "d and l with a stroke": ("Đorđe Łódź żółty", "dorde lodz zolty"),
    "o with a stroke and ae": ("SMØRREBRØD ǿ Ærø cœur", "smorrebrod o aero coeur"),
    "i without a dot": ("IĞDIR ısı İzmir", "ığdır isi izmir"),
}
"""Two ways to write the same words."""


@pytest.mark.parametrize(("one", "other"), ALIKE.values(), ids=ALIKE)
def test_two_ways_to_write_words_are_alike(one: str, other: str) -> None:
    """What is invisible, vowel signs and strokes make no other word: each way to write it finds the other."""
    assert fold(one).strip() == fold(other)
    for content, query in ((one, other), (other, one)):
        assert holds(f"before {content} after", parse_query(f'"{query}"'))


def test_other_letters_stay_apart() -> None:
    """Marks that make another letter are kept: hamza and madda, vowels of Indic scripts, the voicing of kana."""
    for one, other in (("سأل", "سال"), ("القرآن", "القران"), ("कि", "क"), ("が", "か"), ("ð", "d")):
        assert fold(one) != fold(other)


def test_normalising_makes_nothing_invisible() -> None:
    """What is removed at first does not come back, so that no marks become one run after they were sorted."""
    for character in map(chr, range(0x110000)):
        if not _INVISIBLE.match(character) and not _TATWEEL.match(character):
            made = unicodedata.normalize("NFKD", character)
            assert not _INVISIBLE.search(made)
            assert "\u0640" not in made


def test_removed_signs_leave_marks_sorted() -> None:
    """Every mark that is removed after sorting has a class: those around it stay in order without it."""
    rare = [character for code in range(0x110000) if _RARE.match(character := chr(code)) and character not in _PLAIN]
    accents = [chr(code) for code in range(0x300, 0x370) if not _INVISIBLE.match(chr(code))]
    assert len(rare) > 100
    assert [sign for sign in rare + accents if not unicodedata.combining(sign)] == []


@pytest.mark.parametrize("text", ["", " \n", "?!…", '"*"', "\x00", "\ud800", "😀", "❤\ufe0f", "\u200b", "ـ"])
def test_query_without_a_word_is_refused(text: str) -> None:
    """A query needs a letter or digit."""
    with pytest.raises(InvalidInput, match="at least one word"):
        parse_query(text)


def test_query_with_too_many_words_is_refused() -> None:
    """A query has a bounded number of words; a sentence without spaces counts as one."""
    assert len(parse_query("tea " * MAX_QUERY_WORDS).phrases) == MAX_QUERY_WORDS
    for query in ("tea " * (MAX_QUERY_WORDS + 1), "tea " + "-ice " * MAX_QUERY_WORDS):
        with pytest.raises(InvalidInput, match="at most 32 words"):
            parse_query(query)


def test_long_query_is_refused() -> None:
    """A query has a bounded length, also if it is one word, or a character that stands for many."""
    assert parse_query("茶" * MAX_QUERY_CHARS).phrases == [["茶"] * MAX_QUERY_CHARS]
    company = "㍿" * (MAX_QUERY_CHARS // 4 + 1)
    for query in ("茶" * (MAX_QUERY_CHARS + 1), "a" * (MAX_QUERY_CHARS + 1), company, f"tea -{company}"):
        with pytest.raises(InvalidInput, match="at most 200 characters"):
            parse_query(query)


def test_beginning_of_long_text_is_searched() -> None:
    """The first 200,000 characters of a text are searched."""
    filler = "tea " * (MAX_INDEXED_CHARS // 4 - 1)
    assert holds(f"{filler}sage thyme", parse_query("sage")) is True
    assert holds(f"{filler}sage thyme", parse_query("thyme")) is False
    assert index_text(f"{filler}sage thyme").endswith(" sage")


def test_folded_text_is_searched_up_to_twice_its_length() -> None:
    """A character that stands for 18 is found as its words; thousands of them cost no more than other text."""
    assert holds("ﷺ" * 20, parse_query("وسلم"))
    assert len(index_text("ﷺ" * 4_000)) <= 2 * 4_000 + 1_000
    assert "ﷺ" in snippet("ﷺ" * 4_000, parse_query("الله"))


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
            shown = snippet(text, parse_query(word))
            assert word in shown
            assert len(shown) <= 170


TEA = Query([["tea"]], [])


@pytest.mark.parametrize(
    "filler", ["soft\u00adhyphens\u00ad ", "Ærø ", "æ\u200b ", "كـتَاب ", "\u200b", "ﬁn\u00ad\u00ad "]
)
@pytest.mark.parametrize("count", [1, 50, 200])
def test_snippet_after_what_folds_to_another_length(filler: str, count: int) -> None:
    """The snippet holds the word, also if as many characters are removed before it as others become two behind it."""
    equal = "\u00ad" * 300 * count + "saffron " + "æ" * 300 * count
    assert len(fold(equal)) == len(equal)
    assert "saffron" in snippet(equal, parse_query("saffron"))
    for text in (filler * count, "\u00ad" * 150 * count + filler * count, "æ" * 150 * count + "\u200b" * 300 * count):
        assert "saffron" in snippet(f"{text} saff\u00adron saffron {text}", parse_query("saffron"))


def test_snippet_shows_where_it_was_cut() -> None:
    """A snippet begins and ends with an ellipsis where there is more, and is one line."""
    assert snippet("How hot\n\nis  tea?", TEA) == "How hot is tea?"
    shown = snippet("Plain words. " * 30 + "tea" + " Plain words." * 30, TEA)
    assert shown.startswith("… ")
    assert shown.endswith(" …")
    assert snippet("", TEA) == ""


def test_snippet_shows_the_whole_phrase() -> None:
    """A character of the phrase alone does not count: the snippet shows where all of it stands together."""
    text = "书。" * 200 + "图书馆" + "馆。" * 200
    assert "图书馆" in snippet(text, parse_query("图书馆"))


MARKS = [chr(code) for code in range(0x110000) if unicodedata.combining(chr(code))]

MANY = MAX_INDEXED_CHARS // 2
"""Characters that anything quadratic would take long for."""

HOSTILE = {
    "latin": "a",
    "han": "茶",
    "accents": "e\u0301",
    "one class of marks": "\u0301",
    "sharp s, which becomes two": "ß",
    "a ligature of 18 characters": "\ufdfa",
    "an iota that is a mark": "\u0345",
    "jamo": "\u1112\u1161\u11ab",
    "jamo that do not compose": "\u1112\u1112\u1161\u11ab\u11ab",
    "Thai": "ก่ำ",
    "blanks": " ",
    "musical notes of three": "\U0001d160",
    "viramas and nuktas": "क\u094d\u093c",
    "soft hyphens": "\u00ad",
    "letters between zero width spaces": "a\u200b",
    "marks around a joiner": "\u1dc4\u034f\u302a\u200d",
    "tatweel": "ـ",
    "harakat": "بَّ",
    "niqqud and cantillation": "ש\u05c1\u0591",
    "ae": "æ",
    "d with a stroke": "Đ",
}


@given(marks=st.lists(st.sampled_from(MARKS), max_size=2 * MAX_MARKS), base=st.sampled_from(["", "e", "é", "茶", "ガ"]))
def test_long_runs_of_marks_fold_as_short_ones(marks: list[str], base: str) -> None:
    """Marks are ordered as Unicode says, however many there are: each way to write a text folds alike."""
    text = base + "".join(marks)
    plain = unicodedata.normalize("NFKD", _INVISIBLE.sub("", text).casefold())
    for removed in (_ACCENTS, _RARE):
        plain = removed.sub("", plain)
    assert fold(text) == unicodedata.normalize("NFC", plain).casefold()


def test_every_mark_that_is_sorted_is_found() -> None:
    """Both Unicode databases agree on what a mark is, so that no run of them is left to the slow sort."""
    assert [mark for mark in MARKS if not regex.fullmatch(r"\p{M}", mark)] == []


def test_scripts_without_blanks_are_seen() -> None:
    """Whatever stands alone as a word lies in the blocks that are looked for first."""
    alone = regex.compile(rf"(?V1){_ALONE}")
    letters = [character for code in range(0x110000) if alone.match(character := chr(code))]
    assert len(letters) > 100_000
    assert [letter for letter in letters if not _MAY_STAND_ALONE.match(letter)] == []


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_long_text_is_handled_in_time(text: str) -> None:
    """Long text takes well under a second, whatever it is made of."""
    _assert_quick((text * MANY)[:MANY])


@pytest.mark.parametrize("order", ["\u0301\u0327", "\u0327\u0301", "\u05b0\u0591", "\u0345\u0301", "\u1dc4\u302a"])
def test_unordered_marks_are_handled_in_time(order: str) -> None:
    """Marks of several classes are sorted in linear time: all of one before all of the other, or in turn."""
    half = MANY // 2
    _assert_quick("a" + order[0] * half + order[1] * half)
    _assert_quick("é" + order * half)
    for invisible in ("\u034f", "\u200d", "\u0640", "\ufe77", "\u00ad"):  # which is removed, and makes one run of two
        _assert_quick("a" + order[0] * half + invisible + order[1] * half)


def test_every_class_of_marks_is_handled_in_time() -> None:
    """No kind of mark, followed by one that is sorted before it, makes folding slow."""
    classes = {unicodedata.combining(mark): mark for mark in MARKS}
    for lower, higher in pairwise(sorted(classes)):
        started = time.thread_time()
        fold("a" + classes[higher] * 20_000 + classes[lower] * 20_000)
        assert time.thread_time() - started < 0.5, (lower, higher)


def _assert_quick(text: str) -> None:
    phrases = [["茶"] * 199 + ["好"], ["a" * 200], ["b"]]
    query = Query(phrases, phrases[:2])
    started = time.thread_time()  # what others do with the machine does not count
    index_text(text)
    index_words(text)
    holds(text, query)
    snippet(text, query)
    assert time.thread_time() - started < 3
