"""Long texts and large messages: the work on them is done in a thread, while the event loop serves others."""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Concatenate, Protocol

LONG_CHARS = 4_096
"""Longest text in characters whose words are found on the event loop, which takes about 2 ms."""

LONG_ASCII_CHARS = 32_768
"""As LONG_CHARS, of ASCII, which is split in a tenth of the time."""


class HasContent(Protocol):
    """A message, or how an answer ended."""

    @property
    def content(self) -> str:
        """Its text."""


def is_long(text: str) -> bool:
    """Whether finding the words of `text` would keep the event loop from others."""
    return len(text) > LONG_CHARS and (len(text) > LONG_ASCII_CHARS or not text.isascii())


class LongTexts:
    """A thread for work on long texts: one, so that the event loop waits for one at most when both want to run."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "chatkeep-long-texts")

    async def run[T, **Rest](
        self, work: Callable[Concatenate[str, Rest], T], text: str, *rest: Rest.args, **options: Rest.kwargs
    ) -> T:
        """Return `work` of a text, in the thread if it is long. Work that nobody waits for any more is not begun."""
        if not is_long(text):
            return work(text, *rest, **options)
        return await asyncio.get_running_loop().run_in_executor(self._thread, lambda: work(text, *rest, **options))

    async def apart[T](self, work: Callable[[], T]) -> T:
        """Return what `work` returns, in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def each[T](self, work: Callable[[str], T], messages: Iterable[HasContent]) -> dict[str, T]:
        """Return `work` of the content of every message that is long, by content."""
        return {text: await self.run(work, text) for message in messages if is_long(text := message.content)}

    def close(self) -> None:
        """End the thread, after what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)
