"""Pagination: the query parameters that every list shares."""

import re
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, model_validator

from chatkeep.model import Given
from chatkeep.store import MAX_OFFSET
from chatkeep.values import Time

MAX_PAGE_LIMIT = 200
"""Largest `limit` over HTTP."""


def _only_digits(value: object) -> object:
    """Refuse what int() accepts besides digits: `1_0`, ` 10`."""
    if isinstance(value, str) and not (value.isascii() and value.removeprefix("-").isdecimal()):
        raise ValueError("must be a whole number")
    return value


WholeNumber = Annotated[int, BeforeValidator(_only_digits)]

_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)", re.ASCII | re.IGNORECASE)


def _only_rfc_3339(value: object) -> object:
    """Refuse what pydantic reads besides: a number of seconds, a date alone."""
    if isinstance(value, str) and not _RFC_3339.fullmatch(value):
        raise ValueError("must be a date and time with a time zone, such as 2026-01-31T12:00:00Z; write + as %2B")
    return value


TimeBound = Annotated[Time, BeforeValidator(_only_rfc_3339)]
Limit = Annotated[WholeNumber, Field(ge=1, le=MAX_PAGE_LIMIT, description="Most items to return.")]
Cursor = Annotated[
    str | None,
    Field(description="The `next` of the page before, to get the one after it; send the same filters with it."),
]


class ListQuery(Given):
    """A page of a list, by cursor or by page number."""

    limit: Limit
    cursor: Cursor = None
    page: WholeNumber | None = Field(
        default=None,
        ge=1,
        examples=[1],
        description=f"The number of the page, from 1, at most {MAX_OFFSET:,} items into the list. Counts the total.",
    )
    total: bool = Field(
        default=False, description="Whether to count the whole list, which costs more than a page of it."
    )

    @model_validator(mode="after")
    def _has_one_start(self) -> Self:
        if self.page is not None and self.cursor is not None:
            raise ValueError("page and cursor cannot be used together; a cursor says where its page begins")
        if self.page is not None and (self.page - 1) * self.limit > MAX_OFFSET:
            raise ValueError(f"a page can begin at most {MAX_OFFSET:,} items into the list; use the cursor beyond that")
        return self

    @property
    def page_offset(self) -> int:
        """The number of items before the page."""
        return 0 if self.page is None else (self.page - 1) * self.limit

    @property
    def wants_total(self) -> bool:
        """Whether the total has to be counted."""
        return self.total or self.page is not None


class OffsetQuery(ListQuery):
    """A page of a list, by cursor, by page number, or by the number of items before it."""

    limit: Limit = 10
    offset: WholeNumber = Field(
        default=0, ge=0, le=MAX_OFFSET, description="Number of items to skip, instead of a page number."
    )

    @model_validator(mode="after")
    def _has_one_offset(self) -> Self:
        if self.page is not None and self.offset:
            raise ValueError("page and offset cannot be used together")
        return self

    @property
    def skipped(self) -> int:
        """The number of items before the page."""
        return self.page_offset or self.offset
