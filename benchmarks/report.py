"""RESULTS.md: written wholly from what was measured."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from benchmarks.results import Latency, Report, Row

HEAD = """\
# Results

Written by `make bench` (`python -m benchmarks`); never by hand. Every figure stands beside a yardstick that was
measured in the same run, round by round in turn. The machine is shared with others: absolute times mean little,
ratios are what counts. A ratio is the median of the rounds, with the lowest and the highest in brackets.
"""
QUICK = "**A quick run: fewer and shorter rounds, smaller sizes. Not the published table.**\n"


def markdown(report: Report, facts: Mapping[str, str], *, quick: bool, seconds: float) -> str:
    """The whole file."""
    parts = [
        HEAD,
        *([QUICK] if quick else []),
        _facts(facts, seconds),
        _section("Speed", ("work", "yardstick", "chatkeep", "yardstick's", "value", "gate", "reached"), report.rows),
        _latencies(report.latencies),
        _section("Peers (published, not gated)", ("work", "peer", "chatkeep", "peer's", "value"), report.peers),
        "## Notes\n\n" + "\n".join(f"- {note}" for note in report.notes) + "\n",
    ]
    return "\n".join(parts)


def console(row: Row) -> str:
    """A row for the terminal."""
    verdict = {True: "  reached", False: "  MISSED", None: ""}[row.reached]
    against = f" against {row.theirs} ({row.yardstick})" if row.yardstick != "-" else ""
    return f"{row.work}: {row.ours}{against}: {row.value}{verdict}"


def _facts(facts: Mapping[str, str], seconds: float) -> str:
    lines = {"date": f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}, {seconds / 60:.1f} minutes", **facts}
    return "\n".join(f"- {name}: {value}" for name, value in lines.items()) + "\n"


def _section(title: str, columns: Sequence[str], rows: Iterable[Row]) -> str:
    return f"## {title}\n\n" + _table(columns, [_cells(row)[: len(columns)] for row in rows])


def _cells(row: Row) -> list[str]:
    reached = {True: "yes", False: "**no**", None: "-"}[row.reached]
    return [row.work, row.yardstick, row.ours, row.theirs, row.value, str(row.gate or "-"), reached]


def _latencies(latencies: Iterable[Latency]) -> str:
    cells = [[one.work, _time(one.p50), _time(one.p99), f"{one.count:,}"] for one in latencies]
    return "## Latency\n\n" + _table(("work", "p50", "p99", "operations"), cells)


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
