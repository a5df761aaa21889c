"""Pipecat: whole sessions of speech and typed text, with interruptions and a hang-up, compared with what the model saw.

CHATKEEP_VOICE_ROUNDS says how many random sessions, else there is 1, and 4 in `make apart`.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pipecat.frames.frames import (
    EndFrame,
    Frame,
    InterruptionFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    ProposedUserStoppedSpeakingFrame,
    TextFrame,
    TranscriptionFrame,
    TTSSpeakFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat_voice import OWNER, Loudspeaker, ScriptedModel, Synthesis, Voice, spoken_in, voice

from chatkeep import Message

GIVEN = os.environ.get("CHATKEEP_VOICE_ROUNDS")
ROUNDS = [int(GIVEN)] if GIVEN else [1, pytest.param(4, marks=pytest.mark.apart)]
SECONDS_PER_WORD = 0.03
ASIDE = "One moment."


class Session:
    """A user in front of a bot, and what reaches the assistant's aggregator of it."""

    def __init__(self, talk: Voice, model: ScriptedModel) -> None:
        self.talk = talk
        self.model = model
        self.typed: list[str] = []
        self.heard: list[str] = []
        """The words that were spoken, or written to a user who wants no voice."""
        self.late: set[str] = set()
        """Words that come after the interruption of their reply, and before the next one begins."""
        self._interrupted = False
        talk.pair.assistant().add_event_handler("on_before_process_frame", self._hear)

    def _hear(self, _aggregator: object, frame: Frame) -> None:
        if isinstance(frame, InterruptionFrame):
            self._interrupted = True
        elif isinstance(frame, LLMFullResponseStartFrame):
            self._interrupted = False
        elif isinstance(frame, TextFrame) and frame.append_to_context:
            self.heard += frame.text.split()
            if self._interrupted:
                self.late.update(frame.text.split())

    async def says(self, text: str) -> None:
        """The user speaks, which interrupts the bot; the model answers."""
        await self.talk.user_starts()
        await self.talk.worker.queue_frames(
            [VADUserStoppedSpeakingFrame(), TranscriptionFrame(text, OWNER, ""), ProposedUserStoppedSpeakingFrame()]
        )
        await until(lambda: self.model.was_given(text))

    async def types(self, text: str, *, run: bool, aloud: bool) -> None:
        """The user types, which interrupts the bot and is answered, or not; it is in the context."""
        self.typed.append(text)
        await self.talk.types(text, run=run, aloud=aloud)
        await until(lambda: self.model.was_given(text) if run else ("user", text) in spoken_in(self.context))

    async def hears(self, count: int, *, seconds: float = 20) -> None:
        """The user listens to so many more words, or for so long."""
        words, deadline = len(self.heard) + count, time.monotonic() + seconds
        await until(lambda: len(self.heard) >= words or time.monotonic() > deadline)

    @property
    def context(self) -> LLMContext:
        """What the model is given."""
        context: LLMContext = self.talk.pair.user().context
        return context


async def until(happened: Callable[[], bool]) -> None:
    """Wait until something has happened."""
    deadline = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def compare(session: Session) -> list[Message]:
    """After the end: the record is what the model saw and what was spoken since, in this order, once.

    Differences by design: the application's instructions are only in the context, asides only in the record. Words that
    the model wrote and nobody heard are in neither. A word that is reported after its interruption begins the next
    reply in Pipecat, or is dropped by the next interruption: the record follows the context.
    """
    await session.talk.end()
    stored = await session.talk.stored()
    said = [message for message in stored if message.metadata.get("kind") != "aside"]
    record = [(message.role.value, message.content) for message in said]
    assert record == spoken_in(session.context)
    for seen in session.model.seen:
        assert seen == record[: len(seen)]  # each time, the model saw what the record begins with
    assert [message.content for message in said if message.metadata.get("typed")] == session.typed

    words = [word for message in said if message.role == "assistant" for word in message.content.split()]
    assert len(words) == len(set(words))
    assert words == [word for word in session.heard if word in words or word not in session.late]
    for number in {*map(number_of, words)}:
        reply = " ".join(word for word in words if number_of(word) == number)
        assert session.late or session.model.wrote[number].startswith(reply)
    return stored


def number_of(word: str) -> int:
    """The number of the reply that a word is of."""
    return int(word[1:].partition(".")[0])


async def test_a_session_is_recorded_as_the_model_saw_it(tmp_path: Path) -> None:
    """Spoken and typed turns, one interrupted by each, an aside, and a hang-up in the middle of a reply."""
    model = ScriptedModel(4, 40)
    speaking = Synthesis(by_word=True, seconds_per_word=SECONDS_PER_WORD)
    given = [{"role": "system", "content": "Be brief."}]
    async with voice(tmp_path, model, speaking, Loudspeaker(), rtvi=True, given=given) as talk:
        session = Session(talk, model)
        await session.says("How hot should tea be?")
        await talk.pass_by()
        await session.says("Tell me a story.")
        await session.hears(2)
        await session.says("No, a fable.")
        await talk.pass_by()
        await session.says("Longer.")
        await session.hears(2)
        await session.types("In French!", run=True, aloud=True)
        await talk.pass_by()
        instruction = LLMMessagesAppendFrame([{"role": "developer", "content": "The user is at home."}], run_llm=False)
        await talk.worker.queue_frame(instruction)
        await session.types("In writing.", run=True, aloud=False)
        await talk.pass_by()
        await talk.queue(TTSSpeakFrame(ASIDE, append_to_context=False))
        await session.types("By the way: I like dragons.", run=False, aloud=True)
        await talk.pass_by()
        await session.says("Go on.")
        await talk.pass_by()
        await session.says("And then?")
        await session.hears(2)
        await talk.worker.cancel()
        stored = await compare(session)
    replies = [message for message in stored if message.role == "assistant"]
    assert [(message.metadata.get("kind"), message.status.value) for message in replies] == [
        (None, "complete"),
        (None, "interrupted"),
        (None, "complete"),
        (None, "interrupted"),
        (None, "complete"),
        (None, "complete"),
        ("aside", "complete"),
        (None, "complete"),
        (None, "interrupted"),
    ]


@pytest.mark.parametrize("rounds", ROUNDS)
async def test_random_sessions_are_recorded_as_the_model_saw_them(tmp_path: Path, rounds: int) -> None:
    """Turns, interruptions, typed texts of every kind and asides at any moment; then an end of either kind."""
    for seed in range(rounds):
        folder = tmp_path / str(seed)
        folder.mkdir()
        await _random_session(folder, random.Random(seed))


async def _random_session(folder: Path, chance: random.Random) -> None:
    model = ScriptedModel(*(chance.randint(1, 12) for _ in range(20)))
    speaking = Synthesis(by_word=True, seconds_per_word=SECONDS_PER_WORD)
    async with voice(folder, model, speaking, Loudspeaker(), rtvi=True) as talk:
        session = Session(talk, model)
        for number in range(12):
            match chance.choice(["says", "says", "types", "types", "aside"]):
                case "says":
                    await session.says(f"u{number} is said")
                case "types":
                    run, aloud = chance.random() < 0.6, chance.random() < 0.7
                    await session.types(f"u{number} is typed", run=run, aloud=aloud)
                case "aside":
                    await talk.queue(TTSSpeakFrame(ASIDE, append_to_context=False))
            await session.hears(chance.choice([0, 0, 1, 3, 20]), seconds=1)
        await (talk.worker.cancel() if chance.random() < 0.7 else talk.worker.queue_frame(EndFrame()))
        await compare(session)
