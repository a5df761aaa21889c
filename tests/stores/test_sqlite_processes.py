"""One SQLite file that several processes use at once. Run as a script, this file is one of those processes."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import apsw
import pytest

from chatkeep import ConversationChange, NewConversation, Status, StoreUnavailable, open_store
from chatkeep.errors import TurnLost
from chatkeep.events import TurnEvent, text
from chatkeep.testing import dense, found, numbered, seqs, user, whole_log
from chatkeep.turns import Ending, TurnKey, TurnPlace, TurnState, TurnWrite, answer_id

OWNER = "ada"
SHORT = timedelta(milliseconds=200)
"""The lease of a turn that is to expire."""


# --- what a process does ---------------------------------------------------------------------------------


def when_told() -> None:
    """Say that this process is ready, and wait until all may begin."""
    print("ready", flush=True)
    sys.stdin.readline()


def begin_ten(url: str) -> None:
    """Become ten processes, which open a file that is not there yet at the same moment."""
    gate, latch = os.pipe()
    children = []
    for _ in range(10):
        if (child := os.fork()) == 0:
            os.close(latch)
            os.read(gate, 1)
            asyncio.run(begin(url))
            return
        children.append(child)
    os.close(latch)
    failures = [os.waitpid(child, 0)[1] for child in children]
    sys.exit(any(failures))


async def begin(url: str) -> None:
    """Open a file that may not be there yet, and write to the one conversation of everybody."""
    async with open_store(url) as store:
        talk = await store.get_or_create_conversation(OWNER, NewConversation(context_id="shared"))
        (message,) = await store.append(OWNER, talk.id, [user("hello from a new process")])
        os.write(sys.stdout.fileno(), f"{talk.id} {message.seq}\n".encode())  # in one piece: ten write there at once


async def write(url: str, *conversations: str) -> None:
    """Append from several tasks to several conversations, and say what was acknowledged."""
    async with open_store(url) as store:
        when_told()

        async def task() -> None:
            for _ in range(25):
                batch = numbered(random.randint(1, 3))
                target = random.choice(conversations)
                for message in await store.append(OWNER, target, batch):
                    print(target, message.id, message.seq)

        await asyncio.gather(*(task() for _ in range(6)))


async def hold(path: str) -> None:
    """Hold the write lock until told to let go."""
    connection = apsw.Connection(path)
    connection.execute("BEGIN IMMEDIATE")
    when_told()
    connection.execute("ROLLBACK")
    connection.close()


async def die_while_deleting(url: str, conversation: str) -> None:
    """Be killed after a conversation became invisible and before all of it is removed."""
    async with open_store(url) as store:
        deleting = asyncio.create_task(store.delete_conversation(OWNER, conversation))
        while (await store.list_conversations(OWNER)).items:  # noqa: ASYNC110 - nothing tells when it is hidden
            await asyncio.sleep(0)
        os.kill(os.getpid(), signal.SIGKILL)
        await deleting


async def answer(url: str, conversation: str, question: str) -> None:
    """Begin a turn, go on with it when told to, and say what became of each write; the lease is short."""
    worker, new = uuid4(), user("Why?", id=UUID(question))
    async with open_store(url) as store:
        turn = await store.turns.start_turn(OWNER, conversation, new, worker=worker, lease=SHORT)
        key = TurnKey(OWNER, UUID(conversation), turn.answer.id)

        async def write(n: int) -> TurnState:
            event = TurnEvent(n, *text(f"piece {n} "))
            return (await store.turns.append_turn_events(worker, [TurnWrite(key, [event])], lease=SHORT))[key]

        assert await write(1) is TurnState.RUNNING
        when_told()
        print((await write(2)).name)
        try:
            await store.turns.finish_turn(*key, Ending(Status.COMPLETE, "overwritten"), worker=worker)
        except TurnLost:
            print("refused")


async def ask(url: str, conversation: str, question: str) -> None:
    """Ask a question when told to, and say whether this process is to answer it."""
    async with open_store(url) as store:
        when_told()
        turn = await store.turns.start_turn(OWNER, conversation, user("Why?", id=UUID(question)), worker=uuid4())
        print(turn.is_mine, turn.answer.id)


ROLES: dict[str, Callable[..., Coroutine[object, object, None] | None]] = {
    role.__name__: role for role in (begin_ten, write, hold, die_while_deleting, answer, ask)
}


# --- the tests -------------------------------------------------------------------------------------------


class Child:
    """Another process, in one of the roles above."""

    def __init__(self, role: str, *arguments: object) -> None:
        command = [sys.executable, __file__, role, *map(str, arguments)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def is_ready(self) -> bool:
        """Wait until the process waits to be told."""
        assert self.process.stdout is not None
        return self.process.stdout.readline() == "ready\n"

    def tell(self) -> None:
        """Let the process go on."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()

    def lines(self) -> list[list[str]]:
        """Wait for its end and return what it said, in words."""
        said, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return [line.split() for line in said.splitlines()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file that is not there yet."""
    return tmp_path / "chat.db"


@pytest.fixture
def url(path: Path) -> str:
    """Its URL."""
    return f"sqlite:///{path}"


@pytest.mark.long
async def test_ten_processes_open_a_fresh_file_at_once(url: str) -> None:
    """However many open a missing file at the same moment, one schema is made, and all can write."""
    with Child("begin_ten", url) as child:
        said = await asyncio.to_thread(child.lines)
    assert len({conversation for conversation, _ in said}) == 1
    assert sorted(int(seq) for _, seq in said) == dense(10)


async def test_four_processes_append_to_shared_conversations(url: str) -> None:
    """Processes that append to the same conversations get dense seqs; nothing is lost, and no lock is an error."""
    async with open_store(url) as store:
        talks = [(await store.create_conversation(OWNER, NewConversation())).id for _ in range(3)]
        with ExitStack() as stack:
            children = [stack.enter_context(Child("write", url, *talks)) for _ in range(4)]
            assert all(child.is_ready() for child in children)
            for child in children:
                child.tell()
            finished = asyncio.gather(*(asyncio.to_thread(child.lines) for child in children))
            seen: list[int] = []
            while not finished.done():
                seen += seqs(await store.log(OWNER, talks[0], after=len(seen)))
                await store.append(OWNER, talks[1], [user("from the parent")])
                await asyncio.sleep(0)
        assert seen == dense(len(seen))
        acknowledged: dict[UUID, dict[UUID, int]] = defaultdict(dict)
        for child_said in await finished:
            assert len(child_said) >= 150
            for talk, message_id, seq in child_said:
                acknowledged[UUID(talk)][UUID(message_id)] = int(seq)
        for talk_id in talks:
            log = await whole_log(store, OWNER, talk_id)
            assert seqs(log) == dense(len(log))
            stored = {m.id: m.seq for m in log if m.content != "from the parent"}
            assert stored == acknowledged[talk_id]


async def test_lock_that_is_held_for_long(path: Path, url: str) -> None:
    """A lock held longer than write_timeout is StoreUnavailable; reads go on, and the next write works."""
    async with open_store(url, write_timeout=0.3) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        first = await store.append(OWNER, talk.id, [user("before")])
        refused = user("refused", id=uuid4())
        with Child("hold", path) as child:
            assert child.is_ready()
            started = time.monotonic()
            answers = await asyncio.gather(
                store.append(OWNER, talk.id, [refused]),
                store.update_conversation(OWNER, talk.id, ConversationChange(title="never")),
                store.history(OWNER, talk.id),
                return_exceptions=True,
            )
            assert 0.3 <= time.monotonic() - started < 10
            assert [type(answer) for answer in answers[:2]] == [StoreUnavailable] * 2
            assert all("lock" in str(answer) for answer in answers[:2])
            page = answers[2]
            assert not isinstance(page, BaseException)
            assert page.items == first
            child.tell()
            child.lines()
        assert await store.log(OWNER, talk.id) == first
        (second,) = await store.append(OWNER, talk.id, [refused])
        assert second.seq == 2
        assert (await store.get_conversation(OWNER, talk.id)).title == "before"


async def test_lock_that_is_held_shortly(path: Path, url: str) -> None:
    """A write waits for a lock that is released within write_timeout, and is stored."""
    async with open_store(url, write_timeout=20) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        with Child("hold", path) as child:
            assert child.is_ready()
            waiting = [asyncio.create_task(store.append(OWNER, talk.id, numbered(2))) for _ in range(5)]
            await asyncio.sleep(0.2)
            assert not any(task.done() for task in waiting)
            child.tell()
            await asyncio.gather(*waiting)
            child.lines()
        assert seqs(await store.log(OWNER, talk.id)) == dense(10)


async def test_interrupted_deletion_is_finished_at_the_next_open(path: Path, url: str) -> None:
    """A large deletion whose process is killed leaves nothing visible, and the next open removes the rest."""
    async with open_store(url) as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        for _ in range(8):
            await store.append(OWNER, talk.id, numbered(1_000, "pebble"))
    with Child("die_while_deleting", url, talk.id) as child:
        assert await asyncio.to_thread(child.process.wait, 60) == -signal.SIGKILL
    assert rows(path, "messages") > 0
    assert rows(path, "conversations WHERE deleted_at IS NOT NULL") == 1
    async with open_store(url) as store:
        assert await found(store, OWNER, "pebble") == set()
    for table in ("messages", "conversations", "message_words_docsize"):
        assert rows(path, table) == 0


async def test_worker_that_stood_still_hears_that_its_turn_was_closed(path: Path, url: str) -> None:
    """Another process closes the turn when its lease has expired; what the worker writes afterwards changes nothing."""
    async with open_store(url) as store:
        talk, question = await store.create_conversation(OWNER, NewConversation()), uuid4()
        key = TurnKey(OWNER, talk.id, answer_id(question))
        with Child("answer", url, talk.id, question) as child:
            assert await asyncio.to_thread(child.is_ready)
            child.process.send_signal(signal.SIGSTOP)
            while not (await store.turns.turn_events([TurnPlace(key)]))[0].has_expired:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
            assert await store.turns.expire_turns() == 1
            closed = await store.get_message(*key)
            assert (closed.content, closed.status) == ("piece 1 ", Status.INTERRUPTED)
            child.tell()
            child.process.send_signal(signal.SIGCONT)
            assert await asyncio.to_thread(child.lines) == [["LOST"], ["refused"]]
        assert await store.get_message(*key) == closed
        assert [rows(path, table) for table in ("turns", "turn_events")] == [0, 0]


async def test_question_that_four_processes_ask_is_answered_by_one(url: str) -> None:
    """However many send the same question at once, one of them answers, and the others find its turn."""
    async with open_store(url) as store:
        talk, question = await store.create_conversation(OWNER, NewConversation()), uuid4()
        with ExitStack() as stack:
            children = [stack.enter_context(Child("ask", url, talk.id, question)) for _ in range(4)]
            assert all(child.is_ready() for child in children)
            for child in children:
                child.tell()
            said = await asyncio.gather(*(asyncio.to_thread(child.lines) for child in children))
        assert sorted(line for ((line, _),) in said) == ["False", "False", "False", "True"]
        assert {id_ for ((_, id_),) in said} == {str(answer_id(question))}
        assert seqs(await store.log(OWNER, talk.id)) == [1, 2]


def rows(path: Path, table: str) -> int:
    """How many rows a table has."""
    connection = apsw.Connection(str(path), flags=apsw.SQLITE_OPEN_READWRITE)
    try:
        count = connection.execute(f"SELECT count(*) FROM {table}").get
    finally:
        connection.close()
    assert isinstance(count, int)
    return count


if __name__ == "__main__":
    role = ROLES[sys.argv[1]](*sys.argv[2:])
    if role is not None:
        asyncio.run(role)
