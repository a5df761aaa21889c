"""LLM providers and resumed turns in MongoDB: what is stored and sent, conflicts, late comers, removals cut off."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from mongo_commands import Commands, Failing, commands_sent, failing_commands
from pymongo.asynchronous.collection import AsyncCollection
from pymongo.errors import DuplicateKeyError

from chatkeep import Conflict, ConversationChange, InvalidInput, NewConversation, NotFound, Status, Store, open_store
from chatkeep.events import EventKind, TurnEvent, text
from chatkeep.providers import EXTRACTIVE_ID, ApiConfig, LlmProvider, LlmProviderChange, NewLlmProvider
from chatkeep.stores.mongo import providers as statements
from chatkeep.stores.mongo.rows import MongoRows
from chatkeep.stores.mongo.store import MongoStore
from chatkeep.testing import numbered, user, whole_list
from chatkeep.turns import GRACE, Ending, TurnKey, TurnState, TurnWrite
from servers.mongo import mongo_databases

OWNER, OTHER = "$ada", "$$NOW"
"""Texts that a pipeline would evaluate."""


pytestmark = pytest.mark.long  # the contract, and the rows of SQL, always run


@pytest.fixture
def sent() -> Iterator[Commands]:
    """Every command that the stores of this test send, in order."""
    with commands_sent() as sent:
        yield sent


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return mongo_databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


@pytest.fixture
def failing() -> Iterator[Failing]:
    """Make the server fail commands."""
    with failing_commands() as failing:
        yield failing


CONFLICT = {"errorCode": 112, "errorLabels": ["TransientTransactionError"]}


class Killed(BaseException):
    """The process ends here."""


def raw(url: str) -> Any:
    """The database, without chatkeep."""
    return mongo_databases().database(url)


async def make(store: Store, **values: Any) -> LlmProvider:
    """Create a provider."""
    new = NewLlmProvider(**{"provider_name": "ollama", "model_name": "$m"} | values)
    return await store.providers.create_provider(new)


async def talk(store: Store, provider: UUID | None, owner: str = OWNER, **values: Any) -> UUID:
    """Create a conversation that names a provider."""
    return (await store.create_conversation(owner, NewConversation(llm_provider_id=provider, **values))).id


async def named(store: Store, *owners: str) -> set[UUID | None]:
    """The providers that conversations of some owners name."""
    return {each.llm_provider_id for owner in owners or (OWNER,) for each in await whole_list(store, owner)}


async def shown(store: Store) -> list[UUID]:
    """The ids of all providers but the first one."""
    return [each.id for each in await store.providers.list_providers() if each.id != EXTRACTIVE_ID]


def defaults(url: str) -> list[UUID]:
    """The providers that are the default."""
    return [each["_id"] for each in raw(url).llm_providers.find({"is_default": True})]


def names(commands: list[Mapping[str, Any]], *, within: bool = True) -> list[tuple[str, str]]:
    """What was sent in transactions, or outside of them: the commands and their collections."""
    found = [next(iter(each.items())) for each in commands if ("autocommit" in each) is within]
    return [(name, value) for name, value in found if isinstance(value, str)]


# --- what is stored and sent -----------------------------------------------------------------------------


async def test_what_is_stored(url: str, store: Store) -> None:
    """What is absent has no field; the configuration is JSON text, and nothing of it is evaluated."""
    config = ApiConfig(
        base_url="http://127.0.0.1:1/v1", settings={"logit_bias": {"$set": 1, "a.b": 2}, "stop_sequences": ["$m"]}
    )
    made = await make(store, api_config=config, is_default=True)
    plain = await make(store)
    assert await store.providers.get_provider(made.id) == made
    first, found = [raw(url).llm_providers.find_one({"_id": id_}) for id_ in (EXTRACTIVE_ID, made.id)]
    fields = "_id provider_name model_name is_default created_at updated_at".split()  # noqa: SIM905
    assert list(first) == fields
    assert (first["is_default"], found["is_default"], defaults(url)) == (False, True, [made.id])
    assert found["api_config"].endswith('"settings":{"logit_bias":{"$set":1,"a.b":2},"stop_sequences":["$m"]}}')
    assert set(raw(url).llm_providers.find_one({"_id": plain.id})) == {*fields, "fingerprint"}
    await store.providers.update_provider(made.id, LlmProviderChange(api_config=ApiConfig(), model_name="$n"))
    changed = await store.providers.get_provider(made.id)
    assert (changed.api_config, changed.model_name, changed.is_default) == (ApiConfig(), "$n", True)
    assert "api_config" not in raw(url).llm_providers.find_one({"_id": made.id})


async def test_conversations_name_a_provider(url: str, store: Store) -> None:
    """Created with it, changed to another, and to none, which has no field."""
    first, second = (await make(store)).id, (await make(store)).id
    id_ = await talk(store, first)
    scope = NewConversation(context_id="c", llm_provider_id=first)
    assert (await store.get_or_create_conversation(OWNER, scope)).llm_provider_id == first
    for provider in (second, None):
        changed = await store.update_conversation(OWNER, id_, ConversationChange(llm_provider_id=provider))
        assert changed.llm_provider_id == provider
        assert await store.get_conversation(OWNER, id_) == changed
    assert "llm_provider_id" not in raw(url).conversations.find_one({"id": id_})
    with pytest.raises(InvalidInput, match="llm_provider_id"):
        await talk(store, uuid4())
    with pytest.raises(InvalidInput, match="llm_provider_id"):
        await store.update_conversation(OWNER, id_, ConversationChange(llm_provider_id=uuid4()))
    assert len(await whole_list(store, OWNER)) == 2


async def test_the_database_has_one_default(url: str, store: Store) -> None:
    """Whoever writes it: the second is refused, inserted or changed."""
    other = (await make(store)).id
    collection = raw(url).llm_providers
    with pytest.raises(DuplicateKeyError):
        collection.update_one({"_id": other}, {"$set": {"is_default": True}})
    with pytest.raises(DuplicateKeyError):
        collection.insert_one({**collection.find_one({"is_default": True}), "_id": uuid4()})
    assert defaults(url) == [EXTRACTIVE_ID]


async def test_every_change_writes_one_document(url: str, sent: Commands) -> None:
    """First, in its transaction: so two are a conflict. Reading needs one query, and no transaction."""
    async with open_store(url) as store:
        await store.providers.list_providers()
        sent.clear()
        first = await make(store, is_default=True)
        await store.providers.update_provider(first.id, LlmProviderChange(model_name="n"))
        await store.providers.delete_provider(first.id, replacement=EXTRACTIVE_ID)
        begun = [each for each in sent if each.get("startTransaction")]
        assert names(begun) == [("update", "chatkeep_schema")] * 4  # the last two hide it, and remove it
        assert {str(each["updates"][0]["q"]) for each in begun} == {str({"_id": statements.PROVIDERS})}
        sent.clear()
        await store.providers.list_providers()
        assert names(sent, within=False) == [("find", "llm_providers")]
        assert len(sent) == 1


async def test_who_names_a_provider_writes_it_or_looks_again(url: str, sent: Commands) -> None:
    """A change of a conversation writes it, in its transaction; a creation reads it before and after, and no more."""
    async with open_store(url) as store:
        provider, other = (await make(store)).id, (await make(store)).id
        await talk(store, None)
        sent.clear()
        id_ = await talk(store, provider)
        found = [each for each in names(sent, within=False) if each[0] != "update"]
        look = ("find", "llm_providers")
        assert found[:2] == [look, ("insert", "conversations")]
        assert found[-1] == look
        assert names(sent) == []
        sent.clear()
        await store.update_conversation(OWNER, id_, ConversationChange(llm_provider_id=other))
        written = [("update", "llm_providers"), ("update", "conversations")]
        assert names(sent) == [("find", "conversations"), *written]
        sent.clear()
        await store.update_conversation(OWNER, id_, ConversationChange(llm_provider_id=None))
        assert names(sent) == [("find", "conversations"), written[1]]


async def test_an_append_leaves_the_index_of_providers_alone(url: str, store: Store) -> None:
    """It holds nothing that an append changes, and only conversations that name one."""
    index = raw(url).conversations.index_information()["by_provider"]
    assert index["key"] == [("llm_provider_id", 1)]
    assert index["partialFilterExpression"] == {"llm_provider_id": {"$exists": True}}
    await store.append(OWNER, await talk(store, None), numbered(1))
    assert "llm_provider_id" not in raw(url).conversations.find_one()


# --- conflicts and other processes -----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["update", "find", "insert", "commitTransaction"])
async def test_conflicts_are_tried_again(url: str, store: Store, failing: Any, command: str) -> None:
    """Each change is made once."""
    with failing({"times": 2}, command, **CONFLICT):
        made = await make(store, is_default=True)
    assert defaults(url) == [made.id]
    if command != "insert":
        with failing({"times": 2}, command, **CONFLICT):
            await store.providers.update_provider(EXTRACTIVE_ID, LlmProviderChange(is_default=True))
        assert defaults(url) == [EXTRACTIVE_ID]
    assert await shown(store) == [made.id]


async def test_lost_answers_to_commits(url: str, store: Store, failing: Any) -> None:
    """Creating returns what was created; a removal says that it removed."""
    new = NewLlmProvider(id=uuid4(), provider_name="ollama", model_name="m", is_default=True)
    with failing({"times": 1}, "commitTransaction", closeConnection=True):
        made = await store.providers.create_provider(new)
    assert made == await store.providers.create_provider(new)
    with failing({"times": 1}, "commitTransaction", closeConnection=True):
        assert await store.providers.delete_provider(made.id, replacement=EXTRACTIVE_ID)
    assert (await shown(store), defaults(url)) == ([], [EXTRACTIVE_ID])


async def test_two_processes_choose_the_default(url: str, store: Store) -> None:
    """At any moment there is one, and at last the one that was chosen last."""
    ids = [EXTRACTIVE_ID, *[(await make(store)).id for _ in range(3)]]
    async with open_store(url) as other:
        calls = [
            (store, other)[n % 2].providers.update_provider(id_, LlmProviderChange(is_default=True))
            for n, id_ in enumerate(ids * 4)
        ]
        working = asyncio.gather(*calls)
        while not working.done():
            listed = await other.providers.list_providers()
            assert [each.is_default for each in listed].count(True) == 1
        chosen = {each.id: each for each in await working}
    assert chosen.keys() == set(ids)
    assert len(defaults(url)) == 1


async def test_two_processes_remove_the_same(url: str, store: Store) -> None:
    """And others that it was to replace: what named them names what is left."""
    ids = [(await make(store)).id for _ in range(4)]
    for id_ in ids * 3:
        await talk(store, id_)
    async with open_store(url) as other:
        pairs = [*zip(ids, [*ids[1:], EXTRACTIVE_ID], strict=True)]
        calls = [(store, other)[n % 2].providers.delete_provider(a, replacement=b) for n, (a, b) in enumerate(pairs)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(each is True or isinstance(each, NotFound) for each in outcomes)
    left = await shown(store)
    assert len(left) == sum(isinstance(each, NotFound) for each in outcomes)
    assert await named(store) <= {*left, EXTRACTIVE_ID}
    assert raw(url).llm_providers.count_documents({}) == len(left) + 1


async def test_a_replacement_that_is_removed_meanwhile(url: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another process: nothing names it in the end, although the first one went on to give it conversations."""
    monkeypatch.setattr(statements, "REPLACED", 2)
    first, second = (await make(store)).id, (await make(store)).id
    for _ in range(7):
        await talk(store, first)
    update, done = MongoRows.replace_provider, 0

    async def late(rows: MongoRows, id_: UUID, replacement: UUID) -> bool:
        nonlocal done
        done += 1
        if done == 2:
            async with open_store(url, migrate=False) as other:
                assert await other.providers.delete_provider(second, replacement=EXTRACTIVE_ID)
        return await update(rows, id_, replacement)

    monkeypatch.setattr(MongoRows, "replace_provider", late)
    assert await store.providers.delete_provider(first, replacement=second)
    assert (await named(store), await shown(store)) == ({EXTRACTIVE_ID}, [])


