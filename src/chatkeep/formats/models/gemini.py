"""Contents of Gemini: `client.models.generate_content(contents=prompt.contents, config={"system_instruction": …})`.

They are as in its JSON: names in camel case, bytes in base64. Contents of one side that follow each other are one. The
system's texts are apart from them, wherever they stood. The responses in a content of a user are a message of the role
tool, before what the user says. The field `gemini` of a part has the other fields of its part there, with those of a
`functionCall` or `functionResponse` below that name, and for the type `data` a whole part.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from chatkeep.formats.models.files import WEB, data_url, file_of, is_base64, part_of
from chatkeep.formats.models.steps import (
    CALL,
    DATA,
    FILE,
    REASONING,
    RESULT,
    Call,
    Form,
    Step,
    arguments_object,
    arguments_of,
    blocks_of,
    is_blank,
    new_message,
    objects,
    only,
    rest_of,
    result_of,
    steps,
    with_rest,
    without,
)
from chatkeep.model import Message, NewMessage, Role
from chatkeep.parts import TEXT, Part

NAME = "gemini"
GOOGLE = "google"
"""The provider of reasoning and files."""

FORM = Form(NAME, GOOGLE, GOOGLE, takes_blank=True)
SCHEMES = (*WEB, "gs://")

CALLED, ANSWERED, SIGNATURE = "functionCall", "functionResponse", "thoughtSignature"
KINDS = frozenset(
    {
        *(CALLED, ANSWERED, "text", "inlineData", "fileData"),
        *("executableCode", "codeExecutionResult", "toolCall", "toolResponse"),
    }
)
"""The fields that say what a part is."""
NATIVE = {
    Role.ASSISTANT: frozenset(
        {"executableCode", "codeExecutionResult", "toolCall", "toolResponse", "inlineData", "fileData"}
    ),
    Role.USER: frozenset({"inlineData", "fileData"}),
}
"""What a whole part that only this form has may be."""
OF_USER = ("mediaProcessing", "mediaResolution", "partMetadata", "speechMetadata", "videoMetadata")
"""The other fields that a part of a user may have."""


class Prompt(NamedTuple):
    """What Gemini is given."""

    system: str | None
    """The system's text; None without any."""
    contents: list[dict[str, Any]]


def to_gemini(messages: Iterable[Message | NewMessage]) -> Prompt:
    """Return the system's text and the contents of a path, in linear time. They may share values with the messages."""
    system: list[str] = []
    contents: list[dict[str, Any]] = []
    for step in steps(messages, FORM):
        if step.role is Role.SYSTEM:
            system += (part["text"] for part in step.blocks if isinstance(part, dict) and part["type"] == TEXT)
        else:
            _add(contents, "model" if step.role is Role.ASSISTANT else "user", _parts(step))
    return Prompt("\n\n".join(system) or None, contents)


def _add(contents: list[dict[str, Any]], role: str, parts: list[dict[str, Any]]) -> None:
    """Add a content, to the last one if that has the same role."""
    if parts and contents and contents[-1]["role"] == role:
        contents[-1]["parts"] += parts
    elif parts:
        contents.append({"role": role, "parts": parts})


def _parts(step: Step) -> list[dict[str, Any]]:
    make = _response if step.role is Role.TOOL else _call
    parts = [make(each) if isinstance(each, Call) else _part(each, step.role) for each in step.blocks]
    return [part for part in parts if part]


def _part(part: Part, role: Role) -> dict[str, Any] | None:
    rest = _rest(part, role)
    if part["type"] == TEXT:
        return {**rest, "text": part["text"]} if SIGNATURE in rest or not is_blank(part["text"]) else None
    if part["type"] == REASONING:
        signature = part.get("signature")
        signed = {SIGNATURE: signature} if is_base64(signature) else {}
        return {**rest, "text": part.get("text", ""), "thought": True, **signed} if signed or part.get("text") else None
    if part["type"] == DATA:
        whole = rest_of(part, NAME)
        kinds = whole.keys() & KINDS
        return whole if len(kinds) == 1 and kinds <= NATIVE.get(role, frozenset()) and "thought" not in whole else None
    file = _file(part)
    return {**rest, **file} if file else None


def _rest(part: Part, role: Role) -> dict[str, Any]:
    rest = rest_of(part, NAME)
    if role is not Role.ASSISTANT:
        return only(rest, OF_USER)
    return {name: value for name, value in rest.items() if _may_be(name, value)}


def _may_be(name: str, value: Any) -> bool:
    """Whether a part of a model may have a field beside the one that says what it is."""
    return name not in KINDS and name != "thought" and (name != SIGNATURE or is_base64(value))


def _file(part: Part) -> dict[str, Any] | None:
    file = file_of(part, SCHEMES)
    if not file or file.id:
        return None  # Gemini knows its files by their addresses
    more = {"displayName": file.name} if file.name else {}
    if file.data is not None:
        return {"inlineData": {"mimeType": file.media_type, "data": file.data, **more}}
    return {"fileData": {"fileUri": file.url, **({"mimeType": file.media_type} if file.media_type else {}), **more}}


