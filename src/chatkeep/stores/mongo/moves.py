"""The statements that give projects and their documents to another owner, who is in every identity.

Both owners have a project until the end. Of its documents each is one owner's at any moment: its chunks are copied in
slices, as those of a content that is staged; then one transaction takes the content from one owner's document and gives
it to the other's, if it is still the one that was copied. So a move that was cut off goes on when it is called again,
and what is stored meanwhile moves, or stays with the owner before.
"""

from contextlib import suppress
from typing import Any
from uuid import UUID

from pymongo.errors import DuplicateKeyError

from chatkeep.access import BOTH_HAVE_PROJECT
from chatkeep.documents import NewDocument
from chatkeep.errors import Conflict
from chatkeep.stores.mongo.database import Collection as MongoCollection
from chatkeep.stores.mongo.database import Document
from chatkeep.stores.mongo.documents import (
    document_id,
    of_document,
    of_project,
    project_id,
    to_binary,
    to_uuid,
)
from chatkeep.stores.mongo.projects import SHOWN, VISIBLE, MongoProjects
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey

COPIED = 100
"""Most chunks that one transaction copies, with their vectors."""

OF_DOCUMENTS = ("documents", "chunks", "version", "embedding_worker", "embedding_until", "locks")
"""The fields of a project that say what it has, and who works at it.

The version of a copy begins at 0 and moves with each document that it is given. At the end it becomes that of the
original, which each of its documents has moved, too: so no version is used twice.
"""

SAYS = ("file_path", "title", "media_type", "bytes", "sha256", "chunks", "created_at", "updated_at")
"""The fields of a document that move with its content."""


