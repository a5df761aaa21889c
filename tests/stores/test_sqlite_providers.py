"""LLM providers in a SQLite file: one default, several processes, replacements while others write, plans."""

import asyncio
import random
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import apsw
import pytest
from left_turns import STATE, left

from chatkeep import Conflict, InvalidInput, NewConversation, Status, Store, open_store
from chatkeep.migrations import HEAD
from chatkeep.providers import EXTRACTIVE_ID, ApiConfig, LlmProviderChange, NewLlmProvider
from chatkeep.stores.sqlite.providers import REPLACE_PROVIDER, REPLACED, USES_PROVIDER
from chatkeep.testing import user
from chatkeep.turns import GRACE, TurnWrite
from chatkeep.values import now, to_micros

OWNER = "ada"
TEA, SAGE = UUID(int=1), UUID(int=2)
NAMED = NewConversation(llm_provider_id=TEA)
COUNT = "SELECT count(*) FROM conversations WHERE llm_provider_id = ?"
OTHER_DEFAULT = "INSERT INTO llm_providers VALUES (?, 'scripted', 'tea', 1, NULL, 1, 1)"
FILL = """
    WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT ?)
    INSERT INTO conversations (owner_id, id, metadata, fingerprint, llm_provider_id, created_at, updated_at)
    SELECT 'owner ' || (n % 10), randomblob(16), '{}', x'', ?, 1, 1 FROM numbers
"""
PROCESS = """
import asyncio, sys
from uuid import UUID
from chatkeep import InvalidInput, NewConversation, open_store
from chatkeep.providers import LlmProviderChange

async def default(store, id_):
    for _ in range(30):
        await store.providers.update_provider(id_, LlmProviderChange(is_default=True))

async def remove(store, removed, replacement):
    await store.providers.delete_provider(removed, replacement=replacement)

async def name(store, id_):
    while True:
        try:
            await store.create_conversation("ada", NewConversation(llm_provider_id=UUID(id_)))
        except InvalidInput:
            print("gone", flush=True)

async def main(role, url, *arguments):
    async with open_store(url) as store:
        await globals()[role](store, *arguments)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
def url(path: Path) -> str:
    """Its URL."""
    return f"sqlite:///{path}"


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store in this file, with two providers beside the default."""
    async with open_store(url) as store:
        for id_ in (TEA, SAGE):
            await store.providers.create_provider(NewLlmProvider(id=id_, provider_name="scripted", model_name="m"))
        yield store


def execute(path: Path, statement: str, *values: Any) -> list[Any]:
    """Look into a file, or change it, from outside."""
    with closing(apsw.Connection(str(path))) as connection:
        connection.set_busy_timeout(10_000)
        return cast("list[Any]", connection.execute(statement, values).fetchall())


def fill(path: Path, count: int) -> None:
    """Store conversations of ten owners that name a provider."""
    for number in range(10):
        execute(path, "INSERT INTO users VALUES (?)", f"owner {number}")
    execute(path, FILL, count, TEA.bytes)


async def started(role: str, url: str, *arguments: object) -> asyncio.subprocess.Process:
    """Another process, in one of the roles above."""
    command = (sys.executable, "-c", PROCESS, role, url, *map(str, arguments))
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def said(process: asyncio.subprocess.Process) -> set[str]:
    """Wait for the end of a process, and return what it said."""
    output, _ = await process.communicate()
    assert process.returncode == 0
    return set(output.decode().split())


