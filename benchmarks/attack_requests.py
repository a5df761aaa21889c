"""Attacks by requests that are each in order: many of them, or ones that cost much."""

import base64
import json
import time
from collections.abc import Iterator
from functools import partial

import jwt

from benchmarks.attack_prepare import LIST_MESSAGES
from benchmarks.attack_texts import MESSAGES, said
from benchmarks.attacker import Attack, Attacker

SECONDS = 5.0
NAMES = 100_000


def nothing(_: Attacker) -> None:
    """No attack: the yardstick."""
    time.sleep(SECONDS)


def erase(attacker: Attacker) -> None:
    """Erase everything of one's own, ten times."""
    for _ in range(10):
        attacker.ask("DELETE", "/api/me")


def erase_again(attacker: Attacker) -> None:
    """Create a conversation with a message, and erase everything, again and again."""

    def work(_: int) -> None:
        _, body = attacker.ask("POST", "/api/conversations", b"{}")
        if body.startswith(b'{"id"'):
            attacker.ask("POST", f"/api/conversations/{json.loads(body)['id']}/messages", said("x"))
        attacker.ask("DELETE", "/api/me")

    attacker.for_seconds(SECONDS, 2, work)


def large_writes(attacker: Attacker) -> None:
    """Messages of 1 MB as fast as they are taken."""
    body = said("x" * 1_000_000, "assistant")
    attacker.for_seconds(SECONDS, 8, lambda _: attacker.ask("POST", MESSAGES, body))


# --- names that are counted -----------------------------------------------------------------------------------


def addresses(attacker: Attacker) -> None:
    """A token that is not valid, from 20,000 addresses."""
    request = f"GET {MESSAGES} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer no\r\nConnection: close\r\n\r\n"

    def work(number: int) -> None:
        if number >= 20_000:
            time.sleep(0.1)
            return
        attacker.requests += 1
        try:
            with attacker.connect(f"127.{1 + number // 62_500}.{number // 250 % 250}.{2 + number % 250}") as connection:
                attacker.send(connection, request.encode())
                attacker.answers[str(attacker.read(connection)[0])] += 1
        except OSError as error:
            attacker.answers[type(error).__name__] += 1

    attacker.for_seconds(8.0, 16, work)


def forwarded(attacker: Attacker) -> None:
    """A token that is not valid, from addresses that only a header names."""

    def work(number: int) -> None:
        address = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
        attacker.ask("GET", MESSAGES, token="no", headers=f"X-Forwarded-For: {address}\r\n")

    attacker.for_seconds(8.0, 16, work)


