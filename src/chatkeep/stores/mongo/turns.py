"""The statements of turns in MongoDB: their leases, their events, statistics.

What keeps two processes apart is the document of a lease. Who stores events writes it in the same transaction, with the
number of the last event, who takes a turn over writes it, and who ends a turn deletes it: of two such transactions
MongoDB fails one with a write conflict, which then begins again and sees what the other did. Who only reads a lease and
writes nothing of the turn says what was true when its transaction began.

Leases go by the clock of the server, `$$NOW`: of the primary, or of the mongos. After a failover, and of two mongos,
clocks differ by what their hosts' do; that moves the end of a lease, and never lets two workers write.

Whatever is not a plain operator has only chatkeep's own numbers and ids in it: a text would be evaluated.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from operator import itemgetter
from typing import Any
from uuid import UUID

from bson.int64 import Int64
from pymongo.errors import BulkWriteError

from chatkeep.model import STATUSES
from chatkeep.stores.mongo.conversations import MongoConversations
from chatkeep.stores.mongo.database import Document
from chatkeep.stores.mongo.documents import (
    event_bytes,
    micros,
    new_event,
    to_binary,
    to_event,
    to_uuid,
    turn_id,
    turn_key,
)
from chatkeep.stores.rows import Key
from chatkeep.stores.slices import within
from chatkeep.stores.turn_rows import ALL_BYTES, AnswerCount, TurnRow, two_digits
from chatkeep.turns import GRACE, TurnKey, TurnPlace, TurnProgress, TurnState, TurnWrite
from chatkeep.values import EPOCH, now

MOST_EVENTS = 1_000
"""Events of a turn that are read at a time at most, unless all are: how large each is, is known when it was read."""

EXPIRED: Document = {"until": EPOCH}
"""What the lease has of a turn that is given to another owner."""

FENCED: Document = {"$set": EXPIRED | {"worker": to_binary(UUID(int=0))}}
"""The change of a lease that takes the turn from its worker."""

MILLISECOND = timedelta(milliseconds=1)

HAS_EXPIRED = {"$lte": ["$until", "$$NOW"]}
IS_OVERDUE = {"$lte": ["$until", {"$subtract": ["$$NOW", GRACE // MILLISECOND]}]}
LEASE = {"parent_id": 1, "worker": 1, "stopping": 1, "n": 1, "expired": HAS_EXPIRED, "overdue": IS_OVERDUE}

DAY = Int64(86_400_000_000)

LENGTH = {"$strLenBytes": {"$toString": "$duration_ms"}}
UNIT = {"$pow": [10, {"$max": [0, {"$subtract": [LENGTH, 2]}]}]}
BY: Document = {
    "day": {"$divide": [{"$subtract": ["$created_at", {"$mod": ["$created_at", DAY]}]}, DAY]},
    # About as `two_digits`, so that there are few; null without a duration.
    "duration": {
        "$cond": [
            {"$gt": ["$duration_ms", None]},
            {"$subtract": ["$duration_ms", {"$mod": ["$duration_ms", UNIT]}]},
            None,
        ]
    },
    "status": "$status",
}
"""What answers are counted by."""

GONE = TurnProgress((), is_running=False)


class MongoTurns(MongoConversations):
    """Documents of turns, as one transaction sees them, or each operation for itself."""

    __slots__ = ()

    async def lock_turns(self, owner: str) -> int:
        """Write the owner's document, which is a conflict for everybody else who begins a turn, and for nobody else:
        who creates a conversation only looks whether it is there."""
        view = self._view
        change = {"$inc": {"turns": 1}, "$setOnInsert": {"created_at": micros(now())}}
        await view.users.update_one({"_id": owner, "owner_id": owner}, change, upsert=True, session=view.session)
        return sum(not each["expired"] for each in await self._leases({"owner_id": owner}))

    async def _leases(self, where: Document, **fields: Any) -> list[Document]:
        """The leases that a filter finds."""
        pipeline = [{"$match": where}, {"$project": LEASE | fields}]
        return await (await self._view.turns.aggregate(pipeline, session=self._view.session)).to_list()

    async def turns_of(self, key: Key) -> list[TurnRow]:
        """The turns of a conversation. Whoever goes on to end one writes its lease, which is the lock."""
        where = {"owner_id": key[0], "conversation_id": to_binary(key[1])}
        return [_to_turn(each) for each in await self._leases(where)]

    async def turn(self, key: TurnKey) -> TurnRow | None:
        found = await self._leases(self._view.one(key.owner, turn_id(key)))
        return _to_turn(found[0]) if found else None

    async def begin_turn(self, key: TurnKey, parent_id: UUID, worker: UUID, lease: timedelta) -> None:
        """An upsert: only an update knows `$$NOW`."""
        identity = turn_id(key)
        ids = {"conversation_id": identity["c"], "parent_id": to_binary(parent_id), "worker": to_binary(worker)}
        where, new = {"_id": identity, "owner_id": key.owner}, [{"$set": ids | {"n": 0} | _until(lease)}]
        await self._view.turns.update_one(where, new, upsert=True, session=self._view.session)

    async def take_turn(self, key: TurnKey, worker: UUID, lease: timedelta) -> None:
        """Of two workers who take it one has a conflict, and sees then that its lease has not expired."""
        where, change = (
            self._view.one(key.owner, turn_id(key)),
            [{"$set": {"worker": to_binary(worker)} | _until(lease)}],
        )
        await self._view.turns.update_one(where, change, session=self._view.session)

    async def store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> dict[TurnKey, TurnState]:
        """Store what is above the last number of each lease: a repeated call, whose commit's answer was lost, finds
        its events there and inserts none of them, which would abort the transaction."""
        due = {"$lt": ["$until", {"$add": ["$$NOW", _milliseconds(lease) * 2 // 3]}]}
        leases = await self._by_key((write.key for write in writes), due=due)
        states = {write.key: TurnState.LOST for write in writes}
        changes, events = list[Document](), list[Document]()
        for key, given in writes:
            found = leases.get(key)
            if found is None or to_uuid(found["worker"]) != worker:
                continue
            states[key] = TurnState.STOPPING if found.get("stopping") else TurnState.RUNNING
            new = [new_event(key, event) for event in given if event.n > found["n"]]
            events += new
            if new or found["due"]:
                values = _until(lease) | ({"n": new[-1]["n"]} if new else {})
                changes.append({"q": self._view.one(key.owner, found["_id"]), "u": [{"$set": values}]})
        await self._change_leases(changes)
        if events:
            await self._view.turn_events.insert_many(events, session=self._view.session)
        return states

    async def _change_leases(self, updates: Sequence[Document]) -> None:
        """Change several leases by one command."""
        if updates:
            command = {"update": self._view.turns.name, "updates": updates}
            reply = await self._view.database.command(command, session=self._view.session)
            if reply.get("writeErrors"):
                raise BulkWriteError(reply)

    async def _by_key(self, keys: Iterable[TurnKey], **fields: Any) -> dict[TurnKey, Document]:
        found = await self._leases(self._view.some(map(turn_id, keys)), **fields)
        return {turn_key(each): each for each in found}

    async def events_of(self, places: Sequence[TurnPlace], max_bytes: int) -> list[TurnProgress]:
        """Two commands: the leases, then the events up to the number that each lease had.

        Outside of a transaction the two see different moments. All of these events were there when the leases were
        read, and they go only with the lease, in one transaction, before which the message got its content: if one of
        them is missing the turn has ended, and if none is, they are all that there was at the moment of the lease. A
        lease that is not found was deleted in a transaction that a majority has, and so is seen whole by what is read
        later.
        """
        leases = await self._by_key({place.key for place in places})
        ranges = {
            place: _last(place, lease["n"], max_bytes)
            for place in places
            if (lease := leases.get(place.key)) and lease["n"] > place.after
        }
        events = await self._events(ranges)
        return [
            _progress(place, leases.get(place.key), ranges.get(place), events[place.key], max_bytes) for place in places
        ]

    async def _events(self, ranges: Mapping[TurnPlace, int]) -> defaultdict[TurnKey, list[Document]]:
        """The events of several turns, by number. Each range is read from the index; nothing is sorted there."""
        events: defaultdict[TurnKey, list[Document]] = defaultdict(list)
        some = [_in_range(place, last) for place, last in ranges.items()]
        if not some:
            return events
        where = {"$or": some} if len(some) > 1 else some[0]
        found = await self._view.turn_events.find(where, session=self._view.session).to_list()
        for each in sorted(found, key=itemgetter("n")):
            events[turn_key(each)].append(each)
        return events

    async def ask_to_stop(self, key: TurnKey) -> bool:
        where = self._view.one(key.owner, turn_id(key))
        change = {"$set": {"stopping": True}}
        return (await self._view.turns.update_one(where, change, session=self._view.session)).matched_count == 1

    async def end_turn(self, key: TurnKey) -> None:
        """The lease first, so that a write conflict shows at once."""
        view, identity = self._view, turn_id(key)
        await view.turns.delete_one(view.one(key.owner, identity), session=view.session)
        of_it = {"owner_id": key.owner, "conversation_id": identity["c"], "message_id": identity["m"]}
        await view.turn_events.delete_many(of_it, session=view.session)

    async def expired_turns(self, limit: int) -> list[TurnKey]:
        first: list[Document] = [
            {"$match": {}},
            {"$sort": {"until": 1}},
            {"$limit": limit},
            {"$project": {"expired": HAS_EXPIRED}},
        ]
        found = await (await self._view.turns.aggregate(first)).to_list()
        return [turn_key(each) for each in found if each["expired"]]

    async def answers_of(self, owner: str, after: datetime, before: datetime) -> Collection[AnswerCount]:
        """Grouped by the server, from the index alone."""
        where = {
            "owner_id": owner,
            "created_at": {"$gte": micros(after), "$lt": micros(before)},
            "model": {"$gte": ""},
        }
        tokens = {"input": "$input_tokens", "output": "$output_tokens"}
        sums = {name: {"$sum": {"$toDouble": field}} for name, field in tokens.items()}  # which may be above an int64
        group = {"$group": {"_id": BY, "answers": {"$sum": 1}, **sums}}
        found = await self._view.messages.aggregate([{"$match": where}, group], hint="by_model")
        return [_to_count(each) async for each in found]


def _milliseconds(lease: timedelta) -> int:
    return int(lease / MILLISECOND)


def _until(lease: timedelta) -> Document:
    return {"until": {"$add": ["$$NOW", _milliseconds(lease)]}}


def _to_turn(document: Document) -> TurnRow:
    parent_id, worker = to_uuid(document["parent_id"]), to_uuid(document["worker"])
    is_over = document["expired"], document["overdue"]
    return TurnRow(turn_key(document).message_id, parent_id, worker, *is_over)


def _last(place: TurnPlace, n: int, max_bytes: int) -> int:
    """The number up to which the events of a turn are read, which has `n`."""
    return n if max_bytes == ALL_BYTES else min(n, place.after + MOST_EVENTS)


def _in_range(place: TurnPlace, last: int) -> Document:
    identity = turn_id(place.key)
    of_it = {"owner_id": identity["o"], "conversation_id": identity["c"], "message_id": identity["m"]}
    return of_it | {"n": {"$gt": place.after, "$lte": last}}


def _progress(
    place: TurnPlace, lease: Document | None, last: int | None, events: Sequence[Document], max_bytes: int
) -> TurnProgress:
    """What a reader at a place did not have, of events up to `last`."""
    if lease is None:
        return GONE
    if last is None:
        return TurnProgress((), is_running=True, has_expired=lease["expired"])
    mine = [each for each in events if place.after < each["n"] <= last]
    if not mine or mine[-1]["n"] < last:
        return GONE
    found = within(((each, event_bytes(each)) for each in mine), max_bytes).items
    return TurnProgress(list(map(to_event, found)), is_running=True, has_expired=lease["expired"])


def _to_count(document: Document) -> AnswerCount:
    by, duration = document["_id"], document["_id"]["duration"]
    counts = (document["answers"], int(document["input"]), int(document["output"]))
    return AnswerCount(
        round(by["day"]), None if duration is None else two_digits(round(duration)), STATUSES[by["status"]], *counts
    )
