"""Turns in a SQLite file: one commit with the appends, leases, the words of answers, what is erased, statistics."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import apsw
import pytest

from chatkeep import ImportedConversation, ImportedMessage, NewConversation, Status, Store, open_store
from chatkeep.errors import TurnLost
from chatkeep.events import Event, TurnEvent, reasoning, text
from chatkeep.model import NewAnswer
from chatkeep.stores.rows import Work
from chatkeep.stores.sqlite import rows as sqlite_rows
from chatkeep.stores.sqlite import turns as sqlite_turns
from chatkeep.stores.sqlite.database import SqliteFile
from chatkeep.stores.sqlite.rows import SqliteRows
from chatkeep.stores.sqlite.turns import ANSWERS, LOOK
from chatkeep.stores.turn_rows import ALL_BYTES, two_digits
from chatkeep.testing import contents, found, user
from chatkeep.turns import LEASE, Ending, TurnKey, TurnPlace, TurnState, TurnWrite, answer_id
from chatkeep.values import now, to_micros

OWNER = "ada"
WORKER = uuid4()
AT_ONCE = timedelta(0)
BEGINNING, END = datetime(1970, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """A store in this file."""
    async with open_store(f"sqlite:///{path}") as store:
        yield store


def execute(path: Path, statement: str, *values: Any) -> list[Any]:
    """Look into a file, or change it, from outside."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.execute("PRAGMA foreign_keys = ON")
        return cast("list[Any]", connection.execute(statement, values).fetchall())


async def begin(store: Store, owner: str = OWNER, question: str = "Why?", lease: timedelta = LEASE) -> TurnKey:
    """Begin a turn in a new conversation."""
    talk = await store.create_conversation(owner, NewConversation())
    turn = await store.turns.start_turn(owner, talk.id, user(question), worker=WORKER, lease=lease)
    return TurnKey(owner, talk.id, turn.answer.id)


def numbered(*events: Event, after: int = 0) -> list[TurnEvent]:
    """Events with their numbers."""
    return [TurnEvent(n, *event) for n, event in enumerate(events, after + 1)]


async def write(store: Store, key: TurnKey, *events: Event, after: int = 0, lease: timedelta = LEASE) -> TurnState:
    """Store events of a turn."""
    written = [TurnWrite(key, numbered(*events, after=after))]
    return (await store.turns.append_turn_events(WORKER, written, lease=lease))[key]


async def work[T](store: Store, does: Work[SqliteRows, T]) -> T:
    """Work on the rows of a store, in a transaction that writes."""
    return cast("T", await cast("Any", store)._write(does))


# --- one commit with the appends -------------------------------------------------------------------------


