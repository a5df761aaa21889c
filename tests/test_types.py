"""What users' type checkers say: of the examples, and of constructions beside them. No plugin, no settings of ours.

An example that is not checked has a comment before it: <!-- types: the reason -->.
"""

import builtins
import json
import re
import shutil
import subprocess
import symtable
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from markdown_it import MarkdownIt

import chatkeep

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
OPT_OUT = re.compile(r"<!-- types: .{10,} -->")

KNOWN = {
    "asynccontextmanager": "from contextlib import asynccontextmanager",
    "AsyncIterator": "from collections.abc import AsyncIterator",
    "FastAPI": "from fastapi import FastAPI",
    "LLMContextAggregatorPair": (
        "from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair"
    ),
    "Pipeline": "from pipecat.pipeline.pipeline import Pipeline",
    "PipelineWorker": "from pipecat.pipeline.worker import PipelineWorker",
    "Request": "from fastapi import Request",
    "UUID": "from uuid import UUID",
    "attach": "from chatkeep.integrations.pipecat import attach",
    "logging": "import logging",
    "app": "from fastapi import FastAPI; app = FastAPI()",
    "context": ("from pipecat.processors.aggregators.llm_context import LLMContext; context = LLMContext()"),
    "conversation": "from chatkeep import Conversation; conversation: Conversation",
    "conversation_id": "from uuid import UUID; conversation_id = UUID(int=1)",
    "store": "from chatkeep import Store; store: Store",
    "JOURNAL": 'JOURNAL = "voice.journal"',
    "URL": 'URL = "sqlite:///chat.db"',
    **{name: f"from pipecat.services.ai_service import AIService; {name}: AIService" for name in ("llm", "stt", "tts")},
    "transport": "from pipecat.transports.base_transport import BaseTransport; transport: BaseTransport",
}
"""What an example may use without saying what it is. Other names are those of chatkeep, or errors."""


class Example(NamedTuple):
    """A block of Python in a page."""

    page: str
    line: int
    source: str

    @property
    def module(self) -> str:
        """The file that it becomes."""
        return f"{Path(self.page).stem.lower().replace('-', '_')}_{self.line}.py"


def examples(page: Path) -> list[Example]:
    """The blocks of a page that are checked."""
    return list(examples_in(page.name, page.read_text("utf-8")))


def examples_in(page: str, text: str) -> Iterator[Example]:
    """The blocks of Python in a Markdown text, but those left out."""
    is_left_out = False
    for token in MarkdownIt().parse(text):
        if token.type == "fence" and token.info.split()[:1] == ["python"] and not is_left_out:
            assert token.map is not None
            yield Example(page, token.map[0] + 1, token.content)
        if token.type in {"fence", "html_block"}:
            is_left_out = OPT_OUT.search(token.content) is not None


def program(source: str) -> str:
    """An example as a module: its fragments in a function, after the names that it does not say."""
    wrapped = source if is_whole(source) else f"async def example() -> None:\n{indented(source)}"
    said = [KNOWN.get(name) or f"from chatkeep import {name}" for name in unsaid(wrapped) if is_known(name)]
    return "\n".join([*said, wrapped])


def is_whole(source: str) -> bool:
    """Whether a block can be a module: it awaits nothing outside of a function."""
    try:
        compile(source, "example", "exec")
    except SyntaxError:
        return False
    return True


def indented(source: str) -> str:
    """A block as the body of a function."""
    return "".join(f"    {line}" if line.strip() else line for line in source.splitlines(keepends=True))


def is_known(name: str) -> bool:
    """Whether a name need not be said; others are left for the type checkers to complain of."""
    return name in KNOWN or name in chatkeep.__all__


