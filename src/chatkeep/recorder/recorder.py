"""A recorder: saves messages without making whoever says them wait for a database.

`record` puts a message into a local journal and returns; the journal has it in a few milliseconds, also when
the process is killed then. Behind it the recorder appends to the store, in order for each conversation, for
as long as it takes. Message ids make that exactly once.

    async with open_store(url) as store, Recorder(store, journal="voice.journal") as recorder:
        recorder.record("ada", conversation.id, "user", "How hot should tea be?")

A message that the store refuses for good, such as one for somebody else's conversation, becomes a dead letter
in the journal (`chatkeep recorder status FILE`) and stops nothing else.
"""

import asyncio
import logging
import random
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self
from uuid import UUID

from pydantic import ValidationError

from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, NotYours, RecorderFull
from chatkeep.ids import new_id, prepare_ids, valid_id
from chatkeep.model import ROLES, NewConversation, NewMessage, Role, Status
from chatkeep.recorder.journal import (
    Journal,
    Key,
    Row,
    Work,
    bury,
    has_entries_up_to,
    keys,
    newest_rid,
    oldest,
    remove,
    standing,
    trim,
)
from chatkeep.store import Store, open_store
from chatkeep.values import MAX_OWNER_BYTES, copy_json, from_micros, valid_owner

logger = logging.getLogger(__name__)

WhenFull = Literal["drop_newest", "drop_oldest", "raise"]

MAX_BYTES = 256 << 20
"""How much a recorder holds that the store has not acknowledged, unless told otherwise."""

BATCH_MESSAGES, BATCH_BYTES = 32, 1 << 20
"""Most messages of one append, and their size: twice as many hold the event loop twice as long, for 5 ms and more."""

PAUSE_SECONDS = (0.1, 5.0)
"""Shortest and longest pause before an append is tried again; each is twice the one before, less up to a half."""

ENTRY_BYTES = 256
"""What an entry of the journal takes beside its text."""

CLOSE_SECONDS = 10.0
"""How long closing waits for the store."""

NOT_ENTERED = "the recorder does not deliver yet; enter it with `async with`"

REFUSED = (InvalidInput, Conflict, NotFound, NotYours)
"""What the store says of a message that it will never take."""


class DeadLetter(NamedTuple):
    """A message that the store refused for good."""

    owner: str
    conversation_id: UUID
    message: str
    """The message as JSON."""
    error: str
    """The name of the error's class."""
    reason: str


@dataclass(frozen=True)
class RecorderStats:
    """What a recorder has done since it was made, and what it holds now. Times are in seconds."""

    recorded: int
    """Messages that `record` took."""
    sent: int
    """Messages that the store acknowledged, those of earlier runs included."""
    retried: int
    """Appends that were tried again."""
    dead: int
    """Messages that the store refused for good."""
    dropped: int
    """Messages that were not taken, or given up, because the recorder was full."""
    unsent: int
    """Messages that are held for the store, in memory or in the journal."""
    unsent_bytes: int
    queued: int
    """Those of them that the journal does not have yet."""
    oldest_unsent: float
    """Age of the oldest message that is held."""
    lag: float
    """From `record` to the store's acknowledgement: of the last message, and the longest so far."""
    highest_lag: float
    sync_lag: float
    """From the journal's commit to the disk: what a power failure may take. Of the last commit, and the longest."""
    highest_sync_lag: float
    sync_failures: int
    """How often the disk refused the journal: whether it has those messages is not known."""
    journal_failure: str | None
    """Why the journal cannot be written at the moment."""


