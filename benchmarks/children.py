"""The Python processes that a bench starts."""

import os
import subprocess
import sys
from pathlib import Path

from benchmarks.measure import Plan

ROOT = Path(__file__).parent.parent


def environment(plan: Plan) -> dict[str, str]:
    """The environment, in which modules are compiled once, as where chatkeep is installed."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": str(plan.folder / "compiled")}


def command(module: str, *arguments: str) -> list[str]:
    """A command line that runs a module."""
    return [sys.executable, "-m", module, *arguments]


def compile_modules(plan: Plan) -> None:
    """Start chatkeep once, so that later starts find their modules compiled."""
    with plan.fresh() as folder:
        url = f"sqlite:///{folder / 'chatkeep.db'}"
        subprocess.run(
            command("chatkeep", "db", "upgrade", "--database-url", url),
            check=True,
            capture_output=True,
            cwd=ROOT,
            env=environment(plan),
        )
