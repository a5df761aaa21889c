"""A path as the steps that every provider takes: each call with one result, and nobody speaking as somebody else."""

import hashlib
import re
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from chatkeep.errors import InvalidInput
from chatkeep.model import Message, NewMessage, Role, Status
from chatkeep.parts import TEXT, Part
from chatkeep.values import MAX_PARTS, MAX_SHORT_TEXT_CHARS, copy_json, json_text, parse_json

REASONING, CALL, RESULT, FILE, DATA = "reasoning", "tool_call", "tool_result", "file", "data"

INTERRUPTED = "The call was interrupted. It has no result."
"""The result of a call that has none."""

NO_OBJECT = "_arguments"
"""The key of arguments that are no JSON object, in a form that takes only objects."""

KINDS = {
    Role.USER: {TEXT, FILE, DATA},
    Role.SYSTEM: {TEXT, DATA},
    Role.ASSISTANT: {TEXT, FILE, DATA, REASONING, CALL, RESULT},
    Role.TOOL: {CALL, RESULT, DATA},
}
"""The types of parts that a message of a role may give to a model."""


class Form(NamedTuple):
    """What a provider or framework takes."""

    name: str
    """The field of a part with what only this form has."""
    reasoning_of: str | None
    """The provider whose reasoning it takes; None: every one."""
    files_of: str | None
    """The provider whose ids of files it takes; None: every one."""
    longest_id: int = 64
    longest_name: int | None = None
    """Most characters of the name of a tool, which are letters, digits, `_` and `-`; None: any name."""
    takes_blank: bool = False
    """Whether a text without characters may carry something, such as a signature."""


@dataclass(eq=False, slots=True)
class Call:
    """A call of a tool, with its result."""

    part: Part
    id: str
    """Unique in the path, and of a form that every provider takes."""
    name: str
    result: Part | None = None
    """None: it was interrupted."""
    answered: int = 0
    """When the result came, as a number that grows."""
    by: Message | NewMessage | None = None
    """The message that has the result."""


class Step(NamedTuple):
    """What one says without another in between; several if a message of an assistant has calls and their results.

    The blocks of the role tool are the calls whose results it has, those of others parts and calls. Parts of the type
    `data` have something in the field of the form.
    """

    role: Role
    blocks: list[Part | Call]
    message: Message | NewMessage
    goes_on: bool = False
    """Whether the same message has had a step before."""

    @property
    def is_plain(self) -> bool:
        """Whether the message has only a content."""
        return not self.message.parts


def steps(messages: Iterable[Message | NewMessage], form: Form) -> list[Step]:
    """Return the steps of a path, in linear time. The results of an assistant's step are in the step after it."""
    pairs = _Pairs(form)
    given = [(message, list(_blocks(message, form, pairs))) for message in messages if _is_given(message)]
    return [step for message, blocks in given for step in _steps_of(message, blocks)]


def _is_given(message: Message | NewMessage) -> bool:
    return message.status not in (Status.DELETED, Status.IN_PROGRESS)


class _Answer(NamedTuple):
    """Where a result came. It is given after its call, wherever that was."""


ANSWER = _Answer()


class _Pairs:
    """Puts calls and results together."""

    def __init__(self, form: Form) -> None:
        self.form = form
        self.open: defaultdict[tuple[str | None, str | None], deque[Call]] = defaultdict(deque)
        self.ids: set[str] = set()
        self.n = 0

    def call(self, part: Part) -> Call | None:
        """Return a call; None if it has no name."""
        name = part.get("name")
        if not isinstance(name, str) or not name:
            return None
        call = Call(part, self._id(part), _name(name, self.form))
        self.open[pair_key(part, "id")].append(call)
        return call

    def is_open(self, part: Part) -> bool:
        """Return whether a call of this id waits for its result: a message with a result may repeat its call."""
        return bool(self.open[pair_key(part, "id")])

    def answer(self, part: Part, message: Message | NewMessage) -> bool:
        """Give the oldest open call of this id its result. Returns whether there is one."""
        waiting = self.open[pair_key(part, "tool_call_id")]
        if not waiting:
            return False
        self.n += 1
        call = waiting.popleft()
        call.result, call.answered, call.by = part, self.n, message
        return True

    def _id(self, part: Part) -> str:
        given, _ = pair_key(part, "id")
        self.n += 1
        id_ = given or ""
        if not re.fullmatch(f"[A-Za-z0-9_-]{{1,{self.form.longest_id}}}", id_, re.ASCII):
            id_ = made_id("call", id_) if id_ else made_id("call", f"{self.n}")
        if id_ in self.ids:
            id_ = made_id("call", f"{self.n}\n{id_}")
        self.ids.add(id_)
        return id_


