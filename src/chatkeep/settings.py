"""Settings of the server and the command line. No other module reads the environment."""

import json
import os
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self, get_args
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from chatkeep.errors import InvalidInput
from chatkeep.providers import KEY_VARIABLE, STANDARD_KEYS
from chatkeep.validation import all_wrong

LOCAL_OWNER = "local"
"""The only owner if there is no authentication."""

MIN_SECRET_BYTES = 32
"""Shortest secret for HS256 (RFC 7518, 3.2). A shorter one can be found by brute force from a single token."""

OPEN_ORIGINS = ("*", "null")
"""Origins that stand for many pages: all of them, and every file and sandboxed frame."""

CLOSE = 0.9
"""How much alike two names are if one is taken for the other, misspelt."""

INTERRUPT_SECONDS = 2.0
"""How much of the shutdown is left for answers that are interrupted."""

ProviderName = Literal["configured", "none", "scripted", "scripted-fast"]
"""What makes answers: the providers in the database, nothing, or a script."""

type Network = IPv4Network | IPv6Network


def _listed(value: object) -> object:
    """Return the items of a setting: `a, b` or a JSON list."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [item.strip() for item in value.split(",") if item.strip()]
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise ValueError('must be a list such as a.example,b.example or ["a.example", "b.example"]') from None


Items = Annotated[list[str], NoDecode, BeforeValidator(_listed)]
"""A list in the environment. Its items have no commas."""


class Settings(BaseSettings):
    """Each setting is read from the environment variable with the prefix CHATKEEP_, such as CHATKEEP_DATABASE_URL."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="CHATKEEP_", frozen=True, hide_input_in_errors=True
    )

    database_url: str | None = Field(
        default=None,
        repr=False,
        description="sqlite:///FILE, postgresql://HOST/NAME or mongodb://HOST/NAME."
        " Default: an SQLite file in the user's data folder.",
    )
    host: str = "127.0.0.1"
    port: int = Field(default=8765, ge=0, le=65535)
    workers: int = Field(default=1, ge=1, le=256, description="Number of server processes.")
    allowed_hosts: Items = Field(
        default_factory=list, description="Accepted names in the Host header besides localhost: a,b or a JSON list."
    )
    cors_origins: Items = Field(
        default_factory=list,
        description="Origins whose pages may call the API, such as https://app.example,https://b.example.",
    )
    trusted_proxies: Items = Field(
        default_factory=list,
        description="Addresses or networks of proxies whose X-Forwarded-For is believed, such as 10.0.0.0/8,::1.",
    )
    max_body_bytes: int = Field(default=8 << 20, gt=0, description="Largest request body, in bytes.")
    body_memory_bytes: int = Field(
        default=128 << 20,
        gt=0,
        description="Memory for request bodies above 64 KiB, per process; one owner has an eighth.",
    )
    max_requests: int = Field(
        default=1_000, ge=1, description="Requests under way, per process, without event streams."
    )
    max_streams: int = Field(default=20, ge=1, description="Event streams of one owner, per process.")
    max_connections: int = Field(
        default=2_000, ge=16, description="Connections, per process; the oldest idle one makes room."
    )
    head_seconds: float = Field(default=10.0, gt=0, description="Time for the head of a request to arrive.")
    body_seconds: float = Field(default=60.0, gt=0, description="Time for the body of a request to arrive.")
    keep_alive_seconds: float = Field(
        default=5.0, gt=0, description="Time that a connection is kept for the next request."
    )
    write_seconds: float = Field(default=30.0, gt=0, description="Time that a client may take nothing of its response.")
    max_json_values: int = Field(
        default=100_000,
        gt=0,
        description="Most JSON values in a request body of more than 64 KiB: the items of all its lists and objects.",
    )
    hide_foreign: bool | None = Field(default=None, description="404 instead of 403 for another owner's conversations.")

    auth: Literal["none", "jwt"] = "none"
    jwt_secret: SecretStr | None = Field(
        default=None, description="Secret for HS256. Default: the public keys of the issuer."
    )
    jwt_issuer: str | None = Field(
        default=None, description="The `iss` of the tokens, and the base URL of OpenID Connect discovery."
    )
    jwt_audience: str | None = Field(default=None, description="The `aud` of the tokens.")

    rate_limit: str | None = Field(
        default=None,
        description="Requests per owner, such as 600/minute; 0: no limit. Default: 6000/minute if auth is jwt."
        " Without rate_limit_storage each worker allows as many.",
    )
    erase_limit: str | None = Field(
        default=None,
        description="Erasures per owner over HTTP, such as 20/hour; 0: no limit. Default: 20/hour if auth is jwt.",
    )
    turn_limit: str | None = Field(
        default=None,
        description="Questions of an owner that are answered, such as 60/minute; 0: no limit. Default: 60/minute if"
        " auth is jwt.",
    )
    failure_limit: str = Field(
        default="60/minute", description="Failed authentications per address, such as 60/minute."
    )
    rate_limit_storage: str | None = Field(
        default=None,
        repr=False,
        description="redis://HOST:PORT: one count for all workers and servers. Default: in memory.",
    )
    log_format: Literal["human", "json"] = "human"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics: bool = Field(
        default=False, description="Whether /metrics is served, without authentication, to all that can connect."
    )
    shutdown_seconds: float = Field(default=30.0, gt=0, description="Time for requests to finish during the shutdown.")

    provider: ProviderName = Field(
        default="configured",
        description="What answers questions. `configured`: the providers in the database. `scripted` plays a script,"
        " for tests and demonstrations; `scripted-fast` plays it without pauses.",
    )
    upstream: str | None = Field(
        default=None,
        repr=False,
        description="The URL of a model server that speaks Chat Completions, such as http://127.0.0.1:8080/v1: it is"
        " made the default provider at the start.",
    )
    upstream_model: str | None = Field(
        default=None, description="The name of its model. Default: the first that the server lists."
    )
    allow_private_providers: bool | None = Field(
        default=None,
        description="Whether providers may be at addresses that are not public, such as 127.0.0.1 and 10.0.0.0/8."
        " Default: only without authentication.",
    )
    mcp_config: Path | None = Field(
        default=None, description="A file that names MCP servers whose tools the models may use."
    )
    strict_roles: bool | None = Field(
        default=None,
        description="Whether clients may write messages of the role user alone, unless they have the scope"
        " chatkeep:write-any-role. Default: with authentication.",
    )
    turn_lease: float = Field(
        default=15.0, ge=1, le=3_600, description="Seconds after which the answers of a process that died are closed."
    )
    max_turns: int = Field(default=500, ge=1, description="Answers that are made at a time, per process.")
    drain: float = Field(
        default=20.0,
        ge=0,
        description="Seconds of the shutdown in which answers may be finished; others are interrupted.",
    )

    max_upload_bytes: int = Field(default=20 << 20, gt=0, description="Largest file that is uploaded, in bytes.")
    max_documents: int = Field(default=1_000, ge=1, description="Documents of a project.")
    max_chunks: int = Field(default=200_000, ge=1, description="Passages of a project's documents together.")
    retrieval_memory_bytes: int = Field(
        default=512 << 20, gt=0, description="Memory for the indexes of the projects that are searched, per process."
    )
    embedder: str = Field(
        default="none",
        min_length=1,
        description="What makes the vectors by which documents are found: `none`, words alone; `local`, a model on this"
        " machine's CPU (extra `local`); or a name of pydantic-ai, such as openai:text-embedding-3-small.",
    )
    embed_dir: Path | None = Field(
        default=None, description="A folder with another model for the embedder `local`: model.onnx and tokenizer.json."
    )

    @model_validator(mode="after")
    def _can_verify_tokens(self) -> Self:
        if self.auth == "none":
            if self.jwt_secret or self.jwt_issuer or self.jwt_audience:
                raise ValueError("CHATKEEP_JWT_… is set but CHATKEEP_AUTH is none; set CHATKEEP_AUTH=jwt")
            if set(OPEN_ORIGINS) & set(self.cors_origins):
                raise ValueError(
                    "CHATKEEP_CORS_ORIGINS may not have * or null while CHATKEEP_AUTH is none: every web page could"
                    " read and delete everything. Name the origins, or set CHATKEEP_AUTH=jwt"
                )
            return self
        if self.jwt_secret is not None and len(self.jwt_secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"CHATKEEP_JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes; generate a random one")
        if self.jwt_secret is None and self.jwt_issuer is None:
            raise ValueError("CHATKEEP_AUTH=jwt needs CHATKEEP_JWT_SECRET or CHATKEEP_JWT_ISSUER")
        if self.jwt_issuer is not None and self.jwt_audience is None:
            raise ValueError(
                "CHATKEEP_JWT_ISSUER needs CHATKEEP_JWT_AUDIENCE: an issuer signs tokens for other services, too"
            )
        if self.jwt_issuer is not None and self.jwt_secret is None and not is_secure_url(self.jwt_issuer):
            raise ValueError("CHATKEEP_JWT_ISSUER must be an https:// URL: its keys authenticate owners")
        return self

    @model_validator(mode="after")
    def _has_networks_of_proxies(self) -> Self:
        try:
            _ = self.proxy_networks
        except ValueError:
            raise ValueError(
                "CHATKEEP_TRUSTED_PROXIES must be addresses or networks, such as 10.0.0.0/8,::1, not names"
            ) from None
        return self

    @property
    def proxy_networks(self) -> list[Network]:
        """The networks of the proxies whose X-Forwarded-For is believed."""
        return [ip_network(each) for each in self.trusted_proxies]

    @cached_property
    def store_url(self) -> str:
        """The URL of the store, or the default, whose folder is made. Raises InvalidInput if it cannot be."""
        if self.database_url is not None:
            return self.database_url
        folder = user_data_path("chatkeep")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InvalidInput(
                f"cannot make the folder of the default database, {folder}: {error.strerror}; set CHATKEEP_DATABASE_URL"
            ) from None
        return f"sqlite:///{folder / 'chat.db'}"

    @property
    def owner_rate_limit(self) -> str | None:
        """The rate limit of one owner; None: no limit."""
        given = self.rate_limit or ("6000/minute" if self.auth == "jwt" else "0")
        return None if given == "0" else given

    @property
    def owner_erase_limit(self) -> str | None:
        """How often one owner may erase everything; None: no limit. An erasure may rewrite the whole database file."""
        given = self.erase_limit or ("20/hour" if self.auth == "jwt" else "0")
        return None if given == "0" else given

    @property
    def owner_turn_limit(self) -> str | None:
        """How many turns one owner may begin; None: no limit."""
        given = self.turn_limit or ("60/minute" if self.auth == "jwt" else "0")
        return None if given == "0" else given

    @property
    def drain_seconds(self) -> float:
        """The drain, as far as the time of the shutdown allows: what is interrupted has to be stored, too."""
        return max(0.0, min(self.drain, self.shutdown_seconds - INTERRUPT_SECONDS))

    @property
    def may_reach_private(self) -> bool:
        """Whether providers may be at addresses that are not public."""
        return self.auth == "none" if self.allow_private_providers is None else self.allow_private_providers

    @property
    def has_strict_roles(self) -> bool:
        """Whether a client needs a scope of its own to write what an assistant, a system or a tool said."""
        return self.auth == "jwt" if self.strict_roles is None else self.strict_roles

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only clients on this machine can connect."""
        return is_loopback(self.host)


MAX_SHOWN_CHARS = 60
"""How much of an invalid value an error shows."""


def invalid_settings(error: ValidationError) -> Iterator[str]:
    """Yield what is wrong with the settings, a sentence for each: the variable, what it must be, and what it is, unless
    that is secret."""
    for given, wrong in zip(error.errors(include_url=False), all_wrong(error), strict=True):
        if wrong.loc:
            name = str(wrong.loc[0])
            yield f"CHATKEEP_{name.upper()} {wrong.message}{_got(name, given['input'])}"
        else:
            yield wrong.message  # which names the variables


def _got(name: str, value: object) -> str:
    field = Settings.model_fields[name]
    if not field.repr or SecretStr in get_args(field.annotation):
        return ""
    shown = repr(value)
    return f" (got {shown if len(shown) <= MAX_SHOWN_CHARS else shown[:MAX_SHOWN_CHARS] + '…'})"


def misspelt_variables() -> dict[str, str]:
    """Return the environment variables that are no settings, but look like one, with what they look like."""
    known = {f"CHATKEEP_{name.upper()}" for name in Settings.model_fields}
    unknown = [name for name in os.environ if name.upper().startswith("CHATKEEP_") and name.upper() not in known]
    close = {
        name: get_close_matches(name.upper(), known, 1, CLOSE) for name in unknown if not KEY_VARIABLE.fullmatch(name)
    }
    return {name: found[0] for name, found in close.items() if found}


def is_loopback(host: str) -> bool:
    """Whether a host is localhost or a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_secure_url(url: str) -> bool:
    """Whether responses from a URL cannot be forged on the network: HTTPS, or HTTP on loopback."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def share_metrics(folder: Path) -> None:
    """Let this process and its children share metrics in `folder`. Call it before prometheus_client is imported."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def metrics_folder() -> Path | None:
    """Return the folder of the shared metrics, if there are several processes."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None


def provider_key(name: str) -> str | None:
    """Return the API key of a provider in an environment variable, as it is now; None if there is none.

    Raises InvalidInput for a variable that is not one of those for keys of providers: it is not read.
    """
    if not KEY_VARIABLE.fullmatch(name) and name not in STANDARD_KEYS.values():
        raise InvalidInput("this variable is not one of those that have the keys of providers", got=name)
    return os.environ.get(name, "").strip() or None


def mcp_variable(name: str) -> str | None:
    """Return an environment variable that the file of MCP servers names; None if it is not set.

    Who reads that file allows only names that begin with CHATKEEP_MCP_.
    """
    return os.environ.get(name) if name.startswith("CHATKEEP_MCP_") else None
