"""Messages of Anthropic: `client.messages.create(system=prompt.system or omit, messages=prompt.messages)`.

Messages of one side that follow each other are one. The system's texts are apart from them, wherever they stood. The
results in a message of a user are a message of the role tool, before what the user says. The field `anthropic` of a
part has the other fields of its block, and for the type `data` a whole block.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from chatkeep.formats.models.files import File, data_url, file_of, part_of
from chatkeep.formats.models.steps import (
    CALL,
    DATA,
    REASONING,
    RESULT,
    Call,
    Form,
    Step,
    arguments_object,
    arguments_of,
    as_text,
    blocks_of,
    count,
    from_text,
    is_blank,
    new_message,
    objects,
    only,
    rest_of,
    result_of,
    short,
    steps,
    with_rest,
    without,
    word,
)
from chatkeep.model import Message, NewMessage, Role
from chatkeep.parts import TEXT, Part

NAME = ANTHROPIC = "anthropic"
FORM = Form(NAME, ANTHROPIC, ANTHROPIC, longest_name=128)

OF_USER = frozenset({"container_upload", "document", "image", "search_result"})
OF_RESULT = frozenset({"browser_state", "document", "image", "search_result", "tool_reference"})
OF_ASSISTANT = frozenset(
    {
        "bash_code_execution_tool_result",
        "code_execution_tool_result",
        "mcp_tool_result",
        "mcp_tool_use",
        "server_tool_use",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "web_fetch_tool_result",
        "web_search_tool_result",
    }
)
NATIVE = {Role.USER: OF_USER, Role.TOOL: OF_RESULT, Role.ASSISTANT: OF_ASSISTANT, Role.SYSTEM: frozenset[str]()}
"""The types of whole blocks that a message of a role may have."""
USES = frozenset({"mcp_tool_use", "server_tool_use"})
"""Calls that Anthropic answers itself. One without a result is left out, but for the last block of all."""

OF_TEXT = ("cache_control", "citations")
OF_FILE = ("cache_control", "citations", "context", "title", "transformations")
"""The other fields that a block of a user or of the system may have."""


class Prompt(NamedTuple):
    """What Anthropic is given."""

    system: str | list[dict[str, Any]] | None
    """The system's text, or its blocks; None without any."""
    messages: list[dict[str, Any]]


def to_anthropic(messages: Iterable[Message | NewMessage]) -> Prompt:
    """Return the system's text and the messages of a path, in linear time. They may share values with those given."""
    given = steps(messages, FORM)
    said: list[dict[str, Any]] = []
    for step in given:
        if step.role is not Role.SYSTEM:
            _add(said, "assistant" if step.role is Role.ASSISTANT else "user", _content(step))
    return Prompt(_system([step for step in given if step.role is Role.SYSTEM]), _answered(said))


def _system(given: Sequence[Step]) -> str | list[dict[str, Any]] | None:
    if len(given) == 1 and given[0].is_plain:
        return given[0].message.content
    return [block for step in given for block in _blocks(step)] or None


def _content(step: Step) -> str | list[dict[str, Any]]:
    return step.message.content if step.is_plain and step.role is not Role.TOOL else _blocks(step)


def _blocks(step: Step) -> list[dict[str, Any]]:
    make = _result if step.role is Role.TOOL else _call
    blocks = [make(each) if isinstance(each, Call) else _block(each, step.role) for each in step.blocks]
    return [block for block in blocks if block]


def _add(said: list[dict[str, Any]], role: str, content: str | list[dict[str, Any]]) -> None:
    """Add a message, to the last one if that has the same role."""
    if not content:
        return
    if not said or said[-1]["role"] != role:
        said.append({"role": role, "content": content})
        return
    if isinstance(before := said[-1]["content"], str):
        said[-1]["content"] = before = [{"type": "text", "text": before}]
    before += [{"type": "text", "text": content}] if isinstance(content, str) else content


