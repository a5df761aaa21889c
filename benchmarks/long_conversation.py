"""What a conversation's length costs: append and latest 50 at 1,000,000 messages against at 100."""

import asyncio
import shutil
from pathlib import Path
from uuid import UUID

from benchmarks.measure import Plan, Run, Work, in_turn, say
from benchmarks.results import Gate, Latency, Report, time_row
from benchmarks.stores import OWNER, conversations, message, opened
from chatkeep import Message, Page, Store

BATCH = 1_000
SHORT = 100
PAIRS = 200
"""Operations of each side in one round."""
GATE = Gate(1.2, at_most=True)
NOTE = (
    "Long conversation: two databases, one that holds the long conversation and one with short ones; one writer,"
    " synchronous=FULL, operation by operation in turn; the ratio is of a round's mean times, so that what happens"
    " now and then (a merge of the index, a checkpoint) counts. Search off and on are both gated."
)


def run(plan: Plan) -> Report:
    """Build the long conversation once, then measure a copy of it without search, and it with search."""
    report = Report(notes=[NOTE])
    with plan.fresh() as folder:
        (folder / "on").mkdir()
        long = asyncio.run(_build(folder / "on", plan.size(1_000_000, 20_000)))
        shutil.copytree(folder / "on", folder / "off")
        for search in (False, True):
            report.add(asyncio.run(_compare(plan, folder, long, search=search)))
    return report


async def _build(folder: Path, length: int) -> UUID:
    async with opened(folder, search=True, synchronous="normal") as store:
        (id_,) = await conversations(store, 1)
        for start in range(0, length, BATCH):
            await _fill(store, id_, start, BATCH)
            if start % 100_000 == 0:
                say(f"long conversation: {start:,} of {length:,} messages stored")
    return id_


async def _fill(store: Store, id_: UUID, start: int, count: int) -> None:
    await store.append(OWNER, id_, [message(0, number) for number in range(start, start + count)])


async def _compare(plan: Plan, folder: Path, long: UUID, *, search: bool) -> Report:
    name = "on" if search else "off"
    say(f"long conversation, search {name}")
    with plan.fresh() as other:
        async with opened(folder / name, search=search) as big, opened(other, search=search) as small:
            appends, reads = await _rounds(plan, big, long, small)
    size = f"{plan.size(1_000_000, 20_000):,}"
    work = {f"append, search {name}": appends, f"latest 50, search {name}": reads}
    return Report(
        rows=[time_row(f"{text}, at {size} messages", f"at {SHORT}", *runs, GATE) for text, runs in work.items()],
        latencies=[
            Latency.of(f"{text}: at {length}", runs[side])
            for text, runs in work.items()
            for side, length in enumerate((size, SHORT))
        ],
    )


type Pairs = tuple[list[Run], list[Run]]


async def _rounds(plan: Plan, big: Store, long: UUID, small: Store) -> tuple[Pairs, Pairs]:
    appends: Pairs = ([], [])
    reads: Pairs = ([], [])
    for number in range(-1, plan.rounds):  # the first is a warm-up
        (short,) = await conversations(small, 1)
        await _fill(small, short, 0, SHORT)
        for kept, works in (
            (reads, (_latest(big, long), _latest(small, short))),
            (appends, (_append(big, long), _append(small, short))),
        ):
            runs = await in_turn(PAIRS, *works)
            if number >= 0:
                for side, one in zip(kept, runs, strict=True):
                    side.append(one)
    return appends, reads


def _append(store: Store, id_: UUID) -> Work:
    async def append(writer: int, number: int) -> list[Message]:
        return await store.append(OWNER, id_, [message(writer, number)])

    return append


def _latest(store: Store, id_: UUID) -> Work:
    async def latest(_writer: int, _number: int) -> Page[Message]:
        return await store.history(OWNER, id_, limit=50)

    return latest
