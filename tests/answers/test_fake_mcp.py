"""The MCP server of the tests, asked by the SDK's client over HTTP and over stdio."""

import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from servers import mcp_tools
from servers.mcp_tools import HUGE_BYTES, INJECTION, mcp_served

pytestmark = pytest.mark.apart  # what it tests is used by test_agent_tools.py, which always runs


async def test_over_http() -> None:
    """It records the headers, and that something was deleted."""
    async with mcp_served() as served, httpx2.AsyncClient(headers={"X-Who": "ada"}) as http:
        async with Client(streaming(served.url, http)) as client:
            await check_tools(client)
            assert served.deleted == 0
            await client.call_tool("delete_all", {})
        assert served.deleted == 1
        assert {headers.get("x-who") for headers in served.headers} == {"ada"}


async def test_over_stdio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program gets the environment that it is given, and nothing else of its parent's that is a secret."""
    monkeypatch.setenv("CHATKEEP_TEST_SECRET", "theirs")
    deleted = tmp_path / "deleted"
    given = {mcp_tools.DELETED: str(deleted), "TOKEN": "mine"}
    command = StdioServerParameters(command=sys.executable, args=[mcp_tools.__file__], env=given)
    async with Client(command) as client:
        await check_tools(client)
        assert await said(client, "echo_env", name="TOKEN") == "mine"
        assert await said(client, "echo_env", name="CHATKEEP_TEST_SECRET") == ""
        await client.call_tool("delete_all", {})
    assert deleted.read_text() == "deleted\n"


def streaming(url: str, http: httpx2.AsyncClient) -> Any:
    """The transport that speaks HTTP with a client of one's own."""
    return streamable_http_client(url, http_client=http)


async def said(client: Client, tool: str, **arguments: Any) -> str:
    """The text of a tool's result."""
    (content,) = (await client.call_tool(tool, arguments)).content
    assert content.type == "text"
    return content.text


async def check_tools(client: Client) -> None:
    """Call every tool that harms nothing."""
    listed = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert listed.keys() == {"read_weather", "delete_all", "huge", "slow", "failing", "echo_env", "notes"}
    reading, deleting = listed["read_weather"].annotations, listed["delete_all"].annotations
    assert reading
    assert deleting
    assert (reading.read_only_hint, deleting.destructive_hint) == (True, True)
    assert INJECTION in (listed["notes"].description or "")
    assert INJECTION in await said(client, "notes")
    assert await said(client, "read_weather", city="Oslo") == "It is sunny in Oslo."
    assert len(await said(client, "huge")) == HUGE_BYTES
    assert float((await said(client, "slow", seconds=0.2)).split()[2]) >= 0.2
    assert (await client.call_tool("failing", {})).is_error
