"""Finds where blocks and headings of a Markdown text begin. No I/O.

markdown-it's block parser reads the whole text, its inline parser only headings: the rest of the text is not looked
into, and no tokens of it are kept.
"""

import re
from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple

from markdown_it import MarkdownIt
from markdown_it.token import Token

from chatkeep.errors import InvalidInput

MAX_LINES = 1_000_000
"""Most lines of a Markdown text. Parsing as many takes 15 seconds and 200 MB if each is an item of a list, the worst
that was measured; 20 MB of real documentation have 500,000."""

MAX_NESTING = 40
"""Deepest nesting of blocks (a list counts twice) that is parsed; what follows below it is not looked into. The time
for a hostile line is in proportion to it: 20 MB of '- - - -' take 25 seconds at 40."""

MAX_HEADING_CHARS = 500
"""So much of a heading is read, and shown."""

MAX_HEADING_MARKUP = 50
"""A heading with more characters of markup is shown as it is: markdown-it's inline parser takes quadratic time for
brackets, 6 milliseconds for 500 of them."""

MAX_FRONT_MATTER_CHARS = 1 << 16

LINE_END = re.compile(r"\r\n?+|\n")

_parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING}).enable("table")

_MARKUP = re.compile(r"[\\`*_\[\]<>&!\n]")
"""What a heading without inline markup has none of."""

_FRONT_MATTER = re.compile(r"---[ \t]*+(?:\r\n?+|\n)(?=[\w#]).*?^(?:---|\.\.\.)[ \t]*+(?:\r\n?+|\n|\Z)", re.S | re.M)
_KEY = re.compile(r"(?:#.*|[\w.-]+[ \t]*:(?:[ \t].*)?)$", re.M)
_TITLE = re.compile(r"^title[ \t]*:[ \t]+([^\s|>].*)", re.M)


class Heading(NamedTuple):
    """A heading that begins a section."""

    start: int
    end: int
    """Where the line after it begins."""
    level: int
    text: str
    """Its text without markup."""
    anchor_text: str
    """What its anchor is made of: without the descriptions of images, as GitHub has it."""


class Outline(NamedTuple):
    """Where the parts of a text begin, in characters."""

    blocks: Sequence[int]
    headings: Sequence[Heading]
    body: int
    """Where the text begins after its front matter."""
    title: str | None
    """What the front matter has as title."""


class _TopLevel(list[Token]):
    """Keeps the tokens at which blocks of the top level begin, and the texts of headings: a thousandth of all."""

    def append(self, token: Token) -> None:
        """Keep a token, or not. markdown-it adds them by this method alone, and reads none but within a block."""
        if token.nesting >= 0 and (token.level == 0 or self._is_text_of_heading(token)):
            super().append(token)

    def _is_text_of_heading(self, token: Token) -> bool:
        return token.level == 1 and token.type == "inline" and bool(self) and self[-1].type == "heading_open"


def outline(text: str) -> Outline:
    """Return the outline of a Markdown text. Raises InvalidInput if it has more than MAX_LINES lines.

    Headings in block quotes and lists are parts of those.
    """
    front, title = _front_matter(text)
    starts = _line_starts(text, front)
    found, env = _TopLevel(), dict[str, Any]()
    _parser.block.parse(LINE_END.sub("\n", text[front:]) if "\r" in text else text[front:], _parser, env, found)
    blocks, headings = array("L"), list[Heading]()
    for n, token in enumerate(found):
        if token.level or not token.map:
            continue
        first, last = (starts[min(line, len(starts) - 1)] for line in token.map)
        blocks.append(first)
        if token.type == "heading_open":
            headings.append(Heading(first, last, int(token.tag[1:]), *_plain(found[n + 1].content, env)))
    return Outline(blocks, headings, front, title)


def _line_starts(text: str, front: int) -> "array[int]":
    """Return where lines begin after the front matter, and the end of the text."""
    lines = text.count("\n", front) + text.count("\r", front) - text.count("\r\n", front) + 1
    if lines > MAX_LINES:
        raise InvalidInput(
            f"it has {lines:,} lines, and Markdown may have at most {MAX_LINES:,}: divide it, or name it .txt"
        )
    starts = array("L", [front])
    starts.extend(match.end() for match in LINE_END.finditer(text, front))
    starts.append(len(text))
    return starts


def _plain(content: str, env: dict[str, Any]) -> tuple[str, str]:
    """Return a heading's text without inline markup: as it is shown, and for its anchor."""
    content = content[:MAX_HEADING_CHARS]
    if not 0 < len(_MARKUP.findall(content)) <= MAX_HEADING_MARKUP:
        return " ".join(content.split()), content
    tokens = _parser.parseInline(content, env)[0].children or []
    shown = "".join(_shown(token) for token in tokens)
    without_images = "".join(_shown(token) for token in tokens if token.type != "image")
    return " ".join(shown.split()), without_images.strip()


def _shown(token: Token) -> str:
    if token.type in {"softbreak", "hardbreak"}:
        return "\n"
    return token.content if token.type in {"text", "code_inline", "image"} else ""


def _front_matter(text: str) -> tuple[int, str | None]:
    """Return where YAML front matter ends (0: there is none), and its title. A text may begin with a rule, too."""
    match = _FRONT_MATTER.match(text, 0, MAX_FRONT_MATTER_CHARS)
    if not match or not _KEY.match(text, LINE_END.search(text).end()):  # type: ignore[union-attr]
        return 0, None
    title = _TITLE.search(match[0])
    return match.end(), title[1].strip().strip("\"'").strip() if title else None


def plain_outline(text: str) -> Outline:
    """Return the outline of a text without markup: its paragraphs, which blank lines divide."""
    return Outline(array("L", (match.end(1) for match in _PARAGRAPH.finditer(text))), (), 0, None)


_PARAGRAPH = re.compile(r"(?:\r\n?+|\n)[ \t]*+(\r\n?+|\n)(?=[ \t]*+\S)")
