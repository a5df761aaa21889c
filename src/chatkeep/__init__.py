"""A conversation store for AI applications.

from chatkeep import NewConversation, NewMessage, open_store

async with open_store("sqlite:///chat.db") as store:
    conversation = await store.create_conversation("ada", NewConversation(title="Tea"))
    await store.append("ada", conversation.id, [NewMessage(role="user", content="How hot?")])
    page = await store.history("ada", conversation.id)
"""

from chatkeep.errors import (
    ChatkeepError,
    Conflict,
    InvalidId,
    InvalidInput,
    JournalInUse,
    NotFound,
    NotYours,
    RecorderFull,
    SchemaMismatch,
    StoreUnavailable,
    TooManyTurns,
    TurnInProgress,
    TurnLost,
    Unauthenticated,
    UnsafeDatabase,
)
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ErasureReceipt,
    ImportedConversation,
    ImportedMessage,
    ImportReceipt,
    Message,
    MessageChange,
    NewConversation,
    NewMessage,
    Page,
    Role,
    RunningAnswer,
    SearchHit,
    Source,
    Status,
)
from chatkeep.options import StoreOptions
from chatkeep.recorder import DeadLetter, Recorder, RecorderStats, recording
from chatkeep.store import Store, open_store

__version__ = "0.1.0"

__all__ = [
    "ChatkeepError",
    "Conflict",
    "Conversation",
    "ConversationChange",
    "DeadLetter",
    "ErasureReceipt",
    "ImportReceipt",
    "ImportedConversation",
    "ImportedMessage",
    "InvalidId",
    "InvalidInput",
    "JournalInUse",
    "Message",
    "MessageChange",
    "NewConversation",
    "NewMessage",
    "NotFound",
    "NotYours",
    "Page",
    "Recorder",
    "RecorderFull",
    "RecorderStats",
    "Role",
    "RunningAnswer",
    "SchemaMismatch",
    "SearchHit",
    "Source",
    "Status",
    "Store",
    "StoreOptions",
    "StoreUnavailable",
    "TooManyTurns",
    "TurnInProgress",
    "TurnLost",
    "Unauthenticated",
    "UnsafeDatabase",
    "open_store",
    "recording",
]
