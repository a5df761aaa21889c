"""What is checked of every request before anything else, and what is put on every response.

A server on a loopback address can be reached from every web page that its user visits. A page of another
site that resolves its own name to 127.0.0.1 is stopped by the Host header; one that posts a form to this
server, by the Origin header and `Sec-Fetch-Site`.
"""

import asyncio
import logging
import re
import secrets
import time
from collections.abc import Iterable, Iterator

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatkeep.api.admission import SAFE_METHODS, Door, is_guarded, quota_headers
from chatkeep.api.errors import RETRY_AFTER, Refused, problem
from chatkeep.api.logs import FIELDS, owner_hash
from chatkeep.api.metrics import answered
from chatkeep.api.tracing import span
from chatkeep.store import Store

logger = logging.getLogger(__name__)
requests_logger = logging.getLogger("chatkeep.requests")

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
DEFAULT_PORTS = {"http": 80, "https": 443}
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
"""What a page may load: only the one of the documentation is a page."""

EVENT_STREAM = b"text/event-stream"


class Stopping:
    """Tells the guard that the server stops."""

    def __init__(self) -> None:
        self.is_set = False
        self.streams: set[asyncio.Task[object]] = set()
        """The requests that are answered with a stream of events, which may have no other end."""

    def begin(self) -> None:
        """Refuse what comes from now on, and end the streams."""
        self.is_set = True
        for task in self.streams:
            task.cancel()


