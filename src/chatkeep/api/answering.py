"""Questions over HTTP: how they are asked, and what is replied while and when they are answered."""

from collections import Counter
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal
from uuid import UUID

from fastapi import Depends, Request, Response
from pydantic import ConfigDict, Field

from chatkeep.access import location_of
from chatkeep.answers.runner import TurnRunner
from chatkeep.answers.stream import Log, NotAnswering, ended_log
from chatkeep.api.body import reply
from chatkeep.api.errors import Refused, problem
from chatkeep.api.event_stream import EventStream
from chatkeep.api.idempotency import REPLAYED
from chatkeep.api.negotiation import Wishes
from chatkeep.api.query import read_query
from chatkeep.api.rate_limit import RateLimiter, retry_after
from chatkeep.errors import InvalidInput, NotFound
from chatkeep.events import TIMEOUT, Place, error_of, place_of
from chatkeep.model import Given, Message, NewMessage, Record, Role, RunningAnswer, Status, StreamPlace
from chatkeep.store import Store
from chatkeep.turns import FIRST, Turn, TurnKey, answer_id

NO_PROVIDER = "this server answers nothing: CHATKEEP_PROVIDER, or --provider, sets what makes its answers"

FAILED = "the answer could not be made"


@dataclass(frozen=True)
class ReplyTimes:
    """How long a reply may take, in seconds."""

    answer: float = 60.0
    """Until an answer that is not streamed has to be fetched."""
    busy: float = 30.0
    """Until another question is answered, if the client waits for that."""
    stop: float = 2.0
    """Until an answer that is to stop has ended."""
    ping: float = 15.0
    """Longest silence of a stream."""


class Answered(Record):
    """A question and its answer."""

    user_message: Message
    assistant_message: Message = Field(description="The answer, or what there is of it while it is `in_progress`.")


