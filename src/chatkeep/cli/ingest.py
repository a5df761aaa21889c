"""`chatkeep ingest`: the files of folders become the documents of a project."""

import asyncio
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple
from uuid import UUID

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from chatkeep.cli.options import DatabaseUrl, EmbedderName, Owner, check_file, load_settings, store_url
from chatkeep.cli.stopping import stoppable
from chatkeep.cli.terminal import err, note, out
from chatkeep.documents import ProjectLimits, document_path
from chatkeep.errors import ChatkeepError, Conflict, InvalidId, InvalidInput, ProjectFull, StoreUnavailable
from chatkeep.ids import valid_id
from chatkeep.projects import NewProject, Project
from chatkeep.reading.kinds import SUFFIXES
from chatkeep.settings import LOCAL_OWNER
from chatkeep.store import Store, open_store

if TYPE_CHECKING:
    from chatkeep.reading.ingest import Ingest
    from chatkeep.retrieval.vectors import VectorMaker

PROJECTS_AT_ONCE = 200
"""Projects that are looked through at a time for one with a name."""


NOT_FILLED = {
    "busy": "another process is making the vectors of this project",
    "other": "another process moved this project to the vectors of another embedder meanwhile",
}


class Found(NamedTuple):
    """A file, and its path in the project."""

    file: Path
    path: str


@dataclass
class Walk:
    """The files of folders, without what is hidden, is no document, or lies elsewhere."""

    files: dict[str, Found] = field(default_factory=dict)
    """By path in the project."""
    left_out: Counter[str] = field(default_factory=Counter)
    """How many of which kind."""

    @classmethod
    def of(cls, given: Sequence[Path]) -> "Walk":
        """Look for the files. Raises InvalidInput for what is not there, and for two files with one path."""
        walk = cls()
        for path in given:
            if path.is_dir():
                for found in walk._below(path.resolve()):
                    walk._add(*found)
            elif path.is_file():
                walk._add(path, path.name)
            else:
                raise InvalidInput(f"there is no file or folder {path}")
        return walk

    def _add(self, file: Path, path: str) -> None:
        found = Found(file, document_path(path))
        other = self.files.setdefault(found.path, found)
        if other.file != file:
            raise InvalidInput(
                f"{other.file} and {file} would both be {found.path} in the project; give the folder above both"
            )

    def _below(self, root: Path) -> Iterator[Found]:
        """Yield the files of a folder, in order. No link is followed out of it; linked folders are not entered."""
        for folder, folders, names in os.walk(root, onerror=_fail):
            for name in [name for name in folders if name.startswith(".")]:
                folders.remove(name)
            folders.sort()
            yield from self._documents(root, Path(folder), sorted(names))

    def _documents(self, root: Path, folder: Path, names: Sequence[str]) -> Iterator[Found]:
        for name in names:
            file = folder / name
            if name.startswith("."):
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(root):
                self.left_out["links to elsewhere"] += 1
            elif file.suffix.lower() not in SUFFIXES:
                self.left_out[file.suffix or "files without a suffix"] += 1
            elif file.is_file():
                yield Found(file.resolve(), file.relative_to(root).as_posix())


def _fail(error: OSError) -> None:
    """A folder that cannot be read is an error: its documents would be taken for removed."""
    raise InvalidInput(f"cannot read {error.filename}: {error.strerror}")


@dataclass(frozen=True)
class Options:
    """How files are ingested."""

    url: str
    owner: str
    project: str
    embedder: str | None
    prune: bool
    jobs: int


@dataclass
class Totals:
    """What has become of the files so far."""

    changes: Counter[str] = field(default_factory=Counter)
    passages: int = 0
    refused: int = 0

    def __str__(self) -> str:
        named = [f"{self.changes[name]:,} {name}" for name in ("new", "replaced", "unchanged", "removed")]
        return ", ".join([*named, f"{self.refused:,} refused"])


def ingest(
    project: Annotated[str, typer.Argument(help="The project: its id, or its name; a new name makes a project.")],
    paths: Annotated[list[Path], typer.Argument(help="Folders and files. Documents have their paths in the folder.")],
    database_url: DatabaseUrl = None,
    owner: Owner = LOCAL_OWNER,
    embedder: EmbedderName = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove the project's documents that are not among these files any more.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, max=64, help="Files that are read at a time.", show_default="cores")] = (
        os.cpu_count() or 1
    ),
) -> None:
    """Make the files of folders the documents of a project, to be searched and answered from.

    Markdown and text; HTML, PDF and DOCX with the extra `convert`. Hidden files are left out, and no link is followed
    out of a folder. Run it again after changes, or if it was cut off: only what is new or has changed is read. A file
    that cannot be read is named, the others are stored, and the exit code is 1.
    """
    options = Options(store_url(database_url), owner, project, embedder, prune, jobs)
    check_file(options.url, makes=True)
    totals = Totals()
    began = time.monotonic()
    with stoppable(lambda: f"run it again to go on. Documents: {totals}") as stop:
        stop.run(_ingest(options, paths, totals))
    seconds = time.monotonic() - began
    out.print(
        f"{totals.passages:,} passages in {seconds:.1f} s; documents: {totals}",
        style="red" if totals.refused else None,
        soft_wrap=True,
    )
    if totals.refused:
        raise typer.Exit(1)


