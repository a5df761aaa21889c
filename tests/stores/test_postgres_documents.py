"""Documents in PostgreSQL: what statements read, pgvector, removal in slices, locks, renaming, older processes."""

import asyncio
import math
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from document_rows import OTHER_SPACE, OWNER, SPACE, TABLES, VECTOR, chunks, content_of, make, new_document, work
from test_postgres_plans import rolled_back

from chatkeep import NewConversation, Store, open_store
from chatkeep.documents import ChunkRange, NewChunk
from chatkeep.errors import Conflict, NotFound
from chatkeep.projects import NewProject, Project
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.postgres import projects as postgres_projects
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.projects import numbers_of, vector_of
from chatkeep.stores.postgres.rows import PostgresRows
from chatkeep.stores.project_rows import DocumentKey, ProjectKey, ProjectPlace
from chatkeep.stores.slices import PageSize, Removed
from chatkeep.testing import user
from chatkeep.turns import TurnKey
from servers.postgres import databases, raw


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


@pytest.fixture
async def connection(url: str) -> AsyncIterator[Connection]:
    """A connection beside the store's."""
    async with raw(url) as connection:
        yield connection


@pytest.fixture
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removals in slices of a few rows."""
    monkeypatch.setattr(postgres_projects, "CHUNK_SLICE", 3)


async def counts(connection: Connection, owner: str = OWNER) -> tuple[int, ...]:
    """How many projects, documents, chunks and vectors an owner has."""
    found = [await connection.fetchval(f"SELECT count(*) FROM {table} WHERE owner_id = $1", owner) for table in TABLES]
    return tuple(found)


# --- what is stored and read ------------------------------------------------------------------------------


async def test_a_page_of_chunks_of_a_document_that_is_replaced_under_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads between two statements of another, which take the text away, gets the new one."""
    project, key = await make(store, 5)
    others, read = [new_document(version=1), new_document(version=2)], PostgresRows.chunks

    async def replaced_before(rows: PostgresRows, *arguments: Any) -> Any:
        if others:
            await store.documents.store_document(
                OWNER, project.id, others.pop(), chunks(5, f"mint {len(others)}", None)
            )
        return await read(rows, *arguments)

    monkeypatch.setattr(PostgresRows, "chunks", replaced_before)
    found = await store.documents.document_chunks(OWNER, project.id, key.id)
    assert [chunk.text for chunk in found] == [f"mint 0 {n}" for n in range(5)]


async def test_everything_is_found_as_it_was_stored(store: Store) -> None:
    """NUL, the character that escapes it, and what is beyond the first plane come back, wherever they may be."""
    odd, space = "a\0b \ufdd0 \U0001f33f", "\ufdd0/2"
    project = await store.projects.create_project("o\0", NewProject(name=odd, metadata={odd: odd}))
    assert (project.name, project.metadata, project.owner_id) == (odd, {odd: odd}, "o\0")
    chunk = NewChunk(odd, odd, odd, 2**31 - 1, b"\0" * 4, VECTOR)
    new = new_document("ä/\ufdd0\U0001f33f.md").model_copy(update={"title": odd})
    stored = await store.documents.store_document("o\0", project.id, new, [chunk], space=space)
    found = await store.documents.get_document("o\0", project.id, stored.document.id)
    assert found == stored.document
    assert (found.file_path, found.title) == (new.file_path, odd)
    (read,) = await store.documents.document_chunks("o\0", project.id, found.id)
    assert read == (found.id, 0, odd, odd, odd, 2**31 - 1)
    (content,) = await store.documents.contents("o\0", project.id)
    (entries,) = await store.documents.index_entries(
        "o\0", project.id, [ChunkRange(found.id, content.id, 0, 0)], space=space
    )
    assert entries == [(0, b"\0" * 4, VECTOR)]
    assert await store.documents.count_vectors("o\0", project.id, space) == {content.id: 1}
    assert (await store.projects.get_project("o\0", project.id)).space == space


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
    assert found == [
        [(n, n.to_bytes(4, "little"), VECTOR) for n in (7, 8, 9)],
        [],
        [(n, n.to_bytes(4, "little"), VECTOR) for n in (2, 3)],
    ]
    for space in (None, OTHER_SPACE):
        (entries,) = await store.documents.index_entries(OWNER, project.id, ranges[2:], space=space)
        assert [(each.n, each.vector) for each in entries] == [(2, None), (3, None)]
    assert await store.documents.index_entries(OWNER, project.id, [], space=SPACE) == []


