"""The rows of LLM providers, in one transaction of a database. They belong to no owner.

A provider that is being replaced is *hidden*: it names its replacement, and only what removes it finds it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from chatkeep.providers import LlmProvider


class ProviderRow(NamedTuple):
    """What the row of a provider has."""

    provider: LlmProvider
    fingerprint: bytes | None
    """That of its creation; None of the one that a migration made."""
    replaced_by: UUID | None = None
    """Of a hidden one."""


class ProviderRows(ABC):
    """The rows of providers in one transaction. There are at most a hundred or so."""

    __slots__ = ()

    @abstractmethod
    async def lock_providers(self) -> None:
        """Keep others from changing providers, and from `has_provider`, until the transaction ends."""

    @abstractmethod
    async def providers(self) -> list[ProviderRow]:
        """All providers, hidden or not, by created_at and id."""

    @abstractmethod
    async def has_provider(self, id_: UUID) -> bool:
        """Whether there is a provider, not hidden, which stays so until the transaction ends."""

    @abstractmethod
    async def add_provider(self, provider: LlmProvider, fingerprint: bytes) -> None:
        """Store a provider whose id is free."""

    @abstractmethod
    async def set_provider(self, id_: UUID, values: Mapping[str, Any]) -> None:
        """Set model_name, is_default, api_config (as JSON text, or None), updated_at or replaced_by of a provider.

        Of two defaults the database refuses the second: the first gives it up first.
        """

    @abstractmethod
    async def remove_provider(self, id_: UUID) -> None:
        """Remove the row of a provider."""

    @abstractmethod
    async def uses_provider(self, id_: UUID) -> bool:
        """Whether any conversation of any owner names a provider; read from an index."""

    @abstractmethod
    async def replace_provider(self, id_: UUID, replacement: UUID) -> bool:
        """Have some conversations, of any owners, name another provider; False if there are none. Moves nothing else of
        them. A few hundred at a time: others want to write to them."""
