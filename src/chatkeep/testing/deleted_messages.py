"""Deleted messages and their tombstones."""

import asyncio
from uuid import uuid4

import pytest

from chatkeep.errors import NotFound
from chatkeep.model import Conversation, ConversationChange, Message, Page, Role, Source, Status
from chatkeep.store import Store
from chatkeep.testing.calls import ORDERS
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, dense, numbered, seqs, user
from chatkeep.testing.reference import found, whole_history, whole_search


class DeletedMessageContract(Contract):
    """Deleted messages and their tombstones."""

    async def test_place_stays_and_content_goes(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The tombstone of a deleted message keeps its seq, id and parent in the log, without any content."""
        source = Source(document_id=uuid4(), file_path="tea.md", similarity_score=0.5)
        stored = await store.append(
            owner, conversation.id, [user("one"), assistant("two", metadata={"a": 1}, sources=(source,)), user("three")]
        )
        assert await store.delete_message(owner, conversation.id, stored[1].id) is True
        assert await store.delete_message(owner, conversation.id, stored[1].id) is False
        log = await store.log(owner, conversation.id)
        assert seqs(log) == dense(3)
        assert (log[0], log[2]) == (stored[0], stored[2])
        tombstone = log[1]
        assert (tombstone.id, tombstone.parent_id, tombstone.role) == (stored[1].id, stored[0].id, Role.ASSISTANT)
        assert (tombstone.status, tombstone.content) == (Status.DELETED, "")
        assert (tombstone.metadata, tombstone.sources) == ({}, ())

    @pytest.mark.parametrize("content", ["  Is Ada's  test\tpositive?\nPlease tell me.", "long " * 60])
    async def test_title_goes_with_its_message(
        self, store: Store, owner: str, conversation: Conversation, content: str
    ) -> None:
        """A title that was made from a deleted message goes, and the next message makes one; other titles stay."""
        first, second = await store.append(owner, conversation.id, [user(content), user("mint")])
        titled = await store.get_conversation(owner, conversation.id)
        assert titled.title is not None
        await store.delete_message(owner, conversation.id, second.id)
        assert await store.get_conversation(owner, conversation.id) == titled
        await store.delete_message(owner, conversation.id, first.id)
        assert await store.get_conversation(owner, conversation.id) == titled.model_copy(update={"title": None})
        (third,) = await store.append(owner, conversation.id, [user("thyme")])
        assert (await store.get_conversation(owner, conversation.id)).title == "thyme"
        await store.update_conversation(owner, conversation.id, ConversationChange(title="Herbs"))
        await store.delete_message(owner, conversation.id, third.id)
        assert (await store.get_conversation(owner, conversation.id)).title == "Herbs"

    async def test_deleted_at_the_moment_of_its_append(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """A message that is appended and deleted concurrently is stored and found, or deleted and not found."""
        batches = [numbered(3, f"sage {number}") for number in range(20)]
        ids = [message.id or uuid4() for batch in batches for message in batch]
        appends = [store.append(owner, conversation.id, batch) for batch in batches]
        deletions = [store.delete_message(owner, conversation.id, id_) for id_ in ids]
        answers = await asyncio.gather(*deletions[:20], *appends, *deletions[20:])
        deleted = {id_ for id_, answer in zip(ids, [*answers[:20], *answers[40:]], strict=True) if answer}
        log = await store.log(owner, conversation.id)
        assert {m.id for m in log if m.status == Status.DELETED} == deleted
        hits = await whole_search(store, owner, "sage")
        assert {hit.message.id for hit in hits} == set(ids) - deleted
        assert len(await whole_history(store, owner, conversation.id)) == len(ids) - len(deleted)

    async def test_deleted_message_is_skipped(self, store: Store, owner: str, conversation: Conversation) -> None:
        """History, siblings, search and get_message leave deleted messages out, and totals do not count them."""
        stored = await store.append(owner, conversation.id, [user("sage"), user("sage mint"), user("mint")])
        (other,) = await store.append(owner, conversation.id, [user("thyme", parent_id=stored[0].id)])
        await store.update_conversation(owner, conversation.id, ConversationChange(head_id=stored[2].id))
        await store.delete_message(owner, conversation.id, stored[1].id)
        page = await store.history(owner, conversation.id, total=True)
        assert (page.items, page.total) == ([stored[0], stored[2]], 2)
        assert (await store.siblings(owner, conversation.id, other.id)).items == [other]
        assert await found(store, owner, "sage") == {"sage"}
        assert await found(store, owner, "mint") == {"mint"}
        for call in (store.get_message, store.siblings):
            with pytest.raises(NotFound):
                await call(owner, conversation.id, stored[1].id)
        assert (await store.get_conversation(owner, conversation.id)).last_seq == 4

    async def test_conversation_goes_on_after_a_deletion(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """The next message follows a head that was deleted; seqs and paths go on."""
        stored = await store.append(owner, conversation.id, numbered(3))
        await store.delete_message(owner, conversation.id, stored[2].id)
        (after,) = await store.append(owner, conversation.id, [user("after")])
        assert (after.seq, after.parent_id) == (4, stored[2].id)
        assert seqs((await store.history(owner, conversation.id)).items) == [1, 2, 4]
        (named,) = await store.append(owner, conversation.id, [user("named", parent_id=stored[2].id)])
        siblings = (await store.siblings(owner, conversation.id, named.id)).items
        assert [m.id for m in siblings] == [after.id, named.id]

    async def test_paging_with_deletions(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Pages, offsets and totals leave out deleted messages, wherever they were."""
        stored = await store.append(owner, conversation.id, numbered(40))
        gone = {0, 1, 7, 8, 9, 20, 38, 39}
        for number in gone:
            await store.delete_message(owner, conversation.id, stored[number].id)
        left = [message for number, message in enumerate(stored) if number not in gone]
        for order in ORDERS:
            assert await whole_history(store, owner, conversation.id, limit=3, order=order) == left
        for offset in range(0, 36, 5):
            page = await store.history(owner, conversation.id, order="asc", limit=5, offset=offset, total=True)
            assert (page.items, page.total) == (left[offset : offset + 5], 32)
            page = await store.history(owner, conversation.id, limit=5, offset=offset)
            assert page.items == left[::-1][offset : offset + 5][::-1]

    async def test_everything_deleted(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A conversation whose messages are all deleted has an empty history and a full log."""
        stored = await store.append(owner, conversation.id, numbered(5))
        for message in stored:
            await store.delete_message(owner, conversation.id, message.id)
        assert await store.history(owner, conversation.id, total=True) == Page[Message](items=[], total=0)
        assert seqs(await store.log(owner, conversation.id)) == dense(5)
