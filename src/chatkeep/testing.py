"""The contract of `Store` as a pytest suite: for the stores of chatkeep, and for one of your own.

    from chatkeep.testing import StoreContract

    class TestMyStore(StoreContract):
        @pytest.fixture
        def open_store_with(self, tmp_path):
            return lambda **options: open_my_store(tmp_path / "chat", **options)

`open_store_with` gives a function that takes options of `StoreOptions` and returns what `async with` opens.
Every test works with owners of its own, so the store may hold other data, and stay between tests.

Needs the extra `testing` (pip install 'chatkeep[testing]') and `asyncio_mode = "auto"` in pytest's settings.
How many examples the property tests try is what the active profile of hypothesis says. Failures explain
themselves better after `pytest.register_assert_rewrite("chatkeep.testing")` in your conftest.py.
"""

import asyncio
import base64
import inspect
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

from chatkeep.access import ApiKey, Reply
from chatkeep.errors import ChatkeepError, Conflict, InvalidId, InvalidInput, NotFound, NotYours, StoreUnavailable
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
    SearchHit,
    Source,
    Status,
    now,
)
from chatkeep.store import ListOrder, Order, Store

try:
    import pytest
    from hypothesis import HealthCheck, given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"chatkeep.testing needs {error.name}, a part of the extra `testing`: pip install 'chatkeep[testing]'",
        name=error.name,
    ) from error

type Opener = Callable[..., AbstractAsyncContextManager[Store]]
"""Takes store options as keywords and returns what `async with` opens."""

type Call = Callable[[Store, str, Any, Any], Awaitable[object]]
"""One call of a method, with the owner, a conversation's id and a message's id."""

METHODS = sorted(name for name in Store.__abstractmethods__ if name != "access")
"""The methods of the port; `access` is a port of its own."""

CONVERSATION_CALLS: Mapping[str, Call] = {
    "get_conversation": lambda store, owner, c, _: store.get_conversation(owner, c),
    "update_conversation": lambda store, owner, c, _: store.update_conversation(
        owner, c, ConversationChange(title="taken over", metadata={"taken": True}, head_id=None)
    ),
    "delete_conversation": lambda store, owner, c, _: store.delete_conversation(owner, c),
    "append": lambda store, owner, c, _: store.append(owner, c, [user("let me in")]),
    "history": lambda store, owner, c, m: store.history(owner, c, leaf=m),
    "log": lambda store, owner, c, _: store.log(owner, c),
    "get_message": lambda store, owner, c, m: store.get_message(owner, c, m),
    "siblings": lambda store, owner, c, m: store.siblings(owner, c, m),
    "delete_message": lambda store, owner, c, m: store.delete_message(owner, c, m),
}
"""A call of every method that takes a conversation's id. A test compares the names with the port's."""

OWNER_CALLS: Mapping[str, Call] = {
    "create_conversation": lambda store, owner, *_: store.create_conversation(owner, NewConversation()),
    "get_or_create_conversation": lambda store, owner, *_: store.get_or_create_conversation(owner, NewConversation()),
    "list_conversations": lambda store, owner, *_: store.list_conversations(owner),
    "search_messages": lambda store, owner, *_: store.search_messages(owner, "tea"),
    "erase_owner": lambda store, owner, *_: store.erase_owner(owner),
}
"""A call of every other method that takes an owner."""

ORDERS: tuple[Order, ...] = ("desc", "asc")
"""Both ways to page through a history."""

STORE_CALLS = frozenset({"migrate", "schema_revision", "ping", "aclose"})
"""The methods that concern the store as a whole."""

MESSAGE_CALLS = ("delete_message", "get_message", "history", "siblings")
"""The methods that take a message's id, too."""

MALFORMED_IDS: tuple[Any, ...] = (
    "",
    "42",
    "tea",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a7",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a755",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a7g",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a_5",
    " 190f0f07a3c7cc2b1c32f6c1d9e8a75",
    "+190f0f07a3c7cc2b1c32f6c1d9e8a75",
    "٣190f0f07a3c7cc2b1c32f6c1d9e8a75",
    "0190f0f0-7a3c-7cc2-b1c3-2f6c1d9e8a75'; --",
    42,
    b"tea",
)
"""What is not a UUID; some of it passes `uuid.UUID(text)` and would name another id than it spells."""

SENTENCES = (
    ("Latin", "Le vieux café du port rouvre demain matin.", "café"),
    ("Greek", "Η θάλασσα είναι ήσυχη σήμερα το πρωί.", "θάλασσα"),
    ("Cyrillic", "Сегодня утром идёт первый снег.", "снег"),
    ("Armenian", "Այսօր երկինքը կապույտ է։", "երկինքը"),
    ("Georgian", "დღეს ზღვა მშვიდია.", "ზღვა"),
    ("Hebrew", "הים שקט היום מאוד.", "שקט"),
    ("Arabic", "البحر هادئ اليوم.", "هادئ"),
    ("Devanagari", "आज समुद्र शांत है।", "समुद्र"),
    ("Bengali", "আজ আকাশ খুব নীল।", "আকাশ"),
    ("Gurmukhi", "ਅੱਜ ਅਸਮਾਨ ਨੀਲਾ ਹੈ।", "ਅਸਮਾਨ"),
    ("Tamil", "இன்று கடல் அமைதியாக இருக்கிறது.", "கடல்"),
    ("Telugu", "ఈ రోజు సముద్రం ప్రశాంతంగా ఉంది.", "సముద్రం"),
    ("Ethiopic", "ዛሬ ሰማይ ሰማያዊ ነው።", "ሰማይ"),
    ("Thai", "วันนี้ทะเลสงบมาก", "ทะเล"),
    ("Lao", "ມື້ນີ້ທະເລງຽບ", "ທະເລ"),
    ("Khmer", "ថ្ងៃនេះសមុទ្រស្ងប់", "សមុទ្រ"),
    ("Myanmar", "ဒီနေ့ပင်လယ်ငြိမ်တယ်", "ပင်လယ်"),
    ("Tibetan", "དེ་རིང་གནམ་སྔོན་པོ་རེད།", "གནམ"),
    ("Han", "我们明天早上去图书馆还书。", "图书"),
    ("Han, across a word", "他说北京大学生活动很多。", "学生"),
    ("Hiragana and Han", "明日の朝、図書館で本を返します。", "図書館"),
    ("Katakana", "朝はコーヒーを飲みます。", "コーヒー"),
    ("Hangul", "오늘 아침에 도서관에서 책을 빌렸다.", "도서관"),
)
"""A script, a sentence in it, and a word of the sentence."""

PROPERTY = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]
)
"""For property tests: a disk has no deadline, and the store, which all examples share, is one per test
function on purpose: each example takes an owner or conversation of its own."""


# --- short forms, and slow but obvious answers to compare with ------------------------------------------


def user(content: str, **values: Any) -> NewMessage:
    """A user's message."""
    return NewMessage(role=Role.USER, content=content, **values)


def assistant(content: str, **values: Any) -> NewMessage:
    """An assistant's message."""
    return NewMessage(role=Role.ASSISTANT, content=content, **values)


def turns(count: int, prefix: str = "turn") -> list[NewMessage]:
    """Messages with ids and contents that differ."""
    return [assistant(f"{prefix} {number}", id=uuid4()) for number in range(count)]


def someone() -> str:
    """An owner whom nobody else uses."""
    return f"owner-{uuid4()}"


async def whole_log(store: Store, owner: str, conversation_id: UUID) -> list[Message]:
    """Everything that was appended to a conversation."""
    messages: list[Message] = []
    while part := await store.log(owner, conversation_id, after=len(messages)):
        messages += part
    return messages


async def whole_history(store: Store, owner: str, conversation_id: UUID, **arguments: Any) -> list[Message]:
    """All pages of a history, joined by cursor, oldest message first."""
    page = await store.history(owner, conversation_id, **arguments)
    messages = page.items
    while page.next:
        page = await store.history(owner, conversation_id, cursor=page.next, **arguments)
        messages = messages + page.items if arguments.get("order") == "asc" else page.items + messages
    return messages


async def whole_list(store: Store, owner: str, **arguments: Any) -> list[Conversation]:
    """All pages of an owner's conversations, joined by cursor."""
    page = await store.list_conversations(owner, **arguments)
    conversations = page.items
    while page.next:
        page = await store.list_conversations(owner, cursor=page.next, **arguments)
        conversations = conversations + page.items
    return conversations


async def whole_search(store: Store, owner: str, query: str, limit: int = 20) -> list[SearchHit]:
    """All pages of a search, joined by cursor."""
    page = await store.search_messages(owner, query, limit=limit)
    hits = page.items
    while page.next:
        page = await store.search_messages(owner, query, limit=limit, cursor=page.next)
        hits = hits + page.items
    return hits


async def found(store: Store, owner: str, query: str) -> set[str]:
    """The contents of all messages that a search finds."""
    return {hit.message.content for hit in await whole_search(store, owner, query)}


def path_to(leaf: UUID | None, log: Sequence[Message]) -> list[Message]:
    """The messages from the root to `leaf`, found by following parents one by one, without deleted ones."""
    by_id = {message.id: message for message in log}
    path: list[Message] = []
    while leaf is not None:
        path.append(by_id[leaf])
        leaf = by_id[leaf].parent_id
    return [message for message in reversed(path) if message.status != Status.DELETED]


def siblings_of(message: Message, log: Sequence[Message]) -> list[Message]:
    """The messages that follow the same parent, found by looking at every message."""
    return [m for m in log if m.parent_id == message.parent_id and m.status != Status.DELETED]


def seqs(messages: Sequence[Message]) -> list[int]:
    """The seqs of messages."""
    return [message.seq for message in messages]


def contents(messages: Sequence[Message]) -> list[str]:
    """The contents of messages."""
    return [message.content for message in messages]


def dense(count: int) -> list[int]:
    """1, 2, 3 … count."""
    return list(range(1, count + 1))


@asynccontextmanager
async def others_appending(store: Store, owner: str, conversation_id: UUID, writers: int = 3) -> AsyncIterator[None]:
    """Other tasks append to a conversation, without a pause, as long as the block runs."""
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await store.append(owner, conversation_id, [assistant("meanwhile")])
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(writers):
            group.create_task(write())
        try:
            yield
        finally:
            done.set()


def forged(cursor: str) -> Iterator[str]:
    """Cursors of chatkeep's form with impossible positions; nothing where the store's have another form."""
    try:
        values = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        return
    bad: tuple[object, ...] = (
        -1,
        0,
        2**63 - 1,
        2**63,
        -(2**63) - 1,
        2**99,
        True,
        None,
        1.5,
        "",
        "tea",
        "\ud800",
        [],
        {},
    )
    for place in range(len(values)):
        for value in bad:
            text = json.dumps([*values[:place], value, *values[place + 1 :]])
            yield base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")
    wrong: tuple[object, ...] = (values[:-1], [*values, 1], [], {}, 5, None, "tea")
    for value in wrong:
        text = json.dumps(value)
        yield base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**63, 2**90)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
JSON_OBJECTS = st.dictionaries(st.text(), JSON, max_size=5)
LABELS = st.text(min_size=1, max_size=255).filter(lambda text: not text.isspace())


class Contract:
    """What the tests of each topic begin with."""

    @pytest.fixture
    def open_store_with(self) -> Opener:
        """The function that opens the store under test with the given options."""
        raise NotImplementedError("a StoreContract needs the fixture open_store_with: see chatkeep.testing")

    @pytest.fixture
    async def store(self, open_store_with: Opener) -> AsyncIterator[Store]:
        """The store under test, with its default options."""
        async with open_store_with() as store:
            yield store

    @pytest.fixture
    def owner(self) -> str:
        """An owner whom no other test uses."""
        return someone()

    @pytest.fixture
    async def talk(self, store: Store, owner: str) -> Conversation:
        """An empty conversation of the owner's."""
        return await store.create_conversation(owner, NewConversation())