async def test_chunks_as_many_as_have_room(store: Store) -> None:
    """Chunks are read until their texts are too large together; one alone may be."""
    project, key = await make(store, text="é" * 10)  # 22 bytes with their number
    content = await content_of(store, key)
    ranges = [ChunkRange(key.id, content.id, 5, 6), ChunkRange(key.id, content.id, 0, 4)]
    for room, wanted in ((1, [5]), (43, [5]), (44, [5, 6]), (66, [5, 6, 0]), (1_000, [5, 6, 0, 1, 2, 3, 4])):
        project_key = ProjectKey(OWNER, project.id)
        found = await work(store, partial(PostgresRows.chunks, key=project_key, ranges=ranges, max_bytes=room))
        assert [each.n for each in found] == wanted


async def test_projects_as_many_as_have_room(store: Store) -> None:
    """A page of projects ends before their metadata is too large together; one alone may be."""
    for n in range(5):
        await store.projects.create_project(OWNER, NewProject(name=str(n), metadata={"a": "x" * 1_000}))
    for room, wanted in ((1, ["4"]), (2_100, ["4", "3"]), (1 << 20, ["4", "3", "2", "1", "0"])):
        first = partial(PostgresRows.listed_projects, owner=OWNER, after=None, size=PageSize(9, room), offset=0)
        found, cut = await work(store, first)
        assert ([each.name for each in found], cut) == (wanted, len(wanted) < 5)
    found, _ = await work(store, lambda rows: rows.listed_projects(OWNER, place_of(found[1]), PageSize(9, 1 << 20), 1))
    assert [each.name for each in found] == ["1", "0"]


def place_of(project: Project) -> ProjectPlace:
    """The place of a project in the list."""
    return ProjectPlace(project.created_at, project.id)


def test_vectors_keep_every_bit() -> None:
    """What the server sends of an array is what was given, smallest numbers, zeros of both signs and NaN, too."""
    numbers = [0.0, -0.0, 1e-45, 1e38, math.nan, math.inf, *(random.uniform(-1, 1) for _ in range(378))]
    given = struct.pack(f"<{len(numbers)}f", *numbers)
    sent = b"".join(struct.pack(">if", 4, number) for number in numbers_of(given))
    assert vector_of(struct.pack(">5i", 1, 0, 700, len(numbers), 1) + sent) == given


async def test_vectors_need_their_chunks(store: Store, connection: Connection) -> None:
    """A vector of a chunk that is not there is not stored, and one that is there stays."""
    _, key = await make(store)
    content = await content_of(store, key)
    given = dict.fromkeys((0, 9, 10), struct.pack("<2f", 0, 1))
    for space in (SPACE, OTHER_SPACE):
        add = partial(PostgresRows.add_vectors, key=key, content=content.id, space=space, vectors=given)
        await work(store, add)
    assert (await counts(connection))[3] == 12
    assert await connection.fetchval("SELECT count(*) FROM vectors WHERE vector <> '{1,0}' AND space = $1", SPACE) == 0
    missing = await work(store, lambda rows: rows.without_vectors(key, content.id, OTHER_SPACE, 3))
    assert missing == [1, 2, 3]
    assert await store.documents.count_vectors(OWNER, key.project_id, OTHER_SPACE) == {content.id: 2}


async def test_lease_is_written_when_a_third_is_over(store: Store, connection: Connection) -> None:
    """Who holds the lease extends it seldom; others have it when it is given back, or over."""
    project = await store.projects.create_project(OWNER, NewProject(name="k"))
    first, second = uuid4(), uuid4()

    async def claim(worker: UUID, seconds: float) -> bool:
        lease = timedelta(seconds=seconds)
        return await store.documents.claim_embedding(OWNER, project.id, worker, lease=lease)

    async def written() -> object:
        return await connection.fetchval("SELECT xmin::text || xmax FROM projects")

    assert await claim(first, 60)
    before = await written()
    assert await claim(first, 60)
    assert await written() == before
    assert not await claim(second, 60)
    assert await claim(first, 120)
    assert await written() != before
    assert await claim(first, 0)
    assert await claim(second, 60)
    assert not await claim(first, 60)
    key = ProjectKey(OWNER, project.id)
    await work(store, lambda rows: rows.hide_project(key))
    assert not await work(store, lambda rows: rows.claim_embedding(key, second, timedelta(1)))


