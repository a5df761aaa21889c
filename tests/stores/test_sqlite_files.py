"""The files under an open SQLite store: removed, replaced, copied, and shared with forked children."""

import asyncio
import os
import re
import selectors
import shutil
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import pytest

from chatkeep import Message, NewConversation, Store, StoreUnavailable, open_store
from chatkeep.access import Access
from chatkeep.stores.memory.store import MemoryStore
from chatkeep.stores.sqlite.files import CHECK_SECONDS
from chatkeep.stores.sqlite.lasting_locks import _files
from chatkeep.testing import numbered, user, whole_log

OWNER = "ada"
COME_AND_GO = "import apsw, sys; apsw.Connection(sys.argv[1]).execute('SELECT count(*) FROM messages').fetchall()"
REPLACED = "removed or replaced; close the store and open it again"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A database file, alone in its folder, that is not there yet."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "chat.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[Store]:
    """A store in this file, whose connections are all open."""
    async with open_store(f"sqlite:///{path}", readers=1) as store:
        yield store


def beside(path: Path, suffix: str) -> Path:
    """The log, or its index, of a database."""
    return path.with_name(path.name + suffix)


async def make(path: Path) -> None:
    """Make a database at a path."""
    async with open_store(f"sqlite:///{path}"):
        pass


def run(role: str, *arguments: object) -> str:
    """Run one of the scripts below in a process of its own, and return what it said."""
    command = [sys.executable, __file__, role, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


# --- who may read them ------------------------------------------------------------------------------------


def modes(path: Path) -> dict[str, str]:
    """The permissions of the database and of what is beside it."""
    return {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()}


UMASKS = (0o000, 0o022, 0o077, *(() if os.geteuid() else (0o277,)))
"""A file that its user may not write is of use to root alone."""


@pytest.fixture(params=UMASKS)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """What the process takes away from every new file."""
    given: int = request.param
    before = os.umask(given)
    yield given
    os.umask(before)


async def test_new_files_are_their_users_alone(path: Path, umask: int) -> None:
    """In a folder where others may write, too, nobody else reads a new database, its log, or the index of that."""
    path.parent.chmod(0o1777)
    async with open_store(f"sqlite:///{path}") as store:
        await store.create_conversation(OWNER, NewConversation())
        expected = oct(0o600 & ~umask)
        assert modes(path) == {f"chat.db{suffix}": expected for suffix in ("", "-wal", "-shm")}


async def test_files_that_are_there_keep_their_mode(path: Path) -> None:
    """Whoever lets a group read a database has its log readable, too."""
    await make(path)
    path.chmod(0o640)
    async with open_store(f"sqlite:///{path}") as store:
        await store.create_conversation(OWNER, NewConversation())
        assert set(modes(path).values()) == {"0o640"}


async def test_link_to_a_database_that_is_not_there_yet(path: Path) -> None:
    """The database is made where the link points, for its user alone."""
    path.symlink_to("other.db")
    async with open_store(f"sqlite:///{path}") as store:
        await store.create_conversation(OWNER, NewConversation())
        assert modes(path) == {f"{name}": "0o600" for name in ("chat.db", "other.db", "other.db-wal", "other.db-shm")}


async def test_folder_that_is_not_there(tmp_path: Path) -> None:
    """What cannot be created is said as before."""
    with pytest.raises(StoreUnavailable, match="cannot be opened: is the folder there"):
        await make(tmp_path / "absent" / "chat.db")


# --- removed or replaced ---------------------------------------------------------------------------------


async def remove(path: Path) -> None:
    """Remove the database and leave its log."""
    path.unlink()


async def remove_all(path: Path) -> None:
    """Remove everything."""
    for file in path.parent.iterdir():
        file.unlink()


async def remove_log(path: Path) -> None:
    """Remove the log alone."""
    beside(path, "-wal").unlink()


async def move(path: Path) -> None:
    """Move the database away."""
    path.rename(path.with_name("old.db"))


async def replace(path: Path) -> None:
    """Move a new database to its place."""
    new = path.parent.parent / "new.db"
    await make(new)
    new.replace(path)


async def move_folder(path: Path) -> None:
    """Move the whole folder."""
    path.parent.rename(path.parent.with_name("moved"))


@pytest.mark.parametrize("change", [remove, remove_all, remove_log, move, replace, move_folder])
async def test_files_that_are_removed_or_replaced(
    store: Store, path: Path, change: Callable[[Path], Coroutine[Any, Any, None]]
) -> None:
    """Writes and ping say so, and what to do; who reads goes on or says so; a store opened again uses what is there."""
    talk = await store.create_conversation(OWNER, NewConversation())
    stored = await store.append(OWNER, talk.id, [user("before")])
    await store.ping()
    await change(path)
    await asyncio.sleep(2 * CHECK_SECONDS)
    for call in (
        lambda: store.append(OWNER, talk.id, [user("lost")]),
        lambda: store.create_conversation(OWNER, NewConversation()),
        lambda: store.access.abandon_request(OWNER, "key"),
        store.ping,
    ):
        with pytest.raises(StoreUnavailable, match=REPLACED):
            await call()
    try:
        assert (await store.log(OWNER, talk.id))[:1] == stored
    except StoreUnavailable as error:
        assert re.search(REPLACED, str(error))  # noqa: PT017 - either is right
    await store.aclose()
    if path.parent.exists():
        async with open_store(f"sqlite:///{path}") as again:
            await again.append("bob", (await again.create_conversation("bob", NewConversation())).id, [user("hello")])


async def test_database_that_is_removed_as_a_reader_opens_it(path: Path) -> None:
    """SQLite's error of a connection that is half open says what happened, too, and not that the disk is at fault."""
    for _ in range(3):
        async with open_store(f"sqlite:///{path}", readers=1) as store:
            await store.create_conversation(OWNER, NewConversation())
            await remove(path)
            await asyncio.sleep(2 * CHECK_SECONDS)
            with pytest.raises(StoreUnavailable, match=REPLACED):
                await store.ping()


async def test_file_that_a_link_names(path: Path, tmp_path: Path) -> None:
    """A store that was opened by a link works, and notices when the link names another file."""
    await make(path)
    await make(tmp_path / "other.db")
    link = tmp_path / "link.db"
    link.symlink_to(path)
    async with open_store(f"sqlite:///{link}") as store:
        await store.create_conversation(OWNER, NewConversation())
        link.unlink()
        link.symlink_to(tmp_path / "other.db")
        await asyncio.sleep(2 * CHECK_SECONDS)
        with pytest.raises(StoreUnavailable, match=REPLACED):
            await store.create_conversation(OWNER, NewConversation())


async def test_relative_path_stays_the_same_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who changes the working directory after opening goes on with the file that was opened."""
    monkeypatch.chdir(path.parent)
    async with open_store(f"sqlite:///{path.name}") as store:
        monkeypatch.chdir("/")
        await store.create_conversation(OWNER, NewConversation())
        assert len((await store.list_conversations(OWNER)).items) == 1
        await store.ping()


# --- copied by this process ------------------------------------------------------------------------------


async def stored_in(path: Path, talk: str) -> set[str]:
    """The ids of the messages of a conversation."""
    async with open_store(f"sqlite:///{path}") as store:
        return {str(message.id) for message in await whole_log(store, OWNER, UUID(talk))}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks of open file descriptions")
async def test_folder_that_this_process_copies(path: Path, tmp_path: Path) -> None:
    """After a copy that drops SQLite's locks another process may come and go, and nothing is lost by a kill."""
    said = await asyncio.to_thread(run, "copy_and_die", path, tmp_path / "copy")
    talk, *acknowledged = said.split()
    assert len(acknowledged) == 20
    assert set(acknowledged) <= await stored_in(path, talk)


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks of open file descriptions")
def test_folder_that_is_copied_while_two_processes_write(path: Path) -> None:
    """Two processes write, and one of them opens and closes every file all the time: nothing is lost or damaged."""
    asyncio.run(make(path))
    writers = [
        subprocess.Popen([sys.executable, __file__, "write_and_copy", path, copying], stdout=subprocess.PIPE, text=True)
        for copying in ("yes", "no")
    ]
    said = [writer.communicate(timeout=60)[0].split() for writer in writers]
    assert all(writer.returncode == 0 for writer in writers)
    for talk, *acknowledged in said:
        assert len(acknowledged) > 100
        assert set(acknowledged) <= asyncio.run(stored_in(path, talk))
    assert apsw.Connection(str(path)).execute("PRAGMA integrity_check").get == "ok"


async def test_last_store_that_closes_leaves_one_file(path: Path) -> None:
    """Stores of one process share what they hold open; the last one that closes removes the log, and holds nothing."""
    async with open_store(f"sqlite:///{path}") as first:
        async with open_store(f"sqlite:///{path}") as second:
            await second.create_conversation(OWNER, NewConversation())
        await first.create_conversation(OWNER, NewConversation())
        assert beside(path, "-wal").exists()
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    assert not _files


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has locks of open file descriptions")
async def test_another_user_of_the_file_in_this_process_keeps_its_locks(path: Path) -> None:
    """A store that closes does not drop the locks of a connection that somebody else has in this process."""
    async with open_store(f"sqlite:///{path}"):
        connection = apsw.Connection(str(path))
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.execute("BEGIN IMMEDIATE")
    assert "locked" in await asyncio.to_thread(run, "write", path)
    connection.execute("ROLLBACK")
    connection.close()
    async with open_store(f"sqlite:///{path}"):
        pass
    assert not _files


# --- forked ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "end"), [("sqlite", "_exit"), ("sqlite", "exit"), ("memory", "exit")])
def test_forked_child(path: Path, scheme: str, end: str) -> None:
    """In a forked child each call is refused at once and closing returns; the parent's store is unharmed by its end."""
    url = f"sqlite:///{path}" if scheme == "sqlite" else "memory://"
    assert run("fork", url, path, end) == "child refused\nparent unharmed\n"


# --- what the other processes do -------------------------------------------------------------------------


async def copy_and_die(path: str, copy: str) -> None:
    """Copy the folder, let another process use the file, write, say what was stored, and be killed."""
    store = await open_store(f"sqlite:///{path}")
    talk = await store.create_conversation(OWNER, NewConversation())
    await store.append(OWNER, talk.id, [user("first")])
    shutil.copytree(Path(path).parent, copy)
    assert run("write", path) == "written\n"
    stored = [await store.append(OWNER, talk.id, [message]) for message in numbered(20)]
    print(talk.id, *(message.id for (message,) in stored), flush=True)
    os._exit(0)


async def write(path: str) -> None:
    """Write once, and say how that went."""
    try:
        async with open_store(f"sqlite:///{path}", write_timeout=0.3) as store:
            await store.create_conversation("bob", NewConversation())
        print("written")
    except StoreUnavailable as error:
        print("locked" if "lock" in str(error) else error)


async def write_and_copy(path: str, copying: str) -> None:
    """Write from eight tasks, and open and close the files as a copy does; say what was stored."""
    end = time.monotonic() + 3
    async with open_store(f"sqlite:///{path}") as store:
        talk = await store.create_conversation(OWNER, NewConversation())
        print(talk.id)

        async def append() -> None:
            while time.monotonic() < end:
                (message,) = await store.append(OWNER, talk.id, [user("a few words")])
                print(message.id)

        def close_files() -> None:
            while copying == "yes" and time.monotonic() < end:
                for file in Path(path).parent.iterdir():
                    file.open("rb").close()
                time.sleep(0.003)

        await asyncio.gather(asyncio.to_thread(close_files), *(append() for _ in range(8)))


async def check_child(store: Store, access: Access, talk: UUID) -> None:
    """Call a store of the parent, and its access, and close it."""
    for call in (
        lambda: store.append(OWNER, talk, [user("from the child")]),
        lambda: store.history(OWNER, talk),
        lambda: store.list_conversations(OWNER),
        lambda: store.erase_owner(OWNER),
        lambda: store.get_or_create_conversation(OWNER, NewConversation()),
        lambda: store.search_messages(OWNER, "tea"),
        lambda: store.access.find_key("key"),
        *([] if isinstance(store, MemoryStore) else [lambda: access.find_key("key"), lambda: access.revoke_key("key")]),
        store.ping,
        store.migrate,
        store.schema_revision,
    ):
        with pytest.raises(StoreUnavailable, match="forked"):
            async with asyncio.timeout(5):
                await call()
    async with asyncio.timeout(5):
        await store.aclose()
    os.write(1, b"child refused\n")


async def begin(url: str) -> tuple[Store, UUID, list[asyncio.Task[list[Message]]]]:
    """Open a store, and have it write."""
    store = await open_store(url)
    talk = await store.create_conversation(OWNER, NewConversation())
    writes = [asyncio.create_task(store.append(OWNER, talk.id, numbered(3))) for _ in range(50)]
    await asyncio.sleep(0.003)
    return store, talk.id, writes


async def check_parent(store: Store, talk: UUID, writes: list[asyncio.Task[list[Message]]], path: str) -> None:
    """Go on writing, let another process come and go, and close."""
    await asyncio.gather(*writes)
    if not isinstance(store, MemoryStore):
        subprocess.run([sys.executable, "-c", COME_AND_GO, path], check=True)
        assert beside(Path(path), "-wal").exists()  # it saw the parent's locks, or it would have removed the log
    stored = await store.append(OWNER, talk, [user("after the child")])
    log = await whole_log(store, OWNER, talk)
    assert (len(log), log[-1:]) == (151, stored)
    await store.ping()
    await store.aclose()
    os.write(1, b"parent unharmed\n")


def fork(url: str, path: str, end: str) -> None:
    """Fork while the store writes, and see in both processes what it does."""
    # Not epoll: a child that ends its copy of the loop would end the parent's.
    selector = selectors.SelectSelector
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector())) as runner:
        store, talk, writes = runner.run(begin(url))
        access = store.access
        child = os.fork()
        if child == 0:
            asyncio.run(check_child(store, access, talk))
            os._exit(0) if end == "_exit" else sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        runner.run(check_parent(store, talk, writes, path))


if __name__ == "__main__":
    if sys.argv[1] == "fork":
        fork(*sys.argv[2:])
    else:
        roles = {role.__name__: role for role in (copy_and_die, write, write_and_copy)}
        asyncio.run(roles[sys.argv[1]](*sys.argv[2:]))
