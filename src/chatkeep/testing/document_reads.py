"""Reading documents, page by page and passage by passage."""

from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.documents import Chunk, ChunkRange, Content, IndexedChunk, NewChunk, document_id
from chatkeep.errors import InvalidInput, NotFound
from chatkeep.store import Store
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.document_steps import (
    SPACE,
    a_document,
    a_project,
    all_chunks,
    all_contents,
    all_documents,
    put,
    stored_passages,
    terms_of,
    vector,
)
from chatkeep.testing.examples import forged, refused_or_paged
from chatkeep.testing.messages import someone


class DocumentReadContract(Contract):
    """Reading documents, page by page and passage by passage."""

    @pytest.fixture
    async def twelve(self, store: Store, owner: str) -> UUID:
        """A project with twelve documents."""
        id_ = await a_project(store, owner)
        for number in range(12):
            await put(store, owner, id_, f"{(number * 5) % 12}.md", f"tea {number}", number % 3 + 1)
        return id_

    async def test_documents_by_path(self, store: Store, owner: str, twelve: UUID) -> None:
        """Documents are listed by their paths: page by page, by offset, counted."""
        everything = await all_documents(store, owner, twelve)
        assert [each.file_path for each in everything] == sorted(f"{number}.md" for number in range(12))
        for limit in (1, 5, 12):
            assert await all_documents(store, owner, twelve, limit) == everything
        page = await store.documents.list_documents(owner, twelve)
        assert (page.items, page.total) == (everything[:10], None)
        page = await store.documents.list_documents(owner, twelve, limit=3, offset=4, total=True)
        assert (page.items, page.total) == (everything[4:7], 12)
        page = await store.documents.list_documents(owner, twelve, offset=12, total=True)
        assert (page.items, page.next, page.total) == ([], None, 12)

    async def test_order_of_paths(self, store: Store, owner: str) -> None:
        """Paths are in the order of their bytes in UTF-8, whatever the database's language."""
        id_ = await a_project(store, owner)
        paths = [
            "a",
            "B",
            "é",
            "z",
            "Z",
            "a/b",
            "a b",
            "a.b",
            "a-b",
            "_",
            "🌱",
            "\uffee",
            "ß",
            "ss",
            "10",
            "9",
            "ａ",
            "日本",
        ]
        for path in paths:
            await put(store, owner, id_, path, "tea")
        ordered = sorted(paths, key=str.encode)
        for limit in (1, 4, 100):
            assert [each.file_path for each in await all_documents(store, owner, id_, limit)] == ordered

    async def test_bounds_of_a_list_of_documents(self, store: Store, owner: str, twelve: UUID) -> None:
        """Limits, offsets and cursors out of bounds are refused, and cursors of another owner, project or list."""
        for _ in range(2):
            other = await a_project(store, owner)
        cursor = (await store.documents.list_documents(owner, twelve, limit=1)).next
        projects = (await store.projects.list_projects(owner, limit=1)).next
        assert cursor is not None
        assert projects is not None
        wrong: list[dict[str, Any]] = [
            {"limit": 0},
            {"limit": 1_001},
            {"offset": -1},
            {"offset": 10_001},
            {"cursor": "tea"},
            {"cursor": projects},
            {"cursor": cursor, "offset": 1},
        ]
        for arguments in wrong:
            with pytest.raises(InvalidInput):
                await store.documents.list_documents(owner, twelve, **arguments)
        with pytest.raises(InvalidInput):
            await store.documents.list_documents(owner, other, cursor=cursor)
        with pytest.raises(InvalidInput):
            await store.documents.list_documents(someone(), twelve, cursor=cursor)
        for bad in forged(cursor):
            await refused_or_paged(store.documents.list_documents(owner, twelve, limit=1, cursor=bad), 1)

    async def test_paging_while_documents_come_and_go(self, store: Store, owner: str, twelve: UUID) -> None:
        """A list by cursor has every document once that was there all the time, and nothing twice."""
        seen: list[str] = []
        page = await store.documents.list_documents(owner, twelve, limit=2)
        while True:
            seen += [each.file_path for each in page.items]
            if page.next is None:
                break
            await store.documents.delete_document(owner, twelve, page.items[-1].id)
            await put(store, owner, twelve, f"0{len(seen)}.md", "mint")
            page = await store.documents.list_documents(owner, twelve, limit=2, cursor=page.next)
        assert [path for path in seen if not path.startswith("0") or path == "0.md"] == sorted(
            f"{number}.md" for number in range(12)
        )
        assert len(set(seen)) == len(seen)

    async def test_chunks_of_a_document(self, store: Store, owner: str, twelve: UUID) -> None:
        """Chunks come above a number, in order; after the last there are none."""
        id_ = (await put(store, owner, twelve, "long.md", "long", 260)).document.id
        expected = stored_passages(id_, "long", 260)
        for limit in (1, 7, 50, 1_000):
            assert await all_chunks(store, owner, twelve, id_, limit) == expected
        read = store.documents.document_chunks
        assert await read(owner, twelve, id_) == expected[:50]
        for after, limit, first in ((-9, 2, 0), (0, 2, 1), (257, 5, 258), (259, 5, 260), (2**70, 5, 260)):
            assert await read(owner, twelve, id_, after=after, limit=limit) == expected[first : first + limit]
        for bad in (0, -1, 1_001):
            with pytest.raises(InvalidInput):
                await read(owner, twelve, id_, limit=bad)

    async def test_chunks_of_large_documents(self, open_store_with: Opener, owner: str) -> None:
        """Fewer chunks come if they are larger together than a page may be; one alone may be larger."""
        async with open_store_with(max_page_bytes=5_000) as store:
            id_ = await a_project(store, owner)
            large = [NewChunk(str(n) * 1_600, None, "", n, b"") for n in range(10)] + [
                NewChunk("é" * 9_000, None, "", 0, b"")
            ]
            document = (await store.documents.store_document(owner, id_, a_document("a", "a"), large)).document.id
            part = await store.documents.document_chunks(owner, id_, document)
            assert [chunk.n for chunk in part] == [0, 1, 2]
            expected = [Chunk(document, n, *chunk[:4]) for n, chunk in enumerate(large)]
            assert await all_chunks(store, owner, id_, document) == expected
            (content,) = await all_contents(store, owner, id_)
            ranges = [ChunkRange(document, content.id, 10, 10), ChunkRange(document, content.id, 2, 6)]
            assert await store.documents.chunks(owner, id_, ranges) == [expected[10]]
            assert await store.documents.chunks(owner, id_, ranges[1:]) == expected[2:5]

    # --- for a search -------------------------------------------------------------------------------------

    async def test_contents_by_id(self, store: Store, owner: str, twelve: UUID) -> None:
        """Contents are in the order of the documents' ids, as many as asked for above one."""
        everything = await all_contents(store, owner, twelve)
        assert [each.document_id for each in everything] == sorted(document_id(twelve, f"{n}.md") for n in range(12))
        for limit in (1, 5, 12):
            assert await all_contents(store, owner, twelve, limit) == everything
        documents = {each.id: each for each in await all_documents(store, owner, twelve)}
        for each in everything:
            document = documents[each.document_id]
            assert (each.file_path, each.title, each.chunks) == (document.file_path, document.title, document.chunks)
        versions = [each.version for each in everything]
        assert len(set(versions)) == 12
        assert max(versions) == (await store.projects.get_project(owner, twelve)).version
        for bad in (0, -1, 10_001):
            with pytest.raises(InvalidInput):
                await store.documents.contents(owner, twelve, limit=bad)

    async def test_ranges_of_chunks(self, store: Store, owner: str, twelve: UUID) -> None:
        """Ranges come in the order in which they are asked for, also twice; what is not there is left out."""
        for path, count in (("a", 20), ("b", 5)):
            await put(store, owner, twelve, path, path, count, space=SPACE)
        contents = {each.file_path: each for each in await all_contents(store, owner, twelve)}
        a, b = contents["a"], contents["b"]
        old = Content(a.document_id, uuid4(), "a", "a", 20, 1)
        ranges = [
            some(b, 3, 9),
            some(a, 18, 19),
            some(old, 0, 19),
            some(a, 4, 4),
            some(a, 5, 4),
            some(a, 25, 30),
            ChunkRange(uuid4(), a.id, 0, 3),
            ChunkRange(b.document_id, a.id, 0, 3),
            some(b, 4, 4),
            some(a, 3, 5),
        ]
        numbers = [("b", [3, 4]), ("a", [18, 19]), ("", []), ("a", [4]), *[("", [])] * 4, ("b", [4]), ("a", [3, 4, 5])]
        for space in (None, SPACE, "other/2"):
            assert await store.documents.index_entries(owner, twelve, ranges, space=space) == [
                [IndexedChunk(n, terms_of(text, n), vector(n) if space == SPACE else None) for n in found]
                for text, found in numbers
            ]
        chunks = {text: stored_passages(contents[text].document_id, text, 20) for text in ("a", "b")}
        expected = [chunks[text][n] for text, found in numbers for n in found]
        assert await store.documents.chunks(owner, twelve, ranges) == expected
        assert await store.documents.index_entries(owner, twelve, []) == []
        assert await store.documents.chunks(owner, twelve, []) == []

    async def test_most_chunks_at_a_time(self, store: Store, owner: str, twelve: UUID) -> None:
        """More chunks than the port allows at a time are refused, and numbers that no chunk has."""
        (content,) = await store.documents.contents(owner, twelve, limit=1)
        for call, most in ((store.documents.index_entries, 10_000), (store.documents.chunks, 1_000)):
            await call(owner, twelve, [some(content, 0, most - 1)])
            for bad in (
                [some(content, 0, most)],
                [some(content, 0, most // 2 - 1)] * 3,
                [some(content, most, 0), some(content, 0, most)],
                [some(content, -1, 3)],
                [some(content, 2**31, 2**31)],
                [some(content, 3, 2**63)],
            ):
                with pytest.raises(InvalidInput):
                    await call(owner, twelve, bad)

    async def test_nearest_chunks(self, store: Store, owner: str) -> None:
        """A database that compares vectors finds the nearest first, of what documents have now; others say None."""
        id_ = await a_project(store, owner)
        await put(store, owner, id_, "a", "old", 9, space=SPACE)
        await put(store, owner, id_, "a", "new", 5, space=SPACE)
        await put(store, owner, id_, "b", "b", 3)
        found = await store.documents.nearest_chunks(owner, id_, SPACE, vector(3), limit=4)
        assert await store.documents.nearest_chunks(owner, id_, "other/2", vector(3)) in ([], None)
        if found is not None:
            assert [(each.document_id, each.n) for each in found] == [(document_id(id_, "a"), n) for n in (3, 4, 2, 1)]
            assert [each.cosine for each in found] == pytest.approx([1, 0.997, 0.990, 0.894], abs=0.001)
        for arguments in ((b"", 1), (b"123", 1), (vector(1), 0), (vector(1), 10_001)):
            with pytest.raises(InvalidInput):
                await store.documents.nearest_chunks(owner, id_, SPACE, arguments[0], limit=arguments[1])

    async def test_documents_of_another_project(self, store: Store, owner: str, twelve: UUID) -> None:
        """A document is found in its own project only."""
        other = await a_project(store, owner)
        (content,) = await store.documents.contents(owner, twelve, limit=1)
        for call in (store.documents.get_document, store.documents.document_chunks):
            with pytest.raises(NotFound):
                await call(owner, other, content.document_id)
        assert await store.documents.delete_document(owner, other, content.document_id) is False
        assert await store.documents.add_vectors(owner, other, content, SPACE, {0: vector(0)}) is False
        assert await store.documents.index_entries(owner, other, [some(content, 0, 9)]) == [[]]
        assert await store.documents.chunks(owner, other, [some(content, 0, 9)]) == []
        assert await store.documents.without_vectors(owner, other, content, SPACE) == []
        assert await store.documents.contents(owner, other) == []
        assert len(await all_documents(store, owner, twelve)) == 12


def some(content: Content, first: int, last: int) -> ChunkRange:
    """Some chunks of a content."""
    return ChunkRange(content.document_id, content.id, first, last)
