"""The servers that stand in for model providers, asked by the real clients."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from anthropic import AsyncAnthropic
from anthropic.types import RawMessageStreamEvent, TextBlock, ThinkingBlock, ToolUseBlock
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter
from pydantic_ai import Agent, AgentRunResultEvent
from pydantic_ai.exceptions import ModelConnectionError, SuspendedResponseExpired
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.anthropic import AnthropicModel
from pydantic_ai.models.openai import OpenAIResponsesModel, OpenAIResponsesModelSettings
from pydantic_ai.providers.anthropic import AnthropicProvider
from pydantic_ai.providers.openai import OpenAIProvider

from servers.anthropic_events import SIGNATURE
from servers.model_script import Answer, Call, Request, Trouble
from servers.models import Fake, FakeOpenAI, fake_anthropic, fake_openai, spawned

pytestmark = pytest.mark.apart  # what stands in for providers is used by the tests of the agent, which always run

TEXT = [f"word{number} " for number in range(10)]
WEATHER = Call("weather", ['{"ci', 'ty": "Oslo"}'])
ASK: Any = {"model": "gpt-test", "input": "hi"}
CHAT: Any = {"model": "gpt-test", "messages": [{"role": "user", "content": "hi"}]}
MESSAGE: Any = {"model": "claude-test", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}

RESPONSE_EVENTS = """
created in_progress
output_item.added reasoning_summary_part.added reasoning_summary_text.delta reasoning_summary_text.done
reasoning_summary_part.done output_item.done
output_item.added content_part.added output_text.delta output_text.delta output_text.done content_part.done
output_item.done
output_item.added function_call_arguments.delta function_call_arguments.delta function_call_arguments.done
output_item.done
completed
"""


def to(fake: Fake) -> AsyncOpenAI:
    """OpenAI's client, which does not try again."""
    return AsyncOpenAI(base_url=fake.url, api_key="sk-secret", max_retries=0)


def to_anthropic(fake: Fake) -> AsyncAnthropic:
    """Anthropic's client, which does not try again."""
    return AsyncAnthropic(base_url=fake.url, api_key="sk-secret", max_retries=0)


@asynccontextmanager
async def background_agent(fake: FakeOpenAI) -> AsyncIterator[Agent[None, str]]:
    """An agent with a tool, whose answers are made in the background."""
    async with httpx2.AsyncClient(timeout=10) as http:
        provider = OpenAIProvider(base_url=fake.url, api_key="sk-secret", http_client=http)
        settings = OpenAIResponsesModelSettings(openai_background=True, max_retries=0)
        agent = Agent(OpenAIResponsesModel("gpt-test", provider=provider), model_settings=settings)

        @agent.tool_plain
        def weather(city: str) -> str:
            return f"sunny in {city}"

        yield agent


def paths(fake: Fake) -> list[tuple[str, str]]:
    """What was asked for."""
    return [(request.method, request.path) for request in fake.requests]


