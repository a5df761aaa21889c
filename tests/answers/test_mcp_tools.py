"""Tools of MCP servers, with real servers over stdio and over HTTP."""

import asyncio
import contextvars
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mcp.server.mcpserver import MCPServer
from mcp_types import (
    BlobResourceContents,
    CallToolResult,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
    Tool,
    ToolAnnotations,
)
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import RunUsage
from starlette.types import Receive, Scope, Send

from chatkeep.answers import mcp_tools
from chatkeep.answers.mcp_config import McpServer
from chatkeep.answers.mcp_tools import MAX_RESULT_CHARS, MAX_TOOLS, McpTools, text_of
from servers.apps import app_served
from servers.mcp_tools import HUGE_BYTES, mcp_served

pytestmark = pytest.mark.long  # test_agent_tools.py, which always runs, has what people see of it


PROGRAM = str(Path(__file__).parents[1] / "servers" / "mcp_tools.py")
ALL = ["delete_all", "huge", "slow", "failing", "echo_env", "notes"]


def program(name: str = "tools", **more: Any) -> McpServer:
    """The server as a program."""
    return McpServer.model_validate({"name": name, "command": sys.executable, "args": [PROGRAM], **more})


def remote(url: str, name: str = "tools", **more: Any) -> McpServer:
    """The server at a URL."""
    return McpServer.model_validate({"name": name, "url": url, **more})


@asynccontextmanager
async def tools_of(*servers: McpServer, allow_private: bool = True) -> AsyncIterator[McpTools]:
    """The tools of servers, which end with this."""
    tools = McpTools(servers, allow_private=allow_private)
    try:
        yield tools
    finally:
        await tools.aclose()


@asynccontextmanager
async def each_transport(transport: str, **more: Any) -> AsyncIterator[McpTools]:
    """The tools of the server, by one of both transports."""
    if transport == "stdio":
        async with tools_of(program(**more)) as tools:
            yield tools
        return
    async with mcp_served() as served, tools_of(remote(served.url, **more)) as tools:
        yield tools


def context() -> RunContext[None]:
    """The context of a run, of which the tools need nothing but the number of tries."""
    return RunContext(deps=None, model=TestModel(), usage=RunUsage(), max_retries=1)


async def names(tools: McpTools) -> list[str]:
    """The tools that are offered."""
    return list(await tools.get_tools(context()))


async def call(tools: McpTools, name: str, /, **arguments: Any) -> str:
    """Call a tool."""
    found = (await tools.get_tools(context()))[name]
    return await tools.call_tool(name, arguments, context(), found)


async def failed_call(tools: McpTools, name: str, /, **arguments: Any) -> str:
    """What the model is told about a call that fails."""
    with pytest.raises(ToolFailed) as caught:
        await call(tools, name, **arguments)
    return caught.value.message


both = pytest.mark.parametrize("transport", ["stdio", "http"])


# --- which tools ------------------------------------------------------------------------------------------


@both
async def test_tools_that_change_nothing(transport: str) -> None:
    """Without allowTools only tools are offered that say of themselves that they only read."""
    async with each_transport(transport) as tools:
        assert await names(tools) == ["tools_read_weather"]
        assert await call(tools, "tools_read_weather", city="Zürich") == "It is sunny in Zürich."


@both
async def test_tools_that_are_allowed(transport: str) -> None:
    """Tools that may change things are offered by their names."""
    async with each_transport(transport, allowTools=["failing", "unknown"]) as tools:
        assert await names(tools) == ["tools_read_weather", "tools_failing"]


async def test_two_servers() -> None:
    """The name of the server comes first, so that tools of the same name are two."""
    async with mcp_served() as served, tools_of(program("one"), remote(served.url, "two")) as tools:
        assert await names(tools) == ["one_read_weather", "two_read_weather"]
        assert await call(tools, "two_read_weather", city="Bern") == "It is sunny in Bern."


READ_ONLY = ToolAnnotations(read_only_hint=True)


@asynccontextmanager
async def served_with(add: Callable[[MCPServer], None]) -> AsyncIterator[str]:
    """The URL of a server to which tools are added."""
    server = MCPServer("hostile")
    add(server)
    async with app_served(server.streamable_http_app(stateless_http=True), lifespan=True) as port:
        yield f"http://127.0.0.1:{port}/mcp"


