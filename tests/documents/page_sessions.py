"""A shell in which the commands of a page run, with the servers that they start."""

import os
import re
import secrets
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from select import select
from urllib.request import urlopen

from benchmarks.postgres_server import free_port

SECONDS = 180.0
"""Longest time of a command, and until a server is there."""

LOG_LINES = re.compile(r"^\d{4}-\d\d-\d\d \S+ [A-Z]+ .*\n", re.MULTILINE)
"""What a server logs beside what it says at the start."""


class Session:
    """One bash, whose variables and folder the commands share. A server that is started takes the former's place."""

    def __init__(self, folder: Path, programs: Path) -> None:
        """Take the folder that the commands run in, and one of programs that come first."""
        self.port = free_port()
        self._answers, self._out = folder.parent / "answers", folder.parent / "out"
        self._answers.write_text("y\n" * 9)
        self._server: int | None = None
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("CHATKEEP_", "XDG_", "PG"))}
        own = Path(sys.executable).parent
        environment = clean | {
            "HOME": str(folder.parent / "home"),
            "PATH": f"{programs}:{own}:{os.environ['PATH']}",
            "CHATKEEP_PORT": str(self.port),
            "COLUMNS": "200",
            "NO_COLOR": "1",
            "TZ": "UTC",
        }
        self._bash = subprocess.Popen(
            ["bash", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
        )

    def close(self) -> None:
        """End the shell and its server. Idempotent."""
        if self._bash.returncode is None:
            try:
                self._stop()
            finally:
                self._bash.kill()
                self._bash.communicate()

    def run(self, command: str) -> str:
        """Run a command and return what it prints. A server goes on in the background; what it prints first returns."""
        if re.match(r"(?:\w+=\S+ )*(?:chatkeep serve|uvicorn)\b", command):
            return self._serve(command)
        status = self._tell(f"eval {_quoted(command)} < {self._answers} > {self._out} 2>&1; echo $?")
        output = self._out.read_text("utf-8")
        assert status == "0", f"{command}\nended with {status}:\n{output}"
        return output

    def _serve(self, command: str) -> str:
        self._stop()
        log = self._out.with_name(f"server-{secrets.token_hex(4)}")
        self._server = int(self._tell(f"eval {_quoted(f'exec {command}')} < /dev/null > {log} 2>&1 & echo $!"))
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            said = log.read_text("utf-8") if log.exists() else ""
            if "Application startup complete" in said or ("/api/docs\n" in said and self._answers_requests()):
                return LOG_LINES.sub("", log.read_text("utf-8"))
            assert self._is_alive(), f"{command}\nended:\n{said}"
            time.sleep(0.05)
        raise TimeoutError(f"{command} did not serve within {SECONDS:g} s:\n{said}")

    def _answers_requests(self) -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=SECONDS) as reply:
            return bool(reply.status == 200)
        return False

    def _is_alive(self) -> bool:
        return self._tell(f"kill -0 {self._server} 2>&-; echo $?") == "0"

    def _stop(self) -> None:
        if self._server is not None:
            self._tell(f"kill {self._server} 2>&-; wait {self._server}; echo $?")
            self._server = None

    def _tell(self, line: str) -> str:
        """Have bash execute a line, which prints one."""
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        self._bash.stdin.write(f"{line}\n")
        self._bash.stdin.flush()
        if not select([self._bash.stdout], [], [], SECONDS)[0]:
            raise TimeoutError(f"this takes more than {SECONDS:g} s: {line}\n{self._out.read_text('utf-8')}")
        return self._bash.stdout.readline().strip()


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"
