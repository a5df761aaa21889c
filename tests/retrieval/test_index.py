"""Which documents a search finds, in which order, and which passage of each."""

import gc
import math
import random
import re
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple
from uuid import UUID, uuid4

import bm25s  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from chatkeep.documents import Content, IndexedChunk, Nearest
from chatkeep.retrieval import segments as segments_module
from chatkeep.retrieval.index import K1, MAX_QUERY_TERMS, RANK_OFFSET, B, Index, Ranked
from chatkeep.retrieval.segments import Segment, unpack
from chatkeep.retrieval.segments import pack as packed
from chatkeep.retrieval.terms import pack_terms, terms_of

DOCS = Path(__file__).parents[2] / "docs"

type Vector = tuple[int, ...]


class Passage(NamedTuple):
    """A chunk, as the reference reads it."""

    terms: list[int]
    vector: Vector | None


type Library = dict[str, list[Passage]]
"""The passages of each document, by its path."""

PASSAGES = st.builds(
    Passage,
    st.lists(st.integers(0, 5), max_size=6),
    st.none() | st.tuples(*[st.integers(-2, 2)] * 3),  # their products are exact
)
LIBRARIES = st.dictionaries(st.text("abé/", min_size=1, max_size=4), st.lists(PASSAGES, max_size=4), max_size=6)


def pack(terms: Sequence[int]) -> bytes:
    """Terms as they are stored."""
    return np.array(terms, "<u4").tobytes()


def row(vector: Sequence[float]) -> NDArray[np.float32]:
    """A vector as a search takes it."""
    return np.array(vector, np.float32)


def segment(path: str, passages: Sequence[Passage]) -> Segment:
    """The segment of a document, with ids of its own."""
    chunks = [
        IndexedChunk(n, pack(terms), None if vector is None else row(vector).tobytes())
        for n, (terms, vector) in enumerate(passages)
    ]
    return Segment.of([(Content(uuid4(), uuid4(), path, None, len(chunks), 1), chunks)])


def index_of(segments: Sequence[Segment]) -> Index:
    """The index of everything in segments."""
    return Index.of(segments, {content for each in segments for content in each.contents})


def indexed(library: Library) -> Index:
    """The index of a library."""
    return index_of([segment(path, passages) for path, passages in library.items()])


def places(found: list[Ranked]) -> list[tuple[str, int, float]]:
    """What was found, without ids."""
    return [(one.content.file_path, one.n, one.score) for one in found]


# --- the reference ----------------------------------------------------------------------------------------


def rarity(term: int, passages: Sequence[Passage]) -> float:
    """How much a term tells."""
    having = sum(term in passage.terms for passage in passages)
    return math.log1p((len(passages) - having + 0.5) / (having + 0.5))


def words_score(passage: Passage, asked: Sequence[int], passages: Sequence[Passage]) -> float:
    """The score of a passage by BM25, in numbers of 32 bits."""
    average = sum(len(each.terms) for each in passages) / len(passages) or 1
    damping = np.float32(K1 * (1 - B + B * (len(passage.terms) / average)))
    score = np.float32(0)
    for term in asked:
        count = np.float32(passage.terms.count(term))
        score += count / (count + damping) * np.float32(rarity(term, passages))
    return float(score) or -math.inf


def cosine(passage: Passage, vector: Vector | None) -> float:
    """The product of two vectors."""
    if vector is None or passage.vector is None:
        return -math.inf
    return sum(a * b for a, b in zip(passage.vector, vector, strict=True))


def reciprocal(score: float, scores: Sequence[float]) -> float:
    """The reciprocal of the rank of a score."""
    return 0 if score == -math.inf else 1 / (RANK_OFFSET + 1 + sum(other > score for other in scores))


def share(passage: Passage, asked: Sequence[int], passages: Sequence[Passage]) -> float:
    """How many of the words asked for a passage has, the rare ones counting more."""
    rarities = [rarity(term, passages) for term in asked]
    had = sum(much for term, much in zip(asked, rarities, strict=True) if term in passage.terms)
    return had / (sum(rarities) or 1)


def reference(library: Library, terms: Sequence[int], vector: Vector | None) -> list[tuple[str, int, float]]:
    """What a search finds, in plain Python."""
    documents = [(path, library[path]) for path in sorted(library) if library[path]]
    passages = [passage for _, each in documents for passage in each]
    asked = sorted(set(terms))
    ways: list[Callable[[Passage], float]] = [
        lambda passage: words_score(passage, asked, passages),
        lambda passage: cosine(passage, vector),
    ]
    found = []
    for path, each in documents:
        fused, best = 0.0, [0.0] * len(each)
        for way in ways:
            everything = [max(map(way, others)) for _, others in documents]
            fused += reciprocal(max(map(way, each)), everything)
            best = [
                sofar + reciprocal(way(one), list(map(way, passages))) for sofar, one in zip(best, each, strict=True)
            ]
        n = best.index(max(best))
        near = cosine(each[n], vector)
        score = share(each[n], asked, passages) if near == -math.inf else min(max(near, 0), 1)
        if fused:
            found.append((fused, path, n, score))
    return [(path, n, score) for _, path, n, score in sorted(found, key=lambda one: -one[0])]


