"""Turns whose worker is killed, stopped and cut off: `python -m benchmarks.turn_drill --database NAME [--rounds N]`.

- kills: a server is killed while it streams four answers; another one on the same database closes the turns. The
  question is there, and the answer interrupted, with every character that any client had received.
- stop: a server is stopped for 30 s and goes on: one final message, which nobody overwrites.
- cuts: readers of two servers are cut off at random moments and go on at either: every character once.
- term: a server with ten streams that wait ends soon after SIGTERM.
"""

import argparse
import asyncio
import random
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any
from uuid import UUID, uuid4

import httpx2

from benchmarks.drill_places import KINDS, on_disk, place
from benchmarks.turn_server import TIMEOUT, Received, Served, ask, follow, serving
from chatkeep.turns import answer_id

LEASE_SECONDS = 1.0
IN_TIME_SECONDS = 6.0
"""When an answer must be closed after its worker was killed, while somebody reads it."""

TURNS = 4
DRAIN_SECONDS = 3.0


def answer_path(talk: str, question: dict[str, Any]) -> str:
    """Where the answer to a question is."""
    return f"/api/conversations/{talk}/messages/{answer_id(UUID(question['id']))}"


def client_of(served: Served) -> httpx2.AsyncClient:
    """A client of a server."""
    return httpx2.AsyncClient(
        base_url=served.url, timeout=TIMEOUT, verify=False
    )  # a context of TLS takes half a second


async def conversation(client: httpx2.AsyncClient) -> str:
    """Make a conversation, and return its id."""
    return str((await client.post("/api/conversations", json={})).json()["id"])


# --- kills ------------------------------------------------------------------------------------------------


async def kills(url: str, rounds: int) -> int:
    """Kill the server that streams, so many times; return how often something was wrong."""
    wrong = 0
    took: list[float] = []
    with serving(url, turn_lease=LEASE_SECONDS) as survivor:
        async with client_of(survivor) as other:
            for number in range(rounds):
                faults, seconds = await _kill(url, other, random.uniform(0.05, 1.5))
                took.append(seconds)
                wrong += bool(faults)
                print(f"kill {number + 1}: closed after {seconds:.2f} s {faults or 'all there'}", flush=True)
    took.sort()
    print(f"kills: {rounds} rounds, {wrong} wrong; closed after {took[len(took) // 2]:.2f} s, at most {took[-1]:.2f} s")
    return wrong


async def _kill(url: str, other: httpx2.AsyncClient, seconds: float) -> tuple[list[str], float]:
    talks = [await conversation(other) for _ in range(TURNS)]
    content = "how hot should tea be rate=60 tokens=600 reasoning=30 tool=200"
    questions = [{"id": str(uuid4()), "content": content} for _ in talks]
    received = [Received() for _ in talks]
    with serving(url, turn_lease=LEASE_SECONDS) as victim:
        async with client_of(victim) as client:
            asking = [asyncio.create_task(ask(client, *each)) for each in zip(talks, questions, received, strict=True)]
            while not all(each.reasoning for each in received):  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
            await asyncio.sleep(seconds)
            victim.kill(signal.SIGKILL)
            killed = time.monotonic()
            await asyncio.gather(*asking, return_exceptions=True)
    paths = [answer_path(*each) for each in zip(talks, questions, strict=True)]
    resumed = [Received(each.text, each.reasoning, each.last_id) for each in received]
    await asyncio.gather(*(follow(other, *each) for each in zip(paths, resumed, strict=True)))
    closed = time.monotonic() - killed
    faults = [
        fault for each in zip(talks, questions, received, resumed, strict=True) for fault in await _faults(other, *each)
    ]
    return faults + (["late"] if closed > IN_TIME_SECONDS else []), closed


async def _faults(
    client: httpx2.AsyncClient, talk: str, question: dict[str, Any], received: Received, resumed: Received
) -> list[str]:
    """What is wrong with a conversation whose worker was killed."""
    asked, answer = (await client.get(f"/api/conversations/{talk}/messages")).json()["items"]
    reasoning = "".join(part["text"] for part in answer["parts"] or () if part["type"] == "reasoning")
    checks = {
        "question": asked["content"] == question["content"],
        "status": answer["status"] == "interrupted",
        "text lost": answer["content"].startswith(received.text),
        "reasoning lost": reasoning.startswith(received.reasoning),
        "resumed text": resumed.text == answer["content"],
        "resumed reasoning": resumed.reasoning == reasoning,
        "reset": not resumed.resets,
    }
    return [name for name, holds in checks.items() if not holds]


# --- stop -------------------------------------------------------------------------------------------------


async def stop(url: str, rounds: int) -> int:
    """Stop a worker for 30 s (4 s in the short run) in the middle of an answer, and let it go on."""
    seconds = 30.0 if rounds > 2 else 4.0
    with serving(url, turn_lease=LEASE_SECONDS) as victim, serving(url, turn_lease=LEASE_SECONDS) as survivor:
        async with client_of(victim) as client, client_of(survivor) as other:
            faults = await _stop(victim, client, other, seconds)
    print(f"stopped for {seconds:g} s: {faults or 'one final message, unchanged'}", flush=True)
    return bool(faults)