class PortContract(Contract):
    """The shape of the port."""

    async def test_methods_have_the_ports_parameters(self, store: Store) -> None:
        """Every method has the parameters of the port: the same names, kinds and defaults."""
        for name in METHODS:
            expected = inspect.signature(getattr(Store, name)).parameters.values()
            actual = inspect.signature(getattr(type(store), name)).parameters.values()
            assert [(p.name, p.kind, p.default) for p in expected] == [(p.name, p.kind, p.default) for p in actual]

    async def test_every_method_of_the_port_is_in_a_table_of_calls(self) -> None:
        """The tests of owners and ids go through every method of the port: a new one must be added to them."""
        parameters = {name: inspect.signature(getattr(Store, name)).parameters for name in METHODS}
        assert set(CONVERSATION_CALLS) == {name for name, p in parameters.items() if "conversation_id" in p}
        assert set(MESSAGE_CALLS) == {name for name, p in parameters.items() if {"message_id", "leaf"} & set(p)}
        assert set(OWNER_CALLS) == {
            name for name, p in parameters.items() if "owner" in p and "conversation_id" not in p
        }
        assert set(parameters) == {*CONVERSATION_CALLS, *OWNER_CALLS, *STORE_CALLS}

    async def test_ping_answers_and_migrating_again_changes_nothing(self, store: Store, owner: str) -> None:
        """A store that is open is at its newest schema, and bringing it there again keeps what is in it."""
        conversation = await store.create_conversation(owner, NewConversation(title="Tea"))
        revision = await store.schema_revision()
        await store.migrate()
        await store.ping()
        assert await store.schema_revision() == revision is not None
        assert await store.get_conversation(owner, conversation.id) == conversation

    async def test_a_closed_store_refuses_every_call(self, open_store_with: Opener, owner: str) -> None:
        """After aclose every method raises StoreUnavailable; closing again does nothing."""
        async with open_store_with() as store:
            conversation = await store.create_conversation(owner, NewConversation())
            await store.aclose()
            for call in (*CONVERSATION_CALLS.values(), *OWNER_CALLS.values()):
                with pytest.raises(StoreUnavailable):
                    await call(store, owner, conversation.id, uuid4())
            with pytest.raises(StoreUnavailable):
                await store.ping()
            await store.aclose()

    async def test_closing_finishes_the_writes_that_were_taken(self, open_store_with: Opener, owner: str) -> None:
        """Appends that wait when the store is closed are stored and return."""
        async with open_store_with() as store:
            conversation = await store.create_conversation(owner, NewConversation())
            waiting = [asyncio.create_task(store.append(owner, conversation.id, turns(2))) for _ in range(60)]
            await asyncio.sleep(0)
            await store.aclose()
            stored = [message for batch in await asyncio.gather(*waiting) for message in batch]
        assert sorted(seqs(stored)) == dense(120)


