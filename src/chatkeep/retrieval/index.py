"""The search index of a project, in memory: documents ranked by words and by vectors, the same in every process.

`Index.of` makes one of segments of documents; it is not changed afterwards. A search ranks documents twice, by
their best passage by words (BM25) and by vector (cosine), and adds the reciprocals of both ranks. Nothing depends on
what the database or the machine is: documents are in the order of their paths, equal scores share a rank, and each
cosine is summed in an order of its own. A product by BLAS is not used: there the last bits of a row depend on where in
the matrix it stands and on the number of threads.

Whatever takes time is one call of numpy on a large array, which releases the GIL, or a block that takes a millisecond
or two, after which others have the GIL.
"""

import sys
from collections.abc import Collection, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from chatkeep.documents import Content, Nearest
from chatkeep.retrieval.segments import (
    DOCUMENT,
    Flags,
    Floats,
    Merge,
    Numbers,
    Packed,
    Places,
    Segment,
    blocks,
    numbers,
    slices,
    unpack,
    zeros,
)

K1, B = 1.5, 0.75
"""How soon more of the same word tells nothing more, and how much longer passages count less (BM25)."""

RANK_OFFSET = 60
"""What is added to each rank before its reciprocal is taken: with more of it, both rankings have to agree."""

MAX_QUERY_TERMS = 256
"""Most terms of a question; those that follow are ignored."""


class Ranked(NamedTuple):
    """A document that a search found."""

    content: Content
    n: int
    """The number of its best passage."""
    score: float
    """How similar that is to the question, in 0…1: its cosine, or without one the share of the question's words in it,
    the rare ones counting more."""


class _Postings(NamedTuple):
    """Which chunks have which term."""

    terms: Numbers
    """All terms, in order."""
    starts: Places
    """Where the chunks of each begin, and where the last ones end."""
    chunks: Numbers
    weights: Floats
    """What the term adds to the score of the chunk."""

    def find(self, terms: Numbers) -> list[tuple[int, int]]:
        """Return where the chunks of each term begin and end; the same place for one that no chunk has."""
        places = np.searchsorted(self.terms, terms)
        known = places < len(self.terms)
        known[known] = self.terms[places[known]] == terms[known]
        first = np.where(known, self.starts[np.where(known, places, 0)], 0)
        last = np.where(known, self.starts[np.where(known, places + 1, 0)], 0)
        return list(zip(first.tolist(), last.tolist(), strict=True))


