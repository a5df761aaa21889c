"""Drill migrations from an earlier commit: `python -m benchmarks.migration_drill [--database KIND]`.

A database that an earlier commit filled is migrated to the newest revision: once to measure it, then killed at random
moments and run again. Nothing that was there may be missing or different afterwards. Then the commit before the head
serves while it is migrated, and serves beside the head: nobody may see an error, and whatever was acknowledged is
there once.

The exit code says whether all of that held. Filled databases are kept in the cache for the next run. The commits may
be others: `--origin 07e9ee1`, or a folder with a .venv.
"""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.attack_server import Checkout, end_at_sigterm
from benchmarks.drill_places import KINDS
from benchmarks.migration_rolling import NEW, OLD, Outcome, Plan, Rolling
from benchmarks.migration_source import ORIGIN, MongoSource, Source, Wanted, checkout_of, filled, opened, scripts
from benchmarks.migration_upgrade import Drill, Kills, Reference
from chatkeep import open_store

FIRST, BEFORE = "4209e41", "07e9ee1"
"""The commit whose database is migrated, and the one that serves meanwhile and afterwards."""

CACHE = Path("/tmp/chatkeep-migration")
MAX_LOCK_SECONDS = 1.0
MB = 1 << 20
PARTS = ("kills", "use", "both")


@dataclass
class Table:
    """What was found, as a table."""

    rows: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def add(self, name: str, value: str) -> None:
        """Add a row, and show it."""
        self.rows.append((name, value))
        print(f"  {name}: {value}", flush=True)

    def expect_none(self, name: str, faults: Sequence[str]) -> None:
        """Add a row of what must not be."""
        self.faults += [f"{name}: {fault}" for fault in faults]
        self.add(name, "none" if not faults else f"**{len(faults)}**: {'; '.join(faults[:3])}")

    def text(self, title: str) -> str:
        """The table in Markdown."""
        lines = [f"| {name} | {value.replace('|', '/')} |" for name, value in self.rows]
        return "\n".join((f"| {title} | |", "| --- | --- |", *lines))


def describe(table: Table, source: Source, reference: Reference) -> None:
    """Add what one migration took."""
    cost, state = reference.cost, reference.state
    table.add("migrated", f"from {reference.started} to {state.soundness.revision} in {cost.seconds:.1f} s")
    table.add("until the schema was the newest", f"{cost.schema_seconds:.1f} s")
    server = f"; the database server {cost.server_cpu:.1f} s" if source.pid else ""
    table.add("CPU", f"{cost.cpu:.1f} s{server}")
    table.add("peak memory of the process", f"{cost.peak_mb:,.0f} MB")
    if cost.before:
        grown = f"{(cost.after - cost.before) / MB:+,.0f} MB ({(cost.after / cost.before - 1) * 100:+.1f} %)"
        table.add("size", f"{cost.before / MB:,.0f} MB → {cost.after / MB:,.0f} MB, {grown}")
    if source.kind == "sqlite":
        table.add("largest SQLite log (-wal)", f"{cost.log_bytes / MB:,.0f} MB")
    table.add("columns that are gone", ", ".join(sorted(state.rows.gone)) or "none")
    table.expect_none("differences after one run", reference.faults)


def describe_kills(table: Table, kills: Kills) -> None:
    """Add what was found after kills."""
    left = ", ".join(f"{count}x {what}" for what, count in sorted(kills.left.items()))
    table.add("killed and run again", f"{kills.count} ({left})")
    table.expect_none("differences after kills", kills.faults)


def describe_use(table: Table, source: Source, outcome: Outcome) -> None:
    """Add what clients of the old version saw of a migration."""
    seen, during = outcome.seen, {"since": outcome.began, "until": outcome.ended}
    table.add(
        "migrated in use", f"{outcome.cost.seconds:.1f} s, {len(seen.asked):,} requests, {outcome.written:,} writes"
    )
    for name, reads in (("read", True), ("write", False)):
        calm = seen.longest(reads=reads, until=outcome.began)
        table.add(f"longest {name}", f"{seen.longest(reads=reads, **during):.2f} s; {calm:.2f} s before")
    locks = [] if outcome.lock_seconds <= MAX_LOCK_SECONDS else [f"{outcome.lock_seconds:.2f} s"]
    if source.kind == "postgresql":
        table.add("longest wait for a table lock", f"{outcome.lock_seconds:.2f} s")
        table.expect_none(f"waits above {MAX_LOCK_SECONDS:g} s", locks)
    table.add("/readyz of the old version afterwards", _statuses(outcome, OLD))
    table.expect_none("errors in use", outcome.faults())


