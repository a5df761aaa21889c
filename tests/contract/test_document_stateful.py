"""The projects and documents of a store and a plain model of them go through the same random steps, and never differ.

CHATKEEP_HYPOTHESIS_PROFILE=thorough runs many more of them.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from unittest import mock
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from chatkeep import Conflict, ImportedConversation, NewConversation, NotFound, Store, open_store
from chatkeep.documents import ProjectLimits, document_id
from chatkeep.errors import ProjectFull
from chatkeep.projects import NewProject, ProjectChange
from chatkeep.stores.documents import DocumentStore
from chatkeep.testing import someone, whole_list
from chatkeep.testing.document_steps import (
    OTHER_SPACE,
    SPACE,
    Searchable,
    all_projects,
    content_of,
    passages,
    put,
    searchable,
    vector,
)
from conftest import STORES

COUNTS = {"tea": 1, "mint": 3, "sage": 140}
"""Texts, and how many chunks each has: the last is stored in two slices."""

WHICH = st.integers(0, 11)
PATHS = st.sampled_from(["a.md", "b/ü.md", "c"])
TEXTS = st.sampled_from(["tea", "mint", "mint", "tea", "sage"])
SPACES = st.sampled_from([SPACE, OTHER_SPACE])
NAMES = st.sampled_from(["Garden", "Orchard"])
METADATA = st.sampled_from([{}, {"a": 1}, {"a": {"b": [None, "\x00"]}}])
LIMITS = st.sampled_from(
    [ProjectLimits(), ProjectLimits(), ProjectLimits(2, 200), ProjectLimits(1), ProjectLimits(9, 4)]
)
SELDOM = st.integers(0, 5)
"""A step is taken where this is 0, so that what others built up lasts for a while."""


@dataclass
class ModelDocument:
    """A document: its text, and the numbers of the chunks that have vectors, by space."""

    text: str
    vectors: dict[str, set[int]] = field(default_factory=dict)


@dataclass
class ModelProject:
    """A project."""

    name: str
    metadata: dict[str, Any]
    sent: tuple[str, dict[str, Any]] | None
    """Name and metadata as they were sent first; none of a project that came with an import."""
    space: str | None = None
    documents: dict[str, ModelDocument] = field(default_factory=dict)
    conversations: set[UUID] = field(default_factory=set)
    version: int = -1
    """The version that the project had when it was looked at last."""
    seen: dict[str, Searchable] | None = None
    """What was found in it then."""

    @property
    def chunks(self) -> int:
        """How many chunks it has."""
        return sum(COUNTS[document.text] for document in self.documents.values())

    def vectors(self) -> int:
        """How many vectors it has, of all spaces."""
        return sum(len(each) for document in self.documents.values() for each in document.vectors.values())

    def searchable(self) -> dict[str, Searchable]:
        """What a search finds of it."""
        return {
            path: Searchable(
                document.text,
                tuple(chunk.text for chunk in passages(document.text, COUNTS[document.text])),
                {n: vector(n) for n in document.vectors.get(self.space or "", ())},
            )
            for path, document in self.documents.items()
        }

    def is_full(self, path: str, text: str, limits: ProjectLimits) -> bool:
        """Whether a text has no room."""
        before = self.documents.get(path)
        chunks = self.chunks + COUNTS[text] - (COUNTS[before.text] if before else 0)
        return (before is None and len(self.documents) >= limits.documents) or chunks > limits.chunks


class CutOffError(Exception):
    """The process is killed here."""


class DocumentMachine(RuleBasedStateMachine):
    """Random steps by two owners, who use the same ids."""

    def __init__(self, runner: asyncio.Runner, url: str, opened_last: list[Store]) -> None:
        super().__init__()
        self.runner, self.url, self.opened_last = runner, url, opened_last
        self.owners = [someone(), someone()]
        self.ids = [uuid4() for _ in range(3)]
        self.projects: dict[tuple[str, UUID], ModelProject] = {}
        """The latest last."""

    @property
    def store(self) -> Store:
        """The store, as it was opened last."""
        return self.opened_last[0]

    def run[T](self, call: Coroutine[Any, Any, T]) -> T:
        """Run one call of the store."""
        return self.runner.run(call)

    def refuse(self, call: Coroutine[Any, Any, object], error: type[Exception]) -> None:
        """Run one call, which must raise this."""
        with pytest.raises(error) as caught:
            self.run(call)
        assert type(caught.value) is error

    def key(self, which: int) -> tuple[str, UUID]:
        """The owner and id of a project that is mostly there."""
        if self.projects and which < 10:
            return list(self.projects)[which % len(self.projects)]
        return self.owners[which % 2], self.ids[which % 3]

    def of(self, owner: str) -> Iterator[tuple[UUID, ModelProject]]:
        """The projects of an owner."""
        return ((id_, project) for (name, id_), project in self.projects.items() if name == owner)

    # --- projects -----------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Begin with a project of each owner, with the same id."""
        for owner in (0, 1):
            self.create(owner, 0, "Garden", {})
            self.put(owner, "a.md", "mint", SPACE if owner else None, ProjectLimits())

    @rule(owner=st.integers(0, 1), id_=st.integers(0, 2), name=NAMES, metadata=METADATA)
    def create(self, owner: int, id_: int, name: str, metadata: dict[str, Any]) -> None:
        """Create a project, for the first time, again, or with other values."""
        key = self.owners[owner], self.ids[id_]
        call = self.store.projects.create_project(key[0], NewProject(id=key[1], name=name, metadata=metadata))
        there = self.projects.get(key)
        if there is not None and (there.sent or (there.name, there.metadata)) != (name, metadata):
            self.refuse(call, Conflict)
            return
        made = self.run(call)
        if there is None:
            there = self.projects[key] = ModelProject(name, metadata, (name, metadata))
            assert made.created_at == made.updated_at
        assert (made.name, made.metadata, made.documents) == (there.name, there.metadata, len(there.documents))

    @rule(which=WHICH, name=st.none() | NAMES, metadata=METADATA)
    def update(self, which: int, name: str | None, metadata: dict[str, Any]) -> None:
        """Change name and metadata, which changes nothing of what is searched."""
        key = self.key(which)
        values: dict[str, Any] = {"metadata": None} if name is None else {"name": name, "metadata": metadata}
        call = self.store.projects.update_project(*key, ProjectChange(**values))
        project = self.projects.get(key)
        if project is None:
            self.refuse(call, NotFound)
            return
        project.name = name or project.name
        project.metadata = {} if name is None else project.metadata | metadata
        changed = self.run(call)
        assert (changed.name, changed.metadata, changed.version) == (project.name, project.metadata, project.version)

    @rule(which=WHICH, seldom=st.integers(0, 2))
    def delete(self, which: int, seldom: int) -> None:
        """Delete a project, which may not be there."""
        if not seldom:
            key = self.key(which)
            assert self.run(self.store.projects.delete_project(*key)) is (self.projects.pop(key, None) is not None)

    # --- documents ----------------------------------------------------------------------------------------

    @rule(which=WHICH, path=PATHS, text=TEXTS, space=st.none() | SPACES, limits=LIMITS)
    def put(self, which: int, path: str, text: str, space: str | None, limits: ProjectLimits) -> None:
        """Store a document, replace it, or store it again."""
        key = self.key(which)
        project, arguments = self.projects.get(key), dict[str, Any]({} if space is None else {"space": space})
        call = put(self.store, *key, path, text, COUNTS[text], limits=limits, **arguments)
        if project is None:
            self.refuse(call, NotFound)
            return
        before = project.documents.get(path)
        if before is not None and before.text == text:
            assert self.run(call).change == "unchanged"
        elif project.is_full(path, text, limits):
            self.refuse(call, ProjectFull)
        else:
            assert self.run(call).change == ("replaced" if before else "new")
            self.stored(project, path, text, space)

    @staticmethod
    def stored(project: ModelProject, path: str, text: str, space: str | None) -> None:
        """Take over that a document was stored."""
        vectors = {space: set(range(COUNTS[text]))} if space else {}
        project.documents[path] = ModelDocument(text, vectors)
        project.space = project.space or space

    @rule(which=WHICH, path=PATHS, text=TEXTS, at=st.sampled_from(["_store_slice", "_show", "_remove_rubbish"]))
    def cut_off(self, which: int, path: str, text: str, at: str) -> None:
        """Store a document, and be killed on the way: it has the text before it, or all of the new one."""
        key = self.key(which)
        project = self.projects.get(key)
        before = project.documents.get(path) if project else None
        if project is None or (before is not None and before.text == text):
            return
        call = put(self.store, *key, path, text, COUNTS[text])
        with mock.patch.object(DocumentStore, at, side_effect=CutOffError):
            if before is None and at == "_remove_rubbish":
                with suppress(CutOffError):  # there may be some of an earlier call
                    self.run(call)
            else:
                self.refuse(call, CutOffError)
        if at == "_remove_rubbish":
            self.stored(project, path, text, None)

    @rule(which=WHICH, path=PATHS, seldom=st.integers(0, 1))
    def delete_document(self, which: int, path: str, seldom: int) -> None:
        """Delete a document, which may not be there."""
        if seldom:
            return
        key = self.key(which)
        project, call = self.projects.get(key), self.store.documents.delete_document(*key, document_id(key[1], path))
        if project is None:
            self.refuse(call, NotFound)
        else:
            assert self.run(call) is (project.documents.pop(path, None) is not None)

    # --- vectors ------------------------------------------------------------------------------------------

    @rule(which=WHICH, path=PATHS, text=TEXTS, space=SPACES, numbers=st.sets(st.integers(0, 4), max_size=3))
    def add_vectors(self, which: int, path: str, text: str, space: str, numbers: set[int]) -> None:
        """Add vectors to the text that a document has, has no more, or never had."""
        key = self.key(which)
        project = self.projects.get(key)
        content = content_of(key[1], path, text, COUNTS[text])
        call = self.store.documents.add_vectors(*key, content, space, {n: vector(n) for n in numbers})
        if project is None:
            self.refuse(call, NotFound)
            return
        document = project.documents.get(path)
        is_there = document is not None and document.text == text
        assert self.run(call) is is_there
        if document is None or not is_there:
            return
        found = document.vectors.setdefault(space, set())
        found |= {n for n in numbers if n < COUNTS[text]}
        project.space = project.space or space
        left = self.run(self.store.documents.without_vectors(*key, content, space, limit=9))
        assert [chunk.n for chunk in left] == list(islice((n for n in range(COUNTS[text]) if n not in found), 9))

    @rule(which=WHICH, space=SPACES, seldom=st.integers(0, 2))
    def use_space(self, which: int, space: str, seldom: int) -> None:
        """Search another space, and forget the vectors of all others."""
        if seldom:
            return
        key = self.key(which)
        project, call = self.projects.get(key), self.store.documents.use_space(*key, space)
        if project is None:
            self.refuse(call, NotFound)
            return
        assert self.run(call).space == space
        project.space = space
        for document in project.documents.values():
            document.vectors = {name: found for name, found in document.vectors.items() if name == space}

    # --- conversations ------------------------------------------------------------------------------------

    @rule(which=WHICH)
    def converse(self, which: int) -> None:
        """Create a conversation in a project."""
        key = self.key(which)
        project = self.projects.get(key)
        call = self.store.create_conversation(key[0], NewConversation(project_id=key[1]))
        if project is None:
            self.refuse(call, NotFound)
        else:
            project.conversations.add(self.run(call).id)

    @rule(owner=st.integers(0, 1), id_=st.integers(0, 2), name=st.none() | NAMES)
    def bring(self, owner: int, id_: int, name: str | None) -> None:
        """Import a conversation, which makes its project if there is none."""
        key, new = (self.owners[owner], self.ids[id_]), uuid4()
        given = ImportedConversation(id=new, project_id=key[1], project_name=name)
        assert self.run(self.store.import_conversation(key[0], given)).created
        self.projects.setdefault(key, ModelProject(name or str(key[1]), {}, None)).conversations.add(new)

    # --- owners -------------------------------------------------------------------------------------------

    @rule(owner=st.integers(0, 1), seldom=SELDOM)
    def erase(self, owner: int, seldom: int) -> None:
        """Erase an owner. What is left of calls that were killed is counted, too."""
        if seldom:
            return
        name = self.owners[owner]
        gone = [self.projects.pop(key) for key in list(self.projects) if key[0] == name]
        receipt = self.run(self.store.erase_owner(name))
        conversations = sum(len(project.conversations) for project in gone)
        assert (receipt.projects, receipt.conversations, receipt.remaining) == (len(gone), conversations, 0)
        assert receipt.documents >= sum(len(project.documents) for project in gone)
        assert receipt.chunks >= sum(project.chunks for project in gone)
        assert receipt.vectors >= sum(project.vectors() for project in gone)

    @rule(owner=st.integers(0, 1), seldom=SELDOM)
    def rename(self, owner: int, seldom: int) -> None:
        """Give everything of an owner to a new one."""
        if seldom:
            return
        old, new = self.owners[owner], someone()
        self.owners[owner] = new
        moved = dict(self.of(old))
        conversations = sum(len(project.conversations) for project in moved.values())
        assert self.run(self.store.rename_owner(old, new)) == conversations
        assert self.run(all_projects(self.store, old)) == []
        self.projects = {(new if name == old else name, id_): each for (name, id_), each in self.projects.items()}

    @rule(seldom=SELDOM)
    def migrate(self, seldom: int) -> None:
        """Remove what is left of calls that were killed."""
        if not seldom:
            self.run(self.store.migrate())

    @precondition(lambda self: not self.url.startswith("memory"))
    @rule(seldom=SELDOM)
    def reopen(self, seldom: int) -> None:
        """Close the store and open it again."""
        if not seldom:
            self.run(self.store.aclose())
            self.opened_last[0] = self.run(opened(self.url))

    # --- looks --------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        """Lists, counts, texts, terms and vectors are those of the model; what a search may find moves the version."""
        for owner in self.owners:
            listed = self.run(all_projects(self.store, owner, 2))
            assert {project.id for project in listed} == {id_ for id_, _ in self.of(owner)}
            for project in listed:
                model = self.projects[owner, project.id]
                found = self.run(searchable(self.store, owner, project.id))
                assert found == model.searchable()
                values = project.name, project.metadata, project.space, project.documents, project.chunks
                assert values == (model.name, model.metadata, model.space, len(model.documents), model.chunks)
                assert project.version >= model.version
                if found != model.seen:
                    assert project.version > model.version
                model.version, model.seen = project.version, found
                talks = self.run(whole_list(self.store, owner, project_id=project.id, limit=100))
                assert {talk.id for talk in talks} == model.conversations

    def teardown(self) -> None:
        """Leave nothing to the next run, and nothing uncounted: after the last removal, as much as there is."""
        for owner in self.owners:
            assert self.run(self.store.erase_owner(owner)).remaining == 0


