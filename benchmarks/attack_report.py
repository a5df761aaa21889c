"""The table of the attacks: of one run, or of a run before and one after."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

HEAD = """\
# Attacks

Written by `make attacks` (`python -m benchmarks.attacks`); never by hand. Each attack runs from a process of its own
against a server that is started for it, with the settings of a new installation and JWT authentication. Meanwhile
another owner asks every 20 ms, in turn for a history of 50 messages and to append one; a wait counts from the moment at
which the request was due, and what was not answered within 5 s after the end counts with its wait so far (≥). A probe
asks /readyz five times a second on new connections, and gives up after a second.
CPU and memory are those of all processes of the server, over the whole attack and what it left to do; memory is the
growth over the start, as the sum of the processes' own peaks. Requests of the other owner are in them: see the row
`nothing`. `stopped` is an attack that was not answered in its time.
"""
COLUMNS = ("attack", "spent", "CPU s", "DB CPU s", "memory MB", "p50 ms", "p99 ms", "worst ms", "not ready")

type Row = Mapping[str, Any]
type Result = Mapping[str, Any]


def markdown(after: Sequence[Result], before: Sequence[Result] = ()) -> str:
    """The file: a table for each database and number of workers, each cell with its value before, if there is one."""
    parts = [HEAD, _facts(after, before)]
    found = {(row["database"], row["workers"]): None for result in (*after, *before) for row in result["rows"]}
    for place in found:
        new, old = _rows(after, place), _rows(before, place)
        says = {**{name: row["says"] for name, row in old.items()}, **{name: row["says"] for name, row in new.items()}}
        lines = [_line(name, text, old.get(name), new.get(name)) for name, text in says.items()]
        workers = "one worker" if place[1] == 1 else f"{place[1]} workers"
        arrow = ": before → after" if before else ""
        parts.append(f"## {place[0]}, {workers}{arrow}\n\n{table(COLUMNS, lines)}")
    return "\n".join(parts)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def console(row: Row) -> str:
    """A row for the terminal."""
    return f"{row['attack']:<18} " + "  ".join(
        f"{name} {value}" for name, value in zip(COLUMNS[1:], _cells(row), strict=True)
    )


def _facts(after: Sequence[Result], before: Sequence[Result]) -> str:
    lines = []
    for name, results in (("before", before), ("after" if before else "server", after)):
        for result in results:
            facts = ", ".join(f"{key} {value}" for key, value in result["facts"].items())
            lines.append(f"- {name}: {facts}")
    return "\n".join(lines) + "\n"


def _rows(results: Sequence[Result], place: tuple[str, int]) -> dict[str, Row]:
    return {
        row["attack"]: row for result in results for row in result["rows"] if (row["database"], row["workers"]) == place
    }


def _line(name: str, says: str, old: Row | None, new: Row | None) -> list[str]:
    """The cells of an attack, with those of before in front."""
    given = [_cells(row) for row in (old, new) if row is not None]
    if len(given) == 1:
        return [f"{name}: {says}", *given[0]]
    return [f"{name}: {says}", *(" → ".join(pair) for pair in zip(*given, strict=True))]


def _cells(row: Row) -> list[str]:
    spent, server, victim = row["spent"], row["server"], row["victim"]
    least = "≥ " if victim["unanswered"] else ""
    return [
        _spent(spent),
        f"{server['cpu']:.1f}",
        f"{server['database_cpu']:.1f}",
        f"{server['memory_growth']:,.0f}" + (" (killed)" if server["killed"] else ""),
        f"{victim['p50'] * 1e3:,.0f}",
        f"{victim['p99'] * 1e3:,.0f}",
        f"{least}{victim['worst'] * 1e3:,.0f}",
        f"{victim['not_ready']} of {victim['probes']}",
    ]


def _spent(spent: Mapping[str, Any]) -> str:
    """What the attacker spent: its most frequent answer says whether it was let in."""
    answers = sorted(spent["answers"].items(), key=lambda item: -item[1])
    answered = f" ({answers[0][0]})" if answers else ""
    stopped = ", stopped" if spent["stopped"] else ""
    return f"{spent['requests']:,}{answered}, {_size(spent['bytes'])}, {spent['seconds']:.1f} s{stopped}"


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e5 else f"{count / 1e3:,.1f} kB"
