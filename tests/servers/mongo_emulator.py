"""mongoeco's wire-protocol server in a process of its own, nearer to MongoDB where the store needs it.

What is added here, because the emulator lacks it:

- transactions take turns, and writes outside of them wait: its own fail at the commit when anybody wrote
  anything since they began. So two transactions never conflict here; tests inject conflicts by failCommand;
- a commit that is sent again after it happened changes nothing;
- an error in a transaction aborts it, and so does, at once, the end of the connection that ran it: MongoDB
  keeps the transaction of a process that was killed for transactionLifetimeLimitSeconds;
- a document of more than 16 MB is refused; collections and indexes that are there, or are not, have error codes;
- collMod changes the validator of a collection;
- failCommand fails every command, also commits, and closes connections;
- unique compound indexes and `_id: {$in}` are looked up by key, also in parts of an `$or`, and for some values of one
  field, in a list or between two numbers, where it reads the whole collection.
"""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from mongoeco.core.query_plan import (
    AndCondition,
    EqualsCondition,
    GreaterThanOrEqualCondition,
    InCondition,
    LessThanOrEqualCondition,
    OrCondition,
)
from mongoeco.engines import semantic_core
from mongoeco.engines.memory import MemoryEngine
from mongoeco.engines.virtual_indexes import document_in_virtual_index
from mongoeco.errors import OperationFailure, PyMongoError
from mongoeco.wire.proxy import AsyncMongoEcoProxyServer
from mongoeco.wire.surface import WIRE_SUPPORTED_COMMANDS, WireSurface

from servers import mongo_shortcuts

WRITES = {
    "insert",
    "update",
    "delete",
    "findAndModify",
    "create",
    "collMod",
    "createIndexes",
    "dropIndexes",
    "drop",
    "dropDatabase",
}
CODES = {
    ("create", "already exists"): 48,
    ("createIndexes", "Conflicting index definition"): 85,
    ("dropIndexes", "index not found"): 27,
}
"""The codes of errors for which the emulator has none."""

ENDS = {"commitTransaction", "abortTransaction"}
LOOKUPS = 1_000
"""Most numbers between two that are looked up one by one; for more the collection is read."""

SECONDS = 20
"""How long a transaction may take before it is aborted; 60 on MongoDB."""


COMPILED: dict[int, tuple[object, Any]] = {}
COMPILE = semantic_core.compile_collection_validation_semantics


def compiled(options: Any, *, dialect: Any = None) -> Any:
    """A collection's validator, compiled once instead of for each document."""
    validator = (options or {}).get("validator")
    if validator is None:
        return None
    if id(validator) not in COMPILED:
        COMPILED[id(validator)] = validator, COMPILE(options, dialect=dialect)
    return COMPILED[id(validator)][1]


semantic_core.compile_collection_validation_semantics = compiled