async def _ingest(options: Options, paths: Sequence[Path], totals: Totals) -> None:
    from chatkeep.reading.ingest import Ingest
    from chatkeep.reading.readers import Readers, ReadLimits
    from chatkeep.retrieval.embedding import Embedders
    from chatkeep.retrieval.vectors import VectorMaker

    walk, settings = Walk.of(paths), load_settings()
    embedders = Embedders.named(options.embedder or settings.embedder, settings.embed_dir, threads=options.jobs)
    async with open_store(options.url) as store, aclosing(Readers(ReadLimits(children=options.jobs))) as readers:
        project = await _project(store, options)
        limits = ProjectLimits(settings.max_documents, settings.max_chunks)
        await _store_all(Ingest(store, readers, limits=limits), options, project, walk, totals)
        if options.prune:
            await _prune(store, project, walk, totals)
        async with aclosing(embedders), aclosing(VectorMaker(store, embedders)) as vectors:
            if embedders.configured is not None:
                await _make_vectors(vectors, project)
    for kind, count in walk.left_out.most_common():
        note(f"left out: {count:,} {kind}", "dim")


async def _make_vectors(vectors: "VectorMaker", project: Project) -> None:
    """Make the vectors that the project lacks. Without them it is searched by words."""
    from chatkeep.retrieval.embedding import EmbeddingFailed

    with _progress() as progress:
        task = progress.add_task("vectors", total=None)

        def show(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        try:
            filled = await vectors.fill(project.owner_id, project.id, show)
        except EmbeddingFailed as error:
            raise StoreUnavailable(f"no vectors: {error.reason}; the documents are stored, run it again") from None
    if filled in NOT_FILLED:
        note(NOT_FILLED[filled], "yellow")


async def _project(store: Store, options: Options) -> Project:
    """The project with this id or name; a new one if there is none with the name."""
    try:
        return await store.projects.get_project(options.owner, valid_id(options.project))
    except InvalidId:
        named = [project for project in await _projects(store, options.owner) if project.name == options.project]
    if len(named) > 1:
        ids = ", ".join(str(project.id) for project in named)
        raise InvalidInput(f"there are {len(named)} projects with this name; give one's id: {ids}")
    if named:
        return named[0]
    made = await store.projects.create_project(options.owner, NewProject(name=options.project))
    note(f"new project {made.id}", "dim")
    return made


async def _projects(store: Store, owner: str) -> list[Project]:
    page = await store.projects.list_projects(owner, limit=PROJECTS_AT_ONCE)
    found = page.items
    while page.next is not None:
        page = await store.projects.list_projects(owner, limit=PROJECTS_AT_ONCE, cursor=page.next)
        found += page.items
    return found


async def _store_all(ingest_: "Ingest", options: Options, project: Project, walk: Walk, totals: Totals) -> None:
    """Store the files, some at a time. Raises the first error that concerns them all."""
    files = iter(walk.files.values())
    with _progress() as progress:
        task = progress.add_task("documents", total=len(walk.files))

        async def work() -> None:
            for found in files:
                await _store(ingest_, options.owner, project.id, found, totals)
                progress.advance(task)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(options.jobs):
                    group.create_task(work())
        except* ChatkeepError as errors:
            raise errors.exceptions[0] from None


async def _store(ingest_: "Ingest", owner: str, project_id: UUID, found: Found, totals: Totals) -> None:
    try:
        document, change = await ingest_.add(owner, project_id, found.file, found.path)
    except ProjectFull as error:
        raise ProjectFull(f"{error.detail}, or set CHATKEEP_MAX_DOCUMENTS or CHATKEEP_MAX_CHUNKS higher") from None
    except (InvalidInput, Conflict) as error:
        totals.refused += 1
        note(f"{found.path}: {error.detail}", "red")
        return
    totals.changes[change] += 1
    totals.passages += 0 if change == "unchanged" else document.chunks


async def _prune(store: Store, project: Project, walk: Walk, totals: Totals) -> None:
    """Remove documents that have no file any more."""
    after = None
    while contents := await store.documents.contents(project.owner_id, project.id, after=after):
        for content in contents:
            if content.file_path not in walk.files:
                await store.documents.delete_document(project.owner_id, project.id, content.document_id)
                totals.changes["removed"] += 1
        after = contents[-1].document_id


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=err,
        disable=not err.is_terminal,
    )
