"""An export restored elsewhere gives equal records, field by field, on every pair of databases, whoever writes."""

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import pairwise, product
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from _pytest.mark import ParameterSet
from hypothesis import given, settings
from hypothesis import strategies as st

from chatkeep.errors import Conflict, NotFound
from chatkeep.formats.jsonl import export_lines, import_lines
from chatkeep.ids import new_id
from chatkeep.model import (
    Conversation,
    ConversationChange,
    ImportedConversation,
    Message,
    MessageChange,
    NewConversation,
    NewMessage,
    Role,
    Status,
)
from chatkeep.store import Store, open_store
from chatkeep.testing import someone, whole_list, whole_log, whole_search
from chatkeep.testing.examples import JSON
from conftest import STORES

PARTS: tuple[list[dict[str, Any]], ...] = (
    [{"type": "text", "text": "sage"}, {"type": "text", "text": "\x00 mint"}],
    [{"type": "reasoning", "text": "…", "signature": "Eq+/==" * 99}, {"z": 10**40, "type": "x\x00", "a": [-0.0, None]}],
    [{"type": "tool_result", "tool_call_id": "1", "content": [{"type": "text", "text": "e\u0301"}], "is_error": False}],
)
ODD = ("\x00", "e\u0301\u0327", "\u2028\ufeff", "😀" * 3, "文件 sage", "x" * 5_000, '"\\\n', " ")
TIMES = (datetime(1, 1, 1, tzinfo=UTC), datetime(1969, 12, 31, tzinfo=UTC), datetime.max.replace(tzinfo=UTC))


class Maker:
    """Makes conversations to which everything happens that can happen to one."""

    def __init__(self, store: Store, owner: str, seed: int) -> None:
        self.store, self.owner, self.random = store, owner, random.Random(seed)

    async def conversation(self, steps: int, metadata: Any = None) -> UUID:
        """One conversation, after some steps."""
        name, choice = self.random.choice([None, "label", "l\x00"]), self.random.choice
        new = NewConversation(
            title=name,
            context_id=name,
            external_id=name,
            project_id=await self.project() if choice([True, False]) else None,
            labels=choice([(), ("b", "a"), ("l b", "😀")]),
            metadata=metadata or {},
        )
        id_ = (await self.store.create_conversation(self.owner, new)).id
        for _ in range(steps):
            steps_ = (self.append, self.append, self.append, self.change, self.rate, self.delete)
            await choice(steps_)(id_)
        return id_

    async def project(self) -> UUID:
        """A project, as an import makes it."""
        id_, gone = new_id(), new_id()
        new = ImportedConversation(id=gone, project_id=id_, project_name=self.random.choice(["P", "p\x00 π"]))
        await self.store.import_conversation(self.owner, new)
        await self.store.delete_conversation(self.owner, gone)
        return id_

    async def append(self, id_: UUID) -> None:
        """Append a few messages, sometimes to another branch."""
        log = await self.store.log(self.owner, id_)
        parents: list[dict[str, Any]] = [
            {},
            {},
            {"parent_id": None},
            *({"parent_id": message.id} for message in log[-3:]),
        ]
        await self.store.append(self.owner, id_, self.message(**self.random.choice(parents)))

    def message(self, **values: Any) -> NewMessage:
        """Some message."""
        choice = self.random.choice
        if choice([True, False]):
            values["sent_at"] = choice(TIMES) if choice([True, False]) else datetime.now(UTC) - timedelta(days=3)
        if choice([True, False]):
            values["metadata"] = {choice(ODD): [choice(ODD), 10**30, None, 0.1]}
        if choice([True, False]):
            place = {"document_id": str(new_id()), "file_path": "a", "similarity_score": 0.5}
            values["sources"] = [place, place | {"header_anchor": "#x"}]
        if choice([True, False]):
            values["parts"] = choice(PARTS)
            values |= {"model": choice([None, "m\x00"]), "input_tokens": choice([None, 0, 7]), "duration_ms": 0}
        role = choice(list(Role))
        status = choice([Status.COMPLETE, Status.FAILED, Status.INTERRUPTED])
        content = f"sage {choice(ODD)}" if role in (Role.USER, Role.SYSTEM) else choice(["", *ODD])
        return NewMessage.model_validate(values | {"role": role, "status": status, "content": content})

    async def change(self, id_: UUID) -> None:
        """Change title, context, labels, metadata or head."""
        log = [message for message in await self.store.log(self.owner, id_) if message.status is not Status.DELETED]
        heads = [None, *(message.id for message in log)]
        changes = [
            {"title": None},
            {"title": "new"},
            {"context_id": self.random.choice([None, "elsewhere"])},
            {"labels": self.random.choice([[], ["a", "l b"]])},
            {"metadata": {"k": "v"}},
            {"head_id": self.random.choice(heads)},
        ]
        change = ConversationChange.model_validate(self.random.choice(changes))
        await self.store.update_conversation(self.owner, id_, change)

    async def rate(self, id_: UUID) -> None:
        """Change the metadata of some message."""
        log = [message for message in await self.store.log(self.owner, id_) if message.status is not Status.DELETED]
        if log:
            change = MessageChange(metadata={"rating": self.random.choice(ODD)})
            with suppress(NotFound):  # another writer deleted it
                await self.store.update_message(self.owner, id_, self.random.choice(log).id, change)

    async def delete(self, id_: UUID) -> None:
        """Delete some message."""
        log = await self.store.log(self.owner, id_)
        if log:
            await self.store.delete_message(self.owner, id_, self.random.choice(log).id)


