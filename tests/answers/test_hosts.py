"""The guard of outgoing connections: which addresses it allows, and that nothing gets around it."""

import asyncio
import datetime
import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import httpcore2
import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from chatkeep.answers.hosts import Guard, HostRefused, TooLarge, guarded_client, refusal
from servers.endpoint import Endpoint, endpoint, response

OK = response(200, b"ok")


@pytest.fixture
def resolver(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, list[list[str]]]], list[str]]:
    """Point names at addresses: one list of them for each time that they are resolved. Returns who was asked for."""
    real = socket.getaddrinfo

    def point(names: dict[str, list[list[str]]]) -> list[str]:
        asked: list[str] = []

        def getaddrinfo(host: str, port: int, *rest: Any, **more: Any) -> Sequence[tuple[Any, ...]]:
            if host not in names:
                return real(host, port, *rest, **more)
            asked.append(host)
            addresses = names[host].pop(0)
            return [found for each in addresses for found in real(each, port, *rest, **more)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return point


# --- addresses --------------------------------------------------------------------------------------------

NEVER = (
    *("169.254.169.254", "169.254.1.1", "fe80::1", "168.63.129.16", "100.100.100.200", "192.0.0.192"),
    *("fd00:ec2::254", "fd20:ce::254", "fd00:c1::a9fe:a9fe", "0.0.0.0", "0.1.2.3", "::", "224.0.0.1", "ff02::1"),
    *("240.0.0.1", "255.255.255.255", "4000::1", "64:ff9b:1::a9fe:a9fe", "64:ff9b:1:a9fe:a9:fe00::"),
    # The same in other forms of IPv6: mapped, compatible, 6to4, NAT64, Teredo.
    *("::ffff:169.254.169.254", "::169.254.169.254", "2002:a9fe:a9fe::1", "64:ff9b::a9fe:a9fe", "::ffff:0.0.0.0"),
    *("2001:0:a9fe:a9fe::1", "2001:0:808:808:0:0:5601:5601"),
)

PRIVATE = (
    *("127.0.0.1", "127.9.9.9", "10.1.2.3", "172.16.0.1", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1"),
    *("::1", "fd12::1", "fec0::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "2002:7f00:1::", "64:ff9b::7f00:1", "64:ff9b::a00:1", "::10.0.0.1"),
)

PUBLIC = ("1.1.1.1", "8.8.8.8", "93.184.216.34", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", NEVER)
def test_addresses_that_nobody_may_reach(address: str) -> None:
    """Link-local, metadata, unspecified, multicast and reserved addresses are refused in every form."""
    for allow_private in (False, True):
        reason = refusal(ip_address(address), allow_private=allow_private)
        assert reason
        assert reason.endswith("providers must never have")


@pytest.mark.parametrize("address", PRIVATE)
def test_private_addresses(address: str) -> None:
    """Addresses that are not public need the setting, which the refusal names."""
    assert "CHATKEEP_ALLOW_PRIVATE_PROVIDERS" in str(refusal(ip_address(address), allow_private=False))
    assert refusal(ip_address(address), allow_private=True) is None


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: str) -> None:
    """Public addresses are allowed, also where NAT64 gives an IPv4 host an IPv6 address."""
    assert refusal(ip_address(address), allow_private=False) is None


# --- connections ------------------------------------------------------------------------------------------


async def test_loopback_needs_the_setting() -> None:
    """Without the setting no byte reaches a server on this machine."""
    async with endpoint(OK) as server:
        url = f"http://127.0.0.1:{server.port}/"
        async with guarded_client(allow_private=False) as client:
            with pytest.raises(HostRefused, match="which is not a public one; set CHATKEEP_"):
                await client.get(url)
        assert server.seen == []
        async with guarded_client(allow_private=True) as client:
            assert (await client.get(url)).text == "ok"


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "0177.0.0.1", "127.1", "0x7f.1", "localhost", "::1"])
async def test_spellings_of_loopback(host: str) -> None:
    """A number, or octal and hexadecimal parts, are what the resolver takes them for."""
    with pytest.raises(HostRefused, match="not a public one"):
        await Guard(allow_private=False).connect_tcp(host, 9)
    async with guarded_client(allow_private=False) as client:
        with pytest.raises((HostRefused, httpx2.InvalidURL)):
            await client.get(f"http://[{host}]:9/" if ":" in host else f"http://{host}:9/")


@pytest.mark.parametrize(
    "host",
    [
        "169.254.169.254",
        "2852039166",
        "0xa9fea9fe",
        "0251.0376.0251.0376",
        "::ffff:a9fe:a9fe",
        "fd00:ec2::254",
        "0",
    ],
)
async def test_spellings_of_metadata(host: str) -> None:
    """The setting for private addresses does not open a cloud's metadata service, however it is spelt."""
    with pytest.raises(HostRefused, match="must never have"):
        await Guard(allow_private=True).connect_tcp(host, 80, timeout=5)
    async with guarded_client(allow_private=True) as client:
        with pytest.raises((HostRefused, httpx2.InvalidURL)):
            await client.get(f"http://[{host}]/" if ":" in host else f"http://{host}/", timeout=5)


async def test_scope_of_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """The link that an address is on does not make it another one."""
    found = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("fd00:ec2::254%1", 80, 0, 1))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [found])
    async with guarded_client(allow_private=True) as client:
        with pytest.raises(HostRefused, match="must never have"):
            await client.get("http://scoped.test/")


