"""What a message says of its making: the model, its counts, its status."""

from typing import Any
from uuid import uuid4

import pytest

from chatkeep.model import COUNTS, Conversation, ImportedConversation, ImportedMessage, NewMessage, Role, Status
from chatkeep.store import Store
from chatkeep.testing.contract import Contract
from chatkeep.testing.messages import assistant, someone
from chatkeep.testing.reference import reads_of, whole_log

USAGE: dict[str, dict[str, Any]] = {
    "zero": {"input_tokens": 0, "output_tokens": 0, "duration_ms": 0},
    "largest": dict.fromkeys(COUNTS, 2**63 - 1),
    "some": {"model": "provider/Model-4 π\x00", "output_tokens": 17},
    "longest": {"model": "m" * 255, "input_tokens": 2**31},
    "none": {},
}


class UsageContract(Contract):
    """The model, counts and status of messages."""

    @pytest.mark.parametrize("name", USAGE)
    async def test_model_and_counts_are_kept(
        self, store: Store, owner: str, conversation: Conversation, name: str
    ) -> None:
        """Model, tokens and duration are in every read and survive an export; 0 is not the same as unknown."""
        new, other = assistant("80 degrees", id=uuid4(), **USAGE[name]), someone()
        (stored,) = await store.append(owner, conversation.id, new)
        assert await store.append(owner, conversation.id, new) == [stored]
        whole = await store.export_messages(owner, conversation.id)
        await store.import_conversation(other, ImportedConversation(id=conversation.id), whole)
        reads = await reads_of(store, owner, conversation.id, stored.id)
        reads += await reads_of(store, other, conversation.id, stored.id)
        for message in (stored, whole[0], *reads):
            values = {field: getattr(message, field) for field in ("model", *COUNTS)}
            assert values == {**dict.fromkeys(("model", *COUNTS)), **USAGE[name]}

    @pytest.mark.parametrize("count", COUNTS)
    @pytest.mark.parametrize("value", [-1, 2**63, 1.0, 1.5, True, "7"], ids=repr)
    async def test_counts_are_whole_numbers(self, count: str, value: Any) -> None:
        """Counts are integers of 0 to 2^63 - 1; nothing else is taken for one."""
        for kind in (NewMessage, ImportedMessage):
            with pytest.raises(ValueError, match=count):
                kind(**{"role": Role.ASSISTANT, "content": "x", count: value})

    @pytest.mark.parametrize("model", ["", " ", "m" * 256, 7])
    async def test_names_of_models_are_short(self, model: Any) -> None:
        """The name of a model is not blank and has at most 255 characters."""
        with pytest.raises(ValueError, match="model"):
            assistant("x", model=model)

    async def test_unfinished_messages(self, store: Store, owner: str, conversation: Conversation) -> None:
        """Nobody may append a message that is in progress; one that is imported is interrupted."""
        with pytest.raises(ValueError, match="cannot be in progress"):
            assistant("half an ans", status=Status.IN_PROGRESS)
        (stored,) = await store.append(owner, conversation.id, assistant("half an ans", status=Status.INTERRUPTED))
        stray = ImportedMessage(role=Role.ASSISTANT, content="half an ans", status=Status.IN_PROGRESS)
        await store.import_conversation(owner, ImportedConversation(id=conversation.id), [stray])
        found = await whole_log(store, owner, conversation.id)
        assert [m.status for m in found] == [stored.status, Status.INTERRUPTED] == [Status.INTERRUPTED] * 2