async def records(store: Store, owner: str) -> list[Any]:
    """Everything that a store has of an owner, but for the owner's name, and the hits of a search in their order."""
    await store.migrate()
    found: list[Any] = [[hit.model_dump() for hit in await whole_search(store, owner, "sage")]]
    for conversation in await whole_list(store, owner):
        whole, last_seq = await store.export_conversation(owner, conversation.id)
        stored = await store.export_messages(owner, conversation.id) if last_seq else []
        found += [conversation.model_dump(exclude={"owner_id"}), whole, stored]
        found.append(await whole_log(store, owner, conversation.id))
    return found


async def moved(source: Store, owner: str, target: Store, other: str) -> None:
    """Export from one store and import into another."""
    lines = b"".join([piece async for piece in export_lines(source, owner)]).splitlines(keepends=True)
    results = [result async for result in import_lines(target, other, lines)]
    assert [result.error for result in results] == [None] * len(lines)
    assert all(result.receipt and result.receipt.created for result in results)


@asynccontextmanager
async def opened(name: str, folder: Path) -> AsyncIterator[Store]:
    """A store of a kind; the servers' are shared by the tests."""
    folder.mkdir()
    async with open_store(STORES[name](folder)) as store:
        yield store


def pairs() -> Iterator[ParameterSet]:
    """Each store beside itself and before the next one; the other pairs are for `make apart`."""
    following = dict(pairwise([*STORES, *STORES]))
    for source, target in product(STORES, STORES):
        yield pytest.param(source, target, marks=() if target in (source, following[source]) else pytest.mark.apart)


@pytest.mark.parametrize(("source", "target"), list(pairs()))
async def test_every_pair_of_databases(source: str, target: str, tmp_path: Path) -> None:
    """Records, fingerprints, the order of the list and of hits: equal after a restore, and so is a second export."""
    owner, other = someone(), someone()
    async with opened(source, tmp_path / "a") as a:
        maker = Maker(a, owner, seed=10 * len(source) + len(target))
        await asyncio.gather(*(maker.conversation(16) for _ in range(4)))
        if source == target != "sqlite":
            await moved(a, owner, a, other)
            assert await records(a, other) == await records(a, owner)
            return
        async with opened(target, tmp_path / "b") as b:
            await moved(a, owner, b, other)
            assert await records(b, other) == await records(a, owner)


