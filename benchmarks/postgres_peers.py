"""What others keep conversations in, on the same PostgreSQL server: published, not gated."""

import asyncio
import importlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from benchmarks.measure import Plan
from benchmarks.peers import Box, Opener, adk_event, measure
from benchmarks.postgres_server import Server, fresh_database, serving
from benchmarks.results import Report
from benchmarks.stores import OWNER, conversations, message
from benchmarks.texts import text
from chatkeep import open_store

POOL = {"pool_size": 20, "max_overflow": 50}
NOTES = {
    "openai-agents SQLAlchemySession": (
        "PostgreSQL through asyncpg, one engine with up to 70 connections, one session object for each conversation,"
        " add_items of one item. It keeps no ids, so a retry is stored twice"
    ),
    "langchain-postgres PostgresChatMessageHistory": (
        "PostgreSQL through psycopg, aadd_messages of one message, a connection for each conversation, which is what"
        " lets its writers work at the same time. It has no way to read the latest 50: aget_messages reads all 100"
    ),
    "Google ADK DatabaseSessionService on PostgreSQL": (
        "through asyncpg, one engine with up to 70 connections, append_event of one text event, which reads the"
        " session, app and user rows, then writes event and session in one commit"
    ),
}
"""What each really does, from its source."""


@asynccontextmanager
async def chatkeep(_folder: Path, count: int, *, server: Server, search: bool) -> AsyncIterator[Box]:
    """chatkeep, with its full-text index, or without one as the others are."""
    async with fresh_database(server) as url, open_store(url, search="on" if search else "off") as store:
        ids = await conversations(store, count)
        yield Box(
            lambda writer, number: store.append(OWNER, ids[writer], [message(writer, number)]),
            lambda writer, _number: store.history(OWNER, ids[writer], limit=50),
            "",
        )


@asynccontextmanager
async def openai_agents(_folder: Path, count: int, *, server: Server) -> AsyncIterator[Box]:
    """The SQLAlchemy session of openai-agents."""
    memory: Any = importlib.import_module("agents.extensions.memory.sqlalchemy_session")
    alchemy: Any = importlib.import_module("sqlalchemy.ext.asyncio")
    async with fresh_database(server) as url:
        engine = alchemy.create_async_engine(url.replace("postgresql", "postgresql+asyncpg"), **POOL)
        sessions = [memory.SQLAlchemySession(f"session {n}", engine=engine, create_tables=True) for n in range(count)]
        try:
            yield Box(
                lambda writer, number: sessions[writer].add_items([{"role": "user", "content": text(writer, number)}]),
                lambda writer, _number: sessions[writer].get_items(50),
                "the server's durability",
            )
        finally:
            await engine.dispose()


@asynccontextmanager
async def langchain(_folder: Path, count: int, *, server: Server) -> AsyncIterator[Box]:
    """The chat history of langchain-postgres."""
    histories: Any = importlib.import_module("langchain_postgres.chat_message_histories").PostgresChatMessageHistory
    human: Any = importlib.import_module("langchain_core.messages").HumanMessage
    psycopg: Any = importlib.import_module("psycopg")
    async with fresh_database(server) as url:
        connections = [await psycopg.AsyncConnection.connect(url) for _ in range(count)]
        await histories.acreate_tables(connections[0], "history")
        made = [histories("history", str(uuid4()), async_connection=connection) for connection in connections]
        try:
            yield Box(
                lambda writer, number: made[writer].aadd_messages([human(content=text(writer, number))]),
                lambda writer, _number: made[writer].aget_messages(),
                "the server's durability",
            )
        finally:
            for connection in connections:
                await connection.close()


@asynccontextmanager
async def google_adk(_folder: Path, count: int, *, server: Server) -> AsyncIterator[Box]:
    """The database sessions of Google's ADK."""
    sessions: Any = importlib.import_module("google.adk.sessions")
    base: Any = importlib.import_module("google.adk.sessions.base_session_service")
    newest = base.GetSessionConfig(num_recent_events=50)
    async with fresh_database(server) as url:
        address = url.replace("postgresql", "postgresql+asyncpg")
        async with sessions.DatabaseSessionService(address, **POOL) as service:
            made = [await service.create_session(app_name="bench", user_id=OWNER) for _ in range(count)]
            yield Box(
                lambda writer, number: service.append_event(made[writer], adk_event(writer, number)),
                lambda writer, _number: service.get_session(
                    app_name="bench", user_id=OWNER, session_id=made[writer].id, config=newest
                ),
                "the server's durability",
            )


PEERS: dict[str, Any] = dict(zip(NOTES, (openai_agents, langchain, google_adk), strict=True))


def run(plan: Plan) -> Report:
    """Measure each peer beside chatkeep."""
    report = Report()
    with serving() as server:
        ours: dict[str, Opener] = {
            "chatkeep": partial(chatkeep, server=server, search=False),
            "with search": partial(chatkeep, server=server, search=True),
        }
        for name, opener in PEERS.items():
            report.add(asyncio.run(measure(plan, ours, name, partial(opener, server=server), NOTES[name], many=64)))
    return report
