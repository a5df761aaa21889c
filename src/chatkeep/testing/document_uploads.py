"""Storing, replacing and deleting documents."""

import asyncio
import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.documents import (
    MAX_CHUNK_CHARS,
    MAX_CHUNK_TERMS,
    MAX_DIMENSION,
    Chunk,
    Document,
    IndexedChunk,
    NewChunk,
    ProjectLimits,
    StoredDocument,
    document_id,
)
from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, ProjectFull
from chatkeep.projects import ProjectChange
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.document_steps import (
    OTHER_SPACE,
    SPACE,
    a_document,
    a_project,
    all_chunks,
    all_contents,
    all_entries,
    passages,
    put,
    said,
    searchable,
    sha256_of,
    stored_passages,
    terms_of,
    vector,
    whole,
)

ODD_TEXTS = (
    "",
    " ",
    "\x00",
    "a\x00b\x00",
    "🌱👩‍🌾",
    "e\u0301" + "\u0316" * 500,
    "\ufeff\ufffe\uffff\ufdd0",
    "\u202eright to left\u2028\u2029\r\n\t\x1b[31m\x7f\x85",
    "x" * MAX_CHUNK_CHARS,
    "🌱" * MAX_CHUNK_CHARS,
)


class UploadContract(Contract):
    """Storing, replacing and deleting documents."""

    @pytest.fixture
    async def garden(self, store: Store, owner: str) -> UUID:
        """An empty project."""
        return await a_project(store, owner)

    # --- store --------------------------------------------------------------------------------------------

    async def test_a_new_document(self, store: Store, owner: str, garden: UUID) -> None:
        """A document is stored with what was said of it; the project counts it, and moves."""
        before = await store.projects.get_project(owner, garden)
        began = datetime.now(UTC)
        new = a_document("guide/tea.md", "tea", title="Of tea", media_type="application/x.y-z+json", bytes=7)
        stored = await store.documents.store_document(owner, str(garden).upper(), new, passages("tea", 3))
        document = stored.document
        assert stored == StoredDocument(
            Document(
                id=document_id(garden, "guide/tea.md"),
                owner_id=owner,
                project_id=garden,
                file_path="guide/tea.md",
                title="Of tea",
                media_type="application/x.y-z+json",
                bytes=7,
                sha256=sha256_of("tea"),
                chunks=3,
                created_at=document.created_at,
                updated_at=document.updated_at,
            ),
            "new",
        )
        assert began <= document.created_at <= document.updated_at <= datetime.now(UTC)
        assert await store.documents.get_document(owner, garden, document.id) == document
        assert await all_chunks(store, owner, garden, document.id) == stored_passages(document.id, "tea", 3)
        after = await store.projects.get_project(owner, garden)
        assert (after.documents, after.chunks, after.space) == (1, 3, None)
        assert after.version > before.version
        assert after.updated_at >= before.updated_at

    async def test_the_same_document_again(self, store: Store, owner: str, garden: UUID) -> None:
        """The same hash changes nothing, whatever else is given."""
        stored = await put(store, owner, garden, "tea.md", "tea", 3)
        before = await store.projects.get_project(owner, garden)
        assert await put(store, owner, garden, "tea.md", "tea", 3) == stored._replace(change="unchanged")
        other = a_document("tea.md", "tea", title="Other", bytes=99)
        again = await store.documents.store_document(
            owner, garden, other, passages("other", 5), limits=ProjectLimits(1, 3)
        )
        assert again == stored._replace(change="unchanged")
        assert await store.projects.get_project(owner, garden) == before
        assert await searchable(store, owner, garden) == {"tea.md": said("tea", 3)}

    @pytest.mark.parametrize("count", [1, 2, 128, 129, 700])
    async def test_replacing_a_document(self, store: Store, owner: str, garden: UUID, count: int) -> None:
        """Another text replaces the one before, shorter or longer; what is around it stays; back again works."""
        await put(store, owner, garden, "other.md", "other", 2)
        first = (await put(store, owner, garden, "tea.md", "tea", 130)).document
        version = (await store.projects.get_project(owner, garden)).version
        for text, chunks in (("mint", count), ("tea", 130), ("mint", count)):
            stored = await put(store, owner, garden, "tea.md", text, chunks)
            assert stored.change == "replaced"
            assert (stored.document.id, stored.document.created_at) == (first.id, first.created_at)
            assert stored.document.updated_at >= first.updated_at
            assert await searchable(store, owner, garden) == {
                "other.md": said("other", 2),
                "tea.md": said(text, chunks),
            }
            project = await store.projects.get_project(owner, garden)
            assert (project.documents, project.chunks) == (2, 2 + chunks)
            assert project.version > version
            version = project.version
            versions = {each.file_path: each.version for each in await all_contents(store, owner, garden)}
            assert versions["tea.md"] == version > versions["other.md"]
        receipt = await store.erase_owner(owner)
        assert (receipt.documents, receipt.chunks, receipt.vectors) == (2, 2 + count, 0), "nothing of before is left"

    async def test_texts_come_back_as_they_went_in(self, store: Store, owner: str, garden: UUID) -> None:
        """Whatever is in a passage, its anchor and its headings is kept, NUL and all, up to the longest."""
        short = [text[:200] for text in ODD_TEXTS]
        chunks = [
            NewChunk(text, [None, f"#{odd}"][n % 2], f"{odd} > {odd}", n * 2**27, terms_of("odd", n))
            for n, (text, odd) in enumerate(zip(ODD_TEXTS, short, strict=True))
        ]
        chunks.append(NewChunk("end", "", "", 2**31 - 1, b""))
        stored = await store.documents.store_document(owner, garden, a_document("odd.md", "odd"), chunks)
        expected = [Chunk(stored.document.id, n, *chunk[:4]) for n, chunk in enumerate(chunks)]
        assert await all_chunks(store, owner, garden, stored.document.id, 3) == expected
        (content,) = await all_contents(store, owner, garden)
        assert await store.documents.chunks(owner, garden, [whole(content)]) == expected
        entries = await all_entries(store, owner, garden, content)
        assert entries == [IndexedChunk(n, chunk.terms, None) for n, chunk in enumerate(chunks)]

    async def test_lone_surrogates_in_passages(self, store: Store, owner: str, garden: UUID) -> None:
        """Lone surrogates are replaced, and pairs joined, as in every text."""
        chunk = NewChunk("a\ud800b \ud83c\udf31", "#\udfff", "\ud800", 0, b"")
        stored = await store.documents.store_document(owner, garden, a_document("a.md", "a"), [chunk])
        (kept,) = await all_chunks(store, owner, garden, stored.document.id)
        assert kept[2:] == ("a\ufffdb 🌱", "#\ufffd", "\ufffd", 0)

    @pytest.mark.parametrize(
        "path",
        ["é.md", "a b/  c.md", "ein/🌱/👩‍🌾.md", "x" * 1_024, "\U0010ffff", "a'\"%_;--.md"],
        ids=ascii,
    )
    async def test_paths_and_titles(self, store: Store, owner: str, garden: UUID, path: str) -> None:
        """A path is compared exactly, in its normal form; titles are any text, or none."""
        stored = (await put(store, owner, garden, path, "tea")).document
        assert (stored.file_path, stored.id) == (path, document_id(garden, path))
        await put(store, owner, garden, path.swapcase() + "x" if len(path) < 1_000 else "X" * 1_024, "other")
        for title in ("\x00 🌱", "e\u0301", "x" * 255, None):
            new = a_document(path, f"t{title}", title=title)
            changed = (await store.documents.store_document(owner, garden, new, passages("tea"))).document
            assert (changed.title, changed.file_path, changed.id) == (title, path, stored.id)
            assert await store.documents.get_document(owner, garden, stored.id) == changed
            titles = {each.document_id: each.title for each in await all_contents(store, owner, garden)}
            assert titles[stored.id] == title
        assert (await store.projects.get_project(owner, garden)).documents == 2

    async def test_one_text_under_many_paths(self, store: Store, owner: str, garden: UUID) -> None:
        """The same text is stored once for each path and for each project."""
        other = await a_project(store, owner)
        for project in (garden, other):
            for path in ("a.md", "b.md"):
                assert (await put(store, owner, project, path, "tea", 2)).change == "new"
            assert await searchable(store, owner, project) == {path: said("tea", 2) for path in ("a.md", "b.md")}
        await store.documents.delete_document(owner, garden, document_id(garden, "a.md"))
        assert await searchable(store, owner, garden) == {"b.md": said("tea", 2)}
        assert len(await searchable(store, owner, other)) == 2

    @pytest.mark.parametrize(
        ("chunks", "space"),
        [
            ([], None),
            ([NewChunk("x" * (MAX_CHUNK_CHARS + 1), None, "", 0, b"")], None),
            ([NewChunk("x", None, "", 0, b"1234" * (MAX_CHUNK_TERMS + 1))], None),
            ([NewChunk("x", None, "", 0, b"123")], None),
            ([NewChunk("x", None, "", -1, b"")], None),
            ([NewChunk("x", None, "", 2**31, b"")], None),
            (passages("x", 2), SPACE),
            (passages("x", 2, with_vectors=True), None),
            ([*passages("x", 1, with_vectors=True), *passages("x", 1)], SPACE),
            ([NewChunk("x", None, "", 0, b"", b"")], SPACE),
            ([NewChunk("x", None, "", 0, b"", b"12345")], SPACE),
            ([NewChunk("x", None, "", 0, b"", b"1234" * (MAX_DIMENSION + 1))], SPACE),
            ([NewChunk("x", None, "", 0, b"", vector(1)), NewChunk("x", None, "", 0, b"", b"1234")], SPACE),
            (passages("x", 2, with_vectors=True), ""),
            (passages("x", 2, with_vectors=True), "x" * 201),
            (passages("x", 2, with_vectors=True), "a\x00"),
            (passages("x", 2, with_vectors=True), "a\ud800"),
        ],
    )
    async def test_documents_that_are_refused(
        self, store: Store, owner: str, garden: UUID, chunks: list[NewChunk], space: str | None
    ) -> None:
        """Chunks beyond the port's limits are refused, and nothing is stored."""
        before = await store.projects.get_project(owner, garden)
        with pytest.raises(InvalidInput):
            await store.documents.store_document(owner, garden, a_document("x.md", "x"), chunks, space=space)
        assert await store.projects.get_project(owner, garden) == before
        assert await searchable(store, owner, garden) == {}

    async def test_largest_chunks(self, store: Store, owner: str, garden: UUID) -> None:
        """A chunk may have as many terms, and a vector as many numbers, as the port says."""
        largest = NewChunk("x", None, "", 0, b"1234" * MAX_CHUNK_TERMS, b"1234" * MAX_DIMENSION)
        await store.documents.store_document(owner, garden, a_document("x.md", "x"), [largest], space="s" * 200)
        (content,) = await all_contents(store, owner, garden)
        (entry,) = await all_entries(store, owner, garden, content, "s" * 200)
        assert entry == IndexedChunk(0, largest.terms, largest.vector)

    # --- at once ------------------------------------------------------------------------------------------

    async def test_one_document_at_once(self, store: Store, owner: str, garden: UUID) -> None:
        """Of six calls at once that store the same text, one stores it, and the others find it unchanged."""
        stored = await asyncio.gather(*(put(store, owner, garden, "tea.md", "tea", 200) for _ in range(6)))
        assert sorted(each.change for each in stored) == ["new"] + ["unchanged"] * 5
        assert len({each.document for each in stored}) == 1
        assert await searchable(store, owner, garden) == {"tea.md": said("tea", 200)}

    async def test_different_texts_at_once(self, store: Store, owner: str, garden: UUID) -> None:
        """Of calls that store different texts under one path, one wins; others may raise Conflict; nothing is mixed."""
        for _ in range(3):
            texts = [f"tea {uuid4()}" for _ in range(4)]
            calls = [put(store, owner, garden, "tea.md", text, 150 + n) for n, text in enumerate(texts)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert {type(each) for each in outcomes} <= {StoredDocument, Conflict}
            won = [n for n, each in enumerate(outcomes) if isinstance(each, StoredDocument)]
            assert won, "one of them is stored"
            seen = await searchable(store, owner, garden)
            assert seen in [{"tea.md": said(texts[n], 150 + n)} for n in won]
        assert (await store.erase_owner(owner)).chunks == len(seen["tea.md"].passages), "nothing else is left"

    async def test_readers_while_a_document_is_replaced(self, store: Store, owner: str, garden: UUID) -> None:
        """Who reads while a document of a thousand chunks is replaced sees all of a text, never two, and never half of
        one that is still the document's."""
        counts = {"tea": 1_000, "mint": 900}
        await put(store, owner, garden, "tea.md", "tea", counts["tea"])
        document, ended = document_id(garden, "tea.md"), asyncio.Event()
        seen = set[str]()

        async def read() -> None:
            while not ended.is_set():
                (content,) = await store.documents.contents(owner, garden)
                entries = await all_entries(store, owner, garden, content)
                chunks = await store.documents.chunks(owner, garden, [whole(content)])
                (after,) = await store.documents.contents(owner, garden)
                assert content.title is not None
                assert content.chunks == counts[content.title]
                whole_text = stored_passages(document, content.title, content.chunks)
                assert set(chunks) <= set(whole_text)
                assert {each.terms for each in entries} <= {terms_of(content.title, n) for n in range(content.chunks)}
                if after == content:
                    assert (len(entries), chunks) == (content.chunks, whole_text)
                    seen.add(content.title)
                part = await store.documents.document_chunks(owner, garden, document, after=400, limit=100)
                assert len({chunk.heading for chunk in part}) == 1
                assert len(part) == 100
                project = await store.projects.get_project(owner, garden)
                assert (project.documents, project.chunks in counts.values()) == (1, True)
                await asyncio.sleep(0)

        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(read())
            await asyncio.sleep(0)
            for text in ("mint", "tea", "mint"):
                await put(store, owner, garden, "tea.md", text, counts[text])
                await asyncio.sleep(0.01)
            ended.set()
        assert seen == {"tea", "mint"}

    async def test_cancelled_uploads(self, store: Store, owner: str, garden: UUID) -> None:
        """A call that is cancelled leaves the text before it or the new one; storing it again ends as one call does."""
        dice = random.Random(7)  # noqa: S311 - not a secret
        before, text = {"tea.md": said("before", 2)}, "before"
        await put(store, owner, garden, "tea.md", "before", 2)
        for number in range(8):
            previous, text = text, f"tea {number}"
            storing = asyncio.create_task(put(store, owner, garden, "tea.md", text, 300))
            await asyncio.sleep(dice.choice((0, 0, 0.002, 0.005, 0.01, 0.03)))
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)
            # The writer may have it still: what writes the same project after it waits for it.
            await store.projects.update_project(owner, garden, ProjectChange(name=text))
            assert await searchable(store, owner, garden) in (before, {"tea.md": said(text, 300)})
            if number % 2:
                stored = await put(store, owner, garden, "tea.md", text, 300)
                assert stored.change in ("replaced", "unchanged")
                assert await searchable(store, owner, garden) == {"tea.md": said(text, 300)}
            else:
                await put(store, owner, garden, "tea.md", f"{previous} again", 4)
                text = f"{previous} again"
            before = await searchable(store, owner, garden)
        await put(store, owner, garden, "tea.md", "last", 3)
        receipt = await store.erase_owner(owner)
        assert (receipt.documents, receipt.chunks) == (1, 3), "nothing of what was cut off is left"

    # --- limits -------------------------------------------------------------------------------------------

    async def test_limit_of_documents(self, store: Store, owner: str, garden: UUID) -> None:
        """A project has at most as many documents as the call allows; replacing one adds none."""
        limits = ProjectLimits(documents=2)
        for path in ("a.md", "b.md"):
            await put(store, owner, garden, path, "tea", limits=limits)
        with pytest.raises(ProjectFull, match="2 documents"):
            await put(store, owner, garden, "c.md", "tea", limits=limits)
        assert (await put(store, owner, garden, "b.md", "mint", limits=limits)).change == "replaced"
        assert (await put(store, owner, garden, "b.md", "mint", limits=limits)).change == "unchanged"
        await store.documents.delete_document(owner, garden, document_id(garden, "a.md"))
        assert (await put(store, owner, garden, "c.md", "tea", limits=limits)).change == "new"
        assert await searchable(store, owner, garden) == {"b.md": said("mint"), "c.md": said("tea")}

    async def test_limit_of_chunks(self, store: Store, owner: str, garden: UUID) -> None:
        """A project has at most as many chunks as the call allows; those that are replaced do not count."""
        limits = ProjectLimits(chunks=10)
        await put(store, owner, garden, "a.md", "tea", 6, limits=limits)
        with pytest.raises(ProjectFull, match="10 passages"):
            await put(store, owner, garden, "b.md", "tea", 5, limits=limits)
        await put(store, owner, garden, "b.md", "tea", 4, limits=limits)
        with pytest.raises(ProjectFull, match="11"):
            await put(store, owner, garden, "a.md", "mint", 7, limits=limits)
        await put(store, owner, garden, "a.md", "sage", 6, limits=limits)
        assert await searchable(store, owner, garden) == {"a.md": said("sage", 6), "b.md": said("tea", 4)}
        await put(store, owner, garden, "c.md", "tea", 1, limits=ProjectLimits(chunks=11))

    @pytest.mark.parametrize("limits", [ProjectLimits(documents=3), ProjectLimits(chunks=6)])
    async def test_limits_at_once(self, store: Store, owner: str, garden: UUID, limits: ProjectLimits) -> None:
        """Of twelve documents of two chunks that are stored at once three fit, and the others leave nothing."""
        calls = [put(store, owner, garden, f"{n}.md", f"tea {n}", 2, limits=limits) for n in range(12)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        kinds = [type(each) for each in outcomes]
        assert (kinds.count(StoredDocument), kinds.count(ProjectFull)) == (3, 9)
        stored = {n for n, each in enumerate(outcomes) if isinstance(each, StoredDocument)}
        assert await searchable(store, owner, garden) == {f"{n}.md": said(f"tea {n}", 2) for n in stored}
        assert (await store.erase_owner(owner)).chunks == 6

    # --- delete -------------------------------------------------------------------------------------------

    async def test_deleting_a_document(self, store: Store, owner: str, garden: UUID) -> None:
        """A deleted document is gone for every read, with chunks and vectors; then its path is free."""
        for path in ("a.md", "b.md"):
            await put(store, owner, garden, path, "tea", 300, space=SPACE)
        contents = {each.file_path: each for each in await all_contents(store, owner, garden)}
        gone, before = contents["a.md"], await store.projects.get_project(owner, garden)
        assert await store.documents.delete_document(owner, garden, str(gone.document_id).upper()) is True
        assert await store.documents.delete_document(owner, garden, gone.document_id) is False
        assert await store.documents.delete_document(owner, garden, uuid4()) is False
        for call in (
            store.documents.get_document(owner, garden, gone.document_id),
            store.documents.document_chunks(owner, garden, gone.document_id),
        ):
            with pytest.raises(NotFound):
                await call
        assert await all_entries(store, owner, garden, gone) == []
        assert await store.documents.chunks(owner, garden, [whole(gone)]) == []
        assert await store.documents.without_vectors(owner, garden, gone, OTHER_SPACE) == []
        assert await store.documents.add_vectors(owner, garden, gone, SPACE, {0: vector(0)}) is False
        assert await store.documents.count_vectors(owner, garden, SPACE) == {contents["b.md"].id: 300}
        after = await store.projects.get_project(owner, garden)
        assert (after.documents, after.chunks, after.space) == (1, 300, SPACE)
        assert after.version > before.version
        assert await searchable(store, owner, garden) == {"b.md": said("tea", 300, with_vectors=True)}
        assert (await put(store, owner, garden, "a.md", "tea", 2)).change == "new"
        await store.documents.delete_document(owner, garden, gone.document_id)
        receipt = await store.erase_owner(owner)
        assert (receipt.documents, receipt.chunks, receipt.vectors) == (1, 300, 300)

    async def test_deleting_a_document_at_once(self, store: Store, owner: str, garden: UUID) -> None:
        """Of five deletions at once one deletes the document; the counts are right after it."""
        await put(store, owner, garden, "b.md", "mint")
        for _ in range(3):
            id_ = (await put(store, owner, garden, "a.md", "tea", 140)).document.id
            gone = await asyncio.gather(*(store.documents.delete_document(owner, garden, id_) for _ in range(5)))
            assert sorted(gone) == [False] * 4 + [True]
            assert await searchable(store, owner, garden) == {"b.md": said("mint")}

    async def test_deleting_a_document_that_is_being_stored(self, store: Store, owner: str, garden: UUID) -> None:
        """A document that is stored and deleted at once is there whole, or not at all; the call may raise Conflict."""
        id_ = document_id(garden, "a.md")
        for number in range(6):
            await put(store, owner, garden, "a.md", "before", 2)
            outcomes: tuple[Any, ...] = await asyncio.gather(
                put(store, owner, garden, "a.md", f"tea {number}", 200),
                store.documents.delete_document(owner, garden, id_),
                return_exceptions=True,
            )
            assert type(outcomes[0]) in (StoredDocument, Conflict)
            assert outcomes[1] is True
            seen = await searchable(store, owner, garden)
            assert seen in ({}, {"a.md": said(f"tea {number}", 200)})
            if isinstance(outcomes[0], ChatkeepError):
                assert seen == {}
        await store.documents.delete_document(owner, garden, id_)
        receipt = await store.erase_owner(owner)
        assert (receipt.documents, receipt.chunks) == (0, 0)
