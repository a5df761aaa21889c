"""Every store of chatkeep keeps the contract of the port."""

from collections import Counter
from functools import partial
from pathlib import Path

import pytest

from chatkeep import open_store
from chatkeep.testing import Opener, StoreContract
from conftest import STORES
from servers.postgres import databases

LONG_ON_MONGODB = (
    "test_cancelled_append_is_stored_whole_or_not_at_all",
    "test_cancelled_deletion_is_done_whole_or_not_at_all",
    "test_deep_alternation",
    "test_erasure_beside_other_owners",
    "test_id_of_a_deleted_conversation_can_be_used_again",
    "test_large_conversation_is_deleted_whole",
    "test_offsets_over_2500_messages_while_others_append",
    "test_owner_begins_anew",
    "test_paging_2500_messages_while_others_append",
    "test_random_trees_read_like_their_parents",
    "test_seqs_over_2500_messages_while_others_append",
    "test_writing_all_through_renames",
)
"""What takes the emulator of MongoDB 3 to 20 s each; marked `long` there."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run every test on each store."""
    if "open_store_with" in metafunc.fixturenames:
        long = {"mongodb"} if metafunc.function.__name__ in LONG_ON_MONGODB else set()
        stores = [pytest.param(name, marks=pytest.mark.long) if name in long else name for name in STORES]
        metafunc.parametrize("open_store_with", stores, indirect=True)


class TestStoreContract(StoreContract):
    """The public suite, on each store in tests/conftest.py."""

    @pytest.fixture
    def open_store_with(self, request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
        """Open the store of this run; PostgreSQL's is not emptied for each test, since the suite bears other data."""
        url = databases().used() if request.param == "postgres" else STORES[request.param](tmp_path)
        return partial(open_store, url)


def test_no_topic_hides_a_test_of_another() -> None:
    """The topics are the bases of one class: two tests of one name would be one."""
    names = Counter(name for topic in StoreContract.__bases__ for name in vars(topic) if not name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []
