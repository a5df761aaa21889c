"""The rows of turns in PostgreSQL. Every statement names the owner first, but for the sweep of all owners.

Locks are taken in one order: the user, the project, the conversation, the lease. Storing events locks leases only, and
never waits.
"""

import random
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from operator import itemgetter
from typing import Any
from uuid import UUID

from chatkeep.events import KINDS, PROSE, TurnEvent
from chatkeep.model import STATUSES
from chatkeep.stores.postgres.pool import Connection
from chatkeep.stores.postgres.providers import PostgresProviders
from chatkeep.stores.rows import Key, Row, stored_bytes
from chatkeep.stores.slices import within
from chatkeep.stores.turn_rows import AnswerCount, TurnRow
from chatkeep.turns import GRACE, TurnKey, TurnPlace, TurnProgress, TurnState, TurnWrite
from chatkeep.values import decode_nul, encode_nul, json_text, load_json

# statement_timestamp() is the database's clock when a statement begins. now() is older in a transaction that waited,
# and Citus refuses clock_timestamp() in an UPDATE.
COUNT_RUNNING = "SELECT count(*) FROM turns WHERE owner_id = $1 AND until > statement_timestamp()"
LEASES = """
    SELECT message_id, parent_id, worker, until <= statement_timestamp(), until <= statement_timestamp() - {grace}
    FROM turns WHERE owner_id = $1 AND conversation_id = $2{and_more} ORDER BY message_id FOR UPDATE
"""
GRACE_INTERVAL = f"interval '{GRACE.total_seconds()} s'"
LEASES_OF = LEASES.format(grace=GRACE_INTERVAL, and_more="")
LEASE_OF = LEASES.format(grace=GRACE_INTERVAL, and_more=" AND message_id = $3")
BEGIN = """
    INSERT INTO turns (owner_id, conversation_id, message_id, parent_id, worker, until, number)
    VALUES ($1, $2, $3, $4, $5, statement_timestamp() + $6, $7)
"""
TAKE = """
    UPDATE turns SET worker = $4, until = statement_timestamp() + $5
    WHERE owner_id = $1 AND conversation_id = $2 AND message_id = $3
"""
# A lease is extended when a third of its time is over: with each flush, that would log more bytes than the text has.
_LOCK = """
    WITH wanted AS (
        SELECT * FROM unnest({owners}$3::uuid[], $4::uuid[]) WITH ORDINALITY
            AS w ({owner_column}conversation_id, message_id, place)
    ), leases AS MATERIALIZED (
        SELECT w.place, t.owner_id, t.number, t.stopping, t.until
        FROM wanted w JOIN turns t
            ON t.owner_id = {owner} AND t.conversation_id = w.conversation_id AND t.message_id = w.message_id
        WHERE t.worker = $2
        ORDER BY t.owner_id, t.conversation_id, t.message_id FOR NO KEY UPDATE OF t SKIP LOCKED
    ), extended AS (
        UPDATE turns t SET until = statement_timestamp() + $5::interval FROM leases l
        WHERE t.owner_id = {of_lease} AND t.number = l.number
            AND l.until < statement_timestamp() + $5::interval * 2 / 3
    )
    SELECT l.number, l.stopping, t.number IS NOT NULL FROM wanted w LEFT JOIN leases l USING (place)
    LEFT JOIN turns t ON t.owner_id = {owner} AND t.conversation_id = w.conversation_id
        AND t.message_id = w.message_id AND t.worker = $2
    ORDER BY w.place
"""
LOCK = _LOCK.format(owners="$1::text[], ", owner_column="owner_id, ", owner="w.owner_id", of_lease="l.owner_id")
LOCK_OF_OWNER = _LOCK.format(owners="", owner_column="", owner="$1", of_lease="$1")
EVENT_COLUMNS = ("owner_id", "turn", "n", "kind", "text", "data")
INSERT_EVENTS = """
    INSERT INTO turn_events (owner_id, turn, n, kind, text, data)
    SELECT $1, * FROM unnest($2::integer[], $3::integer[], $4::text[], $5::text[], $6::text[])
    ON CONFLICT DO NOTHING
"""
# The sizes of values are known without reading them.
EVENTS = """
    SELECT w.place, t.has_expired, e.n, e.kind, e.text, e.data
    FROM unnest({owners}$2::uuid[], $3::uuid[], $4::bigint[]) WITH ORDINALITY
        AS w ({owner_column}conversation_id, message_id, after, place)
    CROSS JOIN LATERAL (
        SELECT number, until <= statement_timestamp() AS has_expired FROM turns
        WHERE owner_id = {owner} AND conversation_id = w.conversation_id AND message_id = w.message_id
    ) t LEFT JOIN LATERAL (
        SELECT *, sum(bytes) OVER (ORDER BY n) AS total FROM (
            SELECT n, kind, text, data, 8 + coalesce(octet_length(text), 0) + coalesce(octet_length(data), 0) AS bytes
            FROM turn_events WHERE owner_id = {owner} AND turn = t.number AND n > w.after ORDER BY n
        ) sized
    ) e ON e.total <= $5 OR e.total = e.bytes
    ORDER BY w.place, e.n
"""
EVENTS_OF_ALL = EVENTS.format(owners="$1::text[], ", owner_column="owner_id, ", owner="w.owner_id")
EVENTS_OF_OWNER = EVENTS.format(owners="", owner_column="", owner="$1")
ASK_TO_STOP = """
    UPDATE turns SET stopping = true WHERE owner_id = $1 AND conversation_id = $2 AND message_id = $3
"""
END = "DELETE FROM turns WHERE owner_id = $1 AND conversation_id = $2 AND message_id = $3"
EXPIRED = """
    SELECT owner_id, conversation_id, message_id FROM turns WHERE until <= statement_timestamp()
    ORDER BY until LIMIT $1
"""
# From the index messages_by_model alone. A duration is rounded down to two digits.
ANSWERS = """
    SELECT (created_at AT TIME ZONE 'UTC')::date - '1970-01-01'::date,
        duration_ms - duration_ms % (10::numeric ^ greatest(length(duration_ms::text) - 2, 0))::bigint,
        status, count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0)
    FROM messages WHERE owner_id = $1 AND created_at >= $2 AND created_at < $3 AND model IS NOT NULL
    GROUP BY 1, 2, 3
"""
STATES = {None: TurnState.BUSY, False: TurnState.RUNNING, True: TurnState.STOPPING}
"""By whether a lease that is there is stopping; None if another transaction has locked it."""


