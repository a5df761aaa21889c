"""The HTTP application: the one place where routes, errors, the guard and the store come together."""

from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware

from chatkeep.api import metrics, swagger
from chatkeep.api.admission import Door
from chatkeep.api.auth import Authenticator
from chatkeep.api.errors import add_handlers
from chatkeep.api.idempotency import REPLAYED
from chatkeep.api.middleware import Guard, Stopping
from chatkeep.api.openapi import DESCRIPTION, document
from chatkeep.api.rate_limit import Quota
from chatkeep.api.routes import conversations, health, me, messages, search
from chatkeep.api.tracing import OF_FASTAPI
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
        telemetry=OF_FASTAPI,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.store = store
    app.state.stopping = stopping = Stopping()
    app.state.door = Door(Authenticator(settings, store.access), *quotas_of(settings))
    app.add_middleware(
        Guard,
        store=store,
        door=app.state.door,
        stopping=stopping,
        allowed_hosts=[settings.host, *settings.allowed_hosts],
        allowed_origins=settings.cors_origins,
        max_body_bytes=settings.max_body_bytes,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key"],
            expose_headers=["Location", "X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy", REPLAYED],
        )
    add_handlers(app)
    store.observer = metrics.StoreMetrics()
    # The routes are tried in this order: those of messages are asked for most.
    modules = (messages, conversations, search, me, health, swagger, *([metrics] if settings.metrics else []))
    for module in modules:
        app.include_router(module.router)
    return app


def quotas_of(settings: Settings) -> tuple[Quota | None, Quota]:
    """How many requests each owner has, and each address that is refused. Raises InvalidInput for what is no rate."""
    storage, share = settings.rate_limit_storage, settings.workers
    quota = Quota(settings.requests, storage, share=share) if settings.requests else None
    return quota, Quota(settings.failure_limit, storage, share=share, kind="address")
