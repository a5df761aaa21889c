"""Conversations in and out as lines of JSON: nothing lost, nothing doubled, one bad line no harm to the others."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from chatkeep.errors import InvalidInput, StoreUnavailable
from chatkeep.formats.jsonl import LONG_LINE, WINDOW_LINES, WRITERS, export_lines, import_lines, parse_line
from chatkeep.ids import foreign_id, new_id
from chatkeep.model import Conversation, ConversationChange, ImportReceipt, NewConversation, NewMessage, Role
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


def restorable(*messages: dict[str, Any]) -> bytes:
    """A line of format 2."""
    own = {"id": "0190f0f0-0000-7000-8000-000000000001", "created_at": "2026-01-31T12:00:00Z"}
    more = {"head_id": None, "updated_at": own["created_at"]}
    return json.dumps({"format": 2, **own, **more, "messages": [each | own for each in messages]}).encode()


async def import_all(store: Store, *lines: bytes) -> list[str | None]:
    """Import lines; returns each line's error."""
    return [result.error async for result in import_lines(store, OWNER, lines)]


async def export_all(store: Store, owner: str = OWNER) -> bytes:
    """The owner's whole export."""
    return b"".join([piece async for piece in export_lines(store, owner)])


async def parsed_export(store: Store) -> dict[str, Any]:
    """The owner's export as objects by the ids that they were imported with."""
    entries = map(json.loads, (await export_all(store)).splitlines())
    return {entry.get("external_id", entry["id"]): entry for entry in entries}


def as_said(exported: dict[str, Any], original: dict[str, Any]) -> dict[str, Any]:
    """What a line of an export says of an imported line, as that would say it."""
    metadata = dict(exported.get("metadata", {}))
    names = {each["id"]: each.get("external_id", each["id"]) for each in exported["messages"]}
    said: dict[str, Any] = {
        "id": exported.get("external_id", exported["id"]),
        **{name: metadata.pop(name) for name in ("source", "lang") if name in metadata},
        "messages": [message_as_said(each, names) for each in exported["messages"]],
    }
    if "title" in original:  # otherwise it was made from the first message
        said["title"] = exported["title"]
    if metadata:
        said["metadata"] = metadata
    if exported["messages"] and exported["head_id"] != exported["messages"][-1]["id"]:
        said["head"] = names[exported["head_id"]]
    return said


def message_as_said(exported: dict[str, Any], names: dict[str, str]) -> dict[str, Any]:
    """What a message of an export says, as the line that it was imported from would."""
    kept = ("role", "content", "status", "sources", "metadata")
    said = {name: exported[name] for name in kept if name in exported}
    said |= {"id": names[exported["id"]], "parent_id": exported["parent_id"] and names[exported["parent_id"]]}
    return said | ({"created_at": exported["sent_at"]} if "sent_at" in exported else {})


def same_times(entry: dict[str, Any]) -> dict[str, Any]:
    """A line with its times in one form."""
    messages = [
        each | {"created_at": datetime.fromisoformat(each["created_at"])} if "created_at" in each else each
        for each in entry["messages"]
    ]
    return entry | {"messages": messages}


def assert_says(exported: dict[str, Any], originals: dict[str, Any]) -> None:
    """Every line of the originals is in the export, with all that it says."""
    assert exported.keys() == originals.keys()
    for name, original in originals.items():
        assert same_times(as_said(exported[name], original)) == same_times(original)


async def test_an_export_says_what_the_import_said(store: Store) -> None:
    """Trees, tool calls, scripts, empty turns, heads and times of the sample come back as they were."""
    assert await import_all(store, *SAMPLE.read_bytes().splitlines(keepends=True)) == [None] * 7

    assert_says(
        await parsed_export(store), {entry["id"]: entry for entry in map(json.loads, SAMPLE.read_bytes().splitlines())}
    )


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

    assert await import_all(store, exported) == [None]
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
        assert await import_all(other, exported) == [None]
        assert await export_all(other) == exported
        there = await other.get_conversation(OWNER, conversation.id)
        assert (there.id, there.head_id, there.title, there.context_id) == (conversation.id, ids[1], "T", "k")


