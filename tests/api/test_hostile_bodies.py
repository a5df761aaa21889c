"""Bodies and queries that cost a server more than their sender: bounded before they are parsed, and read off the loop.

`make fuzz` sends all of `hostile.BODIES`, to every route; here are those that stopped a server, and their kind.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from hostile import BATCHES, BODIES, BODY_BYTES, SURROGATES, batch, message
from hypothesis import given
from hypothesis import strategies as st
from test_server import served

from chatkeep import open_store
from chatkeep.values import BeyondLimits, check_structure, decode_nul, encode_nul
from servers.api import Api, assert_problem, serving
from servers.others import AUTH, Others, bearer

JSON = {"Content-Type": "application/json"}
PADDING = " " * (1 << 16)
"""Makes a body large: it is read in another thread then."""

WORST_WAIT = 1.0
"""Most seconds that another owner's request may take on a busy machine; it is a quarter of it on a quiet one."""

MOST_GROWTH = 250 << 20
"""Most bytes of memory that an attack may take."""

MOST_GROWTH_OF_PARTS = 320 << 20
"""The same of parts, whose text is the content, too."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api() -> AsyncIterator[Api]:
    async with open_store("memory://") as store, serving(store) as api:
        yield api


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, httpx2.Client]]:
    """The process of a server that knows owners, and the client of one of them."""
    with served(tmp_path_factory.mktemp("served"), **AUTH) as (process, client):
        client.headers.update(bearer("ada"))
        client.timeout = 60
        yield process.pid, client


def watched(server: tuple[int, httpx2.Client]) -> Others:
    """What others see of the server."""
    return Others(str(server[1].base_url), server[0])


# --- how values are counted -------------------------------------------------------------------------------

TEXT = st.text(st.sampled_from('ab"\\[]{},: \ud7ff\n'), max_size=6)
VALUES = st.recursive(
    st.none() | st.integers() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def count(value: object) -> tuple[int, int]:
    """The values and the levels of JSON."""
    if not isinstance(value, dict | list):
        return 0, 0
    inner = [count(each) for each in (value.values() if isinstance(value, dict) else value)]
    return len(inner) + sum(values for values, _ in inner), 1 + max((levels for _, levels in inner), default=0)


@given(VALUES, st.sampled_from([None, 1]), st.booleans())
def test_values_and_levels_are_counted_exactly(value: object, indent: int | None, ascii_: bool) -> None:
    """JSON passes with as many values and levels as it has, and not with one less, whatever its text looks like."""
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_).encode()
    values, levels = count(value)

    check_structure(text, values, levels)
    if values:
        with pytest.raises(BeyondLimits, match="values"):
            check_structure(text, values - 1, levels)
    if levels > 1:
        with pytest.raises(BeyondLimits, match="levels"):
            check_structure(text, values, levels - 1)


@given(st.text(st.sampled_from("a\0\ufdd00fd"), max_size=20))
def test_encoded_nuls_come_back(text: str) -> None:
    """Text with NULs is stored without them, and comes back as it was."""
    assert decode_nul(encode_nul(text)) == text
    assert "\0" not in encode_nul(text)


# --- what a large body may hold ---------------------------------------------------------------------------


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("item", ["0", "[]", '"[,{"', r'"\\"', r'"\",["'])
async def test_most_values_of_a_body(api: Api, item: str) -> None:
    """A body has at most 100,000 values, the fields of the record included; more are refused by every route."""
    path = await api.conversation()
    for method, where, fields in (
        ("POST", f"{path}/messages", '"role":"tool","content":"",'),
        ("POST", "/api/conversations", '"title":"x","context_id":"y",'),
        ("PATCH", path, '"title":"x","head_id":null,'),
    ):
        for values, status in ((100_000, 200 if method == "PATCH" else 201), (100_001, 422)):
            listed = ",".join([item] * (values - 4))
            body = f'{{{fields}"metadata":{{"k":[{listed}]}}}}'.encode()
            reply = await api.client.request(method, where, content=body, headers=JSON)
            assert reply.status_code == status, reply.text[:200]
    assert assert_problem(reply, 422)["detail"] == "the body may have at most 100,000 values"


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", BATCHES)
async def test_large_batches(api: Api, name: str) -> None:
    """A large batch is taken whole, or refused whole in a few words that name the first message that is wrong."""
    path, body = await api.conversation(), BATCHES[name]()
    assert len(body) <= BODY_BYTES

    reply = await api.client.post(f"{path}/messages/batch", content=body, headers=JSON, timeout=60)

    if reply.status_code == 201:
        assert len(reply.json()["items"]) == max(1, body.count(b"role"))
    else:
        problem = assert_problem(reply, 422)
        assert len(reply.content) < 1_000
        assert [error["field"].split(".")[0] for error in problem.get("errors", [])] in ([], ["messages"])
        assert (await api.client.get(f"{path}/messages")).json()["items"] == []


@pytest.mark.asyncio(loop_scope="module")
async def test_most_values_of_a_batch(api: Api) -> None:
    """The limit of values holds for the whole of a batch."""
    path = await api.conversation()
    for more, status in ((0, 201), (1, 422)):
        one = message(metadata=f'{{"k":[{",".join(["0"] * 49_995)}]}}')
        other = message(metadata=f'{{"k":[{",".join(["0"] * (49_994 + more))}]}}')
        body = batch(one + b"," + other)
        reply = await api.client.post(f"{path}/messages/batch", content=body, headers=JSON)
        assert reply.status_code == status, reply.text[:200]
    assert assert_problem(reply, 422)["detail"] == "the body may have at most 100,000 values"


@pytest.mark.asyncio(loop_scope="module")
async def test_text_that_looks_like_values(api: Api) -> None:
    """Eight megabytes of text are taken, also if it is full of what separates values, quoted or not."""
    path = await api.conversation()
    for name in ("structure", "quotes", "backslashes", "pairs"):
        body = message(content=f'"{SURROGATES[name](BODY_BYTES - 200)}"')
        reply = await api.client.post(f"{path}/messages", content=body, headers=JSON)
        assert reply.status_code == 201, reply.text[:200]
        assert reply.json()["content"] == json.loads(body)["content"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"role":"tool","content":"x","metadata":{"k":NaN}}', 422),
        ('{"role":"tool","content":"x","metadata":{"k":1e999}}', 422),
        ('{"role":"tool","content":"x"', 422),
        ('{"role":"tool","content":"\\ud8"}', 422),
        ('\ufeff{"role":"tool","content":"x"}', 422),
        ('{"role":"nobody","content":"x"}', 422),
        ('[{"role":"tool","content":"x"}]', 422),
        ('"x"', 422),
        ("", 422),
        ('{"role":"tool","content":"x"} x', 422),
        ('{"role":"nobody","content":"y","role":"tool","content":"x"}', 201),
        ('{"role":"tool","content":"\\ud83d\\ude00\\ud83d\\u0000","sent_at":"2026-01-31T12:00:00Z"}', 201),
        (f'{{"role":"tool","content":"x","metadata":{{"k":{"[" * 99}{"]" * 99}}}}}', 201),
        (f'{{"role":"tool","content":"x","metadata":{{"k":{"[" * 100}{"]" * 100}}}}}', 422),
        (f'{{"role":"tool","content":"x","metadata":{{"k":{"[" * 300}{"]" * 300}}}}}', 422),
        (f'{{"role":"tool","content":"x","metadata":{{"k":{"9" * 4_300}}}}}', 201),
        (f'{{"role":"tool","content":"x","metadata":{{"k":{"9" * 4_301}}}}}', 422),
    ],
)
async def test_large_bodies_are_as_strict(api: Api, body: str, status: int) -> None:
    """A body that is read in another thread is taken or refused, and stored, as the same without its spaces is."""
    path = await api.conversation()

    small = await api.client.post(f"{path}/messages", content=body.encode(), headers=JSON)
    large = await api.client.post(f"{path}/messages", content=f"{PADDING}{body}".encode(), headers=JSON)

    assert small.status_code == large.status_code == status
    if status == 201:
        same = ("content", "metadata", "sent_at", "role")
        assert {name: small.json()[name] for name in same} == {name: large.json()[name] for name in same}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "body", [b'{"role":"tool","content":"\xff"}', '{"role":"tool"}'.encode("utf-16"), b"[" * 99_999]
)
async def test_large_bodies_that_are_not_json(api: Api, body: bytes) -> None:
    """What is not UTF-8, or has brackets alone, is refused in a sentence."""
    path = await api.conversation()

    assert_problem(await api.client.post(f"{path}/messages", content=PADDING.encode() + body, headers=JSON), 422)


@pytest.mark.asyncio(loop_scope="module")
async def test_values_can_be_limited_further() -> None:
    """CHATKEEP_MAX_JSON_VALUES is the limit of large bodies."""
    async with open_store("memory://") as store, serving(store, max_json_values=10) as api:
        path = await api.conversation()
        for values, status in ((7, 201), (8, 422)):
            body = (
                f'{PADDING}{{"role":"tool","content":"","metadata":{json.dumps(dict.fromkeys("abcdefgh"[:values]))}}}'
            )
            reply = await api.client.post(f"{path}/messages", content=body.encode(), headers=JSON)
            assert reply.status_code == status
    assert assert_problem(reply, 422)["detail"] == "the body may have at most 10 values"


@pytest.mark.asyncio(loop_scope="module")
async def test_queries_with_a_crowd_of_parameters(api: Api) -> None:
    """Thousands of parameters are refused before they are read, by every route; a hundred are told the first few."""
    path = await api.conversation()
    for where in ("/api/conversations", f"{path}/messages", "/api/search", path, "/api/me"):
        began = time.process_time()
        replies = [await api.client.get(f"{where}?{'&'.join(['zq7'] * 15_000)}") for _ in range(10)]
        assert time.process_time() - began < 2
        assert assert_problem(replies[-1], 422, "zq7")["detail"] == "the query may have at most 4,096 bytes"
        reply = await api.client.get(f"{where}?{'&'.join(['zq7'] * 101)}")
        assert assert_problem(reply, 422, "zq7")["detail"] == "the query may have at most 100 parameters"
    unknown = "&".join(f"zq7{number}=1" for number in range(100))
    problem = assert_problem(await api.client.get(f"/api/conversations?{unknown}"), 422, "zq7")
    assert "has an unknown parameter" in problem["detail"]


# --- what others see --------------------------------------------------------------------------------------

ATTACKS = (
    "millions of sources",
    "unknown fields",
    "100,000 unknown fields",
    "sources of unknown fields",
    "metadata of lists",
    "metadata of 100,000 lists",
    "deep lists",
    "integers of 4,300 digits",
    "content of lone surrogates",
    "text parts",
    "deep parts",
    "parts without a type",
    "a million small parts",
)


@pytest.mark.long
@pytest.mark.parametrize("name", ATTACKS)
def test_a_body_does_not_stop_the_others(server: tuple[int, httpx2.Client], name: str) -> None:
    """While one owner sends a body again and again, another's requests are answered, and memory stays bounded."""
    _, client = server
    path = f"/api/conversations/{client.post('/api/conversations', json={}).json()['id']}/messages"
    body, headers = BODIES[name](), {**JSON, "Idempotency-Key": name}

    with watched(server) as others:
        statuses = {client.post(path, content=body, headers=headers).status_code for _ in range(3)}

    assert statuses <= {201, 422}
    assert others.worst < WORST_WAIT
    assert others.cpu / 3 < 1.0
    assert others.grown < (MOST_GROWTH_OF_PARTS if "part" in name else MOST_GROWTH)


