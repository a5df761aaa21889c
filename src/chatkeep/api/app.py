"""The HTTP application: the one place where routes, errors, the guard and the store come together."""

from typing import Any

from fastapi import FastAPI

from chatkeep.api import conversations, docs, health, messages, search
from chatkeep.api.errors import add_handlers
from chatkeep.api.guard import Guard
from chatkeep.api.openapi import DESCRIPTION, document
from chatkeep.settings import Settings
from chatkeep.store import Store

VERSION = "1"
"""The version of the API, under /api: it only ever gets additions."""


class Api(FastAPI):
    """The FastAPI application, with its own OpenAPI document."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self)
        return self.openapi_schema


def create_app(store: Store, settings: Settings) -> FastAPI:
    """Return the application that serves `store`, which its caller opens before and closes after."""
    app = Api(
        title="chatkeep",
        version=VERSION,
        description=DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.store = store
    app.add_middleware(
        Guard, allowed_hosts=[settings.host, *settings.allowed_hosts], max_body_bytes=settings.max_body_bytes
    )
    add_handlers(app)
    for module in (conversations, messages, search, health, docs):
        app.include_router(module.router)
    return app
