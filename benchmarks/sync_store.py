"""Appends of the synchronous store beside those of the asynchronous one: `python -m benchmarks.sync_store`.

Each round both append to SQLite, with the same durability: so many threads here, so many tasks there, each to a
conversation of its own. The rate of the synchronous store should be 0.6 of the other's with 16 writers.
"""

import argparse
import asyncio
import statistics
import threading
import time
from functools import partial
from pathlib import Path

from benchmarks.measure import WARM_UP_SECONDS, Plan, Run, alternate, median_rate, percentile, rate_ratios, say
from benchmarks.stores import OWNER, append_run, message, url
from chatkeep import NewConversation, sync

WRITERS = (1, 16)


def threads_run(folder: Path, *, writers: int, seconds: float) -> Run:
    """Let `writers` threads append to a conversation each, one message at a time, durably."""
    latencies: list[float] = []
    with sync.open_store(url(folder), search=False, synchronous="full") as store:

        def keep_appending(began: float, seconds: float) -> None:
            conversation, number = store.create_conversation(OWNER, NewConversation()), 0
            before = time.perf_counter()
            while before - began < seconds:
                store.append(OWNER, conversation.id, [message(0, number)])
                after = time.perf_counter()
                latencies.append(after - before)
                number, before = number + 1, after

        for length in (WARM_UP_SECONDS, seconds):
            latencies.clear()
            began = time.perf_counter()
            threads = [threading.Thread(target=keep_appending, args=(began, length)) for _ in range(writers)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return Run(len(latencies), time.perf_counter() - began, sorted(latencies))


async def measured(plan: Plan, writers: int) -> None:
    """Compare the two with so many writers."""
    say(f"append, {writers} writers")

    async def threads(folder: Path) -> Run:
        return await asyncio.to_thread(threads_run, folder, writers=writers, seconds=plan.seconds)

    tasks = partial(append_run, writers=writers, seconds=plan.seconds, search=False)
    runs = await alternate(plan, {"sync": threads, "async": tasks})
    ratios = rate_ratios(runs["sync"], runs["async"])
    for name, each in runs.items():
        p50, p99 = percentile(each, 0.5), percentile(each, 0.99)
        say(f"{name}: median {median_rate(each):,.0f}/s, p50 {p50 * 1e3:.1f} ms, p99 {p99 * 1e3:.1f} ms")
    say(f"sync / async: median {statistics.median(ratios):.2f}, of {min(ratios):.2f} to {max(ratios):.2f}")


def main() -> None:
    """Measure, and show rates, latencies and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="3 rounds of half a second instead of 5 of 2 seconds")
    parser.add_argument("--folder", type=Path, default=Path(".benchmark"), help="where the databases lie")
    options = parser.parse_args()
    plan = Plan(options.folder, quick=options.quick)
    with plan.kept():
        for writers in WRITERS:
            asyncio.run(measured(plan, writers))


if __name__ == "__main__":
    main()
