"""Pages of a conversation's messages."""

import base64
import json
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidId, InvalidInput
from chatkeep.model import Conversation, Message, NewConversation, Page
from chatkeep.store import Order, Store
from chatkeep.testing.calls import ORDERS
from chatkeep.testing.contract import Contract
from chatkeep.testing.examples import JSON, PROPERTY, forged, refused_or_paged
from chatkeep.testing.messages import dense, numbered, seqs
from chatkeep.testing.reference import others_appending, whole_history


class HistoryContract(Contract):
    """Pages of a conversation's messages."""

    async def test_newest_messages_oldest_first(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A history is the newest 50 messages by default, the oldest of them first."""
        stored = await store.append(owner, conversation.id, numbered(60))
        page = await store.history(owner, conversation.id)
        assert page.items == stored[10:]
        assert page.total is None
        assert (await store.history(owner, conversation.id, limit=3)).items == stored[-3:]
        assert (await store.history(owner, conversation.id, limit=3, order="asc")).items == stored[:3]
        assert (await store.history(owner, conversation.id, limit=100, cursor=page.next)).items == stored[:10]

    async def test_bounds(self, store: Store, owner: str, conversation: Conversation) -> None:
        """`before` and `after` are exclusive; outside the path they select nothing or everything."""
        stored = await store.append(owner, conversation.id, numbered(10))
        cases: list[tuple[int | None, int | None, list[Message]]] = [
            (6, None, stored[:5]),
            (None, 6, stored[6:]),
            (8, 3, stored[3:7]),
            (4, 3, []),
            (3, 8, []),
            (0, None, []),
            (-5, None, []),
            (2**70, -5, stored),
            (None, 2**70, []),
            (None, 0, stored),
        ]
        for before, after, expected in cases:
            for order in ORDERS:
                page = await store.history(owner, conversation.id, before=before, after=after, order=order, total=True)
                assert (page.items, page.total, page.next) == (expected, 10, None)

    async def test_log_bounds(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The log starts after `after`, whatever seq that is."""
        stored = await store.append(owner, conversation.id, numbered(5))
        assert await store.log(owner, conversation.id, after=2, limit=2) == stored[2:4]
        assert await store.log(owner, conversation.id, after=5) == []
        assert await store.log(owner, conversation.id, after=2**70) == []
        assert await store.log(owner, conversation.id, after=-(2**70)) == stored

    @pytest.mark.parametrize("order", ORDERS)
    async def test_paging_2500_messages_while_others_append(
        self, store: Store, owner: str, conversation: Conversation, order: Order
    ) -> None:
        """Following the cursor, in both orders, misses nothing and repeats nothing."""
        await self._fill(store, owner, conversation.id, 2_500)
        async with others_appending(store, owner, conversation.id):
            seen = await whole_history(store, owner, conversation.id, limit=97, order=order)
        assert len(seen) >= 2_500
        assert seqs(seen) == dense(len(seen))

    async def test_offsets_over_2500_messages_while_others_append(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """By offset, from the oldest on, or back from a given leaf, 2,500 messages come once each."""
        leaf = await self._fill(store, owner, conversation.id, 2_500)
        forward: list[Message] = []
        back: list[Message] = []
        async with others_appending(store, owner, conversation.id):
            for offset in range(0, 2_500, 250):
                page = await store.history(owner, conversation.id, order="asc", limit=250, offset=offset, total=True)
                forward += page.items
                assert page.total is not None
                assert page.total >= 2_500
                page = await store.history(owner, conversation.id, leaf=leaf, limit=250, offset=offset, total=True)
                back = page.items + back
                assert page.total == 2_500
        assert seqs(forward) == seqs(back) == dense(2_500)

    async def test_seqs_over_2500_messages_while_others_append(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """By `before` and by `after`, a page continues from the seq of the last message seen."""
        await self._fill(store, owner, conversation.id, 2_500)
        back: list[Message] = []
        forward: list[Message] = []
        async with others_appending(store, owner, conversation.id):
            while not back or back[0].seq > 1:
                before = back[0].seq if back else 2_501
                back = (await store.history(owner, conversation.id, limit=199, before=before)).items + back
            while len(forward) < 2_500:
                forward += (
                    await store.history(owner, conversation.id, order="asc", limit=199, after=len(forward))
                ).items
        assert seqs(back) == dense(2_500)
        assert seqs(forward) == dense(len(forward))

    async def _fill(self, store: Store, owner: str, conversation_id: UUID, count: int) -> UUID:
        for start in range(0, count, 500):
            stored = await store.append(owner, conversation_id, numbered(500, f"part {start}"))
        return stored[-1].id

    async def test_cursor_belongs_to_its_history(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A cursor is refused for another conversation, order, bound or leaf, and together with an offset."""
        other = await store.create_conversation(owner, NewConversation())
        for id_ in (conversation.id, other.id):
            stored = await store.append(owner, id_, numbered(5))
        cursor = (await store.history(owner, other.id, limit=1)).next
        assert cursor is not None
        for id_, arguments in (
            (conversation.id, {}),
            (other.id, {"order": "asc"}),
            (other.id, {"before": 4}),
            (other.id, {"after": 1}),
            (other.id, {"leaf": stored[-1].id}),
            (other.id, {"offset": 1}),
        ):
            with pytest.raises(InvalidInput):
                await store.history(owner, id_, cursor=cursor, **arguments)
        assert (await store.history(owner, other.id, limit=9, cursor=cursor)).items == stored[:4]

    @pytest.mark.parametrize("limit", [0, -1, 1_001, 2**70])
    async def test_limits_are_refused_not_coerced(
        self, store: Store, owner: str, conversation: Conversation, limit: int
    ) -> None:
        """A page has 1 to 1,000 items; every other limit is refused, and the message says what is allowed."""
        for call in (
            store.history(owner, conversation.id, limit=limit),
            store.log(owner, conversation.id, limit=limit),
            store.list_conversations(owner, limit=limit),
            store.search_messages(owner, "tea", limit=limit),
        ):
            with pytest.raises(InvalidInput, match=r"1 and 1,?000"):
                await call

    async def test_offsets_and_orders_are_refused_not_coerced(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """An offset is 0 to 10,000, an order is asc or desc."""
        for arguments in ({"offset": -1}, {"offset": 10_001}, {"order": "up"}, {"order": "DESC"}):
            with pytest.raises(InvalidInput):
                await store.history(owner, conversation.id, **arguments)
            with pytest.raises(InvalidInput):
                await store.list_conversations(owner, **arguments)
        assert (await store.history(owner, conversation.id, limit=1_000, offset=10_000)).items == []
        assert (await store.list_conversations(owner, limit=1_000, offset=10_000)).items == []

    async def test_forged_cursors_are_refused(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A cursor with an impossible position raises InvalidInput or InvalidId, or gives a page; no other error."""
        await store.append(owner, conversation.id, numbered(3))
        for _ in range(2):
            await store.create_conversation(owner, NewConversation())
        for order, call in self._paged(store, owner, conversation.id):
            cursor = (await call(None)).next
            assert cursor is not None, order
            for bad in ("", "=", "x" * 10_000, "٣", "\ud800", "\x00", cursor + "A", cursor[:-1], *forged(cursor)):
                await refused_or_paged(call(bad), 1)

    @PROPERTY
    @given(junk=st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()) | JSON.map(json.dumps))
    async def test_junk_cursors_are_refused(self, store: Store, owner: str, junk: str) -> None:
        """Any text as cursor raises InvalidInput or InvalidId, as do bytes and JSON in base64."""
        conversation = await store.get_or_create_conversation(owner, NewConversation())
        encoded = base64.urlsafe_b64encode(junk.encode()).decode().rstrip("=")
        for _, call in self._paged(store, owner, conversation.id):
            for cursor in (junk, encoded):
                if cursor:
                    with pytest.raises((InvalidInput, InvalidId)):
                        await call(cursor)

    def _paged(
        self, store: Store, owner: str, conversation_id: UUID
    ) -> list[tuple[str, Callable[[str | None], Awaitable[Page[Any]]]]]:
        return [
            ("history desc", lambda cursor: store.history(owner, conversation_id, limit=1, cursor=cursor)),
            ("history asc", lambda cursor: store.history(owner, conversation_id, limit=1, order="asc", cursor=cursor)),
            ("list updated", lambda cursor: store.list_conversations(owner, limit=1, cursor=cursor)),
            ("list id", lambda cursor: store.list_conversations(owner, limit=1, order="id", cursor=cursor)),
            ("search", lambda cursor: store.search_messages(owner, "turn", limit=1, cursor=cursor)),
        ]
