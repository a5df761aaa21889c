"""The server of the HTTP bench, in a process of its own: `python -m benchmarks.http_server URL [forget]`.

It prints its port. With `forget`, the same application answers the same way and stores no message.
"""

import socket
import sys
from collections.abc import Sequence
from uuid import UUID

import uvicorn
import uvloop

from chatkeep import Message, NewMessage, Store, open_store
from chatkeep.api.app import create_app
from chatkeep.model import new_id, now, valid_id, valid_owner
from chatkeep.settings import Settings
from chatkeep.stores.append import check
from chatkeep.stores.sqlite import SqliteStore


class ForgetfulStore(SqliteStore):
    """Keeps conversations; checks and answers an append as a store does, and stores nothing."""

    async def append(
        self,
        owner: str,
        conversation_id: UUID | str,
        messages: Sequence[NewMessage],
        *,
        expected_seq: int | None = None,  # noqa: ARG002 - the port's
    ) -> list[Message]:
        valid_owner(owner)
        check(messages, self._options.max_content_chars)
        return [_answer(valid_id(conversation_id), message) for message in messages]


def _answer(conversation_id: UUID, message: NewMessage) -> Message:
    return Message.model_construct(
        id=message.id or new_id(),
        conversation_id=conversation_id,
        seq=1,
        parent_id=None,
        role=message.role,
        content=message.content,
        status=message.status,
        sources=message.sources,
        metadata=message.metadata,
        external_id=message.external_id,
        sent_at=message.sent_at,
        created_at=now(),
    )


async def _serve(url: str, *, forget: bool) -> None:
    async with open_store(url) as store:
        if forget:
            store.__class__ = ForgetfulStore
        with socket.create_server(("127.0.0.1", 0)) as listening:
            print(listening.getsockname()[1], flush=True)
            await _server(store, url).serve(sockets=[listening])


def _server(store: Store, url: str) -> uvicorn.Server:
    app = create_app(store, Settings(database_url=url))
    return uvicorn.Server(uvicorn.Config(app, http="httptools", access_log=False, log_level="warning"))


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], forget="forget" in sys.argv[2:]))
