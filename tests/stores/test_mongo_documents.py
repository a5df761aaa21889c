"""Projects and documents in MongoDB: what is stored and sent, conflicts, owners who are renamed, old processes."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import timedelta
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from mongo_commands import Commands, commands_sent, failing_commands
from pymongo.errors import WriteError

from chatkeep import Conflict, NewConversation, NotFound, Store, open_store
from chatkeep.documents import Chunk, ChunkRange, Document, NewChunk, NewDocument, document_id
from chatkeep.projects import NewProject
from chatkeep.stores.mongo import moves
from chatkeep.stores.mongo import projects as statements
from chatkeep.stores.mongo.rows import MongoRows
from chatkeep.stores.mongo.store import MongoStore
from chatkeep.stores.project_rows import DocumentKey, ProjectKey
from chatkeep.testing import whole_list
from servers.mongo import mongo_databases

OWNER, OTHER = "$ada", "$$NOW"
"""Texts that a pipeline would evaluate."""

SPACE = "$m/1"


@pytest.fixture
def sent() -> Iterator[Commands]:
    """Every command that the stores of this test send, in order."""
    with commands_sent() as sent:
        yield sent


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return mongo_databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[MongoStore]:
    """A store on it."""
    async with open_store(url) as store:
        assert isinstance(store, MongoStore)
        yield store


def raw(url: str) -> Any:
    """The database, without chatkeep."""
    return mongo_databases().database(url)


def counts(url: str) -> dict[str, int]:
    """How much there is of projects."""
    return {name: raw(url)[name].count_documents({}) for name in ("projects", "documents", "chunks", "vectors")}


NOTHING = {"projects": 0, "documents": 0, "chunks": 0, "vectors": 0}


def made(path: str = "$a.md", sha256: str = "0") -> NewDocument:
    """A document to be stored."""
    return NewDocument(file_path=path, media_type="text/markdown", bytes=2**40, sha256=64 * sha256)


def some(count: int, text: str = "$tea", *, vectors: bool = True) -> list[NewChunk]:
    """Chunks with what a search needs of them."""
    return [
        NewChunk(
            f"{text} {n}", "#tea" if n else None, "$Tea", n, n.to_bytes(4, "little"), bytes(4) if vectors else None
        )
        for n in range(count)
    ]


async def project(store: Store, owner: str = OWNER, **values: Any) -> UUID:
    """Create a project."""
    return (await store.projects.create_project(owner, NewProject(name="$kitchen", **values))).id


async def put(store: Store, id_: UUID, new: NewDocument | None = None, owner: str = OWNER, count: int = 3) -> Document:
    """Store a document in a project."""
    new = new or made()
    chunks = some(count, f"{new.file_path} {new.sha256[0]}")
    return (await store.documents.store_document(owner, id_, new, chunks, space=SPACE)).document


async def texts(store: Store, owner: str, id_: UUID) -> dict[str, list[str]]:
    """The texts of an owner's documents by their paths; none without the project."""
    try:
        found = await store.documents.contents(owner, id_)
    except NotFound:
        return {}
    chunks = {each.file_path: await store.documents.document_chunks(owner, id_, each.document_id) for each in found}
    return {path: [chunk.text for chunk in those] for path, those in chunks.items()}


# --- what is stored and sent -----------------------------------------------------------------------------


async def test_what_is_stored(url: str, store: MongoStore) -> None:
    """What is absent has no field; ids are binary, terms and vectors as they came."""
    id_ = await project(store)
    document = await put(store, id_)
    found = raw(url).projects.find_one()
    assert (found["_id"], found["space"], found["documents"], found["chunks"]) == ({"o": OWNER, "p": id_}, SPACE, 1, 3)
    assert {"metadata", "deleted_at", "embedding_worker"}.isdisjoint(found)
    found = raw(url).documents.find_one()
    assert found["_id"] == {"o": OWNER, "p": id_, "d": document.id}
    assert (found["bytes"], found["version"], found["chunks"]) == (2**40, 1, 3)
    assert {"title", "staged", "has_rubbish"}.isdisjoint(found)
    chunks = list(raw(url).chunks.find().sort("n"))
    assert [("header_anchor" in each, each["n"], each["terms"]) for each in chunks] == [
        (n > 0, n, n.to_bytes(4, "little")) for n in range(3)
    ]
    assert [(each["space"], each["vector"]) for each in raw(url).vectors.find()] == [(SPACE, bytes(4))] * 3


