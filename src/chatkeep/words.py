"""The tokenizer of full-text search, the same for all stores and scripts.

Text is normalised: compatibility forms and case are folded, accents of Latin, Greek and Cyrillic letters removed.
Scripts without spaces between words, and Korean, whose words have endings, are tokenised by character. Consecutive
characters of them in a query are a phrase, so that any part of a Chinese, Japanese, Thai or Korean sentence is found.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import regex

from chatkeep.errors import InvalidInput

MAX_INDEXED_CHARS = 200_000
"""Indexed length of a message, in characters from its start."""

MAX_TERM_CHARS = 255
"""Longest term of an index of single words, in characters: databases limit the size of an index key."""

MAX_QUERY_WORDS = 32
"""Most words of one query."""

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
_ACCENTS = regex.compile(r"[\u0300-\u036f]+")
_CHUNK = regex.compile(r"\S+")
_CLUSTER = regex.compile(r"\X")


def fold(text: str) -> str:
    """Return `text` normalised for comparison."""
    if text.isascii():
        return text.lower()
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFC", plain).casefold()


def index_text(content: str) -> str:
    """Return the words of `content`, in order, for a tokenizer that splits at anything but ASCII letters and digits.

    ASCII text is returned unchanged: such a tokenizer, folding ASCII case, finds the same words in it.
    """
    content = content[:MAX_INDEXED_CHARS]
    return content if content.isascii() else " ".join(_WORD.findall(fold(content)))


def index_terms(owner: str, content: str) -> list[str]:
    """Return the terms of `content` for an index of single words that all owners share.

    A term is a word with a prefix for its owner, so that a search reads that owner's part of the index. No term has a
    space. Words are cut to 255 characters.
    """
    prefix = _prefix(owner)
    return [f"{prefix}{word}" for word in index_words(content)]


def index_words(content: str) -> list[str]:
    """Return the distinct words of `content` for an index with the owner in a column of its own."""
    return list({word[:MAX_TERM_CHARS] for word in _WORD.findall(fold(content[:MAX_INDEXED_CHARS]))})


def query_terms(owner: str, phrases: list[list[str]]) -> tuple[list[str], bool]:
    """Return the terms of a query's phrases, and whether every message with these terms is a hit.

    If not, check the hits with `holds`: the terms do not tell which words are adjacent.
    """
    prefix = _prefix(owner)
    words, exact = query_words(phrases)
    return [f"{prefix}{word}" for word in words], exact


def query_words(phrases: list[list[str]]) -> tuple[list[str], bool]:
    """As `query_terms`, but without the owner's prefix: for an index of `index_words`."""
    words = {word for phrase in phrases for word in phrase}
    exact = all(len(phrase) == 1 for phrase in phrases) and all(len(word) <= MAX_TERM_CHARS for word in words)
    return [word[:MAX_TERM_CHARS] for word in words], exact


@lru_cache(maxsize=4096)
def _prefix(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:8]


def query_phrases(query: str) -> list[list[str]]:
    """Return the phrases of a query: lists of words that must be adjacent in a message. Raises InvalidInput."""
    phrases = [_WORD.findall(phrase) for phrase in _PHRASE.findall(fold(query[:MAX_INDEXED_CHARS]))]
    if not phrases:
        raise InvalidInput("a search needs at least one word")
    if len(phrases) > MAX_QUERY_WORDS:
        raise InvalidInput(f"a search can have at most {MAX_QUERY_WORDS} words", got=f"{len(phrases)} words")
    return phrases


def holds(content: str, phrases: list[list[str]]) -> bool:
    """Return whether `content` contains every phrase: the definition of a hit, for stores without an index."""
    text = f" {' '.join(_WORD.findall(fold(content[:MAX_INDEXED_CHARS])))} "
    return all(f" {' '.join(phrase)} " in text for phrase in phrases)


def snippet(content: str, phrases: list[list[str]]) -> str:
    """Return the text of `content` around the first match, on one line."""
    start = max(0, next(_matches(content[:MAX_INDEXED_CHARS], phrases), 0) - SNIPPET_CHARS // 3)
    end = start + SNIPPET_CHARS
    if start:
        start = content.find(" ", start, start + SNIPPET_CHARS // 4) + 1 or start
    text = " ".join(content[start:end].split())
    return f"{'… ' if start else ''}{text}{' …' if end < len(content) else ''}"


def _matches(content: str, phrases: list[list[str]]) -> Iterator[int]:
    """Yield the offsets in `content` at which a phrase starts."""
    by_first_word = {phrase[0]: phrase for phrase in phrases}
    words = list(_words_with_offsets(content))
    for number, (word, offset) in enumerate(words):
        phrase = by_first_word.get(word)
        if phrase and [w for w, _ in words[number : number + len(phrase)]] == phrase:
            yield offset


def _words_with_offsets(content: str) -> Iterator[tuple[str, int]]:
    for chunk in _CHUNK.finditer(content):
        folded, offsets = _fold_with_offsets(chunk.group())
        for match in _WORD.finditer(folded):
            yield match.group(), chunk.start() + offsets[match.start()]


def _fold_with_offsets(text: str) -> tuple[str, Sequence[int]]:
    """Return the folded text, and the offset in `text` of each of its characters: folding changes lengths."""
    folded = fold(text)
    if len(folded) == len(text):
        return folded, range(len(text))
    clusters = [(match.start(), fold(match.group())) for match in _CLUSTER.finditer(text)]
    return "".join(part for _, part in clusters), [offset for offset, part in clusters for _ in part]
