"""What one database exports another one imports and exports again: the same bytes, whatever lies between."""

import gzip
import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from _pytest.mark import ParameterSet

from chatkeep.formats.jsonl import export_lines, import_lines
from chatkeep.store import open_store
from conftest import STORES
from servers.mongo import mongo_databases

DATA = Path(__file__).parents[3] / "shared" / "data" / "conversations"
SAMPLE = Path(__file__).parents[2] / "examples" / "conversations.jsonl"
OWNER = "ada"
FEW = 12
LINES = int(os.environ.get("CHATKEEP_ROUND_TRIP_LINES", FEW))
"""Conversations that are taken of each data set: the emulator of MongoDB takes a millisecond for a message."""


LONG = ("oasst1_en", "tau_bench_airline")
"""Trees, and calls of tools."""


def sources() -> Iterator[ParameterSet]:
    """The sample, and the real data sets where they are: three of them, and the others in `make apart`."""
    for path in (SAMPLE, *sorted(DATA.glob("*.jsonl.gz"))):
        name = path.name.partition(".")[0]
        marks = () if name in ("conversations", "crosswoz") else pytest.mark.long if name in LONG else pytest.mark.apart
        yield pytest.param(path, id=path.name, marks=marks)


def lines_of(path: Path) -> list[bytes]:
    """The first lines of a data set."""
    if path.suffix != ".gz":
        return path.read_bytes().splitlines(keepends=True)
    with gzip.open(path) as lines:
        return list(islice(lines, LINES))


async def through(url: str, lines: list[bytes]) -> bytes:
    """What a store exports after it imported some lines."""
    async with open_store(url) as store:
        errors = [result.error async for result in import_lines(store, OWNER, lines)]
        assert errors == [None] * len(lines)
        return b"".join([piece async for piece in export_lines(store, OWNER)])


def without_times(exported: bytes) -> list[dict[str, Any]]:
    """An export without the times of the store that wrote it."""
    entries = [json.loads(line) for line in exported.splitlines()]
    for each in entries:
        for record in (each, *each["messages"]):
            del record["created_at"]
        del each["updated_at"]
    return entries


def url_of(name: str, folder: Path) -> str:
    """An empty database; after whole data sets a new one on MongoDB, as the emulator takes minutes to empty it."""
    return mongo_databases().migrated() if name == "mongodb" and LINES > FEW else STORES[name](folder)


@pytest.mark.parametrize("path", list(sources()))
async def test_through_every_database(path: Path, tmp_path: Path) -> None:
    """SQLite → MongoDB → PostgreSQL → SQLite: each export is the one before it, to the byte."""
    (tmp_path / "first").mkdir()
    first = await through(STORES["sqlite"](tmp_path / "first"), lines_of(path))
    assert first.count(b"\n") == len(lines_of(path))
    exported = first
    for name in ("mongodb", "postgres", "sqlite"):
        exported = await through(url_of(name, tmp_path), exported.splitlines(keepends=True))
        assert exported == first, name
    assert without_times(await through(url_of("mongodb", tmp_path), lines_of(path))) == without_times(first)
