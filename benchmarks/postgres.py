"""PostgreSQL: durable appends, the latest 50 and growth, against a plain table on the same server."""

import asyncio
import statistics
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import asyncpg

from benchmarks.children import ROOT, command, environment
from benchmarks.import_files import count_messages, data_files
from benchmarks.measure import Plan, Run, Side, alternate, drive, in_turn, say
from benchmarks.plot import latency_by_writers
from benchmarks.postgres_server import Server, fresh_database, serving
from benchmarks.results import Gate, Latency, Report, Row, not_measured, rate_row, time_row
from benchmarks.stores import OWNER, conversations, message
from benchmarks.texts import text
from chatkeep import ImportedConversation, NewMessage, Store, open_store
from chatkeep.words import index_terms

PLAIN = "asyncpg, one-row INSERT, autocommit, plain table"
INDEXED = f"{PLAIN} with the same GIN index"
TABLE = """
    CREATE TABLE messages (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, owner text, conversation_id text NOT NULL,
        role text NOT NULL,
        content text NOT NULL, created_at timestamptz NOT NULL DEFAULT now(), terms text[] COLLATE "C"
    )
"""
INDEX = "CREATE INDEX messages_by_term ON messages USING gin (terms)"
INSERT = "INSERT INTO messages (owner, conversation_id, role, content) VALUES ($1, $2, 'user', $3)"
INSERT_INDEXED = (
    "INSERT INTO messages (owner, conversation_id, role, content, terms)"
    " VALUES ($1, $2, 'user', $3, string_to_array($4, ' '))"
)
FEW, MANY = 1, 64
GATES = {FEW: Gate(0.5), MANY: Gate(1.5)}
READ_GATE = Gate(0.6)
GROWTH_GATE = Gate(1.2, at_most=True)
LIST_GATE = Gate(1.5, at_most=True)
STALL_GATE = Gate(200, "ms", at_most=True)
IMPORT_GATE = Gate(10_000, "messages/s")
PAIRS = 200
PLOT = Path(__file__).with_name("postgres_latency.png")
STORED = 100
NOTE = (
    "PostgreSQL: one server, started for this run with its own defaults (fsync and synchronous_commit on, 256 MB of"
    " shared_buffers), a fresh database for each round. The yardstick has a connection for each writer, chatkeep"
    " its pool of 10. The plain table has an identity key and no other index, no foreign key and no order within a"
    " conversation. With search on both sides write the same terms into the same kind of index."
)


def run(plan: Plan) -> Report:
    """Measure all rows of PostgreSQL on one server."""
    report = Report(notes=[NOTE])
    with serving() as server:
        for writers in (FEW, MANY):
            report.add(asyncio.run(_appends(plan, server, writers)))
        report.add(asyncio.run(_one_conversation(plan, server)))
        report.add(asyncio.run(_retries(plan, server)))
        report.add(asyncio.run(_locked(plan, server)))
        report.add(asyncio.run(_latencies(plan, server)))
        if not plan.quick:
            _plot(report)
        report.add(asyncio.run(_reads(plan, server)))
        report.add(asyncio.run(_growth(plan, server)))
        report.add(asyncio.run(_lists(plan, server)))
        report.add(asyncio.run(_imports(plan, server)))
    return report


# --- appends ---------------------------------------------------------------------------------------------


async def append_run(_folder: Path, *, server: Server, writers: int, talks: int, seconds: float, search: bool) -> Run:
    """Each writer appends one message at a time, durably; they share `talks` conversations."""
    async with fresh_database(server) as url, open_store(url, search="on" if search else "off") as store:
        ids = await conversations(store, talks)

        async def append(writer: int, number: int) -> object:
            return await store.append(OWNER, ids[writer % talks], [message(writer, number)])

        return await drive(writers, seconds, append)


