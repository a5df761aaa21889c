"""Records the voice conversations of Pipecat while they are spoken.

    pair = LLMContextAggregatorPair(context)
    attach(pair, recorder, owner="ada", conversation_id=conversation.id)

Messages come from the events of the two aggregators. Pipecat runs a task for each event, and tasks start in the order
of their creation: a handler without an await keeps that order. Times of speech, speech that is not in the language
model's context, and tool calls come from the frames that pass the aggregators, which are intercepted in
`process_frame` and `push_frame`. Observers would not do: they get frames late, from a queue that is discarded when the
pipeline ends. A turn is what Pipecat calls so, of the user or of the bot.
"""

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, cast
from uuid import UUID

from chatkeep.errors import InvalidInput
from chatkeep.ids import valid_id
from chatkeep.model import Role, Status
from chatkeep.values import MAX_PARTS, copy_json, now, valid_owner

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
"""Longest time in seconds that a message waits for the end of its speech: words are reported as they begin."""

LONG_AGO = timedelta(seconds=2)
"""Speech that ended so long before a turn started is not part of it: a transcription takes less."""

JUST_BEGUN = 0.05
"""Longest time in seconds by which the start of speech may overtake the end of the previous message."""

CANCELLED = "CANCELLED"
"""Content of a cancelled tool call, as Pipecat gives it to the language model."""


def attach(
    pair: "LLMContextAggregatorPair",
    recorder: "Recorder",
    *,
    owner: str,
    conversation_id: UUID | str,
    tools: bool = False,
) -> None:
    """Record what is said in a pipeline, until it ends. Call it once, before the pipeline runs.

    A user's message is what was transcribed, an assistant's what was spoken. Its status is `interrupted` if the user
    interrupted or hung up, or the pipeline ended before the reply did. `sent_at` is when the speech started, or else
    the turn. The metadata has, if known,

    - `speech`: `started_at` and `stopped_at`
    - `user_id`: the speaker; `user_ids` if there were several
    - `kind`: `backchannel` for a "mhm", `aside` for speech that is not in the language model's context

    With `tools`, a tool call is a message when it has ended: the result or CANCELLED. Its parts are a `tool_call` and
    its `tool_result`; the metadata has `tool_call_id` and `tool_calls`, too, as in older versions.

    A message that the recorder refuses is logged, and the conversation continues.
    Raises InvalidId and InvalidInput, the latter also if Pipecat is not installed.
    """
    outbox = _Outbox(recorder, valid_owner(owner), valid_id(conversation_id))
    _check_pipecat()
    user, assistant = pair
    _User(outbox).listen(user)
    _Assistant(outbox).listen(assistant)
    if tools:
        _Tools(outbox).listen(assistant)


def _check_pipecat() -> None:
    try:
        import pipecat.frames.frames  # noqa: F401 - to check that it is installed
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "pipecat":
            raise
        raise InvalidInput("voice conversations need pipecat: pip install 'chatkeep[pipecat]'") from None


# --- times of speech -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Utterance:
    """A continuous stretch of speech; without an end while it lasts."""

    started_at: datetime
    stopped_at: datetime | None = None
    created: float = field(default_factory=time.monotonic)


class _Speech:
    """The utterances of one side since its last message."""

    def __init__(self) -> None:
        self._utterances: list[_Utterance] = []
        self._last: _Utterance | None = None

    def start(self, at: datetime) -> None:
        self._last = _Utterance(at)
        self._utterances.append(self._last)

    def stop(self, at: datetime) -> None:
        """End the last utterance, even if a message has taken it."""
        if self._last is not None and self._last.stopped_at is None:
            self._last.stopped_at = at

    def take(self) -> list[_Utterance]:
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


def _times(speech: list[_Utterance]) -> dict[str, str]:
    times = {}
    if speech:
        times["started_at"] = speech[0].started_at.isoformat()
        if speech[-1].stopped_at is not None:
            times["stopped_at"] = speech[-1].stopped_at.isoformat()
    return times


