"""What a recorder counts."""

import threading
from dataclasses import dataclass


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
    unsent: int
    """Messages that wait for the store, in memory or in the journal."""
    unsent_bytes: int
    queued: int
    """Those of them that are not yet in the journal."""
    oldest_unsent: float
    """Age of the oldest message that waits."""
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
    """Counters of several threads, under one lock that is held for less than a microsecond."""

    def __init__(self, unsent: int, unsent_bytes: int) -> None:
        self.lock = threading.Lock()
        self.recorded = self.sent = self.retried = self.dead = self.dropped = 0
        self.unsent, self.unsent_bytes = unsent, unsent_bytes

    def release(self, count: int, size: int) -> None:
        """Subtract messages that no longer wait."""
        with self.lock:
            self.unsent -= count
            self.unsent_bytes -= size
