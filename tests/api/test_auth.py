"""Tokens and API keys: what is let in, what is not, and an issuer that rotates its keys and goes away."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import SecretStr, ValidationError

from chatkeep import InvalidInput, Store, Unauthenticated, open_store
from chatkeep.api import jwks
from chatkeep.api.auth import MAX_CREDENTIAL_CHARS, Authenticator
from chatkeep.api.jwks import COOLDOWN_SECONDS, LIFETIME_SECONDS, IssuerUnavailable, JwksClient
from chatkeep.keys import ADMIN, READ, make_key, parse_key
from chatkeep.settings import Settings
from servers.api import Api, assert_problem, serving

SECRET = "zq7" + "s" * 64
AUDIENCE = "chatkeep-tests"
RSA_KEY = rsa.generate_private_key(65537, 2048)
EC_KEY = ec.generate_private_key(ec.SECP384R1())


class FakeIssuer:
    """An OpenID Connect issuer on loopback: its discovery document and its keys."""

    def __init__(self) -> None:
        self.keys: dict[str, Any] = {"rsa": RSA_KEY, "ec": EC_KEY}
        self.fetched = 0
        self.issuer: str | None = None
        self.url = ""
        self.pause = 0.0
        """Seconds before each byte of an answer."""
        self.discovery: dict[str, Any] | bytes | None = None
        """What is said in place of the discovery document."""
        self.key_set: bytes | None = None
        """What is said in place of the keys."""
        self.ended = asyncio.get_running_loop().create_future()
        """Done when nobody shall wait any longer."""
        self.more_keys: list[Any] = []
        """What is listed before the keys."""

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        body: Any = {"keys": [*self.more_keys, *(public(name, key) for name, key in self.keys.items())]}
        if "well-known" in path:
            body = {"issuer": self.issuer or self.url, "jwks_uri": f"{self.url}/keys"}
            body = body if self.discovery is None else self.discovery
        else:
            self.fetched += 1
            body = body if self.key_set is None else self.key_set
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text
        with suppress(ConnectionError):
            for part in [reply] if self.pause == 0 else [reply[at : at + 1] for at in range(len(reply))]:
                await asyncio.wait([self.ended], timeout=self.pause)
                writer.write(part)
                await writer.drain()
        writer.close()

    def token(self, key: str = "rsa", **values: Any) -> str:
        """A token of this issuer's."""
        algorithm = {"rsa": "RS256", "ec": "ES384"}[key]
        return token(self.keys[key], algorithm, {"kid": key}, iss=self.url, **values)


def public(name: str, key: Any) -> dict[str, Any]:
    """A key as an issuer publishes it."""
    algorithm = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": name, "use": "sig"}


def token(key: Any, algorithm: str, headers: dict[str, str] | None = None, **values: Any) -> str:
    """A token that is valid but for what `values` change; None leaves a claim away."""
    claims = {"sub": "ada", "aud": AUDIENCE, "exp": int(time.time()) + 60, **values}
    return jwt.encode({k: v for k, v in claims.items() if v is not None}, key, algorithm, headers=headers)


