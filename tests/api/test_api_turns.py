"""Questions over HTTP, and the replies that are not streamed: each status, on all four stores."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from events import EVENT_STREAM, arriving, read

from chatkeep import open_store
from chatkeep.answers.limits import TurnLimits
from chatkeep.answers.scripted import ScriptedProvider
from chatkeep.api.answering import ReplyTimes
from chatkeep.api.negotiation import prefers_async, prefers_events
from servers.api import Api, answering, assert_problem, serving

FAST = TurnLimits(flush=0.01, poll=0.02, heartbeat=0.05, silence=0.5)
TIMES = ReplyTimes(answer=5.0, busy=5.0, stop=5.0)
SHORT = ReplyTimes(answer=0.2, busy=0.2, stop=5.0)
ASYNC = {"Prefer": "respond-async"}
QUICK = "Which tea? rate=0"
SILENT = "Which tea? rate=0 silence=2"
"""A question whose answer begins, and does not end by itself for as long as a provider may be silent."""


class Asking(Api):
    """A server that answers."""

    provider: ScriptedProvider

    async def ask(self, path: str, content: str = QUICK, headers: Any = None, **values: Any) -> httpx2.Response:
        """Ask in the conversation at this path."""
        return await self.client.post(f"{path}/messages", json={"content": content, **values}, headers=headers)

    async def asked(self) -> None:
        """Wait until the provider makes an answer."""
        while not self.provider.asked:  # noqa: ASYNC110 - it has no event for it
            await asyncio.sleep(0.01)

    async def begin(self, path: str, content: str = SILENT, **values: Any) -> tuple[str, dict[str, Any]]:
        """Ask, and return the path of the answer that is being made, with the reply."""
        reply = await self.ask(path, content, ASYNC, **values)
        assert reply.status_code == 202, reply.text
        return reply.headers["location"].removesuffix("/events"), reply.json()


def asking(api: Api, provider: ScriptedProvider) -> Asking:
    """The server with what makes its answers."""
    found = Asking(api.store, api.client, api.port, api.app)
    found.provider = provider
    return found


@pytest.fixture
async def api(store_url: str) -> AsyncIterator[Asking]:
    provider = ScriptedProvider()
    async with open_store(store_url) as store, answering(store, provider, FAST, TIMES) as api:
        yield asking(api, provider)


@pytest.fixture
async def patient(store_url: str) -> AsyncIterator[Asking]:
    """A server whose provider may be silent for long, and which replies soon."""
    provider = ScriptedProvider()
    limits = TurnLimits(flush=0.01, poll=0.02, heartbeat=0.05)
    async with open_store(store_url) as store, answering(store, provider, limits, SHORT) as api:
        yield asking(api, provider)


# --- a question and its answer ----------------------------------------------------------------------------


async def test_a_question_is_answered(api: Asking) -> None:
    """The reply has both messages as they are stored, and so has the history."""
    path = await api.conversation()
    reply = await api.ask(path, "Which tea? rate=0 tokens=3 sources=2")
    assert reply.status_code == 201, reply.text
    question, answer = reply.json()["user_message"], reply.json()["assistant_message"]
    assert (question["role"], question["seq"], answer["role"], answer["seq"]) == ("user", 1, "assistant", 2)
    assert (answer["parent_id"], answer["status"], answer["content"]) == (
        question["id"],
        "complete",
        "Which tea? Which ",
    )
    assert (answer["model"], answer["output_tokens"], len(answer["sources"])) == ("scripted", 3, 2)
    assert reply.headers["location"] == f"{path}/messages/{answer['id']}"
    assert "idempotency-replayed" not in reply.headers
    listed = (await api.client.get(f"{path}/messages")).json()["items"]
    assert listed == [question, answer]


@pytest.mark.parametrize(
    ("values", "answered"),
    [
        ({}, True),
        ({"answer": True}, True),
        ({"role": "user", "answer": True}, True),
        ({"answer": None}, True),
        ({"role": "user"}, False),
        ({"role": "user", "answer": None}, False),
        ({"answer": False}, False),
        ({"role": "assistant"}, False),
        ({"role": "assistant", "answer": False}, False),
    ],
)
async def test_what_is_answered(api: Asking, values: dict[str, Any], *, answered: bool) -> None:
    """A message without a role, and one that says so; a role without `answer` is a plain append, as ever."""
    path = await api.conversation()
    reply = await api.ask(path, **values)
    assert reply.status_code == 201, reply.text
    assert ("assistant_message" in reply.json()) == answered
    assert api.provider.asked == answered
    said = reply.json()["user_message"] if answered else reply.json()
    assert said["role"] == values.get("role", "user")


@pytest.mark.parametrize("role", ["assistant", "system", "tool"])
async def test_only_a_user_is_answered(api: Asking, role: str) -> None:
    """`answer` with another role is not valid, and nothing is stored."""
    path = await api.conversation()
    problem = assert_problem(await api.ask(path, role=role, answer=True), 422)
    assert "role user" in problem["detail"]
    assert (await api.client.get(f"{path}/messages")).json()["items"] == []


async def test_without_a_provider(store_url: str) -> None:
    """A missing role is an error as before, and `answer` says what to set; what is appended is appended."""
    async with open_store(store_url) as store, serving(store, provider="none") as api:
        path = await api.conversation()
        messages = f"{path}/messages"
        missing = assert_problem(await api.client.post(messages, json={"content": "Tea?"}), 422)
        assert missing["errors"] == [{"field": "role", "message": "is missing"}]
        wanted = assert_problem(await api.client.post(messages, json={"content": "Tea?", "answer": True}), 422)
        assert "CHATKEEP_PROVIDER" in wanted["detail"]
        said = await api.client.post(messages, json={"content": "Tea?", "answer": False})
        assert (said.status_code, said.json()["role"]) == (201, "user")
        again = await api.client.post(f"{messages}/{said.json()['id']}/answer")
        assert "CHATKEEP_PROVIDER" in assert_problem(again, 422)["detail"]
        answer = await api.say(path, "Green.", role="assistant")
        stopped = await api.client.post(f"{messages}/{answer['id']}/stop")
        assert (stopped.status_code, stopped.json()) == (200, answer)
        events = await read(api.client, "GET", f"{messages}/{answer['id']}/events")
        assert [event.data for event in events] == [{"text": "Green."}, {"status": "complete"}, answer]


# --- again ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [False, True])
async def test_the_same_question_again(api: Asking, *, key: bool) -> None:
    """The same id, or the same key, gets the answer that there is, and asks nobody."""
    path = await api.conversation()
    headers = {"Idempotency-Key": "tea 1"} if key else None
    values = {} if key else {"id": str(uuid4())}
    first = await api.ask(path, headers=headers, **values)
    second = await api.ask(path, headers=headers, **values)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    assert ("idempotency-replayed" in first.headers, second.headers["idempotency-replayed"]) == (False, "true")
    assert api.provider.asked == 1
    other = await api.ask(path, "Something else?", headers, **values)
    assert "code" not in assert_problem(other, 409)


async def test_who_asks_again_attaches(patient: Asking) -> None:
    """While the answer is made, the same question waits for it, too, and has what there is of it."""
    path = await patient.conversation()
    values = {"id": str(uuid4())}
    first = await patient.ask(path, SILENT, **values)
    second = await patient.ask(path, SILENT, **values)
    assert (first.status_code, second.status_code) == (202, 202)
    assert second.json()["assistant_message"] == first.json()["assistant_message"]
    assert second.headers["idempotency-replayed"] == "true"
    assert patient.provider.asked == 1


async def test_sixty_four_at_once(api: Asking) -> None:
    """64 clients that send one question get one answer; exactly one of them asked for it."""
    path = await api.conversation()
    values = {"id": str(uuid4())}
    replies = await asyncio.gather(*(api.ask(path, "Tea? rate=100", **values) for _ in range(64)))
    # Those that are too many to wait have what there is of it.
    assert {reply.status_code for reply in replies} <= {201, 202}
    answers = {reply.json()["assistant_message"]["id"] for reply in replies}
    assert (len(answers), api.provider.asked) == (1, 1)
    assert sum("idempotency-replayed" not in reply.headers for reply in replies) == 1
    whole = await api.ask(path, "Tea? rate=100", **values)
    assert whole.json()["assistant_message"]["content"] == "Tea? "
    assert (await api.client.get(path)).json()["last_seq"] == 2


# --- not yet, and at once ---------------------------------------------------------------------------------


async def test_an_answer_that_takes_long(patient: Asking) -> None:
    """The reply has what there is of it and says where the rest is; once stopped, the same question says so."""
    path = await patient.conversation()
    values = {"id": str(uuid4())}
    reply = await patient.ask(path, SILENT, **values)
    answer = reply.json()["assistant_message"]
    assert reply.status_code == 202
    assert (answer["status"], answer["content"]) == ("in_progress", "Which tea? ")
    assert reply.headers["location"] == f"{path}/messages/{answer['id']}/events"
    assert "preference-applied" not in reply.headers
    stopped = await patient.client.post(f"{path}/messages/{answer['id']}/stop")
    assert (stopped.status_code, stopped.json()["status"]) == (200, "interrupted")
    again = await patient.ask(path, SILENT, **values)
    assert (again.status_code, again.json()["assistant_message"]) == (201, stopped.json())


async def test_at_once(patient: Asking) -> None:
    """Who prefers it is replied to before there is an answer, with the place where its stream begins."""
    path = await patient.conversation()
    reply = await patient.ask(path, SILENT, ASYNC)
    answer = reply.json()["assistant_message"]
    assert (reply.status_code, reply.headers["preference-applied"]) == (202, "respond-async")
    assert (answer["status"], answer["content"]) == ("in_progress", "")
    events = reply.headers["location"]
    place = {"Last-Event-ID": answer["stream"]["last_event_id"]}
    first, resumed = [await read(patient.client, "GET", events, headers=h, most=4) for h in ({}, place)]
    assert first == resumed


async def test_history_shows_what_there_is(patient: Asking) -> None:
    """Every read of a running answer has the text so far and where its stream goes on; others have no `stream`."""
    path = await patient.conversation()
    answer, _ = await patient.begin(path)
    await read(patient.client, "GET", f"{answer}/events", until="Which tea? ")
    message = (await patient.client.get(answer)).json()
    assert (message["status"], message["content"]) == ("in_progress", "Which tea? ")
    listed = (await patient.client.get(f"{path}/messages")).json()["items"]
    within = (await patient.client.get(path)).json()["messages"]["items"]
    assert listed[1] == within[1] == message
    assert "stream" not in listed[0]
    place = {"Last-Event-ID": message["stream"]["last_event_id"]}
    said = await patient.say(path, "I go on meanwhile.")
    assert said["seq"] == 3
    async with patient.client.stream("GET", f"{answer}/events", headers=place) as reply:
        done = (await patient.client.post(f"{answer}/stop")).json()
        assert [event.data async for event in arriving(reply)] == [{"status": "interrupted"}, done]
    assert "stream" not in done


@pytest.mark.parametrize(
    ("prefer", "found"),
    [
        ("respond-async", True),
        ("RESPOND-ASYNC", True),
        ("wait=10, respond-async", True),
        ("respond-async; foo=bar", True),
        ("", False),
        ("respond-asynchronously", False),
        ('foo="a, respond-async, b"', False),
        ('foo="a\\", respond-async', False),
        ("," * 4_000, False),
        ('"' * 4_000, False),
        ("respond-async" + " " * 60_000, False),
    ],
)
def test_preferences(prefer: str, *, found: bool) -> None:
    """A list of words (RFC 7240); what is no such list says nothing."""
    assert prefers_async(prefer) == found


@pytest.mark.parametrize(
    ("accept", "found"),
    [
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/event-stream", True),
        ("Text/Event-Stream; charset=utf-8", True),
        ("text/*", True),
        ("text/event-stream, application/json", False),
        ("text/event-stream, */*", False),
        ("text/event-stream, application/json;q=0.9", True),
        ("application/json;q=0.2, text/event-stream;q=0.3", True),
        ("text/event-stream;q=0.5, */*;q=0.4", True),
        ("text/event-stream;q=0.5, */*;q=0.6", False),
        ("text/event-stream;q=0", False),
        ("text/*;q=1, text/event-stream;q=0", False),
        ("text/html", False),
        ("text/event-stream;q=9", True),
        ("text/event-stream;q=zq7", True),
        ('text/event-stream;v="a,b";q=0.5, application/json;q=0.1', True),
        (";;;,,,=q", False),
        ('"' * 4_000, False),
        ("text/event-stream" + ",a/b" * 20_000, False),
    ],
)
def test_what_is_accepted(accept: str, *, found: bool) -> None:
    """The type with the greater weight (RFC 9110); JSON wins a tie."""
    assert prefers_events(accept) == found


# --- failures ---------------------------------------------------------------------------------------------


async def test_a_failed_answer(api: Asking) -> None:
    """It is 502 with the reason, then and ever after; both messages stay, with what there was of the answer."""
    path = await api.conversation()
    values = {"id": str(uuid4())}
    for replayed in (False, True):
        reply = await api.ask(path, "Which tea? rate=0 error=1", **values)
        assert assert_problem(reply, 502)["detail"] == "the script says that the model fails here"
        assert ("idempotency-replayed" in reply.headers) == replayed
    message = (await api.client.get(reply.headers["location"])).json()
    assert (message["status"], message["content"]) == ("failed", "Which ")
    assert api.provider.asked == 1
    assert (await api.client.get(path)).json()["last_seq"] == 2


async def test_a_silent_model(api: Asking) -> None:
    """It is 504, then and ever after."""
    path = await api.conversation()
    values = {"id": str(uuid4())}
    for _ in range(2):
        reply = await api.ask(path, SILENT, **values)
        assert "said nothing" in assert_problem(reply, 504)["detail"]
    assert (await api.client.get(reply.headers["location"])).json()["content"] == "Which tea? "


async def test_a_deleted_conversation(patient: Asking) -> None:
    """Whoever waits for an answer whose conversation is deleted hears of it."""
    path = await patient.conversation()
    waiting = asyncio.create_task(patient.ask(path, SILENT))
    await patient.asked()
    assert (await patient.client.delete(path)).status_code == 204
    assert_problem(await waiting, 404)


async def test_a_client_that_is_gone(api: Asking) -> None:
    """Closing the connection stops nothing."""
    path = await api.conversation()
    body = b'{"content": "Which tea? rate=20"}'
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
    head = f"POST {path}/messages HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await api.asked()
    writer.transport.abort()
    del reader
    _, answer = (await api.client.get(f"{path}/messages")).json()["items"]
    *_, end = await read(api.client, "GET", f"{path}/messages/{answer['id']}/events")
    assert (end.data["status"], end.data["content"]) == ("complete", "Which tea? ")


# --- one at a time, and limits ----------------------------------------------------------------------------


async def test_another_question_meanwhile(patient: Asking) -> None:
    """It is refused with where the running answer is; nothing of it is stored."""
    path = await patient.conversation()
    answer, _ = await patient.begin(path)
    for headers in ({}, ASYNC, EVENT_STREAM):
        busy = await patient.ask(path, headers=headers)
        assert assert_problem(busy, 409)["code"] == "turn-in-progress"
        assert (busy.headers["location"], busy.headers["retry-after"]) == (f"{answer}/events", "1")
    waited = await patient.client.post(f"{path}/messages?on_busy=wait", json={"content": QUICK})
    assert assert_problem(waited, 409)["code"] == "turn-in-progress"
    assert (await patient.client.get(path)).json()["last_seq"] == 2
    assert_problem(await patient.client.post(f"{path}/messages?on_busy=zq7", json={"content": QUICK}), 422, "zq7")


async def test_waiting_for_the_other_question(api: Asking) -> None:
    """With `on_busy=wait` the second question is answered after the first."""
    path = await api.conversation()
    await api.begin(path, "Which tea? rate=20")
    second = await api.client.post(f"{path}/messages?on_busy=wait", json={"content": QUICK})
    assert second.status_code == 201
    assert [second.json()[name]["seq"] for name in ("user_message", "assistant_message")] == [3, 4]


async def test_a_hundred_questions_of_one_owner(patient: Asking) -> None:
    """Four are answered at a time; the others are refused, and store nothing."""
    paths = [await patient.conversation() for _ in range(100)]
    replies = await asyncio.gather(*(patient.ask(path, SILENT, ASYNC) for path in paths))
    assert sorted(reply.status_code for reply in replies) == [202] * 4 + [429] * 96
    for path, reply in zip(paths, replies, strict=True):
        if reply.status_code == 429:
            assert int(reply.headers["retry-after"]) > 0
            assert "at most 4 answers" in assert_problem(reply, 429)["detail"]
        assert (await patient.client.get(path)).json()["last_seq"] == (2 if reply.status_code == 202 else 0)
    assert patient.provider.asked == 4


async def test_the_quota_of_turns() -> None:
    """Beyond it a new question is 429, before it is stored; one that was asked before is replied to."""
    async with open_store("memory://") as store, answering(store, ScriptedProvider(), FAST, turn_limit="2/hour") as api:
        path, id_ = await api.conversation(), str(uuid4())
        bodies: list[dict[str, Any]] = [{"content": QUICK, "id": id_}, {"content": QUICK}]
        for body in bodies:
            assert (await api.client.post(f"{path}/messages", json=body)).status_code == 201
        refused = await api.client.post(f"{path}/messages", json={"content": QUICK, "id": str(uuid4())})
        assert_problem(refused, 429)
        assert 0 < int(refused.headers["retry-after"]) <= 3_600
        assert_problem(await api.client.post(f"{path}/messages/{id_}/answer"), 429)
        assert (await api.client.post(f"{path}/messages", json=bodies[0])).status_code == 201
        assert (await api.client.get(path)).json()["last_seq"] == 4
        await api.say(path, "This is not answered.")


async def test_as_many_turns_as_a_process_makes() -> None:
    """Beyond that it is 503: another process may have room."""
    async with open_store("memory://") as store, answering(store, ScriptedProvider(), FAST, max_turns=1) as api:
        path, other = await api.conversation(), await api.conversation()
        begun = await api.client.post(f"{path}/messages", json={"content": SILENT}, headers=ASYNC)
        assert begun.status_code == 202
        refused = await api.client.post(f"{other}/messages", json={"content": QUICK})
        assert "as many answers as it can" in assert_problem(refused, 503)["detail"]
        assert refused.headers["retry-after"] == "1"


async def test_only_some_requests_of_an_owner_wait() -> None:
    """Beyond that they are replied to at once, so that one owner's do not take all that a server may have."""
    times = ReplyTimes(answer=60)
    provider = ScriptedProvider()
    async with open_store("memory://") as store, answering(store, provider, times=times, max_streams=3) as api:
        path, body = await api.conversation(), {"content": SILENT, "id": str(uuid4())}
        asking = [asyncio.create_task(api.client.post(f"{path}/messages", json=body)) for _ in range(10)]
        for _ in range(7):
            done, asking_ = await asyncio.wait(asking, timeout=10, return_when=asyncio.FIRST_COMPLETED)
            assert {reply.result().status_code for reply in done} == {202}
            asking = list(asking_)
            if len(asking) == 3:
                break
        answer = (await api.client.get(f"{path}/messages")).json()["items"][1]
        await api.client.post(f"{path}/messages/{answer['id']}/stop")
        assert [(await reply).status_code for reply in asking] == [201] * 3


