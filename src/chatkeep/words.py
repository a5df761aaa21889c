"""The tokenizer of full-text search, the same for all stores and scripts.

Text is normalised: compatibility forms and case are folded; what is invisible, accents of Latin, Greek and Cyrillic
letters, and vowel signs of Hebrew and Arabic are removed; Latin letters with a stroke and ligatures are made plain.
Scripts without spaces between words, and Korean, whose words have endings, are tokenised by character. Consecutive
characters of them in a query are a phrase, so that any part of a Chinese, Japanese, Thai or Korean sentence is found.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from typing import NamedTuple

import regex

from chatkeep.errors import InvalidInput

RULE = 2
"""The version of the rule of what a word is. Raise it with every change of `fold` or of what a word is: stores index
anew what an older rule has indexed."""

MAX_INDEXED_CHARS = 200_000
"""Indexed length of a message, in characters from its start."""

FOLDED_RATIO, FOLDED_SLACK = 2, 1_000
"""How many times as long as itself a text is indexed when it is folded, and how many characters more: folding makes up
to 18 of one, and of a whole text in any language not twice as many."""

MAX_TERM_CHARS = 255
"""Longest term of an index of single words, in characters: databases limit the size of an index key."""

MAX_QUERY_WORDS = 32
"""Most words of one query, wanted and excluded; a phrase counts as one."""

MAX_QUERY_CHARS = 200
"""Longest query, in characters, and most words in all its phrases."""

MAX_MARKS = 30
"""Longest run of combining marks that is left to `unicodedata`, which sorts one in quadratic time: as many as UAX #15
allows in its Stream-Safe Text Format."""

SNIPPET_CHARS = 160
"""Longest snippet, in characters."""

_SINGLE = (
    r"\p{Han}\p{Hiragana}\p{Katakana}\u30fc\p{Hangul}\p{Bopomofo}\p{Yi}"
    r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}"
)
_ALONE = rf"[[{_SINGLE}]&&[\p{{L}}\p{{N}}\p{{M}}]]"
_TOGETHER = rf"[[\p{{L}}\p{{N}}\p{{M}}]--[{_SINGLE}]]"
_WORD = regex.compile(rf"(?V1){_ALONE}|{_TOGETHER}+")
_PHRASE = regex.compile(rf"(?V1){_ALONE}+|{_TOGETHER}+")
_WORD_ALONE = regex.compile(rf"(?V1){_ALONE}")
_WORD_TOGETHER = regex.compile(r"[\p{L}\p{N}\p{M}]+")
_MAY_STAND_ALONE = re.compile("[\u0e00-\u11ff\u1700-\u1bff\u2e80-\uabff\uac00-\ud7ff\uf900-\ufaff\uff00-\U0003ffff]")
"""The blocks of the scripts that are tokenised by character. Text without them is split in a third of the time."""

_QUOTE = re.compile('["\u201c\u201d\u201e\u201f\u00ab\u00bb]')
_QUERY_PART = regex.compile(r'((?<!\S)-(?=[\p{L}\p{N}\p{M}"]))?(?:"([^"]*)"?|([^\s"]+))')
"""A minus, and then a phrase in quotes, or what stands between blanks. Within a word a minus means nothing."""

_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}+")
"""Soft hyphens, joiners, direction marks, variation selectors …"""

_TATWEEL = re.compile("[\u0640\ufcf2-\ufcf4\ufe71\ufe77\ufe79\ufe7b\ufe7d\ufe7f]")
"""The Arabic tatweel, alone or with a sign."""

_ACCENTS = regex.compile("[\u0300-\u036f]+")
_HEBREW_POINTS = "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\ufb1e"
_ARABIC_SIGNS = (
    "\u0610-\u061a\u064b-\u0652\u0656-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8\u06ea-\u06ed\u08d3-\u08e1"
    "\u08e3-\u08ff"
)
"""Vowels and signs of recitation. Madda and hamza make another letter of one: they are kept."""

_STROKES = {"æ": "ae", "đ": "d", "ħ": "h", "\u0131": "i", "ł": "l", "ø": "o", "œ": "oe", "ŧ": "t"}
_PLAIN = {form: plain for letter, plain in _STROKES.items() for form in (letter, letter.upper())}
"""Letters that Unicode does not decompose, as they are typed where a keyboard lacks them. Capitals: NFKD makes some."""

_RARE = re.compile(f"[{_HEBREW_POINTS}{_ARABIC_SIGNS}{''.join(_PLAIN)}]")
_MARKS = regex.compile(rf"\p{{M}}{{{MAX_MARKS + 1},}}")
_REORDERED = regex.compile(r"\P{ccc=0}+")
_BLOCK = regex.compile(r"\X{1,256}")
_CLUSTER = regex.compile(r"\X")


class Query(NamedTuple):
    """What a search asks for, in phrases: lists of words that are adjacent in a message, in this order."""

    phrases: list[list[str]]
    """A hit has all of them."""
    excluded: list[list[str]]
    """A hit has none of them."""


def fold(text: str) -> str:
    """Return `text` normalised for comparison, in linear time."""
    if text.isascii():
        return text.lower()
    # At first what has no class: the marks on both sides become one run, which has to be sorted.
    seen = _TATWEEL.sub("", _INVISIBLE.sub("", text))
    ordered = _MARKS.sub(_in_canonical_order, seen.casefold())
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", ordered))
    plain = _RARE.sub(lambda rare: _PLAIN.get(rare[0], ""), plain)
    return unicodedata.normalize("NFC", plain).casefold()


def _in_canonical_order(marks: regex.Match[str]) -> str:
    """A run of combining marks as NFKD has it: decomposed, and sorted by class between those of class 0."""
    decomposed = "".join(unicodedata.normalize("NFKD", mark) for mark in marks.group())
    return _REORDERED.sub(lambda run: "".join(sorted(run.group(), key=unicodedata.combining)), decomposed)


def words_of(content: str) -> list[str]:
    """Return the words of the searched part of `content`, in order."""
    return _split(_folded(content[:MAX_INDEXED_CHARS]))


def _folded(text: str) -> str:
    return fold(text)[: FOLDED_RATIO * len(text) + FOLDED_SLACK]


def _split(folded: str) -> list[str]:
    found: list[str] = (_WORD if _MAY_STAND_ALONE.search(folded) else _WORD_TOGETHER).findall(folded)
    return found


def runs_of(folded: str) -> list[str]:
    """Return the words of folded text, in order; consecutive characters that are words of their own are one run."""
    found: list[str] = (_PHRASE if _MAY_STAND_ALONE.search(folded) else _WORD_TOGETHER).findall(folded)
    return found


def is_by_character(run: str) -> bool:
    """Return whether each character of a run is a word of its own."""
    return _WORD_ALONE.match(run) is not None


def index_text(content: str) -> str:
    """Return the words of `content`, in order, for a tokenizer that splits at anything but ASCII letters and digits.

    ASCII text is returned unchanged: such a tokenizer, folding ASCII case, finds the same words in it.
    """
    content = content[:MAX_INDEXED_CHARS]
    return content if content.isascii() else " ".join(words_of(content))


def index_terms(owner: str, content: str) -> list[str]:
    """Return the terms of `content` for an index of single words that all owners share.

    A term is a word with a prefix for its owner, so that a search reads that owner's part of the index. No term has a
    space. Words are cut to 255 characters.
    """
    prefix = _prefix(owner)
    return [f"{prefix}{word}" for word in index_words(content)]


def index_words(content: str) -> list[str]:
    """Return the distinct words of `content` for an index with the owner in a column of its own."""
    return list({word[:MAX_TERM_CHARS] for word in words_of(content)})


class QueryTerms(NamedTuple):
    """The terms of a query for an index of single words."""

    wanted: list[str]
    """What a hit has all of."""
    excluded: list[str]
    """What a hit has none of."""
    exact: bool
    """Whether every message with these terms is a hit. If not, check it with `holds`: the terms do not tell which words
    are adjacent."""


def query_terms(owner: str, query: Query) -> QueryTerms:
    """Return the terms of a query, each with the owner's prefix, for an index of `index_terms`."""
    prefix = _prefix(owner)
    wanted, excluded, exact = query_words(query)
    return QueryTerms([f"{prefix}{word}" for word in wanted], [f"{prefix}{word}" for word in excluded], exact)


