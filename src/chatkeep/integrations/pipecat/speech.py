"""When one side of a conversation speaks."""

import time
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from chatkeep.values import now

LONG_AGO = timedelta(seconds=2)
"""Speech that ended so long before a turn started is not part of it: a transcription takes less."""

JUST_BEGUN = 0.05
"""Longest time in seconds by which the start of speech may overtake the end of the previous message."""


@dataclass(slots=True)
class Utterance:
    """A continuous stretch of speech; without an end while it lasts."""

    started_at: datetime
    stopped_at: datetime | None = None
    created: float = field(default_factory=time.monotonic)


class Speech:
    """The utterances of one side since its last message."""

    def __init__(self) -> None:
        self._utterances: list[Utterance] = []
        self._last: Utterance | None = None

    def start(self, at: datetime) -> None:
        self._last = Utterance(at)
        self._utterances.append(self._last)

    def stop(self, at: datetime) -> None:
        """End the last utterance, even if a message has taken it."""
        if self._last is not None and self._last.stopped_at is None:
            self._last.stopped_at = at

    def take(self) -> list[Utterance]:
        """Return the utterances of the message that ends now, and remove them."""
        taken, self._utterances = self._utterances, []
        # Pipecat's frames of speech overtake those of text: without a pause between two utterances, the second may
        # start before the text of the first ends.
        if len(taken) > 1 and taken[-1].stopped_at is None and time.monotonic() - taken[-1].created < JUST_BEGUN:
            self._utterances.append(taken.pop())
        return taken

    def forget(self) -> None:
        """Drop utterances that led to no message, such as a cough."""
        self._utterances = []

    def forget_old(self) -> None:
        """Drop utterances that are too old to be part of the turn that starts."""
        limit = now() - LONG_AGO
        self._utterances = [each for each in self._utterances if each.stopped_at is None or each.stopped_at > limit]


def times_of(speech: list[Utterance]) -> dict[str, str]:
    times = {}
    if speech:
        times["started_at"] = speech[0].started_at.isoformat()
        if speech[-1].stopped_at is not None:
            times["stopped_at"] = speech[-1].stopped_at.isoformat()
    return times


def parsed(timestamp: str) -> datetime | None:
    """Return the time of a frame or event; None if the service wrote something else."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return moment if moment.tzinfo else None
