"""Creating, reading and changing providers."""

import asyncio
import inspect
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import Conflict, InvalidId, InvalidInput, NotFound, StoreUnavailable
from chatkeep.providers import (
    EXTRACTIVE,
    EXTRACTIVE_ID,
    MAX_PROVIDERS,
    ApiConfig,
    LlmProvider,
    LlmProviderChange,
    NewLlmProvider,
    Providers,
)
from chatkeep.store import Store
from chatkeep.testing.calls import PROVIDER_CALLS
from chatkeep.testing.contract import Opener
from chatkeep.testing.examples import MALFORMED_IDS
from chatkeep.testing.provider_steps import ProviderSteps, default_of, provider, scripted
from chatkeep.values import canonical_json

WHOLE = ApiConfig(
    api_key_env="CHATKEEP_PROVIDER_1",
    base_url="http://127.0.0.1:8080/v1",
    instructions="Be brief.\x00 🌿",
    settings={
        "top_p": 0.5,
        "seed": -(2**63),
        "stop_sequences": ["\x00", "\ufdd0 🌿"],
        "logit_bias": {"$set": 1, "a.b": 2},
    },
    history_tokens=100,
    background=True,
)
"""A configuration with everything that there may be."""

TO_DEFAULT = LlmProviderChange(is_default=True)


