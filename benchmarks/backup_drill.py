"""Drill exports and backups of a store in use: `python -m benchmarks.backup_drill [--database KIND] [--rounds N]`.

Writers over HTTP append, branch, edit, move heads, delete and retry, and note what was acknowledged, and when. Every
few seconds the store is exported and backed up by separate processes, each copy is restored elsewhere, and compared:
what was acknowledged before the copy began is there, readable, in order, with the right head; what was deleted before
is not. In every RENAME_EVERYth round a quiet owner is renamed meanwhile: an export of that owner may be partial then.

The exit code says whether all of that held. `--checkout` drills another chatkeep, such as an older one.
"""

import argparse
import asyncio
import random
import secrets
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx2

from benchmarks.attack_run import Keys
from benchmarks.attack_server import Checkout, end_at_sigterm, served
from benchmarks.drill_copy import compare
from benchmarks.drill_ledger import Append, Counts, Trail
from benchmarks.drill_places import KINDS, Done, Place, chatkeep, on_disk, place, run
from benchmarks.drill_seed import seed, shape
from benchmarks.drill_writers import REQUEST_SECONDS, Writer, message
from chatkeep import open_store

QUIET_OWNERS = ("eve", "eve's new name")
"""The owner who writes nothing and is renamed, to and fro."""

RENAME_EVERY = 5
RENAME_SECONDS = 0.1
"""Pause between two renames."""


@dataclass(frozen=True)
class Plan:
    """How much is done."""

    rounds: int = 50
    writers: int = 16
    seconds_between: float = 2.0
    workers: int = 1
    long_messages: int = 2_500
    """Length of the conversation that each owner has from the start: more than one page of an export."""
    quiet: int = 150
    """Conversations of the owner who is renamed: more than one page of an export's list."""
    owners: Sequence[str] = ("ada", "bob")


@dataclass
class Result:
    """What was done, and what was found in exports and in backups."""

    rounds: int = 0
    acknowledged: int = 0
    """Requests that changed something."""
    exports: int = 0
    backups: int = 0
    in_exports: Counts = field(default_factory=Counts)
    in_backups: Counts = field(default_factory=Counts)

    @property
    def wrong(self) -> dict[str, dict[str, int]]:
        """What must be 0 and is not."""
        found = {"exports": self.in_exports.wrong(torn=False), "backups": self.in_backups.wrong(torn=True)}
        return {kind: wrong for kind, wrong in found.items() if wrong}

    def lines(self) -> str:
        """All of it in three lines."""
        return "\n  ".join(
            (
                f"{self.rounds} rounds, {self.acknowledged:,} requests acknowledged",
                f"{self.exports} exports: {_listed(self.in_exports)}",
                f"{self.backups} backups: {_listed(self.in_backups)}",
            )
        )


def _listed(counts: Counts) -> str:
    return ", ".join(f"{name.replace('heads', 'wrong heads')} {count:,}" for name, count in vars(counts).items())


@dataclass(frozen=True)
class Drill:
    """A store in use, and where its copies go."""

    checkout: Checkout
    place: Place
    others: Sequence[Place]
    """Where exports are imported, in turn."""
    url: str
    owners: Sequence[str]
    ledger: list[Trail]
    quiet: list[Trail]
    result: Result = field(default_factory=Result)

    async def round(self, number: int) -> None:
        """Take an export of each owner and a backup at the same time; restore and compare them."""
        target = self.others[number % len(self.others)]
        work = [*(self._drill_export(owner, target) for owner in self.owners), self._drill_backup()]
        if number % RENAME_EVERY == 0:
            work.append(self._drill_rename(target))
        await asyncio.gather(*work)
        self.result.rounds += 1
        self.result.acknowledged = sum(trail.acknowledged_before(inf) for trail in self.ledger)

    async def _drill_export(self, owner: str, target: Place) -> None:
        """Export an owner, import that elsewhere, and compare."""
        copied = await self._export(owner)
        if self._succeeded(copied.done, self.result.in_exports):
            await self._check_export(copied, owner, [trail for trail in self.ledger if trail.owner == owner], target)

    async def _drill_backup(self) -> None:
        """Back the database up, restore it, and compare."""
        file, counts = self.place.folder / f"{uuid4().hex}.backup", self.result.in_backups
        command = self.place.backup(self.checkout, self.url, file)
        if not command:
            return
        copied = await _copied(file, command)
        self.result.backups += 1
        if self._succeeded(copied.done, counts):
            url, restore = await asyncio.to_thread(self.place.restore, file)
            if not restore or self._succeeded(await run(restore), counts):
                counts.add(await compare(url, self.ledger[:], copied.began, copied.ended, backup=True))
            await asyncio.to_thread(self.place.drop, url)
        await asyncio.to_thread(file.unlink, missing_ok=True)

    async def _drill_rename(self, target: Place) -> None:
        """Export an owner who is renamed to and fro. Conversations may be absent; those that come are whole."""
        exporting = asyncio.gather(*map(self._export, QUIET_OWNERS))
        async with open_store(self.url) as store:
            while not exporting.done():
                for old, new in (QUIET_OWNERS, QUIET_OWNERS[::-1]):
                    await store.rename_owner(old, new)
                    await asyncio.sleep(RENAME_SECONDS)
        for copied in await exporting:
            if self._succeeded(copied.done, self.result.in_exports, 0, 1) and copied.file.exists():
                await self._check_export(copied, QUIET_OWNERS[0], self.quiet, target, optional=True)

    async def _export(self, owner: str) -> "Copied":
        file = self.place.folder / f"{uuid4().hex}.jsonl"
        self.result.exports += 1
        return await _copied(file, chatkeep(self.checkout, "export", str(file), *_options(self.url, owner)))

    async def _check_export(
        self, copied: "Copied", owner: str, trails: Sequence[Trail], target: Place, *, optional: bool = False
    ) -> None:
        """Import an export into a database of its own, and compare."""
        url, counts = await asyncio.to_thread(target.fresh), self.result.in_exports
        done = await run(chatkeep(self.checkout, "import", str(copied.file), *_options(url, owner)))
        if self._succeeded(done, counts):
            counts.add(await compare(url, trails, copied.began, copied.ended, optional=optional))
        await asyncio.to_thread(target.drop, url)
        await asyncio.to_thread(copied.file.unlink)

    def _succeeded(self, done: Done, counts: Counts, *codes: int) -> bool:
        """Whether a program ended with one of these codes, or 0; if not, count it and say what it said."""
        good = done.code in (codes or (0,)) and "Traceback" not in done.said
        if not good:
            counts.failed += 1
            print(f"exit code {done.code}: {done.said.strip()[-1_000:]}", flush=True)
        return good


