"""Answers that OpenAI makes in the background, whose server is killed.

`python -m benchmarks.failover_drill --database NAME [--rounds N]`: a server that stands in for OpenAI counts the
answers that are begun, which cost money. In each round two servers of chatkeep share a database; one is asked, and
killed while it streams. The other one goes on with the answer, and whoever read it reads on there: the whole text,
every character once, and one answer begun for each question.
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx2

from benchmarks.children import ROOT
from benchmarks.drill_places import KINDS, on_disk, place
from benchmarks.turn_drill import answer_path, client_of, conversation
from benchmarks.turn_server import Received, Served, ask, follow, serving

LEASE_SECONDS = 1.0
IN_TIME_SECONDS = 8.0
"""When a reader must have the next character after the kill: the lease, a look at it, and the way to the provider."""

WORDS = [f"w{number} é🫖 " for number in range(120)]
PAUSE_SECONDS = 0.02
THOUGHTS = [f"thought {number}. " for number in range(20)]
FULL_TEXT = "".join(WORDS)


def stand_ins() -> Any:
    """The modules of what stands in for OpenAI."""
    if str(ROOT / "tests") not in sys.path:
        sys.path.append(str(ROOT / "tests"))  # what stands in for OpenAI is a part of the tests
    from servers import model_script, models

    return model_script, models


async def failover(url: str, rounds: int, folder: Path) -> int:
    """Kill the server that streams, so many times; return how often something was wrong."""
    script, models = stand_ins()
    answers = [script.Answer(text=WORDS, reasoning=THOUGHTS, pause=PAUSE_SECONDS)]
    os.environ["CHATKEEP_PROVIDER_DRILL"] = "sk-drill"
    wrong, waited = 0, list[float]()
    async with models.spawned("openai", answers, folder) as fake:
        with configured(url) as survivor:
            async with client_of(survivor) as other:
                await make_default(other, fake.url, background=True)
                for number in range(rounds):
                    before = fake.creates
                    faults, seconds = await _kill(url, other, random.uniform(0.0, 2.2))
                    if (begun := fake.creates - before) != 1:
                        faults.append(f"{begun} answers begun")
                    waited.append(seconds)
                    wrong += bool(faults)
                    print(f"kill {number + 1}: went on after {seconds:.2f} s {faults or 'all there'}", flush=True)
    waited.sort()
    middle = waited[rounds // 2]
    print(f"failover: {rounds} kills, {wrong} wrong; readers waited {middle:.2f} s, at most {waited[-1]:.2f} s")
    return wrong


def configured(url: str) -> Any:
    """A server that answers by its providers."""
    return serving(url, turn_lease=LEASE_SECONDS, provider="configured")


async def make_default(
    client: httpx2.AsyncClient, url: str, *, provider_name: str = "openai", **config: object
) -> None:
    """Make what stands in for OpenAI the default provider."""
    api_config = {"base_url": url, "api_key_env": "CHATKEEP_PROVIDER_DRILL", **config}
    new = {"provider_name": provider_name, "model_name": "drill", "is_default": True, "api_config": api_config}
    reply = await client.post("/api/llm-providers", json=new)
    assert reply.status_code == 201, reply.text


async def _kill(url: str, other: httpx2.AsyncClient, seconds: float) -> tuple[list[str], float]:
    """Kill the server of a question so many seconds after the first sign of its answer, and read on at the other."""
    talk, question, received = await conversation(other), {"id": str(uuid4()), "content": "Tea?"}, Received()
    with configured(url) as victim:
        async with client_of(victim) as client:
            asking = asyncio.create_task(ask(client, talk, question, received))
            await _begun(received, asking)
            await asyncio.sleep(seconds)
            _kill_now(victim)
            await asyncio.gather(asking, return_exceptions=True)
    had, killed, path = received.text, time.monotonic(), answer_path(talk, question)
    reading = asyncio.create_task(follow(other, path, received))
    while not reading.done() and received.text == had:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    waited = time.monotonic() - killed
    await reading
    return await _faults(other, path, received, waited), waited


def _kill_now(served: Served) -> None:
    served.kill(signal.SIGKILL)


async def _begun(received: Received, asking: asyncio.Task[None]) -> None:
    while not received.reasoning and not asking.done():  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)


async def _faults(client: httpx2.AsyncClient, path: str, received: Received, waited: float) -> list[str]:
    """What is wrong with the answer."""
    answer = cast("dict[str, Any]", (await client.get(path)).json())
    thoughts = "".join(part["text"] for part in answer["parts"] or () if part["type"] == "reasoning")
    checks = {
        f"status {answer['status']}": answer["status"] == "complete",
        "text": answer["content"] == FULL_TEXT,
        "reasoning": thoughts == "".join(THOUGHTS),
        "text that was read": received.text == FULL_TEXT,
        "reasoning that was read": received.reasoning == "".join(THOUGHTS),
        "reset": not received.resets,
        "late": waited < IN_TIME_SECONDS,
    }
    return [name for name, holds in checks.items() if not holds]


def main() -> int:
    """Run the drill, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=KINDS, required=True)
    parser.add_argument("--rounds", type=int, default=50)
    given = parser.parse_args()
    with on_disk() as folder, place(given.database, folder) as where:
        return 1 if asyncio.run(failover(where.fresh(), given.rounds, folder)) else 0


if __name__ == "__main__":
    sys.exit(main())
