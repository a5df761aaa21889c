"""What a server acknowledged, conversation by conversation, and whether a copy of its store has that.

A conversation is written by one writer, one request at a time. So its state after its first n requests is known, and a
copy that was made while requests were under way must show the state after one of the numbers that are possible: from
what was acknowledged before the copy began to what was sent before it ended.
"""

import copy
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import inf
from typing import Any, Protocol
from uuid import UUID

from chatkeep.model import Conversation, Message, Role, Status
from chatkeep.values import merge_patch, title_from

# --- what requests do -----------------------------------------------------------------------------------------


@dataclass
class State:
    """A conversation after some of its requests."""

    exists: bool = False
    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    head: UUID | None = None
    parents: dict[UUID, UUID | None] = field(default_factory=dict)
    """Of each message, by seq."""
    contents: dict[UUID, tuple[str, str]] = field(default_factory=dict)
    """Role and content of each message that was not deleted."""

    @property
    def deleted(self) -> set[UUID]:
        """The messages of which only a tombstone is left."""
        return self.parents.keys() - self.contents.keys()

    def path(self) -> list[UUID]:
        """The messages from the root to the head, without the deleted ones."""
        path, id_ = [], self.head
        while id_ is not None:
            path.append(id_)
            id_ = self.parents[id_]
        return [id_ for id_ in reversed(path) if id_ in self.contents]


class Effect(Protocol):
    """What a request does to a conversation."""

    def apply(self, state: State) -> None:
        """Do it."""


@dataclass(frozen=True)
class Create:
    """Create the conversation."""

    title: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)

    def apply(self, state: State) -> None:
        """Do it."""
        state.exists, state.title, state.metadata = True, self.title, self.metadata


@dataclass(frozen=True)
class Append:
    """Append a message, given as the body of the request. It has an id."""

    body: dict[str, Any]

    @property
    def id(self) -> UUID:
        """The message's id."""
        return UUID(self.body["id"])

    def apply(self, state: State) -> None:
        """Do it; nothing if it is a retry."""
        if self.id in state.parents:
            return
        given = self.body.get("parent_id")
        state.parents[self.id] = (given and UUID(given)) if "parent_id" in self.body else state.head
        state.contents[self.id] = self.body["role"], self.body["content"]
        state.head = self.id
        if state.title is None and self.body["role"] == Role.USER:
            state.title = title_from(self.body["content"])


@dataclass(frozen=True)
class Erase:
    """Delete a message."""

    id: UUID

    def apply(self, state: State) -> None:
        """Do it: a title that was made from the message goes, too."""
        role, content = state.contents.pop(self.id)
        if role == Role.USER and state.title == title_from(content):
            state.title = None


@dataclass(frozen=True)
class Change:
    """Change title, metadata or head by a merge patch."""

    patch: dict[str, Any]

    def apply(self, state: State) -> None:
        """Do it."""
        state.title = self.patch.get("title", state.title)
        state.metadata = merge_patch(state.metadata, self.patch.get("metadata", {}))
        if "head_id" in self.patch:
            state.head = self.patch["head_id"] and UUID(self.patch["head_id"])


@dataclass(frozen=True)
class Delete:
    """Delete the conversation."""

    def apply(self, state: State) -> None:
        """Do it."""
        state.exists = False


# --- the ledger -----------------------------------------------------------------------------------------------


@dataclass
class Request:
    """When a request was sent and when its success was received, in seconds of a monotonic clock."""

    effect: Effect
    began: float
    acknowledged: float = inf


@dataclass
class Trail:
    """The requests to one conversation, one after the other, and the messages as they were acknowledged."""

    owner: str
    id: UUID
    lasting: bool = False
    """Whether it is never deleted."""
    requests: list[Request] = field(default_factory=list)
    messages: dict[UUID, Message] = field(default_factory=dict)
    state: State = field(default_factory=State)
    """The state after the acknowledged requests."""

    def begin(self, effect: Effect, moment: float) -> Request:
        """Note a request that is about to be sent."""
        request = Request(effect, moment)
        self.requests.append(request)
        return request

    def acknowledge(self, request: Request, moment: float) -> None:
        """Note its success."""
        request.acknowledged = moment
        request.effect.apply(self.state)

    def acknowledged_before(self, moment: float) -> int:
        """How many requests were acknowledged before a moment."""
        return bisect_left(self.requests, moment, key=lambda request: request.acknowledged)

    def states(self, began: float, ended: float) -> list[State]:
        """The states that a copy may show which was made between two moments."""
        first = self.acknowledged_before(began)
        last = bisect_right(self.requests, ended, key=lambda request: request.began)
        state = State()
        for request in self.requests[:first]:
            request.effect.apply(state)
        states = [state]
        for request in self.requests[first:last]:
            state = _copy(state)
            request.effect.apply(state)
            states.append(state)
        return states


def _copy(state: State) -> State:
    return State(**{each.name: copy.copy(getattr(state, each.name)) for each in fields(state)})


