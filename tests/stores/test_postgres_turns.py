"""Turns in PostgreSQL: races of several processes, what is logged, plans, and texts that keep others waiting."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from chatkeep import Conversation, NewConversation, NotFound, Status, Store, open_store
from chatkeep.errors import TooManyTurns, TurnInProgress, TurnLost
from chatkeep.events import EventKind, TurnEvent
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.postgres.rows import PostgresRows
from chatkeep.stores.postgres.turns import ANSWERS
from chatkeep.stores.turn_rows import ALL_BYTES, TurnRows, two_digits
from chatkeep.testing import user
from chatkeep.turns import LEASE, Ending, Turn, TurnKey, TurnPlace, TurnState, TurnWrite
from servers.postgres import databases, raw

OWNER, OTHER = "ada", "bob"
WORKER = uuid4()
COUNTS = "SELECT (SELECT count(*) FROM turns), (SELECT count(*) FROM turn_events)"
DONE = Ending(Status.COMPLETE, "tea")


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


@pytest.fixture
async def other(url: str) -> AsyncIterator[Store]:
    """The store of another process."""
    async with open_store(url, migrate=False) as store:
        yield store


def pieces(first: int, *texts: str) -> list[TurnEvent]:
    """Pieces of text, from a number on."""
    return [TurnEvent(n, EventKind.TEXT, {"text": text}) for n, text in enumerate(texts, first)]


async def begun(store: Store, owner: str = OWNER, lease: timedelta = LEASE) -> TurnKey:
    """A turn in a new conversation."""
    talk = await store.create_conversation(owner, NewConversation())
    turn = await store.turns.start_turn(owner, talk.id, user("why?"), worker=WORKER, lease=lease, max_running=1_000)
    return TurnKey(owner, talk.id, turn.answer.id)


async def stored(store: Store, key: TurnKey, *events: TurnEvent, lease: timedelta = LEASE) -> TurnState:
    """What became of some events."""
    return (await store.turns.append_turn_events(WORKER, [TurnWrite(key, events)], lease=lease))[key]


async def expire(url: str) -> None:
    """Have every lease end now."""
    async with raw(url) as connection:
        await connection.execute("UPDATE turns SET until = now() - interval '1 ms'")


# --- events ----------------------------------------------------------------------------------------------------

EVENTS = [
    TurnEvent(1, EventKind.REASONING, {"text": "a\0b\x1b", "signature": "s\0"}),
    TurnEvent(2, EventKind.TEXT, {"text": "caf\u00e9 \U0001f375\0"}),
    TurnEvent(3, EventKind.TEXT, {"text": "", "id": "block"}),
    TurnEvent(4, EventKind.TOOL_CALL, {"id": "t", "name": "\0", "arguments": {"n": 10**40}}),
    TurnEvent(5, EventKind.USAGE, {"input_tokens": 2**63 - 1}),
]


async def test_events_come_back_as_they_were(store: Store) -> None:
    """Of every kind, with characters that PostgreSQL cannot hold; stored again, in the other way, they stay."""
    key = await begun(store)
    for _ in range(2):
        assert await stored(store, key, *EVENTS) is TurnState.RUNNING
    await stored(store, key, *EVENTS, *pieces(6, "more"))
    (progress,) = await store.turns.turn_events([TurnPlace(key)])
    assert progress.events == [*EVENTS, *pieces(6, "more")]
    (progress,) = await store.turns.turn_events([TurnPlace(key, 10**18 - 1)])
    assert (progress.events, progress.is_running) == ([], True)


async def test_locked_lease_holds_up_nobody(store: Store, url: str) -> None:
    """What another transaction has locked is busy, and has no new events; others are stored, or lost."""
    keys = [await begun(store, owner) for owner in (OWNER, OTHER, "zoe")]
    writes = [TurnWrite(key, pieces(1, "tea")) for key in keys]
    async with raw(url) as connection, connection.transaction():
        await connection.execute("SELECT 1 FROM turns WHERE owner_id = $1 FOR UPDATE", OWNER)
        await connection.execute("UPDATE turns SET worker = $1 WHERE owner_id = 'nobody'", uuid4())
        began = time.monotonic()
        states = await store.turns.append_turn_events(WORKER, writes)
        assert time.monotonic() - began < 5
        assert list(states.values()) == [TurnState.BUSY, TurnState.RUNNING, TurnState.RUNNING]
    found = await store.turns.turn_events([TurnPlace(key) for key in keys])
    assert [len(progress.events) for progress in found] == [0, 1, 1]
    await store.turns.stop_turn(*keys[1])
    await store.turns.finish_turn(*keys[2], DONE, worker=WORKER)
    for _ in range(2):  # the second time in a transaction for each owner
        states = await store.turns.append_turn_events(WORKER, writes)
        assert list(states.values()) == [TurnState.RUNNING, TurnState.STOPPING, TurnState.LOST]
    assert (await store.turns.append_turn_events(uuid4(), writes))[keys[0]] is TurnState.LOST


@pytest.mark.parametrize("again", [False, True], ids=["fast", "again"])
async def test_lease_is_extended_when_a_third_is_over(store: Store, url: str, *, again: bool) -> None:
    """Not with each flush, which would write more than the text."""
    key = await begun(store)
    async with raw(url) as connection:

        async def until_after(left: float) -> float:
            await connection.execute("UPDATE turns SET until = now() + $1", timedelta(seconds=left))
            await stored(store, key, *pieces(1, "tea") if again else ())
            found: float = await connection.fetchval("SELECT extract(epoch FROM until - now())::float FROM turns")
            return found

        await until_after(12)
        assert await until_after(11) < 11
        assert 14 < await until_after(9) <= 15


async def test_many_places_in_one_statement(store: Store) -> None:
    """500 turns, with events of some size: each from its own place, as many as have room, one at least."""
    keys = [await begun(store, f"owner {n}") for n in range(10)]
    await store.turns.append_turn_events(WORKER, [TurnWrite(key, pieces(1, "x", "y" * 3_000_000, "z")) for key in keys])
    gone = TurnKey("nobody", uuid4(), uuid4())
    places = [TurnPlace(keys[n % 10], n % 4) if n % 50 else TurnPlace(gone) for n in range(500)]
    found = await store.turns.turn_events(places)
    for place, progress in zip(places, found, strict=True):
        expected = [] if place.key is gone else {0: [1], 1: [2], 2: [3], 3: []}[place.after]
        assert [event.n for event in progress.events] == expected
        assert progress.is_running is (place.key is not gone)


@pytest.mark.parametrize("state", ["vacuumed", "never seen"])
async def test_plans_of_an_empty_table_are_not_kept(store: Store, url: str, state: str) -> None:
    """A connection that has asked for events while there were none reads its few of many when there are."""
    key, crowd = await begun(store), await begun(store, OTHER)
    place = TurnPlace(key)
    async with raw(url) as connection:
        await connection.execute("ALTER TABLE turn_events SET (autovacuum_enabled = off)")
        if state == "vacuumed":
            await connection.execute("VACUUM ANALYZE turn_events")
        rows: TurnRows = PostgresRows(connection, LongTexts())
        for _ in range(10):
            await rows.events_of([place], ALL_BYTES)
        for first in range(1, 20_001, 1_000):
            await stored(store, crowd, *pieces(first, *["crowd"] * 1_000))
        await stored(store, key, *pieces(1, "tea"))
        asked = "SELECT seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables WHERE relname = $1"
        async with connection.transaction():
            assert len((await rows.events_of([place], ALL_BYTES))[0].events) == 1
            assert await connection.fetchval(asked, "turn_events") <= 2


# --- several processes -------------------------------------------------------------------------------------------


async def deadlocks(url: str) -> int:
    """How many the database has seen."""
    async with raw(url) as connection:
        await connection.execute("SELECT pg_stat_force_next_flush()")
        found: int = await connection.fetchval(
            "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        )
        return found


@pytest.fixture(autouse=True)
async def nothing_deadlocks(url: str) -> AsyncIterator[None]:
    """Locks are taken in one order: a deadlock costs a second, and then a retry hides it."""
    before = await deadlocks(url)
    yield
    assert await deadlocks(url) == before


async def test_turns_of_one_owner_begin_one_after_another(store: Store, other: Store) -> None:
    """Of 24 at once in as many conversations four begin, and the others are refused."""
    talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(24)]

    async def start(number: int, talk: Conversation) -> bool:
        turns = (store, other)[number % 2].turns
        try:
            return (await turns.start_turn(OWNER, talk.id, user("why?"), worker=uuid4())).is_mine
        except TooManyTurns:
            return False

    creating = [store.create_conversation(OWNER, NewConversation()) for _ in range(8)]
    found = await asyncio.gather(*(start(*each) for each in enumerate(talks)), *creating)
    assert sum(each is True for each in found) == 4


async def test_turns_that_wait_to_begin_leave_connections_to_others(store: Store, url: str) -> None:
    """However many one owner begins at once while a lock is held."""
    talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(30)]
    async with raw(url) as connection, connection.transaction():
        await begun(store, OTHER)
        await connection.execute("SELECT 1 FROM users WHERE id = $1 FOR UPDATE", OWNER)
        starting = [
            asyncio.create_task(store.turns.start_turn(OWNER, talk.id, user("why?"), worker=WORKER, max_running=30))
            for talk in talks
        ]
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        )
        while not await connection.fetchval(waiting):
            pass
        await begun(store, OTHER)
        assert await connection.fetchval(waiting) == 1
    assert all(turn.is_mine for turn in await asyncio.gather(*starting))


async def test_one_question_begins_one_turn(store: Store, other: Store) -> None:
    """64 ask the same at once: one begins, the others get its turn; another question is refused, and not stored."""
    talk = await store.create_conversation(OWNER, NewConversation())
    question, another = user("why?", id=uuid4()), user("how?", id=uuid4())

    async def start(number: int) -> Turn | None:
        turns = (store, other)[number % 2].turns
        with suppress(TurnInProgress):
            return await turns.start_turn(OWNER, talk.id, another if number % 8 == 0 else question, worker=uuid4())
        return None

    found = [turn for turn in await asyncio.gather(*map(start, range(64))) if turn]
    assert [turn.is_mine for turn in found].count(True) == 1
    assert len({turn.answer.id for turn in found}) == 1
    assert [m.seq for m in await store.log(OWNER, talk.id)] == [1, 2]


async def flush_until_lost(store: Store, key: TurnKey, lease: timedelta = LEASE) -> str:
    """Store pieces of text until the turn is lost, and return what was acknowledged."""
    said, n = "", 1
    while True:
        state = await stored(store, key, *pieces(n, f"{n} "), lease=lease)
        if state is TurnState.LOST:
            return said
        if state is not TurnState.BUSY:
            said, n = f"{said}{n} ", n + 1


async def delete(store: Store, key: TurnKey) -> None:
    assert await store.delete_conversation(*key[:2])


async def delete_answer(store: Store, key: TurnKey) -> None:
    assert await store.delete_message(*key)


async def erase(store: Store, key: TurnKey) -> None:
    receipt = await store.erase_owner(key.owner)
    assert (receipt.turns, receipt.remaining, receipt.conversations) == (1, 0, 1)


async def rename(store: Store, key: TurnKey) -> None:
    assert await store.rename_owner(key.owner, f"{key.owner} again") == 1


async def sweep(store: Store, key: TurnKey) -> None:
    while not await store.turns.expire_turn(*key):
        pass


ENDS: list[Callable[[Store, TurnKey], Awaitable[None]]] = [delete, delete_answer, erase, rename, sweep]


@pytest.mark.parametrize("end", ENDS)
async def test_flushes_beside_the_end(
    store: Store, other: Store, url: str, end: Callable[[Store, TurnKey], Awaitable[None]]
) -> None:
    """Twelve turns that are flushed as fast as it goes, ended from outside: nothing that was acknowledged is lost."""
    lease = timedelta(milliseconds=30) if end is sweep else LEASE
    keys = [await begun(store, f"owner {n}", lease) for n in range(12)]
    flush = stop_and_go if end is sweep else flush_until_lost
    flushing = [asyncio.create_task(flush(store, key, lease)) for key in keys]
    await asyncio.sleep(0.05)
    for key in keys:
        await end(other, key)
    said = dict(zip(keys, await asyncio.wait_for(asyncio.gather(*flushing), 20), strict=True))
    if end is rename:
        keys = [key._replace(owner=f"{key.owner} again") for key in keys]
        assert await other.turns.expire_turns() == len(keys)
    async with raw(url) as connection:
        assert tuple(await connection.fetchrow(COUNTS) or ()) == (0, 0)
    if end in (rename, sweep):
        for key, text in zip(keys, said.values(), strict=True):
            answer = await store.get_message(*key)
            assert (answer.status, answer.content) == (Status.INTERRUPTED, text)
            assert any(said.values())


@pytest.mark.parametrize("hide", ["hide", "hide_slice"])
async def test_nothing_is_stored_once_a_conversation_is_hidden(store: Store, url: str, hide: str) -> None:
    """Not even before its rows are removed, and whoever reads or sweeps meanwhile sees that the turn is over."""
    key = await begun(store)
    async with raw(url) as connection:
        rows = PostgresRows(connection, LongTexts())
        await (rows.hide(key[:2]) if hide == "hide" else rows.hide_slice(OWNER))
        assert await stored(store, key, *pieces(1, "tea")) is TurnState.LOST
        (progress,) = await store.turns.turn_events([TurnPlace(key)])
        assert progress.has_expired
        assert await store.turns.expire_turns() == 1
        assert tuple(await connection.fetchrow(COUNTS) or ()) == (0, 0)


async def stop_and_go(store: Store, key: TurnKey, lease: timedelta) -> str:
    """Store pieces of text with pauses as long as the lease, until the turn is lost."""
    said, n = "", 1
    while (state := await stored(store, key, *pieces(n, f"{n} "), lease=lease)) is not TurnState.LOST:
        if state is not TurnState.BUSY:
            said, n = f"{said}{n} ", n + 1
        await asyncio.sleep(lease.total_seconds() * (n % 3) / 2)
    return said


async def test_sweeps_beside_each_other(store: Store, other: Store, url: str) -> None:
    """Of several processes that sweep, and that start turns and stop them meanwhile, one closes each turn."""
    keys = [await begun(store) for _ in range(20)]
    await store.turns.append_turn_events(WORKER, [TurnWrite(key, pieces(1, "tea")) for key in keys])
    await expire(url)
    sweeping = [each.turns.expire_turns() for each in (store, other, store, other)]
    stopping = [other.turns.stop_turn(*key) for key in keys[:5]]
    asking = [store.turns.start_turn(*key[:2], user("how?"), worker=WORKER, max_running=99) for key in keys[5:10]]
    closed, stopped, asked = await asyncio.gather(
        asyncio.gather(*sweeping), asyncio.gather(*stopping), asyncio.gather(*asking)
    )
    assert sum(closed) <= 20
    assert not any(stopped)
    assert all(turn.is_mine for turn in asked)
    for key in keys:
        answer = await store.get_message(*key)
        assert (answer.content, answer.status) == ("tea", Status.INTERRUPTED)
    async with raw(url) as connection:
        assert tuple(await connection.fetchrow(COUNTS) or ()) == (5, 0)


async def test_ends_beside_each_other(store: Store, other: Store) -> None:
    """A turn is finished, deleted, stopped and swept at once: one of them wins, and nobody hangs."""
    for _ in range(10):
        key = await begun(store, lease=timedelta(0))

        async def finish(key: TurnKey = key) -> None:
            with suppress(TurnLost, NotFound):
                await store.turns.finish_turn(*key, DONE, worker=WORKER)

        async def stop(key: TurnKey = key) -> None:
            with suppress(NotFound):
                await other.turns.stop_turn(*key)

        await asyncio.wait_for(asyncio.gather(finish(), other.turns.expire_turn(*key), stop(), delete(other, key)), 20)
        assert (await store.turns.turn_events([TurnPlace(key)]))[0].is_running is False


async def test_receipt_of_an_erasure_counts_turns(store: Store) -> None:
    """Of three conversations two are being answered."""
    await store.create_conversation(OWNER, NewConversation())
    for _ in range(2):
        await stored(store, await begun(store), *pieces(1, "tea"))
    receipt = await store.erase_owner(OWNER)
    assert (receipt.turns, receipt.conversations, receipt.messages, receipt.remaining) == (2, 3, 4, 0)


async def test_remains_are_counted(store: Store, url: str) -> None:
    """Rows of turns that an erasure should have removed are told."""
    key = await begun(store)
    await stored(store, key, *pieces(1, "tea", "cup"))
    async with raw(url) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SET LOCAL session_replication_role = replica; DELETE FROM conversations")
        assert await PostgresRows(connection, LongTexts()).remove_owner(OWNER) == 2 + 1 + 2  # messages, turn, events
        await transaction.rollback()


# --- large answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["finished", "swept"])
async def test_long_answers_leave_the_loop_to_others(store: Store, url: str, way: str) -> None:
    """The words of eight megabytes are found in a thread; the loop is never held up for long."""
    key = await begun(store)
    text = "\u0e01\u0e32 " * 900_000
    gaps: list[float] = []

    async def tick() -> None:
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.005)
            gaps.append(time.monotonic() - began)

    if way == "swept":
        await stored(store, key, *pieces(1, text))
        await expire(url)
    ticking = asyncio.create_task(tick())
    if way == "swept":
        assert await store.turns.expire_turns() == 1
    else:
        await store.turns.finish_turn(*key, Ending(Status.COMPLETE, text), worker=WORKER)
    ticking.cancel()
    assert max(gaps) < 0.5
    assert (await store.get_message(*key)).content == text
    assert (await store.search_messages(OWNER, "\u0e01\u0e32")).items


async def test_answers_are_found_unless_search_is_off(store: Store, url: str) -> None:
    """The words of an answer are indexed when it ends."""
    for search in ("on", "off"):
        async with open_store(url, search=search) as other:
            key = await begun(other)
            await other.turns.finish_turn(*key, DONE, worker=WORKER)
        async with raw(url) as connection:
            words = await connection.fetchval("SELECT terms FROM messages WHERE id = $1", key.message_id)
            assert bool(words) is (search == "on")
    assert len((await store.search_messages(OWNER, "tea")).items) == 1


# --- statistics ----------------------------------------------------------------------------------------------------

HUGE = 2**63 - 1


async def test_statistics_come_from_the_index(store: Store, url: str) -> None:
    """Whatever the durations are; without reading a message."""
    durations = [None, 0, 7, 99, 100, 12_345, 99_999, HUGE]
    for duration in durations:
        key = await begun(store)
        ending = Ending(Status.FAILED, "x", None, (), "m", HUGE, HUGE, duration)
        await store.turns.finish_turn(*key, ending, worker=WORKER)
    day = timedelta(days=1)
    after = datetime.now(UTC) - day
    async with raw(url) as connection:
        rows = PostgresRows(connection, LongTexts())
        counts = await rows.answers_of(OWNER, after, after + 2 * day)
        expected = {None if each is None else two_digits(each) for each in durations}
        assert {count.duration_ms for count in counts} == expected
        await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        plan = await connection.fetch(f"EXPLAIN {ANSWERS}", OWNER, after, after + day)
        assert "Index Only Scan using messages_by_model" in "\n".join(line for (line,) in plan)
    *_, total = await store.turns.answer_stats(OWNER, after=after, before=after + 2 * day)
    assert (total.answers, total.failed, total.input_tokens) == (8, 8, 8 * HUGE)


# --- migrations ----------------------------------------------------------------------------------------------------


async def test_downgrade_keeps_the_text_of_running_answers(url: str) -> None:
    """They are interrupted then, and have the pieces in their order, with characters that JSON escapes."""
    url = databases().empty()
    texts: dict[UUID, str] = {}
    try:
        async with open_store(url) as store:
            for number in range(3):
                key = await begun(store)
                said = [f'{n}\0\x1b"\\u0000 ' for n in range(12 * number)]
                await stored(store, key, TurnEvent(1, EventKind.REASONING, {"text": "hm"}), *pieces(2, *said))
                texts[key.message_id] = "".join(said)
            await store.migrate("0005")
            await store.migrate()
            for id_, text in texts.items():
                (found,) = [
                    message
                    for talk in (await store.list_conversations(OWNER)).items
                    for message in await store.log(OWNER, talk.id)
                    if message.id == id_
                ]
                assert (found.status, found.content) == (Status.INTERRUPTED, text)
            assert len((await store.search_messages(OWNER, "11")).items) == 2
    finally:
        databases().drop(url)
