"""Pipecat: what gets into the model's context unspoken is recorded once, in its place, or said not to be."""

import asyncio
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pipecat.frames.frames import (
    AudioRawFrame,
    BotStartedSpeakingFrame,
    Frame,
    InputTextRawFrame,
    LLMContextFrame,
    LLMContextSummaryRequestFrame,
    LLMContextSummaryResultFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMarkerFrame,
    LLMMessagesAppendFrame,
    LLMMessagesTransformFrame,
    LLMMessagesUpdateFrame,
    LLMRunFrame,
    LLMSummarizeContextFrame,
    LLMTextFrame,
    TranscriptionFrame,
    UserFileRawFrame,
    UserImageRawFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext, LLMSpecificMessage
from pipecat.processors.frame_processor import FrameDirection
from pipecat.processors.frameworks.rtvi.frames import RTVISendTextFrame
from pipecat_voice import OWNER, Stage, Voice, line, speech, voice, words

import chatkeep.integrations.pipecat.added


def said(role: str, text: object) -> Any:
    """A message of the model's context."""
    return {"role": role, "content": text}


def context_of(talk: Voice) -> list[Any]:
    """What the model is given; the list itself."""
    messages: list[Any] = talk.pair.user().context.get_messages()
    return messages


async def until_written(talk: Voice, text: str) -> None:
    """Wait until a text is in the model's context."""
    deadline = time.monotonic() + 20
    while said("user", text) not in context_of(talk):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


# --- typed text ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aloud", [True, False])
@pytest.mark.parametrize("run", [True, False])
async def test_typed_text_is_a_message_of_the_user(tmp_path: Path, *, run: bool, aloud: bool) -> None:
    """It stands where the model has it: behind what it interrupts, or before the reply during which it came."""
    async with voice(tmp_path, rtvi=True) as talk:
        await talk.user_says("Tell me a story.")
        await talk.bot_starts("Once upon")
        began = time.time()
        await talk.types("In French, please.", run=run, aloud=aloud)
        await until_written(talk, "In French, please.")
        ended = time.time()
        await talk.bot_says("a time")
        stored = await talk.messages(4 if run else 3)
        assert [line(message) for message in stored] == [
            "user: Tell me a story.",
            *(["assistant (interrupted): Once upon"] if run else []),
            "user: In French, please.",
            "assistant: a time" if run else "assistant: Once upon a time",
        ]
        assert [(each["role"], each["content"]) for each in context_of(talk)] == [
            (message.role, message.content) for message in stored
        ]
        (typed,) = (message for message in stored if message.metadata.get("typed"))
        assert (typed.content, typed.metadata) == ("In French, please.", {"typed": True})
        assert typed.sent_at is not None
        assert began <= typed.sent_at.timestamp() <= ended


@pytest.mark.parametrize("announced", ["before", "after", "never"])
async def test_a_text_is_typed_if_rtvi_says_so(tmp_path: Path, announced: str) -> None:
    """Its announcement may overtake it, or not; what comes without one is the application's."""
    async with voice(tmp_path) as talk:
        frames: list[Frame] = [LLMMessagesAppendFrame([said("user", "Hello.")], run_llm=False)]
        if announced != "never":
            frames.insert(announced == "after", RTVISendTextFrame("1", "Hello.", user_id="bob"))
        for frame in frames:
            await talk.worker.queue_frame(frame)
            await talk.pass_by()
        (stored,) = await talk.messages(1)
        assert line(stored) == "user: Hello."
        assert stored.metadata == ({"kind": "added"} if announced == "never" else {"typed": True, "user_id": "bob"})


async def test_many_texts_are_typed_at_once(tmp_path: Path) -> None:
    """A client sends what was typed while it was offline: each announcement overtakes all the texts."""
    async with voice(tmp_path, rtvi=True) as talk:
        for number in range(100):
            await talk.types(f"text {number}", run=False)
        stored = await talk.messages(100)
    assert [message.content for message in stored] == [f"text {number}" for number in range(100)]
    assert all(message.metadata.get("typed") for message in stored)


async def test_a_text_that_is_typed_again_is_not_the_lost_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interruption may discard what was announced; who types the same later is somebody else, at another time."""
    monkeypatch.setattr(chatkeep.integrations.pipecat.added, "ANNOUNCEMENT_AGE", timedelta(milliseconds=50))
    async with voice(tmp_path) as talk:
        await talk.worker.queue_frame(RTVISendTextFrame("1", "Hello.", user_id="bob"))
        await talk.pass_by()
        await asyncio.sleep(0.1)
        began = time.time()
        await talk.worker.queue_frame(LLMMessagesAppendFrame([said("user", "Hello.")], run_llm=False))
        await talk.worker.queue_frame(RTVISendTextFrame("2", "Hello.", user_id="eve"))
        (stored,) = await talk.messages(1)
    assert stored.metadata == {"typed": True, "user_id": "eve"}
    assert stored.sent_at is not None
    assert stored.sent_at.timestamp() >= began - 0.001


async def test_text_for_a_realtime_service_is_typed(tmp_path: Path) -> None:
    """It goes to the service and not into the context."""
    async with voice(tmp_path, realtime=True) as talk:
        await talk.worker.queue_frame(InputTextRawFrame("Hello."))
        (stored,) = await talk.messages(1)
        assert (line(stored), stored.metadata) == ("user: Hello.", {"typed": True})


# --- the application's messages --------------------------------------------------------------------------


async def test_every_message_that_is_added_is_recorded_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Frames and calls that add to the context; not what the application instructs the model with, nor its tools."""
    async with voice(tmp_path, tools=True, given=[said("system", "Be brief."), said("user", "Before.")]) as talk:
        context = talk.pair.user().context
        await talk.worker.queue_frame(
            LLMMessagesAppendFrame(
                [said("user", "1"), said("assistant", "2"), said("system", "-"), said("developer", "-")], run_llm=True
            )
        )
        await talk.pass_by()
        await talk.push(LLMMessagesAppendFrame([said("user", "3")], run_llm=False))  # the other aggregator gets it
        await talk.worker.queue_frame(LLMMessagesTransformFrame(lambda given: [*given, said("user", "4")]))
        await talk.pass_by()
        context.add_message(said("user", "5"))
        context.add_messages([said("assistant", "6"), {"role": "tool", "content": "-", "tool_call_id": "1"}])
        context.get_messages().append(said("user", "7"))
        await talk.worker.queue_frame(LLMRunFrame())
        await talk.pass_by()
        context.set_messages([dict(each) for each in context_of(talk)] + [said("user", "8")])
        await talk.user_says("9")
        context.add_message(said("user", " "))
        context.add_message({"role": "assistant", "tool_calls": [{"id": "1"}]})
        context.add_message(LLMSpecificMessage(llm="any", message={"text": "-"}))
        context.add_message(said("user", "10"))
        await talk.worker.cancel()
        stored = await talk.messages(10)
        assert [message.content for message in stored] == [str(number) for number in range(1, 11)]
        assert [message.role for message in stored if message.content in "26"] == ["assistant"] * 2
        assert [message.content for message in stored if message.metadata.get("kind") != "added"] == ["9"]
    logged = [record.getMessage() for record in caplog.records if record.name == "chatkeep.integrations.pipecat"]
    assert [text.partition(": ")[2] for text in logged] == []  # a service's own format is at level INFO


async def test_what_replaces_the_context_is_not_recorded_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor is what it begins with. What follows the last known message in a replacement is new."""
    history = [said("user", "Yesterday."), said("assistant", "I remember.")]
    async with voice(tmp_path) as talk:
        await talk.worker.queue_frame(LLMMessagesUpdateFrame(history, run_llm=True))
        await talk.pass_by()
        await talk.user_says("And today?")
        newest = context_of(talk)[-1]
        await talk.worker.queue_frame(LLMMessagesUpdateFrame([history[0], newest, said("user", "New.")], run_llm=True))
        await talk.pass_by()
        assert await talk.lines(2) == ["user: And today?", "user: New."]
        for _ in range(2):
            await talk.worker.queue_frame(LLMMessagesUpdateFrame([said("user", "Something else.")]))
            await talk.pass_by()
        await talk.worker.queue_frame(LLMMessagesUpdateFrame([]))
        await talk.pass_by()
        await talk.user_says("Good bye.")
        assert (await talk.lines(3))[2] == "user: Good bye."
    logged = [record.getMessage() for record in caplog.records if record.name == "chatkeep.integrations.pipecat"]
    assert len(logged) == 1
    assert "replaced the model's context" in logged[0]
    assert "Something" not in caplog.text


class Summary(Stage):
    """Where a model would summarise the first two messages."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Summarise."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextSummaryRequestFrame):
            await self.push_frame(LLMContextSummaryResultFrame(frame.request_id, "They spoke of tea.", 1))


