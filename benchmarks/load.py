"""A server under load while things break: `python -m benchmarks.load [SECONDS]`.

64 clients append to a server with two workers on PostgreSQL, each message until it is acknowledged. In the middle
the database is stopped for 5 seconds and a worker is killed. Then every message that was answered with 2xx is looked
for in the database: it must be there once. After that, the history of 50 messages is read by 64 clients from an
owner with 10,000 conversations.
"""

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx2

from benchmarks.postgres_server import Server
from chatkeep import NewConversation, NewMessage, Role, open_store
from chatkeep.settings import LOCAL_OWNER

CLIENTS = 64
DOWN_SECONDS = 5.0
CONVERSATIONS = 10_000
READ_SECONDS = 15.0


def main() -> int:
    """Run it, say what happened, and return 1 when anything is missing or doubled."""
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    server = Server(max_wal_size="4GB")
    server.start()
    try:
        return asyncio.run(_run(server, seconds))
    finally:
        server.remove()


async def _run(server: Server, seconds: float) -> int:
    process, url = _serve(server.url())
    try:
        wrong = await _write(server, process, url, seconds)
        await _read(server, url)
    finally:
        process.send_signal(signal.SIGTERM)
        print(f"SIGTERM: exit code {process.wait(60)}")
    return 1 if wrong else 0


def _serve(database_url: str) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "chatkeep", "serve", "--port", "0", "--workers", "2"]
    environment = {**os.environ, "CHATKEEP_DATABASE_URL": database_url, "CHATKEEP_LOG_LEVEL": "error"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    assert process.stdout is not None
    said = process.stdout.readline() + process.stdout.readline()
    (url,) = re.findall(r"http://\S+?:\d+", said)
    return process, url


async def _ready(client: httpx2.AsyncClient) -> None:
    for _ in range(400):
        try:
            if (await client.get("/readyz")).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("the server is not ready")


def _client(url: str) -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    return httpx2.AsyncClient(base_url=url, timeout=30, limits=limits)


async def _write(server: Server, process: subprocess.Popen[str], url: str, seconds: float) -> int:
    answers: Counter[str] = Counter()
    acknowledged: dict[str, int] = {}
    async with _client(url) as client:
        await _ready(client)
        talks = [(await client.post("/api/conversations", json={})).json()["id"] for _ in range(CLIENTS)]
        end = time.monotonic() + seconds

        async def write(number: int) -> None:
            while time.monotonic() < end:
                await _say(client, talks[number], answers, acknowledged)

        writing = [asyncio.create_task(write(number)) for number in range(CLIENTS)]
        await asyncio.sleep(seconds / 3)
        print(f"{answers} so far; the database stops for {DOWN_SECONDS:g} s")
        await asyncio.to_thread(server.stop, "fast")
        await asyncio.sleep(DOWN_SECONDS)
        await asyncio.to_thread(server.start)
        await asyncio.sleep(seconds / 6)
        worker = random.choice(_workers(process.pid))
        print(f"{answers} so far; worker {worker} is killed")
        os.kill(worker, signal.SIGKILL)
        await asyncio.gather(*writing)
    return await _judge(server, answers, acknowledged)


async def _say(client: httpx2.AsyncClient, talk: str, answers: Counter[str], acknowledged: dict[str, int]) -> None:
    """Send one message until it is acknowledged."""
    message = {"id": str(uuid4()), "role": "user", "content": "hello " * 20}
    while True:
        try:
            reply = await client.post(f"/api/conversations/{talk}/messages", json=message)
        except httpx2.TransportError as error:
            answers[type(error).__name__] += 1
            await asyncio.sleep(0.05)
            continue
        answers[f"{reply.status_code // 100}xx" if reply.is_success else str(reply.status_code)] += 1
        if reply.is_success:
            acknowledged[message["id"]] = reply.json()["seq"]
            return
        await asyncio.sleep(0.2)


def _workers(pid: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            line = (folder / "cmdline").read_text()
        except OSError:
            continue
        if parent == pid and "spawn_main" in line:
            found.append(int(folder.name))
    return found


async def _judge(server: Server, answers: Counter[str], acknowledged: dict[str, int]) -> int:
    connection = await asyncpg.connect(server.url())
    rows = await connection.fetch("SELECT id::text, seq FROM messages")
    gaps: int = await connection.fetchval(
        "SELECT count(*) FROM (SELECT conversation_id FROM messages GROUP BY 1 HAVING max(seq) <> count(*)) g"
    )
    await connection.close()
    stored = Counter(id_ for id_, _ in rows)
    seqs: dict[str, int] = dict(map(tuple, rows))
    missing = [id_ for id_, seq in acknowledged.items() if seqs.get(id_) != seq]
    doubled = [id_ for id_, count in stored.items() if count > 1]
    print(f"answers: {dict(answers)}")
    print(
        f"acknowledged {len(acknowledged):,}, stored {len(rows):,}, missing {len(missing)}, doubled {len(doubled)},"
        f" conversations with gaps {gaps}"
    )
    return len(missing) + len(doubled) + gaps


async def _read(server: Server, url: str) -> None:
    """The history of 50 messages, by 64 clients, of an owner with 10,000 conversations."""
    async with open_store(server.url(), search="off") as store:
        made = []
        for _ in range(CONVERSATIONS // 500):
            made += await asyncio.gather(
                *(store.create_conversation(LOCAL_OWNER, NewConversation()) for _ in range(500))
            )
        some = random.sample(made, 200)
        fifty = [NewMessage(role=Role.USER, content=f"hello {number} " * 10) for number in range(50)]
        await asyncio.gather(*(store.append(LOCAL_OWNER, talk.id, fifty) for talk in some))
    taken: list[float] = []
    async with _client(url) as client:
        end = time.monotonic() + READ_SECONDS

        async def read() -> None:
            while time.monotonic() < end:
                before = time.perf_counter()
                reply = await client.get(f"/api/conversations/{random.choice(some).id}/messages?limit=50")
                taken.append(time.perf_counter() - before)
                assert len(reply.json()["items"]) == 50

        await asyncio.gather(*(read() for _ in range(CLIENTS)))
    taken.sort()
    p50, p95, p99 = (taken[int(len(taken) * share)] * 1e3 for share in (0.5, 0.95, 0.99))
    print(
        f"history of 50, {CLIENTS} clients, {CONVERSATIONS:,} conversations: {len(taken) / READ_SECONDS:,.0f}/s,"
        f" p50 {p50:.0f} ms, p95 {p95:.0f} ms, p99 {p99:.0f} ms (the load generator included)"
    )


if __name__ == "__main__":
    sys.exit(main())
