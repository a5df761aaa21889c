"""What tools are called for, and return."""

import json
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from chatkeep.integrations.pipecat.frames import Frames
from chatkeep.integrations.pipecat.outbox import Message, Outbox
from chatkeep.model import Role, Status
from chatkeep.values import MAX_PARTS, copy_json, now

if TYPE_CHECKING:
    from pipecat.frames import frames as f

CANCELLED = "CANCELLED"
"""Content of a cancelled tool call, as Pipecat gives it to the language model."""


class Tools:
    """Records tool calls, each when it has ended."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._calls: dict[str, Any] = {}
        self._ended: set[str] = set()

    def listen(self, frames: Frames) -> None:
        """Record the calls that end from now on."""
        from pipecat.frames import frames as f

        frames.before_received(
            {
                f.FunctionCallsStartedFrame: self._calls_started,
                f.FunctionCallInProgressFrame: self._call_started,
                f.FunctionCallResultFrame: self._result,
                f.FunctionCallCancelFrame: self._cancelled,
            }
        )
        frames.before_sent({f.CancelFrame: self._pipeline_ended, f.EndFrame: self._pipeline_ended})
        frames.before_released(self._pipeline_ended)

    def _calls_started(self, frame: "f.FunctionCallsStartedFrame") -> None:
        for call in frame.function_calls:
            self._ended.discard(call.tool_call_id)  # some models reuse the ids of calls in each reply
            self._call_started(call)

    def _call_started(self, call: Any) -> None:
        if call.tool_call_id not in self._ended:  # a cancellation overtakes frames that are queued behind speech
            self._calls[call.tool_call_id] = call

    def _result(self, frame: "f.FunctionCallResultFrame") -> None:
        if frame.properties is None or frame.properties.is_final:
            self._end(frame, frame.result, Status.FAILED if frame.error else Status.COMPLETE)

    def _cancelled(self, frame: "f.FunctionCallCancelFrame") -> None:
        self._end(self._calls.get(frame.tool_call_id, frame), CANCELLED, Status.INTERRUPTED)

    def _pipeline_ended(self, _frame: object) -> None:
        for call in list(self._calls.values()):
            self._end(call, CANCELLED, Status.INTERRUPTED)

    def _end(self, call: Any, result: object, status: Status) -> None:
        if call.tool_call_id in self._ended:
            return
        self._ended.add(call.tool_call_id)
        self._calls.pop(call.tool_call_id, None)
        function = {"name": call.function_name, "arguments": _as_text(getattr(call, "arguments", None))}
        metadata = {
            "tool_call_id": call.tool_call_id,
            "tool_calls": [{"id": call.tool_call_id, "type": "function", "function": function}],
        }
        message = Message(Role.TOOL, _as_text(result), now(), status, metadata=metadata)
        message.parts = _parts(call, result, status)
        self._outbox.put(message)


def _parts(call: Any, result: object, status: Status) -> list[dict[str, Any]] | None:
    """A tool call and its result as parts; None if even their text is beyond the limits of parts."""
    id_, arguments, failed = call.tool_call_id, getattr(call, "arguments", None), status is not Status.COMPLETE
    for shown in (_as_json, _as_text):
        parts = [
            {"type": "tool_call", "id": id_, "name": call.function_name, "arguments": shown(arguments)},
            {"type": "tool_result", "tool_call_id": id_, "content": shown(result), "is_error": failed},
        ]
        with suppress(ValueError):
            return cast("list[dict[str, Any]]", copy_json(parts, MAX_PARTS))
    return None


def _as_json(value: object) -> Any:
    """Return a copy of a tool's arguments or result, as text if it is not JSON."""
    try:
        return copy_json(value, MAX_PARTS)
    except (ValueError, RecursionError):
        return _as_text(value)


def _as_text(value: object) -> str:
    """Return a tool's arguments or result as text, as JSON if possible."""
    if value is None or isinstance(value, str):
        return value or ""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except (TypeError, ValueError, RecursionError):
        return str(value)
