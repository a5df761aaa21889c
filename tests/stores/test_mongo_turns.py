"""Turns in MongoDB: their documents, what is sent, conflicts, lost answers, other processes, old and new ones."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import bson
import pytest
from mongo_commands import Commands, commands_sent
from pymongo.errors import DuplicateKeyError, OperationFailure, WriteError

from chatkeep import (
    ImportedConversation,
    ImportedMessage,
    InvalidInput,
    NewConversation,
    NotFound,
    Role,
    Status,
    Store,
    StoreUnavailable,
    open_store,
)
from chatkeep.errors import TurnLost
from chatkeep.events import Event, EventKind, TurnEvent, reasoning, text
from chatkeep.model import NewMessage
from chatkeep.stores.mongo import store as mongo_store
from chatkeep.stores.mongo import turns as statements
from chatkeep.stores.mongo.documents import answered
from chatkeep.stores.mongo.rows import MongoRows
from chatkeep.stores.mongo.store import MongoStore
from chatkeep.stores.turn_rows import two_digits
from chatkeep.testing import contents, user, whole_search
from chatkeep.turns import LEASE, Ending, Turn, TurnKey, TurnPlace, TurnState, TurnWrite
from chatkeep.values import EPOCH, MAX_PARTS_BYTES, now
from chatkeep.words import index_words
from servers.mongo import mongo_databases

OWNER, OTHER = "$ada", "$$NOW"
"""Texts that a pipeline would evaluate."""

WORKER = uuid4()
SHORT = timedelta(milliseconds=1)
DONE = Ending(Status.COMPLETE, "$herb", ({"type": "text", "text": "$herb"},), (), "$model", 1, 2, 3)


@pytest.fixture
def sent() -> Iterator[Commands]:
    """Every command that the stores of this test send, in order."""
    with commands_sent() as sent:
        yield sent


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return mongo_databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


def raw(url: str) -> Any:
    """The database, without chatkeep."""
    return mongo_databases().database(url)


def events(*given: Event, after: int = 0) -> list[TurnEvent]:
    """Events with their numbers."""
    return [TurnEvent(n, *event) for n, event in enumerate(given, after + 1)]


async def begin(store: Store, owner: str = OWNER, **arguments: Any) -> TurnKey:
    """Begin a turn in a conversation of its own."""
    talk = await store.create_conversation(owner, NewConversation())
    turn = await ask(store, owner, talk.id, **arguments)
    return TurnKey(owner, talk.id, turn.answer.id)


async def ask(store: Store, owner: str, id_: UUID, question: NewMessage | UUID | None = None, **arguments: Any) -> Turn:
    """Begin a turn of a conversation."""
    return await store.turns.start_turn(owner, id_, question or user("$sage?"), **{"worker": WORKER} | arguments)


async def write(store: Store, *keys: TurnKey, given: list[TurnEvent], lease: timedelta = LEASE) -> list[TurnState]:
    """Write the same events to several turns."""
    states = await store.turns.append_turn_events(WORKER, [TurnWrite(key, given) for key in keys], lease=lease)
    return [states[key] for key in keys]


async def read(store: Store, key: TurnKey, after: int = 0) -> tuple[list[TurnEvent], bool, bool]:
    """What a reader gets."""
    (found,) = await store.turns.turn_events([TurnPlace(key, after)])
    return list(found.events), found.is_running, found.has_expired


GONE: tuple[list[TurnEvent], bool, bool] = ([], False, False)


# --- documents -------------------------------------------------------------------------------------------


async def test_documents(url: str, store: Store) -> None:
    """What is stored of a lease and of its events; what is absent has no field, and text is not evaluated."""
    before = datetime.now(UTC)
    key = await begin(store)
    given = events(text("$a\x00"), reasoning("$$NOW", signature="s"), Event(EventKind.DATA, {"data": {"$x": 10**30}}))
    assert await write(store, key, given=given) == [TurnState.RUNNING]
    ids = {"o": OWNER, "c": key.conversation_id, "m": key.message_id}
    (lease,) = raw(url).turns.find()
    assert lease["_id"] == ids
    assert (lease["owner_id"], lease["conversation_id"], lease["worker"]) == (OWNER, key.conversation_id, WORKER)
    assert (lease["n"], "stopping" in lease, len(lease)) == (3, False, 7)
    assert before + LEASE < lease["until"].replace(tzinfo=UTC) + timedelta(seconds=1)
    stored = list(raw(url).turn_events.find())
    assert [each["_id"] for each in stored] == [ids | {"n": n} for n in (1, 2, 3)]
    assert [set(each) & {"text", "data"} for each in stored] == [{"text"}, {"data"}, {"data"}]
    assert await read(store, key) == (given, True, False)
    assert await store.turns.stop_turn(*key)
    assert raw(url).turns.find_one()["stopping"] is True
    await store.turns.finish_turn(*key, DONE, worker=WORKER)
    assert raw(url).turns.count_documents({}) == raw(url).turn_events.count_documents({}) == 0
    answer = raw(url).messages.find_one({"model": "$model"})
    assert {"sources", "metadata", "unindexed"}.isdisjoint(answer)
    assert (answer["content"], answer["words"], answer["duration_ms"]) == ("$herb", index_words("$herb"), 3)


@pytest.mark.parametrize(
    ("collection", "values"),
    [
        ("turns", {"worker": None}),
        ("turns", {"until": 7}),
        ("turns", {"n": -1}),
        ("turns", {"stopping": False}),
        ("turns", {"owner_id": 7}),
        ("turn_events", {"n": 0}),
        ("turn_events", {"kind": None}),
        ("turn_events", {"data": {"a": 1}}),
        ("turn_events", {"text": 3}),
    ],
)
async def test_validators_refuse(url: str, store: Store, collection: str, values: dict[str, Any]) -> None:
    """Types are the database's own rules."""
    await write(store, await begin(store), given=events(text("a")))
    good = raw(url)[collection].find_one()
    with pytest.raises(WriteError) as caught:
        raw(url)[collection].insert_one({**good, "_id": "x", **values})
    assert caught.value.code == 121
    raw(url)[collection].insert_one({**good, "_id": "x"})


