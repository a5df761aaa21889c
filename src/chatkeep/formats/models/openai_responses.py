"""Items of OpenAI's Responses API: `client.responses.create(input=to_openai_responses(messages))`.

Consecutive items of the model are one message of an assistant, consecutive outputs one of the role tool, and each item
of a user or of the system a message of its own. The field `openai_responses` of a part has what only this form has:
`item` and `part` are the other fields of the item and of the part of its content, `native` is a whole item.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from chatkeep.formats.models.files import ANY_IMAGE, File, file_of, part_of
from chatkeep.formats.models.steps import (
    CALL,
    DATA,
    REASONING,
    RESULT,
    Call,
    Form,
    Step,
    arguments_text,
    blocks_of,
    from_text,
    made_id,
    new_message,
    objects,
    only,
    rest_of,
    result_from_text,
    result_of,
    result_text,
    short,
    steps,
    with_rest,
    without,
    word,
)
from chatkeep.model import Message, NewMessage, Role
from chatkeep.parts import TEXT, Part

NAME = "openai_responses"
OPENAI = "openai"
"""The provider of reasoning and files."""

FORM = Form(NAME, OPENAI, OPENAI, longest_name=64)

CALLS = {"function_call": "arguments", "custom_tool_call": "input"}
OUTPUTS = {"function_call_output", "custom_tool_call_output"}
PAIRED = {
    "computer_call": "computer_call_output",
    "local_shell_call": "local_shell_call_output",
    "shell_call": "shell_call_output",
    "apply_patch_call": "apply_patch_call_output",
}
"""Calls and outputs that only this form has. One without the other is left out."""

OF_TOOL = frozenset(PAIRED.values()) | {"mcp_approval_response"}
OF_ASSISTANT = frozenset(PAIRED) | {
    "code_interpreter_call",
    "compaction",
    "file_search_call",
    "image_generation_call",
    "item_reference",
    "mcp_approval_request",
    "mcp_call",
    "mcp_list_tools",
    "program",
    "program_output",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
}
OF_SYSTEM = frozenset({"additional_tools", "configuration_update"})
NATIVE = {Role.ASSISTANT: OF_ASSISTANT, Role.TOOL: OF_TOOL, Role.SYSTEM: OF_SYSTEM, Role.USER: frozenset[str]()}
"""The types of whole items that a message of a role may have."""

WHERE = ("file_id", "image_url", "file_url", "file_data")

INPUTS = frozenset({"input_audio", "input_file", "input_image"})


def to_openai_responses(messages: Iterable[Message | NewMessage]) -> list[dict[str, Any]]:
    """Return the items of a path, in linear time. They may share values with the messages.

    System messages are items where they stand.
    """
    items: list[dict[str, Any]] = []
    for step in steps(messages, FORM):
        match step.role:
            case Role.ASSISTANT:
                _say(step, items)
            case Role.TOOL:
                items += (item for block in step.blocks if (item := _tool_item(block)))
            case _:
                items += _input(step)
    return _paired(items)


def _input(step: Step) -> Iterator[dict[str, Any]]:
    """The item of a user or of the system, and whole items of the system."""
    if step.is_plain:
        yield {"role": step.role.value, "content": step.message.content}
        return
    parts = [block for block in step.blocks if isinstance(block, dict)]
    yield from (native for part in parts if (native := _native(part, step.role)))
    content = [each for part in parts if (each := _content(part, step.role))]
    if not content:
        return
    rest = rest_of(parts[0], NAME)
    given = only(rest_of(rest, "item"), ("type", "id", "status"))
    is_developer = step.role is Role.SYSTEM and word(rest_of(rest, "item"), "role") == "developer"
    is_string = rest.get("string") is True and len(content) == 1 and "text" in content[0]
    yield {
        **given,
        "role": "developer" if is_developer else step.role.value,
        "content": content[0]["text"] if is_string else content,
    }


def _content(part: Part, role: Role | None) -> dict[str, Any] | None:
    """A part of the content of an input, or of an output of a tool."""
    rest = rest_of(part, NAME, "part")
    if part["type"] == TEXT:
        text = part.get("text")
        return {**only(rest, ("prompt_cache_breakpoint",)), "type": "input_text", "text": text} if text else None
    if role is Role.SYSTEM:
        return None
    if part["type"] == DATA:
        return rest if word(rest) in INPUTS else None
    file = file_of(part)
    nulls = {name: None for name in WHERE if name in rest and rest[name] is None}
    return {**only(rest, ("detail", "prompt_cache_breakpoint")), **nulls, **_file(file, rest)} if file else None


def _file(file: File, rest: Mapping[str, Any]) -> dict[str, Any]:
    if file.kind == "image":
        where = {"file_id": file.id} if file.id else {"image_url": file.address}
        return {"type": "input_image", **where, **({} if "detail" in rest else {"detail": "auto"})}
    where = {"file_id": file.id} if file.id else {"file_url": file.url} if file.url else {"file_data": file.data_url}
    return {"type": "input_file", **where, **({"filename": file.name} if file.name else {})}


def _native(part: Part, role: Role) -> dict[str, Any] | None:
    """A whole item, if a message of this role may have it."""
    item = rest_of(part, NAME, "native")
    kind = word(item)
    is_allowed = part["type"] == DATA and kind in NATIVE[role]
    return item if is_allowed and ("role" not in item or role is Role.SYSTEM) else None


def _say(step: Step, items: list[dict[str, Any]]) -> None:
    """Add the items of an assistant."""
    for block in step.blocks:
        if isinstance(block, Call):
            items.append(_call(block))
        elif block["type"] == TEXT:
            _say_text(block, items)
        elif item := _reasoning(block) if block["type"] == REASONING else _native(block, Role.ASSISTANT):
            items.append(item)
    while items and word(items[-1]) == REASONING:
        items.pop()


def _say_text(part: Part, items: list[dict[str, Any]]) -> None:
    rest, item = rest_of(part, NAME), rest_of(part, NAME, "item")
    if rest.get("list") is not True:
        items.append({**only(item, ("type", "phase")), "role": "assistant", "content": part["text"]})
        return
    content = {**without(rest_of(rest, "part"), "type", "text"), "type": "output_text", "text": part["text"]}
    if rest.get("is_refusal") is True:
        content = {**without(rest_of(rest, "part"), "type", "text"), "type": "refusal", "refusal": part["text"]}
    if rest.get("goes_on") is True and items and isinstance(items[-1].get("content"), list) and _is_said(items[-1]):
        items[-1]["content"].append(content)
        return
    items.append({**without(item, "role", "content"), "type": "message", "role": "assistant", "content": [content]})


def _is_said(item: Mapping[str, Any]) -> bool:
    return word(item) == "message" and word(item, "role") == "assistant"


def _reasoning(part: Part) -> dict[str, Any] | None:
    """An item of reasoning; None if OpenAI could not know it."""
    rest = rest_of(part, NAME, "item")
    text, signature = part.get("text"), part.get("signature")
    signed = {"encrypted_content": signature} if isinstance(signature, str) else {}
    if not signed and not isinstance(rest.get("id"), str):
        return None
    summary = [{"type": "summary_text", "text": text}] if isinstance(text, str) and text else []
    own = {"id": _reasoning_id(text, signature), "summary": summary}
    return {**own, **without(rest, "type", "role"), **signed, "type": "reasoning"}


def _reasoning_id(text: Any, signature: Any) -> str:
    return made_id("rs", f"{signature}\n{text}")


def _call(call: Call) -> dict[str, Any]:
    kind = _kind(call)
    rest = without(rest_of(call.part, NAME, "item"), "type", "role", "call_id", "name", "arguments", "input")
    return {**rest, "type": kind, "call_id": call.id, "name": call.name, CALLS[kind]: arguments_text(call.part)}


def _kind(call: Call) -> str:
    return "custom_tool_call" if rest_of(call.part, NAME).get("is_custom") is True else "function_call"


def _tool_item(block: Part | Call) -> dict[str, Any] | None:
    if not isinstance(block, Call):
        return _native(block, Role.TOOL)
    rest = without(rest_of(block.result or {}, NAME, "item"), "type", "role", "call_id", "output")
    return {**rest, "type": f"{_kind(block)}_output", "call_id": block.id, "output": _output(block)}


def _output(call: Call) -> str | list[dict[str, Any]]:
    content, is_error = result_of(call)
    blocks = None if is_error else blocks_of(content)
    if blocks is None:
        return result_text(call)
    return [each for block in blocks if (each := _content(block, Role.TOOL))]


def _paired(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items without native calls that have no output after them, and outputs without a call before them."""
    open_: dict[tuple[str, str], int] = {}
    alone: set[int] = set()
    for n, item in enumerate(items):
        kind = word(item)
        if kind in PAIRED:
            alone.add(n)
            open_[PAIRED[kind], f"{item.get('call_id')}"] = n
        elif kind in PAIRED.values():
            id_ = item.get("id" if kind == "local_shell_call_output" else "call_id")
            alone ^= {open_.pop((kind, f"{id_}"), n)}
    return [item for n, item in enumerate(items) if n not in alone]