async def test_a_server_with_many_tools() -> None:
    """Of a thousand tools 64 are offered, with bounded descriptions."""

    def add(server: MCPServer) -> None:
        for n in range(1_000):
            server.add_tool(lambda: "x", name=f"t{n}", description="d" * 5_000, annotations=READ_ONLY)

    async with served_with(add) as url, tools_of(remote(url, "a"), remote(url, "b")) as tools:
        found = await tools.get_tools(context())
        assert len(found) == MAX_TOOLS == 64
        assert {len(tool.tool_def.description or "") for tool in found.values()} == {2_000}


async def test_tools_that_do_not_fit() -> None:
    """A tool with a large schema, or a name that is too long, is left out; odd characters are replaced."""

    def wide() -> str:
        return "wide"

    def add(server: MCPServer) -> None:
        for name in ("fine", "odd.name/x", "n" * 70):
            server.add_tool(wide, name=name, description="d", annotations=READ_ONLY)

    async with served_with(add) as url, tools_of(remote(url)) as tools:
        assert await names(tools) == ["tools_fine", "tools_odd_name_x"]
        assert await call(tools, "tools_odd_name_x") == "wide"
    large = Tool(name="large", input_schema={"type": "object", "x": "y" * 20_000}, annotations=READ_ONLY)
    other = Tool(name="other", input_schema={"type": "string"}, annotations=READ_ONLY)
    small = Tool(name="small", input_schema={"type": "object"}, annotations=READ_ONLY)
    offered = mcp_tools._unique(program(), [large, other, small, small])
    assert [each.name for each in offered] == ["tools_small"]


# --- results ----------------------------------------------------------------------------------------------


@both
async def test_large_results(transport: str) -> None:
    """Ten megabytes are cut to 50,000 characters, which the model is told."""
    async with each_transport(transport, allowTools=ALL) as tools:
        text = await call(tools, "tools_huge")
    assert text == "x" * MAX_RESULT_CHARS + f"\n[cut off: {HUGE_BYTES - 50_000:,} characters more]"


async def test_results_without_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that is larger than any may be fails the call, and not the server."""
    monkeypatch.setattr(mcp_tools, "MAX_RESPONSE_BYTES", 1 << 20)
    async with mcp_served() as served, tools_of(remote(served.url, allowTools=ALL, timeout=20)) as tools:
        assert await failed_call(tools, "tools_huge")
        assert await call(tools, "tools_read_weather", city="Bern") == "It is sunny in Bern."


def test_results_that_are_no_text() -> None:
    """Images and files are named; text in a file is text; an object stands for itself if there is nothing else."""
    image = ImageContent(data="QUJDRA==", mime_type="image/png")
    text = EmbeddedResource(resource=TextResourceContents(uri="file:///a.txt", text="inside"))
    blob = EmbeddedResource(resource=BlobResourceContents(uri="file:///a.bin", blob="QUJD"))
    link = ResourceLink(name="a", uri="https://example.com/a")
    result = CallToolResult(content=[TextContent(text="first"), image, text, blob, link])
    assert text_of(result).split("\n") == [
        "first",
        "[image, image/png, 6 bytes: not shown]",
        "inside",
        "[resource file:///a.bin, 3 bytes: not shown]",
        "[link to https://example.com/a]",
    ]
    assert text_of(CallToolResult(content=[], structured_content={"a": "ü"})) == '{"a": "ü"}'
    assert text_of(CallToolResult(content=[])) == ""


@both
async def test_a_tool_that_fails(transport: str) -> None:
    """The model is told what the tool says about its failure."""
    async with each_transport(transport, allowTools=ALL) as tools:
        assert await failed_call(tools, "tools_failing") == "Error executing tool failing"
        assert "city" in await failed_call(tools, "tools_read_weather", wrong=1)


@both
async def test_a_tool_that_is_slow(transport: str) -> None:
    """A call has a deadline; other calls go on, and the server is used further."""
    async with each_transport(transport, allowTools=ALL, timeout=1) as tools:
        await names(tools)
        began = time.monotonic()
        slow = asyncio.create_task(failed_call(tools, "tools_slow", seconds=60))
        assert await call(tools, "tools_read_weather", city="Bern") == "It is sunny in Bern."
        assert await slow == "the tool did not answer within 1 s"
        assert time.monotonic() - began < 20
        assert await call(tools, "tools_read_weather", city="Bern") == "It is sunny in Bern."


async def test_many_calls_at_once() -> None:
    """Many turns use the same server; there is one process."""
    async with tools_of(program()) as tools:
        answers = await asyncio.gather(*(call(tools, "tools_read_weather", city=f"c{n}") for n in range(50)))
        assert answers == [f"It is sunny in c{n}." for n in range(50)]
        assert len(children()) == 1


# --- failures of servers ----------------------------------------------------------------------------------


def children() -> list[int]:
    """The programs of servers that run, by their ids."""
    ids = [int(each) for file in Path("/proc/self/task").glob("*/children") for each in file.read_text().split()]
    found = []
    for each in ids:
        with suppress(OSError):
            if PROGRAM in Path(f"/proc/{each}/cmdline").read_text():
                found.append(each)
    return found


async def test_a_program_that_dies(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A dead server fails its own tools only; it is started again after a pause."""
    monkeypatch.setattr(mcp_tools, "BACKOFF_SECONDS", (1.0, 2.0))
    async with mcp_served() as served, tools_of(program("one"), remote(served.url, "two")) as tools:
        found = await tools.get_tools(context())
        (child,) = children()
        os.kill(child, signal.SIGKILL)
        one = found["one_read_weather"]
        with pytest.raises(ToolFailed, match="cannot be reached"):
            await tools.call_tool("one_read_weather", {"city": "Bern"}, context(), one)
        assert await names(tools) == ["two_read_weather"]
        assert await call(tools, "two_read_weather", city="Bern") == "It is sunny in Bern."
        with pytest.raises(ToolFailed, match="cannot be reached"):
            await tools.call_tool("one_read_weather", {"city": "Bern"}, context(), one)
        await asyncio.sleep(1.1)
        assert await call(tools, "one_read_weather", city="Bern") == "It is sunny in Bern."