def signed_with_public_key(claims: dict[str, Any], key: bytes) -> str:
    """An HS256 token whose secret is what everybody knows; by hand, for the library refuses to make it."""
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=")
             for part in ({"alg": "HS256", "typ": "JWT", "kid": "rsa"}, claims)]  # fmt: skip
    signature = hmac.new(key, b".".join(parts), hashlib.sha256).digest()
    return b".".join((*parts, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


@asynccontextmanager
async def issuing() -> AsyncIterator[FakeIssuer]:
    """An issuer that listens."""
    issuer = FakeIssuer()
    server = await asyncio.start_server(issuer.answer, "127.0.0.1", 0)
    issuer.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield issuer
    finally:
        issuer.ended.set_result(None)
        server.close()
        await server.wait_closed()


@pytest.fixture
async def issuer() -> AsyncIterator[FakeIssuer]:
    async with issuing() as issuer:
        yield issuer


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    async with open_store("memory://") as store:
        yield store


def of_issuer(issuer: FakeIssuer, store: Store) -> Authenticator:
    """An authenticator that trusts the issuer."""
    return Authenticator(Settings(auth="jwt", jwt_issuer=issuer.url, jwt_audience=AUDIENCE), store.access)


def of_secret(store: Store, **settings: Any) -> Authenticator:
    """An authenticator with a shared secret."""
    return Authenticator(Settings.model_validate({"auth": "jwt", "jwt_secret": SECRET, **settings}), store.access)


# --- settings --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"auth": "jwt"}, "needs CHATKEEP_JWT_SECRET or CHATKEEP_JWT_ISSUER"),
        ({"auth": "jwt", "jwt_secret": "zq7" * 10}, "at least 32 bytes"),
        ({"auth": "jwt", "jwt_issuer": "https://zq7.example"}, "needs CHATKEEP_JWT_AUDIENCE"),
        ({"auth": "jwt", "jwt_issuer": "http://zq7.example", "jwt_audience": "a"}, "https"),
        ({"jwt_secret": SECRET}, "CHATKEEP_AUTH is none"),
        ({"cors_origins": ["https://zq7.example", "*"]}, "CHATKEEP_CORS_ORIGINS may not have"),
        ({"cors_origins": ["null"]}, "CHATKEEP_CORS_ORIGINS may not have"),
        ({"trusted_proxies": ["10.0.0.0/8", "zq7.example"]}, "CHATKEEP_TRUSTED_PROXIES"),
        ({"trusted_proxies": ["10.0.0.7/8"]}, "CHATKEEP_TRUSTED_PROXIES"),
    ],
)
def test_settings_that_are_not_safe(settings: dict[str, Any], reason: str) -> None:
    """A server that could not check tokens, or would not although it looks as if, does not start."""
    with pytest.raises(ValidationError, match=reason) as caught:
        Settings(**settings)
    assert "zq7" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    """A secret, and a URL with a password, stand in no repr."""
    settings = Settings(auth="jwt", jwt_secret=SecretStr(SECRET), database_url="postgresql://a:zq7@host/db")
    assert "zq7" not in f"{settings} {settings!r}"


# --- tokens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["rsa", "ec"])
async def test_tokens_of_an_issuer(issuer: FakeIssuer, store: Store, key: str) -> None:
    """A token of the issuer's, by each of its keys, acts for its subject."""
    principal = await of_issuer(issuer, store).principal(f"bearer {issuer.token(key, sub='zoë 🙂')}")
    assert principal.owner == "zoë 🙂"
    assert principal.may_write()


SHARED = {"key": SECRET, "algorithm": "HS256"}


@pytest.mark.parametrize(
    "change",
    [
        {"exp": 1},
        {"exp": None},
        {"exp": "soon"},
        {"sub": None},
        {"sub": ""},
        {"sub": 7},
        {"sub": "a\n"},
        {"sub": "a" * 256},
        {"sub": "é" * 200},
        {"aud": "others"},
        {"aud": None},
        {"iss": "https://zq7.example"},
        {"iss": None},
        {"nbf": int(time.time()) + 86_400},  # the values are made long before the last test runs
    ],
)
async def test_claims_that_are_refused(issuer: FakeIssuer, store: Store, change: dict[str, Any]) -> None:
    """Times, subject, audience and issuer are checked, and each of them has to be there."""
    with pytest.raises(Unauthenticated):
        await of_issuer(issuer, store).principal(f"Bearer {issuer.token(**change)}" if "iss" not in change else
            f"Bearer {token(RSA_KEY, 'RS256', {'kid': 'rsa'}, **change)}")  # fmt: skip


async def test_clocks_may_differ(issuer: FakeIssuer, store: Store) -> None:
    """30 seconds are forgiven, a minute is not."""
    authenticator = of_issuer(issuer, store)
    assert await authenticator.principal(f"Bearer {issuer.token(exp=int(time.time()) - 20)}")
    with pytest.raises(Unauthenticated):
        await authenticator.principal(f"Bearer {issuer.token(exp=int(time.time()) - 60)}")


async def test_algorithms_that_are_refused(issuer: FakeIssuer, store: Store) -> None:
    """alg none, HS256 with the public key, another algorithm than the key's, an unknown key, and a forged one."""
    authenticator = of_issuer(issuer, store)
    claims = {"sub": "ada", "aud": AUDIENCE, "iss": issuer.url, "exp": int(time.time()) + 60}
    pem = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    other = rsa.generate_private_key(65537, 2048)
    forged = [
        jwt.encode(claims, "", "none", headers={"kid": "rsa"}),
        signed_with_public_key(claims, pem),
        jwt.encode(claims, RSA_KEY, "RS512", headers={"kid": "rsa"}),
        jwt.encode(claims, RSA_KEY, "RS256", headers={"kid": "absent"}),
        jwt.encode(claims, RSA_KEY, "RS256"),
        jwt.encode(claims, other, "RS256", headers={"kid": "rsa"}),
    ]
    for text in (*forged, "x", "a.b.c", "a.b.c.d", "é", "x" * 20_000):
        with pytest.raises(Unauthenticated):
            await authenticator.principal(f"Bearer {text}")
    for header in (None, "", "Bearer", "Bearer ", "Basic eDp5", issuer.token()):
        with pytest.raises(Unauthenticated):
            await authenticator.principal(header)