async def insert_run(_folder: Path, *, server: Server, writers: int, seconds: float, search: bool) -> Run:
    """Each writer inserts one row at a time on a connection of its own."""
    async with fresh_database(server) as url:
        connections = [await asyncpg.connect(url) for _ in range(writers)]
        await connections[0].execute(TABLE)
        if search:
            await connections[0].execute(INDEX)
        statement = INSERT_INDEXED if search else INSERT

        async def insert(writer: int, number: int) -> object:
            content = text(writer, number)
            terms = [" ".join(index_terms(OWNER, content))] if search else []
            return await connections[writer].execute(statement, OWNER, f"conversation {writer}", content, *terms)

        run = await drive(writers, seconds, insert)
        for connection in connections:
            await connection.close()
        return run


async def _appends(plan: Plan, server: Server, writers: int) -> Report:
    name = f"PostgreSQL append, {writers} writer{'s' if writers > 1 else ''}"
    say(name)
    ours = partial(append_run, server=server, writers=writers, talks=writers, seconds=plan.seconds)
    theirs = partial(insert_run, server=server, writers=writers, seconds=plan.seconds)
    sides: dict[str, Side] = {
        "off": partial(ours, search=False),
        "plain": partial(theirs, search=False),
        "on": partial(ours, search=True),
        "plain with index": partial(theirs, search=True),
    }
    runs = await alternate(plan, sides)
    return Report(
        rows=[
            rate_row(f"{name}, search off", PLAIN, runs["off"], runs["plain"], GATES[writers]),
            rate_row(f"{name}, search on", INDEXED, runs["on"], runs["plain with index"], GATES[writers]),
        ],
        latencies=[Latency.of(f"{name}: {side}", runs[side]) for side in runs],
    )


async def _one_conversation(plan: Plan, server: Server) -> Report:
    """64 writers into one conversation."""
    name = f"PostgreSQL append, {MANY} writers into one conversation"
    say(name)
    side = partial(append_run, server=server, writers=MANY, talks=1, seconds=plan.seconds, search=False)
    runs = await alternate(plan, {"one conversation": side})
    return Report(latencies=[Latency.of(f"{name}: search off", runs["one conversation"])])


async def _retries(plan: Plan, server: Server) -> Report:
    """64 writers, each of whose messages is sent a second time, as a client does that saw no answer."""
    name = f"PostgreSQL append, {MANY} writers, half of the requests retries"
    say(name)
    runs = await alternate(plan, {"retries": partial(retry_run, server=server, seconds=plan.seconds)})
    return Report(latencies=[Latency.of(f"{name}: search off", runs["retries"])])


async def retry_run(_folder: Path, *, server: Server, seconds: float) -> Run:
    """Every second append repeats the one before it."""
    async with fresh_database(server) as url, open_store(url, search="off") as store:
        ids = await conversations(store, MANY)
        last: dict[int, NewMessage] = {}

        async def append(writer: int, number: int) -> object:
            if number % 2 == 0:
                last[writer] = message(writer, number).model_copy(update={"id": uuid4()})
            return await store.append(OWNER, ids[writer], [last[writer]])

        return await drive(MANY, seconds, append)


async def _locked(plan: Plan, server: Server) -> Report:
    """64 writers while somebody holds the row of one more conversation, to which others append."""
    name = f"PostgreSQL append, {MANY} writers, one row locked by somebody: slowest append of the others"
    say(name)
    runs = (await alternate(plan, {"locked": partial(locked_run, server=server, seconds=plan.seconds)}))["locked"]
    slowest = [run.latencies[-1] * 1e3 for run in runs]
    row = Row(name, "-", f"{statistics.median(slowest):.0f} ms", "-", slowest, "ms", STALL_GATE)
    return Report(rows=[row], latencies=[Latency.of(f"PostgreSQL append, {MANY} writers, one row locked", runs)])


