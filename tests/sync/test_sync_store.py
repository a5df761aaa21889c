"""What a synchronous store adds to an asynchronous one: threads, interrupts, forks, and the end of the program."""

import asyncio
import contextvars
import gc
import inspect
import os
import pydoc
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, assert_type
from uuid import UUID, uuid4

import apsw
import pytest
from polling import until

from chatkeep import (
    ChatkeepError,
    Conflict,
    Conversation,
    InvalidId,
    InvalidInput,
    Message,
    NewConversation,
    NotFound,
    Page,
    StoreUnavailable,
    access,
    documents,
    projects,
    providers,
    store,
    sync,
    sync_loop,
    turns,
)
from chatkeep.store import Observer
from chatkeep.testing import dense, seqs, user
from conftest import STORES

PORTS = {
    sync.Store: store.Store,
    sync.Access: access.Access,
    sync.Turns: turns.Turns,
    sync.Providers: providers.Providers,
    sync.Projects: projects.Projects,
    sync.Documents: documents.Documents,
}

ON_SQLITE = pytest.mark.parametrize(
    "store_url",
    [name if name == "sqlite" else pytest.param(name, marks=pytest.mark.long) for name in STORES],
    indirect=True,
)
"""For what starts programs: always on SQLite, on the other stores in long runs."""

ONLY_SYNC, ONLY_ASYNC = {"close", "newest_revision"}, {"aclose", "driver_options"}
"""What only one of the stores has: the other's port only declares `newest_revision`."""


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[sync.Store]:
    """A synchronous store in a file."""
    with sync.open_store(f"sqlite:///{tmp_path}/chat.db") as opened:
        yield opened


def public(kind: type) -> dict[str, Any]:
    """What a port offers, by name."""
    return {name: getattr(kind, name) for name in dir(kind) if not name.startswith("_")}


