"""The semaphore before a pool: how many hold it, who is served next, and timeouts."""

import asyncio
import random

import pytest

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.semaphore import Semaphore


async def test_no_more_at_a_time_and_in_order() -> None:
    """Of many, `size` hold it at a time, and they get it in the order in which they came."""
    semaphore, order, most = Semaphore(3, 5), list[int](), 0

    async def use(number: int) -> None:
        nonlocal most
        async with semaphore:
            order.append(number)
            most = max(most, semaphore.used)
            await asyncio.sleep(0.001)

    await asyncio.gather(*map(use, range(50)))
    assert order == list(range(50))
    assert (most, semaphore.used) == (3, 0)


async def test_patience_ends_for_each_in_its_own_time() -> None:
    """Whoever waits too long is sent away then, not before and not much later; the others go on waiting."""
    semaphore, loop = Semaphore(1, 0.2), asyncio.get_running_loop()
    await semaphore.acquire()

    async def waited(after: float) -> float:
        await asyncio.sleep(after)
        began = loop.time()
        with pytest.raises(StoreUnavailable, match=r"all 1 connections were in use for 0\.2 s"):
            await semaphore.acquire()
        return loop.time() - began

    for seconds in await asyncio.gather(waited(0), waited(0.1)):
        assert 0.19 <= seconds < 1
    semaphore.release()
    async with semaphore:
        assert semaphore.used == 1
    assert semaphore.used == 0


async def test_cancelled_in_any_moment() -> None:
    """Waiting tasks that are cancelled, also in the moment in which they are given a permit, leave none taken."""
    semaphore, dice = Semaphore(2, 5), random.Random(7)

    async def use() -> None:
        async with semaphore:
            await asyncio.sleep(dice.choice((0, 0.001)))

    for _ in range(200):
        tasks = [asyncio.create_task(use()) for _ in range(8)]
        await asyncio.sleep(dice.choice((0, 0, 0.001)))
        permitted = [task for task in tasks if dice.random() < 0.5]
        for task in permitted:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert semaphore.used == 0


async def test_given_and_cancelled_in_the_same_moment() -> None:
    """A permit that reaches a task which was just cancelled goes on to the next one."""
    semaphore = Semaphore(1, 5)
    await semaphore.acquire()
    first, second = asyncio.create_task(semaphore.acquire()), asyncio.create_task(semaphore.acquire())
    await asyncio.sleep(0)
    semaphore.release()
    first.cancel()
    await second
    assert first.cancelled()
    assert semaphore.used == 1
