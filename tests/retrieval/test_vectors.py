"""Vectors of documents in the background: all are made, once, whoever is killed or has another embedder."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic_ai.embeddings import EmbeddingResult, EmbeddingSettings, TestEmbeddingModel
from pydantic_ai.embeddings.result import EmbedInputType

from chatkeep import NotFound, Store, StoreUnavailable, open_store
from chatkeep.documents import ChunkRange, Content, IndexedChunk, NewChunk, NewDocument
from chatkeep.projects import NewProject, Project
from chatkeep.retrieval.embedding import Embedder, Embedders, EmbeddingFailed, EmbedLimits
from chatkeep.retrieval.vectors import Filled, VectorMaker

LIMITS = EmbedLimits(texts=4, requests=2, attempts=1)
OLD, NEW = "test:old/2", "test:new/2"


class Model(TestEmbeddingModel):
    """Makes a vector of a text's length; calls `before` with its texts, and fails if that does."""

    def __init__(self, name: str = "new", before: Callable[[Sequence[str]], object] | None = None) -> None:
        super().__init__(name)
        self.before = before
        self.texts: list[str] = []

    async def embed(
        self, inputs: str | Sequence[str], *, input_type: EmbedInputType, settings: EmbeddingSettings | None = None
    ) -> EmbeddingResult:
        """Make the vectors."""
        await asyncio.sleep(0)
        if self.before and (waiting := self.before(inputs)):
            assert asyncio.iscoroutine(waiting)
            await waiting
        result = await super().embed(inputs, input_type=input_type, settings=settings)
        self.texts += result.inputs
        result.embeddings = [[float(len(text)), 1.0] for text in result.inputs]
        return result

    @property
    def embedded(self) -> list[str]:
        """The passages, without the word that the space is asked with."""
        return [text for text in self.texts if text != "tea"]


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """An empty store, of each kind in turn."""
    async with open_store(store_url) as store:
        yield store


@pytest.fixture
async def project(store: Store) -> Project:
    """A project of ada's."""
    return await store.projects.create_project("ada", NewProject(name="Manual"))


@asynccontextmanager
async def maker(store: Store, model: Model, **options: object) -> AsyncIterator[VectorMaker]:
    """What makes vectors by a model; a process of a deployment."""
    made = VectorMaker(store, Embedders(Embedder(model, limits=LIMITS)), **options)  # type: ignore[arg-type]
    yield made
    await made.aclose()


async def put(store: Store, project: Project, path: str, chunks: int, text: str = "passage") -> None:
    """Store a document of so many passages."""
    passages = [f"{text} {number} of {path}" for number in range(chunks)]
    digest = sha256("".join(passages).encode()).hexdigest()
    new = NewDocument(file_path=path, media_type="text/plain", bytes=chunks, sha256=digest)
    cut = [NewChunk(passage, None, "Manual", 0, b"\0\0\0\0") for passage in passages]
    await store.documents.store_document("ada", project.id, new, cut)


async def entries(store: Store, project: Project, space: str) -> list[IndexedChunk]:
    """What a search reads of all chunks."""
    contents: list[Content] = await store.documents.contents("ada", project.id)
    ranges = [ChunkRange(each.document_id, each.id, 0, each.chunks) for each in contents]
    found = await store.documents.index_entries("ada", project.id, ranges, space=space)
    return [entry for each in found for entry in each]


async def vectors(store: Store, project: Project, space: str) -> int:
    """How many vectors of a space there are."""
    return sum(entry.vector is not None for entry in await entries(store, project, space))


async def space_of(store: Store, project: Project) -> str | None:
    """The space that the project searches."""
    return (await store.projects.get_project("ada", project.id)).space


