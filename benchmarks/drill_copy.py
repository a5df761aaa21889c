"""A copy of a store, read through chatkeep and compared with the ledger."""

import random
from collections.abc import Iterable
from uuid import UUID

from benchmarks.drill_ledger import Append, Counts, Found, Trail, check, is_of_one_moment
from chatkeep import Conflict, NewMessage, Store, open_store
from chatkeep.testing import whole_history, whole_list, whole_log

RETRIES = 2
"""How many messages of a conversation are sent to the copy again."""


async def compare(
    url: str, trails: Iterable[Trail], began: float, ended: float, *, optional: bool = False, backup: bool = False
) -> Counts:
    """Compare a copy that was made between two moments with what was acknowledged. It is of no use afterwards.

    `optional`: conversations may be absent. `backup`: all of it must be of one moment.
    """
    expected = {(trail.owner, trail.id): trail for trail in trails}
    counts = Counts()
    async with open_store(url) as store:
        copied = {key: found for owner in {owner for owner, _ in expected} for key, found in await read(store, owner)}
        counts.disordered += len(copied.keys() - expected.keys())
        for key, trail in expected.items():
            counts.add(check(trail, copied.get(key), began, ended, optional=optional))
        for key, found in copied.items():
            counts.refused += await _retry(store, expected[key], found) if key in expected else 0
    pairs = [(trail, copied.get(key)) for key, trail in expected.items()] if backup else []
    counts.torn += int(not is_of_one_moment(pairs, began, ended))
    return counts


async def read(store: Store, owner: str) -> list[tuple[tuple[str, UUID], Found]]:
    """Return the conversations of an owner, by owner and id."""
    found = []
    for conversation in await whole_list(store, owner, order="id", limit=200):
        log = await whole_log(store, owner, conversation.id)
        history = await whole_history(store, owner, conversation.id, limit=1_000)
        found.append(((owner, conversation.id), Found(conversation, log, history)))
    return found


async def _retry(store: Store, trail: Trail, found: Found) -> int:
    """Send some messages that the copy has again; return how many are refused."""
    stored = {message.id for message in found.log}
    sent = [request.effect for request in trail.requests if isinstance(request.effect, Append)]
    known = [effect for effect in sent if effect.id in stored]
    refused = 0
    for effect in random.sample(known, min(RETRIES, len(known))):
        try:
            await store.append(trail.owner, trail.id, NewMessage.model_validate(effect.body))
        except Conflict:
            refused += 1
    return refused
