"""Permits: who may use a database now, who waits, and for how long."""

import asyncio
import random

import pytest

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.permits import Permits


async def test_no_more_at_a_time_and_in_order() -> None:
    """Of many, `size` have a permit at a time, and they get it in the order in which they came."""
    permits, order, most = Permits(3, 5), list[int](), 0

    async def use(number: int) -> None:
        nonlocal most
        async with permits:
            order.append(number)
            most = max(most, permits.used)
            await asyncio.sleep(0.001)

    await asyncio.gather(*map(use, range(50)))
    assert order == list(range(50))
    assert (most, permits.used) == (3, 0)


async def test_patience_ends_for_each_in_its_own_time() -> None:
    """Whoever waits too long is sent away then, not before and not much later; the others go on waiting."""
    permits, loop = Permits(1, 0.2), asyncio.get_running_loop()
    await permits.acquire()

    async def waited(after: float) -> float:
        await asyncio.sleep(after)
        began = loop.time()
        with pytest.raises(StoreUnavailable, match=r"all 1 connections were in use for 0\.2 s"):
            await permits.acquire()
        return loop.time() - began

    for seconds in await asyncio.gather(waited(0), waited(0.1)):
        assert 0.19 <= seconds < 1
    permits.release()
    async with permits:
        assert permits.used == 1
    assert permits.used == 0


async def test_cancelled_in_any_moment() -> None:
    """Waiting tasks that are cancelled, also in the moment in which they are given a permit, leave none taken."""
    permits, dice = Permits(2, 5), random.Random(7)

    async def use() -> None:
        async with permits:
            await asyncio.sleep(dice.choice((0, 0.001)))

    for _ in range(200):
        tasks = [asyncio.create_task(use()) for _ in range(8)]
        await asyncio.sleep(dice.choice((0, 0, 0.001)))
        permitted = [task for task in tasks if dice.random() < 0.5]
        for task in permitted:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert permits.used == 0


async def test_given_and_cancelled_in_the_same_moment() -> None:
    """A permit that reaches a task which was just cancelled goes on to the next one."""
    permits = Permits(1, 5)
    await permits.acquire()
    first, second = asyncio.create_task(permits.acquire()), asyncio.create_task(permits.acquire())
    await asyncio.sleep(0)
    permits.release()
    first.cancel()
    await second
    assert first.cancelled()
    assert permits.used == 1