class _Counts:
    """Numbers that several threads change, under one lock that is held for less than a microsecond."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.recorded = self.sent = self.retried = self.dead = self.dropped = 0
        self.unsent = self.unsent_bytes = 0

    def release(self, count: int, size: int) -> None:
        """Count messages that are not held any more."""
        with self.lock:
            self.unsent -= count
            self.unsent_bytes -= size


class Recorder:
    """Takes messages at once and delivers them to a store.

    store: an open store. Deliveries run in the event loop in which the recorder is entered.
    journal: a file on a local disk, for this recorder only. Its folder is made.
    max_bytes: how much may be held that the store has not acknowledged.
    when_full: what happens to a message that is too much: `drop_newest` drops it, `drop_oldest` drops the
        oldest one that is held, `raise` raises RecorderFull. What is dropped is counted and logged.
    create_missing: create a conversation that is not there, with the id that was given. Without it, messages
        for it are dead letters: a conversation that somebody deleted is not to come back.
    deliveries: most appends under way at the same time, of different conversations.
    on_dead: called, in the event loop, with each message that the store refused for good.

    Raises JournalInUse when another recorder has the journal, InvalidInput when the file is something else.
    What an earlier run left in the journal is delivered, too.
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
        self._counts = _Counts()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(deliveries)
        self._drains: dict[Key, asyncio.Task[None]] = {}
        self._again: set[Key] = set()
        """Conversations that got something new while their drain was looking."""
        self._settled = asyncio.Event()
        """Set, and replaced, whenever entries have left the journal."""
        self._under_way: set[int] = set()
        self._failing: set[Key] = set()
        self._trimming = False
        self._drops_told = 0.0
        self._lag = self._highest_lag = 0.0
        self._closed = self._stopped = False
        self._journal = Journal(Path(journal), self._on_written)
        found = self._journal.ask(standing).result()
        self._counts.unsent, self._counts.unsent_bytes = found.entries, found.size

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
        id: UUID | None = None,  # noqa: A002 - as in NewMessage
    ) -> UUID:
        """Take a message, and return its id at once. Callable from every thread; never waits for anything.

        Messages of one conversation are stored in the order of these calls. `sent_at` is the time of the
        call where neither it nor an id is given. Two calls with the same id and the same values are one message.
        What is given is copied. Raises InvalidInput (InvalidId for an id) for what can never be stored, and
        when the recorder is closed; RecorderFull when it is full and was told to say so. A database's fault
        never shows here.
        """
        size = ENTRY_BYTES + sys.getsizeof(content)
        # What a plain message has to be is written out here: the code of a function is rarely in the processor's cache
        # when somebody speaks, and with the checks as functions this took one and a half times as long.
        if (
            id is None
            and (sent_at is None or (type(sent_at) is datetime and sent_at.tzinfo is UTC))
            and (not metadata or type(metadata) is dict)
            and type(status) is Status
            and status is not Status.DELETED
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
            said: dict[str, Any] = {"id": new_id(), "role": role, "content": content}
            if sent_at is not None:
                said["sent_at"] = sent_at
            if status is not Status.COMPLETE:
                said["status"] = status
            if metadata:
                said["metadata"] = _copied(metadata)
        else:
            key = (valid_owner(owner), valid_id(conversation_id))
            said = _checked(id, role, content, status, sent_at, metadata)
        if metadata:
            size += len(repr(said["metadata"]))
        self._take(key, said, size)
        taken: UUID = said["id"]
        return taken

    def _take(self, key: Key, said: dict[str, Any], size: int) -> None:
        """Count a message and give it to the journal, both before anybody can close that; or drop it."""
        counts = self._counts
        with counts.lock:
            if self._closed:
                raise InvalidInput("the recorder is closed")
            held = counts.unsent_bytes + size
            if held <= self._max_bytes or self._makes_room(held - self._max_bytes):
                counts.recorded += 1
                counts.unsent += 1
                counts.unsent_bytes = held
                self._journal.put((key, said, size, time.time_ns() // 1_000))
                return
            if self._when_full == "raise":
                counts.dropped += 1
                raise RecorderFull(
                    f"the recorder holds {self._max_bytes:,} bytes that the store has not acknowledged;"
                    " try again later, or give it a larger max_bytes"
                )
        self._drop(1)

    def _makes_room(self, excess: int) -> bool:
        """See to it that the oldest entries go; not while the journal cannot be written, as memory has an end."""
        if self._when_full != "drop_oldest" or self._journal.failure is not None:
            return False
        if not self._trimming:
            self._trimming = True
            # An eighth more: so that not every message has to make room for itself.
            work = partial(self._trim, excess=excess + self._max_bytes // 8)
            self._journal.ask(work)
        return True

    def _trim(self, connection: Any, *, excess: int) -> None:
        """Runs in the journal's thread."""
        self._trimming = False
        count, size = trim(connection, excess, self._under_way)
        self._counts.release(count, size)
        if count:
            self._drop(count)
        self._call_soon(self._note_settled)

    def _drop(self, count: int) -> None:
        with self._counts.lock:
            self._counts.dropped += count
            moment, dropped = time.monotonic(), self._counts.dropped
            if moment - self._drops_told < 1.0 and dropped > count:
                return
            self._drops_told = moment
        logger.error("the recorder is full: %d messages were dropped so far; the store does not keep up", dropped)

    # --- delivering ---------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Begin to deliver, in this event loop."""
        self._loop = asyncio.get_running_loop()
        for key in await self._ask(keys):
            self._drain(key)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _on_written(self, written: set[Key]) -> None:
        """Runs in the journal's thread."""
        prepare_ids()  # or `record` would, now and then
        self._call_soon(self._drain_all, written)

    def _call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Have something done in the event loop, from the journal's thread."""
        if self._loop is not None:
            # A loop that is closed delivers nothing: the next recorder on the journal will.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *arguments)

    def _drain_all(self, written: set[Key]) -> None:
        for key in written:
            self._drain(key)

    def _drain(self, key: Key) -> None:
        """Have everything of a conversation delivered. One task does that: its appends follow each other."""
        if self._stopped:
            return
        if key in self._drains:
            self._again.add(key)
        else:
            self._drains[key] = asyncio.create_task(self._deliver_all(key))

    async def _deliver_all(self, key: Key) -> None:
        failures = 0
        while True:
            self._again.discard(key)
            try:
                async with self._slots:
                    work = partial(oldest, key=key, limit=BATCH_MESSAGES, max_size=BATCH_BYTES)
                    found, more = await self._ask(work)
                    await self._deliver(key, found)
                failures = 0
            except Exception as error:  # noqa: BLE001 - whatever it is: what is in the journal is tried again
                self._note_failure(key, error)
                failures += 1
                await asyncio.sleep(_pause(failures))
                continue
            self._note_success(key)
            if not more and key not in self._again:
                del self._drains[key]
                return

    async def _deliver(self, key: Key, found: Sequence[Row]) -> None:
        """Append what was found. What is refused for good is buried; any other fault is raised."""
        if not found:
            return
        self._under_way.update(row.rid for row in found)
        try:
            await self._append(key, found)
        except REFUSED as error:
            if len(found) == 1 or isinstance(error, NotFound | NotYours):
                for row in found:
                    await self._bury(key, row, type(error).__name__, error.detail)
            else:
                # One of them is bad: they go alone, so that it takes none with it.
                for row in found:
                    await self._deliver(key, [row])
        finally:
            self._under_way.difference_update(row.rid for row in found)

    async def _append(self, key: Key, found: Sequence[Row]) -> None:
        messages = [_delivered(row) for row in found]
        try:
            await self._store.append(*key, messages)
        except NotFound:
            if not self._create_missing:
                raise
            await self._store.create_conversation(key[0], NewConversation(id=key[1]))
            await self._store.append(*key, messages)
        self._forget(found)

    def _forget(self, found: Sequence[Row]) -> None:
        """Remove what was stored. A kill before this is written makes it be sent again, which changes nothing."""
        self._journal.ask(partial(remove, rids=[row.rid for row in found]))
        self._release(found)
        self._counts.sent += len(found)
        moment = time.time()
        self._lag = max(0.0, moment - found[-1].recorded_at / 1e6)
        self._highest_lag = max(self._highest_lag, moment - found[0].recorded_at / 1e6)
        self._note_settled()

    def _release(self, found: Sequence[Row]) -> None:
        """Discount entries. Those of size 0 were dead letters, which nobody has counted again."""
        self._counts.release(sum(row.size > 0 for row in found), sum(row.size for row in found))

    def _note_settled(self) -> None:
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()

    async def _bury(self, key: Key, row: Row, error: str, reason: str) -> None:
        await self._ask(partial(bury, rid=row.rid, error=error, reason=reason))
        self._release([row])
        self._counts.dead += 1
        self._note_settled()
        logger.error("a message for conversation %s was refused for good: %s: %s", key[1], error, reason)
        if self._on_dead is not None:
            try:
                self._on_dead(DeadLetter(*key, row.message, error, reason))
            except Exception:
                logger.exception("the callback for dead letters failed")

    def _note_failure(self, key: Key, error: Exception) -> None:
        self._counts.retried += 1
        if not self._failing:
            sentence = error.detail if isinstance(error, ChatkeepError) else type(error).__name__
            logger.warning("messages cannot be delivered, and are kept in %s: %s", self._journal.path, sentence)
            logger.debug("the fault", exc_info=error)
        self._failing.add(key)

    def _note_success(self, key: Key) -> None:
        if key in self._failing:
            self._failing.remove(key)
            if not self._failing:
                logger.info("all conversations are delivered again")

    async def _ask[T](self, work: Work[T]) -> T:
        return await asyncio.wrap_future(self._journal.ask(work))

    # --- waiting, closing, telling ------------------------------------------------------------------------

    async def flush(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - as asyncio.wait_for has it
        """Return when everything that was recorded before this call is stored, or is a dead letter.

        Raises TimeoutError after `timeout` seconds; what is unsent stays in the journal and is tried further.
        """
        if self._loop is None:
            raise InvalidInput(NOT_ENTERED)
        async with asyncio.timeout(timeout):
            newest = await self._ask(newest_rid)
            settled = self._settled
            while await self._ask(partial(has_entries_up_to, rid=newest)):
                await settled.wait()
                settled = self._settled

    async def aclose(self, timeout: float = CLOSE_SECONDS) -> None:  # noqa: ASYNC109 - as flush
        """Take no more messages, give the store `timeout` seconds for those that are left, and close the journal.

        What the store did not take stays in the journal, for the next recorder on it. Idempotent.
        """
        with self._counts.lock:
            if self._closed:
                return
            self._closed = True
        try:
            if self._loop is not None:
                await self.flush(timeout)
        except TimeoutError:
            logger.warning("%d messages stay in %s for the next run", self._counts.unsent, self._journal.path)
        finally:
            self._stopped = True
            for task in self._drains.values():
                task.cancel()
            await asyncio.gather(*self._drains.values(), return_exceptions=True)
            await asyncio.to_thread(self._journal.close)

    def wait(self, timeout: float | None = None) -> None:
        """`flush` for another thread than the event loop's: block until it is done."""
        if self._loop is None:
            raise InvalidInput(NOT_ENTERED)
        asyncio.run_coroutine_threadsafe(self.flush(timeout), self._loop).result()

    def stats(self) -> RecorderStats:
        """Return what was done, and what is held. Callable from every thread, and cheap."""
        counts, written = self._counts, self._journal
        return RecorderStats(
            recorded=counts.recorded,
            sent=counts.sent,
            retried=counts.retried,
            dead=counts.dead,
            dropped=counts.dropped,
            unsent=counts.unsent,
            unsent_bytes=counts.unsent_bytes,
            queued=counts.recorded - written.written,
            oldest_unsent=written.oldest_age(),
            lag=self._lag,
            highest_lag=self._highest_lag,
            sync_lag=written.sync_lag,
            highest_sync_lag=written.highest_sync_lag,
            sync_failures=written.sync_failures,
            journal_failure=written.failure,
        )


def _copied(metadata: Mapping[str, Any]) -> Any:
    try:
        return copy_json(metadata)
    except ValueError as error:
        raise InvalidInput(f"metadata: {error}") from None


def _checked(
    id_: UUID | None,
    role: Role | str,
    content: str,
    status: Status | str,
    sent_at: datetime | None,
    metadata: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The values of a message, copied. Raises InvalidInput for what can never be stored."""
    given: dict[str, Any] = {"id": id_ or new_id(), "role": role, "content": content}
    if status != Status.COMPLETE:
        given["status"] = status
    if sent_at is not None or id_ is not None:
        given["sent_at"] = sent_at  # null with an id: the time of the call would make it another message
    if metadata:
        given["metadata"] = dict(metadata) if isinstance(metadata, Mapping) else metadata
    try:
        message = NewMessage(**given)
    except ValidationError as error:
        raise InvalidInput(_told(error)) from None
    return {name: getattr(message, name) for name in given}


def _delivered(row: Row) -> NewMessage:
    """The message to append: said when it was recorded, unless the caller knew better. Raises InvalidInput."""
    try:
        message = NewMessage.model_validate_json(row.message)
    except ValidationError as error:
        raise InvalidInput(_told(error)) from None
    if "sent_at" in message.model_fields_set:
        return message
    return message.model_copy(update={"sent_at": from_micros(row.recorded_at)})


def _told(error: ValidationError) -> str:
    """The first thing that is wrong, without its value."""
    first = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the message'}: {first['msg']}"


def _pause(failures: int) -> float:
    longest: float = min(PAUSE_SECONDS[0] * 2 ** (min(failures, 16) - 1), PAUSE_SECONDS[1])
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret


@asynccontextmanager
async def _opened(url: str, journal: Path | str, options: Mapping[str, Any]) -> AsyncIterator[Recorder]:
    async with open_store(url) as store, Recorder(store, journal, **options) as recorder:
        yield recorder


@contextmanager
def recording(url: str, journal: Path | str, **options: Any) -> Iterator[Recorder]:
    """A recorder for a program without an event loop: one of its own runs in a thread.

        with recording("sqlite:///chat.db", journal="voice.journal") as recorder:
            recorder.record("ada", conversation_id, "user", "How hot should tea be?")

    Options are those of `Recorder`. What is recorded is stored when the block ends, or stays in the journal.
    """
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="chatkeep-recorder", daemon=True)
    thread.start()
    opened = _opened(url, journal, options)
    try:
        yield asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()
    finally:
        asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
