"""A Redis server that counts requests: Debian's package, where it is installed, or Valkey.

CHATKEEP_TEST_REDIS_SERVER is the path of another program.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from urllib.parse import quote

from benchmarks.postgres_server import free_port, reachable

PASSWORD = "zq7 p@ss/word"
"""With characters that a URL has to escape."""


@cache
def program() -> str | None:
    """Where the server is."""
    return os.environ.get("CHATKEEP_TEST_REDIS_SERVER") or shutil.which("redis-server") or shutil.which("valkey-server")


def version() -> str:
    """Which one it is, and what is not tested without it."""
    found = program()
    if found is None:
        return "Redis: not installed, test_rate_limit_redis.py is skipped (Debian: apt-get install redis-server)"
    words = subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return f"{words[0]} {next(word.removeprefix('v=') for word in words if word.startswith('v='))}"


class NoTls(Exception):
    """The program was built without TLS."""


class Server:
    """A server that asks for a password and keeps nothing, in a folder of its own, on a port of its own."""

    def __init__(self, certificate: tuple[Path, Path] | None = None) -> None:
        self.port = free_port()
        self._scheme = "rediss" if certificate else "redis"
        self.url = self.url_with(PASSWORD)
        self._folder = Path(tempfile.mkdtemp(prefix="chatkeep-redis-"))
        self._config = self._folder / "config"
        lines = ["bind 127.0.0.1", f'requirepass "{PASSWORD}"', 'save ""', "appendonly no", f"dir {self._folder}"]
        if certificate:
            file, key = certificate
            lines += ["port 0", f"tls-port {self.port}", f"tls-cert-file {file}", f"tls-key-file {key}"]
            lines += [f"tls-ca-cert-file {file}", "tls-auth-clients no"]
        else:
            lines += [f"port {self.port}"]
        self._config.write_text("\n".join(lines))
        self._process: subprocess.Popen[bytes] | None = None

    def url_with(self, password: str) -> str:
        """The URL for clients that say this password."""
        return f"{self._scheme}://:{quote(password, safe='')}@127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it takes connections."""
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen([str(program()), str(self._config)], stdout=log, stderr=log)
        end = time.monotonic() + 10
        while not reachable(self.port):
            if time.monotonic() > end or self._process.poll() is not None:
                text = (self._folder / "log").read_text()
                raise NoTls if "TLS support" in text else RuntimeError(f"{program()} did not start: {text}")
            time.sleep(0.02)

    def stop(self) -> None:
        """End it; what it counted is forgotten."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Let it take connections and answer nothing, as behind a network that swallows what is sent."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it answer again."""
        self._signal(signal.SIGCONT)

    def remove(self) -> None:
        """End it, and remove its folder."""
        self.stop()
        shutil.rmtree(self._folder)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
