"""Requests that are sent twice, over HTTP and on every store."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from chatkeep import open_store
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
