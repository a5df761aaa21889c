"""Databases that released commits wrote, used by this one: opened, read, retried, exported and continued.

tests/fixtures/databases/ has a folder for each of those commits. A new one needs a new folder and nothing here:
`write_databases.py` makes it. What these tests compare with is what the old commit itself returned.
"""

import asyncio
import gzip
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from bson import json_util
from pydantic import ValidationError
from pymongo import IndexModel
from typer.testing import CliRunner

from chatkeep import ConversationChange, InvalidInput, NewConversation, NewMessage, NotFound, Store, open_store
from chatkeep.access import Reply
from chatkeep.cli.app import app
from chatkeep.formats.jsonl import import_lines
from chatkeep.settings import LOCAL_OWNER
from chatkeep.testing import dense, seqs, user
from chatkeep.values import json_text
from fixtures.databases.write_databases import (
    EXTENDED,
    FORMAT,
    conversations,
    dump,
    everything,
    export,
    hits,
    messages,
    without_limits,
)
from servers.api import serving
from servers.mongo import mongo_databases
from servers.postgres import databases, plain

FIXTURES = Path(__file__).parents[1] / "fixtures" / "databases"
COMMITS = sorted(file.parent.name for file in FIXTURES.glob("*/sqlite.expected.json"))
KINDS = ("sqlite", "postgres", "mongodb")

BETWEEN = ("07e9ee1",)
"""Commits between the oldest and the newest one: what they wrote on servers is used in `make apart`."""

BEYOND = {"digits": "at most 4,300 digits"}
"""Whose metadata is beyond limits that did not exist when it was stored, and what its refusal says now."""


NEW_FIELDS: dict[str, dict[str, Any]] = {
    "last_seq": {"project_id": None, "llm_provider_id": None, "labels": []},
    "seq": dict.fromkeys(("parts", "model", "input_tokens", "output_tokens", "duration_ms")),
}
"""What records have now that an old commit did not know, by a field that tells the kind of record."""


def of_today(value: Any) -> Any:
    """What an old commit returned, with the fields that records have got since."""
    if isinstance(value, list):
        return [of_today(each) for each in value]
    if not isinstance(value, dict):
        return value
    new = next((fields for name, fields in NEW_FIELDS.items() if name in value and "created_at" in value), {})
    return new | {name: of_today(each) for name, each in value.items()}


@dataclass
class Old:
    """A copy of a fixture, not opened yet, and what is expected of it."""

    url: str
    expected: dict[str, Any]

    @property
    def owners(self) -> dict[str, Any]:
        """What is expected of each owner."""
        found: dict[str, Any] = self.expected["owners"]
        return found


def param(commit: str, kind: str) -> Any:
    """A parameter of the fixture below."""
    is_apart = kind != "sqlite" and commit in BETWEEN
    return pytest.param(f"{commit}/{kind}", marks=pytest.mark.apart if is_apart else ())


@pytest.fixture(params=[param(commit, kind) for commit in COMMITS for kind in KINDS])
def old(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Old]:
    """A database of each released commit and kind."""
    commit, kind = request.param.split("/")
    with without_limits():
        expected = json.loads((FIXTURES / commit / f"{kind}.expected.json").read_text("utf-8"))
        expected["owners"] = of_today(expected["owners"])
    with {"sqlite": sqlite, "postgres": postgres, "mongodb": mongodb}[kind](FIXTURES / commit, tmp_path) as url:
        yield Old(url, expected)


@contextmanager
def sqlite(folder: Path, tmp_path: Path) -> Iterator[str]:
    """Unpack the file."""
    file = tmp_path / "old.db"
    file.write_bytes(gzip.decompress((folder / "sqlite.db.gz").read_bytes()))
    yield f"sqlite:///{file}"


@contextmanager
def postgres(folder: Path, _: Path) -> Iterator[str]:
    """Execute the statements in a new database."""

    async def restore() -> None:
        connection = await asyncpg.connect(plain(url))
        script = (folder / "postgres.sql").read_text("utf-8")
        await connection.execute(script.replace("INDEX CONCURRENTLY", "INDEX"))  # nobody else writes
        await connection.close()

    url = databases().empty()
    asyncio.run(restore())
    yield url
    databases().drop(url)


@contextmanager
def mongodb(folder: Path, _: Path) -> Iterator[str]:
    """Make the collections with their validators, indexes and documents."""
    url = mongo_databases().empty()
    database = mongo_databases().database(url)
    text = (folder / "mongodb.json").read_text("utf-8")
    for name, values in json_util.loads(text, json_options=EXTENDED).items():
        collection = database.create_collection(
            name, **({"validator": values["validator"]} if values["validator"] else {})
        )
        for index in values["indexes"]:
            options = {key: index[key] for key in ("name", "unique", "partialFilterExpression") if index.get(key)}
            collection.create_indexes([IndexModel(list(index["key"].items()), **options)])
        if values["documents"]:
            collection.insert_many(values["documents"])
    if mongo_databases().emulated:
        # The emulator reads whole collections where a compound index would serve.
        database.messages.create_index("conversation_id", name="emulator")
    yield url
    database.client.drop_database(database.name)


