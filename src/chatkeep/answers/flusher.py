"""Stores the events of all turns of a process: one transaction for all of them, every 50 ms."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from uuid import UUID

from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.turn import RunningTurn
from chatkeep.errors import ChatkeepError
from chatkeep.events import TurnEvent
from chatkeep.turns import TurnKey, Turns, TurnState, TurnWrite

logger = logging.getLogger(__name__)

MAX_FLUSH_BYTES = 4 << 20
"""Bytes of events that go into one transaction, about; one turn's alone may be more."""

BACKOFF_SECONDS = (0.1, 1.0)
"""First and longest pause after the store could not be used."""


class Flusher:
    """Stores events, extends leases, and tells turns that they are to stop, or lost."""

    def __init__(self, turns: Turns, worker: UUID, limits: TurnLimits, running: Mapping[TurnKey, RunningTurn]) -> None:
        self._turns = turns
        self._worker = worker
        self._limits = limits
        self._running = running
        self._pause = BACKOFF_SECONDS[0]
        self.wake = asyncio.Event()
        """Set when there is something to store."""

    async def run(self) -> None:
        """Store what the turns have, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            self.wake.clear()
            for turn in list(self._running.values()):
                turn.check()
            await self.flush(began)
            await self._until_due(began)

    async def _until_due(self, began: float) -> None:
        """Wait for the time of the next flush, or for so much that it is worth one; without turns, for one.

        The first words of an answer do not wait.
        """
        loop = asyncio.get_running_loop()
        if not self._running:
            await self.wake.wait()
        while (left := began + self._limits.flush - loop.time()) > 0:
            turns = self._running.values()
            has_much = sum(turn.pending_bytes for turn in turns) > self._limits.flush_bytes
            if has_much or any(turn.is_urgent for turn in turns):
                return
            self.wake.clear()
            try:
                async with asyncio.timeout(left):
                    await self.wake.wait()
            except TimeoutError:
                return

    async def flush(self, now: float) -> None:
        """Store what there is. If the store cannot be used, it is kept for the next time."""
        batch = self._batch(now)
        if not batch:
            return
        writes = [TurnWrite(turn.key, events) for turn, events in batch]
        try:
            states = await self._turns.append_turn_events(self._worker, writes, lease=self._limits.lease)
        except ChatkeepError as error:
            logger.warning("the events of %d turns are stored later: %s", len(batch), error.detail)
            await self._keep(batch)
            return
        except Exception:
            logger.exception("the events of %d turns could not be stored", len(batch))
            await self._keep(batch)  # without this task no turn would go on
            return
        self._pause = BACKOFF_SECONDS[0]
        for turn, _ in batch:
            _settle(turn, states[turn.key], now)

    async def _keep(self, batch: Sequence[tuple[RunningTurn, object]]) -> None:
        """Put back what was not stored, and pause."""
        for turn, _ in batch:
            turn.keep()
        await asyncio.sleep(self._pause)
        self._pause = min(2 * self._pause, BACKOFF_SECONDS[1])

    def _batch(self, now: float) -> list[tuple[RunningTurn, list[TurnEvent]]]:
        """The turns with something to store, or whose lease is to be extended; those first that waited for longest."""
        batch = list[tuple[RunningTurn, list[TurnEvent]]]()
        size = 0
        for turn in sorted(self._running.values(), key=lambda turn: turn.stored_at):
            is_due = turn.has_pending or now - turn.stored_at >= self._limits.heartbeat
            if not is_due or (batch and size + turn.pending_bytes > MAX_FLUSH_BYTES):
                continue
            size += turn.pending_bytes
            batch.append((turn, turn.take()))
        return batch


def _settle(turn: RunningTurn, state: TurnState, now: float) -> None:
    if state is TurnState.BUSY:
        turn.keep()
    elif state is TurnState.LOST:
        turn.lose()
    else:
        turn.stored(now)
        if state is TurnState.STOPPING:
            turn.stop()
