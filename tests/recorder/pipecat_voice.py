"""Voice pipelines without a microphone, a loudspeaker or a model: tests push what these would."""

import asyncio
import time
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    InputTransportMessageFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    OutputAudioRawFrame,
    ProposedUserStartedSpeakingFrame,
    ProposedUserStoppedSpeakingFrame,
    StartFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings, TTSSettings
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.turns.user_mute import BaseUserMuteStrategy
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies, UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from chatkeep import Message, NewConversation, Store, open_store
from chatkeep.integrations.pipecat import attach
from chatkeep.recorder import Recorder

with warnings.catch_warnings():
    # The module has deprecated classes, and warns of their subclasses when it is imported.
    warnings.filterwarnings("ignore", r"`\w*TTSService` is deprecated", DeprecationWarning)
    from pipecat.services.tts_service import TTSService

logger.remove()  # what Pipecat logs is of no interest, and much

OWNER = "ada"
SECONDS_PER_WORD = 0.1
SAMPLE_RATE = 16_000


class Stage(FrameProcessor):
    """Stands where speech recognition, language model and speech synthesis would be; passes everything on."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass a frame on."""
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class Model(LLMService):
    """A language model that calls the tools that a test tells it to."""

    def __init__(self) -> None:
        super().__init__(settings=LLMSettings(model=None))

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass a frame on."""
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class ScriptedModel(Model):
    """A language model that answers each question with a number of words of its own, and keeps what it was given."""

    def __init__(self, *lengths: int) -> None:
        super().__init__()
        self._lengths = lengths
        self.seen: list[list[tuple[str, str]]] = []
        """What it was given: the roles and texts of the whole context, each time."""
        self.wrote: list[str] = []

    def was_given(self, text: str) -> bool:
        """Whether it has read a text of the user."""
        return any(("user", text) in seen for seen in self.seen)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame):
            self.seen.append(spoken_in(frame.context))
            count = self._lengths[len(self.wrote) % len(self._lengths)]
            answer = [f"a{len(self.wrote)}.{number}" for number in range(count)]
            self.wrote.append(" ".join(answer) + ".")
            await self.push_frame(LLMFullResponseStartFrame())
            for word in self.wrote[-1].split():
                await self.push_frame(LLMTextFrame(f"{word} "))
                await asyncio.sleep(0)
            await self.push_frame(LLMFullResponseEndFrame())


def spoken_in(context: LLMContext) -> list[tuple[str, str]]:
    """The roles and texts of what the user and the bot have said, in a model's context."""
    messages: list[Any] = context.get_messages()
    return [
        (each["role"], " ".join(each["content"].split())) for each in messages if each["role"] in ("user", "assistant")
    ]


class Synthesis(TTSService):
    """Speech synthesis, much faster than speech: a tenth of a second of noise for each word, by default.

    It reports each word as it is spoken, or the whole sentence afterwards, as services without such times do.
    """

    def __init__(self, *, by_word: bool, seconds_per_word: float = SECONDS_PER_WORD) -> None:
        super().__init__(
            push_text_frames=not by_word,
            push_start_frame=True,
            push_stop_frames=True,
            sample_rate=SAMPLE_RATE,
            settings=TTSSettings(model=None, voice=None, language=None),
        )
        self._by_word = by_word
        self._seconds = seconds_per_word

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        """Synthesise."""
        times = [(word, number * self._seconds) for number, word in enumerate(text.split())]
        if self._by_word:
            await self.add_word_timestamps(times, context_id)
        noise = b"\1\0" * int(SAMPLE_RATE * self._seconds)
        for _ in times:
            yield TTSAudioRawFrame(noise, SAMPLE_RATE, 1, context_id=context_id)


class Loudspeaker(BaseOutputTransport):
    """A transport that takes as long for a sound as a loudspeaker."""

    def __init__(self) -> None:
        super().__init__(TransportParams(audio_out_enabled=True, audio_out_sample_rate=SAMPLE_RATE))

    async def start(self, frame: StartFrame) -> None:
        """Be ready at once."""
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        """Play."""
        await asyncio.sleep(len(frame.audio) / 2 / SAMPLE_RATE)
        return True


