"""The tool calls and results of a message, whoever made it: a line of text for each, and never an error."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from chatkeep.model import Message, NewMessage

CALLS = {"tool_call", "tool_use", "function_call", "tool-call"}
"""Types of parts that are calls: chatkeep's own, Anthropic's, OpenAI's and those of others."""

RESULTS = {"tool_result", "function_call_output", "tool-result"}

ARGUMENTS = ("arguments", "args", "input")
"""Where a call has its arguments: as OpenAI, LangChain and Anthropic name them."""


def calls_of(message: Message | NewMessage) -> list[str]:
    """Return what to show of a message's parts and metadata beside its text, without what is there twice."""
    lines = [*_of_parts(message), *_of_metadata(message.metadata)]
    return list(dict.fromkeys(lines))


def _of_parts(message: Message | NewMessage) -> Iterator[str]:
    for part in message.parts or ():
        if part["type"] in CALLS:
            yield _call(part)
        elif part["type"] in RESULTS:
            content = part.get("content", part.get("output", part.get("result")))
            if _text(content) != message.content:
                yield f"← {_text(content)}"
        elif part["type"] == "file":
            yield f"[file {_text(part.get('name') or part.get('url') or part.get('file_id'))}]"


def _of_metadata(metadata: Mapping[str, Any]) -> Iterator[str]:
    found = metadata.get("tool_calls")
    calls = found if isinstance(found, list) else [] if found is None else [found]
    yield from map(_call, calls)
    if (old := metadata.get("function_call")) is not None:
        yield _call(old)


def _call(call: object) -> str:
    """One call: of OpenAI's shape, which has a `function` inside, or of another one, or of none at all."""
    inner = call.get("function") if isinstance(call, dict) else None
    for shape in (inner, call):
        if isinstance(shape, dict) and (name := shape.get("name", shape.get("tool_name"))) is not None:
            given = next((shape[each] for each in ARGUMENTS if shape.get(each) is not None), None)
            return f"→ {_text(name)}({_text(given)})"
    return f"→ {_text(call)}"


def _text(value: object) -> str:
    """A text as it is, nothing for nothing, and JSON for the rest."""
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
