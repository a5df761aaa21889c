"""Messages of pydantic-ai: `agent.run(question, message_history=to_pydantic_ai(messages, provider="anthropic"))`.

A request is a message of the system, of the role tool and of a user, in its order, and a response one of an assistant.
Instructions are a message of the system where they change. The field `pydantic_ai` of a part has what only this form
has: `message` and `part` are the other fields of the message and of its part, `native` is a whole part. Not kept:
`force_download`, which would let whoever wrote a message have this machine fetch addresses, and `identifier`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import ValidationError

from chatkeep.formats.models.files import data_url, file_of, part_of
from chatkeep.formats.models.steps import (
    CALL,
    DATA,
    FILE,
    NO_OBJECT,
    REASONING,
    RESULT,
    Call,
    Form,
    Step,
    arguments_of,
    blocks_of,
    count,
    new_message,
    only,
    rest_of,
    result_of,
    says_something,
    short,
    steps,
    with_rest,
    without,
    word,
)
from chatkeep.model import Message, NewMessage, Role, Status
from chatkeep.parts import TEXT, Part
from chatkeep.values import EPOCH

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

NAME = "pydantic_ai"
ANY = "any"
"""Reasoning of every provider, to store messages or to compare them. Not for a model: another's may be sent as text."""

UNKNOWN_TYPE = "application/octet-stream"
"""The media type of a file of which none is known."""

DEFAULTS: dict[str, Any] = {
    "content_file_digests": [],
    "outcome": "success",
    "scope": "conversation",
    "state": "complete",
    "force_download": False,
}
"""Fields that need not be kept; so do those that are null."""

OF_REQUEST = ("timestamp", "run_id", "conversation_id", "metadata", "state")
OF_SYSTEM = ("context_id", "dynamic_ref", "metadata", "scope", "timestamp")
OF_RESULT = ("metadata", "outcome", "retry", "timestamp", "tool_kind")
ERRORS = frozenset({"denied", "failed", "interrupted", "retried"})
URLS = {"image": "image-url", "audio": "audio-url", "video": "video-url"}
MEDIA = frozenset({*URLS.values(), "document-url", "binary", "uploaded-file"})
KINDS_OF_URLS = frozenset({*URLS.values(), "document-url"})
UPLOADED = frozenset({"anthropic", "bedrock", "google", "google-cloud", "google-gla", "google-vertex", "openai", "xai"})
"""The providers whose files pydantic-ai takes by their ids."""
OF_USER_CONTENT = frozenset({"cache-point", "structured-content", "text-content"})
NATIVE = {
    Role.USER: frozenset({"speech"}),
    Role.SYSTEM: frozenset(
        {
            "capability-load-delta",
            "compaction",
            "instruction-baseline",
            "instruction-delta",
            "model-settings-delta",
            "retry-feedback",
            "tool-availability-delta",
        }
    ),
    Role.ASSISTANT: frozenset({"builtin-tool-call", "builtin-tool-return", "compaction", "file", "speech"}),
    Role.TOOL: frozenset[str](),
}
"""The kinds of whole parts that a message of a role may have."""


def to_pydantic_ai(messages: Iterable[Message | NewMessage], *, provider: str | None = None) -> "list[ModelMessage]":
    """Return the messages of a path, in linear time.

    `provider` is the name of the one that they are for, such as `anthropic`: only its reasoning and files are given,
    because pydantic-ai sends the reasoning of others as text. None: no reasoning; ANY: that of all. A time that is not
    known is 1970.
    """
    form = Form(
        NAME, {None: "", ANY: None}.get(provider, provider), None if provider == ANY else provider, takes_blank=True
    )
    groups = _groups(steps(messages, form))
    return [message for group in groups if (message := _message(group, form))]


class _Group(NamedTuple):
    """The steps of one message of pydantic-ai."""

    steps: list[Step]
    instructions: str | None
    """Those of the system before it."""


