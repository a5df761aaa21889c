"""A journal that fills a disk of its own while the store is away, and has to empty it again.

The disk is a file system in memory, of 3 MB, which only this test's child process sees.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from uuid import UUID

import pytest

from chatkeep.recorder.backlog import Backlog
from chatkeep.recorder.journal import open_journal
from chatkeep.recorder.stats import Counters

SIZE = 3 << 20
NAMESPACE = ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"])]
MOUNT = f'mount -t tmpfs -o size={SIZE} chatkeep "$1" && exec "$2" "$3" "$1"'


def may_mount() -> bool:
    """Whether this user may mount a file system that nobody else sees."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        command = [*NAMESPACE, "sh", "-c", MOUNT, "sh", folder, "true", ""]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not may_mount(), reason="this user may not mount a small disk")
def test_a_journal_that_filled_its_disk(tmp_path: Path) -> None:
    """All is delivered once, in order; then the file takes messages again, also if its log had no room to shrink."""
    command = [*NAMESPACE, "sh", "-c", MOUNT, "sh", str(tmp_path), sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    full, empty, last, stored = json.loads(done.stdout)
    assert full["journal_failure"] == "FullError: database or disk is full"
    assert full["queued"] > 1_000
    assert full["unsent"] == full["recorded"] == 4_000
    assert (empty["sent"], empty["unsent"], empty["unsent_bytes"], empty["lost"]) == (4_000, 0, 0, 0)
    assert (last["journal_failure"], last["unsent"], last["unsent_bytes"]) == (None, 1, last["unsent_bytes"])
    assert last["queued"] == 0
    assert stored == list(range(4_001))


def test_what_is_not_removed_yet_is_not_counted(tmp_path: Path) -> None:
    """Another process has changed the file, whose entries are counted anew, while delivered ones are still in it."""
    counters = Counters()
    backlog = Backlog(counters)
    backlog.use(open_journal(tmp_path / "journal", create=True))
    key = ("ada", UUID(int=1))
    for number in range(3):
        backlog.add((key, {"id": UUID(int=number), "role": "user", "content": "tea"}, 100 + number, 1))
    counters.queued, counters.queued_bytes = 3, 303
    backlog.write()
    backlog.remove(backlog.oldest(key, 2, 1 << 20)[0], "sent")
    for _ in range(2):
        assert (counters.kept, counters.kept_bytes, counters.sent) == (1, 102, 2)
        assert not backlog.can_start_over
        backlog.count()
    backlog.remove(backlog.oldest(key, 2, 1 << 20)[0], "sent")
    assert backlog.can_start_over


async def fill_and_empty(folder: Path) -> list[object]:
    """Fill the disk, let the store come back, record one more while it is away again; what was seen."""
    from test_journal_disk import IDS, OWNER, Away
    from waiting import PATIENCE, until

    from chatkeep import NewConversation, Recorder
    from chatkeep.testing import whole_log

    store = Away()
    await store.create_conversation(OWNER, NewConversation(id=IDS[0]))
    seen: list[object] = []
    async with Recorder(store, folder / "journal") as recorder:
        store.away = True
        for number in range(4_000):
            recorder.record(OWNER, IDS[0], "user", f"{number} {'x' * 1_500}")
            if number % 50 == 0:
                await asyncio.sleep(0.005)
        await until(lambda: recorder.stats().journal_failure is not None)
        seen.append(asdict(recorder.stats()))
        store.away = False
        await recorder.flush(PATIENCE)
        await until(lambda: recorder.stats().journal_failure is None)
        seen.append(asdict(recorder.stats()))
        store.away = True
        recorder.record(OWNER, IDS[0], "user", "4000")
        await until(lambda: recorder.stats().queued == 0)
        seen.append(asdict(recorder.stats()))
        store.away = False
        await recorder.flush(PATIENCE)
    seen.append([int(message.content.split()[0]) for message in await whole_log(store, OWNER, IDS[0])])
    return seen


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(fill_and_empty(Path(sys.argv[1])))))
