"""Fill a database for the migration drill: `PYTHON migration_fill.py URL MESSAGES [SECONDS]`.

It runs in the environment of the commit whose database is migrated, and so imports nothing but that commit's chatkeep.
The last line of its output is JSON: the owners, and how many conversations and messages were written until the number
or the time was reached. The first half is written with the search index off and indexed afterwards, as after an import;
the second half with it on; a last hundredth is left unindexed.
"""

import asyncio
import hashlib
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import accumulate, count, islice
from typing import Any, NamedTuple
from uuid import UUID, uuid5

NAMESPACE = UUID("00000000-0000-7000-8000-00000000d411")
OWNERS = 200
WRITERS = 16
BATCH = 500
"""Most messages of one append."""

LONG = 50
"""One conversation has this fraction of all messages."""

BEGAN = datetime(2025, 1, 1, 8, 0, 0, 250_001, tzinfo=UTC)
SYLLABLES = ("ka", "lo", "mi", "ter", "an", "so", "vel", "qu", "ri", "dun", "é", "ß", "图", "书", "na", "pe")
VOCABULARY = ["".join(random.Random(number).choices(SYLLABLES, k=2 + number % 3)) for number in range(5_000)]
FREQUENCIES = list(accumulate(1 / (10 + number) for number in range(len(VOCABULARY))))


class Shape(NamedTuple):
    """A conversation to write."""

    number: int
    length: int

    @property
    def id(self) -> UUID:
        """Its id."""
        return uuid5(NAMESPACE, str(self.number))

    @property
    def owner(self) -> str:
        """Its owner: the first ones have more than the last ones."""
        return owner(int(OWNERS * random.Random(f"owner {self.number}").random() ** 2))

    @property
    def branched(self) -> bool:
        """Whether some of its messages follow another one than the last."""
        return self.number % 7 == 0

    @property
    def holed(self) -> bool:
        """Whether some of its messages are deleted."""
        return self.number % 9 == 0

    def message_id(self, place: int) -> UUID:
        """The id of a message."""
        return uuid5(self.id, str(place))


def owner(number: int) -> str:
    """The name of an owner."""
    return f"owner-{number:03}"


def shapes(messages: int) -> Iterator[Shape]:
    """Conversations with so many messages in all: many short ones, some long ones, one very long one."""
    chance, left = random.Random(messages), messages
    for number in count():
        kind = chance.random()
        length = 600 if kind < 0.03 else 100 if kind < 0.2 else 20
        length = messages // LONG if number == 3 else chance.randrange(2 * length)
        yield Shape(number, min(length, left))
        left -= length
        if left <= 0:
            return


# --- what a conversation holds ------------------------------------------------------------------------------------


def conversation(shape: Shape) -> dict[str, Any]:
    """The values of a new conversation."""
    values: dict[str, Any] = {"id": shape.id}
    if shape.number % 3 == 0:
        values["context_id"] = f"context {shape.number % 40}"
    if shape.number % 4 == 0:
        values["metadata"] = {"model": "small", "n": shape.number, "nested": {"list": [1, None, "\u0000é"], "x": 0.5}}
    if shape.number % 5 == 0:
        values |= {"external_id": f"ext/{shape.number}", "title": f"Conversation \u0000 {shape.number}"}
    return values


def messages(shape: Shape) -> Iterator[dict[str, Any]]:
    """The values of its messages."""
    chance = random.Random(shape.number)
    for place in range(shape.length):
        role = "user" if place % 2 == 0 else "assistant"
        words = chance.choices(VOCABULARY, cum_weights=FREQUENCIES, k=chance.randint(5, 60))
        values = {"id": shape.message_id(place), "role": role, "content": " ".join(words)}
        if shape.branched and place and chance.random() < 0.1:
            values["parent_id"] = None if place % 50 == 7 else shape.message_id(chance.randrange(place))
        yield {**values, **extras(shape, place, chance)}


