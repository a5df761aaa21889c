"""The answer of PostgreSQL is lost after it did what it was told: every write gives the right result nevertheless."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from chatkeep import ConversationChange, NewConversation, NewMessage, Role, Status, Store, open_store
from chatkeep.access import ApiKey, Reply, location_of
from chatkeep.documents import NewChunk, NewDocument, document_id
from chatkeep.events import EventKind, TurnEvent
from chatkeep.model import ImportedConversation, ImportedMessage, Record
from chatkeep.projects import NewProject, ProjectChange
from chatkeep.providers import EXTRACTIVE_ID, LlmProviderChange, NewLlmProvider
from chatkeep.stores.postgres.pool import Connection
from chatkeep.testing import assistant, numbered, user
from chatkeep.turns import LEASE, Ending, TurnKey, TurnWrite, answer_id
from servers.postgres import databases, empty, raw
from servers.proxy import ONE_ROW, Proxy

OWNER, OTHER = "ada", "bob"
TALK, LARGE, NEW = UUID(int=1), UUID(int=2), UUID(int=3)
FIRST, QUESTION, WORKER = UUID(int=11), UUID(int=12), UUID(int=13)
RUNNING, EXPIRED = (TurnKey(owner, LARGE, answer_id(QUESTION)) for owner in ("ada", "zoe"))
EVENTS = [TurnEvent(2, EventKind.TEXT, {"text": "sage"})]
MOMENT = datetime(2024, 2, 3, tzinfo=UTC)
KEY = ApiKey(id="key", owner_id=OWNER, name="laptop", created_at=MOMENT)
SECRET = bytes(32)
CREATED = Reply(201, b"{}", location_of(TALK))

PROJECT, PROVIDER = UUID(int=14), UUID(int=15)
GUIDE = document_id(PROJECT, "guide.md")


def new_provider(id_: UUID) -> NewLlmProvider:
    """A provider with an id."""
    return NewLlmProvider(id=id_, provider_name="scripted", model_name="tea")


async def store_document(store: Store, path: str, version: int = 0) -> object:
    """Store a text of two chunks."""
    new = NewDocument(file_path=path, media_type="text/markdown", bytes=1, sha256=f"{version:064x}")
    chunks = [NewChunk(f"sage {n}", None, "", n, b"", bytes(8)) for n in range(2)]
    return await store.documents.store_document(OWNER, PROJECT, new, chunks, space="minilm/2")


async def add_vectors(store: Store) -> object:
    """Add the vector of a chunk."""
    (content,) = await store.documents.contents(OWNER, PROJECT)
    return await store.documents.add_vectors(OWNER, PROJECT, content, "large/2", {0: bytes(8)})


async def note_erasure(store: Store) -> bool:
    """Note an erasure, and return whether it is found by the moment that was returned."""
    moment = await store.access.note_erasure(OWNER)
    return await store.access.erased_at(OWNER) == moment


type Call = Callable[[Store], Awaitable[object]]

WRITES: dict[str, Call] = {
    "create": lambda store: store.create_conversation(OWNER, NewConversation(id=NEW, title="t")),
    "create again": lambda store: store.create_conversation(OWNER, NewConversation(id=TALK, title="Tea")),
    "create without an id": lambda store: store.create_conversation(OWNER, NewConversation()),
    "get or create": lambda store: store.get_or_create_conversation(OWNER, NewConversation(context_id="new")),
    "update": lambda store: store.update_conversation(OWNER, TALK, ConversationChange(title="x", metadata={"a": 1})),
    "append": lambda store: store.append(OWNER, TALK, [user("sage", id=NEW)]),
    "append without an id": lambda store: store.append(OWNER, TALK, [user("sage")]),
    "append again": lambda store: store.append(OWNER, TALK, [user("first", id=FIRST)]),
    "append several": lambda store: store.append(OWNER, TALK, numbered(3)),
    "append many at once": lambda store: asyncio.gather(*(store.append(OWNER, TALK, [user("x")]) for _ in range(8))),
    "append as expected": lambda store: store.append(OWNER, TALK, numbered(1), expected_seq=3),
    "branch": lambda store: store.append(OWNER, TALK, [NewMessage(role=Role.USER, content="x", parent_id=FIRST)]),
    "import": lambda store: store.append(
        OWNER, LARGE, [ImportedMessage(role=Role.USER, content=f"old {n}", sent_at=MOMENT) for n in range(3)]
    ),
    "import a conversation": lambda store: store.create_conversation(
        OWNER, ImportedConversation(id=NEW, updated_at=MOMENT)
    ),
    "delete a message": lambda store: store.delete_message(OWNER, TALK, FIRST),
    "delete": lambda store: store.delete_conversation(OWNER, TALK),
    "delete nothing": lambda store: store.delete_conversation(OWNER, NEW),
    "erase": lambda store: store.erase_owner(OWNER),
    "rename": lambda store: store.rename_owner(OWNER, OTHER),
    "start a turn": lambda store: store.turns.start_turn(OWNER, TALK, user("sage", id=NEW), worker=WORKER),
    "start a turn again": lambda store: store.turns.start_turn(OWNER, LARGE, user("why?", id=QUESTION), worker=WORKER),
    "answer again": lambda store: store.turns.start_turn(OWNER, TALK, FIRST, worker=WORKER, attempt="x"),
    "store events": lambda store: store.turns.append_turn_events(WORKER, [TurnWrite(RUNNING, EVENTS)]),
    "finish a turn": lambda store: store.turns.finish_turn(*RUNNING, Ending(Status.COMPLETE, "sage"), worker=WORKER),
    "stop a turn": lambda store: store.turns.stop_turn(*RUNNING),
    "expire a turn": lambda store: store.turns.expire_turn(*EXPIRED),
    "expire turns": lambda store: store.turns.expire_turns(),
    "create a project": lambda store: store.projects.create_project(OWNER, NewProject(id=NEW, name="n")),
    "create a project again": lambda store: store.projects.create_project(OWNER, NewProject(id=PROJECT, name="k")),
    "update a project": lambda store: store.projects.update_project(OWNER, PROJECT, ProjectChange(name="n")),
    "delete a project": lambda store: store.projects.delete_project(OWNER, PROJECT),
    "store a document": lambda store: store_document(store, "new.md"),
    "replace a document": lambda store: store_document(store, "guide.md", 1),
    "delete a document": lambda store: store.documents.delete_document(OWNER, PROJECT, GUIDE),
    "add vectors": add_vectors,
    "use a space": lambda store: store.documents.use_space(OWNER, PROJECT, "large/2"),
    "claim an embedding": lambda store: store.documents.claim_embedding(OWNER, PROJECT, WORKER),
    "create a provider": lambda store: store.providers.create_provider(new_provider(NEW)),
    "create a provider again": lambda store: store.providers.create_provider(new_provider(PROVIDER)),
    "change a provider": lambda store: store.providers.update_provider(PROVIDER, LlmProviderChange(is_default=True)),
    "delete a provider": lambda store: store.providers.delete_provider(PROVIDER, replacement=EXTRACTIVE_ID),
    "name a provider": lambda store: store.create_conversation(OWNER, NewConversation(llm_provider_id=PROVIDER)),
    "create a key": lambda store: store.access.create_key(KEY.model_copy(update={"id": "other"}), SECRET),
    "revoke a key": lambda store: store.access.revoke_key("key"),
    "use a key": lambda store: store.access.key_used("key", MOMENT),
    "begin a request": lambda store: store.access.begin_request(OWNER, "new", b"f"),
    "begin a request again": lambda store: store.access.begin_request(OWNER, "done", b"f"),
    "finish a request": lambda store: store.access.finish_request(OWNER, "begun", CREATED),
    "abandon a request": lambda store: store.access.abandon_request(OWNER, "begun"),
    "forget replies": lambda store: store.access.forget_replies(OWNER, TALK),
    "forget what expired": lambda store: store.access.forget_expired(),
    "forget an owner": lambda store: store.access.forget_owner(OWNER),
    "give keys to another": lambda store: store.access.rename_owner(OWNER, OTHER),
    "note an erasure": note_erasure,
}
STATE = (
    "SELECT id FROM users",
    "SELECT owner_id, title, context_id, metadata, last_seq, head_seq, slot, deleted_at FROM conversations",
    "SELECT owner_id, context_id, llm_provider_id FROM conversations",
    "SELECT id, model_name, is_default, replaced_by FROM llm_providers",
    "SELECT owner_id, seq, run, depth, role, content, status, terms FROM messages",
    "SELECT owner_id, message_id, stopping, until > now() FROM turns",
    "SELECT owner_id, n, text FROM turn_events",
    "SELECT owner_id, id, name, documents, chunks, space, version, embedding_worker, deleted_at FROM projects",
    "SELECT owner_id, id, content, staged, version, has_rubbish, file_path FROM documents",
    "SELECT owner_id, document_id, content, n, text FROM chunks",
    "SELECT owner_id, space, document_id, content, n, vector FROM vectors",
    "SELECT owner_id, id, last_used_at FROM api_keys",
    "SELECT owner_id, key, fingerprint, status, body, location FROM requests",
    "SELECT owner_hash, erased_at > 0 FROM erasures",
)


async def prepare(url: str, connection: Connection) -> None:
    """What every call finds."""
    await empty(connection)
    async with open_store(url, migrate=False) as store:
        await store.providers.create_provider(new_provider(PROVIDER))
        await store.create_conversation(OWNER, NewConversation(id=TALK, title="Tea"))
        await store.update_conversation(OWNER, TALK, ConversationChange(llm_provider_id=PROVIDER))
        await store.append(OWNER, TALK, [user("first", id=FIRST), assistant("second"), user("third")])
        await store.projects.create_project(OWNER, NewProject(id=PROJECT, name="k"))
        await store_document(store, "guide.md")
        await store.access.create_key(KEY, SECRET)
        for key in ("begun", "done"):
            await store.access.begin_request(OWNER, key, b"f")
        await store.access.finish_request(OWNER, "done", CREATED)
        for turn, lease in ((RUNNING, LEASE), (EXPIRED, timedelta(0))):
            await store.create_conversation(turn.owner, NewConversation(id=LARGE, context_id="large"))
            await store.turns.start_turn(*turn[:2], user("why?", id=QUESTION), worker=WORKER, lease=lease)
            write = TurnWrite(turn, [TurnEvent(1, EventKind.TEXT, {"text": "cup"})])
            await store.turns.append_turn_events(WORKER, [write], lease=lease)
    await connection.execute(
        "INSERT INTO requests (owner_id, key, fingerprint, lease_until, expires_at) VALUES ('zoe', 'old', 'f', 1, 1)"
    )


def shown(answer: object) -> object:
    """An answer without the ids and times that the store makes."""
    if isinstance(answer, Record):
        made = {name: value for name, value in answer.model_dump().items() if not name.endswith("_at")}
        return {k: v for k, v in made.items() if not (isinstance(v, UUID) and v.int > 1_000)}
    if isinstance(answer, list | tuple):
        return sorted(map(shown, answer), key=str)
    return answer


async def outcome(
    proxy: Proxy, connection: Connection, call: Call, lose: tuple[str, int] | None
) -> tuple[object, object, list[str]]:
    """What a call returned and left stored, and what the server said that it did."""
    await prepare(databases().used(), connection)
    async with open_store(proxy.url, migrate=False) as store:
        await asyncio.gather(*(store.access.list_keys() for _ in range(3)))
        proxy.answered.clear()
        if lose:
            proxy.lose(*lose)
        answer = await asyncio.wait_for(call(store), 10)
        answered = list(proxy.answered)
    assert lose is None or proxy.has_lost
    return shown(answer), [sorted(map(str, await connection.fetch(each))) for each in STATE], answered


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    """A proxy before the server of the tests."""
    async with Proxy(databases().clean()) as proxy:
        yield proxy


async def check_lost(proxy: Proxy, name: str, words: Iterable[str], step: int = 1) -> int:
    """Lose each answer that begins with one of the words in turn, or each step-th; return how many there are."""
    call = WRITES[name]
    async with raw(databases().used()) as connection:
        expected, stored, answered = await outcome(proxy, connection, call, None)
        lost = [(word, n + 1) for word in words for n in range(sum(said.startswith(word) for said in answered))]
        for lose in lost[list(WRITES).index(name) % min(step, max(1, len(lost))) :: step]:
            found = await outcome(proxy, connection, call, lose)
            assert found[:2] == (expected, stored), f"{name} without the answer {lose}"
    return len(lost)


QUICK = (
    "start a turn",
    "store events",
    "finish a turn",
    "replace a document",
    "delete a provider",
    "delete a message",
    "delete",
    "revoke a key",
    "begin a request",
    "append several",
)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.long) for n in WRITES])
async def test_lost_answer_to_a_commit(proxy: Proxy, name: str) -> None:
    """Every write, with each answer to a COMMIT lost in turn: its result and what is stored are as with it."""
    await check_lost(proxy, name, ["COMMIT"])


@pytest.mark.long
@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("step", [pytest.param(1, marks=pytest.mark.apart, id="each"), pytest.param(5, id="some")])
async def test_any_lost_answer(proxy: Proxy, name: str, step: int) -> None:
    """The same for every other answer, those of statements that commit by themselves among them.

    `make check` loses a fifth of them, of each write others in its order; all are lost in `make apart`.
    """
    words = ["BEGIN", "COPY", "INSERT", "UPDATE", "DELETE", "SELECT", "SET", ONE_ROW]
    assert await check_lost(proxy, name, words, step)


@pytest.mark.long
@pytest.mark.parametrize("name", ["create", "append", "append without an id", "get or create", "import"])
async def test_lost_answer_to_a_statement(proxy: Proxy, name: str) -> None:
    """Statements that commit by themselves, whose answer is lost."""
    assert await check_lost(proxy, name, ["INSERT", ONE_ROW])