def threads() -> list[threading.Thread]:
    """The threads of open synchronous stores."""
    return [thread for thread in threading.enumerate() if thread.name == "chatkeep-sync"]


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep the lock for writing of the store in a folder."""
    connection = apsw.Connection(f"{folder}/chat.db")
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


# --- the same methods ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PORTS, ids=lambda kind: kind.__name__)
def test_every_method_is_that_of_the_asynchronous_port(kind: type) -> None:
    """There is each method and property of the port, with its name, parameters, defaults, types and docstring."""
    mine, theirs = public(kind), public(PORTS[kind])
    if kind is sync.Store:
        assert mine.keys() - theirs.keys() >= ONLY_SYNC
        assert theirs.keys() - mine.keys() >= ONLY_ASYNC
    assert mine.keys() - ONLY_SYNC == theirs.keys() - ONLY_ASYNC
    for name in mine.keys() & theirs.keys():
        if isinstance(mine[name], property):
            continue
        assert mine[name].__name__ == name
        assert not inspect.iscoroutinefunction(inspect.unwrap(mine[name]))
        parameters = [inspect.signature(method[name]).parameters.values() for method in (mine, theirs)]
        shapes = [[(p.name, p.kind, p.default) for p in each] for each in parameters]
        types = [[p.annotation for p in each][1:] for each in parameters]
        assert [shapes[0], types[0]] == [shapes[1], types[1]], name
        assert inspect.getdoc(mine[name]) == inspect.getdoc(theirs[name]) is not None, name


@pytest.mark.parametrize("name", ["access", "turns", "providers", "projects", "documents"])
def test_every_port_is_a_property_with_the_same_docstring(name: str) -> None:
    """`store.turns` and the others are described as on the asynchronous store."""
    assert inspect.getdoc(getattr(sync.Store, name)) == inspect.getdoc(getattr(store.Store, name))


def test_help_shows_parameters_and_docstring() -> None:
    """`help(store.append)` says what the asynchronous one says, and nothing of coroutines."""
    with sync.open_store("memory://") as opened:
        text = " ".join(pydoc.plain(pydoc.render_doc(opened.append)).split())
    assert "expected_seq: int | None = None ) -> list[chatkeep.model.Message]" in text
    assert "Append messages in order and return them as they are stored" in text
    assert "async" not in text


def test_type_checkers_see_exact_types() -> None:
    """What mypy finds out of results and arguments: it fails if one of these is Any, or a wrong argument passes."""
    with sync.open_store("memory://") as opened:
        assert_type(opened, sync.Store)
        conversation = assert_type(opened.create_conversation("ada", NewConversation()), Conversation)
        assert_type(opened.append("ada", conversation.id, user("tea"), expected_seq=0), list[Message])
        assert_type(opened.history("ada", conversation.id, limit=1), Page[Message])
        assert_type(opened.messages("ada", conversation.id), Iterator[Message])
        assert_type(opened.turns.expire_turns(), int)
        assert_type(opened.projects.list_projects("ada"), Page[projects.Project])
        assert_type(opened.providers.list_providers(), list[providers.LlmProvider])
        assert_type(opened.access.list_keys(), list[access.ApiKey])
    with sync.open_store("memory://") as opened, pytest.raises(InvalidId):
        opened.get_conversation("ada", 7)  # type: ignore[arg-type]
    with sync.open_store("memory://") as opened, pytest.raises(TypeError, match="most"):
        opened.history("ada", uuid4(), most=1)  # type: ignore[call-arg]


def test_every_database(store_url: str) -> None:
    """A conversation, its iteration, each port and the end, on each kind of store."""
    with sync.open_store(store_url, max_content_chars=50) as opened:
        conversation = opened.create_conversation("ada", NewConversation(title="Tea"))
        stored = [opened.append("ada", conversation.id, [user(f"{n}")])[0] for n in range(5)]
        assert list(opened.messages("ada", conversation.id, page=2)) == stored
        assert list(opened.messages("ada", conversation.id, page=2, order="desc")) == stored[::-1]
        assert opened.history("ada", conversation.id).items == stored
        assert [opened.turns.expire_turns(), opened.access.list_keys("ada")] == [0, []]
        assert [p.is_default for p in opened.providers.list_providers()] == [True]
        project = opened.projects.create_project("ada", projects.NewProject(name="Garden"))
        assert opened.documents.list_documents("ada", project.id).items == []
        assert opened.schema_revision() == opened.newest_revision
        assert all(isinstance(gauge, int) for gauge in opened.state().values())
        with pytest.raises(InvalidInput, match="at most 50"):
            opened.append("ada", conversation.id, user("x" * 51))
    for call in (opened.ping, opened.turns.expire_turns, opened.state):
        with pytest.raises(StoreUnavailable, match="closed"):
            call()
    opened.close()


def test_opening_that_fails() -> None:
    """What the asynchronous `open_store` raises is raised, and no thread is left."""
    for url, error in (("oracle://x", InvalidInput), ("sqlite:////nowhere/at/all/chat.db", StoreUnavailable)):
        with pytest.raises(error):
            sync.open_store(url)
    assert threads() == []


# --- threads ------------------------------------------------------------------------------------------------


def test_appends_of_many_threads_share_commits(sqlite: sync.Store) -> None:
    """Appends of 16 threads have dense seqs, and there are far fewer commits than appends."""
    batches: list[int] = []

    class Batches(Observer):
        def committed(self, items: int) -> None:
            batches.append(items)

    conversation = sqlite.create_conversation("ada", NewConversation())
    sqlite.observer = Batches()
    with ThreadPoolExecutor(16) as pool:
        done = pool.map(lambda n: sqlite.append("ada", conversation.id, [user(f"{n}")])[0].seq, range(320))
        assert sorted(done) == dense(320)
    assert sum(batches) == 320
    assert len(batches) < 160
    assert seqs(list(sqlite.messages("ada", conversation.id))) == dense(320)


def test_closing_while_others_append(tmp_path: Path) -> None:
    """An append that is under way when the store is closed is stored and returns, or says that it is closed."""
    url = f"sqlite:///{tmp_path}/chat.db"
    opened = sync.open_store(url)
    conversation = opened.create_conversation("ada", NewConversation())
    stored: list[UUID] = []

    def append() -> None:
        while True:
            stored.extend(m.id for m in opened.append("ada", conversation.id, [user("tea")]))

    with ThreadPoolExecutor(20) as pool:
        appending = [pool.submit(append) for _ in range(20)]
        until(lambda: len(stored) > 100)
        with ThreadPoolExecutor(3) as closing:
            list(closing.map(lambda _: opened.close(), range(3)))
        ends = [future.exception(timeout=5) for future in appending]
    assert {type(end) for end in ends} == {StoreUnavailable}
    assert threads() == []
    with sync.open_store(url) as again:
        assert set(stored) <= {message.id for message in again.messages("ada", conversation.id)}


def test_deadlines_are_those_of_the_store(tmp_path: Path) -> None:
    """A call that waits for the database ends after `write_timeout`, and the store goes on."""
    with sync.open_store(f"sqlite:///{tmp_path}/chat.db", write_timeout=0.3) as opened:
        conversation = opened.create_conversation("ada", NewConversation())
        began = time.monotonic()
        with locked(tmp_path), pytest.raises(StoreUnavailable):
            opened.append("ada", conversation.id, [user("tea")])
        assert time.monotonic() - began < 5
        assert opened.append("ada", conversation.id, [user("tea")])


async def test_within_a_running_event_loop(sqlite: sync.Store) -> None:
    """A thread with an event loop, as that of a notebook, can use the store, also its iterators."""
    conversation = sqlite.create_conversation("ada", NewConversation())
    (stored,) = sqlite.append("ada", conversation.id, [user("tea")])
    assert list(sqlite.messages("ada", conversation.id)) == [stored]
    await asyncio.sleep(0)


def test_observers_are_called_in_the_callers_context(sqlite: sync.Store) -> None:
    """Context variables, such as the span of a trace, are those of the calling thread."""
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request")
    seen: list[tuple[str, str, ChatkeepError | None]] = []

    class Tracing(Observer):
        def called(self, operation: str, seconds: float, error: ChatkeepError | None) -> None:
            seen.append((operation, request.get(), error))

    def call(name: str) -> None:
        request.set(name)
        with pytest.raises(NotFound):
            sqlite.get_conversation("ada", uuid4())

    sqlite.observer = observer = Tracing()
    assert sqlite.observer is observer
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, "abcd"))
    assert sorted(name for _, name, _ in seen) == list("abcd")
    assert {(operation, type(error)) for operation, _, error in seen} == {("get_conversation", NotFound)}


def test_a_call_on_the_stores_own_loop_is_refused(sqlite: sync.Store) -> None:
    """An observer cannot use the store, nor close it: the call raises instead of waiting for itself."""
    raised: list[BaseException] = []

    class Calling(Observer):
        def called(self, operation: str, seconds: float, error: ChatkeepError | None) -> None:
            for call in (sqlite.ping, sqlite.close):
                with pytest.raises(RuntimeError, match="own event loop") as error_:
                    call()
                raised.append(error_.value)

    sqlite.observer = Calling()
    sqlite.create_conversation("ada", NewConversation())
    assert len(raised) == 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("ends", ["stopped", "broken"])
def test_no_call_waits_for_a_loop_that_has_ended(monkeypatch: pytest.MonkeyPatch, ends: str) -> None:
    """However the loop ends: calls under way, which nothing else would end, and later ones are told."""
    monkeypatch.setattr(sync_loop, "JOIN_SECONDS", 0.2)
    loop = sync_loop.LoopThread()
    begun = threading.Event()

    async def hang() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(loop.call, hang)
        begun.wait(10)
        loop._send(loop._stopped.set if ends == "stopped" else loop._loop.stop)
        with pytest.raises(StoreUnavailable, match="closed before this was done"):
            hanging.result(5)
    loop._thread.join(5)
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match="the store is closed"):
            loop.call(hang)
        loop.close(hang)


# --- errors and interrupts ----------------------------------------------------------------------------------


def test_errors_are_the_same_and_show_the_calling_line(sqlite: sync.Store) -> None:
    """A traceback begins with the call and ends in the store."""
    conversation = sqlite.create_conversation("ada", NewConversation())
    sqlite.append("ada", conversation.id, [user("tea")])
    with pytest.raises(Conflict, match="at seq 1") as raised:
        sqlite.append("ada", conversation.id, [user("more")], expected_seq=7)  # the calling line
    lines = "".join(traceback.format_exception(raised.value))
    assert lines.index("# the calling line") < lines.index("sync_loop.py") < lines.index("stores")
    assert lines.count("Traceback") == 1


def test_errors_keep_nothing_alive() -> None:
    """An error is gone when it was handled: the call does not refer to it, nor it to itself."""

    def fail(opened: sync.Store) -> weakref.ref[NotFound]:
        try:
            opened.get_conversation("ada", uuid4())
        except NotFound as error:
            return weakref.ref(error)
        raise AssertionError("there was no error")

    with sync.open_store("memory://") as opened:
        gc.disable()
        try:
            error = fail(opened)
            opened.ping()  # the task of the call before is done
            assert error() is None
        finally:
            gc.enable()


def test_an_interrupt_cancels_the_call(tmp_path: Path, sqlite: sync.Store) -> None:
    """Ctrl-C while a call waits raises KeyboardInterrupt at once. Its write, which is queued, is not made."""
    conversation = sqlite.create_conversation("ada", NewConversation())
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path):
            first = pool.submit(sqlite.append, "ada", conversation.id, [user("in flight")])
            until(first.running)
            time.sleep(0.2)
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
            began = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                sqlite.append("ada", conversation.id, [user("queued")])
            assert time.monotonic() - began < 2
            sqlite.get_conversation("ada", conversation.id)  # after the cancellation
        first.result(timeout=5)
    sqlite.append("ada", conversation.id, [user("after")])
    assert [m.content for m in sqlite.messages("ada", conversation.id)] == ["in flight", "after"]


# --- the end ------------------------------------------------------------------------------------------------


def test_a_store_that_nothing_refers_to_is_closed(tmp_path: Path) -> None:
    """The thread ends when the store is collected; a port or an iterator of it keeps it open."""
    url = f"sqlite:///{tmp_path}/chat.db"
    turns_ = sync.open_store(url).turns
    gc.collect()
    assert turns_.expire_turns() == 0
    assert len(threads()) == 1
    del turns_
    gc.collect()
    until(lambda: threads() == [])
    with sync.open_store(url) as again:
        again.ping()


def run(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a program."""
    head = "import sys, warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
    command = [sys.executable, "-c", head + program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


UNCLOSED = """
import threading
from uuid import UUID
from chatkeep import NewConversation, NewMessage, StoreUnavailable
from chatkeep.sync import open_store

store = open_store(sys.argv[1])
conversation = store.create_conversation("ada", NewConversation(id=UUID(sys.argv[2])))
enough = threading.Event()

def append():
    for n in range(1_000_000):
        try:
            (message,) = store.append("ada", conversation.id, [NewMessage(role="user", content=f"{n}")])
        except StoreUnavailable:
            return
        sys.stdout.write(f"{message.id}\\n")
        if n == 20:
            enough.set()

threading.Thread(target=append, daemon=True).start()
enough.wait()
"""


@ON_SQLITE
def test_a_program_that_ends_without_closing(store_url: str) -> None:
    """It ends at once and says nothing; all that was acknowledged is there, though others still append."""
    id_ = uuid4()
    done = run(UNCLOSED, store_url, str(id_))
    acknowledged = {UUID(line) for line in done.stdout.splitlines() if len(line) == 36}
    assert (done.returncode, done.stderr) == (0, "")
    assert len(acknowledged) > 20
    if store_url.startswith("memory"):
        return
    with sync.open_store(store_url) as opened:
        assert acknowledged <= {message.id for message in opened.messages("ada", id_)}


LATE = """
import atexit, threading, time
from chatkeep import NewConversation, StoreUnavailable
from chatkeep.sync import open_store

store = open_store(sys.argv[1])
atexit.register(store.close)

def late():
    threading.main_thread().join()
    time.sleep(0.2)
    try:
        store.create_conversation("ada", NewConversation())
    except StoreUnavailable as error:
        print(error)

threading.Thread(target=late).start()
"""


@pytest.mark.long
def test_a_thread_that_goes_on_after_the_main_thread(tmp_path: Path) -> None:
    """It is told that the interpreter exits, instead of waiting; closing with `atexit` says nothing."""
    done = run(LATE, f"sqlite:///{tmp_path}/chat.db")
    assert (done.returncode, done.stderr) == (0, "")
    assert "join your threads" in done.stdout


LAST = """
from chatkeep import NewConversation, StoreUnavailable
from chatkeep.sync import open_store

class Saves:
    def __init__(self, store):
        self.store = store

    def __del__(self):
        try:
            self.store.create_conversation("ada", NewConversation())
        except StoreUnavailable as error:
            print(error)

saves = Saves(open_store(sys.argv[1]))
"""


@pytest.mark.parametrize("url", ["memory://", "sqlite:///chat.db"])
def test_an_object_that_uses_the_store_when_the_interpreter_drops_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told that the interpreter exits: the store's thread does not run any more, and would never answer."""
    monkeypatch.chdir(tmp_path)
    done = run(LAST, url)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the interpreter is exiting" in done.stdout


FORKING = """
import os
from chatkeep import NewConversation, StoreUnavailable
from chatkeep.sync import open_store

with open_store(sys.argv[1]) as store:
    store.create_conversation("ada", NewConversation())
    messages = store.messages("ada", store.create_conversation("ada", NewConversation()).id)
    child = os.fork()
    if not child:
        for call in (store.ping, lambda: store.turns.expire_turns(), lambda: list(messages), store.state):
            try:
                call()
            except StoreUnavailable as error:
                assert "forked" in str(error)
            else:
                raise AssertionError(call)
        sys.exit(7)  # leaves the block, which closes nothing
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    store.ping()
print("closed")
"""


@ON_SQLITE
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks on this system")
def test_a_forked_child_is_told_to_open_a_store_of_its_own(store_url: str) -> None:
    """Calls in the child raise, and its end says nothing and closes nothing; the parent goes on."""
    done = run(FORKING, store_url)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed\n", "")