@pytest.mark.parametrize("character", ["a", "\x01", "茶", "\U0001f33f", '"'], ids=ascii)
async def test_the_largest_answer_fits(character: str) -> None:
    """Of 8 MiB together, as they are stored, with its words: half of it content, or everything."""
    for share in (1, 2):
        content = " ".join(character * 2 for _ in range(MAX_PARTS_BYTES // share // (2 * len(character.encode()) + 1)))
        part = MAX_PARTS_BYTES - len(content.encode())
        ending = Ending(Status.COMPLETE, content, ({"type": "text", "text": "x" * part},))
        size = len(bson_of(answered(ending, index_words(content))["$set"]))
        assert size < (15 << 20), size


def bson_of(document: Mapping[str, Any]) -> bytes:
    """A document as it is stored."""
    return bson.encode(document)


async def test_an_answer_that_is_too_large_is_refused(store: Store) -> None:
    """It is said, and the turn runs on: its worker ends it otherwise."""
    key = await begin(store)
    with pytest.raises(InvalidInput, match="16 MB"):
        await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "x" * (17 << 20)), worker=WORKER)
    await store.turns.finish_turn(*key, DONE, worker=WORKER)


async def test_a_question_that_is_too_large_is_refused(url: str) -> None:
    """Before anything is stored."""
    async with open_store(url, max_content_chars=20 << 20) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        with pytest.raises(InvalidInput, match="16 MB"):
            await ask(store, OWNER, talk.id, user("茶" * (6 << 20)))
        assert await store.log(OWNER, talk.id) == []


async def test_words_with_and_without_search(url: str) -> None:
    """Whoever ends a turn indexes it, or leaves that to a process with search."""
    async with open_store(url) as store, open_store(url, search="off") as plain:
        for begins, ends in ((store, plain), (plain, store), (plain, plain)):
            key = await begin(begins)
            await ends.turns.finish_turn(*key, Ending(Status.COMPLETE, "Salvia"), worker=WORKER)
        assert raw(url).messages.count_documents({"content": "Salvia", "unindexed": True}) == 2
        assert raw(url).messages.count_documents({"content": "Salvia", "words": {"$exists": True}}) == 1
    async with open_store(url) as store:
        assert len(await whole_search(store, OWNER, "salvia")) == 3


