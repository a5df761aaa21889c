"""Conversations over HTTP."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from chatkeep import NewConversation, open_store
from conftest import STORES
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

UNKNOWN = "/api/conversations/0190f0f0-0000-7000-8000-000000000000"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    url = STORES[request.param](tmp_path_factory.mktemp("store"))
    async with open_store(url) as store, serving(store) as api:
        yield api


async def test_create_returns_what_was_stored(api: Api) -> None:
    """A created conversation comes back with its id, its values, no messages, and the path it has."""
    values = {"title": "Tea", "context_id": "kitchen", "external_id": "x-1", "metadata": {"language": "en"}}

    reply = await api.client.post("/api/conversations", json=values)

    assert reply.status_code == 201
    created = reply.json()
    assert {name: created[name] for name in values} == values
    assert (created["owner_id"], created["last_seq"], created["head_id"]) == ("local", 0, None)
    assert created["created_at"] == created["updated_at"]
    assert reply.headers["location"] == f"/api/conversations/{created['id']}"
    assert (await api.client.get(reply.headers["location"])).json()["title"] == "Tea"


async def test_create_needs_no_value(api: Api) -> None:
    """An empty object makes a conversation without a title."""
    reply = await api.client.post("/api/conversations", json={})

    assert reply.status_code == 201
    assert reply.json()["title"] is None


async def test_create_is_idempotent_by_id(api: Api) -> None:
    """The same id and values again give the same conversation; other values are a conflict."""
    values = {"id": str(uuid.uuid4()), "title": "Tea"}
    first = await api.client.post("/api/conversations", json=values)
    again = await api.client.post("/api/conversations", json=values)
    other = await api.client.post("/api/conversations", json={**values, "title": "zq7marker"})

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert_problem(other, 409, "zq7marker", values["id"])


async def test_latest_conversation_is_reused(api: Api) -> None:
    """With reuse_latest, requests at the same moment get one and the same conversation, with status 200."""
    body = {"context_id": uuid.uuid4().hex, "reuse_latest": True}

    replies = await asyncio.gather(*(api.client.post("/api/conversations", json=body) for _ in range(8)))

    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert "reuse_latest" not in replies[0].json()


async def test_reuse_latest_is_true_or_false(api: Api) -> None:
    """Text that looks like a boolean is not taken for one."""
    reply = await api.client.post("/api/conversations", json={"reuse_latest": "true"})

    assert assert_problem(reply, 422)["errors"] == [{"field": "reuse_latest", "message": "must be true or false"}]


async def test_list_is_by_update_and_by_context(api: Api) -> None:
    """The list shows the conversations of a context, the most recently updated first, ten unless told."""
    context = uuid.uuid4().hex
    paths = [await api.conversation(title=str(number), context_id=context) for number in range(12)]
    await api.say(paths[3], "moved to the front")

    page = (await api.client.get("/api/conversations", params={"context_id": context})).json()

    assert [item["title"] for item in page["items"]] == ["3", *map(str, range(11, 4, -1)), "4", "2"]
    assert page["total"] is None
    assert page["next"]


async def test_list_by_cursor(api: Api) -> None:
    """Cursors lead through the whole list, in both orders, without a repetition; the last page has none."""
    context = uuid.uuid4().hex
    made = {(await api.conversation(context_id=context)).rpartition("/")[2] for _ in range(7)}

    for order in ("updated", "id"):
        query = {"context_id": context, "limit": "3", "order": order}
        seen: list[str] = []
        while True:
            page = (await api.client.get("/api/conversations", params=query)).json()
            seen += [item["id"] for item in page["items"]]
            if page["next"] is None:
                break
            query["cursor"] = page["next"]
        assert len(seen) == 7
        assert set(seen) == made
    assert seen in (sorted(seen), sorted(seen, reverse=True))


async def test_list_by_page_and_offset(api: Api) -> None:
    """A page number implies the total; offset passes over items; total=true counts without a page."""
    context = uuid.uuid4().hex
    for number in range(5):
        await api.conversation(title=str(number), context_id=context)
    query = {"context_id": context, "limit": "2"}

    second = (await api.client.get("/api/conversations", params={**query, "page": "2"})).json()
    beyond = (await api.client.get("/api/conversations", params={**query, "page": "9"})).json()
    passed = (await api.client.get("/api/conversations", params={**query, "offset": "3"})).json()
    counted = (await api.client.get("/api/conversations", params={**query, "total": "true"})).json()

    assert ([item["title"] for item in second["items"]], second["total"]) == (["2", "1"], 5)
    assert (beyond["items"], beyond["total"], beyond["next"]) == ([], 5, None)
    assert ([item["title"] for item in passed["items"]], passed["total"]) == (["1", "0"], None)
    assert counted["total"] == 5


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-1", "limit"),
        ("limit=201", "limit"),
        ("limit=", "limit"),
        ("limit=1.0", "limit"),
        ("limit=1_0", "limit"),
        ("limit=%2010", "limit"),
        pytest.param(f"limit={'9' * 4000}", "limit", id="limit of 4,000 digits"),
        ("page=0", "page"),
        ("page=-1", "page"),
        ("offset=-1", "offset"),
        ("offset=10001", "offset"),
        ("order=newest", "order"),
        ("total=perhaps", "total"),
        ("context_id=", "context_id"),
        pytest.param(f"context_id={'x' * 256}", "context_id", id="context_id of 256 characters"),
        ("page=1&cursor=abc", "query"),
        ("page=1&offset=5", "query"),
        ("page=1002&limit=10", "query"),
        ("page=52&limit=200", "query"),
        ("colour=zq7marker", "query"),
    ],
)
async def test_list_refuses(api: Api, query: str, field: str) -> None:
    """What a list cannot do is refused, with the field at fault; nothing is coerced into the bounds."""
    problem = assert_problem(await api.client.get(f"/api/conversations?{query}"), 422, "zq7marker", "9" * 100)

    assert [error["field"] for error in problem["errors"]] == [field]


async def test_list_reaches_as_far_as_ten_thousand(api: Api) -> None:
    """The furthest page and offset are possible."""
    for query in ("page=1001&limit=10", "page=51&limit=200", "offset=10000"):
        assert (await api.client.get(f"/api/conversations?{query}")).status_code == 200


async def test_cursor_of_another_list_is_refused(api: Api) -> None:
    """A cursor goes with the filters of its list, and with nothing that a client made up."""
    context = uuid.uuid4().hex
    for _ in range(2):
        await api.conversation(context_id=context)
    page = (await api.client.get("/api/conversations", params={"context_id": context, "limit": "1"})).json()

    for query in (
        {"cursor": page["next"], "context_id": "another"},
        {"cursor": page["next"], "context_id": context, "order": "id"},
        {"cursor": "zq7marker", "context_id": context},
        {"cursor": "zq7märker", "context_id": context},
        {"cursor": page["next"], "context_id": context, "offset": "1"},
    ):
        reply = await api.client.get("/api/conversations", params=query)
        assert_problem(reply, 422, "zq7m", context, page["next"])


async def test_get_carries_the_newest_messages(api: Api) -> None:
    """A conversation comes with its newest 50 messages, oldest first, and the cursor for the older ones."""
    path = await api.conversation()
    for number in range(55):
        await api.say(path, f"{number}")

    whole = (await api.client.get(path)).json()
    few = (await api.client.get(path, params={"messages": "2"})).json()
    none = (await api.client.get(path, params={"messages": "0"})).json()
    older = (await api.client.get(f"{path}/messages", params={"cursor": whole["messages"]["next"]})).json()

    assert [item["content"] for item in whole["messages"]["items"]] == [str(n) for n in range(5, 55)]
    assert [item["content"] for item in few["messages"]["items"]] == ["53", "54"]
    assert none["messages"] == {"items": [], "total": None, "next": None}
    assert [item["content"] for item in older["items"]] == [str(n) for n in range(5)]
    assert older["next"] is None


@pytest.mark.parametrize("messages", ["-1", "201", "x"])
async def test_get_refuses_a_bad_number_of_messages(api: Api, messages: str) -> None:
    """The number of messages to carry is 0 to 200."""
    path = await api.conversation()

    problem = assert_problem(await api.client.get(path, params={"messages": messages}), 422)

    assert problem["errors"][0]["field"] == "messages"


async def test_patch_merges(api: Api) -> None:
    """What a merge patch leaves out stays, null removes, objects are merged; updated_at does not move."""
    path = await api.conversation(title="Tea", metadata={"keep": 1, "drop": 2, "deep": {"a": 1, "b": 2}})
    before = (await api.client.get(path)).json()

    patch = {"metadata": {"drop": None, "deep": {"a": None, "c": 3}, "new": "x"}}
    patched = await api.client.patch(path, json=patch)
    untitled = await api.client.patch(path, json={"title": None})
    cleared = await api.client.patch(path, json={"metadata": None})
    nothing = await api.client.patch(path, json={})

    assert patched.status_code == 200
    assert patched.json()["title"] == "Tea"
    assert patched.json()["metadata"] == {"keep": 1, "deep": {"b": 2, "c": 3}, "new": "x"}
    assert patched.json()["updated_at"] == before["updated_at"]
    assert untitled.json()["title"] is None
    assert cleared.json()["metadata"] == {}
    assert nothing.json() == cleared.json()


async def test_patch_takes_both_media_types(api: Api) -> None:
    """A patch may call itself a merge patch or plain JSON."""
    path = await api.conversation()

    for media_type in ("application/merge-patch+json", "application/json; charset=utf-8"):
        reply = await api.client.patch(path, content=b'{"title": "x"}', headers={"Content-Type": media_type})
        assert reply.status_code == 200


async def test_patch_moves_the_head(api: Api) -> None:
    """The next message follows the head that was set; null begins anew at the root."""
    path = await api.conversation()
    first = await api.say(path, "first")
    await api.say(path, "second")

    assert (await api.client.patch(path, json={"head_id": first["id"]})).json()["head_id"] == first["id"]
    assert (await api.say(path, "another second"))["parent_id"] == first["id"]
    assert (await api.client.patch(path, json={"head_id": None})).json()["head_id"] is None
    assert (await api.say(path, "another first"))["parent_id"] is None


@pytest.mark.parametrize(
    ("patch", "status"),
    [
        ({"head_id": "0190f0f0-0000-7000-8000-0000000000aa"}, 404),
        ({"head_id": "zq7marker"}, 422),
        ({"title": ""}, 422),
        ({"title": " "}, 422),
        ({"title": "x" * 256}, 422),
        ({"title": 7}, 422),
        ({"metadata": ["zq7marker"]}, 422),
        ({"owner_id": "zq7marker"}, 422),
        (["zq7marker"], 422),
        ("zq7marker", 422),
    ],
)
async def test_patch_refuses(api: Api, patch: object, status: int) -> None:
    """A change that is not possible is refused whole."""
    path = await api.conversation(title="Tea")

    reply = await api.client.patch(path, json=patch)

    assert_problem(reply, status, "zq7marker", "0000000000aa")
    assert (await api.client.get(path)).json()["title"] == "Tea"


async def test_delete(api: Api) -> None:
    """A deleted conversation is gone with its messages; deleting it again is 404."""
    path = await api.conversation()
    message = await api.say(path, "x")

    deleted = await api.client.delete(path)

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(await api.client.delete(path), 404)
    assert_problem(await api.client.get(path), 404)
    assert_problem(await api.client.get(f"{path}/messages/{message['id']}"), 404)


async def test_unknown_conversation_is_404(api: Api) -> None:
    """Every route of a conversation says 404 where there is none, and does not repeat the id."""
    for method, path, body in (
        ("GET", "", None),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"role": "user", "content": "x"}),
        ("POST", "/messages/batch", {"messages": [{"role": "user", "content": "x"}]}),
        ("PATCH", f"/messages/{uuid.uuid4()}", {"metadata": {"a": 1}}),
        ("GET", f"/messages/{uuid.uuid4()}", None),
        ("DELETE", f"/messages/{uuid.uuid4()}", None),
        ("GET", f"/messages/{uuid.uuid4()}/siblings", None),
    ):
        assert_problem(await api.client.request(method, UNKNOWN + path, json=body), 404, UNKNOWN[-36:])


async def test_somebody_elses_conversation_is_403(api: Api) -> None:
    """A conversation of another owner is refused on every route, and stays as it is."""
    theirs = await api.store.create_conversation("ada", NewConversation(title="zq7marker"))
    path = f"/api/conversations/{theirs.id}"

    for method, tail, body in (
        ("GET", "", None),
        ("PATCH", "", {"title": "x"}),
        ("DELETE", "", None),
        ("GET", "/messages", None),
        ("POST", "/messages", {"role": "user", "content": "x"}),
        ("POST", "/messages/batch", {"messages": [{"role": "user", "content": "x"}]}),
        ("PATCH", f"/messages/{uuid.uuid4()}", {"metadata": {"a": 1}}),
        ("GET", f"/messages/{uuid.uuid4()}", None),
        ("DELETE", f"/messages/{uuid.uuid4()}", None),
        ("GET", f"/messages/{uuid.uuid4()}/siblings", None),
    ):
        assert_problem(await api.client.request(method, path + tail, json=body), 403, "zq7marker", str(theirs.id))
    assert await api.store.get_conversation("ada", theirs.id) == theirs


async def test_malformed_id_is_422(api: Api) -> None:
    """An id that is no UUID is refused without being repeated."""
    for tail in ("", "/messages", "/messages/0190f0f0-0000-7000-8000-000000000001"):
        assert_problem(await api.client.get(f"/api/conversations/zq7marker{tail}"), 422, "zq7marker")