@settings(max_examples=100, deadline=None)
@given(
    library=LIBRARIES,
    terms=st.lists(st.integers(0, 6), max_size=4),
    vector=st.none() | st.tuples(*[st.integers(-2, 2)] * 3),
    limit=st.integers(1, 7),
)
def test_search_finds_what_the_reference_finds(
    library: Library, terms: list[int], vector: Vector | None, limit: int
) -> None:
    """Documents by both rankings, the best passage of each, and its score."""
    index = indexed(library)
    found = places(index.search(pack(terms), None if vector is None else row(vector), limit))

    expected = reference(library, terms, vector)[:limit]
    assert [each[:2] for each in found] == [each[:2] for each in expected]
    assert [each[2] for each in found] == pytest.approx([each[2] for each in expected])


def test_search_finds_the_same_whatever_the_order_of_segments_and_ids() -> None:
    """Only paths, terms and vectors decide."""
    chance = random.Random(5)
    library = _library(chance, documents=60, chunks=7, dimension=5)
    first = indexed(library)
    questions = [(pack(chance.choices(range(40), k=4)), row([chance.gauss() for _ in range(5)])) for _ in range(20)]
    expected = [places(first.search(*question, 20)) for question in questions]
    for _ in range(3):
        paths = list(library)
        chance.shuffle(paths)
        index = indexed({path: library[path] for path in paths})

        assert [places(index.search(*question, 20)) for question in questions] == expected


def _library(chance: random.Random, *, documents: int, chunks: int, dimension: int) -> Library:
    """Documents of random words; one passage of ten has no vector, and some have the same."""
    return {
        f"{chance.random()}.md": [
            Passage(
                [int(chance.expovariate(0.1)) for _ in range(chance.randrange(30))],
                tuple(chance.randint(-3, 3) for _ in range(dimension)) if chance.random() < 0.9 else None,
            )
            for _ in range(chance.randrange(1, chunks))
        ]
        for _ in range(documents)
    }


