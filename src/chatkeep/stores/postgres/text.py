"""Text as PostgreSQL can hold it: without NUL, and as terms of the search index."""

from chatkeep.values import decode_nul, encode_nul
from chatkeep.words import index_terms


def encode(text: str | None) -> str | None:
    """The text without NUL, as it is stored."""
    return None if text is None else encode_nul(text)


def decode(text: str | None) -> str | None:
    """The text that was stored: the inverse of `encode`."""
    return None if text is None else decode_nul(text)


def terms_of(content: str, owner: str) -> str:
    """The terms of a message as one text, divided by spaces, which no term holds."""
    return " ".join(index_terms(owner, content))
