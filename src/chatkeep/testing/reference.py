"""Reads that follow every page, reference results that are slow but obvious, and concurrent writers."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from chatkeep.model import Conversation, Message, SearchHit, Status
from chatkeep.store import Store
from chatkeep.testing.messages import assistant


async def whole_log(store: Store, owner: str, conversation_id: UUID) -> list[Message]:
    """Return all messages of a conversation, on all branches."""
    messages: list[Message] = []
    while part := await store.log(owner, conversation_id, after=len(messages)):
        messages += part
    return messages


async def whole_history(store: Store, owner: str, conversation_id: UUID, **arguments: Any) -> list[Message]:
    """Return all pages of a history, followed by cursor, oldest message first."""
    page = await store.history(owner, conversation_id, **arguments)
    messages = page.items
    while page.next:
        page = await store.history(owner, conversation_id, cursor=page.next, **arguments)
        messages = messages + page.items if arguments.get("order") == "asc" else page.items + messages
    return messages


async def whole_list(store: Store, owner: str, **arguments: Any) -> list[Conversation]:
    """Return all pages of an owner's conversations, followed by cursor."""
    page = await store.list_conversations(owner, **arguments)
    conversations = page.items
    while page.next:
        page = await store.list_conversations(owner, cursor=page.next, **arguments)
        conversations = conversations + page.items
    return conversations


async def whole_siblings(
    store: Store, owner: str, conversation_id: UUID, message_id: UUID | str, limit: int = 50
) -> list[Message]:
    """Return all pages of a message's siblings, followed by cursor."""
    page = await store.siblings(owner, conversation_id, message_id, limit=limit)
    messages = page.items
    while page.next:
        page = await store.siblings(owner, conversation_id, message_id, limit=limit, cursor=page.next)
        messages = messages + page.items
    return messages


async def whole_search(
    store: Store, owner: str, query: str, limit: int = 20, *, conversation_id: UUID | str | None = None
) -> list[SearchHit]:
    """Return all pages of a search, followed by cursor."""
    page = await store.search_messages(owner, query, conversation_id=conversation_id, limit=limit)
    hits = page.items
    while page.next:
        page = await store.search_messages(owner, query, conversation_id=conversation_id, limit=limit, cursor=page.next)
        hits = hits + page.items
    return hits


async def found(store: Store, owner: str, query: str) -> set[str]:
    """Return the contents of all hits of a search."""
    return {hit.message.content for hit in await whole_search(store, owner, query)}


def selected(
    conversations: Iterable[Conversation],
    *,
    context_id: str | None = None,
    project_id: UUID | None = None,
    external_id: str | None = None,
    labels: Sequence[str] = (),
    updated_after: datetime | None = None,
    updated_before: datetime | None = None,
) -> list[Conversation]:
    """Return the conversations that a list with these arguments has, by looking at every one."""
    return [
        c
        for c in conversations
        if context_id in (None, c.context_id)
        and project_id in (None, c.project_id)
        and external_id in (None, c.external_id)
        and all((label[1:] not in c.labels) if label.startswith("!") else (label in c.labels) for label in labels)
        and (updated_after is None or c.updated_at > updated_after)
        and (updated_before is None or c.updated_at < updated_before)
    ]


def by_time(conversations: Iterable[Conversation]) -> list[Conversation]:
    """Return conversations in the order `updated`, the last one first."""
    return sorted(conversations, key=lambda c: (c.updated_at, c.id), reverse=True)


async def reads_of(store: Store, owner: str, conversation_id: UUID, message_id: UUID) -> list[Message]:
    """Return one message by every read of the port that finds messages without a query."""
    pages = (
        await whole_history(store, owner, conversation_id, leaf=message_id, limit=3),
        await whole_history(store, owner, conversation_id, leaf=message_id, order="asc", limit=3),
        await whole_log(store, owner, conversation_id),
        await whole_siblings(store, owner, conversation_id, message_id),
    )
    found = [next(message for message in page if message.id == message_id) for page in pages]
    return [await store.get_message(owner, conversation_id, message_id), *found]


def path_to(leaf: UUID | None, log: Sequence[Message]) -> list[Message]:
    """Return the path from the root to `leaf` without deleted messages, by following parents one by one."""
    by_id = {message.id: message for message in log}
    path: list[Message] = []
    while leaf is not None:
        path.append(by_id[leaf])
        leaf = by_id[leaf].parent_id
    return [message for message in reversed(path) if message.status != Status.DELETED]


def siblings_of(message: Message, log: Sequence[Message]) -> list[Message]:
    """Return the messages with the same parent, by looking at every message."""
    return [m for m in log if m.parent_id == message.parent_id and m.status != Status.DELETED]


@asynccontextmanager
async def others_appending(store: Store, owner: str, conversation_id: UUID, writers: int = 3) -> AsyncIterator[None]:
    """Append to a conversation from other tasks, without a pause, while the block runs."""
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