async def opened(url: str) -> Store:
    """The store at a URL."""
    return await open_store(url)


def marks_of(store: str, share: int) -> pytest.MarkDecorator | tuple[()]:
    """Which runs make a test's parameters a part of."""
    if share == 1 and store in ("postgres", "mongodb"):
        return pytest.mark.apart
    return () if (store, share) == ("memory", 5) else pytest.mark.long


@pytest.mark.timeout(600)  # where there is a difference, hypothesis takes its time to find the shortest way to it
@pytest.mark.parametrize(
    ("store_url", "share"),
    [
        pytest.param(name, share, id=f"{name}-{share}", marks=marks_of(name, share))
        for name in STORES
        for share in (1, 5)
    ],
    indirect=["store_url"],
)
def test_documents_never_differ_from_the_model(store_url: str, share: int) -> None:
    """Whatever two owners do, in whatever order, killed or not: every result and every error is the plain model's.

    The short run has a fifth of the examples, and is always made in memory; on MongoDB both have a fourth of that: its
    emulator is slow. That with all is in `make apart` on servers.
    """
    if store_url.startswith("mongodb"):
        share *= 4
    with asyncio.Runner() as runner:
        opened_last = [runner.run(opened(store_url))]

        class Machine(DocumentMachine):
            def __init__(self) -> None:
                super().__init__(runner, store_url, opened_last)

        try:
            run_state_machine_as_test(Machine, settings=settings(max_examples=max(1, settings().max_examples // share)))
        finally:
            runner.run(opened_last[0].aclose())
