"""The file of MCP servers: what it may say, and what it can never get at."""

import json
from pathlib import Path
from typing import Any

import pytest

from chatkeep.answers.mcp_config import McpServer, read_config
from chatkeep.errors import InvalidInput

VARIABLES = {
    "CHATKEEP_MCP_KEY": "the-secret",
    "CHATKEEP_MCP_NESTED": "${CHATKEEP_MCP_KEY}",
    "CHATKEEP_DATABASE_URL": "postgresql://chatkeep:password@db/chatkeep",
    "OPENAI_API_KEY": "sk-secret",
}


def read(folder: Path, servers: Any, raw: str | None = None) -> tuple[McpServer, ...]:
    """Read a file with these servers, or with this text."""
    path = folder / "mcp.json"
    path.write_text(json.dumps({"mcpServers": servers}) if raw is None else raw)
    return read_config(path, VARIABLES.get)


def test_programs_and_urls(tmp_path: Path) -> None:
    """Both kinds of servers, with everything that they may have."""
    weather, tickets = read(
        tmp_path,
        {
            "weather": {"command": "weather-mcp", "args": ["-v"], "env": {"A": "b"}, "cwd": "/srv"},
            "tickets": {
                "url": "https://tickets.example/mcp?x=1",
                "headers": {"X-Key": "k"},
                "allowTools": ["close"],
                "timeout": 5,
            },
        },
    )
    assert (weather.name, weather.command, weather.args, weather.env) == ("weather", "weather-mcp", ["-v"], {"A": "b"})
    assert (weather.cwd, weather.url, weather.allow_tools, weather.timeout) == ("/srv", None, [], 30.0)
    assert (tickets.url, tickets.headers, tickets.allow_tools, tickets.timeout) == (
        "https://tickets.example/mcp?x=1",
        {"X-Key": "k"},
        ["close"],
        5.0,
    )


def test_no_servers(tmp_path: Path) -> None:
    """A file may name none."""
    assert read(tmp_path, {}) == ()


def test_variables(tmp_path: Path) -> None:
    """Variables are replaced in all values, once, and are not shown."""
    program = {"command": "x", "args": ["--key=${CHATKEEP_MCP_KEY}", "$HOME"], "env": {"KEY": "${CHATKEEP_MCP_NESTED}"}}
    remote = {"url": "https://t.example/${CHATKEEP_MCP_KEY}", "headers": {"X-Key": "${CHATKEEP_MCP_KEY}"}}
    first, second = read(tmp_path, {"a": program, "b": remote})
    assert first.args == ["--key=the-secret", "$HOME"]
    assert first.env == {"KEY": "${CHATKEEP_MCP_KEY}"}
    assert second.url == "https://t.example/the-secret"
    assert second.headers == {"X-Key": "the-secret"}
    assert "the-secret" not in f"{first!r} {second!r} {first} {second}"


@pytest.mark.parametrize("name", ["CHATKEEP_DATABASE_URL", "OPENAI_API_KEY", "CHATKEEP_MCP_", "chatkeep_mcp_key"])
@pytest.mark.parametrize("field", ["command", "args", "env", "headers", "url"])
def test_variables_that_are_none_of_its_business(tmp_path: Path, name: str, field: str) -> None:
    """No field gets at another variable of the server, such as the URL of the database, also not with a default."""
    for spelling in (f"${{{name}}}", f"x${{{name}}}y", f"${{{name}:-x}}", f"${{ {name} }}"):
        value: Any = {"args": [spelling], "env": {"A": spelling}, "headers": {"A": spelling}}.get(field, spelling)
        with pytest.raises(InvalidInput) as caught:
            read(tmp_path, {"evil": {field: value}})
        assert f"mcp.json: the server 'evil': {field}: only variables named CHATKEEP_MCP_" in caught.value.detail
        assert "password" not in str(caught.value)
        assert "sk-secret" not in str(caught.value)


def test_variables_that_are_not_set(tmp_path: Path) -> None:
    """A variable that lacks is an error, and no empty string."""
    with pytest.raises(InvalidInput, match="headers: the variable CHATKEEP_MCP_OTHER is not set"):
        read(tmp_path, {"a": {"url": "https://t.example", "headers": {"X": "${CHATKEEP_MCP_OTHER}"}}})


