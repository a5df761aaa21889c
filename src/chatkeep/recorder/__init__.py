"""Records messages without waiting: a durable journal in front of any store."""

from chatkeep.recorder.delivery import DeadLetter
from chatkeep.recorder.recorder import Recorder
from chatkeep.recorder.recording import recording
from chatkeep.recorder.stats import RecorderStats

__all__ = ["DeadLetter", "Recorder", "RecorderStats", "recording"]
