"""Tools of MCP servers, for models: one connection to each server and process, which all turns use.

A server is not trusted: only tools that change nothing are offered, or those that the configuration names; everything
that it says is bounded, every wait has a deadline, and no user's token is ever sent to it. A server that cannot be used
takes its tools away, and nothing else.
"""

import asyncio
import contextvars
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from typing import Any, NamedTuple, override

from mcp import Client, MCPError, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client
from mcp_types import (
    AudioContent,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    Implementation,
    TextContent,
    TextResourceContents,
    Tool,
)
from pydantic_ai import RunContext, ToolDefinition
from pydantic_ai.exceptions import ToolFailed
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool
from pydantic_core import SchemaValidator, core_schema

from chatkeep.answers.hosts import guarded_client
from chatkeep.answers.mcp_config import McpServer

logger = logging.getLogger(__name__)

MAX_TOOLS = 64
"""Tools of all servers together; models are worse at choosing among more."""

MAX_PAGES = 20
MAX_DESCRIPTION_CHARS = 2_000
MAX_SCHEMA_BYTES = 20_000
MAX_RESULT_CHARS = 50_000

MAX_RESPONSE_BYTES = 32 << 20
"""Bytes of a response over HTTP, and of one event in it. Many servers say everything twice in it."""

READ_MARGIN_SECONDS = 5.0
"""How much longer a connection may be silent than a call of a tool may take: the call ends first."""

MAX_CALLS = 16
"""Calls to one server at a time; the others wait, within their time."""

START_SECONDS = 20.0
"""Longest time to start a server and to list its tools. A turn waits as long for a server that is being started."""

CLOSE_SECONDS = 10.0
"""Longest time for all servers to end; a program gets 4 s of it before it is killed."""

BACKOFF_SECONDS = (1.0, 60.0)
"""First and longest pause before a server is started again."""

GONE = ("Connection closed", "Session terminated")
"""What the library says of a call if the session has ended."""

UNFIT = re.compile(r"[^A-Za-z0-9_-]")
MAX_NAME_CHARS = 64
"""What models take as the name of a tool."""

ARGUMENTS = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))

UNREACHABLE = "the server of this tool cannot be reached at the moment"


class Offered(NamedTuple):
    """A tool that models may call."""

    name: str
    """Its name with the server."""
    tool: Tool


@dataclass(eq=False)
class _Session:
    """A server that was started. `ready` has its tools, None if it could not be started."""

    ready: asyncio.Future[Sequence[Offered] | None]
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    client: Client | None = None
    task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self.closing.is_set() or self.task is None or self.task.done()