async def _stop(victim: Served, client: httpx2.AsyncClient, other: httpx2.AsyncClient, seconds: float) -> list[str]:
    talk, question = await conversation(other), {"id": str(uuid4()), "content": "tea rate=20 tokens=200"}
    received, path = Received(), answer_path(talk, question)
    asking = asyncio.create_task(ask(client, talk, question, received))
    while not received.text:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.01)
    victim.kill(signal.SIGSTOP)
    await follow(other, path, Received())
    closed, had = (await other.get(path)).json(), received.text
    await asyncio.sleep(seconds)
    victim.kill(signal.SIGCONT)
    await asyncio.wait([asking], timeout=10)
    await asyncio.sleep(2)
    again = Received()
    await ask(client, talk, question, again)
    checks = {
        "status": closed["status"] == "interrupted",
        "text lost": closed["content"].startswith(had),
        "overwritten": (await other.get(path)).json() == closed,
        "messages": len((await other.get(f"/api/conversations/{talk}/messages")).json()["items"]) == 2,
        "asked again": again.message == closed,
        "what the client got": received.message in (None, closed),
    }
    return [name for name, holds in checks.items() if not holds]


# --- cuts -------------------------------------------------------------------------------------------------


async def cuts(url: str, rounds: int) -> int:
    """Cut readers off at random moments; each goes on at one of two servers."""
    wanted, done, wrong = rounds * 4, 0, 0
    with serving(url) as one, serving(url) as two:
        async with client_of(one) as first, client_of(two) as second:
            while done < wanted:
                talks = [await conversation(first) for _ in range(TURNS)]
                results = await asyncio.gather(*(_read_with_cuts((first, second), talk) for talk in talks))
                done += sum(cut for cut, _ in results)
                wrong += sum(bool(faults) for _, faults in results)
                print(
                    f"cuts: {done}, {[faults for _, faults in results if faults] or 'every character once'}", flush=True
                )
    return wrong


async def _read_with_cuts(clients: tuple[httpx2.AsyncClient, httpx2.AsyncClient], talk: str) -> tuple[int, list[str]]:
    """Ask, and read the answer with cuts; return how many there were, and what is wrong."""
    content = "how hot should tea be, é 说 🫖 rate=100 tokens=300 reasoning=40 tool=5000 sources=5"
    question, received, count = {"id": str(uuid4()), "content": content}, Received(), 0
    while received.message is None:
        chosen, path = random.choice(clients), answer_path(talk, question)
        again = (
            ask(chosen, talk, question, received)
            if random.random() < 0.5 or not received.last_id
            else follow(chosen, path, received)
        )
        reading = asyncio.create_task(again)
        await asyncio.wait([reading], timeout=random.uniform(0.02, 0.4))
        if not reading.done():
            reading.cancel()
            count += 1
        (outcome,) = await asyncio.gather(reading, return_exceptions=True)
        if isinstance(outcome, Exception):
            return count, [repr(outcome)]
    message = received.message
    reasoning = "".join(part["text"] for part in message["parts"] if part["type"] == "reasoning")
    checks = {
        "text": received.text == message["content"],
        "reasoning": received.reasoning == reasoning,
        "complete": message["status"] == "complete",
        "reset": not received.resets,
        "sources": len([id_ for id_ in received.others if id_.startswith("source")]) == 5,
    }
    return count, [name for name, holds in checks.items() if not holds]


# --- term -------------------------------------------------------------------------------------------------


async def term(url: str, rounds: int) -> int:
    """Ask for the end of a server with ten streams that wait."""
    wrong = 0
    for _ in range(max(1, rounds // 10)):
        with serving(url, drain=DRAIN_SECONDS, shutdown_seconds=DRAIN_SECONDS + 1) as served:
            async with client_of(served) as client:
                talk, question = await conversation(client), {"id": str(uuid4()), "content": "tea silence=1"}
                received = [Received() for _ in range(10)]
                reading = [asyncio.create_task(ask(client, talk, question, each)) for each in received]
                while not all(each.text for each in received):  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
                began = time.monotonic()
                served.kill(signal.SIGTERM)
                code = await asyncio.to_thread(served.process.wait, 30)
                took = time.monotonic() - began
                await asyncio.gather(*reading, return_exceptions=True)
        with serving(url) as later:
            async with client_of(later) as client:
                answer = (await client.get(answer_path(talk, question))).json()
        wrong += took > DRAIN_SECONDS + 2 or code != 0 or answer["status"] != "interrupted"
        print(f"term: exit code {code} after {took:.2f} s, the answer is {answer['status']}", flush=True)
    return wrong


PARTS: dict[str, Callable[[str, int], Coroutine[Any, Any, int]]] = {
    "kills": kills,
    "stop": stop,
    "cuts": cuts,
    "term": term,
}


def drill(kind: str, part: str, rounds: int) -> int:
    """Run a part on a new database; return how often something was wrong."""
    print(f"--- {kind}: {part}", flush=True)
    with on_disk() as folder, place(kind, folder) as where:
        return asyncio.run(PARTS[part](where.fresh(), rounds))


def main() -> int:
    """Run the drill, and return 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", choices=KINDS, required=True)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    given = parser.parse_args()
    return 1 if sum(drill(given.database, part, given.rounds) for part in given.parts) else 0


if __name__ == "__main__":
    sys.exit(main())
