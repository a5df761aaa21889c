"""The turns of a process: begun, made, followed, stopped, and ended with the process."""

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from uuid import UUID, uuid4

from chatkeep.answers.flusher import BACKOFF_SECONDS, Flusher
from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.provider import Asked, Provider
from chatkeep.answers.stream import STOPPING, Log, NotAnswering, Streams
from chatkeep.answers.turn import RunningTurn
from chatkeep.errors import ChatkeepError, InvalidInput, StoreUnavailable, TurnInProgress, TurnLost
from chatkeep.events import TurnEvent
from chatkeep.ids import new_id, valid_id
from chatkeep.model import Message, NewMessage, Status
from chatkeep.store import Store
from chatkeep.turns import Ending, Turn, TurnKey

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 1.5
"""How long the answers that are cut off may take to be stored at the end. Of what is left the lease expires."""

RETRY_SECONDS = 2.0
"""A start that failed within this time is tried once more: perhaps it was committed, and only the reply lost."""

TOO_MANY = "this server makes as many answers as it can; ask again later"


class TurnObserver:
    """Is told what a runner does; the base class ignores it."""

    def running(self, turns: int) -> None:
        """The process makes so many answers now."""

    def ended(self, status: Status) -> None:
        """An answer of this process is stored."""


class TurnRunner:
    """Makes the answers that this process has the leases of, and follows those of other processes.

    Who asks may go: an answer is made by a task of the runner, and ends only by itself, by `stop`, or with the runner.
    """

    def __init__(self, store: Store, provider: Provider | None, limits: TurnLimits | None = None) -> None:
        """Take the store, and what makes answers; without that turns are only followed, stopped and closed."""
        self._store = store
        self._provider = provider
        self._limits = limits or TurnLimits()
        self._worker = uuid4()
        self._running: dict[TurnKey, RunningTurn] = {}
        self._making: set[asyncio.Task[None]] = set()
        self._starting: set[asyncio.Task[Turn]] = set()
        self._streams = Streams(store, self._limits, self._resume_or_expire)
        self._flusher = Flusher(store.turns, self._worker, self._limits, self._running)
        self._beside: list[asyncio.Task[None]] = []
        self._is_closing = False
        self._is_closed = False
        self.observer = TurnObserver()

    @property
    def provider(self) -> Provider | None:
        """What makes the answers."""
        return self._provider

    @property
    def running(self) -> int:
        """How many answers this process makes now."""
        return len(self._running)

    def start(self) -> None:
        """Begin to store events, and to close turns whose process is gone."""
        works = (self._flusher.run(), self._sweep(), self._prepare())
        self._beside = [asyncio.create_task(work, name="chatkeep-turns") for work in works]

    async def aclose(self, drain: float = 0.0) -> None:
        """Take no more questions, wait so many seconds for the answers, and end the rest as interrupted. Idempotent."""
        if self._is_closed:
            return
        self._is_closing = True
        await self._drain(drain)
        self._is_closed = True
        for turn in self._running.values():
            if turn.can_be_resumed:
                turn.lose()  # its lease expires, and another process goes on
            else:
                turn.stop()
        if self._making:
            _, left = await asyncio.wait(self._making, timeout=CLOSE_SECONDS)
            for task in left:
                task.cancel()
        for task in self._beside:
            task.cancel()
        if self._beside:
            await asyncio.wait(self._beside, timeout=CLOSE_SECONDS)
        await self._streams.aclose()

    async def _drain(self, seconds: float) -> None:
        """Wait for the answers, and for questions that are on their way into the store."""
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        while works := (self._starting | self._making):
            if (left := until - loop.time()) <= 0:
                break
            await asyncio.wait(works, timeout=left, return_when=asyncio.FIRST_COMPLETED)

    # --- asking -------------------------------------------------------------------------------------------

    async def ask(
        self,
        owner: str,
        conversation_id: UUID,
        question: NewMessage | UUID,
        *,
        attempt: str | None = None,
        wait: float = 0.0,
    ) -> Turn:
        """Begin a turn, or return the one that there is, as `Turns.start_turn`.

        While another question is answered, waits so many seconds for that. Who is cancelled meanwhile has asked all
        the same.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait
        if isinstance(question, NewMessage) and question.id is None:
            question = question.model_copy(update={"id": new_id()})
        attempt = attempt or uuid4().hex  # given here, both of them, so that the start can be repeated
        while True:
            try:
                return await self._ask(owner, conversation_id, question, attempt)
            except TurnInProgress as other:
                left = until - loop.time()
                if left <= 0 or not await self._has_ended(TurnKey(owner, conversation_id, other.message_id), left):
                    raise

    async def _ask(self, owner: str, conversation_id: UUID, question: NewMessage | UUID, attempt: str) -> Turn:
        if self._provider is None:
            raise InvalidInput("this process has no provider, which makes answers")
        if self._is_closing:
            raise NotAnswering(STOPPING)
        if len(self._running) + len(self._starting) >= self._limits.turns:
            raise NotAnswering(TOO_MANY)
        task = asyncio.create_task(self._start(owner, conversation_id, question, attempt))
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_retrieve)
            raise

    async def _start(self, owner: str, conversation_id: UUID, question: NewMessage | UUID, attempt: str) -> Turn:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            turn = await self._start_turn(owner, conversation_id, question, attempt)
        except StoreUnavailable:
            if loop.time() - began > RETRY_SECONDS:
                raise
            turn = await self._start_turn(owner, conversation_id, question, attempt)
        key = TurnKey(owner, conversation_id, turn.answer.id)
        if not turn.is_mine or key in self._running or self._is_closed:
            return turn
        self._begin(key, turn.question)
        return turn._replace(is_new=True)

    async def _start_turn(self, owner: str, conversation_id: UUID, question: NewMessage | UUID, attempt: str) -> Turn:
        return await self._store.turns.start_turn(
            owner,
            conversation_id,
            question,
            worker=self._worker,
            attempt=attempt,
            lease=self._limits.lease,
            max_running=self._limits.running,
        )

    def _begin(self, key: TurnKey, question: Message, so_far: Sequence[TurnEvent] = ()) -> None:
        assert self._provider is not None  # noqa: S101 - else there is no turn of this worker
        asked = Asked(self._store, key.owner, key.conversation_id, question, key.message_id, so_far)
        log = self._streams.begin(key)
        log.add(so_far[len(log.events) :])
        turn = RunningTurn(asked, self._provider, self._limits, log, self._flusher.wake)
        turn.stored_at = asyncio.get_running_loop().time()
        self._running[key] = turn
        self.observer.running(len(self._running))
        task = asyncio.create_task(self._make(turn), name="chatkeep-turn")
        self._making.add(task)
        task.add_done_callback(self._making.discard)

    # --- making -------------------------------------------------------------------------------------------

    async def _make(self, turn: RunningTurn) -> None:
        """Make an answer, and store the whole of it."""
        try:
            ending = await turn.make()
            message = None if turn.is_lost else await self._finish(turn, ending)
        finally:
            del self._running[turn.key]
            self.observer.running(len(self._running))
        if message is None:
            logger.warning("an answer is not made here any more: another process has its turn, or it is gone")
            self._streams.lose(turn.log)
        else:
            turn.finished(message)
            self.observer.ended(message.status)
            self._streams.let_go(turn.log)

    async def _finish(self, turn: RunningTurn, ending: Ending) -> Message | None:
        """Store the whole answer, however long the store cannot be used; None if the turn is lost."""
        pause = BACKOFF_SECONDS[0]
        while True:
            try:
                return await self._store.turns.finish_turn(*turn.key, ending, worker=self._worker)
            except StoreUnavailable as error:
                logger.warning("an answer is stored later: %s", error.detail)
            except TurnLost:
                return None
            except ChatkeepError:
                logger.exception("an answer could not be stored")
                return None
            await asyncio.sleep(pause)
            pause = min(2 * pause, BACKOFF_SECONDS[1])

    async def _prepare(self) -> None:
        if self._provider is None:
            return
        try:
            await self._provider.prepare(self._store)
        except ChatkeepError as error:
            logger.warning("the first answer may take longer: %s", error.detail)

    async def _sweep(self) -> None:
        """Close turns whose leases have expired, at random moments, until cancelled."""
        while True:
            await asyncio.sleep(self._limits.sweep * random.uniform(0.5, 1.0))  # noqa: S311 - not a secret
            try:
                await self._resume_expired()
                while await self._store.turns.expire_turns():
                    pass
            except ChatkeepError as error:
                logger.warning("turns whose process is gone were not closed: %s", error.detail)
            except Exception:
                logger.exception("turns whose process is gone were not closed")  # without this task none would be

    async def _resume_expired(self) -> None:
        if self._provider is not None and self._provider.resumes:
            for key in await self._store.turns.expired_turns():
                await self._resume(key)

    async def _resume_or_expire(self, key: TurnKey) -> None:
        """Go on with a turn whose lease has expired, if that can be done here; else close it, if nobody else can."""
        if not await self._resume(key):
            await self._store.turns.expire_turn(*key)

    async def _resume(self, key: TurnKey) -> bool:
        can = self._provider is not None and self._provider.resumes and not self._is_closing
        if not can or key in self._running or len(self._running) >= self._limits.turns:
            return False
        turn = await self._store.turns.resume_turn(*key, worker=self._worker, lease=self._limits.lease)
        if turn is None or self._is_closed:
            return False
        logger.info("an answer goes on here: the process that made it is gone")
        self._begin(key, turn.question, turn.events)
        return True

    # --- following ----------------------------------------------------------------------------------------

    def following(
        self, owner: str, conversation_id: UUID | str, message_id: UUID | str
    ) -> AbstractAsyncContextManager[Log]:
        """The log of a turn, wherever it is made, for as long as it is read."""
        return self._streams.following(TurnKey(owner, valid_id(conversation_id), valid_id(message_id)))

    async def ended(self, owner: str, conversation_id: UUID, message_id: UUID, seconds: float) -> Message | None:
        """Return an answer when it has ended; None if that takes longer. Raises NotFound and NotYours if it is gone."""
        async with self.following(owner, conversation_id, message_id) as log:
            try:
                async with asyncio.timeout(seconds):
                    return await log.ended()
            except TimeoutError:
                return None

    async def _has_ended(self, key: TurnKey, seconds: float) -> bool:
        return await self.ended(*key, seconds) is not None

    async def stop(self, owner: str, conversation_id: UUID, message_id: UUID) -> bool:
        """Ask for the end of a turn, wherever it is made, and return whether it runs."""
        runs = await self._store.turns.stop_turn(owner, conversation_id, message_id)
        turn = self._running.get(TurnKey(owner, conversation_id, message_id))
        if turn is not None:
            turn.stop()
        return runs


@asynccontextmanager
async def running_turns(
    store: Store, provider: Provider | None, limits: TurnLimits | None = None, *, drain: float = 0.0
) -> AsyncIterator[TurnRunner]:
    """A runner that is started, and closed at the end."""
    runner = TurnRunner(store, provider, limits)
    runner.start()
    try:
        yield runner
    finally:
        await runner.aclose(drain)


def _retrieve(task: asyncio.Task[Turn]) -> None:
    """Look at the outcome of a start whose caller is gone."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.warning("a turn was not begun, and who asked is gone: %s", error)
