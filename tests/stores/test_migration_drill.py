"""A migration that is killed and runs again loses nothing: a short `make migration-drill`, and whether it sees damage.

The database is one that a released commit wrote, made larger; what that commit read from it is in the fixture, too.
"""

import asyncio
import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import asyncpg
import pytest
from benchmarks.attack_server import Checkout
from benchmarks.migration_clients import Asked
from benchmarks.migration_read import CONVERSATION, MESSAGE, digest
from benchmarks.migration_rolling import NEW, OLD, Outcome, Plan, Rolling, watch_locks
from benchmarks.migration_rows import Columns, file_of, rows, soundness
from benchmarks.migration_source import ORIGIN, PREVIOUS, Filled, Read, Source, opened
from benchmarks.migration_upgrade import Cost, Drill, compared, upgrade
from benchmarks.postgres_server import plain

from chatkeep import NewConversation, open_store
from chatkeep.migrations import HEAD
from chatkeep.testing import user
from fixtures.databases.write_databases import without_limits

FIXTURE = Path(__file__).parents[1] / "fixtures" / "databases" / "4209e41"
OWNERS = ("ada", "bob", "cara", "importer")
COPIES = 300
"""How many more owners have what these have, so that the migration takes a while."""

COPY = """
    WITH RECURSIVE copies (number) AS (SELECT 1 UNION ALL SELECT number + 1 FROM copies WHERE number < {copies})
    INSERT INTO {table} ({owner}, {others}) SELECT {owner} || '-' || number, {others} FROM {table}, copies
    WHERE {owner} IN ('ada', 'bob', 'cara')
"""
REMOVED = (
    "DELETE FROM messages WHERE conversation_id IN (SELECT id FROM conversations WHERE deleted_at IS NOT NULL)",
    "DELETE FROM conversations WHERE deleted_at IS NOT NULL",
)
"""A migration ends the removals that were cut off, which would be a difference."""


def statements(columns: Columns) -> Iterator[str]:
    """The statements that make the fixture larger."""
    yield from REMOVED
    for table, owner in (("users", "id"), ("conversations", "owner_id"), ("messages", "owner_id")):
        others = ", ".join(name for name in columns[table] if name != owner)
        text = COPY.format(table=table, owner=owner, others=others, copies=COPIES)
        yield text.replace(f"({owner}, )", f"({owner})").replace(" number,  FROM", " number FROM")


def fixture_read(kind: str) -> Read:
    """What the old commit read, as the drill has it."""
    with without_limits():
        known = json.loads((FIXTURE / f"{kind}.expected.json").read_text("utf-8"))["owners"]
    return {
        f"{owner} {talk['id']}": _line(talk, known[owner]["messages"][talk["id"]])
        for owner in OWNERS
        for talk in known[owner]["conversations"]
    }


def _line(talk: dict[str, Any], messages: dict[str, Any]) -> str:
    logged = [[message[name] for name in MESSAGE] for message in messages["log"]]
    values = [[talk[name] for name in CONVERSATION], *logged, messages["history"][0]]
    return f"{len(logged)} {digest(values)}"


async def fill_postgres(url: str) -> None:
    """Execute the statements of the fixture, and make it larger."""
    connection = await asyncpg.connect(plain(url))
    await connection.execute((FIXTURE / "postgres.sql").read_text("utf-8"))
    for statement in statements((await rows(url)).columns):
        await connection.execute(statement)
    await connection.close()


def fill_sqlite(url: str) -> None:
    """Unpack the file of the fixture, and make it larger."""
    file_of(url).write_bytes(gzip.decompress((FIXTURE / "sqlite.db.gz").read_bytes()))
    columns = asyncio.run(rows(url)).columns
    connection = apsw.Connection(str(file_of(url)))
    for statement in statements(columns):
        connection.execute(statement)
    connection.close()


def fill(source: Source) -> Filled:
    """The fixture, as the database of a drill."""
    if source.kind == "sqlite":
        fill_sqlite(source.named(ORIGIN))
    else:
        asyncio.run(fill_postgres(source.named(ORIGIN)))
    return Filled(OWNERS, 0, 0, fixture_read("sqlite" if source.kind == "sqlite" else "postgres"))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_killed_migration_that_runs_again_loses_nothing(kind: str, tmp_path: Path) -> None:
    """After SIGKILL at random moments all rows are as they were, and the schema is that of one run."""
    with opened(kind, tmp_path, "fixture") as source:
        drill = Drill.of(source, Checkout.at(None), HEAD, fill(source))
        reference = drill.once()
        assert drill.before.sums["messages"].rows > COPIES * 20
        assert reference.faults == []
        assert drill.kill(reference, 2).faults == []


@pytest.mark.parametrize(
    "kind",
    [pytest.param("sqlite", marks=pytest.mark.apart), pytest.param("postgresql", marks=pytest.mark.long)],
)
def test_two_servers_of_one_database_agree(kind: str, tmp_path: Path) -> None:
    """What one server has acknowledged the other one reads, and a message that is sent to both is there once."""
    here = Checkout.at(None)
    with opened(kind, tmp_path, "empty") as source:
        assert upgrade(here, source.named(PREVIOUS)).code == 0
        outcome = Rolling(source, here, here, Filled([], 0, 0, {}), Plan(writers=4, seconds=2)).serve_both()
    assert outcome.faults() == []
    assert {"history", "retry"} <= outcome.seen.crossed.keys()
    assert {(name, status) for name, status in outcome.ready} == {(OLD, 200), (NEW, 200)}


