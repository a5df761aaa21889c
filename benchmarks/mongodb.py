"""MongoDB: durable appends, the latest 50, client CPU and growth, against the driver alone on the same server.

On a real server only: an emulator's times say nothing about MongoDB.
"""

import asyncio
import importlib
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

from pymongo import AsyncMongoClient
from pymongo.asynchronous.collection import AsyncCollection

from benchmarks.children import ROOT, command, environment
from benchmarks.import_files import count_messages, data_files
from benchmarks.measure import Plan, Run, Side, Work, alternate, drive, in_turn, say
from benchmarks.mongodb_server import fresh_database, serving
from benchmarks.results import Gate, Latency, Report, Row, not_measured, rate_row, time_row
from benchmarks.stores import OWNER, conversations, message
from benchmarks.texts import text
from chatkeep import Store, open_store
from chatkeep.words import index_words

PLAIN = "insert_one of the same message, w: majority, j: true"
INDEXED = f"{PLAIN}, with the same index of words"
FEW, MANY = 1, 64
FIND = "the driver's find of the same documents"
GATES = {FEW: Gate(0.5), MANY: Gate(1.5)}
READ_GATE = Gate(0.6)
GROWTH_GATE = Gate(1.2, at_most=True)
IMPORT_GATE = Gate(2_000, "messages/s")
PAIRS = 200
ROWS = (
    (f"MongoDB append, {FEW} writer", PLAIN, GATES[FEW]),
    (f"MongoDB append, {MANY} writers", PLAIN, GATES[MANY]),
    ("MongoDB latest 50, records built", FIND, READ_GATE),
    ("MongoDB append at 200,000 messages", "at 100", GROWTH_GATE),
    ("MongoDB latest 50 at 200,000 messages", "at 100", GROWTH_GATE),
    ("MongoDB import of real conversations", "-", IMPORT_GATE),
)
NO_SERVER = (
    "MongoDB: not measured, there is no server: set CHATKEEP_TEST_MONGODB_URL, or put mongod on PATH. The emulator"
    " that the tests run on would say nothing about MongoDB's speed."
)
NOTE = (
    "MongoDB: one server, a fresh database for each round, write concern majority and journaled on both sides. The"
    " yardstick's client has a connection for each writer, chatkeep its pool of 10; its documents have no order"
    " within a conversation."
)

type Plain = AsyncCollection[dict[str, Any]]


def run(plan: Plan) -> Report:
    """Measure all rows of MongoDB on one server."""
    with serving() as server:
        if server is None:
            return Report(rows=[not_measured(*row) for row in ROWS], notes=[NO_SERVER])
        report = Report(notes=[NOTE])
        for writers in (FEW, MANY):
            report.add(asyncio.run(_appends(plan, server, writers)))
        report.add(asyncio.run(_latest_50(plan, server)))
        report.add(asyncio.run(_client_cpu(plan, server)))
        report.add(asyncio.run(_one_conversation(plan, server)))
        report.add(asyncio.run(_agents(plan, server)))
        report.add(asyncio.run(_growth(plan, server)))
        report.add(asyncio.run(_imports(plan, server)))
    return report


# --- appends ---------------------------------------------------------------------------------------------


async def append_run(_folder: Path, *, server: str, writers: int, talks: int, seconds: float, search: bool) -> Run:
    """Each writer appends one message at a time, durably; they share `talks` conversations."""
    with fresh_database(server) as url:
        async with open_store(url, search="on" if search else "off") as store:
            ids = await conversations(store, talks)

            async def append(writer: int, number: int) -> object:
                return await store.append(OWNER, ids[writer % talks], [message(writer, number)])

            return await drive(writers, seconds, append)


async def insert_run(_folder: Path, *, server: str, writers: int, seconds: float, search: bool) -> Run:
    """Each writer inserts one document at a time."""
    with fresh_database(server) as url:
        async with AsyncMongoClient[dict[str, Any]](url, w="majority", journal=True, maxPoolSize=writers) as client:
            messages: Plain = client.get_default_database()["messages"]
            if search:
                await messages.create_index([("owner_id", 1), ("words", 1)])

            async def insert(writer: int, number: int) -> object:
                content = text(writer, number)
                document = {"owner_id": OWNER, "conversation_id": f"{writer}", "role": "user", "content": content}
                return await messages.insert_one(document | ({"words": index_words(content)} if search else {}))

            return await drive(writers, seconds, insert)