async def test_a_shared_secret_takes_hs256_only(store: Store) -> None:
    """With a secret, no token of another algorithm passes, and no issuer is asked."""
    authenticator = of_secret(store)
    assert (await authenticator.principal(f"Bearer {token(SECRET, 'HS256', aud=None)}")).owner == "ada"
    for text in (token(SECRET, "HS512", aud=None), token(RSA_KEY, "RS256", aud=None), token("x" * 40, "HS256")):
        with pytest.raises(Unauthenticated):
            await authenticator.principal(f"Bearer {text}")


async def test_audience_and_issuer_with_a_secret(store: Store) -> None:
    """They are checked exactly when they are configured."""
    authenticator = of_secret(store, jwt_audience=AUDIENCE, jwt_issuer="me")
    assert await authenticator.principal(f"Bearer {token(SECRET, 'HS256', iss='me')}")
    for change in ({"iss": "you"}, {"iss": "me", "aud": None}, {}):
        with pytest.raises(Unauthenticated):
            await authenticator.principal(f"Bearer {token(SECRET, 'HS256', **change)}")


@pytest.mark.parametrize(
    ("scope", "writes"), [(None, True), ("openid profile", True), (READ, False), (f"{READ} chatkeep:write", True)]
)
async def test_scopes_of_a_token(store: Store, scope: str | None, *, writes: bool) -> None:
    """A token that says nothing about chatkeep lets its owner write; one that says read does not."""
    principal = await of_secret(store).principal(f"Bearer {token(SECRET, 'HS256', aud=None, scope=scope)}")
    assert principal.may_write() == writes


@pytest.mark.parametrize("kind", ["JWT", "jwt", "at+jwt", "AT+JWT", "application/at+jwt", "application/JWT"])
async def test_types_of_tokens(store: Store, kind: str) -> None:
    """An access token may say that it is one, as may any JWT."""
    assert await of_secret(store).principal(f"Bearer {token(SECRET, 'HS256', {'typ': kind}, aud=None)}")


@pytest.mark.parametrize(
    "kind", ["logout+jwt", "dpop+jwt", "secevent+jwt", "JWS", "application/logout+jwt", "text/jwt", "jwt2", 5, ["JWT"]]
)
async def test_other_types_are_refused(store: Store, kind: Any) -> None:
    """What the issuer signed for another purpose is no access token (RFC 8725, 3.11)."""
    with pytest.raises(Unauthenticated):
        await of_secret(store).principal(f"Bearer {token(SECRET, 'HS256', {'typ': kind}, aud=None)}")


