"""The store in PostgreSQL: what the database itself enforces, locks, pools, restarts, many processes."""

import asyncio
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest
from asyncpg.prepared_stmt import PreparedStatement
from benchmarks.postgres_server import FAST, PASSWORD, Server, reachable
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from chatkeep import (
    Conversation,
    ConversationChange,
    ImportedConversation,
    InvalidInput,
    MessageChange,
    NewConversation,
    NewMessage,
    NotFound,
    Role,
    SchemaMismatch,
    Status,
    Store,
    StoreUnavailable,
    open_store,
)
from chatkeep.documents import ChunkRange, NewChunk, NewDocument
from chatkeep.events import EventKind, TurnEvent
from chatkeep.migrations import HEAD
from chatkeep.projects import NewProject, ProjectChange
from chatkeep.providers import EXTRACTIVE_ID, LlmProviderChange, NewLlmProvider
from chatkeep.stores.long_texts import LongTexts
from chatkeep.stores.postgres.address import written_address
from chatkeep.stores.postgres.columns import sized_conversations
from chatkeep.stores.postgres.conversations import CONVERSATION
from chatkeep.stores.postgres.rows import PostgresRows
from chatkeep.stores.postgres.store import PostgresStore
from chatkeep.testing import CONVERSATION_CALLS, assistant, contents, dense, numbered, seqs, user, whole_log
from chatkeep.turns import LEASE, Ending, TurnKey, TurnPlace, TurnWrite
from chatkeep.values import decode_nul, encode_nul
from servers.postgres import databases, raw, with_query

OWNER = "ada"


@pytest.fixture
def url() -> str:
    """A database with the newest schema and nothing in it."""
    return databases().clean()


@pytest.fixture
def empty_url() -> Iterator[str]:
    """A database without a schema."""
    url = databases().empty()
    yield url
    databases().drop(url)


@pytest.fixture
async def store(url: str) -> AsyncIterator[Store]:
    """A store on it."""
    async with open_store(url) as store:
        yield store


@pytest.fixture
async def talk(store: Store) -> Conversation:
    """A conversation with three messages."""
    talk = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, talk.id, numbered(3))
    return talk


# --- what the database enforces --------------------------------------------------------------------------

MESSAGE = """
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, role, content, status, fingerprint)
    SELECT owner_id, id, 9, '01a20d6a-2a65-7f21-8218-53b385d1a75c', 0, 9, 'user', 'x', 'complete', ''::bytea
    FROM conversations
"""


@pytest.mark.parametrize(
    ("statement", "error"),
    [
        (MESSAGE.replace("'user'", "'wizard'"), asyncpg.CheckViolationError),
        (MESSAGE.replace("'complete'", "'half'"), asyncpg.CheckViolationError),
        (MESSAGE.replace("id, 9, '", "id, 0, '"), asyncpg.CheckViolationError),
        (MESSAGE.replace("0, 9, 'user'", "0, 10, 'user'"), asyncpg.CheckViolationError),
        (MESSAGE.replace("'x'", "NULL"), asyncpg.NotNullViolationError),
        (MESSAGE.replace("9,", "3,"), asyncpg.UniqueViolationError),
        (MESSAGE.replace("SELECT owner_id", "SELECT 'bob'"), asyncpg.ForeignKeyViolationError),
        ("UPDATE messages SET id = (SELECT id FROM messages WHERE seq = 1)", asyncpg.UniqueViolationError),
        ("UPDATE conversations SET owner_id = 'bob'", asyncpg.ForeignKeyViolationError),
        ("UPDATE conversations SET metadata = NULL", asyncpg.NotNullViolationError),
    ],
)
async def test_database_refuses(url: str, talk: Conversation, statement: str, error: type[Exception]) -> None:
    """Roles, statuses, keys and owners are the database's own rules, not only chatkeep's."""
    async with raw(url) as connection:
        with pytest.raises(error):
            await connection.execute(statement)
        if statement.startswith("UPDATE conversations SET metadata"):
            await connection.execute(MESSAGE)  # what the others vary is accepted as it stands


async def test_database_cascades(url: str, store: Store, talk: Conversation) -> None:
    """Removing a user removes their conversations, removing a conversation its messages."""
    other = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, other.id, numbered(2))
    async with raw(url) as connection:
        await connection.execute("DELETE FROM conversations WHERE id = $1", talk.id)
        assert await connection.fetchval("SELECT count(*) FROM messages") == 2
        await connection.execute("DELETE FROM users WHERE id = $1", OWNER)
        assert await connection.fetchval("SELECT count(*) FROM conversations") == 0
        assert await connection.fetchval("SELECT count(*) FROM messages") == 0


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufdd0", "\ufdd00000", "\ufdd0fdd0\0", "\ufdd0zz"])
async def test_text_that_postgres_cannot_hold(store: Store, text: str) -> None:
    """NUL is kept in every field that takes text, the owner included; encoded texts stay different."""
    assert decode_nul(encode_nul(text)) == text
    assert "\0" not in encode_nul(text)
    new = NewConversation(title=text, context_id=text, external_id=text, metadata={text: text})
    talk = await store.create_conversation(text, new)
    await store.append(text, talk.id, [user(text, external_id=text), assistant(text)])
    read = await store.get_conversation(text, talk.id)
    assert (read.owner_id, read.title, read.context_id, read.external_id) == (text, text, text, text)
    assert (await store.list_conversations(text, context_id=text)).items == [read]
    assert (await store.get_or_create_conversation(text, NewConversation(context_id=text))).id == talk.id
    assert contents(await store.log(text, talk.id)) == [text, text]
    changed = await store.update_conversation(text, talk.id, ConversationChange(title=f"new {text}"))
    assert changed.title == f"new {text}"
    assert (await store.erase_owner(text)).messages == 2