@pytest.mark.long
@pytest.mark.parametrize("name", BATCHES)
def test_a_batch_does_not_stop_the_others(server: tuple[int, httpx2.Client], name: str) -> None:
    """The same of batches, which are stored, or refused at the first message that is wrong."""
    _, client = server
    path = f"/api/conversations/{client.post('/api/conversations', json={}).json()['id']}/messages/batch"
    body, headers = BATCHES[name](), {**JSON, "Idempotency-Key": name}

    with watched(server) as others:
        replies = [client.post(path, content=body, headers=headers) for _ in range(3)]

    assert {reply.status_code for reply in replies} <= {201, 422}
    assert {len(reply.content) < 1_000 for reply in replies if reply.status_code == 422} <= {True}
    assert others.worst < WORST_WAIT
    assert others.cpu / 3 < 1.0
    assert others.grown < MOST_GROWTH


@pytest.mark.long
def test_twenty_large_bodies_at_once_do_not_stop_the_others(server: tuple[int, httpx2.Client]) -> None:
    """Large bodies wait for each other, and nobody else for them."""
    _, client = server
    path = f"/api/conversations/{client.post('/api/conversations', json={}).json()['id']}/messages"
    body = BODIES["metadata of 100,000 keys"]()

    with watched(server) as others, ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda _: client.post(path, content=body, headers=JSON), range(20)))

    assert {reply.status_code for reply in replies} <= {422, 503}  # 503: too many of one owner's wait
    assert others.worst < WORST_WAIT
    assert others.grown < MOST_GROWTH + 20 * len(body)  # what arrived waits in memory


