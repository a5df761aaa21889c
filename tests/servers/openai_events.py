"""The events and replies of OpenAI's Responses and Chat Completions, made of an answer of the script."""

import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence

from servers.model_script import Answer, Call, Frame, Json, framed

INCOMPLETE = {"length": "max_output_tokens", "filter": "content_filter"}
FINISH = {"stop": "stop", "length": "length", "filter": "content_filter"}
STATUS = {"stop": "completed", "length": "incomplete", "filter": "incomplete", "failed": "failed"}

CREATED_AT = 1_795_293_601


def error_of(status: int, message: str, key: str) -> Json:
    """The body of an error; without a message it has the key, as OpenAI's own does."""
    kind, code = {
        401: ("invalid_request_error", "invalid_api_key"),
        403: ("invalid_request_error", "unsupported_country_region_territory"),
        404: ("invalid_request_error", "model_not_found"),
        429: ("requests", "rate_limit_exceeded"),
    }.get(status, ("server_error" if status >= 500 else "invalid_request_error", None))
    text = message or f"Incorrect API key provided: {key}."
    return {"error": {"message": text, "type": kind, "param": None, "code": code}}


def response_of(name: str, body: Json) -> Json:
    """The response that has just begun."""
    return {
        "id": name,
        "object": "response",
        "created_at": CREATED_AT,
        "status": "in_progress",
        "background": bool(body.get("background")),
        "error": None,
        "incomplete_details": None,
        "instructions": body.get("instructions"),
        "metadata": {},
        "model": body.get("model", ""),
        "output": [],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "store": body.get("store", True),
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "truncation": "disabled",
        "usage": None,
    }


def usage_of(answer: Answer) -> Json:
    """What the answer cost."""
    sent, made = answer.usage
    return {
        "input_tokens": sent,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": sent + made,
    }


def ended(answer: Answer, response: Json, output: list[Json]) -> Json:
    """The response at its end."""
    failed = {"code": "server_error", "message": _failed(answer)}
    reason = INCOMPLETE.get(answer.ending)
    return response | {
        "status": STATUS[answer.ending],
        "output": output,
        "usage": usage_of(answer),
        "error": failed if answer.ending == "failed" else None,
        "incomplete_details": {"reason": reason} if reason else None,
    }


def responses_frames(answer: Answer, response: Json) -> Iterator[Frame]:
    """The events of a response. Their `sequence_number` counts from 0 without gaps."""
    numbers = itertools.count()
    events = ({**event, "sequence_number": next(numbers)} for event in _response_events(answer, response))
    return framed(events, lambda event: event["type"].endswith(".delta"), named=True)


def responses_failure(answer: Answer, last: Frame | None) -> Frame:
    """The event that says after another that OpenAI failed."""
    number = last.data["sequence_number"] + 1 if last and isinstance(last.data, dict) else 0
    error = {"code": "server_error", "message": _failed(answer), "param": None}
    return Frame({"type": "error", **error, "sequence_number": number}, 0, "error")


def _failed(answer: Answer) -> str:
    return answer.message or "The server had an error while processing your request."


def _response_events(answer: Answer, response: Json) -> Iterator[Json]:
    yield {"type": "response.created", "response": response}
    yield {"type": "response.in_progress", "response": response}
    name, output = response["id"], list[Json]()
    if answer.reasoning:
        output.append((yield from _reasoning(f"rs_{name}", answer.reasoning)))
    if answer.text:
        output.append((yield from _message(f"msg_{name}", len(output), answer.deltas(), refused=False)))
    if answer.refusal:
        output.append((yield from _message(f"msg_{name}_r", len(output), [answer.refusal], refused=True)))
    for number, call in enumerate(answer.calls):
        output.append((yield from _call(f"fc_{name}_{number}", len(output), call)))
    yield {"type": f"response.{STATUS[answer.ending]}", "response": ended(answer, response, output)}


def _reasoning(name: str, deltas: Sequence[str]) -> Generator[Json, None, Json]:
    item: Json = {"id": name, "type": "reasoning", "summary": []}
    yield {"type": "response.output_item.added", "output_index": 0, "item": item}
    where = {"item_id": name, "output_index": 0, "summary_index": 0}
    kind = "response.reasoning_summary"
    yield {"type": f"{kind}_part.added", **where, "part": {"type": "summary_text", "text": ""}}
    for delta in deltas:
        yield {"type": f"{kind}_text.delta", **where, "delta": delta}
    part = {"type": "summary_text", "text": "".join(deltas)}
    yield {"type": f"{kind}_text.done", **where, "text": part["text"]}
    yield {"type": f"{kind}_part.done", **where, "part": part}
    item = item | {"summary": [part]}
    yield {"type": "response.output_item.done", "output_index": 0, "item": item}
    return item