def _call(call: Call) -> dict[str, Any]:
    part = call.part
    id_ = {"id": call.id} if part.get("id") else {}
    args = {"args": arguments_object(part)} if part.get("arguments") is not None else {}
    rest = without(rest_of(part, NAME, CALLED), "id", "name", "args")
    return {**_rest(part, Role.ASSISTANT), CALLED: {**rest, **id_, "name": call.name, **args}}


def _response(call: Call) -> dict[str, Any]:
    result: Part = call.result or {}
    id_ = {"id": call.id} if call.part.get("id") else {}
    rest = without(rest_of(result, NAME, ANSWERED), "id", "name", "response")
    content, is_error = result_of(call)
    is_whole = rest_of(result, NAME).get("is_whole") is True
    own = {"name": call.name, **_said(content, is_error=is_error, is_whole=is_whole)}
    return {**only(rest_of(result, NAME), OF_USER), ANSWERED: {**rest, **id_, **own}}


def _said(content: Any, *, is_error: bool, is_whole: bool) -> dict[str, Any]:
    """The response, and the files that it has beside it."""
    if is_error:
        return {"response": {"error": content}}
    if is_whole and isinstance(content, dict):
        return {"response": content}
    files = [file for part in blocks_of(content) or () if part["type"] == FILE and (file := _file(part))]
    if not files:
        return {"response": {"output": content}}
    texts = [part.get("text") for part in content if part["type"] == TEXT]
    return {"response": {"output": texts}, "parts": files}


# --- from Gemini -------------------------------------------------------------------------------------------


def from_gemini(
    contents: Iterable[Mapping[str, Any]], system: str | Mapping[str, Any] | None = None
) -> list[NewMessage]:
    """Return the messages that a system instruction and contents are, in linear time.

    What is no content is left out. Raises InvalidInput for what no message can hold.
    """
    result: list[NewMessage] = []
    if system:
        parts = [{"text": system}] if isinstance(system, str) else objects(system.get("parts"))
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        result += new_message(Role.SYSTEM, "\n\n".join(texts))
    for content in objects(list(contents)):
        parts = objects(content.get("parts"))
        result += _message(Role.ASSISTANT, parts) if content.get("role") == "model" else _from_user(parts)
    return result


def _from_user(parts: list[dict[str, Any]]) -> Iterator[NewMessage]:
    yield from new_message(Role.TOOL, parts=[_result_of(part) for part in parts if ANSWERED in part])
    yield from _message(Role.USER, [part for part in parts if ANSWERED not in part])


def _message(role: Role, given: list[dict[str, Any]]) -> list[NewMessage]:
    parts = [_part_of(part, role) for part in given]
    if len(parts) == 1 and parts[0].keys() == {"type", "text"} and isinstance(parts[0]["text"], str):
        return new_message(role, parts[0]["text"])
    return new_message(role, parts=parts)


def _part_of(given: dict[str, Any], role: Role) -> Part:
    """The part of one of Gemini's, such that it comes back as it was."""
    part = _neutral(given, role)
    return part if part and (part["type"] == CALL or _part(part, role) == given) else {"type": DATA, NAME: given}


def _neutral(given: dict[str, Any], role: Role) -> Part | None:
    if CALLED in given and role is Role.ASSISTANT:
        return _call_of(given)
    if given.get("thought") is True and role is Role.ASSISTANT:
        part = {"type": REASONING, "text": given.get("text"), "provider": GOOGLE}
        part |= {"signature": given[SIGNATURE]} if SIGNATURE in given else {}
        return with_rest(part, NAME, without(given, "text", "thought", SIGNATURE)) if "text" in given else None
    if isinstance(given.get("text"), str):
        return with_rest({"type": TEXT, "text": given["text"]}, NAME, without(given, "text"))
    inline, file = rest_of(given, "inlineData"), rest_of(given, "fileData")
    rest = without(given, "inlineData", "fileData")
    if inline:
        media_type, name = f"{inline.get('mimeType')}", inline.get("displayName")
        part = part_of(url=data_url(media_type, f"{inline.get('data')}"), media_type=media_type, name=name)
        return with_rest(part, NAME, rest)
    part = part_of(url=file.get("fileUri"), media_type=file.get("mimeType"), name=file.get("displayName"))
    return with_rest(part, NAME, rest) if file else None


def _call_of(given: Mapping[str, Any]) -> Part:
    call = rest_of(given, CALLED)
    part: Part = {"type": CALL, **only(call, ("id",)), "name": call.get("name")}
    part |= {"arguments": arguments_of(call["args"])} if "args" in call else {}
    return with_rest(part, NAME, {**without(given, CALLED), CALLED: without(call, "id", "name", "args")})


def _result_of(given: Mapping[str, Any]) -> Part:
    answer = rest_of(given, ANSWERED)
    part: Part = {"type": RESULT}
    part |= {"tool_call_id": answer["id"]} if answer.get("id") else {"name": answer.get("name")}
    response = answer.get("response")
    if isinstance(response, dict) and response.keys() == {"output"}:
        part["content"] = response["output"]
    elif isinstance(response, dict) and response.keys() == {"error"}:
        part |= {"content": response["error"], "is_error": True}
    else:
        part["content"] = response
    is_whole = {"is_whole": True} if "is_error" not in part and part["content"] is response else {}
    rest = {**without(given, ANSWERED), ANSWERED: without(answer, "id", "name", "response")}
    return with_rest(part, NAME, {**rest, **is_whole})
