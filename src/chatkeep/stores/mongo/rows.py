"""The statements of the MongoDB store.

What has a known identity is looked up by `_id` alone, in which the owner is: that takes no planning. Every other
filter names the owner first. Plain operators only: in a pipeline a user's text that begins with $ would be evaluated.
"""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any, Self, override
from uuid import UUID

from pymongo import ASCENDING, DESCENDING, UpdateOne
from pymongo.errors import DuplicateKeyError

from chatkeep.access import IDS_CLASH
from chatkeep.errors import Conflict
from chatkeep.ids import valid_id
from chatkeep.model import Message, Status
from chatkeep.store import Order
from chatkeep.stores.append import Known, Placed, State
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.mongo.conversations import BY_ID, hidden
from chatkeep.stores.mongo.database import Collection as MongoCollection
from chatkeep.stores.mongo.database import Document, View
from chatkeep.stores.mongo.documents import (
    JSON_TEXTS,
    MESSAGE,
    PLACE,
    answered,
    conversation_id,
    message_id,
    micros,
    new_message,
    of_project,
    saved,
    to_binary,
    to_hit,
    to_known,
    to_messages,
    to_place,
    to_uuid,
    turn_id,
    uuid_or_none,
)
from chatkeep.stores.mongo.moves import moved
from chatkeep.stores.mongo.projects import within_page
from chatkeep.stores.mongo.turns import EXPIRED, FENCED, MongoTurns
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.stores.rows import Found, Key, Place, Within, WordIndex, order_of
from chatkeep.stores.slices import PageSize, Part, Removed, that_fit
from chatkeep.tree import Position, Segment
from chatkeep.turns import Ending, TurnKey
from chatkeep.values import now
from chatkeep.words import Query, index_words, query_words

INDEX_SLICE = 500
"""Messages that are indexed at once at most."""

INDEX_SLICE_CHARS = 1 << 20
"""Characters of text that are indexed at once, about."""

SLICE, FEW = 1_000, 200
"""Messages, and conversations, that one transaction removes at most, which bounds how long it takes."""

WORD_INDEX = "words"
"""The `_id` of the document that says by which rule messages are indexed."""

FIRST_RULE = 1
"""The rule before there was that document."""

DELETED = Status.DELETED.value
ERASED = (*JSON_TEXTS, "external_id", "unindexed")
"""The fields that a tombstone does not have."""

NOT_DELETED = {"$ne": DELETED}
DIRECTION: Mapping[Order, int] = {"asc": ASCENDING, "desc": DESCENDING}
HIT_ORDER = [("created_at", DESCENDING), ("conversation_id", DESCENDING), ("seq", DESCENDING)]


