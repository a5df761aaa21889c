"""The rows of turns and of their events in SQLite. Every statement but that of the sweep names the owner first."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

from chatkeep.events import KINDS, TurnEvent
from chatkeep.model import STATUSES
from chatkeep.stores.rows import Key, Row, stored_bytes
from chatkeep.stores.slices import within
from chatkeep.stores.sqlite.columns import uuid
from chatkeep.stores.sqlite.conversations import SqliteConversations
from chatkeep.stores.sqlite.database import Values
from chatkeep.stores.turn_rows import AnswerCount, TurnRow
from chatkeep.turns import GRACE, TurnKey, TurnPlace, TurnProgress, TurnState, TurnWrite
from chatkeep.values import json_text, load_json, now, to_micros

MICROSECOND = timedelta(microseconds=1)

LEASES = "SELECT count(*) FROM turns WHERE owner_id = ? AND until > ?"
TURNS = """
    SELECT message_id, parent_id, worker, until FROM turns WHERE owner_id = ? AND conversation_id = ?
"""
TURN = f"{TURNS} AND message_id = ?"
INSERT_TURN = """
    INSERT INTO turns (owner_id, conversation_id, message_id, parent_id, worker, until) VALUES (?, ?, ?, ?, ?, ?)
"""
HELD = """
    SELECT until, stopping FROM turns
    WHERE owner_id = ? AND conversation_id = ? AND message_id = ? AND worker = ?
"""
TAKE_TURN = "UPDATE turns SET worker = ?, until = ? WHERE owner_id = ? AND conversation_id = ? AND message_id = ?"
EXTEND = "UPDATE turns SET until = ? WHERE owner_id = ? AND conversation_id = ? AND message_id = ?"
INSERT_EVENT = """
    INSERT INTO turn_events (owner_id, conversation_id, message_id, n, kind, data) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (owner_id, conversation_id, message_id, n) DO NOTHING
"""
# The number of a place comes back with its row: executed with all places at once, those without a turn have none.
LOOK = """
    SELECT ?1, t.until, EXISTS (
        SELECT 1 FROM turn_events e
        WHERE e.owner_id = ?2 AND e.conversation_id = ?3 AND e.message_id = ?4 AND e.n > ?5)
    FROM turns t WHERE t.owner_id = ?2 AND t.conversation_id = ?3 AND t.message_id = ?4
"""
EVENTS = """
    SELECT n, kind, data FROM turn_events
    WHERE owner_id = ? AND conversation_id = ? AND message_id = ? AND n > ? ORDER BY n
"""
ASK_TO_STOP = "UPDATE turns SET stopping = 1 WHERE owner_id = ? AND conversation_id = ? AND message_id = ?"
END_TURN = "DELETE FROM turns WHERE owner_id = ? AND conversation_id = ? AND message_id = ?"
END_TURNS = "DELETE FROM turns WHERE owner_id = ? AND conversation_id = ?"
END_HIDDEN_TURNS = """
    DELETE FROM turns WHERE owner_id = ?1 AND EXISTS (
        SELECT 1 FROM conversations c
        WHERE c.owner_id = ?1 AND c.id = turns.conversation_id AND c.deleted_at IS NOT NULL)
"""
EXPIRED_TURNS = """
    SELECT owner_id, conversation_id, message_id FROM turns WHERE until <= ? ORDER BY until LIMIT ?
"""
# The unit to which a duration is rounded down has a digit less than it. sum() fails beyond 2^63: both halves of a count
# are added up apart.
ANSWERS = """
    SELECT created_at / 86400000000,
        duration_ms - duration_ms % CAST('1' || substr('00000000000000000', 1, length(duration_ms) - 2) AS INTEGER),
        status, count(*),
        coalesce(sum(input_tokens >> 32), 0), coalesce(sum(input_tokens & 4294967295), 0),
        coalesce(sum(output_tokens >> 32), 0), coalesce(sum(output_tokens & 4294967295), 0)
    FROM messages WHERE owner_id = ? AND created_at >= ? AND created_at < ? AND model IS NOT NULL
    GROUP BY 1, 2, 3
