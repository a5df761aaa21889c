"""Errors over HTTP: always a problem document, never a word of what was sent or of what is inside."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from starlette.exceptions import HTTPException

from chatkeep import (
    ChatkeepError,
    Conflict,
    InvalidId,
    InvalidInput,
    NotFound,
    NotYours,
    SchemaMismatch,
    StoreUnavailable,
    UnsafeDatabase,
    open_store,
)
from chatkeep.api.errors import ERROR_STATUS
from conftest import STORES
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONVERSATION = "/api/conversations/0190f0f0-0000-7000-8000-000000000001"
JSON = {"Content-Type": "application/json"}
SMALL = 1000
LONG = pytest.mark.long


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=STORES)
async def api(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    url = STORES[request.param](tmp_path_factory.mktemp("store"))
    async with open_store(url) as store, serving(store, max_body_bytes=SMALL) as api:
        yield api


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def memory() -> AsyncIterator[Api]:
    """A server whose store the test makes fail."""
    async with open_store("memory://") as store, serving(store) as api:
        yield api


def fail_with(monkeypatch: pytest.MonkeyPatch, api: Api, method: str, error: Exception) -> None:
    async def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(api.store, method, fail)


# --- the framework's errors -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/zq7marker", "/api", "/api/zq7marker", "/api/conversations/", "/docs", "/redoc"])
async def test_unknown_path(api: Api, path: str) -> None:
    """A path that does not exist is a 404 problem, a slash too many included."""
    assert_problem(await api.client.get(path), 404, "zq7marker")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/api/conversations", "GET, HEAD, POST"),
        ("DELETE", "/api/conversations", "GET, HEAD, POST"),
        ("POST", CONVERSATION, "GET, HEAD, PATCH, DELETE"),
        ("OPTIONS", CONVERSATION, "GET, HEAD, PATCH, DELETE"),
        ("PATCH", f"{CONVERSATION}/messages", "GET, HEAD, POST"),
        ("PATCH", f"{CONVERSATION}/messages/batch", "POST"),
        ("OPTIONS", f"{CONVERSATION}/messages/batch", "POST"),
        ("POST", "/api/search", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/api/openapi.json", "GET, HEAD"),
    ],
)
async def test_unknown_method(api: Api, method: str, path: str, allowed: str) -> None:
    """A method that a path does not take is a 405 problem, whose Allow header names all that it takes."""
    reply = await api.client.request(method, path)

    assert_problem(reply, 405)
    assert reply.headers["allow"] == allowed


# --- bodies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "text/plain"},
        {"Content-Type": "text/json"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "multipart/form-data; boundary=zq7marker"},
        {"Content-Type": "application/merge-patch+json"},
        {"Content-Type": "application/problem+json"},
        {"Content-Type": "application/json", "Content-Encoding": "gzip"},
    ],
)
async def test_bodies_have_to_be_declared_json(api: Api, headers: dict[str, str]) -> None:
    """A POST that does not say application/json is refused, and so is a compressed one."""
    for path in ("/api/conversations", f"{CONVERSATION}/messages", f"{CONVERSATION}/messages/batch"):
        problem = assert_problem(await api.client.post(path, content=b"{}", headers=headers), 415, "zq7marker")
        assert "application/json" in problem["detail"]


async def test_patches_have_to_be_declared_json(api: Api) -> None:
    """A PATCH takes the two types that its refusal names."""
    for path in (CONVERSATION, f"{CONVERSATION}/messages/0190f0f0-0000-7000-8000-000000000002"):
        reply = await api.client.patch(path, content=b"{}", headers={"Content-Type": "text/plain"})

        assert "application/json or application/merge-patch+json" in assert_problem(reply, 415)["detail"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"{'title': 'zq7marker'}",
        b'{"title": "zq7marker"',
        b'{"title": "zq7marker\xff"}',
        b'{"title": "\xed\xa0\x80"}',
        b'{"title": "\\zq7marker"}',
        b'{"title": zq7marker}',
        b'\xef\xbb\xbf{"title": "zq7marker"}',
        '{"title": "zq7marker"}'.encode("utf-16"),
        b'{"metadata": {"zq7marker": NaN}}',
        b'{"title": "zq7marker"} x',
    ],
)
async def test_bodies_have_to_be_strict_json(api: Api, body: bytes) -> None:
    """What is not JSON in UTF-8 is refused without being repeated."""
    for method, path in (("POST", "/api/conversations"), ("PATCH", CONVERSATION)):
        reply = await api.client.request(method, path, content=body, headers=JSON)
        assert "not valid JSON" in assert_problem(reply, 422, "zq7marker", "xff")["detail"]


async def test_large_body(api: Api) -> None:
    """A body above the limit is refused with the limit's name; one of exactly the limit is not."""
    fits = b'{"title": "x"}'.ljust(SMALL)

    assert (await api.client.post("/api/conversations", content=fits, headers=JSON)).status_code == 201
    problem = assert_problem(await api.client.post("/api/conversations", content=fits + b" ", headers=JSON), 413)
    assert "1,000 bytes" in problem["detail"]


