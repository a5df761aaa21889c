"""Requests counted in memory: the sliding window, what it costs, and whose address is counted."""

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from limits import parse
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from test_auth import SECRET, bearer, token
from test_server import served

from chatkeep import open_store
from chatkeep.api import sliding_window
from chatkeep.api.client_address import ClientAddress
from chatkeep.api.rate_limit import RateLimiter, RateLimiters
from chatkeep.api.sliding_window import SlidingWindow
from chatkeep.settings import Settings
from servers.api import serving

PATH = "/api/conversations"
NAMES = 100_000


class Clock:
    """A clock that is set by hand."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


async def test_counts_are_those_of_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over many windows each request is decided as by the sliding window that Redis has, with the same numbers."""
    clock, item = Clock(), parse("7/10 second")
    ours = SlidingWindow(7, 10, clock=clock)
    theirs = SlidingWindowCounterRateLimiter(MemoryStorage())
    monkeypatch.setattr(time, "time", clock)
    allowed = []
    for step in range(3_000):
        clock.now += (0.3, 0.9, 2.0, 0.1)[step // 50 % 4] + (25 if step % 500 == 499 else 0)
        name = f"name {step % 2}"
        state = ours.hit(name)
        allowed.append(await theirs.hit(item, name))
        stats = await theirs.get_window_stats(item, name)
        assert state[:2] == (allowed[-1], stats.remaining)
        assert state.reset_at == pytest.approx(stats.reset_time, abs=1e-3)
    assert set(allowed) == {True, False}


async def test_many_names_cost_nothing() -> None:
    """A request costs the same with a hundred thousand names, and no request pays for those that expired."""
    clock = Clock()
    window = SlidingWindow(600, 60, clock=clock)
    for number in range(NAMES):
        window.hit(f"other {number}")
    assert seconds_of_a_hit(window) < 100e-6
    clock.now += 60
    longest = 0.0
    for number in range(2_000):
        began = time.perf_counter()
        window.hit(f"new {number}")
        longest = max(longest, time.perf_counter() - began)
        clock.now += 0.06
    assert longest < 0.25


def seconds_of_a_hit(window: SlidingWindow) -> float:
    """The CPU time of one, on average."""
    began = time.process_time()
    for number in range(2_000):
        window.hit(f"name {number % 100}")
    return (time.process_time() - began) / 2_000


async def test_many_names_delay_no_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a hundred thousand names are counted a request takes as much time as before."""
    limiters = RateLimiters(RateLimiter("1000/minute"), RateLimiter("60/minute", kind="address"), None)
    monkeypatch.setattr("chatkeep.api.app.rate_limiters", lambda settings: limiters)
    async with open_store("memory://") as store, serving(store) as api:
        for number in range(NAMES):
            await limiters.address.hit(f"other {number}")
        assert (await api.client.get(PATH)).status_code == 200
        began = time.process_time()
        for _ in range(50):
            assert (await api.client.get(PATH)).status_code == 200
        # CPU seconds of client and server, of which one request takes 3 ms.
        assert (time.process_time() - began) / 50 < 0.015


async def test_names_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond so many names in a window further ones are not counted; those that are counted are limited all the same,
    and in the next window others are."""
    monkeypatch.setattr(sliding_window, "MAX_NAMES", 10)
    clock = Clock()
    window = SlidingWindow(2, 60, clock=clock)
    for number in range(1_000):
        window.hit(f"other {number}")
    assert [window.hit("other 3").allowed for _ in range(3)] == [True, False, False]
    assert [window.hit("new").allowed for _ in range(5)] == [True] * 5
    clock.now += 120
    assert [window.hit("new").allowed for _ in range(3)] == [True, True, False]


async def test_a_clock_that_is_set_back() -> None:
    """If the clock is set back, counting begins anew."""
    clock = Clock()
    window = SlidingWindow(2, 60, clock=clock)
    assert [window.hit("ada").allowed for _ in range(3)] == [True, True, False]
    clock.now -= 3600
    assert [window.hit("ada").allowed for _ in range(3)] == [True, True, False]


@pytest.mark.long
async def test_each_process_allows_the_whole_limit(tmp_path: Path) -> None:
    """A client that keeps its connection, and so stays with one of two processes, has the whole quota."""
    settings = {"rate_limit": "8/hour"}
    with served(tmp_path, "--workers", "2", **settings) as (_, client), httpx2.Client(base_url=client.base_url) as kept:
        replies = [kept.get(PATH) for _ in range(9)]
    assert [reply.status_code for reply in replies] == [200] * 8 + [429]
    assert {reply.headers["ratelimit-policy"] for reply in replies} == {'"owner";q=8;w=3600'}


# --- addresses -------------------------------------------------------------------------------------------


def counted(peer: str, *forwarded: str, trusted: str = "10.0.0.0/8,fd00::/8") -> str:
    """The address that is counted, for a peer and the values of X-Forwarded-For."""
    settings = Settings.model_validate({"trusted_proxies": trusted})
    headers = [(b"x-forwarded-for", value.encode("latin-1")) for value in forwarded]
    return ClientAddress(settings.proxy_networks).of({"client": (peer, 1), "headers": headers})


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("", ""),
        ("zq7", "zq7"),
    ],
)
def test_networks_that_are_counted(peer: str, address: str) -> None:
    """An IPv6 address is counted by its /64, an IPv4 address as it is, however it is written."""
    assert counted(peer) == address
    assert counted(peer, "192.0.2.99", trusted="") == address


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        (["192.0.2.1"], "192.0.2.1"),
        (["192.0.2.66, 192.0.2.1"], "192.0.2.1"),
        (["192.0.2.66", "192.0.2.1"], "192.0.2.1"),
        (["192.0.2.66, 192.0.2.1, 10.1.1.1, fd00::5"], "192.0.2.1"),
        (["192.0.2.1:5678"], "192.0.2.1"),
        (["[2001:db8::7]:5678, 10.1.1.1:80"], "2001:db8::/64"),
        (["2001:db8::7"], "2001:db8::/64"),
        (["::ffff:192.0.2.1"], "192.0.2.1"),
        (["zq7, 192.0.2.1"], "192.0.2.1"),
        (["10.1.1.1, 10.2.2.2"], "10.1.1.1"),
        (["192.0.2.1, zq7"], "10.0.0.1"),
        (["192.0.2.1, "], "10.0.0.1"),
        (["unknown"], "10.0.0.1"),
        (["_hidden"], "10.0.0.1"),
        (["[::1"], "::/64"),
        ([""], "10.0.0.1"),
        ([], "10.0.0.1"),
        ([","], "10.0.0.1"),
        (["é"], "10.0.0.1"),
        (["1." * 30_000], "10.0.0.1"),
    ],
)
def test_what_trusted_proxies_say(forwarded: list[str], address: str) -> None:
    """The last address that is no proxy's counts: what is left of it anybody may have written."""
    assert counted("10.0.0.1", *forwarded) == address
    assert counted("::ffff:10.0.0.1", *forwarded) == address


