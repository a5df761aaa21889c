"""The statements of projects in MongoDB, with their documents, chunks and vectors.

What keeps two processes apart is a write of the document that both need: `lock` counts it up. Of two transactions that
lock one project, or one document, MongoDB fails one with a write conflict, which then begins again and sees what the
other did. Whoever adds chunks or vectors has locked their document, and whoever removes a document's row deletes it: so
nothing is added to a document that is gone. Whoever makes a document has locked its project, in the same way.

Chunks and vectors have an index each, which is their identity, and the order in which they are read. Whoever adds some
first looks which are there: a repeated transaction, whose commit's answer was lost, would be aborted by a duplicate.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import UUID

from pymongo import ASCENDING, DESCENDING, ReturnDocument
from pymongo.asynchronous.cursor import AsyncCursor
from pymongo.errors import DuplicateKeyError

from chatkeep.documents import Chunk, ChunkRange, Content, IndexedChunk, Nearest, NewChunk, NewDocument
from chatkeep.documents import Document as DocumentRecord
from chatkeep.projects import NewProject, Project
from chatkeep.stores.mongo.database import Collection as MongoCollection
from chatkeep.stores.mongo.database import Document, View
from chatkeep.stores.mongo.documents import (
    CHUNK,
    CONTENT,
    PROJECT,
    changed,
    created_project,
    document_bytes,
    document_id,
    micros,
    new_chunk,
    new_document,
    new_project,
    of_document,
    of_project,
    project_id,
    to_binary,
    to_chunk,
    to_content,
    to_document,
    to_document_row,
    to_project,
    to_uuid,
)
from chatkeep.stores.project_rows import DocumentKey, DocumentRow, ProjectKey, ProjectPlace
from chatkeep.stores.rows import Rows, stored_bytes
from chatkeep.stores.slices import PageSize, Part, Removed
from chatkeep.values import EPOCH, now

PURGED = 500
"""Most documents of a collection that one transaction removes of a project."""

BATCH, RANGES = 100, 200
"""Most chunks, and most ranges, that one query reads: to decode more takes the event loop some milliseconds."""

LOCK: Document = {"$inc": {"locks": 1}}
"""The write that is a conflict for every other transaction that changes a project, or a document."""

VISIBLE: Document = {"deleted_at": None}
SHOWN: Document = {"content": {"$exists": True}}
BY_CREATION = [("created_at", DESCENDING), ("id", DESCENDING)]
BY_PLACE = [("content", ASCENDING), ("n", ASCENDING)]
BY_N = [("n", ASCENDING)]

MILLISECOND = timedelta(milliseconds=1)

type Numbered = Mapping[bytes, Mapping[int, bytes]]
"""What was read of chunks, or of vectors, by document and content, and by number."""


class MongoProjects(Rows):
    """Documents of projects, as one transaction sees them, or each operation for itself."""

    __slots__ = ("_view",)

    def __init__(self, view: View) -> None:
        """Take the view."""
        self._view = view

    # --- projects -----------------------------------------------------------------------------------------

    async def has_project(self, owner: str, id_: UUID) -> bool:
        """Whether the owner has a project now. Nothing keeps it: what creates a conversation has no transaction, and
        looks again afterwards; what creates a document locks the project.

        Outside of the transaction: that of an import must not begin before its conversation is created, or it would
        not see it.
        """
        view = self._view
        found = await view.projects.find_one(view.one(owner, project_id(owner, id_)), {"deleted_at": 1})
        return found is not None and not found.get("deleted_at")

    async def _find_project(self, key: ProjectKey, fields: Document) -> Document | None:
        """Some fields of a project, hidden or not."""
        view = self._view
        return await view.projects.find_one(view.one(key.owner, project_id(*key)), fields, session=view.session)

    async def make_project(self, owner: str, id_: UUID, name: str) -> None:
        """Outside of the transaction, in which a project that is there would end it."""
        with suppress(DuplicateKeyError):
            await self._view.projects.insert_one(new_project(owner, id_, name))

    async def project_name(self, owner: str, id_: UUID) -> str | None:
        found = await self._find_project(ProjectKey(owner, id_), {"name": 1})
        return None if found is None else found["name"]

    async def create_project(self, key: ProjectKey, new: NewProject) -> Project | None:
        """Looks first: in a transaction, a duplicate is a conflict with somebody who was faster, and begins it again.

        Writes the owner's document, too: whoever removes the owner meanwhile meets a conflict, or sees the project.
        """
        if await self._find_project(key, {"_id": 1}) is not None:
            return None
        view, document = self._view, created_project(key, new)
        noted = {"$inc": {"projects": 1}, "$setOnInsert": {"created_at": document["created_at"]}}
        await view.projects.insert_one(document, session=view.session)
        await view.users.update_one({"_id": key.owner, "owner_id": key.owner}, noted, upsert=True, session=view.session)
        return to_project(document)

    async def project(self, key: ProjectKey, *, lock: bool = False) -> Project | None:
        found = await (self._locked_project(key) if lock else self._find_project(key, PROJECT))
        return None if found is None or found.get("deleted_at") else to_project(found)

    async def _locked_project(self, key: ProjectKey) -> Document | None:
        """A project, hidden or not, that nobody else changes, hides or removes until the transaction ends."""
        view = self._view
        where = view.one(key.owner, project_id(*key))
        return await view.projects.find_one_and_update(where, LOCK, PROJECT, session=view.session)

    async def project_fingerprint(self, key: ProjectKey) -> bytes | None:
        found = await self._find_project(key, {"fingerprint": 1})
        return None if found is None or "fingerprint" not in found else bytes(found["fingerprint"])

    async def listed_projects(
        self, owner: str, after: ProjectPlace | None, size: PageSize, offset: int
    ) -> Part[Project]:
        where: Document = {"owner_id": owner, **VISIBLE}
        if after is not None:
            moment = micros(after.created_at)
            behind = [{"created_at": {"$lt": moment}}, {"created_at": moment, "id": {"$lt": to_binary(after.id)}}]
            where |= {"created_at": {"$lte": moment}, "$or": behind}
        page = {"skip": offset, "limit": size.limit, "batch_size": size.limit, "session": self._view.session}
        options = {"sort": BY_CREATION, "hint": "by_creation"}
        async with self._view.projects.find(where, PROJECT, **options, **page) as cursor:
            found = await within_page(cursor, size.max_bytes)
        return Part([to_project(each) for each in found.items], found.cut)

    async def count_projects(self, owner: str) -> int:
        view = self._view
        return await view.projects.count_documents({"owner_id": owner, **VISIBLE}, session=view.session)

    async def set_project(self, key: ProjectKey, values: Mapping[str, Any]) -> None:
        view = self._view
        where = view.one(key.owner, project_id(*key))
        await view.projects.update_one(where, changed(values), session=view.session)

    async def claim_embedding(self, key: ProjectKey, worker: UUID, lease: timedelta) -> bool:
        """One command, by the clock of the server. A pipeline, but with chatkeep's own numbers and ids only."""
        until, milliseconds = {"$ifNull": ["$embedding_until", EPOCH]}, int(lease / MILLISECOND)
        is_mine = {"$eq": ["$embedding_worker", to_binary(worker)]}
        may = {"$or": [is_mine, {"$lte": [until, "$$NOW"]}]}
        if milliseconds:
            due = {"$lte": [until, {"$add": ["$$NOW", milliseconds * 2 // 3]}]}
            writes = {"$or": [{"$and": [is_mine, due]}, {"$lte": [until, "$$NOW"]}]}
        else:
            writes = may
        taken = {
            "embedding_worker": {"$cond": [may, to_binary(worker), "$embedding_worker"]},
            "embedding_until": {"$cond": [writes, {"$add": ["$$NOW", milliseconds]}, "$embedding_until"]},
        }
        view = self._view
        where, fields = view.one(key.owner, project_id(*key)) | VISIBLE, {"embedding_worker": 1}
        found = await view.projects.find_one_and_update(
            where, [{"$set": taken}], fields, return_document=ReturnDocument.AFTER, session=view.session
        )
        return found is not None and to_uuid(found["embedding_worker"]) == worker

    # --- documents ----------------------------------------------------------------------------------------

    async def document(self, key: DocumentKey, *, lock: bool = False) -> DocumentRow | None:
        view = self._view
        where = view.one(key.owner, document_id(key))
        if lock:
            found = await view.documents.find_one_and_update(where, LOCK, session=view.session)
        else:
            found = await view.documents.find_one(where, session=view.session)
        return None if found is None else to_document_row(found)

    async def create_document(self, key: DocumentKey, new: NewDocument, staged: UUID) -> None:
        """Its project is locked: nobody removes that meanwhile."""
        await self._view.documents.insert_one(new_document(key, new, staged), session=self._view.session)

    async def set_document(self, key: DocumentKey, values: Mapping[str, Any]) -> None:
        view = self._view
        where = view.one(key.owner, document_id(key))
        await view.documents.update_one(where, changed(values), session=view.session)

    async def remove_document(self, key: DocumentKey) -> None:
        view = self._view
        await view.documents.delete_one(view.one(key.owner, document_id(key)), session=view.session)

    async def listed_documents(
        self, key: ProjectKey, after: str | None, size: PageSize, offset: int
    ) -> Part[DocumentRecord]:
        """MongoDB compares texts by their bytes in UTF-8."""
        where = of_project(key, **SHOWN) | ({} if after is None else {"file_path": {"$gt": after}})
        by_path = [("file_path", ASCENDING)]
        found = await self._find_some(self._view.documents, where, sort=by_path, skip=offset, limit=size.limit)
        return Part(list(map(to_document, found)))

    async def contents(self, key: ProjectKey, after: UUID | None, limit: int) -> list[Content]:
        above = {} if after is None else {"id": {"$gt": to_binary(after)}}
        where, by_id = of_project(key, **above, **SHOWN), [("id", ASCENDING)]
        found = await self._find_some(self._view.documents, where, CONTENT, sort=by_id, hint="by_id", limit=limit)
        return list(map(to_content, found))

    async def with_rubbish(self, key: ProjectKey, limit: int) -> list[UUID]:
        where = of_project(key, has_rubbish=True)
        found = await self._find_some(self._view.documents, where, {"_id": 0, "id": 1}, limit=limit)
        return [to_uuid(each["id"]) for each in found]

    async def _find_some(
        self, collection: MongoCollection, where: Document, fields: Document | None = None, **options: Any
    ) -> list[Document]:
        if "limit" in options:
            options["batch_size"] = min(options["limit"], BATCH)
        return await collection.find(where, fields, session=self._view.session, **options).to_list()

    # --- chunks and vectors -------------------------------------------------------------------------------

    async def add_chunks(self, key: DocumentKey, content: UUID, first: int, chunks: Sequence[NewChunk]) -> None:
        new = {n: new_chunk(key, content, n, chunk) for n, chunk in enumerate(chunks, first)}
        await self._add(self._view.chunks, of_document(key, content=to_binary(content)), new)

    async def add_vectors(self, key: DocumentKey, content: UUID, space: str, vectors: Mapping[int, bytes]) -> None:
        of_content = of_document(key, content=to_binary(content))
        there = await self._numbers(self._view.chunks, of_content, list(vectors))
        of_it = of_content | {"space": space}
        new = {n: of_it | {"n": n, "vector": vector} for n, vector in vectors.items() if n in there}
        await self._add(self._view.vectors, of_it, new)

    async def _add(self, collection: MongoCollection, of_it: Document, new: Mapping[int, Document]) -> None:
        """Store what is not there, by number."""
        there = await self._numbers(collection, of_it, list(new))
        missing = [document for n, document in new.items() if n not in there]
        if missing:
            await collection.insert_many(missing, session=self._view.session)

    async def _numbers(self, collection: MongoCollection, of_it: Document, wanted: list[int]) -> set[int]:
        """Those of the numbers that are there; read from the index."""
        where = of_it | {"n": {"$in": wanted}}
        found = await self._find_some(collection, where, {"_id": 0, "n": 1}, batch_size=len(wanted) + 1)
        return {each["n"] for each in found}

    async def index_entries(
        self, key: ProjectKey, ranges: Sequence[ChunkRange], space: str | None
    ) -> list[list[IndexedChunk]]:
        """Chunks, then vectors. What goes between the two is missing in the second: the project has a newer version
        then, of which the reader makes its index anew."""
        view, found = self._view, list[list[IndexedChunk]]()
        terms = await self._read_ranges(view.chunks, of_project(key), ranges, "terms")
        vectors: Numbered = {}
        if space is not None:
            vectors = await self._read_ranges(view.vectors, of_project(key, space=space), ranges, "vector")
        for which in ranges:
            chunks, its = terms.get(b"".join(_place(which)), {}), vectors.get(b"".join(_place(which)), {})
            numbers = [n for n in range(which.first, which.last + 1) if n in chunks]
            found.append([IndexedChunk(n, chunks[n], its.get(n)) for n in numbers])
        return found

    async def _read_ranges(
        self, collection: MongoCollection, of_it: Document, ranges: Sequence[ChunkRange], field: str
    ) -> Numbered:
        """One field of what is in some ranges. Joined ids are plain bytes; the driver's are compared in Python."""
        found: defaultdict[bytes, dict[int, bytes]] = defaultdict(dict)
        fields = {"_id": 0, "document_id": 1, "content": 1, "n": 1, field: 1}
        for some in _groups(ranges, BATCH):
            for each in await self._find_some(collection, _within(of_it, some), fields, batch_size=BATCH + 1):
                found[each["document_id"] + each["content"]][each["n"]] = each[field]
            await asyncio.sleep(0)  # they were decoded, and the next query is made, in the same turn of the loop
        return found

    async def chunks(self, key: ProjectKey, ranges: Sequence[ChunkRange], max_bytes: int) -> list[Chunk]:
        found: list[Chunk] = []
        for some in _groups(ranges, BATCH):
            read = await self._find_some(self._view.chunks, _within(of_project(key), some), CHUNK)
            by_place = {(each["document_id"], each["content"], each["n"]): each for each in read}
            for place in ((*_place(which), n) for which in some for n in range(which.first, which.last + 1)):
                if place in by_place:
                    max_bytes -= stored_bytes(by_place[place]["text"])
                    if max_bytes < 0 and found:
                        return found
                    found.append(to_chunk(by_place[place]))
        return found

    async def count_vectors(self, key: ProjectKey, space: str) -> dict[UUID, int]:
        """Counted by the server, from the index alone."""
        counted = [{"$match": of_project(key, space=space)}, {"$group": {"_id": "$content", "vectors": {"$sum": 1}}}]
        found = await self._view.vectors.aggregate(counted, session=self._view.session, hint="place")
        return {to_uuid(each["_id"]): each["vectors"] async for each in found}

    async def without_vectors(self, key: DocumentKey, content: UUID, space: str, limit: int) -> list[int]:
        """Reads what is behind the vectors, if those are the first ones, as they are after a worker that went on."""
        of_content, found = of_document(key, content=to_binary(content)), list[int]()
        first = await self._first_gap(of_content | {"space": space})
        while len(found) < limit:
            above = of_content | {"n": {"$gte": first}}
            chunks = await self._find_some(self._view.chunks, above, {"_id": 0, "n": 1}, sort=BY_N, limit=BATCH)
            if not chunks:
                break
            numbers = [each["n"] for each in chunks]
            there = await self._numbers(self._view.vectors, of_content | {"space": space}, numbers)
            found += [n for n in numbers if n not in there]
            first = numbers[-1] + 1
        return found[:limit]

    async def _first_gap(self, vectors: Document) -> int:
        """The number behind the last vector if there is one for each number before, else 0; read from the index."""
        by: dict[str, Any] = {"sort": [("n", DESCENDING)], "limit": 1}
        last = await self._find_some(self._view.vectors, vectors, {"_id": 0, "n": 1}, **by)
        if not last:
            return 0
        count = await self._view.vectors.count_documents(vectors, session=self._view.session)
        return count if count == last[0]["n"] + 1 else 0

    async def nearest_chunks(self, key: ProjectKey, space: str, vector: bytes, limit: int) -> list[Nearest] | None:  # noqa: ARG002 - there is no way
        """None: MongoDB itself has no search by vectors; Atlas has one, which is not asked."""
        return None

    # --- removal ------------------------------------------------------------------------------------------

    async def remove_rubbish(self, key: DocumentKey, keep: Collection[UUID]) -> Removed | None:
        """The first chunks by content and number, and their vectors up to the same number: vectors have chunks."""
        where = of_document(key, content={"$nin": list(map(to_binary, keep))})
        fields = {"_id": 0, "content": 1, "n": 1}
        found = await self._find_some(self._view.chunks, where, fields, sort=BY_PLACE, limit=PURGED)
        last = {each["content"]: each["n"] for each in found}
        if not last:
            return None
        spaces, vectors, session = await self._spaces(ProjectKey(*key[:2])), 0, self._view.session
        for content, n in last.items():
            gone = of_document(key, content=content, n={"$lte": n})
            for space in spaces:
                vectors += (
                    await self._view.vectors.delete_many(gone | {"space": space}, session=session)
                ).deleted_count
            await self._view.chunks.delete_many(gone, session=session)
        return Removed(chunks=len(found), vectors=vectors)

    async def _spaces(self, key: ProjectKey) -> list[str]:
        """The spaces of a project's vectors: a look into the index for each, of which there are one or two."""
        found, last = list[str](), ""
        while True:
            where, by = of_project(key, space={"$gt": last}), [("space", ASCENDING)]
            some = await self._find_some(self._view.vectors, where, {"_id": 0, "space": 1}, sort=by, limit=1)
            if not some:
                return found
            last = some[0]["space"]
            found.append(last)

    async def remove_vectors(self, key: ProjectKey, space: str) -> bool:
        return await self._remove_some(self._view.vectors, of_project(key, space={"$ne": space}), PURGED) > 0

    async def _remove_some(self, collection: MongoCollection, where: Document, limit: int) -> int:
        """Remove some documents of one owner, and count them."""
        found = await self._find_some(collection, where, {"_id": 1}, limit=limit)
        if not found:
            return 0
        gone = {"owner_id": where["owner_id"], "_id": {"$in": [each["_id"] for each in found]}}
        return (await collection.delete_many(gone, session=self._view.session)).deleted_count

    async def hide_project(self, key: ProjectKey) -> bool:
        view = self._view
        where, change = view.one(key.owner, project_id(*key)), {"$set": {"deleted_at": micros(now())}}
        return (await view.projects.update_one(where, change, session=view.session)).matched_count == 1

    async def hide_projects(self, owner: str) -> None:
        """Also those that are gone and have left something: a process of revision 0004 removes projects alone."""
        view, hidden = self._view, {"deleted_at": micros(now())}
        await view.projects.update_many({"owner_id": owner, **VISIBLE}, {"$set": hidden}, session=view.session)
        for id_ in await self.projects_with_documents(owner):
            identity = project_id(owner, id_)
            made = {"$setOnInsert": new_project(owner, id_, "") | hidden}
            del made["$setOnInsert"]["_id"], made["$setOnInsert"]["owner_id"]
            where = {"_id": identity, "owner_id": owner}
            await view.projects.update_one(where, made, upsert=True, session=view.session)

    async def projects_with_documents(self, owner: str) -> list[UUID]:
        """The ids of an owner's projects of which there are documents, chunks or vectors, whether they are there or
        not: a look into an index for each."""
        view = self._view
        each = [
            await self._projects_in(collection, owner) for collection in (view.documents, view.chunks, view.vectors)
        ]
        return sorted(set[UUID]().union(*each))

    async def _projects_in(self, collection: MongoCollection, owner: str) -> set[UUID]:
        found, above, by = set[UUID](), dict[str, Any](), [("project_id", ASCENDING)]
        while True:
            some = await self._find_some(
                collection, {"owner_id": owner} | above, {"_id": 0, "project_id": 1}, sort=by, limit=1
            )
            if not some:
                return found
            found.add(to_uuid(some[0]["project_id"]))
            above = {"project_id": {"$gt": some[0]["project_id"]}}

    async def hidden_projects(self, owner: str, limit: int) -> list[UUID]:
        where = {"owner_id": owner, "deleted_at": {"$gt": 0}}
        found = await self._find_some(self._view.projects, where, {"_id": 0, "id": 1}, limit=limit)
        return [to_uuid(each["id"]) for each in found]

    async def is_hidden(self, key: ProjectKey) -> bool:
        """Whether a project is there, and being removed. One with the same id that was made since is not."""
        found = await self._find_project(key, {"deleted_at": 1})
        return found is not None and bool(found.get("deleted_at"))

    async def purge_project(self, key: ProjectKey) -> Removed | None:
        """Remove a part of a large project, or all of a small one.

        The row of a document goes when no chunk is left in what the transaction sees. Whoever adds one meanwhile has
        locked the row, so that one of the two has a conflict. Conversations are created without a transaction: one that
        comes now sees afterwards that the project is hidden, or gone.
        """
        if not await self.is_hidden(key):
            return None
        view, left = self._view, PURGED
        removed = Removed()
        for name, collection in {"vectors": view.vectors, "chunks": view.chunks, "documents": view.documents}.items():
            count = await self._remove_some(collection, of_project(key), left)
            removed, left = removed.plus(Removed(**{name: count})), left - count
            if not left:
                return removed
        if await view.conversations.find_one(of_project(key), {"_id": 1}, session=view.session) is not None:
            return removed
        done = await view.projects.delete_one(view.one(key.owner, project_id(*key)), session=view.session)
        return removed.plus(Removed(projects=done.deleted_count))


async def within_page(cursor: AsyncCursor[Document], max_bytes: int) -> Part[Document]:
    """The first documents that have room in a page; the server sends at most 16 MB more."""
    found: list[Document] = []
    async for each in cursor:
        max_bytes -= document_bytes(each)
        if max_bytes < 0 and found:
            return Part(found, cut=True)
        found.append(each)
    return Part(found)


def _groups(ranges: Sequence[ChunkRange], most: int) -> Iterator[list[ChunkRange]]:
    """Ranges in groups of at most `most` chunks together; larger ones in parts."""
    group, room = list[ChunkRange](), most
    for which in ranges:
        first = which.first
        while first <= which.last:
            last = min(which.last, first + room - 1)
            group.append(which._replace(first=first, last=last))
            first, room = last + 1, room - (last + 1 - first)
            if room == 0 or len(group) == RANGES:
                yield group
                group, room = [], most
    if group:
        yield group


def _within(of_it: Document, ranges: Sequence[ChunkRange]) -> Document:
    """What is in some ranges: each is read from the index."""
    some = [of_it | _in_range(which) for which in ranges]
    return {"$or": some} if len(some) > 1 else some[0]


def _in_range(which: ChunkRange) -> Document:
    document, content = _place(which)
    return {"document_id": document, "content": content, "n": {"$gte": which.first, "$lte": which.last}}


def _place(which: ChunkRange) -> tuple[bytes, bytes]:
    """The document and the content of a range, as they are stored."""
    return to_binary(which.document_id), to_binary(which.content)
