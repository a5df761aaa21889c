"""Pipecat: what is said in a pipeline is stored once, in order, with the times of the speech."""

import asyncio
import re
import subprocess
import sys
import time
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from pipecat.frames.frames import (
    AggregatedTextFrame,
    BotBackchannelFrame,
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    EndFrame,
    FunctionCallFromLLM,
    FunctionCallResultProperties,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMTextFrame,
    ProposedUserStoppedSpeakingFrame,
    TranscriptionFrame,
    TTSSpeakFrame,
    TTSStartedFrame,
    TTSStoppedFrame,
    TTSTextFrame,
    UserBackchannelFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.observers.speaking_observer import SpeakingObserver, SpeechEvent
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.frame_processor import FrameDirection
from pipecat.services.llm_service import FunctionCallParams
from pipecat.turns.user_mute import AlwaysUserMuteStrategy
from pipecat_voice import OWNER, Loudspeaker, Model, Synthesis, Voice, line, speech, voice, words

import chatkeep.integrations.pipecat.speech
from chatkeep.errors import InvalidId, InvalidInput
from chatkeep.integrations.pipecat import attach

EXAMPLE = Path(__file__).parents[2] / "examples" / "voice_notes.py"
EXACT = 1e-5
ACCURATE = 0.05
"""Seconds that a time may be off."""


# --- turns -----------------------------------------------------------------------------------------------


async def test_turns_are_stored_in_order(tmp_path: Path) -> None:
    """What both sides say is stored as it is said."""
    async with voice(tmp_path) as talk:
        await talk.user_says("How hot should tea be?")
        await talk.bot_says("Eighty degrees for green tea.")
        await talk.user_says("And black?")
        await talk.bot_says("Ninety-five.")
        assert await talk.lines(4) == [
            "user: How hot should tea be?",
            "assistant: Eighty degrees for green tea.",
            "user: And black?",
            "assistant: Ninety-five.",
        ]


async def test_interrupted_reply_is_what_was_spoken(tmp_path: Path) -> None:
    """A reply that the user cuts off comes before what the user says, and ends where it was cut off."""
    async with voice(tmp_path) as talk:
        await talk.user_says("Tell me a story.")
        await talk.bot_starts("Once upon a time there")
        await talk.user_says("Stop!")
        assert await talk.lines(3) == [
            "user: Tell me a story.",
            "assistant (interrupted): Once upon a time there",
            "user: Stop!",
        ]


async def test_reply_that_was_not_begun_is_not_stored(tmp_path: Path) -> None:
    """A reply that is interrupted before its first word leaves nothing."""
    async with voice(tmp_path) as talk:
        await talk.user_says("Tell me a story.")
        await talk.push(LLMFullResponseStartFrame(), BotStartedSpeakingFrame())
        await talk.user_says("Stop!")
        began = time.time()
        await talk.bot_says("All right.")
        stored = await talk.messages(3)
        assert [line(message) for message in stored] == [
            "user: Tell me a story.",
            "user: Stop!",
            "assistant: All right.",
        ]
        assert speech(stored[2])[0] >= began


async def test_what_follows_the_end_of_a_turn_at_once(tmp_path: Path) -> None:
    """What is noticed between the end of a turn and Pipecat's event for it belongs to the next turn."""
    async with voice(tmp_path) as talk:
        await talk.user_starts()
        await talk.worker.queue_frames(
            [
                TranscriptionFrame("One.", "ada", ""),
                VADUserStoppedSpeakingFrame(),
                ProposedUserStoppedSpeakingFrame(),
                TranscriptionFrame("Two.", "bob", ""),
            ]
        )
        await talk.pass_by()
        await talk.user_says("Three.", by="bob")
        one, two = await talk.messages(2)
        assert (one.content, one.metadata["user_id"]) == ("One.", "ada")
        assert (two.content, two.metadata["user_id"]) == ("Two. Three.", "bob")


async def test_two_quick_turns_of_the_user(tmp_path: Path) -> None:
    """Two turns without a reply between them are two messages, in order, each with times of its own."""
    async with voice(tmp_path) as talk:
        first, second = time.time() - 1.5, time.time() - 0.5
        await talk.user_starts(at=first)
        await talk.user_stops("One.", at=first + 0.5)
        await talk.user_starts(at=second)
        await talk.user_stops("Two.", at=second + 0.25)
        stored = await talk.messages(2)
        assert [line(message) for message in stored] == ["user: One.", "user: Two."]
        assert speech(stored[0]) == pytest.approx((first, first + 0.5), abs=EXACT)
        assert speech(stored[1]) == pytest.approx((second, second + 0.25), abs=EXACT)


async def test_order_of_messages_is_the_order_of_events(tmp_path: Path) -> None:
    """Turns of both sides that overlap without a pause are stored in the order of Pipecat's events."""
    async with voice(tmp_path) as talk:
        events: list[str] = []
        user, assistant = talk.pair
        user.add_event_handler("on_user_turn_message_added", lambda _, added: events.append(added.content))
        assistant.add_event_handler("on_assistant_turn_stopped", lambda _, ended: events.append(ended.content))
        for number in range(25):
            await talk.user_starts()
            await asyncio.gather(talk.user_stops(f"question {number}"), talk.bot_says(f"answer {number}"))
        stored = await talk.messages(50)
        assert [message.content for message in stored] == events
        assert sorted(events) == sorted(f"{what} {number}" for number in range(25) for what in ("question", "answer"))


async def test_frames_do_not_overtake_events(tmp_path: Path) -> None:
    """An aside that ends right behind a turn comes after it, though Pipecat's task for the turn is yet to begin."""
    async with voice(tmp_path) as talk:
        for number in range(10):
            await talk.push(
                LLMFullResponseStartFrame(),
                *words(f"turn {number}"),
                LLMFullResponseEndFrame(),
                *words(f"aside {number}", to_context=False),
                TTSStoppedFrame(),
            )
        said = [message.content for message in await talk.messages(20)]
        assert said == [f"{what} {number}" for number in range(10) for what in ("turn", "aside")]


# --- the end ---------------------------------------------------------------------------------------------


async def test_hang_up_in_the_middle_of_a_reply(tmp_path: Path) -> None:
    """What was spoken until the worker was cancelled is kept, and said to be interrupted."""
    async with voice(tmp_path) as talk:
        await talk.user_says("Tell me a story.")
        await talk.bot_starts("Once upon a")
        await talk.worker.cancel()
        await talk.end()
        stored = await talk.messages(2)
        assert line(stored[1]) == "assistant (interrupted): Once upon a"
        assert set(stored[1].metadata["speech"]) == {"started_at", "stopped_at"}


async def test_hang_up_while_the_user_speaks(tmp_path: Path) -> None:
    """What was understood until then is kept."""
    async with voice(tmp_path) as talk:
        await talk.user_starts()
        await talk.worker.queue_frame(TranscriptionFrame("I would like to", OWNER, ""))
        await talk.pass_by()
        await talk.worker.cancel()
        await talk.end()
        stored = await talk.messages(1)
        assert line(stored[0]) == "user: I would like to"
        assert set(stored[0].metadata["speech"]) == {"started_at", "stopped_at"}


async def test_end_in_the_middle_of_a_reply(tmp_path: Path) -> None:
    """A reply whose end never came is interrupted, though Pipecat does not call it so."""
    async with voice(tmp_path) as talk:
        await talk.user_says("Tell me a story.")
        await talk.bot_says("Which one?")
        await talk.user_says("Any.")
        await talk.bot_starts("Once upon a")
        await talk.worker.queue_frame(EndFrame())
        await talk.end()
        assert await talk.lines(4) == [
            "user: Tell me a story.",
            "assistant: Which one?",
            "user: Any.",
            "assistant (interrupted): Once upon a",
        ]


# --- times and speakers ----------------------------------------------------------------------------------


async def test_times_of_the_user_are_those_of_the_speech(tmp_path: Path) -> None:
    """They are when speech began and ended, not when the detector was sure; a pause ends nothing."""
    async with voice(tmp_path) as talk:
        began = time.time() - 1
        await talk.user_starts(at=began)
        await talk.worker.queue_frame(VADUserStoppedSpeakingFrame(stop_secs=0.1, timestamp=began + 0.3))
        await talk.worker.queue_frame(VADUserStartedSpeakingFrame(start_secs=0.1, timestamp=began + 0.5))
        await talk.user_stops("Well … hello.", at=began + 0.75)
        (stored,) = await talk.messages(1)
        assert speech(stored) == pytest.approx((began, began + 0.75), abs=EXACT)


async def test_times_of_the_bot_are_those_of_the_speech(tmp_path: Path) -> None:
    """They are when its voice was heard, not when the model began to answer."""
    async with voice(tmp_path) as talk:
        await talk.push(LLMFullResponseStartFrame())
        await asyncio.sleep(2 * ACCURATE)
        began = time.time()
        await talk.push(BotStartedSpeakingFrame())
        heard = time.time()
        await asyncio.sleep(2 * ACCURATE)
        await talk.push(*words("Hello there."))
        ended = time.time()
        await talk.push(BotStoppedSpeakingFrame(), LLMFullResponseEndFrame())
        (stored,) = await talk.messages(1)
        started, stopped = speech(stored)
        assert began <= started <= heard
        assert ended <= stopped <= time.time()


async def test_a_reply_waits_for_the_end_of_its_speech(tmp_path: Path) -> None:
    """The text is complete when its last word begins; what is said next waits as long."""
    async with voice(tmp_path) as talk:
        await talk.bot_starts("Hello there.")
        await talk.push(LLMFullResponseEndFrame())
        await talk.pass_by()
        assert await talk.messages(0) == []
        ended = time.time()
        await talk.push(BotStoppedSpeakingFrame())
        (stored,) = await talk.messages(1)
        assert ended <= speech(stored)[1] <= time.time()


@pytest.mark.parametrize("hurried", [True, False])
async def test_a_reply_does_not_wait_for_long(tmp_path: Path, *, hurried: bool) -> None:
    """A second without the end of its speech, or the next message, and it is stored without."""
    async with voice(tmp_path) as talk:
        await talk.bot_starts("Hello there.")
        await talk.push(LLMFullResponseEndFrame())
        if hurried:
            await talk.worker.queue_frame(UserBackchannelFrame("mhm", OWNER, ""))
        stored = await talk.messages(1 + hurried)
        assert line(stored[0]) == "assistant: Hello there."
        assert set(stored[0].metadata["speech"]) == {"started_at"}


async def test_speech_overtakes_text(tmp_path: Path) -> None:
    """Pipecat's frames about speech pass those about text: the next utterance begins before the text ends."""
    async with voice(tmp_path) as talk:
        await talk.bot_starts("First")
        between = time.time()
        await talk.queue(
            *words("one."), BotStoppedSpeakingFrame(), BotStartedSpeakingFrame(), LLMFullResponseEndFrame()
        )
        await talk.push(LLMFullResponseStartFrame(), *words("Second one."))
        await talk.bot_stops()
        first, second = await talk.messages(2)
        assert [line(first), line(second)] == ["assistant: First one.", "assistant: Second one."]
        assert speech(first)[0] < between < speech(first)[1] <= speech(second)[0]


@pytest.mark.parametrize(("age", "speech_first"), [(1, True), (60, True), (60, False)])
async def test_a_cough_is_not_the_beginning(tmp_path: Path, *, age: float, speech_first: bool) -> None:
    """Speech that became no turn is not part of the next one, whichever is noticed first: speech or turn."""
    async with voice(tmp_path) as talk:
        cough = time.time() - age
        await talk.worker.queue_frame(VADUserStartedSpeakingFrame(timestamp=cough))
        await talk.worker.queue_frame(VADUserStoppedSpeakingFrame(timestamp=cough + 0.2))
        if not speech_first:
            await talk.turn_starts()
        await talk.user_says("Hello.")
        (stored,) = await talk.messages(1)
        assert speech(stored)[0] > cough + 0.2


async def test_what_a_muted_user_says_is_not_the_beginning(tmp_path: Path) -> None:
    """While the user is muted, Pipecat is deaf to speech and transcriptions."""
    async with voice(tmp_path, mute=[AlwaysUserMuteStrategy()]) as talk:  # type: ignore[no-untyped-call]
        await talk.stage.queue_frame(BotStartedSpeakingFrame(), FrameDirection.UPSTREAM)
        await talk.user_says("Can you hear me?", by="bob")
        await talk.stage.queue_frame(BotStoppedSpeakingFrame(), FrameDirection.UPSTREAM)
        await talk.pass_by()
        now_heard = time.time()
        await talk.user_says("And now?")
        (stored,) = await talk.messages(1)
        assert line(stored) == "user: And now?"
        assert speech(stored)[0] >= now_heard
        assert stored.metadata["user_id"] == "ada"


async def test_a_sound_is_not_the_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bot was heard with long before a reply, without a word, is no part of it."""
    monkeypatch.setattr(chatkeep.integrations.pipecat.speech, "LONG_AGO", timedelta(milliseconds=10))
    async with voice(tmp_path) as talk:
        await talk.push(BotStartedSpeakingFrame())
        await talk.push(BotStoppedSpeakingFrame())
        await asyncio.sleep(0.02)
        began = time.time()
        await talk.bot_says("That was the gong.")
        (stored,) = await talk.messages(1)
        assert speech(stored)[0] >= began


async def test_turn_without_times_of_speech(tmp_path: Path) -> None:
    """Where nothing detects speech, the turn's own time is all there is."""
    async with voice(tmp_path) as talk:
        began = time.time()
        await talk.turn_starts()
        await talk.worker.queue_frame(TranscriptionFrame("Hello.", "", ""))
        await talk.worker.queue_frame(ProposedUserStoppedSpeakingFrame())
        (stored,) = await talk.messages(1)
        assert stored.metadata == {}
        assert stored.sent_at is not None
        assert began - 0.001 <= stored.sent_at.timestamp() <= time.time()  # Pipecat's times have milliseconds


async def test_speakers_are_named(tmp_path: Path) -> None:
    """The speech service says who spoke; Pipecat's own events do not."""
    async with voice(tmp_path) as talk:
        await talk.user_says("Hello.", by="ada")
        await talk.user_starts()
        await talk.worker.queue_frame(TranscriptionFrame("And from me.", "bob", ""))
        await talk.user_stops("And me again.", by="ada")
        await talk.user_says("Who was that?", by="")
        alone, together, unknown = await talk.messages(3)
        assert alone.metadata["user_id"] == "ada"
        assert together.metadata["user_ids"] == ["bob", "ada"]
        assert set(unknown.metadata) == {"speech"}


# --- past the model's context ----------------------------------------------------------------------------


async def test_what_the_bot_says_besides_turns(tmp_path: Path) -> None:
    """Words that do not go into the context are one message, with their spaces and times."""
    async with voice(tmp_path) as talk:
        blank = TTSTextFrame(" ", text_type="word", context_id="0")
        blank.append_to_context = False
        await talk.push(blank, TTSStoppedFrame("0"))
        await talk.push(TTSStartedFrame("1", append_to_context=False), BotStartedSpeakingFrame())
        await talk.push(*words("One moment, please.", to_context=False, context_id="1"))
        await talk.push(BotStoppedSpeakingFrame(), TTSStoppedFrame("1"))
        await talk.bot_says("Here it is.")
        aside, turn = await talk.messages(2)
        assert (line(aside), aside.metadata["kind"]) == ("assistant: One moment, please.", "aside")
        assert (line(turn), set(turn.metadata)) == ("assistant: Here it is.", {"speech"})
        assert speech(aside)[1] <= speech(turn)[0]


@pytest.mark.parametrize("cancelled", [True, False])
async def test_aside_that_is_cut_off(tmp_path: Path, *, cancelled: bool) -> None:
    """An interruption and a hang-up keep the words so far."""
    async with voice(tmp_path) as talk:
        await talk.push(BotStartedSpeakingFrame(), *words("One moment,", to_context=False, context_id="1"))
        await (talk.worker.cancel() if cancelled else talk.user_starts())
        (stored,) = await talk.messages(1)
        assert (line(stored), stored.metadata["kind"]) == ("assistant (interrupted): One moment,", "aside")
        assert set(stored.metadata["speech"]) == {"started_at", "stopped_at"}


async def test_backchannel_of_the_bot_is_not_cut_off(tmp_path: Path) -> None:
    """It is said while the user talks: the beginning of a turn does not end it."""
    async with voice(tmp_path) as talk:
        announcement = backchannel("I see.", interruptible=False)
        await talk.push(BotStartedSpeakingFrame(), announcement, *words("I", to_context=False, context_id="1"))
        await talk.user_starts()
        await talk.push(*words("see.", to_context=False, context_id="1"))
        ended = time.time()
        await talk.push(BotStoppedSpeakingFrame(), TTSStoppedFrame("1"))
        (stored,) = await talk.messages(1)
        assert (line(stored), stored.metadata["kind"]) == ("assistant: I see.", "backchannel")
        assert ended <= speech(stored)[1]


def backchannel(text: str, *, interruptible: bool) -> AggregatedTextFrame:
    """What speech synthesis announces before it says it."""
    frame = AggregatedTextFrame(text, text_type="backchannel", context_id="1")
    frame.append_to_context, frame.will_be_spoken, frame.interruptible = False, True, interruptible
    return frame


@pytest.mark.parametrize("spoken", ["", "I"])
async def test_backchannel_of_the_bot_that_is_cut_off(tmp_path: Path, spoken: str) -> None:
    """It holds what was spoken of it, as every message that is interrupted."""
    async with voice(tmp_path) as talk:
        await talk.push(BotStartedSpeakingFrame(), backchannel("I see you.", interruptible=True))
        await talk.push(*words(spoken, to_context=False, context_id="1"))
        await talk.user_says("Wait.")
        lines = await talk.lines(1 + bool(spoken))
    assert lines == [*(["assistant (interrupted): I"] if spoken else []), "user: Wait."]


async def test_words_of_a_backchannel_after_its_end(tmp_path: Path) -> None:
    """Pipecat reports them by a clock that an interruption does not turn back: they are in the record already."""
    async with voice(tmp_path) as talk:
        await talk.push(backchannel("I see.", interruptible=False), *words("I", to_context=False, context_id="1"))
        await talk.push(TTSStoppedFrame("1"), *words("see.", to_context=False, context_id="1"))
        await talk.push(*words("One moment.", to_context=False, context_id="2"), TTSStoppedFrame("2"))
        assert await talk.lines(2) == ["assistant: I see.", "assistant: One moment."]


async def test_backchannel_in_a_turn(tmp_path: Path) -> None:
    """An acknowledgment within a turn of the user leaves the turn its times."""
    async with voice(tmp_path) as talk:
        began = time.time() - 1
        await talk.user_starts(at=began)
        await talk.worker.queue_frame(UserBackchannelFrame("mhm", OWNER, "2026-01-31T12:00:00Z"))
        await talk.pass_by()
        await talk.user_stops("Go on.", at=began + 0.5)
        acknowledged, turn = await talk.messages(2)
        assert acknowledged.sent_at == datetime(2026, 1, 31, 12, tzinfo=UTC)
        assert speech(turn) == pytest.approx((began, began + 0.5), abs=EXACT)


async def test_backchannel_of_the_user(tmp_path: Path) -> None:
    """An acknowledgment is a message of its own, and leaves the reply alone."""
    async with voice(tmp_path) as talk:
        await talk.bot_starts("Once upon a time")
        began = time.time() - 0.5
        await talk.worker.queue_frame(VADUserStartedSpeakingFrame(timestamp=began))
        await talk.worker.queue_frame(VADUserStoppedSpeakingFrame(timestamp=began + 0.2))
        await talk.worker.queue_frame(UserBackchannelFrame("mhm", "bob", "just now"))
        await talk.pass_by()
        await talk.push(*words("there was"))
        await talk.bot_stops()
        acknowledged, reply = await talk.messages(2)
        assert (line(acknowledged), acknowledged.metadata["kind"]) == ("user: mhm", "backchannel")
        assert acknowledged.metadata["user_id"] == "bob"
        assert speech(acknowledged) == pytest.approx((began, began + 0.2), abs=EXACT)
        assert line(reply) == "assistant: Once upon a time there was"


# --- real speech synthesis and playback ------------------------------------------------------------------


@pytest.mark.parametrize("by_word", [True, False])
async def test_synthesised_speech_is_stored_once(tmp_path: Path, *, by_word: bool) -> None:
    """Every way to have something spoken is stored once, in order, with the time in which it was heard."""
    async with voice(tmp_path, Synthesis(by_word=by_word), Loudspeaker()) as talk:
        heard = times_of_speech(talk)
        reply = LLMFullResponseStartFrame(), LLMTextFrame("This is a reply."), LLMFullResponseEndFrame()
        for frames in (
            reply,
            [TTSSpeakFrame("This goes into the context.")],
            [TTSSpeakFrame("This does not.", append_to_context=False)],
            [BotBackchannelFrame("Mhm.")],
            [BotBackchannelFrame("I see.", append_to_context=True)],
            [TTSSpeakFrame("Good bye.")],
        ):
            await talk.queue(*frames)
            if by_word:  # or else Pipecat makes one message of two: it reports words before they are heard
                await talk.pass_by()
        stored = await talk.messages(6)
        assert [(message.content, message.metadata.get("kind")) for message in stored] == [
            ("This is a reply.", None),
            ("This goes into the context.", None),
            ("This does not.", "aside"),
            ("Mhm.", "backchannel"),
            ("I see.", None),
            ("Good bye.", None),
        ]
        assert {(message.role, message.status) for message in stored} == {("assistant", "complete")}
        for message, interval in zip(stored, heard, strict=True):
            assert speech(message) == pytest.approx(interval, abs=ACCURATE)


def times_of_speech(talk: Voice) -> list[list[float]]:
    """When the bot's voice was heard from now on: what the transport tells the other end of the pipeline."""
    heard: list[list[float]] = []

    def note(_processor: object, frame: object) -> None:
        if isinstance(frame, BotStartedSpeakingFrame):
            heard.append([time.time()])
        elif isinstance(frame, BotStoppedSpeakingFrame):
            heard[-1].append(time.time())

    talk.pair.user().add_event_handler("on_before_process_frame", note)
    return heard


async def test_times_agree_with_pipecats_observer(tmp_path: Path) -> None:
    """Its SpeakingObserver is told of the same frames, from elsewhere."""
    async with voice(tmp_path, Synthesis(by_word=True), Loudspeaker()) as talk:
        observer = SpeakingObserver()
        ended: dict[str, list[SpeechEvent]] = {}
        observer.add_event_handler("on_speech_event", lambda _, event: ended.setdefault(event.kind, []).append(event))
        talk.worker.add_observer(observer)
        for text in ("One sentence.", "Another one."):
            await talk.user_says(text)
            await talk.push(TTSSpeakFrame(text))
        stored = await talk.messages(4)
        for role, kind in (("user", "user_speech_stopped"), ("assistant", "bot_speech_stopped")):
            times = [speech(message) for message in stored if message.role == role]
            observed = [(event.started_at, event.timestamp) for event in ended[kind]]
            assert [line(message) for message in stored if message.role == role] == [
                f"{role}: One sentence.",
                f"{role}: Another one.",
            ]
            assert times == [pytest.approx(interval, abs=ACCURATE) for interval in observed]


async def test_interrupted_synthesis_is_what_was_heard(tmp_path: Path) -> None:
    """The model wrote a story; stored are the words until the user cut in."""
    story = [f"word{number}" for number in range(40)]
    async with voice(tmp_path, Synthesis(by_word=True), Loudspeaker()) as talk:
        await talk.queue(LLMFullResponseStartFrame(), LLMTextFrame(" ".join(story) + "."), LLMFullResponseEndFrame())
        await spoken(talk, "word2")
        await talk.user_says("Stop!")
        reply, answer = await talk.messages(2)
        assert (reply.status, line(answer)) == ("interrupted", "user: Stop!")
        assert 3 <= len(reply.content.split()) < 35
        assert reply.content.split() == story[: len(reply.content.split())]


async def spoken(talk: Voice, word: str) -> None:
    """Wait until a word was heard."""
    heard = asyncio.Event()

    def note(_processor: object, frame: object) -> None:
        if getattr(frame, "text", None) == word:
            heard.set()

    talk.pair.assistant().add_event_handler("on_after_process_frame", note)
    await asyncio.wait_for(heard.wait(), 20)


# --- tools -----------------------------------------------------------------------------------------------


async def test_calls_of_tools(tmp_path: Path) -> None:
    """A call is one message, once it has returned: its name, its arguments, its result."""
    model = Model()
    model.register_function("boiling_point", boiling_point, cancel_on_interruption=False)
    model.register_function("broken", broken)
    async with voice(tmp_path, model, tools=True) as talk:
        await talk.user_says("When does water boil in La Paz?")
        await talk.push(LLMFullResponseStartFrame())
        await model.run_function_calls([call("1", "boiling_point", height=3640)])
        await talk.push(LLMFullResponseEndFrame())
        await talk.messages(2)
        await model.run_function_calls([call("2", "broken")])
        asked, found, failed = await talk.messages(3)
        assert line(found) == 'tool: {"celsius": 88, "where": "Nuestra Señora"}'
        assert found.metadata == {
            "tool_call_id": "1",
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "boiling_point", "arguments": '{"height": 3640}'}}
            ],
        }
        assert found.parts == (
            {"type": "tool_call", "id": "1", "name": "boiling_point", "arguments": {"height": 3640}},
            {
                "type": "tool_result",
                "tool_call_id": "1",
                "content": {"celsius": 88, "where": "Nuestra Señora"},
                "is_error": False,
            },
        )
        assert asked.parts is None
        assert asked.sent_at is not None
        assert found.sent_at is not None
        assert asked.sent_at < found.sent_at
        assert (failed.role, failed.status) == ("tool", "failed")
        assert failed.parts is not None
        assert failed.parts[1] == {
            "type": "tool_result",
            "tool_call_id": "2",
            "content": failed.content,
            "is_error": True,
        }


