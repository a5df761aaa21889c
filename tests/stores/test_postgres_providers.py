"""LLM providers in PostgreSQL: one default, races of several processes, replacements while others write, plans."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from left_turns import STATE, left

from chatkeep import Conflict, ConversationChange, InvalidInput, NewConversation, Status, Store, open_store
from chatkeep.providers import (
    EXTRACTIVE_ID,
    ApiConfig,
    LlmProvider,
    LlmProviderChange,
    NewLlmProvider,
)
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.providers import NAMING, REPLACED
from chatkeep.stores.postgres.rows import PostgresRows
from chatkeep.testing import user
from chatkeep.turns import GRACE, TurnState, TurnWrite
from servers.postgres import databases, raw

OWNER = "ada"
TEA, SAGE = UUID(int=1), UUID(int=2)
NAMED = NewConversation(llm_provider_id=TEA)
DEFAULT = LlmProviderChange(is_default=True)
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
COUNT = "SELECT count(*) FROM conversations WHERE llm_provider_id = $1"
FILL = """
    INSERT INTO conversations (owner_id, id, metadata, fingerprint, llm_provider_id)
    SELECT 'owner ' || n % 10, md5(n::text)::uuid, '{}', '', $1 FROM generate_series(1, $2::integer) n
"""
OWNERS = "INSERT INTO users SELECT 'owner ' || n FROM generate_series(0, 9) n"


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return databases().clean()


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it, with two providers beside the default."""
    async with open_store(url) as store:
        for id_ in (TEA, SAGE):
            await store.providers.create_provider(scripted(id_))
        yield store


@pytest.fixture
async def other(url: str, store: Store) -> AsyncIterator[Store]:
    """The store of another process."""
    async with open_store(url, migrate=False) as other:
        yield other


def scripted(id_: UUID, *, is_default: bool = False) -> NewLlmProvider:
    """A provider with an id."""
    return NewLlmProvider(id=id_, provider_name="scripted", model_name="m", is_default=is_default)


def rows_of(connection: Connection) -> PostgresRows:
    """The rows of a transaction that a test holds open."""
    return PostgresRows(connection, LongTexts())


async def until_one_waits(url: str) -> None:
    """Wait until somebody waits for a lock."""
    async with raw(url) as connection:
        while not await connection.fetchval(WAITING):  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.01)


async def fill(url: str, count: int) -> None:
    """Store conversations of ten owners that name a provider."""
    async with raw(url) as connection:
        await connection.execute(OWNERS)
        await connection.execute(FILL, TEA, count)


# --- one default -----------------------------------------------------------------------------------------


async def test_values_come_back(store: Store) -> None:
    """With what PostgreSQL cannot hold, and numbers of any size; null again if all is as by default."""
    config = ApiConfig(
        base_url="https://llm.example/v1",
        settings={"stop_sequences": ["a\0b"], "seed": -(2**63), "top_p": 0.5},
        history_tokens=500,
    )
    new = NewLlmProvider(provider_name="ollama", model_name="caf\u00e9 \0", api_config=config)
    made = await store.providers.create_provider(new)
    assert await store.providers.get_provider(made.id) == made
    assert (made.model_name, made.api_config) == ("caf\u00e9 \0", config)
    changed = await store.providers.update_provider(made.id, LlmProviderChange(model_name="\0", api_config=ApiConfig()))
    assert await store.providers.get_provider(made.id) == changed
    assert (changed.model_name, changed.api_config) == ("\0", ApiConfig())


async def test_database_refuses_a_second_default(store: Store, url: str) -> None:
    """Whoever would make one beside the store."""
    async with raw(url) as connection:
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute("UPDATE llm_providers SET is_default = true WHERE id = $1", TEA)


async def test_two_processes_make_different_ones_the_default(store: Store, other: Store) -> None:
    """At once, again and again, also new ones: neither fails, and there is exactly one."""
    for number in range(30):
        new = [scripted(UUID(int=100 + 2 * number + each), is_default=True) for each in range(2)]
        await asyncio.gather(
            store.providers.update_provider(TEA, DEFAULT),
            other.providers.update_provider(SAGE, DEFAULT),
            store.providers.create_provider(new[0]),
            other.providers.create_provider(new[1]),
        )
        defaults = [each.id for each in await store.providers.list_providers() if each.is_default]
        assert len(defaults) == 1
        for each in new:
            await store.providers.delete_provider(UUID(str(each.id)), replacement=EXTRACTIVE_ID)


