"""What a file seems to be, by its first bytes, if it is not JSON Lines."""

import re

UTF_16 = "text in UTF-16; save it as UTF-8"

MAGIC = (
    (b"PK\x03\x04", "a zip archive; unpack it"),
    (b"PK\x05\x06", "an empty zip archive"),
    (b"SQLite format 3\0", "a SQLite database; a copy of a store is opened with --database-url sqlite:///FILE"),
    (b"PGDMP", "a dump of PostgreSQL; pg_restore reads it"),
    (b"%PDF-", "a PDF document"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"\x1f\x8b", "a gzip archive in another one; unpack it"),
    (b"BZh", "compressed with bzip2; unpack it"),
    (b"\xfd7zXZ\0", "compressed with xz; unpack it"),
    (b"(\xb5/\xfd", "compressed with zstd; unpack it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it"),
    (b"\xff\xfe", UTF_16),
    (b"\xfe\xff", UTF_16),
)
"""The beginning of files of each kind. None of them is that of a JSON object in UTF-8."""

TAR_PLACE, TAR = 257, b"ustar"

PRETTY = re.compile(rb"\{[ \t\r]*\n")
"""An object of which the first line has the bracket alone."""

BOM = b"\xef\xbb\xbf"


def kind_of(start: bytes) -> str | None:
    """What a file that begins so seems to be; None if it may be JSON Lines: also if only its first line is broken."""
    if start[TAR_PLACE:].startswith(TAR):
        return "a tar archive; unpack it"
    for magic, kind in MAGIC:
        if start.startswith(magic):
            return kind
    if any(start[zero:4:2] == b"\0\0" and b"\0" not in start[1 - zero : 4 : 2] for zero in (0, 1)):
        return UTF_16
    text = start.removeprefix(BOM).lstrip()
    if text.startswith(b"{"):
        return "one JSON document over many lines" if PRETTY.match(text) else None
    return "binary data" if b"\0" in start else _kind_of_text(text)


def _kind_of_text(text: bytes) -> str | None:
    if re.match(rb"\[\s*([\[{\"\]\d]|$)", text):
        return "a JSON array, as ChatGPT's conversations.json is"
    if re.match(rb"<[!?a-zA-Z]", text):
        return "HTML or XML"
    *lines, _rest = text.split(b"\n")
    if len(lines) < 2 or any(line.lstrip().startswith(b"{") for line in lines):
        return None
    first, second = lines[:2]
    is_table = any(0 < first.count(separator) == second.count(separator) for separator in (b",", b";", b"\t"))
    return "a table such as CSV" if is_table else "text of another kind"
