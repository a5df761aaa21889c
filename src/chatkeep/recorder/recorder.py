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
import logging
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from uuid import UUID

from pydantic import ValidationError
from pydantic_core import to_json

from chatkeep.errors import (
    ChatkeepError,
    Conflict,
    InvalidInput,
    NotFound,
    NotYours,
    RecorderFull,
    StoreUnavailable,
)
from chatkeep.ids import new_id, prepare_ids, valid_id
from chatkeep.model import ROLES, NewConversation, NewMessage, Role, Status
from chatkeep.recorder.journal import (
    ConversationKey,
    Entry,
    delete_entries,
    has_entries_up_to,
    mark_dead,
    newest_rid,
    oldest_entries,
    standing,
    trim,
    waiting_conversations,
)
from chatkeep.recorder.stats import Counters, RecorderStats
from chatkeep.recorder.writer import JournalOperation, JournalWriter
from chatkeep.store import Store
from chatkeep.values import MAX_OWNER_BYTES, copy_and_size, from_micros, valid_owner

logger = logging.getLogger(__name__)

WhenFull = Literal["drop_newest", "drop_oldest", "raise"]

MAX_BYTES = 256 << 20
"""Most bytes that a recorder holds for the store, by default."""

BATCH_MESSAGES, BATCH_BYTES = 32, 1 << 20
"""Most messages and bytes of one append. Twice as many hold the event loop twice as long, for 5 ms and more."""

