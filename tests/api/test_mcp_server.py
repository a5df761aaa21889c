"""The MCP server over HTTP, as the official client sees it, and clients that are not let in."""

import asyncio
import base64
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from mcp.client.client import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent, TextResourceContents

from chatkeep import Message, NewConversation, NewMessage, Page, Role, Store, StoreUnavailable, open_store
from chatkeep.api.middleware import MCP_BYTES
from chatkeep.documents import NewChunk, NewDocument
from chatkeep.keys import READ, WRITE, WRITE_ANY_ROLE, make_key
from chatkeep.mcp import FAILED, MAX_ITEMS, ONLY_USER, READ_ONLY, TEXT_CHARS, UNAVAILABLE
from chatkeep.options import StoreOptions
from chatkeep.projects import NewProject
from chatkeep.retrieval.terms import pack_terms
from chatkeep.stores.memory.store import MemoryStore
from servers.api import Api, assert_problem, serving

AUTH = {"auth": "jwt", "jwt_secret": "s" * 64, "failure_limit": "1000000/minute"}
DOCS = Path(__file__).parents[2] / "docs" / "mcp.md"
IDS = ("own", "foreign", "unknown", "malformed")
CALLS: dict[str, dict[str, Any]] = {
    "list_conversations": {},
    "list_conversations of a project": {"project_id": "project"},
    "read_conversation": {"conversation_id": "conversation"},
    "search_conversations": {"query": "secret"},
    "search_conversations in one": {"query": "secret", "conversation_id": "conversation"},
    "append_message": {"conversation_id": "conversation", "content": "let me in"},
    "create_conversation": {"title": "zq7"},
    "create_conversation in a project": {"title": "zq7", "project_id": "project"},
    "list_projects": {},
    "search_documents": {"project_id": "project", "question": "secret"},
}
"""A call of each tool, by its name and what is special about it; the arguments with ids have their kind."""
TEXT = [NewChunk("secret", None, "", 0, pack_terms("secret"))]


def ping(id_: Any = 1) -> dict[str, Any]:
    """A message that needs no arguments."""
    return {"jsonrpc": "2.0", "id": id_, "method": "ping"}


async def new_key(store: Store, owner: str = "ada", *scopes: str) -> dict[str, str]:
    """The headers with a new key of an owner."""
    new = make_key(owner, "client", scopes or (READ, WRITE), None)
    await store.access.create_key(new.key, new.secret_hash)
    return {"Authorization": f"Bearer {new.text}"}


@asynccontextmanager
async def connected(api: Api, headers: dict[str, str] | None = None, mode: str = "auto") -> AsyncIterator[Client]:
    """The official client, with these headers."""
    async with (
        httpx2.AsyncClient(headers=headers, timeout=10) as http,
        Client(streamable_http_client(f"http://127.0.0.1:{api.port}/mcp", http_client=http), mode=mode) as client,
    ):
        yield client


def said(result: CallToolResult) -> str:
    """The text of a result."""
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


def failure(result: CallToolResult) -> str:
    """What a result says is wrong."""
    assert result.is_error, said(result)
    assert result.structured_content is None
    return said(result)


def value(result: CallToolResult) -> Any:
    """What a call returned, which its text says, too."""
    assert not result.is_error, said(result)
    assert json.loads(said(result)) == result.structured_content
    return result.structured_content


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    """A server for one owner."""
    async with open_store("memory://") as store, serving(store) as served:
        yield served


# --- owners ----------------------------------------------------------------------------------------------


