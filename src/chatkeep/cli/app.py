"""The `chatkeep` command: its groups and its own options."""

from importlib.metadata import version
from typing import Annotated, Any, override

import typer
from typer.core import TyperGroup

from chatkeep.cli import conversations, data, db, keys, owners, providers, recorder
from chatkeep.cli.backup import backup
from chatkeep.cli.ingest import ingest
from chatkeep.cli.mcp import mcp
from chatkeep.cli.output import printing
from chatkeep.cli.serve import serve
from chatkeep.cli.terminal import (
    INTERRUPTED,
    errors_as_sentences,
    out,
    print_error,
    print_warnings,
    show_all_characters,
)


class Commands(TyperGroup):
    """All commands: whichever it is, what goes wrong is said in one sentence."""

    @override
    def invoke(self, ctx: Any) -> Any:
        print_warnings()
        show_all_characters()
        try:
            with printing(), errors_as_sentences():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            print_error("stopped")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    rich_markup_mode="markdown",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for command in (
    serve,
    mcp,
    data.import_,
    data.export,
    backup,
    conversations.list_,
    conversations.show,
    conversations.search,
    conversations.delete,
    ingest,
    owners.erase,
):
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
    """Keep the conversations of AI applications: none lost, none doubled, none out of order.

    Data is on standard output, all else on standard error. Exit codes: 0 done; 1 not done, or something is amiss; 2
    not understood; 130 Ctrl-C.
    """
