"""Removing conversations from MongoDB in slices, and giving them to another owner."""

from typing import NamedTuple
from uuid import UUID

from pymongo import ASCENDING

from chatkeep.stores.mongo.database import Document, View
from chatkeep.stores.mongo.rows import Key, conversation_filter, message_filter, message_id, micros
from chatkeep.values import now

SLICE = 5_000
"""Messages that are removed at once at most, so that nobody waits long for it."""


# --- removing --------------------------------------------------------------------------------------------


async def owners_with_remains(view: View) -> list[str]:
    """Owners of conversations that were being removed when the process ended."""
    found = await view.conversations.find({"deleted_at": {"$gt": 0}}, {"owner_id": 1}).to_list()
    return sorted({each["owner_id"] for each in found})


def _hidden() -> Document:
    return {"$set": {"deleted_at": micros(now())}, "$unset": {"slot": ""}}


async def hide(view: View, key: Key) -> bool:
    """Make a conversation invisible; its messages are removed next. Say whether there was one."""
    return (await view.conversations.update_one(conversation_filter(key), _hidden())).modified_count == 1


async def hide_all(view: View, owner: str) -> None:
    """Make all conversations of an owner invisible."""
    await view.conversations.update_many({"owner_id": owner, "deleted_at": None}, _hidden())


class Removed(NamedTuple):
    """What a slice of removing took away."""

    conversations: int = 0
    messages: int = 0
    indexed: int = 0


async def purge_slice(view: View, owner: str) -> Removed | None:
    """Remove some of an owner's hidden documents, a conversation after its messages; None when there are none."""
    where = {"owner_id": owner, "deleted_at": {"$gt": 0}}
    found = await view.conversations.find_one(where, {"id": 1})
    if found is None:
        return None
    key = owner, found["id"]
    last = await view.messages.find(
        message_filter(key), {"seq": 1}, sort=[("seq", ASCENDING)], limit=1, skip=SLICE - 1
    ).to_list()
    upto = message_filter(key, **({"seq": {"$lte": last[0]["seq"]}} if last else {}))
    indexed = await view.messages.count_documents({**upto, "words": {"$exists": True}, "content": {"$ne": ""}})
    gone = (await view.messages.delete_many(upto)).deleted_count
    if last:
        return Removed(0, gone, indexed)
    removed = await view.conversations.delete_one({"_id": found["_id"], **where})
    return Removed(removed.deleted_count, gone, indexed)


async def remove_owner(view: View, owner: str) -> int | None:
    """Remove the owner and count what is left; None where a conversation was created in the meantime."""
    await view.users.delete_one({"_id": owner, "owner_id": owner})
    if await view.conversations.find_one({"owner_id": owner}, {"_id": 1}) is not None:
        return None
    left = await view.messages.count_documents({"owner_id": owner})
    return left + await view.users.count_documents({"owner_id": owner})


# --- another owner ---------------------------------------------------------------------------------------


async def ids_of(view: View, owner: str) -> list[UUID]:
    """The ids of all conversations of an owner, hidden ones too."""
    return [each["id"] for each in await view.conversations.find({"owner_id": owner}, {"id": 1}).to_list()]


async def move(view: View, id_: UUID, old: str, new: str) -> bool:
    """Give one conversation with its messages to another owner, in one transaction."""
    talk = await view.conversations.find_one(conversation_filter((old, id_)), session=view.session)
    if talk is None:
        return False
    if talk.get("slot") and await _slot_taken(view, new, talk["context_id"]):
        del talk["slot"]
    found = await view.messages.find(message_filter((old, id_)), session=view.session).to_list()
    moved = [{**each, "_id": message_id((new, id_), each["_id"]["m"]), "owner_id": new} for each in found]
    await view.messages.delete_many(message_filter((old, id_)), session=view.session)
    await view.conversations.delete_one(conversation_filter((old, id_)), session=view.session)
    await view.conversations.insert_one({**talk, "_id": {"o": new, "c": id_}, "owner_id": new}, session=view.session)
    for start in range(0, len(moved), SLICE):
        await view.messages.insert_many(moved[start : start + SLICE], session=view.session)
    return True


async def _slot_taken(view: View, owner: str, context_id: str | None) -> bool:
    where = {"owner_id": owner, "context_id": context_id, "slot": True}
    return await view.conversations.find_one(where, {"_id": 1}, session=view.session) is not None