class World:
    """Two owners with a conversation, a project and a document each, and a client of the first one."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.ids: dict[str, dict[str, str]] = {}

    async def fill(self) -> None:
        """Store what the owners have."""
        for owner in ("ada", "bob"):
            project = await self.store.projects.create_project(owner, NewProject(name=f"secret of {owner}"))
            new = NewConversation(title=f"secret of {owner}", project_id=project.id)
            talk = await self.store.create_conversation(owner, new)
            await self.store.append(owner, talk.id, NewMessage(role=Role.USER, content=f"secret words of {owner}"))
            document = NewDocument(
                file_path=f"secret-of-{owner}.md", media_type="text/markdown", bytes=6, sha256="0" * 64
            )
            await self.store.documents.store_document(owner, project.id, document, TEXT)
            self.ids[owner] = {"project": str(project.id), "conversation": str(talk.id)}

    def named(self, arguments: dict[str, Any], kind: str) -> dict[str, Any]:
        """The arguments with ids of a kind, as seen by ada."""
        ids = {
            "own": self.ids["ada"],
            "foreign": self.ids["bob"],
            "unknown": {"project": str(uuid4()), "conversation": str(uuid4())},
            "malformed": {"project": "zq7", "conversation": "zq7"},
        }[kind]
        return {name: ids.get(given, given) for name, given in arguments.items()}

    async def kept(self) -> list[Any]:
        """What bob has."""
        listed = await self.store.list_conversations("bob")
        logs = [await self.store.log("bob", each.id) for each in listed.items]
        projects = await self.store.projects.list_projects("bob")
        return [listed, logs, projects]


@pytest.fixture(params=["shown", "hidden"])
def hides(request: pytest.FixtureRequest) -> bool:
    """Whether the server says that something is somebody else's."""
    return bool(request.param == "hidden")


async def test_ownership_of_tools(store_url: str, *, hides: bool) -> None:
    """Every tool serves what is the caller's, and neither tells nor changes what is not, with every kind of id."""
    async with open_store(store_url, hide_foreign=hides) as store, serving(store, **AUTH) as api:
        world = World(store)
        await world.fill()
        before = await world.kept()
        async with connected(api, await new_key(store)) as client:
            tools = {tool.name for tool in (await client.list_tools()).tools}
            assert {call.partition(" ")[0] for call in CALLS} == tools
            for call, arguments in CALLS.items():
                name, has_id = call.partition(" ")[0], bool({"project", "conversation"} & {*arguments.values()})
                results = {
                    kind: await client.call_tool(name, world.named(arguments, kind))
                    for kind in (IDS if has_id else IDS[:1])
                }
                assert not results.pop("own").is_error, call
                if has_id:
                    check_refused(call, results, hides=hides)
                assert await world.kept() == before, call
            everything = [await client.call_tool(name, arguments) for name, arguments in ((n, CALLS[n]) for n in LISTS)]
            assert all("secret of ada" in said(each) and "bob" not in said(each) for each in everything)


LISTS = ("list_conversations", "search_conversations", "list_projects")


def check_refused(call: str, results: dict[str, CallToolResult], *, hides: bool) -> None:
    """Check what is said of ids that are not the caller's: for projects, and if hidden, the same as of unknown ones."""
    foreign, unknown, malformed = (results[kind] for kind in IDS[1:])
    assert "must be a UUID" in failure(malformed)
    assert not any("secret" in said(each) or "zq7" in said(each) for each in results.values())
    if call == "list_conversations of a project":
        assert value(foreign) == value(unknown) == {"items": [], "total": None, "next": None}
        return
    assert "there is no such" in failure(unknown)
    is_hidden = hides or "project" in failure(unknown)
    assert (failure(foreign) == failure(unknown)) == is_hidden


async def test_ownership_of_resources(store_url: str, *, hides: bool) -> None:
    """The list has the caller's conversations, the newest first; another one's cannot be read."""
    async with open_store(store_url, hide_foreign=hides) as store, serving(store, **AUTH) as api:
        world = World(store)
        await world.fill()
        async with connected(api, await new_key(store)) as client:
            listed = (await client.list_resources()).resources
            own = f"chatkeep://conversations/{world.ids['ada']['conversation']}"
            assert [(each.uri, each.title) for each in listed] == [(own, "secret of ada")]
            [contents] = (await client.read_resource(own)).contents
            assert isinstance(contents, TextResourceContents)
            shown = json.loads(contents.text)
            assert [each["text"] for each in shown["messages"]["items"]] == ["secret words of ada"]
            [template] = (await client.list_resource_templates()).resource_templates
            assert template.uri_template == "chatkeep://conversations/{id}"
            reasons = [
                await unread(client, f"chatkeep://conversations/{id_}")
                for id_ in (world.ids["bob"]["conversation"], uuid4(), "zq7", "../projects", "0" * 32 + "----")
            ]
            assert reasons[1] == "there is no such conversation"
            assert (reasons[0] == reasons[1]) == hides
            assert not any("secret" in each or "zq7" in each for each in reasons)