async def test_events_share_the_commit_of_appends(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Events of turns and appends that arrive together are one transaction, and so need the disk once."""
    commits: list[int] = []
    flush = SqliteFile._commit

    def counting(file: SqliteFile, jobs: Any) -> Any:
        commits.append(len(jobs))
        return flush(file, jobs)

    async with open_store(f"sqlite:///{path}") as store:
        key = await begin(store)
        monkeypatch.setattr(SqliteFile, "_commit", counting)
        appends = [store.append(OWNER, key.conversation_id, [user(f"meanwhile {n}")]) for n in range(20)]
        *_, state = await asyncio.gather(*appends, write(store, key, text("Because")))
    assert state is TurnState.RUNNING
    assert sum(commits) == 21
    assert len(commits) <= 3


async def test_question_and_whole_answer_in_one_transaction(store: Store) -> None:
    """A turn that begins, goes on and ends in one commit reads its own rows, which are not written yet."""
    talk = await store.create_conversation(OWNER, NewConversation())
    question = user("Why is the sky blue?", id=uuid4())
    assert question.id is not None
    key = TurnKey(OWNER, talk.id, answer_id(question.id))
    ending = Ending(Status.COMPLETE, "Rayleigh scattering")
    _, _, state, message = await asyncio.gather(
        store.append(OWNER, talk.id, [user("first")]),  # the others wait for its commit, and share the next
        store.turns.start_turn(OWNER, talk.id, question, worker=WORKER),
        write(store, key, text("Rayleigh ")),
        store.turns.finish_turn(*key, ending, worker=WORKER),
    )
    assert state is TurnState.RUNNING
    assert (message.content, message.status) == ("Rayleigh scattering", Status.COMPLETE)
    assert contents(await store.log(OWNER, talk.id)) == ["first", "Why is the sky blue?", "Rayleigh scattering"]
    assert await found(store, OWNER, "scattering") == {"Rayleigh scattering"}


async def test_answer_that_is_not_written_yet_is_set(store: Store) -> None:
    """A row that the same transaction appended is written before it is changed; then nothing changes it any more."""
    talk = await store.create_conversation(OWNER, NewConversation())
    new = NewAnswer(id=uuid4())
    key = TurnKey(OWNER, talk.id, cast("UUID", new.id))

    async def append_and_set(rows: SqliteRows) -> None:
        await cast("Any", store)._append_to(rows, key[:2], [new], [new.fingerprint()], None)
        for status, content in ((Status.FAILED, "first"), (Status.COMPLETE, "second")):
            await rows.set_answer(key, Ending(status, content))

    await work(store, append_and_set)
    message = await store.get_message(*key)
    assert (message.status, message.content) == (Status.FAILED, "first")


async def test_answer_that_ends_and_is_deleted_in_one_transaction(store: Store, path: Path) -> None:
    """Words that are not written yet are not written after the message is erased."""
    key = await begin(store)
    await asyncio.gather(
        store.append(OWNER, key.conversation_id, [user("first")]),
        store.turns.finish_turn(*key, Ending(Status.COMPLETE, "saffron"), worker=WORKER),
        store.delete_message(*key),
    )
    assert execute(path, "SELECT count(*) FROM message_words WHERE message_words MATCH 'words : saffron'") == [(0,)]


async def test_the_end_of_an_answer_moves_its_conversation(store: Store) -> None:
    """The conversation is listed first again, and its time never goes back."""
    key, other = await begin(store), await begin(store)
    await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "x"), worker=WORKER)
    listed = (await store.list_conversations(OWNER)).items
    assert [talk.id for talk in listed] == [key.conversation_id, other.conversation_id]


async def test_turn_that_is_refused_changes_nothing_for_others(store: Store) -> None:
    """A worker that has lost its turn, in one transaction with others, is told so, and they are stored."""
    key, other = await begin(store), await begin(store)
    await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "done"), worker=WORKER)
    lost, state, appended = await asyncio.gather(
        store.turns.finish_turn(*key, Ending(Status.FAILED), worker=uuid4()),
        write(store, other, text("a")),
        store.append(OWNER, key.conversation_id, [user("b")]),
        return_exceptions=True,
    )
    assert isinstance(lost, TurnLost)
    assert state is TurnState.RUNNING
    assert not isinstance(appended, BaseException)


# --- leases ----------------------------------------------------------------------------------------------


def until(path: Path) -> int:
    """When the lease of the only turn ends."""
    ((moment,),) = execute(path, "SELECT until FROM turns")
    return cast("int", moment)


async def test_lease_is_extended_when_a_third_is_over(
    store: Store, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Most writes leave the row of the lease as it is; it is extended in time, and when the clock was set back."""
    key = await begin(store, lease=timedelta(seconds=30))
    began = until(path)
    for seconds, is_extended in ((0, False), (9, False), (11, True), (20, False), (32, True), (-3_000, True)):
        before, moment = until(path), now() + timedelta(seconds=seconds)
        monkeypatch.setattr(sqlite_turns, "now", lambda moment=moment: moment)
        assert await write(store, key, lease=timedelta(seconds=30)) is TurnState.RUNNING
        assert (until(path) != before) == is_extended, seconds
        assert not is_extended or until(path) == to_micros(moment + timedelta(seconds=30))
    assert until(path) < began


async def test_lease_that_is_gone_or_of_another_worker_is_lost(store: Store, path: Path) -> None:
    """Such a write stores nothing; those of turns that the worker has are stored beside it, and what is there stays."""
    mine, gone, others = [await begin(store) for _ in range(3)]
    await store.turns.finish_turn(*gone, Ending(Status.COMPLETE), worker=WORKER)
    execute(path, "UPDATE turns SET worker = ? WHERE message_id = ?", uuid4().bytes, others.message_id.bytes)
    writes = [TurnWrite(key, numbered(text("a"), text("b"))) for key in (gone, mine, others)]
    for _ in range(2):
        states = await store.turns.append_turn_events(WORKER, writes)
        assert states == {gone: TurnState.LOST, mine: TurnState.RUNNING, others: TurnState.LOST}
    await write(store, mine, text("another"), text("c"), after=1)
    found = execute(path, "SELECT message_id, n, data FROM turn_events ORDER BY n")
    assert found == [(mine.message_id.bytes, n, f'{{"text":"{piece}"}}') for n, piece in ((1, "a"), (2, "b"), (3, "c"))]


async def test_turns_that_expired_first_are_closed_first(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all owners' turns the sweep gets those whose leases are over."""
    keys = [await begin(store, owner, lease=timedelta(seconds=left)) for owner, left in (("a", 9), ("b", 3), ("c", 60))]
    assert await work(store, lambda rows: rows.expired_turns(10)) == []
    moment = now() + timedelta(seconds=30)
    monkeypatch.setattr(sqlite_turns, "now", lambda: moment)
    assert await work(store, lambda rows: rows.expired_turns(10)) == [keys[1], keys[0]]
    assert await work(store, lambda rows: rows.expired_turns(1)) == [keys[1]]
    progress = await store.turns.turn_events([TurnPlace(key) for key in keys])
    assert [each.has_expired for each in progress] == [True, True, False]


# --- reading ---------------------------------------------------------------------------------------------


async def test_progress_of_500_turns_is_cheap(store: Store) -> None:
    """All places are one read, of some milliseconds, whether there is nothing new or something for each."""
    talk = await store.create_conversation(OWNER, NewConversation())
    keys = [TurnKey(OWNER, talk.id, uuid4()) for _ in range(500)]

    async def start(rows: SqliteRows) -> None:
        for key in keys:
            await rows.begin_turn(key, key.message_id, WORKER, LEASE)

    await work(store, start)
    await store.turns.append_turn_events(WORKER, [TurnWrite(key, numbered(*[text("word")] * 4)) for key in keys])
    for after, events in ((4, 0), (3, 1)):
        began = time.monotonic()
        progress = await store.turns.turn_events([TurnPlace(key, after) for key in keys])
        assert time.monotonic() - began < 0.25
        assert [len(each.events) for each in progress] == [events] * 500
        assert all(each.is_running and not each.has_expired for each in progress)


async def test_progress_is_cut_by_bytes(store: Store) -> None:
    """A reader gets a part of many events, and one event however large; the places come back in their order."""
    large, small, gone = await begin(store), await begin(store), TurnKey(OWNER, uuid4(), uuid4())
    await write(store, large, text("x" * 2_000_000), *[text("é" * 200_000)] * 4)
    await write(store, small, text("a"), reasoning("b", signature="s"))
    places = [TurnPlace(small, 1), TurnPlace(gone), TurnPlace(large), TurnPlace(large, 1), TurnPlace(large, 5)]
    progress = await store.turns.turn_events(places)
    assert [[event.n for event in each.events] for each in progress] == [[2], [], [1], [2, 3], []]
    assert [each.is_running for each in progress] == [True, False, True, True, True]
    assert progress[0].events[0].data == {"text": "b", "signature": "s"}
    (everything,) = await work(store, lambda rows: rows.events_of([TurnPlace(large)], ALL_BYTES))
    assert [event.n for event in everything.events] == [1, 2, 3, 4, 5]


# --- words -----------------------------------------------------------------------------------------------


async def hits(store: Store, query: str) -> list[str]:
    """What is found, in the order of hits."""
    return contents([hit.message for hit in (await store.search_messages(OWNER, query)).items])


async def test_answers_are_found_in_the_order_in_which_they_began(store: Store) -> None:
    """The words of an answer get the place of its row, however late it ends, and in whatever order."""
    talk = await store.create_conversation(OWNER, NewConversation())
    keys = []
    for number in range(4):
        keys.append(await begin(store))
        await store.append(OWNER, talk.id, [user(f"sage {number} between")])
    endings = [(key, Ending(Status.COMPLETE, f"sage {number} answer")) for number, key in enumerate(keys)]
    assert len(await hits(store, "sage")) == 4
    await asyncio.gather(
        *(store.turns.finish_turn(*key, ending, worker=WORKER) for key, ending in reversed(endings)),
        store.append(OWNER, talk.id, [user("sage 4 between")]),
    )
    expected = [f"sage {number} {which}" for number in range(4) for which in ("answer", "between")]
    assert await hits(store, "sage") == ["sage 4 between", *reversed(expected)]


async def test_words_of_an_answer_that_an_import_ends(store: Store, tmp_path: Path) -> None:
    """An answer that was cut off here, and whose end is imported, is found by its new words alone."""
    key = await begin(store)
    await write(store, key, text("saffron so far"))
    async with open_store(f"sqlite:///{tmp_path}/other.db") as other:
        for update in (False, True):
            talk, _ = await store.export_conversation(OWNER, key.conversation_id)
            messages = await store.export_messages(OWNER, key.conversation_id)
            await other.import_conversation(OWNER, talk, messages, update=update)
            await cast("Any", other)._indexing
            assert await found(other, OWNER, "saffron") == (set() if update else {"saffron so far"})
            if not update:
                await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "sage"), worker=WORKER)
        assert await found(other, OWNER, "sage") == {"sage"}


