"""What is new in the language model's context."""

import logging
import operator
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from chatkeep.integrations.pipecat.frames import Frames
from chatkeep.integrations.pipecat.outbox import Outbox
from chatkeep.recorder.log import say

if TYPE_CHECKING:
    from pipecat.frames import frames as f
    from pipecat.processors.aggregators.llm_context import LLMContext

logger = logging.getLogger(__package__)

REPLACED = "messages that replaced the model's context: only what follows the last known message is new"
FOREIGN = "the context of a frame that another processor pushed: it is not the one of the aggregators"

SPOKEN_ROLES = frozenset({"user", "assistant"})


class ContextReader:
    """Passes each message that is new in the context to a handler, once, and in the order of the context.

    A context has no events, and anybody may change it. The reader looks at its end whenever an aggregator writes to it
    or has the model read it. What the context has before the reader is made is not new, and neither is what replaces
    it, except what follows the last message that is known.
    """

    def __init__(self, context: "LLMContext", outbox: Outbox, added: Callable[[Mapping[str, Any]], None]) -> None:
        self.spoken: dict[str, Callable[[object], bool]] = {}
        """By role: takes the content of a new message, and returns whether the role's aggregator wrote it."""
        self._context = context
        self._outbox = outbox
        self._added = added
        self._replacing = False
        self._seen_up_to(context.get_messages())

    def listen(self, frames: Frames) -> None:
        """Look before and after an aggregator changes the context, and whenever it has the model read it.

        Before, too: else what it writes would not be told from what others did to the context since the last look.
        """
        from pipecat.frames import frames as f

        kinds = (
            f.LLMMessagesAppendFrame,
            f.LLMMessagesUpdateFrame,
            f.LLMMessagesTransformFrame,
            f.UserImageRawFrame,
            f.UserFileRawFrame,
            f.AssistantImageRawFrame,
        )
        frames.before_received(
            {**dict.fromkeys(kinds, self._changes), f.LLMMessagesUpdateFrame: self._replacement_received}
        )
        frames.after_received(dict.fromkeys(kinds, self._changed))
        frames.before_sent({f.LLMContextFrame: self._read_by_model})
        frames.before_written(self._changes)

    def look(self) -> None:
        """Pass on what is new."""
        messages = self._context.get_messages()
        start = self._first_new(messages)
        if start is None:
            if any(isinstance(each, Mapping) and each.get("role") in SPOKEN_ROLES for each in messages):
                self._outbox.note_once(REPLACED)
            start = len(messages)
        new = messages[start:]
        self._replacing = self._replacing and not messages
        self._seen_up_to(messages)
        for message in new:
            self._take(message)

    def _changes(self, _cause: object) -> None:
        self.look()

    def _replacement_received(self, _frame: "f.LLMMessagesUpdateFrame") -> None:
        self.look()
        self._replacing = True

    def _changed(self, _frame: "f.Frame") -> None:
        self.look()
        self._replacing = False

    def _read_by_model(self, frame: "f.LLMContextFrame") -> None:
        if frame.context is self._context:
            self.look()
        elif not frame.speculation:  # that is a copy, of which nothing is said yet
            self._outbox.note_once(FOREIGN)

    def _seen_up_to(self, messages: list[Any]) -> None:
        self._known = messages[:]

    def _first_new(self, messages: list[Any]) -> int | None:
        """Return the index after the last known message, None if that is gone."""
        known, count = self._known, len(self._known)
        if not known:
            return None if self._replacing else 0
        last = known[-1]
        for same in (operator.is_, operator.eq):  # eq: of an application that made the messages anew
            if len(messages) >= count and same(messages[count - 1], last):
                return count
            for index in reversed(range(len(messages))):
                if same(messages[index], last):
                    return index + 1
        # Services remove a file that the model refuses: nothing is new then.
        return len(messages) if all(map(operator.is_, messages, known)) else None

    def _take(self, message: Any) -> None:
        """Pass a message on. Its errors are logged: those behind it are recorded all the same."""
        try:
            if not isinstance(message, Mapping):
                self._outbox.note_once("messages in a service's own format", logging.INFO)
                return
            spoken = self.spoken.get(message.get("role", ""))
            if spoken is None or not spoken(message.get("content")):
                self._added(message)
        except Exception as error:  # noqa: BLE001 - whatever it is
            say(logger, logging.ERROR, "a message of the model's context was not understood", error=error)
