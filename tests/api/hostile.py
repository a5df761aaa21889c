"""Texts and bodies that were made to cost a server more than they cost their sender."""

from collections.abc import Callable

BODY_BYTES = 8 << 20
"""The largest body that a server takes, unless it is set otherwise."""


def _repeated(unit: str) -> Callable[[int], str]:
    return lambda chars: (unit * (chars // len(unit) + 1))[:chars]


def _halves(first: str, second: str) -> Callable[[int], str]:
    return lambda chars: "a" + first * (chars // 2) + second * (chars // 2)


TEXTS: dict[str, Callable[[int], str]] = {
    "marks of two classes": _halves("\u0301", "\u0327"),
    "marks of three classes": lambda chars: (
        "a" + "\u0345" * (chars // 3) + "\u0301" * (chars // 3) + "\u0327" * (chars // 3)
    ),
    "alternating marks": _repeated("\u0301\u0327\u0345\u05b0"),
    "expanding marks": _halves("\u0344", "\u0327"),
    "Tibetan vowels": _halves("\u0f71", "\u0f39"),
    "Zalgo": _repeated("Z\u0300\u0316\u0334\u0489\u0488\u20dd\u1dce\ufe2f"),
    "jamo": _repeated("\u1100\u1161\u11a8"),
    "leading jamo": _repeated("\u1100"),
    "expands to eighteen": _repeated("\ufdfa"),
    "bidi": _repeated("\u202e\u2066a\u2069\u202c\u200f"),
    "zero width": _repeated("\u200b\u200d\u2060\ufeff"),
    "NUL": _repeated("a\0"),
    "only NUL and a letter": lambda chars: "a" + "\0" * (chars - 1),
    "noncharacters": _repeated("\ufdd0\ufdd00000\uffff\U0010ffff"),
    "dotted I": _repeated("\u0130"),
    "sharp s": _repeated("\u00df\u1e9e\ufb03"),
    "Han": _repeated("\u8336\u82b1\u8349"),
    "one Han": _repeated("\u8336"),
    "Thai": _repeated("\u0e0a\u0e32\u0e40\u0e02\u0e35\u0e22\u0e27"),
    "Khmer": _repeated("\u1780\u17d2\u1781\u17d2\u1782"),
    "Tibetan": _repeated("\u0f40\u0f90\u0fb5\u0f71\u0f72"),
    "one word": _repeated("a"),
    "spaces": lambda chars: "a" + " " * (chars - 2) + "b",
    "blank": _repeated(" "),
    "line ends": _repeated("a\r\n\r\n\n\r\u2028\u0085"),
    "quotes and brackets": _repeated('[{"\\",:'),
    "emoji of families": _repeated("\U0001f468\u200d\U0001f469\u200d\U0001f467\ufe0f"),
    "flags": _repeated("\U0001f1e6"),
    "Arabic": _repeated("\u0645\u0635\u0637\u0641\u0649"),
    "lone surrogates": _repeated("\ud83dx\udc00"),
    "one lone surrogate": lambda chars: "\ud83d" + "\u8336" * (chars - 1),
    "regular expression": _repeated("(a+)+$^.*|\\"),
    "SQL": _repeated("%_'\";--\x00*NEAR AND OR ^"),
}
"""Texts of a length in characters."""

SURROGATES = {
    "one lone surrogate": lambda size: "\\ud83d" + "x" * (size - 6),
    "lone surrogates": lambda size: "\\ud83d" * (size // 6),
    "lone surrogates apart": lambda size: "\\ud83dx" * (size // 7),
    "pairs": lambda size: "\\ud83d\\ude00" * (size // 12),
    "NULs": lambda size: "\\u0000" * (size // 6),
    "line ends": lambda size: "\\n" * (size // 2),
    "backslashes": lambda size: "\\\\" * (size // 2),
    "quotes": lambda size: '\\"' * (size // 2),
    "structure": lambda size: "[{},:]" * (size // 6),
    "Han": lambda size: "\u8336" * (size // 3),
    "emoji": lambda size: "\U0001f600" * (size // 4),
}
"""JSON of a text of so many bytes, without its quotes."""


def message(**values: str) -> bytes:
    """The body of an assistant's message, with fields given as JSON."""
    fields = {"role": '"assistant"', "content": '"x"', **values}
    return f"{{{','.join(f'"{name}":{value}' for name, value in fields.items())}}}".encode()


def listed(item: str, size: int = BODY_BYTES - 200, count: int | None = None) -> str:
    """A JSON list of an item, of so many bytes or items."""
    times = size // (len(item.encode()) + 1) if count is None else count
    return f"[{','.join([item] * times)}]"


def keyed(count: int, width: int = 1, start: str = "") -> str:
    """The members of a JSON object, without its braces: so many keys of a width, all different."""
    return ",".join(f'"{start}{number:0{width}x}":1' for number in range(count))


MOST = 99_900
"""Nearly as many values as a body may have."""

SOURCE = '{"document_id":"0190f0f0-0000-7000-8000-000000000001","file_path":"f","similarity_score":0.5}'


def parts(item: str, count: int) -> bytes:
    """The body of a message of so many parts, which fill 8 MiB with the text that each of them has at `%`."""
    width = (BODY_BYTES - 200) // count - len(item)
    return message(content="null", parts=listed(item.replace("%", "x" * width), count=count))


def batch(body: bytes, count: int = 1) -> bytes:
    """The body of a batch of a message."""
    return b'{"messages":[%b]}' % b",".join([body] * count)


BODIES: dict[str, Callable[[], bytes]] = {
    "millions of sources": lambda: message(sources=listed("1")),
    "100,000 sources": lambda: message(sources=listed("1", count=MOST)),
    "100,000 good sources": lambda: message(sources=listed(SOURCE, size=4 << 20)),
    "sources of unknown fields": lambda: message(sources=f"[{{{keyed(MOST)}}}]"),
    "sources with a wrong last one": lambda: message(sources=listed(SOURCE, count=998)[:-1] + ",1]"),
    "unknown fields": lambda: message()[:-1] + f",{keyed(700_000)}}}".encode(),
    "100,000 unknown fields": lambda: message()[:-1] + f",{keyed(MOST)}}}".encode(),
    "100,000 long unknown fields": lambda: message()[:-1] + f",{keyed(MOST, 76)}}}".encode(),
    "the same field": lambda: message()[:-1] + b',"content":"x"' * 500_000 + b"}",
    "metadata of lists": lambda: message(metadata='{"k":' + listed("[]") + "}"),
    "metadata of 100,000 lists": lambda: message(metadata='{"k":' + listed("[]", count=MOST) + "}"),
    "metadata of keys": lambda: message(metadata=f"{{{keyed(700_000)}}}"),
    "metadata of 100,000 keys": lambda: message(metadata=f"{{{keyed(MOST, 76)}}}"),
    "metadata of 100,000 surrogates": lambda: message(
        metadata='{"k":' + listed(f'"\\ud800{"x" * 70}"', count=MOST) + "}"
    ),
    "metadata of objects": lambda: message(metadata='{"k":' + listed('{"a":1}', count=MOST // 2) + "}"),
    "metadata of one text": lambda: message(metadata=f'{{"k":"{"x" * (BODY_BYTES - 200)}"}}'),
    "an integer": lambda: message(metadata=f'{{"k":{"9" * (BODY_BYTES - 200)}}}'),
    "integers of 4,300 digits": lambda: message(metadata='{"k":' + listed("9" * 4_300) + "}"),
    "integers of 4,301 digits": lambda: message(metadata='{"k":' + listed("9" * 4_301) + "}"),
    "a long fraction": lambda: message(metadata=f'{{"k":0.{"0" * (BODY_BYTES - 200)}1}}'),
    "fractions": lambda: message(metadata='{"k":' + listed(f"0.{'9' * 78}", count=MOST) + "}"),
    "fractions halfway": lambda: message(metadata='{"k":' + listed(f"9007199254740993{'0' * 750}1.5e-750") + "}"),
    "infinity": lambda: message(metadata=f'{{"k":{listed("1")[:-1]},1e999]}}'),
    "deep lists": lambda: message(metadata="[" * (BODY_BYTES - 100)),
    "deep lists that end": lambda: message(metadata="[" * 4_000_000 + "]" * 4_000_000),
    "deep lists of 50,000": lambda: message(metadata='{"k":' + "[" * 50_000 + "]" * 50_000 + "}"),
    "deep objects": lambda: message(metadata='{"a":' * 1_600_000),
    "deep after text": lambda: message(content=f'"{"x" * 7_000_000}"', metadata="[" * 5_000 + "]" * 5_000),
    "closed before opened": lambda: b"]" * BODY_BYTES,
    "lists beside each other": lambda: b"[]" * (BODY_BYTES // 2),
    "quotes": lambda: b'"' * BODY_BYTES,
    "backslashes": lambda: b"\\" * BODY_BYTES,
    "commas": lambda: b"," * BODY_BYTES,
    "spaces": lambda: b" " * (BODY_BYTES - 2) + b"{}",
    "not UTF-8": lambda: message(content=f'"{"x" * 8_000_000}')[:-1] + b'\xff"}',
    "UTF-16": lambda: message(content=f'"{"x" * 4_000_000}"').decode().encode("utf-16"),
    "with a byte order mark": lambda: b"\xef\xbb\xbf" + message(content=f'"{"x" * 8_000_000}"'),
    "cut off": lambda: message(content=f'"{"x" * 8_000_000}"')[:-2],
    "cut off in an escape": lambda: message(content=f'"{"x" * 8_000_000}\\ud8')[:-1],
    "NaN at the end": lambda: message(content=f'"{"x" * 8_000_000}"', metadata='{"k":NaN}'),
    **{
        f"content of {name}": (lambda make=make: message(content=f'"{make(BODY_BYTES - 200)}"'))  # type: ignore[misc]
        for name, make in SURROGATES.items()
    },
    "a part of one text": lambda: parts('{"type":"text","text":"%"}', 1),
    "a part of surrogates": lambda: message(
        content="null", parts=f'[{{"type":"text","text":"{SURROGATES["lone surrogates"](BODY_BYTES - 200)}"}}]'
    ),
    "text parts": lambda: parts('{"type":"text","text":"%"}', MOST // 3),
    "empty text parts": lambda: message(content="null", parts=listed('{"type":"text","text":""}', count=MOST // 3)),
    "small parts": lambda: message(parts=listed('{"type":"x"}', count=MOST // 2)),
    "a million small parts": lambda: message(parts=listed('{"type":"x"}')),
    "parts of numbers": lambda: message(parts=listed("1", count=MOST)),
    "parts without a type": lambda: message(parts=listed("{}", count=MOST)),
    "deep parts": lambda: parts('{"type":"x","k":' + "[" * 98 + '"%"' + "]" * 98 + "}", MOST // 101),
    "parts that are too deep": lambda: parts('{"type":"x","k":' + "[" * 99 + '"%"' + "]" * 99 + "}", MOST // 101),
    "deep parts without an end": lambda: message(parts="[" * (BODY_BYTES - 100)),
    "a wide part": lambda: message(parts=f'[{{"type":"x","k":{{{keyed(MOST - 10, 76)}}}}}]'),
    "parts of integers": lambda: message(parts=listed(f'{{"type":"x","k":{"9" * 4_300}}}')),
}
"""Bodies for the route that takes messages, most of 8 MiB."""

BATCHES: dict[str, Callable[[], bytes]] = {
    "large messages": lambda: batch(message(content=f'"{"x" * 41_000}"'), 200),
    "messages of parts": lambda: batch(
        message(content="null", parts=listed('{"type":"text","text":""}', count=160)), 200
    ),
    "a million small messages": lambda: batch(message(), 200_000),
    "30,000 small messages": lambda: batch(message(), 30_000),
    "nulls": lambda: batch(b"null", MOST),
    "objects": lambda: batch(b"{}", MOST),
    "a message of unknown fields": lambda: batch(message()[:-1] + f",{keyed(MOST, 75)}}}".encode()),
    "200 messages of unknown fields": lambda: batch(message()[:-1] + f",{keyed(490)}}}".encode(), 200),
    "messages with a wrong last one": lambda: batch(message(), 199)[:-2] + b",1]}",
    "a message of deep parts": lambda: batch(BODIES["deep parts"]()),
    "one id": lambda: batch(message(id='"0190f0f0-0000-7000-8000-000000000001"', content=f'"{"x" * 41_000}"'), 200),
}
"""Bodies for the route that takes batches of messages."""