@pytest.mark.long
def test_a_hostile_line_is_refused_soon() -> None:
    """Eight megabytes of empty lists are not stored, and do not hold up the lines after them for long."""
    bad = with_value("[" + "[]," * 2_700_000 + "[]]", "message")
    began = time.process_time()
    with pytest.raises(InvalidInput, match=r"a line of 8,100,141 bytes may have at most"):
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
        assert await import_all(other, *text.splitlines(keepends=True)) == [None] * 4
        assert await export_all(other) == text


@pytest.mark.parametrize("levels", [120, 250, 260, 900, 3_000, 100_000])
@pytest.mark.parametrize("place", ["message", "conversation", "unknown", "sources"])
async def test_a_deep_line_is_refused_alone(store: Store, levels: int, place: str) -> None:
    """However deep a line is, and wherever, it is refused, and the lines around it are stored."""
    deep = "[" * levels + "]" * levels
    bad = with_value(deep, place) if place in ("message", "conversation") else line(**{place: "PLACE"})
    errors = await import_all(store, line(id="before"), bad.replace(b'"PLACE"', deep.encode()), line(id="after"))
    assert [error is None for error in errors] == [True, False, True]
    assert (await parsed_export(store)).keys() == {"before", "after"}


def nested(levels: int) -> Any:
    """So many lists, each in the next."""
    return [nested(levels - 1)] if levels else 1


NEW: dict[str, Any] = {
    "parts": [
        {"type": "text", "text": "80"},
        {"text": " °C\u0000", "type": "text"},
        {"type": "x", "n": 10**40, "a": {}},
    ],
    "model": "small",
    "input_tokens": 0,
    "output_tokens": 2**63 - 1,
    "duration_ms": 0,
}
"""The fields of a message that tell more than its text."""


@pytest.mark.parametrize("given", [{}, {"content": None}, {"content": ""}, {"content": "said otherwise"}])
@pytest.mark.parametrize(
    ("role", "made"), [("assistant", "80 °C\x00"), ("user", "80\n °C\x00"), ("tool", "80\n °C\x00")]
)
async def test_a_message_may_have_only_parts(store: Store, given: dict[str, Any], role: str, made: str) -> None:
    """Without content it is the text of the parts, joined as in an append; all fields come back, 0 as 0."""
    await import_all(store, line(labels=["b", "a", "b"], messages=[{"id": "1", "role": role, **NEW, **given}]))
    (conversation,) = (await store.list_conversations(OWNER, labels=["a"])).items
    assert conversation.labels == ("b", "a")
    (stored,) = await store.log(OWNER, conversation.id)
    assert stored.content == (given.get("content") or made)
    text = await export_all(store)
    (exported,) = json.loads(text)["messages"]
    assert {name: exported[name] for name in NEW} == NEW
    assert json.dumps(exported["parts"]) == json.dumps(NEW["parts"])
    assert json.loads(text)["labels"] == ["b", "a"]
    (appended,) = await store.append(
        OWNER,
        (await store.create_conversation(OWNER, NewConversation())).id,
        NewMessage.model_validate({"role": role, **NEW, **given}),
    )
    assert appended.content == stored.content
    async with open_store("memory://") as other:
        assert await import_all(other, text) == [None]
        assert await export_all(other) == text


async def test_content_and_null_alone(store: Store) -> None:
    """A turn may be empty: content null is the same as empty, if it is given."""
    messages = [{"id": "1", "role": role, "content": None} for role in ("assistant",)]
    messages += [{"id": "2", "role": "user", "content": ""}]
    assert await import_all(store, line(messages=messages)) == [None]
    assert [each["content"] for each in (await parsed_export(store))["c1"]["messages"]] == ["", ""]


