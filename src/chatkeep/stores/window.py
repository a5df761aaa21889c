"""Pages of lists and paths: their bounds and cursors, the same for every store."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from chatkeep.cursor import decode_cursor, encode_cursor
from chatkeep.errors import InvalidInput
from chatkeep.ids import valid_id
from chatkeep.model import PAGE_FIELDS, Conversation, Message, Page, stored
from chatkeep.store import MAX_LIMIT, MAX_OFFSET, ListOrder, Order
from chatkeep.tree import Segment
from chatkeep.validation import first_wrong
from chatkeep.values import MAX_LABELS, NOT_A_LABEL, Label, from_micros, to_micros, valid_range

NOT_OURS = "the cursor is not one that chatkeep gave for this list"


def valid_page(limit: int, offset: int, cursor: str | None) -> None:
    """Raise InvalidInput for a limit or offset outside the port's bounds."""
    valid_range("limit", limit, 1, MAX_LIMIT)
    valid_range("offset", offset, 0, MAX_OFFSET)
    if cursor is not None and offset:
        raise InvalidInput("a page begins at a cursor or at an offset, not at both")


def valid_time(name: str, time: datetime | None) -> datetime | None:
    """Return a time that has a time zone. Raises InvalidInput."""
    if time is not None and (not isinstance(time, datetime) or time.tzinfo is None):
        raise InvalidInput(f"{name} must be a time with a time zone", got=time)
    return time


LABEL = TypeAdapter(Label)


