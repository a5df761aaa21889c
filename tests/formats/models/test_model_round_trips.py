"""What goes to a provider is valid there, and comes back equal."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wires import BY_NAME, WIRES, Wire, histories, said

from chatkeep import NewMessage, Role
from chatkeep.formats.models.anthropic import from_anthropic
from chatkeep.formats.models.pydantic_ai import ANY, from_pydantic_ai, to_pydantic_ai

wires = pytest.mark.parametrize("wire", WIRES, ids=lambda wire: wire.name)


@wires
@given(data=st.data())
def test_neutral_messages_come_back(wire: Wire, data: st.DataObject) -> None:
    """Roles, content and parts of a history are equal after the way there and back; the SDK takes what is there."""
    messages = data.draw(histories(wire))
    there = wire.there(messages)
    wire.validate(there)
    back = wire.back(there)
    assert said(back) == said(messages)
    assert wire.there(back) == there


@wires
@given(data=st.data())
def test_others_messages_are_valid(wire: Wire, data: st.DataObject) -> None:
    """What one maker made is given to every other one: valid, with the same text, calls and results, no reasoning."""
    maker = data.draw(st.sampled_from([other for other in WIRES if other.provider != wire.provider]))
    messages = maker.back(maker.there(data.draw(histories(maker))))
    there = wire.there(messages)
    wire.validate(there)
    back = wire.back(there)
    assert "".join(m.content for m in back) == "".join(m.content for m in messages)
    assert called(back) == called(messages)
    assert not [part for m in back for part in m.parts or () if part["type"] == "reasoning"]
    assert "80 or 90?" not in repr(there)


def called(messages: list[NewMessage]) -> list[Any]:
    """The calls and results, by their ids, names and arguments."""
    parts = [part for message in messages for part in message.parts or ()]
    calls = [(part["id"], part["name"], part["arguments"]) for part in parts if part["type"] == "tool_call"]
    return [*calls, *(part["tool_call_id"] for part in parts if part["type"] == "tool_result")]


ITEMS: dict[str, list[Any]] = {
    "openai_responses": [
        {"role": "developer", "type": "message", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "80?"},
                {"type": "input_image", "file_id": "file-1", "detail": "low"},
            ],
        },
        {"id": "rs_1", "type": "reasoning", "summary": [], "encrypted_content": "abcd"},
        {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "phase": "commentary",
            "content": [
                {"type": "output_text", "text": "I ", "annotations": []},
                {"type": "output_text", "text": "look.", "annotations": []},
            ],
        },
        {
            "id": "fc_1",
            "type": "function_call",
            "call_id": "call_1",
            "name": "kettle",
            "arguments": '{"c": 80}',
            "status": "completed",
        },
        {"type": "custom_tool_call", "call_id": "call_2", "name": "brew", "input": "sencha"},
        {
            "id": "cu_1",
            "type": "computer_call",
            "call_id": "call_3",
            "status": "completed",
            "action": {"type": "wait"},
            "pending_safety_checks": [],
        },
        {"type": "function_call_output", "call_id": "call_1", "output": "{}", "status": "completed"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": [{"type": "input_text", "text": "hot"}]},
        {
            "type": "computer_call_output",
            "call_id": "call_3",
            "output": {"type": "computer_screenshot", "image_url": "https://files.test/s.png"},
        },
        {"role": "assistant", "content": "80 °C"},
        {"role": "assistant", "content": "It is.", "phase": "final_answer"},
        {"role": "user", "content": "Thanks"},
        {"role": "user", "content": "Bye"},
    ],
    "openai_chat": [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
        {"role": "user", "name": "ada", "content": "80?"},
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "https://files.test/c.png", "detail": "low"}}],
        },
        {
            "role": "assistant",
            "content": "I look.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "kettle", "arguments": "{}"}},
                {"id": "c2", "type": "custom", "custom": {"name": "brew", "input": "x"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c2", "content": "hot"},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "80"}]},
        {"role": "assistant", "refusal": "No.", "content": None},
        {"role": "assistant", "content": [{"type": "text", "text": "80 °C"}]},
    ],
}


@pytest.mark.parametrize("name", ITEMS)
def test_items_come_back(name: str) -> None:
    """What a provider's own client has comes back as it was, key by key."""
    wire = BY_NAME[name]
    wire.validate(ITEMS[name])
    messages = wire.back(ITEMS[name])
    stored = [
        NewMessage.model_validate(json.loads(message.model_dump_json(exclude_unset=True))) for message in messages
    ]
    assert wire.there(stored) == ITEMS[name]


