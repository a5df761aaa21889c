"""Markdown and plain text cut into chunks: along headings, without gaps, in linear time."""

import json
import os
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.documents import MAX_CHUNK_CHARS, MAX_CHUNK_TERMS
from chatkeep.errors import InvalidInput
from chatkeep.reading.anchors import Anchors
from chatkeep.reading.chunking import MAX_TARGET_CHARS, TARGET_CHARS, Chunked, chunk_markdown, chunk_text
from chatkeep.reading.outline import MAX_HEADING_CHARS, MAX_LINES, outline
from chatkeep.retrieval.terms import pack_terms

LABELLED = Path(os.environ.get("CHATKEEP_RETRIEVAL_DATA", "/work/shared/data/retrieval"))
"""Documentation of Ray, and questions with the sections that answer them."""

LINES = "# a|## b `c`|a|===|---|```|~~~|> # q|- # l|    # code|<div>|<!--|-->||[x]: /y|\t|e\u0301|\u200d|#|title: t"
MARKDOWN = st.lists(st.sampled_from([*LINES.split("|"), "|a|b|", "|-|-|"]) | st.text(max_size=8), max_size=25).flatmap(
    lambda lines: st.sampled_from(["\n", "\r\n", "\r", "\n\n"]).map(lambda end: end.join(lines))
)


def texts(chunked: Chunked) -> list[str]:
    return [chunk.text for chunk in chunked.chunks]


def anchors(text: str) -> list[str | None]:
    return [chunk.header_anchor for chunk in chunk_markdown(text).chunks]


def check_tiling(text: str, chunked: Chunked) -> None:
    """Fail unless the chunks are the whole text, in order, within the limits of a store."""
    assert "".join(texts(chunked)) == text
    start = 0
    for chunk in chunked.chunks:
        assert chunk.start == start
        assert 0 < len(chunk.text) <= MAX_CHUNK_CHARS
        assert len(chunk.terms) <= 4 * MAX_CHUNK_TERMS
        assert len(chunk.heading) <= MAX_HEADING_CHARS
        start += len(chunk.text)


@given(text=MARKDOWN | st.text(), target=st.sampled_from([1, 2, 7, 30, TARGET_CHARS]))
def test_chunks_tile_any_text(text: str, target: int) -> None:
    """Whatever the text and the target are: nothing is lost, doubled, moved, or too long."""
    for cut in (chunk_markdown, chunk_text):
        check_tiling(text, cut(text, target=target))


@given(st.lists(st.sampled_from(["a", "A", "a-1", "a-2", "a 1", "b", "", "!", "-1", "a-1-1"]), max_size=30))
def test_each_anchor_is_given_once(headings: list[str]) -> None:
    """Also when headings look like the anchors of repeated ones."""
    maker = Anchors()
    given_ = [anchor for heading in headings if (anchor := maker.add(heading))]
    assert len(given_) == len(set(given_))


# --- headings -----------------------------------------------------------------------------------------------------


def test_headings_begin_chunks() -> None:
    """With the path of those above, and the anchor of their own; ATX and setext."""
    text = "before\n\n# One\na\n## The `foo` *option*\nb\n\nTwo\n===\nc\n### Deep\nd\n"
    found = [(chunk.text, chunk.header_anchor, chunk.heading) for chunk in chunk_markdown(text).chunks]
    assert found == [
        ("before\n\n", None, ""),
        ("# One\na\n", "#one", "One"),
        ("## The `foo` *option*\nb\n\n", "#the-foo-option", "One > The foo option"),
        ("Two\n===\nc\n", "#two", "Two"),
        ("### Deep\nd\n", "#deep", "Two > Deep"),
    ]


@pytest.mark.parametrize(
    "text",
    [
        "```\n# a\n```\n",
        "> # a\n",
        "- # a\n",
        "1. b\n\n   # a\n",
        "    # a\n",
        "<div>\n# a\n</div>\n",
        "#a\n",
        "\\# a\n",
    ],
)
def test_what_is_no_heading(text: str) -> None:
    """Nothing in fences, quotes, lists, code and HTML begins a chunk."""
    assert anchors(f"x\n\n{text}") == [None]
    assert anchors(f"{text}\n# End\nx") == [None, "#end"]


