"""The PostgreSQL store where it finds Citus.

No Citus can be installed here. A stand-in makes the store believe in one: the extension's row, its catalog and
its functions, on an ordinary PostgreSQL. So the store's own way on Citus is tested, not Citus: docs/scaling.md.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from functools import partial

import asyncpg
import pytest
from test_postgres import Asked, asked, of_requests, use_everything
from topics import DifferentTopics, DifferentTurnTopics, DocumentTopics, SharedTopics, SharedTurnTopics
from typer.testing import CliRunner

from chatkeep import InvalidInput, NewConversation, NotFound, NotYours, Store, open_store
from chatkeep.cli.app import app
from chatkeep.providers import EXTRACTIVE_ID, NewLlmProvider
from chatkeep.testing import Opener, dense, numbered, seqs, someone, user, whole_log
from chatkeep.testing.turn_steps import Running
from servers.postgres import databases, empty, plain

STAND_IN = """
    SET allow_system_table_mods = on;
    INSERT INTO pg_extension (oid, extname, extowner, extnamespace, extrelocatable, extversion)
    VALUES (99999, 'citus', 10, 'public'::regnamespace, false, 'stand-in');
    CREATE TABLE pg_dist_partition (logicalrelid regclass PRIMARY KEY, partkey text, colocation text);
    CREATE FUNCTION create_distributed_table(name regclass, key text, colocate_with text DEFAULT 'default')
    RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        IF EXISTS (SELECT 1 FROM pg_constraint WHERE contype = 'f' AND conrelid = name) THEN
            RAISE 'the referenced table must be distributed';
        END IF;
        INSERT INTO pg_dist_partition VALUES (name, key, colocate_with);
    END $$;
    CREATE FUNCTION create_reference_table(name regclass) RETURNS void LANGUAGE sql AS $$
        INSERT INTO pg_dist_partition VALUES (name, NULL, 'everywhere')
    $$
