"""LLM providers in memory."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from copy import deepcopy
from typing import Any
from uuid import UUID

from chatkeep.model import Conversation
from chatkeep.providers import EXTRACTIVE, EXTRACTIVE_ID, ApiConfig, LlmProvider, stored_config
from chatkeep.stores.memory.projects import MemoryProjects
from chatkeep.stores.provider_rows import ProviderRow, ProviderRows
from chatkeep.values import now


def first_providers() -> dict[UUID, ProviderRow]:
    """The providers of a new store."""
    made = LlmProvider(
        id=EXTRACTIVE_ID,
        provider_name=EXTRACTIVE,
        model_name=EXTRACTIVE,
        is_default=True,
        api_config=ApiConfig(),
        created_at=now(),
        updated_at=now(),
    )
    return {made.id: ProviderRow(made, None)}


class MemoryProviders(MemoryProjects, ProviderRows):
    """Rows of providers in a dictionary."""

    __slots__ = ("_providers",)

    _providers: dict[UUID, ProviderRow]

    @abstractmethod
    def _naming(self, provider: UUID) -> Iterable[Conversation]:
        """The conversations that name a provider."""

    @abstractmethod
    def _give_provider(self, conversation: Conversation, provider: UUID) -> None:
        """Have a conversation name another provider."""

    async def lock_providers(self) -> None:
        """Do nothing: nobody else writes while a transaction does."""

    async def providers(self) -> list[ProviderRow]:
        rows = sorted(self._providers.values(), key=lambda row: (row.provider.created_at, row.provider.id))
        return deepcopy(rows)

    async def has_provider(self, id_: UUID) -> bool:
        return id_ in self._providers and self._providers[id_].replaced_by is None

    async def add_provider(self, provider: LlmProvider, fingerprint: bytes) -> None:
        self._providers[provider.id] = ProviderRow(deepcopy(provider), fingerprint)

    async def set_provider(self, id_: UUID, values: Mapping[str, Any]) -> None:
        changed, row = dict(values), self._providers[id_]
        row = row._replace(replaced_by=changed.pop("replaced_by", row.replaced_by))
        if "api_config" in changed:
            changed["api_config"] = stored_config(changed["api_config"])
        self._providers[id_] = row._replace(provider=row.provider.model_copy(update=changed))

    async def remove_provider(self, id_: UUID) -> None:
        self._providers.pop(id_, None)  # another call may have finished the same removal

    async def uses_provider(self, id_: UUID) -> bool:
        return any(True for _ in self._naming(id_))

    async def replace_provider(self, id_: UUID, replacement: UUID) -> bool:
        found = list(self._naming(id_))
        for conversation in found:
            self._give_provider(conversation, replacement)
        return bool(found)
