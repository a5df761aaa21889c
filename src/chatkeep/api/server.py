"""The HTTP server: uvicorn, in one process or several, ended by a signal and not with it."""

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

PARENT_SECONDS = 1.0
"""How often a worker looks whether the process that started it is still there."""


class Server(uvicorn.Server):
    """A server that opens the store, serves it, and closes it when SIGINT or SIGTERM has ended the server.

    uvicorn itself raises the signal again when it has stopped, and the process would end there.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(config_of(settings))
        self._settings = settings

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal comes. Writes that were taken are finished."""
        from chatkeep.api.app import create_app

        configure(self._settings.log_format, self._settings.log_level)
        hidden = {} if self._settings.hide_foreign is None else {"hide_foreign": self._settings.hide_foreign}
        async with open_store(self._settings.store_url, **hidden) as store:
            app = create_app(store, self._settings)
            self._stopping = app.state.stopping
            self.config.app = app
            watching = asyncio.create_task(self._end_when_left_alone())
            try:
                await super().serve(sockets)
            finally:
                watching.cancel()
                await app.state.door.aclose()

    async def _end_when_left_alone(self) -> None:
        """Stop when the process that started this one is gone: a worker must not keep the port of a killed server."""
        parent = multiprocessing.parent_process()
        while parent is not None and parent.is_alive():  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(PARENT_SECONDS)
        if parent is not None:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse what still comes, end what would not end, and wait for the rest."""
        self._stopping.begin()
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Stop gracefully at the first signal, at once at the second; restore the handlers afterwards."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Worker(Process):
    """One of several processes that serve."""

    def __init__(self, settings: Settings, sockets: list[socket.socket], metrics: Path) -> None:
        self._settings = settings
        self._metrics = metrics
        super().__init__(config_of(settings), sockets)

    @property
    def server(self) -> uvicorn.Server:
        """The server of this process, made in it."""
        if self._server is None:
            share_metrics(self._metrics)
            self._server = Server(self._settings)
        return self._server


class Workers(Multiprocess):
    """Starts workers, starts one anew that died, and ends them all at SIGINT or SIGTERM."""

    def __init__(self, settings: Settings, sockets: list[socket.socket]) -> None:
        super().__init__(config_of(settings), sockets)
        self._settings = settings

    def init_processes(self) -> None:
        """Start the workers."""
        self._metrics = Path(tempfile.mkdtemp(prefix="chatkeep-metrics-"))
        for _ in range(self.processes_num):
            self.processes.append(self._started())

    def keep_subprocess_alive(self) -> None:
        """Start a worker in place of each that died or does not answer."""
        for number, process in enumerate(self.processes):
            if not self.should_exit.is_set() and not process.is_alive(self.config.timeout_worker_healthcheck):
                process.kill()
                process.join()
                self.processes[number] = self._started()

    def _started(self) -> Worker:
        worker = Worker(self._settings, self.sockets, self._metrics)
        worker.start()
        return worker


def config_of(settings: Settings) -> uvicorn.Config:
    """uvicorn's configuration."""
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