def extras(shape: Shape, place: int, chance: random.Random) -> dict[str, Any]:
    """The values that only some messages have."""
    values: dict[str, Any] = {}
    if place % 10 == 1:
        values["metadata"] = {"tokens": chance.randrange(10_000), "temperature": chance.random(), "é": ["\u0000", {}]}
    if place % 20 == 3:
        score = chance.uniform(-1, 1)
        source = {"document_id": uuid5(shape.id, "d"), "file_path": "a/é.md", "similarity_score": score}
        values["sources"] = [source, {**source, "header_anchor": "top"}]
    if place % 30 == 5:
        values["status"] = chance.choice(["interrupted", "failed"])
    if place % 6 == 4:
        moment = BEGAN + timedelta(seconds=shape.number, microseconds=chance.randrange(10**9))
        values |= {"external_id": f"m/{place}", "sent_at": moment}
    return values


# --- writing ------------------------------------------------------------------------------------------------------


class Filling:
    """A database that is being filled."""

    def __init__(self, target: int, seconds: float) -> None:
        self.target = target
        self.began = time.monotonic()
        self.deadline = self.began + seconds
        self.conversations = 0
        self.messages = 0

    async def write(self, store: Any, shape: Shape) -> None:
        """Write a conversation, unless the time is over."""
        from chatkeep import ConversationChange, NewConversation

        if time.monotonic() > self.deadline:
            return
        await store.create_conversation(shape.owner, NewConversation(**conversation(shape)))
        self.conversations += 1
        await self._append(store, shape)
        if time.monotonic() > self.deadline:  # some of its messages may be missing
            return
        if shape.branched and shape.length > 3:
            head = None if shape.number % 21 == 0 else shape.message_id(shape.length // 2)
            await store.update_conversation(shape.owner, shape.id, ConversationChange(head_id=head))
        for place in (0, shape.length - 1) if shape.holed and shape.length > 2 else ():
            await store.delete_message(shape.owner, shape.id, shape.message_id(place))

    async def _append(self, store: Any, shape: Shape) -> None:
        from chatkeep import NewMessage

        rest = messages(shape)
        while time.monotonic() < self.deadline and (some := [NewMessage(**each) for each in islice(rest, BATCH)]):
            await store.append(shape.owner, shape.id, some)
            before, self.messages = self.messages, self.messages + len(some)
            if self.messages * 50 // self.target > before * 50 // self.target:
                rate = self.messages / (time.monotonic() - self.began)
                print(f"{self.messages:,} of {self.target:,} messages, {rate:,.0f}/s", file=sys.stderr, flush=True)

    async def write_all(self, url: str, wanted: Sequence[Shape]) -> None:
        """Write conversations, some at a time."""
        from chatkeep import open_store

        rest = iter(wanted)
        async with open_store(url) as store, asyncio.TaskGroup() as group:

            async def writer() -> None:
                for shape in rest:
                    await self.write(store, shape)

            for _ in range(WRITERS):
                group.create_task(writer())


async def guard(store: Any, owners: int) -> None:
    """Write API keys, kept replies and conversations that get-or-create made, for some owners."""
    from chatkeep import NewConversation
    from chatkeep.access import ApiKey, Reply

    for number in range(owners):
        name = owner(number)
        key = ApiKey(id=f"key{number}", owner_id=name, name=f"key \u0000 {number}", scopes=(), created_at=BEGAN)
        await store.access.create_key(key, hashlib.sha256(key.id.encode()).digest())
        made = await store.get_or_create_conversation(name, NewConversation(context_id="slot", title="Slot"))
        await store.get_or_create_conversation(name, NewConversation(title="No context"))
        await store.access.begin_request(name, "kept", b"kept")
        await store.access.finish_request(name, "kept", Reply(201, b"{}\x00\xff", f"/api/conversations/{made.id}"))


async def main(url: str, target: int, seconds: float) -> None:
    """Fill the database, and say with what."""
    from chatkeep import open_store

    off = f"{url}{'&' if '?' in url else '?'}search=off"
    wanted = list(shapes(target))
    half, last = len(wanted) // 2, len(wanted) - len(wanted) // 100
    guarded = OWNERS if seconds == float("inf") else OWNERS // 20
    async with open_store(url) as store:
        await guard(store, guarded)
    filling = Filling(target, seconds)
    await filling.write_all(off, wanted[:half])
    await filling.write_all(url, wanted[half:last])
    async with open_store(url) as store:
        await store.migrate()
    await filling.write_all(off, wanted[last:])
    conversations = filling.conversations + 2 * guarded
    owners = [owner(number) for number in range(OWNERS)]
    print(json.dumps({"owners": owners, "conversations": conversations, "messages": filling.messages}))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]) if len(sys.argv) > 3 else float("inf")))
