"""The settings of the server and the command line: the only reader of the environment."""

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
"""The owner of everything while there is no authentication."""

MIN_SECRET_BYTES = 32
"""Shortest secret for HS256 (RFC 7518, 3.2): a shorter one can be guessed from a single token."""


class Settings(BaseSettings):
    """Each setting is an environment variable with the prefix CHATKEEP_, such as CHATKEEP_DATABASE_URL."""

    model_config = SettingsConfigDict(env_prefix="CHATKEEP_", frozen=True, hide_input_in_errors=True)

    database_url: str | None = Field(
        None, repr=False, description="Where the conversations are; a file of the user's when absent."
    )
    host: str = "127.0.0.1"
    port: int = Field(8765, ge=0, le=65535)
    workers: int = Field(1, ge=1, le=256, description="Processes that serve.")
    allowed_hosts: list[str] = Field(
        default_factory=list, description="Names that requests may come to besides localhost, as a JSON list."
    )
    cors_origins: list[str] = Field(
        default_factory=list, description="Origins whose pages may call the API, as a JSON list."
    )
    max_body_bytes: int = Field(8 << 20, gt=0, description="Largest request body.")
    hide_foreign: bool | None = Field(None, description="404 instead of 403 for what is somebody else's.")

    auth: Literal["none", "jwt"] = "none"
    jwt_secret: SecretStr | None = Field(None, description="HS256 with this secret; absent: keys of the issuer.")
    jwt_issuer: str | None = Field(
        None, description="The `iss` of the tokens, where OpenID Connect's discovery begins."
    )
    jwt_audience: str | None = Field(None, description="The `aud` of the tokens.")

    rate_limit: str | None = Field(
        None, description="Requests of one owner, such as 600/minute; 0 is no limit. Absent: 6000/minute with auth."
    )
    failure_limit: str = Field("60/minute", description="Refused tokens and keys of one address, answered with 401.")
    rate_limit_storage: str | None = Field(
        None, repr=False, description="redis://HOST:PORT, for one count over several machines. Absent: this server's."
    )
    log_format: Literal["human", "json"] = "human"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    metrics: bool = Field(default=True, description="Whether /metrics is served.")
    shutdown_seconds: float = Field(30.0, gt=0, description="How long requests may take to finish when it stops.")

    @model_validator(mode="after")
    def _has_a_way_to_check_tokens(self) -> Self:
        if self.auth == "none":
            if self.jwt_secret or self.jwt_issuer or self.jwt_audience:
                raise ValueError("CHATKEEP_JWT_… is set but CHATKEEP_AUTH is none; set CHATKEEP_AUTH=jwt")
            return self
        if self.jwt_secret is not None and len(self.jwt_secret.get_secret_value().encode()) < MIN_SECRET_BYTES:
            raise ValueError(f"CHATKEEP_JWT_SECRET must have at least {MIN_SECRET_BYTES} bytes; make a random one")
        if self.jwt_secret is None and self.jwt_issuer is None:
            raise ValueError("CHATKEEP_AUTH=jwt needs CHATKEEP_JWT_SECRET or CHATKEEP_JWT_ISSUER")
        if self.jwt_issuer is not None and self.jwt_audience is None:
            raise ValueError("CHATKEEP_JWT_ISSUER needs CHATKEEP_JWT_AUDIENCE: an issuer makes tokens for others, too")
        if self.jwt_issuer is not None and self.jwt_secret is None and not is_safe_url(self.jwt_issuer):
            raise ValueError("CHATKEEP_JWT_ISSUER must be an https:// URL: its keys decide who is who")
        return self

    @cached_property
    def store_url(self) -> str:
        """The URL of the store, with the default filled in; the folder of the default file is made."""
        if self.database_url is not None:
            return self.database_url
        return f"sqlite:///{user_data_path('chatkeep', ensure_exists=True) / 'chat.db'}"

    @property
    def requests(self) -> str | None:
        """How many requests of one owner are answered in which time; None: all."""
        given = self.rate_limit or ("6000/minute" if self.auth == "jwt" else "0")
        return None if given == "0" else given

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a name or an address is this machine's own."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def is_safe_url(url: str) -> bool:
    """Whether what comes from a URL can be believed: encrypted, or from this machine."""
    parts = urlsplit(url)
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or ""))


def share_metrics(folder: Path) -> None:
    """Let this process and its children count in files of `folder`, before prometheus_client is imported."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)


def shared_metrics() -> Path | None:
    """The folder that several processes count in."""
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    return Path(folder) if folder else None
