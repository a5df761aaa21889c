"""A search in one conversation: each way to find its hits gives the same, and none reads what others have."""

import hashlib
import json
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import pytest
from pymongo.asynchronous.collection import AsyncCollection

from chatkeep import NewConversation, Store, open_store
from chatkeep.model import ImportedConversation, ImportedMessage, Role
from chatkeep.stores import rows as ports
from chatkeep.stores.postgres.rows import SEARCH
from chatkeep.stores.postgres.search import FIRST_PLACE
from chatkeep.stores.sqlite import rows as sqlite
from chatkeep.stores.sqlite.search import COUNT_HITS, HITS_FOR_A_MESSAGE
from chatkeep.testing import assistant, someone, user, whole_search
from chatkeep.words import parse_query, query_terms
from conftest import STORES
from servers.mongo import mongo_databases
from servers.postgres import databases, raw

OWNER = "ada"
EVERYTHING, NOTHING = 2**31, -1


@pytest.fixture(params=STORES)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """A store of every kind."""
    async with open_store(STORES[request.param](tmp_path)) as store:
        yield store


@pytest.fixture(params=["of a small conversation", "of a large one"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every conversation be small, or large."""
    small = request.param == "of a small conversation"
    monkeypatch.setattr(ports, "SMALL_CONVERSATION", EVERYTHING if small else NOTHING)
    monkeypatch.setattr(sqlite, "HITS_FOR_A_MESSAGE", 0)


@pytest.mark.usefixtures("way")
async def test_hits_are_those_of_the_whole_search(store: Store) -> None:
    """The hits of one conversation come in the order that they have among all, restored messages, too."""
    owner, moment = someone(), datetime(2020, 1, 1, tzinfo=UTC)
    ids = [UUID(int=number) for number in (1, 2)]
    for id_ in ids:
        await store.create_conversation(owner, NewConversation(id=id_, title=f"{id_}"))
        await store.append(owner, id_, [user("tea, early"), assistant("coffee")])
        restored = [
            ImportedMessage(role=Role.USER, content=f"tea {hour}", created_at=moment + timedelta(hours=hour % 5))
            for hour in range(12)
        ]
        await store.import_conversation(owner, ImportedConversation(), restored)
        await store.append(owner, id_, restored)
        await store.append(owner, id_, [user(f"tea, late {number}") for number in range(5)])
    for query in ("tea", '"tea late"', "tea -late", 'tea -"tea early"'):
        every = await whole_search(store, owner, query, 1_000)
        for id_ in ids:
            expected = [hit for hit in every if hit.message.conversation_id == id_]
            assert expected
            for limit in (1, 3, 1_000):
                assert await whole_search(store, owner, query, limit, conversation_id=id_) == expected


async def two_conversations(store: Store, hits: int) -> tuple[UUID, UUID]:
    """A conversation with two messages, both hits, and one with many, of which one holds thyme."""
    few, many = [(await store.create_conversation(OWNER, NewConversation())).id for _ in range(2)]
    await store.append(OWNER, few, [user("tea"), user("sage tea")])
    await store.append(OWNER, many, [user(f"tea {number}") for number in range(hits)])
    await store.append(OWNER, many, [user("thyme")])
    return few, many


async def test_sqlite_looks_at_the_fewest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside many hits each message of a small conversation is looked up in the index; else the hits are read."""
    statements: list[tuple[str, Any]] = []

    def trace(_cursor: apsw.Cursor, statement: str, values: Any) -> bool:
        statements.append((statement, values))
        return True

    def hook(connection: apsw.Connection) -> None:
        connection.exec_trace = trace

    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, hook])
    path = tmp_path / "chat.db"
    async with open_store(f"sqlite:///{path}") as store:
        few, many = await two_conversations(store, hits=1_000)
        for query, conversation, used in (("tea", few, sqlite.SEARCH_SMALL), ("thyme", many, sqlite.SEARCH)):
            statements.clear()
            assert await whole_search(store, OWNER, query, conversation_id=conversation)
            assert used in {statement for statement, _ in statements}
            counted = [values[1] for statement, values in statements if statement == COUNT_HITS]
            assert counted == [(2 if conversation == few else 1_001) * HITS_FOR_A_MESSAGE]
            assert not {sqlite.SEARCH, sqlite.SEARCH_SMALL} - {used} & {statement for statement, _ in statements}
        monkeypatch.setattr(ports, "SMALL_CONVERSATION", 1_000)
        statements.clear()
        assert await whole_search(store, OWNER, "tea", 1_000, conversation_id=many)
        assert COUNT_HITS not in {statement for statement, _ in statements}
    plan = [row[3] for row in apsw.Connection(str(path)).execute(f"EXPLAIN QUERY PLAN {sqlite.SEARCH_SMALL}", (1,) * 7)]
    assert any(re.search(r"SEARCH m USING .*\(owner_id=\? AND conversation_id=\?\)", line) for line in plan), chr(
        10
    ).join(plan)
    assert any(re.search(r"message_words (EXISTS )?VIRTUAL TABLE INDEX 0:=M", line) for line in plan), plan