async def _appends(plan: Plan, server: str, writers: int) -> Report:
    name = f"MongoDB append, {writers} writer{'s' if writers > 1 else ''}"
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


async def _one_conversation(plan: Plan, server: str) -> Report:
    """64 writers into one conversation."""
    name = f"MongoDB append, {MANY} writers into one conversation"
    say(name)
    side = partial(append_run, server=server, writers=MANY, talks=1, seconds=plan.seconds, search=False)
    runs = await alternate(plan, {"one conversation": side})
    return Report(latencies=[Latency.of(f"{name}: search off", runs["one conversation"])])


async def _agents(plan: Plan, server: str) -> Report:
    """openai-agents' MongoDBSession: each of 64 writers adds an item to a session of its own."""
    try:
        sessions_of: Any = importlib.import_module("agents.extensions.memory.mongodb_session").MongoDBSession
    except ImportError as error:
        return Report(notes=[f"openai-agents MongoDBSession: not measured ({error})."])

    async def session_run(_folder: Path) -> Run:
        with fresh_database(server) as url:
            async with AsyncMongoClient[dict[str, Any]](url, w="majority", journal=True, maxPoolSize=MANY) as client:
                name = client.get_default_database().name
                sessions = [sessions_of(str(number), client=client, database=name) for number in range(MANY)]

                async def add(writer: int, number: int) -> object:
                    return await sessions[writer].add_items([{"role": "user", "content": text(writer, number)}])

                return await drive(MANY, plan.seconds, add)

    say("openai-agents MongoDBSession")
    ours = partial(append_run, server=server, writers=MANY, talks=MANY, seconds=plan.seconds, search=True)
    runs = await alternate(plan, {"chatkeep": ours, "agents": session_run})
    work = f"MongoDB append, {MANY} writers, search on"
    return Report(peers=[rate_row(work, "openai-agents MongoDBSession", runs["chatkeep"], runs["agents"])])


# --- reads, and the time that both take of this process ---------------------------------------------------


async def _latest_50(plan: Plan, server: str) -> Report:
    """The latest 50 of 1,000 messages, as records, against the driver's own find of those documents."""
    name = "MongoDB latest 50, records built"
    say(name)
    ours: list[Run] = []
    theirs: list[Run] = []
    with fresh_database(server) as url:
        async with open_store(url, search="off") as store, _plain(url) as messages:
            (talk,) = await conversations(store, 1)
            await _fill(store, talk, 1_000)
            for number in range(-1, plan.rounds):  # the first is a warm-up
                runs = await in_turn(PAIRS, partial(_latest, store, talk), partial(_find, messages, talk))
                if number >= 0:
                    ours.append(runs[0])
                    theirs.append(runs[1])
    return Report(rows=[rate_row(name, FIND, ours, theirs, READ_GATE)])


async def _client_cpu(plan: Plan, server: str) -> Report:
    """The CPU time of this process for an append and for a page: what an application has less of."""
    say("MongoDB, client CPU")
    rows: list[Row] = []
    with fresh_database(server) as url:
        async with open_store(url, search="off") as store, _plain(url) as messages:
            talks = await conversations(store, MANY)
            await _fill(store, talks[0], 1_000)

            async def append(writer: int, number: int) -> object:
                return await store.append(OWNER, talks[writer], [message(writer, number)])

            async def insert(writer: int, number: int) -> object:
                return await messages.database["plain"].insert_one({"content": text(writer, number)})

            works: tuple[tuple[str, str, int, Work, Work], ...] = (
                (f"append, {FEW} writer", PLAIN, FEW, append, insert),
                (f"append, {MANY} writers", PLAIN, MANY, append, insert),
                ("latest 50", FIND, FEW, partial(_latest, store, talks[0]), partial(_find, messages, talks[0])),
            )
            for name, yardstick, writers, ours, theirs in works:
                count = plan.size(640, 128) // writers
                runs = [(await cpu_of(writers, count, ours), await cpu_of(writers, count, theirs)) for _ in range(6)]
                sides = [run[0] for run in runs[1:]], [run[1] for run in runs[1:]]
                rows.append(time_row(f"MongoDB client CPU: {name}", yardstick, *sides))
    return Report(rows=rows)


