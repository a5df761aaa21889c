"""The five forms that a model is given, alike: there, back, and checked against the types of its SDK."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from anthropic.types import MessageParam, TextBlockParam
from google.genai.types import Content
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessageParam
from openai.types.responses import ResponseInputItemParam
from pydantic import TypeAdapter
from pydantic_ai.messages import ModelMessagesTypeAdapter

from chatkeep import NewMessage, Role
from chatkeep.formats.models.anthropic import from_anthropic, to_anthropic
from chatkeep.formats.models.gemini import from_gemini, to_gemini
from chatkeep.formats.models.openai_chat import from_openai_chat, to_openai_chat
from chatkeep.formats.models.openai_responses import from_openai_responses, to_openai_responses
from chatkeep.formats.models.pydantic_ai import from_pydantic_ai, to_pydantic_ai
from chatkeep.model import Message

type Messages = Sequence[Message | NewMessage]


class Wire(NamedTuple):
    """A form, with its system text and messages as one value."""

    name: str
    provider: str
    there: Callable[[Messages], Any]
    back: Callable[[Any], list[NewMessage]]
    validate: Callable[[Any], None]
    """Raises ValidationError for what its SDK does not take."""


def _whole(value: Any) -> None:
    """Go through what pydantic validates only when it is iterated."""
    if isinstance(value, dict):
        _whole(list(value.values()))
    elif not isinstance(value, str | bytes | int | float | None):
        for each in value:
            _whole(each)


def _typed(kind: Any) -> Callable[[Any], None]:
    adapter = TypeAdapter(kind)
    return lambda value: _whole(adapter.validate_python(value))


RESPONSES, CHAT = _typed(list[ResponseInputItemParam]), _typed(list[ChatCompletionMessageParam])
ANTHROPIC = _typed(tuple[str | list[TextBlockParam] | None, list[MessageParam]])


def _gemini(prompt: Any) -> None:
    for content in prompt.contents:
        Content.model_validate(content)


def _pydantic_ai(messages: Any) -> None:
    assert ModelMessagesTypeAdapter.validate_json(ModelMessagesTypeAdapter.dump_json(messages)) == messages


WIRES = (
    Wire("openai_responses", "openai", to_openai_responses, from_openai_responses, RESPONSES),
    Wire("openai_chat", "openai-chat", to_openai_chat, from_openai_chat, CHAT),
    Wire("anthropic", "anthropic", to_anthropic, lambda it: from_anthropic(it.messages, it.system), ANTHROPIC),
    Wire("gemini", "google", to_gemini, lambda it: from_gemini(it.contents, it.system), _gemini),
    Wire(
        "pydantic_ai",
        "anthropic",
        lambda messages: to_pydantic_ai(messages, provider="anthropic"),
        from_pydantic_ai,
        _pydantic_ai,
    ),
)
BY_NAME = {wire.name: wire for wire in WIRES}


def said(messages: Iterable[NewMessage]) -> list[Any]:
    """What must come back of messages."""
    return [(message.role, message.content, message.parts) for message in messages]


# --- histories of neutral parts ----------------------------------------------------------------------------

words = st.text(min_size=1, max_size=12).filter(lambda text: not text.isspace() and not text.startswith("{"))
scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
objects = st.dictionaries(st.text(max_size=5), scalars | st.lists(scalars, max_size=3), max_size=4).filter(
    lambda value: not value.keys() <= {"error", "_arguments"} or not value
)
texts = st.builds(lambda text: {"type": "text", "text": text}, words)
FILES = (
    {"type": "file", "url": "data:image/png;base64,iVBORw0K", "media_type": "image/png"},
    {"type": "file", "url": "https://files.test/cup", "media_type": "image/*"},
    {"type": "file", "url": "data:application/pdf;base64,JVBERi0=", "media_type": "application/pdf"},
)
ids = st.uuids().map(lambda id_: f"call_{id_.hex}")


@st.composite
def turns(draw: st.DrawFn, wire: Wire) -> list[NewMessage]:
    """A question, calls with their results, and an answer."""
    question = draw(
        words.map(lambda text: {"content": text})
        | st.lists(texts | st.sampled_from(FILES), min_size=2, max_size=4).map(lambda parts: {"parts": parts})
    )
    messages = [NewMessage(role=Role.USER, **question)]
    for _ in range(draw(st.integers(0, 2))):
        messages += draw(calling(wire))
    answer = draw(words.map(lambda text: {"content": text}) | saying(wire).map(lambda parts: {"parts": parts}))
    return [*messages, NewMessage(role=Role.ASSISTANT, **answer)]


def saying(wire: Wire) -> st.SearchStrategy[list[Any]]:
    """Reasoning and texts."""
    own = {"type": "reasoning", "text": "80 or 90?", "provider": wire.provider}
    if wire.name != "openai_chat":
        own["signature"] = "EuYBCkYICxgCKkAe"
    return st.lists(texts, min_size=2, max_size=3) | st.lists(texts, min_size=1, max_size=3).map(
        lambda said: [own, *said]
    )


@st.composite
def calling(draw: st.DrawFn, wire: Wire) -> list[NewMessage]:
    """Calls and their results."""
    called = [
        {
            "type": "tool_call",
            "id": id_,
            "name": draw(st.sampled_from(("kettle", "look_up"))),
            "arguments": draw(objects),
        }
        for id_ in draw(st.lists(ids, min_size=1, max_size=3, unique=True))
    ]
    plain = st.text(max_size=9).filter(lambda text: not text.startswith("{")) | objects
    contents = plain | st.lists(texts, min_size=1, max_size=2)
    results = []
    for call in draw(st.permutations(called)):
        is_error = draw(st.booleans())
        content = draw(plain if is_error else contents)
        results.append(
            {"type": "tool_result", "tool_call_id": call["id"], "content": content}
            | ({"is_error": True} if is_error else {})
        )
    before = draw(st.just([]) | saying(wire))
    return [NewMessage(role=Role.ASSISTANT, parts=[*before, *called]), NewMessage(role=Role.TOOL, parts=results)]


def histories(wire: Wire) -> st.SearchStrategy[list[NewMessage]]:
    """Whole conversations, perhaps with a system text."""
    system: st.SearchStrategy[list[NewMessage]] = st.just([]) | words.map(
        lambda text: [NewMessage(role=Role.SYSTEM, content=text)]
    )
    return st.tuples(system, st.lists(turns(wire), min_size=1, max_size=3)).map(
        lambda both: [*both[0], *(m for turn in both[1] for m in turn)]
    )
