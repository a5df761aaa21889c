"""The rows of LLM providers in SQLite. They belong to no owner, and so no statement of theirs names one."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from chatkeep.providers import LlmProvider, config_text, stored_config
from chatkeep.stores.provider_rows import ProviderRow
from chatkeep.stores.rows import Row
from chatkeep.stores.sqlite.columns import uuid
from chatkeep.stores.sqlite.projects import SqliteProjects
from chatkeep.values import from_micros, to_micros

REPLACED = 500
"""Conversations that one transaction gives another provider at most, so that other writers need not wait long."""

PROVIDERS = """
    SELECT id, provider_name, model_name, is_default, api_config, created_at, updated_at, fingerprint, replaced_by
    FROM llm_providers ORDER BY created_at, id
"""
HAS_PROVIDER = "SELECT 1 FROM llm_providers WHERE id = ? AND replaced_by IS NULL"
INSERT_PROVIDER = """
    INSERT INTO llm_providers (id, provider_name, model_name, is_default, api_config, created_at, updated_at,
                               fingerprint)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
USES_PROVIDER = "SELECT 1 FROM conversations WHERE llm_provider_id = ? LIMIT 1"
REPLACE_PROVIDER = """
    UPDATE conversations SET llm_provider_id = ? WHERE rid IN (
        SELECT rid FROM conversations WHERE llm_provider_id = ? LIMIT ?)
"""


class SqliteProviders(SqliteProjects):
    """Rows of providers on one connection."""

    __slots__ = ()

    async def lock_providers(self) -> None:
        """Do nothing: nobody else writes while a transaction does."""

    async def providers(self) -> list[ProviderRow]:
        return [_provider(row) for row in self._fetch(PROVIDERS)]

    async def has_provider(self, id_: UUID) -> bool:
        return self._connection.execute(HAS_PROVIDER, (id_.bytes,)).get is not None

    async def add_provider(self, provider: LlmProvider, fingerprint: bytes) -> None:
        names = provider.provider_name, provider.model_name, provider.is_default
        rest = config_text(provider.api_config), to_micros(provider.created_at), to_micros(provider.updated_at)
        self._connection.execute(INSERT_PROVIDER, (provider.id.bytes, *names, *rest, fingerprint))

    async def set_provider(self, id_: UUID, values: Mapping[str, Any]) -> None:
        names = ", ".join(f"{name} = ?" for name in values)  # names of this package, never a caller's
        statement = f"UPDATE llm_providers SET {names} WHERE id = ?"  # noqa: S608
        self._connection.execute(statement, (*map(_stored, values.values()), id_.bytes))

    async def remove_provider(self, id_: UUID) -> None:
        self._connection.execute("DELETE FROM llm_providers WHERE id = ?", (id_.bytes,))

    async def uses_provider(self, id_: UUID) -> bool:
        return self._connection.execute(USES_PROVIDER, (id_.bytes,)).get is not None

    async def replace_provider(self, id_: UUID, replacement: UUID) -> bool:
        self._connection.execute(REPLACE_PROVIDER, (replacement.bytes, id_.bytes, REPLACED))
        return self._connection.changes() > 0


def _stored(value: Any) -> Any:
    """A value of a provider, as it is stored."""
    if isinstance(value, UUID):
        return value.bytes
    return to_micros(value) if isinstance(value, datetime) else value


def _provider(row: Row) -> ProviderRow:
    id_, kind, model, is_default, config, created_at, updated_at, fingerprint, replaced_by = row
    provider = LlmProvider(
        id=uuid(id_),
        provider_name=kind,
        model_name=model,
        is_default=bool(is_default),
        api_config=stored_config(config),
        created_at=from_micros(created_at),
        updated_at=from_micros(updated_at),
    )
    return ProviderRow(provider, fingerprint, None if replaced_by is None else uuid(replaced_by))
