"""The recorder: stores messages without making the caller wait for a database.

`record` queues a message for a local journal and returns. A few milliseconds later the journal has it, and keeps it
if the process is killed. Tasks of the event loop append the messages to the store, in order for each conversation, and
retry with backoff for as long as it takes. Message ids make the delivery exactly-once.

    async with open_store(url) as store, Recorder(store, journal="voice.journal") as recorder:
        recorder.record("ada", conversation.id, "user", "How hot should tea be?")

A message that the store refuses for good, such as one for another owner's conversation, becomes a dead letter in the
journal (`chatkeep recorder status FILE`) and holds up nothing else.
"""

import asyncio
import atexit
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from uuid import UUID

from pydantic_core import to_json

from chatkeep.errors import InvalidInput, RecorderFull, StoreUnavailable
from chatkeep.ids import new_id, prepare_ids, valid_id
from chatkeep.model import ROLES, NewMessage, Role, Status
from chatkeep.recorder.backlog import Backlog
from chatkeep.recorder.delivery import DeadLetter, Delivery
from chatkeep.recorder.journal import ConversationKey
from chatkeep.recorder.log import say
from chatkeep.recorder.stats import Counters, RecorderStats
from chatkeep.recorder.writer import CLOSED, JournalWriter
from chatkeep.store import Store
from chatkeep.values import MAX_OWNER_BYTES, copy_and_size, valid_owner

logger = logging.getLogger(__name__)

WhenFull = Literal["drop_newest", "drop_oldest", "raise"]

MAX_BYTES = 256 << 20
"""Most bytes that a recorder holds for the store, by default."""

ENTRY_BYTES = 256
"""What an entry of the journal takes beside its text."""

BURST_BYTES = 16 << 20
"""With `drop_oldest`: most bytes beyond `max_bytes`, or as many again, that are taken before the journal's thread has
dropped others. It cannot while the disk hangs: the newest are dropped then."""

CLOSE_SECONDS = 10.0
"""How long closing waits for the store."""

OTHER_PROCESS = "the recorder was made by the process that this one was forked from; make one in this process"

UNREADABLE = "a value of the message raises an error when it is read; give plain values"

NOT_ENTERED = "the recorder does not deliver yet; enter it with `async with`"

COMPLETE, INTERRUPTED, FAILED = Status.COMPLETE, Status.INTERRUPTED, Status.FAILED
"""What a message may be recorded with. Found in a third of the time that a member of its class takes."""