def pair_key(part: Part, field: str) -> tuple[str | None, str | None]:
    """Return what a call and its result have in common: the id, or the name of the tool if there is no id."""
    id_, name = part.get(field), part.get("name")
    if isinstance(id_, str) and id_:
        return id_, None
    return None, name if isinstance(name, str) else None


def made_id(prefix: str, text: str) -> str:
    """Return an id of 37 characters at most that is always the same for a text."""
    return f"{prefix}_{hashlib.sha256(text.encode(errors='replace')).hexdigest()[:32]}"


def _name(name: str, form: Form) -> str:
    if form.longest_name is None:
        return name
    return re.sub("[^A-Za-z0-9_-]", "_", name[: form.longest_name])


def _blocks(message: Message | NewMessage, form: Form, pairs: _Pairs) -> Iterator[Part | Call | _Answer]:
    for part in _parts(message):
        kind = part["type"]
        if kind not in KINDS[message.role]:
            continue
        if kind == CALL:
            if not (message.role is Role.TOOL and pairs.is_open(part)) and (call := pairs.call(part)):
                yield call
        elif kind == RESULT:
            if pairs.answer(part, message):
                yield ANSWER
        elif _is_usable(part, kind, form):
            yield part


def _is_usable(part: Part, kind: str, form: Form) -> bool:
    if kind == TEXT:
        text = part.get("text")
        return isinstance(text, str) and (not is_blank(text) or (form.takes_blank and bool(rest_of(part, form.name))))
    if kind == REASONING:
        provider, text = part.get("provider"), part.get("text", "")
        is_own = form.reasoning_of is None or (isinstance(provider, str) and provider == form.reasoning_of)
        return isinstance(text, str) and is_own
    if kind == FILE:
        return bool(rest_of(part, form.name)) or is_ours(part, form)
    return bool(rest_of(part, form.name))


def is_ours(part: Part, form: Form) -> bool:
    """Whether a file is not one that only another provider knows."""
    return "file_id" not in part or part.get("provider") in (None, form.files_of) or form.files_of is None


def is_blank(text: str) -> bool:
    """Whether a text has no character but spaces."""
    return not text or text.isspace()


def _parts(message: Message | NewMessage) -> Sequence[Part]:
    """The parts of a message; with its content if that is said nowhere else."""
    parts = list(message.parts or ())
    if is_blank(message.content) or any(part["type"] == TEXT and isinstance(part.get("text"), str) for part in parts):
        return parts
    at = len(parts)
    while at and parts[at - 1]["type"] == CALL:
        at -= 1  # what calls something goes on with its result, so that the text was before
    return [*parts[:at], {"type": TEXT, "text": message.content}, *parts[at:]]


def _steps_of(message: Message | NewMessage, blocks: Iterable[Part | Call | _Answer]) -> Iterator[Step]:
    said: list[Part | Call] = []
    goes_on = False
    for block in blocks:
        if not isinstance(block, _Answer):
            said.append(block)
        elif said:
            yield from _closed(message, said, goes_on=goes_on)
            said, goes_on = [], True
    yield from _closed(message, said, goes_on=goes_on)


def _closed(message: Message | NewMessage, said: list[Part | Call], *, goes_on: bool) -> Iterator[Step]:
    while said and isinstance(last := said[-1], dict) and last["type"] == REASONING:
        said.pop()  # providers refuse reasoning that nothing follows
    if not said:
        return
    calls = [block for block in said if isinstance(block, Call)]
    if message.role is Role.TOOL and calls:  # it has calls beside their results
        others: list[Part | Call] = [block for block in said if not isinstance(block, Call)]
        yield Step(Role.ASSISTANT, list(calls), message, goes_on)
        if others:
            yield Step(Role.TOOL, others, message, goes_on=True)
    else:
        yield Step(message.role, said, message, goes_on)
    if calls:
        calls.sort(key=lambda call: (call.result is None, call.answered))
        yield Step(Role.TOOL, list(calls), message, goes_on=True)


# --- values ------------------------------------------------------------------------------------------------


def rest_of(part: Mapping[str, Any], name: str, *keys: str) -> dict[str, Any]:
    """Return what a part has in the field of a form, or in an object within it; empty if there is no object."""
    value: Any = part
    for key in (name, *keys):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def word(values: Mapping[str, Any], name: str = "type") -> str:
    """Return a value that is a text; an empty one for anything else."""
    value = values.get(name)
    return value if isinstance(value, str) else ""


