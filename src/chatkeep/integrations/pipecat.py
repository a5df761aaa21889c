"""Voice conversations of Pipecat: what was said, recorded as it is said.

    pair = LLMContextAggregatorPair(context)
    attach(pair, recorder, owner="ada", conversation_id=conversation.id)

The events of the two aggregators bring the messages. Pipecat starts a task for each, and these tasks begin in
the order in which they were made: a handler that awaits nothing keeps that order. The frames that pass the
aggregators bring the times of speech, what is said past the language model's context, and calls of tools: they
are overheard where the aggregators get them and push them on. No observer is needed: what observers are told comes
later, from a queue that is thrown away when the pipeline ends.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal
from uuid import UUID

from chatkeep.errors import InvalidInput
from chatkeep.ids import valid_id
from chatkeep.model import Role, Status
from chatkeep.values import now, valid_owner

if TYPE_CHECKING:
    from pipecat.frames import frames as f
    from pipecat.processors.aggregators.llm_response_universal import (
        AssistantTurnStoppedMessage,
        LLMAssistantAggregator,
        LLMContextAggregatorPair,
        LLMUserAggregator,
        UserBackchannelMessage,
        UserTurnMessageAddedMessage,
    )
    from pipecat.processors.frame_processor import FrameProcessor
    from pipecat.utils.string import TextPartForConcatenation

    from chatkeep.recorder import Recorder

logger = logging.getLogger(__name__)

LONGEST_WAIT = 1.0
"""Seconds that a message waits for the end of its speech: words are reported as they begin."""

LONG_AGO = timedelta(seconds=2)
"""Speech that ended so long before a turn began is no part of it: a transcription takes less."""

JUST_BEGUN = 0.05
"""Seconds by which the beginning of speech may overtake the end of the message before it."""

CANCELLED = "CANCELLED"
"""The content of a call that was cancelled. Pipecat tells the language model the same."""


def attach(
    pair: "LLMContextAggregatorPair",
    recorder: "Recorder",
    *,
    owner: str,
    conversation_id: UUID | str,
    tools: bool = False,
) -> None:
    """Record what is said in a pipeline, until it ends. Call it once, before the pipeline runs.

    A user's message is what was understood, an assistant's what was spoken; its status is `interrupted` where
    the user cut in or hung up, or the pipeline ended before the reply did. `sent_at` is when the speech began,
    or else the turn. The metadata has, where it is known,

    - `speech`: `started_at` and `stopped_at`
    - `user_id`: who spoke; `user_ids` where several did
    - `kind`: `backchannel` for a "mhm", `aside` for speech that the language model was not told of

    With `tools`, a call of a tool is a message when it has ended: the result or CANCELLED, with `tool_call_id`
    and `tool_calls` in the metadata. A message that the recorder refuses is logged, and the conversation goes
    on. Raises InvalidId and InvalidInput, the latter also where Pipecat is not installed.
    """
    scribe = _Scribe(recorder, valid_owner(owner), valid_id(conversation_id))
    _check_pipecat()
    user, assistant = pair
    _User(scribe).listen(user)
    _Assistant(scribe).listen(assistant)
    if tools:
        _Tools(scribe).listen(assistant)


def _check_pipecat() -> None:
    try:
        import pipecat.frames.frames  # noqa: F401 - to see whether it can be
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pipecat":
            raise
        raise InvalidInput("voice conversations need pipecat: pip install 'chatkeep[pipecat]'") from None


# --- times of speech -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Stretch:
    """A stretch of speech; it goes on while it has no end."""

    started_at: datetime
    stopped_at: datetime | None = None
    noted: float = field(default_factory=time.monotonic)


class _Speech:
    """When one side spoke since its last message."""

    def __init__(self) -> None:
        self._stretches: list[_Stretch] = []
        self._last: _Stretch | None = None

    def start(self, at: datetime) -> None:
        self._last = _Stretch(at)
        self._stretches.append(self._last)

    def stop(self, at: datetime) -> None:
        """End the last stretch, also where a message has taken it."""
        if self._last is not None and self._last.stopped_at is None:
            self._last.stopped_at = at

    def take(self) -> list[_Stretch]:
        """The stretches of the message that ends now, each of them once."""
        taken, self._stretches = self._stretches, []
        # Pipecat's frames about speech overtake those about text: of two utterances without a pause between
        # them, the second one may begin before the text of the first one ends.
        if len(taken) > 1 and taken[-1].stopped_at is None and time.monotonic() - taken[-1].noted < JUST_BEGUN:
            self._stretches.append(taken.pop())
        return taken

    def forget(self) -> None:
        """Drop what nothing came of, such as a cough."""
        self._stretches = []

    def forget_old(self) -> None:
        """Drop what nothing came of, and cannot any more."""
        limit = now() - LONG_AGO
        self._stretches = [each for each in self._stretches if each.stopped_at is None or each.stopped_at > limit]


def _times(speech: list[_Stretch]) -> dict[str, str]:
    times = {}
    if speech:
        times["started_at"] = speech[0].started_at.isoformat()
        if speech[-1].stopped_at is not None:
            times["stopped_at"] = speech[-1].stopped_at.isoformat()
    return times


def _parsed(timestamp: str) -> datetime | None:
    """The time that a frame or an event names; services may write there what they like."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