def _block(part: Part, role: Role) -> dict[str, Any] | None:
    rest = rest_of(part, NAME)
    if part["type"] == TEXT:
        return _text(part, rest if role is Role.ASSISTANT else only(rest, OF_TEXT))
    if part["type"] == REASONING:
        return _thinking(part, rest)
    if part["type"] == DATA:
        kind = word(rest)
        return rest if kind in NATIVE[role] else None
    file = file_of(part) if role in (Role.USER, Role.TOOL) else None
    block = _file(file) if file else None
    return {**only(rest, OF_FILE), **block} if block else None


def _text(part: Part, rest: Mapping[str, Any]) -> dict[str, Any] | None:
    text = part.get("text")
    if not isinstance(text, str) or is_blank(text):
        return None
    return {**rest, "type": "text", "text": text}


def _thinking(part: Part, rest: Mapping[str, Any]) -> dict[str, Any] | None:
    signature = part.get("signature")
    if not isinstance(signature, str) or not signature:
        return None  # it would be refused
    if rest.get("is_redacted") is True:
        return {"type": "redacted_thinking", "data": signature}
    return {"type": "thinking", "thinking": part.get("text", ""), "signature": signature}


def _file(file: File) -> dict[str, Any] | None:
    source = _source(file)
    if file.kind == "image":
        return {"type": "image", "source": source}
    if file.data is not None and file.media_type != "application/pdf":
        return None  # documents are PDF, and text as it is
    return {"type": "document", "source": source, **({"title": file.name} if file.name else {})}


def _source(file: File) -> dict[str, Any]:
    if file.id:
        return {"type": "file", "file_id": file.id}
    if file.url:
        return {"type": "url", "url": file.url}
    return {"type": "base64", "media_type": file.media_type, "data": file.data}


def _call(call: Call) -> dict[str, Any]:
    rest = without(rest_of(call.part, NAME), "type", "id", "name", "input")
    return {**rest, "type": "tool_use", "id": call.id, "name": call.name, "input": arguments_object(call.part)}


def _result(call: Call) -> dict[str, Any]:
    part: Part = call.result or {}
    rest = without(rest_of(part, NAME), "type", "tool_use_id", "content", "is_error")
    content, is_error = result_of(call)
    says_error = {"is_error": is_error} if is_error or part.get("is_error") is False else {}
    has_content = call.result is None or part.get("content") is not None
    said = {"content": _result_content(content)} if has_content else {}
    return {**rest, "type": "tool_result", "tool_use_id": call.id, **said, **says_error}


def _result_content(content: Any) -> str | list[dict[str, Any]]:
    blocks = blocks_of(content)
    if blocks is None:
        return as_text(content)
    return [block for part in blocks if (block := _block(part, Role.TOOL))]