class Connection:
    """One server: it is started when it is needed, and again after a failure, not too often."""

    def __init__(self, server: McpServer, *, allow_private: bool) -> None:
        self.server = server
        self._allow_private = allow_private
        self._session: _Session | None = None
        self._tasks = set[asyncio.Task[None]]()
        self._calls = asyncio.Semaphore(MAX_CALLS)
        self._pause = BACKOFF_SECONDS[0]
        self._not_before = 0.0
        self._is_closed = False

    async def tools(self) -> Sequence[Offered]:
        """Return the tools that it offers; none while it cannot be used."""
        session = self._started()
        offered = await asyncio.shield(session.ready) if session else None
        return offered or ()

    async def call(self, name: str, arguments: dict[str, Any]) -> CallToolResult:
        """Call a tool. Raises ToolFailed with a sentence for the model."""
        seconds = self.server.timeout
        try:
            async with asyncio.timeout(seconds), self._calls:
                session = self._started()
                if session is None or await asyncio.shield(session.ready) is None or session.client is None:
                    raise ToolFailed(UNREACHABLE)
                return await self._called(session, session.client, name, arguments)
        except TimeoutError:
            logger.warning("%s of the MCP server %s took longer than %g s", name, self.server.name, seconds)
            raise ToolFailed(f"the tool did not answer within {seconds:g} s") from None

    async def _called(self, session: _Session, client: Client, name: str, arguments: dict[str, Any]) -> CallToolResult:
        try:
            result = await client.call_tool(name, arguments)
        except MCPError as error:
            if error.message in GONE or session.is_over:
                self._end(session)
                raise ToolFailed(UNREACHABLE) from error
            logger.warning("%s of the MCP server %s failed: %s", name, self.server.name, error.message[:1_000])
            raise ToolFailed(_cut(error.message)) from error
        except (TimeoutError, ToolFailed):
            raise
        except Exception as error:
            logger.warning("%s of the MCP server %s failed", name, self.server.name, exc_info=True)
            self._end(session)
            raise ToolFailed(UNREACHABLE) from error
        self._pause = BACKOFF_SECONDS[0]
        return result

    async def aclose(self) -> None:
        """End the server, and wait for that. Idempotent; it is not started again."""
        self._is_closed = True
        if self._session:
            self._session.closing.set()
            if not self._session.ready.done() and self._session.task:
                self._session.task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    # --- sessions -----------------------------------------------------------------------------------------

    def _started(self) -> _Session | None:
        """The session there is, or a new one; None while it is too early for that."""
        if self._session is not None and not self._session.is_over:
            return self._session
        loop = asyncio.get_running_loop()
        if self._is_closed or loop.time() < self._not_before:
            return None
        session = self._session = _Session(loop.create_future())
        # Without the context of the turn that needs it first: other turns use it, too.
        session.task = loop.create_task(self._run(session), context=contextvars.Context())
        self._tasks.add(session.task)
        session.task.add_done_callback(self._tasks.discard)
        return session

    def _end(self, session: _Session) -> None:
        """End a session that is of no use any more."""
        session.closing.set()
        if session is self._session:
            self._not_before = asyncio.get_running_loop().time() + self._pause
            self._pause = min(2 * self._pause, BACKOFF_SECONDS[1])

    async def _run(self, session: _Session) -> None:
        """Hold a session from its beginning to its end: the library wants both in the same task."""
        try:
            async with AsyncExitStack() as stack:
                async with asyncio.timeout(START_SECONDS):
                    session.client = await stack.enter_async_context(_connected(self.server, self._allow_private))
                    offered = await self._offered(session.client)
                session.ready.set_result(offered)
                await session.closing.wait()
        except Exception as error:  # noqa: BLE001 - of a library, of a program, or of a group of both
            logger.warning("the MCP server %s cannot be used: %s", self.server.name, _reason(error))
        finally:
            if not session.ready.done():
                session.ready.set_result(None)
            if not session.closing.is_set():
                self._end(session)

    async def _offered(self, client: Client) -> Sequence[Offered]:
        """The tools that may be offered. What is left out is logged, as a number: names are the server's words."""
        found = [tool async for tool in _listed(client)]
        offered = list(islice(_unique(self.server, found), MAX_TOOLS))
        logger.info("the MCP server %s has %d tools, %d are offered", self.server.name, len(found), len(offered))
        return offered


@asynccontextmanager
async def _connected(server: McpServer, allow_private: bool) -> AsyncIterator[Client]:  # noqa: FBT001
    """A client of a server, by the transport that its configuration means."""
    info = Implementation(name="chatkeep", version=version("chatkeep"))
    async with AsyncExitStack() as stack:
        if server.command is not None:
            transport = stdio_client(
                StdioServerParameters(command=server.command, args=server.args, env=server.env, cwd=server.cwd)
            )
        else:
            http = guarded_client(
                allow_private=allow_private,
                read=server.timeout + READ_MARGIN_SECONDS,
                response_bytes=MAX_RESPONSE_BYTES,
            )
            http.headers.update(server.headers)
            await stack.enter_async_context(http)
            transport = streamable_http_client(str(server.url), http_client=http, max_sse_event_size=MAX_RESPONSE_BYTES)
        client = Client(transport, client_info=info, cache=None)
        yield await stack.enter_async_context(client)