class Voice:
    """A running pipeline, and the conversation that it is recorded in."""

    def __init__(
        self,
        pair: LLMContextAggregatorPair,
        worker: PipelineWorker,
        stage: FrameProcessor,
        recorder: Recorder,
        store: Store,
        conversation_id: UUID,
    ) -> None:
        self.pair = pair
        self.worker = worker
        self.stage = stage
        self.recorder = recorder
        self.store = store
        self.conversation_id = conversation_id
        self.ended: asyncio.Task[None] | None = None
        self.expected: int | None = None

    # What the user does.

    async def user_starts(self, at: float | None = None) -> None:
        """The user begins to speak; the detector needs 0.2 seconds to be sure, and the bot stops."""
        moment = (at or time.time()) + 0.2
        await self.worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2, timestamp=moment))
        await self.turn_starts()

    async def turn_starts(self) -> None:
        """Somebody decides that it is the user's turn."""
        await self.worker.queue_frame(ProposedUserStartedSpeakingFrame())
        await self.pass_by()

    async def user_stops(self, text: str, *, by: str = OWNER, at: float | None = None) -> None:
        """The user ends; what was said is understood."""
        moment = (at or time.time()) + 0.3
        await self.worker.queue_frame(VADUserStoppedSpeakingFrame(stop_secs=0.3, timestamp=moment))
        await self.worker.queue_frame(TranscriptionFrame(text, by, "unknown"))
        await self.worker.queue_frame(ProposedUserStoppedSpeakingFrame())
        await self.pass_by()

    async def user_says(self, text: str, *, by: str = OWNER) -> None:
        """A turn of the user."""
        await self.user_starts()
        await self.user_stops(text, by=by)

    async def types(self, text: str, *, run: bool = True, aloud: bool = True) -> None:
        """The user's client sends a text, by RTVI."""
        options = {"run_immediately": run, "audio_response": aloud}
        message = {"label": "rtvi-ai", "type": "send-text", "id": "1", "data": {"content": text, "options": options}}
        await self.worker.queue_frame(InputTransportMessageFrame(message=message))

    # What the services do.

    async def push(self, *frames: Frame) -> None:
        """Let the first service have frames, and wait until they have gone through."""
        await self.queue(*frames)
        await self.pass_by()

    async def queue(self, *frames: Frame) -> None:
        """Let the first service have frames."""
        for frame in frames:
            await self.stage.queue_frame(frame)

    async def bot_starts(self, text: str) -> None:
        """A reply begins: as many words are spoken as `text` has."""
        await self.push(LLMFullResponseStartFrame(), BotStartedSpeakingFrame(), *words(text))

    async def bot_stops(self) -> None:
        """The reply ends."""
        await self.push(BotStoppedSpeakingFrame(), LLMFullResponseEndFrame())

    async def bot_says(self, text: str) -> None:
        """A turn of the assistant."""
        await self.bot_starts(text)
        await self.bot_stops()

    async def pass_by(self) -> None:
        """Wait until everything pushed so far has gone through the whole pipeline."""
        assert await self.worker.flush_pipeline()

    # What came of it.

    async def end(self) -> None:
        """Wait until the pipeline has ended."""
        assert self.ended is not None
        await asyncio.wait_for(self.ended, 20)

    async def messages(self, count: int) -> list[Message]:
        """What is stored, once it is `count` messages. More than those fail, also when the pipeline has ended."""
        self.expected = count
        stored = await self.stored()
        deadline = time.monotonic() + 20
        while len(stored) < count and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
            stored = await self.stored()
        assert len(stored) == count, [line(message) for message in stored]
        return stored

    async def stored(self) -> list[Message]:
        """What was recorded so far."""
        await self.recorder.flush(timeout=20)
        return (await self.store.history(OWNER, self.conversation_id, limit=1_000)).items

    async def lines(self, count: int) -> list[str]:
        """The same, each as `role: content`, with the status where it is not complete."""
        return [line(message) for message in await self.messages(count)]


def words(text: str, *, to_context: bool = True, context_id: str | None = None) -> list[TTSTextFrame]:
    """The frames of words that were spoken."""
    frames = [TTSTextFrame(word, text_type="word", context_id=context_id) for word in text.split()]
    for frame in frames:
        frame.append_to_context = to_context
    return frames


def line(message: Message) -> str:
    """A message on a line."""
    status = "" if message.status == "complete" else f" ({message.status})"
    return f"{message.role}{status}: {message.content}"


def speech(message: Message) -> tuple[float, float]:
    """When the speech of a message began and ended; the former is also its sent_at."""
    started, stopped = (datetime.fromisoformat(message.metadata["speech"][key]) for key in ("started_at", "stopped_at"))
    assert message.sent_at == started.astimezone(UTC)
    return started.timestamp(), stopped.timestamp()


@asynccontextmanager
async def voice(
    folder: Path,
    *services: FrameProcessor,
    tools: bool = False,
    realtime: bool | None = None,
    mute: Sequence[BaseUserMuteStrategy] = (),
    rtvi: bool = False,
    given: Sequence[Any] = (),
    turns: UserTurnStrategies | None = None,
    before: Sequence[FrameProcessor] = (),
    cancel_timeout: float = 20,
    **recording: Any,
) -> AsyncIterator[Voice]:
    """A pipeline that runs, with `services` where else a Stage is, recorded into a SQLite file.

    The model's context begins with the messages `given`. With `rtvi` a client can send messages. `turns` says when it
    is the user's turn, instead of the test. A hang-up that gets stuck is given up after `cancel_timeout` seconds.
    """
    async with (
        open_store(f"sqlite:///{folder}/voice.db") as store,
        Recorder(store, folder / "journal", **recording) as recorder,
    ):
        conversation = await store.create_conversation(OWNER, NewConversation())
        pair = LLMContextAggregatorPair(
            LLMContext(list(given)),
            user_params=LLMUserAggregatorParams(
                user_turn_strategies=turns or ExternalUserTurnStrategies(), user_mute_strategies=list(mute)
            ),
            realtime_service_mode=realtime,
        )
        attach(pair, recorder, owner=OWNER, conversation_id=conversation.id, tools=tools)
        stages = services or (Stage(),)
        worker = PipelineWorker(
            Pipeline([*before, pair.user(), *stages, pair.assistant()]),
            enable_rtvi=rtvi,
            cancel_on_idle_timeout=False,
            cancel_timeout_secs=cancel_timeout,
        )
        talk = Voice(pair, worker, stages[0], recorder, store, conversation.id)
        runner = WorkerRunner(handle_sigint=False)
        await runner.add_workers(worker)
        talk.ended = await _running(worker, runner)
        try:
            yield talk
        finally:
            await worker.cancel()
            await talk.end()
        if talk.expected is not None:
            await talk.messages(talk.expected)


async def _running(worker: PipelineWorker, runner: WorkerRunner) -> asyncio.Task[None]:
    started = asyncio.Event()

    async def note(_worker: object, _frame: object) -> None:
        started.set()

    worker.add_event_handler("on_pipeline_started", note)
    task = asyncio.create_task(runner.run())
    await asyncio.wait_for(started.wait(), 20)
    return task