def _parsed(timestamp: str) -> datetime | None:
    """Return the time of a frame or event; None if the service wrote something else."""
    try:
        moment = datetime.fromisoformat(timestamp)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


# --- messages --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Message:
    role: Role
    content: str
    at: datetime | None
    """When it was said, if its speech is not known."""
    status: Status = Status.COMPLETE
    speech: list[_Utterance] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, Any]] | None = None

    @property
    def is_being_spoken(self) -> bool:
        return bool(self.speech) and self.speech[-1].stopped_at is None


class _Outbox:
    """Passes messages to the recorder, in order.

    A message that is still being spoken waits for the end of its speech, but not longer than until the next message,
    or a second.
    """

    def __init__(self, recorder: "Recorder", owner: str, conversation_id: UUID) -> None:
        self._recorder = recorder
        self._owner = owner
        self._conversation_id = conversation_id
        self._waiting: tuple[_Message, asyncio.TimerHandle] | None = None

    def put_soon(self, message: _Message) -> None:
        """Record a message of a frame, after those of earlier events, whose tasks have yet to start."""
        asyncio.get_running_loop().call_soon(self.put, message)

    def put(self, message: _Message) -> None:
        """Record a message, after the one that waits."""
        self._flush()
        if message.is_being_spoken:
            timer = asyncio.get_running_loop().call_later(LONGEST_WAIT, self._flush)
            self._waiting = message, timer
        else:
            self._record(message)

    def speech_stopped(self) -> None:
        """Record the message that waits for the end of its speech."""
        if self._waiting is not None and not self._waiting[0].is_being_spoken:
            self._flush()

    def _flush(self) -> None:
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
                parts=message.parts,
            )
        except Exception:
            logger.exception("a message of the %s in %s is not recorded", message.role, self._conversation_id)


# --- frames and events of Pipecat -------------------------------------------------------------------------

type _Handlers = Mapping[type, Callable[[Any], None]]


def _intercept(
    aggregator: "FrameProcessor", method: Literal["process_frame", "push_frame"], handlers: _Handlers
) -> None:
    """Wrap a method of an aggregator: pass its frames to the handlers for their types, before it gets them.

    Pipecat's events for this take 10 µs each, four times a frame, with fifty frames a second of which nearly none
    matters here. The handler of a type of frame is looked up once.
    """
    by_type: dict[type, Callable[[Any], None] | None] = {}
    original: Callable[..., Awaitable[None]] = getattr(aggregator, method)

    def intercepted(frame: object, *arguments: object, **named: object) -> Awaitable[None]:
        try:
            handler = by_type[type(frame)]
        except KeyError:
            found = (handlers[type_] for type_ in type(frame).__mro__ if type_ in handlers)
            handler = by_type[type(frame)] = next(found, None)
        if handler is not None:
            _handle(handler, frame)
        return original(frame, *arguments, **named)

    setattr(aggregator, method, intercepted)


def _handle(handler: Callable[[Any], None], frame: object) -> None:
    """Call a handler. Its errors are logged, and the conversation continues."""
    try:
        handler(frame)
    except Exception:
        logger.exception("a %s was not understood", type(frame).__name__)


def _is_duplicate(frame: "f.Frame") -> bool:
    """Return whether this is the second of the two frames of a broadcast."""
    return frame.broadcast_sibling_id is not None and frame.broadcast_sibling_id < frame.id


