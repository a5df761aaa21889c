"""What a server that stands in for a model provider says, and what goes wrong meanwhile."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import chain, repeat
from typing import Any, Literal, Self

Json = dict[str, Any]

Trouble = Literal["end", "cut", "reset", "error", "bad_json", "bad_stream", "hang"]
"""What happens to a stream: it ends without its last event, the connection is closed or reset, the provider says that
it failed, an event is no JSON, what comes are no events, nothing comes any more."""

Ending = Literal["stop", "length", "filter", "failed"]
"""How an answer ends: as the model wanted, at the limit of tokens, withheld by a filter, or failed (Responses and all
streams)."""


@dataclass(frozen=True)
class Call:
    """A call of a tool. The arguments are deltas of JSON, which may be malformed."""

    name: str
    arguments: Sequence[str] = ("{}",)
    id: str = "call_1"


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer of a model, or an error in place of one. Everything can be written as JSON."""

    text: Sequence[str] = ()
    """The deltas of the text."""
    repeat: int | None = 1
    """How often they come; None: for ever."""
    calls: Sequence[Call] = ()
    reasoning: Sequence[str] = ()
    """The deltas of what the model thinks first."""
    refusal: str = ""
    usage: Sequence[int] = (11, 7)
    """The tokens of the question and of the answer."""
    ending: Ending = "stop"

    first: float = 0
    """Seconds before the first byte, that of an error included."""
    pause: float = 0
    """Seconds before each delta."""
    trouble: Trouble | None = None
    at: Sequence[int] = (0,)
    """The deltas of the answer after which there is trouble, -1 for before everything: on the connection that asked,
    then on each that reads a background answer later. Later ones have none, and the background answer goes on."""

    status: int = 200
    message: str = ""
    """What an error says; without it what providers say, with the key that the client sent."""
    retry_after: float | None = None
    redirect: str | None = None
    """The URL that the client is sent to, with 307."""

    @classmethod
    def of(cls, values: Json) -> Self:
        """The answer that was written as JSON. Raises ValueError for fields that there are not."""
        if unknown := values.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"an answer has no {', '.join(sorted(unknown))}")
        return cls(**{**values, "calls": [Call(**call) for call in values.get("calls", ())]})

    @property
    def begins(self) -> bool:
        """Whether this is an answer, and no error."""
        return self.status == 200 and not self.redirect

    def deltas(self) -> Iterator[str]:
        """The deltas of the text, repetitions included."""
        times = repeat(self.text) if self.repeat is None else repeat(self.text, self.repeat)
        return chain.from_iterable(times)

    def trouble_at(self, connection: int) -> int | None:
        """The deltas after which this connection, counted from 0, has trouble; None if it has none."""
        return self.at[connection] if self.trouble and connection < len(self.at) else None


@dataclass(frozen=True)
class Request:
    """What a client sent. Its headers are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: Json
    creates: bool = False
    """Whether an answer was begun, which costs money."""


Script = Sequence[Answer] | Callable[[Request], Answer]
"""The answers to the requests that ask for one, in order, of which the last repeats; or what chooses them."""


@dataclass(frozen=True)
class Frame:
    """One event of a stream, and how many deltas the answer has had with it."""

    data: Json | str
    deltas: int
    event: str | None = None
    is_delta: bool = False

    def encoded(self) -> bytes:
        """The bytes on the wire."""
        data = self.data if isinstance(self.data, str) else json.dumps(self.data)
        return f"{f'event: {self.event}\n' if self.event else ''}data: {data}\n\n".encode()


def framed(events: Iterator[Json | str], is_delta: Callable[[Any], bool], *, named: bool) -> Iterator[Frame]:
    """Count the deltas of events, and name the events after their type."""
    deltas = 0
    for event in events:
        a_delta = is_delta(event)
        deltas += a_delta
        name = event["type"] if named and isinstance(event, dict) else None
        yield Frame(event, deltas, name, a_delta)
