"""The schema of the SQL databases: revisions, and the SQL of each step between them.

Revisions are written with Alembic (env.py, versions/) and rendered to the files in sql/ by
`python -m chatkeep.migrations`. Only those files are installed and executed, by the store on its own connection:
SQLAlchemy must not open a SQLite file in the same process (docs/decisions/0001-one-sqlite-library.md).
"""

from functools import cache
from itertools import pairwise

HEAD = "0009"
"""The newest revision; a test compares it with the files in versions/."""

REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006", "0007", "0008", "0009")
"""Every revision, oldest first."""


STEP = "-- the next step"
"""What stands between the steps of a script. On PostgreSQL each is a transaction of its own, and may be executed again:
another process may have begun the same migration and been killed."""


@cache
def render(dialect: str, current: str | None, target: str) -> str:
    """Return the SQL script that takes a database of `dialect` from revision `current` to `target`.

    `current` None and `target` "base" stand for a database without a schema. The script sets the revision
    in the table chatkeep_schema too, and does not begin or commit.
    """
    positions = ("base", *REVISIONS)
    start, end = positions.index(current or "base"), positions.index(target)
    if start <= end:
        names = [f"{revision}_up.sql" for revision in REVISIONS[start:end]]
    else:
        names = [f"{revision}_down.sql" for revision in reversed(REVISIONS[end:start])]
    return "".join(_read(dialect, name) for name in names)


def steps(dialect: str, current: str | None, target: str) -> list[tuple[str | None, str]]:
    """Return the same script in steps, each with the revision that the database has before it."""
    positions = ("base", *REVISIONS)
    start, end = positions.index(current or "base"), positions.index(target)
    path = positions[start : end + 1] if start <= end else positions[end : start + 1][::-1]
    return [
        (None if before == "base" else before, step)
        for before, after in pairwise(path)
        for step in render(dialect, before, after).split(f"{STEP};")
    ]


def _read(dialect: str, name: str) -> str:
    """Return the text of sql/<dialect>/<name>. Raises RuntimeError if the file is missing."""
    from importlib.resources import files  # only a migration needs it

    file = files(__name__).joinpath("sql", dialect, name)
    if not file.is_file():
        # Not an OSError: the PostgreSQL store takes those for a lost connection, and tries again.
        raise RuntimeError(f"this installation of chatkeep lacks a file, install it again: {file}")
    return file.read_text("utf-8")
