"""Models made of stored providers: what is sent where, with which key, and what is never sent."""

import asyncio
import gc
import json
import logging
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx2
import pytest
from pydantic import ValidationError
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelAPIError, ModelHTTPError, UnexpectedModelBehavior

from chatkeep.answers.failures import REFUSED_HOST, TOO_SLOW, failure_of
from chatkeep.answers.hosts import guarded_client
from chatkeep.answers.models import HOSTS, MAKERS, model_of
from chatkeep.answers.provider import ProviderFailed
from chatkeep.errors import InvalidInput
from chatkeep.model_settings import checked_settings
from chatkeep.providers import STANDARD_KEYS, ApiConfig, LlmProvider
from servers.endpoint import Endpoint, endpoint, json_response, response

pytestmark = pytest.mark.long  # test_agent.py, which always runs, asks models of three kinds


USAGE = {"input_tokens": 3, "output_tokens": 1, "total_tokens": 4}
ITEM = {"type": "message", "id": "m", "role": "assistant", "status": "completed"}
CHAT = {
    "id": "c",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "tea"}}],
}
ANSWERS: dict[str, dict[str, Any]] = {
    "openai": {
        "id": "r",
        "object": "response",
        "created_at": 1,
        "model": "m",
        "status": "completed",
        "usage": USAGE,
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "output": [{**ITEM, "content": [{"type": "output_text", "text": "tea", "annotations": []}]}],
    },
    "openai-chat": CHAT,
    "ollama": CHAT,
    "anthropic": {
        "id": "a",
        "type": "message",
        "role": "assistant",
        "model": "m",
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
        "content": [{"type": "text", "text": "tea"}],
    },
    "google": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "tea"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1, "totalTokenCount": 4},
    },
}
"""What each kind of API answers, with the text `tea`."""

PATHS = {
    "openai": "/responses",
    "openai-chat": "/chat/completions",
    "ollama": "/chat/completions",
    "anthropic": "/v1/messages",
    "google": "/v1beta/models/some-model:generateContent",
}

KINDS = list(MAKERS)