# --- whether it sees damage -----------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A database with one conversation."""

    async def write(url: str) -> None:
        async with open_store(url) as store:
            talk = await store.create_conversation("ada", NewConversation(title="t"))
            await store.append("ada", talk.id, [user("tea"), user("cup")])

    url = f"sqlite:///{tmp_path / 'chat.db'}"
    asyncio.run(write(url))
    return url


def execute(url: str, *statements: str) -> None:
    """Execute statements behind the store's back."""
    connection = apsw.Connection(str(file_of(url)))
    for statement in statements:
        connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE messages SET content = 'x' WHERE seq = 2", "messages: 2 rows before, 2 after, with other values"),
        ("UPDATE conversations SET updated_at = 1", "conversations: 1 rows before, 1 after, with other values"),
        ("UPDATE messages SET fingerprint = zeroblob(16)", "messages: 2 rows before, 2 after, with other values"),
        ("DELETE FROM messages WHERE seq = 2", "messages: 2 rows before, 1 after"),
        ("INSERT INTO users VALUES ('eve')", "users: 1 rows before, 2 after"),
    ],
)
async def test_changed_rows_are_seen(url: str, statement: str, found: str) -> None:
    """A value that changed, a row that went, and one that came."""
    before = await rows(url)
    execute(url, statement)
    assert before.differences(await rows(url, before.columns)) == [found]


async def test_new_and_removed_columns_are_told_apart(url: str) -> None:
    """A revision may add columns; one that it removes is named."""
    before = await rows(url)
    execute(url, "ALTER TABLE messages ADD COLUMN colour TEXT")
    assert before.differences(await rows(url, before.columns)) == []
    execute(url, "ALTER TABLE messages DROP COLUMN external_id")
    assert (await rows(url, before.columns)).gone == {"messages.external_id"}


async def test_an_unsound_file_is_seen(url: str) -> None:
    """A message without its conversation, and another schema."""
    before = await soundness(url)
    assert (before.revision, before.faults) == (HEAD, [])
    execute(url, "PRAGMA foreign_keys = OFF", "DELETE FROM conversations", "DROP INDEX conversations_by_id")
    after = await soundness(url)
    assert len(after.faults) == 2
    assert [row for row in before.schema - after.schema if "conversations_by_id" in row]


@pytest.mark.long
async def test_an_invalid_index_is_seen(tmp_path: Path) -> None:
    """PostgreSQL: an index that was not finished, and a constraint that is not validated."""
    with opened("postgresql", tmp_path, "empty") as source:
        url = await asyncio.to_thread(source.fresh)
        async with open_store(url):
            pass
        assert (await soundness(url)).faults == []
        connection = await asyncpg.connect(plain(url))
        await connection.execute(
            "UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'conversations_by_id'::regclass"
        )
        await connection.execute("ALTER TABLE users ADD CONSTRAINT short CHECK (length(id) < 300) NOT VALID")
        await connection.close()
        found = (await soundness(url)).faults
        assert found == ["invalid index: conversations_by_id", "constraint not validated: users.short"]


@pytest.mark.long
async def test_a_wait_for_a_table_is_seen(tmp_path: Path) -> None:
    """PostgreSQL: how long a reader waited for a table that another session had locked."""
    with opened("postgresql", tmp_path, "empty") as source:
        url = await asyncio.to_thread(source.fresh)
        async with open_store(url) as store:
            outcome, ended = Outcome(), asyncio.Event()
            watching = asyncio.create_task(watch_locks(url, outcome, ended))
            connection = await asyncpg.connect(plain(url))
            async with connection.transaction():
                await connection.execute("LOCK TABLE conversations IN ACCESS EXCLUSIVE MODE")
                reading = asyncio.create_task(store.list_conversations("ada"))
                await asyncio.sleep(1)
            await connection.close()
            await reading
            ended.set()
            await watching
    assert 0.3 < outcome.lock_seconds < 5


def test_differing_conversations_are_named() -> None:
    """Conversations that are missing, differ, or were not there; a sample is compared with a sample."""
    ids = [f"ada 00000000-0000-7000-8000-00000000000{number}" for number in range(4)]
    before = {ids[0]: "1 a", ids[1]: "1 b", ids[2]: "1 c"}
    after = {ids[0]: "1 a", ids[1]: "1 x", ids[3]: "1 d", "ada search:tea": "1 z"}
    assert [fault.partition(":")[0] for fault in compared(before, after)] == [
        "1 conversations missing", "1 conversations made up", "1 conversations differing"
    ]  # fmt: skip
    sample = {name: line for name, line in before.items() if name in {ids[0], ids[2]}}
    assert compared(before, sample, every=2) == []


def test_errors_of_servers_are_named() -> None:
    """Answers that are no success, by server, route and status; and what the database lacks."""
    outcome = Outcome(cost=Cost(code=1, said="locked"), stored={"missing": 2})
    outcome.seen.asked += [Asked(OLD, "GET /api/search", 503, 0, 1), Asked(NEW, "GET /api/search", 200, 0, 3)]
    outcome.seen.wrong.append("history")
    assert outcome.faults() == ["old GET /api/search: 1x 503", "stored: missing 2", "exit code 1: locked", "history"]
    assert outcome.seen.longest(reads=True, since=2, until=9) == 3
