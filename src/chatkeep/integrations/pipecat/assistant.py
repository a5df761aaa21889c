"""What the bot says."""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

from chatkeep.integrations.pipecat.context import ContextReader
from chatkeep.integrations.pipecat.frames import Frames
from chatkeep.integrations.pipecat.outbox import Message, Outbox
from chatkeep.integrations.pipecat.speech import Speech, parsed
from chatkeep.model import Role, Status
from chatkeep.values import now

if TYPE_CHECKING:
    from pipecat.frames import frames as f
    from pipecat.utils.string import TextPartForConcatenation


@dataclass(slots=True)
class _Aside:
    """Speech that is not part of a turn, while it is being spoken."""

    kind: str
    interruptible: bool
    announcement: str = ""
    """Its text, if that was known before it was spoken."""
    parts: "list[TextPartForConcatenation]" = field(default_factory=list)
    at: datetime = field(default_factory=now)

    def text(self, status: Status) -> str:
        """Return what was said: all that was announced, or the words until it was cut off."""
        from pipecat.utils.string import concatenate_aggregated_text

        if self.announcement and status is Status.COMPLETE:
            return self.announcement
        return concatenate_aggregated_text(self.parts)

    def add(self, frame: "f.AggregatedTextFrame") -> None:
        from pipecat.utils.string import TextPartForConcatenation

        part = TextPartForConcatenation(frame.text, includes_inter_part_spaces=frame.includes_inter_frame_spaces)
        self.parts.append(part)