class PostgresTurns(PostgresProviders):
    """Rows of turns on one connection: each statement sees a snapshot of its own."""

    __slots__ = ("_by_owner",)

    def __init__(self, connection: Connection, *, by_owner: bool = False) -> None:
        """Take the connection; by_owner=True reads the events of several owners by a statement for each: on Citus."""
        super().__init__(connection)
        self._by_owner = by_owner

    async def lock_turns(self, owner: str) -> int:
        # In a weaker mode than `lock_owner`: others may create conversations.
        await self._connection.execute("SELECT 1 FROM users WHERE id = $1 FOR NO KEY UPDATE", owner)
        count: int = await self._connection.fetchval(COUNT_RUNNING, owner)
        return count

    async def turns_of(self, key: Key) -> list[TurnRow]:
        return [TurnRow(*row) for row in await self._connection.fetch(LEASES_OF, *key)]

    async def turn(self, key: TurnKey) -> TurnRow | None:
        row = await self._connection.fetchrow(LEASE_OF, *key)
        return None if row is None else TurnRow(*row)

    async def begin_turn(self, key: TurnKey, parent_id: UUID, worker: UUID, lease: timedelta) -> None:
        await self._connection.execute(BEGIN, *key, parent_id, worker, lease, random.getrandbits(31))

    async def take_turn(self, key: TurnKey, worker: UUID, lease: timedelta) -> None:
        await self._connection.execute(TAKE, *key, worker, lease)

    async def ask_to_stop(self, key: TurnKey) -> bool:
        return await self._connection.execute(ASK_TO_STOP, *key) != "UPDATE 0"

    async def end_turn(self, key: TurnKey) -> None:
        await self._connection.execute(END, *key)  # and its events: the foreign key cascades

    async def expired_turns(self, limit: int) -> list[TurnKey]:
        return [TurnKey(*row) for row in await self._connection.fetch(EXPIRED, limit)]

    async def answers_of(self, owner: str, after: datetime, before: datetime) -> list[AnswerCount]:
        found = await self._connection.fetch(ANSWERS, owner, after, before)
        return [_answers(row) for row in found]

    # --- events -------------------------------------------------------------------------------------------

    async def copy_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> dict[TurnKey, TurnState]:
        """Do what `store_events` does, fast, if no event is there already: else it fails.

        COPY logs the rows of a page together, in half of the bytes that INSERT takes.
        """
        owners, *ids = _columns((write.key for write in writes), 3)
        locked = await self._planned(LOCK, owners, worker, *ids, lease)
        rows = [event for write, row in zip(writes, locked, strict=True) for event in _events(write, row[0])]
        if rows:
            await self._connection.copy_records_to_table("turn_events", records=rows, columns=EVENT_COLUMNS)
        return _states(writes, locked)

    async def store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> dict[TurnKey, TurnState]:
        states: dict[TurnKey, TurnState] = {}
        for owner, of_owner in of_owners(writes).items():
            ids = _columns((write.key[1:] for write in of_owner), 2)
            locked = await self._planned(LOCK_OF_OWNER, owner, worker, *ids, lease)
            rows = [event[1:] for write, row in zip(of_owner, locked, strict=True) for event in _events(write, row[0])]
            if rows:
                await self._connection.execute(INSERT_EVENTS, owner, *_columns(rows, 5))
            states |= _states(of_owner, locked)
        return states

    async def events_of(self, places: Sequence[TurnPlace], max_bytes: int) -> list[TurnProgress]:
        if not self._by_owner:
            columns = _columns(((*place.key, place.after) for place in places), 4)
            return _progress(await self._planned(EVENTS_OF_ALL, *columns, max_bytes), len(places), max_bytes)
        found: list[Row] = []
        numbers: dict[str, list[int]] = {}
        for number, place in enumerate(places, 1):
            numbers.setdefault(place.key.owner, []).append(number)
        for owner, its in numbers.items():
            columns = _columns(((*places[number - 1].key[1:], places[number - 1].after) for number in its), 3)
            rows = await self._planned(EVENTS_OF_OWNER, owner, *columns, max_bytes)
            found += [(its[row[0] - 1], *row[1:]) for row in rows]
        return _progress(found, len(places), max_bytes)


