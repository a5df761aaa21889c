"""What is checked of every request and put on every response."""

import re
import uuid
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from starlette.types import Message

from chatkeep import open_store
from chatkeep.api.app import create_app
from chatkeep.settings import Settings
from servers.api import Api, assert_problem, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api() -> AsyncIterator[Api]:
    allowed = ["Chat.Example.org", "fd00::7", "10.0.0.7:9000", "", "not a host"]
    async with (
        open_store("memory://") as store,
        serving(store, allowed_hosts=allowed, host="127.0.0.2", metrics=True) as api,
    ):
        yield api


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8765",
        "chat.example.org",
        "chat.example.ORG:443",
        "[fd00::7]:1",
        "10.0.0.7",
        "127.0.0.2:8765",
    ],
)
async def test_own_hosts(api: Api, host: str) -> None:
    """The names of this machine and those of the settings are answered, on any port."""
    assert (await api.client.get("/healthz", headers={"Host": host})).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "zq7.example",
        "localhost.zq7.example",
        "zq7localhost",
        "localhost.",
        "user@localhost",
        "localhost/zq7",
        "127.0.0.1.zq7.example",
        "127.0.0.3",
        "::1",
        "[::1",
        "[::2]",
        "localhost:x",
        "localhost:123456",
        "localhost:80:80",
        ":80",
        "not a host",
        "*",
    ],
)
async def test_foreign_hosts(api: Api, host: str) -> None:
    """Any other name is 421, before anything else is looked at: a page can give its own name this address."""
    for path in ("/api/conversations", "/api/docs", "/healthz/", "/nothing"):
        assert_problem(await api.client.get(path, headers={"Host": host}), 421, "zq7")
    assert_problem(await api.client.post("/api/zq7", content=b"zq7", headers={"Host": host}), 421, "zq7")


@pytest.mark.parametrize(
    "host", ["10.1.2.3:8765", "chatkeep.default.svc.cluster.local", "[fd00::1]", "zq7.example", "*"]
)
async def test_probes_come_to_any_host(api: Api, host: str) -> None:
    """An orchestrator and Prometheus come to the address of a pod, whatever it is called there."""
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await api.client.get(path, headers={"Host": host})).status_code == 200


async def test_metrics_are_served_if_asked_for() -> None:
    """Without the setting nobody sees the metrics."""
    async with open_store("memory://") as store, serving(store) as api:
        assert_problem(await api.client.get("/metrics"), 404)


@pytest.mark.parametrize("lines", [b"", b"Host:\r\n", b"Host: localhost\r\nHost: localhost\r\n"])
async def test_one_host_is_needed(api: Api, lines: bytes) -> None:
    """A request without a Host, or with two, is refused."""
    reply = await api.raw(b"GET /api/conversations HTTP/1.1\r\n" + lines + b"Connection: close\r\n\r\n")

    assert reply.startswith((b"HTTP/1.1 421 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://zq7.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://localhost"},
        {"Origin": "file://"},
        {"Origin": "ftp://localhost:8765"},
        {"Origin": "http://"},
        {"Origin": "chrome-extension://zq7"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://localhost:8765"},
    ],
)
async def test_other_sites_cannot_write(api: Api, headers: dict[str, str]) -> None:
    """A write that a browser says another site's page sent is 403, whatever its path and its body."""
    host = {"Host": "localhost:8765"}
    for method, path in (("POST", "/api/conversations"), ("PATCH", "/api/x"), ("DELETE", "/x"), ("PUT", "/")):
        reply = await api.client.request(method, path, content=b"zq7", headers={**host, **headers})
        assert_problem(reply, 403, "zq7")
    assert (await api.client.get("/api/conversations?total=true")).json()["total"] == 0