# --- from OpenAI -------------------------------------------------------------------------------------------


def from_openai_responses(items: Iterable[Mapping[str, Any]]) -> list[NewMessage]:
    """Return the messages that items are, in linear time.

    What is no item is left out. Raises InvalidInput for what no message can hold.
    """
    messages: list[NewMessage] = []
    for role, group in groupby(objects(list(items)), _role_of):
        if role in (Role.ASSISTANT, Role.TOOL):
            messages += _message_of_run(role, list(group))
        elif role:
            messages += (message for item in group for message in _message_of(role, item))
    return messages


ROLES = {"user": Role.USER, "system": Role.SYSTEM, "developer": Role.SYSTEM, "assistant": Role.ASSISTANT}


def _role_of(item: Mapping[str, Any]) -> Role | None:
    """Whose item it is; None if nobody knows."""
    kind, role = word(item), word(item, "role")
    if kind in OUTPUTS | OF_TOOL:
        return Role.TOOL
    if kind in OF_SYSTEM:
        return Role.SYSTEM
    return ROLES.get(role) if role or kind in {"", "message"} else Role.ASSISTANT


def _message_of(role: Role, item: Mapping[str, Any]) -> list[NewMessage]:
    """The message of a user or of the system."""
    content = item.get("content")
    if word(item) in OF_SYSTEM:
        return new_message(role, parts=[_as_native(item)])
    rest = without(item, "content", *(() if word(item, "role") == "developer" else ("role",)))
    if isinstance(content, str):
        part = {"type": TEXT, "text": content, NAME: {"item": rest, "string": True}}
        return new_message(role, content, [part] if rest else [], external_id=short(item.get("id")))
    parts = [_part_of(each) for each in objects(content)]
    if parts and rest:
        parts[0] = {**parts[0], NAME: {**rest_of(parts[0], NAME), "item": rest}}
    return new_message(role, parts=parts, external_id=short(item.get("id")))


