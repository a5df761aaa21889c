"""Times that nobody plans for: a clock that jumps, a process that is stopped or starved, a journal of a long outage.

CHATKEEP_STOPPED_SECONDS says for how long a process is stopped, else it is for a second.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import UUID

import pytest
from benchmarks import backlog
from waiting import PATIENCE

from chatkeep import NewConversation, Recorder, open_store
from chatkeep.testing import whole_log

OWNER = "ada"
STOPPED = float(os.environ.get("CHATKEEP_STOPPED_SECONDS", "1"))
HOUR_NS = 3_600 * 10**9


async def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set forward or back by hours: the order stays that of the calls, ages are never negative, and nothing is lost."""
    offsets = [0, 3 * HOUR_NS, -5 * HOUR_NS, 24 * HOUR_NS, -24 * HOUR_NS, 0]
    now_ns, now, offset = time.time_ns, time.time, 0
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + offset)
    monkeypatch.setattr(time, "time", lambda: now() + offset / 1e9)
    async with open_store("memory://") as store:
        conversation = await store.create_conversation(OWNER, NewConversation())
        async with Recorder(store, tmp_path / "journal") as recorder:
            for number in range(300):
                offset = offsets[number // 50]
                recorder.record(OWNER, conversation.id, "user", str(number))
                stats = recorder.stats()
                ages = (stats.oldest_unsent, stats.journal_lag, stats.highest_journal_lag, stats.lag, stats.sync_lag)
                assert min(ages) >= 0
                await asyncio.sleep(0.001)
            await recorder.flush(PATIENCE)
            assert (recorder.stats().sent, recorder.stats().unsent) == (300, 0)
            assert recorder.stats().journal_lag == 0
        assert [message.content for message in await whole_log(store, OWNER, conversation.id)] == [
            str(number) for number in range(300)
        ]


PROGRAM = """
import asyncio, json, sys
from uuid import UUID
from chatkeep import NewConversation, Recorder, open_store

async def main():
    async with open_store(sys.argv[1]) as store:
        await store.create_conversation("ada", NewConversation(id=UUID(int=1)))
        async with Recorder(store, sys.argv[2]) as recorder:
            for number in range(400):
                recorder.record("ada", UUID(int=1), "user", str(number))
                if number == 50:
                    print("started", flush=True)
                await asyncio.sleep(0.005)
            await recorder.flush(20)
            stats = recorder.stats()
            print(json.dumps([stats.sent, stats.unsent, stats.lost, stats.highest_journal_lag]), flush=True)

asyncio.run(main())
"""


@pytest.mark.timeout(60 + 2 * STOPPED)
async def test_a_process_that_is_stopped(tmp_path: Path) -> None:
    """Stopped in the middle of recording, and resumed, it goes on: all is stored once and in order."""
    url = f"sqlite:///{tmp_path / 'chat.db'}"
    command = [sys.executable, "-c", PROGRAM, url, str(tmp_path / "journal")]
    child = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    assert child.stdout
    assert await child.stdout.readline() == b"started\n"
    child.send_signal(signal.SIGSTOP)
    await asyncio.sleep(STOPPED)
    child.send_signal(signal.SIGCONT)
    sent, unsent, lost, _ = json.loads(await child.stdout.readline())
    assert await child.wait() == 0
    assert (sent, unsent, lost) == (400, 0, 0)
    async with open_store(url) as store:
        log = await whole_log(store, OWNER, UUID(int=1))
    assert [message.content for message in log] == [str(number) for number in range(400)]


async def test_the_age_of_what_the_journal_does_not_have(tmp_path: Path) -> None:
    """While its thread gets no processor, or is busy, the numbers say what killing the process would lose."""
    async with open_store("memory://") as store:
        recorder = Recorder(store, tmp_path / "journal")
        recorder._journal.submit(lambda _backlog: time.sleep(0.4))
        await asyncio.sleep(0.05)
        recorder.record(OWNER, UUID(int=1), "user", "hello")
        await asyncio.sleep(0.2)
        waiting = recorder.stats()
        while recorder.stats().queued:  # noqa: ASYNC110 - a thread ends it
            await asyncio.sleep(0.01)
        done = recorder.stats()
        await recorder.aclose(0)
    assert 0.19 < waiting.journal_lag < 5
    assert waiting.oldest_unsent >= waiting.journal_lag - 0.05
    assert done.journal_lag == 0
    assert 0.3 < done.highest_journal_lag < 5


async def test_a_long_outage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What another process left of 500 conversations is delivered in order, while a recorder records."""
    journal = tmp_path / "journal"
    await backlog.fill(journal, 10_000, 500)
    assert await backlog.deliver(journal, 10_000, 500)
    assert "10,000 wait" in capsys.readouterr().out
