"""The checks before every request, and the headers, log line, counters and span of every response.

Every web page that a user visits can send requests to a server on loopback. The check of the Host header stops DNS
rebinding: a page whose own name resolves to 127.0.0.1. The checks of Origin and `Sec-Fetch-Site` stop cross-site
request forgery, and pages that measure how long a search takes, which tells what was said although the answer is
kept from them. Browsers older than Fetch Metadata (Safari before 16.4) do not say which page a GET without Origin is
for.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatkeep.api.admission import SAFE_METHODS, Admission, is_protected, rate_limit_headers
from chatkeep.api.errors import RETRY_AFTER, Refused, problem
from chatkeep.api.logs import FIELDS, owner_hash
from chatkeep.api.metrics import count_request
from chatkeep.api.tracing import span
from chatkeep.store import Store

logger = logging.getLogger(__name__)
requests_logger = logging.getLogger("chatkeep.requests")

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}
ANY_HOST = ("/healthz", "/readyz", "/metrics")
"""Paths that answer to any Host: orchestrators and Prometheus ask by address. They tell nothing that is stored."""

AUTHORITY = re.compile(r"(?:(?P<name>[^\s:/?#@\[\]]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{0,5}))?")


SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
DATA_POLICY = b"default-src 'none'; frame-ancestors 'none'"
PAGE_POLICY = (
    b"default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
    b" frame-ancestors 'none'"
)
"""The content security policy of the one HTML page, /api/docs."""

EVENT_STREAM = b"text/event-stream"


class Shutdown:
    """Whether the server is shutting down, and the event streams to end then."""

    def __init__(self) -> None:
        self.has_begun = False
        self.streams: set[asyncio.Task[object]] = set()
        """The tasks of requests that are answered with an event stream, which may never end by itself."""

    def begin(self) -> None:
        """Refuse new requests, and end the event streams."""
        self.has_begun = True
        for task in self.streams:
            task.cancel()


class RequestMiddleware:
    """ASGI middleware around the whole application.

    - 421 for a Host that is not allowed, 403 for a page of another site, as far as that is not public.
    - 401, 403, 429 and 503 for a request that is not admitted.
    - 413 for a body above the limit, as soon as that is known.
    - HEAD is answered like GET, without the body.
    - `X-Request-ID` and security headers on every response; a log line, counters and a span.
    - 500 for unexpected errors, logged with their traceback.
    - During the shutdown: 503 for new requests and for those that took too long, and an end for event streams.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        admission: Admission,
        shutdown: Shutdown,
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str],
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._store = store
        self._admission = admission
        self._shutdown = shutdown
        self._allowed_hosts = {*LOOPBACK_NAMES, *map(_allowed_name, allowed_hosts)} - {""}
        self._allowed_origins = set(allowed_origins)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        response, started_at = _ResponseWriter(scope, send, self._shutdown), time.perf_counter()
        with span(scope["method"], scope["headers"]) as traced:
            try:
                await self._respond(scope, receive, response)
            except Exception:
                # repr: line breaks in a path could forge log entries.
                logger.exception("request %s failed: %s %r", response.request_id, scope["method"], scope["path"])
                if response.started:
                    raise
                await problem(500)(scope, receive, response.send)
            finally:
                self._record(scope, response, time.perf_counter() - started_at)
                traced.end(scope["method"], _route(scope), response.status)

    async def _respond(self, scope: Scope, receive: Receive, response: "_ResponseWriter") -> None:
        refusal = await self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, response.send)
            return
        # A copy: the server still has to know that the method is HEAD.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, self._limited(receive), response.send)
        except asyncio.CancelledError:
            if not self._shutdown.has_begun or (response.started and not response.is_event_stream):
                raise
            response.task.uncancel()
            if response.started:
                await response.end()
            else:
                await stopping()(scope, receive, response.send)
        finally:
            scope["route"] = inner.get("route")
            self._shutdown.streams.discard(response.task)

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return the response to a request that must not reach the application."""
        if self._shutdown.has_begun:
            return stopping()
        hosts = _values(scope, b"host")
        host = hosts[0] if len(hosts) == 1 else ""
        if scope["path"] not in ANY_HOST and _host_and_port(host)[0] not in self._allowed_hosts:
            return problem(421)
        is_public = scope["method"] in SAFE_METHODS and not is_protected(scope["path"])
        if not is_public and self._is_cross_site(scope, host):
            return problem(403, "requests are not taken from pages of other sites; CHATKEEP_CORS_ORIGINS adds origins")
        refusal = await self._admission.admit(scope)
        if refusal is not None:
            return refusal
        lengths = _values(scope, b"content-length")
        if lengths and lengths[0].isdecimal() and int(lengths[0]) > self._max_body_bytes:
            return problem(413, self._too_large)
        return None

    def _is_cross_site(self, scope: Scope, host: str) -> bool:
        """Whether a page of another site sent the request, and its origin is not allowed."""
        if not _is_cross_site(scope, host):
            return False
        origins = _values(scope, b"origin")
        is_allowed = "*" in self._allowed_origins or self._allowed_origins.issuperset(origins)
        return not (origins and is_allowed)

    @property
    def _too_large(self) -> str:
        return f"the body may have at most {self._max_body_bytes:,} bytes; send less at a time"

    def _limited(self, receive: Receive) -> Receive:
        """Return `receive` with a limit on the body's size: a chunked body has no Content-Length."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                raise Refused(413, self._too_large)
            return message

        return limited

    def _record(self, scope: Scope, response: "_ResponseWriter", seconds: float) -> None:
        """Count the request, and log it."""
        route = _route(scope)
        count_request(self._store, scope["method"], route, response.status, seconds)
        if not requests_logger.isEnabledFor(logging.INFO):
            return
        principal = scope.get("state", {}).get("principal")
        fields = {
            "request": response.request_id,
            "method": scope["method"],
            "route": route or "-",
            "status": response.status,
            "ms": round(seconds * 1e3, 1),
            "owner": owner_hash(principal.owner) if principal else "-",
        }
        requests_logger.info("answered", extra={FIELDS: fields})


