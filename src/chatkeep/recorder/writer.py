"""Writes the journal of a recorder, in two threads.

The writer commits everything that was queued within a few milliseconds as one batch. After a commit the batch is with
the operating system: killing the process loses nothing of it. The syncer calls fdatasync as often as the disk allows,
and checkpoints the write-ahead log. It never makes the writer wait, however slow the disk is.

A commit that the disk refuses is tried again, and nothing waits for it: what is in memory is delivered from there. A
damaged file is moved aside, and what can be read of it goes into a new one.
"""

import atexit
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakSet

import apsw

from chatkeep.errors import ChatkeepError, StoreUnavailable
from chatkeep.recorder.backlog import COMMIT_ENTRIES, Backlog
from chatkeep.recorder.files import JournalFiles
from chatkeep.recorder.journal import ConversationKey, JournalDamaged, NewEntry, is_damage
from chatkeep.recorder.log import say
from chatkeep.recorder.stats import Counters

logger = logging.getLogger(__name__)

POLL_SECONDS = (0.003, 0.008)
"""Polling interval of the writer, busy and idle. It is never notified: waking a thread costs the caller 7 to 25 µs,
polling half a percent of a core at most."""

HOUSEKEEPING_SECONDS = 0.25
"""How often the writer checks for changes by another process and frees space; it is idle after as long without work."""

SYNC_INTERVAL_SECONDS = 0.005
"""Shortest pause between two calls of fdatasync."""

COMMIT_BACKOFF_SECONDS = (0.05, 1.0)
"""Shortest and longest pause before a failed commit is retried, as on a full disk."""

OPEN_SECONDS = 10.0
"""How long the constructor waits until the file is checked and counted, which goes on without it then."""

CHECKPOINT_PAGES = 1_000
"""Size of the write-ahead log from which on it is checkpointed. The log then starts over in the same place of the
disk. A log that grows makes the file system's own journal a part of every fdatasync."""

CLOSED = "the recorder is closed"

type BacklogOperation[T] = Callable[[Backlog], T]


class _Pending(NamedTuple):
    """An operation for the writer's thread, and its result."""

    operation: BacklogOperation[Any]
    result: Future[Any]


