"""Pages that have a size."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from itertools import pairwise
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import InvalidInput, NotFound
from chatkeep.model import Conversation, Message, NewConversation, NewMessage, Page, Role, SearchHit, Source, Status
from chatkeep.store import Store
from chatkeep.testing.calls import ORDERS
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.examples import PROPERTY
from chatkeep.testing.messages import assistant, numbered, user
from chatkeep.testing.reference import path_to, siblings_of, whole_list, whole_log
from chatkeep.values import json_text

BOUND = 400
"""The most bytes of a page of the store `small`."""

type Item = Message | Conversation | SearchHit
type Read[T] = Callable[[str | None], Awaitable[Page[T]]]

SIZES = st.one_of(st.integers(0, 60), st.integers(0, BOUND * 2))
LIMITS = st.integers(1, 6)
PLACES = ("a", "é", "metadata", "source", "parts")
"""Where the bytes of a message are: a letter stands for its content."""


class PageContract(Contract):
    """Pages that have a size."""

    @pytest.fixture
    async def small(self, open_store_with: Opener) -> AsyncIterator[Store]:
        """The store under test, with small pages."""
        async with open_store_with(max_page_bytes=BOUND) as store:
            yield store

    @PROPERTY
    @given(plan=st.data())
    async def test_pages_of_messages_have_a_size(self, small: Store, owner: str, plan: st.DataObject) -> None:
        """Histories, logs and siblings of messages of any sizes come without loss or repetition, within the bound."""
        conversation = await small.create_conversation(owner, NewConversation())
        await self._fill_with(small, owner, conversation.id, plan)
        log = await whole_log(small, owner, conversation.id)
        limit, has_deleted = plan.draw(LIMITS, label="limit"), any(m.status == Status.DELETED for m in log)
        head = (await small.get_conversation(owner, conversation.id)).head_id
        path = path_to(head, log)
        for order in ORDERS:

            async def history(cursor: str | None, order: str = order) -> Page[Message]:
                return await small.history(owner, conversation.id, limit=limit, order=order, cursor=cursor)  # type: ignore[arg-type]

            pages = await self._pages_of(history, limit)
            reading = [page[::-1] for page in pages] if order == "desc" else pages
            assert [m for page in reading for m in page] == (path[::-1] if order == "desc" else path)
            assert has_deleted or self._are_full(reading, limit)
        await self._compare_log(small, owner, conversation.id, log, limit)
        for message in path[-2:]:

            async def siblings(cursor: str | None, id_: UUID = message.id) -> Page[Message]:
                return await small.siblings(owner, conversation.id, id_, limit=limit, cursor=cursor)

            pages = await self._pages_of(siblings, limit)
            assert [m for page in pages for m in page] == siblings_of(message, log)
            assert has_deleted or self._are_full(pages, limit)

    async def test_a_page_of_megabytes_is_whole(self, store: Store, owner: str, conversation: Conversation) -> None:
        """What has room in a page by default comes in one, also if that is read twice."""
        stored = await store.append(owner, conversation.id, [assistant("x" * 700_000) for _ in range(4)])
        page = await store.history(owner, conversation.id, limit=10)
        assert page.next is None
        assert page.items == stored

    async def _compare_log(
        self, store: Store, owner: str, conversation_id: UUID, log: Sequence[Message], limit: int
    ) -> None:
        seen: list[Message] = []
        while part := await store.log(owner, conversation_id, after=len(seen), limit=limit):
            assert len(part) == 1 or (len(part) <= limit and sum(map(size_of, part)) <= BOUND)
            seen += part
        assert seen == log

    @PROPERTY
    @given(plan=st.data())
    async def test_pages_of_hits_have_a_size(self, small: Store, owner: str, plan: st.DataObject) -> None:
        """All hits of a search come once, the one stored last first, whatever their sizes are."""
        conversation = await small.create_conversation(owner, NewConversation())
        await self._fill_with(small, owner, conversation.id, plan)
        log = await whole_log(small, owner, conversation.id)
        limit, word = plan.draw(LIMITS, label="limit"), conversation.id.hex

        async def search(cursor: str | None) -> Page[SearchHit]:
            return await small.search_messages(owner, word, limit=limit, cursor=cursor)

        pages = await self._pages_of(search, limit)
        living = [m for m in reversed(log) if m.status != Status.DELETED]
        assert [hit.message for page in pages for hit in page] == living
        assert self._are_full(pages, limit)

    @PROPERTY
    @given(sizes=st.lists(SIZES, max_size=7), limit=LIMITS)
    async def test_pages_of_conversations_have_a_size(self, small: Store, sizes: list[int], limit: int) -> None:
        """Both lists of conversations of any sizes come without loss or repetition, within the bound."""
        owner = str(uuid4())
        made = [
            await small.create_conversation(owner, NewConversation(metadata={"é": "x" * size} if size else {}))
            for size in sizes
        ]
        for order, expected in (("id", sorted(made, key=lambda c: c.id)), ("updated", made[::-1])):

            async def listed(cursor: str | None, order: str = order) -> Page[Conversation]:
                return await small.list_conversations(owner, order=order, limit=limit, cursor=cursor)  # type: ignore[arg-type]

            pages = await self._pages_of(listed, limit)
            assert [c for page in pages for c in page] == expected
            assert self._are_full(pages, limit)

    async def test_what_is_larger_than_a_page_comes_alone(self, small: Store, owner: str) -> None:
        """Every item comes, also if each is larger than a page; totals and offsets are not about sizes."""
        made = await small.create_conversation(owner, NewConversation(metadata={"a": "x" * BOUND}))
        stored = await small.append(owner, made.id, [assistant("x" * BOUND * (n + 1)) for n in range(3)])
        page = await small.history(owner, made.id, total=True)
        assert (page.items, page.total) == (stored[2:], 3)
        assert (await small.history(owner, made.id, offset=1)).items == stored[1:2]
        assert (await small.history(owner, made.id, order="asc", offset=2)).items == stored[2:]
        assert await small.log(owner, made.id, after=1) == stored[1:2]
        other = await small.create_conversation(owner, NewConversation(metadata={"a": "y" * BOUND}))
        assert len((await small.list_conversations(owner)).items) == 1
        assert await whole_list(small, owner, order="id") == sorted(
            [await small.get_conversation(owner, made.id), other], key=lambda c: c.id
        )

    async def test_a_page_is_full_to_the_byte(self, small: Store, owner: str) -> None:
        """What has just as many bytes as a page may have is one page; one byte more, and the last item is left."""
        made = await small.create_conversation(owner, NewConversation())
        half = BOUND // 2
        stored = await small.append(owner, made.id, [assistant("x" * size) for size in (half, half, half + 1)])
        assert await small.log(owner, made.id) == stored[:2]
        assert (await small.history(owner, made.id, before=3)).items == stored[:2]
        assert (await small.history(owner, made.id)).items == stored[2:]

    async def test_parts_fill_a_page_to_the_byte(self, small: Store, owner: str) -> None:
        """The parts of a message count as their JSON: two that fill a page are one page, one byte more is not."""
        made = await small.create_conversation(owner, NewConversation())
        half = BOUND // 2 - len('[{"type":"data","data":""}]')
        parts = [({"type": "data", "data": "x" * size},) for size in (half, half, half + 1)]
        stored = await small.append(owner, made.id, [NewMessage(role=Role.USER, parts=each) for each in parts])
        assert await small.log(owner, made.id) == stored[:2]
        assert (await small.history(owner, made.id, before=3)).items == stored[:2]
        assert (await small.history(owner, made.id)).items == stored[2:]

    async def test_pages_of_siblings(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Siblings come in pages, by seq; the cursor belongs to the message, and siblings come last that are new."""
        root, first = await store.append(owner, conversation.id, numbered(2))
        others = [assistant(str(number), id=uuid4(), parent_id=root.id) for number in range(6)]
        made = [first, *await store.append(owner, conversation.id, others)]
        page = await store.siblings(owner, conversation.id, made[3].id, limit=3)
        assert page.items == made[:3]
        await store.delete_message(owner, conversation.id, made[4].id)
        (new,) = await store.append(owner, conversation.id, [user("new", parent_id=root.id)])
        after = await store.siblings(owner, conversation.id, made[3].id, limit=50, cursor=page.next)
        assert (after.items, after.next) == ([made[3], *made[5:], new], None)
        for call in (
            store.siblings(owner, conversation.id, made[2].id, cursor=page.next),
            store.siblings(owner, conversation.id, made[3].id, cursor="tea"),
            store.siblings(owner, conversation.id, made[3].id, limit=0),
            store.siblings(owner, conversation.id, made[3].id, limit=1_001),
        ):
            with pytest.raises(InvalidInput):
                await call
        with pytest.raises(NotFound):
            await store.siblings(owner, conversation.id, made[4].id)

    async def _fill_with(self, store: Store, owner: str, conversation_id: UUID, plan: st.DataObject) -> None:
        """Append messages of any sizes, on some branches, and delete some of them."""
        ids = [uuid4() for _ in plan.draw(st.lists(st.none(), min_size=1, max_size=9), label="messages")]
        messages = [self._message(conversation_id, ids[: number + 1], plan) for number in range(len(ids))]
        await store.append(owner, conversation_id, messages)
        for id_ in plan.draw(st.lists(st.sampled_from(ids), max_size=2), label="deleted"):
            await store.delete_message(owner, conversation_id, id_)

    def _message(self, conversation_id: UUID, ids: list[UUID], plan: st.DataObject) -> NewMessage:
        size, where = plan.draw(SIZES, label="size"), plan.draw(st.sampled_from(PLACES))
        text = f"{conversation_id.hex} " + (where * size if len(where) == 1 else "")
        parents: list[UUID | None] = [ids[-2] if len(ids) > 1 else None, *ids[:-1]]
        parent = plan.draw(st.sampled_from(parents[:1] * 4 + parents), label="parent")
        source = Source(document_id=ids[-1], file_path="x" * (1 + min(size, 200)), similarity_score=0.5)
        sources = (source,) if where == "source" else ()
        metadata = {"a": "é" * size} if where == "metadata" else {}
        parts = ({"type": "data", "data": "é" * size},) if where == "parts" else None
        return assistant(text, id=ids[-1], parent_id=parent, metadata=metadata, sources=sources, parts=parts)

    async def _pages_of[T: Item](self, read: Read[T], limit: int) -> list[list[T]]:
        """All pages of a list, each of which is within the bounds."""
        pages: list[list[T]] = []
        cursor: str | None = None
        while True:
            page = await read(cursor)
            assert len(page.items) <= limit
            assert len(page.items) == 1 or sum(map(size_of, page.items)) <= BOUND
            assert page.items or page.next is None
            pages.append(page.items)
            cursor = page.next
            if cursor is None:
                return pages

    def _are_full[T: Item](self, pages: list[list[T]], limit: int) -> bool:
        """Whether no item would have had room in the page before."""
        return all(
            len(page) == limit or sum(map(size_of, page)) + size_of(following[0]) > BOUND
            for page, following in pairwise(pages)
            if following
        )


def size_of(item: Item) -> int:
    """The size of an item as the port has it."""
    if isinstance(item, Conversation):
        return len(json_text(item.metadata).encode())
    message = item.message if isinstance(item, SearchHit) else item
    json = [json_text(value) for value in (message.parts, message.sources, message.metadata) if value]
    return sum(len(text.encode()) for text in (message.content, *json))
