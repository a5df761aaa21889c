"""The SQL files of the migrations: what Alembic renders, the same schema on every path, nothing else at run time."""

import importlib.resources
import re
import subprocess
import sys
from itertools import chain, pairwise, product
from pathlib import Path

import apsw
import asyncpg
import pytest
from alembic import command

from chatkeep.migrations import HEAD, REVISIONS, STEP, render
from chatkeep.migrations.__main__ import DIALECTS, FOLDER, rendered, sql_files
from servers.postgres import databases, plain

POSITIONS = ("base", *REVISIONS)
PATHS = [(start, end) for start, end in product(POSITIONS, POSITIONS) if start != end]
STEPS = [*pairwise(POSITIONS), *pairwise(POSITIONS[::-1]), ("base", HEAD), (HEAD, "base")]
"""The paths that others are made of, and the longest."""

BETWEEN_STEPS = rf"{STEP};|(?<=\n)(?=-- Running upgrade 0)"
"""A step ends with its revision, too."""

POSTGRESQL_SCHEMA = """
    SELECT 'column', c.relname, a.attnum, a.attname, concat_ws(
        ' ', format_type(a.atttypid, a.atttypmod), l.collname, a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
    )
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
    WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'
    UNION ALL SELECT 'table', relname, 0, '', concat_ws(' ', relkind::text, reloptions::text)
    FROM pg_class WHERE relnamespace = 'public'::regnamespace
    UNION ALL SELECT 'constraint', conrelid::regclass::text, 0, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT 'index', tablename, 0, indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'
    UNION ALL SELECT 'function', proname, 0, '', pg_get_functiondef(oid)
    FROM pg_proc WHERE pronamespace = 'public'::regnamespace
    ORDER BY 1, 2, 3, 4
"""


def test_sql_files_are_what_alembic_renders() -> None:
    """Every file of sql/ is there with the bytes that Alembic renders, and there is no other."""
    found = {file.relative_to(FOLDER / "sql").as_posix(): file.read_bytes() for file in FOLDER.glob("sql/*/*")}
    assert found == sql_files(), "run `make migrations`"


@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_path_is_what_alembic_renders(dialect: str) -> None:
    """Joined files are the script that Alembic renders for the whole path, up and down."""
    for start, end in PATHS:
        run = command.upgrade if POSITIONS.index(start) < POSITIONS.index(end) else command.downgrade
        assert render(dialect, None if start == "base" else start, end).encode() == rendered(run, dialect, start, end)
    for revision in POSITIONS:
        assert not render(dialect, revision, revision)


def sqlite_schema(scripts: list[str]) -> set[tuple[object, ...]]:
    """Return the schema of a new file, and the rows that tell its state, after these scripts."""
    connection = apsw.Connection(":memory:")
    for script in scripts:
        connection.execute(script).fetchall()
    found = set(connection.execute("SELECT type, name, tbl_name, sql FROM sqlite_schema").fetchall())
    rows = connection.execute("SELECT version_num FROM chatkeep_schema").fetchall()
    if any(name == "store_state" for _, name, _, _ in found):
        rows += connection.execute("SELECT name, value FROM store_state").fetchall()
    connection.close()
    return found | set(rows)


async def postgresql_schema(scripts: list[str]) -> set[tuple[object, ...]]:
    """Return the schema of a new database, and its revision, after these scripts."""
    url = databases().empty()
    connection = await asyncpg.connect(plain(url))
    try:
        for step in chain.from_iterable(re.split(BETWEEN_STEPS, script) for script in scripts):
            await connection.execute(step)
        found = [*await connection.fetch(POSTGRESQL_SCHEMA), *await connection.fetch("TABLE chatkeep_schema")]
    finally:
        await connection.close()
        databases().drop(url)
    return {tuple(row) for row in found}


@pytest.mark.parametrize(
    ("dialect", "paths"),
    [
        pytest.param("sqlite", PATHS, id="sqlite"),
        pytest.param("postgresql", STEPS, id="postgresql steps", marks=pytest.mark.long),
        pytest.param("postgresql", PATHS, id="postgresql", marks=pytest.mark.apart),
    ],
)
async def test_every_path_leads_to_the_same_schema(dialect: str, paths: list[tuple[str, str]]) -> None:
    """A database that was upgraded or downgraded has the schema of one that was made at that revision.

    An empty chatkeep_schema is what a downgrade to base leaves; the store drops it then. On PostgreSQL all paths are
    for `make apart`: they are joined of the steps.
    """

    async def schema(*scripts: str) -> set[tuple[object, ...]]:
        return sqlite_schema(list(scripts)) if dialect == "sqlite" else await postgresql_schema(list(scripts))

    fresh = {revision: await schema(render(dialect, None, revision)) for revision in REVISIONS}
    first = REVISIONS[0]
    fresh["base"] = await schema(render(dialect, None, first), render(dialect, first, "base"))
    assert {row[1] for row in fresh["base"] if row[0] == "table"} <= {"chatkeep_schema", "chatkeep_schema_pkc"}
    for start, end in paths:
        before = [] if start == "base" else [render(dialect, None, start)]
        after = await schema(*before, render(dialect, None if start == "base" else start, end))
        assert after == fresh[end], (start, end)


def test_missing_file_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An installation without one of the files says which one."""
    monkeypatch.setattr(importlib.resources, "files", lambda _: tmp_path)
    render.cache_clear()
    with pytest.raises(RuntimeError, match=f"sqlite/{REVISIONS[0]}_up.sql"):
        render("sqlite", None, HEAD)


def test_alembic_is_not_needed(tmp_path: Path) -> None:
    """A store is made, and taken down to base again, without Alembic and what it depends on."""
    program = """
import asyncio, sys
from chatkeep import open_store
for name in ("alembic", "sqlalchemy", "mako", "markupsafe"):
    sys.modules[name] = None
async def main():
    async with open_store("sqlite:///chat.db") as store:
        await store.migrate("base")
        await store.migrate()
        print(await store.schema_revision())
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, f"{HEAD}\n"), done.stderr