# --- what is recorded ------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Message:
    role: Role
    content: str
    at: datetime | None
    """When it was said, where its speech does not tell."""
    status: Status = Status.COMPLETE
    speech: list[_Stretch] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def is_being_said(self) -> bool:
        return bool(self.speech) and self.speech[-1].stopped_at is None


class _Scribe:
    """Gives messages to the recorder, one after the other.

    A message that is still being said waits for the end of its speech: until the next message, and for a
    second at most.
    """

    def __init__(self, recorder: "Recorder", owner: str, conversation_id: UUID) -> None:
        self._recorder = recorder
        self._owner = owner
        self._conversation_id = conversation_id
        self._waiting: tuple[_Message, asyncio.TimerHandle] | None = None

    def take_soon(self, message: _Message) -> None:
        """Take what a frame brought, after the events before it: their tasks have yet to begin."""
        asyncio.get_running_loop().call_soon(self.take, message)

    def take(self, message: _Message) -> None:
        """Record a message, after those that were taken before."""
        self._wait_no_longer()
        if message.is_being_said:
            timer = asyncio.get_running_loop().call_later(LONGEST_WAIT, self._wait_no_longer)
            self._waiting = message, timer
        else:
            self._record(message)

    def speech_stopped(self) -> None:
        """Record the message that waited for this."""
        if self._waiting is not None and not self._waiting[0].is_being_said:
            self._wait_no_longer()

    def _wait_no_longer(self) -> None:
        if self._waiting is not None:
            (message, timer), self._waiting = self._waiting, None
            timer.cancel()
            self._record(message)

    def _record(self, message: _Message) -> None:
        times = _times(message.speech)
        try:
            self._recorder.record(
                self._owner,
                self._conversation_id,
                message.role,
                message.content,
                sent_at=message.speech[0].started_at if message.speech else message.at,
                metadata={**({"speech": times} if times else {}), **message.metadata},
                status=message.status,
            )
        except Exception:
            logger.exception("a message of the %s in %s is not recorded", message.role, self._conversation_id)


# --- what Pipecat tells ----------------------------------------------------------------------------------

type _Handlers = Mapping[type, Callable[[Any], None]]


def _overhear(
    aggregator: "FrameProcessor", method: Literal["process_frame", "push_frame"], handlers: _Handlers
) -> None:
    """Give the frames that a method of an aggregator gets to the functions for their kinds, before it has them.

    Pipecat has events for that, and takes 10 µs to tell of one, four times a frame, fifty frames a second, nearly none
    of which says anything that is recorded: what is to be done with a kind of frame is found out once.
    """
    known: dict[type, Callable[[Any], None] | None] = {}
    work: Callable[..., Awaitable[None]] = getattr(aggregator, method)

    def overheard(frame: object, *arguments: object, **named: object) -> Awaitable[None]:
        try:
            handler = known[type(frame)]
        except KeyError:
            found = (handlers[kind] for kind in type(frame).__mro__ if kind in handlers)
            handler = known[type(frame)] = next(found, None)
        if handler is not None:
            _tell(handler, frame)
        return work(frame, *arguments, **named)

    setattr(aggregator, method, overheard)