async def test_words_of_an_answer_that_ends_while_it_is_indexed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read of it before it ended does not count."""
    async with open_store(url, search="off") as plain:
        key = await begin(plain)
        read_slice, ended = MongoRows._slice, False

        async def late(*arguments: Any, **options: Any) -> Any:
            nonlocal ended
            found = await read_slice(*arguments, **options)
            if not ended:
                ended = True
                await plain.turns.finish_turn(*key, Ending(Status.COMPLETE, "Salvia"), worker=WORKER)
            return found

        monkeypatch.setattr(MongoRows, "_slice", late)
        async with open_store(url) as store:
            assert ended
            assert len(await whole_search(store, OWNER, "salvia")) == 1


# --- what is sent ----------------------------------------------------------------------------------------


async def test_flushes_are_few_commands(url: str, sent: Commands) -> None:
    """The events of all turns are four commands, and a commit; a lease that is fresh is not written without events."""
    async with open_store(url) as store:
        keys = [await begin(store, owner) for owner in (OWNER, OWNER, OTHER)]
        sent.clear()
        assert await write(store, *keys, given=events(text("a"), text("b"))) == [TurnState.RUNNING] * 3
        assert [next(iter(each)) for each in sent] == ["aggregate", "update", "insert", "commitTransaction"]
        assert len(sent[1]["updates"]) == 3
        sent.clear()
        await write(store, *keys, given=[])
        assert [next(iter(each)) for each in sent] == ["aggregate", "commitTransaction"]
        sent.clear()
        await write(store, *keys, given=[], lease=4 * LEASE)
        assert [next(iter(each)) for each in sent] == ["aggregate", "update", "commitTransaction"]
        sent.clear()
        await store.turns.turn_events([TurnPlace(key, after) for key in keys for after in (0, 1)])
        assert [next(iter(each)) for each in sent] == ["aggregate", "find"]
        sent.clear()
        await store.turns.turn_events([TurnPlace(key, 2) for key in keys])
        assert [next(iter(each)) for each in sent] == ["aggregate"]


async def test_pipelines_have_no_text_of_users(url: str, sent: Commands) -> None:
    """But in $match, which evaluates nothing."""
    async with open_store(url) as store:
        key = await begin(store, OTHER)
        await write(store, key, given=events(text("$a")))
        await store.turns.finish_turn(*key, DONE, worker=WORKER)
        await store.turns.answer_stats(OTHER, after=now() - timedelta(1), before=now())
    pipelines = [each["pipeline"][1:] for each in sent if "pipeline" in each]
    pipelines += [change["u"] for each in sent for change in each.get("updates", ()) if isinstance(change["u"], list)]
    assert len(pipelines) >= 5
    known = {"$until", "$$NOW", "$created_at", "$duration_ms", "$status", "$input_tokens", "$output_tokens"}
    assert texts_of(pipelines) <= known


def texts_of(value: Any) -> set[str]:
    """All values of a pipeline that are text."""
    if isinstance(value, Mapping):
        return set().union(*map(texts_of, value.values()))
    if isinstance(value, list):
        return set().union(*map(texts_of, value))
    return {value} if isinstance(value, str) else set()


# --- readers ---------------------------------------------------------------------------------------------


async def test_a_reader_is_told_when_the_turn_ends_while_it_reads(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the lease and its events: it gets nothing of them, and the message has everything."""
    key = await begin(store)
    await write(store, key, given=events(text("a"), text("b")))
    find = MongoRows._events

    async def late(*arguments: Any) -> Any:
        monkeypatch.setattr(MongoRows, "_events", find)
        await store.turns.finish_turn(*key, DONE, worker=WORKER)
        return await find(*arguments)

    monkeypatch.setattr(MongoRows, "_events", late)
    assert await read(store, key) == GONE
    assert (await store.get_message(*key)).content == "$herb"


