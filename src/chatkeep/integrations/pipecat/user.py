"""What the user says."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from chatkeep.integrations.pipecat.context import ContextReader
from chatkeep.integrations.pipecat.frames import Frames, Handlers
from chatkeep.integrations.pipecat.outbox import Message, Outbox
from chatkeep.integrations.pipecat.speech import Speech, parsed
from chatkeep.model import Role, Status
from chatkeep.values import now

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipecat.frames import frames as f


class User:
    """Records the user's messages, from the user's aggregator."""

    def __init__(self, outbox: Outbox, context: ContextReader) -> None:
        self._outbox = outbox
        self._context = context
        self._speech = Speech()
        self._in_turn = False
        self._muted = False
        self._speakers: dict[str, None] = {}
        self._text: Callable[[], str] = str  # until it listens
        self._written: f.LLMContextUserTurnFrame | None = None

    def listen(self, frames: Frames) -> None:
        """Record what the user says from now on."""
        from pipecat.frames import frames as f

        self._text = frames.text
        turn_frames: Handlers = {
            f.UserStartedSpeakingFrame: self._turn_started,
            f.UserStoppedSpeakingFrame: self._turn_stopped,
        }
        received: Handlers = {
            f.VADUserStartedSpeakingFrame: self._speech_started,
            f.VADUserStoppedSpeakingFrame: self._speech_stopped,
            f.TranscriptionFrame: self._transcribed,
            f.UserBackchannelFrame: self._backchannel,
            f.CancelFrame: self._pipeline_ended,
            f.EndFrame: self._pipeline_ended,
        }
        sent: Handlers = {
            f.UserMuteStartedFrame: self._mute,
            f.UserMuteStoppedFrame: self._unmute,
            f.LLMContextUserTurnFrame: self._turn_in_context,
        }
        # Turns are decided by the aggregator, or by a processor before it.
        frames.before_received({**turn_frames, **received})
        frames.before_sent({**turn_frames, **sent})
        frames.before_released(self._released)
        self._context.spoken["user"] = self._wrote

    def _speech_started(self, frame: "f.VADUserStartedSpeakingFrame") -> None:
        if not self._in_turn and not self._text():
            self._speech.forget()
        self._speech.start(datetime.fromtimestamp(frame.timestamp - frame.start_secs, UTC))

    def _speech_stopped(self, frame: "f.VADUserStoppedSpeakingFrame") -> None:
        self._stop_speech(datetime.fromtimestamp(frame.timestamp - frame.stop_secs, UTC))

    def _stop_speech(self, at: datetime) -> None:
        self._speech.stop(at)
        self._outbox.settle()

    def _transcribed(self, frame: "f.TranscriptionFrame") -> None:
        if frame.text.strip() and not self._muted:
            if not self._text():  # strategies for turns discard what is too short to be one
                self._speakers = {}
            self._speakers[frame.user_id] = None

    def _turn_started(self, _frame: "f.UserStartedSpeakingFrame") -> None:
        if not self._in_turn:
            self._speech.forget_old()
        self._in_turn = True

    def _turn_stopped(self, _frame: "f.UserStoppedSpeakingFrame") -> None:
        self._in_turn = False

    def _mute(self, _frame: "f.UserMuteStartedFrame") -> None:
        self._muted = True

    def _unmute(self, _frame: "f.UserMuteStoppedFrame") -> None:
        self._muted = False

    def _pipeline_ended(self, _frame: "f.Frame") -> None:
        self._stop_speech(now())

    def _released(self, _aggregator: object) -> None:
        """Record what was said if the frame that ends the pipeline did not come so far."""
        if not self._outbox.is_closed and (text := self._text()).strip():
            self._stop_speech(now())
            self._put(text, now(), Status.INTERRUPTED)

    def _turn_in_context(self, frame: "f.LLMContextUserTurnFrame") -> None:
        # The aggregator sends it right after it has written to the context, without an await in between.
        self._written = frame
        self._context.look()
        self._written = None

    def _wrote(self, content: object) -> bool:
        """Record a message of the context if it is the one that the aggregator has just written."""
        frame = self._written
        if frame is None or content != frame.text:
            return False
        self._written = None
        self._put(frame.text, parsed(frame.timestamp))
        return True

    def _put(self, text: str, at: datetime | None, status: Status = Status.COMPLETE) -> None:
        speakers, self._speakers = self._speakers, {}
        metadata = _speakers([name for name in speakers if name])
        self._outbox.put(Message(Role.USER, text, at, status, speech=self._speech.take(), metadata=metadata))

    def _backchannel(self, frame: "f.UserBackchannelFrame") -> None:
        if self._muted:
            return
        speech = [] if self._in_turn else self._speech.take()
        metadata = {**_speakers([frame.user_id] if frame.user_id else []), "kind": "backchannel"}
        self._outbox.put(Message(Role.USER, frame.text, parsed(frame.timestamp), speech=speech, metadata=metadata))


def _speakers(names: list[str]) -> dict[str, Any]:
    if len(names) > 1:
        return {"user_ids": names}
    return {"user_id": names[0]} if names else {}
