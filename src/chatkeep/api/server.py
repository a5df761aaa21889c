"""The HTTP server: uvicorn in one process or several, with a graceful shutdown at SIGINT and SIGTERM."""

import asyncio
import multiprocessing
import signal
import socket
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from chatkeep.api.logs import configure
from chatkeep.settings import Settings, share_metrics
from chatkeep.store import open_store

PARENT_POLL_SECONDS = 1.0
"""How often a worker checks that its parent process is alive."""


class Server(uvicorn.Server):
    """Opens the store, serves it, and closes it after SIGINT or SIGTERM.

    uvicorn's own server raises the signal again after its shutdown, which would end the process before the store is
    closed.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(uvicorn_config(settings))
        self._settings = settings

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal arrives. Accepted writes are finished."""
        from chatkeep.api.app import create_app

        configure(self._settings.log_format, self._settings.log_level)
        options = {} if self._settings.hide_foreign is None else {"hide_foreign": self._settings.hide_foreign}
        async with open_store(self._settings.store_url, **options) as store:
            app = create_app(store, self._settings)
            self._app_shutdown = app.state.shutdown
            self.config.app = app
            watching = asyncio.create_task(self._stop_when_orphaned())
            try:
                await super().serve(sockets)
            finally:
                watching.cancel()
                await app.state.admission.aclose()

    async def _stop_when_orphaned(self) -> None:
        """Stop when the parent process is gone: a worker must not keep the port of a killed server."""
        parent = multiprocessing.parent_process()
        while parent is not None and parent.is_alive():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(PARENT_POLL_SECONDS)
        if parent is not None:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, end event streams, and wait for the other requests."""
        self._app_shutdown.begin()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Stop gracefully at the first signal, at once at the second. Restores the handlers."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Worker(Process):
    """One of several server processes."""

    def __init__(self, settings: Settings, sockets: list[socket.socket], metrics: Path) -> None:
        self._settings = settings
        self._metrics = metrics
        super().__init__(uvicorn_config(settings), sockets)

    @property
    def server(self) -> uvicorn.Server:
        """The server of this process, created in it."""
        if self._server is None:
            share_metrics(self._metrics)
            self._server = Server(self._settings)
        return self._server


class Workers(Multiprocess):
    """Starts the workers, restarts those that died, and stops all of them at SIGINT or SIGTERM."""

    def __init__(self, settings: Settings, sockets: list[socket.socket]) -> None:
        super().__init__(uvicorn_config(settings), sockets)
        self._settings = settings

    def init_processes(self) -> None:
        """Start the workers."""
        self._metrics = Path(tempfile.mkdtemp(prefix="chatkeep-metrics-"))
        for _ in range(self.processes_num):
            self.processes.append(self._start_worker())

    def keep_subprocess_alive(self) -> None:
        """Replace each worker that died or does not respond."""
        for number, process in enumerate(self.processes):
            if not self.should_exit.is_set() and not process.is_alive(self.config.timeout_worker_healthcheck):
                process.kill()
                process.join()
                self.processes[number] = self._start_worker()

    def _start_worker(self) -> Worker:
        worker = Worker(self._settings, self.sockets, self._metrics)
        worker.start()
        return worker


def uvicorn_config(settings: Settings) -> uvicorn.Config:
    """Return the configuration of uvicorn."""
    return uvicorn.Config(
        "",
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