def _part_of(content: dict[str, Any]) -> Part:
    """A part of an input, such that it comes back as it was."""
    part = _neutral(content)
    return part if part and _content(part, None) == content else {"type": DATA, NAME: {"part": content}}


def _neutral(content: Mapping[str, Any]) -> Part | None:
    kind = word(content)
    if kind == "input_text":
        return with_rest({"type": TEXT, "text": content.get("text")}, NAME, {"part": without(content, "type", "text")})
    if kind not in {"input_image", "input_file"}:
        return None
    id_ = content.get("file_id")
    url = next((content[name] for name in ("image_url", "file_url", "file_data") if content.get(name)), None)
    media_type = ANY_IMAGE if kind == "input_image" and not f"{url}".startswith("data:") else None
    part = part_of(url=url, file_id=id_, media_type=media_type, name=content.get("filename"))
    rest = {name: value for name, value in content.items() if name == "prompt_cache_breakpoint" or value is None}
    if content.get("detail") not in {None, "auto"} or (kind == "input_file" and "detail" in content):
        rest["detail"] = content["detail"]
    return with_rest(part | ({"provider": OPENAI} if id_ else {}), NAME, {"part": rest})


def _message_of_run(role: Role, items: Sequence[dict[str, Any]]) -> list[NewMessage]:
    """The message of items that follow each other."""
    parts = [part for item in items for part in (_parts_said(item) if role is Role.ASSISTANT else [_result(item)])]
    ids = [item.get("id") for item in sorted(items, key=lambda item: not _is_said(item))]
    external_id = next((id_ for id_ in map(short, ids) if id_), None)
    if role is Role.ASSISTANT and len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return new_message(role, parts[0]["text"], external_id=external_id)
    return new_message(role, parts=parts, external_id=external_id)