async def unread(client: Client, uri: str) -> str:
    """Why a resource cannot be read."""
    with pytest.raises(MCPError) as raised:
        await client.read_resource(uri, cache_mode="bypass")
    return raised.value.error.message


async def test_keys_that_only_read() -> None:
    """A key that may only read reads, and is told that it may not create and append."""
    async with open_store("memory://") as store, serving(store, **AUTH) as guarded:
        talk = await store.create_conversation("ada", NewConversation(title="tea"))
        async with connected(guarded, await new_key(store, "ada", READ)) as client:
            assert value(await client.call_tool("list_conversations", {}))["items"][0]["title"] == "tea"
            assert failure(await client.call_tool("create_conversation", {})) == READ_ONLY
            given = {"conversation_id": str(talk.id), "content": "Green?"}
            assert failure(await client.call_tool("append_message", given)) == READ_ONLY
        assert (await store.list_conversations("ada", total=True)).total == 1
        assert await store.log("ada", talk.id) == []


async def test_roles() -> None:
    """A key appends what the user said; with the scope for it what others said, too."""
    async with open_store("memory://") as store, serving(store, **AUTH) as api:
        talk = await store.create_conversation("ada", NewConversation())
        given = {"conversation_id": str(talk.id), "content": "Green."}
        async with connected(api, await new_key(store)) as client:
            assert value(await client.call_tool("append_message", given))["role"] == "user"
            for role in ("assistant", "system", "tool"):
                assert failure(await client.call_tool("append_message", {**given, "role": role})) == ONLY_USER
        async with connected(api, await new_key(store, "ada", WRITE, WRITE_ANY_ROLE)) as client:
            assert value(await client.call_tool("append_message", {**given, "role": "assistant"}))["seq"] == 2


async def test_nobody_is_let_in_without_a_token() -> None:
    """No key, a wrong one, and a token in the address are 401 with a challenge; other hosts and pages are refused."""
    async with open_store("memory://") as store, serving(store, **AUTH) as api:
        headers = await new_key(store)
        for given in ({}, {"Authorization": "Bearer zq7"}, {"Authorization": "Basic zq7"}):
            for method in ("POST", "GET", "DELETE"):
                reply = await api.client.request(method, "/mcp?token=zq7", headers=given, json=ping())
                assert_problem(reply, 401, "zq7")
                assert reply.headers["www-authenticate"].startswith('Bearer realm="chatkeep"')
        assert_problem(await api.client.post("/mcp", headers={**headers, "Host": "evil.example"}, json=ping()), 421)
        foreign = {**headers, "Origin": "https://evil.example"}
        assert_problem(await api.client.post("/mcp", headers=foreign, json=ping()), 403)
        assert_problem(await api.client.get("/mcp", headers=foreign), 403)
        for method in ("GET", "DELETE", "PUT", "HEAD"):
            reply = await api.client.request(method, "/mcp", headers=headers)
            assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
        own = {**headers, "Origin": f"http://127.0.0.1:{api.port}", "Accept": "application/json"}
        assert (await api.client.post("/mcp", headers=own, json=ping())).json() == {
            "jsonrpc": "2.0",
            "id": 1,
            "result": {},
        }


