"""Erasing an owner."""

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

from chatkeep.errors import NotFound
from chatkeep.model import Conversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, dense, numbered, seqs, someone, user
from chatkeep.testing.reference import found, others_appending, whole_list, whole_log, whole_search


class EraseContract(Contract):
    """Erasing an owner."""

    async def test_receipt_counts_what_went(self, store: Store, owner: str) -> None:
        """Erasing an owner removes and counts everything of theirs; a second time it counts zero."""
        stranger = someone()
        for who in (owner, stranger):
            for number in range(3):
                conversation = await store.create_conversation(who, NewConversation(context_id="kitchen"))
                await store.append(
                    who, conversation.id, [user(f"sage tea {number}"), assistant(""), assistant("mint tea")]
                )
        before = datetime.now(UTC)
        receipt = await store.erase_owner(owner)
        assert (receipt.owner_id, receipt.remaining) == (owner, 0)
        assert (receipt.conversations, receipt.messages, receipt.search_entries) == (3, 9, 6)
        assert before <= receipt.erased_at <= datetime.now(UTC)
        assert await whole_list(store, owner) == []
        assert await found(store, owner, "tea") == set()
        again = await store.erase_owner(owner)
        counts = again.conversations, again.messages, again.search_entries, again.remaining
        assert counts == (0, 0, 0, 0)
        assert len(await whole_list(store, stranger)) == 3
        assert len(await whole_search(store, stranger, "tea")) == 6

    async def test_owner_who_never_was(self, store: Store, owner: str) -> None:
        """Erasing an unknown owner is no error."""
        receipt = await store.erase_owner(owner)
        assert (receipt.conversations, receipt.messages, receipt.remaining) == (0, 0, 0)

    async def test_owner_begins_anew(self, store: Store, owner: str) -> None:
        """After an erasure the owner and their ids can be used again; nothing of before is visible."""
        new = NewConversation(id=uuid4(), title="Tea")
        conversation = await store.create_conversation(owner, new)
        await store.append(owner, conversation.id, [user("sage", id=uuid4()), *numbered(1_200)])
        await store.erase_owner(owner)
        again = await store.create_conversation(owner, new)
        assert (again.last_seq, again.head_id) == (0, None)
        (message,) = await store.append(owner, conversation.id, [user("mint")])
        assert await store.log(owner, conversation.id) == [message]
        assert await found(store, owner, "sage") == set()

    async def test_erasure_while_the_owner_writes(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Appends that race with an erasure are erased, too, or raise NotFound."""
        refused = asyncio.Event()

        async def write() -> None:
            while True:
                try:
                    await store.append(owner, conversation.id, numbered(5, "sage"))
                except NotFound:
                    refused.set()
                    return
                await asyncio.sleep(0)

        await store.append(owner, conversation.id, numbered(1_500, "sage"))
        writers = [asyncio.create_task(write()) for _ in range(4)]
        await asyncio.sleep(0.01)
        receipt = await store.erase_owner(owner)
        await asyncio.gather(*writers)
        assert refused.is_set()
        assert receipt.remaining == 0
        assert receipt.conversations == 1
        assert receipt.messages >= 1_500
        assert await whole_list(store, owner) == []
        assert await found(store, owner, "sage") == set()

    async def test_erasure_while_the_owner_creates(self, store: Store, owner: str) -> None:
        """An erasure ends although others never stop to create conversations; what was there before is gone."""
        before = [await store.create_conversation(owner, NewConversation()) for _ in range(20)]
        created: list[UUID] = []
        ended = asyncio.Event()

        async def create() -> None:
            while not ended.is_set():
                created.append((await store.create_conversation(owner, NewConversation())).id)
                await asyncio.sleep(0.001)

        creators = [asyncio.create_task(create()) for _ in range(4)]
        await asyncio.sleep(0.02)
        receipt = await asyncio.wait_for(store.erase_owner(owner), 20)
        count = len(created)
        ended.set()
        await asyncio.gather(*creators)
        assert receipt.conversations >= len(before)
        left = {each.id for each in await whole_list(store, owner)}
        assert left.isdisjoint(each.id for each in before)
        assert left.issuperset(created[count:])
        last = await store.erase_owner(owner)
        assert (last.conversations, last.remaining) == (len(left), 0)

    async def test_erasure_beside_other_owners(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Other owners write and read during an erasure, and lose nothing."""
        stranger = someone()
        theirs = await store.create_conversation(stranger, NewConversation())
        await store.append(owner, conversation.id, numbered(2_000))
        async with others_appending(store, stranger, theirs.id):
            receipt = await store.erase_owner(owner)
        assert (receipt.messages, receipt.remaining) == (2_000, 0)
        log = await whole_log(store, stranger, theirs.id)
        assert seqs(log) == dense(len(log))
        assert len(await whole_search(store, stranger, "meanwhile", limit=1_000)) == len(log)