def _parts_said(item: dict[str, Any]) -> list[Part]:
    kind = word(item)
    if kind in {"message", ""}:
        return _texts_said(item)
    if kind == REASONING:
        return [_reasoning_of(item)]
    if kind not in CALLS:
        return [_as_native(item)]
    is_custom = {"is_custom": True} if kind == "custom_tool_call" else {}
    arguments = item.get(CALLS[kind])
    call = {"type": CALL, "id": item.get("call_id"), "name": item.get("name")}
    call["arguments"] = from_text(arguments) if isinstance(arguments, str) else arguments
    return [with_rest(call, NAME, {"item": without(item, "type", "call_id", "name", CALLS[kind]), **is_custom})]


def _texts_said(item: Mapping[str, Any]) -> list[Part]:
    content = item.get("content")
    own = without(item, "role", "content")
    if isinstance(content, str):
        return [with_rest({"type": TEXT, "text": content}, NAME, {"item": own})]
    parts: list[Part] = []
    for each in objects(content):
        is_refusal = word(each) == "refusal"
        text = each.get("refusal" if is_refusal else "text")
        rest = {"list": True, "part": without(each, "type", "refusal" if is_refusal else "text")}
        rest |= {"is_refusal": True} if is_refusal else {}
        rest |= {"goes_on": True} if parts else {"item": without(own, "type")}
        parts.append(with_rest({"type": TEXT, "text": text}, NAME, rest))
    return parts


def _reasoning_of(item: Mapping[str, Any]) -> Part:
    summary, signature = item.get("summary"), item.get("encrypted_content")
    said = objects(summary) or objects(item.get("content"))
    text = "\n\n".join(each["text"] for each in said if isinstance(each.get("text"), str))
    part = {"type": REASONING, "text": text, "provider": OPENAI}
    rest = without(item, "type")
    if isinstance(signature, str):
        part["signature"] = signature
        del rest["encrypted_content"]
    if rest.get("id") == _reasoning_id(text, signature):
        del rest["id"]
    if summary == ([{"type": "summary_text", "text": text}] if text else []):
        del rest["summary"]
    return with_rest(part, NAME, {"item": rest})


def _result(item: dict[str, Any]) -> Part:
    if item["type"] not in OUTPUTS:
        return _as_native(item)
    output = item.get("output")
    fields = (
        result_from_text(output) if isinstance(output, str) else {"content": [_part_of(o) for o in objects(output)]}
    )
    part = {"type": RESULT, "tool_call_id": item.get("call_id"), **fields}
    return with_rest(part, NAME, {"item": without(item, "type", "call_id", "output")})


def _as_native(item: Mapping[str, Any]) -> Part:
    return {"type": DATA, NAME: {"native": dict(item)}}
