"""The port of LLM providers: which models answer, and how they are reached.

A store has one as `store.providers`. Providers belong to the installation, not to an owner: its methods are the ones of
a store that name none. There is always exactly one default, which answers the conversations that name no provider. A
new database has `extractive`, which needs no model.

No provider holds a secret: its configuration names the environment variable that has the key.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import AfterValidator, Field, StrictBool, ValidationError, model_validator

from chatkeep.model import Given, GivenId, Record, digest, one_line
from chatkeep.model_settings import checked_settings
from chatkeep.validation import untyped
from chatkeep.values import JsonObject, ShortText, canonical_json, load_json

EXTRACTIVE_ID = UUID("e7ac71fe-0000-4000-8000-000000000001")
"""The provider of a new database."""

EXTRACTIVE: Final = "extractive"

ProviderKind = Literal["extractive", "openai", "openai-chat", "anthropic", "google", "ollama", "scripted"]
"""How a provider is spoken to. `openai` is OpenAI's Responses API; `openai-chat` is Chat Completions, which servers
like llama.cpp and vLLM speak, too."""

MAX_PROVIDERS = 100
"""Most providers of an installation: a list of all of them is read for each answer."""

STANDARD_KEYS = {
    "openai": "OPENAI_API_KEY",
    "openai-chat": "OPENAI_API_KEY",
    "anthropic": "ANTHROPIC_API_KEY",
    "google": "GOOGLE_API_KEY",
}
"""The variable of the key that a provider's own host gets. No other host gets it."""

KEY_VARIABLE = re.compile(r"CHATKEEP_PROVIDER_[A-Z0-9_]{1,100}")

MAX_URL_CHARS = 2_048


def _variable(name: str) -> str:
    if not KEY_VARIABLE.fullmatch(name) and name not in STANDARD_KEYS.values():
        raise ValueError(
            "must be CHATKEEP_PROVIDER_ and capital letters, digits or _, or the provider's own, such as OPENAI_API_KEY"
        )
    return name


