"""Messages over HTTP."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from chatkeep import open_store
from chatkeep.model import Source
from conftest import STORES
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

JSON = {"Content-Type": "application/json"}
SOURCE = {
    "document_id": "0190f0ef-1111-7222-8333-444455556666",
    "file_path": "tea/green.md",
    "header_anchor": "heat",
    "similarity_score": 0.83,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    url = STORES[request.param](tmp_path_factory.mktemp("store"))
    async with open_store(url) as store, serving(store, provider="none") as api:
        yield api


async def contents(api: Api, path: str, **query: object) -> list[str]:
    reply = await api.client.get(f"{path}/messages", params={name: str(value) for name, value in query.items()})
    assert reply.status_code == 200, reply.text
    return [item["content"] for item in reply.json()["items"]]


# --- appending --------------------------------------------------------------------------------------------


async def test_append_returns_what_was_stored(api: Api) -> None:
    """An appended message comes back with every value, its seq and its place, and can be read at its path."""
    path = await api.conversation()
    values = {
        "id": str(uuid.uuid4()),
        "role": "assistant",
        "content": "About 80 °C.",
        "status": "interrupted",
        "sources": [SOURCE, {**SOURCE, "header_anchor": None}],
        "metadata": {"tokens_used": 42, "nested": [{"a": None}]},
        "external_id": "m-1",
        "sent_at": "2026-01-31T13:00:00.123456+01:00",
    }

    reply = await api.client.post(f"{path}/messages", json=values)

    assert reply.status_code == 201
    stored = reply.json()
    assert {name: stored[name] for name in values} == {**values, "sent_at": "2026-01-31T12:00:00.123456Z"}
    assert (stored["seq"], stored["parent_id"]) == (1, None)
    assert stored["conversation_id"] == path.rpartition("/")[2]
    assert reply.headers["location"] == f"{path}/messages/{values['id']}"
    assert (await api.client.get(reply.headers["location"])).json() == stored


@pytest.mark.parametrize("role", ["user", "assistant", "system", "tool"])
async def test_every_role_can_be_stored(api: Api, role: str) -> None:
    """The four roles are possible; an assistant's or tool's message may be empty."""
    path = await api.conversation()
    content = "" if role in ("assistant", "tool") else "x"

    assert (await api.say(path, content, role=role))["role"] == role


async def test_append_makes_the_title(api: Api) -> None:
    """The first line of the first user message becomes the title where there is none."""
    path = await api.conversation()
    await api.say(path, "How hot?\nFor green tea.")

    assert (await api.client.get(path)).json()["title"] == "How hot?"


async def test_concurrent_appends_get_dense_seqs(api: Api) -> None:
    """Messages sent at the same moment are all stored, each with a seq of its own and no gap."""
    path = await api.conversation()

    stored = await asyncio.gather(*(api.say(path, f"{number}") for number in range(20)))

    assert sorted(message["seq"] for message in stored) == list(range(1, 21))


async def test_parent_absent_and_null_differ(api: Api) -> None:
    """Without parent_id a message follows the head; null puts it at the root; a message's id, after it."""
    path = await api.conversation()
    first = await api.say(path, "first")
    second = await api.say(path, "second")

    assert second["parent_id"] == first["id"]
    assert (await api.say(path, "root", parent_id=None))["parent_id"] is None
    assert (await api.say(path, "branch", parent_id=first["id"]))["parent_id"] == first["id"]
    assert await contents(api, path) == ["first", "branch"]
    assert await contents(api, path, leaf=second["id"]) == ["first", "second"]


async def test_unknown_parent_is_404(api: Api) -> None:
    """A parent that is not in the conversation is a miss inside it."""
    path = await api.conversation()
    body = {"role": "user", "content": "x", "parent_id": "0190f0f0-0000-7000-8000-0000000000aa"}

    assert_problem(await api.client.post(f"{path}/messages", json=body), 404, "0000000000aa")


async def test_retry_is_safe(api: Api) -> None:
    """The same id and content give the same answer again; other content with the id is a conflict."""
    path = await api.conversation()
    body: dict[str, Any] = {"id": str(uuid.uuid4()), "role": "user", "content": "x", "metadata": {"a": 1}}

    first = await api.client.post(f"{path}/messages", json=body)
    again = await api.client.post(f"{path}/messages", json=body)
    other = await api.client.post(f"{path}/messages", json={**body, "content": "zq7marker"})

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.content == again.content
    assert first.headers["location"] == again.headers["location"]
    assert_problem(other, 409, "zq7marker", body["id"])
    assert await contents(api, path) == ["x"]