async def test_others_go_on_while_an_index_is_read(store: Store) -> None:
    """Between some of the vectors that are read others have their turn."""
    project = await store.projects.create_project(OWNER, NewProject(name="k"))
    some = chunks(2_000, vector=bytes(1_536))
    await store.documents.store_document(OWNER, project.id, new_document(), some, space=SPACE)
    (content,) = await store.documents.contents(OWNER, project.id)
    ranges = [ChunkRange(content.document_id, content.id, 0, 1_999)]
    rows = [(0, bytes(3_092))] * 2_000

    async def read() -> None:
        async for _ in postgres_projects.unhurried(rows):
            pass

    assert await turns_during(read()) >= 2_000 * 3_092 // postgres_projects.AT_ONCE_BYTES
    (entries,) = await store.documents.index_entries(OWNER, project.id, ranges, space=SPACE)
    assert [each.vector for each in entries] == [bytes(1_536)] * 2_000


async def test_others_go_on_while_vectors_are_stored(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors are made into parameters some at a time, in statements that others come between."""
    given: list[int] = []
    executemany: Any = asyncpg.Connection.executemany

    async def note_and_execute(connection: Any, statement: str, rows: list[Any]) -> None:
        given.append(len(rows))
        await executemany(connection, statement, rows)

    monkeypatch.setattr(asyncpg.Connection, "executemany", note_and_execute)
    project = await store.projects.create_project(OWNER, NewProject(name="k"))
    some = chunks(100, vector=bytes(1_536))
    await store.documents.store_document(OWNER, project.id, new_document(), some, space=SPACE)
    assert sum(given) == 100
    assert max(given) * 1_536 <= postgres_projects.SENT_BYTES


async def turns_during(does: Awaitable[object]) -> int:
    """How often another task had its turn meanwhile."""
    count = 0

    async def tick() -> None:
        nonlocal count
        while True:
            count += 1
            await asyncio.sleep(0)

    ticking = asyncio.create_task(tick())
    await does
    ticking.cancel()
    return count


# --- how many rows statements read, whatever the statistics say --------------------------------------------

PROJECT, DOCUMENT, CONTENT = UUID(int=1), UUID(int=2), UUID(int=3)
KEY, DOCUMENT_KEY = ProjectKey(OWNER, PROJECT), DocumentKey(OWNER, PROJECT, DOCUMENT)
SMALL_ONES = """
    INSERT INTO users SELECT 'owner ' || n FROM generate_series(1, 500) n;
    INSERT INTO projects (owner_id, id, name) SELECT id, md5(id)::uuid, 'p' FROM users;
    INSERT INTO documents (owner_id, project_id, id, file_path, media_type, bytes, sha256, content)
    SELECT owner_id, id, id, '', '', 1, '', id FROM projects;
    INSERT INTO chunks (owner_id, project_id, document_id, content, n, start, heading, terms, text)
    SELECT owner_id, id, id, id, 0, 0, '', '', '' FROM projects;
    INSERT INTO vectors SELECT owner_id, id, 'minilm/2', id, id, 0, '{1, 0}' FROM projects;
    VACUUM ANALYZE
"""
FILL = """
    INSERT INTO users VALUES ('ada');
    INSERT INTO projects (owner_id, id, name, created_at)
    SELECT 'ada', num_id(n), 'p', to_timestamp(n) FROM generate_series(1, 500) n;
    INSERT INTO documents (owner_id, project_id, id, file_path, media_type, bytes, sha256, content, has_rubbish)
    SELECT 'ada', num_id(1), num_id(n), 'page ' || to_char(n, '00000'), '', 1, '', num_id(3), n % 100 = 2
    FROM generate_series(2, 1001) n;
    INSERT INTO chunks (owner_id, project_id, document_id, content, n, start, heading, terms, text)
    SELECT owner_id, project_id, id, content, n, 0, '', '\\x00000000', 'thyme'
    FROM documents, generate_series(0, 3) n WHERE owner_id = 'ada';
    INSERT INTO chunks (owner_id, project_id, document_id, content, n, start, heading, terms, text)
    SELECT 'ada', num_id(1), num_id(2), num_id(content), n, 0, '', decode(left(long, 3000), 'hex'),
        rpad(left(long, 1200), 3200)
    FROM generate_series(2, 4) content, (
        SELECT n, string_agg(md5(n::text || i), '') AS long
        FROM generate_series(4, 2003) n, generate_series(1, 100) i GROUP BY n) texts;
    INSERT INTO vectors SELECT owner_id, project_id, space, document_id, content, n, '{1, 0}'
    FROM chunks, unnest('{minilm/2,large/2}'::text[]) space WHERE owner_id = 'ada' AND n < 1000
"""
NUM_ID = "CREATE FUNCTION num_id(n integer) RETURNS uuid LANGUAGE sql AS 'SELECT lpad(to_hex(n), 32, ''0'')::uuid'"
READ = f"""
    SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0)) FROM pg_stat_xact_user_tables
    WHERE relname IN {TABLES}
