"""The schema of a SQLite file: made, brought up and down, and refused where it is not ours."""

from pathlib import Path

import apsw
import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

import chatkeep.migrations
from chatkeep import NewConversation, SchemaMismatch, open_store
from chatkeep.migrations import HEAD, REVISIONS
from chatkeep.testing import user

OWNER = "ada"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
def url(path: Path) -> str:
    """Its URL."""
    return f"sqlite:///{path}"


def schema(path: Path) -> set[tuple[str, str]]:
    """Every table and index of a file, by name and definition."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        rows = connection.execute("SELECT name, coalesce(sql, '') FROM sqlite_schema").fetchall()
    finally:
        connection.close()
    return {(str(name), str(sql)) for name, sql in rows}


def execute(path: Path, statement: str) -> None:
    """Change a file from outside."""
    connection = apsw.Connection(str(path))
    connection.execute(statement)
    connection.close()


def test_revisions_are_those_of_the_files() -> None:
    """HEAD and REVISIONS are what Alembic finds in versions/: one line, without a branch."""
    config = Config()
    config.set_main_option("script_location", str(Path(chatkeep.migrations.__file__).parent))
    scripts = ScriptDirectory.from_config(config)
    assert scripts.get_heads() == [HEAD]
    assert tuple(script.revision for script in scripts.walk_revisions())[::-1] == REVISIONS


async def test_fresh_file_equals_one_that_was_upgraded(tmp_path: Path) -> None:
    """A file made at once and one that went through every revision have the same tables and indexes."""
    async with open_store(f"sqlite:///{tmp_path}/fresh.db"):
        pass
    async with open_store(f"sqlite:///{tmp_path}/upgraded.db", migrate=False) as store:
        for revision in REVISIONS:
            await store.migrate(revision)
            assert await store.schema_revision() == revision
        await store.ping()
    assert schema(tmp_path / "fresh.db") == schema(tmp_path / "upgraded.db")


async def test_down_and_up_again(path: Path, url: str) -> None:
    """A downgrade to the base takes everything away, and an upgrade makes the same schema again, empty."""
    async with open_store(url) as store:
        before = schema(path)
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, [user("sage tea")])
        await store.migrate("base")
        assert await store.schema_revision() is None
        assert schema(path) == set()
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.ping()
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.list_conversations(OWNER)
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.create_conversation(OWNER, NewConversation())
        await store.migrate()
        assert schema(path) == before
        await store.ping()
        assert (await store.list_conversations(OWNER)).items == []
        talk = await store.create_conversation(OWNER, NewConversation(id=talk.id))
        assert talk.last_seq == 0


async def test_file_without_a_schema(path: Path, url: str) -> None:
    """With migrate=False a file is used as it is: one that has no schema says how to make it."""
    execute(path, "VACUUM")
    async with open_store(url, migrate=False) as store:
        assert await store.schema_revision() is None
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.ping()
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.get_or_create_conversation(OWNER, NewConversation())


async def test_newer_schema_is_refused(path: Path, url: str) -> None:
    """A file of a newer chatkeep is not touched, and the error says what to do."""
    async with open_store(url) as store:
        await store.create_conversation(OWNER, NewConversation())
    execute(path, "UPDATE chatkeep_schema SET version_num = '9999', served_from = '9998'")
    before = schema(path)
    with pytest.raises(SchemaMismatch, match=r"newer schema.*upgrade chatkeep.*9999"):
        await open_store(url)
    async with open_store(url, migrate=False) as store:
        with pytest.raises(SchemaMismatch, match="9999"):
            await store.ping()
        for revision in ("head", "base", HEAD):
            with pytest.raises(SchemaMismatch, match="upgrade chatkeep"):
                await store.migrate(revision)
        assert await store.schema_revision() == "9999"
    assert schema(path) == before


async def test_newer_schema_that_this_version_can_use(path: Path, url: str) -> None:
    """During a rolling upgrade a process opens and serves a schema that names its revision as one that can."""
    async with open_store(url) as store:
        execute(path, f"UPDATE chatkeep_schema SET version_num = '9999', served_from = '{HEAD}'")
        await store.ping()
        await store.create_conversation(OWNER, NewConversation())
    async with open_store(url) as store:
        await store.ping()
        assert len((await store.list_conversations(OWNER)).items) == 1
        assert await store.schema_revision() == "9999"
        with pytest.raises(SchemaMismatch, match="upgrade chatkeep"):
            await store.migrate("base")


async def test_schema_of_another_revision_is_named(url: str) -> None:
    """A store that is used without the upgrade that it needs says so, instead of naming a column."""
    async with open_store(url, migrate=False) as store:
        await store.migrate("0005")
        talk = await store.create_conversation(OWNER, NewConversation())
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.turns.start_turn(OWNER, talk.id, user("sage tea"), worker=talk.id)
        await store.migrate("0004")
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.create_conversation(OWNER, NewConversation())
        with pytest.raises(SchemaMismatch, match="chatkeep db upgrade"):
            await store.list_conversations(OWNER)


async def test_unknown_revision_is_refused(url: str) -> None:
    """A target that chatkeep has never had is refused, with those that it has."""
    async with open_store(url) as store:
        with pytest.raises(SchemaMismatch, match=f"base, {REVISIONS[0]}"):
            await store.migrate("tea")
        await store.ping()


async def test_failed_migration_leaves_the_file_as_it_was(path: Path, url: str) -> None:
    """A migration is one transaction: where it fails nothing of it stays, and it can be run again."""
    execute(path, "CREATE TABLE conversations (mine TEXT)")
    before = schema(path)
    with pytest.raises(chatkeep.StoreUnavailable, match="conversations already exists"):
        await open_store(url)
    assert schema(path) == before
    execute(path, "DROP TABLE conversations")
    async with open_store(url) as store:
        await store.ping()