async def test_idempotency_key_gives_the_id(api: Api) -> None:
    """A key in place of an id makes retries safe: the id is made of owner, conversation and key."""
    path = await api.conversation()
    elsewhere = await api.conversation()
    key = {"Idempotency-Key": "turn-17"}
    body = {"role": "user", "content": "x"}

    first = await api.client.post(f"{path}/messages", json=body, headers=key)
    again = await api.client.post(f"{path}/messages", json=body, headers=key)
    changed = await api.client.post(f"{path}/messages", json={**body, "content": "y"}, headers=key)
    other_key = await api.client.post(f"{path}/messages", json=body, headers={"Idempotency-Key": "turn-18"})
    other_conversation = await api.client.post(f"{elsewhere}/messages", json=body, headers=key)

    assert first.status_code == 201
    assert first.content == again.content
    conversation_id = uuid.UUID(path.rpartition("/")[2])
    assert first.json()["id"] == str(uuid.uuid5(uuid.uuid5(conversation_id, "local"), "turn-17"))
    assert_problem(changed, 409, "turn-17")
    ids = {first.json()["id"], other_key.json()["id"], other_conversation.json()["id"]}
    assert len(ids) == 3


async def test_idempotency_key_and_id(api: Api) -> None:
    """A key beside an id has to mean the same id."""
    path = await api.conversation()
    conversation_id = uuid.UUID(path.rpartition("/")[2])
    made = str(uuid.uuid5(uuid.uuid5(conversation_id, "local"), "zq7marker"))
    own = str(uuid.uuid4())
    body = {"role": "user", "content": "x"}

    same = await api.client.post(
        f"{path}/messages", json={**body, "id": made}, headers={"Idempotency-Key": "zq7marker"}
    )
    text = await api.client.post(f"{path}/messages", json={**body, "id": own}, headers={"Idempotency-Key": own})
    different = await api.client.post(
        f"{path}/messages", json={**body, "id": str(uuid.uuid4())}, headers={"Idempotency-Key": "zq7marker"}
    )

    assert (same.status_code, same.json()["id"]) == (201, made)
    assert (text.status_code, text.json()["id"]) == (201, own)
    assert_problem(different, 422, "zq7marker", own)


@pytest.mark.parametrize("key", ["", "k" * 256], ids=["empty", "256 characters"])
async def test_idempotency_key_has_bounds(api: Api, key: str) -> None:
    """A key is 1 to 255 characters long."""
    path = await api.conversation()

    reply = await api.client.post(
        f"{path}/messages", json={"role": "user", "content": "x"}, headers={"Idempotency-Key": key}
    )

    assert assert_problem(reply, 422, "kkk")["errors"][0]["field"] == "idempotency-key"


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"role": "zq7marker"}, "role"),
        ({"role": None}, "role"),
        ({"role": ...}, "role"),
        ({"content": ...}, "body"),
        ({"content": 7}, "content"),
        ({"content": ""}, "body"),
        ({"content": " \n\t "}, "body"),
        ({"role": "system", "content": " "}, "body"),
        ({"id": "zq7marker"}, "id"),
        ({"id": "0190f0f0-zq7m-arke-r000-000000000000"}, "id"),
        ({"id": 7}, "id"),
        ({"parent_id": "zq7marker"}, "parent_id"),
        ({"status": "deleted"}, "body"),
        ({"status": "in_progress"}, "body"),
        ({"status": "zq7marker"}, "status"),
        ({"metadata": "zq7marker"}, "metadata"),
        ({"metadata": None}, "metadata"),
        ({"external_id": ""}, "external_id"),
        ({"external_id": "zq7marker" * 50}, "external_id"),
        ({"sent_at": "zq7marker"}, "sent_at"),
        ({"sent_at": "2026-01-31T12:00:00"}, "sent_at"),
        ({"sent_at": "2026-13-31T12:00:00Z"}, "sent_at"),
        ({"sent_at": 1769860800}, "sent_at"),
        ({"sources": {"zq7marker": 1}}, "sources"),
        ({"sources": ["zq7marker"]}, "sources.0"),
        ({"zq7marker": 1}, "body"),
        ({"sources": [{**SOURCE, "zq7marker": 1}]}, "sources.0"),
        ({"sources": [{**SOURCE, "document_id": "zq7marker"}]}, "sources.0.document_id"),
        ({"sources": [SOURCE, {**SOURCE, "file_path": " "}]}, "sources.1.file_path"),
        ({"sources": [{**SOURCE, "file_path": "zq7marker" * 500}]}, "sources.0.file_path"),
        ({"sources": [{**SOURCE, "header_anchor": 1}]}, "sources.0.header_anchor"),
        ({"sources": [{**SOURCE, "similarity_score": 1.5}]}, "sources.0.similarity_score"),
        ({"sources": [{**SOURCE, "similarity_score": -1.5}]}, "sources.0.similarity_score"),
        ({"sources": [{**SOURCE, "similarity_score": "zq7marker"}]}, "sources.0.similarity_score"),
        ({"sources": [{"document_id": SOURCE["document_id"], "file_path": "x"}]}, "sources.0.similarity_score"),
    ],
)
async def test_append_refuses(api: Api, change: dict[str, Any], field: str) -> None:
    """A message that is not valid is refused with the field at fault and without a word of what was sent."""
    path = await api.conversation()
    values = {"role": "user", "content": "x", **change}
    body = {name: value for name, value in values.items() if value is not ...}

    problem = assert_problem(await api.client.post(f"{path}/messages", json=body), 422, "zq7")

    assert [error["field"] for error in problem["errors"]] == [field]
    assert await contents(api, path) == []


