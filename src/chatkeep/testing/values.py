"""Text, JSON, times and lengths are kept unchanged."""

import asyncio
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json

from chatkeep.errors import Conflict, InvalidInput
from chatkeep.events import Event, EventKind
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ImportedConversation,
    ImportedMessage,
    NewConversation,
    NewMessage,
    Role,
    Source,
    Span,
    Status,
)
from chatkeep.store import Store
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.examples import JSON_OBJECTS, LABELS, PROPERTY
from chatkeep.testing.messages import assistant, contents, dense, seqs, someone, user
from chatkeep.testing.reference import found, reads_of
from chatkeep.testing.turn_steps import begin

SPANS = st.none() | st.builds(
    lambda start, length: Span(start=start, end=start + length), st.integers(0, 2**62), st.integers(0, 2**62)
)


def _nested(levels: int) -> Any:
    return [_nested(levels - 1)] if levels else 1


LARGEST: dict[str, Callable[[], Any]] = {
    "levels": lambda: _nested(99),
    "digits": lambda: [10**4_300 - 1, 1 - 10**4_300],
    "values": lambda: [0] * 99_999,
    "bytes": lambda: "é" * ((1 << 19) - 4),
}
"""For each limit of metadata a value of the key `x` that reaches it."""

LOWER: dict[str, tuple[int, dict[str, Any], dict[str, Any], str]] = {
    "max_metadata_depth": (3, {"x": [[1]]}, {"x": [[[]]]}, "3 levels"),
    "max_metadata_digits": (20, {"x": 10**20 - 1}, {"x": 10**20}, "20 digits"),
    "max_metadata_values": (4, {"x": [1, 2, 3]}, {"x": [1, 2, 3, 4]}, "4 values"),
    "max_metadata_bytes": (20, {"x": "0123456789ab"}, {"x": "0123456789abc"}, "20 bytes"),
}
"""For each option its value, metadata at that limit, metadata beyond it, and what the error says."""


