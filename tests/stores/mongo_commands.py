"""The commands that stores send to MongoDB, and commands that its server is made to fail."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
from pymongo import monitoring
from pymongo.errors import OperationFailure

from servers.mongo import mongo_databases

type Commands = list[Mapping[str, Any]]


class Listener(monitoring.CommandListener):
    """Remembers the commands of every client that is made after this module was imported, while it is on."""

    def __init__(self) -> None:
        self.seen: Commands | None = None

    def started(self, event: monitoring.CommandStartedEvent) -> None:
        """A command is sent."""
        if self.seen is not None:
            self.seen.append(event.command)

    def succeeded(self, event: monitoring.CommandSucceededEvent) -> None:
        """It was answered."""

    def failed(self, event: monitoring.CommandFailedEvent) -> None:
        """It was refused."""


LISTENER = Listener()
monitoring.register(LISTENER)


@contextmanager
def commands_sent() -> Iterator[Commands]:
    """Every command that the stores of a test send, in order."""
    LISTENER.seen = []
    yield LISTENER.seen
    LISTENER.seen = None


type Failing = Callable[..., AbstractContextManager[None]]


@contextmanager
def failing_commands() -> Iterator[Failing]:
    """Make the server fail commands, as MongoDB's own tests do: failCommand, which needs enableTestCommands.

    The emulator takes it; only a server of somebody's own may not, and then the test says so.
    """
    admin = mongo_databases().client.admin

    def switch(mode: object, **data: object) -> None:
        admin.command({"configureFailPoint": "failCommand", "mode": mode, **({"data": data} if data else {})})

    @contextmanager
    def failing(mode: object, *commands: str, **data: object) -> Iterator[None]:
        switch(mode, failCommands=list(commands), **data)
        try:
            yield
        finally:
            switch("off")

    try:
        switch("off")
    except OperationFailure:
        pytest.skip("this server takes no failCommand: start it with --setParameter enableTestCommands=1")
    yield failing
