"""`chatkeep backup`: a copy of a store that others write to is whole, checked, and there only if it is."""

import asyncio
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import apsw
import pytest
from commands import COMMAND, SAMPLE, run

from chatkeep import InvalidInput, NewConversation, NewMessage, StoreUnavailable, open_store
from chatkeep.migrations import HEAD
from chatkeep.stores.sqlite import backup as backup_module
from chatkeep.stores.sqlite.database import CLOSE_SECONDS

WRITER = """
import asyncio, sys, time
from chatkeep import NewConversation, NewMessage, open_store

async def main(url):
    async with open_store(url) as store:
        conversation = await store.create_conversation("writer", NewConversation())
        while True:
            began = time.monotonic()
            (message,) = await store.append("writer", conversation.id, NewMessage(role="user", content="x" * 500))
            print(message.id, time.monotonic() - began, flush=True)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """The URL of a store with the sample."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    run({}, "import", SAMPLE, "--database-url", url)
    return url


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of a store of 40 MB: to copy it takes a while."""
    url = f"sqlite:///{tmp_path_factory.mktemp('large') / 'chat.db'}?search=off"
    asyncio.run(fill(url))
    return url


async def fill(url: str) -> None:
    """Store 200 messages of 200 KB."""
    async with open_store(url) as store:
        for _ in range(2):
            made = await store.create_conversation("local", NewConversation())
            message = NewMessage(role="assistant", content="x" * 200_000)
            await asyncio.gather(*(store.append("local", made.id, message) for _ in range(100)))


def exported(url: str) -> bytes:
    """What an export of a store is."""
    return run({}, "export", "--database-url", url).stdout_bytes


def files(folder: Path) -> list[str]:
    """The names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_a_copy_is_a_store(url: str, tmp_path: Path) -> None:
    """It says what the copy holds; the copy alone has everything, replaces an older one, and can be checked again."""
    copy = tmp_path / "copies" / "copy.db"
    copy.parent.mkdir()
    copy.write_bytes(b"an older one")
    copy.chmod(0o644)
    holds = f"{copy}: 1 owners, 7 conversations, 38 messages, revision {HEAD}"
    assert run({}, "backup", copy, "--database-url", url).stdout == f"{holds}, intact\n"
    assert files(copy.parent) == ["copy.db"]
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    assert copy.read_bytes()[18:20] == b"\1\1", "it would be opened with a log"

    copy.chmod(0o400)
    copy.parent.chmod(0o500)
    assert run({}, "backup", "--verify-only", copy).stdout == f"{holds}, intact\n"
    copy.parent.chmod(0o700)
    copy.chmod(0o600)
    assert files(copy.parent) == ["copy.db"]

    assert run({}, "backup", copy, "--database-url", url, "--no-verify").stdout == f"{holds}, not verified\n"
    assert exported(f"sqlite:///{copy}") == exported(url)
    assert run({}, "db", "status", "--database-url", f"sqlite:///{copy}").exit_code == 0


def test_a_link_is_followed(url: str, tmp_path: Path) -> None:
    """The file that a link leads to is written."""
    (tmp_path / "link").symlink_to("copy.db")
    run({}, "backup", tmp_path / "link", "--database-url", url)
    assert (tmp_path / "link").is_symlink()
    assert run({}, "backup", "--verify-only", tmp_path / "copy.db")