@pytest.mark.parametrize("dimension", [3, 384, 385, 1536])
def test_the_same_vector_has_the_same_score_wherever_it_stands(dimension: int) -> None:
    """A product by BLAS differs in the last bits, by place and by number of threads."""
    rows = np.random.default_rng(3).standard_normal((2, dimension)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    same, scores = Passage([], tuple(rows[0].tolist())), set()
    for documents in range(1, 20):
        index = indexed({f"{n:02}.md": [same] for n in range(documents)})
        found = places(index.search(b"", rows[1], documents))
        scores |= {score for _, _, score in found}

        assert [path for path, _, _ in found] == [f"{n:02}.md" for n in range(documents)]
    assert len(scores) == 1


def test_words_score_as_in_bm25s() -> None:
    """To the rounding of 32 bits, on this project's own documentation."""
    texts = [part for path in sorted(DOCS.rglob("*.md")) for part in re.split(r"\n(?=#)", path.read_text("utf-8"))]
    model = bm25s.BM25(method="lucene", k1=K1, b=B)
    model.index([terms_of(text) for text in texts], show_progress=False)
    chunks = [IndexedChunk(n, pack_terms(text), None) for n, text in enumerate(texts)]
    index = index_of([Segment.of([(Content(uuid4(), uuid4(), "docs.md", None, len(chunks), 1), chunks)])])
    for text in texts[::7]:
        question = sorted({term for term in terms_of(text)[:20] if term in model.vocab_dict})
        numbers = np.unique([zlib.crc32(term.encode()) for term in question]).astype(np.uint32)
        scores = index._by_words(index._postings.find(numbers))

        assert np.where(scores > 0, scores, 0) == pytest.approx(model.get_scores(question), rel=1e-5, abs=1e-6)


def test_vectors_may_be_in_the_database() -> None:
    """What that found stands for the vectors; what is not there any more is ignored."""
    library: Library = {
        "a.md": [Passage([1, 2], (1, 0)), Passage([2], (0, 1))],
        "b.md": [Passage([3], (0, -1))],
        "c.md": [Passage([4], None)],
    }
    whole = indexed(library)
    index = indexed({path: [Passage(terms, None) for terms, _ in each] for path, each in library.items()})
    ids = {one.file_path: one.document_id for one in map(unpack, index.segment.contents)}
    nearest = [
        Nearest(ids["a.md"], 1, 1.0),
        Nearest(uuid4(), 0, 0.9),
        Nearest(ids["c.md"], 1, 0.8),
        Nearest(ids["a.md"], 0, 0.0),
        Nearest(ids["b.md"], 0, -1.0),
    ]
    found = places(index.search(pack([2]), None, 9, nearest=nearest))

    assert found == places(whole.search(pack([2]), row([0, 1]), 9)) == [("a.md", 1, 1.0), ("b.md", 0, 0.0)]


def test_the_next_index_is_made_of_the_segment_of_the_last_one() -> None:
    """With one replaced and one gone."""
    library = _library(random.Random(6), documents=20, chunks=5, dimension=4)
    first = indexed(library)
    gone, _, _, replaced, *_ = sorted(library)
    passages = [Passage([7, 7, 8], (1, 2, 3, 0))]
    new = segment(replaced, passages)
    kept = {each for each in first.segment.contents if unpack(each).file_path not in {gone, replaced}}
    second = Index.of([first.segment, new], kept | set(new.contents))
    del library[gone]
    library[replaced] = passages
    afresh = indexed(library)

    question = pack([7, 8, 9]), row([1, 0, 0, 1])
    assert places(second.search(*question, 20)) == places(afresh.search(*question, 20))
    assert second.nbytes == afresh.nbytes
    assert len(second) == sum(map(len, library.values()))
    assert [unpack(each).file_path for each in second.segment.contents] == sorted(library)


def test_documents_may_be_parted() -> None:
    """Over segments; one that lacks chunks is left out, and so is one that is not wanted."""
    passages = [Passage([n], (n, 1)) for n in range(6)]
    chunks = [IndexedChunk(n, pack(terms), row(vector or ()).tobytes()) for n, (terms, vector) in enumerate(passages)]
    large, lacking, other, first = (
        Content(UUID(int=n), UUID(int=n + 10), path, None, count, 1)
        for n, (path, count) in enumerate({"m": 6, "lacking": 4, "other": 1, "a": 1}.items())
    )
    segments = [
        Segment.of([(lacking, chunks[:3]), (large, chunks[:2])]),
        Segment.of([(large, chunks[2:5])]),
        Segment.of([(large, chunks[5:]), (other, chunks[:1]), (first, chunks[:1])]),
    ]
    index = Index.of(segments, {packed(each) for each in (large, lacking, first)})

    assert list(map(unpack, index.segment.contents)) == [first, large]
    assert (index.segment.sizes, index.segment.term_sizes) == ([1, 6], [1, 6])
    assert index.segment.terms.tolist() == [0, 0, 1, 2, 3, 4, 5]
    assert index.segment.vectors is not None
    assert index.segment.vectors.tolist() == [[0, 1], *([n, 1] for n in range(6))]
    assert index.search(pack([4]), None, 5) == [Ranked(large, 4, 1.0)]


@given(
    path=st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1, max_size=20),
    title=st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    chunks=st.integers(0, 2**32 - 1),
    version=st.integers(0, 2**63 - 1),
)
def test_contents_are_packed(path: str, title: str | None, chunks: int, version: int) -> None:
    """Whole, also with a title that is empty or has a NUL; two that are different stay different."""
    content = Content(uuid4(), uuid4(), path, title, chunks, version)

    assert unpack(packed(content)) == content
    assert packed(content) == packed(unpack(packed(content)))
    assert packed(content._replace(title=f"{title}.")) != packed(content)


def test_an_index_counts_what_it_takes() -> None:
    """With its texts; and it is few objects for the garbage collector, however many documents it has."""
    segments = [segment(f"{n}.md", [Passage([n % 7], None)]) for n in range(5_000)]
    index_of(segments)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    index = index_of(segments)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    shared = sum(map(sys.getsizeof, index.segment.contents))

    assert 0.8 * taken < index.nbytes - shared < 1.2 * taken
    assert len(gc.get_objects()) - objects < 100


