"""What an import and an export do to the rows of one conversation. The same for every database."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

from chatkeep.errors import NotFound
from chatkeep.model import (
    IMPORTED_FIELDS,
    UPDATABLE,
    Conversation,
    ImportedConversation,
    ImportedMessage,
    ImportReceipt,
    Message,
    NewAnswer,
    Role,
    Status,
    stored,
)
from chatkeep.stores.append import Known, Placed, State, ids_to_look_up, plan
from chatkeep.stores.rows import Key, Rows, unique
from chatkeep.stores.transactions import Transactions
from chatkeep.tree import Position, Tree
from chatkeep.turns import Ending, TurnKey
from chatkeep.values import json_text

BEGINNING = datetime.min.replace(tzinfo=UTC)
"""Before every other time: a conversation has the one that the database gave it, or that of its last message."""


class Import(NamedTuple):
    """A conversation to be imported."""

    new: ImportedConversation
    messages: Sequence[ImportedMessage]
    """With ids."""
    fingerprints: Sequence[bytes]
    update: bool

    @property
    def by_id(self) -> dict[UUID, tuple[ImportedMessage, bytes]]:
        """The messages with their fingerprints, by id."""
        pairs = zip(self.messages, self.fingerprints, strict=True)
        return {message.id: (message, fingerprint) for message, fingerprint in pairs if message.id is not None}

    @property
    def says_head(self) -> bool:
        """Whether it says where its history ends."""
        return bool(self.messages) or "head_id" in self.new.model_fields_set

    @property
    def head_id(self) -> UUID | None:
        """The message that its history ends with."""
        if "head_id" in self.new.model_fields_set:
            return self.new.head_id
        return self.messages[-1].id if self.messages else None


class Imports[R: Rows](Transactions[R]):
    """Whole conversations, each in a transaction that is open."""

    # --- import -------------------------------------------------------------------------------------------

    async def _import(self, rows: R, key: Key, given: Import) -> ImportReceipt | None:
        """Store a conversation, or what is new of it; None while one with this id is being removed."""
        try:
            state, placed = _begun(key, given, rows.moment)
        except NotFound:  # unless what is missing is there already
            if await rows.conversation(key) is None:
                raise
            return await self._merge(rows, key, given)
        if given.new.project_id is not None:  # before the conversation: MongoDB does this without a transaction
            name = given.new.project_name or str(given.new.project_id)
            await rows.make_project(key[0], given.new.project_id, name)
        created = await rows.create(key, given.new)
        if created is None:
            return await self._merge(rows, key, given)
        state.updated_at = created.updated_at if given.new.is_restored else max(state.updated_at, created.updated_at)
        if placed:
            await rows.save(key, state, placed)
        return ImportReceipt(created=True, messages=len(placed), known=0)

    async def _merge(self, rows: R, key: Key, given: Import) -> ImportReceipt | None:
        """Store what is new of a conversation that is there, and say what differs."""
        before = await rows.conversation(key, lock=True)
        if before is None:
            return None
        row = await self._state(rows, key)
        state = await self._loaded(rows, key, row)
        head = state.head, state.head_id
        there = await rows.known(key, ids_to_look_up(given.messages) | ({given.head_id} if given.head_id else set()))
        known = there | await self._same(rows, key, given, there)
        placed = _placed(plan(key[1], state, given.messages, given.fingerprints, known, row.moment))
        state.head, state.head_id = head
        wanted = _head(given, _positions(placed, known))
        goes_on = not row.last_seq or _continues(given.head_id, placed, before.head_id)
        differences = _differences(before, given, there)
        ended = await self._ended(rows, key, given, there)
        if ended:
            differences.append("answers")
        if given.says_head and not goes_on and not _is_behind(state, wanted):
            differences.append("head")
        if goes_on or (given.update and "head" in differences):
            state.head, state.head_id = wanted, given.head_id
        if given.new.is_restored:
            state.title = before.title
        await self._save(rows, key, before, state, placed)
        taken = [name for name in UPDATABLE if given.update and name in differences]
        await self._take_over(rows, key, given, there, taken)
        for message in ended if given.update else ():
            await rows.set_answer(TurnKey(*key, cast("UUID", message.id)), _ending(message))
        if "deletions" in taken and _deleted_here(given, there):
            taken.remove("deletions")
        return ImportReceipt(
            created=False,
            messages=len(placed),
            known=len(given.by_id) - len(placed),
            differences=tuple(differences),
            updated=tuple(taken),
        )

    async def _same(self, rows: R, key: Key, given: Import, there: Mapping[UUID, Known]) -> dict[UUID, Known]:
        """The messages that are there, but not with the fingerprint of this import, and say the same all the same.

        A deleted message says nothing else than before: whether it is deleted is a difference of its own.
        """
        by_id = given.by_id
        others = [id_ for id_, known in there.items() if id_ in by_id and by_id[id_][1] != known.fingerprint]
        stored_as = await rows.messages_by_id(key, others) if others else {}
        return {
            id_: there[id_]._replace(fingerprint=by_id[id_][1])
            for id_, message in stored_as.items()
            if _says_the_same(message, by_id[id_][0])
        }

    async def _ended(self, rows: R, key: Key, given: Import, there: Mapping[UUID, Known]) -> list[ImportedMessage]:
        """The answers of turns that were in progress when they were exported first, and have ended in this import."""
        by_id = given.by_id
        made = [id_ for id_, known in there.items() if id_ in by_id and known.fingerprint == _of_answer(by_id[id_][0])]
        stored_as = await rows.messages_by_id(key, made) if made else {}
        return [by_id[id_][0] for id_, message in stored_as.items() if _has_ended(message, by_id[id_][0])]

    async def _save(self, rows: R, key: Key, before: Conversation, state: State, placed: Sequence[Placed]) -> None:
        if placed:
            await rows.save(key, state, placed)
        elif state.head_id != before.head_id:
            head_seq = None if state.head is None else state.head.seq
            await rows.set_values(key, {"head_seq": head_seq, "head_id": state.head_id})

    async def _take_over(
        self, rows: R, key: Key, given: Import, there: Mapping[UUID, Known], names: Sequence[str]
    ) -> None:
        """Change what differs to what the import says; the head is in its place already."""
        if "deletions" in names:
            for id_ in _deleted(given, there):
                await self._delete_message(rows, key, id_)
        values: dict[str, Any] = {name: getattr(given.new, name) for name in CHANGED if name in names}
        if "metadata" in names:
            values["metadata"] = json_text(given.new.metadata)
        if values:
            await rows.set_values(key, values)

    # --- export -------------------------------------------------------------------------------------------

    async def _export(self, rows: R, key: Key) -> tuple[ImportedConversation, int]:
        """A conversation as `_import` takes it, and its last seq."""
        found = await self._conversation(rows, key)
        fingerprint = await rows.fingerprint(key)
        if fingerprint is None:
            raise await self._missing(rows, key[1])
        values: dict[str, Any] = {name: getattr(found, name) for name in EXPORTED} | {"project_name": None}
        if found.project_id is not None:
            values["project_name"] = await rows.project_name(key[0], found.project_id)
        more = {"kept_fingerprint": fingerprint, "llm_provider_id": None}
        conversation = stored(ImportedConversation, EXPORTED_FIELDS, values | more)
        return conversation, found.last_seq

    async def _export_messages(self, rows: R, key: Key, after: int, limit: int) -> list[ImportedMessage]:
        """Messages as `_import` takes them."""
        found = await self._log_so_far(rows, key, after, limit)
        fingerprints = await rows.fingerprints(key, found[0].seq, found[-1].seq) if found else []
        if len(fingerprints) != len(found):
            raise await self._missing(rows, key[1])  # it was removed between the two
        return [_exported(*pair) for pair in zip(found, fingerprints, strict=True)]


CHANGED = ("title", "context_id", "labels")
"""What an import takes over as it is."""

EXPORTED = (
    "id",
    "title",
    "context_id",
    "project_id",
    "external_id",
    "labels",
    "metadata",
    "head_id",
    "created_at",
    "updated_at",
)
"""Not llm_provider_id: providers belong to the installation."""

EXPORTED_FIELDS = {*EXPORTED, "project_name", "kept_fingerprint"}


def _exported(message: Message, fingerprint: bytes) -> ImportedMessage:
    values = {name: value for name, value in vars(message).items() if name in IMPORTED_FIELDS}
    if message.status is Status.IN_PROGRESS:  # whoever imports it has no turn that goes on
        values["status"] = Status.INTERRUPTED
    return stored(ImportedMessage, IMPORTED_FIELDS, values | {"kept_fingerprint": fingerprint})


def _begun(key: Key, given: Import, moment: datetime) -> tuple[State, list[Placed]]:
    """A conversation that is not there yet, and its messages. Raises Conflict and NotFound."""
    state = State(Tree(), None, None, given.new.title, BEGINNING)
    placed = _placed(plan(key[1], state, given.messages, given.fingerprints, {}, moment))
    if given.new.is_restored:
        state.title = given.new.title
    state.head, state.head_id = _head(given, _positions(placed, {})), given.head_id
    return state, placed


def _placed(results: Sequence[Placed | UUID]) -> list[Placed]:
    return unique(result for result in results if isinstance(result, Placed))


def _positions(placed: Sequence[Placed], known: Mapping[UUID, Known]) -> dict[UUID, Position]:
    return {id_: each.position for id_, each in known.items()} | {each.message.id: each.position for each in placed}


def _head(given: Import, positions: Mapping[UUID, Position]) -> Position | None:
    """Where the head of the import is. Raises NotFound."""
    if given.head_id is not None and given.head_id not in positions:
        raise NotFound("head_id names no message of the import", got=given.head_id)
    return None if given.head_id is None else positions[given.head_id]


def _continues(id_: UUID | None, placed: Sequence[Placed], head_id: UUID | None) -> bool:
    """Whether new messages lead from the present head to another one, so that nothing that was visible is hidden."""
    parents = {each.message.id: each.message.parent_id for each in placed}
    is_new = id_ in parents
    while id_ is not None and id_ in parents:
        id_ = parents[id_]
    return is_new and id_ is not None and id_ == head_id


def _is_behind(state: State, position: Position | None) -> bool:
    """Whether the thread passes a message, or there is neither: then it has only grown here."""
    if state.head is None or position is None:
        return state.head is position
    path = state.tree.path(state.head.run, state.head.seq)
    return any(each.run == position.run and each.low <= position.seq <= each.high for each in path)


def _differences(before: Conversation, given: Import, there: Mapping[UUID, Known]) -> list[str]:
    """What the import says otherwise, but for the head."""
    new = given.new
    says_title, says_labels = new.is_restored or new.title is not None, new.is_restored or new.labels
    found = {
        "title": says_title and new.title != before.title,
        "metadata": new.metadata != before.metadata,
        "context_id": new.context_id != before.context_id,
        "project_id": new.project_id != before.project_id,
        "external_id": before.external_id not in (new.external_id, str(before.id)),
        "labels": says_labels and new.labels != before.labels,
        "deletions": any(
            (message.status is Status.DELETED) != there[id_].deleted
            for id_, (message, _) in given.by_id.items()
            if id_ in there
        ),
    }
    return [name for name, differs in found.items() if differs]


def _deleted(given: Import, there: Mapping[UUID, Known]) -> list[UUID]:
    """The messages that are deleted in the import only."""
    deleted = {message.id for message in given.messages if message.status is Status.DELETED}
    return [id_ for id_, known in there.items() if id_ in deleted and not known.deleted]


def _deleted_here(given: Import, there: Mapping[UUID, Known]) -> bool:
    """Whether messages of the import are deleted here only, which is not undone."""
    living = {message.id for message in given.messages if message.status is not Status.DELETED}
    return any(known.deleted and id_ in living for id_, known in there.items())


def _of_answer(message: ImportedMessage) -> bytes | None:
    """The fingerprint of the row that a turn made for a message, if one did; it has nothing of the answer."""
    return NewAnswer(parent_id=message.parent_id).fingerprint() if message.role is Role.ASSISTANT else None


def _has_ended(there: Message, message: ImportedMessage) -> bool:
    """Whether an answer was cut off here, and goes on in the import."""
    if there.status is not Status.INTERRUPTED:
        return False
    has_more = message.status is Status.INTERRUPTED and len(message.content) > len(there.content)
    return has_more or message.status in (Status.COMPLETE, Status.FAILED)


def _ending(message: ImportedMessage) -> Ending:
    return Ending(**{name: getattr(message, name) for name in Ending._fields})


def _says_the_same(there: Message, message: ImportedMessage) -> bool:
    if Status.DELETED in (there.status, message.status):
        return True
    return (there.role, there.content, there.status) == (message.role, message.content, message.status)
