"""When erasures rewrite a SQLite file: seldom, and never too seldom for what a receipt promises."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import apsw
import pytest

from chatkeep import NewConversation, Store, StoreUnavailable, open_store
from chatkeep.keys import make_key
from chatkeep.stores.sqlite import rewrites
from chatkeep.stores.sqlite.database import SqliteFile
from chatkeep.stores.sqlite.rewrites import State, read_state
from chatkeep.testing import assistant, user

SECRET = "marzipan"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file, alone in its folder, that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """A store in this file."""
    async with open_store(f"sqlite:///{path}") as store:
        yield store


def file_of(store: Store) -> SqliteFile:
    """The file of a store."""
    file: SqliteFile = store._file  # type: ignore[attr-defined]
    return file


async def state(store: Store) -> State:
    """What the file says about its rewrites."""
    return await file_of(store).read(read_state)


async def count_rewrites(store: Store) -> int:
    """How often the file was rewritten: VACUUM counts up the version of the schema."""
    version = await file_of(store).read(lambda connection: connection.execute("PRAGMA schema_version").get)
    assert isinstance(version, int)
    return version


async def say(store: Store, owner: str) -> None:
    """Store something of an owner's."""
    talk = await store.create_conversation(owner, NewConversation())
    await store.append(owner, talk.id, [user(f"{SECRET} of {owner}")])


def left(path: Path, text: str) -> bool:
    """Whether a text is anywhere in the database or beside it."""
    return any(text.encode() in file.read_bytes() for file in path.parent.iterdir())


async def remove_unfinished(store: Store, owner: str) -> None:
    """Remove an owner, as an erasure does that is killed before the file is rewritten."""
    while await store._write(lambda rows: rows.hide_slice(owner)):  # type: ignore[attr-defined]
        pass
    await store._purge(owner)  # type: ignore[attr-defined]
    assert await store._write(lambda rows: rows.remove_owner(owner)) == 0  # type: ignore[attr-defined]


async def test_nothing_is_rewritten_when_nothing_was_removed(store: Store, path: Path) -> None:
    """The first erasure rewrites the file; the next ones, of whoever has nothing there, leave it alone."""
    await say(store, "ada")
    await say(store, "bob")
    before = await count_rewrites(store)
    assert (await store.erase_owner("ada")).messages == 1
    assert not left(path, f"{SECRET} of ada")
    assert await count_rewrites(store) == before + 1
    for owner in ("ada", "nobody", "ada"):
        assert (await store.erase_owner(owner)).messages == 0
    assert await count_rewrites(store) == before + 1
    assert left(path, f"{SECRET} of bob")


async def test_erasure_that_was_killed_is_made_up_for(path: Path) -> None:
    """The receipt comes after a rewrite, also if all was removed before, by a process that did not get to it."""
    async with open_store(f"sqlite:///{path}") as store:
        await say(store, "ada")
        await remove_unfinished(store, "ada")
        before = await count_rewrites(store)
    async with open_store(f"sqlite:///{path}") as store:
        assert (await store.erase_owner("ada")).messages == 0
        assert await count_rewrites(store) == before + 1
    assert not left(path, SECRET)


async def test_api_key_alone_is_something_to_erase(store: Store) -> None:
    """An owner with nothing but an API key, or one that was revoked, is erased from the file, too."""
    before = await count_rewrites(store)
    for number, owner in enumerate(("ada", "bob")):
        new = make_key(owner, "laptop", (), None)
        await store.access.create_key(new.key, new.secret_hash)
        if owner == "bob":
            await store.access.revoke_key(new.key.id)
        assert (await store.erase_owner(owner)).api_keys == (owner == "ada")
        assert await count_rewrites(store) == before + 1 + number


async def test_erasures_that_come_together_share_a_rewrite(store: Store, path: Path) -> None:
    """Twenty at once take two rewrites or three, and nothing is left of any."""
    owners = [f"owner{number}" for number in range(20)]
    for owner in owners:
        await say(store, owner)
    before = await count_rewrites(store)

    async def erase(owner: str) -> None:
        assert (await store.erase_owner(owner)).messages == 1
        assert not await asyncio.to_thread(left, path, f"{SECRET} of {owner} ")

    await asyncio.gather(*map(erase, owners))
    assert before < await count_rewrites(store) <= before + 3
    assert not left(path, SECRET)