def unsaid(source: str) -> list[str]:
    """The names that a module uses and does not bind."""
    tables = [symtable.symtable(source, "example", "exec")]
    bound = {symbol.get_name() for symbol in tables[0].get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    bound |= {child.get_name() for child in tables[0].get_children()}
    used = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        is_module = table.get_type() == "module"
        used |= {symbol.get_name() for symbol in table.get_symbols() if is_module or symbol.is_global()}
    return sorted(used - bound - set(dir(builtins)))


CONSTRUCTIONS = """
from datetime import UTC, datetime
from uuid import UUID, uuid4

from chatkeep import (
    Conversation, ConversationChange, ErasureReceipt, ImportedConversation, ImportedMessage, Message, MessageChange,
    NewConversation, NewMessage, Page, Role, Source, Status, Store, StoreOptions, open_store,
)
from chatkeep.documents import NewDocument
from chatkeep.model import RoleName, Span
from chatkeep.projects import NewProject, ProjectChange
from chatkeep.providers import ApiConfig, LlmProviderChange, NewLlmProvider

ID = "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75"
source = Source(document_id=ID, file_path="tea.md", similarity_score=1)
spanned = Source(document_id=uuid4(), file_path="tea.md", similarity_score=0.5, answer_span=Span(start=0, end=9))
NewConversation()
NewConversation(id=ID, title="Tea", project_id=uuid4(), labels=["pinned"], metadata={"a": [1]})
ConversationChange(title=None, labels=("pinned",), head_id=ID)
NewMessage(role=Role.USER, content="x")
NewMessage(role="assistant", content=None, parts=[{"type": "text", "text": "x"}], sources=[source, spanned], model="m")
NewMessage(id=ID, parent_id=None, role="tool", status="failed", sent_at="2026-01-31T12:00:00Z", metadata={})
ImportedConversation(id=uuid4(), updated_at=datetime.now(UTC), head_id=ID, kept_fingerprint="00" * 16)
ImportedMessage(role="user", status=Status.DELETED, created_at=datetime.now(UTC))
MessageChange(metadata={"feedback": 1})
NewProject(name="Manual")
ProjectChange(metadata=None)
NewDocument(file_path="a.md", media_type="text/markdown", bytes=1, sha256="0" * 64)
NewLlmProvider(provider_name="openai", model_name="m", is_default=True, api_config=ApiConfig(settings={"seed": 1}))
LlmProviderChange(is_default=True)
StoreOptions(max_content_chars=0)

new = NewMessage(role="user", content="x", id=ID)
role: Role = new.role
id_: UUID | None = new.id


def said(message: Message, name: RoleName) -> NewMessage | None:
    if message.role == "user" and message.status is not Status.DELETED:
        return NewMessage(role=name, content=message.content)
    if message.role is Role.ASSISTANT and message.status == "complete":
        return NewMessage(role=message.role, content="x")
    return None


async def use(store: Store, receipt: ErasureReceipt) -> list[str | None]:
    async with open_store("sqlite:///chat.db", search=False, max_content_chars=0) as other:
        page: Page[Conversation] = await other.list_conversations("ada", labels=["pinned"], limit=1)
    (message,) = await store.append("ada", ID, [NewMessage(role="user", content="x")])
    await store.update_conversation("ada", message.conversation_id, ConversationChange(head_id=message.id))
    return [each.title for each in page.items]
"""
"""What every type checker takes."""

MISTAKES = """
from chatkeep import NewConversation, NewMessage
NewMessage(role="robot", content="x")
NewMessage(content="x")
NewMessage(role="user", contnet="x")
NewMessage(role="user", content="x", id=7)
NewConversation(labels="pinned")
"""
"""What every type checker refuses, in each line but the first."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that is checked, and nothing of the project's settings."""
    folder = tmp_path_factory.mktemp("types")
    for example in (each for page in PAGES for each in examples(page)):
        (folder / example.module).write_text(program(example.source), "utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        (folder / f"examples_{path.name}").write_text(path.read_text("utf-8"), "utf-8")
    (folder / "constructions.py").write_text(CONSTRUCTIONS, "utf-8")
    (folder / "mistakes.py").write_text(MISTAKES, "utf-8")
    return folder


def run(folder: Path, *command: str) -> str:
    """The output of a type checker."""
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=folder, capture_output=True, text=True, check=False, timeout=900
    )
    assert done.returncode == 1, done.stdout + done.stderr  # it has found the mistakes
    return done.stdout


def cache_in(folder: Path) -> Path:
    """A folder for mypy's cache, with what `make lint` left: libraries, read with the same options, take 20 s."""
    cache = folder / ".cache"
    if (ROOT / ".mypy_cache").exists():
        shutil.copytree(ROOT / ".mypy_cache", cache)
    return cache


def assert_only_mistakes(found: set[tuple[str, int]], output: str) -> None:
    """Whether the lines with errors are those that have mistakes."""
    lines = range(3, len(MISTAKES.splitlines()) + 1)
    assert found == {("mistakes.py", line) for line in lines}, output


@pytest.mark.long
@pytest.mark.timeout(900)
def test_mypy_takes_what_is_documented(programs: Path) -> None:
    """`mypy --strict`, without a plugin, has no error in an example, and one in each mistake.

    Decorators without types are none: Pipecat's are.
    """
    options = ["--strict", "--warn-unreachable", "--config-file=", f"--cache-dir={cache_in(programs)}"]
    output = run(programs, "mypy", *options, ".")
    found = re.findall(r"^(\S+?):(\d+): error(?!.*\[untyped-decorator\]$)", output, re.MULTILINE)
    assert_only_mistakes({(name, int(line)) for name, line in found}, output)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_pyright_takes_what_is_documented(programs: Path) -> None:
    """So it is with pyright, as editors run it."""
    settings = {"typeCheckingMode": "standard", "pythonVersion": f"3.{sys.version_info.minor}"}
    (programs / "pyrightconfig.json").write_text(json.dumps(settings), "utf-8")
    output = run(programs, "basedpyright", "--outputjson", f"--pythonpath={sys.executable}")
    wrong = [each for each in json.loads(output)["generalDiagnostics"] if each["severity"] == "error"]
    found = {(Path(each["file"]).name, each["range"]["start"]["line"] + 1) for each in wrong}
    assert_only_mistakes(found, "\n".join(f"{each['file']}: {each['message']}" for each in wrong))


def test_an_example_may_be_left_out() -> None:
    """Only with a comment that has a reason; the blocks around it are checked."""
    block = "```python\nx = 1\n```\n"
    page = f"# A\n\n{block}\n<!-- types: shows a mistake -->\n\n{block}\n<!-- types: -->\n\n{block}"
    assert [each.line for each in examples_in("a.md", page)] == [3, 15]
    assert sum(len(examples(each)) for each in PAGES) >= 10