def _tell(handler: Callable[[Any], None], frame: object) -> None:
    """Whatever is wrong with a frame, the conversation goes on."""
    try:
        handler(frame)
    except Exception:
        logger.exception("a %s was not understood", type(frame).__name__)


def _is_twin(frame: "f.Frame") -> bool:
    """Whether this is the second one of the two frames of a broadcast."""
    return frame.broadcast_sibling_id is not None and frame.broadcast_sibling_id < frame.id


class _User:
    """What the user says, as the user's aggregator sees it."""

    def __init__(self, scribe: _Scribe) -> None:
        self._scribe = scribe
        self._speech = _Speech()
        self._in_turn = False
        self._muted = False
        self._speakers: dict[str, None] = {}
        # Between the moment in which a message ends and its event, the next one may begin.
        self._ended: dict[tuple[str, str], tuple[list[_Stretch], list[str]]] = {}

    def listen(self, aggregator: "LLMUserAggregator") -> None:
        from pipecat.frames import frames as f

        turns: _Handlers = {f.UserStartedSpeakingFrame: self._turn_starts, f.UserStoppedSpeakingFrame: self._turn_stops}
        received: _Handlers = {
            f.VADUserStartedSpeakingFrame: self._starts,
            f.VADUserStoppedSpeakingFrame: self._stops,
            f.TranscriptionFrame: self._understood,
            f.CancelFrame: self._pipeline_ends,
            f.EndFrame: self._pipeline_ends,
        }
        sent: _Handlers = {
            f.UserMuteStartedFrame: self._is_muted,
            f.UserMuteStoppedFrame: self._is_heard,
            f.LLMContextUserTurnFrame: self._ends,
        }
        # Who decides about turns may be the aggregator or a processor before it.
        _overhear(aggregator, "process_frame", {**turns, **received})
        _overhear(aggregator, "push_frame", {**turns, **sent})
        aggregator.add_event_handler("on_user_turn_message_added", self._said)
        aggregator.add_event_handler("on_user_backchannel", self._acknowledged)

    def _starts(self, frame: "f.VADUserStartedSpeakingFrame") -> None:
        if not self._in_turn and not self._speakers:
            self._speech.forget()
        self._speech.start(datetime.fromtimestamp(frame.timestamp - frame.start_secs, UTC))

    def _stops(self, frame: "f.VADUserStoppedSpeakingFrame") -> None:
        self._stop(datetime.fromtimestamp(frame.timestamp - frame.stop_secs, UTC))

    def _stop(self, at: datetime) -> None:
        self._speech.stop(at)
        self._scribe.speech_stopped()

    def _understood(self, frame: "f.TranscriptionFrame") -> None:
        if frame.text.strip() and not self._muted:
            self._speakers[frame.user_id] = None

    def _turn_starts(self, _frame: "f.UserStartedSpeakingFrame") -> None:
        if not self._in_turn:
            self._speech.forget_old()
        self._in_turn = True

    def _turn_stops(self, _frame: "f.UserStoppedSpeakingFrame") -> None:
        self._in_turn = False

    def _is_muted(self, _frame: "f.UserMuteStartedFrame") -> None:
        self._muted = True

    def _is_heard(self, _frame: "f.UserMuteStoppedFrame") -> None:
        self._muted = False

    def _pipeline_ends(self, _frame: "f.Frame") -> None:
        self._stop(now())

    def _ends(self, frame: "f.LLMContextUserTurnFrame") -> None:
        if not _is_twin(frame):
            self._ended[frame.text, frame.timestamp] = self._take()

    def _take(self) -> tuple[list[_Stretch], list[str]]:
        speakers, self._speakers = self._speakers, {}
        return self._speech.take(), [name for name in speakers if name]

    def _said(self, _aggregator: object, message: "UserTurnMessageAddedMessage") -> None:
        ended = self._ended.pop((message.content, message.timestamp), None)
        speech, speakers = ended or self._take()
        metadata = _speakers([message.user_id] if message.user_id else speakers)
        self._scribe.take(
            _Message(Role.USER, message.content, _parsed(message.timestamp), speech=speech, metadata=metadata)
        )

    def _acknowledged(self, _aggregator: object, message: "UserBackchannelMessage") -> None:
        speech = [] if self._in_turn else self._speech.take()
        metadata = {**_speakers([message.user_id] if message.user_id else []), "kind": "backchannel"}
        self._scribe.take(
            _Message(Role.USER, message.content, _parsed(message.timestamp), speech=speech, metadata=metadata)
        )


