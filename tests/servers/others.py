"""What others see while a server is attacked: how long they wait, whether it is ready, and what the attack costs it."""

import math
import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx2
import jwt

from chatkeep.keys import WRITE_ANY_ROLE

SECRET = "s" * 64
AUTH = {"auth": "jwt", "jwt_secret": SECRET, "rate_limit": "0"}
"""The settings of a server that knows owners by their tokens."""

TICK = os.sysconf("SC_CLK_TCK")


def bearer(owner: str, scope: str = WRITE_ANY_ROLE) -> dict[str, str]:
    """The header that authenticates an owner, who may also write what an assistant said unless there is a scope."""
    claims = {"sub": owner, "exp": time.time() + 3_600, "scope": scope}
    return {"Authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}


@dataclass
class Others:
    """A second owner, who reads and writes a small conversation while this is entered, beside checks of /readyz."""

    url: str
    pid: int
    waits: list[float] = field(default_factory=list)
    """Seconds of each request."""
    cpu: float = 0.0
    """Seconds of CPU that the server took meanwhile, the second owner's requests included."""
    grown: int = 0
    """Bytes that the server's peak memory was above what it had before."""
    failed: list[object] = field(default_factory=list)
    """Requests that were not answered, or not with success."""

    def __enter__(self) -> Self:
        self._started, self._ended = threading.Event(), threading.Event()
        self._resident, self._began = self._memory("VmRSS"), self._cpu()
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")  # the peak is what it has now
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.cpu = self._cpu() - self._began
        self.grown = self._memory("VmHWM") - self._resident

    @property
    def worst(self) -> float:
        """The longest that a request took, in seconds; what failed took for ever."""
        return math.inf if self.failed else max(self.waits)

    def _work(self) -> None:
        try:
            with httpx2.Client(base_url=self.url, timeout=120, headers=bearer("grace")) as client:
                path = f"/api/conversations/{client.post('/api/conversations', json={}).json()['id']}/messages"
                while not self._ended.is_set():
                    self._ask(client, "POST", path, json={"role": "user", "content": "hello"})
                    self._ask(client, "GET", path)
                    self._ask(client, "GET", "/readyz")
                    self._started.set()
        except Exception as error:  # noqa: BLE001 - a test fails by `worst`
            self.failed.append(error)
        finally:
            self._started.set()

    def _ask(self, client: httpx2.Client, method: str, path: str, **values: object) -> None:
        began = time.perf_counter()
        reply = client.request(method, path, **values)  # type: ignore[arg-type]
        self.waits.append(time.perf_counter() - began)
        if reply.status_code not in (200, 201):
            self.failed.append((method, path, reply.status_code))
        time.sleep(0.002)

    def _cpu(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK

    def _memory(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) << 10
