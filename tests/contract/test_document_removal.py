"""Uploads and removals that are cut off: nothing of them is seen, and the next run ends as one run does."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep import Conflict, ImportedConversation, NewConversation, NotFound, Store, open_store
from chatkeep.documents import document_id
from chatkeep.projects import NewProject
from chatkeep.stores.base import RowStore
from chatkeep.stores.documents import DocumentStore
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.testing import someone, user, whole_list
from chatkeep.testing.document_steps import SPACE, a_project, content_of, put, said, searchable, whole
from conftest import STORES

LONG = {"postgres", "mongodb"}  # whose rows have tests of their own, which are always run


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.long if name in LONG else ()) for name in STORES])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty store, of each kind in turn."""
    return STORES[request.param](tmp_path)


class CutOffError(Exception):
    """The process is killed here."""


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """Each store in turn."""
    async with open_store(store_url) as store:
        yield store


@pytest.fixture
def owner() -> str:
    """Somebody."""
    return someone()


@pytest.fixture
def cut_off(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that has a method of every store raise at its call with a number, from 0."""

    def cut(method: str, at: int) -> None:
        real, calls = getattr(DocumentStore, method), iter(range(10**6))

        async def called(self: Any, *arguments: Any, **options: Any) -> Any:
            if next(calls) == at:
                raise CutOffError
            return await real(self, *arguments, **options)

        monkeypatch.setattr(DocumentStore, method, called)

    yield cut
    monkeypatch.undo()


async def raw(store: Store) -> Any:
    """The store, to work on its rows."""
    assert isinstance(store, RowStore)
    return store


async def counted(store: Store, owner: str) -> tuple[int, int, int]:
    """Erase an owner, and return how many documents, chunks and vectors there were."""
    receipt = await store.erase_owner(owner)
    assert receipt.remaining == 0
    return receipt.documents, receipt.chunks, receipt.vectors


@pytest.mark.parametrize("before", [None, "before"])
@pytest.mark.parametrize(
    ("method", "at"), [("_store_slice", 0), ("_store_slice", 2), ("_show", 0), ("_remove_rubbish", 0)]
)
async def test_upload_that_is_cut_off(
    store: Store,
    owner: str,
    cut_off: Any,
    monkeypatch: pytest.MonkeyPatch,
    before: str | None,
    method: str,
    at: int,
) -> None:
    """Nothing of what is half stored is seen; storing it again ends as one run does, and leaves nothing else."""
    id_ = await a_project(store, owner)
    if before:
        await put(store, owner, id_, "tea.md", before, 200, space=SPACE)
    elif method == "_remove_rubbish":
        return  # there is none
    version = (await store.projects.get_project(owner, id_)).version
    cut_off(method, at)
    with pytest.raises(CutOffError):
        await put(store, owner, id_, "tea.md", "tea", 400, space=SPACE)
    monkeypatch.undo()
    is_shown = method == "_remove_rubbish"
    seen = {"tea.md": said("tea", 400, with_vectors=True)}
    unchanged = {"tea.md": said(before, 200, with_vectors=True)} if before else {}
    assert await searchable(store, owner, id_) == (seen if is_shown else unchanged)
    assert ((await store.projects.get_project(owner, id_)).version > version) is is_shown
    if not before:
        with pytest.raises(NotFound):
            await store.documents.get_document(owner, id_, document_id(id_, "tea.md"))
    stored = await put(store, owner, id_, "tea.md", "tea", 400, space=SPACE)
    assert stored.change == ("unchanged" if is_shown else "replaced" if before else "new")
    assert await searchable(store, owner, id_) == seen
    await store.migrate()
    assert await searchable(store, owner, id_) == seen
    assert await counted(store, owner) == (1, 400, 400)


async def test_upload_that_is_cut_off_and_given_up(
    store: Store, owner: str, cut_off: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stores another text after that leaves nothing of the one that was cut off."""
    id_ = await a_project(store, owner)
    await put(store, owner, id_, "tea.md", "before", 3)
    cut_off("_show", 0)
    with pytest.raises(CutOffError):
        await put(store, owner, id_, "tea.md", "tea", 400, space=SPACE)
    monkeypatch.undo()
    await put(store, owner, id_, "tea.md", "mint", 2)
    assert await searchable(store, owner, id_) == {"tea.md": said("mint", 2)}
    assert await store.documents.chunks(owner, id_, [whole(content_of(id_, "tea.md", "tea", 400))]) == []
    assert await counted(store, owner) == (1, 2, 0)


@pytest.mark.parametrize("way", ["store", "delete"])
async def test_upload_that_is_overtaken(store: Store, owner: str, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """Who is between two slices while another text is stored, or the document deleted, raises Conflict and leaves
    nothing."""
    id_ = await a_project(store, owner)
    await put(store, owner, id_, "tea.md", "before", 3)
    real: Any = DocumentStore._store_slice

    async def overtaken(self: Any, upload: Any, first: int, chunks: Any) -> None:
        if first:
            monkeypatch.undo()
            if way == "store":
                await put(store, owner, id_, "tea.md", "mint", 2)
            else:
                await store.documents.delete_document(owner, id_, upload.key.id)
        await real(self, upload, first, chunks)

    monkeypatch.setattr(DocumentStore, "_store_slice", overtaken)
    with pytest.raises(Conflict):
        await put(store, owner, id_, "tea.md", "tea", 400)
    assert await searchable(store, owner, id_) == ({"tea.md": said("mint", 2)} if way == "store" else {})
    assert await counted(store, owner) == ((1, 2, 0) if way == "store" else (0, 0, 0))


async def test_deletion_that_is_cut_off(
    store: Store, owner: str, cut_off: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A document whose removal is cut off is gone; its path is free; a migration removes the rest."""
    id_ = await a_project(store, owner)
    for path in ("a.md", "b.md"):
        await put(store, owner, id_, path, "tea", 300, space=SPACE)
        cut_off("_remove_rubbish", 0)
        with pytest.raises(CutOffError):
            await store.documents.delete_document(owner, id_, document_id(id_, path))
        monkeypatch.undo()
        assert await searchable(store, owner, id_) == {}
    assert (await put(store, owner, id_, "b.md", "mint", 2, space=SPACE)).change == "new"
    assert await searchable(store, owner, id_) == {"b.md": said("mint", 2, with_vectors=True)}
    await store.migrate()
    assert await searchable(store, owner, id_) == {"b.md": said("mint", 2, with_vectors=True)}
    assert await counted(store, owner) == (1, 2, 2)


async def half_removed(store: Store, owner: str) -> UUID:
    """A project whose removal was cut off when it was hidden."""
    id_ = await a_project(store, owner)
    await put(store, owner, id_, "tea.md", "tea", 300, space=SPACE)
    talk = await store.create_conversation(owner, NewConversation(project_id=id_))
    await store.append(owner, talk.id, user("sage"))
    assert await (await raw(store))._write(lambda rows: rows.hide_project(ProjectKey(stored(store, owner), id_)))
    return id_


def stored(store: Store, owner: str) -> str:
    """The owner as the database stores it."""
    assert isinstance(store, RowStore)
    return store._stored_owner(owner)


async def test_removal_of_a_project_that_is_cut_off(store: Store, owner: str) -> None:
    """A project that is half removed is gone for every call; a migration removes the rest."""
    id_ = await half_removed(store, owner)
    document = document_id(id_, "tea.md")
    for call in (
        store.projects.get_project(owner, id_),
        store.documents.contents(owner, id_),
        store.documents.get_document(owner, id_, document),
        store.documents.document_chunks(owner, id_, document),
        store.documents.chunks(owner, id_, [whole(content_of(id_, "tea.md", "tea", 3))]),
        store.documents.count_vectors(owner, id_, SPACE),
        store.documents.claim_embedding(owner, id_, uuid4()),
        store.documents.use_space(owner, id_, SPACE),
        store.documents.delete_document(owner, id_, document),
        store.create_conversation(owner, NewConversation(project_id=id_)),
        put(store, owner, id_, "mint.md", "mint"),
    ):
        with pytest.raises(NotFound):
            await call
    page = await store.projects.list_projects(owner, total=True)
    assert (page.items, page.total) == ([], 0)
    await store.migrate()
    assert await whole_list(store, owner) == []
    receipt = await store.erase_owner(owner)
    assert (receipt.projects, receipt.documents, receipt.chunks, receipt.vectors, receipt.conversations) == (0,) * 5


@pytest.mark.parametrize("way", ["create", "import", "delete", "erase"])
async def test_what_ends_a_removal_that_is_cut_off(store: Store, owner: str, way: str) -> None:
    """Whoever needs the id of a project that is half removed, or removes it again, ends its removal."""
    id_ = await half_removed(store, owner)
    if way == "create":
        made = await store.projects.create_project(owner, NewProject(id=id_, name="Again"))
        assert (made.documents, made.space) == (0, None)
    elif way == "import":
        new = ImportedConversation(id=uuid4(), project_id=id_, project_name="Again")
        assert (await store.import_conversation(owner, new)).created
        await store.migrate()
        assert [each.id for each in await whole_list(store, owner, project_id=id_)] == [new.id]
    elif way == "delete":
        await store.projects.delete_project(owner, id_)
    else:
        receipt = await store.erase_owner(owner)
        assert (receipt.projects, receipt.documents, receipt.chunks, receipt.vectors) == (1, 1, 300, 300)
        assert (receipt.conversations, receipt.messages) == (1, 1)
    if way in ("create", "import"):
        assert (await store.projects.get_project(owner, id_)).name == "Again"
        assert await searchable(store, owner, id_) == {}
        assert len(await whole_list(store, owner)) == (way == "import")
    assert await counted(store, owner) == (0, 0, 0)
