"""Checks of schema revisions, the same for every database."""

from collections.abc import Sequence
from typing import NamedTuple

from chatkeep.errors import SchemaMismatch

NEEDS_UPGRADE = "the database has no schema of chatkeep, or an older one; run `chatkeep db upgrade`"


class Schema(NamedTuple):
    """The schema that a database has."""

    revision: str | None = None
    """None without a schema."""
    served_from: str | None = None
    """The oldest revision whose processes can use it. None before 0005: only those of its own revision."""

    def serves(self, revisions: Sequence[str]) -> bool:
        """Whether a process whose newest revision is the last of these can use it: during a rolling upgrade the schema
        is one revision ahead of some processes."""
        is_newer = self.revision not in (*revisions, None)
        return self.revision == revisions[-1] or (is_newer and self.served_from in revisions)


def target_revision(revision: str, revisions: Sequence[str]) -> str:
    """Return the revision that is asked for, the newest for "head". Raises SchemaMismatch for an unknown one."""
    target = revisions[-1] if revision == "head" else revision
    if target not in (*revisions, "base"):
        raise SchemaMismatch(f"the revisions of the schema are base, {', '.join(revisions)}", got=target)
    return target


def needs_migration(schema: Schema, target: str, revisions: Sequence[str], name: str) -> bool:
    """Whether a database is not at `target` yet. Raises SchemaMismatch, naming it, if it is too new."""
    if target == revisions[-1] and schema.serves(revisions):
        return False
    if schema.revision not in (*revisions, None):
        raise SchemaMismatch(
            f"the database has a newer schema than this version of chatkeep knows ({revisions[-1]}); upgrade chatkeep",
            got=f"{name}: {schema.revision}",
        )
    return (schema.revision or "base") != target
