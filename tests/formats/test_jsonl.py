"""Conversations in and out as lines of JSON: nothing lost, nothing doubled, one bad line no harm to the others."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from chatkeep.errors import InvalidInput
from chatkeep.formats.jsonl import WINDOW_LINES, WRITERS, export_lines, import_id, import_lines, parse_line
from chatkeep.ids import new_id
from chatkeep.model import Conversation, ConversationChange, NewConversation, NewMessage, Role
from chatkeep.store import Store, open_store

DATA = Path(__file__).parents[3] / "shared" / "data" / "conversations"
SAMPLE = Path(__file__).parents[2] / "examples" / "conversations.jsonl"
OWNER = "ada"


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    url = "memory://" if request.param == "memory" else f"sqlite:///{tmp_path / 'chat.db'}"
    async with open_store(url) as opened:
        yield opened


def line(**changes: Any) -> bytes:
    """A line with two messages, changed as wanted."""
    messages = [
        {"id": "1", "parent_id": None, "role": "user", "content": "question"},
        {"id": "2", "parent_id": "1", "role": "assistant", "content": "answer"},
    ]
    return json.dumps({"id": "c1", "source": "test", "messages": messages} | changes).encode() + b"\n"


def message(**changes: Any) -> dict[str, Any]:
    """A message of a line."""
    return {"id": "1", "parent_id": None, "role": "user", "content": "question"} | changes


async def import_all(store: Store, *lines: bytes) -> list[str | None]:
    """Import lines; returns each line's error."""
    return [result.error async for result in import_lines(store, OWNER, lines)]


async def export_all(store: Store, owner: str = OWNER) -> str:
    """The owner's whole export."""
    return "".join([piece async for piece in export_lines(store, owner)])


async def parsed_export(store: Store) -> dict[str, Any]:
    """The owner's export as objects by id."""
    return {entry["id"]: entry for entry in map(json.loads, (await export_all(store)).splitlines())}


async def test_an_export_says_what_the_import_said(store: Store) -> None:
    """Trees, tool calls, scripts, empty turns, heads and times of the sample come back as they were."""
    assert await import_all(store, *SAMPLE.read_bytes().splitlines(keepends=True)) == [None] * 7

    original = {entry["id"]: entry for entry in map(json.loads, SAMPLE.read_text("utf-8").splitlines())}
    assert await parsed_export(store) == original


async def test_importing_twice_doubles_nothing(store: Store) -> None:
    """The second import finds everything there, also when the conversation has grown since."""
    await import_all(store, line())
    first = await export_all(store)
    assert await import_all(store, line()) == [None]
    assert await export_all(store) == first

    (conversation,) = (await store.list_conversations(OWNER)).items
    await store.append(OWNER, conversation.id, [NewMessage(role=Role.USER, content="more")])
    assert await import_all(store, line()) == [None]
    assert (await store.get_conversation(OWNER, conversation.id)).last_seq == 3


async def test_a_grown_file_brings_only_what_is_new(store: Store) -> None:
    """A conversation that has more messages in a later file gets those."""
    await import_all(store, line())
    more = json.loads(line())["messages"] + [message(id="3", parent_id="2", content="again")]
    assert await import_all(store, line(messages=more)) == [None]
    (conversation,) = (await store.list_conversations(OWNER)).items
    assert conversation.last_seq == 3


async def test_a_stores_own_export_changes_nothing_there(store: Store) -> None:
    """What was written by an application and exported can be imported into the same store: it is there already."""
    conversation = await store.create_conversation(OWNER, NewConversation(metadata={"lang": "en", "x": 1}))
    await store.append(OWNER, conversation.id, [NewMessage(role=Role.USER, content="hello")])
    exported = await export_all(store)

    assert await import_all(store, exported.encode()) == [None]
    assert await export_all(store) == exported


async def test_a_backup_comes_back_elsewhere_byte_for_byte(store: Store) -> None:
    """Ids, times, branches, the head, deleted messages, sources and titles survive a move to another store."""
    conversation = await store.create_conversation(OWNER, NewConversation(title="T", context_id="k", external_id="e"))
    ids = [new_id() for _ in range(4)]
    source = {"document_id": str(new_id()), "file_path": "a.md", "header_anchor": None, "similarity_score": 0.25}
    await store.append(
        OWNER,
        conversation.id,
        [
            NewMessage(id=ids[0], role=Role.USER, content="q\x00\u2028😀", metadata={"big": 10**40}),
            NewMessage.model_validate({"id": ids[1], "role": "assistant", "content": "a", "sources": [source]}),
            NewMessage(id=ids[2], role=Role.ASSISTANT, content="b", parent_id=ids[0], external_id="framework-7"),
            NewMessage(id=ids[3], role=Role.USER, content="gone"),
        ],
    )
    await store.delete_message(OWNER, conversation.id, ids[3])
    await store.update_conversation(OWNER, conversation.id, ConversationChange(head_id=ids[1]))
    exported = await export_all(store)

    async with open_store("memory://") as other:
        assert await import_all(other, exported.encode()) == [None]
        assert await export_all(other) == exported
        there = await other.get_conversation(OWNER, conversation.id)
        assert (there.id, there.head_id, there.title, there.context_id) == (conversation.id, ids[1], "T", "k")