# --- locks and pools -------------------------------------------------------------------------------------


async def test_locked_row_stalls_nobody_else(url: str, store: Store) -> None:
    """While somebody holds one conversation's row, appends to it wait, and the others go on."""
    talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(32)]
    slowest = 0.0

    async def write(number: int) -> None:
        nonlocal slowest
        for _ in range(30):
            before = time.perf_counter()
            await store.append(OWNER, talks[number].id, numbered(1))
            slowest = max(slowest, time.perf_counter() - before)

    async with raw(url) as holder, holder.transaction():
        await holder.execute("SELECT 1 FROM conversations WHERE id = $1 FOR UPDATE", talks[0].id)
        waiting = [asyncio.create_task(store.append(OWNER, talks[0].id, numbered(1))) for _ in range(20)]
        began = time.perf_counter()
        while time.perf_counter() - began < 1.5:
            await asyncio.gather(*map(write, range(1, 32)))
        assert not any(task.done() for task in waiting)
    stored = await asyncio.gather(*waiting)
    assert sorted(batch[0].seq for batch in stored) == list(range(1, 21))
    assert slowest < 1, "200 ms are the promise; a busy machine gets more here, but not the 1.5 s of the lock"


async def test_exhausted_pool_is_said(url: str) -> None:
    """Who finds all connections in use for the set time is told so, and what to do."""
    async with open_store(url, pool_size=3, pool_timeout=0.2) as store, raw(url) as holder:
        talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(3)]
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM conversations FOR UPDATE")
            stuck = [asyncio.create_task(store.append(OWNER, talk.id, numbered(2))) for talk in talks]
            await asyncio.sleep(0.2)
            with pytest.raises(StoreUnavailable, match=r"all 3 connections were in use for 0\.2 s.*pool_size"):
                await store.get_conversation(OWNER, talks[0].id)
        assert [seqs(batch) for batch in await asyncio.gather(*stuck)] == [[1, 2]] * 3


async def test_writer_that_waits_too_long_gives_up(url: str) -> None:
    """A lock that is held for longer than write_timeout ends in StoreUnavailable; the retry is safe."""
    async with open_store(url, write_timeout=0.3) as store, raw(url) as holder:
        talk = await store.create_conversation(OWNER, NewConversation())
        message = user("once", id=uuid4())
        async with holder.transaction():
            await holder.execute("SELECT 1 FROM conversations FOR UPDATE")
            with pytest.raises(StoreUnavailable, match="too long"):
                await store.append(OWNER, talk.id, [message])
        await store.append(OWNER, talk.id, [message])
        assert len(await whole_log(store, OWNER, talk.id)) == 1


