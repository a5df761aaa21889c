"""The port of projects: what conversations and documents belong to.

A store has one as `store.projects`. Nobody is told whether somebody else has a project: it is NotFound.
"""

from abc import ABC, abstractmethod
from datetime import datetime
from typing import Any
from uuid import UUID

from pydantic import Field

from chatkeep.model import METADATA, Given, GivenId, Page, Record, digest, one_line
from chatkeep.validation import untyped
from chatkeep.values import JsonObject, ShortText


class NewProject(Given):
    """A project to be created. Creating it again with the same id and the same values changes nothing."""

    id: GivenId = Field(default=untyped(None), description="Made by the store (UUID version 7) when absent.")
    name: ShortText
    metadata: JsonObject = Field(default_factory=dict, description=METADATA)

    def fingerprint(self) -> bytes:
        """Return a hash of 16 bytes of the values that the caller sent, without the id."""
        return digest([f"name={one_line(self.name)}"], self.metadata, "")


class Project(Record):
    """A project as it is stored."""

    id: UUID
    owner_id: str
    name: str
    metadata: dict[str, Any]
    documents: int = Field(description="How many it has.")
    chunks: int = Field(description="How many passages its documents have.")
    space: str | None = Field(
        description="The embedder, and the dimension, of the vectors that are searched. Null: by words alone."
    )
    version: int = Field(description="Moved by every change of what a search may find.")
    created_at: datetime
    updated_at: datetime = Field(description="Moved by every change of the project and of its documents.")


class ProjectChange(Given):
    """Fields of a project to change; omitted fields keep their value. JSON Merge Patch (RFC 7396)."""

    name: ShortText = Field(default_factory=str, description="It can be changed, not removed.")
    metadata: JsonObject | None = Field(default=None, description="Merged into the metadata: null removes a key.")


PROJECT_FIELDS = set(Project.model_fields)


class Projects(ABC):
    """Projects, by owner. Methods raise as those of `Store` do, without NotYours."""

    @abstractmethod
    async def create_project(self, owner: str, new: NewProject) -> Project:
        """Store a project without documents and return it.

        Idempotent by id: the same id with the same values returns the stored project as it is now. Raises Conflict if
        the id is used for other values.
        """

    @abstractmethod
    async def get_project(self, owner: str, project_id: UUID | str) -> Project:
        """Return a project."""

    @abstractmethod
    async def list_projects(
        self, owner: str, *, limit: int = 10, cursor: str | None = None, offset: int = 0, total: bool = False
    ) -> Page[Project]:
        """Return projects, those first that were created last."""

    @abstractmethod
    async def update_project(self, owner: str, project_id: UUID | str, change: ProjectChange) -> Project:
        """Change the given fields and return the project. Idempotent, but that it moves `updated_at`."""

    @abstractmethod
    async def delete_project(self, owner: str, project_id: UUID | str) -> bool:
        """Delete a project with its conversations and documents; return whether there was one.

        The project is gone at once, with its documents; its conversations go after it, some at a time, and the call
        returns when all rows are removed. A removal that is cut off goes on when the store is migrated, or when the
        project is deleted or created again.
        """
