"""Records what an application logs as the messages of conversations.

logging.getLogger("agent").addHandler(ConversationHandler(recorder, owner="ada"))
log.info("Eighty degrees.", extra={"conversation": conversation.id, "role": "assistant"})
"""

import logging
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from chatkeep.recorder import Recorder

OWN_LOGGERS = "chatkeep"
"""The loggers whose records are never messages: a recorder logs what it cannot record."""


class ConversationHandler(logging.Handler):
    """Records the log records that have a conversation and a role, and ignores all others.

    recorder: takes the messages.
    owner: whose conversations these are, for records that do not say so.
    level: the lowest level that is recorded.

    Of a record's `extra`,

    - `conversation` is the id of the conversation, `role` is `user`, `assistant`, `system` or `tool`
    - `owner` is the owner of the conversation, if it is another one than the handler's
    - `metadata` is added to the message's, which has the names of the `logger` and the `level`

    The content is the record's message, or what the handler's formatter makes of it; `sent_at` is when it was logged.

    A record that cannot be recorded goes to `handleError`, as with every handler: it is printed to stderr unless
    `logging.raiseExceptions` is false. Nothing is raised to the code that logs. Thread-safe; never blocks.
    """

    def __init__(self, recorder: "Recorder", *, owner: str | None = None, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self._recorder = recorder
        self._owner = owner

    def handle(self, record: logging.LogRecord) -> bool:
        """Record a message, and return whether this was one. Whatever goes wrong goes to `handleError`.

        Unlike other handlers it takes no lock: a recorder is thread-safe, and one thread may log in the recorder while
        another waits for it.
        """
        if _is_own(record):
            return False
        try:
            kept = self.filter(record)  # first: it may be what gives records their conversation
            message = kept if isinstance(kept, logging.LogRecord) else record
            is_message = bool(kept) and _is_message(message)
            if is_message:
                self.emit(message)
        except Exception:  # noqa: BLE001 - code that logs does not expect errors
            # It prints the arguments, whose text may be what failed, to a stderr that may be closed.
            with suppress(Exception):
                self.handleError(record)
            return False
        return is_message

    def emit(self, record: logging.LogRecord) -> None:
        """Record a message. Raises what the recorder raises."""
        given = vars(record)
        owner: Any = given.get("owner")
        if owner is None:
            owner = self._owner
        self._recorder.record(
            owner,
            given["conversation"],
            given["role"],
            self.format(record) if self.formatter else record.getMessage(),
            sent_at=datetime.fromtimestamp(record.created, UTC),
            metadata={"logger": record.name, "level": record.levelname, **(given.get("metadata") or {})},
        )


def _is_own(record: logging.LogRecord) -> bool:
    """Return whether chatkeep itself logs this."""
    return str(record.name).partition(".")[0] == OWN_LOGGERS


def _is_message(record: logging.LogRecord) -> bool:
    """Return whether a record has a conversation and a role."""
    given = vars(record)
    return given.get("conversation") is not None and given.get("role") is not None