@pytest.mark.parametrize("hang_up", [True, False])
async def test_cancelled_calls_of_tools(tmp_path: Path, *, hang_up: bool) -> None:
    """A call that an interruption or the end cancels is stored, and said to be."""
    model = Model()
    model.register_function("slow", slow)
    async with voice(tmp_path, model, tools=True) as talk:
        await model.run_function_calls([call("1", "slow", of="everything")])
        await talk.pass_by()
        await (talk.worker.cancel() if hang_up else talk.user_says("Never mind."))
        stored = await talk.messages(1 if hang_up else 2)
        assert line(stored[0]) == "tool (interrupted): CANCELLED"
        assert stored[0].metadata["tool_calls"][0]["function"] == {
            "name": "slow",
            "arguments": '{"of": "everything"}',
        }
        assert stored[0].parts == (
            {"type": "tool_call", "id": "1", "name": "slow", "arguments": {"of": "everything"}},
            {"type": "tool_result", "tool_call_id": "1", "content": "CANCELLED", "is_error": True},
        )


@pytest.mark.parametrize(
    ("result", "content", "part"),
    [
        (None, "", None),
        ("hot", "hot", "hot"),
        ({"at": date(2026, 1, 31)}, '{"at": "2026-01-31"}', '{"at": "2026-01-31"}'),
        ([1, 2.5, None], "[1, 2.5, null]", [1, 2.5, None]),
    ],
)
async def test_results_of_tools_as_parts(tmp_path: Path, result: object, content: str, part: object) -> None:
    """A result is JSON in its part if it is JSON; else the part has the text."""
    model = Model()

    async def tool(params: FunctionCallParams) -> None:
        await params.result_callback(result)

    model.register_function("tool", tool)
    async with voice(tmp_path, model, tools=True) as talk:
        await model.run_function_calls([call("1", "tool")])
        (stored,) = await talk.messages(1)
        assert stored.content == content
        assert stored.parts is not None
        assert stored.parts[1]["content"] == part


