"""What each page needs to be run: what stands for machines that are not here, and what is there before."""

import asyncio
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

from fastapi import FastAPI, Request
from page_blocks import ROOT

from chatkeep import NewConversation, Recorder, open_store
from servers.mongo import mongo_databases
from servers.postgres import durable_databases

CONVERSATION = UUID("0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75")
"""The conversation of Ada's and of the owner `local` that is there before."""

SERVER, UPSTREAM = "127.0.0.1:8765", "http://127.0.0.1:8080/v1"
MODEL = "gpt-test"

PIP = """#!{python}
import re, sys
from importlib.metadata import metadata
known = set(metadata("chatkeep").get_all("Provides-Extra") or ())
for word in sys.argv[2:]:
    package, _, extras = word.partition("[")
    unknown = set(filter(None, extras.rstrip("]").split(","))) - known
    if sys.argv[1] != "install" or package != "chatkeep" or unknown:
        sys.exit(f"no such package or extra: {{word}}")
"""
"""What stands for pip: it knows chatkeep's extras. test_wheel.py installs them."""


@dataclass(frozen=True)
class Page:
    """What a page needs."""

    stands_for: Mapping[str, Callable[[Path], str]] = field(default_factory=dict)
    """What is in the page for something that is elsewhere, and what is in its place."""
    before: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Commands before those of a section, which a reader has given before."""
    prepare: Callable[[Path], None] | None = None
    """Makes what is in the folder before."""
    names: Callable[[], dict[str, Any]] = dict
    """What programs use that they do not make."""
    comments_are_output: bool = False
    """Whether comments at the ends of lines are what the programs print."""
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Why a block that has a certain text is not run, beside what the page itself says."""


def _postgres(_: Path) -> str:
    return durable_databases().empty()


def _mongo(_: Path) -> str:
    return mongo_databases().empty()


def _inside(name: str) -> Callable[[Path], str]:
    """A path in the folder of the page for one that belongs to the system."""

    def path(folder: Path) -> str:
        place = f"{folder}/{name}"
        Path(place).parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("/"):
            Path(place).mkdir(exist_ok=True)
        return place

    return path


def _conversations(folder: Path) -> None:
    """A database with a conversation of Ada's."""
    asyncio.run(_converse(f"sqlite:///{folder}/chat.db"))


async def _converse(url: str) -> None:
    async with open_store(url) as store:
        for owner in ("ada", "local"):
            await store.create_conversation(owner, NewConversation(id=CONVERSATION))


def _journal(folder: Path) -> None:
    """A journal with a dead letter: what was recorded for a conversation that is not there."""
    _conversations(folder)
    asyncio.run(_record(folder / "voice.journal"))


async def _record(journal: Path) -> None:
    async with open_store("memory://") as store, Recorder(store, journal) as recorder:
        for text in ("Hello", "Is anybody there?"):
            recorder.record("ada", UUID(int=1), "user", text)
        await recorder.flush(10)


def _documents(folder: Path) -> None:
    (folder / "green.md").write_text("# Green tea\n\n## Temperature\n\nGreen tea wants water of 80 °C.\n")
    _conversations(folder)


DATABASE = "sqlite:///chat.db"
SERVE = f"chatkeep serve --database-url {DATABASE}"
USE = f"export CHATKEEP_DATABASE_URL={DATABASE}"
"""What makes the commands of a section use the database of the page."""

PROJECT = "0190f0ee-3c41-7d09-a5f0-4b1c9d7e2f10"
KEY = "5d1c0e7a9b34"
POSTGRES = "postgresql://chatkeep@db/chatkeep"


async def _first_key(url: str) -> str:
    async with open_store(url) as store:
        return (await store.access.list_keys(None))[0].id


async def _first_project(url: str) -> str:
    async with open_store(url) as store:
        return str((await store.projects.list_projects("local")).items[0].id)


def _in_database(read: Callable[[str], Coroutine[Any, Any, str]]) -> Callable[[Path], str]:
    """What is in the database of the page for what stands in the page."""
    return lambda folder: asyncio.run(read(f"sqlite:///{folder}/work/chat.db"))


def _text(text: str) -> Callable[[Path], str]:
    return lambda _: text