async def cpu_of(writers: int, count: int, work: Work) -> Run:
    """The CPU time of this process for `count` operations of each writer."""

    async def several(writer: int) -> None:
        for number in range(count):
            await work(writer, number)

    before = time.process_time()
    await asyncio.gather(*map(several, range(writers)))
    return Run(writers * count, time.process_time() - before, [])


@asynccontextmanager
async def _plain(url: str) -> AsyncIterator[Plain]:
    """The collection of messages, as the driver alone has it."""
    async with AsyncMongoClient[dict[str, Any]](
        url, w="majority", journal=True, readConcernLevel="majority", uuidRepresentation="standard"
    ) as client:
        yield client.get_default_database()["messages"]


async def _find(messages: Plain, talk: UUID, _writer: int, _number: int) -> object:
    where = {"owner_id": OWNER, "conversation_id": talk}
    return await messages.find(where, sort=[("seq", -1)], limit=50).to_list()


# --- growth ----------------------------------------------------------------------------------------------


async def _growth(plan: Plan, server: str) -> Report:
    """Append and latest 50 at 200,000 messages in one conversation against at 100."""
    size = plan.size(200_000, 10_000)
    say(f"MongoDB, {size:,} messages in one conversation")
    appends: tuple[list[Run], list[Run]] = ([], [])
    reads: tuple[list[Run], list[Run]] = ([], [])
    with fresh_database(server) as url:
        async with open_store(url, search="off") as store:
            (long,) = await conversations(store, 1)
            await _fill(store, long, size)
            for number in range(-1, plan.rounds):  # the first is a warm-up
                (short,) = await conversations(store, 1)
                await _fill(store, short, 100)
                for kept, work in ((reads, _latest), (appends, _append)):
                    runs = await in_turn(PAIRS, partial(work, store, long), partial(work, store, short))
                    if number >= 0:
                        kept[0].append(runs[0])
                        kept[1].append(runs[1])
    return Report(
        rows=[
            time_row(f"MongoDB {work}, search off, at {size:,} messages", "at 100", *runs, GROWTH_GATE)
            for work, runs in (("append", appends), ("latest 50", reads))
        ]
    )


async def _fill(store: Store, id_: UUID, count: int) -> None:
    for start in range(0, count, 1_000):
        await store.append(OWNER, id_, [message(0, number) for number in range(start, min(start + 1_000, count))])


async def _latest(store: Store, id_: UUID, _writer: int, _number: int) -> object:
    return await store.history(OWNER, id_, limit=50)


async def _append(store: Store, id_: UUID, writer: int, number: int) -> object:
    return await store.append(OWNER, id_, [message(writer, number)])


# --- import ----------------------------------------------------------------------------------------------


async def _imports(plan: Plan, server: str) -> Report:
    """All data sets with one command, search off and on; the messages in the database are counted afterwards."""
    files = data_files()
    if not files:
        return Report(rows=[not_measured("MongoDB import of real conversations", "-", IMPORT_GATE)])
    total = sum(count_messages(file) for file in files)
    return Report(rows=[await _import(plan, server, files, total, search) for search in ("off", "on")])


async def _import(plan: Plan, server: str, files: list[Path], total: int, search: str) -> Row:
    say(f"MongoDB import, search {search}")
    with fresh_database(server) as url:
        mark = "&" if "?" in url else "?"
        line = command("chatkeep", "import", "--database-url", f"{url}{mark}search={search}", *map(str, files))
        before = time.perf_counter()
        done = await asyncio.create_subprocess_exec(*line, cwd=ROOT, env=environment(plan), stdout=subprocess.PIPE)
        said, _ = await done.communicate()
        seconds = time.perf_counter() - before
        async with AsyncMongoClient[dict[str, Any]](url) as client:
            messages: Plain = client.get_default_database()["messages"]
            stored = await messages.count_documents({"words": {"$exists": search == "on"}})
    if stored != total:
        raise RuntimeError(f"of {total:,} messages {stored:,} are stored as they should be, search {search}: {said!r}")
    name = f"MongoDB import, all {len(files)} data sets ({total:,} messages), search {search}"
    return Row(name, "-", f"{seconds:.1f} s", "-", [total / seconds], "messages/s", IMPORT_GATE)
