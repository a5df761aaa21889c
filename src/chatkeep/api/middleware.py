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
from typing import NamedTuple
from urllib.parse import quote

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatkeep.api.admission import MCP, SAFE_METHODS, Admission, is_protected, rate_limit_headers
from chatkeep.api.body_budget import FREE_BYTES, BodyBudget
from chatkeep.api.errors import BODY_FAILURE, BUSY, RETRY_AFTER, STATUS_TEXTS, Refused, problem
from chatkeep.api.logs import FIELDS, owner_hash
from chatkeep.api.metrics import count_request
from chatkeep.api.query import MAX_PARAMETERS, max_query_bytes
from chatkeep.api.tracing import span
from chatkeep.api.uploads import FORM_BYTES, is_upload
from chatkeep.api.uploads import too_large as upload_too_large
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

MOUNT = "chatkeep.mount"
"""Where a scope has the path below which another application has mounted this one."""

type Headers = list[tuple[bytes, bytes]]

RECONNECT = b"retry: 1000\n\n"
"""The last words of a stream that the server ends: the client comes back after so many milliseconds."""

MCP_BYTES = 1 << 20
"""Largest message to the MCP server, unless all bodies have a lower limit. It is parsed on the event loop."""

PROBES = ("/healthz", "/readyz")
"""Paths that are answered also when there are too many requests: the server works."""


class Shutdown:
    """Whether the server is shutting down, and the event streams to end then."""

    def __init__(self) -> None:
        self.has_begun = False
        self.streams: dict[asyncio.Task[object], str] = {}
        """The tasks of requests that are answered with an event stream, which may never end by itself; their owners."""

    def begin(self) -> None:
        """Refuse new requests, and end the event streams. Idempotent."""
        if self.has_begun:
            return
        self.has_begun = True
        for task in self.streams:
            task.cancel()


