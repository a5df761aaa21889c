"""What recording costs the caller, whatever the database does: how long `record` takes, and how late the loop is."""

import asyncio
import gc
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import uvloop

from benchmarks.cores import OTHERS, on
from benchmarks.measure import Plan, Run, percentile, say
from benchmarks.postgres_server import Server, fresh_database, serving
from benchmarks.proxy import proxy, tell
from benchmarks.results import Gate, Latency, Report, Row
from benchmarks.texts import text
from chatkeep import NewConversation, NewMessage, Recorder, Role, open_store
from chatkeep.ids import new_id

OWNER = "ada"
CONVERSATIONS = 20
RECORD_GATE = Gate(25, "µs", at_most=True)
LATE_GATE = Gate(5, "ms", at_most=True)
TICK = 0.001
MANY_TICKS = 4
"""Ticks for each call, for which there is room."""

NOTE = (
    "Recorder: a call every millisecond (20,000 in each case), texts of 800 characters, to 20 conversations on"
    " PostgreSQL behind a TCP proxy, both kept off one core, uvloop. Half a millisecond after each call its yardstick"
    " is called, which only makes a message and gives it to nobody: what the machine does to a call of a few"
    " microseconds, it does to both. A second task sleeps 1 ms again and again and measures how late it is woken."
    " Between the calls the loop is busy with other callbacks, or `idle`: then the processor sleeps, and whatever is"
    " called first after that takes several times as long, also where nothing is recorded. `With a time and metadata`"
    " is a message as a voice pipeline records it. Percentiles of all calls of a round; medians of the rounds."
)


async def fast(_tell: Callable[[str], Awaitable[None]]) -> None:
    """The database answers at once."""


async def slow(tell_: Callable[[str], Awaitable[None]]) -> None:
    """Every answer takes two seconds."""
    await tell_("delay 2")


async def down(tell_: Callable[[str], Awaitable[None]]) -> None:
    """It is not there."""
    await tell_("down")


async def coming_back(tell_: Callable[[str], Awaitable[None]]) -> None:
    """It is down, and comes back after a third of the time."""
    await tell_("down")
    await asyncio.sleep(6)
    await tell_("pass")


NOTHING = "nothing recorded"
ALONE = "a message made, not recorded"
WITH_MORE = "with a time and metadata"
MORE: dict[str, Any] = {
    "sent_at": datetime(2026, 1, 31, 12, tzinfo=UTC),
    "metadata": {"speech": {"started_at": "2026-01-31T12:00:00+00:00", "stopped_at": "2026-01-31T12:00:02+00:00"},
                 "user_id": "ada"},
}  # fmt: skip
"""What a voice pipeline says of a message beside its text."""
CASES = {"fast": fast, "answers after 2 s": slow, "down": down, "down, coming back": coming_back}


def run(plan: Plan) -> Report:
    """Measure each case, in rounds."""
    with ExitStack() as stack:
        with on(OTHERS):
            server = stack.enter_context(serving())
        return uvloop.run(_run(plan, server))


async def _run(plan: Plan, server: Server) -> Report:
    report, rounds = Report(notes=[NOTE]), 1 if plan.quick else 3
    calls = plan.size(20_000, 2_000)
    for name in (None, *CASES):
        _add(report, name or NOTHING, [await _case(plan, server, name, calls) for _ in range(rounds)])
    _add(report, f"database down, {WITH_MORE}", [await _case(plan, server, "down", calls, **MORE)])
    for name in (None, "down"):
        _add(report, f"{name or NOTHING}, idle", [await _case(plan, server, name, calls, idle=True)])
    return report


class Found(NamedTuple):
    """How long the calls took, those of the yardstick, and how late the loop was."""

    calls: Run
    made: Run
    late: Run


