"""The yardstick of appends: aiosqlite and a plain table, with the same durability."""

import importlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import Run, drive
from benchmarks.stores import OWNER
from benchmarks.texts import text

TABLE = """
    CREATE TABLE messages (
        id INTEGER PRIMARY KEY, owner TEXT, conversation_id TEXT NOT NULL, role TEXT NOT NULL, content TEXT NOT NULL,
        created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP
    )
"""
INDEX_OPTIONS = ("content = '', contentless_delete = 1, tokenize = 'ascii'", "content = '', tokenize = 'ascii'")
"""chatkeep's index, and what comes nearest in SQLite before 3.43."""
TRIGGER = """
    CREATE TRIGGER messages_indexed AFTER INSERT ON messages BEGIN
        INSERT INTO message_words (rowid, owner, words) VALUES (new.id, new.owner, new.content);
    END
"""
INSERT = "INSERT INTO messages (owner, conversation_id, role, content) VALUES (?, ?, 'user', ?)"
OWNER_WORD = OWNER.encode().hex()
"""The word by which chatkeep's index knows the owner."""


def index_options() -> str:
    """The options of the full-text index that this Python's SQLite knows."""
    return INDEX_OPTIONS[0] if sqlite3.sqlite_version_info >= (3, 43) else INDEX_OPTIONS[1]


@asynccontextmanager
async def plain_table(path: Path, *, indexed: bool, autocommit: bool) -> AsyncIterator[Any]:
    """One connection, as aiosqlite's users share it, to a new database with the table."""
    aiosqlite: Any = importlib.import_module("aiosqlite")
    async with aiosqlite.connect(path, isolation_level=None if autocommit else "") as connection:
        for statement in ("PRAGMA journal_mode = WAL", "PRAGMA synchronous = FULL", TABLE):
            await connection.execute(statement)
        if indexed:
            await connection.execute(f"CREATE VIRTUAL TABLE message_words USING fts5 (owner, words, {index_options()})")
            await connection.execute(TRIGGER)
        await connection.commit()
        yield connection


async def insert_run(folder: Path, *, writers: int, seconds: float, indexed: bool, autocommit: bool = True) -> Run:
    """Each writer inserts one row at a time: one statement, one transaction; or INSERT, then commit()."""
    async with plain_table(folder / "plain.db", indexed=indexed, autocommit=autocommit) as connection:

        async def insert(writer: int, number: int) -> None:
            await connection.execute(INSERT, (OWNER_WORD, f"conversation {writer}", text(writer, number)))
            if not autocommit:
                await connection.commit()

        return await drive(writers, seconds, insert)
