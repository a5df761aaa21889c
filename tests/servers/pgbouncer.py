"""PgBouncer in transaction mode, before the PostgreSQL server of the tests: Debian's package, where it is installed."""

import os
import shutil
import subprocess
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks.postgres_server import NOBODY, free_port, reachable

SERVER_CONNECTIONS = 3
"""Fewer than a store opens, so that its transactions meet ever other connections of the server."""


@cache
def program() -> str | None:
    """Where PgBouncer is."""
    return shutil.which("pgbouncer", path=f"{os.environ['PATH']}:/usr/sbin")


def version() -> str:
    """Which one it is, and what is not tested without it."""
    found = program()
    if found is None:
        return "PgBouncer: not installed, test_pgbouncer.py is skipped (Debian: apt-get install pgbouncer)"
    return subprocess.run([found, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]


class Bouncer:
    """A PgBouncer that pools transactions, in a folder of its own."""

    def __init__(self, url: str) -> None:
        server = urlsplit(url)
        self.port = free_port()
        self.url = server._replace(netloc=f"{server.username}:{server.password}@127.0.0.1:{self.port}").geturl()
        self._folder = Path(tempfile.mkdtemp(prefix="chatkeep-bouncer-"))
        users, config = self._folder / "users", self._folder / "config"
        users.write_text(f'"{server.username}" "{server.password}"\n')
        config.write_text(
            "[databases]\n"
            f"* = host={server.hostname} port={server.port or 5432}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = scram-sha-256\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {SERVER_CONNECTIONS}\nmax_client_conn = 500\n"
        )
        as_nobody: dict[str, Any] = {}
        if os.geteuid() == 0:  # PgBouncer refuses to run as root
            for path in (self._folder, users, config):
                os.chown(path, NOBODY, NOBODY)
            as_nobody = {"user": NOBODY, "group": NOBODY, "extra_groups": []}
        log = (self._folder / "log").open("wb")
        self._process = subprocess.Popen([str(program()), str(config)], stdout=log, stderr=log, **as_nobody)
        log.close()
        self._wait()

    def _wait(self) -> None:
        end = time.monotonic() + 10
        while not reachable(self.port):
            if time.monotonic() > end or self._process.poll() is not None:
                raise RuntimeError(f"PgBouncer did not start: {(self._folder / 'log').read_text()}")
            time.sleep(0.05)

    def remove(self) -> None:
        """Stop it, and remove its folder."""
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)