def _add(report: Report, name: str, found: list[Found]) -> None:
    calls, made, late = ([*runs] for runs in zip(*found, strict=True))
    gated = name in CASES
    name = f"database {name}" if gated else name
    for work, of, alone, share, factor, gate in (
        ("record() p99", calls, made, 0.99, 1e6, RECORD_GATE),
        ("loop lateness p99.9", late, None, 0.999, 1e3, LATE_GATE),
    ):
        values = [percentile([one], share) * factor for one in of]
        theirs = f"{percentile(alone, share) * factor:.3g} {gate.unit}" if alone else "-"
        times = f"{sum(one.operations for one in of):,} times"
        yardstick = ALONE if alone else "-"
        report.rows.append(Row(f"{work}, {name}", yardstick, times, theirs, values, gate.unit, gate if gated else None))
    report.latencies += [
        Latency.of(f"record(), {name}", calls),
        Latency.of(f"{ALONE}, {name}", made),
        Latency("loop lateness, p50 and maximum, " + name, percentile(late, 0.5), max(r.latencies[-1] for r in late),
                sum(r.operations for r in late)),
    ]  # fmt: skip


async def _case(plan: Plan, server: Server, name: str | None, calls: int, *, idle: bool = False, **more: Any) -> Found:
    say(f"  recorder: {name or NOTHING}{', idle' if idle else ''}{f', {WITH_MORE}' if more else ''}")
    if name is None:
        return await _measured(_make, calls, idle=idle)
    with plan.fresh() as folder:
        async with _recorder(server, folder) as (recorder, conversations, tell_):
            for number in range(500):  # what is done for the first time takes longer
                recorder.record(OWNER, conversations[number % CONVERSATIONS], "user", text(0, number))
            await recorder.flush(60)
            weather = asyncio.create_task(CASES[name](tell_))

            def record(number: int, said: str) -> None:
                recorder.record(OWNER, conversations[number % CONVERSATIONS], "user", said, **more)

            found = await _measured(record, calls, idle=idle)
            with suppress(asyncio.CancelledError):
                weather.cancel()
                await weather
            await tell_("pass")
            await recorder.flush(120)
            stats = recorder.stats()
            if stats.sent != calls + 500 or stats.dead or stats.dropped:
                raise RuntimeError(f"of {calls + 500:,} messages not all arrived: {stats}")
    return found


@asynccontextmanager
async def _recorder(
    server: Server, folder: Path
) -> AsyncIterator[tuple[Recorder, list[UUID], Callable[[str], Awaitable[None]]]]:
    async with fresh_database(server) as url, proxy(server.port) as (port, process):
        there = url.replace(f":{server.port}/", f":{port}/")
        async with open_store(there, search="off") as store, Recorder(store, folder / "journal") as recorder:
            made = [(await store.create_conversation(OWNER, NewConversation())).id for _ in range(CONVERSATIONS)]
            yield recorder, made, lambda line: tell(process, line)


def _said(number: int) -> str:
    return text(0, number) + text(1, number)


async def _measured(call: Callable[[int, str], object], calls: int, *, idle: bool) -> Found:
    """Call once a tick, and the yardstick in the middle of it; how long both took, and how late the loop was."""
    # Made before, as a list of floats takes a new page of memory every 170 calls, which costs 20 µs here.
    took, alone, ticks = array("d", bytes(8 * calls)), array("d", bytes(8 * calls)), 0
    late = array("d", bytes(8 * MANY_TICKS * calls))

    async def wait(since: float, seconds: float) -> None:
        if idle:
            await asyncio.sleep(seconds)
        while time.perf_counter() - since < seconds:  # noqa: ASYNC110 - the loop is to be busy
            await asyncio.sleep(0)

    async def tick() -> None:
        nonlocal ticks
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK)
            late[ticks] = max(0.0, time.perf_counter() - before - TICK)
            ticks += 1

    gc.collect()
    began, ticking = time.perf_counter(), asyncio.create_task(tick())
    for number in range(calls):
        said = _said(number)
        before = time.perf_counter()
        call(number, said)
        took[number] = time.perf_counter() - before
        await wait(before, TICK / 2)
        before = time.perf_counter()
        _make(number, said)
        alone[number] = time.perf_counter() - before
        await wait(before, TICK / 2)
    ticking.cancel()
    seconds = time.perf_counter() - began
    return Found(*(Run(len(times), seconds, sorted(times)) for times in (took, alone, late[:ticks])))


def _make(_number: int, said: str) -> object:
    return NewMessage(id=new_id(), role=Role.USER, content=said)