async def wrong(api: Any, address: str) -> int:
    """The status of a wrong token that is said to come from an address."""
    headers = {"Authorization": f"Bearer {token('x' * 40, 'HS256')}", "X-Forwarded-For": address}
    status: int = (await api.client.get(PATH, headers=headers)).status_code
    return status


async def test_who_may_say_the_address() -> None:
    """By default nobody may, also not a client on this machine; a proxy that is configured may."""
    given = {"auth": "jwt", "jwt_secret": SECRET, "failure_limit": "2/hour"}
    async with open_store("memory://") as store:
        async with serving(store, **given) as api:
            assert [await wrong(api, f"192.0.2.{number}") for number in range(4)] == [401, 401, 429, 429]
        async with serving(store, **given, trusted_proxies=["127.0.0.1"]) as api:
            assert [await wrong(api, f"192.0.2.{number}") for number in range(4)] == [401] * 4
            assert [await wrong(api, f"2001:db8::{number}") for number in range(4)] == [401, 401, 429, 429]
            assert await wrong(api, "2001:db8:0:1::1") == 401
            assert (await api.client.get(PATH, headers=bearer())).status_code == 200


def test_the_server_believes_no_header_of_its_own(tmp_path: Path) -> None:
    """`chatkeep serve` counts the address of the peer, although uvicorn would believe a client on loopback."""
    settings = {"auth": "jwt", "jwt_secret": SECRET, "failure_limit": "2/hour"}
    with served(tmp_path, **settings) as (_, client):
        statuses = [client.get(PATH, headers={"X-Forwarded-For": f"192.0.2.{n}"}).status_code for n in range(4)]
    assert statuses == [401, 401, 429, 429]
