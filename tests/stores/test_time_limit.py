"""The time limit of a call: when it ends, for whom, and what stays behind."""

import asyncio
import random
import time

import pytest

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.time_limit import GRACE_SECONDS, TimeLimit

NO_ANSWER = "the database did not answer within"


def is_unharmed(task: "asyncio.Task[object] | None") -> bool:
    """Whether nobody wants to cancel the task any more."""
    return task is not None and task.cancelling() == 0


async def call(limit: TimeLimit, seconds: float) -> float:
    """A call that takes some seconds; how long it took until it was cut off, or 0 if it was not."""
    began = time.monotonic()
    try:
        with limit.of_call():
            await asyncio.sleep(seconds)
    except StoreUnavailable:
        assert is_unharmed(asyncio.current_task())
        return time.monotonic() - began
    return 0.0


async def test_calls_that_take_too_long_are_cut_off_each_in_its_time() -> None:
    """A call ends after its time and the grace, counted from its own beginning; a short one is left alone."""
    limit = TimeLimit(0.1)

    async def later(pause: float, seconds: float) -> float:
        await asyncio.sleep(pause)
        return await call(limit, seconds)

    *cut_off, short = await asyncio.gather(later(0, 60), later(0.1, 60), later(0.2, 60), later(0.2, 0.01))
    for seconds in cut_off:
        assert 0.1 + GRACE_SECONDS / 2 <= seconds < 5
    assert short == 0


async def test_calls_end_in_the_order_in_which_they_began() -> None:
    """Of a thousand calls that wait, those that began first are cut off first; one timer serves all."""
    limit, ended = TimeLimit(0.05), list[int]()

    async def wait(number: int) -> None:
        try:
            with limit.of_call():
                await asyncio.Event().wait()
        except StoreUnavailable:
            ended.append(number)

    async with asyncio.timeout(20):
        await asyncio.gather(*map(wait, range(1_000)))
    assert ended == list(range(1_000))


async def test_reason_is_told() -> None:
    """While the database knows why calls take long, that is what they hear; later it is not."""
    limit = TimeLimit(0.01)
    for reason, message in (("somebody holds the lock", "somebody holds the lock"), (None, NO_ANSWER)):
        limit.reason = reason
        with pytest.raises(StoreUnavailable, match=message), limit.of_call():
            await asyncio.sleep(60)


async def test_wait_that_ends_by_itself_within_the_grace_says_what_for() -> None:
    """An error that comes after the time, and before the grace is over, is the one that the caller hears."""

    async def lock_wait() -> None:
        await asyncio.sleep(0.1)
        raise ValueError("the lock")

    with pytest.raises(ValueError, match="the lock"), TimeLimit(0.05).of_call():
        await lock_wait()


@pytest.mark.parametrize(("outer", "inner"), [(0.05, 0.05), (0.05, 60), (60, 0.05)])
async def test_nested_limits(outer: float, inner: float) -> None:
    """Whichever of two limits ends first ends the call, once, with its own seconds in the message."""
    message = rf"{NO_ANSWER} 0\.05 s"
    with pytest.raises(StoreUnavailable, match=message), TimeLimit(outer).of_call(), TimeLimit(inner).of_call():
        await asyncio.sleep(60)
    assert is_unharmed(asyncio.current_task())
    await asyncio.sleep(0)


async def test_same_limit_nested() -> None:
    """A limit within itself cuts off once; what the inner one raised is not raised again later."""
    limit = TimeLimit(0.05)
    with pytest.raises(StoreUnavailable, match=NO_ANSWER), limit.of_call(), limit.of_call():
        await asyncio.sleep(60)
    assert is_unharmed(asyncio.current_task())
    await asyncio.sleep(GRACE_SECONDS)


async def test_cancelled_from_outside() -> None:
    """Who cancels the task gets a cancelled task, also in the moment in which the limit ends."""
    limit = TimeLimit(0.05)
    early, same = (asyncio.create_task(call(limit, 60)) for _ in range(2))
    await asyncio.sleep(0)
    early.cancel()
    asyncio.get_running_loop().call_later(0.05 + GRACE_SECONDS, same.cancel)
    time.sleep(0.1 + GRACE_SECONDS)
    await asyncio.wait([early, same])
    assert early.cancelled()
    assert same.cancelled() or same.result() > 0


async def test_result_that_came_in_spite_of_it_is_kept() -> None:
    """A call that goes on when it is cut off, and returns, has its result; nothing later is cancelled for it."""
    limit = TimeLimit(0.01)

    async def stubborn() -> str:
        with limit.of_call():
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return "stored"
        return "never"

    assert await stubborn() == "stored"
    assert is_unharmed(asyncio.current_task())
    await asyncio.sleep(0.01)


async def test_results_that_come_when_the_time_ends() -> None:
    """At any timing each call has its result or is cut off, and the task can go on waiting after that."""
    limit, dice, outcomes = TimeLimit(0.0001), random.Random(4), set[bool]()

    async def use() -> None:
        answer = asyncio.create_task(asyncio.sleep(0.0001 + GRACE_SECONDS + dice.uniform(-0.05, 0.002), True))
        try:
            with limit.of_call():
                outcomes.add(await answer)
        except StoreUnavailable:
            outcomes.add(False)
        assert is_unharmed(asyncio.current_task())
        await asyncio.sleep(0)
        await asyncio.sleep(0.001)

    async with asyncio.timeout(30):
        await asyncio.gather(*(use() for _ in range(2_000)))
    assert outcomes <= {True, False}


async def test_nothing_is_kept_of_calls_that_are_done() -> None:
    """After a burst of calls nothing is left of them, and the timer is gone when it had nothing to do."""
    limit = TimeLimit(0.05)
    async with asyncio.timeout(20):
        await asyncio.gather(*(call(limit, 0) for _ in range(1_000)))
        for _ in range(1_000):
            with limit.of_call():
                pass
        await asyncio.gather(call(limit, 60), call(limit, 0))
    assert not limit.calls
    assert limit._timer is None
