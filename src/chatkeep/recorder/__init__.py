"""Messages taken without waiting: a durable journal in front of any store."""

from chatkeep.recorder.recorder import DeadLetter, Recorder, RecorderStats, recording

__all__ = ["DeadLetter", "Recorder", "RecorderStats", "recording"]
