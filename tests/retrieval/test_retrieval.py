"""Search in documents: what is stored is found, by every process, and what is kept of it has a bound."""

import asyncio
import threading
import time
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import numpy as np
import pytest

from chatkeep import open_store
from chatkeep.documents import NewChunk, NewDocument, StoredDocument, space_of
from chatkeep.errors import InvalidInput, NotFound, StoreUnavailable
from chatkeep.projects import NewProject, Project
from chatkeep.retrieval import snapshots as snapshots_module
from chatkeep.retrieval.embedding import EmbeddingFailed
from chatkeep.retrieval.passages import Passages
from chatkeep.retrieval.search import Retrieval
from chatkeep.retrieval.snapshots import RetrievalLimits
from chatkeep.retrieval.terms import pack_terms
from chatkeep.store import Store

OWNER = "someone"
SPACE = space_of("letters", 26)


def vector_of(text: str) -> bytes:
    """A vector of how often each letter is in a text: enough to tell texts apart."""
    counts = np.array([text.lower().count(chr(97 + n)) for n in range(26)], "<f4") + 0.01
    return (counts / np.linalg.norm(counts)).astype("<f4").tobytes()


class Letters:
    """Makes vectors of questions, unless it is told to fail."""

    fails = False

    async def vector(self, space: str, question: str) -> bytes:
        """The vector of a question."""
        assert space == SPACE
        if self.fails:
            raise EmbeddingFailed("the embedder does not answer")
        return vector_of(question)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store in a file, which others may open, too."""
    async with open_store(f"sqlite:///{tmp_path / 'chat.db'}") as store:
        yield store


@pytest.fixture
async def project(store: Store) -> UUID:
    """A project without documents."""
    return (await store.projects.create_project(OWNER, NewProject(name="Manual"))).id


async def put(
    store: Store, project: UUID, path: str, *texts: str, vectors: bool = False, version: int = 0
) -> StoredDocument:
    """Store a document of these passages."""
    starts = np.cumsum([0, *(len(text) for text in texts)]).tolist()
    chunks = [
        NewChunk(text, f"#{n}", path, start, pack_terms(text), vector_of(text) if vectors else None)
        for n, (text, start) in enumerate(zip(texts, starts, strict=False))
    ]
    digest = f"{abs(hash((texts, version))):064x}"[-64:]
    new = NewDocument(file_path=path, title=path.title(), media_type="text/plain", bytes=1, sha256=digest)
    return await store.documents.store_document(OWNER, project, new, chunks, space=SPACE if vectors else None)


def paths(found: Passages) -> list[str]:
    """The documents that were found, in order."""
    return [passage.file_path for passage in found.items]


async def test_the_best_passage_of_each_document_is_found(store: Store, project: UUID) -> None:
    """Documents with the words come first; each has the passage that has them, with where it stands."""
    await put(store, project, "pumps.md", "Pumps move water.", "A zebra drinks from the pump at noon.")
    await put(store, project, "zebras.md", "Zebras have stripes.")
    await put(store, project, "other.md", "Nothing of the kind.")
    retrieval = Retrieval(store)
    found = await retrieval.search(OWNER, project, "zebra pump")
    assert paths(found) == ["pumps.md", "zebras.md"]
    first = found.items[0]
    assert (first.n, first.text, first.start, first.end) == (1, "A zebra drinks from the pump at noon.", 17, 54)
    assert (first.title, first.heading, first.header_anchor) == ("Pumps.Md", "pumps.md", "#1")
    assert first.similarity_score == 1.0
    assert 0 < found.items[1].similarity_score < 1
    assert (found.method, found.note is None) == ("lexical", False)
    await retrieval.aclose()


async def test_vectors_and_words_are_ranked_together(store: Store, project: UUID) -> None:
    """With vectors of documents and of the question the search is hybrid; without that of the question, by words."""
    await put(store, project, "a.md", "aaaa bbbb", vectors=True)
    await put(store, project, "b.md", "aaaab bbb", vectors=True)
    await put(store, project, "c.md", "zzzz", vectors=True)
    letters = Letters()
    retrieval = Retrieval(store, questions=letters)
    found = await retrieval.search(OWNER, project, "aaaab bbb", limit=2)
    assert (paths(found), found.method, found.note) == (["b.md", "a.md"], "hybrid", None)
    assert found.items[0].similarity_score == pytest.approx(1)
    letters.fails = True
    found = await retrieval.search(OWNER, project, "aaaab bbb")
    assert (paths(found), found.method, found.note) == (
        ["b.md"],
        "lexical",
        "by words alone: the embedder does not answer",
    )
    await retrieval.aclose()


async def test_another_process_finds_it_at_the_next_request(store: Store, project: UUID, tmp_path: Path) -> None:
    """What one process stores, replaces and deletes is what the next search of another one finds, and not finds."""
    async with open_store(f"sqlite:///{tmp_path / 'chat.db'}") as other:
        retrieval = Retrieval(other)
        assert paths(await retrieval.search(OWNER, project, "zebra")) == []
        for n in range(5):
            await put(store, project, f"{n}.md", f"zebra number{n}")
            assert len(paths(await retrieval.search(OWNER, project, "zebra"))) == n + 1
            assert paths(await retrieval.search(OWNER, project, f"number{n}")) == [f"{n}.md"]
        replaced = await put(store, project, "0.md", "giraffe")
        assert paths(await retrieval.search(OWNER, project, "giraffe")) == ["0.md"]
        assert len(paths(await retrieval.search(OWNER, project, "zebra"))) == 4
        await store.documents.delete_document(OWNER, project, replaced.document.id)
        assert paths(await retrieval.search(OWNER, project, "giraffe")) == []
        await store.projects.delete_project(OWNER, project)
        with pytest.raises(NotFound):
            await retrieval.search(OWNER, project, "zebra")
        await retrieval.aclose()


async def test_a_project_that_is_made_anew_has_nothing_of_before(store: Store, project: UUID) -> None:
    """A project with the id of one that was deleted is another one, though its versions are the same."""
    await put(store, project, "a.md", "zebra")
    retrieval = Retrieval(store)
    assert paths(await retrieval.search(OWNER, project, "zebra")) == ["a.md"]
    await store.projects.delete_project(OWNER, project)
    await store.projects.create_project(OWNER, NewProject(id=project, name="Another"))
    await put(store, project, "b.md", "zebra")
    assert paths(await retrieval.search(OWNER, project, "zebra")) == ["b.md"]
    await retrieval.aclose()


async def test_only_what_changed_is_read_again(store: Store, project: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document that is added costs the reading of that document."""
    for n in range(10):
        await put(store, project, f"{n}.md", f"zebra {n}")
    retrieval = Retrieval(store)
    await retrieval.search(OWNER, project, "zebra")
    read = list[int]()
    kind: Any = type(store)
    entries = kind.index_entries

    async def counted(self: Store, owner: str, id_: UUID, ranges: Sequence[object], **options: object) -> object:
        read.append(len(ranges))
        return await entries(self, owner, id_, ranges, **options)

    monkeypatch.setattr(kind, "index_entries", counted)
    await retrieval.search(OWNER, project, "zebra")
    assert read == []
    await put(store, project, "new.md", "zebra new")
    await asyncio.gather(*(retrieval.search(OWNER, project, "zebra") for _ in range(20)))
    assert read == [1]
    await retrieval.aclose()


