"""The turns of a store and a plain model of them go through the same random steps, and never differ.

CHATKEEP_HYPOTHESIS_PROFILE=thorough runs many more of them.
"""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lengths import short_and_long

from chatkeep import (
    Conflict,
    InvalidInput,
    Message,
    NewConversation,
    NewMessage,
    NotFound,
    NotYours,
    Role,
    Status,
    Store,
    open_store,
)
from chatkeep.errors import TooManyTurns, TurnInProgress, TurnLost
from chatkeep.events import Event, EventKind, TurnEvent, fold, place_of, reasoning, text
from chatkeep.model import RunningAnswer, StreamPlace
from chatkeep.testing import assistant, dense, seqs, someone, user, whole_log
from chatkeep.testing.turn_steps import AT_ONCE
from chatkeep.turns import Ending, Turn, TurnKey, TurnPlace, TurnState, TurnWrite, answer_id

LONG = timedelta(hours=1)
"""A lease that no test outlives."""

EVENTS = st.lists(
    st.sampled_from(
        [
            text("A "),
            text("茶\x00"),
            reasoning("hm"),
            reasoning("", signature="s"),
            Event(EventKind.TOOL_CALL, {"id": "1", "name": "tea", "arguments": {"b": 10**30, "a": None}}),
            Event(EventKind.USAGE, {"model": "small", "output_tokens": 1}),
        ]
    ),
    max_size=3,
)
WHICH = st.integers(0, 11)
PLACE = st.integers(0, 9)
WORKER = st.integers(0, 1)
SELDOM = st.integers(0, 5)
"""A step is taken where this is 0, so that what others built up lasts for a while."""
ENDED = st.sampled_from([Status.COMPLETE, Status.FAILED, Status.INTERRUPTED])
MAX_RUNNING = st.sampled_from([1, 2, 4, 4])


@dataclass
class ModelTurn:
    """A turn that has a lease."""

    parent_id: UUID
    worker: UUID
    has_expired: bool
    is_stopping: bool = False
    events: list[TurnEvent] = field(default_factory=list)


@dataclass
class Talk:
    """A conversation: its messages, but for what the events of a running answer add up to, and its turns."""

    title: str | None = None
    head_id: UUID | None = None
    log: list[Message] = field(default_factory=list)
    turns: dict[UUID, ModelTurn] = field(default_factory=dict)
    sent: dict[UUID, NewMessage] = field(default_factory=dict)
    """The questions as they were sent first."""

    def message(self, id_: UUID) -> Message | None:
        """A message, also a deleted one."""
        return next((message for message in self.log if message.id == id_), None)

    def add(self, message: Message) -> None:
        """Take over a message that was appended at the end."""
        assert message.seq == len(self.log) + 1
        self.log.append(message)
        self.head_id = message.id
        if message.role is Role.USER:
            self.title = self.title or message.content

    def change(self, id_: UUID, **values: object) -> Message:
        """Change a message."""
        message = self.message(id_)
        assert message is not None
        self.log[message.seq - 1] = message.model_copy(update=values)
        return self.log[message.seq - 1]

    def shown(self, message: Message) -> Message:
        """A message as every read shows it."""
        turn = self.turns.get(message.id)
        if turn is None:
            return message
        folded = fold(turn.events)
        place = StreamPlace(last_event_id=str(place_of(message.id, folded.n, folded.chars)))
        more = {name: getattr(folded, name) for name in ("content", "parts", "sources", "model")}
        counts = {name: getattr(folded, name) for name in ("input_tokens", "output_tokens")}
        return RunningAnswer.model_construct(**{**vars(message), **more, **counts, "stream": place})


