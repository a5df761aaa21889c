"""The `chatkeep` command: its groups and its own options."""

from importlib.metadata import version
from typing import Annotated

import typer

from chatkeep.cli import data, db, keys, owners, providers, recorder
from chatkeep.cli.backup import backup
from chatkeep.cli.ingest import ingest
from chatkeep.cli.mcp import mcp
from chatkeep.cli.serve import serve
from chatkeep.cli.terminal import out

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
for command in (serve, mcp, data.import_, data.export, backup, data.list_, data.show, ingest, owners.erase):
    app.command(command.__name__.rstrip("_"))(command)
for name, group in (
    ("db", db.app),
    ("keys", keys.app),
    ("owners", owners.app),
    ("providers", providers.app),
    ("recorder", recorder.app),
):
    app.add_typer(group, name=name)


def _print_version(show: bool) -> None:  # noqa: FBT001 - Typer's signature of a callback
    if show:
        out.print(f"chatkeep {version('chatkeep')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Keep the conversations of AI applications: none lost, none doubled, none out of order."""
