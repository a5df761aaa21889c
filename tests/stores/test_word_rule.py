"""A new rule of what a word is: what an older one has indexed is indexed anew, in the background and once."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import pytest

from chatkeep import Store, open_store, words
from chatkeep.errors import StoreUnavailable
from chatkeep.model import ImportedMessage, NewConversation, Role
from chatkeep.stores import maintenance
from chatkeep.stores.base import RowStore
from chatkeep.stores.mongo.rows import MongoRows
from chatkeep.stores.postgres.rows import PostgresRows
from chatkeep.stores.rows import Key, Rows, WordIndex
from chatkeep.stores.sqlite.rows import SqliteRows
from chatkeep.testing import assistant, found, numbered
from chatkeep.words import RULE
from servers.mongo import mongo_databases
from servers.postgres import databases

OWNERS = ("ada", "zoe")
IDS = [UUID(int=number) for number in range(1, 6)]

NEW: dict[str, Callable[[Path], str]] = {
    "sqlite": lambda folder: f"sqlite:///{folder}/chat.db",
    "postgres": lambda _: databases().empty(),
    "mongodb": lambda _: mongo_databases().migrated(),
}
"""The URL of a new database: what other tests share knows its rule already."""

ROWS: dict[str, type[Rows]] = {"sqlite": SqliteRows, "postgres": PostgresRows, "mongodb": MongoRows}

old_fold = words.fold


def new_fold(text: str) -> str:
    """Another rule: two letters are the same."""
    return old_fold(text).replace("б", "п")


LONG = [pytest.param(name, marks=pytest.mark.long) for name in ROWS if name != "sqlite"]


@pytest.fixture(params=["sqlite", *LONG])
def kind(request: pytest.FixtureRequest) -> str:
    """Every database that keeps an index of words."""
    return cast("str", request.param)


@pytest.fixture
async def url(kind: str, tmp_path: Path) -> str:
    """A database with conversations of two owners, which have the same ids, by the old rule."""
    url = NEW[kind](tmp_path)
    async with open_store(url) as store:
        for owner in OWNERS:
            for id_ in IDS:
                await store.create_conversation(owner, NewConversation(id=id_))
                long = assistant("бал " + "там и тут " * 500)
                stored = await store.append(
                    owner, id_, [assistant("бар"), assistant("бор"), *numbered(3), long, assistant("nul \x00 бас")]
                )
                await store.delete_message(owner, id_, stored[1].id)
    return url


@pytest.fixture
def again(kind: str, monkeypatch: pytest.MonkeyPatch) -> list[Key]:
    """The conversations that were indexed anew, in order."""
    keys: list[Key] = []
    index = ROWS[kind].index_again

    async def index_again(self: Rows, key: Key, after: int) -> int | None:
        if after == 0:
            keys.append(key)
        return await index(self, key, after)

    monkeypatch.setattr(ROWS[kind], "index_again", index_again)
    return keys


def begin_rule(monkeypatch: pytest.MonkeyPatch, number: int, fold: Callable[[str], str] = new_fold) -> None:
    """Let words be split by another rule from now on."""
    monkeypatch.setattr(maintenance, "RULE", number)
    monkeypatch.setattr(words, "fold", fold)


async def state_of(store: Store) -> WordIndex:
    """By which rule a store is indexed."""
    assert isinstance(store, RowStore)
    state: WordIndex = await store._read(lambda rows: rows.word_index())
    return state


async def until(store: Store, expected: WordIndex) -> None:
    """Wait until a store is indexed so."""
    async with asyncio.timeout(20):
        while await state_of(store) != expected:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.02)


async def test_a_new_database_has_todays_rule(kind: str, tmp_path: Path, again: list[Key]) -> None:
    """Nothing is indexed anew in a new database, or one that was written by this version."""
    url = NEW[kind](tmp_path)
    for _ in range(2):
        async with open_store(url) as store:
            await store.create_conversation("ada", NewConversation(id=IDS[0]))
            await until(store, WordIndex(RULE))
    assert again == []


async def test_an_upgrade_waits_for_the_index(url: str, again: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    """`migrate` returns when all is indexed by the new rule: whoever calls it, such as `db upgrade`, closes then."""
    begin_rule(monkeypatch, RULE + 1)
    async with open_store(url, migrate=False) as store:
        await store.migrate()
        assert await state_of(store) == WordIndex(RULE + 1)
    assert len(again) == len(OWNERS) * len(IDS)


async def test_a_new_rule_indexes_once(url: str, again: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is stored is found by the new rule, nothing that was deleted; the next process has nothing to do."""
    begin_rule(monkeypatch, RULE + 1)
    async with open_store(url) as store:
        await until(store, WordIndex(RULE + 1))
        for owner in OWNERS:
            for query, count in (("бар", 5), ("пар", 5), ("пал", 5), ("пас", 5), ("тут", 5), ("пор", 0), ("turn", 15)):
                page = await store.search_messages(owner, query, limit=50)
                assert (query, len(page.items)) == (query, count)
    assert sorted(again) == sorted((owner, id_) for owner in OWNERS for id_ in IDS)
    again.clear()
    async with open_store(url) as store:
        await until(store, WordIndex(RULE + 1))
    assert again == []


