"""What a recorder counts."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["sent", "dead", "erased", "dropped", "lost"]
"""What becomes of a message that no longer waits."""


@dataclass(frozen=True)
class RecorderStats:
    """What a recorder has done since it was made, and what it holds now. Times are in seconds."""

    recorded: int
    """Messages that `record` took."""
    sent: int
    """Messages that the store acknowledged, including those of earlier processes."""
    retried: int
    """Appends that were retried."""
    dead: int
    """Messages that the store refused for good."""
    dropped: int
    """Messages that were refused or dropped because the recorder was full."""
    erased: int
    """Messages that were removed, as their owner was erased after they were recorded."""
    lost: int
    """Messages that neither the store nor the journal has, as far as one can tell: the journal was damaged, or the
    disk was full until the recorder closed."""
    unsent: int
    """Messages that wait for the store, in memory or in the journal."""
    unsent_bytes: int
    queued: int
    """Those of them that are not yet in the journal."""
    oldest_unsent: float
    """Age of the oldest message that waits."""
    journal_lag: float
    """Age of the oldest message that the journal does not have, which killing the process would lose; 0 without one."""
    highest_journal_lag: float
    """From `record` to the journal's commit: the highest so far."""
    lag: float
    """From `record` to the store's acknowledgement: of the last message."""
    highest_lag: float
    sync_lag: float
    """From the journal's commit to the disk, which a power failure may take: of the last commit."""
    highest_sync_lag: float
    sync_failures: int
    """How often fdatasync of the journal failed: those messages may not be on the disk."""
    journal_failure: str | None
    """Why the journal cannot be written at the moment; None if it can."""


class Counters:
    """Counters of several threads, under one lock that is held for less than a microsecond.

    A message is queued, in memory, or kept, in the journal, until it no longer waits for the store.
    """

    def __init__(self) -> None:
        # Reentrant, as a signal handler or a finalizer may record a message while its thread holds it.
        self.lock = threading.RLock()
        self.recorded = self.sent = self.retried = self.dead = self.dropped = self.erased = self.lost = 0
        self.queued = self.queued_bytes = self.kept = self.kept_bytes = 0
        self.queued_since = 0
        """When the oldest queued message was recorded, in microseconds since 1970, or before; 0 without one."""

    def keep(self, count: int, size: int, since: int) -> None:
        """Count messages as kept: the journal has them now."""
        with self.lock:
            self._unqueue(count, size, since)
            self.kept += count
            self.kept_bytes += size

    def put_back(self, count: int, size: int, since: int) -> None:
        """Count messages as queued that were read of a damaged journal."""
        with self.lock:
            self.queued += count
            self.queued_bytes += size
            self.queued_since = since if count else self.queued_since

    def recount(self, kept: int, kept_bytes: int) -> None:
        """Correct what is kept: the journal was opened, or another process has changed it."""
        with self.lock:
            self.kept, self.kept_bytes = kept, kept_bytes

    def settle(self, outcome: Outcome, queued: Sequence[int], kept: Sequence[int], since: int) -> None:
        """Count messages that no longer wait: by their sizes those that were queued, and those that were kept."""
        with self.lock:
            self._unqueue(len(queued), sum(queued), since)
            self.kept -= len(kept)
            self.kept_bytes -= sum(kept)
            setattr(self, outcome, getattr(self, outcome) + len(queued) + len(kept))

    def add(self, outcome: Outcome, count: int) -> None:
        """Count messages that were neither queued nor kept."""
        with self.lock:
            setattr(self, outcome, getattr(self, outcome) + count)

    def _unqueue(self, count: int, size: int, since: int) -> None:
        self.queued -= count
        self.queued_bytes -= size
        if count:
            self.queued_since = since if self.queued else 0
