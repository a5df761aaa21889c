"""Commands of chatkeep: run in this process, or as one of their own."""

import contextlib
import gc
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from chatkeep.cli.app import app

SAMPLE = Path(__file__).parents[2] / "examples" / "conversations.jsonl"
COMMAND = [sys.executable, "-m", "chatkeep"]


def run(env: dict[str, str], *arguments: str | Path, code: int = 0, stdin: bytes = b"") -> Result:
    """Run a command to its end and check its exit code.

    `import` tunes the garbage collector, which is the tests', and freezes what there is: no garbage of theirs may be
    among it.
    """
    threshold = gc.get_threshold()
    gc.collect()
    done = CliRunner().invoke(app, list(map(str, arguments)), input=stdin, env=env)
    gc.set_threshold(*threshold)
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return done


@contextlib.contextmanager
def serving(env: dict[str, str], *arguments: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A running server and its URL, as the command prints it."""
    command = [*COMMAND, "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if found := re.search(r"(http://\S+)/api/docs", line):
                    yield found[1], process
                    break
            else:
                pytest.fail("the server ended before it said where it is")
        finally:
            process.kill()
