"""Conversations that another system knows by ids of its own."""

import asyncio
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import InvalidInput, NotFound
from chatkeep.formats.jsonl import import_lines
from chatkeep.model import Conversation, ImportedConversation, NewConversation
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import someone, user
from chatkeep.testing.reference import by_time, selected, whole_list

FOREIGN = (
    "session-42",
    "0123456789abcdef",
    "room\x00π/😀 7",
    "x" * 255,
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75",
    "0190F0F0-7A3C-7CC2-B1C3-2F6C1D9E8A75",
    "0190f0f07a3c7cc2b1c32f6c1d9e8a75",
)
"""Ids as other systems have them: short, of 16 characters, the longest, and texts that are UUIDs in some form."""


async def import_line(store: Store, owner: str, line: str) -> None:
    """Import a conversation of another system. It must not be refused."""
    results = [result async for result in import_lines(store, owner, [line.encode()])]
    assert [result.error for result in results] == [None]


class ExternalIdContract(Contract):
    """Conversations by external_id."""

    async def test_the_newest_is_found(self, store: Store, owner: str) -> None:
        """Of several conversations with an external_id the one that was updated last is found, and stays as it is."""
        made = [await store.create_conversation(owner, NewConversation(external_id="session-42")) for _ in range(3)]
        await store.create_conversation(owner, NewConversation(external_id="session-421"))
        await store.create_conversation(owner, NewConversation())
        assert await store.find_conversation(owner, "session-42") == made[2]
        await store.append(owner, made[0].id, user("hello"))
        newest = await store.get_conversation(owner, made[0].id)
        assert await store.find_conversation(owner, "session-42") == newest
        await store.delete_conversation(owner, newest.id)
        assert await store.find_conversation(owner, "session-42") == made[2]

    @pytest.mark.parametrize("text", ["", "session-42 ", "Session-42", "%", "session-4"])
    async def test_nothing_else_is_found(self, store: Store, owner: str, text: str) -> None:
        """External ids are compared exactly; where there is none, and for other owners, it is NotFound."""
        await store.create_conversation(owner, NewConversation(external_id="session-42"))
        for who, wanted in ((owner, text), (someone(), "session-42")):
            with pytest.raises(NotFound):
                await store.find_conversation(who, wanted)
        assert (await store.list_conversations(owner, external_id=text)).items == []

    async def test_each_finds_their_own(self, store: Store, owner: str) -> None:
        """Two owners may use one external_id; each gets a conversation of their own, with an id of its own."""
        stranger, new = someone(), NewConversation(external_id="session-42")
        mine = await store.get_or_create_conversation(owner, new)
        theirs = await store.get_or_create_conversation(stranger, new)
        assert mine.id != theirs.id
        assert await store.find_conversation(owner, "session-42") == mine
        assert await store.find_conversation(stranger, "session-42") == theirs

    @pytest.mark.parametrize("text", FOREIGN, ids=lambda text: repr(text[:40]))
    async def test_one_is_created_for_an_external_id_at_the_same_moment(
        self, store: Store, owner: str, text: str
    ) -> None:
        """Thirty concurrent calls with an external_id create one conversation, which every way finds."""
        new = NewConversation(external_id=text, context_id="k", title="Tea", labels=("a",))
        answers = await asyncio.gather(*(store.get_or_create_conversation(owner, new) for _ in range(30)))
        assert answers == [answers[0]] * 30
        assert (answers[0].external_id, answers[0].title, answers[0].labels) == (text, "Tea", ("a",))
        assert await whole_list(store, owner) == await whole_list(store, owner, external_id=text) == [answers[0]]
        assert await store.find_conversation(owner, text) == answers[0]
        await store.append(owner, answers[0].id, user("hello"))
        again = await store.get_or_create_conversation(owner, new)
        assert again == await store.get_conversation(owner, answers[0].id)

    async def test_values_are_ignored_if_it_is_found(self, store: Store, owner: str) -> None:
        """A conversation that is there stays as it is, whatever context, title or labels are given."""
        created = await store.create_conversation(owner, NewConversation(external_id="session-42", context_id="k"))
        asked = NewConversation(
            external_id="session-42", context_id="other", title="T", labels=("x",), metadata={"a": 1}
        )
        assert await store.get_or_create_conversation(owner, asked) == created
        made = await store.get_or_create_conversation(owner, NewConversation(external_id="session-43", title="T"))
        again = NewConversation(external_id="session-43", project_id=uuid4())
        assert await store.get_or_create_conversation(owner, again) == made
        assert len(await whole_list(store, owner)) == 2

    async def test_contexts_are_apart(self, store: Store, owner: str) -> None:
        """A conversation that was made for an external_id does not keep a context from having one of its own first."""
        foreign = await store.get_or_create_conversation(owner, NewConversation(external_id="e", context_id="k"))
        assert await store.get_or_create_conversation(owner, NewConversation(context_id="k")) == foreign
        other = await store.get_or_create_conversation(owner, NewConversation(external_id="f", context_id="k"))
        assert other.id != foreign.id

    async def test_an_id_beside_an_external_id_is_refused(self, store: Store, owner: str) -> None:
        """Get-or-create makes the id of the external_id, so that both together are InvalidInput."""
        with pytest.raises(InvalidInput, match="leave one of them out"):
            await store.get_or_create_conversation(owner, NewConversation(id=uuid4(), external_id="session-42"))
        assert await whole_list(store, owner) == []

    @pytest.mark.parametrize("text", FOREIGN[:6:2] + FOREIGN[4:], ids=lambda text: repr(text[:40]))
    async def test_an_import_of_the_same_id_is_the_same_conversation(self, store: Store, owner: str, text: str) -> None:
        """A line of another system, without a source, and get-or-create with its id meet, whichever comes first."""
        line = NewConversation(title="T").model_dump_json(include={"title"})[1:-1]
        whole = f'{{"id":{_quoted(text)},{line},"messages":[{{"id":"1","role":"user","content":"sage"}}]}}'
        await import_line(store, owner, whole)
        imported = await store.get_or_create_conversation(owner, NewConversation(external_id=text))
        assert (imported.title, imported.last_seq) == ("T", 1)
        later = someone()
        created = await store.get_or_create_conversation(later, NewConversation(external_id=text))
        await import_line(store, later, whole)
        assert [(c.id, c.last_seq) for c in await whole_list(store, later)] == [(created.id, 1)]
        assert (await store.find_conversation(later, text)).id == created.id

    async def test_a_deleted_one_begins_anew(self, store: Store, owner: str) -> None:
        """After a deletion get-or-create makes an empty conversation, with the same id."""
        new = NewConversation(external_id="session-42")
        first = await store.get_or_create_conversation(owner, new)
        await store.append(owner, first.id, user("sage"))
        await store.delete_conversation(owner, first.id)
        again = await store.get_or_create_conversation(owner, new)
        assert (again.id, again.last_seq, again.head_id) == (first.id, 0, None)

    async def test_lists_by_external_id(self, store: Store, owner: str) -> None:
        """A list may have one external_id only, with the other filters, page by page and counted."""
        made: list[Conversation] = []
        for number in range(12):
            values: dict[str, Any] = {"context_id": "k" if number % 3 else None, "labels": ("a",) if number % 4 else ()}
            new = NewConversation(external_id="e\x00" if number % 2 else "f", **values)
            made.append(await store.create_conversation(owner, new))
        for more in ({}, {"context_id": "k"}, {"labels": ["a"]}, {"labels": ["!a"], "context_id": "k"}):
            expected = by_time(selected(made, external_id="e\x00", **more))
            listed = await whole_list(store, owner, external_id="e\x00", limit=2, **more)
            assert listed == expected
            page = await store.list_conversations(owner, external_id="e\x00", offset=1, total=True, **more)
            assert (page.items, page.total) == (expected[1:11], len(expected))
            by_id = await whole_list(store, owner, external_id="e\x00", order="id", limit=2, **more)
            assert by_id == sorted(expected, key=lambda c: c.id)

    async def test_lone_surrogates_in_external_ids_are_cleaned(self, store: Store, owner: str) -> None:
        """An external_id is found by the text that it was given as, even if that is not valid Unicode."""
        created = await store.get_or_create_conversation(owner, NewConversation(external_id="e\ud800"))
        assert created.external_id == "e\ufffd"
        assert await store.find_conversation(owner, "e\ud800") == created
        assert await store.get_or_create_conversation(owner, NewConversation(external_id="e\ud800")) == created
        assert await whole_list(store, owner, external_id="e\ud800") == [created]

    async def test_a_conversation_with_that_uuid_is_it(self, store: Store, owner: str) -> None:
        """The text of a UUID names the conversation with this id, also if it has no external_id."""
        there = await store.create_conversation(owner, ImportedConversation(id=UUID(FOREIGN[4]), title="T"))
        assert await store.get_or_create_conversation(owner, NewConversation(external_id=FOREIGN[4])) == there
        assert await store.find_conversation(owner, FOREIGN[4]) == there

    async def test_an_import_with_that_uuid_says_nothing_else(self, store: Store, owner: str) -> None:
        """An import has no external_id beside an id that is a UUID: that is no difference to get-or-create's."""
        made = await store.get_or_create_conversation(owner, NewConversation(external_id=FOREIGN[4]))
        receipt = await store.import_conversation(owner, ImportedConversation(id=made.id))
        assert receipt.differences == ()


def _quoted(text: str) -> str:
    return NewConversation(external_id=text).model_dump_json(include={"external_id"}).partition(":")[2][:-1]
