"""Kill imports at random moments, and run them again: `python -m benchmarks.import_kills [--database KIND]`.

The files are an export of a store with conversations of every shape (branches, heads that are not the last message or
none, tombstones, titles that were removed), the sample of this repository, and real conversations if they are there.
An import of them is killed with SIGKILL between its start and its usual end, and run again to the end. The store must
then be equal to one that was imported in one run: by its export, and by what a search finds.

The exit code says whether all were. `--checkout` tests another chatkeep, such as an older one.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from asyncio.subprocess import DEVNULL
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks.attack_server import Checkout, end_at_sigterm, environment
from benchmarks.children import ROOT
from benchmarks.drill_places import KINDS, Done, Place, chatkeep, on_disk, place, run
from benchmarks.drill_seed import seed, shape
from benchmarks.import_files import data_files
from chatkeep import open_store
from chatkeep.testing import whole_search

OWNER = "ada"
SAMPLE = ROOT / "examples" / "conversations.jsonl"
REAL = ("oasst1_en.jsonl.gz", "arena_hard.jsonl.gz")
SEEDED = 600
QUERIES = ("drill", "the", "文件", "Straße")
"""Words of thousands of messages, and words that are stored in another form."""

OWN_TIMES = ("created_at", "updated_at")
"""The store's own times, which an import of lines without `format` makes anew."""

type Lines = dict[str, dict[str, Any]]
"""The lines of an export, by the id of the conversation."""


@dataclass(frozen=True)
class Content:
    """All that an import stored: its export, and the messages that searches find, by id."""

    lines: Lines
    found: dict[str, list[UUID]]


def differences(expected: Content, content: Content) -> Counter[str]:
    """What is wrong with a store: how many conversations, by the kind of the fault, and how many searches."""
    wrong: Counter[str] = Counter()
    for id_, line in expected.lines.items():
        if id_ not in content.lines:
            wrong["missing"] += 1
        elif content.lines[id_] != line:
            wrong[_fault(line, content.lines[id_])] += 1
    wrong["doubled"] += len(content.lines.keys() - expected.lines.keys())
    wrong["searches"] += sum(content.found[query] != found for query, found in expected.found.items())
    return +wrong


def _fault(expected: dict[str, Any], line: dict[str, Any]) -> str:
    """The kind of the difference between two lines of a conversation."""
    ids, expected_ids = ([message["id"] for message in each["messages"]] for each in (line, expected))
    if len(ids) > len(set(ids)):
        return "doubled messages"
    if ids != expected_ids:
        return "missing messages" if set(expected_ids) - set(ids) else "other messages"
    if line.get("head") != expected.get("head"):
        return "wrong head"
    names = {name for name in line.keys() | expected.keys() if line.get(name) != expected.get(name)}
    return f"other {', '.join(sorted(names))}"