async def test_lone_surrogates_in_parts_do_not_lose_a_conversation(store: Store) -> None:
    """They are replaced there as everywhere, in both formats."""
    parts = [{"type": "data", "\ud800": ["a\udc00", "\ud83d\ude00"]}]
    for text in (line(messages=[message(parts=parts)]), restorable(message(parts=parts, parent_id=None))):
        assert await import_all(store, text) == [None]
    for conversation in (await store.list_conversations(OWNER)).items:
        (stored,) = await store.log(OWNER, conversation.id)
        assert stored.parts == ({"type": "data", "\ufffd": ["a\ufffd", "😀"]},)


async def test_parts_at_a_limit_come_back(store: Store) -> None:
    """What an append takes is exported and imported elsewhere, up to each limit of parts."""
    values = (nested(98), 10**4_300 - 1, [0] * 99_997, "x" * ((8 << 20) - 27))
    conversation = await store.create_conversation(OWNER, NewConversation())
    for value in values:
        await store.append(OWNER, conversation.id, NewMessage(role=Role.TOOL, parts=[{"type": "data", "data": value}]))
    text = await export_all(store)
    async with open_store("memory://") as other:
        assert await import_all(other, text) == [None]
        assert await export_all(other) == text
    said = json.loads(text)
    foreign = [{"id": str(n), "role": "tool", "parts": each["parts"]} for n, each in enumerate(said["messages"])]
    async with open_store("memory://") as other:
        assert await import_all(other, line(messages=foreign)) == [None]
        assert [each["parts"] for each in (await parsed_export(other))["c1"]["messages"]] == [
            each["parts"] for each in said["messages"]
        ]


async def test_another_owner_gets_conversations_of_its_own(store: Store) -> None:
    """The same file imported for two owners gives each its own, with different ids."""
    await import_all(store, line())
    async for _ in import_lines(store, "bob", [line()]):
        pass
    mine, theirs = [(await store.list_conversations(owner)).items[0] for owner in (OWNER, "bob")]
    assert mine.id != theirs.id
    assert mine.external_id == theirs.external_id == "c1"


BAD = [
    (b"{not json\n", "not JSON"),
    (b"\xff\xfe\n", "not JSON"),
    (b"[" * 100_000 + b"\n", "not JSON|nested"),
    (line(messages=None), "messages"),
    (line(id=""), "id"),
    (line(id=7), "id"),
    (line(surprise=1), "surprise: is an unknown field"),
    (line(messages=[message(role="robot")]), "message 1, role"),
    (line(messages=[{"id": "1", "role": "tool"}]), "message 1 has neither content nor parts"),
    (line(messages=[{"id": "1", "role": "tool", "parts": []}]), "message 1 has neither content nor parts"),
    (line(messages=[message(content=7)]), "message 1, content"),
    (line(messages=[message(parts={"type": "text"})]), "message 1, parts"),
    (line(messages=[message(parts=[{"text": "x"}])]), "message 1, parts: .*each with a type"),
    (line(messages=[message(model="")]), "message 1, model"),
    (line(messages=[message(input_tokens=-1)]), "message 1, input_tokens"),
    (line(messages=[message(output_tokens=1.5)]), "message 1, output_tokens"),
    (line(messages=[message(duration_ms="7")]), "message 1, duration_ms"),
    (line(messages=[message(content="", status="deleted", parts=[{"type": "data"}])]), "message 1 is deleted and has"),
    (line(labels="pinned"), "labels"),
    (line(labels=["!pinned"]), "labels.*must not begin with '!'"),
    (line(labels=["x" * 65]), "labels"),
    (line(labels=[str(number) for number in range(33)]), "labels"),
    (line(messages=[message(), message(content="else")]), "message 2 has the id of an earlier one, and says something"),
    (line(format=3), "format is 2, or absent"),
    (line(format=2), "id: must be a UUID"),
    (line(format=2, id="0190f0f0-0000-7000-8000-000000000001"), "updated_at: is missing"),
    (restorable(message(input_tokens=True)), "message 1, input_tokens"),
    (restorable(message(parts=[{"type": ""}])), "message 1, parts: .*each with a type"),
    (line(messages=[message(parent_id="9")]), "message 1 follows a message that does not stand before it"),
    (line(messages=[message(created_at="2026-01-01")]), "message 1, created_at"),
    (line(messages=[message(status="deleted")]), "message 1 is deleted and has content"),
    (line(messages=[message(thinking="…")]), "message 1, thinking: is an unknown field"),
    (line(head="9"), "head names no message"),
    (line(messages=[message(created_at="0001-01-01T00:00:00+14:00")]), "message 1, created_at: .*years 1 to 9999"),
    (line(messages=[message(created_at="9999-12-31T23:59:59-14:00")]), "message 1, created_at: .*years 1 to 9999"),
    (line(metadata={"x": float("nan")}), "not JSON"),
    (line().replace(b'"test"', b'"test", "metadata": {"x": 1e999}'), "too large"),
]