async def locked_run(_folder: Path, *, server: Server, seconds: float) -> Run:
    """Eight tasks append to the locked conversation and get nowhere; the others are measured."""
    async with fresh_database(server) as url, open_store(url, search="off") as store, _holding(url) as holder:
        ids = await conversations(store, MANY + 1)
        await holder.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", ids[MANY])
        stuck = [asyncio.create_task(store.append(OWNER, ids[MANY], [message(MANY, n)])) for n in range(8)]
        run = await drive(MANY, seconds, lambda writer, n: store.append(OWNER, ids[writer], [message(writer, n)]))
        if any(task.done() for task in stuck):
            raise RuntimeError("the row was not locked")
        await holder.execute("ROLLBACK")
        await asyncio.gather(*stuck)
        return run


@asynccontextmanager
async def _holding(url: str) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection in a transaction."""
    connection = await asyncpg.connect(url)
    await connection.execute("BEGIN")
    try:
        yield connection
    finally:
        await connection.close()


def _plot(report: Report) -> None:
    """p50 and p99 over the number of writers."""
    found = {latency.work: latency for latency in report.latencies}
    names = {n: f"PostgreSQL append, {n} writer{'s' if n > 1 else ''}" for n in (FEW, 16, MANY, 256)}
    series = {
        f"search {search}": [(writers, found[f"{name}: {search}"]) for writers, name in names.items()]
        for search in ("off", "on")
    }
    latency_by_writers(PLOT, "PostgreSQL: one append, while others append", series)


async def _latencies(plan: Plan, server: Server) -> Report:
    """How long one append takes while others append."""
    report = Report()
    for writers in (16, 256):
        name = f"PostgreSQL append, {writers} writers"
        say(f"{name}, latency")
        side = partial(append_run, server=server, writers=writers, talks=writers, seconds=plan.seconds)
        runs = await alternate(plan, {"off": partial(side, search=False), "on": partial(side, search=True)}, rounds=3)
        report.latencies += [Latency.of(f"{name}: {search}", runs[search]) for search in runs]
    return report


# --- reads -----------------------------------------------------------------------------------------------


async def _reads(plan: Plan, server: Server) -> Report:
    """The latest 50 of a conversation, records built, against a fetch of the same rows."""
    say("PostgreSQL latest 50")
    async with fresh_database(server) as url, open_store(url, search="off") as store:
        (id_,) = await conversations(store, 1)
        await _fill(store, id_, STORED)
        sides: dict[str, Side] = {
            "chatkeep": lambda _: drive(1, plan.seconds, lambda *_: store.history(OWNER, id_, limit=50)),
            "fetch": partial(_fetch_run, url=url, id_=id_, seconds=plan.seconds),
        }
        runs = await alternate(plan, sides)
    yardstick = "asyncpg fetch of the same rows"
    row = rate_row("PostgreSQL latest 50, records built", yardstick, runs["chatkeep"], runs["fetch"], READ_GATE)
    return Report(rows=[row], latencies=[Latency.of(f"PostgreSQL latest 50: {side}", runs[side]) for side in runs])


async def _fetch_run(_folder: Path, *, url: str, id_: UUID, seconds: float) -> Run:
    statement = (
        "SELECT id, conversation_id, seq, parent_id, role, content, status, sources, metadata, external_id, sent_at,"
        " created_at FROM messages WHERE owner_id = $1 AND conversation_id = $2 ORDER BY seq DESC LIMIT 50"
    )
    connection = await asyncpg.connect(url)
    try:
        return await drive(1, seconds, lambda *_: connection.fetch(statement, OWNER, id_))
    finally:
        await connection.close()


async def _fill(store: Store, id_: UUID, count: int, first: int = 0) -> None:
    for start in range(first, first + count, 1_000):
        batch = [message(0, number) for number in range(start, min(start + 1_000, first + count))]
        await store.append(OWNER, id_, batch)


# --- growth ----------------------------------------------------------------------------------------------


async def _growth(plan: Plan, server: Server) -> Report:
    """Append and latest 50 at 1,000,000 messages in one conversation against at 100."""
    size = plan.size(1_000_000, 20_000)
    say(f"PostgreSQL, {size:,} messages in one conversation")
    appends: tuple[list[Run], list[Run]] = ([], [])
    reads: tuple[list[Run], list[Run]] = ([], [])
    async with fresh_database(server) as url, open_store(url, search="off") as store:
        (long,) = await conversations(store, 1)
        await _fill(store, long, size)
        await _vacuum(url)
        for number in range(-1, plan.rounds):  # the first is a warm-up
            (short,) = await conversations(store, 1)
            await _fill(store, short, 100)
            for kept, works in (
                (reads, [partial(_latest, store, id_) for id_ in (long, short)]),
                (appends, [partial(_append, store, id_) for id_ in (long, short)]),
            ):
                runs = await in_turn(PAIRS, works[0], works[1])
                if number >= 0:
                    kept[0].append(runs[0])
                    kept[1].append(runs[1])
    return Report(
        rows=[
            time_row(f"PostgreSQL {work}, search off, at {size:,} messages", "at 100", *runs, GROWTH_GATE)
            for work, runs in (("append", appends), ("latest 50", reads))
        ]
    )


async def _latest(store: Store, id_: UUID, _writer: int, _number: int) -> object:
    return await store.history(OWNER, id_, limit=50)


async def _append(store: Store, id_: UUID, writer: int, number: int) -> object:
    return await store.append(OWNER, id_, [message(writer, number)])


async def _vacuum(url: str) -> None:
    connection = await asyncpg.connect(url, command_timeout=600)
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def _lists(plan: Plan, server: Server) -> Report:
    """The newest 20 of an owner's 100,000 conversations against of 100."""
    many = plan.size(100_000, 5_000)
    say(f"PostgreSQL, {many:,} conversations")
    async with fresh_database(server) as url, open_store(url) as store:
        for owner, count in (("many", many), ("few", 100)):
            for start in range(0, count, 500):
                new = [store.create_conversation(owner, ImportedConversation()) for _ in range(min(500, count - start))]
                await asyncio.gather(*new)
        await _vacuum(url)
        works = [partial(_newest, store, owner) for owner in ("many", "few")]
        pairs = [await in_turn(PAIRS, works[0], works[1]) for _ in range(plan.rounds + 1)][1:]
    row: Row = time_row(
        f"PostgreSQL list 20 of {many:,} conversations",
        "of 100",
        [a for a, _ in pairs],
        [b for _, b in pairs],
        LIST_GATE,
    )
    return Report(rows=[row])