# --- a store and its content ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """Imports of the same files into databases of one kind."""

    checkout: Checkout
    place: Place
    files: Sequence[Path]
    own: frozenset[str]
    """Conversations that keep their own times: those of the exported store."""

    async def once(self) -> tuple[Content, float]:
        """What one run stores, and the seconds that it takes."""
        url = await asyncio.to_thread(self.place.fresh)
        began = time.monotonic()
        await self._finish(url)
        seconds = time.monotonic() - began
        return await self._content(url), seconds

    async def killed(self, seconds: float) -> Content:
        """What is stored by a run that is killed after so many seconds and one that is not."""
        url = await asyncio.to_thread(self.place.fresh)
        process = await asyncio.create_subprocess_exec(
            *self._command(url), stdout=DEVNULL, stderr=DEVNULL, cwd=ROOT, env=environment()
        )
        await asyncio.sleep(seconds)
        with suppress(ProcessLookupError):  # it was faster than usual
            process.kill()
        await process.wait()
        await self.place.settle(url)
        await self._finish(url)
        return await self._content(url)

    def _command(self, url: str) -> list[str]:
        return chatkeep(self.checkout, "import", *map(str, self.files), "--database-url", url, "--owner", OWNER)

    async def _finish(self, url: str) -> None:
        """Import to the end. Raises RuntimeError if it fails."""
        _expect_success(await run(self._command(url)))

    async def _content(self, url: str) -> Content:
        """Read a store, and remove it."""
        file = self.place.folder / "exported.jsonl"
        done = await run(chatkeep(self.checkout, "export", str(file), "--database-url", url, "--owner", OWNER))
        _expect_success(done)
        found = {}
        async with open_store(url) as store:
            for query in QUERIES:
                hits = await whole_search(store, OWNER, query, limit=1_000)
                found[query] = sorted(hit.message.id for hit in hits)
        await asyncio.to_thread(self.place.drop, url)
        return Content(self._lines(file), found)

    def _lines(self, file: Path) -> Lines:
        lines = [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
        return {line["id"]: line if line["id"] in self.own else without_times(line) for line in lines}


def _expect_success(done: Done) -> None:
    if done.code:
        raise RuntimeError(f"exit code {done.code}: {done.said[-1_000:]}")


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    """A line of an export without the store's own times, and without those of its messages."""
    if line.get("format") != 2:
        return line
    messages = [{name: value for name, value in each.items() if name != "created_at"} for each in line["messages"]]
    return {name: value for name, value in line.items() if name not in OWN_TIMES} | {"messages": messages}


# --- the files ------------------------------------------------------------------------------------------------


async def seeded_file(
    checkout: Checkout, made: Place, count: int, *, deleted_heads: bool = True
) -> tuple[Path, frozenset[str]]:
    """Export a store with conversations of every shape, and return the file and their ids."""
    chance, url = random.Random(2), f"sqlite:///{made.folder / 'seeded.db'}"
    async with open_store(url) as store:
        trails = [
            await seed(store, OWNER, shape(number, chance, deleted_heads=deleted_heads)) for number in range(count)
        ]
    file = made.folder / "seeded.jsonl"
    done = await run(chatkeep(checkout, "export", str(file), "--database-url", url, "--owner", OWNER))
    _expect_success(done)
    return file, frozenset(str(trail.id) for trail in trails)


async def kills(trial: Trial, count: int) -> Counter[str]:
    """Kill so many imports, say what was wrong after each, and return all of it; "broken" counts the imports."""
    expected, seconds = await trial.once()
    print(f"{trial.place.kind}: {len(expected.lines):,} conversations, one run takes {seconds:.1f} s", flush=True)
    total: Counter[str] = Counter()
    for number in range(1, count + 1):
        moment = random.uniform(0, seconds)
        wrong = differences(expected, await trial.killed(moment))
        total += wrong
        total["broken"] += bool(wrong)
        print(
            f"{trial.place.kind}: killed after {moment:.2f} s, {number}/{count}: {dict(wrong) or 'equal'}", flush=True
        )
    return +total


def main() -> int:
    """Kill imports; 1 if any left another store than one run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.import_kills", description=__doc__)
    parser.add_argument("--database", choices=KINDS, default="sqlite")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seeded", type=int, default=SEEDED, help="conversations of every shape")
    parser.add_argument("--no-real", action="store_true", help="leave out the real conversations")
    parser.add_argument("--no-deleted-heads", action="store_true", help="leave out what ended older imports")
    parser.add_argument("--checkout", help="the chatkeep that is tested: a Python, or a folder with a .venv")
    given = parser.parse_args()
    end_at_sigterm()
    with on_disk() as folder, place(given.database, folder) as made:
        wrong = asyncio.run(_run(made, given))
    print(f"BROKEN: {dict(wrong)}" if wrong else "all well")
    return 1 if wrong else 0


async def _run(made: Place, given: argparse.Namespace) -> Counter[str]:
    checkout = Checkout.at(given.checkout)
    real = [file for file in data_files() if file.name in REAL and not given.no_real]
    file, own = await seeded_file(checkout, made, given.seeded, deleted_heads=not given.no_deleted_heads)
    return await kills(Trial(checkout, made, [file, SAMPLE, *real], own), given.kills)


if __name__ == "__main__":
    sys.exit(main())