def with_value(value: str, of: str) -> bytes:
    """A line with a value in the metadata of its message or of the conversation, or in the parts of its message."""
    metadata = {"x": "PLACE"}
    if of == "parts":
        return line(messages=[message(parts=[{"type": "PLACE"}])]).replace(b'"PLACE"', f'"x", "x": {value}'.encode())
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
    (with_value(value, "parts"), rf"message 1, parts: .*{reason}.*can be exported, but not imported")
    for value, reason in (BEYOND | {"bytes": (f'"{"x" * (8 << 20)}"', "at most 8,388,608 bytes")}).values()
]
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
    import_conversation, at_once, most = store.import_conversation, 0, 0

    async def slow(*arguments: Any, **options: Any) -> ImportReceipt:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await asyncio.sleep(0.1)
        at_once -= 1
        return await import_conversation(*arguments, **options)

    store.import_conversation = slow  # type: ignore[method-assign]
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
    """A message that came without a time has none of its own, whether its id is a UUID or not."""
    messages = [
        message(),
        message(id=str(new_id()), parent_id="1"),
        message(id="3", created_at="2026-01-01T00:00:00.5Z"),
    ]
    await import_all(store, line(messages=messages))
    (entry,) = (await parsed_export(store)).values()
    assert [item.get("sent_at") for item in entry["messages"]] == [None, None, "2026-01-01T00:00:00.500000Z"]


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
    made, kept = foreign_id(namespace, "1")
    assert (made.version, kept) == (5, "1")
    own = new_id()
    assert foreign_id(namespace, str(own)) == (own, None)
    assert foreign_id(namespace, str(own).upper())[1] == str(own).upper()


@pytest.mark.parametrize(
    "name",
    [
        "oasst1_en",
        "tau_bench_airline",
        pytest.param("mtrag_un", marks=pytest.mark.apart),
        pytest.param("arena_hard", marks=pytest.mark.apart),
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
        assert set(await import_all(other, *exported.splitlines(keepends=True))) == {None}
        assert await export_all(other) == exported
    entries = map(json.loads, exported.splitlines())
    assert_says({entry.get("external_id", entry["id"]): entry for entry in entries}, originals)


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long lines are those of more than ten messages."""
    monkeypatch.setattr("chatkeep.formats.jsonl.SLICE_MESSAGES", 10)


def branched(head: str) -> bytes:
    """A line of 35 messages on two branches, of which the first is visible."""
    messages = [message(id="0", content="question")]
    for number in range(1, 35):
        messages.append(message(id=str(number), parent_id=str(max(0, number - 2)), content=f"message {number}"))
    return line(messages=messages, head=head, title="T")


@pytest.mark.usefixtures("short_slices")
async def test_a_long_line_is_stored_in_slices(store: Store) -> None:
    """What one transaction would take too long for comes in several; the result is the same."""
    results = [result async for result in import_lines(store, OWNER, [branched("33")])]
    assert results[0].receipt == ImportReceipt(created=True, messages=35, known=0)
    (again,) = [result async for result in import_lines(store, OWNER, [branched("33")])]
    assert again.receipt == ImportReceipt(created=False, messages=0, known=35)
    before = (await parsed_export(store))["c1"]["head_id"]
    (moved,) = [result async for result in import_lines(store, OWNER, [branched("34")])]
    assert moved.receipt is not None
    assert moved.receipt.differences == ("head",)
    assert (await parsed_export(store))["c1"]["head_id"] == before
    (taken,) = [result async for result in import_lines(store, OWNER, [branched("34")], update=True)]
    assert taken.receipt is not None
    assert taken.receipt.updated == ("head",)
    assert (await parsed_export(store))["c1"]["head_id"] != before
    await import_all(store, branched("33"))
    assert [r.receipt and r.receipt.left async for r in import_lines(store, OWNER, [branched("33")], update=True)] == [
        []
    ]
    async with open_store("memory://") as other:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("chatkeep.formats.jsonl.SLICE_MESSAGES", 1_000)
            await import_all(other, branched("33"))
        names = [(await parsed_export(each))["c1"]["head_id"] for each in (store, other)]
        assert names[0] == names[1]
        logs = [await each.log(OWNER, c.id) for each in (store, other) async for c in all_of(each)]
        assert [m.id for m in logs[0]] == [m.id for m in logs[1]]


async def all_of(store: Store) -> AsyncIterator[Conversation]:
    """The owner's conversations."""
    for conversation in (await store.list_conversations(OWNER)).items:
        yield conversation


@pytest.mark.usefixtures("short_slices")
async def test_a_long_line_that_has_grown_goes_on(store: Store) -> None:
    """The thread is that of the line if new messages follow what is visible, however many slices they fill."""
    messages = json.loads(branched("34"))["messages"]
    await import_all(store, line(messages=messages[:12], head="10", title="T"))
    (grown,) = [result async for result in import_lines(store, OWNER, [branched("34")])]
    assert grown.receipt == ImportReceipt(created=False, messages=23, known=12)
    exported = (await parsed_export(store))["c1"]
    (head,) = (each["external_id"] for each in exported["messages"] if each["id"] == exported["head_id"])
    assert head == "34"


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("slices", [1, 2, 3])
async def test_a_long_line_that_was_cut_off_is_finished(store: Store, slices: int) -> None:
    """An import that died between two slices and runs again ends with the head of the line."""
    import_conversation, calls = store.import_conversation, 0

    async def dies(*arguments: Any, **options: Any) -> ImportReceipt:
        nonlocal calls
        calls += 1
        if calls > slices:
            raise StoreUnavailable("killed")
        return await import_conversation(*arguments, **options)

    store.import_conversation = dies  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await import_all(store, branched("34"))
    store.import_conversation = import_conversation  # type: ignore[method-assign]
    assert await import_all(store, branched("34")) == [None]
    exported = (await parsed_export(store))["c1"]
    assert len(exported["messages"]) == 35
    (head,) = (each["external_id"] for each in exported["messages"] if each["id"] == exported["head_id"])
    assert head == "34"


async def test_a_line_of_many_values_is_refused_before_it_is_parsed(store: Store) -> None:
    """Megabytes of empty lists would take gigabytes; as many bytes of short messages are read."""
    many = with_value("[" + "[]," * 3_000_000 + "[]]", "unknown")
    (error,) = await import_all(store, many)
    assert re.search(r"a line of 9,000,\d+ bytes .*at most", str(error))
    short = [message(id=str(number), content="x") for number in range(30_000)]
    assert len(line(messages=short)) > LONG_LINE
    parse_line(OWNER, line(messages=short))
