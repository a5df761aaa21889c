"""`chatkeep ingest`: folders become the documents of a project, once, and nothing that lies elsewhere does."""

import asyncio
import os
import signal
import subprocess
import time
from pathlib import Path
from uuid import UUID

import pytest
from commands import COMMAND, run

from chatkeep import open_store
from chatkeep.documents import ChunkRange
from chatkeep.projects import NewProject, Project
from chatkeep.store import Store

OWNER = "local"

type Documents = dict[str, str]
"""The texts of documents, by path."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a store that is not there yet."""
    return f"sqlite:///{tmp_path / 'chat.db'}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of documents."""
    root = tmp_path / "manual"
    for path, text in {
        "index.md": "# Manual\n\nHow to begin.\n\n## Install\n\nWith pip.\n",
        "guide/first steps.md": "Steps, the first ones.\n",
        "guide/notes.TXT": "Notes without marks.\n",
        ".hidden/secret.md": "hidden\n",
        "guide/.draft.md": "hidden\n",
        "guide/script.py": "print()\n",
        "guide/logo.png": "no text\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


def ingest(url: str, *arguments: str | Path, code: int = 0) -> str:
    """Ingest into the project Manual, and return what is said."""
    return run({}, "ingest", "Manual", *arguments, "--database-url", url, code=code).output


def stored(url: str, owner: str = OWNER) -> Documents:
    """The documents of the one project that there is."""

    async def read() -> Documents:
        async with open_store(url) as store:
            (project,) = (await store.projects.list_projects(owner)).items
            return await documents(store, project)

    return asyncio.run(read())


async def documents(store: Store, project: Project) -> Documents:
    """The texts of a project's documents. Their counts are those of the project."""
    texts, chunks = dict[str, str](), 0
    for content in await store.documents.contents(project.owner_id, project.id):
        wanted = [ChunkRange(content.document_id, content.id, 0, content.chunks)]
        found = await store.documents.chunks(project.owner_id, project.id, wanted)
        texts[content.file_path] = "".join(chunk.text for chunk in found)
        chunks += len(found)
    assert (project.documents, project.chunks) == (len(texts), chunks)
    return texts


def test_a_folder_becomes_documents(url: str, folder: Path) -> None:
    """Its documents have their paths in the folder; what is hidden or no document is left out, and said to be."""
    said = ingest(url, folder)
    assert stored(url) == {
        "index.md": (folder / "index.md").read_text(),
        "guide/first steps.md": "Steps, the first ones.\n",
        "guide/notes.TXT": "Notes without marks.\n",
    }
    assert "new project" in said
    assert "4 passages" in said
    assert "3 new, 0 replaced, 0 unchanged, 0 removed, 0 refused" in said
    assert "left out: 1 .py" in said
    assert "left out: 1 .png" in said


def test_again_only_what_changed_is_read(url: str, folder: Path) -> None:
    """A second run changes what has changed, and removes what has gone if it is asked to."""
    ingest(url, folder)
    assert "0 new, 0 replaced, 3 unchanged" in ingest(url, folder)
    (folder / "index.md").write_text("# Another\n")
    (folder / "guide/notes.TXT").unlink()
    (folder / "new.md").write_text("New.\n")
    assert "1 new, 1 replaced, 1 unchanged, 0 removed" in ingest(url, folder)
    assert set(stored(url)) == {"index.md", "guide/first steps.md", "guide/notes.TXT", "new.md"}
    assert "0 new, 0 replaced, 3 unchanged, 1 removed" in ingest(url, folder, "--prune")
    after = stored(url)
    assert set(after) == {"index.md", "guide/first steps.md", "new.md"}
    assert after["index.md"] == "# Another\n"


def test_links_do_not_lead_out_of_the_folder(url: str, folder: Path, tmp_path: Path) -> None:
    """A link to a file elsewhere is left out, one to a file in the folder is read, and a linked folder is not
    entered, so that no loop is endless."""
    (tmp_path / "secret.md").write_text("secret")
    (folder / "out.md").symlink_to(tmp_path / "secret.md")
    (folder / "in.md").symlink_to(folder / "index.md")
    (folder / "gone.md").symlink_to(folder / "nothing.md")
    (folder / "guide/loop").symlink_to(folder, target_is_directory=True)
    (folder / "elsewhere").symlink_to(tmp_path, target_is_directory=True)
    said = ingest(url, folder)
    assert set(stored(url)) == {"index.md", "guide/first steps.md", "guide/notes.TXT", "in.md"}
    assert "left out: 1 links to elsewhere" in said


def test_what_cannot_be_read_is_named(url: str, folder: Path) -> None:
    """Others are stored; the exit code tells. Files that are refused have not vanished."""
    ingest(url, folder)
    (folder / "bad.md").write_bytes(b"good until \xff")
    (folder / "index.md").write_bytes(b"zero \0")
    (folder / "packed.md").write_bytes(b"PK\x03\x04")
    (folder / "empty.md").write_text(" \n")
    (folder / "new.md").write_text("New.")
    said = ingest(url, folder, "--prune", code=1)
    assert "1 new, 0 replaced, 2 unchanged, 0 removed, 4 refused" in said
    assert "bad.md: " in said
    assert "11" in said
    assert stored(url)["index.md"].startswith("# Manual")


def test_mistakes_are_said(url: str, folder: Path) -> None:
    """A path that is not there and two files with one path are errors, and nothing is stored."""
    assert "there is no file or folder" in ingest(url, folder / "nothing", code=1)
    (folder / "a").mkdir()
    (folder / "a/index.md").write_text("other")
    assert "would both be index.md" in ingest(url, folder, folder / "a", code=1)
    assert not Path(url.removeprefix("sqlite:///")).exists()


def test_the_project_is_given_by_name_or_id(url: str, folder: Path) -> None:
    """A name finds the project that has it, if there is one; an id that nobody has is an error."""

    async def make() -> list[UUID]:
        async with open_store(url) as store:
            return [(await store.projects.create_project(OWNER, NewProject(name=name))).id for name in "ABB"]

    first, *others = asyncio.run(make())
    run({}, "ingest", "A", folder / "index.md", "--database-url", url)
    run({}, "ingest", str(first), folder / "guide", "--database-url", url)
    said = run({}, "ingest", "B", folder, "--database-url", url, code=1).output
    assert all(str(id_) in said for id_ in others)
    assert "no such project" in run({}, "ingest", str(UUID(int=1)), folder, "--database-url", url, code=1).output

    async def read() -> Documents:
        async with open_store(url) as store:
            return await documents(store, await store.projects.get_project(OWNER, first))

    assert set(asyncio.run(read())) == {"index.md", "first steps.md", "notes.TXT"}


def test_a_full_project_is_said(url: str, folder: Path) -> None:
    """A project without room is one sentence, with the limit and the way out."""
    environment = {"CHATKEEP_MAX_DOCUMENTS": "2"}
    said = run(environment, "ingest", "Manual", folder, "--database-url", url, code=1).output
    assert "at most 2 documents" in said
    assert len(stored(url)) == 2


def large(root: Path, files: int) -> None:
    """A folder of many documents."""
    root.mkdir()
    for n in range(files):
        sections = (f"## Section {i}\n\nText {n} {i}, which has some words.\n\n" for i in range(40))
        (root / f"{n}.md").write_text(f"# Document {n}\n\n" + "".join(sections))


@pytest.mark.parametrize(
    ("files", "kills"),
    [
        pytest.param(20, 1, id="short"),
        pytest.param(60, 4, marks=pytest.mark.long, id="long"),
        pytest.param(200, 20, marks=pytest.mark.apart, id="full"),
    ],
)
def test_killed_and_run_again_it_ends_as_one_run(url: str, tmp_path: Path, files: int, kills: int) -> None:
    """Killed at any moment, a run goes on where the one before was, and nothing is half there meanwhile."""
    root = tmp_path / "large"
    large(root, files)
    expected = {path.name: path.read_text() for path in root.iterdir()}
    command = [*COMMAND, "ingest", "Manual", str(root), "--database-url", url, "--jobs", "2"]
    environment = os.environ | {"COLUMNS": "200"}
    for kill in range(kills):
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment) as run_:
            wait_for(url, kill * files // (2 * kills) + 1, run_)
            run_.send_signal(signal.SIGKILL)
        there = stored(url)
        assert there.items() <= expected.items()
    ingest(url, root)
    assert stored(url) == expected


def wait_for(url: str, count: int, process: "subprocess.Popen[bytes]") -> None:
    """Wait until a run has stored so many documents, or has ended."""

    async def wait() -> None:
        while process.poll() is None:
            if Path(url.removeprefix("sqlite:///")).exists():
                async with open_store(url, migrate=False) as store:
                    if await store.schema_revision() == store.newest_revision:
                        found = (await store.projects.list_projects(OWNER)).items
                        if found and found[0].documents >= count:
                            return
            await asyncio.sleep(0.02)

    asyncio.run(wait())


def test_an_interrupted_run_says_how_to_go_on(url: str, tmp_path: Path) -> None:
    """Ctrl-C ends the command soon, without a traceback, and leaves no process behind."""
    root = tmp_path / "large"
    large(root, 1_000)  # as a project may have, more than are read before the signal comes, however busy the machine is
    command = [*COMMAND, "ingest", "Manual", str(root), "--database-url", url, "--jobs", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        wait_for(url, 3, process)  # type: ignore[arg-type]
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [child for task in tasks for child in task.read_text().split()]
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
        assert time.monotonic() - began < 10
    assert process.returncode == 130
    assert "run it again to go on" in said
    assert "Traceback" not in said
    assert children
    assert not [child for child in children if Path(f"/proc/{child}").exists()]
