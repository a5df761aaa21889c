"""The base class of the contract's topics, with their fixtures."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager

import pytest

from chatkeep.model import Conversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.messages import someone

type Opener = Callable[..., AbstractAsyncContextManager[Store]]
"""Takes store options as keywords; returns an async context manager of a store."""


class Contract:
    """Base class of the contract's topics."""

    @pytest.fixture
    def open_store_with(self) -> Opener:
        """Return the function that opens the store under test with given options."""
        raise NotImplementedError("a StoreContract needs the fixture open_store_with: see chatkeep.testing")

    @pytest.fixture
    async def store(self, open_store_with: Opener) -> AsyncIterator[Store]:
        """The store under test, with its default options."""
        async with open_store_with() as store:
            yield store

    @pytest.fixture
    def owner(self) -> str:
        """An owner that no other test uses."""
        return someone()

    @pytest.fixture
    async def conversation(self, store: Store, owner: str) -> Conversation:
        """An empty conversation of the owner's."""
        return await store.create_conversation(owner, NewConversation())