# --- opening ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ((f":{PASSWORD}@", ":zq7wrong@"), StoreUnavailable, "user or the password"),
        (("/chatkeep_", "/zq7absent_"), StoreUnavailable, "no such database"),
        (("@127.0.0.1:", "@127.0.0.2:"), StoreUnavailable, "cannot be reached"),
        (("@127.0.0.1:", "@127.0.0.1:zq7"), InvalidInput, "must look like postgresql://USER"),
    ],
)
async def test_opening_what_is_not_there(
    url: str, change: tuple[str, str], error: type[Exception], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Errors say what is wrong and never hold the password."""
    with pytest.raises(error, match=reason) as caught:
        await open_store(url.replace(*change))
    assert PASSWORD not in f"{caught.value!r} {caught.value} {caplog.text}"
    assert "zq7wrong" not in f"{caught.value!r} {caught.value} {caplog.text}"


def self_signed(folder: Path) -> Path:
    """A file with a certificate of its own and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "zq7")])
    began = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, began, began + timedelta(days=1))
        .sign(key, SHA256())
        .public_bytes(Encoding.PEM)
    )
    file = folder / f"{uuid4()}.pem"
    file.write_bytes(certificate + key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return file


async def test_a_certificate_that_is_not_trusted_is_said(tmp_path: Path) -> None:
    """A server with another certificate is not spoken to, and one that cannot be checked is not either."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(self_signed(tmp_path))

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, OSError):  # whoever distrusts it hangs up
            await reader.readexactly(8)  # the wish for TLS, to which PostgreSQL says S
            writer.write(b"S")
            await writer.start_tls(context)
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        there = f"ada:{PASSWORD}@127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for file, meaning in ((self_signed(tmp_path), "certificate trusted"), (tmp_path / "none.pem", "not there")):
            url = f"postgresql://{there}/chat?sslmode=verify-full&sslrootcert={file}"
            with pytest.raises(StoreUnavailable, match=meaning) as caught:
                await open_store(url)
            assert PASSWORD not in f"{caught.value!r}"


async def test_what_is_being_removed_is_not_shown(url: str, store: Store, talk: Conversation) -> None:
    """A conversation that is hidden, and removed in part, as after a kill, is not there for any call."""
    stored = await store.append(OWNER, talk.id, numbered(20, "sage"))
    async with raw(url) as connection:
        assert await PostgresRows(connection, LongTexts()).hide((OWNER, talk.id))
        await connection.execute("DELETE FROM messages WHERE seq <= 10")
    for name, call in CONVERSATION_CALLS.items():
        if name != "delete_conversation":
            with pytest.raises(NotFound):
                await call(store, OWNER, talk.id, stored[15].id)
    assert await store.delete_conversation(OWNER, talk.id)  # finishes the removal
    assert (await store.list_conversations(OWNER)).items == []
    assert (await store.search_messages(OWNER, "sage")).items == []


@pytest.mark.parametrize("part", [1, 2])
@pytest.mark.parametrize("page", [{"order": "asc"}, {"limit": 200}, {"limit": 7, "offset": 20}, {"before": 33}])
async def test_a_page_is_never_half_of_a_conversation(
    url: str, store: Store, talk: Conversation, monkeypatch: pytest.MonkeyPatch, page: dict[str, Any], part: int
) -> None:
    """Removing that begins before a part of a branched history is read makes the page NotFound, or is not seen."""
    trunk = await store.append(OWNER, talk.id, numbered(50))
    fork = NewMessage(role=Role.USER, content="fork", parent_id=trunk[30].id)
    await store.append(OWNER, talk.id, [fork, *numbered(20)])
    whole, calls = await store.history(OWNER, talk.id, **page), 0

    async def late(rows: PostgresRows, fetch: Callable[..., Awaitable[Any]], *given: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == part:
            async with raw(url) as connection:
                await PostgresRows(connection, LongTexts()).hide((OWNER, talk.id))
                await connection.execute("DELETE FROM messages WHERE seq % 2 = 0")
        return await fetch(rows, *given, **options)

    for name in ("_part", "places"):
        monkeypatch.setattr(PostgresRows, name, partialmethod(late, getattr(PostgresRows, name)))
    if part == 1:
        with pytest.raises(NotFound):
            await store.history(OWNER, talk.id, **page)
        return
    with suppress(NotFound):
        assert await store.history(OWNER, talk.id, **page) == whole


async def test_driver_options_reach_the_driver(url: str) -> None:
    """What chatkeep does not know in the URL is asyncpg's; what it knows is not."""
    async with open_store(with_query(url, "search=off&application_name=zq7name")) as store:
        assert isinstance(store, PostgresStore)
        await store.create_conversation(OWNER, NewConversation())
        async with raw(url) as connection:
            names = await connection.fetch("SELECT application_name FROM pg_stat_activity")
    assert "chatkeep" in {name for (name,) in names}
    with pytest.raises(InvalidInput, match="search"):
        open_store(with_query(url, "search=maybe"))


# --- the schema ------------------------------------------------------------------------------------------

OBJECTS = """
    SELECT c.oid::regclass::text AS name, c.relkind::text AS kind, pg_get_indexdef(c.oid) AS definition
    FROM pg_class c WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'i', 'S', 'v')
    UNION ALL SELECT p.oid::regprocedure::text, 'f', pg_get_functiondef(p.oid) FROM pg_proc p
    WHERE pronamespace = 'public'::regnamespace
    UNION ALL SELECT conrelid::regclass::text || conname, 'c', pg_get_constraintdef(oid) FROM pg_constraint
    WHERE connamespace = 'public'::regnamespace
    UNION ALL SELECT attrelid::regclass::text || '.' || attname, 'a', format_type(atttypid, atttypmod) || attnotnull
    FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid
    WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND attnum > 0
    ORDER BY 1, 2
"""


async def objects(url: str) -> list[tuple[str, ...]]:
    """Everything in the schema."""
    async with raw(url) as connection:
        return [tuple(row) for row in await connection.fetch(OBJECTS)]


async def test_schema_goes_up_and_down(empty_url: str) -> None:
    """Down leaves nothing behind, and up again makes the same schema as a new database has."""
    before = await objects(empty_url)
    async with open_store(empty_url, migrate=False) as store:
        assert await store.schema_revision() is None
        with pytest.raises(SchemaMismatch, match="db upgrade"):
            await store.create_conversation(OWNER, NewConversation())
        with pytest.raises(SchemaMismatch):
            await store.ping()
        await store.migrate()
        first = await objects(empty_url)
        await store.migrate("base")
        assert await objects(empty_url) == before
        await store.migrate()
        assert await objects(empty_url) == first
        await store.ping()
    assert first != before


async def test_newer_schema_is_refused(empty_url: str) -> None:
    """A database that a newer chatkeep has migrated is not touched."""
    async with open_store(empty_url):
        pass
    async with raw(empty_url) as connection:
        await connection.execute("UPDATE chatkeep_schema SET version_num = '9999', served_from = '9998'")
    with pytest.raises(SchemaMismatch, match="newer schema"):
        await open_store(empty_url)


async def test_newer_schema_that_this_version_can_use(empty_url: str) -> None:
    """During a rolling upgrade a process opens and serves a schema that names its revision as one that can."""
    async with open_store(empty_url) as store, raw(empty_url) as connection:
        await connection.execute("UPDATE chatkeep_schema SET version_num = '9999', served_from = $1", HEAD)
        await store.ping()
        async with open_store(empty_url) as another:
            await another.ping()
            assert await another.schema_revision() == "9999"
            with pytest.raises(SchemaMismatch, match="upgrade chatkeep"):
                await another.migrate("base")


@pytest.mark.long
@pytest.mark.parametrize("processes", [3, 10])
def test_processes_migrate_at_once(empty_url: str, processes: int) -> None:
    """One migrates, the others wait; all end well."""
    command = [sys.executable, "-m", "chatkeep", "db", "upgrade", "--database-url", empty_url]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(processes)]
    ended = [(process.communicate()[0].decode(), process.returncode) for process in running]
    assert [code for _, code in ended] == [0] * processes, ended
    assert not [output for output, _ in ended if PASSWORD in output]