@pytest.mark.long
async def test_rewrites_take_a_tenth_of_the_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two stores share the bound; one owner who writes and erases without end leaves the others nine tenths."""
    monkeypatch.setattr(rewrites, "BURST_SECONDS", 0.0)
    async with open_store(f"sqlite:///{path}") as store, open_store(f"sqlite:///{path}") as other:
        talk = await store.create_conversation("bob", NewConversation())
        for _ in range(20):
            await store.append("bob", talk.id, [assistant("some words that take place " * 10_000)])
        done, took = asyncio.Event(), list[float]()
        for each in (store, other):
            rewriting = file_of(each)._vacuum

            def timed(rewriting: object = rewriting) -> bool:
                began = time.monotonic()
                try:
                    return rewriting()  # type: ignore[operator, no-any-return]
                finally:
                    took.append(time.monotonic() - began)

            monkeypatch.setattr(file_of(each), "_vacuum", timed)

        async def attack(store: Store, owner: str) -> None:
            while not done.is_set():
                await say(store, owner)
                await store.erase_owner(owner)

        began = time.monotonic()
        attacks = [asyncio.create_task(attack(each, f"eve{n}")) for n, each in enumerate((store, other) * 3)]
        await asyncio.sleep(5)
        assert sum(took) < 0.2 * (time.monotonic() - began)
        assert len(took) > 1
        done.set()
        await asyncio.gather(*attacks)


async def test_erasure_that_has_to_wait_too_long(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so after a while, the rewrite follows, and the erasure can be asked for again."""
    await say(store, "ada")
    monkeypatch.setattr(rewrites, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(rewrites, "BURST_SECONDS", 0.0)
    await file_of(store).write(
        lambda transaction: transaction.connection.execute(
            rewrites.SET, ("rewrite_after", round((time.time() + 1.5) * 1e6))
        )
    )
    with pytest.raises(StoreUnavailable, match="try again in a few minutes, for the receipt"):
        await store.erase_owner("ada")
    with pytest.raises(StoreUnavailable):
        await store.erase_owner("ada")
    await asyncio.sleep(2)
    assert not left(path, SECRET)
    before = await count_rewrites(store)
    assert (await store.erase_owner("ada")).messages == 0
    assert await count_rewrites(store) == before


async def test_clock_that_was_set_back(store: Store, path: Path) -> None:
    """A pause until a time far away is not heeded."""
    await say(store, "ada")
    await file_of(store).write(
        lambda transaction: transaction.connection.execute(
            rewrites.SET, ("rewrite_after", round((time.time() + 1e6) * 1e6))
        )
    )
    async with asyncio.timeout(5):
        await store.erase_owner("ada")
    assert not left(path, SECRET)


async def test_closing_does_not_pause(path: Path) -> None:
    """An erasure that waits for its rewrite has it when the store is closed."""
    async with open_store(f"sqlite:///{path}") as store:
        await say(store, "ada")
        await file_of(store).write(
            lambda transaction: transaction.connection.execute(
                rewrites.SET, ("rewrite_after", round((time.time() + 300) * 1e6))
            )
        )
        erasing = asyncio.create_task(store.erase_owner("ada"))
        await asyncio.sleep(0.2)
        assert not erasing.done()
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert (await erasing).messages == 1
    assert not left(path, SECRET)


async def test_failed_rewrite_is_tried_again(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the disk is full the erasure says so; the next one rewrites the file."""
    await say(store, "ada")

    def full() -> bool:
        raise apsw.FullError("database or disk is full")

    with monkeypatch.context() as context:
        context.setattr(file_of(store), "_vacuum", full)
        with pytest.raises(StoreUnavailable, match="the disk is full"):
            await store.erase_owner("ada")
    async with asyncio.timeout(5):
        assert (await store.erase_owner("ada")).messages == 0
    assert not left(path, SECRET)
    numbers = await state(store)
    assert numbers.erased == numbers.rewritten
