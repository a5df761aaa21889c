"""What a word is, in every script: one answer for all stores' full-text search.

Text is compared in one form: compatibility forms folded, case folded, accents of Latin, Greek and Cyrillic
letters dropped. Scripts that are written without spaces between words, and Korean, whose words carry
endings, are taken character by character, and a query's run of such characters must stand together: so
any part of a Chinese, Japanese, Thai or Korean sentence is found.
"""

import hashlib
import unicodedata
from collections.abc import Iterator, Sequence
from functools import lru_cache

import regex

from chatkeep.errors import InvalidInput

MAX_INDEXED_CHARS = 200_000
"""How much of a message is searched, in characters from its start."""

MAX_TERM_CHARS = 255
"""Longest term of an index of single words, in characters: databases limit the size of a key."""

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
_RUN = regex.compile(rf"(?V1){_ALONE}+|{_TOGETHER}+")
_ACCENTS = regex.compile(r"[\u0300-\u036f]+")
_CHUNK = regex.compile(r"\S+")
_CLUSTER = regex.compile(r"\X")


def fold(text: str) -> str:
    """Return `text` in the form in which words are compared."""
    if text.isascii():
        return text.lower()
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", text.casefold()))
    return unicodedata.normalize("NFC", plain).casefold()


def index_text(content: str) -> str:
    """Return the words of `content`, in order, divided by what is not a letter or digit of ASCII.

    ASCII text is returned as it is: a reader that splits at everything but letters and digits, and folds
    ASCII case, finds the same words in it.
    """
    content = content[:MAX_INDEXED_CHARS]
    return content if content.isascii() else " ".join(_WORD.findall(fold(content)))


def index_terms(owner: str, content: str) -> list[str]:
    """Return the terms under which an index of single words finds `content`, for this owner only.

    Each is a word behind a mark of its owner, so that a search reads that owner's part of the index. No
    term holds a space. Words of more than 255 characters are cut.
    """
    mark = _mark(owner)
    return [f"{mark}{word}" for word in index_words(content)]


def index_words(content: str) -> list[str]:
    """Return the words under which an index that names the owner by itself finds `content`, each once."""
    return list({word[:MAX_TERM_CHARS] for word in _WORD.findall(fold(content[:MAX_INDEXED_CHARS]))})


def query_terms(owner: str, phrases: list[list[str]]) -> tuple[list[str], bool]:
    """Return the terms that a message with these phrases has, and whether every message that has them is a hit.

    Where not, `holds` decides: the terms do not say which words stand together.
    """
    mark = _mark(owner)
    words, exact = query_words(phrases)
    return [f"{mark}{word}" for word in words], exact


def query_words(phrases: list[list[str]]) -> tuple[list[str], bool]:
    """The same as `query_terms`, without the owner's mark: what `index_words` gives."""
    words = {word for phrase in phrases for word in phrase}
    exact = all(len(phrase) == 1 for phrase in phrases) and all(len(word) <= MAX_TERM_CHARS for word in words)
    return [word[:MAX_TERM_CHARS] for word in words], exact


@lru_cache(maxsize=4096)
def _mark(owner: str) -> str:
    return hashlib.sha256(owner.encode()).hexdigest()[:8]


def query_phrases(query: str) -> list[list[str]]:
    """Return what a message must hold: each phrase is words that stand together. Raises InvalidInput."""
    phrases = [_WORD.findall(run) for run in _RUN.findall(fold(query[:MAX_INDEXED_CHARS]))]
    if not phrases:
        raise InvalidInput("a search needs at least one word")
    if len(phrases) > MAX_QUERY_WORDS:
        raise InvalidInput(f"a search can have at most {MAX_QUERY_WORDS} words", got=f"{len(phrases)} words")
    return phrases


def holds(content: str, phrases: list[list[str]]) -> bool:
    """Whether `content` holds every phrase: the meaning of a search, for stores without an index."""
    text = f" {' '.join(_WORD.findall(fold(content[:MAX_INDEXED_CHARS])))} "
    return all(f" {' '.join(phrase)} " in text for phrase in phrases)


def snippet(content: str, phrases: list[list[str]]) -> str:
    """Return the part of `content` around the first phrase found, on one line."""
    start = max(0, next(_places(content[:MAX_INDEXED_CHARS], phrases), 0) - SNIPPET_CHARS // 3)
    end = start + SNIPPET_CHARS
    if start:
        start = content.find(" ", start, start + SNIPPET_CHARS // 4) + 1 or start
    text = " ".join(content[start:end].split())
    return f"{'… ' if start else ''}{text}{' …' if end < len(content) else ''}"


def _places(content: str, phrases: list[list[str]]) -> Iterator[int]:
    """Where a phrase begins in `content` as it was written."""
    firsts = {phrase[0]: phrase for phrase in phrases}
    words = list(_written(content))
    for number, (word, place) in enumerate(words):
        phrase = firsts.get(word)
        if phrase and [w for w, _ in words[number : number + len(phrase)]] == phrase:
            yield place


def _written(content: str) -> Iterator[tuple[str, int]]:
    """The words of `content`, each with the place at which it begins there."""
    for chunk in _CHUNK.finditer(content):
        folded, places = _fold_in_place(chunk.group())
        for match in _WORD.finditer(folded):
            yield match.group(), chunk.start() + places[match.start()]


def _fold_in_place(text: str) -> tuple[str, Sequence[int]]:
    """The folded text, and for each of its characters where it stands in `text`: folding changes lengths."""
    folded = fold(text)
    if len(folded) == len(text):
        return folded, range(len(text))
    clusters = [(match.start(), fold(match.group())) for match in _CLUSTER.finditer(text)]
    return "".join(part for _, part in clusters), [place for place, part in clusters for _ in part]
