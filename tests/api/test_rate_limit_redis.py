"""Requests counted in Redis: one count for every server, and none where Redis cannot be asked."""

import asyncio
import logging
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, closing
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from redis.asyncio import Redis
from test_auth import SECRET, bearer
from test_server import log_of, served

from chatkeep import InvalidInput, open_store
from chatkeep.api import rate_limit
from chatkeep.api.rate_limit import TIMEOUT_SECONDS, RateLimiter, rate_limiters
from chatkeep.api.server import Server
from chatkeep.settings import Settings
from servers import redis as redis_server
from servers.api import Api, assert_problem, serving

PATH = "/api/conversations"
WRONG = {"Authorization": "Bearer zq7wrong"}
LOGGER = "chatkeep.api.rate_limit"
PROBE_SECONDS = 0.5


@pytest.fixture(autouse=True)
def probed_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that failed is probed after a fourth of the time that it takes on a server."""
    monkeypatch.setattr(rate_limit, "PROBE_SECONDS", PROBE_SECONDS)


@asynccontextmanager
async def running(certificate: tuple[Path, Path] | None = None) -> AsyncIterator[redis_server.Server]:
    """A Redis server of one's own, which may be stopped."""
    if redis_server.program() is None:
        pytest.skip(redis_server.version())
    server = redis_server.Server(certificate)
    try:
        await asyncio.to_thread(server.start)
        yield server
    except redis_server.NoTls:
        pytest.skip(f"{redis_server.version()} was built without TLS")
    finally:
        server.remove()
        await asyncio.sleep(0.05)  # its clients notice, and close their end


@pytest.fixture
async def redis() -> AsyncIterator[redis_server.Server]:
    """A server on which nothing is counted yet."""
    async with running() as server:
        yield server


@asynccontextmanager
async def asking(server: redis_server.Server) -> AsyncIterator[Redis]:
    """A client of the server's."""
    async with Redis.from_url(server.url, decode_responses=True) as client:
        yield client


@asynccontextmanager
async def limited(redis: redis_server.Server, **settings: Any) -> AsyncIterator[Api]:
    """A server that counts in Redis."""
    async with open_store("memory://") as store, serving(store, rate_limit_storage=redis.url, **settings) as api:
        yield api


def remaining(reply: httpx2.Response) -> int:
    """How many requests more the answer says may be sent."""
    return int(reply.headers["ratelimit"].partition(";r=")[2].partition(";")[0])


