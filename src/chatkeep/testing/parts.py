"""Parts of messages: the whole message as its maker had it."""

import json
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatkeep.errors import Conflict, InvalidInput
from chatkeep.model import (
    Conversation,
    ImportedConversation,
    ImportedMessage,
    NewConversation,
    NewMessage,
    Role,
    Status,
)
from chatkeep.store import Store
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.examples import JSON_OBJECTS, PROPERTY
from chatkeep.testing.messages import assistant, contents, someone, user
from chatkeep.testing.reference import found, reads_of, whole_log, whole_search

SIGNATURE = "EqQBCgIYAhIM+/aZ09==" * 200
"""As providers sign what a model thought: refused by them if one byte differs."""

KINDS: dict[str, list[dict[str, Any]]] = {
    "text": [{"type": "text", "text": "Saffron tea."}, {"type": "text", "text": " Hot."}],
    "reasoning": [{"type": "reasoning", "text": "They ask for tea.", "signature": SIGNATURE}],
    "redacted": [{"type": "reasoning", "text": "", "data": SIGNATURE, "redacted": True}],
    "tool calls": [
        {"type": "tool_call", "id": "c-1", "name": "kettle", "arguments": {"degrees": 80, "of": ["tea", None]}},
        {"type": "tool_call", "id": "c-2", "name": "kettle", "arguments": '{"degrees": 8'},
    ],
    "tool results": [
        {"type": "tool_result", "tool_call_id": "c-1", "content": [{"type": "text", "text": "80"}], "is_error": False},
        {"type": "tool_result", "tool_call_id": "c-2", "content": "no such kettle", "is_error": True},
    ],
    "files": [
        {"type": "file", "url": "https://files.test/cup.png", "media_type": "image/png", "name": "cup.png", "size": 9},
        {"type": "file", "file_id": "f-1", "media_type": "audio/wav", "hash": "sha256:00ff"},
    ],
    "sources": [{"type": "source", "url": "https://tea.test/", "title": "Tea", "quote": "80 °C"}],
    "data": [{"type": "data", "data": None}, {"type": "data", "data": {"chart": [1, 2.5, -0.0]}}],
    "text of another kind": [{"type": "text", "text": {"value": "tea"}}, {"type": "text", "content": "tea"}],
    "unknown": [{"type": "web_search_call", "status": "completed"}, {"x": [], "type": "vendor.π", "text": 7}],
}
"""Parts of every type, and of unknown ones, with fields that nobody but their maker knows."""

PART = st.builds(
    lambda fields, kind: {**fields, "type": kind}, JSON_OBJECTS, st.text(min_size=1).filter(lambda kind: kind != "text")
)

TOO_MUCH: dict[str, tuple[Any, Any, str]] = {
    "bytes": ("é" * ((4 << 20) - 14) + "x", "é" * ((4 << 20) - 13), "8,388,608 bytes"),
    "values": ([0] * (100_000 - 3), [0] * (100_000 - 2), "100,000 values"),
    "digits": (10**4_300 - 1, 10**4_300, "4,300 digits"),
}
"""For each limit the data of a part that reaches it, data beyond it, and what the error says."""

LOWER: dict[str, tuple[int, Any, Any, str]] = {
    "max_metadata_depth": (4, [[]], [[[]]], "4 levels"),
    "max_metadata_digits": (20, 10**20 - 1, 10**20, "20 digits"),
    "max_metadata_values": (6, [1, 2, 3], [1, 2, 3, 4], "6 values"),
}
"""For each option its value, the data of a part at that limit, data beyond it, and what the error says."""


def data(value: object) -> list[dict[str, Any]]:
    """One part with these data."""
    return [{"type": "data", "data": value}]


def levels(count: int) -> Any:
    """Lists in lists."""
    return [levels(count - 1)] if count else 1


