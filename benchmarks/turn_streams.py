"""Five hundred streams of one server process: `python -m benchmarks.turn_streams [--owners N] [--database NAME]`.

Each owner asks four questions, and reads the four answers as event streams. Meanwhile another owner appends and asks
for histories, one request after the other. What it shows: the memory of the server before and meanwhile, when the first
word of an answer came, how late words were, and how long the other owner waited.
"""

import argparse
import asyncio
import time
from pathlib import Path
from typing import Any

import httpx2
import jwt

from benchmarks.drill_places import KINDS, on_disk, place
from benchmarks.turn_server import TIMEOUT, Received, Served, ask, serving

SECRET = "a secret of the benchmark, which is long enough"
TURNS = 4
TOKENS, RATE = 150, 5
SETTINGS = {"auth": "jwt", "jwt_secret": SECRET, "rate_limit": "0", "turn_limit": "0", "max_turns": 1_000}


class Timed(Received):
    """What a client has of an answer, and when it came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def take(self, item: Any) -> None:
        """Take an event, and note the time of a text."""
        super().take(item)
        if item.kind == "text":
            self.times.append(time.perf_counter())


def memory(served: Served) -> float:
    """The resident memory of the server, in MB."""
    status = Path(f"/proc/{served.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1e3


def client_of(served: Served, owner: str, connections: int) -> httpx2.AsyncClient:
    """A client of an owner's."""
    token = jwt.encode({"sub": owner, "exp": int(time.time()) + 3_600}, SECRET, "HS256")
    limits = httpx2.Limits(max_connections=connections)
    headers = {"Authorization": f"Bearer {token}"}
    return httpx2.AsyncClient(base_url=served.url, timeout=TIMEOUT, headers=headers, limits=limits, verify=False)


async def read_answers(served: Served, owner: str, late: list[float], first: list[float]) -> None:
    """Ask the questions of an owner at once, and read the answers."""
    async with client_of(served, owner, TURNS) as client:
        talks = [(await client.post("/api/conversations", json={})).json()["id"] for _ in range(TURNS)]
        await asyncio.gather(*(_read(client, talk, late, first) for talk in talks))


async def _read(client: httpx2.AsyncClient, talk: str, late: list[float], first: list[float]) -> None:
    received, asked = Timed(), time.perf_counter()
    await ask(client, talk, {"content": f"tea rate={RATE} tokens={TOKENS} reasoning=0 tool=0 sources=0"}, received)
    assert received.message is not None
    assert received.message["content"] == received.text
    first.append(received.times[0] - asked)
    begin = min(at - number / RATE for number, at in enumerate(received.times))
    late += [at - begin - number / RATE for number, at in enumerate(received.times)]


async def others(served: Served, waits: dict[str, list[float]]) -> None:
    """Append and read as another owner, until cancelled."""
    async with client_of(served, "another", 2) as client:
        talk = (await client.post("/api/conversations", json={})).json()["id"]
        path = f"/api/conversations/{talk}/messages"
        while True:
            for name, request in (
                ("append", client.build_request("POST", path, json={"role": "user", "content": "hello " * 20})),
                ("history", client.build_request("GET", path)),
            ):
                before = time.perf_counter()
                (await client.send(request)).raise_for_status()
                waits[name].append(time.perf_counter() - before)
            await asyncio.sleep(0.05)


def said(name: str, times: list[float]) -> str:
    """Median, 99th percentile and longest of some times."""
    times.sort()
    p50, p99 = (times[int(len(times) * share)] * 1e3 for share in (0.5, 0.99))
    return f"{name}: p50 {p50:.0f} ms, p99 {p99:.0f} ms, at most {times[-1] * 1e3:.0f} ms ({len(times):,})"


async def run(url: str, owners: int) -> None:
    """Open the streams, and say what was seen."""
    waits: dict[str, list[float]] = {"append": [], "history": []}
    late: list[float] = []
    first: list[float] = []
    with serving(url, **SETTINGS) as served:
        before = memory(served)
        beside = asyncio.create_task(others(served, waits))
        readers = [
            asyncio.create_task(read_answers(served, f"owner {number}", late, first)) for number in range(owners)
        ]
        peak = 0.0
        while not all(reader.done() for reader in readers):
            peak = max(peak, memory(served))
            await asyncio.sleep(0.2)
        await asyncio.gather(*readers)
        beside.cancel()
        print(f"{owners * TURNS} streams: {before:.0f} MB before, at most {peak:.0f} MB, {memory(served):.0f} MB after")
    for name, times in (("first word", first), ("words late by", late), *waits.items()):
        print(said(name, times))


def main() -> None:
    """Run the bench."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--owners", type=int, default=125)
    parser.add_argument("--database", choices=KINDS, default="postgresql")
    given = parser.parse_args()
    with on_disk() as folder, place(given.database, folder) as where:
        asyncio.run(run(where.fresh(), given.owners))


if __name__ == "__main__":
    main()