async def _newest(store: Store, owner: str, _writer: int, _number: int) -> object:
    return await store.list_conversations(owner, limit=20)


# --- import ----------------------------------------------------------------------------------------------


async def _imports(plan: Plan, server: Server) -> Report:
    """All data sets with one command, search off and on; the messages in the database are counted afterwards."""
    files = data_files()
    if not files:
        return Report(rows=[not_measured("PostgreSQL import of real conversations", "-", IMPORT_GATE)])
    total = sum(count_messages(file) for file in files)
    return Report(rows=[await _import(plan, server, files, total, search) for search in ("off", "on")])


async def _import(plan: Plan, server: Server, files: list[Path], total: int, search: str) -> Row:
    say(f"PostgreSQL import, search {search}")
    async with fresh_database(server) as url:
        line = command("chatkeep", "import", "--database-url", f"{url}?search={search}", *map(str, files))
        before = time.perf_counter()
        done = await asyncio.create_subprocess_exec(*line, cwd=ROOT, env=environment(plan), stdout=subprocess.PIPE)
        said, _ = await done.communicate()
        seconds = time.perf_counter() - before
        connection = await asyncpg.connect(url)
        stored = await connection.fetchval("SELECT count(*) FROM messages WHERE terms IS NULL = $1", search == "off")
        await connection.close()
    if stored != total:
        raise RuntimeError(f"of {total:,} messages {stored:,} are stored as they should be, search {search}: {said!r}")
    name = f"PostgreSQL import, all {len(files)} data sets ({total:,} messages), search {search}"
    return Row(name, "-", f"{seconds:.1f} s", "-", [total / seconds], "messages/s", IMPORT_GATE)
