"""Messages in the shapes of providers and frameworks come back from every store as they were, to the byte."""

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from shapes import SHAPES, Parts

from chatkeep import NewConversation, NewMessage, Role, open_store
from chatkeep.formats.jsonl import export_lines, import_lines
from chatkeep.model import ImportedConversation, ImportedMessage
from chatkeep.store import Store
from chatkeep.testing import someone, whole_history, whole_list
from conftest import STORES

EXPECTED = {name: json.dumps(parts) for name, parts in SHAPES.items()}


def as_json(parts: Any) -> str:
    """Parts as JSON text, in the order of their keys."""
    return json.dumps(list(parts))


def new_message(name: str, parts: Parts) -> NewMessage:
    """A message of a shape; who said it does not matter, but for what a user may say."""
    return NewMessage(role=Role.ASSISTANT, parts=parts, metadata={"shape": name})


async def shapes_of(store: Store, owner: str, conversation_id: UUID) -> dict[str, str]:
    """What a history has, by the names of the shapes."""
    history = await whole_history(store, owner, conversation_id, limit=7)
    return {message.metadata["shape"]: as_json(message.parts or ()) for message in history}


@pytest.mark.parametrize("name", STORES)
async def test_every_shape_survives(name: str, tmp_path: Path) -> None:
    """Each is appended or imported, read, exported, imported elsewhere and read again: equal as JSON every time."""
    owner, other = someone(), someone()
    async with open_store(STORES[name](tmp_path)) as store, open_store("memory://") as elsewhere:
        appended = await store.create_conversation(owner, NewConversation())
        messages = [new_message(*shape) for shape in SHAPES.items()]
        for message in messages[::2]:
            await store.append(owner, appended.id, message)
        await store.append(owner, appended.id, messages[1::2])
        imported = ImportedConversation(id=UUID(int=1))
        given = [ImportedMessage.model_validate(message.model_dump(exclude_unset=True)) for message in messages]
        await store.import_conversation(owner, imported, given)
        assert await shapes_of(store, owner, appended.id) == EXPECTED
        assert await shapes_of(store, owner, UUID(int=1)) == EXPECTED
        lines = b"".join([piece async for piece in export_lines(store, owner)]).splitlines(keepends=True)
        for target in (elsewhere, store):
            assert [result.error async for result in import_lines(target, other, lines)] == [None, None]
            for conversation in await whole_list(target, other):
                assert await shapes_of(target, other, conversation.id) == EXPECTED
            assert b"".join([piece async for piece in export_lines(target, other)]) == b"".join(lines)


def test_there_are_many_shapes() -> None:
    """Each maker is there, and what has a text says it in its content."""
    assert len(SHAPES) >= 40
    contents = {name: new_message(name, parts).content for name, parts in SHAPES.items()}
    assert contents["AI SDK: text and reasoning"] == "Eighty degrees."
    assert contents["Anthropic: thinking"] == "80 °C."
    assert contents["OpenAI Chat: content parts"] == "Is it hot?"
    assert contents["Gemini: thought and signature"] == ""


async def test_lines_of_another_system_have_shapes(tmp_path: Path) -> None:
    """The same in lines without a format, as a converter writes them."""
    messages = [{"id": name, "role": "assistant", "parts": parts} for name, parts in SHAPES.items()]
    line = json.dumps({"id": "c", "messages": messages}).encode()
    async with open_store(f"sqlite:///{tmp_path / 'chat.db'}") as store:
        assert [result.error async for result in import_lines(store, "ada", [line])] == [None]
        (conversation,) = await whole_list(store, "ada")
        log = await store.log("ada", conversation.id)
        assert {message.external_id: as_json(message.parts or ()) for message in log} == EXPECTED