class AppendContract(Contract):
    """Order, idempotency and atomicity of appends."""

    async def test_hundred_concurrent_appenders_get_dense_seqs(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """However many append at once, seqs are 1, 2, 3 …, each caller's own in its order, none lost, none twice."""

        async def append(name: int) -> list[Message]:
            return [
                message
                for turn in range(5)
                for message in await store.append(owner, talk.id, [user(f"{name}: {turn}")])
            ]

        answers = await asyncio.gather(*(append(name) for name in range(100)))
        log = await whole_log(store, owner, talk.id)
        assert seqs(log) == dense(500)
        assert sorted((m for answer in answers for m in answer), key=lambda m: m.seq) == log
        for name, answer in enumerate(answers):
            assert contents(answer) == [f"{name}: {turn}" for turn in range(5)]
            assert seqs(answer) == sorted(seqs(answer))
        assert (await store.get_conversation(owner, talk.id)).last_seq == 500

    async def test_a_batch_stays_together(self, store: Store, owner: str, talk: Conversation) -> None:
        """The messages of one append get consecutive seqs and follow each other, whoever else appends."""
        batches = [turns(size) for size in (1, 2, 3, 5, 8, 13)] * 4
        batches = [[m.model_copy(update={"id": uuid4()}) for m in batch] for batch in batches]
        answers = await asyncio.gather(*(store.append(owner, talk.id, batch) for batch in batches))
        for batch, answer in zip(batches, answers, strict=True):
            assert [m.id for m in answer] == [m.id for m in batch]
            assert seqs(answer) == list(range(answer[0].seq, answer[0].seq + len(batch)))
            assert [m.parent_id for m in answer[1:]] == [m.id for m in answer[:-1]]

    async def test_append_returns_what_is_stored(self, store: Store, owner: str, talk: Conversation) -> None:
        """Append returns each message with all its values, exactly as later reads do."""
        source = Source(document_id=uuid4(), file_path="tea.md", header_anchor="#hot", similarity_score=0.75)
        sent = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
        new = NewMessage(
            id=uuid4(),
            role=Role.TOOL,
            content="80 degrees",
            status=Status.INTERRUPTED,
            sources=(source,),
            metadata={"tokens": 3},
            external_id="call-7",
            sent_at=sent,
        )
        (stored,) = await store.append(owner, talk.id, [new])
        assert stored.model_dump(exclude={"created_at"}) == {
            **new.model_dump(),
            "conversation_id": talk.id,
            "seq": 1,
            "parent_id": None,
        }
        assert abs(datetime.now(UTC) - stored.created_at) < timedelta(minutes=1)
        assert stored.created_at.utcoffset() == timedelta(0)
        assert await store.get_message(owner, talk.id, stored.id) == stored
        assert (await store.history(owner, talk.id)).items == [stored]
        assert await store.log(owner, talk.id) == [stored]
        assert await store.siblings(owner, talk.id, stored.id) == [stored]
        assert [hit.message for hit in await whole_search(store, owner, "degrees")] == [stored]

    async def test_reader_of_the_log_sees_no_gap(self, store: Store, owner: str, talk: Conversation) -> None:
        """Whoever follows the log while others append sees every seq, in order, and none is filled in later."""
        seen: list[int] = []
        async with others_appending(store, owner, talk.id, writers=8):
            while len(seen) < 300:
                seen += seqs(await store.log(owner, talk.id, after=len(seen)))
                await asyncio.sleep(0)
        assert seen == dense(len(seen))

    async def test_equal_times_keep_the_order_of_appends(self, store: Store, owner: str, talk: Conversation) -> None:
        """Messages with equal times, or times that run backwards, come back in the order of their appends."""
        noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        times = [noon, noon, noon, noon - timedelta(days=1), noon, noon + timedelta(days=1), noon]
        await store.append(owner, talk.id, [user(str(n), sent_at=time) for n, time in enumerate(times)])
        for limit in (1, 2, 3):
            history = await whole_history(store, owner, talk.id, limit=limit)
            assert contents(history) == [str(n) for n in range(len(times))]

    async def test_retry_returns_the_stored_message(self, store: Store, owner: str, talk: Conversation) -> None:
        """Appending the same message with the same id again stores nothing and returns what is stored."""
        new = user("ok", id=uuid4(), metadata={"a": 1, "b": [2]}, parent_id=None)
        (first,) = await store.append(owner, talk.id, [new])
        (last,) = await store.append(owner, talk.id, [user("and then?")])
        before = await store.get_conversation(owner, talk.id)
        again = new.model_copy(update={"metadata": {"b": [2], "a": 1}})
        assert await store.append(owner, talk.id, [again]) == [first]
        assert await store.log(owner, talk.id) == [first, last]
        assert await store.get_conversation(owner, talk.id) == before

    @pytest.mark.parametrize(
        "change",
        [
            {"content": "ok!"},
            {"content": "OK"},
            {"content": "ok\x00"},
            {"role": Role.ASSISTANT},
            {"status": Status.FAILED},
            {"metadata": {"n": 1.0}},
            {"metadata": {"n": True}},
            {"metadata": {}},
            {"external_id": "1"},
            {"sent_at": datetime(2026, 1, 31, tzinfo=UTC)},
            {"sources": (Source(document_id=UUID(int=1), file_path="a", similarity_score=1),)},
            {"parent_id": None},
        ],
        ids=lambda change: "-".join(map(str, [*change, *map(repr, change.values())]))[:40],
    )
    async def test_same_id_with_other_values_is_a_conflict(
        self, store: Store, owner: str, talk: Conversation, change: dict[str, Any]
    ) -> None:
        """An id that is known with other values is refused, and nothing of the append is stored."""
        values: dict[str, Any] = {"id": uuid4(), "role": Role.USER, "content": "ok", "metadata": {"n": 1}}
        await store.append(owner, talk.id, [NewMessage(**values)])
        before = await store.get_conversation(owner, talk.id), await store.log(owner, talk.id)
        with pytest.raises(Conflict):
            await store.append(owner, talk.id, [user("new"), NewMessage(**{**values, **change}), user("newer")])
        assert before == (await store.get_conversation(owner, talk.id), await store.log(owner, talk.id))

    async def test_batch_that_is_known_in_part_is_completed(self, store: Store, owner: str, talk: Conversation) -> None:
        """Of a batch, known messages are returned as they are and the others stored, in order."""
        batch = turns(6)
        first = await store.append(owner, talk.id, [batch[1], batch[4]])
        answer = await store.append(owner, talk.id, batch)
        assert [m.id for m in answer] == [m.id for m in batch]
        assert [answer[1], answer[4]] == first
        assert seqs(answer) == [3, 1, 4, 5, 2, 6]
        assert await store.append(owner, talk.id, batch) == answer
        assert sorted(answer, key=lambda m: m.seq) == await store.log(owner, talk.id)

    async def test_same_id_twice_in_one_batch(self, store: Store, owner: str, talk: Conversation) -> None:
        """One id twice in one append is one message, returned twice; with other values it is a Conflict."""
        twice = user("ok", id=uuid4())
        answer = await store.append(owner, talk.id, [twice, user("between"), twice])
        assert answer[0] == answer[2]
        assert contents(await store.log(owner, talk.id)) == ["ok", "between"]
        other = uuid4()
        with pytest.raises(Conflict):
            await store.append(owner, talk.id, [user("ok", id=other), user("ok?", id=other)])
        assert (await store.get_conversation(owner, talk.id)).last_seq == 2

    async def test_retry_after_deletion_returns_the_tombstone(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """A late retry of a deleted message is not a new message: it stays deleted; other values are a Conflict."""
        new = user("forget me", id=uuid4(), metadata={"a": 1})
        await store.append(owner, talk.id, [new])
        assert await store.delete_message(owner, talk.id, new.id or "")
        (tombstone,) = await store.append(owner, talk.id, [new])
        assert (tombstone.status, tombstone.content, tombstone.metadata) == (Status.DELETED, "", {})
        assert await store.log(owner, talk.id) == [tombstone]
        with pytest.raises(Conflict):
            await store.append(owner, talk.id, [user("something else", id=new.id)])

    async def test_saying_it_twice_is_two_messages(self, store: Store, owner: str, talk: Conversation) -> None:
        """Two ids with the same content are two messages, and so are two messages without an id."""
        await store.append(owner, talk.id, [user("ok", id=uuid4()), user("ok", id=uuid4())])
        await store.append(owner, talk.id, [user("ok"), user("ok")])
        log = await store.log(owner, talk.id)
        assert contents(log) == ["ok"] * 4
        assert len({message.id for message in log}) == 4

    async def test_an_id_belongs_to_its_conversation(self, store: Store, owner: str, talk: Conversation) -> None:
        """The same message id may be used in another conversation, for other content."""
        other = await store.create_conversation(owner, NewConversation())
        message_id = uuid4()
        await store.append(owner, talk.id, [user("here", id=message_id)])
        await store.append(owner, other.id, [user("there", id=message_id)])
        assert (await store.get_message(owner, talk.id, message_id)).content == "here"
        assert (await store.get_message(owner, other.id, message_id)).content == "there"

    async def test_retries_at_the_same_moment_store_once(self, store: Store, owner: str, talk: Conversation) -> None:
        """Forty callers that send one message at once get one message."""
        new = user("only once", id=uuid4())
        answers = await asyncio.gather(*(store.append(owner, talk.id, [new]) for _ in range(40)))
        assert answers == [answers[0]] * 40
        assert await store.log(owner, talk.id) == answers[0]

    async def test_rivals_for_an_id_at_the_same_moment(self, store: Store, owner: str, talk: Conversation) -> None:
        """Of callers that use one id for different contents at once, one is stored and the others get Conflict."""
        id_ = uuid4()
        calls = (store.append(owner, talk.id, [user(f"version {n}", id=id_)]) for n in range(20))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        stored = [answer for answer in answers if not isinstance(answer, Conflict)]
        assert stored == [await store.log(owner, talk.id)]

    async def test_bad_append_leaves_its_neighbours_alone(self, store: Store, owner: str, talk: Conversation) -> None:
        """Among 50 appends at once, the refused ones fail alone; the others are stored, densely."""
        known = user("known", id=uuid4())
        await store.append(owner, talk.id, [known])
        bad: dict[int, tuple[NewMessage, type[ChatkeepError]]] = {
            7: (user("other", id=known.id), Conflict),
            18: (user("orphan", parent_id=uuid4()), NotFound),
            29: (user("x" * 10_001), InvalidInput),
            44: (user("orphan", parent_id=uuid4()), NotFound),
        }

        def call(number: int) -> Awaitable[list[Message]]:
            last, _ = bad.get(number, (user(f"{number} b"), None))
            return store.append(owner, talk.id, [user(f"{number} a"), last])

        answers = await asyncio.gather(*map(call, range(50)), return_exceptions=True)
        for number, (_, error) in bad.items():
            assert type(answers[number]) is error
        good = [answer for answer in answers if isinstance(answer, list)]
        assert len(good) == 46
        log = await whole_log(store, owner, talk.id)
        assert seqs(log) == dense(93)
        assert sorted((m for answer in good for m in answer), key=lambda m: m.seq) == log[1:]

    async def test_bad_conversation_leaves_its_neighbours_alone(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """An append to a conversation that is missing or foreign disturbs none that is sent with it."""
        theirs = await store.create_conversation(someone(), NewConversation())
        targets = [talk.id, uuid4(), talk.id, theirs.id, talk.id]
        calls = (store.append(owner, target, [user("hello")]) for target in targets)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [list, NotFound, list, NotYours, list]
        assert seqs(await store.log(owner, talk.id)) == dense(3)

    async def test_expected_seq(self, store: Store, owner: str, talk: Conversation) -> None:
        """With expected_seq, new messages are stored at exactly that place; a retry of known ones is no conflict."""
        first = user("first", id=uuid4())
        stored = await store.append(owner, talk.id, [first], expected_seq=0)
        for wrong in (0, 2, -1, 2**70):
            with pytest.raises(Conflict):
                await store.append(owner, talk.id, [user("second")], expected_seq=wrong)
        assert await store.append(owner, talk.id, [first], expected_seq=0) == stored
        with pytest.raises(Conflict):
            await store.append(owner, talk.id, [first, user("second")], expected_seq=0)
        await store.append(owner, talk.id, [user("second"), user("third")], expected_seq=1)
        assert contents(await store.log(owner, talk.id)) == ["first", "second", "third"]

    async def test_one_of_many_meets_the_expected_seq(self, store: Store, owner: str, talk: Conversation) -> None:
        """Of many appends at once that expect the same seq, exactly one is stored."""
        calls = (store.append(owner, talk.id, [user(str(n))], expected_seq=0) for n in range(30))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["Conflict"] * 29 + ["list"]
        assert len(await store.log(owner, talk.id)) == 1

    async def test_transcript_that_is_sent_again_and_again(self, store: Store, owner: str, talk: Conversation) -> None:
        """A client that sends the whole transcript every time stores each message once."""
        transcript = turns(12)
        for length in range(1, 13):
            await store.append(owner, talk.id, transcript[:length])
        assert [m.id for m in await store.log(owner, talk.id)] == [m.id for m in transcript]

    async def test_wrong_values_are_said_before_what_is_missing(self, store: Store, owner: str) -> None:
        """What is wrong in itself is InvalidInput, also where the conversation is not there; a Conflict is not."""
        unknown, id_ = uuid4(), uuid4()
        for call in (
            store.append(owner, unknown, []),
            store.append(owner, unknown, [user("x" * 10_001)]),
            store.history(owner, unknown, limit=0),
            store.history(owner, unknown, cursor="tea"),
            store.log(owner, unknown, limit=0),
        ):
            with pytest.raises(InvalidInput):
                await call
        with pytest.raises(NotFound):
            await store.append(owner, unknown, [user("one", id=id_), user("other", id=id_)])

    async def test_empty_append_is_refused(self, store: Store, owner: str, talk: Conversation) -> None:
        """An append needs a message."""
        with pytest.raises(InvalidInput):
            await store.append(owner, talk.id, [])

    async def test_cancelled_append_is_stored_whole_or_not_at_all(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """A caller that is cancelled at any moment leaves a whole batch or none, and disturbs nobody."""
        dice = random.Random(7)  # noqa: S311 - not a secret
        batches: list[list[NewMessage]] = []
        for _ in range(25):
            batches += await self._append_and_cancel(store, owner, talk.id, dice)
        await store.append(owner, talk.id, [user("when all is settled")])
        log = await whole_log(store, owner, talk.id)
        assert seqs(log) == dense(len(log))
        seq_of = {message.id: message.seq for message in log}
        assert len(seq_of) == len(log)
        for batch in batches:
            places = [seq_of[m.id] for m in batch if m.id in seq_of]
            assert places in ([], list(range(places[0], places[0] + len(batch))) if places else [])

        for batch in batches:
            assert [m.id for m in await store.append(owner, talk.id, batch)] == [m.id for m in batch]
        assert len(await whole_log(store, owner, talk.id)) == 3 * len(batches) + 1

    async def _append_and_cancel(
        self, store: Store, owner: str, conversation_id: UUID, dice: random.Random
    ) -> list[list[NewMessage]]:
        """Start eight appends, cancel four of them a little later; the other four must be stored."""
        batches = [turns(3) for _ in range(8)]
        tasks = [asyncio.create_task(store.append(owner, conversation_id, batch)) for batch in batches]
        for _ in range(dice.randrange(4)):
            await asyncio.sleep(dice.choice((0, 0, 0.0003, 0.001)))
        cancelled = dice.sample(range(8), 4)
        for number in cancelled:
            tasks[number].cancel()
        answers = await asyncio.gather(*tasks, return_exceptions=True)
        for number, answer in enumerate(answers):
            assert isinstance(answer, list) or (number in cancelled and isinstance(answer, asyncio.CancelledError))
        return batches


class ConversationContract(Contract):
    """Creating, finding, changing and deleting conversations."""

    async def test_create_returns_what_is_stored(self, store: Store, owner: str) -> None:
        """A new conversation has the values that were given, no messages, and the store's time."""
        new = NewConversation(
            id=uuid4(), title="Tea", context_id="kitchen", external_id="k-1", metadata={"z": 1, "a": [None]}
        )
        created = await store.create_conversation(owner, new)
        assert created.model_dump(exclude={"created_at", "updated_at"}) == {
            **new.model_dump(),
            "owner_id": owner,
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
        """Thirty callers that create one conversation at once get one."""
        new = NewConversation(id=uuid4(), title="Tea")
        answers = await asyncio.gather(*(store.create_conversation(owner, new) for _ in range(30)))
        assert answers == [answers[0]] * 30

    @pytest.mark.parametrize(
        "change", [{"title": "tea"}, {"title": None}, {"context_id": "c"}, {"external_id": "e"}, {"metadata": {"a": 1}}]
    )
    async def test_create_with_other_values_is_a_conflict(
        self, store: Store, owner: str, change: dict[str, Any]
    ) -> None:
        """An id that the owner used for other values is refused, and the conversation stays as it is."""
        values: dict[str, Any] = {"id": uuid4(), "title": "Tea"}
        created = await store.create_conversation(owner, NewConversation(**values))
        with pytest.raises(Conflict):
            await store.create_conversation(owner, NewConversation(**{**values, **change}))
        assert await store.get_conversation(owner, created.id) == created

    async def test_get_or_create_at_the_same_moment_creates_one(self, store: Store, owner: str) -> None:
        """However many ask at once, each context gets one conversation, and no context is a context of its own."""
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
        """What get-or-create creates has the given values; after a deletion it creates anew."""
        asked = NewConversation(context_id="kitchen", title="Tea", metadata={"a": 1})
        created = await store.get_or_create_conversation(owner, asked)
        assert (created.title, created.metadata, created.context_id) == ("Tea", {"a": 1}, "kitchen")
        assert await store.delete_conversation(owner, created.id)
        again = await store.get_or_create_conversation(owner, asked)
        assert again.id != created.id

    async def test_change_sets_only_what_it_names(self, store: Store, owner: str) -> None:
        """A change leaves everything alone that it does not name; null takes a title or all metadata away."""
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
        """Patches of different keys that are sent at the same moment are all kept."""
        created = await store.create_conversation(owner, NewConversation(metadata={"start": 0}))
        changes = [ConversationChange(metadata={f"key {n}": n}) for n in range(30)]
        await asyncio.gather(*(store.update_conversation(owner, created.id, change) for change in changes))
        metadata = (await store.get_conversation(owner, created.id)).metadata
        assert metadata == {"start": 0, **{f"key {n}": n for n in range(30)}}

    async def test_title_is_made_from_the_first_user_message(self, store: Store, owner: str) -> None:
        """The first user message gives the title: its first line with text, at most 80 characters."""
        talk = await store.create_conversation(owner, NewConversation())
        await store.append(owner, talk.id, [assistant("Welcome!"), NewMessage(role=Role.SYSTEM, content="Be kind.")])
        assert (await store.get_conversation(owner, talk.id)).title is None
        await store.append(owner, talk.id, [user("\n  How  hot\tis tea?\nAnd coffee?"), user("Never mind.")])
        assert (await store.get_conversation(owner, talk.id)).title == "How hot is tea?"
        long = await store.create_conversation(owner, NewConversation())
        await store.append(owner, long.id, [user("word " * 40)])
        title = (await store.get_conversation(owner, long.id)).title
        assert title is not None
        assert len(title) <= 80
        assert title.endswith("word…")

    async def test_title_that_is_set_stays(self, store: Store, owner: str) -> None:
        """A title that somebody set is not replaced; where it was taken away, the next user message gives one."""
        talk = await store.create_conversation(owner, NewConversation(title="Tea"))
        await store.append(owner, talk.id, [user("How hot?")])
        assert (await store.get_conversation(owner, talk.id)).title == "Tea"
        await store.update_conversation(owner, talk.id, ConversationChange(title=None))
        await store.append(owner, talk.id, [user("How strong?")])
        assert (await store.get_conversation(owner, talk.id)).title == "How strong?"

    async def test_updated_at_is_moved_by_messages_only(self, store: Store, owner: str, talk: Conversation) -> None:
        """A message moves updated_at forward; changes, retries, deletions and reads do not."""
        new = user("hello", id=uuid4())
        (message,) = await store.append(owner, talk.id, [new])
        (second,) = await store.append(owner, talk.id, [user("again")])
        moved = (await store.get_conversation(owner, talk.id)).updated_at
        assert talk.updated_at <= message.created_at <= second.created_at == moved
        await store.update_conversation(
            owner, talk.id, ConversationChange(title="T", metadata={"a": 1}, head_id=message.id)
        )
        await store.append(owner, talk.id, [new])
        await store.delete_message(owner, talk.id, message.id)
        await store.history(owner, talk.id)
        assert (await store.get_conversation(owner, talk.id)).updated_at == moved

    async def test_updated_at_never_moves_back(self, store: Store, owner: str) -> None:
        """Times in the past and an updated_at in the future leave updated_at where it is."""
        future = datetime.now(UTC) + timedelta(days=400)
        talk = await store.create_conversation(owner, ImportedConversation(updated_at=future))
        assert talk.updated_at == future
        await store.append(owner, talk.id, [user("now")])
        old = ImportedMessage(role=Role.USER, content="then", sent_at=future - timedelta(days=900))
        await store.append(owner, talk.id, [old, ImportedMessage(role=Role.USER, content="some day")])
        assert (await store.get_conversation(owner, talk.id)).updated_at == future

    async def test_imported_messages_move_updated_at_to_their_own_time(self, store: Store, owner: str) -> None:
        """An import moves updated_at to the latest time of its messages, not to the time of the import."""
        year = [datetime(2020 + n, 1, 1, tzinfo=UTC) for n in range(4)]
        talk = await store.create_conversation(owner, ImportedConversation(updated_at=year[0]))
        times = (year[1], year[3], None, year[2])
        await store.append(
            owner, talk.id, [ImportedMessage(role=Role.USER, content="then", sent_at=time) for time in times]
        )
        assert (await store.get_conversation(owner, talk.id)).updated_at == year[3]

    async def test_delete_removes_everything_in_it(self, store: Store, owner: str) -> None:
        """A deleted conversation is gone from every read, with its messages; deleting again says False."""
        talk = await store.create_conversation(owner, NewConversation(context_id="kitchen"))
        (message,) = await store.append(owner, talk.id, [user("saffron tea")])
        kept = await store.create_conversation(owner, NewConversation())
        await store.append(owner, kept.id, [user("plain tea")])
        assert await store.delete_conversation(owner, talk.id) is True
        for name in sorted(set(CONVERSATION_CALLS) - {"delete_conversation"}):
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[name](store, owner, talk.id, message.id)
        assert [c.id for c in await whole_list(store, owner)] == [kept.id]
        assert await found(store, owner, "tea") == {"plain tea"}
        assert await store.delete_conversation(owner, talk.id) is False

    async def test_id_of_a_deleted_conversation_can_be_used_again(self, store: Store, owner: str) -> None:
        """A conversation that is created with the id of a deleted one shows nothing of it."""
        new, message_id = NewConversation(id=uuid4(), title="Tea"), uuid4()
        talk = await store.create_conversation(owner, new)
        await store.append(owner, talk.id, [user("saffron tea", id=message_id), *turns(1_500)])
        await store.append(owner, talk.id, [user("a branch", parent_id=message_id)])
        deleting = asyncio.create_task(store.delete_conversation(owner, talk.id))
        while (await store.list_conversations(owner)).items:  # noqa: ASYNC110 - nothing tells when it is hidden
            await asyncio.sleep(0)
        again = await store.create_conversation(owner, new.model_copy(update={"title": "Coffee"}))
        assert await deleting
        assert (again.title, again.last_seq, again.head_id) == ("Coffee", 0, None)
        assert await store.log(owner, talk.id) == []
        (message,) = await store.append(owner, talk.id, [user("mocha", id=message_id)])
        assert (message.seq, message.parent_id) == (1, None)
        assert (await store.history(owner, talk.id, total=True)).total == 1
        assert await found(store, owner, "saffron") == set()

    async def test_large_conversation_is_deleted_whole(self, store: Store, owner: str) -> None:
        """Several thousand messages are removed, in the index, too, while the owner's others stay in use."""
        large = await store.create_conversation(owner, NewConversation())
        small = await store.create_conversation(owner, NewConversation())
        for part in range(5):
            await store.append(owner, large.id, turns(700, f"pebble {part}"))
        async with others_appending(store, owner, small.id):
            assert await store.delete_conversation(owner, large.id)
        with pytest.raises(NotFound):
            await store.log(owner, large.id)
        assert await found(store, owner, "pebble") == set()
        log = await whole_log(store, owner, small.id)
        assert seqs(log) == dense(len(log))

    async def test_cancelled_deletion_is_done_whole_or_not_at_all(self, store: Store, owner: str) -> None:
        """A caller that is cancelled while it deletes leaves the whole conversation, or nothing of it."""
        for pause in (0, 0.0005, 0.002, 0.005):
            talk = await store.create_conversation(owner, NewConversation())
            await store.append(owner, talk.id, turns(1_500, "pebble"))
            deleting = asyncio.create_task(store.delete_conversation(owner, talk.id))
            await asyncio.sleep(pause)
            deleting.cancel()
            await asyncio.gather(deleting, return_exceptions=True)
            try:
                log = await whole_log(store, owner, talk.id)
            except NotFound:
                log = []
            assert len(log) in {0, 1_500}
            assert await store.delete_conversation(owner, talk.id) in {False, bool(log)}
            assert await found(store, owner, "pebble") == set()

    async def test_appends_to_a_conversation_that_is_deleted_fail(self, store: Store, owner: str) -> None:
        """Appends that race with a deletion are stored before it, or raise NotFound; none stays behind."""
        talk = await store.create_conversation(owner, NewConversation())
        calls = [store.append(owner, talk.id, [user("sage tea")]) for _ in range(40)]
        answers = await asyncio.gather(
            *calls[:20], store.delete_conversation(owner, talk.id), *calls[20:], return_exceptions=True
        )
        assert answers[20] is True
        assert {type(answer) for answer in answers} <= {list, bool, NotFound}
        assert await found(store, owner, "sage") == set()


class ListContract(Contract):
    """Pages of conversations."""

    async def test_most_recently_updated_first(self, store: Store, owner: str) -> None:
        """The list begins with the conversation that got the last message; it has ten unless told otherwise."""
        made = [await store.create_conversation(owner, NewConversation()) for _ in range(12)]
        for number in (3, 7):
            await store.append(owner, made[number].id, [user("hello")])
        page = await store.list_conversations(owner)
        expected = [7, 3, 11, 10, 9, 8, 6, 5, 4, 2]
        assert [c.id for c in page.items] == [made[n].id for n in expected]
        assert page.total is None
        assert page.items[0] == await store.get_conversation(owner, made[7].id)

    async def test_every_page_by_cursor(self, store: Store, owner: str) -> None:
        """Pages joined by cursor give the whole list once, also where all times are equal, in both orders."""
        noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        made = [await store.create_conversation(owner, ImportedConversation(updated_at=noon)) for _ in range(11)]
        made += [await store.create_conversation(owner, NewConversation()) for _ in range(6)]
        by_time = sorted(made, key=lambda c: (c.updated_at, c.id), reverse=True)
        for limit in (1, 2, 5, 17, 18):
            assert await whole_list(store, owner, limit=limit) == by_time
            assert await whole_list(store, owner, order="id", limit=limit) == sorted(made, key=lambda c: c.id)

    async def test_pages_by_offset_and_total(self, store: Store, owner: str) -> None:
        """Offset skips that many, total counts the whole list; behind the end a page is empty."""
        for _ in range(7):
            await store.create_conversation(owner, NewConversation())
        everything = await whole_list(store, owner, limit=100)
        pages = [await store.list_conversations(owner, limit=3, offset=offset, total=True) for offset in (0, 3, 6, 9)]
        assert [c for page in pages for c in page.items] == everything
        assert [page.total for page in pages] == [7] * 4
        assert pages[3].next is None

    async def test_one_context(self, store: Store, owner: str) -> None:
        """With a context only its conversations are listed and counted; an unknown context is an empty list."""
        for number in range(9):
            await store.create_conversation(owner, NewConversation(context_id=("kitchen", "garden", None)[number % 3]))
        everything = await whole_list(store, owner, limit=100)
        kitchen = [c for c in everything if c.context_id == "kitchen"]
        assert len(kitchen) == 3
        assert await whole_list(store, owner, context_id="kitchen", limit=2) == kitchen
        assert (await store.list_conversations(owner, context_id="kitchen", total=True)).total == 3
        assert (await store.list_conversations(owner, context_id="cellar", total=True)).total == 0

    async def test_context_with_a_lone_surrogate(self, store: Store, owner: str) -> None:
        """A context is found by the text that it was created with, also where that is not valid Unicode."""
        created = await store.create_conversation(owner, NewConversation(context_id="k\ud800"))
        assert (await store.list_conversations(owner, context_id="k\ud800")).items == [created]

    async def test_paging_while_conversations_are_touched(self, store: Store, owner: str) -> None:
        """By time, a list that changes meanwhile shows nothing twice; by id it shows everything once."""
        made = [await store.create_conversation(owner, NewConversation()) for _ in range(30)]
        touched = iter(made * 2)

        async def pages(order: ListOrder) -> list[UUID]:
            seen, cursor = [], None
            while True:
                page = await store.list_conversations(owner, order=order, limit=4, cursor=cursor)
                seen += [c.id for c in page.items]
                if (cursor := page.next) is None:
                    return seen
                for _ in range(3):
                    await store.append(owner, next(touched).id, [user("hello")])

        by_time = await pages("updated")
        assert len(set(by_time)) == len(by_time)
        assert await pages("id") == sorted(c.id for c in made)

    async def test_cursor_belongs_to_its_list(self, store: Store, owner: str) -> None:
        """A cursor is refused for another owner, context or order, and together with an offset."""
        for _ in range(3):
            await store.create_conversation(owner, NewConversation(context_id="kitchen"))
        cursor = (await store.list_conversations(owner, limit=1)).next
        assert cursor is not None
        for who, arguments in (
            (someone(), {}),
            (owner, {"context_id": "kitchen"}),
            (owner, {"order": "id"}),
            (owner, {"offset": 1}),
        ):
            with pytest.raises(InvalidInput):
                await store.list_conversations(who, cursor=cursor, **arguments)
        assert len((await store.list_conversations(owner, limit=2, cursor=cursor)).items) == 2


class HistoryContract(Contract):
    """Pages of a conversation's messages."""

    async def test_newest_messages_oldest_first(self, store: Store, owner: str, talk: Conversation) -> None:
        """A history is the newest messages, 50 unless told otherwise, oldest of them first."""
        stored = await store.append(owner, talk.id, turns(60))
        page = await store.history(owner, talk.id)
        assert page.items == stored[10:]
        assert page.total is None
        assert (await store.history(owner, talk.id, limit=3)).items == stored[-3:]
        assert (await store.history(owner, talk.id, limit=3, order="asc")).items == stored[:3]
        assert (await store.history(owner, talk.id, limit=100, cursor=page.next)).items == stored[:10]

    async def test_bounds(self, store: Store, owner: str, talk: Conversation) -> None:
        """`before` and `after` leave out their own seq; outside the path they leave nothing or everything."""
        stored = await store.append(owner, talk.id, turns(10))
        cases: list[tuple[int | None, int | None, list[Message]]] = [
            (6, None, stored[:5]),
            (None, 6, stored[6:]),
            (8, 3, stored[3:7]),
            (4, 3, []),
            (3, 8, []),
            (0, None, []),
            (-5, None, []),
            (2**70, -5, stored),
            (None, 2**70, []),
            (None, 0, stored),
        ]
        for before, after, expected in cases:
            for order in ORDERS:
                page = await store.history(owner, talk.id, before=before, after=after, order=order, total=True)
                assert (page.items, page.total, page.next) == (expected, 10, None)

    async def test_log_bounds(self, store: Store, owner: str, talk: Conversation) -> None:
        """The log begins after the seq that was seen, wherever that is."""
        stored = await store.append(owner, talk.id, turns(5))
        assert await store.log(owner, talk.id, after=2, limit=2) == stored[2:4]
        assert await store.log(owner, talk.id, after=5) == []
        assert await store.log(owner, talk.id, after=2**70) == []
        assert await store.log(owner, talk.id, after=-(2**70)) == stored

    @pytest.mark.parametrize("order", ORDERS)
    async def test_paging_2500_messages_while_others_append(
        self, store: Store, owner: str, talk: Conversation, order: Order
    ) -> None:
        """By cursor, from the newest back and from the oldest on, nothing is missed and nothing comes twice."""
        await self._fill(store, owner, talk.id, 2_500)
        async with others_appending(store, owner, talk.id):
            seen = await whole_history(store, owner, talk.id, limit=97, order=order)
        assert len(seen) >= 2_500
        assert seqs(seen) == dense(len(seen))

    async def test_offsets_over_2500_messages_while_others_append(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """By offset, from the oldest on, or back from a named leaf, 2,500 messages come once each."""
        leaf = await self._fill(store, owner, talk.id, 2_500)
        forward: list[Message] = []
        back: list[Message] = []
        async with others_appending(store, owner, talk.id):
            for offset in range(0, 2_500, 250):
                page = await store.history(owner, talk.id, order="asc", limit=250, offset=offset, total=True)
                forward += page.items
                assert page.total is not None
                assert page.total >= 2_500
                page = await store.history(owner, talk.id, leaf=leaf, limit=250, offset=offset, total=True)
                back = page.items + back
                assert page.total == 2_500
        assert seqs(forward) == seqs(back) == dense(2_500)

    async def test_seqs_over_2500_messages_while_others_append(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """By `before` and by `after`, the seq of the last message seen is the place to go on from."""
        await self._fill(store, owner, talk.id, 2_500)
        back: list[Message] = []
        forward: list[Message] = []
        async with others_appending(store, owner, talk.id):
            while not back or back[0].seq > 1:
                before = back[0].seq if back else 2_501
                back = (await store.history(owner, talk.id, limit=199, before=before)).items + back
            while len(forward) < 2_500:
                forward += (await store.history(owner, talk.id, order="asc", limit=199, after=len(forward))).items
        assert seqs(back) == dense(2_500)
        assert seqs(forward) == dense(len(forward))

    async def _fill(self, store: Store, owner: str, conversation_id: UUID, count: int) -> UUID:
        for start in range(0, count, 500):
            stored = await store.append(owner, conversation_id, turns(500, f"part {start}"))
        return stored[-1].id

    async def test_cursor_belongs_to_its_history(self, store: Store, owner: str, talk: Conversation) -> None:
        """A cursor is refused for another conversation, order, bound or leaf, and together with an offset."""
        other = await store.create_conversation(owner, NewConversation())
        for id_ in (talk.id, other.id):
            stored = await store.append(owner, id_, turns(5))
        cursor = (await store.history(owner, other.id, limit=1)).next
        assert cursor is not None
        for id_, arguments in (
            (talk.id, {}),
            (other.id, {"order": "asc"}),
            (other.id, {"before": 4}),
            (other.id, {"after": 1}),
            (other.id, {"leaf": stored[-1].id}),
            (other.id, {"offset": 1}),
        ):
            with pytest.raises(InvalidInput):
                await store.history(owner, id_, cursor=cursor, **arguments)
        assert (await store.history(owner, other.id, limit=9, cursor=cursor)).items == stored[:4]

    @pytest.mark.parametrize("limit", [0, -1, 1_001, 2**70])
    async def test_limits_are_refused_not_coerced(
        self, store: Store, owner: str, talk: Conversation, limit: int
    ) -> None:
        """A page has 1 to 1,000 items; every other limit is refused, and the message says what is allowed."""
        for call in (
            store.history(owner, talk.id, limit=limit),
            store.log(owner, talk.id, limit=limit),
            store.list_conversations(owner, limit=limit),
            store.search_messages(owner, "tea", limit=limit),
        ):
            with pytest.raises(InvalidInput, match=r"1 and 1,?000"):
                await call

    async def test_offsets_and_orders_are_refused_not_coerced(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """An offset is 0 to 10,000, an order one of the two that there are."""
        for arguments in ({"offset": -1}, {"offset": 10_001}, {"order": "up"}, {"order": "DESC"}):
            with pytest.raises(InvalidInput):
                await store.history(owner, talk.id, **arguments)
            with pytest.raises(InvalidInput):
                await store.list_conversations(owner, **arguments)
        assert (await store.history(owner, talk.id, limit=1_000, offset=10_000)).items == []
        assert (await store.list_conversations(owner, limit=1_000, offset=10_000)).items == []

    async def test_forged_cursors_are_refused(self, store: Store, owner: str, talk: Conversation) -> None:
        """A cursor with an impossible position is InvalidInput or InvalidId, or a page: never another error."""
        await store.append(owner, talk.id, turns(3))
        for _ in range(2):
            await store.create_conversation(owner, NewConversation())
        for order, call in self._paged(store, owner, talk.id):
            cursor = (await call(None)).next
            assert cursor is not None, order
            for bad in ("", "=", "x" * 10_000, "٣", "\ud800", "\x00", cursor + "A", cursor[:-1], *forged(cursor)):
                await self._refused_or_paged(call, bad)

    @PROPERTY
    @given(junk=st.text() | st.binary().map(lambda raw: base64.urlsafe_b64encode(raw).decode()) | JSON.map(json.dumps))
    async def test_junk_cursors_are_refused(self, store: Store, owner: str, junk: str) -> None:
        """Any text is InvalidInput or InvalidId where a cursor is expected, bytes and JSON in base64, too."""
        talk = await store.get_or_create_conversation(owner, NewConversation())
        encoded = base64.urlsafe_b64encode(junk.encode()).decode().rstrip("=")
        for _, call in self._paged(store, owner, talk.id):
            for cursor in (junk, encoded):
                if cursor:
                    with pytest.raises((InvalidInput, InvalidId)):
                        await call(cursor)

    def _paged(
        self, store: Store, owner: str, conversation_id: UUID
    ) -> list[tuple[str, Callable[[str | None], Awaitable[Page[Any]]]]]:
        return [
            ("history desc", lambda cursor: store.history(owner, conversation_id, limit=1, cursor=cursor)),
            ("history asc", lambda cursor: store.history(owner, conversation_id, limit=1, order="asc", cursor=cursor)),
            ("list updated", lambda cursor: store.list_conversations(owner, limit=1, cursor=cursor)),
            ("list id", lambda cursor: store.list_conversations(owner, limit=1, order="id", cursor=cursor)),
            ("search", lambda cursor: store.search_messages(owner, "turn", limit=1, cursor=cursor)),
        ]

    async def _refused_or_paged(self, call: Callable[[str | None], Awaitable[Page[Any]]], cursor: str) -> None:
        try:
            page = await call(cursor)
        except (InvalidInput, InvalidId):
            return
        assert len(page.items) <= 1


class BranchContract(Contract):
    """Parents, siblings and paths."""

    async def test_message_follows_the_head(self, store: Store, owner: str, talk: Conversation) -> None:
        """Without a parent a message follows the head, and becomes it."""
        first, second = await store.append(owner, talk.id, [user("1"), user("2")])
        (third,) = await store.append(owner, talk.id, [user("3")])
        assert [m.parent_id for m in (first, second, third)] == [None, first.id, second.id]
        assert (await store.get_conversation(owner, talk.id)).head_id == third.id

    async def test_named_parent_opens_a_branch(self, store: Store, owner: str, talk: Conversation) -> None:
        """A message that names a parent follows it and becomes the head; the other branch stays."""
        question, answer = await store.append(owner, talk.id, [user("How hot?"), assistant("80")])
        (other,) = await store.append(owner, talk.id, [assistant("90", parent_id=question.id)])
        (more,) = await store.append(owner, talk.id, [user("Thanks")])
        assert (await store.history(owner, talk.id)).items == [question, other, more]
        assert (await store.history(owner, talk.id, leaf=answer.id)).items == [question, answer]
        assert await store.siblings(owner, talk.id, answer.id) == [answer, other]
        assert await store.siblings(owner, talk.id, other.id) == [answer, other]
        assert seqs(await store.log(owner, talk.id)) == [1, 2, 3, 4]

    async def test_null_parent_is_a_new_beginning(self, store: Store, owner: str, talk: Conversation) -> None:
        """Null as parent means at the root: the message is a sibling of the first one."""
        first, _ = await store.append(owner, talk.id, [user("How hot?"), assistant("80")])
        (edited,) = await store.append(owner, talk.id, [user("How cold?", parent_id=None)])
        assert edited.parent_id is None
        assert (await store.history(owner, talk.id)).items == [edited]
        assert await store.siblings(owner, talk.id, first.id) == [first, edited]

    async def test_parents_inside_a_batch(self, store: Store, owner: str, talk: Conversation) -> None:
        """A batch may hold a whole tree; a parent must stand before its children."""
        a, b, c = uuid4(), uuid4(), uuid4()
        batch = [user("a", id=a), user("b", id=b), user("c", id=c, parent_id=a), user("d"), user("e", parent_id=b)]
        stored = await store.append(owner, talk.id, batch)
        assert [m.parent_id for m in stored] == [None, a, a, c, b]
        later = uuid4()
        with pytest.raises(NotFound):
            await store.append(owner, talk.id, [user("f", parent_id=later), user("g", id=later)])
        assert await store.log(owner, talk.id) == stored

    async def test_unknown_parent_is_not_found(self, store: Store, owner: str, talk: Conversation) -> None:
        """A parent must be in the same conversation; otherwise nothing is stored."""
        other = await store.create_conversation(owner, NewConversation())
        (elsewhere,) = await store.append(owner, other.id, [user("elsewhere")])
        for parent in (uuid4(), elsewhere.id, talk.id):
            with pytest.raises(NotFound):
                await store.append(owner, talk.id, [user("first"), user("orphan", parent_id=parent)])
        assert await store.log(owner, talk.id) == []

    async def test_moving_the_head(self, store: Store, owner: str, talk: Conversation) -> None:
        """History follows the head to another path, and the next message continues there; null starts anew."""
        one, two, three = await store.append(owner, talk.id, [user("1"), user("2"), user("3")])
        moved = await store.update_conversation(owner, talk.id, ConversationChange(head_id=two.id))
        assert moved.head_id == two.id
        assert (await store.history(owner, talk.id, total=True)).items == [one, two]
        (four,) = await store.append(owner, talk.id, [user("4")])
        assert four.parent_id == two.id
        assert (await store.history(owner, talk.id, leaf=three.id)).items == [one, two, three]
        await store.update_conversation(owner, talk.id, ConversationChange(head_id=None))
        assert await store.history(owner, talk.id, total=True) == Page[Message](items=[], total=0)
        (five,) = await store.append(owner, talk.id, [user("5")])
        assert five.parent_id is None
        back = await store.update_conversation(owner, talk.id, ConversationChange(head_id=four.id))
        assert back.head_id == four.id
        assert (await store.history(owner, talk.id)).items == [one, two, four]

    async def test_head_must_be_a_message_of_the_conversation(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """Unknown, deleted and other conversations' messages are refused as head, and nothing changes."""
        other = await store.create_conversation(owner, NewConversation())
        (elsewhere,) = await store.append(owner, other.id, [user("elsewhere")])
        here, gone = await store.append(owner, talk.id, [user("here"), user("gone")])
        await store.delete_message(owner, talk.id, gone.id)
        await store.update_conversation(owner, talk.id, ConversationChange(head_id=here.id))
        before = await store.get_conversation(owner, talk.id)
        for head in (uuid4(), elsewhere.id, gone.id):
            with pytest.raises(NotFound):
                await store.update_conversation(owner, talk.id, ConversationChange(title="No", head_id=head))
        assert await store.get_conversation(owner, talk.id) == before

    async def test_unknown_leaf_is_not_found(self, store: Store, owner: str, talk: Conversation) -> None:
        """A path can end only with a message of the conversation that is not deleted."""
        (gone,) = await store.append(owner, talk.id, [user("gone")])
        await store.delete_message(owner, talk.id, gone.id)
        for leaf in (uuid4(), gone.id):
            with pytest.raises(NotFound):
                await store.history(owner, talk.id, leaf=leaf)

    @pytest.mark.parametrize("order", ORDERS)
    async def test_cursor_keeps_to_its_path(self, store: Store, owner: str, talk: Conversation, order: Order) -> None:
        """Pages by cursor go on along the path of the first page, though the head moves to another one."""
        trunk = await store.append(owner, talk.id, turns(20, "trunk"))
        left = await store.append(owner, talk.id, turns(20, "left"))
        page = await store.history(owner, talk.id, limit=7, order=order)
        right = [user("right 0", parent_id=trunk[9].id), *turns(20, "right")]
        await store.append(owner, talk.id, right)
        seen = page.items
        while page.next:
            page = await store.history(owner, talk.id, limit=7, order=order, cursor=page.next, total=True)
            seen = seen + page.items if order == "asc" else page.items + seen
            assert page.total == 40
        assert seen == [*trunk, *left]

    async def test_deep_alternation(self, store: Store, owner: str, talk: Conversation) -> None:
        """Three branches that grow in turns keep their own paths, however long they become."""
        (root,) = await store.append(owner, talk.id, [user("root")])
        tips = [root.id] * 3
        for turn in range(60):
            for branch in range(3):
                (message,) = await store.append(
                    owner, talk.id, [assistant(f"{branch}: {turn}", parent_id=tips[branch])]
                )
                tips[branch] = message.id
        for branch, tip in enumerate(tips):
            expected = ["root", *(f"{branch}: {turn}" for turn in range(60))]
            for order in ORDERS:
                seen = await whole_history(store, owner, talk.id, leaf=tip, limit=9, order=order)
                assert contents(seen) == expected

    async def test_many_branches(self, store: Store, owner: str, talk: Conversation) -> None:
        """A path that changes branch at every message, and a message with hundreds of answers, are read right."""
        comb = [user("0", id=uuid4())]
        for number in range(1, 600):
            comb.append(user(str(number), id=uuid4(), parent_id=comb[max(0, number - 2)].id))
        await store.append(owner, talk.id, comb)
        log = await whole_log(store, owner, talk.id)
        for leaf in (log[-1], log[-2], log[300]):
            assert await whole_history(store, owner, talk.id, leaf=leaf.id, limit=41) == path_to(leaf.id, log)
        fan = [assistant(str(number), id=uuid4(), parent_id=comb[0].id) for number in range(300)]
        await store.append(owner, talk.id, fan)
        siblings = await store.siblings(owner, talk.id, fan[7].id or "")
        assert [m.id for m in siblings] == [comb[1].id, comb[2].id, *(m.id for m in fan)]

    @PROPERTY
    @given(plan=st.data())
    async def test_random_trees_read_like_their_parents(self, store: Store, owner: str, plan: st.DataObject) -> None:
        """In any tree, with any deletions, every page equals what following parents one by one gives."""
        talk = await store.create_conversation(owner, NewConversation())
        await self._grow(store, owner, talk.id, plan)
        log = await whole_log(store, owner, talk.id)
        head_id = (await store.get_conversation(owner, talk.id)).head_id
        alive = [m for m in log if m.status != Status.DELETED]
        for message in alive:
            assert await store.siblings(owner, talk.id, message.id) == siblings_of(message, log)
            path = await whole_history(store, owner, talk.id, leaf=message.id, limit=2)
            assert path == path_to(message.id, log)
        assert await whole_history(store, owner, talk.id, order="asc", limit=3) == path_to(head_id, log)
        leaf = plan.draw(st.sampled_from([None, *(m.id for m in alive)]), label="leaf")
        await self._compare_page(store, owner, talk.id, leaf, path_to(leaf or head_id, log), plan)

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


class OwnerContract(Contract):
    """Nobody reads or writes what is not theirs."""

    @pytest.fixture
    async def theirs(self, store: Store) -> Message:
        """A message of somebody else's."""
        return await self._someone_elses(store)

    async def _someone_elses(self, store: Store) -> Message:
        stranger = someone()
        talk = await store.create_conversation(stranger, NewConversation(title="Private"))
        (message,) = await store.append(stranger, talk.id, [user("private saffron tea", metadata={"s": stranger})])
        return message

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_foreign_conversation_is_refused(
        self, store: Store, owner: str, theirs: Message, method: str
    ) -> None:
        """Every method that takes a conversation's id raises NotYours for somebody else's, and changes nothing."""
        stranger = theirs.metadata["s"]
        before = await store.get_conversation(stranger, theirs.conversation_id)
        for _ in range(2):  # first the asker has nothing at all, then a conversation of their own
            with pytest.raises(NotYours):
                await CONVERSATION_CALLS[method](store, owner, theirs.conversation_id, theirs.id)
            await store.create_conversation(owner, NewConversation())
        assert await store.get_conversation(stranger, theirs.conversation_id) == before
        assert await store.log(stranger, theirs.conversation_id) == [theirs]

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_hidden_foreign_conversation_is_not_found(
        self, open_store_with: Opener, owner: str, method: str
    ) -> None:
        """With hide_foreign, somebody else's conversation and one that never was get the same answer."""
        async with open_store_with(hide_foreign=True) as store:
            theirs = await self._someone_elses(store)
            answers = []
            for conversation_id in (theirs.conversation_id, uuid4()):
                try:
                    answers.append(await CONVERSATION_CALLS[method](store, owner, conversation_id, theirs.id))
                except NotFound as missing:
                    answers.append(missing.detail)
            assert answers[0] == answers[1]
            assert isinstance(answers[0], str) or (method, answers[0]) == ("delete_conversation", False)
            assert await store.log(theirs.metadata["s"], theirs.conversation_id) == [theirs]

    @pytest.mark.parametrize("method", MESSAGE_CALLS)
    async def test_foreign_message_is_not_found(
        self, store: Store, owner: str, talk: Conversation, theirs: Message, method: str
    ) -> None:
        """Somebody else's message is not in one's own conversation."""
        await store.append(owner, talk.id, [user("mine")])
        if method == "delete_message":
            assert await store.delete_message(owner, talk.id, theirs.id) is False
        else:
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[method](store, owner, talk.id, theirs.id)
        with pytest.raises(NotFound):
            await store.append(owner, talk.id, [user("after theirs", parent_id=theirs.id)])
        with pytest.raises(NotFound):
            await store.update_conversation(owner, talk.id, ConversationChange(head_id=theirs.id))

    async def test_foreign_id_is_free(self, store: Store, owner: str, theirs: Message) -> None:
        """A conversation may be created with an id that somebody else uses: the two know nothing of each other."""
        stranger, id_ = theirs.metadata["s"], theirs.conversation_id
        mine = await store.create_conversation(owner, NewConversation(id=id_))
        assert (mine.owner_id, mine.title, mine.last_seq) == (owner, None, 0)
        (message,) = await store.append(owner, id_, [user("my tea", id=theirs.id)])
        assert await store.log(owner, id_) == [message]
        assert await store.log(stranger, id_) == [theirs]
        assert await found(store, owner, "tea") == {"my tea"}
        assert await store.delete_conversation(owner, id_) is True
        assert await store.log(stranger, id_) == [theirs]
        assert await found(store, stranger, "tea") == {"private saffron tea"}

    async def test_lists_and_searches_show_the_owners_own(self, store: Store, owner: str, theirs: Message) -> None:
        """Lists, searches, get-or-create and erasure see the owner's conversations only."""
        stranger = theirs.metadata["s"]
        mine = await store.get_or_create_conversation(owner, NewConversation())
        assert mine.id != theirs.conversation_id
        assert await whole_list(store, owner) == [mine]
        assert (await store.list_conversations(owner, total=True)).total == 1
        assert await found(store, owner, "saffron") == set()
        await store.erase_owner(owner)
        assert await store.log(stranger, theirs.conversation_id) == [theirs]

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("ada", "Ada"),
            ("ada", "ada "),
            ("ada", "ada\x00"),
            ("ada", "ada\x00b"),
            ("é", "e\u0301"),
            ("ß", "ss"),
            ("a%", "ab"),
            ("a", "a\ufdd0"),
            ('x" OR words : "', "x"),
            ("\x00", "\x01"),
        ],
    )
    async def test_owners_are_compared_exactly(self, store: Store, one: str, other: str) -> None:
        """Two owners are one only when they are the same text: case, accents, blanks and NUL count."""
        prefix = someone()
        one, other = prefix + one, prefix + other
        talk = await store.create_conversation(one, NewConversation())
        await store.append(one, talk.id, [user("sesame")])
        with pytest.raises(NotYours):
            await store.log(other, talk.id)
        assert await whole_list(store, other) == []
        assert await found(store, other, "sesame") == set()
        assert (await store.erase_owner(other)).messages == 0
        assert await found(store, one, "sesame") == {"sesame"}
        assert (await store.get_conversation(one, talk.id)).owner_id == one

    @pytest.mark.parametrize("method", sorted({*CONVERSATION_CALLS, *OWNER_CALLS}))
    async def test_impossible_owners_are_refused(self, store: Store, method: str) -> None:
        """An owner is 1 to 255 bytes of valid Unicode, in every method."""
        for owner in ("", "x" * 256, "é" * 128, "\ud800"):
            with pytest.raises(InvalidInput):
                await {**CONVERSATION_CALLS, **OWNER_CALLS}[method](store, owner, uuid4(), uuid4())

    @PROPERTY
    @given(name=st.text(max_size=40))
    async def test_any_text_can_be_an_owner(self, store: Store, name: str) -> None:
        """Every valid Unicode text can be an owner, and comes back as it is."""
        owner = f"{uuid4()}{name}"
        talk = await store.create_conversation(owner, NewConversation())
        await store.append(owner, talk.id, [user("sesame")])
        assert (await store.get_conversation(owner, talk.id)).owner_id == owner
        assert await found(store, owner, "sesame") == {"sesame"}


class IdContract(Contract):
    """Malformed and unknown ids."""

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_malformed_conversation_id(self, store: Store, owner: str, method: str) -> None:
        """What is not a UUID is InvalidId, a ValueError, in every method that takes a conversation's id."""
        assert issubclass(InvalidId, ValueError)
        for bad in MALFORMED_IDS:
            with pytest.raises(InvalidId):
                await CONVERSATION_CALLS[method](store, owner, bad, uuid4())

    @pytest.mark.parametrize("method", MESSAGE_CALLS)
    async def test_malformed_message_id(self, store: Store, owner: str, talk: Conversation, method: str) -> None:
        """What is not a UUID is InvalidId in every method that takes a message's id."""
        for bad in MALFORMED_IDS:
            with pytest.raises(InvalidId):
                await CONVERSATION_CALLS[method](store, owner, talk.id, bad)

    @pytest.mark.parametrize("method", sorted(CONVERSATION_CALLS))
    async def test_unknown_conversation_is_not_found(self, store: Store, owner: str, method: str) -> None:
        """An id that nobody uses is NotFound; deleting it says that there was none."""
        if method == "delete_conversation":
            assert await store.delete_conversation(owner, uuid4()) is False
        else:
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[method](store, owner, uuid4(), uuid4())

    @pytest.mark.parametrize("method", MESSAGE_CALLS)
    async def test_unknown_message_is_not_found(
        self, store: Store, owner: str, talk: Conversation, method: str
    ) -> None:
        """A message id that the conversation does not have is NotFound; deleting it says that there was none."""
        await store.append(owner, talk.id, [user("hello")])
        if method == "delete_message":
            assert await store.delete_message(owner, talk.id, uuid4()) is False
        else:
            with pytest.raises(NotFound):
                await CONVERSATION_CALLS[method](store, owner, talk.id, uuid4())

    async def test_malformed_ids_in_records(self) -> None:
        """What is not a UUID is refused when a record is built, as a ValueError that names the field."""
        for bad in MALFORMED_IDS:
            for name in ("id", "parent_id"):
                with pytest.raises(ValueError, match=name):
                    user("hello", **{name: bad})
            with pytest.raises(ValueError, match="id"):
                NewConversation(id=bad)
            with pytest.raises(ValueError, match="head_id"):
                ConversationChange(head_id=bad)

    @pytest.mark.parametrize("version", [1, 3, 4, 5, 7])
    async def test_ids_of_every_version_are_taken(self, store: Store, owner: str, version: int) -> None:
        """Ids are UUIDs of any version, given as UUID or text."""
        text = str(uuid4())
        id_ = UUID(f"{text[:14]}{version}{text[15:]}")
        created = await store.create_conversation(owner, NewConversation(id=id_))
        (message,) = await store.append(owner, str(id_), [user("hello", id=id_)])
        assert created.id == message.id == id_
        assert await store.get_message(owner, id_.hex, str(id_).upper()) == message


class DeletedMessageContract(Contract):
    """What a deleted message leaves behind."""

    async def test_place_stays_and_content_goes(self, store: Store, owner: str, talk: Conversation) -> None:
        """A deleted message keeps its seq, id and parent in the log, and nothing of what it said."""
        source = Source(document_id=uuid4(), file_path="tea.md", similarity_score=0.5)
        stored = await store.append(
            owner, talk.id, [user("one"), assistant("two", metadata={"a": 1}, sources=(source,)), user("three")]
        )
        assert await store.delete_message(owner, talk.id, stored[1].id) is True
        assert await store.delete_message(owner, talk.id, stored[1].id) is False
        log = await store.log(owner, talk.id)
        assert seqs(log) == dense(3)
        assert (log[0], log[2]) == (stored[0], stored[2])
        tombstone = log[1]
        assert (tombstone.id, tombstone.parent_id, tombstone.role) == (stored[1].id, stored[0].id, Role.ASSISTANT)
        assert (tombstone.status, tombstone.content) == (Status.DELETED, "")
        assert (tombstone.metadata, tombstone.sources) == ({}, ())

    async def test_deleted_at_the_moment_of_its_append(self, store: Store, owner: str, talk: Conversation) -> None:
        """A message that is appended and deleted at the same moment is there and found, or deleted and not found."""
        batches = [turns(3, f"sage {number}") for number in range(20)]
        ids = [message.id or uuid4() for batch in batches for message in batch]
        appends = [store.append(owner, talk.id, batch) for batch in batches]
        deletions = [store.delete_message(owner, talk.id, id_) for id_ in ids]
        answers = await asyncio.gather(*deletions[:20], *appends, *deletions[20:])
        deleted = {id_ for id_, answer in zip(ids, [*answers[:20], *answers[40:]], strict=True) if answer}
        log = await store.log(owner, talk.id)
        assert {m.id for m in log if m.status == Status.DELETED} == deleted
        hits = await whole_search(store, owner, "sage")
        assert {hit.message.id for hit in hits} == set(ids) - deleted
        assert len(await whole_history(store, owner, talk.id)) == len(ids) - len(deleted)

    async def test_deleted_message_is_skipped(self, store: Store, owner: str, talk: Conversation) -> None:
        """History, siblings, search and get_message leave deleted messages out, and totals do not count them."""
        stored = await store.append(owner, talk.id, [user("sage"), user("sage mint"), user("mint")])
        (other,) = await store.append(owner, talk.id, [user("thyme", parent_id=stored[0].id)])
        await store.update_conversation(owner, talk.id, ConversationChange(head_id=stored[2].id))
        await store.delete_message(owner, talk.id, stored[1].id)
        page = await store.history(owner, talk.id, total=True)
        assert (page.items, page.total) == ([stored[0], stored[2]], 2)
        assert await store.siblings(owner, talk.id, other.id) == [other]
        assert await found(store, owner, "sage") == {"sage"}
        assert await found(store, owner, "mint") == {"mint"}
        for call in (store.get_message, store.siblings):
            with pytest.raises(NotFound):
                await call(owner, talk.id, stored[1].id)
        assert (await store.get_conversation(owner, talk.id)).last_seq == 4

    async def test_conversation_goes_on_after_a_deletion(self, store: Store, owner: str, talk: Conversation) -> None:
        """The next message follows a head that was deleted; seqs and paths go on."""
        stored = await store.append(owner, talk.id, turns(3))
        await store.delete_message(owner, talk.id, stored[2].id)
        (after,) = await store.append(owner, talk.id, [user("after")])
        assert (after.seq, after.parent_id) == (4, stored[2].id)
        assert seqs((await store.history(owner, talk.id)).items) == [1, 2, 4]
        (named,) = await store.append(owner, talk.id, [user("named", parent_id=stored[2].id)])
        assert [m.id for m in await store.siblings(owner, talk.id, named.id)] == [after.id, named.id]

    async def test_paging_with_deletions(self, store: Store, owner: str, talk: Conversation) -> None:
        """Pages, offsets and totals count what is left, wherever messages were deleted."""
        stored = await store.append(owner, talk.id, turns(40))
        gone = {0, 1, 7, 8, 9, 20, 38, 39}
        for number in gone:
            await store.delete_message(owner, talk.id, stored[number].id)
        left = [message for number, message in enumerate(stored) if number not in gone]
        for order in ORDERS:
            assert await whole_history(store, owner, talk.id, limit=3, order=order) == left
        for offset in range(0, 36, 5):
            page = await store.history(owner, talk.id, order="asc", limit=5, offset=offset, total=True)
            assert (page.items, page.total) == (left[offset : offset + 5], 32)
            page = await store.history(owner, talk.id, limit=5, offset=offset)
            assert page.items == left[::-1][offset : offset + 5][::-1]

    async def test_everything_deleted(self, store: Store, owner: str, talk: Conversation) -> None:
        """A conversation whose messages are all deleted has an empty history and a full log."""
        stored = await store.append(owner, talk.id, turns(5))
        for message in stored:
            await store.delete_message(owner, talk.id, message.id)
        assert await store.history(owner, talk.id, total=True) == Page[Message](items=[], total=0)
        assert seqs(await store.log(owner, talk.id)) == dense(5)


class ValueContract(Contract):
    """Text, JSON, times and lengths come back as they went in."""

    @PROPERTY
    @given(content=st.text(), title=LABELS, context=LABELS, metadata=JSON_OBJECTS)
    async def test_every_text_comes_back_as_it_went_in(
        self, store: Store, owner: str, content: str, title: str, context: str, metadata: dict[str, Any]
    ) -> None:
        """Every valid Unicode text in content, title, context and metadata is kept, character by character."""
        new = NewConversation(title=title, context_id=context, external_id=title, metadata=metadata)
        talk = await store.create_conversation(owner, new)
        assert (talk.title, talk.context_id, talk.external_id) == (title, context, title)
        (message,) = await store.append(owner, talk.id, [assistant(content, metadata=metadata, external_id=title)])
        read = await store.get_message(owner, talk.id, message.id)
        assert (read.content, read.external_id) == (content, title)
        for value in (read.metadata, (await store.get_conversation(owner, talk.id)).metadata):
            assert json.dumps(value) == json.dumps(metadata)
        listed = await store.list_conversations(owner, context_id=context, limit=1)
        assert [c.id for c in listed.items] == [talk.id]

    @pytest.mark.parametrize(
        "text",
        ["\x00", "a\x00b", "\ufdd0", "\ufffe\uffff", "\U0010ffff", "\ufdd00000", "\ufeffx", "e\u0301é", "\r\n\t "],
    )
    async def test_rare_characters(self, store: Store, owner: str, talk: Conversation, text: str) -> None:
        """NUL, noncharacters, marks and line ends are kept in content and in metadata's keys and values."""
        (stored,) = await store.append(owner, talk.id, [assistant(text, metadata={text: [text]})])
        read = await store.get_message(owner, talk.id, stored.id)
        assert (read.content, read.metadata) == (text, {text: [text]})
        changed = await store.update_conversation(owner, talk.id, ConversationChange(metadata={text: text}))
        assert changed.metadata == {text: text}
        assert (await store.get_conversation(owner, talk.id)).metadata == {text: text}

    async def test_lone_surrogates_become_replacement_characters(self, store: Store, owner: str) -> None:
        """Surrogates never fail a write: pairs are joined, lone ones become U+FFFD, everywhere."""
        broken, whole = "a\ud800b \ud83d\ude00 \udfff", "a\ufffdb 😀 \ufffd"
        new = NewConversation(title=broken, context_id=broken, external_id=broken, metadata={broken: [broken]})
        talk = await store.create_conversation(owner, new)
        assert (talk.title, talk.context_id, talk.external_id) == (whole, whole, whole)
        assert talk.metadata == {whole: [whole]}
        (message,) = await store.append(owner, talk.id, [user(broken, metadata={broken: broken})])
        assert (message.content, message.metadata) == (whole, {whole: whole})
        assert await store.log(owner, talk.id) == [message]
        again = await store.append(owner, talk.id, [user(broken, id=message.id, metadata={broken: broken})])
        assert again == [message]

    async def test_json_keeps_what_databases_like_to_change(self, store: Store, owner: str, talk: Conversation) -> None:
        """Big integers, order of keys, kinds of numbers and the sign of zero are kept in metadata."""
        metadata = {"z": 2**80, "a": -(10**40), "f": 1e2, "n": -0.0, "i": 1, "t": True, "x": 1e-300, "e": {}, "l": []}
        (stored,) = await store.append(owner, talk.id, [user("numbers", metadata=metadata)])
        read = await store.get_message(owner, talk.id, stored.id)
        expected = '{"z": 1208925819614629174706176, "a": -10000000000000000000000000000000000000000, "f": 100.0, '
        expected += '"n": -0.0, "i": 1, "t": true, "x": 1e-300, "e": {}, "l": []}'
        assert json.dumps(read.metadata) == json.dumps(stored.metadata) == expected

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), {1, 2}, b"raw", datetime.now(UTC)])
    async def test_metadata_that_is_not_json_is_refused(self, value: object) -> None:
        """What JSON cannot hold is refused when the record is built."""
        for build in (
            lambda: user("hello", metadata={"v": [value]}),
            lambda: NewConversation(metadata={"v": value}),
            lambda: ConversationChange(metadata={"v": value}),
        ):
            with pytest.raises(ValueError, match="metadata"):
                build()

    @pytest.mark.parametrize("depth", [50, 250, 2_000, 5_000, 100_000])
    async def test_deep_metadata_is_kept_whole_or_refused(
        self, store: Store, owner: str, talk: Conversation, depth: int
    ) -> None:
        """Metadata that a record takes can be stored, merged, read and serialised, however deep it nests."""
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
            (message,) = await store.append(owner, talk.id, [new])
            changed = await store.update_conversation(owner, talk.id, change)
            message.model_dump_json(), changed.model_dump_json()
        except Exception as error:  # noqa: BLE001 - pytest would compare the frames of a recursion for minutes
            failure = type(error).__name__
        assert failure is None

    async def test_records_are_copies(self, store: Store, owner: str) -> None:
        """What a caller does to the values it gave or got changes nothing in the store."""
        given_metadata = {"list": [1]}
        new = NewConversation(id=uuid4(), metadata=given_metadata)
        talk = await store.create_conversation(owner, new)
        message = user("hello", id=uuid4(), metadata=given_metadata)
        (stored,) = await store.append(owner, talk.id, [message])
        change = ConversationChange(metadata={"more": [2]})
        changed = await store.update_conversation(owner, talk.id, change)
        given_metadata["list"].append(9)
        for record in (new, talk, message, stored, change, changed):
            assert record.metadata is not None
            for key in record.metadata:
                record.metadata[key].append("changed from outside")
        assert (await store.get_conversation(owner, talk.id)).metadata == {"list": [1], "more": [2]}
        assert (await store.get_message(owner, talk.id, stored.id)).metadata == {"list": [1]}
        for page in (await store.history(owner, talk.id), await store.list_conversations(owner)):
            page.items[0].metadata.clear()
            page.items.clear()
        assert (await store.get_conversation(owner, talk.id)).metadata == {"list": [1], "more": [2]}
        assert (await store.log(owner, talk.id))[0].metadata == {"list": [1]}

    async def test_times_are_exact_and_in_utc(self, store: Store, owner: str, talk: Conversation) -> None:
        """Times keep their microseconds, from year 1 to 9999, and come back in UTC; naive ones are refused."""
        east = timezone(timedelta(hours=5, minutes=45))
        times = [
            datetime(2026, 1, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(2026, 1, 31, 12, 0, 0, 367046, tzinfo=east),
            datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
            datetime(1, 1, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        ]
        await store.append(owner, talk.id, [user("when", sent_at=time) for time in times])
        stored = [message.sent_at for message in await store.log(owner, talk.id)]
        assert stored == times
        assert all(time is not None and time.utcoffset() == timedelta(0) for time in stored)
        for wrong in (datetime(2026, 1, 31), "2026-01-31T12:00:00", 1_769_860_800, "tomorrow"):  # noqa: DTZ001
            with pytest.raises(ValueError, match="sent_at"):
                user("when", sent_at=wrong)

    async def test_long_answers_are_kept(self, store: Store, owner: str, talk: Conversation) -> None:
        """An assistant's or a tool's message may have a megabyte, or nothing at all."""
        long = "Tea, 茶, чай. " * 80_000
        new = [assistant(long), NewMessage(role=Role.TOOL, content=long[::-1]), assistant(""), assistant("  \n")]
        await store.append(owner, talk.id, new)
        assert contents((await store.history(owner, talk.id)).items) == [m.content for m in new]

    async def test_long_questions_are_refused(self, store: Store, owner: str, talk: Conversation) -> None:
        """A user's or system's message has at most max_content_chars characters; the error names the limit."""
        await store.append(owner, talk.id, [user("😀" * 10_000)])
        for role in (Role.USER, Role.SYSTEM):
            with pytest.raises(InvalidInput, match="10,000 characters"):
                await store.append(owner, talk.id, [user("first"), NewMessage(role=role, content="x" * 10_001)])
        assert (await store.get_conversation(owner, talk.id)).last_seq == 1

    async def test_max_content_chars_can_be_set(self, open_store_with: Opener, owner: str) -> None:
        """Another limit can be set when the store is opened; 0 is none."""
        async with open_store_with(max_content_chars=5) as store:
            talk = await store.create_conversation(owner, NewConversation())
            await store.append(owner, talk.id, [user("12345")])
            with pytest.raises(InvalidInput, match="at most 5 characters"):
                await store.append(owner, talk.id, [user("123456")])
        async with open_store_with(max_content_chars=0) as store:
            talk = await store.create_conversation(owner, NewConversation())
            (message,) = await store.append(owner, talk.id, [user("x" * 1_000_000)])
            assert len(message.content) == 1_000_000

    @pytest.mark.parametrize("content", ["", " ", "\n\t\u3000\u00a0"])
    async def test_blank_questions_are_refused(self, content: str) -> None:
        """A user's or system's message is never blank; an unknown role or status is refused as well."""
        for role in (Role.USER, Role.SYSTEM):
            with pytest.raises(ValueError, match="must not be blank"):
                NewMessage(role=role, content=content)
        for values in ({"role": "bot"}, {"role": "User"}, {"status": "deleted"}, {"status": "done"}):
            with pytest.raises(ValueError, match=r"role|status|deleted"):
                NewMessage(**{"role": "user", "content": "hello", **values})

    async def test_imports_keep_what_happened(self, store: Store, owner: str, talk: Conversation) -> None:
        """Imported messages may be blank, long, or deleted already."""
        new = [
            ImportedMessage(role=Role.USER, content=""),
            ImportedMessage(role=Role.SYSTEM, content="x" * 20_000),
            ImportedMessage(role=Role.USER, content="", status=Status.DELETED),
            ImportedMessage(role=Role.ASSISTANT, content="half an ans", status=Status.FAILED),
        ]
        stored = await store.append(owner, talk.id, new)
        assert contents(stored) == [m.content for m in new]
        assert [m.status for m in stored] == [m.status for m in new]
        page = await store.history(owner, talk.id, total=True)
        assert (seqs(page.items), page.total) == ([1, 2, 4], 3)
        assert seqs(await store.log(owner, talk.id)) == dense(4)

    async def test_imports_are_found_soon(self, store: Store, owner: str, talk: Conversation) -> None:
        """Imported messages are found a moment after they are stored."""
        await store.append(owner, talk.id, [ImportedMessage(role=Role.USER, content="sage tea, 花草茶")])
        for query in ("sage", "花草"):
            async with asyncio.timeout(10):
                while await found(store, owner, query) != {"sage tea, 花草茶"}:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)


class SearchContract(Contract):
    """Full-text search."""

    async def test_words_of_every_script(self, store: Store, owner: str, talk: Conversation) -> None:
        """A word of a sentence is found in every script, in that sentence only, and shown in the snippet."""
        await store.append(owner, talk.id, [user(sentence) for _, sentence, _ in SENTENCES])
        for script, sentence, word in SENTENCES:
            hits = await whole_search(store, owner, word)
            assert [hit.message.content for hit in hits] == [sentence], script
            assert word in hits[0].snippet, script

    async def test_parts_of_unspaced_sentences_stand_together(
        self, store: Store, owner: str, talk: Conversation
    ) -> None:
        """In scripts without spaces a query is found where its characters stand together, in that order."""
        await store.append(owner, talk.id, [user("我们明天去图书馆"), user("书店里有地图")])
        assert await found(store, owner, "图书") == {"我们明天去图书馆"}
        assert await found(store, owner, "书图") == set()
        assert await found(store, owner, "图 书") == {"我们明天去图书馆", "书店里有地图"}
        await store.append(owner, talk.id, [user("iPhone15手机很贵")])
        assert await found(store, owner, "手机") == await found(store, owner, "iphone15") == {"iPhone15手机很贵"}

    @pytest.mark.parametrize(
        ("content", "query"),
        [
            ("The Café is open", "cafe"),
            ("The cafe is open", "CAFÉ"),
            ("cafe\u0301 noir", "café"),
            ("ο δρόμος είναι μακρύς", "ΔΡΟΜΟΣ"),
            ("Ёлка стоит в углу", "елка"),
            ("Die Straße ist nass", "STRASSE"),
            ("full width ＴＥＡ", "tea"),
            ("half width ｺｰﾋｰ", "コーヒー"),
            ("ﬁne tea", "fine"),
            ("x² + y²", "x2"),
            ("tea-time, isn't it?", "time"),
            ("see chat_keep.py", "keep"),
            ("a\x00beta", "beta"),
            ("İstanbul", "istanbul"),
        ],
    )
    async def test_words_are_compared_without_case_accents_and_form(
        self, store: Store, owner: str, talk: Conversation, content: str, query: str
    ) -> None:
        """Case, accents and compatibility forms make no difference, in the text and in the query."""
        await store.append(owner, talk.id, [assistant(content), assistant("something else, 别的, 다른 것")])
        assert await found(store, owner, query) == {content}

    async def test_several_words_must_all_be_there(self, store: Store, owner: str, talk: Conversation) -> None:
        """Every word of the query must be in the message, in any order; parts of words are not found."""
        texts = ["green tea with mint", "black tea", "mint and green apples", "greenest teapot, minty"]
        await store.append(owner, talk.id, [user(text) for text in texts])
        assert await found(store, owner, "mint green") == {texts[0], texts[2]}
        assert await found(store, owner, "tea green mint") == {texts[0]}
        assert await found(store, owner, "tea tea tea") == {texts[0], texts[1]}
        assert await found(store, owner, "gree") == set()
        assert await found(store, owner, "coffee") == set()

    @pytest.mark.parametrize(
        "query",
        ['"tea', "tea*", "tea AND", "NOT tea", "tea OR coffee", "NEAR(tea coffee)", "words:tea", "owner : tea", "^tea",
         "-tea", "tea\\", "tea'; DROP TABLE messages; --", "{words owner}: tea", '" OR owner : "', "tea + coffee", "%",
         "tea\x00", "(tea", "tea)", "$where tea"],
    )  # fmt: skip
    async def test_operators_are_words_or_nothing(
        self, store: Store, owner: str, talk: Conversation, query: str
    ) -> None:
        """Quotes and operators of search engines do nothing: what is left of them are words to be found."""
        stranger = someone()
        theirs = await store.create_conversation(stranger, NewConversation())
        await store.append(stranger, theirs.id, [user("tea or coffee and not words owner near where drop table")])
        await store.append(owner, talk.id, [user("milk")])
        try:
            assert await found(store, owner, query) == set()
        except InvalidInput:
            assert not any(character.isalnum() for character in query)

    @PROPERTY
    @given(text=st.text(max_size=80) | st.text("tea茶 \"*'():^-+{}OR\x00\ud7a3ｶﾞé", max_size=40))
    async def test_any_text_finds_itself(self, store: Store, owner: str, text: str) -> None:
        """Any text is a query: it finds the message that says it, or is InvalidInput where it has no words."""
        talk = await store.create_conversation(owner, NewConversation())
        (message,) = await store.append(owner, talk.id, [assistant(text)])
        try:
            page = await store.search_messages(owner, text, limit=1)
        except InvalidInput:
            assert not text.isalnum()
        else:
            assert page.items[0].message == message

    @pytest.mark.parametrize("query", ["", " ", "\n", "?!", "-", '""', "\x00", "\ud800", "…"])
    async def test_query_needs_a_word(self, store: Store, owner: str, query: str) -> None:
        """A query without a letter or digit is refused."""
        with pytest.raises(InvalidInput):
            await store.search_messages(owner, query)

    async def test_pages_of_hits(self, store: Store, owner: str) -> None:
        """Hits come stored last first, page by page, over all conversations of the owner, none twice."""
        talks = [await store.create_conversation(owner, NewConversation(title=f"Talk {n}")) for n in range(3)]
        for number in range(31):
            await store.append(owner, talks[number % 3].id, [user(f"tea {number}"), user(f"coffee {number}")])
        page = await store.search_messages(owner, "tea", limit=10)
        await store.append(owner, talks[0].id, [user("tea, too late")])
        hits = page.items
        while page.next:
            page = await store.search_messages(owner, "tea", limit=10, cursor=page.next)
            hits = hits + page.items
        assert [hit.message.content for hit in hits] == [f"tea {number}" for number in reversed(range(31))]
        assert [hit.title for hit in hits[:3]] == ["Talk 0", "Talk 2", "Talk 1"]
        assert len(await whole_search(store, owner, "tea", limit=1)) == 32

    async def test_cursor_belongs_to_its_search(self, store: Store, owner: str, talk: Conversation) -> None:
        """A cursor is refused for another query or owner."""
        await store.append(owner, talk.id, [user("tea 1"), user("tea 2")])
        cursor = (await store.search_messages(owner, "tea", limit=1)).next
        assert cursor is not None
        for who, query in ((owner, "tea 1"), (someone(), "tea")):
            with pytest.raises(InvalidInput):
                await store.search_messages(who, query, cursor=cursor)

    async def test_snippet_shows_the_place(self, store: Store, owner: str, talk: Conversation) -> None:
        """The snippet is one line around the first word found, cut to a readable length."""
        for word, filler in (("saffron", "Plain words here.\n"), ("番红花", "这里只有普通的文字。")):
            await store.append(owner, talk.id, [assistant(f"{filler * 50} {word} {filler * 50}")])
            (hit,) = await whole_search(store, owner, word)
            assert word in hit.snippet
            assert len(hit.snippet) <= 170
            assert "\n" not in hit.snippet

    async def test_first_200000_characters_are_searched(self, store: Store, owner: str, talk: Conversation) -> None:
        """Of a long message the first 200,000 characters are searched; all of it is stored."""
        filler = "tea " * 50_000
        await store.append(owner, talk.id, [assistant(f"{filler[:-8]} sage {filler} thyme")])
        await store.append(owner, talk.id, [assistant(f"{'茶' * 199_998}花草薄荷")])
        assert len(await whole_search(store, owner, "sage")) == 1
        assert len(await whole_search(store, owner, "花草")) == 1
        assert await whole_search(store, owner, "thyme") == []
        assert await whole_search(store, owner, "薄荷") == []

    async def test_search_can_be_off(self, open_store_with: Opener, owner: str) -> None:
        """A store that was opened with search=off stores and reads as before, and refuses to search."""
        async with open_store_with(search=False) as store:
            talk = await store.create_conversation(owner, NewConversation())
            stored = await store.append(owner, talk.id, [user("tea"), user("coffee")])
            await store.delete_message(owner, talk.id, stored[0].id)
            assert contents((await store.history(owner, talk.id)).items) == ["coffee"]
            with pytest.raises(InvalidInput, match="search"):
                await store.search_messages(owner, "tea")
            receipt = await store.erase_owner(owner)
            assert (receipt.messages, receipt.search_entries, receipt.remaining) == (2, 0, 0)


class EraseContract(Contract):
    """Erasing an owner."""

    async def test_receipt_counts_what_went(self, store: Store, owner: str) -> None:
        """An erasure removes everything of one owner, counts it, and finds nothing left; again it counts zero."""
        stranger = someone()
        for who in (owner, stranger):
            for number in range(3):
                talk = await store.create_conversation(who, NewConversation(context_id="kitchen"))
                await store.append(who, talk.id, [user(f"sage tea {number}"), assistant(""), assistant("mint tea")])
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
        """Erasing an owner who has nothing is no error."""
        receipt = await store.erase_owner(owner)
        assert (receipt.conversations, receipt.messages, receipt.remaining) == (0, 0, 0)

    async def test_owner_begins_anew(self, store: Store, owner: str) -> None:
        """After an erasure the owner, and their ids, can be used again; nothing old shows."""
        new = NewConversation(id=uuid4(), title="Tea")
        talk = await store.create_conversation(owner, new)
        await store.append(owner, talk.id, [user("sage", id=uuid4()), *turns(1_200)])
        await store.erase_owner(owner)
        again = await store.create_conversation(owner, new)
        assert (again.last_seq, again.head_id) == (0, None)
        (message,) = await store.append(owner, talk.id, [user("mint")])
        assert await store.log(owner, talk.id) == [message]
        assert await found(store, owner, "sage") == set()

    async def test_erasure_while_the_owner_writes(self, store: Store, owner: str, talk: Conversation) -> None:
        """Appends that race with an erasure are erased with the rest, or raise NotFound; nothing is left."""
        refused = asyncio.Event()

        async def write() -> None:
            while True:
                try:
                    await store.append(owner, talk.id, turns(5, "sage"))
                except NotFound:
                    refused.set()
                    return
                await asyncio.sleep(0)

        await store.append(owner, talk.id, turns(1_500, "sage"))
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

    async def test_erasure_beside_other_owners(self, store: Store, owner: str, talk: Conversation) -> None:
        """Other owners keep writing and reading while somebody is erased, and lose nothing."""
        stranger = someone()
        theirs = await store.create_conversation(stranger, NewConversation())
        await store.append(owner, talk.id, turns(2_000))
        async with others_appending(store, stranger, theirs.id):
            receipt = await store.erase_owner(owner)
        assert (receipt.messages, receipt.remaining) == (2_000, 0)
        log = await whole_log(store, stranger, theirs.id)
        assert seqs(log) == dense(len(log))
        assert len(await whole_search(store, stranger, "meanwhile", limit=1_000)) == len(log)


class AccessContract(Contract):
    """API keys, requests that are sent twice, and owners who change their name."""

    async def test_api_keys(self, store: Store, owner: str) -> None:
        """A key is found by its id until it is revoked; an owner's keys are listed apart from others'."""
        stranger = someone()
        access = store.access
        first, second = api_key(owner), api_key(stranger, scopes=("a", "b"), expires_at=now())
        await access.create_key(first, HASH)
        await access.create_key(second, HASH[::-1])
        with pytest.raises(Conflict):
            await access.create_key(first.model_copy(update={"owner_id": stranger}), HASH)
        assert await access.find_key(first.id) == (first, HASH)
        assert await access.find_key(second.id) == (second, HASH[::-1])
        assert await access.find_key("absent") is None
        assert [key for key in await access.list_keys() if key in (first, second)] == [first, second]
        assert await access.list_keys(stranger) == [second]
        moment = now()
        await access.key_used(first.id, moment)
        assert (await access.list_keys(owner))[0].last_used_at == moment
        assert await access.revoke_key(first.id)
        assert not await access.revoke_key(first.id)
        assert await access.find_key(first.id) is None

    async def test_keys_of_unusual_owners(self, store: Store, owner: str) -> None:
        """Owner and name come back as they went in, NUL included."""
        odd = api_key(f"{owner}\0b\ufdd0", name="naïve\0 ключ 🔑")
        await store.access.create_key(odd, HASH)
        assert await store.access.find_key(odd.id) == (odd, HASH)
        assert await store.access.list_keys(odd.owner_id) == [odd]
        assert await store.access.list_keys(owner) == []

    async def test_repeated_requests(self, store: Store, owner: str) -> None:
        """One executes; others are told to wait; then all get its reply. Another request may not use the key."""
        stranger = someone()
        access, reply = store.access, Reply(201, b'{"a": "\x00"}', "/somewhere")
        assert await access.begin_request(owner, "k", HASH) is None
        with pytest.raises(Conflict, match="under way"):
            await access.begin_request(owner, "k", HASH)
        assert await access.begin_request(stranger, "k", HASH) is None, "keys are per owner"
        await access.finish_request(owner, "k", reply)
        assert await access.begin_request(owner, "k", HASH) == reply
        with pytest.raises(InvalidInput, match="another request"):
            await access.begin_request(owner, "k", HASH[::-1])
        await access.abandon_request(owner, "k")
        assert await access.begin_request(owner, "k", HASH) == reply, "a kept reply stays"
        await access.abandon_request(stranger, "k")
        assert await access.begin_request(stranger, "k", HASH[::-1]) is None

    async def test_requests_at_once(self, store: Store, owner: str) -> None:
        """Of twenty that begin at the same moment one executes."""
        began = [store.access.begin_request(owner, "k", HASH) for _ in range(20)]
        outcomes = await asyncio.gather(*began, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes if outcome is not None] == [Conflict] * 19

    async def test_renaming_an_owner(self, store: Store, owner: str) -> None:
        """Everything goes to the new owner, is searched there, and is nobody's otherwise."""
        stranger = someone()
        talk = await store.create_conversation(owner, NewConversation(context_id="c"))
        kept = await store.append(owner, talk.id, [user("green pebble"), assistant("тёплый чай")])
        other = await store.create_conversation(stranger, NewConversation())
        await store.append(stranger, other.id, [user("blue pebble")])
        key = api_key(owner)
        await store.access.create_key(key, HASH)
        await store.access.begin_request(owner, "k", HASH)
        assert await store.access.rename_owner(owner, stranger) == 1
        assert await store.access.rename_owner(owner, stranger) == 0
        assert await whole_log(store, stranger, talk.id) == kept
        assert (await store.get_conversation(stranger, talk.id)).owner_id == stranger
        assert len((await store.search_messages(stranger, "pebble")).items) == 2
        assert len((await store.search_messages(stranger, "чай")).items) == 1
        assert (await store.search_messages(owner, "pebble")).items == []
        assert (await store.list_conversations(owner)).items == []
        assert [one.id for one in await store.access.list_keys(stranger)] == [key.id]
        assert await store.access.begin_request(owner, "k", HASH) is None
        await store.append(stranger, talk.id, [user("one more pebble")])
        assert len((await store.search_messages(stranger, "pebble")).items) == 3
        receipt = await store.erase_owner(stranger)
        assert (receipt.conversations, receipt.messages, receipt.search_entries, receipt.remaining) == (2, 4, 4, 0)

    async def test_renaming_refuses_a_clash(self, store: Store, owner: str) -> None:
        """Two conversations with one id cannot both belong to one owner: nothing is changed then."""
        stranger = someone()
        talk = await store.create_conversation(owner, NewConversation())
        await store.create_conversation(stranger, NewConversation(id=talk.id))
        with pytest.raises(Conflict, match="same id"):
            await store.access.rename_owner(owner, stranger)
        assert (await store.get_conversation(owner, talk.id)).owner_id == owner

    async def test_erasure_takes_keys_and_replies(self, store: Store, owner: str) -> None:
        """What an owner's erasure removes holds their keys and the replies kept for them, and nobody else's."""
        stranger = someone()
        for name in (owner, stranger):
            await store.access.create_key(api_key(name), HASH)
            await store.access.begin_request(name, "k", HASH)
        receipt = await store.erase_owner(owner)
        assert (receipt.api_keys, receipt.requests, receipt.remaining) == (1, 1, 0)
        assert [await store.access.list_keys(name) == [] for name in (owner, stranger)] == [True, False]
        with pytest.raises(Conflict):
            await store.access.begin_request(stranger, "k", HASH)


HASH = bytes(range(32))


def api_key(owner: str, **values: Any) -> ApiKey:
    """A key that was made now."""
    return ApiKey(**{"id": uuid4().hex, "owner_id": owner, "name": "script", "created_at": now(), **values})


class StoreContract(
    PortContract,
    AppendContract,
    ConversationContract,
    ListContract,
    HistoryContract,
    BranchContract,
    OwnerContract,
    IdContract,
    DeletedMessageContract,
    ValueContract,
    SearchContract,
    EraseContract,
    AccessContract,
):
    """All that the docstrings of `Store` promise, apart from durability, which each database shows in its own way."""
