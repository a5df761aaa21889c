"""Settings of the server and the command line. No other module reads the environment."""

import os
from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from platformdirs import user_data_path
from pydantic import Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

LOCAL_OWNER = "local"
"""The only owner if there is no authentication."""

MIN_SECRET_BYTES = 32
"""Shortest secret for HS256 (RFC 7518, 3.2). A shorter one can be found by brute force from a single token."""


class Settings(BaseSettings):
    """Each setting is read from the environment variable with the prefix CHATKEEP_, such as CHATKEEP_DATABASE_URL."""

    model_config = SettingsConfigDict(env_prefix="CHATKEEP_", frozen=True, hide_input_in_errors=True)

    database_url: str | None = Field(
        None,
        repr=False,
        description="sqlite:///FILE, postgresql://HOST/NAME or mongodb://HOST/NAME."
        " Default: an SQLite file in the user's data folder.",
    )
    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=256, description="Number of server processes.")
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Accepted names in the Host header besides localhost, as a JSON list."
    )
    cors_origins: list[str] = Field(
        default_factory=list, description="Origins whose pages may call the API, as a JSON list."
    )
    max_body_bytes: int = Field(8 << 20, gt=0, description="Largest request body, in bytes.")
    hide_foreign: bool | None = Field(None, description="404 instead of 403 for another owner's conversations.")

    auth: Literal["none", "jwt"] = "none"
    jwt_secret: SecretStr | None = Field(None, description="Secret for HS256. Default: the public keys of the issuer.")
    jwt_issuer: str | None = Field(
        None, description="The `iss` of the tokens, and the base URL of OpenID Connect discovery."
    )
    jwt_audience: str | None = Field(None, description="The `aud` of the tokens.")

    rate_limit: str | None = Field(
        None, description="Requests per owner, such as 600/minute; 0: no limit. Default: 6000/minute if auth is jwt."
    )
    erase_limit: str | None = Field(
        None,
        description="Erasures per owner over HTTP, such as 20/hour; 0: no limit. Default: 20/hour if auth is jwt.",
    )
    failure_limit: str = Field("60/minute", description="Failed authentications per address, such as 60/minute.")
    rate_limit_storage: str | None = Field(
        None, repr=False, description="redis://HOST:PORT: one count for several servers. Default: in memory."
    )
    log_format: Literal["human", "json"] = "human"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics: bool = Field(default=True, description="Whether /metrics is served.")
    shutdown_seconds: float = Field(30.0, gt=0, description="Time for requests to finish during the shutdown.")

    @model_validator(mode="after")
    def _can_verify_tokens(self) -> Self:
        if self.auth == "none":
            if self.jwt_secret or self.jwt_issuer or self.jwt_audience:
                raise ValueError("CHATKEEP_JWT_… is set but CHATKEEP_AUTH is none; set CHATKEEP_AUTH=jwt")
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

    @cached_property
    def store_url(self) -> str:
        """The URL of the store, or the default. Creates the folder of the default file."""
        if self.database_url is not None:
            return self.database_url
        return f"sqlite:///{user_data_path('chatkeep', ensure_exists=True) / 'chat.db'}"

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
    def listens_on_loopback(self) -> bool:
        """Whether only clients on this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is localhost or a loopback address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_secure_url(url: str) -> bool:
    """Whether responses from a URL cannot be forged on the network: HTTPS, or HTTP on loopback."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def share_metrics(folder: Path) -> None:
    """Let this process and its children share metrics in `folder`. Call it before prometheus_client is imported."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def metrics_folder() -> Path | None:
    """Return the folder of the shared metrics, if there are several processes."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None