async def test_a_question_of_eight_megabytes(api: Asking) -> None:
    """It is as long as no message of a user may be, and nothing is stored."""
    path = await api.conversation()
    assert_problem(await api.ask(path, "x" * (8_000_000)), 422)
    assert (await api.client.get(path)).json()["last_seq"] == 0
    assert api.provider.asked == 0


# --- stop, and answer again -------------------------------------------------------------------------------


async def test_stop(patient: Asking) -> None:
    """It ends as interrupted, with what there is; stopping it again, or one that has ended, changes nothing."""
    path = await patient.conversation()
    answer, begun = await patient.begin(path)
    await read(patient.client, "GET", f"{answer}/events", until="Which tea? ")
    first, second = [await patient.client.post(f"{answer}/stop") for _ in range(2)]
    assert (first.status_code, second.status_code) == (200, 200)
    assert (first.json()["status"], first.json()["content"]) == ("interrupted", "Which tea? ")
    assert first.json() == second.json() == (await patient.client.get(answer)).json()
    assert_problem(await patient.client.post(f"{path}/messages/{begun['user_message']['id']}/stop"), 404)
    assert_problem(await patient.client.post(f"{path}/messages/{uuid4()}/stop"), 404)
    assert (await patient.ask(path)).status_code == 201


async def test_an_answer_that_does_not_stop_at_once(store_url: str) -> None:
    """The reply says where its end will be told."""
    limits = TurnLimits(flush=0.01, heartbeat=30.0)
    times = ReplyTimes(stop=0.1)
    async with (
        open_store(store_url) as store,
        answering(store, ScriptedProvider(), limits) as maker,
        answering(store, ScriptedProvider(), times=times) as other,
    ):
        path = await maker.conversation()
        begun = await maker.client.post(f"{path}/messages", json={"content": SILENT}, headers=ASYNC)
        answer = begun.headers["location"].removesuffix("/events")
        await read(maker.client, "GET", f"{answer}/events", until="Which tea? ")
        reply = await other.client.post(f"{answer}/stop")
        assert (reply.status_code, reply.headers["location"]) == (202, f"{answer}/events")
        assert reply.json()["status"] == "in_progress"
        assert (await maker.client.post(f"{answer}/stop")).json()["status"] == "interrupted"


