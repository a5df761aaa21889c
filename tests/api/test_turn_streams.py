"""Answers as server-sent events: from the beginning, from anywhere, from another process, and for hostile readers."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from events import EVENT_STREAM, Event, arriving, kinds, parsed, read, text_of

from chatkeep import open_store
from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.runner import TurnRunner
from chatkeep.answers.scripted import ScriptedProvider
from chatkeep.api.answering import ReplyTimes
from conftest import STORES
from servers.api import Api, answering, assert_problem

FAST = TurnLimits(flush=0.01, poll=0.02, heartbeat=0.05)
TIMES = ReplyTimes(answer=5.0, busy=5.0, stop=5.0, ping=0.3)
PACED = "Which tea is the best with 世界 and 😀 in it? rate=100"
SILENT = "Which tea? rate=0 silence=2"
ASYNC = {"Prefer": "respond-async"}
ALL = ["user_message", "usage", "reasoning", "tool_call", "tool_result", "text", "source", "usage", "end"]


@pytest.fixture
async def api(store_url: str) -> AsyncIterator[Api]:
    async with open_store(store_url) as store, answering(store, ScriptedProvider(), FAST, TIMES) as api:
        yield api


@pytest.fixture
async def workers(store_url: str) -> AsyncIterator[list[Api]]:
    """Two servers of one database; in memory they share the store, which is one process's."""
    async with AsyncExitStack() as stack:
        stores = [await stack.enter_async_context(open_store(store_url)) for _ in range(2)]
        if store_url.startswith("memory:"):
            stores[1] = stores[0]
        provider = ScriptedProvider()
        opened = [await stack.enter_async_context(answering(store, provider, FAST, TIMES)) for store in stores]
        yield opened


async def begin(api: Api, content: str = PACED) -> tuple[str, str]:
    """Ask in a new conversation; return its path and that of the answer that is being made."""
    path = await api.conversation()
    reply = await api.client.post(f"{path}/messages", json={"content": content}, headers=ASYNC)
    assert reply.status_code == 202, reply.text
    return path, reply.headers["location"].removesuffix("/events")


def runner_of(api: Api) -> TurnRunner:
    """The turns of a server."""
    runner: TurnRunner = api.app.state.turns
    return runner


async def wait_until(is_so: Callable[[], bool]) -> None:
    """Wait for something that has no event."""
    async with asyncio.timeout(10):
        while not is_so():  # noqa: ASYNC110 - see above
            await asyncio.sleep(0.01)


async def is_left_alone(api: Api) -> None:
    """Wait until nothing is kept of any turn."""
    runner, shutdown = runner_of(api), api.app.state.shutdown
    await wait_until(lambda: not (runner._streams._logs or runner._running or shutdown.streams))
    assert not runner._making
    assert not runner._starting


# --- from the beginning -----------------------------------------------------------------------------------


async def test_a_question_is_streamed(api: Api) -> None:
    """The question, what happens, the end and the answer; the text of the events is the answer's."""
    path = await api.conversation()
    body = {"content": PACED, "id": str(uuid4())}
    async with api.client.stream("POST", f"{path}/messages", json=body, headers=EVENT_STREAM) as reply:
        events = [event async for event in arriving(reply)]
    assert kinds(events) == [*ALL, "assistant_message"]
    question, answer = (await api.client.get(f"{path}/messages")).json()["items"]
    assert (events[0].data, events[-1].data, events[-2].data) == (question, answer, {"status": "complete"})
    assert text_of(events) == answer["content"]
    assert len({event.id for event in events[1:-2]}) == len(events) - 3
    assert reply.headers["location"] == f"{path}/messages/{answer['id']}/events"
    assert (reply.headers["cache-control"], reply.headers["x-accel-buffering"]) == ("no-store", "no")
    assert "idempotency-replayed" not in reply.headers
    again = await api.client.post(f"{path}/messages", json=body, headers=EVENT_STREAM)
    assert again.headers["idempotency-replayed"] == "true"
    assert (parsed(again.text)[0].data, parsed(again.text)[-1].data) == (question, answer)


async def test_an_answer_faster_than_one_flush(api: Api) -> None:
    """It arrives whole, to who asked and to who follows."""
    for _ in range(10):
        path = await api.conversation()
        events = await read(
            api.client, "POST", f"{path}/messages", json={"content": "a b c rate=0"}, headers=EVENT_STREAM
        )
        assert (text_of(events), events[-1].data["content"]) == ("a b c ", "a b c ")
        followed = await read(api.client, "GET", f"{path}/messages/{events[-1].data['id']}/events")
        assert text_of(followed) == "a b c "


