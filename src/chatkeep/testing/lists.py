"""Pages of conversations."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest

from chatkeep.errors import InvalidInput
from chatkeep.model import ImportedConversation, NewConversation
from chatkeep.store import ListOrder, Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import someone, user
from chatkeep.testing.reference import by_time, selected, whole_list


class ListContract(Contract):
    """Pages of conversations."""

    async def test_most_recently_updated_first(self, store: Store, owner: str) -> None:
        """The list starts with the conversation of the last message; its default limit is ten."""
        made = [await store.create_conversation(owner, NewConversation()) for _ in range(12)]
        for number in (3, 7):
            await store.append(owner, made[number].id, [user("hello")])
        page = await store.list_conversations(owner)
        expected = [7, 3, 11, 10, 9, 8, 6, 5, 4, 2]
        assert [c.id for c in page.items] == [made[n].id for n in expected]
        assert page.total is None
        assert page.items[0] == await store.get_conversation(owner, made[7].id)

    async def test_every_page_by_cursor(self, store: Store, owner: str) -> None:
        """Following the cursor gives the whole list once, in both orders, even if all times are equal."""
        noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        made = [await store.create_conversation(owner, ImportedConversation(updated_at=noon)) for _ in range(11)]
        made += [await store.create_conversation(owner, NewConversation()) for _ in range(6)]
        for limit in (1, 2, 5, 17, 18):
            assert await whole_list(store, owner, limit=limit) == by_time(made)
            assert await whole_list(store, owner, order="id", limit=limit) == sorted(made, key=lambda c: c.id)

    async def test_pages_by_offset_and_total(self, store: Store, owner: str) -> None:
        """An offset skips as many, the total counts the whole list; a page after the end is empty."""
        for _ in range(7):
            await store.create_conversation(owner, NewConversation())
        everything = await whole_list(store, owner, limit=100)
        pages = [await store.list_conversations(owner, limit=3, offset=offset, total=True) for offset in (0, 3, 6, 9)]
        assert [c for page in pages for c in page.items] == everything
        assert [page.total for page in pages] == [7] * 4
        assert pages[3].next is None

    async def test_one_context(self, store: Store, owner: str) -> None:
        """With a context only its conversations are listed and counted; an unknown context is an empty list."""
        for number in range(9):
            await store.create_conversation(owner, NewConversation(context_id=("kitchen", "garden", None)[number % 3]))
        everything = await whole_list(store, owner, limit=100)
        kitchen = [c for c in everything if c.context_id == "kitchen"]
        assert len(kitchen) == 3
        assert await whole_list(store, owner, context_id="kitchen", limit=2) == kitchen
        assert (await store.list_conversations(owner, context_id="kitchen", total=True)).total == 3
        assert (await store.list_conversations(owner, context_id="cellar", total=True)).total == 0

    async def test_context_with_a_lone_surrogate(self, store: Store, owner: str) -> None:
        """A context is found by the text that it was created with, even if that is not valid Unicode."""
        created = await store.create_conversation(owner, NewConversation(context_id="k\ud800"))
        assert (await store.list_conversations(owner, context_id="k\ud800")).items == [created]

    async def test_paging_while_conversations_are_touched(self, store: Store, owner: str) -> None:
        """While conversations change, a list by time has nothing twice; a list by id has everything once."""
        made = [await store.create_conversation(owner, NewConversation()) for _ in range(30)]
        touched = iter(made * 2)

        async def pages(order: ListOrder) -> list[UUID]:
            ids, cursor = [], None
            while True:
                page = await store.list_conversations(owner, order=order, limit=4, cursor=cursor)
                ids += [c.id for c in page.items]
                if (cursor := page.next) is None:
                    return ids
                for _ in range(3):
                    await store.append(owner, next(touched).id, [user("hello")])

        seen = await pages("updated")
        assert len(set(seen)) == len(seen)
        assert await pages("id") == sorted(c.id for c in made)

    async def test_cursor_belongs_to_its_list(self, store: Store, owner: str) -> None:
        """A cursor is refused for another owner, context or order, and together with an offset."""
        for _ in range(3):
            await store.create_conversation(owner, NewConversation(context_id="kitchen"))
        cursor = (await store.list_conversations(owner, limit=1)).next
        assert cursor is not None
        for who, arguments in (
            (someone(), {}),
            (owner, {"context_id": "kitchen"}),
            (owner, {"order": "id"}),
            (owner, {"offset": 1}),
        ):
            with pytest.raises(InvalidInput):
                await store.list_conversations(who, cursor=cursor, **arguments)
        assert len((await store.list_conversations(owner, limit=2, cursor=cursor)).items) == 2

    async def test_between_two_times(self, store: Store, owner: str) -> None:
        """A list may begin and end at times, which are exclusive to the microsecond: by cursor, by offset, counted."""
        noon, micro = datetime(2026, 1, 31, 12, tzinfo=UTC), timedelta(microseconds=1)
        east = timezone(timedelta(hours=5, minutes=45))
        times = [noon + micro * each for each in (0, 0, 1, 1, 1, 2, 5, 900_000_000)] + [
            datetime(1950, 1, 1, tzinfo=UTC)
        ]
        made = [
            await store.create_conversation(
                owner, ImportedConversation(updated_at=time, context_id="k" if number % 2 else None)
            )
            for number, time in enumerate(times)
        ]
        bounds = [
            None,
            *(noon + micro * each for each in (-1, 0, 1, 2, 5, 6)),
            noon.astimezone(east),
            made[7].updated_at,
        ]
        for after in bounds:
            for before in bounds:
                which: dict[str, Any] = {"updated_after": after, "updated_before": before}
                expected = by_time(selected(made, **which))
                assert await whole_list(store, owner, limit=2, **which) == expected
                page = await store.list_conversations(owner, offset=1, total=True, **which)
                assert (page.items, page.total) == (expected[1:], len(expected))
        which = {"updated_after": noon, "context_id": "k"}
        assert await whole_list(store, owner, limit=1, **which) == by_time(selected(made, **which))

    async def test_times_that_are_refused(self, store: Store, owner: str) -> None:
        """A list by time is ordered by time, its times have a zone, and a cursor belongs to its times."""
        noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        for _ in range(3):
            await store.create_conversation(owner, NewConversation())
        for name in ("updated_after", "updated_before"):
            with pytest.raises(InvalidInput, match="leave order=id out"):
                await store.list_conversations(owner, order="id", **{name: noon})  # type: ignore[arg-type]
            for wrong in (datetime(2026, 1, 31), "2026-01-31T12:00:00Z", 1_769_860_800):  # noqa: DTZ001
                with pytest.raises(InvalidInput, match=name):
                    await store.list_conversations(owner, **{name: wrong})  # type: ignore[arg-type]
        cursor = (await store.list_conversations(owner, updated_after=noon, limit=1)).next
        assert cursor is not None
        for other in ({}, {"updated_after": noon + timedelta(seconds=1)}, {"updated_before": noon}):
            with pytest.raises(InvalidInput):
                await store.list_conversations(owner, cursor=cursor, **other)  # type: ignore[arg-type]
        assert len((await store.list_conversations(owner, updated_after=noon, cursor=cursor)).items) == 2