def _speakers(names: list[str]) -> dict[str, Any]:
    if len(names) > 1:
        return {"user_ids": names}
    return {"user_id": names[0]} if names else {}


@dataclass(slots=True)
class _Aside:
    """Speech that does not become part of a turn, as it is being said."""

    kind: str
    interruptible: bool
    announced: bool = False
    """Whether its text was known before it was said: then the words add nothing."""
    parts: "list[TextPartForConcatenation]" = field(default_factory=list)
    at: datetime = field(default_factory=now)

    @property
    def text(self) -> str:
        from pipecat.utils.string import concatenate_aggregated_text

        return concatenate_aggregated_text(self.parts)

    def add(self, frame: "f.AggregatedTextFrame") -> None:
        from pipecat.utils.string import TextPartForConcatenation

        part = TextPartForConcatenation(frame.text, includes_inter_part_spaces=frame.includes_inter_frame_spaces)
        self.parts.append(part)


class _Assistant:
    """What the bot says, as the assistant's aggregator sees it: after the words were spoken."""

    def __init__(self, scribe: _Scribe) -> None:
        self._scribe = scribe
        self._speech = _Speech()
        self._asides: dict[str | None, _Aside] = {}
        self._pipeline_ended = False
        self._ended: dict[tuple[str, str], tuple[list[_Stretch], bool]] = {}

    def listen(self, aggregator: "LLMAssistantAggregator") -> None:
        from pipecat.frames import frames as f

        received: _Handlers = {
            f.BotStartedSpeakingFrame: self._starts,
            f.BotStoppedSpeakingFrame: self._stops,
            f.LLMFullResponseStartFrame: self._turn_starts,
            f.InterruptionFrame: self._is_interrupted,
            f.AggregatedTextFrame: self._announces,
            f.TTSTextFrame: self._speaks,
            f.TTSStoppedFrame: self._has_spoken,
            f.CancelFrame: self._pipeline_ends,
            f.EndFrame: self._pipeline_ends,
        }
        # What ends a turn is pushed on when the aggregator has ended it.
        sent: _Handlers = {
            f.LLMContextAssistantTurnFrame: self._ends,
            f.InterruptionFrame: self._was_interrupted,
            f.CancelFrame: self._pipeline_has_ended,
            f.EndFrame: self._pipeline_has_ended,
        }
        _overhear(aggregator, "process_frame", received)
        _overhear(aggregator, "push_frame", sent)
        aggregator.add_event_handler("on_assistant_turn_stopped", self._said)

    def _starts(self, _frame: "f.BotStartedSpeakingFrame") -> None:
        self._speech.start(now())

    def _stops(self, _frame: "f.Frame") -> None:
        self._speech.stop(now())
        self._scribe.speech_stopped()

    # Turns.

    def _turn_starts(self, _frame: "f.LLMFullResponseStartFrame") -> None:
        self._speech.forget_old()

    def _ends(self, frame: "f.LLMContextAssistantTurnFrame") -> None:
        if not _is_twin(frame):
            self._ended[frame.text, frame.timestamp] = self._speech.take(), self._pipeline_ended

    def _said(self, _aggregator: object, message: "AssistantTurnStoppedMessage") -> None:
        if not message.content or message.content.isspace():
            return
        ended = self._ended.pop((message.content, message.timestamp), None)
        speech, cut_off = ended or (self._speech.take(), False)
        status = Status.INTERRUPTED if message.interrupted or cut_off else Status.COMPLETE
        self._scribe.take(_Message(Role.ASSISTANT, message.content, _parsed(message.timestamp), status, speech))

    # Asides.

    def _announces(self, frame: "f.AggregatedTextFrame") -> None:
        if frame.will_be_spoken and frame.text_type == "backchannel":
            aside = _Aside("backchannel", frame.interruptible, announced=True)
            aside.add(frame)
            self._asides[frame.context_id] = aside

    def _speaks(self, frame: "f.TTSTextFrame") -> None:
        aside = self._asides.get(frame.context_id)
        if frame.append_to_context:
            if aside is not None and aside.announced:
                del self._asides[frame.context_id]  # it is part of a turn after all
        elif aside is None:
            self._asides[frame.context_id] = aside = _Aside("aside", frame.interruptible)
            aside.add(frame)
        elif not aside.announced:
            aside.add(frame)

    def _has_spoken(self, frame: "f.TTSStoppedFrame") -> None:
        self._end_asides([frame.context_id] if frame.context_id in self._asides else [], Status.COMPLETE)

    def _is_interrupted(self, frame: "f.InterruptionFrame") -> None:
        if all(aside.interruptible for aside in self._asides.values()):
            self._stops(frame)  # the transport says so, too, but only after the turn's end

    def _was_interrupted(self, _frame: "f.InterruptionFrame") -> None:
        self._end_asides([key for key, each in self._asides.items() if each.interruptible], Status.INTERRUPTED)
        if not self._asides:
            self._speech.forget()

    def _end_asides(self, keys: Iterable[str | None], status: Status) -> None:
        for key in list(keys):
            aside, speech = self._asides.pop(key), self._speech.take()
            if (text := aside.text).strip():
                metadata = {"kind": aside.kind}
                self._scribe.take_soon(_Message(Role.ASSISTANT, text, aside.at, status, speech, metadata))

    # The end.

    def _pipeline_ends(self, frame: "f.Frame") -> None:
        self._pipeline_ended = True
        self._stops(frame)

    def _pipeline_has_ended(self, _frame: "f.Frame") -> None:
        self._end_asides(self._asides, Status.INTERRUPTED)


