"""Connections to hosts that an administrator names, but never to those that only this machine should reach.

A URL of a provider is data, so it may name a service of the network that this server is in: the metadata service of a
cloud gives keys to whoever asks. The guard stands where a connection is opened, below redirects, retries and libraries:
it resolves the name once, looks at every address, and connects to one that it has looked at.
"""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, cast

import httpcore2
import httpx2

CONNECT_SECONDS = 10.0
"""Longest time to resolve a name and to open a connection, TLS not included, which may take as long again."""

READ_SECONDS = 120.0
"""Longest time between two pieces of a response. A turn has limits of its own, which are shorter."""

MAX_CONNECTIONS = 1_000
MAX_IDLE_CONNECTIONS = 50
IDLE_SECONDS = 2.0
"""How long a connection is kept for the next request. Servers close idle ones, many after 5 s: a request that meets
that would fail, and none is sent again."""

MAX_ADDRESSES = 4
"""Addresses of a name that are tried, one after the other."""

MAX_RESPONSE_BYTES = 128 << 20
"""Bytes of one response. An answer has 8 MiB at most, and comes in events of which its text is a small part."""

type Address = IPv4Address | IPv6Address

METADATA = {
    ip_address(each)
    for each in (
        "169.254.169.254",
        "168.63.129.16",  # Azure
        "100.100.100.200",  # Alibaba
        "192.0.0.192",  # Oracle
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "fd00:c1::a9fe:a9fe",  # Oracle
    )
}
"""Where clouds tell a machine its keys. Some of these are no link-local addresses."""

THIS_NETWORK = IPv4Network("0.0.0.0/8")
NAT64 = IPv6Network("64:ff9b::/96")
LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
COMPATIBLE = IPv6Network("::/96")

WAY_OUT = "; set CHATKEEP_ALLOW_PRIVATE_PROVIDERS=true if providers may be in this server's own network"


class HostRefused(httpx2.ConnectError):
    """A host has an address that this server does not connect to. The message is for the log and administrators."""


class TooLarge(httpx2.StreamError):
    """A response has more bytes than are read."""


def guarded_client(
    *,
    allow_private: bool,
    connect: float = CONNECT_SECONDS,
    read: float = READ_SECONDS,
    response_bytes: int = MAX_RESPONSE_BYTES,
    verify: ssl.SSLContext | None = None,
) -> httpx2.AsyncClient:
    """Return a client for any host; who takes it closes it.

    It follows no redirects, uses no proxies and no .netrc, and accepts no compressed responses. `connect` and `read`
    are seconds. `verify` has the authorities that are trusted; by default the system's, or those of SSL_CERT_FILE.
    Requests raise HostRefused for link-local, metadata, multicast and reserved addresses, and without `allow_private`
    for all that are not public; httpx2.DecodingError for a compressed response; TooLarge when one has more bytes.
    """
    guard = Guard(allow_private=allow_private, seconds=connect)
    return _Client(
        transport=_Transport(guard, response_bytes, verify or httpx2.create_ssl_context()),
        timeout=httpx2.Timeout(read, connect=connect, pool=connect),
        headers={"Accept-Encoding": "identity"},
        trust_env=False,
        follow_redirects=False,
    )


class _Client(httpx2.AsyncClient):
    """Sends requests without following redirects, also if a library asks for that."""

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        return await super().send(request, **{**options, "follow_redirects": False})


class _Transport(httpx2.AsyncHTTPTransport):
    """Opens connections by a guard, and bounds responses."""

    def __init__(self, guard: "Guard", response_bytes: int, context: ssl.SSLContext) -> None:
        super().__init__(verify=context, trust_env=False)
        self._response_bytes = response_bytes
        self._pool = httpcore2.AsyncConnectionPool(
            ssl_context=context,
            max_connections=MAX_CONNECTIONS,
            max_keepalive_connections=MAX_IDLE_CONNECTIONS,
            keepalive_expiry=IDLE_SECONDS,
            network_backend=guard,
        )

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await super().handle_async_request(request)
        if response.headers.get("content-encoding", "identity").strip().lower() not in {"", "identity"}:
            await response.aclose()  # a small one may become a very large one
            raise httpx2.DecodingError("the response is compressed, which was not asked for", request=request)
        response.stream = _Bounded(cast("httpx2.AsyncByteStream", response.stream), self._response_bytes)
        return response


