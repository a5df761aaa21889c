"""What an answer of a model takes beside the bare call: `python -m benchmarks.answer_overhead [--database NAME]`.

A server that stands in for OpenAI says 60 tokens, one in each 10 ms. It is asked directly, and by way of chatkeep's
HTTP API, in turns: until the first token, and until the end. The agent has the tool that searches documents, and does
not use it. Bars: 50 ms more for 95 of 100, for both.
"""

import argparse
import asyncio
import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx2

from benchmarks.drill_places import KINDS, on_disk, place
from benchmarks.failover_drill import make_default, stand_ins
from benchmarks.turn_drill import client_of
from benchmarks.turn_server import items, serving

TOKENS, PAUSE_SECONDS = 60, 0.01
BAR_SECONDS = 0.050
QUESTION = "How hot should the water for green tea be?"


class Took(NamedTuple):
    """How long one answer took, in seconds."""

    first: float
    end: float


async def bare(client: httpx2.AsyncClient, kind: str) -> Took:
    """Ask the model itself."""
    path, body = {
        "openai": ("/responses", {"model": "m", "input": QUESTION, "stream": True}),
        "openai-chat": (
            "/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": QUESTION}], "stream": True},
        ),
    }[kind]
    began, first = time.perf_counter(), 0.0
    async with client.stream("POST", path, json=body) as reply:
        async for line in reply.aiter_lines():
            if not first and _is_token(line):
                first = time.perf_counter()
    return Took(first - began, time.perf_counter() - began)


def _is_token(line: str) -> bool:
    if not line.startswith("data: {"):
        return False
    event = json.loads(line.removeprefix("data: "))
    choices = event.get("choices") or [{}]
    return event.get("type") == "response.output_text.delta" or bool(choices[0].get("delta", {}).get("content"))


async def by_chatkeep(client: httpx2.AsyncClient, project: str) -> Took:
    """Ask by way of chatkeep, in a new conversation of a project."""
    talk = (await client.post("/api/conversations", json={"project_id": project})).json()["id"]
    question = {"id": str(uuid4()), "content": QUESTION}
    began, first = time.perf_counter(), 0.0
    path, headers = f"/api/conversations/{talk}/messages", {"Accept": "text/event-stream"}
    async with client.stream("POST", path, json=question, headers=headers) as reply:
        async for item in items(reply.aiter_lines()):
            if item.kind == "text" and not first:
                first = time.perf_counter()
            if item.kind == "assistant_message":
                assert item.data["status"] == "complete", item.data
    return Took(first - began, time.perf_counter() - began)


async def measured(url: str, kind: str, rounds: int, folder: Path) -> bool:
    """Measure both in turns, and say whether the bars hold."""
    script, models = stand_ins()
    answers = [script.Answer(text=[f"w{number} " for number in range(TOKENS)], pause=PAUSE_SECONDS)]
    os.environ["CHATKEEP_PROVIDER_DRILL"] = "sk-drill"
    pairs: list[tuple[Took, Took]] = []
    async with models.spawned("openai", answers, folder) as fake:
        with serving(url, provider="configured") as served:
            async with (
                client_of(served) as client,
                httpx2.AsyncClient(base_url=fake.url, timeout=60, verify=False) as direct,
            ):
                await make_default(client, fake.url, provider_name=kind)
                project = (await client.post("/api/projects", json={"name": "Tea"})).json()["id"]
                for number in range(rounds + 3):
                    pair = await bare(direct, kind), await by_chatkeep(client, project)
                    if number >= 3:  # the first ones import and connect
                        pairs.append(pair)
    return _report(kind, pairs)


def _report(kind: str, pairs: Sequence[tuple[Took, Took]]) -> bool:
    holds = True
    for name in Took._fields:
        bare_ms = [1_000 * getattr(pair[0], name) for pair in pairs]
        more_ms = sorted(1_000 * (getattr(pair[1], name) - getattr(pair[0], name)) for pair in pairs)
        p95 = more_ms[int(len(more_ms) * 0.95)]
        print(
            f"{kind}, {name}: bare p50 {statistics.median(bare_ms):.1f} ms;"
            f" chatkeep adds p50 {statistics.median(more_ms):.1f}, p95 {p95:.1f} ms",
            flush=True,
        )
        holds = holds and p95 <= 1_000 * BAR_SECONDS
    return holds


def main() -> int:
    """Measure, and return 1 if a bar does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=KINDS, default="sqlite")
    parser.add_argument("--rounds", type=int, default=100)
    given = parser.parse_args()
    with on_disk() as folder, place(given.database, folder) as where:
        held = [asyncio.run(measured(where.fresh(), kind, given.rounds, folder)) for kind in ("openai-chat", "openai")]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
