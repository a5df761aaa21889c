"""Statistics of answers."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chatkeep.errors import InvalidInput
from chatkeep.model import Conversation, ImportedConversation, ImportedMessage, NewConversation, Role, Status
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, someone, user
from chatkeep.testing.turn_steps import begin
from chatkeep.turns import AnswerStats, Ending

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
NOTHING = AnswerStats(
    day=None, answers=0, failed=0, interrupted=0, input_tokens=0, output_tokens=0, p50_ms=None, p95_ms=None, p99_ms=None
)


def answer(created_at: datetime, **values: Any) -> ImportedMessage:
    """Return an answer that was begun at a time."""
    usual: dict[str, Any] = {"role": Role.ASSISTANT, "content": "tea", "model": "small", "created_at": created_at}
    return ImportedMessage(**usual | values)


class TurnStatsContract(Contract):
    """Statistics of answers."""

    async def stats(self, store: Store, owner: str, *answers: ImportedMessage) -> list[AnswerStats]:
        """The statistics of March 2026 after an import of answers."""
        await store.import_conversation(owner, ImportedConversation(), answers)
        return await store.turns.answer_stats(owner, after=NOON - DAY, before=NOON + 30 * DAY)

    async def test_days(self, store: Store, owner: str) -> None:
        """Answers are counted by the day in UTC, oldest day first, and at last for all days; days without are left out.

        Tokens that are unknown count nothing, and durations that are unknown have no part in percentiles.
        """
        late = NOON.replace(hour=23, minute=59, second=59, microsecond=999_999)
        found = await self.stats(
            store,
            owner,
            answer(late, input_tokens=3, output_tokens=5, duration_ms=120),
            answer(late + timedelta(microseconds=1), status=Status.FAILED, input_tokens=1),
            answer(NOON, status=Status.INTERRUPTED, output_tokens=7, duration_ms=0),
            answer(NOON + 9 * DAY, model="large", duration_ms=7_777),
        )
        first = NOTHING.model_copy(
            update={"answers": 2, "interrupted": 1, "input_tokens": 3, "output_tokens": 12}
            | {"p50_ms": 0, "p95_ms": 120, "p99_ms": 120, "day": NOON.date()}
        )
        second = {"day": (NOON + DAY).date(), "answers": 1, "failed": 1, "input_tokens": 1}
        third = {"day": (NOON + 9 * DAY).date(), "answers": 1, "p50_ms": 7_700, "p95_ms": 7_700, "p99_ms": 7_700}
        total = {"answers": 4, "failed": 1, "interrupted": 1, "input_tokens": 4, "output_tokens": 12}
        assert found == [
            first,
            NOTHING.model_copy(update=second),
            NOTHING.model_copy(update=third),
            NOTHING.model_copy(update=total | {"p50_ms": 120, "p95_ms": 7_700, "p99_ms": 7_700}),
        ]

    @pytest.mark.parametrize(
        "durations", [[7], [0, 0], [1, 2], [99, 100, 101], range(1, 101), range(10_000, 0, -97), [2**63 - 1, 5]]
    )
    async def test_percentiles(self, store: Store, owner: str, durations: Sequence[int]) -> None:
        """A percentile is the least duration that so many answers do not exceed, rounded down to two digits."""
        found = await self.stats(store, owner, *(answer(NOON, duration_ms=each) for each in durations))
        expected = [rounded(nearest(sorted(durations), percent)) for percent in (50, 95, 99)]
        for stats in found:
            assert [stats.p50_ms, stats.p95_ms, stats.p99_ms] == expected
            assert stats.answers == len(durations)

    async def test_huge_counts(self, store: Store, owner: str) -> None:
        """Sums of the largest counts do not fail; whoever needs them exactly adds them up."""
        most = 2**63 - 1
        huge = [answer(NOON, input_tokens=most, output_tokens=most, duration_ms=most) for _ in range(3)]
        for stats in await self.stats(store, owner, *huge):
            assert [stats.input_tokens, stats.output_tokens] == pytest.approx([3 * most] * 2, rel=1e-9)
            assert stats.p99_ms == 92 * 10**17

    async def test_range(self, store: Store, owner: str) -> None:
        """The range begins with its first moment and ends before its last one, to the microsecond."""
        moment = timedelta(microseconds=1)
        times = (NOON - moment, NOON, NOON + DAY - moment, NOON + DAY)
        await self.stats(store, owner, *(answer(time, input_tokens=10**n) for n, time in enumerate(times)))
        found = await store.turns.answer_stats(owner, after=NOON, before=NOON + DAY)
        assert [stats.input_tokens for stats in found] == [10, 100, 110]
        found = await store.turns.answer_stats(owner, after=NOON, before=NOON + moment)
        assert [stats.answers for stats in found] == [1, 1]
        year = await store.turns.answer_stats(owner, after=NOON, before=NOON + 366 * DAY)
        assert year[-1].answers == 3

    @pytest.mark.parametrize(
        ("after", "before"),
        [
            (NOON, NOON),
            (NOON, NOON - DAY),
            (NOON, NOON + 366 * DAY + timedelta(microseconds=1)),
            (NOON.replace(tzinfo=None), NOON + DAY),
            (NOON, (NOON + DAY).replace(tzinfo=None)),
            (NOON, "2026-03-02T00:00:00Z"),
            (None, NOON),
            (NOON.date(), NOON),
        ],
    )
    async def test_refused_ranges(self, store: Store, owner: str, after: Any, before: Any) -> None:
        """Times need a time zone, and the range a length, of 366 days at most."""
        with pytest.raises(InvalidInput):
            await store.turns.answer_stats(owner, after=after, before=before)

    async def test_ranges_at_the_ends_of_time(self, store: Store, owner: str) -> None:
        """A range may lie before 1970, or at the end of the calendar."""
        first, last = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
        for after, before in ((first, first + DAY), (last - DAY, last)):
            assert await store.turns.answer_stats(owner, after=after, before=before) == [NOTHING]

    async def test_answers_have_a_model(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Messages with a model count, whoever appended them; others, and those of other owners, do not."""
        after = conversation.created_at
        await store.append(owner, conversation.id, [user("sage?"), assistant("yes", model="small", output_tokens=2)])
        await store.append(owner, conversation.id, [assistant("yes", output_tokens=10)])
        running = await begin(store, owner, conversation.id)
        before = (await store.append(owner, conversation.id, [user("now")]))[0].created_at + timedelta(minutes=1)
        assert (await store.turns.answer_stats(owner, after=after, before=before))[-1].answers == 1
        await running.finish(Ending(Status.FAILED, model="large", output_tokens=5, duration_ms=1_999))
        stranger = someone()
        theirs = await store.create_conversation(stranger, NewConversation(id=conversation.id))
        await store.append(stranger, theirs.id, [assistant("no", model="small", output_tokens=100)])
        found = (await store.turns.answer_stats(owner, after=after, before=before))[-1]
        assert (found.answers, found.failed, found.output_tokens, found.p99_ms) == (2, 1, 7, 1_900)
        assert await store.turns.answer_stats(someone(), after=after, before=before) == [NOTHING]
        await store.delete_conversation(owner, conversation.id)
        assert await store.turns.answer_stats(owner, after=after, before=before) == [NOTHING]


def nearest(ordered: Sequence[int], percent: int) -> int:
    """The nearest rank, by counting."""
    return next(each for n, each in enumerate(ordered, 1) if 100 * n >= percent * len(ordered))


def rounded(milliseconds: int) -> int:
    """A duration with its first two digits."""
    digits = str(milliseconds)
    return int(digits[:2].ljust(len(digits), "0"))
