"""The synchronous store keeps the contract of every port.

All of it, on each store, in `make apart`. Otherwise what calls each method and what the threads might break: on SQLite
in `make test`, on PostgreSQL in long runs.
"""

import asyncio
from functools import partial
from pathlib import Path

import pytest
from threaded_store import open_threaded

from chatkeep import Message, NewConversation, StoreUnavailable
from chatkeep.testing import DocumentContract, Opener, ProviderContract, StoreContract, TurnContract, numbered
from conftest import STORES
from servers.postgres import databases

TOPICS = {"PortContract", "IterationContract", "AccessContract", "TestSyncContract"}
"""Topics that always run."""

TESTS = {
    "test_a_closed_store_refuses_every_call_of_documents",
    "test_a_closed_store_refuses_every_call_of_providers",
    "test_a_closed_store_refuses_every_call_of_turns",
    "test_cancelled_append_is_stored_whole_or_not_at_all",
    "test_changing_a_provider",
    "test_conversations_name_the_replacement",
    "test_foreign_ids_are_free",
    "test_observer_of_documents",
}
"""Tests of other topics that always run."""


def marks_of(store: str, topic: str, test: str) -> list[pytest.MarkDecorator]:
    """When a test runs on a store."""
    if store in ("memory", "mongodb") or (topic not in TOPICS and test not in TESTS):
        return [pytest.mark.apart]
    return [] if store == "sqlite" else [pytest.mark.long]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on each store."""
    if "open_store_with" in metafunc.fixturenames:
        topic, test = metafunc.function.__qualname__.split(".")[:2]
        stores = [pytest.param(name, marks=marks_of(name, topic, test)) for name in STORES]
        metafunc.parametrize("open_store_with", stores, indirect=True)


class TestSyncContract(StoreContract, TurnContract, ProviderContract, DocumentContract):
    """The public suites."""

    @pytest.fixture
    def open_store_with(self, request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
        """Open the store of this run; PostgreSQL's is not emptied for each test, since the suites bear other data."""
        url = databases().used() if request.param == "postgres" else STORES[request.param](tmp_path)
        return partial(open_threaded, url)

    async def test_closing_finishes_the_writes_that_were_taken(self, open_store_with: Opener, owner: str) -> None:
        """Appends that are pending when the store is closed are stored, or refused if it was closed before."""

        async with open_store_with() as store:
            conversation = await store.create_conversation(owner, NewConversation())
            waiting = [asyncio.create_task(store.append(owner, conversation.id, numbered(2))) for _ in range(60)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            await store.aclose()
            ends: list[list[Message] | BaseException] = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(end) for end in ends} <= {list, StoreUnavailable}
        stored = sorted(message.seq for end in ends if isinstance(end, list) for message in end)
        assert stored == list(range(1, len(stored) + 1))