@pytest.mark.parametrize(("content", "status"), [("Tea? rate=0 error=1", "failed"), ("Tea? rate=0 cut=0", "complete")])
async def test_other_ends(api: Api, content: str, status: str) -> None:
    """A stream of an answer that fails is 200, and ends with the reason, the end and the message."""
    path = await api.conversation()
    events = await read(api.client, "POST", f"{path}/messages", json={"content": content}, headers=EVENT_STREAM)
    assert [event.kind for event in events[-2:]] == ["end", "assistant_message"]
    assert events[-2].data == {"status": status}
    assert events[-1].data["status"] == status
    if status == "failed":
        assert events[-3].data == {"reason": "the script says that the model fails here", "kind": "provider"}


async def test_answering_again_is_streamed(api: Api) -> None:
    """As a question is."""
    path = await api.conversation()
    first = (await api.client.post(f"{path}/messages", json={"content": "Tea? rate=0"})).json()["user_message"]
    events = await read(api.client, "POST", f"{path}/messages/{first['id']}/answer", headers=EVENT_STREAM)
    assert kinds(events) == [*ALL, "assistant_message"]
    assert events[0].data == first


async def test_silence_is_broken(api: Api) -> None:
    """A comment comes while nothing happens."""
    _, answer = await begin(api, SILENT)
    text = ""
    async with api.client.stream("GET", f"{answer}/events") as reply:
        async for part in reply.aiter_text():
            text += part
            if text.count(": ping\n\n") == 3:
                break
    assert text_of(parsed(text.replace(": ping\n\n", ""))) == "Which tea? "


async def test_head(api: Api) -> None:
    """HEAD of a stream that goes on has the headers, and ends."""
    _, answer = await begin(api, SILENT)
    reply = await api.client.head(f"{answer}/events")
    assert (reply.status_code, reply.content) == (200, b"")
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert (await api.client.get("/healthz")).status_code == 200


async def test_what_is_no_answer(api: Api) -> None:
    """There are no events of a question, of nothing, and of what was deleted."""
    path = await api.conversation()
    both = (await api.client.post(f"{path}/messages", json={"content": "Tea? rate=0"})).json()
    question, answer = (f"{path}/messages/{both[name]['id']}" for name in ("user_message", "assistant_message"))
    for of in (question, f"{path}/messages/{uuid4()}"):
        assert_problem(await api.client.get(f"{of}/events"), 404)
    await api.client.delete(answer)
    for method, tail in (("GET", "events"), ("POST", "stop")):
        assert_problem(await api.client.request(method, f"{answer}/{tail}"), 404)


# --- from anywhere ----------------------------------------------------------------------------------------


async def test_resume_from_every_event(api: Api) -> None:
    """While it is made and afterwards, what follows an event is what had followed it."""
    path, answer = await begin(api)
    whole = await read(api.client, "GET", f"{answer}/events")
    for place, event in enumerate(whole[:-1]):
        headers = {"Last-Event-ID": str(event.id)}
        rest = await read(api.client, "GET", f"{answer}/events", headers=headers)
        assert text_of(whole[: place + 1]) + text_of(rest) == whole[-1].data["content"]
        assert [each.kind for each in rest[-2:]] == ["end", "assistant_message"]
        assert "reset" not in kinds(rest)
    assert (await api.client.get(path)).json()["last_seq"] == 2


async def test_random_disconnects(workers: list[Api]) -> None:
    """Whoever is cut off again and again, and goes on at whichever server, has every character once."""
    path = await workers[0].conversation()
    body = {"content": f"{PACED} tokens=60", "id": str(uuid4())}
    events: list[Event] = []
    for number in range(1_000):
        last = next((event.id for event in reversed(events) if event.id), None)
        headers = {**EVENT_STREAM, **({"Last-Event-ID": last} if last else {})}
        client = workers[number % 2].client
        events += await read(client, "POST", f"{path}/messages", json=body, headers=headers, most=1 + number % 7)
        if events[-1].kind == "assistant_message":
            break
    assert events[-1].data["content"] == text_of(events)
    assert "reset" not in kinds(events)


