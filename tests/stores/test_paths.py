"""Paths of many branches and deletions, with limits so low that every way of reading them is taken."""

import asyncio
import random
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from _pytest.mark import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkeep import ConversationChange, NewConversation, Status, Store, open_store
from chatkeep.stores import paths, transactions
from chatkeep.stores.rows import Rows
from chatkeep.stores.sqlite.rows import SqliteRows
from chatkeep.testing import assistant, path_to, siblings_of, whole_history, whole_log, whole_siblings
from chatkeep.testing.calls import ORDERS
from chatkeep.testing.examples import PROPERTY
from conftest import STORES

OWNER = "ada"
QUERIES = tuple(name for name, method in vars(Rows).items() if getattr(method, "__isabstractmethod__", False))


@pytest.fixture
def low_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the smallest conversation have many segments and long stretches of deletions."""
    for name, value in (("DIRECT", 1), ("LOOK", 4), ("COUNTED_ALONE", 1), ("DELETED_SLICE", 2)):
        monkeypatch.setattr(paths, name, value)
    monkeypatch.setattr(transactions, "LOOK", 3)
    monkeypatch.setattr(Rows, "most_segments", 3)


def shared(*names: str) -> list[ParameterSet]:
    """Stores with a fourth of the examples for those named, whose full number is for `make apart`."""
    short = [pytest.param(name, 4 if name in names else 1, id=name) for name in STORES]
    return short + [pytest.param(name, 1, id=f"{name} long", marks=pytest.mark.apart) for name in names]


@pytest.mark.usefixtures("low_limits")
@pytest.mark.parametrize(("store_url", "share"), shared("mongodb"), indirect=["store_url"])
def test_any_tree_reads_like_its_parents(store_url: str, share: int) -> None:
    """Pages, offsets, totals and siblings are those of the chains of parents, wherever messages were deleted."""

    @settings(PROPERTY, max_examples=settings().max_examples // share)
    @given(seed=st.integers(0, 2**32))
    def reads(seed: int) -> None:
        asyncio.run(compare(store_url, random.Random(seed)))

    reads()


async def compare(store_url: str, chance: random.Random) -> None:
    """Grow a tree, and read it in every way."""
    async with open_store(store_url) as store:
        owner = f"{OWNER} {uuid4()}"
        id_ = (await store.create_conversation(owner, NewConversation())).id
        await grow(store, owner, id_, chance)
        log = await whole_log(store, owner, id_)
        head = (await store.get_conversation(owner, id_)).head_id
        path = path_to(head, log)
        limit = chance.choice((1, 2, 5, 30))
        for order in ORDERS:
            assert await whole_history(store, owner, id_, limit=limit, order=order) == path
            offset = chance.randrange(len(log))
            page = await store.history(owner, id_, limit=limit, order=order, offset=offset, total=True)
            reading = path[::-1] if order == "desc" else path
            read = page.items[::-1] if order == "desc" else page.items
            assert (read, page.total) == (reading[offset : offset + len(read)], len(path))
            assert read or not reading[offset:]
        for message in path[-1:]:
            assert await whole_siblings(store, owner, id_, message.id, limit=limit) == siblings_of(message, log)


async def grow(store: Store, owner: str, id_: UUID, chance: random.Random) -> None:
    """Append up to 40 messages, most of them after one of the newest, and delete stretches of them."""
    ids = [uuid4() for _ in range(chance.randrange(1, 40))]
    back = chance.choice((1, 2, 4, 40))
    parents = [None, *(ids[max(0, number - chance.randint(1, back))] for number in range(1, len(ids)))]
    messages = [assistant(str(n), id=own, parent_id=of) for n, (own, of) in enumerate(zip(ids, parents, strict=True))]
    await store.append(owner, id_, messages)
    if chance.random() < 0.5:
        await store.update_conversation(owner, id_, ConversationChange(head_id=chance.choice(ids)))
    for _ in range(chance.randrange(3)):
        start, length = chance.randrange(len(ids)), chance.randrange(20)
        for each in ids[start : start + length]:
            await store.delete_message(owner, id_, each)


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The queries of SQLite's rows, as they are made."""
    made: list[str] = []
    for name in QUERIES:
        method = getattr(SqliteRows, name)

        def counted(self: SqliteRows, *given: object, _name: str = name, _method=method, **more: object):  # type: ignore[no-untyped-def]
            made.append(_name)
            return _method(self, *given, **more)

        monkeypatch.setattr(SqliteRows, name, counted)
    return made


async def test_queries_of_a_page(tmp_path: Path, queries: list[str]) -> None:
    """However many branches a path has, a page takes a bounded number of queries; so does a total."""
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store:
        id_ = (await store.create_conversation(OWNER, NewConversation())).id
        ids = [uuid4() for _ in range(801)]
        batch = [assistant("0", id=ids[0], parent_id=None)]
        for number in range(0, 800, 2):  # each message of the path has a sibling that was there first
            batch += [assistant(str(n), id=ids[n], parent_id=ids[number]) for n in (number + 1, number + 2)]
        await store.append(OWNER, id_, batch)
        for number in (800, 700, 3):
            await store.delete_message(OWNER, id_, ids[number])
        for order in ORDERS:
            queries.clear()
            page = await store.history(OWNER, id_, order=order)
            assert len(page.items) == 50
            assert queries == ["state", *(["segment"] * 2), "places", "messages_by_seq"] or order == "desc"
            assert len(queries) <= 6
        queries.clear()
        page = await store.history(OWNER, id_, offset=350, total=True)
        assert (len(page.items), page.total) == (49, 399)
        assert len(queries) <= 8


async def test_a_page_behind_many_deletions(tmp_path: Path, queries: list[str]) -> None:
    """Of 6,000 messages all but the first and one in between are deleted: a page looks at few of them."""
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store:
        id_ = (await store.create_conversation(OWNER, NewConversation())).id
        stored = []
        for start in range(0, 6_000, 1_000):
            stored += await store.append(OWNER, id_, [assistant(str(start + n), id=uuid4()) for n in range(1_000)])
        left = {0, 3_000}
        for start in range(0, 6_000, 500):
            some = [m for number, m in enumerate(stored[start : start + 500], start) if number not in left]
            await asyncio.gather(*(store.delete_message(OWNER, id_, message.id) for message in some))
        queries.clear()
        page = await store.history(OWNER, id_)
        assert page.items == [stored[3_000]]
        assert len(queries) < 20
        rest = await store.history(OWNER, id_, cursor=page.next)
        assert (rest.items, rest.next) == ([stored[0]], None)
        page = await store.history(OWNER, id_, order="asc", after=1, total=True)
        assert (page.items, page.total) == ([stored[3_000]], 2)
        assert (await store.history(OWNER, id_, order="asc", after=1, cursor=page.next)).items == []
        assert all(m.status == Status.DELETED for m in await store.log(OWNER, id_, after=5_000))
