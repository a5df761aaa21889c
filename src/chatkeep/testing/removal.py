"""Renaming and erasing an owner who goes on writing."""

import asyncio
from uuid import UUID

import pytest

from chatkeep.errors import NotFound, NotYours
from chatkeep.model import NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, dense, seqs, someone
from chatkeep.testing.projects import project, project_name
from chatkeep.testing.reference import whole_list, whole_log

WRITERS = 8
RENAMES = 20
TALKS, MESSAGES = 6, 20
"""Conversations that each writer creates at most, and messages in each: every rename moves all of them."""


class RemovalContract(Contract):
    """Whoever renames or erases an owner, what was acknowledged is nowhere lost."""

    async def test_writing_all_through_renames(self, store: Store, owner: str) -> None:
        """Every conversation is under exactly one of two owners, with every message that was acknowledged."""
        names = owner, someone()
        renamed = 0
        acknowledged: dict[UUID, set[UUID]] = {}

        async def write(number: int) -> None:
            mine: list[UUID] = []
            while renamed < RENAMES:
                await asyncio.sleep(0.002)
                if len(mine) <= TALKS * renamed // RENAMES:  # all through
                    talk = await store.create_conversation(names[number % 2], NewConversation())
                    mine.append(talk.id)
                    acknowledged[talk.id] = set()
                for talk_id in mine:
                    if len(acknowledged[talk_id]) < MESSAGES:
                        acknowledged[talk_id].add(await _say(store, names, talk_id))

        writers = [asyncio.create_task(write(number)) for number in range(WRITERS)]
        for number in range(RENAMES):
            await store.rename_owner(names[number % 2], names[1 - number % 2])
            await asyncio.sleep(0)
            renamed += 1
        await asyncio.gather(*writers)
        owned = {name: {talk.id for talk in await whole_list(store, name)} for name in names}
        assert owned[names[0]].isdisjoint(owned[names[1]])
        assert owned[names[0]] | owned[names[1]] == acknowledged.keys()
        for name, talks in owned.items():
            for talk_id in talks:
                log = await whole_log(store, name, talk_id)
                assert seqs(log) == dense(len(log))
                assert {message.id for message in log} == acknowledged[talk_id]

    async def test_renamed_owner_keeps_projects(self, store: Store, owner: str) -> None:
        """Projects go to the new owner with their conversations; of two with one id the new owner's stays."""
        other = someone()
        both, mine = await project(store, owner, "Mine"), await project(store, owner, "Only mine")
        await project(store, other, "Theirs", id_=both)
        made = [await store.create_conversation(owner, NewConversation(project_id=id_)) for id_ in (both, mine)]
        assert await store.rename_owner(owner, other) == 2
        assert [c.id for c in await whole_list(store, other, project_id=both)] == [made[0].id]
        assert [c.id for c in await whole_list(store, other, project_id=mine)] == [made[1].id]
        assert await project_name(store, other, both) == "Theirs"
        assert await project_name(store, other, mine) == "Only mine"
        with pytest.raises(NotFound):
            await store.create_conversation(owner, NewConversation(project_id=mine))
        receipt = await store.erase_owner(other)
        assert (receipt.projects, receipt.remaining) == (2, 0)

    async def test_renaming_to_an_owner_with_the_same_contexts(self, store: Store, owner: str) -> None:
        """Both owners have used get-or-create in the same contexts: the new one has all conversations after it."""
        new = someone()
        contexts = "kitchen", None
        before = {
            name: [await store.get_or_create_conversation(name, NewConversation(context_id=c)) for c in contexts]
            for name in (owner, new)
        }
        assert await store.rename_owner(owner, new) == 2
        assert await whole_list(store, owner) == []
        ids = {conversation.id for conversations in before.values() for conversation in conversations}
        assert {conversation.id for conversation in await whole_list(store, new)} == ids
        for context in contexts:
            same = NewConversation(context_id=context)
            got = await asyncio.gather(*(store.get_or_create_conversation(new, same) for _ in range(4)))
            assert len({conversation.id for conversation in got}) == 1
            assert got[0].id in ids
            assert (await store.get_or_create_conversation(owner, same)).id not in ids

    async def test_writing_all_through_erasures(self, store: Store, owner: str) -> None:
        """What was stored before an erasure is gone, and what was begun after it is there."""
        erased = asyncio.Event()
        before: set[UUID] = set()
        after: dict[UUID, list[UUID]] = {}

        async def write() -> None:
            number = 0
            while True:
                await asyncio.sleep(0.005)
                kept = erased.is_set()
                if not kept and number == TALKS:
                    continue
                number += 1
                try:
                    talk = await store.create_conversation(owner, NewConversation())
                    said = [await _say(store, (owner,), talk.id) for _ in range(2)]
                except NotFound:  # it was erased between
                    assert not kept
                    continue
                if kept:
                    after[talk.id] = said
                    return
                before.add(talk.id)

        writers = [asyncio.create_task(write()) for _ in range(4)]
        gone: set[UUID] = set()
        for _ in range(3):
            await asyncio.sleep(0.02)
            gone |= before
            await store.erase_owner(owner)
        erased.set()
        await asyncio.gather(*writers)
        there = {talk.id for talk in await whole_list(store, owner)}
        assert gone.isdisjoint(there)
        assert len(after) == len(writers)
        assert after.keys() <= there
        for talk_id, said in after.items():
            assert [message.id for message in await whole_log(store, owner, talk_id)] == said


async def _say(store: Store, owners: tuple[str, ...], talk_id: UUID) -> UUID:
    """Append a message to a conversation that one of the owners has, and return its id."""
    missed = 0
    while True:
        await asyncio.sleep(0)
        for owner in owners:
            try:
                (message,) = await store.append(owner, talk_id, [assistant("meanwhile")])
            except (NotFound, NotYours):
                missed += 1
                if missed > 10 * RENAMES or len(owners) == 1:
                    raise
            else:
                return message.id
