"""Delivers what a journal holds to the store: in order for each conversation, with backoff, for as long as it takes."""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple
from uuid import UUID

from pydantic import ValidationError

from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, NotYours, StoreUnavailable
from chatkeep.model import NewConversation, NewMessage
from chatkeep.recorder.backlog import Backlog
from chatkeep.recorder.journal import ConversationKey, Entry
from chatkeep.recorder.log import say
from chatkeep.recorder.stats import Counters
from chatkeep.recorder.writer import CLOSED, BacklogOperation, JournalWriter
from chatkeep.store import Store
from chatkeep.validation import first_wrong
from chatkeep.values import from_micros, to_micros

logger = logging.getLogger(__name__)

BATCH_MESSAGES, BATCH_BYTES = 32, 1 << 20
"""Most messages and bytes of one append. Twice as many hold the event loop twice as long, for 5 ms and more."""

DELIVERY_BACKOFF_SECONDS = (0.1, 5.0)
"""First and longest backoff before an append is retried: doubled for each failure, with up to 50 % jitter."""

ERASURE_SECONDS = 600.0
"""How often dead letters of owners who were erased are looked for."""

FRESH_SECONDS = 1.0
"""Age of entries up to which nobody asks whether their owner was erased meanwhile: then their conversation is missing,
unless it was made again. Asking for each batch kept the interpreter from the journal's thread for up to 60 ms."""

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


class _Erased(Exception):
    """The owner was erased while entries were appended, which have to be looked at again."""