class MongoMoves(MongoProjects):
    """Documents of projects on their way to another owner."""

    __slots__ = ()

    async def projects_of(self, owner: str) -> list[UUID]:
        """The ids of an owner's projects, without those that are being removed."""
        where = {"owner_id": owner, **VISIBLE}
        found = await self._view.projects.find(where, {"_id": 0, "id": 1}).to_list()
        return [to_uuid(each["id"]) for each in found]

    async def projects_to_move(self, owner: str) -> list[UUID]:
        """Those, and those of which only the documents are left: a process of revision 0004 moves projects alone."""
        ids = await self.projects_of(owner)
        left = [id_ for id_ in await self.projects_with_documents(owner) if id_ not in set(ids)]
        return ids + [id_ for id_ in left if not await self.is_hidden(ProjectKey(owner, id_))]

    async def check_projects(self, old: str, new: str) -> None:
        """Raise Conflict if both owners have a project, in which the one to be renamed has documents.

        The new owner's copy of one that is being moved says from whom; in it both may have documents with other paths.
        """
        for id_ in await self.projects_to_move(old):
            mine = await self._contents_of(ProjectKey(old, id_))
            there = await self._find_project(ProjectKey(new, id_), {"moved_from": 1})
            if not mine or there is None:
                continue
            is_theirs = there.get("moved_from") != old and await self._find_project(ProjectKey(old, id_), {"_id": 1})
            theirs = await self._contents_of(ProjectKey(new, id_))
            if is_theirs or any(theirs[each] != mine[each] for each in theirs.keys() & mine.keys()):
                raise Conflict(BOTH_HAVE_PROJECT)

    async def _contents_of(self, key: ProjectKey) -> dict[UUID, UUID]:
        """What documents have, by id."""
        found = await self._find_some(self._view.documents, of_project(key, **SHOWN), {"_id": 0, "id": 1, "content": 1})
        return {to_uuid(each["id"]): to_uuid(each["content"]) for each in found}

    async def copy_project(self, id_: UUID, old: str, new: str) -> None:
        """Give a project, without its documents, to another owner as well, who keeps the one that they have."""
        found = await self._view.projects.find_one(self._view.one(old, project_id(old, id_)) | VISIBLE)
        if found is not None:
            copy = {name: value for name, value in moved(found, new).items() if name not in OF_DOCUMENTS}
            with suppress(DuplicateKeyError):
                version = found.get("version", 0)
                await self._view.projects.insert_one(copy | {"moved_from": old, "moved_version": version})

    async def documents_of(self, key: ProjectKey) -> list[DocumentKey]:
        """All documents of a project, with a content or without."""
        found = await self._find_some(self._view.documents, of_project(key), {"_id": 0, "id": 1})
        return [DocumentKey(*key, to_uuid(each["id"])) for each in found]

    async def stage_copy(self, key: DocumentKey, new: str) -> DocumentRow | None:
        """Begin to copy a document, and return what is to be copied; None if it has no content, or stays where it is,
        because the new owner has another one with this path, or either has not its project any more."""
        row, copy = await self.document(key), key._replace(owner=new)
        if row is None or row.content is None or not await self._may_move(key, copy):
            return None
        there = await self.document(copy, lock=True)
        if there is None:
            await self.create_document(copy, _again(row), row.content)
        elif there.content is not None:
            return row if there.content == row.content else None
        elif there.staged != row.content:
            await self.set_document(copy, {"staged": row.content, "has_rubbish": True})
        return row

    async def _may_move(self, key: DocumentKey, copy: DocumentKey) -> bool:
        """Lock the project that a document moves to, if it is there, and the other one is not being removed."""
        if await self.is_hidden(ProjectKey(*key[:2])):
            return False
        return await self.project(ProjectKey(*copy[:2]), lock=True) is not None

    async def copy_chunks(self, key: DocumentKey, new: str, content: UUID, first: int) -> None:
        """Copy some chunks from a number on, with their vectors, if the new owner's document still waits for them."""
        copy = key._replace(owner=new)
        there = await self.document(copy, lock=True)
        if there is None or there.staged != content:
            return
        some = {"content": to_binary(content), "n": {"$gte": first, "$lt": first + COPIED}}
        await self._copy_some(self._view.chunks, of_document(key, **some), new)
        for space in await self._spaces(ProjectKey(*key[:2])):
            await self._copy_some(self._view.vectors, of_document(key, space=space, **some), new)

    async def _copy_some(self, collection: MongoCollection, where: Document, new: str) -> None:
        """Copy what a filter finds of one content, without what is there."""
        found = await self._find_some(collection, where, {"_id": 0})
        copies = {each["n"]: each | {"owner_id": new} for each in found}
        of_it = {name: value for name, value in where.items() if name != "n"} | {"owner_id": new}
        await self._add(collection, of_it, copies)

    async def give_document(self, key: DocumentKey, new: str, copied: DocumentRow) -> bool:
        """Take a content from one owner's document and give it to the other's; False if it is another one by now, or
        has other vectors, or if its copy is not whole: then it is to be copied again."""
        copy = key._replace(owner=new)
        if not await self._may_move(key, copy):
            return False
        row, there = await self.document(key, lock=True), await self.document(copy, lock=True)
        if row is None or there is None or (row.content, row.version) != (copied.content, copied.version):
            return False
        if there.content != row.content:
            if there.staged != row.content or await self._is_incomplete(copy, row):
                return False
            await self._show_copy(key, copy)
        await self.set_document(key, {"content": None, "has_rubbish": True})
        for each in (key, copy):
            await self._recount(ProjectKey(*each[:2]))
        return True

    async def _is_incomplete(self, copy: DocumentKey, row: DocumentRow) -> bool:
        """Whether chunks are missing, that others took for rubbish."""
        assert row.content is not None  # noqa: S101 - it is given away
        where = of_document(copy, content=to_binary(row.content))
        count = await self._view.chunks.count_documents(where, session=self._view.session)
        return count < row.document.chunks

    async def _show_copy(self, key: DocumentKey, copy: DocumentKey) -> None:
        """Show the new owner what the other one's document says, in the next version of the project's index."""
        view = self._view
        found = await view.documents.find_one(view.one(key.owner, document_id(key)), session=view.session) or {}
        project = await view.projects.find_one(view.one(copy.owner, project_id(*copy[:2])), session=view.session) or {}
        says = {name: found[name] for name in SAYS if name in found}
        values: Document = says | {"content": found["content"], "version": project.get("version", 0) + 1}
        change = {"$set": values, "$unset": {"staged": ""}}
        await view.documents.update_one(view.one(copy.owner, document_id(copy)), change, session=view.session)

    async def _recount(self, key: ProjectKey) -> None:
        """Count what a project has, if it is there, whose index is another one now. It is not changed by that."""
        view = self._view
        sums = {"_id": None, "documents": {"$sum": 1}, "chunks": {"$sum": "$chunks"}}
        counted = [{"$match": of_project(key, **SHOWN)}, {"$group": sums}]
        found = await (await view.documents.aggregate(counted, session=view.session)).to_list()
        counts = {name: found[0][name] if found else 0 for name in ("documents", "chunks")}
        change: Document = {"$set": counts, "$inc": {"version": 1}}
        await view.projects.update_one(view.one(key.owner, project_id(*key)), change, session=view.session)

    async def leave_document(self, key: DocumentKey, staged: UUID | None = None) -> bool:
        """Make rubbish of what a document without a content has, if that is what is given; False if it has a content,
        or something else, which stays."""
        row = await self.document(key, lock=True)
        if row is None or row.content is not None or (staged is not None and row.staged != staged):
            return False
        await self.set_document(key, {"staged": None, "has_rubbish": True})
        return True

    async def leave_project(self, key: ProjectKey, new: str) -> bool:
        """Remove a project that was moved; False if there is something in it, which was created meanwhile.

        Whoever makes a document locks the project, and whoever creates a conversation looks for it afterwards.
        """
        view = self._view
        found = await self._locked_project(key)
        if found is None or found.get("deleted_at"):
            return True
        for collection in (view.documents, view.conversations):
            if await collection.find_one(of_project(key), {"_id": 1}, session=view.session) is not None:
                return False
        await view.projects.delete_one(view.one(key.owner, project_id(*key)), session=view.session)
        copy = view.one(new, project_id(new, key.id)) | {"moved_from": key.owner}
        there = await view.projects.find_one(copy, {"moved_version": 1}, session=view.session)
        if there is not None:
            whole = {"$unset": {"moved_from": "", "moved_version": ""}, "$max": {"version": there["moved_version"]}}
            await view.projects.update_one(copy, whole, session=view.session)
        return True


def moved(document: Document, owner: str) -> Document:
    """A document with another owner, whose name is also in its `_id`."""
    return {**document, "_id": {**document["_id"], "o": owner}, "owner_id": owner}


def _again(row: DocumentRow) -> NewDocument:
    """What a document was made of."""
    known: dict[str, Any] = {name: getattr(row.document, name) for name in NewDocument.model_fields}
    return NewDocument.model_construct(**known)