# --- tools -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_conversation(api: Api, mode: str) -> None:
    """With the protocol of handshakes and the one without: create, append once, read, find."""
    async with connected(api, mode=mode) as client:
        made = value(await client.call_tool("create_conversation", {"title": "Tea", "context_id": "kitchen"}))
        id_ = str(uuid4())
        given = {"conversation_id": made["id"], "content": "How hot should green tea be?", "id": id_}
        first = value(await client.call_tool("append_message", given))
        assert value(await client.call_tool("append_message", given)) == first
        assert (first["id"], first["seq"], first["text"], first["note"]) == (id_, 1, given["content"], None)
        assert "already" in failure(await client.call_tool("append_message", {**given, "content": "And black?"}))
        read = value(await client.call_tool("read_conversation", {"conversation_id": made["id"]}))
        assert (read["conversation"]["last_seq"], read["messages"]["items"]) == (1, [first])
        [found] = value(await client.call_tool("search_conversations", {"query": '"green tea"'}))["items"]
        assert (found["conversation_id"], found["title"], found["message_id"]) == (made["id"], "Tea", id_)
        assert "green tea" in found["snippet"]
        listed = value(await client.call_tool("list_conversations", {"context_id": "kitchen"}))["items"]
        assert [each["id"] for each in listed] == [made["id"]]
        assert value(await client.call_tool("list_conversations", {"context_id": "garden"}))["items"] == []
    assert [each.content for each in await api.store.log("local", made["id"])] == [given["content"]]


async def test_search_in_documents(api: Api) -> None:
    """A question finds the passage, and says by what."""
    project = await api.store.projects.create_project("local", NewProject(name="manual"))
    document = NewDocument(file_path="tea.md", media_type="text/markdown", bytes=6, sha256="0" * 64)
    text = "Green tea wants 80 °C."
    chunks = [NewChunk(text, "#heat", "Heat", 0, pack_terms(text))]
    await api.store.documents.store_document("local", project.id, document, chunks)
    async with connected(api) as client:
        [listed] = value(await client.call_tool("list_projects", {}))["items"]
        assert (listed["name"], listed["documents"]) == ("manual", 1)
        asked = {"project_id": listed["id"], "question": "How hot is green tea?"}
        found = value(await client.call_tool("search_documents", asked))
    assert [(each["file_path"], each["text"]) for each in found["items"]] == [("tea.md", text)]
    assert found["method"] == "lexical"


async def test_pages_and_cuts(api: Api) -> None:
    """Pages end at their limit and go on with the cursor; long texts are cut, and say so."""
    talk = await api.store.create_conversation("local", NewConversation())
    said_ = [NewMessage(role=Role.ASSISTANT, content=f"{number} " * TEXT_CHARS) for number in range(MAX_ITEMS + 5)]
    await api.store.append("local", talk.id, said_)
    seqs: list[int] = []
    async with connected(api) as client:
        given: dict[str, Any] = {"conversation_id": str(talk.id), "limit": MAX_ITEMS}
        while "cursor" not in given or given["cursor"]:
            page = value(await client.call_tool("read_conversation", given))["messages"]
            assert all(len(each["text"]) == TEXT_CHARS and "of" in each["note"] for each in page["items"])
            seqs = [each["seq"] for each in page["items"]] + seqs
            given["cursor"] = page["next"]
        [contents] = (await client.read_resource(f"chatkeep://conversations/{talk.id}")).contents
        assert isinstance(contents, TextResourceContents)
        assert len(json.loads(contents.text)["messages"]["items"]) == MAX_ITEMS
        for _ in range(MAX_ITEMS):
            await client.call_tool("create_conversation", {})
        first = await client.list_resources()
        second = await client.list_resources(cursor=first.next_cursor)
    assert seqs == [*range(1, MAX_ITEMS + 6)]
    assert len({each.uri for each in [*first.resources, *second.resources]}) == MAX_ITEMS + 1
    assert second.next_cursor is None


