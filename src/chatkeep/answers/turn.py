"""One turn of this process: it takes events from the provider, and gives them to be stored."""

import asyncio
import logging
import time
from typing import Any

from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.provider import Asked, Provider, ProviderFailed
from chatkeep.answers.stream import Log
from chatkeep.errors import InvalidInput
from chatkeep.events import (
    IN_PARTS,
    LIMIT,
    PROSE,
    PROVIDER,
    TIMEOUT,
    Event,
    EventKind,
    TurnEvent,
    checked,
    error,
    fold,
    state_of,
)
from chatkeep.model import Message, Status
from chatkeep.turns import Ending, TurnKey
from chatkeep.values import json_text

logger = logging.getLogger(__name__)

MAX_PENDING_BYTES = 1 << 20
"""Bytes of events that wait to be stored, at which the provider has to wait."""

FAILED = "the answer could not be made; the server's log has the reason"
SILENT = "the model said nothing for {:g} s"
TOO_SLOW = "the answer took longer than {:g} s"
TOO_LARGE = "the answer has more than {:,} bytes"
TOO_MANY = "the answer has more than {:,} values"


class Size:
    """How large an answer is, as it will be stored."""

    def __init__(self, limits: TurnLimits) -> None:
        self._limits = limits
        self._text = self._parts = self._values = 0
        self._last: EventKind | None = None
        self._has_parts = False

    def add(self, event: Event) -> int:
        """Add an event, and return its bytes. Raises ProviderFailed if the answer becomes too large."""
        if event.kind is EventKind.TEXT:
            size = len(event.data["text"].encode())
            self._text += size
        else:
            size = len(json_text(event.data).encode())
            self._parts += size
            self._has_parts = self._has_parts or event.kind in IN_PARTS
        if event.kind not in PROSE or event.kind is not self._last:
            self._values += 1 + _values(event.data)
        self._last = event.kind
        self._check()
        return size

    def _check(self) -> None:
        # With parts the text is stored in them, too.
        if self._text * (1 + self._has_parts) + self._parts > self._limits.answer_bytes:
            raise ProviderFailed(TOO_LARGE.format(self._limits.answer_bytes), LIMIT)
        if self._values > self._limits.answer_values:
            raise ProviderFailed(TOO_MANY.format(self._limits.answer_values), LIMIT)


def _values(value: object) -> int:
    """How many items all lists and objects in a JSON value have together."""
    if isinstance(value, dict):
        return len(value) + sum(map(_values, value.values()))
    if isinstance(value, list):
        return len(value) + sum(map(_values, value))
    return 0