class PartContract(Contract):
    """Parts of messages."""

    @pytest.mark.parametrize("kind", KINDS)
    async def test_every_kind_is_kept_by_every_read(
        self, store: Store, owner: str, conversation: Conversation, kind: str
    ) -> None:
        """Parts of known and unknown types, with any fields, come back as they were given, in every read."""
        given_, other = json.dumps(KINDS[kind]), someone()
        new = [user("before"), assistant("tea leaves", parts=KINDS[kind]), assistant("after", parts=KINDS[kind])]
        _, stored, _ = await store.append(owner, conversation.id, new)
        (exported,) = await store.export_messages(owner, conversation.id, after=1, limit=1)
        whole = await store.export_messages(owner, conversation.id)
        await store.import_conversation(other, ImportedConversation(id=conversation.id), whole)
        hits = [hit.message for hit in await whole_search(store, owner, "leaves")]
        reads = await reads_of(store, owner, conversation.id, stored.id)
        reads += await reads_of(store, other, conversation.id, stored.id)
        for parts in (exported.parts, *(message.parts for message in (stored, *hits, *reads))):
            assert json.dumps(parts) == given_
        assert len(hits) == 1
        assert hits[0] == reads[0] == stored

    @PROPERTY
    @given(parts=st.lists(PART, min_size=1, max_size=4))
    async def test_any_json_is_kept(self, store: Store, owner: str, parts: list[dict[str, Any]]) -> None:
        """Objects with a type are kept to the character: order of keys, big integers, NUL, kinds of numbers."""
        conversation = await store.create_conversation(owner, NewConversation())
        (stored,) = await store.append(owner, conversation.id, assistant("", parts=parts))
        read = await store.get_message(owner, conversation.id, stored.id)
        assert json.dumps(read.parts) == json.dumps(stored.parts) == json.dumps(parts)

    async def test_lone_surrogates_in_parts_become_replacement_characters(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Text in parts is cleaned as everywhere: pairs are joined, lone surrogates become U+FFFD, NUL stays."""
        broken, whole = "a\ud800b\x00 \ud83d\ude00 \udfff", "a\ufffdb\x00 😀 \ufffd"
        new = assistant("x", id=uuid4(), parts=[{"type": "text", "text": broken}, {"type": broken, broken: [broken]}])
        (stored,) = await store.append(owner, conversation.id, new)
        assert stored.parts == ({"type": "text", "text": whole}, {"type": whole, whole: [whole]})
        assert await reads_of(store, owner, conversation.id, stored.id) == [stored] * 5
        assert await store.append(owner, conversation.id, new) == [stored]

    @pytest.mark.parametrize(
        ("role", "content"),
        [(Role.ASSISTANT, "Saffron tea."), (Role.USER, "Saffron\n tea."), (Role.TOOL, "Saffron\n tea.")],
    )
    async def test_content_is_made_of_the_text_parts(
        self, store: Store, owner: str, conversation: Conversation, role: Role, content: str
    ) -> None:
        """Without content it is the text of the text parts: an assistant's one after another, others by line."""
        parts = [
            {"type": "text", "text": "Saffron"},
            {"type": "data", "data": "not shown", "text": "nor this"},
            {"type": "text", "text": " tea."},
        ]
        for values in ({}, {"content": ""}, {"content": None}):
            for kind in (NewMessage, ImportedMessage):
                (stored,) = await store.append(owner, conversation.id, kind(role=role, parts=parts, **values))
                assert stored.content == content
        assert await found(store, owner, "saffron tea") == {content}
        assert await found(store, owner, "shown") == set()

    async def test_content_that_is_given_stays(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Content and parts may say different things; without either a message is refused."""
        parts = [{"type": "text", "text": "<b>Tea</b>"}]
        (stored,) = await store.append(owner, conversation.id, assistant("Tea", parts=parts))
        assert stored.content == "Tea"
        assert stored.parts == tuple(parts)
        nothing: tuple[dict[str, Any], ...] = ({}, {"parts": None}, {"parts": []})
        for kind in (NewMessage, ImportedMessage):
            for values in nothing:
                with pytest.raises(ValueError, match="content or parts must be given"):
                    kind(role=Role.ASSISTANT, **values)

    async def test_no_parts_are_none(self, store: Store, owner: str, conversation: Conversation) -> None:
        """An empty list of parts is none, also for the fingerprint of a retry."""
        (stored,) = await store.append(owner, conversation.id, user("tea", id=uuid4(), parts=[]))
        assert stored.parts is None
        assert await store.append(owner, conversation.id, user("tea", id=stored.id, parts=None)) == [stored]
        assert await store.append(owner, conversation.id, user("tea", id=stored.id)) == [stored]

    @pytest.mark.parametrize("part", [KINDS["files"][0], KINDS["data"][0], KINDS["tool results"][1]])
    async def test_a_file_alone_says_something(
        self, store: Store, owner: str, conversation: Conversation, part: dict[str, Any]
    ) -> None:
        """A user's message may be a file, data or a tool's result without a text. It makes no title."""
        (stored,) = await store.append(owner, conversation.id, NewMessage(role=Role.USER, parts=[part]))
        assert (stored.content, stored.parts) == ("", (part,))
        assert (await store.get_conversation(owner, conversation.id)).title is None
        await store.append(owner, conversation.id, user("Tea?"))
        assert (await store.get_conversation(owner, conversation.id)).title == "Tea?"

    async def test_title_is_made_of_text_parts(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A message whose text stands in its parts gives the title as any other."""
        parts = [KINDS["files"][0], {"type": "text", "text": "What is in this cup?"}]
        await store.append(owner, conversation.id, NewMessage(role=Role.USER, parts=parts))
        assert (await store.get_conversation(owner, conversation.id)).title == "What is in this cup?"

    @pytest.mark.parametrize("parts", [[{"type": "text", "text": " \n"}], KINDS["reasoning"], KINDS["tool calls"], []])
    async def test_blank_text_parts_are_refused(self, parts: list[dict[str, Any]]) -> None:
        """Blank text, or what only an assistant says, is no question of a user's; an import takes it."""
        for role in (Role.USER, Role.SYSTEM):
            with pytest.raises(ValueError, match="must not be blank"):
                NewMessage(role=role, content="", parts=parts)
            assert ImportedMessage(role=role, content="", parts=parts).content.strip() == ""

    @pytest.mark.parametrize(
        "parts",
        [
            {"type": "text", "text": "tea"},
            "text",
            7,
            ["text"],
            [None],
            [{}],
            [{"type": ""}],
            [{"type": None}],
            [{"type": 7}],
            [{"text": "tea"}],
            [{"type": "data", "data": float("nan")}],
            [{"type": "data", "data": {1, 2}}],
        ],
        ids=repr,
    )
    async def test_what_is_no_part_is_refused(self, parts: Any) -> None:
        """Parts are objects of JSON with a type."""
        for kind in (NewMessage, ImportedMessage):
            with pytest.raises(ValueError, match="parts"):
                kind(role=Role.ASSISTANT, content="tea", parts=parts)

    @pytest.mark.parametrize("name", TOO_MUCH)
    async def test_parts_at_a_limit_are_kept(
        self, store: Store, owner: str, conversation: Conversation, name: str
    ) -> None:
        """Parts are stored and read up to each limit, and refused by the record beyond it."""
        most, more, message = TOO_MUCH[name]
        new = assistant("x", id=uuid4(), parts=data(most))
        (stored,) = await store.append(owner, conversation.id, new)
        assert await store.append(owner, conversation.id, new) == [stored]
        (read,) = (await store.history(owner, conversation.id)).items
        assert read == stored
        assert read.parts == tuple(data(most))
        for kind in (NewMessage, ImportedMessage):
            with pytest.raises(ValueError, match=f"may have at most {message}"):
                kind(role=Role.ASSISTANT, content="x", parts=data(more))

    async def test_deepest_parts_are_kept(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Parts have 100 levels: the list is the first, a part the second; one more is refused."""
        (stored,) = await store.append(owner, conversation.id, assistant("x", parts=data(levels(98))))
        read = await store.get_message(owner, conversation.id, stored.id)
        assert read.parts == tuple(data(levels(98)))
        read.model_dump_json()
        with pytest.raises(ValueError, match="100 levels"):
            assistant("x", parts=data(levels(99)))

    @pytest.mark.parametrize("name", LOWER)
    async def test_limits_of_parts_can_be_lower(self, open_store_with: Opener, owner: str, name: str) -> None:
        """A store with lower limits of metadata keeps them for parts, too, in every call that stores messages."""
        limit, most, more, message = LOWER[name]
        async with open_store_with(**{name: limit}) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            await store.append(owner, conversation.id, [assistant("fits", parts=data(most))])
            imported = ImportedMessage(role=Role.USER, content="x", parts=data(more))
            for call in (
                store.append(owner, conversation.id, [user("first"), assistant("x", parts=data(more))]),
                store.append(owner, conversation.id, [imported]),
                store.import_conversation(owner, ImportedConversation(id=uuid4()), [imported]),
            ):
                with pytest.raises(InvalidInput, match=f"parts may have at most {message}"):
                    await call
            assert contents(await store.log(owner, conversation.id)) == ["fits"]

    async def test_size_of_metadata_is_no_limit_of_parts(self, open_store_with: Opener, owner: str) -> None:
        """A lower limit of the bytes of metadata does not hold for parts."""
        async with open_store_with(max_metadata_bytes=20) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            (stored,) = await store.append(owner, conversation.id, assistant("x", parts=data("x" * 2_000_000)))
            assert (await store.get_message(owner, conversation.id, stored.id)).parts == tuple(data("x" * 2_000_000))

    async def test_other_parts_are_other_content(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The same id with other parts is a conflict; with the same parts, their keys in another order, it is not."""
        parts = [{"type": "tool_call", "id": "c", "name": "kettle", "arguments": {"a": 1, "b": {"d": 2, "c": 3}}}]
        new = assistant("x", id=uuid4(), parts=parts)
        (stored,) = await store.append(owner, conversation.id, new)
        again = [{"arguments": {"b": {"c": 3, "d": 2}, "a": 1}, "name": "kettle", "id": "c", "type": "tool_call"}]
        assert await store.append(owner, conversation.id, assistant("x", id=new.id, parts=again)) == [stored]
        for other in (None, parts * 2, [{**parts[0], "arguments": {}}], [{**parts[0], "signature": ""}]):
            with pytest.raises(Conflict):
                await store.append(owner, conversation.id, assistant("x", id=new.id, parts=other))
        assert await store.log(owner, conversation.id) == [stored]

    async def test_order_of_parts_counts(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The same parts in another order are another message."""
        new = assistant("x", id=uuid4(), parts=KINDS["tool calls"])
        await store.append(owner, conversation.id, new)
        with pytest.raises(Conflict):
            await store.append(owner, conversation.id, assistant("x", id=new.id, parts=KINDS["tool calls"][::-1]))

    async def test_content_that_was_made_is_content(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Whether the content is given or made of the parts makes no difference to a retry."""
        (stored,) = await store.append(
            owner, conversation.id, NewMessage(id=uuid4(), role=Role.ASSISTANT, parts=KINDS["text"])
        )
        again = assistant(stored.content, id=stored.id, parts=KINDS["text"])
        assert await store.append(owner, conversation.id, again) == [stored]

    async def test_deletion_erases_parts(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A tombstone has no parts, in the log, in the export and in the answer to a late retry."""
        new = assistant("gone", id=uuid4(), parts=KINDS["reasoning"])
        (stored,) = await store.append(owner, conversation.id, new)
        assert await store.delete_message(owner, conversation.id, stored.id)
        (retried,) = await store.append(owner, conversation.id, new)
        (logged,) = await store.log(owner, conversation.id)
        (exported,) = await store.export_messages(owner, conversation.id)
        for message in (retried, logged, exported):
            assert (message.status, message.content, message.parts) == (Status.DELETED, "", None)
        with pytest.raises(ValueError, match="a deleted message has no"):
            ImportedMessage(role=Role.USER, content="", parts=data(1), status=Status.DELETED)

    async def test_parts_that_another_import_changes(self, store: Store, owner: str) -> None:
        """An import of the same text with other parts is no conflict, as with metadata; what is stored stays."""
        new, id_ = ImportedConversation(id=uuid4()), uuid4()
        assert new.id is not None
        first = ImportedMessage(id=id_, role=Role.ASSISTANT, content="x", parts=KINDS["text"])
        await store.import_conversation(owner, new, [first])
        other = first.model_copy(update={"parts": None})
        receipt = await store.import_conversation(owner, new, [other], update=True)
        assert (receipt.messages, receipt.known, receipt.differences) == (0, 1, ())
        assert [m.parts for m in await whole_log(store, owner, new.id)] == [tuple(KINDS["text"])]

    async def test_parts_are_copies(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Changes inside of parts that a caller gave or got do not affect the store."""
        given_: list[dict[str, Any]] = [{"type": "data", "data": [1]}]
        new = assistant("x", id=uuid4(), parts=given_)
        (stored,) = await store.append(owner, conversation.id, new)
        read = await store.get_message(owner, conversation.id, stored.id)
        given_[0]["data"].append("changed from outside")
        assert new.parts == ({"type": "data", "data": [1]},)
        for record in (new, stored, read):
            assert record.parts is not None
            record.parts[0]["data"].append("changed from outside")
        assert (await store.get_message(owner, conversation.id, stored.id)).parts == tuple(data([1]))
