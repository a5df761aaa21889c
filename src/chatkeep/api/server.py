"""The HTTP server: uvicorn, ended by a signal and not with it."""

import signal
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn


class Server(uvicorn.Server):
    """A server that stops at SIGINT or SIGTERM and lets its caller go on, to close the store.

    uvicorn itself raises the signal again when it has stopped, and the process would end there.
    """

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Stop gracefully at the first signal, at once at the second; restore the handlers afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
