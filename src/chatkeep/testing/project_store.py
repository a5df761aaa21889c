"""Creating, listing, changing and deleting projects."""

import asyncio
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.documents import document_id
from chatkeep.errors import Conflict, InvalidInput, NotFound
from chatkeep.model import ImportedConversation, NewConversation
from chatkeep.projects import NewProject, Project, ProjectChange
from chatkeep.store import Store
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.document_steps import SPACE, a_project, all_contents, all_projects, put, said, searchable
from chatkeep.testing.examples import forged, refused_or_paged
from chatkeep.testing.messages import numbered, someone, user
from chatkeep.testing.projects import project as imported_project
from chatkeep.testing.projects import project_name
from chatkeep.testing.reference import found, whole_list
from chatkeep.testing.turn_steps import begin, gone
from chatkeep.values import now


class ProjectStoreContract(Contract):
    """Creating, listing, changing and deleting projects."""

    # --- create -------------------------------------------------------------------------------------------

    async def test_a_new_project_is_empty(self, store: Store, owner: str) -> None:
        """A project has the values that were given, times of now, and nothing else yet."""
        before = datetime.now(UTC)
        metadata = {"a": [1, None, {"b": "\x00 🌱"}], "n": 10**30}
        made = await store.projects.create_project(owner, NewProject(name="Garden\x00 🌱", metadata=metadata))
        assert made == Project(
            id=made.id,
            owner_id=owner,
            name="Garden\x00 🌱",
            metadata=metadata,
            documents=0,
            chunks=0,
            space=None,
            version=made.version,
            created_at=made.created_at,
            updated_at=made.created_at,
        )
        assert made.id.version == 7
        assert before <= made.created_at <= datetime.now(UTC)
        assert await store.projects.get_project(owner, made.id) == made
        assert await searchable(store, owner, made.id) == {}

    async def test_project_names(self, store: Store, owner: str) -> None:
        """A name is any text that is not blank, of 255 characters at most; lone surrogates are replaced."""
        for given, kept in {
            "x" * 255: "x" * 255,
            "e\u0301": "e\u0301",
            "a\ud800b": "a\ufffdb",
            "\ud83c\udf31": "🌱",
            "a\nb": "a\nb",
        }.items():
            made = await store.projects.create_project(owner, NewProject(name=given))
            assert (await store.projects.get_project(owner, made.id)).name == kept
        bad: Any
        for bad in ("", " \n", "x" * 256, None, 7):
            with pytest.raises(InvalidInput):
                NewProject(name=bad)

    async def test_creating_a_project_again(self, store: Store, owner: str) -> None:
        """The same id with the same values returns the project as it is now, also after it was changed."""
        new = NewProject(id=uuid4(), name="Garden", metadata={"a": 1})
        made = await store.projects.create_project(owner, new)
        assert made.id == new.id
        assert await store.projects.create_project(owner, new) == made
        change = ProjectChange(name="Orchard", metadata={"b": 2})
        changed = await store.projects.update_project(owner, made.id, change)
        await put(store, owner, made.id, "tea.md", "tea", 2)
        now_ = await store.projects.get_project(owner, made.id)
        assert (changed.name, now_.documents) == ("Orchard", 1)
        assert await store.projects.create_project(owner, new) == now_
        others: list[dict[str, Any]] = [
            {"name": "Orchard", "metadata": changed.metadata},
            {"name": "Orchard"},
            {"metadata": {}},
            {"metadata": {"a": 2}},
        ]
        for other in others:
            with pytest.raises(Conflict):
                await store.projects.create_project(owner, new.model_copy(update=other))
        assert await store.projects.get_project(owner, made.id) == now_

    async def test_creating_a_project_at_the_same_moment(self, store: Store, owner: str) -> None:
        """Of twenty calls at once one creates the project; those with other values raise Conflict."""
        id_ = uuid4()
        calls = [
            store.projects.create_project(owner, NewProject(id=id_, name=("Garden", "Orchard")[number % 2]))
            for number in range(20)
        ]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        made = [each for each in outcomes if isinstance(each, Project)]
        assert made == [await store.projects.get_project(owner, id_)] * 10
        assert [type(each) for each in outcomes if not isinstance(each, Project)] == [Conflict] * 10

    async def test_creating_a_project_that_an_import_made(self, store: Store, owner: str) -> None:
        """A project that came with an import is created again by the values that it has now; others raise Conflict."""
        id_ = await imported_project(store, owner, "Garden")
        made = await store.projects.get_project(owner, id_)
        assert (made.name, made.metadata, made.documents, made.space) == ("Garden", {}, 0, None)
        assert await store.projects.create_project(owner, NewProject(id=id_, name="Garden")) == made
        for other in (NewProject(id=id_, name="Orchard"), NewProject(id=id_, name="Garden", metadata={"a": 1})):
            with pytest.raises(Conflict):
                await store.projects.create_project(owner, other)

    async def test_project_ids_of_others_are_free(self, store: Store, owner: str) -> None:
        """Two owners may have projects with one id, which have nothing in common."""
        stranger, new = someone(), NewProject(id=uuid4(), name="Garden")
        mine = await store.projects.create_project(owner, new)
        theirs = await store.projects.create_project(stranger, new.model_copy(update={"name": "Orchard"}))
        await put(store, stranger, mine.id, "tea.md", "their tea")
        await put(store, owner, mine.id, "tea.md", "my tea", 3)
        assert [each.owner_id for each in (mine, theirs)] == [owner, stranger]
        assert await searchable(store, owner, mine.id) == {"tea.md": said("my tea", 3)}
        assert await store.projects.delete_project(owner, mine.id)
        assert await searchable(store, stranger, mine.id) == {"tea.md": said("their tea")}

    # --- list ---------------------------------------------------------------------------------------------

    async def test_projects_by_creation(self, store: Store, owner: str) -> None:
        """Projects are listed by creation, the last first: page by page, by offset, counted; changes move none."""
        made = [await a_project(store, owner, f"P{number}") for number in range(12)]
        await imported_project(store, someone())
        await store.projects.update_project(owner, made[3], ProjectChange(name="changed"))
        await put(store, owner, made[5], "tea.md", "tea")
        everything = await all_projects(store, owner)
        assert sorted(everything, key=lambda p: (p.created_at, p.id), reverse=True) == everything
        assert [each.id for each in everything] == made[::-1]
        assert everything[6] == await store.projects.get_project(owner, made[5])
        for limit in (1, 5, 12):
            assert await all_projects(store, owner, limit) == everything
        page = await store.projects.list_projects(owner)
        assert (page.items, page.total) == (everything[:10], None)
        page = await store.projects.list_projects(owner, limit=3, offset=4, total=True)
        assert (page.items, page.total) == (everything[4:7], 12)
        page = await store.projects.list_projects(owner, offset=12, total=True)
        assert (page.items, page.next, page.total) == ([], None, 12)

    async def test_bounds_of_a_list_of_projects(self, store: Store, owner: str) -> None:
        """Limits, offsets and cursors out of bounds are refused, and cursors of another owner or list."""
        id_ = await a_project(store, owner)
        for number in range(3):
            await a_project(store, owner)
            await put(store, owner, id_, f"{number}.md", "tea")
        cursor = (await store.projects.list_projects(owner, limit=1)).next
        documents = (await store.documents.list_documents(owner, id_, limit=1)).next
        assert cursor is not None
        assert documents is not None
        wrong: list[dict[str, Any]] = [
            {"limit": 0},
            {"limit": 1_001},
            {"offset": -1},
            {"offset": 10_001},
            {"cursor": "tea"},
            {"cursor": documents},
            {"cursor": cursor, "offset": 1},
        ]
        for arguments in wrong:
            with pytest.raises(InvalidInput):
                await store.projects.list_projects(owner, **arguments)
        with pytest.raises(InvalidInput):
            await store.projects.list_projects(someone(), cursor=cursor)
        for bad in forged(cursor):
            await refused_or_paged(store.projects.list_projects(owner, limit=1, cursor=bad), 1)

    async def test_paging_while_projects_come_and_go(self, store: Store, owner: str) -> None:
        """A list by cursor has every project once that was there all the time, and nothing twice."""
        made = [await a_project(store, owner) for _ in range(20)]
        seen: list[UUID] = []
        page = await store.projects.list_projects(owner, limit=3)
        while True:
            seen += [each.id for each in page.items]
            if page.next is None:
                break
            await a_project(store, owner)
            await store.projects.delete_project(owner, page.items[-1].id)
            page = await store.projects.list_projects(owner, limit=3, cursor=page.next)
        assert seen == made[::-1]

    async def test_pages_of_large_projects(self, open_store_with: Opener, owner: str) -> None:
        """A page ends before it is larger than the store's limit, and goes on with the cursor."""
        async with open_store_with(max_page_bytes=2_500) as store:
            made = [await a_project(store, owner, metadata={"a": "x" * 1_000}) for _ in range(7)]
            page = await store.projects.list_projects(owner, limit=5)
            assert 0 < len(page.items) < 5
            assert [each.id for each in await all_projects(store, owner, 5)] == made[::-1]

    # --- change -------------------------------------------------------------------------------------------

    async def test_changing_a_project(self, store: Store, owner: str) -> None:
        """Fields that are left out stay; metadata is merged (RFC 7396); null empties it; a name cannot be removed."""
        id_ = await a_project(store, owner, metadata={"a": 1, "b": {"c": 1, "d": [1]}, "z": "\x00"})
        before = await store.projects.get_project(owner, id_)
        merged = await store.projects.update_project(
            owner, id_, ProjectChange(metadata={"a": None, "b": {"c": None, "e": {"f": None}}, "g": [None]})
        )
        assert merged.metadata == {"b": {"d": [1], "e": {}}, "z": "\x00", "g": [None]}
        assert merged.name == "Garden"
        named = await store.projects.update_project(owner, id_, ProjectChange(name="Orchard"))
        assert (named.name, named.metadata) == ("Orchard", merged.metadata)
        emptied = await store.projects.update_project(owner, id_, ProjectChange(metadata=None))
        assert (emptied.name, emptied.metadata) == ("Orchard", {})
        assert before.updated_at <= merged.updated_at <= named.updated_at <= emptied.updated_at <= datetime.now(UTC)
        kept = {"name", "metadata", "updated_at"}
        assert emptied.model_dump(exclude=kept) == before.model_dump(exclude=kept)
        assert await store.projects.get_project(owner, id_) == emptied
        assert await store.projects.update_project(owner, id_, ProjectChange()) == emptied
        for bad in ({"name": None}, {"name": ""}, {"documents": 1}, {"space": "x"}):
            with pytest.raises(InvalidInput):
                ProjectChange(**bad)

    async def test_changes_of_a_project_at_once(self, store: Store, owner: str) -> None:
        """Twenty patches at once are all in the metadata; documents that are stored meanwhile are counted."""
        id_ = await a_project(store, owner)
        patches = [
            store.projects.update_project(owner, id_, ProjectChange(metadata={f"k{number}": number}))
            for number in range(20)
        ]
        uploads = [put(store, owner, id_, f"{number}.md", f"tea {number}", 2) for number in range(5)]
        await asyncio.gather(*patches, *uploads)
        changed = await store.projects.get_project(owner, id_)
        assert changed.metadata == {f"k{number}": number for number in range(20)}
        assert (changed.documents, changed.chunks) == (5, 10)

    async def test_metadata_limits_of_projects(self, open_store_with: Opener, owner: str) -> None:
        """A store's limits of metadata hold for projects, when they are created and for what patches add up to."""
        async with open_store_with(max_metadata_bytes=100) as store:
            with pytest.raises(InvalidInput):
                await a_project(store, owner, metadata={"a": "x" * 100})
            id_ = await a_project(store, owner, metadata={"a": "x" * 60})
            with pytest.raises(InvalidInput):
                await store.projects.update_project(owner, id_, ProjectChange(metadata={"b": "x" * 60}))
            assert (await store.projects.get_project(owner, id_)).metadata == {"a": "x" * 60}

    async def test_metadata_of_a_project_is_a_copy(self, store: Store, owner: str) -> None:
        """What a caller does to the metadata that it was given changes nothing that is stored."""
        metadata = {"a": [1]}
        made = await store.projects.create_project(owner, NewProject(name="Garden", metadata=metadata))
        for each in (metadata, made.metadata, (await store.projects.get_project(owner, made.id)).metadata):
            each["a"].append(2)
        (listed,) = (await store.projects.list_projects(owner)).items
        listed.metadata["a"].append(2)
        assert (await store.projects.get_project(owner, made.id)).metadata == {"a": [1]}

    # --- delete -------------------------------------------------------------------------------------------

    async def test_deleting_a_project(self, store: Store, owner: str) -> None:
        """With a project go its conversations, messages, turns, documents, chunks and vectors; nothing else does."""
        id_, other = await a_project(store, owner), await a_project(store, owner)
        inside = [await store.create_conversation(owner, NewConversation(project_id=id_)) for _ in range(3)]
        outside = [await store.create_conversation(owner, NewConversation(project_id=p)) for p in (other, None)]
        for each in (*inside, *outside):
            await store.append(owner, each.id, [user("sage tea"), *numbered(5)])
        running = await begin(store, owner, inside[0].id)
        left = await begin(store, owner, outside[0].id)
        for each_id in (id_, other):
            await put(store, owner, each_id, "a.md", "sage", 3, space=SPACE)
            await put(store, owner, each_id, "b.md", "mint", 300)
        assert await store.projects.delete_project(owner, id_) is True
        for call in (
            store.projects.get_project(owner, id_),
            store.documents.get_document(owner, id_, document_id(id_, "a.md")),
            *(store.log(owner, each.id) for each in inside),
            store.create_conversation(owner, NewConversation(project_id=id_)),
            put(store, owner, id_, "c.md", "mint"),
        ):
            with pytest.raises(NotFound):
                await call
        await gone(running)
        assert await whole_list(store, owner, project_id=id_) == []
        assert {each.id for each in await whole_list(store, owner)} == {each.id for each in outside}
        assert len(await found(store, owner, "sage tea")) == 1
        assert [each.id for each in await all_projects(store, owner)] == [other]
        assert await searchable(store, owner, other) == {
            "a.md": said("sage", 3, with_vectors=True),
            "b.md": said("mint", 300),
        }
        assert (await left.progress()).is_running
        assert await store.projects.delete_project(owner, id_) is False
        assert await store.projects.delete_project(owner, uuid4()) is False
        receipt = await store.erase_owner(owner)
        assert (receipt.conversations, receipt.projects, receipt.documents, receipt.chunks) == (2, 1, 2, 303)
        assert (receipt.vectors, receipt.turns, receipt.remaining) == (3, 1, 0)

    async def test_id_of_a_deleted_project_can_be_used_again(self, store: Store, owner: str) -> None:
        """A project with the id of a deleted one begins anew, whatever its values, created or imported."""
        id_ = await a_project(store, owner, metadata={"a": 1})
        await put(store, owner, id_, "tea.md", "tea", 3, space=SPACE)
        for name in ("Orchard", "Garden"):
            talk = await store.create_conversation(owner, NewConversation(project_id=id_))
            await store.projects.delete_project(owner, id_)
            again = await store.projects.create_project(owner, NewProject(id=id_, name=name))
            assert (again.name, again.metadata, again.documents, again.chunks, again.space) == (name, {}, 0, 0, None)
            assert await searchable(store, owner, id_) == {}
            assert await whole_list(store, owner) == []
            with pytest.raises(NotFound):
                await store.get_conversation(owner, talk.id)
            assert (await put(store, owner, id_, "tea.md", "tea", 3)).change == "new"
            assert await searchable(store, owner, id_) == {"tea.md": said("tea", 3)}
        await store.projects.delete_project(owner, id_)
        await store.import_conversation(owner, ImportedConversation(id=uuid4(), project_id=id_, project_name="Third"))
        assert (await store.projects.get_project(owner, id_)).name == "Third"
        assert await all_contents(store, owner, id_) == []

    async def test_deleting_a_project_that_is_being_used(self, store: Store, owner: str) -> None:
        """Whatever is created in a project while it is deleted goes with it, or raises NotFound."""
        id_ = await a_project(store, owner)
        uploads = [put(store, owner, id_, f"{number}.md", "tea", 2) for number in range(10)]
        talks = [store.create_conversation(owner, NewConversation(project_id=id_)) for _ in range(10)]
        deleting = [store.projects.delete_project(owner, id_) for _ in range(2)]
        outcomes = await asyncio.gather(
            *uploads[:5], *talks[:5], *deleting, *uploads[5:], *talks[5:], return_exceptions=True
        )
        refused = [each for each in outcomes if isinstance(each, BaseException)]
        assert {type(each) for each in refused} <= {NotFound, Conflict}
        assert True in outcomes[10:12]  # one of both calls, or each of them, deleted it
        with pytest.raises(NotFound):
            await store.projects.get_project(owner, id_)
        assert await whole_list(store, owner) == []
        await store.projects.delete_project(owner, id_)
        receipt = await store.erase_owner(owner)
        assert (receipt.conversations, receipt.projects, receipt.documents, receipt.chunks, receipt.remaining) == (
            0,
        ) * 5

    async def test_cancelled_deletion_of_a_project(self, store: Store, owner: str) -> None:
        """A deletion that is cancelled leaves the whole project, or nothing of it."""
        for pause in (0, 0.0005, 0.005):
            id_ = await a_project(store, owner)
            await put(store, owner, id_, "tea.md", "tea", 400)
            talk = await store.create_conversation(owner, NewConversation(project_id=id_))
            deleting = asyncio.create_task(store.projects.delete_project(owner, id_))
            await asyncio.sleep(pause)
            deleting.cancel()
            await asyncio.gather(deleting, return_exceptions=True)
            try:
                seen = await searchable(store, owner, id_)
            except NotFound:
                seen = {}
            assert seen in ({}, {"tea.md": said("tea", 400)})
            await store.projects.delete_project(owner, id_)  # finishes a removal that was cut off
            with pytest.raises(NotFound):
                await store.get_conversation(owner, talk.id)
        receipt = await store.erase_owner(owner)
        assert (receipt.projects, receipt.documents, receipt.chunks) == (0, 0, 0)

    # --- export and import --------------------------------------------------------------------------------

    async def test_exports_name_the_project(self, store: Store, owner: str) -> None:
        """An export has the project's name as it is now; an import elsewhere makes the project, without documents."""
        id_, other = await a_project(store, owner), someone()
        await put(store, owner, id_, "tea.md", "tea")
        talk = await store.create_conversation(owner, NewConversation(project_id=id_))
        await store.projects.update_project(owner, id_, ProjectChange(name="Orchard"))
        exported, _ = await store.export_conversation(owner, talk.id)
        assert (exported.project_id, exported.project_name) == (id_, "Orchard")
        assert await project_name(store, owner, id_) == "Orchard"
        before = now()
        await store.import_conversation(other, exported)
        made = await store.projects.get_project(other, id_)
        assert (made.name, made.documents, made.owner_id) == ("Orchard", 0, other)
        assert made.created_at >= before
        unchanged = await store.projects.get_project(owner, id_)
        await store.import_conversation(owner, exported.model_copy(update={"id": uuid4(), "project_name": "Other"}))
        assert await store.projects.get_project(owner, id_) == unchanged
