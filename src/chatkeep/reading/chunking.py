"""Cuts the text of a document into chunks, along its headings. No I/O.

The chunks of a text, in order, are the whole text. A section begins with a heading and ends before the next one; a
heading with nothing below it but a deeper one goes to the chunk of that, and so does front matter. Sections that are
too long are cut between blocks, else between lines, words, or characters. Takes linear time for any text.
"""

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import NamedTuple

import regex

from chatkeep.documents import MAX_CHUNK_CHARS, MAX_CHUNK_TERMS, MAX_CHUNKS, NewChunk
from chatkeep.errors import InvalidInput
from chatkeep.reading.anchors import Anchors
from chatkeep.reading.outline import MAX_HEADING_CHARS, Heading, Outline, outline, plain_outline
from chatkeep.retrieval.terms import TERMS_RULE, pack_terms
from chatkeep.values import MAX_SHORT_TEXT_CHARS

CHUNK_RULE = 1
"""Moved when the same text is cut in another way: the chunks of unchanged files are then made again."""

TARGET_CHARS = 1_500
"""Length of the pieces that a long section is cut into. A passage of so many characters, 350 tokens of English, is what
a reader takes in at once; to be tuned by the measurements of the search."""

MAX_TARGET_CHARS = MAX_CHUNK_CHARS // 2
"""A block that is not cut may be twice as long as the target."""

HEADING_DIVIDER = " > "

_NOT_BLANK = re.compile(r"\S")

_PLACES = (
    re.compile(r"(?:\r\n?+|\n)[ \t]*+(?:\r\n?+|\n)"),
    re.compile(r"\r\n?+|\n"),
    re.compile(r"\s++"),
)
"""After what a block is cut, the best first: a blank line, a line, a space."""

_CONTINUES = regex.compile(r"[\p{M}\u200d\U0001f3fb-\U0001f3ff]|(?<=\u200d).|(?<=\r)\n")
"""What belongs to the character before it."""

MAX_CLUSTER_CHARS = 64
"""A character with more marks than that may be cut."""


class Chunked(NamedTuple):
    """A text that was cut."""

    title: str | None
    chunks: list[NewChunk]


class _Section(NamedTuple):
    start: int
    end: int
    heading: str
    anchor: str | None


def rule_of(target: int = TARGET_CHARS) -> str:
    """Return the name of what chunks and their terms depend on, beside the file."""
    return f"chunks {CHUNK_RULE}, {target} characters, terms {TERMS_RULE}"


def chunk_markdown(text: str, *, target: int = TARGET_CHARS, most: int = MAX_CHUNKS) -> Chunked:
    """Cut Markdown. Raises InvalidInput if it has too many lines, or more than `most` chunks."""
    parts = outline(text)
    return Chunked(_title(parts), _chunks(text, parts, target, most))


def chunk_text(text: str, *, target: int = TARGET_CHARS, most: int = MAX_CHUNKS) -> Chunked:
    """Cut a text without markup; it has no headings, and no title."""
    return Chunked(None, _chunks(text, plain_outline(text), target, most))


def short_title(title: str | None) -> str | None:
    """Return a title in one line, cut to what a document may have; None if it is blank."""
    return " ".join((title or "").split())[:MAX_SHORT_TEXT_CHARS].strip() or None


def _title(parts: Outline) -> str | None:
    """Return the title of the front matter, or the first heading of the first level, or else of any."""
    headings = sorted((heading for heading in parts.headings if heading.text), key=lambda each: each.level > 1)
    return short_title(parts.title) or short_title(headings[0].text if headings else None)


def _chunks(text: str, parts: Outline, target: int, most: int) -> list[NewChunk]:
    if not 1 <= target <= MAX_TARGET_CHARS:
        raise InvalidInput(f"the length of a chunk must be from 1 to {MAX_TARGET_CHARS:,} characters", got=target)
    chunks: list[NewChunk] = []
    for section in _sections(text, parts, target):
        start = section.start
        while start < section.end:
            end = _end_of_piece(text, start, section.end, parts.blocks, target)
            chunks.append(_chunk(text[start:end], start, section))
            start = end
        if len(chunks) > most:
            raise InvalidInput(f"it would have more than {most:,} passages: divide it, or leave out what nobody seeks")
    return chunks


def _chunk(text: str, start: int, section: _Section) -> NewChunk:
    terms = pack_terms(f"{section.heading}\n{text}")[: 4 * MAX_CHUNK_TERMS]
    return NewChunk(text, section.anchor, section.heading, start, terms)


# --- sections -------------------------------------------------------------------------------------------------


def _sections(text: str, parts: Outline, target: int) -> Iterator[_Section]:
    """Yield the sections of a text, in order, without gaps; the first may stand above all headings."""
    headings, anchors = parts.headings, Anchors()
    above: list[Heading] = []
    start = 0
    if not headings or _has_text(text, parts.body, headings[0].start, start, target):
        start = headings[0].start if headings else len(text)
        yield _Section(0, start, "", None)
    for heading, following in zip_longest(headings, headings[1:]):
        end = following.start if following else len(text)
        while above and above[-1].level >= heading.level:
            above.pop()
        above.append(heading)
        anchor = anchors.add(heading.anchor_text)
        is_above_next = following is not None and following.level > heading.level
        if not is_above_next or _has_text(text, heading.end, end, start, target):
            yield _Section(start, end, _path(above), anchor)
            start = end


def _has_text(text: str, body: int, end: int, start: int, target: int) -> bool:
    """Whether what would go to the next section has text below its heading, or is too long for that."""
    return bool(_NOT_BLANK.search(text, body, end)) or end - start > target


def _path(above: Sequence[Heading]) -> str:
    """Return headings from the outermost; the first ones are left out if they are too long together."""
    path = ""
    for heading in reversed(above):
        longer = HEADING_DIVIDER.join(filter(None, (heading.text, path)))
        if len(longer) > MAX_HEADING_CHARS:
            break
        path = longer
    return path


# --- pieces of a section ----------------------------------------------------------------------------------------


def _end_of_piece(text: str, start: int, end: int, blocks: Sequence[int], target: int) -> int:
    """Return where the piece of a section ends that begins at `start`.

    Before the last block that begins near the target; a block that is too long for that, but not twice as long, is
    kept whole. The last piece is not left much shorter than the others.
    """
    if end - start <= target + target // 3:
        return end
    least, limit = start + max(target // 3, 1), start + target
    n = bisect_right(blocks, limit)
    if n and blocks[n - 1] >= least:
        return blocks[n - 1]
    following = min(blocks[n], end) if n < len(blocks) else end
    return following if following <= start + 2 * target else _place_to_cut(text, least, limit)


def _place_to_cut(text: str, least: int, limit: int) -> int:
    """Return the best place within a block, not beyond `limit`."""
    for pattern in _PLACES:
        cut = 0
        for match in pattern.finditer(text, least, limit):
            cut = match.end()
        if cut:
            return _before_cluster(text, cut, cut - 1)
    return _before_cluster(text, limit, max(least, limit - MAX_CLUSTER_CHARS))


def _before_cluster(text: str, cut: int, least: int) -> int:
    """Return the last place from `least` to `cut` that is not within a character and its marks, or else `cut`."""
    for place in range(cut, least - 1, -1):
        if not _CONTINUES.match(text, place):
            return place
    return cut
