"""API keys: how one is made, and how its text `ck_ID_SECRET` is read. The database keeps the hash of the secret."""

import hashlib
import secrets
from datetime import timedelta
from typing import NamedTuple

from chatkeep.access import ApiKey
from chatkeep.errors import InvalidInput
from chatkeep.values import MAX_SHORT_TEXT_CHARS, now, valid_owner

READ, WRITE, ADMIN, WRITE_ANY_ROLE = "chatkeep:read", "chatkeep:write", "chatkeep:admin", "chatkeep:write-any-role"
SCOPES = (READ, WRITE, ADMIN, WRITE_ANY_ROLE)
"""Scopes of a key or a token: read; read and write; change what belongs to the whole installation; write messages of
every role, also if a server has strict roles."""

PREFIX = "ck_"
"""Every API key begins with it, and no token does."""


class NewKey(NamedTuple):
    """A new key. `text` is shown once and sent with requests."""

    key: ApiKey
    text: str
    secret_hash: bytes


def make_key(owner: str, name: str, scopes: tuple[str, ...], lifetime: timedelta | None) -> NewKey:
    """Return a new key, which is not stored yet. Raises InvalidInput."""
    unknown = set(scopes) - set(SCOPES)
    if unknown:
        raise InvalidInput(f"the scopes are {', '.join(SCOPES)}", got=", ".join(sorted(unknown)))
    if len(name) > MAX_SHORT_TEXT_CHARS:
        raise InvalidInput(
            f"the name of a key has at most {MAX_SHORT_TEXT_CHARS} characters", got=f"{len(name):,} characters"
        )
    created_at = now()
    key = ApiKey(
        id=secrets.token_hex(8),
        owner_id=valid_owner(owner),
        name=name,
        scopes=scopes,
        created_at=created_at,
        expires_at=None if lifetime is None else created_at + lifetime,
    )
    secret = secrets.token_urlsafe(32)
    return NewKey(key, f"{PREFIX}{key.id}_{secret}", hash_secret(secret))


def parse_key(text: str) -> tuple[str, str]:
    """Return the id and the secret in the text of a key; both may be empty."""
    key_id, _, secret = text.removeprefix(PREFIX).partition("_")
    return key_id, secret


def hash_secret(secret: str) -> bytes:
    """Return the SHA-256 of a secret. A fast hash is enough: the secret has 256 random bits."""
    return hashlib.sha256(secret.encode()).digest()
