"""`chatkeep db upgrade` in a process of its own: what it costs, and what is there after it was killed."""

import asyncio
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from uuid import UUID

from benchmarks.attack_server import Checkout, Usage, environment
from benchmarks.children import ROOT
from benchmarks.drill_places import chatkeep
from benchmarks.migration_rows import Rows, Soundness, file_of, revision, rows, schema, size, soundness
from benchmarks.migration_source import ORIGIN, Filled, Read, Source, parsed, read_text

POLL_SECONDS = 0.005
SAMPLED = 20
"""After a kill, every so manieth conversation is read through chatkeep; sums are of all rows."""


@dataclass
class Cost:
    """What one upgrade took."""

    code: int = 0
    said: str = ""
    seconds: float = 0.0
    schema_seconds: float = inf
    """Until the revision was the newest; the rest is for the search index and for removals that were cut off."""
    cpu: float = 0.0
    server_cpu: float = 0.0
    peak_mb: float = 0.0
    log_bytes: int = 0
    """Largest size of SQLite's log."""
    before: int = 0
    after: int = 0


def upgrade(checkout: Checkout, url: str, *, kill_after: float = inf, pid: int | None = None) -> Cost:
    """Upgrade a database, and say what that took; kill the process after so many seconds."""
    cost, server = Cost(), _cpu(pid)
    log = file_of(url).with_name(f"{file_of(url).name}-wal") if url.startswith("sqlite") else None
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            chatkeep(checkout, "db", "upgrade", "--database-url", url),
            stdout=said, stderr=subprocess.STDOUT, cwd=ROOT, env=environment(),
        )  # fmt: skip
        _wait(process, cost, kill_after, log)
        said.seek(0)
        cost.said = said.read().decode(errors="replace")
    cost.server_cpu = _cpu(pid) - server
    return cost


def _wait(process: subprocess.Popen[bytes], cost: Cost, kill_after: float, log: Path | None) -> None:
    """Wait for the end of a process, and note what it used."""
    began, ended = time.monotonic(), 0
    while not ended:
        if time.monotonic() - began >= kill_after:
            process.send_signal(signal.SIGKILL)
            kill_after = inf
        time.sleep(POLL_SECONDS)
        if log is not None:
            with suppress(FileNotFoundError):
                cost.log_bytes = max(cost.log_bytes, log.stat().st_size)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    process.returncode = cost.code = os.waitstatus_to_exitcode(status)
    cost.seconds = time.monotonic() - began
    cost.cpu, cost.peak_mb = usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def _cpu(pid: int | None) -> float:
    return 0.0 if pid is None else Usage.of(pid).cpu


def _compile(checkout: Checkout, url: str) -> None:
    """Start a chatkeep once, so that later starts find their modules compiled."""
    command = chatkeep(checkout, "db", "status", "--database-url", url)
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False, env=environment())


@contextmanager
def _watching(url: str, newest: str, cost: list[float]) -> Iterator[None]:
    """Note when the revision is the newest."""
    began, ended = time.monotonic(), threading.Event()

    def watch() -> None:
        while not ended.wait(0.1):
            if asyncio.run(revision(url)) == newest:
                cost.append(time.monotonic() - began)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


# --- the drill ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class State:
    """A database after an upgrade."""

    rows: Rows
    soundness: Soundness
    read: Read

    @property
    def searches(self) -> Read:
        """What searches find."""
        return {name: line for name, line in self.read.items() if "search:" in name}


@dataclass
class Reference:
    """A database that was migrated in one go."""

    started: str | None
    """The revision before."""
    cost: Cost
    state: State
    faults: list[str]


@dataclass
class Kills:
    """What was found after kills."""

    count: int = 0
    left: Counter[str] = field(default_factory=Counter)
    """How many left which revision behind, or were too late."""
    faults: list[str] = field(default_factory=list)


