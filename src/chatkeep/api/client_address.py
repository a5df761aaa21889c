"""The address that failed authentications are counted by: that of the peer, or what trusted proxies say it is."""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from starlette.types import Scope

from chatkeep.settings import Network

type Address = IPv4Address | IPv6Address

IPV6_PREFIX = 64
"""Bits of an IPv6 address that are counted: one customer of a provider has all 2^64 addresses behind them."""


class ClientAddress:
    """Finds the address of a client, which may be behind proxies."""

    def __init__(self, trusted_proxies: Sequence[Network]) -> None:
        self._trusted = tuple(trusted_proxies)

    def of(self, scope: Scope) -> str:
        """Return the client's IPv4 address or IPv6 network; another name of the peer unchanged.

        X-Forwarded-For is read only if the peer is a trusted proxy, and the peer's address counts if it is malformed.
        """
        name: str = (scope.get("client") or ("",))[0]
        peer = _parsed(name)
        if peer is None:
            return name
        if self._is_trusted(peer):
            values = [value for key, value in scope["headers"] if key == b"x-forwarded-for"]
            peer = self._forwarded(b",".join(values).decode("latin-1")) or peer
        return _counted(peer)

    def _forwarded(self, header: str) -> Address | None:
        """Return the last address that is no trusted proxy: the client may have made up those to the left of it."""
        address = None
        for entry in reversed(header.split(",")):
            address = _parsed(_without_port(entry.strip()))
            if address is None or not self._is_trusted(address):
                break
        return address

    def _is_trusted(self, address: Address) -> bool:
        return any(address in network for network in self._trusted)


def _parsed(text: str) -> Address | None:
    """Return the address; one of IPv4 that is mapped to IPv6 as what it is."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def _without_port(entry: str) -> str:
    """Return the address in `192.0.2.1:80`, `[2001:db8::1]:80`, or in either without a port."""
    if entry.startswith("["):
        return entry[1:].partition("]")[0]
    return entry.partition(":")[0] if entry.count(":") == 1 else entry


def _counted(address: Address) -> str:
    if isinstance(address, IPv4Address):
        return str(address)
    shift = 128 - IPV6_PREFIX
    return f"{IPv6Address(int(address) >> shift << shift)}/{IPV6_PREFIX}"
