"""What the failures of models mean for the person who asked, with the real libraries and real connections."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import openai
import pytest
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.exceptions import (
    ContentFilterError,
    ModelAPIError,
    ModelRequestRejectedError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models import Model
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import UsageLimits
from test_models_of import KINDS, no_key, provider

from chatkeep.answers import failures
from chatkeep.answers.failures import failure_of
from chatkeep.answers.hosts import HostRefused, guarded_client
from chatkeep.answers.models import model_of
from chatkeep.answers.provider import ProviderFailed
from chatkeep.errors import StoreUnavailable
from chatkeep.events import LIMIT, PROVIDER, TIMEOUT
from servers.endpoint import endpoint, json_response, response

pytestmark = pytest.mark.long  # test_agent.py, which always runs, has the failures that people see


SECRET = "sk-secret-of-the-provider"


@asynccontextmanager
async def model(kind: str, *answers: bytes, **limits: Any) -> AsyncIterator[Model]:
    """A model at a host that gives answers."""
    async with endpoint(*answers) as host, guarded_client(allow_private=True, **limits) as client:
        yield model_of(provider(kind, {"base_url": host.url}), client, no_key)


async def failure(made: Model, **options: Any) -> ProviderFailed:
    """What it means that a question to a model fails, streamed as answers are."""
    error: Exception | None = None
    try:
        async with Agent(made).run_stream_events("what is there to drink?", **options) as events:
            async for _ in events:
                pass
    except Exception as raised:  # noqa: BLE001 - it is looked at
        error = raised
    assert error is not None
    meant = failure_of(error)
    assert meant is not None, repr(error)
    assert SECRET not in meant.reason
    return meant


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("status", "reason", "of"),
    [
        (400, failures.REJECTED, PROVIDER),
        (401, failures.REFUSED_KEY, PROVIDER),
        (402, failures.USED_UP, PROVIDER),
        (403, failures.REFUSED_KEY, PROVIDER),
        (404, failures.UNKNOWN_MODEL, PROVIDER),
        (408, failures.TOO_SLOW, TIMEOUT),
        (413, failures.TOO_LONG, LIMIT),
        (422, failures.REJECTED, PROVIDER),
        (429, failures.BUSY, PROVIDER),
        (500, failures.OUT_OF_ORDER, PROVIDER),
        (502, failures.OUT_OF_ORDER, PROVIDER),
        (503, failures.OVERLOADED, PROVIDER),
        (504, failures.TOO_SLOW, TIMEOUT),
        (529, failures.OVERLOADED, PROVIDER),
    ],
)
async def test_statuses(kind: str, status: int, reason: str, of: str) -> None:
    """Each status has a meaning, and nothing of what the provider says is in it."""
    body = json_response({"error": {"message": SECRET, "type": SECRET, "code": SECRET}}, status, Retry_After="60")
    async with model(kind, body) as made:
        meant = await failure(made)
    assert (meant.reason, meant.kind) == (reason, of)


@pytest.mark.parametrize("kind", KINDS)
async def test_pages_of_html(kind: str) -> None:
    """A page of a proxy is no answer, whatever its status is."""
    page = f"<html>{SECRET}</html>".encode()
    async with model(kind, response(502, page, Content_Type="text/html", Retry_After="60")) as made:
        assert (await failure(made)).reason == failures.OUT_OF_ORDER


@pytest.mark.parametrize("kind", KINDS)
async def test_connections(kind: str) -> None:
    """A host that nobody listens at, that is not allowed, or that is silent."""
    async with endpoint(b"") as host:
        url = host.url
        async with guarded_client(allow_private=False) as client:
            meant = await failure(model_of(provider(kind, {"base_url": url}), client, no_key))
            assert (meant.reason, meant.kind) == (failures.REFUSED_HOST, PROVIDER)
        async with guarded_client(allow_private=True, read=0.2) as client:
            meant = await failure(model_of(provider(kind, {"base_url": url}), client, no_key))
            assert (meant.reason, meant.kind) == (failures.TOO_SLOW, TIMEOUT)
    async with guarded_client(allow_private=True) as client:
        meant = await failure(model_of(provider(kind, {"base_url": url}), client, no_key))
        assert (meant.reason, meant.kind) == (failures.UNREACHABLE, PROVIDER)


def streamed(*chunks: Any, length: int | None = None) -> bytes:
    """A stream of events, perhaps with a length that it does not reach."""
    body = b"".join(b"data: %s\n\n" % json.dumps(chunk).encode() for chunk in chunks)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
    return head + (b"Content-Length: %d\r\n" % (length or len(body))) + b"\r\n" + body


CHUNK = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"}
CHUNK |= {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "tea"}, "finish_reason": None}]}


async def test_a_stream_that_is_cut() -> None:
    """A connection that ends before the answer does."""
    async with model("openai-chat", streamed(CHUNK, length=9_999)) as made:
        assert (await failure(made)).reason == failures.CUT_OFF


async def test_a_stream_that_stops() -> None:
    """A stream without an end that is too large, or that stops, ends."""
    async with model("openai-chat", streamed(*[CHUNK] * 100), response_bytes=5_000) as made:
        assert (await failure(made)).reason == failures.CUT_OFF


async def test_an_error_in_a_stream() -> None:
    """An error that comes after the first words."""
    async with model("openai-chat", streamed(CHUNK, {"error": {"message": SECRET}})) as made:
        assert (await failure(made)).kind == PROVIDER


async def test_refusal() -> None:
    """A content filter that lets nothing through."""
    ended = {**CHUNK, "choices": [{"index": 0, "delta": {}, "finish_reason": "content_filter"}]}
    async with model("openai-chat", streamed(ended)) as made:
        assert (await failure(made)).reason == failures.REFUSAL


async def test_quota() -> None:
    """A quota that is used up is no rate limit: waiting does not help."""
    body = json_response({"error": {"message": SECRET, "code": "insufficient_quota"}}, 429, Retry_After="60")
    async with model("openai-chat", body) as made:
        assert (await failure(made)).reason == failures.USED_UP


async def test_context_window() -> None:
    """A conversation that is too long for the model."""
    body = json_response({"error": {"message": SECRET, "code": "context_length_exceeded"}}, 400)
    async with model("openai-chat", body) as made:
        meant = await failure(made)
    assert (meant.reason, meant.kind) == (failures.TOO_LONG, LIMIT)


# --- agents -----------------------------------------------------------------------------------------------


def calling(name: str, arguments: str) -> FunctionModel:
    """A model that calls the same tool for ever."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(name, arguments)])

    return FunctionModel(answer)


