"""What a store does behind its calls: removal in slices, erasure, and the full-text index."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from chatkeep.errors import ChatkeepError, NotYours
from chatkeep.model import Conversation, ErasureReceipt, ImportReceipt
from chatkeep.stores.hooks import DatabaseStore
from chatkeep.stores.project_rows import ProjectKey
from chatkeep.stores.rows import Key, Rows, WordIndex
from chatkeep.stores.slices import Removed
from chatkeep.stores.window import EVERY
from chatkeep.words import RULE

logger = logging.getLogger(__name__)

ERASE_ROUNDS = 3
"""How often an erasure begins again because others created conversations meanwhile, before it locks them out."""

INDEXED_AT_ONCE = 100
"""Ids of conversations that are indexed anew before that is noted: at most so many once more after a crash."""

HIDDEN_AT_ONCE = 100
"""Projects that are looked up at a time to be removed."""

AFTER_OTHERS_SECONDS = (2.0, 10.0)
"""Bounds of the random pause after another process was found to do the same."""


class Maintenance[R: Rows](DatabaseStore[R]):
    """Removal and indexing: what may take many transactions."""

    # --- the full-text index ------------------------------------------------------------------------------

    async def _index(self) -> None:
        """Index what is stored and not indexed, in slices between the writes of others."""
        while self._options.search and await self._write(lambda rows: rows.index_slice(), atomic=False):
            pass

    async def _begin_rule(self) -> asyncio.Task[None] | None:
        """Index anew in the background what an older rule of words has indexed; a new database notes today's rule."""
        if not self._options.search or (await self._read(lambda rows: rows.word_index())).rule >= RULE:
            return None
        if await self._read(lambda rows: rows.keys_above(None, 1)):
            return self._begin(self._index_again())
        await self._index_again()
        return None

    async def _index_again(self) -> None:
        """Index anew what an older rule of words has indexed. If it is cut off, the next process goes on."""
        try:
            while self._options.search and await self._index_some_again():
                pass
        except ChatkeepError as error:
            level = logging.INFO if self._closed else logging.WARNING  # closing cuts it off, and nothing is wrong
            logger.log(level, "messages are indexed anew when the store is opened again: %s", error)

    async def _index_some_again(self) -> bool:
        """Index some conversations by today's rule; False if all are, or if another version has a newer rule."""
        before = await self._read(lambda rows: rows.word_index())
        if before.rule >= RULE or (before.target or RULE) > RULE:
            return False
        place = before.place if before.target == RULE else None
        keys = await self._read(lambda rows: rows.keys_above(place, INDEXED_AT_ONCE))
        for key in keys:
            await self._index_conversation_again(key)
        after = before._replace(target=RULE, place=keys[-1][1]) if keys else WordIndex(RULE)
        if place is None or not keys:
            logger.info("messages are %s indexed by rule %d of words", "being" if keys else "all", RULE)
        if not await self._write(lambda rows: rows.set_word_index(before, after), atomic=False):
            await asyncio.sleep(random.uniform(*AFTER_OTHERS_SECONDS))  # noqa: S311 - not a secret
        return True

    async def _index_conversation_again(self, key: Key) -> None:
        last: int | None = 0

        async def index(rows: R) -> int | None:
            return await rows.index_again(key, last or 0)

        while last is not None:
            self._open()  # raises when the store is closed: what is not done must not be noted as done
            last = await self._write_to(key, index)

    # --- removal ------------------------------------------------------------------------------------------

    async def _after_removal[T: (Conversation, ImportReceipt)](
        self, owner: str, create: Callable[[], Awaitable[T | None]]
    ) -> T:
        """Finish the removal of a conversation, and create one with the same id."""
        with self._writes.of_call():
            while True:
                await self._purge(owner)
                made = await create()
                if made is not None:
                    return made

    async def _delete(self, owner: str, key: Key) -> bool:
        hidden = await self._write(lambda rows: self._hide(rows, key))
        if hidden:
            await self._access.forget_replies(owner, key[1])
            await self._purge(key[0])
        return hidden

    async def _hide(self, rows: R, key: Key) -> bool:
        if await rows.hide(key):
            return True
        missing = await self._missing(rows, key[1])
        if isinstance(missing, NotYours):
            raise missing
        return False

    async def _purge(self, owner: str) -> Removed:
        """Remove the hidden conversations of an owner in slices, and count what went."""
        total = Removed()
        while removed := await self._write(lambda rows: rows.purge_slice(owner)):
            total = total.plus(removed)
        return total

    async def _purge_projects(self, owner: str) -> Removed:
        """Remove the hidden projects of an owner with all that belongs to them, in slices, and count what went."""
        total = Removed()
        while ids := await self._read(lambda rows: rows.hidden_projects(owner, HIDDEN_AT_ONCE)):
            for id_ in ids:
                total = total.plus(await self._purge_project(ProjectKey(owner, id_)))
        return total

    async def _finish_removal(self, key: ProjectKey) -> None:
        """Finish the removal of a project that was cut off, if it is hidden."""

        async def is_hidden(rows: R) -> bool:
            return await rows.project(key) is None and await rows.project_name(*key) is not None

        if await self._read(is_hidden):
            await self._purge_project(key)

    async def _purge_project(self, key: ProjectKey) -> Removed:
        total = Removed()
        while True:
            more = True
            while more:  # what is hidden is removed at once: hiding the next would read over it
                more = await self._write(lambda rows: rows.hide_conversations(key))
                total = total.plus(await self._purge(key.owner))
            removed = await self._write(lambda rows: rows.purge_project(key))
            if removed is None:
                return total
            total = total.plus(removed)

    async def _erase_alone(self, owner: str, stored: str) -> ErasureReceipt:
        """One erasure of an owner at a time: the next one finds little to do."""
        async with self._erasures.of(stored):
            return await self._erase(owner, stored)

    async def _erase(self, owner: str, stored: str) -> ErasureReceipt:
        erased_at = await self._access.note_erasure(owner)  # before anything is removed: `Access.erased_at` says why
        total, remaining = Removed(), None
        for _ in range(ERASE_ROUNDS):
            more = True
            while more:  # what is hidden is removed at once: hiding the next would read over it
                more = await self._write(lambda rows: rows.hide_slice(stored), atomic=False)
                total = total.plus(await self._purge(stored))
            await self._write(lambda rows: rows.hide_projects(stored), atomic=False)
            total = total.plus(await self._purge_projects(stored))
            remaining = await self._write(lambda rows: rows.remove_owner(stored), atomic=False)
            if remaining is not None:
                break
        else:
            last, left = await self._write(lambda rows: self._erase_the_rest(rows, stored), atomic=False)
            total, remaining = total.plus(last), left
        forgotten = await self._access.forget_owner(owner)
        await self._scrub()
        return ErasureReceipt(
            owner_id=owner,
            conversations=total.conversations,
            messages=total.messages,
            search_entries=total.indexed,
            labels=total.labels,
            projects=total.projects,
            documents=total.documents,
            chunks=total.chunks,
            vectors=total.vectors,
            turns=total.turns,
            api_keys=forgotten.api_keys,
            requests=forgotten.requests,
            remaining=remaining,
            erased_at=erased_at,
        )

    async def _erase_the_rest(self, rows: R, owner: str) -> tuple[Removed, int]:
        """Remove, and count, what others created while an owner was erased; and count what they go on to create."""
        await rows.lock_owner(owner)
        total = Removed()
        await rows.hide_projects(owner)
        while await rows.hide_slice(owner):
            pass
        while removed := await rows.purge_slice(owner):
            total = total.plus(removed)
        while ids := await rows.hidden_projects(owner, HIDDEN_AT_ONCE):
            for id_ in ids:
                total = total.plus(await self._purge_project_in(rows, ProjectKey(owner, id_)))
        remaining = await rows.remove_owner(owner)
        return total, await rows.count(owner, EVERY) if remaining is None else remaining

    async def _purge_project_in(self, rows: R, key: ProjectKey) -> Removed:
        """Remove a hidden project, and what others may have created in it, if the database cannot lock them out."""
        total = Removed()
        while (removed := await rows.purge_project(key)) is not None:
            total = total.plus(removed)
            while await rows.hide_conversations(key):
                pass
            while more := await rows.purge_slice(key.owner):
                total = total.plus(more)
        return total
