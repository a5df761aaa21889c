"""The schema of the SQL databases, as Alembic revisions that are rendered to SQL text.

Alembic never connects to anything: the store executes what is rendered on its own connection. A SQLite
file must not be opened by a second SQLite library in one process: closing it would drop the locks of the
first, and acknowledged rows were lost in a trial (docs/decisions/0001-one-sqlite-library.md).
"""

import io
from functools import cache
from pathlib import Path

HEAD = "0002"
"""The newest revision; a test compares it with the files in versions/."""

REVISIONS = ("0001", "0002")
"""Every revision, oldest first."""


@cache
def render(dialect: str, current: str | None, target: str) -> str:
    """Return the SQL script that takes a database of `dialect` from revision `current` to `target`.

    `current` None and `target` "base" stand for a database without a schema. The script sets the revision
    in the table chatkeep_schema too, and does not begin or commit.
    """
    from alembic import command
    from alembic.config import Config

    output = io.StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(Path(__file__).parent))
    config.set_main_option("dialect", dialect)
    if _downwards(current, target):
        command.downgrade(config, f"{current}:{target}", sql=True)
    else:
        command.upgrade(config, f"{current or 'base'}:{target}", sql=True)
    return output.getvalue()


def _downwards(current: str | None, target: str) -> bool:
    steps = ("base", *REVISIONS)
    return steps.index(target) < steps.index(current or "base")
