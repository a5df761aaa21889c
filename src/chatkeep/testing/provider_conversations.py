"""Conversations that name the provider that answers them."""

from uuid import uuid4

import pytest

from chatkeep.errors import Conflict, InvalidInput
from chatkeep.model import ConversationChange, ImportedConversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.messages import someone, user
from chatkeep.testing.provider_steps import ProviderSteps, default_of, naming, provider
from chatkeep.testing.reference import whole_list, whole_log


class ProviderConversationContract(ProviderSteps):
    """Conversations that name the provider that answers them."""

    async def test_conversations_name_a_provider(self, store: Store, owner: str) -> None:
        """A conversation names the provider that it is created with, wherever it is read; none names the default."""
        made = await provider(store)
        one, other = await naming(store, owner, made), await naming(store, owner, None)
        assert (one.llm_provider_id, other.llm_provider_id) == (made.id, None)
        for each in (one, other):
            assert await store.get_conversation(owner, each.id) == each
            assert each in await whole_list(store, owner)
        named = await naming(store, owner, await default_of(store))
        assert named.llm_provider_id == (await default_of(store)).id

    async def test_get_or_create_with_a_provider(self, store: Store, owner: str) -> None:
        """A conversation that is made names the provider; one that is there keeps the one that it names."""
        made, other = await provider(store), await provider(store)
        news = (NewConversation(context_id="k"), NewConversation(external_id="e"))
        for new in news:
            first = await store.get_or_create_conversation(owner, new.model_copy(update={"llm_provider_id": made.id}))
            assert first.llm_provider_id == made.id
            for id_ in (other.id, None, made.id):
                again = new.model_copy(update={"llm_provider_id": id_})
                assert await store.get_or_create_conversation(owner, again) == first
        assert (await store.find_conversation(owner, "e")).llm_provider_id == made.id

    async def test_changing_the_provider(self, store: Store, owner: str) -> None:
        """A change names another provider, or the default by null; other fields, and other changes, leave it."""
        made, other = await provider(store), await provider(store)
        talk = await naming(store, owner, made)
        for id_ in (other.id, None, made.id):
            changed = await store.update_conversation(owner, talk.id, ConversationChange(llm_provider_id=id_))
            assert changed == talk.model_copy(update={"llm_provider_id": id_})
            assert await store.get_conversation(owner, talk.id) == changed
        change = ConversationChange(title="T", context_id="k", labels=("a",), metadata={"a": 1})
        assert (await store.update_conversation(owner, talk.id, change)).llm_provider_id == made.id
        await store.append(owner, talk.id, [user("tea")])
        assert (await store.get_conversation(owner, talk.id)).llm_provider_id == made.id
        both = ConversationChange(title="U", llm_provider_id=other.id)
        changed = await store.update_conversation(owner, talk.id, both)
        assert (changed.title, changed.llm_provider_id) == ("U", other.id)

    async def test_unknown_providers_are_refused(self, store: Store, owner: str) -> None:
        """A provider that is not there, or not any more, is InvalidInput, and nothing is created or changed."""
        removed, talk = await provider(store), await store.create_conversation(owner, NewConversation(context_id="c"))
        await store.providers.delete_provider(removed.id)
        for id_ in (uuid4(), removed.id):
            for new in (
                NewConversation(llm_provider_id=id_),
                NewConversation(llm_provider_id=id_, context_id="k"),
                NewConversation(llm_provider_id=id_, external_id="e"),
            ):
                for call in (store.create_conversation, store.get_or_create_conversation):
                    with pytest.raises(InvalidInput, match="llm_provider_id"):
                        await call(owner, new)
            change = ConversationChange(title="T", llm_provider_id=id_)
            with pytest.raises(InvalidInput, match="llm_provider_id"):
                await store.update_conversation(owner, talk.id, change)
        assert await whole_list(store, owner) == [talk]

    async def test_the_provider_is_one_of_the_values_of_an_id(self, store: Store, owner: str) -> None:
        """The same id with the same provider is the same conversation, also after a change; with another, Conflict."""
        made, other = await provider(store), await provider(store)
        for named in (made.id, None):
            new = NewConversation(id=uuid4(), title="T", llm_provider_id=named)
            first = await store.create_conversation(owner, new)
            assert await store.create_conversation(owner, new) == first
            change = ConversationChange(llm_provider_id=other.id)
            changed = await store.update_conversation(owner, first.id, change)
            assert await store.create_conversation(owner, new) == changed
            for id_ in {made.id, other.id, None} - {named}:
                with pytest.raises(Conflict):
                    await store.create_conversation(owner, new.model_copy(update={"llm_provider_id": id_}))
            assert await store.get_conversation(owner, first.id) == changed

    # --- exports, owners ------------------------------------------------------------------------------------

    async def test_exports_name_no_provider(self, store: Store, owner: str) -> None:
        """Providers belong to the installation: an export names none, and an import cannot."""
        made, other = await provider(store), someone()
        talk = await naming(store, owner, made)
        await store.append(owner, talk.id, [user("tea")])
        exported, _ = await store.export_conversation(owner, talk.id)
        assert exported.llm_provider_id is None
        assert "llm_provider_id" not in exported.model_dump(exclude_none=True)
        messages = await store.export_messages(owner, talk.id)
        assert (await store.import_conversation(other, exported, messages)).created
        copy = await store.get_conversation(other, talk.id)
        assert (copy.llm_provider_id, [each.content for each in await whole_log(store, other, talk.id)]) == (
            None,
            ["tea"],
        )
        with pytest.raises(InvalidInput, match="llm_provider_id"):
            ImportedConversation(llm_provider_id=made.id)

    async def test_imports_leave_the_provider(self, store: Store, owner: str) -> None:
        """Importing a conversation that is there is no difference in its provider, and changes none."""
        made = await provider(store)
        talk = await naming(store, owner, made)
        exported, _ = await store.export_conversation(owner, talk.id)
        for update in (False, True):
            receipt = await store.import_conversation(owner, exported, update=update)
            assert (receipt.created, receipt.differences) == (False, ())
        assert await store.get_conversation(owner, talk.id) == talk

    async def test_a_restored_conversation_is_known_by_its_creation(self, store: Store, owner: str) -> None:
        """A late retry of the creation finds the conversation that was exported and imported again."""
        made = await provider(store)
        new = NewConversation(id=uuid4(), title="T", llm_provider_id=made.id)
        talk = await store.create_conversation(owner, new)
        exported, _ = await store.export_conversation(owner, talk.id)
        await store.delete_conversation(owner, talk.id)
        await store.import_conversation(owner, exported)
        restored = await store.create_conversation(owner, new)
        assert (restored.id, restored.llm_provider_id) == (talk.id, None)

    async def test_erasure_leaves_providers(self, store: Store, owner: str) -> None:
        """Providers belong to no owner: erasing one, who has used one alone, leaves them."""
        made = await provider(store, is_default=True)
        before = await store.providers.list_providers()
        await naming(store, owner, made)
        receipt = await store.erase_owner(owner)
        assert (receipt.conversations, receipt.remaining) == (1, 0)
        assert await store.providers.list_providers() == before

    async def test_a_renamed_owner_keeps_providers(self, store: Store, owner: str) -> None:
        """Conversations that move to another owner name their provider there."""
        made, other, new = await provider(store), await provider(store), someone()
        talk = await naming(store, owner, made)
        assert await store.rename_owner(owner, new) == 1
        assert (await store.get_conversation(new, talk.id)).llm_provider_id == made.id
        with pytest.raises(Conflict):
            await store.providers.delete_provider(made.id)
        assert await store.providers.delete_provider(made.id, replacement=other.id)
        assert (await store.get_conversation(new, talk.id)).llm_provider_id == other.id