class BusyQuery(Given):
    """What to do while another question is answered. Other parameters are ignored."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="ignore")

    on_busy: Literal["wait"] | None = Field(
        default=None,
        description="`wait`: for up to 30 seconds if another question of the conversation is being answered.",
    )


class Answering:
    """Asks, follows and stops for the routes of one application."""

    def __init__(
        self, store: Store, runner: TurnRunner, limiter: RateLimiter | None, times: ReplyTimes, max_waiting: int
    ) -> None:
        """Take the most requests of one owner that wait for an answer; others are replied to at once."""
        self.runner = runner
        self._store = store
        self._limiter = limiter
        self._times = times
        self._max_waiting = max_waiting
        self._waiting: Counter[str] = Counter()

    @property
    def is_able(self) -> bool:
        """Whether there is something that makes answers."""
        return self.runner.provider is not None

    # --- asking -------------------------------------------------------------------------------------------

    async def ask(
        self,
        request: Request,
        owner: str,
        conversation_id: UUID,
        question: NewMessage | UUID,
        attempt: str | None = None,
    ) -> Response:
        """Have a question answered, and return what the client wants of it. Raises what `TurnRunner.ask` raises."""
        wishes, waits = Wishes.of(request), read_query(BusyQuery, request).on_busy is not None
        if not self.is_able:
            raise InvalidInput(NO_PROVIDER)
        await self._admit(owner, conversation_id, question, attempt)
        with self._wait(owner) as may_wait:
            seconds = self._times.busy if waits and may_wait else 0.0
            turn = await self.runner.ask(owner, conversation_id, question, attempt=attempt, wait=seconds)
            if wishes.is_stream:
                return self._stream(owner, turn, wishes)
            if may_wait and not wishes.is_async:
                turn = await self._answered(owner, turn)
        return _reply(turn, is_async=wishes.is_async)

    async def _admit(self, owner: str, conversation_id: UUID, question: NewMessage | UUID, attempt: str | None) -> None:
        """Raise Refused if the owner has begun too many turns. What was asked before may always be asked again."""
        result = await self._limiter.hit(owner) if self._limiter else None
        if result is None or result.allowed:
            return
        id_, name = (question, attempt) if isinstance(question, UUID) else (question.id, FIRST)
        try:
            await self._store.get_message(owner, conversation_id, answer_id(id_, name) if id_ and name else "")
        except (NotFound, ValueError):
            raise Refused(429, headers=retry_after(result)) from None

    @contextmanager
    def _wait(self, owner: str) -> Iterator[bool]:
        """Count a request that waits; say whether it may."""
        self._waiting[owner] += 1
        try:
            yield self._waiting[owner] <= self._max_waiting
        finally:
            self._waiting[owner] -= 1
            if not self._waiting[owner]:
                del self._waiting[owner]

    async def _answered(self, owner: str, turn: Turn) -> Turn:
        """Wait for the answer, and return the turn with what there is then."""
        if turn.answer.status is not Status.IN_PROGRESS:
            return turn
        return turn._replace(answer=await self._ended(_key(owner, turn.answer), self._times.answer))

    async def _ended(self, key: TurnKey, seconds: float) -> Message:
        """Return an answer when it has ended, or what there is of it after some seconds."""
        try:
            message = await self.runner.ended(*key, seconds)
        except NotAnswering:  # this process ends
            message = None
        return message or await self._store.get_message(*key)

    # --- following and stopping ---------------------------------------------------------------------------

    async def answer(self, owner: str, conversation_id: UUID, message_id: UUID) -> Message:
        """Return an answer. Raises NotFound if the message is none."""
        message = await self._store.get_message(owner, conversation_id, message_id)
        if message.role is not Role.ASSISTANT or message.status is Status.DELETED:
            raise NotFound("there is no such answer in this conversation")
        return message

    def events(self, owner: str, answer: Message, last: Place | None) -> EventStream:
        """Return the events of an answer after a place."""
        return EventStream(self._following(owner, answer), last=last, ping=self._times.ping)

    def _following(self, owner: str, answer: Message) -> AbstractAsyncContextManager[Log]:
        if answer.status is Status.IN_PROGRESS:
            return self.runner.following(*_key(owner, answer))
        return nullcontext(ended_log(answer))

    def _stream(self, owner: str, turn: Turn, wishes: Wishes) -> EventStream:
        return EventStream(
            self._following(owner, turn.answer),
            last=wishes.last,
            ping=self._times.ping,
            question=None if wishes.has_last else turn.question,
            headers={**_replayed(turn), "Location": events_of(turn.answer)},
        )

    async def stop(self, owner: str, conversation_id: UUID, message_id: UUID) -> Response:
        """Ask an answer to stop, and return what there is of it."""
        message = await self.answer(owner, conversation_id, message_id)
        if message.status is Status.IN_PROGRESS:
            await self.runner.stop(owner, conversation_id, message_id)
            message = await self._ended(_key(owner, message), self._times.stop)
        if message.status is Status.IN_PROGRESS:
            return reply(message, 202, location=events_of(message))
        return reply(message)


async def answering_of(request: Request) -> Answering:
    """Return what the application asks with."""
    answering: Answering = request.app.state.answering
    return answering


AppAnswering = Annotated[Answering, Depends(answering_of)]


def events_of(answer: Message) -> str:
    """Return the path of an answer's events."""
    return f"{path_of(answer)}/events"


def path_of(message: Message) -> str:
    """Return the path of a message."""
    return f"{location_of(message.conversation_id)}/messages/{message.id}"


def _key(owner: str, answer: Message) -> TurnKey:
    return TurnKey(owner, answer.conversation_id, answer.id)


def _replayed(turn: Turn) -> dict[str, str]:
    return {} if turn.is_new else {REPLAYED: "true"}


def _reply(turn: Turn, *, is_async: bool) -> Response:
    """Return the reply that is not a stream."""
    answer = turn.answer
    if answer.status is Status.FAILED:
        why = error_of(answer.parts) or {}
        status = 504 if why.get("kind") == TIMEOUT else 502
        reason = why.get("reason")
        detail = reason if isinstance(reason, str) and reason else FAILED
        return problem(status, detail, headers={**_replayed(turn), "Location": path_of(answer)})
    both = Answered.model_construct(user_message=turn.question, assistant_message=_shown(answer))
    if answer.status is not Status.IN_PROGRESS:
        response = reply(both, 201, location=path_of(answer))
    else:
        response = reply(both, 202, location=events_of(answer))
        if is_async:
            response.headers["Preference-Applied"] = "respond-async"
    response.headers.update(_replayed(turn))
    return response


def _shown(answer: Message) -> Message:
    """Return an answer; one that has just begun with the place where its stream begins."""
    if answer.status is not Status.IN_PROGRESS or isinstance(answer, RunningAnswer):
        return answer
    place = StreamPlace(last_event_id=str(place_of(answer.id)))
    return RunningAnswer.model_construct(**dict(answer), stream=place)