class Engine(MemoryEngine):
    """The emulator's engine, with lookups by key."""

    def _ensure_unique_indexes(
        self, db_name: str, coll_name: str, candidate: Any, *, indexes_view: Any = None, **others: Any
    ) -> None:
        indexes = (self._indexes if indexes_view is None else indexes_view).get(db_name, {}).get(coll_name, [])
        data = others.get("index_data_view")
        maps = (self._index_data if data is None else data).get(db_name, {}).get(coll_name, {})
        exclude, slow = others.get("exclude_storage_key"), []
        others["scan_payload_id"] = False
        for index in indexes:
            if not index.get("unique") or len(index["fields"]) == 1 or index["name"] not in maps:
                slow.append(index)
            elif document_in_virtual_index(candidate, index):
                key = self._index_key(candidate, index["fields"])
                if any(
                    other not in (exclude, self._storage_key(exclude)) for other in maps[index["name"]].get(key, ())
                ):
                    name = f"{db_name}.{coll_name}"
                    raise self._unique_key_error("Duplicate key", name, candidate, index=index, conflict=key)  # type: ignore[no-untyped-call]
        super()._ensure_unique_indexes(
            db_name, coll_name, candidate, indexes_view={db_name: {coll_name: slow}}, **others
        )

    def _collection_options_snapshot_locked(self, db_name: str, coll_name: str, **others: Any) -> Any:
        options = others.get("collection_options")
        return (self._collection_options if options is None else options).get(db_name, {}).get(coll_name, {})

    def _candidate_items_for_plan_locked(self, coll: Any, query_plan: Any, **others: Any) -> Any:
        clauses = query_plan.clauses if isinstance(query_plan, AndCondition) else [query_plan]
        for clause in clauses:
            if isinstance(clause, EqualsCondition | InCondition) and clause.field == "_id":
                values = clause.values if isinstance(clause, InCondition) else (clause.value,)
                keys = {self._storage_key(value) for value in values}
                return [(key, coll[key]) for key in keys if key in coll]
        parts = query_plan.clauses if isinstance(query_plan, OrCondition) else [query_plan]
        found = [self._by_unique_index(part, others["indexes"], others["index_data"]) for part in parts]
        if None not in found:
            places = dict.fromkeys(place for some in found if some for place in some)
            return [(place, coll[place]) for place in places if place in coll]
        return super()._candidate_items_for_plan_locked(coll, query_plan, **others)

    def _by_unique_index(self, condition: Any, indexes: list[Any], maps: dict[str, Any]) -> list[Any] | None:
        """Where documents are that have a value for each field of an index; one field may have several."""
        values, several = values_of(condition)
        for index in indexes:
            rest = [field for field in index["fields"] if field not in values]
            if not index.get("unique") or index.get("partial_filter_expression") or index["name"] not in maps:
                continue
            if not rest:
                keys = [values]
            elif len(rest) == 1 and rest[0] in several:
                keys = [values | {rest[0]: value} for value in several[rest[0]]]
            else:
                continue
            found = maps[index["name"]]
            return [place for key in keys for place in found.get(self._index_key(key, index["fields"]), ())]
        return None


def values_of(condition: Any) -> tuple[dict[str, Any], dict[str, Sequence[Any]]]:
    """The fields that must have one value, or one of several: of a list or between two numbers."""
    values, several, lows, highs = dict[str, Any](), dict[str, Sequence[Any]](), dict[str, int](), dict[str, int]()
    for clause in flat(condition):
        if isinstance(clause, EqualsCondition) and clause.value is not None:  # fields without a value have another key
            values[clause.field] = clause.value
        elif isinstance(clause, InCondition):
            several[clause.field] = clause.values
        elif isinstance(clause, GreaterThanOrEqualCondition) and isinstance(clause.value, int):
            lows[clause.field] = clause.value
        elif isinstance(clause, LessThanOrEqualCondition) and isinstance(clause.value, int):
            highs[clause.field] = clause.value
    both = [(field, lows[field], highs[field]) for field in lows.keys() & highs]
    between = {field: range(low, high + 1) for field, low, high in both if high - low < LOOKUPS}
    return values, between | several


def flat(condition: Any) -> list[Any]:
    """The conditions that all have to hold."""
    if not isinstance(condition, AndCondition):
        return [condition]
    return [each for clause in condition.clauses for each in flat(clause)]


