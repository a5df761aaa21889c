"""The terms that passages and questions have in common: one tokenizer for both.

Text is folded as in `chatkeep.words`. English words are stemmed, and those that every text has are left out. Scripts
without spaces between words, and Korean, become pairs of neighbouring characters. Identifiers are found by their parts
and whole: `ray.init` is ray, init and ray.init, `HTTPServer` is httpserver, http and server.

Stored with a chunk are numbers instead of words, so that an index is made of them by numpy alone. Two words with the
same number are taken for one: of 100,000 words about one pair.
"""

import re
import threading
import zlib
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise

import Stemmer  # type: ignore[import-not-found]  # it has no types

from chatkeep.documents import MAX_CHUNK_TERMS
from chatkeep.words import fold, is_by_character, runs_of

TERMS_RULE = 1
"""The version of the rule of what a term is. Raise it with every change: stored terms are those of their rule."""

MAX_TERM_CHARS = 64
"""Longest word; what follows is left out."""

_STOP_WORD_LIST = """
a an and are as at be but by for if in into is it of on or such that the their then there these they this to was
will with
i me my we us our you your he him his she her its them
am were been being do does did doing done have has had having can could may might must shall should would
how what when where which who whom whose why
about after again also any because before both during each from further here just more most now once only other out
over own same so some than those through too under until up very while
d don ll m re s t ve
"""
"""Words that tell nothing about what a text is about, or that only make a question of it."""

_STOP_WORDS = frozenset(_STOP_WORD_LIST.split())

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_COMPOUND = re.compile(r"(?<![a-z0-9])[a-z0-9]++(?:[._][a-z0-9]++)+")
_INNER_CAPITAL = re.compile(r"\b\w*(?:[a-z0-9][A-Z]|[A-Z]{2}[a-z])\w*")
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def terms_of(text: str) -> list[str]:
    """Return the terms of a text, with repetitions, in linear time."""
    return [term for word in _words(text) if (term := _term(word))]


def pack_terms(text: str) -> bytes:
    """Return the numbers of the first terms of a text: each of 32 bits, little-endian."""
    return b"".join(map(_packed, _words(text)))[: 4 * MAX_CHUNK_TERMS]


def _words(text: str) -> list[str]:
    """Return the words of a text, then its compound ones, then the parts of those with inner capitals."""
    folded = fold(text)
    words = _ASCII_WORD.findall(folded) if folded.isascii() else list(_words_and_pairs(folded))
    words += _COMPOUND.findall(folded)
    words += [part.lower() for name in _INNER_CAPITAL.findall(text) for part in _PART.findall(name)]
    if max(map(len, words), default=0) > MAX_TERM_CHARS:
        return [word[:MAX_TERM_CHARS] for word in words]
    return words


def _words_and_pairs(folded: str) -> Iterator[str]:
    """Yield words; of a run of characters that are words of their own, each pair of neighbours."""
    for run in runs_of(folded):
        if len(run) > 1 and is_by_character(run):
            yield from map("".join, pairwise(run))
        else:
            yield run


class _Stemmers(threading.local):
    """Snowball's English stemmer: one a thread, since a stemmer keeps the word that it works at."""

    def __init__(self) -> None:
        self.english = Stemmer.Stemmer("english", 0)


_STEMMERS = _Stemmers()


def _term(word: str) -> str:
    """Return the term of a word; nothing of a stop word."""
    return "" if word in _STOP_WORDS else str(_STEMMERS.english.stemWord(word))


@lru_cache(maxsize=32_768)
def _packed(word: str) -> bytes:
    return zlib.crc32(term.encode()).to_bytes(4, "little") if (term := _term(word)) else b""