class TestResponses:
    """OpenAI's Responses."""

    async def test_the_events_are_those_of_openai_in_order(self) -> None:
        """Every event has the next number."""
        answer = Answer(reasoning=["hm"], text=["Let me ", "look."], calls=[WEATHER])
        async with fake_openai([answer]) as fake, to(fake) as client:
            events = [event async for event in await client.responses.create(**ASK, stream=True)]
            assert [event.type.removeprefix("response.") for event in events] == RESPONSE_EVENTS.split()
            assert [event.sequence_number for event in events] == list(range(len(events)))
            last = events[-1]
            assert last.type == "response.completed"
            assert last.response.output_text == "Let me look."
            assert last.response.usage
            assert last.response.usage.total_tokens == 18
            assert (fake.requests[0].path, fake.requests[0].body["input"], fake.creates) == ("/v1/responses", "hi", 1)
            assert fake.requests[0].headers["authorization"] == "Bearer sk-secret"

    async def test_the_stream_helper_reads_it(self) -> None:
        """It checks that items and parts were begun before their deltas."""
        async with fake_openai([Answer(text=TEXT, calls=[WEATHER])]) as fake, to(fake) as client:
            async with client.responses.stream(**ASK) as stream:
                final = await stream.get_final_response()
            assert final.output_text == "".join(TEXT)
            assert final.output[1].type == "function_call"
            assert json.loads(final.output[1].arguments) == {"city": "Oslo"}

    async def test_without_a_stream(self) -> None:
        """The whole response at once; answers come in the order of the script, and the last one again."""
        script = [Answer(text=["one"]), Answer(refusal="no"), Answer(text=["two"], ending="length")]
        async with fake_openai(script) as fake, to(fake) as client:
            one, refused, two, again = [await client.responses.create(**ASK) for _ in range(4)]
            assert [one.output_text, refused.output_text, two.output_text, again.output_text] == [
                "one",
                "",
                "two",
                "two",
            ]
            assert refused.output[0].type == "message"
            assert refused.output[0].content[0].type == "refusal"
            assert two.incomplete_details
            assert (two.status, two.incomplete_details.reason) == ("incomplete", "max_output_tokens")

    async def test_the_rest_after_the_first_connection_was_cut(self) -> None:
        """The answer goes on meanwhile; it is begun, and paid, once."""
        answer = Answer(text=TEXT, pause=0.02, trouble="cut", at=[4])
        async with fake_openai([answer]) as fake, to(fake) as client:
            first = [
                event async for event in cut_short(await client.responses.create(**ASK, stream=True, background=True))
            ]
            assert len([event for event in first if event.type == "response.output_text.delta"]) == 4
            created, number = first[0], first[-1].sequence_number
            assert created.type == "response.created"
            rest = [
                event
                async for event in await client.responses.retrieve(
                    created.response.id, stream=True, starting_after=number
                )
            ]
            assert [event.sequence_number for event in first + rest] == list(range(len(first) + len(rest)))
            assert rest[-1].type == "response.completed"
            assert rest[-1].response.output_text == "".join(TEXT)
            assert "".join(
                event.delta for event in first + rest if event.type == "response.output_text.delta"
            ) == "".join(TEXT)
            assert (await client.responses.retrieve(created.response.id)).output_text == "".join(TEXT)
            assert fake.creates == 1

    async def test_a_later_connection_may_be_cut_too(self) -> None:
        """`at` has a number for each connection."""
        answer = Answer(text=TEXT, trouble="reset", at=[2, 5])
        async with fake_openai([answer]) as fake, to(fake) as client:
            events = [
                event async for event in cut_short(await client.responses.create(**ASK, stream=True, background=True))
            ]
            for expected in (5, 10):
                stream = await client.responses.retrieve(
                    "resp_1", stream=True, starting_after=events[-1].sequence_number
                )
                events += [event async for event in cut_short(stream)]
                assert len([event for event in events if event.type == "response.output_text.delta"]) == expected
            assert events[-1].type == "response.completed"

    async def test_cancelling_a_background_answer(self) -> None:
        """It stops at once, and whoever reads it comes to an end without a last event."""
        async with fake_openai([Answer(text=["x"], repeat=None, pause=0.01)]) as fake, to(fake) as client:
            begun = await client.responses.create(**ASK, background=True)
            assert begun.status == "in_progress"
            reading = asyncio.create_task(all_of(await client.responses.retrieve(begun.id, stream=True)))
            await asyncio.sleep(0.1)
            assert (await client.responses.cancel(begun.id)).status == "cancelled"
            made = len(fake.jobs[begun.id].frames)
            events = await asyncio.wait_for(reading, 10)
            assert events[-1].type == "response.output_text.delta"
            await asyncio.sleep(0.1)
            assert len(fake.jobs[begun.id].frames) == made
            assert (await client.responses.retrieve(begun.id)).status == "cancelled"

    async def test_an_answer_that_has_expired(self) -> None:
        """It is not found."""
        async with fake_openai([Answer(text=TEXT)]) as fake, to(fake) as client:
            begun = await client.responses.create(**ASK, background=True)
            del fake.jobs[begun.id]
            with pytest.raises(openai.NotFoundError):
                await client.responses.retrieve(begun.id)

    async def test_the_models(self) -> None:
        """A list of them costs nothing."""
        async with fake_openai([]) as fake, to(fake) as client:
            assert [model.id async for model in client.models.list()] == ["gpt-test"]
            assert fake.creates == 0


