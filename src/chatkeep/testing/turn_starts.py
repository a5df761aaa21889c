"""Turns that begin: a question is answered once."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest

from chatkeep.errors import ChatkeepError, Conflict, InvalidInput, NotFound, TooManyTurns, TurnInProgress
from chatkeep.events import text
from chatkeep.model import Conversation, NewConversation, NewMessage, Role, RunningAnswer, Status
from chatkeep.store import Store
from chatkeep.testing.contract import Contract, Opener
from chatkeep.testing.messages import assistant, dense, numbered, seqs, someone, user
from chatkeep.testing.reference import whole_history, whole_log
from chatkeep.testing.turn_steps import AT_ONCE, begin, gone
from chatkeep.turns import LEASE, MAX_RUNNING, Turn, answer_id

ENDS = ("running", "complete", "failed", "interrupted", "expired")
"""What may have become of a turn when its question is asked again."""


class TurnStartContract(Contract):
    """Turns that begin: a question is answered once."""

    async def ask(self, store: Store, owner: str, id_: UUID, question: NewMessage | UUID, **arguments: Any) -> Turn:
        """Start a turn, or find it, as a worker of its own: it has the lease if it has begun the turn."""
        return await store.turns.start_turn(owner, id_, question, worker=uuid4(), **arguments)

    async def test_question_and_answer_are_appended(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A turn appends its question and a row for its answer, which is in progress and has the id made of both."""
        (before,) = await store.append(owner, conversation.id, [assistant("Hello.")])
        question = user("  What is\tsage? ", id=uuid4(), metadata={"a": 1}, external_id="7", parts=[{"type": "file"}])
        turn = await self.ask(store, owner, conversation.id, question)
        assert turn.is_mine
        assert turn.question == await store.get_message(owner, conversation.id, turn.question.id)
        assert turn.question.model_dump(include=set(NewMessage.model_fields)) == {
            **question.model_dump(),
            "parent_id": before.id,
        }
        empty: dict[str, Any] = {
            "content": "",
            "parts": None,
            "sources": (),
            "metadata": {},
            "model": None,
            "external_id": None,
        }
        assert turn.answer.model_dump(include={*empty, "id", "role", "status", "parent_id", "seq"}) == {
            **empty,
            "id": answer_id(turn.question.id),
            "role": Role.ASSISTANT,
            "status": Status.IN_PROGRESS,
            "parent_id": turn.question.id,
            "seq": 3,
        }
        assert seqs(await store.log(owner, conversation.id)) == dense(3)
        now = await store.get_conversation(owner, conversation.id)
        assert (now.title, now.head_id, now.last_seq) == ("What is sage?", turn.answer.id, 3)
        assert now.updated_at == turn.answer.created_at == turn.question.created_at >= before.created_at

    async def test_questions_get_ids(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A question without an id gets one; asked twice without an id, it is two questions."""
        first = await begin(store, owner, conversation.id)
        await first.finish()
        second = await begin(store, owner, conversation.id)
        assert first.turn.question.id != second.turn.question.id
        log = await whole_log(store, owner, conversation.id)
        assert [message.parent_id for message in log] == [None, *(message.id for message in log[:-1])]
        assert seqs(log) == dense(4)

    async def test_questions_may_name_a_parent(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A question may open a branch; then history shows it and its answer."""
        first, _ = await store.append(owner, conversation.id, [user("sage"), assistant("yes")])
        running = await begin(store, owner, conversation.id, user("mint", parent_id=first.id))
        path = await whole_history(store, owner, conversation.id)
        assert [message.id for message in path] == [first.id, running.turn.question.id, running.answer_id]
        await running.finish()
        root = await begin(store, owner, conversation.id, user("thyme", parent_id=None))
        path = await whole_history(store, owner, conversation.id)
        assert [message.id for message in path] == [root.turn.question.id, root.answer_id]

    @pytest.mark.parametrize("content", ["long", "role", "tool", "parent"])
    async def test_refused_questions_store_nothing(self, open_store_with: Opener, owner: str, content: str) -> None:
        """What is not a user's, is too long, or has an unknown parent is refused; nothing is stored."""
        refused = {
            "long": user("four!"),
            "role": assistant("tea"),
            "tool": NewMessage(role=Role.TOOL, content="tea"),
            "parent": user("tea", parent_id=uuid4()),
        }
        async with open_store_with(max_content_chars=4) as store:
            conversation = await store.create_conversation(owner, NewConversation())
            with pytest.raises(NotFound if content == "parent" else InvalidInput):
                await self.ask(store, owner, conversation.id, refused[content])
            assert await store.log(owner, conversation.id) == []
            assert await store.get_conversation(owner, conversation.id) == conversation
            await begin(store, owner, conversation.id, "tea")

    @pytest.mark.parametrize("end", ENDS)
    async def test_question_that_was_asked_before(
        self, store: Store, owner: str, conversation: Conversation, end: str
    ) -> None:
        """The same question again, whatever became of it, returns its turn as it is now and begins none."""
        question = user("What is sage?", id=uuid4())
        lease = AT_ONCE if end == "expired" else LEASE
        running = await begin(store, owner, conversation.id, question, lease=lease)
        await running.write(text("A "), text("herb."), lease=lease)
        if end == "expired":
            await running.wait_until_expired()
        elif end != "running":
            await running.finish(running.ending(Status(end)))
        for worker in (running.worker, uuid4()):
            turn = await store.turns.start_turn(owner, conversation.id, question, worker=worker)
            assert turn.is_mine == (end == "running" and worker == running.worker)
            assert turn.question == running.turn.question
            assert turn.answer == await running.message()
            assert turn.answer.status == {"running": "in_progress", "expired": "interrupted"}.get(end, end)
            assert turn.answer.content == "A herb."
            assert isinstance(turn.answer, RunningAnswer) == (end == "running")
        assert seqs(await store.log(owner, conversation.id)) == dense(2)

    async def test_start_whose_reply_was_lost(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A worker that starts its turn again has it still; so it may make the answer if the reply was lost."""
        question, worker = user("sage?", id=uuid4()), uuid4()
        first = await begin(store, owner, conversation.id, question, worker=worker)
        starts = (
            store.turns.start_turn(owner, conversation.id, asked, worker=worker)
            for asked in (question, first.turn.question.id)
        )
        assert [(turn.is_mine, turn.answer.id) for turn in [await start for start in starts]] == [
            (True, first.answer_id)
        ] * 2
        await first.write(text("A herb."))
        done = await first.finish()
        again = await store.turns.start_turn(owner, conversation.id, question, worker=worker)
        assert again == Turn(first.turn.question, done, is_mine=False)

    async def test_same_id_with_other_content(self, store: Store, owner: str, conversation: Conversation) -> None:
        """A question's id with other content is a conflict, while the turn runs and after it."""
        question = user("sage?", id=uuid4())
        running = await begin(store, owner, conversation.id, question)
        for _ in range(2):
            for other in (user("mint?", id=question.id), user("sage?", id=question.id, metadata={"a": 1})):
                with pytest.raises(Conflict) as caught:
                    await self.ask(store, owner, conversation.id, other)
                assert not isinstance(caught.value, TurnInProgress)
            await running.finish()
        assert seqs(await store.log(owner, conversation.id)) == dense(2)

    async def test_question_that_was_appended_before(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """A message that was appended without a turn is answered once, as a branch if others follow it."""
        question = user("sage?", id=uuid4())
        first, second = await store.append(owner, conversation.id, [question, assistant("Wait.")])
        with pytest.raises(Conflict):
            await self.ask(store, owner, conversation.id, user("mint?", id=question.id))
        running = await begin(store, owner, conversation.id, question)
        assert (running.turn.question, running.turn.answer.parent_id) == (first, first.id)
        await running.finish()
        assert not (await self.ask(store, owner, conversation.id, question)).is_mine
        log = await whole_log(store, owner, conversation.id)
        assert [message.id for message in log] == [first.id, second.id, running.answer_id]
        assert (await store.get_conversation(owner, conversation.id)).head_id == running.answer_id

    async def test_one_question_at_once(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Of twenty concurrent starts of one question one begins; the others get its turn."""
        question = user("sage?", id=uuid4())
        turns = await asyncio.gather(*(self.ask(store, owner, conversation.id, question) for _ in range(20)))
        assert [turn.is_mine for turn in turns].count(True) == 1
        assert {(turn.question.id, turn.answer.id) for turn in turns} == {(question.id, turns[0].answer.id)}
        assert seqs(await store.log(owner, conversation.id)) == dense(2)

    async def test_two_questions_at_once(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Of several concurrent questions one is answered; the others learn which answer they wait for."""
        outcomes = await asyncio.gather(
            *(self.ask(store, owner, conversation.id, user(f"sage {n}?", id=uuid4())) for n in range(5)),
            return_exceptions=True,
        )
        (turn,) = begun(outcomes)
        refused = [each for each in outcomes if isinstance(each, TurnInProgress)]
        assert [each.message_id for each in refused] == [turn.answer.id] * 4
        assert seqs(await store.log(owner, conversation.id)) == dense(2)

    async def test_next_question(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Another question is refused while one is answered, and begins after its end."""
        running = await begin(store, owner, conversation.id)
        following = user("And mint?", id=uuid4())
        with pytest.raises(TurnInProgress) as caught:
            await self.ask(store, owner, conversation.id, following)
        assert caught.value.message_id == running.answer_id
        await running.finish()
        turn = await self.ask(store, owner, conversation.id, following)
        assert (turn.is_mine, turn.question.parent_id) == (True, running.answer_id)
        assert seqs(await store.log(owner, conversation.id)) == dense(4)

    async def test_most_turns_of_an_owner(self, store: Store, owner: str) -> None:
        """Of concurrent starts in many conversations as many begin as the owner may have; other owners do not count."""
        talks = [await store.create_conversation(owner, NewConversation()) for _ in range(20)]
        outcomes = await asyncio.gather(
            *(self.ask(store, owner, talk.id, user("sage?", id=talk.id)) for talk in talks), return_exceptions=True
        )
        turns = begun(outcomes)
        assert len(turns) == MAX_RUNNING == 4
        assert [type(each) for each in outcomes if not isinstance(each, Turn)] == [TooManyTurns] * 16
        assert sum([len(await store.log(owner, talk.id)) for talk in talks]) == 8
        stranger = someone()
        theirs = await store.create_conversation(stranger, NewConversation())
        running = await begin(store, stranger, theirs.id)
        for turn in turns:  # those that run are found, however many there are
            again = await self.ask(store, owner, turn.answer.conversation_id, user("sage?", id=turn.question.id))
            assert (again.is_mine, again.answer.id) == (False, turn.answer.id)
        waiting = next(talk for talk in talks if talk.id not in {turn.question.id for turn in turns})
        with pytest.raises(TooManyTurns):
            await begin(store, owner, waiting.id)
        await begin(store, owner, waiting.id, max_running=5)
        await running.finish()

    async def test_ended_turns_do_not_count(self, store: Store, owner: str) -> None:
        """Whoever has as many turns as they may begins another when one has ended."""
        talks = [await store.create_conversation(owner, NewConversation()) for _ in range(3)]
        first = await begin(store, owner, talks[0].id, max_running=2)
        await begin(store, owner, talks[1].id, max_running=2)
        with pytest.raises(TooManyTurns):
            await begin(store, owner, talks[2].id, max_running=2)
        await first.finish()
        await begin(store, owner, talks[2].id, max_running=2)

    async def test_expired_turns_do_not_count(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Turns whose lease has expired keep nobody from beginning another one, here or elsewhere."""
        other = await store.create_conversation(owner, NewConversation())
        running = await begin(store, owner, conversation.id, lease=AT_ONCE)
        await running.wait_until_expired()
        await begin(store, owner, other.id, max_running=1)
        assert (await running.message()).status is Status.IN_PROGRESS, "it is another conversation's"

    async def test_expired_turn_is_closed_by_the_next(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """A start closes the expired turn of its conversation, with every event that was stored."""
        running = await begin(store, owner, conversation.id, lease=AT_ONCE)
        await running.write(text("A "), text("herb"), lease=AT_ONCE)
        await running.wait_until_expired()
        following = await begin(store, owner, conversation.id, "And mint?", max_running=1)
        message = await running.message()
        assert (message.status, message.content) == (Status.INTERRUPTED, "A herb")
        assert following.turn.question.parent_id == running.answer_id
        await gone(running)

    async def test_answering_again(self, store: Store, owner: str, conversation: Conversation) -> None:
        """The id of a question answers it again: a sibling of the answers before, which becomes the head."""
        first = await begin(store, owner, conversation.id)
        question = first.turn.question
        await first.write(text("A herb."))
        await first.finish()
        second = await begin(store, owner, conversation.id, question.id)
        assert (second.turn.question, second.turn.answer.parent_id) == (question, question.id)
        assert second.answer_id != first.answer_id
        assert (await store.get_conversation(owner, conversation.id)).head_id == second.answer_id
        await second.write(text("A plant."))
        await second.finish()
        third = await begin(store, owner, conversation.id, question.id, attempt="k")
        assert third.answer_id == answer_id(question.id, "k")
        siblings = (await store.siblings(owner, conversation.id, first.answer_id)).items
        assert [message.content for message in siblings] == ["A herb.", "A plant.", ""]
        assert seqs(await store.log(owner, conversation.id)) == dense(4)

    async def test_attempts(self, store: Store, owner: str, conversation: Conversation) -> None:
        """An attempt makes one answer; another attempt attaches to the answer that is being made of its question."""
        first = await begin(store, owner, conversation.id)
        question, id_ = first.turn.question, conversation.id
        for attempt in (None, "k"):
            attached = await self.ask(store, owner, id_, question.id, attempt=attempt)
            assert (attached.is_mine, attached.answer) == (False, await first.message())
        await first.finish()
        second = await begin(store, owner, id_, question.id, attempt="k")
        for attempt in (None, "k", "l"):
            attached = await self.ask(store, owner, id_, question.id, attempt=attempt)
            assert (attached.is_mine, attached.answer.id) == (False, second.answer_id)
        done = await second.finish()
        again = await self.ask(store, owner, id_, question.id, attempt="k")
        assert again == Turn(question, done, is_mine=False)
        repeated = await self.ask(store, owner, id_, question.id, attempt="1")
        assert repeated.answer.id == first.answer_id, "the question was the first attempt"
        assert seqs(await store.log(owner, id_)) == dense(3)

    async def test_one_attempt_at_once(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Of twenty concurrent attempts to answer again, the same and others, one begins."""
        (question,) = await store.append(owner, conversation.id, [user("sage?")])
        asked = [self.ask(store, owner, conversation.id, question.id, attempt=str(n % 4) or None) for n in range(20)]
        turns = await asyncio.gather(*asked)
        assert [turn.is_mine for turn in turns].count(True) == 1
        assert len({turn.answer.id for turn in turns}) == 1
        assert seqs(await store.log(owner, conversation.id)) == dense(2)

    async def test_answering_another_question_meanwhile(
        self, store: Store, owner: str, conversation: Conversation
    ) -> None:
        """While one question is answered, another one is not answered again, but what it has is returned."""
        first = await begin(store, owner, conversation.id)
        done = await first.finish()
        second = await begin(store, owner, conversation.id, "And mint?")
        with pytest.raises(TurnInProgress) as caught:
            await self.ask(store, owner, conversation.id, first.turn.question.id)
        assert caught.value.message_id == second.answer_id
        assert (await self.ask(store, owner, conversation.id, first.turn.question.id, attempt="1")).answer == done

    async def test_what_cannot_be_answered_again(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Only a user's message that is there is answered again."""
        (answer,) = await store.append(owner, conversation.id, [assistant("Hello.")])
        with pytest.raises(InvalidInput):
            await self.ask(store, owner, conversation.id, answer.id)
        with pytest.raises(NotFound):
            await self.ask(store, owner, conversation.id, uuid4())
        assert await store.log(owner, conversation.id) == [answer]

    @pytest.mark.parametrize("when", ["answered", "appended"])
    async def test_question_that_was_deleted(
        self, store: Store, owner: str, conversation: Conversation, when: str
    ) -> None:
        """A question that was deleted is not found, and never answered, however it is asked."""
        question = user("sage?", id=uuid4())
        if when == "answered":
            await (await begin(store, owner, conversation.id, question)).finish()
        else:
            await store.append(owner, conversation.id, [question])
        await store.delete_message(owner, conversation.id, question.id or "")
        before = await whole_log(store, owner, conversation.id)
        for asked in (question, before[0].id):
            with pytest.raises(NotFound):
                await self.ask(store, owner, conversation.id, asked)
        assert await whole_log(store, owner, conversation.id) == before

    @pytest.mark.parametrize("when", ["running", "ended"])
    async def test_answer_that_was_deleted(
        self, store: Store, owner: str, conversation: Conversation, when: str
    ) -> None:
        """An answer that was deleted is not found when its question is sent again, and not made again."""
        question = user("sage?", id=uuid4())
        running = await begin(store, owner, conversation.id, question)
        if when == "ended":
            await running.finish()
        assert await store.delete_message(*running.key)
        before = await whole_log(store, owner, conversation.id)
        for asked, attempt in ((question, None), (running.turn.question.id, "1")):
            with pytest.raises(NotFound):
                await self.ask(store, owner, conversation.id, asked, attempt=attempt)
        assert await whole_log(store, owner, conversation.id) == before
        again = await begin(store, owner, conversation.id, running.turn.question.id)
        assert again.answer_id != running.answer_id

    async def test_answer_whose_id_is_taken(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Whoever has given the id of a question's first answer to another message begins no turn and loses nothing."""
        question = user("sage?", id=uuid4())
        assert question.id is not None
        (taken,) = await store.append(owner, conversation.id, [assistant("mine", id=answer_id(question.id))])
        with pytest.raises(Conflict):
            await self.ask(store, owner, conversation.id, question)
        assert await whole_log(store, owner, conversation.id) == [taken]
        await begin(store, owner, conversation.id)

    async def test_starts_while_others_append(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Turns that begin and end while others append: every seq is dense, every answer follows its question."""

        async def turns() -> None:
            for number in range(8):
                await (await begin(store, owner, conversation.id, f"sage {number}?")).finish()

        async def appends(name: str) -> None:
            for message in numbered(12, name):
                await store.append(owner, conversation.id, [message])

        await asyncio.gather(turns(), appends("a"), appends("b"))
        log = await whole_log(store, owner, conversation.id)
        assert seqs(log) == dense(8 * 2 + 24)
        by_id = {message.id: message for message in log}
        questions = [message for message in log if message.role is Role.USER]
        assert [by_id[answer_id(each.id)].parent_id for each in questions] == [each.id for each in questions]


def begun(outcomes: Sequence[object]) -> list[Turn]:
    """The turns that began, of outcomes that are turns or chatkeep's errors."""
    for outcome in outcomes:
        if isinstance(outcome, BaseException) and not isinstance(outcome, ChatkeepError):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, Turn) and outcome.is_mine]
