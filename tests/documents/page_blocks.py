"""The fenced blocks of a page: which there are, of what kind, and which of them say that they are not run."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parents[2]
FILES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.relative_to(ROOT).as_posix(): path for path in FILES}

RUN = ("python", "console")
READ = ("json", "jsonl")
OUTPUT = "text"
KINDS = (*RUN, *READ, OUTPUT)

NOT_RUN = re.compile(r"<!-- not run:(.*?)-->", re.DOTALL)
"""The comment before a block that is not run, with the reason."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    kind: str
    text: str
    section: str
    """The heading of the second level that it is below."""
    reason: str | None
    """Why it is not run; None if it is."""
    prints: str | None
    """What stands right behind a program as its output."""


def blocks_of(path: Path) -> list[Block]:
    """All blocks of a page, in order; outputs are parts of the programs before them."""
    return list(_blocks(MarkdownIt().enable("table").parse(path.read_text("utf-8"))))


def _blocks(tokens: list[Token]) -> Iterator[Block]:
    section, before = "", None
    for index, token in enumerate(tokens):
        if token.type == "heading_open" and token.tag == "h2":
            section = tokens[index + 1].content
        if token.type == "fence":
            behind = tokens[index + 1] if index + 1 < len(tokens) else None
            prints = behind.content if behind is not None and _is_output(behind) else None
            if not (_is_output(token) and before is not None and before.type == "fence"):
                yield Block(_line(token), token.info.strip(), token.content, section, _reason(before), prints)
        elif token.type == "code_block":
            yield Block(_line(token), "", token.content, section, None, None)
        before = token


def _is_output(token: Token) -> bool:
    return token.type == "fence" and token.info.strip() == OUTPUT


def _reason(before: Token | None) -> str | None:
    found = NOT_RUN.search(before.content) if before is not None and before.type == "html_block" else None
    return found[1].strip() if found else None


def _line(token: Token) -> int:
    return token.map[0] + 1 if token.map else 0


@dataclass(frozen=True)
class Command:
    """A command of a console block, and what the block shows of its output."""

    text: str
    output: str


def commands_of(text: str) -> list[Command]:
    """The commands of a console block. A command goes on in lines that are indented by four spaces."""
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif found and not found[-1][1] and line.startswith("    "):
            found[-1][0].append(line)
        elif found:
            found[-1][1].append(line)
        else:
            assert line.startswith("#"), f"a console block begins with output: {line}"
    return [Command("\n".join(command), "\n".join(output)) for command, output in found]


def is_safe_in_zsh(command: str) -> bool:
    """Whether no word has a character that zsh would expand, and complain of if there is no such file."""
    bare = re.sub(r"'[^']*'|\"[^\"]*\"|\\.|\s#.*", "", command)
    return not re.search(r"(?<!\$)[?\[\]]|://\S*\*", bare)


WILD = {
    "…": r".*?",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "moment": r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?Z?)?",
    "seconds": r"\d+(?:\.\d+)? s\b",
    "rate": r"[\d,]+/s\b",
    "score": r"\b[01]\.\d+",
}
"""What differs from run to run: ids, times, rates and scores; `…` stands for anything."""


def matches(shown: str, output: str) -> bool:
    """Whether an output is what the page shows, whatever the width of columns and what differs from run to run.

    Progress bars are left out.
    """
    output = "\n".join(line for line in output.splitlines() if "━" not in line)
    return re.fullmatch(_pattern(" ".join(shown.split())), " ".join(output.split()), re.DOTALL) is not None


def _pattern(shown: str) -> str:
    kinds = list(WILD.values())
    pattern, end = "", 0
    for found in re.finditer("|".join(f"({'…' if kind == '.*?' else kind})" for kind in kinds), shown):
        pattern += re.escape(shown[end : found.start()]) + kinds[(found.lastindex or 1) - 1]
        end = found.end()
    return pattern + re.escape(shown[end:])