async def all_of(stream: Any) -> list[Any]:
    """All events of a stream."""
    return [event async for event in stream]


async def cut_short(stream: Any) -> AsyncIterator[Any]:
    """The events of a stream whose connection is lost."""
    try:
        async for event in stream:
            yield event
    except openai.APIConnectionError:
        return


class TestChat:
    """OpenAI's Chat Completions."""

    async def test_a_stream_with_usage(self) -> None:
        """Text, calls, the reason of the end, and the usage for who asks for it."""
        answer = Answer(reasoning=["hm"], text=["Let me ", "look."], calls=[WEATHER])
        async with fake_openai([answer]) as fake, to(fake) as client:
            stream = await client.chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True})
            chunks = [chunk async for chunk in stream]
            deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
            assert "".join(delta.content or "" for delta in deltas) == "Let me look."
            calls = [call for delta in deltas for call in delta.tool_calls or ()]
            assert [call.function.name for call in calls if call.function] == ["weather", None, None]
            assert "".join((call.function and call.function.arguments) or "" for call in calls) == '{"city": "Oslo"}'
            assert chunks[-1].usage
            assert chunks[-1].usage.completion_tokens == 7
            assert [chunk.choices[0].finish_reason for chunk in chunks[-2:-1]] == ["tool_calls"]

    async def test_without_a_stream(self) -> None:
        """The whole completion at once."""
        async with fake_openai([Answer(text=TEXT, ending="filter")]) as fake, to(fake) as client:
            choice = (await client.chat.completions.create(**CHAT)).choices[0]
            assert (choice.message.content, choice.finish_reason) == ("".join(TEXT), "content_filter")

    @pytest.mark.parametrize("answer", [Answer(text=TEXT, trouble="error", at=[3]), Answer(text=TEXT, ending="failed")])
    async def test_an_error_in_the_middle(self, answer: Answer) -> None:
        """The client raises what the server said."""
        async with fake_openai([answer]) as fake, to(fake) as client:
            with pytest.raises(openai.APIError, match="The server had an error"):
                await all_of(await client.chat.completions.create(**CHAT, stream=True))


