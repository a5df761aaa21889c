"""Every store of chatkeep keeps the contract of the port of providers."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from chatkeep import open_store
from chatkeep.testing import DocumentContract, Opener, ProviderContract, StoreContract, TurnContract
from conftest import STORES
from servers.postgres import databases


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on each store."""
    if "open_store_with" in metafunc.fixturenames:
        long = {"postgres", "mongodb"}  # whose rows have tests of their own, which are always run
        stores = [pytest.param(name, marks=pytest.mark.long) if name in long else name for name in STORES]
        metafunc.parametrize("open_store_with", stores, indirect=True)


class TestProviderContract(ProviderContract):
    """The public suite, on each store in tests/conftest.py."""

    @pytest.fixture
    def open_store_with(self, request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
        """Open the store of this run; PostgreSQL's is not emptied for each test, since the suite bears other data."""
        url = databases().used() if request.param == "postgres" else STORES[request.param](tmp_path)
        return partial(open_store, url)


def test_no_topic_hides_a_test_of_another() -> None:
    """A store may have all suites in one class: two tests of one name would be one."""
    suites = (ProviderContract, DocumentContract, TurnContract, StoreContract)
    topics = [topic for suite in suites for topic in suite.__bases__]
    names = Counter(name for topic in topics for name in vars(topic) if not name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []
