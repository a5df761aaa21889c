"""What a search in documents returns. Apart from the search: the HTTP schemas need no numpy."""

from typing import Literal
from uuid import UUID

from pydantic import Field

from chatkeep.model import Record

MAX_QUESTION_CHARS = 2_000
"""Longest question, in characters."""

MAX_PASSAGES = 50
"""Most documents that a search returns."""

Method = Literal["hybrid", "lexical"]


class Passage(Record):
    """A passage of a document that answers a question."""

    document_id: UUID
    file_path: str
    title: str | None
    header_anchor: str | None = Field(description="The anchor of its section, with '#'.")
    heading: str = Field(description="The headings above it, from the outermost, divided by ' > '.")
    text: str
    start: int = Field(description="Where it begins in the document's text, in characters.")
    end: int = Field(description="Where it ends, exclusive.")
    n: int = Field(description="Its number in the document, from 0.")
    similarity_score: float = Field(
        description="0…1: the cosine of its vector and the question's; without vectors the share of the question's"
        " words in it, the rare ones counting more."
    )


class Passages(Record):
    """What a search found: the best passage of each document, the best document first."""

    items: list[Passage]
    method: Method = Field(description="By words and vectors, or by words alone.")
    note: str | None = Field(default=None, description="Why it was by words alone.")