@pytest.mark.long
def test_a_hostile_line_is_refused_soon() -> None:
    """Eight megabytes of empty lists are not stored, and do not hold up the lines after them for long."""
    bad = with_value("[" + "[]," * 2_700_000 + "[]]", "message")
    began = time.process_time()
    with pytest.raises(InvalidInput, match="at most 100,000 values"):
        parse_line(OWNER, bad)
    assert time.process_time() - began < 5.0


async def test_metadata_at_a_limit_comes_back(store: Store) -> None:
    """What is stored within the limits is exported, and imported elsewhere with the same lines."""
    for number, value in enumerate((nested(99), 10**4_300 - 1, [0] * 99_998, "x" * ((1 << 20) - 25))):
        conversation = await store.create_conversation(
            OWNER, NewConversation(metadata={"x": value, "source": str(number)})
        )
        await store.append(OWNER, conversation.id, NewMessage(role=Role.USER, content="x", metadata={"x": value}))
    text = await export_all(store)
    async with open_store("memory://") as other:
        assert await import_all(other, *text.encode().splitlines(keepends=True)) == [None] * 4
        assert await export_all(other) == text


def nested(levels: int) -> Any:
    """So many lists, each in the next."""
    return [nested(levels - 1)] if levels else 1


async def test_another_owner_gets_conversations_of_its_own(store: Store) -> None:
    """The same file imported for two owners gives each its own, with different ids."""
    await import_all(store, line())
    async for _ in import_lines(store, "bob", [line()]):
        pass
    mine, theirs = [(await store.list_conversations(owner)).items[0].id for owner in (OWNER, "bob")]
    assert mine != theirs
    assert await export_all(store) == await export_all(store, "bob")


BAD = [
    (b"{not json\n", "not JSON"),
    (b"\xff\xfe\n", "not JSON"),
    (b"[" * 100_000 + b"\n", "not JSON|nested"),
    (line(messages=None), "messages"),
    (line(id=""), "id"),
    (line(id=7), "id"),
    (line(surprise=1), "surprise: Extra inputs"),
    (line(messages=[message(role="robot")]), "message 1, role"),
    (line(messages=[message(content=None)]), "message 1, content"),
    (line(messages=[message(), message()]), "message 2 has the id of an earlier one"),
    (line(messages=[message(parent_id="9")]), "message 1 follows a message that does not stand before it"),
    (line(messages=[message(created_at="2026-01-01")]), "message 1, created_at"),
    (line(messages=[message(status="deleted")]), "message 1 is deleted and has content"),
    (line(messages=[message(thinking="…")]), "message 1, thinking: Extra inputs"),
    (line(head="9"), "head names no message"),
    (line(metadata={"x": float("nan")}), "not JSON"),
    (line().replace(b'"test"', b'"test", "metadata": {"x": 1e999}'), "too large"),
]


def with_value(value: str, of: str) -> bytes:
    """A line with a value in the metadata of its message, or of the conversation."""
    metadata = {"x": "PLACE"}
    text = line(messages=[message(metadata=metadata)]) if of == "message" else line(metadata=metadata)
    return text.replace(b'"PLACE"', value.encode())


BEYOND = {
    "levels": ("[" * 100 + "]" * 100, "at most 100 levels"),
    "more levels than a fast parser reads": ("[" * 300 + "]" * 300, "at most 100 levels"),
    "digits": ("1" * 4_301, "at most 4,300 digits"),
    "values": (str([0] * 100_000), "at most 100,000 values"),
    "bytes": (f'"{"x" * (1 << 20)}"', "at most 1,048,576 bytes"),
}
"""Values of metadata beyond a limit, and what the error says."""

SOURCE = {"document_id": "0190f0f0-0000-7000-8000-000000000001", "file_path": "f", "similarity_score": 0.5}

BAD += [(with_value(value, of), rf"{place}metadata: .*{reason}.*can be exported, but not imported")
        for of, place in (("message", "message 1, "), ("conversation", "^"))
        for value, reason in BEYOND.values()]  # fmt: skip
BAD += [
    (line(lang="x", metadata={str(number): 0 for number in range(100_000)}), "^metadata: .*at most 100,000 values"),
    (line(source="x" * (1 << 20)), "^metadata: .*at most 1,048,576 bytes"),
    (line(messages=[message(sources=[SOURCE] * 1_001)]), "message 1, sources: .*can be exported, but not imported"),
    (line(messages=[message(sources=[1] * 100_000)]), "message 1, sources, message 1: "),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=lambda value: f"{len(value)}" if len(value) > 99 else None)
async def test_a_bad_line_is_refused_whole_and_stops_nobody(store: Store, bad: bytes, reason: str) -> None:
    """The error says what is wrong and where; the lines around it are stored, and nothing of the bad one is."""
    errors = await import_all(store, line(id="before"), bad, line(id="after"))

    assert [error is None for error in errors] == [True, False, True]
    assert re.search(reason, str(errors[1]))
    assert (await parsed_export(store)).keys() == {"before", "after"}


