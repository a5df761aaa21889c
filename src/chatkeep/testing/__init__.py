"""The contracts of `Store`, and of its `turns`, `providers`, `projects` and `documents`, as pytest suites: for the
stores of chatkeep, and for one of your own.

    from chatkeep.testing import StoreContract

    class TestMyStore(StoreContract):  # and ones with TurnContract, ProviderContract, DocumentContract
        @pytest.fixture
        def open_store_with(self, tmp_path):
            return lambda **options: open_my_store(tmp_path / "chat", **options)

`open_store_with` returns a function that takes the options of `StoreOptions` and returns an async context manager.
Every test has owners of its own: the store may hold other data, and may be shared by the tests. Providers have none:
the tests of ProviderContract begin with those of a new store, leave them so, and need that nobody else changes them.

Needs the extra `testing` (pip install 'chatkeep[testing]') and `asyncio_mode = "auto"` in pytest's settings. The number
of examples of property tests is that of hypothesis' active profile. For better failure messages, call
`pytest.register_assert_rewrite("chatkeep.testing")` in your conftest.py.
"""

try:
    import hypothesis  # noqa: F401 - to check that it is installed
    import pytest  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"chatkeep.testing needs {error.name}, a part of the extra `testing`: pip install 'chatkeep[testing]'",
        name=error.name,
    ) from error

from chatkeep.answers.scripted import ScriptedProvider
from chatkeep.testing.access import AccessContract
from chatkeep.testing.append import AppendContract
from chatkeep.testing.branches import BranchContract
from chatkeep.testing.calls import CONVERSATION_CALLS, OWNER_CALLS, PROJECT_CALLS, PROVIDER_CALLS, TURN_CALLS
from chatkeep.testing.contexts import ContextContract
from chatkeep.testing.contract import Opener
from chatkeep.testing.conversations import ConversationContract
from chatkeep.testing.deleted_messages import DeletedMessageContract
from chatkeep.testing.documents import DocumentContract
from chatkeep.testing.erasure import EraseContract
from chatkeep.testing.examples import SENTENCES
from chatkeep.testing.external_ids import ExternalIdContract
from chatkeep.testing.history import HistoryContract
from chatkeep.testing.ids import IdContract
from chatkeep.testing.imports import ImportContract
from chatkeep.testing.iteration import IterationContract
from chatkeep.testing.labels import LabelContract
from chatkeep.testing.lists import ListContract
from chatkeep.testing.message_changes import MessageChangeContract
from chatkeep.testing.messages import assistant, contents, dense, numbered, seqs, someone, user
from chatkeep.testing.owners import OwnerContract
from chatkeep.testing.pages import PageContract
from chatkeep.testing.parts import PartContract
from chatkeep.testing.port import PortContract
from chatkeep.testing.projects import ProjectContract
from chatkeep.testing.providers import ProviderContract
from chatkeep.testing.reference import (
    by_time,
    found,
    others_appending,
    path_to,
    selected,
    siblings_of,
    whole_history,
    whole_list,
    whole_log,
    whole_search,
    whole_siblings,
)
from chatkeep.testing.removal import RemovalContract
from chatkeep.testing.search import SearchContract
from chatkeep.testing.turns import TurnContract
from chatkeep.testing.usage import UsageContract
from chatkeep.testing.values import ValueContract

__all__ = [
    "CONVERSATION_CALLS",
    "OWNER_CALLS",
    "PROJECT_CALLS",
    "PROVIDER_CALLS",
    "SENTENCES",
    "TURN_CALLS",
    "DocumentContract",
    "Opener",
    "ProviderContract",
    "ScriptedProvider",
    "StoreContract",
    "TurnContract",
    "assistant",
    "by_time",
    "contents",
    "dense",
    "found",
    "numbered",
    "others_appending",
    "path_to",
    "selected",
    "seqs",
    "siblings_of",
    "someone",
    "user",
    "whole_history",
    "whole_list",
    "whole_log",
    "whole_search",
    "whole_siblings",
]


class StoreContract(
    PortContract,
    AppendContract,
    ConversationContract,
    ListContract,
    LabelContract,
    ContextContract,
    ExternalIdContract,
    ProjectContract,
    HistoryContract,
    IterationContract,
    PageContract,
    BranchContract,
    ImportContract,
    OwnerContract,
    IdContract,
    DeletedMessageContract,
    MessageChangeContract,
    ValueContract,
    PartContract,
    UsageContract,
    SearchContract,
    EraseContract,
    RemovalContract,
    AccessContract,
):
    """The contract in the docstrings of `Store`, except for durability, which needs tests for each database."""
