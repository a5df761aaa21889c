"""Parts, counts and changes of messages over HTTP."""

import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from chatkeep import open_store
from conftest import STORES
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
MERGE_PATCH = {"Content-Type": "application/merge-patch+json"}
FILE: dict[str, Any] = {"type": "file", "file_id": "f-1", "media_type": "image/png", "size": 2**70}
PARTS: list[dict[str, Any]] = [
    {"type": "reasoning", "text": "Tea …", "signature": "c2ln\0bmF0dXJl/+=="},
    {"type": "text", "text": "About "},
    {"type": "tool_call", "id": "call-1", "name": "heat", "arguments": '{"tea": "gre'},
    {"type": "tool_result", "tool_call_id": "call-1", "content": [{"deep": [None, 1.5]}], "is_error": False},
    {"type": "text", "text": "80 °C.", "annotations": []},
    {"type": "vendor_x", "z": 1, "a": 2},
    FILE,
]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    url = STORES[request.param](tmp_path_factory.mktemp("store"))
    async with open_store(url) as store, serving(store) as api:
        yield api


async def append(api: Api, path: str, **values: Any) -> Any:
    return await api.client.post(f"{path}/messages", json=values)


# --- parts and counts -------------------------------------------------------------------------------------


async def test_parts_come_back(api: Api) -> None:
    """Parts of known and of other types come back as they were sent, in every route that shows a message."""
    path, word = await api.conversation(), uuid.uuid4().hex
    parts = [*PARTS, {"type": "text", "text": f" {word}"}]

    reply = await append(api, path, role="assistant", content=None, parts=parts)

    assert reply.status_code == 201
    stored = reply.json()
    assert stored["parts"] == parts
    assert [list(part) for part in stored["parts"]] == [list(part) for part in parts]
    assert stored["content"] == f"About 80 °C. {word}"
    where = f"{path}/messages/{stored['id']}"
    assert (await api.client.get(where)).json() == stored
    assert (await api.client.get(f"{path}/messages")).json()["items"] == [stored]
    assert (await api.client.get(f"{where}/siblings")).json()["items"] == [stored]
    assert (await api.client.get(path)).json()["messages"]["items"] == [stored]
    [hit] = (await api.client.get(f"/api/search?q={word}")).json()["items"]
    assert hit["message"] == stored


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}], ids=["absent", "null", "empty"])
async def test_a_file_may_be_all_that_a_user_sends(api: Api, content: dict[str, Any]) -> None:
    """A user's message may be a file without a text."""
    path = await api.conversation()

    reply = await append(api, path, role="user", parts=[FILE], **content)

    assert reply.status_code == 201
    assert (reply.json()["content"], reply.json()["parts"]) == ("", [FILE])


async def test_parts_and_content_may_differ(api: Api) -> None:
    """A content that is given is kept; without parts they are null, as they are if the list is empty."""
    path = await api.conversation()

    both = await append(api, path, role="user", content="short", parts=[{"type": "text", "text": "long"}])
    none = await append(api, path, role="user", content="x")
    empty = await append(api, path, role="user", content="x", parts=[])

    assert (both.json()["content"], both.json()["parts"]) == ("short", [{"type": "text", "text": "long"}])
    assert (none.json()["parts"], empty.json()["parts"]) == (None, None)


async def test_counts_come_back(api: Api) -> None:
    """The model, its tokens and its time come back, and are null if they are not known."""
    path = await api.conversation()
    counts = {"model": "example-1", "input_tokens": 2**63 - 1, "output_tokens": 0, "duration_ms": 850}

    known = await append(api, path, role="assistant", content="x", **counts)
    unknown = await append(api, path, role="assistant", content="x")

    assert {name: known.json()[name] for name in counts} == counts
    assert {name: unknown.json()[name] for name in counts} == dict.fromkeys(counts)


async def test_parts_are_a_part_of_the_retry(api: Api) -> None:
    """The same id with other parts or counts is a conflict."""
    path = await api.conversation()
    values = {"id": str(uuid.uuid4()), "role": "assistant", "parts": PARTS, "input_tokens": 1}

    first = await append(api, path, **values)
    again = await append(api, path, **values)

    assert first.content == again.content
    assert_problem(await append(api, path, **{**values, "parts": PARTS[:-1]}), 409)
    assert_problem(await append(api, path, **{**values, "input_tokens": 2}), 409)


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"parts": "zq7marker"}, "parts", "must be a list of objects, each with a type"),
        ({"parts": {"type": "zq7"}}, "parts", "must be a list of objects, each with a type"),
        ({"parts": [{"zq7": 1}]}, "parts", "must be a list of objects, each with a type"),
        ({"parts": [{"type": 7, "zq7": 1}]}, "parts", "must be a list of objects, each with a type"),
        ({"parts": [{"type": ""}]}, "parts", "must be a list of objects, each with a type"),
        ({"parts": [{"type": "text", "zq7": 1}]}, "body", "the content of a user message must not be blank"),
        ({"parts": [{"type": "text", "text": 7}]}, "body", "the content of a user message must not be blank"),
        ({"parts": [{"type": "text", "text": " "}]}, "body", "the content of a user message must not be blank"),
        ({"parts": [{"type": "reasoning", "text": "zq7"}]}, "body", "the content of a user message must not be blank"),
        ({"content": None}, "body", "the content of a user message must not be blank"),
        ({}, "body", "content or parts must be given"),
        ({"content": "x", "status": "in_progress"}, "body", "a new message cannot be in progress"),
        ({"content": "x", "model": ""}, "model", "must not be empty"),
        ({"content": "x", "model": "zq7" * 90}, "model", "may have at most 255 characters"),
        ({"content": "x", "input_tokens": -1}, "input_tokens", "must be at least 0"),
        ({"content": "x", "output_tokens": 1.5}, "output_tokens", "must be a whole number"),
        ({"content": "x", "output_tokens": "7"}, "output_tokens", "must be a whole number"),
        ({"content": "x", "duration_ms": 2**63}, "duration_ms", "must be at most 9223372036854775807"),
        ({"content": "x", "duration_ms": True}, "duration_ms", "must be a whole number"),
    ],
)
async def test_parts_are_refused(api: Api, values: dict[str, Any], field: str, message: str) -> None:
    """What is no part, and what is no count, is refused with its field and nothing of what was sent."""
    path = await api.conversation()

    problem = assert_problem(await append(api, path, role="user", **values), 422, "zq7")

    assert problem["errors"] == [{"field": field, "message": message}]


TOO_MUCH = {
    "levels": ('{"type":"x","k":' + "[" * 99 + "]" * 99 + "}", "at most 100 levels"),
    "digits": (f'{{"type":"x","k":{"9" * 4_301}}}', "at most 4,300 digits"),
    "values": ('{"type":"x"},' * 50_000 + '{"type":"x"}', "at most 100,000 values"),
}


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_parts_beyond_a_limit_are_refused(api: Api, name: str) -> None:
    """Parts have the limits that metadata has, alone and in a batch."""
    path = await api.conversation()
    parts, message = TOO_MUCH[name]
    one = f'{{"role":"assistant","parts":[{parts}]}}'
    for where, body in (("messages", one), ("messages/batch", f'{{"messages":[{one}]}}')):
        reply = await api.client.post(f"{path}/{where}", content=body.encode(), headers=JSON)
        assert message in assert_problem(reply, 422, "9" * 20)["detail"]