async def test_whoever_waited_looks_again_if_all_is_gone(store: Store, url: str) -> None:
    """All that a transaction saw before it waited is removed: it locks what there is now, and so does the next one."""
    async with raw(url) as first, raw(url) as second, raw(url) as third:
        transactions = [each.transaction() for each in (first, second, third)]
        for transaction in transactions:
            await transaction.start()
        await rows_of(first).lock_providers()
        waiting = asyncio.create_task(rows_of(second).lock_providers())
        await until_one_waits(url)
        await first.execute("DELETE FROM llm_providers")
        await rows_of(first).add_provider(provider(), b"")
        await transactions[0].commit()
        await waiting
        next_one = asyncio.create_task(rows_of(third).lock_providers())
        await until_one_waits(url)
        assert not next_one.done()
        await transactions[1].commit()
        await next_one
        await transactions[2].commit()


def provider() -> LlmProvider:
    """A default as it is stored."""
    values = {"id": uuid4(), "provider_name": "scripted", "model_name": "m", "is_default": True, "api_config": {}}
    return LlmProvider.model_validate(values | {"created_at": 0, "updated_at": 0})


# --- naming one that is being removed --------------------------------------------------------------------


async def test_removal_waits_for_whoever_names_the_provider(store: Store, url: str) -> None:
    """A conversation that is being created is seen by the removal, which would leave it without its provider."""
    async with raw(url) as connection, connection.transaction():
        assert await rows_of(connection).has_provider(TEA)
        removing = asyncio.create_task(store.providers.delete_provider(TEA))
        await until_one_waits(url)
        created = await rows_of(connection).create((OWNER, uuid4()), NAMED)
        assert created is not None
    with pytest.raises(Conflict, match="name a replacement"):
        await removing
    assert (await store.get_conversation(OWNER, created.id)).llm_provider_id == TEA


@pytest.mark.parametrize("how", ["removed", "hidden"])
@pytest.mark.parametrize("call", ["create", "get or create", "update"])
async def test_whoever_names_a_provider_waits_for_its_removal(store: Store, url: str, how: str, call: str) -> None:
    """And hears that it is gone."""
    talk = await store.create_conversation(OWNER, NewConversation())
    change = ConversationChange(llm_provider_id=TEA)
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "create": lambda: store.create_conversation(OWNER, NAMED),
        "get or create": lambda: store.get_or_create_conversation(OWNER, NAMED.model_copy(update={"context_id": "c"})),
        "update": lambda: store.update_conversation(OWNER, talk.id, change),
    }
    async with raw(url) as connection, connection.transaction():
        rows = rows_of(connection)
        await rows.lock_providers()
        naming = asyncio.ensure_future(calls[call]())
        await until_one_waits(url)
        assert not await rows.uses_provider(TEA)
        await (rows.remove_provider(TEA) if how == "removed" else rows.set_provider(TEA, {"replaced_by": SAGE}))
    with pytest.raises(InvalidInput, match="no such llm_provider_id"):
        await naming
    async with raw(url) as connection:
        assert await connection.fetchval(COUNT, TEA) == 0


async def test_removals_race_creations(store: Store, other: Store, url: str) -> None:
    """Again and again: no conversation is left that names a provider which is gone, and nobody waits for ever."""
    for number in range(30):
        replacement = SAGE if number % 2 else None
        outcomes = await asyncio.gather(
            other.providers.delete_provider(TEA, replacement=replacement),
            *(store.create_conversation(f"owner {n}", NAMED) for n in range(4)),
            return_exceptions=True,
        )
        unexpected = [each for each in outcomes if isinstance(each, Exception)]
        assert {type(each) for each in unexpected} <= {Conflict, InvalidInput}
        there = [each.id for each in await store.providers.list_providers()]
        async with raw(url) as connection:
            assert (TEA in there) or await connection.fetchval(COUNT, TEA) == 0
        await store.providers.create_provider(scripted(TEA))


# --- replacements ----------------------------------------------------------------------------------------