@pytest.mark.parametrize(
    "last",
    [
        "zq7",
        "0-0-0",
        "ffffffff-1-1",
        "-1--1",
        "9" * 500,
        "%s-999999999999999999-999999999999999999",
        "x" * 60_000,
        "\xff",
    ],
)
async def test_an_id_that_is_none(api: Api, last: str) -> None:
    """Rubbish, and places beyond the end, get all that there is at once, of a running answer and of one that ended."""
    _, answer = await begin(api, SILENT)
    await read(api.client, "GET", f"{answer}/events", until="Which tea? ")
    sent = [(b"Last-Event-ID", last.replace("%s", answer.rpartition("/")[2][:8]).encode("latin-1"))]
    [reset] = await read(api.client, "GET", f"{answer}/events", headers=sent, most=1)
    assert (reset.kind, reset.data["content"]) == ("reset", "Which tea? ")
    await api.client.post(f"{answer}/stop")
    events = await read(api.client, "GET", f"{answer}/events", headers=sent)
    assert kinds(events) == ["reset", "end", "assistant_message"]
    assert events[0].data["content"] == events[-1].data["content"]


async def test_an_id_longer_than_a_head(api: Api) -> None:
    """It is refused before anything is looked at."""
    _, answer = await begin(api, "Tea? rate=0")
    reply = await api.client.get(f"{answer}/events", headers={"Last-Event-ID": "x" * (64 << 10)})
    assert_problem(reply, 431)


async def test_a_large_result_survives_a_resume(workers: list[Api]) -> None:
    """5 MB that a tool returned come whole, also to who goes on after them, or before, at another server."""
    path = await workers[0].conversation()
    body = {"content": "Tea? rate=20 tool=5000000", "id": str(uuid4())}
    first = await read(
        workers[0].client, "POST", f"{path}/messages", json=body, headers=EVENT_STREAM, until="Tea? ", timeout=60
    )
    (result,) = [event for event in first if event.kind == "tool_result"]
    assert len(result.data["content"]) == 5_000_000
    after = {**EVENT_STREAM, "Last-Event-ID": str(result.id)}
    before = {**EVENT_STREAM, "Last-Event-ID": str(first[first.index(result) - 1].id)}
    for headers, there in ((after, False), (before, True)):
        rest = await read(workers[1].client, "POST", f"{path}/messages", json=body, headers=headers, timeout=60)
        assert rest[-1].data["content"] == "Tea? "
        assert there <= (result.data in [event.data for event in rest])


# --- other processes --------------------------------------------------------------------------------------


async def test_another_server_follows_and_stops(workers: list[Api]) -> None:
    """An answer is streamed, read, attached to and stopped wherever it is made."""
    maker, other = workers
    path, answer = await begin(maker, SILENT)
    await read(other.client, "GET", f"{answer}/events", until="Which tea? ")
    async with other.client.stream("GET", f"{answer}/events") as reply:
        stopped = await other.client.post(f"{answer}/stop")
        events = [event async for event in arriving(reply)]
    assert (stopped.status_code, stopped.json()["status"]) == (200, "interrupted")
    assert (events[-1].data, text_of(events)) == (stopped.json(), "Which tea? ")
    for api in workers:
        await is_left_alone(api)
    assert (await maker.client.get(path)).json()["last_seq"] == 2


async def test_one_question_at_two_servers(workers: list[Api]) -> None:
    """64 clients that send it at once to both get one answer."""
    path = await workers[0].conversation()
    body = {"content": "Tea? rate=100", "id": str(uuid4())}

    async def ask(number: int) -> httpx2.Response:
        client = workers[number % 2].client
        return await client.post(f"{path}/messages", json=body, headers={} if number % 4 else ASYNC, timeout=30)

    replies = await asyncio.gather(*map(ask, range(64)))
    assert {reply.status_code for reply in replies} <= {201, 202}
    assert len({reply.json()["assistant_message"]["id"] for reply in replies}) == 1
    whole = await workers[1].client.post(f"{path}/messages", json=body)
    assert whole.json()["assistant_message"]["content"] == "Tea? "
    assert (await workers[0].client.get(path)).json()["last_seq"] == 2


# --- hostile readers --------------------------------------------------------------------------------------


async def test_a_deleted_conversation(api: Api) -> None:
    """The streams of its answer end, and say so."""
    path, answer = await begin(api, SILENT)
    async with api.client.stream("GET", f"{answer}/events") as reply:
        assert (await api.client.delete(path)).status_code == 204
        events = [event async for event in arriving(reply)]
    assert events[-1].kind == "end"
    assert events[-1].data == {"status": "deleted"}
    await is_left_alone(api)


