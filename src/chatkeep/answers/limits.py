"""The limits of turns."""

from dataclasses import dataclass
from datetime import timedelta

from chatkeep.turns import LEASE, MAX_RUNNING


@dataclass(frozen=True)
class TurnLimits:
    """What turns may take. Times are in seconds."""

    lease: timedelta = LEASE
    """How long a turn outlives the last sign of life of its worker."""
    silence: float = 60.0
    """Longest time between two events of a provider."""
    turn: float = 600.0
    """Longest time for an answer."""
    answer_bytes: int = 8 << 20
    """Most bytes of an answer, its text and its parts together, as they are stored."""
    answer_values: int = 100_000
    """Most values in the parts of an answer: the items of all lists and objects."""
    running: int = MAX_RUNNING
    """Answers of one owner that may be in progress at a time."""
    turns: int = 500
    """Answers that one process makes at a time."""
    flush: float = 0.05
    """Time between two commits of events."""
    flush_bytes: int = 8 << 10
    """Bytes of events that are committed before that time is over."""
    heartbeat: float = 0.5
    """Time after which a silent turn extends its lease, and hears whether it is to stop."""
    poll: float = 0.1
    """Time between two looks at turns of other processes."""
    sweep: float = 10.0
    """Time between two looks for leases that have expired."""