class RequestMiddleware:
    """ASGI middleware around the whole application.

    - 421 for a Host that is not allowed, 403 for a page of another site, as far as that is not public.
    - 401, 403, 429 and 503 for a request that is not admitted.
    - 413 for a body above the limit, as soon as that is known; 408 and 400 for one that does not arrive.
    - 503 for requests and large bodies that are too many, 429 for event streams of one owner that are.
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
        max_upload_bytes: int,
        bodies: BodyBudget,
        max_requests: int,
        max_streams: int,
    ) -> None:
        self._app = app
        self._store = store
        self._admission = admission
        self._shutdown = shutdown
        self._allowed_hosts = {*LOOPBACK_NAMES, *map(_allowed_name, allowed_hosts)} - {""}
        self._allowed_origins = set(allowed_origins)
        self._body_limit = BodyLimit(max_body_bytes, _too_large(max_body_bytes), bodies)
        mcp_bytes = min(max_body_bytes, MCP_BYTES)
        self._mcp_limit = BodyLimit(mcp_bytes, _too_large(mcp_bytes), bodies)
        self._upload_limit = BodyLimit(max_upload_bytes + FORM_BYTES, upload_too_large(max_upload_bytes))
        self._max_requests = max_requests
        self._max_streams = max_streams
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = below_mount(scope)
        response, started_at = _ResponseWriter(scope, send, self._shutdown, self._max_streams), time.perf_counter()
        self._requests += 1
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
                self._requests -= 1
                self._record(scope, response, time.perf_counter() - started_at)
                traced.end(scope["method"], _route(scope), response.status)

    async def _respond(self, scope: Scope, receive: Receive, response: "_ResponseWriter") -> None:
        refusal = self._unavailable(scope) or await self._refusal(scope)
        if refusal is not None:
            if _values(scope, b"expect"):
                refusal.headers["Connection"] = "close"  # the client may send the body or the next request
            await refusal(scope, receive, response.send)
            return
        body = _Body(scope, receive, self._limit(scope))
        # A copy: the server still has to know that the method is HEAD.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, body.receive, response.send)
        except asyncio.CancelledError:
            if response.is_over:
                response.task.uncancel()
                return
            if not self._shutdown.has_begun or (response.started and not response.is_event_stream):
                raise
            response.task.uncancel()
            if response.started:
                await response.end(RECONNECT)
            else:
                await stopping()(scope, receive, response.send)
        finally:
            scope["route"] = inner.get("route")
            body.release()
            self._shutdown.streams.pop(response.task, None)

    def _unavailable(self, scope: Scope) -> Response | None:
        """Return the response to a request for which the server has no time."""
        if self._shutdown.has_begun:
            return stopping()
        if self._requests - len(self._shutdown.streams) > self._max_requests and scope["path"] not in PROBES:
            return problem(503, BUSY, headers=RETRY_AFTER)
        return None

    async def _refusal(self, scope: Scope) -> Response | None:
        """Return the response to a request that must not reach the application."""
        hosts = _values(scope, b"host")
        host = hosts[0] if len(hosts) == 1 else ""
        if scope["path"] not in ANY_HOST and _host_and_port(host)[0] not in self._allowed_hosts:
            return problem(421)
        is_public = scope["method"] in SAFE_METHODS and not is_protected(scope["path"])
        if not is_public and self._is_cross_site(scope, host):
            return problem(403, "requests are not taken from pages of other sites; CHATKEEP_CORS_ORIGINS adds origins")
        refusal = await self._admission.admit(scope)
        return refusal or self._beyond_size(scope)

    def _beyond_size(self, scope: Scope) -> Response | None:
        """Return the response to a request whose query or body is longer than it may be."""
        longest, limit = max_query_bytes(scope["path"]), self._limit(scope)
        if len(scope["query_string"]) > longest:
            return problem(422, f"the query may have at most {longest:,} bytes")
        if scope["query_string"].count(b"&") >= MAX_PARAMETERS:
            return problem(422, f"the query may have at most {MAX_PARAMETERS} parameters")
        lengths = _values(scope, b"content-length")
        if lengths and lengths[0].isdecimal() and int(lengths[0]) > limit.bytes:
            return problem(413, limit.beyond)
        return None

    def _limit(self, scope: Scope) -> "BodyLimit":
        if scope["path"] == MCP:
            return self._mcp_limit
        return self._upload_limit if is_upload(scope) else self._body_limit

    def _is_cross_site(self, scope: Scope, host: str) -> bool:
        """Whether a page of another site sent the request, and its origin is not allowed."""
        if not _is_cross_site(scope, host):
            return False
        origins = _values(scope, b"origin")
        is_allowed = "*" in self._allowed_origins or self._allowed_origins.issuperset(origins)
        return not (origins and is_allowed)

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


def below_mount(scope: Scope) -> Scope:
    """Return the scope with the path below which the application is mounted apart, in MOUNT.

    What is checked here and what the router matches have to be the same path, whatever is before it.
    """
    mount, path = scope.get("root_path", ""), scope["path"]
    if not mount:
        return scope
    below = path.removeprefix(mount) if path == mount or path.startswith(f"{mount}/") else path
    return {**scope, "path": below or "/", "root_path": "", MOUNT: mount}


def _with_mount(headers: Headers, mount: str) -> Headers:
    """Return the headers with a Location that begins with the path of the mount."""
    before = quote(mount).encode()
    return [(name, before + value if before and name == b"location" else value) for name, value in headers]


def stopping() -> Response:
    """The response to a request that the server cannot answer because it shuts down."""
    return problem(503, headers={**RETRY_AFTER, "Connection": "close"})


def _too_large(limit: int) -> str:
    return f"the body may have at most {limit:,} bytes; send less at a time"


def _owner(scope: Scope) -> str:
    """Return the owner, or nothing for a path that needs none."""
    principal = scope.get("state", {}).get("principal")
    return principal.owner if principal else ""


class BodyLimit(NamedTuple):
    """How large a body may be."""

    bytes: int
    beyond: str
    """What is said of a larger one."""
    budget: BodyBudget | None = None
    """The memory of large ones together; None for those that are not kept in memory."""


class _Body:
    """Receives the body of a request: limits its size, and the memory of large bodies together."""

    def __init__(self, scope: Scope, receive: Receive, limit: BodyLimit) -> None:
        self._scope = scope
        self._receive = receive
        self._limit = limit
        self._budget = limit.budget
        self._size = 0
        self._taken = 0

    async def receive(self) -> Message:
        """Return the next message. Raises Refused: a chunked body has no Content-Length, and clients may stop."""
        message = await self._receive()
        failure = self._scope.get("state", {}).get(BODY_FAILURE)
        if failure:
            detail = TOO_MANY_PARTS if failure == 413 else STATUS_TEXTS[failure].detail
            raise Refused(failure, detail, headers={"Connection": "close"})
        self._size += len(message.get("body", b""))
        if self._size > self._limit.bytes:
            raise Refused(413, self._limit.beyond)
        if self._budget is not None and self._size > FREE_BYTES and not self._taken:
            await self._take(self._budget)
        return message

    async def _take(self, budget: BodyBudget) -> None:
        """Take all memory at once: bodies that have a part each and wait for the rest would wait for each other."""
        lengths = _values(self._scope, b"content-length")
        size = int(lengths[0]) if lengths else self._limit.bytes
        if not await budget.take(_owner(self._scope), size):
            raise Refused(503, TOO_MANY_BODIES, headers=RETRY_AFTER)
        self._taken = size

    def release(self) -> None:
        """Give the memory back."""
        if self._budget is not None and self._taken:
            self._budget.give_back(_owner(self._scope), self._taken)


TOO_MANY_PARTS = "the body came in too many chunks; send larger ones"
TOO_MANY_BODIES = "too many large bodies are on their way; send this one again after the seconds in Retry-After"
TOO_MANY_STREAMS = "there are too many event streams; end one before you open another"


def _route(scope: Scope) -> str | None:
    """Return the path template of the matched route, which has no ids in it."""
    route = scope.get("route")
    return getattr(route, "path_format", None)


class _ResponseWriter:
    """Sends the response: adds headers, and drops the body if the method is HEAD."""

    def __init__(self, scope: Scope, send: Send, shutdown: Shutdown, max_streams: int) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a running coroutine has a task
        self.task = task
        self.request_id = secrets.token_hex(8)
        self.started = False
        self.status = 500
        self.is_event_stream = False
        self.is_over = False
        """Whether nothing more is sent, whatever the application makes of it."""
        self._max_streams = max_streams
        self._scope = scope
        self._send = send
        self._shutdown = shutdown
        self._ended = False
        self._is_head = scope["method"] == "HEAD"

    async def send(self, message: Message) -> None:
        if self.is_over:
            return
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if any(k == b"content-type" and v.startswith(EVENT_STREAM) for k, v in headers):
                if self._is_head:
                    await self._send_head_alone(message, headers)
                    return
                if not self._take_stream():
                    await self._refuse_stream()
                    return
            self.started, self.status = True, message["status"]
            headers = _with_mount(headers, self._scope.get(MOUNT, ""))
            message = {**message, "headers": [*headers, *self._extra_headers(headers)]}
        else:
            self._ended = not message.get("more_body", False)
            if self._is_head:
                message = {**message, "body": b""}
        await self._send(message)

    def _take_stream(self) -> bool:
        """Count an event stream, which may never end by itself; say whether the owner may have one more."""
        owner, streams = _owner(self._scope), self._shutdown.streams
        if list(streams.values()).count(owner) >= self._max_streams:
            return False
        streams[self.task] = owner
        self.is_event_stream = True
        if self._shutdown.has_begun:  # its request came before
            self.task.cancel()
        return True

    async def _send_head_alone(self, message: Message, headers: list[tuple[bytes, bytes]]) -> None:
        """Answer HEAD: the events would go on for as long as the answer is made."""
        self.started, self.status = True, message["status"]
        await self._send({**message, "headers": [*headers, *self._extra_headers(headers)]})
        await self._send({"type": "http.response.body", "body": b""})
        self._give_up()

    async def _refuse_stream(self) -> None:
        """Answer 429 in place of an event stream, and end what would have sent it."""
        refusal = problem(429, TOO_MANY_STREAMS, headers=RETRY_AFTER)
        await self.send({"type": "http.response.start", "status": 429, "headers": refusal.raw_headers})
        await self.send({"type": "http.response.body", "body": refusal.body})
        self._give_up()

    def _give_up(self) -> None:
        """End what would send the rest."""
        self.is_over = True
        self.task.cancel()

    async def end(self, body: bytes) -> None:
        """End a response that has started."""
        if self.started and not self._ended:
            await self.send({"type": "http.response.body", "body": body, "more_body": False})

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