@pytest.mark.parametrize(
    ("heading", "anchor", "shown"),
    [
        ("Simple", "#simple", "Simple"),
        ("What's new in v2.0?", "#whats-new-in-v20", "What's new in v2.0?"),
        ("a  b - c", "#a--b---c", "a b - c"),
        ("`ray.init()` & _friends_", "#rayinit--friends", "ray.init() & friends"),
        ("snake_case", "#snake_case", "snake_case"),
        ("Größe des Büros", "#größe-des-büros", "Größe des Büros"),
        ("日本語 テスト", "#日本語-テスト", "日本語 テスト"),
        ("हिन्दी", "#हिन्दी", "हिन्दी"),
        ("[Link](http://a.b) text", "#link-text", "Link text"),
        ("[Ref][r] text", "#ref-text", "Ref text"),
        ("![Logo](a.png) Name", "#name", "Logo Name"),
        ("<a id='x'></a>Name &amp; more", "#name--more", "Name & more"),
        ("Rocket \U0001f680 go", "#rocket--go", "Rocket \U0001f680 go"),
        ("closed ##", "#closed", "closed"),
        ("\U0001f680", None, "\U0001f680"),
        ("", None, ""),
    ],
)
def test_anchors_are_those_of_github(heading: str, anchor: str | None, shown: str) -> None:
    """Lower case, without punctuation and markup, a hyphen for each space."""
    (chunk,) = chunk_markdown(f"## {heading}\ntext\n\n[r]: /x\n").chunks
    assert (chunk.header_anchor, chunk.heading) == (anchor, shown)


def test_repeated_headings_are_numbered() -> None:
    """-1, -2 … in the order of the document, past anchors that are in use."""
    assert anchors("# a\nx\n# A\nx\n# a-1\nx\n# a\nx\n") == ["#a", "#a-1", "#a-1-1", "#a-2"]


def test_bare_heading_goes_to_the_deeper_one_below_it() -> None:
    """And the chunk has the anchor of the inner section, whose path names the outer ones; anchors are counted all."""
    (chunk,) = chunk_markdown("# A\n\n## B\n\n### A\ntext\n").chunks
    assert (chunk.header_anchor, chunk.heading, chunk.start) == ("#a-1", "A > B > A", 0)


def test_bare_heading_stays_where_nothing_deeper_follows() -> None:
    """A section without text is one all the same."""
    assert anchors("# A\n## B\n## C\n# D\n") == ["#b", "#c", "#d"]


def test_long_paths_lose_their_outermost_headings() -> None:
    """The heading of the section itself is kept, as far as it is not too long."""
    first, second = chunk_markdown(f"# {'a' * 400}\nx\n## {'b' * 300}\nx\n").chunks
    assert (first.heading, second.heading) == ("a" * 400, "b" * 300)
    longest = chunk_markdown(f"# {'c' * 10_000}\nx\n").chunks[0]
    assert longest.heading == "c" * MAX_HEADING_CHARS


def test_terms_are_of_the_headings_and_the_text() -> None:
    """The words of the path find a chunk, too."""
    chunk = chunk_markdown("# Outer\nx\n## Inner\nbody\n").chunks[1]
    assert chunk.terms == pack_terms("Outer > Inner\n## Inner\nbody\n")


# --- titles -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("## b\n# a\n# c", "a"),
        ("### c\n## b", "c"),
        ("text", None),
        ("---\ntitle: From matter\nx: y\n---\n# a", "From matter"),
        ("---\r\ntitle: 'Quoted'\r\n---\r\n# a", "Quoted"),
        ('---\n# comment\ntitle: "Double"\n...\ntext', "Double"),
        ("---\ntitle: |\n  block\n---\n# a", "a"),
        ("---\nx: y\n---\n# a", "a"),
        ("---\n\n# a\n\n---\n", "a"),
        ("---\nno matter\n---\n### a", "no matter"),
        (f"# {'a ' * 200}", ("a " * 128)[:255].strip()),
        ("# ![Logo](x.png)", "Logo"),
    ],
)
def test_titles(text: str, title: str | None) -> None:
    """That of the front matter, or the first heading of the first level, or else the first one."""
    assert chunk_markdown(text).title == title
    assert chunk_text(text).title is None


