"""What runs in a transaction, over its rows: 403 or 404, threading, branches, paths. The same for every database."""

from collections.abc import Sequence
from uuid import UUID

from chatkeep.errors import ChatkeepError, Conflict, NotFound, NotYours
from chatkeep.model import Conversation, ConversationChange, Message, NewConversation, NewMessage, Page, Role, Status
from chatkeep.store import Store, StoreOptions
from chatkeep.stores.append import Placed, State, ids_to_look_up, plan
from chatkeep.stores.rows import Key, Rows, StateRow, unique
from chatkeep.stores.window import Window
from chatkeep.tree import Position, Segment, Tree
from chatkeep.values import patched, title_from


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
        return await rows.create(key, new) or await self._created_before(rows, key, new)

    async def _get_or_create_in(self, rows: R, key: Key, new: NewConversation) -> Conversation | None:
        """Whoever takes the slot of the context creates; whoever finds it taken reads again."""
        found = await rows.create(key, new, slot=True) or await rows.newest(key[0], new.context_id)
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
        new = unique(result for result in results if isinstance(result, Placed))
        if new:
            await rows.save(key, state, new)
        old = [result for result in results if isinstance(result, UUID)]
        stored = await rows.messages_by_id(key, old) if old else {}
        return [result.message if isinstance(result, Placed) else stored[result] for result in results]

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
        await rows.erase_message(key, id_)
        if message.role == Role.USER and conversation.title == title_from(message.content):
            await rows.set_values(key, {"title": None})
        return True

    async def _log(self, rows: R, key: Key, after: int, limit: int) -> list[Message]:
        found = await rows.log(key, after, limit)
        if not found or not rows.reads_visible:
            await self._state(rows, key)
        return found

    async def _siblings(self, rows: R, key: Key, id_: UUID) -> list[Message]:
        message = await self._message(rows, key, id_)
        row = await self._state(rows, key)
        tree, parent_id = Tree.load(row.last_seq, row.runs), message.parent_id
        if parent_id is None:
            return await rows.messages_by_seq(key, tree.runs_from(-1, 0))
        parent = (await rows.known(key, (parent_id,)))[parent_id].position
        seqs = [*tree.runs_from(parent.run, parent.seq), *await rows.next_in_run(key, parent)]
        return await rows.messages_by_seq(key, seqs)

    # --- paths ------------------------------------------------------------------------------------------------

    async def _history(self, rows: R, key: Key, leaf: UUID | None, window: Window, *, total: bool) -> Page[Message]:
        return await self._page(rows, key, await self._state(rows, key), leaf, window, total=total)

    async def _page(
        self, rows: R, key: Key, row: StateRow, leaf: UUID | None, window: Window, *, total: bool
    ) -> Page[Message]:
        tree = Tree.load(row.last_seq, row.runs)
        end = await self._leaf(rows, key, tree, row, leaf, window)
        path = tree.path(end.run, end.seq) if end else []
        segments = [segment for segment in window.cut(path) if segment.low <= segment.high]
        found = await self._path_messages(rows, key, segments, window)
        if not rows.shows_whole(found, window, segments):
            await self._state(rows, key)  # it may be being removed since it was read
        length = await self._length(rows, key, end, path) if total else None
        return window.page(found, end, length)

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

    async def _path_messages(self, rows: R, key: Key, segments: Sequence[Segment], window: Window) -> list[Message]:
        """The messages of a page in reading order, and one more if there is more."""
        found: list[Message] = []
        skip = window.offset
        for segment in segments:
            more = await rows.segment(key, segment, window.order, window.limit + 1 - len(found), skip)
            if skip:
                skip = 0 if more else skip - await rows.count_segment(key, segment, deleted=False)
            found += more
            if len(found) > window.limit:
                break
        return found

    async def _length(self, rows: R, key: Key, end: Position | None, path: Sequence[Segment]) -> int:
        deleted = [await rows.count_segment(key, segment, deleted=True) for segment in path]
        return (end.depth if end else 0) - sum(deleted)