class Recorder:
    """Takes messages without waiting, and delivers them to a store.

    store: an open store. Deliveries run in the event loop in which the recorder is entered.
    journal: a file on a local disk, for this recorder only. Its folder is created.
    max_bytes: most bytes that are held for the store.
    when_full: what happens to a message beyond that: `drop_newest` drops it, `drop_oldest` drops the oldest ones that
        are held, `raise` raises RecorderFull. Dropped messages are counted and logged.
    create_missing: create a missing conversation, with the given id. By default messages for it become dead letters:
        a conversation that somebody deleted must not come back.
    deliveries: most concurrent appends, each of another conversation.
    on_dead: called in the event loop with each message that the store refused for good.

    Raises JournalInUse if another recorder has the journal, InvalidInput if the file is not a journal. What an earlier
    process left in the journal is delivered, too.
    """

    def __init__(
        self,
        store: Store,
        journal: Path | str,
        *,
        max_bytes: int = MAX_BYTES,
        when_full: WhenFull = "drop_newest",
        create_missing: bool = False,
        deliveries: int = 8,
        on_dead: Callable[[DeadLetter], object] | None = None,
    ) -> None:
        if when_full not in ("drop_newest", "drop_oldest", "raise"):
            raise InvalidInput("when_full must be drop_newest, drop_oldest or raise", got=when_full)
        self._max_bytes = max_bytes
        self._when_full = when_full
        self._drop_logged = 0.0
        self._closed = self._trimming = False
        self._counters = Counters()
        self._delivery = Delivery(
            store, self._counters, create_missing=create_missing, deliveries=deliveries, on_dead=on_dead
        )
        self._journal = JournalWriter(Path(journal), self._counters, self._on_written)
        atexit.register(self._refuse)  # runs before the journal is closed, being registered after that

    # --- taking messages ----------------------------------------------------------------------------------

    def record(
        self,
        owner: str,
        conversation_id: UUID | str,
        role: Role | str,
        content: str,
        *,
        sent_at: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        status: Status | str = Status.COMPLETE,
        parts: Sequence[Mapping[str, Any]] | None = None,
        id: UUID | None = None,  # noqa: A002 - as in NewMessage
    ) -> UUID:
        """Queue a message and return its id. Thread-safe; never blocks.

        Messages of one conversation are stored in the order of the calls. `sent_at` is the time of the call if neither
        it nor an id is given. Empty content is made of the parts. Two calls with the same id and values are one
        message. Values are copied.
        Raises InvalidInput (InvalidId for an id) if the message can never be stored, or the recorder is closed;
        RecorderFull if the recorder is full and `when_full` is `raise`; StoreUnavailable in a forked child, which has
        none of the recorder's threads. Never raises a database's errors.
        """
        if self._journal.forked:
            raise StoreUnavailable(OTHER_PROCESS)
        size = ENTRY_BYTES
        # Fast path for plain messages, without calls: between two messages the processor's cache goes cold, and with
        # functions for the checks this took one and a half times as long.
        if (
            id is None
            and parts is None
            and (sent_at is None or (type(sent_at) is datetime and sent_at.tzinfo is UTC))
            and (metadata is None or type(metadata) is dict)
            and (status is COMPLETE or status is INTERRUPTED or status is FAILED)
            and type(owner) is str
            and owner.isascii()
            and 0 < len(owner) <= MAX_OWNER_BYTES
            and isinstance(conversation_id, UUID)
            and isinstance(role, str)
            and role in ROLES
            and type(content) is str
            and content
            and not content.isspace()
        ):
            key = (owner, conversation_id)
            given: dict[str, Any] = {"id": new_id(), "role": role, "content": content}
            if sent_at is not None:
                given["sent_at"] = sent_at
            if status is not COMPLETE:
                given["status"] = status
            if metadata:
                given["metadata"], more = _copied(metadata)
                size += more
        else:
            key = (valid_owner(owner), valid_id(conversation_id))
            given = _validated(id, role, content, status, sent_at, metadata, parts)
            size += sum(len(to_json(given[name])) for name in ("metadata", "parts") if given.get(name))
        self._enqueue(key, given, size + sys.getsizeof(given["content"]))
        id_: UUID = given["id"]
        return id_

    def _enqueue(self, key: ConversationKey, given: dict[str, Any], size: int) -> None:
        """Count and queue a message, under the lock that closing takes; or drop it."""
        counters = self._counters
        with counters.lock:
            if self._closed:
                raise InvalidInput(CLOSED)
            held = counters.queued_bytes + counters.kept_bytes + size
            if held <= self._max_bytes or self._make_room(held - self._max_bytes):
                moment = time.time_ns() // 1_000
                counters.recorded += 1
                if not counters.queued:
                    counters.queued_since = moment
                counters.queued += 1
                counters.queued_bytes += size
                self._journal.put((key, given, size, moment))
                return
            counters.dropped += 1
            if self._when_full == "raise":
                raise RecorderFull(
                    f"the recorder holds {self._max_bytes:,} bytes that the store has not acknowledged;"
                    " try again later, or give it a larger max_bytes"
                )
        self._log_drops()

    def _make_room(self, excess: int) -> bool:
        """Return whether the message fits because the oldest entries will be dropped."""
        if self._when_full != "drop_oldest" or excess > max(self._max_bytes, BURST_BYTES):
            return False
        if not self._trimming:
            self._trimming = True
            # An eighth more, so that not every message has to make room for itself.
            self._journal.submit(partial(self._trim, excess=excess + self._max_bytes // 8))
        return True

    def _trim(self, backlog: Backlog, *, excess: int) -> None:
        """Drop the oldest entries. Runs in the writer's thread."""
        self._trimming = False
        if backlog.trim(excess):
            self._log_drops()
        self._delivery.call_soon(self._delivery.note_settled)

    def _log_drops(self) -> None:
        """Say how many messages were dropped so far, once a second."""
        moment = time.monotonic()
        if moment - self._drop_logged >= 1.0:
            self._drop_logged = moment
            say(
                logger,
                logging.ERROR,
                "the recorder is full: %d messages were dropped so far; the store does not keep up",
                self._counters.dropped,
            )

    # --- delivering ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start to deliver, in this event loop."""
        self._check_process()
        await self._delivery.start(self._journal)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _on_written(self, written: set[ConversationKey]) -> None:
        """Deliver new entries. Runs in the writer's thread."""
        prepare_ids()  # so that `record` does not have to
        self._delivery.written(written)

    # --- flushing, closing, statistics --------------------------------------------------------------------

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncio.wait_for has it
        """Return when every message that was recorded before this call is stored, or is a dead letter.

        Raises TimeoutError after `timeout` seconds; StoreUnavailable if the recorder is closed meanwhile, or in a
        forked child. Unsent messages stay in the journal and are still retried.
        """
        self._check_process()
        if self._delivery.loop is None:
            raise InvalidInput(NOT_ENTERED)
        async with asyncio.timeout(timeout):
            await self._delivery.wait_until_settled()

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:  # noqa: ASYNC109 - as flush
        """Refuse new messages, wait up to `timeout` seconds for the store, and close the journal.

        Unsent messages stay in the journal, for the next recorder on it; how many is logged, and how many are lost
        because the journal could not be written. Idempotent. In a forked child it does nothing: the journal is the
        parent's.
        """
        if not self._refuse():
            return
        atexit.unregister(self._refuse)
        try:
            if self._delivery.loop is not None:
                await self.flush(timeout)
        except TimeoutError:
            say(logger, logging.WARNING, "the store did not take all messages within %g s", timeout)
        except StoreUnavailable as error:
            say(logger, logging.ERROR, "what waits for the store cannot be read: %s", error)
        finally:
            await self._delivery.stop()
            await asyncio.to_thread(self._journal.close)
            if kept := self._counters.kept:
                say(logger, logging.WARNING, "%d messages stay in %s for the next run", kept, self._journal.path)

    def _refuse(self) -> bool:
        """Refuse new messages. Returns whether they were taken so far; false in a forked child."""
        if self._journal.forked:  # a thread of the parent may hold the lock there, for ever
            return False
        with self._counters.lock:
            taken, self._closed = not self._closed, True
        return taken

    def wait(self, timeout: float | None = None) -> None:
        """Block until `flush` is done. For threads other than the event loop's."""
        self._check_process()
        if self._delivery.loop is None:
            raise InvalidInput(NOT_ENTERED)
        asyncio.run_coroutine_threadsafe(self.flush(timeout), self._delivery.loop).result()

    def _check_process(self) -> None:
        """Raise StoreUnavailable in a forked child, which has neither the threads nor the tasks of the recorder."""
        if self._journal.forked:
            raise StoreUnavailable(OTHER_PROCESS)

    def stats(self) -> RecorderStats:
        """Return the counters and what is held. Thread-safe and cheap."""
        counters, journal = self._counters, self._journal
        journal_lag = journal.lag()
        return RecorderStats(
            recorded=counters.recorded,
            sent=counters.sent,
            retried=counters.retried,
            dead=counters.dead,
            dropped=counters.dropped,
            erased=counters.erased,
            lost=counters.lost,
            unsent=counters.queued + counters.kept,
            unsent_bytes=counters.queued_bytes + counters.kept_bytes,
            queued=counters.queued,
            oldest_unsent=max(journal.oldest_age(), journal_lag),
            journal_lag=journal_lag,
            highest_journal_lag=journal.highest_lag,
            lag=self._delivery.lag,
            highest_lag=self._delivery.highest_lag,
            sync_lag=journal.sync_lag,
            highest_sync_lag=journal.highest_sync_lag,
            sync_failures=journal.sync_failures,
            journal_failure=journal.failure,
        )


def _copied(metadata: dict[str, Any]) -> tuple[Any, int]:
    try:
        return copy_and_size(metadata)
    except ValueError as error:
        raise InvalidInput(f"metadata {error}") from None
    except Exception as error:  # noqa: BLE001 - values of the caller's own classes may raise anything
        raise InvalidInput(UNREADABLE, got=type(error).__name__) from None


def _validated(
    id_: UUID | None,
    role: Role | str,
    content: str,
    status: Status | str,
    sent_at: datetime | None,
    metadata: Mapping[str, Any] | None,
    parts: Sequence[Mapping[str, Any]] | None,
) -> dict[str, Any]:
    """Return the values of a valid message, copied. Raises InvalidInput if it can never be stored."""
    given: dict[str, Any] = {"id": new_id() if id_ is None else id_, "role": role, "content": content}
    if status is not Status.COMPLETE:
        given["status"] = status
    if sent_at is not None or id_ is not None:
        given["sent_at"] = sent_at  # with an id null: the time of the call would make a retry another message
    try:
        if metadata is not None:
            given["metadata"] = _plain(metadata)
        if parts is not None:
            given["parts"] = list(map(_plain, parts)) if isinstance(parts, list | tuple) else parts
        message = NewMessage(**given)
    except InvalidInput:
        raise
    except Exception as error:  # noqa: BLE001 - values of the caller's own classes may raise anything
        raise InvalidInput(UNREADABLE, got=type(error).__name__) from None
    return {name: getattr(message, name) for name in given}


def _plain(value: Any) -> Any:
    """A mapping of any class as a dictionary."""
    return dict(value) if isinstance(value, Mapping) else value
