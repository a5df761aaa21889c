"""LLM providers over rows: the port of `chatkeep.providers`, written once for every database."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from chatkeep.errors import Conflict, InvalidInput, NotFound
from chatkeep.ids import new_id, valid_id
from chatkeep.providers import (
    MAX_PROVIDERS,
    LlmProvider,
    LlmProviderChange,
    NewLlmProvider,
    Providers,
    check_config,
    config_text,
)
from chatkeep.stores.provider_rows import ProviderRow
from chatkeep.stores.rows import Rows
from chatkeep.stores.turns import TurnStore
from chatkeep.values import now

ONE_DEFAULT = "one provider is the default: make another one the default instead"


class ProviderStore[R: Rows](TurnStore[R], Providers):
    """Providers of the installation."""

    @property
    def providers(self) -> Providers:
        return self

    async def create_provider(self, new: NewLlmProvider) -> LlmProvider:
        self._open()
        id_ = new.id or new_id()
        return await self._write(lambda rows: self._create_provider(rows, id_, new))

    async def _create_provider(self, rows: R, id_: UUID, new: NewLlmProvider) -> LlmProvider:
        await rows.lock_providers()
        there = await rows.providers()
        known = next((row for row in there if row.provider.id == id_), None)
        if known is not None and known.replaced_by is None and known.fingerprint == new.fingerprint():
            return known.provider
        if known is not None:
            raise Conflict("this provider id is already used for other values", got=id_)
        if len(_shown(there)) >= MAX_PROVIDERS:
            raise InvalidInput(f"there may be at most {MAX_PROVIDERS} providers; delete one first")
        if new.is_default:
            await self._give_up_default(rows, there)
        moment = now()
        values = new.model_dump(exclude={"id", "api_config"})
        made = LlmProvider(id=id_, **values, api_config=new.api_config, created_at=moment, updated_at=moment)
        await rows.add_provider(made, new.fingerprint())
        return made

    async def _give_up_default(self, rows: R, there: Sequence[ProviderRow]) -> None:
        for row in there:
            if row.provider.is_default:
                await rows.set_provider(row.provider.id, {"is_default": False, "updated_at": now()})

    async def get_provider(self, provider_id: UUID | str) -> LlmProvider:
        id_ = valid_id(provider_id)
        return _found(await self.list_providers(), id_)

    async def list_providers(self) -> list[LlmProvider]:
        self._open()
        return _shown(await self._read(lambda rows: rows.providers()))

    async def update_provider(self, provider_id: UUID | str, change: LlmProviderChange) -> LlmProvider:
        self._open()
        id_ = valid_id(provider_id)
        return await self._write(lambda rows: self._update_provider(rows, id_, change))

    async def _update_provider(self, rows: R, id_: UUID, change: LlmProviderChange) -> LlmProvider:
        await rows.lock_providers()
        there = await rows.providers()
        before = _found(_shown(there), id_)
        changed: dict[str, Any] = {name: getattr(change, name) for name in change.model_fields_set}
        if before.is_default and not changed.get("is_default", True):
            raise Conflict(ONE_DEFAULT)
        if not changed:
            return before
        if "api_config" in changed:
            _check_config(before, change)
        if change.is_default and not before.is_default:
            await self._give_up_default(rows, there)
        changed["updated_at"] = max(before.updated_at, now())
        after = before.model_copy(update=changed)
        values = changed | ({"api_config": config_text(after.api_config)} if "api_config" in changed else {})
        await rows.set_provider(id_, values)
        return after

    async def delete_provider(self, provider_id: UUID | str, *, replacement: UUID | str | None = None) -> bool:
        self._open()
        id_, other = valid_id(provider_id), None if replacement is None else valid_id(replacement)
        return await self._in_background(self._delete_provider(id_, other))

    async def _delete_provider(self, id_: UUID, replacement: UUID | None) -> bool:
        removed = await self._write(lambda rows: self._hide_provider(rows, id_, replacement))
        while hidden := await self._read(self._hidden_providers):
            for each, other in hidden.items():
                await self._replace_provider(each, other)
            await self._write(self._remove_hidden)
        return removed

    async def _hidden_providers(self, rows: R) -> dict[UUID, UUID]:
        """The providers that are being replaced, and by which."""
        return {row.provider.id: row.replaced_by for row in await rows.providers() if row.replaced_by is not None}

    async def _hide_provider(self, rows: R, id_: UUID, replacement: UUID | None) -> bool:
        """Hide a provider, and say whether it was there.

        Also one that nobody names: not every database keeps others from it until it is removed. The default is for
        those who come meanwhile.
        """
        await rows.lock_providers()
        there = await rows.providers()
        provider = next((each for each in _shown(there) if each.id == id_), None)
        if provider is None:
            return any(row.provider.id == id_ for row in there)
        if replacement is None:
            replaces = any(row.replaced_by == id_ for row in there)  # conversations will name it
            if provider.is_default or replaces or await rows.uses_provider(id_):
                raise Conflict("this provider is the default, or conversations name it: name a replacement")
            replacement = next(each.id for each in _shown(there) if each.is_default)
        if replacement == id_:
            raise InvalidInput("a provider cannot replace itself", got=replacement)
        _found(_shown(there), replacement)
        # Those that it was to replace itself, if a removal was cut off, go to its replacement, too.
        for row in there:
            if id_ in (row.provider.id, row.replaced_by):
                await rows.set_provider(row.provider.id, {"is_default": False, "replaced_by": replacement})
        if provider.is_default:
            await rows.set_provider(replacement, {"is_default": True, "updated_at": now()})
        return True

    async def _replace_provider(self, id_: UUID, replacement: UUID) -> None:
        """Have the conversations of a hidden provider name its replacement."""
        while await self._write(lambda rows: rows.replace_provider(id_, replacement), atomic=False):
            pass

    async def _remove_hidden(self, rows: R) -> None:
        """Remove the hidden providers, if no conversation names any of them: another process may still be replacing
        one by another that was hidden since."""
        await rows.lock_providers()
        hidden = await self._hidden_providers(rows)
        if not any([await rows.uses_provider(each) for each in hidden]):
            for each in hidden:
                await rows.remove_provider(each)


def _shown(rows: Sequence[ProviderRow]) -> list[LlmProvider]:
    """The providers that are not being replaced."""
    return [row.provider for row in rows if row.replaced_by is None]


def _found(providers: Sequence[LlmProvider], id_: UUID) -> LlmProvider:
    """The provider with an id. Raises NotFound."""
    for provider in providers:
        if provider.id == id_:
            return provider
    raise NotFound("there is no such provider", got=id_)


def _check_config(provider: LlmProvider, change: LlmProviderChange) -> None:
    try:
        check_config(provider.provider_name, change.api_config)
    except ValueError as error:
        raise InvalidInput(f"api_config {error}") from None