def test_a_copy_beside_a_writer(large: str, tmp_path: Path) -> None:
    """A copy ends although another process writes all the time, which goes on; what it had is in the copy."""
    copy = tmp_path / "copy.db"
    with subprocess.Popen([sys.executable, "-c", WRITER, large], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        before = [writer.stdout.readline().split()[0] for _ in range(20)]
        run({}, "backup", copy, "--database-url", large)
        writer.terminate()
        after = [line.split() for line in writer.stdout.read().splitlines()[:-1]]
    assert len(after) > 20
    assert max(float(seconds) for _, seconds in after) < 2

    connection = apsw.Connection(str(copy))
    rows: Any = connection.execute("SELECT id FROM messages WHERE owner_id = 'writer' ORDER BY seq").fetchall()
    connection.close()
    stored = [str(UUID(bytes=row[0])) for row in rows]
    assert stored == (before + [id_ for id_, _ in after])[: len(stored)]
    assert len(before) <= len(stored)
    assert len(stored) < len(before) + len(after), "the snapshot is of the beginning"


@pytest.mark.parametrize("name", ["chat.db", "chat.db-wal", "link.db", "hard.db"])
async def test_a_store_is_not_copied_over_itself(name: str, url: str, tmp_path: Path) -> None:
    """Neither over its file, by whichever name, nor over its log."""
    (tmp_path / "link.db").symlink_to("chat.db")
    (tmp_path / "hard.db").hardlink_to(tmp_path / "chat.db")
    async with open_store(url) as store:
        with pytest.raises(InvalidInput, match="over its own files"):
            await store.backup(tmp_path / name)
        await store.create_conversation("local", NewConversation())
    assert (tmp_path / "link.db").is_symlink()


async def test_a_store_in_use_is_not_replaced(url: str, tmp_path: Path) -> None:
    """A copy is not put in the place of another open store, nor beside the log that a killed one left."""
    other = tmp_path / "other.db"
    async with open_store(url) as store, open_store(f"sqlite:///{other}"):
        with pytest.raises(InvalidInput, match=r"in use as a database.*other\.db-wal"):
            await store.backup(other)
    other.unlink()
    (tmp_path / "other.db-wal").touch()
    async with open_store(url) as store:
        with pytest.raises(InvalidInput, match=r"in use as a database.*other\.db-wal"):
            await store.backup(other)
    assert not other.exists()


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("missing/copy.db", "cannot write {}: No such file or directory"),
        ("folder", "cannot write {}: Is a directory"),
        ("n" * 300, "cannot write {}: File name too long"),
        ("pipe", "a copy is a file; `chatkeep export` can write to a pipe or a device (got '{}')"),
    ],
)
def test_what_cannot_be_written_is_a_sentence(target: str, reason: str, url: str, tmp_path: Path) -> None:
    """The target is named with the reason, and nothing is left behind."""
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    before = sorted(tmp_path.rglob("*"))
    done = run({}, "backup", tmp_path / target, "--database-url", url, code=1)
    assert f"Error: {reason.format(tmp_path / target)}\n" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_a_sentence(large: str, tmp_path: Path) -> None:
    """If the copy cannot be completed, the file is as it was."""
    copy = tmp_path / "copy.db"
    copy.write_bytes(b"an older one")
    limited = f"ulimit -f 20000; exec {' '.join(COMMAND)} backup {copy} --database-url '{large}'"
    done = subprocess.run(["/bin/bash", "-c", limited], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Error: the copy cannot be written: the disk does not answer" in done.stderr
    assert "Traceback" not in done.stderr
    assert files(tmp_path) == ["copy.db"]
    assert copy.read_bytes() == b"an older one"


def test_a_source_that_is_missing_is_not_created(tmp_path: Path) -> None:
    """There is nothing to copy, and nothing is made."""
    done = run({}, "backup", tmp_path / "copy.db", "--database-url", f"sqlite:///{tmp_path / 'no.db'}", code=1)
    assert "Error: there is no database" in done.stderr
    assert files(tmp_path) == []


def test_any_revision_is_copied(url: str, tmp_path: Path) -> None:
    """A store can be copied before it is migrated; a file without a schema is no store."""
    copy = tmp_path / "copy.db"
    run({}, "db", "downgrade", "0001", "--yes", "--database-url", url)
    assert "38 messages, revision 0001, intact" in run({}, "backup", copy, "--database-url", url).stdout
    run({}, "db", "downgrade", "base", "--yes", "--database-url", url)
    assert "has no schema" in run({}, "backup", copy, "--database-url", url, code=1).stderr
    assert "revision 0001" in run({}, "backup", copy, "--verify-only").stdout


@pytest.mark.parametrize("url", ["postgresql://me:zq7@host/chat", "mongodb://me:zq7@host/chat", "memory://"])
def test_other_databases_have_their_own_tools(url: str, tmp_path: Path) -> None:
    """They are named, without a connection and without the password."""
    done = run({}, "backup", tmp_path / "copy", "--database-url", url, code=1)
    assert "pg_dump" in done.stderr
    assert "mongodump" in done.stderr
    assert "zq7" not in done.output
    assert files(tmp_path) == []


def damage_page(copy: Path) -> None:
    """Overwrite the root of a table."""
    with copy.open("r+b") as file:
        file.seek(4096 * 3)
        file.write(b"\xff" * 4096)


def damage_words(copy: Path) -> None:
    """Take a part of the full-text index away."""
    execute(copy, "DELETE FROM message_words_data WHERE id = (SELECT max(id) FROM message_words_data)")


def damage_index(copy: Path) -> None:
    """Take a row out of an index, by hiding the index meanwhile."""
    schema = "SELECT sql FROM sqlite_schema WHERE name = 'messages_by_run'"
    connection = apsw.Connection(str(copy))
    sql = connection.execute(schema).get
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(
        "UPDATE sqlite_schema SET sql = replace(sql, 'depth < seq', 'depth <= seq') WHERE sql = ?", (sql,)
    )
    connection.close()


def orphan(copy: Path) -> None:
    """Take the conversations of messages away."""
    execute(copy, "DELETE FROM conversations")


def execute(copy: Path, statement: str) -> None:
    """Change a copy behind chatkeep's back."""
    connection = apsw.Connection(str(copy))
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute(statement)
    connection.close()


@pytest.mark.parametrize("damage", [damage_page, damage_words, damage_index, orphan])
def test_damage_is_found(damage: Callable[[Path], None], url: str, tmp_path: Path) -> None:
    """A damaged copy is named, whether a table, an index, the full-text index or a reference is damaged."""
    copy = tmp_path / "copy.db"
    run({}, "backup", copy, "--database-url", url)
    damage(copy)
    done = run({}, "backup", "--verify-only", copy, code=1)
    assert f"Error: {copy} is damaged: " in done.stderr


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "is it there, and may it be read"), (b"text" * 2_000, "not a SQLite database"), (b"", "not of chatkeep")],
)
def test_what_is_no_copy_is_not_verified(content: bytes | None, reason: str, tmp_path: Path) -> None:
    """A file that is missing, or is something else, is named."""
    if content is not None:
        (tmp_path / "copy.db").write_bytes(content)
    before = files(tmp_path)
    assert reason in run({}, "backup", "--verify-only", tmp_path / "copy.db", code=1).stderr
    assert files(tmp_path) == before


