"""Lists by project, external id, label and time, and get-or-create by external id, over HTTP."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio

from chatkeep import open_store
from chatkeep.model import ImportedConversation
from conftest import STORES
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATH = "/api/conversations"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    url = STORES[request.param](tmp_path_factory.mktemp("store"))
    async with open_store(url) as store, serving(store) as api:
        yield api


async def project(api: Api, owner: str = "local") -> str:
    """The id of a new project of an owner, which an import makes."""
    id_ = uuid.uuid4()
    made = ImportedConversation(id=uuid.uuid4(), project_id=id_, project_name="Tea")
    await api.store.import_conversation(owner, made)
    await api.store.delete_conversation(owner, made.id or "")
    return str(id_)


async def titles(api: Api, **query: Any) -> list[str]:
    reply = await api.client.get(PATH, params=query)
    assert reply.status_code == 200, reply.text
    return [item["title"] for item in reply.json()["items"]]


# --- lists ------------------------------------------------------------------------------------------------


async def test_list_of_a_project(api: Api) -> None:
    """A list may be of one project, also of one context in it; of an unknown one it is empty."""
    tea, context = await project(api), uuid.uuid4().hex
    await api.conversation(title="outside", context_id=context)
    await api.conversation(title="one", project_id=tea)
    await api.conversation(title="two", project_id=tea, context_id=context)

    assert await titles(api, project_id=tea) == ["two", "one"]
    assert await titles(api, project_id=tea, context_id=context) == ["two"]
    assert await titles(api, project_id=str(uuid.uuid4())) == []


async def test_list_by_external_id(api: Api) -> None:
    """An external id finds all conversations that have it, the most recently updated first."""
    foreign = f"thread é {uuid.uuid4()}"
    first = await api.conversation(title="one", external_id=foreign)
    await api.conversation(title="two", external_id=foreign)
    await api.say(first, "hello")

    assert await titles(api, external_id=foreign) == ["one", "two"]
    assert await titles(api, external_id=foreign.upper()) == []


async def test_list_by_labels(api: Api) -> None:
    """Labels may be repeated: all must be there, and none of those after a `!`; pages and totals keep to them."""
    context = uuid.uuid4().hex
    for title, labels in (("a", ["pinned"]), ("b", ["pinned", "archived"]), ("c", []), ("d", ["archived", "old é"])):
        await api.conversation(title=title, labels=labels, context_id=context)

    assert await titles(api, context_id=context, label="pinned") == ["b", "a"]
    assert await titles(api, context_id=context, label=["pinned", "!archived"]) == ["a"]
    assert await titles(api, context_id=context, label="!archived") == ["c", "a"]
    assert await titles(api, context_id=context, label=["archived", "old é"]) == ["d"]
    assert await titles(api, context_id=context, label=["pinned", "!pinned"]) == []
    page = (await api.client.get(PATH, params={"context_id": context, "label": "pinned", "limit": 1, "page": 1})).json()
    assert (page["total"], [item["title"] for item in page["items"]]) == (2, ["b"])
    following = {"context_id": context, "label": "pinned", "limit": 1, "cursor": page["next"]}
    assert await titles(api, **following) == ["a"]
    assert_problem(await api.client.get(PATH, params={**following, "label": "!pinned"}), 422, page["next"])


async def test_list_by_time(api: Api) -> None:
    """A list may begin after and end before a time, both exclusive, in any zone."""
    context = uuid.uuid4().hex
    times = []
    for title in ("1", "2", "3"):
        path = await api.conversation(title=title, context_id=context)
        times.append((await api.client.get(path)).json()["updated_at"])
    elsewhere = (datetime.fromisoformat(times[1]) + timedelta(hours=1)).isoformat().replace("+00:00", "+01:00")

    assert await titles(api, context_id=context, updated_after=times[0]) == ["3", "2"]
    assert await titles(api, context_id=context, updated_before=times[1]) == ["1"]
    assert await titles(api, context_id=context, updated_before=elsewhere) == ["1"]
    assert await titles(api, context_id=context, updated_after=times[0], updated_before=times[2]) == ["2"]
    assert await titles(api, context_id=context, updated_after="2999-01-01T00:00:00.123456Z") == []


TIME = "must be a date and time with a time zone, such as 2026-01-31T12:00:00Z"
MANY = "&".join(f"label={number}" for number in range(33))


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ("project_id=zq7marker", "project_id", None),
        ("external_id=", "external_id", "must not be empty"),
        (f"external_id={'zq7' * 90}", "external_id", "may have at most 255 characters"),
        ("label=", "label.0", "must not be empty"),
        ("label=!", "label.0", "must not be empty"),
        ("label=zq7marker&label=!!zq7marker", "label.1", "must not begin with '!'"),
        ("label=%20", "label.0", "must not be blank"),
        (f"label=!{'zq7' * 22}", "label.0", "may have at most 64 characters"),
        pytest.param(MANY, "label", "may have at most 32 items", id="33 labels"),
        ("updated_after=zq7marker", "updated_after", f"{TIME}; write + as %2B"),
        ("updated_after=1769860800", "updated_after", f"{TIME}; write + as %2B"),
        ("updated_before=2026-01-31", "updated_before", f"{TIME}; write + as %2B"),
        ("updated_before=2026-01-31T12:00:00", "updated_before", f"{TIME}; write + as %2B"),
        ("updated_before=2026-01-31T12:00:00+01:00", "updated_before", f"{TIME}; write + as %2B"),
        ("updated_before=2026-02-31T12:00:00Z", "updated_before", TIME),
        ("updated_before=0001-01-01T00:00:00%2B02:00", "updated_before", "is outside the years 1 to 9999"),
        ("updated_after=2026-01-31T12:00:00Z&order=id", "query", None),
        ("updated_before=2026-01-31T12:00:00Z&order=id", "query", None),
        ("labels=zq7marker", "query", None),
    ],
)
async def test_filters_are_refused(api: Api, query: str, field: str, message: str | None) -> None:
    """A filter that is malformed or unknown is refused, with its name and nothing of its value."""
    problem = assert_problem(await api.client.get(f"{PATH}?{query}"), 422, "zq7")

    assert [error["field"] for error in problem["errors"]] == [field]
    assert message in (None, problem["errors"][0]["message"])


# --- creation and change ----------------------------------------------------------------------------------


async def test_labels_are_kept(api: Api) -> None:
    """Labels come back in their order, each once; a patch replaces them, and sets the context."""
    path = await api.conversation(labels=["pinned", "é", "pinned"], context_id="kitchen")
    before = (await api.client.get(path)).json()
    del before["messages"]

    changed = await api.client.patch(path, json={"labels": ["archived"], "context_id": "cellar"})
    cleared = await api.client.patch(path, json={"labels": [], "context_id": None})

    assert before["labels"] == ["pinned", "é"]
    assert changed.json() == {**before, "labels": ["archived"], "context_id": "cellar"}
    assert cleared.json() == {**before, "labels": [], "context_id": None}
    assert (await api.client.patch(path, json={"title": "x"})).json()["labels"] == []


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"labels": "zq7marker"}, "labels", "must be a list"),
        ({"labels": None}, "labels", "must be a list"),
        ({"labels": ["x", "!zq7marker"]}, "labels.1", "must not begin with '!'"),
        ({"labels": [""]}, "labels.0", "must not be empty"),
        ({"labels": ["x" * 65]}, "labels.0", "may have at most 64 characters"),
        ({"labels": [7, 8, 9]}, "labels.0", "must be text"),
        ({"labels": [f"{number}" for number in range(33)]}, "labels", "may have at most 32 items"),
        ({"context_id": ""}, "context_id", "must not be empty"),
        ({"project_id": "zq7marker"}, "project_id", None),
    ],
)
async def test_values_of_a_conversation_are_refused(
    api: Api, values: dict[str, Any], field: str, message: str | None
) -> None:
    """Labels, context and project of a conversation have bounds, when it is created and when it is changed."""
    path = await api.conversation(labels=["kept"])
    replies = [await api.client.post(PATH, json=values)]
    if field != "project_id":
        replies.append(await api.client.patch(path, json=values))

    for reply in replies:
        problem = assert_problem(reply, 422, "zq7")
        assert [error["field"] for error in problem["errors"]] == [field]
        assert message in (None, problem["errors"][0]["message"])
    assert (await api.client.get(path)).json()["labels"] == ["kept"]


async def test_the_project_stays(api: Api) -> None:
    """A conversation keeps its project: a patch does not know the field."""
    tea = await project(api)
    path = await api.conversation(project_id=tea)

    assert "known are title" in assert_problem(await api.client.patch(path, json={"project_id": None}), 422)["detail"]
    assert (await api.client.get(path)).json()["project_id"] == tea


@pytest.mark.parametrize("values", [{}, {"reuse_latest": True}, {"reuse_latest": True, "external_id": "x"}])
async def test_a_project_has_to_be_ones_own(api: Api, values: dict[str, Any]) -> None:
    """An unknown project and somebody else's are the same: 404, and nothing is created."""
    theirs, unknown = await project(api, "ada"), str(uuid.uuid4())
    context = {"context_id": uuid.uuid4().hex}

    replies = [await api.client.post(PATH, json={**values, **context, "project_id": id_}) for id_ in (theirs, unknown)]

    assert replies[0].content == replies[1].content
    for reply in replies:
        assert "project" in assert_problem(reply, 404, theirs, unknown)["detail"]
    assert await titles(api, **context) == []


