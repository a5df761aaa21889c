"""The providers of a store and a plain model of them go through the same random steps, and never differ.

CHATKEEP_HYPOTHESIS_PROFILE=thorough runs many more of them.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from unittest import mock
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from chatkeep import Conflict, ConversationChange, InvalidInput, NewConversation, NotFound, Store, open_store
from chatkeep.providers import ApiConfig, LlmProvider, LlmProviderChange, NewLlmProvider
from chatkeep.stores.providers import ProviderStore
from chatkeep.testing import someone
from chatkeep.testing.provider_steps import naming, provider, put_back
from conftest import STORES

WHICH = st.integers(0, 5)
NAMES = st.sampled_from(["small", "large\x00"])
SETTINGS = st.fixed_dictionaries(
    {}, optional={"seed": st.integers(0, 2), "stop_sequences": st.lists(st.sampled_from(["a", "\x00🌿"]), max_size=2)}
)
SELDOM = st.integers(0, 3)
"""A step is taken where this is 0, so that what others built up lasts for a while."""


@dataclass
class ModelProvider:
    """A provider, and the values that it was created with."""

    sent: tuple[Any, ...] | None
    name: str
    settings: dict[str, Any]
    is_default: bool


class CutOffError(Exception):
    """The process is killed here."""


class ProviderMachine(RuleBasedStateMachine):
    """Random steps of whoever manages providers, and of two owners whose conversations name them."""

    def __init__(self, runner: asyncio.Runner, url: str, opened_last: list[Store]) -> None:
        super().__init__()
        self.runner, self.url, self.opened_last = runner, url, opened_last
        self.owners = [someone(), someone()]
        self.ids = [uuid4() for _ in range(4)]
        self.first = self.run(self.store.providers.list_providers())
        self.providers = {
            each.id: ModelProvider(None, each.model_name, each.api_config.settings, each.is_default)
            for each in self.first
        }
        self.hidden: dict[UUID, UUID] = {}
        """What replaces those whose removal was cut off."""
        self.talks: dict[tuple[str, UUID], UUID | None] = {}
        """The providers that conversations name."""

    @property
    def store(self) -> Store:
        """The store, as it was opened last."""
        return self.opened_last[0]

    def run[T](self, call: Coroutine[Any, Any, T]) -> T:
        """Run one call of the store."""
        return self.runner.run(call)

    def refuse(self, call: Coroutine[Any, Any, object], error: type[Exception]) -> None:
        """Run one call, which must raise this."""
        with pytest.raises(error) as caught:
            self.run(call)
        assert type(caught.value) is error

    def id(self, which: int) -> UUID:
        """The id of a provider, mostly of one that is there."""
        there = [*self.providers, *self.hidden]
        return there[which] if which < len(there) else self.ids[which % 4]

    def move_default(self, id_: UUID) -> None:
        """Make a provider the default of the model."""
        for each, there in self.providers.items():
            there.is_default = each == id_

    # --- providers ------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 3), name=NAMES, settings_=SETTINGS, is_default=st.booleans())
    def create(self, which: int, name: str, settings_: dict[str, Any], *, is_default: bool) -> None:
        """Create a provider, for the first time, again, or with other values."""
        id_, sent = self.ids[which], (name, settings_, is_default)
        config = ApiConfig(settings=settings_)
        new = NewLlmProvider(
            id=id_, provider_name="scripted", model_name=name, is_default=is_default, api_config=config
        )
        call, known = self.store.providers.create_provider(new), self.providers.get(id_)
        if id_ in self.hidden or (known is not None and known.sent != sent):
            self.refuse(call, Conflict)
            return
        made = self.run(call)
        if known is None:
            self.providers[id_] = ModelProvider(sent, name, settings_, is_default)
            if is_default:
                self.move_default(id_)
        self.same(made)

    @rule(
        which=WHICH,
        name=st.none() | NAMES,
        settings_=st.none() | SETTINGS,
        is_default=st.sampled_from([None, None, True, False]),
    )
    def change(self, which: int, name: str | None, settings_: dict[str, Any] | None, is_default: bool | None) -> None:
        """Change a provider, also the default, and also to what it is."""
        id_ = self.id(which)
        given = {"model_name": name, "is_default": is_default}
        values: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
        if settings_ is not None:
            values["api_config"] = ApiConfig(settings=settings_)
        call, known = self.store.providers.update_provider(id_, LlmProviderChange(**values)), self.providers.get(id_)
        if known is None:
            self.refuse(call, NotFound)
            return
        if known.is_default and is_default is False:
            self.refuse(call, Conflict)
            return
        changed = self.run(call)
        known.name = name or known.name
        known.settings = known.settings if settings_ is None else settings_
        if is_default:
            self.move_default(id_)
        self.same(changed)

    @rule(which=WHICH, other=st.none() | WHICH, killed=st.booleans())
    def delete(self, which: int, other: int | None, *, killed: bool) -> None:
        """Delete a provider, also one that is needed, by a process that may die when it has hidden it."""
        id_, replacement = self.id(which), None if other is None else self.id(other)
        call = self.store.providers.delete_provider(id_, replacement=replacement)
        refused = self.refusal(id_, replacement)
        if refused is not None:
            self.refuse(call, refused)
            return
        expected = id_ in self.providers or id_ in self.hidden
        self.hide(id_, replacement)
        if killed:
            with mock.patch.object(ProviderStore, "_replace_provider", side_effect=CutOffError), suppress(CutOffError):
                self.run(call)
            return
        assert self.run(call) is expected
        for key, named in self.talks.items():
            self.talks[key] = self.hidden.get(named, named) if named else None
        self.hidden.clear()

    def refusal(self, id_: UUID, replacement: UUID | None) -> type[Exception] | None:
        """Why a provider is not deleted."""
        if id_ not in self.providers:
            return None
        if replacement is None:
            named = {*self.talks.values(), *self.hidden.values()}
            return Conflict if self.providers[id_].is_default or id_ in named else None
        if replacement == id_:
            return InvalidInput
        return None if replacement in self.providers else NotFound

    def hide(self, id_: UUID, replacement: UUID | None) -> None:
        """Take a provider out of the model."""
        removed = self.providers.pop(id_, None)
        if removed is None:
            return
        if replacement is None:  # for those that come to name it meanwhile
            replacement = next(each for each, there in self.providers.items() if there.is_default)
        self.hidden = {each: replacement if by == id_ else by for each, by in self.hidden.items()} | {id_: replacement}
        if removed.is_default:
            self.move_default(replacement)

    # --- conversations --------------------------------------------------------------------------------------

    @rule(owner=st.integers(0, 1), which=st.none() | WHICH)
    def converse(self, owner: int, which: int | None) -> None:
        """Create a conversation that names a provider, or none."""
        key, named = (self.owners[owner], uuid4()), None if which is None else self.id(which)
        call = self.store.create_conversation(key[0], NewConversation(id=key[1], llm_provider_id=named))
        if named is None or named in self.providers:
            self.run(call)
            self.talks[key] = named
        else:
            self.refuse(call, InvalidInput)

    @precondition(lambda self: self.talks)
    @rule(talk=WHICH, which=st.none() | WHICH)
    def name(self, talk: int, which: int | None) -> None:
        """Have a conversation name another provider, or none."""
        key, named = list(self.talks)[talk % len(self.talks)], None if which is None else self.id(which)
        call = self.store.update_conversation(*key, ConversationChange(llm_provider_id=named))
        if named is None or named in self.providers:
            assert self.run(call).llm_provider_id == named
            self.talks[key] = named
        else:
            self.refuse(call, InvalidInput)

    @precondition(lambda self: self.talks)
    @rule(talk=WHICH)
    def delete_conversation(self, talk: int) -> None:
        """Delete a conversation."""
        key = list(self.talks)[talk % len(self.talks)]
        del self.talks[key]
        assert self.run(self.store.delete_conversation(*key))

    @rule(owner=st.integers(0, 1), seldom=SELDOM)
    def erase(self, owner: int, seldom: int) -> None:
        """Erase an owner."""
        if seldom:
            return
        gone = [key for key in self.talks if key[0] == self.owners[owner]]
        receipt = self.run(self.store.erase_owner(self.owners[owner]))
        assert (receipt.conversations, receipt.remaining) == (len(gone), 0)
        for key in gone:
            del self.talks[key]

    @rule(owner=st.integers(0, 1), seldom=SELDOM)
    def rename(self, owner: int, seldom: int) -> None:
        """Give everything of an owner to a new one."""
        if seldom:
            return
        old, new = self.owners[owner], someone()
        self.owners[owner] = new
        moved = [key for key in self.talks if key[0] == old]
        assert self.run(self.store.rename_owner(old, new)) == len(moved)
        for key in moved:
            self.talks[new, key[1]] = self.talks.pop(key)

    @precondition(lambda self: not self.url.startswith("memory"))
    @rule(seldom=SELDOM)
    def reopen(self, seldom: int) -> None:
        """Close the store and open it again."""
        if seldom:
            return
        self.run(self.store.aclose())
        self.opened_last[0] = self.run(opened(self.url))

    # --- looks ----------------------------------------------------------------------------------------------

    def same(self, provider: LlmProvider) -> None:
        """Compare a provider."""
        model = self.providers[provider.id]
        values = provider.model_name, provider.api_config.settings, provider.is_default
        assert values == (model.name, model.settings, model.is_default)

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        """Providers are those of the model, of which one is the default, and no conversation names one that is gone."""
        listed = self.run(self.store.providers.list_providers())
        assert {each.id for each in listed} == set(self.providers)
        for each in listed:
            self.same(each)
        assert sum(each.is_default for each in listed) == 1
        for key, named in self.talks.items():
            assert self.run(self.store.get_conversation(*key)).llm_provider_id == named
            assert named is None or named in self.providers or named in self.hidden

    def teardown(self) -> None:
        """Leave nothing to the next run."""
        for owner in self.owners:
            assert self.run(self.store.erase_owner(owner)).remaining == 0
        self.run(put_back(self.store, self.first))


async def opened(url: str) -> Store:
    """The store at a URL."""
    return await open_store(url)


@pytest.mark.timeout(600)  # where there is a difference, hypothesis takes its time to find the shortest way to it
@pytest.mark.parametrize(
    ("store_url", "share"),
    [
        pytest.param(
            name, share, id=f"{name}-{share}", marks=() if (name, share) == ("memory", 1) else pytest.mark.long
        )
        for name, share in zip(STORES, (1, 1, 2, 4), strict=True)
    ],
    indirect=["store_url"],
)
def test_providers_never_differ_from_the_model(store_url: str, share: int) -> None:
    """Whatever is done to providers and conversations, in whatever order, killed or not: every result and every error
    is the plain model's.

    The servers have a part of the examples. The long ones are made by `make coverage`.
    """
    with asyncio.Runner() as runner:
        opened_last = [runner.run(opened(store_url))]

        class Machine(ProviderMachine):
            def __init__(self) -> None:
                super().__init__(runner, store_url, opened_last)

        try:
            run_state_machine_as_test(Machine, settings=settings(max_examples=settings().max_examples // share))
        finally:
            runner.run(opened_last[0].aclose())


async def test_a_removal_that_was_cut_off(store_url: str) -> None:
    """The next deletion finishes it. Until then its replacement is needed, by conversations that will name it."""
    async with open_store(store_url) as store:
        owner, before = someone(), await store.providers.list_providers()
        made, other, last = [await provider(store) for _ in range(3)]
        talk = await naming(store, owner, made)
        with (
            mock.patch.object(ProviderStore, "_replace_provider", side_effect=CutOffError),
            pytest.raises(CutOffError),
        ):
            await store.providers.delete_provider(made.id, replacement=other.id)
        with pytest.raises(NotFound):
            await store.providers.get_provider(made.id)
        with pytest.raises(Conflict):
            await store.providers.delete_provider(other.id)
        assert await store.providers.delete_provider(other.id, replacement=last.id)
        assert (await store.get_conversation(owner, talk.id)).llm_provider_id == last.id
        assert await store.providers.list_providers() == [*before, last]
        await store.erase_owner(owner)
        await put_back(store, before)
