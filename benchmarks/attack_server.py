"""The server that is attacked: `chatkeep serve` of any checkout, its databases, and what its processes use."""

import asyncio
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from subprocess import PIPE
from uuid import uuid4

import asyncpg

from benchmarks.children import ROOT
from benchmarks.postgres_server import Server, plain, serving

HERE = Path(__file__).parent
START_SECONDS = 60.0
OPEN_FILES = 1_024
"""The soft limit of open files that the server starts with: the default of Linux."""

TICKS = os.sysconf("SC_CLK_TCK")


def end_at_sigterm() -> None:
    """Let SIGTERM end this process as an error does: what it has started ends, too."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


@dataclass(frozen=True)
class Checkout:
    """A chatkeep that can be served: the Python that it is installed for."""

    python: Path

    @classmethod
    def at(cls, given: str | None) -> "Checkout":
        """A Python, a checkout with a virtual environment, or None: this Python."""
        path = Path(given or sys.executable)
        if path.is_dir():
            path = path / ".venv" / "bin" / "python"
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: name a Python, or a checkout that has a .venv")
        return cls(path.absolute())

    @cached_property
    def commit(self) -> str:
        """The commit of its source, or its version if it was installed otherwise."""
        code = "import chatkeep; print(chatkeep.__file__)"
        folder = Path(self.run("-c", code).strip()).parent
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True, check=False
        )
        return found.stdout.strip() or str(folder)

    def run(self, *arguments: str) -> str:
        """Run this Python, and return what it prints."""
        command = [str(self.python), "-P", *arguments]
        return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


class Databases:
    """Databases that are filled once for each set of kinds, and copied for each attack."""

    def __init__(self, checkout: Checkout, folder: Path, server: Server | None) -> None:
        self.server = server
        self.checkout = checkout
        self._folder = folder
        self._templates: dict[tuple[str, ...], str] = {}

    @contextmanager
    def fresh(self, kinds: Sequence[str]) -> Iterator[str]:
        """The URL of a copy, which goes afterwards."""
        template = self._template(tuple(kinds))
        name = f"attack_{uuid4().hex}"
        if self.server is None:
            shutil.copyfile(self._folder / template, self._folder / name)
        else:
            self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self._url(name)
        finally:
            if self.server is None:
                for path in self._folder.glob(f"{name}*"):
                    path.unlink()
            else:
                self._execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def _template(self, kinds: tuple[str, ...]) -> str:
        if kinds not in self._templates:
            name = "template_" + "_".join(kinds)
            if self.server is not None:
                self._execute(f'CREATE DATABASE "{name}"')
            self.checkout.run(str(HERE / "attack_prepare.py"), self._url(name), *kinds)
            self._templates[kinds] = name
        return self._templates[kinds]

    def _url(self, name: str) -> str:
        return f"sqlite:///{self._folder / name}" if self.server is None else self.server.url(name)

    def _execute(self, statement: str) -> None:
        async def execute(url: str) -> None:
            connection = await asyncpg.connect(url)
            await connection.execute(statement)
            await connection.close()

        assert self.server is not None
        asyncio.run(execute(plain(self.server.url())))


@contextmanager
def databases(checkout: Checkout, kind: str) -> Iterator[Databases]:
    """Databases on SQLite, or on a PostgreSQL server that is started for them."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="attacks-", dir=disk())))
        server = stack.enter_context(serving()) if kind == "postgres" else None
        yield Databases(checkout, folder, server)


def disk() -> Path:
    """Where the SQLite files lie: the folder of all benches, out of git's sight."""
    folder = ROOT / ".bench"
    folder.mkdir(exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


def environment() -> dict[str, str]:
    """The environment without settings of chatkeep, in which modules are compiled once, as where it is installed."""
    without = ("CHATKEEP_", "VIRTUAL_ENV", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(without)}
    return {**inherited, "PYTHONPYCACHEPREFIX": str(disk() / "compiled")}


class Target:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log
        self.port = 0
        self._usage = Usage(0, 0, 0)

    def wait_until_ready(self) -> None:
        """Learn its port, and wait until it can work."""
        assert self.process.stdout is not None
        said = self.process.stdout.readline() + self.process.stdout.readline()
        found = re.search(r"http://\S+?:(\d+)", said)
        if found is None:
            raise RuntimeError(f"the server did not start: {said} {self.log.read_text()[-2000:]}")
        self.port = int(found[1])
        end = time.monotonic() + START_SECONDS
        while not _is_ready(self.port):
            if time.monotonic() > end:
                raise RuntimeError(f"the server was not ready in {START_SECONDS:g} s: {self.log.read_text()[-2000:]}")
            time.sleep(0.05)

    def usage(self) -> "Usage":
        """What its processes use; if it is gone, what they used last."""
        if self.process.poll() is None:
            self._usage = Usage.of(self.process.pid)
        return self._usage

    def kill(self) -> None:
        """End all its processes at once."""
        for pid in [self.process.pid, *descendants(self.process.pid)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def served(
    checkout: Checkout, url: str, workers: int, settings: Mapping[str, str], script: str = ""
) -> Iterator[Target]:
    """Serve a database with these settings, which are environment variables without their prefix.

    `script` is a file of this folder that serves, instead of `-m chatkeep`.
    """
    program = [str(HERE / script)] if script else ["-m", "chatkeep"]
    command = [str(checkout.python), "-P", *program, "serve", "--port", "0", "--workers", str(workers)]
    given = {f"CHATKEEP_{name.upper()}": value for name, value in settings.items()}
    given |= {"CHATKEEP_DATABASE_URL": url, "CHATKEEP_LOG_LEVEL": given.get("CHATKEEP_LOG_LEVEL", "error")}
    limited = ["/bin/sh", "-c", f'ulimit -Sn {OPEN_FILES}; exec "$@"', "sh", *command]
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "log").open("w") as log,
        subprocess.Popen(
            limited, stdout=PIPE, stderr=log, text=True, env={**environment(), **given, "TMPDIR": folder}, cwd=folder
        ) as process,
    ):
        target = Target(process, Path(log.name))
        try:
            target.wait_until_ready()
            yield target
        finally:
            target.kill()


def _is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


# --- what processes use ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """What a process and its descendants use."""

    cpu: float
    """Seconds, those of descendants that ended included."""
    resident: float
    """MB now."""
    peak: float
    """MB at most since `reset_peaks`, as the sum of each process's own peak."""

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """The usage of a process and its descendants now."""
        pids = [pid, *descendants(pid)]
        memory = [_memory(each) for each in pids]
        return cls(sum(_cpu(each) for each in pids), sum(now for now, _ in memory), sum(peak for _, peak in memory))


def descendants(pid: int) -> list[int]:
    """The processes that a process started, and those that they started."""
    parents: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields:
            parents.setdefault(int(fields[1]), []).append(int(folder.name))
    found = list(parents.get(pid, []))
    for each in found:
        found += parents.get(each, [])
    return found


def reset_peaks(pid: int) -> None:
    """Let the peaks of memory begin now."""
    for each in [pid, *descendants(pid)]:
        Path(f"/proc/{each}/clear_refs").write_text("5")


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; none if the process has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def _cpu(pid: int) -> float:
    """User and system time of a process and of the children that it waited for."""
    return sum(map(int, _stat(pid)[11:15])) / TICKS


def _memory(pid: int) -> tuple[float, float]:
    """MB resident now and at most."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0.0
    found = dict(re.findall(r"(VmRSS|VmHWM):\s*(\d+) kB", text))
    return int(found.get("VmRSS", 0)) / 1024, int(found.get("VmHWM", 0)) / 1024