async def test_a_conversation_is_found_by_its_external_id(api: Api) -> None:
    """With reuse_latest and an external id, whoever comes gets one conversation, which the first of them makes."""
    body = {"reuse_latest": True, "external_id": f"thread {uuid.uuid4()}", "labels": ["foreign"], "title": "first"}

    replies = await asyncio.gather(*(api.client.post(PATH, json=body) for _ in range(8)))
    later = await api.client.post(PATH, json={**body, "title": "later", "context_id": "elsewhere"})

    assert {reply.status_code for reply in replies} == {200}
    assert len({reply.json()["id"] for reply in replies}) == 1
    assert later.json() == replies[0].json()
    assert later.headers["location"] == f"{PATH}/{later.json()['id']}"
    assert (later.json()["title"], later.json()["labels"]) == ("first", ["foreign"])


async def test_keys_do_not_make_the_id_of_an_external_id(api: Api) -> None:
    """With a key, a get-or-create by external id finds the same conversation as without, whatever the key."""
    body = {"reuse_latest": True, "external_id": f"thread {uuid.uuid4()}"}

    made = await api.client.post(PATH, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
    await api.client.delete(made.headers["location"])
    again = await api.client.post(PATH, json=body, headers={"Idempotency-Key": uuid.uuid4().hex})
    without = await api.client.post(PATH, json=body)

    assert (made.status_code, again.status_code, without.status_code) == (200, 200, 200)
    assert made.json()["id"] == again.json()["id"] == without.json()["id"]


async def test_an_id_beside_the_external_id(api: Api) -> None:
    """The external id makes the id of a get-or-create; a plain creation may have both."""
    values = {"id": str(uuid.uuid4()), "external_id": "thread 1"}

    for headers in ({}, {"Idempotency-Key": uuid.uuid4().hex}):
        reply = await api.client.post(PATH, json={**values, "reuse_latest": True}, headers=headers)
        problem = assert_problem(reply, 422, values["id"], "thread 1")
        assert "id and external_id cannot be used together with reuse_latest" in problem["detail"]
    assert (await api.client.post(PATH, json=values)).json()["id"] == values["id"]
    latest = {"id": str(uuid.uuid4()), "reuse_latest": True, "context_id": uuid.uuid4().hex}
    assert (await api.client.post(PATH, json=latest)).json()["id"] == latest["id"]