def query_words(query: Query) -> QueryTerms:
    """As `query_terms`, but without the owner's prefix: for an index of `index_words`."""
    wanted = {word[:MAX_TERM_CHARS] for word in chain(*query.phrases)}
    excluded = {phrase[0] for phrase in query.excluded if _is_term(phrase)}
    return QueryTerms(list(wanted), list(excluded), all(map(_is_term, chain(query.phrases, query.excluded))))


def _is_term(phrase: list[str]) -> bool:
    """Whether an index of single words tells which messages hold a phrase."""
    return len(phrase) == 1 and len(phrase[0]) <= MAX_TERM_CHARS


@lru_cache(maxsize=4096)
def _prefix(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:8]


def parse_query(text: str) -> Query:
    """Return what a query asks for. Raises InvalidInput.

    Words in double quotes are adjacent; a minus before a word or a quote excludes it.
    """
    if len(text) > MAX_QUERY_CHARS:
        raise InvalidInput(_TOO_LONG, got=f"{len(text):,} characters")
    query = Query([], [])
    for excludes, phrase in _phrases(_QUOTE.sub('"', fold(text))):
        (query.excluded if excludes else query.phrases).append(phrase)
    _check(query)
    return query


def _phrases(folded: str) -> Iterator[tuple[bool, list[str]]]:
    """Yield the phrases of a folded query, and whether each is excluded."""
    for minus, quoted, bare in _QUERY_PART.findall(folded):
        # What is excluded without quotes is one phrase: of -e-mail, "mail" is not wanted.
        parts = [quoted or bare] if minus or quoted else _PHRASE.findall(bare)
        yield from ((bool(minus), words) for part in parts if (words := _WORD.findall(part)))


