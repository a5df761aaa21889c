"""What a client makes of an answer's stream."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import httpx2

EVENT_STREAM = {"Accept": "text/event-stream"}


class Event(NamedTuple):
    """An event as it arrived."""

    kind: str
    id: str | None
    data: Any


def parsed(text: str) -> list[Event]:
    """The events in a text that ends with one; comments and `retry` are left out."""
    assert text.isascii()
    assert text.endswith("\n\n") or not text
    blocks = (dict(line.split(": ", 1) for line in block.split("\n")) for block in text.split("\n\n") if block)
    return [Event(block["event"], block.get("id"), json.loads(block["data"])) for block in blocks if "event" in block]


async def arriving(reply: httpx2.Response) -> AsyncIterator[Event]:
    """The events of a response, as they arrive."""
    rest = ""
    async for part in reply.aiter_text():
        *blocks, rest = (rest + part).split("\n\n")
        for event in parsed("".join(f"{block}\n\n" for block in blocks)):
            yield event


async def read(
    client: httpx2.AsyncClient,
    method: str,
    url: str,
    *,
    most: int | None = None,
    until: str | None = None,
    **options: Any,
) -> list[Event]:
    """The events of a stream: at most so many, or until their text is this; then the connection is closed."""
    found: list[Event] = []
    async with client.stream(method, url, **options) as reply:
        assert reply.status_code == 200, await reply.aread()
        assert reply.headers["content-type"].startswith("text/event-stream")
        async for event in arriving(reply):
            found.append(event)
            if len(found) == most or text_of(found) == until:
                break
    return found


def text_of(events: list[Event]) -> str:
    """The text that the events have."""
    return "".join(event.data["text"] for event in events if event.kind == "text")


def kinds(events: list[Event]) -> list[str]:
    """The kinds of the events; of several of a kind, one after the other, the first."""
    found = [event.kind for event in events]
    return [kind for kind, before in zip(found, [None, *found], strict=False) if kind != before]