async def test_a_reader_gets_what_there_was_with_the_lease(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is stored between the lease and its events comes with the next read."""
    key = await begin(store)
    first, more = events(text("a")), events(text("b"), after=1)
    await write(store, key, given=first)
    find = MongoRows._events

    async def late(*arguments: Any) -> Any:
        monkeypatch.setattr(MongoRows, "_events", find)
        await write(store, key, given=more)
        return await find(*arguments)

    monkeypatch.setattr(MongoRows, "_events", late)
    assert await read(store, key) == (first, True, False)
    assert await read(store, key, 1) == (more, True, False)


async def test_many_events_are_read_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several readers at different places each gets its own; the message has all at once."""
    monkeypatch.setattr(statements, "MOST_EVENTS", 10)
    key = await begin(store)
    given = events(*(text(f"{n} ") for n in range(35)))
    await write(store, key, given=given)
    places = [TurnPlace(key, after) for after in (0, 20, 7, 30, 35, 99)]
    found = await store.turns.turn_events(places)
    assert [list(each.events) for each in found] == [given[:10], given[20:30], given[7:17], given[30:], [], []]
    assert {each.is_running for each in found} == {True}
    assert (await store.get_message(*key)).content == "".join(event.data["text"] for event in given)


# --- conflicts and lost answers --------------------------------------------------------------------------

CONFLICT = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}


@pytest.fixture
def failing() -> Iterator[Callable[..., AbstractContextManager[None]]]:
    """Fail commands of all clients, as MongoDB's failCommand does."""
    admin = mongo_databases().client.admin

    @contextmanager
    def failing(times: int, *commands: str, **data: Any) -> Iterator[None]:
        mode = {"times": times}
        admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": {"failCommands": commands, **data}})
        yield
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})

    try:
        admin.command({"configureFailPoint": "failCommand", "mode": "off"})
    except OperationFailure:
        pytest.skip("this server takes no failCommand: start it with --setParameter enableTestCommands=1")
    yield failing
    admin.command({"configureFailPoint": "failCommand", "mode": "off"})


@pytest.mark.parametrize("command", ["aggregate", "update", "insert", "commitTransaction"])
async def test_conflicts_are_tried_again(store: Store, failing: Any, command: str) -> None:
    """All turns together a few times, then each alone: those that still have conflicts are busy, and later stored."""
    keys = [await begin(store) for _ in range(3)]
    given = events(text("a"), text("b"))
    with failing(mongo_store.CONFLICTS - 1, command, **CONFLICT):
        assert await write(store, *keys, given=given[:1]) == [TurnState.RUNNING] * 3
    with failing(2 * mongo_store.CONFLICTS, command, **CONFLICT):
        states = await write(store, *keys, given=given)
    assert states == [TurnState.BUSY, TurnState.RUNNING, TurnState.RUNNING]
    assert [await read(store, key) for key in keys] == [(given[: 1 + (key != keys[0])], True, False) for key in keys]
    assert await write(store, *keys, given=given) == [TurnState.RUNNING] * 3
    assert await read(store, keys[0]) == (given, True, False)


async def test_what_is_no_conflict_is_raised(store: Store, failing: Any) -> None:
    """The caller hears of it, and keeps its events."""
    key = await begin(store)
    with failing(1, "insert", errorCode=13), pytest.raises(StoreUnavailable):
        await write(store, key, given=events(text("a")))
    assert await write(store, key, given=events(text("a"))) == [TurnState.RUNNING]


@pytest.mark.parametrize("way", [{"closeConnection": True}, {"writeConcernError": {"code": 64, "errmsg": "late"}}])
async def test_lost_answers_to_commits(url: str, store: Store, failing: Any, way: dict[str, Any]) -> None:
    """One turn, each event once, one answer."""
    talk = await store.create_conversation(OWNER, NewConversation())
    with failing(1, "commitTransaction", **way):
        turn = await ask(store, OWNER, talk.id)
    key = TurnKey(OWNER, talk.id, turn.answer.id)
    assert turn.is_mine
    with failing(1, "commitTransaction", **way):
        await write(store, key, given=events(text("a")))
    with failing(1, "commitTransaction", **way):
        assert await store.turns.stop_turn(*key)
    assert (await read(store, key))[0] == events(text("a"))
    with failing(1, "commitTransaction", **way):
        await store.turns.finish_turn(*key, DONE, worker=WORKER)
    assert raw(url).messages.count_documents({}) == 2