async def test_too_many_streams() -> None:
    """Beyond what an owner may have a stream is refused; the question is answered all the same."""
    provider = ScriptedProvider()
    async with open_store("memory://") as store, answering(store, provider, FAST, TIMES, max_streams=2) as api:
        _, answer = await begin(api, SILENT)
        async with AsyncExitStack() as stack:
            for _ in range(2):
                await stack.enter_async_context(api.client.stream("GET", f"{answer}/events"))
            path = await api.conversation()
            body = {"content": "Tea? rate=0", "id": str(uuid4())}
            refused = await api.client.post(f"{path}/messages", json=body, headers=EVENT_STREAM)
            assert_problem(refused, 429)
            assert refused.headers["retry-after"] == "1"
            done = await api.client.post(f"{path}/messages", json=body)
            assert (done.status_code, done.json()["assistant_message"]["status"]) == (201, "complete")
            assert provider.asked == 2
        await api.client.post(f"{answer}/stop")
        await is_left_alone(api)


async def test_streams_do_not_count_as_requests() -> None:
    """More streams than requests may be under way leave room for requests."""
    async with (
        open_store("memory://") as store,
        answering(store, ScriptedProvider(), FAST, max_requests=5, max_streams=50) as api,
        AsyncExitStack() as stack,
    ):
        _, answer = await begin(api, SILENT)
        for _ in range(30):
            reply = await stack.enter_async_context(api.client.stream("GET", f"{answer}/events"))
            assert reply.status_code == 200
        assert (await api.client.get(answer)).status_code == 200


@pytest.mark.parametrize("database", ["memory", "sqlite"])
async def test_a_thousand_streams_that_are_dropped(tmp_path: Path, database: str) -> None:
    """Nothing is left of them: no task, no log, no stream that is counted."""
    async with open_store(STORES[database](tmp_path)) as store, answering(store, ScriptedProvider(), FAST) as api:
        _, answer = await begin(api, SILENT)
        await read(api.client, "GET", f"{answer}/events", until="Which tea? ")
        before = len(asyncio.all_tasks())
        request = f"GET {answer}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        for number in range(1_000):
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            writer.write(request)
            if number % 2:
                await reader.readline()
            writer.transport.abort()
        (log,) = runner_of(api)._streams._logs.values()
        streams = api.app.state.shutdown.streams
        await wait_until(lambda: not log.readers and not streams and len(asyncio.all_tasks()) <= before)
        await api.client.post(f"{answer}/stop")
        await is_left_alone(api)


async def test_a_reader_that_never_reads() -> None:
    """It is cut, others stream on meanwhile, the answer is whole, and who was cut can go on."""
    async with open_store("memory://") as store, answering(store, ScriptedProvider(), FAST, write_seconds=1) as api:
        path, answer = await begin(api, "Tea with milk. rate=2 tool=5000000")
        with socket.create_connection(("127.0.0.1", api.port)) as stuck:
            stuck.send(f"GET {answer}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            events = await read(api.client, "GET", f"{answer}/events", timeout=30)
            assert text_of(events) == events[-1].data["content"] == "Tea with milk. "
            await wait_until(lambda: not api.app.state.shutdown.streams)
        await is_left_alone(api)
        assert (await api.client.get(path)).json()["last_seq"] == 2


@pytest.mark.long
@pytest.mark.parametrize("count", [150, pytest.param(500, marks=pytest.mark.apart)])
async def test_what_an_open_stream_costs(count: int) -> None:
    """While hundreds of streams are open, others are served, and each gets every event."""
    provider = ScriptedProvider()
    settings: dict[str, Any] = {"max_streams": 1_000, "max_requests": 100}
    async with open_store("memory://") as store, answering(store, provider, FAST, **settings) as api:
        _, answer = await begin(api, "Tea with milk. rate=1")
        limits = httpx2.Limits(max_connections=count)
        async with httpx2.AsyncClient(base_url=api.client.base_url, limits=limits, timeout=60) as client:
            streams = await asyncio.gather(*(read(client, "GET", f"{answer}/events") for _ in range(count)))
        assert {text_of(events) for events in streams} == {"Tea with milk. "}
        await is_left_alone(api)
