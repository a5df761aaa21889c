"""The MCP server over HTTP: one JSON-RPC message in each POST, answered with JSON, without sessions.

The middleware has admitted the request before: whom it comes from, which hosts and origins may, how many and how large
requests may be. The SDK's own checks of these are off.
"""

import asyncio
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from starlette.types import Message, Receive, Scope, Send

from chatkeep.api.admission import MCP
from chatkeep.api.body import check_media_type
from chatkeep.api.dependencies import Owner
from chatkeep.api.document_services import DocumentServices
from chatkeep.api.errors import Refused
from chatkeep.api.negotiation import JSON
from chatkeep.errors import Unauthenticated
from chatkeep.store import Store
from chatkeep.values import MAX_JSON_DEPTH, BeyondLimits, check_structure

if TYPE_CHECKING:
    from mcp.server.context import ServerRequestContext
    from mcp.server.lowlevel import Server

    from chatkeep.api.auth import Principal
    from chatkeep.retrieval.search import Retrieval

router = APIRouter()

MAX_VALUES = 1_000
"""Most JSON values of a message: no tool takes a list. The SDK parses and copies a message several times."""


class McpService:
    """The MCP server of one application, made by the first request."""

    def __init__(self, store: Store, documents: DocumentServices) -> None:
        self._store = store
        self._documents = documents
        self._made: Server[Any] | None = None
        self._making = asyncio.Lock()

    async def made(self) -> "Server[Any]":
        """Return the server. The first call imports the SDK, for most of a second, beside the loop."""
        async with self._making:
            if self._made is None:
                build = (await asyncio.to_thread(import_module, "chatkeep.mcp")).build_server
                self._made = build(self._store, self._retrieval, _principal_of)
            return self._made

    async def _retrieval(self) -> "Retrieval":
        return (await self._documents.made()).retrieval


def _principal_of(context: "ServerRequestContext[Any, Any]") -> "Principal":
    """Return the principal that the middleware has set."""
    principal: Principal | None = getattr(context.request.state, "principal", None) if context.request else None
    if principal is None:
        raise Unauthenticated("send a token or an API key, with the header Authorization: Bearer …")
    return principal


async def service_of_app(request: Request) -> McpService:
    """Return the MCP server of the application."""
    service: McpService = request.app.state.mcp
    return service


class Exchange(Response):
    """What the MCP server answers to one message."""

    def __init__(self, server: "Server[Any]", body: bytes) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers()
        self._server = server
        self._given = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the SDK answer. Its tasks are this request's: none outlives it."""
        from mcp.server.streamable_http_manager import StreamableHTTPSessionManager

        is_read = False

        async def received() -> Message:
            nonlocal is_read
            if is_read:
                return await receive()
            is_read = True
            return {"type": "http.request", "body": self._given, "more_body": False}

        manager = StreamableHTTPSessionManager(self._server, stateless=True, json_response=True)
        async with manager.run():
            await manager.handle_request(scope, received, send)


@router.post(MCP, include_in_schema=False)
async def mcp(request: Request, _owner: Owner, service: Annotated[McpService, Depends(service_of_app)]) -> Response:
    """Answer a message of an MCP client."""
    check_media_type(request, {JSON})
    body = await request.body()
    try:
        check_structure(body, MAX_VALUES, MAX_JSON_DEPTH)
    except BeyondLimits as error:
        raise Refused(422, f"the body {error}") from None
    return Exchange(await service.made(), body)
