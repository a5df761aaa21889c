"""The recorder: taken at once, kept in the journal, delivered once and in order, whatever the database does."""

import asyncio
import dataclasses
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast
from uuid import UUID, uuid4

import apsw
import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from typer.testing import CliRunner
from waiting import PATIENCE, until

from chatkeep import (
    Conversation,
    DeadLetter,
    InvalidId,
    InvalidInput,
    JournalInUse,
    Message,
    NewConversation,
    NewMessage,
    Recorder,
    RecorderFull,
    Role,
    Status,
    Store,
    ids,
    open_store,
    recording,
)
from chatkeep.cli import terminal
from chatkeep.cli.app import app
from chatkeep.integrations.prometheus import watch
from chatkeep.recorder.delivery import BATCH_BYTES
from chatkeep.recorder.journal import COLUMNS, Dead, Entry, dead_letters, open_journal, revive, standing
from chatkeep.recorder.stats import Counters
from chatkeep.recorder.writer import JournalWriter
from chatkeep.testing import whole_log

OWNER = "ada"


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    """Where the recorder's journal is to be."""
    return tmp_path / "journal"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    """A store in a SQLite file, which gives up quickly where somebody else has it locked."""
    async with open_store(f"sqlite:///{tmp_path}/chat.db?write_timeout=0.1") as opened:
        yield opened


@pytest.fixture
async def conversation(store: Store) -> Conversation:
    """A conversation to record."""
    return await store.create_conversation(OWNER, NewConversation())


@contextmanager
def down(folder: Path) -> Any:
    """While this lasts nobody can write to the database: another connection holds its lock."""
    connection = apsw.Connection(str(folder / "chat.db"))
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def contents(messages: list[Message]) -> list[str]:
    """What was said, in order."""
    return [message.content for message in messages]


def letters(journal: Path) -> list[Dead]:
    """The dead letters of a journal."""
    connection = open_journal(journal)
    try:
        return dead_letters(connection)
    finally:
        connection.close()


def rewrite(journal: apsw.Connection, word: str, change: Callable[[str], str]) -> None:
    """Change the message of an entry that has a word, as another version of chatkeep would have written it."""
    row = journal.execute(f"SELECT {COLUMNS} FROM entries WHERE message LIKE ?", (f"%{word}%",)).fetchone()
    entry = Entry._make(cast("Any", row))
    entry = entry._replace(message=change(entry.message)).sealed()
    journal.execute("UPDATE entries SET message = ?, checksum = ? WHERE rid = ?", (entry[3], entry[6], entry[0]))


# --- taking and delivering -----------------------------------------------------------------------------------


async def test_what_is_recorded_is_stored_once_in_order_on_every_store(store_url: str, journal: Path) -> None:
    """A hundred messages of three conversations arrive, each conversation in the order of the calls."""
    async with open_store(store_url) as store:
        conversations = [await store.create_conversation(OWNER, NewConversation()) for _ in range(3)]
        async with Recorder(store, journal) as recorder:
            ids = [
                recorder.record(OWNER, conversations[n % 3].id, "user" if n % 2 else "assistant", f"word {n}")
                for n in range(100)
            ]
            await recorder.flush(PATIENCE)
            stats = recorder.stats()
        logs = [await whole_log(store, OWNER, conversation.id) for conversation in conversations]
    assert [contents(log) for log in logs] == [[f"word {n}" for n in range(100) if n % 3 == t] for t in range(3)]
    assert {message.id for log in logs for message in log} == set(ids)
    assert all(message.role == ("user" if int(message.content.split()[1]) % 2 else "assistant")
               for log in logs for message in log)  # fmt: skip
    assert (stats.recorded, stats.sent, stats.unsent, stats.unsent_bytes, stats.dead, stats.dropped) == (
        100, 100, 0, 0, 0, 0,
    )  # fmt: skip


async def test_every_value_arrives(store: Store, journal: Path, conversation: Conversation) -> None:
    """Id, status, metadata and the time it was said come as they were given; text with NUL, too."""
    said, id_ = datetime(2026, 1, 31, 12, 0, 0, 123456, UTC), uuid4()
    metadata: dict[str, Any] = {"turn": {"interrupted": True, "n": 2**70}, "nul": "\0"}
    async with Recorder(store, journal) as recorder:
        recorder.record(
            OWNER,
            str(conversation.id),
            Role.ASSISTANT,
            "so\0me",
            sent_at=said,
            metadata=metadata,
            status="interrupted",
            id=id_,
        )
        metadata["turn"]["interrupted"] = False  # what was given is copied
        await recorder.flush(PATIENCE)
    (message,) = await whole_log(store, OWNER, conversation.id)
    assert (message.id, message.content, message.status, message.sent_at) == (
        id_, "so\0me", Status.INTERRUPTED, said,
    )  # fmt: skip
    assert message.metadata == {"turn": {"interrupted": True, "n": 2**70}, "nul": "\0"}


async def test_parts_arrive(store: Store, journal: Path, conversation: Conversation) -> None:
    """Parts are copied, go through the journal as they were given, and make the content if there is none."""
    parts: list[dict[str, Any]] = [
        {"type": "reasoning", "text": "Hot?", "signature": "Eq+/==" * 50},
        {"z": 2**70, "type": "text", "a": None, "text": "80\0 "},
        {"type": "text", "text": "°C \ud83c\udf75\ud83c"},
        {"type": "tool_call", "id": "1", "name": "kettle", "arguments": {"b": [1.0, -0.0], "a": 1}},
    ]
    said = [*parts[:2], {"type": "text", "text": "°C \U0001f375\ufffd"}, parts[3]]
    expected = json.dumps(said)
    async with Recorder(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "assistant", "", parts=parts)
        recorder.record(OWNER, conversation.id, "assistant", "said", parts=tuple(map(MappingProxyType, parts)))
        recorder.record(OWNER, conversation.id, "user", "", parts=[{"type": "file", "url": "https://files.test/cup"}])
        recorder.record(OWNER, conversation.id, "user", "none", parts=[])
        parts[1]["text"] = parts[3]["arguments"]["a"] = "changed from outside"
        await recorder.flush(PATIENCE)
        assert recorder.stats().dead == 0
    first, second, third, fourth = await whole_log(store, OWNER, conversation.id)
    assert json.dumps(first.parts) == json.dumps(second.parts) == expected
    assert [m.content for m in (first, second, third)] == ["80\0 °C \U0001f375\ufffd", "said", ""]
    assert (third.parts, fourth.parts) == (({"type": "file", "url": "https://files.test/cup"},), None)


