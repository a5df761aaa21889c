"""Cursors: the position of the next page, as opaque text.

A cursor has a version, its kind, a hash of its list, and a position. It is refused for another list: another owner,
other filters, another order.
"""

import base64
import hashlib
import json
from typing import Any

from chatkeep.errors import InvalidInput

VERSION = 1

_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


def encode_cursor(kind: str, scope: tuple[object, ...], *position: int | str) -> str:
    """Return the cursor of `position` in the list that `kind` and `scope` identify."""
    text = _ENCODE([VERSION, kind, _hash(scope), *position])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def decode_cursor(cursor: str, kind: str, scope: tuple[object, ...], *types: type) -> list[Any]:
    """Return the position in `cursor`, as values of `types`. Raises InvalidInput."""
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        position: list[Any]
        version, its_kind, its_hash, *position = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidInput("the cursor is not one that chatkeep gave") from error
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in position):
        raise InvalidInput("the cursor is not one that chatkeep gave")
    if version != VERSION or its_kind != kind or [type(value) for value in position] != list(types):
        raise InvalidInput("the cursor is not one that chatkeep gave for this list")
    if its_hash != _hash(scope):
        raise InvalidInput("the cursor belongs to a list with other filters; send the same ones with it")
    return position


def _hash(scope: tuple[object, ...]) -> str:
    return hashlib.sha256(repr(scope).encode("utf-8", "surrogatepass")).hexdigest()[:16]