class TestMessages:
    """Anthropic's Messages."""

    async def test_a_stream_with_thoughts_and_a_tool(self) -> None:
        """The SDK puts the blocks together."""
        answer = Answer(reasoning=["h", "m"], text=["Let me ", "look."], calls=[WEATHER])
        async with fake_anthropic([answer]) as fake, to_anthropic(fake) as client:
            async with client.messages.stream(**MESSAGE) as stream:
                kinds = [event.type async for event in stream]
                message = await stream.get_final_message()
            thought, text, call = message.content
            assert thought == ThinkingBlock(thinking="hm", signature=SIGNATURE, type="thinking")
            assert text.type == "text"
            assert text.text == "Let me look."
            assert call == ToolUseBlock(id="call_1", name="weather", input={"city": "Oslo"}, type="tool_use")
            assert message.stop_reason == "tool_use"
            assert (message.usage.input_tokens, message.usage.output_tokens) == (11, 7)
            assert (kinds[0], kinds[-1], kinds.count("content_block_stop")) == ("message_start", "message_stop", 3)
            assert (fake.requests[0].headers["authorization"], fake.creates) == ("Bearer sk-secret", 1)

    async def test_the_bytes(self) -> None:
        """The events that the SDK keeps to itself are there, too."""
        async with fake_anthropic([Answer(text=["a"])]) as fake, httpx2.AsyncClient() as http:
            reply = await http.post(f"{fake.url}/v1/messages", json={**MESSAGE, "stream": True})
            names = [line.removeprefix("event: ") for line in reply.text.splitlines() if line.startswith("event: ")]
            begin, end = ["message_start", "content_block_start", "ping"], ["message_delta", "message_stop"]
            assert names == [*begin, "content_block_delta", "content_block_stop", *end]

    async def test_without_a_stream(self) -> None:
        """The whole message at once."""
        answer = Answer(reasoning=["hm"], text=TEXT, calls=[WEATHER])
        async with fake_anthropic([answer]) as fake, to_anthropic(fake) as client:
            thought, text, call = (await client.messages.create(**MESSAGE)).content
            assert thought == ThinkingBlock(thinking="hm", signature=SIGNATURE, type="thinking")
            assert text == TextBlock(text="".join(TEXT), type="text")
            assert call == ToolUseBlock(id="call_1", name="weather", input={"city": "Oslo"}, type="tool_use")

    async def test_an_error_in_the_middle(self) -> None:
        """The client raises it with its kind."""
        answer = Answer(text=TEXT, trouble="error", at=[3])
        async with fake_anthropic([answer]) as fake, to_anthropic(fake) as client:
            with pytest.raises(anthropic.APIStatusError, match="overloaded_error"):
                await all_of(await client.messages.create(**MESSAGE, stream=True))

    async def test_through_an_agent(self) -> None:
        """pydantic-ai reads it, and answers the call."""
        async with fake_anthropic([Answer(reasoning=["hm"], calls=[WEATHER]), Answer(text=TEXT)]) as fake:
            async with httpx2.AsyncClient() as http:
                provider = AnthropicProvider(base_url=fake.url, api_key="sk-secret", http_client=http)
                agent = Agent(AnthropicModel("claude-test", provider=provider))
                agent.tool_plain(weather)
                async with agent.run_stream_events("hi") as events:
                    last = [event async for event in events][-1]
            assert isinstance(last, AgentRunResultEvent)
            assert last.result.output == "".join(TEXT)
            assert fake.requests[1].body["messages"][-1]["content"][0]["content"][0]["text"] == "sunny in Oslo"


def weather(city: str) -> str:
    """A tool."""
    return f"sunny in {city}"