async def test_parts_at_a_limit_go_through_the_journal(store: Store, journal: Path, conversation: Conversation) -> None:
    """What is just allowed arrives, and is counted; what is beyond is refused at once, and names the limit."""
    most: list[Any] = [deep(97), [10**4_300 - 1], [0] * 99_997, "é" * ((4 << 20) - 14)]
    more = (deep(98), "100 levels"), (10**4_300, "4,300 digits"), ([0] * 99_998, "100,000 values")
    async with Recorder(store, journal) as recorder:
        for value in most:
            recorder.record(OWNER, conversation.id, "tool", "", parts=[{"type": "data", "data": value}])
        assert recorder.stats().unsent_bytes > 8 << 20
        for value, message in (*more, ("é" * (4 << 20), "8,388,608 bytes")):
            with pytest.raises(InvalidInput, match=f"parts.* may have at most {message}"):
                recorder.record(OWNER, conversation.id, "tool", "", parts=[{"type": "data", "data": value}])
        await recorder.flush(PATIENCE)
        assert recorder.stats().dead == 0
    log = await whole_log(store, OWNER, conversation.id)
    assert [message.parts and message.parts[0]["data"] for message in log] == most


async def test_an_entry_of_before_parts_is_delivered(store: Store, journal: Path, conversation: Conversation) -> None:
    """What an older version wrote has no parts, and is stored as it was."""
    with Recorder_without_delivery(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "old", id=uuid4())
        recorder.record(OWNER, conversation.id, "user", "new", parts=[{"type": "text", "text": "new"}])
    connection = open_journal(journal)
    old, new = (json.loads(text) for (text,) in connection.execute("SELECT message FROM entries ORDER BY rid"))
    connection.close()
    assert set(old) == {"id", "role", "content", "sent_at"}
    assert set(new) == {"id", "role", "content", "parts"}
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
    log = await whole_log(store, OWNER, conversation.id)
    assert [m.parts for m in log] == [None, ({"type": "text", "text": "new"},)]


async def test_an_entry_of_a_newer_version_waits_as_a_dead_letter(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """A field that this version does not know is not dropped: the entry is kept, and can be delivered by one that does.

    An older version does the same with the parts of this one.
    """
    with Recorder_without_delivery(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "newer")
        recorder.record(OWNER, conversation.id, "user", "known")
    connection = open_journal(journal)
    rewrite(connection, "newer", lambda message: message.replace('{"', '{"to_come":[1],"', 1))
    connection.close()
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["known"]
    ((error, reason, message),) = [(dead.error, dead.reason, dead.entry.message) for dead in letters(journal)]
    assert (error, reason) == ("InvalidInput", "to_come is an unknown field")
    assert json.loads(message)["to_come"] == [1]


async def test_text_that_is_not_unicode_is_mended_and_takes_no_other_with_it(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """Surrogates are joined or replaced, as everywhere; messages of the same moment arrive all the same."""
    async with Recorder(store, journal) as recorder:
        for text in ("before", "pair \ud83c\udf75", "lone \ud83c", "nul \0", "after"):
            recorder.record(OWNER, conversation.id, "user", text)
        await recorder.flush(PATIENCE)
    assert contents(await whole_log(store, OWNER, conversation.id)) == [
        "before", "pair \U0001f375", "lone \ufffd", "nul \0", "after",
    ]  # fmt: skip


async def test_a_message_is_said_when_it_is_recorded(store: Store, journal: Path, conversation: Conversation) -> None:
    """Without a time of the caller's, `sent_at` is the time of the call, however late it is delivered."""
    before = datetime.now(UTC)
    with Recorder_without_delivery(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "early")
    after = datetime.now(UTC)
    await asyncio.sleep(0.05)
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
    (message,) = await whole_log(store, OWNER, conversation.id)
    assert message.sent_at is not None
    assert before - timedelta(milliseconds=1) <= message.sent_at <= after
    assert message.created_at > after


@contextmanager
def Recorder_without_delivery(store: Store, journal: Path, **options: Any) -> Any:  # noqa: N802 - stands for one
    """A recorder that is never entered: it takes messages and keeps them."""
    recorder = Recorder(store, journal, **options)
    try:
        yield recorder
    finally:
        recorder._journal.close()


TEXTS = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: not text.isspace())
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


PARTS = st.builds(
    lambda fields, kind: {**fields, "type": kind, "text": "t"},
    st.dictionaries(TEXTS, VALUES, max_size=3),
    st.just("text") | TEXTS,
)

MIN, MAX = datetime(2, 1, 1), datetime(9998, 1, 1)  # noqa: DTZ001 - hypothesis adds the time zones


@settings(max_examples=50)
@given(
    content=TEXTS,
    metadata=st.dictionaries(TEXTS, VALUES, max_size=3),
    parts=st.none() | st.lists(PARTS, max_size=3),
    role=st.sampled_from(Role),
    status=st.sampled_from([Status.COMPLETE, Status.INTERRUPTED, Status.FAILED]),
    sent_at=st.none() | st.datetimes(MIN, MAX, timezones=st.sampled_from([UTC, timezone(timedelta(hours=5))])),
)
def test_the_journal_changes_nothing(
    tmp_path_factory: pytest.TempPathFactory,
    content: str,
    metadata: dict[str, Any],
    parts: list[dict[str, Any]] | None,
    role: Role,
    status: Status,
    sent_at: datetime | None,
) -> None:
    """A message that went through the journal is the message that was recorded: appending that again is no conflict.

    With an id of the caller's or without one, its values are the same.
    """
    values: dict[str, Any] = {"sent_at": sent_at, "metadata": metadata, "status": status, "parts": parts}
    folder, id_ = tmp_path_factory.mktemp("journal"), uuid4()

    async def check() -> None:
        async with open_store("memory://") as store:
            conversation = await store.create_conversation(OWNER, NewConversation())
            async with Recorder(store, folder / "journal") as recorder:
                recorder.record(OWNER, conversation.id, role, content, id=id_, **values)
                recorder.record(OWNER, conversation.id, role, content, **values)
                await recorder.flush(PATIENCE)
                assert recorder.stats().dead == 0
            same = NewMessage(id=id_, role=role, content=content, **values)
            assert (await store.append(OWNER, conversation.id, [same]))[0].seq == 1
            log = await whole_log(store, OWNER, conversation.id)
            first, second = (repr((one.role, one.content, one.status, one.metadata, one.parts)) for one in log)
            assert first == second
            assert [one.sent_at for one in log] == [sent_at, sent_at or log[1].sent_at]

    asyncio.run(check())


async def test_the_same_id_twice_is_one_message(store: Store, journal: Path, conversation: Conversation) -> None:
    """A caller that retries with an id of its own doubles nothing."""
    id_ = uuid4()
    async with Recorder(store, journal) as recorder:
        for _ in range(3):
            assert recorder.record(OWNER, conversation.id, "user", "once", id=id_) == id_
            await asyncio.sleep(0.02)
        await recorder.flush(PATIENCE)
        assert recorder.stats().dead == 0
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["once"]


MISTAKES: dict[str, dict[str, Any]] = {
    "role": {"role": "robot"},
    "kind of role": {"role": ["user"]},
    "content": {"content": "  "},
    "text": {"content": 7},
    "status": {"status": "deleted"},
    "deleted": {"status": Status.DELETED},
    "in progress": {"status": Status.IN_PROGRESS},
    "text of in progress": {"status": "in_progress"},
    "blank part": {"content": "", "parts": [{"type": "text", "text": " "}]},
    "kind of parts": {"parts": "geheim"},
    "kind of part": {"parts": ["geheim"]},
    "part without a type": {"parts": [{"geheim": "geheim"}]},
    "part that is not JSON": {"parts": [{"type": "geheim", "geheim": object()}]},
    "time": {"sent_at": datetime(2026, 1, 31)},  # noqa: DTZ001 - that is the mistake
    "metadata": {"metadata": {"not JSON": object()}},
    "no number": {"metadata": {"x": [float("nan")]}},
    "kind of metadata": {"metadata": ["geheim"]},
    "owner": {"owner": ""},
    "long owner": {"owner": "x" * 256},
    "kind of owner": {"owner": b"ada"},
}


@pytest.mark.parametrize("mistake", MISTAKES)
async def test_a_programmers_mistake_is_said_at_once(store: Store, journal: Path, mistake: str) -> None:
    """What can never be stored raises InvalidInput, without the content in it, and leaves nothing behind."""
    values = {"owner": OWNER, "conversation_id": uuid4(), "role": "user", "content": "geheim", **MISTAKES[mistake]}
    with Recorder_without_delivery(store, journal) as recorder:
        with pytest.raises(InvalidInput) as raised:
            recorder.record(**values)
        with pytest.raises(InvalidId):
            recorder.record(OWNER, "no uuid", "user", "hello")
        assert recorder.stats().recorded == recorder.stats().unsent == 0
    assert "geheim" not in str(raised.value)


@pytest.fixture
async def recorder(journal: Path) -> AsyncIterator[Recorder]:
    """A recorder that makes what conversations it needs, in memory."""
    async with open_store("memory://") as store, Recorder(store, journal, create_missing=True) as opened:
        yield opened


TALK = UUID(int=1)


class Refusing:
    """Raises whatever is done with it."""

    def __refuse(self, *_: object) -> Any:
        raise ZeroDivisionError("geheim")

    __eq__ = __ne__ = __bool__ = __len__ = __iter__ = __str__ = __repr__ = __getattr__ = __sizeof__ = __refuse

    def __hash__(self) -> int:
        return 1


class RefusingDict(dict[str, Any]):
    """An object that raises when it is read."""

    def items(self) -> Any:
        raise ZeroDivisionError("geheim")

    keys = __iter__ = items


class RefusingMapping(Mapping[str, Any]):
    """A mapping that raises when it is read."""

    def __getitem__(self, key: str) -> Any:
        raise ZeroDivisionError("geheim")

    def __iter__(self) -> Any:
        raise ZeroDivisionError("geheim")

    def __len__(self) -> int:
        return 1


class OddZone(tzinfo):
    """A time zone that raises."""

    def utcoffset(self, _: datetime | None) -> Any:
        raise ZeroDivisionError("geheim")

    dst = tzname = utcoffset


def endless() -> dict[str, Any]:
    """An object in itself."""
    value: dict[str, Any] = {}
    value["x"] = value
    return value


def deep(levels: int) -> list[Any]:
    """Lists in lists."""
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


ODD: dict[str, Callable[[], Any]] = {
    "object": object,
    "refusing": Refusing,
    "refusing dict": lambda: RefusingDict(a=1),
    "refusing mapping": RefusingMapping,
    "cycle": endless,
    "deep": lambda: deep(100_000),
    "levels": lambda: deep(101),
    "digits": lambda: 10**5_000,
    "values": lambda: [0] * 1_000_000,
    "bytes": lambda: "x" * 2_000_000,
    "tuple": lambda: (1, 2),
    "generator": lambda: (number for number in range(3)),
    "proxy": lambda: MappingProxyType({"a": 1}),
    "counter": lambda: Counter("abc"),
    "nan": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "bytes object": lambda: b"x",
    "set": lambda: {1},
    "decimal": lambda: Decimal(1),
    "date": lambda: datetime.now(UTC),
    "odd zone": lambda: datetime(2026, 1, 31, tzinfo=OddZone()),
    "early": lambda: datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))),
    "late": lambda: datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-12))),
    "role": lambda: Role.USER,
    "status": lambda: Status.DELETED,
    "uuid": uuid4,
    "lone surrogate": lambda: "\ud800",
    "key that is no text": lambda: {(1, 2): 3},
    "key of many digits": lambda: {10**5_000: 3},
    "key of a class": lambda: {Refusing(): 3},
    "key that is a number": lambda: {1: 3},
    "type": lambda: Refusing,
    "function": lambda: deep,
}
"""Values that a program may give by mistake, some of which can be stored."""
ODD_VALUES = st.recursive(
    st.sampled_from(list(ODD)).map(lambda name: ODD[name]()) | VALUES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    values=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(("owner", "conversation_id", "role", "content", "sent_at", "status", "id"), ODD_VALUES)
        | {
            "metadata": ODD_VALUES | st.dictionaries(TEXTS, ODD_VALUES, max_size=3),
            "parts": ODD_VALUES | st.lists(st.fixed_dictionaries({"type": TEXTS, "x": ODD_VALUES}), max_size=2),
        },
    )
)
async def test_record_raises_nothing_but_invalid_input(recorder: Recorder, values: dict[str, Any]) -> None:
    """Whatever is given, it is taken and arrives, or InvalidInput or InvalidId says why not, without the value."""
    before = recorder.stats()
    reason = ""
    try:
        recorder.record(**{"owner": OWNER, "conversation_id": TALK, "role": "user", "content": "x", **values})
    except (InvalidInput, InvalidId) as error:
        reason = str(error)
    taken = recorder.stats().recorded - before.recorded
    assert (taken, "geheim" in reason) == (0 if reason else 1, False)
    if taken:
        await recorder.flush(PATIENCE)
    stats = recorder.stats()
    assert (stats.sent - before.sent, stats.dead) == (taken, 0)