async def test_writes_go_on_meanwhile(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that are appended, imported and deleted while others are indexed anew are found, or not, as always."""
    begin_rule(monkeypatch, RULE + 1)
    async with open_store(url) as store:
        for id_ in IDS:
            said, _ = await store.append("ada", id_, [assistant("бук"), assistant("бык")])
            await store.append("ada", id_, [ImportedMessage(role=Role.ASSISTANT, content="бант")])
            await store.delete_message("ada", id_, said.id)
        await until(store, WordIndex(RULE + 1))
        await store.migrate()
        assert await found(store, "ada", "пук") == set()
        assert len((await store.search_messages("ada", "пык", limit=50)).items) == 5
        assert len((await store.search_messages("ada", "пант", limit=50)).items) == 5


async def test_indexing_goes_on_where_it_ended(
    url: str, again: list[Key], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that dies in between leaves the rest to the next; a rule that is newer still begins again."""
    begin_rule(monkeypatch, RULE + 1)
    monkeypatch.setattr(maintenance, "INDEXED_AT_ONCE", 1)
    index: Callable[[Any, Key, int], Awaitable[int | None]] = ROWS[kind].index_again

    async def dies(self: Rows, key: Key, after: int) -> int | None:
        if key[1] == IDS[3]:
            raise StoreUnavailable("the database is gone")
        return await index(self, key, after)

    with monkeypatch.context() as dying:
        dying.setattr(ROWS[kind], "index_again", dies)
        async with open_store(url) as store:
            await until(store, WordIndex(RULE, RULE + 1, IDS[2]))
    assert {id_ for _, id_ in again} == set(IDS[:3])
    again.clear()
    async with open_store(url) as store:
        await until(store, WordIndex(RULE + 1))
    assert {id_ for _, id_ in again} == set(IDS[3:])


async def test_an_older_version_leaves_a_newer_rule_alone(
    url: str, again: list[Key], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two versions at work, the newer one decides; the older one does not begin again."""
    begin_rule(monkeypatch, RULE + 2)
    async with open_store(url, migrate=False) as store:
        assert isinstance(store, RowStore)
        half = WordIndex(RULE, RULE + 2, IDS[2])
        assert await store._write(lambda rows: rows.set_word_index(WordIndex(RULE), half))
        assert not await store._write(lambda rows: rows.set_word_index(WordIndex(RULE), half))
    begin_rule(monkeypatch, RULE + 1)
    async with open_store(url) as store:
        assert isinstance(store, RowStore)
        assert not await store._index_some_again()
        assert await state_of(store) == half
    assert again == []
    begin_rule(monkeypatch, RULE + 2)
    async with open_store(url) as store:
        await until(store, WordIndex(RULE + 2))
    assert {id_ for _, id_ in again} == set(IDS[3:])


async def test_without_search_nothing_is_indexed(url: str, again: list[Key], monkeypatch: pytest.MonkeyPatch) -> None:
    """A store with search=off leaves the index to those that use it."""
    begin_rule(monkeypatch, RULE + 1)
    async with open_store(url, search=False) as store:
        await asyncio.sleep(0.2)
        assert await state_of(store) == WordIndex(RULE)
    assert again == []
