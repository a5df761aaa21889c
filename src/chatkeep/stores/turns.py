"""Turns over rows: the port of `chatkeep.turns`, written once for every database."""

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, timedelta
from typing import NamedTuple
from uuid import UUID, uuid4

from chatkeep.errors import (
    ChatkeepError,
    InvalidInput,
    NotFound,
    StoreUnavailable,
    TooManyTurns,
    TurnInProgress,
    TurnLost,
)
from chatkeep.events import TurnEvent, fold, state_of
from chatkeep.ids import valid_id
from chatkeep.model import Message, NewAnswer, NewMessage, Role, Status
from chatkeep.stores.append import check, with_ids
from chatkeep.stores.long_texts import HasContent
from chatkeep.stores.maintenance import Maintenance
from chatkeep.stores.rows import Key, Rows, Work
from chatkeep.stores.turn_rows import ALL_BYTES, ALL_PROGRESS_BYTES, PROGRESS_BYTES, AnswerCount, TurnRow
from chatkeep.stores.window import valid_time
from chatkeep.turns import (
    FIRST,
    LEASE,
    MAX_RUNNING,
    MAX_STATS_DAYS,
    AnswerStats,
    Ending,
    ResumedTurn,
    Turn,
    TurnKey,
    TurnPlace,
    TurnProgress,
    Turns,
    TurnState,
    TurnWrite,
    answer_id,
)
from chatkeep.values import now

logger = logging.getLogger(__name__)

SWEPT_AT_ONCE = 100
"""Turns that one call closes at most."""

ENDED = (Status.COMPLETE, Status.INTERRUPTED, Status.FAILED)

MAX_N = 2**63 - 1
"""The largest number that an event can have in a database."""

MILLISECOND = timedelta(milliseconds=1)


class Start(NamedTuple):
    """What a turn is to begin with."""

    question: NewMessage | UUID
    """With an id."""
    fingerprint: bytes
    worker: UUID
    attempt: str
    lease: timedelta
    max_running: int

    @property
    def question_id(self) -> UUID:
        """The id of the question."""
        if isinstance(self.question, UUID):
            return self.question
        assert self.question.id is not None  # noqa: S101 - it was given one
        return self.question.id

    @property
    def answer_id(self) -> UUID:
        """The id that the answer gets."""
        return answer_id(self.question_id, self.attempt)


