"""What a client asks for in its headers: a stream or one reply, now or when there is an answer."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from fastapi import Request

from chatkeep.events import Place, parse_place

EVENT_STREAM = "text/event-stream"
JSON = "application/json"

MAX_HEADER_CHARS = 4_096
"""Longest Accept or Prefer that is read; a longer one is taken as absent. Browsers send some 200."""

ELEMENT = re.compile(r'(?:[^,"]|"(?:[^"\\]|\\.)*+"?)++')
"""An element of a list: commas within quotes do not end it."""

WEIGHT = re.compile(r";\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*(?:;|$)", re.IGNORECASE)


class Wishes(NamedTuple):
    """How a client wants its answer."""

    is_stream: bool
    """As server-sent events."""
    is_async: bool
    """At once, whatever there is of it."""
    last: Place | None
    """The last event of the stream that it has."""
    has_last: bool
    """Whether it has one, of this answer or not."""

    @classmethod
    def of(cls, request: Request) -> "Wishes":
        """Read the headers; what is not understood is ignored."""
        last_event_id = request.headers.get("last-event-id", "")
        return cls(
            prefers_events(", ".join(request.headers.getlist("accept"))),
            prefers_async(", ".join(request.headers.getlist("prefer"))),
            last_place(last_event_id),
            bool(last_event_id),
        )


def last_place(last_event_id: str) -> Place | None:
    """Return the place in a stream that a Last-Event-ID names; one that nothing has if it is not one of ours."""
    return (parse_place(last_event_id) or Place("", 0, 0)) if last_event_id else None


def prefers_events(accept: str) -> bool:
    """Whether events are wanted rather than JSON (RFC 9110, 12.5.1). JSON wins a tie."""
    weights = dict(_weights(accept))
    return _weight(weights, EVENT_STREAM) > _weight(weights, JSON)


def prefers_async(prefer: str) -> bool:
    """Whether a reply is wanted at once (RFC 7240, 4.1)."""
    return any(element.partition(";")[0].strip().lower() == "respond-async" for element in _elements(prefer))


def _elements(header: str) -> Iterator[str]:
    if len(header) <= MAX_HEADER_CHARS:
        yield from ELEMENT.findall(header)


def _weights(accept: str) -> Iterator[tuple[str, float]]:
    for element in _elements(accept):
        found = WEIGHT.search(element)
        yield element.partition(";")[0].strip().lower(), min(float(found[1]), 1.0) if found else 1.0


def _weight(weights: dict[str, float], media_type: str) -> float:
    """The weight of the most specific range that has the type."""
    ranges = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((weights[each] for each in ranges if each in weights), 0.0)
