"""A recorder that is started with a full journal: `python -m benchmarks.backlog [MESSAGES] [CONVERSATIONS] [FOLDER]`.

1,000,000 messages of 10,000 conversations unless told otherwise are left in a journal; another recorder delivers them,
while it records. What it shows: how long the constructor took, how late the event loop was, how long `record` took, how
many messages a second were delivered, and the memory. Exit code 1 if anything is missing or out of order.
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path
from uuid import UUID

from benchmarks.soak import OWNER, Counting, resident
from chatkeep import Recorder

MAX_BYTES = 4 << 30


async def fill(journal: Path, messages: int, conversations: int) -> None:
    """Leave messages in a journal."""
    recorder = Recorder(Counting(), journal, max_bytes=MAX_BYTES)
    for number in range(messages):
        recorder.record(
            OWNER, UUID(int=1 + number % conversations), "user", f"{number // conversations} {'word ' * 10}"
        )
        if number % 10_000 == 0:
            while recorder.stats().queued > 20_000:  # noqa: ASYNC110 - a thread ends it
                await asyncio.sleep(0.01)
    await recorder.aclose(0)


async def deliver(journal: Path, messages: int, conversations: int) -> bool:
    """Deliver them, and say what it took; return whether all arrived."""
    store, began = Counting(), time.monotonic()
    recorder = Recorder(store, journal, max_bytes=MAX_BYTES)
    print(f"opened in {time.monotonic() - began:.2f} s; {recorder.stats().unsent:,} wait; {resident()} MB")
    began, calls, late = time.monotonic(), list[float](), list[float]()
    async with recorder:
        while recorder.stats().unsent:
            before = time.perf_counter()
            if len(calls) < 10_000:
                recorder.record("bob", UUID(int=conversations + 1), "user", f"{len(calls)} hello")
                calls.append(time.perf_counter() - before)
            before = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - before - 0.005)
    seconds = time.monotonic() - began
    print(f"delivered {messages / seconds:,.0f} messages/s; {resident()} MB")
    for name, values in (("record", calls), ("event loop late by", late)):
        values.sort()
        print(f"{name}: p50 {percentile(values, 50):,.0f} µs, p99 {percentile(values, 99):,.0f} µs")
    print(f"longest {1e3 * late[-1]:,.0f} ms")
    return store.stored == messages + len(calls)


def percentile(values: list[float], percent: int) -> float:
    """A percentile of sorted seconds, in microseconds."""
    return 1e6 * values[(len(values) - 1) * percent // 100]


def main() -> None:
    """Run it in a folder of its own."""
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    conversations = int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    with tempfile.TemporaryDirectory(dir=sys.argv[3] if len(sys.argv) > 3 else None) as folder:
        journal = Path(folder) / "journal"
        asyncio.run(fill(journal, messages, conversations))
        print(f"{messages:,} messages of {conversations:,} conversations: {journal.stat().st_size / 1e6:,.0f} MB")
        if not asyncio.run(deliver(journal, messages, conversations)):
            sys.exit("messages are missing")


if __name__ == "__main__":
    main()
