"""Group commit: everybody gets a result of their own, and nobody waits for ever."""

import asyncio
import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import StoreUnavailable
from chatkeep.stores.group_commit import (
    MAX_BATCH_BYTES,
    MAX_BATCH_ITEMS,
    MAX_QUEUE_BYTES,
    MAX_QUEUE_ITEMS,
    GroupCommit,
)


class Disk:
    """A flush that notes its batches, answers each item with ten times it, and can be stopped in between."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.started = asyncio.Event()
        self.may_finish = asyncio.Event()
        self.may_finish.set()

    async def flush(self, items: Sequence[int]) -> Sequence[object]:
        """Take a batch, and answer when it may."""
        self.batches.append(list(items))
        self.started.set()
        await asyncio.sleep(0)
        await self.may_finish.wait()
        return [item * 10 for item in items]


def submit(commits: GroupCommit[int], items: Sequence[int], size: int = 0) -> list[asyncio.Task[object]]:
    """A waiting caller for each item."""
    return [asyncio.create_task(commits.submit(item, size=size)) for item in items]


async def first_is_under_way(disk: Disk, commits: GroupCommit[int]) -> asyncio.Task[object]:
    """A caller whose commit has begun and does not end before `may_finish` is set."""
    disk.may_finish.clear()
    (first,) = submit(commits, [0])
    await disk.started.wait()
    return first


async def test_whoever_waits_meanwhile_goes_together() -> None:
    """The first item is committed alone, all that come while it is committed go together, in order."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    others = submit(commits, range(1, 6))
    await asyncio.sleep(0)
    disk.may_finish.set()
    assert await asyncio.gather(first, *others) == [0, 10, 20, 30, 40, 50]
    assert disk.batches == [[0], [1, 2, 3, 4, 5]]
    await commits.aclose()


async def test_callers_that_write_one_after_another_go_together() -> None:
    """Those who began while others were committed share their batches from then on, instead of taking turns."""
    disk = Disk()
    commits = GroupCommit(disk.flush)

    async def keep_writing() -> None:
        for item in range(10):
            await commits.submit(item)

    disk.may_finish.clear()
    first = [asyncio.create_task(keep_writing()) for _ in range(3)]
    await disk.started.wait()
    others = [asyncio.create_task(keep_writing()) for _ in range(4)]
    await asyncio.sleep(0)
    disk.may_finish.set()
    await asyncio.gather(*first, *others)
    assert [len(batch) for batch in disk.batches] == [3, *[7] * 9, 4]
    await commits.aclose()


