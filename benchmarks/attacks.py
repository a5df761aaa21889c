"""What one owner, or somebody without a token, can do to all others: `python -m benchmarks.attacks`.

It starts `chatkeep serve` of any checkout (`--server`), lets one attack after another run against it, and measures
what another owner and a probe of /readyz see meanwhile, and what the server's processes use.

    python -m benchmarks.attacks --server ../before --json before.json
    python -m benchmarks.attacks --json after.json
    python -m benchmarks.attacks --merge before.json --with after.json --output benchmarks/ATTACKS.md
"""

import argparse
import json
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.attack_list import ATTACKS
from benchmarks.attack_load import LOAD_ATTACKS, measure_load
from benchmarks.attack_load import console as load_console
from benchmarks.attack_report import console, markdown
from benchmarks.attack_run import Place, measure
from benchmarks.attack_server import Checkout, databases, end_at_sigterm
from benchmarks.attacker import Attack
from benchmarks.machine import machine
from benchmarks.measure import say


def main() -> int:
    """Attack, write the results, and return 1 when an attack could not be measured."""
    arguments = _arguments()
    end_at_sigterm()
    if arguments.merge:
        before, after = (
            [json.loads(path.read_text()) for path in paths] for paths in (arguments.merge, arguments.also)
        )
        _write(arguments.output, markdown(after, before))
        return 0
    results = Results(arguments)
    _run(results)
    if not arguments.load:
        _write(arguments.output, markdown([results.all()]))
    return 1 if results.failed else 0


class Results:
    """The rows of a run, kept on the disk as they come."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.checkout = Checkout.at(arguments.server)
        self.failed = False
        self._rows: list[dict[str, Any]] = []
        self._began = time.monotonic()

    def add(self, row: dict[str, Any]) -> None:
        """Show a row, and keep it."""
        self._rows.append(row)
        say(load_console(row) if self.arguments.load else console(row))
        if self.arguments.json:
            self.arguments.json.write_text(json.dumps(self.all(), indent=1))

    def all(self) -> dict[str, Any]:
        """Everything so far, and on what it was measured."""
        minutes = (time.monotonic() - self._began) / 60
        return {"facts": _facts(self.checkout, minutes), "load": self.arguments.load, "rows": self._rows}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", help="a Python with chatkeep, or a checkout with a .venv; this one when absent")
    parser.add_argument("--only", action="append", metavar="NAME", help="an attack, or the start of several")
    parser.add_argument("--database", choices=("sqlite", "postgres"), action="append", help="both when absent")
    parser.add_argument("--workers", type=int, choices=(1, 2), action="append", help="both when absent")
    parser.add_argument(
        "--patience",
        type=float,
        default=1.0,
        metavar="TIMES",
        help="how much later attacks are stopped",
    )
    parser.add_argument("--json", type=Path, help="where the results go")
    parser.add_argument("--output", type=Path, help="where the table goes; the terminal when absent")
    parser.add_argument("--load", action="store_true", help="64 clients read histories while attacks run")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="JSON", help="results of before")
    parser.add_argument(
        "--with", nargs="+", type=Path, default=[], dest="also", metavar="JSON", help="results of after"
    )
    parser.add_argument("--list", action="store_true", help="name the attacks and end")
    arguments = parser.parse_args()
    if arguments.list:
        parser.exit(message="".join(f"{each.name:<20} {each.says}\n" for each in ATTACKS.values()))
    return arguments


def _chosen(arguments: argparse.Namespace) -> list[Attack]:
    names = arguments.only or (LOAD_ATTACKS if arguments.load else [""])
    return [
        replace(attack, seconds=attack.seconds * arguments.patience)
        for name, attack in ATTACKS.items()
        if any(name.startswith(each) for each in names)
    ]


def _run(results: Results) -> None:
    arguments = results.arguments
    for kind in arguments.database or ("sqlite", "postgres"):
        with databases(results.checkout, kind) as prepared:
            for workers in arguments.workers or (1, 2):
                place = Place(prepared, workers)
                say(f"{place.database}, {workers} worker(s), {results.checkout.commit}")
                for attack in _chosen(arguments):
                    _attack(results, place, attack)


def _attack(results: Results, place: Place, attack: Attack) -> None:
    """Run an attack; one that cannot be measured is shown, and the others run all the same."""
    try:
        results.add((measure_load if results.arguments.load else measure)(place, attack))
    except Exception:  # noqa: BLE001 - shown, and the exit code says it
        traceback.print_exc()
        say(f"{attack.name} could not be measured")
        results.failed = True


def _facts(checkout: Checkout, minutes: float) -> dict[str, str]:
    facts = machine(Path.cwd())
    return {
        "commit": checkout.commit,
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "run": f"{minutes:.1f} minutes",
        **{name: facts[name] for name in ("machine", "system", "load", "Python")},
    }


def _write(output: Path | None, text: str) -> None:
    if output is None:
        say(text)
    else:
        output.write_text(text)
        say(f"written: {output}")


if __name__ == "__main__":
    sys.exit(main())