@pytest.mark.parametrize(
    ("serve", "path", "event"),
    [
        (fake_openai, "/responses", ResponseStreamEvent),
        (fake_openai, "/chat/completions", ChatCompletionChunk),
        (fake_anthropic, "/v1/messages", RawMessageStreamEvent),
    ],
)
async def test_every_event_is_one_that_the_sdk_knows(serve: Any, path: str, event: Any) -> None:
    """Its fields have the types that the SDK, which itself does not look, declares."""
    answer = Answer(reasoning=["hm"], text=["Let me ", "look."], refusal="no", calls=[WEATHER])
    async with serve([answer]) as fake, httpx2.AsyncClient() as http:
        reply = await http.post(f"{fake.url}{path}", json={"model": "m", "stream": True})
    events = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: {")]
    assert len(events) > 8
    for data in events:
        if data != '{"type": "ping"}':
            TypeAdapter(event).validate_json(data)


class TestTrouble:
    """What goes wrong."""

    @pytest.mark.parametrize(
        ("status", "raised"),
        [
            (401, openai.AuthenticationError),
            (403, openai.PermissionDeniedError),
            (404, openai.NotFoundError),
            (429, openai.RateLimitError),
            (500, openai.InternalServerError),
            (503, openai.InternalServerError),
        ],
    )
    async def test_errors_of_openai(self, status: int, raised: type[openai.APIStatusError]) -> None:
        """They cost nothing, and say the key, as bad servers do."""
        async with fake_openai([Answer(status=status, retry_after=2)]) as fake, to(fake) as client:
            with pytest.raises(raised, match="sk-secret") as error:
                await client.responses.create(**ASK, stream=True)
            assert error.value.response.headers["retry-after"] == "2"
            assert isinstance(error.value.body, dict)
            assert error.value.body.keys() == {"message", "type", "param", "code"}
            assert fake.creates == 0

    @pytest.mark.parametrize(
        ("status", "kind"), [(401, "authentication_error"), (429, "rate_limit_error"), (529, "overloaded_error")]
    )
    async def test_errors_of_anthropic(self, status: int, kind: str) -> None:
        """They have Anthropic's kinds."""
        async with fake_anthropic([Answer(status=status, message="no")]) as fake, to_anthropic(fake) as client:
            with pytest.raises(anthropic.APIStatusError) as error:
                await client.messages.create(**MESSAGE)
            assert isinstance(error.value.body, dict)
            assert error.value.body["error"] == {"type": kind, "message": "no"}

    @pytest.mark.parametrize(
        ("trouble", "raised"),
        [
            ("end", None),
            ("cut", openai.APIConnectionError),
            ("reset", openai.APIConnectionError),
            ("error", None),
            ("bad_json", json.JSONDecodeError),
            ("bad_stream", UnicodeDecodeError),
            ("hang", openai.APITimeoutError),
        ],
    )
    async def test_in_the_middle(self, trouble: Trouble, raised: type[Exception] | None) -> None:
        """After exactly as many deltas as the script says."""
        got: list[Any] = []
        async with fake_openai([Answer(text=TEXT, trouble=trouble, at=[3])]) as fake, to(fake) as client:
            stream = await client.with_options(timeout=1).responses.create(**ASK, stream=True)
            with pytest.raises(raised) if raised else nullcontext():
                async for event in stream:
                    got.append(event)
        deltas = [event.delta for event in got if event.type == "response.output_text.delta"]
        assert deltas == TEXT[:3]
        assert got[-1].type == ("error" if trouble == "error" else "response.output_text.delta")

    @pytest.mark.parametrize("at", [-1, 0])
    async def test_before_the_first_delta(self, at: int) -> None:
        """Nothing at all comes, or all that is before the first delta."""
        async with fake_openai([Answer(text=TEXT, trouble="end", at=[at])]) as fake, to(fake) as client:
            events = await all_of(await client.responses.create(**ASK, stream=True))
            assert len(events) == (0 if at == -1 else 4)

    async def test_slow(self) -> None:
        """The first byte, and each delta, come late."""
        answer = Answer(text=TEXT[:3], first=0.3, pause=0.2)
        async with fake_openai([answer]) as fake, to(fake) as client:
            began = asyncio.get_running_loop().time()
            times = [began]
            async for _ in await client.responses.create(**ASK, stream=True):
                times.append(asyncio.get_running_loop().time())
            assert times[1] - began >= 0.3
            assert times[-1] - times[1] >= 0.59

    async def test_without_end(self) -> None:
        """It comes until the client goes, and then it is made no more."""
        async with fake_openai([Answer(text=["x" * 1_000], repeat=None)]) as fake, to(fake) as client:
            stream = await client.responses.create(**ASK, stream=True)
            read = 0
            async for event in stream:
                read += event.type == "response.output_text.delta"
                if read == 500:
                    break
            assert fake.streams == 1
            await stream.close()
            async with asyncio.timeout(10):
                while fake.streams:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.01)

    async def test_50_mb(self) -> None:
        """So much is sent, and counted by the client without keeping it."""
        size = 0
        asking = {**CHAT, "stream": True}
        async with (
            fake_openai([Answer(text=["x" * 1_000_000], repeat=50)]) as fake,
            httpx2.AsyncClient() as http,
            http.stream("POST", f"{fake.url}/chat/completions", json=asking) as reply,
        ):
            async for data in reply.aiter_bytes():
                size += len(data)
        assert size > 50_000_000

    async def test_to_another_host(self) -> None:
        """The client is told where to go; pydantic-ai's way of giving it a client does not follow."""
        async with (
            fake_openai([Answer(text=TEXT)]) as other,
            fake_openai([Answer(redirect=f"{other.url}/responses")]) as fake,
        ):
            async with httpx2.AsyncClient() as http:
                client = AsyncOpenAI(base_url=fake.url, api_key="sk-secret", max_retries=0, http_client=http)
                with pytest.raises(openai.APIStatusError) as error:
                    await client.responses.create(**ASK)
            assert error.value.response.headers["location"] == f"{other.url}/responses"
            assert (other.requests, fake.creates) == ([], 0)

    async def test_a_script_that_looks_at_the_request(self) -> None:
        """It answers what is asked."""

        def script(request: Request) -> Answer:
            return Answer(text=[request.body["input"].upper()])

        async with fake_openai(script) as fake, to(fake) as client:
            assert (await client.responses.create(model="gpt-test", input="tea")).output_text == "TEA"

    def test_a_script_with_a_mistake(self) -> None:
        """A field that there is not is refused."""
        with pytest.raises(ValueError, match="an answer has no txet"):
            Answer.of({"txet": []})


