"""Messages in the shapes of providers and frameworks, and real conversations, through what a model is given."""

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.genai.types import Content
from pydantic_ai.messages import ModelMessagesTypeAdapter
from shapes import ANTHROPIC, GEMINI, OPENAI_CHAT, OPENAI_RESPONSES, PYDANTIC_AI, SHAPES, SIGNED, Parts

from chatkeep import NewMessage, Role
from chatkeep.formats.models.anthropic import from_anthropic, to_anthropic
from chatkeep.formats.models.gemini import from_gemini, to_gemini
from chatkeep.formats.models.openai_chat import from_openai_chat, to_openai_chat
from chatkeep.formats.models.openai_responses import from_openai_responses, to_openai_responses
from chatkeep.formats.models.pydantic_ai import ANY, from_pydantic_ai, to_pydantic_ai
from chatkeep.formats.models.steps import INTERRUPTED

DATA = Path(os.environ.get("CHATKEEP_CONVERSATIONS", "/work/shared/data/conversations"))


def stored(messages: list[NewMessage]) -> list[NewMessage]:
    """Messages as they are read from a store: their parts were JSON."""
    return [NewMessage.model_validate_json(message.model_dump_json(exclude_unset=True)) for message in messages]


SAYS = {"role": "assistant", "content": "80"}


def openai_items(name: str) -> list[Any]:
    """The items of a shape, with the other half of a call or its result, and what follows reasoning."""
    items = OPENAI_RESPONSES[name]
    calls = [
        {"type": "function_call", "call_id": item["call_id"], "name": "kettle", "arguments": "{}"}
        for item in items
        if item["type"] == "function_call_output"
    ]
    outputs: list[Any] = []
    for item in items:
        match item["type"]:
            case "function_call" | "custom_tool_call":
                outputs.append({"type": f"{item['type']}_output", "call_id": item["call_id"], "output": "hot"})
            case "local_shell_call":
                outputs.append({"type": "local_shell_call_output", "id": item["call_id"], "output": "hot"})
            case "reasoning":
                outputs.append(SAYS)
    outputs.sort(key=lambda item: item.get("type") in {"local_shell_call_output"})  # those of all forms come first
    return [*calls, *items, *outputs]


@pytest.mark.parametrize("name", OPENAI_RESPONSES)
def test_items_of_openai(name: str) -> None:
    """Each comes back as it was."""
    items = openai_items(name)
    assert to_openai_responses(stored(from_openai_responses(items))) == items


@pytest.mark.parametrize("name", sorted(OPENAI_CHAT.keys() - {"refusal", "text of a thread"}))
def test_messages_of_chat_completions(name: str) -> None:
    """Each comes back as it was, with the other half of a call."""
    shape = OPENAI_CHAT[name]
    if shape[0]["type"] != "data":
        messages: list[Any] = [{"role": "user", "content": shape}]
    else:
        messages = [part["data"] for part in shape]
    ids = [call["id"] for message in messages for call in message.get("tool_calls", ())]
    messages += ({"role": "tool", "tool_call_id": id_, "content": "hot"} for id_ in ids)
    if messages[0]["role"] == "tool":
        called = {"id": "call_1", "type": "function", "function": {"name": "kettle", "arguments": "{}"}}
        messages.insert(0, {"role": "assistant", "content": None, "tool_calls": [called]})
    assert to_openai_chat(stored(from_openai_chat(messages))) == messages


def anthropic_messages(name: str) -> list[Any]:
    """The blocks of a shape, of the side that has them, with the other half of a call."""
    blocks: list[Any] = ANTHROPIC[name]
    uses = [
        {"type": "tool_use", "id": b["tool_use_id"], "name": "kettle", "input": {}}
        for b in blocks
        if b["type"] == "tool_result"
    ]
    results = [
        {"type": "tool_result", "tool_use_id": b["id"], "content": "hot"} for b in blocks if b["type"] == "tool_use"
    ]
    own = {"role": "user" if uses or name == "images and documents" else "assistant", "content": blocks}
    before = [{"role": "assistant", "content": uses}] if uses else []
    return [*before, own, *([{"role": "user", "content": results}] if results else [])]


@pytest.mark.parametrize("name", ANTHROPIC)
def test_blocks_of_anthropic(name: str) -> None:
    """Each comes back as it was; so do results of server tools, if their calls are there."""
    messages = anthropic_messages(name)
    if name == "server tools":
        messages[0]["content"] = messages[0]["content"][:-1]  # its call is not in the shape
    assert to_anthropic(stored(from_anthropic(messages))).messages == messages


