"""Order, idempotency and atomicity of appends."""

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, NotYours
from chatkeep.model import Conversation, Message, NewConversation, NewMessage, Role, Source, Status
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import contents, dense, numbered, seqs, someone, user
from chatkeep.testing.reference import others_appending, whole_history, whole_log, whole_search

WRONG_MESSAGES: tuple[Callable[[], Any], ...] = (
    lambda: (user("from a generator") for _ in range(3)),
    lambda: {"role": "user", "content": "a dictionary"},
    lambda: {user("in a set").content},
    lambda: b"bytes",
    lambda: "text",
    lambda: None,
    lambda: 7,
    lambda: [user("before"), {"role": "user", "content": "a dictionary in a list"}],
    lambda: (None,),
    lambda: bytearray(b"x"),
)
"""What is no sequence of messages. A generator can be read once only."""


class AppendContract(Contract):
    """Order, idempotency and atomicity of appends."""

    async def test_hundred_concurrent_appenders_get_dense_seqs(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Concurrent appends get the seqs 1, 2, 3 …, each caller's in its order, none lost, none twice."""

        async def append(name: int) -> list[Message]:
            return [
                message
                for number in range(5)
                for message in await store.append(owner, conversation.id, [user(f"{name}: {number}")])
            ]

        answers = await asyncio.gather(*(append(name) for name in range(100)))
        log = await whole_log(store, owner, conversation.id)
        assert seqs(log) == dense(500)
        assert sorted((m for answer in answers for m in answer), key=lambda m: m.seq) == log
        for name, answer in enumerate(answers):
            assert contents(answer) == [f"{name}: {number}" for number in range(5)]
            assert seqs(answer) == sorted(seqs(answer))
        assert (await store.get_conversation(owner, conversation.id)).last_seq == 500

    async def test_a_batch_stays_together(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The messages of one append have consecutive seqs and follow each other, despite concurrent appends."""
        batches = [numbered(size) for size in (1, 2, 3, 5, 8, 13)] * 4
        batches = [[m.model_copy(update={"id": uuid4()}) for m in batch] for batch in batches]
        answers = await asyncio.gather(*(store.append(owner, conversation.id, batch) for batch in batches))
        for batch, answer in zip(batches, answers, strict=True):
            assert [m.id for m in answer] == [m.id for m in batch]
            assert seqs(answer) == list(range(answer[0].seq, answer[0].seq + len(batch)))
            assert [m.parent_id for m in answer[1:]] == [m.id for m in answer[:-1]]

    async def test_append_returns_what_is_stored(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Append returns each message with all its values, exactly as later reads do."""
        source = Source(document_id=uuid4(), file_path="tea.md", header_anchor="#hot", similarity_score=0.75)
        sent = datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)
        new = NewMessage(
            id=uuid4(),
            role=Role.TOOL,
            content="80 degrees",
            status=Status.INTERRUPTED,
            parts=({"type": "tool_result", "tool_call_id": "call-7", "content": [{"degrees": 80}]},),
            sources=(source,),
            metadata={"tokens": 3},
            model="small",
            input_tokens=0,
            output_tokens=12,
            duration_ms=2**63 - 1,
            external_id="call-7",
            sent_at=sent,
        )
        (stored,) = await store.append(owner, conversation.id, [new])
        assert stored.model_dump(exclude={"created_at"}) == {
            **new.model_dump(),
            "conversation_id": conversation.id,
            "seq": 1,
            "parent_id": None,
        }
        assert abs(datetime.now(UTC) - stored.created_at) < timedelta(minutes=1)
        assert stored.created_at.utcoffset() == timedelta(0)
        assert await store.get_message(owner, conversation.id, stored.id) == stored
        assert (await store.history(owner, conversation.id)).items == [stored]
        assert await store.log(owner, conversation.id) == [stored]
        assert (await store.siblings(owner, conversation.id, stored.id)).items == [stored]
        assert [hit.message for hit in await whole_search(store, owner, "degrees")] == [stored]

    async def test_reader_of_the_log_sees_no_gap(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A reader that follows the log while others append sees every seq, in order, without gaps."""
        seen: list[int] = []
        async with others_appending(store, owner, conversation.id, writers=8):
            while len(seen) < 300:
                seen += seqs(await store.log(owner, conversation.id, after=len(seen)))
                await asyncio.sleep(0)
        assert seen == dense(len(seen))

    async def test_equal_times_keep_the_order_of_appends(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Messages with equal times, or times that go back, keep the order of their appends."""
        noon = datetime(2026, 1, 31, 12, tzinfo=UTC)
        times = [noon, noon, noon, noon - timedelta(days=1), noon, noon + timedelta(days=1), noon]
        await store.append(owner, conversation.id, [user(str(n), sent_at=time) for n, time in enumerate(times)])
        for limit in (1, 2, 3):
            history = await whole_history(store, owner, conversation.id, limit=limit)
            assert contents(history) == [str(n) for n in range(len(times))]

    async def test_retry_returns_the_stored_message(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Appending the same message with the same id again stores nothing and returns what is stored."""
        new = user("ok", id=uuid4(), metadata={"a": 1, "b": [2]}, parent_id=None)
        (first,) = await store.append(owner, conversation.id, [new])
        (last,) = await store.append(owner, conversation.id, [user("and then?")])
        before = await store.get_conversation(owner, conversation.id)
        again = new.model_copy(update={"metadata": {"b": [2], "a": 1}})
        assert await store.append(owner, conversation.id, [again]) == [first]
        assert await store.log(owner, conversation.id) == [first, last]
        assert await store.get_conversation(owner, conversation.id) == before

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
            {"parts": ({"type": "text", "text": "ok"},)},
            {"model": "small"},
            {"input_tokens": 0},
            {"duration_ms": 0},
        ],
        ids=lambda change: "-".join(map(str, [*change, *map(repr, change.values())]))[:40],
    )
    async def test_same_id_with_other_values_is_a_conflict(
        self, store: Store, owner: str, conversation: Conversation, change: dict[str, Any]
    ) -> None:
        """A known id with other values raises Conflict, and nothing of the append is stored."""
        values: dict[str, Any] = {"id": uuid4(), "role": Role.USER, "content": "ok", "metadata": {"n": 1}}
        await store.append(owner, conversation.id, [NewMessage(**values)])
        before = await store.get_conversation(owner, conversation.id), await store.log(owner, conversation.id)
        with pytest.raises(Conflict):
            await store.append(owner, conversation.id, [user("new"), NewMessage(**{**values, **change}), user("newer")])
        assert before == (await store.get_conversation(owner, conversation.id), await store.log(owner, conversation.id))

    async def test_batch_that_is_known_in_part_is_completed(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Known messages of a batch are returned as they are, the others are stored, in order."""
        batch = numbered(6)
        first = await store.append(owner, conversation.id, [batch[1], batch[4]])
        answer = await store.append(owner, conversation.id, batch)
        assert [m.id for m in answer] == [m.id for m in batch]
        assert [answer[1], answer[4]] == first
        assert seqs(answer) == [3, 1, 4, 5, 2, 6]
        assert await store.append(owner, conversation.id, batch) == answer
        assert sorted(answer, key=lambda m: m.seq) == await store.log(owner, conversation.id)

    async def test_same_id_twice_in_one_batch(self, store: Store, owner: str, conversation: Conversation) -> None:
        """An id twice in one append is one message, returned twice; with other values it raises Conflict."""
        twice = user("ok", id=uuid4())
        answer = await store.append(owner, conversation.id, [twice, user("between"), twice])
        assert answer[0] == answer[2]
        assert contents(await store.log(owner, conversation.id)) == ["ok", "between"]
        other = uuid4()
        with pytest.raises(Conflict):
            await store.append(owner, conversation.id, [user("ok", id=other), user("ok?", id=other)])
        assert (await store.get_conversation(owner, conversation.id)).last_seq == 2

    async def test_retry_after_deletion_returns_the_tombstone(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """A retry of a deleted message returns the tombstone; other values raise Conflict."""
        new = user("forget me", id=uuid4(), metadata={"a": 1})
        await store.append(owner, conversation.id, [new])
        assert await store.delete_message(owner, conversation.id, new.id or "")
        (tombstone,) = await store.append(owner, conversation.id, [new])
        assert (tombstone.status, tombstone.content, tombstone.metadata) == (Status.DELETED, "", {})
        assert await store.log(owner, conversation.id) == [tombstone]
        with pytest.raises(Conflict):
            await store.append(owner, conversation.id, [user("something else", id=new.id)])

    async def test_saying_it_twice_is_two_messages(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Two ids with the same content are two messages, and so are two messages without an id."""
        await store.append(owner, conversation.id, [user("ok", id=uuid4()), user("ok", id=uuid4())])
        await store.append(owner, conversation.id, [user("ok"), user("ok")])
        log = await store.log(owner, conversation.id)
        assert contents(log) == ["ok"] * 4
        assert len({message.id for message in log}) == 4

    async def test_an_id_belongs_to_its_conversation(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """The same message id may be used in another conversation, for other content."""
        other = await store.create_conversation(owner, NewConversation())
        message_id = uuid4()
        await store.append(owner, conversation.id, [user("here", id=message_id)])
        await store.append(owner, other.id, [user("there", id=message_id)])
        assert (await store.get_message(owner, conversation.id, message_id)).content == "here"
        assert (await store.get_message(owner, other.id, message_id)).content == "there"

    async def test_retries_at_the_same_moment_store_once(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Forty concurrent appends of one message store it once."""
        new = user("only once", id=uuid4())
        answers = await asyncio.gather(*(store.append(owner, conversation.id, [new]) for _ in range(40)))
        assert answers == [answers[0]] * 40
        assert await store.log(owner, conversation.id) == answers[0]

    async def test_rivals_for_an_id_at_the_same_moment(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Of concurrent appends of one id with different contents, one is stored and the others raise Conflict."""
        id_ = uuid4()
        calls = (store.append(owner, conversation.id, [user(f"version {n}", id=id_)]) for n in range(20))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        stored = [answer for answer in answers if not isinstance(answer, Conflict)]
        assert stored == [await store.log(owner, conversation.id)]

    async def test_bad_append_leaves_its_neighbours_alone(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Among 50 concurrent appends, refused ones do not affect the others, whose seqs are dense."""
        known = user("known", id=uuid4())
        await store.append(owner, conversation.id, [known])
        bad: dict[int, tuple[NewMessage, type[ChatkeepError]]] = {
            7: (user("other", id=known.id), Conflict),
            18: (user("orphan", parent_id=uuid4()), NotFound),
            29: (user("x" * 10_001), InvalidInput),
            44: (user("orphan", parent_id=uuid4()), NotFound),
        }

        def call(number: int) -> Awaitable[list[Message]]:
            last, _ = bad.get(number, (user(f"{number} b"), None))
            return store.append(owner, conversation.id, [user(f"{number} a"), last])

        answers = await asyncio.gather(*map(call, range(50)), return_exceptions=True)
        for number, (_, error) in bad.items():
            assert type(answers[number]) is error
        good = [answer for answer in answers if isinstance(answer, list)]
        assert len(good) == 46
        log = await whole_log(store, owner, conversation.id)
        assert seqs(log) == dense(93)
        assert sorted((m for answer in good for m in answer), key=lambda m: m.seq) == log[1:]

    async def test_bad_conversation_leaves_its_neighbours_alone(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """An append to a missing or foreign conversation does not affect concurrent ones."""
        theirs = await store.create_conversation(someone(), NewConversation())
        targets = [conversation.id, uuid4(), conversation.id, theirs.id, conversation.id]
        calls = (store.append(owner, target, [user("hello")]) for target in targets)
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(answer) for answer in answers] == [list, NotFound, list, NotYours, list]
        assert seqs(await store.log(owner, conversation.id)) == dense(3)

    async def test_expected_seq(self, store: Store, owner: str, conversation: Conversation) -> None:
        """With expected_seq, new messages are stored after exactly that seq; a retry of known ones is no conflict."""
        first = user("first", id=uuid4())
        stored = await store.append(owner, conversation.id, [first], expected_seq=0)
        for wrong in (0, 2, -1, 2**70):
            with pytest.raises(Conflict):
                await store.append(owner, conversation.id, [user("second")], expected_seq=wrong)
        assert await store.append(owner, conversation.id, [first], expected_seq=0) == stored
        with pytest.raises(Conflict):
            await store.append(owner, conversation.id, [first, user("second")], expected_seq=0)
        await store.append(owner, conversation.id, [user("second"), user("third")], expected_seq=1)
        assert contents(await store.log(owner, conversation.id)) == ["first", "second", "third"]

    async def test_one_of_many_meets_the_expected_seq(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """Of many concurrent appends with the same expected_seq, exactly one is stored."""
        calls = (store.append(owner, conversation.id, [user(str(n))], expected_seq=0) for n in range(30))
        answers = await asyncio.gather(*calls, return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["Conflict"] * 29 + ["list"]
        assert len(await store.log(owner, conversation.id)) == 1

    async def test_transcript_that_is_sent_again_and_again(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """A client that sends the whole transcript every time stores each message once."""
        transcript = numbered(12)
        for length in range(1, 13):
            await store.append(owner, conversation.id, transcript[:length])
        assert [m.id for m in await store.log(owner, conversation.id)] == [m.id for m in transcript]

    async def test_wrong_values_are_said_before_what_is_missing(self, store: Store, owner: str) -> None:
        """InvalidInput is raised before NotFound, and NotFound before Conflict."""
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

    async def test_empty_append_is_refused(self, store: Store, owner: str, conversation: Conversation) -> None:
        """An append needs a message."""
        with pytest.raises(InvalidInput):
            await store.append(owner, conversation.id, [])

    async def test_one_message_is_a_list_of_one(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A message alone, a tuple, and any other sequence of messages are appended as a list of them is."""
        new = [user(text) for text in ("alone", "in a tuple", "in a deque")]
        for messages in (new[0], (new[1],), deque([new[2]])):
            (stored,) = await store.append(owner, conversation.id, messages)
            assert stored == await store.get_message(owner, conversation.id, stored.id)
        assert contents(await store.log(owner, conversation.id)) == [message.content for message in new]

    @pytest.mark.parametrize("wrong", WRONG_MESSAGES, ids=lambda each: type(each()).__name__)
    async def test_anything_else_is_refused(
        self, store: Store, owner: str, conversation: Conversation, wrong: Callable[[], Any]
    ) -> None:
        """What is no sequence of NewMessage stores nothing, and the error says what to give."""
        with pytest.raises(InvalidInput, match="append takes a NewMessage, or a list or tuple of them"):
            await store.append(owner, conversation.id, wrong())
        assert await store.log(owner, conversation.id) == []

    async def test_cancelled_append_is_stored_whole_or_not_at_all(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """An append that is cancelled at any moment leaves a whole batch or none, and does not affect others."""
        dice = random.Random(7)  # noqa: S311 - not a secret
        batches: list[list[NewMessage]] = []
        for _ in range(25):
            batches += await self._append_and_cancel(store, owner, conversation.id, dice)
        await store.append(owner, conversation.id, [user("when all is settled")])
        log = await whole_log(store, owner, conversation.id)
        assert seqs(log) == dense(len(log))
        seq_of = {message.id: message.seq for message in log}
        assert len(seq_of) == len(log)
        for batch in batches:
            places = [seq_of[m.id] for m in batch if m.id in seq_of]
            assert places in ([], list(range(places[0], places[0] + len(batch))) if places else [])

        for batch in batches:
            assert [m.id for m in await store.append(owner, conversation.id, batch)] == [m.id for m in batch]
        assert len(await whole_log(store, owner, conversation.id)) == 3 * len(batches) + 1

    async def _append_and_cancel(
        self, store: Store, owner: str, conversation_id: UUID, dice: random.Random
    ) -> list[list[NewMessage]]:
        """Start eight appends and cancel four of them a little later; the other four must be stored."""
        batches = [numbered(3) for _ in range(8)]
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