@pytest.mark.parametrize(
    ("tool", "arguments", "reason"),
    [
        ("list_conversations", {"limit": 51}, "limit must be at most 50"),
        ("list_conversations", {"cursor": "zq7"}, "cursor"),
        ("list_conversations", {"zq7": 1}, "has an unknown field; known are project_id, context_id, limit, cursor"),
        ("list_conversations", {"owner": "bob"}, "has an unknown field"),
        ("search_conversations", {"query": "-zq7"}, "word"),
        ("search_conversations", {"query": "z" * 201}, "query may have at most 200 characters"),
        ("append_message", {"conversation_id": str(uuid4()), "content": " "}, "must not be blank"),
        ("append_message", {"conversation_id": str(uuid4()), "content": "x", "role": "zq7"}, "role must be one of"),
        ("append_message", {"conversation_id": str(uuid4())}, "content is missing"),
        ("create_conversation", {"title": ""}, "title must not be empty"),
        ("search_documents", {"project_id": str(uuid4()), "question": "zq7", "limit": 21}, "limit must be at most 20"),
    ],
)
async def test_invalid_arguments(api: Api, tool: str, arguments: dict[str, Any], reason: str) -> None:
    """What is wrong with arguments is said as the REST API says it, without the arguments."""
    async with connected(api) as client:
        told = failure(await client.call_tool(tool, arguments))
    assert reason in told
    assert "zq7" not in told


class Broken(MemoryStore):
    """A store that fails."""

    error: Exception = RuntimeError("zq7")

    async def list_conversations(self, *_: Any, **__: Any) -> Page[Any]:
        """Fail."""
        raise self.error

    async def history(self, *_: Any, **__: Any) -> Page[Message]:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "told"),
    [(RuntimeError("zq7"), FAILED), (StoreUnavailable("no connection to zq7", got="zq7"), UNAVAILABLE)],
)
async def test_failures_tell_nothing(error: Exception, told: str, caplog: pytest.LogCaptureFixture) -> None:
    """What fails inside is logged, and told in one sentence."""
    store = Broken("memory://", StoreOptions())
    store.error = error
    await store.migrate()
    talk = await store.create_conversation("local", NewConversation())
    async with serving(store) as api, connected(api) as client:
        assert failure(await client.call_tool("list_conversations", {})) == told
        assert await unread(client, f"chatkeep://conversations/{talk.id}") == told
        with pytest.raises(MCPError, match=told):
            await client.list_resources()
    assert "zq7" in caplog.text


# --- bounds ----------------------------------------------------------------------------------------------


async def post(api: Api, content: bytes, **headers: str) -> httpx2.Response:
    """Send these bytes as a message."""
    given = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    return await api.client.post("/mcp", content=content, headers=given)


@pytest.mark.parametrize("version", ["2025-11-25", "2026-07-28"])
async def test_bodies(api: Api, version: str) -> None:
    """Bodies that are too large, have too many values, or are no message are refused, in each protocol."""
    header = {"MCP-Protocol-Version": version}
    assert_problem(await post(api, b" " * (MCP_BYTES + 1), **header), 413)
    assert_problem(await post(api, b"[" * 50_000, **header), 422)
    assert_problem(await post(api, json.dumps([0] * 2_000).encode(), **header), 422)
    assert_problem(await post(api, b"{}", **{**header, "Content-Type": "text/plain"}), 415)
    assert_problem(await post(api, b"{}", **{**header, "Content-Encoding": "gzip"}), 415)
    for content in (b"", b"zq7", b"{}", b"[]", b"null", b'"zq7"', b"\xff", json.dumps([ping()]).encode()):
        reply = await post(api, content, **header)
        assert (reply.status_code, reply.json()["error"]["code"] < 0) == (400, True), content
    unknown = {**ping(), "method": "zq7/unknown"}
    reply = await post(api, json.dumps(unknown).encode(), **{**header, "Mcp-Method": "zq7/unknown"})
    assert reply.json()["error"]["code"] in (-32601, -32602, -32020), reply.text


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("search_conversations", {"query": "\ud800 tea"}),
        ("create_conversation", {"title": "\ud800"}),
        ("list_conversations", {"cursor": "\ud800", "\ud800": 1}),
        ("list_conversations", {"limit": float("inf")}),
        ("zq7\ud800", {"\ud800": "\0"}),
    ],
)
async def test_values_that_are_no_text(api: Api, tool: str, arguments: dict[str, Any]) -> None:
    """The protocol without a handshake lets lone surrogates and infinities through: none is an error of the server."""
    meta = {
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
    }
    call = {"name": tool, "arguments": arguments, "_meta": meta}
    body = json.dumps({**ping("\ud800"), "method": "tools/call", "params": call}).encode()
    headers = {"MCP-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call"}
    encoded = base64.b64encode(tool.encode("utf-8", "surrogatepass")).decode()
    name = tool if tool.isascii() else f"=?base64?{encoded}?="
    reply = await post(api, body, **headers, **{"Mcp-Name": name})
    assert reply.status_code in (200, 400), reply.text
    assert FAILED not in reply.text
    assert "zq7" not in reply.text