async def test_answering_again(api: Asking) -> None:
    """Another answer is a sibling; the same key gets the same one; only a user's message is answered."""
    path = await api.conversation()
    first = (await api.ask(path)).json()
    question, again = first["user_message"]["id"], f"{path}/messages/{first['user_message']['id']}/answer"
    keyed = [await api.client.post(again, headers={"Idempotency-Key": key}) for key in ("a", "a", "1", "x" * 255)]
    assert [reply.status_code for reply in keyed] == [201] * 4
    ids = [reply.json()["assistant_message"]["id"] for reply in keyed]
    assert ids[0] == ids[1]
    assert len({first["assistant_message"]["id"], *ids}) == 4
    assert ["idempotency-replayed" in reply.headers for reply in keyed] == [False, True, False, False]
    unkeyed = await api.client.post(again)
    assert unkeyed.json()["assistant_message"]["parent_id"] == question
    siblings = (await api.client.get(f"{path}/messages/{ids[0]}/siblings")).json()["items"]
    assert len(siblings) == 5
    assert api.provider.asked == 5
    assert_problem(await api.client.post(f"{path}/messages/{ids[0]}/answer"), 422)
    assert_problem(await api.client.post(f"{path}/messages/{uuid4()}/answer"), 404)


async def test_answering_again_meanwhile(patient: Asking) -> None:
    """While the question is being answered, that answer is what there is."""
    path = await patient.conversation()
    answer, begun = await patient.begin(path)
    again = f"{path}/messages/{begun['user_message']['id']}/answer"
    for headers in ({}, {"Idempotency-Key": "k"}):
        attached = await patient.client.post(again, headers={**headers, **ASYNC})
        assert (attached.status_code, attached.headers["location"]) == (202, f"{answer}/events")
        assert attached.headers["idempotency-replayed"] == "true"
    assert patient.provider.asked == 1