async def test_one_forbidden_address_of_many(resolver: Callable[[Any], list[str]]) -> None:
    """A name that has a forbidden address beside others is refused, wherever it is in the list."""
    async with endpoint(OK) as server, guarded_client(allow_private=True) as client:
        resolver({"mixed.test": [["127.0.0.1", "169.254.169.254"]]})
        with pytest.raises(HostRefused, match=r"mixed\.test has the address 169\.254\.169\.254"):
            await client.get(f"http://mixed.test:{server.port}/")
        assert server.seen == []


async def test_a_name_is_resolved_once(resolver: Callable[[Any], list[str]]) -> None:
    """The address that was checked is the one that is connected to: the second answer of a name is never asked for."""
    async with endpoint(OK) as server, guarded_client(allow_private=True) as client:
        asked = resolver({"rebind.test": [["127.0.0.1"], ["169.254.169.254"]]})
        assert (await client.get(f"http://rebind.test:{server.port}/")).text == "ok"
        assert asked == ["rebind.test"]
        assert server.seen[0].headers["host"] == f"rebind.test:{server.port}"
        with pytest.raises(HostRefused):  # the next connection resolves again, and checks again
            await client.get(f"http://rebind.test:{server.port}/")


async def test_rebinding_from_public_to_loopback(
    resolver: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name that is public when it is checked and loopback afterwards: only the public address is connected to."""
    connected: list[str] = []

    async def connect(_: object, host: str, *__: object, **___: object) -> httpcore2.AsyncNetworkStream:
        connected.append(host)
        raise httpcore2.ConnectError("no network in tests")

    monkeypatch.setattr(httpcore2.AnyIOBackend, "connect_tcp", connect)
    asked = resolver({"rebind.test": [["93.184.216.34"], ["127.0.0.1"]]})
    async with guarded_client(allow_private=False) as client:
        with pytest.raises(httpx2.ConnectError):
            await client.get("http://rebind.test/")
        assert (connected, asked) == (["93.184.216.34"], ["rebind.test"])
        with pytest.raises(HostRefused):
            await client.get("http://rebind.test/")
    assert connected == ["93.184.216.34"]


async def test_the_next_address_is_tried(resolver: Callable[[Any], list[str]]) -> None:
    """If nobody listens at one address of a name, the next one is tried; and the last one's error is raised."""
    async with endpoint(OK) as server, guarded_client(allow_private=True) as client:
        resolver({"two.test": [["127.0.0.2", "127.0.0.1"], ["127.0.0.2", "127.0.0.3"]]})
        assert (await client.get(f"http://two.test:{server.port}/")).text == "ok"
        with pytest.raises(httpx2.ConnectError):
            await client.get(f"http://two.test:{server.port}/")


async def test_a_resolver_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is resolved within the time for a connection; one that nobody knows is an error of its own."""
    gate = asyncio.Event()

    async def getaddrinfo(*_: object, **__: object) -> None:
        await gate.wait()

    async with guarded_client(allow_private=False, connect=0.2) as client:
        with pytest.raises(httpx2.ConnectError, match="could not be resolved"):
            await client.get("http://nobody.invalid/")
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)
        with pytest.raises(httpx2.ConnectTimeout, match="could not be resolved in time"):
            await client.get("http://slow.test/")


@pytest.mark.parametrize("place", ["http://169.254.169.254/latest/meta-data/", "http://localhost:{port}/secret"])
async def test_redirects_are_not_followed(place: str) -> None:
    """A redirect is the response, also for a library that asks the client to follow it."""
    async with endpoint(OK) as other:
        location = place.format(port=other.port)
        answer = response(307, Location=location)
        async with endpoint(answer) as server, guarded_client(allow_private=True) as client:
            answered = await client.get(f"http://127.0.0.1:{server.port}/", follow_redirects=True)
            assert (answered.status_code, len(server.seen), other.seen) == (307, 1, [])


async def test_the_environment_names_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve names itself; one of the environment is not used."""
    async with endpoint(response(200, b"proxy")) as proxy, endpoint(OK) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with guarded_client(allow_private=True) as client:
            assert (await client.get(f"http://127.0.0.1:{server.port}/")).text == "ok"
        assert proxy.seen == []


async def test_sockets_of_the_machine() -> None:
    """The guard opens no Unix domain socket."""
    with pytest.raises(HostRefused):
        await Guard(allow_private=True).connect_unix_socket("/var/run/docker.sock")


# --- responses --------------------------------------------------------------------------------------------


async def test_large_responses() -> None:
    """A response that does not end is cut off with an error."""
    endless = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b"x" * 200_000
    async with endpoint(endless) as server, guarded_client(allow_private=True, response_bytes=100_000) as client:
        with pytest.raises(TooLarge, match="more than 100,000 bytes"):
            await client.get(f"http://127.0.0.1:{server.port}/")


async def test_compressed_responses() -> None:
    """Compressed responses are not asked for, and not unpacked."""
    packed = response(200, b"xx", Content_Encoding="gzip")
    async with endpoint(packed) as server, guarded_client(allow_private=True) as client:
        with pytest.raises(httpx2.DecodingError, match="compressed"):
            await client.get(f"http://127.0.0.1:{server.port}/")
        assert server.seen[0].headers["accept-encoding"] == "identity"


async def test_silent_responses() -> None:
    """A server that says nothing ends with a time-out."""
    async with endpoint(b"") as server, guarded_client(allow_private=True, read=0.2) as client:
        with pytest.raises(httpx2.ReadTimeout):
            await client.get(server.url)


# --- TLS --------------------------------------------------------------------------------------------------


def certificate(folder: Path, name: str) -> Path:
    """Make a certificate of a name, signed by itself, with its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{name}.pem"
    path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + pem)
    return path


def tls_server(path: Path) -> AbstractAsyncContextManager[Endpoint]:
    """A server with a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return endpoint(OK, context=context)


async def test_tls_checks_the_name(tmp_path: Path, resolver: Callable[[Any], list[str]]) -> None:
    """The certificate has to be the name's, although the address is connected to."""
    path = certificate(tmp_path, "model.test")
    trusted = ssl.create_default_context(cafile=str(path))
    async with tls_server(path) as server, guarded_client(allow_private=True, verify=trusted) as client:
        resolver({"model.test": [["127.0.0.1"]], "other.test": [["127.0.0.1"]]})
        assert (await client.get(f"https://model.test:{server.port}/")).text == "ok"
        with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get(f"https://other.test:{server.port}/")


async def test_tls_checks_the_authority(
    tmp_path: Path, resolver: Callable[[Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unknown authority is refused; SSL_CERT_FILE names one of a company's own."""
    path = certificate(tmp_path, "model.test")
    async with tls_server(path) as server:
        resolver({"model.test": [["127.0.0.1"], ["127.0.0.1"]]})
        async with guarded_client(allow_private=True) as client:
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(f"https://model.test:{server.port}/")
        monkeypatch.setenv("SSL_CERT_FILE", str(path))
        async with guarded_client(allow_private=True) as client:
            assert (await client.get(f"https://model.test:{server.port}/")).text == "ok"