"""
TEXTS_READ = """
    SELECT coalesce(idx_scan, 0) FROM pg_stat_xact_all_tables
    WHERE relid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'chunks'::regclass)
"""
RANGE = [ChunkRange(DOCUMENT, CONTENT, 500, 599)]
RANGES = [ChunkRange(UUID(int=n), CONTENT, 1, 1) for n in range(2, 102)]
SIZE = PageSize(100, 1 << 20)

type Read = Callable[[PostgresRows], Awaitable[object]]

READS: dict[str, Read] = {
    "has_project": lambda rows: rows.has_project(OWNER, PROJECT),
    "project": lambda rows: rows.project(KEY, lock=True),
    "listed_projects": lambda rows: rows.listed_projects(OWNER, None, SIZE, 0),
    "hidden_projects": lambda rows: rows.hidden_projects(OWNER, 100),
    "claim_embedding": lambda rows: rows.claim_embedding(KEY, DOCUMENT, timedelta(1)),
    "document": lambda rows: rows.document(DOCUMENT_KEY, lock=True),
    "listed_documents": lambda rows: rows.listed_documents(KEY, None, SIZE, 0),
    "listed_documents after": lambda rows: rows.listed_documents(KEY, "page  00500", SIZE, 0),
    "contents": lambda rows: rows.contents(KEY, UUID(int=500), 100),
    "with_rubbish": lambda rows: rows.with_rubbish(KEY, 100),
    "index_entries of a range": lambda rows: rows.index_entries(KEY, RANGE, SPACE),
    "index_entries of ranges": lambda rows: rows.index_entries(KEY, RANGES, SPACE),
    "chunks of a range": lambda rows: rows.chunks(KEY, RANGE, 1 << 30),
    "chunks of ranges": lambda rows: rows.chunks(KEY, RANGES, 1 << 30),
    "without_vectors": lambda rows: rows.without_vectors(DOCUMENT_KEY, CONTENT, "none/2", 100),
    "add_vectors": lambda rows: rows.add_vectors(DOCUMENT_KEY, CONTENT, "none/2", dict.fromkeys(range(60), VECTOR)),
    "hide_conversations": lambda rows: rows.hide_conversations(KEY),
}
REMOVALS: dict[str, Read] = {
    "remove_rubbish": lambda rows: rows.remove_rubbish(DOCUMENT_KEY, [UUID(int=2), CONTENT]),
    "remove_vectors": lambda rows: rows.remove_vectors(KEY, SPACE),
    "purge_project": lambda rows: rows.purge_project(KEY),
}


@pytest.fixture(scope="module", params=["", SMALL_ONES], ids=["no statistics", "statistics of small projects"])
def large(request: pytest.FixtureRequest) -> Iterator[str]:
    """A database with a large project, of which the planner knows nothing."""
    url = databases().empty()

    async def fill() -> None:
        async with open_store(url), raw(url) as connection:
            for table in TABLES:
                await connection.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
            for statement in filter(str.strip, request.param.split(";")):
                await connection.execute(statement)
            await connection.execute(NUM_ID)
            await connection.execute(FILL)

    asyncio.run(fill())
    yield url
    databases().drop(url)


@pytest.mark.parametrize("name", READS)
async def test_rows_read(large: str, name: str) -> None:
    """A statement reads the rows that it returns, of each table, and not the project."""
    async with raw(large) as connection, rolled_back(connection):
        before = await connection.fetchval(READ)
        await READS[name](PostgresRows(connection, LongTexts()))
        assert await connection.fetchval(READ) - before <= 4 * 100


@pytest.mark.parametrize("name", REMOVALS)
async def test_rows_read_to_remove(large: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slice of a removal reads what it removes, of each table, its end once more, and not the project."""
    monkeypatch.setattr(postgres_projects, "CHUNK_SLICE", 100)
    async with raw(large) as connection, rolled_back(connection):
        await connection.execute("UPDATE projects SET deleted_at = now() WHERE id = $1", PROJECT)
        before = await connection.fetchval(READ)
        assert await REMOVALS[name](PostgresRows(connection, LongTexts()))
        assert await connection.fetchval(READ) - before <= 6 * 100


