"""chatkeep's side of every comparison: a store, conversations, and the message that is appended."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

from benchmarks.measure import Run, drive
from benchmarks.texts import text
from chatkeep import Message, NewConversation, NewMessage, Role, Store, open_store

OWNER = "ada"


def url(folder: Path) -> str:
    """The URL of the database in a round's folder."""
    return f"sqlite:///{folder.resolve() / 'chatkeep.db'}"


@asynccontextmanager
async def opened(folder: Path, *, search: bool, synchronous: str = "full") -> AsyncIterator[Store]:
    """A store in `folder`."""
    async with open_store(url(folder), search=search, synchronous=synchronous) as store:
        yield store


async def conversations(store: Store, count: int) -> list[UUID]:
    """New conversations of one owner."""
    made = await asyncio.gather(*(store.create_conversation(OWNER, NewConversation()) for _ in range(count)))
    return [conversation.id for conversation in made]


def message(writer: int, number: int) -> NewMessage:
    """A message as an application builds it: with an id of its own, so that it can be retried."""
    return NewMessage(id=uuid4(), role=Role.USER, content=text(writer, number))


async def append_run(folder: Path, *, writers: int, seconds: float, search: bool) -> Run:
    """Each writer appends to a conversation of its own, one message at a time, durably."""
    async with opened(folder, search=search) as store:
        ids = await conversations(store, writers)

        async def append(writer: int, number: int) -> list[Message]:
            return await store.append(OWNER, ids[writer], [message(writer, number)])

        return await drive(writers, seconds, append)
