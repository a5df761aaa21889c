"""The statements of conversations in MongoDB, their labels, projects and providers.

What has a known identity is looked up by `_id` alone, in which the owner is. Every other filter names the owner first.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, cast, override
from uuid import UUID

from pymongo import ASCENDING, DESCENDING
from pymongo.errors import DuplicateKeyError

from chatkeep.model import Conversation, NewConversation
from chatkeep.store import ListOrder
from chatkeep.stores.mongo.database import Document
from chatkeep.stores.mongo.documents import (
    CONVERSATION,
    STATE,
    change_of,
    conversation_id,
    micros,
    new_conversation,
    to_binary,
    to_conversation,
    to_uuid,
    uuid_or_none,
)
from chatkeep.stores.mongo.projects import within_page
from chatkeep.stores.mongo.providers import MongoProviders
from chatkeep.stores.rows import Key, Scope, StateRow
from chatkeep.stores.slices import PageSize, Part
from chatkeep.stores.window import ListFilter, ListPlace
from chatkeep.values import from_micros, now

BY_UPDATE = [("updated_at", DESCENDING), ("id", DESCENDING)]
BY_ID = [("id", ASCENDING)]


class MongoConversations(MongoProviders):
    """Documents of conversations, as one transaction sees them, or each operation for itself."""

    __slots__ = ()

    reads_visible = False

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
        # Who removes a project, or a provider, hides it first, and looks for conversations afterwards: they find this
        # one, or it is seen here that it came too late.
        if made is None or await self._is_in_time(key[0], new):
            return made
        await self._view.conversations.update_one(self._view.one(key[0], document["_id"]), hidden())
        return None

    async def _is_in_time(self, owner: str, new: NewConversation) -> bool:
        """Whether the project and the provider that a conversation names are there."""
        if new.project_id is not None and not await self.has_project(owner, new.project_id):
            return False
        return new.llm_provider_id is None or await self.has_provider(new.llm_provider_id)

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
        if "llm_provider_id" in values:
            named = changed.pop("llm_provider_id")
            changed |= {} if named is None else {"llm_provider_id": to_binary(named)}
            removed += ["llm_provider_id"] if named is None else []
        view = self._view
        where = view.one(key[0], conversation_id(key))
        await view.conversations.update_one(where, change_of(changed, removed), session=view.session)


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


def hidden() -> Document:
    """The change of a conversation that makes it invisible. It keeps no slot and no provider from others."""
    return {"$set": {"deleted_at": micros(now())}, "$unset": {"slot": "", "llm_provider_id": ""}}
