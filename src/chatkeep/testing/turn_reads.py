"""Reads while an answer is being made."""

import pytest

from chatkeep.events import Event, EventKind, parse_place, place_of, reasoning, text
from chatkeep.model import (
    Conversation,
    ConversationChange,
    Message,
    MessageChange,
    RunningAnswer,
    Status,
)
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, contents, dense, numbered, seqs, someone, user
from chatkeep.testing.reference import found, reads_of, whole_history, whole_log, whole_siblings
from chatkeep.testing.turn_steps import Running, begin, pieces


class TurnReadContract(Contract):
    """Reads while an answer is being made."""

    @pytest.fixture
    async def later(self, store: Store, owner: str, conversation: Conversation) -> Running:
        """A turn that runs, after two messages."""
        await store.append(owner, conversation.id, [user("thyme?"), assistant("A herb.")])
        return await begin(store, owner, conversation.id)

    async def shown(self, later: Running) -> Message:
        """The answer, which every read must show alike."""
        owner, conversation_id, id_ = later.key
        messages = await reads_of(later.store, owner, conversation_id, id_)
        assert messages == [messages[0]] * len(messages)
        assert {type(message) for message in messages} == {type(messages[0])}
        return messages[0]

    async def test_every_read_shows_the_text_so_far(self, later: Running) -> None:
        """Every read shows the running answer with what is stored of it, and the place to read on from."""
        place = place_of(later.answer_id)
        for events in (
            [],
            pieces("A herb "),
            [reasoning("with grey "), reasoning("leaves", signature="s")],
            [Event(EventKind.TOOL_CALL, {"id": "1", "name": "find", "arguments": {"b": 1, "a": 10**30}})],
            [Event(EventKind.SOURCE, {"id": "s", "title": "Herbs \x00"})],
            [text("and 🌿 e\u0301 茶\x00.")],
            [Event(EventKind.USAGE, {"model": "small", "input_tokens": 7, "output_tokens": 0})],
        ):
            await later.write(*events)
            folded = later.folded
            place = place._replace(n=len(later.events), chars=folded.chars)
            shown = await self.shown(later)
            assert isinstance(shown, RunningAnswer)
            assert shown.model_dump() == {
                **later.turn.answer.model_dump(),
                "status": Status.IN_PROGRESS,
                **{name: getattr(folded, name) for name in ("content", "parts", "sources", "model")},
                **{name: getattr(folded, name) for name in ("input_tokens", "output_tokens")},
                "stream": {"last_event_id": str(place)},
            }
        assert isinstance(shown, RunningAnswer)
        seen = parse_place(shown.stream.last_event_id)
        assert seen is not None
        await later.write(text("more"))
        assert [event.data for event in await later.read(seen.n)] == [{"text": "more"}]

    async def test_finished_answer_is_shown_plainly(self, later: Running) -> None:
        """After the end every read shows the message itself, with everything that the end gave it."""
        await later.write(*pieces("A herb."))
        done = await later.finish()
        shown = await self.shown(later)
        assert shown == done
        assert not isinstance(shown, RunningAnswer)

    async def test_history_goes_through_the_running_answer(self, later: Running) -> None:
        """Pages of history, log and siblings have the running answer in its place, and their cursors go on."""
        store, (owner, id_, answer) = later.store, later.key
        await later.write(*pieces("A herb."))
        expected = ["thyme?", "A herb.", "sage?", "A herb."]
        for limit in (1, 2, 3, 4):
            for order in ("asc", "desc"):
                assert contents(await whole_history(store, owner, id_, limit=limit, order=order)) == expected
        assert contents(await whole_log(store, owner, id_)) == expected
        assert contents(await store.log(owner, id_, after=3)) == ["A herb."]
        assert (await store.history(owner, id_, total=True)).total == 4
        await store.append(owner, id_, [assistant("Another.", parent_id=later.turn.question.id)])
        for limit in (1, 2):
            siblings = await whole_siblings(store, owner, id_, answer, limit=limit)
            assert contents(siblings) == ["A herb.", "Another."]

    async def test_several_attempts_at_the_question(self, later: Running) -> None:
        """Siblings of a running answer are the answers before, whole; only the running one has a stream."""
        store, (owner, id_, _) = later.store, later.key
        await later.write(*pieces("A herb."))
        await later.finish()
        again = await begin(store, owner, id_, later.turn.question.id)
        await again.write(*pieces("A pl"))
        siblings = await whole_siblings(store, owner, id_, again.answer_id)
        assert [isinstance(message, RunningAnswer) for message in siblings] == [False, True]
        assert contents(siblings) == ["A herb.", "A pl"]

    async def test_plain_appends_meanwhile(self, later: Running) -> None:
        """Others append during a turn, also after its answer; the answer keeps its place, and its end moves nothing."""
        store, (owner, id_, answer) = later.store, later.key
        await later.write(*pieces("A "))
        after, beside = await store.append(
            owner, id_, [user("Wait."), user("And mint?", parent_id=later.turn.question.id)]
        )
        assert after.parent_id == answer
        await later.write(*pieces("herb."))
        assert contents(await whole_history(store, owner, id_, leaf=after.id)) == [
            "thyme?",
            "A herb.",
            "sage?",
            "A herb.",
            "Wait.",
        ]
        done = await later.finish()
        assert (done.seq, done.parent_id) == (4, later.turn.question.id)
        log = await whole_log(store, owner, id_)
        assert seqs(log) == dense(6)
        assert (log[3], log[4], log[5]) == (done, after, beside)
        assert (await store.get_conversation(owner, id_)).head_id == beside.id

    async def test_search_finds_finished_answers_only(self, later: Running, owner: str) -> None:
        """A running answer is not found by any word of its own; the finished one is, by every word of it."""
        await later.write(*pieces("Salvia officinalis"))
        assert await found(later.store, owner, "officinalis") == set()
        assert await found(later.store, owner, "sage") == {"sage?"}
        await later.finish()
        assert await found(later.store, owner, "salvia officinalis") == {"Salvia officinalis"}
        (hit,) = (await later.store.search_messages(owner, "salvia", conversation_id=later.key.conversation_id)).items
        assert hit.message == await later.message()

    async def test_export_of_a_running_answer(self, later: Running, owner: str) -> None:
        """An export has the running answer as interrupted, with its text so far; whoever imports it has no turn."""
        store, id_ = later.store, later.key.conversation_id
        await later.write(reasoning("hm"), *pieces("A her"))
        talk, last_seq = await store.export_conversation(owner, id_)
        exported = await store.export_messages(owner, id_)
        assert (last_seq, seqs(await whole_log(store, owner, id_))) == (4, dense(4))
        assert (exported[3].status, exported[3].content, exported[3].parts) == (
            Status.INTERRUPTED,
            "A her",
            later.folded.parts,
        )
        other = someone()
        await store.import_conversation(other, talk, exported)
        copy = await store.get_message(other, id_, later.answer_id)
        assert (copy.status, copy.content, copy.parts) == (Status.INTERRUPTED, "A her", later.folded.parts)
        assert not await store.turns.stop_turn(other, id_, later.answer_id)
        await begin(store, other, id_, "And mint?")

    async def test_changes_meanwhile(self, later: Running) -> None:
        """Metadata of a running answer, and its conversation, can be changed; the end of the turn keeps the changes."""
        store, (owner, id_, answer) = later.store, later.key
        await later.write(*pieces("A herb."))
        changed = await store.update_message(owner, id_, answer, MessageChange(metadata={"rating": "good\x00"}))
        assert (changed.metadata, changed.content) == ({"rating": "good\x00"}, "A herb.")
        assert (await self.shown(later)).metadata == {"rating": "good\x00"}
        change = ConversationChange(title="Herbs", labels=("a",), context_id="k", head_id=later.turn.question.id)
        before = await store.update_conversation(owner, id_, change)
        done = await later.finish()
        assert done == await later.message()
        assert done.metadata == {"rating": "good\x00"}
        after = await store.get_conversation(owner, id_)
        assert after == before.model_copy(update={"updated_at": after.updated_at})
        assert after.updated_at > before.updated_at

    async def test_large_histories(self, later: Running) -> None:
        """A running answer far back in a conversation is shown on every page that it is on."""
        store, (owner, id_, answer) = later.store, later.key
        await later.write(*pieces("A herb."))
        await store.append(owner, id_, numbered(120))
        history = await whole_history(store, owner, id_, limit=50)
        assert seqs(history) == dense(124)
        assert [message.content for message in history if message.id == answer] == ["A herb."]