class Guard:
    """ASGI middleware around the whole application.

    - 421 for a Host that is not on the allow-list, 403 for a write that another site's page sends.
    - 401, 403 and 429 for whom the door does not let in.
    - 413 for a body above the limit, as soon as that is known.
    - HEAD is answered as GET is, without the body.
    - `X-Request-ID` and security headers on every response; a line in the log, a count, a span.
    - 500 for what nobody expected, logged with its traceback.
    - When the server stops: 503 for what still comes, and an end for streams that wait for something to happen.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store,
        door: Door,
        stopping: Stopping,
        allowed_hosts: Iterable[str],
        allowed_origins: Iterable[str],
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._store = store
        self._door = door
        self._stopping = stopping
        self._allowed_hosts = {*LOOPBACK_NAMES, *map(_allowed_name, allowed_hosts)} - {""}
        self._allowed_origins = set(allowed_origins)
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer, began = _Answer(scope, send, self._stopping), time.perf_counter()
        with span(scope["method"], scope["headers"]) as traced:
            try:
                await self._answer(scope, receive, answer)
            except Exception:
                # repr: a path can hold line breaks, which would look like other entries of the log.
                logger.exception("request %s failed: %s %r", answer.request_id, scope["method"], scope["path"])
                if answer.started:
                    raise
                await problem(500)(scope, receive, answer.send)
            finally:
                self._note(scope, answer, time.perf_counter() - began)
                traced.end(scope["method"], _route(scope), answer.status)

    async def _answer(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        refusal = await self._refusal(scope)
        if refusal is not None:
            await refusal(scope, receive, answer.send)
            return
        # A copy: the server still has to know that no body goes out.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        try:
            await self._app(inner, self._limited(receive), answer.send)
        except asyncio.CancelledError:
            if not (self._stopping.is_set and answer.is_event_stream):
                raise
            answer.task.uncancel()
            await answer.end()
        finally:
            scope["route"] = inner.get("route")
            self._stopping.streams.discard(answer.task)

    async def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further."""
        if self._stopping.is_set:
            return problem(503, headers={**RETRY_AFTER, "Connection": "close"})
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or _host_and_port(hosts[0])[0] not in self._allowed_hosts:
            return problem(421)
        if scope["method"] not in SAFE_METHODS and self._comes_from_elsewhere(scope, hosts[0]):
            return problem(403, "requests that change something are not taken from pages of other sites")
        refusal = await self._door.admit(scope)
        if refusal is not None:
            return refusal
        lengths = _values(scope, b"content-length")
        if lengths and lengths[0].isdecimal() and int(lengths[0]) > self._max_body_bytes:
            return problem(413, self._too_large)
        return None

    def _comes_from_elsewhere(self, scope: Scope, host: str) -> bool:
        """Whether a browser says that another site's page sent this, and not one whose pages may."""
        origins = _values(scope, b"origin")
        return not (origins and self._allowed_origins.issuperset(origins)) and _comes_from_elsewhere(scope, host)

    @property
    def _too_large(self) -> str:
        return f"the body may have at most {self._max_body_bytes:,} bytes; send less at a time"

    def _limited(self, receive: Receive) -> Receive:
        """`receive`, counting: a chunked body does not say its length before."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                raise Refused(413, self._too_large)
            return message

        return limited

    def _note(self, scope: Scope, answer: "_Answer", seconds: float) -> None:
        """Count the request, and log it."""
        route = _route(scope)
        answered(self._store, scope["method"], route, answer.status, seconds)
        if not requests_logger.isEnabledFor(logging.INFO):
            return
        principal = scope.get("state", {}).get("principal")
        fields = {
            "request": answer.request_id,
            "method": scope["method"],
            "route": route or "-",
            "status": answer.status,
            "ms": round(seconds * 1e3, 1),
            "owner": owner_hash(principal.owner) if principal else "-",
        }
        requests_logger.info("answered", extra={FIELDS: fields})


def _route(scope: Scope) -> str | None:
    """The template of the route that answered: it has no ids in it."""
    route = scope.get("route")
    return getattr(route, "path", None)


class _Answer:
    """The response on its way out: given its headers, relieved of its body where the request was HEAD."""

    def __init__(self, scope: Scope, send: Send, stopping: Stopping) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a coroutine that runs has a task
        self.task = task
        self.request_id = secrets.token_hex(8)
        self.started = False
        self.status = 500
        self.is_event_stream = False
        self._scope = scope
        self._send = send
        self._stopping = stopping
        self._ended = False
        self._without_body = scope["method"] == "HEAD"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started, self.status = True, message["status"]
            headers = list(message.get("headers", ()))
            self.is_event_stream = any(k == b"content-type" and v.startswith(EVENT_STREAM) for k, v in headers)
            if self.is_event_stream:
                self._stopping.streams.add(self.task)
            message = {**message, "headers": [*headers, *self._own_headers(headers)]}
        else:
            self._ended = not message.get("more_body", False)
            if self._without_body:
                message = {**message, "body": b""}
        await self._send(message)

    async def end(self) -> None:
        """End a response that was begun."""
        if self.started and not self._ended:
            await self.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _own_headers(self, given: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
        yield b"x-request-id", self.request_id.encode()
        yield from SECURITY_HEADERS
        is_page = any(name == b"content-type" and value.startswith(b"text/html") for name, value in given)
        yield b"content-security-policy", PAGE_POLICY if is_page else DATA_POLICY
        if is_guarded(self._scope["path"]):
            yield b"cache-control", b"no-store"
            for name, value in quota_headers(self._scope).items():
                yield name.lower().encode(), value.encode()


def _values(scope: Scope, name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in scope["headers"] if key == name]


def _comes_from_elsewhere(scope: Scope, host: str) -> bool:
    """Whether a browser says that another site's page sent this. Other clients send neither header."""
    if any(site in ("cross-site", "same-site") for site in _values(scope, b"sec-fetch-site")):
        return True
    return not all(_is_own_origin(origin, host) for origin in _values(scope, b"origin"))


def _is_own_origin(origin: str, host: str) -> bool:
    scheme, _, authority = origin.partition("://")
    port = DEFAULT_PORTS.get(scheme)
    return port is not None and _host_and_port(authority, port) == _host_and_port(host, port)


def _host_and_port(authority: str, default: int | None = None) -> tuple[str, int | None]:
    """The name, without brackets, and the port of a Host header or an Origin; no name where it is malformed."""
    match = AUTHORITY.fullmatch(authority)
    if match is None:
        return "", None
    return (match["name"] or match["address"]).lower(), int(match["port"]) if match["port"] else default


def _allowed_name(setting: str) -> str:
    """The name that requests to the host `setting` carry; an IPv6 address may come without brackets."""
    return setting.lower() if setting.count(":") > 1 and "[" not in setting else _host_and_port(setting)[0]