async def test_odd_metadata_is_stored_or_refused(recorder: Recorder) -> None:
    """Each odd value alone, in a list and as the metadata itself."""
    for make in ODD.values():
        for values in (
            {"metadata": {"x": make()}},
            {"metadata": {"x": [make()]}, "id": uuid4()},
            {"metadata": make()},
            {"parts": make()},
            {"parts": [make()]},
            {"parts": [{"type": "x", "x": make()}]},
        ):
            with suppress(InvalidInput):
                recorder.record(OWNER, TALK, "user", "x", **values)
    await recorder.flush(PATIENCE)
    stats = recorder.stats()
    assert (stats.sent, stats.dead) == (stats.recorded, 0)
    assert 0 < stats.recorded < 6 * len(ODD)


async def test_metadata_at_a_limit_goes_through_the_journal(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """What is just allowed arrives; what is beyond is refused at once, and names the limit."""
    most: list[Any] = [deep(98), [10**4_300 - 1, 1 - 10**4_300], [0] * 99_999, "é" * ((1 << 19) - 4)]
    async with Recorder(store, journal) as recorder:
        for value in most:
            recorder.record(OWNER, conversation.id, "user", "x", metadata={"x": value})
            recorder.record(OWNER, conversation.id, "user", "x", metadata={"x": value}, id=uuid4())
        for value, message in ((deep(100), "100 levels"), (10**4_300, "4,300 digits"),
                               ([0] * 100_000, "100,000 values"), ("é" * (1 << 19), "1,048,576 bytes")):  # fmt: skip
            with pytest.raises(InvalidInput, match=f"metadata.* may have at most {message}"):
                recorder.record(OWNER, conversation.id, "user", "x", metadata={"x": value})
        await recorder.flush(PATIENCE)
        assert recorder.stats().dead == 0
    log = await whole_log(store, OWNER, conversation.id)
    assert [message.metadata["x"] for message in log] == [value for value in most for _ in range(2)]


async def test_ids_are_prepared_by_the_journals_thread(
    store: Store, journal: Path, conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Making ids in advance is never the caller's work, after the first ones."""
    make, threads = ids._timeless_ids, set[str]()

    def made() -> list[UUID]:
        threads.add(threading.current_thread().name)
        return make()

    async with Recorder(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "hello")
        await recorder.flush(PATIENCE)
        monkeypatch.setattr(ids, "_timeless_ids", made)
        for number in range(2 * ids.IDS_AT_ONCE):
            recorder.record(OWNER, conversation.id, "user", f"word {number}")
            if number % 100 == 0:
                await recorder.flush(PATIENCE)
    assert threads == {"chatkeep-journal"}


async def test_threads_record_too(store: Store, journal: Path, conversation: Conversation) -> None:
    """Eight threads record at once: nothing is lost, and what one thread said stays in its order."""
    async with Recorder(store, journal) as recorder:

        def speak(thread: int) -> None:
            for number in range(200):
                recorder.record(OWNER, conversation.id, "user", f"{thread} {number}")

        with ThreadPoolExecutor(8) as threads:
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(threads, speak, n) for n in range(8)))
            await asyncio.get_running_loop().run_in_executor(threads, recorder.wait, PATIENCE)
        stats = recorder.stats()
    said = contents(await whole_log(store, OWNER, conversation.id))
    assert (stats.recorded, stats.sent, stats.unsent_bytes, len(said)) == (1_600, 1_600, 0, 1_600)
    for thread in range(8):
        of_thread = [text for text in said if text.startswith(f"{thread} ")]
        assert of_thread == [f"{thread} {number}" for number in range(200)]