@pytest.mark.parametrize(
    ("result", "has_parts"), [([0] * 100_000, True), ([0] * 100_001, True), ("0" * (9 << 20), False)]
)
async def test_a_result_that_is_too_large_for_parts(tmp_path: Path, result: object, *, has_parts: bool) -> None:
    """It is text in its part, and if that is too large, too, in the content alone: it is recorded all the same."""
    model = Model()

    async def tool(params: FunctionCallParams) -> None:
        await params.result_callback(result)

    model.register_function("tool", tool)
    async with voice(tmp_path, model, tools=True) as talk:
        await model.run_function_calls([call("1", "tool")])
        (stored,) = await talk.messages(1)
        assert stored.content.count("0") >= 100_000
        assert (stored.parts is not None) is has_parts
        assert stored.parts is None or stored.parts[1]["content"] == stored.content


async def test_calls_with_an_id_that_comes_again(tmp_path: Path) -> None:
    """Some models number the calls of each reply anew."""
    model = Model()
    model.register_function("boiling_point", boiling_point)
    async with voice(tmp_path, model, tools=True) as talk:
        for count in range(1, 4):
            await model.run_function_calls([call("call_0", "boiling_point", height=0)])
            await talk.messages(count)


async def test_tools_are_stored_when_asked_for(tmp_path: Path) -> None:
    """And not otherwise."""
    model = Model()
    model.register_function("boiling_point", boiling_point)
    async with voice(tmp_path, model) as talk:
        await model.run_function_calls([call("1", "boiling_point", height=0)])
        await talk.pass_by()
        await talk.bot_says("One hundred degrees.")
        assert await talk.lines(1) == ["assistant: One hundred degrees."]


