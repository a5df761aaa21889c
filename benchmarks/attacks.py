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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.attack_list import ATTACKS
from benchmarks.attack_load import LOAD_ATTACKS, measure_load
from benchmarks.attack_load import console as load_console
from benchmarks.attack_report import console, markdown
from benchmarks.attack_run import Place, measure
from benchmarks.attack_server import Checkout, databases
from benchmarks.attacker import Attack
from benchmarks.machine import machine
from benchmarks.measure import say


def main() -> int:
    """Attack, write the results, and return 1 when an attack could not be measured."""
    arguments = _arguments()
    if arguments.merge:
        before, after = (
            [json.loads(path.read_text()) for path in paths] for paths in (arguments.merge, arguments.also)
        )
        _write(arguments.output, markdown(after, before))
        return 0
    began = time.monotonic()
    checkout = Checkout.at(arguments.server)
    rows, failed = _run(arguments, checkout)
    result = {"facts": _facts(checkout, time.monotonic() - began), "load": arguments.load, "rows": rows}
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))
    if not arguments.load:
        _write(arguments.output, markdown([result]))
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.attacks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--server", help="a Python with chatkeep, or a checkout with a .venv; this one when absent")
    parser.add_argument("--only", action="append", metavar="NAME", help="an attack, or the start of several")
    parser.add_argument("--database", choices=("sqlite", "postgres"), action="append", help="both when absent")
    parser.add_argument("--workers", type=int, choices=(1, 2), action="append", help="both when absent")
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
    return [attack for name, attack in ATTACKS.items() if any(name.startswith(each) for each in names)]


def _run(arguments: argparse.Namespace, checkout: Checkout) -> tuple[list[dict[str, Any]], bool]:
    rows: list[dict[str, Any]] = []
    failed = False
    for kind in arguments.database or ("sqlite", "postgres"):
        with databases(checkout, kind) as prepared:
            for workers in arguments.workers or (1, 2):
                place = Place(checkout, prepared, workers)
                say(f"{place.database}, {workers} worker(s), {checkout.commit}")
                found, wrong = _attack(place, _chosen(arguments), load=arguments.load)
                rows += found
                failed |= wrong
    return rows, failed


def _attack(place: Place, attacks: Sequence[Attack], *, load: bool) -> tuple[list[dict[str, Any]], bool]:
    """Run attacks; one that cannot be measured is shown, and the others run all the same."""
    rows, failed = [], False
    for attack in attacks:
        try:
            row = measure_load(place, attack) if load else measure(place, attack)
        except Exception:  # noqa: BLE001 - shown, and the exit code says it
            traceback.print_exc()
            say(f"{attack.name} could not be measured")
            failed = True
        else:
            rows.append(row)
            say(load_console(row) if load else console(row))
    return rows, failed


def _facts(checkout: Checkout, seconds: float) -> dict[str, str]:
    facts = machine(Path.cwd())
    return {
        "commit": checkout.commit,
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "run": f"{seconds / 60:.1f} minutes",
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
