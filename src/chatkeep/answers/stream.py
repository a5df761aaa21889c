"""The stream of an answer: what readers get of a turn, wherever it is made.

Each process has one log of each turn that somebody reads here or that is made here. A turn of another process is
polled: one query for all of them. Readers have no buffer of their own: each goes through the log at its own pace.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from chatkeep.answers.limits import TurnLimits
from chatkeep.errors import ChatkeepError, NotFound, NotYours, StoreUnavailable
from chatkeep.events import IN_PARTS, PROSE, EventKind, Folded, Place, TurnEvent, fold, place_of, replayed
from chatkeep.model import Message, Status
from chatkeep.store import Store
from chatkeep.turns import TurnKey, TurnPlace, TurnProgress

logger = logging.getLogger(__name__)

RESET = "reset"

STOPPING = "this server is shutting down; ask again"


class NotAnswering(StoreUnavailable):
    """This process takes no question now, or follows no answer any more; another one may, or this one later."""


class Streamed(NamedTuple):
    """An item of a stream."""

    kind: str
    """That of an event, or `reset`: what the reader has is not of this answer, and `data` is all of it."""
    data: Mapping[str, Any]
    place: Place


class Log:
    """The events of a turn that are stored, and at its end the message."""

    def __init__(self, key: TurnKey, *, is_local: bool) -> None:
        self.key = key
        self.is_local = is_local
        """Whether this process makes the answer."""
        self.events: list[TurnEvent] = []
        self.sums = [0]
        """Code points of text and reasoning before each event, and at last of all."""
        self.looks = 0
        """How often a look at the store found nothing new, or something was stored here."""
        self.message: Message | None = None
        """The whole answer, when it has ended."""
        self.failure: ChatkeepError | None = None
        """Why there is no message: its conversation is gone."""
        self.readers = 0
        self._changed = asyncio.Event()

    @property
    def has_ended(self) -> bool:
        """Whether nothing follows."""
        return self.message is not None or self.failure is not None

    def add(self, events: Sequence[TurnEvent]) -> None:
        """Add events that are stored."""
        for event in events:
            self.events.append(event)
            self.sums.append(self.sums[-1] + event.chars)
        self.notify()

    def end(self, message: Message) -> None:
        """Add the whole answer."""
        self.message = message
        self.notify()

    def fail(self, failure: ChatkeepError) -> None:
        """Note why there will be no message."""
        self.failure = failure
        self.notify()

    def notify(self) -> None:
        """Wake the readers."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return when something has changed."""
        await self._changed.wait()

    async def ended(self) -> Message:
        """Return the message when the answer has ended. Raises NotFound and NotYours if it is gone."""
        while not self.has_ended:
            await self.changed()
        if self.failure is not None:
            raise self.failure
        assert self.message is not None  # noqa: S101 - it has ended
        return self.message

    def knows(self, place: Place) -> bool:
        """Whether a place is one of this log."""
        return place.n <= len(self.events) and place == place_of(self.key.message_id, place.n, self.sums[place.n])


