"""A reply of the database that is lost: each commit of a turn in turn."""

import asyncio
from uuid import uuid4

import pytest
from events import EVENT_STREAM, read, text_of

from chatkeep import open_store
from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.scripted import ScriptedProvider
from servers.api import answering
from servers.postgres import databases
from servers.proxy import Proxy

FAST = TurnLimits(flush=0.01, poll=0.02, heartbeat=0.05)
CONTENT = "Tea with milk and sugar and lemon. rate=50"


@pytest.mark.parametrize("nth", range(1, 9))
async def test_one_turn(nth: int) -> None:
    """Whichever commit's reply is lost: the question is answered once, and the answer is whole."""
    provider = ScriptedProvider()
    async with (
        Proxy(databases().clean()) as proxy,
        open_store(proxy.url) as store,
        answering(store, provider, FAST) as api,
    ):
        path = await api.conversation()
        body = {"content": CONTENT, "id": str(uuid4())}
        proxy.answered.clear()
        proxy.lose("COMMIT", nth)
        first, *others = await asyncio.gather(
            *(api.client.post(f"{path}/messages", json=body, timeout=30) for _ in range(2))
        )
        assert proxy.has_lost, proxy.answered
        for reply in (first, *others):
            assert reply.status_code in {201, 503}, reply.text
        again = await api.client.post(f"{path}/messages", json=body, timeout=30)
        assert again.status_code == 201, again.text
        answer = again.json()["assistant_message"]
        assert (answer["status"], answer["content"]) == ("complete", CONTENT.removesuffix("rate=50"))
        assert provider.asked == 1
        events = await read(api.client, "POST", f"{path}/messages", json=body, headers=EVENT_STREAM)
        assert text_of(events) == answer["content"]
        assert (await api.client.get(path)).json()["last_seq"] == 2
