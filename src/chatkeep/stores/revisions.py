"""Checks of schema revisions, the same for every database."""

from collections.abc import Sequence

from chatkeep.errors import SchemaMismatch


def target_revision(revision: str, revisions: Sequence[str]) -> str:
    """Return the revision that is asked for, the newest for "head". Raises SchemaMismatch for an unknown one."""
    target = revisions[-1] if revision == "head" else revision
    if target not in (*revisions, "base"):
        raise SchemaMismatch(f"the revisions of the schema are base, {', '.join(revisions)}", got=target)
    return target


def needs_migration(current: str | None, target: str, revisions: Sequence[str], name: str) -> bool:
    """Whether a database is not at `target` yet. Raises SchemaMismatch, naming it, if it is newer than this version."""
    if current not in (*revisions, None):
        raise SchemaMismatch(
            f"the database has a newer schema than this version of chatkeep knows ({revisions[-1]}); upgrade chatkeep",
            got=f"{name}: {current}",
        )
    return (current or "base") != target
