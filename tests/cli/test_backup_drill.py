"""Copies of a store in use have what was acknowledged: a short `make backup-drill`, and whether it sees damage."""

import random
import time
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import apsw
import pytest
from benchmarks.attack_server import Checkout
from benchmarks.backup_drill import Plan, drill
from benchmarks.drill_copy import compare
from benchmarks.drill_ledger import Append, Change, Counts, Create, Effect, Erase, Trail
from benchmarks.drill_places import place
from benchmarks.drill_seed import seed, shape
from benchmarks.drill_writers import message

from chatkeep import ConversationChange, open_store

SHORT = Plan(rounds=1, writers=4, seconds_between=0.2, long_messages=1_100, quiet=20, owners=["ada"])
LONG = replace(SHORT, rounds=2)


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        pytest.param("sqlite", SHORT, id="sqlite"),
        pytest.param("sqlite", LONG, id="sqlite long", marks=pytest.mark.apart),
        pytest.param("postgresql", LONG, id="postgresql", marks=pytest.mark.long),
    ],
)
async def test_copies_of_a_store_in_use_are_whole(kind: str, plan: Plan, tmp_path: Path) -> None:
    """Nothing that was acknowledged before an export or a backup began is missing, hidden or out of place in it."""
    with place(kind, tmp_path) as made:
        result = await drill(Checkout.at(None), made, [made], plan)
    assert result.wrong == {}, result.lines()
    assert result.in_exports.messages > plan.rounds * plan.long_messages
    assert result.backups == plan.rounds


# --- whether it sees damage -----------------------------------------------------------------------------------


class Copy:
    """A SQLite file that is as its ledger says."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trails: list[Trail] = []

    async def write(self, *effects: Effect) -> Trail:
        """Write a conversation."""
        async with open_store(f"sqlite:///{self.path}") as store:
            self.trails.append(await seed(store, "ada", effects))
        return self.trails[-1]

    def damage(self, statement: str, *arguments: bytes) -> None:
        """Execute a statement behind the store's back."""
        connection = apsw.Connection(str(self.path), flags=apsw.SQLITE_OPEN_READWRITE)
        connection.execute(statement, arguments)
        assert connection.changes() == 1, statement
        connection.close()

    async def wrong(self, began: float | None = None) -> dict[str, int]:
        """What the drill finds wrong with it, as a backup that began now, unless told otherwise."""
        now = time.monotonic()
        counts = await compare(f"sqlite:///{self.path}", self.trails, began or now, now, backup=True)
        return counts.wrong(torn=True)


@pytest.fixture
def copied(tmp_path: Path) -> Copy:
    """An empty file."""
    return Copy(tmp_path / "copy.db")


CHANCE = random.Random(3)
FIRST, SECOND, THIRD = (Append(message(CHANCE)) for _ in range(3))


async def test_a_good_copy_has_nothing_wrong(copied: Copy) -> None:
    """Conversations of every shape are found to be as they were written, also those that are not there yet."""
    for number in range(12):
        await copied.write(*shape(number, CHANCE))
    unsent = Trail("ada", uuid4())
    unsent.begin(Create(), time.monotonic() + 60)
    copied.trails.append(unsent)
    assert await copied.wrong() == {}


async def test_a_missing_message_is_seen(copied: Copy) -> None:
    """The last message of a conversation is not there."""
    await copied.write(FIRST, SECOND, THIRD)
    copied.damage("DELETE FROM messages WHERE id = ?", THIRD.id.bytes)
    assert (await copied.wrong())["missing"] == 1


async def test_a_missing_conversation_is_seen(copied: Copy) -> None:
    """A conversation with its messages is not there."""
    trail = await copied.write(FIRST, SECOND, THIRD)
    async with open_store(f"sqlite:///{copied.path}") as store:
        await store.delete_conversation(trail.owner, trail.id)
    assert await copied.wrong() == {"missing": 3}


