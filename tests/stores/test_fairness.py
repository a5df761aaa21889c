"""The semaphore that no owner can take for itself."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from uuid import uuid4

import pytest

from chatkeep import NewConversation, open_store
from chatkeep.stores.base import LARGE_APPEND_CHARS
from chatkeep.stores.fairness import FairSemaphore
from chatkeep.testing import assistant, user
from conftest import STORES


async def hold(semaphore: FairSemaphore, owner: str, order: list[str], end: asyncio.Event) -> None:
    """Note who got a slot, and keep it until `end`."""
    async with semaphore.of(owner):
        order.append(owner)
        await end.wait()


async def test_one_owner_has_half_at_most() -> None:
    """Of many who wait for one owner half of the slots are theirs; another owner has one at once."""
    semaphore, order, end = FairSemaphore(4), list[str](), asyncio.Event()
    tasks = [asyncio.create_task(hold(semaphore, "eve", order, end)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks.append(asyncio.create_task(hold(semaphore, "ada", order, end)))
    await asyncio.sleep(0)
    assert order == ["eve", "eve", "ada"]
    end.set()
    await asyncio.gather(*tasks)
    assert len(order) == 11


async def test_owners_take_turns() -> None:
    """Who asked once is served before the second of those who asked often."""
    semaphore, order, end = FairSemaphore(1), list[str](), asyncio.Event()
    end.set()
    async with semaphore.of("first"):
        owners = ["eve", "eve", "eve", "ada", "bob", "ada"]
        tasks = [asyncio.create_task(hold(semaphore, owner, order, end)) for owner in owners]
        await asyncio.sleep(0)
    await asyncio.gather(*tasks)
    assert order == ["eve", "ada", "bob", "eve", "ada", "eve"]


async def test_no_slot_is_lost_to_those_who_are_cancelled() -> None:
    """However many give up while they wait, or just when they are served, no bound is broken and no slot is lost."""
    chance = random.Random(20)
    semaphore, held = FairSemaphore(4), Counter[str]()

    async def use(owner: str) -> None:
        async with semaphore.of(owner):
            held[owner] += 1
            assert held[owner] <= 2
            assert held.total() <= 4
            try:
                await asyncio.sleep(chance.choice([0, 0.0001]))
            finally:
                held[owner] -= 1

    tasks = list[asyncio.Task[None]]()
    for _ in range(2_000):
        tasks.append(asyncio.create_task(use(chance.choice("abc"))))
        if chance.random() < 0.5:
            chance.choice(tasks[-20:]).cancel()
        if chance.random() < 0.3:
            await asyncio.sleep(0)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(task.exception()) for task in tasks if not task.cancelled()} == {type(None)}
    async with asyncio.timeout(1):
        await asyncio.gather(*(use(owner) for owner in "aabb"))


@pytest.mark.parametrize("kind", [name for name in STORES if name != "memory"])
async def test_large_appends_of_one_owner_let_others_between(kind: str, tmp_path: Path) -> None:
    """Who writes a word does not wait for more than the one large message that is being written, or two."""
    done: list[str] = []
    async with open_store(STORES[kind](tmp_path)) as store:
        talks = {owner: await store.create_conversation(owner, NewConversation()) for owner in ("ada", "eve")}

        async def say(owner: str, text: str) -> None:
            await store.append(owner, talks[owner].id, [assistant(text, id=uuid4())])
            done.append(owner)

        text = "tea " * 1_000_000
        assert len(text) > LARGE_APPEND_CHARS
        large = [asyncio.create_task(say("eve", text)) for _ in range(8)]
        await asyncio.sleep(0.1)  # all of them wait for the database, or for their turn
        before = len(done)
        await store.append("ada", talks["ada"].id, user("hello"))
        assert len(done) - before <= 2
        await asyncio.gather(*large)


async def test_large_pages_wait_for_their_turn(tmp_path: Path) -> None:
    """While an owner reads all that it may at a time, another large page of its own waits, and a small one does not."""
    async with open_store(STORES["sqlite"](tmp_path)) as store:
        large, small = [(await store.create_conversation("eve", NewConversation())).id for _ in range(2)]
        await store.append("eve", large, [assistant("x" * 700_000) for _ in range(4)])
        await store.append("eve", small, user("hello"))
        async with store._heavy.of("eve"):  # type: ignore[attr-defined]  # one of two slots, which is all of one owner's
            waiting = asyncio.create_task(store.history("eve", large))
            assert len((await store.history("eve", small)).items) == 1
            await asyncio.sleep(0.1)
            assert not waiting.done()
        assert len((await waiting).items) == 4
