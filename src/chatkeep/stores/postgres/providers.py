"""The rows of LLM providers in PostgreSQL. They belong to no owner, and so no statement of theirs names one.

Locks are taken in one order: the conversation, the providers. Who replaces a provider locks conversations only.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from chatkeep.providers import LlmProvider, config_text, stored_config
from chatkeep.stores.postgres.projects import PostgresProjects
from chatkeep.stores.postgres.text import encode
from chatkeep.stores.provider_rows import ProviderRow
from chatkeep.stores.rows import Row
from chatkeep.values import decode_nul, encode_nul

REPLACED = 200
"""Conversations that one transaction gives another provider at most, which bounds how long other writers wait."""

LOCK_PROVIDERS = "SELECT id FROM llm_providers ORDER BY id FOR UPDATE"
PROVIDERS = """
    SELECT id, provider_name, model_name, is_default, api_config, created_at, updated_at, fingerprint, replaced_by
    FROM llm_providers ORDER BY created_at, id
"""
# In the mode of a foreign key: it waits for LOCK_PROVIDERS, which waits for it, and for nobody else.
HAS_PROVIDER = "SELECT 1 FROM llm_providers WHERE id = $1 AND replaced_by IS NULL FOR KEY SHARE"
INSERT_PROVIDER = """
    INSERT INTO llm_providers (id, provider_name, model_name, is_default, api_config, created_at, updated_at,
                               fingerprint)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
"""
# By its statistics, which may be of before a provider was replaced, the planner would read the whole table, or all of
# another index, to find one of many that are gone. The order asks for the one index; with `=` others have it, too.
NAMING = """
    SELECT owner_id, id FROM conversations WHERE llm_provider_id BETWEEN $1 AND $1
    ORDER BY llm_provider_id, owner_id, id LIMIT $2
"""
GIVE_PROVIDER = """
    UPDATE conversations SET llm_provider_id = $4 WHERE owner_id = $1 AND id = $2 AND llm_provider_id = $3
"""


class PostgresProviders(PostgresProjects):
    """Rows of providers on one connection: each statement sees a snapshot of its own."""

    __slots__ = ()

    async def lock_providers(self) -> None:
        # READ COMMITTED: a statement that waited goes on with the rows that it saw when it began, but for those that
        # were removed since. Of two transactions that have locked a row each, the one that looked later saw the row of
        # the other one, which nobody could remove, and so waited for it. Without any row, all that it saw are gone, and
        # it looks again. What is read then is from a later snapshot, and has what those before left.
        while not await self._connection.fetch(LOCK_PROVIDERS):
            pass

    async def providers(self) -> list[ProviderRow]:
        return [_provider(row) for row in await self._connection.fetch(PROVIDERS)]

    async def has_provider(self, id_: UUID) -> bool:
        return await self._connection.fetchval(HAS_PROVIDER, id_) is not None

    async def add_provider(self, provider: LlmProvider, fingerprint: bytes) -> None:
        names = provider.provider_name, encode_nul(provider.model_name), provider.is_default
        rest = config_text(provider.api_config), provider.created_at, provider.updated_at, fingerprint
        await self._connection.execute(INSERT_PROVIDER, provider.id, *names, *rest)

    async def set_provider(self, id_: UUID, values: Mapping[str, Any]) -> None:
        columns = {name: encode(value) if name == "model_name" else value for name, value in values.items()}
        await self._set("UPDATE llm_providers SET {} WHERE id = $1", [id_], columns)

    async def remove_provider(self, id_: UUID) -> None:
        await self._connection.execute("DELETE FROM llm_providers WHERE id = $1", id_)

    async def uses_provider(self, id_: UUID) -> bool:
        return bool(await self._planned(NAMING, id_, 1))

    async def replace_provider(self, id_: UUID, replacement: UUID) -> bool:
        # One by one in the order in which a batch of appends locks them; Citus takes no statement for several owners.
        found = await self._planned(NAMING, id_, REPLACED)
        if found:
            await self._connection.executemany(GIVE_PROVIDER, [(*key, id_, replacement) for key in found])
        return bool(found)


def _provider(row: Row) -> ProviderRow:
    id_, kind, model, is_default, config, created_at, updated_at, fingerprint, replaced_by = row
    provider = LlmProvider(
        id=id_,
        provider_name=kind,
        model_name=decode_nul(model),
        is_default=is_default,
        api_config=stored_config(config),
        created_at=created_at,
        updated_at=updated_at,
    )
    return ProviderRow(provider, fingerprint, replaced_by)