class _Bounded(httpx2.AsyncByteStream):
    """A response that ends with an error if it has too many bytes."""

    def __init__(self, stream: httpx2.AsyncByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self._stream:
            size += len(piece)
            if size > self._limit:
                raise TooLarge(f"the response has more than {self._limit:,} bytes")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class Guard(httpcore2.AsyncNetworkBackend):
    """Opens connections to allowed addresses."""

    def __init__(self, *, allow_private: bool, seconds: float = CONNECT_SECONDS) -> None:
        """Take whether addresses are allowed that are not public, and the longest time for a connection."""
        self._allow_private = allow_private
        self._seconds = seconds
        self._network = httpcore2.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - as the library calls it
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Resolve a name, check all of its addresses, and connect to the first that answers."""
        loop = asyncio.get_running_loop()
        end = loop.time() + (self._seconds if timeout is None else min(timeout, self._seconds))
        addresses = await self._addresses(host, port, end)
        for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
            seconds = max(end - loop.time(), 0.001) / left
            try:
                return await self._network.connect_tcp(address, port, seconds, local_address, socket_options)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if left == 1:
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")

    async def connect_unix_socket(self, path: str, *_: object, **__: object) -> httpcore2.AsyncNetworkStream:
        """Raise HostRefused: no provider is at a socket of this machine."""
        raise HostRefused(f"the socket {path} is not a host")

    async def _addresses(self, host: str, port: int, end: float) -> Sequence[str]:
        """The addresses of a host to be tried. Raises HostRefused if one of all that it has is not allowed."""
        found = await _resolved(host, port, end)
        for address in found:
            if reason := refusal(_without_scope(address), allow_private=self._allow_private):
                raise HostRefused(f"{host} has the address {address}, {reason}")
        return found[:MAX_ADDRESSES]


async def _resolved(host: str, port: int, end: float) -> Sequence[str]:
    """Resolve a name once. A resolver that hangs holds a thread, but not whoever waits."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout_at(end):
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except TimeoutError:
        raise httpcore2.ConnectTimeout(f"{host} could not be resolved in time") from None
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"{host} could not be resolved: {error}") from error
    return list(dict.fromkeys(str(place[0]) for *_, place in found))


def _without_scope(address: str) -> Address:
    """An address that compares equal to those in METADATA, whatever link it is on."""
    return ip_address(address.partition("%")[0])


def refusal(address: Address, *, allow_private: bool) -> str | None:
    """Return why an address is not allowed, None if it is."""
    for each in _meant(address):
        if reason := _always_refused(each):
            return f"{reason}, which providers must never have"
        if not allow_private and not _is_public(each):
            return f"which is not a public one{WAY_OUT}"
    return None


def _always_refused(address: Address) -> str | None:
    """What an address is that nobody has a reason to connect to, however private addresses are dealt with."""
    if address in METADATA:
        return "that of a cloud's metadata service"
    if address.is_loopback:
        return None  # IPv6's is a reserved one, too
    kinds = {
        "a link-local one": address.is_link_local,
        "a multicast one": address.is_multicast,
        "an unspecified one": address.is_unspecified or (address.version == 4 and address in THIS_NETWORK),
        "a reserved one": address.is_reserved or (address.version == 6 and address in LOCAL_NAT64),
    }
    return next((kind for kind, is_one in kinds.items() if is_one), None)


def _is_public(address: Address) -> bool:
    return address.is_global and not (isinstance(address, IPv6Address) and address.is_site_local)


def _meant(address: Address) -> Sequence[Address]:
    """The addresses that are reached by one: those of IPv4 within one of IPv6, or itself."""
    if isinstance(address, IPv4Address):
        return [address]
    last = IPv4Address(int(address) & 0xFFFF_FFFF)
    if address.teredo:
        return [*address.teredo, address]
    if address in NAT64 or (address in COMPATIBLE and int(address) > 0xFFFF):
        return [last]
    return [address.ipv4_mapped or address.sixtofour or address]