async def test_messages_without_terms_are_indexed_when_search_is_on(url: str) -> None:
    """What was stored with search=off is found after the next opening with search on."""
    async with open_store(url, search="off") as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        await store.append(OWNER, talk.id, [assistant(f"pebble {number}") for number in range(1_200)])
        with pytest.raises(InvalidInput, match="search=off"):
            await store.search_messages(OWNER, "pebble")
    async with open_store(url) as store:
        found = await store.search_messages(OWNER, "pebble", limit=1_000)
        assert len(found.items) == 1_000
        assert len((await store.search_messages(OWNER, "pebble", limit=1_000, cursor=found.next)).items) == 200


# --- statements ------------------------------------------------------------------------------------------

NOT_OF_AN_OWNER = (
    "SELECT 1 FROM conversations WHERE id = $1 AND deleted_at IS NULL LIMIT 1",  # whether somebody else has it
    "SELECT to_json(s) ->> 'version_num'",
    "SELECT 1 FROM pg_class WHERE relname = 'chatkeep_schema'",
    "SELECT current_setting('fsync')",  # with each connection
    "SELECT pg_current_xact_id_if_assigned()",  # before each commit
    "WITH RECURSIVE typeinfo_tree",  # the driver's own
    "SELECT current_setting('jit')",
    "SELECT owner_id FROM conversations WHERE deleted_at IS NOT NULL UNION",  # when it is opened
    "SELECT owner_id, conversation_id, seq, left(content, $2) FROM (",  # when it is opened
    "SELECT rule, target, place FROM word_index",  # when it is opened
    "SELECT owner_id, id FROM conversations WHERE id IN ( SELECT DISTINCT id",  # when it is opened, with an older rule
    "SELECT owner_id, conversation_id, message_id FROM turns WHERE until <=",  # the sweep of all turns that expired
    "SELECT to_regtype('vector') IS NOT NULL",  # whether there is pgvector
    "SELECT owner_id, id FROM conversations WHERE llm_provider_id BETWEEN",  # whom a provider's removal concerns
)
OF_THE_INSTALLATION = "llm_providers"