class TurnMachine(RuleBasedStateMachine):
    """Random steps by two owners, who use the same ids, and two workers."""

    def __init__(self, runner: asyncio.Runner, url: str, opened_last: list[Store]) -> None:
        super().__init__()
        self.runner, self.url, self.opened_last = runner, url, opened_last
        self.owners = [someone(), someone()]
        self.ids = [uuid4() for _ in range(3)]
        self.questions = [uuid4() for _ in range(4)]
        self.workers = [uuid4(), uuid4()]
        self.talks: dict[tuple[str, UUID], Talk] = {}
        self.keys: list[TurnKey] = []
        """Every turn that ever was, the latest last."""

    @property
    def store(self) -> Store:
        """The store, as it was opened last."""
        return self.opened_last[0]

    def run[T](self, call: Coroutine[Any, Any, T]) -> T:
        """Run one call of the store."""
        return self.runner.run(call)

    def refuse(self, call: Coroutine[Any, Any, object], *errors: type[Exception]) -> Exception:
        """Run one call, which must raise one of these."""
        with pytest.raises(errors) as caught:
            self.run(call)
        assert type(caught.value) in errors
        return caught.value

    def missing(self, id_: UUID) -> type[Exception]:
        """What is raised for a conversation that the owner does not have."""
        return NotYours if any(other == id_ for _, other in self.talks) else NotFound

    def key(self, which: int) -> tuple[str, UUID]:
        """The owner and id of a conversation that is mostly there."""
        if self.talks and which < 10:
            return list(self.talks)[which % len(self.talks)]
        return self.owners[which % 2], self.ids[which % 3]

    def turn_key(self, which: int) -> TurnKey:
        """A turn that was there, mostly a late one; or one that never was."""
        if self.keys and which < 10:
            return self.keys[-1 - which % len(self.keys)]
        return TurnKey(*self.key(which), self.questions[0])

    def turn(self, key: TurnKey) -> ModelTurn | None:
        """The lease of a turn, if it has one."""
        talk = self.talks.get(key[:2])
        return None if talk is None else talk.turns.get(key.message_id)

    def running(self) -> Iterator[tuple[TurnKey, ModelTurn]]:
        """All turns that have a lease, also an expired one."""
        for (owner, id_), talk in self.talks.items():
            for message_id, turn in talk.turns.items():
                yield TurnKey(owner, id_, message_id), turn

    def expired(self, key: TurnKey, *, wait: bool = False) -> bool:
        """Whether a turn has expired by the store's clock."""

        async def look() -> bool:
            while True:
                (progress,) = await self.store.turns.turn_events([TurnPlace(key)])
                if progress.has_expired or not wait:
                    return progress.has_expired
                await asyncio.sleep(0.001)

        return self.run(look())

    def close(self, key: TurnKey) -> None:
        """Take over that an expired turn was closed."""
        talk = self.talks[key[:2]]
        turn = talk.turns.pop(key.message_id)
        message = self.run(self.store.get_message(*key))
        assert message.duration_ms is not None
        ending = Ending.of(fold(turn.events), Status.INTERRUPTED, message.duration_ms)
        assert message == talk.change(key.message_id, **ending._asdict())

    # --- steps ----------------------------------------------------------------------------------------------

    @initialize()
    def begin(self) -> None:
        """Begin with a turn of each owner, with the same ids; one has expired."""
        for owner in (0, 1):
            self.create(owner, 0)
            self.start(owner, 0, None, "tea?", 0, 4, expires=owner == 1)

    @rule(owner=st.integers(0, 1), id_=st.integers(0, 2))
    def create(self, owner: int, id_: int) -> None:
        """Create a conversation that is not there."""
        key = self.owners[owner], self.ids[id_]
        if key not in self.talks:
            self.run(self.store.create_conversation(key[0], NewConversation(id=key[1])))
            self.talks[key] = Talk()

    @rule(
        which=WHICH,
        question=st.integers(0, 3),
        parent=st.none() | PLACE,
        content=st.sampled_from(["tea?", "tea?", "mint?"]),
        worker=WORKER,
        most=MAX_RUNNING,
        expires=st.sampled_from([False, False, True]),
    )
    def start(
        self, which: int, question: int, parent: int | None, content: str, worker: int, most: int, *, expires: bool
    ) -> None:
        """Ask a question, for the first time, again, or with other content."""
        key = self.key(which)
        log = self.talks[key].log if key in self.talks else []
        values: dict[str, Any] = {"parent_id": log[parent % len(log)].id} if parent is not None and log else {}
        asked = user(content, id=self.questions[question], **values)
        before = self.talks[key].sent.get(self.questions[question]) if key in self.talks else None
        if before is not None:  # as it was asked, or with other content
            asked = before if before.content == content else user(content, id=before.id)
        self.start_with(key, asked, self.workers[worker], None, most, expires=expires)

    @rule(
        which=WHICH,
        place=PLACE,
        attempt=st.sampled_from([None, "1", "k"]),
        worker=WORKER,
        most=MAX_RUNNING,
        expires=st.sampled_from([False, False, True]),
    )
    def again(self, which: int, place: int, attempt: str | None, worker: int, most: int, *, expires: bool) -> None:
        """Answer any message again, also one that is no question or not there."""
        key = self.key(which)
        log = self.talks[key].log if key in self.talks else []
        asked = log[place % len(log)].id if log and place < 9 else uuid4()
        self.start_with(key, asked, self.workers[worker], attempt, most, expires=expires)

    def start_with(
        self,
        key: tuple[str, UUID],
        asked: NewMessage | UUID,
        worker: UUID,
        attempt: str | None,
        most: int,
        *,
        expires: bool,
    ) -> None:
        """Start a turn in the store and in the model."""
        call = self.store.turns.start_turn(
            *key, asked, worker=worker, attempt=attempt, lease=AT_ONCE if expires else LONG, max_running=most
        )
        talk = self.talks.get(key)
        if talk is None:
            self.refuse(call, self.missing(key[1]))
            return
        late = [TurnKey(*key, id_) for id_, turn in talk.turns.items() if turn.has_expired]
        expected = self.outcome(key, talk, asked, attempt, most)
        if isinstance(expected, type):
            raised = self.refuse(call, expected)
            if isinstance(raised, TurnInProgress):
                assert not talk.turns[raised.message_id].has_expired
            for each in late:  # the store may have closed them nevertheless
                if self.run(self.store.get_message(*each)).status is Status.INTERRUPTED:
                    self.close(each)
            return
        turn = self.run(call)
        for each in late:
            self.close(each)
        if expected is not None:
            self.found(talk, turn, expected, worker)
        else:
            self.began(key, talk, turn, asked, attempt, worker)
            if expires:
                lease = talk.turns[turn.answer.id]
                lease.has_expired = self.expired(TurnKey(*key, turn.answer.id), wait=True)

    def outcome(
        self, key: tuple[str, UUID], talk: Talk, asked: NewMessage | UUID, attempt: str | None, most: int
    ) -> type[Exception] | UUID | None:
        """What a start must raise, or the answer that it must find; None if it must begin a turn."""
        live = {id_: turn for id_, turn in talk.turns.items() if not turn.has_expired}
        id_ = asked if isinstance(asked, UUID) else asked.id
        assert id_ is not None
        question = talk.message(id_)
        if question is None and isinstance(asked, UUID):
            return NotFound
        refused = None if question is None else self.refusal(question, asked)
        if refused in (NotFound, InvalidInput):
            return refused
        found = None if question is None else self.answer_to(talk, asked, id_, attempt, live)
        if found is not None:
            return refused or (NotFound if found.status is Status.DELETED else found.id)
        if live:
            return TurnInProgress
        counted = sum(not turn.has_expired for each, turn in self.running() if each.owner == key[0])
        return TooManyTurns if counted >= most else refused

    @staticmethod
    def refusal(question: Message, asked: NewMessage | UUID) -> type[Exception] | None:
        """Why a message cannot be answered."""
        if question.status is Status.DELETED:
            return NotFound
        if isinstance(asked, UUID):
            return None if question.role is Role.USER else InvalidInput
        return None if question.content == asked.content else Conflict

    @staticmethod
    def answer_to(
        talk: Talk, asked: NewMessage | UUID, id_: UUID, attempt: str | None, live: dict[UUID, ModelTurn]
    ) -> Message | None:
        """The answer that is being made of a question, or that this attempt has made."""
        if isinstance(asked, UUID):
            for answer, turn in live.items():
                if turn.parent_id == id_:
                    return talk.message(answer)
            return None if attempt is None else talk.message(answer_id(id_, attempt))
        return talk.message(answer_id(id_))

    @staticmethod
    def found(talk: Talk, turn: Turn, answer: UUID, worker: UUID) -> None:
        """Compare a turn that was there."""
        message = talk.message(answer)
        assert message is not None
        lease = talk.turns.get(answer)
        assert turn.answer == talk.shown(message)
        assert turn.question == talk.message(message.parent_id or answer)
        assert turn.is_mine is (lease is not None and lease.worker == worker)

    def began(
        self,
        key: tuple[str, UUID],
        talk: Talk,
        turn: Turn,
        asked: NewMessage | UUID,
        attempt: str | None,
        worker: UUID,
    ) -> None:
        """Take over a turn that has begun, after a look at every value that the store chose."""
        question, answer = turn.question, turn.answer
        assert turn.is_mine
        if talk.message(question.id) is None:
            assert isinstance(asked, NewMessage)
            parent = asked.parent_id if "parent_id" in asked.model_fields_set else talk.head_id
            assert (question.id, question.content, question.parent_id) == (asked.id, asked.content, parent)
            talk.add(question)
            talk.sent[question.id] = asked
        assert question == talk.message(question.id)
        if attempt is not None or not isinstance(asked, UUID):
            assert answer.id == answer_id(question.id, attempt or "1")
        assert (answer.role, answer.status, answer.content) == (Role.ASSISTANT, Status.IN_PROGRESS, "")
        assert answer.parent_id == question.id
        talk.add(answer)
        talk.turns[answer.id] = ModelTurn(question.id, worker, has_expired=False)
        self.keys.append(TurnKey(*key, answer.id))

    @rule(which=WHICH, worker=WORKER, events=EVENTS, back=st.sampled_from([0, 0, 0, 1, 2]))
    def write(self, which: int, worker: int, events: list[Event], back: int) -> None:
        """Write to any turn, also as the wrong worker, and also what was written before."""
        self.write_to(self.workers[worker], [self.turn_key(which)], events, back)

    @rule(worker=WORKER, events=EVENTS)
    def write_together(self, worker: int, events: list[Event]) -> None:
        """Write to all turns in one transaction."""
        self.write_to(self.workers[worker], list(dict.fromkeys(self.keys)), events, 0)

    def write_to(self, worker: UUID, keys: list[TurnKey], events: list[Event], back: int) -> None:
        """Write to turns of the store and of the model, the same events to each."""
        writes, expected = list[TurnWrite](), dict[TurnKey, TurnState]()
        for key in keys:
            turn = self.turn(key)
            has = 0 if turn is None else len(turn.events)
            first = max(0, has - back)
            numbered = [TurnEvent(n, *event) for n, event in enumerate(events, first + 1)]
            writes.append(TurnWrite(key, numbered))
            expected[key] = TurnState.LOST
            if turn is not None and turn.worker == worker:
                turn.events += numbered[has - first :]
                turn.has_expired = False
                expected[key] = TurnState.STOPPING if turn.is_stopping else TurnState.RUNNING
        assert self.run(self.store.turns.append_turn_events(worker, writes, lease=LONG)) == expected

    @rule(which=WHICH, worker=WORKER, status=ENDED, other=st.booleans())
    def finish(self, which: int, worker: int, status: Status, *, other: bool) -> None:
        """Finish any turn, also as the wrong worker, again, or otherwise."""
        key = self.turn_key(which)
        talk, turn = self.talks.get(key[:2]), self.turn(key)
        message = None if talk is None else talk.message(key.message_id)
        events = [] if turn is None else turn.events
        ending = Ending.of(fold(events), status, 7)
        if turn is None and message is not None and not other:
            ending = Ending(status, message.content, duration_ms=message.duration_ms)
        call = self.store.turns.finish_turn(*key, ending, worker=self.workers[worker])
        if talk is not None and turn is not None and turn.worker == self.workers[worker]:
            del talk.turns[key.message_id]
            assert self.run(call) == talk.change(key.message_id, **ending._asdict())
        elif message is not None and (message.status, message.content, message.duration_ms) == (
            ending.status,
            ending.content,
            ending.duration_ms,
        ):
            assert self.run(call) == message
        else:
            self.refuse(call, TurnLost)

    @rule(which=WHICH)
    def stop(self, which: int) -> None:
        """Ask any turn to stop."""
        key = self.turn_key(which)
        call = self.store.turns.stop_turn(*key)
        talk, turn = self.talks.get(key[:2]), self.turn(key)
        message = None if talk is None else talk.message(key.message_id)
        if talk is None:
            self.refuse(call, self.missing(key.conversation_id))
        elif message is None or message.status is Status.DELETED:
            self.refuse(call, NotFound)
        elif turn is None:
            assert self.run(call) is False
        elif turn.has_expired:
            assert self.run(call) is False
            self.close(key)
        else:
            assert self.run(call) is True
            turn.is_stopping = True

    @rule(which=WHICH)
    def expire(self, which: int) -> None:
        """Close any turn, if it has expired."""
        key = self.turn_key(which)
        turn = self.turn(key)
        has_expired = turn is not None and turn.has_expired
        assert self.run(self.store.turns.expire_turn(*key)) is has_expired
        if has_expired:
            self.close(key)

    @rule(seldom=SELDOM)
    def sweep(self, seldom: int) -> None:
        """Close all turns that have expired."""
        if seldom:
            return
        late = [key for key, turn in self.running() if turn.has_expired]
        assert self.run(self.store.turns.expire_turns()) == len(late)
        for key in late:
            self.close(key)

    @rule(which=WHICH, question=st.none() | st.integers(0, 3))
    def append(self, which: int, question: int | None) -> None:
        """Append a message beside the turns, also one that is asked later."""
        key = self.key(which)
        talk = self.talks.get(key)
        new = assistant("meanwhile") if question is None else user("tea?", id=self.questions[question])
        if talk is not None and new.id is not None and talk.message(new.id) is not None:
            return
        call = self.store.append(*key, [new])
        if talk is None:
            self.refuse(call, self.missing(key[1]))
        else:
            (stored,) = self.run(call)
            talk.add(stored)
            talk.sent[stored.id] = new

    @rule(which=WHICH, place=PLACE, seldom=st.integers(0, 2))
    def delete_message(self, which: int, place: int, seldom: int) -> None:
        """Delete any message, also an answer that is being made."""
        key = self.key(which)
        talk = self.talks.get(key)
        if seldom or talk is None or not talk.log:
            return
        message = talk.log[place % len(talk.log)]
        there = message.status is not Status.DELETED
        assert self.run(self.store.delete_message(*key, message.id)) is there
        if not there:
            return
        talk.turns.pop(message.id, None)
        erased: dict[str, Any] = {"content": "", "parts": None, "sources": (), "status": Status.DELETED}
        talk.change(message.id, **erased)
        if message.role is Role.USER and talk.title == message.content:
            talk.title = None

    @rule(which=WHICH, seldom=SELDOM)
    def delete_conversation(self, which: int, seldom: int) -> None:
        """Delete a conversation with its turns."""
        key = self.key(which)
        if not seldom and key in self.talks:
            del self.talks[key]
            assert self.run(self.store.delete_conversation(*key))

    @rule(owner=st.integers(0, 1), seldom=SELDOM)
    def erase(self, owner: int, seldom: int) -> None:
        """Erase an owner, with all turns."""
        if seldom:
            return
        name = self.owners[owner]
        gone = [self.talks.pop(key) for key in list(self.talks) if key[0] == name]
        receipt = self.run(self.store.erase_owner(name))
        turns, messages = sum(len(talk.turns) for talk in gone), sum(len(talk.log) for talk in gone)
        counted = receipt.conversations, receipt.messages, receipt.turns, receipt.remaining
        assert counted == (len(gone), messages, turns, 0)

    @rule(owner=st.integers(0, 1), seldom=SELDOM)
    def rename(self, owner: int, seldom: int) -> None:
        """Give everything of an owner to a new one: the turns have expired then."""
        if seldom:
            return
        old, new = self.owners[owner], someone()
        self.owners[owner] = new
        moved = [key for key in self.talks if key[0] == old]
        assert self.run(self.store.rename_owner(old, new)) == len(moved)
        for key in moved:
            self.talks[new, key[1]] = talk = self.talks.pop(key)
            for id_, turn in talk.turns.items():
                turn.has_expired = True
                self.keys.append(TurnKey(new, key[1], id_))

    @precondition(lambda self: not self.url.startswith("memory"))
    @rule(seldom=SELDOM)
    def reopen(self, seldom: int) -> None:
        """Close the store and open it again."""
        if seldom:
            return
        self.run(self.store.aclose())
        self.opened_last[0] = self.run(opened(self.url))

    # --- looks ----------------------------------------------------------------------------------------------

    @invariant()
    def everything_is_as_in_the_model(self) -> None:
        """Every log, every conversation and the events of every turn are those of the model."""
        for (owner, id_), talk in self.talks.items():
            log = self.run(whole_log(self.store, owner, id_))
            assert seqs(log) == dense(len(log))
            assert log == [talk.shown(message) for message in talk.log]
            there = self.run(self.store.get_conversation(owner, id_))
            assert (there.title, there.head_id, there.last_seq) == (talk.title, talk.head_id, len(log))
        places = [TurnPlace(key, after) for key in self.keys for after in (0, 2)]
        for place, progress in zip(places, self.run(self.store.turns.turn_events(places)), strict=True):
            turn = self.turn(place.key)
            assert progress.is_running is (turn is not None)
            if turn is not None:
                assert list(progress.events) == turn.events[place.after :]
                assert progress.has_expired is turn.has_expired

    def teardown(self) -> None:
        """Leave nothing to the next run."""
        for owner in self.owners:
            assert self.run(self.store.erase_owner(owner)).remaining == 0


async def opened(url: str) -> Store:
    """The store at a URL."""
    return await open_store(url)


@pytest.mark.timeout(600)  # where there is a difference, hypothesis takes its time to find the shortest way to it
@short_and_long
def test_turns_never_differ_from_the_model(store_url: str, share: int) -> None:
    """Whatever two owners and two workers do, in whatever order: every answer and every error is the plain model's.

    The short run has a fourth of the examples, and on MongoDB both have a fourth of that: its emulator is slow. That
    with all is in `make apart` on servers.
    """
    if store_url.startswith("mongodb"):
        share *= 4
    with asyncio.Runner() as runner:
        opened_last = [runner.run(opened(store_url))]

        class Machine(TurnMachine):
            def __init__(self) -> None:
                super().__init__(runner, store_url, opened_last)

        try:
            run_state_machine_as_test(Machine, settings=settings(max_examples=settings().max_examples // share))
        finally:
            runner.run(opened_last[0].aclose())
