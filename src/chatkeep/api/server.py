"""The HTTP server: uvicorn in one process or several, with a graceful shutdown at SIGINT and SIGTERM."""

import asyncio
import gc
import logging
import multiprocessing
import resource
import signal
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast, override

import uvicorn
from starlette.types import ASGIApp
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from chatkeep.answers.runner import TurnRunner
from chatkeep.api.logs import configure
from chatkeep.api.protocol import Config, watch
from chatkeep.settings import Settings, share_metrics
from chatkeep.store import Store, open_store

if TYPE_CHECKING:
    from fastapi import FastAPI
    from uvicorn._types import ASGIApplication

    from chatkeep.retrieval.embedding import Embedders

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 0.5
"""How long closing the store may take at least, also if requests took all the time of the shutdown."""

LAST_WRITE_SECONDS = 2.0
"""Time that a client may take nothing of its response while the server ends."""

PARENT_POLL_SECONDS = 1.0
"""How often a worker checks that its parent process is alive."""


RESERVED_FILES = 128
"""Files that may be open besides connections: the database, its connections, logs."""


class HttpServer(uvicorn.Server):
    """uvicorn, with limits for what every connection costs (protocol.py)."""

    config: Config

    def __init__(self, settings: Settings, app: ASGIApp | None = None) -> None:
        super().__init__(uvicorn_config(settings))
        if app is not None:
            self.config.app = cast("ASGIApplication", app)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve the application until a signal arrives, and finish the requests that have come."""
        from chatkeep.api.app import running

        watching = asyncio.create_task(watch(self.server_state))
        try:
            async with running(self._app, drain=0):  # what there is to drain is drained by the shutdown
                await super().serve(sockets)
        finally:
            watching.cancel()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, end event streams, and wait for the other requests, and for the answers."""
        self._app.state.shutdown.begin()
        self.config.write_seconds = min(self.config.write_seconds, LAST_WRITE_SECONDS)
        draining = asyncio.create_task(self._turns.aclose(self.config.drain_seconds), name="chatkeep-drain")
        await super().shutdown(sockets)
        if self.force_exit:
            draining.cancel()
        await asyncio.wait([draining])

    @property
    def _app(self) -> "FastAPI":
        return cast("FastAPI", self.config.app)

    @property
    def _turns(self) -> TurnRunner:
        turns: TurnRunner = self._app.state.turns
        return turns


class Server(HttpServer):
    """Opens the store, serves it, and closes it after SIGINT or SIGTERM.

    uvicorn's own server raises the signal again after its shutdown, which would end the process before the store is
    closed.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._stop_by = float("inf")

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until a signal arrives. Accepted writes are finished."""
        from chatkeep.api.app import create_app

        configure(self._settings.log_format, self._settings.log_level)
        self._allow_connections()
        async with self._opened_store() as store:
            self.config.app = create_app(store, self._settings, embedders=embedders_of(self._settings))
            gc.freeze()  # the program itself is no garbage: to go through it once takes the event loop 90 ms
            watching = asyncio.create_task(self._stop_when_orphaned())
            try:
                await super().serve(sockets)
            finally:
                watching.cancel()

    @asynccontextmanager
    async def _opened_store(self) -> AsyncIterator[Store]:
        """The store, closed within what is left of the time of the shutdown."""
        options = {} if self._settings.hide_foreign is None else {"hide_foreign": self._settings.hide_foreign}
        store = await open_store(self._settings.store_url, **options)
        try:
            yield store
        finally:
            loop = asyncio.get_running_loop()
            try:
                async with asyncio.timeout_at(max(self._stop_by, loop.time() + CLOSE_SECONDS)):
                    await store.aclose()
            except TimeoutError:
                logger.warning(
                    "the store was closed before all writes were finished, as the time of the shutdown is over"
                )

    async def _stop_when_orphaned(self) -> None:
        """Stop when the parent process is gone: a worker must not keep the port of a killed server."""
        parent = multiprocessing.parent_process()
        while parent is not None and parent.is_alive():  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(PARENT_POLL_SECONDS)
        if parent is not None:
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, end event streams, and wait for the other requests."""
        self._stop_by = asyncio.get_running_loop().time() + self._settings.shutdown_seconds
        await super().shutdown(sockets)

    def _allow_connections(self) -> None:
        """Let this process open as many files as it may, and take as many connections as that allows."""
        files = raise_open_files()
        self.config.max_connections = max(1, min(self._settings.max_connections, files - RESERVED_FILES))
        logger.info("at most %d connections, as %d files may be open", self.config.max_connections, files)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        """Stop gracefully at the first signal, at once at the second. Restores the handlers."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def embedders_of(settings: Settings) -> "Embedders | None":
    """Return what makes the vectors of a server. Raises InvalidInput for an embedder that this machine cannot have."""
    if settings.embedder == "none":
        return None
    from chatkeep.retrieval.embedding import Embedders

    return Embedders.named(settings.embedder, settings.embed_dir)


def raise_open_files() -> int:
    """Raise the limit of open files of this process as far as it may be raised, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # macOS has a lower limit, which it does not tell
        logger.warning("the limit of %d open files could not be raised: %s", soft, error)
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


STARTING_SECONDS = 30.0
"""For how long a new worker need not answer its supervisor. Importing the application takes more than uvicorn's 5 s on
a busy machine: such workers were killed and started for ever."""


class Worker(Process):
    """One of several server processes."""

    def __init__(self, settings: Settings, sockets: list[socket.socket], metrics: Path) -> None:
        self._settings = settings
        self._metrics = metrics
        self._created = time.monotonic()
        super().__init__(uvicorn_config(settings), sockets)

    @override
    def is_alive(self, timeout: float = 5) -> bool:
        """Whether it lives and, unless it may be starting, answers within a time in seconds."""
        if time.monotonic() - self._created < STARTING_SECONDS:
            return self.process.is_alive()
        return super().is_alive(timeout)

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


def uvicorn_config(settings: Settings) -> Config:
    """Return the configuration of uvicorn."""
    return Config(
        settings,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        log_config=None,
        access_log=False,
        lifespan="off",
        server_header=False,
        proxy_headers=False,  # uvicorn would believe any client on loopback; see client_address
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
