"""The contract of `Projects` and `Documents` as a pytest suite: `DocumentContract`, used as `StoreContract` is."""

from chatkeep.testing.document_owners import DocumentOwnerContract
from chatkeep.testing.document_reads import DocumentReadContract
from chatkeep.testing.document_uploads import UploadContract
from chatkeep.testing.document_vectors import VectorContract
from chatkeep.testing.project_store import ProjectStoreContract


class DocumentContract(
    ProjectStoreContract,
    UploadContract,
    DocumentReadContract,
    VectorContract,
    DocumentOwnerContract,
):
    """The contract in the docstrings of `Projects` and `Documents`, except for durability."""
