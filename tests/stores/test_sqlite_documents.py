"""Documents in a SQLite file: what is erased, what a killed removal leaves, renaming, older processes, page by page."""

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import apsw
import pytest
from document_rows import OTHER_SPACE, OWNER, SPACE, TABLES, VECTOR, chunks, content_of, make, new_document, work

from chatkeep import NewConversation, Store, open_store
from chatkeep.documents import Chunk, ChunkRange, NewChunk, content_id
from chatkeep.errors import Conflict, NotFound
from chatkeep.projects import NewProject
from chatkeep.stores.project_rows import DocumentKey, ProjectKey
from chatkeep.stores.slices import Removed
from chatkeep.stores.sqlite import projects as sqlite_projects
from chatkeep.stores.sqlite.rows import SqliteRows
from chatkeep.testing import user
from chatkeep.turns import TurnKey


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """A store in this file."""
    async with open_store(f"sqlite:///{path}") as store:
        yield store


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removals in slices of a few rows."""
    monkeypatch.setattr(sqlite_projects, "CHUNK_SLICE", 3)


def execute(path: Path, statement: str, *values: Any, keys: bool = True) -> list[Any]:
    """Look into a file, or change it, from outside."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute(f"PRAGMA foreign_keys = {'ON' if keys else 'OFF'}")
        return cast("list[Any]", connection.execute(statement, values).fetchall())


def counts(path: Path, owner: str = OWNER) -> tuple[int, ...]:
    """How many projects, documents, chunks and vectors an owner has."""
    found = [execute(path, f"SELECT count(*) FROM {table} WHERE owner_id = ?", owner) for table in TABLES]
    return tuple(rows[0][0] for rows in found)


async def read(store: Store, key: ProjectKey, ranges: Sequence[ChunkRange], max_bytes: int) -> list[Chunk]:
    """Read chunks, with a bound of their size."""
    return await work(store, lambda rows: rows.chunks(key, ranges, max_bytes))


async def add_chunks(store: Store, key: DocumentKey, content: UUID, count: int) -> None:
    """Add chunks of a content that the document need not have."""
    await work(store, lambda rows: rows.add_chunks(key, content, 0, chunks(count)))


async def add_vectors(store: Store, key: DocumentKey, content: UUID, space: str, vectors: Mapping[int, bytes]) -> None:
    """Add vectors of chunks of a content."""
    await work(store, lambda rows: rows.add_vectors(key, content, space, vectors))


# --- what is read -----------------------------------------------------------------------------------------


async def test_entries_of_many_ranges(store: Store) -> None:
    """Each range has its own chunks, by number, with the vectors of the space that was asked for."""
    project, key = await make(store)
    content = await content_of(store, key)
    ranges = [
        ChunkRange(key.id, content.id, 7, 99),
        ChunkRange(key.id, uuid4(), 0, 9),
        ChunkRange(key.id, content.id, 2, 3),
    ]
    found = await store.documents.index_entries(OWNER, project.id, ranges, space=SPACE)
    assert [[(each.n, each.terms, each.vector) for each in some] for some in found] == [
        [(n, n.to_bytes(4, "little"), VECTOR) for n in (7, 8, 9)],
        [],
        [(n, n.to_bytes(4, "little"), VECTOR) for n in (2, 3)],
    ]
    for space in (None, OTHER_SPACE):
        (entries,) = await store.documents.index_entries(OWNER, project.id, ranges[2:], space=space)
        assert [(each.n, each.vector) for each in entries] == [(2, None), (3, None)]


async def test_chunks_as_many_as_have_room(store: Store) -> None:
    """Chunks are read until their texts are too large together; one alone may be."""
    project, key = await make(store, text="é" * 10)  # 22 bytes with their number
    content = await content_of(store, key)
    ranges = [ChunkRange(key.id, content.id, 5, 6), ChunkRange(key.id, content.id, 0, 4)]
    for room, wanted in ((1, [5]), (43, [5]), (44, [5, 6]), (66, [5, 6, 0]), (1_000, [5, 6, 0, 1, 2, 3, 4])):
        found = await read(store, ProjectKey(OWNER, project.id), ranges, room)
        assert [each.n for each in found] == wanted
    assert found[0] == (key.id, 5, "é" * 10 + " 5", "#herbs", "Kitchen > Herbs", 5)