"""
__all__ = ["asked"]


@pytest.fixture(scope="module")
def database() -> Iterator[str]:
    """A database with the stand-in and a distributed schema."""
    url = databases().empty()
    asyncio.run(_prepare(url))
    yield url
    databases().drop(url)


async def _prepare(url: str) -> None:
    connection = await asyncpg.connect(plain(url))
    await connection.execute(STAND_IN)
    await connection.close()
    async with open_store(url) as store:
        await store.distribute()


@pytest.fixture
async def url(database: str) -> str:
    """The same, with nothing in it."""
    connection = await asyncpg.connect(plain(database))
    await empty(connection)
    await connection.close()
    return database


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


class OnCitus:
    """The public suite; who has an id is said, as the suite expects if nothing else was asked for."""

    @pytest.fixture
    def open_store_with(self, database: str) -> Opener:
        """Open the store of this run; the suite bears what other tests left."""
        return partial(open_store, database, hide_foreign="off")


class TestDifferentTopics(OnCitus, DifferentTopics):
    """The topics that differ here."""


class TestSharedTopics(OnCitus, SharedTopics):
    """The others."""

    async def test_renaming_an_owner(self, store: Store, owner: str) -> None:
        """Citus refuses to change the column that says on which machine a row lies, and so does the store."""
        with pytest.raises(InvalidInput, match="export the conversations"):
            await store.rename_owner(owner, "zoe")

    async def test_renaming_an_owner_who_is_not_there(self, store: Store, owner: str) -> None:
        """It refuses in every case."""
        await self.test_renaming_an_owner(store, owner)

    async def test_renaming_refuses_a_clash(self, store: Store, owner: str) -> None:
        """It refuses in every case."""
        await self.test_renaming_an_owner(store, owner)

    async def test_renaming_to_an_owner_with_the_same_contexts(self, store: Store, owner: str) -> None:
        """It refuses in every case."""
        await self.test_renaming_an_owner(store, owner)

    async def test_writing_all_through_renames(self, store: Store, owner: str) -> None:
        """It refuses in every case."""
        await self.test_renaming_an_owner(store, owner)

    async def test_renamed_owner_keeps_projects(self, store: Store, owner: str) -> None:
        """It refuses in every case."""
        await self.test_renaming_an_owner(store, owner)

    async def test_renamed_owner_keeps_labels(self, store: Store, owner: str) -> None:
        """It refuses in every case."""
        await self.test_renaming_an_owner(store, owner)


class TestDifferentTurnTopics(OnCitus, DifferentTurnTopics):
    """The topics of turns that differ here."""

    async def test_renamed_owner(self, half: Running, owner: str) -> None:
        """It refuses in every case."""
        with pytest.raises(InvalidInput, match="export the conversations"):
            await half.store.rename_owner(owner, "zoe")

    async def test_a_renamed_owner_goes_on(self, left: Running) -> None:
        """It refuses in every case."""
        with pytest.raises(InvalidInput, match="export the conversations"):
            await left.store.rename_owner(left.key.owner, "zoe")


class TestSharedTurnTopics(OnCitus, SharedTurnTopics):
    """The others."""


class TestDocumentTopics(OnCitus, DocumentTopics):
    """Projects and documents."""

    async def test_renaming_an_owner_with_documents(self, store: Store, owner: str, stranger: str) -> None:
        """It refuses in every case."""
        with pytest.raises(InvalidInput, match="export the conversations"):
            await store.rename_owner(owner, stranger)

    async def test_renaming_would_lose_documents(self, store: Store, owner: str, stranger: str) -> None:
        """It refuses in every case."""
        await self.test_renaming_an_owner_with_documents(store, owner, stranger)


async def test_owners_are_not_renamed(store: Store) -> None:
    """What TestSharedTopics shows, for the runs without it."""
    with pytest.raises(InvalidInput, match="export the conversations"):
        await store.rename_owner(someone(), "zoe")


async def test_distributing(url: str) -> None:
    """Every table is spread by its owner beside the others, once; the foreign keys are as they were."""
    connection = await asyncpg.connect(plain(url))
    spread = await connection.fetch("SELECT logicalrelid::regclass::text, partkey, colocation FROM pg_dist_partition")
    keys = await connection.fetch(
        "SELECT conrelid::regclass::text, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'f' ORDER BY 1"
    )
    tables = await connection.fetch("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 2200::oid")
    await connection.close()
    assert sorted(map(tuple, spread)) == [
        ("api_keys", None, "everywhere"),
        ("chunks", "owner_id", "users"),
        ("conversation_labels", "owner_id", "users"),
        ("conversations", "owner_id", "users"),
        ("documents", "owner_id", "users"),
        ("erasures", None, "everywhere"),
        ("llm_providers", None, "everywhere"),
        ("messages", "owner_id", "users"),
        ("projects", "owner_id", "users"),
        ("requests", "owner_id", "users"),
        ("turn_events", "owner_id", "users"),
        ("turns", "owner_id", "users"),
        ("users", "id", "default"),
        ("vectors", "owner_id", "users"),
        ("word_index", None, "everywhere"),
    ]
    assert {name for (name,) in tables} - {row[0] for row in spread} == {"chatkeep_schema", "pg_dist_partition"}
    parent = "REFERENCES conversations(owner_id, id) ON DELETE CASCADE"
    project = "FOREIGN KEY (owner_id, project_id) REFERENCES projects(owner_id, id) ON DELETE CASCADE"
    documents = "documents(owner_id, project_id, id) ON DELETE CASCADE"
    assert [tuple(row) for row in keys] == [
        ("chunks", f"FOREIGN KEY (owner_id, project_id, document_id) REFERENCES {documents}"),
        ("conversation_labels", f"FOREIGN KEY (owner_id, conversation_id) {parent}"),
        ("conversations", "FOREIGN KEY (owner_id) REFERENCES users(id) ON DELETE CASCADE"),
        ("documents", project),
        ("messages", f"FOREIGN KEY (owner_id, conversation_id) {parent}"),
        ("projects", "FOREIGN KEY (owner_id) REFERENCES users(id) ON DELETE CASCADE"),
        ("turn_events", "FOREIGN KEY (owner_id, turn) REFERENCES turns(owner_id, number) ON DELETE CASCADE"),
        ("turns", f"FOREIGN KEY (owner_id, conversation_id) {parent}"),
        ("vectors", project),
    ]


def test_distributing_by_command(database: str) -> None:
    """A second run changes nothing and says so; a database without Citus is told what is missing."""
    said = CliRunner().invoke(app, ["db", "distribute", "--database-url", database])
    assert (said.exit_code, said.stdout) == (0, "everything is distributed already\n")
    said = CliRunner().invoke(app, ["db", "distribute", "--database-url", databases().clean()])
    assert said.exit_code == 1
    assert "CREATE EXTENSION citus" in said.stderr


@pytest.mark.parametrize("kind", ["postgres", "memory"])
async def test_where_there_is_nothing_to_distribute_to(kind: str) -> None:
    """A database of one machine says so."""
    async with open_store(databases().clean() if kind == "postgres" else "memory://") as store:
        with pytest.raises(InvalidInput, match="Citus"):
            await store.distribute()


async def test_batches_of_many_owners(store: Store) -> None:
    """Groups of appends of many owners store everything, in order."""
    owners = [f"owner {number}" for number in range(4)]
    talks = {owner: await store.create_conversation(owner, NewConversation()) for owner in owners}
    await asyncio.gather(
        *(store.append(owner, talks[owner].id, [user(f"hello {n}")]) for n in range(50) for owner in owners)
    )
    for owner in owners:
        log = await whole_log(store, owner, talks[owner].id)
        assert seqs(log) == dense(50)
        assert [m.content for m in log] == [f"hello {n}" for n in range(50)]
        assert [m.parent_id for m in log] == [None, *(m.id for m in log[:-1])]


async def test_replaced_provider_of_many_owners(store: Store) -> None:
    """Its conversations are found on all machines, and changed owner by owner."""
    new = NewLlmProvider(provider_name="scripted", model_name="tea", is_default=True)
    provider, owners = await store.providers.create_provider(new), [f"owner {number}" for number in range(4)]
    named = NewConversation(llm_provider_id=provider.id)
    talks = {owner: await store.create_conversation(owner, named) for owner in owners}
    assert await store.providers.delete_provider(provider.id, replacement=EXTRACTIVE_ID)
    assert [each.id for each in await store.providers.list_providers()] == [EXTRACTIVE_ID]
    for owner, talk in talks.items():
        assert (await store.get_conversation(owner, talk.id)).llm_provider_id == EXTRACTIVE_ID


async def test_statements_are_ones_that_citus_takes(url: str, asked: Asked) -> None:
    """None locks or changes rows of more than one owner, none calls the function of batches over owners."""
    async with open_store(url) as store:
        await use_everything(store)
    statements = of_requests(asked)
    one_owner = re.compile(
        r"owner_(id|hash) = \$1|users \(id\) VALUES \(\$1\)|users WHERE id = \$1|(VALUES \(|SELECT )\$1, "
    )
    refused = [text for text in statements if "chatkeep_append" in text or "clock_timestamp" in text]
    assert refused == []
    assert [text for text in statements if not one_owner.search(text) and text != "SELECT now()"] == []
    assert any("INSERT INTO messages (owner_id, run, created_at" in text for text in statements)


async def test_an_append_has_one_moment(url: str, asked: Asked) -> None:
    """The message and its conversation are changed by two statements of a machine: neither asks for the time itself."""
    async with open_store(url) as store:
        talk = await store.create_conversation("ada", NewConversation())
        for messages in (numbered(1), numbered(2)):
            stored = await store.append("ada", talk.id, messages)
            assert (await store.get_conversation("ada", talk.id)).updated_at == stored[-1].created_at
        await asyncio.gather(*(store.append("ada", talk.id, numbered(1)) for _ in range(9)))
    appends = [text for text in of_requests(asked) if "INTO messages" in text]
    assert len(appends) >= 3
    assert [text for text in appends if "now()" in text or "created_at" not in text] == []


async def test_whose_it_is_is_not_said(store: Store, url: str) -> None:
    """The question that would go to every machine is not asked, unless somebody wants the answer."""
    talk = await store.create_conversation("ada", NewConversation())
    await store.append("ada", talk.id, numbered(1))
    with pytest.raises(NotFound):
        await store.get_conversation("bob", talk.id)
    async with open_store(url, hide_foreign="off") as telling:
        with pytest.raises(NotYours):
            await telling.get_conversation("bob", talk.id)