# --- one default -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("there", [False, True], ids=["no provider", "another default"])
async def test_migration_adds_a_default_once(path: Path, url: str, *, there: bool) -> None:
    """Unless there is one; down and up again nothing is left but the first one."""
    async with open_store(url, migrate=False) as store:
        await store.migrate("0007")
        if there:
            execute(path, OTHER_DEFAULT, UUID(int=7).bytes)
        began = now()
        await store.migrate()
        await store.migrate()
        (default,) = await store.providers.list_providers()
        assert (default.id, default.is_default) == (UUID(int=7) if there else EXTRACTIVE_ID, True)
        assert there or began - timedelta(seconds=1) < default.created_at == default.updated_at <= now()
        assert execute(path, "SELECT * FROM chatkeep_schema") == [(HEAD, "0008")]
        talk = await store.create_conversation(OWNER, NewConversation(llm_provider_id=default.id))
        await store.migrate("0007")
        assert execute(path, "SELECT count(*) FROM llm_providers") == [(0,)]
        assert execute(path, "SELECT * FROM chatkeep_schema") == [("0007", "0006")]
        await store.migrate()
        assert [each.id for each in await store.providers.list_providers()] == [EXTRACTIVE_ID]
        assert (await store.get_conversation(OWNER, talk.id)).llm_provider_id is None


async def test_values_come_back(store: Store) -> None:
    """Also numbers of any size, and null again if all is as by default."""
    config = ApiConfig(
        base_url="https://llm.example/v1",
        settings={"stop_sequences": ["a\0b"], "seed": -(2**63), "top_p": 0.5},
        history_tokens=500,
    )
    new = NewLlmProvider(provider_name="ollama", model_name="caf\u00e9 \0", api_config=config)
    made = await store.providers.create_provider(new)
    assert await store.providers.get_provider(made.id) == made
    changed = await store.providers.update_provider(made.id, LlmProviderChange(model_name="x", api_config=ApiConfig()))
    assert await store.providers.get_provider(made.id) == changed
    assert (changed.model_name, changed.api_config) == ("x", ApiConfig())


async def test_file_refuses_a_second_default(store: Store, path: Path) -> None:
    """Whoever would make one beside the store."""
    with pytest.raises(apsw.ConstraintError, match="is_default"):
        execute(path, "UPDATE llm_providers SET is_default = 1 WHERE id = ?", TEA.bytes)
    assert sum(each.is_default for each in await store.providers.list_providers()) == 1


async def test_two_processes_make_different_ones_the_default(store: Store, path: Path, url: str) -> None:
    """At once, again and again: neither fails, and there is exactly one at any time."""
    processes = [await started("default", url, id_) for id_ in (TEA, SAGE)]
    running = asyncio.gather(*map(said, processes))
    while not running.done():
        assert execute(path, "SELECT count(*) FROM llm_providers WHERE is_default") == [(1,)]
        await asyncio.sleep(0.01)
    assert await running == [set(), set()]
    assert sum(each.is_default for each in await store.providers.list_providers()) == 1


# --- naming one that is being removed --------------------------------------------------------------------


async def test_removals_race_creations_of_another_process(store: Store, path: Path, url: str) -> None:
    """No conversation is left that names a provider which is gone; each of the two is in the way of the other."""
    process, refused = await started("name", url, TEA), 0
    while refused < 5:
        await store.providers.create_provider(NewLlmProvider(id=TEA, provider_name="scripted", model_name="m"))
        try:
            await store.providers.delete_provider(TEA)
        except Conflict:
            refused += 1
            await store.providers.delete_provider(TEA, replacement=SAGE)
        assert execute(path, COUNT, TEA.bytes) == [(0,)]
    assert process.stdout is not None
    assert await process.stdout.readline() == b"gone\n"
    process.kill()
    await process.communicate()
    assert execute(path, COUNT, TEA.bytes) == [(0,)]
    assert execute(path, COUNT, SAGE.bytes) != [(0,)]


# --- replacements ----------------------------------------------------------------------------------------