async def test_everything_is_found_as_it_was_stored(store: Store) -> None:
    """NUL and what is beyond the first plane come back, in texts, names, and metadata."""
    odd = "a\0b \U0001f33f"
    project = await store.projects.create_project(OWNER, NewProject(name="k \U0001f33f", metadata={"a": odd}))
    assert await store.projects.get_project(OWNER, project.id) == project
    assert project.metadata == {"a": odd}
    chunk = NewChunk(odd, None, odd, 2**31 - 1, b"")
    new = new_document("ä/\U0001f33f.md").model_copy(update={"title": "t"})
    stored = await store.documents.store_document(OWNER, project.id, new, [chunk])
    found = await store.documents.get_document(OWNER, project.id, stored.document.id)
    assert found == stored.document
    (read,) = await store.documents.document_chunks(OWNER, project.id, found.id)
    assert read == (found.id, 0, odd, None, odd, 2**31 - 1)


async def test_index_is_read_while_other_calls_go_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terms and vectors are read in a thread of the readers, never in that of the event loop."""
    project, key = await make(store)
    content = await content_of(store, key)
    threads = list[str]()
    read = SqliteRows.index_entries

    async def watched(rows: SqliteRows, *arguments: Any) -> Any:
        threads.append(threading.current_thread().name)
        return await read(rows, *arguments)

    monkeypatch.setattr(SqliteRows, "index_entries", watched)
    await store.documents.index_entries(OWNER, project.id, [ChunkRange(key.id, content.id, 0, 9)])
    assert [name.startswith("chatkeep-sqlite-reader") for name in threads] == [True]


OF_CONTENT = "owner_id=? AND project_id=? AND document_id=? AND content=?"
OF_SPACE = "owner_id=? AND project_id=? AND space=?"
PLANS = {
    f"{sqlite_projects.PROJECTS} {sqlite_projects.NEWEST_FIRST}": ["INDEX projects_by_time (owner_id=?)"],
    f"{sqlite_projects.PROJECTS} AND (created_at, id) < (?, ?) {sqlite_projects.NEWEST_FIRST}": [
        "INDEX projects_by_time (owner_id=? AND (created_at,id)<(?,?))"
    ],
    sqlite_projects.DOCUMENTS: ["INDEX documents_by_path (owner_id=? AND project_id=? AND file_path>?)"],
    sqlite_projects.CONTENTS: ["PRIMARY KEY (owner_id=? AND project_id=? AND id>?)"],
    sqlite_projects.ENTRIES: [
        f"INDEX sqlite_autoindex_chunks_1 ({OF_CONTENT} AND n>? AND n<?)",
        f"INDEX sqlite_autoindex_vectors_1 ({OF_SPACE} AND document_id=? AND content=? AND n=?)",
    ],
    sqlite_projects.COUNT_VECTORS: [f"COVERING INDEX sqlite_autoindex_vectors_1 ({OF_SPACE})"],
    sqlite_projects.WITHOUT_VECTORS: [
        f"COVERING INDEX sqlite_autoindex_chunks_1 ({OF_CONTENT})",
        f"COVERING INDEX sqlite_autoindex_vectors_1 ({OF_SPACE} AND document_id=? AND content=? AND n=?)",
    ],
    sqlite_projects.DELETE_VECTORS: [
        f"COVERING INDEX sqlite_autoindex_vectors_1 ({OF_SPACE} AND document_id=? AND content=? AND n<?)"
    ],
}


@pytest.mark.parametrize("statement", PLANS)
async def test_statements_use_their_index(store: Store, path: Path, statement: str) -> None:
    """Each reads what it returns, by as much of a key as it has, and sorts nothing."""
    await make(store)
    count = len(set(re.findall(r"\?\d", statement))) or statement.count("?")
    plan = [row[3] for row in execute(path, f"EXPLAIN QUERY PLAN {statement}", *[b""] * count)]
    used = [line.partition(" USING ")[2].removesuffix(" LEFT-JOIN") for line in plan if " USING " in line]
    assert used == PLANS[statement]


# --- vectors ----------------------------------------------------------------------------------------------


async def test_vectors_need_their_chunks(store: Store, path: Path) -> None:
    """A vector of a chunk that is not there is not stored, and one that is there stays."""
    _, key = await make(store)
    content = await content_of(store, key)
    given = dict.fromkeys((0, 9, 10), b"\1\0\0\0\2\0\0\0")
    for space in (SPACE, OTHER_SPACE):
        await add_vectors(store, key, content.id, space, given)
    assert counts(path)[3] == 12
    assert execute(path, "SELECT count(*) FROM vectors WHERE space = ? AND vector <> ?", SPACE, VECTOR) == [(0,)]
    missing = await work(store, lambda rows: rows.without_vectors(key, content.id, OTHER_SPACE, 3))
    assert missing == [1, 2, 3]
    assert await store.documents.count_vectors(OWNER, key.project_id, OTHER_SPACE) == {content.id: 2}


async def test_other_spaces_go_in_slices(store: Store, path: Path, small_slices: None) -> None:
    """When a project searches another space its former vectors are removed, those of other projects stay."""
    _, key = await make(store)
    await make(store, 4)
    content = await content_of(store, key)
    given = dict.fromkeys(range(10), VECTOR)
    await store.documents.add_vectors(OWNER, key.project_id, content, OTHER_SPACE, given)
    assert counts(path)[3] == 24
    await store.documents.use_space(OWNER, key.project_id, OTHER_SPACE)
    assert execute(path, "SELECT space, count(*) FROM vectors GROUP BY 1 ORDER BY 1") == [(OTHER_SPACE, 10), (SPACE, 4)]


async def test_lease_is_written_when_a_third_is_over(store: Store, path: Path) -> None:
    """Who holds the lease extends it seldom; others have it when it is given back, or over."""
    project = await store.projects.create_project(OWNER, NewProject(name="k"))
    first, second = uuid4(), uuid4()

    async def claim(worker: UUID, seconds: float) -> bool:
        lease = timedelta(seconds=seconds)
        return await store.documents.claim_embedding(OWNER, project.id, worker, lease=lease)

    def until() -> Any:
        return execute(path, "SELECT embedding_until FROM projects")

    assert await claim(first, 60)
    before = until()
    assert await claim(first, 60)
    assert until() == before
    assert not await claim(second, 60)
    assert await claim(first, 120)
    assert until() != before
    assert await claim(first, 60)  # shorter than what is left, as if the clock had been set back
    assert until()[0][0] - before[0][0] < 30_000_000
    assert await claim(first, 0)
    assert await claim(second, 60)
    assert not await claim(first, 60)
    await store.projects.delete_project(OWNER, project.id)
    with pytest.raises(NotFound):
        await claim(second, 60)


# --- removal ----------------------------------------------------------------------------------------------


async def test_replaced_text_goes_in_slices(store: Store, path: Path, small_slices: None) -> None:
    """Nothing of the former text is left, however many slices that takes."""
    project, key = await make(store)
    documents = store.documents
    replaced = await documents.store_document(
        OWNER, project.id, new_document(version=1), chunks(4, "sage"), space=SPACE
    )
    assert replaced.change == "replaced"
    assert counts(path) == (1, 1, 4, 4)
    assert execute(path, "SELECT has_rubbish FROM documents") == [(0,)]
    assert await documents.delete_document(OWNER, project.id, key.id)
    assert counts(path) == (1, 0, 0, 0)


async def test_rubbish_of_one_content_alone(store: Store, path: Path, small_slices: None) -> None:
    """What is kept stays, wherever its id is among the others'."""
    _, key = await make(store)
    kept = (await content_of(store, key)).id
    given = dict.fromkeys(range(4), VECTOR)
    for other in (UUID(int=0), UUID(int=2**128 - 1)):
        await add_chunks(store, key, other, 4)
        await add_vectors(store, key, other, OTHER_SPACE, given)
    removed = Removed()
    while more := await work(store, lambda rows: rows.remove_rubbish(key, [kept])):
        assert more.chunks <= 3
        removed = removed.plus(more)
    assert removed == Removed(chunks=8, vectors=8)
    assert counts(path) == (1, 1, 10, 10)