def call(id_: str, name: str, **arguments: object) -> FunctionCallFromLLM:
    """A call that a language model asks for."""
    return FunctionCallFromLLM(name, id_, arguments, LLMContext())


async def boiling_point(params: FunctionCallParams) -> None:
    """Return, after a report of progress, which is no result."""
    progress = FunctionCallResultProperties(is_final=False, run_llm=False)
    await params.result_callback("looking it up", properties=progress)
    await params.result_callback({"celsius": 88, "where": "Nuestra Señora"})


async def broken(_params: FunctionCallParams) -> None:
    """Fail."""
    raise RuntimeError("no such height")


async def slow(_params: FunctionCallParams) -> None:
    """Take until the end of the test."""
    await asyncio.Event().wait()


# --- realtime models -------------------------------------------------------------------------------------


async def test_speech_to_speech(tmp_path: Path) -> None:
    """A realtime model is not told of the user's words: they are stored when its reply ends at the latest."""
    async with voice(tmp_path, realtime=True) as talk:
        contents: list[str | None] = []
        talk.pair.user().add_event_handler(
            "on_user_turn_stopped", lambda _, __, stopped: contents.append(stopped.content)
        )
        began = time.time() - 1
        await talk.user_starts(at=began)
        await talk.user_stops("How hot?", at=began + 0.5)
        await talk.bot_says("Eighty degrees.")
        question, answer = await talk.messages(2)
        assert contents == [None]
        assert [line(question), line(answer)] == ["user: How hot?", "assistant: Eighty degrees."]
        assert speech(question) == pytest.approx((began, began + 0.5), abs=EXACT)