async def test_terms_are_read_without_texts(large: str) -> None:
    """In a row that is too large the terms stay, even if the text is the smaller one, compressed."""
    async with raw(large) as connection, rolled_back(connection):
        rows = PostgresRows(connection, LongTexts())
        before = await connection.fetchval(TEXTS_READ)
        (found,) = await rows.index_entries(KEY, RANGE, SPACE)
        assert len(found) == 100
        assert await connection.fetchval(TEXTS_READ) == before
        assert len(await rows.chunks(KEY, RANGE, 3 * 3_200)) == 3
        assert await connection.fetchval(TEXTS_READ) == before + 3


# --- pgvector ----------------------------------------------------------------------------------------------

HNSW = """
    CREATE INDEX CONCURRENTLY vectors_nearest ON vectors USING hnsw ((vector::vector(8)) vector_cosine_ops)
    WHERE space = 'minilm/8'
"""


ONLY_INDEX = "SET enable_sort = off"
"""The planner reads few vectors one by one and sorts them."""


@pytest.fixture
async def with_pgvector() -> AsyncIterator[str]:
    """A database with pgvector."""
    url = databases().empty()
    async with raw(url) as connection:
        await connection.execute("CREATE EXTENSION vector")
    yield url
    databases().drop(url)


def unit(dice: random.Random, dimension: int = 8) -> bytes:
    """A vector of the length 1."""
    numbers = [dice.gauss() for _ in range(dimension)]
    length = math.hypot(*numbers)
    return struct.pack(f"<{dimension}f", *(number / length for number in numbers))


def cosine(one: bytes, other: bytes) -> float:
    """The cosine of two vectors of the length 1."""
    return sum(a * b for a, b in zip(numbers_of(one), numbers_of(other), strict=True))


async def test_nearest_chunks(with_pgvector: str) -> None:
    """They are those that looking at every vector finds, with its cosines: of the project, the space, and contents that
    documents have now; with an index of all owners, too."""
    dice = random.Random(7)
    async with open_store(with_pgvector) as store, raw(with_pgvector) as connection:
        expected = await fill_spaces(store, dice)
        project, key = next(iter(expected)), unit(dice)
        for index in (False, True):
            if index:
                await connection.execute(HNSW)
            for project, vectors in expected.items():
                found = await store.documents.nearest_chunks(OWNER, project, "minilm/8", key, limit=20)
                assert found is not None
                nearest = sorted(vectors, key=lambda place: -cosine(vectors[place], key))[:20]
                assert [(each.document_id, each.n) for each in found] == nearest
                cosines = [cosine(vectors[place], key) for place in nearest]
                assert [each.cosine for each in found] == pytest.approx(cosines, abs=1e-6)
        assert await store.documents.nearest_chunks(OWNER, project, "none/8", key) == []


async def fill_spaces(store: Store, dice: random.Random) -> dict[UUID, dict[tuple[UUID, int], bytes]]:
    """Two projects of two documents, of which one was replaced, with other vectors in another space; return the
    vectors that count."""
    expected: dict[UUID, dict[tuple[UUID, int], bytes]] = {}
    for _ in range(2):
        project = await store.projects.create_project(OWNER, NewProject(name="k"))
        found = expected.setdefault(project.id, {})
        for path, versions in (("a.md", 1), ("b.md", 2)):
            for version in range(versions):
                some = [each._replace(vector=unit(dice)) for each in chunks(100)]
                new = new_document(path, version)
                stored = await store.documents.store_document(OWNER, project.id, new, some, space="minilm/8")
            found |= {(stored.document.id, n): each.vector for n, each in enumerate(some) if each.vector is not None}
        key = DocumentKey(OWNER, project.id, stored.document.id)
        contents = {each.document_id: each.id for each in await store.documents.contents(OWNER, project.id)}
        await add_some(store, key, uuid4(), "minilm/8", dice)
        await add_some(store, key, contents[key.id], "large/8", dice)
    return expected


async def add_some(store: Store, key: DocumentKey, content: UUID, space: str, dice: random.Random) -> None:
    """Add vectors that no search is to find."""
    given = {n: unit(dice) for n in range(50)}
    await work(store, lambda rows: rows.add_chunks(key, content, 0, chunks(50)))
    await work(store, lambda rows: rows.add_vectors(key, content, space, given))