MARK = "of-the-environment"
SECRETS = (
    *("OPENAI_API_KEY", "OPENAI_ADMIN_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_WEBHOOK_SECRET"),
    *("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "ANTHROPIC_WEBHOOK_SIGNING_KEY", "ANTHROPIC_PROFILE"),
    *("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "OLLAMA_API_KEY"),
)
LEAKS = dict.fromkeys(SECRETS, MARK) | {
    "OPENAI_CUSTOM_HEADERS": f"X-Mine: {MARK}\nAuthorization: Bearer {MARK}",
    "ANTHROPIC_CUSTOM_HEADERS": f"X-Mine: {MARK}\nX-Api-Key: {MARK}",
    "OPENAI_BASE_URL": f"https://{MARK}.invalid",
    "ANTHROPIC_BASE_URL": f"https://{MARK}.invalid",
    "GOOGLE_GEMINI_BASE_URL": f"https://{MARK}.invalid",
    "OLLAMA_BASE_URL": f"https://{MARK}.invalid",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
}
"""What the libraries of the providers read from the environment."""


def provider(kind: str, config: Mapping[str, Any] | None = None) -> LlmProvider:
    """A stored provider."""
    now = datetime.now(UTC)
    given: Any = kind
    return LlmProvider(
        id=UUID(int=7),
        provider_name=given,
        model_name="some-model",
        is_default=True,
        api_config=ApiConfig.model_validate(config or {}),
        created_at=now,
        updated_at=now,
    )


def no_key(_: str) -> str | None:
    """The value of a variable where none is set."""
    return None


@asynccontextmanager
async def answering(kind: str, *answers: bytes) -> AsyncIterator[tuple[Endpoint, httpx2.AsyncClient]]:
    """A host that answers like a kind of provider, and a client that may reach it."""
    async with (
        endpoint(*(answers or [json_response(ANSWERS[kind])])) as host,
        guarded_client(allow_private=True) as client,
    ):
        yield host, client


async def asked(model: Any) -> str:
    """What a model answers to a question."""
    return (await Agent(model).run("what is there to drink?")).output


async def failed(model: Any) -> Exception:
    """How a question fails."""
    with pytest.raises((ModelAPIError, UnexpectedModelBehavior, httpx2.HTTPError)) as caught:
        await asked(model)
    return caught.value


def meaning(error: Exception) -> str | None:
    """What the person who asked is told."""
    found = failure_of(error)
    return found.reason if found else None


# --- what is sent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_a_host_without_a_key(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that an administrator named gets nothing that the environment has: no key, organization or header."""
    for name, value in LEAKS.items():
        monkeypatch.setenv(name, value)
    async with answering(kind) as (host, client):
        model = model_of(provider(kind, {"base_url": host.url}), client, dict(LEAKS).get)
        assert await asked(model) == "tea"
    (seen,) = host.seen
    assert PATHS[kind] in seen.line
    everything = f"{seen.line} {seen.headers} {seen.body!r}"
    assert MARK not in everything
    assert "no-key" in everything
    assert not {"openai-organization", "openai-project", "x-mine"} & seen.headers.keys()


@pytest.mark.parametrize("kind", KINDS)
async def test_copies_of_clients(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The libraries copy their clients for some requests; a copy has nothing of the environment either."""
    for name, value in LEAKS.items():
        monkeypatch.setenv(name, value)
    async with answering(kind) as (host, client):
        model = model_of(provider(kind, {"base_url": host.url}), client, no_key)
        settings: Any = {"max_retries": 0}
        assert (await Agent(model, model_settings=settings).run("what is there to drink?")).output == "tea"
    assert MARK not in f"{host.seen}"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_host_with_a_key(kind: str) -> None:
    """The key is the one of the variable that the configuration names, without spaces around it."""
    async with answering(kind) as (host, client):
        config = {"base_url": host.url, "api_key_env": "CHATKEEP_PROVIDER_TEA"}
        model = model_of(provider(kind, config), client, {"CHATKEEP_PROVIDER_TEA": " the-key\n"}.get)
        assert await asked(model) == "tea"
    headers = host.seen[0].headers
    assert headers.get("x-goog-api-key") == "the-key" or headers["authorization"] == "Bearer the-key"


@pytest.mark.parametrize("kind", KINDS)
def test_its_own_host(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without base_url a provider's own host is asked, wherever the environment points."""
    for name, value in LEAKS.items():
        monkeypatch.setenv(name, value)
    keys = dict.fromkeys(STANDARD_KEYS.values(), "the-key")
    model = model_of(provider(kind), httpx2.AsyncClient(timeout=9), keys.get)
    assert str(model.base_url).rstrip("/") == HOSTS[kind]
    assert model.model_name == "some-model"


@pytest.mark.parametrize("kind", KINDS)
async def test_the_client_guards_every_kind(kind: str) -> None:
    """All kinds send their requests by the client that they are given, which refuses an address of this network."""
    async with answering(kind) as (host, _), guarded_client(allow_private=False) as client:
        model = model_of(provider(kind, {"base_url": host.url}), client, no_key)
        assert meaning(await failed(model)) == REFUSED_HOST
        assert host.seen == []


@pytest.mark.parametrize("kind", KINDS)
async def test_redirects(kind: str) -> None:
    """No library follows a redirect: the key would go along."""
    async with endpoint(response(200)) as other, answering(kind, response(307, Location=other.url)) as (host, client):
        model = model_of(provider(kind, {"base_url": host.url}), client, no_key)
        assert isinstance(await failed(model), ModelAPIError | UnexpectedModelBehavior)
        assert other.seen == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [408, 409, 429, 503])
async def test_nothing_is_asked_twice(kind: str, status: int) -> None:
    """No request is sent again by itself, whatever the provider says: it may cost money."""
    async with answering(kind, json_response({"error": {"message": "full"}}, status, Retry_After="0")) as (
        host,
        client,
    ):
        model = model_of(provider(kind, {"base_url": host.url}), client, no_key)
        with pytest.raises(ModelHTTPError):
            await asked(model)
        assert len(host.seen) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_time_outs(kind: str) -> None:
    """The time-out of the client is the one of each request."""
    async with endpoint(b"") as host, guarded_client(allow_private=True, read=0.2) as client:
        model = model_of(provider(kind, {"base_url": host.url}), client, no_key)
        began = time.monotonic()
        assert meaning(await failed(model)) == TOO_SLOW
        assert time.monotonic() - began < 15


@pytest.mark.parametrize("kind", KINDS)
async def test_whose_the_client_is(kind: str) -> None:
    """A model that is dropped leaves the client open: others use it, too."""
    async with answering(kind) as (host, client):
        model = model_of(provider(kind, {"base_url": host.url}), client, no_key)
        async with model:
            assert await asked(model) == "tea"
        del model
        gc.collect()
        await asyncio.sleep(0)
        assert not client.is_closed


async def test_settings() -> None:
    """Settings of the configuration are sent; background is one of them."""
    config = {"settings": {"temperature": 0.5, "max_tokens": 77}, "background": True}
    async with answering("openai") as (host, client):
        model = model_of(provider("openai", {"base_url": host.url, **config}), client, no_key)
        assert await asked(model) == "tea"
    body = json.loads(host.seen[0].body)
    assert (body["temperature"], body["max_output_tokens"], body["background"]) == (0.5, 77, True)
    assert body["model"] == "some-model"


# --- what is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        *({"extra_headers": {"X-Mine": "1"}}, {"extra_body": {"model": "other"}}, {"openai_store": True}),
        *({"max_retries": 9}, {"openai_transport": "websocket"}, {"temperature": 3}, {"temperature": "hot"}),
        *({"max_tokens": 0}, {"max_tokens": True}, {"timeout": 1e9}, {"stop_sequences": ["x"] * 17}),
        *({"temperature": float("nan")}, {"thinking": "harder"}, {"logit_bias": {"1": "x"}}, {"temperature": None}),
    ],
)
async def test_settings_that_are_refused(settings: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """Settings that could change where a request goes or whose it is are refused, and values out of range."""
    (name,) = settings
    with pytest.raises(InvalidInput, match=f"settings: {name}"):
        checked_settings(settings)
    stored = provider("openai", {"base_url": "http://127.0.0.1:9"})
    stored = stored.model_copy(update={"api_config": ApiConfig.model_construct(settings=settings)})
    async with guarded_client(allow_private=True) as client:
        with pytest.raises(ProviderFailed, match="the configuration of this model is not valid"):
            model_of(stored, client, {"OPENAI_API_KEY": "x"}.get)
    assert name in caplog.text


def test_settings_that_are_kept() -> None:
    """Settings come back as they are, and only those that are given."""
    settings: dict[str, Any] = {
        "max_tokens": 100,
        "temperature": 1,
        "top_p": 0.9,
        "top_k": 40,
        "timeout": 30,
        "request_timeout": 60.0,
        "first_event_timeout": 20,
        "parallel_tool_calls": False,
        "seed": -1,
        "presence_penalty": -2,
        "frequency_penalty": 0.5,
        "logit_bias": {"50256": -100},
        "stop_sequences": ["END"],
        "thinking": "low",
        "service_tier": "flex",
    }
    assert checked_settings(settings) == settings
    assert checked_settings({}) == {}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind in STANDARD_KEYS])
