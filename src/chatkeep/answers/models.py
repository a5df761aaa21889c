"""Models of pydantic-ai, as stored providers describe them. Its libraries are imported when a model is made."""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chatkeep.answers.provider import ProviderFailed
from chatkeep.errors import InvalidInput
from chatkeep.model_settings import checked_settings
from chatkeep.providers import STANDARD_KEYS, ApiConfig, LlmProvider, check_config

if TYPE_CHECKING:
    import httpx2
    from pydantic_ai.models import Model

logger = logging.getLogger(__name__)

HOSTS = {
    "openai": "https://api.openai.com/v1",
    "openai-chat": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
    "google": "https://generativelanguage.googleapis.com",
    "ollama": "http://127.0.0.1:11434/v1",
}
"""Where each kind of provider is without a `base_url`, whatever the environment says."""

RETRIES = 0
"""Times that a request is sent again. One that was not replied to in time may have begun an answer, which costs money:
only the person who asked decides to ask again."""

NO_KEY = "no-key"
"""What a host gets that needs no key: the libraries insist on one."""

MAX_KEY_CHARS = 10_000

LACKING = "the key of this model is not set on the server"
UNUSABLE = "the key of this model, as it is set on the server, cannot be one"
MISCONFIGURED = "the configuration of this model is not valid; an administrator can change it"
MISSING = "this server cannot use models: a package is missing"


def model_of(provider: LlmProvider, client: "httpx2.AsyncClient", key: Callable[[str], str | None]) -> "Model":
    """Return the model of a provider, with its settings.

    `client` sends the requests; who made it closes it, when nothing uses the model any more. `key` returns the value of
    an environment variable. The first model of a kind imports its library, which takes seconds of CPU; the next ones
    take about 0.1 s. So make it in a thread, and keep it until the provider's `updated_at` or the value of its key is
    another.

    Raises ProviderFailed, of which the log has the details, if the key is not set, for a configuration that is not
    valid, and if the extra `agent` is not installed.
    """
    config = provider.api_config
    settings = _settings(provider)
    secret = _secret(provider, key)
    host = config.base_url or HOSTS[provider.provider_name]
    try:
        return MAKERS[provider.provider_name](provider.model_name, host, secret, client, settings)
    except ImportError as error:
        logger.error('the provider %s needs: pip install "chatkeep[agent]" (%s)', provider.id, error)  # noqa: TRY400
        raise ProviderFailed(MISSING) from error


def key_variable(kind: str, config: ApiConfig) -> str | None:
    """Return the environment variable with the key of a provider; None if it needs no key."""
    return config.api_key_env or (None if config.base_url else STANDARD_KEYS.get(kind))


def _settings(provider: LlmProvider) -> dict[str, object]:
    """Check a configuration again: this version may be stricter than the one that stored it."""
    config = provider.api_config
    try:
        check_config(provider.provider_name, config)
        settings = dict[str, object](checked_settings(config.settings))
    except (InvalidInput, ValueError) as error:
        logger.error("the configuration of the provider %s is not valid: %s", provider.id, error)  # noqa: TRY400
        raise ProviderFailed(MISCONFIGURED) from error
    if config.background:
        settings["openai_background"] = True
    return settings


def _secret(provider: LlmProvider, key: Callable[[str], str | None]) -> str:
    variable = key_variable(provider.provider_name, provider.api_config)
    if variable is None:
        return NO_KEY
    secret = (key(variable) or "").strip()
    if not secret:
        logger.error("the provider %s needs its key in %s", provider.id, variable)
        raise ProviderFailed(LACKING)
    if not (secret.isascii() and secret.isprintable()) or " " in secret or len(secret) > MAX_KEY_CHARS:
        logger.error("the value of %s has spaces or characters that no key has", variable)
        raise ProviderFailed(UNUSABLE)
    return secret


# --- kinds ------------------------------------------------------------------------------------------------


def _openai(name: str, host: str, secret: str, client: "httpx2.AsyncClient", settings: Any) -> "Model":
    from pydantic_ai.models.openai import OpenAIResponsesModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIResponsesModel(
        name, provider=OpenAIProvider(openai_client=_openai_client(host, secret, client)), settings=settings
    )


def _openai_chat(name: str, host: str, secret: str, client: "httpx2.AsyncClient", settings: Any) -> "Model":
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(
        name, provider=OpenAIProvider(openai_client=_openai_client(host, secret, client)), settings=settings
    )


def _ollama(name: str, host: str, secret: str, client: "httpx2.AsyncClient", settings: Any) -> "Model":
    from pydantic_ai.models.ollama import OllamaModel
    from pydantic_ai.providers.ollama import OllamaProvider

    return OllamaModel(
        name, provider=OllamaProvider(openai_client=_openai_client(host, secret, client)), settings=settings
    )


def _openai_client(host: str, secret: str, client: "httpx2.AsyncClient") -> Any:
    from chatkeep.answers.openai_client import OpenAIClient

    return OpenAIClient(base_url=host, api_key=secret, http_client=client, max_retries=RETRIES)


def _anthropic(name: str, host: str, secret: str, client: "httpx2.AsyncClient", settings: Any) -> "Model":
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    from chatkeep.answers.anthropic_client import AnthropicClient

    made = AnthropicClient(base_url=host, api_key=secret, http_client=client, max_retries=RETRIES)
    return AnthropicModel(name, provider=AnthropicProvider(anthropic_client=made), settings=settings)


def _google(name: str, host: str, secret: str, client: "httpx2.AsyncClient", settings: Any) -> "Model":
    from google.genai.types import HttpRetryOptions
    from pydantic_ai.models.google import GoogleModel
    from pydantic_ai.providers.google import GoogleProvider

    retry = HttpRetryOptions(attempts=1 + RETRIES)
    provider = GoogleProvider(api_key=secret, base_url=host, http_client=client, retry_options=retry)
    return GoogleModel(name, provider=provider, settings=settings)


type Maker = Callable[[str, str, str, "httpx2.AsyncClient", Any], "Model"]

MAKERS: dict[str, Maker] = {
    "openai": _openai,
    "openai-chat": _openai_chat,
    "ollama": _ollama,
    "anthropic": _anthropic,
    "google": _google,
}
"""What makes the models of each kind. The others, `extractive` and `scripted`, are no models."""
