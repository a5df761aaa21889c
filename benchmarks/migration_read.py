"""Read a database through a chatkeep: `PYTHON migration_read.py URL [EVERY]`, the owners as JSON on its input.

It runs in the environment of any commit, imports nothing but that commit's chatkeep, and prints a line for each
conversation: owner, id, how many messages, and a hash. The hash is of all fields that every commit has: of the
conversation, of its log, and of the newest part of its history. EVERY is 10 for a tenth of the conversations. The
database is not migrated. Last come hashes of what searches find: they differ where the rules of words do.
"""

import asyncio
import hashlib
import json
import sys
from typing import Any

CONVERSATION = ("id", "owner_id", "title", "context_id", "external_id", "metadata", "last_seq", "head_id",
                "created_at", "updated_at")  # fmt: skip
MESSAGE = ("id", "conversation_id", "seq", "parent_id", "role", "content", "status", "sources", "metadata",
           "external_id", "sent_at", "created_at")  # fmt: skip
QUERIES = ("kalo", "miter", "图书", "soso")
SEARCHING = 20
"""One owner of so many searches, for every query; not the first ones, who have the most."""

PAGE = 1_000
READERS = 4


def values(record: Any, names: tuple[str, ...]) -> list[Any]:
    """The values of a record, as JSON has them."""
    found = record.model_dump(mode="json", include=set(names))
    return [found[name] for name in names]


def digest(lines: list[Any]) -> str:
    """A hash of JSON values."""
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


async def pages(read: Any, **arguments: Any) -> Any:
    """The items of all pages."""
    cursor = None
    while True:
        page = await read(limit=PAGE, cursor=cursor, **arguments)
        for item in page.items:
            yield item
        cursor = page.next
        if cursor is None:
            return


async def conversation(store: Any, owner: str, found: Any) -> str:
    """The line of a conversation."""
    lines, last = [values(found, CONVERSATION)], 0
    while log := await store.log(owner, found.id, after=last, limit=PAGE):
        lines += [values(message, MESSAGE) for message in log]
        last = log[-1].seq
    history = await store.history(owner, found.id, limit=PAGE)
    lines.append([message.seq for message in history.items[-100:]])  # a page may end earlier in another commit
    return f"{owner} {found.id} {len(lines) - 2} {digest(lines)}"


async def read(store: Any, owner: str, every: int) -> None:
    """Print the lines of an owner."""
    async for found in pages(lambda **given: store.list_conversations(owner, order="id", **given)):
        if found.id.int % every == 0:
            print(await conversation(store, owner, found))


async def search(store: Any, owner: str) -> None:
    """Print what searches of an owner find."""
    for query in QUERIES:
        hits = [
            str(hit.message.id)
            async for hit in pages(lambda **given: store.search_messages(owner, **given), query=query)
        ]
        print(f"{owner} search:{query} {len(hits)} {digest(sorted(hits))}")


async def main(url: str, every: int) -> None:
    """Read what all owners have."""
    from chatkeep import open_store

    owners = json.load(sys.stdin)
    rest = iter(owners)
    async with open_store(url, migrate=False) as store, asyncio.TaskGroup() as group:

        async def reader() -> None:
            for owner in rest:
                await read(store, owner, every)

        for _ in range(READERS):
            group.create_task(reader())
    async with open_store(url, migrate=False) as store:
        for owner in owners[len(owners) // SEARCHING :: SEARCHING]:
            await search(store, owner)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1))