@pytest.mark.parametrize(
    "server",
    [
        program(command="/no/such/program"),
        program(args=["-c", "raise SystemExit(1)"]),
        program(args=["-c", "print('hello'); raise SystemExit(0)"]),
        program(cwd="/no/such/folder"),
        remote("http://127.0.0.1:9/mcp"),
        remote("http://169.254.169.254/mcp"),
        remote("http://nobody.invalid/mcp"),
    ],
    ids=["no program", "ends", "no MCP", "no folder", "nobody", "metadata", "no name"],
)
async def test_servers_that_cannot_be_used(server: McpServer, caplog: pytest.LogCaptureFixture) -> None:
    """There are no tools, the log says why, and nothing is tried again at once."""
    async with tools_of(server) as tools:
        assert await names(tools) == []
        assert "the MCP server tools cannot be used" in caplog.text
        caplog.clear()
        assert await names(tools) == []
        assert "cannot be used" not in caplog.text


async def test_a_server_that_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A program that does not speak is waited for only so long, by all who need it together."""
    monkeypatch.setattr(mcp_tools, "START_SECONDS", 0.5)
    began = time.monotonic()
    async with tools_of(program(args=["-c", "import time; time.sleep(100)"])) as tools:
        assert await asyncio.gather(*(names(tools) for _ in range(20))) == [[]] * 20
        assert "it did not start within 0.5 s" in caplog.text
    assert time.monotonic() - began < 20


async def test_a_private_server_needs_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    """URLs of servers are guarded as those of models are."""
    async with mcp_served() as served, tools_of(remote(served.url), allow_private=False) as tools:
        assert await names(tools) == []
        assert "HostRefused" in caplog.text
        assert served.headers == []


async def test_a_server_that_stops_over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is gone, and there again at the same place."""
    monkeypatch.setattr(mcp_tools, "BACKOFF_SECONDS", (0.5, 2.0))
    server = MCPServer("tools")
    server.add_tool(lambda: "tea", name="brew", annotations=READ_ONLY)
    app = server.streamable_http_app(stateless_http=True)
    is_down = False

    async def sometimes(scope: Scope, receive: Receive, send: Send) -> None:
        if is_down:
            scope["state"]["transport"].abort()
        else:
            await app(scope, receive, send)

    async with (
        app_served(sometimes, lifespan=True) as port,
        tools_of(remote(f"http://127.0.0.1:{port}/mcp")) as tools,
    ):
        found = (await tools.get_tools(context()))["tools_brew"]
        assert await tools.call_tool("tools_brew", {}, context(), found) == "tea"
        is_down = True
        for _ in range(2):
            with pytest.raises(ToolFailed, match="cannot be reached"):
                await tools.call_tool("tools_brew", {}, context(), found)
        is_down = False
        await asyncio.sleep(0.6)
        assert await call(tools, "tools_brew") == "tea"