class Reader:
    """One way through a log."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._n = 0
        self._chars = 0
        self._others = 0
        """Parts that are neither text nor reasoning, which the reader has."""
        self._knows_events = True
        """Whether it is known which events the reader has. Else only its characters are."""

    async def read(self, last: Place | None) -> AsyncGenerator[Streamed]:
        """Yield what follows a place, up to the end; all of it without one."""
        log = self._log
        await self._catch_up(0 if last is None else last.n)
        if last is not None:
            for item in self._resume(last):
                yield item
        while True:
            while self._n < len(log.events):
                item = self._next(log.events[self._n])
                if item.kind != EventKind.STATE:
                    yield item
            if log.has_ended:
                break
            await log.changed()
        message = await log.ended()
        for item in self._rest(message):
            yield item
        yield self._item(EventKind.END, {"status": message.status.value})

    async def _catch_up(self, n: int) -> None:
        """Wait until the log has an event, or surely all that are stored now: a look, or a commit, may be under way.

        Whoever reads of another process may have what was stored here a moment ago, before this process heard of it.
        """
        log = self._log
        looks, wanted = log.looks + 2, n if log.is_local else max(n, 1)
        while not log.has_ended and log.looks < looks and len(log.events) < wanted:
            await log.changed()

    def _resume(self, last: Place) -> list[Streamed]:
        """Go to a place, or begin with all that there is if it is not one of this answer."""
        log = self._log
        if log.knows(last):
            for event in log.events[: last.n]:
                self._note(event)
            return []
        if log.message is not None:
            return self._resume_ended(log.message, last)
        return [self._reset(fold(log.events))]

    def _resume_ended(self, message: Message, last: Place) -> list[Streamed]:
        """Go to a place in an answer whose events are gone: the reader has so many characters of it."""
        whole, has_read = _whole(message), len(self._log.events)
        if last.attempt == place_of(message.id).attempt and last.chars <= whole.chars:
            self._n, self._chars, self._knows_events = max(last.n, has_read), last.chars, False
            return []
        return [self._reset(whole._replace(n=max(whole.n, has_read)))]

    def _reset(self, so_far: Folded) -> Streamed:
        self._n, self._chars = so_far.n, so_far.chars
        self._others = sum(part["type"] not in PROSE for part in so_far.parts or ())
        sources = [source.model_dump(mode="json") for source in so_far.sources]
        data = {"content": so_far.content, "parts": so_far.parts, "sources": sources}
        return self._item(RESET, data)

    def _next(self, event: TurnEvent) -> Streamed:
        self._note(event)
        return self._item(event.kind, event.data)

    def _note(self, event: TurnEvent) -> None:
        self._n, self._chars = event.n, self._chars + event.chars
        self._others += event.kind in IN_PARTS - PROSE

    def _rest(self, message: Message) -> list[Streamed]:
        """What the message has beyond the events that this log had: it may have ended between two looks at it."""
        found: list[Streamed] = []
        if self._log.is_local and self._knows_events:
            return found
        others = self._others
        for event in replayed(message, self._chars):
            if event.kind not in PROSE and others:
                others -= 1
                continue
            self._note(TurnEvent(self._n + 1, *event))
            found.append(self._item(event.kind, event.data))
        return found

    def _item(self, kind: str, data: Mapping[str, Any]) -> Streamed:
        return Streamed(kind, data, place_of(self._log.key.message_id, self._n, self._chars))


def _whole(message: Message) -> Folded:
    """What the events of a finished answer added up to."""
    folded = fold(TurnEvent(n, *event) for n, event in enumerate(replayed(message), 1))
    return folded._replace(content=message.content, parts=message.parts, sources=message.sources)


def ended_log(message: Message) -> Log:
    """Return the log of an answer that has ended, for one reader."""
    log = Log(TurnKey("", message.conversation_id, message.id), is_local=False)
    log.end(message)
    return log


class Streams:
    """The logs of a process."""

    def __init__(self, store: Store, limits: TurnLimits, expired: Callable[[TurnKey], Awaitable[None]]) -> None:
        """Take the store, and what is done with a turn whose lease has expired."""
        self._store = store
        self._limits = limits
        self._expired = expired
        self._logs: dict[TurnKey, Log] = {}
        self._polling: asyncio.Task[None] | None = None

    def begin(self, key: TurnKey) -> Log:
        """Return the log of a turn that is made here; those who read it already read on from it."""
        log = self._logs.setdefault(key, Log(key, is_local=True))
        log.is_local = True
        return log

    def let_go(self, log: Log) -> None:
        """Forget a log that nobody reads and whose answer is not made here any more."""
        if not log.readers and (log.has_ended or not log.is_local) and self._logs.get(log.key) is log:
            del self._logs[log.key]

    def lose(self, log: Log) -> None:
        """Read on what another process has made of a turn."""
        log.is_local = False
        log.notify()
        if log.readers:
            self._poll()
        self.let_go(log)

    @asynccontextmanager
    async def following(self, key: TurnKey) -> AsyncIterator[Log]:
        """The log of a turn, wherever it is made."""
        log = self._logs.setdefault(key, Log(key, is_local=False))
        log.readers += 1
        if not log.is_local:
            self._poll()
        try:
            yield log
        finally:
            log.readers -= 1
            self.let_go(log)

    async def aclose(self) -> None:
        """Stop polling, and let everybody go who still reads."""
        for log in list(self._logs.values()):
            if not log.has_ended:
                log.fail(NotAnswering(STOPPING))
        if self._polling is not None:
            self._polling.cancel()
            await asyncio.wait([self._polling])

    def _poll(self) -> None:
        if self._polling is None or self._polling.done():
            self._polling = asyncio.create_task(self._poll_all(), name="chatkeep-turn-poll")

    async def _poll_all(self) -> None:
        """Look at all turns of other processes that somebody reads, while there are some."""
        while logs := [log for log in self._logs.values() if not log.is_local and not log.has_ended]:
            try:
                has_more = await self._look(logs)
            except ChatkeepError as error:
                logger.warning("turns of other processes cannot be followed now: %s", error.detail)
                has_more = False
            except Exception:
                logger.exception("turns of other processes could not be followed")
                has_more = False  # without this task their readers would wait for ever
            if not has_more:
                await asyncio.sleep(self._limits.poll)

    async def _look(self, logs: list[Log]) -> bool:
        """Look once; say whether somebody waits for more that is stored already."""
        places = [TurnPlace(log.key, len(log.events)) for log in logs]
        found = await self._store.turns.turn_events(places)
        pairs = list(zip(logs, found, strict=True))
        for log, progress in pairs:
            if not log.is_local:  # it may have begun here meanwhile
                await self._take(log, progress)
        # Not of a log that has caught up: its turn may have something new at every look.
        return any(progress.events and not log.looks for log, progress in pairs)

    async def _take(self, log: Log, progress: TurnProgress) -> None:
        if progress.has_expired:
            await self._expired(log.key)
        elif not progress.is_running:
            await self._end(log)
        else:
            log.looks += not progress.events
            log.add(progress.events)

    async def _end(self, log: Log) -> None:
        try:
            message = await self._store.get_message(*log.key)
        except (NotFound, NotYours) as error:
            log.fail(error)
            return
        if message.status is Status.IN_PROGRESS:  # a restored copy may have it without its turn
            await self._store.turns.expire_turn(*log.key)
        else:
            log.end(message)