async def _listed(client: Client) -> AsyncIterator[Tool]:
    """The tools of a server, up to a number of pages."""
    cursor: str | None = None
    for _ in range(MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            yield tool
        cursor = page.next_cursor
        if not cursor:
            return


def _unique(server: McpServer, tools: Sequence[Tool]) -> Iterator[Offered]:
    """The tools that are allowed and fit, with their names, each name once."""
    names = set[str]()
    for tool in tools:
        name = UNFIT.sub("_", f"{server.name}_{tool.name}")
        if name not in names and len(name) <= MAX_NAME_CHARS and _is_allowed(server, tool) and _fits(tool):
            names.add(name)
            yield Offered(name, tool)


def _is_allowed(server: McpServer, tool: Tool) -> bool:
    """Whether a tool changes nothing, as its server says, or the configuration allows it."""
    is_read_only = tool.annotations is not None and tool.annotations.read_only_hint is True
    return is_read_only or tool.name in server.allow_tools


def _fits(tool: Tool) -> bool:
    return tool.input_schema.get("type") == "object" and len(json.dumps(tool.input_schema)) <= MAX_SCHEMA_BYTES


def _reason(error: BaseException) -> str:
    """The first cause of a group of errors, by its kind: its words may be the server's."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, TimeoutError):
        return f"it did not start within {START_SECONDS:g} s"
    return f"{type(error).__name__}: {error}"[:1_000]


# --- results ----------------------------------------------------------------------------------------------


def text_of(result: CallToolResult) -> str:
    """Return what a tool answered as text, cut to MAX_RESULT_CHARS with a note. What is no text is named."""
    if not result.content and result.structured_content is not None:
        return _cut(json.dumps(result.structured_content, ensure_ascii=False))
    return _cut("\n".join(map(_shown, result.content)))


def _shown(block: ContentBlock) -> str:
    if isinstance(block, TextContent):
        return block.text
    if isinstance(block, ImageContent | AudioContent):
        return f"[{block.type}, {block.mime_type[:100]}, {len(block.data) * 3 // 4:,} bytes: not shown]"
    if isinstance(block, EmbeddedResource):
        if isinstance(block.resource, TextResourceContents):
            return block.resource.text
        return f"[resource {str(block.resource.uri)[:1_000]}, {len(block.resource.blob) * 3 // 4:,} bytes: not shown]"
    return f"[link to {str(block.uri)[:1_000]}]"


def _cut(text: str) -> str:
    if len(text) <= MAX_RESULT_CHARS:
        return text
    return f"{text[:MAX_RESULT_CHARS]}\n[cut off: {len(text) - MAX_RESULT_CHARS:,} characters more]"


# --- toolset ----------------------------------------------------------------------------------------------


class McpTools(AbstractToolset[Any]):
    """The tools of all servers, as `server_tool`. All turns of a process share one."""

    def __init__(self, servers: Sequence[McpServer], *, allow_private: bool) -> None:
        """Take the servers; nothing is started yet. `allow_private` is whether URLs may be in this network."""
        self._connections = {server.name: Connection(server, allow_private=allow_private) for server in servers}

    @property
    def id(self) -> str:
        """Its name among the toolsets of an agent."""
        return "mcp"

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """Return the tools of the servers that can be used; starts those that are not, for START_SECONDS at most."""
        connections = self._connections.values()
        lists = await asyncio.gather(*(connection.tools() for connection in connections))
        found = dict[str, ToolsetTool[Any]]()
        for connection, offered in zip(connections, lists, strict=True):
            for each in offered:
                if len(found) < MAX_TOOLS:
                    found.setdefault(each.name, self._tool(connection.server, each, ctx))
        return found

    @override
    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> str:
        """Call a tool, and return its result as text. Raises ToolFailed, which the model is told."""
        place: Mapping[str, str] = tool.tool_def.metadata or {}
        result = await self._connections[place["server"]].call(place["tool"], tool_args)
        text = text_of(result)
        if result.is_error:
            raise ToolFailed(text or "the tool failed")
        return text

    async def aclose(self) -> None:
        """End all servers, within CLOSE_SECONDS. Idempotent; afterwards there are no tools."""
        await asyncio.gather(*(connection.aclose() for connection in self._connections.values()))

    def _tool(self, server: McpServer, offered: Offered, ctx: RunContext[Any]) -> ToolsetTool[Any]:
        description = offered.tool.description or ""
        definition = ToolDefinition(
            name=offered.name,
            description=description[:MAX_DESCRIPTION_CHARS],
            parameters_json_schema=offered.tool.input_schema,
            metadata={"server": server.name, "tool": offered.tool.name},
        )
        return ToolsetTool(toolset=self, tool_def=definition, max_retries=ctx.max_retries, args_validator=ARGUMENTS)
