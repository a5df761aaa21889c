"""Makes and parses ids, which are UUIDs. No I/O."""

import hashlib
import os
import re
import struct
import time
from functools import lru_cache
from uuid import UUID, SafeUUID, uuid5

from chatkeep.errors import InvalidId

IDS_AT_ONCE = 512
"""Ids that are prepared at a time, in a fifth of a millisecond."""


def new_id() -> UUID:
    """Return a UUID version 7 (RFC 9562, 5.7): 48 bits of milliseconds, then random bits.

    Successive ids are close to each other in an index. Nothing in chatkeep reads a time or an order from them.
    """
    try:
        id_ = _timeless.pop()  # atomic: no two threads get the same
    except IndexError:
        id_, *others = _timeless_ids()
        _timeless.extend(others)
    _set_int(id_, time.time_ns() // 1_000_000 << 80 | id_.int)
    return id_


def prepare_ids() -> None:
    """Refill the pool of prepared ids, so that `new_id` does not have to. For a background thread."""
    if len(_timeless) < IDS_AT_ONCE:
        _timeless.extend(_timeless_ids())


def _timeless_ids() -> list[UUID]:
    """Return ids with version, variant and random bits, but without a time.

    The random bits of many ids come from one system call, which releases Python's lock: another thread that takes the
    lock then makes the caller wait. With a system call for each id, `record` took 140 µs at the 99th percentile.
    """
    bits = int.from_bytes(os.urandom(10 * IDS_AT_ONCE))
    halves = struct.iter_unpack(">HQ", (bits & _FREE_BITS | _FIXED_BITS).to_bytes(10 * IDS_AT_ONCE))
    return [uuid_of(high << 64 | low) for high, low in halves]


_FREE_BITS, _FIXED_BITS = (
    int.from_bytes(bits.to_bytes(10) * IDS_AT_ONCE) for bits in (0x0FFF << 64 | 2**62 - 1, 0x7 << 76 | 2**63)
)
_timeless: list[UUID] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_timeless.clear)  # a forked child must not hand out the parent's ids


def uuid_of(value: int) -> UUID:
    """Return UUID(int=value) in a third of the time, without UUID's checks of its arguments.

    A message that is read has up to three ids.
    """
    id_ = _new(UUID)
    _set_int(id_, value)
    _set_safe(id_, _UNKNOWN)
    return id_


_new = object.__new__
_set_int, _set_safe = (vars(UUID)[name].__set__ for name in ("int", "is_safe"))  # slots that UUID protects
_UNKNOWN = SafeUUID.unknown


UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE | re.ASCII)


def valid_id(value: UUID | str) -> UUID:
    """Return `value` as a UUID. Raises InvalidId."""
    if isinstance(value, UUID):
        return value
    # UUID() also accepts underscores, digits of other scripts, and hyphens anywhere.
    if not isinstance(value, str) or not UUID_TEXT.fullmatch(value):
        raise InvalidId("an id must be a UUID, such as 0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75", got=value)
    return UUID(value)


NAMESPACE = UUID("5e1c7a0e-0d5b-5f0c-9d5a-6b1f2a7c4e93")
"""Namespace of the UUIDs that are derived from foreign ids. It must never change."""


@lru_cache(maxsize=1024)
def namespace_of(owner: str, source: str | None = None) -> UUID:
    """Return the namespace of the ids that an owner's conversations have in another system, `source` if it is named."""
    return uuid5(NAMESPACE, f"{owner}\n{source or ''}")


def foreign_id(namespace: UUID, text: str) -> tuple[UUID, str | None]:
    """Return the UUID of a foreign id, and the external_id to store with it: None if the foreign id is that UUID."""
    if len(text) == 36 and UUID_TEXT.fullmatch(text) and text == text.lower():
        return UUID(text), None
    digest = hashlib.sha1(namespace.bytes + text.encode(), usedforsecurity=False).digest()
    value = int.from_bytes(digest[:16]) & ~(0xF << 76) & ~(0x3 << 62)
    return uuid_of(value | 0x5 << 76 | 0x2 << 62), text