async def test_hidden_providers_go_together(store: Store) -> None:
    """Not one of them while conversations name another: a process may still give those the first one."""
    first, second = (await make(store)).id, (await make(store)).id
    await talk(store, first)
    assert isinstance(store, MongoStore)
    await store._write(lambda rows: rows.set_provider(first, {"replaced_by": second}))
    await store._write(lambda rows: rows.set_provider(second, {"replaced_by": EXTRACTIVE_ID}))
    await store._write(store._remove_hidden)
    assert {row.provider.id for row in await store._read(lambda rows: rows.providers())} >= {first, second}
    await store._write(lambda rows: rows.replace_provider(first, second), atomic=False)
    await store._write(store._remove_hidden)
    assert {row.provider.id for row in await store._read(lambda rows: rows.providers())} >= {first, second}
    assert await store.providers.delete_provider(uuid4()) is False
    assert (await named(store), await shown(store)) == ({EXTRACTIVE_ID}, [])


# --- who comes too late ----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["before it is stored", "before it is looked for again"])
@pytest.mark.parametrize("way", ["create", "get or create"])
async def test_a_creation_during_a_removal(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch, moment: str, way: str
) -> None:
    """It fails, or its conversation gets the replacement; none names what is gone, and none is there that failed."""
    provider = (await make(store)).id
    name = "create" if moment == "before it is stored" else "_note_owner"
    method, removed = getattr(MongoRows, name), False

    async def late(rows: MongoRows, *arguments: Any, **options: Any) -> Any:
        nonlocal removed
        if not removed:
            removed = True
            async with open_store(url, migrate=False) as other:
                assert await other.providers.delete_provider(provider, replacement=EXTRACTIVE_ID)
        return await method(rows, *arguments, **options)

    monkeypatch.setattr(MongoRows, name, late)
    create = store.create_conversation if way == "create" else store.get_or_create_conversation
    with pytest.raises(InvalidInput, match="llm_provider_id"):
        await create(OWNER, NewConversation(llm_provider_id=provider))
    assert removed
    assert (await whole_list(store, OWNER), await shown(store)) == ([], [])
    assert raw(url).conversations.count_documents({}) == 0


