"""The store in a SQLite file: durability, the write-ahead log, faults of files and disks, erasure."""

import asyncio
import itertools
import os
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Awaitable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import apsw
import pytest

import conftest
from chatkeep import (
    Conversation,
    Message,
    NewConversation,
    NotFound,
    NotYours,
    Source,
    Store,
    StoreUnavailable,
    open_store,
)
from chatkeep.stores.rows import Work, run
from chatkeep.stores.sqlite import database as sqlite_file
from chatkeep.stores.sqlite.database import SqliteFile, Transaction
from chatkeep.stores.sqlite.rows import SqliteRows
from chatkeep.stores.time_limit import TimeLimit
from chatkeep.testing import CONVERSATION_CALLS, assistant, contents, dense, found, numbered, seqs, user, whole_log

OWNER = "ada"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
def url(path: Path) -> str:
    """Its URL."""
    return f"sqlite:///{path}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store in this file."""
    async with open_store(url) as store:
        yield store


def file_bytes(path: Path) -> int:
    """Size of the database."""
    return path.stat().st_size


def log_bytes(path: Path) -> int:
    """Size of the write-ahead log."""
    log = path.with_name(f"{path.name}-wal")
    return log.stat().st_size if log.exists() else 0


@asynccontextmanager
async def others_reading(store: Store, conversation_id: UUID) -> AsyncIterator[None]:
    """Other tasks read a conversation, without a pause, as long as the block runs."""
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            await store.history(OWNER, conversation_id, limit=20)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(read())
        try:
            yield
        finally:
            done.set()


# --- one SQLite library ----------------------------------------------------------------------------------


def test_standard_librarys_sqlite3_is_refused(path: Path) -> None:
    """The guard of the whole test run works: no test can open a file with Python's sqlite3."""
    for database in (str(path), path, os.fsencode(path)):
        with pytest.raises(RuntimeError, match="must not be opened"):
            sqlite3.connect(database)
    assert conftest.opened_with_sqlite3 == [str(path)] * 3
    conftest.opened_with_sqlite3.clear()


# --- what is written stays -------------------------------------------------------------------------------


async def test_what_was_stored_is_there_after_reopening(url: str) -> None:
    """A store that is closed and opened again gives back the same records."""
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation(metadata={"a": [1]}))
        source = Source(document_id=uuid4(), file_path="tea.md", similarity_score=0.1)
        stored = await store.append(OWNER, talk.id, [user("How hot?"), assistant("80", sources=(source,))])
        talk = await store.get_conversation(OWNER, talk.id)
    async with open_store(url) as store:
        assert await store.get_conversation(OWNER, talk.id) == talk
        assert (await store.history(OWNER, talk.id)).items == stored
        (later,) = await store.append(OWNER, talk.id, [user("Thanks")])
        assert (later.seq, later.parent_id) == (3, stored[1].id)


async def test_closing_drains_to_the_disk(url: str) -> None:
    """Every append that returned while the store was being closed is in the file."""
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        waiting = [asyncio.create_task(store.append(OWNER, talk.id, numbered(3))) for _ in range(100)]
        await asyncio.sleep(0)
        await store.aclose()
        answers = await asyncio.gather(*waiting)
    async with open_store(url) as store:
        log = await whole_log(store, OWNER, talk.id)
    assert sorted((m for answer in answers for m in answer), key=lambda m: m.seq) == log