TOO_MANY = "the body may have at most 100,000 values"
HOSTILE = {
    "lists": ("[" + "[]," * 2_700_000 + "[]]", TOO_MANY),
    "keys": (f"{{{','.join(f'"{n:x}":1' for n in range(700_000))}}}", TOO_MANY),
    "digits": ("9" * 8_000_000, "metadata may have at most 4,300 digits in an integer"),
    "text": (f'"{"x" * 8_000_000}"', "metadata may have at most 1,048,576 bytes as JSON"),
}
"""Values of metadata that fill a body of 8 MiB, and what the problem says."""


@pytest.mark.parametrize("name", [name if name == "lists" else pytest.param(name, marks=LONG) for name in HOSTILE])
async def test_eight_megabytes_of_metadata_are_refused_soon(memory: Api, name: str) -> None:
    """A body within its limit may hold millions of values: they cost a fraction of a second, and are not stored."""
    path, (value, detail) = await memory.conversation(), HOSTILE[name]
    body = f'{{"role": "user", "content": "x", "metadata": {{"k": {value}}}}}'.encode()

    began = time.process_time()
    reply = await memory.client.post(f"{path}/messages", content=body, headers=JSON)

    assert time.process_time() - began < 1.0
    assert assert_problem(reply, 422)["detail"].startswith(detail)