@pytest.mark.parametrize("seen", ["hidden", "gone"])
async def test_a_creation_that_a_removal_does_not_see(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch, seen: str
) -> None:
    """Stored when the removal has looked already, or just before it looks last: it sees itself that it is too late."""
    provider, began = (await make(store)).id, asyncio.Event()
    has_provider, looks = MongoRows.has_provider, 0
    store_of_removal = await open_store(url, migrate=False)
    removal: asyncio.Task[bool] | None = None

    async def slowly(rows: MongoRows, id_: UUID) -> bool:
        """Between the first look and the second, the provider is hidden, and it may go."""
        nonlocal looks, removal
        looks += 1
        found = await has_provider(rows, id_)
        if looks == 1:
            removal = asyncio.create_task(store_of_removal.providers.delete_provider(provider))
            await (began.wait() if seen == "hidden" else removal)
        return found

    hidden = MongoRows.replace_provider

    async def waits(rows: MongoRows, *arguments: Any) -> bool:
        began.set()
        while seen == "hidden" and looks < 2:  # noqa: ASYNC110 - until the creation has looked again
            await asyncio.sleep(0.01)
        return await hidden(rows, *arguments)

    monkeypatch.setattr(MongoRows, "has_provider", slowly)
    monkeypatch.setattr(MongoRows, "replace_provider", waits)
    with pytest.raises(InvalidInput, match="llm_provider_id"):
        await talk(store, provider)
    assert removal is not None
    assert await removal
    assert looks == 3
    assert (await whole_list(store, OWNER), await shown(store)) == ([], [])
    await store_of_removal.aclose()