PAGES_NEED: Mapping[str, Page] = {
    "docs/answers.md": Page(before={"Providers": (USE,)}, prepare=_conversations),
    "docs/backup.md": Page(
        {
            POSTGRES: _postgres,
            f"{POSTGRES}_restored": _postgres,
            "createdb --host=db chatkeep_restored": _text("true"),
            "/backup/": _inside("backup/"),
            "chat-Mon.db": _text("chat.db"),
            "3 owners, 120 conversations, 4,711 messages": _text("2 owners, 2 conversations, 0 messages"),
        },
        {"PostgreSQL": (f"chatkeep import examples/conversations.jsonl --database-url {POSTGRES}",)},
        prepare=_conversations,
    ),
    "docs/documents.md": Page(
        {
            PROJECT: _in_database(_first_project),
            "110 passages": _text("… passages"),
            "27 new": _text("… new"),
            "docs/ --embedder local": _text("docs/mcp.md --embedder local"),
        },
        {"Words and vectors": (USE,)},
    ),
    "docs/mcp.md": Page(before={"From a server, over HTTP": (USE,)}, prepare=_conversations),
    "docs/models.md": Page(comments_are_output=True),
    "docs/mongodb.md": Page({"mongodb://localhost/chatkeep": lambda _: f"'{mongo_databases().empty()}'"}),
    "docs/recorder.md": Page(
        {
            "postgresql://user@host/chat": lambda folder: f"sqlite:///{folder}/work/chat.db",
            "/var/lib/myapp/voice.journal": _inside("new.journal"),
            "status voice.journal": _text("status voice.journal || test $? = 1"),  # there are dead letters
            "retry voice.journal 17": _text("retry voice.journal 1"),
            "drop voice.journal 17": _text("drop voice.journal 2"),
        },
        prepare=_journal,
        names=lambda: {
            "conversation_id": CONVERSATION,
            "app": FastAPI(),
            "FastAPI": FastAPI,
            "asynccontextmanager": asynccontextmanager,
            "Request": Request,
            "UUID": UUID,
            "logging": logging,
        },
    ),
    "docs/server.md": Page(
        {
            POSTGRES: _postgres,
            "--host 0.0.0.0 --workers 4": _text("--host 127.0.0.1"),
            KEY: _in_database(_first_key),
            "6a21c0de": _text("…"),  # the id of an answer
        },
        {
            "": (f"chatkeep db upgrade --database-url {POSTGRES}",),
            "Authentication": (USE,),
            "Messages": (SERVE,),
            "Answers": (USE,),
            "Projects and documents": (SERVE,),
        },
        prepare=_documents,
    ),
    "docs/voice.md": Page(
        not_run={"LLMContextAggregatorPair(context)": "a part of a program; test_pipecat.py runs a whole one"}
    ),
}


class Fakes:
    """The servers that stand for what is elsewhere."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder, self._stack, self._upstream = folder, stack, ""

    def upstream(self, _: Path) -> str:
        """The URL of a model server, which is started by the first who asks."""
        if not self._upstream:
            self._upstream = self._stack.enter_context(_model_server(self._folder))
        return self._upstream


@contextmanager
def _model_server(folder: Path) -> Iterator[str]:
    script = folder / "script.json"
    script.write_text(json.dumps([{"text": ["About ", "80 °C."]}] * 20))
    command = [sys.executable, "-m", "servers.models", "--kind", "openai", "--script", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.kill()


def prepared(page: Page, folder: Path) -> Path:
    """Make the folders of a page, and return that of the programs."""
    work, programs = folder / "work", folder / "programs"
    for each in (work, programs, folder / "home"):
        each.mkdir()
    for name in ("docs", "examples"):
        shutil.copytree(ROOT / name, work / name)
    if POSTGRES in page.stands_for and (server := durable_databases().server) is not None:
        for program in ("pg_dump", "pg_restore", "psql"):  # those of the system may be older than the server
            (programs / program).symlink_to(server.programs / program)
    (folder / "home" / ".curlrc").write_text("silent\nshow-error\nfail-with-body\nmax-time = 150\n")
    pip = programs / "pip"
    pip.write_text(PIP.format(python=sys.executable))
    pip.chmod(0o700)
    if page.prepare is not None:
        page.prepare(work)
    return programs
