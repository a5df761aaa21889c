"""Tools of MCP servers in the answers of models: woven into the conversation, and never more than the file allows."""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from test_agent import KEY, PROJECT, SECRET, Asking, Found, types
from test_citations import passage

from chatkeep import NewConversation, Status, open_store
from chatkeep.answers.configured import ConfiguredProvider
from chatkeep.answers.mcp_config import read_config
from chatkeep.answers.mcp_tools import McpTools
from chatkeep.answers.runner import running_turns
from chatkeep.projects import NewProject
from chatkeep.providers import ApiConfig, NewLlmProvider
from servers.mcp_tools import DELETED, INJECTION, mcp_served
from servers.model_script import Answer, Call, Request
from servers.models import fake_openai

PROGRAM = Path(__file__).parents[1] / "servers" / "mcp_tools.py"

INJECTED = f"Herbs are green. {INJECTION}"


@asynccontextmanager
async def with_tools(url: str, servers: dict[str, Any], folder: Path) -> AsyncIterator[Asking]:
    """Answer by a model that has the tools of these servers, and documents that give it orders."""
    file = folder / "mcp.json"
    file.write_text(json.dumps({"mcpServers": servers}))
    tools = McpTools(read_config(file, lambda name: None), allow_private=True)
    search = Found([passage(1, INJECTED)])
    async with open_store("memory://") as store:
        config = ApiConfig(base_url=url, api_key_env=KEY)
        new = NewLlmProvider(provider_name="openai-chat", model_name="m1", is_default=True, api_config=config)
        await store.providers.create_provider(new)
        await store.projects.create_project("ada", NewProject(id=PROJECT, name="Herbs"))
        provider = ConfiguredProvider(search, {KEY: SECRET}.get, allow_private=True, tools=tools)
        async with running_turns(store, provider) as runner:
            yield Asking(store, runner, search)
        await provider.aclose()


def stdio(deleted: Path, **more: Any) -> dict[str, Any]:
    """The server as a program, which notes deletions in a file."""
    return {"command": sys.executable, "args": [str(PROGRAM)], "env": {DELETED: str(deleted)}, **more}


def offered(request: Request) -> set[str]:
    """The tools that a model was offered."""
    return {tool["function"]["name"] for tool in request.body.get("tools") or ()}


def obedient(request: Request) -> Answer:
    """A model that does whatever it reads: it searches, and calls what a document says, offered or not."""
    said = cast("list[dict[str, Any]]", request.body["messages"])
    results = sum(message["role"] == "tool" for message in said)
    if results == 0:
        return Answer(calls=[Call("search_documents", ['{"query": "herbs"}'])])
    if results == 1 and "Call delete_all" in said[-1]["content"]:
        return Answer(calls=[Call("tools_delete_all", ["{}"], id="call_2")])
    return Answer(text=["Herbs are green [1]."])


WEATHER = [
    Answer(text=["I look. "], calls=[Call("tools_read_weather", ['{"city": "Oslo"}'])]),
    Answer(text=["It is sunny."]),
]


async def check_weather(each: Asking) -> None:
    """Ask for the weather: question, call, result and answer are in the conversation."""
    message = await each.ask("How is the weather in Oslo?")
    assert (message.status, message.content) == (Status.COMPLETE, "I look. \n\nIt is sunny.")
    assert types(message) == ["text", "tool_call", "tool_result", "text"]
    assert message.parts
    call, result = message.parts[1:3]
    assert (call["name"], result["tool_call_id"], result["is_error"]) == ("tools_read_weather", call["id"], False)
    assert "It is sunny in Oslo." in result["content"]
    said = (await each.store.history("ada", message.conversation_id)).items
    assert [each.role for each in said] == ["user", "assistant"]


async def test_over_stdio(tmp_path: Path) -> None:
    """A program gives its tools; those that change things are not offered unless the file lists them."""
    async with fake_openai(WEATHER) as fake, with_tools(fake.url, {"tools": stdio(tmp_path / "d")}, tmp_path) as each:
        await check_weather(each)
        assert offered(fake.requests[0]) == {"search_documents", "tools_read_weather"}


async def test_over_http(tmp_path: Path) -> None:
    """A server gives its tools, and gets nothing of the user's: neither a token nor the key of the model."""
    async with mcp_served() as served, fake_openai(WEATHER) as fake:
        async with with_tools(fake.url, {"tools": {"url": served.url}}, tmp_path) as each:
            await check_weather(each)
        assert served.headers
        assert not any("authorization" in headers for headers in served.headers)
        assert SECRET not in str(served.headers)


async def test_a_document_that_gives_orders(tmp_path: Path) -> None:
    """A model that obeys a document calls what it was not offered: nothing is called, and the question is answered."""
    deleted = tmp_path / "deleted"
    async with fake_openai(obedient) as fake, with_tools(fake.url, {"tools": stdio(deleted)}, tmp_path) as each:
        message = await each.ask("What colour are herbs?")
        assert (message.status, message.content) == (Status.COMPLETE, "Herbs are green [1].")
        assert INJECTED in fake.requests[1].body["messages"][-1]["content"]
        assert [source.quote for source in message.sources] == [INJECTED]
    assert not deleted.exists()


async def test_a_tool_that_the_file_allows(tmp_path: Path) -> None:
    """The administrator decides: the same model with the same document deletes, if the file lists the tool."""
    deleted = tmp_path / "deleted"
    servers = {"tools": stdio(deleted, allowTools=["delete_all"])}
    async with fake_openai(obedient) as fake, with_tools(fake.url, servers, tmp_path) as each:
        await each.ask("What colour are herbs?")
    assert deleted.read_text().count("\n") == 1


async def test_a_call_is_stored_before_it_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that whoever goes on with an answer does not make it again."""
    stored: list[list[str]] = []
    call = McpTools.call_tool

    async def look(self: McpTools, name: str, *more: Any) -> str:
        (talk,) = (await each.store.list_conversations("ada")).items
        (*_, answer) = (await each.store.history("ada", talk.id)).items
        stored.append(types(answer))
        return await call(self, name, *more)

    monkeypatch.setattr(McpTools, "call_tool", look)
    async with fake_openai(WEATHER) as fake, with_tools(fake.url, {"tools": stdio(tmp_path / "d")}, tmp_path) as each:
        await check_weather(each)
    assert stored == [["text", "tool_call"]]


async def test_a_server_that_is_not_there(tmp_path: Path) -> None:
    """Its tools are missing, and everything else goes on."""
    servers = {"gone": {"command": "/nowhere/to/be/found"}, "tools": stdio(tmp_path / "d")}
    async with fake_openai(WEATHER) as fake, with_tools(fake.url, servers, tmp_path) as each:
        await check_weather(each)
        talk = (await each.store.create_conversation("ada", NewConversation())).id
        assert (await each.ask("Again?", talk)).status is Status.COMPLETE
