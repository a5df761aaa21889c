"""What the tests of providers take, and how they leave a store."""

from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest

from chatkeep.model import Conversation, NewConversation
from chatkeep.providers import LlmProvider, LlmProviderChange, NewLlmProvider
from chatkeep.store import Store
from chatkeep.testing.contract import Contract


def scripted(name: str = "small", **values: Any) -> NewLlmProvider:
    """Return a provider with an id."""
    return NewLlmProvider(**{"id": uuid4(), "provider_name": "scripted", "model_name": name, **values})


async def provider(store: Store, name: str = "small", **values: Any) -> LlmProvider:
    """A provider that was created just now."""
    return await store.providers.create_provider(scripted(name, **values))


async def default_of(store: Store) -> LlmProvider:
    """The default, of which there must be one."""
    (default,) = [each for each in await store.providers.list_providers() if each.is_default]
    return default


async def naming(store: Store, owner: str, named: LlmProvider | None) -> Conversation:
    """A new conversation that names a provider, or none."""
    return await store.create_conversation(owner, NewConversation(llm_provider_id=None if named is None else named.id))


async def put_back(store: Store, before: list[LlmProvider]) -> None:
    """Make the providers those that were there before."""
    await store.providers.delete_provider(uuid4())  # finishes what was cut off
    there = {each.id for each in await store.providers.list_providers()}
    for each in before:
        if each.id not in there:
            values = each.model_dump(include={"id", "provider_name", "model_name"})
            await store.providers.create_provider(NewLlmProvider(**values, api_config=each.api_config))
    (default,) = [each.id for each in before if each.is_default]
    await store.providers.update_provider(default, LlmProviderChange(is_default=True))
    for id_ in there - {each.id for each in before}:
        await store.providers.delete_provider(id_, replacement=default)


class ProviderSteps(Contract):
    """Base class of the topics of providers."""

    @pytest.fixture(autouse=True)
    async def providers_are_left_as_they_were(self, store: Store) -> AsyncIterator[None]:
        """Leave the providers as they were found: other tests may share the store."""
        before = await store.providers.list_providers()
        yield
        await put_back(store, before)