URL = {"url": "https://t.example/mcp"}


@pytest.mark.parametrize(
    ("server", "sentence"),
    [
        ({}, "must have either command or url"),
        ({"command": "x", **URL}, "must have either command or url"),
        ({"command": ""}, "command "),
        ({"command": 5}, "command "),
        ({"command": "x\0y"}, "command "),
        ({"command": "x", "headers": {"A": "b"}}, "headers is not for a server with command"),
        ({**URL, "env": {"A": "b"}}, "env is not for a server with url"),
        ({"command": "x", "args": "-v"}, "args "),
        ({"command": "x", "args": [["-v"]]}, "args.0 "),
        ({"command": "x", "env": {"A": 1}}, "env.A "),
        ({"command": "x", "allow_tools": ["a"]}, "must be an object with command or url"),
        ({"command": "x", "name": "y"}, "must be an object with command or url"),
        ({"command": "x", "type": "stdio"}, "type is not a key of a server; there are command, args, env, cwd, url"),
        ({"command": "x", "allowTools": "all"}, "allowTools "),
        ({"command": "x", "timeout": 0}, "timeout "),
        ({"command": "x", "timeout": 301}, "timeout "),
        ({"command": "x", "timeout": True}, "timeout "),
        ({"url": "ftp://t.example"}, "url "),
        ({"url": "https://"}, "url "),
        ({"url": "https://user:pass@t.example"}, "credentials are for headers"),
        ({"url": "https://t.example/ x"}, "url "),
        ({"url": "https://t.example:99999/"}, "url "),
        ({**URL, "headers": {"X Y": "1"}}, "has a name that no header can have"),
        ({**URL, "headers": {"X": "1\r\nY: 2"}}, "X must be ASCII without line breaks"),
        ("npx", "must be an object with command or url"),
    ],
)
def test_servers_that_are_none(tmp_path: Path, server: Any, sentence: str) -> None:
    """Errors name the file, the server and the field, and not the value."""
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, {"mine": server})
    assert f"{tmp_path}/mcp.json: the server 'mine'" in caught.value.detail
    assert sentence in caught.value.detail
    assert "pass@" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a b", "a.b", "a/b", "x" * 41, "é"])
def test_names(tmp_path: Path, name: str) -> None:
    """The name of a server becomes a part of names of tools."""
    with pytest.raises(InvalidInput, match="the name of a server is up to 40"):
        read(tmp_path, {name: {"command": "x"}})


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ("", "line 1: this is not JSON"),
        ('{"mcpServers": {}\n,}', "line 2: this is not JSON"),
        ("[]", "must be an object"),
        ('{"servers": {}}', "must be an object"),
        ('{"mcpServers": {}, "inputs": []}', "must be an object"),
        ('{"mcpServers": []}', "must be an object"),
        ('{"mcpServers": {"a": {"command": "x"}, "a": {"command": "y"}}}', "a key twice"),
        ("[" * 100_000, "JSON"),
        (" " * ((1 << 20) + 1), "more than 1,048,576 bytes"),
    ],
)
def test_files_that_are_none(tmp_path: Path, raw: str, sentence: str) -> None:
    """A file that is no such file."""
    with pytest.raises(InvalidInput) as caught:
        read(tmp_path, None, raw)
    assert caught.value.detail.startswith(f"{tmp_path}/mcp.json: ")
    assert sentence in caught.value.detail


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """A file that is not there, is a folder, or not text."""
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(InvalidInput, match="cannot be read"):
            read_config(path, VARIABLES.get)
    (tmp_path / "binary.json").write_bytes(b'{"mcpServers": {"\xff": {}}}')
    with pytest.raises(InvalidInput, match="not JSON in UTF-8"):
        read_config(tmp_path / "binary.json", VARIABLES.get)


def test_too_many_servers(tmp_path: Path) -> None:
    """There are 20 at most."""
    assert len(read(tmp_path, {f"s{n}": {"command": "x"} for n in range(20)})) == 20
    with pytest.raises(InvalidInput, match="mcpServers has 21 servers"):
        read(tmp_path, {f"s{n}": {"command": "x"} for n in range(21)})