# --- what must not matter --------------------------------------------------------------------------------


async def test_a_frame_that_makes_no_sense_does_not_disturb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A time that is none is logged, without what was said, and the conversation goes on and is recorded."""
    async with voice(tmp_path) as talk:
        await talk.worker.queue_frame(VADUserStartedSpeakingFrame(timestamp=float("nan")))
        await talk.user_says("How hot should tea be?")
        await talk.bot_says("Eighty degrees.")
        assert await talk.lines(2) == ["user: How hot should tea be?", "assistant: Eighty degrees."]
    assert "a VADUserStartedSpeakingFrame was not understood" in caplog.text
    assert "tea" not in caplog.text


async def test_a_recorder_that_refuses_does_not_disturb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The conversation goes on; each message that is lost is in the log, without its words."""
    async with voice(tmp_path, max_bytes=1, when_full="raise") as talk:
        await talk.user_says("My secret is tea.")
        await talk.bot_says("A secret it is.")
        await talk.push(*words("Secret aside.", to_context=False), TTSStoppedFrame())
        await talk.user_says("Another secret.")
        await talk.messages(0)
        said: list[Any] = talk.pair.user().context.get_messages()
    assert [message["content"] for message in said] == ["My secret is tea.", "A secret it is.", "Another secret."]
    lost = [record for record in caplog.records if record.name == "chatkeep.integrations.pipecat"]
    assert len(lost) == 4
    assert "RecorderFull" in caplog.text
    assert "ecret" not in caplog.text


