"""The events and replies of Anthropic's Messages, made of an answer of the script."""

import json
from collections.abc import Iterator

from servers.model_script import Answer, Frame, Json, framed

STOP = {"stop": "end_turn", "length": "max_tokens", "filter": "refusal"}

SIGNATURE = "c2lnbmF0dXJl"
"""What every block of thoughts is signed with."""


def error_of(status: int, message: str, key: str) -> Json:
    """The body of an error; without a message it has the key."""
    kind = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        529: "overloaded_error",
    }.get(status, "api_error")
    error = {"type": kind, "message": message or f"invalid x-api-key: {key}"}
    return {"type": "error", "error": error, "request_id": "req_1"}


def failure(answer: Answer, _: Frame | None) -> Frame:
    """The event that says in the middle of a stream that Anthropic failed."""
    return Frame(_failed(answer), 0, "error")


def _failed(answer: Answer) -> Json:
    return {"type": "error", "error": {"type": "overloaded_error", "message": answer.message or "Overloaded"}}


def message_frames(answer: Answer, name: str, body: Json) -> Iterator[Frame]:
    """The events of a message, with a ping."""
    return framed(_events(answer, name, body), _is_delta, named=True)


def _is_delta(event: Json) -> bool:
    return "delta" in event and event["delta"].get("type") not in {None, "signature_delta"}


def _events(answer: Answer, name: str, body: Json) -> Iterator[Json]:
    begun = _message(answer, name, body, [], None) | {"usage": {"input_tokens": answer.usage[0], "output_tokens": 1}}
    yield {"type": "message_start", "message": begun}
    for index, (block, deltas) in enumerate(_blocks(answer)):
        yield {"type": "content_block_start", "index": index, "content_block": block}
        if index == 0:
            yield {"type": "ping"}
        for delta in deltas:
            yield {"type": "content_block_delta", "index": index, "delta": delta}
        yield {"type": "content_block_stop", "index": index}
    if answer.ending == "failed":
        yield _failed(answer)
        return
    usage = {"output_tokens": answer.usage[1]}
    yield {"type": "message_delta", "delta": {"stop_reason": _stop(answer), "stop_sequence": None}, "usage": usage}
    yield {"type": "message_stop"}


def _blocks(answer: Answer) -> Iterator[tuple[Json, Iterator[Json]]]:
    if answer.reasoning:
        yield {"type": "thinking", "thinking": "", "signature": ""}, _thoughts(answer)
    if answer.text:
        yield {"type": "text", "text": ""}, ({"type": "text_delta", "text": text} for text in answer.deltas())
    if answer.refusal:
        yield {"type": "text", "text": ""}, iter([{"type": "text_delta", "text": answer.refusal}])
    for call in answer.calls:
        block: Json = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
        yield block, ({"type": "input_json_delta", "partial_json": delta} for delta in call.arguments)


def _thoughts(answer: Answer) -> Iterator[Json]:
    yield from ({"type": "thinking_delta", "thinking": delta} for delta in answer.reasoning)
    yield {"type": "signature_delta", "signature": SIGNATURE}


def _stop(answer: Answer) -> str:
    if answer.refusal:
        return "refusal"
    return "tool_use" if answer.calls and answer.ending == "stop" else STOP[answer.ending]


def _message(answer: Answer, name: str, body: Json, content: list[Json], stop: str | None) -> Json:
    return {
        "id": name,
        "type": "message",
        "role": "assistant",
        "model": body.get("model", ""),
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": answer.usage[0], "output_tokens": answer.usage[1]},
    }


def message_of(answer: Answer, name: str, body: Json) -> Json:
    """The whole message, for clients that do not stream."""
    content = [_whole(block, list(deltas)) for block, deltas in _blocks(answer)]
    return _message(answer, name, body, content, _stop(answer))


def _whole(block: Json, deltas: list[Json]) -> Json:
    joined = {key: "".join(delta.get(key, "") for delta in deltas) for key in ("thinking", "signature", "text")}
    if block["type"] == "tool_use":
        return block | {"input": json.loads("".join(delta["partial_json"] for delta in deltas))}
    return block | {key: text for key, text in joined.items() if key in block}