def valid_labels(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the labels that conversations must have, and those, written with a "!", that they must not have.

    Raises InvalidInput for what no conversation can have.
    """
    if isinstance(labels, str):
        raise InvalidInput("labels are a list or tuple of texts", got=labels)
    valid_range("the number of labels", len(labels), 0, MAX_LABELS)
    wanted, without = list[str](), list[str]()
    for text in labels:
        is_not = isinstance(text, str) and text.startswith(NOT_A_LABEL)
        try:
            label = LABEL.validate_python(text.removeprefix(NOT_A_LABEL) if is_not else text)
        except ValidationError as error:
            raise InvalidInput(str(first_wrong(error, whole="a label")), got=text) from None
        (without if is_not else wanted).append(label)
    return tuple(wanted), tuple(without)


class ListFilter(NamedTuple):
    """Which conversations a list has. None stands for all."""

    context_id: str | None = None
    project_id: UUID | None = None
    external_id: str | None = None
    updated_after: datetime | None = None
    """Above this time."""
    updated_before: datetime | None = None
    """Below this time."""
    labels: tuple[str, ...] = ()
    """With all of these labels."""
    without: tuple[str, ...] = ()
    """With none of these."""
    ids: tuple[UUID, ...] | None = None
    """Among these: all that have one of the labels, if they are few."""

    @property
    def is_costly(self) -> bool:
        """Whether what it lists may stand far apart in the index that is read."""
        scopes = (self.context_id, self.project_id, self.external_id)
        return bool(self.labels or self.without) or sum(scope is not None for scope in scopes) > 1

    def named(self) -> tuple[tuple[str, object], ...]:
        """The filters that are given, but for the first, by name."""
        return tuple((name, value) for name, value in zip(self._fields[1:], self[1:], strict=True) if value)


EVERY = ListFilter()
"""Every conversation of an owner."""


def list_scope(owner: str, which: ListFilter, order: ListOrder) -> tuple[object, ...]:
    """The scope of a cursor of the conversation list. Raises InvalidInput for an unknown order."""
    if order not in ("updated", "id"):
        raise InvalidInput("conversations are ordered by `updated` or `id`", got=order)
    if order == "id" and (which.updated_after or which.updated_before):
        raise InvalidInput("a list by time is ordered by `updated`; leave order=id out")
    return owner, which.context_id, order, *which.named()


class ListPlace(NamedTuple):
    """The place of a conversation in a list."""

    id: UUID
    updated_at: datetime | None = None
    """None in the order of ids."""


def list_place(cursor: str, scope: tuple[object, ...], order: ListOrder) -> ListPlace:
    """Return the place after which a list continues. Raises InvalidInput."""
    if order == "id":
        (id_,) = decode_cursor(cursor, "conversations", scope, str)
        return ListPlace(valid_id(id_))
    micros, id_ = decode_cursor(cursor, "conversations", scope, int, str)
    return ListPlace(valid_id(id_), cursor_time(micros))


def list_cursor(last: Conversation, scope: tuple[object, ...], order: ListOrder) -> str:
    """Return the cursor of what follows `last`: the inverse of `list_place`."""
    place = (last.id.hex,) if order == "id" else (to_micros(last.updated_at), last.id.hex)
    return encode_cursor("conversations", scope, *place)


def cursor_time(micros: int) -> datetime:
    """Return a time of a cursor. Raises InvalidInput if a forged cursor has one out of bounds."""
    try:
        return from_micros(micros)
    except OverflowError:
        raise InvalidInput(NOT_OURS) from None


@dataclass(frozen=True)
class Window:
    """A page of a path: its bounds, its order, and the leaf that its cursor keeps."""

    scope: tuple[object, ...]
    limit: int
    order: Order
    offset: int
    low: int
    """Seqs above this one."""
    high: int
    """Seqs below this one."""
    leaf_seq: int | None
    """The leaf that the first page saw; None on the first page."""

    @classmethod
    def of(
        cls,
        owner: str,
        conversation_id: UUID,
        leaf: UUID | None,
        limit: int,
        before: int | None,
        after: int | None,
        order: Order,
        cursor: str | None,
        offset: int,
    ) -> "Window":
        """Check the arguments of Store.history. Raises InvalidInput."""
        valid_page(limit, offset, cursor)
        if order not in ("desc", "asc"):
            raise InvalidInput("messages are ordered `desc` (newest page first) or `asc`", got=order)
        scope = (owner, conversation_id, leaf, before, after, order)
        low, high, leaf_seq = after or 0, 2**63 - 1 if before is None else before, None
        if cursor is not None:
            leaf_seq, seen = decode_cursor(cursor, "history", scope, int, int)
            low, high = (low, min(high, seen)) if order == "desc" else (max(low, seen), high)
        return cls(scope, limit, order, offset, low, high, leaf_seq)

    def checked_leaf(self, last_seq: int) -> int:
        """The cursor's leaf. Raises InvalidInput if a forged cursor has one out of bounds."""
        if self.leaf_seq is None or not 1 <= self.leaf_seq <= last_seq:
            raise InvalidInput(NOT_OURS)
        return self.leaf_seq

    def cut(self, path: Iterable[Segment]) -> Iterator[Segment]:
        """The parts of a path inside the bounds, in the order in which they are read; the path comes from its leaf."""
        inside = self._inside(path)
        return inside if self.order == "desc" else reversed(list(inside))

    def _inside(self, path: Iterable[Segment]) -> Iterator[Segment]:
        for run, low, high, trunk in path:
            if high <= self.low:
                return
            first, last = max(low, self.low + 1), min(high, self.high - 1)
            if first <= last:
                yield Segment(run, first, last, trunk)

    def beyond(self, segment: Segment, seq: int) -> Segment | None:
        """What is left to read of a segment after `seq`."""
        low, high = (segment.low, min(segment.high, seq - 1))
        if self.order == "asc":
            low, high = max(segment.low, seq + 1), segment.high
        return segment._replace(low=low, high=high) if low <= high else None

    def first_of(self, segment: Segment, width: int) -> Segment:
        """What is read first of a segment: `width` seqs at most."""
        if self.order == "desc":
            return segment._replace(low=max(segment.low, segment.high - width + 1))
        return segment._replace(high=min(segment.high, segment.low + width - 1))

    def page(
        self, found: list[Message], leaf_seq: int | None, last_seq: int | None, total: int | None = None
    ) -> Page[Message]:
        """The page of messages found in reading order; the next one begins after `last_seq`, None if there is none."""
        following = None
        if last_seq is not None and leaf_seq is not None:
            following = encode_cursor("history", self.scope, leaf_seq, last_seq)
        items = found[::-1] if self.order == "desc" else found
        return stored(Page, PAGE_FIELDS, {"items": items, "total": total, "next": following})