type Asked = dict[str, tuple[object, ...]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """Every statement of the stores that are opened, with the arguments it had last."""
    seen: Asked = {}
    connect: Any = asyncpg.connect
    fetch: Any = PreparedStatement.fetch

    def listen(record: Any) -> None:
        several = isinstance(record.args, list)  # executemany's
        seen[record.query] = tuple(record.args[0] if several else record.args)

    async def connect_and_listen(*arguments: Any, **options: Any) -> Any:
        connection = await connect(*arguments, **options)
        if "server_settings" in options:  # a store's, not a test's
            connection.add_query_logger(listen)
        return connection

    async def fetch_and_note(statement: Any, *arguments: Any) -> Any:  # the driver tells nobody
        seen[statement.get_query()] = arguments
        return await fetch(statement, *arguments)

    monkeypatch.setattr(asyncpg, "connect", connect_and_listen)
    monkeypatch.setattr(PreparedStatement, "fetch", fetch_and_note)
    return seen


def of_requests(asked: Asked) -> Asked:
    """Those that requests cause, without what controls transactions and what names no owner."""
    control = re.compile(r"\s*(BEGIN|COMMIT|ROLLBACK|SET)\b")
    return {
        text: arguments
        for text, arguments in asked.items()
        if not control.match(text)
        and not " ".join(text.split()).startswith(NOT_OF_AN_OWNER)
        and OF_THE_INSTALLATION not in text
    }


async def test_every_statement_names_the_owner(url: str, asked: Asked) -> None:
    """On the path of requests no statement asks for rows without saying whose."""
    async with open_store(url) as store:
        await use_everything(store)
    named = re.compile(
        r"owner_(id|hash) = \$1|chatkeep_append\(\$1|users (\(id\) VALUES \(\$1\)|WHERE id = \$1)"
        r"|INTO \w+ \(owner_(id|hash)|unnest\(\$1::text\[\].*\s+AS w \(owner_id, "
    )
    statements = of_requests(asked)
    assert [text for text in statements if not named.search(text)] == []
    assert len(statements) > 25


SCALE = int(os.environ.get("CHATKEEP_EXPLAIN_SCALE", "1"))
"""10 is 100,000 conversations and 1,000,000 messages."""
FILL = """
    INSERT INTO users SELECT 'owner ' || n FROM generate_series(0, 9999) n;
    INSERT INTO conversations (owner_id, id, context_id, metadata, last_seq, head_seq, fingerprint, updated_at)
    SELECT 'owner ' || n % 10, md5(n::text)::uuid, 'c' || n % 7, '{}', 10, 10, '', now() - n * interval '1 s'
    FROM generate_series(1, 10000 * scale) n;
    INSERT INTO conversation_labels SELECT owner_id, id, 'frequent' FROM conversations;
    INSERT INTO messages (owner_id, conversation_id, seq, id, run, depth, role, content, status, fingerprint, terms)
    SELECT owner_id, id, n, md5(id::text || n)::uuid, 0, n, 'user', 'hello', 'complete', '', '{x}'
    FROM conversations, generate_series(1, 10) n;
    INSERT INTO projects (owner_id, id, name)
    SELECT 'owner ' || n % 10, md5(n::text)::uuid, 'p' FROM generate_series(1, 1000 * scale) n;
    INSERT INTO documents (owner_id, project_id, id, file_path, media_type, bytes, sha256, content)
    SELECT owner_id, id, md5(id::text || n)::uuid, n::text, '', 1, '', id FROM projects, generate_series(1, 5) n;
    INSERT INTO chunks (owner_id, project_id, document_id, content, n, start, heading, terms, text)
    SELECT owner_id, project_id, id, content, n, 0, '', '', '' FROM documents, generate_series(1, 10) n;
    INSERT INTO vectors SELECT owner_id, project_id, 'minilm/2', document_id, content, n, '{1, 0}' FROM chunks;
    VACUUM ANALYZE
"""
TABLES = "messages|conversations|users|conversation_labels|projects|documents|chunks|vectors"


@pytest.mark.timeout(600)
async def test_every_query_uses_an_index(url: str, asked: Asked) -> None:
    """No statement of a request reads a whole table, however the planner sees 10,000 conversations times SCALE."""
    async with raw(url) as connection:
        for statement in FILL.replace("scale", str(SCALE)).split(";"):
            await connection.execute(statement, timeout=600)
        async with open_store(url) as store:
            await use_everything(store)
        scans = {}
        for text, arguments in of_requests(asked).items():
            plan = "\n".join(line for (line,) in await connection.fetch(f"EXPLAIN {text}", *arguments))
            if re.search(rf"Seq Scan on ({TABLES})", plan):
                scans[text] = plan
        assert scans == {}


async def test_json_is_measured_after_the_limit(url: str) -> None:
    """The sizes of a page are computed of its rows, not of all that are sorted for it: JSON is read for that."""
    listed = f"{CONVERSATION} ORDER BY c.updated_at DESC LIMIT $2"
    statement = f"EXPLAIN (VERBOSE) {sized_conversations(listed, 'updated_at DESC', '$3')}"
    async with raw(url) as connection:
        for scans in ("on", "off"):  # also if the rows have to be sorted
            await connection.execute(f"SET enable_indexscan = {scans}; SET enable_bitmapscan = {scans}")
            plan = "\n".join(line for (line,) in await connection.fetch(statement, OWNER, 10, 1_000))
            assert plan.count("octet_length") == 1, plan  # and once
            assert "octet_length" not in plan[plan.index("Limit") :], plan


async def use_everything(store: Store) -> None:
    """Call every method of the port, on straight and branched conversations."""
    talk = await store.create_conversation(OWNER, NewConversation(context_id="c"))
    await store.create_conversation(OWNER, NewConversation(id=talk.id, context_id="c"))
    for context in ("c", "d", None):
        await store.get_or_create_conversation(OWNER, NewConversation(context_id=context))
    first = (await store.append(OWNER, talk.id, [user("pebble")]))[0]
    await asyncio.gather(*(store.append(OWNER, talk.id, [user(f"pebble {number}")]) for number in range(20)))
    for parent in (first.id, None):
        await store.append(OWNER, talk.id, [NewMessage(role=Role.ASSISTANT, content="x", parent_id=parent)])
    for order in ("desc", "asc"):
        page = await store.history(OWNER, talk.id, limit=2, order=order, total=True)
        await store.history(OWNER, talk.id, limit=2, offset=3, leaf=first.id)
        assert page.items
    await store.siblings(OWNER, talk.id, first.id)
    await store.get_message(OWNER, talk.id, first.id)
    await store.log(OWNER, talk.id)
    await store.update_conversation(OWNER, talk.id, ConversationChange(head_id=first.id, title="t", metadata={"a": 1}))
    await store.search_messages(OWNER, "pebble")
    await store.search_messages(OWNER, "pebble -sand", conversation_id=talk.id)
    await store.delete_message(OWNER, talk.id, first.id)
    for order in ("updated", "id"):
        listed = await store.list_conversations(OWNER, order=order, limit=1, total=True)  # type: ignore[arg-type]
        await store.list_conversations(OWNER, order=order, limit=1, cursor=listed.next)  # type: ignore[arg-type]
    await store.list_conversations(OWNER, context_id="c")
    await use_filters(store)
    with suppress(Exception):
        await store.get_conversation("bob", talk.id)
    await use_turns(store, talk.id)
    await use_projects(store)
    await use_providers(store, talk.id)
    await store.delete_conversation(OWNER, talk.id)
    receipt = await store.erase_owner(OWNER)
    assert await store.access.erased_at(OWNER) == receipt.erased_at


async def use_turns(store: Store, talk: UUID) -> None:
    """Call every method of the port of turns."""
    worker, day = uuid4(), timedelta(days=1)
    for lease in (timedelta(0), LEASE):
        turn = await store.turns.start_turn(OWNER, talk, user("why?"), worker=worker, lease=lease)
        key = TurnKey(OWNER, talk, turn.answer.id)
        await store.turns.append_turn_events(worker, [TurnWrite(key)], lease=lease)
        await store.turns.turn_events([TurnPlace(key)])
        assert await store.turns.expire_turns() == (lease == timedelta(0))
    events = [TurnEvent(1, EventKind.TEXT, {"text": "pebble"})]
    for _ in range(2):  # those that are there are stored in another way
        await store.turns.append_turn_events(worker, [TurnWrite(key, events)])
    await store.get_message(OWNER, talk, key.message_id)
    await store.turns.stop_turn(*key)
    await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "pebble", model="m"), worker=worker)
    await store.turns.start_turn(OWNER, talk, turn.question.id, worker=worker)
    await store.turns.answer_stats(OWNER, after=turn.answer.created_at, before=turn.answer.created_at + day)