def signed(header: str, payload: str) -> str:
    """A token with a valid signature and any text as header and payload, which the library may refuse to make."""
    parts = [base64.urlsafe_b64encode(part.encode()).rstrip(b"=") for part in (header, payload)]
    signature = hmac.new(SECRET.encode(), b".".join(parts), hashlib.sha256).digest()
    return b".".join((*parts, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


HEADER = '{"alg":"HS256","typ":"JWT"}'
HOSTILE_TOKENS = {
    "deep header": signed("[" * 9_000, "{}"),
    "deep value in the header": signed('{"alg":"HS256","x":' + "[" * 8_000, "{}"),
    "deep payload": signed(HEADER, "[" * 11_000),
    "deep objects": signed(HEADER, '{"sub":' * 1_400),
    "crit": signed('{"alg":"HS256","crit":["exp"],"exp":1}', "{}"),
    "crit that is no list": signed('{"alg":"HS256","crit":{"a":1}}', "{}"),
    "long crit": signed('{"alg":"HS256","b64":true,"crit":[' + '"b64",' * 1_900 + '"zq7"]}', "{}"),
    "b64": signed('{"alg":"HS256","b64":false,"crit":["b64"]}', "{}"),
    "exp of 4,000 digits, in the past": signed(HEADER, '{"sub":"ada","exp":-' + "9" * 4_000 + "}"),
    "exp of 9,000 digits": signed(HEADER, '{"sub":"ada","exp":' + "9" * 9_000 + "}"),
    "exp beyond a float": signed(HEADER, '{"sub":"ada","exp":1e400}'),
    "exp that is no number": signed(HEADER, '{"sub":"ada","exp":NaN}'),
    "nbf beyond a float": signed(HEADER, '{"sub":"ada","exp":9999999999,"nbf":1e400}'),
    "iat of 4,000 digits": signed(HEADER, '{"sub":"ada","exp":9999999999,"iat":' + "9" * 4_000 + "}"),
    "long subject": signed(HEADER, json.dumps({"sub": "🙂" * 256, "exp": 9999999999}, ensure_ascii=False)),
    "lone surrogate": signed(HEADER, '{"sub":"\\ud800","exp":9999999999}'),
    "subject of NUL": signed(HEADER, '{"sub":"\\u0000","exp":9999999999}'),
    "subject that is an object": signed(HEADER, '{"sub":{},"exp":9999999999}'),
    "key id that is a list": signed('{"alg":"HS256","kid":["a"]}', "{}"),
    "algorithm that is a list": signed('{"alg":["HS256"]}', "{}"),
    "algorithm that is an object": signed('{"alg":{}}', "{}"),
    "no UTF-8": "_w._w._w",
    "points": "." * 16_000,
    "equals signs": "e30" + "=" * 8_000 + ".e30.e30",
    "long key id": signed('{"alg":"HS256","kid":"' + "k" * 11_000 + '"}', "{}"),
}


@pytest.mark.parametrize("kind", HOSTILE_TOKENS)
async def test_hostile_tokens_are_401(issuer: FakeIssuer, store: Store, kind: str) -> None:
    """Whatever is sent as a token, also with a valid signature, is refused as quickly as any other."""
    text = HOSTILE_TOKENS[kind]
    assert len(text) <= MAX_CREDENTIAL_CHARS
    async with aclosing(of_issuer(issuer, store)) as by_issuer, serving_jwt(store, failure_limit="1000/minute") as api:
        reply = await api.client.get("/api/conversations", headers={"Authorization": f"Bearer {text}"})
        assert_problem(reply, 401, "zq7")
        await by_issuer.principal(f"Bearer {issuer.token()}")
        for authenticator in (of_secret(store), by_issuer):
            began = time.process_time()
            for _ in range(10):
                with pytest.raises(Unauthenticated):
                    await authenticator.principal(f"Bearer {text}")
            assert (time.process_time() - began) / 10 < 0.02


async def test_long_owners_are_taken(store: Store) -> None:
    """A subject of 255 characters that take four bytes each is too long for an owner; one of 63 is not."""
    with pytest.raises(Unauthenticated):
        await of_secret(store).principal(f"Bearer {token(SECRET, 'HS256', sub='🙂' * 255, aud=None)}")
    principal = await of_secret(store).principal(f"Bearer {token(SECRET, 'HS256', sub='🙂' * 63, aud=None)}")
    assert principal.owner == "🙂" * 63


# --- the issuer's keys -----------------------------------------------------------------------------------


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def until(happened: Callable[[], bool]) -> None:
    """Wait for what happens in the background."""
    async with asyncio.timeout(10):
        while not happened():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.005)


async def test_keys_are_fetched_once(issuer: FakeIssuer) -> None:
    """A hundred that ask at the same moment cause one fetch; made-up key ids cause none."""
    clock = Clock()
    keys = JwksClient(issuer.url, clock=clock)
    await asyncio.gather(*(keys.key("rsa") for _ in range(100)))
    for number in range(20):
        with pytest.raises(Unauthenticated):
            await keys.key(f"made up {number}")
    assert issuer.fetched == 1
    clock.now += LIFETIME_SECONDS + 1
    await asyncio.gather(*(keys.key("rsa") for _ in range(100)))
    await until(lambda: issuer.fetched == 2)
    await asyncio.gather(*(keys.key("rsa") for _ in range(100)))
    assert issuer.fetched == 2
    await keys.aclose()


async def test_keys_rotate(issuer: FakeIssuer) -> None:
    """A new key is found when it is named; an old one is no longer taken when the keys are fetched again."""
    clock = Clock()
    keys = JwksClient(issuer.url, clock=clock)
    await keys.key("rsa")
    issuer.keys = {"new": EC_KEY}
    clock.now += COOLDOWN_SECONDS + 1
    assert (await keys.key("new")).algorithm_name == "ES384"
    with pytest.raises(Unauthenticated):
        await keys.key("rsa")


async def test_issuer_that_is_down() -> None:
    """The last keys serve on; without any, nobody knows, which is not the same as a token that is wrong."""
    clock = Clock()
    async with issuing() as issuer:
        keys, late = JwksClient(issuer.url, clock=clock), JwksClient(issuer.url, clock=clock)
        await keys.key("rsa")
    clock.now += LIFETIME_SECONDS + 1
    assert await keys.key("rsa")
    with pytest.raises(IssuerUnavailable):
        await late.key("rsa")
    assert await keys.key("rsa")
    await keys.aclose()


async def test_discovery_of_another_issuer(issuer: FakeIssuer) -> None:
    """A document that names another issuer is not believed, and neither are symmetric keys."""
    issuer.issuer = "https://zq7.example"
    with pytest.raises(IssuerUnavailable):
        await JwksClient(issuer.url).key("rsa")


@pytest.mark.parametrize("pause", [0.02, 60.0])
async def test_slow_issuer_delays_nobody_whose_key_is_known(
    issuer: FakeIssuer, pause: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An issuer that drips bytes, or is silent, is given one deadline; only who names an unknown key waits for it."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 1.0)
    clock = Clock()
    async with aclosing(JwksClient(issuer.url, clock=clock)) as keys:
        await keys.key("rsa")
        issuer.pause, clock.now = pause, LIFETIME_SECONDS + 1
        unknown = [asyncio.create_task(seconds_of(keys, "absent")) for _ in range(20)]
        known = [await seconds_of(keys, "rsa") for _ in range(200)]
        assert max(known) < 0.25
        waited = await asyncio.gather(*unknown)
        assert min(waited) > 0.9
        assert max(waited) < 2.5
        assert await seconds_of(keys, "absent") < 0.25  # the next fetch is not before COOLDOWN_SECONDS


async def seconds_of(keys: JwksClient, key_id: str) -> float:
    """How long it takes to learn whether there is a key."""
    began = time.monotonic()
    with suppress(Unauthenticated):
        await keys.key(key_id)
    return time.monotonic() - began


async def test_slow_issuer_at_the_start(issuer: FakeIssuer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any key everybody waits for the one fetch, at most until its deadline, and a client that leaves does not
    end it."""
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_SECONDS", 1.0)
    issuer.pause = 60.0
    async with aclosing(JwksClient(issuer.url)) as keys:
        leaving = asyncio.create_task(keys.key("rsa"))
        began = time.monotonic()
        waiting = [asyncio.create_task(keys.key("rsa")) for _ in range(20)]
        await asyncio.sleep(0.1)
        leaving.cancel()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert {type(each) for each in results} == {IssuerUnavailable}
        assert 0.9 < time.monotonic() - began < 2.5


async def test_closing_ends_the_fetch(issuer: FakeIssuer) -> None:
    """A server that stops does not wait for its issuer, and leaves no task behind."""
    issuer.pause = 60.0
    keys = JwksClient(issuer.url)
    waiting = asyncio.create_task(keys.key("rsa"))
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await keys.aclose()
    assert time.monotonic() - began < 0.5
    with pytest.raises(IssuerUnavailable):
        await waiting
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "chatkeep-jwks"]


async def test_slow_issuer_delays_no_request(issuer: FakeIssuer, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """While somebody's tokens name unknown keys and the issuer is silent, requests with known keys are answered."""
    monkeypatch.setattr(jwks, "COOLDOWN_SECONDS", 0.0)
    settings = {"auth": "jwt", "jwt_issuer": issuer.url, "jwt_audience": AUDIENCE}
    async with serving(store, **settings) as api:
        headers = {"Authorization": f"Bearer {issuer.token()}"}
        assert (await api.client.get("/api/conversations", headers=headers)).status_code == 200
        issuer.pause = 60.0
        made_up = {"Authorization": f"Bearer {token(RSA_KEY, 'RS256', {'kid': 'zq7'}, iss=issuer.url)}"}
        attacks = [asyncio.create_task(api.client.get("/api/conversations", headers=made_up)) for _ in range(10)]
        waits = []
        for _ in range(20):
            began = time.monotonic()
            assert (await api.client.get("/api/conversations", headers=headers)).status_code == 200
            waits.append(time.monotonic() - began)
        assert max(waits) < 1
        assert {attack.done() for attack in attacks} == {False}
        assert {reply.status_code for reply in await asyncio.gather(*attacks)} == {401}


@pytest.mark.parametrize(
    "discovery",
    [
        {"jwks_uri": 5},
        {"jwks_uri": None},
        {"jwks_uri": ["https://a.example"]},
        {"jwks_uri": "https://[zq7/"},
        {"jwks_uri": "https://a.example:zq7/\x00"},
        {"jwks_uri": "http://keys.example/"},
        {"jwks_uri": "file:///etc/passwd"},
        b"[" * 200_000,
        b'{"issuer": ' * 200_000,
        b"[]",
        b"5",
        b"",
        b"\xff",
        b'{"issuer": 1e999}',
    ],
)
async def test_discovery_that_is_malformed(
    issuer: FakeIssuer, discovery: dict[str, Any] | bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """An issuer that says nonsense is unavailable, with one line in the log; it is no unexpected error."""
    issuer.discovery = discovery if isinstance(discovery, bytes) else {"issuer": issuer.url, **discovery}
    async with aclosing(JwksClient(issuer.url)) as keys:
        with pytest.raises(IssuerUnavailable):
            await keys.key("rsa")
    (record,) = [record for record in caplog.records if record.name == "chatkeep.api.jwks"]
    assert "cannot fetch the keys" in record.getMessage()


async def test_keys_that_are_no_list(issuer: FakeIssuer) -> None:
    """The same for the document of the keys."""
    for document in (b'{"keys": 5}', b'{"keys": {}}', b"{}", b"[]", b'{"keys": []}', b"[" * 200_000):
        issuer.key_set = document
        async with aclosing(JwksClient(issuer.url)) as keys:
            with pytest.raises(IssuerUnavailable):
                await keys.key("rsa")


SHORT_KEY = rsa.generate_private_key(65537, 1024)
BROKEN_KEYS: list[Any] = [
    5,
    None,
    [],
    "zq7",
    {},
    {"kty": 5},
    {"kty": []},
    {"kty": "RSA", "kid": "broken"},
    {"kty": "RSA", "kid": "broken", "n": 5, "e": "AQAB"},
    {"kty": "RSA", "kid": "broken", "n": "AQAB", "e": "!"},
    {"kty": "RSA", "kid": ["broken"], "n": "AQAB", "e": "AQAB"},
    {"kty": "RSA", "kid": "broken", "alg": ["RS256"], "n": "AQAB", "e": "AQAB"},
    {"kty": "EC", "kid": "broken", "crv": "P-256", "x": "AQAB", "y": "AQAB"},
    {"kty": "EC", "kid": "broken", "crv": {}, "x": [[]], "y": None},
    {"kty": "OKP", "kid": "broken", "crv": "Ed25519", "x": ""},
    {"kty": "oct", "kid": "broken", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0"},
]


async def test_broken_keys_hide_no_good_ones(issuer: FakeIssuer) -> None:
    """Of an issuer's keys those that can be used are used, whatever the others are."""
    issuer.more_keys = BROKEN_KEYS
    async with aclosing(JwksClient(issuer.url)) as keys:
        assert {(await keys.key(name)).algorithm_name for name in ("rsa", "ec")} == {"RS256", "ES384"}
        with pytest.raises(Unauthenticated):
            await keys.key("broken")


@pytest.mark.parametrize(
    "marks",
    [{"use": "enc"}, {"use": 5}, {"key_ops": ["encrypt"]}, {"key_ops": ["wrapKey", "sign"]}, {"key_ops": "verify"}],
)
async def test_keys_for_other_purposes(issuer: FakeIssuer, store: Store, marks: dict[str, Any]) -> None:
    """A key for encryption verifies no token, although it could."""
    issuer.more_keys = [{**public("other", RSA_KEY), **marks}]
    text = token(RSA_KEY, "RS256", {"kid": "other"}, iss=issuer.url)
    async with aclosing(of_issuer(issuer, store)) as authenticator:
        with pytest.raises(Unauthenticated):
            await authenticator.principal(f"Bearer {text}")
        assert await authenticator.principal(f"Bearer {issuer.token()}")


async def test_short_keys_are_refused(issuer: FakeIssuer, store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """An RSA key of 1,024 bits verifies no token, and the log says why; the other keys stay."""
    issuer.more_keys = [public("short", SHORT_KEY)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's, about signing with it
        text = token(SHORT_KEY, "RS256", {"kid": "short"}, iss=issuer.url)
    async with aclosing(of_issuer(issuer, store)) as authenticator:
        with pytest.raises(Unauthenticated):
            await authenticator.principal(f"Bearer {text}")
        assert await authenticator.principal(f"Bearer {issuer.token()}")
    assert "1024 bits" in caplog.text


async def test_issuer_with_thousands_of_keys(issuer: FakeIssuer) -> None:
    """Most of a long list is not looked at."""
    issuer.more_keys = [public(f"k{number}", EC_KEY) for number in range(3_000)]
    async with aclosing(JwksClient(issuer.url)) as keys:
        assert await keys.key("k0")
        with pytest.raises(Unauthenticated):
            await keys.key("k2999")


# --- API keys --------------------------------------------------------------------------------------------


async def new_key(store: Store, *scopes: str, lifetime: timedelta | None = None) -> str:
    """The text of a new key of ada's."""
    new = make_key("ada", "script", scopes, lifetime)
    await store.access.create_key(new.key, new.secret_hash)
    return new.text


async def test_api_keys(store: Store) -> None:
    """A key acts for its owner, until it is revoked or expires; its use is noted, once a minute."""
    authenticator = of_secret(store)
    text = await new_key(store, READ)
    principal = await authenticator.principal(f"Bearer {text}")
    assert (principal.owner, principal.may_write()) == ("ada", False)
    ((used,)) = [key.last_used_at for key in await store.access.list_keys()]
    assert used is not None
    await authenticator.principal(f"Bearer {text}")
    assert [key.last_used_at for key in await store.access.list_keys()] == [used]
    expired = await new_key(store, READ, lifetime=timedelta(seconds=-1))
    for wrong in (text[:-1], text + "x", f"ck_{'0' * 16}_{parse_key(text)[1]}", "ck_", "ck__", "ck_é_x", expired):
        with pytest.raises(Unauthenticated):
            await authenticator.principal(f"Bearer {wrong}")
    (key, _) = [*await store.access.list_keys()]
    await store.access.revoke_key(key.id)
    with pytest.raises(Unauthenticated):
        await authenticator.principal(f"Bearer {text}")


def test_keys_have_known_scopes() -> None:
    """A scope that nothing asks for is a mistake."""
    with pytest.raises(InvalidInput, match="chatkeep:read"):
        make_key("ada", "x", ("read",), None)
    assert make_key("ada", "x", (ADMIN,), None).key.scopes == (ADMIN,)


# --- over HTTP -------------------------------------------------------------------------------------------


@asynccontextmanager
async def serving_jwt(store: Store, **settings: Any) -> AsyncIterator[Api]:
    """A server that asks for tokens."""
    async with serving(store, auth="jwt", jwt_secret=SECRET, **settings) as api:
        yield api


def bearer(owner: str = "ada", **values: Any) -> dict[str, str]:
    """The header with an owner's token."""
    return {"Authorization": f"Bearer {token(SECRET, 'HS256', sub=owner, aud=None, **values)}"}


async def test_refusals_say_how_to_come_in(store: Store) -> None:
    """Each 401 has a challenge, and comes before a body is looked at."""
    async with serving_jwt(store, max_body_bytes=100, metrics=True) as api:
        for headers, challenge in (({}, 'Bearer realm="chatkeep"'), ({"Authorization": "Bearer x"}, "invalid_token")):
            for path in ("/api/conversations", "/api/absent", "/api"):
                reply = await api.client.post(path, content=b"x" * 1000, headers=headers)
                assert_problem(reply, 401)
                assert challenge in reply.headers["www-authenticate"]
        for path in ("/healthz", "/readyz", "/api/openapi.json", "/api/docs", "/metrics"):
            assert (await api.client.get(path)).status_code == 200
        twice = b"GET /api/conversations HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        line = f"Authorization: {bearer()['Authorization']}\r\n".encode()
        assert b" 401 " in await api.raw(twice + line * 2 + b"\r\n")
        assert b" 200 " in await api.raw(twice + line + b"\r\n")


async def test_read_only_keys(store: Store) -> None:
    """A key that may only read is refused what changes something."""
    async with serving_jwt(store) as api:
        headers = {"Authorization": f"Bearer {await new_key(store, READ)}"}
        assert (await api.client.get("/api/conversations", headers=headers)).status_code == 200
        assert_problem(await api.client.post("/api/conversations", json={}, headers=headers), 403)
        assert_problem(await api.client.delete("/api/me", headers=headers), 403)


async def test_rate_limits(store: Store) -> None:
    """An owner who sends too much waits, and is told for how long; nobody else does."""
    async with serving_jwt(store, rate_limit="3/minute") as api:
        replies = [await api.client.get("/api/conversations", headers=bearer()) for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert [reply.headers["ratelimit"].partition(";t=")[0] for reply in replies] == [
            '"owner";r=2', '"owner";r=1', '"owner";r=0', '"owner";r=0',
        ]  # fmt: skip
        assert replies[0].headers["ratelimit-policy"] == '"owner";q=3;w=60'
        assert 1 <= int(replies[3].headers["retry-after"]) <= 120
        assert_problem(replies[3], 429)
        assert (await api.client.get("/api/conversations", headers=bearer("bob"))).status_code == 200
        assert (await api.client.get("/healthz")).status_code == 200


async def test_guessing_is_limited_by_address(store: Store) -> None:
    """Sixty wrong tokens in a minute are all that one address may try."""
    async with serving_jwt(store) as api:
        forged = {"Authorization": f"Bearer {token('x' * 40, 'HS256')}"}
        wrong = [await api.client.get("/api/conversations", headers=forged) for _ in range(61)]
        assert [reply.status_code for reply in wrong] == [401] * 60 + [429]
        assert (await api.client.get("/api/conversations", headers=bearer())).status_code == 200


async def test_expired_credentials_are_401_always(store: Store) -> None:
    """Who has an expired token or key is told so, as often as it is sent, also where others guess; a forged token that
    has expired, too, is a guess."""
    async with serving_jwt(store, failure_limit="3/minute") as api:
        expired = [bearer(exp=1), {"Authorization": f"Bearer {await new_key(store, READ, lifetime=timedelta(-1))}"}]
        forged = {"Authorization": f"Bearer {token('x' * 40, 'HS256', exp=1)}"}

        async def statuses(headers: dict[str, str], times: int) -> list[int]:
            return [(await api.client.get("/api/conversations", headers=headers)).status_code for _ in range(times)]

        for headers in expired:
            assert await statuses(headers, 5) == [401] * 5
        assert await statuses(forged, 4) == [401] * 3 + [429]
        for headers in expired:
            assert await statuses(headers, 2) == [401] * 2
            reply = await api.client.get("/api/conversations", headers=headers)
            assert "expired" in assert_problem(reply, 401)["detail"]
            assert "invalid_token" in reply.headers["www-authenticate"]


async def test_erasing_oneself(store: Store) -> None:
    """Everything of the owner goes, the receipt says what, and others keep theirs."""
    async with serving_jwt(store) as api:
        for owner in ("ada", "bob"):
            await api.client.post("/api/conversations", json={}, headers=bearer(owner))
        receipt = (await api.client.delete("/api/me", headers=bearer())).json()
        assert (receipt["owner_id"], receipt["conversations"], receipt["remaining"]) == ("ada", 1, 0)
        left = await api.client.get("/api/conversations", headers=bearer("bob"))
        assert len(left.json()["items"]) == 1


async def test_pages_of_other_origins(store: Store) -> None:
    """Only origins that are configured may call the API from a browser; they are answered as CORS asks."""
    async with serving_jwt(store, cors_origins=["https://app.example"]) as api:
        ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
        assert (await api.client.options("/api/conversations", headers=ask)).status_code == 200
        page = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        reply = await api.client.post("/api/conversations", json={}, headers={**bearer(), **page})
        assert reply.status_code == 201
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        other = {**bearer(), **page, "Origin": "https://zq7.example"}
        assert_problem(await api.client.post("/api/conversations", json={}, headers=other), 403)
        reply = await api.client.get("/api/conversations", headers={**bearer(), **page})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (200, "https://app.example")
        assert_problem(await api.client.get("/api/conversations", headers=other), 403)


async def test_pages_of_every_origin(store: Store) -> None:
    """With authentication every origin may be allowed: a token is not sent by itself, as a cookie would be."""
    async with serving_jwt(store, cors_origins=["*"]) as api:
        page = {"Origin": "https://app.example", "Sec-Fetch-Site": "cross-site"}
        for method in ("GET", "POST"):
            reply = await api.client.request(method, "/api/conversations", json={}, headers={**bearer(), **page})
            assert reply.status_code in (200, 201)
            assert reply.headers["access-control-allow-origin"] == "*"


async def test_security_headers(store: Store) -> None:
    """Every response says what browsers may do with it; what is somebody's is not kept by caches."""
    async with serving_jwt(store) as api:
        for path, policy in (("/api/conversations", "default-src 'none'"), ("/api/docs", "default-src 'self'")):
            reply = await api.client.get(path)
            assert reply.headers["content-security-policy"].startswith(policy)
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert ("no-store" in reply.headers.get("cache-control", "")) == (path == "/api/conversations")