class ProviderStoreContract(ProviderSteps):
    """Creating, reading and changing providers."""

    # --- the port -------------------------------------------------------------------------------------------

    async def test_methods_of_providers_have_the_ports_parameters(self, store: Store) -> None:
        """Every method has the port's parameters: the same names, kinds and defaults. None names an owner."""
        for name in sorted(Providers.__abstractmethods__):
            expected = inspect.signature(getattr(Providers, name)).parameters.values()
            actual = inspect.signature(getattr(type(store.providers), name)).parameters.values()
            assert [(p.name, p.kind, p.default) for p in expected] == [(p.name, p.kind, p.default) for p in actual]
            assert "owner" not in {p.name for p in expected}

    async def test_every_method_of_providers_is_in_the_table_of_calls(self) -> None:
        """The table of calls has every method of the port."""
        assert set(PROVIDER_CALLS) == Providers.__abstractmethods__

    async def test_a_closed_store_refuses_every_call_of_providers(self, open_store_with: Opener) -> None:
        """After aclose every method raises StoreUnavailable."""
        async with open_store_with() as store:
            await store.aclose()
            for call in PROVIDER_CALLS.values():
                with pytest.raises(StoreUnavailable):
                    await call(store, uuid4())

    @pytest.mark.parametrize("call", ["get_provider", "update_provider", "delete_provider"])
    async def test_malformed_ids_of_providers(self, store: Store, call: str) -> None:
        """A malformed id raises InvalidId, also that of a replacement."""
        for bad in MALFORMED_IDS:
            with pytest.raises(InvalidId):
                await PROVIDER_CALLS[call](store, bad)
            with pytest.raises(InvalidId):
                await store.providers.delete_provider(uuid4(), replacement=bad)

    @pytest.mark.parametrize("call", ["get_provider", "update_provider"])
    async def test_unknown_providers(self, store: Store, call: str) -> None:
        """A provider that is not there is NotFound."""
        with pytest.raises(NotFound):
            await PROVIDER_CALLS[call](store, uuid4())

    async def test_ids_of_providers_may_be_text(self, store: Store) -> None:
        """An id may be text, in either case."""
        made, other = await provider(store), await provider(store)
        text = str(made.id).upper()
        assert await store.providers.get_provider(text) == made
        assert (await store.providers.update_provider(text, LlmProviderChange(model_name="m"))).model_name == "m"
        assert await store.providers.delete_provider(text, replacement=str(other.id).upper())

    # --- create ---------------------------------------------------------------------------------------------

    async def test_a_new_store_has_a_provider(self, store: Store) -> None:
        """A store always has a default: a new one the provider that needs no model."""
        first = await default_of(store)
        assert first == LlmProvider(
            id=EXTRACTIVE_ID,
            provider_name=EXTRACTIVE,
            model_name=EXTRACTIVE,
            is_default=True,
            api_config=ApiConfig(),
            created_at=first.created_at,
            updated_at=first.updated_at,
        )
        assert first.created_at <= first.updated_at <= datetime.now(UTC)
        assert await store.providers.get_provider(EXTRACTIVE_ID) == first

    async def test_a_new_provider(self, store: Store) -> None:
        """A provider has the values that were given, and times of now."""
        before, default = datetime.now(UTC), await default_of(store)
        new = NewLlmProvider(provider_name="openai", model_name="gpt\x00 🌱", api_config=WHOLE)
        made = await store.providers.create_provider(new)
        assert made == LlmProvider(
            id=made.id,
            provider_name="openai",
            model_name="gpt\x00 🌱",
            is_default=False,
            api_config=WHOLE,
            created_at=made.created_at,
            updated_at=made.created_at,
        )
        assert made.id.version == 7
        assert before <= made.created_at <= datetime.now(UTC)
        read = await store.providers.get_provider(made.id)
        assert read == made
        assert canonical_json(read.api_config.settings) == canonical_json(WHOLE.settings)
        assert made in await store.providers.list_providers()
        assert await default_of(store) == default

    async def test_creating_a_provider_again(self, store: Store) -> None:
        """The same id with the same values returns the provider as it is now, also after it was changed."""
        new = scripted(is_default=True, api_config=ApiConfig(settings={"top_k": 1, "seed": 2}))
        assert new.id is not None
        made = await store.providers.create_provider(new)
        same = new.model_copy(update={"api_config": ApiConfig(settings={"seed": 2, "top_k": 1})})
        assert await store.providers.create_provider(new) == await store.providers.create_provider(same) == made
        await provider(store, is_default=True)
        change = LlmProviderChange(model_name="large", api_config=ApiConfig())
        changed = await store.providers.update_provider(new.id, change)
        assert not changed.is_default
        assert await store.providers.create_provider(new) == changed
        others: list[dict[str, Any]] = [
            {"model_name": "large"},
            {"is_default": False},
            {"api_config": ApiConfig()},
            {"api_config": ApiConfig(settings={"top_k": 1})},
            {"provider_name": "ollama"},
        ]
        for other in others:
            with pytest.raises(Conflict):
                await store.providers.create_provider(new.model_copy(update=other))
        assert await store.providers.get_provider(new.id) == changed

    async def test_the_first_provider_is_not_created_again(self, store: Store) -> None:
        """The id of the provider of a new store is used."""
        new = NewLlmProvider(id=EXTRACTIVE_ID, provider_name="scripted", model_name="small")
        with pytest.raises(Conflict):
            await store.providers.create_provider(new)

    async def test_creating_a_provider_at_the_same_moment(self, store: Store) -> None:
        """Of twenty calls at once one creates the provider; those with other values raise Conflict."""
        id_ = uuid4()
        calls = [store.providers.create_provider(scripted(("small", "large")[n % 2], id=id_)) for n in range(20)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        made = [each for each in outcomes if isinstance(each, LlmProvider)]
        assert made == [await store.providers.get_provider(id_)] * 10
        assert [type(each) for each in outcomes if not isinstance(each, LlmProvider)] == [Conflict] * 10

    async def test_most_providers(self, store: Store) -> None:
        """There are at most MAX_PROVIDERS: no more are created, also at once, until one is deleted."""
        before = len(await store.providers.list_providers())
        for _ in range(before, MAX_PROVIDERS - 3):
            await provider(store)
        new = [scripted() for _ in range(9)]
        outcomes = await asyncio.gather(*map(store.providers.create_provider, new), return_exceptions=True)
        made = [each for each in outcomes if isinstance(each, LlmProvider)]
        assert len(made) == 3
        assert [type(each) for each in outcomes if not isinstance(each, LlmProvider)] == [InvalidInput] * 6
        again = next(each for each in new if each.id == made[0].id)
        assert await store.providers.create_provider(again) == made[0], "it is there"
        with pytest.raises(InvalidInput, match=f"at most {MAX_PROVIDERS}"):
            await provider(store, is_default=True)
        assert len(await store.providers.list_providers()) == MAX_PROVIDERS
        assert (await default_of(store)).id not in {each.id for each in new}
        await store.providers.delete_provider(made[0].id)
        await provider(store)

    # --- read -----------------------------------------------------------------------------------------------

    async def test_the_list_of_providers(self, store: Store) -> None:
        """The list has all providers, by the time of their creation and by id."""
        before = await store.providers.list_providers()
        made = [await provider(store, f"m{n}", id=UUID(int=uuid4().int >> n * 8)) for n in range(5)]
        await store.providers.update_provider(made[0].id, LlmProviderChange(model_name="m"))
        listed = await store.providers.list_providers()
        assert [each.id for each in listed] == [each.id for each in (*before, *made)]
        assert listed == sorted(listed, key=lambda each: (each.created_at, each.id))
        assert [await store.providers.get_provider(each.id) for each in listed] == listed

    async def test_providers_are_copies(self, store: Store) -> None:
        """Changes to values that a caller gave or got do not affect the store."""
        new = scripted(api_config=ApiConfig(settings={"stop_sequences": ["a"]}))
        made = await store.providers.create_provider(new)
        change = LlmProviderChange(api_config=ApiConfig(settings={"stop_sequences": ["b"]}))
        for each in (new, made, await store.providers.get_provider(made.id)):
            each.api_config.settings["stop_sequences"].append("changed from outside")
        assert (await store.providers.get_provider(made.id)).api_config.settings == {"stop_sequences": ["a"]}
        changed = await store.providers.update_provider(made.id, change)
        listed = [each for each in await store.providers.list_providers() if each.id == made.id]
        for config in (change.api_config, changed.api_config, listed[0].api_config):
            config.settings["stop_sequences"].append("changed from outside")
        assert (await store.providers.get_provider(made.id)).api_config.settings == {"stop_sequences": ["b"]}

    # --- change ---------------------------------------------------------------------------------------------

    async def test_changing_a_provider(self, store: Store) -> None:
        """Given fields are changed, a configuration as a whole; others stay, and updated_at moves."""
        made = await provider(store, provider_name="openai", api_config=WHOLE)
        named = await store.providers.update_provider(made.id, LlmProviderChange(model_name="large\x00"))
        assert named == made.model_copy(update={"model_name": "large\x00", "updated_at": named.updated_at})
        assert named.updated_at > made.updated_at
        config = ApiConfig(settings={"stop_sequences": ["2"]})
        told = await store.providers.update_provider(made.id, LlmProviderChange(api_config=config))
        assert told == named.model_copy(update={"api_config": config, "updated_at": told.updated_at})
        assert await store.providers.get_provider(made.id) == told
        plain = await store.providers.update_provider(made.id, LlmProviderChange(api_config=ApiConfig()))
        assert plain.api_config == ApiConfig()
        assert await store.providers.get_provider(made.id) == plain

    async def test_the_same_values_move_updated_at(self, store: Store) -> None:
        """A change to the values that are there moves updated_at, and nothing else."""
        made = await provider(store)
        changes = (LlmProviderChange(model_name="small"), LlmProviderChange(is_default=False))
        for change in changes:
            changed = await store.providers.update_provider(made.id, change)
            assert changed == made.model_copy(update={"updated_at": changed.updated_at})
            assert changed.updated_at > made.updated_at
            made = changed

    @pytest.mark.parametrize(
        "values",
        [{"model_name": None}, {"model_name": " "}, {"model_name": "m" * 256}, {"is_default": None},
         {"api_config": None}, {"api_config": {"api_key": "k"}}, {"provider_name": "openai"}],
        ids=repr,
    )  # fmt: skip
    async def test_changes_that_are_none(self, values: dict[str, Any]) -> None:
        """No name and no configuration is null; a key is in no configuration, and a kind is never changed."""
        with pytest.raises(InvalidInput):
            LlmProviderChange(**values)

    @pytest.mark.parametrize(
        ("kind", "config"),
        [
            ("scripted", ApiConfig(background=True)),
            ("openai-chat", ApiConfig(background=True)),
            ("anthropic", ApiConfig(api_key_env="OPENAI_API_KEY")),
            ("openai", ApiConfig(api_key_env="OPENAI_API_KEY", base_url="https://llm.example/v1")),
        ],
    )
    async def test_configurations_are_checked(self, store: Store, kind: str, config: ApiConfig) -> None:
        """A configuration is one for its kind of provider, when it is created and when it is changed."""
        with pytest.raises(InvalidInput):
            scripted(provider_name=kind, api_config=config)
        made = await provider(store, provider_name=kind)
        with pytest.raises(InvalidInput, match="api_config"):
            await store.providers.update_provider(made.id, LlmProviderChange(model_name="m", api_config=config))
        assert await store.providers.get_provider(made.id) == made

    # --- the default ----------------------------------------------------------------------------------------

    async def test_the_default_moves(self, store: Store) -> None:
        """Whoever becomes the default takes it from the one there was, by its creation or later."""
        first = await default_of(store)
        second = await provider(store, is_default=True)
        assert await default_of(store) == second
        before = await store.providers.get_provider(first.id)
        assert before == first.model_copy(update={"is_default": False, "updated_at": before.updated_at})
        back = await store.providers.update_provider(first.id, TO_DEFAULT)
        assert await default_of(store) == back
        assert back.is_default
        assert not (await store.providers.get_provider(second.id)).is_default
        again = await store.providers.update_provider(first.id, TO_DEFAULT)
        assert await default_of(store) == again

    async def test_the_default_is_not_given_up(self, store: Store) -> None:
        """The default cannot be made none: another one is made the default instead."""
        default = await default_of(store)
        for change in (LlmProviderChange(is_default=False), LlmProviderChange(model_name="m", is_default=False)):
            with pytest.raises(Conflict, match="another"):
                await store.providers.update_provider(default.id, change)
        assert await default_of(store) == default

    async def test_many_become_the_default_at_once(self, store: Store) -> None:
        """Of many that become the default at once, by creation and by change, one is it; there is always one."""
        made = [await provider(store) for _ in range(10)]
        new = [scripted(is_default=True) for _ in range(10)]
        looks = [store.providers.list_providers() for _ in range(10)]
        outcomes, *listed = await asyncio.gather(
            asyncio.gather(
                *(store.providers.update_provider(each.id, TO_DEFAULT) for each in made),
                *map(store.providers.create_provider, new),
            ),
            *looks,
        )
        assert [each.is_default for each in outcomes] == [True] * 20
        for each in listed:
            assert sum(one.is_default for one in each) == 1
        assert (await default_of(store)).id in {each.id for each in outcomes}