async def test_each_item_has_its_own_outcome() -> None:
    """An exception as an outcome is raised for its own caller only."""

    async def flush(items: Sequence[int]) -> Sequence[object]:
        return [ValueError(f"bad {item}") if item % 3 == 0 else item for item in items]

    commits = GroupCommit(flush)
    outcomes = await asyncio.gather(*submit(commits, range(10)), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == [
        f"bad {item}" if item % 3 == 0 else str(item) for item in range(10)
    ]
    await commits.aclose()


async def test_failed_flush_fails_each_caller_with_an_error_of_its_own() -> None:
    """When a whole batch fails, every caller gets a copy: raising one object in many tasks mixes tracebacks."""

    async def flush(items: Sequence[int]) -> Sequence[object]:
        raise StoreUnavailable("the disk is full", got="chat.db")

    commits = GroupCommit(flush)
    errors = await asyncio.gather(*submit(commits, range(5)), return_exceptions=True)
    assert {type(error) for error in errors} == {StoreUnavailable}
    assert {str(error) for error in errors} == {"the disk is full (got 'chat.db')"}
    assert len({id(error) for error in errors}) == 5
    await commits.aclose()


async def test_next_batch_works_after_a_failed_one() -> None:
    """A failed flush leaves nothing behind: the next item is committed."""
    failing = True

    async def flush(items: Sequence[int]) -> Sequence[object]:
        if failing:
            raise OSError("not now")
        return items

    commits = GroupCommit(flush)
    with pytest.raises(OSError, match="not now"):
        await commits.submit(1)
    failing = False
    assert await commits.submit(2) == 2
    await commits.aclose()


@pytest.mark.parametrize("flushers", [1, 2])
async def test_no_wake_up_is_lost(flushers: int) -> None:
    """An item that comes in the very moment in which the queue runs empty is committed, at any timing."""
    dice = random.Random(flushers)

    async def flush(items: Sequence[int]) -> Sequence[object]:
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(0)
        return items

    commits = GroupCommit(flush, flushers=flushers)

    async def caller(name: int) -> None:
        for turn in range(200):
            assert await commits.submit(name * 1_000 + turn) == name * 1_000 + turn
            for _ in range(dice.randrange(4)):
                await asyncio.sleep(0)

    async with asyncio.timeout(30):
        await asyncio.gather(*map(caller, range(5)))
    await commits.aclose()


async def test_cancelled_caller_takes_its_item_back() -> None:
    """An item that waits still is not committed after its caller was cancelled; its neighbours are."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    others = submit(commits, [1, 2, 3])
    await asyncio.sleep(0)
    others[1].cancel()
    disk.may_finish.set()
    assert await asyncio.gather(*[first, others[0], others[2]]) == [0, 10, 30]
    assert others[1].cancelled()
    assert disk.batches == [[0], [1, 3]]
    await commits.aclose()


async def test_cancelled_caller_disturbs_nobody_in_its_batch() -> None:
    """A caller that is cancelled while its batch is committed leaves the batch alone."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    await first_is_under_way(disk, commits)
    others = submit(commits, [1, 2, 3])
    await asyncio.sleep(0)
    disk.started.clear()
    disk.may_finish.set()
    await disk.started.wait()
    others[0].cancel()
    assert await asyncio.gather(*others[1:]) == [20, 30]
    assert others[0].cancelled()
    assert disk.batches == [[0], [1, 2, 3]]
    await commits.aclose()


async def test_first_caller_may_be_cancelled() -> None:
    """The commit does not run in the task of a caller: the first caller may go, the others are served."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    others = submit(commits, [1, 2])
    await asyncio.sleep(0)
    first.cancel()
    disk.may_finish.set()
    assert await asyncio.gather(*others) == [10, 20]
    await commits.aclose()


async def test_caller_that_is_cancelled_when_its_error_comes_leaves_no_complaint() -> None:
    """An error whose caller is cancelled in the same moment is not reported as one that nobody looked at."""

    async def flush(items: Sequence[int]) -> Sequence[object]:
        asyncio.get_running_loop().call_soon(caller.cancel)
        return [ValueError("nobody waits for it") for _ in items]

    commits = GroupCommit(flush)
    caller = asyncio.create_task(commits.submit(1))
    await asyncio.gather(caller, return_exceptions=True)
    await commits.aclose()


async def test_batches_are_bounded_in_items() -> None:
    """A batch has at most 256 items; what is more goes into the next one, in order."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    others = submit(commits, range(1, 601))
    await asyncio.sleep(0)
    disk.may_finish.set()
    await asyncio.gather(first, *others)
    assert [len(batch) for batch in disk.batches] == [1, MAX_BATCH_ITEMS, MAX_BATCH_ITEMS, 600 - 2 * MAX_BATCH_ITEMS]
    assert [item for batch in disk.batches for item in batch] == list(range(601))
    await commits.aclose()


async def test_batches_are_bounded_in_bytes() -> None:
    """A batch has at most 1 MiB; an item that is larger goes alone."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    sizes = {1: 10, 2: MAX_BATCH_BYTES - 10, 3: 1, 4: 2 * MAX_BATCH_BYTES, 5: 1, 6: 1}
    others = [asyncio.create_task(commits.submit(item, size=size)) for item, size in sizes.items()]
    await asyncio.sleep(0)
    disk.may_finish.set()
    await asyncio.gather(first, *others)
    assert disk.batches == [[0], [1, 2], [3], [4], [5, 6]]
    await commits.aclose()


async def test_queue_is_bounded_in_items() -> None:
    """When 10,000 items wait the next one is refused at once and was not taken; later there is room again."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    others = submit(commits, range(1, MAX_QUEUE_ITEMS + 1))
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="10,000 writes are waiting"):
        await commits.submit(-1)
    disk.may_finish.set()
    await asyncio.gather(first, *others)
    assert await commits.submit(7) == 70
    assert -1 not in {item for batch in disk.batches for item in batch}
    await commits.aclose()


