"""Every store of chatkeep keeps the contract of the port."""

from functools import partial

import pytest

from chatkeep import open_store
from chatkeep.testing import Opener, StoreContract


class TestStoreContract(StoreContract):
    """The public suite, on each store in tests/conftest.py."""

    @pytest.fixture
    def open_store_with(self, store_url: str) -> Opener:
        """Open the store of this run."""
        return partial(open_store, store_url)
