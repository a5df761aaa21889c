"""Server-sent events: the wire of an answer's stream, and the response that sends it."""

import asyncio
import json
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from fastapi import Response
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from chatkeep.answers.stream import Log, NotAnswering, Reader, Streamed
from chatkeep.api.body import json_bytes
from chatkeep.api.negotiation import EVENT_STREAM
from chatkeep.errors import ChatkeepError
from chatkeep.events import EventKind, Place
from chatkeep.model import Message, Status

PING = b": ping\n\n"

HEADERS = {"X-Accel-Buffering": "no"}  # nginx would collect the events

EVENTS_AT_ONCE = 64
"""Events that a stream sends before others get their turn: it may have thousands, and a client that takes them all."""


def sse(kind: str, data: bytes, place: Place | None = None) -> bytes:
    """Return an event. `data` is ASCII JSON, which has no line breaks."""
    id_ = b"" if place is None else b"id: %s\n" % str(place).encode()
    return b"event: %s\n%sdata: %s\n\n" % (kind.encode(), id_, data)


def message_event(kind: str, message: BaseModel) -> bytes:
    """Return an event with a whole message."""
    data = json_bytes(message)
    return sse(kind, data if data.isascii() else _ascii(json.loads(data)))


def _event(item: Streamed) -> bytes:
    return sse(item.kind, _ascii(item.data), item.place)


def _ascii(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


class EventStream(Response):
    """The events of an answer after a place, up to its end, and then the answer."""

    media_type = EVENT_STREAM

    def __init__(
        self,
        following: AbstractAsyncContextManager[Log],
        *,
        last: Place | None,
        ping: float,
        question: Message | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Take the log, the last event that the reader has, and the seconds after which silence is broken."""
        self.status_code = 200
        self.background = None
        self.init_headers({**HEADERS, **(headers or {})})
        self._following = following
        self._last = last
        self._ping = ping
        self._question = question
        self._sent_at = 0.0
        self._is_sending = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - as ASGI has it
        """Send the events until they end, or the client is gone."""
        self._loop = asyncio.get_running_loop()
        self._send = send
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        self._sent_at = self._loop.time()
        tasks = asyncio.create_task(self._send_all()), asyncio.create_task(_gone(receive))
        try:
            await self._watch(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            failed, _ = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(failed, Exception):
            raise failed

    async def _watch(self, *tasks: asyncio.Task[None]) -> None:
        """Wait until one of the tasks has ended, and break the silence meanwhile."""
        while True:
            silent = self._loop.time() - self._sent_at
            done, _ = await asyncio.wait(tasks, timeout=self._ping - silent, return_when=asyncio.FIRST_COMPLETED)
            if done:
                return
            if self._loop.time() - self._sent_at >= self._ping:
                if not self._is_sending:  # else the client does not read
                    await self._send({"type": "http.response.body", "body": PING, "more_body": True})
                self._sent_at = self._loop.time()

    async def _send_all(self) -> None:
        if self._question is not None:
            await self._write(message_event("user_message", self._question))
        try:
            async with self._following as log:
                await self._send_events(log)
        except NotAnswering:
            pass  # this process ends, so that the stream ends here, without `end`: the client comes back
        except ChatkeepError:
            await self._write(sse(EventKind.END, _ascii({"status": Status.DELETED})))
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_events(self, log: Log) -> None:
        async with aclosing(Reader(log).read(self._last)) as items:
            number = 0
            async for item in items:
                await self._write(_event(item))
                number += 1
                if number % EVENTS_AT_ONCE == 0:
                    await asyncio.sleep(0)
        await self._write(message_event("assistant_message", await log.ended()))

    async def _write(self, event: bytes) -> None:
        self._is_sending = True
        await self._send({"type": "http.response.body", "body": event, "more_body": True})
        self._is_sending, self._sent_at = False, self._loop.time()


async def _gone(receive: Receive) -> None:
    """Return when the client has closed the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