@pytest.mark.parametrize("began_with", ["on", "off"])
async def test_answers_are_found_when_search_is_on_again(path: Path, began_with: str) -> None:
    """An answer that ended with search=off is indexed when the store is opened with search, and only then."""
    async with open_store(f"sqlite:///{path}?search={began_with}") as store:
        key = await begin(store, lease=AT_ONCE)
        await write(store, key, text("saffron"), lease=AT_ONCE)
    async with open_store(f"sqlite:///{path}"):
        pass  # indexes what is there
    async with open_store(f"sqlite:///{path}?search=off") as store:
        await asyncio.gather(
            store.append(OWNER, key.conversation_id, [user("first")]),  # the others share the next commit
            store.append(OWNER, key.conversation_id, [user("saffron later")]),
            store.turns.finish_turn(*key, Ending(Status.COMPLETE, "saffron"), worker=WORKER),
        )
        assert execute(path, "SELECT count(*) FROM message_words WHERE message_words MATCH 'words : saffron'") == [(0,)]
    async with open_store(f"sqlite:///{path}") as store:
        assert await hits(store, "saffron") == ["saffron later", "saffron"]


async def test_words_of_long_texts_are_found_before_the_writer_has_its_turn(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long question and a long answer take nobody else's time: the writer is given their words."""
    long = "图书" * 4_000

    def refuse(content: str) -> str:
        assert len(content) < 1_000
        return content

    monkeypatch.setattr(sqlite_rows, "index_text", refuse)
    key = await begin(store, question=long)
    message = await store.turns.finish_turn(*key, Ending(Status.COMPLETE, f"{long} ende"), worker=WORKER)
    assert await found(store, OWNER, "图书") == {long, message.content}


# --- what is removed -------------------------------------------------------------------------------------


def left(path: Path) -> list[Any]:
    """How many leases and events there are."""
    return execute(path, "SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM turn_events)")


ENDS: dict[str, Callable[[Store, TurnKey], Any]] = {
    "finish": lambda store, key: store.turns.finish_turn(*key, Ending(Status.COMPLETE, "x"), worker=WORKER),
    "expire": lambda store, key: store.turns.expire_turn(*key),
    "delete conversation": lambda store, key: store.delete_conversation(*key[:2]),
    "delete message": lambda store, key: store.delete_message(*key),
    "erase": lambda store, key: store.erase_owner(key.owner),
}


@pytest.mark.parametrize("how", ENDS)
async def test_events_go_when_a_turn_ends(store: Store, path: Path, how: str) -> None:
    """Lease and events are gone at once, and the worker hears it; those of others stay."""
    other = await begin(store, "bob")
    await write(store, other, text("theirs"))
    key = await begin(store, lease=AT_ONCE)
    await write(store, key, text("a"), text("b"), lease=AT_ONCE)
    assert left(path) == [(2, 3)]
    await ENDS[how](store, key)
    assert left(path) == [(1, 1)]
    assert await write(store, key, text("c"), after=2) is TurnState.LOST


async def test_erased_answers_are_counted_and_not_in_the_file(store: Store, path: Path) -> None:
    """Nothing that a running answer had is left in the file or its log: text, reasoning, the owner's name."""
    theirs = await begin(store, "bob")
    await write(store, theirs, text("Butterblume"))
    for _ in range(3):
        key = await begin(store, "ownersecret", question="Löwenzahn questionsecret")
        await write(store, key, *[text("textsecret "), reasoning("thoughtsecret")] * 50)
    receipt = await store.erase_owner("ownersecret")
    assert (receipt.turns, receipt.messages, receipt.remaining) == (3, 6, 0)
    files = [path, path.with_name(f"{path.name}-wal")]
    content = b"".join([await asyncio.to_thread(file.read_bytes) for file in files])
    secrets = ("ownersecret", "textsecret", "thoughtsecret", "questionsecret")
    assert [secret for secret in secrets if secret.encode() in content] == []
    assert b"Butterblume" in content
    assert await write(store, theirs, text("!"), after=1) is TurnState.RUNNING


async def test_rows_that_are_left_are_counted(store: Store, path: Path) -> None:
    """What an erasure leaves of turns is in `remaining`: nothing is said to be gone that is there."""
    with closing(apsw.Connection(str(path))) as connection:  # without foreign keys
        connection.execute("INSERT INTO turns VALUES ('ada', x'01', zeroblob(16), x'', x'', 0, 0)")
        connection.execute("INSERT INTO turn_events VALUES ('ada', x'01', zeroblob(16), 1, 'text', '{}')")
    assert (await store.erase_owner(OWNER)).remaining == 2


async def test_hidden_conversations_lose_their_turns_before_they_are_removed(store: Store, path: Path) -> None:
    """While a large removal goes on, or was cut off, no worker goes on with its answer; it is counted later."""
    key, deleted, other = [await begin(store) for _ in range(3)]
    for each in (key, deleted, other):
        await write(store, each, text("a"))
    await work(store, lambda rows: rows.hide(deleted[:2]))
    assert left(path) == [(2, 2)]
    await work(store, lambda rows: rows.hide_slice(OWNER))
    assert left(path) == [(0, 0)]
    removed = await work(store, lambda rows: rows.purge_slice(OWNER))
    assert removed is not None
    assert (removed.conversations, removed.turns) == (3, 3)


async def test_renaming_ends_the_turn(store: Store, path: Path) -> None:
    """The new owner has the lease and the events, expired, so that the next sweep closes the turn with its text."""
    key, other = await begin(store), await begin(store, "bob")
    await write(store, key, text("so far"))
    await store.rename_owner(OWNER, "eve")
    assert await write(store, key, text("!"), after=1) is TurnState.LOST
    assert execute(path, "SELECT owner_id, until FROM turns WHERE owner_id <> 'bob'") == [("eve", 0)]
    assert execute(path, "SELECT owner_id FROM turn_events") == [("eve",)]
    assert await store.turns.expire_turns() == 1
    message = await store.get_message("eve", key.conversation_id, key.message_id)
    assert (message.content, message.status) == ("so far", Status.INTERRUPTED)
    assert await write(store, other, text("!")) is TurnState.RUNNING


async def test_renaming_by_a_process_of_0005(store: Store, path: Path) -> None:
    """A process that does not know of turns can rename an owner with running ones, and remove a conversation."""
    key, other = await begin(store), await begin(store)
    await write(store, key, text("so far"))
    renaming = [
        f"UPDATE {table} SET owner_id = 'eve' WHERE owner_id = 'ada'" for table in ("conversations", "messages")
    ]
    statements = ["PRAGMA defer_foreign_keys = ON", "INSERT INTO users VALUES ('eve')", *renaming]
    execute(path, f"BEGIN; {'; '.join(statements)}; DELETE FROM users WHERE id = 'ada'; COMMIT")
    assert left(path) == [(2, 1)]
    assert await write(store, key, text("!"), after=1) is TurnState.LOST
    execute(path, "DELETE FROM conversations WHERE id = ?", key.conversation_id.bytes)
    assert left(path) == [(1, 0)]
    assert (await store.turns.turn_events([TurnPlace(other._replace(owner="eve"))]))[0].is_running


# --- the schema ------------------------------------------------------------------------------------------


async def test_downgrade_keeps_the_text_of_running_answers(store: Store, path: Path) -> None:
    """The text events in order, NUL and all; other answers stay as they are, and the text is found afterwards."""
    pieces = ["one\0two ", "", "\0", "é😀 \uffff", "sage", '\x1f"\\ '] + [f"{n} " for n in range(20)]
    empty, key, ended = [await begin(store) for _ in range(3)]
    await store.turns.finish_turn(*ended, Ending(Status.COMPLETE, "whole"), worker=WORKER)
    await write(store, empty, reasoning("only thoughts"))
    events = [event for piece in pieces for event in (text(piece), reasoning("hm"))]
    await write(store, key, *events)
    await store.migrate("0005")
    await store.migrate()
    for each, content, status in (
        (empty, "", Status.INTERRUPTED),
        (key, "".join(pieces), Status.INTERRUPTED),
        (ended, "whole", Status.COMPLETE),
    ):
        message = await store.get_message(*each)
        assert (message.content, message.status) == (content, status)
    assert await found(store, OWNER, "sage") == {"".join(pieces)}
    assert await found(store, OWNER, "Why") != set()


# --- statistics ------------------------------------------------------------------------------------------


async def remember(store: Store, *answers: ImportedMessage) -> UUID:
    """Import answers with their own times."""
    talk = ImportedConversation(id=uuid4())
    await store.import_conversation(OWNER, talk, answers)
    return cast("UUID", talk.id)


def answer(moment: datetime, **values: Any) -> ImportedMessage:
    """An answer of a model."""
    given = {"role": "assistant", "content": "a", "model": "m", "created_at": moment, **values}
    return ImportedMessage.model_validate(given)


async def test_statistics_read_nothing_but_their_index(store: Store, path: Path) -> None:
    """No message is read for them: the index has all that they need."""
    with closing(apsw.Connection(str(path))) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {ANSWERS}", (OWNER, 0, 1))]
    assert plan[0].startswith("SEARCH messages USING COVERING INDEX messages_by_model (owner_id=? AND created_at>?")
    assert plan[1:] == ["USE TEMP B-TREE FOR GROUP BY"]


async def test_durations_are_rounded_as_everywhere(store: Store) -> None:
    """Every length of a duration, its bounds, and none."""
    durations = [
        value for digits in range(19) for value in (10**digits - 1, 10**digits, int("187654321" * 3) % 10**digits)
    ]
    wanted = [0, 9, 10, 11, 99, 2**63 - 1, *durations]
    await remember(store, *(answer(BEGINNING, duration_ms=value) for value in wanted), answer(BEGINNING))
    counts = await work(store, lambda rows: rows.answers_of(OWNER, BEGINNING, END))
    assert {count.duration_ms for count in counts} == {None, *map(two_digits, wanted)}
    each = {rounded: len(list(some)) for rounded, some in groupby(sorted(map(two_digits, wanted)))}
    assert {count.duration_ms: count.answers for count in counts if count.duration_ms is not None} == each


async def test_sums_beyond_64_bits(store: Store) -> None:
    """However many tokens there were, they are added up exactly."""
    counts = [2**63 - 1, 2**63 - 1, 1, 2**32, 2**32 - 1, 7, None, 2**63 - 1]
    answers = [answer(BEGINNING, input_tokens=count, output_tokens=count, duration_ms=2**63 - 1) for count in counts]
    await remember(store, *answers)
    (day, everything) = await store.turns.answer_stats(OWNER, after=BEGINNING, before=BEGINNING + timedelta(days=1))
    total = sum(count or 0 for count in counts)
    assert (day.input_tokens, day.output_tokens, everything.output_tokens) == (total, total, total)
    assert everything.p99_ms == two_digits(2**63 - 1)


async def test_days_are_those_of_utc(store: Store) -> None:
    """An answer belongs to the day on which it was begun, up to its last microsecond."""
    micro = timedelta(microseconds=1)
    midnights = [datetime(*day, tzinfo=UTC) for day in ((1970, 1, 2), (1999, 12, 31), (2024, 2, 29))]
    moments = [moment for midnight in midnights for moment in (midnight - micro, midnight, midnight + micro)]
    await remember(store, *map(answer, moments))
    counts = await work(store, lambda rows: rows.answers_of(OWNER, BEGINNING, END))
    expected = {(moment - BEGINNING).days: 0 for moment in moments}
    for moment in moments:
        expected[(moment - BEGINNING).days] += 1
    assert {count.day: count.answers for count in counts} == expected


async def test_statistics_of_many_answers(store: Store) -> None:
    """Answers that are running have no model yet, and other owners' and other times' are not counted."""
    await begin(store)
    key = await begin(store)
    await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "a", model="m", duration_ms=1_234), worker=WORKER)
    theirs = await begin(store, "bob")
    await store.turns.finish_turn(*theirs, Ending(Status.FAILED, "", model="m"), worker=WORKER)
    after = now() - timedelta(days=1)
    *_, everything = await store.turns.answer_stats(OWNER, after=after, before=after + timedelta(days=2))
    assert (everything.answers, everything.failed, everything.p50_ms) == (1, 0, 1_200)


def test_places_are_looked_up_by_the_key(path: Path) -> None:
    """Neither the lease nor its events are searched for in anything but the key of their table."""

    async def make() -> None:
        async with open_store(f"sqlite:///{path}"):
            pass

    asyncio.run(make())
    with closing(apsw.Connection(str(path))) as connection:
        plan = [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {LOOK}", (0, OWNER, b"", b"", 0))]
    searches = [line for line in plan if line.startswith(("SEARCH", "SCAN"))]
    assert len(searches) == 2
    assert all("owner_id=? AND conversation_id=? AND message_id=?" in line for line in searches), plan
