"""Who sends a request: a token of an issuer, or an API key of chatkeep's."""

import hmac
import logging
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import jwt

from chatkeep.access import Access, ApiKey
from chatkeep.api.jwks import Issuer
from chatkeep.errors import InvalidInput, StoreUnavailable, Unauthenticated
from chatkeep.keys import ADMIN, PREFIX, READ, SCOPES, WRITE, hash_secret, parse_key
from chatkeep.settings import LOCAL_OWNER, Settings
from chatkeep.values import now, valid_owner

logger = logging.getLogger(__name__)

LEEWAY = timedelta(seconds=30)
"""How far the clocks of an issuer and of this server may be apart."""

USED_EVERY = timedelta(minutes=1)
"""How exactly it is known when a key was used last."""

MAX_SUBJECT_CHARS = 255
MAX_CREDENTIAL_CHARS = 16_384

NOT_VALID = "the token or API key is not valid"


@dataclass(frozen=True)
class Principal:
    """Whom a request acts for, and what it may do."""

    owner: str
    scopes: frozenset[str] = field(default_factory=lambda: frozenset((READ, WRITE)))

    def may_write(self) -> bool:
        """Whether it may change anything."""
        return not self.scopes.isdisjoint((WRITE, ADMIN))


class Authenticator:
    """Tells from a request's Authorization header whom it acts for."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self._settings = settings
        self._access = access
        self._issuer = Issuer(settings.jwt_issuer) if settings.jwt_issuer and not settings.jwt_secret else None

    async def principal(self, authorization: str | None) -> Principal:
        """Return whom the request acts for. Raises Unauthenticated, which never says more than is safe to know."""
        if self._settings.auth == "none":
            return Principal(LOCAL_OWNER, frozenset(SCOPES))
        scheme, _, credential = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not credential or len(credential) > MAX_CREDENTIAL_CHARS:
            raise Unauthenticated("send a token or an API key, with the header Authorization: Bearer …")
        if credential.startswith(PREFIX):
            return await self._of_key(credential)
        return await self._of_token(credential)

    # --- API keys -----------------------------------------------------------------------------------------

    async def _of_key(self, credential: str) -> Principal:
        key_id, secret = parse_key(credential)
        found = await self._access.find_key(key_id) if key_id.isascii() and key_id.isalnum() else None
        # A hash is compared in any case: how long it takes says nothing about which ids there are.
        key, expected = found or (None, bytes(32))
        if not hmac.compare_digest(hash_secret(secret), expected) or key is None:
            raise Unauthenticated(NOT_VALID)
        moment = now()
        if key.expires_at is not None and key.expires_at <= moment:
            raise Unauthenticated("the API key has expired")
        if key.last_used_at is None or moment - key.last_used_at >= USED_EVERY:
            await self._note_use(key, moment)
        return Principal(key.owner_id, frozenset(key.scopes))

    async def _note_use(self, key: ApiKey, moment: datetime) -> None:
        try:
            await self._access.key_used(key.id, moment)
        except StoreUnavailable as error:
            logger.warning("the use of API key %s was not noted: %s", key.id, error.detail)

    # --- tokens -------------------------------------------------------------------------------------------

    async def _of_token(self, token: str) -> Principal:
        try:
            claims = await self._claims(token)
            return Principal(_subject(claims), _scopes(claims))
        except (jwt.PyJWTError, InvalidInput, ValueError, TypeError) as error:
            logger.info("a token was refused: %s", type(error).__name__)
            raise Unauthenticated(NOT_VALID) from None

    async def _claims(self, token: str) -> dict[str, Any]:
        issuer, audience = self._settings.jwt_issuer, self._settings.jwt_audience
        required = ["exp", "sub", *(["iss"] if issuer else []), *(["aud"] if audience else [])]
        key, algorithm = await self._key(token)
        return jwt.decode(
            token,
            key,
            algorithms=[algorithm],
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY,
            options={"require": required, "verify_aud": audience is not None},
        )

    async def _key(self, token: str) -> tuple[jwt.PyJWK | str, str]:
        """The key that checks the token, and the one algorithm that this key is for."""
        if self._issuer is None:
            assert self._settings.jwt_secret is not None  # noqa: S101 - the settings see to it
            return self._settings.jwt_secret.get_secret_value(), "HS256"
        header = jwt.get_unverified_header(token)
        key = await self._issuer.key(header.get("kid"))
        return key, key.algorithm_name


def _subject(claims: dict[str, Any]) -> str:
    subject = claims["sub"]
    if not 1 <= len(subject) <= MAX_SUBJECT_CHARS or not subject.isprintable():
        raise InvalidInput(f"the sub of a token must have 1 to {MAX_SUBJECT_CHARS} characters, none of them control")
    return valid_owner(subject)


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """What the token grants; one that says nothing about chatkeep lets its owner read and write."""
    given = claims.get("scope", "")
    named = set(given.split() if isinstance(given, str) else map(str, given)) & set(SCOPES)
    return frozenset(named if named & {READ, WRITE} else {*named, READ, WRITE})