@pytest.mark.parametrize("authentication", [{}, {"auth": "jwt", "jwt_secret": "s" * 64}])
@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors", "Sec-Fetch-Dest": "image"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"},
        {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors", "Origin": "http://localhost:3000"},
        {"Origin": "https://zq7.example"},
        {"Origin": "null"},
    ],
)
async def test_other_sites_cannot_read(authentication: dict[str, str], headers: dict[str, str]) -> None:
    """A read for another site's page is 403, before the store is asked: the page could measure how long it takes. The
    documentation may be linked to, and probes are nobody's."""
    async with open_store("memory://") as store, serving(store, **authentication) as api:
        for method in ("GET", "HEAD", "OPTIONS"):
            for path in ("/api/search?q=tea", "/api/conversations", "/api/conversations/x/messages", "/api/x", "/api"):
                reply = await api.client.request(method, path, headers=headers)
                assert reply.status_code == 403
                assert "zq7" not in reply.text
        for path in ("/api/docs", "/api/docs/swagger-ui.css", "/api/openapi.json", "/healthz", "/readyz"):
            assert (await api.client.get(path, headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-User": "?1"},
        {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://localhost:8765"},
        {"Referer": "https://other.example/"},
    ],
)
async def test_own_pages_and_programs_can_read(api: Api, headers: dict[str, str]) -> None:
    """Who types an address, the server's own pages, and clients that are no browsers read as ever."""
    for path in ("/api/search?q=tea", "/api/conversations", "/api/docs"):
        reply = await api.client.get(path, headers={"Host": "localhost:8765", **headers})
        assert reply.status_code == 200


async def test_allowed_origins_can_read() -> None:
    """The origins of the settings read, and no others; a page of theirs that hides its origin is another one."""
    page = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
    ask = {"Access-Control-Request-Method": "GET"}
    async with open_store("memory://") as store, serving(store, cors_origins=["https://app.example"]) as api:
        for method, more in (("GET", {}), ("HEAD", {}), ("OPTIONS", ask)):
            reply = await api.client.request(method, "/api/search?q=tea", headers={**page, **more})
            assert reply.status_code == 200
            assert reply.headers["access-control-allow-origin"] == "https://app.example"
        for other in ({**page, "Origin": "https://zq7.example"}, {"Sec-Fetch-Site": "cross-site"}):
            reply = await api.client.get("/api/search?q=tea", headers=other)
            assert_problem(reply, 403, "zq7")


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("localhost:8765", "http://localhost:8765"),
        ("LOCALHOST:8765", "http://localhost:8765"),
        ("localhost", "http://localhost"),
        ("localhost:80", "http://localhost"),
        ("localhost", "http://localhost:80"),
        ("chat.example.org", "https://chat.example.org"),
        ("chat.example.org:443", "https://chat.example.org"),
        ("[::1]:8765", "http://[::1]:8765"),
    ],
)
async def test_own_pages_can_write(api: Api, host: str, origin: str) -> None:
    """A page of this server may write, also behind a proxy that speaks TLS."""
    headers = {"Host": host, "Origin": origin, "Sec-Fetch-Site": "same-origin"}
    reply = await api.client.post("/api/conversations", json={}, headers=headers)

    assert reply.status_code == 201
    await api.client.delete(f"/api/conversations/{reply.json()['id']}")


async def test_head_is_get_without_a_body(api: Api) -> None:
    """Every GET answers HEAD with the same status and headers, errors included, and sends no body."""
    path = await api.conversation()
    message = await api.say(path, "x")
    for target in (
        path,
        "/api/conversations",
        f"{path}/messages",
        f"{path}/messages/{message['id']}",
        f"{path}/messages/{message['id']}/siblings",
        "/api/search?q=x",
        "/healthz",
        "/readyz",
        "/api/docs",
        "/api/docs/swagger-ui-bundle.js",
        "/api/openapi.json",
        "/api/conversations?limit=0",
        "/nothing",
    ):
        get, head = await api.client.get(target), await api.client.head(target)
        varying = {"date", "x-request-id"}
        assert head.status_code == get.status_code
        assert head.content == b""
        assert {k: v for k, v in head.headers.items() if k not in varying} == {
            k: v for k, v in get.headers.items() if k not in varying
        }


async def test_head_sends_no_byte_after_the_headers(api: Api) -> None:
    """Nothing follows the headers of an answer to HEAD on the wire."""
    reply = await api.raw(b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    assert reply.startswith(b"HTTP/1.1 200 ")
    assert reply.endswith(b"\r\n\r\n")
    assert b"content-length: 15\r\n" in reply


async def test_head_sends_no_body_to_any_server(api: Api) -> None:
    """The application itself leaves the body out, and does not trust the server to do it."""
    sent: list[Message] = []
    scope = {
        "type": "http",
        "method": "HEAD",
        "path": "/healthz",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    await create_app(api.store, Settings())(scope, receive, send)

    assert [message.get("body", b"") for message in sent] == [b"", b""]


async def test_every_response_has_an_id(api: Api) -> None:
    """Every response carries an id of its own, made by the server, refusals included."""
    sent = {"X-Request-ID": "zq7marker"}
    replies = [
        await api.client.get("/healthz", headers=sent),
        await api.client.get("/healthz", headers=sent),
        await api.client.get("/nothing", headers=sent),
        await api.client.get("/healthz", headers={**sent, "Host": "other.example"}),
        await api.client.post("/api/conversations", headers={**sent, "Origin": "null"}),
        await api.client.post("/api/conversations", content=b"x", headers=sent),
        await api.client.delete(f"/api/conversations/{uuid.uuid4()}", headers=sent),
    ]

    ids = [reply.headers["x-request-id"] for reply in replies]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch("[0-9a-f]{16}", id_) for id_ in ids)