class RunningTurn:
    """A turn that this process has the lease of."""

    def __init__(self, asked: Asked, provider: Provider, limits: TurnLimits, log: Log, wake: asyncio.Event) -> None:
        """Take what is to be answered, and the event that wakes whoever stores pending events."""
        self.key = TurnKey(asked.owner, asked.conversation_id, asked.answer_id)
        self.log = log
        self.pending: list[TurnEvent] = []
        """Events that are not stored yet."""
        self.pending_bytes = 0
        self.is_urgent = False
        """Whether the first of its text or reasoning waits to be stored: somebody waits for a sign of life."""
        self.stored_at = 0.0
        """When the lease was extended last, by the loop's clock."""
        self.is_lost = False
        """Whether another process has closed the turn."""
        self._ended = self._has_spoken = False
        self._in_flight: list[TurnEvent] = []
        self._stored_n = len(asked.so_far)
        self._settled = asyncio.Event()
        self._settled.set()
        self._asked = asked._replace(
            remember=self._remember, is_lost=lambda: self.is_lost, all_stored=self._wait_until_stored
        )
        self._provider = provider
        self._limits = limits
        self._wake = wake
        self._size = Size(limits)
        self._begun = self._heard = time.monotonic()
        self._n = self._tried = len(asked.so_far)
        self._room = asyncio.Event()
        self._room.set()
        self._failure: ProviderFailed | None = None
        self._making: asyncio.Task[None] | None = None
        self._is_stopped = False
        for event in asked.so_far:
            self._size.add(Event(event.kind, event.data))

    # --- making the answer --------------------------------------------------------------------------------

    async def make(self) -> Ending:
        """Let the provider make the answer, and return it when it ended, however it did."""
        if self._provider.model is not None and not self._asked.so_far:
            self._add(Event(EventKind.USAGE, {"model": self._provider.model}))
        self._making = asyncio.create_task(self._take_events(), name="chatkeep-provider")
        if self._is_stopped:
            self._making.cancel()
        try:
            await asyncio.wait([self._making])
        finally:
            self._making.cancel()
        status = self._status(self._making)
        self._ended = True
        await self._settled.wait()
        folded = fold([*self.log.events, *self.pending])
        return Ending.of(folded, status, int((time.monotonic() - self._begun) * 1_000))

    async def _take_events(self) -> None:
        events = self._provider.answer(self._asked)
        try:
            async for event in events:
                self._heard = time.monotonic()
                self._add(checked(event))
                if not self._room.is_set():
                    await self._room.wait()
                    self._heard = time.monotonic()
        finally:
            await events.aclose()

    def _status(self, making: asyncio.Task[None]) -> Status:
        """How the provider ended; the reason of a failure becomes the last event."""
        failure = self._failure
        if failure is None and making.cancelled():
            return Status.INTERRUPTED
        if failure is None and (raised := making.exception()) is not None:
            failure = self._meaning(raised)
        if failure is None:
            return Status.COMPLETE
        self._append(error(failure.reason, failure.kind), 0)
        return Status.FAILED

    def _meaning(self, raised: BaseException) -> ProviderFailed:
        if isinstance(raised, ProviderFailed):
            return raised
        logger.error("the provider failed", exc_info=raised)
        reason = str(raised) if isinstance(raised, InvalidInput) else FAILED
        return ProviderFailed(reason, PROVIDER)

    def _add(self, event: Event) -> None:
        self._append(event, self._size.add(event))

    def _append(self, event: Event, size: int) -> None:
        """Queue an event; a piece of text goes on the one that waits before it."""
        last = self.pending[-1] if self.pending else None
        if (
            last is not None
            and last.n > self._tried
            and _is_plain(last.kind, last.data)
            and last.kind is event.kind
            and _is_plain(*event)
        ):
            self.pending[-1] = last._replace(data={"text": last.data["text"] + event.data["text"]})
        else:
            self._n += 1
            self.pending.append(TurnEvent(self._n, *event))
        if event.kind in PROSE and not self._has_spoken:
            self.is_urgent = self._has_spoken = True
        self.pending_bytes += size
        if self.pending_bytes > MAX_PENDING_BYTES:
            self._room.clear()
        self._wake.set()

    def _remember(self, state: dict[str, Any]) -> None:
        """Take what another process needs to go on with what the provider yields from now on."""
        self._add(Event(EventKind.STATE, state))

    async def _wait_until_stored(self) -> None:
        """Return when all that the provider has yielded is stored."""
        wanted = self._n
        while self._stored_n < wanted:
            self.is_urgent = True
            self._wake.set()
            await self.log.changed()

    # --- what others do with it ---------------------------------------------------------------------------

    @property
    def has_pending(self) -> bool:
        """Whether there is something to be stored before the whole answer is."""
        return bool(self.pending) and not self._ended

    @property
    def can_be_resumed(self) -> bool:
        """Whether another process can go on with it."""
        return state_of(self.log.events) is not None and not self._ended

    def take(self) -> list[TurnEvent]:
        """Take what is to be stored now, up to `stored` or `keep`. At the end that is nothing: the answer has it."""
        if not self._ended and self.pending:
            self._in_flight, self.pending, self.pending_bytes = self.pending, [], 0
            self.is_urgent = False
            self._settled.clear()
        return self._in_flight

    def keep(self) -> None:
        """Put back what was taken and could not be stored. Nothing is added to it: perhaps only the reply was lost."""
        self._tried = max([self._tried, *(event.n for event in self._in_flight)])
        self.pending = self._in_flight + self.pending
        self.pending_bytes += sum(len(json_text(event.data)) for event in self._in_flight)
        self._settle()

    def stored(self, now: float) -> None:
        """Show what was taken to the readers: it is stored."""
        self.stored_at = now
        self._stored_n = max([self._stored_n, *(event.n for event in self._in_flight)])
        self.log.looks += 1
        self.log.add(self._in_flight)
        self._room.set()
        self._settle()

    def _settle(self) -> None:
        self._in_flight = []
        self._settled.set()

    def finished(self, message: Message) -> None:
        """Show the readers the rest, and the whole answer: it is stored."""
        self.log.add(self.pending)
        self.log.end(message)

    def check(self) -> None:
        """End a turn whose provider is silent, or too slow."""
        now = time.monotonic()
        if self._failure is None and now - self._begun > self._limits.turn:
            self._fail(TOO_SLOW.format(self._limits.turn))
        elif self._failure is None and self._room.is_set() and now - self._heard > self._limits.silence:
            self._fail(SILENT.format(self._limits.silence))

    def _fail(self, reason: str) -> None:
        if self._making is not None and not self._making.done():
            self._failure = ProviderFailed(reason, TIMEOUT)
            self._making.cancel()

    def stop(self) -> None:
        """End the turn as interrupted."""
        self._is_stopped = True
        if self._making is not None:
            self._making.cancel()

    def lose(self) -> None:
        """Drop the turn: whoever closed it has stored what there was, or another process goes on with it."""
        self.is_lost = True
        self._settle()
        self.stop()


def _is_plain(kind: EventKind, data: dict[str, Any]) -> bool:
    """Whether an event is a piece of text or reasoning, and nothing else."""
    return kind in PROSE and len(data) == 1
