"""The statements of LLM providers in MongoDB. They belong to the installation: none names an owner.

What keeps two changes of providers apart is one document that each of them writes: of two such transactions MongoDB
fails one with a write conflict, which then begins again and sees what the other did.

No conversation may go on naming a provider that is removed, and MongoDB has no lock that many share and one waits for.
So whoever removes a provider hides it first, which a majority has before anything follows; then gives its conversations
to the replacement, until a query finds none; then removes it, in a transaction that sees whether one has come since.

Whoever changes a conversation, in a transaction, writes the provider that it is to name, as hiding it does. One of the
two has a conflict and begins again: either it is hidden, and not named, or it is named before it is hidden, and so
replaced. Two such changes of one provider's conversations are a conflict, too. They are rare and short.

Whoever creates a conversation has no transaction, writes nothing of the provider, and looks again afterwards, as for
its project. If the provider is still shown then, it was hidden after the conversation was stored, which is found and
given the replacement. If not, the conversation came too late, and goes. A process that dies between the two may leave
one that names a provider which is gone: the default answers it.

Conversations are given a replacement without a transaction, each in its own write. An append that meets it is tried
again, once; a transaction of hundreds of them would keep all their appends out, and one append would undo it.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from chatkeep.providers import EXTRACTIVE, EXTRACTIVE_ID, ApiConfig, LlmProvider, config_text, stored_config
from chatkeep.stores.mongo.database import Document
from chatkeep.stores.mongo.documents import as_stored, change_of, micros, to_binary, to_uuid, uuid_or_none
from chatkeep.stores.mongo.moves import MongoMoves
from chatkeep.stores.mongo.projects import LOCK
from chatkeep.stores.provider_rows import ProviderRow
from chatkeep.values import from_micros, now

PROVIDERS = "providers"
"""The `_id` of the document that every change of providers writes, beside that of the schema."""

REPLACED = 200
"""Most conversations that are given another provider at a time."""


class MongoProviders(MongoMoves):
    """Documents of providers, as one transaction sees them, or each operation for itself."""

    __slots__ = ()

    async def lock_providers(self) -> None:
        """Write the document of all changes. Whoever only names a provider does not: see above."""
        view = self._view
        await view.schema.update_one({"_id": PROVIDERS}, LOCK, upsert=True, session=view.session)

    async def providers(self) -> list[ProviderRow]:
        found = await self._view.llm_providers.find({}, session=self._view.session).to_list()
        return sorted(map(_to_row, found), key=lambda row: (row.provider.created_at, row.provider.id))

    async def has_provider(self, id_: UUID) -> bool:
        """Whether there is a provider now; in a transaction, hiding it is a conflict from then on."""
        view, where = self._view, {"_id": to_binary(id_), "replaced_by": None}
        if view.session is None:
            return await view.llm_providers.find_one(where, {"_id": 1}) is not None
        return (await view.llm_providers.update_one(where, LOCK, session=view.session)).matched_count == 1

    async def add_provider(self, provider: LlmProvider, fingerprint: bytes) -> None:
        new = _new_provider(provider) | {"fingerprint": fingerprint}
        await self._view.llm_providers.insert_one(new, session=self._view.session)

    async def set_provider(self, id_: UUID, values: Mapping[str, Any]) -> None:
        gone = [name for name, value in values.items() if value is None]
        change = change_of({name: as_stored(value) for name, value in values.items() if name not in gone}, gone)
        await self._view.llm_providers.update_one({"_id": to_binary(id_)}, change, session=self._view.session)

    async def remove_provider(self, id_: UUID) -> None:
        await self._view.llm_providers.delete_one({"_id": to_binary(id_)}, session=self._view.session)

    async def uses_provider(self, id_: UUID) -> bool:
        """Hidden conversations name none."""
        where, session = {"llm_provider_id": to_binary(id_)}, self._view.session
        return await self._view.conversations.find_one(where, {"_id": 1}, session=session) is not None

    async def replace_provider(self, id_: UUID, replacement: UUID) -> bool:
        """Those that name another one by now, or that are hidden, stay as they are."""
        view, named, new = self._view, {"llm_provider_id": to_binary(id_)}, {"llm_provider_id": to_binary(replacement)}
        some: dict[str, Any] = {"limit": REPLACED, "batch_size": REPLACED, "session": view.session}
        found = await view.conversations.find(named, {"_id": 1}, **some).to_list()
        if found:
            where = view.some(each["_id"] for each in found) | named
            await view.conversations.update_many(where, {"$set": new}, hint="_id_", session=view.session)
        return bool(found)


def extractive() -> Document:
    """The document of the provider of a new database."""
    moment = now()
    made = LlmProvider(
        id=EXTRACTIVE_ID,
        provider_name=EXTRACTIVE,
        model_name=EXTRACTIVE,
        is_default=True,
        api_config=ApiConfig(),
        created_at=moment,
        updated_at=moment,
    )
    return _new_provider(made)


def _new_provider(provider: LlmProvider) -> Document:
    config = config_text(provider.api_config)
    return {
        "_id": to_binary(provider.id),
        "provider_name": provider.provider_name,
        "model_name": provider.model_name,
        "is_default": provider.is_default,
        **({} if config is None else {"api_config": config}),
        "created_at": micros(provider.created_at),
        "updated_at": micros(provider.updated_at),
    }


def _to_row(document: Mapping[str, Any]) -> ProviderRow:
    provider = LlmProvider(
        id=to_uuid(document["_id"]),
        provider_name=document["provider_name"],
        model_name=document["model_name"],
        is_default=document["is_default"],
        api_config=stored_config(document.get("api_config")),
        created_at=from_micros(document["created_at"]),
        updated_at=from_micros(document["updated_at"]),
    )
    return ProviderRow(provider, document.get("fingerprint"), uuid_or_none(document.get("replaced_by")))