async def test_every_connection_syncs_fully(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection has WAL, full synchronisation and secure deletion on, unless it was opened otherwise."""
    seen: list[apsw.Connection] = []
    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, seen.append])
    for synchronous, expected in (("full", 2), ("normal", 1)):
        seen.clear()
        async with open_store(f"sqlite:///{path}?synchronous={synchronous}") as store:
            await store.list_conversations(OWNER)
            assert len(seen) >= 2
            for connection in seen:
                values = [connection.execute(f"PRAGMA {name}").get for name in ("journal_mode", "synchronous")]
                assert values == ["wal", expected]
                assert connection.execute("PRAGMA secure_delete").get == 1
                assert connection.execute("PRAGMA foreign_keys").get == 1


async def test_two_stores_on_one_file(url: str, store: Store) -> None:
    """Two stores of one process on the same file write to the same conversations, densely."""
    talk = await store.create_conversation(OWNER, NewConversation())
    async with open_store(url) as other:
        calls = [each.append(OWNER, talk.id, numbered(2)) for _ in range(50) for each in (store, other)]
        answers = await asyncio.gather(*calls)
        log = await whole_log(other, OWNER, talk.id)
    assert sorted((m for answer in answers for m in answer), key=lambda m: m.seq) == log
    assert seqs(await whole_log(store, OWNER, talk.id)) == dense(200)


# --- one job's failure -----------------------------------------------------------------------------------


async def test_job_that_fails_halfway_leaves_the_others_alone(path: Path) -> None:
    """What a job wrote before it failed is undone; the jobs before and after it in the transaction stay."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(5), writes=TimeLimit(5), readers=1)
    await file.migrate("head")

    def job(number: int) -> object:
        def work(transaction: Transaction) -> int:
            execute = transaction.connection.execute
            execute("INSERT INTO users VALUES (?)", (f"user {number}",))
            if number % 3 == 1:
                raise ZeroDivisionError(number)
            if number % 3 == 2:
                execute("INSERT INTO users VALUES (?)", (f"user {number}",))
            return number

        return work

    answers = await asyncio.gather(*(file.write(job(n)) for n in range(60)), return_exceptions=True)  # type: ignore[arg-type]
    expected = [int, ZeroDivisionError, StoreUnavailable] * 20
    assert [type(answer) for answer in answers] == expected
    stored = await file.read(lambda connection: connection.execute("SELECT id FROM users").fetchall())
    assert {name for (name,) in stored} == {f"user {n}" for n in range(0, 60, 3)}
    await file.aclose()


async def test_cancelled_deletion_leaves_no_rows(store: Store, path: Path) -> None:
    """A deletion whose caller is cancelled at any moment is finished at once, or not begun."""
    for pause in (None, 0.0, 0.0003, 0.001, 0.003):
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, numbered(2_500))
        deleting = asyncio.create_task(store.delete_conversation(OWNER, talk.id))
        if pause is not None:
            await asyncio.sleep(pause)
        deleting.cancel()
        await asyncio.gather(deleting, return_exceptions=True)
        expected = 2_500 if (await settled(store)) else 0
        async with asyncio.timeout(10):
            while count(path, "messages") != expected:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        await store.erase_owner(OWNER)


async def test_id_of_a_conversation_that_is_still_being_removed(store: Store, path: Path) -> None:
    """A conversation may be created again before the rows of the deleted one are gone; it gets none of them."""
    talk = await store.create_conversation(OWNER, NewConversation(title="Tea"))
    await store.append(OWNER, talk.id, [user("saffron"), *numbered(30)])
    other = apsw.Connection(str(path))
    other.execute("UPDATE conversations SET deleted_at = 1")
    other.close()
    again = await store.create_conversation(OWNER, NewConversation(id=talk.id, title="Coffee"))
    assert (again.title, again.last_seq) == ("Coffee", 0)
    stored = await store.append(OWNER, talk.id, [user("mocha")])
    assert await store.log(OWNER, talk.id) == stored
    assert await found(store, OWNER, "saffron") == set()
    check(path)


async def settled(store: Store) -> list[Conversation]:
    """The owner's conversations when every write that was taken before is done."""
    await store.create_conversation("somebody else", NewConversation())
    return (await store.list_conversations(OWNER)).items