async def test_large_chunked_body(api: Api) -> None:
    """A body that does not say its length is counted while it arrives."""

    async def chunks(size: int) -> AsyncIterator[bytes]:
        yield b'{"title": "x"}'
        for _ in range((size - 14) // 2):
            yield b"  "

    fits = await api.client.post("/api/conversations", content=chunks(SMALL), headers=JSON)
    large = await api.client.post("/api/conversations", content=chunks(SMALL + 2), headers=JSON)

    assert "content-length" not in fits.request.headers
    assert fits.status_code == 201
    assert_problem(large, 413)


async def test_large_body_is_not_waited_for(api: Api) -> None:
    """Who asks before sending a large body (Expect: 100-continue) is refused at once."""
    reply = await api.raw(
        b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 99999999\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
    )

    assert reply.startswith(b"HTTP/1.1 413")


async def test_megabytes_above_the_limit(api: Api) -> None:
    """A client that sends megabytes before it reads still gets the answer."""
    reply = await api.client.post("/api/conversations", content=b" " * 20_000_000, headers=JSON)

    assert_problem(reply, 413)


async def test_order_of_checks(api: Api) -> None:
    """The size goes before the type, the type before the content, the content before the conversation."""
    large, text, wrong = b"x" * (SMALL + 1), {"Content-Type": "text/plain"}, b'{"role": "nobody"}'
    path = f"{CONVERSATION}/messages"

    async def chunks() -> AsyncIterator[bytes]:
        yield large

    assert_problem(await api.client.post(path, content=large, headers=text), 413)
    assert_problem(await api.client.post(path, content=chunks(), headers=text), 413)
    assert_problem(await api.client.post(path, content=wrong, headers=text), 415)
    assert_problem(await api.client.post(path, content=wrong, headers=JSON), 422)
    assert_problem(await api.client.post(path, json={"role": "user", "content": "x"}), 404)


async def test_client_that_goes_away(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    """A client that leaves in the middle of its body is nothing to log, and the server goes on."""
    _, writer = await asyncio.open_connection("127.0.0.1", api.port)
    writer.write(
        b"POST /api/conversations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.close()
    await writer.wait_closed()
    await asyncio.sleep(0.05)

    assert (await api.client.get("/healthz")).status_code == 200
    assert not caplog.records


# --- the store's errors -----------------------------------------------------------------------------------


async def test_every_error_has_a_status() -> None:
    """There is no error of chatkeep that the API does not know."""
    assert {kind for kind in ChatkeepError.__subclasses__() if kind.__module__ == "chatkeep.errors"} == set(
        ERROR_STATUS
    )


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (InvalidId, 422),
        (InvalidInput, 422),
        (Conflict, 409),
        (NotFound, 404),
        (NotYours, 403),
        (SchemaMismatch, 503),
        (UnsafeDatabase, 503),
        (StoreUnavailable, 503),
    ],
)
async def test_errors_of_the_store(
    memory: Api, monkeypatch: pytest.MonkeyPatch, kind: type[ChatkeepError], status: int
) -> None:
    """Each error has its status, and the value that it names for the log stays there."""
    fail_with(monkeypatch, memory, "get_conversation", kind("a sentence", got="zq7marker"))

    reply = await memory.client.get(CONVERSATION)

    assert_problem(reply, status, "zq7marker", "(got")
    assert ("retry-after" in reply.headers) == (status == 503)


async def test_what_a_database_says_stays_inside(
    memory: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An unavailable store is a 503 that says when to come back; the reason goes to the log."""
    reason = StoreUnavailable("SQLite reports zq7marker", got="/home/ada/zq7path.db")
    fail_with(monkeypatch, memory, "append", reason)

    reply = await memory.client.post(f"{CONVERSATION}/messages", json={"role": "user", "content": "zq7said"})

    assert_problem(reply, 503, "zq7", "sqlite")
    assert reply.headers["retry-after"] == "1"
    assert "zq7path" in caplog.text
    assert "zq7said" not in caplog.text


async def test_unexpected_error(memory: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A fault of the server is a general 500; the log has the traceback and the request's id."""
    fail_with(monkeypatch, memory, "get_conversation", RuntimeError("zq7marker"))

    reply = await memory.client.get(CONVERSATION)

    assert_problem(reply, 500, "zq7marker", "Traceback", "RuntimeError")
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert reply.headers["x-request-id"] in record.getMessage()
    assert (await memory.client.get("/healthz")).status_code == 200


async def test_a_new_kind_of_error(memory: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """A subclass has its parent's status, an unknown kind is the server's fault, a text of others is left out."""

    class Gone(NotFound):
        pass

    class Surprise(ChatkeepError):
        pass

    errors = ((Gone("a sentence"), 404), (Surprise("zq7marker"), 500), (HTTPException(409, "zq7marker"), 409))
    for error, status in errors:
        fail_with(monkeypatch, memory, "get_conversation", error)
        assert_problem(await memory.client.get(CONVERSATION), status, "zq7marker")


@pytest.mark.parametrize("values", [{"text": "zq7marker", "zq7key": [1]}, {"zq7key": {"zq7key": "zq7marker"}}])
async def test_no_part_of_a_body_comes_back(api: Api, values: dict[str, Any]) -> None:
    """Neither values nor names that a client made up are in any answer to it."""
    for body in (values, {"metadata": 7, **values}, {"title": values}, {"id": values}, {"metadata": [values]}):
        for method, path in (("POST", "/api/conversations"), ("PATCH", CONVERSATION)):
            assert_problem(await api.client.request(method, path, json=body), 422, "zq7")
