"""What the databases of the attacks hold: `PYTHON attack_prepare.py URL KIND...`.

It runs in the environment of the server that is attacked, and so imports nothing but that server's chatkeep. The
schema and the index are then the ones that this chatkeep writes.
"""

import asyncio
import base64
import random
import sys
from collections.abc import Awaitable, Callable
from typing import Any
from uuid import UUID, uuid5

VICTIM, ATTACKER, BYSTANDER = "victim", "mallory", "archive"
"""The owner whose waits are measured, the one who attacks, and one whose messages fill the database."""

CONVERSATION = UUID("00000000-0000-7000-8000-000000000001")
"""The first conversation of each owner."""

HAN = "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可她里后小么"
HISTORY = 50
LIST_MESSAGES = 100_000
LOAD_CONVERSATIONS = 10_000
FOREIGN, FOREIGN_CONVERSATIONS = "shared", 100_000
"""An external id, and how many conversations of the attacker have it."""

LABELS = [f"label {number}" for number in range(31)]
LABELLED_CONVERSATIONS = 20_000
LOAD_READ = 200
"""How many conversations of the load have messages, and are read."""


def han(number: int, length: int) -> str:
    """A text of Chinese characters, always the same for a number."""
    return "".join(random.Random(number).choices(HAN, k=length))


def load_conversation(number: int) -> UUID:
    """The id of a conversation of the load."""
    return uuid5(CONVERSATION, str(number))


def hostile_texts() -> list[str]:
    """Texts that are costly to normalise or to cut, each with a word to search for."""
    kinds = ("\u0301" * 4_500 + "\u0327" * 4_500, "\u0591" * 4_500 + "\u05b0" * 4_500)
    return [f"{marks} needle" for marks in kinds] * 10


def snippet_texts() -> list[str]:
    """Texts whose length changes when they are normalised, with a word to search for at their end."""
    return [f"{text} needle" for text in ("\ufdfa" * 8_000, "ﬃ" * 8_000, "\ufdfa " * 4_000) for _ in range(10)]


def cluster_texts() -> list[str]:
    """Texts that are one grapheme cluster, or where its start is found only by going back."""
    runs = ("🇦" * 8_000, "👩\u200d" * 4_000, "ᄀ" * 8_000, "ﬃ" + "\u0301" * 8_000, "ﬃ" + "🇦" * 8_000)
    return [f"{text} needle" for text in runs for _ in range(5)]


async def main(url: str, kinds: list[str]) -> None:
    """Fill the database."""
    from chatkeep import open_store

    async with open_store(url) as store:
        for kind in ["base", *kinds]:
            await KINDS[kind](store)


async def _base(store: Any) -> None:
    for owner in (VICTIM, ATTACKER, BYSTANDER):
        await _create(store, owner, CONVERSATION)
    await _say(store, VICTIM, CONVERSATION, [f"hello {number} " * 20 for number in range(HISTORY)])


async def _marks(store: Any) -> None:
    await _say(store, ATTACKER, CONVERSATION, hostile_texts())


async def _snippets(store: Any) -> None:
    await _say(store, ATTACKER, CONVERSATION, snippet_texts())


async def _clusters(store: Any) -> None:
    await _say(store, ATTACKER, CONVERSATION, cluster_texts())


async def _han(store: Any) -> None:
    for number in range(20):
        await _say(store, ATTACKER, CONVERSATION, [han(number, 200_000)])


async def _bulk(store: Any) -> None:
    for number in range(40):
        text = base64.b64encode(random.Random(number).randbytes(6 << 20)).decode()
        await _say(store, BYSTANDER, CONVERSATION, [text])


async def _list(store: Any) -> None:
    for first in range(0, LIST_MESSAGES, 500):
        await _say(store, ATTACKER, CONVERSATION, [f"said {number}" for number in range(first, first + 500)])


async def _load(store: Any) -> None:
    for first in range(0, LOAD_CONVERSATIONS, 500):
        batch = [_create(store, VICTIM, load_conversation(number)) for number in range(first, first + 500)]
        await asyncio.gather(*batch)
    texts = [f"hello {number} " * 10 for number in range(HISTORY)]
    await asyncio.gather(*(_say(store, VICTIM, load_conversation(number), texts) for number in range(LOAD_READ)))


async def _pages(store: Any) -> None:
    from chatkeep import NewConversation

    for number in range(30):
        await _say(store, ATTACKER, CONVERSATION, [f"{number} " + "large page " * 380_000])
    metadata = {"key": "x" * 1_000_000}
    for _ in range(200):
        await store.create_conversation(ATTACKER, NewConversation(metadata=metadata))


async def _foreign(store: Any) -> None:
    from chatkeep import NewConversation

    for _ in range(0, FOREIGN_CONVERSATIONS, 500):
        new = NewConversation(external_id=FOREIGN)
        await asyncio.gather(*(store.create_conversation(ATTACKER, new) for _ in range(500)))


async def _labels(store: Any) -> None:
    """All have the same labels, so that every one of them has to be looked at."""
    from chatkeep import NewConversation

    for _ in range(0, LABELLED_CONVERSATIONS, 500):
        new = NewConversation(labels=tuple(LABELS))
        await asyncio.gather(*(store.create_conversation(ATTACKER, new) for _ in range(500)))
    for _ in range(500):
        await store.create_conversation(ATTACKER, NewConversation(labels=("apart",)))


async def _create(store: Any, owner: str, id_: UUID) -> None:
    from chatkeep import NewConversation

    await store.create_conversation(owner, NewConversation(id=id_))


async def _say(store: Any, owner: str, id_: UUID, texts: list[str]) -> None:
    from chatkeep import NewMessage, Role

    messages = [NewMessage(role=Role.ASSISTANT, content=text) for text in texts]
    await store.append(owner, id_, messages)


KINDS: dict[str, Callable[[Any], Awaitable[None]]] = {
    "base": _base,
    "marks": _marks,
    "snippets": _snippets,
    "clusters": _clusters,
    "han": _han,
    "bulk": _bulk,
    "list": _list,
    "load": _load,
    "pages": _pages,
    "foreign": _foreign,
    "labels": _labels,
}


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