def test_database_is_brought_to_head(old: Old, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `chatkeep db upgrade`, `chatkeep db status` says that the database is at the newest revision."""
    monkeypatch.setenv("CHATKEEP_DATABASE_URL", old.url)
    for command in ("upgrade", "status"):
        done = CliRunner().invoke(app, ["db", command])
        assert done.exit_code == 0, done.output
    assert asyncio.run(revision(old.url)) == "at head"


async def revision(url: str) -> str | None:
    """Say whether the revision is the newest one, or return it."""
    async with open_store(url, migrate=False) as store:
        await store.ping()
        found = await store.schema_revision()
        return "at head" if found == store.newest_revision else found


async def test_everything_is_read_as_before(old: Old) -> None:
    """Conversations, logs, histories, paths, siblings and search hits are what the old commit returned."""
    async with open_store(old.url) as store:
        for owner, expected in old.owners.items():
            found = await conversations(store, owner)
            assert found == {key: expected[key] for key in ("conversations", "listed")}
            for id_, talk in expected["messages"].items():
                assert await messages(store, owner, id_) == talk
            assert await hits(store, owner) == expected["hits"]


async def test_an_export_restores_what_is_there(old: Old) -> None:
    """An export of each owner gives equal records elsewhere. Lines beyond today's limits are refused, which says so."""
    async with open_store(old.url) as store, open_store("memory://") as other:
        for owner, expected in old.owners.items():
            lines = (await export(store, owner)).encode().splitlines(keepends=True)
            errors = [each.error async for each in import_lines(other, owner, lines)]
            if owner in BEYOND:
                assert [BEYOND[owner] in str(error) and "not imported" in str(error) for error in errors] == [True]
            else:
                assert errors == [None] * len(lines)
                assert await without_export(other, owner) == expected | {"export": None}


async def test_an_export_of_the_old_commit_is_known(old: Old) -> None:
    """Lines that the old commit exported bring nothing new to their store, and are read elsewhere."""
    async with open_store(old.url) as store, open_store("memory://") as other:
        for owner in old.owners.keys() - BEYOND.keys():
            lines = old.owners[owner]["export"].encode().splitlines(keepends=True)
            receipts = [each.receipt async for each in import_lines(store, owner, lines)]
            assert {receipt and (receipt.created, receipt.messages) for receipt in receipts} <= {(False, 0)}
            assert {receipt and receipt.differences for receipt in receipts} <= {()}
            assert [each.error async for each in import_lines(other, owner, lines)] == [None] * len(lines)
            assert await without_export(store, owner) == old.owners[owner] | {"export": None}


async def without_export(store: Store, owner: str) -> dict[str, Any]:
    """All that the port tells of an owner; an export is another one now."""
    return await everything(store, owner) | {"export": None}


async def test_retries_find_what_is_stored(old: Old) -> None:
    """Every call that was made returns what is stored when it is made again, and changes nothing.

    What is beyond today's limits cannot be sent again: the call is refused, and what is stored stays.
    """
    async with open_store(old.url) as store:
        for call in old.expected["calls"]:
            if message := BEYOND.get(call["owner"]):
                with pytest.raises(ValidationError, match=message):
                    await retry(store, call, old.owners[call["owner"]])
            else:
                await retry(store, call, old.owners[call["owner"]])
        for owner, lines in old.expected["imported"].items():
            texts = [json.dumps(line).encode() for line in lines]
            done = [each async for each in FORMAT.import_lines(store, owner, texts)]
            known = [(each.error, each.receipt and each.receipt.known) for each in done]
            assert known == [(None, len(line["messages"])) for line in lines]
        for owner, expected in old.owners.items():
            assert await without_export(store, owner) == expected | {"export": None}


async def retry(store: Store, call: dict[str, Any], expected: dict[str, Any]) -> None:
    """Make a call again."""
    owner, stored = call["owner"], {each["id"]: each for each in expected["conversations"]}
    if call["call"] == "append":
        new = [NewMessage.model_validate(each) for each in call["messages"]]
        log = {each["id"]: each for each in expected["messages"][call["conversation"]]["log"]}
        found = await store.append(owner, call["conversation"], new)
        assert [dump(each) for each in found] == [log[str(each.id)] for each in new]
    elif call["call"] == "create":
        conversation = await store.create_conversation(owner, NewConversation.model_validate(call["new"]))
        assert dump(conversation) == stored[call["new"]["id"]]
    else:
        conversation = await store.get_or_create_conversation(owner, NewConversation.model_validate(call["new"]))
        assert dump(conversation) == stored[call["id"]]


async def test_conversations_go_on(old: Old) -> None:
    """New messages follow the head of every conversation with the next seqs, and are found."""
    async with open_store(old.url) as store:
        for owner, expected in old.owners.items():
            for talk in expected["conversations"]:
                last = talk["last_seq"]
                stored = await store.append(owner, talk["id"], [user("quince"), user("medlar")])
                assert seqs(stored) == [last + 1, last + 2]
                assert [str(stored[0].parent_id), stored[1].parent_id] == [str(talk["head_id"]), stored[0].id]
                assert [each.id for each in await store.log(owner, talk["id"], after=last)] == [e.id for e in stored]
            for talk in expected["conversations"]:
                assert seqs(await store.log(owner, talk["id"])) == dense(talk["last_seq"] + 2)
            found = (await store.search_messages(owner, "quince", limit=1_000)).items
            assert len(found) == len(expected["conversations"])


EXTREME = ("digits", "levels")
"""The owners whose metadata is long or deep. A commit that refuses it writes no such owner."""


async def test_extreme_metadata_is_shown_over_http(old: Old) -> None:
    """Lists, histories, hits and single records answer with metadata of any length and depth, as it is stored."""
    async with open_store(old.url) as store, serving(store) as api:
        for owner in old.owners.keys() & EXTREME:
            await store.rename_owner(owner, LOCAL_OWNER)
            (talk,) = (await store.list_conversations(LOCAL_OWNER)).items
            (message,) = await store.log(LOCAL_OWNER, talk.id)
            path = f"/api/conversations/{talk.id}"
            for url in ("/api/conversations", path, f"{path}/messages", f"{path}/messages/{message.id}",
                        f"{path}/messages/{message.id}/siblings", f"/api/search?q={owner}"):  # fmt: skip
                reply = await api.client.get(url)
                assert reply.status_code == 200, url
                assert json_text(message.metadata) in reply.text
            await store.erase_owner(LOCAL_OWNER)


async def test_extreme_metadata_can_be_changed_and_deleted(old: Old) -> None:
    """A title can be changed, metadata replaced by what is within the limits, messages and conversations deleted."""
    async with open_store(old.url) as store:
        for owner in old.owners.keys() & EXTREME:
            (talk,) = (await store.list_conversations(owner)).items
            (message,) = await store.log(owner, talk.id)
            changed = await store.update_conversation(owner, talk.id, ConversationChange(title="t2"))
            assert (changed.title, changed.metadata) == ("t2", talk.metadata)
            changed = await store.update_conversation(owner, talk.id, ConversationChange(metadata={"more": 1}))
            assert changed.metadata == {**talk.metadata, "more": 1}
            assert (await store.get_conversation(owner, talk.id)).metadata == changed.metadata
            within: dict[str, Any] = {**dict.fromkeys(changed.metadata), "new": 1}
            changed = await store.update_conversation(owner, talk.id, ConversationChange(metadata=within))
            assert changed.metadata == {"new": 1}
            assert await store.delete_message(owner, talk.id, message.id)
            assert [each.metadata for each in await store.log(owner, talk.id)] == [{}]
            assert await store.delete_conversation(owner, talk.id)
            assert (await store.erase_owner(owner)).remaining == 0


async def test_remains_are_removed(old: Old) -> None:
    """A conversation whose removal was cut off is gone when the database was opened, with all its messages."""
    logs = [each["log"] for each in old.owners["ada"]["messages"].values()]
    async with open_store(old.url) as store:
        with pytest.raises(NotFound):
            await store.get_conversation("ada", old.expected["removed"])
        assert not await store.delete_conversation("ada", old.expected["removed"])
        receipt = await store.erase_owner("ada")
        assert (receipt.conversations, receipt.messages, receipt.remaining) == (len(logs), sum(map(len, logs)), 0)
        assert await without_export(store, "bob") == old.owners["bob"] | {"export": None}


async def test_id_of_remains_is_free(old: Old) -> None:
    """A conversation may get the id of one whose removal was cut off, also while its remains are there."""
    removed = old.expected["removed"]
    async with open_store(old.url, migrate=False) as store:
        await store._migrate("head")  # type: ignore[attr-defined]
        assert (await store.create_conversation("ada", NewConversation(id=removed))).last_seq == 0
        assert seqs(await store.append("ada", removed, [user("anew")])) == [1]
        assert seqs(await store.log("ada", removed)) == [1]


async def test_keys_and_replies_are_kept(old: Old) -> None:
    """API keys are found, replies are given again, and a request whose server died is executed."""
    async with open_store(old.url) as store:
        access = store.access
        assert [dump(key) for key in await access.list_keys()] == old.expected["keys"]
        for id_, secret in old.expected["hashes"].items():
            found = await access.find_key(id_)
            assert found is not None
            assert (found[0].id, found[1].hex()) == (id_, secret)
        for key, (status, body, location) in old.expected["replies"].items():
            reply = await access.begin_request("ada", key, key.encode())
            assert reply == Reply(status, bytes.fromhex(body), location)
            with pytest.raises(InvalidInput, match="used for another request"):
                await access.begin_request("ada", key, b"other")
        assert await access.begin_request("ada", "lost", b"lost") is None


def test_digits_are_more_than_python_reads() -> None:
    """The limit that makes one of the fixtures unreadable is the one of the interpreter, not one that tests set."""
    assert sys.get_int_max_str_digits() == sys.int_info.default_max_str_digits
