"""Lists: columns on a terminal, lines with tabs in a pipe, lines of JSON if they are asked for."""

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Annotated

import typer
from pydantic import BaseModel
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from chatkeep.cli.output import standard_output
from chatkeep.cli.terminal import local_time, one_line, out

AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON, a record in each line, with the fields that the HTTP API has.")
]

GAP = "  "
LEAST_CELLS = 10
"""Least width of the last column."""

type Cell = str | int | datetime | None

_JSON = {code: f"\\u{code:04x}" for code in (0x7F, *range(0x80, 0xA0))}
"""What JSON may hold as it is, and some terminals execute."""


def print_table(names: Sequence[str], rows: Iterable[Sequence[Cell]], *, cut_last: bool = False) -> None:
    """Print rows. On a terminal they have a head, and nothing is cut, but for the last column with `cut_last`: it has
    the width that is left, and at least LEAST_CELLS. In a pipe they have tabs between whole values, no head, and times
    in ISO 8601."""
    if not out.is_terminal:
        for row in rows:
            typer.echo("\t".join(map(_whole, row)))
        return
    shown = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(names, *shown, strict=True)]
    if cut_last:
        used = sum(widths[:-1]) + len(GAP) * (len(widths) - 1)
        widths[-1] = min(widths[-1], max(out.width - used, LEAST_CELLS))
    out.print(Text(_line(names, widths), style="bold"), soft_wrap=True)
    for cells in shown:
        out.print(Text(_line(cells, widths)), soft_wrap=True)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    return GAP.join(_fitted(cell, width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _fitted(text: str, width: int) -> str:
    return set_cell_size(text, width) if cell_len(text) <= width else set_cell_size(text, width - 1) + "…"


def _shown(cell: Cell) -> str:
    match cell:
        case datetime():
            return local_time(cell)
        case None:
            return "-"
        case int():
            return f"{cell:,}"
    return one_line(cell)


def _whole(cell: Cell) -> str:
    match cell:
        case datetime():
            return cell.astimezone().isoformat(timespec="seconds")
        case None:
            return ""
    return one_line(str(cell))


def print_json(*records: BaseModel) -> None:
    """Print records as JSON, each in a line, in UTF-8 whatever the locale is."""
    stream = standard_output()
    sys.stdout.flush()
    for record in records:
        stream.write(f"{record.model_dump_json().translate(_JSON)}\n".encode())
    stream.flush()