def _url(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise ValueError("must be a URL such as https://llm.example/v1") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("must be a URL such as https://llm.example/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError("must be without user, password, query and fragment; api_key_env names the variable of a key")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise ValueError("must be ASCII without spaces; write a name in its xn-- form")
    return url


def _settings(settings: dict[str, object]) -> dict[str, object]:
    checked_settings(settings)
    return settings


class ApiConfig(Given):
    """How a provider is reached, and what its model is told. It never holds a secret."""

    api_key_env: Annotated[str, AfterValidator(_variable)] | None = Field(
        default=None,
        description="The environment variable of the server that has the key: CHATKEEP_PROVIDER_…, or the provider's"
        " own standard one, which only its own host gets. It is read when a question is answered. Default: the standard"
        " one if there is no base_url, else no key.",
    )
    base_url: Annotated[str, Field(max_length=MAX_URL_CHARS), AfterValidator(_url)] | None = Field(
        default=None,
        description="Where the API is, such as http://127.0.0.1:8080/v1. Default: the provider's own host.",
    )
    instructions: Annotated[str, Field(max_length=10_000)] | None = Field(
        default=None, description="What the model is told beside the conversation. Default: how to cite documents."
    )
    settings: Annotated[JsonObject, AfterValidator(_settings)] = Field(
        default_factory=dict,
        description="Settings of the model, such as temperature and max_tokens, as pydantic-ai names them.",
    )
    history_tokens: Annotated[int, Field(strict=True, ge=100, le=10_000_000)] | None = Field(
        default=None,
        description="About how many tokens of the conversation the model is given, the newest. Default: 32,000.",
    )
    background: StrictBool = Field(
        default=False,
        description="Let OpenAI make answers in the background: if a server process dies, another goes on with them."
        " Only for `openai`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _has_no_crowd(cls, value: object) -> object:
        # Refuse thousands of unknown fields at once: pydantic makes an error for each.
        if isinstance(value, dict) and len(value) > len(cls.model_fields):
            raise ValueError(f"has an unknown field; known are {', '.join(cls.model_fields)}")
        return value


class NewLlmProvider(Given):
    """A provider to be created. Creating it again with the same id and the same values changes nothing."""

    id: GivenId = Field(default=untyped(None), description="Made by the store (UUID version 7) when absent.")
    provider_name: ProviderKind
    model_name: ShortText
    is_default: StrictBool = Field(default=False, description="Whether it answers conversations that name none.")
    api_config: ApiConfig = Field(default_factory=ApiConfig)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        check_config(self.provider_name, self.api_config)
        return self

    def fingerprint(self) -> bytes:
        """Return a hash of 16 bytes of the values that the caller sent, without the id."""
        lines = [f"provider_name={self.provider_name}", f"model_name={one_line(self.model_name)}"]
        if self.is_default:
            lines.append("is_default=true")
        return digest(lines, config_values(self.api_config), "")


class LlmProviderChange(Given):
    """Fields of a provider to change; omitted fields keep their value. `api_config` is replaced as a whole."""

    model_name: ShortText = Field(default_factory=str, description="It can be changed, not removed.")
    is_default: StrictBool = Field(default=False, description="True makes it the default, instead of the one there is.")
    api_config: ApiConfig = Field(default_factory=ApiConfig)


class LlmProvider(Record):
    """A provider as it is stored."""

    id: UUID
    provider_name: ProviderKind
    model_name: str
    is_default: bool
    api_config: ApiConfig
    created_at: datetime
    updated_at: datetime


def check_config(kind: str, config: ApiConfig) -> None:
    """Raise ValueError if a configuration is not one for this kind of provider."""
    standard = STANDARD_KEYS.get(kind)
    if config.api_key_env in STANDARD_KEYS.values() and (config.api_key_env != standard or config.base_url is not None):
        raise ValueError(
            f"{config.api_key_env} is only for its provider's own host; put this key into CHATKEEP_PROVIDER_…"
        )
    if config.background and kind != "openai":
        raise ValueError("background is only for the provider openai")


def config_values(config: ApiConfig) -> dict[str, object]:
    """Return the fields of a configuration that are not their defaults, as JSON."""
    return config.model_dump(mode="json", exclude_defaults=True)


def config_text(config: ApiConfig) -> str | None:
    """Return a configuration as a store keeps it; None if all is as by default."""
    values = config_values(config)
    return canonical_json(values) if values else None


def stored_config(text: str | None) -> ApiConfig:
    """Return a configuration from what a store keeps. One that this version would refuse is kept as it is: its provider
    answers nothing, and the others stay visible."""
    values = load_json(text or "{}")
    try:
        return ApiConfig.model_validate(values)
    except ValidationError:
        return ApiConfig.model_construct(**values)


def chosen(providers: Iterable[LlmProvider], wanted: UUID | None) -> LlmProvider:
    """Return the provider with an id, or the default if there is none, or none is wanted."""
    there = list(providers)
    default = next(each for each in there if each.is_default)
    return next((each for each in there if each.id == wanted), default)


class Providers(ABC):
    """The providers of an installation. Who may change them is for the caller to decide."""

    @abstractmethod
    async def create_provider(self, new: NewLlmProvider) -> LlmProvider:
        """Store a provider and return it; with `is_default` it becomes the default instead of the one there is.

        Idempotent by id: the same id with the same values returns the stored provider as it is now. Raises Conflict if
        the id is used for other values, InvalidInput if there are MAX_PROVIDERS.
        """

    @abstractmethod
    async def get_provider(self, provider_id: UUID | str) -> LlmProvider:
        """Return a provider. Raises NotFound."""

    @abstractmethod
    async def list_providers(self) -> list[LlmProvider]:
        """Return all providers, by created_at and id; exactly one is the default."""

    @abstractmethod
    async def update_provider(self, provider_id: UUID | str, change: LlmProviderChange) -> LlmProvider:
        """Change a provider and return it. Moves updated_at, also if the values are the same.

        Raises NotFound; Conflict if the default should not be it any more: make another one the default; InvalidInput
        for a configuration that is not one for its kind.
        """

    @abstractmethod
    async def delete_provider(self, provider_id: UUID | str, *, replacement: UUID | str | None = None) -> bool:
        """Remove a provider, and return whether there was one.

        The default, or one that conversations name, needs a replacement, which becomes the default, and which these
        conversations name from then on: without one, Conflict is raised. Raises NotFound if there is no such
        replacement. What was cut off is finished by the next removal of any provider; until then the conversations
        are answered by the default.
        """
