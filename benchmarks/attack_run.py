"""One attack on a server that is started for it: what it cost, and what others saw meanwhile."""

import json
import secrets
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from subprocess import PIPE
from typing import Any

import jwt

from benchmarks.attack_issuer import AUDIENCE, Issuer, issuing
from benchmarks.attack_prepare import ATTACKER, VICTIM
from benchmarks.attack_server import Databases, Target, Usage, reset_peaks, served
from benchmarks.attacker import Attack
from benchmarks.children import ROOT, command
from chatkeep.keys import WRITE_ANY_ROLE

QUIET_SECONDS = 1.0
"""How long the victim sends before and after the attack."""

SAMPLE_SECONDS = 0.2
MAX_MEMORY_MB = 6_000
"""The server is killed beyond it, before the machine runs out of memory."""


@dataclass(frozen=True)
class Place:
    """Where attacks run."""

    databases: Databases
    workers: int

    @property
    def database(self) -> str:
        """The name of the database."""
        return "SQLite" if self.databases.server is None else "PostgreSQL"

    @property
    def database_pid(self) -> int | None:
        """The process of a database server, if there is one."""
        return None if self.databases.server is None else self.databases.server.pid


@dataclass(frozen=True)
class Keys:
    """Who gives out tokens: whoever has the secret, or an issuer."""

    secret: str
    issuer: Issuer | None

    @property
    def settings(self) -> dict[str, str]:
        """The settings of a server that takes these tokens."""
        if self.issuer is None:
            return {"auth": "jwt", "jwt_secret": self.secret}
        return {"auth": "jwt", "jwt_issuer": self.issuer.url, "jwt_audience": AUDIENCE}

    def token(self, owner: str) -> str:
        """A token that is valid for an hour."""
        if self.issuer is not None:
            return self.issuer.token(owner)
        claims = {"sub": owner, "exp": int(time.time()) + 3_600, "scope": WRITE_ANY_ROLE}
        return jwt.encode(claims, self.secret, "HS256")


@contextmanager
def keys_for(attack: Attack) -> Iterator[Keys]:
    """What an attack needs."""
    if not attack.issuer:
        yield Keys(secrets.token_hex(32), None)
        return
    with issuing() as issuer:
        yield Keys("", issuer)


@contextmanager
def attacked(
    place: Place, attack: Attack, settings: Mapping[str, str], kinds: tuple[str, ...] = ()
) -> Iterator[tuple[Target, Keys]]:
    """A server to be attacked, with a database of its own that holds what the attack needs, and `kinds`."""
    script = "attack_serve.py" if attack.issuer else ""
    with (
        place.databases.fresh([*attack.kinds, *kinds]) as url,
        keys_for(attack) as keys,
        served(place.databases.checkout, url, place.workers, {**keys.settings, **settings}, script) as target,
    ):
        yield target, keys


class Sampler(threading.Thread):
    """Reads again and again what the server's processes use, and ends a server that uses too much memory."""

    def __init__(self, target: Target, others: int | None) -> None:
        super().__init__(daemon=True)
        self._target = target
        self._others = others
        self._over = threading.Event()
        reset_peaks(target.process.pid)
        self.before = target.usage()
        self.peak = self.before.resident
        self.killed = False
        self._others_before = self._others_cpu()

    def run(self) -> None:
        """Sample until `stop`."""
        while not self._over.wait(SAMPLE_SECONDS):
            usage = self._target.usage()
            self.peak = max(self.peak, usage.peak)
            if usage.resident > MAX_MEMORY_MB and not self.killed:
                self.killed = True
                self._target.kill()

    def stop(self) -> dict[str, float | bool]:
        """What was used since the start: CPU seconds and MB."""
        self._over.set()
        self.join()
        after = self._target.usage()
        return {
            "cpu": after.cpu - self.before.cpu,
            "database_cpu": self._others_cpu() - self._others_before,
            "memory_before": self.before.resident,
            "memory_growth": max(self.peak, after.peak) - self.before.resident,
            "killed": self.killed,
        }

    def _others_cpu(self) -> float:
        return 0.0 if self._others is None else Usage.of(self._others).cpu


def measure(place: Place, attack: Attack) -> dict[str, Any]:
    """Run an attack, and return its row."""
    with (
        attacked(place, attack, {}) as (target, keys),
        child("attack_victim", target.port, keys.token(VICTIM)) as victim,
    ):
        time.sleep(QUIET_SECONDS)
        sampler = Sampler(target, place.database_pid)
        sampler.start()
        spent = run_attacker(attack, target, keys)
        time.sleep(QUIET_SECONDS)
        seen = stopped(victim)
        used = sampler.stop()
        log = target.log.read_text()[-500:]
    return {
        "attack": attack.name, "says": attack.says, "database": place.database, "workers": place.workers,
        "spent": spent, "server": used, "victim": seen, "log": log,
    }  # fmt: skip


@contextmanager
def child(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A process of the attack that has begun its work: it has printed a line."""
    line = command(f"benchmarks.{module}", *map(str, arguments))
    with subprocess.Popen(line, stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT) as process:
        try:
            _read(process)
            yield process
        finally:
            process.kill()


def stopped(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Tell a process to stop, and return what it says."""
    assert process.stdin is not None
    process.stdin.write("stop\n")
    process.stdin.flush()
    found: dict[str, Any] = json.loads(_read(process))
    return found


def run_attacker(attack: Attack, target: Target, keys: Keys, seconds: float | None = None) -> dict[str, Any]:
    """Let the attacker work, until it has finished or the attack's time is over, and return what it spent."""
    if keys.issuer is not None:
        keys.issuer.drips = True
    with child("attacker", attack.name, target.port, keys.token(ATTACKER), keys.secret) as attacker:
        timed_out = False
        try:
            attacker.wait(seconds or attack.seconds)
        except subprocess.TimeoutExpired:
            attacker.terminate()
            timed_out = True
        return {**json.loads(_read(attacker)), "stopped": timed_out}


def _read(process: subprocess.Popen[str]) -> str:
    """A line of a process. Raises RuntimeError if it ends without one: it has said why on standard error."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"{process.args!r} ended with exit code {process.wait()}")
    return line
