"""`chatkeep serve --upstream URL`, with a model server that is a real HTTP server."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from commands import run, serving

from chatkeep import InvalidInput, Store, open_store
from chatkeep.cli import upstream
from chatkeep.cli.upstream import use_upstream
from chatkeep.providers import EXTRACTIVE_ID, LlmProviderChange
from chatkeep.settings import Settings
from servers.others import SECRET

pytestmark = pytest.mark.long  # test_agent.py, which always runs, asks such servers


AUTH: dict[str, Any] = {"auth": "jwt", "jwt_secret": SECRET}
PUBLIC = "http://8.8.8.8/v1"
"""An address that is public; nothing is sent there."""


class ModelServer(ThreadingHTTPServer):
    """Lists its models at /v1/models."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.status = 200
        self.body = b""
        self.pause = 0.0
        """Seconds before each of the first hundred bytes of a reply."""
        self.asked: list[str] = []
        self.name("qwen3", "other")

    def name(self, *models: object) -> None:
        """List these models."""
        self.body = json.dumps({"object": "list", "data": [{"id": each} for each in models]}).encode()


class _Handler(BaseHTTPRequestHandler):
    server: ModelServer

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status if self.path == "/v1/models" else 200)
        self.send_header("Location", "/v1/elsewhere")
        self.end_headers()
        try:
            for byte in self.server.body[:100] if self.server.pause else b"":
                time.sleep(self.server.pause)
                self.wfile.write(bytes([byte]))
            self.wfile.write(self.server.body[100:] if self.server.pause else self.server.body)
        except ConnectionError:
            pass  # the client has heard enough

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def models() -> Iterator[ModelServer]:
    with ModelServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    async with open_store(store_url) as store:
        yield store


async def used(store: Store, url: str, **settings: Any) -> tuple[str, str | None, bool]:
    """Use a URL, and return what the one default provider is then: model, URL, and whether it is the returned one."""
    returned = await use_upstream(store.providers, url, Settings(**settings))
    [found] = [each for each in await store.providers.list_providers() if each.is_default]
    assert found.provider_name == "openai-chat"
    return found.model_name, found.api_config.base_url, found == returned


async def test_a_model_server_becomes_the_default(store: Store, models: ModelServer) -> None:
    """The first model that it lists answers; the same URL changes nothing, another model does."""
    assert await used(store, models.url) == ("qwen3", models.url, True)
    before = await store.providers.list_providers()
    assert await used(store, f"{models.url}/") == ("qwen3", models.url, True)
    assert await store.providers.list_providers() == before
    models.name("qwen4")
    assert await used(store, models.url) == ("qwen4", models.url, True)
    await store.providers.update_provider(EXTRACTIVE_ID, LlmProviderChange(is_default=True))
    assert await used(store, models.url) == ("qwen4", models.url, True)
    assert len(await store.providers.list_providers()) == len(before) == 2
    assert set(models.asked) == {"/v1/models"}


async def test_a_model_that_is_named_is_not_asked_for(store: Store, models: ModelServer) -> None:
    """Nothing has to listen there, and nothing is sent."""
    assert await used(store, models.url, upstream_model="mine") == ("mine", models.url, True)
    assert await used(store, models.url, upstream_model="yours") == ("yours", models.url, True)
    assert models.asked == []


REPLIES: dict[str, tuple[dict[str, Any], str]] = {
    "absent": ({"status": 404}, "has the status 404"),
    "redirect": ({"status": 302}, "has the status 302"),
    "no JSON": ({"body": b"zq7"}, "is no list of models"),
    "no object": ({"body": b'["zq7"]'}, "is no list of models"),
    "deep": ({"body": b"[" * 100_000}, "is no list of models"),
    "large": ({"body": b" " * (1 << 20) + b"{}"}, "is no list of models"),
    "no data": ({"body": b"{}"}, "names no model"),
    "no models": ({"body": b'{"data": []}'}, "names no model"),
    "no names": ({"body": b'{"data": [{"id": null}]}'}, "names no model"),
    "odd": ({"body": b'{"data": {"zq7": 1}}'}, "names no model"),
    "slow": ({"pause": 0.1}, "does not answer within 1 seconds"),
}


