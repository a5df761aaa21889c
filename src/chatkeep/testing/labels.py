"""Labels of conversations, and lists by them."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from chatkeep.errors import InvalidInput
from chatkeep.model import Conversation, ConversationChange, ImportedConversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import numbered, someone, user
from chatkeep.testing.reference import by_time, selected, whole_list

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)

MANY = 160
"""Conversations of a list; more than a hundred of them have the label `often`."""

FILTERS: tuple[dict[str, Any], ...] = (
    {"labels": ["often"]},
    {"labels": ["seldom"]},
    {"labels": ["often", "seldom"]},
    {"labels": ["seldom", "twice"]},
    {"labels": ["!often"]},
    {"labels": ["!seldom"]},
    {"labels": ["twice", "!often"]},
    {"labels": ["!twice", "often", "!seldom"]},
    {"labels": ["often", "!often"]},
    {"labels": ["nobody has it"]},
    {"labels": ["seldom", "nobody has it"]},
    {"labels": ["often"], "context_id": "k"},
    {"labels": ["seldom"], "context_id": "k"},
    {"labels": ["!often"], "context_id": "k"},
    {"labels": ["often"], "updated_after": NOON, "updated_before": NOON + timedelta(minutes=5)},
    {"labels": ["seldom"], "updated_after": NOON + timedelta(minutes=1)},
)


async def labelled(store: Store, owner: str, count: int) -> list[Conversation]:
    """Conversations with one, several and no labels, in two contexts; many of one time."""
    made = []
    for number in range(count):
        names = {"often": number % 3 > 0, "seldom": number % 40 == 1, "twice": number % 2 > 0}
        new = ImportedConversation(
            context_id="k" if number % 4 < 2 else None,
            labels=tuple(name for name, has in names.items() if has),
            updated_at=NOON + timedelta(minutes=number // 20),
        )
        made.append(await store.create_conversation(owner, new))
    return made


class LabelContract(Contract):
    """Labels of conversations."""

    async def test_labels_are_kept_in_order_and_once(self, store: Store, owner: str) -> None:
        """Labels come back in the order in which they were given, each once, in every read and in the export."""
        new = NewConversation(id=uuid4(), labels=("work", "a", "work", "ä b", "😀", "a"))
        created = await store.create_conversation(owner, new)
        assert created.labels == ("work", "a", "ä b", "😀")
        assert await store.create_conversation(owner, new) == created
        assert await store.get_conversation(owner, created.id) == created
        assert await whole_list(store, owner, labels=["a"]) == await whole_list(store, owner) == [created]
        exported, _ = await store.export_conversation(owner, created.id)
        assert exported.labels == created.labels
        other = someone()
        await store.import_conversation(other, exported)
        assert [c.labels for c in await whole_list(store, other, labels=["ä b"])] == [created.labels]

    async def test_labels_have_limits(self, store: Store, owner: str) -> None:
        """At most 32 labels of 1 to 64 characters: not blank, without control characters, not beginning with '!'."""
        most = tuple(f"{number:02d}".ljust(64, "😀") for number in range(32))
        created = await store.create_conversation(owner, NewConversation(labels=most))
        assert (await store.get_conversation(owner, created.id)).labels == most
        assert await whole_list(store, owner, labels=most) == [created]
        wrong: Any
        for wrong in ((*most, "x"), ("x" * 65,), ("",), (" ",), ("!x",), ("!",), ("a\nb",), ("a\x00",), (7,), "pinned"):
            for kind in (NewConversation, ImportedConversation, ConversationChange):
                with pytest.raises(ValueError, match="labels"):
                    kind(labels=wrong)

    async def test_labels_are_compared_exactly(self, store: Store, owner: str) -> None:
        """Case, accents, blanks and Unicode form count; lone surrogates are cleaned as everywhere."""
        names = ("a", "A", "a ", "a\ufdd0", "a\ufdd00000", "é", "e\u0301", "ß", "ss", "%", "\ufffd", "'; --")
        made = {name: await store.create_conversation(owner, NewConversation(labels=(name,))) for name in names}
        for name, conversation in made.items():
            assert await whole_list(store, owner, labels=[name]) == [conversation]
            assert len(await whole_list(store, owner, labels=[f"!{name}"], limit=100)) == len(names) - 1
        assert await whole_list(store, owner, labels=["\ud800"]) == [made["\ufffd"]]

    async def test_labels_are_replaced(self, store: Store, owner: str) -> None:
        """A change gives a conversation exactly its labels; without them nothing changes; updated_at stays."""
        before = await store.create_conversation(owner, NewConversation(labels=("a", "b")))
        for labels in (("b", "c"), ("b", "c"), (), ("c", "b", "a")):
            changed = await store.update_conversation(owner, before.id, ConversationChange(labels=labels))
            assert changed == before.model_copy(update={"labels": labels})
            assert await store.update_conversation(owner, before.id, ConversationChange(title=None)) == changed
            assert await store.get_conversation(owner, before.id) == changed
            for name in "abc":
                expected = [changed] if name in labels else []
                assert await whole_list(store, owner, labels=[name]) == expected
                assert (await store.list_conversations(owner, labels=[name], total=True)).total == len(expected)

    async def test_changes_at_the_same_moment(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Of concurrent changes one is the last: the record and the lists have its labels, and no others."""
        choices = [(f"label {number}", "each", f"more {number % 3}") for number in range(20)]
        changes = [ConversationChange(labels=labels) for labels in choices]
        await asyncio.gather(*(store.update_conversation(owner, conversation.id, change) for change in changes))
        there = await store.get_conversation(owner, conversation.id)
        assert there.labels in choices
        for name in {name for labels in choices for name in labels}:
            assert await whole_list(store, owner, labels=[name]) == ([there] if name in there.labels else [])

    async def test_labels_of_creations_at_the_same_moment(self, store: Store, owner: str) -> None:
        """Thirty concurrent calls that create one conversation give it its labels once."""
        new = NewConversation(id=uuid4(), labels=("a", "b"))
        answers = await asyncio.gather(*(store.create_conversation(owner, new) for _ in range(30)))
        assert answers == [answers[0]] * 30
        assert await whole_list(store, owner, labels=["a", "b"]) == [answers[0]]
        assert (await store.erase_owner(owner)).labels == 2

    async def test_lists_by_labels(self, store: Store, owner: str) -> None:
        """Lists with labels that few or many have, with several, without some, with a context, between two times:
        every page by cursor in both orders, by offset, and the total."""
        made = await labelled(store, owner, MANY)
        await labelled(store, someone(), 3)
        for which in FILTERS:
            expected = by_time(selected(made, **which))
            assert await whole_list(store, owner, limit=7, **which) == expected
            assert await whole_list(store, owner, limit=100, **which) == expected
            page = await store.list_conversations(owner, limit=4, offset=2, total=True, **which)
            assert (page.items, page.total) == (expected[2:6], len(expected))
            if "updated_after" not in which:
                by_id = await whole_list(store, owner, order="id", limit=9, **which)
                assert by_id == sorted(expected, key=lambda c: c.id)

    async def test_a_label_becomes_frequent(self, store: Store, owner: str) -> None:
        """A list goes on without loss or repetition while a rare label becomes one that many have."""
        made = [await store.create_conversation(owner, NewConversation(labels=("few",))) for _ in range(98)]
        expected = by_time(made)
        page = await store.list_conversations(owner, labels=["few"], limit=40)
        assert page.items == expected[:40]
        for _ in range(5):
            await store.create_conversation(owner, NewConversation(labels=("few",)))
        page = await store.list_conversations(owner, labels=["few"], limit=40, cursor=page.next)
        assert page.items == expected[40:80]
        page = await store.list_conversations(owner, labels=["few"], limit=40, cursor=page.next)
        assert (page.items, page.next) == (expected[80:], None)

    async def test_cursor_belongs_to_its_labels(self, store: Store, owner: str) -> None:
        """A cursor is refused with other labels; labels are a list of at most 32 texts."""
        for _ in range(3):
            await store.create_conversation(owner, NewConversation(labels=("a", "b")))
        cursor = (await store.list_conversations(owner, labels=["a"], limit=1)).next
        assert cursor is not None
        for labels in ((), ["b"], ["a", "b"], ["!b"]):
            with pytest.raises(InvalidInput):
                await store.list_conversations(owner, labels=labels, cursor=cursor)
        assert len((await store.list_conversations(owner, labels=["a"], cursor=cursor)).items) == 2
        for wrong in ("a", [str(number) for number in range(33)]):
            with pytest.raises(InvalidInput, match="labels"):
                await store.list_conversations(owner, labels=wrong)

    async def test_deleted_conversations_are_not_listed(self, store: Store, owner: str) -> None:
        """A deleted conversation is in no list by label, and one that gets its id has none of its labels."""
        new = NewConversation(id=uuid4(), labels=("a",))
        gone = await store.create_conversation(owner, new)
        kept = await store.create_conversation(owner, NewConversation(labels=("a",)))
        await store.append(owner, gone.id, numbered(30))
        assert await store.delete_conversation(owner, gone.id)
        assert await whole_list(store, owner, labels=["a"]) == [kept]
        assert (await store.list_conversations(owner, labels=["a"], total=True)).total == 1
        again = await store.create_conversation(owner, NewConversation(id=gone.id))
        assert again.labels == ()
        assert await whole_list(store, owner, labels=["a"]) == [kept]
        assert await whole_list(store, owner, labels=["!a"]) == [again]

    async def test_labels_are_the_owners(self, store: Store, owner: str) -> None:
        """A conversation of another owner with the same id keeps its labels to itself."""
        stranger, id_ = someone(), uuid4()
        mine = await store.create_conversation(owner, NewConversation(id=id_, labels=("mine",)))
        theirs = await store.create_conversation(stranger, NewConversation(id=id_, labels=("theirs",)))
        assert await whole_list(store, owner, labels=["theirs"]) == []
        assert await whole_list(store, owner, labels=["!theirs"]) == [mine]
        await store.update_conversation(owner, id_, ConversationChange(labels=()))
        assert await whole_list(store, stranger, labels=["theirs"]) == [theirs]

    async def test_erasure_counts_labels(self, store: Store, owner: str) -> None:
        """The receipt of an erasure has the labels that conversations had; those of others stay."""
        stranger = someone()
        for who in (owner, stranger):
            for labels in (("a", "b"), ("a",), ()):
                made = await store.create_conversation(who, NewConversation(labels=labels))
            await store.append(who, made.id, user("tea"))
        receipt = await store.erase_owner(owner)
        assert (receipt.conversations, receipt.labels, receipt.remaining) == (3, 3, 0)
        assert await whole_list(store, owner, labels=["a"]) == []
        assert (await store.erase_owner(owner)).labels == 0
        assert len(await whole_list(store, stranger, labels=["a"])) == 2

    async def test_renamed_owner_keeps_labels(self, store: Store, owner: str) -> None:
        """Labels go with their conversations to the new owner, and can be changed and erased there."""
        other = someone()
        await store.create_conversation(other, NewConversation(labels=("a", "b")))
        made = await store.create_conversation(owner, NewConversation(labels=("a",)))
        assert await store.rename_owner(owner, other) == 1
        assert await whole_list(store, owner, labels=["a"]) == []
        assert len(await whole_list(store, other, labels=["a"])) == 2
        await store.update_conversation(other, made.id, ConversationChange(labels=("c",)))
        assert [c.id for c in await whole_list(store, other, labels=["c"])] == [made.id]
        assert (await store.erase_owner(other)).labels == 3

    async def test_an_import_takes_labels_over_if_asked(self, store: Store, owner: str) -> None:
        """Other labels of a conversation that is there are said, and taken over with `update`; none are no opinion."""
        new = ImportedConversation(id=uuid4(), labels=("a",))
        assert new.id is not None
        await store.import_conversation(owner, new)
        assert (await store.import_conversation(owner, ImportedConversation(id=new.id), update=True)).differences == ()
        other = ImportedConversation(id=new.id, labels=("b", "a"))
        assert (await store.import_conversation(owner, other)).left == ["labels"]
        assert (await store.get_conversation(owner, new.id)).labels == ("a",)
        assert (await store.import_conversation(owner, other, update=True)).left == []
        assert (await store.get_conversation(owner, new.id)).labels == ("b", "a")
        assert [c.id for c in await whole_list(store, owner, labels=["b"])] == [new.id]
