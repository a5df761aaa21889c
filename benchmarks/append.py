"""Durable appends against a one-row INSERT with aiosqlite: 1 and 32 writers, search off and on."""

import asyncio
from functools import partial

from benchmarks.machine import disk_run
from benchmarks.measure import Plan, Run, Side, alternate, percentile, rate_ratios, say
from benchmarks.plain_table import index_options, insert_run
from benchmarks.results import Gate, Latency, Report, Row, rate_row
from benchmarks.stores import append_run

GATE = Gate(1.5)
PLAIN = "aiosqlite, one-row INSERT, autocommit, plain table"
INDEXED = f"{PLAIN} with the same FTS5 index, filled by a trigger"
SHARED = "aiosqlite, INSERT and commit() on the shared connection"
SHARED_INDEXED = f"{SHARED}, with the index"
PAIRS = {"off": ("chatkeep", "plain"), "on": ("chatkeep with search", "plain with index")}
ROUNDS = 7
NOTE = (
    "Append: chatkeep's time holds the building of the NewMessage, with an id of its own. The plain table has an"
    " integer key and no other index. WAL and synchronous=FULL on both sides. The yardstick's index is"
    f" fts5 ({index_options()}); the owner's word and the text go into it with the row."
)
SHARED_NOTE = (
    "INSERT and commit() as two calls on one connection that 32 tasks share: the rows of all tasks go into one"
    " transaction, whoever commits first commits, and whoever rolls back takes the others' rows along. It groups"
    " commits by accident, and it is no gate because its writers are not independent."
)


def run(plan: Plan) -> Report:
    """Measure the rows of appends."""
    report = Report(notes=[NOTE, SHARED_NOTE])
    for writers in (32, 1):
        report.add(asyncio.run(_compare(plan, writers)))
    return report


def _sides(plan: Plan, writers: int) -> dict[str, Side]:
    ours = partial(append_run, writers=writers, seconds=plan.seconds)
    theirs = partial(insert_run, writers=writers, seconds=plan.seconds)
    sides: dict[str, Side] = {
        "disk": partial(disk_run, append=False),
        "disk, growing": partial(disk_run, append=True),
        "chatkeep": partial(ours, search=False),
        "plain": partial(theirs, indexed=False),
        "chatkeep with search": partial(ours, search=True),
        "plain with index": partial(theirs, indexed=True),
    }
    shared: dict[str, Side] = {
        "shared": partial(theirs, indexed=False, autocommit=False),
        "shared with index": partial(theirs, indexed=True, autocommit=False),
    }
    return sides | (shared if writers > 1 else {})


async def _compare(plan: Plan, writers: int) -> Report:
    name = f"append, {writers} writer{'s' if writers > 1 else ''}"
    say(f"{name}, synchronous=FULL")
    runs = await alternate(plan, _sides(plan, writers), None if plan.quick or writers == 1 else ROUNDS)
    return Report(
        rows=_rows(name, runs, GATE if writers > 1 else None),
        latencies=_latencies(name, runs),
        notes=[_by_disk(f"{name}, search {search}", runs, *sides) for search, sides in PAIRS.items()],
    )


def _rows(name: str, runs: dict[str, list[Run]], gate: Gate | None) -> list[Row]:
    shown = {PLAIN: "plain", SHARED: "shared"}, {INDEXED: "plain with index", SHARED_INDEXED: "shared with index"}
    return [
        rate_row(f"{name}, search {search}", text, runs[ours], runs[theirs], gate if theirs == yardstick else None)
        for (search, (ours, yardstick)), sides in zip(PAIRS.items(), shown, strict=True)
        for text, theirs in sides.items()
        if theirs in runs
    ]


def _latencies(name: str, runs: dict[str, list[Run]]) -> list[Latency]:
    shown = {
        "disk": "fdatasync of 4 KiB in place",
        "disk, growing": "fdatasync of 4 KiB at the end of a file",
        "chatkeep": "chatkeep, search off",
        "plain": PLAIN,
        "chatkeep with search": "chatkeep, search on",
        "plain with index": f"{PLAIN}, with index",
        "shared": SHARED,
    }
    return [Latency.of(f"{name}: {text}", runs[side]) for side, text in shown.items() if side in runs]


def _by_disk(name: str, runs: dict[str, list[Run]], ours: str, theirs: str) -> str:
    """The ratio of every round beside what the disk took for one sync then: the one follows from the other."""
    disk = [percentile([run], 0.5) * 1e3 for run in runs["disk"]]
    ratios = rate_ratios(runs[ours], runs[theirs])
    rounds = ", ".join(f"{sync:.2f} ms: {ratio:.2f}" for sync, ratio in sorted(zip(disk, ratios, strict=True)))
    return f"{name}, the rounds by what the disk took for an fdatasync (p50: ratio): {rounds}."