async def test_project_that_is_being_removed(store: Store, path: Path, small_slices: None) -> None:
    """It is gone at once, and its rows are removed in slices, when it has no conversation any more."""
    project, _ = await make(store, 4)
    await make(store, 4)
    talk = await store.create_conversation(OWNER, NewConversation(project_id=project.id))
    project_key = ProjectKey(OWNER, project.id)
    assert await work(store, lambda rows: rows.purge_project(project_key)) is None  # it is not hidden
    assert await work(store, lambda rows: rows.hide_project(project_key))
    with pytest.raises(NotFound):
        await store.projects.get_project(OWNER, project.id)
    with pytest.raises(NotFound):
        await store.create_conversation(OWNER, NewConversation(project_id=project.id))
    assert len((await store.projects.list_projects(OWNER, total=True)).items) == 1
    removed = Removed()
    for _ in range(4):  # 4 vectors, 4 chunks and a document, three at a time
        some = await work(store, lambda rows: rows.purge_project(project_key))
        assert some is not None
        removed = removed.plus(some)
    assert removed == Removed(documents=1, chunks=4, vectors=4)
    assert await store.get_conversation(OWNER, talk.id)
    assert await store.projects.delete_project(OWNER, project.id)
    assert counts(path) == (1, 1, 4, 4)
    with pytest.raises(NotFound):
        await store.get_conversation(OWNER, talk.id)
    assert not await store.projects.delete_project(OWNER, project.id)