"""


class SqliteTurns(SqliteConversations):
    """Rows of turns on one connection."""

    __slots__ = ()

    # --- turns --------------------------------------------------------------------------------------------

    async def lock_turns(self, owner: str) -> int:
        """Count the leases: nobody else writes while a transaction does."""
        return cast("int", self._connection.execute(LEASES, (owner, _moment())).get)

    async def turns_of(self, key: Key) -> list[TurnRow]:
        moment = _moment()
        return [_turn(row, moment) for row in self._fetch(TURNS, (key[0], key[1].bytes))]

    async def turn(self, key: TurnKey) -> TurnRow | None:
        row = self._connection.execute(TURN, _of(key)).fetchone()
        return None if row is None else _turn(row, _moment())

    async def begin_turn(self, key: TurnKey, parent_id: UUID, worker: UUID, lease: timedelta) -> None:
        until = _moment() + lease // MICROSECOND
        self._connection.execute(INSERT_TURN, (*_of(key), parent_id.bytes, worker.bytes, until))

    async def take_turn(self, key: TurnKey, worker: UUID, lease: timedelta) -> None:
        self._connection.execute(TAKE_TURN, (worker.bytes, _moment() + lease // MICROSECOND, *_of(key)))

    async def store_events(
        self, worker: UUID, writes: Sequence[TurnWrite], lease: timedelta
    ) -> dict[TurnKey, TurnState]:
        states = {write.key: TurnState.LOST for write in writes}
        rows: list[Values] = []
        leases: dict[TurnKey, int] = {}
        for key, events in writes:
            held: Any = self._connection.execute(HELD, (*_of(key), worker.bytes)).fetchone()
            if held is not None:
                leases[key], is_stopping = held
                states[key] = TurnState.STOPPING if is_stopping else TurnState.RUNNING
                rows += _event_values(key, events)
        self._connection.executemany(INSERT_EVENT, rows)
        self._extend(leases, lease // MICROSECOND)
        return states

    def _extend(self, leases: Mapping[TurnKey, int], lease: int) -> None:
        """Extend leases of which less than two thirds are left, or more than all, since the clock was set back."""
        moment = _moment()
        due = [key for key, until in leases.items() if not lease * 2 <= 3 * (until - moment) <= 3 * lease]
        self._connection.executemany(EXTEND, [(moment + lease, *_of(key)) for key in due])

    async def events_of(self, places: Sequence[TurnPlace], max_bytes: int) -> list[TurnProgress]:
        moment = _moment()
        found = [TurnProgress((), is_running=False)] * len(places)
        wanted = [(number, *_of(place.key), place.after) for number, place in enumerate(places)]
        looked: list[Row] = self._connection.executemany(LOOK, wanted).fetchall()
        for number, until, is_more in looked:
            events = self._events(places[number], max_bytes) if is_more else ()
            found[number] = TurnProgress(events, is_running=True, has_expired=until <= moment)
        return found

    def _events(self, place: TurnPlace, max_bytes: int) -> list[TurnEvent]:
        with self._rows(EVENTS, (*_of(place.key), place.after)) as rows:
            some = within(((row, stored_bytes(row[2])) for row in rows), max_bytes)
        return [TurnEvent(n, KINDS[kind], load_json(data)) for n, kind, data in some.items]

    async def ask_to_stop(self, key: TurnKey) -> bool:
        self._connection.execute(ASK_TO_STOP, _of(key))
        return self._connection.changes() > 0

    async def end_turn(self, key: TurnKey) -> None:
        self._connection.execute(END_TURN, _of(key))

    async def expired_turns(self, limit: int) -> list[TurnKey]:
        found = self._fetch(EXPIRED_TURNS, (_moment(), limit))
        return [TurnKey(owner, uuid(conversation), uuid(message)) for owner, conversation, message in found]

    async def answers_of(self, owner: str, after: datetime, before: datetime) -> list[AnswerCount]:
        found = self._fetch(ANSWERS, (owner, to_micros(after), to_micros(before)))
        return [
            AnswerCount(day, duration, STATUSES[status], answers, (high_in << 32) + low_in, (high_out << 32) + low_out)
            for day, duration, status, answers, high_in, low_in, high_out, low_out in found
        ]

    # --- removal ------------------------------------------------------------------------------------------

    def _end_turns(self, key: Key) -> None:
        """Remove the turns of a conversation that becomes invisible."""
        self._connection.execute(END_TURNS, (key[0], key[1].bytes))

    def _end_hidden_turns(self, owner: str) -> None:
        """Remove the turns of all invisible conversations of an owner."""
        self._connection.execute(END_HIDDEN_TURNS, (owner,))

    def _expire_all(self, owner: str) -> None:
        """Let the leases of an owner who is renamed expire: their workers know the old name."""
        self._connection.execute("UPDATE turns SET until = 0 WHERE owner_id = ?", (owner,))


def _moment() -> int:
    """The time by which leases expire: that of the machine, in reads as in writes."""
    return to_micros(now())


def _of(key: TurnKey) -> Values:
    return key.owner, key.conversation_id.bytes, key.message_id.bytes


def _turn(row: Row, moment: int) -> TurnRow:
    message_id, parent_id, worker, until = row
    is_overdue = until <= moment - GRACE // MICROSECOND
    return TurnRow(uuid(message_id), uuid(parent_id), uuid(worker), until <= moment, is_overdue)


def _event_values(key: TurnKey, events: Sequence[TurnEvent]) -> list[Values]:
    """The events of a turn, as INSERT_EVENT takes them."""
    return [(*_of(key), event.n, event.kind.value, json_text(event.data)) for event in events]