async def test_a_turn_that_is_being_ended_is_busy(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are stored meanwhile; whoever writes to nothing else waits for the end."""
    keys = [await begin(store) for _ in range(2)]
    ending, goes_on = asyncio.Event(), asyncio.Event()
    set_answer = MongoRows.set_answer

    async def slowly(self: MongoRows, *arguments: Any) -> None:
        ending.set()
        await goes_on.wait()
        await set_answer(self, *arguments)

    monkeypatch.setattr(MongoRows, "set_answer", slowly)
    finished = asyncio.create_task(store.turns.finish_turn(*keys[0], DONE, worker=WORKER))
    await ending.wait()
    flushed = asyncio.create_task(write(store, *keys, given=events(text("a"))))
    waiting = asyncio.create_task(write(store, keys[0], given=events(text("a"))))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    goes_on.set()  # the emulator's transactions take turns
    assert await flushed == [TurnState.BUSY, TurnState.RUNNING]
    assert await waiting == [TurnState.LOST]
    assert (await finished).content == "$herb"


# --- other processes -------------------------------------------------------------------------------------


async def test_one_question_to_two_processes(url: str) -> None:
    """One turn begins, in one of them."""
    async with open_store(url) as one, open_store(url) as two:
        talk = await one.create_conversation(OWNER, NewConversation())
        question = user("sage?", id=uuid4())
        workers = [uuid4() for _ in range(8)]
        turns = await asyncio.gather(
            *(ask((one, two)[n % 2], OWNER, talk.id, question, worker=worker) for n, worker in enumerate(workers))
        )
        assert [turn.is_mine for turn in turns].count(True) == 1
        assert raw(url).turns.count_documents({}) == 1
        assert raw(url).messages.count_documents({}) == 2


async def test_beginning_turns_writes_the_owner(url: str, store: Store) -> None:
    """Which is the conflict of two that begin at once; an owner who is not noted is noted then."""
    talk = await store.create_conversation(OWNER, NewConversation())
    raw(url).users.delete_many({})
    await ask(store, OWNER, talk.id)
    assert raw(url).users.find_one()["turns"] == 1
    with pytest.raises(NotFound):
        await ask(store, "nobody", uuid4())
    assert [each["_id"] for each in raw(url).users.find()] == [OWNER]


# --- removal ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["hide", "hide_slice"])
async def test_hiding_takes_turns_from_their_workers(url: str, store: Store, way: str) -> None:
    """Nobody stores another event; what is left goes with the rest, and is counted."""
    keys = [await begin(store) for _ in range(2)]
    await write(store, *keys, given=events(text("a")))
    assert isinstance(store, MongoStore)
    argument = keys[0][:2] if way == "hide" else OWNER
    await store._write(lambda rows: getattr(rows, way)(argument), atomic=way == "hide")
    states = await write(store, *keys, given=events(text("a"), text("b")))
    assert states == [TurnState.LOST, TurnState.RUNNING if way == "hide" else TurnState.LOST]
    with pytest.raises(TurnLost):
        await store.turns.finish_turn(*keys[0], DONE, worker=WORKER)
    receipt = await store.erase_owner(OWNER)
    assert (receipt.turns, receipt.messages, receipt.remaining) == (2, 4, 0)
    assert raw(url).turns.count_documents({}) == raw(url).turn_events.count_documents({}) == 0


async def test_a_hidden_conversation_whose_removal_was_cut_off(url: str, store: Store) -> None:
    """Its turns are swept, or removed with it."""
    key = await begin(store)
    await write(store, key, given=events(text("a")))
    assert isinstance(store, MongoStore)
    await store._write(lambda rows: rows.hide(key[:2]))
    assert await read(store, key) == (events(text("a")), True, True)
    assert await store.turns.expire_turns() == 1
    assert await read(store, key) == GONE
    assert raw(url).turn_events.count_documents({}) == 0


async def test_erasure_counts_what_is_left(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases and events that nobody removed."""
    key = await begin(store)
    await write(store, key, given=events(text("a"), text("b")))

    async def nothing(*_: Any) -> int:
        return 0

    monkeypatch.setattr(MongoRows, "_remove_turns", nothing)
    assert (await store.erase_owner(OWNER)).remaining == 3


async def test_a_rename_moves_turns(url: str, store: Store) -> None:
    """With their events and expired leases: the new owner's answer is closed by anybody, with its text."""
    key = await begin(store)
    await write(store, key, given=events(text("$a "), text("herb")))
    await store.rename_owner(OWNER, OTHER)
    (lease,) = raw(url).turns.find()
    assert (lease["_id"]["o"], lease["owner_id"], lease["n"]) == (OTHER, OTHER, 2)
    assert lease["until"].replace(tzinfo=UTC) == EPOCH
    assert {each["owner_id"] for each in raw(url).turn_events.find()} == {OTHER}
    assert await write(store, key, given=events(text("c"), after=2)) == [TurnState.LOST]
    moved = key._replace(owner=OTHER)
    assert await store.turns.expire_turn(*moved)
    assert (await store.get_message(*moved)).content == "$a herb"
    assert raw(url).turns.count_documents({}) == raw(url).turn_events.count_documents({}) == 0


async def test_a_process_of_0003_deletes_a_conversation(url: str, store: Store) -> None:
    """It knows nothing of the turn: the worker loses it when it ends, and a sweep removes what is left."""
    keys = [await begin(store) for _ in range(2)]
    assert await write(store, *keys, given=events(text("a")), lease=SHORT) == [TurnState.RUNNING] * 2
    for collection in ("conversations", "messages"):
        raw(url)[collection].delete_many({})
    with pytest.raises(TurnLost):
        await store.turns.finish_turn(*keys[0], DONE, worker=WORKER)
    while not (await read(store, keys[1]))[2]:  # noqa: ASYNC110 - nobody tells
        await asyncio.sleep(0.01)
    assert await store.turns.expire_turns() == 2
    assert raw(url).turns.count_documents({}) == raw(url).turn_events.count_documents({}) == 0
    assert (await store.erase_owner(OWNER)).remaining == 0


# --- statistics ------------------------------------------------------------------------------------------


async def test_answers_are_counted_by_the_server(store: Store) -> None:
    """By day, and by duration with two digits; a model's name may be anything."""
    midnight = datetime(2026, 3, 1, tzinfo=UTC)
    moments = [EPOCH, midnight - timedelta(microseconds=1), midnight]
    durations = [None, 0, 7, 42, 99, 100, 999, 1_000, 12_345, 2**53 + 1, 2**63 - 1]
    answers = [
        ImportedMessage(
            role=Role.ASSISTANT, content="a", model=model, created_at=moment, duration_ms=duration, input_tokens=2
        )
        for moment in moments
        for duration in durations
        for model in ("$status", "\x01")
    ]
    await store.import_conversation(OWNER, ImportedConversation(), answers)
    assert isinstance(store, MongoStore)
    found = await store._read(lambda rows: rows.answers_of(OWNER, moments[0], now()))
    days = {(moment - EPOCH).days for moment in moments}
    expected = {(day, None if ms is None else two_digits(ms)): 0 for day in days for ms in durations}
    for ms in durations:
        for day in days:
            expected[day, None if ms is None else two_digits(ms)] += 2
    assert {(each.day, each.duration_ms): each.answers for each in found} == expected
    assert {(each.input_tokens / each.answers, each.output_tokens) for each in found} == {(2, 0)}


async def test_statistics_read_the_index_alone(url: str, store: Store) -> None:
    """No answer is read for them."""
    key = await begin(store)
    await store.turns.finish_turn(*key, DONE, worker=WORKER)
    if mongo_databases().emulated:
        (index,) = [each for each in statements_of(url) if "model" in each]
        assert {"owner_id", "created_at", "status", "duration_ms", "input_tokens", "output_tokens"} <= set(index)
        return
    where = {"owner_id": OWNER, "created_at": {"$gte": 0, "$lt": 2**62}, "model": {"$gte": ""}}
    group = {"$group": {"_id": statements.BY, "answers": {"$sum": 1}}}
    command = {"aggregate": "messages", "pipeline": [{"$match": where}, group], "cursor": {}, "hint": "by_model"}
    plan = raw(url).command("explain", command, verbosity="executionStats")
    assert "FETCH" not in str(plan)


def statements_of(url: str) -> list[list[str]]:
    """The fields of each index of messages."""
    return [[name for name, _ in each["key"]] for each in raw(url).messages.index_information().values()]


async def test_events_are_stored_once(url: str, store: Store) -> None:
    """The database refuses an event with the number of another one, whoever writes it."""
    key = await begin(store)
    await write(store, key, given=events(text("a")))
    with pytest.raises(DuplicateKeyError):
        raw(url).turn_events.insert_one(raw(url).turn_events.find_one())
    assert contents([await store.get_message(*key)]) == ["a"]
