"""Messages of OpenAI's Chat Completions: `client.chat.completions.create(messages=to_openai_chat(messages))`.

So do servers such as vLLM, llama.cpp and OpenRouter speak. Consecutive messages of the role tool are one message, every
other is a message of its own. Reasoning that such a server gives as `reasoning_content` has the provider `openai-chat`.
The field `openai_chat` of a part has what only this form has: `message`, `call` and `part` are the other fields of the
message, of the call, and of the part of its content. Function calls as they were before tools are left out.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from chatkeep.formats.models.files import ANY_IMAGE, File, data_url, file_of, part_of
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
    new_message,
    objects,
    only,
    rest_of,
    result_from_text,
    result_of,
    result_text,
    steps,
    with_rest,
    without,
    word,
)
from chatkeep.model import Message, NewMessage, Role
from chatkeep.parts import TEXT, Part

NAME = "openai_chat"
OPENAI_CHAT = "openai-chat"
"""The provider of reasoning in this form."""
OPENAI = "openai"
"""The provider of files."""

FORM = Form(NAME, OPENAI_CHAT, OPENAI, longest_id=40, longest_name=64)

INPUTS = frozenset({"file", "image_url", "input_audio"})
AUDIO = {"audio/wav": "wav", "audio/mpeg": "mp3"}
MEDIA_TYPES = {format_: media_type for media_type, format_ in AUDIO.items()}
STRUCTURE = ("role", "content", "tool_calls", "function_call")
"""What a message of an assistant has from its parts only."""


def to_openai_chat(messages: Iterable[Message | NewMessage]) -> list[dict[str, Any]]:
    """Return the messages of a path, in linear time. They may share values with those given.

    System messages stand where they are.
    """
    return [message for step in steps(messages, FORM) for message in _messages(step)]


def _messages(step: Step) -> Iterator[dict[str, Any]]:
    if step.role is Role.TOOL:
        yield from (_tool(call) for call in step.blocks if isinstance(call, Call))
    elif step.is_plain:
        yield {"role": step.role.value, "content": step.message.content}
    elif message := _assistant(step) if step.role is Role.ASSISTANT else _input(step):
        yield message


def _input(step: Step) -> dict[str, Any] | None:
    """The message of a user or of the system."""
    parts = [block for block in step.blocks if isinstance(block, dict)]
    content = [each for part in parts if (each := _content(part, step.role))]
    if not content:
        return None
    rest = rest_of(parts[0], NAME)
    is_developer = step.role is Role.SYSTEM and rest.get("is_developer") is True
    is_string = rest.get("string") is True and len(content) == 1 and "text" in content[0]
    return {
        **only(rest_of(rest, "message"), ("name",)),
        "role": "developer" if is_developer else step.role.value,
        "content": content[0]["text"] if is_string else content,
    }


def _content(part: Part, role: Role | None) -> dict[str, Any] | None:
    """A part of the content of an input."""
    rest = rest_of(part, NAME, "part")
    given = only(rest, ("prompt_cache_breakpoint",))
    if part["type"] == TEXT:
        text = part.get("text")
        return {**given, "type": "text", "text": text} if text else None
    if role in (Role.SYSTEM, Role.TOOL):
        return None
    if part["type"] == DATA:
        return rest if word(rest) in INPUTS else None
    file = file_of(part)
    content = _file(file, rest) if file else None
    return {**given, **content} if content else None


def _file(file: File, rest: Mapping[str, Any]) -> dict[str, Any] | None:
    if file.kind == "image":
        return (
            {"type": "image_url", "image_url": {**only(rest, ("detail",)), "url": file.address}}
            if file.address
            else None
        )
    if file.data is not None and file.media_type in AUDIO:
        return {"type": "input_audio", "input_audio": {"data": file.data, "format": AUDIO[file.media_type]}}
    if file.url:
        return None  # there is no file by URL in this form
    where = {"file_id": file.id} if file.id else {"file_data": file.data_url}
    return {"type": "file", "file": {**where, **({"filename": file.name} if file.name else {})}}


def _assistant(step: Step) -> dict[str, Any] | None:
    first = step.blocks[0]
    rest = rest_of(first.part if isinstance(first, Call) else first, NAME)
    said = without(rest_of(rest, "message"), *STRUCTURE)
    calls = [_call(block) for block in step.blocks if isinstance(block, Call)]
    parts = [block for block in step.blocks if isinstance(block, dict)]
    if thought := "".join(part.get("text", "") for part in parts if part["type"] == REASONING):
        said["reasoning_content"] = thought
    said |= _texts([part for part in parts if part["type"] == TEXT])
    if not calls and not said.keys() & {"content", "refusal", "audio"}:
        return None
    has_content = "content" in said or rest.get("has_no_content") is not True
    return {
        **({"content": None} if has_content else {}),
        **said,
        "role": "assistant",
        **({"tool_calls": calls} if calls else {}),
    }


def _texts(parts: Sequence[Part]) -> dict[str, Any]:
    """The content of an assistant, or its refusal."""
    refusals = [part["text"] for part in parts if rest_of(part, NAME).get("is_refusal") is True]
    others = [part for part in parts if not {"is_refusal", "is_transcript"} & rest_of(part, NAME).keys()]
    refusal = {"refusal": "".join(refusals)} if refusals else {}
    if len(others) == 1 and rest_of(others[0], NAME).get("list") is not True:
        return {"content": others[0]["text"], **refusal}
    return {"content": [_text(part) for part in others], **refusal} if others else refusal


def _text(part: Part) -> dict[str, Any]:
    rest = without(rest_of(part, NAME, "part"), "type", "text", "refusal")
    kind = "refusal" if rest_of(part, NAME).get("refuses") is True else "text"
    return {**rest, "type": kind, kind: part["text"]}


def _call(call: Call) -> dict[str, Any]:
    rest = without(rest_of(call.part, NAME, "call"), "id", "type", "function", "custom")
    if rest_of(call.part, NAME).get("is_custom") is True:
        called = {"custom": {"name": call.name, "input": arguments_text(call.part)}, "type": "custom"}
    else:
        called = {"function": {"name": call.name, "arguments": arguments_text(call.part)}, "type": "function"}
    return {**rest, "id": call.id, **called}


def _tool(call: Call) -> dict[str, Any]:
    rest = without(rest_of(call.result or {}, NAME, "message"), *STRUCTURE, "tool_call_id")
    content, is_error = result_of(call)
    blocks = None if is_error else blocks_of(content)
    given = result_text(call) if blocks is None else [each for part in blocks if (each := _content(part, Role.TOOL))]
    return {**rest, "role": "tool", "tool_call_id": call.id, "content": given}


# --- from Chat Completions ---------------------------------------------------------------------------------

ROLES = {
    "user": Role.USER,
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "assistant": Role.ASSISTANT,
    "tool": Role.TOOL,
}


def from_openai_chat(messages: Iterable[Mapping[str, Any]]) -> list[NewMessage]:
    """Return the messages that those of Chat Completions are, in linear time.

    What is none is left out. Raises InvalidInput for what no message can hold.
    """
    result: list[NewMessage] = []
    for role, group in groupby(objects(list(messages)), _role_of):
        if role is Role.TOOL:
            result += new_message(role, parts=[_result(message) for message in group])
        elif role:
            make = _from_assistant if role is Role.ASSISTANT else _from_input
            result += (made for message in group for made in make(role, message))
    return result


def _role_of(message: Mapping[str, Any]) -> Role | None:
    role = word(message, "role")
    return ROLES.get(role)


def _from_input(role: Role, message: Mapping[str, Any]) -> list[NewMessage]:
    content = message.get("content")
    rest: dict[str, Any] = {"message": without(message, "role", "content")}
    rest |= {"is_developer": True} if message["role"] == "developer" else {}
    if isinstance(content, str):
        part = with_rest({"type": TEXT, "text": content}, NAME, rest)
        return new_message(role, content, [{**part, NAME: {**part[NAME], "string": True}}] if NAME in part else [])
    parts = [_part_of(each) for each in objects(content)]
    if parts:
        parts[0] = with_rest(parts[0], NAME, {**rest_of(parts[0], NAME), **rest})
    return new_message(role, parts=parts)


def _part_of(content: dict[str, Any]) -> Part:
    """A part of an input, such that it comes back as it was."""
    part = _neutral(content)
    return part if part and _content(part, None) == content else {"type": DATA, NAME: {"part": content}}


def _neutral(content: Mapping[str, Any]) -> Part | None:
    kind = word(content)
    rest = only(content, ("prompt_cache_breakpoint",))
    if kind == "text":
        return with_rest({"type": TEXT, "text": content.get("text")}, NAME, {"part": rest})
    if kind not in INPUTS:
        return None
    within = rest_of(content, kind)
    if kind == "image_url":
        url = within.get("url")
        media_type = None if f"{url}".startswith("data:") else ANY_IMAGE
        return with_rest(part_of(url=url, media_type=media_type), NAME, {"part": {**rest, **only(within, ("detail",))}})
    if kind == "input_audio":
        media_type = MEDIA_TYPES.get(f"{within.get('format')}", "")
        return with_rest(part_of(url=data_url(media_type, f"{within.get('data')}")), NAME, {"part": rest})
    part = part_of(url=within.get("file_data"), file_id=within.get("file_id"), name=within.get("filename"))
    return with_rest(part | ({"provider": OPENAI} if "file_id" in part else {}), NAME, {"part": rest})


def _from_assistant(role: Role, message: Mapping[str, Any]) -> list[NewMessage]:
    parts = [*_thoughts(message), *_texts_said(message), *_calls_of(message)]
    rest: dict[str, Any] = {"message": without(message, *STRUCTURE, "reasoning_content")}
    if isinstance(message.get("refusal"), str):
        del rest["message"]["refusal"]
    rest |= {"has_no_content": True} if "content" not in message else {}
    if not parts and any(value is not None for value in rest["message"].values()):
        parts = [{"type": DATA}]
    if parts:
        parts[0] = with_rest(parts[0], NAME, {**rest_of(parts[0], NAME), **rest})
    if len(parts) == 1 and parts[0].keys() == {"type", "text"} and isinstance(message.get("content"), str):
        return new_message(role, parts[0]["text"])
    return new_message(role, parts=parts)


def _thoughts(message: Mapping[str, Any]) -> list[Part]:
    text = message.get("reasoning_content")
    return [{"type": REASONING, "text": text, "provider": OPENAI_CHAT}] if isinstance(text, str) and text else []


def _texts_said(message: Mapping[str, Any]) -> list[Part]:
    content, refusal = message.get("content"), message.get("refusal")
    parts: list[Part] = []
    if isinstance(content, str) and content:
        parts.append({"type": TEXT, "text": content})
    elif content is not None:
        parts += map(_text_of, objects(content))
        if len(parts) == 1:
            parts[0] = with_rest(parts[0], NAME, {**rest_of(parts[0], NAME), "list": True})
    if isinstance(refusal, str) and refusal:
        parts.append({"type": TEXT, "text": refusal, NAME: {"is_refusal": True}})
    transcript = rest_of(message, "audio").get("transcript")
    if not parts and isinstance(transcript, str) and transcript:
        parts.append({"type": TEXT, "text": transcript, NAME: {"is_transcript": True}})
    return parts


def _text_of(content: Mapping[str, Any]) -> Part:
    kind = "refusal" if word(content) == "refusal" else "text"
    rest = {"part": without(content, "type", kind), **({"refuses": True} if kind == "refusal" else {})}
    return with_rest({"type": TEXT, "text": content.get(kind)}, NAME, rest)


def _calls_of(message: Mapping[str, Any]) -> Iterator[Part]:
    for call in objects(message.get("tool_calls")):
        is_custom = word(call) == "custom"
        called = rest_of(call, "custom" if is_custom else "function")
        arguments = called.get("input" if is_custom else "arguments")
        part = {"type": CALL, "id": call.get("id"), "name": called.get("name")}
        part["arguments"] = from_text(arguments) if isinstance(arguments, str) else arguments
        rest = {"call": without(call, "id", "type", "function", "custom")}
        yield with_rest(part, NAME, {**rest, **({"is_custom": True} if is_custom else {})})


def _result(message: Mapping[str, Any]) -> Part:
    content = message.get("content")
    fields = (
        result_from_text(content) if isinstance(content, str) else {"content": [_part_of(c) for c in objects(content)]}
    )
    part = {"type": RESULT, "tool_call_id": message.get("tool_call_id"), **fields}
    return with_rest(part, NAME, {"message": without(message, "role", "content", "tool_call_id")})