DELIVERY_BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest backoff before an append is retried: doubled for each failure, with up to 50 % jitter."""

ENTRY_BYTES = 256
"""What an entry of the journal takes beside its text."""

CLOSE_SECONDS = 10.0
"""How long closing waits for the store."""

OTHER_PROCESS = "the recorder was made by the process that this one was forked from; make one in this process"

UNREADABLE = "a value of the message raises an error when it is read; give plain values"

NOT_ENTERED = "the recorder does not deliver yet; enter it with `async with`"

COMPLETE, INTERRUPTED, FAILED = Status.COMPLETE, Status.INTERRUPTED, Status.FAILED
"""What a message may be recorded with. Found in a third of the time that a member of its class takes."""

REFUSED = (InvalidInput, Conflict, NotFound, NotYours)
"""Errors of the store that a retry cannot mend."""


class DeadLetter(NamedTuple):
    """A message that the store refused for good."""

    owner: str
    conversation_id: UUID
    message: str
    """The message as JSON."""
    error: str
    """The name of the error's class."""
    reason: str


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
        self._store = store
        self._max_bytes = max_bytes
        self._when_full = when_full
        self._create_missing = create_missing
        self._on_dead = on_dead
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(deliveries)
        self._drains: dict[ConversationKey, asyncio.Task[None]] = {}
        self._again: set[ConversationKey] = set()  # new entries have come since their drain last read the journal
        self._settled = asyncio.Event()  # set, and replaced, whenever entries have left the journal
        self._in_flight: set[int] = set()
        self._failing: set[ConversationKey] = set()
        self._lag = self._highest_lag = self._drop_logged = 0.0
        self._closed = self._stopped = self._trimming = False
        self._journal = JournalWriter(Path(journal), self._on_written)
        found = self._journal.submit(standing).result()
        self._counters = Counters(found.entries, found.size)

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
                raise InvalidInput("the recorder is closed")
            held = counters.unsent_bytes + size
            if held <= self._max_bytes or self._make_room(held - self._max_bytes):
                counters.recorded += 1
                counters.unsent += 1
                counters.unsent_bytes = held
                self._journal.put((key, given, size, time.time_ns() // 1_000))
                return
            if self._when_full == "raise":
                counters.dropped += 1
                raise RecorderFull(
                    f"the recorder holds {self._max_bytes:,} bytes that the store has not acknowledged;"
                    " try again later, or give it a larger max_bytes"
                )
        self._drop(1)

    def _make_room(self, excess: int) -> bool:
        """Return whether the message fits because the oldest entries will be dropped.

        False while the journal cannot be written: entries would pile up in memory.
        """
        if self._when_full != "drop_oldest" or self._journal.failure is not None:
            return False
        if not self._trimming:
            self._trimming = True
            # An eighth more, so that not every message has to make room for itself.
            self._journal.submit(partial(self._trim, excess=excess + self._max_bytes // 8))
        return True

    def _trim(self, connection: Any, *, excess: int) -> None:
        """Drop the oldest entries. Runs in the writer's thread."""
        self._trimming = False
        count, size = trim(connection, excess, self._in_flight)
        self._counters.release(count, size)
        if count:
            self._drop(count)
        self._call_soon(self._note_settled)

    def _drop(self, count: int) -> None:
        with self._counters.lock:
            self._counters.dropped += count
            moment, dropped = time.monotonic(), self._counters.dropped
            if moment - self._drop_logged < 1.0 and dropped > count:
                return
            self._drop_logged = moment
        logger.error("the recorder is full: %d messages were dropped so far; the store does not keep up", dropped)

    # --- delivering ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start to deliver, in this event loop."""
        self._check_process()
        self._loop = asyncio.get_running_loop()
        for key in await self._submit(waiting_conversations):
            self._drain(key)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _on_written(self, written: set[ConversationKey]) -> None:
        """Deliver new entries. Runs in the writer's thread."""
        prepare_ids()  # so that `record` does not have to
        self._call_soon(self._drain_all, written)

    def _call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Schedule a call in the event loop, from the writer's thread."""
        if self._loop is not None:
            # RuntimeError: the loop is closed. The next recorder on the journal will deliver.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *arguments)

    def _drain_all(self, written: set[ConversationKey]) -> None:
        for key in written:
            self._drain(key)

    def _drain(self, key: ConversationKey) -> None:
        """Deliver all entries of a conversation. A single task does so, which keeps them in order."""
        if self._stopped:
            return
        if key in self._drains:
            self._again.add(key)
        else:
            self._drains[key] = asyncio.create_task(self._deliver_all(key))

    async def _deliver_all(self, key: ConversationKey) -> None:
        failures = 0
        while True:
            self._again.discard(key)
            try:
                async with self._slots:
                    operation = partial(oldest_entries, key=key, limit=BATCH_MESSAGES, max_size=BATCH_BYTES)
                    batch, more = await self._submit(operation)
                    await self._deliver(key, batch)
                failures = 0
            except Exception as error:  # noqa: BLE001 - any error is retried: the entries are in the journal
                self._note_failure(key, error)
                failures += 1
                await asyncio.sleep(_backoff(failures))
                continue
            self._note_success(key)
            if not more and key not in self._again:
                del self._drains[key]
                return

    async def _deliver(self, key: ConversationKey, batch: Sequence[Entry]) -> None:
        """Append a batch. Refused messages become dead letters; any other error is raised."""
        if not batch:
            return
        self._in_flight.update(entry.rid for entry in batch)
        try:
            await self._append(key, batch)
        except REFUSED as error:
            if len(batch) == 1 or isinstance(error, NotFound | NotYours):
                for entry in batch:
                    await self._mark_dead(key, entry, type(error).__name__, error.detail)
            else:
                # One of them is bad: append them one by one, to lose only that one.
                for entry in batch:
                    await self._deliver(key, [entry])
        finally:
            self._in_flight.difference_update(entry.rid for entry in batch)

    async def _append(self, key: ConversationKey, batch: Sequence[Entry]) -> None:
        messages = [_to_message(entry) for entry in batch]
        try:
            await self._store.append(*key, messages)
        except NotFound:
            if not self._create_missing:
                raise
            await self._store.create_conversation(key[0], NewConversation(id=key[1]))
            await self._store.append(*key, messages)
        self._acknowledge(batch)

    def _acknowledge(self, batch: Sequence[Entry]) -> None:
        """Delete stored entries. If the process is killed before, they are sent again, which changes nothing."""
        self._journal.submit(partial(delete_entries, rids=[entry.rid for entry in batch]))
        self._release(batch)
        self._counters.sent += len(batch)
        moment = time.time()
        self._lag = max(0.0, moment - batch[-1].recorded_at / 1e6)
        self._highest_lag = max(self._highest_lag, moment - batch[0].recorded_at / 1e6)
        self._note_settled()

    def _release(self, batch: Sequence[Entry]) -> None:
        """Subtract entries from what is held. Those of size 0 were dead letters, which were not counted again."""
        self._counters.release(sum(entry.size > 0 for entry in batch), sum(entry.size for entry in batch))

    def _note_settled(self) -> None:
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()

    async def _mark_dead(self, key: ConversationKey, entry: Entry, error: str, reason: str) -> None:
        await self._submit(partial(mark_dead, rid=entry.rid, error=error, reason=reason))
        self._release([entry])
        self._counters.dead += 1
        self._note_settled()
        logger.error("a message for conversation %s was refused for good: %s: %s", key[1], error, reason)
        if self._on_dead is not None:
            try:
                self._on_dead(DeadLetter(*key, entry.message, error, reason))
            except Exception:
                logger.exception("the callback for dead letters failed")

    def _note_failure(self, key: ConversationKey, error: Exception) -> None:
        self._counters.retried += 1
        if not self._failing:
            reason = error.detail if isinstance(error, ChatkeepError) else type(error).__name__
            logger.warning("messages cannot be delivered, and are kept in %s: %s", self._journal.path, reason)
            logger.debug("the fault", exc_info=error)
        self._failing.add(key)

    def _note_success(self, key: ConversationKey) -> None:
        if key in self._failing:
            self._failing.remove(key)
            if not self._failing:
                logger.info("all conversations are delivered again")

    async def _submit[T](self, operation: JournalOperation[T]) -> T:
        return await asyncio.wrap_future(self._journal.submit(operation))

    # --- flushing, closing, statistics --------------------------------------------------------------------

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncio.wait_for has it
        """Return when every message that was recorded before this call is stored, or is a dead letter.

        Raises TimeoutError after `timeout` seconds, StoreUnavailable in a forked child. Unsent messages stay in the
        journal and are still retried.
        """
        self._check_process()
        if self._loop is None:
            raise InvalidInput(NOT_ENTERED)
        async with asyncio.timeout(timeout):
            newest = await self._submit(newest_rid)
            settled = self._settled
            while await self._submit(partial(has_entries_up_to, rid=newest)):
                await settled.wait()
                settled = self._settled

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:  # noqa: ASYNC109 - as flush
        """Refuse new messages, wait up to `timeout` seconds for the store, and close the journal.

        Unsent messages stay in the journal, for the next recorder on it. Idempotent. In a forked child it does
        nothing: the journal is the parent's.
        """
        if self._journal.forked:
            return
        with self._counters.lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self._loop is not None:
                await self.flush(timeout)
        except TimeoutError:
            logger.warning("%d messages stay in %s for the next run", self._counters.unsent, self._journal.path)
        finally:
            self._stopped = True
            for task in self._drains.values():
                task.cancel()
            await asyncio.gather(*self._drains.values(), return_exceptions=True)
            await asyncio.to_thread(self._journal.close)

    def wait(self, timeout: float | None = None) -> None:
        """Block until `flush` is done. For threads other than the event loop's."""
        self._check_process()
        if self._loop is None:
            raise InvalidInput(NOT_ENTERED)
        asyncio.run_coroutine_threadsafe(self.flush(timeout), self._loop).result()

    def _check_process(self) -> None:
        """Raise StoreUnavailable in a forked child, which has neither the threads nor the tasks of the recorder."""
        if self._journal.forked:
            raise StoreUnavailable(OTHER_PROCESS)

    def stats(self) -> RecorderStats:
        """Return the counters and what is held. Thread-safe and cheap."""
        counters, journal = self._counters, self._journal
        return RecorderStats(
            recorded=counters.recorded,
            sent=counters.sent,
            retried=counters.retried,
            dead=counters.dead,
            dropped=counters.dropped,
            unsent=counters.unsent,
            unsent_bytes=counters.unsent_bytes,
            queued=counters.recorded - journal.written,
            oldest_unsent=journal.oldest_age(),
            lag=self._lag,
            highest_lag=self._highest_lag,
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
    except ValidationError as error:
        raise InvalidInput(_first_error(error)) from None
    except Exception as error:  # noqa: BLE001 - values of the caller's own classes may raise anything
        raise InvalidInput(UNREADABLE, got=type(error).__name__) from None
    return {name: getattr(message, name) for name in given}


def _plain(value: Any) -> Any:
    """A mapping of any class as a dictionary."""
    return dict(value) if isinstance(value, Mapping) else value


def _to_message(entry: Entry) -> NewMessage:
    """Return the message to append; `sent_at` defaults to the time of its recording. Raises InvalidInput."""
    try:
        message = NewMessage.model_validate_json(entry.message)
    except ValidationError as error:
        raise InvalidInput(_first_error(error)) from None
    if "sent_at" in message.model_fields_set:
        return message
    return message.model_copy(update={"sent_at": from_micros(entry.recorded_at)})


def _first_error(error: ValidationError) -> str:
    """Return the first error of a validation, without the value."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the message'}: {first['msg']}"


def _backoff(failures: int) -> float:
    first, longest = DELIVERY_BACKOFF_SECONDS
    pause: float = min(first * 2 ** (min(failures, 16) - 1), longest)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
