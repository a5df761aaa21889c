"""Short forms of messages, and slow but obvious answers to compare a store's with."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from chatkeep.model import Conversation, Message, NewMessage, Role, SearchHit, Status
from chatkeep.store import Store


def user(content: str, **values: Any) -> NewMessage:
    """A user's message."""
    return NewMessage(role=Role.USER, content=content, **values)


def assistant(content: str, **values: Any) -> NewMessage:
    """An assistant's message."""
    return NewMessage(role=Role.ASSISTANT, content=content, **values)


def numbered(count: int, prefix: str = "turn") -> list[NewMessage]:
    """Messages with ids and contents that differ."""
    return [assistant(f"{prefix} {number}", id=uuid4()) for number in range(count)]


def someone() -> str:
    """An owner whom nobody else uses."""
    return f"owner-{uuid4()}"


async def whole_log(store: Store, owner: str, conversation_id: UUID) -> list[Message]:
    """Everything that was appended to a conversation."""
    messages: list[Message] = []
    while part := await store.log(owner, conversation_id, after=len(messages)):
        messages += part
    return messages


async def whole_history(store: Store, owner: str, conversation_id: UUID, **arguments: Any) -> list[Message]:
    """All pages of a history, joined by cursor, oldest message first."""
    page = await store.history(owner, conversation_id, **arguments)
    messages = page.items
    while page.next:
        page = await store.history(owner, conversation_id, cursor=page.next, **arguments)
        messages = messages + page.items if arguments.get("order") == "asc" else page.items + messages
    return messages


async def whole_list(store: Store, owner: str, **arguments: Any) -> list[Conversation]:
    """All pages of an owner's conversations, joined by cursor."""
    page = await store.list_conversations(owner, **arguments)
    conversations = page.items
    while page.next:
        page = await store.list_conversations(owner, cursor=page.next, **arguments)
        conversations = conversations + page.items
    return conversations


async def whole_search(store: Store, owner: str, query: str, limit: int = 20) -> list[SearchHit]:
    """All pages of a search, joined by cursor."""
    page = await store.search_messages(owner, query, limit=limit)
    hits = page.items
    while page.next:
        page = await store.search_messages(owner, query, limit=limit, cursor=page.next)
        hits = hits + page.items
    return hits


async def found(store: Store, owner: str, query: str) -> set[str]:
    """The contents of all messages that a search finds."""
    return {hit.message.content for hit in await whole_search(store, owner, query)}


def path_to(leaf: UUID | None, log: Sequence[Message]) -> list[Message]:
    """The messages from the root to `leaf`, found by following parents one by one, without deleted ones."""
    by_id = {message.id: message for message in log}
    path: list[Message] = []
    while leaf is not None:
        path.append(by_id[leaf])
        leaf = by_id[leaf].parent_id
    return [message for message in reversed(path) if message.status != Status.DELETED]


def siblings_of(message: Message, log: Sequence[Message]) -> list[Message]:
    """The messages that follow the same parent, found by looking at every message."""
    return [m for m in log if m.parent_id == message.parent_id and m.status != Status.DELETED]


def seqs(messages: Sequence[Message]) -> list[int]:
    """The seqs of messages."""
    return [message.seq for message in messages]


def contents(messages: Sequence[Message]) -> list[str]:
    """The contents of messages."""
    return [message.content for message in messages]


def dense(count: int) -> list[int]:
    """1, 2, 3 … count."""
    return list(range(1, count + 1))


@asynccontextmanager
async def others_appending(store: Store, owner: str, conversation_id: UUID, writers: int = 3) -> AsyncIterator[None]:
    """Other tasks append to a conversation, without a pause, as long as the block runs."""
    done = asyncio.Event()

    async def write() -> None:
        while not done.is_set():
            await store.append(owner, conversation_id, [assistant("meanwhile")])
            await asyncio.sleep(0)

    async with asyncio.TaskGroup() as group:
        for _ in range(writers):
            group.create_task(write())
        try:
            yield
        finally:
            done.set()