async def test_a_summary_is_not_recorded(tmp_path: Path) -> None:
    """It stands in the context for messages that are recorded already."""
    async with voice(tmp_path, Summary()) as talk:
        for number in range(3):
            await talk.user_says(f"question {number}")
            await talk.bot_says(f"answer {number}")
        await talk.push(LLMSummarizeContextFrame())
        await talk.pass_by()
        assert "They spoke of tea." in context_of(talk)[0]["content"]
        await talk.user_says("question 3")
        contents = [message.content for message in await talk.messages(7)]
        assert contents == [f"{what} {number}" for number in range(3) for what in ("question", "answer")] + [
            "question 3"
        ]


async def test_a_context_of_another_processor_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, and without its words: what is said in it cannot be told from what was said before."""
    async with voice(tmp_path) as talk:
        for _ in range(2):
            await talk.worker.queue_frame(LLMContextFrame(LLMContext([said("user", "Secret.")])))
        await talk.worker.queue_frame(LLMContextFrame(LLMContext(), speculation=True))
        await talk.user_says("Hello.")
        assert await talk.lines(1) == ["user: Hello."]
    assert caplog.text.count("another processor") == 1
    assert "Secret" not in caplog.text


async def test_what_is_said_after_the_context_was_cut_is_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An application may replace the context between two turns, and a service removes a file that it cannot read."""
    async with voice(tmp_path, given=[said("system", "Be brief.")]) as talk:
        context = talk.pair.user().context
        await talk.user_says("Look at this.")
        await talk.push(picture())
        assert context.remove_invalid_file_message()
        await talk.user_says("What is it?")
        await talk.bot_says("I could not see it.")
        assert caplog.text == ""
        context.set_messages([said("system", "Be polite.")])
        await talk.user_says("And now?")
        context.set_messages([said("system", "Be gone.")])
        await talk.bot_says("Neither.")
        context.set_messages([said("system", "Be back.")])
        await talk.worker.queue_frame(LLMMessagesAppendFrame([said("user", "Good bye.")]))
        await talk.pass_by()
        assert await talk.lines(7) == [
            "user: Look at this.",
            "user: ",
            "user: What is it?",
            "assistant: I could not see it.",
            "user: And now?",
            "assistant: Neither.",
            "user: Good bye.",
        ]


