"""`python -m chatkeep.api`: print the OpenAPI document, as in docs/openapi.json."""

import sys

from chatkeep.api.app import create_app
from chatkeep.api.openapi import document_text
from chatkeep.options import StoreOptions
from chatkeep.settings import Settings
from chatkeep.stores.memory.store import MemoryStore

if __name__ == "__main__":
    sys.stdout.write(document_text(create_app(MemoryStore("memory://", StoreOptions()), Settings())))
