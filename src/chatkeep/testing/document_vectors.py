"""Vectors of chunks, their spaces, and the lease of who makes them."""

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from chatkeep.documents import Chunk, Content
from chatkeep.errors import InvalidInput, NotFound
from chatkeep.projects import Project
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.document_steps import (
    OTHER_SPACE,
    SPACE,
    a_project,
    all_contents,
    all_entries,
    put,
    said,
    searchable,
    vector,
)


class VectorContract(Contract):
    """Vectors of chunks, their spaces, and the lease of who makes them."""

    @pytest.fixture
    async def with_tea(self, store: Store, owner: str) -> UUID:
        """A project with a document of five chunks."""
        id_ = await a_project(store, owner)
        await put(store, owner, id_, "tea.md", "tea", 5)
        return id_

    async def _content(self, store: Store, owner: str, project: UUID) -> Content:
        """What the document has now."""
        (content,) = await all_contents(store, owner, project)
        return content

    async def _project(self, store: Store, owner: str, project: UUID) -> Project:
        """The project as it is now."""
        return await store.projects.get_project(owner, project)

    async def test_adding_vectors(self, store: Store, owner: str, with_tea: UUID) -> None:
        """Vectors are found with their chunks; what has none is told; the project searches the first space it gets."""
        content = await self._content(store, owner, with_tea)
        assert numbers(await store.documents.without_vectors(owner, with_tea, content, SPACE)) == [0, 1, 2, 3, 4]
        before = await self._project(store, owner, with_tea)
        added = await store.documents.add_vectors(owner, with_tea, content, SPACE, {3: vector(3), 1: vector(1)})
        assert added is True
        after = await self._project(store, owner, with_tea)
        assert (before.space, after.space) == (None, SPACE)
        assert after.version > before.version
        assert (after.documents, after.chunks) == (1, 5)
        moved = await self._content(store, owner, with_tea)
        assert moved == content._replace(version=after.version)
        left = await store.documents.without_vectors(owner, with_tea, content, SPACE)
        assert numbers(left) == [0, 2, 4]
        assert left[1] == Chunk(content.document_id, 2, "tea 2", "#tea-2", "tea", 200)
        assert numbers(await store.documents.without_vectors(owner, with_tea, content, SPACE, limit=2)) == [0, 2]
        assert await store.documents.count_vectors(owner, with_tea, SPACE) == {content.id: 2}
        entries = await all_entries(store, owner, with_tea, content, SPACE)
        assert [entry.vector for entry in entries] == [None, vector(1), None, vector(3), None]
        assert [entry.vector for entry in await all_entries(store, owner, with_tea, content)] == [None] * 5
        await store.documents.add_vectors(owner, with_tea, moved, SPACE, {n: vector(n) for n in (0, 2, 4)})
        assert await searchable(store, owner, with_tea) == {"tea.md": said("tea", 5, with_vectors=True)}
        assert await store.documents.without_vectors(owner, with_tea, content, SPACE) == []

    async def test_adding_vectors_again(self, store: Store, owner: str, with_tea: UUID) -> None:
        """A vector that is there stays, whatever is added; one of a chunk that is not there is not stored."""
        content = await self._content(store, owner, with_tea)
        await store.documents.add_vectors(owner, with_tea, content, SPACE, {0: vector(0), 1: vector(1)})
        again = {0: vector(9), 1: vector(1), 2: vector(2), 5: vector(5), 2**31 - 1: vector(6)}
        assert await store.documents.add_vectors(owner, with_tea, content, SPACE, again) is True
        assert await store.documents.add_vectors(owner, with_tea, content, SPACE, {}) is True
        entries = await all_entries(store, owner, with_tea, content, SPACE)
        assert [entry.vector for entry in entries] == [vector(0), vector(1), vector(2), None, None]
        assert await store.documents.count_vectors(owner, with_tea, SPACE) == {content.id: 3}
        assert (await store.erase_owner(owner)).vectors == 3

    async def test_vectors_at_once(self, store: Store, owner: str, with_tea: UUID) -> None:
        """Twenty calls at once that add the same vectors, and others, store each once."""
        content = await self._content(store, owner, with_tea)
        calls = [
            store.documents.add_vectors(
                owner, with_tea, content, (SPACE, OTHER_SPACE)[n % 2], {n % 5: vector(n % 5), 4: vector(4)}
            )
            for n in range(20)
        ]
        assert await asyncio.gather(*calls) == [True] * 20
        for space in (SPACE, OTHER_SPACE):
            entries = await all_entries(store, owner, with_tea, content, space)
            assert [entry.vector for entry in entries] == [vector(n) for n in range(5)]
        assert (await self._project(store, owner, with_tea)).space in (SPACE, OTHER_SPACE)
        assert (await store.erase_owner(owner)).vectors == 10

    async def test_vectors_of_a_content_that_was_replaced(self, store: Store, owner: str, with_tea: UUID) -> None:
        """Vectors of a text that the document does not have any more are not stored."""
        old = await self._content(store, owner, with_tea)
        await put(store, owner, with_tea, "tea.md", "mint", 3)
        before = await self._project(store, owner, with_tea)
        assert await store.documents.add_vectors(owner, with_tea, old, SPACE, {0: vector(0)}) is False
        assert await store.documents.without_vectors(owner, with_tea, old, SPACE) == []
        unknown = old._replace(document_id=uuid4())
        assert await store.documents.add_vectors(owner, with_tea, unknown, SPACE, {0: vector(0)}) is False
        assert await self._project(store, owner, with_tea) == before
        assert await store.documents.count_vectors(owner, with_tea, SPACE) == {}

    async def test_documents_with_vectors(self, store: Store, owner: str, with_tea: UUID) -> None:
        """A document may come with vectors; of a space that is not searched they are kept and not found."""
        await put(store, owner, with_tea, "a.md", "sage", 200, space=SPACE)
        assert (await self._project(store, owner, with_tea)).space == SPACE
        await put(store, owner, with_tea, "b.md", "mint", 3, space=OTHER_SPACE)
        project = await self._project(store, owner, with_tea)
        assert (project.space, project.documents, project.chunks) == (SPACE, 3, 208)
        assert await searchable(store, owner, with_tea) == {
            "tea.md": said("tea", 5),
            "a.md": said("sage", 200, with_vectors=True),
            "b.md": said("mint", 3),
        }
        counts = [await store.documents.count_vectors(owner, with_tea, space) for space in (SPACE, OTHER_SPACE, "x/2")]
        assert [list(each.values()) for each in counts] == [[200], [3], []]
        await put(store, owner, with_tea, "a.md", "sage 2", 2, space=SPACE)
        assert list((await store.documents.count_vectors(owner, with_tea, SPACE)).values()) == [2]

    async def test_a_space_that_is_not_searched(self, store: Store, owner: str, with_tea: UUID) -> None:
        """Vectors of another space move no version: nothing else is found."""
        content = await self._content(store, owner, with_tea)
        await store.documents.add_vectors(owner, with_tea, content, SPACE, {0: vector(0)})
        before = await self._project(store, owner, with_tea), await all_contents(store, owner, with_tea)
        await store.documents.add_vectors(owner, with_tea, content, OTHER_SPACE, {n: vector(n) for n in range(5)})
        assert (await self._project(store, owner, with_tea), await all_contents(store, owner, with_tea)) == before
        assert await store.documents.count_vectors(owner, with_tea, OTHER_SPACE) == {content.id: 5}

    async def test_changing_the_space(self, store: Store, owner: str, with_tea: UUID) -> None:
        """The project searches the other space at once, of which it has all vectors; those of the first are removed."""
        await put(store, owner, with_tea, "a.md", "sage", 700, space=SPACE)
        for content in await all_contents(store, owner, with_tea):
            vectors = {n: vector(n) for n in range(content.chunks)}
            await store.documents.add_vectors(owner, with_tea, content, OTHER_SPACE, vectors)
        await put(store, owner, with_tea, "b.md", "mint", 2, space="third/2")
        before = await self._project(store, owner, with_tea)
        changed = await store.documents.use_space(owner, with_tea, OTHER_SPACE)
        assert changed == await self._project(store, owner, with_tea)
        kept = {"space", "version", "updated_at"}
        assert changed.model_dump(exclude=kept) == before.model_dump(exclude=kept)
        assert changed.space == OTHER_SPACE
        assert changed.version > before.version
        assert await searchable(store, owner, with_tea) == {
            "tea.md": said("tea", 5, with_vectors=True),
            "a.md": said("sage", 700, with_vectors=True),
            "b.md": said("mint", 2),
        }
        for space in (SPACE, "third/2"):
            assert await store.documents.count_vectors(owner, with_tea, space) == {}
        assert await store.documents.use_space(owner, with_tea, OTHER_SPACE) == changed
        assert (await store.erase_owner(owner)).vectors == 705

    async def test_using_the_space_that_is_used(self, store: Store, owner: str, with_tea: UUID) -> None:
        """It moves nothing, and removes the vectors of every other space, also of one project only."""
        other = await a_project(store, owner)
        for project in (with_tea, other):
            await put(store, owner, project, "a.md", "sage", 3, space=SPACE)
            await put(store, owner, project, "b.md", "mint", 3, space=OTHER_SPACE)
        before = await self._project(store, owner, with_tea)
        assert await store.documents.use_space(owner, with_tea, SPACE) == before
        counts = {p: await store.documents.count_vectors(owner, p, OTHER_SPACE) for p in (with_tea, other)}
        assert [len(each) for each in counts.values()] == [0, 1]
        assert (await store.erase_owner(owner)).vectors == 9

    async def test_a_space_before_any_vector(self, store: Store, owner: str, with_tea: UUID) -> None:
        """A project may use a space of which it has no vectors yet."""
        before = await self._project(store, owner, with_tea)
        changed = await store.documents.use_space(owner, with_tea, SPACE)
        assert (changed.space, changed.version > before.version) == (SPACE, True)
        content = await self._content(store, owner, with_tea)
        await store.documents.add_vectors(owner, with_tea, content, OTHER_SPACE, {0: vector(0)})
        assert (await self._project(store, owner, with_tea)).space == SPACE

    @pytest.mark.parametrize("space", ["", "x" * 201, "a\x00b", "a\nb", "\ud800"], ids=ascii)
    async def test_spaces_that_are_refused(self, store: Store, owner: str, with_tea: UUID, space: str) -> None:
        """A space has a name of 1 to 200 characters, without control characters, in every method."""
        documents, content = store.documents, await self._content(store, owner, with_tea)
        for call in (
            documents.index_entries(owner, with_tea, [], space=space),
            documents.nearest_chunks(owner, with_tea, space, vector(1)),
            documents.count_vectors(owner, with_tea, space),
            documents.without_vectors(owner, with_tea, content, space),
            documents.add_vectors(owner, with_tea, content, space, {0: vector(0)}),
            documents.use_space(owner, with_tea, space),
        ):
            with pytest.raises(InvalidInput):
                await call

    async def test_unusual_spaces(self, store: Store, owner: str, with_tea: UUID) -> None:
        """Names of spaces are compared exactly."""
        content = await self._content(store, owner, with_tea)
        spaces = ["Small/2", "small/2 ", "ﬆ🌱/2", "e\u0301", "é", "x" * 200, "'\"%_;--"]
        for n, space in enumerate(spaces):
            await store.documents.add_vectors(owner, with_tea, content, space, {0: vector(n)})
        for n, space in enumerate(spaces):
            (first, *_) = await all_entries(store, owner, with_tea, content, space)
            assert first.vector == vector(n)
        assert (await self._project(store, owner, with_tea)).space == spaces[0]
        assert (await store.documents.use_space(owner, with_tea, spaces[3])).space == spaces[3]
        assert await store.documents.count_vectors(owner, with_tea, spaces[4]) == {}
        assert (await store.erase_owner(owner)).vectors == 1

    @pytest.mark.parametrize(
        "vectors",
        [
            {0: b""},
            {0: b"123"},
            {0: vector(0), 1: b"1234"},
            {-1: vector(0)},
            {2**31: vector(0)},
            {n: vector(0) for n in range(1_001)},
        ],
        ids=lambda each: f"{len(each)} from {min(each)}",
    )
    async def test_vectors_that_are_refused(
        self, store: Store, owner: str, with_tea: UUID, vectors: dict[int, bytes]
    ) -> None:
        """Vectors that are none, of two dimensions, of numbers that no chunk has, or too many are refused."""
        content, before = await self._content(store, owner, with_tea), await self._project(store, owner, with_tea)
        with pytest.raises(InvalidInput):
            await store.documents.add_vectors(owner, with_tea, content, SPACE, vectors)
        assert await self._project(store, owner, with_tea) == before
        for bad in (0, -1, 1_001):
            with pytest.raises(InvalidInput):
                await store.documents.without_vectors(owner, with_tea, content, SPACE, limit=bad)

    # --- the lease ----------------------------------------------------------------------------------------

    async def test_lease_of_a_project(self, store: Store, owner: str, with_tea: UUID) -> None:
        """One worker has the lease until it is given back or has expired; each project has its own."""
        one, other = uuid4(), uuid4()
        claim, second = store.documents.claim_embedding, await a_project(store, owner)
        before = await self._project(store, owner, with_tea)
        for _ in range(2):
            assert await claim(owner, with_tea, one)
            assert not await claim(owner, with_tea, other)
        assert not await claim(owner, with_tea, other, lease=timedelta(0))
        assert await claim(owner, second, other)
        assert await claim(owner, with_tea, one, lease=timedelta(0))
        assert await claim(owner, with_tea, other)
        assert not await claim(owner, with_tea, one)
        assert await claim(owner, with_tea, other, lease=timedelta(0))
        assert await claim(owner, with_tea, one, lease=timedelta(milliseconds=20))
        await asyncio.sleep(0.05)
        assert await claim(owner, with_tea, other, lease=timedelta(milliseconds=20))
        assert await claim(owner, with_tea, other, lease=timedelta(minutes=5)), "a lease can be extended"
        await asyncio.sleep(0.05)
        assert not await claim(owner, with_tea, one)
        assert await self._project(store, owner, with_tea) == before

    async def test_lease_at_once(self, store: Store, owner: str, with_tea: UUID) -> None:
        """Of twenty workers at once one gets the lease."""
        workers = [uuid4() for _ in range(20)]
        got = await asyncio.gather(*(store.documents.claim_embedding(owner, with_tea, each) for each in workers))
        assert sorted(got) == [False] * 19 + [True]
        assert await store.documents.claim_embedding(owner, with_tea, workers[got.index(True)])

    async def test_lease_ends_with_its_project(self, store: Store, owner: str, with_tea: UUID) -> None:
        """A deleted project has no lease, and one with its id none of before."""
        assert await store.documents.claim_embedding(owner, with_tea, uuid4())
        await store.projects.delete_project(owner, with_tea)
        with pytest.raises(NotFound):
            await store.documents.claim_embedding(owner, with_tea, uuid4())
        await a_project(store, owner, id=with_tea)
        assert await store.documents.claim_embedding(owner, with_tea, uuid4())


def numbers(chunks: list[Chunk]) -> list[int]:
    """The numbers of chunks."""
    return [chunk.n for chunk in chunks]