async def test_all_chunks_get_vectors(store: Store, project: Project) -> None:
    """Every chunk of every document has its vector, made once, of its headings and its text; and it is searched."""
    for number in range(12):
        await put(store, project, f"small{number}.md", 1 + number % 3)
    await put(store, project, "large.md", 30)
    model, told = Model(), list[tuple[int, int]]()
    async with maker(store, model) as vector_maker:
        assert await vector_maker.fill("ada", project.id, lambda *counts: told.append(counts)) is Filled.COMPLETE
        assert await space_of(store, project) == NEW
        found = await entries(store, project, NEW)
        assert len(found) == await vectors(store, project, NEW) == len(model.embedded) == 54
        assert "Manual\npassage 7 of large.md" in model.embedded
        assert len(set(model.embedded)) == 54
        assert told[0] == (0, 54)
        assert told[-1] == (54, 54)
        assert told == sorted(told)
        assert await vector_maker.fill("ada", str(project.id)) is Filled.COMPLETE
        assert len(model.embedded) == 54


async def test_begin_finds_what_comes_meanwhile(store: Store, project: Project) -> None:
    """A document that is stored while vectors are made gets them, too, by one task."""
    async with maker(store, model := Model()) as vector_maker:
        for number in range(6):
            await put(store, project, f"{number}.md", 9)
            vector_maker.begin("ada", project.id)
            await asyncio.sleep(0.005 * number)
        await put(store, project, "0.md", 5, "another")
        vector_maker.begin("ada", project.id)
        await vector_maker.wait()
        assert await vectors(store, project, NEW) == 5 * 9 + 5
        assert len(set(model.embedded)) == len(model.embedded)