class Index:
    """The chunks of a project, ready to be searched."""

    def __init__(self, segment: Segment, postings: _Postings) -> None:
        """Use `Index.of`."""
        self.segment = segment
        """What the index was made of, in order: make the next one of it."""
        self._postings = postings
        self._starts = np.concatenate(([0], np.cumsum(segment.sizes, dtype=np.intp)))
        self._places = {content[DOCUMENT]: place for place, content in enumerate(segment.contents)}
        places = sum(map(sys.getsizeof, (self._places, *self._places, *self._places.values())))
        self.nbytes = segment.nbytes + sum(array.nbytes for array in postings) + places
        """How much memory it takes."""

    @classmethod
    def of(cls, segments: Sequence[Segment], wanted: Collection[Packed]) -> Self:
        """Return the index of the wanted contents, without those that lack chunks."""
        merge = Merge(segments, wanted)
        terms, lengths = merge.terms(), merge.lengths()
        postings = _postings(terms, lengths)  # before the vectors: while they are made, they take more memory
        return cls(merge.segment(terms, lengths), postings)

    def __len__(self) -> int:
        """Return the number of chunks."""
        return len(self.segment.has_vector)

    def search(
        self, terms: bytes, vector: Floats | None, limit: int, *, nearest: Sequence[Nearest] | None = None
    ) -> list[Ranked]:
        """Return the documents that answer a question best, by its terms and its vector, and the best passage of each.

        `nearest` is what a database found by the vector, for an index without vectors.
        """
        if not self.segment.contents:
            return []
        asked = np.sort(numbers(terms)[:MAX_QUERY_TERMS])
        asked = asked[_is_first(asked)]  # `unique` imports numpy.ma, which holds the GIL for 30 ms
        places = self._postings.find(asked)
        cosines = self._cosines(vector) if nearest is None else self._cosines_of(nearest)
        rankings = [self._by_words(places)] + ([] if cosines is None else [cosines])
        documents = self._best_documents(rankings, limit)
        chunks = self._best_chunks(rankings, documents)
        scores = self._shares(places, chunks)
        if cosines is not None:
            near = cosines[chunks]
            scores = np.where(near > _NONE, np.clip(near, 0, 1), scores)
        return [
            Ranked(unpack(self.segment.contents[document]), int(chunk - self._starts[document]), float(score))
            for document, chunk, score in zip(documents, chunks, scores, strict=True)
        ]

    def _by_words(self, places: list[tuple[int, int]]) -> Floats:
        """Return the score of each chunk by words."""
        scores = np.zeros(len(self), np.float32)
        for first, last in places:
            scores[self._postings.chunks[first:last]] += self._postings.weights[first:last]
        scores[scores == 0] = _NONE
        return scores

    def _cosines(self, vector: Floats | None) -> Floats | None:
        """Return the cosine of each chunk to a vector."""
        if vector is None or self.segment.vectors is None:
            return None
        # Not `@`: see above. All rows have the length 1, and so has the vector.
        cosines: Floats = np.einsum("ij,j->i", self.segment.vectors, vector)
        cosines[~self.segment.has_vector] = _NONE
        return cosines

    def _cosines_of(self, nearest: Sequence[Nearest]) -> Floats:
        """Return the cosine of each chunk that a database found."""
        cosines = np.full(len(self), _NONE, np.float32)
        for document_id, n, cosine in nearest:
            place = self._places.get(document_id.bytes)
            if place is not None and n < self.segment.sizes[place]:
                cosines[self._starts[place] + n] = cosine
        return cosines

    def _best_documents(self, rankings: Sequence[Floats], limit: int) -> Places:
        """Return the places of the documents that stand first in the rankings together."""
        fused = np.zeros(len(self.segment.contents))
        for scores in rankings:
            best = np.maximum.reduceat(scores, self._starts[:-1])
            fused += _reciprocals(best, np.sort(best))
        found = np.argsort(-fused, kind="stable")[:limit]
        return found[fused[found] > 0]

    def _best_chunks(self, rankings: Sequence[Floats], documents: Places) -> Places:
        """Return the place of the chunk of each document that stands first in the rankings together."""
        ordered = [np.sort(scores) for scores in rankings]
        best = np.zeros(len(documents), np.intp)
        for number, document in enumerate(documents):
            first, last = self._starts[document : document + 2]
            fused = sum(
                _reciprocals(scores[first:last], every) for scores, every in zip(rankings, ordered, strict=True)
            )
            best[number] = first + np.argmax(fused)
        return best

    def _shares(self, places: list[tuple[int, int]], chunks: Places) -> NDArray[np.float64]:
        """Return how much of the question's words some chunks have, the rare ones counting more."""
        weights = _idf(np.array([last - first for first, last in places]), len(self))
        found = np.zeros(len(chunks))
        for (first, last), weight in zip(places, weights, strict=True):
            having = self._postings.chunks[first:last]
            where = np.searchsorted(having, chunks)
            found += weight * (np.append(having, len(self))[where] == chunks)
        return found / (weights.sum() or 1)


_CHUNK = np.uint64(0xFFFFFFFF)
"""Where a pair of a term and a chunk has the chunk."""

_NONE = np.float32(-np.inf)
"""The score of what a search does not find."""


def _reciprocals(scores: Floats, ordered: Floats) -> NDArray[np.float64]:
    """Return the reciprocal rank of each score among all, which are in ascending order; equal ones share a rank."""
    above = len(ordered) - np.searchsorted(ordered, scores, side="right")
    return np.where(scores > _NONE, 1 / (RANK_OFFSET + 1 + above), 0)


