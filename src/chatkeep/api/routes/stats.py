"""Statistics over HTTP."""

from datetime import UTC, datetime, timedelta
from typing import Any, Self

from fastapi import APIRouter, Request, Response
from pydantic import Field, create_model, model_validator

from chatkeep.api.body import reply
from chatkeep.api.dependencies import OpenedStore, Owner
from chatkeep.api.errors import api_problems
from chatkeep.api.paging import TimeBound
from chatkeep.api.query import openapi_query, read_query
from chatkeep.model import Given, Record
from chatkeep.turns import MAX_STATS_DAYS, AnswerStats

router = APIRouter(prefix="/api/stats", tags=["stats"])

DEFAULT_RANGE = timedelta(days=30)

LONGEST = timedelta(days=MAX_STATS_DAYS)

FIRST_TIME = datetime(1, 1, 2, tzinfo=UTC)
"""So that 30 days before it is a time, too."""


class Stats(Record):
    """The answers of an owner that were begun in a range of time."""

    days: list[AnswerStats] = Field(description="Each day in UTC on which there were answers, the earliest first.")
    total: AnswerStats = Field(description="All days together.")


class _Range(Given):
    """A range of time. Its bounds are added below: `from` is no name that a class body can have."""

    @model_validator(mode="after")
    def _is_a_range(self) -> Self:
        begin, end = self.bounds
        if not timedelta(0) < end - begin <= LONGEST:
            raise ValueError(f"`to` must be after `from`, by at most {MAX_STATS_DAYS} days")
        return self

    @property
    def bounds(self) -> tuple[datetime, datetime]:
        """The first moment, and the one after the last."""
        given: dict[str, datetime | None] = self.__dict__
        begin, end, moment = given["from"], given["to"], datetime.now(UTC)
        if begin is None:
            end = end or moment
            return max(end, FIRST_TIME + DEFAULT_RANGE) - DEFAULT_RANGE, end
        return begin, end or (moment if begin > moment - LONGEST else begin + LONGEST)


BOUNDS: dict[str, Any] = {
    "from": (
        TimeBound | None,
        Field(default=None, description="Answers begun from then on. Default: 30 days before."),
    ),
    "to": (
        TimeBound | None,
        Field(
            default=None,
            description="Answers begun before then. Default: now, or 366 days after `from` if that is earlier.",
        ),
    ),
}

StatsQuery: type[_Range] = create_model("StatsQuery", __base__=_Range, **BOUNDS)


@router.get(
    "",
    response_model=Stats,
    responses=api_problems(422),
    response_description="The statistics.",
    summary="Count answers, tokens and times",
    openapi_extra=openapi_query(StatsQuery),
)
async def answer_stats(owner: Owner, store: OpenedStore, request: Request) -> Response:
    """Count the answers with a model, how they ended, their tokens, and how long they took, for each day in UTC.

    Durations are rounded down to their first two digits; a percentile is one that so many answers did not exceed.
    """
    begin, end = read_query(StatsQuery, request).bounds
    *days, total = await store.turns.answer_stats(owner, after=begin, before=end)
    return reply(Stats.model_construct(days=days, total=total))
