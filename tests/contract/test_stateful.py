"""A store and a plain model of it go through the same random steps, and never differ.

CHATKEEP_HYPOTHESIS_PROFILE=thorough runs many more of them.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from lengths import short_and_long

from chatkeep import (
    Conflict,
    Conversation,
    ConversationChange,
    InvalidInput,
    Message,
    NewConversation,
    NewMessage,
    NotFound,
    NotYours,
    Role,
    Status,
    Store,
    open_store,
)
from chatkeep.model import MessageChange
from chatkeep.store import Order
from chatkeep.testing import (
    by_time,
    dense,
    path_to,
    selected,
    seqs,
    siblings_of,
    whole_history,
    whole_list,
    whole_log,
    whole_search,
)

WORDS = ("tea", "sage", "茶", "花茶")
LABELS = st.lists(st.sampled_from(["a", "b", "!".join("ab"), "ä b"]), max_size=3, unique=True).map(tuple)
FILTER = st.lists(st.sampled_from(["a", "b", "!a", "!b", "!ä b"]), max_size=3)
CONTEXT = st.sampled_from([None, "k"])
PARTS = st.none() | st.lists(
    st.sampled_from(
        [
            {"type": "text", "text": "tea"},
            {"type": "text", "text": "花茶"},
            {"type": "tool_call", "id": "1", "name": "tea", "arguments": {"b": 10**30, "a": [None, "\x00"]}},
            {"type": "file", "url": "tea://"},
        ]
    ),
    max_size=3,
)


@dataclass
class Talk:
    """A conversation as the model keeps it: what it was created with, its record, and all its messages."""

    new: NewConversation
    record: Conversation
    log: list[Message] = field(default_factory=list)
    sent: dict[UUID, NewMessage] = field(default_factory=dict)

    def change(self, **values: object) -> None:
        """Change the record."""
        self.record = self.record.model_copy(update=values)

    def message(self, id_: UUID) -> Message | None:
        """A message that is not deleted."""
        return next((m for m in self.log if m.id == id_ and m.status != Status.DELETED), None)

    def refusals(self, batch: list[NewMessage], expected_seq: int | None) -> set[type[Exception]]:
        """The errors that an append may end with; one of them if there are any."""
        refusals: set[type[Exception]] = set()
        seen = dict(self.sent)
        for message in batch:
            if message.id is not None and message.id in seen:
                if not same(seen[message.id], message):
                    refusals.add(Conflict)
                continue
            if expected_seq not in (None, len(self.log)):
                refusals.add(Conflict)
            if message.parent_id is not None and message.parent_id not in seen:
                refusals.add(NotFound)
            if message.id is not None:
                seen[message.id] = message
        return refusals

    def store(self, batch: list[NewMessage], answer: list[Message]) -> None:
        """Take over an append that was not refused, after a look at every value that the store chose."""
        for new, message in zip(batch, answer, strict=True):
            known = next((m for m in self.log if m.id == message.id), None)
            if known is not None:
                assert message == known
                continue
            parent = new.parent_id if "parent_id" in new.model_fields_set else self.record.head_id
            assert message == Message(
                **new.model_dump(exclude={"id", "parent_id"}),
                id=new.id or message.id,
                conversation_id=self.record.id,
                seq=len(self.log) + 1,
                parent_id=parent,
                created_at=message.created_at,
            )
            self.log.append(message)
            self.sent[message.id] = new
            first_words = message.content if message.role == Role.USER else None
            self.change(
                last_seq=len(self.log),
                head_id=message.id,
                title=self.record.title or first_words,
                updated_at=max(self.record.updated_at, message.created_at),
            )


def same(one: NewMessage, other: NewMessage) -> bool:
    """Whether two messages say the same, and name the same parent or none."""
    named = [("parent_id" in m.model_fields_set, m.model_dump()) for m in (one, other)]
    return named[0] == named[1]


def place(message: Message) -> tuple[UUID, int]:
    """Where a message stands."""
    return message.conversation_id, message.seq


PLACE = st.integers(0, 9)
OWNER = st.integers(0, 1)
WHICH = st.integers(0, 11)
SELDOM = st.integers(0, 5)
"""A step is taken where this is 0, so that what others built up lasts for a while."""
MESSAGE = st.fixed_dictionaries(
    {
        "id": st.none() | PLACE,
        "role": st.sampled_from([Role.USER, Role.ASSISTANT]),
        "content": st.lists(st.sampled_from(WORDS), min_size=1, max_size=3).map(" ".join),
        "metadata": st.sampled_from([{}, {}, {"a": 1}]),
    },
    optional={
        "parent_id": st.none() | PLACE,
        "parts": PARTS,
        "model": st.none() | st.just("small"),
        "output_tokens": st.none() | st.just(0),
    },
)


class StoreMachine(RuleBasedStateMachine):
    """Random steps by two owners who use the same ids."""

    def __init__(self, runner: asyncio.Runner, url: str, opened_last: list[Store]) -> None:
        super().__init__()
        self.runner, self.url, self.opened_last = runner, url, opened_last
        self.owners = [f"owner-{uuid4()}" for _ in range(2)]
        self.ids = [uuid4() for _ in range(3)]
        self.message_ids = [uuid4() for _ in range(10)]
        self.talks: dict[tuple[str, UUID], Talk] = {}

    @property
    def store(self) -> Store:
        """The store, as it was opened last."""
        return self.opened_last[0]

    def run[T](self, call: Coroutine[Any, Any, T]) -> T:
        """Run one call of the store."""
        return self.runner.run(call)

    def reach(self, call: Coroutine[Any, Any, object], owner: str, id_: UUID) -> Talk | None:
        """The owner's conversation; where there is none, the call must say so and is done."""
        talk = self.talks.get((owner, id_))
        if talk is None:
            elsewhere = any(other == id_ for _, other in self.talks)
            with pytest.raises(NotYours if elsewhere else NotFound):
                self.run(call)
        return talk

    @initialize()
    def begin(self) -> None:
        """Begin with a conversation of each owner, with the same id; one has branches already."""
        for owner in (0, 1):
            self.create(owner, 0, None, "k")
        self.grow(0, [None, None, None, 1, None, -1, 3])

    def key(self, which: int) -> tuple[str, UUID]:
        """The owner and id of a conversation that is mostly there."""
        if self.talks and which < 10:
            return list(self.talks)[which % len(self.talks)]
        return self.owners[which % 2], self.ids[which % 3]

    def pick(self, key: tuple[str, UUID], place: int) -> UUID:
        """The id of a message that was appended, counted from the last one; 9 is one that is hardly there."""
        ids = [message.id for message in self.talks[key].log] if key in self.talks else []
        return ids[-1 - place % len(ids)] if ids and place < 9 else self.message_ids[9]

    # --- steps ----------------------------------------------------------------------------------------------

    @rule(
        owner=OWNER,
        id_=st.integers(0, 2),
        title=st.sampled_from([None, "Tea"]),
        context=CONTEXT,
        labels=st.just(()) | st.just(("a", "b")),
    )
    def create(
        self, owner: int, id_: int, title: str | None, context: str | None, labels: tuple[str, ...] = ()
    ) -> None:
        """Create a conversation, for the first time, again, or with other values."""
        key = self.owners[owner], self.ids[id_]
        new = NewConversation(id=key[1], title=title, context_id=context, labels=labels)
        call = self.store.create_conversation(key[0], new)
        known = self.talks.get(key)
        if known is not None and known.new != new:
            with pytest.raises(Conflict):
                self.run(call)
        elif known is not None:
            assert self.run(call) == known.record
        else:
            created = self.run(call)
            assert (created.title, created.context_id, created.last_seq, created.head_id) == (title, context, 0, None)
            assert created.labels == labels
            self.talks[key] = Talk(new, created)

    @rule(owner=OWNER, context=CONTEXT)
    def get_or_create(self, owner: int, context: str | None) -> None:
        """Get the newest conversation of a context, where there is one."""
        name = self.owners[owner]
        newest = [c for c in self.listed(name) if c.context_id == context]
        if newest:
            new = NewConversation(context_id=context, title="ignored")
            assert self.run(self.store.get_or_create_conversation(name, new)) == newest[0]

    @rule(which=WHICH, batch=st.lists(MESSAGE, min_size=1, max_size=4), expected=st.none() | PLACE)
    def append(self, which: int, batch: list[dict[str, Any]], expected: int | None) -> None:
        """Append anything: new messages and known ones, other content, parents of every kind."""
        key = self.key(which)
        for values in batch:
            for name in ("id", "parent_id"):
                if values.get(name) is not None:
                    values[name] = self.message_ids[values[name]]
        self.send(key, [NewMessage(**values) for values in batch], expected)

    def send(self, key: tuple[str, UUID], batch: list[NewMessage], expected: int | None = None) -> None:
        """Append to the store and to the model."""
        call = self.store.append(*key, batch, expected_seq=expected)
        talk = self.reach(call, *key)
        if talk is None:
            return
        refusals = talk.refusals(batch, expected)
        if refusals:
            with pytest.raises(tuple(refusals)):
                self.run(call)
        else:
            talk.store(batch, self.run(call))

    @rule(which=WHICH, parents=st.lists(st.none() | st.integers(-1, 9), min_size=1, max_size=5))
    def grow(self, which: int, parents: list[int | None]) -> None:
        """Append new messages, after the head (None), at the root (-1), or after one that is there."""
        key = self.key(which)
        ids = list(self.talks[key].sent) if key in self.talks else []
        batch: list[NewMessage] = []
        for parent in parents:
            free = [id_ for id_ in self.message_ids if id_ not in ids]
            values: dict[str, Any] = {} if parent is None else {"parent_id": None}
            if ids and parent is not None and parent >= 0:
                values["parent_id"] = ids[-1 - parent % len(ids)]
            ids.append(free[0] if free else uuid4())
            new = NewMessage(
                id=ids[-1], role=Role.USER, content=WORDS[len(ids) % 4], metadata={"n": len(ids)}, **values
            )
            batch.append(new)
        self.send(key, batch)

    @rule(which=WHICH, place=PLACE)
    def retry(self, which: int, place: int) -> None:
        """Send a message that is known again, exactly as it was sent."""
        key = self.key(which)
        talk = self.talks.get(key)
        if talk is not None and self.pick(key, place) in talk.sent:
            self.send(key, [talk.sent[self.pick(key, place)]])

    @rule(which=WHICH, sizes=st.lists(st.integers(1, 3), min_size=2, max_size=6))
    def append_together(self, which: int, sizes: list[int]) -> None:
        """Append several batches at the same moment."""
        key = self.key(which)
        talk = self.talks.get(key)
        if talk is None:
            return
        batches = [[NewMessage(role=Role.ASSISTANT, content=WORDS[n]) for n in range(size)] for size in sizes]

        async def together() -> list[list[Message]]:
            return await asyncio.gather(*(self.store.append(*key, batch) for batch in batches))

        answers = self.run(together())
        for batch, answer in sorted(zip(batches, answers, strict=True), key=lambda pair: pair[1][0].seq):
            talk.store(batch, answer)

    @rule(which=WHICH, place=st.none() | PLACE)
    def move_head(self, which: int, place: int | None) -> None:
        """Move the head to any message, or to the root."""
        key = self.key(which)
        head = None if place is None else self.pick(key, place)
        call = self.store.update_conversation(*key, ConversationChange(head_id=head, metadata={"n": place}))
        talk = self.reach(call, *key)
        if talk is None:
            return
        if head is not None and talk.message(head) is None:
            with pytest.raises(NotFound):
                self.run(call)
        else:
            talk.change(head_id=head, metadata={} if place is None else {"n": place})
            assert self.run(call) == talk.record

    @rule(which=WHICH, labels=LABELS, context=CONTEXT | st.just("same"))
    def label_and_move(self, which: int, labels: tuple[str, ...], context: str | None) -> None:
        """Give a conversation other labels, and mostly another context."""
        key = self.key(which)
        changed: dict[str, Any] = {"labels": labels} | ({} if context == "same" else {"context_id": context})
        call = self.store.update_conversation(*key, ConversationChange(**changed))
        talk = self.reach(call, *key)
        if talk is not None:
            talk.change(**changed)
            assert self.run(call) == talk.record

    @rule(which=WHICH, place=PLACE, patch=st.none() | st.dictionaries(st.sampled_from("ab\x00"), st.none() | PLACE))
    def update_message(self, which: int, place: int, patch: dict[str, Any] | None) -> None:
        """Change the metadata of any message, also one that is not there."""
        key = self.key(which)
        id_ = self.pick(key, place)
        call = self.store.update_message(*key, id_, MessageChange(metadata=patch))
        talk = self.reach(call, *key)
        if talk is None:
            return
        message = talk.message(id_)
        if message is None:
            with pytest.raises(NotFound):
                self.run(call)
        else:
            merged = {k: v for k, v in {**message.metadata, **(patch or {})}.items() if v is not None}
            changed = message.model_copy(update={"metadata": {} if patch is None else merged})
            talk.log[message.seq - 1] = changed
            assert self.run(call) == changed

    @rule(which=WHICH, place=PLACE)
    def delete_message(self, which: int, place: int) -> None:
        """Delete any message, also one that is not there."""
        key = self.key(which)
        id_to_delete = self.pick(key, place)
        call = self.store.delete_message(*key, id_to_delete)
        talk = self.reach(call, *key)
        if talk is not None:
            message = talk.message(id_to_delete)
            assert self.run(call) is (message is not None)
            if message is not None:
                erased: dict[str, Any] = {"content": "", "parts": None, "metadata": {}, "status": Status.DELETED}
                talk.log[message.seq - 1] = message.model_copy(update=erased)
                if message.role == Role.USER and talk.record.title == message.content:  # made from it
                    talk.change(title=None)

    @rule(which=WHICH, seldom=SELDOM)
    def delete_conversation(self, which: int, seldom: int) -> None:
        """Delete a conversation."""
        if seldom:
            return
        key = self.key(which)
        call = self.store.delete_conversation(*key)
        if key not in self.talks and any(other == key[1] for _, other in self.talks):
            with pytest.raises(NotYours):
                self.run(call)
        else:
            assert self.run(call) is (self.talks.pop(key, None) is not None)

    @rule(owner=OWNER, seldom=SELDOM)
    def erase(self, owner: int, seldom: int) -> None:
        """Erase an owner."""
        if seldom:
            return
        name = self.owners[owner]
        gone = [self.talks.pop(key) for key in list(self.talks) if key[0] == name]
        receipt = self.run(self.store.erase_owner(name))
        messages = [message for talk in gone for message in talk.log]
        counted = receipt.conversations, receipt.messages, receipt.search_entries, receipt.labels, receipt.remaining
        labels = sum(len(talk.record.labels) for talk in gone)
        assert counted == (len(gone), len(messages), sum(1 for m in messages if m.content), labels, 0)

    @precondition(lambda self: not self.url.startswith("memory"))
    @rule(seldom=SELDOM)
    def reopen(self, seldom: int) -> None:
        """Close the store and open it again."""
        if seldom:
            return
        self.run(self.store.aclose())
        self.opened_last[0] = self.run(opened(self.url))

    # --- looks ----------------------------------------------------------------------------------------------

    @rule(
        which=WHICH,
        leaf=st.none() | PLACE,
        order=st.sampled_from(["desc", "asc"]),
        limit=st.integers(1, 4),
        offset=st.integers(0, 4),
        bounds=st.tuples(st.none() | st.integers(0, 20), st.none() | st.integers(0, 20)),
    )
    def history(
        self,
        which: int,
        leaf: int | None,
        order: Order,
        limit: int,
        offset: int,
        bounds: tuple[int | None, int | None],
    ) -> None:
        """Read any page of any path."""
        key = self.key(which)
        leaf_id = None if leaf is None else self.pick(key, leaf)
        before, after = bounds
        call = self.store.history(
            *key, leaf=leaf_id, order=order, limit=limit, offset=offset, before=before, after=after, total=True
        )
        talk = self.reach(call, *key)
        if talk is None:
            return
        if leaf_id is not None and talk.message(leaf_id) is None:
            with pytest.raises(NotFound):
                self.run(call)
            return
        path = path_to(leaf_id or talk.record.head_id, talk.log)
        inside = [m for m in path if m.seq > (after or 0) and (before is None or m.seq < before)]
        reading = inside[::-1] if order == "desc" else inside
        page = self.run(call)
        expected = reading[offset : offset + limit]
        assert page.items == (expected[::-1] if order == "desc" else expected)
        assert page.total == len(path)
        assert (page.next is not None) == (len(reading) > offset + limit)

    @rule(owner=OWNER, limit=st.integers(1, 3), context=CONTEXT, labels=FILTER)
    def lists(self, owner: int, limit: int, context: str | None, labels: list[str]) -> None:
        """Read the owner's conversations in both orders, page by page."""
        name = self.owners[owner]
        which: dict[str, Any] = {"context_id": context, "labels": labels}
        expected = selected(self.listed(name), **which)
        assert self.run(whole_list(self.store, name, limit=limit, **which)) == expected
        by_id = self.run(whole_list(self.store, name, limit=limit, order="id", **which))
        assert by_id == sorted(expected, key=lambda c: c.id)

    def listed(self, owner: str) -> list[Conversation]:
        """The owner's conversations, most recently updated first."""
        records = [talk.record for (name, _), talk in self.talks.items() if name == owner]
        return by_time(records)

    @rule(owner=OWNER, words=st.lists(st.sampled_from([*WORDS, "花", "te"]), min_size=1, max_size=2))
    def search(self, owner: int, words: list[str]) -> None:
        """Search all of the owner's messages."""
        hits = self.run(whole_search(self.store, self.owners[owner], " ".join(words), limit=3))
        logs = [talk.log for (name, _), talk in self.talks.items() if name == self.owners[owner]]
        expected = [m for log in logs for m in log if all(self.holds(m.content, word) for word in words)]
        found = [hit.message for hit in hits]
        assert sorted(found, key=place) == sorted(expected, key=place)
        for log in logs:  # stored last first
            here = [m for m in found if m in log]
            assert here == sorted(here, key=place, reverse=True)

    @staticmethod
    def holds(content: str, word: str) -> bool:
        """Whether a content made of WORDS holds a word: Chinese ones are found inside others, too."""
        return word in content.split() or (not word.isascii() and word in content.replace(" ", ""))

    @rule(which=WHICH, place=PLACE)
    def siblings(self, which: int, place: int) -> None:
        """Read a message and its siblings."""
        key = self.key(which)
        message_id = self.pick(key, place)
        call = self.store.siblings(*key, message_id)
        talk = self.reach(call, *key)
        if talk is None:
            return
        message = talk.message(message_id)
        if message is None:
            with pytest.raises(NotFound):
                self.run(call)
        else:
            assert self.run(call).items == siblings_of(message, talk.log)
            assert self.run(self.store.get_message(*key, message.id)) == message

    @invariant()
    def logs_and_records_are_equal(self) -> None:
        """Every conversation has the record and the log of the model."""
        for (owner, id_), talk in self.talks.items():
            log = self.run(whole_log(self.store, owner, id_))
            assert seqs(log) == dense(len(log))
            assert log == talk.log
            assert self.run(self.store.get_conversation(owner, id_)) == talk.record

    def teardown(self) -> None:
        """Leave nothing to the next run."""
        for owner in self.owners:
            for conversation in self.listed(owner):
                self.run(whole_history(self.store, owner, conversation.id, limit=2))
            self.run(self.store.erase_owner(owner))
        with pytest.raises(InvalidInput):
            self.run(self.store.search_messages(self.owners[0], ""))


async def opened(url: str) -> Store:
    """The store at a URL."""
    return await open_store(url)


@pytest.mark.timeout(600)  # where there is a difference, hypothesis takes its time to find the shortest way to it
@short_and_long
def test_store_never_differs_from_the_model(store_url: str, share: int) -> None:
    """Whatever two owners do, in whatever order: every answer and every error is what the plain model says.

    The short run has a fourth of the profile's examples, on MongoDB an eighth: its emulator is slow. That with all is
    in `make apart` on servers.
    """
    if share > 1 and store_url.startswith("mongodb"):
        share *= 2
    with asyncio.Runner() as runner:
        opened_last = [runner.run(opened(store_url))]

        class Machine(StoreMachine):
            def __init__(self) -> None:
                super().__init__(runner, store_url, opened_last)

        try:
            run_state_machine_as_test(Machine, settings=settings(max_examples=settings().max_examples // share))
        finally:
            runner.run(opened_last[0].aclose())
