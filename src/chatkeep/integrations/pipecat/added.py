"""What is in the language model's context without having been spoken: typed text, files, the application's messages."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from chatkeep.integrations.pipecat.frames import Frames
from chatkeep.integrations.pipecat.outbox import Message, Outbox
from chatkeep.model import Role
from chatkeep.values import now

if TYPE_CHECKING:
    from pipecat.frames import frames as f
    from pipecat.processors.frameworks.rtvi.frames import RTVISendTextFrame

ANNOUNCEMENT_WAIT = 0.25
"""Longest time in seconds that a message of the user waits for the frame that says that the user typed it."""

ANNOUNCEMENT_AGE = timedelta(seconds=5)
"""Longest time for which such a frame waits for its message, which an interruption may have discarded."""

AT_ONCE = 1_024
"""Most texts that wait for their announcement, or the other way round."""

RECORDED_ROLES = {"user": Role.USER, "assistant": Role.ASSISTANT}
"""Not recorded: `system` and `developer`, by which the application instructs the model, and tool messages."""


@dataclass(slots=True)
class _Typed:
    text: str
    user_id: str | None
    at: datetime = field(default_factory=now)

    @property
    def metadata(self) -> dict[str, Any]:
        return {"typed": True, **({"user_id": self.user_id} if self.user_id else {})}


class Added:
    """Records messages that neither aggregator wrote.

    RTVI appends what a client typed like any other message, and announces it with a frame that may come before or
    after: it overtakes. A message of the user waits for that frame.
    """

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._announced: deque[_Typed] = deque(maxlen=AT_ONCE)
        self._waiting: deque[Message] = deque(maxlen=AT_ONCE)

    def listen(self, frames: Frames) -> None:
        """Take note of what is typed, from the user's aggregator."""
        from pipecat.frames import frames as f
        from pipecat.processors.frameworks.rtvi.frames import RTVISendTextFrame

        frames.before_received({RTVISendTextFrame: self._typed, f.InputTextRawFrame: self._typed_to_service})

    def take(self, message: Mapping[str, Any]) -> None:
        """Record a message of the context, unless it is the application's instructions or a tool's."""
        role = RECORDED_ROLES.get(message.get("role", ""))
        content = message.get("content")
        if role is None or not content:
            return
        if not isinstance(content, str):
            self._put_parts(role, content)
        elif not content.isspace():
            self._put_text(role, content)

    def _put_text(self, role: Role, text: str) -> None:
        message = Message(role, text, now(), metadata={"kind": "added"})
        typed = self._announcement(text) if role is Role.USER else None
        if typed is not None:
            self._announced.remove(typed)
            message.at, message.metadata = typed.at, typed.metadata
        elif role is Role.USER:
            message.is_incomplete = True
            self._waiting.append(message)
        self._outbox.put(message, longest_wait=ANNOUNCEMENT_WAIT)

    def _announcement(self, text: str) -> _Typed | None:
        oldest = now() - ANNOUNCEMENT_AGE
        return next((each for each in self._announced if each.text == text and each.at > oldest), None)

    def _typed(self, frame: "RTVISendTextFrame") -> None:
        typed = _Typed(frame.text, frame.user_id)
        for message in self._waiting:
            if message.is_incomplete and not message.is_overdue and message.content == typed.text:
                message.metadata, message.is_incomplete = typed.metadata, False
                self._outbox.settle()
                return
        self._announced.append(typed)

    def _typed_to_service(self, frame: "f.InputTextRawFrame") -> None:
        """Record a text that passes on to a realtime service, which does not write it to the context."""
        if frame.text and not frame.text.isspace():
            self._outbox.put(Message(Role.USER, frame.text, now(), metadata={"typed": True}))

    def _put_parts(self, role: Role, given: Any) -> None:
        known = [_part(each) for each in given]
        if None in known:
            self._outbox.note_once("parts of messages of the model's context that are neither text nor files")
        parts = [part for part in known if part]
        files = [part for part in parts if part["type"] == "file"]
        text = " ".join(part["text"] for part in parts if part["type"] == "text")
        if files:
            self._outbox.put(Message(role, text, now(), metadata={"kind": "file"}, parts=parts))
        elif text and not text.isspace():
            self._put_text(role, text)


def _part(given: object) -> dict[str, Any] | None:
    """Return a part of the context as one of a message; a file without its bytes. None for one of another type."""
    match given:
        case {"type": "text", "text": str(text)}:
            return {"type": "text", "text": text} if text else {}
        case {"type": "image_url", "image_url": {"url": str(url)}}:
            return _file(url, "", "")
        case {"type": "input_audio", "input_audio": {"data": str(data), "format": str(format_)}}:
            return _file(f"data:audio/{format_};base64,{data}", "", "")
        case {"type": "file_base64", "file": {"file_data": str(url), "filename": name, "mime_type": media_type}}:
            return _file(url, name, media_type)
        case {"type": "file_url", "file": {"url": str(url), "filename": name, "mime_type": media_type}}:
            return _file(url, name, media_type)
    return None


def _file(url: str, name: str, media_type: str) -> dict[str, Any]:
    """Return a part that names a file: by its address, or by its size if the context has the file itself."""
    part: dict[str, Any] = {"type": "file"}
    if url.startswith("data:"):
        comma = url.find(",")
        media_type = media_type or url[5:comma].partition(";")[0]
        part["size"] = (len(url) - comma - 1) * 3 // 4 - url.count("=", -2)
    else:
        part["url"] = url
    return {**part, **({"media_type": media_type} if media_type else {}), **({"name": name} if name else {})}
