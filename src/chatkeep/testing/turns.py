"""The contract of `Turns` as a pytest suite: `TurnContract`, which is used as `StoreContract` is."""

from chatkeep.testing.turn_ends import TurnEndContract
from chatkeep.testing.turn_events import TurnEventContract
from chatkeep.testing.turn_owners import TurnOwnerContract
from chatkeep.testing.turn_reads import TurnReadContract
from chatkeep.testing.turn_resumption import TurnResumptionContract
from chatkeep.testing.turn_starts import TurnStartContract
from chatkeep.testing.turn_stats import TurnStatsContract


class TurnContract(
    TurnStartContract,
    TurnEventContract,
    TurnReadContract,
    TurnEndContract,
    TurnResumptionContract,
    TurnOwnerContract,
    TurnStatsContract,
):
    """The contract in the docstrings of `Turns`, except for durability, which needs tests for each database."""
