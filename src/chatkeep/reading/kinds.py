"""Tells what kind of file something is, by its name and by how it begins. No I/O."""

from enum import Enum
from pathlib import PurePosixPath
from typing import NamedTuple

from chatkeep.errors import InvalidInput

MAGIC_BYTES = 1_024
"""So much of a file is looked at. A PDF may have that much before its first line."""


class Kind(Enum):
    """A kind of file that can be read; the value is its media type."""

    MARKDOWN = "text/markdown"
    TEXT = "text/plain"
    HTML = "text/html"
    PDF = "application/pdf"
    DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"


CONVERTED = {Kind.HTML, Kind.PDF, Kind.DOCX}
"""What is made Markdown first."""

_SUFFIXES = {
    **dict.fromkeys((".md", ".markdown", ".mdx"), Kind.MARKDOWN),
    **dict.fromkeys((".txt", ".text", ".rst", ".log"), Kind.TEXT),
    **dict.fromkeys((".html", ".htm"), Kind.HTML),
    ".pdf": Kind.PDF,
    ".docx": Kind.DOCX,
}

SUFFIXES = frozenset(_SUFFIXES)
"""The suffixes of files that are looked for in a folder."""

_ARCHIVES = frozenset(
    [
        ".zip",
        ".gz",
        ".tgz",
        ".tar",
        ".7z",
        ".rar",
        ".xz",
        ".txz",
        ".bz2",
        ".tbz2",
        ".zst",
        ".lz",
        ".lzma",
        ".lz4",
        ".br",
        ".z",
        ".cab",
        ".iso",
        ".dmg",
        ".jar",
        ".war",
        ".ear",
        ".apk",
        ".whl",
        ".egg",
        ".deb",
        ".rpm",
        ".cpio",
    ]
)

_ZIPPED = {
    ".xlsx": "an Excel workbook",
    ".pptx": "a PowerPoint presentation",
    ".odt": "an OpenDocument text",
    ".ods": "an OpenDocument spreadsheet",
    ".odp": "an OpenDocument presentation",
    ".epub": "an EPUB book",
}
"""Files that are ZIP archives, but not seen as such."""


class _Magic(NamedTuple):
    start: bytes
    name: str
    is_archive: bool = False
    offset: int = 0


_MAGICS = (
    _Magic(b"PK\x03\x04", "a ZIP archive", is_archive=True),
    _Magic(b"PK\x05\x06", "a ZIP archive", is_archive=True),
    _Magic(b"PK\x07\x08", "a ZIP archive", is_archive=True),
    _Magic(b"\x1f\x8b", "a gzip archive", is_archive=True),
    _Magic(b"\x1f\x9d", "a compressed archive", is_archive=True),
    _Magic(b"1AY&SY", "a bzip2 archive", is_archive=True, offset=4),
    _Magic(b"\xfd7zXZ\x00", "an xz archive", is_archive=True),
    _Magic(b"7z\xbc\xaf\x27\x1c", "a 7z archive", is_archive=True),
    _Magic(b"Rar!\x1a\x07", "a RAR archive", is_archive=True),
    _Magic(b"\x28\xb5\x2f\xfd", "a Zstandard archive", is_archive=True),
    _Magic(b"\x04\x22\x4d\x18", "an LZ4 archive", is_archive=True),
    _Magic(b"ustar", "a tar archive", is_archive=True, offset=257),
    _Magic(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or encrypted Office file"),
    _Magic(b"{\\rtf", "an RTF document"),
    _Magic(b"\x89PNG\r\n\x1a\n", "a PNG image"),
    _Magic(b"\xff\xd8\xff", "a JPEG image"),
    _Magic(b"GIF87a", "a GIF image"),
    _Magic(b"GIF89a", "a GIF image"),
    _Magic(b"\x7fELF", "a program"),
    _Magic(b"SQLite format 3\x00", "an SQLite database"),
)

_SUPPORTED = "Markdown, plain text, HTML, PDF and DOCX can be read"


def kind_of(file_path: str, start: bytes) -> Kind:
    """Return the kind of a file by its name, and by its first MAGIC_BYTES. Raises InvalidInput for all others."""
    suffix = PurePosixPath(file_path).suffix.lower()
    kind = _SUFFIXES.get(suffix)
    magic = next((magic for magic in _MAGICS if start.startswith(magic.start, magic.offset)), None)
    if kind is not Kind.DOCX or (magic and not magic.start.startswith(b"PK")):
        _refuse(suffix, magic)
    is_pdf = b"%PDF-" in start if kind is Kind.PDF else start.startswith(b"%PDF-")
    if kind is Kind.DOCX and not magic:
        raise InvalidInput("it is named .docx, but is no DOCX file: save it as DOCX again, or name it as what it is")
    if kind is Kind.PDF and not is_pdf:
        raise InvalidInput("it is named .pdf, but is no PDF file: name it as what it is")
    if is_pdf and kind not in {None, Kind.PDF}:
        raise InvalidInput(f"it is named {suffix}, but is a PDF file: name it .pdf")
    return Kind.PDF if is_pdf else kind or Kind.TEXT


def _refuse(suffix: str, magic: _Magic | None) -> None:
    """Raise InvalidInput for what is known and cannot be read."""
    if suffix in _ZIPPED:
        raise InvalidInput(f"it is {_ZIPPED[suffix]}, which cannot be read: {_SUPPORTED}")
    if magic and not magic.is_archive:
        raise InvalidInput(f"it is {magic.name}, which cannot be read: {_SUPPORTED}")
    if magic or suffix in _ARCHIVES:
        name = magic.name if magic else f"an archive ({suffix})"
        raise InvalidInput(f"it is {name}; archives are not read: unpack it, and give the files in it")