def owners(attacker: Attacker) -> None:
    """Valid tokens of many owners, as an issuer where anybody can sign up gives them."""
    expires = int(time.time()) + 3_600
    tokens = [jwt.encode({"sub": f"o{n}", "exp": expires}, attacker.secret, "HS256") for n in range(NAMES // 4)]

    def work(number: int) -> None:
        attacker.ask("GET", "/api/conversations?limit=1", token=tokens[number % len(tokens)])

    attacker.for_seconds(8.0, 16, work)


# --- tokens ---------------------------------------------------------------------------------------------------


def deep_tokens(attacker: Attacker) -> None:
    """Tokens of 16 kB that hold lists in lists, from addresses that change before they are refused."""
    deep = base64.urlsafe_b64encode(b'{"a":' + b"[" * 11_000).rstrip(b"=").decode()
    head = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').rstrip(b"=").decode()
    tokens = (f"{deep}.{head[:8]}.x", f"{head}.{deep}.x", "a." * 8_000, "." * 16_000)

    def work(number: int) -> None:
        address = f"X-Forwarded-For: 10.{number >> 14 & 255}.{number >> 6 & 255}.1\r\n"
        attacker.ask("GET", MESSAGES, token=tokens[number % len(tokens)], headers=address)

    attacker.for_seconds(SECONDS, 8, work)


def unknown_keys(attacker: Attacker) -> None:
    """Tokens that name keys which the issuer does not have, while the issuer answers slowly."""
    header, payload = {"alg": "RS256", "typ": "JWT"}, {"sub": "x", "aud": "attacks", "exp": 9_999_999_999}

    def work(number: int) -> None:
        parts = ({**header, "kid": f"k{number}"}, payload)
        text = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        attacker.ask("GET", MESSAGES, token=f"{text}.AAAA")
        time.sleep(0.1)

    attacker.for_seconds(12.0, 4, work)


# --- lists ----------------------------------------------------------------------------------------------------


def totals(attacker: Attacker) -> None:
    """Pages far into a long list, with the total counted each time."""
    paths = [
        f"{MESSAGES}?limit=1&total=true",
        *(f"{MESSAGES}?limit=50&page={page}" for page in (20, 100, 201)),  # no page begins after 10,000 items
        f"{MESSAGES}?limit=1&total=true&order=asc&after={LIST_MESSAGES // 2}",
        "/api/conversations?total=true&limit=1",
    ]
    attacker.for_seconds(SECONDS, 16, lambda number: attacker.ask("GET", paths[number % len(paths)]))


def cursors(attacker: Attacker) -> None:
    """All pages of a long list by their cursors, sixteen readers at a time, and again."""
    readers = [_pages(attacker) for _ in range(16)]

    def work(_: int) -> None:
        if reader := readers.pop() if readers else None:
            next(reader)
            readers.append(reader)

    attacker.for_seconds(SECONDS, 16, work)


def _pages(attacker: Attacker) -> Iterator[None]:
    cursor = ""
    while True:
        _, body = attacker.ask("GET", f"{MESSAGES}?limit=200{cursor}")
        following = json.loads(body).get("next") if body.startswith(b"{") else None
        cursor = f"&cursor={following}" if following else ""
        yield


def searches(attacker: Attacker) -> None:
    """Searches that every one of 100,000 messages answers, with their cursors."""

    def work(_: int) -> None:
        cursor = ""
        for _ in range(20):
            _, body = attacker.ask("GET", f"/api/search?q=said&limit=200{cursor}")
            following = json.loads(body).get("next") if body.startswith(b"{") else None
            cursor = f"&cursor={following}" if following else ""

    attacker.for_seconds(SECONDS, 8, work)


def siblings(attacker: Attacker) -> None:
    """Pages of the alternatives to a message, of which there are 320."""
    body = json.dumps({"role": "assistant", "content": "x" * 4_000, "parent_id": None}).encode()
    _, first = attacker.ask("POST", MESSAGES, body)
    attacker.at_once(8, partial(attacker.ask, "POST", MESSAGES, body), times=40)
    path = f"{MESSAGES}/{json.loads(first)['id']}/siblings?limit=200"
    attacker.for_seconds(4.0, 8, lambda _: attacker.ask("GET", path))


ATTACKS = (
    Attack("nothing", nothing, "no attack, for 5 s"),
    Attack("erase-large", erase, "DELETE /api/me ten times, beside 300 MB of another owner", ("bulk",), seconds=30.0),
    Attack("erase-again", erase_again, "write and DELETE /api/me in turn, for 5 s", ("bulk",)),
    Attack("writes-large", large_writes, "messages of 1 MB, eight at a time, for 5 s"),
    Attack("limits-addresses", addresses, "failed tokens from 20,000 addresses, for 8 s"),
    Attack("limits-forwarded", forwarded, "failed tokens from addresses of a header, for 8 s"),
    Attack("limits-owners", owners, "valid tokens of 25,000 owners, for 8 s"),
    Attack("auth-tokens", deep_tokens, "tokens of 16 kB of lists in lists, for 5 s"),
    Attack("auth-issuer", unknown_keys, "the issuer answers by single bytes, for 12 s", issuer=True, seconds=14.0),
    Attack("lists-total", totals, "totals and late pages of 100,000 messages, for 5 s", ("list",)),
    Attack("lists-cursors", cursors, "all pages of 100,000 messages by cursor, for 5 s", ("list",)),
    Attack("lists-search", searches, "searches that 100,000 messages answer, for 5 s", ("list",)),
    Attack("lists-siblings", siblings, "320 alternatives of a message, 200 in one page"),
)