async def test_index_of_vectors_is_used(with_pgvector: str) -> None:
    """The statement fits the index that the documentation names, and goes on in it: the project has few of its rows."""
    async with open_store(with_pgvector) as store, raw(with_pgvector) as connection:
        project, _ = await make(store, 1)
        fill = """
            INSERT INTO vectors SELECT 'ada', CASE WHEN n % 100 = 0 THEN $1::uuid ELSE $2 END, 'minilm/8',
                d.id, d.content, n, ARRAY(SELECT random() - 0.5 + n * 0 FROM generate_series(1, 8))::real[]
            FROM documents d, generate_series(1, 5000) n WHERE d.project_id = $1
        """
        other = await store.projects.create_project(OWNER, NewProject(name="k"))
        await connection.execute(fill, project.id, other.id)
        await connection.execute(HNSW)
        await connection.execute("VACUUM ANALYZE vectors")
        await connection.execute(
            f"ALTER DATABASE {await connection.fetchval('SELECT current_database()')} {ONLY_INDEX}"
        )
    async with open_store(with_pgvector) as store, raw(with_pgvector) as connection:
        values = (OWNER, project.id, "minilm/8", [1.0] * 8, 40)
        statement = f"EXPLAIN {postgres_projects.NEAREST.format(8)}"
        assert "vectors_nearest" in "".join(row[0] for row in await connection.fetch(statement, *values))
        vector = struct.pack("<8f", *[1.0] * 8)
        found = await store.documents.nearest_chunks(OWNER, project.id, "minilm/8", vector, limit=40)
        assert found is not None
        assert len(found) == 40


async def test_nearest_chunks_without_pgvector(store: Store) -> None:
    """The database says that it has no way to, and the connection goes on being used."""
    project, _ = await make(store)
    assert await store.documents.nearest_chunks(OWNER, project.id, SPACE, VECTOR) is None
    assert (await store.projects.get_project(OWNER, project.id)).chunks == 10


# --- removal ------------------------------------------------------------------------------------------------


async def test_other_spaces_go_in_slices(store: Store, connection: Connection, small_slices: None) -> None:
    """When a project searches another space its former vectors are removed, those of other projects stay."""
    _, key = await make(store)
    await make(store, 4)
    content = await content_of(store, key)
    await store.documents.add_vectors(OWNER, key.project_id, content, OTHER_SPACE, dict.fromkeys(range(10), VECTOR))
    assert (await counts(connection))[3] == 24
    await store.documents.use_space(OWNER, key.project_id, OTHER_SPACE)
    left = await connection.fetch("SELECT space, count(*) FROM vectors GROUP BY 1 ORDER BY 1")
    assert [tuple(row) for row in left] == [(OTHER_SPACE, 10), (SPACE, 4)]


async def test_replaced_text_goes_in_slices(store: Store, connection: Connection, small_slices: None) -> None:
    """Nothing of the former text is left, however many slices that takes."""
    project, key = await make(store)
    new = new_document(version=1)
    replaced = await store.documents.store_document(OWNER, project.id, new, chunks(4, "sage"), space=SPACE)
    assert replaced.change == "replaced"
    assert await counts(connection) == (1, 1, 4, 4)
    assert not await connection.fetchval("SELECT bool_or(has_rubbish) FROM documents")
    assert await store.documents.delete_document(OWNER, project.id, key.id)
    assert await counts(connection) == (1, 0, 0, 0)


async def test_rubbish_of_one_content_alone(store: Store, connection: Connection, small_slices: None) -> None:
    """What is kept stays, wherever its id is among the others'."""
    _, key = await make(store)
    kept = (await content_of(store, key)).id
    given = dict.fromkeys(range(4), VECTOR)
    for other in (UUID(int=0), UUID(int=2**128 - 1)):
        await work(store, partial(PostgresRows.add_chunks, key=key, content=other, first=0, chunks=chunks(4)))
        add = partial(PostgresRows.add_vectors, key=key, content=other, space=OTHER_SPACE, vectors=given)
        await work(store, add)
    removed = Removed()
    while more := await work(store, lambda rows: rows.remove_rubbish(key, [kept])):
        assert more.chunks <= 3
        removed = removed.plus(more)
    assert removed == Removed(chunks=8, vectors=8)
    assert await counts(connection) == (1, 1, 10, 10)


