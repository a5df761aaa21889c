"""The HTTP application: the one place where routes, errors, middleware and the store come together."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from fastapi import FastAPI, Request, Response
from fastapi.middleware.cors import CORSMiddleware

from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.provider import Provider
from chatkeep.answers.runner import TurnRunner
from chatkeep.api import metrics, swagger
from chatkeep.api.admission import Admission
from chatkeep.api.answering import Answering, ReplyTimes
from chatkeep.api.auth import Authenticator
from chatkeep.api.body_budget import BodyBudget
from chatkeep.api.client_address import ClientAddress
from chatkeep.api.document_services import DocumentServices
from chatkeep.api.errors import add_handlers
from chatkeep.api.idempotency import REPLAYED, sweep
from chatkeep.api.middleware import MOUNT, RequestMiddleware, Shutdown
from chatkeep.api.openapi import DESCRIPTION, document
from chatkeep.api.providing import provider_of
from chatkeep.api.rate_limit import RateLimiters, rate_limiters
from chatkeep.api.routes import (
    answers,
    conversations,
    documents,
    health,
    mcp,
    me,
    messages,
    projects,
    providers,
    search,
    stats,
)
from chatkeep.api.tracing import FASTAPI_TELEMETRY
from chatkeep.api.uploads import Uploads
from chatkeep.settings import Settings
from chatkeep.store import Store

if TYPE_CHECKING:
    from chatkeep.retrieval.embedding import Embedders

VERSION = "1"
"""The version of the API under /api. Changes are additions only."""

EXPOSED = [
    "Location", "X-Request-ID", "Retry-After", "RateLimit", "RateLimit-Policy", REPLAYED, "Preference-Applied"
]  # fmt: skip
"""The headers that pages of other origins may read."""


MCP_HEADERS = ["MCP-Protocol-Version", "Mcp-Method", "Mcp-Name"]
"""The headers that MCP clients in pages of other origins send."""


class Api(FastAPI):
    """The FastAPI application, with its own OpenAPI document."""

    has_run = False
    """Whether it is or has been `running`: afterwards it answers no questions any more."""

    def openapi(self) -> dict[str, Any]:
        """Return the document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = document(self)
        return self.openapi_schema

    @cached_property
    def openapi_bytes(self) -> bytes:
        """The document as JSON: anybody may ask for it, and making 80 kB of it anew takes milliseconds."""
        return json.dumps(self.openapi(), separators=(",", ":")).encode()


def create_app(
    store: Store,
    settings: Settings,
    provider: Provider | None = None,
    embedders: "Embedders | None" = None,
    *,
    limits: TurnLimits | None = None,
    times: ReplyTimes | None = None,
) -> FastAPI:
    """Return the application that serves `store`, and with embedders makes vectors.

    A provider makes the answers instead of what the settings say. The caller opens and closes the store, and in between
    has the application `running`. What the settings do not say of turns and replies is in `limits` and `times`.
    Raises TypeError for what is no opened, asynchronous store.
    """
    if not isinstance(store, Store):
        raise TypeError(
            f"create_app takes a store, as `async with open_store(url) as store` has it, not {_name(store)}"
        )
    app = Api(
        title="chatkeep",
        version=VERSION,
        description=DESCRIPTION,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=FASTAPI_TELEMETRY,
        generate_unique_id_function=lambda route: route.name,
    )
    app.state.store = store
    app.state.drain_seconds = settings.drain_seconds
    app.state.max_json_values = settings.max_json_values
    app.state.has_strict_roles = settings.has_strict_roles
    limiters = rate_limiters(settings)
    _add_middleware(app, store, settings, limiters)
    app.state.uploads = Uploads(settings.max_upload_bytes)
    app.state.documents = DocumentServices(store, settings, embedders)
    app.state.mcp = mcp.McpService(store, app.state.documents)
    provider = provider or provider_of(settings, app.state.documents)
    app.state.turns = _runner(store, settings, provider, limits or TurnLimits())
    times = times or ReplyTimes()
    app.state.answering = Answering(store, app.state.turns, limiters.turns, times, settings.max_streams)
    add_handlers(app)
    store.observer = metrics.StoreMetrics()
    _add_routes(app, settings)
    return app


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