class Server(AsyncMongoEcoProxyServer):
    """The emulator's server, with transactions that take turns."""

    def __init__(self) -> None:
        self._documents = Engine()
        super().__init__(engine=self._documents)
        self._executor._surface = WireSurface(supported_commands=(*WIRE_SUPPORTED_COMMANDS, "collMod"))
        self._free = asyncio.Lock()
        self._holder: str | None = None
        self._committed: set[str] = set()
        self._held_by: Any = None
        self._too_late: asyncio.TimerHandle | None = None
        self._failure: dict[str, Any] | None = None
        self._execute = self._executor.execute_prepared
        self._close = self._connections.close
        vars(self._executor)["execute_prepared"] = self._answer
        vars(self._connections)["close"] = self._close_connection

    async def _answer(self, context: Any) -> dict[str, Any]:
        """Execute a command, or fail it as it was asked for."""
        body, name = context.raw_body, context.command_name
        if name == "configureFailPoint":
            self._failure = None if body["mode"] == "off" else {**body["data"], "mode": body["mode"]}
            return {"ok": 1.0}
        failure = self._failure
        if failure is None or name not in failure["failCommands"]:
            return await self._in_turn(context)
        if isinstance(failure["mode"], dict):
            left = failure["mode"]["times"] - 1
            self._failure = {**failure, "mode": {"times": left}} if left else None
        if "writeConcernError" in failure:
            return {**await self._in_turn(context), "writeConcernError": failure["writeConcernError"]}
        if failure.get("closeConnection"):
            raise asyncio.CancelledError  # which ends this connection without an answer
        labels = tuple(failure.get("errorLabels", ()))
        aborts = name != "commitTransaction" or "TransientTransactionError" in labels
        if "autocommit" in body and self._holder == holder(body) and aborts:
            self._release()
        raise OperationFailure("failed as asked for", code=failure["errorCode"], error_labels=labels)

    async def _in_turn(self, context: Any) -> dict[str, Any]:
        body, name = context.raw_body, context.command_name
        check_sizes(body)
        if "autocommit" not in body:
            if name not in WRITES:
                return await self._execute(context)
            async with self._free:
                return await self._write(context, name)
        if body.get("startTransaction"):
            # The session began when the request was read; it must see what others commit before its turn.
            session = context.session
            if session.transaction_active:
                session.abort_transaction()
            await self._free.acquire()
            session.start_transaction()
            self._hold(body, context)
        elif self._holder != holder(body):
            if name == "abortTransaction" or (name == "commitTransaction" and holder(body) in self._committed):
                return {"ok": 1.0}
            raise OperationFailure("the transaction was aborted", code=251, error_labels=("TransientTransactionError",))
        return await self._step(context, body, name)

    async def _write(self, context: Any, name: str) -> dict[str, Any]:
        if name == "collMod":
            body, options = context.raw_body, self._documents._collection_options[context.db_name]
            options[body["collMod"]] = {**options.get(body["collMod"], {}), "validator": body["validator"]}
            return {"ok": 1.0}
        try:
            return await self._execute(context)
        except PyMongoError as error:
            code = next(
                (code for (command, text), code in CODES.items() if command == name and text in str(error)), None
            )
            if code is None:
                raise
            raise OperationFailure(str(error), code=code) from None

    async def _step(self, context: Any, body: Mapping[str, Any], name: str) -> dict[str, Any]:
        failed = True
        self._held_by = context.connection.connection_id
        try:
            result = await self._execute(context)
            failed = result.get("ok") != 1.0 or bool(result.get("writeErrors"))
            if name == "commitTransaction" and not failed:
                self._committed.add(holder(body))
            return result
        finally:
            if self._holder == holder(body) and (failed or name in ENDS):
                self._release()

    def _hold(self, body: Mapping[str, Any], context: Any) -> None:
        self._holder, self._session = holder(body), context.session
        loop = asyncio.get_running_loop()
        self._too_late = loop.call_later(SECONDS, self._release)

    def _release(self) -> None:
        if self._session.transaction_active:
            self._session.abort_transaction()
        if self._too_late:
            self._too_late.cancel()
        self._holder = self._held_by = None
        self._free.release()

    def _close_connection(self, connection: Any) -> None:
        self._close(connection)
        if self._holder is not None and self._held_by == connection.connection_id:
            self._release()


def holder(body: Mapping[str, Any]) -> str:
    """The transaction that a command belongs to."""
    return f"{body['lsid']['id']}/{body['txnNumber']}"


def check_sizes(body: Mapping[str, Any]) -> None:
    """Refuse a document that MongoDB would refuse."""
    for document in body.get("documents", ()):
        if sum(len(value.encode()) for value in document.values() if isinstance(value, str)) > 16 << 20:
            raise OperationFailure("object to insert too large", code=10334)


async def main() -> None:
    """Serve until stdin ends: whoever started this is gone then."""
    mongo_shortcuts.install()
    server = Server()
    address = await server.start()
    print(address.port, flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
