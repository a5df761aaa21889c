"""Authentication: a token of an OpenID Connect issuer, a token with a shared secret, or an API key."""

import hmac
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import jwt

from chatkeep.access import Access, ApiKey
from chatkeep.api.jwks import JwksClient
from chatkeep.errors import InvalidInput, StoreUnavailable, Unauthenticated
from chatkeep.keys import ADMIN, PREFIX, READ, SCOPES, WRITE, WRITE_ANY_ROLE, hash_secret, parse_key
from chatkeep.settings import LOCAL_OWNER, Settings
from chatkeep.values import now, valid_owner

logger = logging.getLogger(__name__)

LEEWAY = timedelta(seconds=30)
"""Allowed clock skew between an issuer and this server."""

LAST_USED_RESOLUTION = timedelta(minutes=1)
"""`last_used_at` of a key is written at most this often."""

MAX_SUBJECT_CHARS = 255

MAX_CREDENTIAL_CHARS = 16_384

MAX_HEADER_CHARS = 4_096
"""Longest header of a token, which is parsed before the signature is verified. Issuers write some 200."""

TOKEN_TYPES = ("jwt", "at+jwt")
"""Accepted values of the `typ` header, also with `application/` before them; it may be absent (RFC 8725, 3.11).

Issuers sign other kinds of JWT for the same audience, such as logout+jwt. An ID token has no type of its own: it is
told apart by its audience only.
"""

LOCAL_SCOPES = frozenset(SCOPES) - {WRITE_ANY_ROLE}
"""The scopes of the only owner if there is no authentication: if roles are strict there, it is for this owner."""

NOT_VALID = "the token or API key is not valid"


class ExpiredCredential(Unauthenticated):
    """The token or API key is genuine, and has expired: its client is not guessing."""


@dataclass(frozen=True)
class Principal:
    """The authenticated owner and their scopes."""

    owner: str
    scopes: frozenset[str] = field(default_factory=lambda: frozenset((READ, WRITE)))

    def may_write(self) -> bool:
        """Whether the scopes allow changes."""
        return not self.scopes.isdisjoint((WRITE, ADMIN, WRITE_ANY_ROLE))

    def may_administer(self) -> bool:
        """Whether the scopes allow changes of what belongs to the installation."""
        return ADMIN in self.scopes

    def may_write_any_role(self) -> bool:
        """Whether the scopes allow messages of other roles than the user's on a server with strict roles."""
        return WRITE_ANY_ROLE in self.scopes


class Authenticator:
    """Authenticates a request by its Authorization header."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings = settings
        self._access = access
        self._jwks = JwksClient(settings.jwt_issuer) if settings.jwt_issuer and not settings.jwt_secret else None

    async def principal(self, authorization: str | None) -> Principal:
        """Return the principal.

        Raises Unauthenticated, whose detail is safe to send; ExpiredCredential for one that was valid.
        """
        if self._settings.auth == "none":
            return Principal(LOCAL_OWNER, LOCAL_SCOPES)
        scheme, _, credential = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not credential or len(credential) > MAX_CREDENTIAL_CHARS:
            raise Unauthenticated("send a token or an API key, with the header Authorization: Bearer …")
        if credential.startswith(PREFIX):
            return await self._key_principal(credential)
        return await self._token_principal(credential)

    async def aclose(self) -> None:
        """End the work in the background."""
        if self._jwks is not None:
            await self._jwks.aclose()

    # --- API keys -----------------------------------------------------------------------------------------

    async def _key_principal(self, credential: str) -> Principal:
        key_id, secret = parse_key(credential)
        found = await self._access.find_key(key_id) if key_id.isascii() and key_id.isalnum() else None
        # A hash is compared in any case: the response time does not tell which ids exist.
        key, expected = found or (None, bytes(32))
        if not hmac.compare_digest(hash_secret(secret), expected) or key is None:
            raise Unauthenticated(NOT_VALID)
        moment = now()
        if key.expires_at is not None and key.expires_at <= moment:
            raise ExpiredCredential("the API key has expired")
        if key.last_used_at is None or moment - key.last_used_at >= LAST_USED_RESOLUTION:
            await self._note_use(key, moment)
        return Principal(key.owner_id, frozenset(key.scopes))

    async def _note_use(self, key: ApiKey, moment: datetime) -> None:
        try:
            await self._access.key_used(key.id, moment)
        except StoreUnavailable as error:
            logger.warning("last use of API key %s was not stored: %s", key.id, error.detail)

    # --- tokens -------------------------------------------------------------------------------------------

    async def _token_principal(self, token: str) -> Principal:
        if len(token.partition(".")[0]) > MAX_HEADER_CHARS:
            raise Unauthenticated(NOT_VALID)
        try:
            claims = await self._claims(token)
            return Principal(_subject(claims), _scopes(claims))
        except jwt.ExpiredSignatureError:  # raised after the signature was verified
            raise ExpiredCredential("the token has expired; ask the issuer for a new one") from None
        except (jwt.PyJWTError, InvalidInput, ValueError, TypeError, RecursionError) as error:
            logger.info("refused a token: %s", type(error).__name__)
            raise Unauthenticated(NOT_VALID) from None

    async def _claims(self, token: str) -> dict[str, Any]:
        issuer, audience = self._settings.jwt_issuer, self._settings.jwt_audience
        required = ["exp", "sub", *(["iss"] if issuer else []), *(["aud"] if audience else [])]
        key, algorithm = await self._verification_key(token)
        decoded = jwt.decode_complete(
            token,
            key,
            algorithms=[algorithm],
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY,
            options={"require": required, "verify_aud": audience is not None, "enforce_minimum_key_length": True},
        )
        if not _is_access_token(decoded["header"]):
            raise jwt.InvalidTokenError
        claims: dict[str, Any] = decoded["payload"]
        return claims

    async def _verification_key(self, token: str) -> tuple[jwt.PyJWK | str, str]:
        """Return the key that verifies the token, and the one algorithm of this key."""
        if self._jwks is None:
            assert self._settings.jwt_secret is not None  # noqa: S101 - Settings validates it
            return self._settings.jwt_secret.get_secret_value(), "HS256"
        # Of the header alone: decoding 16 kB in vain, for a made-up key, takes the library a millisecond.
        header = jwt.get_unverified_header(f"{token.partition('.')[0]}..")
        key = await self._jwks.key(header.get("kid"))
        return key, key.algorithm_name


def _is_access_token(header: dict[str, Any]) -> bool:
    """Whether the `typ` of a JWT is absent or one of TOKEN_TYPES, which media types compare without case."""
    kind = header.get("typ", TOKEN_TYPES[0])
    return isinstance(kind, str) and kind.lower().removeprefix("application/") in TOKEN_TYPES


def _subject(claims: dict[str, Any]) -> str:
    subject = claims["sub"]
    if not 1 <= len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable():
        raise InvalidInput(f"the sub of a token must have 1 to {MAX_SUBJECT_CHARS} characters, none of them control")
    return valid_owner(subject)


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """Return the scopes of a token. Default: read and write, unless it has one of the two."""
    given = claims.get("scope", "")
    named = set(given.split() if isinstance(given, str) else map(str, given)) & set(SCOPES)
    return frozenset(named if named & {READ, WRITE} else {*named, READ, WRITE})
