"""The errors that chatkeep raises.

    ChatkeepError
    ├── InvalidId (ValueError)      an id is not a UUID
    ├── InvalidInput (ValueError)   another argument is invalid
    ├── Conflict                    same id with other content, or another expected_seq
    │   └── TurnInProgress          the conversation is being answered
    ├── TooManyTurns                the owner has as many answers in progress as one may have
    ├── ProjectFull                 the project has as many documents or chunks as it may have
    ├── TurnLost                    another process has ended this turn, or its conversation is gone
    ├── NotFound                    no such conversation or message
    ├── NotYours                    the conversation belongs to another owner
    ├── Unauthenticated             no valid token or API key
    ├── SchemaMismatch              this version does not support the database's schema
    ├── UnsafeDatabase              the database's settings risk acknowledged writes
    ├── StoreUnavailable            the database is unavailable; retrying the call is safe
    ├── RecorderFull                the recorder has reached max_bytes, and when_full is `raise`
    └── JournalInUse                another recorder uses the journal

The constructor of a record raises InvalidInput; pydantic's own `model_validate` raises its ValidationError.
Both are ValueErrors.
"""

from uuid import UUID


class ChatkeepError(Exception):
    """Base class of chatkeep's errors.

    `detail` is the message without values, and safe to show to anyone. `str(error)` adds the invalid value.
    """

    def __init__(self, detail: str, *, got: object = None) -> None:
        self.detail = detail
        self.got = got
        super().__init__(detail)

    def __str__(self) -> str:
        return self.detail if self.got is None else f"{self.detail} (got {_shown(self.got)!r})"


def _shown(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001 - the error is told all the same
        return type(value).__name__


class InvalidId(ChatkeepError, ValueError):
    """An id is not a UUID."""


class InvalidInput(ChatkeepError, ValueError):
    """An argument is outside its contract."""


class Conflict(ChatkeepError):
    """The id is in use with other content, or `last_seq` is not the `expected_seq`."""


class TurnInProgress(Conflict):
    """The conversation is being answered; `message_id` is the answer."""

    def __init__(self, message_id: UUID) -> None:
        super().__init__("the conversation is being answered; wait for the end of the answer, or stop it")
        self.message_id = message_id


class TooManyTurns(ChatkeepError):
    """The owner has as many answers in progress as one may have."""


class ProjectFull(ChatkeepError):
    """The project has as many documents or chunks as it may have."""


class TurnLost(ChatkeepError):
    """The turn has ended, in another process or with its conversation: whoever makes its answer stops."""


class NotFound(ChatkeepError):
    """There is no such conversation or message."""


class NotYours(ChatkeepError):
    """The conversation exists and belongs to another owner."""


class Unauthenticated(ChatkeepError):
    """The token or API key of a request is missing or invalid."""


class SchemaMismatch(ChatkeepError):
    """This version of chatkeep does not support the database's schema."""


class UnsafeDatabase(ChatkeepError):
    """With its settings the database could lose acknowledged writes, or store half of them; it is not used."""


class StoreUnavailable(ChatkeepError):
    """The database is unavailable. Every call is safe to retry with the same ids."""


class RecorderFull(ChatkeepError):
    """The recorder has reached the limit of messages that the store has not acknowledged."""


class JournalInUse(ChatkeepError):
    """Another recorder, in this process or another one, uses the journal."""
