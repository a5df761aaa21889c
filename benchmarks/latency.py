"""Latency of single appends under 8 and 128 writers; append.py has 1 and 32."""

import asyncio
from functools import partial

from benchmarks.measure import Plan, alternate, say
from benchmarks.results import Latency, Report
from benchmarks.stores import append_run


def run(plan: Plan) -> Report:
    """Measure how long one append takes while others append."""
    report = Report()
    for writers in (8, 128):
        report.latencies += asyncio.run(_latencies(plan, writers))
    return report


async def _latencies(plan: Plan, writers: int) -> list[Latency]:
    say(f"append, {writers} writers, latency")
    side = partial(append_run, writers=writers, seconds=plan.seconds)
    runs = await alternate(plan, {"off": partial(side, search=False), "on": partial(side, search=True)}, rounds=3)
    return [Latency.of(f"append, {writers} writers: chatkeep, search {name}", runs[name]) for name in runs]