class _User:
    """Records the user's messages, from the user's aggregator."""

    def __init__(self, outbox: _Outbox) -> None:
        self._outbox = outbox
        self._speech = _Speech()
        self._in_turn = False
        self._muted = False
        self._speakers: dict[str, None] = {}
        # By message: the next message may start between the end of a message and its event.
        self._ended: dict[tuple[str, str], tuple[list[_Utterance], list[str]]] = {}

    def listen(self, aggregator: "LLMUserAggregator") -> None:
        from pipecat.frames import frames as f

        turn_frames: _Handlers = {
            f.UserStartedSpeakingFrame: self._turn_started,
            f.UserStoppedSpeakingFrame: self._turn_stopped,
        }
        received: _Handlers = {
            f.VADUserStartedSpeakingFrame: self._speech_started,
            f.VADUserStoppedSpeakingFrame: self._speech_stopped,
            f.TranscriptionFrame: self._transcribed,
            f.CancelFrame: self._pipeline_ended,
            f.EndFrame: self._pipeline_ended,
        }
        sent: _Handlers = {
            f.UserMuteStartedFrame: self._mute,
            f.UserMuteStoppedFrame: self._unmute,
            f.LLMContextUserTurnFrame: self._turn_in_context,
        }
        # Turns are decided by the aggregator, or by a processor before it.
        _intercept(aggregator, "process_frame", {**turn_frames, **received})
        _intercept(aggregator, "push_frame", {**turn_frames, **sent})
        aggregator.add_event_handler("on_user_turn_message_added", self._message_added)
        aggregator.add_event_handler("on_user_backchannel", self._backchannel)

    def _speech_started(self, frame: "f.VADUserStartedSpeakingFrame") -> None:
        if not self._in_turn and not self._speakers:
            self._speech.forget()
        self._speech.start(datetime.fromtimestamp(frame.timestamp - frame.start_secs, UTC))

    def _speech_stopped(self, frame: "f.VADUserStoppedSpeakingFrame") -> None:
        self._stop_speech(datetime.fromtimestamp(frame.timestamp - frame.stop_secs, UTC))

    def _stop_speech(self, at: datetime) -> None:
        self._speech.stop(at)
        self._outbox.speech_stopped()

    def _transcribed(self, frame: "f.TranscriptionFrame") -> None:
        if frame.text.strip() and not self._muted:
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

    def _turn_in_context(self, frame: "f.LLMContextUserTurnFrame") -> None:
        if not _is_duplicate(frame):
            self._ended[frame.text, frame.timestamp] = self._take()

    def _take(self) -> tuple[list[_Utterance], list[str]]:
        speakers, self._speakers = self._speakers, {}
        return self._speech.take(), [name for name in speakers if name]

    def _message_added(self, _aggregator: object, message: "UserTurnMessageAddedMessage") -> None:
        ended = self._ended.pop((message.content, message.timestamp), None)
        speech, speakers = ended or self._take()
        metadata = _speakers([message.user_id] if message.user_id else speakers)
        self._outbox.put(
            _Message(Role.USER, message.content, _parsed(message.timestamp), speech=speech, metadata=metadata)
        )

    def _backchannel(self, _aggregator: object, message: "UserBackchannelMessage") -> None:
        speech = [] if self._in_turn else self._speech.take()
        metadata = {**_speakers([message.user_id] if message.user_id else []), "kind": "backchannel"}
        self._outbox.put(
            _Message(Role.USER, message.content, _parsed(message.timestamp), speech=speech, metadata=metadata)
        )


def _speakers(names: list[str]) -> dict[str, Any]:
    if len(names) > 1:
        return {"user_ids": names}
    return {"user_id": names[0]} if names else {}


