"""The statements of conversations in MongoDB, their labels and projects.

What has a known identity is looked up by `_id` alone, in which the owner is. Every other filter names the owner first.
"""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, cast, override
from uuid import UUID

from pymongo import ASCENDING, DESCENDING
from pymongo.asynchronous.cursor import AsyncCursor
from pymongo.errors import DuplicateKeyError

from chatkeep.model import Conversation, NewConversation
from chatkeep.store import ListOrder
from chatkeep.stores.mongo.database import Document, View
from chatkeep.stores.mongo.documents import (
    CONVERSATION,
    STATE,
    conversation_id,
    document_bytes,
    micros,
    new_conversation,
    new_project,
    project_id,
    to_binary,
    to_conversation,
    to_uuid,
    uuid_or_none,
)
from chatkeep.stores.rows import Key, PageSize, Part, Rows, Scope, StateRow
from chatkeep.stores.window import ListFilter, ListPlace
from chatkeep.values import from_micros, now

BY_UPDATE = [("updated_at", DESCENDING), ("id", DESCENDING)]
BY_ID = [("id", ASCENDING)]


class MongoConversations(Rows):
    """Documents of conversations, as one transaction sees them, or each operation for itself."""

    __slots__ = ("_view",)

    reads_visible = False

    def __init__(self, view: View) -> None:
        """Take the view."""
        self._view = view

    # --- conversations ------------------------------------------------------------------------------------

    @override
    async def state(self, key: Key, *, lock: bool = False) -> StateRow | None:
        found = await self._conversation(key, STATE)
        if found is None:
            return None
        updated_at = from_micros(found["updated_at"])
        last_seq, head_seq, head_id = found["last_seq"], found["head_seq"], uuid_or_none(found["head_id"])
        return StateRow(last_seq, head_seq, head_id, found["runs"], found["title"], updated_at, now())

    @override
    async def conversation(self, key: Key, *, lock: bool = False) -> Conversation | None:
        found = await self._conversation(key, CONVERSATION)
        return None if found is None else to_conversation(found)

    async def _conversation(self, key: Key, fields: Document | None = None) -> Document | None:
        """Some fields of a conversation, among which is deleted_at, unless it is being removed."""
        where = self._view.one(key[0], conversation_id(key))
        found = await self._view.conversations.find_one(where, fields, session=self._view.session)
        return None if found is None or found.get("deleted_at") else found

    async def exists_elsewhere(self, id_: UUID) -> bool:
        where = {"id": to_binary(id_), "deleted_at": None}
        return await self._view.conversations.find_one(where, {"_id": 1}) is not None

    async def create(self, key: Key, new: NewConversation, *, slot: bool = False) -> Conversation | None:
        document = new_conversation(key, new, slot=slot)
        try:
            await self._view.conversations.insert_one(document)
        except DuplicateKeyError:
            made = None
        else:
            made = to_conversation(document)
        await self._note_owner(key[0])
        return made

    async def _note_owner(self, owner: str) -> None:
        """Note that there is an owner, after their conversations: who removes the owner looks for those afterwards."""
        users = self._view.users
        if await users.find_one(self._view.one(owner, owner), {"_id": 1}) is None:
            new = {"$setOnInsert": {"created_at": micros(now())}}
            with suppress(DuplicateKeyError):  # another process was faster
                await users.update_one({"_id": owner, "owner_id": owner}, new, upsert=True)

    async def fingerprint(self, key: Key) -> bytes | None:
        found = await self._conversation(key, {"fingerprint": 1, "deleted_at": 1})
        return None if found is None else bytes(found["fingerprint"])

    async def newest(self, owner: str, scope: Scope) -> Conversation | None:
        project = None if scope.project_id is None else to_binary(scope.project_id)
        where = {"owner_id": owner, "context_id": scope.context_id, "project_id": project, "deleted_at": None}
        hint = _index(ListFilter(*scope), "updated")
        found = await self._view.conversations.find_one(where, CONVERSATION, sort=BY_UPDATE, hint=hint)
        return None if found is None else to_conversation(found)

    async def listed(
        self, owner: str, which: ListFilter, order: ListOrder, after: ListPlace | None, size: PageSize, offset: int
    ) -> Part[Conversation]:
        where = self._listed(owner, which)
        if after is not None and after.updated_at is not None:
            moment = micros(after.updated_at)
            behind = [{"updated_at": {"$lt": moment}}, {"updated_at": moment, "id": {"$lt": to_binary(after.id)}}]
            where["updated_at"] = where.get("updated_at", {}) | {"$lte": moment}
            where["$or"] = behind
        elif after is not None:
            where["id"] = {"$gt": to_binary(after.id)}
        options = {"sort": BY_ID if order == "id" else BY_UPDATE, "hint": _index(which, order)}
        page = {"skip": offset, "limit": size.limit, "batch_size": size.limit}
        async with self._view.conversations.find(where, CONVERSATION, **options, **page) as cursor:
            found = await within_page(cursor, size.max_bytes)
        return Part([to_conversation(each) for each in found.items], found.cut)

    async def count(self, owner: str, which: ListFilter) -> int:
        return await self._view.conversations.count_documents(self._listed(owner, which))

    def _listed(self, owner: str, which: ListFilter) -> Document:
        """The filter of a list, but for its place."""
        some = {} if which.ids is None else self._view.some(conversation_id((owner, id_)) for id_ in which.ids)
        where = some | {"owner_id": owner, "deleted_at": None} | _scope(which)
        labels = {"$all": list(which.labels), "$nin": list(which.without)}
        times = {"$gt": which.updated_after, "$lt": which.updated_before}
        if which.labels or which.without:
            where["labels"] = {operator: values for operator, values in labels.items() if values}
        if which.updated_after or which.updated_before:
            where["updated_at"] = {operator: micros(time) for operator, time in times.items() if time}
        return where

    async def labelled(self, owner: str, label: str, limit: int) -> list[UUID]:
        where, fields = {"owner_id": owner, "labels": label}, {"_id": 0, "id": 1}
        found = self._view.conversations.find(where, fields, limit=limit, batch_size=limit, hint="labels")
        return [to_uuid(each["id"]) for each in await found.to_list()]

    async def set_values(self, key: Key, values: Mapping[str, Any]) -> None:
        changed, removed = dict(values), []
        if "head_seq" in values:
            row = cast("StateRow", await self.state(key))
            changed["straight"] = row.runs is None and (values["head_seq"] or 0) == row.last_seq
            changed["head_id"] = None if values["head_id"] is None else to_binary(values["head_id"])
        if "labels" in values:
            labels = list(changed.pop("labels"))
            changed |= {"labels": labels} if labels else {}
            removed += [] if labels else ["labels"]
        if "context_id" in values:
            removed.append("slot")
        view = self._view
        where = view.one(key[0], conversation_id(key))
        await view.conversations.update_one(where, _change(changed, removed), session=view.session)

    # --- projects -----------------------------------------------------------------------------------------

    async def has_project(self, owner: str, id_: UUID) -> bool:
        """Whether the owner has a project now: what creates runs outside of a transaction, so nothing keeps it."""
        return await self.project_name(owner, id_) is not None

    async def make_project(self, owner: str, id_: UUID, name: str) -> None:
        with suppress(DuplicateKeyError):
            await self._view.projects.insert_one(new_project(owner, id_, name))

    async def project_name(self, owner: str, id_: UUID) -> str | None:
        view = self._view
        where = view.one(owner, project_id(owner, id_))
        found = await view.projects.find_one(where, {"_id": 0, "name": 1}, session=view.session)
        return None if found is None else found["name"]

    async def remove_projects(self, owner: str) -> int:
        done = await self._view.projects.delete_many({"owner_id": owner}, session=self._view.session)
        return done.deleted_count

    async def projects_of(self, owner: str) -> list[UUID]:
        """The ids of an owner's projects."""
        found = await self._view.projects.find({"owner_id": owner}, {"_id": 0, "id": 1}).to_list()
        return [to_uuid(each["id"]) for each in found]

    async def copy_project(self, id_: UUID, old: str, new: str) -> None:
        """Give a project to another owner as well, who keeps the one that they have with this id."""
        found = await self._view.projects.find_one(self._view.one(old, project_id(old, id_)))
        if found is not None:
            with suppress(DuplicateKeyError):
                await self._view.projects.insert_one(moved(found, new))

    async def _forget_projects(self, owner: str, ids: Collection[UUID]) -> None:
        """Remove some projects of an owner."""
        await self._view.projects.delete_many({"owner_id": owner, "id": {"$in": [to_binary(id_) for id_ in ids]}})