async def test_most_parts() -> None:
    """Parts of 100 levels pass; 8 MiB of them pass if the server takes such a body, and one byte more does not."""
    async with open_store("memory://") as store, serving(store, max_body_bytes=9 << 20) as api:
        path = await api.conversation()
        deep = '{"role":"assistant","parts":[{"type":"x","k":' + "[" * 98 + "]" * 98 + "}]}"
        reply = await api.client.post(f"{path}/messages", content=deep.encode(), headers=JSON)
        assert reply.status_code == 201, reply.text
        around = len('[{"type":"text","text":""}]')
        for more, status in ((0, 201), (1, 422)):
            text = "x" * ((8 << 20) - around + more)
            reply = await append(api, path, role="assistant", parts=[{"type": "text", "text": text}])
            assert reply.status_code == status, reply.text[:200]
        assert assert_problem(reply, 422)["detail"] == "parts may have at most 8,388,608 bytes as JSON"


# --- changes ----------------------------------------------------------------------------------------------


async def test_metadata_of_a_message_is_merged(api: Api) -> None:
    """A merge patch changes the metadata, key by key, and nothing else; a late retry is known all the same."""
    path = await api.conversation()
    values = {"id": str(uuid.uuid4()), "role": "assistant", "parts": PARTS, "metadata": {"keep": 1, "drop": 2}}
    before = (await append(api, path, **values)).json()
    conversation = (await api.client.get(path)).json()
    where = f"{path}/messages/{values['id']}"

    patch = {"metadata": {"drop": None, "feedback": {"stars": 5}}}
    changed = await api.client.patch(where, json=patch, headers=MERGE_PATCH)
    plain = await api.client.patch(where, json={"metadata": {"feedback": {"text": "good"}}})
    nothing = await api.client.patch(where, json={})

    assert changed.status_code == 200
    assert changed.json() == {**before, "metadata": {"keep": 1, "feedback": {"stars": 5}}}
    assert plain.json()["metadata"] == {"keep": 1, "feedback": {"stars": 5, "text": "good"}}
    assert nothing.json() == plain.json() == (await api.client.get(where)).json()
    assert (await append(api, path, **values)).json() == plain.json()
    assert (await api.client.get(path)).json()["updated_at"] == conversation["updated_at"]
    assert (await api.client.patch(where, json={"metadata": None})).json() == {**before, "metadata": {}}


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"content": "zq7marker"}, "body"),
        ({"metadata": ["zq7marker"]}, "metadata"),
        ({"metadata": {"k": "x" * (1 << 20)}}, "metadata"),
        (["zq7marker"], "body"),
        ({f"zq7{number}": 1 for number in range(20_000)}, "body"),
    ],
)
async def test_a_change_is_refused(api: Api, patch: Any, field: str) -> None:
    """Only metadata can be changed, within its limits."""
    path = await api.conversation()
    message = await api.say(path, "x", metadata={"a": 1})
    where = f"{path}/messages/{message['id']}"

    problem = assert_problem(await api.client.patch(where, json=patch, headers=MERGE_PATCH), 422, "zq7")

    assert [error["field"] for error in problem["errors"]] == [field]
    assert (await api.client.get(where)).json() == message


async def test_changes_cannot_make_a_message_too_large(api: Api) -> None:
    """Many small changes are refused from the limit on."""
    path = await api.conversation()
    message = await api.say(path, "x", metadata={"a": "x" * 600_000})

    reply = await api.client.patch(f"{path}/messages/{message['id']}", json={"metadata": {"b": "x" * 600_000}})

    assert assert_problem(reply, 422)["detail"].startswith("metadata may have at most 1,048,576 bytes")


async def test_a_deleted_message_cannot_be_changed(api: Api) -> None:
    """A deleted message, and one that is not there, are 404; an id that is none is 422."""
    path = await api.conversation()
    message = await api.say(path, "x")
    await api.client.delete(f"{path}/messages/{message['id']}")

    for id_, status in ((message["id"], 404), (uuid.uuid4(), 404), ("zq7marker", 422)):
        reply = await api.client.patch(f"{path}/messages/{id_}", json={"metadata": {"a": 1}})
        assert_problem(reply, status, "zq7marker", message["id"])
