"""The handler for logging: what is logged in a conversation is recorded, and whoever logs is never disturbed."""

import asyncio
import io
import logging
import logging.handlers
import queue
import re
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep import NewConversation, Recorder, open_store
from chatkeep.integrations.logging import ConversationHandler
from chatkeep.testing import whole_log

OWNER = "ada"
PAGE = (Path(__file__).parents[2] / "docs" / "recorder.md").read_text("utf-8")
(EXAMPLE,) = re.findall(r"```python\n((?:(?!```).)*ConversationHandler.*?)```", PAGE, re.DOTALL)


@pytest.fixture
def log() -> Iterator[logging.Logger]:
    """A logger of an application, without handlers when the test ends."""
    logger = logging.getLogger("application.agent")
    logger.setLevel(logging.INFO)
    yield logger
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)


async def recorded(tmp_path: Path, id_: UUID, *, owner: str = OWNER) -> list[Any]:
    """What is stored of a conversation."""
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store:
        return list(await whole_log(store, owner, id_))


def recorder_in(tmp_path: Path, store: Any, **options: Any) -> Recorder:
    """A recorder that makes conversations."""
    return Recorder(store, tmp_path / "journal", create_missing=True, **options)


async def test_the_pages_handler_works(tmp_path: Path, log: logging.Logger) -> None:
    """What is logged with a conversation and a role is a message; other records are none."""
    url, id_ = f"sqlite:///{tmp_path}/chat.db", uuid4()
    async with open_store(url) as store:
        conversation = await store.create_conversation(OWNER, NewConversation(id=id_))
        began = time.time()
        async with Recorder(store, tmp_path / "journal") as recorder:
            exec(EXAMPLE, {"recorder": recorder, "conversation": conversation, "logging": logging, "log": log})
            (handler,) = logging.getLogger("agent").handlers
            logging.getLogger("agent").removeHandler(handler)
    (message,) = await recorded(tmp_path, id_)
    assert (message.role, message.content) == ("assistant", "Green tea: 80 °C.")
    assert message.metadata == {"logger": "agent.tea", "level": "INFO"}
    assert began - 0.001 <= message.sent_at.timestamp() <= time.time()


async def test_owner_metadata_and_format_of_a_record(tmp_path: Path, log: logging.Logger) -> None:
    """A record may name another owner, and more metadata; a formatter and a filter are obeyed."""
    id_ = uuid4()
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        handler = ConversationHandler(recorder, level="WARNING")
        handler.setFormatter(logging.Formatter("<%(message)s>"))
        handler.addFilter(lambda record: "secret" not in record.getMessage())
        log.addHandler(handler)
        extra = {"conversation": str(id_), "role": "tool", "owner": "bob", "metadata": {"tool": "kettle"}}
        log.warning("it is %s", "hot", extra=extra)
        log.warning("a secret", extra=extra)
        log.info("too quiet", extra=extra)
    (message,) = await recorded(tmp_path, id_, owner="bob")
    assert message.content == "<it is hot>"
    assert message.metadata == {"logger": "application.agent", "level": "WARNING", "tool": "kettle"}


async def test_a_filter_may_give_records_their_conversation(tmp_path: Path, log: logging.Logger) -> None:
    """Python's logging cookbook adds the context of a request so, to the record or to a copy."""
    id_ = uuid4()

    def in_conversation(record: logging.LogRecord) -> bool | logging.LogRecord:
        if record.getMessage() == "one":
            vars(record).update(conversation=id_, role="user")
            return True
        if record.getMessage() == "two":
            return logging.makeLogRecord({**vars(record), "conversation": id_, "role": "assistant"})
        return True

    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        handler = ConversationHandler(recorder, owner=OWNER)
        handler.addFilter(in_conversation)
        log.addHandler(handler)
        for text in ("one", "none", "two"):
            log.info(text)
    assert [message.content for message in await recorded(tmp_path, id_)] == ["one", "two"]


async def test_records_of_a_queue_keep_their_time(tmp_path: Path, log: logging.Logger) -> None:
    """Behind logging's QueueHandler a message has the time at which it was logged."""
    id_, waiting = uuid4(), queue.SimpleQueue[Any]()
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        log.addHandler(logging.handlers.QueueHandler(waiting))
        log.info("it is %s", "hot", extra={"conversation": id_, "role": "user"})
        logged = time.time()
        await asyncio.sleep(0.05)
        listener = logging.handlers.QueueListener(waiting, ConversationHandler(recorder, owner=OWNER))
        listener.start()
        listener.stop()
    (message,) = await recorded(tmp_path, id_)
    assert message.content == "it is hot"
    assert message.sent_at.timestamp() <= logged