async def test_running_answers_of_a_project_end(store: Store, path: Path) -> None:
    """Conversations are hidden with their turns; those of other projects go on."""
    keys = list[TurnKey]()
    for _ in range(2):
        project = await store.projects.create_project(OWNER, NewProject(name="k"))
        talk = await store.create_conversation(OWNER, NewConversation(project_id=project.id))
        turn = await store.turns.start_turn(OWNER, talk.id, user("why"), worker=uuid4())
        keys.append(TurnKey(OWNER, talk.id, turn.answer.id))
    key = ProjectKey(OWNER, project.id)
    await work(store, lambda rows: rows.hide_conversations(key))
    assert len((await store.list_conversations(OWNER)).items) == 2  # the project is not hidden
    await work(store, lambda rows: rows.hide_project(key))
    assert not await work(store, lambda rows: rows.hide_conversations(key))
    assert execute(path, "SELECT conversation_id FROM turns") == [(keys[0].conversation_id.bytes,)]
    assert [each.id for each in (await store.list_conversations(OWNER)).items] == [keys[0].conversation_id]


async def test_removals_that_were_cut_off(path: Path) -> None:
    """The next process that migrates finishes what a killed one began: replaced, deleted, a whole project."""
    async with open_store(f"sqlite:///{path}") as store:
        _, key = await make(store)
        gone, _ = await make(store, owner="bob")
        await add_chunks(store, key, uuid4(), 5)
        await work(store, lambda rows: rows.set_document(key, {"has_rubbish": True}))
        await work(store, lambda rows: rows.hide_project(ProjectKey("bob", gone.id)))
        assert await work(store, lambda rows: rows.owners_with_remains()) == [OWNER, "bob"]
    async with open_store(f"sqlite:///{path}") as store:
        assert counts(path) == (1, 1, 10, 10)
        assert counts(path, "bob") == (0, 0, 0, 0)
        assert await work(store, lambda rows: rows.owners_with_remains()) == []


async def test_erased_documents_are_counted_and_not_in_the_file(store: Store, path: Path) -> None:
    """Nothing is left in the file or its log: text, headings, paths, vectors, half-stored texts, the owner's name."""
    secret = b"vectorsecretvect"
    theirs, _ = await make(store, 3, "bob", text="Butterblume")
    project = await store.projects.create_project("ownersecret", NewProject(name="namesecret"))
    documents = store.documents
    for version in range(3):
        some = [
            NewChunk(f"textsecret {n} " * 100, "#anchorsecret", "headingsecret", 0, b"termsecret!!", secret)
            for n in range(300)
        ]
        new = new_document("pathsecret.md", version).model_copy(update={"title": "titlesecret"})
        stored = await documents.store_document("ownersecret", project.id, new, some, space=SPACE)
    key = DocumentKey("ownersecret", project.id, stored.document.id)
    await work(store, lambda rows: rows.add_chunks(key, uuid4(), 0, some[:5]))
    receipt = await store.erase_owner("ownersecret")
    assert (receipt.projects, receipt.remaining) == (1, 0)
    files = [path, path.with_name(f"{path.name}-wal")]
    content = b"".join([await asyncio.to_thread(file.read_bytes) for file in files])
    kinds = ("owner", "name", "text", "anchor", "heading", "term", "vector", "path", "title")
    assert [kind for kind in kinds if f"{kind}secret".encode() in content] == []
    assert b"Butterblume" in content
    assert len(await documents.contents("bob", theirs.id)) == 1


