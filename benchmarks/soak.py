"""A recorder at work for a long time: `python -m benchmarks.soak [MESSAGES] [FOLDER]`.

5,000,000 messages unless told otherwise, as fast as the store takes them, in memory that has to stay flat; the
store is away for a while in the middle, so that the journal grows, and has to shrink again. Exit code 1 where
anything is missing, or memory or the journal stay larger than they were.
"""

import asyncio
import gc
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import UUID

import uvloop

from chatkeep import Message, NewMessage, Recorder, StoreOptions, StoreUnavailable
from chatkeep.stores.append import listed
from chatkeep.stores.memory.store import MemoryStore

OWNER = "ada"
CONVERSATIONS = 100
AHEAD = 5_000
"""How many messages are recorded ahead of the store before the loop lets it catch up."""

AWAY = 0.05
"""The part of all messages that is recorded while the store is away."""


class Counting(MemoryStore):
    """A store that checks the order of what it is given, and forgets it: it takes no memory."""

    def __init__(self) -> None:
        super().__init__("memory://", StoreOptions())
        self.away = False
        self.stored = 0
        self.last: dict[UUID | str, int] = {}

    async def append(
        self,
        owner: str,  # noqa: ARG002
        conversation_id: UUID | str,
        messages: Sequence[NewMessage] | NewMessage,
        **_: object,
    ) -> list[Message]:
        if self.away:
            raise StoreUnavailable("it is away")
        for message in listed(messages):
            number = int(message.content.partition(" ")[0])
            if number != self.last.get(conversation_id, -1) + 1:
                raise RuntimeError(f"message {number} of {conversation_id} follows {self.last.get(conversation_id)}")
            self.last[conversation_id] = number
        self.stored += len(listed(messages))
        return []


def resident() -> int:
    """How much memory this process uses, in MB."""
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    return pages * 4_096 >> 20


def size(journal: Path) -> int:
    """How large the journal and its log are, in MB."""
    return sum(path.stat().st_size for path in journal.parent.glob(f"{journal.name}*")) >> 20


async def soak(messages: int, journal: Path) -> bool:
    """Record; say now and then how it goes; whether all is well in the end."""
    store, began = Counting(), time.monotonic()
    away = range(messages // 2, messages // 2 + int(messages * AWAY))
    early, largest = 0, 0
    async with Recorder(store, journal, max_bytes=4 << 30) as recorder:
        for number in range(messages):
            conversation = UUID(int=number % CONVERSATIONS + 1)
            recorder.record(
                OWNER, conversation, "user", f"{number // CONVERSATIONS} said in a conversation " + "x" * 60
            )
            store.away = number in away
            if number % 100 == 99:
                await asyncio.sleep(0)
            while not store.away and recorder.stats().unsent > AHEAD:  # noqa: ASYNC110 - other conversations count too
                await asyncio.sleep(0.005)
            if (number + 1) % (messages // 20) == 0:
                early = early or resident()
                largest = max(largest, size(journal))
                print(f"{time.monotonic() - began:6.0f} s  {number + 1:>9,} recorded  {store.stored:>9,} stored  "
                      f"{resident():>4} MB of memory  {size(journal):>4} MB of journal", flush=True)  # fmt: skip
        await recorder.flush(600)
        gc.collect()
        await asyncio.sleep(2 + largest / 3)  # it gives its space back some at a time
        late, left = resident(), size(journal)
        stats = recorder.stats()
    print(
        f"{store.stored:,} of {messages:,} stored, in order; memory {early} MB early, {late} MB late;"
        f" journal {largest} MB at its largest, {left} MB in the end; {stats.dropped} dropped, {stats.dead} dead"
    )
    return store.stored == messages and late < early + 50 and left < 20


def main() -> int:
    """Run it, and return the exit code."""
    messages = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000_000
    with tempfile.TemporaryDirectory(dir=sys.argv[2] if len(sys.argv) > 2 else None) as folder:
        return 0 if uvloop.run(soak(messages, Path(folder) / "journal")) else 1


if __name__ == "__main__":
    sys.exit(main())