async def test_replacement_while_another_process_appends(store: Store, path: Path, url: str) -> None:
    """3,000 conversations get another provider, a few hundred at a time; appends to them go on."""
    fill(path, 3_000)
    keys = [(owner, UUID(bytes=id_)) for owner, id_ in execute(path, "SELECT owner_id, id FROM conversations")]
    random.shuffle(keys)
    removing = await started("remove", url, TEA, SAGE)
    waits: list[float] = []
    seen: set[int] = set()
    for owner, id_ in keys[:500]:
        began = time.monotonic()
        await store.append(owner, id_, [user("hello")])
        waits.append(time.monotonic() - began)
        seen.add(execute(path, COUNT, SAGE.bytes)[0][0])
    assert await said(removing) == set()
    assert max(waits) < 1 + 2 * sorted(waits)[len(waits) // 2]  # more if the machine has much to do
    assert all(count % REPLACED == 0 for count in seen)
    assert execute(path, COUNT, SAGE.bytes) == [(3_000,)]
    assert execute(path, "SELECT count(*) FROM messages") == [(500,)]
    assert execute(path, "SELECT count(*) FROM llm_providers WHERE id = ?", TEA.bytes) == [(0,)]
    assert execute(path, "SELECT count(*) FROM conversations WHERE updated_at = 1") == [(2_500,)]


async def test_killed_removal_is_finished_by_the_next_call(store: Store, path: Path, url: str) -> None:
    """Nobody sees the provider meanwhile, and the conversations that still name it get the replacement later."""
    fill(path, 40_000)
    process = await started("remove", url, TEA, SAGE)
    while execute(path, COUNT, SAGE.bytes) == [(0,)]:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0.001)
    process.kill()
    assert await process.wait() == -signal.SIGKILL
    assert execute(path, COUNT, TEA.bytes) != [(0,)]
    assert [each.id for each in await store.providers.list_providers()] == [EXTRACTIVE_ID, SAGE]
    with pytest.raises(InvalidInput):
        await store.create_conversation(OWNER, NAMED)
    with pytest.raises(Conflict):
        await store.providers.create_provider(NewLlmProvider(id=TEA, provider_name="scripted", model_name="m"))
    assert await store.providers.delete_provider(uuid4()) is False
    assert execute(path, COUNT, SAGE.bytes) == [(40_000,)]
    assert execute(path, "SELECT count(*) FROM llm_providers") == [(2,)]


@pytest.mark.parametrize("statement", [USES_PROVIDER, REPLACE_PROVIDER])
async def test_conversations_of_a_provider_are_found_in_the_index(store: Store, path: Path, statement: str) -> None:
    """Whatever the statistics say: here that all conversations name it."""
    fill(path, 5_000)
    execute(path, "ANALYZE")
    values = [TEA.bytes] if statement is USES_PROVIDER else [SAGE.bytes, TEA.bytes, REPLACED]
    lines = [line for *_, line in execute(path, f"EXPLAIN QUERY PLAN {statement}", *values)]
    assert "SEARCH conversations USING COVERING INDEX conversations_by_provider (llm_provider_id=?)" in lines
    assert [line for line in lines if "SCAN" in line] == []


# --- turns that another worker goes on with --------------------------------------------------------------


async def test_one_of_two_workers_resumes_a_turn(store: Store, url: str) -> None:
    """The other one gets nothing, and the first worker has lost it."""
    async with open_store(url) as other:
        gone, *workers = uuid4(), uuid4(), uuid4()
        key = await left(store, OWNER, gone)
        found = await asyncio.gather(
            store.turns.resume_turn(*key, worker=workers[0]), other.turns.resume_turn(*key, worker=workers[1])
        )
        (resumed,) = [each for each in found if each is not None]
        assert (resumed.question.content, list(resumed.events)) == ("why?", [STATE])
        states = [
            (await store.turns.append_turn_events(worker, [TurnWrite(key)]))[key].name for worker in (gone, *workers)
        ]
        assert states[0] == "LOST"
        assert sorted(states) == ["LOST", "LOST", "RUNNING"]
        assert await other.turns.resume_turn(*key, worker=uuid4()) is None  # the lease is a new one


async def test_turn_is_open_for_grace(store: Store, path: Path) -> None:
    """After that it is closed, whether it has a state or not."""
    key = await left(store, OWNER, uuid4())
    for seconds, is_overdue in ((1, False), (GRACE.total_seconds() - 5, False), (GRACE.total_seconds(), True)):
        execute(path, "UPDATE turns SET until = ?", to_micros(now() - timedelta(seconds=seconds)))
        assert await store.turns.expire_turn(*key) is is_overdue
    assert (await store.get_message(*key)).status is Status.INTERRUPTED