# --- what a server gets to know ---------------------------------------------------------------------------


async def test_the_environment_of_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program gets the variables that the file gives it, and none of this server's own."""
    monkeypatch.setenv("CHATKEEP_DATABASE_URL", "postgresql://secret")
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    async with tools_of(program(env={"GIVEN": "yes"}, allowTools=ALL)) as tools:
        assert await call(tools, "tools_echo_env", name="GIVEN") == "yes"
        assert await call(tools, "tools_echo_env", name="PATH") == os.environ["PATH"]
        for name in ("CHATKEEP_DATABASE_URL", "OPENAI_API_KEY"):
            assert await call(tools, "tools_echo_env", name=name) == ""


user = contextvars.ContextVar("user", default="nobody")


async def test_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server gets the headers that the file gives it, and nothing of who asks."""
    user.set("ada")
    async with mcp_served() as served, tools_of(remote(served.url, headers={"X-Key": "the-key"})) as tools:
        await call(tools, "tools_read_weather", city="Bern")
        assert {headers["x-key"] for headers in served.headers} == {"the-key"}
        assert not any({"authorization", "cookie"} & headers.keys() for headers in served.headers)
        task = tools._connections["tools"]._session.task  # type: ignore[union-attr]
        assert task is not None
        assert user not in task.get_context()


async def test_secrets_are_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Neither headers nor variables are in the log, whatever its level."""
    with caplog.at_level(logging.DEBUG):
        async with mcp_served() as served:
            given = remote(served.url, "two", headers={"X-Key": "secret-1"})
            async with tools_of(program("one", env={"KEY": "secret-2"}), given) as tools:
                await call(tools, "two_read_weather", city="Bern")
    assert "secret-" not in caplog.text


# --- the life of servers ----------------------------------------------------------------------------------


async def test_nothing_is_started_before_it_is_needed() -> None:
    """Servers start with the first question for their tools, and end with aclose, for ever."""
    async with tools_of(program()) as tools:
        assert children() == []
        await names(tools)
        (child,) = children()
        await tools.aclose()
        assert not Path(f"/proc/{child}").exists()
        await tools.aclose()
        assert await names(tools) == []
        assert children() == []


async def test_closing_while_a_server_starts() -> None:
    """A server that is just being started ends, too, and whoever waits for it has no tools."""
    async with tools_of(program(args=["-c", "import time; time.sleep(100)"])) as tools:
        waiting = asyncio.create_task(names(tools))
        await asyncio.sleep(0.5)
        began = time.monotonic()
        await tools.aclose()
        assert await waiting == []
        assert time.monotonic() - began < 15


async def test_a_turn_that_is_stopped() -> None:
    """A turn that is stopped during a call, or while a server starts, leaves the server to the others."""
    async with tools_of(program(allowTools=ALL)) as tools:
        starting = asyncio.create_task(names(tools))
        await asyncio.sleep(0.05)
        starting.cancel()
        slow = asyncio.create_task(call(tools, "tools_slow", seconds=60))
        await names(tools)
        await asyncio.sleep(0.2)
        slow.cancel()
        with pytest.raises(asyncio.CancelledError):
            await slow
        assert await call(tools, "tools_read_weather", city="Bern") == "It is sunny in Bern."
        assert len(children()) == 1


# --- in an agent ------------------------------------------------------------------------------------------


async def test_in_an_agent() -> None:
    """A model calls tools, hears of failures as results, and answers."""
    calls = [
        ToolCallPart("tools_failing", {}),
        ToolCallPart("tools_read_weather", {"city": "Bern"}),
        ToolCallPart("tools_failing", {}),
    ]

    def answer(messages: Sequence[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked = sum(isinstance(message, ModelResponse) for message in messages)
        return ModelResponse([calls[asked]] if asked < len(calls) else [TextPart("done")])

    async with tools_of(program(allowTools=["failing"])) as tools:
        result = await Agent(FunctionModel(answer), toolsets=[tools]).run("weather?")
    returns = [part for message in result.all_messages() for part in message.parts if isinstance(part, ToolReturnPart)]
    assert result.output == "done"
    assert [part.outcome for part in returns] == ["failed", "success", "failed"]
    assert returns[1].content == "It is sunny in Bern."
    assert returns[0].content == "Error executing tool failing"
