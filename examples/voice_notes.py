"""Records a conversation with Pipecat, without a microphone, a network or a model.

The user and the bot follow a script. Your application has a transport, and services for speech recognition, language
and speech, in place of `Bot`. `attach` records what passes the pair.

    python examples/voice_notes.py
"""

import asyncio

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EndFrame,
    Frame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    TranscriptionFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair, LLMUserAggregatorParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.workers.runner import WorkerRunner

from chatkeep import NewConversation, open_store
from chatkeep.integrations.pipecat import attach
from chatkeep.recorder import Recorder

logger.remove()  # Pipecat logs a lot to stderr
OWNER = "local"
URL = "sqlite:///voice.db"


async def main() -> None:
    """Record a conversation, and print the command that shows it."""
    async with open_store(URL) as store, Recorder(store, journal="voice.journal") as recorder:
        conversation = await store.create_conversation(OWNER, NewConversation(title="Voice notes"))
        strategies = UserTurnStrategies(stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.1)])
        pair = LLMContextAggregatorPair(
            LLMContext(), user_params=LLMUserAggregatorParams(user_turn_strategies=strategies)
        )
        attach(pair, recorder, owner=OWNER, conversation_id=conversation.id)
        await run_pipeline(pair)
        await recorder.flush(timeout=10)
    print(f"chatkeep show {conversation.id} --database-url {URL}")  # noqa: T201


async def run_pipeline(pair: LLMContextAggregatorPair) -> None:
    """Run the pipeline until the user ends the conversation."""
    bot = Bot()
    worker = PipelineWorker(
        Pipeline([pair.user(), bot, pair.assistant()]), enable_rtvi=False, cancel_on_idle_timeout=False
    )

    @worker.event_handler("on_pipeline_started")
    async def follow_the_script(_worker: PipelineWorker, _frame: Frame) -> None:
        await say(worker, "Buy tea.")
        await bot.has_said("tea.")
        await say(worker, "Call Bob tomorrow at ten.")
        await bot.has_said("Bob")
        await say(worker, "No, at eleven.")  # which interrupts the bot
        await bot.has_said("eleven.")
        await worker.queue_frame(EndFrame())

    runner = WorkerRunner()
    await runner.add_workers(worker)
    await runner.run()


async def say(worker: PipelineWorker, text: str) -> None:
    """Send the frames of voice activity detection and speech recognition for a sentence."""
    await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
    await asyncio.sleep(0.3)
    await worker.queue_frame(VADUserStoppedSpeakingFrame(stop_secs=0.2))
    await worker.queue_frame(TranscriptionFrame(text, user_id="ada", timestamp=""))


class Bot(FrameProcessor):
    """Repeats what the user says, a word every tenth of a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: asyncio.Queue[str] = asyncio.Queue()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer the user; push all other frames on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame):
            last = frame.context.messages[-1]
            await self._speak(f"Noted: {last.get('content') if isinstance(last, dict) else last}")
        else:
            await self.push_frame(frame, direction)

    async def _speak(self, text: str) -> None:
        await self.push_frame(LLMFullResponseStartFrame())
        await self.broadcast_frame(BotStartedSpeakingFrame)
        for word in text.split():
            await self.push_frame(TTSTextFrame(word, text_type="word"))
            await asyncio.sleep(0.1)  # an interruption ends it here
            self._said.put_nowait(word)
        await self.broadcast_frame(BotStoppedSpeakingFrame)
        await self.push_frame(LLMFullResponseEndFrame())

    async def has_said(self, word: str) -> None:
        """Wait until the bot has said a word."""
        while await self._said.get() != word:
            pass


if __name__ == "__main__":
    asyncio.run(main())
