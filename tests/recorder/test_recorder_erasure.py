"""An owner is erased while a journal holds what they said: it is refused and removed, and they may come back."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from typer.testing import CliRunner
from waiting import PATIENCE, until

from chatkeep import NewConversation, Recorder, Store, open_store
from chatkeep.cli.app import app
from chatkeep.recorder.delivery import FRESH_SECONDS
from chatkeep.recorder.journal import dead_letters, open_journal, standing
from chatkeep.testing import whole_log

OWNER = "ada"
SECRET = "a word that nobody else says"


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """A store."""
    async with open_store(store_url) as opened:
        yield opened


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """A journal's file."""
    return tmp_path / "journal"


async def left_behind(store: Store, journal: Path, conversation_id: UUID, count: int = 40) -> None:
    """Leave messages in a journal."""
    recorder = Recorder(store, journal)
    for number in range(count):
        recorder.record(OWNER, conversation_id, "user", f"{number} {SECRET}")
    await recorder.aclose(0)


def has_secret(journal: Path) -> bool:
    """Whether the words are anywhere in the journal's files."""
    return any(SECRET.encode() in path.read_bytes() for path in journal.parent.glob(f"{journal.name}*"))


@pytest.mark.parametrize("create_missing", [True, False])
async def test_what_was_recorded_before_is_refused_and_removed(
    store: Store, journal: Path, *, create_missing: bool
) -> None:
    """No conversation comes back, and no dead letter stays; what the owner says afterwards is stored."""
    old, other = [await store.create_conversation(name, NewConversation()) for name in (OWNER, "bob")]
    await left_behind(store, journal, old.id)
    receipt = await store.erase_owner(OWNER)
    assert receipt.remaining == 0
    async with Recorder(store, journal, create_missing=create_missing) as recorder:
        recorder.record("bob", other.id, "user", "still here")
        await recorder.flush(PATIENCE)
        stats = recorder.stats()
        assert (stats.erased, stats.sent, stats.dead, stats.unsent, stats.unsent_bytes) == (40, 1, 0, 0, 0)
        assert (await store.list_conversations(OWNER)).items == []
        new = old if create_missing else await store.create_conversation(OWNER, NewConversation())
        recorder.record(OWNER, new.id, "user", "back again")
        await recorder.flush(PATIENCE)
        assert recorder.stats().sent == 2
    assert [message.content for message in await whole_log(store, OWNER, new.id)] == ["back again"]
    assert not has_secret(journal)


async def test_the_same_conversation_made_again_gets_nothing_old(store: Store, journal: Path) -> None:
    """Somebody who comes back under the ids of before does not find what was erased."""
    old = await store.create_conversation(OWNER, NewConversation())
    await left_behind(store, journal, old.id)
    await store.erase_owner(OWNER)
    await store.create_conversation(OWNER, NewConversation(id=old.id))
    await asyncio.sleep(FRESH_SECONDS)
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
        assert recorder.stats().erased == 40
    assert await whole_log(store, OWNER, old.id) == []


async def test_dead_letters_of_before_are_removed(store: Store, journal: Path) -> None:
    """Also those that were refused for another reason; those of others stay."""
    async with Recorder(store, journal) as recorder:
        for owner in (OWNER, "bob"):
            recorder.record(owner, uuid4(), "user", f"{owner}: {SECRET}")
        await recorder.flush(PATIENCE)
        assert recorder.stats().dead == 2
    await store.erase_owner(OWNER)

    def owners() -> set[str]:
        connection = open_journal(journal)
        try:
            return {letter.entry.owner_id for letter in dead_letters(connection)}
        finally:
            connection.close()

    async with Recorder(store, journal):
        await until(lambda: owners() == {"bob"})


@pytest.mark.parametrize("moment", ["create_conversation", "append"])
async def test_an_erasure_in_the_middle_of_a_delivery(
    store: Store, journal: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes right before the recorder creates a missing conversation, or appends to it: neither is left."""
    id_, method = uuid4(), getattr(store, moment)
    erased = asyncio.Event()

    async def after_an_erasure(owner: str, *arguments: Any, **options: Any) -> Any:
        if owner == OWNER and not erased.is_set() and (moment == "append" or await is_missing(store, id_)):
            erased.set()
            await store.erase_owner(OWNER)
        return await method(owner, *arguments, **options)

    await left_behind(store, journal, id_)
    monkeypatch.setattr(store, moment, after_an_erasure)
    async with Recorder(store, journal, create_missing=True) as recorder:
        await recorder.flush(PATIENCE)
        assert erased.is_set()
        assert (recorder.stats().erased, recorder.stats().sent, recorder.stats().unsent) == (40, 0, 0)
    assert (await store.list_conversations(OWNER)).items == []
    assert not has_secret(journal)


async def is_missing(store: Store, id_: UUID) -> bool:
    """Whether an owner has no such conversation."""
    return id_ not in {each.id for each in (await store.list_conversations(OWNER)).items}


# --- the command -----------------------------------------------------------------------------------------------


async def test_erase_removes_it_at_once(tmp_path: Path, journal: Path) -> None:
    """Beside a recorder that is at work: entries, dead letters and their copies in the log; its numbers stay right."""
    async with open_store("memory://") as store:
        recorder = Recorder(store, journal)
        for number in range(300):
            recorder.record(OWNER, UUID(int=1), "user", f"{number} {SECRET}")
            recorder.record("bob", UUID(int=2), "user", f"{number} not hers")
        await until(lambda: recorder.stats().queued == 0)
        assert has_secret(journal)
        done = await asyncio.to_thread(CliRunner().invoke, app, ["recorder", "erase", str(journal), OWNER, "--yes"])
        assert done.exit_code == 0, done.output
        assert "300 pending messages and 0 dead letters are deleted" in done.output
        assert not has_secret(journal)
        await until(lambda: recorder.stats().unsent == 300)
        await recorder.aclose(0)
        assert recorder.stats().unsent_bytes == sum_of_sizes(journal)
    (tmp_path / "journal.damaged-20260101T000000").touch()
    again = CliRunner().invoke(app, ["recorder", "erase", str(journal), OWNER, "--yes"])
    assert again.exit_code == 1
    assert "0 pending messages" in again.output
    assert "journal.damaged-20260101T000000 is left of a damaged journal" in again.stderr.replace("\n", "")
    asked = CliRunner().invoke(app, ["recorder", "erase", str(journal), "bob"], input="n\n")
    assert asked.exit_code == 1
    assert sum_of_sizes(journal) > 0


def sum_of_sizes(journal: Path) -> int:
    """The size of what waits in a journal."""
    connection = open_journal(journal)
    try:
        return standing(connection).size
    finally:
        connection.close()