async def use_providers(store: Store, talk: UUID) -> None:
    """Call every method of the port of providers, and name some of them."""
    new = NewLlmProvider(id=uuid4(), provider_name="scripted", model_name="pebble")
    for _ in range(2):
        provider = await store.providers.create_provider(new)
    await store.providers.update_provider(provider.id, LlmProviderChange(model_name="sand", is_default=True))
    assert await store.providers.get_provider(provider.id) in await store.providers.list_providers()
    await store.create_conversation(OWNER, NewConversation(llm_provider_id=provider.id))
    await store.update_conversation(OWNER, talk, ConversationChange(llm_provider_id=provider.id))
    await store.providers.delete_provider(provider.id, replacement=EXTRACTIVE_ID)
    assert (await store.get_conversation(OWNER, talk)).llm_provider_id == EXTRACTIVE_ID


async def use_projects(store: Store) -> None:
    """Call every method of the port of projects."""
    project = await store.projects.create_project(OWNER, NewProject(name="k", metadata={"a": 1}))
    await store.projects.create_project(OWNER, NewProject(id=project.id, name="k", metadata={"a": 1}))
    await store.create_conversation(OWNER, NewConversation(project_id=project.id))
    first = await store.projects.list_projects(OWNER, limit=1, total=True)
    await store.projects.create_project(OWNER, NewProject(name="another"))
    first = await store.projects.list_projects(OWNER, limit=1)
    await store.projects.list_projects(OWNER, limit=1, cursor=first.next)
    await store.projects.update_project(OWNER, project.id, ProjectChange(name="n", metadata={"b": 2}))
    await use_documents(store, project.id)
    await store.projects.delete_project(OWNER, project.id)


