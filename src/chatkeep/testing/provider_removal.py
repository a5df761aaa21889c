"""Deleting providers, and replacing them."""

import asyncio
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import Conflict, InvalidInput, NotFound
from chatkeep.model import Conversation, ConversationChange
from chatkeep.providers import LlmProvider, LlmProviderChange
from chatkeep.store import Store
from chatkeep.testing.messages import someone, user
from chatkeep.testing.provider_steps import ProviderSteps, default_of, naming, provider
from chatkeep.testing.reference import whole_list, whole_log


async def named_by(store: Store, talks: list[Conversation]) -> set[UUID | None]:
    """The providers that conversations name now."""
    return {(await store.get_conversation(each.owner_id, each.id)).llm_provider_id for each in talks}


class ProviderRemovalContract(ProviderSteps):
    """Deleting providers, and replacing them."""

    async def gone(self, store: Store, *removed: LlmProvider) -> None:
        """Check that providers are not there any more."""
        assert not {each.id for each in removed} & {each.id for each in await store.providers.list_providers()}
        for each in removed:
            with pytest.raises(NotFound):
                await store.providers.get_provider(each.id)
            with pytest.raises(NotFound):
                await store.providers.update_provider(each.id, LlmProviderChange(model_name="m"))
            assert not await store.providers.delete_provider(each.id)

    async def test_a_provider_that_nobody_needs(self, store: Store, owner: str) -> None:
        """A provider that is not the default, and that no conversation names, is just removed; its id is free then."""
        default, kept = await default_of(store), await naming(store, owner, None)
        made = await provider(store)
        assert await store.providers.delete_provider(made.id) is True
        await self.gone(store, made)
        assert await default_of(store) == default
        assert await store.get_conversation(owner, kept.id) == kept
        again = await provider(store, "large", id=made.id)
        assert (again.model_name, again.created_at > made.created_at) == ("large", True)

    async def test_a_conversation_that_was_deleted_needs_none(self, store: Store, owner: str) -> None:
        """Conversations that are gone, or that name another one by now, keep no provider."""
        made, other = await provider(store), await provider(store)
        deleted, moved, erased = [await naming(store, who, made) for who in (owner, owner, someone())]
        with pytest.raises(Conflict):
            await store.providers.delete_provider(made.id)
        await store.delete_conversation(owner, deleted.id)
        await store.update_conversation(owner, moved.id, ConversationChange(llm_provider_id=other.id))
        with pytest.raises(Conflict):
            await store.providers.delete_provider(made.id)
        await store.erase_owner(erased.owner_id)
        assert await store.providers.delete_provider(made.id)
        await self.gone(store, made)

    async def test_the_default_needs_a_replacement(self, store: Store, owner: str) -> None:
        """The default is deleted only with a replacement, which becomes the default."""
        made, other = await provider(store, is_default=True), await provider(store)
        kept = await naming(store, owner, None)
        with pytest.raises(Conflict, match="replacement"):
            await store.providers.delete_provider(made.id)
        assert await default_of(store) == made
        assert await store.providers.delete_provider(made.id, replacement=other.id) is True
        await self.gone(store, made)
        default = await default_of(store)
        assert default == other.model_copy(update={"is_default": True, "updated_at": default.updated_at})
        assert await store.get_conversation(owner, kept.id) == kept

    async def test_the_first_provider_can_be_deleted(self, store: Store) -> None:
        """The provider of a new store is one as any other."""
        first, other = await default_of(store), await provider(store)
        assert await store.providers.delete_provider(first.id, replacement=other.id)
        await self.gone(store, first)
        assert (await default_of(store)).id == other.id

    async def test_conversations_name_the_replacement(self, store: Store, owner: str) -> None:
        """Conversations of all owners that named a provider name its replacement; nothing else of them is changed."""
        default, made, other = await default_of(store), await provider(store), await provider(store)
        owners = [owner, someone(), f"{someone()}\x00🌿"]
        talks = [await naming(store, who, named) for who in owners for named in (made, made, other, None)]
        await store.append(owner, talks[0].id, [user("tea")])
        before = {each.id: await store.get_conversation(each.owner_id, each.id) for each in talks}
        with pytest.raises(Conflict, match="replacement"):
            await store.providers.delete_provider(made.id)
        assert await store.providers.delete_provider(made.id, replacement=other.id) is True
        for each in before.values():
            wanted = other.id if each.llm_provider_id == made.id else each.llm_provider_id
            now = await store.get_conversation(each.owner_id, each.id)
            assert now == each.model_copy(update={"llm_provider_id": wanted})
        assert [each.content for each in await whole_log(store, owner, talks[0].id)] == ["tea"]
        for who in owners:
            listed = await whole_list(store, who)
            assert sorted(each.id for each in listed) == sorted(each.id for each in talks if each.owner_id == who)
            assert made.id not in {each.llm_provider_id for each in listed}
        await self.gone(store, made)
        assert await default_of(store) == default, "it was not the default"
        with pytest.raises(Conflict):
            await store.providers.delete_provider(other.id)

    async def test_many_conversations_name_the_replacement(self, store: Store, owner: str) -> None:
        """However many conversations name a provider, all of them name its replacement afterwards."""
        made, other = await provider(store), await provider(store)
        talks = [
            await naming(store, who, made) for who in (owner, someone()) for _ in range(350)
        ]  # more than is replaced at a time
        assert await store.providers.delete_provider(made.id, replacement=other.id)
        for who in {each.owner_id for each in talks}:
            listed = await whole_list(store, who, limit=100)
            assert [each.llm_provider_id for each in listed] == [other.id] * 350
        await self.gone(store, made)

    async def test_a_replacement_that_nobody_needs(self, store: Store) -> None:
        """A replacement may be named in any case, as by who cannot know whether one is needed."""
        made, other = await provider(store), await provider(store)
        assert await store.providers.delete_provider(made.id, replacement=other.id) is True
        assert await store.providers.delete_provider(made.id, replacement=other.id) is False
        assert await store.providers.get_provider(other.id) == other

    async def test_replacements_that_are_none(self, store: Store, owner: str) -> None:
        """A provider does not replace itself, and none that is not there replaces it; nothing is changed."""
        made, removed = await provider(store, is_default=True), await provider(store)
        talk = await naming(store, owner, made)
        await store.providers.delete_provider(removed.id)
        with pytest.raises(InvalidInput):
            await store.providers.delete_provider(made.id, replacement=made.id)
        for unknown in (uuid4(), removed.id):
            with pytest.raises(NotFound):
                await store.providers.delete_provider(made.id, replacement=unknown)
        assert await default_of(store) == made
        assert await store.get_conversation(owner, talk.id) == talk

    async def test_an_unknown_provider_is_not_deleted(self, store: Store) -> None:
        """Nothing is deleted where there is nothing, whatever would replace it."""
        default = await default_of(store)
        assert await store.providers.delete_provider(uuid4()) is False
        assert await store.providers.delete_provider(uuid4(), replacement=default.id) is False
        assert await default_of(store) == default

    # --- at once --------------------------------------------------------------------------------------------

    async def test_deleting_at_once(self, store: Store, owner: str) -> None:
        """Of many deletions at once one at least says that there was one; the provider and its name are gone."""
        made, other = await provider(store, is_default=True), await provider(store)
        talks = [await naming(store, owner, made) for _ in range(3)]
        outcomes = await asyncio.gather(
            *(store.providers.delete_provider(made.id, replacement=other.id) for _ in range(10))
        )
        assert any(outcomes)
        assert await named_by(store, talks) == {other.id}
        assert (await default_of(store)).id == other.id
        await self.gone(store, made)

    async def test_replacements_that_are_deleted_at_once(self, store: Store, owner: str) -> None:
        """Where a replacement is replaced meanwhile, the last of them is the one that conversations name."""
        for turn in range(6):
            chain = [await provider(store) for _ in range(5)]
            *replaced, last = chain if turn % 2 else chain[::-1]
            talks = [await naming(store, owner, each) for each in replaced for _ in range(3)]
            following = [*replaced[1:], last]
            deletions = [
                store.providers.delete_provider(each.id, replacement=other.id)
                for each, other in zip(replaced, following, strict=True)
            ]
            outcomes = await asyncio.gather(*deletions, return_exceptions=True)
            assert {outcome if isinstance(outcome, bool) else type(outcome) for outcome in outcomes} <= {True, NotFound}
            there = {each.id for each in await store.providers.list_providers()}
            assert await named_by(store, talks) <= there
            assert last.id in there

    async def test_each_replaced_by_the_other_at_once(self, store: Store, owner: str) -> None:
        """Of two that are to replace each other one stays."""
        for _ in range(5):
            one, other = await provider(store, is_default=True), await provider(store)
            talks = [await naming(store, owner, each) for each in (one, other)]
            outcomes = await asyncio.gather(
                store.providers.delete_provider(one.id, replacement=other.id),
                store.providers.delete_provider(other.id, replacement=one.id),
                return_exceptions=True,
            )
            assert sorted(outcome is True for outcome in outcomes) == [False, True]
            assert NotFound in map(type, outcomes)
            default = await default_of(store)
            assert default.id in {one.id, other.id}
            assert await named_by(store, talks) == {default.id}

    async def test_defaults_race_with_deletions(self, store: Store) -> None:
        """Where the default is deleted while another becomes it, one is it in the end."""
        for _ in range(5):
            one, two, three = await provider(store, is_default=True), await provider(store), await provider(store)
            outcomes = await asyncio.gather(
                store.providers.delete_provider(one.id, replacement=two.id),
                store.providers.update_provider(three.id, LlmProviderChange(is_default=True)),
                store.providers.delete_provider(two.id, replacement=three.id),
                return_exceptions=True,
            )
            failures = [each for each in outcomes if isinstance(each, BaseException)]
            assert {type(each) for each in failures} <= {NotFound}
            assert (await default_of(store)).id in {two.id, three.id}

    async def test_conversations_are_created_meanwhile(self, store: Store, owner: str) -> None:
        """A conversation that is created, or changed, while its provider is deleted names the replacement, or the call
        is refused."""
        for _ in range(5):
            made, other = await provider(store), await provider(store)
            plain = [await naming(store, owner, None) for _ in range(3)]
            change = ConversationChange(llm_provider_id=made.id)
            removed, *outcomes = await asyncio.gather(
                store.providers.delete_provider(made.id, replacement=other.id),
                *(naming(store, who, made) for who in (owner, owner, someone(), someone())),
                *(store.update_conversation(owner, each.id, change) for each in plain),
                return_exceptions=True,
            )
            assert removed is True
            refused = [each for each in outcomes if isinstance(each, BaseException)]
            assert {type(each) for each in refused} <= {InvalidInput}
            talks = [each for each in outcomes if isinstance(each, Conversation)]
            assert await named_by(store, talks) <= {other.id}
            await self.gone(store, made)

    async def test_a_provider_that_comes_into_use_meanwhile(self, store: Store, owner: str) -> None:
        """A provider without a replacement stays if a conversation names it first, and else the call is refused."""
        for _ in range(5):
            made = await provider(store)
            removed, talk = await asyncio.gather(
                store.providers.delete_provider(made.id), naming(store, owner, made), return_exceptions=True
            )
            if removed is True:
                assert isinstance(talk, InvalidInput)
            else:
                assert isinstance(removed, Conflict)
                assert isinstance(talk, Conversation)
                assert await store.get_conversation(owner, talk.id) == talk
                assert await store.providers.get_provider(made.id) == made