class TurnStore[R: Rows](Maintenance[R], Turns):
    """Turns of conversations."""

    @property
    def turns(self) -> Turns:
        return self

    # --- begin --------------------------------------------------------------------------------------------

    async def start_turn(
        self,
        owner: str,
        conversation_id: UUID | str,
        question: NewMessage | UUID,
        *,
        worker: UUID,
        attempt: str | None = None,
        lease: timedelta = LEASE,
        max_running: int = MAX_RUNNING,
    ) -> Turn:
        key = self._key(owner, conversation_id)
        fingerprint = b""
        if isinstance(question, NewMessage):
            _check_role(question.role)
            (fingerprint,) = check([question], self._options, self._metadata_limits)
            (question,), attempt = with_ids([question]), FIRST
        else:
            question = valid_id(question)
        start = Start(question, fingerprint, worker, attempt or uuid4().hex, lease, max_running)
        texts = [question] if isinstance(question, NewMessage) else []
        with self._writes.of_call():
            async with self._changes.of(key[0]):  # the database begins an owner's one at a time: wait without it
                return await self._write_texts(key, texts, lambda rows: self._start(rows, key, start))

    async def _start(self, rows: R, key: Key, start: Start) -> Turn:
        running = await rows.lock_turns(key[0])
        await self._state(rows, key, lock=True)
        turns = [turn for turn in await rows.turns_of(key) if not await self._close_if_expired(rows, key, turn)]
        there = await self._turn_that_is_there(rows, key, start, turns)
        if there is not None:
            return there
        if turns:
            raise TurnInProgress(turns[0].message_id)
        if running >= start.max_running:
            raise TooManyTurns(
                f"an owner may have at most {start.max_running} answers in progress; wait for one, or stop one"
            )
        return await self._begin_turn(rows, key, start)

    async def _close_if_expired(self, rows: R, key: Key, turn: TurnRow) -> bool:
        wanted = TurnKey(*key, turn.message_id)
        closes = turn.has_expired and not await self._may_be_resumed(rows, wanted, turn)
        if closes:
            await self._close_turn(rows, wanted)
        return closes

    async def _may_be_resumed(self, rows: R, key: TurnKey, turn: TurnRow) -> bool:
        """Whether another worker can go on with a turn that has expired, and may still do so."""
        return not turn.is_overdue and await self._resumable(rows, key, turn) is not None

    async def _resumable(self, rows: R, key: TurnKey, turn: TurnRow) -> ResumedTurn | None:
        """What another worker needs to go on with a turn; None if it cannot, or if nobody asks any more."""
        question = (await rows.messages_by_id(key[:2], (turn.parent_id,))).get(turn.parent_id)
        if question is None or question.status is Status.DELETED:
            return None
        (progress,) = await rows.events_of([TurnPlace(key)], ALL_BYTES)
        return None if state_of(progress.events) is None else ResumedTurn(question, progress.events)

    async def _turn_that_is_there(self, rows: R, key: Key, start: Start, turns: Sequence[TurnRow]) -> Turn | None:
        """The turn that this attempt began before, or the one that answers the same question now."""
        found = await rows.messages_by_id(key, (start.question_id, start.answer_id))
        question, answer = found.get(start.question_id), found.get(start.answer_id)
        if isinstance(start.question, UUID):
            question = _question(question)
            same = next((turn.message_id for turn in turns if turn.parent_id == question.id), None)
            if same is not None:
                answer = (await rows.messages_by_id(key, (same,)))[same]
        if question is not None and question.status is Status.DELETED:
            raise NotFound("the question was deleted", got=question.id)
        if question is None or answer is None:
            return None
        if isinstance(start.question, NewMessage):  # raises Conflict if it is another one
            await self._append_to(rows, key, [start.question], [start.fingerprint], None)
        if answer.status is Status.DELETED:
            raise NotFound("the answer was deleted; ask for another one, or ask with another id", got=answer.id)
        (answer,) = await self._so_far(rows, key, [answer])
        is_mine = any(turn.message_id == answer.id and turn.worker == start.worker for turn in turns)
        return Turn(question, answer, is_mine)

    async def _begin_turn(self, rows: R, key: Key, start: Start) -> Turn:
        answer = NewAnswer(id=start.answer_id, parent_id=start.question_id)
        new: list[NewMessage] = [answer]
        fingerprints = [answer.fingerprint()]
        if isinstance(start.question, NewMessage):
            new.insert(0, start.question)
            fingerprints.insert(0, start.fingerprint)
        *_, stored = appended = await self._append_to(rows, key, new, fingerprints, None)
        await rows.begin_turn(TurnKey(*key, stored.id), start.question_id, start.worker, start.lease)
        question = appended[0] if len(appended) > 1 else await self._message(rows, key, start.question_id)
        return Turn(question, stored, is_mine=True)

    # --- go on --------------------------------------------------------------------------------------------

    async def append_turn_events(
        self, worker: UUID, writes: Sequence[TurnWrite], *, lease: timedelta = LEASE
    ) -> Mapping[TurnKey, TurnState]:
        if not writes:
            return {}
        stored = {self._turn_key(*write.key): write.key for write in writes}
        if len(stored) < len(writes) or not all(_is_numbered(write.events) for write in writes):
            raise InvalidInput("a write names each turn once, and numbers its events 1, 2, 3 …")
        renamed = [TurnWrite(key, write.events) for key, write in zip(stored, writes, strict=True)]
        states = await self._store_events(worker, renamed, lease)
        return {stored[key]: state for key, state in states.items()}

    async def _store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> Mapping[TurnKey, TurnState]:
        """Store events of any number of owners, by the fastest path that the database has."""
        return await self._write(lambda rows: rows.store_events(worker, writes, lease))

    async def _write_turn[T](self, key: TurnKey, texts: Sequence[HasContent], work: Work[R, T]) -> T:
        """Run `work`, which changes a turn and its answer, in a transaction; `texts` are what the answer gets by it."""
        return await self._write_texts(key[:2], texts, work)

    async def turn_events(self, places: Sequence[TurnPlace]) -> Sequence[TurnProgress]:
        stored = [TurnPlace(self._turn_key(*place.key), max(0, min(place.after, MAX_N))) for place in places]
        if not stored:
            return []
        most = min(PROGRESS_BYTES, ALL_PROGRESS_BYTES // len(stored))
        return await self._read(lambda rows: rows.events_of(stored, most))

    async def stop_turn(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        key = self._turn_key(owner, conversation_id, message_id)
        return await self._write_turn(key, (), lambda rows: self._stop(rows, key))

    async def _stop(self, rows: R, key: TurnKey) -> bool:
        await self._state(rows, key[:2], lock=True)  # before the lease, as everywhere: the turn may have to be closed
        await self._message(rows, key[:2], key.message_id)
        turn = await rows.turn(key)
        if turn is None:
            return False
        if turn.has_expired:  # also if another worker could go on
            await self._close_turn(rows, key)
            return False
        return await rows.ask_to_stop(key)

    # --- end ----------------------------------------------------------------------------------------------

    async def finish_turn(
        self, owner: str, conversation_id: UUID | str, message_id: UUID | str, ending: Ending, *, worker: UUID
    ) -> Message:
        if ending.status not in ENDED:
            raise InvalidInput("a turn ends as complete, interrupted or failed", got=ending.status)
        key = self._turn_key(owner, conversation_id, message_id)
        return await self._write_turn(key, [ending], lambda rows: self._finish_turn(rows, key, ending, worker))

    async def _finish_turn(self, rows: R, key: TurnKey, ending: Ending, worker: UUID) -> Message:
        there = await rows.state(key[:2], lock=True)
        turn = await rows.turn(key)
        message = (await rows.messages_by_id(key[:2], (key.message_id,))).get(key.message_id)
        if there is None or message is None:
            raise TurnLost("the conversation was deleted, or given to another owner")
        if turn is None or turn.worker != worker:
            if _is_repeated(message, ending):
                return message
            raise TurnLost("the lease of the turn has expired, and the turn was closed")
        await rows.set_answer(key, ending)
        await rows.end_turn(key)
        return message.model_copy(update=ending._asdict())

    async def expire_turn(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> bool:
        return await self._expire(self._turn_key(owner, conversation_id, message_id))

    async def expire_turns(self) -> int:
        self._open()
        found = await self._read(lambda rows: rows.expired_turns(SWEPT_AT_ONCE))
        return sum([await self._swept(key) for key in found])

    async def expired_turns(self) -> Sequence[TurnKey]:
        self._open()
        found = await self._read(lambda rows: rows.expired_turns(SWEPT_AT_ONCE))
        return [key._replace(owner=self._shown_owner(key.owner)) for key in found]

    async def resume_turn(
        self,
        owner: str,
        conversation_id: UUID | str,
        message_id: UUID | str,
        *,
        worker: UUID,
        lease: timedelta = LEASE,
    ) -> ResumedTurn | None:
        key = self._turn_key(owner, conversation_id, message_id)
        return await self._write_turn(key, (), lambda rows: self._resume_turn(rows, key, worker, lease))

    async def _resume_turn(self, rows: R, key: TurnKey, worker: UUID, lease: timedelta) -> ResumedTurn | None:
        if await rows.state(key[:2], lock=True) is None:
            return None
        turn = await rows.turn(key)
        if turn is None or not turn.has_expired:
            return None
        resumed = await self._resumable(rows, key, turn)
        if resumed is not None:
            await rows.take_turn(key, worker, lease)
        return resumed

    async def _swept(self, key: TurnKey) -> bool:
        """Close a turn whose lease has expired, if that can be done: one that cannot must not keep the others open."""
        try:
            return await self._expire(key)
        except StoreUnavailable:
            raise
        except ChatkeepError:
            logger.exception("a turn whose process is gone could not be closed")
            return False

    async def _expire(self, key: TurnKey) -> bool:
        return await self._write_turn(key, (), lambda rows: self._expire_in(rows, key))

    async def _expire_in(self, rows: R, key: TurnKey) -> bool:
        there = await rows.state(key[:2], lock=True)
        turn = await rows.turn(key)
        if turn is not None and not turn.has_expired:
            return False
        if there is None:  # its conversation is being removed
            await rows.end_turn(key)
            return turn is not None
        if turn is not None and await self._may_be_resumed(rows, key, turn):
            return False
        return await self._close_turn(rows, key)

    async def _close_turn(self, rows: R, key: TurnKey) -> bool:
        """End a turn as interrupted, with the events that are stored; also one without a lease, of a restored copy.

        Says whether it was in progress.
        """
        message = (await rows.messages_by_id(key[:2], (key.message_id,))).get(key.message_id)
        in_progress = message is not None and message.status is Status.IN_PROGRESS
        if message is not None and in_progress:
            (progress,) = await rows.events_of([TurnPlace(key)], ALL_BYTES)
            lasted = max(0, (now() - message.created_at) // MILLISECOND)
            await rows.set_answer(key, Ending.of(fold(progress.events), Status.INTERRUPTED, lasted))
        await rows.end_turn(key)
        return in_progress

    def _turn_key(self, owner: str, conversation_id: UUID | str, message_id: UUID | str) -> TurnKey:
        return TurnKey(*self._key(owner, conversation_id), valid_id(message_id))

    # --- statistics ---------------------------------------------------------------------------------------

    async def answer_stats(self, owner: str, *, after: datetime, before: datetime) -> list[AnswerStats]:
        for name, time in (("after", after), ("before", before)):
            if valid_time(name, time) is None:
                raise InvalidInput(f"{name} must be given")
        if not timedelta(0) < before - after <= timedelta(days=MAX_STATS_DAYS):
            raise InvalidInput(f"`before` must be after `after`, by at most {MAX_STATS_DAYS} days")
        stored = self._owner(owner)
        counts = await self._read_much(stored, lambda rows: rows.answers_of(stored, after, before))
        days: defaultdict[int, list[AnswerCount]] = defaultdict(list)
        for count in counts:
            days[count.day].append(count)
        each = [_stats(date.fromordinal(EPOCH_DAY + day), days[day]) for day in sorted(days)]
        return [*each, _stats(None, counts)]


EPOCH_DAY = date(1970, 1, 1).toordinal()


def _is_numbered(events: Sequence[TurnEvent]) -> bool:
    """Whether events have numbers that are stored, one after the other."""
    first = events[0].n if events else 1
    return 1 <= first <= MAX_N - len(events) and all(n == event.n for n, event in enumerate(events, first))


def _check_role(role: Role) -> None:
    if role is not Role.USER:
        raise InvalidInput("only a message of the user is answered", got=role)


def _question(message: Message | None) -> Message:
    """The question that is to be answered again. Raises NotFound, InvalidInput."""
    if message is None or message.status is Status.DELETED:
        raise NotFound("there is no such message in this conversation")
    _check_role(message.role)
    return message


def _is_repeated(message: Message, ending: Ending) -> bool:
    """Whether a turn was ended like this before: the answer to that was lost."""
    ended = message.status, message.content, message.duration_ms
    return ended == (ending.status, ending.content, ending.duration_ms)


def _stats(day: date | None, counts: Iterable[AnswerCount]) -> AnswerStats:
    counts = list(counts)
    durations = sorted((each.duration_ms, each.answers) for each in counts if each.duration_ms is not None)
    return AnswerStats(
        day=day,
        answers=sum(each.answers for each in counts),
        failed=sum(each.answers for each in counts if each.status is Status.FAILED),
        interrupted=sum(each.answers for each in counts if each.status is Status.INTERRUPTED),
        input_tokens=sum(each.input_tokens for each in counts),
        output_tokens=sum(each.output_tokens for each in counts),
        p50_ms=_percentile(durations, 50),
        p95_ms=_percentile(durations, 95),
        p99_ms=_percentile(durations, 99),
    )


def _percentile(durations: Sequence[tuple[int, int]], percent: int) -> int | None:
    """The duration that so many percent of the answers do not exceed (nearest rank)."""
    rank = -(-sum(answers for _, answers in durations) * percent // 100)
    for duration, answers in durations:
        rank -= answers
        if rank <= 0:
            return duration
    return None