def _groups(given: Iterable[Step]) -> Iterator[_Group]:
    """Steps that are one response, or one request."""
    request: list[Step] = []
    instructions: str | None = None
    for step in given:
        told = _instructions(step)
        if step.role is Role.ASSISTANT or told or _begins(step):
            if request:
                yield _Group(request, instructions)
            request = []
        if told:
            instructions = told
        elif step.role is Role.ASSISTANT:
            yield _Group([step], None)
        else:
            request.append(step)
    if request:
        yield _Group(request, instructions)


def _instructions(step: Step) -> str | None:
    """The instructions that a message of the system is."""
    first = step.blocks[0]
    if step.role is not Role.SYSTEM or isinstance(first, Call) or rest_of(first, NAME).get("instructions") is not True:
        return None
    return first.get("text")


def _begins(step: Step) -> bool:
    return bool(rest_of(_first(step), NAME, "message"))


def _first(step: Step) -> Part:
    """The first part of a step."""
    first = step.blocks[0]
    if not isinstance(first, Call):
        return first
    return first.part if step.role is Role.ASSISTANT else first.result or {}


def _message(group: _Group, form: Form) -> "ModelMessage | None":
    """The message of a group; without what only this form has if that is not valid."""
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    make = _response if group.steps[0].role is Role.ASSISTANT else _request
    for writer in (_Writer(form, NAME), _Writer(form, None)):
        message = make(group, writer)
        try:
            return ModelMessagesTypeAdapter.validate_python([message])[0] if message["parts"] else None
        except ValidationError:
            if writer.name is None:
                raise
    return None


def _request(group: _Group, writer: "_Writer") -> dict[str, Any]:
    rest = writer.rest(_first(group.steps[0]), "message")
    is_instructed = rest.get("instructed") is True and group.instructions is not None
    return {
        **only(rest, OF_REQUEST),
        "kind": "request",
        "parts": [part for step in group.steps for part in writer.request(step)],
        **({"instructions": group.instructions} if is_instructed else {}),
    }


def _response(group: _Group, writer: "_Writer") -> dict[str, Any]:
    (step,) = group.steps
    said = step.message
    rest = writer.rest(_first(step), "message")
    counts = {name: n for name in ("input_tokens", "output_tokens") if (n := getattr(said, name)) and not step.goes_on}
    return {
        **without(rest, "usage"),
        "kind": "response",
        "parts": [part for block in step.blocks if (part := writer.said(block))],
        "model_name": said.model,
        "timestamp": _time(said),
        "usage": {**rest_of(rest, "usage"), **counts},
    }


def _time(message: Message | NewMessage | None) -> datetime:
    if message is None:
        return EPOCH
    return message.sent_at or (message.created_at if isinstance(message, Message) else EPOCH)


