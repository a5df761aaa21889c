"""Projects that conversations belong to."""

import asyncio
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import Conflict, NotFound
from chatkeep.model import Conversation, ConversationChange, ImportedConversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import someone, user
from chatkeep.testing.reference import by_time, selected, whole_list


async def project(store: Store, owner: str, name: str | None = "Garden", id_: UUID | None = None) -> UUID:
    """A project, which comes with the import of a conversation that goes at once."""
    id_, conversation_id = id_ or uuid4(), uuid4()
    new = ImportedConversation(id=conversation_id, project_id=id_, project_name=name)
    await store.import_conversation(owner, new)
    await store.delete_conversation(owner, conversation_id)
    return id_


async def project_name(store: Store, owner: str, project_id: UUID) -> str | None:
    """The name of a project, as an export has it."""
    made = await store.create_conversation(owner, NewConversation(project_id=project_id))
    exported, _ = await store.export_conversation(owner, made.id)
    await store.delete_conversation(owner, made.id)
    return exported.project_name


class ProjectContract(Contract):
    """Projects of conversations."""

    async def test_an_import_makes_the_project(self, store: Store, owner: str) -> None:
        """An imported conversation brings its project; one that is there keeps its name; without a name it is the
        id."""
        first, second = uuid4(), uuid4()
        for name in ("Garden\x00 🌱", "Another name", None):
            new = ImportedConversation(id=uuid4(), project_id=first, project_name=name)
            assert (await store.import_conversation(owner, new)).created
            assert new.id is not None
            assert (await store.get_conversation(owner, new.id)).project_id == first
        assert await project_name(store, owner, first) == "Garden\x00 🌱"
        await store.import_conversation(owner, ImportedConversation(id=uuid4(), project_id=second))
        assert await project_name(store, owner, second) == str(second)

    async def test_an_export_restores_the_project(self, store: Store, owner: str) -> None:
        """A conversation that is exported and imported elsewhere is in a project with this id and name there."""
        id_, other = await project(store, owner), someone()
        made = await store.create_conversation(owner, NewConversation(project_id=id_))
        exported, _ = await store.export_conversation(owner, made.id)
        assert (exported.project_id, exported.project_name) == (id_, "Garden")
        assert (await store.import_conversation(other, exported)).differences == ()
        assert [c.id for c in await whole_list(store, other, project_id=id_)] == [made.id]
        assert await project_name(store, other, id_) == "Garden"
        bare = await store.create_conversation(owner, NewConversation())
        exported, _ = await store.export_conversation(owner, bare.id)
        assert (exported.project_id, exported.project_name) == (None, None)

    async def test_conversations_are_created_in_it(self, store: Store, owner: str) -> None:
        """A conversation in a project is created once; in another project, or in none, it is another one."""
        one, other = await project(store, owner), await project(store, owner)
        new = NewConversation(id=uuid4(), project_id=one, title="T")
        created = await store.create_conversation(owner, new)
        assert created.project_id == one
        assert await store.create_conversation(owner, new) == created == await store.get_conversation(owner, created.id)
        for id_ in (other, None):
            with pytest.raises(Conflict):
                await store.create_conversation(owner, new.model_copy(update={"project_id": id_}))

    async def test_unknown_projects_are_not_found(self, store: Store, owner: str) -> None:
        """A project that is not there, or is another owner's, is NotFound, and nothing is created."""
        theirs = await project(store, someone())
        for id_ in (uuid4(), theirs):
            for call in (store.create_conversation, store.get_or_create_conversation):
                with pytest.raises(NotFound, match="project"):
                    await call(owner, NewConversation(project_id=id_))
            with pytest.raises(NotFound, match="project"):
                await store.get_or_create_conversation(owner, NewConversation(project_id=id_, external_id="e"))
            assert await whole_list(store, owner, project_id=id_) == []
        assert await whole_list(store, owner) == []

    async def test_get_or_create_in_projects_at_the_same_moment(self, store: Store, owner: str) -> None:
        """Thirty concurrent calls create one conversation for each context and project; none is one of its own."""
        one, other = await project(store, owner), await project(store, owner)
        scopes = [(context, id_) for context in (None, "k") for id_ in (None, one, other)]
        calls = [
            store.get_or_create_conversation(owner, NewConversation(context_id=context, project_id=id_))
            for context, id_ in scopes * 30
        ]
        answers = await asyncio.gather(*calls)
        assert [(c.context_id, c.project_id) for c in answers] == scopes * 30
        assert len({c.id for c in answers}) == len(scopes)
        assert len(await whole_list(store, owner)) == len(scopes)

    async def test_get_or_create_without_a_project_does_not_see_theirs(self, store: Store, owner: str) -> None:
        """The newest of a context is looked for among those in the project, or among those in none."""
        id_ = await project(store, owner)
        outside = await store.get_or_create_conversation(owner, NewConversation(context_id="k"))
        inside = await store.get_or_create_conversation(owner, NewConversation(context_id="k", project_id=id_))
        assert inside.id != outside.id
        assert await store.get_or_create_conversation(owner, NewConversation(context_id="k")) == outside
        assert await store.get_or_create_conversation(owner, NewConversation(context_id="k", project_id=id_)) == inside
        await store.append(owner, inside.id, user("hello"))
        assert await store.get_or_create_conversation(owner, NewConversation(context_id="k")) == outside

    async def test_lists_of_a_project(self, store: Store, owner: str) -> None:
        """A list of one project has its conversations, also with other filters, page by page and counted."""
        one, other = await project(store, owner), await project(store, owner)
        made: list[Conversation] = []
        for number in range(15):
            new = NewConversation(
                project_id=(one, other, None)[number % 3],
                context_id="k" if number % 2 else None,
                labels=("a",) if number % 4 else (),
            )
            made.append(await store.create_conversation(owner, new))
        for more in ({}, {"context_id": "k"}, {"labels": ["a"]}, {"labels": ["!a"]}):
            expected = by_time(selected(made, project_id=one, **more))
            assert await whole_list(store, owner, project_id=one, limit=2, **more) == expected
            assert await whole_list(store, owner, project_id=str(one).upper(), limit=100, **more) == expected
            page = await store.list_conversations(owner, project_id=one, offset=1, total=True, **more)
            assert (page.items, page.total) == (expected[1:11], len(expected))
            by_id = await whole_list(store, owner, project_id=one, order="id", limit=2, **more)
            assert by_id == sorted(expected, key=lambda c: c.id)

    async def test_another_project_is_a_difference(self, store: Store, owner: str) -> None:
        """A conversation that is there never moves to another project by an import; the receipt says so."""
        id_ = await project(store, owner)
        made = await store.create_conversation(owner, NewConversation(project_id=id_))
        for other in (uuid4(), None):
            receipt = await store.import_conversation(
                owner, ImportedConversation(id=made.id, project_id=other), update=True
            )
            assert (receipt.differences, receipt.left) == (("project_id",), ["project_id"])
        assert (await store.get_conversation(owner, made.id)).project_id == id_

    async def test_erasure_counts_projects(self, store: Store, owner: str) -> None:
        """Projects go with their owner, also those without a conversation, and are in the receipt."""
        stranger = someone()
        ids = [await project(store, owner), await project(store, owner)]
        theirs = await project(store, stranger, id_=ids[0])
        await store.create_conversation(owner, NewConversation(project_id=ids[1]))
        receipt = await store.erase_owner(owner)
        assert (receipt.conversations, receipt.projects, receipt.remaining) == (1, 2, 0)
        assert (await store.erase_owner(owner)).projects == 0
        for id_ in ids:
            with pytest.raises(NotFound):
                await store.create_conversation(owner, NewConversation(project_id=id_))
        assert (await store.create_conversation(stranger, NewConversation(project_id=theirs))).project_id == theirs

    async def test_a_project_outlives_its_conversations(self, store: Store, owner: str) -> None:
        """Deleting and changing conversations does nothing to their project."""
        id_ = await project(store, owner)
        made = await store.create_conversation(owner, NewConversation(project_id=id_))
        changed = await store.update_conversation(owner, made.id, ConversationChange(title="T", context_id="k"))
        assert changed.project_id == id_
        await store.delete_conversation(owner, made.id)
        assert await project_name(store, owner, id_) == "Garden"