def test_a_program_without_an_event_loop_records(tmp_path: Path) -> None:
    """`recording` opens store and recorder in a thread; when its block ends everything is stored."""
    url, id_ = f"sqlite:///{tmp_path}/chat.db", uuid4()
    with recording(url, tmp_path / "journal", create_missing=True) as recorder:
        recorder.record(OWNER, id_, "user", "hello")
        recorder.wait(PATIENCE)
        recorder.record(OWNER, id_, "assistant", "good day")

    async def read() -> list[str]:
        async with open_store(url) as store:
            return contents(await whole_log(store, OWNER, id_))

    assert asyncio.run(read()) == ["hello", "good day"]


# --- the database is slow, locked, gone ----------------------------------------------------------------------


async def test_a_database_that_is_down_costs_the_caller_nothing(
    store: Store, journal: Path, conversation: Conversation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages are taken while nobody can write, the fault is logged once, and they arrive when it is over."""
    caplog.set_level(logging.INFO, "chatkeep.recorder.delivery")
    async with Recorder(store, journal) as recorder:
        with down(tmp_path):
            for number in range(50):
                recorder.record(OWNER, conversation.id, "user", f"word {number}")
                await asyncio.sleep(0.01)
            await until(lambda: recorder.stats().retried >= 2 and recorder.stats().oldest_unsent > 0)
            held = recorder.stats()
            with pytest.raises(TimeoutError):
                await recorder.flush(0.1)
        await recorder.flush(PATIENCE)
        stats = recorder.stats()
    assert (held.unsent, held.sent, held.queued) == (50, 0, 0)
    assert held.oldest_unsent > 0.4
    assert (stats.sent, stats.unsent, stats.dead) == (50, 0, 0)
    assert stats.highest_lag > 0.4
    assert contents(await whole_log(store, OWNER, conversation.id)) == [f"word {number}" for number in range(50)]
    assert [record.levelname for record in caplog.records if record.name == "chatkeep.recorder.delivery"] == [
        "WARNING",
        "INFO",
    ]
    assert "word" not in caplog.text


async def test_a_locked_conversation_holds_back_no_other(journal: Path) -> None:
    """On PostgreSQL somebody holds one conversation's row: its messages wait, those of others arrive."""
    import asyncpg

    from servers.postgres import databases, plain

    url = databases().clean()
    async with open_store(url, write_timeout=0.3) as store, Recorder(store, journal) as recorder:
        locked, free = [await store.create_conversation(OWNER, NewConversation()) for _ in range(2)]
        other = await asyncpg.connect(plain(url))
        async with other.transaction():
            await other.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", locked.id)
            for number in range(10):
                recorder.record(OWNER, locked.id, "user", f"locked {number}")
                recorder.record(OWNER, free.id, "user", f"free {number}")
            await until(lambda: recorder.stats().sent >= 10 and recorder.stats().retried)
            assert contents(await whole_log(store, OWNER, free.id)) == [f"free {number}" for number in range(10)]
            assert recorder.stats().unsent == 10
        await other.close()
        await recorder.flush(PATIENCE)
        assert contents(await whole_log(store, OWNER, locked.id)) == [f"locked {number}" for number in range(10)]


async def test_what_comes_during_an_append_is_delivered_after_it(journal: Path) -> None:
    """An append waits for a lock, and the next message is recorded meanwhile: nobody else has to come for it."""
    import asyncpg

    from servers.postgres import databases, plain

    url = databases().clean()
    async with open_store(url) as store, Recorder(store, journal) as recorder:
        conversation = await store.create_conversation(OWNER, NewConversation())
        other = await asyncpg.connect(plain(url))
        async with other.transaction():
            await other.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", conversation.id)
            recorder.record(OWNER, conversation.id, "user", "first")
            await until(lambda: recorder._journal._backlog._in_flight)
            recorder.record(OWNER, conversation.id, "user", "second")
            await until(lambda: recorder.stats().queued == 0)
            await asyncio.sleep(0.05)
        await other.close()
        await recorder.flush(PATIENCE)
        assert (recorder.stats().sent, recorder.stats().retried) == (2, 0)
        assert contents(await whole_log(store, OWNER, conversation.id)) == ["first", "second"]


async def test_a_message_larger_than_a_batch_is_delivered(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """It goes alone."""
    async with Recorder(store, journal) as recorder:
        for content in ("before", "x" * (3 * BATCH_BYTES), "after"):
            recorder.record(OWNER, conversation.id, "assistant", content)
        await recorder.flush(PATIENCE)
    assert [len(content) for content in contents(await whole_log(store, OWNER, conversation.id))] == [
        6,
        3 * BATCH_BYTES,
        5,
    ]


async def test_a_database_that_turned_unsafe_is_waited_for(journal: Path) -> None:
    """A server that is set to forget what it acknowledged gets nothing, and everything when it is set right."""
    import asyncpg

    from servers.postgres import durable_databases

    url = durable_databases().clean()
    admin = await asyncpg.connect(url)
    async with open_store(url) as store:
        conversation = await store.create_conversation(OWNER, NewConversation())
    try:
        async with open_store(url) as store, Recorder(store, journal) as recorder:
            await admin.execute("ALTER SYSTEM SET full_page_writes = off")
            await admin.execute("SELECT pg_reload_conf()")
            await admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            recorder.record(OWNER, conversation.id, "user", "hello")
            await until(lambda: recorder.stats().retried > 0 or recorder.stats().dead > 0)
            assert (recorder.stats().dead, recorder.stats().unsent) == (0, 1)
            await admin.execute("ALTER SYSTEM RESET full_page_writes")
            await admin.execute("SELECT pg_reload_conf()")
            await recorder.flush(PATIENCE)
            assert contents(await whole_log(store, OWNER, conversation.id)) == ["hello"]
    finally:
        await admin.execute("ALTER SYSTEM RESET full_page_writes")
        await admin.execute("SELECT pg_reload_conf()")
        await admin.close()


async def test_a_fault_that_nobody_expected_is_tried_again(journal: Path) -> None:
    """A store that raises something of its own keeps nothing from being delivered later."""
    async with open_store("memory://") as store, Recorder(store, journal) as recorder:
        conversation = await store.create_conversation(OWNER, NewConversation())
        append, faults = store.append, [RuntimeError("a bug"), OSError("no route")]

        async def faulty(*arguments: Any, **options: Any) -> list[Message]:
            if faults:
                raise faults.pop()
            return await append(*arguments, **options)

        store.append = faulty  # type: ignore[method-assign]
        recorder.record(OWNER, conversation.id, "user", "hello")
        await recorder.flush(PATIENCE)
        assert recorder.stats().retried == 2
        assert contents(await whole_log(store, OWNER, conversation.id)) == ["hello"]


# --- restarts ------------------------------------------------------------------------------------------------


async def test_the_next_recorder_delivers_what_is_left(store: Store, journal: Path, conversation: Conversation) -> None:
    """What one recorder could not deliver is counted and delivered by the next one on the journal."""
    with Recorder_without_delivery(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "one")
        recorder.record(OWNER, conversation.id, "user", "two")
    async with Recorder(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "three")
        await recorder.flush(PATIENCE)
        stats = recorder.stats()
    assert (stats.recorded, stats.sent, stats.unsent, stats.unsent_bytes) == (1, 3, 0, 0)
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["one", "two", "three"]


async def test_what_was_stored_but_not_acknowledged_is_not_doubled(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """A journal that still has what the store took, as a kill leaves it, doubles nothing."""
    with Recorder_without_delivery(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "one")
        recorder.record(OWNER, conversation.id, "user", "two")
    unaware = journal.with_name("copy")
    unaware.write_bytes(journal.read_bytes())
    for path in (journal, unaware):
        async with Recorder(store, path) as recorder:
            await recorder.flush(PATIENCE)
            assert (recorder.stats().sent, recorder.stats().dead) == (2, 0)
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["one", "two"]


async def test_closing_waits_only_so_long(
    store: Store, journal: Path, conversation: Conversation, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the database down, closing returns after its timeout, says what stays, and takes nothing more."""
    recorder = Recorder(store, journal)
    await recorder.__aenter__()
    with down(tmp_path):
        recorder.record(OWNER, conversation.id, "user", "late")
        began = time.monotonic()
        await recorder.aclose(0.3)
        assert time.monotonic() - began < 5
    await recorder.aclose()
    assert "1 messages stay" in caplog.text
    with pytest.raises(InvalidInput, match="closed"):
        recorder.record(OWNER, conversation.id, "user", "too late")
    async with Recorder(store, journal) as again:
        await again.flush(PATIENCE)
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["late"]


async def test_closing_delivers_what_was_recorded_just_before(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """The last words before a hang-up are stored when the block ends."""
    async with Recorder(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "assistant", "good-bye")
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["good-bye"]


async def test_what_was_taken_while_it_closes_is_kept(store: Store, journal: Path, conversation: Conversation) -> None:
    """Threads record until they are told that the recorder is closed: every call that returned is stored or kept."""
    recorder = await Recorder(store, journal).__aenter__()
    taken: list[UUID] = []

    def speak() -> None:
        with suppress(InvalidInput):
            while True:
                taken.append(recorder.record(OWNER, conversation.id, "user", "hello"))
                time.sleep(0.0001)

    threads = [threading.Thread(target=speak) for _ in range(4)]
    for thread in threads:
        thread.start()
    await asyncio.sleep(0.1)
    await recorder.aclose()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    async with Recorder(store, journal) as again:
        await again.flush(PATIENCE)
    stored = [message.id for message in await whole_log(store, OWNER, conversation.id)]
    assert sorted(stored) == sorted(taken)


@pytest.mark.parametrize("look", range(1, 7))
def test_what_comes_between_two_looks_of_the_closing_journal_is_written(journal: Path, look: int) -> None:
    """At one of the moments in which its thread finds nothing to do, a last entry comes and the journal closes."""
    opened = JournalWriter(journal, Counters(), lambda _written: None)

    class Queue(deque[Any]):
        looks = 0

        def __len__(self) -> int:
            found = super().__len__()
            self.looks += not found
            if self.looks == look and not opened._closing:
                self.append(((OWNER, uuid4()), {"id": uuid4(), "role": "user", "content": "last"}, 1, 1))
                opened._closing = True
            return found

    opened._queue = Queue()
    opened._writer.join(PATIENCE)
    opened._closing = False
    opened.close()
    connection = open_journal(journal)
    assert standing(connection).entries == 1
    connection.close()


PROGRAM = """
import asyncio, sys
from uuid import UUID
from chatkeep import Recorder, open_store

async def main():
    store = await open_store("memory://")
    recorder = Recorder(store, sys.argv[1])
    recorder.record("ada", UUID(int=7), "user", "the last word")

asyncio.run(main())
"""


def test_a_program_that_ends_without_closing_loses_nothing(journal: Path) -> None:
    """What was recorded right before the program's end is in the journal."""
    subprocess.run([sys.executable, "-c", PROGRAM, journal], check=True)
    connection = open_journal(journal)
    assert standing(connection).entries == 1
    connection.close()


LATE_PROGRAM = """
import asyncio, atexit, sys
from uuid import UUID
from chatkeep import Recorder, open_store

def too_late():
    try:
        recorder.record("ada", UUID(int=7), "user", "too late")
    except ValueError as error:
        print(error)

async def main():
    global recorder
    async with open_store("memory://") as store:
        recorder = Recorder(store, sys.argv[1])
    recorder.record("ada", UUID(int=7), "user", "the last word")

atexit.register(too_late)  # runs last
asyncio.run(main())
"""


def test_a_program_that_has_ended_records_nothing_more(journal: Path) -> None:
    """The journal is closed by then: the message is refused, and not taken in order to be lost."""
    done = subprocess.run([sys.executable, "-c", LATE_PROGRAM, journal], check=True, capture_output=True, text=True)
    assert "the recorder is closed" in done.stdout
    connection = open_journal(journal)
    assert standing(connection).entries == 1
    connection.close()


async def test_flushes_wait_for_what_was_recorded_before_them(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """Many flushes at once all return, also while others go on recording."""
    async with Recorder(store, journal) as recorder:
        speaking = True

        async def speak() -> None:
            number = 0
            while speaking:
                recorder.record(OWNER, conversation.id, "user", f"word {(number := number + 1)}")
                await asyncio.sleep(0.001)

        task = asyncio.create_task(speak())
        for _ in range(3):
            await asyncio.gather(*(recorder.flush(PATIENCE) for _ in range(5)))
        speaking = False
        await task


async def test_a_recorder_that_was_not_entered_does_not_wait_for_ever(store: Store, journal: Path) -> None:
    """Its flush says what to do."""
    with Recorder_without_delivery(store, journal) as recorder:
        with pytest.raises(InvalidInput, match="async with"):
            await recorder.flush()
        with pytest.raises(InvalidInput, match="async with"):
            recorder.wait()


# --- the journal's file --------------------------------------------------------------------------------------


async def test_a_journal_has_one_recorder(store: Store, journal: Path) -> None:
    """A second recorder is refused, in this process and in another one, and told who has the journal."""
    with Recorder_without_delivery(store, journal):
        with pytest.raises(JournalInUse, match=f"process {os.getpid()}"):
            Recorder(store, journal)
        done = subprocess.run([sys.executable, "-c", PROGRAM, journal], capture_output=True, text=True, check=False)
        assert "JournalInUse" in done.stderr
    with Recorder_without_delivery(store, journal):
        pass


async def test_a_child_keeps_no_lock(store: Store, journal: Path) -> None:
    """A process that was forked while a recorder was open does not keep others from its journal."""
    with Recorder_without_delivery(store, journal):
        (reading, writing), (born, tell) = os.pipe(), os.pipe()
        with warnings.catch_warnings(action="ignore"):  # to fork beside threads is what is tested
            child = os.fork()
        if child == 0:
            os.write(tell, b".")
            os.read(reading, 1)
            os._exit(0)
        os.read(born, 1)
    try:
        with Recorder_without_delivery(store, journal):
            pass
    finally:
        os.write(writing, b".")
        os.waitpid(child, 0)  # noqa: ASYNC222 - it has ended
        for end in (reading, writing, born, tell):
            os.close(end)


FORKS = """
import asyncio, os, signal, sys, threading
from chatkeep import NewConversation, Recorder, StoreUnavailable, open_store, recording

async def enter(recorder):
    async with recorder:
        pass

def use(recorder):
    for call in (
        lambda: recorder.record("ada", TALK, "user", "child"),
        lambda: recorder.wait(60),
        lambda: asyncio.run(recorder.flush(60)),
        lambda: asyncio.run(enter(recorder)),
    ):
        try:
            call()
        except StoreUnavailable as error:
            assert "forked" in str(error), error
        else:
            raise AssertionError("it was taken")
    asyncio.run(recorder.aclose())

def fork(recorder):
    # while other threads are in the middle of what they do
    def work():
        with recorder._counters.lock, recorder._journal._dirty:
            working.set()
            done.wait()
    working, done = threading.Event(), threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    working.wait()
    child = os.fork()
    if child:
        done.set()
        thread.join()
    else:
        signal.alarm(20)  # ends it if it hangs
    return child

url, journal = sys.argv[1:]

async def create():
    async with open_store(url) as store:
        return (await store.create_conversation("ada", NewConversation())).id

TALK = asyncio.run(create())
with recording(url, journal) as recorder:
    for number in range(5):
        recorder.record("ada", TALK, "user", f"before {number}")
        child = fork(recorder)
        if not child:
            use(recorder)
            sys.exit()  # runs what is to run at the end of a process
        recorder.record("ada", TALK, "user", f"after {number}")
        assert os.waitpid(child, 0)[1] == 0, "the child failed"
    recorder.wait(60)
    recorder.record("ada", TALK, "user", "last")

async def log():
    async with open_store(url) as store:
        return [message.content for message in await store.log("ada", TALK)]

expected = [f"{when} {number}" for number in range(5) for when in ("before", "after")] + ["last"]
found = asyncio.run(log())
assert found == expected, found
"""


def test_a_forked_child_is_told(journal: Path, tmp_path: Path) -> None:
    """In a child every call of the parent's recorder raises or returns at once; the parent loses nothing by it."""
    script = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORKS]  # to fork beside threads is the point
    done = subprocess.run(
        [*script, f"sqlite:///{tmp_path / 'chat.db'}", journal], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


async def test_another_file_is_not_taken_for_a_journal(store: Store, tmp_path: Path) -> None:
    """Neither a chat database nor any other file is used, or changed."""
    text = tmp_path / "notes.txt"
    text.write_text("not a database, and longer than the header of one has to be " * 20)
    database = tmp_path / "other.db"
    connection = apsw.Connection(str(database))
    connection.execute("CREATE TABLE conversations (id)")
    connection.close()
    for path in (text, database):
        before = path.read_bytes()
        with pytest.raises(InvalidInput, match="not a recorder's journal"):
            Recorder(store, path)
        assert path.read_bytes() == before


async def test_a_newer_journal_is_refused(store: Store, journal: Path) -> None:
    """A journal of a later version is not guessed at."""
    with Recorder_without_delivery(store, journal):
        pass
    connection = apsw.Connection(str(journal))
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(InvalidInput, match="upgrade chatkeep"):
        Recorder(store, journal)


async def test_only_its_owner_reads_a_journal(store: Store, tmp_path: Path) -> None:
    """The files hold what people said: group and others may not read them."""
    journal = tmp_path / "a folder" / "journal"
    with Recorder_without_delivery(store, journal) as recorder:
        recorder.record(OWNER, uuid4(), "user", "hello")
        time.sleep(0.1)
        assert {path.stat().st_mode & 0o077 for path in journal.parent.iterdir()} == {0}


async def test_the_journal_shrinks_again(
    store: Store, journal: Path, conversation: Conversation, tmp_path: Path
) -> None:
    """After an outage with megabytes in it, the file and its log give their space back."""
    async with Recorder(store, journal) as recorder:
        with down(tmp_path):
            for number in range(3_000):
                recorder.record(OWNER, conversation.id, "assistant", f"{number} " + "word " * 1_000)
            await until(lambda: recorder.stats().queued == 0)
            large = journal.stat().st_size + Path(f"{journal}-wal").stat().st_size
            assert large > 15_000_000
        await recorder.flush(60)
        await until(lambda: journal.stat().st_size + Path(f"{journal}-wal").stat().st_size < 10_000_000)


# --- full ----------------------------------------------------------------------------------------------------


def fill(recorder: Recorder, count: int = 10) -> None:
    """Record ten messages of 1,000 characters, slowly enough that the journal has each."""
    for number in range(count):
        recorder.record(OWNER, UUID(int=7), "user", f"{number} " + "x" * 1_000)
        time.sleep(0.02)


async def held(store: Store, journal: Path) -> list[str]:
    """The first words of what a journal holds, by delivering it."""
    async with Recorder(store, journal, create_missing=True) as recorder:
        await recorder.flush(PATIENCE)
    return [text.split()[0] for text in contents(await whole_log(store, OWNER, UUID(int=7)))]


async def test_a_full_recorder_drops_the_newest(store: Store, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unless told otherwise: what is over the limit is counted and logged, what is held stays."""
    with Recorder_without_delivery(store, journal, max_bytes=5_200) as recorder:
        fill(recorder)
        assert (recorder.stats().recorded, recorder.stats().dropped, recorder.stats().unsent) == (4, 6, 4)
        assert recorder.stats().unsent_bytes <= 5_200
    assert "full" in caplog.text
    assert await held(store, journal) == ["0", "1", "2", "3"]


async def test_a_full_recorder_drops_the_oldest(store: Store, journal: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With drop_oldest the newest are taken, and the oldest are given up."""
    with Recorder_without_delivery(store, journal, max_bytes=5_200, when_full="drop_oldest") as recorder:
        fill(recorder)
        time.sleep(0.1)
        stats = recorder.stats()
        assert stats.recorded == 10
        assert stats.dropped + stats.unsent == 10
        assert stats.unsent_bytes <= 5_200
        assert "full" in caplog.text
    left = await held(store, journal)
    assert left == list(map(str, range(10)))[-stats.unsent :]
    assert len(left) >= 3


async def test_a_full_recorder_raises_where_it_was_told_to(store: Store, journal: Path) -> None:
    """With `raise` the caller hears of it, with the limit and the way out; nothing else changes."""
    with Recorder_without_delivery(store, journal, max_bytes=5_200, when_full="raise") as recorder:
        with pytest.raises(RecorderFull, match=r"5,200 bytes.*max_bytes"):
            fill(recorder)
        assert (recorder.stats().recorded, recorder.stats().dropped) == (4, 1)


async def test_the_limit_holds_in_a_burst(store: Store, journal: Path) -> None:
    """A thousand calls without a pause in between do not get past it: what the journal does not have yet counts."""
    with Recorder_without_delivery(store, journal, max_bytes=100_000) as recorder:
        for number in range(1_000):
            recorder.record(OWNER, UUID(int=7), "user", f"{number} " + "x" * 1_000)
        stats = recorder.stats()
        assert stats.unsent_bytes <= 100_000
        assert stats.recorded + stats.dropped == 1_000


async def test_an_unknown_way_to_be_full_is_refused(store: Store, journal: Path) -> None:
    """Before anything is opened."""
    with pytest.raises(InvalidInput, match="drop_newest"):
        Recorder(store, journal, when_full="explode")  # type: ignore[arg-type]
    assert not journal.exists()


# --- dead letters --------------------------------------------------------------------------------------------


async def test_what_is_refused_for_good_stops_nothing_else(
    store: Store, journal: Path, conversation: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    """A foreign conversation, an unknown one, a text that is too long and a conflict are dead letters, with reasons."""
    foreign = await store.create_conversation("bob", NewConversation())
    used = uuid4()
    await store.append(OWNER, conversation.id, [NewMessage(id=used, role=Role.USER, content="first")])
    told: list[DeadLetter] = []

    def tell(letter: DeadLetter) -> None:
        told.append(letter)
        raise RuntimeError("a callback that fails does no harm")

    async with Recorder(store, journal, on_dead=tell) as recorder:
        recorder.record(OWNER, foreign.id, "user", "not mine")
        recorder.record(OWNER, uuid4(), "user", "nowhere")
        for content, id_ in (("a", None), ("x" * 10_001, None), ("b", None), ("other", used), ("c", None)):
            recorder.record(OWNER, conversation.id, "user", content, id=id_)
        await recorder.flush(PATIENCE)
        stats = recorder.stats()
        assert (stats.dead, stats.sent, stats.unsent, stats.unsent_bytes) == (4, 3, 0, 0)
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["first", "a", "b", "c"]
    assert contents(await whole_log(store, "bob", foreign.id)) == []
    assert sorted(letter.error for letter in told) == ["Conflict", "InvalidInput", "NotFound", "NotYours"]
    dead = letters(journal)
    assert sorted(letter.error for letter in dead) == ["Conflict", "InvalidInput", "NotFound", "NotYours"]
    assert any("10,000 characters" in letter.reason for letter in dead)
    assert "not mine" not in caplog.text.replace("belongs to somebody else", "")
    assert "xxxx" not in caplog.text


async def test_a_deleted_conversation_does_not_come_back(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """What is recorded for it after it was deleted is a dead letter."""
    async with Recorder(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "before")
        await recorder.flush(PATIENCE)
        assert await store.delete_conversation(OWNER, conversation.id)
        recorder.record(OWNER, conversation.id, "user", "after")
        await recorder.flush(PATIENCE)
        assert recorder.stats().dead == 1
    assert (await store.list_conversations(OWNER)).items == []


async def test_missing_conversations_are_created_where_that_is_wanted(store: Store, journal: Path) -> None:
    """With create_missing a call can begin while the database is down; somebody else's id reveals nothing."""
    id_ = uuid4()
    async with Recorder(store, journal, create_missing=True) as recorder:
        recorder.record(OWNER, id_, "user", "How hot should tea be?")
        recorder.record(OWNER, id_, "assistant", "Hot.")
        await recorder.flush(PATIENCE)
    assert contents(await whole_log(store, OWNER, id_)) == ["How hot should tea be?", "Hot."]
    assert (await store.get_conversation(OWNER, id_)).title == "How hot should tea be?"


async def test_a_dead_letter_is_delivered_when_its_reason_is_gone(store: Store, journal: Path) -> None:
    """Moved back while the recorder is at work, it is noticed within seconds, and counted right."""
    id_ = uuid4()
    async with Recorder(store, journal) as recorder:
        recorder.record(OWNER, id_, "user", "early")
        await recorder.flush(PATIENCE)
        await store.create_conversation(OWNER, NewConversation(id=id_))
        connection = open_journal(journal)
        assert revive(connection, None) == 1
        connection.close()
        await until(lambda: recorder.stats().sent == 1)
        assert (recorder.stats().unsent, recorder.stats().unsent_bytes) == (0, 0)
    assert contents(await whole_log(store, OWNER, id_)) == ["early"]


async def test_an_entry_that_cannot_be_read_is_a_dead_letter(
    store: Store, journal: Path, conversation: Conversation
) -> None:
    """One that an older version wrote wrongly does not keep the others from being delivered."""
    with Recorder_without_delivery(store, journal) as recorder:
        for content in ("one", "two", "three"):
            recorder.record(OWNER, conversation.id, "user", content)
    connection = open_journal(journal)
    rewrite(connection, "two", lambda _message: '{"role": "ro')
    connection.close()
    async with Recorder(store, journal) as recorder:
        await recorder.flush(PATIENCE)
    assert contents(await whole_log(store, OWNER, conversation.id)) == ["one", "three"]
    assert [letter.error for letter in letters(journal)] == ["InvalidInput"]


# --- numbers -------------------------------------------------------------------------------------------------


async def test_the_disk_is_followed(store: Store, journal: Path, conversation: Conversation) -> None:
    """How far the disk is behind the journal is measured: it is what a power failure may take."""
    async with Recorder(store, journal) as recorder:
        recorder.record(OWNER, conversation.id, "user", "hello")
        await recorder.flush(PATIENCE)
        await until(lambda: recorder.stats().sync_lag > 0)
        assert recorder.stats().highest_sync_lag >= recorder.stats().sync_lag > 0
        assert recorder.stats().highest_lag >= recorder.stats().lag > 0


async def test_a_disk_that_refuses_is_counted(
    store: Store, journal: Path, conversation: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    """Messages are delivered all the same; that a power failure may take them is said."""
    async with Recorder(store, journal) as recorder:
        log, ends = recorder._journal._files._log, os.pipe()
        assert log is not None
        real = os.dup(log)
        os.dup2(ends[1], log)  # a pipe cannot be synced
        recorder.record(OWNER, conversation.id, "user", "hello")
        await until(lambda: recorder.stats().sync_failures)
        os.dup2(real, log)
        await recorder.flush(PATIENCE)
        assert recorder.stats().sent == 1
    for file in (real, *ends):
        os.close(file)
    assert "cannot be synced" in caplog.text


CHECKPOINTING = """
import fcntl, sys
shared = open(sys.argv[1], "r+b")
fcntl.lockf(shared, fcntl.LOCK_EX, 1, 121)  # the byte that SQLite locks while a log is copied
print(flush=True)
sys.stdin.read()
"""


async def test_a_checkpoint_that_has_to_wait_is_no_fault(
    store: Store, journal: Path, conversation: Conversation, caplog: pytest.LogCaptureFixture
) -> None:
    """The log is copied to the journal another time; nothing was refused, and nothing is said."""
    async with Recorder(store, journal) as recorder:
        command = [sys.executable, "-c", CHECKPOINTING, f"{journal}-shm"]
        other = await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert other.stdout
        await other.stdout.readline()
        size = journal.stat().st_size
        recorder.record(OWNER, conversation.id, "assistant", "x" * 1_000_000)
        await recorder.flush(PATIENCE)
        await asyncio.sleep(0.6)  # it is tried where nothing came for a quarter of a second
        assert journal.stat().st_size == size
        await other.communicate()
        recorder.record(OWNER, conversation.id, "assistant", "hello")
        await until(lambda: journal.stat().st_size > size)
        assert recorder.stats().sync_failures == 0
    assert caplog.text == ""


async def test_stats_are_read_from_any_thread(store: Store, journal: Path) -> None:
    """A thread that watches gets them while others record."""
    with Recorder_without_delivery(store, journal) as recorder:
        seen: list[int] = []
        watching = threading.Thread(target=lambda: seen.extend(recorder.stats().recorded for _ in range(1_000)))
        watching.start()
        for _ in range(200):
            recorder.record(OWNER, UUID(int=7), "user", "hello")
        watching.join()
        assert seen == sorted(seen)


async def test_prometheus_sees_all_numbers(store: Store, journal: Path, conversation: Conversation) -> None:
    """Every number of the stats is a metric with the recorder's name, and says what the stats say."""
    registry = CollectorRegistry()
    async with Recorder(store, journal) as recorder:
        watch(recorder, registry, recorder_name="kitchen")
        recorder.record(OWNER, conversation.id, "user", "hello")
        recorder.record(OWNER, uuid4(), "user", "nowhere")
        await recorder.flush(PATIENCE)
        text = generate_latest(registry).decode()
    shown = dict(re.findall(r'^chatkeep_recorder_(\w+)\{recorder="kitchen"\} (\S+)$', text, re.MULTILINE))
    numbers = {field.name for field in dataclasses.fields(recorder.stats())} - {"journal_failure"}
    assert {name.removesuffix("_total") for name in shown} == numbers | {"journal_failing"}
    assert (shown["recorded_total"], shown["sent_total"], shown["dead_total"]) == ("2.0", "1.0", "1.0")
    assert float(shown["highest_lag"]) > 0


# --- the command line ----------------------------------------------------------------------------------------


def command(*arguments: object, code: int = 0) -> str:
    """What `chatkeep recorder` prints."""
    done = CliRunner().invoke(app, ["recorder", *map(str, arguments)], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert done.exit_code == code, done.output
    return done.output


async def test_the_command_line_shows_and_moves_dead_letters(
    store: Store, journal: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` shows them with their reasons and no content, `retry` brings some back, `drop` deletes the rest."""
    monkeypatch.setattr(terminal.out, "width", 200)
    missing = [uuid4(), uuid4()]
    async with Recorder(store, journal) as recorder:
        for number in range(4):
            recorder.record(OWNER, missing[number % 2], "user", f"geheim {number}")
        await recorder.flush(PATIENCE)
        shown = await asyncio.to_thread(command, "status", journal, code=1)
        assert "0 messages wait" in shown
        assert "4 dead letters" in shown
        assert shown.count("NotFound: there is no such conversation") == 4
        assert "geheim" not in shown
        await store.create_conversation(OWNER, NewConversation(id=missing[0]))
        assert "2 dead letters are delivered again" in await asyncio.to_thread(command, "retry", journal, 1, 3)
        await until(lambda: recorder.stats().sent == 2)
    assert contents(await whole_log(store, OWNER, missing[0])) == ["geheim 0", "geheim 2"]
    assert "no dead letter" in await asyncio.to_thread(command, "drop", journal, 77, "--yes", code=1)
    assert "2 dead letters are deleted" in await asyncio.to_thread(command, "drop", journal, "--yes")
    assert "0 dead letters" in await asyncio.to_thread(command, "status", journal)


def test_the_command_line_says_what_is_no_journal(tmp_path: Path) -> None:
    """Neither a missing file nor another kind of file is made, changed, or a traceback."""
    assert "no such journal" in command("status", tmp_path / "nothing", code=1)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "text").write_text("not a journal " * 100)
    assert "not a recorder's journal" in command("status", tmp_path / "text", code=1).replace("\n", " ")


# --- the page about it ---------------------------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "recorder.md").read_text("utf-8")
_, _, FASTAPI, _ = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


async def test_the_pages_fastapi_example_works(tmp_path: Path, journal: Path) -> None:
    """A request is answered with the message's id, and the message is stored when the application ends."""
    url, id_ = f"sqlite:///{tmp_path}/chat.db", uuid4()
    async with open_store(url) as store:
        await store.create_conversation(OWNER, NewConversation(id=id_))
    names: dict[str, Any] = {"URL": url, "JOURNAL": journal}
    exec(
        "from contextlib import asynccontextmanager\nfrom uuid import UUID\nfrom fastapi import FastAPI, Request\n"
        "from chatkeep import Recorder, open_store\napp = FastAPI()\n" + FASTAPI,
        names,
    )
    app = names["app"]
    async with names["lifespan"](app):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            reply = await client.post(f"/say/{id_}?text=hello")
    assert reply.status_code == 202
    async with open_store(url) as store:
        (message,) = await whole_log(store, OWNER, id_)
    assert (str(message.id), message.content) == (reply.json()["id"], "hello")
