"""Append and history of 50 over HTTP on PostgreSQL, against routes that store nothing, and against SQLModel."""

import asyncio
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import uvloop

from benchmarks.children import ROOT, command, compile_modules, environment
from benchmarks.cores import MEASURED, OTHERS, on
from benchmarks.http_client import Connection, body, connected, get, post
from benchmarks.measure import Plan, Run, Work, drive, joined, say, say_round
from benchmarks.postgres_server import Server, fresh_database, serving
from benchmarks.results import Gate, Latency, Report, rate_row
from benchmarks.texts import text

CLIENTS = 32
SLICES = 4
HISTORY = 50
NOTHING, MODEL = (
    "the same server and route, nothing stored or read",
    "FastAPI + SQLModel, session, add, commit, refresh",
)
SIDES = {"chatkeep": "chatkeep", NOTHING: "forget", MODEL: "sqlmodel"}
GATES = {NOTHING: Gate(0.5), MODEL: Gate(4.0)}
NOTE = (
    "HTTP on PostgreSQL: one process for each server, on loopback, a pool of 10 connections, search off. Each server"
    " has a core for itself, PostgreSQL and the clients share the others: where they may use all of two cores they push"
    " a server that reads off its own a tenth of the time, and one that reads nothing never. The plain implementation"
    " checks ownership, keeps updated_at and orders by time; it has no ids of the client's, no seq and no retries."
)


def run(plan: Plan) -> Report:
    """Measure the three servers, each in a process of its own, in turn."""
    compile_modules(plan)
    with on(OTHERS), serving() as server:
        return uvloop.run(_run(plan, server))


async def _run(plan: Plan, server: Server) -> Report:
    report = Report(notes=[NOTE])
    for work in ("append", "history of 50"):
        say(f"HTTP {work} on PostgreSQL, {CLIENTS} clients")
        runs: dict[str, list[Run]] = {side: [] for side in SIDES}
        for number in range(plan.rounds):
            found = await _round(plan, server, work)
            say_round(number, found)
            for side, one in found.items():
                runs[side].append(one)
        name = f"HTTP {work}, PostgreSQL, {CLIENTS} clients, one worker"
        report.rows += [rate_row(name, side, runs["chatkeep"], runs[side], gate) for side, gate in GATES.items()]
        report.latencies += [Latency.of(f"{name}: {side}", runs[side]) for side in SIDES]
    return report


async def _round(plan: Plan, server: Server, work: str) -> Mapping[str, Run]:
    async with AsyncExitStack() as stack:
        works = {}
        for side, kind in SIDES.items():
            port = await stack.enter_async_context(_serving(plan, server, kind))
            works[side] = await _work(stack, port, work)
        slices: dict[str, list[Run]] = {side: [] for side in SIDES}
        for _ in range(SLICES):
            for side, one in works.items():
                slices[side].append(await drive(CLIENTS, plan.seconds / SLICES, one))
    return {side: joined(runs) for side, runs in slices.items()}


@asynccontextmanager
async def _serving(plan: Plan, server: Server, kind: str) -> AsyncIterator[int]:
    """The port of a server with a database of its own."""
    async with fresh_database(server) as url:
        line = command("benchmarks.sqlmodel_server", url)
        if kind != "sqlmodel":
            line = command("benchmarks.http_server", f"{url}?search=off", kind)
        with on(MEASURED):
            process = await asyncio.create_subprocess_exec(*line, stdout=PIPE, cwd=ROOT, env=environment(plan))
        try:
            assert process.stdout
            yield int(await process.stdout.readline())
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _work(stack: AsyncExitStack, port: int, work: str) -> Work:
    connections = await stack.enter_async_context(connected(port, CLIENTS))
    paths = [await _conversation(port, connection) for connection in connections]

    async def append(writer: int, number: int) -> bytes:
        value = {"role": "user", "content": text(writer, number)}
        return await connections[writer].send(post(port, paths[writer], value))

    async def read(writer: int, _number: int) -> bytes:
        return await connections[writer].send(get(port, f"{paths[writer]}?limit={HISTORY}"))

    if work == "append":
        return append
    for number in range(HISTORY):
        await asyncio.gather(*(append(writer, number) for writer in range(CLIENTS)))
    return read


async def _conversation(port: int, connection: Connection) -> str:
    made = body(await connection.send(post(port, "/api/conversations", {})))
    return f"/api/conversations/{made['id']}/messages"