async def test_what_is_added_is_not_what_is_said_next(tmp_path: Path) -> None:
    """The application may add the very words that are spoken then."""
    async with voice(tmp_path) as talk:
        context = talk.pair.user().context
        context.add_message(said("user", "Yes."))
        await talk.user_says("Yes.")
        context.add_message(said("assistant", "No."))
        await talk.bot_says("No.")
        stored = await talk.messages(4)
    assert [line(message) for message in stored] == ["user: Yes."] * 2 + ["assistant: No."] * 2
    assert ["speech" in message.metadata for message in stored] == [False, True] * 2


# --- files -----------------------------------------------------------------------------------------------


async def test_files_and_images_are_described(tmp_path: Path) -> None:
    """A message has their type, size, name or address, not their bytes; and loses nothing of the reply around it."""
    async with voice(tmp_path) as talk:
        await talk.bot_starts("Show me")
        pdf = "application/pdf"
        file = UserFileRawFrame(file=f"data:{pdf};base64,AAAA", type="bytes", filename="a.pdf", format=pdf)
        file.text, file.append_to_context, file.run_llm = "This one.", True, False
        await talk.push(file)
        await talk.push(*words("that file."))
        await talk.bot_stops()
        await talk.push(picture())
        context = talk.pair.user().context
        context.add_message(LLMContext.create_file_url_message(format="image/png", url="https://example.org/a.png"))
        await context.add_audio_frames_message(audio_frames=[AudioRawFrame(b"\0\0", 16_000, 1)])
        await talk.worker.queue_frame(LLMRunFrame())
        await talk.pass_by()
        stored = await talk.messages(6)
    assert [line(message) for message in stored] == [
        "assistant: Show me",
        "user: This one.",
        "assistant: that file.",
        "user: ",
        "user: ",
        "user: Audio follows",
    ]
    files = [message for message in stored if message.metadata.get("kind") == "file"]
    assert [message.parts[-1] for message in files if message.parts] == [
        {"type": "file", "media_type": "application/pdf", "size": 3, "name": "a.pdf"},
        {"type": "file", "media_type": "image/jpeg", "size": 5},
        {"type": "file", "media_type": "image/png", "url": "https://example.org/a.png"},
        {"type": "file", "media_type": "audio/wav", "size": 46},
    ]