class MongoRows(MongoTurns):
    """Documents, as one transaction sees them, or each operation for itself."""

    __slots__ = ("_index", "_texts", "_words")

    most_segments = 200

    def __init__(self, view: View, texts: LongTexts, *, index: bool = True) -> None:
        """Take the view, and what splits long texts; index=False leaves new messages to `index_slice`."""
        super().__init__(view)
        self._texts = texts
        self._index = index
        self._words: Mapping[str, list[str]] = {}

    def knowing(self, words: Mapping[str, list[str]]) -> Self:
        """These rows, knowing the words of some texts that are to be saved."""
        self._words = words
        return self

    # --- messages -----------------------------------------------------------------------------------------

    async def save(self, key: Key, state: State, new: Sequence[Placed]) -> None:
        view, where = self._view, self._view.one(key[0], conversation_id(key))
        await view.conversations.update_one(where, saved(state, {}), session=view.session)
        documents = [
            new_message(key, placed, index=self._index, words=self._words.get(placed.message.content)) for placed in new
        ]
        await view.messages.insert_many(documents, session=view.session)

    async def _find(self, where: Document, fields: Document, **options: Any) -> list[Document]:
        return await self._view.messages.find(where, fields, session=self._view.session, **options).to_list()

    async def _part(self, key: Key, where: Document, order: Order, size: PageSize) -> Part[Message]:
        """The first messages by seq, as many as have room."""
        options = {"sort": [("seq", DIRECTION[order])], "limit": size.limit, "batch_size": size.limit}
        async with self._view.messages.find(where, MESSAGE, session=self._view.session, **options) as cursor:
            found = await within_page(cursor, size.max_bytes)
        return Part(to_messages(key[1], found.items), found.cut)

    async def known(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Known]:
        found = await self._find(self._by_id(key, ids), PLACE)
        return {to_uuid(each["_id"]["m"]): to_known(each) for each in found}

    async def position(self, key: Key, seq: int) -> Position:
        (found,) = await self._find(message_filter(key, seq=seq), PLACE)
        return to_known(found).position

    async def messages_by_id(self, key: Key, ids: Collection[UUID]) -> dict[UUID, Message]:
        found = await self._find(self._by_id(key, ids), MESSAGE)
        return {message.id: message for message in to_messages(key[1], found)}

    def _by_id(self, key: Key, ids: Collection[UUID]) -> Document:
        return self._view.some(message_id(key, id_) for id_ in ids)

    async def messages_by_seq(self, key: Key, seqs: Sequence[int], size: PageSize) -> Part[Message]:
        where = message_filter(key, seq={"$in": list(seqs)}, status=NOT_DELETED)
        return await self._part(key, where, order_of(seqs), size)

    async def log(self, key: Key, after: int, size: PageSize) -> Part[Message]:
        return await self._part(key, message_filter(key, seq={"$gt": after}), "asc", size)

    async def fingerprints(self, key: Key, first: int, last: int) -> list[bytes]:
        where = message_filter(key, seq={"$gte": first, "$lte": last})
        found = await self._find(where, {"fingerprint": 1}, sort=[("seq", ASCENDING)], batch_size=last - first + 1)
        return [bytes(each["fingerprint"]) for each in found]

    async def next_in_run(self, key: Key, parent: Position) -> list[int]:
        where = message_filter(key, run=parent.run, seq={"$gt": parent.seq}, branched=True)
        found = await self._find(where, {"seq": 1}, sort=[("seq", ASCENDING)], limit=1)
        return [each["seq"] for each in found]

    async def segment(self, key: Key, segment: Segment, order: Order, size: PageSize) -> Part[Message]:
        return await self._part(key, _in_segment(key, segment), order, size)

    async def places(self, key: Key, segments: Sequence[Segment], order: Order, limit: int) -> list[Place]:
        # By its index each part is read in the order of seqs, so that the server merges them and stops at the limit.
        where, options = {"$or": [_in_segment(key, segment) for segment in segments]}, {"hint": "run"}
        if segments[0].trunk:
            where, options = _in_segment(key, segments[0]), {"hint": "seq"}
        sort = [("seq", DIRECTION[order])]
        fields = {"_id": 0, "seq": 1, "status": 1}
        found = await self._find(where, fields, sort=sort, limit=limit, batch_size=limit, **options)
        return [Place(each["seq"], each["status"] == DELETED) for each in found]

    async def deleted_places(self, key: Key, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        run, seq = after
        behind = [{"run": {"$gt": run}}, {"run": run, "seq": {"$gt": seq}}]
        where = message_filter(key, status=DELETED, run={"$gte": run}) | {"$or": behind}
        sort, fields = [("run", ASCENDING), ("seq", ASCENDING)], {"_id": 0, "run": 1, "seq": 1}
        found = await self._find(where, fields, sort=sort, limit=limit, batch_size=limit)
        return [(each["run"], each["seq"]) for each in found]

    async def count_segment(self, key: Key, segment: Segment, *, deleted: bool = False) -> int:
        where = _in_segment(key, segment)
        if deleted:  # the index of tombstones has the run
            between = {"$gte": segment.low, "$lte": segment.high}
            where = message_filter(key, status=DELETED, run=segment.run, seq=between)
        return await self._view.messages.count_documents(where)

    async def set_metadata(self, key: Key, id_: UUID, metadata: str | None) -> None:
        where = self._view.one(key[0], message_id(key, id_))
        change = {"$unset": {"metadata": ""}} if metadata is None else {"$set": {"metadata": metadata}}
        await self._view.messages.update_one(where, change, session=self._view.session)

    async def erase_message(self, key: Key, id_: UUID) -> None:
        where = self._view.one(key[0], message_id(key, id_))
        change = {
            "$set": {"content": "", "status": DELETED, "words": []},
            "$unset": dict.fromkeys(ERASED, ""),
        }
        await self._view.messages.update_one(where, change, session=self._view.session)

    async def set_answer(self, key: TurnKey, ending: Ending) -> None:
        words = self._words.get(ending.content)
        if self._index and words is None:
            words = await self._texts.run(index_words, ending.content)
        view = self._view
        where = view.one(key.owner, turn_id(key)) | {"status": Status.IN_PROGRESS.value}
        await view.messages.update_one(where, answered(ending, words), session=view.session)
        moved = {"$max": {"updated_at": micros(now())}}
        await view.conversations.update_one(view.one(key.owner, conversation_id(key[:2])), moved, session=view.session)

    @override
    def shows_whole(self, found: Sequence[Message], segment: Segment, order: Order, *, ends: bool) -> bool:
        """What was read of the trunk without a missing seq was read before any removal."""
        if not found or not segment.trunk:
            return False
        first, last = (segment.high, segment.low) if order == "desc" else (segment.low, segment.high)
        is_dense = found[0].seq == first and abs(found[-1].seq - first) == len(found) - 1
        return is_dense and (not ends or found[-1].seq == last)

    # --- search -------------------------------------------------------------------------------------------

    async def search(
        self, owner: str, query: Query, below: tuple[Any, ...] | None, size: PageSize, only: Within | None = None
    ) -> Found:
        wanted, excluded, exact = query_words(query)
        words = {"$all": wanted} | ({"$nin": excluded} if excluded else {})
        where: Document = {"owner_id": owner, "words": words, **_below(below)}
        fields, options = MESSAGE | {"conversation_id": 1}, {"sort": HIT_ORDER, "limit": size.limit}
        if only is not None:
            where["conversation_id"] = to_binary(only.id)
            if only.is_small:  # else MongoDB tries both indexes and goes on with the one that is done first
                options |= {"hint": "seq", "allow_disk_use": True}
        async with self._view.messages.find(where, fields, session=self._view.session, **options) as cursor:
            found, cut = await within_page(cursor, size.max_bytes)
        there = await self._titles(owner, {each["conversation_id"] for each in found}) if found else {}
        hits = [to_hit(each, there[id_]) for each in found if (id_ := each["conversation_id"]) in there]
        return Found(hits, exact, to_place(found[-1]) if cut or len(found) == size.limit else None, cut)

    async def _titles(self, owner: str, ids: Collection[bytes]) -> dict[bytes, str | None]:
        """The titles of conversations that are not being removed, by id as it is stored."""
        where = self._view.some({"o": owner, "c": id_} for id_ in ids)
        found = await self._view.conversations.find(where, {"id": 1, "title": 1, "deleted_at": 1}).to_list()
        return {each["id"]: each["title"] for each in found if not each.get("deleted_at")}

    async def index_slice(self) -> bool:
        found = await self._slice({"unindexed": True}, {"content": 1, "status": 1})
        updates = [
            UpdateOne(
                # Not of an answer that has ended meanwhile: it has other words.
                {**self._view.one(each["_id"]["o"], each["_id"]), "unindexed": True, "status": each["status"]},
                {"$set": {"words": await self._texts.run(index_words, each["content"])}, "$unset": {"unindexed": ""}},
            )
            for each in found
        ]
        if updates:
            await self._view.messages.bulk_write(updates, ordered=False)
        return bool(found)

    async def _slice(self, where: Document, fields: Document, **options: Any) -> list[Document]:
        """The first messages with so much text as is indexed at once."""
        found: list[Document] = []
        total, view = 0, self._view
        options = {"limit": INDEX_SLICE, "batch_size": FEW, "session": view.session, **options}
        async with view.messages.find(where, fields, **options) as cursor:
            async for each in cursor:
                found.append(each)
                total += len(each["content"])
                if total >= INDEX_SLICE_CHARS:
                    break
        return found

    async def word_index(self) -> WordIndex:
        found = await self._view.schema.find_one({"_id": WORD_INDEX})
        if found is None:
            return WordIndex(FIRST_RULE)
        return WordIndex(found["rule"], found["target"], uuid_or_none(found["place"]))

    async def set_word_index(self, before: WordIndex, after: WordIndex) -> bool:
        if before == WordIndex(FIRST_RULE):
            with suppress(DuplicateKeyError):  # it may have been set back to this
                await self._view.schema.insert_one({"_id": WORD_INDEX, **_to_word_index(before)})
        where = {"_id": WORD_INDEX, **_to_word_index(before)}
        done = await self._view.schema.update_one(where, {"$set": _to_word_index(after)})
        return done.matched_count == 1

    async def keys_above(self, id_: UUID | None, limit: int) -> list[Key]:
        conversations = self._view.conversations
        above = {} if id_ is None else {"id": {"$gt": to_binary(id_)}}
        found = await conversations.find(above, {"_id": 0, "id": 1}, sort=BY_ID, limit=limit).to_list()
        if not found:
            return []
        ids = {"id": {"$in": [each["id"] for each in found]}}
        keys = await conversations.find(ids, {"_id": 0, "owner_id": 1, "id": 1}, sort=BY_ID).to_list()
        return [(each["owner_id"], to_uuid(each["id"])) for each in keys]

    async def index_again(self, key: Key, after: int) -> int | None:
        indexed = {"seq": {"$gt": after}, "words": {"$exists": True}, "content": {"$ne": ""}}
        where = {"owner_id": key[0], "conversation_id": to_binary(key[1]), **indexed}
        found = await self._slice(where, {"content": 1, "words": 1, "seq": 1}, sort=[("seq", ASCENDING)])
        updates = []
        for each in found:
            words = await self._texts.run(index_words, each["content"])
            if set(words) != set(each["words"]):
                # Not of a message that was deleted meanwhile: its words are gone.
                one = {**self._view.one(key[0], each["_id"]), "status": NOT_DELETED}
                updates.append(UpdateOne(one, {"$set": {"words": words}}))
        if updates:
            await self._view.messages.bulk_write(updates, ordered=False, session=self._view.session)
        return found[-1]["seq"] if found else None

    # --- removal ------------------------------------------------------------------------------------------

    async def owners_with_remains(self) -> list[str]:
        view, hidden_ones = self._view, {"deleted_at": {"$gt": 0}}
        some = {view.conversations: hidden_ones, view.projects: hidden_ones, view.documents: {"has_rubbish": True}}
        found = [await kind.find(where, {"owner_id": 1}).to_list() for kind, where in some.items()]
        return sorted({each["owner_id"] for those in found for each in those})

    async def lock_owner(self, owner: str) -> None:
        """Do nothing: MongoDB has no lock that creating a conversation would wait for."""

    async def hide(self, key: Key) -> bool:
        where = self._view.one(key[0], conversation_id(key))
        done = await self._view.conversations.update_one(where, hidden(), session=self._view.session)
        await self._fence(message_filter(key))
        return done.matched_count == 1

    async def _fence(self, where: Document) -> None:
        """Take turns from their workers, once nobody can begin another one: they are counted when they are removed."""
        await self._view.turns.update_many(where, FENCED, session=self._view.session)

    async def hide_slice(self, owner: str) -> bool:
        return await self._hide_some({"owner_id": owner, "deleted_at": None}) == SLICE

    async def _hide_some(self, where: Document) -> int:
        """Make some conversations of an owner invisible, and count them."""
        view = self._view
        found = await view.conversations.find(where, {"_id": 1}, limit=SLICE, session=view.session).to_list()
        if found:
            some = view.some(each["_id"] for each in found) | {"deleted_at": None}
            await view.conversations.update_many(some, hidden(), session=view.session)
            ids = [each["_id"]["c"] for each in found]
            await self._fence({"owner_id": where["owner_id"], "conversation_id": {"$in": ids}})
        return len(found)

    async def hide_conversations(self, key: ProjectKey) -> bool:
        """Only of a project that is hidden: another one may have been made with its id since it was looked up."""
        return await self.is_hidden(key) and await self._hide_some(of_project(key, deleted_at=None)) > 0

    async def purge_slice(self, owner: str) -> Removed | None:
        """Remove hidden conversations: several small ones, or a part of a large one.

        One at a time, others could create small ones faster than they go.
        """
        where, session = {"owner_id": owner, "deleted_at": {"$gt": 0}}, self._view.session
        fields = {"id": 1, "last_seq": 1, "labels": 1}
        hidden = await self._view.conversations.find(where, fields, limit=FEW, session=session).to_list()
        if not hidden:
            return None
        small = that_fit([(each, each["last_seq"]) for each in hidden], SLICE)
        whole = small or hidden[:1]
        of_them: Document = {"owner_id": owner, "conversation_id": {"$in": [each["id"] for each in whole]}}
        if not small:
            last = await self._find(of_them, {"seq": 1}, sort=[("seq", ASCENDING)], limit=1, skip=SLICE - 1)
            if last:
                whole, of_them = [], of_them | {"seq": {"$lte": last[0]["seq"]}}
        return await self._purge(whole, of_them)

    async def _purge(self, conversations: Sequence[Document], messages: Document) -> Removed:
        """Remove messages, the turns of their conversations, and the conversations of which they are all."""
        view, session = self._view, self._view.session
        indexed = {**messages, "words": {"$exists": True}, "content": {"$ne": ""}}
        count = await view.messages.count_documents(indexed, session=session)
        gone = (await view.messages.delete_many(messages, session=session)).deleted_count
        removed = 0
        if conversations:
            where = view.some(each["_id"] for each in conversations)
            removed = (await view.conversations.delete_many(where, session=session)).deleted_count
        turns = await self._remove_turns({name: messages[name] for name in ("owner_id", "conversation_id")})
        labels = sum(len(each.get("labels", ())) for each in conversations)
        return Removed(removed, gone, count, labels, turns=turns)

    async def _remove_turns(self, where: Document) -> int:
        """Remove turns with their events, and count them."""
        done = await self._view.turns.delete_many(where, session=self._view.session)
        await self._view.turn_events.delete_many(where, session=self._view.session)
        return done.deleted_count

    async def remove_owner(self, owner: str) -> int | None:
        if not await self._forget_owner(owner):
            return None
        view = self._view
        others = (view.messages, view.turns, view.turn_events, view.documents, view.chunks, view.vectors, view.users)
        left = sum([await kind.count_documents({"owner_id": owner}) for kind in others])
        projects = await view.projects.count_documents({"owner_id": owner})
        if projects:  # which were made meanwhile
            await self._note_owner(owner)
        return left + projects

    async def _forget_owner(self, owner: str) -> bool:
        """Remove an owner without conversations; say whether that is so. Looks last: others create meanwhile."""
        await self._view.users.delete_one(self._view.one(owner, owner))
        if await self._view.conversations.find_one({"owner_id": owner}, {"_id": 1}) is None:
            return True
        await self._note_owner(owner)
        return False

    async def begin_rename(self, old: str, new: str) -> set[UUID]:
        """Note the new owner and return the conversations to move. Raises Conflict if both have one of them, or a
        project in which the owner has documents."""
        ids = await self._ids_of(old)
        if not ids.isdisjoint(await self._ids_of(new)):
            raise Conflict(IDS_CLASH)
        await self.check_projects(old, new)
        if ids or await self.projects_to_move(old):
            await self._note_owner(new)
        return ids

    async def _ids_of(self, owner: str) -> set[UUID]:
        """The ids of all conversations of an owner, hidden ones too."""
        found = await self._view.conversations.find({"owner_id": owner}, {"id": 1}).to_list()
        return {to_uuid(each["id"]) for each in found}

    async def move(self, id_: UUID, old: str, new: str) -> bool:
        """Give one conversation with its messages to another owner, whose name is in every `_id`.

        Of its turns the leases have expired then: their workers know the owner before.
        """
        view, key = self._view, (old, id_)
        conversation = await self._conversation(key)
        if conversation is None:
            return False
        if conversation.get("slot") and await self._slot_taken(new, conversation):
            del conversation["slot"]
        await view.conversations.delete_one(view.one(old, conversation["_id"]), session=view.session)
        await view.conversations.insert_one(moved(conversation, new), session=view.session)
        await self._move_all(view.turns, key, new, EXPIRED)
        await self._move_all(view.turn_events, key, new, {})
        await self._move_all(view.messages, key, new, {})
        return True

    async def _move_all(self, collection: MongoCollection, key: Key, new: str, values: Document) -> None:
        """Give what a collection has of a conversation to another owner."""
        session = self._view.session
        found = await collection.find(message_filter(key), session=session).to_list()
        await collection.delete_many(message_filter(key), session=session)
        documents = [moved(each, new) | values for each in found]
        for start in range(0, len(documents), SLICE):
            await collection.insert_many(documents[start : start + SLICE], session=session)

    async def _slot_taken(self, owner: str, conversation: Document) -> bool:
        """Whether a conversation of the owner holds the slot of the scope that another conversation is in."""
        scope = {"context_id": conversation["context_id"], "project_id": conversation.get("project_id")}
        where = {"owner_id": owner, **scope, "slot": True}
        return await self._view.conversations.find_one(where, {"_id": 1}, session=self._view.session) is not None

    async def end_rename(self, owner: str) -> bool:
        """Remove an owner whose conversations were moved, and whose projects may go now; False if other conversations
        were created meanwhile: those may be in the projects."""
        return await self._forget_owner(owner)

    async def keep_owner(self, owner: str) -> None:
        """Note an owner again of whom something was created meanwhile."""
        await self._note_owner(owner)


# --- filters ----------------------------------------------------------------------------------------------


def message_filter(key: Key, **more: object) -> Document:
    """Messages of one conversation."""
    return {"owner_id": key[0], "conversation_id": to_binary(key[1]), **more}


def _to_word_index(state: WordIndex) -> Document:
    return {
        "rule": state.rule,
        "target": state.target,
        "place": None if state.place is None else to_binary(state.place),
    }


def _in_segment(key: Key, segment: Segment) -> Document:
    where = message_filter(key, seq={"$gte": segment.low, "$lte": segment.high})
    return where if segment.trunk else where | {"run": segment.run, "branched": True}


def _below(place: tuple[Any, ...] | None) -> Document:
    if place is None:
        return {}
    created_at, id_, seq = place[0], to_binary(valid_id(place[1])), place[2]
    behind = [
        {"created_at": {"$lt": created_at}},
        {"created_at": created_at, "conversation_id": {"$lt": id_}},
        {"created_at": created_at, "conversation_id": id_, "seq": {"$lt": seq}},
    ]
    return {"created_at": {"$lte": created_at}, "$or": behind}