class _Writer:
    """Writes parts, with what only this form has or without."""

    def __init__(self, form: Form, name: str | None) -> None:
        self.form, self.name = form, name

    def rest(self, part: Mapping[str, Any], key: str) -> dict[str, Any]:
        """Return what only this form has of a part."""
        return rest_of(part, self.name, key) if self.name else {}

    def native(self, part: Part, kinds: Iterable[str], field: str = "part_kind") -> list[dict[str, Any]]:
        """Return a whole part, if it may be here."""
        native = self.rest(part, "native")
        return [native] if word(native, field) in [*kinds] else []

    def request(self, step: Step) -> Iterator[dict[str, Any]]:
        """Yield the parts of a request."""
        if step.role is Role.TOOL:
            yield from (self.result(call) for call in step.blocks if isinstance(call, Call))
            return
        parts = [block for block in step.blocks if isinstance(block, dict)]
        yield from (native for part in parts for native in self.native(part, NATIVE[step.role]))
        if step.role is Role.SYSTEM:
            yield from (self.system(part, step.message) for part in parts if part["type"] == TEXT and part["text"])
        elif content := self.prompt(step, parts):
            yield {"part_kind": "user-prompt", "content": content, "timestamp": _time(step.message)}

    def system(self, part: Part, message: Message | NewMessage) -> dict[str, Any]:
        """Return a text of the system."""
        rest = only(self.rest(part, "part"), OF_SYSTEM)
        return {"timestamp": _time(message), **rest, "part_kind": "system-prompt", "content": part["text"]}

    def prompt(self, step: Step, parts: Sequence[Part]) -> str | list[Any]:
        """Return what a user says."""
        if step.is_plain:
            return step.message.content
        content = [each for part in parts for each in self.content(part)]
        is_string = bool(self.name) and rest_of(parts[0], NAME).get("string") is True
        return content[0] if is_string and len(content) == 1 and isinstance(content[0], str) else content

    def content(self, part: Part) -> list[Any]:
        """Return a piece of what a user says or a tool returns, in a list."""
        native = self.native(part, OF_USER_CONTENT, "kind")
        if part["type"] == TEXT:
            text = part.get("text")
            return [{**native[0], "content": text}] if native else [text] if isinstance(text, str) and text else []
        return self.media(part) if part["type"] == FILE else native

    def media(self, part: Part) -> list[dict[str, Any]]:
        """Return a file, in a list."""
        rest = self.rest(part, "part")
        file = file_of(part)
        given = only(rest, ("vendor_metadata",))
        if file is None:
            return []
        media_type = file.media_type or UNKNOWN_TYPE
        if file.id:
            provider = word(part, "provider") or self.form.files_of
            ids = {"kind": "uploaded-file", "file_id": file.id, "provider_name": provider}
            return [{**given, **ids, "media_type": media_type}] if provider in UPLOADED else []
        if file.data is not None:
            return [{**given, "kind": "binary", "data": file.data, "media_type": media_type}]
        kind = word(rest, "kind") if word(rest, "kind") in KINDS_OF_URLS else URLS.get(file.kind, "document-url")
        return [{**given, "kind": kind, "url": file.url, "media_type": media_type}]

    def said(self, block: Part | Call) -> dict[str, Any] | None:
        """Return a part of a response."""
        if isinstance(block, Call):
            return self.call(block)
        rest = self.rest(block, "part")
        match block["type"]:
            case "text":
                return {**rest, "part_kind": "text", "content": block["text"]} if block["text"] or rest else None
            case "reasoning":
                return self.thinking(block, rest)
            case "file":
                media = [each for each in self.media(block) if each["kind"] == "binary"]
                return {**rest, "part_kind": "file", "content": media[0]} if media else None
        return next(iter(self.native(block, NATIVE[Role.ASSISTANT])), None)

    def thinking(self, part: Part, rest: dict[str, Any]) -> dict[str, Any]:
        """Return reasoning."""
        own = {"signature": part.get("signature"), "provider_name": part.get("provider")}
        own = {name: value for name, value in own.items() if isinstance(value, str)}
        return {**rest, "part_kind": "thinking", "content": part.get("text", ""), **own}

    def call(self, call: Call) -> dict[str, Any]:
        """Return a call."""
        arguments = call.part.get("arguments")
        args = arguments if isinstance(arguments, dict | str | None) else {NO_OBJECT: arguments}
        own = {"part_kind": "tool-call", "tool_name": call.name, "tool_call_id": call.id, "args": args}
        return {**self.rest(call.part, "part"), **own}

    def result(self, call: Call) -> dict[str, Any]:
        """Return a result."""
        content, is_error = result_of(call)
        rest = only(self.rest(call.result or {}, "part"), OF_RESULT)
        outcome = word(rest, "outcome")
        failed = "interrupted" if call.result is None else outcome if outcome in ERRORS else "failed"
        return {
            "timestamp": _time(call.by),
            **rest,
            "part_kind": "tool-return",
            "tool_name": call.name,
            "tool_call_id": call.id,
            "content": self.returned(content),
            "outcome": failed if is_error else "success",
        }

    def returned(self, content: Any) -> Any:
        """Return what a tool returned."""
        blocks = blocks_of(content)
        if blocks is None or not any(block["type"] == FILE for block in blocks):
            return content
        return [each for block in blocks for each in self.content(block)]