def test_a_damaged_copy_does_not_get_its_name(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not read back as it was copied is removed; without --verify nobody looks."""
    copy, copying = tmp_path / "copy.db", backup_module._copy_to

    def damaged(source: apsw.Connection, name: str, descriptor: int, progress: Callable[[int, int], None]) -> None:
        copying(source, name, descriptor, progress)
        execute(Path(name), "DELETE FROM messages WHERE rid = 1")

    monkeypatch.setattr(backup_module, "_copy_to", damaged)
    before = files(tmp_path)
    assert "does not have what the store has" in run({}, "backup", copy, "--database-url", url, code=1).stderr
    assert files(tmp_path) == before
    run({}, "backup", copy, "--database-url", url, "--no-verify")


@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_a_stopped_backup_leaves_nothing(stop: int, code: int, large: str, tmp_path: Path) -> None:
    """Ctrl-C ends it, says that there is no copy, and leaves no part of one."""
    command = [*COMMAND, "backup", str(tmp_path / "copy.db"), "--database-url", large]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not any(path.stat().st_size for path in tmp_path.glob("*.part")):
            time.sleep(0.001)
        running.send_signal(stop)
        output, errors = running.communicate(timeout=10)
    assert (running.returncode, output) == (code, "")
    assert f"Error: stopped; {tmp_path / 'copy.db'} was not written\n" in errors
    assert files(tmp_path) == []


@pytest.mark.parametrize("end", ["cancel", "close"])
async def test_a_backup_ends_when_its_caller_or_the_store_does(end: str, large: str, tmp_path: Path) -> None:
    """Cancelling it, or closing the store, stops a copy at its next step, and its parts are removed."""
    told, copying, go_on = list[int](), asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def progress(done: int, _size: int) -> None:
        told.append(done)
        loop.call_soon_threadsafe(copying.set)
        go_on.wait(10)

    store = await open_store(large)
    task = asyncio.create_task(store.backup(tmp_path / "copy.db", progress=progress))
    await copying.wait()
    if end == "cancel":
        task.cancel()
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0.1 if end == "cancel" else CLOSE_SECONDS + 0.1)
    go_on.set()
    with pytest.raises(asyncio.CancelledError if end == "cancel" else StoreUnavailable):
        await task
    await closing
    assert len(told) == 1
    assert files(tmp_path) == []


async def test_progress_is_told(large: str, tmp_path: Path) -> None:
    """In bytes that grow, up to the size of the copy."""
    told: list[tuple[int, int]] = []
    async with open_store(large) as store:
        await store.backup(tmp_path / "copy.db", progress=lambda done, size: told.append((done, size)))
    assert told == sorted(told)
    assert told[-1] == ((tmp_path / "copy.db").stat().st_size,) * 2
    assert len(told) > 20
