"""The contract of `Providers` as a pytest suite: `ProviderContract`, which is used as `StoreContract` is.

Providers belong to the installation: no other process may change them meanwhile. Every test leaves them as it found
them.
"""

from chatkeep.testing.provider_conversations import ProviderConversationContract
from chatkeep.testing.provider_removal import ProviderRemovalContract
from chatkeep.testing.provider_store import ProviderStoreContract


class ProviderContract(ProviderStoreContract, ProviderRemovalContract, ProviderConversationContract):
    """The contract in the docstrings of `Providers`, except for durability."""
