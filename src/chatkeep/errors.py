"""Everything that chatkeep raises on purpose.

    ChatkeepError
    ├── InvalidId (ValueError)      an id is not a UUID
    ├── InvalidInput (ValueError)   anything else the caller got wrong
    ├── Conflict                    same id with other content, or expected_seq missed
    ├── NotFound                    there is no such thing
    ├── NotYours                    it exists and belongs to another owner
    ├── Unauthenticated             it is not known for whom a request acts
    ├── SchemaMismatch              the database's schema is not the one this version works with
    ├── UnsafeDatabase              the database is set up so that it could lose what it acknowledged
    ├── StoreUnavailable            the database cannot be used now; repeating the call later is safe
    ├── RecorderFull                a recorder holds as much as it may, and was told to say so
    └── JournalInUse                another recorder uses the journal

A record that is built from bad values raises pydantic's ValidationError, which is a ValueError too.
"""


class ChatkeepError(Exception):
    """An error of chatkeep.

    `detail` is the sentence without any value in it: it can be shown to a stranger. `str(error)` also
    names the value that was wrong.
    """

    def __init__(self, detail: str, *, got: object = None) -> None:
        self.detail = detail
        self.got = got
        super().__init__(detail)

    def __str__(self) -> str:
        return self.detail if self.got is None else f"{self.detail} (got {str(self.got)!r})"


class InvalidId(ChatkeepError, ValueError):
    """An id is not a UUID."""


class InvalidInput(ChatkeepError, ValueError):
    """An argument is outside what its contract allows."""


class Conflict(ChatkeepError):
    """The same id was used with other content, or the conversation is not where the caller expected it."""


class NotFound(ChatkeepError):
    """There is no such conversation or message."""


class NotYours(ChatkeepError):
    """The conversation exists and belongs to another owner."""


class Unauthenticated(ChatkeepError):
    """It is not known for whom a request acts: its token or API key is missing, or not valid."""


class SchemaMismatch(ChatkeepError):
    """The database's schema is not the one that this version of chatkeep works with."""


class UnsafeDatabase(ChatkeepError):
    """The database is set up so that it could lose, or half store, what it acknowledged; it is not used."""


class StoreUnavailable(ChatkeepError):
    """The database cannot be used at the moment. Every call is safe to repeat with the same ids."""


class RecorderFull(ChatkeepError):
    """A recorder holds as many messages as it may that the store has not acknowledged."""


class JournalInUse(ChatkeepError):
    """Another recorder, of this process or another one, uses the journal."""