async def test_project_that_is_being_removed(store: Store, connection: Connection, small_slices: None) -> None:
    """It is gone at once, and its rows are removed in slices, when it has no conversation any more."""
    project, _ = await make(store, 4)
    await make(store, 4)
    talk = await store.create_conversation(OWNER, NewConversation(project_id=project.id))
    key = ProjectKey(OWNER, project.id)
    assert await work(store, lambda rows: rows.purge_project(key)) is None  # it is not hidden
    assert await work(store, lambda rows: rows.hide_project(key))
    with pytest.raises(NotFound):
        await store.projects.get_project(OWNER, project.id)
    with pytest.raises(NotFound):
        await store.create_conversation(OWNER, NewConversation(project_id=project.id))
    assert len((await store.projects.list_projects(OWNER, total=True)).items) == 1
    slices = [await work(store, lambda rows: rows.purge_project(key)) for _ in range(3)]
    assert slices == [Removed(chunks=3, vectors=3), Removed(chunks=1, vectors=1, documents=1), Removed()]
    assert await store.get_conversation(OWNER, talk.id)
    assert await store.projects.delete_project(OWNER, project.id)
    assert await counts(connection) == (1, 1, 4, 4)
    with pytest.raises(NotFound):
        await store.get_conversation(OWNER, talk.id)
    assert not await store.projects.delete_project(OWNER, project.id)


async def test_running_answers_of_a_project_end(store: Store, connection: Connection) -> None:
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
    running = await connection.fetch("SELECT conversation_id FROM turns WHERE until > now()")
    assert [row[0] for row in running] == [keys[0].conversation_id]
    assert [each.id for each in (await store.list_conversations(OWNER)).items] == [keys[0].conversation_id]


async def test_removals_that_were_cut_off(url: str, connection: Connection) -> None:
    """The next process that migrates finishes what a killed one began: replaced, deleted, a whole project."""
    async with open_store(url) as store:
        _, key = await make(store)
        gone, _ = await make(store, owner="bob")
        await work(store, lambda rows: rows.add_chunks(key, uuid4(), 0, chunks(5)))
        await work(store, lambda rows: rows.set_document(key, {"has_rubbish": True}))
        await work(store, lambda rows: rows.hide_project(ProjectKey("bob", gone.id)))
        assert sorted(await work(store, lambda rows: rows.owners_with_remains())) == [OWNER, "bob"]
    async with open_store(url) as store:
        assert await counts(connection) == (1, 1, 10, 10)
        assert await counts(connection, "bob") == (0, 0, 0, 0)
        assert await work(store, lambda rows: rows.owners_with_remains()) == []


async def test_erased_documents_are_counted(store: Store, connection: Connection, small_slices: None) -> None:
    """A receipt says how much was removed, and how much is left, whatever there is."""
    await make(store)
    await make(store, 3, "bob")
    receipt = await store.erase_owner(OWNER)
    counted = receipt.projects, receipt.documents, receipt.chunks, receipt.vectors, receipt.remaining
    assert counted == (1, 1, 10, 10, 0)
    assert await counts(connection, "bob") == (1, 1, 3, 3)
    await connection.execute("SET session_replication_role = replica")  # without foreign keys
    nobody = UUID(int=0)
    await connection.execute("INSERT INTO chunks VALUES ('ada', $1, $1, $1, 0, 0, NULL, '', '', '')", nobody)
    await connection.execute("INSERT INTO vectors VALUES ('ada', $1, '', $1, $1, 0, '{}')", nobody)
    assert (await store.erase_owner(OWNER)).remaining == 2


# --- locks ---------------------------------------------------------------------------------------------------


async def test_who_needs_a_project_waits_for_no_change(store: Store, connection: Connection) -> None:
    """Conversations are created while a document is being stored, and documents while they are."""
    project, key = await make(store)
    async with connection.transaction():
        rows = PostgresRows(connection, LongTexts())
        await rows.project(ProjectKey(OWNER, project.id), lock=True)
        await rows.document(key, lock=True)
        await asyncio.wait_for(store.create_conversation(OWNER, NewConversation(project_id=project.id)), 1)
    async with connection.transaction():
        assert await PostgresRows(connection, LongTexts()).has_project(OWNER, project.id)
        storing = store.documents.store_document(OWNER, project.id, new_document("b.md"), chunks(1), space=SPACE)
        assert (await asyncio.wait_for(storing, 1)).change == "new"


