"""A source of an answer as others have it, and back: pydantic-ai's Citation, and OpenAI's file_citation."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode

from pydantic import ValidationError

from chatkeep.ids import UUID_TEXT
from chatkeep.model import Source, Span
from chatkeep.parts import Part

if TYPE_CHECKING:
    from pydantic_ai.messages import Citation

CHATKEEP = "chatkeep"
"""The field of an annotation with what OpenAI's fields do not hold; its client keeps fields that it does not know."""

IN_QUERY = ("file_path", "similarity_score", "header_anchor", "document_span", "answer_span")
"""The fields that pydantic-ai has none for."""


def to_citation(source: Source) -> "Citation":
    """Return a source as a Citation.

    The id, title, quote and answer_span are its own fields. All others follow the id, as the query of a URL:
    `0190f0f0-…?file_path=tea.md&similarity_score=0.5`.
    """
    from pydantic_ai.messages import Citation, ContentCitationAnchor, DocumentCitationSource

    span = source.answer_span
    anchor = ContentCitationAnchor(start=span.start, end=span.end) if span and span.start < span.end else None
    more = {"file_path": source.file_path, "similarity_score": repr(source.similarity_score)}
    more |= {"header_anchor": source.header_anchor} if source.header_anchor is not None else {}
    more |= {"document_span": _span_text(source.document_span)} if source.document_span else {}
    more |= {"answer_span": _span_text(span)} if span and not anchor else {}
    document = DocumentCitationSource(
        document_id=f"{source.document_id}?{urlencode(more)}",
        title=source.title,
        excerpts=[] if source.quote is None else [source.quote],
    )
    return Citation(sources=[document], anchor=anchor)


def from_citation(citation: "Citation") -> Source | None:
    """Return the source that `to_citation` made a Citation of; None for one of somebody else.

    Of those there is no path and no score: see `part_of_citation`.
    """
    for each in citation.sources:
        if each.kind == "document" and (id_ := each.document_id) and "?" in id_:
            return _source(_fields(id_, each.title, each.excerpts, citation.anchor))
    return None


def _fields(id_: str, title: str | None, excerpts: list[str], anchor: Any) -> dict[str, Any]:
    document_id, _, query = id_.partition("?")
    fields: dict[str, Any] = {"document_id": document_id, "title": title, **_query(query)}
    if "similarity_score" in fields:
        fields["similarity_score"] = _number(fields["similarity_score"])
    for name in ("document_span", "answer_span"):
        if name in fields:
            fields[name] = _span_of(fields[name])
    if excerpts:
        fields["quote"] = excerpts[0]
    if anchor is not None and anchor.kind == "content":
        fields["answer_span"] = {"start": anchor.start, "end": anchor.end}
    return fields


def _query(query: str) -> dict[str, str]:
    try:
        found = dict(parse_qsl(query, keep_blank_values=True, max_num_fields=len(IN_QUERY), errors="strict"))
    except ValueError:
        return {}
    return {name: value for name, value in found.items() if name in IN_QUERY}


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _span_text(span: Span) -> str:
    return f"{span.start}-{span.end}"


def _span_of(text: str) -> dict[str, int] | None:
    start, _, end = text.partition("-")
    is_span = start.isdecimal() and end.isdecimal() and start.isascii() and end.isascii() and len(text) < 64
    return {"start": int(start), "end": int(end)} if is_span else None


def _source(fields: dict[str, Any]) -> Source | None:
    if not UUID_TEXT.fullmatch(f"{fields.get('document_id')}"):
        return None
    try:
        return Source.model_validate(fields)
    except ValidationError:
        return None


def part_of_citation(citation: "Citation") -> Part | None:
    """Return what can be known of a Citation of anybody, as a part of the type `source`; None if that is nothing."""
    for each in citation.sources:
        is_page = each.kind == "web"
        known = {
            "url": each.url if each.kind == "web" else None,
            "document_id": None if each.kind == "web" else (each.document_id or "").partition("?")[0] or None,
            "title": each.title,
            "quote": each.excerpts[0] if each.excerpts else None,
        }
        if is_page or any(known.values()):
            return {"type": "source", **{name: value for name, value in known.items() if value}}
    return None


def to_file_citation(source: Source) -> dict[str, Any]:
    """Return a source as an annotation of OpenAI's type `file_citation`.

    `index` is where the answer goes on after what the source supports; 0 if that is not known. What OpenAI has no field
    for is in `chatkeep`.
    """
    own = source.model_dump(mode="json", exclude={"document_id", "file_path"})
    return {
        "type": "file_citation",
        "file_id": str(source.document_id),
        "filename": source.file_path,
        "index": source.answer_span.end if source.answer_span else 0,
        CHATKEEP: own,
    }


def from_file_citation(annotation: Mapping[str, Any]) -> Source | None:
    """Return the source that `to_file_citation` made an annotation of; None for one of somebody else."""
    own = annotation.get(CHATKEEP)
    if annotation.get("type") != "file_citation" or not isinstance(own, dict) or len(own) > len(Source.model_fields):
        return None
    return _source({**own, "document_id": annotation.get("file_id"), "file_path": annotation.get("filename")})