async def use_documents(store: Store, project: UUID) -> None:
    """Call every method of the port of documents."""
    documents = store.documents
    for sha256, space in (("a" * 64, None), ("b" * 64, "minilm/2")):
        new = NewDocument(file_path="guide.md", media_type="text/markdown", bytes=4, sha256=sha256)
        vector = None if space is None else bytes(8)
        chunks = [NewChunk(f"thyme {n}", "#a", "A", n, b"", vector) for n in range(3)]
        stored = await documents.store_document(OWNER, project, new, chunks, space=space)
        id_ = stored.document.id
        await documents.get_document(OWNER, project, id_)
        await documents.document_chunks(OWNER, project, id_)
        (content,) = await documents.contents(OWNER, project)
        ranges = [ChunkRange(id_, content.id, 0, 2)]
        for each in ("minilm/2", None):
            await documents.index_entries(OWNER, project, ranges, space=each)
        await documents.chunks(OWNER, project, ranges)
        await documents.nearest_chunks(OWNER, project, "minilm/2", bytes(8))
    listed = await documents.list_documents(OWNER, project, total=True)
    await documents.list_documents(OWNER, project, cursor=listed.next)
    assert await documents.claim_embedding(OWNER, project, uuid4())
    await documents.count_vectors(OWNER, project, "large/2")
    await documents.without_vectors(OWNER, project, content, "large/2")
    await documents.add_vectors(OWNER, project, content, "large/2", {0: bytes(8)})
    await documents.use_space(OWNER, project, "large/2")
    await documents.delete_document(OWNER, project, id_)


# --- many processes, restarts ----------------------------------------------------------------------------

WRITER = """
import asyncio, random, sys
from typing import Any
from uuid import UUID, uuid4
from chatkeep import NewMessage, Role, open_store

async def main(url, ids):
    async with open_store(url, migrate=False) as store:
        async def write(dice):
            for _ in range(6):
                message = NewMessage(id=uuid4(), role=Role.USER, content=f"hello {dice.random()}")
                talk = dice.choice(ids)
                times = 2 if dice.random() < 0.5 else 1
                answers = await asyncio.gather(*(store.append("ada", talk, [message]) for _ in range(times)))
                assert len({batch[0].seq for batch in answers}) == 1
                print(talk, message.id, answers[0][0].seq, flush=True)
        await asyncio.gather(*(write(random.Random()) for _ in range(32)))

asyncio.run(main(sys.argv[1], [UUID(text) for text in sys.argv[2:]]))
"""


async def test_eight_processes_share_conversations(url: str, store: Store) -> None:
    """8 processes with 32 tasks each, half of the appends sent twice at once: none lost, none doubled, seq dense."""
    talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(12)]
    command = [sys.executable, "-c", WRITER, url, *(str(talk.id) for talk in talks)]
    running = [
        await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
        for _ in range(8)
    ]
    ended = await asyncio.gather(*(process.communicate() for process in running))
    assert [errors.decode() for _, errors in ended] == [""] * 8
    said = [line.split() for output, _ in ended for line in output.decode().splitlines()]
    assert len(said) == 8 * 32 * 6
    stored: dict[UUID, tuple[UUID, int]] = {}
    for talk in talks:
        log = await whole_log(store, OWNER, talk.id)
        assert seqs(log) == dense(len(log))
        stored |= {message.id: (talk.id, message.seq) for message in log}
    assert {UUID(id_): (UUID(talk), int(seq)) for talk, id_, seq in said} == stored


@pytest.fixture(scope="module")
def own_server() -> Iterator[Server]:
    """A server of these tests: to make one takes a second of the processor."""
    server = Server(**{**FAST, "full_page_writes": "on"})
    yield server
    server.remove()


@pytest.fixture
def server(own_server: Server) -> Server:
    """The same, running; a test may stop it."""
    if not reachable(own_server.port):
        own_server.start()
    return own_server


def two_addresses(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have `name` looked up as two addresses of this machine; the server listens on the second."""
    look_up = socket.getaddrinfo

    def both(host: Any, *arguments: Any, **options: Any) -> list[Any]:
        hosts = ("127.0.0.2", "127.0.0.1") if host == name else (host,)
        return [found for each in hosts for found in look_up(each, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)


@pytest.mark.parametrize("form", ["address", "two hosts", "name of two addresses", "socket"])
async def test_a_server_that_comes_back_is_found(server: Server, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write waits for it, whatever the URL says of where it is; the driver is not asked while nobody listens."""
    host, port = "127.0.0.1", server.port
    if form == "two hosts":
        host = f"127.0.0.2:{port},127.0.0.1"
    elif form == "name of two addresses":
        host = "db.test"
        two_addresses(monkeypatch, host)
    url = f"postgresql://chatkeep:{PASSWORD}@{host}:{port}/postgres"
    if form == "socket":
        url = f"postgresql://chatkeep:{PASSWORD}@/postgres?host={server.folder}&port={port}"
    connect, asked = asyncpg.connect, 0

    async def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal asked
        asked += 1
        return await connect(*arguments, **options)

    async with open_store(url, durability="relaxed") as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        monkeypatch.setattr(asyncpg, "connect", counted)
        await asyncio.to_thread(server.stop)
        writing = asyncio.create_task(store.append(OWNER, talk.id, [user("still there?")]))
        await asyncio.sleep(0.4)
        assert not writing.done()
        while_down = asked
        await asyncio.to_thread(server.start)
        await writing
        assert contents(await whole_log(store, OWNER, talk.id)) == ["still there?"]
    assert while_down == 1 if form in ("address", "name of two addresses") else while_down > 1


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("postgresql://ada@db.example:6432/chat", ("db.example", 6432)),
        ("postgres://ada:p%40ss@db.example:5432/chat", ("db.example", 5432)),
        ("postgresql://ada@db.example/chat", None),
        ("postgresql://[::1]:6432/chat", ("::1", 6432)),
        ("postgresql://one,two:6432/chat", None),
        ("postgresql://one:6432,two:6432/chat", None),
        ("postgresql://ada@%2Frun%2Fpostgresql/chat", None),
        ("postgresql:///chat?host=/run/postgresql", None),
        ("postgresql:///chat?service=chat", None),
    ],
)
def test_address_in_a_url(url: str, address: tuple[str, int] | None) -> None:
    """An address is one host and its port; whatever else a URL says is the driver's to understand."""
    assert written_address(url) == address