def count(path: Path, table: str) -> int:
    """How many rows a table has."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    number = connection.execute(f"SELECT count(*) FROM {table}").get
    connection.close()
    assert isinstance(number, int)
    return number


async def test_writes_of_all_kinds_at_the_same_moment(store: Store, path: Path) -> None:
    """Whatever shares a commit with what, the file is sound and the index holds exactly what the messages hold."""
    for _ in range(8):
        talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(6)]
        batches = [numbered(3, "pebble") for _ in range(24)]
        calls: list[Awaitable[object]] = []
        for number, batch in enumerate(batches):
            talk = talks[number % 6]
            calls += [store.append(OWNER, talk.id, batch), store.delete_message(OWNER, talk.id, batch[1].id or "")]
            calls += [
                store.append("bob", talk.id, batch),
                store.create_conversation("bob", NewConversation(id=talk.id)),
            ]
            calls += [store.delete_conversation(OWNER, talk.id)] if number % 5 == 4 else []
            calls += [store.create_conversation(OWNER, NewConversation(id=talk.id))] if number % 7 == 6 else []
            calls += [store.erase_owner("bob")] if number % 8 == 7 else []
        answers = await asyncio.gather(*calls, return_exceptions=True)
        errors = {type(answer) for answer in answers if isinstance(answer, BaseException)}
        assert errors <= {NotFound, NotYours}
    check(path)


async def test_writes_that_share_a_commit_see_each_other(
    store: Store, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is held back until the commit is written before another job of the same commit looks for it."""
    talk = await store.create_conversation(OWNER, NewConversation())
    first, second, third = numbered(3, "pebble")
    answer = third.model_copy(update={"parent_id": first.id})
    answer.model_fields_set.add("parent_id")
    appends = asyncio.gather(
        store.append(OWNER, talk.id, [first, second]),
        store.append(OWNER, talk.id, [first]),
        store.append(OWNER, talk.id, [user("pebble")]),
        store.append(OWNER, talk.id, [answer]),
    )
    removals = asyncio.gather(
        store.delete_message(OWNER, talk.id, third.id or ""), store.delete_conversation(OWNER, talk.id)
    )
    stored, known, again, branch = await appends
    gone, deleted = await removals
    assert caplog.messages == []  # nothing had to be repeated
    assert (known, gone, deleted) == ([stored[0]], True, True)
    assert [m.seq for m in [*stored, *again, *branch]] == [1, 2, 3, 4]
    assert (branch[0].parent_id, again[0].parent_id) == (first.id, second.id)
    check(path)


async def test_owner_who_is_erased_and_comes_back_in_one_commit(path: Path) -> None:
    """An owner whose last row is removed in a transaction is written anew where the same transaction needs it."""
    file = SqliteFile(path, synchronous="full", reads=TimeLimit(5), writes=TimeLimit(5), readers=1)
    await file.migrate("head")

    def step[T](work: Work[SqliteRows, T]) -> Coroutine[Any, Any, T]:
        return file.write(lambda transaction: run(work(SqliteRows(transaction.connection, transaction))))

    def create(owner: str) -> Coroutine[Any, Any, object]:
        return step(lambda rows: rows.create((owner, uuid4()), NewConversation()))

    answers = await asyncio.gather(
        create("bob"),  # the others wait for it, and go together
        create(OWNER),
        step(lambda rows: rows.hide_slice(OWNER)),
        step(lambda rows: rows.purge_slice(OWNER)),
        step(lambda rows: rows.remove_owner(OWNER)),
        create(OWNER),
    )
    assert answers[4] == 0
    assert await file.read(lambda connection: connection.execute("SELECT id FROM users ORDER BY id").fetchall()) == [
        (OWNER,),
        ("bob",),
    ]
    await file.aclose()


async def test_what_is_being_removed_is_not_shown(path: Path, store: Store) -> None:
    """A conversation that is hidden, and removed in part, as after a kill, is not there for any call."""
    talk = await store.create_conversation(OWNER, NewConversation())
    stored = await store.append(OWNER, talk.id, numbered(20, "sage"))
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("UPDATE conversations SET deleted_at = 1")
        connection.execute("DELETE FROM messages WHERE seq <= 10")
    for name, call in CONVERSATION_CALLS.items():
        if name != "delete_conversation":
            with pytest.raises(NotFound):
                await call(store, OWNER, talk.id, stored[15].id)
    assert await store.delete_conversation(OWNER, talk.id)  # finishes the removal
    assert (await store.list_conversations(OWNER)).items == []
    assert (await store.search_messages(OWNER, "sage")).items == []


async def test_file_that_is_closed_refuses(path: Path) -> None:
    """Every method of a closed file raises StoreUnavailable; closing again does nothing."""
    async with open_store(f"sqlite:///{path}") as store:
        await store.aclose()
        for call in (store.migrate, store.schema_revision, store.ping, store.aclose):
            if call == store.aclose:
                await call()
            else:
                with pytest.raises(StoreUnavailable, match="closed"):
                    await call()


# --- the write-ahead log ---------------------------------------------------------------------------------