def test_front_matter_goes_to_the_first_section() -> None:
    """It is no section, and no heading: `---` below a line is not one here."""
    (chunk,) = chunk_markdown("---\ntitle: a\n---\n\n# One\ntext").chunks
    assert (chunk.header_anchor, chunk.heading) == ("#one", "One")


# --- long sections ------------------------------------------------------------------------------------------------


def test_long_sections_are_cut_between_blocks() -> None:
    """Near the target, and all pieces have the section's anchor."""
    text = "# A\n" + "".join(f"{n} {'word ' * 60}\n\n" for n in range(20))
    chunked = chunk_markdown(text)
    check_tiling(text, chunked)
    assert {chunk.header_anchor for chunk in chunked.chunks} == {"#a"}
    assert all(TARGET_CHARS / 3 <= len(each) <= TARGET_CHARS * 4 / 3 for each in texts(chunked))
    assert all(each.endswith("\n\n") for each in texts(chunked))


def test_fences_are_kept_whole_up_to_twice_the_target() -> None:
    """Longer ones are cut at blank lines."""
    fence = f"```\n{'code\n\n' * 400}```\n"
    chunked = chunk_markdown(f"# A\n{'before ' * 150}\n\n{fence}\nafter\n")
    assert fence in "".join(texts(chunked)[1:2])
    longer = chunk_markdown(f"# A\n```\n{'code\n\n' * 1_000}```\n")
    assert len(longer.chunks) > 3
    assert all(each.endswith("\n\n") for each in texts(longer)[:-1])