async def test_the_limits_of_the_api_hold() -> None:
    """Requests to the MCP server are counted with the owner's others, and stop at the same limit."""
    async with open_store("memory://") as store, serving(store, **AUTH, rate_limit="3/minute") as api:
        headers = await new_key(store)
        assert (await api.client.get("/api/conversations", headers=headers)).status_code == 200
        replies = [await api.client.post("/mcp", json=ping(), headers=headers) for _ in range(3)]
    assert [each.status_code for each in replies] == [200, 200, 429]
    assert [each.headers["cache-control"] for each in replies[:2]] == ["no-store"] * 2


@pytest.mark.long
async def test_nothing_is_left_of_many_requests() -> None:
    """Hundreds of requests at once, and clients that read nothing and go away, leave no task behind."""
    async with open_store("memory://") as store, serving(store, write_seconds=1.0) as api:
        talk = await store.create_conversation("local", NewConversation())
        large = [NewMessage(role=Role.ASSISTANT, content="\u8336" * TEXT_CHARS) for _ in range(MAX_ITEMS)]
        await store.append("local", talk.id, large)
        await api.client.post("/mcp", json=ping())
        before = len(asyncio.all_tasks())
        call = {"name": "read_conversation", "arguments": {"conversation_id": str(talk.id), "limit": MAX_ITEMS}}
        body = json.dumps({**ping(), "method": "tools/call", "params": call}).encode()
        head = f"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json\r\nContent-Length: {len(body)}\r\n"
        request = f"{head}Content-Type: application/json\r\n\r\n".encode() + body
        silent = [await asyncio.open_connection("127.0.0.1", api.port, limit=1) for _ in range(20)]
        for _, writer in silent:
            writer.write(request * 5)
        replies = await asyncio.gather(*(api.client.post("/mcp", json=ping(number)) for number in range(300)))
        assert [each.json()["id"] for each in replies] == [*range(300)]
        async with asyncio.timeout(30):
            while len(asyncio.all_tasks()) > before:  # noqa: ASYNC110 - there is no event for it
                await asyncio.sleep(0.1)
        for _, writer in silent:
            writer.close()


def test_the_sdk_is_imported_by_the_first_request() -> None:
    """The server and the command line start without it: it takes most of a second."""
    program = "import sys, chatkeep.api.app, chatkeep.api.server, chatkeep.cli.app; print('mcp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


async def test_the_page_names_the_tools(api: Api) -> None:
    """docs/mcp.md has a row for each tool, with its arguments and whether it writes."""
    async with connected(api) as client:
        tools = (await client.list_tools()).tools
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \| (\w+) \|", DOCS.read_text("utf-8"), re.MULTILINE)
    named = [(tool.name, ", ".join(arguments(tool.input_schema)), writes(tool.annotations)) for tool in tools]
    assert rows == named
    assert all(tool.description and tool.output_schema for tool in tools)


def arguments(schema: dict[str, Any]) -> list[str]:
    """The arguments of a tool, those that are needed in bold."""
    needed = schema.get("required", [])
    return [f"**`{name}`**" if name in needed else f"`{name}`" for name in schema["properties"]]


def writes(annotations: Any) -> str:
    """Whether a tool writes."""
    return "no" if annotations.read_only_hint else "yes"