async def test_rows_that_are_left_are_counted(store: Store, path: Path) -> None:
    """What an erasure leaves of documents is in `remaining`: nothing is said to be gone that is there."""
    for statement in (
        "INSERT INTO documents VALUES ('ada', x'', zeroblob(16), NULL, NULL, 0, 0, '', NULL, '', 0, '', 0, 0, 0)",
        "INSERT INTO chunks VALUES ('ada', x'', x'', zeroblob(16), 0, x'', 0, NULL, '', '')",
        "INSERT INTO vectors VALUES ('ada', x'', '', x'', x'', 0, x'')",
    ):
        execute(path, statement, keys=False)
    assert (await store.erase_owner(OWNER)).remaining == 3


# --- owners who are renamed, and processes of the revision before -----------------------------------------


async def test_documents_go_with_their_owner(store: Store, path: Path) -> None:
    """A renamed owner has projects, documents, chunks and vectors under the new name, and a search finds them."""
    project, key = await make(store)
    before = await store.documents.contents(OWNER, project.id)
    await store.rename_owner(OWNER, "eve")
    assert counts(path) == (0, 0, 0, 0)
    assert counts(path, "eve") == (1, 1, 10, 10)
    assert await store.documents.contents("eve", project.id) == before
    found = await store.documents.index_entries(
        "eve", project.id, [ChunkRange(key.id, before[0].id, 9, 9)], space=SPACE
    )
    assert found == [[(9, (9).to_bytes(4, "little"), VECTOR)]]
    assert execute(path, "PRAGMA foreign_key_check") == []


async def test_documents_of_a_project_that_both_have_are_not_lost(store: Store, path: Path) -> None:
    """An owner is not renamed where documents would be lost, or end in a project that is being removed."""
    project, _ = await make(store)
    same = await store.projects.create_project("eve", NewProject(id=project.id, name="other"))
    with pytest.raises(Conflict, match="project with the same id"):
        await store.rename_owner(OWNER, "eve")
    assert await store.rename_owner("eve", OWNER) == 0
    assert counts(path) == (1, 1, 10, 10)
    await store.projects.create_project("eve", NewProject(id=project.id, name="other"))
    await work(store, lambda rows: rows.hide_project(ProjectKey(OWNER, same.id)))
    with pytest.raises(Conflict, match="project with the same id"):
        await store.rename_owner("eve", OWNER)


OLD_PROCESS = {
    "remove projects": ("DELETE FROM projects WHERE owner_id = 'ada'",),
    "remove owner": ("DELETE FROM users WHERE id = 'ada'",),
    "rename": (
        "BEGIN",
        "PRAGMA defer_foreign_keys = ON",
        "INSERT OR IGNORE INTO users (id) VALUES ('eve')",
        "UPDATE OR IGNORE projects SET owner_id = 'eve' WHERE owner_id = 'ada'",
        "DELETE FROM users WHERE id = 'ada'",
        "COMMIT",
    ),
}


@pytest.mark.parametrize("how", OLD_PROCESS)
async def test_process_of_the_revision_before(store: Store, path: Path, how: str) -> None:
    """What a process that does not know documents does to projects takes them along."""
    await make(store)
    await make(store, 2, "bob")
    execute(path, ";".join(OLD_PROCESS[how]))
    assert counts(path) == (0, 0, 0, 0)
    assert counts(path, "eve") == ((1, 1, 10, 10) if how == "rename" else (0, 0, 0, 0))
    assert counts(path, "bob") == (1, 1, 2, 2)
    assert execute(path, "PRAGMA foreign_key_check") == []


async def test_project_of_the_revision_before(path: Path) -> None:
    """A project that was stored without these columns, or is after going back, has no documents, and can have some."""
    async with open_store(f"sqlite:///{path}") as store:
        project, _ = await make(store)
        gone = await store.projects.create_project(OWNER, NewProject(name="gone"))
        await work(store, lambda rows: rows.hide_project(ProjectKey(OWNER, gone.id)))
        await store.migrate("0006")
        assert execute(path, "SELECT name FROM projects") == [("Kitchen",)]
        await store.migrate()
        found = await store.projects.get_project(OWNER, project.id)
        assert found == project.model_copy(update={"created_at": found.created_at, "updated_at": found.updated_at})
        assert await store.projects.create_project(OWNER, NewProject(id=found.id, name="Kitchen", metadata={"a": 1}))
        stored = await store.documents.store_document(OWNER, project.id, new_document(), chunks(2, vector=None))
        assert stored.change == "new"
        content = content_id(stored.document.id, stored.document.sha256)
        assert [each.id for each in await store.documents.contents(OWNER, project.id)] == [content]