async def test_owner_and_conversation_are_checked_at_once(tmp_path: Path) -> None:
    """Mistakes show when the pipeline is built, not when somebody speaks."""
    async with voice(tmp_path) as talk:
        with pytest.raises(InvalidInput, match="owner"):
            attach(talk.pair, talk.recorder, owner="", conversation_id=talk.conversation_id)
        with pytest.raises(InvalidId):
            attach(talk.pair, talk.recorder, owner=OWNER, conversation_id="1")


async def test_a_pair_is_recorded_once_in_a_conversation(tmp_path: Path) -> None:
    """A second `attach` would store every message twice: it is refused, and changes nothing."""
    async with voice(tmp_path) as talk:
        for owner in (OWNER, "eve"):
            with pytest.raises(InvalidInput, match="call attach once"):
                attach(talk.pair, talk.recorder, owner=owner, conversation_id=talk.conversation_id)
        await talk.user_says("Tea, please.")
        await talk.bot_says("One moment.")
        assert await talk.lines(2) == ["user: Tea, please.", "assistant: One moment."]


def test_missing_pipecat_is_named() -> None:
    """Without the extra, the module can be imported, and attach says what to install."""
    program = (
        "import sys; sys.modules['pipecat'] = None\n"
        "from chatkeep.integrations.pipecat import attach\n"
        "attach((), None, owner='ada', conversation_id='0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "InvalidInput: voice conversations need pipecat: pip install 'chatkeep[pipecat]'" in done.stderr


def test_the_module_does_not_import_pipecat() -> None:
    """Importing it is cheap: Pipecat takes a second."""
    program = "import sys, chatkeep.integrations.pipecat; sys.exit('pipecat' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_the_example_runs(tmp_path: Path) -> None:
    """It prints the command that shows what it recorded, and that shows it."""
    (command,) = re.findall(r"^chatkeep (show .+)$", output_of(EXAMPLE, cwd=tmp_path), re.MULTILINE)
    shown = output_of("-m", "chatkeep", *command.split(), cwd=tmp_path)
    blocks = [block.splitlines() for block in shown.split("\n\n")[1:]]
    said = [(head.partition("  ")[0], text) for head, text in blocks]
    assert said[:3] == [("user", "Buy tea."), ("assistant", "Noted: Buy tea."), ("user", "Call Bob tomorrow at ten.")]
    assert said[3][0] == "assistant (interrupted)"
    assert "Noted: Call Bob tomorrow at ten.".startswith(said[3][1])
    assert said[4:] == [("user", "No, at eleven."), ("assistant", "Noted: No, at eleven.")]


def output_of(*command: str | Path, cwd: Path) -> str:
    """What a Python program prints."""
    done = subprocess.run([sys.executable, *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