FILL = """
    INSERT INTO users VALUES ('ada');
    INSERT INTO conversations (owner_id, id, metadata, last_seq, head_seq, fingerprint)
    SELECT 'ada', md5(n::text)::uuid, '{}', CASE n WHEN 0 THEN 10 ELSE 20000 END, 10, '' FROM generate_series(0, 3) n;
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, role, content, status, fingerprint, terms)
    SELECT 'ada', c.id, n, md5(c.id::text || n)::uuid, 0, n, 'user', 'tea', 'complete', '',
        ARRAY[$1, CASE WHEN n = 7 THEN $2 ELSE 'other' || n % 100 END]
    FROM conversations c, generate_series(1, c.last_seq) n
"""


async def test_postgres_reads_by_one_index() -> None:
    """A small conversation is read by itself, a large one by its words: neither reads what is elsewhere."""
    url = databases().empty()
    small, large = (UUID(hashlib.md5(str(number).encode()).hexdigest()) for number in (0, 1))
    async with open_store(url):
        pass
    async with raw(url) as connection:
        tea, rare = query_terms(OWNER, parse_query("tea"))[0], query_terms(OWNER, parse_query("rare"))[0]
        *tables, messages = FILL.split(";")
        for statement in tables:
            await connection.execute(statement)
        await connection.execute(messages, *tea, *rare)
        await connection.execute("ANALYZE")
        for kind, terms, id_ in (((False, True), tea, small), ((False, False), rare, large)):
            values = (OWNER, terms, *FIRST_PLACE, id_, 20, 2**31 - 1)
            rows = await connection.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {SEARCH[kind]}", *values)
            scans = scans_of(json.loads(rows[0][0])[0]["Plan"])
            assert max(rows for _, rows in scans) <= 20, scans
            assert ("messages_by_term" in {index for index, _ in scans}) == (id_ == large)


def scans_of(plan: dict[str, Any]) -> list[tuple[str | None, float]]:
    """The index of each scan of a plan, and how many rows it read, those that a filter dropped, too."""
    read = plan["Actual Rows"] * plan["Actual Loops"] + plan.get("Rows Removed by Filter", 0)
    below = [scan for part in plan.get("Plans", ()) for scan in scans_of(part)]
    return [(plan.get("Index Name"), read), *below]


async def test_mongodb_reads_a_small_conversation_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query of a small conversation names its index; for a large one MongoDB tries what is done first."""
    finds: list[dict[str, Any]] = []
    find_documents = AsyncCollection.find

    def find(self: AsyncCollection[Any], where: Any, *arguments: Any, **options: Any) -> Any:
        finds.append({"filter": where, **options})
        return find_documents(self, where, *arguments, **options)

    monkeypatch.setattr(AsyncCollection, "find", find)
    async with open_store(mongo_databases().migrated()) as store:
        few, _ = await two_conversations(store, hits=10)
        for most in (EVERYTHING, NOTHING):
            monkeypatch.setattr(ports, "SMALL_CONVERSATION", most)
            finds.clear()
            assert len(await whole_search(store, OWNER, "tea", conversation_id=few)) == 2
            (options,) = [each for each in finds if "words" in each["filter"]]
            assert {"owner_id", "conversation_id"} < set(options["filter"])
            assert (options.get("hint"), options.get("allow_disk_use")) == (
                ("seq", True) if most == EVERYTHING else (None, None)
            )