@pytest.mark.parametrize(
    ("collection", "values"),
    [
        ("projects", {"documents": -1}),
        ("projects", {"space": 7}),
        ("documents", {"has_rubbish": False}),
        ("documents", {"content": "a"}),
        ("documents", {"file_path": None}),
        ("chunks", {"n": -1}),
        ("chunks", {"terms": "a"}),
        ("chunks", {"text": None}),
        ("vectors", {"vector": [1.0]}),
        ("vectors", {"owner_id": None}),
    ],
)
async def test_validators_refuse(url: str, store: MongoStore, collection: str, values: dict[str, Any]) -> None:
    """Types are the database's own rules."""
    await put(store, await project(store), count=1)
    good = raw(url)[collection].find_one()
    with pytest.raises(WriteError) as caught:
        raw(url)[collection].insert_one({**good, "_id": "x", "owner_id": "x", **values})
    assert caught.value.code == 121
    raw(url)[collection].insert_one({**good, "_id": "x", "owner_id": "x"})


async def test_many_ranges_are_read_in_parts(
    store: MongoStore, sent: Commands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several documents, in the order that was asked for; without the texts where those are not needed."""
    id_ = await project(store)
    for path in ("a", "b", "c"):
        await put(store, id_, made(path), count=10)
    found = {each.file_path: each for each in await store.documents.contents(OWNER, id_)}
    wanted = [("c", 0, 9), ("a", 8, 12), ("b", 2, 2), ("c", 3, 3), ("b", 20, 30)]
    ranges = [ChunkRange(found[path].document_id, found[path].id, first, last) for path, first, last in wanted]
    numbers = [list(range(first, min(last, 9) + 1)) for _, first, last in wanted]
    for most in (4, 7, 200):
        for name in ("BATCH", "RANGES"):
            monkeypatch.setattr(statements, name, most)
        sent.clear()
        entries = await store.documents.index_entries(OWNER, id_, ranges, space=SPACE)
        assert [[(each.n, each.terms) for each in those] for those in entries] == [
            [(n, n.to_bytes(4, "little")) for n in those] for those in numbers
        ]
        assert {each.vector for those in entries for each in those} == {bytes(4)}
        assert {"text" in each["projection"] for each in sent} == {False}
        chunks = await store.documents.chunks(OWNER, id_, ranges)
        assert [each.n for each in chunks] == [n for those in numbers for n in those]
        assert chunks[0] == Chunk(ranges[0].document_id, 0, "c 0 0", None, "$Tea", 0)
    few = await store._read(lambda rows: rows.chunks(ProjectKey(OWNER, id_), ranges, 12))
    assert [each.text for each in few] == ["c 0 0", "c 0 1"]
    assert len(await store._read(lambda rows: rows.chunks(ProjectKey(OWNER, id_), ranges, 1))) == 1


async def test_the_first_chunks_without_vectors(store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the vectors that are there are the first ones, or not."""
    monkeypatch.setattr(statements, "BATCH", 3)
    id_ = await project(store)
    await store.documents.store_document(OWNER, id_, made(), some(10, vectors=False))
    (content,) = await store.documents.contents(OWNER, id_)

    async def missing(limit: int = 64) -> list[int]:
        found = await store.documents.without_vectors(OWNER, id_, content, SPACE, limit=limit)
        return [each.n for each in found]

    assert await missing() == list(range(10))
    for numbers, rest in (((0, 1, 2, 3), [4, 5, 6, 7, 8, 9]), ((5, 6, 20), [4, 7, 8, 9]), ((4,), [7, 8, 9])):
        for _ in range(2):  # those that are there stay
            vectors = dict.fromkeys(numbers, bytes(4))
            assert await store.documents.add_vectors(OWNER, id_, content, SPACE, vectors)
        assert await missing() == rest
        assert await missing(limit=2) == rest[:2]
    assert await store.documents.count_vectors(OWNER, id_, SPACE) == {content.id: 7}


async def test_a_lease_goes_by_the_clock_of_the_server(url: str, store: MongoStore, sent: Commands) -> None:
    """One worker has it; it is written when a third is over, and given back; its pipeline has no text of users."""
    id_, workers = await project(store), [uuid4(), uuid4()]

    async def claim(worker: int, seconds: float = 60) -> bool:
        lease = timedelta(seconds=seconds)
        return await store.documents.claim_embedding(OWNER, id_, workers[worker], lease=lease)

    sent.clear()
    assert [await claim(0), await claim(1), await claim(0)] == [True, False, True]
    first = raw(url).projects.find_one()["embedding_until"]
    assert [await claim(0, 80), raw(url).projects.find_one()["embedding_until"] == first] == [True, True]
    assert [await claim(0, 100), raw(url).projects.find_one()["embedding_until"] > first] == [True, True]
    assert [await claim(1, 0), await claim(1), await claim(0, 0), await claim(1), await claim(0)] == [
        False,
        False,
        True,
        True,
        False,
    ]
    pipelines = [each["update"] for each in sent if "findAndModify" in each]
    assert len(pipelines) == 10
    assert {text for each in pipelines for text in texts_of(each)} == {
        "$embedding_until",
        "$embedding_worker",
        "$$NOW",
    }
    await store.projects.delete_project(OWNER, id_)
    with pytest.raises(NotFound):
        await claim(0)


def texts_of(value: Any) -> set[str]:
    """All values of a pipeline that are text."""
    if isinstance(value, Mapping):
        return set().union(*map(texts_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(texts_of, value))
    return {value} if isinstance(value, str) else set()


# --- conflicts -------------------------------------------------------------------------------------------


async def test_locks_are_writes(url: str, store: MongoStore) -> None:
    """Of two transactions that lock one project, or one document, MongoDB refuses one: each writes it."""
    id_ = await project(store)
    document = await put(store, id_)
    keys = ProjectKey(OWNER, id_), DocumentKey(OWNER, id_, document.id)
    before = [raw(url)[name].find_one()["locks"] for name in ("projects", "documents")]
    await store._write(lambda rows: rows.project(keys[0]))
    await store._write(lambda rows: rows.document(keys[1]))
    assert [raw(url)[name].find_one()["locks"] for name in ("projects", "documents")] == before
    await store._write(lambda rows: rows.project(keys[0], lock=True))
    await store._write(lambda rows: rows.document(keys[1], lock=True))
    assert [raw(url)[name].find_one()["locks"] for name in ("projects", "documents")] == [n + 1 for n in before]


CONFLICT = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}
LATE = {"writeConcernError": {"code": 64, "errmsg": "waiting for replication timed out"}}


@pytest.mark.parametrize(
    ("command", "failure"),
    [
        *((command, CONFLICT) for command in ("findAndModify", "insert", "update", "delete", "commitTransaction")),
        ("commitTransaction", LATE),
        ("commitTransaction", {"closeConnection": True}),
    ],
)
async def test_conflicts_and_lost_answers(url: str, store: MongoStore, command: str, failure: dict[str, Any]) -> None:
    """Every step is repeated, and does once what it does."""

    async def told(call: Any) -> Any:
        with failing_commands() as failing, failing({"times": 1}, command, **failure):
            return await call

    id_: UUID = await told(project(store))
    await told(put(store, id_))
    document = await told(put(store, id_, made(sha256="1")))
    assert await texts(store, OWNER, id_) == {"$a.md": [f"$a.md 1 {n}" for n in range(3)]}
    assert counts(url) == {"projects": 1, "documents": 1, "chunks": 3, "vectors": 3}
    assert raw(url).projects.find_one()["documents"] == 1
    assert await told(store.documents.delete_document(OWNER, id_, document.id))
    assert counts(url) == NOTHING | {"projects": 1}
    assert await told(store.projects.delete_project(OWNER, id_))
    assert counts(url) == NOTHING


async def test_two_processes_store_and_replace(url: str, store: MongoStore) -> None:
    """One text of each path is there in the end, whole, and the project has counted it."""
    id_ = await project(store)
    async with open_store(url) as other:
        calls = [put((store, other)[n % 2], id_, made(f"{n % 2}.md", f"{n}")) for n in range(6)]
        done = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(each) for each in done} <= {Document, Conflict}
    found = await texts(store, OWNER, id_)
    assert [len(those) for those in found.values()] == [3, 3]
    assert all(len({text.split()[1] for text in those}) == 1 for those in found.values())
    kept = await store.projects.get_project(OWNER, id_)
    assert (kept.documents, kept.chunks) == (2, 6)


