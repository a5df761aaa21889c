"""`python -m chatkeep.api`: print the OpenAPI document as it is kept in docs/openapi.json."""

import sys

from chatkeep.api.app import create_app
from chatkeep.api.openapi import text
from chatkeep.settings import Settings
from chatkeep.store import StoreOptions
from chatkeep.stores.memory import MemoryStore

if __name__ == "__main__":
    sys.stdout.write(text(create_app(MemoryStore("memory://", StoreOptions()), Settings())))