# --- from pydantic-ai --------------------------------------------------------------------------------------


def from_pydantic_ai(messages: "Sequence[ModelMessage]") -> list[NewMessage]:
    """Return the messages that those of pydantic-ai are, in linear time.

    Raises InvalidInput for what no message can hold.
    """
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    result: list[NewMessage] = []
    instructions, was_request, was_response = None, False, False
    for message in ModelMessagesTypeAdapter.dump_python(list(messages), mode="json"):
        if message["kind"] == "response":
            result += (said := _from_response(message))
            was_request, was_response = False, bool(said)
        else:
            told = message.get("instructions") or None
            if told and told != instructions:
                instructions = told
                part = {"type": TEXT, "text": told, NAME: {"instructions": True}}
                # Nothing may stand between calls and their results.
                at = len(result) - (was_response and _is_return(message))
                result[at:at] = new_message(Role.SYSTEM, parts=[part])
            result += _from_request(message, follows_request=was_request)
            was_request, was_response = True, False
    return result


def _is_return(message: Mapping[str, Any]) -> bool:
    return any(part["part_kind"] == "tool-return" for part in message["parts"])


def _kept(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """The fields that are not as they are by default, without those of these names."""
    return {
        name: value
        for name, value in values.items()
        if name not in names and value is not None and value != DEFAULTS.get(name)
    }


ROLES = {"user-prompt": Role.USER, "speech": Role.USER, "tool-return": Role.TOOL}


def _role_of(part: Mapping[str, Any]) -> Role:
    return ROLES.get(part["part_kind"], Role.SYSTEM)


def _from_request(message: Mapping[str, Any], *, follows_request: bool) -> Iterator[NewMessage]:
    rest = _kept(message, "kind", "parts", "instructions")
    rest |= {"new": True} if follows_request else {}
    rest |= {"instructed": True} if message.get("instructions") else {}
    for role, parts in _runs(message["parts"]):
        sent_at = _sent_at(parts[0])
        own = [each for part in parts for each in _parts_of(part, parts[0].get("timestamp"))]
        if rest and own and (role is Role.TOOL or any(map(says_something, own))):
            own[0] = with_rest(own[0], NAME, {**rest_of(own[0], NAME), "message": rest})
            rest = {}
        if len(own) == 1 and rest_of(own[0], NAME) == {"string": True}:
            yield from new_message(role, own[0]["text"], sent_at=sent_at)
        else:
            yield from new_message(role, parts=own, sent_at=sent_at)


def _runs(parts: Iterable[dict[str, Any]]) -> Iterator[tuple[Role, list[dict[str, Any]]]]:
    """The parts of a request that are one message each: results together, others alone."""
    for role, group in groupby(parts, _role_of):
        if role is Role.TOOL:
            yield role, list(group)
        else:
            yield from ((role, [part]) for part in group)


def _sent_at(part: Mapping[str, Any]) -> str | None:
    sent_at = part.get("timestamp")
    return None if sent_at is None or datetime.fromisoformat(sent_at) == EPOCH else sent_at


def _parts_of(part: dict[str, Any], timestamp: str | None) -> list[Part]:
    """The parts of a part of a request, in a message with a time."""
    match part["part_kind"]:
        case "system-prompt":
            rest = {"part": _kept(part, "content", "part_kind", "timestamp"), "string": True}
            return [{"type": TEXT, "text": part["content"], NAME: {k: v for k, v in rest.items() if v != {}}}]
        case "user-prompt" if isinstance(part["content"], str):
            return [{"type": TEXT, "text": part["content"], NAME: {"string": True}}]
        case "user-prompt":
            return [_content_of(each) for each in part["content"]]
        case "tool-return":
            return [_result_of(part, timestamp)]
    return [{"type": DATA, NAME: {"native": part}}]


def _content_of(content: Any) -> Part:
    if isinstance(content, str):
        return {"type": TEXT, "text": content}
    kind = word(content, "kind")
    if kind in MEDIA:
        return _media_of(content)
    if kind == "text-content":
        return {"type": TEXT, "text": content["content"], NAME: {"native": _kept(content)}}
    return {"type": DATA, NAME: {"native": content}}


def _media_of(content: Mapping[str, Any]) -> Part:
    media_type = content.get("media_type")
    url, kind = content.get("url"), content["kind"]
    if kind == "binary":
        url = data_url(f"{media_type}", f"{content.get('data')}")
    part = part_of(
        url=url, file_id=content.get("file_id"), media_type=None if media_type == UNKNOWN_TYPE else media_type
    )
    if kind == "uploaded-file":
        part["provider"] = content.get("provider_name")
    rest = only(_kept(content), ("vendor_metadata",))
    if kind in KINDS_OF_URLS and kind != URLS.get(f"{media_type}".partition("/")[0], "document-url"):
        rest["kind"] = kind
    return with_rest(part, NAME, {"part": rest})


def _result_of(part: Mapping[str, Any], timestamp: str | None) -> Part:
    own: Part = {"type": RESULT, "tool_call_id": part["tool_call_id"], "content": _returned(part["content"])}
    is_error = part.get("outcome") in ERRORS
    own |= {"is_error": True} if is_error else {}
    rest = _kept(part, "content", "part_kind", "tool_call_id", "tool_name")
    if rest.get("outcome") == "failed":
        del rest["outcome"]
    if rest.get("timestamp") == timestamp:
        rest.pop("timestamp", None)
    return with_rest(own, NAME, {"part": rest})


def _returned(content: Any) -> Any:
    """What a tool returned; as parts if files are among texts."""
    is_list = isinstance(content, list) and all(isinstance(each, str) or _is_media(each) for each in content)
    return [_content_of(each) for each in content] if is_list and any(map(_is_media, content)) else content


def _is_media(value: Any) -> bool:
    return isinstance(value, dict) and word(value, "kind") in MEDIA and file_of(_media_of(value)) is not None


def _from_response(message: Mapping[str, Any]) -> list[NewMessage]:
    parts = [_said_of(part) for part in message["parts"]]
    usage = rest_of(message, "usage")
    rest = _kept(message, "kind", "parts", "model_name", "timestamp", "usage")
    more = {name: value for name, value in usage.items() if value and name not in {"input_tokens", "output_tokens"}}
    rest |= {"usage": more} if more else {}
    if parts and rest:
        parts[0] = with_rest(parts[0], NAME, {**rest_of(parts[0], NAME), "message": rest})
    known: dict[str, Any] = {
        "model": short(message.get("model_name")),
        "external_id": short(message.get("provider_response_id")),
        "input_tokens": count(usage.get("input_tokens")) or None,
        "output_tokens": count(usage.get("output_tokens")) or None,
        "status": Status.INTERRUPTED if message.get("state") == "interrupted" else None,
        "sent_at": _sent_at(message),
    }
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        return new_message(Role.ASSISTANT, parts[0]["text"], **known)
    return new_message(Role.ASSISTANT, parts=parts, **known)


def _said_of(part: Mapping[str, Any]) -> Part:
    rest = _kept(part, "part_kind", "content")
    match part["part_kind"]:
        case "text":
            return with_rest({"type": TEXT, "text": part["content"]}, NAME, {"part": rest})
        case "thinking":
            own = {"signature": rest.pop("signature", None), "provider": rest.pop("provider_name", None)}
            known = {name: value for name, value in own.items() if value is not None}
            return with_rest({"type": REASONING, "text": part["content"], **known}, NAME, {"part": rest})
        case "tool-call":
            own = {"id": part["tool_call_id"], "name": part["tool_name"]}
            own |= {"arguments": arguments_of(part["args"])} if part["args"] is not None else {}
            return with_rest({"type": CALL, **own}, NAME, {"part": without(rest, "args", "tool_call_id", "tool_name")})
        case "file":
            return with_rest(_media_of(part["content"]), NAME, {"part": rest})
    return {"type": DATA, NAME: {"native": dict(part)}}
