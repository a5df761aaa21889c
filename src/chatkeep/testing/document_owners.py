"""Projects and documents of others, what becomes of them with their owner, and the shape of both ports."""

import asyncio
import inspect
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.documents import Documents, ProjectLimits, document_id
from chatkeep.errors import ChatkeepError, Conflict, InvalidId, InvalidInput, NotFound, StoreUnavailable
from chatkeep.model import NewConversation
from chatkeep.projects import NewProject, ProjectChange, Projects
from chatkeep.store import Observer, Store
from chatkeep.testing.calls import CALLED_WITH, DOCUMENT_CALLS, OTHER_PROJECT_CALLS, PROJECT_CALLS
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.document_steps import (
    OTHER_SPACE,
    SPACE,
    a_project,
    all_contents,
    all_entries,
    all_projects,
    content_of,
    put,
    said,
    searchable,
    vector,
)
from chatkeep.testing.examples import MALFORMED_IDS
from chatkeep.testing.messages import someone, user
from chatkeep.testing.reference import whole_list

CALLS = {**PROJECT_CALLS, **OTHER_PROJECT_CALLS}

WITHOUT_DOCUMENT: Mapping[str, object] = {
    "delete_document": False,
    "add_vectors": False,
    "without_vectors": [],
    "index_entries": [[]],
    "chunks": [],
}
"""What calls return for a document that the project does not have; others raise NotFound."""


