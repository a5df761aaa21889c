"""Parents, siblings and paths."""

from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import NotFound
from chatkeep.model import Conversation, ConversationChange, Message, NewConversation, NewMessage, Page, Status
from chatkeep.store import Order, Store
from chatkeep.testing.calls import ORDERS
from chatkeep.testing.contract import Contract
from chatkeep.testing.examples import PROPERTY
from chatkeep.testing.messages import assistant, contents, numbered, seqs, user
from chatkeep.testing.reference import path_to, siblings_of, whole_history, whole_log, whole_siblings


class BranchContract(Contract):
    """Parents, siblings and paths."""

    async def test_message_follows_the_head(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A message without a parent follows the head, and becomes the head."""
        first, second = await store.append(owner, conversation.id, [user("1"), user("2")])
        (third,) = await store.append(owner, conversation.id, [user("3")])
        assert [m.parent_id for m in (first, second, third)] == [None, first.id, second.id]
        assert (await store.get_conversation(owner, conversation.id)).head_id == third.id

    async def test_named_parent_opens_a_branch(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A message with a parent follows it and becomes the head; the other branch stays."""
        question, answer = await store.append(owner, conversation.id, [user("How hot?"), assistant("80")])
        (other,) = await store.append(owner, conversation.id, [assistant("90", parent_id=question.id)])
        (more,) = await store.append(owner, conversation.id, [user("Thanks")])
        assert (await store.history(owner, conversation.id)).items == [question, other, more]
        assert (await store.history(owner, conversation.id, leaf=answer.id)).items == [question, answer]
        assert (await store.siblings(owner, conversation.id, answer.id)).items == [answer, other]
        assert (await store.siblings(owner, conversation.id, other.id)).items == [answer, other]
        assert seqs(await store.log(owner, conversation.id)) == [1, 2, 3, 4]

    async def test_null_parent_is_a_new_beginning(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Null as parent means at the root: the message is a sibling of the first one."""
        first, _ = await store.append(owner, conversation.id, [user("How hot?"), assistant("80")])
        (edited,) = await store.append(owner, conversation.id, [user("How cold?", parent_id=None)])
        assert edited.parent_id is None
        assert (await store.history(owner, conversation.id)).items == [edited]
        assert (await store.siblings(owner, conversation.id, first.id)).items == [first, edited]

    async def test_parents_inside_a_batch(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A batch may be a whole tree; parents must precede their children."""
        a, b, c = uuid4(), uuid4(), uuid4()
        batch = [user("a", id=a), user("b", id=b), user("c", id=c, parent_id=a), user("d"), user("e", parent_id=b)]
        stored = await store.append(owner, conversation.id, batch)
        assert [m.parent_id for m in stored] == [None, a, a, c, b]
        later = uuid4()
        with pytest.raises(NotFound):
            await store.append(owner, conversation.id, [user("f", parent_id=later), user("g", id=later)])
        assert await store.log(owner, conversation.id) == stored

    async def test_unknown_parent_is_not_found(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A parent must be in the same conversation; otherwise nothing is stored."""
        other = await store.create_conversation(owner, NewConversation())
        (elsewhere,) = await store.append(owner, other.id, [user("elsewhere")])
        for parent in (uuid4(), elsewhere.id, conversation.id):
            with pytest.raises(NotFound):
                await store.append(owner, conversation.id, [user("first"), user("orphan", parent_id=parent)])
        assert await store.log(owner, conversation.id) == []

    async def test_moving_the_head(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The history and the next message follow the head to another path; null starts anew."""
        one, two, three = await store.append(owner, conversation.id, [user("1"), user("2"), user("3")])
        moved = await store.update_conversation(owner, conversation.id, ConversationChange(head_id=two.id))
        assert moved.head_id == two.id
        assert (await store.history(owner, conversation.id, total=True)).items == [one, two]
        (four,) = await store.append(owner, conversation.id, [user("4")])
        assert four.parent_id == two.id
        assert (await store.history(owner, conversation.id, leaf=three.id)).items == [one, two, three]
        await store.update_conversation(owner, conversation.id, ConversationChange(head_id=None))
        assert await store.history(owner, conversation.id, total=True) == Page[Message](items=[], total=0)
        (five,) = await store.append(owner, conversation.id, [user("5")])
        assert five.parent_id is None
        back = await store.update_conversation(owner, conversation.id, ConversationChange(head_id=four.id))
        assert back.head_id == four.id
        assert (await store.history(owner, conversation.id)).items == [one, two, four]

    async def test_head_must_be_a_message_of_the_conversation(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Unknown and deleted messages, and those of other conversations, are refused as head; nothing changes."""
        other = await store.create_conversation(owner, NewConversation())
        (elsewhere,) = await store.append(owner, other.id, [user("elsewhere")])
        here, gone = await store.append(owner, conversation.id, [user("here"), user("gone")])
        await store.delete_message(owner, conversation.id, gone.id)
        await store.update_conversation(owner, conversation.id, ConversationChange(head_id=here.id))
        before = await store.get_conversation(owner, conversation.id)
        for head in (uuid4(), elsewhere.id, gone.id):
            with pytest.raises(NotFound):
                await store.update_conversation(owner, conversation.id, ConversationChange(title="No", head_id=head))
        assert await store.get_conversation(owner, conversation.id) == before

    async def test_unknown_leaf_is_not_found(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A leaf must be a message of the conversation, and not deleted."""
        (gone,) = await store.append(owner, conversation.id, [user("gone")])
        await store.delete_message(owner, conversation.id, gone.id)
        for leaf in (uuid4(), gone.id):
            with pytest.raises(NotFound):
                await store.history(owner, conversation.id, leaf=leaf)

    @pytest.mark.parametrize("order", ORDERS)
    async def test_cursor_keeps_to_its_path(
        self, store: Store, owner: str, conversation: Conversation, order: Order
    ) -> None:
        """Following the cursor stays on the path of the first page, even if the head moves to another."""
        trunk = await store.append(owner, conversation.id, numbered(20, "trunk"))
        left = await store.append(owner, conversation.id, numbered(20, "left"))
        page = await store.history(owner, conversation.id, limit=7, order=order)
        right = [user("right 0", parent_id=trunk[9].id), *numbered(20, "right")]
        await store.append(owner, conversation.id, right)
        seen = page.items
        while page.next:
            page = await store.history(owner, conversation.id, limit=7, order=order, cursor=page.next, total=True)
            seen = seen + page.items if order == "asc" else page.items + seen
            assert page.total == 40
        assert seen == [*trunk, *left]

    async def test_deep_alternation(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Three branches that grow alternately keep their own paths, however long they become."""
        (root,) = await store.append(owner, conversation.id, [user("root")])
        tips = [root.id] * 3
        for number in range(60):
            for branch in range(3):
                (message,) = await store.append(
                    owner, conversation.id, [assistant(f"{branch}: {number}", parent_id=tips[branch])]
                )
                tips[branch] = message.id
        for branch, tip in enumerate(tips):
            expected = ["root", *(f"{branch}: {number}" for number in range(60))]
            for order in ORDERS:
                seen = await whole_history(store, owner, conversation.id, leaf=tip, limit=9, order=order)
                assert contents(seen) == expected

    async def test_many_branches(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A path that changes its run at every message, and a message with hundreds of children, are read correctly."""
        comb = [user("0", id=uuid4())]
        for number in range(1, 600):
            comb.append(user(str(number), id=uuid4(), parent_id=comb[max(0, number - 2)].id))
        await store.append(owner, conversation.id, comb)
        log = await whole_log(store, owner, conversation.id)
        for leaf in (log[-1], log[-2], log[300]):
            assert await whole_history(store, owner, conversation.id, leaf=leaf.id, limit=41) == path_to(leaf.id, log)
        fan = [assistant(str(number), id=uuid4(), parent_id=comb[0].id) for number in range(300)]
        await store.append(owner, conversation.id, fan)
        siblings = await whole_siblings(store, owner, conversation.id, fan[7].id or "", limit=70)
        assert [m.id for m in siblings] == [comb[1].id, comb[2].id, *(m.id for m in fan)]

    @PROPERTY
    @given(plan=st.data())
    async def test_random_trees_read_like_their_parents(self, store: Store, owner: str, plan: st.DataObject) -> None:
        """In any tree, with any deletions, every page equals the path that following parents one by one gives."""
        conversation = await store.create_conversation(owner, NewConversation())
        await self._grow(store, owner, conversation.id, plan)
        log = await whole_log(store, owner, conversation.id)
        head_id = (await store.get_conversation(owner, conversation.id)).head_id
        alive = [m for m in log if m.status != Status.DELETED]
        for message in alive:
            siblings = await whole_siblings(store, owner, conversation.id, message.id, limit=2)
            assert siblings == siblings_of(message, log)
            path = await whole_history(store, owner, conversation.id, leaf=message.id, limit=2)
            assert path == path_to(message.id, log)
        assert await whole_history(store, owner, conversation.id, order="asc", limit=3) == path_to(head_id, log)
        leaf = plan.draw(st.sampled_from([None, *(m.id for m in alive)]), label="leaf")
        await self._compare_page(store, owner, conversation.id, leaf, path_to(leaf or head_id, log), plan)

    async def _grow(self, store: Store, owner: str, conversation_id: UUID, plan: st.DataObject) -> None:
        """Append, delete and move the head as the plan says."""
        ids: list[UUID] = []
        for _ in range(plan.draw(st.integers(1, 8), label="batches")):
            batch: list[NewMessage] = []
            for _ in range(plan.draw(st.integers(1, 4), label="messages")):
                ids.append(uuid4())
                parents: list[dict[str, Any]] = [{}, {"parent_id": None}, *({"parent_id": id_} for id_ in ids[:-1])]
                batch.append(assistant(str(len(ids)), id=ids[-1], **plan.draw(st.sampled_from(parents))))
            await store.append(owner, conversation_id, batch)
            step = plan.draw(st.sampled_from(["on", "on", "delete", "move"]), label="then")
            if step == "delete":
                await store.delete_message(owner, conversation_id, plan.draw(st.sampled_from(ids)))
            elif step == "move":
                log = await whole_log(store, owner, conversation_id)
                heads = [None, *(m.id for m in log if m.status != Status.DELETED)]
                head = plan.draw(st.sampled_from(heads))
                await store.update_conversation(owner, conversation_id, ConversationChange(head_id=head))

    async def _compare_page(
        self,
        store: Store,
        owner: str,
        conversation_id: UUID,
        leaf: UUID | None,
        path: list[Message],
        plan: st.DataObject,
    ) -> None:
        limit, offset = plan.draw(st.integers(1, 6)), plan.draw(st.integers(0, 8))
        before, after = plan.draw(st.none() | st.integers(0, 35)), plan.draw(st.none() | st.integers(0, 35))
        inside = [m for m in path if (before is None or m.seq < before) and m.seq > (after or 0)]
        for order in ORDERS:
            reading = inside[::-1] if order == "desc" else inside
            expected = reading[offset : offset + limit]
            page = await store.history(
                owner, conversation_id, leaf=leaf, limit=limit, offset=offset, before=before, after=after,
                order=order, total=True,
            )  # fmt: skip
            assert page.items == (expected[::-1] if order == "desc" else expected)
            assert page.total == len(path)
            assert (page.next is not None) == (len(reading) > offset + limit)