class _Tools:
    """The calls of tools, each recorded when it has ended."""

    def __init__(self, scribe: _Scribe) -> None:
        self._scribe = scribe
        self._calls: dict[str, Any] = {}
        self._ended: set[str] = set()

    def listen(self, aggregator: "LLMAssistantAggregator") -> None:
        from pipecat.frames import frames as f

        received: _Handlers = {
            f.FunctionCallsStartedFrame: self._start,
            f.FunctionCallInProgressFrame: self._starts,
            f.FunctionCallResultFrame: self._returns,
            f.FunctionCallCancelFrame: self._is_cancelled,
        }
        sent: _Handlers = {f.CancelFrame: self._pipeline_has_ended, f.EndFrame: self._pipeline_has_ended}
        _overhear(aggregator, "process_frame", received)
        _overhear(aggregator, "push_frame", sent)

    def _start(self, frame: "f.FunctionCallsStartedFrame") -> None:
        for call in frame.function_calls:
            self._ended.discard(call.tool_call_id)  # some models number the calls of each reply anew
            self._starts(call)

    def _starts(self, call: Any) -> None:
        if call.tool_call_id not in self._ended:  # a cancellation overtakes what waits for its turn to be spoken
            self._calls[call.tool_call_id] = call

    def _returns(self, frame: "f.FunctionCallResultFrame") -> None:
        if frame.properties is None or frame.properties.is_final:
            self._end(frame, _as_text(frame.result), Status.FAILED if frame.error else Status.COMPLETE)

    def _is_cancelled(self, frame: "f.FunctionCallCancelFrame") -> None:
        self._end(self._calls.get(frame.tool_call_id, frame), CANCELLED, Status.INTERRUPTED)

    def _pipeline_has_ended(self, _frame: "f.Frame") -> None:
        for call in list(self._calls.values()):
            self._end(call, CANCELLED, Status.INTERRUPTED)

    def _end(self, call: Any, content: str, status: Status) -> None:
        if call.tool_call_id in self._ended:
            return
        self._ended.add(call.tool_call_id)
        self._calls.pop(call.tool_call_id, None)
        function = {"name": call.function_name, "arguments": _as_text(getattr(call, "arguments", None))}
        metadata = {
            "tool_call_id": call.tool_call_id,
            "tool_calls": [{"id": call.tool_call_id, "type": "function", "function": function}],
        }
        self._scribe.take_soon(_Message(Role.TOOL, content, now(), status, metadata=metadata))


def _as_text(value: object) -> str:
    """What a tool got or gave, as text: JSON where it can be."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(value)