async def test_who_creates_a_conversation_waits_for_the_user_first(store: Store, connection: Connection) -> None:
    """Who renames or erases an owner locks users before projects: neither waits for the other for ever."""
    project, _ = await make(store)
    async with connection.transaction():
        await connection.execute("SELECT 1 FROM users FOR UPDATE")
        creating = asyncio.create_task(store.create_conversation(OWNER, NewConversation(project_id=project.id)))
        await waiting(connection)
        await connection.execute("SET LOCAL lock_timeout = '500ms'")
        await connection.execute("SELECT 1 FROM projects FOR UPDATE")
    await creating


async def test_renaming_waits_for_who_stores_a_document(store: Store, connection: Connection) -> None:
    """Whether documents would be lost is looked up when nobody can store one any more."""
    project = await store.projects.create_project(OWNER, NewProject(name="k"))
    await store.projects.create_project("eve", NewProject(id=project.id, name="other"))
    async with connection.transaction():
        rows = PostgresRows(connection, LongTexts())
        assert await rows.project(ProjectKey(OWNER, project.id), lock=True)
        renaming = asyncio.create_task(store.rename_owner(OWNER, "eve"))
        await waiting(connection)
        await rows.create_document(DocumentKey(OWNER, project.id, uuid4()), new_document(), uuid4())
    with pytest.raises(Conflict, match="project with the same id"):
        await renaming


async def waiting(connection: Connection) -> None:
    """Wait until somebody else waits for a lock."""
    locked = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    while not await connection.fetchval(locked):  # noqa: ASYNC110 - only the server knows
        await asyncio.sleep(0.01)


# --- owners who are renamed, and processes of the revision before ---------------------------------------------


async def test_documents_go_with_their_owner(store: Store, connection: Connection) -> None:
    """A renamed owner has projects, documents, chunks and vectors under the new name, and a search finds them."""
    project, key = await make(store)
    before = await store.documents.contents(OWNER, project.id)
    await store.rename_owner(OWNER, "eve")
    assert await counts(connection) == (0, 0, 0, 0)
    assert await counts(connection, "eve") == (1, 1, 10, 10)
    assert await store.documents.contents("eve", project.id) == before
    ranges = [ChunkRange(key.id, before[0].id, 9, 9)]
    found = await store.documents.index_entries("eve", project.id, ranges, space=SPACE)
    assert found == [[(9, (9).to_bytes(4, "little"), VECTOR)]]


async def test_documents_of_a_project_that_both_have_are_not_lost(store: Store, connection: Connection) -> None:
    """An owner is not renamed where documents would be lost, or end in a project that is being removed."""
    project, _ = await make(store)
    same = await store.projects.create_project("eve", NewProject(id=project.id, name="other"))
    with pytest.raises(Conflict, match="project with the same id"):
        await store.rename_owner(OWNER, "eve")
    assert await store.rename_owner("eve", OWNER) == 0
    assert await counts(connection) == (1, 1, 10, 10)
    await store.projects.create_project("eve", NewProject(id=project.id, name="other"))
    await work(store, lambda rows: rows.hide_project(ProjectKey(OWNER, same.id)))
    with pytest.raises(Conflict, match="project with the same id"):
        await store.rename_owner("eve", OWNER)


OLD_PROCESS = {
    "remove projects": ("DELETE FROM projects WHERE owner_id = 'ada'",),
    "remove owner": ("DELETE FROM users WHERE id = 'ada'",),
    "rename": (
        "INSERT INTO users (id) VALUES ('ada'), ('eve') ON CONFLICT DO NOTHING",
        """WITH p AS (UPDATE projects p SET owner_id = 'eve' WHERE owner_id = 'ada' AND NOT EXISTS (
               SELECT 1 FROM projects n WHERE n.owner_id = 'eve' AND n.id = p.id)
           ), c AS (UPDATE conversations SET owner_id = 'eve' WHERE owner_id = 'ada' RETURNING 1)
           SELECT count(*) FROM c""",
        "DELETE FROM users WHERE id = 'ada'",
    ),
}


@pytest.mark.parametrize("how", OLD_PROCESS)
async def test_process_of_the_revision_before(store: Store, connection: Connection, how: str) -> None:
    """What a process that does not know documents does to projects takes them along."""
    project, _ = await make(store)
    await store.create_conversation(OWNER, NewConversation(project_id=project.id))
    await make(store, 2, "bob")
    async with connection.transaction():
        for statement in OLD_PROCESS[how]:
            await connection.execute(statement)
    assert await counts(connection) == (0, 0, 0, 0)
    assert await counts(connection, "eve") == ((1, 1, 10, 10) if how == "rename" else (0, 0, 0, 0))
    assert await counts(connection, "bob") == (1, 1, 2, 2)