class Delivery:
    """The tasks of one recorder that append its entries to a store, one for each conversation that has entries."""

    def __init__(
        self,
        store: Store,
        counters: Counters,
        *,
        create_missing: bool,
        deliveries: int,
        on_dead: Callable[[DeadLetter], object] | None,
    ) -> None:
        self.lag = self.highest_lag = 0.0
        """Seconds from `record` to the store's acknowledgement: of the last message, and the highest so far."""
        self.stopped = False
        self._store = store
        self._counters = counters
        self._create_missing = create_missing
        self._on_dead = on_dead
        self._loop: asyncio.AbstractEventLoop | None = None
        self._slots = asyncio.Semaphore(deliveries)
        self._drains: dict[ConversationKey, asyncio.Task[None]] = {}
        self._again: set[ConversationKey] = set()  # new entries have come since their drain last read the journal
        self._settled = asyncio.Event()  # set, and replaced, whenever entries have left the journal
        self._failing: set[ConversationKey] = set()
        self._watch: asyncio.Task[None] | None = None

    # --- starting and stopping ----------------------------------------------------------------------------

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop in which entries are delivered; None before they are."""
        return self._loop

    async def start(self, journal: JournalWriter) -> None:
        """Deliver what the journal holds, and will hold, in this event loop."""
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._drain_all(await self.submit(Backlog.conversations))
        self._watch = asyncio.create_task(self._watch_erasures())

    async def stop(self) -> None:
        """End the tasks. Those who wait for entries to be delivered are woken up."""
        self.stopped = True
        tasks = [*self._drains.values(), *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.note_settled()

    def written(self, written: set[ConversationKey]) -> None:
        """Deliver new entries. For the journal's thread."""
        self.call_soon(self._drain_all, written)

    def call_soon(self, call: Callable[..., object], *arguments: object) -> None:
        """Schedule a call in the event loop, from the journal's thread."""
        if self._loop is not None:
            # RuntimeError: the loop is closed. The next recorder on the journal will deliver.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(call, *arguments)

    async def submit[T](self, operation: BacklogOperation[T]) -> T:
        """Run an operation in the journal's thread."""
        return await asyncio.wrap_future(self._journal.submit(operation))

    async def wait_until_settled(self) -> None:
        """Return when everything that was recorded before this call has left the journal.

        Raises StoreUnavailable if the tasks end before.
        """
        newest = await self.submit(Backlog.newest)
        settled = self._settled
        while await self.submit(partial(Backlog.has_up_to, rid=newest)):
            if self.stopped:
                raise StoreUnavailable(CLOSED)
            await settled.wait()
            settled = self._settled

    def note_settled(self) -> None:
        """Wake up those who wait for entries to leave the journal."""
        settled, self._settled = self._settled, asyncio.Event()
        settled.set()

    # --- conversations ------------------------------------------------------------------------------------

    def _drain_all(self, written: set[ConversationKey]) -> None:
        for key in written:
            self._drain(key)

    def _drain(self, key: ConversationKey) -> None:
        """Deliver all entries of a conversation. A single task does so, which keeps them in order."""
        if self.stopped:
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
                    more = await self._deliver_some(key)
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

    async def _deliver_some(self, key: ConversationKey) -> bool:
        """Deliver a batch of a conversation's entries; return whether there are more."""
        operation = partial(Backlog.take, key=key, limit=BATCH_MESSAGES, max_size=BATCH_BYTES)
        entries, more = await self.submit(operation)
        if not entries:
            self.note_settled()  # another process may have removed them, or they are lost
        try:
            is_fresh = all(time.time() - entry.recorded_at / 1e6 < FRESH_SECONDS for entry in entries)
            batch = entries if is_fresh else await self._without_erased(key, entries)
            if batch:
                await self._deliver(key, batch)
        except _Erased:
            return True
        finally:
            self._journal.submit(partial(Backlog.release, entries=entries))
        return more

    async def _deliver(self, key: ConversationKey, batch: Sequence[Entry]) -> None:
        """Append a batch. Refused messages become dead letters; any other error is raised."""
        try:
            await self._append(key, batch)
        except REFUSED as error:
            if len(batch) == 1 or isinstance(error, NotFound | NotYours):
                # An erasure may be the reason, whose traces are there before anything is removed.
                for entry in await self._without_erased(key, batch):
                    await self._bury(key, entry, type(error).__name__, error.detail)
            else:
                # One of them is bad: append them one by one, to lose only that one.
                for entry in batch:
                    await self._deliver(key, [entry])

    async def _append(self, key: ConversationKey, batch: Sequence[Entry]) -> None:
        messages = [to_message(entry) for entry in batch]
        try:
            await self._store.append(*key, messages)
        except NotFound:
            if not self._create_missing:
                raise
            await self._recreate(key, batch)
            await self._store.append(*key, messages)
        self._remove_sent(batch)

    async def _recreate(self, key: ConversationKey, batch: Sequence[Entry]) -> None:
        """Create a missing conversation, unless it is missing because its owner was erased: raises _Erased then.

        An erasure that begins after the last look at it removes the conversation.
        """
        await self._check_erasure(key, batch)
        await self._store.create_conversation(key[0], NewConversation(id=key[1]))
        try:
            await self._check_erasure(key, batch)
        except _Erased:
            if (await self._store.get_conversation(*key)).last_seq == 0:
                await self._store.delete_conversation(*key)
            raise

    async def _check_erasure(self, key: ConversationKey, batch: Sequence[Entry]) -> None:
        erased = await self._erased_at(key[0])
        if any(entry.recorded_at <= erased for entry in batch):
            raise _Erased

    # --- what no longer waits -----------------------------------------------------------------------------

    def _remove_sent(self, batch: Sequence[Entry]) -> None:
        """Remove stored entries. If the process is killed before, they are sent again, which changes nothing."""
        self._journal.submit(partial(Backlog.remove, entries=batch, outcome="sent"))
        moment = time.time()
        self.lag = max(0.0, moment - batch[-1].recorded_at / 1e6)
        self.highest_lag = max(self.highest_lag, moment - batch[0].recorded_at / 1e6)
        self.note_settled()

    async def _bury(self, key: ConversationKey, entry: Entry, error: str, reason: str) -> None:
        await self.submit(partial(Backlog.bury, entry=entry, error=error, reason=reason))
        self.note_settled()
        say(logger, logging.ERROR, "a message for conversation %s was refused for good: %s: %s", key[1], error, reason)
        if self._on_dead is not None:
            try:
                self._on_dead(DeadLetter(*key, entry.message, error, reason))
            except Exception as failed:  # noqa: BLE001 - the application's
                say(logger, logging.ERROR, "the callback for dead letters failed", error=failed)

    async def _without_erased(self, key: ConversationKey, entries: Sequence[Entry]) -> Sequence[Entry]:
        """Remove entries that were recorded before their owner was erased; return the others."""
        erased = await self._erased_at(key[0]) if entries else 0
        gone = [entry for entry in entries if entry.recorded_at <= erased]
        if gone:
            await self.submit(partial(Backlog.remove, entries=gone, outcome="erased"))
            say(
                logger,
                logging.WARNING,
                "%d messages are removed from the journal, as their owner was erased",
                len(gone),
            )
            self.note_settled()
        return [entry for entry in entries if entry.recorded_at > erased]

    async def _erased_at(self, owner: str) -> int:
        """Return when an owner was last erased, in microseconds since 1970; 0 if never."""
        erased = await self._store.access.erased_at(owner)
        return to_micros(erased) if erased is not None else 0

    async def _watch_erasures(self) -> None:
        """Remove dead letters of owners who were erased, from time to time."""
        while True:
            try:
                for owner in await self.submit(Backlog.owners_of_dead):
                    await self._drop_erased(owner)
            except Exception as error:  # noqa: BLE001 - it is tried again
                say(logger, logging.DEBUG, "dead letters of erased owners are looked for later", error=error)
            await asyncio.sleep(ERASURE_SECONDS)

    async def _drop_erased(self, owner: str) -> None:
        if erased := await self._erased_at(owner):
            dropped = await self.submit(partial(Backlog.drop_dead_of, owner=owner, before=erased))
            if dropped:
                say(logger, logging.WARNING, "%d dead letters are removed, as their owner was erased", dropped)

    # --- failures -----------------------------------------------------------------------------------------

    def _note_failure(self, key: ConversationKey, error: Exception) -> None:
        self._counters.retried += 1
        if not self._failing:
            reason = error.detail if isinstance(error, ChatkeepError) else type(error).__name__
            say(
                logger,
                logging.WARNING,
                "messages cannot be delivered, and are kept in %s: %s",
                self._journal.path,
                reason,
            )
            say(logger, logging.DEBUG, "the fault", error=error)
        self._failing.add(key)

    def _note_success(self, key: ConversationKey) -> None:
        if key in self._failing:
            self._failing.remove(key)
            if not self._failing:
                say(logger, logging.INFO, "all conversations are delivered again")


def to_message(entry: Entry) -> NewMessage:
    """Return the message to append; `sent_at` defaults to the time of its recording. Raises InvalidInput."""
    try:
        message = NewMessage.model_validate_json(entry.message)
    except ValidationError as error:
        raise InvalidInput(str(first_wrong(error, whole="the message"))) from None
    if "sent_at" in message.model_fields_set:
        return message
    return message.model_copy(update={"sent_at": from_micros(entry.recorded_at)})


def _backoff(failures: int) -> float:
    first, longest = DELIVERY_BACKOFF_SECONDS
    pause: float = min(first * 2 ** (min(failures, 16) - 1), longest)
    return pause * random.uniform(0.5, 1.0)  # noqa: S311 - not a secret