def picture() -> UserImageRawFrame:
    """A picture from the user's camera, for the model."""
    image = UserImageRawFrame(image=b"12345", size=(1, 1), format="image/jpeg")
    image.append_to_context = True
    return image


@pytest.mark.parametrize(
    "known", [{"type": "text", "text": "Look."}, {"type": "image_url", "image_url": {"url": "https://example.org/a"}}]
)
async def test_a_part_that_is_not_recorded_is_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, known: dict[str, Any]
) -> None:
    """Also beside others that are."""
    video = {"type": "video_url", "video_url": {"url": "https://example.org/secret"}}
    async with voice(tmp_path) as talk:
        await talk.worker.queue_frame(LLMMessagesAppendFrame([said("user", [{"type": "text", "text": ""}, known])]))
        await talk.pass_by()
        assert caplog.text == ""
        await talk.worker.queue_frame(LLMMessagesAppendFrame([said("user", [known, video])]))
        await talk.messages(2)
    assert caplog.text.count("neither text nor files") == 1
    assert "secret" not in caplog.text


# --- replies ---------------------------------------------------------------------------------------------


async def test_replies_that_are_not_spoken_are_recorded(tmp_path: Path) -> None:
    """A text that skips speech synthesis, and without the markers by which turns are completed."""
    async with voice(tmp_path) as talk:
        await talk.push(LLMMarkerFrame("○"))
        await talk.push(LLMFullResponseStartFrame(), LLMMarkerFrame("●", append_to_context_immediately=False))
        await talk.push(LLMTextFrame(" Read "), LLMTextFrame("this."), LLMFullResponseEndFrame())
        assert await talk.lines(1) == ["assistant: Read this."]


async def test_a_reply_without_the_frame_of_its_turn_is_recorded(tmp_path: Path) -> None:
    """What the aggregator writes outside of a turn has no event in Pipecat, and is recorded after a second."""
    async with voice(tmp_path) as talk:
        await talk.push(*words("Nobody asked."))
        await talk.pair.assistant().push_aggregation()
        await talk.user_says("Indeed.")
        assert await talk.lines(2) == ["assistant: Nobody asked.", "user: Indeed."]


async def test_a_late_transcript_stands_after_the_answer(tmp_path: Path) -> None:
    """A realtime model hears before it is transcribed: the order is the context's, `sent_at` is when it was said."""
    async with voice(tmp_path, realtime=True) as talk:
        began = time.time() - 5
        await talk.user_starts(at=began)
        await talk.user_stops("", at=began + 1)
        await talk.bot_says("Eighty degrees.")
        await talk.worker.queue_frame(TranscriptionFrame("How hot?", OWNER, ""))
        await talk.pass_by()
        await talk.push(LLMFullResponseStartFrame(), BotStartedSpeakingFrame(), *words("Anything else?"))
        await talk.bot_stops()
        answer, question, _ = await talk.messages(3)
        assert [line(answer), line(question)] == ["assistant: Eighty degrees.", "user: How hot?"]
        assert speech(question) == pytest.approx((began, began + 1), abs=1e-5)
        assert question.sent_at is not None
        assert answer.sent_at is not None
        assert question.sent_at < answer.sent_at


async def test_a_message_that_makes_no_sense_does_not_disturb(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged; those behind it are recorded."""
    async with voice(tmp_path) as talk:
        strange: list[Any] = [said("user", [["text"]]), {"role": ["user"]}, said("user", [{"type": "video"}])]
        await talk.worker.queue_frame(LLMMessagesAppendFrame([*strange, said("user", "Hello.")]))
        await talk.pass_by()
        assert await talk.lines(1) == ["user: Hello."]
    assert "neither text nor files" in caplog.text
    assert "was not understood" in caplog.text