def stopping() -> Response:
    """The response to a request that the server cannot answer because it shuts down."""
    return problem(503, headers={**RETRY_AFTER, "Connection": "close"})


def _route(scope: Scope) -> str | None:
    """Return the path template of the matched route, which has no ids in it."""
    route = scope.get("route")
    return getattr(route, "path", None)


class _ResponseWriter:
    """Sends the response: adds headers, and drops the body if the method is HEAD."""

    def __init__(self, scope: Scope, send: Send, shutdown: Shutdown) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a running coroutine has a task
        self.task = task
        self.request_id = secrets.token_hex(8)
        self.started = False
        self.status = 500
        self.is_event_stream = False
        self._scope = scope
        self._send = send
        self._shutdown = shutdown
        self._ended = False
        self._is_head = scope["method"] == "HEAD"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = list(message.get("headers", ()))
            self.is_event_stream = any(k == b"content-type" and v.startswith(EVENT_STREAM) for k, v in headers)
            if self.is_event_stream:
                self._shutdown.streams.add(self.task)
            message = {**message, "headers": [*headers, *self._extra_headers(headers)]}
        else:
            self._ended = not message.get("more_body", False)
            if self._is_head:
                message = {**message, "body": b""}
        await self._send(message)

    async def end(self) -> None:
        """End a response that has started."""
        if self.started and not self._ended:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _extra_headers(self, given: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        yield b"x-request-id", self.request_id.encode()
        yield from SECURITY_HEADERS
        is_page = any(name == b"content-type" and value.startswith(b"text/html") for name, value in given)
        yield b"content-security-policy", PAGE_POLICY if is_page else DATA_POLICY
        if is_protected(self._scope["path"]):
            yield b"cache-control", b"no-store"
            for name, value in rate_limit_headers(self._scope).items():
                yield name.lower().encode(), value.encode()


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _is_cross_site(scope: Scope, host: str) -> bool:
    """Whether a browser sent the request for a page of another site. Other clients send neither header."""
    if any(site in ("cross-site", "same-site") for site in _values(scope, b"sec-fetch-site")):
        return True
    return not all(_is_own_origin(origin, host) for origin in _values(scope, b"origin"))


def _is_own_origin(origin: str, host: str) -> bool:
    scheme, _, authority = origin.partition("://")
    port = DEFAULT_PORTS.get(scheme)
    return port is not None and _host_and_port(authority, port) == _host_and_port(host, port)


def _host_and_port(authority: str, default: int | None = None) -> tuple[str, int | None]:
    """Return the name without brackets and the port of a Host or Origin header; no name if it is malformed."""
    match = AUTHORITY.fullmatch(authority)
    if match is None:
        return "", None
    return (match["name"] or match["address"]).lower(), int(match["port"]) if match["port"] else default


def _allowed_name(setting: str) -> str:
    """Return the name of an allowed host. An IPv6 address may have no brackets."""
    return setting.lower() if setting.count(":") > 1 and "[" not in setting else _host_and_port(setting)[0]