async def test_new_vectors_may_wait(store: Store, project: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    """While vectors are made, the index is not made anew for each set of them; after a while they are found."""
    await put(store, project, "a.md", "aaaa", vectors=True)
    await put(store, project, "b.md", "bbbb")
    retrieval = Retrieval(store, questions=Letters())
    assert paths(await retrieval.search(OWNER, project, "bbb", limit=1)) == ["a.md"]
    content = next(c for c in await store.documents.contents(OWNER, project) if c.file_path == "b.md")
    await store.documents.add_vectors(OWNER, project, content, SPACE, {0: vector_of("bbbb")})
    assert paths(await retrieval.search(OWNER, project, "bbb", limit=1)) == ["a.md"]
    await put(store, project, "c.md", "cccc", vectors=True)
    assert paths(await retrieval.search(OWNER, project, "bbb", limit=1)) == ["b.md"]
    await store.documents.add_vectors(OWNER, project, content, SPACE, {0: vector_of("bbbb")})
    await retrieval.search(OWNER, project, "bbb", limit=1)
    monkeypatch.setattr(snapshots_module, "VECTORS_MAY_WAIT", 0.0)
    assert paths(await retrieval.search(OWNER, project, "bbb", limit=1)) == ["b.md"]
    await retrieval.aclose()


async def test_replacements_under_searches(store: Store, project: UUID) -> None:
    """While documents are replaced all the time, a search finds the old text or the new one, and each document once."""
    for n in range(3):
        await put(store, project, f"{n}.md", *(f"zebra {n} {i}" for i in range(20)))
    retrieval = Retrieval(store)
    stop = asyncio.Event()

    async def replace() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            await put(store, project, f"{version % 3}.md", *(f"zebra {version} {i}" for i in range(20)))

    writer = asyncio.create_task(replace())
    for _ in range(30):
        found = await retrieval.search(OWNER, project, "zebra")
        assert sorted(paths(found)) == ["0.md", "1.md", "2.md"]
    stop.set()
    await writer
    await retrieval.aclose()


async def test_snapshots_have_a_bound(store: Store) -> None:
    """Of too many, the least used of the owner with the most leave; a search of one that left works as before."""
    projects = [(await store.projects.create_project(OWNER, NewProject(name=str(n)))).id for n in range(4)]
    for id_ in projects:
        await put(store, id_, "a.md", *(f"zebra {uuid4()}" for _ in range(50)))
    retrieval = Retrieval(store)
    await retrieval.search(OWNER, projects[0], "zebra")
    one = retrieval.snapshots.nbytes
    await retrieval.aclose()
    retrieval = Retrieval(store, limits=RetrievalLimits(memory_bytes=one * 5 // 2))
    for id_ in projects * 2:
        assert paths(await retrieval.search(OWNER, id_, "zebra")) == ["a.md"]
        assert 0 < retrieval.snapshots.nbytes <= one * 5 // 2
    await retrieval.aclose()
    assert retrieval.snapshots.nbytes == 0


async def test_a_snapshot_beyond_the_bound_is_kept_alone(store: Store, project: UUID) -> None:
    """One that is larger than all may be together is not made anew by every search."""
    await put(store, project, "a.md", *(f"zebra {uuid4()}" for _ in range(50)))
    retrieval = Retrieval(store, limits=RetrievalLimits(memory_bytes=1))
    await retrieval.search(OWNER, project, "zebra")
    first = retrieval.snapshots.nbytes
    assert first > 1
    other = (await store.projects.create_project(OWNER, NewProject(name="Other"))).id
    await put(store, other, "b.md", "zebra")
    await retrieval.search(OWNER, other, "zebra")
    assert 0 < retrieval.snapshots.nbytes < first
    await retrieval.aclose()


async def test_snapshots_that_leave_are_freed(store: Store) -> None:
    """Those that are replaced, those that are too many, and those that nobody asks: not on the event loop."""
    projects = [(await store.projects.create_project(OWNER, NewProject(name=str(n)))).id for n in range(3)]
    retrieval = Retrieval(store, limits=RetrievalLimits(memory_bytes=1, idle_seconds=0.2))
    freed = list[str]()
    for id_ in [*projects, projects[-1]]:
        await put(store, id_, f"{uuid4()}.md", "zebra")
        await retrieval.search(OWNER, id_, "zebra")
        snapshot = await retrieval.snapshots.of(await store.projects.get_project(OWNER, id_))
        weakref.finalize(snapshot.index, lambda: freed.append(threading.current_thread().name))
        del snapshot
    for _ in range(50):
        await asyncio.sleep(0.02)
    assert freed == ["chatkeep-snapshots_0"] * 4
    await retrieval.aclose()


async def test_snapshots_are_few(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small they are; the owner with the most keeps those used last, and others keep theirs."""
    monkeypatch.setattr(snapshots_module, "KEPT", 3)
    retrieval = Retrieval(store)
    projects = list[Project]()
    for owner in ("bob", OWNER, OWNER, OWNER, OWNER):
        project = await store.projects.create_project(owner, NewProject(name="Empty"))
        await retrieval.search(owner, project.id, "zebra")
        projects.append(project)
    assert [key.project for key in retrieval.snapshots._kept] == [projects[n].id for n in (0, 3, 4)]
    await retrieval.aclose()


async def test_idle_snapshots_leave(store: Store, project: UUID) -> None:
    """What nobody asks for a while is forgotten."""
    await put(store, project, "a.md", "zebra")
    retrieval = Retrieval(store, limits=RetrievalLimits(idle_seconds=0.05))
    await retrieval.search(OWNER, project, "zebra")
    assert retrieval.snapshots.nbytes
    await asyncio.sleep(0.2)
    assert not retrieval.snapshots.nbytes
    assert paths(await retrieval.search(OWNER, project, "zebra")) == ["a.md"]
    await retrieval.aclose()


async def test_too_many_vectors_are_left_to_the_database(store: Store, project: UUID) -> None:
    """A project with more chunks than may be in memory is searched by the database's vectors; without, by words."""
    await put(store, project, "a.md", "aaaa", "bbbb", vectors=True)
    retrieval = Retrieval(store, questions=Letters(), limits=RetrievalLimits(chunks_in_memory=1))
    found = await retrieval.search(OWNER, project, "bbbb")
    assert (paths(found), found.method) == (["a.md"], "lexical")
    assert "vectors" in (found.note or "")
    await retrieval.aclose()


async def test_questions_are_checked(store: Store, project: UUID) -> None:
    """Blank and endless questions, other limits and unknown projects are refused."""
    retrieval = Retrieval(store)
    for question in ("", " \n", "x" * 2_001):
        with pytest.raises(InvalidInput, match="question"):
            await retrieval.search(OWNER, project, question)
    for limit in (0, 51):
        with pytest.raises(InvalidInput, match="limit"):
            await retrieval.search(OWNER, project, "zebra", limit=limit)
    for owner, id_ in ((OWNER, uuid4()), ("another", project)):
        with pytest.raises(NotFound):
            await retrieval.search(owner, id_, "zebra")
    assert (await retrieval.search(OWNER, project, "\ud800 … ?!")).items == []
    await retrieval.aclose()


async def test_a_search_ends_in_time(store: Store, project: UUID, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits too long for an index is told to come again, and finds it ready then."""
    await put(store, project, "a.md", "zebra")
    kind: Any = type(store)
    entries = kind.index_entries

    async def slow(*arguments: object, **options: object) -> object:
        await asyncio.sleep(0.3)
        return await entries(*arguments, **options)

    monkeypatch.setattr(kind, "index_entries", slow)
    retrieval = Retrieval(store, limits=RetrievalLimits(seconds=0.1))
    began = time.monotonic()
    with pytest.raises(StoreUnavailable, match="again"):
        await retrieval.search(OWNER, project, "zebra")
    assert time.monotonic() - began < 0.25
    await asyncio.sleep(0.4)
    assert paths(await retrieval.search(OWNER, project, "zebra")) == ["a.md"]
    await retrieval.aclose()