def _message(name: str, at: int, deltas: Iterable[str], *, refused: bool) -> Generator[Json, None, Json]:
    item: Json = {"id": name, "type": "message", "role": "assistant", "status": "in_progress", "content": []}
    yield {"type": "response.output_item.added", "output_index": at, "item": item}
    where = {"item_id": name, "output_index": at, "content_index": 0}
    yield {"type": "response.content_part.added", **where, "part": _part("", refused=refused)}
    kind, logprobs = "refusal" if refused else "output_text", {} if refused else {"logprobs": list[Json]()}
    said: list[str] = []
    for delta in deltas:
        said.append(delta)
        yield {"type": f"response.{kind}.delta", **where, "delta": delta, **logprobs}
    part = _part("".join(said), refused=refused)
    text = {"refusal" if refused else "text": "".join(said)}
    yield {"type": f"response.{kind}.done", **where, **text, **logprobs}
    yield {"type": "response.content_part.done", **where, "part": part}
    item = item | {"status": "completed", "content": [part]}
    yield {"type": "response.output_item.done", "output_index": at, "item": item}
    return item


def _part(text: str, *, refused: bool) -> Json:
    if refused:
        return {"type": "refusal", "refusal": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(name: str, at: int, call: Call) -> Generator[Json, None, Json]:
    item: Json = {"id": name, "type": "function_call", "call_id": call.id, "name": call.name}
    begun = item | {"status": "in_progress", "arguments": ""}
    yield {"type": "response.output_item.added", "output_index": at, "item": begun}
    where = {"item_id": name, "output_index": at}
    for delta in call.arguments:
        yield {"type": "response.function_call_arguments.delta", **where, "delta": delta}
    arguments = "".join(call.arguments)
    yield {"type": "response.function_call_arguments.done", **where, "arguments": arguments, "name": call.name}
    item = item | {"status": "completed", "arguments": arguments}
    yield {"type": "response.output_item.done", "output_index": at, "item": item}
    return item


def chat_frames(answer: Answer, name: str, body: Json) -> Iterator[Frame]:
    """The events of a chat completion; the usage only for clients that ask for it."""
    return framed(_chat_events(answer, name, body), _has_delta, named=False)


def chat_failure(answer: Answer, _: Frame | None) -> Frame:
    """The event that says in the middle of a stream that the server failed."""
    return Frame(_chat_error(answer), 0)


def _chat_error(answer: Answer) -> Json:
    return {"error": {"message": _failed(answer), "type": "server_error", "param": None, "code": None}}


def _has_delta(event: Json | str) -> bool:
    if isinstance(event, str) or not event.get("choices"):
        return False
    delta = event["choices"][0]["delta"]
    function = delta["tool_calls"][0]["function"] if "tool_calls" in delta else {}
    return any((delta.get("content"), delta.get("reasoning_content"), delta.get("refusal"), function.get("arguments")))


def _chat_events(answer: Answer, name: str, body: Json) -> Iterator[Json | str]:
    head = {"id": name, "object": "chat.completion.chunk", "created": CREATED_AT, "model": body.get("model", "")}
    for delta in _chat_deltas(answer):
        yield head | {"choices": [{"index": 0, "delta": delta, "finish_reason": None, "logprobs": None}]}
    if answer.ending == "failed":
        yield _chat_error(answer)
        return
    yield head | {"choices": [{"index": 0, "delta": {}, "finish_reason": _finish(answer), "logprobs": None}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield head | {"choices": [], "usage": _chat_usage(answer)}
    yield "[DONE]"


def _chat_deltas(answer: Answer) -> Iterator[Json]:
    yield {"role": "assistant", "content": ""}
    yield from ({"reasoning_content": delta} for delta in answer.reasoning)
    yield from ({"content": delta} for delta in answer.deltas())
    if answer.refusal:
        yield {"refusal": answer.refusal}
    for number, call in enumerate(answer.calls):
        function = {"name": call.name, "arguments": ""}
        yield {"tool_calls": [{"index": number, "id": call.id, "type": "function", "function": function}]}
        for delta in call.arguments:
            yield {"tool_calls": [{"index": number, "function": {"arguments": delta}}]}


def _finish(answer: Answer) -> str:
    return "tool_calls" if answer.calls and answer.ending == "stop" else FINISH[answer.ending]


def _chat_usage(answer: Answer) -> Json:
    sent, made = answer.usage
    return {"prompt_tokens": sent, "completion_tokens": made, "total_tokens": sent + made}


def completion_of(answer: Answer, name: str, body: Json) -> Json:
    """The whole chat completion, for clients that do not stream."""
    calls = [
        {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": "".join(call.arguments)}}
        for call in answer.calls
    ]
    message: Json = {"role": "assistant", "content": "".join(answer.deltas()), "refusal": answer.refusal or None}
    if calls:
        message["tool_calls"] = calls
    choice = {"index": 0, "message": message, "finish_reason": _finish(answer), "logprobs": None}
    head = {"id": name, "object": "chat.completion", "created": CREATED_AT, "model": body.get("model", "")}
    return head | {"choices": [choice], "usage": _chat_usage(answer)}