def only(values: Mapping[str, Any], allowed: Iterable[str]) -> dict[str, Any]:
    """Return those values whose names are allowed."""
    return {name: values[name] for name in allowed if name in values}


def without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the other values."""
    return {name: value for name, value in values.items() if name not in names}


def with_rest(part: Part, name: str, rest: Mapping[str, Any]) -> Part:
    """Return a part with what only a form has, if there is anything."""
    return {**part, name: {key: value for key, value in rest.items() if value != {}}} if any_of(rest) else part


def any_of(rest: Mapping[str, Any]) -> bool:
    """Whether there is anything but empty objects."""
    return any(value != {} for value in rest.values())


def as_text(value: Any) -> str:
    """Return a text as it is, and any other value as JSON."""
    return value if isinstance(value, str) else json_text(value)


def from_text(text: str) -> Any:
    """Return the object of a JSON text, if `as_text` would write it so; any other text as it is."""
    value = object_of(text) if text.startswith("{") else None
    return text if value is None or json_text(value) != text else value


def object_of(text: str) -> dict[str, Any] | None:
    """Return the object of a JSON text; None if it is none, or one that no part can hold."""
    try:
        value = copy_json(parse_json(text), MAX_PARTS)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def arguments_text(part: Part) -> str:
    """Return the arguments of a call as text."""
    arguments = part.get("arguments")
    return "{}" if arguments is None else as_text(arguments)


def arguments_object(part: Part) -> dict[str, Any]:
    """Return the arguments of a call as an object."""
    arguments = part.get("arguments")
    if arguments is None or arguments == "":
        return {}
    value = object_of(arguments) if isinstance(arguments, str) else arguments
    return value if isinstance(value, dict) else {NO_OBJECT: arguments}


def arguments_of(value: Any) -> Any:
    """Return the arguments that `arguments_object` made an object of."""
    return value[NO_OBJECT] if isinstance(value, dict) and value.keys() == {NO_OBJECT} else value


def result_of(call: Call) -> tuple[Any, bool]:
    """Return the content of the result of a call, and whether it is an error."""
    if call.result is None:
        return INTERRUPTED, True
    return call.result.get("content", ""), call.result.get("is_error") is True


def result_text(call: Call) -> str:
    """Return a result as text, for a form that does not say what is an error: an object with the key `error`."""
    content, is_error = result_of(call)
    return json_text({"error": content}) if is_error else as_text("" if content is None else content)


def result_from_text(text: str) -> dict[str, Any]:
    """Return the fields of the result that `result_text` wrote."""
    value = from_text(text)
    if isinstance(value, dict) and value.keys() == {"error"}:
        return {"content": value["error"], "is_error": True}
    return {"content": value}


def blocks_of(content: Any) -> list[Part] | None:
    """Return the content of a result that is a list of parts; None if it is anything else."""
    if not isinstance(content, list):
        return None
    return (
        content if all(isinstance(each, dict) and each.get("type") in (TEXT, FILE, DATA) for each in content) else None
    )


# --- messages ----------------------------------------------------------------------------------------------


def new_message(role: Role, content: str | None = None, parts: Sequence[Part] = (), **fields: Any) -> list[NewMessage]:
    """Return a message in a list; an empty one if there is nothing in it.

    Raises InvalidInput for what no message can hold.
    """
    if not parts and is_blank(content or ""):
        return []
    if role in (Role.USER, Role.SYSTEM) and not any(says_something(part) for part in parts) and is_blank(content or ""):
        return []
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        if parts:
            return [NewMessage(role=role, parts=tuple(parts), **given)]
        return [NewMessage(role=role, content=content or "", **given)]
    except InvalidInput as error:
        raise InvalidInput(f"a message cannot hold this: {error.detail}", got=error.got) from None


def says_something(part: Part) -> bool:
    """Whether a message of a user or of the system may consist of a part alone."""
    text = part.get("text")
    return part["type"] in (FILE, DATA) or (part["type"] == TEXT and isinstance(text, str) and not is_blank(text))


def short(value: Any) -> str | None:
    """Return a text that can be an external_id or the name of a model; None for anything else."""
    return value if isinstance(value, str) and not is_blank(value) and len(value) <= MAX_SHORT_TEXT_CHARS else None


def count(value: Any) -> int | None:
    """Return a number of tokens; None for anything else."""
    return value if type(value) is int and 0 <= value < 1 << 63 else None


def objects(values: Any) -> list[dict[str, Any]]:
    """Return those of a list that are objects; none if it is no list."""
    return [value for value in values if isinstance(value, dict)] if isinstance(values, list | tuple) else []