def gemini_contents(name: str) -> list[Any]:
    """The parts of a shape, with a signature that is base64, and the other half of a call."""
    text = json.dumps(
        [{k: v for k, v in part.items() if k != "type"} for part in GEMINI[name] if part["type"] == "gemini"]
    )
    parts = json.loads(text.replace(SIGNED, "EuYBCkYICxgCKkAe"))
    answers = [
        {
            "functionResponse": {
                **{k: v for k, v in part["functionCall"].items() if k != "args"},
                "response": {"output": "hot"},
            }
        }
        for part in parts
        if "functionCall" in part
    ]
    calls = [{"functionCall": {"id": "fc-1", "name": "kettle", "args": {}}}] if "functionResponse" in parts[0] else []
    contents = [{"role": "model", "parts": calls}] if calls else []
    contents.append({"role": "user" if calls or name.startswith("inline") else "model", "parts": parts})
    return [*contents, *([{"role": "user", "parts": answers}] if answers else [])]


@pytest.mark.parametrize("name", GEMINI)
def test_parts_of_gemini(name: str) -> None:
    """Each comes back as it was, and is valid."""
    contents = gemini_contents(name)
    back = to_gemini(stored(from_gemini(contents))).contents
    assert back == contents
    assert [Content.model_validate(each) for each in back]


def test_messages_of_pydantic_ai() -> None:
    """Request, response and returns come back equal, but for the interrupted call, which gets a result."""
    request, response, returns = (shape[0]["data"] for shape in PYDANTIC_AI.values())
    history = ModelMessagesTypeAdapter.validate_python([request, response, {"kind": "request", "parts": returns}])
    assert to_pydantic_ai(stored(from_pydantic_ai(history)), provider=ANY) == history
    *_, interrupted = to_pydantic_ai(from_pydantic_ai(history[:2]), provider=ANY)
    assert [part.content for part in interrupted.parts if part.part_kind == "tool-return"] == [INTERRUPTED] * 2


@pytest.mark.parametrize("role", ["user", "assistant", "tool"])
@pytest.mark.parametrize("name", SHAPES)
def test_shapes_that_nobody_translated(name: str, role: str) -> None:
    """Stored as they came, they give their texts, and nothing is made of what is not neutral."""
    message = NewMessage(role=Role(role), parts=SHAPES[name] if role != "user" else [*SHAPES[name], {"type": "file"}])
    given = (
        from_openai_responses(to_openai_responses([message])),
        from_openai_chat(to_openai_chat([message])),
        from_anthropic(to_anthropic([message]).messages),
        from_gemini(to_gemini([message]).contents),
        from_pydantic_ai(to_pydantic_ai([message])),
    )
    for back in given:
        assert "".join(each.content for each in back) == texts(SHAPES[name], role)
        assert {each.role.value for each in back} <= ({role} if role == "user" else {"assistant", "tool"})


def texts(parts: Parts, role: str) -> str:
    """What a message of these parts says."""
    found = [text for part in parts if part["type"] == "text" and isinstance(text := part.get("text"), str)]
    return "" if role == "tool" else ("" if role == "assistant" else "\n").join(found)


def conversations(name: str, most: int) -> Iterator[list[NewMessage]]:
    """Real conversations, their calls and results as parts."""
    file = DATA / f"{name}.jsonl.gz"
    if not file.exists():
        pytest.skip(f"{file} is absent: real conversations are not part of the repository")
    with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
        for _, line in zip(range(most), lines, strict=False):
            yield [message for each in json.loads(line)["messages"] for message in neutral(each)]


def neutral(message: dict[str, Any]) -> list[NewMessage]:
    """A message with its calls or result as parts; none if it is blank."""
    metadata, role, content = message.get("metadata", {}), Role(message["role"]), message["content"]
    if role is Role.TOOL:
        parts = [{"type": "tool_result", "tool_call_id": metadata["tool_call_id"], "content": content}]
        return [NewMessage(role=role, parts=parts)]
    called = [
        {
            "type": "tool_call",
            "id": call["id"],
            "name": call["function"]["name"],
            "arguments": call["function"]["arguments"],
        }
        for call in metadata.get("tool_calls", ())
    ]
    said = [{"type": "text", "text": content}] if content.strip() else []
    if called:
        return [NewMessage(role=role, parts=[*said, *called])]
    return [NewMessage(role=role, content=content)] if said else []


@pytest.mark.parametrize("name", ["tau_bench_airline", "taskmaster4", "crosswoz_zh", "mtrag_un"])
def test_real_conversations(name: str) -> None:
    """Tool calls, Chinese and long answers: every form gives the same texts, and each call with its result."""
    for messages in conversations(name, 40):
        back = (
            from_openai_responses(to_openai_responses(messages)),
            from_openai_chat(to_openai_chat(messages)),
            from_anthropic(*reversed(to_anthropic(messages))),
            from_gemini(to_gemini(messages).contents, to_gemini(messages).system),
            from_pydantic_ai(to_pydantic_ai(messages)),
        )
        expected = "".join("".join(m.content for m in messages).split())
        for given in back:
            assert "".join("".join(m.content for m in given).split()) == expected
            parts = [part for m in given for part in m.parts or ()]
            called = [part["id"] for part in parts if part["type"] == "tool_call"]
            assert called == [part["tool_call_id"] for part in parts if part["type"] == "tool_result"]
            assert len(called) == sum(part["type"] == "tool_call" for m in messages for part in m.parts or ())
