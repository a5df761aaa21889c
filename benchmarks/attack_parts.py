"""Attacks by parts of messages, by batches of them, and by filters of lists."""

import json
from collections.abc import Callable
from functools import partial
from urllib.parse import urlencode
from uuid import UUID

from benchmarks.attack_bodies import SIZE, filled
from benchmarks.attack_prepare import FOREIGN, LABELS
from benchmarks.attack_texts import MESSAGES
from benchmarks.attacker import Attack, Attacker

BATCH = f"{MESSAGES}/batch"
SECONDS = 5.0
MOST = 99_000
"""Nearly as many values as a body may have."""

PARTS = b'{"role":"assistant","parts":['
KNOWN = [str(UUID(int=number, version=4)) for number in range(1, 201)]


def text() -> bytes:
    """One text, which becomes the content, too."""
    return filled(PARTS + b'{"type":"text","text":"', b"x", b'"}]}')


def texts() -> bytes:
    """As many texts as a body may have."""
    return _items(b'{"type":"text","text":"%s"},', MOST // 3)


def deep() -> bytes:
    """Lists in lists, as deep as they may be, with a text at the bottom of each."""
    return _items(b'{"type":"x","k":' + b"[" * 98 + b'"%s"' + b"]" * 98 + b"},", MOST // 101)


def wide() -> bytes:
    """One object of as many keys as there may be, in the wrong order."""
    keys = b",".join(b'"%06d%s":1' % (number, b"k" * 70) for number in range(MOST, 0, -1))
    return PARTS + b'{"type":"x","k":{' + keys + b"}}]}"


def numbers() -> bytes:
    """Numbers, which are no parts."""
    return PARTS + b",".join([b"1"] * MOST) + b"]}"


def empty() -> bytes:
    """Objects without a type."""
    return PARTS + b",".join([b"{}"] * MOST) + b"]}"


def _items(item: bytes, count: int) -> bytes:
    """Parts that fill a body, each of them with a text of the same length."""
    width = (SIZE - len(PARTS) - 3) // count - len(item) + 2
    return PARTS + (item % (b"x" * width) * count).removesuffix(b",") + b"]}"


def large_batch() -> bytes:
    """200 messages of 40 kB."""
    return _batch([{"role": "assistant", "content": "x" * 40_000}] * 200)


def batch_of_parts() -> bytes:
    """200 messages of 150 parts each."""
    parts = [{"type": "text", "text": "x" * 200}] * 150
    return _batch([{"role": "assistant", "parts": parts}] * 200)


def small_messages() -> bytes:
    """8 MiB of messages of 40 bytes, many more than a batch may have."""
    return filled(b'{"messages":[', b'{"role":"assistant","content":"x"},', b"]}")


def nulls() -> bytes:
    """A batch of nothing."""
    return b'{"messages":[' + b",".join([b"null"] * MOST) + b"]}"


def unknown_fields() -> bytes:
    """A batch whose first message has very many fields."""
    return b'{"messages":[{' + b",".join(b'"%06d%s":1' % (n, b"k" * 70) for n in range(MOST)) + b"}]}"


def _batch(messages: list[dict[str, object]]) -> bytes:
    return json.dumps({"messages": messages}).encode()


def eight(attacker: Attacker, path: str, body: Callable[[], bytes]) -> None:
    """Send it eight times at once."""
    sent = body()
    attacker.at_once(8, lambda: attacker.ask("POST", path, sent))


def retried(attacker: Attacker) -> None:
    """Append 200 small messages, let the metadata of each grow to a mebibyte, and send the batch again."""
    batch = _batch([{"id": id_, "role": "assistant", "content": "x"} for id_ in KNOWN])
    attacker.ask("POST", BATCH, batch)
    patch = json.dumps({"metadata": {"k": "x" * 1_000_000}}).encode()
    ids = iter(KNOWN)

    def grow() -> None:
        for id_ in ids:
            attacker.ask("PATCH", f"{MESSAGES}/{id_}", patch)

    grow()
    attacker.at_once(4, lambda: attacker.ask("POST", BATCH, batch))


def feedback(attacker: Attacker) -> None:
    """Merge a key into the metadata of one message, again and again, beside a mebibyte of others."""
    body = {"id": KNOWN[0], "role": "assistant", "content": "x", "metadata": {f"k{n}": n for n in range(60_000)}}
    attacker.ask("POST", MESSAGES, json.dumps(body).encode())

    def change(number: int) -> None:
        attacker.ask("PATCH", f"{MESSAGES}/{KNOWN[0]}", b'{"metadata":{"a":%d}}' % number)

    attacker.for_seconds(SECONDS, 8, change)


def lists(attacker: Attacker, query: list[tuple[str, str]]) -> None:
    """Ask for a list with these filters."""
    path = f"/api/conversations?{urlencode(query)}"
    attacker.for_seconds(SECONDS, 8, lambda _: attacker.ask("GET", path))


def foreign(attacker: Attacker) -> None:
    """Get or create a conversation by an external id that very many have."""
    body = json.dumps({"reuse_latest": True, "external_id": FOREIGN}).encode()
    attacker.for_seconds(SECONDS, 8, lambda _: attacker.ask("POST", "/api/conversations", body))


def _eight(name: str, path: str, body: Callable[[], bytes], says: str) -> Attack:
    return Attack(name, partial(eight, path=path, body=body), f"{says}, eight times at once", seconds=20.0)


ATTACKS = (
    _eight("parts-text", MESSAGES, text, "a part of 8 MiB of text"),
    _eight("parts-texts", MESSAGES, texts, "8 MiB of 33,000 text parts"),
    _eight("parts-deep", MESSAGES, deep, "8 MiB of parts of 100 levels"),
    _eight("parts-wide", MESSAGES, wide, "8 MiB of 99,000 keys in a part"),
    _eight("parts-numbers", MESSAGES, numbers, "99,000 numbers as parts"),
    _eight("parts-empty", MESSAGES, empty, "99,000 parts without a type"),
    _eight("batch-large", BATCH, large_batch, "200 messages of 40 kB"),
    _eight("batch-parts", BATCH, batch_of_parts, "200 messages of 150 parts"),
    _eight("batch-small", BATCH, small_messages, "8 MiB of messages of 40 bytes"),
    _eight("batch-nulls", BATCH, nulls, "a batch of 99,000 nulls"),
    _eight("batch-fields", BATCH, unknown_fields, "a batch of 99,000 unknown fields"),
    Attack("batch-retried", retried, "a batch whose messages have grown to 1 MB, again, four at once", seconds=40.0),
    Attack("feedback", feedback, "PATCHes of a message with 1 MB of metadata, for 5 s"),
    Attack(
        "lists-labels",
        partial(lists, query=[("label", label) for label in (*LABELS, "apart")]),
        "lists by 32 labels of 20,000 conversations that none has together, for 5 s",
        ("labels",),
    ),
    Attack(
        "lists-without",
        partial(lists, query=[("label", f"!{label}") for label in reversed(LABELS)] + [("label", "!apart")]),
        "lists without 32 labels that all have, for 5 s",
        ("labels",),
    ),
    Attack("foreign-latest", foreign, "get-or-create by an external id that 100,000 have, for 5 s", ("foreign",)),
    Attack(
        "foreign-total",
        partial(lists, query=[("external_id", FOREIGN), ("label", "!apart"), ("total", "true")]),
        "lists and totals of 100,000 conversations by external id and label, for 5 s",
        ("foreign",),
    ),
)
