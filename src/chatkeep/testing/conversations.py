"""Creating, finding, changing and deleting conversations."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from chatkeep.errors import Conflict, NotFound
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    Message,
    NewConversation,
    NewMessage,
    Page,
    Role,
)
from chatkeep.store import Store
from chatkeep.testing.calls import CONVERSATION_CALLS
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, dense, numbered, seqs, user
from chatkeep.testing.reference import found, others_appending, whole_list, whole_log


class ConversationContract(Contract):
    """Creating, finding, changing and deleting conversations."""

    async def test_create_returns_what_is_stored(self, store: Store, owner: str) -> None:
        """A new conversation has the given values, no messages, and the store's time."""
        new = NewConversation(
            id=uuid4(),
            title="Tea",
            context_id="kitchen",
            external_id="k-1",
            labels=("pinned", "work"),
            metadata={"z": 1, "a": [None]},
        )
        created = await store.create_conversation(owner, new)
        assert created.model_dump(exclude={"created_at", "updated_at"}) == {
            **new.model_dump(),
            "owner_id": owner,
            "llm_provider_id": None,
            "last_seq": 0,
            "head_id": None,
        }
        assert created.created_at == created.updated_at
        assert abs(datetime.now(UTC) - created.created_at) < timedelta(minutes=1)
        assert await store.get_conversation(owner, created.id) == created
        assert await store.get_conversation(owner, str(created.id).upper()) == created
        assert (await store.history(owner, created.id, total=True)) == Page[Message](items=[], total=0, next=None)
        assert await store.log(owner, created.id) == []

    async def test_create_is_idempotent(self, store: Store, owner: str) -> None:
        """Creating again with the same id and values returns the conversation as it is now."""
        new = NewConversation(id=uuid4(), title="Tea", metadata={"a": 1, "b": 2})
        created = await store.create_conversation(owner, new)
        await store.append(owner, created.id, [user("hello")])
        changed = await store.update_conversation(owner, created.id, ConversationChange(title="Coffee"))
        again = new.model_copy(update={"metadata": {"b": 2, "a": 1}})
        assert await store.create_conversation(owner, again) == changed
        assert (await store.list_conversations(owner, total=True)).total == 1

    async def test_create_at_the_same_moment_creates_one(self, store: Store, owner: str) -> None:
        """Thirty concurrent calls that create one conversation create it once."""
        new = NewConversation(id=uuid4(), title="Tea")
        answers = await asyncio.gather(*(store.create_conversation(owner, new) for _ in range(30)))
        assert answers == [answers[0]] * 30

    @pytest.mark.parametrize(
        "change",
        [
            {"title": "tea"},
            {"title": None},
            {"context_id": "c"},
            {"external_id": "e"},
            {"labels": ("a",)},
            {"metadata": {"a": 1}},
        ],
    )
    async def test_create_with_other_values_is_a_conflict(
        self, store: Store, owner: str, change: dict[str, Any]
    ) -> None:
        """A known id with other values raises Conflict, and the conversation stays as it is."""
        values: dict[str, Any] = {"id": uuid4(), "title": "Tea"}
        created = await store.create_conversation(owner, NewConversation(**values))
        with pytest.raises(Conflict):
            await store.create_conversation(owner, NewConversation(**{**values, **change}))
        assert await store.get_conversation(owner, created.id) == created

    async def test_get_or_create_at_the_same_moment_creates_one(self, store: Store, owner: str) -> None:
        """Concurrent calls create one conversation for each context; no context is a context of its own."""
        contexts = [None, "kitchen", "garden", "Kitchen"]
        calls = [store.get_or_create_conversation(owner, NewConversation(context_id=c)) for c in contexts * 50]
        answers = await asyncio.gather(*calls)
        assert len({answer.id for answer in answers}) == len(contexts)
        assert [answer.context_id for answer in answers] == contexts * 50
        assert (await store.list_conversations(owner, total=True)).total == len(contexts)

    async def test_get_or_create_returns_the_newest(self, store: Store, owner: str) -> None:
        """Get-or-create returns the most recently updated conversation of the context and leaves it as it is."""
        first = await store.create_conversation(owner, NewConversation(context_id="kitchen", title="first"))
        second = await store.create_conversation(owner, NewConversation(context_id="kitchen", title="second"))
        asked = NewConversation(context_id="kitchen", title="third", metadata={"new": True})
        assert await store.get_or_create_conversation(owner, asked) == second
        await store.append(owner, first.id, [user("hello")])
        newest = await store.get_or_create_conversation(owner, asked)
        assert newest == await store.get_conversation(owner, first.id)
        assert newest.title == "first"

    async def test_get_or_create_uses_the_values_when_it_creates(self, store: Store, owner: str) -> None:
        """A conversation that get-or-create creates has the given values; after a deletion it creates another."""
        asked = NewConversation(context_id="kitchen", title="Tea", metadata={"a": 1})
        created = await store.get_or_create_conversation(owner, asked)
        assert (created.title, created.metadata, created.context_id) == ("Tea", {"a": 1}, "kitchen")
        assert await store.delete_conversation(owner, created.id)
        again = await store.get_or_create_conversation(owner, asked)
        assert again.id != created.id

    async def test_change_sets_only_what_it_names(self, store: Store, owner: str) -> None:
        """Omitted fields of a change keep their value; null removes a title or all metadata."""
        created = await store.create_conversation(owner, NewConversation(title="Tea", metadata={"a": 1}))
        await store.append(owner, created.id, [user("hello")])
        before = await store.get_conversation(owner, created.id)
        assert await store.update_conversation(owner, created.id, ConversationChange()) == before
        titled = await store.update_conversation(owner, created.id, ConversationChange(title="Coffee"))
        assert titled == before.model_copy(update={"title": "Coffee"})
        bare = await store.update_conversation(owner, created.id, ConversationChange(title=None, metadata=None))
        assert bare == before.model_copy(update={"title": None, "metadata": {}})
        assert await store.get_conversation(owner, created.id) == bare

    async def test_metadata_is_merged(self, store: Store, owner: str) -> None:
        """Metadata changes are a JSON Merge Patch: null removes, objects merge, anything else replaces."""
        start = {"keep": 1, "drop": 2, "nested": {"keep": [1], "drop": 2}, "list": [1, 2]}
        created = await store.create_conversation(owner, NewConversation(metadata=start))
        patch = {"drop": None, "nested": {"drop": None, "new": {"deep": None, "set": 1}}, "list": [3], "absent": None}
        changed = await store.update_conversation(owner, created.id, ConversationChange(metadata=patch))
        assert changed.metadata == {"keep": 1, "nested": {"keep": [1], "new": {"set": 1}}, "list": [3]}

    async def test_changes_of_different_keys_at_once_all_stay(self, store: Store, owner: str) -> None:
        """Concurrent patches of different keys are all kept."""
        created = await store.create_conversation(owner, NewConversation(metadata={"start": 0}))
        changes = [ConversationChange(metadata={f"key {n}": n}) for n in range(30)]
        await asyncio.gather(*(store.update_conversation(owner, created.id, change) for change in changes))
        metadata = (await store.get_conversation(owner, created.id)).metadata
        assert metadata == {"start": 0, **{f"key {n}": n for n in range(30)}}

    async def test_title_is_made_from_the_first_user_message(self, store: Store, owner: str) -> None:
        """The first user message gives the title: its first line with text, at most 80 characters."""
        conversation = await store.create_conversation(owner, NewConversation())
        await store.append(
            owner, conversation.id, [assistant("Welcome!"), NewMessage(role=Role.SYSTEM, content="Be kind.")]
        )
        assert (await store.get_conversation(owner, conversation.id)).title is None
        await store.append(owner, conversation.id, [user("\n  How  hot\tis tea?\nAnd coffee?"), user("Never mind.")])
        assert (await store.get_conversation(owner, conversation.id)).title == "How hot is tea?"
        long = await store.create_conversation(owner, NewConversation())
        await store.append(owner, long.id, [user("word " * 40)])
        title = (await store.get_conversation(owner, long.id)).title
        assert title is not None
        assert len(title) <= 80
        assert title.endswith("word…")

    async def test_title_that_is_set_stays(self, store: Store, owner: str) -> None:
        """A title that was set is not replaced; if it was removed, the next user message gives one."""
        conversation = await store.create_conversation(owner, NewConversation(title="Tea"))
        await store.append(owner, conversation.id, [user("How hot?")])
        assert (await store.get_conversation(owner, conversation.id)).title == "Tea"
        await store.update_conversation(owner, conversation.id, ConversationChange(title=None))
        await store.append(owner, conversation.id, [user("How strong?")])
        assert (await store.get_conversation(owner, conversation.id)).title == "How strong?"

    async def test_updated_at_is_moved_by_messages_only(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """A message moves updated_at forward; changes, retries, deletions and reads do not."""
        new = user("hello", id=uuid4())
        (message,) = await store.append(owner, conversation.id, [new])
        (second,) = await store.append(owner, conversation.id, [user("again")])
        moved = (await store.get_conversation(owner, conversation.id)).updated_at
        assert conversation.updated_at <= message.created_at <= second.created_at == moved
        await store.update_conversation(
            owner, conversation.id, ConversationChange(title="T", metadata={"a": 1}, head_id=message.id)
        )
        await store.append(owner, conversation.id, [new])
        await store.delete_message(owner, conversation.id, message.id)
        await store.history(owner, conversation.id)
        assert (await store.get_conversation(owner, conversation.id)).updated_at == moved

    async def test_updated_at_never_moves_back(self, store: Store, owner: str) -> None:
        """Times in the past do not move updated_at."""
        conversation = await store.create_conversation(owner, NewConversation())
        (message,) = await store.append(owner, conversation.id, [user("now")])
        old = ImportedMessage(role=Role.USER, content="then", sent_at=message.created_at - timedelta(days=900))
        await store.append(owner, conversation.id, [old, ImportedMessage(role=Role.USER, content="some day")])
        assert (await store.get_conversation(owner, conversation.id)).updated_at == message.created_at

    @pytest.mark.parametrize("years", [1, 7000])
    async def test_times_in_the_future_are_clamped(self, store: Store, owner: str, years: int) -> None:
        """A time in the future does not keep a conversation on top of the list, nor in get-or-create."""
        future = datetime(2030 + years - 1, 1, 1, tzinfo=UTC)
        one = await store.create_conversation(owner, ImportedConversation(updated_at=future, context_id="k"))
        assert one.updated_at == one.created_at
        said = ImportedMessage(role=Role.USER, content="some day", sent_at=future)
        (message,) = await store.append(owner, one.id, [said])
        assert message.sent_at == future
        moved = (await store.get_conversation(owner, one.id)).updated_at
        assert one.updated_at <= moved <= datetime.now(UTC)
        await asyncio.sleep(0.005)
        two = await store.create_conversation(owner, NewConversation(context_id="k"))
        assert [c.id for c in (await store.list_conversations(owner)).items] == [two.id, one.id]
        assert await store.get_or_create_conversation(owner, NewConversation(context_id="k")) == two
        await store.append(owner, one.id, [user("today")])
        assert [c.id for c in (await store.list_conversations(owner)).items] == [one.id, two.id]

    async def test_updated_before_1970(self, store: Store, owner: str) -> None:
        """Times before 1970 are kept and compared like all others."""
        times = [datetime(1950 + n, 1, 1, tzinfo=UTC) for n in range(3)]
        old = await store.create_conversation(owner, ImportedConversation(updated_at=times[0]))
        await store.append(owner, old.id, [ImportedMessage(role=Role.USER, content="then", sent_at=times[1])])
        assert (await store.get_conversation(owner, old.id)).updated_at == times[1]
        later = ImportedMessage(role=Role.ASSISTANT, content="later", sent_at=times[2])
        await store.append(owner, old.id, [later, ImportedMessage(role=Role.USER, content="earlier", sent_at=times[0])])
        assert (await store.get_conversation(owner, old.id)).updated_at == times[2]
        untimed = await store.create_conversation(owner, ImportedConversation(updated_at=times[0]))
        await store.append(owner, untimed.id, [ImportedMessage(role=Role.USER, content="some day")])
        assert (await store.get_conversation(owner, untimed.id)).updated_at == times[0]

    async def test_imported_messages_move_updated_at_to_their_own_time(self, store: Store, owner: str) -> None:
        """An import moves updated_at to the latest time of its messages, not to the time of the import."""
        year = [datetime(2020 + n, 1, 1, tzinfo=UTC) for n in range(4)]
        conversation = await store.create_conversation(owner, ImportedConversation(updated_at=year[0]))
        times = (year[1], year[3], None, year[2])
        await store.append(
            owner, conversation.id, [ImportedMessage(role=Role.USER, content="then", sent_at=time) for time in times]
        )
        assert (await store.get_conversation(owner, conversation.id)).updated_at == year[3]

    async def test_delete_removes_everything_in_it(self, store: Store, owner: str) -> None:
        """A deleted conversation and its messages are in no read any more; deleting it again returns False."""
        conversation = await store.create_conversation(owner, NewConversation(context_id="kitchen"))
        (message,) = await store.append(owner, conversation.id, [user("saffron tea")])
        kept = await store.create_conversation(owner, NewConversation())
        await store.append(owner, kept.id, [user("plain tea")])
        assert await store.delete_conversation(owner, conversation.id) is True
        for name in sorted(set(CONVERSATION_CALLS) - {"delete_conversation"}):
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[name](store, owner, conversation.id, message.id)
        assert [c.id for c in await whole_list(store, owner)] == [kept.id]
        assert await found(store, owner, "tea") == {"plain tea"}
        assert await store.delete_conversation(owner, conversation.id) is False

    async def test_id_of_a_deleted_conversation_can_be_used_again(self, store: Store, owner: str) -> None:
        """A conversation with the id of a deleted one has nothing of it."""
        new, message_id = NewConversation(id=uuid4(), title="Tea"), uuid4()
        conversation = await store.create_conversation(owner, new)
        await store.append(owner, conversation.id, [user("saffron tea", id=message_id), *numbered(1_500)])
        await store.append(owner, conversation.id, [user("a branch", parent_id=message_id)])
        deleting = asyncio.create_task(store.delete_conversation(owner, conversation.id))
        while (await store.list_conversations(owner)).items:  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)
        again = await store.create_conversation(owner, new.model_copy(update={"title": "Coffee"}))
        assert await deleting
        assert (again.title, again.last_seq, again.head_id) == ("Coffee", 0, None)
        assert await store.log(owner, conversation.id) == []
        (message,) = await store.append(owner, conversation.id, [user("mocha", id=message_id)])
        assert (message.seq, message.parent_id) == (1, None)
        assert (await store.history(owner, conversation.id, total=True)).total == 1
        assert await found(store, owner, "saffron") == set()

    async def test_large_conversation_is_deleted_whole(self, store: Store, owner: str) -> None:
        """Several thousand messages are removed, from the search index, too, while the owner's others are in use."""
        large = await store.create_conversation(owner, NewConversation())
        small = await store.create_conversation(owner, NewConversation())
        for part in range(5):
            await store.append(owner, large.id, numbered(700, f"pebble {part}"))
        async with others_appending(store, owner, small.id):
            assert await store.delete_conversation(owner, large.id)
        with pytest.raises(NotFound):
            await store.log(owner, large.id)
        assert await found(store, owner, "pebble") == set()
        log = await whole_log(store, owner, small.id)
        assert seqs(log) == dense(len(log))

    async def test_cancelled_deletion_is_done_whole_or_not_at_all(self, store: Store, owner: str) -> None:
        """A deletion that is cancelled leaves the whole conversation, or nothing of it."""
        for pause in (0, 0.0005, 0.002, 0.005):
            conversation = await store.create_conversation(owner, NewConversation())
            await store.append(owner, conversation.id, numbered(1_500, "pebble"))
            deleting = asyncio.create_task(store.delete_conversation(owner, conversation.id))
            await asyncio.sleep(pause)
            deleting.cancel()
            await asyncio.gather(deleting, return_exceptions=True)
            try:
                log = await whole_log(store, owner, conversation.id)
            except NotFound:
                log = []
            assert len(log) in {0, 1_500}
            await store.delete_conversation(owner, conversation.id)  # finishes a removal that was cut off
            assert await found(store, owner, "pebble") == set()

    async def test_appends_to_a_conversation_that_is_deleted_fail(self, store: Store, owner: str) -> None:
        """Appends that race with a deletion are stored before it, or raise NotFound; none is left."""
        conversation = await store.create_conversation(owner, NewConversation())
        calls = [store.append(owner, conversation.id, [user("sage tea")]) for _ in range(40)]
        answers = await asyncio.gather(
            *calls[:20], store.delete_conversation(owner, conversation.id), *calls[20:], return_exceptions=True
        )
        assert answers[20] is True
        assert {type(answer) for answer in answers} <= {list, bool, NotFound}
        assert await found(store, owner, "sage") == set()