async def test_a_wrong_head_is_seen(copied: Copy) -> None:
    """The head is a message that it was once, but no longer when the last message was there."""
    await copied.write(FIRST, SECOND, THIRD)
    copied.damage("UPDATE conversations SET head_seq = 1, head_id = ?", FIRST.id.bytes)
    assert await copied.wrong() == {"heads": 1, "hidden": 2, "torn": 1}


async def test_a_head_that_was_moved_back_is_expected(copied: Copy) -> None:
    """The rejected branch is shown, because the head says so."""
    await copied.write(FIRST, SECOND, THIRD, Change({"head_id": FIRST.body["id"]}))
    copied.damage("UPDATE conversations SET head_seq = 3, head_id = ?", THIRD.id.bytes)
    assert (await copied.wrong())["heads"] == 1


async def test_a_deleted_message_that_comes_back_is_seen(copied: Copy) -> None:
    """A tombstone has become a message again."""
    await copied.write(FIRST, SECOND, THIRD, Erase(SECOND.id))
    copied.damage("UPDATE messages SET status = 'complete', content = 'again' WHERE id = ?", SECOND.id.bytes)
    assert (await copied.wrong())["returned"] == 1


async def test_a_message_that_became_a_tombstone_is_seen(copied: Copy) -> None:
    """A message has lost its content."""
    await copied.write(FIRST, SECOND, THIRD)
    copied.damage("UPDATE messages SET status = 'deleted', content = '' WHERE id = ?", SECOND.id.bytes)
    assert (await copied.wrong())["missing"] == 1


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE messages SET content = 'x' WHERE seq = 2", {"differing": 1}),
        ("UPDATE messages SET created_at = 1 WHERE seq = 2", {"differing": 1}),
        ("UPDATE messages SET fingerprint = zeroblob(16) WHERE seq = 1", {"refused": 1}),
        ("UPDATE conversations SET title = 'x'", {"outdated": 1, "torn": 1}),
        ("UPDATE conversations SET metadata = '{}'", {"outdated": 1, "torn": 1}),
        ("UPDATE messages SET parent_id = NULL WHERE seq = 2", {"disordered": 1, "differing": 1}),
    ],
)
async def test_other_damage_is_seen(copied: Copy, statement: str, found: dict[str, int]) -> None:
    """A field differs from what was acknowledged, or a message cannot be sent again."""
    await copied.write(FIRST, SECOND)
    copied.damage(statement)
    assert await copied.wrong() == found


@pytest.mark.parametrize("happened", [True, False])
async def test_what_is_under_way_may_be_there_or_not(copied: Copy, happened: bool) -> None:
    """A deletion that was sent before the copy was made, and not acknowledged, may have happened."""
    trail = await copied.write(FIRST, SECOND)
    trail.begin(Erase(FIRST.id), 0.0)
    if happened:
        async with open_store(f"sqlite:///{copied.path}") as store:
            await store.delete_message(trail.owner, trail.id, FIRST.id)
    assert await copied.wrong() == {}


async def test_a_backup_of_two_moments_is_seen(copied: Copy) -> None:
    """It has a request that was sent after another one was acknowledged that it does not have."""
    first, second = await copied.write(FIRST), await copied.write(SECOND)
    lost, kept = first.begin(Change({"title": "lost"}), 1.0), second.begin(Change({"title": "kept"}), 3.0)
    lost.acknowledged, kept.acknowledged = 2.0, 4.0
    async with open_store(f"sqlite:///{copied.path}") as store:
        await store.update_conversation(second.owner, second.id, ConversationChange(title="kept"))
    assert await copied.wrong(began=0.5) == {"torn": 1}
    lost.acknowledged = 3.5
    assert await copied.wrong(began=0.5) == {}


def test_only_a_backup_must_be_of_one_moment() -> None:
    """An export may have a title of one moment and messages of the next."""
    assert Counts(torn=1).wrong(torn=True) == {"torn": 1}
    assert Counts(torn=1).wrong(torn=False) == {}
