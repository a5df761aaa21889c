"""README and docs are run: every block that does not say why it is not."""

import ast
import asyncio
import io
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, redirect_stdout
from inspect import CO_COROUTINE
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from page_blocks import KINDS, PAGES, RUN, Block, blocks_of, commands_of, is_safe_in_zsh, matches
from page_sessions import Session
from page_setups import MODEL, PAGES_NEED, SERVER, UPSTREAM, Fakes, Page, prepared

BLOCKS = {name: blocks_of(path) for name, path in PAGES.items()}


def reason_of(name: str, block: Block) -> str | None:
    """Why a block is not run, as its page says or the table of pages; None if it is."""
    others = PAGES_NEED.get(name, Page()).not_run
    return next((reason for text, reason in others.items() if text in block.text), block.reason)


def of_kind(name: str, *kinds: str) -> list[Block]:
    """The blocks of a page that are run."""
    return [block for block in BLOCKS[name] if block.kind in kinds and reason_of(name, block) is None]


def test_every_block_is_run_or_says_why_not() -> None:
    """Each has a kind, and each mark a reason; few are marked."""
    every = {(name, block.line): block for name, blocks in BLOCKS.items() for block in blocks}
    marks = {place: reason for place, block in every.items() if (reason := reason_of(place[0], block)) is not None}
    assert [place for place, reason in marks.items() if not reason] == []
    assert [place for place, block in every.items() if block.kind not in KINDS and place not in marks] == []
    counts = Counter("marked" if place in marks else block.kind for place, block in every.items())
    print(*(f"{name}:{line}: {reason}" for (name, line), reason in marks.items()), dict(counts), sep="\n")
    assert counts["marked"] * 4 < sum(counts[kind] for kind in RUN)
    texts = {text for page in PAGES_NEED.values() for text in page.not_run}
    assert [text for text in texts if not any(text in block.text for block in every.values())] == []


@pytest.mark.parametrize("name", PAGES)
def test_what_is_read_can_be(name: str) -> None:
    """JSON is JSON, and every command can be pasted into zsh, too."""
    for block in of_kind(name, "json", "jsonl"):
        for text in block.text.splitlines() if block.kind == "jsonl" else [block.text]:
            json.loads(text)
    for block in BLOCKS[name]:
        if block.kind == "console":
            assert [command.text for command in commands_of(block.text) if not is_safe_in_zsh(command.text)] == []


def test_links_lead_somewhere() -> None:
    """Every link of a page to a file or a heading has one."""
    for name, path in PAGES.items():
        for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text("utf-8")):
            file, _, anchor = target.partition("#")
            found = path.parent / file if file else path
            assert found.exists(), f"{name} links to {target}"
            if anchor and found.suffix == ".md":
                assert anchor in anchors_of(found), f"{name} links to {target}"


def anchors_of(path: Path) -> set[str]:
    """The anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    """What programs set in the environment of this process is gone afterwards."""
    with patch.dict(os.environ):
        yield


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in PAGES if of_kind(name, *RUN)])
def test_every_block_does_what_the_page_says(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are run in their order; those of a section share a shell, those of a page a folder and their names.

    A program whose first line names a file is written into that file, and not run.
    """
    page = PAGES_NEED.get(name, Page())
    programs = prepared(page, tmp_path)
    monkeypatch.chdir(tmp_path / "work")
    with ExitStack() as stack:
        run = Run(page, tmp_path, programs, stack)
        for block in of_kind(name, *RUN):
            run.block(block, f"{name}:{block.line}")


class Run:
    """A page that is being run."""

    def __init__(self, page: Page, folder: Path, programs: Path, stack: ExitStack) -> None:
        """Prepare what stands for what is elsewhere, as soon as it is asked for."""
        self._page, self._folder, self._programs, self._stack = page, folder, programs, stack
        self._names: dict[str, Any] = {"__name__": "__main__", **page.names()}
        self._section: str | None = None
        self._session: Session | None = None
        self._stands_for = {UPSTREAM: Fakes(folder, stack).upstream, **page.stands_for}
        self._known: dict[str, str] = {"qwen3-8b": MODEL}

    def block(self, block: Block, place: str) -> None:
        """Run a block, and compare what it prints with what the page shows."""
        if file := re.match(r"# (\w+\.py)\n", block.text):
            Path(file[1]).write_text(self._replaced(block.text), "utf-8")
        elif block.kind == "python":
            printed = self._program(block, place)
            shown = comments_of(block.text) if self._page.comments_are_output else block.prints
            assert shown is None or matches(self._replaced(shown), printed), f"{place} prints\n{printed}"
        else:
            self._commands(block, place)

    def _commands(self, block: Block, place: str) -> None:
        session = self._in_section(block.section)
        for command in commands_of(block.text):
            printed = session.run(self._replaced(command.text))
            is_as_shown = not command.output or matches(self._replaced(command.output), printed)
            assert is_as_shown, f"{place}: {command.text}\nprints\n{printed}"

    def _in_section(self, section: str) -> Session:
        if self._session is None or section != self._section:
            if self._session is not None:
                self._session.close()
            self._section = section
            self._session = Session(self._folder / "work", self._programs)
            self._stack.callback(self._session.close)
            self._known[SERVER] = f"127.0.0.1:{self._session.port}"
            self._known["--port 8765"] = f"--port {self._session.port}"
            for command in self._page.before.get(section, ()):
                self._session.run(self._replaced(command))
        return self._session

    def _replaced(self, text: str) -> str:
        for what, stand in self._stands_for.items():
            if what in text and what not in self._known:
                self._known[what] = stand(self._folder)
        for what in sorted(self._known, key=len, reverse=True):
            text = text.replace(what, self._known[what])
        return text

    def _program(self, block: Block, place: str) -> str:
        code = compile(self._replaced(block.text), place, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        printed = io.StringIO()
        with redirect_stdout(printed):
            done = eval(code, self._names)
            if code.co_flags & CO_COROUTINE:
                asyncio.run(done)
        return printed.getvalue()


def comments_of(text: str) -> str:
    """What the comments of a program say that it prints."""
    return "\n".join(re.findall(r"(?:^|  )# (.*)$", text, re.MULTILINE))
