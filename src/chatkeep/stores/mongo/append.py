"""The fast paths of appends on MongoDB: one message for the end of a conversation, alone or in a batch."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple, cast
from uuid import UUID

from pymongo.errors import BulkWriteError

from chatkeep.errors import Conflict
from chatkeep.model import Message, NewMessage, Role
from chatkeep.stores.append import Placed, State, plan
from chatkeep.stores.mongo.database import Document, View
from chatkeep.stores.mongo.documents import (
    MESSAGE,
    STATE,
    conversation_id,
    message_id,
    micros,
    new_message,
    saved,
    to_binary,
    to_message,
    to_uuid,
    uuid_or_none,
)
from chatkeep.stores.rows import Key
from chatkeep.tree import Run, Tree
from chatkeep.values import from_micros, now

BEFORE = {"_id": 0, "last_seq": 1, "head_id": 1}
STATES = STATE | {"_id": 1, "straight": 1}
MESSAGES = MESSAGE | {"_id": 1, "fingerprint": 1}
del MESSAGES["_id.m"]


class Item(NamedTuple):
    """An append on the fast path, on its way into a batch."""

    key: Key
    message: NewMessage
    """With an id."""
    fingerprint: bytes
    may_repeat: bool
    """Whether the caller gave the id, so that the conversation may have the message."""

    @property
    def place(self) -> tuple[Key, UUID]:
        """What the message is known by."""
        assert self.message.id is not None  # noqa: S101 - the store gave it one
        return self.key, self.message.id


async def append_batch(view: View, items: Sequence[Item], *, search: bool) -> list[object]:
    """Append in one transaction; each item's message or Conflict, None if it needs a transaction of its own."""
    if len(items) == 1:
        stored = await _append_alone(view, items[0], search=search)
        if stored is not None:
            return [stored]
    conversations = await _conversations(view, {item.key for item in items})
    brought = {item.place for item in items if item.may_repeat}
    known = await _messages(view, brought) if brought else {}
    batch = _Batch(conversations, known)
    outcomes: list[object] = [batch.outcome(item) for item in items]
    if batch.new:
        await _save(view, batch, search=search)
    return outcomes


async def _save(view: View, batch: "_Batch", *, search: bool) -> None:
    """Write the batch. The updates are a command as it stands, which bulk_write takes a third longer to make.

    The messages are not: they may be more than fits into one.
    """
    updates = [{"q": view.one(id_["o"], id_), "u": change} for id_, change in batch.changes()]
    command = {"update": view.conversations.name, "updates": updates}
    reply = await view.database.command(command, session=view.session)
    if reply.get("writeErrors"):
        raise BulkWriteError(reply)
    documents = [new_message(key, placed, index=search) for key, placed in batch.new]
    await view.messages.insert_many(documents, session=view.session)


async def _append_alone(view: View, item: Item, *, search: bool) -> Message | None:
    """Append one message to a conversation that never branched, in two operations; None if it did branch.

    The write comes first, so that a write conflict shows at once.
    """
    moment = now()
    where = view.one(item.key[0], conversation_id(item.key)) | {
        "deleted_at": None,
        "straight": True,
        "last_seq": {"$gte": 1},
    }
    if item.message.role is Role.USER:
        where["title"] = {"$ne": None}
    change = {
        "$inc": {"last_seq": 1, "head_seq": 1},
        "$set": {"head_id": to_binary(item.place[1])},
        "$max": {"updated_at": micros(moment)},
    }
    before = await view.conversations.find_one_and_update(where, change, BEFORE, session=view.session)
    if before is None:
        return None
    tree = Tree(before["last_seq"], [Run(-1, 0, 1, before["last_seq"], before["last_seq"])])
    state = State(tree, tree.find(tree.last_seq), uuid_or_none(before["head_id"]), "", moment)
    (placed,) = plan(item.key[1], state, [item.message], [item.fingerprint], {}, moment)
    assert isinstance(placed, Placed)  # noqa: S101 - nothing was known
    await view.messages.insert_one(new_message(item.key, placed, index=search), session=view.session)
    return placed.message


async def _conversations(view: View, keys: Collection[Key]) -> dict[Key, Document]:
    """Those of the conversations that exist, of any number of owners."""
    where = view.some(conversation_id(key) for key in keys)
    found = await view.conversations.find(where, STATES, session=view.session).to_list()
    return {_key_of(each): each for each in found if not each.get("deleted_at")}


async def _messages(view: View, places: Collection[tuple[Key, UUID]]) -> dict[tuple[Key, UUID], Document]:
    """Those of the messages that exist, of any number of conversations."""
    where = view.some(message_id(*place) for place in places)
    found = await view.messages.find(where, MESSAGES, session=view.session).to_list()
    return {(_key_of(each), to_uuid(each["_id"]["m"])): each for each in found}


def _key_of(document: Document) -> Key:
    """The conversation that a document is of."""
    return document["_id"]["o"], to_uuid(document["_id"]["c"])


class _Conversation:
    """A conversation of a batch: what is known of it, and whether the batch changed it."""

    __slots__ = ("before", "changed", "state")

    def __init__(self, before: Document) -> None:
        self.before = before
        self.state = _known_state(before)
        self.changed = False


class _Batch:
    """The outcome of a batch of appends, item by item. Keys are looked up once: hashing a UUID is slow."""

    def __init__(self, conversations: Mapping[Key, Document], known: Mapping[tuple[Key, UUID], Document]) -> None:
        self._conversations = {key: _Conversation(row) for key, row in conversations.items()}
        self._known = known
        self._brought: dict[tuple[Key, UUID], Placed] = {}
        self._moment = now()
        self.new: list[tuple[Key, Placed]] = []

    def changes(self) -> list[tuple[Document, Document]]:
        """The `_id` and the change of each conversation with new messages."""
        changed = [each for each in self._conversations.values() if each.changed]
        return [(each.before["_id"], saved(each.state, each.before)) for each in changed if each.state is not None]

    def outcome(self, item: Item) -> Message | Conflict | None:
        """The stored message or Conflict; None if the item needs a transaction of its own."""
        conversation = self._conversations.get(item.key)
        if conversation is None:
            return None
        if item.may_repeat and (found := self._found(item)) is not None:
            return found
        if conversation.state is None:
            return None
        return self._add(conversation, item)

    def _found(self, item: Item) -> Message | Conflict | None:
        """The message with the item's id, if the conversation or the batch has one."""
        place = item.place
        there, placed = self._known.get(place), self._brought.get(place)
        if there is None and placed is None:
            return None
        known = placed.fingerprint if placed else cast("Document", there)["fingerprint"]
        if known != item.fingerprint:
            return Conflict("this message id is already used for other content", got=item.message.id)
        return placed.message if placed else to_message(item.key[1], cast("Document", there))

    def _add(self, conversation: _Conversation, item: Item) -> Message:
        state = cast("State", conversation.state)
        (placed,) = plan(item.key[1], state, [item.message], [item.fingerprint], {}, self._moment)
        assert isinstance(placed, Placed)  # noqa: S101 - nothing was known
        conversation.changed = True
        self.new.append((item.key, placed))
        if item.may_repeat:
            self._brought[item.place] = placed
        return placed.message


def _known_state(found: Document) -> State | None:
    """The state of a conversation if its head's position is known, so that nothing else need be read."""
    tree = Tree.load(found["last_seq"], found["runs"])
    head = None if found["head_seq"] is None else tree.find(found["head_seq"])
    if head is None and found["head_seq"] is not None:
        return None
    return State(tree, head, uuid_or_none(found["head_id"]), found["title"], from_micros(found["updated_at"]))