def _check(query: Query) -> None:
    """Raise InvalidInput for a query without a wanted word, or with too many words of both kinds."""
    if not query.phrases:
        rest = " that is wanted, beside those that are excluded" if query.excluded else ""
        raise InvalidInput(f"a search needs at least one word{rest}")
    phrases = query.phrases + query.excluded
    if len(phrases) > MAX_QUERY_WORDS:
        raise InvalidInput(f"a search can have at most {MAX_QUERY_WORDS} words", got=f"{len(phrases)} words")
    count = sum(map(len, phrases))
    if count > MAX_QUERY_CHARS:  # some characters stand for several
        raise InvalidInput(_TOO_LONG, got=f"{count:,} characters, as they are compared")


_TOO_LONG = f"a search can have at most {MAX_QUERY_CHARS} characters; take the words that matter"


def holds(content: str, query: Query) -> bool:
    """Return whether `content` has every phrase and nothing excluded: what a hit is, for stores without an index."""
    text = _in_a_row(words_of(content))
    if any(_in_a_row(phrase) in text for phrase in query.excluded):
        return False
    return all(_in_a_row(phrase) in text for phrase in query.phrases)


def _in_a_row(words: Sequence[str]) -> str:
    """Words as one text in which a phrase is found in linear time."""
    return f" {' '.join(words)} "


def snippet(content: str, query: Query) -> str:
    """Return the text of `content` around the first phrase that is wanted, on one line."""
    start = max(0, _first_match(content[:MAX_INDEXED_CHARS], query.phrases) - SNIPPET_CHARS // 3)
    end = start + SNIPPET_CHARS
    if start:
        start = content.find(" ", start, start + SNIPPET_CHARS // 4) + 1 or start
    text = " ".join(content[start:end].split())
    return f"{'… ' if start else ''}{text}{' …' if end < len(content) else ''}"


def _first_match(content: str, phrases: list[list[str]]) -> int:
    """Return the offset in `content` at which the first phrase starts; 0 without one."""
    folded = _folded(content)
    text = _in_a_row(_split(folded))
    places = [place for phrase in phrases if (place := text.find(_in_a_row(phrase))) >= 0]
    if not places:
        return 0
    word = next(islice(_WORD.finditer(folded), text.count(" ", 0, min(places)), None))
    start = word.start()
    is_same = fold(content[: start + 1]) == folded[: start + 1]
    return start if is_same else _unfolded(content, start)


def _unfolded(text: str, place: int) -> int:
    """Return the offset in `text` of the character at `place` of the folded text: folding changes lengths."""
    offset = 0
    for parts in (_BLOCK, _CLUSTER):  # first many clusters at a time, which takes a tenth of the time
        start, end, place = _part_at(place, parts, text)
        offset, text = offset + start, text[start:end]
    return offset


def _part_at(place: int, parts: regex.Pattern[str], text: str) -> tuple[int, int, int]:
    """Return start and end of the part of `text` with the folded character at `place`, and its place in that part."""
    start = end = 0
    for part in parts.finditer(text):
        start, end = part.span()
        length = len(fold(part.group()))
        if place < length:
            return start, end, place
        place -= length
    return start, end, 0  # what folds otherwise in parts ends a little earlier