def test_large_arrays_are_mappings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python and numpy have a small part of the memory, also while the index is made: to free theirs takes the GIL."""
    monkeypatch.setattr(segments_module, "_NUMBERS", 1 << 12)
    generator = np.random.default_rng(1)
    content = Content(uuid4(), uuid4(), "large.md", None, 20_000, 1)
    tracemalloc.start()
    segments = []
    for first in range(0, content.chunks, 1_000):
        terms = generator.integers(0, 5_000, (1_000, 50), "<u4")
        chunks = [IndexedChunk(first + n, row.tobytes(), bytes(4 * 64)) for n, row in enumerate(terms)]
        segments.append(Segment.of([(content, chunks)]))
    del terms, chunks
    tracemalloc.reset_peak()
    index = index_of(segments)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < index.nbytes / 10
    assert len(index) == content.chunks


@given(library=LIBRARIES)
def test_numbers_are_handled_some_at_a_time(library: Library) -> None:
    """It makes no difference where they are parted."""
    whole = indexed(library)
    for size in (1, 2, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(segments_module, "_NUMBERS", size)
            patch.setattr(segments_module, "_GIVE_WAY_SECONDS", 0)
            parted = indexed(library)
        for term in range(6):
            assert places(parted.search(pack([term]), None, 10)) == places(whole.search(pack([term]), None, 10))
        assert places(parted.search(pack(range(6)), None, 10)) == places(whole.search(pack(range(6)), None, 10))


def test_documents_of_many_chunks_are_whole() -> None:
    """Chunks are copied some at a time."""
    passages = [Passage([n, n + 1], (n, 1) if n % 3 else None) for n in range(1_500)]
    index = indexed({"large.md": passages, "small.md": [Passage([7], (0, 0))]})
    for n in (0, 511, 512, 1_023, 1_024, 1_499):
        ((path, number, _),) = places(index.search(pack([n, n + 1]), None, 1))

        assert (path, number) == ("large.md", n)
    assert index.segment.vectors is not None
    assert index.segment.vectors[:1_500].tolist() == [list(one.vector or (0, 0)) for one in passages]
    assert index.segment.has_vector[:1_500].tolist() == [one.vector is not None for one in passages]


def test_an_index_may_be_empty() -> None:
    """So are documents without words."""
    assert index_of([]).search(pack([1]), row([1, 0]), 5) == []
    assert indexed({"a.md": []}).search(pack([1]), None, 5) == []
    assert indexed({"a.md": [Passage([], None)]}).search(pack([1]), None, 5) == []
    assert indexed({"a.md": [Passage([1], None)]}).search(b"", None, 5) == []
    assert index_of([]).nbytes < 1_000


def test_a_long_question_is_cut() -> None:
    """Its first terms count."""
    index = indexed({"a.md": [Passage([1], None)], "b.md": [Passage([2], None)]})
    found = index.search(pack([1] * MAX_QUERY_TERMS + [2]), None, 5)

    assert [path for path, _, _ in places(found)] == ["a.md"]


def test_vectors_of_two_sizes_are_refused() -> None:
    """They are not of one space."""
    with pytest.raises(ValueError, match="one size"):
        segment("a.md", [Passage([], (1, 2)), Passage([], (1, 2, 3))])


def test_found_documents_have_their_ids() -> None:
    """Of the document and of its content."""
    one = segment("a.md", [Passage([1], None)])
    (found,) = index_of([one]).search(pack([1]), None, 5)

    assert isinstance(found.content.document_id, UUID)
    assert found == Ranked(unpack(one.contents[0]), 0, 1.0)


def held(work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> float:
    """Seconds of CPU that `work` takes at most between two moments at which others may have the GIL."""
    moments = [time.thread_time()]
    clock = SimpleNamespace(sleep=lambda _: moments.append(time.thread_time()))  # other threads keep theirs
    monkeypatch.setattr(segments_module, "time", clock)
    work()
    return max(after - before for before, after in pairwise([*moments, time.thread_time()]))


def test_making_an_index_gives_way_to_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many documents, of a large one, and of long vectors: with blocks it holds the GIL for a fraction of what it
    takes without."""
    small = [segment(f"{number}.md", [Passage([number % 50], None)]) for number in range(8_000)]
    chunks = [IndexedChunk(n, pack([n % 50]), row((1, 0)).tobytes()) for n in range(150_000)]
    content = Content(uuid4(), uuid4(), "large.md", None, len(chunks), 1)
    wide = [segment(f"{number}.md", [Passage([], (number,) * 4_000)] * 25) for number in range(100)]
    works: dict[str, Callable[[], object]] = {
        "many": lambda: index_of(small),
        "large": lambda: index_of([Segment.of([(content, chunks)])]),
        "wide": lambda: index_of(wide),
    }
    with_blocks = {name: min(held(work, monkeypatch) for _ in range(3)) for name, work in works.items()}
    monkeypatch.setattr(segments_module, "_ROWS", 1_000_000)
    monkeypatch.setattr(segments_module, "_BYTES", 1 << 40)
    without = {name: min(held(work, monkeypatch) for _ in range(3)) for name, work in works.items()}
    for name in works:
        assert with_blocks[name] < without[name] / 2, (with_blocks, without)