def describe_both(table: Table, outcome: Outcome) -> None:
    """Add what clients of two versions saw."""
    seen = outcome.seen
    servers = {name: sum(each.server == name for each in seen.asked) for name in (OLD, NEW)}
    asked = ", ".join(f"{count:,} {name}" for name, count in servers.items())
    table.add("two versions at once", f"{asked} requests, {outcome.written:,} writes")
    table.add(
        "asked of the other version", ", ".join(f"{count:,}x {what}" for what, count in sorted(seen.crossed.items()))
    )
    table.add("longest read, write", f"{seen.longest(reads=True):.2f} s, {seen.longest(reads=False):.2f} s")
    table.add("/readyz", "; ".join(f"{name} {_statuses(outcome, name)}" for name in (OLD, NEW)))
    table.expect_none("errors with two versions", outcome.faults())
    ready = [f"{name}: {status}" for name, status in outcome.ready if name == NEW and status != 200]
    table.expect_none("new version not ready", ready)


def _statuses(outcome: Outcome, server: str) -> str:
    return ", ".join(f"{count}x {status}" for (name, status), count in sorted(outcome.ready.items()) if name == server)


def drill(source: Source, given: argparse.Namespace, wanted: Wanted) -> Table:
    """Run the parts that are wanted on databases of one kind."""
    table, content = Table(), filled(source, wanted)
    table.add("content", f"{content.messages:,} messages, {content.conversations:,} conversations of {given.origin}")
    if isinstance(source, MongoSource):
        table.add("server", source.description)
    head = Checkout.at(None)
    if "kills" in given.parts:
        tested = Drill.of(source, head, asyncio.run(_newest(source.named(ORIGIN))), content)
        reference = tested.once()
        describe(table, source, reference)
        describe_kills(table, tested.kill(reference, given.kills))
    plan = Plan(writers=given.writers, calm=given.calm, seconds=given.seconds)
    rolling = Rolling(source, wanted.previous, head, content, plan)
    table.add("commit before the head", given.previous)
    if "use" in given.parts:
        describe_use(table, source, rolling.migrate_in_use())
    if "both" in given.parts:
        describe_both(table, rolling.serve_both())
    return table


async def _newest(url: str) -> str:
    """The newest revision that this chatkeep knows for a database."""
    async with open_store(url, migrate=False) as store:
        return store.newest_revision


# --- the command ----------------------------------------------------------------------------------------------


def main() -> int:
    """Run the drill; 1 if anything was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.migration_drill", description=__doc__)
    parser.add_argument("--database", choices=KINDS, default="sqlite")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--fill-seconds", type=float, default=0, help="end filling then, with fewer messages")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--writers", type=int, default=Plan.writers)
    parser.add_argument("--calm", type=float, default=Plan.calm, help="seconds of use before and after the migration")
    parser.add_argument("--seconds", type=float, default=Plan.seconds, help="how long two versions serve")
    parser.add_argument("--origin", default=FIRST, help="the commit whose database is migrated")
    parser.add_argument("--previous", default=BEFORE, help="the commit that serves meanwhile and afterwards")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder of filled databases and unpacked commits")
    given = parser.parse_args()
    end_at_sigterm()
    os.environ.pop("PYTHONPATH", None)  # every commit would run the same chatkeep
    origin, previous = (checkout_of(commit, given.cache) for commit in (given.origin, given.previous))
    wanted = Wanted(origin, previous, given.messages, given.fill_seconds)
    name = f"{Path(given.origin).name}-{Path(given.previous).name}-{given.messages}-{scripts()}"
    with opened(given.database, given.cache, name) as source:
        table = drill(source, given, wanted)
    print(f"\n{table.text(given.database)}\n")
    print("\n".join(("BROKEN:", *table.faults)) if table.faults else "all well")
    return 1 if table.faults else 0


if __name__ == "__main__":
    sys.exit(main())