@dataclass(slots=True)
class _Aside:
    """Speech that is not part of a turn, while it is being spoken."""

    kind: str
    interruptible: bool
    announced: bool = False
    """Whether its text was known before it was spoken; then its words are ignored."""
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
    """Records the bot's messages, from the assistant's aggregator, which gets words after they were spoken."""

    def __init__(self, outbox: _Outbox) -> None:
        self._outbox = outbox
        self._speech = _Speech()
        self._asides: dict[str | None, _Aside] = {}
        self._cut_off = False
        self._ended: dict[tuple[str, str], tuple[list[_Utterance], bool]] = {}

    def listen(self, aggregator: "LLMAssistantAggregator") -> None:
        from pipecat.frames import frames as f

        received: _Handlers = {
            f.BotStartedSpeakingFrame: self._speech_started,
            f.BotStoppedSpeakingFrame: self._speech_stopped,
            f.LLMFullResponseStartFrame: self._turn_started,
            f.InterruptionFrame: self._interruption_received,
            f.AggregatedTextFrame: self._aside_announced,
            f.TTSTextFrame: self._word_spoken,
            f.TTSStoppedFrame: self._aside_spoken,
            f.CancelFrame: self._end_received,
            f.EndFrame: self._end_received,
        }
        # The aggregator ends a turn before it pushes the frame that ends it.
        sent: _Handlers = {
            f.LLMContextAssistantTurnFrame: self._turn_in_context,
            f.InterruptionFrame: self._interruption_sent,
            f.CancelFrame: self._end_sent,
            f.EndFrame: self._end_sent,
        }
        _intercept(aggregator, "process_frame", received)
        _intercept(aggregator, "push_frame", sent)
        aggregator.add_event_handler("on_assistant_turn_stopped", self._turn_stopped)

    def _speech_started(self, _frame: "f.BotStartedSpeakingFrame") -> None:
        self._speech.start(now())

    def _speech_stopped(self, _frame: "f.Frame") -> None:
        self._speech.stop(now())
        self._outbox.speech_stopped()

    # Turns.

    def _turn_started(self, _frame: "f.LLMFullResponseStartFrame") -> None:
        self._speech.forget_old()

    def _turn_in_context(self, frame: "f.LLMContextAssistantTurnFrame") -> None:
        if not _is_duplicate(frame):
            self._ended[frame.text, frame.timestamp] = self._speech.take(), self._cut_off

    def _turn_stopped(self, _aggregator: object, message: "AssistantTurnStoppedMessage") -> None:
        if not message.content or message.content.isspace():
            return
        ended = self._ended.pop((message.content, message.timestamp), None)
        speech, cut_off = ended or (self._speech.take(), False)
        status = Status.INTERRUPTED if message.interrupted or cut_off else Status.COMPLETE
        self._outbox.put(_Message(Role.ASSISTANT, message.content, _parsed(message.timestamp), status, speech))

    # Asides.

    def _aside_announced(self, frame: "f.AggregatedTextFrame") -> None:
        if frame.will_be_spoken and frame.text_type == "backchannel":
            aside = _Aside("backchannel", frame.interruptible, announced=True)
            aside.add(frame)
            self._asides[frame.context_id] = aside

    def _word_spoken(self, frame: "f.TTSTextFrame") -> None:
        aside = self._asides.get(frame.context_id)
        if frame.append_to_context:
            if aside is not None and aside.announced:
                del self._asides[frame.context_id]  # part of a turn after all
        elif aside is None:
            self._asides[frame.context_id] = aside = _Aside("aside", frame.interruptible)
            aside.add(frame)
        elif not aside.announced:
            aside.add(frame)

    def _aside_spoken(self, frame: "f.TTSStoppedFrame") -> None:
        self._end_asides([frame.context_id] if frame.context_id in self._asides else [], Status.COMPLETE)

    def _interruption_received(self, frame: "f.InterruptionFrame") -> None:
        if all(aside.interruptible for aside in self._asides.values()):
            self._speech_stopped(frame)  # the transport's own frame comes only after the end of the turn

    def _interruption_sent(self, _frame: "f.InterruptionFrame") -> None:
        self._end_asides(
            [context_id for context_id, each in self._asides.items() if each.interruptible], Status.INTERRUPTED
        )
        if not self._asides:
            self._speech.forget()

    def _end_asides(self, contexts: Iterable[str | None], status: Status) -> None:
        for context_id in list(contexts):
            aside, speech = self._asides.pop(context_id), self._speech.take()
            if (text := aside.text).strip():
                metadata = {"kind": aside.kind}
                self._outbox.put_soon(_Message(Role.ASSISTANT, text, aside.at, status, speech, metadata))

    # The end.

    def _end_received(self, frame: "f.Frame") -> None:
        self._cut_off = True
        self._speech_stopped(frame)

    def _end_sent(self, _frame: "f.Frame") -> None:
        self._end_asides(self._asides, Status.INTERRUPTED)