@pytest.mark.parametrize("name", REPLIES)
async def test_a_server_that_names_no_model(name: str, models: ModelServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the URL and the way out, in time, and nothing that the server said; nothing is made."""
    monkeypatch.setattr(upstream, "FETCH_SECONDS", 1.0)
    given, reason = REPLIES[name]
    for attribute, value in given.items():
        setattr(models, attribute, value)
    await refused(models.url, f"{models.url}/models {reason}", "--upstream-model")
    assert models.asked == ["/v1/models"]


async def test_a_server_that_is_not_there(models: ModelServer) -> None:
    """It is said that it cannot be reached."""
    models.server_close()
    await refused(models.url, f"{models.url}/models cannot be reached", "--upstream-model")


async def refused(url: str, *reasons: str, **settings: Any) -> None:
    """Check that a URL is refused with these words, and that no provider is made."""
    async with open_store("memory://") as store:
        with pytest.raises(InvalidInput) as raised:
            await use_upstream(store.providers, url, Settings(**settings))
        assert [reason for reason in reasons if reason not in str(raised.value)] == []
        assert "zq7" not in f"{raised.value!s} {raised.value!r} {raised.value.__cause__!r}"
        assert len(await store.providers.list_providers()) == 1


async def test_what_is_no_url() -> None:
    """It is refused before anything is asked, and a password in it is not repeated."""
    for url in (
        "zq7",
        "file:///zq7",
        "http://a:zq7@127.0.0.1/v1",
        "http://127.0.0.1/v1?key=zq7",
        "http://x:99999/",
        "/",
    ):
        await refused(url, "--upstream: ", upstream_model="mine")
    await refused("http://127.0.0.1/v1", "--upstream-model: ", upstream_model="z" * 256)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "10.1.2.3", "[::ffff:192.168.1.1]", "[fd00::1]"])
async def test_a_private_address_needs_a_setting_with_authentication(host: str) -> None:
    """It is refused with the name of the setting, whether its model is named or not."""
    url = f"http://{host}:9/v1"
    for more in ({}, {"upstream_model": "mine"}):
        await refused(url, "not a public one", "CHATKEEP_ALLOW_PRIVATE_PROVIDERS", **AUTH, **more)
    async with open_store("memory://") as store:
        allowed: dict[str, Any] = {"upstream_model": "mine", "allow_private_providers": True}
        assert await used(store, url, **AUTH, **allowed) == ("mine", url, True)
        assert await used(store, PUBLIC, **AUTH, upstream_model="mine") == ("mine", PUBLIC, True)


async def test_the_keys_of_a_cloud_are_never_an_upstream() -> None:
    """Where a cloud tells a machine its keys, no model server is, also without authentication."""
    await refused("http://169.254.169.254/v1", "metadata", upstream_model="mine")


# --- the command --------------------------------------------------------------------------------------------


def test_serve_makes_it_answer(tmp_path: Path, models: ModelServer) -> None:
    """One word is all: the greeting says what answers, the API and `providers list` show it, and a restart keeps it."""
    url = f"sqlite:///{tmp_path}/chat.db"
    env = {**os.environ, "CHATKEEP_DATABASE_URL": url}
    ids = set()
    for _ in range(2):
        with serving(env, "--upstream", models.url) as (base, process):
            assert process.stdout is not None
            lines = [process.stdout.readline() for _ in range(4)]
            assert f"Questions are answered by qwen3 at {models.url}" in lines[-1]
            found = httpx2.get(f"{base}/api/llm-providers").raise_for_status().json()["items"]
        assert [each["model_name"] for each in found if each["is_default"]] == ["qwen3"]
        ids.add(found[-1]["id"])
    assert len(ids) == 1
    shown = run(env, "providers", "list").stdout
    assert re.search(rf"{ids.pop()}\tdefault\topenai-chat\tqwen3\t\t{re.escape(models.url)}\n", shown)


def test_a_listed_provider_shows_no_key(tmp_path: Path, models: ModelServer) -> None:
    """`providers list` names the variable, and says if it is not set."""
    env = {"CHATKEEP_DATABASE_URL": f"sqlite:///{tmp_path}/chat.db", "CHATKEEP_PROVIDER_X": "zq7"}
    with serving({**os.environ, **env}) as (base, _):
        for variable in ("CHATKEEP_PROVIDER_X", "CHATKEEP_PROVIDER_Y"):
            config = {"api_key_env": variable, "base_url": models.url}
            body = {"provider_name": "openai-chat", "model_name": "qwen3", "api_config": config}
            httpx2.post(f"{base}/api/llm-providers", json=body).raise_for_status()
    shown = run(env, "providers", "list").stdout
    assert re.search(r"\tCHATKEEP_PROVIDER_X\t", shown)
    assert "CHATKEEP_PROVIDER_Y (not set)" in shown
    assert "zq7" not in shown


@pytest.mark.parametrize(
    ("options", "settings", "reason"),
    [
        ((), {"CHATKEEP_PROVIDER": "scripted"}, "leave out --provider and CHATKEEP_PROVIDER"),
        (("--provider", "none"), {}, "leave out --provider and CHATKEEP_PROVIDER"),
        (("--database-url", "memory://"), {}, "memory:// keeps no providers"),
        ((), {"CHATKEEP_AUTH": "jwt", "CHATKEEP_JWT_SECRET": SECRET}, "CHATKEEP_ALLOW_PRIVATE_PROVIDERS=true"),
        ((), {"CHATKEEP_UPSTREAM_MODEL": "z" * 256}, "at most 255"),
    ],
)
def test_refusals_are_sentences(
    tmp_path: Path, options: tuple[str, ...], settings: dict[str, str], reason: str
) -> None:
    """The server does not start, and says why in one line."""
    env = {**os.environ, "CHATKEEP_DATABASE_URL": f"sqlite:///{tmp_path}/chat.db", **settings}
    command = [
        sys.executable,
        "-m",
        "chatkeep",
        "serve",
        "--port",
        "0",
        "--upstream",
        "http://127.0.0.1:9/v1",
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False, timeout=60)
    assert done.returncode in (1, 2)
    assert reason in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
