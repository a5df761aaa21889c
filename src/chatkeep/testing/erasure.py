"""Erasing an owner."""

import asyncio
import unicodedata
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import InvalidInput, NotFound
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
        """An erasure ends although others never stop to create conversations; what was there before is gone.

        So is what was created since, if whoever created it asked afterwards, and saw no trace of the erasure.
        """
        before = [await store.create_conversation(owner, NewConversation()) for _ in range(20)]
        created: list[UUID] = []
        unseen: set[UUID] = set()
        ended = asyncio.Event()

        async def create() -> None:
            while not ended.is_set():
                created.append(id_ := (await store.create_conversation(owner, NewConversation())).id)
                if await store.access.erased_at(owner) is None:
                    unseen.add(id_)
                await asyncio.sleep(0.001)

        creators = [asyncio.create_task(create()) for _ in range(4)]
        while not unseen:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.02)
        receipt = await asyncio.wait_for(store.erase_owner(owner), 20)
        count = len(created)
        ended.set()
        await asyncio.gather(*creators)
        assert receipt.conversations >= len(before)
        left = {each.id for each in await whole_list(store, owner)}
        assert left.isdisjoint(each.id for each in before)
        assert left.issuperset(created[count:])
        assert left.isdisjoint(unseen)
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

    async def test_erasure_leaves_a_trace(self, store: Store, owner: str, conversation: Conversation) -> None:
        """It tells when an owner was last erased, whatever they had, and nothing of others, also when they are back."""
        stranger = someone()
        await store.append(owner, conversation.id, [user("sage tea")])
        assert await store.access.erased_at(owner) is None
        receipts = [await store.erase_owner(owner)]
        assert await store.access.erased_at(owner) == receipts[0].erased_at
        await store.create_conversation(owner, NewConversation())
        assert await store.access.erased_at(owner) == receipts[0].erased_at
        for _ in range(2):  # the second time the owner has nothing
            await asyncio.sleep(0.002)
            receipts.append(await store.erase_owner(owner))
            assert await store.access.erased_at(owner) == receipts[-1].erased_at > receipts[-2].erased_at
        assert await store.access.erased_at(stranger) is None
        assert (await store.erase_owner(stranger)).conversations == 0
        assert await store.access.erased_at(stranger) is not None

    async def test_traces_of_similar_names(self, store: Store, owner: str) -> None:
        """Each name has its own trace: case, Unicode form, NUL and what a database may write for it included."""
        accented = unicodedata.normalize("NFC", f"{owner}e\u0301")
        names = [
            *(owner, owner.upper(), f"{owner} ", f"{owner}\0", f"{owner}\ufdd0", f"{owner}\\0", f"{owner}%"),
            *(accented, unicodedata.normalize("NFD", accented)),
            *("\0" + (who * 255)[:254] for who in (owner, owner.upper())),
        ]
        for count, name in enumerate(names):
            assert [await store.access.erased_at(each) is not None for each in names] == [
                number < count for number in range(len(names))
            ]
            moment = await store.access.note_erasure(name)
            assert await store.access.erased_at(name) == moment
        for nobody in ("", "a" * 256, "\ud800"):
            with pytest.raises(InvalidInput):
                await store.access.note_erasure(nobody)
            with pytest.raises(InvalidInput):
                await store.access.erased_at(nobody)

    async def test_traces_at_once(self, store: Store, owner: str) -> None:
        """Of many erasures the last one counts."""
        moments = await asyncio.gather(*(store.access.note_erasure(owner) for _ in range(20)))
        assert await store.access.erased_at(owner) == max(moments)