class ValueContract(Contract):
    """Text, JSON, times and lengths are kept unchanged."""

    @PROPERTY
    @given(content=st.text(), title=LABELS, context=LABELS, metadata=JSON_OBJECTS)
    async def test_every_text_comes_back_as_it_went_in(
        self, store: Store, owner: str, content: str, title: str, context: str, metadata: dict[str, Any]
    ) -> None:
        """Every valid Unicode text in content, title, context and metadata is kept, character by character."""
        new = NewConversation(title=title, context_id=context, external_id=title, metadata=metadata)
        conversation = await store.create_conversation(owner, new)
        assert (conversation.title, conversation.context_id, conversation.external_id) == (title, context, title)
        (message,) = await store.append(
            owner, conversation.id, [assistant(content, metadata=metadata, external_id=title)]
        )
        read = await store.get_message(owner, conversation.id, message.id)
        assert (read.content, read.external_id) == (content, title)
        for value in (read.metadata, (await store.get_conversation(owner, conversation.id)).metadata):
            assert json.dumps(value) == json.dumps(metadata)
        listed = await store.list_conversations(owner, context_id=context, limit=1)
        assert [c.id for c in listed.items] == [conversation.id]

    @pytest.mark.parametrize(
        "text",
        ["\x00", "a\x00b", "\ufdd0", "\ufffe\uffff", "\U0010ffff", "\ufdd00000", "\ufeffx", "e\u0301é", "\r\n\t "],
    )
    async def test_rare_characters(self, store: Store, owner: str, conversation: Conversation, text: str) -> None:
        """NUL, noncharacters, marks and line ends are kept in content and in metadata's keys and values."""
        (stored,) = await store.append(owner, conversation.id, [assistant(text, metadata={text: [text]})])
        read = await store.get_message(owner, conversation.id, stored.id)
        assert (read.content, read.metadata) == (text, {text: [text]})
        changed = await store.update_conversation(owner, conversation.id, ConversationChange(metadata={text: text}))
        assert changed.metadata == {text: text}
        assert (await store.get_conversation(owner, conversation.id)).metadata == {text: text}

    async def test_lone_surrogates_become_replacement_characters(self, store: Store, owner: str) -> None:
        """Surrogates never fail a write: pairs are joined, lone ones become U+FFFD, everywhere."""
        broken, whole = "a\ud800b \ud83d\ude00 \udfff", "a\ufffdb 😀 \ufffd"
        new = NewConversation(title=broken, context_id=broken, external_id=broken, metadata={broken: [broken]})
        conversation = await store.create_conversation(owner, new)
        assert (conversation.title, conversation.context_id, conversation.external_id) == (whole, whole, whole)
        assert conversation.metadata == {whole: [whole]}
        (message,) = await store.append(owner, conversation.id, [user(broken, metadata={broken: broken})])
        assert (message.content, message.metadata) == (whole, {whole: whole})
        assert await store.log(owner, conversation.id) == [message]
        again = await store.append(owner, conversation.id, [user(broken, id=message.id, metadata={broken: broken})])
        assert again == [message]

    async def test_json_keeps_what_databases_like_to_change(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Big integers, order of keys, kinds of numbers and the sign of zero are kept in metadata."""
        metadata = {"z": 2**80, "a": -(10**40), "f": 1e2, "n": -0.0, "i": 1, "t": True, "x": 1e-300, "e": {}, "l": []}
        (stored,) = await store.append(owner, conversation.id, [user("numbers", metadata=metadata)])
        read = await store.get_message(owner, conversation.id, stored.id)
        expected = '{"z": 1208925819614629174706176, "a": -10000000000000000000000000000000000000000, "f": 100.0, '
        expected += '"n": -0.0, "i": 1, "t": true, "x": 1e-300, "e": {}, "l": []}'
        assert json.dumps(read.metadata) == json.dumps(stored.metadata) == expected

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {1, 2}, b"raw", datetime.now(UTC)])
    async def test_metadata_that_is_not_json_is_refused(self, value: object) -> None:
        """Values that JSON does not have are refused by the record."""
        for build in (
            lambda: user("hello", metadata={"v": [value]}),
            lambda: NewConversation(metadata={"v": value}),
            lambda: ConversationChange(metadata={"v": value}),
        ):
            with pytest.raises(ValueError, match="metadata"):
                build()

    @pytest.mark.parametrize("depth", [50, 250, 2_000, 5_000, 100_000])
    async def test_deep_metadata_is_kept_whole_or_refused(
        self, store: Store, owner: str, conversation: Conversation, depth: int
    ) -> None:
        """Metadata that a record accepts can be stored, merged, read and serialised, however deeply it is nested."""
        nested: dict[str, Any] = {}
        for _ in range(depth):
            nested = {"a": nested}
        try:
            new, change = user("deep", metadata=nested), ConversationChange(metadata=nested)
        except ValueError:
            assert depth > 50
            return
        failure = None
        try:
            (message,) = await store.append(owner, conversation.id, [new])
            changed = await store.update_conversation(owner, conversation.id, change)
            message.model_dump_json(), changed.model_dump_json()
        except Exception as error:  # noqa: BLE001 - pytest would compare the frames of a recursion for minutes
            failure = type(error).__name__
        assert failure is None

    @pytest.mark.parametrize("name", LARGEST)
    async def test_metadata_at_a_limit_is_kept(
        self, store: Store, owner: str, conversation: Conversation, name: str
    ) -> None:
        """What a record takes is stored, read, changed, appended again and listed, up to each limit of metadata."""
        metadata = {"x": LARGEST[name]()}
        new = user("large", id=uuid4(), metadata=metadata)
        (stored,) = await store.append(owner, conversation.id, [new])
        assert await store.append(owner, conversation.id, [new]) == [stored]
        assert (await store.get_message(owner, conversation.id, stored.id)).metadata == metadata
        change = ConversationChange(metadata=metadata)
        assert (await store.update_conversation(owner, conversation.id, change)).metadata == metadata
        created = await store.create_conversation(owner, NewConversation(metadata=metadata))
        listed = (await store.list_conversations(owner)).items
        assert [c.metadata for c in listed] == [metadata] * 2
        assert created in listed
        assert b'"x":' in to_json(listed)

    async def test_changes_cannot_make_metadata_too_large(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Each change is small and their sum is not: the one that would pass a limit is refused and changes nothing."""
        for key in "abc":
            await self._change(store, owner, conversation, {key: "x" * 300_000})
        with pytest.raises(InvalidInput, match=r"metadata may have at most 1,048,576 bytes .* after this change"):
            await self._change(store, owner, conversation, {"d": "x" * 300_000})
        assert (await store.get_conversation(owner, conversation.id)).metadata.keys() == set("abc")
        await self._change(store, owner, conversation, {"a": None, "d": "x" * 300_000})
        await self._change(store, owner, conversation, {**dict.fromkeys("bcd"), "e": [0] * 60_000})
        with pytest.raises(InvalidInput, match=r"metadata may have at most 100,000 values"):
            await self._change(store, owner, conversation, {"f": [0] * 60_000})
        assert (await store.get_conversation(owner, conversation.id)).metadata == {"e": [0] * 60_000}

    async def _change(
        self, store: Store, owner: str, conversation: Conversation, metadata: dict[str, Any]
    ) -> Conversation:
        return await store.update_conversation(owner, conversation.id, ConversationChange(metadata=metadata))

    @pytest.mark.parametrize("name", LOWER)
    async def test_limits_of_metadata_can_be_lower(self, open_store_with: Opener, owner: str, name: str) -> None:
        """A store may be opened with lower limits: every call that stores metadata keeps them, and names them."""
        limit, most, more, message = LOWER[name]
        async with open_store_with(**{name: limit}) as store:
            conversation = await store.create_conversation(owner, NewConversation(metadata=most, context_id="c"))
            await store.append(owner, conversation.id, [user("fits", metadata=most)])
            await store.update_conversation(owner, conversation.id, ConversationChange(metadata=most))
            new, imported = NewConversation(metadata=more, context_id="c"), ImportedConversation(metadata=more)
            message_of_import = ImportedMessage(role=Role.USER, content="x", metadata=more)
            for call in (
                store.create_conversation(owner, new),
                store.create_conversation(owner, imported),
                store.get_or_create_conversation(owner, new),
                store.append(owner, conversation.id, [user("first"), user("x", metadata=more)]),
                store.append(owner, conversation.id, [message_of_import]),
                store.update_conversation(owner, conversation.id, ConversationChange(metadata=more)),
            ):
                with pytest.raises(InvalidInput, match=f"metadata may have at most {message}"):
                    await call
            assert [c.metadata for c in (await store.list_conversations(owner)).items] == [most]
            assert contents(await store.log(owner, conversation.id)) == ["fits"]

    async def test_sources_have_a_limit(self, open_store_with: Opener, owner: str) -> None:
        """A store may take fewer sources than a record holds; an append with more in one message stores nothing."""
        source = Source(document_id=uuid4(), file_path="a.md", similarity_score=0.5)
        async with open_store_with(max_sources=2) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            await store.append(owner, conversation.id, [assistant("fits", sources=(source,) * 2)])
            more = (source,) * 3
            imported = ImportedMessage(role=Role.USER, content="x", sources=more)
            for messages in ([user("first"), assistant("x", sources=more)], [imported]):
                with pytest.raises(InvalidInput, match="at most 2 sources"):
                    await store.append(owner, conversation.id, messages)
            assert contents(await store.log(owner, conversation.id)) == ["fits"]

    @PROPERTY
    @given(title=LABELS, quote=st.text(min_size=1), spans=st.tuples(SPANS, SPANS))
    async def test_sources_come_back_as_they_went_in(
        self, store: Store, owner: str, title: str, quote: str, spans: tuple[Span | None, Span | None]
    ) -> None:
        """Every text and every place in a source is kept, and what is absent stays absent, beside others that say more;
        so it is in an export, and in what is imported from it."""
        place: dict[str, Any] = {"document_id": uuid4(), "file_path": "herbs \x00.md", "similarity_score": 0.5}
        whole = Source(**place, title=title, quote=quote, document_span=spans[0], answer_span=spans[1])
        sources = (whole, Source(**place), Source(**place, title=title))
        new = assistant("A herb.", id=uuid4(), sources=sources)
        conversation = await store.create_conversation(owner, NewConversation())
        (stored,) = await store.append(owner, conversation.id, [new])
        assert await store.append(owner, conversation.id, [new]) == [stored]
        for message in await reads_of(store, owner, conversation.id, stored.id):
            assert message.sources == sources
        with pytest.raises(Conflict):
            await store.append(owner, conversation.id, [new.model_copy(update={"sources": sources[1:]})])
        talk, _ = await store.export_conversation(owner, conversation.id)
        exported = await store.export_messages(owner, conversation.id)
        other = someone()
        await store.import_conversation(other, talk, exported)
        assert (await store.get_message(other, talk.id or "", stored.id)).sources == sources

    @pytest.mark.parametrize("text", ["\x00", "a\x00b", "\ufdd0", "\U0010ffff", "🌿", "e\u0301", "\r\n\t x"], ids=ascii)
    async def test_rare_characters_in_sources(
        self, store: Store, owner: str, conversation: Conversation, text: str
    ) -> None:
        """NUL, noncharacters and characters beyond the first plane are kept in titles and quotes, by turns as well."""
        place: dict[str, Any] = {"document_id": str(uuid4()), "file_path": "a.md", "similarity_score": -1.0}
        span = Span(start=0, end=2**63 - 1)
        source = Source.model_validate({**place, "title": text, "quote": text * 100, "answer_span": span})
        (stored,) = await store.append(owner, conversation.id, [assistant("", sources=(source,))])
        assert (await store.get_message(owner, conversation.id, stored.id)).sources == (source,)
        running = await begin(store, owner, conversation.id)
        await running.write(Event(EventKind.SOURCE, {"id": "s", **source.model_dump(mode="json")}))
        assert (await running.message()).sources == (source,)
        assert (await running.finish()).sources == (await running.message()).sources == (source,)

    async def test_records_are_copies(self, store: Store, owner: str) -> None:
        """Changes to values that a caller gave or got do not affect the store."""
        given_metadata = {"list": [1]}
        new = NewConversation(id=uuid4(), metadata=given_metadata)
        conversation = await store.create_conversation(owner, new)
        message = user("hello", id=uuid4(), metadata=given_metadata)
        (stored,) = await store.append(owner, conversation.id, [message])
        change = ConversationChange(metadata={"more": [2]})
        changed = await store.update_conversation(owner, conversation.id, change)
        given_metadata["list"].append(9)
        for record in (new, conversation, message, stored, change, changed):
            assert record.metadata is not None
            for key in record.metadata:
                record.metadata[key].append("changed from outside")
        assert (await store.get_conversation(owner, conversation.id)).metadata == {"list": [1], "more": [2]}
        assert (await store.get_message(owner, conversation.id, stored.id)).metadata == {"list": [1]}
        for page in (await store.history(owner, conversation.id), await store.list_conversations(owner)):
            page.items[0].metadata.clear()
            page.items.clear()
        assert (await store.get_conversation(owner, conversation.id)).metadata == {"list": [1], "more": [2]}
        assert (await store.log(owner, conversation.id))[0].metadata == {"list": [1]}

    async def test_times_are_exact_and_in_utc(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Times keep their microseconds, from year 1 to 9999, and are returned in UTC; naive ones are refused."""
        east = timezone(timedelta(hours=5, minutes=45))
        times = [
            datetime(2026, 1, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2026, 1, 31, 12, 0, 0, 367046, tzinfo=east),
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        ]
        await store.append(owner, conversation.id, [user("when", sent_at=time) for time in times])
        stored = [message.sent_at for message in await store.log(owner, conversation.id)]
        assert stored == times
        assert all(time is not None and time.utcoffset() == timedelta(0) for time in stored)
        for wrong in (datetime(2026, 1, 31), "2026-01-31T12:00:00", 1_769_860_800, "tomorrow"):  # noqa: DTZ001
            with pytest.raises(ValueError, match="sent_at"):
                user("when", sent_at=wrong)

    async def test_long_answers_are_kept(self, store: Store, owner: str, conversation: Conversation) -> None:
        """An assistant's or a tool's message may have a megabyte, or be empty."""
        long = "Tea, 茶, чай. " * 80_000
        new = [assistant(long), NewMessage(role=Role.TOOL, content=long[::-1]), assistant(""), assistant("  \n")]
        await store.append(owner, conversation.id, new)
        assert contents((await store.history(owner, conversation.id)).items) == [m.content for m in new]

    async def test_long_questions_are_refused(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A user's or system's message has at most max_content_chars characters; the error names the limit."""
        await store.append(owner, conversation.id, [user("😀" * 10_000)])
        for role in (Role.USER, Role.SYSTEM):
            with pytest.raises(InvalidInput, match="10,000 characters"):
                await store.append(owner, conversation.id, [user("first"), NewMessage(role=role, content="x" * 10_001)])
        assert (await store.get_conversation(owner, conversation.id)).last_seq == 1

    async def test_max_content_chars_can_be_set(self, open_store_with: Opener, owner: str) -> None:
        """A store may be opened with another limit; 0 means no limit."""
        async with open_store_with(max_content_chars=5) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            await store.append(owner, conversation.id, [user("12345")])
            with pytest.raises(InvalidInput, match="at most 5 characters"):
                await store.append(owner, conversation.id, [user("123456")])
        async with open_store_with(max_content_chars=0) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            (message,) = await store.append(owner, conversation.id, [user("x" * 1_000_000)])
            assert len(message.content) == 1_000_000

    @pytest.mark.parametrize("content", ["", " ", "\n\t\u3000\u00a0"])
    async def test_blank_questions_are_refused(self, content: str) -> None:
        """A user's or system's message is never blank; an unknown role or status is refused as well."""
        for role in (Role.USER, Role.SYSTEM):
            with pytest.raises(ValueError, match="must not be blank"):
                NewMessage(role=role, content=content)
        unknown: tuple[dict[str, Any], ...] = (
            {"role": "bot"},
            {"role": "User"},
            {"status": "deleted"},
            {"status": "done"},
        )
        for values in unknown:
            with pytest.raises(ValueError, match=r"role|status|deleted"):
                NewMessage(**{"role": "user", "content": "hello", **values})

    async def test_imports_keep_what_happened(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Imported messages may be blank, long, or already deleted."""
        new = [
            ImportedMessage(role=Role.USER, content=""),
            ImportedMessage(role=Role.SYSTEM, content="x" * 20_000),
            ImportedMessage(role=Role.USER, content="", status=Status.DELETED),
            ImportedMessage(role=Role.ASSISTANT, content="half an ans", status=Status.FAILED),
        ]
        stored = await store.append(owner, conversation.id, new)
        assert contents(stored) == [m.content for m in new]
        assert [m.status for m in stored] == [m.status for m in new]
        page = await store.history(owner, conversation.id, total=True)
        assert (seqs(page.items), page.total) == ([1, 2, 4], 3)
        assert seqs(await store.log(owner, conversation.id)) == dense(4)

    async def test_imports_are_found_soon(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Imported messages are found a moment after they are stored."""
        await store.append(owner, conversation.id, [ImportedMessage(role=Role.USER, content="sage tea, 花草茶")])
        for query in ("sage", "花草"):
            async with asyncio.timeout(10):
                while await found(store, owner, query) != {"sage tea, 花草茶"}:  # noqa: ASYNC110 - there is no event to wait for
                    await asyncio.sleep(0.01)
