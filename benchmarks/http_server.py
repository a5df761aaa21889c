"""The server of the HTTP bench, in a process of its own: `python -m benchmarks.http_server URL [forget]`.

It prints its port. With `forget`, the same application answers the same way and stores no message.
"""

import socket
import sys
from collections.abc import Sequence
from uuid import UUID

import uvloop

from benchmarks.texts import text
from chatkeep import Message, NewMessage, Page, Role, Store, open_store
from chatkeep.api.app import create_app
from chatkeep.api.logs import configure
from chatkeep.api.server import HttpServer
from chatkeep.ids import new_id, valid_id
from chatkeep.options import StoreOptions
from chatkeep.settings import Settings
from chatkeep.stores.append import as_stored, check, listed
from chatkeep.values import MAX_METADATA, now, valid_owner


def forget(store: Store) -> None:
    """Let a store check and answer an append as it does, and store nothing; a history is what 50 would have left."""
    histories: dict[UUID, Page[Message]] = {}

    async def append(
        owner: str, conversation_id: UUID | str, messages: Sequence[NewMessage] | NewMessage, **_: object
    ) -> list[Message]:
        valid_owner(owner)
        messages = listed(messages)
        check(messages, StoreOptions(), MAX_METADATA)
        return [_answer(valid_id(conversation_id), message) for message in messages]

    async def history(owner: str, conversation_id: UUID | str, **_: object) -> Page[Message]:
        valid_owner(owner)
        id_ = valid_id(conversation_id)
        if id_ not in histories:
            said = [NewMessage(role=Role.USER, content=text(0, number)) for number in range(50)]
            histories[id_] = Page(items=[_answer(id_, message) for message in said])
        return histories[id_]

    store.append, store.history = append, history  # type: ignore[method-assign]


def _answer(conversation_id: UUID, message: NewMessage) -> Message:
    return as_stored(message, message.id or new_id(), conversation_id, 1, None, now())


async def _serve(url: str, *, forgets: bool) -> None:
    async with open_store(url) as store:
        if forgets:
            forget(store)
        with socket.create_server(("127.0.0.1", 0)) as listening:
            print(listening.getsockname()[1], flush=True)
            await _server(store, url).serve(sockets=[listening])


def _server(store: Store, url: str) -> HttpServer:
    settings = Settings(database_url=url, keep_alive_seconds=300, log_level="warning")
    configure(settings.log_format, settings.log_level)
    return HttpServer(settings, create_app(store, settings))


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], forgets="forget" in sys.argv[2:]))
