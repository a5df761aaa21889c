"""`chatkeep serve --upstream URL`: a model server, such as llama.cpp, Ollama or vLLM, as the default provider."""

import asyncio
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit
from uuid import NAMESPACE_URL, uuid5

import httpx2
from pydantic import ValidationError

from chatkeep.answers.hosts import guarded_client, refusal
from chatkeep.api.fetching import FETCH_ERRORS, fetch_json
from chatkeep.errors import InvalidInput
from chatkeep.providers import LlmProvider, LlmProviderChange, NewLlmProvider, Providers
from chatkeep.settings import Settings
from chatkeep.validation import first_wrong

FETCH_SECONDS = 5.0
"""Longest time for a server to say which models it has."""

WAY_OUT = "if a model server is there, name its model: --upstream-model NAME, or CHATKEEP_UPSTREAM_MODEL"


async def use_upstream(providers: Providers, url: str, settings: Settings) -> LlmProvider:
    """Make the server at a URL the default provider, and return it. The same URL is the same provider every time.

    Raises InvalidInput if the URL is none, this server may not connect to its host, or the server does not say which
    models it has.
    """
    url = url.rstrip("/")
    _new(url, settings.upstream_model or "unknown")  # nothing is asked at what is no URL
    await _check_host(url, allow_private=settings.may_reach_private)
    model = settings.upstream_model or await _first_model(url, allow_private=settings.may_reach_private)
    new = _new(url, model)
    known = next((each for each in await providers.list_providers() if each.id == new.id), None)
    if known is None:
        return await providers.create_provider(new)
    if known.is_default and known.model_name == new.model_name:
        return known
    return await providers.update_provider(known.id, LlmProviderChange(model_name=new.model_name, is_default=True))


def _new(url: str, model: str) -> NewLlmProvider:
    try:
        return NewLlmProvider.model_validate(
            {
                "id": uuid5(NAMESPACE_URL, url),
                "provider_name": "openai-chat",
                "model_name": model,
                "is_default": True,
                "api_config": {"base_url": url},
            }
        )
    except ValidationError as error:
        first = first_wrong(error)
        name = "--upstream-model" if first.loc == ("model_name",) else "--upstream"
        raise InvalidInput(f"{name}: {first.message}") from None


async def _check_host(url: str, *, allow_private: bool) -> None:
    """Raise InvalidInput if the host has an address that providers may not have. One that has none may come later."""
    try:
        async with asyncio.timeout(FETCH_SECONDS):
            loop = asyncio.get_running_loop()
            found = await loop.getaddrinfo(urlsplit(url).hostname, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return
    for address in {str(place[0]).partition("%")[0] for *_, place in found}:
        if reason := refusal(ip_address(address), allow_private=allow_private):
            raise InvalidInput(f"{url} is at the address {address}, {reason}")


async def _first_model(url: str, *, allow_private: bool) -> str:
    """Return the name of the first model that a server lists. Raises InvalidInput."""
    listed = f"{url}/models"
    try:
        async with asyncio.timeout(FETCH_SECONDS), guarded_client(allow_private=allow_private) as client:
            models = (await fetch_json(client, listed)).get("data")
    except FETCH_ERRORS as error:
        raise InvalidInput(f"{listed} {_reason(error)}; {WAY_OUT}") from None
    first = models[0] if isinstance(models, list) and models else None
    name = first.get("id") if isinstance(first, dict) else None
    if not isinstance(name, str) or not name:
        raise InvalidInput(f"{listed} names no model; {WAY_OUT}")
    return name


def _reason(error: Exception) -> str:
    """What is wrong, without anything that the server said."""
    if isinstance(error, httpx2.HTTPStatusError):
        return f"has the status {error.response.status_code}"
    if isinstance(error, TimeoutError | httpx2.TimeoutException):
        return f"does not answer within {FETCH_SECONDS:g} seconds"
    return "is no list of models" if isinstance(error, ValueError | RecursionError) else "cannot be reached"
