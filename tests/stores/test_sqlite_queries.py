"""Every query of the request path is answered by an index, and names the owner first."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import apsw
import pytest

from chatkeep import ConversationChange, NewConversation, NotFound, NotYours, Status, Store, open_store
from chatkeep.documents import ChunkRange, NewChunk, NewDocument
from chatkeep.events import EventKind, TurnEvent, text
from chatkeep.projects import NewProject, ProjectChange
from chatkeep.providers import EXTRACTIVE_ID, LlmProviderChange, NewLlmProvider
from chatkeep.stores.sqlite.providers import PROVIDERS
from chatkeep.stores.sqlite.turns import ANSWERS, EXPIRED_TURNS
from chatkeep.testing import assistant, numbered, user
from chatkeep.turns import LEASE, Ending, TurnKey, TurnPlace, TurnWrite
from chatkeep.values import now

OWNER = "ada"
TABLES = "messages|conversations|m|c|users|turns|turn_events|t|e|projects|documents|chunks|vectors|v"
OTHER_STATEMENTS = (
    "BEGIN",
    "COMMIT",
    "ROLLBACK",
    "SAVEPOINT",
    "RELEASE",
    "PRAGMA",
    "CREATE",
    "INSERT INTO message_words (message_words",
)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Every statement that any connection executes from now on, with the values of its last use."""
    statements: dict[str, Any] = {}

    def record(_cursor: apsw.Cursor, statement: str, values: Any) -> bool:
        statements[" ".join(statement.split())] = values
        return True

    def hook(connection: apsw.Connection) -> None:
        connection.exec_trace = record

    monkeypatch.setattr(apsw, "connection_hooks", [*apsw.connection_hooks, hook])
    return statements


async def use_everything(store: Store) -> None:
    """Call every method of the request path, on trunks and branches, with and without each argument."""
    talk = await store.create_conversation(OWNER, NewConversation(context_id="kitchen", id=uuid4()))
    await store.create_conversation("other", NewConversation(id=uuid4()))
    theirs = await store.create_conversation("other", NewConversation())
    await store.get_or_create_conversation(OWNER, NewConversation())
    await store.get_or_create_conversation(OWNER, NewConversation(context_id="kitchen"))
    first = await store.append(OWNER, talk.id, numbered(30))
    branch = await store.append(OWNER, talk.id, [assistant("b", id=uuid4(), parent_id=first[10].id), *numbered(20)])
    for message in (first[3], first[20], branch[5]):
        await store.delete_message(OWNER, talk.id, message.id)
    for leaf in (None, first[-1].id, first[7].id, branch[7].id):
        for order in ("desc", "asc"):
            arguments: dict[str, Any] = {"leaf": leaf, "order": order, "limit": 3}
            page = await store.history(OWNER, talk.id, total=True, offset=2, **arguments)
            assert page.next is not None
            await store.history(OWNER, talk.id, cursor=page.next, **arguments)
            await store.history(OWNER, talk.id, before=20, after=2, **arguments)
    for message in (first[0], first[11], branch[0], branch[9]):
        await store.get_message(OWNER, talk.id, message.id)
        await store.siblings(OWNER, talk.id, message.id)
    await store.log(OWNER, talk.id, after=3)
    await use_lists(store)
    change = ConversationChange(title="T", metadata={"a": 1}, head_id=first[-1].id)
    await store.update_conversation(OWNER, talk.id, change)
    with pytest.raises(NotYours):
        await store.get_conversation(OWNER, theirs.id)
    with pytest.raises(NotFound):
        await store.get_message(OWNER, talk.id, uuid4())
    await store.append(OWNER, talk.id, [user("x", parent_id=None)])
    await use_turns(store, talk.id)
    await use_documents(store)
    await use_providers(store, talk.id)
    await store.delete_conversation(OWNER, talk.id)
    receipt = await store.erase_owner(OWNER)
    assert await store.access.erased_at(OWNER) == receipt.erased_at


async def use_turns(store: Store, id_: UUID) -> None:
    """Begin, follow, stop, finish and close turns, and read statistics."""
    turns, worker = store.turns, uuid4()
    for lease in (LEASE, timedelta(0)):
        turn = await turns.start_turn(OWNER, id_, user("why"), worker=worker, lease=lease)
        key = TurnKey(OWNER, id_, turn.answer.id)
        await turns.append_turn_events(worker, [TurnWrite(key, [TurnEvent(1, *text("a"))])], lease=lease)
        await turns.turn_events([TurnPlace(key)])
        await store.get_message(*key)
        await turns.stop_turn(*key)
        if lease:
            await turns.finish_turn(*key, Ending(Status.COMPLETE, "a", model="m"), worker=worker)
    await turns.expire_turns()
    await use_state(store, id_)
    await turns.answer_stats(OWNER, after=now(), before=now() + timedelta(days=1))


async def use_state(store: Store, id_: UUID) -> None:
    """Take a turn over from a worker that is gone."""
    turns, worker, other = store.turns, uuid4(), uuid4()
    turn = await turns.start_turn(OWNER, id_, user("why"), worker=worker, lease=timedelta(0))
    key, state = TurnKey(OWNER, id_, turn.answer.id), TurnEvent(1, EventKind.STATE, {})
    await turns.append_turn_events(worker, [TurnWrite(key, [state])], lease=timedelta(0))
    assert await turns.resume_turn(*key, worker=other) is not None
    await turns.finish_turn(*key, Ending(Status.COMPLETE, "a"), worker=other)