@given(st.integers(0, 10**6), st.dictionaries(st.text(max_size=4), JSON, max_size=3))
@settings(max_examples=15)
async def test_whatever_happened(seed: int, metadata: dict[str, Any]) -> None:
    """Any history and any metadata come back, from a store in memory to another one."""
    async with open_store("memory://") as a, open_store("memory://") as b:
        await Maker(a, "ada", seed).conversation(25, metadata)
        await moved(a, "ada", b, "ada")
        assert await records(b, "ada") == await records(a, "ada")


@pytest.mark.parametrize("name", ["sqlite", "postgres", "mongodb"])
async def test_an_export_of_a_store_in_use(name: str, tmp_path: Path) -> None:
    """What was acknowledged before the export is in it and visible, whoever appends, branches, deletes and renames."""
    owner, others = someone(), [someone() for _ in range(2)]
    async with opened(name, tmp_path / "a") as store, open_store("memory://") as elsewhere:
        makers = [Maker(store, owner, seed) for seed in range(6)]
        ids = await asyncio.gather(*(maker.conversation(5) for maker in makers))
        doomed = await asyncio.gather(*(Maker(store, owner, 99).conversation(3) for _ in range(3)))
        for each in others:
            await Maker(store, each, 7).conversation(3)
        stop = asyncio.Event()

        async def write(maker: Maker, id_: UUID) -> None:
            while not stop.is_set():
                await maker.random.choice([maker.append, maker.append, maker.change, maker.delete])(id_)

        async def vanish() -> None:
            for id_ in doomed:
                await store.delete_conversation(owner, id_)
            await store.rename_owner(others[0], owner)

        writing = [asyncio.create_task(write(*each)) for each in zip(makers, ids, strict=True)]
        vanishing = asyncio.create_task(vanish())
        for _ in range(3):
            before = {id_: await state(store, owner, id_) for id_ in ids}
            lines = b"".join([piece async for piece in export_lines(store, owner)]).splitlines(keepends=True)
            after = {id_: await state(store, owner, id_) for id_ in ids}
            copy = someone()
            assert not [r.error async for r in import_lines(elsewhere, copy, lines) if r.error]
            for id_ in ids:
                assert_between(before[id_], await state(elsewhere, copy, id_), after[id_])
        stop.set()
        await asyncio.gather(*writing, vanishing)
        assert set(doomed).isdisjoint(c.id for c in await whole_list(store, owner))


async def state(store: Store, owner: str, id_: UUID) -> tuple[Conversation, list[Message]]:
    """A conversation and its log, which may be longer than the conversation knew."""
    conversation = await store.get_conversation(owner, id_)
    return conversation, await whole_log(store, owner, id_)


def assert_between(
    before: tuple[Conversation, list[Message]],
    copy: tuple[Conversation, list[Message]],
    after: tuple[Conversation, list[Message]],
) -> None:
    """A copy has all messages of before, none that is not there after, and a head that is in it."""
    said, log = copy
    assert before[0].last_seq <= said.last_seq == len(log) <= len(after[1])
    for copied, now in zip(log, after[1], strict=False):
        assert copied.model_copy(update={"content": ""}).id == now.id
        assert but_metadata(copied) == but_metadata(now) or now.status is Status.DELETED
    for then, copied in zip(before[1], log, strict=False):
        assert but_metadata(copied) == but_metadata(then) or copied.status is Status.DELETED
    assert said.head_id is None or said.head_id in {message.id for message in log}


def but_metadata(message: Message) -> Message:
    """A message without what may change of it."""
    return message.model_copy(update={"metadata": {}})


