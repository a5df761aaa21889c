"""DELETE /api/me again and again: what one owner may, and what others see meanwhile."""

import asyncio
import time
from pathlib import Path

import jwt
import pytest

from chatkeep import open_store
from chatkeep.testing import assistant
from servers.api import Api, assert_problem, serving

SECRET = "s" * 64


def bearer(owner: str) -> dict[str, str]:
    """The header of a request of an owner's."""
    token = jwt.encode({"sub": owner, "exp": int(time.time()) + 600}, SECRET, "HS256")
    return {"Authorization": f"Bearer {token}"}


async def post(api: Api, headers: dict[str, str], content: str = "hello") -> str:
    """Create a conversation with one message, and return its path."""
    reply = await api.client.post("/api/conversations", json={}, headers=headers)
    path = f"/api/conversations/{reply.json()['id']}"
    message = {"role": "user", "content": content}
    assert (await api.client.post(f"{path}/messages", json=message, headers=headers)).status_code == 201
    return path


async def test_one_owner_erases_only_so_often(tmp_path: Path) -> None:
    """Erasures of one owner are counted apart from other requests; other owners erase, and this one still writes."""
    settings = {"auth": "jwt", "jwt_secret": SECRET, "erase_limit": "3/hour"}
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, serving(store, **settings) as api:
        for number in range(5):
            await post(api, bearer("eve"))
            reply = await api.client.delete("/api/me", headers=bearer("eve"))
            if number < 3:
                assert reply.json()["messages"] == 1
            else:
                assert_problem(reply, 429)
                assert int(reply.headers["retry-after"]) > 60
        await post(api, bearer("ada"))
        assert (await api.client.delete("/api/me", headers=bearer("ada"))).status_code == 200


async def test_there_is_a_limit_unless_it_is_switched_off(tmp_path: Path) -> None:
    """By default an owner with a token erases 20 times an hour, and somebody without one as often as wanted."""
    for settings, last in (({"auth": "jwt", "jwt_secret": SECRET}, 429), ({}, 200)):
        async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, serving(store, **settings) as api:
            replies = [await api.client.delete("/api/me", headers=bearer("eve")) for _ in range(21)]
            assert [reply.status_code for reply in replies] == [200] * 20 + [last]


@pytest.mark.long
async def test_others_write_while_one_owner_erases(tmp_path: Path) -> None:
    """Requests that write and erase without end leave the writer to others nearly all of the time."""
    settings = {"auth": "jwt", "jwt_secret": SECRET, "rate_limit": "0", "erase_limit": "0"}
    async with open_store(f"sqlite:///{tmp_path}/chat.db") as store, serving(store, **settings) as api:
        path = await post(api, bearer("ada"))
        for _ in range(60):
            message = assistant("some words that take place " * 20_000)
            await store.append("ada", path.rpartition("/")[2], [message])
        done = asyncio.Event()

        async def attack(owner: str) -> int:
            erased = 0
            while not done.is_set():
                await post(api, bearer(owner))
                reply = await api.client.delete("/api/me", headers=bearer(owner), timeout=90)
                erased += reply.status_code == 200
            return erased

        attacks = [asyncio.create_task(attack("eve")) for _ in range(8)]
        waits = list[float]()
        for _ in range(100):
            began = time.monotonic()
            said = {"role": "user", "content": "hello"}
            reply = await api.client.post(f"{path}/messages", json=said, headers=bearer("ada"))
            assert reply.status_code == 201
            waits.append(time.monotonic() - began)
            await asyncio.sleep(0.05)
        done.set()
        assert sorted(waits)[80] < 0.5
        for task in attacks:
            task.cancel()