async def use_documents(store: Store) -> None:
    """Store, replace, read, and remove documents and projects, with vectors of two spaces and without."""
    projects, documents = store.projects, store.documents
    project, *others = [await projects.create_project(OWNER, NewProject(name="k", metadata={"a": 1})) for _ in range(3)]
    await projects.create_project(OWNER, NewProject(id=project.id, name="k", metadata={"a": 1}))
    for each in (project, *others):
        await store.create_conversation(OWNER, NewConversation(project_id=each.id))
    await projects.update_project(OWNER, project.id, ProjectChange(name="K", metadata={"b": 1}))
    page = await projects.list_projects(OWNER, limit=1, total=True)
    await projects.list_projects(OWNER, limit=1, cursor=page.next)
    some = [NewChunk("text", "#a", "A", 0, b"\1\0\0\0", b"\0\0\x80\x3f") for _ in range(3)]
    for path, digit in (("a", "0"), ("a", "1"), ("b", "0"), ("c", "0")):
        new = NewDocument(file_path=path, media_type="text/plain", bytes=1, sha256=digit * 64)
        await documents.store_document(OWNER, project.id, new, some, space="small")
    listed = await documents.list_documents(OWNER, project.id, limit=1)
    await documents.list_documents(OWNER, project.id, limit=1, cursor=listed.next)
    contents = await documents.contents(OWNER, project.id)
    await documents.contents(OWNER, project.id, after=contents[0].document_id)
    ranges = [ChunkRange(each.document_id, each.id, 0, 9) for each in contents]
    await documents.index_entries(OWNER, project.id, ranges, space="small")
    await documents.chunks(OWNER, project.id, ranges)
    worker = uuid4()
    await documents.claim_embedding(OWNER, project.id, worker)
    await documents.count_vectors(OWNER, project.id, "large")
    for content in contents:
        missing = await documents.without_vectors(OWNER, project.id, content, "large")
        vectors = {chunk.n: b"\0\0\x80\x3f" for chunk in missing}
        await documents.add_vectors(OWNER, project.id, content, "large", vectors)
    await documents.use_space(OWNER, project.id, "large")
    await documents.get_document(OWNER, project.id, contents[0].document_id)
    await documents.document_chunks(OWNER, project.id, contents[0].document_id)
    await documents.delete_document(OWNER, project.id, contents[0].document_id)
    await projects.delete_project(OWNER, others[0].id)
    await projects.delete_project(OWNER, project.id)


async def use_providers(store: Store, id_: UUID) -> None:
    """Create, name, change, and remove providers, with a replacement and without."""
    providers = store.providers
    first, second = [
        await providers.create_provider(NewLlmProvider(provider_name="scripted", model_name=name)) for name in "ab"
    ]
    await providers.update_provider(first.id, LlmProviderChange(model_name="c", is_default=True))
    await store.create_conversation(OWNER, NewConversation(llm_provider_id=first.id))
    await store.update_conversation(OWNER, id_, ConversationChange(llm_provider_id=first.id))
    await providers.delete_provider(first.id, replacement=EXTRACTIVE_ID)
    assert await providers.delete_provider(second.id)
    assert [each.id for each in await providers.list_providers()] == [EXTRACTIVE_ID]


async def use_lists(store: Store) -> None:
    """Read lists and searches, and the page after the first."""
    for order in ("updated", "id"):
        for context in (None, "kitchen"):
            arguments: dict[str, Any] = {"order": order, "context_id": context, "limit": 1}
            page = await store.list_conversations(OWNER, total=True, **arguments)
            if page.next:
                await store.list_conversations(OWNER, cursor=page.next, **arguments)
    hits = await store.search_messages(OWNER, "turn 3", limit=1)
    await store.search_messages(OWNER, "turn 3", limit=1, cursor=hits.next)
    await store.search_messages(OWNER, "turn -3", conversation_id=hits.items[0].message.conversation_id)


def plan(connection: apsw.Connection, statement: str, values: Any) -> list[str]:
    """How SQLite answers a statement, line by line."""
    return [str(row[3]) for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values)]


async def test_no_query_scans(tmp_path: Path, recorded: dict[str, Any]) -> None:
    """Every statement finds conversations and messages by an index on the owner, by row id, or the id alone.

    None sorts, either, so that the cost of a page does not grow with its list: but statistics, which read all days, and
    providers, which are few.
    """
    path = tmp_path / "chat.db"
    async with open_store(f"sqlite:///{path}") as store:
        recorded.clear()
        await use_everything(store)
    others = (*OTHER_STATEMENTS, " ".join(EXPIRED_TURNS.split()))  # the sweep reads the leases that there are
    statements = {s: values for s, values in recorded.items() if not s.startswith(others)}
    assert len(statements) > 30
    connection = apsw.Connection(str(path))
    lines = [(line, s) for s, values in statements.items() for line in plan(connection, s, values)]
    connection.close()
    assert any("messages_by_run" in line for line, _ in lines)
    assert any("conversations_by_context" in line for line, _ in lines)
    assert len([line for line, _ in lines if "conversations_by_provider" in line]) == 2
    sorting = [" ".join(each.split()) for each in (ANSWERS, PROVIDERS)]
    for line, statement in lines:
        if re.match(rf"(SCAN|SEARCH) ({TABLES})\b", line):
            assert line.startswith("SEARCH"), statement
            by_row_id = re.search(r"(max|min)\(rid\)", statement) or re.search(r"\(rowid[=<>]", line)
            of_provider = line.endswith("INDEX conversations_by_provider (llm_provider_id=?)")
            by_owner_or_id = re.search(r"\((owner_id=\?|id=\?\)$)", line)
            assert by_row_id or of_provider or by_owner_or_id, f"{line}: {statement}"
        assert "TEMP B-TREE" not in line or statement in sorting, statement
