"""Ids: UUIDs, how they are made and how they are read. No I/O."""

import os
import re
import struct
import time
from uuid import UUID, SafeUUID

from chatkeep.errors import InvalidId

IDS_AT_ONCE = 512
"""How many ids are prepared together, which takes a fifth of a millisecond."""


def new_id() -> UUID:
    """Make a UUID version 7 (RFC 9562, 5.7): 48 bits of milliseconds, then random bits.

    New ids are close to each other in an index; nothing in chatkeep reads a time or an order from them.
    """
    try:
        id_ = _timeless.pop()  # atomic: no two threads get the same
    except IndexError:
        id_, *others = _timeless_ids()
        _timeless.extend(others)
    _set_int(id_, time.time_ns() // 1_000_000 << 80 | id_.int)
    return id_


def prepare_ids() -> None:
    """Have so many ids prepared that `new_id` need not do it soon: for a thread that may take its time."""
    if len(_timeless) < IDS_AT_ONCE:
        _timeless.extend(_timeless_ids())


def _timeless_ids() -> list[UUID]:
    """New ids in which the time is still 0: they have their version and variant, and the random bits.

    The operating system is asked for many at a time. While it answers, Python's lock is free, and whoever takes it
    then keeps the caller waiting: a call of a recorder took 140 µs at its 99th percentile.
    """
    bits = int.from_bytes(os.urandom(10 * IDS_AT_ONCE))
    halves = struct.iter_unpack(">HQ", (bits & _FREE_BITS | _FIXED_BITS).to_bytes(10 * IDS_AT_ONCE))
    return [uuid_of(high << 64 | low) for high, low in halves]


_FREE_BITS, _FIXED_BITS = (
    int.from_bytes(bits.to_bytes(10) * IDS_AT_ONCE) for bits in (0x0FFF << 64 | 2**62 - 1, 0x7 << 76 | 2**63)
)
_timeless: list[UUID] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_timeless.clear)  # a child makes ids of its own


def uuid_of(value: int) -> UUID:
    """Return the UUID with this value of 128 bits, as UUID(int=value) does, in a third of the time.

    A message that is read has up to three ids, and UUID's own constructor checks every way to give one.
    """
    id_ = _new(UUID)
    _set_int(id_, value)
    _set_safe(id_, _UNKNOWN)
    return id_


_new = object.__new__
_set_int, _set_safe = (vars(UUID)[name].__set__ for name in ("int", "is_safe"))  # its slots, which it protects
_UNKNOWN = SafeUUID.unknown


UUID_TEXT = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[0-9a-f]{32}", re.IGNORECASE | re.ASCII)


def valid_id(value: UUID | str) -> UUID:
    """Return the UUID that `value` is or spells. Raises InvalidId."""
    if isinstance(value, UUID):
        return value
    # UUID() itself reads more than UUIDs: underscores, digits of other scripts, hyphens anywhere.
    if not isinstance(value, str) or not UUID_TEXT.fullmatch(value):
        raise InvalidId("an id must be a UUID, such as 0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75", got=value)
    return UUID(value)