ROUNDS = int(os.environ.get("CHATKEEP_CRASH_ROUNDS", "1"))
"""How often the server is stopped in each way; `make crash` says 20."""


@pytest.mark.timeout(60 + 10 * ROUNDS)
@pytest.mark.parametrize("mode", [pytest.param("fast", marks=pytest.mark.long), "immediate"])
async def test_server_restarts_under_load(server: Server, mode: str) -> None:
    """Errors only while it is down; nothing acknowledged is lost, and no retry is stored twice."""
    for _ in range(ROUNDS):
        await restart_under_load(server, mode)


async def restart_under_load(server: Server, mode: str) -> None:
    """Stop the server while 64 tasks write, start it again, and compare what they know with what is there."""
    async with open_store(server.url(), write_timeout=0.5) as store:
        talks = [await store.create_conversation(OWNER, NewConversation()) for _ in range(8)]
        acknowledged: dict[UUID, int] = {}
        failed: list[float] = []
        stopping = asyncio.Event()

        async def write(number: int) -> None:
            talk = talks[number % 8].id
            while not stopping.is_set():
                message = user("hello", id=uuid4())
                while True:
                    try:
                        (stored,) = await store.append(OWNER, talk, [message])
                    except StoreUnavailable:
                        failed.append(time.monotonic())
                        await asyncio.sleep(0.01)
                        continue
                    acknowledged[stored.id] = stored.seq
                    break

        writers = [asyncio.create_task(write(number)) for number in range(64)]
        await asyncio.sleep(0.3)
        before = len(acknowledged)
        await asyncio.to_thread(server.stop, mode)
        await asyncio.sleep(0.7)
        await asyncio.to_thread(server.start)
        up = time.monotonic()
        await asyncio.sleep(1.0)
        stopping.set()
        await asyncio.gather(*writers)
        assert failed, "nobody noticed that the server was down"
        assert max(failed) < up + 0.6
        assert 0 < before < len(acknowledged)
        logs = [await whole_log(store, OWNER, talk.id) for talk in talks]
        assert [seqs(log) for log in logs] == [dense(len(log)) for log in logs]
        assert {message.id: message.seq for log in logs for message in log} == acknowledged


async def use_filters(store: Store) -> None:
    """Call what reads conversations by label, project, external id and time."""
    project = uuid4()
    new = ImportedConversation(project_id=project, external_id="x", labels=("rare",), context_id="c")
    await store.import_conversation(OWNER, new)
    await store.import_conversation(OWNER, ImportedConversation(id=uuid4(), project_id=project))
    talk = await store.create_conversation(OWNER, NewConversation(project_id=project, labels=("rare", "other")))
    await store.update_conversation(OWNER, talk.id, ConversationChange(labels=("other",), context_id="d"))
    for scope in ({"project_id": project}, {"external_id": "x"}, {"external_id": "x", "context_id": "c"}):
        await store.get_or_create_conversation(OWNER, NewConversation(**scope))
    for labels in (["rare"], ["frequent"], ["frequent", "!rare"], ["!frequent"]):
        for order in ("updated", "id"):
            page = await store.list_conversations(OWNER, labels=labels, order=order, limit=1, total=True)
            await store.list_conversations(OWNER, labels=labels, order=order, cursor=page.next)
    await store.list_conversations(OWNER, project_id=project)
    await store.list_conversations(OWNER, external_id="x")
    await store.list_conversations(OWNER, updated_after=talk.updated_at, updated_before=talk.updated_at)
    await store.find_conversation(OWNER, "x")
    (message,) = await store.append(OWNER, talk.id, [user("pebble")])
    await store.update_message(OWNER, talk.id, message.id, MessageChange(metadata={"liked": True}))
    await store.export_conversation(OWNER, talk.id)
    await store.delete_conversation(OWNER, talk.id)