async def test_unknown_field_is_answered_with_the_known_ones(api: Api) -> None:
    """Who sends a field that does not exist is told which ones do."""
    path = await api.conversation()

    reply = await api.client.post(f"{path}/messages", json={"role": "user", "content": "x", "zq7marker": 1})

    assert "known are id, role, content, parent_id" in assert_problem(reply, 422, "zq7marker")["detail"]


CROWD = {f"zq7{number}": 1 for number in range(5_000)}
KNOWN = (
    "id, role, content, parent_id, status, parts, sources, metadata, model, input_tokens, output_tokens, duration_ms,"
    " external_id, sent_at, answer"
)
KNOWN_OF_SOURCE = ", ".join(Source.model_fields)


@pytest.mark.parametrize(
    ("values", "field", "message"),
    [
        ({"sources": [1] * 1_000}, "sources.0", "must be a JSON object"),
        ({"sources": [SOURCE] * 1_001}, "sources", "may have at most 1,000 items"),
        ({"sources": [SOURCE] * 999 + [1]}, "sources.999", "must be a JSON object"),
        ({"sources": [SOURCE, {**SOURCE, **CROWD}]}, "sources.1", f"has an unknown field; known are {KNOWN_OF_SOURCE}"),
        (CROWD, "body", f"has an unknown field; known are {KNOWN}"),
    ],
)
async def test_many_errors_are_cut(api: Api, values: dict[str, Any], field: str, message: str) -> None:
    """A body with thousands of mistakes is told the first, and no error is made for the others."""
    path = await api.conversation()

    reply = await api.client.post(f"{path}/messages", json={"role": "user", "content": "x", **values})

    assert assert_problem(reply, 422, "zq7")["errors"] == [{"field": field, "message": message}]


async def test_most_sources(api: Api) -> None:
    """A message may have a thousand sources."""
    path = await api.conversation()

    assert len((await api.say(path, "x", sources=[SOURCE] * 1_000))["sources"]) == 1_000


async def test_long_content(api: Api) -> None:
    """A user's message has at most 10,000 characters, and the answer says so; an assistant's may be longer."""
    path = await api.conversation()
    await api.say(path, "😀" * 10_000)
    await api.say(path, "x" * 100_000, role="assistant")

    reply = await api.client.post(f"{path}/messages", json={"role": "user", "content": "x" * 10_001})

    assert "10,000 characters" in assert_problem(reply, 422, "10,001")["detail"]


@pytest.mark.parametrize(
    ("escaped", "kept"),
    [
        (r"a\u0000b", "a\0b"),
        (r"\ud800", "\ufffd"),
        (r"x\udc00\ud800y", "x\ufffd\ufffdy"),
        (r"\ud83d\ude00", "😀"),
        (r"\u00e9 e\u0301", "é e\u0301"),
        ("😀 👩‍👩‍👧 \u202eabc \uffff \ufeff", "😀 👩‍👩‍👧 \u202eabc \uffff \ufeff"),
    ],
    ids=["nul", "lone", "swapped", "pair", "forms", "as it is"],
)
async def test_unicode_comes_back(api: Api, escaped: str, kept: str) -> None:
    """Every valid text comes back as it was sent, NUL included; lone surrogates become U+FFFD, in keys too."""
    path = await api.conversation()
    body = f'{{"role": "user", "content": "{escaped}", "metadata": {{"{escaped}": ["{escaped}"]}}}}'

    reply = await api.client.post(f"{path}/messages", content=body.encode(), headers=JSON)

    assert reply.status_code == 201, reply.text
    assert reply.json()["content"] == kept
    assert reply.json()["metadata"] == {kept: [kept]}
    assert (await api.client.get(f"{path}/messages")).json()["items"] == [reply.json()]


async def test_metadata_keeps_its_numbers_and_its_order(api: Api) -> None:
    """Metadata comes back with big integers, fractions and the order of its keys."""
    path = await api.conversation()
    metadata = {"z": 2**70, "a": -(10**4000), "m": [1.5, 1e300, -0.5, True, None], "": {}}

    stored = await api.say(path, "x", metadata=metadata)

    read = (await api.client.get(f"{path}/messages/{stored['id']}")).json()["metadata"]
    assert list(read.items()) == list(metadata.items())


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("NaN", 422),
        ("Infinity", 422),
        ("-Infinity", 422),
        ("1e999", 422),
        (r'["\u0041", 1e999]', 422),
        pytest.param("9" * 10_000, 422, id="10,000 digits"),
        pytest.param("[" * 99 + "]" * 99, 201, id="100 levels"),
        pytest.param("[[],[]," + "[" * 98 + "]" * 99, 201, id="100 levels, and more beside"),
        pytest.param("[" * 100 + "]" * 100, 422, id="101 levels"),
        pytest.param("[" * 300 + "]" * 300, 422, id="300 levels"),
        pytest.param("[" * 5_000 + "]" * 5_000, 422, id="5,000 levels"),
        pytest.param("[" * 100_000 + "]" * 100_000, 422, id="100,000 lists"),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, 422, id="100,000 objects"),
        pytest.param("[" + "[]," * 5_000 + "[]]", 201, id="5,000 lists side by side"),
        ("01", 422),
        ("'x'", 422),
        ('"\n"', 422),
    ],
)
async def test_metadata_is_strict_json(api: Api, value: str, status: int) -> None:
    """Numbers that JSON does not have, and what is nested or long beyond use, are refused; never a 500."""
    path = await api.conversation()
    body = f'{{"role": "user", "content": "x", "metadata": {{"k": {value}}}}}'

    reply = await api.client.post(f"{path}/messages", content=body.encode(), headers=JSON)

    if status == 422:
        assert_problem(reply, 422, "9" * 20)
    assert reply.status_code == status


TOO_MUCH = {
    "levels": ("[" * 100 + "]" * 100, "at most 100 levels"),
    "digits": ("9" * 4_301, "at most 4,300 digits"),
    "bytes": (f'"{"x" * (1 << 20)}"', "at most 1,048,576 bytes"),
}
"""Values of metadata beyond a limit, and what the error says."""


@pytest.mark.parametrize("name", TOO_MUCH)
async def test_metadata_beyond_a_limit_is_refused(api: Api, name: str) -> None:
    """Every call that takes metadata refuses it with the field and the limit."""
    path = await api.conversation()
    value, message = TOO_MUCH[name]
    for method, where, more in (
        ("POST", f"{path}/messages", '"role": "user", "content": "x", '),
        ("POST", "/api/conversations", ""),
        ("PATCH", path, ""),
    ):
        body = f'{{{more}"metadata": {{"k": {value}}}}}'.encode()
        problem = assert_problem(await api.client.request(method, where, content=body, headers=JSON), 422, "9" * 20)
        assert [error["field"] for error in problem["errors"]] == ["metadata"]
        assert message in problem["detail"]
        assert problem["detail"].startswith("metadata ")
    assert (await api.client.get(f"{path}/messages")).json()["items"] == []


async def test_changes_cannot_make_metadata_too_large(api: Api) -> None:
    """Many small changes are refused from the limit on, with the field and the limit."""
    path = await api.conversation(metadata={"a": "x" * 600_000})

    reply = await api.client.patch(path, json={"metadata": {"b": "x" * 600_000}})

    assert assert_problem(reply, 422)["detail"].startswith("metadata may have at most 1,048,576 bytes")
    assert (await api.client.get(path)).json()["metadata"].keys() == {"a"}
    assert (await api.client.get(f"{path}/messages")).status_code == 200


# --- reading ----------------------------------------------------------------------------------------------


async def test_history_is_the_newest_oldest_first(api: Api) -> None:
    """The history gives the newest messages, fifty unless told, oldest first."""
    path = await api.conversation()
    for number in range(60):
        await api.say(path, f"{number}")

    assert await contents(api, path) == [str(number) for number in range(10, 60)]
    assert await contents(api, path, limit=3) == ["57", "58", "59"]
    assert await contents(api, path, limit=3, order="asc") == ["0", "1", "2"]


async def test_history_pages_over_many_messages(api: Api) -> None:
    """Over 125 messages, pages by number and by cursor give every message once, in both orders."""
    path = await api.conversation()
    everything = [(await api.say(path, f"{number}"))["seq"] for number in range(125)]

    for order in ("desc", "asc"):
        by_number: list[list[int]] = []
        by_cursor: list[list[int]] = []
        cursor: dict[str, str] = {}
        for number in range(1, 5):
            query = {"order": order, "limit": "40"}
            page = (await api.client.get(f"{path}/messages", params={**query, "page": str(number)})).json()
            assert page["total"] == 125
            by_number.append([item["seq"] for item in page["items"]])
            page = (await api.client.get(f"{path}/messages", params={**query, **cursor})).json()
            assert page["total"] is None
            by_cursor.append([item["seq"] for item in page["items"]])
            cursor = {"cursor": page["next"]}
        assert page["next"] is None
        assert by_number == by_cursor
        pages = by_number if order == "asc" else by_number[::-1]
        assert [seq for page in pages for seq in page] == everything


async def test_history_between_bounds(api: Api) -> None:
    """before and after take seqs, before_id and after_id message ids; all of them leave the bound itself out."""
    path = await api.conversation()
    ids = [(await api.say(path, f"{number}"))["id"] for number in range(1, 8)]

    assert await contents(api, path, before=4) == ["1", "2", "3"]
    assert await contents(api, path, before_id=ids[3]) == ["1", "2", "3"]
    assert await contents(api, path, after=4) == ["5", "6", "7"]
    assert await contents(api, path, after_id=ids[3], order="asc", limit=2) == ["5", "6"]
    assert await contents(api, path, after=2, before_id=ids[4]) == ["3", "4"]
    assert await contents(api, path, before=2**63 - 1, after=0) == [str(number) for number in range(1, 8)]
    assert await contents(api, path, before=0) == []


async def test_cursor_goes_with_its_filters(api: Api) -> None:
    """A cursor is refused with another order, bound or leaf, in another conversation, and with a page."""
    path, elsewhere = await api.conversation(), await api.conversation()
    ids = [(await api.say(path, f"{number}"))["id"] for number in range(5)]
    await api.say(elsewhere, "x")
    query = {"limit": "2", "before_id": ids[4]}
    cursor = (await api.client.get(f"{path}/messages", params=query)).json()["next"]

    same = await api.client.get(f"{path}/messages", params={**query, "cursor": cursor})
    assert [item["content"] for item in same.json()["items"]] == ["0", "1"]
    for changed in ({"order": "asc"}, {"before_id": ids[3]}, {"after": "1"}, {"leaf": ids[3]}, {"page": "1"}):
        reply = await api.client.get(f"{path}/messages", params={**query, "cursor": cursor, **changed})
        assert_problem(reply, 422, cursor, ids[3])
    assert_problem(await api.client.get(f"{elsewhere}/messages", params={"cursor": cursor}), 422, cursor)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=-5", "limit"),
        ("limit=201", "limit"),
        ("limit=zq7marker", "limit"),
        ("page=0", "page"),
        ("page=102&limit=100", "query"),
        ("page=1&cursor=x", "query"),
        ("before=-1", "before"),
        (f"before={2**63}", "before"),
        (f"after={10**30}", "after"),
        ("before_id=zq7marker", "before_id"),
        ("after_id=zq7marker", "after_id"),
        ("leaf=zq7marker", "leaf"),
        ("order=updated", "order"),
        ("before=1&before_id=0190f0f0-0000-7000-8000-0000000000aa", "query"),
        ("after=1&after_id=0190f0f0-0000-7000-8000-0000000000aa", "query"),
        ("offset=1", "query"),
    ],
)
async def test_history_refuses(api: Api, query: str, field: str) -> None:
    """What a history cannot do is refused with the parameter at fault."""
    path = await api.conversation()

    problem = assert_problem(await api.client.get(f"{path}/messages?{query}"), 422, "zq7marker", "0000000000aa")

    assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize("name", ["before_id", "after_id", "leaf"])
