"""A source as others have it comes back equal, and theirs do not become ours."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses.response_output_text import AnnotationFileCitation
from openai.types.responses.response_output_text_param import AnnotationFileCitation as FileCitationParam
from pydantic import TypeAdapter
from pydantic_ai.messages import (
    Citation,
    ContentCitationAnchor,
    DocumentCitationSource,
    MarkerCitationAnchor,
    ModelMessagesTypeAdapter,
    ModelResponse,
    TextPart,
    WebCitationSource,
)

from chatkeep.formats.models.citations import (
    from_citation,
    from_file_citation,
    part_of_citation,
    to_citation,
    to_file_citation,
)
from chatkeep.model import Source, Span

counts = st.integers(0, 2**63 - 1)
spans = st.tuples(counts, counts).map(lambda both: Span(start=min(both), end=max(both)))
short = st.text(min_size=1, max_size=40).filter(lambda text: not text.isspace())
sources = st.builds(
    Source,
    document_id=st.uuids(),
    file_path=short,
    header_anchor=st.none() | short,
    similarity_score=st.floats(-1, 1),
    title=st.none() | short,
    quote=st.none() | st.text(min_size=1, max_size=40),
    document_span=st.none() | spans,
    answer_span=st.none() | spans,
)


def same(one: Source | None, other: Source) -> bool:
    """Equal, the sign of a zero too."""
    return one == other and one is not None and repr(one.similarity_score) == repr(other.similarity_score)


@given(sources)
def test_every_source_comes_back_from_pydantic_ai(source: Source) -> None:
    """Also after its Citation was stored as JSON, in a text."""
    response = ModelResponse([TextPart("80", citations=[to_citation(source)])])
    (stored,) = ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json([response]))
    (text,) = stored.parts
    assert isinstance(text, TextPart)
    assert text.citations
    assert same(from_citation(text.citations[0]), source)


@given(sources)
def test_every_source_comes_back_from_openai(source: Source) -> None:
    """As JSON, through the type of its client, and it is valid for its API's type."""
    annotation = to_file_citation(source)
    TypeAdapter(FileCitationParam).validate_python(annotation)
    parsed = AnnotationFileCitation.model_validate(json.loads(json.dumps(annotation)))
    assert same(from_file_citation(parsed.model_dump()), source)


def test_their_own_fields_hold_what_they_are_for() -> None:
    """The title, the quote and the place in the answer are where others look for them."""
    span = Span(start=1, end=4)
    source = Source(
        document_id=UUID(int=1), file_path="tea.md", similarity_score=0.5, title="Tea", quote="80 °C", answer_span=span
    )
    citation, annotation = to_citation(source), to_file_citation(source)
    (document,) = citation.sources
    assert isinstance(document, DocumentCitationSource)
    assert document.document_id == f"{UUID(int=1)}?file_path=tea.md&similarity_score=0.5"
    assert (document.title, document.excerpts, citation.anchor) == (
        "Tea",
        ["80 °C"],
        ContentCitationAnchor(start=1, end=4),
    )
    known = (annotation["file_id"], annotation["filename"], annotation["index"])
    assert known == (str(UUID(int=1)), "tea.md", 4)


@pytest.mark.parametrize(
    ("citation", "part"),
    [
        (Citation([WebCitationSource("https://tea.test", title="Tea")]), {"url": "https://tea.test", "title": "Tea"}),
        (
            Citation([DocumentCitationSource(document_id="file-1", excerpts=["80"])]),
            {"document_id": "file-1", "quote": "80"},
        ),
        (
            Citation([DocumentCitationSource(title="Tea")], anchor=MarkerCitationAnchor(start=0, end=3)),
            {"title": "Tea"},
        ),
        (
            Citation([DocumentCitationSource(document_id=f"{UUID(int=1)}?similarity_score=x&file_path=%ff")]),
            {"document_id": str(UUID(int=1))},
        ),
        (
            Citation(
                [DocumentCitationSource(document_id=f"{UUID(int=1)}?similarity_score=1&file_path=a&document_span=-9")]
            ),
            {"document_id": str(UUID(int=1))},
        ),
    ],
)
def test_citations_of_others_are_parts(citation: Citation, part: dict[str, Any]) -> None:
    """They have no path and no score: what can be known of them is a part of the type `source`."""
    found = from_citation(citation)
    assert found is None or found.document_span is None
    assert part_of_citation(citation) == {"type": "source", **part}


@pytest.mark.parametrize(
    "annotation",
    [
        {"type": "file_citation", "file_id": "file-1", "filename": "tea.md", "index": 0},
        {
            "type": "file_citation",
            "file_id": str(UUID(int=1)),
            "filename": "tea.md",
            "index": 0,
            "chatkeep": {"similarity_score": "x"},
        },
        {
            "type": "file_citation",
            "file_id": str(UUID(int=1)),
            "filename": "tea.md",
            "chatkeep": {str(n): n for n in range(99)},
        },
        {"type": "url_citation", "url": "https://tea.test", "chatkeep": {}},
        {},
    ],
)
def test_annotations_of_others_are_none(annotation: dict[str, Any]) -> None:
    """Without what chatkeep adds there is no path and no score."""
    assert from_file_citation(annotation) is None