class Assistant:
    """Records the bot's messages, from the assistant's aggregator, which gets words after they were spoken."""

    def __init__(self, outbox: Outbox, context: ContextReader) -> None:
        self._outbox = outbox
        self._context = context
        self._speech = Speech()
        self._asides: dict[str | None, _Aside] = {}
        self._said: deque[str] = deque(maxlen=8)
        """Contexts of announced asides that have ended: after an interruption their words may come even later."""
        self._cut_off = False
        self._aggregated: str | None = None
        self._markers: set[str] = set()
        self._written: Message | None = None
        self._text: Callable[[], str] = str  # until it listens

    def listen(self, frames: Frames) -> None:
        """Record what the bot says from now on."""
        from pipecat.frames import frames as f

        frames.before_received(
            {
                f.BotStartedSpeakingFrame: self._speech_started,
                f.BotStoppedSpeakingFrame: self._speech_stopped,
                f.LLMFullResponseStartFrame: self._turn_started,
                f.InterruptionFrame: self._interruption_received,
                f.AggregatedTextFrame: self._aside_announced,
                f.TTSTextFrame: self._word_spoken,
                f.TTSStoppedFrame: self._aside_spoken,
                f.LLMMarkerFrame: self._marked,
                f.CancelFrame: self._end_received,
                f.EndFrame: self._end_received,
            }
        )
        # The aggregator ends a turn before it pushes the frame that ends it.
        frames.before_sent(
            {
                f.LLMContextAssistantTurnFrame: self._turn_in_context,
                f.InterruptionFrame: self._interruption_sent,
                f.CancelFrame: self._end_sent,
                f.EndFrame: self._end_sent,
                f.StopFrame: self._stop_sent,
            }
        )
        self._text = frames.text
        frames.before_written(self._writes)
        frames.before_released(self._released)
        self._context.spoken["assistant"] = self._wrote

    def _writes(self, text: str) -> None:
        self._aggregated = text

    def _speech_started(self, _frame: "f.BotStartedSpeakingFrame") -> None:
        self._speech.start(now())

    def _speech_stopped(self, _frame: "f.Frame") -> None:
        self._speech.stop(now())
        self._outbox.settle()

    # Turns.

    def _turn_started(self, _frame: "f.LLMFullResponseStartFrame") -> None:
        self._speech.forget_old()

    def _marked(self, frame: "f.LLMMarkerFrame") -> None:
        self._markers.add(frame.marker)

    def _wrote(self, content: object) -> bool:
        """Record a message of the context if the aggregator wrote it: a reply, or a part of it before a file."""
        if not isinstance(content, str) or (content != self._aggregated and content not in self._markers):
            return False
        self._aggregated = None
        self._put(content)
        return True

    def _put(self, content: str) -> None:
        """Record a reply; it waits for the frame of its turn."""
        text = self._without_markers(content)
        self._complete()
        if text and not text.isspace():
            status = Status.INTERRUPTED if self._cut_off else Status.COMPLETE
            self._written = Message(Role.ASSISTANT, text, now(), status, speech=self._speech.take(), is_incomplete=True)
            self._outbox.put(self._written)

    def _without_markers(self, text: str) -> str:
        """Return a text without what turn completion puts into the context, as Pipecat's events have it."""
        marked = [marker for marker in self._markers if marker in text]
        for marker in marked:
            text = text.replace(marker, "")
        return text.strip() if marked else text

    def _turn_in_context(self, frame: "f.LLMContextAssistantTurnFrame") -> None:
        # Frames of other aggregators pass, too. The text is the message's, or that without the markers.
        if self._written is not None and frame.text in self._written.content:
            self._written.content = frame.text
            self._written.at = parsed(frame.timestamp) or self._written.at
            self._complete()

    def _complete(self) -> None:
        """Let go of the message that waits for the frame of its turn: a part of a turn has none."""
        if self._written is not None:
            self._written.is_incomplete, self._written = False, None
            self._outbox.settle()

    # Asides.

    def _aside_announced(self, frame: "f.AggregatedTextFrame") -> None:
        if frame.will_be_spoken and frame.text_type == "backchannel":
            self._asides[frame.context_id] = _Aside("backchannel", frame.interruptible, frame.text)

    def _word_spoken(self, frame: "f.TTSTextFrame") -> None:
        aside = self._asides.get(frame.context_id)
        if frame.append_to_context:
            if aside is not None and aside.announcement:
                del self._asides[frame.context_id]  # part of a turn after all
        elif aside is not None:
            aside.add(frame)
        elif frame.context_id not in self._said:
            self._asides[frame.context_id] = aside = _Aside("aside", frame.interruptible)
            aside.add(frame)

    def _aside_spoken(self, frame: "f.TTSStoppedFrame") -> None:
        self._end_asides([frame.context_id] if frame.context_id in self._asides else [], Status.COMPLETE)

    def _interruption_received(self, frame: "f.InterruptionFrame") -> None:
        self._cut_off = True
        if all(aside.interruptible for aside in self._asides.values()):
            self._speech_stopped(frame)  # the transport's own frame comes only after the end of the turn

    def _interruption_sent(self, _frame: "f.InterruptionFrame") -> None:
        self._cut_off = False
        self._end_asides(
            [context_id for context_id, each in self._asides.items() if each.interruptible], Status.INTERRUPTED
        )
        if not self._asides:
            self._speech.forget()

    def _end_asides(self, contexts: Iterable[str | None], status: Status) -> None:
        for context_id in list(contexts):
            aside, speech = self._asides.pop(context_id), self._speech.take()
            if aside.announcement and context_id is not None and status is Status.COMPLETE:
                self._said.append(context_id)
            if (text := aside.text(status)).strip():
                metadata = {"kind": aside.kind}
                self._outbox.put(Message(Role.ASSISTANT, text, aside.at, status, speech, metadata))

    # The end.

    def _end_received(self, frame: "f.Frame") -> None:
        self._cut_off = True
        self._speech_stopped(frame)

    def _stop_sent(self, _frame: "f.StopFrame") -> None:
        """Record what waits, as the loop may end now. The pipeline may run again, and go on with what is being said."""
        self._context.look()
        self._outbox.flush()

    def _released(self, _aggregator: object) -> None:
        """Record what was spoken if the frame that ends the pipeline did not come so far."""
        if not self._outbox.is_closed:
            self._cut_off = True
            self._speech.stop(now())
            self._context.look()
            self._put(self._text())
            self._end_asides(self._asides, Status.INTERRUPTED)
            self._outbox.close()

    def _end_sent(self, _frame: "f.Frame") -> None:
        self._context.look()
        self._end_asides(self._asides, Status.INTERRUPTED)
        self._outbox.close()