class TestBackgroundAgent:
    """pydantic-ai with answers in the background, and what its failover is built on."""

    async def test_a_run_with_a_tool(self) -> None:
        """Each request to the model is an answer of its own."""
        script = [Answer(reasoning=["hm"], text=["Let me look."], calls=[WEATHER]), Answer(text=TEXT)]
        async with fake_openai(script) as fake, background_agent(fake) as agent:
            async with agent.run_stream_events("hi") as events:
                kinds = [event.event_kind async for event in events]
            assert ("function_tool_result" in kinds, kinds[-1]) == (True, "agent_run_result")
            assert events.result
            assert events.result.output == "".join(TEXT)
            assert (fake.creates, [request.body["background"] for request in fake.requests]) == (2, [True, True])
            assert fake.requests[1].body["input"][-1]["output"] == "sunny in Oslo"

    async def test_a_replay_from_the_start_gives_the_whole_answer(self) -> None:
        """A suspended response without parts is read from its beginning, its tool is called, and it is begun once."""
        script = [Answer(text=TEXT, calls=[WEATHER]), Answer(text=["Sunny."])]
        async with fake_openai(script) as fake, background_agent(fake) as agent:
            history = await suspended(fake, 0)
            async with agent.run_stream_events(message_history=history) as events:
                async for _ in events:
                    pass
            assert events.result
            first, _, second = events.result.all_messages()[1:]
            text, call = first.parts
            assert isinstance(text, TextPart)
            assert isinstance(call, ToolCallPart)
            assert (text.content, call.args_as_dict()) == ("".join(TEXT), {"city": "Oslo"})
            assert second.parts == [TextPart("Sunny.", id="msg_resp_3", provider_name="openai")]
            assert paths(fake) == [
                ("POST", "/v1/responses"),
                ("GET", "/v1/responses/resp_1"),
                ("POST", "/v1/responses"),
            ]

    async def test_from_a_number_only_the_rest_is_in_the_answer(self) -> None:
        """The events are the rest; the message at the end lacks what was before: pydantic-ai 2.68 replaces it."""
        async with fake_openai([Answer(text=TEXT)]) as fake, background_agent(fake) as agent:
            history = await suspended(fake, 6, TextPart("".join(TEXT[:3]), id="msg_resp_1", provider_name="openai"))
            async with agent.run_stream_events(message_history=history) as events:
                starts = [event.index async for event in events if event.event_kind == "part_start"]
            assert (starts, fake.creates) == ([1], 1)
            assert fake.requests[-1].query == {"starting_after": "6", "stream": "true"}
            assert events.result
            assert events.result.output == "".join(TEXT[3:])

    @pytest.mark.parametrize("trouble", ["cut", "reset"])
    async def test_a_lost_connection_cancels_the_answer(self, trouble: Trouble) -> None:
        """Unless the model's `cancel_suspended_response` is overridden."""
        answer = Answer(text=TEXT, pause=0.05, trouble=trouble, at=[4])
        async with fake_openai([answer]) as fake, background_agent(fake) as agent:
            async with agent.run_stream_events("hi") as events:
                with pytest.raises(ModelConnectionError):
                    await all_of(events)
            assert paths(fake)[-1] == ("POST", "/v1/responses/resp_1/cancel")
            last = events.all_messages()[-1]
            assert isinstance(last, ModelResponse)
            assert (last.state, last.provider_response_id) == ("interrupted", "resp_1")

    async def test_a_consumer_that_is_cancelled_cancels_the_answer(self) -> None:
        """At once, before the consumer ends."""
        async with fake_openai([Answer(text=["x"], repeat=None, pause=0.01)]) as fake, background_agent(fake) as agent:
            began = asyncio.Event()

            async def consume() -> None:
                async with agent.run_stream_events("hi") as events:
                    async for _ in events:
                        began.set()

            consuming = asyncio.create_task(consume())
            await asyncio.wait_for(began.wait(), 10)
            consuming.cancel()
            await asyncio.wait([consuming], timeout=10)
            assert consuming.cancelled()
            assert paths(fake)[-1] == ("POST", "/v1/responses/resp_1/cancel")

    async def test_an_answer_that_has_expired(self) -> None:
        """It says so with an exception of its own."""
        async with fake_openai([Answer(text=TEXT)]) as fake, background_agent(fake) as agent:
            history = await suspended(fake, 0)
            fake.jobs.clear()
            with pytest.raises(SuspendedResponseExpired):
                await agent.run(message_history=history)


