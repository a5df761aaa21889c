"""The API as a part of another FastAPI application, which serves it below a path of its own: docs/embedding.md."""

import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import httpx2
import jwt
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import SecretStr

from chatkeep import open_store, sync
from chatkeep.api.app import create_app, running
from chatkeep.settings import Settings
from chatkeep.testing import ScriptedProvider
from servers.api import assert_problem
from servers.apps import app_served

EMBEDDING = Path(__file__).parents[2] / "docs" / "embedding.md"
SECRET = "zq7 " * 8


@asynccontextmanager
async def mounted(path: str = "/chat", **settings: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an application that has mounted the API in its lifespan, as the page says."""

    @asynccontextmanager
    async def lifespan(host: FastAPI) -> AsyncIterator[None]:
        async with open_store("memory://") as store:
            chat = create_app(store, Settings(**settings), ScriptedProvider())
            async with running(chat, drain=0):
                host.mount(path, chat)
                yield

    host = FastAPI(lifespan=lifespan)

    @host.get("/")
    async def own() -> str:
        return "of the application itself"

    async with (
        app_served(host, lifespan=True) as port,
        httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client,
    ):
        yield client


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """A client of an application that has the API at /chat."""
    async with mounted() as client:
        yield client


async def test_every_location_leads_somewhere(client: httpx2.AsyncClient) -> None:
    """What is created, appended, uploaded and asked is found at its Location, also when it is told again."""
    key = {"Idempotency-Key": "k"}
    first, again = [await client.post("/chat/api/conversations", json={}, headers=key) for _ in range(2)]
    assert (first.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    talk = first.headers["location"]
    assert talk == again.headers["location"] == f"/chat/api/conversations/{first.json()['id']}"
    said = await client.post(f"{talk}/messages", json={"role": "user", "content": "How hot?"})
    project = await client.post("/chat/api/projects", json={"name": "Tea"})
    sent = await client.post(f"{project.headers['location']}/documents", files={"file": ("tea.md", b"# Green tea")})
    asked = await client.post(f"{talk}/messages", json={"content": "tokens=5 rate=100"})
    pending = await client.post(
        f"{talk}/messages", json={"content": "tokens=5 rate=100"}, headers={"Prefer": "respond-async"}
    )
    assert [reply.status_code for reply in (said, project, sent, asked, pending)] == [201, 201, 201, 201, 202]
    for reply in (first, said, project, sent, asked, pending):
        assert (await client.get(reply.headers["location"])).status_code == 200, reply.headers["location"]
    found = await client.get(f"{project.headers['location']}/search", params={"q": f"green {chr(0x8336) * 1_000}"})
    assert found.json()["items"][0]["file_path"] == "tea.md"


async def test_streams_go_through(client: httpx2.AsyncClient) -> None:
    """An answer is streamed below the path of the mount: what makes answers runs."""
    talk = (await client.post("/chat/api/conversations", json={})).headers["location"]
    asking = {"content": "tokens=5 rate=100"}
    streamed = await client.post(f"{talk}/messages", json=asking, headers={"Accept": "text/event-stream"})
    assert re.findall(r"^event: (\S+)", streamed.text, re.MULTILINE)[-2:] == ["end", "assistant_message"]


async def test_the_documentation_is_of_the_paths_below_the_mount(client: httpx2.AsyncClient) -> None:
    """/ leads to the page, its files are there, and its document names where the paths begin."""
    page = await client.get("/chat/", follow_redirects=True)
    assert (page.url.path, page.headers["content-type"]) == ("/chat/api/docs", "text/html; charset=utf-8")
    for name in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert (await client.get(page.url.join(name))).status_code == 200, name
    document = (await client.get("/chat/api/openapi.json")).json()
    assert document["servers"] == [{"url": "/chat"}]
    assert "/api/conversations" in document["paths"]
    assert (await client.get("/")).json() == "of the application itself"


async def test_what_is_checked_is_what_is_served(client: httpx2.AsyncClient) -> None:
    """Hosts, origins, media types and limits are checked below a path as without one; probes answer any Host."""
    path = "/chat/api/conversations"
    assert_problem(await client.get(path, headers={"Host": "evil.example"}), 421)
    assert (await client.get("/chat/healthz", headers={"Host": "10.0.0.1"})).status_code == 200
    assert_problem(await client.post(path, json={}, headers={"Origin": "https://evil.example"}), 403)
    assert_problem(await client.get(path, headers={"Sec-Fetch-Site": "cross-site"}), 403)
    own = {"Origin": str(client.base_url).rstrip("/")}
    assert (await client.post(path, json={}, headers=own)).status_code == 201
    assert_problem(await client.post(path, content=b"{}"), 415)
    assert_problem(await client.get(path, params={"cursor": "x" * 5_000}), 422)
    assert (await client.get(path)).headers["cache-control"] == "no-store"
    assert_problem(await client.post("/chat/mcp", content=json.dumps(["x"] * 2_000)), 415)
    called = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    headers = {"Accept": "application/json, text/event-stream"}
    assert (await client.post("/chat/mcp", json=called, headers=headers)).json()["result"] == {}


@pytest.mark.parametrize("path", ["/chat", "/api", "/a b/é"])
async def test_nothing_is_open_below_any_path(path: str) -> None:
    """With authentication every path of the API needs a token, whatever the mount is called; a token's owner is it."""
    async with mounted(path, auth="jwt", jwt_secret=SecretStr(SECRET), allowed_hosts=["app.example"]) as client:
        conversations = f"{path}/api/conversations"
        for below in ("/api/conversations", "/api/me", "/api/stats", "/mcp", "/api", "/api/nothing"):
            assert_problem(await client.post(f"{path}{below}", json={}), 401)
        token = jwt.encode({"sub": "ada", "exp": time.time() + 60}, SECRET, "HS256")
        headers = {"Authorization": f"Bearer {token}", "Host": "app.example"}
        made = await client.post(conversations, json={"id": str(uuid4())}, headers=headers)
        assert made.status_code == 201
        assert (await client.get(made.headers["location"], headers=headers)).json()["id"] == made.json()["id"]
        assert_problem(await client.get(made.headers["location"]), 401)
        assert (await client.get(f"{path}/api/docs")).status_code == 200


async def test_an_application_runs_once_and_with_its_own_store() -> None:
    """What would answer nothing, or not what is asked, is refused where it is written."""
    async with open_store("memory://") as store:
        chat = create_app(store, Settings())
        async with running(chat):
            with pytest.raises(RuntimeError, match="make another one"):
                async with running(chat):
                    pass
        with pytest.raises(RuntimeError, match="make another one"):
            async with running(chat):
                pass
        with pytest.raises(TypeError, match="that create_app returned"):
            async with running(FastAPI()):
                pass
    for other in (open_store("memory://"), "memory://"):
        with pytest.raises(TypeError, match="create_app takes a store"):
            create_app(cast("Any", other), Settings())
    with sync.open_store("memory://") as now, pytest.raises(TypeError, match=r"not chatkeep\.sync\.Store"):
        create_app(cast("Any", now), Settings())


def test_the_application_of_the_page_starts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the tests of an application, which has a lifespan in each: the store of the first one is closed."""
    monkeypatch.chdir(tmp_path)
    program = re.findall(r"```python\n(# main\.py\n.*?)```", EMBEDDING.read_text(encoding="utf-8"), re.DOTALL)[0]
    written: dict[str, Any] = {}
    exec(program, written)
    for _ in range(2):
        with TestClient(written["app"], base_url="http://127.0.0.1") as own:
            assert own.post("/chat/api/conversations", json={}).status_code == 201


async def test_a_server_leads_to_its_documentation() -> None:
    """The server itself, which is below no path: / leads to /api/docs, and the document names no server."""
    async with open_store("memory://") as store:
        transport = httpx2.ASGITransport(create_app(store, Settings()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            reply = await client.get("/")
            assert (reply.status_code, reply.headers["location"]) == (307, "/api/docs")
            assert "servers" not in (await client.get("/api/openapi.json")).json()