def _postings(terms: Numbers, lengths: Places) -> _Postings:
    """Return which chunks have which terms, weighted by BM25 (Lucene's variant)."""
    pairs = _sorted_pairs(terms, lengths)
    chunks, weights = _weighted(pairs, _firsts(pairs), _damping(len(terms), lengths))
    of_pairs = pairs[: len(chunks)]
    np.right_shift(of_pairs, np.uint64(32), out=of_pairs)
    starts = _firsts(of_pairs)
    _multiply(weights, of_pairs, starts, len(lengths))
    return _Postings(_picked(of_pairs, starts), starts, chunks, weights)


def _sorted_pairs(terms: Numbers, lengths: Places) -> NDArray[np.uint64]:
    """Return each term with the number of its chunk below it, in order."""
    pairs = zeros(len(terms), np.uint64)
    start = 0
    for places in blocks(range(len(lengths))):  # `repeat` does not release the GIL
        some = lengths[places[0] : places[-1] + 1]
        end = start + int(some.sum())
        np.left_shift(terms[start:end], np.uint64(32), out=pairs[start:end], dtype=np.uint64)
        pairs[start:end] |= np.repeat(np.array(places, np.uint64), some)
        start = end
    pairs.sort()
    return pairs


def _damping(terms: int, lengths: Places) -> Floats:
    """Return how much the count of a term is damped in each chunk: more in one that is longer than others."""
    relative = lengths / (terms / max(len(lengths), 1) or 1)
    return (K1 * (1 - B + B * relative)).astype(np.float32)


def _weighted(pairs: NDArray[np.uint64], firsts: Places, damping: Floats) -> tuple[Numbers, Floats]:
    """Return the chunk of each different pair, and the damped count of its term; leave only these pairs, in front."""
    chunks, weights = zeros(len(firsts) - 1, np.uint32), zeros(len(firsts) - 1, np.float32)
    for some in slices(len(chunks)):
        different = pairs[firsts[some]]
        pairs[some], chunks[some] = different, different & _CHUNK
        counts = np.diff(firsts[some.start : some.stop + 1]).astype(np.float32)
        weights[some] = counts / (counts + damping[chunks[some]])
    return chunks, weights


def _multiply(weights: Floats, terms: NDArray[np.uint64], starts: Places, chunks: int) -> None:
    """Multiply the weights with how much their terms tell."""
    idf = zeros(len(starts) - 1, np.float32)
    for some in slices(len(idf)):
        idf[some] = _idf(np.diff(starts[some.start : some.stop + 1]), chunks)
    for some in slices(len(weights)):
        is_first = _is_first(terms[some])
        is_first[0] = False  # it has the term that this place has among all
        weights[some] *= idf[np.searchsorted(starts, some.start, side="right") - 1 + np.cumsum(is_first)]


def _picked(ordered: NDArray[np.uint64], starts: Places) -> Numbers:
    """Return the numbers of some in order that stand at the starts."""
    picked = zeros(len(starts) - 1, np.uint32)
    for some in slices(len(picked)):
        picked[some] = ordered[starts[some]]
    return picked


def _firsts(ordered: NDArray[np.uint64]) -> Places:
    """Return the places of the numbers that differ from the one before them, and the end."""
    firsts = zeros(1 + sum(int(np.count_nonzero(_are_first(ordered, some))) for some in slices(len(ordered))), np.intp)
    end = 0
    for some in slices(len(ordered)):
        places = np.flatnonzero(_are_first(ordered, some))
        start, end = end, end + len(places)
        np.add(places, some.start, out=firsts[start:end])
    firsts[end] = len(ordered)
    return firsts


def _are_first(ordered: NDArray[np.uint64], some: slice) -> Flags:
    """Return which of some numbers differ from the one before them."""
    flags = _is_first(ordered[some])
    flags[0] = some.start == 0 or ordered[some.start] != ordered[some.start - 1]
    return flags


def _is_first(ordered: NDArray[np.unsignedinteger]) -> Flags:
    """Return which numbers differ from the one before them; the first one does."""
    flags = np.ones(len(ordered), np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=flags[1:])
    return flags


def _idf(having: Places, chunks: int) -> NDArray[np.float64]:
    """Return how much a term tells that so many chunks have."""
    return np.log1p((chunks - having + 0.5) / (having + 0.5))
