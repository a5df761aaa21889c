"""Records messages without waiting: a durable journal in front of any store."""

from chatkeep.recorder.recorder import DeadLetter, Recorder
from chatkeep.recorder.recording import recording
from chatkeep.recorder.stats import RecorderStats

__all__ = ["DeadLetter", "Recorder", "RecorderStats", "recording"]