async def test_a_removal_that_did_not_see_a_user(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its transaction began before the conversation was stored: that gets the default when the provider is hidden."""
    provider = (await make(store)).id
    id_ = await talk(store, provider)
    uses, asked = MongoRows.uses_provider, 0

    async def before(rows: MongoRows, each: UUID) -> bool:
        nonlocal asked
        asked += 1
        return asked > 1 and await uses(rows, each)

    with pytest.raises(Conflict, match="name a replacement"):
        await store.providers.delete_provider(provider)
    monkeypatch.setattr(MongoRows, "uses_provider", before)
    assert await store.providers.delete_provider(provider)
    assert (await store.get_conversation(OWNER, id_)).llm_provider_id == EXTRACTIVE_ID
    assert await shown(store) == []


async def test_changes_and_removals_of_two_processes(url: str, store: Store) -> None:
    """Conversations are created with providers, and changed to them, while those go: none names what is gone."""
    stopped = False
    async with open_store(url) as other:
        pool = [(await make(store)).id for _ in range(3)]

        async def use(store: Store, owner: str) -> None:
            id_ = await talk(store, None, owner)
            while not stopped:
                for provider in list(pool):
                    change = ConversationChange(llm_provider_id=provider)
                    calls = [store.update_conversation(owner, id_, change), talk(store, provider, owner)]
                    outcomes = await asyncio.gather(*calls, return_exceptions=True)
                    assert all(isinstance(each, InvalidInput) or not isinstance(each, Exception) for each in outcomes)

        using = [asyncio.create_task(use(each, f"u{n}")) for n, each in enumerate((store, other, store, other))]
        for n in range(8):
            await asyncio.sleep(0.05)
            gone = pool.pop(0)
            assert await (store, other)[n % 2].providers.delete_provider(gone, replacement=pool[0])
            pool.append((await make(store)).id)
        stopped = True
        await asyncio.gather(*using)
    assert set(await shown(store)) == set(pool)
    there = {each.get("llm_provider_id") for each in raw(url).conversations.find()}
    assert there <= {None, *pool}


# --- replacing in slices, and what is cut off ------------------------------------------------------------


async def test_replaced_in_slices(url: str, store: Store, sent: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all owners, outside of transactions; nothing else of the conversations moves."""
    monkeypatch.setattr(statements, "REPLACED", 3)
    old, new = (await make(store, is_default=True)).id, (await make(store)).id
    for owner in (OWNER, OTHER):
        for _ in range(4):
            await store.append(owner, await talk(store, old, owner), numbered(2))
        await talk(store, None, owner)
    before = {str(each["_id"]): each for each in raw(url).conversations.find()}
    async with open_store(url) as other:
        sent.clear()
        assert await other.providers.delete_provider(old, replacement=new)
    conversations = [each for each in sent if each.get("update") == "conversations"]
    assert [len(each["updates"][0]["q"]["_id"]["$in"]) for each in conversations] == [3, 3, 2]
    assert all("autocommit" not in each for each in conversations)
    changed = [(before[str(each["_id"])], each) for each in raw(url).conversations.find()]
    assert [each["llm_provider_id"] for was, each in changed if "llm_provider_id" in was] == [new] * 8
    for was, each in changed:
        assert {name for name in was if was[name] != each[name]} <= {"llm_provider_id"}
    assert (await shown(store), defaults(url)) == ([new], [new])


async def test_who_names_another_provider_meanwhile(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps that: only what still names the one that is removed is given its replacement."""
    old, new = (await make(store)).id, (await make(store)).id
    ids = [await talk(store, old) for _ in range(2)]
    update_many = AsyncCollection.update_many

    async def late(collection: Any, *arguments: Any, **options: Any) -> Any:
        monkeypatch.setattr(AsyncCollection, "update_many", update_many)
        await store.update_conversation(OWNER, ids[0], ConversationChange(llm_provider_id=new))
        return await update_many(collection, *arguments, **options)

    monkeypatch.setattr(AsyncCollection, "update_many", late)
    assert await store.providers.delete_provider(old, replacement=EXTRACTIVE_ID)
    found = [(await store.get_conversation(OWNER, id_)).llm_provider_id for id_ in ids]
    assert found == [new, EXTRACTIVE_ID]


async def test_appends_go_on_while_a_provider_is_replaced(
    url: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the conversations that are given another one, too: every message is stored."""
    monkeypatch.setattr(statements, "REPLACED", 2)
    provider = (await make(store)).id
    talks = [await talk(store, provider) for _ in range(12)]
    async with open_store(url) as other:
        removal = asyncio.create_task(other.providers.delete_provider(provider, replacement=EXTRACTIVE_ID))
        await asyncio.gather(*(store.append(OWNER, id_, [user(f"{n}")]) for n in range(4) for id_ in talks))
        assert await removal
    assert await named(store) == {EXTRACTIVE_ID}
    assert [each.last_seq for each in await whole_list(store, OWNER)] == [4] * 12


@pytest.mark.parametrize("step", range(6))
async def test_a_removal_that_is_cut_off(url: str, store: Store, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """After any step it is seen no more, and nobody can name it; a call for any other provider finishes it."""
    monkeypatch.setattr(statements, "REPLACED", 2)
    provider = (await make(store, is_default=True)).id
    for _ in range(5):
        await talk(store, provider)
    done = 0

    def counted(name: str) -> Any:
        method = getattr(MongoStore, name)

        async def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            if done > step:
                raise Killed
            done += 1
            return await method(*arguments, **options)

        return call

    assert isinstance(store, MongoStore)
    with monkeypatch.context() as patch:
        patch.setattr(MongoStore, "_write", counted("_write"))
        if step < 5:
            with pytest.raises(Killed):
                await store._delete_provider(provider, EXTRACTIVE_ID)
        else:
            assert await store._delete_provider(provider, EXTRACTIVE_ID)
    assert (await shown(store), defaults(url)) == ([], [EXTRACTIVE_ID])
    count = raw(url).conversations.count_documents({"llm_provider_id": provider})
    assert count == max(0, 5 - 2 * step)
    with pytest.raises(InvalidInput):
        await talk(store, provider)
    with pytest.raises(NotFound):
        await store.providers.get_provider(provider)
    async with open_store(url) as other:
        assert await other.providers.delete_provider(uuid4()) is False
    assert await named(store) == {EXTRACTIVE_ID}
    assert raw(url).llm_providers.count_documents({}) == 1


async def test_what_is_being_removed_names_no_provider(url: str, store: Store) -> None:
    """A conversation whose removal was cut off keeps no provider from being removed."""
    provider = (await make(store)).id
    ids = [await talk(store, provider) for _ in range(2)]
    assert isinstance(store, MongoStore)
    await store._write(lambda rows: rows.hide((OWNER, ids[0])))
    with pytest.raises(Conflict):
        await store.providers.delete_provider(provider)
    await store._write(lambda rows: rows.hide_slice(OWNER), atomic=False)
    assert await store.providers.delete_provider(provider)
    assert raw(url).conversations.count_documents({"deleted_at": {"$gt": 0}}) == 2


async def test_a_rename_keeps_providers(store: Store) -> None:
    """They are of no owner; a conversation that is moved names the same."""
    provider = (await make(store)).id
    await talk(store, provider)
    await store.rename_owner(OWNER, OTHER)
    assert await named(store, OTHER) == {provider}
    await store.erase_owner(OTHER)
    assert await shown(store) == [provider]
    assert await store.providers.delete_provider(provider)


# --- resumed turns ---------------------------------------------------------------------------------------

GONE = uuid4()
STATE = [TurnEvent(1, *text("$a")), TurnEvent(2, EventKind.STATE, {"$set": "$$NOW"})]


async def begin(store: Store, given: list[TurnEvent] | None = None) -> TurnKey:
    """Begin a turn, with events, whose worker is gone."""
    id_ = await talk(store, None)
    turn = await store.turns.start_turn(OWNER, id_, user("$sage?"), worker=GONE)
    key = TurnKey(OWNER, id_, turn.answer.id)
    await store.turns.append_turn_events(GONE, [TurnWrite(key, STATE if given is None else given)])
    return key


def expire(url: str, ago: timedelta) -> None:
    """Have all leases expired some time ago; the emulator's clock is this process's."""
    raw(url).turns.update_many({}, {"$set": {"until": datetime.now(UTC) - ago}})


async def test_one_of_two_workers_resumes(url: str, store: Store) -> None:
    """By two processes at once: it gets all events, and a lease; the one before has lost the turn."""
    key = await begin(store)
    assert await store.turns.resume_turn(*key, worker=uuid4()) is None
    expire(url, timedelta(seconds=1))
    workers = [uuid4() for _ in range(6)]
    async with open_store(url) as other:
        calls = [(store, other)[n % 2].turns.resume_turn(*key, worker=each) for n, each in enumerate(workers)]
        outcomes = await asyncio.gather(*calls)
    ((worker, resumed),) = [(each, it) for each, it in zip(workers, outcomes, strict=True) if it is not None]
    assert (resumed.question.content, list(resumed.events)) == ("$sage?", STATE)
    (lease,) = raw(url).turns.find()
    assert (lease["worker"], lease["n"]) == (worker, 2)
    assert lease["until"].replace(tzinfo=UTC) > datetime.now(UTC) + timedelta(seconds=5)
    more = TurnWrite(key, [TurnEvent(3, *text("b"))])
    assert await store.turns.append_turn_events(GONE, [more]) == {key: TurnState.LOST}
    assert await store.turns.append_turn_events(worker, [more]) == {key: TurnState.RUNNING}
    await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "$ab"), worker=worker)
    assert raw(url).turns.count_documents({}) == raw(url).turn_events.count_documents({}) == 0


async def test_a_turn_waits_for_a_worker(url: str, store: Store) -> None:
    """As long as the server's clock says; one without a state is closed at once."""
    plain, waits = await begin(store, STATE[:1]), await begin(store)
    expire(url, GRACE - timedelta(seconds=10))
    assert await store.turns.expire_turns() == 1
    assert (await store.get_message(*plain)).status is Status.INTERRUPTED
    assert not await store.turns.expire_turn(*waits)
    expire(url, GRACE + timedelta(seconds=1))
    assert await store.turns.expire_turn(*waits)
    assert (await store.get_message(*waits)).content == "$a"
    assert await store.turns.resume_turn(*waits, worker=uuid4()) is None


@pytest.mark.parametrize("command", ["update", "aggregate", "commitTransaction"])
async def test_a_takeover_that_meets_another_is_tried_again(url: str, store: Store, failing: Any, command: str) -> None:
    """As each transaction is: one that is gone has no lease in the end."""
    key = await begin(store)
    expire(url, timedelta(seconds=1))
    worker = uuid4()
    with failing({"times": 2}, command, **CONFLICT):
        resumed = await store.turns.resume_turn(*key, worker=worker)
    assert resumed is not None
    assert raw(url).turns.find_one()["worker"] == worker


async def test_a_takeover_whose_commit_is_lost(url: str, store: Store, failing: Any) -> None:
    """It is sent again: the worker is told that it has the turn."""
    key = await begin(store)
    expire(url, timedelta(seconds=1))
    with failing({"times": 1}, "commitTransaction", closeConnection=True):
        assert await store.turns.resume_turn(*key, worker=uuid4()) is not None


@pytest.mark.parametrize("way", ["hide", "rename"])
async def test_a_conversation_that_is_taken_away(url: str, store: Store, way: str) -> None:
    """Nobody goes on with what is being removed; what another owner has is closed, or goes on as theirs."""
    key = await begin(store)
    if way == "rename":
        await store.rename_owner(OWNER, OTHER)
        moved = key._replace(owner=OTHER)
        assert await store.turns.resume_turn(*key, worker=uuid4()) is None
        assert await store.turns.expire_turn(*moved)
        return
    assert isinstance(store, MongoStore)
    await store._write(lambda rows: rows.hide(key[:2]))
    assert await store.turns.resume_turn(*key, worker=uuid4()) is None
    assert await store.turns.expire_turns() == 1
    assert raw(url).turn_events.count_documents({}) == 0
