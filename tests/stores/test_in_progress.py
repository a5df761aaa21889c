"""Messages in progress, which only a turn makes: databases take and show them, and an export says interrupted."""

from pathlib import Path

import apsw
import asyncpg
import pytest

from chatkeep import NewConversation, Status, open_store
from chatkeep.testing import assistant
from servers.mongo import mongo_databases
from servers.postgres import databases, plain

BEGIN = "UPDATE messages SET status = 'in_progress'"


async def in_sqlite(url: str) -> None:
    """Begin every message of a file."""
    connection = apsw.Connection(url.removeprefix("sqlite:///"))
    connection.execute(BEGIN)
    connection.close()


async def in_postgres(url: str) -> None:
    """Begin every message of a database."""
    connection = await asyncpg.connect(plain(url))
    await connection.execute(BEGIN)
    await connection.close()


async def in_mongodb(url: str) -> None:
    """Begin every message of a database."""
    mongo_databases().database(url).messages.update_many({}, {"$set": {"status": "in_progress"}})


KINDS = {"sqlite": in_sqlite, "postgres": in_postgres, "mongodb": in_mongodb}


@pytest.mark.parametrize("kind", KINDS)
async def test_it_is_shown_and_exported_as_interrupted(kind: str, tmp_path: Path) -> None:
    """Whoever imports it has no turn that goes on with it."""
    new = {"postgres": databases().clean, "mongodb": mongo_databases().migrated}
    url = f"sqlite:///{tmp_path}/chat.db" if kind == "sqlite" else new[kind]()
    async with open_store(url) as store, open_store("memory://") as other:
        talk = await store.create_conversation("ada", NewConversation())
        (message,) = await store.append("ada", talk.id, assistant("half an ans"))
        await KINDS[kind](url)
        (shown,) = (await store.history("ada", talk.id)).items
        assert shown == message.model_copy(update={"status": Status.IN_PROGRESS})
        whole, _ = await store.export_conversation("ada", talk.id)
        await other.import_conversation("ada", whole, await store.export_messages("ada", talk.id))
        (restored,) = await other.log("ada", talk.id)
        assert (restored.content, restored.status) == ("half an ans", Status.INTERRUPTED)
