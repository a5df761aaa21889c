"""The recorder for a program without an event loop."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

from chatkeep.recorder.recorder import Recorder
from chatkeep.store import open_store
from chatkeep.stores.process import PROCESS


@contextmanager
def recording(url: str, journal: Path | str, **options: Any) -> Iterator[Recorder]:
    """Open a store and a recorder; the event loop for them runs in a thread of its own.

        with recording("sqlite:///chat.db", journal="voice.journal") as recorder:
            recorder.record("ada", conversation_id, "user", "How hot should tea be?")

    Options are those of `Recorder`. What is recorded is stored when the block ends, or stays in the journal.
    """
    forks = PROCESS.forks
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="chatkeep-recorder", daemon=True)
    thread.start()
    opened = _opened(url, journal, options)
    try:
        yield asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()
    finally:
        if PROCESS.forks == forks:  # a forked child has no thread that would do it
            asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@asynccontextmanager
async def _opened(url: str, journal: Path | str, options: Mapping[str, Any]) -> AsyncIterator[Recorder]:
    async with open_store(url) as store, Recorder(store, journal, **options) as recorder:
        yield recorder
