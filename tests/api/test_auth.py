"""Tokens and API keys: what is let in, what is not, and an issuer that rotates its keys and goes away."""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import ValidationError

from chatkeep import InvalidInput, Store, Unauthenticated, open_store
from chatkeep.api.auth import Authenticator
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

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        body: dict[str, Any] = {"keys": [public(name, key) for name, key in self.keys.items()]}
        if "well-known" in path:
            body = {"issuer": self.issuer or self.url, "jwks_uri": f"{self.url}/keys"}
        else:
            self.fetched += 1
        text = json.dumps(body).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(text) + text)
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
    ],
)
def test_settings_that_are_not_safe(settings: dict[str, Any], reason: str) -> None:
    """A server that could not check tokens, or would not although it looks as if, does not start."""
    with pytest.raises(ValidationError, match=reason) as caught:
        Settings(**settings)
    assert "zq7" not in str(caught.value)


def test_secrets_are_not_shown() -> None:
    """A secret, and a URL with a password, stand in no repr."""
    settings = Settings(auth="jwt", jwt_secret=SECRET, database_url="postgresql://a:zq7@host/db")
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


# --- the issuer's keys -----------------------------------------------------------------------------------


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


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
    assert issuer.fetched == 2


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


async def test_discovery_of_another_issuer(issuer: FakeIssuer) -> None:
    """A document that names another issuer is not believed, and neither are symmetric keys."""
    issuer.issuer = "https://zq7.example"
    with pytest.raises(IssuerUnavailable):
        await JwksClient(issuer.url).key("rsa")


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
    async with serving_jwt(store, max_body_bytes=100) as api:
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
        wrong = [await api.client.get("/api/conversations", headers=bearer(exp=1)) for _ in range(61)]
        assert [reply.status_code for reply in wrong] == [401] * 60 + [429]
        assert (await api.client.get("/api/conversations", headers=bearer())).status_code == 200


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
        assert (await api.client.get("/api/conversations", headers=page)).headers["access-control-allow-origin"]


async def test_security_headers(store: Store) -> None:
    """Every response says what browsers may do with it; what is somebody's is not kept by caches."""
    async with serving_jwt(store) as api:
        for path, policy in (("/api/conversations", "default-src 'none'"), ("/api/docs", "default-src 'self'")):
            reply = await api.client.get(path)
            assert reply.headers["content-security-policy"].startswith(policy)
            assert reply.headers["x-content-type-options"] == "nosniff"
            assert ("no-store" in reply.headers.get("cache-control", "")) == (path == "/api/conversations")