@asynccontextmanager
async def running(app: FastAPI, *, drain: float | None = None) -> AsyncIterator[None]:
    """Make the answers of an application of `create_app`, and close what it has opened at the end.

    Enter it in the lifespan of your own application, once, while the store is open: an application that is mounted has
    no lifespan. At the end answers have `drain` seconds to be finished, or CHATKEEP_DRAIN; others are interrupted.
    Raises TypeError for another application, and RuntimeError the second time.
    """
    if not isinstance(app, Api):
        raise TypeError("`running` takes the application that create_app returned, not the one that it is mounted in")
    if app.has_run:
        raise RuntimeError("this application has been running; make another one with create_app")
    app.has_run = True
    state = app.state
    sweeping = asyncio.create_task(sweep(state.store.access), name="chatkeep-sweep")
    state.turns.start()
    try:
        yield
    finally:
        state.shutdown.begin()
        sweeping.cancel()
        await state.turns.aclose(state.drain_seconds if drain is None else drain)
        if state.turns.provider is not None:
            await state.turns.provider.aclose()
        for each in (state.uploads, state.documents, state.admission):
            await each.aclose()


def _runner(store: Store, settings: Settings, provider: Provider | None, limits: TurnLimits) -> TurnRunner:
    """What makes the answers of the application, with limits of which the settings say some."""
    lease = timedelta(seconds=settings.turn_lease)
    runner = TurnRunner(store, provider, replace(limits, lease=lease, turns=settings.max_turns))
    runner.observer = metrics.TurnMetrics()
    return runner


def _add_routes(app: FastAPI, settings: Settings) -> None:
    # Matched in this order: the routes of messages get most requests.
    modules = (
        messages,
        conversations,
        search,
        answers,
        documents,
        projects,
        providers,
        stats,
        me,
        mcp,
        health,
        swagger,
        *([metrics] if settings.metrics else []),
    )
    for module in modules:
        app.include_router(module.router)
    app.include_router(documents.uploads)
    app.add_api_route("/api/openapi.json", _openapi, include_in_schema=False)
    app.add_api_route("/", _to_docs, include_in_schema=False)


async def _openapi(request: Request) -> Response:
    document: bytes = request.app.openapi_bytes
    if mount := request.scope.get(MOUNT):  # its paths are below the one of the mount
        document = (
            b'{"servers":' + json.dumps([{"url": quote(mount)}], separators=(",", ":")).encode() + b"," + document[1:]
        )
    return Response(document, media_type="application/json")


async def _to_docs() -> Response:
    """Lead to the documentation of the API."""
    return Response(status_code=307, headers={"Location": "/api/docs"})


def _add_middleware(app: FastAPI, store: Store, settings: Settings, limiters: RateLimiters) -> None:
    """Add the middleware. The one added last is the outermost."""
    app.state.shutdown = Shutdown()
    app.state.erasures = limiters.erasure
    app.state.admission = Admission(
        Authenticator(settings, store.access), ClientAddress(settings.proxy_networks), limiters
    )
    app.add_middleware(
        RequestMiddleware,
        store=store,
        admission=app.state.admission,
        shutdown=app.state.shutdown,
        allowed_hosts=[settings.host, *settings.allowed_hosts],
        allowed_origins=settings.cors_origins,
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.max_upload_bytes,
        bodies=BodyBudget(settings.body_memory_bytes, settings.max_body_bytes),
        max_requests=settings.max_requests,
        max_streams=settings.max_streams,
    )
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "PATCH", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer", *MCP_HEADERS],
            expose_headers=EXPOSED,
        )
