"""What people install: the wheel, in clean environments, from what uv has in its cache; and `make demo`."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from benchmarks.postgres_server import free_port
from page_blocks import PAGES, ROOT, blocks_of

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]

UV = shutil.which("uv") or str(ROOT / ".tools" / "bin" / "uv")
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("CHATKEEP_", "UV_", "VIRTUAL_"))}

PIPECAT = """
from chatkeep.integrations.pipecat import attach
attach(None, None, owner="ada", conversation_id="0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75")
"""

WITHOUT = {
    "server": ("import chatkeep.api.app", "import chatkeep.__main__ as m; m.main()"),
    "postgres": ("OPEN('postgresql://user@127.0.0.1:9/chat')",),
    "mongodb": ("OPEN('mongodb://user@127.0.0.1:9/chat')",),
    "documents": ("import chatkeep.retrieval.search", "import chatkeep.reading.ingest"),
    "pipecat": (PIPECAT,),
    "testing": ("import chatkeep.testing",),
}
"""What needs an extra, and is tried with the library alone."""

SERVER_WITHOUT = {
    "local": ("ingest", "Manual", "page.md", "--embedder", "local"),
    "convert": ("ingest", "Manual", "page.html"),
    "redis": ("serve", "--port", "0"),
}
"""Commands that need one more extra than the server has."""

OPEN = """
import asyncio, chatkeep
async def opened(url):
    async with chatkeep.open_store(url): pass
def OPEN(url): asyncio.run(opened(url))
"""


def run(*command: str | Path, code: int = 0, cwd: Path = ROOT, more: Mapping[str, str] | None = None) -> str:
    """Run a command, check its exit code, and return all that it prints."""
    done = subprocess.run(
        [str(each) for each in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        cwd=cwd,
        env=CLEAN | dict(more or {}),
    )
    assert (done.returncode != 0) == (code != 0), done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    run(UV, "build", "--offline", "--wheel", "--out-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


def installed(wheel: Path, folder: Path, *extras: str) -> Path:
    """Install the wheel and what the extras bring, in the versions of the lock, and return the Python."""
    options = [word for extra in extras for word in ("--extra", extra)]
    where = {"UV_PROJECT_ENVIRONMENT": str(folder)}
    sync = (
        UV,
        "sync",
        "--offline",
        "--frozen",
        "--no-default-groups",
        "--no-install-project",
        "--python",
        sys.executable,
    )
    run(*sync, *options, more=where)
    python = folder / "bin" / "python"
    run(UV, "pip", "install", "--offline", "--no-deps", "--python", python, wheel)
    assert "compatible" in run(UV, "pip", "check", "--python", python)
    return python


def test_the_library_alone(wheel: Path, tmp_path: Path) -> None:
    """The first example of the README works, and what needs an extra says which."""
    python = installed(wheel, tmp_path / "venv")
    first = next(block for block in blocks_of(PAGES["README.md"]) if block.kind == "python")
    assert run(python, "-c", first.text, cwd=tmp_path) == first.prints
    for extra, programs in WITHOUT.items():
        for program in programs:
            said = run(python, "-c", OPEN + program, code=1, cwd=tmp_path)
            assert f"pip install 'chatkeep[{extra}]'" in said.splitlines()[-1], said


def test_the_server_alone(wheel: Path, tmp_path: Path) -> None:
    """It says what is missing for files, embedders and limits of other extras."""
    python = installed(wheel, tmp_path / "venv", "server")
    (tmp_path / "page.md").write_text("# Tea\n")
    (tmp_path / "page.html").write_text("<h1>Tea</h1>")
    settings = {
        "CHATKEEP_DATABASE_URL": "sqlite:///chat.db",
        "CHATKEEP_RATE_LIMIT": "9/minute",
        "CHATKEEP_RATE_LIMIT_STORAGE": "redis://127.0.0.1:9/0",
        "COLUMNS": "300",
    }
    for extra, command in SERVER_WITHOUT.items():
        said = run(python, "-m", "chatkeep", *command, code=1, cwd=tmp_path, more=settings)
        assert re.search(rf"pip install ['\"]chatkeep\[{extra}\]['\"]", said), said
        assert "Traceback" not in said


def test_the_demo(tmp_path: Path) -> None:
    """It serves the sample and the documentation, from an environment of its own."""
    tree = tmp_path / "tree"
    shutil.copytree(
        ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv", ".tools", "*.db*", "benchmarks", ".*_cache")
    )
    port, tools = free_port(), Path(UV).parent
    environment = CLEAN | {"CHATKEEP_PORT": str(port), "UV_OFFLINE": "1", "PATH": f"{tools}:{os.environ['PATH']}"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "process_group": 0}
    with subprocess.Popen(["make", "demo"], cwd=tree, env=environment, **options) as demo:
        try:
            reply = asked(f"http://127.0.0.1:{port}/api/conversations?page=1", 300)
            assert reply["total"] == 7
            assert asked(f"http://127.0.0.1:{port}/api/projects", 60)["items"][0]["documents"] > 20
        finally:
            os.killpg(demo.pid, 9)
    assert not (tree / ".venv").exists()
    assert len(list((tree / ".tools" / "serving").glob("lib/*/site-packages/*.dist-info"))) < 70


def asked(url: str, seconds: float) -> dict[str, Any]:
    """What a server answers as soon as it is there."""
    until = time.monotonic() + seconds
    while True:
        try:
            found: dict[str, Any] = httpx2.get(url).raise_for_status().json()
        except httpx2.TransportError:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
        else:
            return found