class DocumentOwnerContract(Contract):
    """Projects and documents of others, and what becomes of them with their owner."""

    @pytest.fixture
    def stranger(self) -> str:
        """Another owner."""
        return someone()

    @pytest.fixture
    async def foreign_project(self, store: Store, stranger: str) -> UUID:
        """A project of the other owner."""
        return await self._make_foreign(store, stranger)

    async def _make_foreign(self, store: Store, stranger: str) -> UUID:
        id_ = await a_project(store, stranger, "Private")
        await put(store, stranger, id_, "saffron.md", CALLED_WITH, 3, space=SPACE)
        return id_

    async def _outcome(self, call: str, store: Store, owner: str, project: UUID, document: UUID) -> object:
        """What a call returned or raised, without ids."""
        try:
            return await PROJECT_CALLS[call](store, owner, project, document)
        except ChatkeepError as error:
            return type(error), error.detail

    async def _untouched(self, store: Store, owner: str, project: UUID) -> None:
        """Check that a project is as it was made."""
        expected = {"saffron.md": said(CALLED_WITH, 3, with_vectors=True)}
        assert await searchable(store, owner, project) == expected
        found = await store.projects.get_project(owner, project)
        assert (found.name, found.metadata, found.space) == ("Private", {}, SPACE)
        content = content_of(project, "saffron.md", CALLED_WITH)
        assert await store.documents.count_vectors(owner, project, SPACE) == {content.id: 3}
        assert await store.documents.claim_embedding(owner, project, UUID(int=1))

    # --- the shape of the ports ---------------------------------------------------------------------------

    @pytest.mark.parametrize("port", [Projects, Documents])
    async def test_methods_of_documents_have_the_ports_parameters(self, store: Store, port: type) -> None:
        """Every method has the port's parameters: the same names, kinds and defaults."""
        kind = type(store.projects if port is Projects else store.documents)
        for name in sorted(port.__abstractmethods__):  # type: ignore[attr-defined]
            expected = inspect.signature(getattr(port, name)).parameters.values()
            actual = inspect.signature(getattr(kind, name)).parameters.values()
            assert [(p.name, p.kind, p.default) for p in expected] == [(p.name, p.kind, p.default) for p in actual]

    async def test_every_method_of_documents_is_in_a_table_of_calls(self) -> None:
        """The tables of calls have every method of both ports, so that the tests of owners and ids cover new ones."""
        methods = {name: port for port in (Projects, Documents) for name in port.__abstractmethods__}
        parameters = {name: inspect.signature(getattr(port, name)).parameters for name, port in methods.items()}
        assert all(list(each)[:2] == ["self", "owner"] for each in parameters.values())
        assert set(PROJECT_CALLS) == {name for name, each in parameters.items() if "project_id" in each}
        assert set(OTHER_PROJECT_CALLS) == set(parameters) - set(PROJECT_CALLS)
        of_document = {name for name, each in parameters.items() if {"document_id", "content"} & set(each)}
        assert set(DOCUMENT_CALLS) == of_document

    async def test_a_closed_store_refuses_every_call_of_documents(self, open_store_with: Opener, owner: str) -> None:
        """After aclose every method raises StoreUnavailable."""
        async with open_store_with() as store:
            id_ = await self._make_foreign(store, owner)
            await store.aclose()
            for call in CALLS.values():
                with pytest.raises(StoreUnavailable):
                    await call(store, owner, id_, document_id(id_, "saffron.md"))

    @pytest.mark.parametrize("call", sorted(PROJECT_CALLS))
    async def test_malformed_ids_of_documents(self, store: Store, owner: str, call: str) -> None:
        """A malformed id raises InvalidId, whichever it is."""
        id_ = await a_project(store, owner)
        for bad in MALFORMED_IDS:
            with pytest.raises(InvalidId):
                await PROJECT_CALLS[call](store, owner, bad, uuid4())
            if call in DOCUMENT_CALLS:
                with pytest.raises(InvalidId):
                    await PROJECT_CALLS[call](store, owner, id_, bad)

    @pytest.mark.parametrize("owner_", ["", "\ud800", "o" * 256, None, 7], ids=ascii)
    async def test_malformed_owners_of_documents(self, store: Store, owner_: Any) -> None:
        """A malformed owner raises InvalidInput in every method."""
        for call in CALLS.values():
            with pytest.raises(InvalidInput):
                await call(store, owner_, uuid4(), uuid4())

    async def test_observer_of_documents(self, store: Store, owner: str, foreign_project: UUID) -> None:
        """The observer is told of every call once, and of its error."""

        class Listening(Observer):
            def __init__(self) -> None:
                self.told: list[tuple[str, type | None]] = []

            def called(self, operation: str, seconds: float, error: ChatkeepError | None) -> None:
                assert seconds >= 0
                self.told.append((operation, None if error is None else type(error)))

        mine = await self._make_foreign(store, owner)
        store.observer = listening = Listening()
        expected: list[tuple[str, type | None]] = []
        for name in sorted(set(PROJECT_CALLS) - {"delete_project", "delete_document"}):
            await self._outcome(name, store, owner, foreign_project, document_id(foreign_project, "saffron.md"))
            await PROJECT_CALLS[name](store, owner, mine, document_id(mine, "saffron.md"))
            expected += [(name, NotFound), (name, None)]
        for name, call in OTHER_PROJECT_CALLS.items():
            await call(store, owner, mine, mine)
            expected.append((name, None))
        store.observer = None
        assert listening.told == expected

    # --- projects of others -------------------------------------------------------------------------------

    @pytest.mark.parametrize("call", sorted(PROJECT_CALLS))
    async def test_foreign_projects(
        self, store: Store, owner: str, stranger: str, foreign_project: UUID, call: str
    ) -> None:
        """Another owner's project and an unknown one have the same result, NotFound, and nothing is changed."""
        document = document_id(foreign_project, "saffron.md")
        for _ in range(2):  # first without, then with projects of their own
            outcomes = [await self._outcome(call, store, owner, id_, document) for id_ in (foreign_project, uuid4())]
            assert outcomes[0] == outcomes[1]
            assert kind(outcomes[0]) == (False if call == "delete_project" else NotFound)
            await a_project(store, owner)
        await self._untouched(store, stranger, foreign_project)

    @pytest.mark.parametrize("call", sorted(WITHOUT_DOCUMENT.keys() | set(DOCUMENT_CALLS)))
    async def test_foreign_documents(
        self, store: Store, owner: str, stranger: str, foreign_project: UUID, call: str
    ) -> None:
        """A document of another owner, and one of another project, are not found in one's own project."""
        mine, other = await a_project(store, owner), await self._make_foreign(store, owner)
        for document in (document_id(foreign_project, "saffron.md"), document_id(other, "saffron.md"), uuid4()):
            assert kind(await self._outcome(call, store, owner, mine, document)) == WITHOUT_DOCUMENT.get(call, NotFound)
        assert await searchable(store, owner, mine) == {}
        await self._untouched(store, stranger, foreign_project)
        await self._untouched(store, owner, other)

    @pytest.mark.parametrize("call", sorted(PROJECT_CALLS))
    async def test_foreign_projects_with_the_same_id(
        self, store: Store, owner: str, stranger: str, foreign_project: UUID, call: str
    ) -> None:
        """Who has a project with the id of another owner's reads and changes their own only."""
        await a_project(store, owner, "Mine", id=foreign_project)
        await put(store, owner, foreign_project, "mine.md", "mine")
        outcome = await self._outcome(call, store, owner, foreign_project, document_id(foreign_project, "saffron.md"))
        assert "private" not in repr(outcome).lower()
        await self._untouched(store, stranger, foreign_project)

    async def test_lists_show_the_owners_own_projects(self, store: Store, owner: str, foreign_project: UUID) -> None:
        """Lists and conversations know nothing of projects of others."""
        assert await all_projects(store, owner) == []
        assert (await store.projects.list_projects(owner, total=True)).total == 0
        mine = await a_project(store, owner)
        assert [each.id for each in await all_projects(store, owner)] == [mine]
        with pytest.raises(NotFound):
            await store.create_conversation(owner, NewConversation(project_id=foreign_project))

    # --- what becomes of them with their owner ------------------------------------------------------------

    async def test_renaming_an_owner_with_documents(self, store: Store, owner: str, stranger: str) -> None:
        """Projects go to the new owner with documents, chunks, vectors and counts; the old owner has nothing."""
        id_ = await self._make_foreign(store, owner)
        await put(store, owner, id_, "tea.md", "tea", 300)
        (talk,) = [await store.create_conversation(owner, NewConversation(project_id=id_))]
        before = await store.projects.get_project(owner, id_)
        documents = (await store.documents.list_documents(owner, id_)).items
        seen = await searchable(store, owner, id_)
        assert await store.rename_owner(owner, stranger) == 1
        assert await store.rename_owner(owner, stranger) == 0
        after = await store.projects.get_project(stranger, id_)
        moved = {"owner_id": stranger, "version": after.version, "updated_at": after.updated_at}
        assert after == before.model_copy(update=moved)
        assert (after.version, after.updated_at) >= (before.version, before.updated_at)
        assert (await store.documents.list_documents(stranger, id_)).items == [
            each.model_copy(update={"owner_id": stranger}) for each in documents
        ]
        assert await searchable(store, stranger, id_) == seen
        assert [each.id for each in await whole_list(store, stranger, project_id=id_)] == [talk.id]
        for call in sorted(set(PROJECT_CALLS) - {"delete_project"}):
            outcome = await self._outcome(call, store, owner, id_, documents[0].id)
            assert kind(outcome) is NotFound
        assert await all_projects(store, owner) == []
        assert (await put(store, stranger, id_, "tea.md", "mint", 2)).change == "replaced"
        assert await store.documents.delete_document(stranger, id_, document_id(id_, "saffron.md"))
        assert await searchable(store, stranger, id_) == {"tea.md": said("mint", 2)}
        receipt = await store.erase_owner(owner)
        assert (receipt.projects, receipt.documents, receipt.chunks, receipt.vectors) == (0, 0, 0, 0)
        receipt = await store.erase_owner(stranger)
        assert (receipt.projects, receipt.documents, receipt.chunks, receipt.vectors) == (1, 1, 2, 0)

    async def test_renaming_would_lose_documents(self, store: Store, owner: str, stranger: str) -> None:
        """Renaming is refused, and changes nothing, if both have a project with one id, and documents would be lost."""
        id_ = await self._make_foreign(store, owner)
        await a_project(store, stranger, "Theirs", id=id_)
        await put(store, stranger, id_, "tea.md", "tea")
        talk = await store.create_conversation(owner, NewConversation(project_id=id_))
        with pytest.raises(Conflict, match="same id"):
            await store.rename_owner(owner, stranger)
        await self._untouched(store, owner, id_)
        assert await searchable(store, stranger, id_) == {"tea.md": said("tea")}
        assert await whole_list(store, owner) == [talk]
        await store.documents.delete_document(owner, id_, document_id(id_, "saffron.md"))
        assert await store.rename_owner(owner, stranger) == 1
        assert await searchable(store, stranger, id_) == {"tea.md": said("tea")}
        assert (await store.projects.get_project(stranger, id_)).name == "Theirs"

    async def test_erasing_an_owner_with_documents(self, store: Store, owner: str, stranger: str) -> None:
        """A receipt counts projects, documents, chunks and vectors; nothing of them is left, and nobody else's goes."""
        ids = [await self._make_foreign(store, owner) for _ in range(3)]
        await put(store, owner, ids[0], "tea.md", "tea", 600)
        await put(store, owner, ids[1], "saffron.md", "replaced", 2)
        contents = await all_contents(store, owner, ids[0])
        for content in contents:
            await store.documents.add_vectors(owner, ids[0], content, OTHER_SPACE, {0: vector(0)})
        await a_project(store, stranger, "Private", id=ids[0])
        await put(store, stranger, ids[0], "saffron.md", CALLED_WITH, 3, space=SPACE)
        talk = await store.create_conversation(owner, NewConversation(project_id=ids[0]))
        await store.append(owner, talk.id, [user("sage")])
        receipt = await store.erase_owner(owner)
        assert (receipt.projects, receipt.documents, receipt.chunks) == (3, 4, 608)
        assert (receipt.vectors, receipt.conversations, receipt.messages, receipt.remaining) == (8, 1, 1, 0)
        assert await all_projects(store, owner) == []
        for id_ in ids:
            with pytest.raises(NotFound):
                await store.documents.contents(owner, id_)
        await self._untouched(store, stranger, ids[0])
        await a_project(store, owner, id=ids[0])
        assert await searchable(store, owner, ids[0]) == {}
        assert await all_entries(store, owner, ids[0], contents[0]) == []
        again = await store.erase_owner(owner)
        assert (again.projects, again.documents, again.chunks, again.vectors, again.remaining) == (1, 0, 0, 0, 0)

    async def test_erasing_an_owner_who_stores_documents(self, store: Store, owner: str) -> None:
        """Uploads that race with an erasure are erased, too, or raise; what is begun after it is whole."""
        id_ = await a_project(store, owner)
        await put(store, owner, id_, "before.md", "before", 200)
        calls = [put(store, owner, id_, f"{n}.md", f"tea {n}", 150) for n in range(6)]
        outcomes = await asyncio.gather(*calls[:3], store.erase_owner(owner), *calls[3:], return_exceptions=True)
        refused = {type(each) for each in outcomes if isinstance(each, BaseException)}
        assert refused <= {NotFound, Conflict}
        assert await all_projects(store, owner) == []
        await store.projects.create_project(owner, NewProject(id=id_, name="Again"))
        await put(store, owner, id_, "0.md", "tea 0", 150, limits=ProjectLimits(1, 150))
        assert await searchable(store, owner, id_) == {"0.md": said("tea 0", 150)}
        receipt = await store.erase_owner(owner)
        assert (receipt.projects, receipt.documents, receipt.chunks, receipt.remaining) == (1, 1, 150, 0)

    @pytest.mark.parametrize(("one", "other"), [("ada", "Ada"), ("ada", "ada "), ("ada", "ada\x00"), ("é", "e\u0301")])
    async def test_owners_of_documents_are_compared_exactly(self, store: Store, one: str, other: str) -> None:
        """Owners are equal only if they are the same text, and are kept unchanged."""
        prefix = someone()
        one, other = prefix + one, prefix + other
        id_ = await self._make_foreign(store, one)
        with pytest.raises(NotFound):
            await store.projects.get_project(other, id_)
        await store.projects.create_project(other, NewProject(id=id_, name="Other"))
        assert await searchable(store, other, id_) == {}
        document = (await put(store, other, id_, "saffron.md", "mine")).document
        assert (document.owner_id, (await all_projects(store, other))[0].owner_id) == (other, other)
        await store.projects.update_project(other, id_, ProjectChange(name="Mine"))
        await store.erase_owner(other)
        await self._untouched(store, one, id_)


def kind(outcome: object) -> object:
    """The class of an error, or the value that was returned."""
    return outcome[0] if isinstance(outcome, tuple) and isinstance(outcome[0], type) else outcome
