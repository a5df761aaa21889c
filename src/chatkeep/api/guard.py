"""What is checked of every request before anything else, and what is put on every response.

A server on a loopback address can be reached from every web page that its user visits. A page of another
site that resolves its own name to 127.0.0.1 is stopped by the Host header; one that posts a form to this
server, by the Origin header and `Sec-Fetch-Site`.
"""

import logging
import re
import secrets
from collections.abc import Iterable

from fastapi import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatkeep.api.errors import Refused, problem

logger = logging.getLogger(__name__)

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
DEFAULT_PORTS = {"http": 80, "https": 443}
AUTHORITY = re.compile(r"(?:(?P<name>[^\s:/?#@\[\]]+)|\[(?P<address>[0-9A-Fa-f:.]+)\])(?::(?P<port>[0-9]{0,5}))?")


class Guard:
    """ASGI middleware around the whole application.

    - 421 for a Host that is not on the allow-list, 403 for a write that another site's page sends.
    - 413 for a body above the limit, as soon as that is known.
    - HEAD is answered as GET is, without the body.
    - `X-Request-ID` on every response; it stands in the log, too, where a request failed.
    - 500 for what nobody expected, logged with its traceback.
    """

    def __init__(self, app: ASGIApp, *, allowed_hosts: Iterable[str], max_body_bytes: int) -> None:
        self._app = app
        self._allowed_hosts = {*LOOPBACK_NAMES, *map(_allowed_name, allowed_hosts)} - {""}
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = _Answer(send, without_body=scope["method"] == "HEAD")
        try:
            refusal = self._refusal(scope)
            if refusal is not None:
                await refusal(scope, receive, answer.send)
                return
            # A copy: the server still has to know that no body goes out.
            inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
            await self._app(inner, self._limited(receive), answer.send)
        except Exception:
            # repr: a path can hold line breaks, which would look like other entries of the log.
            logger.exception("request %s failed: %s %r", answer.request_id, scope["method"], scope["path"])
            if answer.started:
                raise
            await problem(500)(scope, receive, answer.send)

    def _refusal(self, scope: Scope) -> Response | None:
        """The answer to a request that goes no further."""
        hosts = _values(scope, b"host")
        if len(hosts) != 1 or _host_and_port(hosts[0])[0] not in self._allowed_hosts:
            return problem(421)
        if scope["method"] not in SAFE_METHODS and _comes_from_elsewhere(scope, hosts[0]):
            return problem(403, "requests that change something are not taken from pages of other sites")
        lengths = _values(scope, b"content-length")
        if lengths and lengths[0].isdecimal() and int(lengths[0]) > self._max_body_bytes:
            return problem(413, self._too_large)
        return None

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


class _Answer:
    """The response on its way out: given its id, relieved of its body where the request was HEAD."""

    def __init__(self, send: Send, *, without_body: bool) -> None:
        self.request_id = secrets.token_hex(8)
        self.started = False
        self._send = send
        self._without_body = without_body

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = [*message.get("headers", ()), (b"x-request-id", self.request_id.encode())]
            message = {**message, "headers": headers}
        elif self._without_body:
            message = {**message, "body": b""}
        await self._send(message)


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