# --- statistics -------------------------------------------------------------------------------------------


async def test_statistics(api: Asking) -> None:
    """Answers are counted by day, with how they ended, their tokens and their times."""
    path = await api.conversation()
    assert (await api.ask(path, "a b rate=0 tokens=7")).status_code == 201
    assert (await api.ask(path, "rate=0 error=1 tokens=3")).status_code == 502
    stats = (await api.client.get("/api/stats")).json()
    assert len(stats["days"]) == 1
    total = {name: value for name, value in stats["total"].items() if not name.startswith("p")}
    tokens = {"input_tokens": 4, "output_tokens": 7}
    assert total == {"day": None, "answers": 2, "failed": 1, "interrupted": 0, **tokens}
    assert 0 <= stats["total"]["p50_ms"] <= stats["total"]["p99_ms"]
    before = await api.client.get("/api/stats?from=2020-01-01T00:00:00Z&to=2020-02-01T00:00:00Z")
    assert (before.json()["days"], before.json()["total"]["answers"]) == ([], 0)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("from=zq7", "from"),
        ("to=2020-01-01", "to"),
        ("from=2020-01-01T00:00:00Z&to=2020-01-01T00:00:00Z", "query"),
        ("from=2020-01-01T00:00:00Z&to=2021-01-02T00:00:00.000001Z", "query"),
        ("to=0001-01-01T00:00:00Z", "query"),
        ("zq7=1", "query"),
    ],
)
async def test_no_range_of_time(query: str, field: str) -> None:
    """What is no range is refused, with the parameter that is wrong."""
    async with open_store("memory://") as store, serving(store) as api:
        problem = assert_problem(await api.client.get(f"/api/stats?{query}"), 422, "zq7")
        assert [error["field"] for error in problem["errors"]] == [field]


async def test_metrics() -> None:
    """Answers are counted while they are made, and when they have ended."""
    async with open_store("memory://") as store, answering(store, ScriptedProvider(), FAST, metrics=True) as api:
        path = await api.conversation()
        begun = await api.client.post(f"{path}/messages", json={"content": SILENT}, headers=ASYNC)
        assert "chatkeep_turns_running 1.0" in (await api.client.get("/metrics")).text
        await api.client.post(f"{begun.headers['location'].removesuffix('events')}stop")
        text = (await api.client.get("/metrics")).text
        assert "chatkeep_turns_running 0.0" in text
        assert 'chatkeep_turns_total{status="interrupted"}' in text