def test_a_key_that_is_not_set(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """The person who asked is told that it lacks; the log names the variable."""
    for value in (None, "", " \n"):
        caplog.clear()
        with pytest.raises(ProviderFailed) as caught:
            model_of(provider(kind), httpx2.AsyncClient(timeout=9), {STANDARD_KEYS[kind]: value}.get)
        assert caught.value.reason == "the key of this model is not set on the server"
        assert STANDARD_KEYS[kind] in caplog.text


def test_a_key_that_cannot_be_one(caplog: pytest.LogCaptureFixture) -> None:
    """A key that no header can have never gets to a library, whose error would show it."""
    for value in ("secret key", "secret\nX-Mine: 1", "sécret", "secret\x00", "x" * 10_001):
        with pytest.raises(ProviderFailed, match="cannot be one"):
            model_of(provider("openai"), httpx2.AsyncClient(timeout=9), {"OPENAI_API_KEY": value}.get)
    assert "OPENAI_API_KEY" in caplog.text
    assert not any(word in caplog.text for word in ("secret", "sécret", "xxx"))


def test_a_key_of_another_host() -> None:
    """No configuration sends a standard key, or a secret of this server, to a host that an administrator names."""
    for name in ("CHATKEEP_DATABASE_URL", "PATH", "CHATKEEP_JWT_SECRET", "chatkeep_provider_x"):
        with pytest.raises(ValidationError):
            ApiConfig.model_validate({"api_key_env": name, "base_url": "https://llm.example"})
    config = ApiConfig.model_construct(api_key_env="OPENAI_API_KEY", base_url="https://llm.example")
    stored = provider("openai").model_copy(update={"api_config": config})
    with pytest.raises(ProviderFailed, match="not valid"):
        model_of(stored, httpx2.AsyncClient(timeout=9), {"OPENAI_API_KEY": "x"}.get)


@pytest.mark.parametrize("missing", ["openai", "anthropic", "google.genai"])
def test_a_package_that_is_missing(
    missing: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log names the extra; the person who asked gets to know that it is not their fault."""
    for name in [name for name in sys.modules if name.startswith(("pydantic_ai.models.", "pydantic_ai.providers."))]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("chatkeep.answers.openai_client", "chatkeep.answers.anthropic_client"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, missing, None)
    kind = missing.partition(".")[0]
    with pytest.raises(ProviderFailed, match="this server cannot use models"):
        model_of(provider(kind, {"base_url": "http://127.0.0.1:9"}), httpx2.AsyncClient(timeout=9), no_key)
    assert 'pip install "chatkeep[agent]"' in caplog.text


def test_imports_are_late() -> None:
    """Nothing of pydantic-ai, nor of a provider's library, is imported before a model is made."""
    program = """
import sys
import chatkeep.answers.models, chatkeep.answers.provider
print([name for name in ("pydantic_ai", "openai", "anthropic", "google.genai", "mcp", "httpx2") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr


def test_secrets_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """No key is in the log, whatever its level."""
    with caplog.at_level(logging.DEBUG):
        for kind in KINDS:
            config = {"base_url": "http://127.0.0.1:9", "api_key_env": "CHATKEEP_PROVIDER_X"}
            model_of(provider(kind, config), httpx2.AsyncClient(timeout=9), {"CHATKEEP_PROVIDER_X": "the-key"}.get)
    assert "the-key" not in caplog.text
