"""What runs in a transaction, over its rows: 403 or 404, threading, branches, paths. The same for every database."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, NotYours
from chatkeep.events import fold, place_of
from chatkeep.model import (
    RUNNING_FIELDS,
    Conversation,
    ConversationChange,
    Message,
    MessageChange,
    NewConversation,
    NewMessage,
    Page,
    Role,
    RunningAnswer,
    Status,
    StreamPlace,
    stored,
)
from chatkeep.options import StoreOptions
from chatkeep.store import Store
from chatkeep.stores.append import Known, Placed, State, ids_to_look_up, plan
from chatkeep.stores.paths import LOOK, PathReader, path_length
from chatkeep.stores.rows import Key, Rows, Scope, StateRow, unique
from chatkeep.stores.slices import PageSize, Part
from chatkeep.stores.turn_rows import ALL_BYTES
from chatkeep.stores.window import ListFilter, Window
from chatkeep.tree import Position, Tree
from chatkeep.turns import TurnKey, TurnPlace, TurnProgress
from chatkeep.values import patched, title_from

REPEATED_PAGES = 4
"""How many pages the stored messages may fill that an append repeats. An append has no page, but a reply has memory."""

FEW_LABELLED = 100
"""Most conversations with a label that are read for a list and sorted."""


class Transactions[R: Rows](Store):
    """The operations of a store, each in a transaction that is open."""

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        self._metadata_limits = options.metadata_limits

    @property
    def _hides_foreign(self) -> bool:
        """Whether somebody else's conversation is answered with NotFound."""
        return bool(self._options.hide_foreign)

    # --- conversations ----------------------------------------------------------------------------------------

    async def _state(self, rows: R, key: Key, *, lock: bool = False) -> StateRow:
        """What appends and histories begin with. Raises NotFound or NotYours."""
        found = await rows.state(key, lock=lock)
        if found is None:
            raise await self._missing(rows, key[1])
        return found

    async def _missing(self, rows: R, id_: UUID) -> ChatkeepError:
        """Why there is no conversation: nobody has it, or somebody else does and the store may say so."""
        if not self._hides_foreign and await rows.exists_elsewhere(id_):
            return NotYours("this conversation belongs to somebody else", got=id_)
        return NotFound("there is no such conversation", got=id_)

    async def _conversation(self, rows: R, key: Key, *, lock: bool = False) -> Conversation:
        found = await rows.conversation(key, lock=lock)
        if found is None:
            raise await self._missing(rows, key[1])
        return found

    async def _create_in(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        await self._check_scope(rows, key, new)
        return await rows.create(key, new) or await self._created_before(rows, key, new)

    async def _check_scope(self, rows: R, key: Key, new: NewConversation) -> None:
        if new.project_id is not None and not await rows.has_project(key[0], new.project_id):
            raise NotFound("there is no such project", got=new.project_id)
        await self._check_provider(rows, new.llm_provider_id)

    async def _check_provider(self, rows: R, id_: UUID | None) -> None:
        if id_ is not None and not await rows.has_provider(id_):
            raise InvalidInput("there is no such llm_provider_id; GET /api/llm-providers lists them", got=id_)

    async def _found(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        """What get-or-create returns if it is there."""
        if new.external_id is None:
            return await rows.newest(key[0], Scope(new.context_id, new.project_id))
        return await self._by_external_id(rows, key, new.external_id)

    async def _by_external_id(self, rows: R, key: Key, external_id: str) -> Conversation | None:
        """The most recently updated conversation with an external id, or with the id that is made of it: of an import
        whose foreign id is a UUID, that is all."""
        size = PageSize(1, self._options.max_page_bytes)
        found = await rows.listed(key[0], ListFilter(external_id=external_id), "updated", None, size, 0)
        return found.items[0] if found.items else await rows.conversation(key)

    async def _narrowed(self, rows: R, owner: str, which: ListFilter) -> ListFilter:
        """The filter with the conversations of a label that few have: they are read one by one, not found in passing
        among all others."""
        for label in which.labels:
            ids = await rows.labelled(owner, label, FEW_LABELLED + 1)
            if len(ids) <= FEW_LABELLED:
                return which._replace(ids=tuple(ids))
        return which

    async def _get_or_create_in(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        """Whoever takes the slot of the scope, or the id that is made of an external id, creates; others read again."""
        await self._check_scope(rows, key, new)
        found = await rows.create(key, new, slot=new.external_id is None) or await self._found(rows, key, new)
        return found or await self._created_before(rows, key, new)

    async def _created_before(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        """The conversation with this id; None if there is none now. Raises Conflict if it has other values."""
        fingerprint = await rows.fingerprint(key)
        if fingerprint is None:
            return None
        if fingerprint != new.fingerprint():
            raise Conflict("this conversation id is already used for other values", got=key[1])
        return await rows.conversation(key)

    async def _update(self, rows: R, key: Key, change: ConversationChange) -> Conversation:
        before = await self._conversation(rows, key, lock=True)
        changed = {name: getattr(change, name) for name in change.model_fields_set}
        values = dict(changed)
        if "metadata" in changed:
            # The metadata is not read again: a mebibyte of it takes longer than all else, and other writers wait.
            changed["metadata"], values["metadata"] = patched(before.metadata, change.metadata, self._metadata_limits)
        if "head_id" in changed:
            head = None if change.head_id is None else await self._message(rows, key, change.head_id)
            values["head_seq"] = head.seq if head else None
        if "llm_provider_id" in changed:
            await self._check_provider(rows, change.llm_provider_id)
        if changed.get("context_id", before.context_id) == before.context_id:  # it keeps its slot
            values.pop("context_id", None)
        if not values:
            return before
        await rows.set_values(key, values)
        return before.model_copy(update=changed)

    # --- messages ---------------------------------------------------------------------------------------------

    async def _append_to(
        self,
        rows: R,
        key: Key,
        messages: Sequence[NewMessage],
        fingerprints: Sequence[bytes],
        expected_seq: int | None,
    ) -> list[Message]:
        row = await self._state(rows, key, lock=True)
        ids = ids_to_look_up(messages) if row.last_seq else ()
        known = await rows.known(key, ids) if ids else {}
        state = await self._loaded(rows, key, row)
        results = plan(key[1], state, messages, fingerprints, known, row.moment, expected_seq)
        old = {result: known[result] for result in results if isinstance(result, UUID)}
        stored = await self._repeated(rows, key, old) if old else {}
        new = unique(result for result in results if isinstance(result, Placed))
        if new:
            await rows.save(key, state, new)
        return [result.message if isinstance(result, Placed) else stored[result] for result in results]

    async def _repeated(self, rows: R, key: Key, old: Mapping[UUID, Known]) -> dict[UUID, Message]:
        """The messages that an append repeats, as they are now. Raises InvalidInput if they are too large together:
        metadata may have grown since."""
        if len(old) == 1:
            return await rows.messages_by_id(key, old)
        deleted = [id_ for id_, known in old.items() if known.deleted]
        seqs = sorted(known.position.seq for known in old.values() if not known.deleted)
        size = PageSize(len(seqs), REPEATED_PAGES * self._options.max_page_bytes)
        found = await rows.messages_by_seq(key, seqs, size) if seqs else Part([])
        if found.cut:
            raise InvalidInput(
                f"messages that are stored have more than {size.max_bytes:,} bytes together; append fewer at a time"
            )
        tombstones = await rows.messages_by_id(key, deleted) if deleted else {}
        return tombstones | {message.id: message for message in found.items}

    async def _loaded(self, rows: R, key: Key, row: StateRow) -> State:
        """What an append changes of a conversation."""
        tree = Tree.load(row.last_seq, row.runs)
        head = None
        if row.head_seq is not None:  # mostly the tree knows its position, without a query
            head = tree.find(row.head_seq) or await rows.position(key, row.head_seq)
        return State(tree, head, row.head_id, row.title, row.updated_at)

    async def _message(self, rows: R, key: Key, id_: UUID) -> Message:
        found = (await rows.messages_by_id(key, (id_,))).get(id_)
        if found is None or not rows.reads_visible:
            await self._state(rows, key)  # after the message: what is there now was whole when it was read
        if found is None or found.status == Status.DELETED:
            raise NotFound("there is no such message in this conversation", got=id_)
        return found

    async def _delete_message(self, rows: R, key: Key, id_: UUID) -> bool:
        conversation = await self._conversation(rows, key, lock=True)
        message = (await rows.messages_by_id(key, (id_,))).get(id_)
        if message is None or message.status == Status.DELETED:
            return False
        if message.status is Status.IN_PROGRESS:
            await rows.end_turn(TurnKey(*key, id_))
        await rows.erase_message(key, id_)
        if message.role == Role.USER and conversation.title == title_from(message.content):
            await rows.set_values(key, {"title": None})
        return True

    # --- answers in progress ----------------------------------------------------------------------------------

    async def _so_far(self, rows: R, key: Key, messages: list[Message]) -> list[Message]:
        """The messages; those that are in progress with what there is of them."""
        running = [message for message in messages if message.status is Status.IN_PROGRESS]
        if not running:
            return messages
        places = [TurnPlace(TurnKey(*key, message.id)) for message in running]
        progress = await rows.events_of(places, ALL_BYTES)
        pairs = list(zip(running, progress, strict=True))
        ended = [message.id for message, each in pairs if not each.is_running]  # since they were read
        shown = await rows.messages_by_id(key, ended) if ended else {}
        shown |= {message.id: running_answer(message, each) for message, each in pairs if each.is_running}
        return [shown.get(message.id, message) for message in messages]

    async def _page_so_far(self, rows: R, key: Key, page: Page[Message]) -> Page[Message]:
        items = await self._so_far(rows, key, page.items)
        return page if items is page.items else page.model_copy(update={"items": items})

    async def _message_so_far(self, rows: R, key: Key, id_: UUID) -> Message:
        (message,) = await self._so_far(rows, key, [await self._message(rows, key, id_)])
        return message

    async def _log_so_far(self, rows: R, key: Key, after: int, limit: int) -> list[Message]:
        return await self._so_far(rows, key, await self._log(rows, key, after, limit))

    async def _log(self, rows: R, key: Key, after: int, limit: int) -> list[Message]:
        found = (await rows.log(key, after, PageSize(limit, self._options.max_page_bytes))).items
        if not found or not rows.reads_visible:
            await self._state(rows, key)
        return found

    async def _siblings(
        self, rows: R, key: Key, id_: UUID, size: PageSize, after: int
    ) -> tuple[list[Message], int | None]:
        """A page of siblings, and the seq after which the next one begins."""
        message = await self._message(rows, key, id_)
        row = await self._state(rows, key)
        seqs = [seq for seq in await self._children(rows, key, row, message.parent_id) if seq > after]
        start, end = 0, size.limit + 1
        while start < len(seqs):
            part = await rows.messages_by_seq(key, seqs[start:end], size._replace(limit=size.limit + 1))
            found = part.items[: size.limit]
            if found:
                goes_on = part.cut or len(part.items) > size.limit or end < len(seqs)
                return found, found[-1].seq if goes_on else None
            start, end = end, end + LOOK  # all of them are deleted
        return [], None

    async def _children(self, rows: R, key: Key, row: StateRow, parent_id: UUID | None) -> list[int]:
        """The seqs of the messages that follow one message, or that stand at the root."""
        tree = Tree.load(row.last_seq, row.runs)
        if parent_id is None:
            return tree.runs_from(-1, 0)
        parent = (await rows.known(key, (parent_id,)))[parent_id].position
        children = tree.runs_from(parent.run, parent.seq)
        if parent.seq < tree.trunk_end:
            children.append(parent.seq + 1)
        elif parent.seq < tree.runs[parent.run].tip_seq:
            children += await rows.next_in_run(key, parent)
        return sorted(children)

    async def _update_message(self, rows: R, key: Key, id_: UUID, change: MessageChange) -> Message:
        await self._state(rows, key, lock=True)
        message = await self._message(rows, key, id_)
        if "metadata" not in change.model_fields_set:
            return message
        metadata, text = patched(message.metadata, change.metadata, self._metadata_limits)
        await rows.set_metadata(key, id_, text if metadata else None)
        (changed,) = await self._so_far(rows, key, [message.model_copy(update={"metadata": metadata})])
        return changed

    # --- paths ------------------------------------------------------------------------------------------------

    async def _history(
        self, rows: R, key: Key, leaf: UUID | None, window: Window, room: int, *, total: bool
    ) -> Page[Message]:
        """A page of a path, of at most `room` bytes."""
        return await self._page(rows, key, await self._state(rows, key), leaf, window, room, total=total)

    async def _page(
        self, rows: R, key: Key, row: StateRow, leaf: UUID | None, window: Window, room: int, *, total: bool
    ) -> Page[Message]:
        tree = Tree.load(row.last_seq, row.runs)
        end = await self._leaf(rows, key, tree, row, leaf, window)
        if end is None:
            return window.page([], None, None, 0 if total else None)
        return await self._path_page(rows, key, tree, end, window, room, total=total)

    async def _path_page(
        self,
        rows: R,
        key: Key,
        tree: Tree,
        end: Position,
        window: Window,
        room: int,
        *,
        total: bool,
        first: Part[Message] | None = None,
    ) -> Page[Message]:
        """A page of the path to `end`, of whose first segment a part may have been read."""
        reader = PathReader(rows, key, window, room, tree.path(end.run, end.seq))
        await reader.read(first)
        if not (rows.is_snapshot or reader.is_whole):
            await self._state(rows, key)  # it may be being removed since it was read
        length = await path_length(rows, key, end, tree.path(end.run, end.seq)) if total else None
        return window.page(reader.found, end.seq, reader.last_seq, length)

    async def _leaf(
        self, rows: R, key: Key, tree: Tree, row: StateRow, leaf: UUID | None, window: Window
    ) -> Position | None:
        """The end of the path: the cursor's leaf, the one that is named, or the head."""
        seq = row.head_seq
        if window.leaf_seq is not None:
            seq = window.checked_leaf(tree.last_seq)
        elif leaf is not None:
            seq = (await self._message(rows, key, leaf)).seq
        return None if seq is None else tree.find(seq) or await rows.position(key, seq)


def running_answer(message: Message, progress: TurnProgress) -> RunningAnswer:
    """The record of an answer that is in progress, with what its events add up to."""
    folded = fold(progress.events)
    place = StreamPlace(last_event_id=str(place_of(message.id, folded.n, folded.chars)))
    more = {name: getattr(folded, name) for name in SO_FAR}
    return stored(RunningAnswer, RUNNING_FIELDS, vars(message) | more | {"stream": place})


SO_FAR = ("content", "parts", "sources", "model", "input_tokens", "output_tokens")
"""What events add up to, of a message."""
