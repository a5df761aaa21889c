"""Messages in progress, which only a turn makes: databases take and show them, and an export says interrupted."""

from pathlib import Path
from uuid import uuid4

import apsw
import asyncpg
import pytest

from chatkeep import ImportReceipt, Message, NewConversation, Status, Store, open_store
from chatkeep.events import TurnEvent, fold, text
from chatkeep.testing import assistant, user
from chatkeep.turns import Ending, TurnKey, TurnWrite
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
        # It has no turn, as one in a copy that was restored may have none: whoever follows it closes it.
        assert await store.turns.expire_turn("ada", talk.id, message.id)
        assert not await store.turns.expire_turn("ada", talk.id, message.id)
        assert (await store.get_message("ada", talk.id, message.id)).status is Status.INTERRUPTED


async def copied(store: Store, other: Store, talk: object, *, update: bool = False) -> tuple[ImportReceipt, Message]:
    """Export a conversation and import it elsewhere; return the receipt and the last message there."""
    whole, _ = await store.export_conversation("ada", str(talk))
    messages = await store.export_messages("ada", str(talk))
    receipt = await other.import_conversation("ada", whole, messages, update=update)
    return receipt, (await other.log("ada", str(talk)))[-1]


async def test_an_answer_that_ends_between_two_exports(store_url: str) -> None:
    """The first export has the text so far; the second import says that the answer differs, or takes it over."""
    worker, events = uuid4(), [TurnEvent(number + 1, *text(piece)) for number, piece in enumerate(("half ", "an "))]
    async with open_store(store_url) as store, open_store("memory://") as other:
        talk = await store.create_conversation("ada", NewConversation())
        turn = await store.turns.start_turn("ada", talk.id, user("tea?"), worker=worker)
        key = TurnKey("ada", talk.id, turn.answer.id)
        await store.turns.append_turn_events(worker, [TurnWrite(key, events)])
        receipt, there = await copied(store, other, talk.id)
        assert (receipt.messages, there.content, there.status) == (2, "half an ", Status.INTERRUPTED)
        whole = Ending.of(fold([*events, TurnEvent(3, *text("answer"))]), Status.COMPLETE, 7)
        ended = await store.turns.finish_turn(*key, whole, worker=worker)
        receipt, there = await copied(store, other, talk.id)
        assert (receipt.differences, there.content) == (("answers",), "half an ")
        receipt, there = await copied(store, other, talk.id, update=True)
        assert (receipt.updated, there) == (("answers",), ended.model_copy(update={"seq": there.seq}))
        receipt, _ = await copied(store, other, talk.id)
        assert receipt.differences == ()
        receipt, _ = await copied(other, store, talk.id, update=True)  # nor does an older copy take anything back
        assert (receipt.differences, await store.get_message(*key)) == ((), ended)
