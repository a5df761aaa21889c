"""`python -m chatkeep.migrations`: render the revisions in versions/ to the SQL files in sql/. Needs Alembic."""

import io
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config

from chatkeep.migrations import REVISIONS

FOLDER = Path(__file__).parent
DIALECTS = ("sqlite", "postgresql")

type Command = Callable[..., None]
"""`upgrade` or `downgrade` of `alembic.command`."""


def rendered(run: Command, dialect: str, start: str, end: str) -> bytes:
    """Return the SQL that Alembic's command `run` writes for the path from revision `start` to `end`."""
    output = io.StringIO()
    config = Config(output_buffer=output)
    config.set_main_option("script_location", str(FOLDER))
    config.set_main_option("dialect", dialect)
    run(config, f"{start}:{end}", sql=True)
    return output.getvalue().encode()


def sql_files() -> dict[str, bytes]:
    """Return what every file of sql/ must contain, by its path in that folder: one file for each step."""
    files: dict[str, bytes] = {}
    for dialect in DIALECTS:
        for before, revision in zip(("base", *REVISIONS), REVISIONS, strict=False):
            files[f"{dialect}/{revision}_up.sql"] = rendered(command.upgrade, dialect, before, revision)
            files[f"{dialect}/{revision}_down.sql"] = rendered(command.downgrade, dialect, revision, before)
    return files


def write() -> None:
    """Write every file of sql/, and remove files of revisions that no longer exist."""
    for old in FOLDER.glob("sql/*/*.sql"):
        old.unlink()
    for name, text in sql_files().items():
        file = FOLDER / "sql" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text)


if __name__ == "__main__":
    write()
