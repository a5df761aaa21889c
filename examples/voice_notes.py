"""Voice notes: a Pipecat conversation that is recorded. It needs no microphone, no network and no model.

The user and the bot follow a script. In your application, a transport and services for speech recognition,
language and speech stand where `Bot` does, and the user speaks for themselves; recorded is what `attach` is given.

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

logger.remove()  # Pipecat tells much on stderr
OWNER = "local"
URL = "sqlite:///voice.db"


async def main() -> None:
    """Record a conversation, and say how to look at it."""
    async with open_store(URL) as store, Recorder(store, journal="voice.journal") as recorder:
        conversation = await store.create_conversation(OWNER, NewConversation(title="Voice notes"))
        strategies = UserTurnStrategies(stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.1)])
        pair = LLMContextAggregatorPair(
            LLMContext(), user_params=LLMUserAggregatorParams(user_turn_strategies=strategies)
        )
        attach(pair, recorder, owner=OWNER, conversation_id=conversation.id)
        await talk(pair)
        await recorder.flush(timeout=10)
    print(f"chatkeep show {conversation.id} --database-url {URL}")  # noqa: T201


async def talk(pair: LLMContextAggregatorPair) -> None:
    """Run the pipeline until the user has ended the conversation."""
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
    """Speak: what a detector of voices and the recognition of speech make of it."""
    await worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2))
    await asyncio.sleep(0.3)
    await worker.queue_frame(VADUserStoppedSpeakingFrame(stop_secs=0.2))
    await worker.queue_frame(TranscriptionFrame(text, user_id="ada", timestamp=""))


class Bot(FrameProcessor):
    """Repeats what it hears, a word every tenth of a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: asyncio.Queue[str] = asyncio.Queue()

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer the user; pass everything else on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame):
            await self._speak(f"Noted: {frame.context.messages[-1]['content']}")
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
