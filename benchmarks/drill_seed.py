"""Conversations of every shape, written to a store directly: what a drill begins with."""

import random
from collections.abc import Sequence
from itertools import batched, groupby
from uuid import UUID, uuid4

from benchmarks.drill_ledger import Append, Change, Create, Effect, Erase, Request, Trail
from benchmarks.drill_writers import message
from chatkeep import ConversationChange, NewConversation, NewMessage, Store

BATCH = 100
"""Most messages of one append, so that it takes no longer than a call may."""


async def seed(store: Store, owner: str, effects: Sequence[Effect], *, lasting: bool = False) -> Trail:
    """Create a conversation, apply the effects, and return its trail, which lies before every other moment."""
    trail = Trail(owner, uuid4(), lasting)
    created = Create(metadata={"made": "by seed"})
    await store.create_conversation(owner, NewConversation(id=trail.id, metadata=created.metadata))
    for kind, alike in groupby(effects, type):
        await _apply(store, trail, kind, list(alike))
    for effect in (created, *effects):
        trail.requests.append(Request(effect, 0.0, 0.0))
        effect.apply(trail.state)
    return trail


async def _apply(store: Store, trail: Trail, kind: type[Effect], effects: Sequence[Effect]) -> None:
    if kind is Append:
        bodies = [effect.body for effect in effects if isinstance(effect, Append)]
        for some in batched(bodies, BATCH, strict=False):
            appended = await store.append(trail.owner, trail.id, list(map(NewMessage.model_validate, some)))
            trail.messages.update((each.id, each) for each in appended)
        return
    for effect in effects:
        if isinstance(effect, Erase):
            await store.delete_message(trail.owner, trail.id, effect.id)
        elif isinstance(effect, Change):
            await store.update_conversation(trail.owner, trail.id, ConversationChange.model_validate(effect.patch))


def shape(number: int, chance: random.Random, *, deleted_heads: bool = True) -> list[Effect]:
    """The effects of a conversation with branches.

    By its number it has a head that is not the last message, or none, tombstones, or a title that was removed.
    """
    bodies = [message(chance) for _ in range(chance.randint(3, 30))]
    for place in range(2, len(bodies)):
        if chance.random() < 0.2:
            bodies[place]["parent_id"] = chance.choice(bodies[:place])["id"]
    ids = [str(body["id"]) for body in bodies]
    effects: list[Effect] = [Append(body) for body in bodies]
    head = (None, ids[0], chance.choice(ids), ids[-1])[number % 4]
    effects.append(Change({"head_id": head}))
    if number % 3 == 0:
        effects += [Erase(UUID(id_)) for id_ in chance.sample(ids, 2) if deleted_heads or id_ != head]
    if number % 5 == 0:
        effects.append(Change({"title": None}))
    return effects
