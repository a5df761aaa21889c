"""Answers by the providers that the installation has configured: each conversation by its own, or by the default."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from chatkeep.answers.extractive import Search, extract
from chatkeep.answers.models import MISSING, key_variable, model_of
from chatkeep.answers.provider import Asked, Provider, ProviderFailed
from chatkeep.answers.scripted import ScriptedProvider
from chatkeep.events import Event, EventKind
from chatkeep.model import Conversation
from chatkeep.providers import EXTRACTIVE, LlmProvider, chosen
from chatkeep.store import Store

if TYPE_CHECKING:
    from uuid import UUID

    import httpx2
    from pydantic_ai.models import Model

    from chatkeep.answers.mcp_tools import McpTools

logger = logging.getLogger(__name__)

SCRIPTED = "scripted"
NO_MODELS = frozenset({EXTRACTIVE, SCRIPTED})
"""The providers that answer without a model."""


class KeptModel(NamedTuple):
    """A model, and what it was made of, beside the provider's id: when that was changed, and its key."""

    state: tuple[datetime, str | None]
    model: "Model"

    def __repr__(self) -> str:
        return "KeptModel(…)"


class ConfiguredProvider(Provider):
    """Makes each answer by the provider of its conversation, used from one event loop."""

    model = None
    resumes = True

    def __init__(
        self,
        search: Search,
        key: Callable[[str], str | None],
        *,
        allow_private: bool = False,
        tools: "McpTools | None" = None,
    ) -> None:
        """Take what searches documents, what has the keys by the names of their variables, whether models may be on
        private addresses, and tools."""
        self._search = search
        self._key = key
        self._allow_private = allow_private
        self._tools = tools
        self._scripted = ScriptedProvider()
        self._client: httpx2.AsyncClient | None = None
        self._models: dict[UUID, KeptModel] = {}
        self._making = asyncio.Lock()

    async def prepare(self, store: Store) -> None:
        """Make the model of the default provider, if it is one."""
        provider = chosen(await store.providers.list_providers(), None)
        if provider.provider_name not in NO_MODELS:
            try:
                await self._model(provider)
            except ProviderFailed as error:
                logger.warning("the default provider will not answer: %s", error.reason)

    async def answer(self, asked: Asked) -> AsyncGenerator[Event]:
        conversation = await asked.store.get_conversation(asked.owner, asked.conversation_id)
        provider = chosen(await asked.store.providers.list_providers(), conversation.llm_provider_id)
        if not asked.so_far:
            yield Event(EventKind.USAGE, {"model": provider.model_name})
        async with aclosing(self._events(asked, conversation, provider)) as events:
            async for event in events:
                yield event

    def _events(self, asked: Asked, conversation: Conversation, provider: LlmProvider) -> AsyncGenerator[Event]:
        if provider.provider_name == EXTRACTIVE:
            return extract(asked, conversation.project_id, self._search)
        if provider.provider_name == SCRIPTED:
            return self._scripted.answer(asked)
        return self._ask_model(asked, conversation, provider)

    async def _ask_model(
        self, asked: Asked, conversation: Conversation, provider: LlmProvider
    ) -> AsyncGenerator[Event]:
        model = await self._model(provider)
        from chatkeep.answers import agent, history

        given = await history.given(asked, provider.api_config.history_tokens)
        others = () if self._tools is None else (self._tools,)
        tools = agent.Tools(conversation.project_id, self._search, others)
        async with aclosing(agent.ask_model(model, asked, provider, given, tools)) as events:
            async for event in events:
                yield event

    async def _model(self, provider: LlmProvider) -> "Model":
        """The model of a provider. Making one takes a tenth of a second, the first of its kind some seconds, of which
        the loop knows nothing; it is kept while the provider and its key stay as they are."""
        try:
            await asyncio.to_thread(import_module, "chatkeep.answers.agent")
        except ImportError as error:
            logger.error('the provider %s needs: pip install "chatkeep[agent]" (%s)', provider.id, error)  # noqa: TRY400
            raise ProviderFailed(MISSING) from error
        variable = key_variable(provider.provider_name, provider.api_config)
        state = provider.updated_at, None if variable is None else self._key(variable)
        async with self._making:
            kept = self._models.get(provider.id)
            if kept is None or kept.state != state:
                model = await asyncio.to_thread(model_of, provider, await self._connected(), self._key)
                kept = self._models[provider.id] = KeptModel(state, model)
            return kept.model

    async def _connected(self) -> "httpx2.AsyncClient":
        """What connects to models."""
        if self._client is None:
            from chatkeep.answers.hosts import guarded_client

            self._client = await asyncio.to_thread(guarded_client, allow_private=self._allow_private)
        return self._client

    async def aclose(self) -> None:
        """Close the connections. Idempotent."""
        if self._client is not None:
            await self._client.aclose()
        if self._tools is not None:
            await self._tools.aclose()
