"""A damaged journal: never a hang, never another text, and what can be read of it is delivered once and in order.

CHATKEEP_FAULTS says how many faults are tried, else there are 25, and 200 in `make apart`.
"""

import asyncio
import logging
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import apsw
import pytest
from typer.testing import CliRunner
from waiting import PATIENCE, until

from chatkeep import Conflict, InvalidInput, NewConversation, Recorder, Store, open_store
from chatkeep.cli.app import app
from chatkeep.recorder.backlog import Backlog
from chatkeep.recorder.delivery import to_message
from chatkeep.recorder.journal import (
    PAGE_BYTES,
    Dead,
    Entry,
    dead_letters,
    insert_dead,
    insert_entries,
    keep_log,
    open_journal,
)
from chatkeep.recorder.salvage import Salvaged, _payload, salvage
from chatkeep.recorder.stats import Counters
from chatkeep.testing import whole_log

OWNERS = ("ada", "bob")
GIVEN = os.environ.get("CHATKEEP_FAULTS")
FAULTS = [range(int(GIVEN))] if GIVEN else [range(25), pytest.param(range(25, 200), marks=pytest.mark.apart)]
FRAME = 24 + PAGE_BYTES


class Journal(NamedTuple):
    """A journal with 300 entries, of which 42 were delivered."""

    path: Path
    contents: dict[UUID, list[str]]
    """What was recorded, by conversation."""
    delivered: list[Entry]
    """Those entries of it that the store has."""


def text_of(number: int) -> str:
    """A message's text, which has its number on each of its pages; every 25th fills several pages."""
    words = 1_400 if number % 25 == 0 else number % 40 + 1
    return " ".join([f"m{number:04}."] * words)


async def made(folder: Path, *, keep_log: bool) -> Journal:
    """Make a journal; `keep_log`: with most of it in its write-ahead log, as a killed process leaves it."""
    path, copy = folder / "journal", folder / "copy"
    copy.mkdir(parents=True)
    written = {UUID(int=1 + number): list[str]() for number in range(6)}
    async with open_store("memory://") as store:
        recorder = Recorder(store, path)
        for number in range(300):
            if number == 150:
                await asyncio.sleep(0.6)  # the log is copied to the file
            id_ = UUID(int=1 + number % 6)
            recorder.record(OWNERS[number % 2], id_, "user", text_of(number))
            written[id_].append(text_of(number))
            if number % 50 == 0:
                await asyncio.sleep(0.02)
        delivered = await asyncio.wrap_future(recorder._journal.submit(_deliver_some))
        if keep_log:
            for file in (path, Path(f"{path}-wal")):
                shutil.copy(file, copy / file.name)
        await recorder.aclose(0)
        if not keep_log:
            shutil.copy(path, copy / path.name)
    (copy / "journal.lock").touch()
    return Journal(copy / "journal", written, delivered)


def _deliver_some(backlog: Backlog) -> list[Entry]:
    """Remove the first six or twelve entries of each conversation, as if they were stored."""
    delivered = []
    for number in range(6):
        key = (OWNERS[number % 2], UUID(int=1 + number))
        entries, _ = backlog.oldest(key, 12 if number == 5 else 6, 1 << 30)
        backlog.remove(entries, "sent")
        delivered += entries
    return delivered


@pytest.fixture(scope="module")
def journals(tmp_path_factory: pytest.TempPathFactory) -> list[Journal]:
    """One journal that was closed, and one whose process was killed."""
    return [asyncio.run(made(tmp_path_factory.mktemp("journals"), keep_log=keep_log)) for keep_log in (False, True)]


# --- faults ----------------------------------------------------------------------------------------------------

type Touched = set[tuple[str, int]]
"""Pages: the name of their file, and their number in it."""