async def test_begin_while_it_ends(store: Store, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks while a project is filled has it filled once more: its last look may have been before."""
    fills = 0

    async def fill(owner: str, project_id: UUID) -> Filled:
        nonlocal fills
        fills += 1
        await asyncio.sleep(0.01)
        return Filled.COMPLETE

    async with maker(store, Model()) as vector_maker:
        monkeypatch.setattr(vector_maker, "fill", fill)
        for _ in range(3):
            vector_maker.begin("ada", project.id)
            await asyncio.sleep(0)
        await vector_maker.wait()
    assert fills == 2


async def test_the_old_space_is_searched_until_the_end(store: Store, project: Project) -> None:
    """With another embedder the vectors of the old one stay, and are searched, until every chunk has a new one."""
    await put(store, project, "one.md", 20)
    async with maker(store, Model("old")) as old:
        await old.fill("ada", project.id)
    seen: list[tuple[str | None, int]] = []

    async def look() -> None:
        seen.append((await space_of(store, project), await vectors(store, project, OLD)))
        if len(seen) == 3:
            await put(store, project, "late.md", 3)

    async with maker(store, Model("new", lambda _: look())) as new:
        assert await new.fill("ada", project.id) is Filled.COMPLETE
    assert len(seen) > 4
    assert set(seen) == {(OLD, 20)}
    assert await space_of(store, project) == NEW
    assert (await vectors(store, project, OLD), await vectors(store, project, NEW)) == (0, 23)


async def test_failure_in_the_middle(store: Store, project: Project) -> None:
    """What was made before a failure is kept; in the background it is tried again, and nothing is made twice."""
    await put(store, project, "one.md", 40)
    model = Model()
    left = 3

    def fail(texts: Sequence[str]) -> None:
        nonlocal left
        if len(model.embedded) > 12 and left:
            left -= 1
            raise EmbeddingFailed("the embedder is busy (429)", is_temporary=True)

    model.before = fail
    async with maker(store, model, pauses=(0.01, 0.02)) as vector_maker:
        with pytest.raises(EmbeddingFailed, match="busy"):
            await vector_maker.fill("ada", project.id)
        assert await vectors(store, project, NEW) >= 8
        vector_maker.begin("ada", project.id)
        await vector_maker.wait()
        assert left == 0
        assert await vectors(store, project, NEW) == 40


async def test_two_workers(store: Store, project: Project) -> None:
    """Of two processes one makes the vectors; the other one comes back when that has gone, and finds the rest."""
    await put(store, project, "one.md", 40)
    started = asyncio.Event()

    async def wait_for_ever() -> None:
        started.set()
        await asyncio.Event().wait()

    def get_stuck(texts: Sequence[str]) -> object:
        return wait_for_ever() if len(stuck.embedded) >= 16 else None

    stuck, model = Model(before=get_stuck), Model()
    async with maker(store, stuck) as first, maker(store, model, lease=timedelta(seconds=0.2)) as second:
        first.begin("ada", project.id)
        await started.wait()
        assert await second.fill("ada", project.id) is Filled.BUSY
        second.begin("ada", project.id)
        await asyncio.sleep(0.05)
        assert model.embedded == []
        await first.aclose()  # gives the lease back
        await second.wait()
        assert await vectors(store, project, NEW) == 40
        assert len(model.embedded) == 40 - len(stuck.embedded) == 24
        first.begin("ada", project.id)
        await first.wait()


async def test_lease_is_kept_while_working(store: Store, project: Project) -> None:
    """A worker that takes longer than its lease keeps it; one whose lease is gone stops."""
    await put(store, project, "one.md", 4)
    lease = timedelta(seconds=0.15)

    async def take_long() -> None:
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            claimed.append(await store.documents.claim_embedding("ada", project.id, uuid4(), lease=timedelta(0)))
            await asyncio.sleep(0.03)

    claimed: list[bool] = []
    model = Model(before=lambda texts: take_long() if texts != ["tea"] else None)
    async with maker(store, model, lease=lease) as vector_maker:
        assert await vector_maker.fill("ada", project.id) is Filled.COMPLETE
        assert claimed
        assert not any(claimed)
        assert await store.documents.claim_embedding("ada", project.id, uuid4())
        assert await vector_maker.fill("ada", project.id) is Filled.BUSY


async def test_no_flip_flop(store: Store, project: Project) -> None:
    """Of processes with different embedders the one that saw the project last has its way, and they settle on that."""
    await put(store, project, "one.md", 10)
    old_model, new_model = Model("old"), Model("new")
    async with maker(store, old_model) as old, maker(store, new_model) as new:
        assert await old.fill("ada", project.id) is Filled.COMPLETE
        assert await new.fill("ada", project.id) is Filled.COMPLETE
        assert await space_of(store, project) == NEW
        for _ in range(3):
            assert await old.fill("ada", project.id) is Filled.OTHER
            assert await new.fill("ada", project.id) is Filled.COMPLETE
        async with maker(store, Model("old")) as restarted:
            assert await restarted.fill("ada", project.id) is Filled.COMPLETE
            for _ in range(3):
                assert await new.fill("ada", project.id) is Filled.OTHER
                assert await old.fill("ada", project.id) is Filled.COMPLETE
                assert await restarted.fill("ada", project.id) is Filled.COMPLETE
        assert await space_of(store, project) == OLD
    assert len(new_model.embedded) == 10
    assert len(old_model.embedded) == 10


async def test_moved_while_working(store: Store, project: Project) -> None:
    """A project that somebody else moves while its vectors are made is not moved again."""
    await put(store, project, "one.md", 10)
    async with maker(store, Model("old")) as old:
        await old.fill("ada", project.id)

    async def move() -> None:
        await store.documents.use_space("ada", project.id, "test:third/2")

    model = Model("new", lambda texts: move() if texts != ["tea"] else None)
    async with maker(store, model) as new:
        assert await new.fill("ada", project.id) is Filled.OTHER
    assert await space_of(store, project) == "test:third/2"
    assert len(model.embedded) == 8  # one batch


async def test_space_of_others_gets_its_vectors(
    store: Store, project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that leaves a project in another space makes the vectors of that one, if it has its embedder."""
    embedders = Embedders(Embedder(Model("old"), limits=LIMITS))
    third = Embedder(Model("new"), limits=LIMITS)
    monkeypatch.setitem(embedders._former, NEW, third)
    vector_maker = VectorMaker(store, embedders)
    await put(store, project, "one.md", 3)
    await vector_maker.fill("ada", project.id)
    async with maker(store, Model("new")) as new:
        await new.fill("ada", project.id)
    await put(store, project, "two.md", 3)
    assert await vector_maker.fill("ada", project.id) is Filled.OTHER
    assert (await vectors(store, project, NEW), await vectors(store, project, OLD)) == (6, 0)
    await vector_maker.aclose()


async def test_project_goes_meanwhile(store: Store, project: Project) -> None:
    """Nobody goes on with a project that was deleted; who asks for one that is not there is told."""
    await put(store, project, "one.md", 30)
    assert await store.documents.claim_embedding("ada", project.id, uuid4(), lease=timedelta(0))

    async def delete() -> None:
        await store.projects.delete_project("ada", project.id)

    async with maker(store, Model(before=lambda texts: delete() if texts != ["tea"] else None)) as vector_maker:
        vector_maker.begin("ada", project.id)
        async with asyncio.timeout(5):
            await vector_maker.wait()
        with pytest.raises(NotFound):
            await vector_maker.fill("ada", project.id)


async def test_unusable_store(store: Store, project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    """While the store cannot be used, it is tried again; whatever else happens is logged, and tried again, too."""
    await put(store, project, "one.md", 3)
    failures: list[Exception] = [StoreUnavailable("the database is away"), KeyError("what")]
    count_vectors = store.documents.count_vectors

    async def fail(owner: str, project_id: UUID, space: str) -> object:
        if failures:
            raise failures.pop(0)
        return await count_vectors(owner, project_id, space)

    monkeypatch.setattr(store.documents, "count_vectors", fail)
    async with maker(store, Model(), pauses=(0.01, 0.02)) as vector_maker:
        vector_maker.begin("ada", project.id)
        await vector_maker.wait()
    assert await vectors(store, project, NEW) == 3


async def test_many_projects(store: Store) -> None:
    """Two projects are worked on at a time."""
    projects = [await store.projects.create_project("ada", NewProject(name=f"{n}")) for n in range(5)]
    now = most = 0

    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0.1)
        now -= 1

    async with maker(store, Model(before=lambda texts: count() if texts != ["tea"] else None)) as vector_maker:
        for each in projects:
            await put(store, each, "one.md", 2)
        for each in projects:
            vector_maker.begin("ada", each.id)
        await vector_maker.wait()
    assert most == 2
    assert [await vectors(store, each, NEW) for each in projects] == [2] * 5


async def test_without_an_embedder(store: Store, project: Project) -> None:
    """Without an embedder nothing is begun."""
    vector_maker = VectorMaker(store, Embedders(None))
    vector_maker.begin("ada", project.id)
    await vector_maker.wait()
    with pytest.raises(EmbeddingFailed, match="CHATKEEP_EMBEDDER"):
        await vector_maker.fill("ada", project.id)
    await vector_maker.aclose()


KILLED = """
import asyncio, sys, time
from datetime import timedelta
from chatkeep import open_store
from tests.retrieval.test_vectors import Model, maker

def slow(texts):
    print(len(texts), flush=True)
    time.sleep(0.05)

async def main():
    async with open_store(sys.argv[1]) as store, maker(store, Model("new", slow), lease=timedelta(seconds=0.5)) as made:
        await made.fill("ada", sys.argv[2])

asyncio.run(main())
"""


@pytest.mark.long
async def test_killed_process(tmp_path: Path) -> None:
    """After SIGKILL in the middle, another process goes on when the lease has expired, with what is left."""
    url = f"sqlite:///{tmp_path}/chat.db"
    async with open_store(url) as store:
        project = await store.projects.create_project("ada", NewProject(name="Manual"))
        await put(store, project, "one.md", 100)
        async with maker(store, Model("old")) as old:
            await old.fill("ada", project.id)
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", KILLED, url, str(project.id)]
        with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220
            assert process.stdout
            for _ in range(4):
                await asyncio.to_thread(process.stdout.readline)
            process.kill()
        made = await vectors(store, project, NEW)
        assert 4 <= made < 100
        assert await space_of(store, project) == OLD
        model = Model("new")
        async with maker(store, model, lease=timedelta(seconds=0.2)) as new:
            new.begin("ada", project.id)
            await new.wait()
        assert len(model.embedded) == 100 - made
        assert await space_of(store, project) == NEW
        assert await vectors(store, project, NEW) == 100
