"""Opening a store: URLs, options, and what is closed when."""

import importlib
import importlib.metadata
import runpy
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import chatkeep.testing
from chatkeep import InvalidInput, NewConversation, Store, StoreUnavailable, open_store
from chatkeep.options import StoreOptions
from chatkeep.store import ADAPTERS, MAX_LIMIT, MAX_OFFSET
from chatkeep.testing import user

OWNER = "ada"


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Fail a test after which a thread of its stores still runs."""
    before = set(threading.enumerate())
    yield
    left = set(threading.enumerate()) - before
    assert [thread.name for thread in left if thread.name.startswith("chatkeep")] == []


async def test_store_that_is_awaited_is_closed_by_hand(store_url: str) -> None:
    """`await open_store(...)` gives a store that stays open until aclose."""
    store = await open_store(store_url)
    await store.create_conversation(OWNER, NewConversation())
    await store.aclose()
    with pytest.raises(StoreUnavailable, match="closed"):
        await store.list_conversations(OWNER)


async def test_store_in_a_block_is_closed_at_its_end(store_url: str) -> None:
    """`async with open_store(...)` closes the store, also when the block ends with an error, which goes on."""
    stores: list[Store] = []

    async def fail() -> None:
        async with open_store(store_url) as store:
            stores.append(store)
            await store.create_conversation(OWNER, NewConversation())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    with pytest.raises(StoreUnavailable, match="closed"):
        await stores[0].ping()


async def test_failed_opening_leaves_nothing_behind(tmp_path: Path) -> None:
    """Where a store cannot be opened no thread of it stays."""
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await open_store(f"sqlite:///{tmp_path}/missing/chat.db")
        with pytest.raises(StoreUnavailable):
            async with open_store(f"sqlite:///{tmp_path}/missing/chat.db"):
                pass


async def test_keyword_goes_before_the_url(tmp_path: Path) -> None:
    """An option that is given as keyword and in the URL is what the keyword says; other options of the URL stay."""
    url = f"sqlite:///{tmp_path}/chat.db?max_content_chars=3&search=off"
    async with open_store(url, max_content_chars=5) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, [user("12345")])
        with pytest.raises(InvalidInput, match="at most 5"):
            await store.append(OWNER, talk.id, [user("123456")])
        with pytest.raises(InvalidInput, match="search=off"):
            await store.search_messages(OWNER, "tea")


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("sqlite://chat.db", "three slashes"),
        ("sqlite:///", "needs a file"),
        ("sqlite:///:memory:", "memory://"),
        ("mysql:///chat.db", "sqlite://"),
        ("chat.db", "must begin with"),
        ("sqlite:///chat.db?serach=off", "serach.*options are"),
        ("sqlite:///chat.db?search=maybe", "search"),
        ("sqlite:///chat.db?max_content_chars=-1", "max_content_chars"),
        ("sqlite:///chat.db?write_timeout=0", "write_timeout"),
        ("sqlite:///chat.db?synchronous=off", "synchronous"),
        ("memory:///chat.db", "no path"),
    ],
)
async def test_urls_that_are_wrong(url: str, complaint: str) -> None:
    """A URL or option that is not known is InvalidInput, which names what is wrong."""
    with pytest.raises(InvalidInput, match=complaint):
        await open_store(url)


async def test_paths_with_rare_characters(tmp_path: Path) -> None:
    """A path may have blanks, accents and percent signs, as a URL writes them."""
    async with open_store(f"sqlite:///{tmp_path}/my%20caf%C3%A9%20100%25.db?search=off"):
        assert (tmp_path / "my café 100%.db").exists()


def test_every_adapter_is_a_store() -> None:
    """Each scheme names a class that implements the whole port."""
    for adapter in ADAPTERS.values():
        module, name = adapter.split(":")
        kind = getattr(importlib.import_module(module), name)
        assert issubclass(kind, Store)
        assert not kind.__abstractmethods__


def test_bounds_of_the_port() -> None:
    """The numbers in the docstrings of the port are the numbers that are used."""
    documented = " ".join(str(getattr(Store, name).__doc__) for name in Store.__abstractmethods__)
    assert f"limit is 1 to {MAX_LIMIT:,}" in documented
    assert f"offset 0 to {MAX_OFFSET:,}" in documented
    assert StoreOptions().max_content_chars == 10_000
    assert len(Store.__abstractmethods__) <= 29


@pytest.mark.parametrize("missing", ["pytest", "hypothesis"])
def test_contract_says_what_it_needs(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """Without pytest or hypothesis chatkeep.testing names the extra that brings them, which exists."""
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs {missing}.*pip install 'chatkeep\[testing\]'"):
        runpy.run_path(str(chatkeep.testing.__file__))
    assert "testing" in (importlib.metadata.metadata("chatkeep").get_all("Provides-Extra") or [])