@dataclass
class Drill:
    """Migrations of copies of one database."""

    source: Source
    head: Checkout
    newest: str
    filled: Filled
    before: Rows
    schema: frozenset[str]

    @classmethod
    def of(cls, source: Source, head: Checkout, newest: str, filled: Filled) -> "Drill":
        """A drill of a filled database."""
        url = source.named(ORIGIN)
        return cls(source, head, newest, filled, asyncio.run(rows(url)), asyncio.run(schema(url)))

    def once(self) -> Reference:
        """Migrate a copy, and compare all of it with what was there."""
        url, moments = self.source.copy(ORIGIN), list[float]()
        _compile(self.head, url)
        started, before = asyncio.run(revision(url)), asyncio.run(size(url))
        with _watching(url, self.newest, moments):
            cost = upgrade(self.head, url, pid=self.source.pid)
        cost.before, cost.after = before, asyncio.run(size(url))
        cost.schema_seconds = min([*moments, cost.seconds])
        state = self._state(url, every=1)
        if state.rows.gone:  # they cannot be compared, the others can
            self.before = asyncio.run(rows(self.source.named(ORIGIN), state.rows.columns))
        self.source.drop(url)
        return Reference(started, cost, state, self._faults(cost, state, every=1))

    def kill(self, reference: Reference, count: int) -> Kills:
        """Kill so many upgrades, run each again, and compare."""
        kills = Kills()
        for number in range(1, count + 1):
            moment = random.uniform(0, 1.1 * _span(reference.cost, number))
            left, faults = self._killed(reference, moment, last=number == count)
            kills.count, kills.faults = number, [*kills.faults, *faults]
            kills.left[left] += 1
            said = "; ".join(faults) or "equal"
            print(f"{self.source.kind}: killed after {moment:.2f} s ({left}), {number}/{count}: {said}", flush=True)
        return kills

    def _killed(self, reference: Reference, moment: float, *, last: bool) -> tuple[str, list[str]]:
        """Kill an upgrade, and at once run it again; every conversation is read after the last one."""
        url, every = self.source.copy(ORIGIN), 1 if last else SAMPLED
        killed = upgrade(self.head, url, kill_after=moment)
        left = f"left {asyncio.run(revision(url))}" if killed.code else "had ended"
        if asyncio.run(schema(url)) not in {self.schema, reference.state.soundness.schema}:
            left += ", half-way"
        cost = upgrade(self.head, url)
        asyncio.run(self.source.settle(url))
        state = self._state(url, every=every)
        self.source.drop(url)
        faults = self._faults(cost, state, every=every)
        if state.soundness.schema != reference.state.soundness.schema:
            faults.append(f"schema: {sorted(state.soundness.schema ^ reference.state.soundness.schema)[:3]}")
        if state.searches != reference.state.searches:
            faults.append("searches find something else")
        return left, faults

    def _state(self, url: str, *, every: int) -> State:
        sound, after = asyncio.run(soundness(url)), asyncio.run(rows(url, self.before.columns))
        return State(after, sound, parsed(read_text(self.head, url, self.filled.owners, every)))

    def _faults(self, cost: Cost, state: State, *, every: int) -> list[str]:
        """What is wrong with a database after an upgrade."""
        faults = [f"exit code {cost.code}: {cost.said[-500:]}"] if cost.code else []
        if state.soundness.revision != self.newest:
            faults.append(f"revision {state.soundness.revision}")
        faults += [*state.soundness.faults, *self.before.differences(state.rows)]
        return faults + compared(self.filled.read, state.read, every)


def _span(cost: Cost, number: int) -> float:
    """The time in which an upgrade is killed: every second time while the schema changes, if the rest is longer."""
    return cost.schema_seconds if number % 2 and cost.schema_seconds < cost.seconds / 2 else cost.seconds


def compared(before: Read, after: Read, every: int = 1) -> list[str]:
    """What differs of the conversations that were read."""
    expected = {name: line for name, line in before.items() if _is_sampled(name, every)}
    found = {name: line for name, line in after.items() if "search:" not in name}
    names = {"missing": expected.keys() - found.keys(), "made up": found.keys() - expected.keys()}
    names["differing"] = {name for name in expected.keys() & found.keys() if expected[name] != found[name]}
    return [f"{len(each):,} conversations {kind}: {sorted(each)[:2]}" for kind, each in names.items() if each]


def _is_sampled(name: str, every: int) -> bool:
    _, _, id_ = name.rpartition(" ")
    return not id_.startswith("search:") and UUID(id_).int % every == 0
