"""Appends over HTTP, durable, against the same server with a store that stores nothing."""

import asyncio
import statistics
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from uuid import uuid4

import uvloop

from benchmarks.children import ROOT, command, compile_modules, environment
from benchmarks.http_client import Connection, body, connected, post
from benchmarks.measure import Plan, Run, Work, drive, joined, say, say_round
from benchmarks.results import Gate, Latency, Report, Row, rate_row
from benchmarks.stores import url
from benchmarks.texts import text

CLIENTS = 32
GATE = Gate(0.5)
YARDSTICK = "the same server and route, nothing stored"
SIDES = ("off", "on", "forget")
SLICES = 4
NOTE = (
    "Server: uvicorn, uvloop, httptools, one process, on loopback. In every round the three servers run at the same"
    f" time, and the load goes from one to the next in slices, {SLICES} for each."
)


def run(plan: Plan) -> Report:
    """Measure both servers, each in a process of its own, the load coming from this one."""
    compile_modules(plan)
    return uvloop.run(_run(plan))


async def _run(plan: Plan) -> Report:
    say(f"HTTP append, {CLIENTS} clients, one worker")
    busy: list[float] = []
    runs: dict[str, list[Run]] = {name: [] for name in SIDES}
    for number in range(plan.rounds):
        found = await _round(plan, busy)
        say_round(number, found)
        for name, run in found.items():
            runs[name].append(run)
    load = f"HTTP: the load generator was busy for {statistics.median(busy):.0%} of a core in the median slice."
    return Report(
        rows=[_row(search, runs) for search in ("off", "on")],
        latencies=[
            *(Latency.of(f"HTTP append, {CLIENTS} clients, search {name}", runs[name]) for name in ("off", "on")),
            Latency.of(f"HTTP append, {CLIENTS} clients, {YARDSTICK}", runs["forget"]),
        ],
        notes=[f"{load} {NOTE}"],
    )


def _row(search: str, runs: dict[str, list[Run]]) -> Row:
    work = f"HTTP append, durable, {CLIENTS} clients, one worker, search {search}"
    return rate_row(work, YARDSTICK, runs[search], runs["forget"], GATE)


async def _round(plan: Plan, busy: list[float]) -> dict[str, Run]:
    """Start a server of each kind with a fresh database, and let them work in turn, slice by slice."""
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(_server(plan, name)) for name in SIDES}
        works = {name: await _appending(stack, await _port(servers[name])) for name in SIDES}
        slices: dict[str, list[Run]] = {name: [] for name in SIDES}
        for _ in range(SLICES):
            for name, work in works.items():
                before = time.process_time(), time.perf_counter()
                slices[name].append(await drive(CLIENTS, plan.seconds / SLICES, work))
                busy.append((time.process_time() - before[0]) / (time.perf_counter() - before[1]))
    return {name: joined(runs) for name, runs in slices.items()}


@asynccontextmanager
async def _server(plan: Plan, name: str) -> AsyncIterator[Process]:
    """A server with a database of its own, on its way up."""
    search = "on" if name == "on" else "off"
    with plan.fresh() as folder:
        line = command("benchmarks.http_server", f"{url(folder)}?search={search}", name)
        process = await asyncio.create_subprocess_exec(*line, stdout=PIPE, cwd=ROOT, env=environment(plan))
        try:
            yield process
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _port(server: Process) -> int:
    """The port of a server that is up."""
    assert server.stdout
    return int(await server.stdout.readline())


async def _appending(stack: AsyncExitStack, port: int) -> Work:
    connections = await stack.enter_async_context(connected(port, CLIENTS))
    paths = [await _conversation(port, connection) for connection in connections]

    async def append(writer: int, number: int) -> bytes:
        value = {"id": str(uuid4()), "role": "user", "content": text(writer, number)}
        return await connections[writer].send(post(port, paths[writer], value))

    return append


async def _conversation(port: int, connection: Connection) -> str:
    made = body(await connection.send(post(port, "/api/conversations", {})))
    return f"/api/conversations/{made['id']}/messages"
