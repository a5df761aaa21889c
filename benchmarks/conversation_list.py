"""What the number of conversations costs: the newest 20 of an owner's 100,000 against of 100, and by a label."""

import asyncio
import random
from datetime import UTC, datetime, timedelta

from benchmarks.measure import Plan, Run, Work, in_turn, say
from benchmarks.results import Gate, Latency, Report, time_row
from benchmarks.stores import opened
from chatkeep import Conversation, ImportedConversation, Page, Store

GATE = Gate(1.5, at_most=True)
LABEL_GATE = Gate(3.0, at_most=True)
RARE, FREQUENT = "rare", "frequent"
FEW_LABELLED = 5
FEW = 100
PAIRS = 300
CHUNK = 200
NOTE = (
    "List: two owners in one database, no total; the conversations were stored in another order than that of their"
    " last message, so that the newest 20 lie scattered."
)


def run(plan: Plan) -> Report:
    """Measure the first page of both owners in turn."""
    return asyncio.run(_run(plan))


async def _run(plan: Plan) -> Report:
    many = plan.size(100_000, 5_000)
    with plan.fresh() as folder:
        async with opened(folder, search=True, synchronous="normal") as store:
            for owner, count in (("many", many), ("few", FEW)):
                say(f"list: storing {count:,} conversations")
                await _fill(store, owner, count)
            runs = await _rounds(plan, _newest(store, "many"), _newest(store, "few"))
            by_label = {
                label: await _rounds(plan, _newest(store, "many", label), _newest(store, "many"))
                for label in (RARE, FREQUENT)
            }
    names = (f"{many:,}", f"{FEW}")
    latencies = [Latency.of(f"list 20 of {name}", side) for name, side in zip(names, runs, strict=True)]
    row = time_row(f"list 20 of an owner's {names[0]} conversations, no total", f"of {FEW}", *runs, GATE)
    counts = {RARE: FEW_LABELLED, FREQUENT: many * 9 // 10}
    rows = [row]
    for label, sides in by_label.items():
        work = f"list 20 by a label of {counts[label]:,} among {many:,} conversations"
        rows.append(time_row(work, "the list without a label", *sides, LABEL_GATE))
    return Report(rows=rows, latencies=latencies, notes=[NOTE])


async def _fill(store: Store, owner: str, count: int) -> None:
    minutes = random.Random(count).sample(range(count), count)
    for start in range(0, count, CHUNK):
        new = [_conversation(minute) for minute in minutes[start : start + CHUNK]]
        await asyncio.gather(*(store.create_conversation(owner, conversation) for conversation in new))


def _conversation(minute: int) -> ImportedConversation:
    moment = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(minutes=minute)
    frequent = (FREQUENT,) if minute % 10 else ()
    labels = (RARE, *frequent) if minute < FEW_LABELLED else frequent
    return ImportedConversation(title=f"What was said at minute {minute}", updated_at=moment, labels=labels)


async def _rounds(plan: Plan, one: Work, other: Work) -> tuple[list[Run], list[Run]]:
    await in_turn(PAIRS, one, other)
    runs = [await in_turn(PAIRS, one, other) for _ in range(plan.rounds)]
    return [first for first, _ in runs], [second for _, second in runs]


def _newest(store: Store, owner: str, label: str | None = None) -> Work:
    labels = () if label is None else (label,)

    async def newest(_writer: int, _number: int) -> Page[Conversation]:
        return await store.list_conversations(owner, labels=labels, limit=20)

    return newest
