"""Projects over rows: the port of `chatkeep.projects`, written once for every database."""

from typing import Any
from uuid import UUID

from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import ChatkeepError, Conflict, NotFound
from chatkeep.ids import new_id, valid_id
from chatkeep.model import Conversation, Page
from chatkeep.projects import NewProject, Project, ProjectChange, Projects
from chatkeep.stores.project_rows import ProjectKey, ProjectPlace
from chatkeep.stores.providers import ProviderStore
from chatkeep.stores.rows import Rows
from chatkeep.stores.slices import PageSize
from chatkeep.stores.window import ListFilter, ListPlace, cursor_time, valid_page
from chatkeep.values import now, patched, to_micros, valid_json, valid_owner

CURSOR = "projects"


class ProjectStore[R: Rows](ProviderStore[R], Projects):
    """Projects of owners."""

    @property
    def projects(self) -> Projects:
        return self

    def _project_key(self, owner: str, project_id: UUID | str) -> ProjectKey:
        return ProjectKey(*self._key(owner, project_id))

    async def create_project(self, owner: str, new: NewProject) -> Project:
        valid_json("metadata", new.metadata, self._metadata_limits)
        key = self._project_key(owner, new.id or new_id())
        with self._writes.of_call():
            made = await self._write(lambda rows: self._create_project(rows, key, new))
            while made is None:
                await self._purge_project(key)
                made = await self._write(lambda rows: self._create_project(rows, key, new))
            return made

    async def _create_project(self, rows: R, key: ProjectKey, new: NewProject) -> Project | None:
        """Create a project, or find it; None while one with this id is being removed."""
        made = await rows.create_project(key, new) or await rows.project(key)
        if made is None:
            return None
        kept = await rows.project_fingerprint(key) or NewProject(name=made.name, metadata=made.metadata).fingerprint()
        if kept != new.fingerprint():
            raise Conflict("this project id is already used for other values", got=key.id)
        return made

    async def get_project(self, owner: str, project_id: UUID | str) -> Project:
        key = self._project_key(owner, project_id)
        return await self._read(lambda rows: self._project(rows, key))

    async def _project(self, rows: R, key: ProjectKey, *, lock: bool = False) -> Project:
        found = await rows.project(key, lock=lock)
        if found is None:
            raise no_project(key)
        return found

    async def list_projects(
        self, owner: str, *, limit: int = 10, cursor: str | None = None, offset: int = 0, total: bool = False
    ) -> Page[Project]:
        valid_page(limit, offset, cursor)
        scope, stored = (valid_owner(owner),), self._owner(owner)
        after = None if cursor is None else _place(cursor, scope)

        async def read(rows: R, room: int) -> Page[Project]:
            found, cut = await rows.listed_projects(stored, after, PageSize(limit + 1, room), offset)
            shown = found[:limit]
            following = _cursor(shown[-1], scope) if cut or len(found) > limit else None
            return Page(items=shown, total=await rows.count_projects(stored) if total else None, next=following)

        return await self._read_page(stored, limit, read, much=total)

    async def update_project(self, owner: str, project_id: UUID | str, change: ProjectChange) -> Project:
        key = self._project_key(owner, project_id)
        with self._writes.of_call():
            async with self._changes.of(key.owner):
                return await self._write(lambda rows: self._update_project(rows, key, change))

    async def _update_project(self, rows: R, key: ProjectKey, change: ProjectChange) -> Project:
        before = await self._project(rows, key, lock=True)
        changed: dict[str, Any] = {name: getattr(change, name) for name in change.model_fields_set}
        if not changed:
            return before
        values = changed | {"updated_at": max(before.updated_at, now())}
        changed = dict(values)
        if "metadata" in changed:
            changed["metadata"], values["metadata"] = patched(before.metadata, change.metadata, self._metadata_limits)
        await rows.set_project(key, values)
        return before.model_copy(update=changed)

    async def delete_project(self, owner: str, project_id: UUID | str) -> bool:
        return await self._in_background(self._delete_project(owner, self._project_key(owner, project_id)))

    async def _delete_project(self, owner: str, key: ProjectKey) -> bool:
        hidden = await self._write(lambda rows: rows.hide_project(key))
        if hidden:
            await self._forget_replies_in(owner, key)
            await self._purge_project(key)
        return hidden

    async def _forget_replies_in(self, owner: str, key: ProjectKey) -> None:
        """Empty the replies that show conversations of a project, to which none is added any more."""
        conversations = await self._conversations_in(key, None)
        while conversations:
            for conversation in conversations:
                await self._access.forget_replies(owner, conversation.id)
            conversations = await self._conversations_in(key, ListPlace(conversations[-1].id))

    async def _conversations_in(self, key: ProjectKey, after: ListPlace | None) -> list[Conversation]:
        """Some conversations of a project, by id."""
        which, size = ListFilter(project_id=key.id), PageSize(100, self._options.max_page_bytes)
        found, _ = await self._read(lambda rows: rows.listed(key.owner, which, "id", after, size, 0))
        return found


def no_project(key: ProjectKey) -> ChatkeepError:
    """The error of a project that is not there, or is somebody else's: nobody is told which."""
    return NotFound("there is no such project", got=key.id)


def _place(cursor: str, scope: tuple[object, ...]) -> ProjectPlace:
    micros, id_ = decode_cursor(cursor, CURSOR, scope, int, str)
    return ProjectPlace(cursor_time(micros), valid_id(id_))


def place_of(project: Project) -> ProjectPlace:
    """The place of a project in the list."""
    return ProjectPlace(project.created_at, project.id)


def _cursor(project: Project, scope: tuple[object, ...]) -> str:
    return encode_cursor(CURSOR, scope, to_micros(project.created_at), project.id.hex)
