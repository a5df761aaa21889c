"""What others keep conversations in, on SQLite with the same durability: published, not gated."""

import asyncio
import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.measure import Plan, Run, Side, alternate, drive, say
from benchmarks.results import Latency, Report, not_measured, rate_row
from benchmarks.stores import OWNER, conversations, message, opened
from benchmarks.texts import text

STORED = 100
"""Messages of the conversation that the latest 50 are read from."""

NOTES = {
    "openai-agents SQLiteSession": (
        "one file for all sessions, one SQLiteSession for each conversation, add_items of one item. It sets WAL and"
        " nothing else; sqlite3's own default is synchronous=FULL. Every call runs in asyncio.to_thread on a"
        " connection of that thread, under one lock for the file: INSERT OR IGNORE of the session, INSERT of the"
        " item, UPDATE of the session, one commit. It keeps no ids, so a retry is stored twice"
    ),
    "Google ADK DatabaseSessionService": (
        "sqlite+aiosqlite through SQLAlchemy's pool, append_event of one text event; a listener sets WAL and"
        " synchronous=FULL on each connection, of which it sets neither (its default is a rollback journal). An"
        " append reads the session, app and user rows, then writes event and session in one commit"
    ),
}
"""What each really does, from its source."""


class Box(NamedTuple):
    """One store with some conversations: how to append to one, and how to read its latest 50."""

    append: Callable[[int, int], Awaitable[object]]
    latest: Callable[[int, int], Awaitable[object]]
    durability: str


type Opener = Callable[[Path, int], Any]


@asynccontextmanager
async def chatkeep(folder: Path, count: int, *, search: bool) -> AsyncIterator[Box]:
    """chatkeep, with its full-text index, or without one as the others are."""
    async with opened(folder, search=search) as store:
        ids = await conversations(store, count)
        yield Box(
            lambda writer, number: store.append(OWNER, ids[writer], [message(writer, number)]),
            lambda writer, _number: store.history(OWNER, ids[writer], limit=50),
            "",
        )


@asynccontextmanager
async def openai_agents(folder: Path, count: int) -> AsyncIterator[Box]:
    """The file session of openai-agents."""
    agents: Any = importlib.import_module("agents.memory.sqlite_session")
    sessions = [agents.SQLiteSession(f"session {number}", folder / "agents.db") for number in range(count)]

    def pragmas() -> list[Any]:
        connection = sessions[0]._get_connection()
        return [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]

    try:
        yield Box(
            lambda writer, number: sessions[writer].add_items([{"role": "user", "content": text(writer, number)}]),
            lambda writer, _number: sessions[writer].get_items(50),
            _durability(*await asyncio.to_thread(pragmas)),
        )
    finally:
        for session in sessions:
            session.close()


@asynccontextmanager
async def google_adk(folder: Path, count: int) -> AsyncIterator[Box]:
    """The database sessions of Google's ADK."""
    sessions: Any = importlib.import_module("google.adk.sessions")
    base: Any = importlib.import_module("google.adk.sessions.base_session_service")
    newest = base.GetSessionConfig(num_recent_events=50)
    async with sessions.DatabaseSessionService(f"sqlite+aiosqlite:///{folder / 'adk.db'}") as service:
        _set_pragmas(service.db_engine)
        made = [await service.create_session(app_name="bench", user_id=OWNER) for _ in range(count)]
        async with service.db_engine.connect() as connection:
            names = ("journal_mode", "synchronous")
            pragmas = [(await connection.exec_driver_sql(f"PRAGMA {name}")).scalar() for name in names]
        yield Box(
            lambda writer, number: service.append_event(made[writer], adk_event(writer, number)),
            lambda writer, _number: service.get_session(
                app_name="bench", user_id=OWNER, session_id=made[writer].id, config=newest
            ),
            _durability(*pragmas),
        )


def _set_pragmas(engine: Any) -> None:
    event: Any = importlib.import_module("sqlalchemy.event")

    def set_pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL"):
            cursor.execute(statement)
        cursor.close()

    event.listen(engine.sync_engine, "connect", set_pragmas)


def adk_event(writer: int, number: int) -> Any:
    """A message as an event of Google's ADK."""
    events: Any = importlib.import_module("google.adk.events")
    types: Any = importlib.import_module("google.genai.types")
    content = types.Content(role="user", parts=[types.Part(text=text(writer, number))])
    return events.Event(author="user", invocation_id="bench", content=content)


def _durability(journal: str, synchronous: int) -> str:
    return f"measured: journal_mode={journal}, synchronous={synchronous} (2 is FULL)"


PEERS: dict[str, Opener] = {
    "openai-agents SQLiteSession": openai_agents,
    "Google ADK DatabaseSessionService": google_adk,
}


def run(plan: Plan) -> Report:
    """Measure each peer beside chatkeep."""
    report = Report()
    ours: dict[str, Opener] = {
        "chatkeep": partial(chatkeep, search=False),
        "with search": partial(chatkeep, search=True),
    }
    for name, opener in PEERS.items():
        report.add(asyncio.run(measure(plan, ours, name, opener, NOTES[name], many=32)))
    return report


async def measure(plan: Plan, ours: dict[str, Opener], name: str, opener: Opener, note: str, *, many: int) -> Report:
    """Measure one peer beside chatkeep, `ours` being that without and with search: 1 writer, `many`, 1 reader."""
    say(name)
    try:
        with plan.fresh() as folder:
            async with opener(folder, 1) as box:
                durability = box.durability
    except ImportError as error:
        return Report(peers=[not_measured("append", name)], notes=[f"{name}: not measured: {error}"])
    report = Report(notes=[f"{name}: {note}; {durability}."])
    openers = {**ours, name: opener}
    for writers in (1, many):
        report.add(await _appends(plan, name, openers, writers))
    report.add(await _reads(plan, name, openers))
    return report


def _sides(openers: dict[str, Opener], work: Callable[[Opener, Path], Awaitable[Run]]) -> dict[str, Side]:
    return {side: partial(work, opener) for side, opener in openers.items()}


async def _appends(plan: Plan, name: str, openers: dict[str, Opener], writers: int) -> Report:
    runs = await alternate(plan, _sides(openers, partial(_append_run, writers=writers, seconds=plan.seconds / 2)))
    work = "append, 1 writer" if writers == 1 else f"append, {writers} writers to {writers} conversations"
    return Report(
        peers=[
            rate_row(f"{work}, search off", name, runs["chatkeep"], runs[name]),
            rate_row(f"{work}, search on", name, runs["with search"], runs[name]),
        ],
        latencies=[Latency.of(f"{work}: {name}", runs[name])],
    )


async def _append_run(opener: Opener, folder: Path, *, writers: int, seconds: float) -> Run:
    async with opener(folder, writers) as box:
        return await drive(writers, seconds, box.append)


async def _reads(plan: Plan, name: str, openers: dict[str, Opener]) -> Report:
    sides = _sides(openers, partial(_read_run, seconds=plan.seconds / 2))
    runs = await alternate(plan, {side: sides[side] for side in ("chatkeep", name)})
    row = rate_row(f"latest 50 of {STORED} messages, 1 reader", name, runs["chatkeep"], runs[name])
    return Report(peers=[row], latencies=[Latency.of(f"latest 50, beside {name}: {side}", runs[side]) for side in runs])


async def _read_run(opener: Opener, folder: Path, *, seconds: float) -> Run:
    async with opener(folder, 1) as box:
        for number in range(STORED):
            await box.append(0, number)
        return await drive(1, seconds, box.latest)