async def test_log_is_bounded(url: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While writers and readers leave no pause, the log is written back and begun anew."""
    monkeypatch.setattr(sqlite_file, "CHECKPOINT_BYTES", 1 << 20)
    largest = 0
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        async with others_reading(store, talk.id):
            for _ in range(150):
                await store.append(OWNER, talk.id, [assistant("tea " * 25_000)])
                largest = max(largest, log_bytes(path))
    assert file_bytes(path) > 15_000_000
    assert largest < 12_000_000  # without an end it would be 40,000,000


async def test_log_shrinks_when_idle(store: Store, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody writes for a moment the log is written back and gives its space back."""
    monkeypatch.setattr(sqlite_file, "IDLE_SECONDS", 0.05)
    talk = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, talk.id, [assistant("tea " * 250_000)])
    assert log_bytes(path) > 1_000_000
    async with asyncio.timeout(10):
        while log_bytes(path) > 0:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)
    assert len((await store.history(OWNER, talk.id)).items[0].content) == 1_000_000


async def test_reads_do_not_wait_for_writes(store: Store, path: Path) -> None:
    """While another connection holds the write lock, everything that was committed can be read."""
    talk = await store.create_conversation(OWNER, NewConversation())
    stored = await store.append(OWNER, talk.id, numbered(3))
    other = apsw.Connection(str(path))
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM messages")
    assert await asyncio.wait_for(store.log(OWNER, talk.id), 5) == stored
    assert await found(store, OWNER, "turn") == set(contents(stored))
    other.execute("ROLLBACK")
    other.close()


# --- files that cannot be used ---------------------------------------------------------------------------


def files(folder: Path) -> list[str]:
    """The names of the files in a folder."""
    return [file.name for file in folder.iterdir()]


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing in the folder may be written, not even by root, who steps aside for that."""
    for file in folder.iterdir():
        file.chmod(0o444)
    folder.chmod(0o555)
    user_id = os.geteuid()
    if user_id == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user_id)
        folder.chmod(0o755)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter, which pytest's own are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


async def test_folder_that_is_missing(tmp_path: Path) -> None:
    """A file in a folder that does not exist is StoreUnavailable, and the folder is not made."""
    with pytest.raises(StoreUnavailable, match="cannot be opened: is the folder there"):
        await open_store(f"sqlite:///{tmp_path}/missing/chat.db")
    assert files(tmp_path) == []


async def test_file_that_is_missing(path: Path, url: str) -> None:
    """With migrate=False a missing file is StoreUnavailable, and is not made."""
    async with open_store(url, migrate=False) as store:
        for call in (store.ping(), store.schema_revision(), store.list_conversations(OWNER)):
            with pytest.raises(StoreUnavailable, match="cannot be opened"):
                await call
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            await store.create_conversation(OWNER, NewConversation())
    assert files(path.parent) == []


async def test_folder_in_place_of_a_file(tmp_path: Path) -> None:
    """A folder is no database."""
    with pytest.raises(StoreUnavailable, match="cannot be opened"):
        await open_store(f"sqlite:///{tmp_path}")


@pytest.fixture
def diary(path: Path) -> bytes:
    """What stands in the file before it is opened."""
    content = b"Dear diary, " * 1_000
    path.write_bytes(content)
    return content


async def test_file_that_is_no_database(path: Path, url: str, diary: bytes) -> None:
    """A file of something else is refused, and stays as it is."""
    with pytest.raises(StoreUnavailable, match="not a SQLite database"):
        await open_store(url)
    assert await asyncio.to_thread(path.read_bytes) == diary


def damage(path: Path) -> None:
    """Turn everything after the first pages around."""
    content = path.read_bytes()
    path.write_bytes(content[:8192] + content[:8191:-1])


async def test_file_that_is_damaged(path: Path, url: str) -> None:
    """Damage inside the file is StoreUnavailable, with the advice to restore a backup; nothing is invented."""
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        for _ in range(5):
            await store.append(OWNER, talk.id, numbered(200, "word " * 30))
    damage(path)
    with pytest.raises(StoreUnavailable, match="damaged; restore a backup"):
        async with open_store(url) as store:
            await store.log(OWNER, talk.id)


async def test_file_that_is_read_only(open_folder: Path) -> None:
    """A file that may not be written is StoreUnavailable, and the error says so."""
    url = f"sqlite:///{open_folder}/chat.db"
    async with open_store(url) as store:
        await store.create_conversation(OWNER, NewConversation())
    with read_only(open_folder):
        with pytest.raises(StoreUnavailable, match=r"read-only|may it be written"):
            await open_store(url)
        with pytest.raises(StoreUnavailable, match=r"read-only|may it be written"):
            await open_store(f"sqlite:///{open_folder}/another.db")


# --- a full disk -----------------------------------------------------------------------------------------


async def test_full_disk(url: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a write is StoreUnavailable and leaves nothing behind; with space again, writes work again."""
    connections: list[apsw.Connection] = []
    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, connections.append])
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        stored: list[Message] = await store.append(OWNER, talk.id, numbered(3))
        writer = connections[0]
        pages = writer.execute("PRAGMA page_count").get
        assert isinstance(pages, int)
        writer.execute(f"PRAGMA max_page_count = {pages + 60}")
        batches = [[*numbered(2, "small"), assistant(f"large {n} " * 2_000, id=uuid4())] for n in range(40)]
        calls = (store.append(OWNER, talk.id, batch) for batch in batches)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, BaseException)]
        assert refused
        assert all(isinstance(e, StoreUnavailable) and "the disk is full" in str(e) for e in refused)
        stored += [m for answer in answers if isinstance(answer, list) for m in answer]
        assert await whole_log(store, OWNER, talk.id) == sorted(stored, key=lambda m: m.seq)
        assert seqs(await whole_log(store, OWNER, talk.id)) == dense(len(stored))
        assert await found(store, OWNER, "small") == {m.content for m in stored if "small" in m.content}

        writer.execute("PRAGMA max_page_count = 1000000")
        again = [await store.append(OWNER, talk.id, batch) for batch in batches]
        assert sorted(seqs([m for answer in again for m in answer])) == list(range(4, 124))
        assert len(await found(store, OWNER, "large")) == 40
    check(path)