# --- the check ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """A conversation as a copy has it."""

    conversation: Conversation
    log: Sequence[Message]
    history: Sequence[Message]


@dataclass
class Counts:
    """What is wrong with a copy; all but the first two must be 0."""

    conversations: int = 0
    messages: int = 0
    missing: int = 0
    """Messages, and conversations without any, that were acknowledged before and are not there."""
    hidden: int = 0
    """Messages that are there and on the thread, but not in the history."""
    heads: int = 0
    """Conversations whose head was never the head of these messages."""
    returned: int = 0
    """Messages and conversations that were deleted before, and are there."""
    disordered: int = 0
    """Conversations with messages in another order, or after other parents, or that nobody wrote."""
    outdated: int = 0
    """Conversations with a title or metadata that were not current meanwhile."""
    differing: int = 0
    """Messages that differ from their acknowledgement in any field."""
    refused: int = 0
    """Messages that cannot be sent again with the same values."""
    torn: int = 0
    """Conversations that never were in this state as a whole, and backups that are not of one moment. An export may
    have a title of one moment and messages of the next."""
    failed: int = 0
    """Exports, backups and imports that failed."""

    def add(self, other: "Counts") -> None:
        """Add the counts of another copy."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    def wrong(self, *, torn: bool) -> dict[str, int]:
        """Whatever is not 0 and must be."""
        counted = {each.name: getattr(self, each.name) for each in fields(self)[2:]}
        return {name: count for name, count in counted.items() if count and (torn or name != "torn")}


def check(trail: Trail, found: Found | None, began: float, ended: float, *, optional: bool = False) -> Counts:
    """Compare a conversation with its copy, which was made between two moments.

    `optional`: it may be absent, because its owner was renamed meanwhile.
    """
    states = trail.states(began, ended)
    there = [state for state in states if state.exists]
    if found is None:
        absent = optional or len(there) < len(states)
        return Counts(missing=0 if absent else max(1, len(states[0].contents)))
    if not there:
        return Counts(returned=1)
    counts = Counts(conversations=1, messages=len(found.log))
    _check_messages(counts, trail, found, there)
    _check_thread(counts, found, there)
    titles, metadata = [state.title for state in there], [state.metadata for state in there]
    counts.outdated = int(found.conversation.title not in titles or found.conversation.metadata not in metadata)
    counts.torn = int(not any(_shows(found, state) for state in there))
    return counts


def is_of_one_moment(pairs: Iterable[tuple[Trail, Found | None]], began: float, ended: float) -> bool:
    """Whether no request is in a copy that was sent after the success of another one that is not in it.

    Torn conversations say nothing.
    """
    latest_inside, earliest_outside = 0.0, inf
    for trail, found in pairs:
        first = trail.acknowledged_before(began)
        shown = [first + n for n, state in enumerate(trail.states(began, ended)) if _shows(found, state)]
        for request in trail.requests[: shown[0]][-1:] if shown else ():
            latest_inside = max(latest_inside, request.began)
        for request in trail.requests[shown[-1] :][:1] if shown else ():
            earliest_outside = min(earliest_outside, request.acknowledged)
    return latest_inside <= earliest_outside


def _check_messages(counts: Counts, trail: Trail, found: Found, states: list[State]) -> None:
    first, last = states[0], states[-1]
    stored = {message.id: message for message in found.log}
    live = {id_ for id_, message in stored.items() if message.status is not Status.DELETED}
    counts.missing = len(first.parents.keys() - stored.keys()) + len((stored.keys() & last.contents.keys()) - live)
    counts.returned = len(first.deleted & live)
    expected = [(id_, parent) for id_, parent in last.parents.items() if id_ in stored]
    counts.disordered = int(expected != [(message.id, message.parent_id) for message in found.log])
    whole = live & last.contents.keys() & trail.messages.keys()
    counts.differing = sum(stored[id_] != trail.messages[id_] for id_ in whole)


def _check_thread(counts: Counts, found: Found, states: list[State]) -> None:
    """Check the head and the history against the states that have as many messages as the copy; else against all."""
    alike = [state for state in states if len(state.parents) == len(found.log)] or states
    right = [state for state in alike if state.head == found.conversation.head_id]
    counts.heads = int(not right)
    on_thread = set.intersection(*(set(state.path()) for state in right or alike))
    stored = {message.id for message in found.log if message.status is not Status.DELETED}
    counts.hidden = len((on_thread & stored) - {message.id for message in found.history})


def _shows(found: Found | None, state: State) -> bool:
    """Whether a copy of a conversation is in exactly this state."""
    if found is None or not state.exists:
        return found is None and not state.exists
    conversation = found.conversation
    deleted = {message.id for message in found.log if message.status is Status.DELETED}
    return (conversation.title, conversation.metadata, conversation.head_id, len(found.log), deleted) == (
        state.title, state.metadata, state.head, len(state.parents), state.deleted
    )  # fmt: skip