async def within_page(cursor: AsyncCursor[Document], max_bytes: int) -> Part[Document]:
    """The first documents that have room in a page; the server sends at most 16 MB more."""
    found: list[Document] = []
    async for each in cursor:
        max_bytes -= document_bytes(each)
        if max_bytes < 0 and found:
            return Part(found, cut=True)
        found.append(each)
    return Part(found)


def moved(document: Document, owner: str) -> Document:
    """A document with another owner, whose name is also in its `_id`."""
    return {**document, "_id": {**document["_id"], "o": owner}, "owner_id": owner}


def _index(which: ListFilter, order: ListOrder) -> str:
    """The index that has a list in its order. Named, MongoDB takes no other one, such as that of labels, and sorts."""
    if which.ids is not None:
        return "_id_"
    if order == "id":
        return "by_id"
    if which.external_id is not None:
        return "by_external_id"
    if which.context_id is not None:
        return "in_context"
    return "by_update" if which.project_id is None else "by_project"


def _scope(which: ListFilter) -> Document:
    """The values that all conversations of a list have."""
    project = None if which.project_id is None else to_binary(which.project_id)
    values = {"context_id": which.context_id, "project_id": project, "external_id": which.external_id}
    return {name: value for name, value in values.items() if value is not None}


def _change(values: Document, removed: Collection[str]) -> Document:
    """The update that sets some fields and removes others."""
    change = {"$set": values, "$unset": dict.fromkeys(removed, "")}
    return {operator: fields for operator, fields in change.items() if fields}