def check(path: Path) -> None:
    """SQLite finds nothing wrong with the file, and the index holds what the messages hold."""
    connection = apsw.Connection(str(path))
    assert connection.execute("PRAGMA integrity_check").get == "ok"
    connection.execute("INSERT INTO message_words (message_words) VALUES ('integrity-check')")
    indexed = connection.execute("SELECT id FROM message_words_docsize ORDER BY id").fetchall()
    assert indexed == connection.execute("SELECT rid FROM messages WHERE content <> '' ORDER BY rid").fetchall()
    connection.close()


# --- the index and the option search ---------------------------------------------------------------------


async def test_index_catches_up_when_search_is_on_again(url: str, path: Path) -> None:
    """What was stored, changed and removed with search=off is found, or not, when the file is opened with it."""
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        old = await store.append(OWNER, talk.id, [user("sage one"), user("sage two")])
    async with open_store(f"{url}?search=off") as store:
        new = await store.append(
            OWNER, talk.id, [user("sage three"), assistant(""), user("花草 four"), *numbered(4_500)]
        )
        await store.delete_message(OWNER, talk.id, old[0].id)
        await store.delete_message(OWNER, talk.id, new[0].id)
        gone = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, gone.id, [user("sage gone")])
        await store.delete_conversation(OWNER, gone.id)
    async with open_store(url) as store:
        assert await found(store, OWNER, "sage") == {"sage two"}
        assert await found(store, OWNER, "花草") == {"花草 four"}
        assert await found(store, OWNER, "4499") == {"turn 4499"}
        await store.append(OWNER, talk.id, [user("sage five")])
        assert await found(store, OWNER, "sage") == {"sage two", "sage five"}
    check(path)


async def test_index_catches_up_only_for_those_who_search(url: str) -> None:
    """Opening with search=off again does not lose the note of what is to be indexed."""
    async with open_store(f"{url}?search=off") as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, [user("sage")])
    async with open_store(f"{url}?search=off"):
        pass
    async with open_store(url) as store:
        assert await found(store, OWNER, "sage") == {"sage"}


# --- what is erased is gone ------------------------------------------------------------------------------

