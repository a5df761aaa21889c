"""The store in a SQLite file: the embedded default."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, override

from chatkeep.errors import InvalidInput
from chatkeep.migrations import HEAD, REVISIONS
from chatkeep.model import ImportReceipt, Message, NewMessage
from chatkeep.options import StoreOptions
from chatkeep.store import Backup, file_path
from chatkeep.stores.access_sql import SqlAccess
from chatkeep.stores.append import size_of
from chatkeep.stores.base import RowStore
from chatkeep.stores.imports import Import
from chatkeep.stores.long_texts import HasContent
from chatkeep.stores.revisions import Schema
from chatkeep.stores.rows import Key, Row, Work, run
from chatkeep.stores.sqlite.backup import copy
from chatkeep.stores.sqlite.columns import fetch
from chatkeep.stores.sqlite.database import SqliteFile, Transaction
from chatkeep.stores.sqlite.rewrites import Rewrites, count_removal
from chatkeep.stores.sqlite.rows import MERGE_PAGES, SqliteRows
from chatkeep.values import now, to_micros
from chatkeep.words import index_text

if TYPE_CHECKING:
    from asyncio import Task


class SqliteStore(RowStore[SqliteRows]):
    """Conversations in one SQLite file; several processes may use the same file."""

    newest_revision = HEAD
    revisions = REVISIONS
    hit_place = (int, int, str, int)

    def __init__(self, url: str, options: StoreOptions) -> None:
        super().__init__(url, options)
        path = file_path(url)
        if path in ("", ":memory:"):
            raise InvalidInput("a SQLite store needs a file, such as sqlite:///chat.db; in memory is memory://")
        self._file = SqliteFile(
            Path(path).expanduser().absolute(),
            synchronous=options.synchronous,
            reads=self._reads,
            writes=self._writes,
            # Those have threads of their own, which start when there are some.
            readers=options.readers + self._most_heavy_reads(),
            committed=self._committed,
        )
        self._access = SqliteAccess(self._file)
        self._rewrites = Rewrites(self._file, self._rewrite, self._begin)
        self._indexing: Task[None] | None = None

    def _most_heavy_reads(self) -> int:
        return max(1, self._options.readers // 2)

    def state(self) -> Mapping[str, int]:
        return {"log_bytes": self._file.log_bytes}

    async def _read[T](self, work: Work[SqliteRows, T]) -> T:
        return await self._file.read(lambda connection: run(work(SqliteRows(connection))))

    @override
    async def _write[T](self, work: Work[SqliteRows, T], *, atomic: bool = True) -> T:
        return await self._write_words({}, work)

    @override
    async def _write_texts[T](self, key: Key, texts: Sequence[HasContent], work: Work[SqliteRows, T]) -> T:
        return await self._write_words(await self._words_of(texts), work, size=sum(len(each.content) for each in texts))

    async def _words_of(self, texts: Sequence[HasContent]) -> Mapping[str, str]:
        """The words of long texts, found before the writer has its turn: others need not wait for it."""
        return await self._texts.each(index_text, texts) if self._options.search else {}

    async def _write_words[T](self, words: Mapping[str, str], work: Work[SqliteRows, T], *, size: int = 0) -> T:
        """Run `work`, given the words of some texts that it stores."""
        index = self._options.search

        def write(transaction: Transaction) -> T:
            return run(work(SqliteRows(transaction.connection, transaction, index=index, words=words)))

        return await self._file.write(write, size=size)

    async def _append(
        self, key: Key, messages: Sequence[NewMessage], fingerprints: Sequence[bytes], expected_seq: int | None
    ) -> list[Message]:
        words = await self._words_of(messages)
        append = partial(
            self._append_to, key=key, messages=messages, fingerprints=fingerprints, expected_seq=expected_seq
        )
        return await self._write_words(words, append, size=size_of(messages))

    async def _import_in(self, key: Key, given: Import) -> ImportReceipt | None:
        def store(transaction: Transaction) -> ImportReceipt | None:
            rows = SqliteRows(transaction.connection, transaction, index=False)
            return run(self._import(rows, key, given))

        receipt = await self._file.write(store, size=size_of(given.messages))
        # Imported messages are indexed after they are stored: an import waits for one, then for the other.
        if self._options.search and (self._indexing is None or self._indexing.done()):
            self._indexing = self._begin(self._index())
        return receipt

    async def _scrub(self) -> None:
        await self._rewrites.cover()

    async def _rewrite(self) -> None:
        """Rewrite the full-text index and the file, in which nothing is left then that was deleted."""
        # The index marks what is deleted and drops it when it merges; pages and the log keep copies.
        if await self._write(lambda rows: rows.merge_index(-MERGE_PAGES)):
            while await self._write(lambda rows: rows.merge_index(MERGE_PAGES)):
                pass
        await self._file.scrub()

    async def aclose(self) -> None:
        self._rewrites.hurry()
        await super().aclose()

    async def backup(
        self, path: Path, *, verify: bool = True, progress: Callable[[int, int], None] = lambda _done, _all: None
    ) -> Backup:
        self._open()
        own = self._file.path
        return await self._file.read_all(lambda source: copy(source, own, path, verify=verify, progress=progress))

    async def _rename(self, old: str, new: str) -> int:
        return await self._write(lambda rows: rows.rename_owner(old, new))

    async def _migrate(self, revision: str) -> None:
        await self._file.migrate(revision)

    async def _schema(self) -> Schema:
        return await self._file.schema()

    async def _finish(self) -> None:
        await self._file.finish()

    async def _close(self) -> None:
        await self._file.aclose()


class SqliteAccess(SqlAccess):
    """API keys, replies and traces of erasures in the same file."""

    def __init__(self, file: SqliteFile) -> None:
        self._file = file

    async def _read(self, statement: str, *values: object) -> Sequence[Row]:
        return await self._file.read(lambda connection: fetch(connection, statement, values))

    async def _write(self, statement: str, *values: object) -> Sequence[Row]:
        def write(transaction: Transaction) -> Sequence[Row]:
            found = fetch(transaction.connection, statement, values)
            if found and statement.lstrip().startswith("DELETE"):
                count_removal(transaction.connection)
            return found

        return await self._file.write(write)

    async def note_erasure(self, owner: str) -> datetime:
        return await self._noted(owner, "$2", to_micros(now()))