async def agent_failure(agent: Agent[None, str], **options: Any) -> ProviderFailed | None:
    """What the failure of an agent means."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - it is looked at
        await agent.run("what is there to drink?", **options)
    return failure_of(caught.value)


@pytest.mark.parametrize(("name", "arguments"), [("brew", '{"cups": "many"}'), ("brew", "{not json"), ("bake", "{}")])
async def test_wrong_calls(name: str, arguments: str) -> None:
    """A model that calls a tool wrongly until there are no more tries, or one that is not there."""
    agent = Agent(calling(name, arguments))

    @agent.tool_plain
    def brew(cups: int) -> str:
        return "tea"

    meant = await agent_failure(agent)
    assert meant is not None
    assert (meant.reason, meant.kind) == (failures.WRONG_CALLS, PROVIDER)


async def test_a_tool_that_always_asks_again() -> None:
    """A tool that is not content with its arguments."""
    agent = Agent(calling("brew", "{}"))

    @agent.tool_plain
    def brew() -> str:
        raise ModelRetry("more")

    meant = await agent_failure(agent)
    assert meant is not None
    assert meant.reason == failures.WRONG_CALLS


async def test_too_many_steps() -> None:
    """A model that goes on calling tools."""
    agent = Agent(calling("brew", "{}"))

    @agent.tool_plain
    def brew() -> str:
        return "tea"

    meant = await agent_failure(agent, usage_limits=UsageLimits(request_limit=3))
    assert meant is not None
    assert (meant.reason, meant.kind) == (failures.TOO_MANY_STEPS, LIMIT)


async def test_answers_without_anything() -> None:
    """A model that says nothing, again and again; and one that has no room to write."""

    def nothing(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([])

    def cut(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([], finish_reason="length")

    meant = await agent_failure(Agent(FunctionModel(nothing)))
    assert meant is not None
    assert meant.reason == failures.INCOMPREHENSIBLE
    meant = await agent_failure(Agent(FunctionModel(cut)))
    assert meant is not None
    assert (meant.reason, meant.kind) == (failures.NO_ROOM, LIMIT)


# --- others -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        *(ValueError("x"), StoreUnavailable("x"), UserError("x"), RuntimeError("x"), KeyError("x")),
        *(asyncio.CancelledError(), KeyboardInterrupt(), OSError("x"), ExceptionGroup("x", [ValueError("x")])),
    ],
    ids=repr,
)
def test_errors_that_are_no_failures_of_models(error: BaseException) -> None:
    """They are for the log: nobody can say what they mean."""
    assert failure_of(error) is None


@pytest.mark.parametrize(
    ("error", "reason", "of"),
    [
        (ProviderFailed("as it is", LIMIT), "as it is", LIMIT),
        (TimeoutError(), failures.TOO_SLOW, TIMEOUT),
        (ExceptionGroup("x", [ValueError("x"), HostRefused("x")]), failures.REFUSED_HOST, PROVIDER),
        (ContentFilterError(SECRET), failures.REFUSAL, PROVIDER),
        (UnexpectedModelBehavior(SECRET), failures.INCOMPREHENSIBLE, PROVIDER),
        (UsageLimitExceeded(SECRET), failures.TOO_MANY_STEPS, LIMIT),
        (ModelRequestRejectedError("m", SECRET), failures.REJECTED, PROVIDER),
        (ModelAPIError("m", SECRET), failures.OUT_OF_ORDER, PROVIDER),
        (openai.OpenAIError(SECRET), failures.OUT_OF_ORDER, PROVIDER),
        (httpx2.RemoteProtocolError(SECRET), failures.CUT_OFF, PROVIDER),
        (httpx2.InvalidURL(SECRET), failures.UNREACHABLE, PROVIDER),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_as_they_are(error: Exception, reason: str, of: str) -> None:
    """Errors that come as they are, from below an agent."""
    meant = failure_of(error)
    assert meant is not None
    assert (meant.reason, meant.kind) == (reason, of)


def test_causes() -> None:
    """What an error was raised from counts, unless that was hidden; a circle of causes has an end."""
    error = ModelAPIError("m", SECRET)
    error.__cause__ = httpx2.ReadError("x")
    assert failure_of(error) is not None
    assert str(failure_of(error)) == failures.CUT_OFF
    error.__cause__ = error
    assert str(failure_of(error)) == failures.OUT_OF_ORDER
