"""How the answers of models are sent: in streams of events, with the trouble that the script wants."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from servers.apps import end_connection
from servers.model_script import Answer, Frame, Json

LEAST_PAUSE = 0.001
"""Seconds between the deltas of a background answer that never ends, as nobody's reading slows it down."""


async def paced(frames: Iterator[Frame], pause: float) -> AsyncGenerator[Frame]:
    """The frames as they come, with a pause before each delta."""
    for frame in frames:
        if frame.is_delta:
            await asyncio.sleep(pause)
        yield frame


@dataclass
class Sending:
    """The frames of an answer on their way to a client."""

    answer: Answer
    frames: AsyncGenerator[Frame]
    failure: Callable[[Frame | None], Frame]
    """What the provider says if it fails after a frame."""
    transport: Any
    connection: int = 0
    """How many connections have read the answer before."""
    last: Frame | None = None
    """What was sent last."""

    async def data(self) -> AsyncGenerator[bytes]:
        """The bytes, until the end or the trouble that this connection is to have."""
        at = self.answer.trouble_at(self.connection)
        async for frame in self.frames:
            if at == -1 or (at == 0 and frame.is_delta):
                break
            self.last = frame
            yield frame.encoded()
            if frame.is_delta and frame.deltas == at:
                break
        else:
            return
        async for data in self._trouble():
            yield data

    async def _trouble(self) -> AsyncGenerator[bytes]:
        match self.answer.trouble:
            case "error":
                yield self.failure(self.last).encoded()
            case "bad_json":
                yield Frame('{"type": "cont', 0, self.last.event if self.last else None).encoded()
            case "bad_stream":
                yield b"<html>\xff\xfe<h1>502 Bad Gateway</h1></html>\r\n\r\n"
            case "cut" | "reset" | "hang":
                await asyncio.sleep(0.02)  # the client reads what was sent before
                if self.answer.trouble != "hang":
                    end_connection(self.transport, reset=self.answer.trouble == "reset")
                await asyncio.Event().wait()  # until the client has gone


@dataclass
class Job:
    """A background answer, which goes on whether anybody reads it or not."""

    answer: Answer
    response: Json
    """The response as it is now."""
    frames: list[Frame] = field(default_factory=list)
    """Those made so far: the index is the `sequence_number`."""
    connections: int = 0
    """How many have read it."""
    ended: bool = False
    _grown: asyncio.Condition = field(default_factory=asyncio.Condition)

    def start(self, frames: Iterator[Frame]) -> None:
        """Begin to make it."""
        self._task = asyncio.create_task(self._make(frames))

    def stop(self) -> None:
        """Make no more of it."""
        self._task.cancel()

    async def cancel(self) -> None:
        """Make no more of it, and end the streams of those who read it."""
        if not self.ended:
            self.stop()
            self.response = self.response | {"status": "cancelled"}
            await self._tell(ended=True)

    async def read(self, after: int) -> AsyncGenerator[Frame]:
        """The frames after a `sequence_number`, as they are made."""
        number = after + 1
        while await self._has(number):
            yield self.frames[number]
            number += 1

    async def _has(self, number: int) -> bool:
        async with self._grown:
            await self._grown.wait_for(partial(self._is_known, number))
        return number < len(self.frames)

    def _is_known(self, number: int) -> bool:
        return self.ended or number < len(self.frames)

    async def _make(self, frames: Iterator[Frame]) -> None:
        endless = self.answer.repeat is None
        async for frame in paced(frames, max(self.answer.pause, LEAST_PAUSE) if endless else self.answer.pause):
            self.frames.append(frame)
            if isinstance(frame.data, dict) and "response" in frame.data:
                self.response = frame.data["response"]
            await self._tell(ended=False)
        await self._tell(ended=True)

    async def _tell(self, *, ended: bool) -> None:
        async with self._grown:
            self.ended = ended
            self._grown.notify_all()