class JournalWriter:
    """Writes one journal file for one recorder.

    The writer's thread calls `on_written` with the conversations that have new entries. Raises JournalInUse if another
    recorder has the file, InvalidInput if it is not a journal or may not be written, StoreUnavailable if the disk
    refuses it.
    """

    def __init__(self, path: Path, counters: Counters, on_written: Callable[[set[ConversationKey]], None]) -> None:
        self.path = path
        self.failure: str | None = None
        """Why the last commit failed; None if it did not."""
        self.sync_lag = self.highest_sync_lag = 0.0
        """Seconds from a commit to the disk: of the last commits, and the highest so far."""
        self.highest_lag = 0.0
        """Seconds from the recording of a message to its commit: the highest so far."""
        self.sync_failures = 0
        """How often fdatasync failed."""
        self.forked = False
        """Whether this is a forked child, which has none of the threads: a flag costs `record` less than os.getpid."""
        self._counters = counters
        self._on_written = on_written
        self._queue: deque[NewEntry | _Pending] = deque()
        self.put: Callable[[NewEntry], None] = self._queue.append
        """Queues an entry for the next commit; returns at once."""
        self._closing = self._ended = False
        self._oldest: int | None = None
        self._pause_after_failure, self._retry_at = COMMIT_BACKOFF_SECONDS[0], 0.0
        self._backlog = Backlog(counters)
        self._files = JournalFiles(path, self._backlog)
        self._dirty = threading.Condition()
        self._dirty_since: float | None = None
        """When the first commit was made that is not synced; None if all are."""
        self._writer = threading.Thread(target=self._write_forever, name="chatkeep-journal", daemon=True)
        self._syncer = threading.Thread(target=self._sync_forever, name="chatkeep-journal-sync", daemon=True)
        self._start()

    def _start(self) -> None:
        self._writer.start()
        self._syncer.start()
        _open_writers.add(self)
        atexit.register(self.close)  # a program may end without closing: what was queued is written all the same
        try:
            self.submit(lambda _backlog: None).result(OPEN_SECONDS)
        except FutureTimeout:
            say(
                logger,
                logging.WARNING,
                "the journal %s is still being read; what it holds is delivered afterwards",
                self.path,
            )

    def oldest_age(self) -> float:
        """Return the age of the oldest entry in seconds, as of a quarter of a second ago; 0 without entries."""
        return _age(self._oldest) if self._oldest is not None else 0.0

    def lag(self) -> float:
        """Return the age of the oldest entry in seconds that the file does not have; 0 if it has all."""
        since = self._counters.queued_since
        return _age(since) if since else 0.0

    def submit[T](self, operation: BacklogOperation[T]) -> "Future[T]":
        """Run `operation` in the writer's thread, after everything that was queued before it, and commit.

        The result is set after the commit, also if the disk refuses that. An exception that is not the database's
        fails this operation only, and StoreUnavailable if the journal is closed or cannot be read.
        """
        result: Future[T] = Future()
        self._queue.append(_Pending(operation, result))
        if self._ended:
            self._refuse_queued()
        return result

    def _refuse_queued(self) -> None:
        """Fail operations that came too late: of two threads that do so, each takes others."""
        with suppress(IndexError):
            while True:
                one = self._queue.popleft()
                if isinstance(one, _Pending):
                    _settle(one.result, StoreUnavailable(CLOSED))

    def close(self) -> None:
        """Write and sync what was queued, and close the files. Idempotent; blocks on the disk."""
        if self._closing:
            return
        self._closing = True
        atexit.unregister(self.close)
        self._writer.join()
        with self._dirty:
            self._dirty.notify()
        self._syncer.join()
        self._files.close()

    # --- the writer's thread ------------------------------------------------------------------------------

    def _write_forever(self) -> None:
        self._guarded(self._check)
        checked = busy = time.monotonic()
        while not self._closing or self._queue:  # in this order: nothing is queued once it is closing
            self._pause(idle=time.monotonic() - busy > HOUSEKEEPING_SECONDS)
            entries, operations = self._take_batch()
            if entries or operations or self.failure or not self._backlog.is_written:
                self._guarded(self._take, entries, operations)
                busy = time.monotonic()
            if time.monotonic() - checked > HOUSEKEEPING_SECONDS:
                checked = time.monotonic()
                self._guarded(self._keep_house)
        self._guarded(self._finish)
        self._ended = True
        self._refuse_queued()

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001
            # A bug in chatkeep. The thread has to survive it: without the thread nothing is saved any more.
            say(logger, logging.ERROR, "a step of the journal's thread failed", error=error)

    def _pause(self, *, idle: bool) -> None:
        if not self._closing:
            time.sleep(POLL_SECONDS[1] if idle else POLL_SECONDS[0])

    def _take_batch(self) -> tuple[list[NewEntry], list[_Pending]]:
        """Return what was queued since the last batch."""
        entries: list[NewEntry] = []
        operations: list[_Pending] = []
        while self._queue and len(entries) < COMMIT_ENTRIES:
            one = self._queue.popleft()
            if isinstance(one, _Pending):
                operations.append(one)
            else:
                entries.append(one)
        return entries, operations

    def _take(self, entries: Sequence[NewEntry], operations: Sequence[_Pending]) -> None:
        """Write new entries, run operations, and write what those have changed: no entry waits for an operation."""
        for entry in entries:
            self._add(entry)
        self._write()
        outcomes = [(one.result, self._outcome(one.operation)) for one in operations]
        self._write()
        for result, outcome in outcomes:
            _settle(result, outcome)
        if entries:
            self.highest_lag = max(self.highest_lag, _age(entries[0][3]))
            self._on_written({key for key, *_ in entries})

    def _add(self, new: NewEntry) -> None:
        try:
            self._backlog.add(new)
        except Exception as error:  # noqa: BLE001
            # A bug in chatkeep, which must not take others with it.
            say(logger, logging.ERROR, "a message is lost: it could not be made an entry", error=error)
            self._counters.settle("lost", [new[2]], [], new[3])

    def _outcome(self, operation: BacklogOperation[Any]) -> Any:
        """Return the result of an operation, or its error. Of a damaged file it is run again, on what is left."""
        for is_last in (False, True):
            try:
                return operation(self._backlog)
            except Exception as error:  # noqa: BLE001 - it is raised where the result is awaited
                if not isinstance(error, apsw.Error) and not is_damage(error):
                    return error
                if is_last or not self._replaced(error):
                    return StoreUnavailable("the journal cannot be read", got=_named(error))
        return None

    def _write(self) -> None:
        """Write what the file does not have, unless it has just been tried in vain."""
        if (self._backlog.is_written and self.failure is None) or time.monotonic() < self._retry_at:
            return
        try:
            self._files.reopen()
            if self._backlog.is_written:
                self._files.touch()
            self._backlog.write()
        except (apsw.Error, ChatkeepError, JournalDamaged) as error:
            if self._replaced(error) or self._started_over(error):
                self._write()
            else:
                self._note_failure(error)
        else:
            self._note_success()

    def _replaced(self, error: Exception) -> bool:
        """Whether the file is damaged, and another one took its place; a new file that is so is no help."""
        if not is_damage(error) or not self._files.replace(error):
            return False
        self._on_written(self._backlog.unwritten())  # some that were delivered may have been found again
        return True

    def _started_over(self, error: Exception) -> bool:
        """Whether the disk is full of what no longer waits, and an empty file took its place."""
        if not isinstance(error, apsw.FullError) or not self._backlog.can_start_over:
            return False
        with suppress(OSError, apsw.Error, ChatkeepError, JournalDamaged):  # the next write says why it fails
            self._files.start_over()
        return True

    def _note_failure(self, error: Exception) -> None:
        if self.failure is None:
            say(
                logger,
                logging.ERROR,
                "the journal %s cannot be written: %s; trying again, and delivering from memory",
                self.path,
                type(error).__name__,
            )
        self.failure = _named(error)
        self._retry_at = time.monotonic() + self._pause_after_failure
        self._pause_after_failure = min(2 * self._pause_after_failure, COMMIT_BACKOFF_SECONDS[1])

    def _note_success(self) -> None:
        if self.failure is not None:
            say(logger, logging.WARNING, "the journal %s can be written again", self.path)
        self.failure, self._pause_after_failure = None, COMMIT_BACKOFF_SECONDS[0]
        with self._dirty:
            if self._dirty_since is None:
                self._dirty_since = time.monotonic()
            self._dirty.notify()

    def _check(self) -> None:
        """Look for damage, count what waits, and read what can be read of a file that was found damaged."""
        while not self._is_checked() and not self._closing:
            time.sleep(self._pause_after_failure)
        self._files.recover()
        self._oldest = self._backlog.oldest_at()

    def _is_checked(self) -> bool:
        """Check and count, without which new entries would get numbers that are taken; return whether it is done."""
        try:
            self._files.check()
            self._backlog.count()
        except Exception as error:  # noqa: BLE001 - it is repeated
            if not self._replaced(error):
                self._note_failure(error)
            return False
        self.failure = None
        return True

    def _keep_house(self) -> None:
        """Note the oldest entry, deliver dead letters that another process moved back, and free space."""
        try:
            if self._files.changed_by_others():
                self._backlog.count()
                self._on_written(self._backlog.conversations())
            self._oldest = self._backlog.oldest_at()
            self._files.shrink()
            if self._backlog.is_written:
                self._files.finish_recovery()
        except Exception as error:  # noqa: BLE001 - the file is replaced, or it is repeated
            if not self._replaced(error):
                self._note_failure(error)

    def _finish(self) -> None:
        """Write what is left, once more; say what is lost."""
        self._retry_at = 0.0
        while not self._backlog.is_written and (self.failure is None or self._retry_at == 0.0):
            self._write()
        self._files.finish_recovery()
        entries, dead = self._backlog.give_up(self._files.salvaged)
        if entries or dead:
            say(
                logger,
                logging.ERROR,
                "%d messages and %d dead letters are lost: %s could not be written until the recorder closed: %s",
                *(entries, dead, self.path, self.failure),
            )

    # --- the syncer's thread ------------------------------------------------------------------------------

    def _sync_forever(self) -> None:
        while self._writer.is_alive() or self._dirty_since is not None:
            with self._dirty:
                if self._dirty_since is None:
                    self._dirty.wait(HOUSEKEEPING_SECONDS)
                since, self._dirty_since = self._dirty_since, None
            try:
                self._sync(since)
                # When idle, checkpoint any log; else a large one only.
                self._files.checkpoint(1 if since is None else CHECKPOINT_PAGES)
            except (OSError, apsw.Error) as error:
                # A second fdatasync cannot make up for one that failed: the failure is counted and logged.
                self.sync_failures += 1
                say(logger, logging.ERROR, "the journal %s cannot be synced: %s", self.path, error)
            time.sleep(SYNC_INTERVAL_SECONDS)

    def _sync(self, since: float | None) -> None:
        if since is not None:
            self._files.sync()
            self.sync_lag = time.monotonic() - since
            self.highest_sync_lag = max(self.highest_sync_lag, self.sync_lag)


_open_writers: WeakSet[JournalWriter] = WeakSet()


def _leave_to_parent() -> None:
    """Release the locks in a forked child, which may live longer than the parent, and never close the files there."""
    for writer in _open_writers:
        writer._files.lock.close()
        writer.forked = writer._closing = True
        atexit.unregister(writer.close)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def _age(moment: int) -> float:
    """Return the seconds since a moment in microseconds since 1970; 0 if the clock was set back."""
    return max(0.0, time.time() - moment / 1e6)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _settle(result: "Future[Any]", outcome: Any) -> None:
    if not result.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        result.set_exception(outcome)
    else:
        result.set_result(outcome)