class Copied(NamedTuple):
    """A file that a program made, and the moments between which it did."""

    file: Path
    done: Done
    began: float
    ended: float


async def _copied(file: Path, command: Sequence[str]) -> Copied:
    began = time.monotonic()
    done = await run(command)
    return Copied(file, done, began, time.monotonic())


def _options(url: str, owner: str) -> Sequence[str]:
    return "--database-url", url, "--owner", owner


# --- a store in use -------------------------------------------------------------------------------------------


async def drill(checkout: Checkout, place: Place, others: Sequence[Place], plan: Plan) -> Result:
    """Run the rounds on a fresh database, and say what each found."""
    url = await asyncio.to_thread(place.fresh)
    ledger, quiet = await _prepare(url, plan)
    keys = Keys(secrets.token_hex(32), None)
    tested = Drill(checkout, place, others, url, plan.owners, ledger, quiet)
    with served(checkout, url, plan.workers, {"rate_limit": "0", **keys.settings}) as target:
        limits = httpx2.Limits(max_connections=plan.writers, max_keepalive_connections=plan.writers)
        async with (
            httpx2.AsyncClient(
                base_url=f"http://127.0.0.1:{target.port}", timeout=REQUEST_SECONDS, limits=limits
            ) as client,
            asyncio.TaskGroup() as group,
        ):
            writers = _writers(client, ledger, keys, plan)
            written = len(ledger)
            writing = [group.create_task(writer.run()) for writer in writers]
            while _appended(ledger[written:]) < plan.writers:  # noqa: ASYNC110 - a slow machine takes longer than a pause
                await asyncio.sleep(0.1)
            for number in range(1, plan.rounds + 1):
                await asyncio.sleep(plan.seconds_between)
                await tested.round(number)
                print(f"{place.kind}: {tested.result.lines()}", flush=True)
            for task in writing:
                task.cancel()
    return tested.result


def _appended(ledger: Iterable[Trail]) -> int:
    """How many appends were acknowledged."""
    requests = [request for trail in ledger for request in trail.requests]
    return sum(isinstance(each.effect, Append) and each.acknowledged < inf for each in requests)


async def _prepare(url: str, plan: Plan) -> tuple[list[Trail], list[Trail]]:
    """Write a long conversation for each owner, and those of the quiet owner."""
    chance = random.Random(1)
    async with open_store(url) as store:
        long = [[Append(message(chance)) for _ in range(plan.long_messages)] for _ in plan.owners]
        ledger = [await seed(store, owner, each, lasting=True) for owner, each in zip(plan.owners, long, strict=True)]
        shapes = [shape(number, chance) for number in range(plan.quiet)]
        return ledger, [await seed(store, QUIET_OWNERS[0], effects) for effects in shapes]


def _writers(client: httpx2.AsyncClient, ledger: list[Trail], keys: Keys, plan: Plan) -> list[Writer]:
    """Writers, whose owners take turns; the first of an owner has the long conversation, too."""
    tokens = {owner: keys.token(owner) for owner in plan.owners}
    owners = [plan.owners[number % len(plan.owners)] for number in range(plan.writers)]
    writers = [Writer(client, owner, ledger, token=tokens[owner]) for owner in owners]
    for writer, trail in zip(writers, tuple(ledger), strict=False):
        writer.adopt(trail)
    return writers


# --- the command ----------------------------------------------------------------------------------------------


def main() -> int:
    """Run the drill; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.backup_drill", description=__doc__)
    parser.add_argument("--database", choices=KINDS, default="sqlite")
    parser.add_argument("--rounds", type=int, default=Plan.rounds)
    parser.add_argument("--writers", type=int, default=Plan.writers)
    parser.add_argument("--workers", type=int, default=Plan.workers, help="processes of the server")
    parser.add_argument("--seconds-between", type=float, default=Plan.seconds_between)
    parser.add_argument("--long-messages", type=int, default=Plan.long_messages, help="length of each owner's longest")
    parser.add_argument("--checkout", help="the chatkeep that is drilled: a Python, or a folder with a .venv")
    given = parser.parse_args()
    plan = Plan(given.rounds, given.writers, given.seconds_between, given.workers, given.long_messages)
    end_at_sigterm()
    with on_disk() as folder, place(given.database, folder) as made, place("sqlite", folder) as elsewhere:
        others = [made] if given.database == "sqlite" else [made, elsewhere]
        result = asyncio.run(drill(Checkout.at(given.checkout), made, others, plan))
    print(f"BROKEN: {result.wrong}" if result.wrong else "all well")
    return 1 if result.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
