"""Makes Markdown of HTML, PDF and DOCX, by the converters of markitdown. Runs in a child process with limits only.

The converters are called themselves: the class MarkItDown would try others, too, among them one that unpacks archives,
and load plug-ins.
"""

import logging
import re
import zipfile
from importlib import import_module
from io import BytesIO
from typing import Any, NamedTuple

from chatkeep.errors import InvalidInput
from chatkeep.reading.kinds import Kind

MAX_UNPACKED_BYTES = 200 << 20
"""Most bytes of all parts of a DOCX file together, unpacked."""

MAX_PARTS = 10_000
"""Most parts of a DOCX file."""

_CONVERTERS = {Kind.HTML: "HtmlConverter", Kind.PDF: "PdfConverter", Kind.DOCX: "DocxConverter"}

_TRAILING_SPACE = re.compile(r"[ \t\r\f\v]++$", re.M)
_BLANK_LINES = re.compile(r"\n{3,}+")


class Converted(NamedTuple):
    """A document as Markdown."""

    text: str
    title: str | None


def load_converter(kind: Kind) -> Any:
    """Import markitdown and return a converter. Raises InvalidInput if the extra `convert` is not installed."""
    try:
        converters = import_module("markitdown.converters")
        if kind is Kind.PDF:
            import_module("pdfplumber")
        if kind is Kind.DOCX:
            import_module("mammoth")
    except ImportError as error:
        raise InvalidInput(
            f'{kind.name} needs an extra that is not installed: pip install "chatkeep[convert]"'
        ) from error
    logging.getLogger("pdfminer").setLevel(logging.CRITICAL)  # a line for each thing that a damaged file lacks
    return getattr(converters, _CONVERTERS[kind])()


def convert(converter: Any, kind: Kind, content: bytes) -> Converted:
    """Return a document as Markdown. Raises InvalidInput if that cannot be done, or MemoryError."""
    from markitdown import StreamInfo

    info = StreamInfo(mimetype=kind.value, extension=f".{kind.name.lower()}", charset="utf-8")
    try:
        result = converter.convert(BytesIO(content), info)
    except MemoryError:
        raise
    except Exception as error:
        raise InvalidInput(_reason(kind, error)) from error
    text = _BLANK_LINES.sub("\n\n", _TRAILING_SPACE.sub("", result.markdown.replace("\0", "\ufffd")))
    return Converted(text, result.title)


def _reason(kind: Kind, error: Exception) -> str:
    if "Password" in type(error).__name__ or "Password" in repr(error):
        return f"the {kind.name} file is protected by a password: save it without one"
    return f"the {kind.name} file cannot be converted; it may be damaged: save it again, or as Markdown"


def check_docx(content: bytes) -> None:
    """Raise InvalidInput if this is no DOCX file, or one that would be too large unpacked."""
    try:
        with zipfile.ZipFile(BytesIO(content)) as file:
            parts = file.infolist()
    except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError) as error:
        raise InvalidInput("the DOCX file is damaged: save it again") from error
    if not any(part.filename == "word/document.xml" for part in parts):
        raise InvalidInput("it is named .docx, but is another ZIP archive: unpack it, and give the files in it")
    size = sum(part.file_size for part in parts)
    if size > MAX_UNPACKED_BYTES or len(parts) > MAX_PARTS:
        raise InvalidInput(
            f"the DOCX file has {len(parts):,} parts and {size:,} bytes unpacked, and may have at most"
            f" {MAX_PARTS:,} and {MAX_UNPACKED_BYTES:,}: divide it, or leave out its images"
        )