SECRETS = (
    "Saffronissimo",
    "Kardamomelle",
    "жасминовка",
    "番红花茶水",
    "metadatasecret",
    "titlesecret",
    "contextsecret",
)


def remains(path: Path) -> list[str]:
    """Which secrets the bytes of the database and its log still hold, in any of the forms that were written."""
    files = [path, path.with_name(f"{path.name}-wal")]
    content = b"".join(file.read_bytes() for file in files if file.exists())
    return [text for secret in (*SECRETS, OWNER) for text in (secret, secret.lower()) if text.encode() in content]


async def confide(store: Store) -> UUID:
    """Store secrets of the owner in every place that takes text."""
    talk = await store.create_conversation(
        OWNER, NewConversation(title="titlesecret", context_id="contextsecret", metadata={"k": "metadatasecret"})
    )
    for number in range(30):
        text = f"{' '.join(SECRETS[:4])} {number} " * 3
        await store.append(OWNER, talk.id, [user(text, metadata={"k": "metadatasecret"}, external_id="titlesecret")])
    return talk.id


@pytest.fixture
def secret_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    """An owner whose name cannot stand in the file by chance."""
    monkeypatch.setattr(f"{__name__}.OWNER", "ownersecret")


async def test_erased_text_is_not_in_the_file(store: Store, path: Path, secret_owner: None) -> None:
    """After erase_owner neither the file nor its log holds a word of what was erased; others' words stay."""
    theirs = await store.create_conversation("bob", NewConversation())
    await store.append("bob", theirs.id, numbered(50, "Butterblume"))
    await confide(store)
    await store.append("bob", theirs.id, numbered(50, "Butterblume"))
    assert remains(path)
    receipt = await store.erase_owner(OWNER)
    assert (receipt.conversations, receipt.messages, receipt.remaining) == (1, 30, 0)
    assert remains(path) == []
    assert len(await found(store, "bob", "Butterblume")) == 50


async def test_erased_text_is_not_in_the_file_while_others_read(store: Store, path: Path, secret_owner: None) -> None:
    """Readers that are busy during the erasure do not keep what was erased in the log."""
    theirs = await store.create_conversation("bob", NewConversation())
    await store.append("bob", theirs.id, numbered(200))
    done = asyncio.Event()

    async def read() -> None:
        while not done.is_set():
            await store.history("bob", theirs.id, limit=200)

    for _ in range(5):
        await confide(store)
        readers = [asyncio.create_task(read()) for _ in range(4)]
        await asyncio.sleep(0.01)
        await store.erase_owner(OWNER)
        left = remains(path)
        done.set()
        await asyncio.gather(*readers)
        done.clear()
        assert left == []


async def test_erased_text_is_not_in_a_large_file(store: Store, path: Path, secret_owner: None) -> None:
    """A large index is merged to its end, in many steps: what stands last in it is gone, too."""
    theirs = await store.create_conversation("bob", NewConversation())
    words = (f"{number * 7_919 % 10**9:09}word" for number in itertools.count())
    for _ in range(40):
        await store.append("bob", theirs.id, [assistant(" ".join(itertools.islice(words, 5_000)))])
    await confide(store)
    assert remains(path)
    await store.erase_owner(OWNER)
    assert remains(path) == []
    assert len(await found(store, "bob", "000000000word")) == 1


async def test_erased_and_deleted_text_is_gone_after_deletions(store: Store, path: Path, secret_owner: None) -> None:
    """Messages and conversations that were deleted before leave nothing for the erasure to miss."""
    first = await confide(store)
    for message in await store.log(OWNER, first, limit=10):
        await store.delete_message(OWNER, first, message.id)
    second = await confide(store)
    await store.delete_conversation(OWNER, second)
    await store.erase_owner(OWNER)
    assert remains(path) == []


async def test_times_do_not_go_back_with_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A message is never older than the one stored before it, whatever the clock of the machine does."""
    async with open_store(f"sqlite:///{tmp_path / 'chat.db'}") as store:
        id_ = (await store.create_conversation("ada", NewConversation())).id
        (first,) = await store.append("ada", id_, user("x"))
        monkeypatch.setattr("chatkeep.stores.sqlite.database.now", lambda: first.created_at - timedelta(hours=1))
        (second,) = await store.append("ada", id_, user("y"))
    assert second.created_at > first.created_at