async def suspended(fake: FakeOpenAI, number: int, *parts: TextPart) -> list[ModelMessage]:
    """Begin a background answer, and return the history that resumes it after a number."""
    async with to(fake) as client:
        begun = await client.responses.create(**ASK, background=True)
    response = ModelResponse(
        parts=parts,
        model_name="gpt-test",
        provider_name="openai",
        provider_response_id=begun.id,
        provider_details={"background": True, "last_sequence_number": number},
        state="suspended",
    )
    return [ModelRequest(parts=[UserPromptPart("hi")]), response]


class TestInAProcess:
    """The fake in a process of its own, which lives on if what asks it is gone."""

    async def test_it_goes_on_and_counts(self, tmp_path: Path) -> None:
        """An answer whose client has gone is read by the next one."""
        script = [Answer(text=TEXT, calls=[WEATHER], pause=0.02)]
        async with spawned("openai", script, tmp_path) as fake:
            async with (
                AsyncOpenAI(base_url=fake.url, api_key="sk-secret") as client,
                await client.responses.create(**ASK, stream=True, background=True) as stream,
            ):
                while (event := await anext(stream)).type != "response.output_text.delta":
                    pass
            async with AsyncOpenAI(base_url=fake.url, api_key="sk-secret") as client:
                rest = await all_of(
                    await client.responses.retrieve("resp_1", stream=True, starting_after=event.sequence_number)
                )
            assert rest[-1].response.output_text == "".join(TEXT)
            assert rest[-1].response.output[1].arguments == '{"city": "Oslo"}'
            assert (fake.creates, [request.method for request in fake.requests]) == (1, ["POST", "GET"])
            assert fake.requests[1].query["starting_after"] == str(event.sequence_number)

    async def test_anthropic(self, tmp_path: Path) -> None:
        """The other kind."""
        async with spawned("anthropic", [Answer(text=TEXT)], tmp_path) as fake:
            async with AsyncAnthropic(base_url=fake.url, api_key="sk-secret") as client:
                (text,) = (await client.messages.create(**MESSAGE)).content
            assert text.type == "text"
            assert (text.text, fake.creates) == ("".join(TEXT), 1)