def _answered(said: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages without calls that Anthropic should have answered itself and has not, and without lone results."""
    blocks = [block for message in said if isinstance(message["content"], list) for block in message["content"]]
    used = {f"{block.get('id')}" for block in blocks if block["type"] in USES}
    answered = {f"{block.get('tool_use_id')}" for block in blocks if block["type"] in OF_ASSISTANT - USES}
    last = blocks[-1] if blocks and said[-1]["content"] and isinstance(said[-1]["content"], list) else None

    def is_whole(block: Mapping[str, Any]) -> bool:
        if block["type"] in USES:
            return block is last or f"{block.get('id')}" in answered
        return block["type"] not in OF_ASSISTANT or f"{block.get('tool_use_id')}" in used

    kept: list[dict[str, Any]] = []
    for message in said:
        content = message["content"]
        _add(kept, message["role"], content if isinstance(content, str) else list(filter(is_whole, content)))
    return kept


# --- from Anthropic ----------------------------------------------------------------------------------------


def from_anthropic(
    messages: Iterable[Mapping[str, Any]], system: str | Iterable[Mapping[str, Any]] | None = None
) -> list[NewMessage]:
    """Return the messages that a system's text and messages are, in linear time.

    A message may be a whole reply, with its id, model and usage. What is no message is left out. Raises InvalidInput
    for what no message can hold.
    """
    result: list[NewMessage] = []
    if system:
        result += _from_content(Role.SYSTEM, system if isinstance(system, str) else list(system))
    for message in objects(list(messages)):
        role = word(message, "role")
        if role == "assistant":
            result += _from_content(Role.ASSISTANT, message.get("content"), **_known(message))
        elif role in {"user", "system"}:
            result += _from_user(Role(role), message.get("content"))
    return result


def _known(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a reply says about itself."""
    usage = rest_of(message, "usage")
    read = [count(usage.get(f"{name}input_tokens")) for name in ("", "cache_creation_", "cache_read_")]
    return {
        "external_id": short(message.get("id")),
        "model": short(message.get("model")),
        "input_tokens": None if read[0] is None else count(sum(filter(None, read))),
        "output_tokens": count(usage.get("output_tokens")),
    }


def _from_user(role: Role, content: Any) -> Iterator[NewMessage]:
    if isinstance(content, str):
        yield from new_message(role, content)
        return
    blocks = objects(content)
    results = [block for block in blocks if word(block) == RESULT]
    if role is Role.USER:
        yield from new_message(Role.TOOL, parts=[_result_of(block) for block in results])
    yield from _from_content(role, [block for block in blocks if word(block) != RESULT])


def _from_content(role: Role, content: Any, **known: Any) -> list[NewMessage]:
    if isinstance(content, str):
        return new_message(role, content, **known)
    return new_message(role, parts=[_part_of(block, role) for block in objects(content)], **known)


def _part_of(block: dict[str, Any], role: Role) -> Part:
    """The part of a block, such that it comes back as it was."""
    kind = word(block)
    part = (_said(block) if role is Role.ASSISTANT else None) or _neutral(block)
    if part and (part["type"] == CALL or _block(part, role) == block or kind == "text"):
        return part
    return {"type": DATA, NAME: block}


def _said(block: Mapping[str, Any]) -> Part | None:
    """The part of a block that only an assistant has."""
    match word(block):
        case "thinking":
            own = {"text": block.get("thinking"), "signature": block.get("signature"), "provider": ANTHROPIC}
            return {"type": REASONING, **own}
        case "redacted_thinking":
            own = {"text": "", "signature": block.get("data"), "provider": ANTHROPIC}
            return {"type": REASONING, **own, NAME: {"is_redacted": True}}
        case "tool_use":
            part = {"type": CALL, "id": block.get("id"), "name": block.get("name")}
            part["arguments"] = arguments_of(block.get("input"))
            return with_rest(part, NAME, without(block, "type", "id", "name", "input"))
    return None


def _neutral(block: Mapping[str, Any]) -> Part | None:
    kind, source = word(block), rest_of(block, "source")
    if kind == "text":
        return with_rest({"type": TEXT, "text": block.get("text")}, NAME, without(block, "type", "text"))
    if kind not in {"image", "document"}:
        return None
    id_, url, media_type = source.get("file_id"), source.get("url"), source.get("media_type")
    if word(source) == "base64":
        url = data_url(f"{media_type}", f"{source.get('data')}")
    title = block.get("title") if kind == "document" else None
    part = part_of(url=url, file_id=id_, media_type=media_type or ("image/*" if kind == "image" else None), name=title)
    rest = without(block, "type", "source", *(("title",) if title else ()))
    return with_rest(part | ({"provider": ANTHROPIC} if id_ else {}), NAME, rest)


def _result_of(block: Mapping[str, Any]) -> Part:
    part = {"type": RESULT, "tool_call_id": block.get("tool_use_id")}
    if isinstance(content := block.get("content"), str):
        part["content"] = from_text(content)
    elif content is not None:
        part["content"] = [_part_of(each, Role.TOOL) for each in objects(content)]
    if isinstance(block.get("is_error"), bool):
        part["is_error"] = block["is_error"]
    return with_rest(part, NAME, without(block, "type", "tool_use_id", "content", "is_error"))