def records(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    """The messages that the rate limiters logged at a level."""
    return [record.getMessage() for record in caplog.records if record.name == LOGGER and record.levelno == level]


# --- one count -------------------------------------------------------------------------------------------


async def test_servers_share_one_count(redis: redis_server.Server) -> None:
    """Two servers with four workers each let in, together, what one owner may send: the limit is not divided."""
    settings = {"rate_limit": "5/minute", "workers": 4}
    async with limited(redis, **settings) as one, limited(redis, **settings) as two:
        replies = [await api.client.get(PATH) for api in (one, two, two, one, two, one, two)]
    assert [reply.status_code for reply in replies] == [200] * 5 + [429] * 2
    assert [remaining(reply) for reply in replies] == [4, 3, 2, 1, 0, 0, 0]
    assert {reply.headers["ratelimit-policy"] for reply in replies} == {'"owner";q=5;w=60'}


@pytest.mark.parametrize("microseconds", [20, 50, 100, 200, 400])
async def test_requests_at_once_are_counted_once_each(
    redis: redis_server.Server, microseconds: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first two hundred requests, within a few milliseconds, exactly as many are let in as may be."""
    # Who waits too long is let in, and the machine may be busy.
    monkeypatch.setattr("chatkeep.api.rate_limit.TIMEOUT_SECONDS", 20)
    async with (
        aclosing(RateLimiter("40/minute", redis.url)) as one,
        aclosing(RateLimiter("40/minute", redis.url)) as two,
    ):

        async def hit(number: int) -> bool:
            await asyncio.sleep(number * microseconds / 1e6)
            return (await (one, two)[number % 2].hit("ada")).allowed

        assert sum(await asyncio.gather(*map(hit, range(200)))) == 40
    assert not caplog.records


async def test_refusals_share_one_count(redis: redis_server.Server) -> None:
    """An address that guesses tokens is counted over all servers."""
    settings = {"auth": "jwt", "jwt_secret": SECRET, "failure_limit": "3/minute", "workers": 2}
    async with limited(redis, **settings) as one, limited(redis, **settings) as two:
        replies = [await api.client.get(PATH, headers=WRONG) for api in (one, two, one, two, one)]
    assert [reply.status_code for reply in replies] == [401, 401, 401, 429, 429]
    assert_problem(replies[3], 429, "zq7", "redis")
    assert 1 <= int(replies[3].headers["retry-after"]) <= 60


async def test_an_owner_is_not_an_address(redis: redis_server.Server) -> None:
    """An owner who is called like an address is not refused for the tokens that were guessed there."""
    settings = {"auth": "jwt", "jwt_secret": SECRET, "rate_limit": "3/minute", "failure_limit": "3/minute"}
    async with limited(redis, **settings) as api:
        for _ in range(4):
            refused = await api.client.get(PATH, headers=WRONG)
        assert refused.status_code == 429
        reply = await api.client.get(PATH, headers=bearer("127.0.0.1"))
        assert (reply.status_code, remaining(reply)) == (200, 2)


async def test_retry_after_is_long_enough(redis: redis_server.Server) -> None:
    """Who waits for the seconds of Retry-After is let in, and who does not is refused."""
    async with limited(redis, rate_limit="3/2second") as api:
        for _ in range(2):
            replies = [await api.client.get(PATH) for _ in range(5)]
            refused = replies[-1]
            assert [reply.status_code for reply in replies[-2:]] == [429, 429]
            assert refused.headers["ratelimit-policy"] == '"owner";q=3;w=2'
            assert remaining(refused) == 0
            seconds = int(refused.headers["retry-after"])
            assert 1 <= seconds <= 2
            assert refused.headers["ratelimit"].endswith((f";t={seconds}", ";t=0"))
            await asyncio.sleep(seconds)
            assert (await api.client.get(PATH)).status_code == 200


async def test_owners_have_counts_of_their_own(redis: redis_server.Server) -> None:
    """Names that differ are counted apart, as are an owner and an address of the same name."""
    names = ("ada", "ada/2", "Ada", "zoë 🙂", "{ada}", "10.0.0.7")
    async with (
        aclosing(RateLimiter("2/minute", redis.url)) as owners,
        aclosing(RateLimiter("2/minute", redis.url, kind="address")) as addresses,
    ):
        assert [(await owners.hit(name)).remaining for name in names for _ in range(2)] == [1, 0] * len(names)
        assert (await addresses.hit("10.0.0.7")).headers["RateLimit"].startswith('"address";r=1;')
        assert not (await owners.hit("ada")).allowed


async def test_redis_learns_no_names(redis: redis_server.Server) -> None:
    """No key has a name in it, and every key ends by itself."""
    async with aclosing(RateLimiter("2/minute", redis.url)) as limiter, asking(redis) as client:
        await limiter.hit("zq7ada")
        keys = sorted(await client.keys("*"))
        lifetimes = [await client.ttl(key) for key in keys]
    assert keys
    assert not [key for key in keys if "zq7" in key]
    assert all(key.startswith("chatkeep:owner:") for key in keys)
    assert all(0 < seconds <= 120 for seconds in lifetimes)


# --- Redis fails -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fail", "revive"), [("stop", "start"), ("hang", "wake")])
async def test_redis_that_fails(
    redis: redis_server.Server, fail: str, revive: str, caplog: pytest.LogCaptureFixture
) -> None:
    """While Redis is down, or does not answer, everybody is let in at once, with one line in the log; when it is
    back, requests are counted."""
    caplog.set_level(logging.INFO, LOGGER)
    async with limited(redis, rate_limit="5/minute") as api:
        assert remaining(await api.client.get(PATH)) == 4
        getattr(redis, fail)()
        began = time.monotonic()
        replies = await asyncio.gather(*(api.client.get(PATH) for _ in range(20)))
        assert [reply.status_code for reply in replies] == [200] * 20
        assert time.monotonic() - began < 1.5
        assert await slow_requests(api, PROBE_SECONDS + TIMEOUT_SECONDS) <= 3
        getattr(redis, revive)()
        await until_counted(api)
        statuses = [(await api.client.get(PATH)).status_code for _ in range(6)]
        assert statuses[-1] == 429
        assert set(statuses) <= {200, 429}
    (warning,) = records(caplog, logging.WARNING)
    assert "not counted" in warning
    assert len(records(caplog, logging.INFO)) == 1
    assert "zq7" not in caplog.text


async def test_redis_that_restarts(redis: redis_server.Server) -> None:
    """A Redis that was started anew counts again without a pause, after letting in who came at that moment."""
    async with aclosing(RateLimiter("60/minute", redis.url)) as limiter:
        assert (await limiter.hit("ada")).remaining == 59
        redis.stop()
        await asyncio.to_thread(redis.start)
        assert all(result.allowed for result in await asyncio.gather(*(limiter.hit("ada") for _ in range(50))))
        assert (await limiter.hit("ada")).remaining < 60


async def test_redis_that_comes_late(redis: redis_server.Server) -> None:
    """A server that was started before its Redis counts when that is there."""
    redis.stop()
    async with aclosing(RateLimiter("5/minute", redis.url)) as limiter:
        assert [(await limiter.hit("ada")).remaining for _ in range(2)] == [5, 5]
        redis.start()
        await asyncio.sleep(PROBE_SECONDS)
        assert [(await limiter.hit("ada")).remaining for _ in range(2)] == [4, 3]


async def test_redis_that_cuts_connections(
    redis: redis_server.Server, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are counted, each of them, after Redis has closed idle connections and forgotten its scripts."""
    monkeypatch.setattr("chatkeep.api.rate_limit.TIMEOUT_SECONDS", 10.0)  # twenty new connections take a while
    async with aclosing(RateLimiter("100/minute", redis.url)) as limiter, asking(redis) as client:
        for _ in range(3):
            await asyncio.gather(*(limiter.hit("ada") for _ in range(20)))
            await client.client_kill_filter(_type="normal", skipme=True)
            await client.script_flush()
            await asyncio.sleep(0.05)  # until the end of the connections has come here
        assert (await limiter.hit("ada")).remaining == 39
    assert not caplog.records


@pytest.mark.parametrize("ends", [True, False])
async def test_no_request_is_counted_twice(redis: redis_server.Server, ends: bool) -> None:
    """A request whose answer is lost, as the connection ends or falls silent, is not sent again; the next is counted
    at once."""
    async with losing_answers(redis, ends=ends) as (url, lost), aclosing(RateLimiter("100/minute", url)) as limiter:
        assert (await limiter.hit("ada")).remaining == 99
        lost.append(1)
        assert (await limiter.hit("ada")).remaining == 100
        assert not lost
        assert (await limiter.hit("ada")).remaining == 97


@asynccontextmanager
async def losing_answers(redis: redis_server.Server, *, ends: bool) -> AsyncIterator[tuple[str, list[int]]]:
    """A URL at which Redis is asked through a relay, and how many answers, or what follows these, get lost there."""
    lost: list[int] = []

    async def relay(source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, answers: bool) -> None:
        with closing(sink):
            while data := await source.read(65_536):
                if answers and lost:
                    lost.pop()
                    if ends:
                        return
                    await source.read(-1)
                sink.write(data)

    async def connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_redis, to_redis = await asyncio.open_connection("127.0.0.1", redis.port)
        await asyncio.gather(relay(reader, to_redis, answers=False), relay(from_redis, writer, answers=True))

    async with await asyncio.start_server(connect, "127.0.0.1", 0) as server:
        yield redis.url.replace(f":{redis.port}", f":{server.sockets[0].getsockname()[1]}"), lost


async def slow_requests(api: Api, seconds: float) -> int:
    """Send requests for some time, all of which have to be let in, and count those that waited."""
    slow, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        began = time.monotonic()
        assert (await api.client.get(PATH)).status_code == 200
        took = time.monotonic() - began
        assert took < 1.5
        slow += took > TIMEOUT_SECONDS / 2
        await asyncio.sleep(0.02)
    return slow


async def until_counted(api: Api) -> None:
    """Send requests until one is counted."""
    end = time.monotonic() + 2
    while remaining(await api.client.get(PATH)) == 5:
        assert time.monotonic() < end, "requests were not counted again"
        await asyncio.sleep(0.1)


async def test_redis_that_was_never_there(redis: redis_server.Server, caplog: pytest.LogCaptureFixture) -> None:
    """With a password that is wrong everybody is let in; neither it nor the URL stands in the log."""
    for storage in (redis.url_with("zq7wrong"), "redis://:zq7wrong@127.0.0.1:1/0"):
        caplog.clear()
        async with aclosing(RateLimiter("1/minute", storage)) as limiter:
            results = [await limiter.hit("ada") for _ in range(10)]
        assert all(result.allowed for result in results)
        assert {result.headers["RateLimit"] for result in results} == {'"owner";r=1;t=60'}
        assert len(records(caplog, logging.WARNING)) == 1
        assert "zq7" not in caplog.text


def test_processes_share_one_count(redis: redis_server.Server, tmp_path: Path) -> None:
    """Two worker processes let in what one owner may send, and serve on without Redis; the log has no password."""
    settings = {"rate_limit": "6/minute", "rate_limit_storage": redis.url}
    with served(tmp_path, "--workers", "2", **settings) as (_, client):

        def ask(times: int) -> list[int]:
            # A new connection each time: another worker may take it.
            headers = {"Connection": "close"}
            return [client.get(PATH, headers=headers).status_code for _ in range(times)]

        assert ask(12) == [200] * 6 + [429] * 6
        redis.stop()
        assert ask(20) == [200] * 20
    log = log_of(tmp_path)
    assert 1 <= log.count("are not counted") <= 2
    assert "zq7" not in log


# --- the end ---------------------------------------------------------------------------------------------


async def test_the_server_closes_its_connections(redis: redis_server.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the server has ended, Redis has no client of its any more."""
    monkeypatch.setattr("chatkeep.api.server.configure", lambda form, level: None)  # of this process's log
    settings = Settings(port=0, database_url="memory://", rate_limit="5/minute", rate_limit_storage=redis.url)
    server = Server(settings)
    running = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as api, asking(redis) as client:
        assert remaining(await api.get(PATH)) == 4
        assert len(await client.client_list()) > 1
        server.should_exit = True
        await asyncio.wait_for(running, 3)
        await asyncio.sleep(0.05)
        assert len(await client.client_list()) == 1


async def test_redis_that_hangs_does_not_keep_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections are given up whose end Redis would have to confirm."""
    certificate = self_signed(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with running(certificate) as redis:
        limiter = RateLimiter("5/minute", redis.url)
        assert (await limiter.hit("ada")).remaining == 4
        redis.hang()
        began = time.monotonic()
        await limiter.aclose()
        assert time.monotonic() - began < 2 * TIMEOUT_SECONDS
        redis.wake()


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "storage",
    [
        "zq7://:zq7@127.0.0.1:1",
        "redis://:zq7/x@127.0.0.1:1",
        "redis://:zq7@127.0.0.1:zq7",
        "redis://:zq7@127.0.0.1:99999",
        "redis://[zq7",
        "redis:zq7",
        "redis://127.0.0.1?zq7=1",
        "rediss://127.0.0.1?ssl_cert_reqs=zq7",
        "valkey://:zq7@127.0.0.1:1",
        "memory://zq7",
        "zq7",
    ],
)
def test_storages_that_are_refused(storage: str) -> None:
    """What is no URL of Redis is refused when the server starts, in a sentence without the URL."""
    with pytest.raises(InvalidInput, match="CHATKEEP_RATE_LIMIT_STORAGE") as caught:
        rate_limiters(Settings(rate_limit_storage=storage))
    assert "zq7" not in str(caught.value)
    assert caught.value.__context__ is None or caught.value.__suppress_context__
    assert "zq7" not in f"{Settings(rate_limit_storage=storage)!r}"


def test_redis_needs_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the driver the error says how to get it."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    monkeypatch.delitem(sys.modules, "chatkeep.api.redis_pool", raising=False)
    with pytest.raises(InvalidInput, match=r"chatkeep\[redis\]"):
        RateLimiter("1/minute", "redis://127.0.0.1")
    assert RateLimiter("1/minute")


# --- TLS -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "trusted", "counts"),
    [("127.0.0.1", True, True), ("127.0.0.1", False, False), ("127.0.0.2", True, False)],
)
async def test_tls(address: str, trusted: bool, counts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With rediss:// Redis is asked only where its certificate is trusted and is that of its address."""
    certificate = self_signed(tmp_path, address)
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with running(certificate) as redis, aclosing(RateLimiter("5/minute", redis.url)) as limiter:
        left = [(await limiter.hit("ada")).remaining for _ in range(3)]
    assert (min(left) < 5) == counts


async def test_tls_that_breaks_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Redis that restarts again and again holds nobody up over TLS, and counts at once each time."""
    certificate = self_signed(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    async with running(certificate) as redis, aclosing(RateLimiter("100/minute", redis.url)) as limiter:
        for _ in range(5):
            redis.stop()
            await asyncio.to_thread(redis.start)
            began = time.monotonic()
            assert all(result.allowed for result in await asyncio.gather(*(limiter.hit("ada") for _ in range(10))))
            assert time.monotonic() - began < 1.5
            assert (await limiter.hit("ada")).remaining < 100


async def test_tls_is_prepared_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authorities of the system, which take some 40 ms, are not read for each connection."""
    certificate = self_signed(tmp_path, "127.0.0.1")
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
    made = Mock(wraps=ssl.create_default_context)
    monkeypatch.setattr("ssl.create_default_context", made)
    async with running(certificate) as redis, aclosing(RateLimiter("100/minute", redis.url)) as limiter:
        await asyncio.gather(*(limiter.hit("ada") for _ in range(30)))
        assert (await limiter.hit("ada")).remaining == 69
    made.assert_called_once()


def self_signed(folder: Path, address: str) -> tuple[Path, Path]:
    """The files of a certificate for an address, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "redis")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    files = folder / "certificate", folder / "key"
    files[0].write_bytes(certificate.public_bytes(Encoding.PEM))
    files[1].write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return files