@pytest.mark.parametrize(("unit", "end"), [("line of a log\n", "\n"), ("line\r\n", "\r\n"), ("word ", " "), ("x", "x")])
def test_long_blocks_are_cut_at_the_best_place(unit: str, end: str) -> None:
    """Lines, else words, else anywhere; plain text, too."""
    for cut in (chunk_markdown, chunk_text):
        chunked = cut(unit * (10_000 // len(unit)))
        assert len(chunked.chunks) > 3
        assert all(each.endswith(end) and len(each) <= 2 * TARGET_CHARS for each in texts(chunked))


@pytest.mark.parametrize(
    "cluster", ["e\u0301", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "क्षि"]
)
def test_characters_and_their_marks_are_not_parted(cluster: str) -> None:
    """Nor are the parts of an emoji."""
    for target in range(40, 48):
        chunked = chunk_text(cluster * 100, target=target)
        for each in texts(chunked):
            assert not unicodedata.category(each[0]).startswith("M")
            assert each[0] not in "\u200d\U0001f3fd"
            assert not each.endswith("\u200d")


def test_plain_text_is_cut_between_paragraphs() -> None:
    """Which blank lines divide; what looks like a heading is none."""
    text = "# not a heading\r\n\r\n" + f"{'word ' * 100}\r\n \r\n" * 10
    chunked = chunk_text(text)
    check_tiling(text, chunked)
    assert all(each.endswith("\r\n \r\n") for each in texts(chunked))
    assert {(chunk.header_anchor, chunk.heading) for chunk in chunked.chunks} == {(None, "")}


@pytest.mark.parametrize("target", [0, -1, MAX_TARGET_CHARS + 1])
def test_target_is_limited(target: int) -> None:
    """So that no chunk is longer than a store takes."""
    with pytest.raises(InvalidInput, match="from 1 to 8,000"):
        chunk_text("a", target=target)
    assert max(map(len, texts(chunk_text("a" * 50_000, target=MAX_TARGET_CHARS)))) <= MAX_CHUNK_CHARS


# --- real documents -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    not LABELLED.exists(), reason=f"{LABELLED} is not here; CHATKEEP_RETRIEVAL_DATA names another folder"
)
def test_labelled_sections_are_found() -> None:
    """Every section that a label names has its anchor; those with text of their own have it at a chunk."""
    wanted = defaultdict[str, set[str]](set)
    for line in (LABELLED / "questions.jsonl").read_text("utf-8").splitlines():
        question = json.loads(line)
        for label in (question, *question.get("also", ())):
            if label["slug"]:
                wanted[label["doc_id"]].add(f"#{label['slug']}")
    assert sum(map(len, wanted.values())) > 50
    bare = set[str]()
    for path, slugs in wanted.items():
        text = (LABELLED / "docs" / path).read_bytes().decode()
        maker = Anchors()
        assert slugs <= {maker.add(heading.anchor_text) for heading in outline(text).headings}, path
        bare |= slugs - set(anchors(text))
    assert bare == {"#getting-started-with-kuberay"}


# --- hostile texts ------------------------------------------------------------------------------------------------

HOSTILE: dict[str, Callable[[int], str]] = {
    "headings": lambda n: "# a\n" * (n // 4),
    "setext": lambda n: "a\n=\n" * (n // 4),
    "numbered": lambda n: "".join(f"# a-{i}\n# a\n" for i in range(n // 12)),
    "one line": lambda n: "x" * n,
    "words": lambda n: "x " * (n // 2),
    "quotes": lambda n: ">" * n,
    "quoted lines": lambda n: (">" * 999 + "\n") * (n // 1_000),
    "brackets": lambda n: "[" * n,
    "open references": lambda n: "[a\n" * (n // 3),
    "references": lambda n: "[a]: b\n" * (n // 7),
    "stars": lambda n: "*" * n,
    "nested lists": lambda n: "* " * (n // 2),
    "deep lists": lambda n: "\n".join(" " * 2 * i + "* a" for i in range(int(n**0.5))),
    "fences": lambda n: "```\n" * (n // 4),
    "open fences": lambda n: "~~~a\n```\n" * (n // 9),
    "tables": lambda n: "|a|b|\n|-|-|\n" + "|x|y|\n" * (n // 6),
    "wide table": lambda n: "|" + "a|" * (n // 8) + "\n|" + "-|" * (n // 8) + "\n" + "|x|\n" * (n // 8),
    "tags": lambda n: "<a\n" * (n // 3),
    "comments": lambda n: "<!--\n" * (n // 5),
    "lazy": lambda n: "> a\n" + "a\n" * (n // 2),
    "marks": lambda n: "# a" + "\u0301" * (n // 2) + "\n" + "a" + "\u0301" * (n // 2),
    "blank lines": lambda n: "\n" * n,
    "spaces": lambda n: ("a\n" + " " * 998) * (n // 1_000),
    "carriage returns": lambda n: "\r" * n,
    "front matter": lambda n: "---\na: b\n" + "x: y\n" * (n // 5),
    "brackets in headings": lambda n: ("# " + "[" * 497 + "\n") * (n // 500),
    "links in headings": lambda n: ("# " + "[a](<b> `c ![" * 4 + "\n") * (n // 55),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_texts(name: str) -> None:
    """30 KB take at most a second, where quadratic time would be many, and what comes out is whole."""
    text, begun = HOSTILE[name](30_000), time.thread_time()
    check_tiling(text, chunk_markdown(text))
    assert time.thread_time() - begun < 1


@pytest.mark.long
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("size", [pytest.param(1 << 20, marks=pytest.mark.apart, id="1 MB"), 1 << 17])
def test_large_hostile_texts(name: str, size: int) -> None:
    """A megabyte takes at most 20 seconds, or is refused; `make check` has an eighth of it, for an eighth of that."""
    text, begun = HOSTILE[name](size), time.thread_time()
    with suppress(InvalidInput):
        check_tiling(text, chunk_markdown(text, most=10**6))
    assert time.thread_time() - begun < 20 * size / (1 << 20)


def test_too_many_lines_and_chunks_are_refused() -> None:
    """With both numbers, and the way out."""
    with pytest.raises(InvalidInput, match=r"1,000,001 lines, and Markdown may have at most 1,000,000: divide it"):
        chunk_markdown("\n" * MAX_LINES)
    with pytest.raises(InvalidInput, match=r"more than 10 passages: divide it"):
        chunk_markdown("# a\n" * 11, most=10)
    assert len(chunk_markdown("# a\n" * 10, most=10).chunks) == 10


def test_nesting_is_parsed_to_a_depth() -> None:
    """A heading below 18 nested lists is found; what is nested deeper hides what follows, in linear time."""
    lists = "".join("  " * level + "* a\n" for level in range(18))
    assert anchors(f"{lists}\n# b\nx") == [None, "#b"]
    assert len(chunk_markdown("".join("  " * level + "* a\n" for level in range(100)) + "\n# b\nx").chunks) > 0