def test_a_reply_of_anthropic_says_who_made_it() -> None:
    """The id, model and usage of a whole reply are the message's; cached tokens were read, too."""
    usage = {"input_tokens": 3, "cache_read_input_tokens": 5, "cache_creation_input_tokens": None, "output_tokens": 7}
    (message,) = from_anthropic(
        [{"id": "msg_1", "model": "tea-1", "role": "assistant", "content": "80", "usage": usage}]
    )
    known = (message.external_id, message.model, message.input_tokens, message.output_tokens)
    assert known == ("msg_1", "tea-1", 8, 7)


def test_messages_of_pydantic_ai_come_back() -> None:
    """Requests and responses are equal, with their times, instructions, run, usage and what only they have."""
    from pydantic_ai import messages as m
    from pydantic_ai.usage import RequestUsage

    history: list[m.ModelMessage] = [
        m.ModelRequest(
            [m.SystemPromptPart("Be brief."), m.UserPromptPart("80?")], instructions="Tea only.", run_id="r"
        ),
        m.ModelResponse(
            [
                m.ThinkingPart("Hm.", signature="abcd", provider_name="anthropic"),
                m.TextPart("I look.", id="t1", citations=[m.Citation([m.WebCitationSource("https://tea.test")])]),
                m.ToolCallPart("kettle", '{"c": 80}', "c1"),
                m.ToolCallPart("kettle", {"c": 80}, "c2"),
                m.ToolCallPart("kettle", None, "c3"),
                m.NativeToolCallPart("web_search", {"q": "tea"}, "c4"),
            ],
            usage=RequestUsage(input_tokens=3, output_tokens=4, cache_read_tokens=2),
            model_name="tea-1",
            provider_response_id="resp_1",
            finish_reason="tool_call",
        ),
        m.ModelRequest(
            [
                m.ToolReturnPart("kettle", ["Look", m.ImageUrl("https://files.test/c.png")], "c2"),
                m.ToolReturnPart("kettle", {"ok": [1]}, "c1", metadata={"a": 1}),
                m.ToolReturnPart("kettle", "hot", "c3", outcome="denied"),
                m.UserPromptPart(["And this?", m.BinaryContent(b"abc", media_type="audio/wav"), m.CachePoint()]),
            ],
            instructions="Tea only.",
        ),
        m.ModelResponse([m.TextPart("80 °C")], state="interrupted"),
        m.ModelRequest([m.UserPromptPart("Thanks")], instructions="Coffee, too."),
        m.ModelRequest([m.UserPromptPart([m.TextContent("Bye", metadata=1)])]),
        m.ModelRequest([m.UserPromptPart("Still there?")]),
    ]
    messages = from_pydantic_ai(history)
    assert to_pydantic_ai(messages, provider=ANY) == history
    assert [message.content for message in messages if message.role is Role.SYSTEM] == [
        "Tea only.",
        "Be brief.",
        "Coffee, too.",
    ]
    response = messages[3]
    known = (response.external_id, response.model, response.input_tokens, response.output_tokens)
    assert known == ("resp_1", "tea-1", 3, 4)
    assert not [part for m_ in to_pydantic_ai(messages) for part in m_.parts if part.part_kind == "thinking"]
