"""Pipecat: however a pipeline ends, what was said until then is recorded; and recording never disturbs it."""

import asyncio
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    CancelFrame,
    Frame,
    LLMFullResponseEndFrame,
    LLMMessagesAppendFrame,
    StopFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.turns.user_start import MinWordsUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat_voice import OWNER, Model, Stage, line, speech, voice, words
from test_pipecat import call, slow


class Stuck(Stage):
    """A processor that never gets over a hang-up, such as a transport whose connection does not close."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass a frame on, unless it is a hang-up."""
        if isinstance(frame, CancelFrame):
            await asyncio.Event().wait()
        await super().process_frame(frame, direction)


@pytest.mark.parametrize("first", [True, False])
async def test_a_hang_up_that_gets_stuck(tmp_path: Path, *, first: bool) -> None:
    """Pipecat cleans the aggregators up without the frame that ends a pipeline."""
    model = Model()
    model.register_function("slow", slow)
    before, after = ([Stuck()], []) if first else ([], [Stuck()])
    async with voice(tmp_path, model, *after, before=before, tools=True, cancel_timeout=0.2) as talk:
        await talk.user_says("Tell me a story.")
        await talk.bot_starts("Once upon")
        await model.run_function_calls([call("1", "slow")])
        await talk.worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.2, timestamp=time.time()))
        await talk.worker.queue_frame(TranscriptionFrame("But I", OWNER, ""))
        await talk.push(*words("One moment", to_context=False, context_id="1"))
        await talk.worker.cancel()
        await talk.end()
        lines = await talk.lines(5)
    said = "user (interrupted): But I" if first else "user: But I"
    assert lines == [
        "user: Tell me a story.",
        said,
        "assistant (interrupted): Once upon",
        "assistant (interrupted): One moment",
        "tool (interrupted): CANCELLED",
    ]


async def test_a_stop_waits_for_nothing(tmp_path: Path) -> None:
    """The program may end with it. What is being said goes on if the pipeline does, or ends when it is cleaned up."""
    async with voice(tmp_path) as talk:
        await talk.bot_starts("Hello there.")
        await talk.push(LLMFullResponseEndFrame())
        await talk.bot_starts("How are")
        await talk.worker.queue_frame(StopFrame())
        await talk.end()
        assert [line(message) for message in await talk.stored()] == ["assistant: Hello there."]
        for _ in range(2):
            await talk.pair.assistant().cleanup()  # type: ignore[no-untyped-call]
        assert await talk.lines(2) == ["assistant: Hello there.", "assistant (interrupted): How are"]


async def test_what_was_too_short_for_a_turn_is_no_part_of_the_next(tmp_path: Path) -> None:
    """Pipecat discards what does not interrupt the bot: its speaker and its time are not those of the next turn."""
    turns = UserTurnStrategies(
        start=[MinWordsUserTurnStartStrategy(min_words=3)],
        stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=0.1)],
    )
    async with voice(tmp_path, turns=turns) as talk:
        await talk.stage.queue_frame(BotStartedSpeakingFrame(), FrameDirection.UPSTREAM)
        await talk.pass_by()
        first = time.time() - 1.5
        await talk.user_starts(at=first)
        await talk.user_stops("Right.", by="bob", at=first + 0.2)
        await talk.stage.queue_frame(BotStoppedSpeakingFrame(), FrameDirection.UPSTREAM)
        await talk.pass_by()
        second = time.time()
        await talk.user_starts(at=second)
        await talk.user_stops("And what then?", by="ada", at=second + 0.2)
        (stored,) = await talk.messages(1)
    assert line(stored) == "user: And what then?"
    assert stored.metadata["user_id"] == "ada"
    assert speech(stored)[0] == pytest.approx(second, abs=1e-5)


class Full(logging.Handler):
    """Writes to a disk that is full, and does not take care of it."""

    def emit(self, record: logging.LogRecord) -> None:
        """Fail."""
        raise OSError(28, "no space left on device")


@pytest.fixture
def full() -> Iterator[None]:
    """Nothing that chatkeep logs can be written."""
    handler = Full()
    logging.getLogger("chatkeep").addHandler(handler)
    yield
    logging.getLogger("chatkeep").removeHandler(handler)


@pytest.mark.usefixtures("full")
async def test_a_log_that_cannot_be_written_does_not_disturb(tmp_path: Path) -> None:
    """A message that is refused, one that is not understood, and one that is noted: the model gets all the same."""
    async with voice(tmp_path, max_bytes=1, when_full="raise") as talk:
        await talk.worker.queue_frame(VADUserStartedSpeakingFrame(timestamp=float("nan")))
        await talk.user_says("How hot should tea be?")
        await talk.bot_says("Eighty degrees.")
        strange: list[Any] = [{"role": "user", "content": each} for each in ([{"type": "video"}], 1, "Hello.")]
        await talk.worker.queue_frame(LLMMessagesAppendFrame(strange))
        await talk.user_says("And black?")
        context: list[Any] = talk.pair.user().context.get_messages()
        assert [each["content"] for each in context] == [
            "How hot should tea be?",
            "Eighty degrees.",
            *(each["content"] for each in strange),
            "And black?",
        ]