async def test_a_message_in_progress_is_exported_as_interrupted(tmp_path: Path) -> None:
    """Whoever restores an export has no turn that would end it: the line says so, and can be imported."""
    import apsw

    url = f"sqlite:///{tmp_path / 'chat.db'}"
    async with open_store(url) as store:
        id_ = (await store.create_conversation("ada", NewConversation())).id
        await store.append("ada", id_, NewMessage(role=Role.ASSISTANT, content="half an ans"))
    turn = apsw.Connection(str(tmp_path / "chat.db"))
    turn.execute("UPDATE messages SET status = 'in_progress'")
    turn.close()
    async with open_store(url) as store, open_store("memory://") as other:
        assert [m.status for m in await store.log("ada", id_)] == [Status.IN_PROGRESS]
        await moved(store, "ada", other, "ada")
        assert [m.status for m in await other.log("ada", id_)] == [Status.INTERRUPTED]


async def test_a_conversation_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """The others are exported; what is damaged in the file is no traceback."""
    import apsw

    path = tmp_path / "chat.db"
    async with open_store(f"sqlite:///{path}") as store:
        ids = [await Maker(store, "ada", seed).conversation(3) for seed in range(3)]
    damage = apsw.Connection(str(path))
    damage.execute("UPDATE messages SET metadata = '{' WHERE conversation_id = ?", (ids[1].bytes,))
    damage.close()
    failures: dict[UUID, Exception] = {}
    async with open_store(f"sqlite:///{path}") as store:
        pieces = [piece async for piece in export_lines(store, "ada", failed=failures.__setitem__)]
        with pytest.raises(ValueError, match=r"delimiter|property name"):
            _ = [piece async for piece in export_lines(store, "ada")]
    assert set(failures) == {ids[1]}
    assert b"".join(pieces).count(b"\n") == 2


async def test_what_an_export_says_of_the_rest(tmp_path: Path) -> None:
    """A store that lost its head once is repaired by `update`; a late retry after a restore is no conflict."""
    async with opened("sqlite", tmp_path / "a") as a, opened("memory", tmp_path / "b") as b:
        new = NewConversation(id=new_id(), title="T")
        assert new.id is not None
        first = NewMessage(id=new_id(), role=Role.USER, content="q")
        await a.create_conversation("ada", new)
        (question,) = await a.append("ada", new.id, first)
        await a.append("ada", new.id, NewMessage(role=Role.ASSISTANT, content="rejected"))
        answer = NewMessage(role=Role.ASSISTANT, content="chosen", parent_id=question.id)
        (chosen,) = await a.append("ada", new.id, answer)
        await moved(a, "ada", b, "ada")
        assert await b.append("ada", new.id, first) == [question]
        with pytest.raises(Conflict):
            await b.create_conversation("ada", NewConversation(id=new.id, title="U"))
        await b.update_conversation("ada", new.id, ConversationChange(head_id=question.id))
        lines = b"".join([piece async for piece in export_lines(a, "ada")]).splitlines()
        (result,) = [each async for each in import_lines(b, "ada", lines, update=True)]
        assert result.receipt is not None
        assert result.receipt.messages == 0
        assert (await b.get_conversation("ada", new.id)).head_id == chosen.id
        with pytest.raises(NotFound):
            await b.export_conversation("ada", new_id())


@pytest.mark.parametrize("name", ["postgres", "mongodb", "memory"])
async def test_a_clock_that_is_ahead_puts_nothing_on_top(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An import without times is as old as the database says, whatever this machine's clock says."""
    owner, line = (
        someone(),
        b'{"id": "c", "messages": [{"id": "1", "parent_id": null, "role": "user", "content": "x"}]}',
    )
    async with opened(name, tmp_path / "a") as store:
        monkeypatch.setattr("chatkeep.stores.rows.now", lambda: datetime.now(UTC) + timedelta(hours=1))
        assert [result.error async for result in import_lines(store, owner, [line])] == [None]
        (conversation,) = await whole_list(store, owner)
        assert conversation.updated_at == conversation.created_at <= datetime.now(UTC) + timedelta(minutes=1)
