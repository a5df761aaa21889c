"""Import of real conversations with the command line: messages a second of the whole process."""

import gzip
import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import NamedTuple

import apsw

from benchmarks.children import ROOT, command, compile_modules, environment
from benchmarks.measure import Plan, say
from benchmarks.results import Gate, Report, Row, not_measured
from benchmarks.stores import url

GATE = Gate(20_000, "messages/s")
REPORTED = re.compile(r"\(([\d,]+)/s\)")
SEARCHES = ("off", "on")
NOTE = (
    "Import: `python -m chatkeep import` in a process of its own, synchronous=FULL, from start to exit, so that"
    " starting Python, reading, unpacking, indexing and closing count; beside it the rate that the command reports."
    " The gate is on all files in one command. The messages in the database were counted afterwards."
)


class Imported(NamedTuple):
    """One import: how many messages, how long it took, and what the command said about its rate."""

    messages: int
    seconds: float
    reported: str

    @property
    def rate(self) -> float:
        """Messages a second of the whole process."""
        return self.messages / self.seconds


def run(plan: Plan) -> Report:
    """Import every data set alone, then all of them in one command."""
    files = data_files()
    if not files:
        note = f"Import: not measured, no data sets in {_data()} (CHATKEEP_DATA names another folder)."
        return Report(rows=[not_measured("import of real conversations", "-", GATE)], notes=[note])
    compile_modules(plan)
    sizes = {file: count_messages(file) for file in files}
    alone = [] if plan.quick else files
    rows = [_row(plan, [file], sizes, search) for file in alone for search in SEARCHES]
    return Report(rows=rows + [_row(plan, files, sizes, search) for search in SEARCHES], notes=[NOTE])


def _data() -> Path:
    given = os.environ.get("CHATKEEP_DATA")
    return (Path(given) if given else ROOT.parent / "shared" / "data").resolve() / "conversations"


def data_files() -> list[Path]:
    """The data sets, none where they are absent."""
    return sorted(_data().glob("*.jsonl.gz"))


def count_messages(file: Path) -> int:
    """How many messages a data set holds."""
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
        return sum(len(json.loads(line)["messages"]) for line in lines)


def _row(plan: Plan, files: list[Path], sizes: dict[Path, int], search: str) -> Row:
    total = sum(sizes[file] for file in files)
    alone = len(files) == 1
    name = files[0].name.removesuffix(".jsonl.gz") if alone else f"all {len(files)} data sets"
    say(f"import of {name}, search {search}")
    done = [_import(plan, files, total, search) for _ in range(1 if alone or plan.quick else 3)]
    return Row(
        f"import, {name} ({total:,} messages), search {search}",
        "-",
        f"{done[-1].seconds:.1f} s; the command says {done[-1].reported}",
        "-",
        [one.rate for one in done],
        "messages/s",
        None if alone else GATE,
    )


def _import(plan: Plan, files: list[Path], total: int, search: str) -> Imported:
    with plan.fresh() as folder:
        line = command("chatkeep", "import", "--database-url", f"{url(folder)}?search={search}", *map(str, files))
        before = time.perf_counter()
        done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=ROOT, env=environment(plan))
        seconds = time.perf_counter() - before
        if done.returncode:
            raise RuntimeError(f"the import failed: {done.stdout[-1_000:]} {done.stderr[-1_000:]}")
        _check(folder / "chatkeep.db", total, search)
    found = REPORTED.search(done.stdout + done.stderr)
    return Imported(total, seconds, f"{found[1]}/s" if found else "nothing about its rate")


def _check(database: Path, total: int, search: str) -> None:
    """Raise where the database does not hold, or does not find, every message: a rate of lost messages is none."""
    connection = apsw.Connection(str(database), flags=apsw.SQLITE_OPEN_READONLY)
    stored = connection.execute("SELECT count(*) FROM messages").get
    texts = connection.execute("SELECT count(*) FROM messages WHERE content <> ''").get
    indexed = connection.execute("SELECT count(*) FROM message_words_docsize").get
    connection.close()
    if (stored, indexed) != (total, texts if search == "on" else 0):
        raise RuntimeError(f"of {total:,} messages {stored:,} are stored and {indexed:,} indexed, search {search}")