@pytest.mark.parametrize(
    ("extra", "reason"),
    [
        ({"role": "narrator"}, "InvalidInput"),
        ({"conversation": "1"}, "InvalidId"),
        ({"owner": 7}, "InvalidInput"),
        ({"owner": ""}, "InvalidInput"),
        ({"metadata": "tea"}, "TypeError"),
    ],
)
async def test_what_goes_wrong_is_not_raised(
    tmp_path: Path,
    log: logging.Logger,
    capsys: pytest.CaptureFixture[str],
    extra: dict[str, Any],
    reason: str,
) -> None:
    """It is logging's business, as with every handler; and the next record is recorded."""
    id_ = uuid4()
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        log.addHandler(ConversationHandler(recorder, owner=OWNER))
        log.info("bad", extra={"conversation": id_, "role": "user", **extra})
        log.info("good", extra={"conversation": id_, "role": "user"})
    log.info("late", extra={"conversation": id_, "role": "user"})
    errors = capsys.readouterr().err
    assert errors.count("--- Logging error ---") == 2
    assert reason in errors
    assert "the recorder is closed" in errors
    assert [message.content for message in await recorded(tmp_path, id_)] == ["good"]


class Endless:
    """A value whose text never ends."""

    def __str__(self) -> str:
        return str(self)

    __repr__ = __str__


@pytest.mark.parametrize("stderr", ["open", "closed"])
async def test_what_cannot_even_be_printed_is_not_raised(
    tmp_path: Path, log: logging.Logger, monkeypatch: pytest.MonkeyPatch, stderr: str
) -> None:
    """Logging itself raises if the arguments recurse, or stderr is closed."""
    id_ = uuid4()
    given = {"conversation": id_, "role": "user"}
    printed = io.StringIO()
    if stderr == "closed":
        printed.close()
    monkeypatch.setattr(sys, "stderr", printed)
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        log.addHandler(ConversationHandler(recorder, owner=OWNER))
        log.propagate = False
        try:
            log.info("%s", Endless(), extra=given)
            log.info("%d", "hot", extra=given)
            log.info("good", extra={**given, "metadata": None, "owner": None})
        finally:
            log.propagate = True
    (message,) = await recorded(tmp_path, id_)
    assert message.content == "good"


async def test_a_record_without_a_name(tmp_path: Path) -> None:
    """It may come from another process, without one."""
    id_ = uuid4()
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        handler = ConversationHandler(recorder, owner=OWNER)
        assert handler.handle(logging.makeLogRecord({"msg": "hello", "conversation": id_, "role": "user"}))
    (message,) = await recorded(tmp_path, id_)
    assert message.content == "hello"


@pytest.fixture
def everywhere() -> Iterator[dict[str, Any]]:
    """What every record of the process has, as if its `extra`: contexts of requests are often added so."""
    given: dict[str, Any] = {}
    make = logging.getLogRecordFactory()

    def made(*arguments: Any, **named: Any) -> logging.LogRecord:
        record = make(*arguments, **named)
        vars(record).update(given)
        return record

    logging.setLogRecordFactory(made)
    yield given
    logging.setLogRecordFactory(make)


async def test_what_the_recorder_logs_is_not_recorded(tmp_path: Path, everywhere: dict[str, Any]) -> None:
    """Else a dead letter would be logged, recorded, refused and logged again, for ever."""
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, Recorder(store, tmp_path / "journal") as recorder:
        handler = ConversationHandler(recorder, owner=OWNER)
        logging.getLogger().addHandler(handler)
        try:
            everywhere.update(conversation=uuid4(), role="user")  # a conversation that does not exist
            logging.getLogger("application.agent").warning("hello")
            everywhere.clear()
            for _ in range(3):
                everywhere.update(conversation=uuid4(), role="user")
                await recorder.flush(timeout=20)
        finally:
            everywhere.clear()
            logging.getLogger().removeHandler(handler)
        assert recorder.stats().recorded == recorder.stats().dead == 1


async def test_a_recorder_that_logs_under_its_lock_does_not_block(tmp_path: Path, everywhere: dict[str, Any]) -> None:
    """One thread waits in `record` for the recorder's lock, whose holder logs."""
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        log = logging.getLogger("chatkeep.recorder.recorder")
        handler = ConversationHandler(recorder, owner=OWNER)
        logging.getLogger().addHandler(handler)
        try:
            everywhere.update(conversation=uuid4(), role="user")
            other = threading.Thread(target=logging.getLogger("application.agent").warning, args=["hello"])
            holder = threading.Thread(target=log.warning, args=["full"], daemon=True)
            with recorder._counters.lock:
                other.start()
                time.sleep(0.1)
                assert other.is_alive()
                holder.start()
                holder.join(5)
                assert not holder.is_alive()
            other.join(5)
        finally:
            everywhere.clear()
            logging.getLogger().removeHandler(handler)
        assert recorder.stats().recorded == 1


async def test_a_message_within_a_message(tmp_path: Path, log: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler or a finalizer may log between any two steps of its thread, also of those that record."""
    id_ = uuid4()
    given = {"conversation": id_, "role": "user"}
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, recorder_in(tmp_path, store) as recorder:
        log.addHandler(ConversationHandler(recorder, owner=OWNER))
        put = recorder._journal.put

        def interrupted(entry: Any) -> None:
            monkeypatch.undo()
            log.info("inner", extra=given)
            put(entry)

        monkeypatch.setattr(recorder._journal, "put", interrupted)
        thread = threading.Thread(target=log.info, args=["outer"], kwargs={"extra": given}, daemon=True)
        thread.start()
        thread.join(5)
        assert not thread.is_alive()
    assert [message.content for message in await recorded(tmp_path, id_)] == ["inner", "outer"]
