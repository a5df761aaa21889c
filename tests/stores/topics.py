"""The contract of the port, divided for the ways to PostgreSQL that share most of its store.

Behind PgBouncer and on Citus only some operations take a way of their own. Their topics run in `make test`, those of
turns in `make check`, and the others in `make apart`.
"""

import pytest

from chatkeep.testing import DocumentContract, StoreContract, TurnContract
from chatkeep.testing.access import AccessContract
from chatkeep.testing.append import AppendContract
from chatkeep.testing.branches import BranchContract
from chatkeep.testing.contexts import ContextContract
from chatkeep.testing.conversations import ConversationContract
from chatkeep.testing.deleted_messages import DeletedMessageContract
from chatkeep.testing.erasure import EraseContract
from chatkeep.testing.external_ids import ExternalIdContract
from chatkeep.testing.history import HistoryContract
from chatkeep.testing.ids import IdContract
from chatkeep.testing.imports import ImportContract
from chatkeep.testing.iteration import IterationContract
from chatkeep.testing.labels import LabelContract
from chatkeep.testing.lists import ListContract
from chatkeep.testing.message_changes import MessageChangeContract
from chatkeep.testing.owners import OwnerContract
from chatkeep.testing.pages import PageContract
from chatkeep.testing.parts import PartContract
from chatkeep.testing.port import PortContract
from chatkeep.testing.projects import ProjectContract
from chatkeep.testing.removal import RemovalContract
from chatkeep.testing.search import SearchContract
from chatkeep.testing.turn_ends import TurnEndContract
from chatkeep.testing.turn_events import TurnEventContract
from chatkeep.testing.turn_owners import TurnOwnerContract
from chatkeep.testing.turn_reads import TurnReadContract
from chatkeep.testing.turn_resumption import TurnResumptionContract
from chatkeep.testing.turn_starts import TurnStartContract
from chatkeep.testing.turn_stats import TurnStatsContract
from chatkeep.testing.usage import UsageContract
from chatkeep.testing.values import ValueContract


class DifferentTopics(
    AppendContract,
    ConversationContract,
    DeletedMessageContract,
    EraseContract,
    SearchContract,
):
    """Append, get-or-create, removal and search."""


@pytest.mark.apart
class SharedTopics(
    PortContract,
    ContextContract,
    ExternalIdContract,
    ProjectContract,
    ListContract,
    LabelContract,
    HistoryContract,
    IterationContract,
    PageContract,
    BranchContract,
    OwnerContract,
    IdContract,
    ImportContract,
    MessageChangeContract,
    ValueContract,
    PartContract,
    UsageContract,
    RemovalContract,
    AccessContract,
):
    """Everything else."""


@pytest.mark.long
class DifferentTurnTopics(TurnStartContract, TurnEventContract, TurnResumptionContract, TurnEndContract):
    """Turns that begin, go on, also elsewhere, and end."""


@pytest.mark.apart
class SharedTurnTopics(TurnReadContract, TurnOwnerContract, TurnStatsContract):
    """Everything else of turns."""


@pytest.mark.apart
class DocumentTopics(DocumentContract):
    """Projects and documents."""


assert {*DifferentTopics.__bases__, *SharedTopics.__bases__} == {*StoreContract.__bases__}, "a topic is in neither"
assert {*DifferentTurnTopics.__bases__, *SharedTurnTopics.__bases__} == {*TurnContract.__bases__}, "so is one of turns"