def patches() -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Kinds of metadata, and what makes one PATCH of it after the other."""
    yield "grows by megabytes", {}, lambda number: {f"k{number}": "x" * 900_000}
    yield "grows by keys", {}, lambda number: {f"{number}-{each}": each for each in range(5_000)}
    yield "a mebibyte of keys, a small patch", {f"k{n}": n for n in range(60_000)}, lambda number: {"a": number}
    yield "lists, a small patch", {"k": [[]] * 90_000}, lambda number: {"a": number}


@pytest.mark.long
@pytest.mark.parametrize(("metadata", "patch"), [pytest.param(first, more, id=name) for name, first, more in patches()])
def test_patches_do_not_stop_the_others(
    server: tuple[int, httpx2.Client], metadata: dict[str, Any], patch: Any
) -> None:
    """Metadata does not grow beyond its limit by PATCH, and each PATCH holds the writer for a moment only."""
    _, client = server
    path = f"/api/conversations/{client.post('/api/conversations', json={'metadata': metadata}).json()['id']}"
    bodies = [{"metadata": patch(number)} for number in range(25)]

    with watched(server) as others, ThreadPoolExecutor(5) as pool:
        replies = list(pool.map(lambda body: client.patch(path, json=body), bodies))

    assert {reply.status_code for reply in replies} <= {200, 422}
    assert len(client.get(path).content) < 1_100_000
    assert others.worst < WORST_WAIT
    assert others.cpu / 25 < 0.5
    assert others.grown < MOST_GROWTH


@pytest.mark.asyncio(loop_scope="module")
async def test_the_loop_goes_on_while_a_body_is_read(api: Api) -> None:
    """The event loop is never held for long by one large body."""
    path, body = await api.conversation(), BODIES["metadata of 100,000 surrogates"]()
    reading = asyncio.create_task(api.client.post(f"{path}/messages", content=body, headers=JSON))
    waits = []
    while not reading.done():
        began = time.perf_counter()
        await asyncio.sleep(0.001)
        waits.append(time.perf_counter() - began)

    assert_problem(await reading, 422)
    assert max(waits) < 0.5
    assert len(waits) > 20