async def test_queue_is_bounded_in_bytes() -> None:
    """When 64 MiB wait the next item is refused; one item that is larger than that is taken by an empty queue."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    others = submit(commits, [1], size=MAX_QUEUE_BYTES + 1)
    await asyncio.sleep(0)
    with pytest.raises(StoreUnavailable, match="waiting already"):
        await commits.submit(2, size=1)
    others[0].cancel()
    disk.may_finish.set()
    assert await first == 0
    for _ in range(3):  # what was cancelled leaves the queue when the next batch is taken
        await asyncio.sleep(0)
    assert await commits.submit(3, size=MAX_QUEUE_BYTES) == 30
    await commits.aclose()


async def begin_to_close(
    disk: Disk, commits: GroupCommit[int], items: Sequence[int]
) -> tuple[asyncio.Task[object], list[asyncio.Task[object]], asyncio.Task[None]]:
    """Begin to close while one commit is under way and items wait behind it: their tasks, and that of closing."""
    first = await first_is_under_way(disk, commits)
    others = submit(commits, items)
    await asyncio.sleep(0)
    closing = asyncio.create_task(commits.aclose())
    await asyncio.sleep(0)
    return first, others, closing


async def test_closing_commits_what_waits_and_refuses_what_comes() -> None:
    """aclose returns when everything that was taken is committed; later items are refused; closing again is fine."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first, others, closing = await begin_to_close(disk, commits, range(1, 301))
    with pytest.raises(StoreUnavailable, match="closed"):
        await commits.submit(-1)
    assert not closing.done()
    disk.may_finish.set()
    await closing
    assert all(task.done() for task in (first, *others))
    assert await asyncio.gather(*others) == [item * 10 for item in range(1, 301)]
    await commits.aclose()


async def test_closing_that_is_cut_off_refuses_what_waits() -> None:
    """When closing is cancelled no caller hangs: neither in the commit under way, nor in the queue behind it."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first, others, closing = await begin_to_close(disk, commits, range(1, 601))
    closing.cancel()
    async with asyncio.timeout(5):
        answers = await asyncio.gather(first, *others, return_exceptions=True)
    assert {type(answer) for answer in answers} == {StoreUnavailable}
    assert len(disk.batches) == 1


async def test_cancelled_flusher_fails_its_callers() -> None:
    """When the loop cancels the flusher, as asyncio.run does at its end, callers are told and do not hang."""
    disk = Disk()
    commits = GroupCommit(disk.flush)
    first = await first_is_under_way(disk, commits)
    (flusher,) = (task for task in asyncio.all_tasks() if task.get_name() == "chatkeep-group-commit")
    flusher.cancel()
    with pytest.raises(StoreUnavailable, match="stopped"):
        await first
    await asyncio.gather(flusher, return_exceptions=True)
    disk.may_finish.set()
    assert await commits.submit(1) == 10
    await commits.aclose()


async def test_two_flushers_commit_side_by_side() -> None:
    """With two flushers a second batch does not wait for the first, and there are never three."""
    running = peak = 0

    async def flush(items: Sequence[int]) -> Sequence[object]:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001)
        running -= 1
        return items

    commits = GroupCommit(flush, flushers=2)

    async def caller(item: int) -> None:
        for turn in range(3):
            await asyncio.sleep(item * 0.0003)
            assert await commits.submit(item * 10 + turn) == item * 10 + turn

    await asyncio.gather(*map(caller, range(40)))
    assert peak == 2
    await commits.aclose()


@given(plan=st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 3)), max_size=40))
async def test_every_caller_gets_its_answer(plan: list[tuple[int, bool, int]]) -> None:
    """At any timing of arrivals, cancellations and commits: in order, each once, each answered or cancelled."""
    committed: list[int] = []

    async def flush(items: Sequence[int]) -> Sequence[object]:
        committed.extend(items)
        for _ in range(plan[items[0]][2]):
            await asyncio.sleep(0)
        return items

    commits = GroupCommit(flush)
    callers: list[asyncio.Task[object]] = []
    for number, (pause, cancelled, _) in enumerate(plan):
        callers += submit(commits, [number])
        for _ in range(pause):
            await asyncio.sleep(0)
        if cancelled:
            callers[number // 2].cancel()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    await commits.aclose()
    assert committed == sorted(set(committed))
    for number, answer in enumerate(answers):
        assert (answer == number and number in committed) or isinstance(answer, asyncio.CancelledError)
