"""Run the benches: `python -m benchmarks [NAME...] [--quick] [--output FILE]`."""

import argparse
import importlib
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.measure import Plan, say
from benchmarks.report import console, markdown
from benchmarks.results import Report

HERE = Path(__file__).parent
BENCHES = (
    "append",
    "latency",
    "long_conversation",
    "conversation_list",
    "http_append",
    "http_service",
    "import_files",
    "peers",
    "postgres",
    "postgres_peers",
    "mongodb",
    "recorder",
    "voice_frames",
)


def main() -> int:
    """Run what was asked for, write the report, and return 1 when a gate was missed or a bench failed."""
    arguments = _arguments()
    plan = Plan((HERE.parent / ".bench").resolve(), quick=arguments.quick)
    began = time.monotonic()
    with plan.kept():
        report, failed = _run(arguments.names or BENCHES, plan)
        facts = machine(plan.folder)
    text = markdown(report, facts, quick=plan.quick, seconds=time.monotonic() - began)
    _write(text, _output(arguments))
    missed = [row for row in report.rows if row.reached is False]
    say(f"\n{len(missed)} gates missed" + "".join(f"\n  {console(row)}" for row in missed))
    return 1 if missed or failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which of {', '.join(BENCHES)}; all when absent")
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds, smaller sizes")
    parser.add_argument("--output", type=Path, help="where the report goes; RESULTS.md for a full run of all benches")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(BENCHES)
    if unknown:
        parser.error(f"there is no bench {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}")
    return arguments


def _run(names: Sequence[str], plan: Plan) -> tuple[Report, bool]:
    """Run the benches; one that fails is named in the report, and the others run all the same."""
    report, failed = Report(), False
    for name in names:
        began = time.monotonic()
        try:
            found: Report = importlib.import_module(f"benchmarks.{name}").run(plan)
        except Exception as error:  # noqa: BLE001 - shown, noted, and the exit code says it
            traceback.print_exc()
            found, failed = Report(notes=[f"**{name} failed**: {type(error).__name__}: {error}"]), True
        for row in (*found.rows, *found.peers):
            say(f"  {console(row)}")
        say(f"{name}: {time.monotonic() - began:.0f} s\n")
        report.add(found)
    return report, failed


def _output(arguments: argparse.Namespace) -> Path | None:
    output: Path | None = arguments.output
    if output or arguments.quick or arguments.names:
        return output
    return HERE / "RESULTS.md"


def _write(text: str, output: Path | None) -> None:
    if output is None:
        say(text)
        return
    output.write_text(text)
    say(f"written: {output}")


if __name__ == "__main__":
    sys.exit(main())
