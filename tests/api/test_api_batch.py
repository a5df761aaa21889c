"""Several messages in one request."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import pytest_asyncio

from chatkeep import open_store
from conftest import STORES
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = {"Idempotency-Key": "import-1"}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    url = STORES[request.param](tmp_path_factory.mktemp("store"))
    async with open_store(url) as store, serving(store) as api:
        yield api


def said(count: int, **values: object) -> list[dict[str, Any]]:
    """New messages without ids."""
    return [{"role": "user", "content": f"{number}", **values} for number in range(count)]


async def send(api: Api, path: str, messages: object, **headers: str) -> Any:
    return await api.client.post(f"{path}/messages/batch", json={"messages": messages}, headers=headers)


async def contents(api: Api, path: str) -> list[str]:
    page = (await api.client.get(f"{path}/messages?limit=200")).json()
    return [item["content"] for item in page["items"]]


def made_ids(path: str, key: str, places: Sequence[int]) -> list[str]:
    """The ids that a key makes at these places."""
    alone = uuid.uuid5(uuid.uuid5(uuid.UUID(path.rpartition("/")[2]), "local"), key)
    return [str(uuid.uuid5(alone, str(place))) for place in places]


async def test_a_batch_is_stored_in_order(api: Api) -> None:
    """Two hundred messages come back as a page, as they are stored: in order, each after the one before it."""
    path = await api.conversation()
    before = await api.say(path, "before")

    reply = await send(api, path, said(200))

    assert reply.status_code == 201
    page = reply.json()
    assert (page["total"], page["next"]) == (None, None)
    assert [item["seq"] for item in page["items"]] == list(range(2, 202))
    assert [item["content"] for item in page["items"]] == [str(number) for number in range(200)]
    assert [item["parent_id"] for item in page["items"]] == [before["id"], *(i["id"] for i in page["items"][:-1])]
    assert "location" not in reply.headers
    assert (await api.client.get(f"{path}/messages?limit=200")).json()["items"] == page["items"]


async def test_a_batch_may_branch(api: Api) -> None:
    """Messages may name parents, also ones of the same batch, and null for the root."""
    path, root = await api.conversation(), str(uuid.uuid4())

    reply = await send(api, path, [*said(1, id=root), *said(1), *said(1, parent_id=root), *said(1, parent_id=None)])

    assert [item["parent_id"] for item in reply.json()["items"]] == [None, root, root, None]


async def test_a_batch_is_all_or_nothing(api: Api) -> None:
    """One message whose id is used, or whose parent is unknown, and none is stored."""
    path = await api.conversation()
    taken = await api.say(path, "taken", id=str(uuid.uuid4()))

    used = await send(api, path, [*said(199), *said(1, id=taken["id"])])
    unknown = await send(api, path, [*said(199), *said(1, parent_id="0190f0f0-0000-7000-8000-0000000000aa")])
    twice = await send(api, path, [*said(198), *said(2, id=str(uuid.uuid4()))])

    assert_problem(used, 409, taken["id"])
    assert_problem(unknown, 404, "0000000000aa")
    assert_problem(twice, 409)
    assert await contents(api, path) == ["taken"]


async def test_an_id_twice_with_the_same_content(api: Api) -> None:
    """It is one message, and is returned at both places."""
    path, id_ = await api.conversation(), str(uuid.uuid4())

    reply = await send(api, path, [*said(198), *said(1, id=id_), *said(1, id=id_)])

    assert reply.status_code == 201
    assert [item["id"] for item in reply.json()["items"][-2:]] == [id_, id_]
    assert len(await contents(api, path)) == 199


async def test_half_of_a_batch_is_retried(api: Api) -> None:
    """What is there is returned as it is, and the rest is stored; again, nothing is stored."""
    path = await api.conversation()
    messages = [each | {"id": str(uuid.uuid4())} for each in said(200)]
    first = (await send(api, path, messages[:100])).json()["items"]

    whole = await send(api, path, messages)
    again = await send(api, path, messages)

    assert whole.json()["items"][:100] == first
    assert [item["seq"] for item in whole.json()["items"]] == list(range(1, 201))
    assert again.content == whole.content


async def test_a_key_makes_the_ids(api: Api) -> None:
    """Each message without an id gets one of the key and its place; a repetition stores nothing, and says so."""
    path, own = await api.conversation(), str(uuid.uuid4())
    messages = said(5)
    messages[2]["id"] = own

    first = await send(api, path, messages, **KEY)
    again = await send(api, path, messages, **KEY)

    assert first.status_code == 201
    one, two, _, four, five = made_ids(path, "import-1", range(5))
    assert [item["id"] for item in first.json()["items"]] == [one, two, own, four, five]
    assert "idempotency-replayed" not in first.headers
    assert again.content == first.content
    assert again.headers["idempotency-replayed"] == "true"
    assert len(await contents(api, path)) == 5


async def test_a_repetition_of_a_part_is_no_replay(api: Api) -> None:
    """With more messages than the first time the new ones are stored; changed ones are a conflict."""
    path = await api.conversation()
    await send(api, path, said(3), **KEY)

    more = await send(api, path, said(6), **KEY)
    fewer = await send(api, path, said(2), **KEY)
    changed = await send(api, path, [*said(5), {"role": "user", "content": "zq7marker"}], **KEY)

    assert (more.status_code, "idempotency-replayed" in more.headers) == (201, False)
    assert fewer.headers["idempotency-replayed"] == "true"
    assert_problem(changed, 409, "zq7marker", "import-1")
    assert await contents(api, path) == [str(number) for number in range(6)]


async def test_a_deleted_message_was_there(api: Api) -> None:
    """A late repetition after a deletion is a replay, and brings nothing back."""
    path = await api.conversation()
    first = (await send(api, path, said(2), **KEY)).json()["items"]
    await api.client.delete(f"{path}/messages/{first[1]['id']}")

    again = await send(api, path, said(2), **KEY)

    assert again.headers["idempotency-replayed"] == "true"
    assert [item["status"] for item in again.json()["items"]] == ["complete", "deleted"]
    assert await contents(api, path) == ["0"]


@pytest.mark.parametrize("key", ["import-1 0", "import-10", "import-1\t0", "import-1/0", "0"])
async def test_keys_of_batches_and_of_messages_are_apart(api: Api, key: str) -> None:
    """No key of a single message makes the id that a message of a batch has, however keys are put together."""
    path = await api.conversation()
    in_batch = (await send(api, path, said(1), **KEY)).json()["items"][0]

    alone = await api.client.post(
        f"{path}/messages", json={"role": "user", "content": "other"}, headers={"Idempotency-Key": key}
    )
    batch = await send(api, path, [{"role": "user", "content": "other"}], **{"Idempotency-Key": key})

    assert (alone.status_code, batch.status_code) == (201, 201)
    assert len({in_batch["id"], alone.json()["id"], batch.json()["items"][0]["id"]}) == 3


async def test_concurrent_batches_stay_whole(api: Api) -> None:
    """Batches at the same moment have consecutive seqs each; of equal ones with a key, one is stored."""
    path, other = await api.conversation(), await api.conversation()

    replies = await asyncio.gather(*(send(api, path, said(20)) for _ in range(5)))
    same = await asyncio.gather(*(send(api, other, said(20), **KEY) for _ in range(5)))

    starts = sorted(reply.json()["items"][0]["seq"] for reply in replies)
    assert starts == [1, 21, 41, 61, 81]
    assert {reply.status_code for reply in same} == {201}
    assert len({reply.content for reply in same}) == 1
    assert len(await contents(api, other)) == 20


NOT_BLANK = "the content of a user message must not be blank"


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        ({}, "messages", "messages is missing"),
        ({"messages": None}, "messages", "messages must be a list"),
        ({"messages": {"zq7marker": 1}}, "messages", "messages must be a list"),
        ({"messages": []}, "messages", "messages must not be empty"),
        ({"messages": said(201)}, "messages", "messages may have at most 200 items"),
        ({"messages": ["zq7marker"] * 201}, "messages.0", "messages.0 must be a JSON object"),
        ({"messages": [*said(3), None, None]}, "messages.3", "messages.3 must be a JSON object"),
        ({"messages": [*said(1), {"role": "user", "content": " "}]}, "messages.1", f"messages.1: {NOT_BLANK}"),
        ({"messages": [{"role": "zq7marker", "content": "x"}]}, "messages.0.role", None),
        ({"messages": said(1, status="in_progress")}, "messages.0", "messages.0: a new message cannot be in progress"),
        ({"messages": said(1, external_id="")}, "messages.0.external_id", "messages.0.external_id must not be empty"),
        ({"messages": said(1, metadata=["zq7"])}, "messages.0.metadata", None),
        ({"messages": said(1, parts=["zq7"])}, "messages.0.parts.0", "messages.0.parts.0 must be a JSON object"),
        ({"messages": said(1, parts=[{"zq7": 1}])}, "messages.0.parts", None),
        ({"messages": said(1), "zq7marker": 1}, "body", None),
        ({"messages": said(1, zq7marker=1)}, "messages.0", None),
        ({"messages": said(2, **{f"zq7{n}": n for n in range(5_000)})}, "messages.0", None),
        ([{"role": "user", "content": "x"}], "body", None),
    ],
)
async def test_a_batch_is_refused(api: Api, body: Any, field: str, detail: str | None) -> None:
    """A batch that is not valid is refused whole, with the first field at fault and nothing of what was sent."""
    path = await api.conversation()

    for padding in (b"", b" " * (1 << 16)):  # a large body is read in another thread
        content = padding + json.dumps(body).encode()
        reply = await api.client.post(
            f"{path}/messages/batch", content=content, headers={"Content-Type": "application/json"}
        )
        problem = assert_problem(reply, 422, "zq7")
        assert [error["field"] for error in problem["errors"]] == [field]
        assert detail in (None, problem["detail"])
        assert "known are" in problem["detail"] or "unknown" not in problem["detail"]
    assert await contents(api, path) == []


async def test_a_limit_of_the_store_holds_for_each(api: Api) -> None:
    """A user's message that is too long is refused with its batch, before the conversation is looked for."""
    path = await api.conversation()

    reply = await send(api, path, [*said(3), {"role": "user", "content": "x" * 10_001}])

    assert "10,000 characters" in assert_problem(reply, 422, "10,001")["detail"]
    assert await contents(api, path) == []


async def test_the_path_takes_nothing_else(api: Api) -> None:
    """A batch can only be appended."""
    path = await api.conversation()

    for method in ("GET", "PATCH", "DELETE"):
        reply = await api.client.request(method, f"{path}/messages/batch", json={} if method == "PATCH" else None)
        assert_problem(reply, 405)
        assert reply.headers["allow"] == "POST"