def of_owners(writes: Iterable[TurnWrite]) -> dict[str, list[TurnWrite]]:
    """Writes by owner, in the order of owners."""
    owners: dict[str, list[TurnWrite]] = {}
    for write in sorted(writes, key=lambda write: write.key.owner):
        owners.setdefault(write.key.owner, []).append(write)
    return owners


def _columns(rows: Iterable[Sequence[Any]], width: int) -> list[list[Any]]:
    """The columns of rows, also of none."""
    return [list(column) for column in zip(*rows, strict=True)] or [[] for _ in range(width)]


def _events(write: TurnWrite, turn: int | None) -> Iterator[tuple[object, ...]]:
    """The rows of events of a turn, none if its lease is not locked. Text is apart from what else there may be."""
    for n, kind, data in write.events if turn is not None else ():
        if kind in PROSE:
            rest = {name: value for name, value in data.items() if name != "text"}
            text, more = encode_nul(data["text"]), json_text(rest) if rest else None
        else:
            text, more = None, json_text(data)
        yield write.key.owner, turn, n, kind.value, text, more


def _event(n: int, kind: str, text: str | None, data: str | None) -> TurnEvent:
    """The inverse of `_events`."""
    prose = {} if text is None else {"text": decode_nul(text)}
    return TurnEvent(n, KINDS[kind], prose | load_json(data) if data else prose)


def _states(writes: Sequence[TurnWrite], locked: Sequence[Row]) -> dict[TurnKey, TurnState]:
    """What became of each write."""
    return {
        write.key: STATES[stopping] if is_there else TurnState.LOST
        for write, (_, stopping, is_there) in zip(writes, locked, strict=True)
    }


def _progress(found: Sequence[Row], count: int, max_bytes: int) -> list[TurnProgress]:
    """The progress of each of `count` places, from rows with their numbers."""
    progress = [TurnProgress((), is_running=False)] * count
    for number, rows in groupby(found, key=itemgetter(0)):
        of_turn = list(rows)
        events = [_event(*row[2:]) for row in of_turn if row[2] is not None]
        # Their text has no more bytes than that, but as JSON it may have.
        sized = ((event, stored_bytes(json_text(event.data))) for event in events)
        progress[number - 1] = TurnProgress(within(sized, max_bytes).items, is_running=True, has_expired=of_turn[0][1])
    return progress


def _answers(row: Row) -> AnswerCount:
    day, duration, status, count, read, written = row
    return AnswerCount(day, duration, STATUSES[status], count, int(read), int(written))