async def test_replacement_while_others_append(store: Store, other: Store, url: str) -> None:
    """1,500 conversations get another provider, a few hundred at a time; appends to all of them go on."""
    await fill(url, 1_500)
    async with raw(url) as connection:
        keys = [tuple(row) for row in await connection.fetch("SELECT owner_id, id FROM conversations ORDER BY id")]
        removing = asyncio.create_task(other.providers.delete_provider(TEA, replacement=SAGE))
        waits: list[float] = []

        async def append(owner: str, id_: UUID) -> None:
            began = time.monotonic()
            await store.append(owner, id_, [user("hello")])
            waits.append(time.monotonic() - began)

        for first in range(0, 1_000, 50):
            await asyncio.gather(*(append(*key) for key in keys[first : first + 50]))
        assert await removing
        assert max(waits) < 1 + 2 * sorted(waits)[len(waits) // 2]  # more if the machine has much to do
        assert await connection.fetchval(COUNT, SAGE) == 1_500
        assert await connection.fetchval("SELECT count(*) FROM messages") == 1_000
        by_transaction = "SELECT max(n) FROM (SELECT count(*) AS n FROM conversations GROUP BY xmin::text) c"
        assert await connection.fetchval(by_transaction) <= 300
        assert await connection.fetchval("SELECT count(*) FROM llm_providers WHERE id = $1", TEA) == 0


REMOVER = """
import asyncio, sys
from chatkeep import open_store

async def main(url, removed, replacement):
    async with open_store(url, migrate=False) as store:
        await store.providers.delete_provider(removed, replacement=replacement)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_killed_removal_is_finished_by_the_next_call(store: Store, url: str) -> None:
    """Nobody sees the provider meanwhile, and the conversations that still name it get the replacement later."""
    await fill(url, 20_000)
    async with raw(url) as connection:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", REMOVER, url, str(TEA), str(SAGE))
        while await connection.fetchval(COUNT, SAGE) == 0:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.001)
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        assert await connection.fetchval(COUNT, TEA) > 0
        assert [each.id for each in await store.providers.list_providers()] == [EXTRACTIVE_ID, SAGE]
        with pytest.raises(InvalidInput):
            await store.create_conversation(OWNER, NAMED)
        with pytest.raises(Conflict):
            await store.providers.create_provider(scripted(TEA))
        assert await store.providers.delete_provider(uuid4()) is False
        assert await connection.fetchval(COUNT, SAGE) == 20_000
        assert await connection.fetchval("SELECT count(*) FROM llm_providers") == 2
    assert (await store.providers.create_provider(scripted(TEA))).id == TEA


async def test_question_whether_anybody_names_a_provider_reads_the_index(store: Store, url: str) -> None:
    """Whatever the statistics say: here that all conversations name the provider that was just replaced."""
    await fill(url, 20_000)
    async with raw(url) as connection:
        await connection.execute("ALTER TABLE conversations SET (autovacuum_enabled = off)")
        try:
            await connection.execute("ANALYZE conversations")
            await connection.execute("UPDATE conversations SET llm_provider_id = $1", SAGE)
            for provider, limit in ((TEA, 1), (SAGE, 1), (TEA, REPLACED), (uuid4(), REPLACED)):
                plan = await connection.fetch(f"EXPLAIN {NAMING}", provider, limit)
                lines = "\n".join(line for (line,) in plan)
                assert "using conversations_by_provider" in lines, lines
                assert "Sort" not in lines, lines
        finally:
            await connection.execute("ALTER TABLE conversations RESET (autovacuum_enabled)")


# --- turns that another worker goes on with --------------------------------------------------------------


async def test_one_of_two_workers_resumes_a_turn(store: Store, other: Store) -> None:
    """The other one gets nothing, and so does the first worker if it comes back."""
    for _ in range(10):
        gone, *workers = uuid4(), uuid4(), uuid4()
        key = await left(store, OWNER, gone)
        found = await asyncio.gather(
            store.turns.resume_turn(*key, worker=workers[0]), other.turns.resume_turn(*key, worker=workers[1])
        )
        (resumed,) = [each for each in found if each is not None]
        assert (resumed.question.content, list(resumed.events)) == ("why?", [STATE])
        states = [(await store.turns.append_turn_events(worker, [TurnWrite(key)]))[key] for worker in (gone, *workers)]
        assert sorted(state.name for state in states) == ["LOST", "LOST", "RUNNING"]
        assert states[0] is TurnState.LOST
        assert await other.turns.resume_turn(*key, worker=uuid4()) is None  # the lease is a new one
        await store.turns.stop_turn(*key)
        await store.delete_conversation(*key[:2])


async def test_turn_is_open_for_grace(store: Store, url: str) -> None:
    """After that it is closed, whether it has a state or not; the database's clock says when."""
    key = await left(store, OWNER, uuid4())
    async with raw(url) as connection:
        for seconds, is_overdue in ((1, False), (GRACE.total_seconds() - 5, False), (GRACE.total_seconds(), True)):
            await connection.execute("UPDATE turns SET until = now() - $1::interval", timedelta(seconds=seconds))
            async with connection.transaction():
                row = await rows_of(connection).turn(key)
                assert row is not None
                assert (row.has_expired, row.is_overdue) == (True, is_overdue)
                assert await rows_of(connection).turns_of(key[:2]) == [row]
            assert await store.turns.expire_turn(*key) is is_overdue
    assert (await store.get_message(*key)).status is Status.INTERRUPTED
