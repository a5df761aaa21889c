"""Attacks by JSON: small to send, costly to read, to check, to report on or to keep."""

import json
from collections.abc import Callable
from functools import partial

from benchmarks.attack_prepare import CONVERSATION
from benchmarks.attack_texts import MESSAGES
from benchmarks.attacker import Attack, Attacker

SIZE = 8 << 20
"""The largest body that the server takes unless it is told otherwise, in bytes."""

HEAD = b'{"role":"assistant","content":"x",'


def filled(start: bytes, item: bytes, end: bytes) -> bytes:
    """A body of 8 MiB: as many items as fit in between, the last one without its comma."""
    items = item * ((SIZE - len(start) - len(end)) // len(item))
    return start + items.removesuffix(b",") + end


def sources() -> bytes:
    """Four million sources that are none."""
    return filled(HEAD + b'"sources":[', b"1,", b"]}")


def fields() -> bytes:
    """700,000 fields that are not known."""
    return HEAD + b",".join(b'"a%d":0' % number for number in range(700_000)) + b"}"


def lists() -> bytes:
    """Metadata of empty lists."""
    return filled(HEAD + b'"metadata":{"a":[', b"[],", b"]}}")


def keys() -> bytes:
    """Metadata of 500,000 keys."""
    return HEAD + b'"metadata":{' + b",".join(b'"k%d":{}' % number for number in range(500_000)) + b"}}"


def deep() -> bytes:
    """Lists in lists, four million deep."""
    depth = (SIZE - len(HEAD) - 30) // 2
    return HEAD + b'"metadata":{"a":' + b"[" * depth + b"]" * depth + b"}}"


def surrogates() -> bytes:
    """A text of escaped surrogates that have no partner."""
    return filled(b'{"role":"assistant","content":"', rb"\ud800", b'"}')


def surrogate() -> bytes:
    """A long text with one such surrogate."""
    return filled(rb'{"role":"assistant","content":"\ud800', b"x", b'"}')


def integers() -> bytes:
    """Integers of 4,300 digits, the most that Python reads."""
    return filled(HEAD + b'"metadata":{"a":[', b"9" * 4_300 + b",", b"]}}")


def once(attacker: Attacker, body: Callable[[], bytes]) -> None:
    """Send it one time."""
    attacker.ask("POST", MESSAGES, body())


def eight(attacker: Attacker, body: Callable[[], bytes]) -> None:
    """Send it eight times at once."""
    sent = body()
    attacker.at_once(8, lambda: attacker.ask("POST", MESSAGES, sent))


def patches(attacker: Attacker, threads: int) -> None:
    """Let the metadata of one conversation grow 25 times by 8 MB, and once more a little."""
    numbers = iter(range(25))

    def grow() -> None:
        for number in numbers:
            value = {"metadata": {f"key {number}": "x" * (SIZE - 100)}}
            attacker.ask("PATCH", f"/api/conversations/{CONVERSATION}", json.dumps(value).encode())

    attacker.at_once(threads, grow)
    attacker.ask("PATCH", f"/api/conversations/{CONVERSATION}", b'{"metadata":{"a":1}}')


def small_patches(attacker: Attacker) -> None:
    """Let it grow by 100 kB a request, which is within every limit of a single one."""

    def grow(number: int) -> None:
        value = {"metadata": {f"key {number}": "x" * 100_000}}
        attacker.ask("PATCH", f"/api/conversations/{CONVERSATION}", json.dumps(value).encode())

    attacker.for_seconds(6.0, 4, grow)


def _pair(name: str, body: Callable[[], bytes], says: str, seconds: float = 12.0) -> tuple[Attack, Attack]:
    return (
        Attack(f"json-{name}", partial(once, body=body), f"8 MiB of {says}", seconds=seconds),
        Attack(f"json-{name}-8", partial(eight, body=body), f"8 MiB of {says}, eight times at once"),
    )


ATTACKS = (
    *_pair("sources", sources, "sources that are numbers", seconds=30.0),
    *_pair("fields", fields, "unknown fields"),
    *_pair("lists", lists, "empty lists as metadata"),
    *(
        _pair(name, body, says)[1]
        for name, body, says in (
            ("keys", keys, "keys as metadata"),
            ("deep", deep, "lists in lists"),
            ("surrogates", surrogates, "escaped surrogates"),
            ("surrogate", surrogate, "text with one surrogate"),
            ("integers", integers, "integers of 4,300 digits"),
        )
    ),
    Attack("json-patch", partial(patches, threads=1), "25 PATCHes that each add 8 MB of metadata", seconds=20.0),
    Attack("json-patch-8", partial(patches, threads=8), "the same, eight at a time", seconds=20.0),
    Attack("json-patch-small", small_patches, "PATCHes that each add 100 kB of metadata, for 6 s"),
)