class _Tools:
    """Records tool calls, each when it has ended."""

    def __init__(self, outbox: _Outbox) -> None:
        self._outbox = outbox
        self._calls: dict[str, Any] = {}
        self._ended: set[str] = set()

    def listen(self, aggregator: "LLMAssistantAggregator") -> None:
        from pipecat.frames import frames as f

        received: _Handlers = {
            f.FunctionCallsStartedFrame: self._calls_started,
            f.FunctionCallInProgressFrame: self._call_started,
            f.FunctionCallResultFrame: self._result,
            f.FunctionCallCancelFrame: self._cancelled,
        }
        sent: _Handlers = {f.CancelFrame: self._pipeline_ended, f.EndFrame: self._pipeline_ended}
        _intercept(aggregator, "process_frame", received)
        _intercept(aggregator, "push_frame", sent)

    def _calls_started(self, frame: "f.FunctionCallsStartedFrame") -> None:
        for call in frame.function_calls:
            self._ended.discard(call.tool_call_id)  # some models reuse the ids of calls in each reply
            self._call_started(call)

    def _call_started(self, call: Any) -> None:
        if call.tool_call_id not in self._ended:  # a cancellation overtakes frames that are queued behind speech
            self._calls[call.tool_call_id] = call

    def _result(self, frame: "f.FunctionCallResultFrame") -> None:
        if frame.properties is None or frame.properties.is_final:
            self._end(frame, frame.result, Status.FAILED if frame.error else Status.COMPLETE)

    def _cancelled(self, frame: "f.FunctionCallCancelFrame") -> None:
        self._end(self._calls.get(frame.tool_call_id, frame), CANCELLED, Status.INTERRUPTED)

    def _pipeline_ended(self, _frame: "f.Frame") -> None:
        for call in list(self._calls.values()):
            self._end(call, CANCELLED, Status.INTERRUPTED)

    def _end(self, call: Any, result: object, status: Status) -> None:
        if call.tool_call_id in self._ended:
            return
        self._ended.add(call.tool_call_id)
        self._calls.pop(call.tool_call_id, None)
        function = {"name": call.function_name, "arguments": _as_text(getattr(call, "arguments", None))}
        metadata = {
            "tool_call_id": call.tool_call_id,
            "tool_calls": [{"id": call.tool_call_id, "type": "function", "function": function}],
        }
        message = _Message(Role.TOOL, _as_text(result), now(), status, metadata=metadata)
        message.parts = _parts(call, result, status)
        self._outbox.put_soon(message)


def _parts(call: Any, result: object, status: Status) -> list[dict[str, Any]] | None:
    """A tool call and its result as parts; None if even their text is beyond the limits of parts."""
    id_, arguments, failed = call.tool_call_id, getattr(call, "arguments", None), status is not Status.COMPLETE
    for shown in (_as_json, _as_text):
        parts = [
            {"type": "tool_call", "id": id_, "name": call.function_name, "arguments": shown(arguments)},
            {"type": "tool_result", "tool_call_id": id_, "content": shown(result), "is_error": failed},
        ]
        with suppress(ValueError):
            return cast("list[dict[str, Any]]", copy_json(parts, MAX_PARTS))
    return None


def _as_json(value: object) -> Any:
    """Return a copy of a tool's arguments or result, as text if it is not JSON."""
    try:
        return copy_json(value, MAX_PARTS)
    except (ValueError, RecursionError):
        return _as_text(value)


def _as_text(value: object) -> str:
    """Return a tool's arguments or result as text, as JSON if possible."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(value)