async def test_results_name_the_line(store: Store) -> None:
    """Every line is answered for in order, with its number, however many there are."""
    lines = [line(id=f"c{number}") for number in range(WINDOW_LINES + 10)]
    lines[WINDOW_LINES + 5] = b"{}\n"
    results = [result async for result in import_lines(store, OWNER, lines)]

    assert [result.number for result in results] == list(range(1, WINDOW_LINES + 11))
    assert [result.number for result in results if result.error] == [WINDOW_LINES + 6]


async def test_a_slow_store_is_not_asked_for_all_at_once(store: Store) -> None:
    """No more lines are stored at a time than a slow store answers within its patience."""
    create, at_once, most = store.create_conversation, 0, 0

    async def slow(owner: str, new: NewConversation) -> Conversation:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.1)
        at_once -= 1
        return await create(owner, new)

    store.create_conversation = slow  # type: ignore[method-assign]
    lines = [line(id=f"c{number}") for number in range(WINDOW_LINES + 10)]
    assert all([result.error is None async for result in import_lines(store, OWNER, lines)])
    assert most == WRITERS < WINDOW_LINES


async def test_lone_surrogates_do_not_lose_a_conversation(store: Store) -> None:
    """A lone surrogate in a file becomes U+FFFD; pairs become their character."""
    text = line(messages=[message(content="PLACE")]).replace(b"PLACE", rb"\ud83d\ude00 \ud800")
    assert await import_all(store, text) == [None]
    (entry,) = (await parsed_export(store)).values()
    assert entry["messages"][0]["content"] == "😀 \ufffd"


async def test_times_are_not_invented(store: Store) -> None:
    """A message that came without a time leaves without one, whether its id is a UUID or not."""
    messages = [
        message(),
        message(id=str(new_id()), parent_id="1"),
        message(id="3", created_at="2026-01-01T00:00:00.5Z"),
    ]
    await import_all(store, line(messages=messages))
    (entry,) = (await parsed_export(store)).values()
    assert [item.get("created_at") for item in entry["messages"]] == [None, None, "2026-01-01T00:00:00.500000Z"]


async def test_conversations_are_listed_by_when_they_happened(store: Store) -> None:
    """An imported conversation's updated_at is its last message's time, not the import's."""
    await import_all(
        store,
        line(id="new", messages=[message(created_at="2024-05-01T00:00:00Z")]),
        line(id="old", messages=[message(created_at="2020-05-01T00:00:00Z")]),
    )
    listed = (await store.list_conversations(OWNER)).items
    assert [(item.external_id, item.updated_at.year) for item in listed] == [("new", 2024), ("old", 2020)]


async def test_imported_messages_are_found(store: Store) -> None:
    """The full-text index has imported messages as soon as the store has caught up."""
    await import_all(store, *SAMPLE.read_bytes().splitlines(keepends=True))
    await store.migrate()
    hits = (await store.search_messages(OWNER, "文件")).items
    assert {hit.title for hit in hits} == {"保存对话"}
    assert len(hits) == 2


def test_ids_are_mapped_the_same_way_for_ever() -> None:
    """A UUID stays itself; another id becomes a UUID version 5 that depends on nothing but namespace and text."""
    namespace = parse_line("ada", line()).conversation.id
    assert str(namespace) == "86260462-d899-52c9-8b8c-b5a47a70482c"
    assert namespace is not None
    made, kept = import_id(namespace, "1")
    assert (made.version, kept) == (5, "1")
    own = new_id()
    assert import_id(namespace, str(own)) == (own, None)
    assert import_id(namespace, str(own).upper())[1] == str(own).upper()


@pytest.mark.parametrize(
    "name",
    [
        "oasst1_en",
        "tau_bench_airline",
        pytest.param("mtrag_un", marks=pytest.mark.long),
        pytest.param("arena_hard", marks=pytest.mark.long),
    ],
)
async def test_real_conversations_survive(name: str, tmp_path: Path) -> None:
    """Real trees, tool calls, sources and long texts: the export says what the file says, and again elsewhere."""
    file = DATA / f"{name}.jsonl.gz"
    if not file.exists():
        pytest.skip(f"{file} is absent: real conversations are not part of the repository")
    with gzip.open(file) as packed:
        lines = packed.read().splitlines(keepends=True)
    originals = {entry["id"]: entry for entry in map(json.loads, lines)}
    async with (
        open_store(f"sqlite:///{tmp_path / 'a.db'}") as store,
        open_store(f"sqlite:///{tmp_path / 'b.db'}") as other,
    ):
        assert set(await import_all(store, *lines)) == {None}
        exported = await export_all(store)
        assert set(await import_all(other, *exported.encode().splitlines(keepends=True))) == {None}
        assert await export_all(other) == exported
    assert {entry["id"]: entry for entry in map(json.loads, exported.split("\n")[:-1])} == originals