# --- removal ---------------------------------------------------------------------------------------------


async def test_a_conversation_that_comes_too_late(url: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Created while its project is deleted, behind the look for it: its maker is told, and it is nowhere."""
    id_ = await project(store)
    await put(store, id_)
    has_project = MongoRows.has_project

    async def early(rows: MongoRows, owner: str, project_id: UUID) -> bool:
        found = await has_project(rows, owner, project_id)
        monkeypatch.setattr(MongoRows, "has_project", has_project)
        await store.projects.delete_project(OWNER, id_)
        return found

    monkeypatch.setattr(MongoRows, "has_project", early)
    with pytest.raises(NotFound, match="project"):
        await store.create_conversation(OWNER, NewConversation(project_id=id_))
    assert await whole_list(store, OWNER) == []
    assert counts(url) == NOTHING
    assert raw(url).conversations.count_documents({}) == 0


async def test_a_project_that_was_made_again_is_not_purged(url: str, store: MongoStore) -> None:
    """Whoever saw the one before being removed removes nothing of it."""
    id_ = await project(store)
    await put(store, id_)
    talk = await store.create_conversation(OWNER, NewConversation(project_id=id_))
    before = counts(url)
    assert (await store._purge_project(ProjectKey(OWNER, id_))).chunks == 0
    assert (counts(url), await whole_list(store, OWNER)) == (before, [talk])


async def test_a_removal_in_slices_that_was_cut_off(
    url: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on when the store is opened again, also that of a document."""
    monkeypatch.setattr(statements, "PURGED", 4)
    ids = [await project(store) for _ in range(2)]
    for id_ in ids:
        await put(store, id_, made("a"), count=10)
        await put(store, id_, made("b"), count=3)
    await store.create_conversation(OWNER, NewConversation(project_id=ids[0]))
    await store._write(lambda rows: rows.hide_project(ProjectKey(OWNER, ids[0])))
    key = DocumentKey(OWNER, ids[1], document_id(ids[1], "a"))
    await store._write(lambda rows: store._hide_document(rows, key))
    removed = await store._write(lambda rows: rows.purge_project(ProjectKey(OWNER, ids[0])))
    assert removed is not None
    assert removed.vectors == 4
    removed = await store._write(lambda rows: rows.remove_rubbish(key, []))
    assert removed is not None
    assert (removed.chunks, removed.vectors) == (4, 4)
    async with open_store(url):
        assert counts(url) == {"projects": 1, "documents": 1, "chunks": 3, "vectors": 3}
        assert raw(url).conversations.count_documents({}) == 0
    receipt = await store.erase_owner(OWNER)
    assert (receipt.projects, receipt.documents, receipt.chunks, receipt.vectors, receipt.remaining) == (1, 1, 3, 3, 0)
    assert raw(url).users.count_documents({}) == 0


async def test_what_a_process_of_0004_erases(url: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It removes projects alone: their documents are counted as left, and the next erasure removes them."""
    for _ in range(2):
        await put(store, await project(store))
    raw(url).projects.delete_many({})
    with monkeypatch.context() as patch:
        patch.setattr(MongoRows, "projects_with_documents", nothing)
        assert (await store.erase_owner(OWNER)).remaining == 2 + 6 + 6
    receipt = await store.erase_owner(OWNER)
    assert (receipt.documents, receipt.chunks, receipt.remaining) == (2, 6, 0)
    assert counts(url) == NOTHING


async def nothing(*_: object) -> list[UUID]:
    """An answer."""
    return []


async def test_a_project_that_is_created_during_an_erasure(
    url: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is counted, and its owner stays noted."""
    await project(store)
    forget = MongoRows._forget_owner

    async def late(rows: MongoRows, owner: str) -> bool:
        await project(store)
        return await forget(rows, owner)

    monkeypatch.setattr(MongoRows, "_forget_owner", late)
    assert (await store.erase_owner(OWNER)).remaining == 1
    assert [each["_id"] for each in raw(url).users.find()] == [OWNER]


# --- another name ----------------------------------------------------------------------------------------

STEPS = [
    "stage_copy",
    "copy_chunks",
    "give_document",
    "leave_document",
    "remove_rubbish",
    "remove_document",
    "end_rename",
    "leave_project",
]


class Killed(BaseException):
    """The process ends here."""


async def in_one_place(store: Store, id_: UUID) -> dict[str, list[str]]:
    """The texts of a project's documents, each of which one owner has, who has counted them."""
    found = {owner: await texts(store, owner, id_) for owner in (OWNER, OTHER)}
    assert found[OWNER].keys().isdisjoint(found[OTHER])
    for owner, those in found.items():
        if those:
            kept = await store.projects.get_project(owner, id_)
            assert (kept.documents, kept.chunks) == (len(those), sum(map(len, those.values())))
    return found[OWNER] | found[OTHER]


@pytest.mark.long
async def test_a_rename_that_is_killed(url: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After any step each document is one owner's, whole; called again, the new owner has everything."""
    monkeypatch.setattr(moves, "COPIED", 2)
    step, total = 0, 1
    while step < total:
        id_ = await project(store)
        await put(store, id_)
        expected = await texts(store, OWNER, id_)
        await store.create_conversation(OWNER, NewConversation(project_id=id_))
        total = await killed(store, step, monkeypatch)
        assert await in_one_place(store, id_) == expected
        await store.rename_owner(OWNER, OTHER)
        assert await texts(store, OTHER, id_) == expected
        found = await store.projects.get_project(OTHER, id_)
        assert (found.space, found.documents, found.chunks) == (SPACE, 1, 3)
        assert sum((await store.documents.count_vectors(OTHER, id_, SPACE)).values()) == 3
        assert counts(url) == {"projects": 1, "documents": 1, "chunks": 3, "vectors": 3}
        assert {each["_id"] for each in raw(url).users.find()} == {OTHER}
        assert [each.project_id for each in await whole_list(store, OTHER)] == [id_]
        mongo_databases().clean()
        step += 1
    assert total >= 10


async def killed(store: Store, step: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Rename, and be killed after so many steps; return how many there are."""
    done = 0

    def counted(method: Any) -> Any:
        async def call(*arguments: Any) -> Any:
            nonlocal done
            result = await method(*arguments)
            done += 1
            if done == step + 1:
                raise Killed
            return result

        return call

    with monkeypatch.context() as patch:
        for name in STEPS:
            patch.setattr(MongoRows, name, counted(getattr(MongoRows, name)))
        try:
            await store.rename_owner(OWNER, OTHER)
        except (Killed, asyncio.CancelledError):
            return step + 2
    return done


@pytest.mark.parametrize("change", ["replaced", "deleted", "vectors", "rubbish"])
async def test_a_document_that_changes_while_it_is_copied(
    url: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What moves is what it is in the end."""
    id_ = await project(store)
    document = await put(store, id_)
    (content,), before = await store.documents.contents(OWNER, id_), await texts(store, OWNER, id_)
    copy_chunks = store._copy_chunks

    async def late(*arguments: Any) -> None:
        monkeypatch.setattr(store, "_copy_chunks", copy_chunks)
        await copy_chunks(*arguments)
        if change == "replaced":
            await put(store, id_, made(sha256="1"))
        elif change == "deleted":
            await store.documents.delete_document(OWNER, id_, document.id)
        elif change == "vectors":
            raw(url).vectors.delete_many({"n": 1})
            assert await store.documents.add_vectors(OWNER, id_, content, SPACE, {1: b"new!"})
        else:
            raw(url).chunks.delete_one({"owner_id": OTHER, "n": 1})

    monkeypatch.setattr(store, "_copy_chunks", late)
    await store.rename_owner(OWNER, OTHER)
    found = await texts(store, OTHER, id_)
    if change == "deleted":
        assert found == {}
    elif change == "replaced":
        assert found == {"$a.md": [f"$a.md 1 {n}" for n in range(3)]}
    else:
        assert found == before
    if change == "vectors":
        assert raw(url).vectors.find_one({"n": 1})["vector"] == b"new!"
    left = {} if change == "deleted" else {"documents": 1, "chunks": 3, "vectors": 3}
    assert counts(url) == NOTHING | {"projects": 1} | left
    await in_one_place(store, id_)


async def test_an_upload_while_its_owner_is_renamed(url: str, store: MongoStore) -> None:
    """It fails, or stays with the old name, and moves with the next call; nothing is left of one that fails."""
    id_ = await project(store)
    await put(store, id_, made("a"))
    stored = [asyncio.create_task(put(store, id_, made(f"{n}"))) for n in range(4)]
    await store.rename_owner(OWNER, OTHER)
    done = await asyncio.gather(*stored, return_exceptions=True)
    assert {type(each) for each in done} <= {Document, Conflict, NotFound}
    paths = {each.file_path for each in done if isinstance(each, Document)}
    assert (await in_one_place(store, id_)).keys() == {"a"} | paths
    await store.rename_owner(OWNER, OTHER)
    assert (await texts(store, OTHER, id_)).keys() == {"a"} | paths
    count = 1 + len(paths)
    assert counts(url) == {"projects": 1, "documents": count, "chunks": 3 * count, "vectors": 3 * count}


async def test_projects_that_both_owners_have(url: str, store: MongoStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is moved, but where the new owner's is a copy, in which both have documents: with other paths."""
    id_ = await project(store)
    await put(store, id_, made("a"))
    await project(store, OTHER, id=id_)
    with pytest.raises(Conflict, match="delete one of them"):
        await store.rename_owner(OWNER, OTHER)
    await store.projects.delete_project(OTHER, id_)
    with monkeypatch.context() as patch:
        patch.setattr(store, "_move_document", nothing)
        await store.rename_owner(OWNER, OTHER)
    assert raw(url).projects.find_one({"owner_id": OTHER})["moved_from"] == OWNER
    await put(store, id_, made("b", "1"), OTHER)
    await put(store, id_, made("b"))
    with pytest.raises(Conflict):
        await store.rename_owner(OWNER, OTHER)
    assert [len(await texts(store, owner, id_)) for owner in (OWNER, OTHER)] == [2, 1]
    await store.documents.delete_document(OWNER, id_, document_id(id_, "b"))
    await store.rename_owner(OWNER, OTHER)
    expected = {"a": [f"a 0 {n}" for n in range(3)], "b": [f"b 1 {n}" for n in range(3)]}
    assert await in_one_place(store, id_) == await texts(store, OTHER, id_) == expected
    assert counts(url) == {"projects": 1, "documents": 2, "chunks": 6, "vectors": 6}
    assert "moved_from" not in raw(url).projects.find_one()


async def test_what_a_process_of_0004_renames(url: str, store: MongoStore) -> None:
    """It moves projects alone, with what they have counted: the next call moves the documents, and counts."""
    id_ = await project(store)
    await put(store, id_)
    found = raw(url).projects.find_one()
    raw(url).projects.insert_one({**found, "_id": {"o": OTHER, "p": id_}, "owner_id": OTHER})
    raw(url).projects.delete_many({"owner_id": OWNER})
    assert await texts(store, OTHER, id_) == {}
    await store.rename_owner(OWNER, OTHER)
    assert (await texts(store, OTHER, id_)).keys() == {"$a.md"}
    assert counts(url) == {"projects": 1, "documents": 1, "chunks": 3, "vectors": 3}
    await in_one_place(store, id_)


# --- revisions -------------------------------------------------------------------------------------------


async def test_down_and_up(url: str) -> None:
    """Documents are lost; projects stay, but those that were being removed, and their conversations go."""
    url = mongo_databases().empty()
    async with open_store(url) as store:
        ids = [await project(store) for _ in range(2)]
        for id_ in ids:
            await put(store, id_)
            await store.create_conversation(OWNER, NewConversation(project_id=id_))
        mongo = cast("MongoStore", store)
        await mongo._write(lambda rows: rows.hide_project(ProjectKey(OWNER, ids[1])))
        await store.migrate("0004")
        (kept,) = raw(url).projects.find()
        assert kept.keys() == {"_id", "owner_id", "id", "name", "created_at", "updated_at"}
        assert {"documents", "chunks", "vectors"}.isdisjoint(raw(url).list_collection_names())
        await store.migrate()
        found = await store.projects.get_project(OWNER, ids[0])
        assert (found.documents, found.chunks, found.space, found.version) == (0, 0, None, 0)
        assert [each.project_id for each in await whole_list(store, OWNER)] == [ids[0]]
        await put(store, ids[0])
        assert counts(url) == {"projects": 1, "documents": 1, "chunks": 3, "vectors": 3}
        assert raw(url).conversations.count_documents({}) == 1
    raw(url).client.drop_database(raw(url).name)