class Fault:
    """Something that damages a copy of a journal, in up to three places."""

    def __init__(self, seed: int, journal: Journal, folder: Path) -> None:
        self._random = random.Random(seed)
        self.path = folder / f"fault {seed}" / "journal"
        shutil.copytree(journal.path.parent, self.path.parent)
        self.touched: Touched = set()
        files = [path for path in self.path.parent.iterdir() if path.suffix != ".lock"]
        for _ in range(self._random.choice([1, 1, 1, 2, 3])):
            self._damage(self._random.choice(files))

    def _damage(self, file: Path) -> None:
        """Flip bits, write zeros or noise over some bytes or a page, or cut the file off."""
        content = bytearray(file.read_bytes())
        if not content:
            return
        kind = self._random.choice(["bit", "byte", "zeros", "noise", "page of zeros", "page of noise", "cut off"])
        start = self._random.randrange(len(content))
        length = self._random.choice([1, 8, 100, PAGE_BYTES]) if kind in ("zeros", "noise") else 1
        if kind.startswith("page"):
            start, length = self._page(file, start)
        if kind == "cut off":
            self._touch(file, start, len(content))
            del content[start:]
        else:
            end = min(start + length, len(content))
            self._touch(file, start, end)
            content[start:end] = self._bytes(kind, bytes(content[start:end]))
        file.write_bytes(content)

    def _page(self, file: Path, offset: int) -> tuple[int, int]:
        if file.suffix or file.name.endswith("-wal"):
            return max(0, (offset - 32) // FRAME * FRAME + 32), FRAME
        return offset // PAGE_BYTES * PAGE_BYTES, PAGE_BYTES

    def _bytes(self, kind: str, before: bytes) -> bytes:
        if kind == "bit":
            return bytes([before[0] ^ 1 << self._random.randrange(8)])
        if kind == "byte":
            return bytes([self._random.randrange(256)])
        return bytes(len(before)) if "zeros" in kind else self._random.randbytes(len(before))

    def _touch(self, file: Path, start: int, end: int) -> None:
        pages = range(start, end)
        size = FRAME if file.name.endswith("-wal") else PAGE_BYTES
        head = 32 if file.name.endswith("-wal") else 0
        self.touched.update((file.name, max(0, offset - head) // size) for offset in (*pages[:: size // 2], end - 1))


def pages_of(journal: Journal) -> dict[str, Touched]:
    """The pages that have some of each message, by its number: what a fault elsewhere does not touch."""
    found: dict[str, Touched] = {}
    for file, size, head in ((journal.path, PAGE_BYTES, 0), (Path(f"{journal.path}-wal"), FRAME, 32)):
        content = file.read_bytes() if file.exists() else b""
        for match in re.finditer(rb"m\d{4}\.", content):
            for offset in (match.start() - 100, match.end()):
                found.setdefault(match[0].decode(), set()).add((file.name, max(0, offset - head) // size))
    return found


# --- what is shown ---------------------------------------------------------------------------------------------


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", FAULTS)
async def test_faults(journals: list[Journal], seeds: range, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing hangs; nothing else than what was said arrives, in order; everything on pages without a fault does."""
    caplog.set_level(logging.CRITICAL)
    pages, lost = [pages_of(journal) for journal in journals], list[int]()
    for seed in seeds:
        which = seed % 2
        fault = Fault(seed, journals[which], tmp_path)
        delivered = await asyncio.wait_for(deliver(journals[which], fault.path), 2 * PATIENCE)
        missing = 0
        for id_, said in delivered.items():
            written = journals[which].contents[id_]
            assert is_subsequence(said, written), (seed, id_)
            assert len(set(said)) == len(said), (seed, id_)
            gone = set(written) - set(said)
            missing += len(gone)
            for text in gone:
                assert pages[which][text[:6]] & fault.touched, (seed, text[:6])
        lost.append(missing)
        shutil.rmtree(fault.path.parent)
    assert any(lost), "no fault did any harm"
    assert 0 in lost, "every fault did"


async def deliver(journal: Journal, path: Path) -> dict[UUID, list[str]]:
    """What a store has, by conversation, when a recorder has delivered what can be read of a damaged journal."""
    async with open_store("memory://") as store:
        for entry in journal.delivered:
            with suppress(Conflict):
                await store.create_conversation(entry.owner_id, NewConversation(id=entry.key[1]))
            await store.append(*entry.key, to_message(entry))
        async with Recorder(store, path, create_missing=True) as recorder:
            await recorder.flush(PATIENCE)
            assert recorder.stats().unsent == 0
            recorder.record("ada", UUID(int=1), "user", "and it goes on")
            await recorder.flush(PATIENCE)
        return {id_: [text for text in await said(store, id_) if text != "and it goes on"] for id_ in map(UUID, ids())}


def ids() -> Iterator[str]:
    """The conversations."""
    return (str(UUID(int=1 + number)) for number in range(6))


async def said(store: Store, id_: UUID) -> list[str]:
    """What a conversation has."""
    owner = OWNERS[(id_.int - 1) % 2]
    return [message.content for message in await whole_log(store, owner, id_)]


def is_subsequence(some: list[str], all_: list[str]) -> bool:
    """Whether some texts are among others, in the same order."""
    rest = iter(all_)
    return all(text in rest for text in some)


# --- single faults ---------------------------------------------------------------------------------------------


def overwrite(path: Path, offset: int, content: bytes) -> None:
    """Damage a file in one place."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(content)


def copied(journal: Journal, folder: Path) -> Path:
    """A copy of a journal, to be damaged."""
    shutil.copytree(journal.path.parent, folder / "copied")
    return folder / "copied" / "journal"


async def test_what_was_damaged_is_said(
    journals: list[Journal], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is moved aside as it was, with a sentence that says what was lost; a new one is as private."""
    path = copied(journals[0], tmp_path)
    page = next(number for name, number in pages_of(journals[0])["m0100."])
    overwrite(path, page * PAGE_BYTES, bytes(PAGE_BYTES))
    before = path.read_bytes()
    async with open_store("memory://") as store, Recorder(store, path, create_missing=True) as recorder:
        await recorder.flush(PATIENCE)
        await until(lambda: "was damaged" in caplog.text)
        assert recorder.stats().lost > 0
        assert recorder.stats().sent + recorder.stats().lost == 300 - len(journals[0].delivered)
    (aside,) = [each for each in path.parent.iterdir() if "damaged" in each.name and not each.name.endswith("-wal")]
    assert aside.read_bytes() == before
    assert str(aside) in caplog.text
    assert f"{recorder.stats().lost} messages are lost" in caplog.text
    assert {each.stat().st_mode & 0o077 for each in (path, aside)} == {0}
    assert "m0" not in caplog.text


async def test_damage_while_it_is_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A page that is overwritten under a recorder that has 1,000 messages to deliver: it goes on with the others."""
    path, id_ = tmp_path / "journal", UUID(int=1)
    async with open_store("memory://") as store:
        recorder = Recorder(store, path, create_missing=True)
        for number in range(1_000):
            recorder.record("ada", id_, "user", f"{number} {'word ' * 100}")
        await until(lambda: recorder.stats().queued == 0 and path.stat().st_size > 500_000)
        await asyncio.wrap_future(recorder._journal.submit(lambda backlog: backlog.connection.cache_flush()))
        overwrite(path, 40 * PAGE_BYTES, b"\xff" * PAGE_BYTES)
        await asyncio.wrap_future(recorder._journal.submit(release_memory))
        await recorder.__aenter__()
        await recorder.flush(PATIENCE)
        recorder.record("ada", id_, "user", "1000 and on")
        await recorder.aclose()
        numbers = [int(message.content.split()[0]) for message in await whole_log(store, "ada", id_)]
        stats = recorder.stats()
    assert numbers == sorted(set(numbers))
    assert 950 < len(numbers) < 1_001
    assert (stats.sent, stats.lost, stats.unsent) == (len(numbers), 1_001 - len(numbers), 0)
    assert "was damaged" in caplog.text


def release_memory(backlog: Backlog) -> None:
    """Have the pages be read from the file again."""
    backlog.connection.execute("PRAGMA shrink_memory").fetchall()


def test_a_chain_of_pages_that_is_a_ring() -> None:
    """A row that goes on and on, in pages that name each other, is none; before, it filled the memory."""
    pages = {1: (2).to_bytes(4), 2: (1).to_bytes(4)}
    with pytest.raises(IndexError, match="a ring"):
        _payload(lambda number: pages[number] + bytes(PAGE_BYTES - 4), b"\0\0\0\1" * 1_024, 0, 1 << 40)


def test_what_was_in_flight_as_its_file_was_lost(journals: list[Journal], tmp_path: Path) -> None:
    """Entries that were read before the damage, and are stored after it, are not counted as lost."""
    counters = Counters()
    backlog = Backlog(counters)
    backlog.use(open_journal(copied(journals[0], tmp_path)))
    backlog.count()
    entries, _ = backlog.take((OWNERS[0], UUID(int=1)), 12, 1 << 30)
    waiting = counters.kept
    backlog.connection.close()
    backlog.use(open_journal(tmp_path / "new", create=True))
    assert backlog.restore(Salvaged()) == waiting - 12
    backlog.remove(entries, "sent")
    backlog.write()
    assert (counters.sent, counters.lost) == (12, waiting - 12)
    assert (counters.kept, counters.kept_bytes, counters.queued) == (0, 0, 0)


def long_entry(rid: int) -> Entry:
    """An entry that goes on in two more pages."""
    return Entry(
        rid, "ada", UUID(int=1).bytes, f'{{"role": "user", "content": "{"word " * 2_000}"}}', 10, rid, None
    ).sealed()


async def test_long_entries_behind_a_damaged_page_of_the_log(tmp_path: Path) -> None:
    """What goes on in other pages is missed, too: before, it was lost without a word."""
    connection = open_journal(tmp_path / "open", create=True)
    for rid in range(1, 21):
        insert_entries(connection, [long_entry(rid)])
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"open{suffix}", tmp_path / f"journal{suffix}")
    (tmp_path / "journal.lock").touch()
    connection.close()
    overwrite(tmp_path / "journal-wal", 32 + 20 * FRAME + 1_000, b"\xff")
    async with open_store("memory://") as store, Recorder(store, tmp_path / "journal") as recorder:
        await recorder.flush(PATIENCE)
        stats = recorder.stats()
    assert stats.sent + stats.dead + stats.lost == 20
    assert stats.lost <= 1


async def test_a_dead_letter_whose_reason_is_damaged(tmp_path: Path) -> None:
    """One bit makes the error's name a blob: it is recovered without. Before, nothing could be written any more."""
    path = tmp_path / "journal"
    connection = open_journal(path, create=True)
    insert_dead(connection, [Dead(long_entry(1)._replace(message="{}").sealed(), 1 << 50, "NotFound", "why")])
    keep_log(connection, keep=False)
    connection.close()
    content = path.read_bytes()
    types = content.index(bytes([6, 13 + 2 * len("NotFound"), 13 + 2 * len("why")]))
    overwrite(path, types + 1, bytes([12 + 2 * len("NotFound")]))
    overwrite(path, 0, bytes(16))
    Path(f"{path}.lock").touch()
    async with open_store("memory://") as store, Recorder(store, path) as recorder:
        recorder.record("ada", UUID(int=2), "user", "and it goes on")
        await recorder.flush(PATIENCE)
        assert recorder.stats().journal_failure is None
    connection = open_journal(path)
    letters = dead_letters(connection)
    connection.close()
    assert [(letter.entry.rid, letter.error) for letter in letters] == [(1, "JournalDamaged"), (2, "NotFound")]


@pytest.mark.parametrize("name", [b"check\xfcum", b"checksun"])
async def test_damage_of_a_column_s_name(journals: list[Journal], tmp_path: Path, name: bytes) -> None:
    """It must not raise, nor have checksums be made again of what else is damaged: that would be another text."""
    path = copied(journals[0], tmp_path)
    content = path.read_bytes()
    for match in re.finditer(b"checksum", content):
        overwrite(path, match.start(), name)
    overwrite(path, content.index(b"m0100. m0100.") + 1, b"6666")
    for said in (await deliver(journals[0], path)).values():
        assert not any("6666" in text for text in said)


@pytest.mark.long
def test_a_damaged_page_number_in_the_log(journals: list[Journal], tmp_path: Path) -> None:
    """It hides another page, which is whole, and has rows or the rest of one: both are found in the older version."""
    path = copied(journals[1], tmp_path)
    log = Path(f"{path}-wal")
    content = log.read_bytes()
    waiting = salvage(path).entries.keys()
    for frame in range((len(content) - 32) // FRAME):
        start = 32 + frame * FRAME
        here = {int(text[1:5]) + 1 for text in re.findall(rb"m\d{4}\.", content[start : start + FRAME])}
        overwrite(log, start + 3, bytes([content[start + 3] ^ 1 << frame % 6]))
        assert waiting - here <= salvage(path).entries.keys(), frame
        overwrite(log, start + 3, content[start + 3 : start + 4])


def test_neither_index_nor_newest_page_can_be_read(tmp_path: Path) -> None:
    """What stands in an older version of a page is found: before, nothing was, as no index named it."""
    connection = open_journal(tmp_path / "open", create=True)
    insert_entries(connection, [long_entry(rid)._replace(message="{}").sealed() for rid in range(1, 11)])
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    insert_entries(connection, [long_entry(11)])
    for suffix in ("", "-wal"):
        shutil.copy(tmp_path / f"open{suffix}", tmp_path / f"journal{suffix}")
    connection.close()
    log = tmp_path / "journal-wal"
    for start in range(32, log.stat().st_size, FRAME):
        overwrite(log, start + 24, b"\xff" * PAGE_BYTES)
    assert salvage(tmp_path / "journal").entries.keys() == set(range(1, 11))


@pytest.mark.long
def test_pages_that_were_made_to_take_for_ever(tmp_path: Path) -> None:
    """Each of 80,000 likely rows goes on through all pages: they are given up. Before, it took more than minutes."""
    row = bytes.fromhex("8180936e 01 0700 0f2c 00000002")  # its size, rid and header; and the page that it goes on in
    pages = [(number % 256 + 1).to_bytes(4) + (row * 315)[:4_092] for number in range(1, 257)]
    (tmp_path / "journal").write_bytes(b"".join(pages))
    began = time.process_time()
    assert not salvage(tmp_path / "journal").entries
    assert time.process_time() - began < 20


async def test_a_recovery_that_was_killed_is_done_again(journals: list[Journal], tmp_path: Path) -> None:
    """Between the two renames, after them, or with half of the entries written: nothing is lost or out of order."""
    for killed_after in ("one rename", "both renames", "half"):
        path = copied(journals[1], tmp_path / killed_after)
        overwrite(path, 5 * PAGE_BYTES, bytes(10))
        log, aside = Path(f"{path}-wal"), path.with_name("journal.recovering")
        log.rename(f"{aside}-wal")
        if killed_after != "one rename":
            path.rename(aside)
        if killed_after == "half":
            connection = open_journal(path, create=True)
            insert_entries(connection, [entry for entry in salvage(aside).entries.values() if entry.rid % 2])
            connection.close()
        delivered = await deliver(journals[1], path)
        for id_, said in delivered.items():
            assert said == journals[1].contents[id_], killed_after
        assert not aside.exists()


async def test_a_journal_of_an_older_version_has_no_checksums(tmp_path: Path) -> None:
    """They are added when it is opened; of a damaged one, entries without checksum wait as dead letters."""
    path, id_ = tmp_path / "journal", UUID(int=1)
    async with open_store("memory://") as store:
        recorder = Recorder(store, path)
        for number in range(100):
            recorder.record("ada", id_, "user", f"{number} {'word ' * 50}")
        await recorder.aclose()
        connection = apsw.Connection(str(path))
        for table in ("entries", "dead"):
            connection.execute(f"ALTER TABLE {table} DROP COLUMN checksum")
        connection.close()
        shutil.copy(path, tmp_path / "other")
        async with Recorder(store, path, create_missing=True) as recorder:
            await recorder.flush(PATIENCE)
            assert recorder.stats().sent == 100
        (tmp_path / "other.lock").touch()
        overwrite(tmp_path / "other", 0, bytes(PAGE_BYTES))
        async with Recorder(store, tmp_path / "other", create_missing=True) as recorder:
            await recorder.flush(PATIENCE)
            assert (recorder.stats().sent, recorder.stats().unsent) == (0, 0)
        connection = open_journal(tmp_path / "other")
        letters = dead_letters(connection)
        connection.close()
    assert len(letters) == 100
    assert {(letter.error, "look at it" in letter.reason) for letter in letters} == {("JournalDamaged", True)}


@pytest.mark.parametrize("command", ["status", "retry", "drop --yes", "erase ada --yes"])
def test_the_command_line_says_that_it_is_damaged(journals: list[Journal], tmp_path: Path, command: str) -> None:
    """And changes nothing: a recorder recovers it."""
    path = copied(journals[0], tmp_path)
    overwrite(path, 0, bytes(PAGE_BYTES))
    before = path.read_bytes()
    verb, *rest = command.split()
    done = CliRunner().invoke(app, ["recorder", verb, str(path), *rest])
    assert done.exit_code == 1
    assert "the journal is damaged" in done.stderr
    assert "recorder" in done.stderr
    assert path.read_bytes() == before


def test_what_cannot_be_opened_is_said(tmp_path: Path) -> None:
    """A folder that is a file, a file that is a folder, a folder that does not take files: a sentence, at once."""
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    store: Any = None
    for path in (tmp_path / "file" / "journal", tmp_path / "folder", Path("/proc/journal")):
        began = time.monotonic()
        with pytest.raises(InvalidInput, match=r"the journal cannot be opened: .*; name a file in a folder"):
            Recorder(store, path)
        assert time.monotonic() - began < 5
