"""Requests that are sent twice, over HTTP and on every store."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from chatkeep import open_store
from chatkeep.access import Reply
from chatkeep.api.idempotency import sweep
from chatkeep.values import now
from servers.api import Api, assert_problem, serving

PATH = "/api/conversations"


@pytest.fixture
async def api(store_url: str) -> AsyncIterator[Api]:
    async with open_store(store_url) as store, serving(store) as api:
        yield api


async def test_a_repeated_creation(api: Api) -> None:
    """The second answer is the first one, and says so; one conversation is there."""
    key = {"Idempotency-Key": "create-1"}
    first = await api.client.post(PATH, json={"title": "Tea"}, headers=key)
    second = await api.client.post(PATH, json={"title": "Tea"}, headers=key)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert first.headers["location"] == second.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"
    assert len((await api.client.get(PATH)).json()["items"]) == 1


async def test_requests_at_the_same_moment(api: Api) -> None:
    """Of twenty, one is executed; the others get its answer, or are told that it is under way."""
    sent = (api.client.post(PATH, json={"title": "Tea"}, headers={"Idempotency-Key": "k"}) for _ in range(20))
    replies = await asyncio.gather(*sent)
    assert {reply.status_code for reply in replies} <= {201, 409}
    assert len({reply.content for reply in replies if reply.status_code == 201}) == 1
    assert len((await api.client.get(PATH)).json()["items"]) == 1


@pytest.mark.parametrize("body", [{"title": "private"}, {"metadata": {"a": "private"}, "reuse_latest": True}])
async def test_a_reply_goes_with_its_conversation(api: Api, body: dict[str, object]) -> None:
    """The reply is not given again when the conversation was deleted, and the conversation does not come back."""
    key = {"Idempotency-Key": "k"}
    made = await api.client.post(PATH, json=body, headers=key)
    assert (await api.client.delete(made.headers["location"])).status_code == 204
    assert_problem(await api.client.post(PATH, json=body, headers=key), 404, "private", made.json()["id"])
    assert (await api.client.get(PATH)).json()["items"] == []


async def test_expired_replies_are_swept(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server removes the replies of all owners that expired, also of those who never come back."""
    async with open_store(store_url) as store:
        access, owners = store.access, ["one", "two\0", "three"]
        for hours, count in ((25, 5), (23, 2)):
            moment = now() - timedelta(hours=hours)
            for module in ("access_sql", "memory.access", "mongo.access"):
                monkeypatch.setattr(f"chatkeep.stores.{module}.now", lambda moment=moment: moment)
            for owner in owners:
                for key in (f"{hours} {number}" for number in range(count)):
                    await access.begin_request(owner, key, b"")
                    await access.finish_request(owner, key, Reply(201, b"private"))
        monkeypatch.undo()
        for module in ("access_sql", "mongo.access"):
            monkeypatch.setattr(f"chatkeep.stores.{module}.FORGET_SLICE", 2)
        monkeypatch.setattr("chatkeep.api.idempotency.SWEEP_SECONDS", 0.01)
        sweeping = asyncio.create_task(sweep(access))
        await asyncio.sleep(0.5)
        sweeping.cancel()
        assert [(await access.forget_owner(owner)).requests for owner in owners] == [2, 2, 2]


async def test_a_key_is_for_one_request(api: Api) -> None:
    """The same key with another body is 422; a request that was refused may be corrected."""
    key = {"Idempotency-Key": "k"}
    assert_problem(await api.client.post(PATH, json={"title": "x" * 5_000}, headers=key), 422)
    assert (await api.client.post(PATH, json={"title": "Tea"}, headers=key)).status_code == 201
    assert_problem(await api.client.post(PATH, json={"title": "Coffee"}, headers=key), 422)


async def test_a_repeated_message(api: Api) -> None:
    """The key makes the message's id; the second answer says that it is a repetition."""
    path = f"{await api.conversation()}/messages"
    body, key = {"role": "user", "content": "hello"}, {"Idempotency-Key": "turn-1"}
    first, second = [await api.client.post(path, json=body, headers=key) for _ in range(2)]
    assert first.content == second.content
    assert "idempotency-replayed" not in first.headers
    assert second.headers["idempotency-replayed"] == "true"


async def test_reuse_latest_can_be_repeated(api: Api) -> None:
    """A repeated get-or-create gives the conversation of the first time, although there is a newer one."""
    key = {"Idempotency-Key": "latest"}
    first = await api.client.post(PATH, json={"reuse_latest": True}, headers=key)
    await api.conversation()
    second = await api.client.post(PATH, json={"reuse_latest": True}, headers=key)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.content == second.content
