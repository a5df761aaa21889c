"""The file that names MCP servers whose tools models may use: `mcpServers`, as other programs have it.

Only an administrator writes it. Still it has no way to the other secrets of this server: `${NAME}` is replaced for
variables named CHATKEEP_MCP_… only.

    {"mcpServers": {
        "weather": {"command": "weather-mcp", "args": ["--metric"], "env": {"KEY": "${CHATKEEP_MCP_WEATHER}"}},
        "tickets": {"url": "https://tickets.example/mcp", "headers": {"X-Key": "${CHATKEEP_MCP_TICKETS}"},
                    "allowTools": ["close_ticket"], "timeout": 60}
    }}
"""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from chatkeep.errors import InvalidInput
from chatkeep.validation import first_wrong

MAX_SERVERS = 20
MAX_CONFIG_BYTES = 1 << 20

VARIABLE = re.compile(r"CHATKEEP_MCP_[A-Z0-9_]{1,100}")
PLACEHOLDER = re.compile(r"\$\{([^}]*)\}")
NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")

MAX_LEVELS = 3
"""How deep the values of a server are."""


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one or not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be a URL such as https://tools.example/mcp")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ValueError("must be without user, password and fragment; credentials are for headers")
    return url


def _headers(headers: dict[str, str]) -> dict[str, str]:
    for name, value in headers.items():
        if not HEADER.fullmatch(name):
            raise ValueError("has a name that no header can have")
        if not value.isascii() or not value.isprintable():
            raise ValueError(f"{name} must be ASCII without line breaks")
    return headers


def _without_null(text: str) -> str:
    if "\0" in text:
        raise ValueError("must not contain the character NUL")
    return text


type Word = Annotated[str, Field(max_length=10_000), AfterValidator(_without_null)]


class McpServer(BaseModel):
    """A server of tools: a program that is started, or a URL. Its representation shows no secrets."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, frozen=True, hide_input_in_errors=True)

    name: str
    command: Annotated[Word, Field(min_length=1)] | None = None
    args: list[Word] = Field(default_factory=list, max_length=200, repr=False)
    env: dict[Word, Word] = Field(default_factory=dict, max_length=200, repr=False)
    cwd: Word | None = None
    url: Annotated[str, Field(max_length=2_048), AfterValidator(_url)] | None = Field(default=None, repr=False)
    headers: Annotated[dict[str, Word], AfterValidator(_headers)] = Field(
        default_factory=dict, max_length=50, repr=False
    )
    allow_tools: list[str] = Field(default_factory=list, alias="allowTools", max_length=1_000)
    """Tools that are offered although they may change things."""
    timeout: float = Field(default=30.0, ge=1, le=300, allow_inf_nan=False)
    """Longest time for a call of a tool, in seconds."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("must have either command or url")
        others = {"args", "env", "cwd"} if self.url else {"headers"}
        if wrong := sorted(others & self.model_fields_set):
            raise ValueError(f"{', '.join(wrong)} is not for a server with {'url' if self.url else 'command'}")
        return self


def read_config(path: Path, variables: Callable[[str], str | None]) -> tuple[McpServer, ...]:
    """Return the servers of a file, in its order. Nothing is started or connected.

    `variables` returns the value of an environment variable. Raises InvalidInput, which names the file, the server and
    the field, and shows no value.
    """
    servers = _content(path)
    if len(servers) > MAX_SERVERS:
        raise InvalidInput(f"{path}: mcpServers has {len(servers)} servers; there may be {MAX_SERVERS}")
    return tuple(_server(path, name, value, variables) for name, value in servers.items())


def _content(path: Path) -> dict[str, Any]:
    """The object `mcpServers` of a file."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise InvalidInput(f"{path}: the file cannot be read: {error.strerror}") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise InvalidInput(f"{path}: the file has more than {MAX_CONFIG_BYTES:,} bytes")
    try:
        content = json.loads(raw, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise InvalidInput(f"{path}: line {error.lineno}: this is not JSON") from None
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: this is not JSON in UTF-8, or {error}") from None
    if not isinstance(content, dict) or content.keys() != {"mcpServers"} or not isinstance(content["mcpServers"], dict):
        raise InvalidInput(f'{path}: the file must be an object with nothing but an object "mcpServers"')
    return content["mcpServers"]


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("it has a key twice")
    return found


def _server(path: Path, name: str, value: Any, variables: Callable[[str], str | None]) -> McpServer:
    place = f"{path}: the server {name[:100]!r}"
    if not NAME.fullmatch(name):
        raise InvalidInput(f"{place}: the name of a server is up to 40 letters, digits, _ or -")
    if not isinstance(value, dict) or "name" in value or "allow_tools" in value:
        raise InvalidInput(f"{place} must be an object with command or url, without name and allow_tools")
    filled = {key: _filled(f"{place}: {key}", each, variables) for key, each in value.items()}
    try:
        return McpServer.model_validate({**filled, "name": name})
    except ValidationError as error:
        first = first_wrong(error)
        if first.type == "extra_forbidden":
            raise InvalidInput(
                f"{place}: {first.field} is not a key of a server; there are {', '.join(KEYS)}"
            ) from None
        raise InvalidInput(f"{place}: {first}") from None


KEYS = [field.alias or name for name, field in McpServer.model_fields.items() if name != "name"]


def _filled(place: str, value: Any, variables: Callable[[str], str | None], level: int = 1) -> Any:
    """Replace `${NAME}` in the strings of a value, once: what a variable has is taken as it is."""

    def variable(found: re.Match[str]) -> str:
        name = found[1]
        if not VARIABLE.fullmatch(name):
            raise InvalidInput(f"{place}: only variables named CHATKEEP_MCP_… are replaced, in capital letters")
        filled = variables(name)
        if filled is None:
            raise InvalidInput(f"{place}: the variable {name} is not set")
        return filled

    if isinstance(value, str):
        return PLACEHOLDER.sub(variable, value)
    if isinstance(value, list) and level < MAX_LEVELS:
        return [_filled(place, each, variables, level + 1) for each in value]
    if isinstance(value, dict) and level < MAX_LEVELS:
        return {key: _filled(place, each, variables, level + 1) for key, each in value.items()}
    return value