async def test_unknown_message_in_a_filter_is_404(api: Api, name: str) -> None:
    """A bound or leaf that is not in the conversation is a miss inside it."""
    path = await api.conversation()
    await api.say(path, "x")

    reply = await api.client.get(f"{path}/messages?{name}=0190f0f0-0000-7000-8000-0000000000aa")

    assert_problem(reply, 404, "0000000000aa")


async def test_message_is_looked_up_inside_its_conversation(api: Api) -> None:
    """A message's id in another conversation of the same owner is a miss."""
    path, elsewhere = await api.conversation(), await api.conversation()
    message = await api.say(path, "x")

    for method, tail, body in (("GET", "", None), ("DELETE", "", None), ("PATCH", "", {}), ("GET", "/siblings", None)):
        reply = await api.client.request(method, f"{elsewhere}/messages/{message['id']}{tail}", json=body)
        assert_problem(reply, 404, message["id"])


async def test_delete_message(api: Api) -> None:
    """A deleted message is gone from the history, once; the others keep their places, its id is not free."""
    path = await api.conversation()
    body = {"id": str(uuid.uuid4()), "role": "user", "content": "gone"}
    await api.say(path, "stays")
    await api.client.post(f"{path}/messages", json=body)
    last = await api.say(path, "stays, too")

    deleted = await api.client.delete(f"{path}/messages/{body['id']}")

    assert (deleted.status_code, deleted.content) == (204, b"")
    assert_problem(await api.client.delete(f"{path}/messages/{body['id']}"), 404, body["id"])
    assert_problem(await api.client.get(f"{path}/messages/{body['id']}"), 404, body["id"])
    assert await contents(api, path) == ["stays", "stays, too"]
    assert (last["seq"], last["parent_id"]) == (3, body["id"])
    late = await api.client.post(f"{path}/messages", json=body)
    assert (late.status_code, late.json()["status"], late.json()["content"]) == (201, "deleted", "")


async def test_siblings(api: Api) -> None:
    """The alternatives to a message are listed by seq, itself included, in the shape of every list."""
    path = await api.conversation()
    question = await api.say(path, "question")
    answers = [await api.say(path, f"{n}", role="assistant", parent_id=question["id"]) for n in range(3)]

    page = (await api.client.get(f"{path}/messages/{answers[1]['id']}/siblings")).json()

    assert page == {"items": answers, "total": None, "next": None}
    first = (await api.client.get(f"{path}/messages/{answers[1]['id']}/siblings?limit=2")).json()
    assert first["items"] == answers[:2]
    query = {"limit": 200, "cursor": first["next"]}
    rest = (await api.client.get(f"{path}/messages/{answers[1]['id']}/siblings", params=query)).json()
    assert (rest["items"], rest["next"]) == (answers[2:], None)
    for wrong in ({"limit": 0}, {"limit": 201}, {"limit": "1_0"}, {"cursor": "tea"}, {"page": 1}):
        reply = await api.client.get(f"{path}/messages/{answers[1]['id']}/siblings", params=wrong)
        assert_problem(reply, 422)


async def test_pages_have_a_size() -> None:
    """Every list ends before it is larger than the store allows, with a cursor; the newest messages are a page, too."""
    async with open_store("memory://", max_page_bytes=2_500) as store, serving(store) as api:
        path = await api.conversation()
        for number in range(4):
            await api.say(path, f"{number} " + "x" * 998, role="assistant")
        whole = (await api.client.get(path)).json()["messages"]
        assert [m["seq"] for m in whole["items"]] == [3, 4]
        older = (await api.client.get(f"{path}/messages", params={"cursor": whole["next"]})).json()
        assert ([m["seq"] for m in older["items"]], older["next"]) == ([1, 2], None)
        hits = (await api.client.get("/api/search?q=" + "x" * 100)).json()
        assert hits["items"] == []
        for _ in range(3):
            await api.client.post("/api/conversations", json={"metadata": {"a": "x" * 1_000}})
        listed = (await api.client.get("/api/conversations")).json()
        assert len(listed["items"]) == 2
        assert listed["next"] is not None


async def test_a_body_is_needed(api: Api) -> None:
    """An empty body, and one that is no object, are refused."""
    path = await api.conversation()

    for body in (b"", b"null", b"[]", b'"x"', b"7", json.dumps([{"role": "user", "content": "x"}]).encode()):
        reply = await api.client.post(f"{path}/messages", content=body, headers=JSON)
        assert assert_problem(reply, 422)["errors"][0]["field"] == "body"
